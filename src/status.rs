//! What the bot knows of the master, and what of it is news to whom.
//!
//! Pure values behind one mutex: the poller writes, the command handler reads. Every source comes
//! in through [`Status::apply`], which knows what was seen before, so each may be late, doubled or lossy.

use Outcome::{Cancelled, Exception, Failure, Retry, Skipped, Success, Warnings};
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::time::Instant;

/// A state text longer than this is cut: 10,000 builders must fit into memory.
const STATE_TEXT: usize = 300;
/// Completed builds remembered for each builder: enough for an estimate, and for builds that end out of order.
const HISTORY: usize = 10;
/// Builds that run, or that the stream has told ahead of others: far above what any master has.
const AT_ONCE: usize = 10_000;
/// Builds that run, whose changes are kept.
const FEW: usize = 200;

/// The names of all events (contract): Buildbot's `notify_events`.
pub const EVENT_NAMES: &str = "started finished success warnings failure exception cancelled \
    problem recovery worse better worker \
    successToSuccess successToWarnings successToFailure successToException \
    warningsToSuccess warningsToWarnings warningsToFailure warningsToException \
    failureToSuccess failureToWarnings failureToFailure failureToException \
    exceptionToSuccess exceptionToWarnings exceptionToFailure exceptionToException";

/// Names of events, all of them in [`EVENT_NAMES`].
pub type Events = BTreeSet<String>;

/// The events that a text names, or else the first word that is none.
pub fn events(text: &str) -> Result<Events, &str> {
    let event = |name| {
        EVENT_NAMES
            .split(' ')
            .find(|n| *n == name)
            .map(str::to_owned)
            .ok_or(name)
    };
    text.split_whitespace().map(event).collect()
}

/// How a build ended, in the order of the master's numbers (`buildbot.process.results`). For those
/// that count this is the order of severity, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    Success,
    Warnings,
    Failure,
    Skipped,
    Exception,
    Retry,
    Cancelled,
}

impl Outcome {
    pub const ALL: [Outcome; 7] = [
        Success, Warnings, Failure, Skipped, Exception, Retry, Cancelled,
    ];

    /// The word in replies and announcements (contract).
    pub fn word(self) -> &'static str {
        [
            "success",
            "warnings",
            "failure",
            "skipped",
            "exception",
            "retry",
            "cancelled",
        ][self as usize]
    }

    /// Whether it says something of the code; the others make no transitions.
    fn counts(self) -> bool {
        self.is_good() || matches!(self, Failure | Exception)
    }

    pub fn is_good(self) -> bool {
        matches!(self, Success | Warnings)
    }

    /// Every event that the end of a build is, given how the last one that counts ended
    /// (`buildbot.reporters.words`: `notify_for_finished`).
    fn events(self, before: Option<Outcome>) -> Vec<&'static str> {
        let mut names = vec!["finished", self.word()];
        if let Some(was) = before.filter(|_| self.counts()) {
            let transition = format!("{}To{}", was.word(), self.word());
            names.extend(
                EVENT_NAMES
                    .split(' ')
                    .find(|n| n.eq_ignore_ascii_case(&transition)),
            );
            names.extend((self > was).then_some("worse"));
            names.extend((self < was).then_some("better"));
            names.extend((was.is_good() && !self.is_good()).then_some("problem"));
            names.extend((!was.is_good() && self.is_good()).then_some("recovery"));
        }
        names
    }
}

/// A build, with the fields and units of `/api/v2/builds` (times in seconds since the epoch).
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Build {
    #[serde(rename = "buildid")]
    pub id: u64,
    pub builderid: u64,
    pub number: u64,
    pub buildrequestid: Option<u64>,
    pub started_at: f64,
    pub complete: bool,
    pub complete_at: Option<f64>,
    pub results: Option<usize>,
    #[serde(default)]
    pub state_string: String,
    #[serde(skip)]
    pub step: Option<String>, // that it is in, where someone has asked
    #[serde(skip)]
    pub changes: Option<Changes>, // where they have been asked for
}

/// A change, with the fields of `/api/v2/changes`, of which everything but the author may be missing.
#[derive(Debug, Deserialize)]
pub struct Change {
    #[serde(rename = "changeid", default)]
    pub id: u64,
    pub author: String,
    pub revision: Option<String>,
    pub comments: Option<String>,
    pub branch: Option<String>,
}

