//! A builder, and what its builds have taught us: how they compare with the ones before them on the
//! same branch. Pure values.

use super::resources::{Build, SOURCE_TEXT, SourceStamp, null_is_default};
use crate::outcome::Outcome;
use crate::sanitize;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Completed builds remembered for each builder: enough for an estimate, and for builds that end
/// out of order.
pub(super) const HISTORY: usize = 10;
/// Branches of a builder of which the last completed build is remembered beyond that.
pub(super) const BRANCHES: usize = 30;
/// Codebases of a builder whose branches are remembered.
const CODEBASES: usize = 20;

/// What is remembered of a completed build that says something of the code.
#[derive(Clone, Debug)]
pub(super) struct PastBuild {
    outcome: Outcome,
    /// Where it is known.
    branch: Option<String>,
    /// How many in a row ended like this one; 0: more than is known.
    streak: u32,
    seconds: i64,
}

/// A builder, with the fields of `/api/v2/builders`, and what its builds have taught us.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Builder {
    #[serde(rename = "builderid")]
    pub id: u64,
    pub name: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub tags: Vec<String>,
    #[serde(rename = "masterids", default, deserialize_with = "null_is_default")]
    pub(super) master_ids: Vec<u64>,
    /// The completed build with the highest number.
    #[serde(skip)]
    pub last: Option<Build>,
    /// The same of those that ended with a failure or an exception.
    #[serde(skip)]
    pub last_bad: Option<Build>,
    /// The master was asked for the last builds of this builder.
    #[serde(skip)]
    pub lookup_done: bool,
    /// By number.
    #[serde(skip)]
    pub(super) history: BTreeMap<u64, PastBuild>,
    /// There is no verdict of a build with a lower number than this.
    #[serde(skip)]
    pub(super) first_number: u64,
    /// The master was asked for the verdicts behind us and their branches.
    #[serde(skip)]
    pub(super) history_asked: bool,
    /// There were more branches than are remembered.
    #[serde(skip)]
    pub(super) has_forgotten_branches: bool,
    /// The last branches of each codebase by the number of the build, where it has several.
    #[serde(skip)]
    pub(super) codebases: BTreeMap<String, BTreeMap<u64, String>>,
}

impl Builder {
    /// One that builds invent, like those of `buildbot_travis`: it has no workers of its own.
    pub fn is_virtual(&self) -> bool {
        self.tags.iter().any(|tag| tag == "_virtual_")
    }

    /// Whether a running master has it in its configuration.
    pub(super) fn is_configured(&self) -> bool {
        !self.master_ids.is_empty() || self.is_virtual()
    }

    /// Keeps what is known, where the list of builders was read anew.
    pub(super) fn keep(&mut self, known: Builder) {
        self.last = known.last;
        self.last_bad = known.last_bad;
        self.lookup_done = known.lookup_done;
        self.history = known.history;
        self.first_number = known.first_number;
        self.history_asked = known.history_asked;
        self.has_forgotten_branches = known.has_forgotten_branches;
        self.codebases = known.codebases;
    }

    /// Forgets all builds.
    pub(super) fn start_over(&mut self) {
        self.last = None;
        self.last_bad = None;
        self.lookup_done = false;
        self.history.clear();
        self.first_number = 0;
        self.history_asked = false;
        self.has_forgotten_branches = false;
        self.codebases.clear();
    }

    /// Seconds that a successful build takes: the median of the last ones.
    pub fn typical_seconds(&self) -> Option<i64> {
        let good = self.history.values();
        let good = good.filter(|past| past.outcome == Outcome::Success);
        let mut seconds: Vec<i64> = good.map(|past| past.seconds).collect();
        seconds.sort_unstable();
        seconds.get(seconds.len() / 2).copied()
    }

    /// The newest known build below `number`, and of the same branch, that says something of the
    /// code.
    pub(super) fn previous(&self, number: u64, branch: Option<&str>) -> Option<&PastBuild> {
        let mut below = self.history.range(..number).rev();
        let same = |past: &&PastBuild| self.is_same_branch(past.branch.as_deref(), branch);
        below.find_map(|(_, past)| Some(past).filter(same))
    }

    /// Whether two builds are compared with each other. One without a branch belongs to the branch
    /// that most of the last builds have, and of one whose branch is not known the best is assumed.
    fn is_same_branch(&self, one: Option<&str>, other: Option<&str>) -> bool {
        let (Some(one), Some(other)) = (one, other) else {
            return true;
        };
        let usual = || self.usual_branch().unwrap_or("");
        let full = |branch| {
            if str::is_empty(branch) {
                usual()
            } else {
                branch
            }
        };
        one == other || full(one) == full(other)
    }

    /// The branch that most of the last builds have.
    fn usual_branch(&self) -> Option<&str> {
        most_common(self.recent_branches())
    }

