//! What people say to the bot, and what it answers: a real master and worker, a real IRC server.

mod common;

use common::{
    Bot, Client, Ear, FAILURE, Finished, Master, Ngircd, NgircdOptions, SUCCESS, TIMEOUT, Worker,
    free_port, like, scratch, wait_for,
};
use serde_json::json;
use std::cell::Cell;
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, SystemTime};

const BINARY: &str = env!("CARGO_BIN_EXE_buildbot-irc");

/// The servers that most tests share; builds that a test starts are on builders of its own.
struct Lab {
    master: Master,
    irc: Ngircd,
    _worker: Worker,
}

const MASTER: &str = r#"
builder("app")
ends("mac os", FAILURE)
ends("größe", WARNINGS)
builder("lib/core")
builder("far", workers=["w2"])
worker("w2")
gated("channel")
gated("person")
on_change("changes", ["app"])
force("force", [one.name for one in c["builders"]])
"#;

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let master = Master::start("commands", MASTER);
        let worker = Worker::start(&master, "w1");
        let change = |author, revision, comments| {
            let pushed = ("when_timestamp", "1700000000"); // both, as commits of one push may be
            let (author, revision) = (("author", author), ("revision", revision));
            master.change_with(&[
                author,
                revision,
                ("comments", comments),
                ("branch", "main"),
                pushed,
            ]);
        };
        change(
            "Ann <ann@example.org>",
            "3f786850e387550fdab836ed7e6dc881de23001b",
            "Add the frob\nat last",
        );
        master.wait_build("app", 1); // or both would be built at once
        change("bob@example.org", "r2", "Tune\u{2} the\u{3}04 frob");
        master.force("mac os", &[]);
        master.force("größe", &[]);
        master.wait_build("app", 2);
        master.wait_build("mac os", 1);
        master.wait_build("größe", 1);
        Lab {
            master,
            irc: Ngircd::start(NgircdOptions::default()),
            _worker: worker,
        }
    })
}

impl Lab {
    /// A bot of this nick; `more` ends the section [irc] and adds others. Ready when it is in `channel`.
    #[track_caller]
    fn bot(&self, nick: &str, channel: &str, more: &str) -> Bot {
        start(&self.master, &self.irc, nick, channel, more)
    }
}

#[track_caller]
fn start(master: &Master, irc: &Ngircd, nick: &str, channel: &str, more: &str) -> Bot {
    let config = format!(
        "[buildbot]\nurl = {}\n[irc]\nhost = 127.0.0.1\nport = {}\nnick = {nick}\n{more}\n[channel {channel}]\n",
        master.url(),
        irc.port
    );
    let mut bot = Bot::start(BINARY, &config);
    bot.expect_log(&format!("joined {channel}"));
    bot.expect_log("event stream: subscribed");
    bot
}

const BUILDERS: &str = "app, channel, größe, lib/core, \"mac os\", person";
const COMMANDS: &str = "list status last watch notify mute unmute join leave force stop help commands source version hello";

