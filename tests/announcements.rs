//! What the bot announces: real builds of a real master, heard by real people.

mod common;

use common::{
    ANNOUNCING, Bot, CANCELLED, Client, EXCEPTION, FAILURE, Lab, Listener, POLLING, SUCCESS,
    TIMEOUT, WARNINGS, buildbot, matches, wait_for,
};
use serde_json::{Value, json};
use std::time::SystemTime;

/// A master with its worker, and ngIRCd.
#[track_caller]
fn lab(name: &str, config: &str) -> Lab {
    Lab::new()
        .with_master(name, config)
        .with_worker("w1")
        .with_ngircd()
}

const WORDS: [&str; 7] = [
    "success",
    "warnings",
    "failure",
    "skipped",
    "exception",
    "retry",
    "cancelled",
];

/// The events of a build that ended, by Buildbot's documentation. `before` is the result of the build before it.
fn events(result: i64, before: Option<i64>) -> Vec<String> {
    let word = |result: i64| WORDS[result as usize];
    let mut events = vec!["finished".to_string(), word(result).to_string()];
    let Some(before) = before.filter(|_| result != CANCELLED) else {
        return events;
    };
    let capital = word(result)[..1].to_uppercase() + &word(result)[1..];
    events.push(format!("{}To{capital}", word(before)));
    let bad = |result| result == FAILURE || result == EXCEPTION;
    if bad(result) && !bad(before) {
        events.push("problem".to_string());
    }
    if !bad(result) && bad(before) {
        events.push("recovery".to_string());
    }
    if result > before {
        events.push("worse".to_string());
    }
    if result < before {
        events.push("better".to_string());
    }
    events
}

/// A bot of its own that listens for one event.
struct Subscriber<'a> {
    nick: String,
    event: &'a str,
    builders: &'a str,
    bot: Bot,
    listener: Listener,
}

/// The results between which Buildbot has events of the kind `successToFailure`.
const TRANSITION_RESULTS: [i64; 4] = [SUCCESS, WARNINGS, FAILURE, EXCEPTION];

/// The results of builders `a` and `b`, which take turns: each transition comes once.
const RESULTS: [(&str, [i64; 10]); 2] = [
    (
        "a",
        [
            SUCCESS, SUCCESS, WARNINGS, CANCELLED, SUCCESS, FAILURE, SUCCESS, EXCEPTION, WARNINGS,
            WARNINGS,
        ],
    ),
    (
        "b",
        [
            WARNINGS, FAILURE, WARNINGS, EXCEPTION, CANCELLED, FAILURE, FAILURE, EXCEPTION,
            EXCEPTION, SUCCESS,
        ],
    ),
];

/// One bot an event, its builders and its lines of `[buildbot]`. `worker` has a test of its own.
fn subscriptions(events_of_a_build: &[String]) -> Vec<(&str, &str, &str)> {
    let mut all = Vec::new();
    for event in events_of_a_build {
        all.push((event.as_str(), "*", ""));
    }
    for event in ["cancelled", "recovery", "failureToSuccess"] {
        all.push((event, "*", POLLING));
    }
    // Every build has these: one bot a builder.
    for (builder, buildbot) in [("a", ""), ("b", ""), ("a", POLLING), ("b", POLLING)] {
        all.push(("started", builder, buildbot));
        all.push(("finished", builder, buildbot));
    }
    all
}

/// The events that only some builds have.
fn selective_events() -> Vec<String> {
    let words = "success warnings failure exception cancelled problem recovery worse better";
    let mut names: Vec<String> = words.split(' ').map(String::from).collect();
    for before in TRANSITION_RESULTS {
        for now in TRANSITION_RESULTS {
            names.push(events(now, Some(before)).remove(2));
        }
    }
    names
}

/// Every subscriber to this event of this builder announces this line.
#[track_caller]
fn hear_event(subscribers: &[Subscriber], event: &str, builder: &str, line: &str) {
    for subscriber in subscribers {
        if subscriber.event == event && matches(subscriber.builders, builder) {
            let expected = format!("<{}> {line}", subscriber.nick);
            subscriber.listener.hear(&expected);
        }
    }
}

