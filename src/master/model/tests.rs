//! Tests of the model.

use super::*;
use crate::master::builder::{BRANCHES, HISTORY};
use crate::master::resources::SOURCE_TEXT;
use Outcome::{Cancelled, Exception, Failure, Retry, Skipped, Success};

/// A model with builders 1, 2, … of these names, and the first poll done.
pub fn model(names: &[&str]) -> Model {
    let mut model = Model::default();
    let builders = names.iter().zip(1..).map(|(name, id)| builder(id, name));
    model.set_builders(builders.collect());
    model.set_workers(Vec::new(), true);
    model.catch_up(0);
    model.is_complete = true;
    model
}

pub fn builder(id: u64, name: &str) -> Builder {
    Builder {
        id,
        name: name.to_owned(),
        master_ids: vec![1],
        ..Builder::default()
    }
}

/// A build of builder 1 that takes 60 s, complete if it has a result.
pub fn build(id: u64, number: u64, outcome: Option<Outcome>) -> Build {
    Build {
        id,
        builder_id: 1,
        number,
        started_at: 1000,
        complete: outcome.is_some(),
        complete_at: outcome.map(|_| 1060),
        results: outcome.map(|outcome| outcome as u64),
        state_string: "state".to_owned(),
        ..Build::default()
    }
}

pub fn requested(id: u64, request: u64, outcome: Option<Outcome>) -> Build {
    Build {
        request_id: Some(request),
        ..build(id, id, outcome)
    }
}

/// The event of a build, if it is new.
fn news(model: &mut Model, build: Build) -> Option<BuildEvent> {
    model.apply_build(build).filter(|event| event.is_new)
}

fn change_of(event: BuildEvent) -> (Option<Outcome>, u32) {
    (event.previous, event.streak)
}

#[test]
fn a_build_is_news_once_whatever_the_order_and_number_of_reports() {
    let mut m = model(&["b"]);
    let started = news(&mut m, build(1, 1, None)).unwrap();
    assert_eq!(started.build.outcome(), None);
    assert!(news(&mut m, build(1, 1, None)).is_none());
    let ended = news(&mut m, build(1, 1, Some(Success))).unwrap();
    assert_eq!(ended.build.outcome(), Some(Success));
    assert!(news(&mut m, build(1, 1, Some(Success))).is_none());
    let late = m.apply_build(build(1, 1, None));
    assert!(late.is_none(), "a late start reopens nothing");
    assert_eq!(m.running_count(), 0);
}

#[test]
fn builds_out_of_order_leave_a_gap_that_is_filled() {
    let mut m = model(&["b"]);
    assert!(news(&mut m, build(3, 3, Some(Success))).is_some());
    assert_eq!(m.last_build_id(), Some(0));
    assert_eq!(m.highest_build_id(), 3);
    assert!(news(&mut m, build(1, 1, Some(Success))).is_some());
    assert!(news(&mut m, build(2, 2, Some(Success))).is_some());
    assert_eq!(m.last_build_id(), Some(3));
    assert!(news(&mut m, build(3, 3, Some(Success))).is_none());
    assert!(m.cursor().seen_out_of_order.is_empty());
    news(&mut m, build(6, 6, Some(Success)));
    m.catch_up(9);
    assert!(m.cursor().seen_out_of_order.is_empty(), "given up");
    assert_eq!(m.last_build_id(), Some(9));
}

#[test]
fn what_came_before_the_first_poll_is_no_news_but_its_end_is() {
    let mut m = model(&["b"]);
    m.cursor = BuildCursor::default();
    assert!(news(&mut m, build(5, 5, Some(Failure))).is_none());
    assert!(m.apply_build(build(6, 6, None)).is_none());
    m.catch_up(6);
    let ended = news(&mut m, build(6, 6, Some(Success))).unwrap();
    assert_eq!(change_of(ended), (Some(Failure), 1));
}

