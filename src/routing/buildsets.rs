//! Buildsets under way: what was started together is told together, when all of it has ended. Pure.
//!
//! ```text
//! a build starts or ends ──► open ──the master tells its requests──► known ──all have ended──► told
//! ```

use crate::master::builder::BuildEvent;
use crate::master::details::{BuildsetInfo, Details};
use crate::master::jobs::BuildsetAnswer;
use crate::master::resources::BuildRequest;
use crate::outcome::Outcome;
use crate::state_file::{EndedBuild, OpenBuildset};

/// Buildsets that are open at once; beyond it the oldest is told with what has ended.
const OPEN: usize = 500;
/// Seconds after which the master is asked how an open buildset stands, doubling up to the last.
const ASK_AGAIN: i64 = 30;
const ASK_AT_LEAST: i64 = 600;
/// After the master could not answer.
const RETRY: i64 = 5;
/// A request that was merged has no build; for a moment one could still come.
const MERGED_GRACE: i64 = 2;

/// A buildset of which something is still to be told, and when the master is asked about it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tracked {
    set: OpenBuildset,
    /// When the master told last how the requests stand: seconds since the epoch, our clock.
    told_at: i64,
    /// When it is asked next.
    ask_at: i64,
    pause: i64,
    is_asking: bool,
}

/// What is to be done about a buildset.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The master is asked about this request, and what is known already.
    Ask(u64, Option<Box<BuildsetInfo>>),
    /// Its first build has started.
    TellStart(Box<OpenBuildset>, Box<BuildEvent>),
    /// What has ended is told; so many requests are still open.
    TellEnd(Box<OpenBuildset>, usize),
    /// These are told one by one: there is nothing that they belong to.
    TellAlone(Vec<EndedBuild>, Option<Box<BuildEvent>>),
}

/// The buildsets under way, oldest first.
#[derive(Debug, Default)]
pub struct Buildsets {
    open: Vec<Tracked>,
}

impl Buildsets {
    /// Goes on from what the state file says. What has ended meanwhile is about to be found.
    pub fn resume(open: Vec<OpenBuildset>, unix: i64) -> Buildsets {
        let resume = |set| Tracked {
            set,
            told_at: unix,
            ..Tracked::default()
        };
        Buildsets {
            open: open.into_iter().map(resume).collect(),
        }
    }

    pub fn export(&self) -> Vec<OpenBuildset> {
        self.open
            .iter()
            .map(|tracked| tracked.set.clone())
            .collect()
    }

    /// A build has started or ended. `unix` is our clock.
    pub fn add(&mut self, event: &BuildEvent, details: Option<&Details>, unix: i64) {
        let Some(request) = event.build.request_id else {
            return;
        };
        let id = event.buildset.map(|buildset| buildset.id);
        let tracked = self.find_or_open(request, id);
        let set = &mut tracked.set;
        let Some(outcome) = event.build.outcome() else {
            if !set.start_told && set.start.is_none() {
                set.start = Some(event.clone());
            }
            return;
        };
        if event.ends_request {
            set.ended.insert(request);
        }
        if outcome == Outcome::Retry {
            return;
        }
        if set.builds.is_empty() {
            set.first_end = unix;
        }
        set.builds.push(EndedBuild {
            event: event.clone(),
            details: details.cloned().unwrap_or_default(),
        });
        tracked.pause = 0;
        tracked.ask_at = tracked.ask_at.min(unix + ASK_AGAIN);
    }

    fn find_or_open(&mut self, request: u64, id: Option<u64>) -> &mut Tracked {
        let found = self.open.iter().position(|t| has(&t.set, request, id));
        let position = found.unwrap_or_else(|| {
            self.open.push(Tracked {
                set: OpenBuildset {
                    request,
                    ..OpenBuildset::default()
                },
                ..Tracked::default()
            });
            self.open.len() - 1
        });
        &mut self.open[position]
    }

