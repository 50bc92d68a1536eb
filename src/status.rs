//! What the bot knows of the master, and what of it is news to whom.
//!
//! Pure values behind one mutex: the poller writes, the command handler reads. REST pages, the
//! event stream and look-ups on demand all come in through [`Status::apply`], which knows what was
//! seen before, so each source may be late, doubled or lossy.

use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A state text longer than this is cut: 10,000 builders must fit into memory.
const STATE_TEXT: usize = 300;
/// Durations of successful builds that an estimate looks at.
const SAMPLES: usize = 5;
/// Completed builds remembered for each builder: enough for builds that end out of order.
const HISTORY: usize = 6;

/// How a build ended (`buildbot.process.results`).
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
    /// All outcomes, in the order of the numbers that the master gives them.
    pub const ALL: [Outcome; 7] = [Success, Warnings, Failure, Skipped, Exception, Retry, Cancelled];

    /// The word in replies and announcements (contract).
    pub fn word(self) -> &'static str {
        ["success", "warnings", "failure", "skipped", "exception", "retry", "cancelled"][self as usize]
    }

    /// Place in Buildbot's order of severity; the others have none and make no transitions.
    fn severity(self) -> Option<u32> {
        [Success, Warnings, Failure, Exception].iter().position(|&o| o == self).map(|i| i as u32)
    }

    /// Success or warnings, as opposed to failure and exception.
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
    /// How it ended; an unknown number counts as an exception.
    pub fn outcome(&self) -> Option<Outcome> {
        self.results.map(|r| Outcome::ALL.get(r).copied().unwrap_or(Exception))
    }

    /// Seconds from start to end, or to `now`.
    pub fn seconds(&self, now: i64) -> i64 {
        (self.complete_at.map_or(now, |t| t as i64) - self.started_at as i64).max(0)
    }
}

/// A builder and what is known of its past.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    pub id: u64,
    pub name: String,
    pub tags: Vec<String>,
    /// The completed build with the highest number.
    pub last: Option<Build>,
    /// Whether the master was asked for `last` by name and had no more to say.
    pub asked: bool,
    /// Newest first, those with a severity only.
    history: Vec<Past>,
    samples: Vec<i64>,
}

#[derive(Clone, Copy, Debug)]
struct Past {
    number: u64,
    outcome: Outcome,
    /// How many in a row had this outcome; 0: more than we have seen.
    streak: u32,
}

impl Builder {
    /// Seconds that a successful build takes: the median of the last ones.
    pub fn typical(&self) -> Option<i64> {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        sorted.get(sorted.len() / 2).copied()
    }

    /// The newest completed build below `number` that counts for transitions.
    fn before(&self, number: u64) -> Option<Past> {
        self.history.iter().find(|p| p.number < number).copied()
    }

    /// Takes note of a completed build; one that is known already changes nothing.
    fn learn(&mut self, build: Build) {
        let Some(outcome) = build.outcome() else {
            return;
        };
        if outcome.severity().is_some() && !self.history.iter().any(|p| p.number == build.number) {
            let streak = match self.before(build.number) {
                Some(p) if p.outcome == outcome && p.streak > 0 => p.streak + 1,
                Some(p) if p.outcome == outcome => 0,
                None if build.number > 1 => 0,
                _ => 1,
            };
            let at = self.history.partition_point(|p| p.number > build.number);
            self.history.insert(at, Past { number: build.number, outcome, streak });
            self.history.truncate(HISTORY);
            if outcome == Success {
                self.samples.push(build.seconds(0));
                let extra = self.samples.len().saturating_sub(SAMPLES);
                self.samples.drain(..extra);
            }
        }
        if self.last.as_ref().is_none_or(|l| l.number < build.number) {
            self.last = Some(build);
        }
    }
}

/// A worker, with the builders it may work for.
#[derive(Clone, Debug, Default)]
pub struct Worker {
    pub name: String,
    pub online: bool,
    pub paused: bool,
    /// The master has reported it missing and it has not come back.
    pub missing: bool,
    /// Builder ids, sorted.
    pub builders: Vec<u64>,
}

/// A set of notification events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Events(u32);

/// The names of all events (contract): Buildbot's `notify_events`.
pub const EVENT_NAMES: [&str; 28] = [
    "started",
    "finished",
    "success",
    "warnings",
    "failure",
    "exception",
    "cancelled",
    "problem",
    "recovery",
    "worse",
    "better",
    "worker",
    "successToSuccess",
    "successToWarnings",
    "successToFailure",
    "successToException",
    "warningsToSuccess",
    "warningsToWarnings",
    "warningsToFailure",
    "warningsToException",
    "failureToSuccess",
    "failureToWarnings",
    "failureToFailure",
    "failureToException",
    "exceptionToSuccess",
    "exceptionToWarnings",
    "exceptionToFailure",
    "exceptionToException",
];
const FIRST_TRANSITION: u32 = 12;