#[test]
fn the_end_of_a_build_that_ran_in_an_earlier_run_is_news() {
    let mut m = model(&["b"]);
    m.resume(BuildCursor {
        last_build_id: Some(9),
        seen_out_of_order: [11].into(),
        running: [7].into(),
    });
    assert!(news(&mut m, build(11, 5, Some(Success))).is_none());
    assert!(news(&mut m, build(7, 3, Some(Success))).is_some());
    assert!(news(&mut m, build(10, 4, Some(Success))).is_some());
    assert_eq!(m.cursor().last_build_id, Some(11));
}

#[test]
fn transitions_look_at_the_newest_lower_number_that_says_something() {
    let mut m = model(&["b"]);
    m.apply_build(build(1, 1, Some(Success)));
    m.apply_build(build(2, 2, Some(Cancelled)));
    m.apply_build(build(3, 3, Some(Skipped)));
    m.apply_build(build(6, 6, Some(Exception)));
    let late = news(&mut m, build(4, 4, Some(Failure))).unwrap();
    assert_eq!(change_of(late), (Some(Success), 1));
    let next = news(&mut m, build(5, 5, Some(Failure))).unwrap();
    assert_eq!(change_of(next), (Some(Failure), 2));
    assert_eq!(m.builder(1).unwrap().last.as_ref().unwrap().number, 6);
}

#[test]
fn builds_side_by_side_are_not_counted_without_each_other() {
    let mut m = model(&["b"]);
    m.apply_build(build(1, 1, Some(Failure)));
    let streak = |m: &mut Model, id, outcome| news(m, build(id, id, Some(outcome))).unwrap().streak;
    assert_eq!(streak(&mut m, 3, Failure), 2);
    m.apply_build(build(2, 2, Some(Success)));
    assert_eq!(streak(&mut m, 4, Failure), 0);
    assert_eq!(streak(&mut m, 5, Success), 1);
}

#[test]
fn a_streak_whose_beginning_was_not_seen_has_no_number() {
    let mut m = model(&["b"]);
    m.apply_build(build(1, 8, Some(Failure)));
    assert_eq!(news(&mut m, build(2, 9, Some(Failure))).unwrap().streak, 0);
    assert_eq!(news(&mut m, build(3, 10, Some(Success))).unwrap().streak, 1);
}

/// A build that runs while many others of its builder end: the history that is kept for the
/// estimates must not be cut before its end has been compared.
#[test]
fn a_slow_build_is_compared_with_what_was_before_it() {
    let mut m = model(&["b"]);
    m.apply_build(build(1, 1, Some(Success)));
    m.apply_build(build(2, 2, None));
    for number in 3..40 {
        m.apply_build(build(number, number, Some(Success)));
    }
    let slow = build(2, 2, Some(Failure));
    assert!(m.needs_previous(&slow), "the history was cut");
    m.learn_previous(1, 2, vec![build(1, 1, Some(Success))]);
    assert!(!m.needs_previous(&slow));
    let ended = news(&mut m, slow).unwrap();
    assert_eq!(ended.previous, Some(Success));
    assert!(m.builder(1).unwrap().history.len() <= HISTORY);
}

#[test]
fn builds_before_are_asked_for_once_where_there_are_none() {
    let mut m = model(&["b"]);
    assert!(!m.needs_previous(&build(1, 1, Some(Success))), "the first");
    assert!(
        !m.needs_previous(&build(5, 5, Some(Cancelled))),
        "no verdict"
    );
    assert!(!m.needs_previous(&build(5, 5, None)), "it runs");
    let fifth = build(5, 5, Some(Failure));
    assert!(m.needs_previous(&fifth));
    m.learn_previous(1, 5, Vec::new());
    assert!(!m.needs_previous(&fifth));
    assert_eq!(change_of(news(&mut m, fifth).unwrap()), (None, 1));
}

