//! Tests of who hears of what.

use super::watches::{Watch, Watched};
use super::*;
use crate::config::tests::{SHORT, parse};
use crate::master::model::tests::{build, requested};
use crate::outcome::Outcome::{self, Failure, Success};

fn name(text: &str) -> Name {
    Casemapping::default().name(text)
}

fn irc(more: &str) -> Irc {
    parse(&format!("{SHORT}{more}")).unwrap().irc.unwrap()
}

fn routing(more: &str) -> Routing {
    Routing::new(irc(more), &State::default())
}

/// The end of a build of `linux`, tagged `release`.
fn ended(previous: Option<Outcome>, outcome: Outcome) -> BuildEvent {
    BuildEvent {
        builder: "linux".into(),
        tags: vec!["release".into()],
        build: build(1, 1, Some(outcome)),
        previous,
        is_new: true,
        ..BuildEvent::default()
    }
}

fn told(routing: &mut Routing, event: &BuildEvent) -> Vec<String> {
    routing
        .recipients(event, true)
        .keys()
        .map(Name::to_string)
        .collect()
}

#[test]
fn channels_hear_of_what_they_asked_for() {
    let mut r = routing(
        "notify_events = problem\n[channel #a]\n[channel #b]\nnotify_events = success\n\
         [channel #c]\nnotify_events = finished\nbuilders = mac*\n\
         [channel #d]\nnotify_events = finished\ntags = release\n\
         [channel #e]\nnotify_events = finished\nbuilders = !*nu*\n",
    );
    assert_eq!(told(&mut r, &ended(Some(Success), Failure)), ["#a", "#d"]);
    assert_eq!(told(&mut r, &ended(Some(Success), Success)), ["#b", "#d"]);
    assert_eq!(
        told(&mut r, &ended(None, Failure)),
        ["#a", "#d"],
        "a first failure"
    );
    let old = BuildEvent {
        is_new: false,
        ..ended(Some(Success), Failure)
    };
    assert_eq!(told(&mut r, &old), [""; 0]);
}

#[test]
fn people_hear_what_they_asked_for_in_private() {
    let mut r = routing("notify_events = finished\npm_to_nicks = ann\n[channel #a]\n");
    r.set_events(&name("joe"), EventSet::parse("failure").unwrap());
    r.set_events(&name("#a"), EventSet::EMPTY);
    assert_eq!(told(&mut r, &ended(None, Failure)), ["ann", "joe"]);
    assert_eq!(told(&mut r, &ended(None, Success)), ["ann"]);
    r.set_events(&name("#A"), EventSet::parse("finished").unwrap());
    assert!(r.wish(&name("#a")).is_none(), "as configured");
}

#[test]
fn who_watches_hears_of_the_end_once() {
    let mut r = routing("notify_events = finished\n[channel #a]\n");
    let watch = |target: &str| Watch {
        target: name(target),
        what: Watched::Request(7),
        mask: String::new(),
    };
    r.watches.add(watch("#a"));
    r.watches.add(watch("joe"));
    let event = |is_new, ends_request| BuildEvent {
        build: requested(1, 7, Some(Success)),
        is_new,
        ends_request,
        ..ended(None, Success)
    };
    assert_eq!(
        told(&mut r, &event(true, false)),
        ["#a"],
        "it will be retried"
    );
    assert_eq!(told(&mut r, &event(true, true)), ["#a", "joe"]);
    assert_eq!(told(&mut r, &event(false, true)), [""; 0]);
    assert!(!r.watches.add(watch("#a")), "it has heard of it");
}

#[test]
fn the_next_build_is_told_though_nobody_saw_it_start() {
    let mut r = routing("[channel #a]\n");
    r.watches.add(Watch {
        target: name("joe"),
        what: Watched::NextBuildOf("linux".into()),
        mask: String::new(),
    });
    let running_before = BuildEvent {
        build: requested(1, 7, Some(Success)),
        ends_request: true,
        ..ended(None, Success)
    };
    assert_eq!(told(&mut r, &running_before), [""; 0]);
    let next = BuildEvent {
        build: requested(2, 8, Some(Success)),
        start_was_missed: true,
        ..running_before
    };
    assert_eq!(told(&mut r, &next), ["joe"]);
}

