//! What is known of the master: builders, builds, workers, requests, changes. Pure values behind
//! one mutex: the poller writes, the command handler reads.
//!
//! Every build comes in through [`Model::apply_build`], the one place that decides whether it is
//! old, has started or has ended. So each source of builds may be late, doubled or lossy.

use super::builder::{BuildEvent, Builder, BuildsetSize};
use super::resources::{Build, BuildRequest, Buildset, Change, SourceStamp, Worker};
use crate::outcome::Outcome;
use crate::sanitize;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

/// Characters of a state text that are kept: 10,000 builders must fit into memory.
const STATE_TEXT: usize = 300;
/// Codebases of a buildset that are kept.
const CODEBASES: usize = 20;
/// Requests and buildsets that the stream has told of, the newest.
const REQUESTS: usize = 10_000;
const BUILDSETS: usize = 2_000;
/// Builds that run, or that became known out of order: far above what any master has.
const BUILDS_AT_ONCE: usize = 10_000;
/// Changes that are kept, newest first.
const CHANGES: usize = 100;
/// On a cluster a builder without a master is still shown for so many seconds after its last
/// build: its master may be down.
const RECENT_BUILD: i64 = 3600;

/// How far the master's builds are known. It is remembered in step with the announcements.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildCursor {
    /// Every build up to this id has been seen or given up; nothing before the first poll.
    #[serde(alias = "mark")]
    pub last_build_id: Option<u64>,
    /// Builds seen above that: ids can become visible out of order.
    #[serde(alias = "ahead")]
    pub seen_out_of_order: BTreeSet<u64>,
    /// Those of all these that still run.
    #[serde(alias = "open")]
    pub running: BTreeSet<u64>,
}

impl BuildCursor {
    /// Whether a build was seen before, or came before the first poll.
    pub fn has_seen(&self, id: u64) -> bool {
        self.last_build_id.is_none_or(|last| id <= last) || self.seen_out_of_order.contains(&id)
    }

    /// Notes that a build was seen; the ids that follow each other become one mark.
    fn see(&mut self, id: u64) {
        self.seen_out_of_order.insert(id);
        self.catch_up(0);
    }

    /// Every build up to `id` was seen, or is given up.
    pub fn catch_up(&mut self, id: u64) {
        let mut last = self.last_build_id.unwrap_or(0).max(id);
        self.seen_out_of_order.retain(|&seen| seen > last);
        while self.seen_out_of_order.remove(&last.saturating_add(1)) {
            last += 1;
        }
        self.last_build_id = Some(last);
    }

    /// The highest id that was seen.
    pub fn highest(&self) -> u64 {
        let last = self.last_build_id.unwrap_or(0);
        self.seen_out_of_order.last().copied().unwrap_or(last)
    }
}

/// Builds that are remembered to know a database again.
const RECENT: usize = 20;

/// Another database has another build by that id.
#[derive(Debug, PartialEq, Eq)]
struct BuildIdentity {
    id: u64,
    builder_id: u64,
    number: u64,
    started_at: i64,
}

fn identity_of(build: &Build) -> BuildIdentity {
    BuildIdentity {
        id: build.id,
        builder_id: build.builder_id,
        number: build.number,
        started_at: build.started_at,
    }
}

/// What became of a build request that led to no build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestEnd {
    Cancelled,
    /// Merged into another request, where that is known.
    Merged(Option<u64>),
    NeverStarted,
    /// The master knows it no more.
    Forgotten,
}

/// What the master's side tells the main thread.
#[derive(Clone, Debug)]
pub enum MasterEvent {
    Build(Box<BuildEvent>),
    /// The master has another database: requests of the old one mean nothing any more.
    StartedOver,
    /// A worker is missing by the master's word, or back.
    Worker {
        name: String,
        missing: bool,
    },
    RequestEnded {
        request: u64,
        builder: String,
        end: RequestEnd,
    },
    /// A request was merged or cancelled, whoever waits for it.
    RequestDropped(u64),
}