#[test]
fn another_database_starts_over() {
    let mut m = model(&["b"]);
    m.apply_build(build(90, 90, Some(Failure)));
    m.start_over();
    assert!(m.apply_build(build(1, 1, None)).is_none());
    m.catch_up(2);
    let ran = news(&mut m, build(1, 1, Some(Success)));
    assert!(ran.is_some(), "one that ran when we came");
    m.start_over();
    m.catch_up(2);
    let event = news(&mut m, build(3, 3, Some(Success))).unwrap();
    assert_eq!(event.previous, None);
    assert_eq!(m.last_build_id(), Some(3));
    assert_eq!(m.builder(1).unwrap().last.as_ref().unwrap().number, 3);
}

#[test]
fn the_end_of_a_request_is_the_end_of_its_last_build() {
    let mut m = model(&["b"]);
    let first = m.apply_build(requested(1, 7, Some(Retry))).unwrap();
    assert!(!first.ends_request, "it will be tried again");
    m.apply_build(requested(2, 7, None));
    let again = m.apply_build(requested(1, 7, Some(Retry))).unwrap();
    assert!(!again.ends_request && !again.is_new);
    assert!(m.ended_build_of(7).is_none());
    let last = m.apply_build(requested(2, 7, Some(Success))).unwrap();
    assert!(last.ends_request && last.is_new);
    let ended = m.ended_build_of(7).unwrap();
    assert!(ended.ends_request && !ended.is_new);
    assert_eq!(ended.build.number, 2);
}

#[test]
fn requests_that_neither_wait_nor_run_are_unclear() {
    let mut m = model(&["b"]);
    m.queued.insert(5, 1);
    m.apply_build(requested(1, 6, None));
    assert_eq!(m.unclear_requests([5, 6, 7].iter()), [7]);
}

#[test]
fn a_worker_is_missing_by_the_masters_word_and_back_once() {
    let mut m = model(&["b"]);
    let worker = |online, missing| Worker {
        id: 1,
        name: "w".to_owned(),
        online,
        missing,
        ..Worker::default()
    };
    let mut apply = |worker: Worker| match m.apply_worker(worker) {
        Some(MasterEvent::Worker { missing, .. }) => Some(missing),
        _ => None,
    };
    let with_builders = Worker {
        builders: [1].into(),
        ..worker(true, false)
    };
    assert_eq!(apply(with_builders), None);
    assert_eq!(apply(worker(false, false)), None);
    assert_eq!(apply(worker(false, true)), Some(true));
    assert_eq!(apply(worker(false, true)), None);
    assert_eq!(apply(worker(true, false)), Some(false));
    assert_eq!(apply(worker(true, false)), None);
    let kept = m.workers_of(1).count();
    assert_eq!(kept, 1, "a report without builders keeps them");
    assert!(!m.is_offline(m.builder(1).unwrap()));
    m.set_workers(vec![worker(true, false)], true);
    let is_offline = m.is_offline(m.builder(1).unwrap());
    assert!(is_offline, "a list with builders has the last word");
}

#[test]
fn a_builder_that_is_removed_while_it_builds_still_ends_its_build() {
    let mut m = model(&["a", "b"]);
    m.apply_build(build(1, 1, None));
    m.set_builders(vec![]);
    let names: Vec<&str> = m.builders().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["a"]);
    let long = Build {
        state_string: "\u{e9}".repeat(2 * STATE_TEXT),
        ..build(1, 1, Some(Failure))
    };
    let ended = news(&mut m, long).unwrap();
    assert_eq!(ended.builder, "a");
    let length = ended.build.state_string.chars().count();
    assert_eq!(length, STATE_TEXT + 1);
}