impl Events {
    /// The set of one event, or nothing when there is no such event.
    pub fn named(name: &str) -> Option<Events> {
        EVENT_NAMES.iter().position(|n| *n == name).map(|i| Events(1 << i))
    }

    /// What `notify on` without a name turns on.
    pub fn usual() -> Events {
        Events(0b11)
    }

    /// The names in the set.
    pub fn names(self) -> Vec<&'static str> {
        (0..EVENT_NAMES.len()).filter(|i| self.0 & 1 << i != 0).map(|i| EVENT_NAMES[i]).collect()
    }

    /// Both sets together.
    pub fn with(self, other: Events) -> Events {
        Events(self.0 | other.0)
    }

    /// This set less the other.
    pub fn without(self, other: Events) -> Events {
        Events(self.0 & !other.0)
    }

    /// Whether the sets share an event.
    pub fn meets(self, other: Events) -> bool {
        self.0 & other.0 != 0
    }

    /// Every event that the end of a build is, given how the one before ended
    /// (`buildbot.reporters.words`: `notify_for_finished`).
    fn of_end(now: Outcome, before: Option<Outcome>) -> Events {
        let mut names = vec!["finished", now.word()];
        let mut set = Events::default();
        if let Some(was) = before
            && let (Some(new), Some(old)) = (now.severity(), was.severity())
        {
            set = Events(1 << (FIRST_TRANSITION + 4 * old + new));
            match () {
                () if new > old => names.push("worse"),
                () if new < old => names.push("better"),
                () => {}
            }
            match (was.is_good(), now.is_good()) {
                (true, false) => names.push("problem"),
                (false, true) => names.push("recovery"),
                _ => {}
            }
        }
        names.iter().filter_map(|n| Events::named(n)).fold(set, Events::with)
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

/// A channel or a person that hears announcements.
#[derive(Clone, Debug)]
pub struct Target {
    pub name: String,
    pub settings: Settings,
    /// No announcements before this time (seconds since the epoch).
    pub muted_until: i64,
}

/// What has happened, in the words of the event it is told for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Started,
    Finished,
    WorkerMissing,
    WorkerBack,
}

/// Something that at least one target wants to hear.
#[derive(Clone, Debug)]
pub struct News {
    pub kind: Kind,
    /// The builder's or the worker's name.
    pub name: String,
    pub build: Build,
    /// The build before, and how many in a row ended like this one (0: more than we know).
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
}

impl Watch {
    fn is_for(&self, build: &Build) -> bool {
        if self.request { build.buildrequestid == Some(self.id) } else { build.id == self.id }
    }
}

/// The shared state.
#[derive(Debug, Default)]
pub struct Status {
    /// The master's version and the base of links for people (`buildbotURL`).
    pub version: String,
    pub url: String,
    /// Sorted by name.
    builders: Vec<Builder>,
    index: HashMap<u64, usize>,
    /// By worker id.
    pub workers: BTreeMap<u64, Worker>,
    /// Builds that run, by build id.
    pub open: BTreeMap<u64, Build>,
    /// Requests that no worker has taken: request id → builder id.
    pub queued: BTreeMap<u64, u64>,
    /// Every build up to this id has been applied; nothing before the first poll.
    pub mark: Option<u64>,
    /// Builds applied ahead of the mark, from the stream.
    ahead: BTreeSet<u64>,
    /// Who hears announcements.
    pub targets: Vec<Target>,
    /// Who waits for the end of one build.
    pub watches: Vec<Watch>,
    /// When the master last answered (seconds since the epoch), and why it does not now.
    pub reached: Option<i64>,
    pub trouble: Option<String>,
}

impl Status {
    /// All builders, by name.
    pub fn builders(&self) -> &[Builder] {
        &self.builders
    }

    /// The builder of that name.
    pub fn builder(&self, name: &str) -> Option<&Builder> {
        self.builders.binary_search_by(|b| b.name.as_str().cmp(name)).ok().map(|i| &self.builders[i])
    }

    /// The builder with that id.
    pub fn builder_by_id(&self, id: u64) -> Option<&Builder> {
        self.index.get(&id).map(|&i| &self.builders[i])
    }

