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
use std::collections::{BTreeMap, BTreeSet};

/// Buildsets that are open at once; beyond it the oldest is told with what has ended.
const OPEN: usize = 500;
/// Builds of one buildset that are kept; beyond it they are told with what has ended.
const BUILDS: usize = 1000;
/// Seconds after which the master is asked how an open buildset stands, doubling up to the last.
const ASK_AGAIN: i64 = 30;
const LONGEST_PAUSE: i64 = 600;
/// The same after the master could not answer.
const RETRY: i64 = 5;
const LONGEST_RETRY: i64 = 60;
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
    /// Nothing before the master has answered since we started.
    audience: Option<Vec<Audience>>,
}

/// A place, and the requests of a buildset whose builds it cares for.
#[derive(Clone, Debug, PartialEq)]
pub struct Audience {
    pub place: String,
    pub requests: BTreeSet<u64>,
}

/// What a place is told of a buildset.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub place: String,
    pub info: BuildsetInfo,
    pub builds: Vec<EndedBuild>,
    /// So many of the requests that it cares for are still open.
    pub open: usize,
}

/// What is to be done about a buildset.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// The master is asked about this request, and what is known already.
    Ask(u64, Option<Box<BuildsetInfo>>),
    /// Its first build has started.
    TellStart(Box<BuildsetInfo>, Box<BuildEvent>),
    /// What has ended is told.
    TellEnd(Box<Told>),
    /// These are told one by one, to each of those places what it has not heard: there is nothing
    /// that they belong to.
    TellAlone(Vec<EndedBuild>, Option<Box<BuildEvent>>, Places),
}

