//! When to ask the master and for what, and what becomes of the answers. Pure: it takes answers
//! and `now`, and returns queries and events; the poller does the I/O.
//!
//! REST is the truth. A poll is a round of steps, each of which asks for one list, in pages. Builds
//! from rounds and from the stream wait in one queue until everything that their line needs is
//! known; what they need is asked for beside the round, and nobody waits but later builds of the
//! same builder. The stream only makes things early: lost, late, doubled or silent, the poll finds
//! the same.

use super::builder::Builder;
use super::client::{
    Answer, Error, ErrorKind, LONG_PAGE, List, PAGE, Page, Query, RequestFate, WithBuilders,
};
use super::events::Update;
use super::model::{MasterEvent, Model, RequestEnd};
use super::pending::{PendingBuilds, Source};
use super::resources::{Build, BuildRequest, Worker};
use crate::backoff::Backoff;
use crate::outcome::Outcome;
use crate::sanitize::sanitize_error;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// An answer that has the builders of each worker, too, may have so many of them: about 600 KiB.
const PLACES: usize = 20_000;
/// Recent builds that the first poll looks at, for the last results of all builders.
const LOOK_BACK: usize = 10 * PAGE;
/// New builds that one poll takes; the next poll goes on from there.
const CATCH_UP: usize = 50 * PAGE;
/// Requests that wait, which are counted and shown.
const QUEUE: usize = 10 * PAGE;
/// Far above what any master has: one that lists more does not look at `offset`.
const LISTED: usize = 100_000;
/// Items of one list that are left out because they are too large.
const OVERSIZED: usize = 5;
/// Requests looked up in one round.
const REQUEST_LOOKUPS: usize = 20;
/// While the stream is trusted, a poll is only a check, and so many times rarer.
const RELAXED: u32 = 6;
/// The list of builders changes with the configuration only.
const LIST_REFRESH: Duration = Duration::from_secs(600);
/// When a builder is new, its workers become known a moment later.
const SETTLE: Duration = Duration::from_secs(5);
/// A list of builders that was read so lately is not read again for a new stream.
const JUST_LISTED: Duration = Duration::from_secs(300);
/// Builds that a doubted stream must tell by itself before it is trusted again; twice as many each
/// time, for one may tell of some builders only.
const BUILDS_FOR_TRUST: u32 = 3;
const BUILDS_FOR_TRUST_LIMIT: u32 = 1000;
/// The stream may tell so much later of a build that a poll has found.
const STREAM_GRACE: Duration = Duration::from_secs(5);
/// Polls for which a missing id is awaited: ids can become visible out of order.
const GAP_POLLS: u32 = 3;
/// Rounds that may fail at an error of the master's own before it is taken for a refusal.
const TRIES: u32 = 3;
/// What is refused, or does not come, and is only nice to have is asked for again after so long.
const DO_WITHOUT: Duration = Duration::from_secs(60);
/// Waits after a failed round, doubling; never longer than the poll interval.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));

/// One list that a round asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Identity,
    Builders,
    WorkersWithBuilders,
    Workers,
    Changes,
    /// The look-back, in two steps: builds that run, and recent ones.
    Running,
    Recent,
    /// Builds since the last one.
    New,
    /// The builds that ran when we last asked.
    KnownRunning,
    Queue,
    /// Requests that someone waits for.
    Requests,
    /// The branches of recent builds, once the first poll is through.
    Branches,
}

/// Where the event stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stream {
    /// There is none now.
    Down,
    /// Subscribed; the first round since may find what came before.
    Fresh,
    /// It tells everything.
    Trusted,
}

/// Ids between two builds that were seen are missing.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The last build below it.
    last_build_id: u64,
    /// Given up are all gaps below this id.
    limit: u64,
    polls: u32,
}

/// What a step has brought so far, page by page.
#[derive(Debug, Default)]
struct Gathered {
    builders: Vec<Builder>,
    workers: Vec<Worker>,
    builds: Vec<Build>,
    requests: Vec<BuildRequest>,
}

/// How far the step at hand is.
#[derive(Debug, Default)]
struct Progress {
    offset: usize,
    /// Smaller pages than usual, because one was too large.
    page_limit: Option<usize>,
    without_text: bool,
    /// Items that were left out of this list.
    oversized: usize,
    /// The id from which on new builds are asked for, page by page.
    new_builds_from: Option<u64>,
    /// What is left to ask for in a step that goes by ids.
    ids: Option<Vec<u64>>,
}

