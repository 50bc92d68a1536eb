//! One line for all that a change has started. Pure.

use super::{build_url, change, duration, on_branch, people, result_word, short_revision, some_of};
use crate::config::{Nicks, TargetSettings};
use crate::master::builder::BuildEvent;
use crate::master::details::BuildsetInfo;
use crate::outcome::Outcome;
use crate::sanitize::{cut, one_line};

/// Characters of a change's comment, or of the reason where there is no change.
const COMMENT: usize = 60;
/// Bytes of the list of builds; what does not fit is counted.
const LIST: usize = 240;
/// So few builds are all named.
const FEW: usize = 4;

/// A build of the line, and whether it is what the place has asked for.
pub struct ToldBuild<'a> {
    pub event: &'a BuildEvent,
    pub is_wanted: bool,
}

/// `1a2b3c4d5e on main`: what a change is called in a summary.
pub fn change_label(info: &BuildsetInfo, branch: Option<&str>) -> String {
    let of_changes = info.changes.iter().find_map(|c| c.revision.as_deref());
    let of_sources = info.sources.iter().map(|source| source.revision.as_str());
    let mut revisions = of_changes.into_iter().chain(of_sources);
    let named = revisions.find(|revision| !revision.is_empty());
    let named = named.map_or_else(|| format!("buildset {}", info.id), short_revision);
    format!("{named}{}", on_branch(branch.filter(|b| !b.is_empty())))
}

/// `1a2b3c4d5e on main by Ann (Tune the frob)`; without a change why it was started.
fn heading(info: &BuildsetInfo, branch: Option<&str>, nicks: &Nicks) -> String {
    let label = change_label(info, branch);
    let Some(newest) = info.changes.first() else {
        let reason = cut(&one_line(&info.reason), COMMENT);
        return match reason.as_str() {
            "" => label,
            _ => format!("{label} ({reason})"),
        };
    };
    let authors = people(info.changes.iter().map(|change| &change.author), nicks);
    let by = if authors.is_empty() {
        String::new()
    } else {
        format!(" by {}", some_of(&authors, false))
    };
    let comment = newest.comments.as_deref().unwrap_or("");
    let comment = cut(&one_line(comment.lines().next().unwrap_or("")), COMMENT);
    match comment.as_str() {
        "" => format!("{label}{by}"),
        _ => format!("{label}{by} ({comment})"),
    }
}

/// The builds of a change have started, at these builders.
pub fn started_line(
    info: &BuildsetInfo,
    first: &BuildEvent,
    builders: &[String],
    nicks: &Nicks,
    base: &str,
) -> String {
    let heading = heading(info, first.build.branch.as_deref(), nicks);
    let url = build_url(base, &first.build);
    format!("{heading}: started {} {url}", some_of(builders, false))
}

/// The builds of a change have ended, but for so many that are still open. The link is the worst
/// build's.
pub fn ended_line(
    info: &BuildsetInfo,
    builds: &[ToldBuild],
    open: usize,
    settings: &TargetSettings,
    nicks: &Nicks,
    base: &str,
) -> String {
    let branch = builds
        .first()
        .and_then(|told| told.event.build.branch.as_deref());
    let mut line = format!("{}: ", heading(info, branch, nicks));
    line.push_str(&list(builds, settings));
    if open > 0 {
        line.push_str(&format!("; {open} still open"));
    }
    let started = builds.iter().map(|told| told.event.build.started_at).min();
    let ended = builds
        .iter()
        .filter_map(|told| told.event.build.complete_at)
        .max();
    let took = ended.unwrap_or(0).saturating_sub(started.unwrap_or(0));
    let url = worst(builds).map_or_else(String::new, |event| build_url(base, &event.build));
    format!("{line}; took {} {url}", duration(took))
}

/// The build that matters most.
pub fn worst<'a>(builds: &[ToldBuild<'a>]) -> Option<&'a BuildEvent> {
    builds.iter().min_by_key(order).map(|told| told.event)
}

/// The most important first; of equals what the place has asked for, then by name.
fn order<'a>(told: &&ToldBuild<'a>) -> (usize, bool, &'a str) {
    let event = told.event;
    (importance(event), !told.is_wanted, &event.builder)
}

fn importance(event: &BuildEvent) -> usize {
    event
        .build
        .outcome()
        .map_or(usize::MAX, Outcome::importance)
}

/// `failure linux #42 (was success), mac #7 (3rd in a row); success 12 others`: the most important
/// first. Builds that are as they were are only counted.
fn list(builds: &[ToldBuild], settings: &TargetSettings) -> String {
    let mut sorted: Vec<&ToldBuild> = builds.iter().collect();
    sorted.sort_by_key(order);
    let mut text = String::new();
    let mut omitted = 0;
    let groups = sorted.chunk_by(|one, other| importance(one.event) == importance(other.event));
    for group in groups {
        let Some(outcome) = group[0].event.build.outcome() else {
            continue;
        };
        let mut counted = 0;
        let mut names = Vec::new();
        for told in group {
            let event = told.event;
            let changed = change(outcome, event.previous, event.streak);
            let matters = told.is_wanted || !outcome.is_good() || !changed.is_empty();
            if !matters && builds.len() > FEW {
                counted += 1;
                continue;
            }
            let name = cut(&one_line(&event.builder), COMMENT);
            let item = format!("{name} #{}{changed}", event.build.number);
            let taken: usize = names.iter().map(|name: &String| name.len() + 2).sum();
            if text.len() + taken + item.len() > LIST && !(text.is_empty() && names.is_empty()) {
                omitted += 1;
            } else {
                names.push(item);
            }
        }
        let rest = match (counted, names.is_empty() && text.is_empty()) {
            (0, _) => None,
            (counted, true) => Some(super::count(counted, "build")),
            (1, false) => Some("1 other".to_owned()),
            (counted, false) => Some(format!("{counted} others")),
        };
        if names.is_empty() && rest.is_none() {
            continue;
        }
        let separator = if text.is_empty() { "" } else { "; " };
        let word = result_word(outcome, settings.colors);
        let named = names.join(", ");
        let and = if names.is_empty() || rest.is_none() {
            ""
        } else {
            " and "
        };
        let rest = rest.unwrap_or_default();
        text.push_str(&format!("{separator}{word} {named}{and}{rest}"));
    }
    if omitted > 0 {
        text.push_str(&format!(" and {omitted} more"));
    }
    text
}
