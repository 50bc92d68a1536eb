//! The sentences: what the bot says of builds, workers and jobs. Pure.

pub mod changes;

use crate::config::{Nicks, TargetSettings};
use crate::master::builder::{BuildEvent, Builder};
use crate::master::details::Details;
use crate::master::diagnosis::{Diagnosis, Excerpt, Step};
use crate::master::jobs::{Forced, ForcedState, JobResult, QueueReason, Stopped};
use crate::master::model::{Model, RequestEnd};
use crate::master::resources::{Build, Change, Worker};
use crate::names::is_channel;
use crate::outcome::Outcome;
use crate::sanitize::sanitize;

/// Names of a blame list, or revisions, in a line.
const NAMES: usize = 6;
/// State texts that say nothing, or that Buildbot has left from before.
const EMPTY_REASONS: [&str; 8] = [
    "",
    "finished",
    "build successful",
    "building",
    "starting",
    "preparing worker",
    "pinging worker",
    "acquiring locks",
];

/// A span of time in its two largest units: `59s`, `2m 5s`, `3h 4m`, `2d 1h`.
pub fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (large, large_unit, small, small_unit) = match seconds {
        86_400.. => (seconds / 86_400, "d", seconds / 3600 % 24, "h"),
        3600.. => (seconds / 3600, "h", seconds / 60 % 60, "m"),
        60.. => (seconds / 60, "m", seconds % 60, "s"),
        _ => return format!("{seconds}s"),
    };
    if small == 0 {
        format!("{large}{large_unit}")
    } else {
        format!("{large}{large_unit} {small}{small_unit}")
    }
}

/// `1 build`, `2 builds`.
pub fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// The result word, in colour where the target wants colours. Two digits always, so that a digit
/// that follows is no part of the colour.
fn result_word(outcome: Outcome, with_color: bool) -> String {
    let word = outcome.word();
    if !with_color {
        return word.to_owned();
    }
    let color = match outcome {
        Outcome::Success => "03",
        Outcome::Warnings => "07",
        Outcome::Failure => "04",
        Outcome::Skipped => "14",
        Outcome::Exception => "06",
        Outcome::Retry => "02",
        Outcome::Cancelled => "13",
    };
    format!("\u{3}{color}{word}\u{f}")
}

/// The link to a build for people: base, `#/builders/ID/builds/NUMBER`.
pub fn build_url(base: &str, build: &Build) -> String {
    let builder = build.builder_id;
    let number = build.number;
    format!("{base}#/builders/{builder}/builds/{number}")
}

/// The master's reason behind a colon, less the result that it repeats in front and behind, and with
/// the steps that it does not name; nothing for success.
fn reason(build: &Build, steps: &[String]) -> String {
    let Some(outcome) = build.outcome() else {
        return String::new();
    };
    if outcome == Outcome::Success {
        return String::new();
    }
    // Each step that went wrong is followed by the result.
    let repeated = format!(" ({})", outcome.word());
    let text = sanitize(&build.state_string).replace(&repeated, "");
    let text = text
        .strip_prefix(outcome.word())
        .map_or(text.as_str(), str::trim_start);
    if outcome == Outcome::Cancelled
        && let Some(stop_reason) = in_parentheses(text)
    {
        return stopped_by(stop_reason);
    }
    if EMPTY_REASONS.contains(&text) {
        return String::new();
    }
    let is_named = steps.iter().any(|step| names_word(text, step));
    match (text.strip_prefix("failed "), steps) {
        (Some(command), [step]) if !is_named => {
            format!(": failed in {} ({command})", sanitize(step))
        }
        // Their commands would tell no more.
        (Some(_), [_, _, ..]) if !is_named => format!(": failed in {}", some_of(steps, false)),
        _ => format!(": {text}"),
    }
}

/// Whether a word, or several, stand in a text, and not only as a part of others.
fn names_word(text: &str, word: &str) -> bool {
    let is_inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !word.is_empty() && !is_inside(before) && !is_inside(after)
    })
}

