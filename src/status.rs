//! What the bot knows of the master, and what of it is news to whom.
//!
//! Pure values behind one mutex: the poller writes, the command handler reads. Every source comes
//! in through [`Status::apply`], which knows what was seen before, so each may be late, doubled or lossy.

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

/// A state text longer than this is cut: 10,000 builders must fit into memory.
const STATE_TEXT: usize = 300;
/// Durations of successful builds that an estimate looks at.
const SAMPLES: usize = 5;
/// Completed builds remembered for each builder: enough for builds that end out of order.
const HISTORY: usize = 6;

/// The names of all events (contract): Buildbot's `notify_events`.
pub const EVENT_NAMES: &str = "started finished success warnings failure exception cancelled \
    problem recovery worse better worker \
    successToSuccess successToWarnings successToFailure successToException \
    warningsToSuccess warningsToWarnings warningsToFailure warningsToException \
    failureToSuccess failureToWarnings failureToFailure failureToException \
    exceptionToSuccess exceptionToWarnings exceptionToFailure exceptionToException";

/// How a build ended, in the order of the master's numbers (`buildbot.process.results`). For those
/// that count this is the order of severity, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    Success,
    Warnings,
    Failure,
    Skipped,
    Exception,
    Retry,
    Cancelled,
}

use Outcome::{Cancelled, Exception, Failure, Retry, Skipped, Success, Warnings};

impl Outcome {
    pub const ALL: [Outcome; 7] = [Success, Warnings, Failure, Skipped, Exception, Retry, Cancelled];

    /// The word in replies and announcements (contract).
    pub fn word(self) -> &'static str {
        ["success", "warnings", "failure", "skipped", "exception", "retry", "cancelled"][self as usize]
    }

    /// Whether it says something of the code; the others make no transitions.
    fn counts(self) -> bool {
        self.is_good() || matches!(self, Failure | Exception)
    }

    pub fn is_good(self) -> bool {
        matches!(self, Success | Warnings)
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
    /// The step it is in, where someone has asked.
    #[serde(skip)]
    pub step: Option<String>,
}

impl Build {
    /// How it ended, if it has; a number that we do not know counts as an exception.
    pub fn outcome(&self) -> Option<Outcome> {
        let known = self.results.and_then(|r| Outcome::ALL.get(r).copied());
        self.complete.then(|| known.unwrap_or(Exception))
    }

    /// Seconds from start to end, or to `now`.
    pub fn seconds(&self, now: i64) -> i64 {
        self.complete_at.map_or(now, |t| t as i64).saturating_sub(self.started_at as i64).max(0)
    }
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
    /// The completed build with the highest number.
    #[serde(skip)]
    pub last: Option<Build>,
    /// Whether the master was asked for `last` by name and had no more to say.
    #[serde(skip)]
    pub asked: bool,
    /// By number, of those that count: the outcome, and how many in a row had it (0: more than we know).
    #[serde(skip)]
    history: BTreeMap<u64, (Outcome, u32)>,
    #[serde(skip)]
    samples: Vec<i64>,
}

impl Builder {
    /// Seconds that a successful build takes: the median of the last ones.
    pub fn typical(&self) -> Option<i64> {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// The newest completed build below `number` that counts.
    fn before(&self, number: u64) -> Option<(Outcome, u32)> {
        self.history.range(..number).next_back().map(|(_, &past)| past)
    }

    /// Takes note of a completed build; one that is known already changes nothing.
    fn learn(&mut self, build: Build) {
        let Some(outcome) = build.outcome() else { return };
        if outcome.counts() && !self.history.contains_key(&build.number) {
            let streak = match self.before(build.number) {
                Some((was, 0)) if was == outcome => 0,
                Some((was, streak)) if was == outcome => streak + 1,
                None if build.number > 1 => 0,
                _ => 1,
            };
            self.history.insert(build.number, (outcome, streak));
            if self.history.len() > HISTORY {
                self.history.pop_first();
            }
            if outcome == Success {
                self.samples.insert(0, build.seconds(0));
                self.samples.truncate(SAMPLES);
            }
        }
        if self.last.as_ref().is_none_or(|l| l.number < build.number) {
            self.last = Some(build);
        }
    }
}

/// A worker, with the fields of `/api/v2/workers`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Worker {
    pub name: String,
    #[serde(rename = "connected_to", deserialize_with = "is_any", default)]
    pub online: bool,
    #[serde(default)]
    pub paused: bool,
    /// The master has reported it missing and it has not come back.
    #[serde(skip)]
    pub missing: bool,
    /// Ids of the builders it may work for, sorted.
    #[serde(rename = "configured_on", deserialize_with = "builder_ids", default)]
    pub builders: Vec<u64>,
}