/// Who the master is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identity {
    /// The version of Buildbot.
    pub version: String,
    /// The base of links for people (`buildbotURL`).
    pub url: String,
    /// One of several masters on one database.
    pub is_cluster: bool,
}

/// How many builders there are, and how many of them have no worker online.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BuilderCounts {
    pub total: usize,
    pub offline: usize,
}

#[derive(Debug, Default)]
pub struct Model {
    pub identity: Identity,
    builders: BTreeMap<u64, Builder>,
    /// Builder ids by name.
    by_name: BTreeMap<String, u64>,
    workers: BTreeMap<u64, Worker>,
    /// The master has told of its workers.
    knows_workers: bool,
    /// Builders that an online worker works for.
    online_builders: BTreeSet<u64>,
    /// As they were when builders or workers changed last; nothing where builders come and go by
    /// themselves.
    counts: Option<BuilderCounts>,
    running: BTreeMap<u64, Build>,
    /// Requests that no worker has taken: request id → builder id.
    pub queued: BTreeMap<u64, u64>,
    /// The buildset of each request, and what each buildset builds, as the stream has told it.
    requests: BTreeMap<u64, u64>,
    buildsets: BTreeMap<u64, Vec<SourceStamp>>,
    /// How many requests of each buildset have been told.
    buildset_sizes: BTreeMap<u64, usize>,
    /// The newest changes by id, while the stream tells of new ones.
    pub changes: BTreeMap<u64, Change>,
    /// The builds that were seen last.
    recent: VecDeque<BuildIdentity>,
    cursor: BuildCursor,
    /// When the master last answered (seconds since the epoch, our clock).
    pub last_contact: Option<i64>,
    /// Why the master does not answer now.
    pub last_error: Option<String>,
    /// Whether a poll has been completed: before, nothing is known to be empty.
    pub is_complete: bool,
    /// How many seconds the master's clock is ahead of ours.
    pub clock_offset: i64,
    /// A poller that has not moved by then is stuck.
    pub poller_deadline: Option<Instant>,
}

impl Model {
    /// Goes on from where an earlier run left off: the end of builds that ran then is news.
    pub fn resume(&mut self, cursor: BuildCursor) {
        for &id in &cursor.running {
            let build = Build {
                id,
                ..Build::default()
            };
            self.running.insert(id, build);
        }
        self.cursor = cursor;
    }

    pub fn cursor(&self) -> BuildCursor {
        BuildCursor {
            running: self.running.keys().copied().collect(),
            ..self.cursor.clone()
        }
    }

    /// What the master's clock shows when ours shows `unix`.
    pub fn master_time(&self, unix: i64) -> i64 {
        unix.saturating_add(self.clock_offset)
    }

    // Builders

    pub fn builder(&self, id: u64) -> Option<&Builder> {
        self.builders.get(&id)
    }

    /// The builders that there are, sorted by name.
    pub fn builders(&self) -> impl Iterator<Item = &Builder> {
        let all = self.by_name.values().filter_map(|id| self.builders.get(id));
        all.filter(|builder| self.is_present(builder))
    }

    /// How many builders there are.
    pub fn builder_counts(&self) -> BuilderCounts {
        self.counts.unwrap_or_else(|| self.counted_builders())
    }

    fn counted_builders(&self) -> BuilderCounts {
        let mut counts = BuilderCounts::default();
        for builder in self.builders() {
            counts.total += 1;
            counts.offline += usize::from(self.is_offline(builder));
        }
        counts
    }

    /// Counts once for all questions to come. One that is not configured comes and goes with its
    /// builds: then each question counts.
    fn count_builders(&mut self) {
        let are_configured = self.builders.values().all(Builder::is_configured);
        self.counts = are_configured.then(|| self.counted_builders());
    }

    pub fn builder_by_name(&self, name: &str) -> Option<&Builder> {
        let builder = self.builders.get(self.by_name.get(name)?)?;
        Some(builder).filter(|builder| self.is_present(builder))
    }

