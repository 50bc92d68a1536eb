//! Tests of the commands.

use super::*;
use crate::config::tests::{SHORT, parse};
use crate::fuzz::fuzz;
use crate::master::jobs::StopOrder;
use crate::master::model::tests::{build, model, requested};
use crate::master::resources::{Build, Change, Worker};
use crate::names::Casemapping;
use crate::outcome::Outcome::{Failure, Success};
use crate::routing::watches::Watch;
use crate::state_file::State;

const NOW: i64 = 1120;

fn name(text: &str) -> Name {
    Casemapping::default().name(text)
}

/// The routing of a bot in #c, which hears of failures.
fn routing() -> Routing {
    let text = format!("{SHORT}[channel #c]\nnotify_events = failure\n");
    let irc = parse(&text).unwrap().irc.unwrap();
    Routing::new(irc, &State::default())
}

fn invocation(text: &str) -> Invocation {
    Invocation {
        place: name("#c"),
        nick: name("joe"),
        mask: "joe!u@h".into(),
        text: text.into(),
        ..Invocation::default()
    }
}

fn respond_as(
    model: &Model,
    routing: &Routing,
    text: &str,
    lookup_done: bool,
    own_only: bool,
) -> CommandResult {
    let nick = name("bot");
    let settings = routing.settings(&name("#c"));
    let context = Context {
        model,
        routing,
        settings: &settings,
        now: NOW,
        lookup_done,
        max_lines: usize::MAX,
        nick: Some(&nick),
        own_only,
    };
    run(&invocation(text), &context)
}

fn respond(model: &Model, text: &str, lookup_done: bool) -> CommandResult {
    respond_as(model, &routing(), text, lookup_done, false)
}

/// The lines of an answer, or the one that says what was wrong.
fn lines(model: &Model, text: &str) -> Vec<String> {
    match respond(model, text, true) {
        Err(why) => vec![why],
        Ok(Response::Lines(lines) | Response::Cut { lines, .. } | Response::Change(lines, _)) => {
            lines
        }
        Ok(Response::List { heading, items, .. }) => {
            vec![format!("{heading}: {}", items.join(", "))]
        }
        Ok(Response::NeedsJob(job)) => panic!("{text}: {job:?}"),
    }
}

#[test]
fn every_wrong_command_gets_one_line_that_helps() {
    let m = model(&["linux", "mac os"]);
    let long = "x".repeat(500);
    for (text, reply) in [
        ("", "yes? try `help`"),
        ("stauts", "unknown command `stauts`; did you mean `status`?"),
        (
            "frobnicate\u{2}\u{3}4 x",
            "unknown command `frobnicate 4`; try `help`",
        ),
        ("watch", "usage: watch BUILDER"),
        ("stop build b", "usage: stop build BUILDER REASON"),
        ("watch linx", "no builder linx; did you mean linux?"),
        ("status macos", "no builder macos; did you mean \"mac os\"?"),
        (
            "status zzzzzz",
            "no builder zzzzzz; `list all builders` shows them",
        ),
        (
            "status *zz*",
            "no builder *zz*; `list all builders` shows them",
        ),
        ("list", "usage: list [all|N] builders|workers|changes"),
        (
            "list bilders",
            "usage: list [all|N] builders|workers|changes",
        ),
        (
            "list 0 builders",
            "usage: list [all|N] builders|workers|changes",
        ),
        ("notify maybe", "usage: notify on|off|list [EVENT...]"),
        (
            "notify on failed",
            "notify: unknown event `failed`; did you mean failure?",
        ),
        (
            "mute tomorrow",
            "mute: `tomorrow` is not a duration like 90, 15s, 10m, 2h or 1d",
        ),
        (
            "join dev",
            "join: a channel is written #name, a key without blanks behind it",
        ),
        ("leave #nowhere", "leave: #nowhere is no channel of mine"),
        (
            "force build --revision linux x",
            "force: write --revision=VALUE",
        ),
        (
            "force build --branch linux x",
            "force: write --branch=VALUE",
        ),
        (
            "force build --frob=1 linux x",
            "force: no option --frob; see `help force`",
        ),
        (
            "force build --props=a linux x",
            "force: write --props=NAME=VALUE,…",
        ),
        (
            "force build --codebase=lib linux x",
            "force: --codebase goes before --branch or --revision",
        ),
        ("force build * x", "one builder, please: * is not one"),
        (
            "help stat",
            "help: no command `stat`; did you mean `status`?",
        ),
    ] {
        assert_eq!(lines(&m, text), [reply], "{text}");
    }
    let said = lines(&m, &format!("status {long}"));
    assert!(said[0].ends_with("that is longer than a name"), "{said:?}");
}