pub struct Sync {
    interval: Duration,
    round: VecDeque<Step>,
    /// What the round waits for an answer to.
    awaited: Option<Query>,
    /// The round is a poll, and not a look-up of requests between two polls.
    is_polling: bool,
    progress: Progress,
    gathered: Gathered,
    pending: PendingBuilds,
    next_poll: Instant,
    builders_listed_at: Option<Instant>,
    /// The look-back is done.
    is_synced: bool,
    /// The round has a look-back, and is not through with its builds.
    is_catching_up: bool,
    backoff: Backoff,
    /// Rounds that may fail before we do without what is not essential.
    tries: u32,
    last_error: String,
    /// For the log, if the program runs on.
    report: Option<String>,
    /// What we do without, and when it is asked for again.
    done_without: BTreeMap<Step, Instant>,
    stream: Stream,
    /// The stream stood when the round began.
    began_with_stream: bool,
    /// A poll has found what the stream did not tell; so many builds must it tell by itself now.
    doubt: Option<u32>,
    /// … at the next doubt.
    builds_for_trust: u32,
    /// The hand-shake came late, and so may what follows.
    is_late: bool,
    /// Builds that a poll has found, and until when the stream may still tell of them.
    untold: Vec<(u64, Instant)>,
    restart_stream: bool,
    gap: Option<Gap>,
    /// Requests that someone waits for.
    tracked: BTreeSet<u64>,
    requests_due: bool,
    /// The builds of the look-back came without their branches.
    branches_due: bool,
}

impl Sync {
    pub fn new(interval: Duration, now: Instant) -> Sync {
        Sync {
            interval,
            round: VecDeque::new(),
            awaited: None,
            is_polling: false,
            progress: Progress::default(),
            gathered: Gathered::default(),
            pending: PendingBuilds::default(),
            next_poll: now,
            builders_listed_at: None,
            is_synced: false,
            is_catching_up: false,
            backoff: Backoff::new(RETRY.0, RETRY.1),
            tries: TRIES,
            last_error: String::new(),
            report: None,
            done_without: BTreeMap::new(),
            stream: Stream::Down,
            began_with_stream: false,
            doubt: None,
            builds_for_trust: BUILDS_FOR_TRUST,
            is_late: false,
            untold: Vec::new(),
            restart_stream: false,
            gap: None,
            tracked: BTreeSet::new(),
            requests_due: false,
            branches_due: false,
        }
    }

    /// There will be one poll only: what is not essential is not tried again.
    pub fn set_impatient(&mut self) {
        self.tries = 0;
        self.pending.set_impatient();
    }

    /// The requests that someone waits for, from now on.
    pub fn set_tracked(&mut self, tracked: BTreeSet<u64>) {
        self.tracked = tracked;
    }

    /// When [`Sync::next_query`] has something to ask, if nothing happens before.
    pub fn deadline(&self) -> Instant {
        let untold = self.untold.iter().map(|(_, until)| *until);
        untold.fold(self.next_poll, Instant::min)
    }

    /// Whether the last round came to its end without an error.
    pub fn is_healthy(&self) -> bool {
        self.is_synced && self.backoff.failures() == 0
    }

    /// Why the master does not answer, when that is new.
    pub fn take_report(&mut self) -> Option<String> {
        self.report.take()
    }

    /// Whether more builds belong to those that were received: some wait for a look-up, or this is
    /// the round in which we catch up.
    pub fn expects_builds(&self) -> bool {
        !self.pending.is_empty() || self.is_catching_up
    }

    /// Whether the stream should be ended, so that it is made anew.
    pub fn take_restart_stream(&mut self) -> bool {
        std::mem::take(&mut self.restart_stream)
    }

    /// The next query of a round, if one is due. Its answer is awaited before another is asked.
    pub fn next_query(&mut self, model: &mut Model, now: Instant) -> Option<Query> {
        self.awaited = self.find_query(model, now);
        self.awaited.clone()
    }

    fn find_query(&mut self, model: &mut Model, now: Instant) -> Option<Query> {
        self.judge_stream(now);
        while !self.round.is_empty() || self.start_what_is_due(now) {
            while let Some(&step) = self.round.front() {
                let again_at = self.done_without.get(&step);
                let is_left_out = again_at.is_some_and(|at| now < *at);
                if !is_left_out && let Some(query) = self.query_of(step, model) {
                    return Some(query);
                }
                self.end_step(model, now);
            }
        }
        None
    }

