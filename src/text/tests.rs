//! Tests of the sentences.

use super::*;
use crate::master::model::tests::{build, model};
use Outcome::{Cancelled, Failure, Retry, Skipped, Success, Warnings};

const NOW: i64 = 1180;
const URL: &str = "http://m/#/builders/1/builds/2";

fn settings() -> TargetSettings {
    TargetSettings {
        blame: true,
        ..TargetSettings::default()
    }
}

fn event(previous: Option<Outcome>, outcome: Outcome, reason: &str) -> BuildEvent {
    BuildEvent {
        builder: "linux x86".into(),
        build: Build {
            state_string: reason.into(),
            ..build(2, 2, Some(outcome))
        },
        previous,
        streak: if previous == Some(outcome) { 2 } else { 1 },
        is_new: true,
        ..BuildEvent::default()
    }
}

fn authors(names: &[&str]) -> Details {
    Details {
        authors: names.iter().map(|name| name.to_string()).collect(),
        ..Details::default()
    }
}

#[test]
fn announcements_read_like_this() {
    let say =
        |event: &BuildEvent| announcement(event, None, &settings(), &Nicks::default(), "http://m/");
    for (previous, outcome, reason, line) in [
        (
            Some(Failure),
            Success,
            "build successful",
            "success (fixed), took 1m",
        ),
        (
            Some(Failure),
            Failure,
            "failed",
            "failure (2nd in a row): failed, took 1m",
        ),
        (Some(Success), Success, "x", "success, took 1m"),
        (
            Some(Success),
            Warnings,
            "warnings 'sh' (warnings)",
            "warnings (was success): 'sh', took 1m",
        ),
        (
            Some(Success),
            Cancelled,
            "cancelled (no) 'sh' (cancelled)",
            "cancelled: no, took 1m",
        ),
        (
            None,
            Retry,
            "retry lost connection 'x' (retry)",
            "retry: lost connection 'x', took 1m",
        ),
        (None, Skipped, "build successful", "skipped, took 1m"),
        (None, Retry, "building", "retry, took 1m"),
        (
            None,
            Outcome::Exception,
            "exception finished (exception)",
            "exception, took 1m",
        ),
    ] {
        let event = event(previous, outcome, reason);
        assert_eq!(say(&event), format!("linux x86 #2 {line} {URL}"));
    }
    let started = BuildEvent {
        build: build(2, 2, None),
        ..event(None, Success, "")
    };
    assert_eq!(say(&started), format!("linux x86 #2 started {URL}"));
}

#[test]
fn who_is_behind_a_build() {
    let bad = event(Some(Success), Failure, "failed 'make' (failure)");
    let details = authors(&["Ann <ann@x>", "B\u{f6}b <b@x>", "Ann <a@other>"]);
    let line = announcement(
        &bad,
        Some(&details),
        &settings(),
        &Nicks::default(),
        "http://m/",
    );
    let expected = "failure (was success): failed 'make', took 1m, blame Ann, B\u{f6}b";
    assert_eq!(line, format!("linux x86 #2 {expected} {URL}"));
    let good = event(Some(Warnings), Success, "");
    let details = Details {
        revisions: vec![
            "0123456789abcdef0123456789abcdef01234567".into(),
            "r12".into(),
        ],
        ..Details::default()
    };
    let with_revisions = TargetSettings {
        revisions: true,
        colors: true,
        ..settings()
    };
    let line = announcement(
        &good,
        Some(&details),
        &with_revisions,
        &Nicks::default(),
        "http://m/",
    );
    let expected = "\u{3}03success\u{f} (was warnings), took 1m, revisions 0123456789, r12";
    assert_eq!(line, format!("linux x86 #2 {expected} {URL}"));
}

#[test]
fn a_list_that_was_cut_has_no_number() {
    let names: Vec<String> = (0..8).map(|i| format!("n{i}")).collect();
    assert_eq!(some_of(&names, false), "n0, n1, n2, n3, n4, n5 and 2 more");
    assert_eq!(some_of(&names, true), "n0, n1, n2, n3, n4, n5 and more");
    assert_eq!(some_of(&names[..2], false), "n0, n1");
}