/// The text in the first parentheses, which may hold others, and smileys.
fn in_parentheses(text: &str) -> Option<&str> {
    let inner = text.strip_prefix('(')?;
    let mut depth = 1;
    let closing = inner.match_indices(['(', ')']).find(|(_, sign)| {
        depth += if *sign == "(" { 1 } else { -1 };
        depth == 0
    });
    let (mut end, _) = closing?;
    // What is closed behind it and was not opened there belongs to it.
    let count = |text: &str, sign| text.matches(sign).count();
    while count(&inner[end + 1..], ')') > count(&inner[end + 1..], '(')
        && let Some(next) = inner[end + 1..].find(')')
    {
        end += 1 + next;
    }
    Some(&inner[..end])
}

/// Who has stopped a build and why. Our own reasons are signed: `oops (ann in #app)`.
fn stopped_by(reason: &str) -> String {
    if reason.is_empty() {
        return String::new();
    }
    let signed = reason
        .strip_suffix(')')
        .and_then(|text| text.rsplit_once(" ("));
    let Some((why, signature)) = signed else {
        return format!(": {reason}");
    };
    let who = signature.split(", account ").next().unwrap_or(signature);
    let has_account = who != signature;
    let (who, place) = who.split_once(" in ").unwrap_or((who, ""));
    let is_ours = has_account || is_channel(place) || who == "the command line";
    if is_ours {
        format!(" by {who}: {why}")
    } else {
        // Parentheses of others say something else.
        format!(": {reason}")
    }
}

/// What changed: `fixed`, `was success`, `3rd in a row`; nothing for one success after another,
/// and only of results that say something of the code.
fn change(outcome: Outcome, previous: Option<Outcome>, streak: u32) -> String {
    let Some(previous) = previous.filter(|_| outcome.is_verdict()) else {
        return String::new();
    };
    if outcome == Outcome::Success && previous == Outcome::Success {
        return String::new();
    }
    if outcome == Outcome::Success && !previous.is_good() {
        return " (fixed)".to_owned();
    }
    if previous != outcome {
        return format!(" (was {})", previous.word());
    }
    if streak == 0 {
        return " (again)".to_owned();
    }
    format!(" ({} in a row)", ordinal(streak))
}

fn ordinal(number: u32) -> String {
    let ending = match (number / 10 % 10, number % 10) {
        (1, _) => "th",
        (_, 1) => "st",
        (_, 2) => "nd",
        (_, 3) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

/// The first names of a list, and how many more there are. A list that was cut has no number.
fn some_of(names: &[String], is_partial: bool) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(NAMES)
        .map(|name| sanitize(name))
        .collect();
    let omitted = names.len() - shown.len();
    let shown = shown.join(", ");
    match (omitted, is_partial) {
        (_, true) => format!("{shown} and more"),
        (0, false) => shown,
        (omitted, false) => format!("{shown} and {omitted} more"),
    }
}

/// `builder #number`, with ` on branch` where that is worth a word: what a build is called in a
/// line.
pub fn build_label(event: &BuildEvent) -> String {
    let name = sanitize(&event.builder);
    let number = event.build.number;
    let branch = on_branch(event.branch_to_name());
    let started = if event.build.complete { "" } else { " started" };
    format!("{name} #{number}{branch}{started}")
}

/// ` on branch`, or nothing.
fn on_branch(branch: Option<&str>) -> String {
    branch.map_or_else(String::new, |branch| format!(" on {}", sanitize(branch)))
}

/// One announcement, as a target wants it: builder and number, result, what changed, the master's
/// own reason, how long it took, who changed what, and where to read on.
pub fn announcement(
    event: &BuildEvent,
    details: Option<&Details>,
    settings: &TargetSettings,
    nicks: &Nicks,
    base: &str,
) -> String {
    let build = &event.build;
    let mut line = build_label(event);
    let nothing = Details::default();
    let details = details.unwrap_or(&nothing);
    if let Some(outcome) = build.outcome() {
        let result = result_word(outcome, settings.colors);
        let change = change(outcome, event.previous, event.streak);
        let reason = reason(build, &details.steps);
        let took = duration(build.seconds(0));
        line.push_str(&format!(" {result}{change}{reason}, took {took}"));
        if settings.blame && !outcome.is_good() {
            line.push_str(&blame(details, nicks));
        }
    }
    if settings.revisions {
        line.push_str(&revisions(details));
    }
    format!("{line} {}", build_url(base, build))
}

fn blame(details: &Details, nicks: &Nicks) -> String {
    let authors = people(details.authors.iter(), nicks);
    if authors.is_empty() {
        return String::new();
    }
    format!(", blame {}", some_of(&authors, details.is_partial))
}

/// What authors are called, each once.
fn people<'a>(authors: impl Iterator<Item = &'a String>, nicks: &Nicks) -> Vec<String> {
    let mut people: Vec<String> = Vec::new();
    for name in authors.map(|text| author(text, nicks)) {
        if !name.is_empty() && !people.contains(&name) {
            people.push(name);
        }
    }
    people
}