/// Authors of the changes of a build, newest first, and revisions.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    pub authors: Vec<String>,
    pub revisions: Vec<String>,
}

impl Build {
    /// How it ended, if it has; a number that we do not know counts as an exception.
    pub fn outcome(&self) -> Option<Outcome> {
        let known = self.results.and_then(|r| Outcome::ALL.get(r).copied());
        self.complete.then(|| known.unwrap_or(Exception))
    }

    /// Seconds from start to end, or to `now`.
    pub fn seconds(&self, now: i64) -> i64 {
        self.complete_at
            .map_or(now, |t| t as i64)
            .saturating_sub(self.started_at as i64)
            .max(0)
    }
}

/// What is remembered of a completed build that counts.
#[derive(Clone, Copy, Debug)]
struct Past {
    outcome: Outcome,
    streak: u32, // how many in a row ended like this one; 0: more than we know
    seconds: i64,
}

/// A builder, with the fields of `/api/v2/builders`, and what its builds have taught us.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Builder {
    #[serde(rename = "builderid")]
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub tags: Vec<String>,
    #[serde(default)]
    pub masterids: Vec<u64>,
    #[serde(skip)]
    pub last: Option<Build>, // the completed one with the highest number
    #[serde(skip)]
    pub asked: bool, // the master was asked for `last` by name and had no more to say
    #[serde(skip)]
    history: BTreeMap<u64, Past>, // by number
}

impl Builder {
    /// Whether it is in the master's configuration, or one that builds invent.
    pub fn is_listed(&self) -> bool {
        !self.masterids.is_empty() || self.tags.iter().any(|tag| tag == "_virtual_")
    }

    /// Seconds that a successful build takes: the median of the last ones.
    pub fn typical(&self) -> Option<i64> {
        let good = self.history.values().filter(|p| p.outcome == Success);
        let mut seconds: Vec<i64> = good.map(|p| p.seconds).collect();
        seconds.sort_unstable();
        seconds.get(seconds.len() / 2).copied()
    }

    /// The newest completed build below `number` that counts.
    fn before(&self, number: u64) -> Option<Past> {
        self.history
            .range(..number)
            .next_back()
            .map(|(_, &past)| past)
    }

    /// Takes note of a completed build; one that is known already changes nothing.
    fn learn(&mut self, build: &Build, outcome: Outcome) {
        if outcome.counts() && !self.history.contains_key(&build.number) {
            let streak = match self.before(build.number) {
                Some(past) if past.outcome == outcome => past.streak + u32::from(past.streak > 0),
                None if build.number > 1 => 0,
                _ => 1,
            };
            // What ran beside this one counted without it.
            if self.before(build.number).is_some() {
                self.history
                    .range_mut(build.number..)
                    .for_each(|(_, past)| past.streak = 0);
            }
            self.history.insert(
                build.number,
                Past {
                    outcome,
                    streak,
                    seconds: build.seconds(0),
                },
            );
            if self.history.len() > HISTORY {
                self.history.pop_first();
            }
        }
        if self.last.as_ref().is_none_or(|l| l.number < build.number) {
            self.last = Some(build.clone());
        }
    }
}

/// A worker, with the fields of `/api/v2/workers`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Worker {
    #[serde(rename = "workerid")]
    pub id: u64,
    pub name: String,
    #[serde(rename = "connected_to", deserialize_with = "is_any", default)]
    pub online: bool,
    #[serde(default)]
    pub paused: bool,
    #[serde(skip)]
    pub missing: bool, // the master has reported it missing and it has not come back
    #[serde(rename = "configured_on", deserialize_with = "builder_ids", default)]
    pub builders: BTreeSet<u64>, // that it may work for
}

fn is_any<'de, D: Deserializer<'de>>(list: D) -> Result<bool, D::Error> {
    Vec::<IgnoredAny>::deserialize(list).map(|list| !list.is_empty())
}

fn builder_ids<'de, D: Deserializer<'de>>(list: D) -> Result<BTreeSet<u64>, D::Error> {
    #[derive(Deserialize)]
    struct On {
        builderid: u64,
    }
    Ok(Vec::deserialize(list)?
        .into_iter()
        .map(|On { builderid }| builderid)
        .collect())
}

/// What a target wants to hear, and in what form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub events: Events,
    pub tags: Vec<String>,     // none: all tags
    pub builders: Vec<String>, // globs; none: all builders
    pub notice: bool,
    pub colors: bool,
    pub revisions: bool,
    pub blame: bool,
}