#[test]
fn who_stopped_a_build_and_why() {
    for (reason, said) in [
        (
            "cancelled (oops (ann in #app)) 'sh -c ...' (cancelled)",
            " by ann: oops",
        ),
        (
            "cancelled (oops (ann, account a in #app)) 'sh' (cancelled)",
            " by ann: oops",
        ),
        (
            "cancelled (a (b) c (the command line)) 'sh'",
            " by the command line: a (b) c",
        ),
        (
            "cancelled (Master Shutdown) 'sh' (cancelled)",
            ": Master Shutdown",
        ),
        ("cancelled (too slow (again)) 'sh'", ": too slow (again)"),
        (
            "cancelled (wrong branch (the one in release)) 'sh'",
            ": wrong branch (the one in release)",
        ),
        ("cancelled (x :) y) 'sh (a)'", ": x :) y"),
        ("cancelled () 'sh'", ""),
        ("cancelled (never ends", ": (never ends"),
        ("cancelled", ""),
    ] {
        let event = event(None, Cancelled, reason);
        assert_eq!(super::reason(&event.build, &[]), said, "{reason}");
    }
}

#[test]
fn hostile_text_stays_text() {
    let mut hostile = event(None, Failure, "x\r\nQUIT :\u{2}y\u{202e}");
    hostile.builder = "a\u{3}04b\u{1}".into();
    let details = authors(&["\u{1}\u{2}", "eve\r\nNICK x <e@x>"]);
    let line = announcement(
        &hostile,
        Some(&details),
        &settings(),
        &Nicks::default(),
        "http://m/",
    );
    assert!(!line.contains(crate::sanitize::is_forbidden), "{line:?}");
    assert_eq!(worker_line("w\u{2}1", false), "worker w 1 is back");
    assert_eq!(worker_line("w", true), "worker w is offline and missing");
}

#[test]
fn durations_show_two_units() {
    for (seconds, text) in [
        (-5, "0s"),
        (0, "0s"),
        (59, "59s"),
        (60, "1m"),
        (125, "2m 5s"),
        (7200, "2h"),
        (11_040, "3h 4m"),
        (176_400, "2d 1h"),
        (86_400, "1d"),
    ] {
        assert_eq!(duration(seconds), text);
    }
    let ordinals = [1, 2, 3, 4, 11, 12, 21, 112].map(ordinal);
    let expected = ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"];
    assert_eq!(ordinals, expected);
}

#[test]
fn authors_are_people() {
    assert_eq!(
        author("B\u{f6}b <bob@example.org>", &Nicks::default()),
        "B\u{f6}b"
    );
    assert_eq!(
        author("<bob@example.org>", &Nicks::default()),
        "<bob@example.org>"
    );
    assert_eq!(
        author("bob@example.org", &Nicks::default()),
        "bob@example.org"
    );
}

#[test]
fn status_lines_read_like_this() {
    let mut m = model(&["b"]);
    let say = |m: &Model| status_line(m, m.builder(1).unwrap(), &settings(), NOW);
    assert_eq!(say(&m), "b: offline");
    let worker = |paused| Worker {
        id: 1,
        name: "w1".into(),
        online: true,
        paused,
        builders: [1].into(),
        ..Worker::default()
    };
    m.apply_worker(worker(false));
    m.apply_build(build(1, 1, Some(Success)));
    assert_eq!(say(&m), "b: idle; last #1 success 2m ago");
    m.apply_build(build(2, 2, None));
    m.set_step(2, "compile".into());
    m.queued.insert(9, 1);
    let building = "b: building #2 (step compile) for 3m, 2m longer than usual; 1 queued";
    assert_eq!(say(&m), building);
    m.apply_worker(worker(true));
    m.apply_build(build(2, 2, Some(Failure)));
    let paused = "b: idle; last #2 failure 2m ago: state; 1 queued; paused: w1";
    assert_eq!(say(&m), paused);
    let last = last_line(&m, m.builder(1).unwrap(), &settings(), NOW);
    assert_eq!(
        last,
        "b: #2 failure 2m ago: state, took 1m #/builders/1/builds/2"
    );
}

#[test]
fn a_virtual_builder_is_never_offline() {
    let mut m = model(&[]);
    let mut builder = crate::master::model::tests::builder(1, "v");
    builder.tags = vec!["_virtual_".into()];
    m.set_builders(vec![builder]);
    let line = status_line(&m, m.builder(1).unwrap(), &settings(), NOW);
    assert_eq!(line, "v: idle");
}

