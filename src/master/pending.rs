//! Builds that were received, and wait until what their line needs is known: their builder, their
//! branch, the builds before them. Nobody waits but later builds of the same builder. Pure.

use super::client::{Error, ErrorKind, Query};
use super::model::Model;
use super::resources::Build;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// Builds that have started, and whose predecessors will be asked for.
const STARTED: usize = 200;
/// Look-ups of one build that may fail before it is told with what is known.
const TRIES: u32 = 3;
/// The pause before one is tried again, doubling up to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));

/// What has told of a build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Stream,
    List,
    /// With its branch, as far as there is one.
    ListWithBranches,
    /// For a command, which has asked for all that it wants.
    Command,
}

/// A build that was received and is not applied yet.
#[derive(Debug)]
pub struct Received {
    pub build: Build,
    pub source: Source,
    /// The event stream stood, and should have told of it.
    pub is_expected_on_stream: bool,
    /// The master was asked for its branch, or has told it as far as it can.
    branch_asked: bool,
    /// Nothing more is asked for it.
    lookup_done: bool,
    /// A look-up is under way.
    is_asked: bool,
    /// Look-ups that have failed, those not counted for which the master was away.
    failures: u32,
    pause: Duration,
    /// Nothing is asked before.
    retry_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub struct PendingBuilds {
    /// By builder.
    queues: BTreeMap<u64, VecDeque<Received>>,
    /// The builders of these queues, in the order in which they are asked about.
    order: VecDeque<u64>,
    /// Builds that have started: what was before them will be asked for.
    started: VecDeque<Build>,
    /// Builders that builds name and the master does not know.
    unknown_builders: BTreeSet<u64>,
    /// The first failure of a look-up is the last.
    is_impatient: bool,
}

impl PendingBuilds {
    pub fn set_impatient(&mut self) {
        self.is_impatient = true;
    }

    pub fn is_empty(&self) -> bool {
        self.queues.is_empty()
    }

    pub fn len(&self) -> usize {
        self.queues.values().map(VecDeque::len).sum()
    }

    /// Forgets all: they are of another database.
    pub fn clear(&mut self) {
        self.queues.clear();
        self.order.clear();
        self.started.clear();
    }

    pub fn push(&mut self, build: Build, source: Source, is_expected_on_stream: bool) {
        let builder = build.builder_id;
        let queue = self.queues.entry(builder).or_default();
        if queue.is_empty() {
            self.order.push_back(builder);
        }
        queue.push_back(Received {
            build,
            source,
            is_expected_on_stream,
            branch_asked: matches!(source, Source::ListWithBranches | Source::Command),
            lookup_done: source == Source::Command,
            is_asked: false,
            failures: 0,
            pause: RETRY.0,
            retry_at: None,
        });
    }

    /// A build has started: what was before it will be asked for, if nobody waits meanwhile.
    pub fn note_started(&mut self, build: &Build) {
        if self.started.len() < STARTED {
            self.started.push_back(build.clone());
        }
    }

    /// The builders were listed anew.
    pub fn on_builders_listed(&mut self) {
        self.unknown_builders.clear();
    }

    pub fn on_unknown_builder(&mut self, builder: u64) {
        self.unknown_builders.insert(builder);
    }

    /// The builders of which builds wait.
    pub fn builders(&self) -> Vec<u64> {
        self.order.iter().copied().collect()
    }