#[test]
fn every_event_of_real_builds_is_announced_once() {
    let lab = lab("events", "gated('a')\ngated('b')\nends('last', SUCCESS)\n");
    let names = selective_events();
    let joe = lab.person("joe", &[]);
    let mut subscribers = Vec::new();
    for (i, (event, builders, buildbot)) in subscriptions(&names).into_iter().enumerate() {
        let nick = format!("b{i}");
        let channel = format!("#{nick}");
        joe.join(&channel);
        let irc =
            format!("notify_events = {event}\nbuilders = {builders} last\n[channel {channel}]");
        subscribers.push(Subscriber {
            bot: lab.start_as(&nick, buildbot, &irc),
            listener: Listener::new(&joe, &channel),
            nick,
            event,
            builders,
        });
    }
    for subscriber in &mut subscribers {
        subscriber.bot.wait_ready();
        let lines = joe.lines(&subscriber.listener.target);
        assert!(lines.is_empty(), "old builds were announced: {lines:?}");
    }

    let mut before = [None; 2];
    for turn in 0..20 {
        let index = turn % 2;
        let number = turn / 2 + 1;
        let (builder, results) = RESULTS[index];
        let result = results[number - 1];
        lab.master().force(builder, &[]);
        let id = lab.master().builder_id(builder);
        let url = format!("{}#/builders/{id}/builds/{number}", lab.master_url);
        let line = format!("{builder} #{number} started {url}");
        hear_event(&subscribers, "started", builder, &line);
        lab.master().release(builder, result);
        let word = WORDS[result as usize];
        let line = format!("{builder} #{number} {word}*, took *s {url}");
        for event in events(result, before[index]) {
            hear_event(&subscribers, &event, builder, &line);
        }
        if result != CANCELLED {
            before[index] = Some(result);
        }
    }
    for subscriber in &subscribers {
        expect_no_late_line(subscriber, &joe);
    }
    lab.master().force("last", &[]);
    for subscriber in &subscribers {
        let expected = format!("<{}> last #1 success, took *", subscriber.nick);
        subscriber.listener.hear(&expected);
    }
}

/// Settings are changed after all builds: a line that the bot still had to announce would come before the answers.
#[track_caller]
fn expect_no_late_line(subscriber: &Subscriber, joe: &Client) {
    let Subscriber { nick, listener, .. } = subscriber;
    let say = |text: &str| joe.say(&listener.target, &format!("{nick}: {text}"));
    // A bot that announces nothing of the last build may not have seen its end yet.
    loop {
        say("last b");
        if matches(&format!("<{nick}> b: #10 *"), &listener.next()) {
            break;
        }
    }
    say("notify off started success");
    say("notify on finished");
    listener.hear(&format!("<{nick}> notify is o*"));
    listener.hear(&format!("<{nick}> notify is on for *finished*"));
}

const EVE: &str = "Eve\r\nQUIT :x\u{2}\u{3}04 red\u{202e}\u{0} <eve@example.org>";