#[test]
fn last_of_a_builder_whose_first_build_runs() {
    let mut m = model(&["b"]);
    let say = |m: &Model| last_line(m, m.builder(1).unwrap(), &settings(), NOW);
    assert_eq!(say(&m), "b: no recent build");
    m.set_lookup_done(1);
    assert_eq!(say(&m), "b: no builds yet");
    m.apply_build(build(1, 1, None));
    assert_eq!(say(&m), "b: building #1; none has ended yet");
}

#[test]
fn jobs_end_in_a_sentence() {
    let forced = |state| {
        let forced = Forced {
            builder: "app".into(),
            scheduler: Some("force".into()),
            request: 7,
            state,
        };
        job_result(&JobResult::Forced(forced), "http://m/").join("")
    };
    let started = forced(ForcedState::Started(build(2, 2, None)));
    assert_eq!(started, format!("forced app #2 (scheduler force) {URL}"));
    for (reason, why) in [
        (QueueReason::NoWorker, "no worker is online"),
        (QueueReason::Paused, "the workers are paused"),
        (QueueReason::Behind(2), "behind 2 others"),
        (QueueReason::Busy, "the workers are busy, or a lock is held"),
        (
            QueueReason::Lock,
            "a worker is free; perhaps it waits for a lock",
        ),
    ] {
        let line = forced(ForcedState::Queued(reason));
        assert_eq!(line, format!("queued app (scheduler force): {why}"));
    }
    let cancelled = forced(ForcedState::Cancelled);
    assert_eq!(
        cancelled,
        "app: the request was cancelled (scheduler force)"
    );
    let stopped = |stopped| {
        let result = JobResult::Stopped {
            builder: "app".into(),
            stopped,
        };
        job_result(&result, "").join("")
    };
    assert_eq!(stopped(Stopped::Builds(vec![3, 4])), "stopping app #3, #4");
    let none = "app: nothing runs and nothing is queued";
    assert_eq!(stopped(Stopped::Requests(0)), none);
    let two = "app: nothing runs; took back 2 queued requests";
    assert_eq!(stopped(Stopped::Requests(2)), two);
    let own = "app: took back 1 queued request";
    assert_eq!(stopped(Stopped::OwnRequests(1)), own);
    let gone = "app: your request is not queued any more";
    assert_eq!(stopped(Stopped::OwnRequests(0)), gone);
    assert_eq!(
        job_result(&JobResult::Changes(vec![]), ""),
        ["no changes yet"]
    );
}

#[test]
fn requests_that_end_without_a_build() {
    let line = |end| request_end_line("app", end);
    assert_eq!(
        line(RequestEnd::Cancelled),
        "app: the queued build was cancelled"
    );
    let merged = "app: the queued build was merged with an equal one";
    assert_eq!(line(RequestEnd::Merged(None)), merged);
    assert_eq!(
        line(RequestEnd::NeverStarted),
        "app: the queued build never started"
    );
}

fn nicks() -> Nicks {
    let text = "[buildbot]\nurl = http://m/\n[nicks]\nann@x = annie\nBob Builder = bob\n";
    let parsed = crate::config::Config::parse("bot.conf", text, &|_| Err("none".into()));
    parsed.unwrap().nicks
}

#[test]
fn who_is_blamed_is_called_by_nick() {
    let bad = event(Some(Success), Failure, "failed 'make'");
    let details = authors(&["Ann <ANN@x>", "bob builder", "<>", "\u{3}04Eve <e@x>"]);
    let line = announcement(&bad, Some(&details), &settings(), &nicks(), "http://m/");
    assert!(
        line.contains(", blame annie, bob, <>, 04Eve http"),
        "{line}"
    );
}

#[test]
fn a_line_names_the_step_that_the_reason_does_not() {
    let said = |reason: &str, steps: &[&str]| {
        let steps: Vec<String> = steps.iter().map(|step| step.to_string()).collect();
        super::reason(&event(None, Failure, reason).build, &steps)
    };
    let command = "failed 'sh -c ...' (failure)";
    assert_eq!(said(command, &["test"]), ": failed in test ('sh -c ...')");
    assert_eq!(said(command, &[]), ": failed 'sh -c ...'");
    assert_eq!(
        said("failed 'make test' (failure)", &["test"]),
        ": failed 'make test'"
    );
    assert_eq!(said(command, &["a", "b"]), ": failed in a, b");
}