    /// The next build of a builder, if it waits for nothing; `is_tracked` says whether somebody
    /// waits for its request.
    pub fn pop_ready(
        &mut self,
        builder: u64,
        model: &Model,
        is_tracked: &dyn Fn(&Build) -> bool,
    ) -> Option<Received> {
        let first = self.queues.get(&builder)?.front()?;
        if self.lookup(first, model, is_tracked).is_some() {
            return None;
        }
        let queue = self.queues.get_mut(&builder)?;
        let ready = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&builder);
            self.order.retain(|other| *other != builder);
        }
        ready
    }

    /// What is to be asked next, if anything: for builds that wait before those that have only
    /// started. The answer is awaited before more is asked for that builder.
    pub fn next_lookup(
        &mut self,
        model: &Model,
        is_tracked: &dyn Fn(&Build) -> bool,
        now: Instant,
    ) -> Option<Query> {
        for builder in &self.order {
            let first = self.queues.get(builder).and_then(VecDeque::front);
            let is_due =
                |first: &&Received| !first.is_asked && first.retry_at.is_none_or(|at| at <= now);
            let due = first.filter(is_due);
            let Some(lookup) = due.and_then(|first| self.lookup(first, model, is_tracked)) else {
                continue;
            };
            if let Some(received) = self.waiting_for(&lookup) {
                received.is_asked = true;
            }
            return Some(lookup);
        }
        while let Some(build) = self.started.pop_front() {
            if model.needs_history(&build) {
                return Some(previous_builds(&build, model));
            }
        }
        None
    }

    /// When a look-up that has failed is tried again. What is past was tried, or is needed no more.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let firsts = self.queues.values().filter_map(VecDeque::front);
        let retries = firsts
            .filter(|first| !first.is_asked)
            .filter_map(|first| first.retry_at);
        retries.filter(|at| *at > now).min()
    }

    /// What a build needs to be known before it is applied.
    fn lookup(
        &self,
        received: &Received,
        model: &Model,
        is_tracked: &dyn Fn(&Build) -> bool,
    ) -> Option<Query> {
        if received.lookup_done {
            return None;
        }
        let build = &received.build;
        if self.needs_builder(build, model, is_tracked) {
            return Some(Query::Builder(build.builder_id));
        }
        if !received.branch_asked && model.needs_branch(build) {
            return Some(Query::Branch(build.id));
        }
        let needs_previous = model.needs_previous(build);
        needs_previous.then(|| previous_builds(build, model))
    }

    /// A builder is asked for if its build is of interest, and once: builders that are gone have
    /// left builds, too.
    fn needs_builder(
        &self,
        build: &Build,
        model: &Model,
        is_tracked: &dyn Fn(&Build) -> bool,
    ) -> bool {
        let is_new = !model.has_seen(build.id) || model.is_running(build.id);
        (is_new || is_tracked(build))
            && model.builder(build.builder_id).is_none()
            && !self.unknown_builders.contains(&build.builder_id)
    }

    /// The build that waits for this look-up.
    fn waiting_for(&mut self, query: &Query) -> Option<&mut Received> {
        let firsts = self.queues.values_mut().filter_map(VecDeque::front_mut);
        firsts.into_iter().find(|first| match query {
            Query::Builder(id) => first.build.builder_id == *id,
            Query::Branch(id) => first.build.id == *id,
            Query::PreviousBuilds {
                builder, number, ..
            } => first.build.builder_id == *builder && first.build.number == *number,
            _ => false,
        })
    }

    /// The answer to a look-up has come, or none.
    pub fn on_answered(&mut self, query: &Query) {
        if let Some(received) = self.waiting_for(query) {
            received.is_asked = false;
        }
    }

    /// The branch of a build has come, or as much of it as there is.
    pub fn on_branch(&mut self, query: &Query, told: Vec<Build>) {
        if let Some(received) = self.waiting_for(query) {
            received.branch_asked = true;
            if let Some(told) = told.into_iter().find(|b| b.id == received.build.id) {
                received.build.branch = told.branch;
                received.build.sources = told.sources;
            }
        }
    }

    /// What was to be known of the builds before one is known.
    pub fn on_previous(&mut self, query: &Query) {
        if let Some(received) = self.waiting_for(query) {
            received.lookup_done = true;
        }
    }

    /// A look-up has failed. It is tried again; what stays is told with what is known. Returns
    /// whether this was the last try.
    pub fn on_failure(&mut self, query: &Query, error: &Error, now: Instant) -> bool {
        let is_impatient = self.is_impatient;
        let kind = error.kind;
        let is_away = matches!(kind, ErrorKind::NoConnection | ErrorKind::Busy);
        let Some(received) = self.waiting_for(query) else {
            // Nobody waits for what was asked early; it is asked again if it is needed.
            return false;
        };
        received.failures += u32::from(!is_away);
        let is_refusal = matches!(kind, ErrorKind::Refused(..500) | ErrorKind::TooLarge);
        if is_refusal || is_impatient || received.failures >= TRIES {
            match query {
                Query::Branch(_) => received.branch_asked = true,
                Query::Builder(id) => {
                    let id = *id;
                    self.unknown_builders.insert(id);
                }
                _ => received.lookup_done = true,
            }
            return true;
        }
        let pause = received.pause.max(error.retry_after.unwrap_or_default());
        received.retry_at = Some(now + pause);
        received.pause = (received.pause * 2).min(RETRY.1);
        false
    }

    /// The master answers again: what has failed is tried at once.
    pub fn retry(&mut self) {
        for received in self.queues.values_mut().filter_map(VecDeque::front_mut) {
            received.retry_at = None;
            received.pause = RETRY.0;
        }
    }
}

fn previous_builds(build: &Build, model: &Model) -> Query {
    Query::PreviousBuilds {
        builder: build.builder_id,
        number: build.number,
        branch: model.known_branch(build).unwrap_or_default(),
    }
}