/// Many channels, of two bots for speed, and people in private.
#[test]
fn each_channel_and_person_hears_what_it_is_configured_for() {
    let config = "ends('app', FAILURE, tags=['release'])\nends('mac os', FAILURE)\nends('größe/x', FAILURE, tags=['x'])\n\
                  on_change('changes', ['app'])\nforce('force', ['mac os', 'größe/x'])";
    let lab = lab("channels", config);
    let channels = [
        "#all",
        "#tags",
        "#globs",
        "#off",
        "#notice",
        "#colors",
        "#revisions",
        "#noblame",
    ];
    let joe = lab.person("joe", &channels);
    let ann = lab.person("ann", &[]);
    let config = "notify_events = failure\nbuilders = app\npm_to_nicks = ann\n[channel #all]\nbuilders = *\n\
                  [channel #tags]\ncategories = other release\nbuilders = *\n[channel #globs]\nbuilders = \"mac o?\" gr*/x\n\
                  [channel #off]\nnotify_events = success\n";
    let _bot = lab.start_ready("bot", "", config);
    let config = "notify_events = failure\nbuilders = app\n[channel #notice]\nnotice_on_channel = yes\n\
                  [channel #colors]\nuse_colors = yes\n[channel #revisions]\nuse_revisions = yes\nbuilders = app \"mac os\"\n\
                  [channel #noblame]\nshow_blame_list = no\n";
    let _two = lab.start_ready("two", "", config);
    let [all, tags, globs, off, notice, colors, revisions, noblame] =
        channels.map(|channel| Listener::new(&joe, channel));
    let private = Listener::new(&ann, "ann");
    let joe_private = Listener::new(&joe, "joe");
    lab.master().change(
        "Ann <ann@example.org>",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "Add",
    );
    let id = lab.master().wait_build("app", 1)["builderid"].clone();
    let url = format!("{}#/builders/{id}/builds/1", lab.master_url);
    let line = format!("app #1 failure: failed in shell ('false'), took *s, blame Ann {url}");
    for listener in [&all, &tags, &private] {
        listener.hear(&format!("<bot> {line}"));
    }
    notice.hear(&format!("-two- {line}"));
    colors.hear(&format!(
        "<two> {}",
        line.replace("failure", "\u{3}04failure\u{f}")
    ));
    revisions.hear(&format!(
        "<two> {}",
        line.replace("Ann", "Ann, revision 3f786850e3")
    ));
    noblame.hear(&format!("<two> {}", line.replace(", blame Ann", "")));

    // Without a change nobody is to blame. Joe subscribes himself and a channel.
    joe.say("bot", "notify on exception");
    joe_private.hear("<bot> notify is on for exception");
    joe.say("bot", "notify on failure");
    joe_private.hear("<bot> notify is on for failure exception");
    joe.say("#off", "bot: notify on failure");
    off.hear("<bot> notify is on for success failure");
    lab.master().force("mac os", &[("revision", "1234abc")]);
    for listener in [&all, &globs] {
        listener.hear("<bot> mac os #1 failure: failed in shell ('false'), took *s http:*");
    }
    revisions.hear(
        "<two> mac os #1 failure: failed in shell ('false'), took *s, revision 1234abc http:*",
    );
    lab.master().force("größe/x", &[]);
    for listener in [&all, &globs] {
        listener.hear("<bot> größe/x #1 failure: failed in shell ('false'), took *s http:*");
    }
    // Most are configured for the last build: an announcement too many before it fails here.
    lab.master().change(EVE, "r\u{2}2\r\nQUIT", "Drop\u{0}\nit");
    let line = "app #2 failure (2nd in a row): failed in shell ('false'), took *s";
    colors.hear(&format!(
        "<two> {}, blame *",
        line.replacen("failure", "\u{3}04failure\u{f}", 1)
    ));
    for listener in [&all, &tags, &off, &joe_private, &private] {
        listener.hear(&format!("<bot> {line}, blame Eve QUIT :x 04 red, Ann *"));
    }
    notice.hear(&format!("-two- {line}, blame *"));
    revisions.hear(&format!(
        "<two> {line}, blame Eve QUIT :x 04 red, Ann, revisions r 2 QUIT, 3f786850e3 {}#*",
        lab.master_url
    ));
    noblame.hear(&format!("<two> {line} http*"));
    joe.say("#globs", "bot: list 1 changes");
    globs.hear("<bot> r 2 QUIT on main by Eve QUIT :x 04 red: Drop");
}

/// Text from outside becomes no line, no colour and no command.
#[test]
fn hostile_names_and_reasons_stay_text() {
    let config = "name = 'ev\\x02il\\tna\\x07me \\x0304 \\u202ered'\n\
                  builder(name, steps.ShellCommand(name='st\\x03ep\\r\\nQUIT', command=['sleep', '60']))\n\
                  broken('boom')\nends('end', SUCCESS)\n";
    let lab = lab("hostile", config);
    let builders = lab.master().get("/api/v2/builders?order=-name&limit=1");
    let name = builders["builders"][0]["name"].as_str().unwrap();
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.start_ready(
        "bot",
        "",
        "notify_events = started finished\nuse_revisions = yes\n[channel #lab]",
    );
    let channel = Listener::new(&joe, "#lab");
    let shown = "ev il na me 04 red";
    lab.master().force(name, &[]);
    channel.hear(&format!(
        "<bot> {shown} #1 started {}#/builders/*/builds/1",
        lab.master_url
    ));
    let build = lab.master().wait_started(name, 1)["buildid"].clone();
    channel.ask(
        &format!("bot: status {shown}"),
        &format!("<bot> {shown}: building #1 (step st ep QUIT) for *s"),
    );
    let hostile = "no\r\nPRIVMSG #lab :mine\u{0}\u{2}\u{3}04,02red\u{1}ACTION\u{f}";
    let reason = json!({"reason": format!("{hostile} {}", "é".repeat(900))});
    let path = format!("/api/v2/builds/{build}");
    lab.master().post(&path, "stop", reason);
    let line = channel.next();
    // A 2.x master does not say why a build was stopped.
    let reason = if buildbot().starts_with("2.") {
        "'sleep 60'"
    } else {
        "(no PRIVMSG #lab :mine 04,02red ACTION éé"
    };
    let start = format!("<bot> {shown} #1 cancelled: {reason}");
    assert!(line.starts_with(&start), "{line}");
    assert!(line.contains(", took "), "{line}");
    assert!(line.ends_with("/builds/1"), "{line}");
    lab.master().force("boom", &[]);
    channel.hear("<bot> boom #1 started *\n<bot> boom #1 exception, took *");
    lab.master().force("end", &[]);
    channel.hear("<bot> end #1 started *\n<bot> end #1 success, took *");
    let conversation = joe.conversation();
    let lines = conversation.split("\n  ");
    for line in lines.filter(|line| line.starts_with("<< :bot!")) {
        assert!(!line.chars().any(char::is_control), "{line}");
        assert!(!line.contains(['\u{fffd}', '\u{202e}']), "{line}");
        assert!(line.len() - "<< ".len() <= 510, "{line}");
    }
}