#[test]
fn builders_are_named_quoted_or_not_by_glob_or_all() {
    let m = model(&["all-in", "linux", "mac os"]);
    let found = |text: &str| {
        let Ok(Response::Cut { lines, .. }) = respond(&m, &format!("status {text}"), true) else {
            panic!("{text}")
        };
        let names = lines
            .iter()
            .map(|line| line.split(':').next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(found("linux"), ["linux"]);
    for text in ["mac os", "\"mac os\"", "'mac os'", "mac\\ os"] {
        assert_eq!(found(text), ["mac os"], "{text}");
    }
    assert_eq!(found("*l*"), ["all-in", "linux"]);
    assert_eq!(found("!*l*"), ["mac os"]);
    assert_eq!(found(""), ["all-in", "linux", "mac os"]);
    assert_eq!(found("all"), ["all-in", "linux", "mac os"]);
}

#[test]
fn a_name_can_be_typed_as_it_is_shown() {
    for builder in [
        "a b",
        "a\"b",
        "it's",
        r"dir\a b",
        "a\"'\\'\"",
        "",
        &"x".repeat(110),
    ] {
        let m = model(&["other", builder]);
        let text = format!("force build {} why", quote(builder));
        let Ok(Response::NeedsJob(Job::Force(order))) = respond(&m, &text, false) else {
            panic!("{builder}")
        };
        assert_eq!((order.builder_id, order.builder.as_str()), (2, builder));
    }
}

#[test]
fn a_force_says_who_asks_and_keeps_every_option() {
    let m = model(&["app"]);
    let text = "force build --codebase=lib --branch=dev --revision=abc --codebase=app \
                --branch=rel --props=a=1,b=2 --props=a=3 --scheduler=s app  it  broke";
    let Ok(Response::NeedsJob(Job::Force(order))) = respond(&m, text, false) else {
        panic!()
    };
    let source = order.source.iter().map(|field| {
        let codebase = field.codebase.as_deref().unwrap_or("");
        format!("{codebase} {}={}", field.key, field.value)
    });
    let expected = ["lib branch=dev", "lib revision=abc", "app branch=rel"];
    assert_eq!(source.collect::<Vec<_>>(), expected);
    let properties: Vec<String> = order
        .properties
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    assert_eq!(properties, ["a=1", "b=2", "a=3"]);
    assert_eq!(order.scheduler.as_deref(), Some("s"));
    assert_eq!(order.reason, "it broke (joe in #c)");
    assert_eq!(order.who, "joe <joe@irc.invalid>");
}

#[test]
fn who_may_not_stop_may_take_back_their_own_requests() {
    let mut m = model(&["app"]);
    let mut routing = routing();
    let stop =
        |m: &Model, routing: &Routing| respond_as(m, routing, "stop build app over", false, true);
    let refused = "sorry, joe, you may not use `stop`".to_owned();
    assert_eq!(stop(&m, &routing), Err(refused));
    m.queued.insert(7, 1);
    m.queued.insert(8, 1);
    routing.watches.add(Watch {
        target: name("#c"),
        what: Watched::Request(7),
        mask: "joe!u@h".into(),
    });
    let order = StopOrder {
        builder_id: 1,
        builder: "app".into(),
        reason: "over (joe in #c)".into(),
        only: Some(vec![7]),
    };
    assert_eq!(stop(&m, &routing), Ok(Response::NeedsJob(Job::Stop(order))));
}

#[test]
fn the_log_shows_no_key() {
    assert_eq!(shown("join #c sesame"), "join #c");
    assert_eq!(shown("join #c\u{a0}sesame"), "join #c");
    assert_eq!(shown("jion #c sesame"), "jion");
    assert_eq!(shown("Status \u{2}b"), "status b");
}

#[test]
fn what_is_not_known_is_asked_for_once() {
    let mut m = model(&["b"]);
    let job = |builders, steps| Ok(Response::NeedsJob(Job::Lookup { builders, steps }));
    assert_eq!(respond(&m, "status b", false), job(vec![1], vec![]));
    assert_eq!(respond(&m, "last", false), job(vec![1], vec![]));
    m.apply_build(build(1, 1, Some(Success)));
    m.apply_build(build(2, 2, None));
    assert_eq!(respond(&m, "status b", false), job(vec![], vec![2]));
    let last = "b: #1 success 1m ago, took 1m #/builders/1/builds/1";
    assert_eq!(lines(&m, "last b"), [last]);
}

#[test]
fn while_the_master_is_away_answers_have_their_age() {
    let mut m = model(&["b"]);
    m.last_error = Some("gone".into());
    m.last_contact = Some(1000);
    let age = "the master does not answer; as of 2m ago:";
    assert_eq!(lines(&m, "status b")[0], age);
    let unknown = format!("{age} no builder c; did you mean b?");
    assert_eq!(lines(&m, "status c"), [unknown]);
    let heading = format!("{age} 0 workers: ");
    assert_eq!(lines(&m, "list workers"), [heading]);
    m.last_contact = Some(NOW + 3600);
    let jumped = "the master does not answer; as of 0s ago:";
    assert_eq!(lines(&m, "status b")[0], jumped, "our clock has jumped");
    m.is_complete = false;
    let never = "the master has not answered yet: gone";
    assert_eq!(lines(&m, "status c"), [never]);
}

#[test]
fn nothing_is_said_to_be_empty_before_it_is_known() {
    let m = Model::default();
    for command in ["status", "status b", "list builders", "list workers"] {
        let said = lines(&m, command).join(" ");
        assert!(
            said.starts_with("the master has not answered yet"),
            "{command}: {said}"
        );
    }
}

#[test]
fn watching() {
    let mut m = model(&["b"]);
    let lookup = Job::Lookup {
        builders: vec![1],
        steps: vec![],
    };
    assert_eq!(
        respond(&m, "watch b", false),
        Ok(Response::NeedsJob(lookup))
    );
    let idle = "b: not building now; `watch next b` tells of its next build";
    assert_eq!(lines(&m, "watch b"), [idle]);
    let next = Effect::Watch(vec![Watched::NextBuildOf("b".into())]);
    let watching = vec!["watching the next build of b".to_owned()];
    assert_eq!(
        respond(&m, "watch next b", false),
        Ok(Response::Change(watching, next))
    );
    m.apply_build(build(1, 1, Some(Success)));
    m.apply_build(Build {
        started_at: 1110,
        ..requested(2, 7, None)
    });
    let effect = Effect::Watch(vec![Watched::Request(7)]);
    let said = vec!["watching b #2 (about 50s to go)".to_owned()];
    assert_eq!(
        respond(&m, "watch b", false),
        Ok(Response::Change(said, effect))
    );
    let odd = model(&["next b"]);
    let idle = "next b: not building now; `watch next \"next b\"` tells of its next build";
    assert_eq!(
        lines(&odd, "watch next b"),
        [idle],
        "a builder of that name"
    );
}

#[test]
fn notify_says_what_is_on_afterwards() {
    let m = model(&["b"]);
    for (text, reply, events) in [
        (
            "notify on",
            "on for started finished failure",
            "started finished failure",
        ),
        ("notify on worse", "on for failure worse", "failure worse"),
        ("notify off failure", "off: nothing is announced here", ""),
        ("notify off", "off: nothing is announced here", ""),
    ] {
        let effect = Effect::SetEvents(EventSet::parse(events).unwrap());
        let said = vec![format!("notify is {reply}")];
        assert_eq!(respond(&m, text, false), Ok(Response::Change(said, effect)));
    }
    let list = vec!["notify is on for failure".to_owned()];
    assert_eq!(respond(&m, "notify list", false), Ok(Response::Lines(list)));
}

#[test]
fn muting() {
    let m = model(&["b"]);
    let muted = |text: &str| respond(&m, text, false);
    let for_ever = vec!["muted; `unmute` ends it".to_owned()];
    assert_eq!(
        muted("mute"),
        Ok(Response::Change(for_ever, Effect::MuteUntil(i64::MAX)))
    );
    let for_a_while = vec!["muted for 10m".to_owned()];
    let until = Effect::MuteUntil(NOW + 600);
    assert_eq!(muted("mute 10m"), Ok(Response::Change(for_a_while, until)));
    assert_eq!(lines(&m, "unmute"), ["nothing is muted here"]);
    let mut routing = routing();
    routing.mute(&name("#c"), NOW + 1);
    let unmuted = vec!["unmuted".to_owned()];
    let said = respond_as(&m, &routing, "unmute", false, false);
    assert_eq!(said, Ok(Response::Change(unmuted, Effect::Unmute)));
}

#[test]
fn lists() {
    let mut m = model(&["a", "b c", "d"]);
    m.apply_worker(Worker {
        id: 1,
        name: "w1".into(),
        online: true,
        paused: true,
        builders: [1, 2].into(),
        ..Worker::default()
    });
    let online = "3 builders (1 offline: list all builders): a, \"b c\"";
    assert_eq!(lines(&m, "list builders"), [online]);
    let all = "3 builders: a, \"b c\", d [offline]";
    assert_eq!(lines(&m, "list all builders"), [all]);
    let one = "3 builders (1 offline: list all builders): a";
    assert_eq!(lines(&m, "list 1 builders"), [one]);
    m.apply_worker(Worker {
        id: 2,
        name: "old".into(),
        ..Worker::default()
    });
    assert_eq!(lines(&m, "list workers"), ["1 worker: w1 [paused]"]);
    let both = "2 workers: old [offline], w1 [paused]";
    assert_eq!(lines(&m, "list all workers"), [both]);
    // What is not here, the master must tell.
    for id in [7, 9, 10] {
        m.add_change(Change {
            id,
            revision: Some(format!("r{id}")),
            author: "Ann <a@x>".into(),
            ..Change::default()
        });
    }
    let job = Ok(Response::NeedsJob(Job::Changes(4)));
    assert_eq!(respond(&m, "list 4 changes", false), job);
    assert_eq!(lines(&m, "list 2 changes"), ["r10 by Ann: ", "r9 by Ann: "]);
}

#[test]
fn a_list_that_is_cut_writes_only_what_is_shown() {
    let names: Vec<String> = (0..10_000).map(|i| format!("builder-{i:05}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let m = model(&names);
    let nick = name("bot");
    let routing = routing();
    let context = Context {
        model: &m,
        routing: &routing,
        settings: &TargetSettings::default(),
        now: NOW,
        lookup_done: true,
        max_lines: 10,
        nick: Some(&nick),
        own_only: false,
    };
    let Ok(Response::List { items, omitted, .. }) = run(&invocation("list all builders"), &context)
    else {
        panic!()
    };
    assert!(items.len() < 400, "{}", items.len());
    assert_eq!(items.len() + omitted, 10_000);
    let Ok(Response::Cut { lines, omitted }) = run(&invocation("status"), &context) else {
        panic!()
    };
    assert_eq!((lines.len(), omitted), (10, 9_990));
}

#[test]
fn the_table_and_the_configuration_know_the_same_commands() {
    let mut names: Vec<&str> = TABLE.iter().map(|command| command.name).collect();
    let mut known = COMMANDS.to_vec();
    names.sort_unstable();
    known.sort_unstable();
    assert_eq!(names, known);
    assert_eq!(MANUAL.lines().count(), TABLE.len());
    let m = model(&["b"]);
    for command in &TABLE {
        assert!(manual(command.name).contains(": "), "{}", command.name);
        assert_eq!(lines(&m, &format!("help {}", command.name)).len(), 1);
    }
}

#[test]
fn without_irc_some_commands_make_no_sense() {
    let m = model(&["b"]);
    let routing = Routing::default();
    let context = Context {
        model: &m,
        routing: &routing,
        settings: &TargetSettings::default(),
        now: NOW,
        lookup_done: true,
        max_lines: usize::MAX,
        nick: None,
        own_only: false,
    };
    for command in ["watch b", "notify on", "mute", "join #x", "leave"] {
        let name = command.split(' ').next().unwrap();
        let why = format!("{name}: this works on IRC only");
        assert_eq!(run(&invocation(command), &context), Err(why));
    }
    assert!(run(&invocation("status"), &context).is_ok());
}

#[test]
fn fuzz_commands() {
    let mut m = model(&["b", "c \"d\""]);
    m.apply_build(build(1, 1, Some(Failure)));
    let seeds = [
        "status \"b",
        "notify on x",
        "list 99999999999999999999 builders",
        "watch 'c",
        "mute 9d",
        "help \\",
        "force build --branch=x --props=a=b b why",
        "status !b",
    ];
    let routing = routing();
    fuzz(&seeds.map(str::as_bytes), |bytes, random| {
        let text = String::from_utf8_lossy(bytes);
        let lookup_done = random.below(2) == 0;
        let said = match respond_as(&m, &routing, &text, lookup_done, false) {
            Ok(Response::Lines(lines) | Response::Cut { lines, .. }) => lines,
            Ok(Response::Change(lines, _)) => lines,
            _ => return,
        };
        let is_clean = |line: &String| !line.contains(char::is_control);
        assert!(said.iter().all(is_clean), "{said:?}");
    });
}

#[test]
fn why_asks_about_the_build_that_went_wrong_last() {
    use crate::master::diagnosis::{Question, Which};
    let mut m = model(&["linux", "mac os"]);
    assert_eq!(lines(&m, "why"), ["nothing has gone wrong lately"]);
    let ended = |builder_id, number, at, outcome| Build {
        builder_id,
        complete_at: Some(at),
        ..build(number, number, Some(outcome))
    };
    m.apply_build(ended(1, 1, 1060, Failure));
    m.apply_build(ended(2, 2, 1070, Failure));
    m.apply_build(ended(2, 3, 1080, Success));
    let asked = |text: &str| match respond(&m, text, false) {
        Ok(Response::NeedsJob(Job::Why(Question { builder, build, .. }))) => {
            let number = match build {
                Which::Known(build) => build.number,
                Which::Number(number) => 1000 + number,
                Which::LastBad => 0,
            };
            format!("{builder} {number}")
        }
        other => panic!("{text}: {other:?}"),
    };
    assert_eq!(asked("why"), "mac os 2");
    assert_eq!(asked("why linux"), "linux 1");
    assert_eq!(asked("why linux 7"), "linux 1007");
    assert_eq!(asked("why \"mac os\" #7"), "mac os 1007");
    assert_eq!(
        lines(&m, "why *"),
        ["why: one builder, please: * is not one"]
    );
    assert_eq!(
        lines(&m, "why linx"),
        ["no builder linx; did you mean linux?"]
    );
    let quiet = model(&["linux"]);
    assert!(matches!(
        respond(&quiet, "why linux", false),
        Ok(Response::NeedsJob(Job::Why(Question {
            build: Which::LastBad,
            ..
        })))
    ));
}
