//! Compares what the channel heard and what passed the link with what the master did.

use super::link::{Announcement, Traffic};
use super::{BUILDERS, Run};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// So long before its death an IRC server may have answered the bot and not yet told the listener.
const IN_FLIGHT: Duration = Duration::from_secs(3);

/// A builder and the number of a build.
pub type BuildLabel = (&'static str, i64);

type Announcements<'a> = BTreeMap<BuildLabel, Vec<&'a Announcement>>;

/// The builds of these that the channel has not heard of, whatever nick the bot had; and how many builds its summaries
/// have only counted.
pub fn missing(
    heard: &[String],
    completed: &BTreeSet<BuildLabel>,
) -> (BTreeSet<BuildLabel>, usize) {
    let mut missing = completed.clone();
    let mut counted = 0;
    for line in heard.iter().filter(|line| line.starts_with("<bot")) {
        for label in labels(line) {
            missing.remove(&label);
        }
        counted += omitted(line);
    }
    (missing, counted)
}

/// The violations, and a summary.
pub fn verify(run: &Run, completed: &BTreeSet<BuildLabel>) -> (Vec<String>, String) {
    let (missing, counted) = missing(&run.heard(), completed);
    run.irc_link.with(|traffic| {
        let verification = Verification {
            run,
            traffic,
            announced: announced(traffic),
        };
        let mut violations = run.violations.lock().unwrap().clone();
        violations.extend(verification.doubled());
        violations.extend(verification.never_ended(completed));
        let forced = completed.iter().filter(|(name, _)| *name == "last").count();
        if forced > 1 {
            violations.push("what was played back has forced a build".to_owned());
        }
        let lost: Vec<BuildLabel> = missing
            .iter()
            .copied()
            .filter(|label| !verification.died_with_server(label))
            .collect();
        if lost.len() > counted {
            violations.extend(lost.iter().map(|label| verification.report("lost", label)));
        }
        violations.extend(verification.overcounted(lost.len(), counted));
        let summary = format!(
            "{} builds in {} lines on {} connections; {} repeated, {counted} only counted, {} lost with an IRC server; \
             {} violations",
            completed.len(),
            traffic.announcements.len(),
            traffic.ends.len(),
            verification.repeats(),
            missing.len() - lost.len(),
            violations.len()
        );
        (violations, summary)
    })
}

/// The announcements of each build.
fn announced(traffic: &Traffic) -> Announcements<'_> {
    let mut announced = Announcements::new();
    for announcement in traffic.announcements.iter().filter(|one| !one.is_refused) {
        for label in labels(&announcement.text) {
            announced.entry(label).or_default().push(announcement);
        }
    }
    announced
}

struct Verification<'a> {
    run: &'a Run,
    traffic: &'a Traffic,
    announced: Announcements<'a>,
}

impl Verification<'_> {
    /// The bot cannot have known for certain that this announcement had arrived.
    fn is_uncertain(&self, announcement: &Announcement) -> bool {
        let Some(end) = self.traffic.ends[announcement.connection] else {
            return false;
        };
        let confirmed = announcement.confirmed;
        confirmed.is_none_or(|at| at > end.doubtful_since)
    }

    /// Builds that were announced again although the first time was certain, or on the same connection.
    fn doubled(&self) -> Vec<String> {
        let is_doubled = |pair: &[&Announcement]| {
            let is_same = pair[0].connection == pair[1].connection;
            !pair[0].is_beside_refused && (is_same || !self.is_uncertain(pair[0]))
        };
        let mut violations = Vec::new();
        for (label, announcements) in &self.announced {
            if announcements.windows(2).any(is_doubled) {
                violations.push(self.report("doubled", label));
            }
        }
        violations
    }

    fn never_ended(&self, completed: &BTreeSet<BuildLabel>) -> Vec<String> {
        let labels = self.announced.keys();
        let unknown = labels.filter(|label| !completed.contains(label));
        unknown
            .map(|label| self.report("never ended", label))
            .collect()
    }

    fn repeats(&self) -> usize {
        let counts = self.announced.values().map(|lines| lines.len() - 1);
        counts.sum()
    }

    /// An IRC server confirmed it, and died before it told the listener.
    fn died_with_server(&self, label: &BuildLabel) -> bool {
        let deaths = self.run.irc_deaths.lock().unwrap();
        let died_after = |at: Instant| {
            let mut deaths = deaths.iter();
            deaths.any(|&death| at < death && at + IN_FLIGHT > death)
        };
        let mut announcements = self.announced.get(label).into_iter().flatten();
        announcements.any(|one| one.confirmed.is_some() && died_after(one.at))
    }

    /// Summaries may count the lost builds, those whose announcements were all uncertain, and what an uncertain summary
    /// has counted before.
    fn overcounted(&self, lost: usize, counted: usize) -> Option<String> {
        let mut announced = self.announced.values();
        let all_uncertain = announced
            .by_ref()
            .filter(|lines| lines.iter().all(|one| self.is_uncertain(one)))
            .count();
        let mut again = 0;
        for announcement in &self.traffic.announcements {
            let is_refused = announcement.is_refused || announcement.is_beside_refused;
            if is_refused || self.is_uncertain(announcement) {
                again += omitted(&announcement.text);
            }
        }
        let is_wrong = counted > lost + all_uncertain + again;
        is_wrong.then(|| {
            format!("summaries have counted {counted} builds, but {lost} were not announced")
        })
    }

    /// A violation with the announcements of the build.
    fn report(&self, violation: &str, label: &BuildLabel) -> String {
        let (builder, number) = label;
        let mut text = format!("{violation}: {builder} #{number}");
        for one in self.announced.get(label).into_iter().flatten() {
            let at = self.run.since_start(one.at);
            let confirmed = one.confirmed.map(|at| self.run.since_start(at));
            let connection = one.connection;
            let end = self.traffic.ends[connection].map_or("stands", |end| end.cause);
            text += &format!(
                "\n    {at} on connection {connection} ({end}), confirmed {confirmed:?}: {:.99}",
                one.text
            );
        }
        text
    }
}

/// The builds that a line names: `NAME #NUMBER`, wherever it stands, and in a summary `, #NUMBER` for more of that name.
fn labels(text: &str) -> BTreeSet<BuildLabel> {
    let mut found = BTreeSet::new();
    for name in BUILDERS {
        for (at, sign) in text.match_indices(&format!("{name} #")) {
            for item in text[at + sign.len()..].split(", #") {
                let end = item.find(|c: char| !c.is_ascii_digit());
                let digits = &item[..end.unwrap_or(item.len())];
                if let Ok(number) = digits.parse() {
                    found.insert((name, number));
                }
                // What is not all digits is the last of that name.
                if end.is_some() {
                    break;
                }
            }
        }
    }
    found
}

/// The number in `and N more`, behind which a summary says how things stand, and has a link.
fn omitted(text: &str) -> usize {
    let number = || {
        let (before, _) = text.rsplit_once(" more")?;
        before.rsplit_once(" and ")?.1.parse().ok()
    };
    number().unwrap_or(0)
}