#[test]
fn the_state_file_loses_nothing_and_repeats_nothing() {
    let lab = lab(
        "memory",
        "for name in ['app', 'doc', 'lib']:\n    gated(name)\n",
    );
    let joe = lab.person("joe", &["#keep", "#late", "#none"]);
    let keep = Listener::new(&joe, "#keep");
    let late = Listener::new(&joe, "#late");
    let none = Listener::new(&joe, "#none");
    let private = Listener::new(&joe, "joe");
    lab.build("app", 1, SUCCESS); // old when the bots come
    let finished = "notify_events = finished\n[channel";
    let state = "[bot]\nstate_file = state";
    let mut keeper = lab.start_ready("keep", "", &format!("{finished} #keep]\n{state}"));
    let mut late_bot = lab.start_ready(
        "late",
        POLLING,
        &format!("{finished} #late]\n{state}\ncatch_up = 1"),
    );
    let mut forgetful = lab.start_ready("none", "", &format!("{finished} #none]"));
    let everyone = |text: &str| {
        keep.hear(&format!("<keep> {text}"));
        late.hear(&format!("<late> {text}"));
        none.hear(&format!("<none> {text}"));
    };
    lab.build("app", 2, FAILURE);
    everyone("app #2 failure (was success)*");
    keep.ask(
        "keep: notify on started",
        "<keep> notify is on for started finished",
    );
    lab.master().force("lib", &[]);
    lab.master().wait_started("lib", 1);
    keep.hear("<keep> lib #1 started *");
    joe.say("keep", "watch lib");
    private.hear("<keep> watching lib #1*");
    none.ask(
        "none: notify on started",
        "<none> notify is on for started finished",
    );

    // While the bots are away a running build ends, and others start and end.
    keeper.stop();
    late_bot.stop();
    forgetful.stop();
    lab.master().release("lib", FAILURE);
    lab.master().wait_build("lib", 1);
    lab.build("app", 3, SUCCESS);
    lab.build("doc", 1, WARNINGS);
    wait_older_than(&lab.master().wait_build("doc", 1), 2.5);
    keeper.start_again();
    late_bot.start_again();
    forgetful.start_again();
    keep.hear("<keep> lib #1 failure: *, took *");
    keep.hear("<keep> app #3 success (fixed), took *");
    keep.hear("<keep> doc #1 warnings: *");
    private.hear("<keep> lib #1 failure: *, took *");
    late.hear("<late> missed while away: failure lib #1; warnings doc #1; success app #3 *");
    keeper.wait_ready();
    late_bot.wait_ready();
    forgetful.wait_ready();

    // Killed when all is confirmed it repeats nothing, and what `notify` has set is still set.
    keeper.wait_state("nothing pending", |state| state["pending"] == json!([]));
    keeper.kill9();
    lab.build("doc", 2, SUCCESS);
    late.hear("<late> doc #2 success (was warnings)*");
    none.hear("<none> doc #2 success (was warnings)*");
    keeper.start_again();
    keep.hear("<keep> doc #2 success (was warnings)*");
    lab.build("app", 4, SUCCESS);
    keep.hear("<keep> app #4 started *");
    everyone("app #4 success, took *");
    joe.say("keep", "source");
    private.hear("<keep> Buildbot: *");
}

/// Waits until a build ended this many seconds ago.
#[track_caller]
fn wait_older_than(build: &Value, seconds: f64) {
    let ended = build["complete_at"].as_f64().unwrap();
    wait_for("a build to be old enough", TIMEOUT, || {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        (now.as_secs_f64() > ended + seconds).then_some(())
    });
}