/// Commands that change nothing, and their answers. Lines apart are `\n`; B is the bot's nick, URL the master's
/// address, NAMES the builders and ALL the commands.
const ANSWERS: &[(&str, &str)] = &[
    (
        "list builders",
        "7 builders (1 offline: list all builders): NAMES",
    ),
    (
        "LIST  all builders",
        "7 builders: app, channel, far [offline], größe, *",
    ),
    (
        "list 2 builders",
        "7 builders (1 offline: list all builders): app, channel",
    ),
    ("list workers", "2 workers: *w2 [offline]*"),
    ("list 1 workers", "2 workers: w*"),
    (
        "list changes",
        "r2 on main by bob@example.org: Tune the 04 frob\n3f78685* on main by Ann: Add the frob",
    ),
    (
        "list 1 changes",
        "r2 on main by bob@example.org: Tune the 04 frob",
    ),
    ("status app", "app: idle; last #2 success * ago"),
    (
        "status mac os",
        "mac os: idle; last #1 failure * ago: failed 'false'",
    ),
    (
        "status \"mac os\"",
        "mac os: idle; last #1 failure * ago: failed 'false'",
    ),
    ("status größe", "größe: idle; last #1 warnings * ago: *"),
    ("status lib/core", "lib/core: idle; no builds yet"),
    ("status far", "far: offline; no builds yet"),
    ("status *a?*", "app: *\nchannel: *\nfar: *\nmac os: *"),
    (
        "last app",
        "app: #2 success * ago, took * URL#/builders/*/builds/2",
    ),
    (
        "last 'mac os'",
        "mac os: #1 failure * ago: failed 'false', took * URL#/builders/*/builds/1",
    ),
    (
        "last gr*",
        "größe: #1 warnings * ago: *, took * URL#/builders/*/builds/1",
    ),
    ("last lib/core", "lib/core: no builds yet"),
    (
        "watch app",
        "app: not building now; `notify on finished` tells of every build",
    ),
    ("notify list", "notify is off: nothing is announced here"),
    (
        "help",
        "say `B: COMMAND` in a channel, or COMMAND to me alone; commands: ALL; `help COMMAND` tells more",
    ),
    (
        "help watch",
        "watch BUILDER: tells here when the running build ends",
    ),
    ("help commands", "commands: ALL"),
    ("commands", "commands: ALL"),
    ("source", "Buildbot: https://buildbot.net/"),
    ("version", "buildbot-irc *.*.*; Buildbot *.* at URL"),
    (
        "hello",
        "hello, joe; I watch 7 builders, try `status` or `help`",
    ),
    // What is wrong gets one line that helps.
    ("stauts", "unknown command `stauts`; did you mean `status`?"),
    (
        "frobnicate \u{3}4now",
        "unknown command `frobnicate`; try `help`",
    ),
    (
        "status linux",
        "no builder linux; `list all builders` shows them",
    ),
    ("status z*", "no builder z*; `list all builders` shows them"),
    ("last macos", "no builder macos; did you mean \"mac os\"?"),
    ("watch", "usage: watch BUILDER"),
    ("watch persno", "no builder persno; did you mean person?"),
    ("list", "usage: list [all|N] builders|workers|changes"),
    (
        "list 0 builders",
        "usage: list [all|N] builders|workers|changes",
    ),
    (
        "list bilders",
        "usage: list [all|N] builders|workers|changes",
    ),
    ("notify", "usage: notify on|off|list [EVENT...]"),
    (
        "notify on failed",
        "notify: unknown event `failed`; did you mean failure?",
    ),
    (
        "mute tomorrow",
        "mute: `tomorrow` is not a duration like 90, 15s, 10m, 2h or 1d",
    ),
    ("join", "usage: join CHANNEL [KEY]"),
    (
        "join dev",
        "join: a channel is written #name, a key without blanks behind it",
    ),
    ("leave dev", "leave: which channel? It is written #name"),
    (
        "help stat",
        "help: no command `stat`; did you mean `status`?",
    ),
];

#[test]
fn every_question_has_its_answer_in_a_channel_and_in_private() {
    let lab = lab();
    let joe = Client::connect(lab.irc.port, "joe");
    joe.join("#lab");
    // Each bot may say a line every two seconds: take turns.
    let everyone = "[authorization]\njoin = everyone\nleave = everyone";
    let nicks = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"];
    let _bots = nicks.map(|nick| lab.bot(nick, "#lab", everyone));
    let (channel, private) = (Ear::new(&joe, "#lab"), Ear::new(&joe, "joe"));
    for ((text, answer), nick) in ANSWERS.iter().zip(nicks.iter().cycle()) {
        let answer = answer
            .replace("`B:", &format!("`{nick}:"))
            .replace("URL", &lab.master.url())
            .replace("NAMES", BUILDERS)
            .replace("ALL", COMMANDS);
        let answer = format!("<{nick}> {}", answer.replace('\n', &format!("\n<{nick}> ")));
        channel.ask(&format!("{nick}: {text}"), &answer);
        joe.say(nick, text);
        private.hear(&answer);
    }
    // `leave` alone means here, and there is no here in private.
    joe.say("b0", "leave");
    private.hear("<b0> leave: which channel? It is written #name");
}