#[test]
fn a_channel_that_was_left_stays_left_when_nothing_says_otherwise() {
    let mut r = routing("[channel #a]\n");
    r.leave(&name("#a"));
    assert!(r.reconfigure(irc("[channel #a]\n")).join.is_empty());
    assert!(!r.is_target(&name("#a")));
    r.reconfigure(irc("[channel #b]\n"));
    assert_eq!(
        r.reconfigure(irc("[channel #a]\n")).join.len(),
        1,
        "a section anew"
    );
}

#[test]
fn what_a_line_wants_to_say_decides_what_is_asked_for() {
    let wanted = |more: &str, event: &BuildEvent| {
        routing(&format!("notify_events = finished\n{more}[channel #a]\n"))
            .wanted_details(event, true)
    };
    let good = ended(None, Success);
    let bad = ended(None, Failure);
    let nothing = Wanted::default();
    let authors = Wanted {
        authors: true,
        ..nothing
    };
    let revisions = Wanted {
        revisions: true,
        ..nothing
    };
    assert_eq!(wanted("", &good), nothing);
    assert_eq!(wanted("", &bad), authors);
    assert_eq!(wanted("show_blame_list = no\n", &bad), nothing);
    assert_eq!(wanted("use_revisions = yes\n", &good), revisions);
    let blamed = Wanted {
        buildset: true,
        ..authors
    };
    assert_eq!(wanted("pm_blamed = yes\n", &bad), blamed);
    let mut of_a_command = bad.clone();
    of_a_command.build.state_string = "failed 'sh -c ...' (failure)".into();
    let steps = Wanted {
        steps: true,
        ..authors
    };
    assert_eq!(wanted("", &of_a_command), steps);
    let started = BuildEvent {
        build: build(1, 1, None),
        ..ended(None, Success)
    };
    let may = |more: &str| routing(more).may_need_details(&started);
    assert!(may("notify_events = failure\n[channel #a]\n"));
    assert!(!may("[channel #a]\n"), "nobody hears of anything");
    assert!(!may(
        "notify_events = failure\nshow_blame_list = no\n[channel #a]\n"
    ));
    assert!(!may(
        "notify_events = failure\nbuilders = mac\n[channel #a]\n"
    ));
}

#[test]
fn a_mute_ends_by_itself_or_by_command() {
    let mut r = routing("notify_events = finished\n[channel #a]\n");
    r.mute(&name("#a"), 100);
    assert!(r.is_muted(&name("#A"), 99) && !r.is_muted(&name("#a"), 100));
    assert_eq!(
        told(&mut r, &ended(None, Success)),
        ["#a"],
        "it is held back"
    );
    assert_eq!(r.next_unmute(), Some(100));
    assert!(!r.end_mutes(99) && r.end_mutes(100) && !r.end_mutes(101));
    r.mute(&name("#a"), i64::MAX);
    assert_eq!(r.next_unmute(), None);
    r.unmute(&name("#a"));
    assert!(!r.is_muted(&name("#a"), 0));
}

#[test]
fn a_channel_in_two_spellings_is_one() {
    let state = State {
        joined: [
            ("#Dev".to_owned(), String::new()),
            ("#ops".into(), "key".into()),
        ]
        .into(),
        muted: [("#DEV".to_owned(), i64::MAX), ("#gone".into(), 9)].into(),
        ..State::default()
    };
    let r = Routing::new(irc("[channel #dev]\n"), &state);
    let names: Vec<String> = r.targets.keys().map(Name::to_string).collect();
    assert_eq!(
        names,
        ["#dev", "#ops"],
        "as they are configured, and none that is gone"
    );
    assert!(r.is_muted(&name("#dev"), 0));
    assert_eq!(r.canonical(&name("#DeV")).unwrap().as_str(), "#dev");
}

#[test]
fn what_is_left_is_forgotten() {
    let mut r = routing("notify_events = finished\n[channel #a]\n");
    r.watches.add(Watch {
        target: name("#a"),
        what: Watched::Request(7),
        mask: String::new(),
    });
    r.leave(&name("#A"));
    assert!(!r.is_target(&name("#a")) && r.watches.requests().is_empty());
    let mut state = State::default();
    r.export(&mut state);
    assert_eq!(state.left.len(), 1);
    assert!(!Routing::new(irc("[channel #a]\n"), &state).is_target(&name("#a")));
    r.join(&name("#a"), "");
    assert!(r.is_target(&name("#a")));
    r.join(&name("#b"), "key");
    r.export(&mut state);
    assert_eq!(state.joined, [("#b".to_owned(), "key".to_owned())].into());
}