fn is_any<'de, D: Deserializer<'de>>(list: D) -> Result<bool, D::Error> {
    Vec::<IgnoredAny>::deserialize(list).map(|list| !list.is_empty())
}

fn builder_ids<'de, D: Deserializer<'de>>(list: D) -> Result<Vec<u64>, D::Error> {
    #[derive(Deserialize)]
    struct On {
        builderid: u64,
    }
    // One that several masters know comes once for each.
    let ids: BTreeSet<u64> = Vec::deserialize(list)?.into_iter().map(|On { builderid }| builderid).collect();
    Ok(ids.into_iter().collect())
}

/// A set of notification events: a bit for each of [`EVENT_NAMES`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u32);

impl Events {
    /// The set of one event, or nothing when there is no such event.
    pub fn named(name: &str) -> Option<Events> {
        EVENT_NAMES.split(' ').position(|n| n == name).map(|i| Events(1 << i))
    }

    /// What `notify on` without a name turns on.
    pub fn usual() -> Events {
        Events::of(&["started", "finished"])
    }

    fn of(names: &[&str]) -> Events {
        names.iter().filter_map(|n| Events::named(n)).fold(Events::default(), Events::with)
    }

    pub fn names(self) -> Vec<&'static str> {
        EVENT_NAMES.split(' ').filter(|n| self.meets(Events::of(&[n]))).collect()
    }

    pub fn with(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }

    pub fn without(self, other: Events) -> Events {
        Events(self.0 & !other.0)
    }

    pub fn meets(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }

    /// Every event that the end of a build is, given how the last one that counts ended
    /// (`buildbot.reporters.words`: `notify_for_finished`).
    fn of_end(now: Outcome, before: Option<Outcome>) -> Events {
        let mut names = vec!["finished", now.word()];
        if let Some(was) = before.filter(|_| now.counts()) {
            let transition = format!("{}To{}", was.word(), now.word());
            names.extend(EVENT_NAMES.split(' ').find(|n| n.eq_ignore_ascii_case(&transition)));
            names.extend((now > was).then_some("worse"));
            names.extend((now < was).then_some("better"));
            names.extend((was.is_good() && !now.is_good()).then_some("problem"));
            names.extend((!was.is_good() && now.is_good()).then_some("recovery"));
        }
        Events::of(&names)
    }
}

/// What a target wants to hear, and in what form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    pub events: Events,
    /// Empty: all tags.
    pub tags: Vec<String>,
    /// Globs; empty: all builders.
    pub builders: Vec<String>,
    pub notice: bool,
    pub colors: bool,
    pub revisions: bool,
    pub blame: bool,
}

#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub settings: Settings,
    /// No announcements before this time (seconds since the epoch).
    pub muted_until: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Started,
    Finished,
    WorkerMissing,
    WorkerBack,
    /// A request that ended without a build.
    Unbuilt,
}

/// Something that at least one target wants to hear.
#[derive(Clone, Debug, Default)]
pub struct News {
    pub kind: Kind,
    /// The builder's or the worker's name.
    pub name: String,
    pub build: Build,
    /// How the build before ended, and how many in a row ended like this one (0: more than we know).
    pub was: Option<Outcome>,
    pub streak: u32,
    pub targets: Vec<String>,
    /// Authors of the changes, and revisions: filled in where a target wants them.
    pub blame: Vec<String>,
    pub revisions: Vec<String>,
}

/// Someone waits for the end of a build, or of the build that a request leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    pub target: String,
    pub id: u64,
    pub request: bool,
    /// Whose request it is: `nick!user@host`; empty for a mere watch.
    pub mask: String,
}

impl Watch {
    fn is_for(&self, build: &Build) -> bool {
        if self.request { build.buildrequestid == Some(self.id) } else { build.id == self.id }
    }
}

#[derive(Debug, Default)]
pub struct Status {
    /// The master's version and the base of links for people (`buildbotURL`).
    pub version: String,
    pub url: String,
    /// Sorted by name; `index` finds them by id.
    builders: Vec<Builder>,
    index: HashMap<u64, usize>,
    pub workers: BTreeMap<u64, Worker>,
    /// Builds that run, by build id.
    pub open: BTreeMap<u64, Build>,
    /// Requests that no worker has taken: request id → builder id.
    pub queued: BTreeMap<u64, u64>,
    /// Every build up to this id has been applied; nothing before the first poll.
    pub mark: Option<u64>,
    /// Builds applied ahead of the mark, from the stream.
    ahead: BTreeSet<u64>,
    pub targets: Vec<Target>,
    pub watches: Vec<Watch>,
    /// When the master last answered (seconds since the epoch), and why it does not now.
    pub reached: Option<i64>,
    pub trouble: Option<String>,
    /// A poller that has not moved by then is stuck.
    pub poller_until: Option<Instant>,
}