#[test]
fn only_who_is_addressed_answers_and_never_a_notice() {
    let lab = lab();
    let joe = Client::connect(lab.irc.port, "jim");
    joe.join("#talk");
    let _bot = lab.bot("Bob[1]", "#talk", "username = bob\nnotice_on_channel = yes");
    let (channel, private) = (Ear::new(&joe, "#talk"), Ear::new(&joe, "jim"));
    for unanswered in [
        "source",
        "Bob[1] source",
        "Bob[1]x: source",
        "xBob[1]: source",
        "bob: source",
    ] {
        joe.say("#talk", unanswered);
    }
    joe.send("NOTICE #talk :Bob[1]: source");
    joe.send("NOTICE Bob[1] :source");
    // The next line is the answer to what does address it; by RFC 1459 { and [ are the same letter.
    channel.ask("Bob[1]: source", "-Bob[1]- Buildbot: https://buildbot.net/");
    channel.ask("bOB[1], hello", "-Bob[1]- hello, jim; *");
    channel.ask(
        "\u{2}Bob[1]:\u{2} list workers",
        "-Bob[1]- 2 workers: *w2 [offline]*",
    );
    // Errors and refusals are NOTICEs, too; in private it talks.
    channel.ask(
        "Bob[1]: lisp",
        "-Bob[1]- unknown command `lisp`; did you mean `list`?",
    );
    channel.ask(
        "Bob[1]: join #x",
        "-Bob[1]- sorry, jim, `join` is not for you",
    );
    channel.ask("Bob[1]:", "-Bob[1]- yes? try `help`");
    joe.say("bob[1]", "source");
    private.hear("<Bob[1]> Buildbot: https://buildbot.net/");
}

#[test]
fn idle_building_queued_paused_and_offline() {
    let config = "gated('slow')\ngated('quick')\nbuilder('far', workers=['w2'])\nworker('w2')\n";
    let master = Master::start("work", config);
    let _worker = Worker::start(&master, "w1");
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "jane");
    joe.join("#work");
    let _bot = start(
        &master,
        &irc,
        "work",
        "#work",
        "notify_events = finished\nbuilders = slow quick",
    );
    let (channel, private) = (Ear::new(&joe, "#work"), Ear::new(&joe, "jane"));
    let now = || SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let running = |builder: &str, seconds: f64| {
        let start = master.wait_started(builder, 1)["started_at"]
            .as_f64()
            .unwrap();
        wait_for("a build to take its time", TIMEOUT, || {
            (now() - start > seconds).then_some(())
        });
    };
    master.force("slow", &[]);
    master.force("quick", &[]);
    master.wait_started("quick", 1);
    master.release("quick", SUCCESS);
    channel.hear(
        "<work> quick #1 success, took * URL#*"
            .replace("URL", &master.url())
            .as_str(),
    );
    channel.ask_until(
        "work: status slow",
        "<work> slow: building #1 (step gate) for *s",
    );
    running("slow", 8.0);
    master.release("slow", SUCCESS);
    channel.hear("<work> slow #1 success, took *");

    // The second time it is known how long it takes; `quick` takes longer than it used to.
    master.force("quick", &[]);
    master.force("slow", &[]);
    master.wait_started("slow", 2);
    master.force("slow", &[]);
    channel.ask_until(
        "work: status slow",
        "<work> slow: building #2 (step gate) for *s, about *s to go; 1 queued",
    );
    channel.ask_until(
        "work: status quick",
        "<work> quick: building #2 (step gate) for *s, *s longer than usual",
    );

    // Watched here and in private: each is told once, the channel not once more because of notify.
    channel.ask("work: watch slow", "<work> watching slow #2*");
    channel.ask("work: watch slow", "<work> watching slow #2*");
    joe.say("work", "watch slow");
    master.release("slow", FAILURE); // it ends while the bot answers
    private.hear("<work> watching slow #2*\n<work> slow #2 failure (was success): *");
    channel.hear("<work> slow #2 failure (was success): *");
    master.wait_started("slow", 3);
    master.release("slow", FAILURE);
    channel.hear("<work> slow #3 failure (2nd in a row): *");
    master.release("quick", SUCCESS);
    channel.hear("<work> quick #2 success, took *");
    channel.ask("work: source", "<work> Buildbot: *");
    joe.say("work", "source");
    private.hear("<work> Buildbot: *");

    // A worker of our own, to be paused and taken away.
    let id = master.get("/api/v2/workers?name=w2")["workers"][0]["workerid"].clone();
    let worker = Worker::start(&master, "w2");
    channel.ask_until("work: status far", "<work> far: idle; no builds yet");
    master.post(
        &format!("/api/v2/workers/{id}"),
        "pause",
        json!({"reason": "tea"}),
    );
    channel.ask_until("work: list workers", "<work> 2 workers: *w2 [paused]*");
    master.force("far", &[]);
    channel.ask_until(
        "work: status far",
        "<work> far: idle; no builds yet; 1 queued; paused: w2",
    );
    worker.stop(&master);
    channel.ask_until(
        "work: status far",
        "<work> far: offline; no builds yet; 1 queued; paused: w2",
    );
}