    /// Starts a round, if one is due.
    fn start_what_is_due(&mut self, now: Instant) -> bool {
        if std::mem::take(&mut self.requests_due) {
            self.round.push_back(Step::Requests);
        } else if now >= self.next_poll {
            self.start_round(now);
        } else if std::mem::take(&mut self.branches_due) {
            self.round.push_back(Step::Branches);
        }
        !self.round.is_empty()
    }

    /// What builds need to be known before they can be told, if anything. The answer is awaited
    /// before more is asked for that builder.
    pub fn next_lookup(&mut self, model: &Model, now: Instant) -> Option<Query> {
        let tracked = &self.tracked;
        let is_tracked = |build: &Build| is_tracked(tracked, build);
        self.pending.next_lookup(model, &is_tracked, now)
    }

    /// When [`Sync::next_lookup`] has something to ask, if nothing happens before.
    pub fn lookup_deadline(&self, now: Instant) -> Option<Instant> {
        self.pending.deadline(now)
    }

    /// Whether a list has come in part: what the stream tells meanwhile could be undone by the rest.
    pub fn is_gathering(&self) -> bool {
        self.progress.offset > 0
    }

    /// Builds come before what is only nice to have.
    fn start_round(&mut self, now: Instant) {
        self.is_polling = true;
        self.began_with_stream = self.stream != Stream::Down;
        let listed = self.builders_listed_at;
        let must_list = listed.is_none_or(|at| now >= at + LIST_REFRESH);
        if must_list {
            self.round.extend([Step::Identity, Step::Builders]);
        }
        self.is_catching_up = !self.is_synced;
        if self.is_catching_up {
            self.round.extend([Step::Running, Step::Recent]);
        }
        self.round.extend([Step::New, Step::KnownRunning]);
        if must_list {
            self.round.push_back(Step::WorkersWithBuilders);
        } else if !self.is_trusted() {
            self.round.push_back(Step::Workers);
        }
        if self.stream == Stream::Fresh || must_list && self.stream == Stream::Trusted {
            self.round.push_back(Step::Changes);
        }
        self.round.extend([Step::Queue, Step::Requests]);
    }

    /// Whether the stream tells everything, and in time.
    fn is_trusted(&self) -> bool {
        self.stream != Stream::Down && self.doubt.is_none() && !self.is_late
    }

    /// The next query of a step; nothing when it has no more to ask.
    fn query_of(&mut self, step: Step, model: &Model) -> Option<Query> {
        let page = self.page_of(step, model);
        match step {
            Step::Identity => Some(Query::Identity),
            Step::Builders => Some(Query::Builders(page)),
            Step::WorkersWithBuilders => Some(Query::Workers(page, WithBuilders::Yes)),
            Step::Workers => Some(Query::Workers(page, WithBuilders::No)),
            Step::Changes => Some(Query::NewestChanges),
            Step::Running => Some(Query::RunningBuilds(page)),
            Step::Recent => Some(Query::RecentBuilds(page)),
            Step::Branches => Some(Query::RecentBranches(page)),
            Step::New => {
                // Builds of one page are applied before the next is asked for.
                let last = model.last_build_id().unwrap_or(0);
                let from = *self.progress.new_builds_from.get_or_insert(last);
                Some(Query::BuildsFrom(from, page))
            }
            Step::KnownRunning => {
                let ids = self.progress.ids.get_or_insert_with(|| model.running_ids());
                let chunk = ids.len().min(page.limit);
                let ids: Vec<u64> = ids.drain(..chunk).collect();
                (!ids.is_empty()).then_some(Query::BuildsById(ids, page))
            }
            Step::Queue => Some(Query::QueuedRequests(page)),
            Step::Requests => {
                let tracked = &self.tracked;
                let ids = self.progress.ids.get_or_insert_with(|| {
                    let mut unclear = model.unclear_requests(tracked.iter());
                    unclear.truncate(REQUEST_LOOKUPS);
                    unclear
                });
                ids.pop().map(Query::Request)
            }
        }
    }

