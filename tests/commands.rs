//! What people say to the bot, and what it answers: a real master and worker, a real IRC server.

mod common;

use common::{
    Bot, Client, FAILURE, Lab, Listener, Master, SUCCESS, TIMEOUT, execute, free_port, matches,
    wait_for,
};
use serde_json::json;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The master that most tests share; builds that a test starts are on builders of its own.
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

/// The master with two changes and a build of each result, and ngIRCd.
fn shared_lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let lab = Lab::new()
            .with_master("commands", MASTER)
            .with_worker("w1")
            .with_ngircd();
        let master = lab.master();
        change(
            &lab,
            "Ann <ann@example.org>",
            "3f786850e387550fdab836ed7e6dc881de23001b",
            "Add the frob\nat last",
        );
        master.wait_build("app", 1); // or both changes would be built at once
        change(&lab, "bob@example.org", "r2", "Tune\u{2} the\u{3}04 frob");
        master.force("mac os", &[]);
        master.force("größe", &[]);
        master.wait_build("app", 2);
        master.wait_build("mac os", 1);
        master.wait_build("größe", 1);
        lab
    })
}

/// A change; all have the same time, as commits of one push may have.
#[track_caller]
fn change(lab: &Lab, author: &str, revision: &str, comments: &str) {
    lab.master().change_with(&[
        ("author", author),
        ("revision", revision),
        ("comments", comments),
        ("branch", "main"),
        ("when_timestamp", "1700000000"),
    ]);
}

const BUILDERS: &str = "app, channel, größe, lib/core, \"mac os\", person";
const COMMANDS: &str = "list status last why watch notify mute unmute join leave force stop help commands source version hello";

/// Commands that change nothing, and their answers, with `\n` between lines. B stands for the bot's nick, URL for the
/// master's address, NAMES for the builders and ALL for the commands.
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
        "app: not building now; `watch next app` tells of its next build",
    ),
    ("notify list", "notify is off: nothing is announced here"),
    (
        "help",
        "say `B: COMMAND` in a channel, or COMMAND to me alone; commands: ALL; `help COMMAND` tells more",
    ),
    (
        "help watch",
        "watch BUILDER: tells here when the running build ends; `watch next BUILDER` when the next one has ended",
    ),
    ("help commands", "commands: ALL"),
    ("commands", "commands: ALL"),
    ("source", "Buildbot: https://buildbot.net/"),
    ("version", "buildbot-irc *.*.*; Buildbot *.* at URL"),
    (
        "hello",
        "hello, joe; I watch 7 builders, try `status` or `help`",
    ),
    // An error is one line that helps.
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
    let lab = shared_lab();
    let joe = lab.person("joe", &["#lab"]);
    // Each bot may say a line every two seconds: they take turns.
    let config = "[channel #lab]\n[authorization]\njoin = everyone\nleave = everyone";
    let nicks = ["b0", "b1", "b2", "b3", "b4", "b5", "b6", "b7", "b8", "b9"];
    let _bots = nicks.map(|nick| lab.start_ready(nick, "", config));
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    for ((text, answer), nick) in ANSWERS.iter().zip(nicks.iter().cycle()) {
        let answer = answer
            .replace("`B:", &format!("`{nick}:"))
            .replace("URL", &lab.master_url)
            .replace("NAMES", BUILDERS)
            .replace("ALL", COMMANDS);
        let answer = format!("<{nick}> {}", answer.replace('\n', &format!("\n<{nick}> ")));
        channel.ask(&format!("{nick}: {text}"), &answer);
        joe.say(nick, text);
        private.hear(&answer);
    }
    // `leave` without a channel means this one, and in private there is none.
    joe.say("b0", "leave");
    private.hear("<b0> leave: which channel? It is written #name");
}

#[test]
fn the_bot_answers_only_when_addressed_and_never_a_notice() {
    let lab = shared_lab();
    let joe = lab.person("jim", &["#talk"]);
    let config = "username = bob\nnotice_on_channel = yes\n[channel #talk]";
    let _bot = lab.start_ready("Bob[1]", "", config);
    let channel = Listener::new(&joe, "#talk");
    let private = Listener::new(&joe, "jim");
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
    // Errors and refusals in a channel are NOTICEs, too; in private it sends PRIVMSG.
    channel.ask(
        "Bob[1]: lisp",
        "-Bob[1]- unknown command `lisp`; did you mean `list`?",
    );
    channel.ask(
        "Bob[1]: join #x",
        "-Bob[1]- sorry, jim, you may not use `join`",
    );
    channel.ask("Bob[1]:", "-Bob[1]- yes? try `help`");
    joe.say("bob[1]", "source");
    private.hear("<Bob[1]> Buildbot: https://buildbot.net/");
}