/// What `notify`, `mute` and `unmute` do in one place, be it a channel or a person.
fn settings_of_one_place(nick: &str, channel: &str, builder: &str, private: bool) {
    let lab = lab();
    let joe = Client::connect(lab.irc.port, &format!("{nick}-user"));
    joe.join(channel);
    let _bot = lab.bot(nick, channel, &format!("builders = {builder}"));
    let place = if private { &joe.nick } else { channel };
    let ear = Ear::new(&joe, place);
    let ask = |text: &str, answer: &str| {
        let (to, text) = if private {
            (nick, text.to_string())
        } else {
            (channel, format!("{nick}: {text}"))
        };
        joe.say(to, &text);
        ear.hear(&format!("<{nick}> {answer}"));
    };
    let builds = Cell::new(0);
    let build = |result| {
        builds.set(builds.get() + 1);
        lab.master.force(builder, &[]);
        lab.master.release(builder, result);
        lab.master.wait_build(builder, builds.get());
    };
    ask("notify list", "notify is off: nothing is announced here");
    ask(
        "notify on failure problem",
        "notify is on for failure problem",
    );
    build(SUCCESS);
    build(FAILURE);
    ear.hear(&format!("<{nick}> {builder} #2 failure (was success): *"));
    ask("notify off failure worse", "notify is on for problem");
    build(FAILURE);
    // The bot hears of an end a moment later than we.
    thread::sleep(Duration::from_secs(1));
    ask("notify on", "notify is on for started finished problem");
    ask("notify off started problem", "notify is on for finished");
    ask("mute 2h", "muted for 2h");
    build(SUCCESS);
    // Watching is asking for one line, whatever is muted.
    lab.master.force(builder, &[]);
    lab.master.wait_started(builder, 5);
    ask("mute", "muted; `unmute` ends it");
    ask(
        &format!("watch {builder}"),
        &format!("watching {builder} #5*"),
    );
    lab.master.release(builder, FAILURE);
    ear.hear(&format!("<{nick}> {builder} #5 failure (was success): *"));
    ask("unmute", "unmuted");
    builds.set(5);
    build(SUCCESS);
    ear.hear(&format!("<{nick}> {builder} #6 success (fixed), took *"));
    ask("notify off", "notify is off: nothing is announced here");
    build(FAILURE);
    ask("notify list", "notify is off: nothing is announced here");
}