#[test]
fn a_builder_without_a_master_is_gone_unless_something_speaks_for_it() {
    let mut m = model(&["a"]);
    let orphan = |tags: &[&str]| Builder {
        master_ids: vec![],
        tags: tags.iter().map(|tag| tag.to_string()).collect(),
        ..builder(2, "b")
    };
    let shown = |m: &Model| m.builder_by_name("b").is_some();
    m.set_builders(vec![orphan(&[])]);
    assert!(!shown(&m));
    m.set_builders(vec![orphan(&["_virtual_"])]);
    assert!(shown(&m), "one that builds invent");
    m.set_builders(vec![orphan(&[])]);
    m.apply_worker(Worker {
        id: 1,
        online: true,
        builders: [2].into(),
        ..Worker::default()
    });
    assert!(shown(&m), "its worker is online");
    m.set_workers(vec![], true);
    assert!(!shown(&m));
    let running = Build {
        builder_id: 2,
        ..build(1, 1, None)
    };
    m.apply_build(running.clone());
    assert!(shown(&m), "it builds");
    m.apply_build(Build {
        builder_id: 2,
        ..build(1, 1, Some(Success))
    });
    m.last_contact = Some(1100);
    assert!(!shown(&m));
    m.identity.is_cluster = true;
    assert!(shown(&m), "its master may be down");
    m.last_contact = Some(1060 + RECENT_BUILD);
    assert!(!shown(&m), "that was long ago");
}

#[test]
fn builders_are_sorted_by_name_and_keep_what_is_known_of_them() {
    let mut m = model(&["b", "a"]);
    m.apply_build(build(1, 1, Some(Success)));
    m.set_builders(vec![builder(2, "c"), builder(1, "d")]);
    let names: Vec<&str> = m.builders().map(|b| b.name.as_str()).collect();
    assert_eq!(names, ["c", "d"]);
    assert!(m.builder_by_name("b").is_none());
    assert!(m.builder_by_name("d").unwrap().last.is_some());
}

#[test]
fn estimates_are_the_median_of_successful_builds() {
    let mut m = model(&["b"]);
    for (number, seconds) in [(1, 10), (2, 500), (3, 30)] {
        m.apply_build(Build {
            complete_at: Some(1000 + seconds),
            ..build(number, number, Some(Success))
        });
    }
    m.apply_build(build(4, 4, Some(Failure)));
    assert_eq!(m.builder(1).unwrap().typical_seconds(), Some(30));
}

#[test]
fn the_masters_clock_is_its_own() {
    let mut m = model(&["b"]);
    m.clock_offset = -7200;
    assert_eq!(m.master_time(10_000), 2800);
}

#[test]
fn changes_are_few_and_short() {
    let mut m = model(&[]);
    for id in 0..1000 {
        m.add_change(Change {
            id,
            author: "a".repeat(10_000),
            ..Change::default()
        });
    }
    assert_eq!(m.changes.len(), CHANGES);
    assert_eq!(m.changes.keys().next(), Some(&900));
    let longest = m.changes.values().map(|change| change.author.len()).max();
    assert!(longest.unwrap() < 400);
}

fn on_branch(number: u64, branch: &str, outcome: Outcome) -> Build {
    Build {
        branch: Some(branch.to_owned()),
        ..build(number, number, Some(outcome))
    }
}

#[test]
fn each_branch_has_transitions_of_its_own() {
    let mut m = model(&["b"]);
    let mut end = |number, branch, outcome| {
        let event = news(&mut m, on_branch(number, branch, outcome)).unwrap();
        (event.previous, event.streak, event.has_several_branches)
    };
    assert_eq!(end(1, "main", Success), (None, 1, false));
    assert_eq!(end(2, "main", Failure), (Some(Success), 1, false));
    assert!(end(3, "pr", Success).2);
    assert_eq!(end(4, "main", Failure), (Some(Failure), 2, true));
    assert_eq!(end(5, "pr", Failure), (Some(Success), 1, true));
    // One without a branch belongs to the branch that most of the others have.
    assert_eq!(end(6, "", Success), (Some(Failure), 1, true));
    assert_eq!(end(7, "main", Success).0, Some(Success));
}

#[test]
fn the_last_build_of_a_branch_is_remembered_behind_many_others() {
    let mut m = model(&["b"]);
    m.apply_build(on_branch(1, "main", Success));
    for number in 2..60 {
        m.apply_build(on_branch(number, &format!("pr-{number}"), Success));
    }
    let history = &m.builder(1).unwrap().history;
    assert!(history.len() <= HISTORY + BRANCHES, "{}", history.len());
    for number in 60..63 {
        m.apply_build(on_branch(number, "pr-1", Failure));
    }
    let bad = news(&mut m, on_branch(63, "pr-59", Failure)).unwrap();
    assert_eq!(bad.previous, Some(Success));
}