    fn recent_branches(&self) -> impl Iterator<Item = &str> {
        let recent = self.history.values().rev().take(HISTORY);
        let branches = recent.filter_map(|past| past.branch.as_deref());
        branches.filter(|branch| !branch.is_empty())
    }

    /// Whether the last builds, this one among them, were not all of one branch.
    pub(super) fn has_several_branches(&self, branch: &str) -> bool {
        let this = Some(branch).filter(|branch| !branch.is_empty());
        let branches: BTreeSet<&str> = self.recent_branches().chain(this).collect();
        branches.len() > 1
    }

    /// The branch to name with a build; nothing where all are of one.
    pub fn branch_to_name<'a>(&self, build: &'a Build) -> Option<&'a str> {
        let branch = build.branch.as_deref()?;
        let is_needed = !branch.is_empty() && self.has_several_branches(branch);
        is_needed.then_some(branch)
    }

    /// Whether the verdicts below a number must be asked for, so that a build of this branch can be
    /// compared with the one before it.
    pub(super) fn needs_history(&self, number: u64, branch: Option<&str>) -> bool {
        if number <= self.first_number.max(1) {
            return false;
        }
        let mut below = self.history.range(..number).rev().peekable();
        if below.peek().is_none() {
            return true;
        }
        let Some(branch) = branch else {
            return false;
        };
        // A build between, of which the branch is not known, may be the one.
        let is_known = |past: &PastBuild| past.branch.is_some();
        let same = |past: &PastBuild| self.is_same_branch(past.branch.as_deref(), Some(branch));
        match below.find(|(_, past)| same(past)) {
            Some((_, past)) if is_known(past) => false,
            Some(_) => !self.history_asked,
            // Of a branch that was built since, older builds were forgotten, and perhaps of others.
            None => {
                let mut above = self.history.range(number..);
                let is_forgotten = above.any(|(_, past)| is_known(past) && same(past));
                !self.history_asked || is_forgotten || self.has_forgotten_branches
            }
        }
    }

    /// Takes in a completed build. Of one that is known already, its branch may be new.
    pub(super) fn learn(&mut self, build: &Build, outcome: Outcome) {
        for known in [&mut self.last, &mut self.last_bad].into_iter().flatten() {
            if known.number == build.number && known.branch.is_none() {
                known.branch.clone_from(&build.branch);
            }
        }
        match &mut self.last {
            Some(last) if last.number >= build.number => {}
            _ => self.last = Some(build.clone()),
        }
        if !outcome.is_verdict() {
            return;
        }
        let is_later = |bad: &Build| build.number > bad.number;
        if !outcome.is_good() && self.last_bad.as_ref().is_none_or(is_later) {
            self.last_bad = Some(build.clone());
        }
        if let Some(known) = self.history.get_mut(&build.number) {
            if known.branch.is_none() && build.branch.is_some() {
                known.branch.clone_from(&build.branch);
                self.count_streaks();
            }
            return;
        }
        let past = PastBuild {
            outcome,
            branch: build.branch.clone(),
            streak: self.streak(build.number, build.branch.as_deref(), outcome),
            seconds: build.seconds(0),
        };
        // Builds that ran beside this one were counted without it.
        let is_beside: Vec<u64> = self
            .history
            .range(build.number..)
            .filter(|(_, later)| {
                self.is_same_branch(later.branch.as_deref(), past.branch.as_deref())
            })
            .map(|(number, _)| *number)
            .collect();
        for number in is_beside {
            if let Some(later) = self.history.get_mut(&number) {
                later.streak = 0;
            }
        }
        self.history.insert(build.number, past);
    }

    /// How many in a row end like this one; 0: more than is known.
    fn streak(&self, number: u64, branch: Option<&str>, outcome: Outcome) -> u32 {
        match self.previous(number, branch) {
            Some(past) if past.outcome != outcome => 1,
            Some(past) if past.streak == 0 => 0,
            Some(past) => past.streak + 1,
            None => {
                let is_first = number <= self.first_number.max(1);
                // A branch that no build below has is new, if all that is below is known.
                let is_new_branch =
                    self.history_asked && self.history.range(..number).next().is_some();
                u32::from(is_first || is_new_branch)
            }
        }
    }

    /// Counts anew, since a branch or an older build has become known.
    pub(super) fn count_streaks(&mut self) {
        for number in self.history.keys().copied().collect::<Vec<_>>() {
            let past = &self.history[&number];
            let branch = past.branch.as_deref();
            // What was before the first one is forgotten, but counted.
            if self.previous(number, branch).is_none() {
                continue;
            }
            let streak = self.streak(number, branch, past.outcome);
            if let Some(past) = self.history.get_mut(&number) {
                past.streak = streak;
            }
        }
    }

    /// A build, as it compares with the ones before it.
    pub(super) fn event_of(&self, build: Build) -> BuildEvent {
        let branch = build.branch.as_deref();
        let past = self.history.get(&build.number);
        BuildEvent {
            builder: self.name.clone(),
            tags: self.tags.clone(),
            has_several_branches: self.has_several_branches(branch.unwrap_or("")),
            previous: self.previous(build.number, branch).map(|past| past.outcome),
            streak: past.map_or(0, |past| past.streak),
            build,
            ..BuildEvent::default()
        }
    }

    /// The last builds are kept, and of the last branches the last one each.
    pub(super) fn trim_history(&mut self) {
        if self.history.len() <= HISTORY {
            return;
        }
        let mut kept = BTreeSet::new();
        let mut branches = BTreeSet::new();
        for (place, (number, past)) in self.history.iter().rev().enumerate() {
            let branch = past.branch.as_ref();
            let is_last = branch.is_some_and(|branch| !branches.contains(branch));
            let is_remembered = is_last && branches.len() < BRANCHES;
            self.has_forgotten_branches |= is_last && !is_remembered;
            branches.extend(branch.filter(|_| is_remembered));
            if place < HISTORY || is_remembered {
                kept.insert(*number);
            }
        }
        self.history.retain(|number, _| kept.contains(number));
    }

    /// The branch of what is built of several codebases: of the one that is not at its usual
    /// branch, else of the first by name.
    pub(super) fn branch_of(&self, sources: &[SourceStamp]) -> Option<String> {
        // The master lists them in any order.
        let first = sources.iter().min_by_key(|source| &source.codebase)?;
        let is_unusual = |source: &&SourceStamp| {
            let usual = self.codebases.get(&source.codebase);
            let usual = usual.and_then(|last| most_common(last.values().map(String::as_str)));
            // Without any builds before, the other codebases say what is usual.
            let others = sources.iter().filter(|other| other.branch != source.branch);
            usual.map_or(others.count() > 1, |usual| usual != source.branch)
        };
        let unusual = sources.iter().filter(is_unusual);
        let chosen = unusual
            .min_by_key(|source| &source.codebase)
            .unwrap_or(first);
        Some(chosen.branch.clone())
    }

    /// Sets the branch of a build by what it builds, if that is known.
    pub(super) fn resolve_branch(&self, build: &mut Build) {
        let branch = build.branch.take();
        let branch = branch.or_else(|| self.branch_of(&build.sources));
        build.branch = branch.map(|branch| sanitize::cut(&branch, SOURCE_TEXT));
    }

    /// The same of a build that has ended, whose sources say what is usual for the ones that come.
    pub(super) fn settle_branch(&mut self, build: &mut Build) {
        self.resolve_branch(build);
        self.note_sources(build);
        build.sources.clear();
    }

    fn note_sources(&mut self, build: &Build) {
        if build.sources.len() < 2 {
            return;
        }
        for source in build.sources.iter().take(CODEBASES) {
            let known =
                self.codebases.len() < CODEBASES || self.codebases.contains_key(&source.codebase);
            if !known {
                continue;
            }
            let last = self.codebases.entry(source.codebase.clone()).or_default();
            last.insert(build.number, source.branch.clone());
            if last.len() > HISTORY {
                last.pop_first();
            }
        }
    }
}