    /// A builder without a master was removed, unless something says that its master is down.
    fn is_present(&self, builder: &Builder) -> bool {
        if builder.is_configured() || self.online_builders.contains(&builder.id) {
            return true;
        }
        if self.running_builds(builder.id).next().is_some() {
            return true;
        }
        let last_end = builder.last.as_ref().and_then(|last| last.complete_at);
        let recent = last_end
            .zip(self.last_contact)
            .is_some_and(|(end, contact)| end > self.master_time(contact) - RECENT_BUILD);
        self.identity.is_cluster && recent
    }

    /// Whether no worker of a builder is connected. One that has no workers of its own is never
    /// offline, and none is where the master does not tell of workers.
    pub fn is_offline(&self, builder: &Builder) -> bool {
        let is_online = self.online_builders.contains(&builder.id);
        self.knows_workers && !is_online && !builder.is_virtual()
    }

    /// Replaces the list of builders; what is known of the ones that stay is kept.
    pub fn set_builders(&mut self, list: Vec<Builder>) {
        let mut old = std::mem::take(&mut self.builders);
        for mut builder in list {
            if let Some(known) = old.remove(&builder.id) {
                builder.keep(known);
            }
            self.builders.insert(builder.id, builder);
        }
        // One that is gone while it builds still ends its build.
        for (id, builder) in old {
            if self.running.values().any(|build| build.builder_id == id) {
                self.builders.insert(id, builder);
            }
        }
        let named = self.builders.values();
        self.by_name = named.map(|b| (b.name.clone(), b.id)).collect();
        self.count_builders();
    }

    /// Adds one builder that the list did not have, or its new name.
    pub fn set_builder(&mut self, builder: Builder) {
        let known = self.builders.entry(builder.id).or_default();
        self.by_name.remove(&known.name);
        self.by_name.insert(builder.name.clone(), builder.id);
        known.id = builder.id;
        known.name = builder.name;
        known.tags = builder.tags;
        known.master_ids = builder.master_ids;
        self.count_builders();
    }

    /// The master has said all that it knows of the last builds of a builder.
    pub fn set_lookup_done(&mut self, builder: u64) {
        if let Some(builder) = self.builders.get_mut(&builder) {
            builder.lookup_done = true;
        }
    }

    // Builds

    /// The running builds of a builder, oldest first.
    pub fn running_builds(&self, builder: u64) -> impl Iterator<Item = &Build> {
        let running = self.running.values();
        running.filter(move |build| build.builder_id == builder)
    }

    pub fn running_ids(&self) -> Vec<u64> {
        self.running.keys().copied().collect()
    }

    pub fn running_count(&self) -> usize {
        self.running.len()
    }

    pub fn is_running(&self, build: u64) -> bool {
        self.running.contains_key(&build)
    }

    /// Whether a build of this request is known to run.
    pub fn runs_request(&self, request: Option<u64>) -> bool {
        request.is_some() && self.running.values().any(|b| b.request_id == request)
    }

    /// The step that a running build is in.
    pub fn set_step(&mut self, build: u64, step: String) {
        if let Some(build) = self.running.get_mut(&build) {
            build.step = Some(step);
        }
    }

    /// Builds that the master does not know any more.
    pub fn forget_running(&mut self, ids: &[u64]) {
        self.running.retain(|id, _| !ids.contains(id));
    }

    pub fn has_seen(&self, build: u64) -> bool {
        self.cursor.has_seen(build)
    }

    pub fn last_build_id(&self) -> Option<u64> {
        self.cursor.last_build_id
    }

    /// The highest build id that was seen, which is above the last where ids are missing.
    pub fn highest_build_id(&self) -> u64 {
        self.cursor.highest()
    }

    /// Every build up to `id` was seen, or is given up.
    pub fn catch_up(&mut self, id: u64) {
        self.cursor.catch_up(id);
    }