    fn page_of(&self, step: Step, model: &Model) -> Page {
        let usual = match step {
            Step::Builders if self.progress.offset > 0 => LONG_PAGE,
            Step::WorkersWithBuilders => {
                let builders = model.builder_counts().total.max(1);
                (PLACES / builders).clamp(1, PAGE)
            }
            _ => PAGE,
        };
        Page {
            offset: self.progress.offset,
            limit: self
                .progress
                .page_limit
                .map_or(usual, |limit| limit.min(usual)),
            without_text: self.progress.without_text,
        }
    }

    /// The step at hand is through; perhaps the round, too.
    fn end_step(&mut self, model: &mut Model, now: Instant) {
        let step = self.round.pop_front();
        self.progress = Progress::default();
        if step == Some(Step::KnownRunning) {
            self.is_catching_up = false;
        }
        if self.round.is_empty() && self.is_polling {
            self.end_round(model, now);
        }
    }

    fn end_round(&mut self, model: &mut Model, now: Instant) {
        self.is_polling = false;
        if self.backoff.failures() > 0 {
            log!(Info, "the master answers again");
            self.pending.retry();
        }
        self.backoff.reset();
        self.last_error.clear();
        model.last_error = None;
        model.is_complete = true;
        self.close_gap(model);
        if self.stream == Stream::Fresh && !self.began_with_stream {
            // What came between its answers and the subscription is for another round.
            self.next_poll = now;
            return;
        }
        let factor = if self.is_trusted() { RELAXED } else { 1 };
        if self.stream == Stream::Fresh {
            self.stream = Stream::Trusted;
        }
        self.next_poll = now + self.interval * factor;
    }

    /// Ids that are missing below the newest build are awaited for some polls, then given up.
    fn close_gap(&mut self, model: &mut Model) {
        let last = model.last_build_id().unwrap_or(0);
        let highest = model.highest_build_id();
        if highest <= last || !self.pending.is_empty() {
            self.gap = None;
            return;
        }
        match &mut self.gap {
            Some(gap) if gap.last_build_id == last => {
                gap.polls += 1;
                if gap.polls >= GAP_POLLS {
                    model.catch_up(gap.limit);
                    self.gap = None;
                }
            }
            _ => {
                self.gap = Some(Gap {
                    last_build_id: last,
                    limit: highest,
                    polls: 1,
                });
            }
        }
    }

    /// Takes in the answer to a query, and returns what has happened. `unix` is our clock.
    pub fn on_answer(
        &mut self,
        query: &Query,
        answer: Result<Answer, Error>,
        model: &mut Model,
        now: Instant,
        unix: i64,
    ) -> Vec<MasterEvent> {
        let mut events = Vec::new();
        if query.is_lookup() {
            self.pending.on_answered(query);
        }
        // A round that has failed meanwhile is over.
        if !query.is_lookup() && self.awaited.take().as_ref() != Some(query) {
            return events;
        }
        match answer {
            Ok(answer) => {
                model.last_contact = Some(unix);
                if !query.is_lookup()
                    && let Some(step) = self.round.front()
                {
                    self.done_without.remove(step);
                }
                self.take_answer(query, answer, model, now, &mut events);
            }
            Err(error) if query.is_lookup() => self.on_failed_lookup(query, &error, now),
            Err(error) => self.on_error(query, &error, model, now),
        }
        // Others wait for what has not come.
        match query {
            Query::Builder(builder) | Query::PreviousBuilds { builder, .. } => {
                self.apply_builds_of(*builder, model, now, &mut events);
            }
            _ => self.apply_pending(model, now, &mut events),
        }
        events
    }