/// What occurs most often; of equals the first.
fn most_common<'a>(words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let words: Vec<&str> = words.collect();
    let count = |word: &str| words.iter().filter(|other| **other == word).count();
    words.iter().rev().copied().max_by_key(|word| count(word))
}

/// The start or the end of a build.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildEvent {
    pub builder: String,
    pub tags: Vec<String>,
    pub build: Build,
    /// The builder's last builds were not all of one branch: the branch is worth a word.
    pub has_several_branches: bool,
    /// How the previous build that says something of the code ended.
    pub previous: Option<Outcome>,
    /// How many in a row ended like this one; 0: more than is known.
    pub streak: u32,
    /// False: it was known before, and is of interest only to who watches its request.
    pub is_new: bool,
    /// Nobody saw it start.
    pub start_was_missed: bool,
    /// The last build of its request: nothing of it runs, and it will not be retried.
    pub ends_request: bool,
    /// What it was started together with, where the stream has told.
    pub buildset: Option<BuildsetSize>,
}

/// A buildset, and how many of its builders the stream has told of so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildsetSize {
    pub id: u64,
    pub known_builders: usize,
}

impl BuildEvent {
    /// The branch to name with it; nothing where all builds are of one.
    pub fn branch_to_name(&self) -> Option<&str> {
        let branch = self.build.branch.as_deref()?;
        let is_needed = self.has_several_branches && !branch.is_empty();
        is_needed.then_some(branch)
    }
}