#[test]
fn status_tells_how_long_builds_run_and_watch_tells_their_end() {
    let lab = Lab::new()
        .with_master("work", "gated('slow')\ngated('quick')\n")
        .with_worker("w1")
        .with_ngircd();
    let joe = lab.person("jane", &["#work"]);
    let config = "notify_events = finished\nbuilders = slow quick\n[channel #work]";
    let _bot = lab.start_ready("work", "", config);
    let channel = Listener::new(&joe, "#work");
    let private = Listener::new(&joe, "jane");
    let master = lab.master();
    master.force("slow", &[]);
    master.force("quick", &[]);
    master.wait_started("quick", 1);
    master.release("quick", SUCCESS);
    channel.hear(&format!(
        "<work> quick #1 success, took * {}#*",
        lab.master_url
    ));
    channel.ask_until(
        "work: status slow",
        "<work> slow: building #1 (step gate) for *s",
    );
    wait_running(master, "slow", 8.0);
    master.release("slow", SUCCESS);
    channel.hear("<work> slow #1 success, took *");

    // By now the bot knows how long they take; `quick` takes longer than before.
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

    // Watched in the channel and in private: each is told once, and the channel no second time by `notify`.
    channel.ask("work: watch slow", "<work> watching slow #2*");
    channel.ask("work: watch slow", "<work> watching slow #2*");
    joe.say("work", "watch slow");
    master.release("slow", FAILURE); // the build ends while the bot answers
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
}

#[test]
fn status_tells_paused_workers_and_what_is_queued() {
    let mut lab = Lab::new()
        .with_master("paused", "builder('far')\n")
        .with_worker("w1")
        .with_ngircd();
    let joe = lab.person("jill", &["#paused"]);
    let _bot = lab.start_ready("paused", "", "[channel #paused]");
    let channel = Listener::new(&joe, "#paused");
    let master = lab.master();
    let workers = master.get("/api/v2/workers?name=w1");
    let path = format!("/api/v2/workers/{}", workers["workers"][0]["workerid"]);
    channel.ask_until("paused: status far", "<paused> far: idle; no builds yet");
    master.post(&path, "pause", json!({"reason": "tea"}));
    channel.ask_until("paused: list workers", "<paused> 1 worker: w1 [paused]");
    master.force("far", &[]);
    channel.ask_until(
        "paused: status far",
        "<paused> far: idle; no builds yet; 1 queued; paused: w1",
    );
    lab.stop_worker("w1");
    channel.ask_until(
        "paused: status far",
        "<paused> far: offline; no builds yet; 1 queued; paused: w1",
    );
}

/// Waits until the first build of a builder has run for this many seconds.
#[track_caller]
fn wait_running(master: &Master, builder: &str, seconds: f64) {
    let build = master.wait_started(builder, 1);
    let start = build["started_at"].as_f64().unwrap();
    wait_for("a build to take its time", TIMEOUT, || {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        (now.as_secs_f64() > start + seconds).then_some(())
    });
}

/// A channel or a person, and the bot that announces one builder there.
struct Target {
    lab: &'static Lab,
    joe: Client,
    nick: &'static str,
    builder: &'static str,
    is_private: bool,
    listener: Listener,
}

impl Target {
    fn say(&self, text: &str) {
        if self.is_private {
            self.joe.say(self.nick, text);
        } else {
            let text = format!("{}: {text}", self.nick);
            self.joe.say(&self.listener.target, &text);
        }
    }

    #[track_caller]
    fn ask(&self, text: &str, answer: &str) {
        self.say(text);
        self.listener.hear(&format!("<{}> {answer}", self.nick));
    }

    /// The bot announces a build of the builder.
    #[track_caller]
    fn hear_build(&self, text: &str) {
        let expected = format!("<{}> {} {text}", self.nick, self.builder);
        self.listener.hear(&expected);
    }