#[test]
fn a_channel_sets_what_it_hears() {
    settings_of_one_place("chan", "#chan", "channel", false);
}

#[test]
fn a_person_sets_what_they_hear() {
    settings_of_one_place("pers", "#pers", "person", true);
}

#[test]
fn authorization_refuses_and_lets_join_and_leave() {
    let irc = Ngircd::start(NgircdOptions::default());
    let [joe, ann] = ["joe", "ann"].map(|nick| Client::connect(irc.port, nick));
    for channel in ["#door", "#more", "#key"] {
        joe.join(channel); // who comes first is the operator
        ann.join(channel);
    }
    joe.send("MODE #key +k sesame");
    let rules = "[authorization]\njoin = op\nleave = mask:ANN!*@127.0.0.1\nmute = nobody\nlast = account:joe";
    let _bot = start(&lab().master, &irc, "door", "#door", rules);
    let [door, more] = ["#door", "#more"].map(|channel| Ear::new(&ann, channel));
    let ask = |who: &Client, text: &str, answer: &str| {
        who.say("#door", &format!("door: {text}"));
        if who.nick == "joe" {
            door.hear("<joe> *");
        }
        door.hear(&format!("<door> {answer}"));
    };
    ask(&ann, "join #more", "sorry, ann, `join` is not for you");
    ask(&joe, "JOIN #more", "joining #more");
    ann.expect_contains(":door!~door@127.0.0.1 JOIN :#more");
    ask(&joe, "join #key sesame", "joining #key");
    ann.expect_contains(":door!~door@127.0.0.1 JOIN :#key");
    // An operator of a channel is nobody in private, and nobody when deposed.
    joe.say("door", "join #other");
    joe.expect_contains(" PRIVMSG joe :sorry, joe, `join` is not for you");
    joe.send("MODE #door -o joe");
    ask(&joe, "join #other", "sorry, joe, `join` is not for you");
    joe.say("#more", "door: mute");
    more.hear("<joe> *\n<door> sorry, joe, `mute` is not for you");
    // A mask is for one user at one host; without services nobody has an account; the rest is everyone's.
    ask(&joe, "leave #more", "sorry, joe, `leave` is not for you");
    ask(&joe, "last", "sorry, joe, `last` is not for you");
    ask(&joe, "source", "Buildbot: https://buildbot.net/");
    ask(&ann, "leave #MORE", "leaving #MORE");
    ann.expect_contains(":door!~door@127.0.0.1 PART #more");
    ann.say("#key", "door: leave");
    // The answer is the reason that it leaves with, so that the farewell needs no turn of its own.
    ann.expect_contains(":door!~door@127.0.0.1 PART #key :leaving, as ann asks");
}

#[test]
fn three_hundred_builders() {
    let builders = "for n in range(300):\n    builder(f'unit-{n:03}')\n";
    let master = Master::start("many", builders);
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#many");
    let many = start(&master, &irc, "many", "#many", "");
    let _more = start(&master, &irc, "more", "#many", "notice_on_channel = yes");
    let (channel, private) = (Ear::new(&joe, "#many"), Ear::new(&joe, "joe"));
    // The first ten, and how many more.
    let mut answer: String = (0..10)
        .map(|n| format!("<many> unit-{n:03}: offline; *\n"))
        .collect();
    answer += "<many> … and 290 more, ask in private";
    channel.ask("many: status all", &answer);
    joe.say("#many", "more: last unit-?42");
    channel.hear(
        &(0..3)
            .map(|n| format!("-more- unit-{n}42: no builds yet\n"))
            .collect::<String>(),
    );
    joe.say("more", "list all 60 builders");
    let mut told = String::new();
    while !told.contains("unit-059") {
        let line = private.next();
        let text = line.strip_prefix("<more> ").expect("a message of the bot");
        let whole = format!(":more!~more@127.0.0.1 PRIVMSG joe :{text}\r\n");
        assert!(whole.len() <= 512, "{whole}");
        told += &format!("{text} ");
    }
    let told: Vec<&str> = told
        .split(' ')
        .filter(|word| word.starts_with("unit-"))
        .collect();
    assert_eq!(told.len(), 60);

    let out = Bot::run(
        &many.dir,
        BINARY,
        &["-c", "bot.conf", "-x", "list all builders"],
        "",
    );
    let names: Vec<String> = (0..300).map(|n| format!("unit-{n:03} [offline]")).collect();
    assert_eq!(
        (out.code, out.stdout.lines().collect::<Vec<_>>()),
        (0, names.iter().map(String::as_str).collect())
    );
    let out = Bot::run(
        &many.dir,
        BINARY,
        &["-c", "bot.conf", "-x", "status all"],
        "",
    );
    assert_eq!((out.code, out.stdout.lines().count()), (0, 300));
}