#[test]
fn a_new_configuration_changes_what_it_says_anew() {
    let before = "[channel #a]\nnotify_events = failure\n[channel #b]\n[channel #c]\n";
    let mut r = routing(before);
    let worse = EventSet::parse("worse").unwrap();
    for channel in ["#a", "#b", "#c"] {
        r.set_events(&name(channel), worse);
    }
    let same = r.reconfigure(irc(before));
    assert!(same.leave.is_empty());
    assert_eq!(r.settings(&name("#a")).events, worse, "nothing new");
    let after = "[channel #A]\nnotify_events = success\n[channel #B]\n[channel #d]\n";
    let changes = r.reconfigure(irc(after));
    assert_eq!(
        changes.leave,
        [name("#c")],
        "a new spelling is no new channel"
    );
    assert_eq!(changes.join.len(), 3);
    let success = EventSet::parse("success").unwrap();
    assert_eq!(r.settings(&name("#a")).events, success);
    assert_eq!(r.settings(&name("#b")).events, worse);
    assert_eq!(r.canonical(&name("#a")).unwrap().as_str(), "#A");
}

#[test]
fn who_wants_to_hear_nothing_takes_no_place() {
    let mut r = routing("[channel #dev]\n");
    for number in 0..500 {
        let nick = name(&format!("n{number}"));
        r.set_events(&nick, EventSet::parse("failure").unwrap());
        r.set_events(&nick, EventSet::EMPTY);
        r.mute(&nick, 1000);
        r.unmute(&nick);
    }
    assert_eq!(r.targets.len(), 1);
    assert!(r.wishes.is_empty());
}

#[test]
fn people_who_are_gone_make_room() {
    let mut r = routing("pm_to_nicks = boss\n[channel #dev]\n");
    let failure = EventSet::parse("failure").unwrap();
    for number in 0..TARGETS as i64 {
        let nick = name(&format!("n{number}"));
        r.set_events(&nick, failure);
        r.note_seen(&nick, 1_000_000 + number);
    }
    let room = r.make_room(&name("new"), 1_000_500).unwrap();
    assert_eq!(room, [name("n0")], "gone longest");
    assert_eq!(
        r.make_room(&name("n5"), 1_000_500),
        Some(vec![]),
        "has a place"
    );
    let absent = r.drop_absent(1_000_100 + ABSENT);
    assert_eq!(absent.len(), 99);
    assert!(r.is_target(&name("boss")), "named by the configuration");
}

#[test]
fn workers_are_told_of_to_whom_it_concerns() {
    let r = routing("[channel #a]\nnotify_events = worker\nbuilders = x\n[channel #b]\n");
    let names: Vec<String> = r.worker_recipients().iter().map(Name::to_string).collect();
    assert_eq!(names, ["#a"]);
}

#[test]
fn names_are_folded_as_the_server_does() {
    let mut r = routing("[channel #a[]\nnotify_events = finished\n");
    assert!(
        !r.is_target(&Casemapping::Ascii.name("#a{")),
        "not before it says so"
    );
    r.refold(Casemapping::Rfc1459);
    assert!(r.is_target(&name("#a{")));
    r.refold(Casemapping::Ascii);
    assert!(!r.is_target(&Casemapping::Ascii.name("#a{")));
    assert!(r.is_target(&Casemapping::Ascii.name("#A[")));
}

#[test]
fn patterns_that_match_nothing_are_named() {
    let irc = irc(
        "builders = lnux*\n[channel #a]\n[channel #b]\ntags = relaese release\nbuilders = linux*\n\
         [channel #c]\nbuilders = linux* !linux*\n",
    );
    let mut linux = crate::master::model::tests::builder(1, "linux");
    linux.tags = vec!["release".into()];
    let expected = [
        "[irc] `builders`: `lnux*` matches no builder",
        "[irc] `builders` and `tags` together leave no builder",
        "[channel #b] `tags`: no builder is tagged `relaese`",
        "[channel #c] `builders` and `tags` together leave no builder",
    ];
    assert_eq!(idle_patterns(&irc, [&linux].into_iter()), expected);
}