impl Status {
    pub fn builders(&self) -> &[Builder] {
        &self.builders
    }

    pub fn builder(&self, name: &str) -> Option<&Builder> {
        self.builders.binary_search_by(|b| b.name.as_str().cmp(name)).ok().map(|i| &self.builders[i])
    }

    pub fn builder_by_id(&self, id: u64) -> Option<&Builder> {
        self.index.get(&id).map(|&i| &self.builders[i])
    }

    pub fn builder_mut(&mut self, id: u64) -> Option<&mut Builder> {
        self.index.get(&id).map(|&i| &mut self.builders[i])
    }

    pub fn workers_of(&self, builder: u64) -> impl Iterator<Item = &Worker> {
        self.workers.values().filter(move |w| w.builders.binary_search(&builder).is_ok())
    }

    /// The running builds of a builder, oldest first.
    pub fn running(&self, builder: u64) -> impl Iterator<Item = &Build> {
        self.open.values().filter(move |b| b.builderid == builder)
    }

    /// Replaces the list of builders; what is known of the ones that stay is kept.
    pub fn set_builders(&mut self, list: Vec<Builder>) {
        let mut old: HashMap<u64, Builder> = self.builders.drain(..).map(|b| (b.id, b)).collect();
        let known = |Builder { id, name, tags, .. }| Builder { id, name, tags, ..old.remove(&id).unwrap_or_default() };
        self.builders = list.into_iter().map(known).collect();
        // One that was removed while it builds still ends its build.
        let builds = |b: &Builder| self.open.values().any(|o| o.builderid == b.id);
        self.builders.extend(old.into_values().filter(builds));
        self.builders.sort_by(|a, b| a.name.cmp(&b.name));
        self.index = self.builders.iter().enumerate().map(|(i, b)| (b.id, i)).collect();
    }

    /// Whether the builds before this one are worth asking for, so that its end can be told as a change.
    pub fn needs_past(&self, build: &Build) -> bool {
        let past = self.builder_by_id(build.builderid);
        build.complete && build.number > 1 && past.is_some_and(|b| !b.asked && b.before(build.number).is_none())
    }

    /// Takes in one build from wherever. Returns what is new about it, if anything is and someone
    /// wants to hear it. Builds should come in the order of their ids; out of order loses nothing.
    pub fn apply(&mut self, mut build: Build, now: i64) -> Option<News> {
        build.state_string.truncate(build.state_string.floor_char_boundary(STATE_TEXT));
        let fresh = self.mark.is_some_and(|m| build.id > m) && self.ahead.insert(build.id);
        if fresh {
            self.caught_up(0);
        }
        let known = self.open.remove(&build.id);
        let told = if build.complete { fresh || known.is_some() } else { fresh && known.is_none() };
        if build.complete {
            self.builder_mut(build.builderid)?.learn(build.clone());
        } else if fresh || known.is_some() || self.mark.is_none() {
            // Anything else is a late word of a start and must not reopen a build that has ended.
            build.step = known.and_then(|k| k.step);
            self.open.insert(build.id, build.clone());
        }
        told.then(|| self.news(build, now)).flatten()
    }

    /// Builds that were running when the bot last knew: their end is news.
    pub fn reopen(&mut self, ids: &[u64]) {
        self.open.extend(ids.iter().map(|&id| (id, Build { id, ..Build::default() })));
    }

    /// Every build up to `id` has been seen. Build ids have no gaps, so what the stream has brought
    /// in order behind it moves the mark further.
    pub fn caught_up(&mut self, id: u64) {
        let mut mark = self.mark.unwrap_or(0).max(id);
        while self.ahead.first().is_some_and(|&id| id <= mark.saturating_add(1)) {
            mark = mark.max(self.ahead.pop_first().unwrap_or(0));
        }
        self.mark = Some(mark);
    }

