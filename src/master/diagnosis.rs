//! Why a build went wrong: its failing steps, and the last lines of the first one's log. Of a log
//! only its end is asked for, however long it is.

use super::client::{Client, Error, ErrorKind};
use super::resources::Build;
use crate::outcome::Outcome;
use crate::sanitize::{cut, one_line, strip_ansi};
use serde::Deserialize;

/// Lines at the end of a log that are looked at; and if these are too much, so many.
const LINES: usize = 200;
const FEW_LINES: usize = 10;
/// Lines that are shown, and characters of each.
const SHOWN: usize = 3;
const WIDTH: usize = 300;
/// Steps of one build, and logs of one step.
const STEPS: usize = 20;
const LOGS: usize = 20;

/// Which build.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    pub builder_id: u64,
    pub builder: String,
    /// The branch, where it is worth a word.
    pub branch: Option<String>,
    pub build: Which,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Which {
    Number(u64),
    /// The last one that went wrong, which is not known.
    LastBad,
    Known(Box<Build>),
}

/// What is known of a build that went wrong.
#[derive(Clone, Debug)]
pub struct Diagnosis {
    pub builder: String,
    pub branch: Option<String>,
    /// The number that was asked for.
    pub number: Option<u64>,
    /// Nothing if there is no such build.
    pub build: Option<Build>,
    pub steps: Vec<Step>,
    pub log: Option<StepLog>,
}

/// A step, with the fields of `/api/v2/steps`.
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    #[serde(rename = "stepid")]
    id: u64,
    pub number: u64,
    pub name: String,
    #[serde(default)]
    results: Option<u64>,
    #[serde(default)]
    pub state_string: String,
}

impl Step {
    fn outcome(&self) -> Option<Outcome> {
        self.results.map(Outcome::from_number)
    }
}

/// The log of the first failing step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepLog {
    /// Its name in links.
    pub slug: String,
    pub excerpt: Excerpt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Excerpt {
    /// The last lines that say something; none where there are no such.
    Lines(Vec<String>),
    NotText,
    /// The master has deleted it.
    Gone,
    /// Its last lines are larger than any answer that we take.
    TooLong,
}

/// A log, with the fields of `/api/v2/logs`.
#[derive(Debug, Deserialize)]
struct Log {
    #[serde(rename = "logid")]
    id: u64,
    name: String,
    #[serde(default)]
    slug: String,
    /// `s`: lines with a mark in front of each; `t`: text; `h`: HTML; `d`: deleted.
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    num_lines: usize,
}

#[derive(Debug, Deserialize)]
struct Chunk {
    content: String,
}

/// Finds out why a build went wrong, in five requests at most.
pub fn diagnose(question: &Question, client: &mut Client) -> Result<Diagnosis, Error> {
    let mut diagnosis = Diagnosis {
        builder: question.builder.clone(),
        branch: question.branch.clone(),
        number: match question.build {
            Which::Number(number) => Some(number),
            Which::LastBad | Which::Known(_) => None,
        },
        build: find_build(question, client)?,
        steps: Vec::new(),
        log: None,
    };
    if let Some(build) = &diagnosis.build {
        diagnosis.steps = bad_steps(build.id, client)?;
        if let Some(step) = diagnosis.steps.first() {
            diagnosis.log = last_lines(step, client)?;
        }
    }
    Ok(diagnosis)
}

fn find_build(question: &Question, client: &mut Client) -> Result<Option<Build>, Error> {
    let filter = match &question.build {
        Which::Known(build) => return Ok(Some(Build::clone(build))),
        Which::Number(number) => format!("number={number}"),
        Which::LastBad => "complete=true&results=2&results=4".to_owned(),
    };
    client.newest_build(question.builder_id, &filter)
}

/// The steps that went wrong, first things first: failures and exceptions, else warnings, else what
/// was cancelled.
pub fn bad_steps(build: u64, client: &mut Client) -> Result<Vec<Step>, Error> {
    let fields = "field=stepid&field=number&field=name&field=results&field=state_string";
    let filter = "results=1&results=2&results=4&results=6&order=number";
    let path = format!("/builds/{build}/steps?{fields}&{filter}&limit={STEPS}");
    let steps: Vec<Step> = client.list(&path)?;
    let of = |kinds: &[Outcome]| {
        let chosen = steps.iter().filter(|step| {
            let outcome = step.outcome();
            outcome.is_some_and(|outcome| kinds.contains(&outcome))
        });
        chosen.cloned().collect::<Vec<Step>>()
    };
    let kinds = [
        &[Outcome::Failure, Outcome::Exception][..],
        &[Outcome::Warnings],
        &[Outcome::Cancelled],
    ];
    let mut groups = kinds.iter().map(|kinds| of(kinds));
    Ok(groups.find(|group| !group.is_empty()).unwrap_or_default())
}