#[test]
fn what_the_look_back_did_not_tell_is_asked_for_once_a_builder() {
    let mut m = model(&["b"]);
    m.apply_build(build(7, 7, Some(Success)));
    let bad = on_branch(8, "main", Failure);
    assert!(m.needs_previous(&bad), "the branch of #7 is not known");
    let before = vec![on_branch(5, "pr", Success), on_branch(7, "pr", Success)];
    m.learn_previous(1, 8, before);
    assert!(!m.needs_previous(&bad));
    let event = news(&mut m, bad).unwrap();
    assert_eq!((event.previous, event.streak), (None, 1), "a new branch");
    assert!(!m.needs_previous(&on_branch(9, "another", Failure)));
}

#[test]
fn streaks_are_counted_anew_when_branches_become_known() {
    let mut m = model(&["b"]);
    for number in 1..5 {
        m.apply_build(build(number, number, Some(Failure)));
    }
    let branches = [(1, "main"), (2, "pr"), (3, "main"), (4, "main")];
    let told = branches.map(|(number, branch)| on_branch(number, branch, Failure));
    m.learn_branches(told.into());
    let next = news(&mut m, on_branch(5, "main", Failure)).unwrap();
    assert_eq!(next.streak, 4);
    let last = m.builder(1).unwrap().last.clone().unwrap();
    assert_eq!(m.builder(1).unwrap().branch_to_name(&last), Some("main"));
}

fn stamps(branches: &[(&str, &str)]) -> Vec<SourceStamp> {
    let stamp = |(codebase, branch): &(&str, &str)| SourceStamp {
        codebase: (*codebase).to_owned(),
        branch: (*branch).to_owned(),
        ..SourceStamp::default()
    };
    branches.iter().map(stamp).collect()
}

#[test]
fn of_several_codebases_the_one_off_its_usual_branch_gives_the_branch() {
    let mut m = model(&["b"]);
    let mut branch = |number, branches: &[(&str, &str)]| {
        let of_both = Build {
            sources: stamps(branches),
            ..build(number, number, Some(Success))
        };
        news(&mut m, of_both).unwrap().build.branch.unwrap()
    };
    assert_eq!(branch(1, &[("lib", "master"), ("app", "main")]), "main");
    assert_eq!(branch(2, &[("app", "main"), ("lib", "fix")]), "fix");
    assert_eq!(branch(3, &[("app", "main"), ("lib", "master")]), "main");
    assert_eq!(branch(4, &[("app", "pr"), ("lib", "master")]), "pr");
}

#[test]
fn the_stream_tells_the_branch_before_the_build() {
    let mut m = model(&["b"]);
    m.note_request(&BuildRequest {
        id: 7,
        buildset_id: 3,
        ..BuildRequest::default()
    });
    assert!(m.needs_branch(&requested(1, 7, None)));
    m.note_buildset(Buildset {
        id: 3,
        sources: stamps(&[("", &"x".repeat(500))]),
        ..Buildset::default()
    });
    assert!(!m.needs_branch(&requested(1, 7, None)));
    m.apply_build(requested(1, 7, None));
    let ended = news(&mut m, requested(1, 7, Some(Success))).unwrap();
    assert_eq!(ended.build.branch.unwrap().chars().count(), SOURCE_TEXT + 1);
    let alone = BuildsetSize {
        id: 3,
        known_builders: 1,
    };
    assert_eq!(ended.buildset, Some(alone));
    for id in 0..20_000 {
        let request = BuildRequest {
            id,
            buildset_id: id + 1,
            ..BuildRequest::default()
        };
        m.note_request(&request);
        m.note_buildset(Buildset {
            id,
            ..Buildset::default()
        });
    }
    assert!(m.requests.len() <= REQUESTS && m.buildsets.len() <= BUILDSETS);
}