    /// A request was merged or cancelled: no build of it will end.
    pub fn on_dropped(&mut self, request: u64) {
        for tracked in &mut self.open {
            if has(&tracked.set, request, None) {
                tracked.set.ended.insert(request);
            }
        }
    }

    /// The master has answered what a request belongs to.
    pub fn on_answer(&mut self, request: u64, answer: BuildsetAnswer, unix: i64) -> Vec<Step> {
        let is_asked = |tracked: &Tracked| tracked.set.request == request && tracked.is_asking;
        let Some(position) = self.open.iter().position(is_asked) else {
            return Vec::new();
        };
        let tracked = &mut self.open[position];
        tracked.is_asking = false;
        tracked.pause = (tracked.pause * 2).clamp(RETRY, ASK_AT_LEAST);
        match answer {
            BuildsetAnswer::Known(info) => {
                tracked.pause = tracked.pause.max(ASK_AGAIN);
                tracked.told_at = unix;
                tracked.ask_at = unix + tracked.pause;
                tracked.set.info = Some(*info);
                self.merge(position);
                Vec::new()
            }
            BuildsetAnswer::Failed => {
                tracked.ask_at = unix + tracked.pause;
                Vec::new()
            }
            BuildsetAnswer::Gone => vec![alone(self.open.remove(position).set)],
        }
    }

    /// There was no room for the question.
    pub fn on_not_asked(&mut self, request: u64, unix: i64) {
        self.on_answer(request, BuildsetAnswer::Failed, unix);
    }

    /// Other requests may turn out to be of the same buildset.
    fn merge(&mut self, position: usize) {
        let mut whole = self.open.remove(position);
        let belongs = |other: &mut Tracked| {
            let info = whole.set.info.as_ref();
            info.is_some_and(|info| info.requests.iter().any(|r| r.id == other.set.request))
        };
        let others: Vec<Tracked> = self.open.extract_if(.., belongs).collect();
        for other in others {
            absorb(&mut whole.set, other.set);
        }
        self.open.insert(position.min(self.open.len()), whole);
    }

    /// What is due now. `grace` is how many seconds the end of a build may take to reach us,
    /// `patience` for how many a buildset may keep what has ended to itself.
    pub fn take_due(&mut self, unix: i64, grace: i64, patience: i64) -> Vec<Step> {
        let mut steps = Vec::new();
        let mut position = 0;
        while position < self.open.len() {
            let is_too_many = position == 0 && self.open.len() > OPEN;
            let tracked = &mut self.open[position];
            // Each step makes the next one possible, until there is none.
            while let Some(step) = tracked.next_step(unix, grace, patience, is_too_many) {
                steps.push(step);
            }
            if is_too_many || tracked.is_over(unix, grace) {
                self.open.remove(position);
            } else {
                position += 1;
            }
        }
        steps
    }

    /// When something is due, in seconds since the epoch, if nothing happens before.
    pub fn next_due(&self, grace: i64, patience: i64) -> Option<i64> {
        self.open
            .iter()
            .filter_map(|tracked| tracked.next_due(grace, patience))
            .min()
    }

    /// The master has another database: what has ended is told one by one.
    pub fn start_over(&mut self) -> Vec<Step> {
        let open = std::mem::take(&mut self.open);
        open.into_iter().map(|tracked| alone(tracked.set)).collect()
    }
}

/// Whether a request, or a buildset of this id, is meant.
fn has(set: &OpenBuildset, request: u64, id: Option<u64>) -> bool {
    if let Some(info) = &set.info {
        return Some(info.id) == id || info.requests.iter().any(|r| r.id == request);
    }
    // As far as a build has told it.
    let ended = set.builds.iter().map(|build| &build.event);
    let known = ended.chain(&set.start).find_map(|event| event.buildset);
    set.request == request || id.is_some() && known.map(|buildset| buildset.id) == id
}