    fn take_answer(
        &mut self,
        query: &Query,
        answer: Answer,
        model: &mut Model,
        now: Instant,
        events: &mut Vec<MasterEvent>,
    ) {
        match (query, answer) {
            (Query::Identity, Answer::Identity(identity)) => {
                model.identity = identity;
                self.end_step(model, now);
            }
            (Query::Builders(page), Answer::Builders(list)) => {
                self.gathered.builders.extend(list.items);
                if self.advance(*page, list.length, LISTED) {
                    model.set_builders(std::mem::take(&mut self.gathered.builders));
                    self.pending.on_builders_listed();
                    self.builders_listed_at = Some(now);
                    self.end_step(model, now);
                }
            }
            (Query::Workers(page, with_builders), Answer::Workers(list)) => {
                self.gathered.workers.extend(list.items);
                if self.advance(*page, list.length, LISTED) {
                    let workers = std::mem::take(&mut self.gathered.workers);
                    let with_builders = *with_builders == WithBuilders::Yes;
                    events.extend(model.set_workers(workers, with_builders));
                    self.end_step(model, now);
                }
            }
            (Query::NewestChanges, Answer::Changes(changes)) => {
                model.set_changes(changes);
                self.end_step(model, now);
            }
            (Query::QueuedRequests(page), Answer::Requests(list)) => {
                self.gathered.requests.extend(list.items);
                if self.advance(*page, list.length, QUEUE) {
                    let requests = std::mem::take(&mut self.gathered.requests);
                    let queued = requests.iter().map(|r| (r.id, r.builder_id));
                    model.queued = queued.collect();
                    self.end_step(model, now);
                }
            }
            (Query::Request(id), Answer::Request(fate)) => {
                self.take_fate(*id, fate, model, events);
            }
            (Query::Builder(id), Answer::Builders(list)) => {
                for builder in list.items {
                    model.set_builder(builder);
                    // The list is out of date: its workers will come with the next round.
                    self.builders_listed_at = None;
                }
                if model.builder(*id).is_none() {
                    self.pending.on_unknown_builder(*id);
                }
            }
            (query, Answer::Builds(list)) => self.take_builds(query, list, model, now, events),
            // The client answers each query in its kind.
            _ => log!(Error, "the client has answered something else"),
        }
    }

    fn take_builds(
        &mut self,
        query: &Query,
        list: List<Build>,
        model: &mut Model,
        now: Instant,
        events: &mut Vec<MasterEvent>,
    ) {
        match query {
            Query::RunningBuilds(page) => {
                self.gathered.builds.extend(list.items);
                if self.advance(*page, list.length, LOOK_BACK) {
                    self.end_step(model, now);
                }
            }
            Query::RecentBuilds(page) => {
                self.gathered.builds.extend(list.items);
                if self.advance(*page, list.length, LOOK_BACK) {
                    self.look_back(model, now, events);
                    self.end_step(model, now);
                }
            }
            // With the new builds comes the last one, if this is still the same database.
            Query::BuildsFrom(1.., page) if page.offset == 0 && list.length == 0 => {
                self.is_synced = false;
                self.end_step(model, now);
                self.round.push_front(Step::Recent);
                self.round.push_front(Step::Running);
            }
            Query::BuildsFrom(_, page) => {
                self.receive(list.items, Source::ListWithBranches);
                if self.advance(*page, list.length, CATCH_UP) {
                    self.end_step(model, now);
                }
            }
            Query::BuildsById(ids, _) => {
                self.progress.page_limit = None;
                self.progress.without_text = false;
                // An odd item is not gone, it only cannot be read.
                if list.length == list.items.len() {
                    let is_gone = |id: &&u64| list.items.iter().all(|build| build.id != **id);
                    let gone: Vec<u64> = ids.iter().filter(is_gone).copied().collect();
                    model.forget_running(&gone);
                }
                self.receive(list.items, Source::List);
            }
            Query::PreviousBuilds {
                builder, number, ..
            } => {
                model.learn_previous(*builder, *number, list.items);
                self.pending.on_previous(query);
            }
            Query::Branch(_) => self.pending.on_branch(query, list.items),
            Query::RecentBranches(page) => {
                model.learn_branches(list.items);
                if self.advance(*page, list.length, LOOK_BACK) {
                    self.end_step(model, now);
                }
            }
            _ => log!(Error, "the client has answered something else"),
        }
    }

    /// Goes on to the next page. Returns whether this one was the last.
    fn advance(&mut self, page: Page, length: usize, limit: usize) -> bool {
        self.progress.offset = page.offset + length;
        // What was too large is behind us.
        self.progress.page_limit = None;
        self.progress.without_text = false;
        length < page.limit || self.progress.offset >= limit
    }

    /// The recent builds are no news, but for the end of builds that ran when an earlier run left
    /// off; what came behind its last build is asked for next.
    fn look_back(&mut self, model: &mut Model, now: Instant, events: &mut Vec<MasterEvent>) {
        let mut builds = std::mem::take(&mut self.gathered.builds);
        builds.sort_unstable_by_key(|build| (build.id, build.complete));
        let newest = builds.last().map_or(0, |build| build.id);
        let is_behind = model.last_build_id() > Some(newest);
        if is_behind && model.knows_some(&builds) {
            log!(
                Info,
                "the newest builds were deleted from the master's database"
            );
            model.rewind(newest);
        } else if is_behind {
            log!(Warning, "build ids went backwards; starting over");
            model.start_over();
            self.pending.clear();
            events.push(MasterEvent::StartedOver);
        }
        let last = model.last_build_id().unwrap_or(newest);
        builds.retain(|build| build.id <= last);
        self.receive(builds, Source::List);
        self.apply_pending(model, now, events);
        model.catch_up(last);
        self.is_synced = true;
        self.branches_due = true;
    }