impl Settings {
    fn cares(&self, builder: &Builder) -> bool {
        (self.tags.is_empty() || builder.tags.iter().any(|tag| self.tags.contains(tag)))
            && (self.builders.is_empty()
                || self
                    .builders
                    .iter()
                    .any(|pattern| glob(pattern, &builder.name)))
    }
}

#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub settings: Settings,
    pub muted_until: i64, // seconds since the epoch
}

/// Something that at least one target wants to hear.
#[derive(Clone, Debug, Default)]
pub struct News {
    pub name: String,               // the builder's, or what the fact is of
    pub fact: Option<&'static str>, // where it is not the start or the end of a build
    pub build: Build,
    /// How the build before ended, and how many in a row ended like this one (0: more than we know).
    pub was: Option<Outcome>,
    pub streak: u32,
    pub targets: Vec<String>,
}

/// Someone waits for the end of the build that a request leads to, or has led to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    pub target: String,
    pub request: u64,
    pub mask: String, // whose request it is: `nick!user@host`; empty for a mere watch
    #[serde(skip)]
    pub told: bool, // by news that are on their way
}

/// How far the master's builds are known, which must be remembered in step with the news.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Known {
    /// Every build up to this id has been applied; nothing before the first poll.
    pub mark: Option<u64>,
    /// Builds applied ahead of the mark, from the stream.
    pub ahead: BTreeSet<u64>,
    /// Those of all these that still run.
    pub open: BTreeSet<u64>,
}

#[derive(Debug, Default)]
pub struct Status {
    /// The master's version and the base of links for people (`buildbotURL`).
    pub version: String,
    pub url: String,
    pub builders: BTreeMap<u64, Builder>,
    pub workers: BTreeMap<u64, Worker>,
    pub open: BTreeMap<u64, Build>, // those that run
    /// Requests that no worker has taken: request id → builder id.
    pub queued: BTreeMap<u64, u64>,
    /// The newest changes by id, each as a line, while the stream tells of new ones.
    pub changes: BTreeMap<u64, String>,
    pub mark: Option<u64>, // see [`Known`]
    pub ahead: BTreeSet<u64>,
    pub targets: Vec<Target>,
    pub watches: Vec<Watch>,
    /// When the master last answered (seconds since the epoch), and why it does not now.
    pub reached: Option<i64>,
    pub trouble: Option<String>,
    /// A poller that has not moved by then is stuck.
    pub poller_until: Option<Instant>,
}

impl Status {
    pub fn workers_of(&self, builder: u64) -> impl Iterator<Item = &Worker> {
        self.workers
            .values()
            .filter(move |w| w.builders.contains(&builder))
    }

    /// The running builds of a builder, oldest first.
    pub fn running(&self, builder: u64) -> impl Iterator<Item = &Build> {
        self.open.values().filter(move |b| b.builderid == builder)
    }

    /// Whether a build of this request is known to run.
    fn runs(&self, request: Option<u64>) -> bool {
        self.open.values().any(|b| b.buildrequestid == request)
    }

    /// Replaces the list of builders; what is known of the ones that stay is kept.
    pub fn set_builders(&mut self, list: Vec<Builder>) {
        let mut old = take(&mut self.builders);
        for Builder { id, name, tags, .. } in list {
            self.builders.insert(
                id,
                Builder {
                    id,
                    name,
                    tags,
                    ..old.remove(&id).unwrap_or_default()
                },
            );
        }
        // One that was removed while it builds still ends its build.
        old.retain(|&id, _| self.running(id).next().is_some());
        self.builders.append(&mut old);
    }

    /// Whether the builds before this one are worth asking for, so that its end can be told as a change.
    pub fn needs_past(&self, build: &Build) -> bool {
        let past = self.builders.get(&build.builderid);
        build.complete
            && build.number > 1
            && past.is_some_and(|b| !b.asked && b.before(build.number).is_none())
    }