    /// Takes in what is known of a worker. That it is missing is the master's word, which only the
    /// stream has.
    pub fn apply_worker(&mut self, id: u64, mut seen: Worker, now: i64) -> Option<News> {
        let known = self.workers.entry(id).or_default();
        if seen.builders.is_empty() {
            seen.builders = std::mem::take(&mut known.builders);
        }
        seen.missing = !seen.online && (known.missing || seen.missing);
        let changed = seen.missing != known.missing;
        let kind = if seen.missing { Kind::WorkerMissing } else { Kind::WorkerBack };
        let name = seen.name.clone();
        *known = seen;
        let targets = self.hearers(Events::of(&["worker"]), None, now);
        (changed && !targets.is_empty()).then(|| News { kind, name, targets, ..News::default() })
    }

    /// Watches from now on. If that build has ended already, and nobody there has heard of it, that is news.
    pub fn watch(&mut self, watch: Watch, now: i64) -> Option<News> {
        let mut last = self.builders.iter().filter_map(|b| b.last.as_ref());
        let ended = last.find(|b| watch.is_for(b)).cloned();
        if !self.watches.contains(&watch) {
            self.watches.push(watch);
        }
        self.ended(&ended?, now)
    }

    /// A build that had ended before someone came to watch it: news for those who have not heard of it.
    pub fn ended(&mut self, build: &Build, now: i64) -> Option<News> {
        let mut waiting: Vec<Watch> = self.watches.extract_if(.., |w| w.is_for(build)).collect();
        let heard = self.news(build.clone(), now).map_or(vec![], |news| news.targets);
        waiting.retain(|w| !heard.contains(&w.target));
        let targets: Vec<String> = waiting.iter().map(|w| w.target.clone()).collect();
        self.watches.extend(waiting);
        let news = self.news(build.clone(), now).filter(|_| !targets.is_empty())?;
        Some(News { targets, ..news })
    }

    /// The requests that someone watches, that do not wait any more, and of which no build is known to run.
    pub fn unclear_requests(&self) -> Vec<u64> {
        let waits =
            |id: &u64| self.queued.contains_key(id) || self.open.values().any(|b| b.buildrequestid == Some(*id));
        self.watches.iter().filter(|w| w.request).map(|w| w.id).filter(|id| !waits(id)).collect()
    }

    /// A request has ended without a build: whoever watches it hears of it.
    pub fn lapse(&mut self, request: u64, builder: u64, results: Option<usize>) -> Option<News> {
        let watches = self.watches.extract_if(.., |w| w.request && w.id == request);
        let targets: Vec<String> = watches.map(|w| w.target).collect();
        let name = self.builder_by_id(builder)?.name.clone();
        let build = Build { builderid: builder, complete: true, results, ..Build::default() };
        (!targets.is_empty()).then(|| News { kind: Kind::Unbuilt, name, targets, build, ..News::default() })
    }

    /// Who hears of such an event now; filters are for builders only.
    fn hearers(&self, events: Events, builder: Option<&Builder>, now: i64) -> Vec<String> {
        let cares = |s: &Settings, b: &Builder| {
            (s.tags.is_empty() || b.tags.iter().any(|t| s.tags.contains(t)))
                && (s.builders.is_empty() || s.builders.iter().any(|g| glob(g, &b.name)))
        };
        let awake = self.targets.iter().filter(|t| t.settings.events.meets(events) && t.muted_until <= now);
        awake.filter(|t| builder.is_none_or(|b| cares(&t.settings, b))).map(|t| t.name.clone()).collect()
    }

    fn news(&mut self, build: Build, now: i64) -> Option<News> {
        let builder = self.builder_by_id(build.builderid)?;
        let name = builder.name.clone();
        let was = builder.before(build.number).map(|(outcome, _)| outcome);
        let streak = builder.history.get(&build.number).map_or(0, |&(_, streak)| streak);
        let events = match build.outcome() {
            Some(outcome) if build.complete => Events::of_end(outcome, was),
            _ => Events::of(&["started"]),
        };
        let mut targets = self.hearers(events, Some(builder), now);
        for watch in self.watches.extract_if(.., |w| build.complete && w.is_for(&build)) {
            if !targets.contains(&watch.target) {
                targets.push(watch.target);
            }
        }
        let kind = if build.complete { Kind::Finished } else { Kind::Started };
        (!targets.is_empty()).then(|| News { kind, name, build, was, streak, targets, ..News::default() })
    }
}