    /// Asks until the bot knows of a build: it learns of an end a moment later than the test.
    #[track_caller]
    fn wait_learned(&self, number: &str) {
        let expected = format!("<{}> {}: {number} *", self.nick, self.builder);
        for _ in 0..6 {
            self.say(&format!("last {}", self.builder));
            if matches(&expected, &self.listener.next()) {
                return;
            }
        }
        panic!("the bot does not learn of {} {number}", self.builder);
    }

    #[track_caller]
    fn build(&self, number: i64, result: i64) {
        self.lab.build(self.builder, number, result);
    }
}

/// What `notify`, `mute` and `unmute` do for one target, be it a channel or a person.
fn check_settings(target: &Target) {
    let master = target.lab.master();
    let builder = target.builder;
    target.ask("notify list", "notify is off: nothing is announced here");
    target.ask(
        "notify on failure problem",
        "notify is on for failure problem",
    );
    target.build(1, SUCCESS);
    target.build(2, FAILURE);
    target.hear_build("#2 failure (was success): *");
    target.ask("notify off failure worse", "notify is on for problem");
    target.build(3, FAILURE);
    target.wait_learned("#3");
    target.ask("notify on", "notify is on for started finished problem");
    target.ask("notify off started problem", "notify is on for finished");
    target.ask("mute 2h", "muted for 2h");
    target.build(4, SUCCESS);
    // A watch is answered even where announcements are muted.
    master.force(builder, &[]);
    master.wait_started(builder, 5);
    target.ask("mute", "muted; `unmute` ends it");
    target.ask(
        &format!("watch {builder}"),
        &format!("watching {builder} #5*"),
    );
    master.release(builder, FAILURE);
    target.hear_build("#5 failure (was success): *");
    target.ask("unmute", "unmuted");
    let missed = format!(
        "while muted: {builder} #4 success (fixed), took * {}#*",
        target.lab.master_url
    );
    target.listener.hear(&format!("<{}> {missed}", target.nick));
    target.build(6, SUCCESS);
    target.hear_build("#6 success (fixed), took *");
    target.ask("notify off", "notify is off: nothing is announced here");
    target.build(7, FAILURE);
    target.ask("notify list", "notify is off: nothing is announced here");
}

#[test]
fn a_channel_sets_what_it_hears() {
    let lab = shared_lab();
    let joe = lab.person("chan-user", &["#chan"]);
    let config = "pacing = safe\nbuilders = channel\n[channel #chan]";
    let _bot = lab.start_ready("chan", "", config);
    check_settings(&Target {
        lab,
        nick: "chan",
        builder: "channel",
        is_private: false,
        listener: Listener::new(&joe, "#chan"),
        joe,
    });
}

#[test]
fn a_person_sets_what_they_hear() {
    let lab = shared_lab();
    let joe = lab.person("pers-user", &["#pers"]);
    let config = "pacing = safe\nbuilders = person\n[channel #pers]";
    let _bot = lab.start_ready("pers", "", config);
    check_settings(&Target {
        lab,
        nick: "pers",
        builder: "person",
        is_private: true,
        listener: Listener::new(&joe, "pers-user"),
        joe,
    });
}

#[test]
fn authorization_decides_who_may_use_a_command() {
    let mut lab = Lab::new().with_ngircd();
    lab.master_url = shared_lab().master_url.clone();
    // Who comes first is the operator.
    let channels = ["#door", "#more", "#key"];
    let joe = lab.person("joe", &channels);
    let ann = lab.person("ann", &channels);
    joe.set_mode("#key", "+k sesame");
    let rules = "[authorization]\njoin = op\nleave = mask:ANN!*@127.0.0.1\nmute = nobody\nlast = account:joe";
    let _bot = lab.start_ready("door", "", &format!("[channel #door]\n{rules}"));
    let door = Listener::new(&ann, "#door");
    let more = Listener::new(&ann, "#more");
    let ask = |person: &Client, text: &str, answer: &str| {
        person.say("#door", &format!("door: {text}"));
        if person.nick == "joe" {
            door.hear("<joe> *");
        }
        door.hear(&format!("<door> {answer}"));
    };
    ask(&ann, "join #more", "sorry, ann, you may not use `join`");
    ask(&joe, "JOIN #more", "joining #more");
    ann.expect_contains(":door!~door@127.0.0.1 JOIN :#more");
    ask(&joe, "join #key sesame", "joining #key");
    ann.expect_contains(":door!~door@127.0.0.1 JOIN :#key");
    // The operator of a channel has no authority in private, and none once deposed.
    joe.say("door", "join #other");
    joe.expect_contains(" PRIVMSG joe :sorry, joe, you may not use `join`");
    joe.set_mode("#door", "-o joe");
    ask(&joe, "join #other", "sorry, joe, you may not use `join`");
    joe.say("#more", "door: mute");
    more.hear("<joe> *\n<door> sorry, joe, you may not use `mute`");
    // A mask is for one user at one host; without services nobody has an account; all else is for everyone.
    ask(&joe, "leave #more", "sorry, joe, you may not use `leave`");
    ask(&joe, "last", "sorry, joe, you may not use `last`");
    ask(&joe, "source", "Buildbot: https://buildbot.net/");
    ask(&ann, "leave #MORE", "leaving #MORE");
    ann.expect_contains(":door!~door@127.0.0.1 PART #more");
    ann.say("#key", "door: leave");
    // The reason of its PART is the answer, which then needs no turn of its own in the pace.
    ann.expect_contains(":door!~door@127.0.0.1 PART #key :leaving, as ann asks");
}