fn revisions(details: &Details) -> String {
    if details.revisions.is_empty() {
        return String::new();
    }
    let short = details
        .revisions
        .iter()
        .map(|revision| short_revision(revision));
    let short: Vec<String> = short.collect();
    let plural = if short.len() == 1 { "" } else { "s" };
    format!(", revision{plural} {}", some_of(&short, details.is_partial))
}

/// A worker is missing, or back.
pub fn worker_line(name: &str, missing: bool) -> String {
    let name = sanitize(name);
    let state = if missing {
        "is offline and missing"
    } else {
        "is back"
    };
    format!("worker {name} {state}")
}

/// A watched request has ended without a build.
pub fn request_end_line(builder: &str, end: RequestEnd) -> String {
    let name = sanitize(builder);
    let what = match end {
        RequestEnd::Cancelled => "the queued build was cancelled",
        RequestEnd::Merged(Some(_)) => "merged with an equal request, whose end is told here",
        RequestEnd::Merged(None) => "the queued build was merged with an equal one",
        RequestEnd::NeverStarted | RequestEnd::Forgotten => "the queued build never started",
    };
    format!("{name}: {what}")
}

/// A change in `list changes`: revision, author, first line of the comment.
pub fn change_line(change: &Change) -> String {
    let revision = change.revision.as_deref().unwrap_or("(no revision)");
    let revision = short_revision(revision);
    let author = author(&change.author, &Nicks::default());
    let comment = change.comments.as_deref().unwrap_or("");
    let comment = sanitize(comment.lines().next().unwrap_or(""));
    match change.branch.as_deref() {
        Some(branch) => format!("{revision} on {} by {author}: {comment}", sanitize(branch)),
        None => format!("{revision} by {author}: {comment}"),
    }
}

/// A hash in the length that people use; other revisions whole.
fn short_revision(revision: &str) -> String {
    let is_hash = revision.len() >= 40 && revision.bytes().all(|b| b.is_ascii_hexdigit());
    if is_hash {
        revision[..10].to_owned()
    } else {
        sanitize(revision)
    }
}

/// What a person is called: by nick if it is known, else the name out of `Name <mail>`; an address
/// alone stays as it is.
fn author(text: &str, nicks: &Nicks) -> String {
    if let Some(nick) = nicks.of(text) {
        return nick.to_owned();
    }
    let name = text.split('<').next().unwrap_or("").trim();
    sanitize(if name.is_empty() { text } else { name })
}

/// `#7 failure 3m ago: failed 'make'`: the last build as `status` and `last` show it.
fn last_build(build: &Build, builder: &Builder, settings: &TargetSettings, now: i64) -> String {
    let Some(outcome) = build.outcome() else {
        return String::new();
    };
    let end = build.complete_at.unwrap_or(0);
    let ago = duration(now.saturating_sub(end));
    let number = build.number;
    let branch = on_branch(builder.branch_to_name(build));
    let result = result_word(outcome, settings.colors);
    format!("#{number}{branch} {result} {ago} ago{}", reason(build, &[]))
}

/// A running build, in the line of `status`.
fn progress(build: &Build, builder: &Builder, now: i64) -> String {
    let so_far = build.seconds(now);
    let step = match &build.step {
        Some(step) => format!(" (step {})", sanitize(step)),
        None => String::new(),
    };
    let remaining = builder
        .typical_seconds()
        .map_or(0, |typical| typical - so_far);
    let estimate = match remaining {
        0 => String::new(),
        1.. => format!(", about {} to go", duration(remaining)),
        _ => format!(", {} longer than usual", duration(-remaining)),
    };
    let number = build.number;
    let branch = on_branch(builder.branch_to_name(build));
    format!(
        "building #{number}{branch}{step} for {}{estimate}",
        duration(so_far)
    )
}