/// Whether text matches a pattern with `*` and `?`. Time is bounded by the product of the lengths.
pub fn glob(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    // How many characters of the text the pattern so far can match, in rising order.
    let mut lengths = vec![0];
    for p in pattern.chars() {
        let fits = |&i: &usize| text.get(i).is_some_and(|&t| p == '?' || p == t);
        lengths = match p {
            '*' => lengths.first().map_or(vec![], |&shortest| (shortest..=text.len()).collect()),
            _ => lengths.into_iter().filter(fits).map(|i| i + 1).collect(),
        };
    }
    lengths.contains(&text.len())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Settings that want these events of every builder.
    pub fn settings(events: &str) -> Settings {
        Settings {
            events: events.split(' ').filter_map(Events::named).fold(Events(0), Events::with),
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
        let builder = |(name, id): (&&str, _)| Builder { id, name: name.to_string(), ..Builder::default() };
        status.set_builders(names.iter().zip(1..).map(builder).collect());
        let settings = settings(events);
        status.targets.push(Target { name: "#c".into(), settings, muted_until: 0 });
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
        assert_eq!(s.apply(build(1, 1, None), 0).unwrap().kind, Kind::Started);
        assert!(s.apply(build(1, 1, None), 0).is_none());
        assert_eq!(s.apply(build(1, 1, Some(Success)), 0).unwrap().kind, Kind::Finished);
        assert!(s.apply(build(1, 1, Some(Success)), 0).is_none());
        assert!(s.apply(build(1, 1, None), 0).is_none(), "a late start reopens nothing");
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
        assert_eq!(s.builder("b").unwrap().last.as_ref().unwrap().number, 6);
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
                        n if n.contains("To") => both.is_some() && n == format!("{}To{}", was.word(), capital(now)),
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
        s.apply(build(4, 4, None), 0);
        s.watches.push(Watch { target: "#c".into(), id: 4, request: false, mask: String::new() });
        s.watches.push(Watch { target: "joe".into(), id: 4, request: false, mask: String::new() });
        assert_eq!(s.apply(build(4, 4, Some(Success)), 0).unwrap().targets, ["#c", "joe"]);
        assert!(s.watches.is_empty());
        s.apply(build(41, 41, Some(Success)), 0);
        let ended = |target: &str| Watch { target: target.into(), id: 41, request: false, mask: String::new() };
        assert_eq!(s.watch(ended("joe"), 0).unwrap().targets, ["joe"], "ended before anyone watched");
        s.targets[0].settings.tags.clear();
        assert!(s.watch(ended("#c"), 0).is_none(), "#c has heard of it anyway");
        s.watches.extend([ended("joe"), ended("#c")]);
        let late = s.ended(&build(41, 41, Some(Success)), 0).unwrap();
        assert_eq!(late.targets, ["joe"], "watched, but it is not the last build any more");
        assert!(s.watches.is_empty());
        s.targets[0].settings.tags.clear();
        s.targets[0].muted_until = 50;
        assert!(s.apply(build(5, 5, Some(Success)), 49).is_none());
        assert!(s.apply(build(6, 6, Some(Success)), 50).is_some());
    }

    #[test]
    fn a_worker_is_missing_by_the_masters_word_and_back_once() {
        let mut s = status(&["b"], "worker");
        let worker = |online, missing| Worker { name: "w".into(), online, missing, ..Worker::default() };
        assert!(s.apply_worker(1, Worker { builders: vec![1], ..worker(true, false) }, 0).is_none());
        assert!(s.apply_worker(1, worker(false, false), 0).is_none());
        let news = s.apply_worker(1, worker(false, true), 0).unwrap();
        assert_eq!(news.kind, Kind::WorkerMissing);
        assert!(s.apply_worker(1, worker(false, true), 0).is_none());
        assert_eq!(s.apply_worker(1, worker(true, false), 0).unwrap().kind, Kind::WorkerBack);
        assert!(s.apply_worker(1, worker(true, false), 0).is_none());
        assert_eq!(s.workers_of(1).count(), 1, "a report without builders keeps them");
    }

    #[test]
    fn estimates_are_the_median_of_successful_builds() {
        let mut s = status(&["b"], "finished");
        for (n, seconds) in [(1, 10.0), (2, 500.0), (3, 30.0)] {
            let end = Some(1000.0 + seconds);
            s.apply(Build { complete_at: end, ..build(n, n, Some(Success)) }, 0);
        }
        s.apply(build(4, 4, Some(Failure)), 0);
        assert_eq!(s.builder("b").unwrap().typical(), Some(30));
    }

    #[test]
    fn globs() {
        for (pattern, text) in [("*", ""), ("a*c", "abbc"), ("a?c", "a\u{e9}c"), ("*a*b*", "xaxbx"), ("", "")] {
            assert!(glob(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [("a*c", "abcd"), ("?", ""), ("", "x"), ("a", "A"), ("*ab", "aab ")] {
            assert!(!glob(pattern, text), "{pattern} {text}");
        }
    }
}