    /// Takes in one build from wherever. Returns what is new about it, if anything is and someone wants
    /// to hear it. Builds should come in the order of their ids; out of order loses nothing.
    pub fn apply(&mut self, mut build: Build, now: i64) -> Option<News> {
        build
            .state_string
            .truncate(build.state_string.floor_char_boundary(STATE_TEXT));
        let fresh = self.mark.is_some_and(|m| build.id > m) && self.ahead.insert(build.id);
        if fresh {
            self.caught_up(0);
        }
        let known = self.open.remove(&build.id);
        let told = if build.complete {
            fresh || known.is_some()
        } else {
            fresh && known.is_none()
        };
        if let Some(outcome) = build.outcome() {
            self.builders
                .get_mut(&build.builderid)?
                .learn(&build, outcome);
        } else if known.is_some() || (fresh || self.mark.is_none()) && !self.is_full() {
            // Anything else is a late word of a start and must not reopen a build that has ended.
            let known = known.unwrap_or_default();
            (build.step, build.changes) = (known.step, known.changes);
            self.open.insert(build.id, build.clone());
            return self.news(build, told, now);
        }
        build.changes = known.and_then(|known| known.changes);
        self.news(build, told, now)
    }

    pub fn known(&self) -> Known {
        Known {
            mark: self.mark,
            ahead: self.ahead.clone(),
            open: self.open.keys().copied().collect(),
        }
    }

    /// Goes on from what was known once: the end of builds that ran then is news.
    pub fn resume(&mut self, known: Known) {
        (self.mark, self.ahead) = (known.mark, known.ahead);
        self.open = known
            .open
            .into_iter()
            .map(|id| {
                (
                    id,
                    Build {
                        id,
                        ..Build::default()
                    },
                )
            })
            .collect();
    }

    /// Whether there are more builds at once than any master has.
    pub fn is_full(&self) -> bool {
        self.open.len() + self.ahead.len() > AT_ONCE
    }

    /// Forgets all builds: the master has another database.
    pub fn start_over(&mut self) {
        (self.mark, self.ahead, self.open) = (None, BTreeSet::new(), BTreeMap::new());
        self.watches.clear();
        for b in self.builders.values_mut() {
            (b.last, b.asked, b.history) = (None, false, BTreeMap::new());
        }
    }

    /// Every build up to `id` has been seen. Build ids have no gaps, so what the stream has brought
    /// in order behind it moves the mark further.
    pub fn caught_up(&mut self, id: u64) {
        let mut mark = self.mark.unwrap_or(0).max(id);
        self.ahead.retain(|&id| id > mark);
        while self.ahead.remove(&mark.saturating_add(1)) {
            mark += 1;
        }
        self.mark = Some(mark);
    }

    /// Takes in what is known of a worker. That it is missing is the master's word, which only the
    /// stream has.
    pub fn apply_worker(&mut self, mut seen: Worker, now: i64) -> Option<News> {
        let known = self.workers.entry(seen.id).or_default();
        if seen.builders.is_empty() {
            seen.builders = take(&mut known.builders);
        }
        seen.missing = !seen.online && (known.missing || seen.missing);
        let changed = seen.missing != known.missing;
        let fact = Some(if seen.missing {
            " is offline and missing"
        } else {
            " is back"
        });
        let name = format!("worker {}", seen.name);
        *known = seen;
        let targets = self.hearers(&["worker"], None, now);
        (changed && !targets.is_empty()).then(|| News {
            name,
            fact,
            targets,
            ..News::default()
        })
    }

    /// Watches from now on. If that build has ended already, and nobody there has heard of it, that is news.
    pub fn watch(&mut self, watch: Watch, now: i64) -> Option<News> {
        let mut last = self.builders.values().filter_map(|b| b.last.as_ref());
        let ended = last
            .find(|b| b.buildrequestid == Some(watch.request))
            .cloned();
        if !self.watches.contains(&watch) {
            self.watches.push(watch);
        }
        self.apply(ended?, now)
    }

    /// The requests that someone watches, that do not wait any more, and of which no build is known to run.
    pub fn unclear_requests(&self) -> Vec<u64> {
        let requests = self.watches.iter().filter(|w| !w.told).map(|w| w.request);
        requests
            .filter(|id| !self.queued.contains_key(id) && !self.runs(Some(*id)))
            .collect()
    }

    /// A request has ended without a build: whoever watches it hears of it.
    pub fn lapse(&mut self, request: u64, builder: u64, results: Option<usize>) -> Option<News> {
        let waiting = self
            .watches
            .iter_mut()
            .filter(|w| w.request == request && !w.told);
        let tell = |w: &mut Watch| {
            w.told = true;
            w.target.clone()
        };
        let targets: Vec<String> = waiting.map(tell).collect();
        let name = self
            .builders
            .get(&builder)
            .map_or_else(|| format!("builder {builder}"), |b| b.name.clone());
        let fact = Some(match results.and_then(|r| Outcome::ALL.get(r)) {
            Some(Cancelled) => ": the queued build was cancelled",
            Some(Skipped) => ": the queued build was merged with an equal one",
            _ => ": the queued build never started",
        });
        let build = Build {
            buildrequestid: Some(request),
            ..Build::default()
        };
        (!targets.is_empty()).then(|| News {
            name,
            fact,
            targets,
            build,
            ..News::default()
        })
    }