#[test]
fn three_hundred_builders_are_cut_in_a_channel_and_whole_in_private() {
    let builders = "for n in range(300):\n    builder(f'unit-{n:03}')\n";
    let lab = Lab::new().with_master("many", builders).with_ngircd();
    let joe = lab.person("joe", &["#many"]);
    let many = lab.start_ready("many", "", "[channel #many]");
    let _more = lab.start_ready("more", "", "notice_on_channel = yes\n[channel #many]");
    let channel = Listener::new(&joe, "#many");
    let private = Listener::new(&joe, "joe");
    joe.say("#many", "many: status all");
    for n in 0..10 {
        channel.hear(&format!("<many> unit-{n:03}: offline; *"));
    }
    channel.hear("<many> … and 290 more, ask in private");
    joe.say("#many", "more: last unit-?42");
    for n in 0..3 {
        channel.hear(&format!("-more- unit-{n}42: no builds yet"));
    }
    joe.say("more", "list all 60 builders");
    let mut names = String::new();
    while !names.contains("unit-059") {
        let line = private.next();
        let text = line.strip_prefix("<more> ").expect("a message of the bot");
        let relayed = format!(":more!~more@127.0.0.1 PRIVMSG joe :{text}\r\n");
        assert!(relayed.len() <= 512, "{relayed}");
        names += &format!("{text} ");
    }
    let words = names.split(' ');
    let count = words.filter(|word| word.starts_with("unit-")).count();
    assert_eq!(count, 60, "{names}");

    let names: Vec<String> = (0..300).map(|n| format!("unit-{n:03} [offline]")).collect();
    let done = Bot::run(&many.dir, &["-c", "bot.conf", "-x", "list all builders"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr, "");
    assert_eq!(done.stdout.lines().collect::<Vec<_>>(), names);
    let done = Bot::run(&many.dir, &["-c", "bot.conf", "-x", "status all"]);
    assert_eq!(done.code, 0, "{done:?}");
    assert_eq!(done.stderr, "");
    assert_eq!(done.stdout.lines().count(), 300);
}

#[test]
fn one_command_without_irc() {
    let lab = shared_lab();
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
        let done = lab.execute(command);
        let expected = answer
            .replace("URL", &lab.master_url)
            .replace("ALL", COMMANDS);
        assert_eq!(done.stderr, "", "{command}");
        assert!(matches(&expected, &done.stdout), "{command}: {done:?}");
        assert_eq!(done.code, 0, "{command}");
    }
    for (command, error) in [
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
        let done = lab.execute(command);
        assert_eq!(done.stdout, "", "{command}");
        assert_eq!(done.stderr, error, "{command}");
        assert_eq!(done.code, 65, "{command}");
    }
    let nowhere = format!("http://127.0.0.1:{}/", free_port());
    for command in [
        "status",
        "list builders",
        "list changes",
        "version",
        "last app",
    ] {
        let done = execute(&nowhere, "", command);
        assert_eq!(done.stdout, "", "{command}");
        assert_eq!(done.stderr.lines().count(), 1, "{command}: {done:?}");
        assert!(done.stderr.contains("127.0.0.1"), "{command}: {done:?}");
        assert_eq!(done.code, 69, "{command}");
    }
    let done = execute(&nowhere, "", "commands"); // which needs no master
    assert_eq!(done.stdout, format!("commands: {COMMANDS}\n"));
    assert_eq!(done.code, 0);
}