fn last_lines(step: &Step, client: &mut Client) -> Result<Option<StepLog>, Error> {
    let fields = "field=logid&field=name&field=slug&field=type&field=num_lines";
    let path = format!("/steps/{}/logs?{fields}&limit={LOGS}", step.id);
    let logs: Vec<Log> = client.list(&path)?;
    let is_text = |log: &&Log| matches!(log.kind.as_str(), "s" | "t");
    let output = logs.iter().find(|log| log.name == "stdio");
    let text = output.filter(is_text).or(logs.iter().find(is_text));
    let Some(log) = text.or(output).or(logs.first()) else {
        return Ok(None);
    };
    let excerpt = match log.kind.as_str() {
        "s" | "t" => read_end(log, client)?,
        "d" => Excerpt::Gone,
        _ => Excerpt::NotText,
    };
    Ok(Some(StepLog {
        slug: log.slug.clone(),
        excerpt,
    }))
}

fn read_end(log: &Log, client: &mut Client) -> Result<Excerpt, Error> {
    for limit in [LINES, FEW_LINES] {
        let offset = log.num_lines.saturating_sub(limit);
        let path = format!("/logs/{}/contents?offset={offset}&limit={limit}", log.id);
        match client.list::<Chunk>(&path) {
            Err(error) if error.kind == ErrorKind::TooLarge => {}
            chunks => {
                let content: String = chunks?.into_iter().map(|chunk| chunk.content).collect();
                return Ok(Excerpt::Lines(excerpt(&content, log.kind == "s")));
            }
        }
    }
    Ok(Excerpt::TooLong)
}

/// The last lines that say something; of what a command has said those to its standard error, if
/// there are any. A line of such a log has a mark in front: `o` for its output, `e` for errors, `h`
/// for what Buildbot says itself.
fn excerpt(content: &str, has_marks: bool) -> Vec<String> {
    let lines = content.lines().filter(|line| !line.is_empty());
    let marked: Vec<(char, &str)> = lines
        .map(|line| {
            let mark = line.chars().next().filter(|_| has_marks).unwrap_or('o');
            let text = if has_marks {
                &line[mark.len_utf8()..]
            } else {
                line
            };
            (mark, text)
        })
        .collect();
    let of = |wanted: char| {
        let lines = marked.iter().rev().filter(move |(mark, _)| *mark == wanted);
        let texts = lines.map(|(_, text)| cut(&one_line(&strip_ansi(text)), WIDTH));
        let said = texts.filter(|text| !text.is_empty());
        let mut last: Vec<String> = said.take(SHOWN).collect();
        last.reverse();
        last
    };
    let errors = of('e');
    if errors.is_empty() { of('o') } else { errors }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    #[test]
    fn the_last_lines_that_say_something_are_shown() {
        let log = "hmake\no1\no2\no\u{1b}[31m3\u{1b}[0m \u{2}\no   \nhexit code 2\n";
        assert_eq!(excerpt(log, true), ["1", "2", "3"]);
        let with_errors = "ofine\neno such file\nofine\n";
        assert_eq!(excerpt(with_errors, true), ["no such file"]);
        assert_eq!(excerpt("one\n\n\u{e9}two\n", false), ["one", "\u{e9}two"]);
        assert_eq!(excerpt("h", true), [""; 0]);
        let long = "x".repeat(5000);
        assert_eq!(excerpt(&long, false)[0].chars().count(), WIDTH + 1);
    }

    #[test]
    fn fuzz_excerpt() {
        fuzz(&[b"o\x1b[1mx\ne\xc3\xa9\n\nh"], |bytes, random| {
            let text = String::from_utf8_lossy(bytes);
            let lines = excerpt(&text, random.below(2) == 0);
            assert!(lines.len() <= SHOWN);
            for line in lines {
                assert!(!line.contains(crate::sanitize::is_forbidden), "{line:?}");
            }
        });
    }
}