fn absorb(set: &mut OpenBuildset, other: OpenBuildset) {
    if set.builds.is_empty() || !other.builds.is_empty() && other.first_end < set.first_end {
        set.first_end = other.first_end;
    }
    set.ended.extend(other.ended);
    set.builds.extend(other.builds);
    set.start_told |= other.start_told;
    set.start = set.start.take().or(other.start);
}

fn alone(set: OpenBuildset) -> Step {
    let start = set.start.filter(|_| set.builds.is_empty());
    Step::TellAlone(set.builds, start.map(Box::new))
}

impl Tracked {
    /// The requests that have not come to their end.
    fn open_requests(&self, unix: i64, grace: i64) -> usize {
        let requests = self.set.info.iter().flat_map(|info| &info.requests);
        let is_open = |request: &&BuildRequest| !self.is_ended(request, unix, grace);
        requests.filter(is_open).count()
    }

    fn is_ended(&self, request: &BuildRequest, unix: i64, grace: i64) -> bool {
        let was_seen = self.set.ended.contains(&request.id);
        was_seen || request.complete && unix >= self.told_at + grace_of(request, grace)
    }

    /// Nothing of it is left to wait for.
    fn is_over(&self, unix: i64, grace: i64) -> bool {
        let is_known = self.set.info.is_some();
        is_known && self.set.builds.is_empty() && self.open_requests(unix, grace) == 0
    }

    /// What is due now; `at_once` where nothing can be waited for any more.
    fn next_step(&mut self, unix: i64, grace: i64, patience: i64, at_once: bool) -> Option<Step> {
        let has_builds = !self.set.builds.is_empty();
        let is_overdue = has_builds && (at_once || unix >= self.set.first_end + patience);
        let Some(info) = &self.set.info else {
            if is_overdue {
                // What the master does not tell for so long is told as it is.
                let builds = std::mem::take(&mut self.set.builds);
                return Some(Step::TellAlone(builds, None));
            }
            return self.ask_if_due(unix);
        };
        let is_alone = info.requests.len() == 1;
        if let Some(start) = self.set.start.take()
            && !has_builds
        {
            self.set.start_told = true;
            let start = Box::new(start);
            return Some(if is_alone {
                Step::TellAlone(Vec::new(), Some(start))
            } else {
                Step::TellStart(Box::new(self.set.clone()), start)
            });
        }
        let open = self.open_requests(unix, grace);
        if is_alone && has_builds {
            let builds = std::mem::take(&mut self.set.builds);
            return Some(Step::TellAlone(builds, None));
        }
        if has_builds && (open == 0 || is_overdue) {
            let told = self.set.clone();
            self.set.builds.clear();
            return Some(Step::TellEnd(Box::new(told), open));
        }
        if open == 0 {
            return None;
        }
        self.ask_if_due(unix)
    }

    fn ask_if_due(&mut self, unix: i64) -> Option<Step> {
        if self.is_asking || unix < self.ask_at {
            return None;
        }
        self.is_asking = true;
        let known = self.set.info.clone().map(Box::new);
        Some(Step::Ask(self.set.request, known))
    }

    fn next_due(&self, grace: i64, patience: i64) -> Option<i64> {
        let asks = (!self.is_asking).then_some(self.ask_at);
        let overdue = (!self.set.builds.is_empty()).then_some(self.set.first_end + patience);
        let requests = self.set.info.iter().flat_map(|info| &info.requests);
        let unseen = requests.filter(|r| r.complete && !self.set.ended.contains(&r.id));
        let graces = unseen.map(|request| self.told_at + grace_of(request, grace));
        graces.chain(asks).chain(overdue).min()
    }
}

/// How long the build of a request that is complete may take to reach us.
fn grace_of(request: &BuildRequest, grace: i64) -> i64 {
    if request.outcome() == Some(Outcome::Skipped) {
        MERGED_GRACE
    } else {
        grace
    }
}

#[cfg(test)]
mod tests;