/// Places, and the builds that each has heard of already.
pub type Places = BTreeMap<String, BTreeSet<u64>>;

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

    /// A build has started or ended, and these places want to hear of it with all that belongs to it.
    /// `unix` is our clock.
    pub fn add<'a>(
        &mut self,
        event: &BuildEvent,
        details: Option<&Details>,
        places: impl Iterator<Item = &'a str>,
        unix: i64,
    ) {
        let Some(request) = event.build.request_id else {
            return;
        };
        let id = event.buildset.map(|buildset| buildset.id);
        let tracked = self.find_or_open(request, id);
        let set = &mut tracked.set;
        for place in places {
            set.places.entry(place.to_owned()).or_default();
        }
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
        set.first_end.get_or_insert(unix);
        set.builds.push(EndedBuild {
            event: event.clone(),
            details: details.cloned().unwrap_or_default(),
        });
        tracked.pause = 0;
        tracked.ask_at = tracked.ask_at.min(unix + ASK_AGAIN);
    }

    /// These places have heard of the end of a build by itself: somebody there has waited for it, or
    /// is blamed for it.
    pub fn note_told<'a>(&mut self, event: &BuildEvent, places: impl Iterator<Item = &'a str>) {
        let Some(request) = event.build.request_id.filter(|_| event.build.complete) else {
            return;
        };
        let id = event.buildset.map(|buildset| buildset.id);
        let mut open = self.open.iter_mut();
        let Some(tracked) = open.find(|tracked| has(&tracked.set, request, id)) else {
            return;
        };
        for place in places {
            let told = tracked.set.places.entry(place.to_owned()).or_default();
            told.insert(event.build.id);
        }
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

    /// The master has answered what a request belongs to; `audience` says who cares for which of its
    /// requests.
    pub fn on_answer(
        &mut self,
        request: u64,
        answer: BuildsetAnswer,
        audience: &dyn Fn(&OpenBuildset) -> Vec<Audience>,
        unix: i64,
    ) -> Vec<Step> {
        let is_asked = |tracked: &Tracked| tracked.set.request == request && tracked.is_asking;
        let Some(position) = self.open.iter().position(is_asked) else {
            return Vec::new();
        };
        let tracked = &mut self.open[position];
        tracked.is_asking = false;
        match answer {
            BuildsetAnswer::Known(info) => {
                tracked.pause = (tracked.pause * 2).clamp(ASK_AGAIN, LONGEST_PAUSE);
                tracked.told_at = unix;
                tracked.ask_at = unix + tracked.pause;
                tracked.set.info = Some(*info);
                self.merge(position);
                for tracked in self.open.iter_mut().filter(|t| t.set.request == request) {
                    tracked.audience = Some(audience(&tracked.set));
                }
                Vec::new()
            }
            BuildsetAnswer::Failed => {
                tracked.pause = (tracked.pause * 2).clamp(RETRY, LONGEST_RETRY);
                tracked.ask_at = unix + tracked.pause;
                Vec::new()
            }
            BuildsetAnswer::Gone => vec![alone(self.open.remove(position).set)],
        }
    }

    /// Who cares for what has changed: the master is asked once more, and then that, too.
    pub fn ask_again(&mut self) {
        for tracked in &mut self.open {
            tracked.ask_at = 0;
        }
    }

    /// There was no room for the question.
    pub fn on_not_asked(&mut self, request: u64, unix: i64) {
        self.on_answer(request, BuildsetAnswer::Failed, &|_| Vec::new(), unix);
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
    pub fn next_due(&self, unix: i64, grace: i64, patience: i64) -> Option<i64> {
        let due = |tracked: &Tracked| tracked.next_due(unix, grace, patience);
        self.open.iter().filter_map(due).min()
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
    set.first_end = [set.first_end, other.first_end].into_iter().flatten().min();
    set.ended.extend(other.ended);
    set.builds.extend(other.builds);
    for (place, told) in other.places {
        set.places.entry(place).or_default().extend(told);
    }
    set.start_told |= other.start_told;
    set.start = set.start.take().or(other.start);
}

fn alone(set: OpenBuildset) -> Step {
    let start = set.start.filter(|_| set.builds.is_empty());
    Step::TellAlone(set.builds, start.map(Box::new), set.places)
}

impl Tracked {
    /// The requests that have not come to their end, of these or of all.
    fn open_requests(&self, of: Option<&BTreeSet<u64>>, unix: i64, grace: i64) -> usize {
        let requests = self.set.info.iter().flat_map(|info| &info.requests);
        let wanted = requests.filter(|r| of.is_none_or(|of| of.contains(&r.id)));
        let open = wanted.filter(|request| !self.is_ended(request, unix, grace));
        open.count()
    }

    fn is_ended(&self, request: &BuildRequest, unix: i64, grace: i64) -> bool {
        let was_seen = self.set.ended.contains(&request.id);
        was_seen || request.complete && unix >= self.told_at + grace_of(request, grace)
    }

    /// Nothing of it is left to wait for.
    fn is_over(&self, unix: i64, grace: i64) -> bool {
        let is_known = self.set.info.is_some() && self.audience.is_some();
        is_known && self.open_requests(None, unix, grace) == 0
    }

    /// What is due now; `at_once` where nothing can be waited for any more.
    fn next_step(&mut self, unix: i64, grace: i64, patience: i64, at_once: bool) -> Option<Step> {
        let has_untold = self.set.first_end.is_some();
        let is_late = at_once || self.set.builds.len() > BUILDS;
        let is_due = |first_end: i64| is_late || unix >= first_end + patience;
        let is_overdue = self.set.first_end.is_some_and(is_due);
        let Some(info) = &self.set.info else {
            if is_overdue {
                // What the master does not tell for so long is told as it is.
                self.set.first_end = None;
                return Some(alone(OpenBuildset {
                    builds: std::mem::take(&mut self.set.builds),
                    places: self.set.places.clone(),
                    ..OpenBuildset::default()
                }));
            }
            return self.ask_if_due(unix);
        };
        let is_alone = info.requests.len() == 1;
        if let Some(start) = self.set.start.take()
            && self.set.builds.is_empty()
        {
            self.set.start_told = true;
            let start = Box::new(start);
            return Some(if is_alone {
                Step::TellAlone(Vec::new(), Some(start), self.set.places.clone())
            } else {
                Step::TellStart(Box::new(info.clone()), start)
            });
        }
        if is_alone && has_untold {
            self.set.first_end = None;
            return Some(alone(OpenBuildset {
                builds: std::mem::take(&mut self.set.builds),
                places: self.set.places.clone(),
                ..OpenBuildset::default()
            }));
        }
        if let Some(told) = self.next_place(unix, grace, is_overdue) {
            return Some(Step::TellEnd(Box::new(told)));
        }
        if is_overdue {
            // The rest has as long again.
            self.set.first_end = None;
            if self.set.builds.len() > BUILDS {
                self.set.builds.clear();
            }
        }
        if self.is_over(unix, grace) {
            return None;
        }
        self.ask_if_due(unix)
    }

    /// The next place for which all that it cares for has ended, or that cannot wait any longer.
    fn next_place(&mut self, unix: i64, grace: i64, is_overdue: bool) -> Option<Told> {
        let info = self.set.info.as_ref()?;
        for audience in self.audience.iter().flatten() {
            let open = self.open_requests(Some(&audience.requests), unix, grace);
            if open > 0 && !is_overdue {
                continue;
            }
            let heard = self.set.places.get(&audience.place);
            let is_new = |build: &&EndedBuild| {
                let id = build.event.build.id;
                let request = build.event.build.request_id;
                request.is_some_and(|request| audience.requests.contains(&request))
                    && heard.is_none_or(|heard| !heard.contains(&id))
            };
            let builds: Vec<EndedBuild> = self.set.builds.iter().filter(is_new).cloned().collect();
            if builds.is_empty() {
                continue;
            }
            let ids = builds.iter().map(|build| build.event.build.id);
            let place = audience.place.clone();
            let info = info.clone();
            self.set
                .places
                .entry(place.clone())
                .or_default()
                .extend(ids);
            return Some(Told {
                place,
                info,
                builds,
                open,
            });
        }
        None
    }

    fn ask_if_due(&mut self, unix: i64) -> Option<Step> {
        if self.is_asking || unix < self.ask_at {
            return None;
        }
        self.is_asking = true;
        let known = self.set.info.clone().map(Box::new);
        Some(Step::Ask(self.set.request, known))
    }

    /// What is in the past has been dealt with, as far as it could be.
    fn next_due(&self, unix: i64, grace: i64, patience: i64) -> Option<i64> {
        let asks = (!self.is_asking).then_some(self.ask_at);
        let overdue = self.set.first_end.map(|first_end| first_end + patience);
        let requests = self.set.info.iter().flat_map(|info| &info.requests);
        let unseen = requests.filter(|r| r.complete && !self.set.ended.contains(&r.id));
        let graces = unseen.map(|request| self.told_at + grace_of(request, grace));
        let later = graces.chain(asks).chain(overdue).filter(|at| *at > unix);
        later.min()
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