    /// Whether some of these builds are known: then it is the database that it was.
    pub fn knows_some(&self, builds: &[Build]) -> bool {
        let mut recent = self.recent.iter();
        recent.any(|known| builds.iter().any(|build| identity_of(build) == *known))
    }

    fn remember(&mut self, build: &Build) {
        self.recent.push_back(identity_of(build));
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
    }

    /// Whether another build had this id: it was deleted, and SQLite gives ids again.
    fn is_reused(&self, build: &Build) -> bool {
        let mut recent = self.recent.iter().rev();
        let by_id = recent.find(|known| known.id == build.id);
        by_id.is_some_and(|known| {
            known.builder_id != build.builder_id || known.number != build.number
        })
    }

    /// The builds above this one were deleted, and their ids may come again.
    pub fn rewind(&mut self, newest: u64) {
        self.cursor.last_build_id = Some(newest);
        self.cursor.seen_out_of_order.clear();
        self.running.retain(|id, _| *id <= newest);
    }

    /// Whether there are more builds at once than any master has.
    pub fn is_full(&self) -> bool {
        self.running.len() + self.cursor.seen_out_of_order.len() > BUILDS_AT_ONCE
    }

    /// Forgets all builds: the master has another database.
    pub fn start_over(&mut self) {
        self.cursor = BuildCursor::default();
        self.recent.clear();
        self.running.clear();
        self.queued.clear();
        self.requests.clear();
        self.buildsets.clear();
        self.buildset_sizes.clear();
        for builder in self.builders.values_mut() {
            builder.start_over();
        }
    }

    /// Whether a build is news that waits for its branch to be asked for.
    pub fn needs_branch(&self, build: &Build) -> bool {
        self.is_news(build) && self.known_branch(build).is_none()
    }

    fn is_news(&self, build: &Build) -> bool {
        let is_new = match self.running.get(&build.id) {
            Some(_) => build.complete,
            None => !self.has_seen(build.id),
        };
        is_new && self.cursor.last_build_id.is_some() && self.builder(build.builder_id).is_some()
    }

    /// The branch of a build, as far as the master has told it in whatever way.
    pub fn known_branch(&self, build: &Build) -> Option<String> {
        let running = self.running.get(&build.id);
        let told = build.branch.clone();
        told.or_else(|| running.and_then(|running| running.branch.clone()))
            .or_else(|| {
                let sources = self.sources_of(build);
                self.builder(build.builder_id)?.branch_of(sources)
            })
    }

    /// What a build was started together with, as far as the stream has told: it may tell of more
    /// requests later.
    fn buildset_of(&self, build: &Build) -> Option<BuildsetSize> {
        let id = *self.requests.get(&build.request_id?)?;
        let known_builders = self.buildset_sizes.get(&id).copied().unwrap_or(0);
        Some(BuildsetSize { id, known_builders })
    }

    /// What a build builds, where the branch alone does not tell.
    fn sources_of<'a>(&'a self, build: &'a Build) -> &'a [SourceStamp] {
        if !build.sources.is_empty() {
            return &build.sources;
        }
        if let Some(running) = self.running.get(&build.id) {
            return &running.sources;
        }
        let buildset = build.request_id.and_then(|id| self.requests.get(&id));
        let sources = buildset.and_then(|id| self.buildsets.get(id));
        sources.map_or(&[], Vec::as_slice)
    }

    /// Whether the builds before this one must be asked for, so that its end can be told as a
    /// change: it is new, says something of the code, and nothing below its number is known.
    pub fn needs_previous(&self, build: &Build) -> bool {
        let is_verdict = build.outcome().is_some_and(Outcome::is_verdict);
        is_verdict && self.is_news(build) && self.needs_history(build)
    }

    /// The same of a build that may still run.
    pub fn needs_history(&self, build: &Build) -> bool {
        let branch = self.known_branch(build);
        self.cursor.last_build_id.is_some()
            && self
                .builder(build.builder_id)
                .is_some_and(|builder| builder.needs_history(build.number, branch.as_deref()))
    }