#[test]
fn a_build_in_the_state_file_is_the_same_again() {
    let build = on_branch(3, "main", Failure);
    let text = serde_json::to_string(&build).unwrap();
    assert_eq!(serde_json::from_str::<Build>(&text).unwrap(), build);
    let unknown = Build {
        branch: None,
        ..build
    };
    let text = serde_json::to_string(&unknown).unwrap();
    assert_eq!(serde_json::from_str::<Build>(&text).unwrap(), unknown);
}

/// A buildset of several codebases as the stream tells it, and its one build.
fn of_both(m: &mut Model, id: u64, branches: &[(&str, &str)], outcome: Outcome) -> BuildEvent {
    m.note_request(&BuildRequest {
        id,
        buildset_id: id,
        ..BuildRequest::default()
    });
    m.note_buildset(Buildset {
        id,
        sources: stamps(branches),
        ..Buildset::default()
    });
    m.apply_build(requested(id, id, None));
    news(m, requested(id, id, Some(outcome))).unwrap()
}

#[test]
fn a_build_that_is_read_again_does_not_count_again() {
    let mut m = model(&["b"]);
    let usual = [("app", "main"), ("lib", "main")];
    for id in 1..=10 {
        of_both(&mut m, id, &usual, Success);
    }
    let feature = [("app", "main"), ("lib", "feature")];
    of_both(&mut m, 11, &feature, Failure);
    for _ in 0..10 {
        m.apply_build(requested(11, 11, Some(Failure)));
    }
    let next = of_both(&mut m, 12, &feature, Success);
    assert_eq!(next.build.branch.as_deref(), Some("feature"));
    assert_eq!(next.previous, Some(Failure));
    // Of two that are unusual it is the same one, in whatever order they come.
    let one = of_both(&mut m, 13, &[("app", "f1"), ("lib", "f2")], Failure);
    let other = of_both(&mut m, 14, &[("lib", "f2"), ("app", "f1")], Success);
    assert_eq!(one.build.branch, other.build.branch);
    assert_eq!(other.previous, Some(Failure));
}

#[test]
fn where_there_are_more_branches_than_are_remembered_the_master_is_asked() {
    let mut m = model(&["b"]);
    m.learn_previous(1, 1, vec![]);
    m.apply_build(on_branch(1, "pr-0", Failure));
    assert!(
        !m.needs_previous(&on_branch(2, "new", Failure)),
        "a new branch"
    );
    for number in 2..=BRANCHES as u64 + 2 {
        m.apply_build(on_branch(number, &format!("pr-{number}"), Success));
    }
    assert!(m.needs_previous(&on_branch(90, "pr-0", Success)));
    m.learn_previous(1, 90, vec![on_branch(1, "pr-0", Failure)]);
    let mended = news(&mut m, on_branch(90, "pr-0", Success)).unwrap();
    assert_eq!(mended.previous, Some(Failure));
}

#[test]
fn what_the_look_back_has_found_bad_gets_its_branch_and_its_count() {
    let mut m = model(&["b"]);
    m.apply_build(build(100, 100, Some(Failure)));
    m.learn_branches(vec![on_branch(100, "main", Failure)]);
    let bad = m.builder(1).unwrap().last_bad.clone().unwrap();
    assert_eq!(bad.branch.as_deref(), Some("main"));
    let below = (90..100)
        .map(|number| on_branch(number, "main", if number == 97 { Success } else { Failure }));
    m.learn_previous(1, 101, below.collect());
    let next = news(&mut m, on_branch(101, "main", Failure)).unwrap();
    assert_eq!(next.streak, 4);
}

#[test]
fn another_database_has_other_codebases() {
    let mut m = model(&["b"]);
    for id in 50..60 {
        of_both(&mut m, id, &[("app", "old"), ("lib", "old")], Success);
    }
    m.start_over();
    m.catch_up(0);
    let main = [("app", "main"), ("lib", "main")];
    for id in 1..4 {
        of_both(&mut m, id, &main, Success);
    }
    let feature = of_both(&mut m, 4, &[("app", "main"), ("lib", "fix")], Success);
    assert_eq!(feature.build.branch.as_deref(), Some("fix"));
}