    /// The news are on record: watches that they answer are over.
    pub fn handed_over(&mut self, news: &[News]) {
        let answered = |w: &Watch| {
            news.iter()
                .any(|n| n.build.buildrequestid == Some(w.request))
        };
        self.watches.retain(|w| !(w.told && answered(w)));
    }

    /// Whether the changes of a running build will perhaps be told with its end. A few are worth asking
    /// for beforehand.
    pub fn wants_changes(&self, build: u64) -> bool {
        let open = self
            .open
            .get(&build)
            .filter(|b| b.changes.is_none() && self.open.len() <= FEW);
        let builder = open.and_then(|b| self.builders.get(&b.builderid));
        let wants = |s: &Settings| !s.events.is_empty() && (s.blame || s.revisions);
        builder.is_some_and(|b| {
            self.targets
                .iter()
                .any(|t| wants(&t.settings) && t.settings.cares(b))
        })
    }

    /// Who hears of such events now; filters are for builders only.
    fn hearers(&self, events: &[&str], builder: Option<&Builder>, now: i64) -> Vec<String> {
        let hears = |s: &Settings| {
            events.iter().any(|&e| s.events.contains(e)) && builder.is_none_or(|b| s.cares(b))
        };
        let hearers = self
            .targets
            .iter()
            .filter(|t| t.muted_until <= now && hears(&t.settings));
        hearers.map(|t| t.name.clone()).collect()
    }

    /// The start or the end of a build, for all who want to hear it; if it is old, for those only
    /// who came to watch it too late.
    fn news(&mut self, build: Build, is_new: bool, now: i64) -> Option<News> {
        let builder = self.builders.get(&build.builderid)?;
        let name = builder.name.clone();
        let was = builder.before(build.number).map(|past| past.outcome);
        let streak = builder
            .history
            .get(&build.number)
            .map_or(0, |past| past.streak);
        let events = build
            .outcome()
            .map_or(vec!["started"], |outcome| outcome.events(was));
        let hearers = self.hearers(&events, Some(builder), now);
        // After a retry, one request has several builds.
        let over = build.outcome().is_some_and(|o| o != Retry) && !self.runs(build.buildrequestid);
        let mut targets: BTreeSet<String> = hearers.iter().filter(|_| is_new).cloned().collect();
        self.watches.retain_mut(|w| {
            if w.told || !over || build.buildrequestid != Some(w.request) {
                return true;
            }
            // Old news are no news where they were heard.
            w.told = is_new || !hearers.contains(&w.target);
            targets.extend(w.told.then(|| w.target.clone()));
            w.told
        });
        let targets: Vec<String> = targets.into_iter().collect();
        (!targets.is_empty()).then(|| News {
            name,
            build,
            was,
            streak,
            targets,
            ..News::default()
        })
    }
}

