//! Who starts and stops builds, and what the master makes of it: real masters and workers, real IRC servers.

mod common;

use common::{
    Answer, Bot, CANCELLED, Client, FAILURE, FakeHttp, Finished, Inspircd, Master, Ngircd,
    NgircdOptions, Proxy, SUCCESS, TIMEOUT, Worker, buildbot, like, scratch, venv, wait_for,
};
use serde_json::{Value, json};
use std::cell::Cell;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const BINARY: &str = env!("CARGO_BIN_EXE_buildbot-irc");

/// A master without logins; each test has builders of its own.
struct Lab {
    master: Master,
    irc: Ngircd,
    _workers: [Worker; 2],
}

const MASTER: &str = r#"
for name in ["told", "whispered", "merge", "late"]:
    gated(name)
gated("line", collapseRequests=False)
for name in ["pair", "halt", "long"]:
    gated(name, workers=["w1", "w3"])
for name in ["far", "lost", "mine"]:
    builder(name, workers=["w2"])
for name in ["quick", "mac os", "lib/core", "größe", "ours", "open"]:
    builder(name)
worker("w2")
worker("w3")
force("main", [one.name for one in c["builders"]])
for name in ["many", "form", "unlisted"]:
    builder(name)
for name in ["b_second", "a_first", "A_off"]:
    force(name, ["many"])
on_change("changes", ["unlisted"])
force("form", ["form"],
    reason=util.StringParameter("reason", required=True, default="why"),
    username=util.UserNameParameter(required=True),
    codebases=[util.CodebaseParameter("app"), util.CodebaseParameter("lib")],
    properties=[
        util.IntParameter("level", default=3, required=True),
        util.BooleanParameter("clean", default=False),
        util.ChoiceStringParameter("mode", choices=["quick", "full"], default="quick", required=True),
        util.FixedParameter("fix", default="f"),
        util.StringParameter("flavour", regex="^[a-z]*$"),
        util.StringParameter("brief", maxsize=4),
        util.NestedParameter("nest", fields=[util.StringParameter("inner")]),
        util.AnyPropertyParameter("extra"),
    ])
"#;

fn lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let master = Master::start("authority", MASTER);
        let off =
            master.get("/api/v2/schedulers?name=A_off")["schedulers"][0]["schedulerid"].clone();
        master.post(
            &format!("/api/v2/schedulers/{off}"),
            "enable",
            json!({"enabled": false}),
        );
        let workers = ["w1", "w3"].map(|name| Worker::start(&master, name));
        Lab {
            master,
            irc: Ngircd::start(NgircdOptions::default()),
            _workers: workers,
        }
    })
}

const EVERYONE: &str = "[authorization]\nforce = everyone\nstop = everyone";

/// A bot of this nick in `#nick`, for which `buildbot` ends the section of that name and `irc` the whole.
#[track_caller]
fn start(url: &str, buildbot: &str, port: u16, nick: &str, irc: &str) -> Bot {
    let master = format!("[buildbot]\nurl = {url}\n{buildbot}\n[channel #{nick}]\n");
    let mut bot = Bot::start(
        BINARY,
        &format!("{master}[irc]\nhost = 127.0.0.1\nport = {port}\nnick = {nick}\n{irc}\n"),
    );
    bot.expect_log(&format!("joined #{nick}"));
    bot.expect_log("event stream: subscribed");
    bot
}

/// A person with a bot of the shared lab to talk to.
struct Talk<'a> {
    lab: &'a Lab,
    joe: Client,
    nick: &'a str,
    channel: String,
    bot: Bot,
    heard: [Cell<usize>; 2],
}