    /// The same, for writing.
    pub fn builder_mut(&mut self, id: u64) -> Option<&mut Builder> {
        self.index.get(&id).map(|&i| &mut self.builders[i])
    }

    /// The workers that may build for a builder.
    pub fn workers_of(&self, builder: u64) -> impl Iterator<Item = &Worker> {
        self.workers.values().filter(move |w| w.builders.binary_search(&builder).is_ok())
    }

    /// The running builds of a builder, oldest first.
    pub fn running(&self, builder: u64) -> impl Iterator<Item = &Build> {
        self.open.values().filter(move |b| b.builderid == builder)
    }

    /// Replaces the list of builders; what is known of the ones that stay is kept.
    pub fn set_builders(&mut self, list: Vec<(u64, String, Vec<String>)>) {
        let mut old: HashMap<u64, Builder> =
            std::mem::take(&mut self.builders).into_iter().map(|b| (b.id, b)).collect();
        for (id, name, tags) in list {
            let known = old.remove(&id).unwrap_or_default();
            self.builders.push(Builder { id, name, tags, ..known });
        }
        self.builders.sort_by(|a, b| a.name.cmp(&b.name));
        self.index = self.builders.iter().enumerate().map(|(i, b)| (b.id, i)).collect();
    }

    /// Whether the master should be asked for the builds before this one, so that its end can be
    /// told as a change.
    pub fn needs_past(&self, build: &Build) -> bool {
        let past = self.builder_by_id(build.builderid);
        build.complete && build.number > 1 && past.is_some_and(|b| !b.asked && b.before(build.number).is_none())
    }

    /// Takes in one build from wherever. Returns what is new about it, if anything is and someone
    /// wants to hear it. Builds should come in the order of their ids; out of order loses nothing.
    pub fn apply(&mut self, mut build: Build, now: i64) -> Option<News> {
        let cut = build.state_string.floor_char_boundary(STATE_TEXT);
        build.state_string.truncate(cut);
        let fresh = self.mark.is_some_and(|m| build.id > m) && !self.ahead.contains(&build.id);
        if fresh {
            self.ahead.insert(build.id);
            self.advance();
        }
        if !build.complete {
            // A late word of a start must not reopen a build that has ended.
            if !fresh && self.mark.is_some() && !self.open.contains_key(&build.id) {
                return None;
            }
            let known = self.open.insert(build.id, build.clone());
            if let (Some(known), Some(open)) = (known, self.open.get_mut(&build.id)) {
                open.step = known.step;
                return None;
            }
            return fresh.then(|| self.news(Kind::Started, build, now)).flatten();
        }
        let open = self.open.remove(&build.id).is_some();
        let news = if fresh || open {
            self.builder_mut(build.builderid).map(|b| b.learn(build.clone()));
            self.news(Kind::Finished, build, now)
        } else {
            self.builder_mut(build.builderid).map(|b| b.learn(build));
            None
        };
        news
    }

    /// Builds that were running when the bot last knew: their end is news.
    pub fn reopen(&mut self, ids: &[u64]) {
        self.open.extend(ids.iter().map(|&id| (id, Build { id, ..Build::default() })));
    }

    /// REST has shown every build up to `id`: nothing below is asked for again.
    pub fn caught_up(&mut self, id: u64) {
        self.mark = Some(self.mark.unwrap_or(0).max(id));
        self.advance();
    }

    /// Build ids have no gaps, so what the stream brings in order moves the mark by itself.
    fn advance(&mut self) {
        let Some(mark) = &mut self.mark else { return };
        while self.ahead.first().is_some_and(|&id| id <= *mark + 1) {
            *mark = (*mark).max(self.ahead.pop_first().unwrap_or(0));
        }
    }

    /// Takes in what is known of a worker; `missing` is the master's word on it, which only the
    /// stream has.
    pub fn apply_worker(&mut self, id: u64, seen: Worker, missing: bool, now: i64) -> Option<News> {
        let known = self.workers.entry(id).or_default();
        let was_missing = known.missing;
        let builders = match seen.builders.is_empty() {
            true => std::mem::take(&mut known.builders),
            false => seen.builders.clone(),
        };
        let missing = !seen.online && (was_missing || missing);
        let name = seen.name.clone();
        *known = Worker { missing, builders, ..seen };
        let kind = match (was_missing, missing) {
            (false, true) => Kind::WorkerMissing,
            (true, false) => Kind::WorkerBack,
            _ => return None,
        };
        let event = Events::named("worker").unwrap_or_default();
        let targets = self.targets.iter().filter(|t| t.hears(event, now));
        let targets: Vec<String> = targets.map(|t| t.name.clone()).collect();
        let news = News {
            kind,
            name,
            build: Build::default(),
            was: None,
            streak: 0,
            targets,
            blame: Vec::new(),
            revisions: Vec::new(),
        };
        (!news.targets.is_empty()).then_some(news)
    }