/// Whether text matches a pattern with `*` and `?`. Time is bounded by the product of the lengths.
pub fn glob(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // Whether the pattern so far matches the text's first characters: none, one, two, …
    let mut fits: Vec<bool> = (0..=text.len()).map(|length| length == 0).collect();
    for p in pattern.chars() {
        let shortest = fits.iter().position(|&fit| fit).unwrap_or(usize::MAX);
        let one =
            |length: usize| length > 0 && fits[length - 1] && (p == '?' || p == text[length - 1]);
        fits = (0..=text.len())
            .map(|length| {
                if p == '*' {
                    length >= shortest
                } else {
                    one(length)
                }
            })
            .collect();
    }
    fits[text.len()]
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Settings that want these events of every builder.
    pub fn settings(events: &str) -> Settings {
        Settings {
            events: super::events(events).unwrap(),
            tags: vec![],
            builders: vec![],
            notice: false,
            colors: false,
            revisions: false,
            blame: true,
        }
    }

    /// A status with builders 1.. of these names, a target `#c`, and the first poll done.
    pub fn status(names: &[&str], events: &str) -> Status {
        let mut status = Status::default();
        let builder = |(name, id): (&&str, _)| Builder {
            id,
            name: name.to_string(),
            ..Builder::default()
        };
        status.set_builders(names.iter().zip(1..).map(builder).collect());
        let settings = settings(events);
        status.targets.push(Target {
            name: "#c".into(),
            settings,
            muted_until: 0,
        });
        status.caught_up(0);
        status
    }

    /// A build of builder 1 that takes 60 s, complete if it has results.
    pub fn build(id: u64, number: u64, results: Option<Outcome>) -> Build {
        Build {
            id,
            builderid: 1,
            number,
            started_at: 1000.0,
            complete: results.is_some(),
            complete_at: results.map(|_| 1060.0),
            results: results.map(|r| r as usize),
            state_string: "state".into(),
            ..Build::default()
        }
    }

    #[test]
    fn a_build_is_news_once_whatever_the_order_and_number_of_reports() {
        let mut s = status(&["b"], "started finished");
        assert_eq!(s.apply(build(1, 1, None), 0).unwrap().build.outcome(), None);
        assert!(s.apply(build(1, 1, None), 0).is_none());
        assert_eq!(
            s.apply(build(1, 1, Some(Success)), 0)
                .unwrap()
                .build
                .outcome(),
            Some(Success)
        );
        assert!(s.apply(build(1, 1, Some(Success)), 0).is_none());
        assert!(
            s.apply(build(1, 1, None), 0).is_none(),
            "a late start reopens nothing"
        );
        assert!(s.open.is_empty());
    }

    #[test]
    fn builds_ahead_of_the_mark_leave_the_gap_to_the_poll() {
        let mut s = status(&["b"], "finished");
        assert!(s.apply(build(3, 3, Some(Success)), 0).is_some());
        assert_eq!(s.mark, Some(0));
        assert!(s.apply(build(1, 1, Some(Success)), 0).is_some());
        assert!(s.apply(build(2, 2, Some(Success)), 0).is_some());
        assert_eq!(s.mark, Some(3));
        assert!(s.apply(build(3, 3, Some(Success)), 0).is_none());
        assert!(s.ahead.is_empty());
        s.apply(build(6, 6, Some(Success)), 0);
        s.caught_up(9);
        assert!(s.ahead.is_empty(), "the poll has passed it");
    }

    #[test]
    fn what_came_before_the_first_poll_is_no_news_but_its_end_is() {
        let mut s = status(&["b"], "started finished");
        s.mark = None;
        assert!(s.apply(build(5, 5, Some(Failure)), 0).is_none());
        assert!(s.apply(build(6, 6, None), 0).is_none());
        s.caught_up(6);
        let news = s.apply(build(6, 6, Some(Success)), 0).unwrap();
        assert_eq!((news.was, news.streak), (Some(Failure), 1));
    }

    #[test]
    fn transitions_look_at_the_newest_lower_number_that_counts() {
        let mut s = status(&["b"], "finished");
        s.apply(build(1, 1, Some(Success)), 0);
        s.apply(build(2, 2, Some(Cancelled)), 0);
        s.apply(build(3, 3, Some(Skipped)), 0);
        s.apply(build(6, 6, Some(Exception)), 0);
        let late = s.apply(build(4, 4, Some(Failure)), 0).unwrap();
        assert_eq!((late.was, late.streak), (Some(Success), 1));
        let next = s.apply(build(5, 5, Some(Failure)), 0).unwrap();
        assert_eq!((next.was, next.streak), (Some(Failure), 2));
        assert_eq!(s.builders[&1].last.as_ref().unwrap().number, 6);
    }

    #[test]
    fn builds_side_by_side_are_not_counted_without_each_other() {
        let mut s = status(&["b"], "finished");
        s.apply(build(1, 1, Some(Failure)), 0);
        assert_eq!(s.apply(build(3, 3, Some(Failure)), 0).unwrap().streak, 2);
        s.apply(build(2, 2, Some(Success)), 0);
        assert_eq!(s.apply(build(4, 4, Some(Failure)), 0).unwrap().streak, 0);
        assert_eq!(s.apply(build(5, 5, Some(Success)), 0).unwrap().streak, 1);
    }

    #[test]
    fn another_database_starts_over() {
        let mut s = status(&["b"], "finished");
        s.apply(build(90, 90, Some(Failure)), 0);
        s.start_over();
        assert_eq!(s.apply(build(1, 1, None), 0).map(|n| n.name), None);
        s.caught_up(2);
        assert!(
            s.apply(build(1, 1, Some(Success)), 0).is_some(),
            "one that ran when we came"
        );
        s.start_over();
        s.caught_up(2);
        let news = s.apply(build(3, 3, Some(Success)), 0).unwrap();
        assert_eq!(
            (
                news.was,
                s.mark,
                s.builders[&1].last.as_ref().unwrap().number
            ),
            (None, Some(3), 3)
        );
    }

    #[test]
    fn a_streak_whose_beginning_was_not_seen_has_no_number() {
        let mut s = status(&["b"], "finished");
        s.apply(build(1, 8, Some(Failure)), 0);
        assert_eq!(s.apply(build(2, 9, Some(Failure)), 0).unwrap().streak, 0);
        assert_eq!(s.apply(build(3, 10, Some(Success)), 0).unwrap().streak, 1);
    }

    /// Every pair of results against every event, told by the rules of Buildbot's own reporter.
    #[test]
    fn every_event_is_told_for_every_pair_of_results_that_it_names() {
        let order = [Success, Warnings, Failure, Exception];
        for name in EVENT_NAMES.split(' ') {
            for was in Outcome::ALL {
                for now in Outcome::ALL {
                    let mut s = status(&["b"], name);
                    s.apply(build(1, 1, Some(was)), 0);
                    let told = s.apply(build(2, 2, Some(now)), 0).is_some();
                    let rank = |o| order.iter().position(|&x| x == o);
                    let both = rank(was).zip(rank(now));
                    let capital = |o: Outcome| o.word()[..1].to_uppercase() + &o.word()[1..];
                    let expected = match name {
                        "started" | "worker" => false,
                        "finished" => true,
                        "worse" => both.is_some_and(|(a, b)| b > a),
                        "better" => both.is_some_and(|(a, b)| b < a),
                        "problem" => both.is_some_and(|(a, b)| a < 2 && b >= 2),
                        "recovery" => both.is_some_and(|(a, b)| a >= 2 && b < 2),
                        n if n.contains("To") => {
                            both.is_some() && n == format!("{}To{}", was.word(), capital(now))
                        }
                        n => n == now.word(),
                    };
                    assert_eq!(told, expected, "{name}: {was:?} then {now:?}");
                }
            }
        }
    }

    #[test]
    fn filters_mutes_and_watches() {
        let mut s = status(&["linux", "mac os"], "finished");
        s.targets[0].settings.builders = vec!["mac*".into()];
        assert!(s.apply(build(1, 1, Some(Success)), 0).is_none());
        s.targets[0].settings.builders = vec!["l?nux".into()];
        assert!(s.apply(build(2, 2, Some(Success)), 0).is_some());
        s.targets[0].settings.tags = vec!["nightly".into()];
        assert!(s.apply(build(3, 3, Some(Success)), 0).is_none());
        let requested = |id: u64, results| Build {
            buildrequestid: Some(id + 100),
            ..build(id, id, results)
        };
        let watch = |target: &str, id: u64| Watch {
            target: target.into(),
            request: id + 100,
            ..Watch::default()
        };
        s.apply(requested(4, None), 0);
        s.watches.extend([watch("#c", 4), watch("joe", 4)]);
        let news = s.apply(requested(4, Some(Success)), 0).unwrap();
        assert_eq!(news.targets, ["#c", "joe"]);
        assert_eq!(
            s.watches.len(),
            2,
            "to be remembered until the news are on record"
        );
        s.handed_over(&[news]);
        assert!(s.watches.is_empty());
        s.apply(requested(41, Some(Success)), 0);
        let ended = |target: &str| watch(target, 41);
        assert_eq!(
            s.watch(ended("joe"), 0).unwrap().targets,
            ["joe"],
            "ended before anyone watched"
        );
        s.targets[0].settings.tags.clear();
        assert!(
            s.watch(ended("#c"), 0).is_none(),
            "#c has heard of it anyway"
        );
        s.watches.extend([ended("joe"), ended("#c")]);
        let late = s.apply(requested(41, Some(Success)), 0).unwrap();
        assert_eq!(
            late.targets,
            ["joe"],
            "watched, but it is not the last build any more"
        );
        s.handed_over(&[late]);
        assert!(s.watches.is_empty());
        s.targets[0].settings.tags.clear();
        s.targets[0].muted_until = 50;
        assert!(s.apply(build(5, 5, Some(Success)), 49).is_none());
        assert!(s.apply(build(6, 6, Some(Success)), 50).is_some());
    }

    #[test]
    fn who_watches_hears_of_the_build_that_runs_or_that_there_is_none() {
        let mut s = status(&["b"], "worker");
        let requested = |id, results| Build {
            buildrequestid: Some(7),
            ..build(id, id, results)
        };
        let watch = |target: &str| Watch {
            target: target.into(),
            request: 7,
            ..Watch::default()
        };
        s.apply(requested(1, Some(Retry)), 0);
        s.apply(requested(2, None), 0);
        assert!(
            s.watch(watch("joe"), 0).is_none(),
            "the first try is not what joe watches"
        );
        assert!(s.apply(requested(1, Some(Retry)), 0).is_none());
        assert!(s.unclear_requests().is_empty());
        s.handed_over(&[News {
            build: requested(1, Some(Retry)),
            ..News::default()
        }]);
        assert_eq!(s.watches.len(), 1, "joe has heard nothing yet");
        s.open.clear();
        assert_eq!(s.unclear_requests(), [7]);
        // Nor is one that will be tried again, though nothing runs at the moment.
        assert!(s.apply(requested(3, Some(Retry)), 0).is_none());
        assert_eq!(
            s.apply(requested(4, Some(Success)), 0).unwrap().targets,
            ["joe"]
        );
        s.watches.extend([watch("joe"), watch("#c")]);
        let news = s.lapse(7, 1, Some(Cancelled as usize)).unwrap();
        assert_eq!(
            (news.targets, news.fact),
            (
                vec!["joe".into(), "#c".into()],
                Some(": the queued build was cancelled")
            )
        );
        assert!(s.lapse(7, 1, None).is_none());
    }

    #[test]
    fn a_worker_is_missing_by_the_masters_word_and_back_once() {
        let mut s = status(&["b"], "worker");
        let worker = |online, missing| Worker {
            id: 1,
            name: "w".into(),
            online,
            missing,
            ..Worker::default()
        };
        assert!(
            s.apply_worker(
                Worker {
                    builders: [1].into(),
                    ..worker(true, false)
                },
                0
            )
            .is_none()
        );
        assert!(s.apply_worker(worker(false, false), 0).is_none());
        let news = s.apply_worker(worker(false, true), 0).unwrap();
        assert_eq!(news.fact, Some(" is offline and missing"));
        assert!(s.apply_worker(worker(false, true), 0).is_none());
        assert_eq!(
            s.apply_worker(worker(true, false), 0).unwrap().fact,
            Some(" is back")
        );
        assert!(s.apply_worker(worker(true, false), 0).is_none());
        assert_eq!(
            s.workers_of(1).count(),
            1,
            "a report without builders keeps them"
        );
    }

    #[test]
    fn a_builder_that_is_removed_while_it_builds_still_ends_its_build() {
        let mut s = status(&["a", "b"], "finished");
        s.apply(build(1, 1, None), 0);
        s.set_builders(vec![]);
        assert_eq!(s.builders.keys().copied().collect::<Vec<_>>(), [1]);
        let long = Build {
            state_string: "\u{e9}".repeat(STATE_TEXT),
            ..build(1, 1, Some(Failure))
        };
        let news = s.apply(long, 0).unwrap();
        assert_eq!(
            (news.name.as_str(), news.build.state_string.len()),
            ("a", STATE_TEXT)
        );
    }

    #[test]
    fn estimates_are_the_median_of_successful_builds() {
        let mut s = status(&["b"], "finished");
        for (n, seconds) in [(1, 10.0), (2, 500.0), (3, 30.0)] {
            let end = Some(1000.0 + seconds);
            s.apply(
                Build {
                    complete_at: end,
                    ..build(n, n, Some(Success))
                },
                0,
            );
        }
        s.apply(build(4, 4, Some(Failure)), 0);
        assert_eq!(s.builders[&1].typical(), Some(30));
    }

    #[test]
    fn globs() {
        for (pattern, text) in [
            ("*", ""),
            ("a*c", "abbc"),
            ("a?c", "a\u{e9}c"),
            ("*a*b*", "xaxbx"),
            ("", ""),
        ] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("a*c", "abcd"),
            ("?", ""),
            ("", "x"),
            ("a", "A"),
            ("*ab", "aab "),
        ] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