    fn receive(&mut self, builds: Vec<Build>, source: Source) {
        let is_expected = self.stream == Stream::Trusted && self.is_trusted();
        for build in builds {
            self.pending.push(build, source, is_expected);
        }
    }

    /// Applies the builds that wait for nothing.
    fn apply_pending(&mut self, model: &mut Model, now: Instant, events: &mut Vec<MasterEvent>) {
        for builder in self.pending.builders() {
            self.apply_builds_of(builder, model, now, events);
        }
    }

    /// The same of one builder.
    fn apply_builds_of(
        &mut self,
        builder: u64,
        model: &mut Model,
        now: Instant,
        events: &mut Vec<MasterEvent>,
    ) {
        let tracked = &self.tracked;
        let is_tracked = |build: &Build| is_tracked(tracked, build);
        let mut ready = Vec::new();
        while let Some(received) = self.pending.pop_ready(builder, model, &is_tracked) {
            let id = received.build.id;
            let Some(event) = model.apply_build(received.build) else {
                continue;
            };
            if !event.build.complete {
                self.pending.note_started(&event.build);
            }
            if event.is_new {
                ready.push((id, received.source, received.is_expected_on_stream));
            }
            if event.is_new || event.ends_request && is_tracked(&event.build) {
                events.push(MasterEvent::Build(Box::new(event)));
            }
        }
        for (id, source, is_expected) in ready {
            self.note_source(id, source, is_expected, now);
        }
    }

    /// Whether the stream tells what happens shows in who was first.
    fn note_source(&mut self, build: u64, source: Source, is_expected: bool, now: Instant) {
        match (&mut self.doubt, source) {
            (Some(0..=1), Source::Stream) => {
                log!(Info, "event stream: it tells of builds again");
                self.doubt = None;
            }
            (Some(builds), Source::Stream) => *builds -= 1,
            // A poll was first once more.
            (Some(builds), Source::List | Source::ListWithBranches) => {
                *builds = self.builds_for_trust
            }
            (Some(_), Source::Command) | (None, _) => {}
        }
        if is_expected && self.stream == Stream::Trusted {
            self.untold.push((build, now + STREAM_GRACE));
        }
    }

    /// A stream that does not tell what a poll has found is made anew, and the poll keeps its
    /// interval until the stream has told of builds by itself again.
    fn judge_stream(&mut self, now: Instant) {
        let overdue = self
            .untold
            .iter()
            .filter(|(_, until)| *until <= now)
            .count();
        if overdue == 0 {
            return;
        }
        let builds = if overdue == 1 { "a build" } else { "builds" };
        log!(
            Warning,
            "event stream: it did not tell of {builds}; polling more often"
        );
        self.untold.clear();
        self.doubt = Some(self.builds_for_trust);
        self.builds_for_trust = (2 * self.builds_for_trust).min(BUILDS_FOR_TRUST_LIMIT);
        self.restart_stream = true;
        self.next_poll = self.next_poll.min(now + self.interval);
    }

    /// What has become of a request that someone waits for.
    fn take_fate(
        &mut self,
        id: u64,
        fate: RequestFate,
        model: &Model,
        events: &mut Vec<MasterEvent>,
    ) {
        let was_retried = |build: &Build| build.outcome() == Some(Outcome::Retry);
        let leads_nowhere = fate.build.as_ref().is_none_or(was_retried);
        let (builder, end) = match &fate.request {
            None if fate.build.is_none() => (0, RequestEnd::Forgotten),
            Some(request) if request.complete && leads_nowhere => {
                let end = match request.outcome() {
                    Some(Outcome::Cancelled) => RequestEnd::Cancelled,
                    Some(Outcome::Skipped) => RequestEnd::Merged(fate.merged_into),
                    _ => RequestEnd::NeverStarted,
                };
                (request.builder_id, end)
            }
            _ => {
                self.receive(fate.build.into_iter().collect(), Source::ListWithBranches);
                return;
            }
        };
        let known = model.builder(builder).map(|builder| builder.name.clone());
        events.push(MasterEvent::RequestEnded {
            request: id,
            builder: known.unwrap_or_else(|| format!("builder {builder}")),
            end,
        });
    }