    /// Watches from now on. If that build has ended already, and was not told there, that is news.
    pub fn watch(&mut self, watch: Watch, now: i64) -> Option<News> {
        let mut ended = self.builders.iter().filter_map(|b| b.last.as_ref());
        let ended = ended.find(|b| watch.is_for(b)).cloned();
        let target = watch.target.clone();
        if !self.watches.contains(&watch) {
            self.watches.push(watch);
        }
        let news = self.news(Kind::Finished, ended?, now)?;
        // In front of the ones who watch come those who have heard it anyway.
        (news.targets.last() == Some(&target)).then(|| News { targets: vec![target], ..news })
    }

    fn news(&mut self, kind: Kind, build: Build, now: i64) -> Option<News> {
        let builder = self.index.get(&build.builderid).map(|&i| &self.builders[i])?;
        let was = builder.before(build.number).map(|p| p.outcome);
        let streak = builder.history.iter().find(|p| p.number == build.number);
        let events = match build.outcome() {
            Some(outcome) if kind == Kind::Finished => Events::of_end(outcome, was),
            _ => Events::named("started").unwrap_or_default(),
        };
        let wanted = self.targets.iter().filter(|t| t.hears(events, now) && t.cares_for(builder));
        let mut targets: Vec<String> = wanted.map(|t| t.name.clone()).collect();
        if kind == Kind::Finished {
            self.watches.retain(|w| {
                let over = w.is_for(&build);
                if over && !targets.contains(&w.target) {
                    targets.push(w.target.clone());
                }
                !over
            });
        }
        let news = News {
            kind,
            name: builder.name.clone(),
            was,
            streak: streak.map_or(0, |p| p.streak),
            build,
            targets,
            blame: Vec::new(),
            revisions: Vec::new(),
        };
        (!news.targets.is_empty()).then_some(news)
    }
}

impl Target {
    fn hears(&self, events: Events, now: i64) -> bool {
        self.settings.events.meets(events) && self.muted_until <= now
    }

    fn cares_for(&self, builder: &Builder) -> bool {
        let Settings { tags, builders, .. } = &self.settings;
        (tags.is_empty() || builder.tags.iter().any(|t| tags.contains(t)))
            && (builders.is_empty() || builders.iter().any(|g| glob(g, &builder.name)))
    }
}

/// Whether text matches a pattern with `*` and `?`. Time is bounded by the product of the lengths.
pub fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let (mut p, mut t) = (0, 0);
    // Where to go on after the last star: one character later each time.
    let mut retry = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, t));
        } else if pattern.get(p).is_some_and(|&c| c == '?' || c == text[t]) {
            (p, t) = (p + 1, t + 1);
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            (p, t) = (after_star, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
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
        let list = names.iter().zip(1..).map(|(n, i)| (i, n.to_string(), vec![])).collect();
        status.set_builders(list);
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
        for name in EVENT_NAMES {
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
        s.watches.push(Watch { target: "#c".into(), id: 4, request: false });
        s.watches.push(Watch { target: "joe".into(), id: 4, request: false });
        assert_eq!(s.apply(build(4, 4, Some(Success)), 0).unwrap().targets, ["#c", "joe"]);
        assert!(s.watches.is_empty());
        s.targets[0].settings.tags.clear();
        s.targets[0].muted_until = 50;
        assert!(s.apply(build(5, 5, Some(Success)), 49).is_none());
        assert!(s.apply(build(6, 6, Some(Success)), 50).is_some());
    }

    #[test]
    fn a_worker_is_missing_by_the_masters_word_and_back_once() {
        let mut s = status(&["b"], "worker");
        let worker = |online| Worker { name: "w".into(), online, ..Worker::default() };
        assert!(s.apply_worker(1, Worker { builders: vec![1], ..worker(true) }, false, 0).is_none());
        assert!(s.apply_worker(1, worker(false), false, 0).is_none());
        let news = s.apply_worker(1, worker(false), true, 0).unwrap();
        assert_eq!(news.kind, Kind::WorkerMissing);
        assert!(s.apply_worker(1, worker(false), true, 0).is_none());
        assert_eq!(s.apply_worker(1, worker(true), false, 0).unwrap().kind, Kind::WorkerBack);
        assert!(s.apply_worker(1, worker(true), false, 0).is_none());
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