impl<'a> Talk<'a> {
    #[track_caller]
    fn new(nick: &'a str, irc: &str) -> Talk<'a> {
        let (lab, channel) = (lab(), format!("#{nick}"));
        let joe = Client::connect(lab.irc.port, &format!("{nick}-j"));
        joe.join(&channel);
        let bot = start(&lab.master.url(), "", lab.irc.port, nick, irc);
        Talk {
            lab,
            joe,
            nick,
            channel,
            bot,
            heard: Default::default(),
        }
    }

    /// The next line here or in private is this; `*` stands for anything. No line is skipped.
    #[track_caller]
    fn next(&self, place: &str, heard: &Cell<usize>, wanted: &str) {
        let (at, end) = (heard.get(), Instant::now() + TIMEOUT);
        let line = wait_for("a line", 2 * TIMEOUT, || {
            let line = self.joe.lines(place).get(at).cloned();
            let late = line.is_none() && Instant::now() > end;
            assert!(
                !late,
                "no line like {wanted:?} in {place}:\n  {}",
                self.joe.conversation()
            );
            line
        });
        heard.set(at + 1);
        let wanted = format!(
            "<{}> {}",
            self.nick,
            wanted.replace("URL", &self.lab.master.url())
        );
        assert!(
            like(&wanted, &line),
            "in {place}: wanted\n  {wanted}\nbut heard\n  {line}"
        );
    }

    #[track_caller]
    fn hear(&self, wanted: &str) {
        self.next(&self.channel, &self.heard[0], wanted);
    }

    #[track_caller]
    fn whisper(&self, wanted: &str) {
        self.next(&self.joe.nick, &self.heard[1], wanted);
    }

    fn say(&self, text: &str) {
        self.joe
            .say(&self.channel, &format!("{}: {text}", self.nick));
    }

    #[track_caller]
    fn ask(&self, text: &str, answer: &str) {
        self.say(text);
        self.hear(answer);
    }

    /// Nothing was said here that was not heard.
    #[track_caller]
    fn no_more(&self) {
        self.ask("source", "Buildbot: *");
    }
}

/// A build has these properties.
#[track_caller]
fn assert_properties(master: &Master, build: &Value, wanted: Value) {
    let all = master.get(&format!("/api/v2/builds/{}/properties", build["buildid"]))["properties"]
        [0]
    .take();
    wanted
        .as_object()
        .unwrap()
        .iter()
        .for_each(|(name, value)| assert_eq!(all[name][0], *value, "{name}: {all}"));
}

/// The build set that a build comes from: its reason and its source stamps.
fn buildset(master: &Master, build: &Value) -> Value {
    let request = master.get(&format!(
        "/api/v2/buildrequests/{}",
        build["buildrequestid"]
    ));
    master.get(&format!(
        "/api/v2/buildsets/{}",
        request["buildrequests"][0]["buildsetid"]
    ))["buildsets"][0]
        .take()
}

/// Waits until so many requests of a builder wait for a worker; returns the last one's id.
#[track_caller]
fn wait_queued(master: &Master, builder: &str, count: usize) -> Value {
    let path = format!(
        "/api/v2/builders/{}/buildrequests?complete=false&claimed=false",
        master.builder_id(builder)
    );
    wait_for(&format!("{count} requests of {builder}"), TIMEOUT, || {
        let requests = master.get(&path)["buildrequests"]
            .as_array()
            .unwrap()
            .clone();
        (requests.len() == count).then(|| requests[count - 1]["buildrequestid"].clone())
    })
}

#[test]
fn a_forced_build_is_told_once_where_it_was_asked_for() {
    let talk = Talk::new(
        "teller",
        &format!("notify_events = finished\nbuilders = told\n{EVERYONE}"),
    );
    let master = &talk.lab.master;
    let reason = "it's \"quo'ted\" größe ☃ \u{2}bold\u{2} \u{7}bell 100% <b> \\n";
    let kept = "it's \"quo'ted\" größe ☃ bold bell 100% <b> \\n";
    talk.ask(
        &format!("force build told {reason}"),
        "forced told #1 URL#/builders/*/builds/1",
    );
    let set = buildset(master, &master.wait_started("told", 1));
    let signed = format!("{kept} (teller-j in #teller)");
    assert!(set["reason"].as_str().unwrap().ends_with(&signed), "{set}");
    master.release("told", SUCCESS);
    talk.hear("told #1 success, took * URL#/builders/*/builds/1");
    talk.no_more();

    talk.joe.say("teller", "force build whispered in private");
    talk.whisper("forced whispered #1 URL#/builders/*/builds/1");
    let set = buildset(master, &master.wait_started("whispered", 1));
    assert!(
        set["reason"]
            .as_str()
            .unwrap()
            .ends_with("in private (teller-j)"),
        "{set}"
    );
    master.release("whispered", FAILURE);
    talk.whisper("whispered #1 failure: *");
    talk.joe.say("teller", "source");
    talk.whisper("Buildbot: *");
    talk.no_more();
}

#[test]
fn a_long_reason_is_kept_whole() {
    let talk = Talk::new("longer", EVERYONE);
    let master = &talk.lab.master;
    let reason = format!("{}the end", "word ".repeat(40));
    talk.ask(&format!("force build long {reason}"), "forced long #1 *");
    let build = master.wait_started("long", 1);
    talk.ask(&format!("stop build long {reason}"), "stopping long #1");
    talk.hear("long #1 cancelled*");
    let (set, end) = (buildset(master, &build), master.wait_build("long", 1));
    let kept =
        [&set["reason"], &end["state_string"]].map(|text| text.as_str().unwrap().contains(&reason));
    // A 2.x master does not say why a build was stopped.
    assert_eq!(
        kept,
        [true, !buildbot().starts_with("2.")],
        "forced: {set}\nstopped: {end}"
    );
}

const WRONG: &[(&str, &str)] = &[
    (
        "--props=level=x",
        "the master refuses: level: invalid literal for int() with base 10: 'x' (400)",
    ),
    (
        "--props=clean=perhaps",
        "clean: `perhaps` is neither yes nor no",
    ),
    (
        "--props=mode=nope",
        "the master refuses: mode: 'nope' does not belong to list of available choices *",
    ),
    ("--props=fix=g", "fix is fixed to f"),
    (
        "--props=flavour=BAD1",
        "the master refuses: flavour:'BAD1' does not match pattern '^[a-z]*$' (400)",
    ),
    (
        "--props=flavour=B,brief=longer",
        "the master refuses: *brief: is too large 6 > 4*flavour:'B' does not match *",
    ),
    (
        "--branch=x",
        "--branch: several codebases have one; add --codebase=NAME",
    ),
    (
        "--codebase=gui --branch=x",
        "--branch: the scheduler does not ask for gui_branch",
    ),
    (
        "--props=one=1,two=2",
        "--props: no property two; there are *",
    ),
    ("--color=red", "force: no option --color; see `help force`"),
    ("--branch", "force: write --branch=VALUE"),
    ("--props='level=1", "force: the quote ' is not closed"),
];

#[test]
fn fields_of_each_type_right_and_wrong() {
    let talks = ["form0", "form1", "form2"].map(|nick| Talk::new(nick, EVERYONE));
    for ((options, answer), talk) in WRONG.iter().zip(talks.iter().cycle()) {
        talk.ask(&format!("force build {options} form why"), answer);
    }
    let ([talk, other, _], master) = (&talks, &lab().master);
    assert_eq!(
        master.get(&format!(
            "/api/v2/builders/{}/builds",
            master.builder_id("form")
        ))["builds"],
        json!([])
    );
    // A nick may hold what no mail address may.
    other.joe.send("NICK [j|{o}^e`");
    other.joe.expect_contains(" NICK ");
    let options = "--codebase=lib --branch=topic --revision=abc --props=level=5,clean=YES,mode=full,fix=f,nest_inner=deep,free=4.2";
    talk.ask(
        &format!("force build {options} form all of them"),
        "forced form #1 URL#*",
    );
    let build = master.wait_build("form", 1);
    talk.hear("form #1 success*");
    let nested = json!({"nest": {"inner": "deep"}, "free": "4.2", "scheduler": "form"});
    assert_properties(master, &build, nested);
    let owner = "form0-j <form0-j@irc.invalid>";
    assert_properties(
        master,
        &build,
        json!({"level": 5, "clean": true, "mode": "full", "fix": "f", "owner": owner}),
    );
    let stamps = buildset(master, &build)["sourcestamps"].clone();
    let of = |name| {
        stamps
            .as_array()
            .unwrap()
            .iter()
            .find(|s| s["codebase"] == name)
            .unwrap()
            .clone()
    };
    assert_eq!(
        (&of("lib")["branch"], &of("lib")["revision"]),
        (&json!("topic"), &json!("abc"))
    );
    assert_ne!(of("app")["branch"], "topic", "{stamps}");

    other.ask("force build form nothing else", "forced form #2 URL#*");
    let build = master.wait_build("form", 2);
    assert_properties(
        master,
        &build,
        json!({"level": 3, "clean": false, "mode": "quick", "fix": "f"}),
    );
}

#[test]
fn the_scheduler_that_lists_the_builder() {
    let talks = ["sched", "names", "wrong"].map(|nick| Talk::new(nick, EVERYONE));
    let ([sched, names, wrong], master) = (&talks, &lab().master);
    for (number, option, scheduler) in
        [(1, "", "a_first"), (2, "--scheduler=b_second ", "b_second")]
    {
        let forced = format!(
            "forced many #{number} (scheduler {scheduler}) URL#/builders/*/builds/{number}"
        );
        sched.ask(&format!("force build {option}many why"), &forced);
        sched.hear(&format!("many #{number} success*"));
        assert_properties(
            master,
            &master.wait_build("many", number),
            json!({"scheduler": scheduler}),
        );
    }
    for other in ["A_off", "form", "nosuch"] {
        wrong.ask(
            &format!("force build --scheduler={other} many why"),
            "no such scheduler for many; it has a_first, b_second",
        );
    }
    let unlisted = "unlisted cannot be forced: no force scheduler of the master lists it";
    wrong.ask("force build unlisted why", unlisted);
    wrong.ask("force build --scheduler=main unlisted why", unlisted);
    for (typed, name, number) in [
        ("\"mac os\"", "mac os", 1),
        ("'lib/core'", "lib/core", 1),
        ("größe", "größe", 1),
        ("mac\\ os", "mac os", 2),
    ] {
        names.ask(
            &format!("force build {typed} why"),
            &format!("forced {name} #{number} URL#*"),
        );
        names.hear(&format!("{name} #{number} success*"));
    }
}

#[test]
fn what_has_to_wait_says_why() {
    let (talk, far) = (Talk::new("queue", EVERYONE), Talk::new("away", EVERYONE));
    let master = &talk.lab.master;
    far.say("force build far why");
    for builder in ["line", "merge"] {
        master.force(builder, &[]);
        master.wait_started(builder, 1);
    }
    let asked = Instant::now();
    talk.say("force build line first");
    // Questions do not wait for it.
    talk.ask("status line", "line: building #1*");
    talk.hear("queued line: the workers are busy");
    assert!(
        asked.elapsed() < Duration::from_secs(15),
        "the answer took {:?}",
        asked.elapsed()
    );
    talk.ask("force build line second", "queued line: behind 1 other*");
    // Requests for the same are one to the master: only the last of them leads to a build.
    talk.say("force build merge twice");
    wait_queued(master, "merge", 1);
    master.force("merge", &[]);
    talk.hear("merge: merged with an equal request");
    for number in 1..=3 {
        master.release("line", SUCCESS);
        master.wait_build("line", number);
    }
    talk.hear("line #2 success*");
    talk.hear("line #3 success*");
    talk.no_more();

    far.hear("queued far: no worker is online");
    let request = wait_queued(master, "far", 1);
    far.say("stop build far not today");
    // The news of it may come before the answer to it.
    far.joe
        .expect_contains("far: nothing runs; took back 1 queued request");
    // The master answers before it has written that down.
    wait_for("the cancellation", TIMEOUT, || {
        let request = master.get(&format!("/api/v2/buildrequests/{request}"));
        (request["buildrequests"][0]["results"] == CANCELLED).then_some(())
    });
}

/// Who was told "queued" is told when that comes to nothing, too.
#[test]
fn a_request_that_ends_without_a_build_is_told() {
    let (gone, merged) = (Talk::new("gone", EVERYONE), Talk::new("merged", EVERYONE));
    let master = &gone.lab.master;
    master.force("late", &[]);
    master.wait_started("late", 1);
    gone.say("force build lost why");
    merged.ask("force build late why", "queued late: the workers are busy");
    gone.hear("queued lost: no worker is online");
    let request = wait_queued(master, "lost", 1);
    master.post(
        &format!("/api/v2/buildrequests/{request}"),
        "cancel",
        json!({"reason": "over"}),
    );
    master.force("late", &[]);
    gone.hear("lost*cancelled*");
    merged.hear("late*merged*");
}

#[test]
fn two_users_at_once_each_hear_of_their_own() {
    let talk = Talk::new("both", EVERYONE);
    let (master, ann) = (
        &talk.lab.master,
        Client::connect(talk.lab.irc.port, "both-a"),
    );
    ann.say("both", "force build pair for ann");
    talk.say("force build pair for joe");
    let first = ann
        .expect_contains(" PRIVMSG both-a :forced pair #")
        .contains(" pair #1 ");
    let (of_ann, of_joe) = if first { (1, 2) } else { (2, 1) };
    talk.hear(&format!("forced pair #{of_joe} URL#*"));
    for (build, who) in [
        (of_ann, "for ann (both-a)"),
        (of_joe, "for joe (both-j in #both)"),
    ] {
        let set = buildset(master, &master.wait_started("pair", build));
        assert!(
            set["reason"].as_str().unwrap().contains(who),
            "#{build} of {who}: {set}"
        );
    }
    master.release("pair", SUCCESS);
    master.release("pair", SUCCESS);
    ann.expect_contains(&format!(" PRIVMSG both-a :pair #{of_ann} success"));
    talk.hear(&format!("pair #{of_joe} success*"));
    talk.no_more();
    ann.expect_none("pair");
}

#[test]
fn stop_ends_all_builds_and_says_which() {
    let talk = Talk::new("stopper", EVERYONE);
    let master = &talk.lab.master;
    for number in 1..=2 {
        master.force("halt", &[]);
        master.wait_started("halt", number);
    }
    talk.ask(
        "stop build halt it's \"broken\", größe",
        "stopping halt #1, #2",
    );
    for number in 1..=2 {
        let build = master.wait_build("halt", number);
        let state = "cancelled (it's \"broken\", größe (stopper-j in #stopper)) *";
        let state = if buildbot().starts_with("2.") {
            "cancelled *"
        } else {
            state
        };
        assert_eq!(build["results"], CANCELLED);
        assert!(
            like(state, build["state_string"].as_str().unwrap()),
            "{build}"
        );
    }
    talk.ask(
        "stop build halt again",
        "halt: nothing runs and nothing is queued",
    );
    talk.ask("stop build halt", "usage: stop build BUILDER REASON");
}

/// One's own request may be taken back by who may not stop; nobody else's.
#[test]
fn own_requests_can_be_taken_back() {
    let talk = Talk::new("own", "[authorization]\nforce = everyone\nstop = nobody");
    let ann = Client::connect(talk.lab.irc.port, "own-a");
    talk.ask("force build mine why", "queued mine: no worker is online");
    ann.say("own", "stop build mine for fun");
    ann.expect_contains(" PRIVMSG own-a :sorry, own-a, `stop` is not for you");
    talk.say("stop build mine changed my mind");
    // The news of it may come before the answer to it.
    talk.joe.expect_contains("mine: took back 1 queued request");
}

/// The lines of the log that tell of an attempt.
fn attempts(bot: &Bot, command: &str) -> Vec<String> {
    let told = |line: &&str| {
        line.contains(&format!(": `{command}")) && !line.contains("<<") && !line.contains(">>")
    };
    bot.log().lines().filter(told).map(str::to_owned).collect()
}

#[test]
fn a_refusal_says_nothing_else_and_every_attempt_is_logged() {
    let (lab, irc) = (lab(), Inspircd::start(true));
    let ann = Client::connect(irc.easy, "ann");
    ann.register("tulip");
    ann.send("NICK anna");
    ann.expect_contains(" NICK ");
    ann.join("#door");
    let eve = Client::connect(irc.easy, "eve");
    eve.join("#door");
    let rules = "[authorization]\nforce = account:ann\nstop = nobody";
    let bot = start(&lab.master.url(), "", irc.port, "door", rules);
    for text in [
        "force build ours x",
        "force build nosuch x",
        "force",
        "force build --scheduler=nosuch ours x",
    ] {
        eve.say("#door", &format!("door: {text}"));
        let line = eve.expect_contains(" PRIVMSG #door :");
        assert!(
            line.ends_with("PRIVMSG #door :sorry, eve, `force` is not for you"),
            "{text}: {line}"
        );
    }
    ann.say("#door", "door: force build ours x");
    ann.expect_contains(" PRIVMSG #door :forced ours #1 ");
    ann.say("door", "stop build ours x");
    ann.expect_contains(" PRIVMSG anna :sorry, anna, `stop` is not for you");
    let log = attempts(&bot, "force");
    assert_eq!(log.len(), 5, "{log:?}");
    assert!(
        log.iter()
            .take(4)
            .all(|line| line.contains("eve!eve@") && line.ends_with("refused")),
        "{log:?}"
    );
    assert!(
        log[0].contains("in #door: `force build ours x`: "),
        "{log:?}"
    );
    assert!(
        log[4].contains("anna!ann@")
            && log[4].contains("(account ann)")
            && log[4].ends_with("allowed"),
        "{log:?}"
    );
    assert_eq!(attempts(&bot, "stop").len(), 1, "{}", bot.log());
}

#[test]
fn who_has_no_account_is_logged_once_too() {
    let talk = Talk::new("plain", "[authorization]\nforce = account:plain-j");
    talk.ask(
        "force build open x",
        "sorry, plain-j, `force` is not for you",
    );
    let log = attempts(&talk.bot, "force");
    assert_eq!(log.len(), 1, "{log:?}");
}

#[test]
fn allow_force_is_for_everyone() {
    let talk = Talk::new("free", "allow_force = yes");
    talk.ask("force build open x", "forced open #1 *");
    talk.hear("open #1 success*");
    talk.ask(
        "stop build open x",
        "open: nothing runs and nothing is queued",
    );
}

/// One command against a master, all of it logged.
#[track_caller]
fn execute(url: &str, login: &str, command: &str) -> Finished {
    let dir = scratch("execute");
    std::fs::write(
        dir.join("bot.conf"),
        format!("[buildbot]\nurl = {url}\n{login}\n"),
    )
    .unwrap();
    let out = Bot::run(&dir, BINARY, &["-v", "-x", command], "");
    no_password(&out.stderr);
    out
}

const BOSS: &str = "user = boss\npassword = sesame";
const BASIC: &str = "Authorization: Basic Ym9zczpzZXNhbWU=";
const LOGIN: &str = "logging in to the master";

#[track_caller]
fn no_password(log: &str) {
    assert!(
        !log.contains("sesame") && !log.contains("Ym9zczpzZXNhbWU"),
        "{log}"
    );
}

const AUTH: &str = r#"
builder("app", workers=["w2"])
builder("lib", workers=["w2"])
worker("w2")
c["www"]["auth"] = util.UserPasswordAuth({"boss": "sesame", "half": "sesame", "guest": "sesame"})
c["www"]["authz"] = util.Authz(
    allowRules=[util.ForceBuildEndpointMatcher(role="forcers"), util.AnyControlEndpointMatcher(role="admins")],
    roleMatchers=[util.RolesFromUsername(roles=["forcers"], usernames=["boss", "half"]), util.RolesFromEmails(admins=["boss"])])
"#;

#[test]
fn logins_and_roles() {
    let master = Master::start("roles", AUTH);
    let role = |name| format!("the master refuses: you need to have role '{name}' (403)\n");
    let queued = "queued app: no worker is online\n".to_owned();
    let took = "app: nothing runs; took back 1 queued request\n".to_owned();
    let wrong = "the master refuses: user and password are not accepted (401)\n".to_owned();
    for (user, password, command, answer, logins) in [
        ("guest", "sesame", "force build app x", role("forcers"), 1),
        ("half", "sesame", "force build app x", queued, 1),
        ("half", "sesame", "stop build app x", role("admins"), 1),
        ("boss", "sesame", "stop build app x", took, 1),
        ("boss", "open sesame", "force build app x", wrong, 1),
        ("", "", "force build app x", role("forcers"), 0),
    ] {
        let login = if user.is_empty() {
            String::new()
        } else {
            format!("user = {user}\npassword = {password}")
        };
        let out = execute(&master.url(), &login, command);
        let said = if out.stdout.is_empty() {
            &out.stderr
        } else {
            &out.stdout
        };
        assert!(
            said.ends_with(&answer),
            "{user}: wanted {answer}, not {out:?}"
        );
        assert_eq!(out.stderr.matches(LOGIN).count(), logins, "{user}: {out:?}");
    }
}

/// What did not happen is no success.
#[test]
fn a_refused_order_on_the_command_line_fails() {
    let orders = ["unlisted", "--props=level=x form", "--props=flavour=1 form"];
    let ends =
        orders.map(|order| execute(&lab().master.url(), "", &format!("force build {order} why")));
    let ends = ends.map(|out| (out.code, out.stdout));
    assert_eq!(ends, [65; 3].map(|code| (code, String::new())));
}

#[test]
fn a_session_outlives_the_master_and_is_renewed_when_it_does_not() {
    let mut master = Master::start("session", AUTH);
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    let mut bot = start(
        &master.url(),
        &format!("{BOSS}\npoll_interval = 1"),
        irc.port,
        "renew",
        EVERYONE,
    );
    let ask = |text: &str, answer: &str| {
        joe.say("renew", text);
        joe.expect(|line| line.contains(" PRIVMSG joe :") && line.ends_with(answer));
    };
    ask("force build app x", "queued app: no worker is online");
    ask("force build lib x", "queued lib: no worker is online");
    assert_eq!(bot.log().matches(LOGIN).count(), 1);
    master.restart();
    bot.expect_log_times("event stream: subscribed", 2);
    ask(
        "stop build app x",
        "app: nothing runs; took back 1 queued request",
    );
    assert_eq!(
        bot.log().matches(LOGIN).count(),
        1,
        "the old session is good still"
    );
    master.stop();
    let script = "import sqlite3; d = sqlite3.connect('state.sqlite', isolation_level=None)\n\
                  exit(d.execute(\"delete from object_state where name = 'session_secret'\").rowcount != 1)";
    assert!(
        Command::new(venv("python"))
            .args(["-c", script])
            .current_dir(&master.dir)
            .status()
            .unwrap()
            .success()
    );
    master.start_again();
    bot.expect_log_times("event stream: subscribed", 3);
    ask(
        "stop build lib x",
        "lib: nothing runs; took back 1 queued request",
    );
    assert_eq!(bot.log().matches(LOGIN).count(), 2);
    no_password(&bot.log());
}

/// A master with a builder `app` and no builds, as far as the bot asks.
fn fake(path: &str) -> Answer {
    let path = path.split('?').next().unwrap();
    Answer::Json(match path {
        "/config" => {
            r#"{"versions": [], "buildbotURL": "http://m/", "user": {"anonymous": true}}"#.into()
        }
        "/api/v2/builders" => {
            r#"{"builders": [{"builderid": 1, "name": "app", "masterids": [1]}]}"#.into()
        }
        "/api/v2/builders/1/forceschedulers" => {
            r#"{"forceschedulers": [{"name": "f", "enabled": true}]}"#.into()
        }
        "/api/v2/forceschedulers/f" => {
            r#"{"id": 1, "jsonrpc": "2.0", "result": [1, {"1": 7}]}"#.into()
        }
        "/api/v2/buildrequests/7" => {
            r#"{"buildrequests": [{"buildrequestid": 7, "builderid": 1, "complete": true}]}"#.into()
        }
        "/sse/listen/builds/*/*" => {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
            return Answer::Stall(
                format!("{head}1c\r\nevent: handshake\ndata: 123\n\n\r\n").into(),
            );
        }
        _ => json!({path.rsplit('/').next().unwrap(): []}).to_string(),
    })
}

#[test]
fn the_password_stays_with_its_host() {
    let thief = FakeHttp::start(|_| Answer::Json("{}".into()));
    for at in ["/", "/auth/login", "/api/v2/forceschedulers/f"] {
        let to = format!("Location: {}\r\n", thief.url());
        let master = FakeHttp::start(move |request| match request.path.as_str() {
            "/api/v2/forceschedulers/f"
                if at != "/" && !request.head.contains("Cookie: TWISTED_SESSION=s") =>
            {
                Answer::Status("403 Forbidden", String::new(), "{}".into())
            }
            path if path.starts_with(at) => Answer::Status("302 Found", to.clone(), String::new()),
            "/auth/login" => Answer::Status(
                "302 Found",
                format!("{to}Set-Cookie: TWISTED_SESSION=s\r\n"),
                "".into(),
            ),
            path => fake(path),
        });
        let out = execute(&master.url(), BOSS, "force build app x");
        let seen = master.requests();
        assert!(
            seen.iter().all(|request| request.head.contains(BASIC)),
            "{seen:?}"
        );
        let at_last = &seen.last().unwrap().path;
        assert!(at_last.starts_with(at), "{at_last}: {out:?}");
        assert!(
            !out.stdout.contains("forced") && !out.stdout.contains("merged"),
            "{at}: {out:?}"
        );
        assert!(thief.requests().is_empty(), "{at}: {:?}", thief.requests());
    }
}

#[test]
fn basic_authentication_goes_with_every_request() {
    let proxy = FakeHttp::start(|request| match request.head.contains(BASIC) {
        true => fake(&request.path),
        false => Answer::Status(
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"lab\"\r\n".into(),
            "{}".into(),
        ),
    });
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    let bot = start(&proxy.url(), BOSS, irc.port, "basic", EVERYONE);
    joe.say("basic", "force build app x");
    joe.expect_contains(" PRIVMSG joe :app: merged with an equal request");
    for path in [
        "/sse/listen",
        "/sse/add",
        "/api/v2/builds",
        "/api/v2/forceschedulers/f",
        "/api/v2/buildrequests/7",
    ] {
        proxy.expect(path);
    }
    assert!(
        proxy
            .requests()
            .iter()
            .all(|request| request.head.contains(BASIC)),
        "{:?}",
        proxy.requests()
    );
    no_password(&bot.log());
    let out = execute(
        &proxy.url(),
        "user = boss\npassword = wrong",
        "force build app x",
    );
    assert!(
        out.code == 69 && out.stderr.lines().next_back().unwrap().contains("401"),
        "{out:?}"
    );
}

#[test]
fn a_silent_master_leaves_the_bot_prompt() {
    let lab = lab();
    let proxy = Proxy::start(lab.master.port);
    let joe = Client::connect(lab.irc.port, "hasty");
    let mut bot = start(
        &format!("http://127.0.0.1:{}/", proxy.port),
        "",
        lab.irc.port,
        "silent",
        EVERYONE,
    );
    joe.say("silent", "hello"); // the bot has paid for its registration when this comes
    joe.expect_contains(" PRIVMSG hasty :hello");
    proxy.freeze();
    joe.say("silent", "force build quick 0");
    bot.expect_log("/forceschedulers"); // now the worker waits, and eight may wait for it
    (1..=8).for_each(|n| joe.say("silent", &format!("force build quick {n}")));
    for (text, answer) in [
        ("force build quick 9", "busy, try again"),
        ("hello", "hello, hasty; "),
        (
            "list builders",
            " builders (3 offline: list all builders): ",
        ),
        ("stop build quick x", "busy, try again"),
    ] {
        let asked = Instant::now();
        joe.say("silent", text);
        let line = joe.expect_contains(" PRIVMSG hasty :");
        assert!(line.contains(answer), "{text}: {line}");
        assert!(
            asked.elapsed() < Duration::from_secs(5),
            "{text} took {:?}",
            asked.elapsed()
        );
    }
    proxy.thaw();
    joe.expect_contains(" PRIVMSG hasty :forced quick #1 ");
}