#[test]
fn names_in_another_case_are_the_same_target() {
    let lab = lab("case", "ends('app', SUCCESS)\n");
    let joe = lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    let rules = "[authorization]\njoin = everyone";
    let _bot = lab.start_ready("bot", "", &format!("{ANNOUNCING}\n{rules}"));
    channel.ask("bot: join #LAB", "<bot> joining #LAB");
    joe.say("bot", "notify on finished");
    private.hear("<bot> notify is on for finished");
    joe.send("NICK JOE");
    joe.say("bot", "notify on finished");
    private.hear("<bot> notify is on for finished");
    for number in 1..3 {
        lab.master().force("app", &[]);
        channel.hear(&format!("<bot> app #{number} success, took *"));
        private.hear(&format!("<bot> app #{number} success, took *"));
    }
}

/// A channel that the bot cannot join does not make it repeat announcements in the others.
#[test]
fn a_closed_channel_is_in_nobodys_way() {
    let lab = lab("closed", "ends('app', SUCCESS)\n");
    let joe = lab.person("joe", &["#open", "#closed"]);
    joe.send("MODE #closed +i");
    let open = Listener::new(&joe, "#open");
    let channels = "[channel #open]\n[channel #closed]\n";
    let config = format!("notify_events = finished\n{channels}[bot]\nstate_file = state\n");
    let mut bot = lab.start_as("bot", "", &config);
    bot.expect_log("IRC: joined #open");
    bot.wait_subscribed(1);
    lab.master().force("app", &[]);
    open.hear("<bot> app #1 success, took *");
    bot.wait_state("nothing pending for #open", |state| {
        let pending = state["pending"].as_array().unwrap();
        pending.iter().all(|one| one["target"] != "#open")
    });
    bot.start_again();
    bot.expect_log("IRC: joined #open");
    bot.wait_subscribed(1);
    lab.master().force("app", &[]);
    open.hear("<bot> app #2 success, took *");
    let closed = joe.lines("#closed");
    assert!(closed.is_empty(), "{closed:?}");
}

/// The master restarts, a worker is missing, and its build is tried again.
#[test]
fn the_master_comes_back_and_so_does_a_worker() {
    let config = "worker('w2', missing_timeout=1)\nends('app', SUCCESS, workers=['w1', 'w2'])\n\
                  gated('slow', workers=['w2'])\n";
    let mut lab = lab("restart", config);
    lab.start_worker("w2"); // before the bot: a master that starts misses its workers, too
    let joe = lab.person("joe", &["#live", "#poll", "#both"]);
    let channels =
        "notify_events = finished\n[channel #live]\n[channel #both]\nnotify_events = worker";
    let _live = lab.start_ready("live", "", channels);
    let _poll = lab.start_ready("poll", POLLING, "notify_events = finished\n[channel #poll]");
    let live = Listener::new(&joe, "#live");
    let poll = Listener::new(&joe, "#poll");
    let workers = Listener::new(&joe, "#both");
    let both_hear = |text: &str| {
        live.hear(&format!("<live> {text}"));
        poll.hear(&format!("<poll> {text}"));
    };
    lab.master().force("app", &[]);
    both_hear("app #1 success, took *");
    lab.stop_worker("w2");
    workers.hear("<live> worker w2 is offline and missing");
    lab.start_worker("w2");
    workers.hear("<live> worker w2 is back");
    workers.ask("live: source", "<live> Buildbot: *");

    lab.master().force("slow", &[]);
    lab.master().wait_started("slow", 1);
    workers.ask("live: watch slow", "<live> watching slow #1");
    lab.stop_worker("w2");
    both_hear("slow #1 retry*");
    workers.hear("<live> worker w2 is offline and missing");
    lab.start_worker("w2");
    workers.hear("<live> worker w2 is back");
    lab.master().wait_started("slow", 2);
    lab.master().release("slow", SUCCESS);
    both_hear("slow #2 success*");
    workers.hear("<live> slow #2 success*");

    // A builder is known as soon as the master has it.
    let more = format!("{config}ends('new', SUCCESS)\n");
    lab.master().configure(&more);
    lab.master_mut().process().signal("HUP");
    workers.ask_until("live: status new", "<live> new: idle*");

    lab.stop_master();
    live.ask(
        "live: status",
        "<live> the master does not answer; as of *s ago:\n<live> app: *last #1 success *\n<live> new: *\n<live> slow: *",
    );
    lab.master_mut().start_again();
    lab.start_worker("w1");
    lab.master().force("app", &[]);
    both_hear("app #2 success, took *");
    lab.master().force("app", &[]);
    both_hear("app #3 success, took *");
}