    fn on_error(&mut self, query: &Query, error: &Error, model: &mut Model, now: Instant) {
        if error.kind == ErrorKind::TooLarge && self.shrink_page(query) {
            return;
        }
        // An error of the master's own may pass: only what stays is taken for a refusal. But nobody
        // waits for what is only nice to have.
        let is_slow = error.kind == ErrorKind::TimedOut && !query.is_essential();
        let is_final = match error.kind {
            ErrorKind::Refused(..500) | ErrorKind::TooLarge => true,
            ErrorKind::NoConnection | ErrorKind::Busy => false,
            _ => is_slow || self.backoff.failures() >= self.tries,
        };
        if is_final && self.do_without(query, error, model, now) {
            return;
        }
        self.fail_round(error, model, now);
    }

    /// One build waits; the round and all others go on.
    fn on_failed_lookup(&mut self, query: &Query, error: &Error, now: Instant) {
        if self.pending.on_failure(query, error, now) {
            log!(Warning, "{error}; going on without");
        } else {
            log!(Debug, "{error}");
        }
    }

    /// Asks for less at once, then without texts, then for all but one item. Returns false where
    /// that does not help.
    fn shrink_page(&mut self, query: &Query) -> bool {
        let page = match query {
            Query::Builders(page)
            | Query::Workers(page, _)
            | Query::RunningBuilds(page)
            | Query::RecentBuilds(page)
            | Query::RecentBranches(page)
            | Query::BuildsFrom(_, page)
            | Query::BuildsById(_, page)
            | Query::QueuedRequests(page) => *page,
            _ => return false,
        };
        if let Query::BuildsById(ids, _) = query
            && let Some(remaining) = &mut self.progress.ids
        {
            // These were taken out already.
            remaining.splice(..0, ids.iter().copied());
        }
        if page.limit > 1 {
            self.progress.page_limit = Some(page.limit / 2);
        } else if !page.without_text {
            self.progress.without_text = true;
        } else if self.progress.oversized < OVERSIZED {
            log!(Info, "an item of a list is too large to be read");
            self.progress.oversized += 1;
            match &mut self.progress.ids {
                Some(remaining) => drop(remaining.remove(0)),
                None => self.progress.offset += 1,
            }
        } else {
            return false;
        }
        true
    }

    /// A list that is refused must not hold up the others. Returns false for what we cannot be
    /// without.
    fn do_without(
        &mut self,
        query: &Query,
        error: &Error,
        model: &mut Model,
        now: Instant,
    ) -> bool {
        match query {
            Query::Request(_) => log!(Warning, "{error}"),
            Query::Identity
            | Query::Workers(..)
            | Query::NewestChanges
            | Query::RecentBranches(_)
            | Query::QueuedRequests(_) => {
                if let Some(step) = self.round.front().copied()
                    && self.done_without.insert(step, now + DO_WITHOUT).is_none()
                {
                    log!(Warning, "{error}; going on without");
                }
                self.gathered = Gathered::default();
                self.end_step(model, now);
            }
            Query::Builders(_)
            | Query::RunningBuilds(_)
            | Query::RecentBuilds(_)
            | Query::BuildsFrom(..)
            | Query::BuildsById(..) => return false,
            // These are no lists.
            Query::Builder(_) | Query::Branch(_) | Query::PreviousBuilds { .. } => {}
        }
        true
    }

    /// Ends the round. What was learnt before stays learnt; the next round asks for the rest.
    fn fail_round(&mut self, error: &Error, model: &mut Model, now: Instant) {
        let reason = sanitize_error(&error.to_string());
        if reason != self.last_error {
            self.report = Some(format!("the master does not answer: {reason}"));
        }
        self.round.clear();
        self.awaited = None;
        self.is_polling = false;
        self.is_catching_up = false;
        self.gathered = Gathered::default();
        self.progress = Progress::default();
        // It may come back with another configuration, or another database.
        self.builders_listed_at = None;
        if error.kind.is_no_answer() {
            self.is_synced = false;
            self.restart_stream = self.stream != Stream::Down;
        }
        let longest = self.interval.max(RETRY.0);
        let wait = self.backoff.next_wait().min(longest);
        self.next_poll = now + wait.max(error.retry_after.unwrap_or_default());
        model.last_error = Some(reason.clone());
        self.last_error = reason;
    }