    /// Takes in the builds below `number` that say something of the code, in any order. None means
    /// that there are none.
    pub fn learn_previous(&mut self, builder: u64, number: u64, mut builds: Vec<Build>) {
        let Some(builder) = self.builders.get_mut(&builder) else {
            return;
        };
        if builds.is_empty() {
            builder.first_number = builder.first_number.max(number);
        }
        builds.sort_unstable_by_key(|build| build.number);
        builder.history_asked = true;
        for build in &mut builds {
            builder.settle_branch(build);
            if let Some(outcome) = build.outcome() {
                builder.learn(build, outcome);
            }
        }
        builder.count_streaks();
    }

    /// Takes in the branches of builds that are known already.
    pub fn learn_branches(&mut self, mut builds: Vec<Build>) {
        builds.sort_unstable_by_key(|build| build.number);
        for build in &mut builds {
            let Some(builder) = self.builders.get_mut(&build.builder_id) else {
                continue;
            };
            builder.settle_branch(build);
            let is_last = builder.last.as_ref().is_some_and(|l| l.id == build.id);
            let is_known = is_last || builder.history.contains_key(&build.number);
            if let Some(outcome) = build.outcome().filter(|_| is_known) {
                builder.learn(build, outcome);
            }
        }
    }

    /// Takes in one build from wherever. Returns its start or its end; one that was known already
    /// returns its end once more, not as new. Builds should come in the order of their ids; out of
    /// order loses nothing.
    pub fn apply_build(&mut self, mut build: Build) -> Option<BuildEvent> {
        build.state_string = sanitize::cut(&build.state_string, STATE_TEXT);
        build.branch = self.known_branch(&build);
        build.sources = self.sources_of(&build).to_vec();
        if let Some(builder) = self.builders.get(&build.builder_id) {
            builder.resolve_branch(&mut build);
        }
        let before_first_poll = self.cursor.last_build_id.is_none();
        let is_reused = self.is_reused(&build);
        let is_unseen = is_reused || !self.cursor.has_seen(build.id);
        if is_unseen || before_first_poll {
            self.remember(&build);
        }
        if is_unseen {
            self.cursor.see(build.id);
        }
        let was_running = self.running.remove(&build.id);
        let start_was_missed = is_unseen && build.complete;
        let is_new;
        if let Some(outcome) = build.outcome() {
            is_new = is_unseen || was_running.is_some();
            let builder = self.builders.get_mut(&build.builder_id)?;
            builder.settle_branch(&mut build);
            builder.learn(&build, outcome);
        } else if let Some(known) = was_running {
            build.step = known.step;
            self.running.insert(build.id, build);
            return None;
        } else if is_unseen || before_first_poll {
            is_new = is_unseen;
            // Far above what any master has: a start that does not fit is told, its end is not.
            if !self.is_full() {
                self.running.insert(build.id, build.clone());
            }
        } else {
            // A late report of a start reopens nothing.
            return None;
        }
        if !build.complete && !is_new {
            return None;
        }
        let ends_request =
            build.complete && !build.will_be_retried() && !self.runs_request(build.request_id);
        let buildset = self.buildset_of(&build);
        let builder = self.builders.get_mut(&build.builder_id)?;
        let event = BuildEvent {
            is_new,
            start_was_missed,
            ends_request,
            buildset,
            ..builder.event_of(build)
        };
        builder.trim_history();
        Some(event)
    }

    /// The end of the build that a request has led to, if it is the last one of its builder.
    pub fn ended_build_of(&self, request: u64) -> Option<BuildEvent> {
        if self.runs_request(Some(request)) {
            return None;
        }
        let last = |b: &&Builder| {
            b.last
                .as_ref()
                .is_some_and(|l| l.request_id == Some(request))
        };
        let builder = self.builders.values().find(last)?;
        let build = builder.last.clone()?;
        if build.will_be_retried() {
            return None;
        }
        Some(BuildEvent {
            ends_request: true,
            ..builder.event_of(build)
        })
    }

    // Workers