/// `-x` with a configuration of a master and nothing else.
fn execute(url: &str, command: &str) -> Finished {
    let dir = scratch("execute");
    std::fs::write(dir.join("bot.conf"), format!("[buildbot]\nurl = {url}\n")).unwrap();
    Bot::run(&dir, BINARY, &["-x", command], "")
}

#[test]
fn one_command_without_irc() {
    let url = lab().master.url();
    for (command, answer) in [
        (
            "list builders",
            "app\nchannel\ngröße\nlib/core\n\"mac os\"\nperson\n",
        ),
        (
            "list 1 changes",
            "r2 on main by bob@example.org: Tune the 04 frob\n",
        ),
        (
            "status mac os",
            "mac os: idle; last #1 failure * ago: failed 'false'\n",
        ),
        (
            "status",
            "app: *\nchannel: *\nfar: *\ngröße: *\nlib/core: *\nmac os: *\nperson: *\n",
        ),
        (
            "last gr*",
            "größe: #1 warnings * ago: *, took * URL#/builders/*/builds/1\n",
        ),
        ("version", "buildbot-irc *.*.*; Buildbot *.* at URL\n"),
        ("commands", "commands: ALL\n"),
        ("help list", "list [all|N] builders|workers|changes: *\n"),
        ("source", "Buildbot: https://buildbot.net/\n"),
        ("hello", "hello, *; I watch 7 builders, *\n"),
    ] {
        let out = execute(&url, command);
        let wanted = answer.replace("URL", &url).replace("ALL", COMMANDS);
        assert!(
            out.code == 0 && like(&wanted, &out.stdout),
            "{command}: {out:?}"
        );
        assert_eq!(out.stderr, "", "{command}");
    }
    for (command, why) in [
        (
            "status linux",
            "no builder linux; `list all builders` shows them\n",
        ),
        (
            "stauts",
            "unknown command `stauts`; did you mean `status`?\n",
        ),
        ("list", "usage: list [all|N] builders|workers|changes\n"),
        ("notify on", "notify: this works on IRC only\n"),
        ("watch app", "watch: this works on IRC only\n"),
        ("", "yes? try `help`\n"),
    ] {
        let out = execute(&url, command);
        assert_eq!(
            (out.code, out.stdout.as_str(), out.stderr.as_str()),
            (65, "", why),
            "{command}"
        );
    }
    let nowhere = format!("http://127.0.0.1:{}/", free_port());
    for command in [
        "status",
        "list builders",
        "list changes",
        "version",
        "last app",
    ] {
        let out = execute(&nowhere, command);
        assert!(
            out.code == 69 && out.stdout.is_empty() && out.stderr.lines().count() == 1,
            "{command}: {out:?}"
        );
        assert!(out.stderr.contains("127.0.0.1"), "{command}: {out:?}");
    }
    let out = execute(&nowhere, "commands"); // which needs no master
    assert_eq!(
        (out.code, out.stdout),
        (0, format!("commands: {COMMANDS}\n"))
    );
}