/// How much longer a running build will take, where that is known.
pub fn remaining(build: &Build, builder: &Builder, now: i64) -> String {
    let typical = builder.typical_seconds();
    match typical.map(|typical| typical - build.seconds(now)) {
        Some(seconds @ 1..) => format!(" (about {} to go)", duration(seconds)),
        _ => String::new(),
    }
}

/// The line of `status` for one builder. `now` is by the master's clock.
pub fn status_line(
    model: &Model,
    builder: &Builder,
    settings: &TargetSettings,
    now: i64,
) -> String {
    let running = model.running_builds(builder.id);
    let mut parts: Vec<String> = running.map(|build| progress(build, builder, now)).collect();
    let is_building = !parts.is_empty();
    if model.is_offline(builder) {
        parts.insert(0, "offline".to_owned());
    } else if !is_building {
        parts.push("idle".to_owned());
    }
    if !is_building {
        match &builder.last {
            Some(last) => parts.push(format!("last {}", last_build(last, builder, settings, now))),
            None if builder.lookup_done => parts.push("no builds yet".to_owned()),
            None => {}
        }
    }
    let queued = model.queued_count(builder.id);
    if queued > 0 {
        parts.push(format!("{queued} queued"));
    }
    let workers = model.workers_of(builder.id);
    let paused = workers.filter(|worker| worker.paused);
    let paused: Vec<String> = paused.map(|worker| worker.name.clone()).collect();
    if !paused.is_empty() {
        parts.push(format!("paused: {}", some_of(&paused, false)));
    }
    format!("{}: {}", sanitize(&builder.name), parts.join("; "))
}

/// The line of `last` for one builder. `now` is by the master's clock.
pub fn last_line(model: &Model, builder: &Builder, settings: &TargetSettings, now: i64) -> String {
    let name = sanitize(&builder.name);
    let Some(last) = &builder.last else {
        let running = model.running_builds(builder.id).next();
        return match running {
            Some(build) => format!("{name}: building #{}; none has ended yet", build.number),
            None if builder.lookup_done => format!("{name}: no builds yet"),
            None => format!("{name}: no recent build"),
        };
    };
    let shown = last_build(last, builder, settings, now);
    let took = duration(last.seconds(0));
    let url = build_url(&model.identity.url, last);
    format!("{name}: {shown}, took {took} {url}")
}

/// `[offline, paused]` behind the name of a worker.
pub fn worker_marks(worker: &Worker) -> String {
    let marks = [
        (!worker.online, "offline"),
        (worker.missing, "missing"),
        (worker.paused, "paused"),
    ];
    let held: Vec<&str> = marks
        .iter()
        .filter(|(held, _)| *held)
        .map(|(_, word)| *word)
        .collect();
    if held.is_empty() {
        String::new()
    } else {
        format!(" [{}]", held.join(", "))
    }
}

/// What came of a job; nothing for what only feeds the model.
pub fn job_result(result: &JobResult, base: &str) -> Vec<String> {
    match result {
        JobResult::Lookup(_) | JobResult::Buildset { .. } | JobResult::Details { .. } => Vec::new(),
        JobResult::Changes(changes) if changes.is_empty() => vec!["no changes yet".to_owned()],
        JobResult::Changes(changes) => changes.iter().map(change_line).collect(),
        JobResult::Why(diagnosis) => why_lines(diagnosis, base),
        JobResult::Forced(forced) => vec![forced_line(forced, base)],
        JobResult::Stopped { builder, stopped } => vec![stopped_line(builder, stopped)],
    }
}