    pub fn workers(&self) -> impl Iterator<Item = &Worker> {
        self.workers.values()
    }

    pub fn workers_of(&self, builder: u64) -> impl Iterator<Item = &Worker> {
        let workers = self.workers.values();
        workers.filter(move |worker| worker.builders.contains(&builder))
    }

    pub fn knows_worker(&self, id: u64) -> bool {
        self.workers.contains_key(&id)
    }

    /// Replaces the list of workers. A list without their builders keeps those that are known.
    pub fn set_workers(&mut self, list: Vec<Worker>, with_builders: bool) -> Vec<MasterEvent> {
        self.knows_workers = true;
        let listed: BTreeSet<u64> = list.iter().map(|worker| worker.id).collect();
        self.workers.retain(|id, _| listed.contains(id));
        if with_builders {
            for worker in self.workers.values_mut() {
                worker.builders.clear();
            }
        }
        let events = list
            .into_iter()
            .filter_map(|worker| self.put_worker(worker));
        let events = events.collect();
        self.count_online_builders();
        events
    }

    /// Takes in what is known of one worker. That it is missing is the master's word, which only
    /// the stream has.
    pub fn apply_worker(&mut self, worker: Worker) -> Option<MasterEvent> {
        self.knows_workers = true;
        let event = self.put_worker(worker);
        self.count_online_builders();
        event
    }

    fn put_worker(&mut self, mut worker: Worker) -> Option<MasterEvent> {
        let known = self.workers.entry(worker.id).or_default();
        if worker.builders.is_empty() {
            worker.builders = std::mem::take(&mut known.builders);
        }
        worker.missing = !worker.online && (known.missing || worker.missing);
        let is_changed = worker.missing != known.missing;
        let event = MasterEvent::Worker {
            name: worker.name.clone(),
            missing: worker.missing,
        };
        *known = worker;
        is_changed.then_some(event)
    }

    fn count_online_builders(&mut self) {
        let online = self.workers.values().filter(|worker| worker.online);
        self.online_builders = online.flat_map(|w| w.builders.iter().copied()).collect();
        self.count_builders();
    }

    // Requests and changes

    /// How many requests wait for a builder's workers.
    pub fn queued_count(&self, builder: u64) -> usize {
        self.queued.values().filter(|&&id| id == builder).count()
    }

    /// Of the requests that someone waits for, those that do not wait in the queue any more and of
    /// which no build is known to run: something else became of them.
    pub fn unclear_requests<'a>(&self, tracked: impl Iterator<Item = &'a u64>) -> Vec<u64> {
        let unclear = |id: &u64| !self.queued.contains_key(id) && !self.runs_request(Some(*id));
        tracked.copied().filter(unclear).collect()
    }

    /// The stream has told of a request.
    pub fn note_request(&mut self, request: &BuildRequest) {
        let buildset = request.buildset_id;
        if buildset == 0 {
            return;
        }
        if self.requests.insert(request.id, buildset).is_none() {
            *self.buildset_sizes.entry(buildset).or_default() += 1;
        }
        if self.requests.len() > REQUESTS
            && let Some((_, oldest)) = self.requests.pop_first()
        {
            self.buildset_sizes.remove(&oldest);
        }
    }

    /// The stream has told of a buildset.
    pub fn note_buildset(&mut self, mut buildset: Buildset) {
        buildset.sources.iter_mut().for_each(SourceStamp::shorten);
        buildset.sources.truncate(CODEBASES);
        self.buildsets.insert(buildset.id, buildset.sources);
        if self.buildsets.len() > BUILDSETS {
            self.buildsets.pop_first();
        }
    }

    pub fn set_changes(&mut self, list: Vec<Change>) {
        self.changes.clear();
        for change in list {
            self.add_change(change);
        }
    }

    pub fn add_change(&mut self, mut change: Change) {
        change.shorten();
        self.changes.insert(change.id, change);
        if self.changes.len() > CHANGES {
            self.changes.pop_first();
        }
    }
}

#[cfg(test)]
pub mod tests;