    /// The subscription stands. What happened before it is for the next poll.
    pub fn on_stream_up(&mut self, is_prompt: bool, now: Instant) {
        self.stream = Stream::Fresh;
        if !is_prompt && !self.is_late {
            log!(
                Warning,
                "event stream: it comes late; is a proxy buffering it?"
            );
        }
        self.is_late = !is_prompt;
        self.untold.clear();
        // The configuration of the master is perhaps a new one.
        let listed = self.builders_listed_at;
        self.builders_listed_at = listed.filter(|at| now < *at + JUST_LISTED);
        self.next_poll = now;
    }

    pub fn on_stream_down(&mut self, model: &mut Model, now: Instant) {
        self.stream = Stream::Down;
        self.untold.clear();
        model.changes.clear();
        // A round that failed has its own time.
        if self.backoff.failures() == 0 {
            self.next_poll = now;
        }
    }

    /// Takes in what the stream has told.
    pub fn on_update(
        &mut self,
        update: Update,
        model: &mut Model,
        now: Instant,
        unix: i64,
    ) -> Vec<MasterEvent> {
        model.last_contact = Some(unix);
        let mut events = Vec::new();
        match update {
            // Before the first poll it is not known what is new; that poll will see all of it.
            Update::Build(_) if !self.is_synced => {}
            // More at once than any master has is for the poll, which takes it in pages.
            Update::Build(_) if model.is_full() || self.pending.len() > CATCH_UP => {}
            Update::Build(build) => {
                self.untold.retain(|(id, _)| *id != build.id);
                let builder = build.builder_id;
                self.pending.push(build, Source::Stream, false);
                self.apply_builds_of(builder, model, now, &mut events);
            }
            // One that is new is listed, with its builders, by the next poll.
            Update::Worker(worker) if !model.knows_worker(worker.id) => {
                self.builders_listed_at = None;
            }
            Update::Worker(worker) => events.extend(model.apply_worker(worker)),
            Update::Change(change) => model.add_change(change),
            Update::BuilderAdded => {
                self.builders_listed_at = None;
                self.next_poll = self.next_poll.min(now + SETTLE);
            }
            Update::Request(request) => {
                self.take_request(&request, model);
                let outcome = request.outcome();
                if matches!(outcome, Some(Outcome::Cancelled | Outcome::Skipped)) {
                    events.push(MasterEvent::RequestDropped(request.id));
                }
            }
            Update::Buildset(buildset) => {
                model.note_buildset(buildset);
                // A build may have waited for its branch.
                self.apply_pending(model, now, &mut events);
            }
        }
        events
    }

    fn take_request(&mut self, request: &BuildRequest, model: &mut Model) {
        model.note_request(request);
        // The first poll will see what waits.
        if !self.is_synced {
            return;
        }
        if request.complete || request.claimed {
            model.queued.remove(&request.id);
        } else if model.queued.len() < CATCH_UP {
            model.queued.insert(request.id, request.builder_id);
        }
        if request.complete && self.tracked.contains(&request.id) {
            self.requests_due = true;
        }
    }

    /// Takes in what was looked up for a command.
    pub fn on_lookup(
        &mut self,
        lookup: Lookup,
        model: &mut Model,
        now: Instant,
    ) -> Vec<MasterEvent> {
        let mut events = Vec::new();
        // The highest number came first.
        for build in lookup.builds.into_iter().rev() {
            let builder = build.builder_id;
            self.pending.push(build, Source::Command, self.is_trusted());
            self.apply_builds_of(builder, model, now, &mut events);
        }
        for builder in lookup.builders {
            model.set_lookup_done(builder);
        }
        for (build, step) in lookup.steps {
            model.set_step(build, step);
        }
        events
    }
}

/// Whether somebody waits for the request of a build.
fn is_tracked(tracked: &BTreeSet<u64>, build: &Build) -> bool {
    build.request_id.is_some_and(|id| tracked.contains(&id))
}

/// What a command wanted to know.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    /// Those of one builder after another, each with the highest number first.
    pub builds: Vec<Build>,
    /// Builders of which `builds` holds all that the master has said.
    pub builders: Vec<u64>,
    /// Build id and step.
    pub steps: Vec<(u64, String)>,
}

#[cfg(test)]
mod tests;