#[test]
fn a_branch_is_named_where_there_are_several() {
    let mut bad = event(Some(Success), Failure, "x");
    bad.build.branch = Some("release/1\u{2}.0".into());
    let say =
        |event: &BuildEvent| announcement(event, None, &settings(), &Nicks::default(), "http://m/");
    assert!(say(&bad).starts_with("linux x86 #2 failure (was success)"));
    bad.has_several_branches = true;
    let line = say(&bad);
    assert!(
        line.starts_with("linux x86 #2 on release/1 .0 failure (was"),
        "{line}"
    );
    bad.build.branch = Some(String::new());
    assert!(say(&bad).starts_with("linux x86 #2 failure (was success)"));
}

mod one_line_a_change {
    use super::super::changes::*;
    use super::*;
    use crate::master::details::BuildsetInfo;

    fn info() -> BuildsetInfo {
        BuildsetInfo {
            id: 9,
            reason: "The scheduler has seen a change".into(),
            changes: vec![Change {
                author: "Ann <ann@x>".into(),
                revision: Some("1a2b3c4d5e".repeat(4)),
                comments: Some("Tune the frob\n\nMore".into()),
                ..Change::default()
            }],
            ..BuildsetInfo::default()
        }
    }

    fn ended(
        builder: &str,
        number: u64,
        previous: Option<Outcome>,
        outcome: Outcome,
    ) -> BuildEvent {
        BuildEvent {
            builder: builder.into(),
            build: Build {
                branch: Some("main".into()),
                ..build(number, number, Some(outcome))
            },
            ..event(previous, outcome, "x")
        }
    }

    /// The line of these builds; what changes for worse or better is wanted.
    fn line(info: &BuildsetInfo, events: &[BuildEvent], open: usize) -> String {
        let told: Vec<ToldBuild> = events
            .iter()
            .map(|event| ToldBuild {
                event,
                is_wanted: event.previous != event.build.outcome(),
            })
            .collect();
        ended_line(info, &told, open, &settings(), &nicks(), "http://m/")
    }

    #[test]
    fn it_reads_like_this() {
        let mut events = vec![
            ended("mac", 7, Some(Failure), Failure),
            ended("linux", 42, Some(Success), Failure),
        ];
        for number in 0..12 {
            events.push(ended(&format!("b{number}"), 1, Some(Success), Success));
        }
        let expected = "1a2b3c4d5e on main by annie (Tune the frob): failure linux #42 (was \
                        success), mac #7 (2nd in a row); success 12 others; took 1m \
                        http://m/#/builders/1/builds/42";
        assert_eq!(line(&info(), &events, 0), expected);
        let few = &events[..3];
        let text = line(&info(), few, 2);
        assert!(
            text.contains("; success b0 #1; 2 still open; took 1m http"),
            "{text}"
        );
        let good = line(&info(), &events[2..], 0);
        assert!(
            good.contains("(Tune the frob): success 12 builds; took"),
            "{good}"
        );
        let mut mended = events[2..].to_vec();
        mended.push(ended("linux", 43, Some(Failure), Success));
        let text = line(&info(), &mended, 0);
        assert!(
            text.contains(": success linux #43 (fixed) and 12 others; took"),
            "{text}"
        );
    }

    #[test]
    fn without_a_change_it_says_why_it_was_started() {
        let forced = BuildsetInfo {
            changes: Vec::new(),
            ..info()
        };
        let events = [ended("a", 1, None, Failure), ended("b", 1, None, Failure)];
        let text = line(&forced, &events, 0);
        let heading = "buildset 9 on main (The scheduler has seen a change): failure a #1, b #1;";
        assert!(text.starts_with(heading), "{text}");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_the_link_is_kept() {
        let events: Vec<BuildEvent> = (0..200)
            .map(|number| {
                ended(
                    &format!("builder-number-{number:03}"),
                    1,
                    Some(Success),
                    Failure,
                )
            })
            .collect();
        let text = line(&info(), &events, 0);
        assert!(text.len() < 450, "{} bytes: {text}", text.len());
        assert!(
            text.contains(" more; took 1m http://m/#/builders/1/builds/1"),
            "{text}"
        );
        let named = text.matches(" #1 ").count();
        assert!(
            text.contains(&format!(" and {} more", 200 - named)),
            "{text}"
        );
        let hostile = BuildsetInfo {
            changes: vec![Change {
                author: "\u{3}04<>".into(),
                comments: Some("x\u{2}".repeat(500)),
                ..Change::default()
            }],
            ..info()
        };
        let text = line(&hostile, &events[..2], 0);
        assert!(
            !text.contains(crate::sanitize::is_forbidden) && text.len() < 450,
            "{text}"
        );
    }
}