/// What went wrong in a build, and the last words of the step that failed first.
fn why_lines(diagnosis: &Diagnosis, base: &str) -> Vec<String> {
    let name = sanitize(&diagnosis.builder);
    let Some(build) = &diagnosis.build else {
        return vec![match diagnosis.number {
            Some(number) => format!("{name} has no build #{number}"),
            None => format!("{name}: no build has gone wrong"),
        }];
    };
    let number = build.number;
    let state = build.outcome().map_or("still runs", Outcome::word);
    let branch = on_branch(diagnosis.branch.as_deref());
    let Some(first) = diagnosis.steps.first() else {
        let reason = reason(build, &[]);
        let url = build_url(base, build);
        return vec![format!(
            "{name} #{number}{branch} {state}{reason}; no step went wrong {url}"
        )];
    };
    let step = sanitize(&first.name);
    let others = &diagnosis.steps[1..];
    let others: Vec<String> = others.iter().map(|step| step.name.clone()).collect();
    let and = if others.is_empty() {
        String::new()
    } else {
        format!("; also {}", some_of(&others, false))
    };
    let url = step_url(base, build, first, diagnosis);
    let said = step_state(first);
    let mut lines = vec![format!(
        "{name} #{number}{branch} {state}: step {step}{said}{and} {url}"
    )];
    lines.extend(log_lines(diagnosis));
    lines
}

/// The link to what a step has written; without a log to its build.
fn step_url(base: &str, build: &Build, step: &Step, diagnosis: &Diagnosis) -> String {
    let url = build_url(base, build);
    match &diagnosis.log {
        Some(log) => format!("{url}/steps/{}/logs/{}", step.number, sanitize(&log.slug)),
        None => url,
    }
}

fn step_state(step: &Step) -> String {
    let state = sanitize(&step.state_string);
    let repeated = ["(failure)", "(exception)", "(warnings)", "(cancelled)"];
    let mut text = state.as_str();
    for word in repeated {
        text = text.strip_suffix(word).unwrap_or(text).trim_end();
    }
    // A step that describes itself by its name says no more by that.
    if text.is_empty() || text == sanitize(&step.name) {
        String::new()
    } else {
        format!(" ({text})")
    }
}

fn log_lines(diagnosis: &Diagnosis) -> Vec<String> {
    let sentence = match diagnosis.log.as_ref().map(|log| &log.excerpt) {
        Some(Excerpt::Lines(lines)) if !lines.is_empty() => {
            return lines.iter().map(|line| format!("| {line}")).collect();
        }
        Some(Excerpt::Lines(_)) => "its log says nothing",
        Some(Excerpt::NotText) => "its log is no text",
        Some(Excerpt::Gone) => "the master has deleted its log",
        Some(Excerpt::TooLong) => "the lines of its log are too long to read",
        None => "it has no log",
    };
    vec![sentence.to_owned()]
}

fn forced_line(forced: &Forced, base: &str) -> String {
    let name = sanitize(&forced.builder);
    let by = match &forced.scheduler {
        Some(scheduler) => format!(" (scheduler {})", sanitize(scheduler)),
        None => String::new(),
    };
    match &forced.state {
        ForcedState::Started(build) => {
            let url = build_url(base, build);
            format!("forced {name} #{}{by} {url}", build.number)
        }
        ForcedState::Queued(reason) => {
            let why = match reason {
                QueueReason::NoWorker => "no worker is online".to_owned(),
                QueueReason::Paused => "the workers are paused".to_owned(),
                QueueReason::Behind(ahead) => format!("behind {}", count(*ahead, "other")),
                QueueReason::Busy => "the workers are busy, or a lock is held".to_owned(),
                QueueReason::Lock => "a worker is free; perhaps it waits for a lock".to_owned(),
            };
            format!("queued {name}{by}: {why}")
        }
        ForcedState::Merged(_) => format!("{name}: merged with an equal request{by}"),
        ForcedState::Cancelled => format!("{name}: the request was cancelled{by}"),
        ForcedState::Unknown(why) => format!("asked for {name}{by}, but: {why}"),
    }
}

fn stopped_line(builder: &str, stopped: &Stopped) -> String {
    let name = sanitize(builder);
    match stopped {
        Stopped::Builds(numbers) => {
            let numbers: Vec<String> = numbers.iter().map(|n| format!("#{n}")).collect();
            format!("stopping {name} {}", numbers.join(", "))
        }
        Stopped::OwnRequests(0) => format!("{name}: your request is not queued any more"),
        Stopped::OwnRequests(number) => {
            format!("{name}: took back {}", count(*number, "queued request"))
        }
        Stopped::Requests(0) => format!("{name}: nothing runs and nothing is queued"),
        Stopped::Requests(number) => {
            let requests = count(*number, "queued request");
            format!("{name}: nothing runs; took back {requests}")
        }
    }
}

#[cfg(test)]
mod tests;
