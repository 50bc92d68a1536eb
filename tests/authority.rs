//! Who starts and stops builds, and what the master makes of it: real masters and workers, real IRC servers.

mod common;

use common::{
    Answer, Bot, CANCELLED, Client, FAILURE, FakeHttp, Finished, Lab, Listener, Master, Proxy,
    SUCCESS, TIMEOUT, buildbot, config_dir, matches, venv, wait_for,
};
use serde_json::{Value, json};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The master that most tests share; each test has builders of its own.
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

/// A master without logins, and ngIRCd.
fn shared_lab() -> &'static Lab {
    static LAB: OnceLock<Lab> = OnceLock::new();
    LAB.get_or_init(|| {
        let lab = Lab::new()
            .with_master("authority", MASTER)
            .with_worker("w1")
            .with_worker("w3")
            .with_ngircd();
        let master = lab.master();
        let schedulers = master.get("/api/v2/schedulers?name=A_off");
        let id = &schedulers["schedulers"][0]["schedulerid"];
        let path = format!("/api/v2/schedulers/{id}");
        master.post(&path, "enable", json!({"enabled": false}));
        lab
    })
}

const EVERYONE: &str = "[authorization]\nforce = everyone\nstop = everyone";

/// Starts a bot of this nick in `#nick`; `buildbot` ends the section of that name and `irc` the configuration.
#[track_caller]
fn start(lab: &Lab, nick: &str, buildbot: &str, irc: &str) -> Bot {
    // The channel comes first: `irc` may end with any section.
    let config = lab.config(nick, buildbot, irc);
    let mut bot = Bot::start(&format!("[channel #{nick}]\n{config}"));
    bot.wait_ready();
    bot
}

/// A person and a bot of the shared lab, who talk in a channel of their own and in private.
struct Talk {
    lab: &'static Lab,
    joe: Client,
    bot: Bot,
    nick: &'static str,
    channel: Listener,
    private: Listener,
}

impl Talk {
    #[track_caller]
    fn new(nick: &'static str, irc: &str) -> Talk {
        let lab = shared_lab();
        let channel = format!("#{nick}");
        let joe = lab.person(&format!("{nick}-j"), &[&channel]);
        Talk {
            lab,
            bot: start(lab, nick, "", irc),
            nick,
            channel: Listener::new(&joe, &channel),
            private: Listener::new(&joe, &joe.nick),
            joe,
        }
    }

    /// What the bot is to say; `URL` stands for the master's address.
    fn line(&self, text: &str) -> String {
        let text = text.replace("URL", &self.lab.master_url);
        format!("<{}> {text}", self.nick)
    }

    /// The next line in the channel is this; `*` stands for anything.
    #[track_caller]
    fn hear(&self, text: &str) {
        self.channel.hear(&self.line(text));
    }

    /// The next line in private is this.
    #[track_caller]
    fn hear_private(&self, text: &str) {
        self.private.hear(&self.line(text));
    }

    /// Says it to the bot in the channel.
    fn say(&self, text: &str) {
        let text = format!("{}: {text}", self.nick);
        self.joe.say(&self.channel.target, &text);
    }

    #[track_caller]
    fn ask(&self, text: &str, answer: &str) {
        self.say(text);
        self.hear(answer);
    }

    #[track_caller]
    fn ask_private(&self, text: &str, answer: &str) {
        self.joe.say(self.nick, text);
        self.hear_private(answer);
    }

    /// The bot has said nothing in the channel that was not heard.
    #[track_caller]
    fn expect_no_more(&self) {
        self.ask("source", "Buildbot: *");
    }
}

/// A build has these properties.
#[track_caller]
fn assert_properties(master: &Master, build: &Value, expected: Value) {
    let path = format!("/api/v2/builds/{}/properties", build["buildid"]);
    let answer = master.get(&path);
    let all = &answer["properties"][0];
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(all[name][0], *value, "{name}: {all}");
    }
}

/// The build set that a build comes from: its reason and its source stamps.
#[track_caller]
fn buildset(master: &Master, build: &Value) -> Value {
    let request = &build["buildrequestid"];
    let requests = master.get(&format!("/api/v2/buildrequests/{request}"));
    let set = &requests["buildrequests"][0]["buildsetid"];
    let mut sets = master.get(&format!("/api/v2/buildsets/{set}"));
    sets["buildsets"][0].take()
}

/// The reason of a build set.
#[track_caller]
fn reason(set: &Value) -> &str {
    set["reason"].as_str().unwrap()
}

/// Waits until this many requests of a builder wait for a worker; returns the last one's id.
#[track_caller]
fn wait_queued(master: &Master, builder: &str, count: usize) -> Value {
    let id = master.builder_id(builder);
    let path = format!("/api/v2/builders/{id}/buildrequests?complete=false&claimed=false");
    wait_for(&format!("{count} requests of {builder}"), TIMEOUT, || {
        let mut answer = master.get(&path);
        let requests = answer["buildrequests"].as_array_mut().unwrap();
        (requests.len() == count).then(|| requests[count - 1]["buildrequestid"].take())
    })
}

#[test]
fn the_end_of_a_forced_build_is_told_once_where_it_was_asked_for() {
    let irc = format!("notify_events = finished\nbuilders = told\n{EVERYONE}");
    let talk = Talk::new("teller", &irc);
    let master = talk.lab.master();
    let text = "it's \"quo'ted\" größe ☃ \u{2}bold\u{2} \u{7}bell 100% <b> \\n";
    let kept = "it's \"quo'ted\" größe ☃ bold bell 100% <b> \\n";
    talk.ask(
        &format!("force build told {text}"),
        "forced told #1 URL#/builders/*/builds/1",
    );
    let set = buildset(master, &master.wait_started("told", 1));
    let signed = format!("{kept} (teller-j in #teller)");
    assert!(reason(&set).ends_with(&signed), "{set}");
    master.release("told", SUCCESS);
    talk.hear("told #1 success, took * URL#/builders/*/builds/1");
    talk.expect_no_more();

    talk.ask_private(
        "force build whispered in private",
        "forced whispered #1 URL#/builders/*/builds/1",
    );
    let set = buildset(master, &master.wait_started("whispered", 1));
    assert!(reason(&set).ends_with("in private (teller-j)"), "{set}");
    master.release("whispered", FAILURE);
    talk.hear_private("whispered #1 failure: *");
    talk.ask_private("source", "Buildbot: *");
    talk.expect_no_more();
}

#[test]
fn a_long_reason_is_kept_whole() {
    let talk = Talk::new("longer", EVERYONE);
    let master = talk.lab.master();
    let reason = format!("{}the end", "word ".repeat(40));
    talk.ask(&format!("force build long {reason}"), "forced long #1 *");
    let build = master.wait_started("long", 1);
    talk.ask(&format!("stop build long {reason}"), "stopping long #1");
    talk.hear("long #1 cancelled*");
    let set = buildset(master, &build);
    assert!(set["reason"].as_str().unwrap().contains(&reason), "{set}");
    let end = master.wait_build("long", 1);
    let state = end["state_string"].as_str().unwrap();
    // A 2.x master does not say why a build was stopped.
    let has_reason = !buildbot().starts_with("2.");
    assert_eq!(state.contains(&reason), has_reason, "{end}");
}

/// Options that do not fit the force scheduler, and the answers.
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
        "--branch: several codebases have one; put --codebase=NAME before it",
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
fn fields_of_each_type_are_checked_and_sent() {
    let talks = ["form0", "form1", "form2"].map(|nick| Talk::new(nick, EVERYONE));
    for ((options, answer), talk) in WRONG.iter().zip(talks.iter().cycle()) {
        talk.ask(&format!("force build {options} form why"), answer);
    }
    let [talk, other, _] = &talks;
    let master = talk.lab.master();
    let path = format!("/api/v2/builders/{}/builds", master.builder_id("form"));
    assert_eq!(master.get(&path)["builds"], json!([]));
    // A nick may hold what no mail address may.
    other.joe.send("NICK [j|{o}^e`");
    other.joe.expect_contains(" NICK ");
    let options = "--codebase=lib --branch=topic --revision=abc --codebase=app --branch=rel --props=level=5,clean=YES,mode=full,fix=f,nest_inner=deep,free=4.2";
    talk.ask(
        &format!("force build {options} form all of them"),
        "forced form #1 URL#*",
    );
    let build = master.wait_build("form", 1);
    talk.hear("form #1 success*");
    let nested = json!({"nest": {"inner": "deep"}, "free": "4.2", "scheduler": "form"});
    assert_properties(master, &build, nested);
    let owner = "form0-j <form0-j@irc.invalid>";
    let plain = json!({"level": 5, "clean": true, "mode": "full", "fix": "f", "owner": owner});
    assert_properties(master, &build, plain);
    let set = buildset(master, &build);
    let lib = source_stamp(&set, "lib");
    assert_eq!(lib["branch"], "topic", "{set}");
    assert_eq!(lib["revision"], "abc", "{set}");
    assert_eq!(source_stamp(&set, "app")["branch"], "rel", "{set}");

    other.ask("force build form nothing else", "forced form #2 URL#*");
    let build = master.wait_build("form", 2);
    let defaults = json!({"level": 3, "clean": false, "mode": "quick", "fix": "f"});
    assert_properties(master, &build, defaults);
}

/// The source stamp of a build set for a codebase.
fn source_stamp<'a>(set: &'a Value, codebase: &str) -> &'a Value {
    let mut stamps = set["sourcestamps"].as_array().unwrap().iter();
    let found = stamps.find(|stamp| stamp["codebase"] == codebase);
    found.unwrap_or_else(|| panic!("no source stamp for {codebase}: {set}"))
}

#[test]
fn a_build_is_forced_by_a_scheduler_that_lists_its_builder() {
    let talks = ["sched", "names", "wrong"].map(|nick| Talk::new(nick, EVERYONE));
    let [sched, names, wrong] = &talks;
    let master = sched.lab.master();
    sched.ask(
        "force build many why",
        "many has several force schedulers; say which: --scheduler=NAME, one of a_first, b_second",
    );
    for (number, scheduler) in [(1, "a_first"), (2, "b_second")] {
        let forced = format!(
            "forced many #{number} (scheduler {scheduler}) URL#/builders/*/builds/{number}"
        );
        let force = format!("force build --scheduler={scheduler} many why");
        sched.ask(&force, &forced);
        sched.hear(&format!("many #{number} success*"));
        let build = master.wait_build("many", number);
        assert_properties(master, &build, json!({"scheduler": scheduler}));
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
    let talk = Talk::new("queue", EVERYONE);
    let far = Talk::new("away", EVERYONE);
    let master = talk.lab.master();
    far.say("force build far why");
    for builder in ["line", "merge"] {
        master.force(builder, &[]);
        master.wait_started(builder, 1);
    }
    let asked = Instant::now();
    talk.say("force build line first");
    // Questions do not wait for it.
    talk.ask("status line", "line: building #1*");
    talk.hear("queued line: the workers are busy, or a lock is held");
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "the answer took {took:?}");
    talk.ask("force build line second", "queued line: behind 1 other*");
    // The master merges equal requests: only the last of them leads to a build.
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
    talk.expect_no_more();

    far.hear("queued far: no worker is online");
    let request = wait_queued(master, "far", 1);
    far.say("stop build far not today");
    // The end of the request may be told before the answer to `stop`.
    far.joe
        .expect_contains("far: nothing runs; took back 1 queued request");
    // The master answers before its database has it.
    wait_for("the cancellation", TIMEOUT, || {
        let request = master.get(&format!("/api/v2/buildrequests/{request}"));
        (request["buildrequests"][0]["results"] == CANCELLED).then_some(())
    });
}

#[test]
fn a_request_that_ends_without_a_build_is_told() {
    let gone = Talk::new("gone", EVERYONE);
    let merged = Talk::new("merged", EVERYONE);
    let master = gone.lab.master();
    master.force("late", &[]);
    master.wait_started("late", 1);
    gone.say("force build lost why");
    merged.ask(
        "force build late why",
        "queued late: the workers are busy, or a lock is held",
    );
    gone.hear("queued lost: no worker is online");
    let request = wait_queued(master, "lost", 1);
    let path = format!("/api/v2/buildrequests/{request}");
    master.post(&path, "cancel", json!({"reason": "over"}));
    master.force("late", &[]);
    gone.hear("lost*cancelled*");
    // Who waits for a request that was merged into another waits for that.
    merged.hear("late: merged with an equal request, whose end is told here");
    for number in 1..=2 {
        master.release("late", SUCCESS);
        master.wait_build("late", number);
    }
    merged.hear("late #2 success*");
}

#[test]
fn two_users_at_once_each_hear_of_their_own() {
    let talk = Talk::new("both", EVERYONE);
    let master = talk.lab.master();
    let ann = talk.lab.person("both-a", &[]);
    ann.say("both", "force build pair for ann");
    talk.say("force build pair for joe");
    let answer = ann.expect_contains(" PRIVMSG both-a :forced pair #");
    let ann_is_first = answer.contains(" pair #1 ");
    let (of_ann, of_joe) = if ann_is_first { (1, 2) } else { (2, 1) };
    talk.hear(&format!("forced pair #{of_joe} URL#*"));
    for (number, owner) in [
        (of_ann, "for ann (both-a)"),
        (of_joe, "for joe (both-j in #both)"),
    ] {
        let set = buildset(master, &master.wait_started("pair", number));
        assert!(reason(&set).contains(owner), "#{number} {owner}: {set}");
    }
    master.release("pair", SUCCESS);
    master.release("pair", SUCCESS);
    ann.expect_contains(&format!(" PRIVMSG both-a :pair #{of_ann} success"));
    talk.hear(&format!("pair #{of_joe} success*"));
    talk.expect_no_more();
    ann.expect_none("pair");
}

#[test]
fn stop_ends_all_builds_and_says_which() {
    let talk = Talk::new("stopper", EVERYONE);
    let master = talk.lab.master();
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
        let expected = if buildbot().starts_with("2.") {
            "cancelled *"
        } else {
            "cancelled (it's \"broken\", größe (stopper-j in #stopper)) *"
        };
        assert_eq!(build["results"], CANCELLED);
        let state = build["state_string"].as_str().unwrap();
        assert!(matches(expected, state), "{build}");
    }
    talk.ask(
        "stop build halt again",
        "halt: nothing runs and nothing is queued",
    );
    talk.ask("stop build halt", "usage: stop build BUILDER REASON");
}

#[test]
fn those_who_may_not_stop_can_take_back_their_own_requests_only() {
    let talk = Talk::new("own", "[authorization]\nforce = everyone\nstop = nobody");
    let ann = talk.lab.person("own-a", &[]);
    talk.ask("force build mine why", "queued mine: no worker is online");
    ann.say("own", "stop build mine for fun");
    ann.expect_contains(" PRIVMSG own-a :sorry, own-a, you may not use `stop`");
    talk.say("stop build mine changed my mind");
    // The end of the request may be told before the answer to `stop`.
    talk.joe.expect_contains("mine: took back 1 queued request");
}

/// The lines of the log about attempts of a command, which must be this many.
#[track_caller]
fn attempts(bot: &Bot, command: &str, count: usize) -> Vec<String> {
    let attempts = || {
        let mut found = Vec::new();
        for line in bot.log().lines() {
            let is_traffic = line.contains("<<") || line.contains(">>");
            if line.contains(&format!(": `{command}")) && !is_traffic {
                found.push(line.to_string());
            }
        }
        found
    };
    wait_for("an attempt in the log", TIMEOUT, || {
        (attempts().len() >= count).then_some(())
    });
    let found = attempts();
    assert_eq!(found.len(), count, "{}", bot.log());
    found
}

#[test]
fn a_refusal_says_nothing_else_and_every_attempt_is_logged() {
    let mut lab = Lab::new().with_services();
    lab.master_url = shared_lab().master_url.clone();
    let ann = lab.person("ann", &[]);
    ann.register("tulip");
    ann.send("NICK anna");
    ann.expect_contains(" NICK ");
    ann.join("#door");
    let eve = lab.person("eve", &["#door"]);
    let rules = "[authorization]\nforce = account:ann\nstop = nobody";
    let bot = start(&lab, "door", "", rules);
    for text in [
        "force build ours x",
        "force build nosuch x",
        "force",
        "force build --scheduler=nosuch ours x",
    ] {
        eve.say("#door", &format!("door: {text}"));
        let line = eve.expect_contains(" PRIVMSG #door :");
        let refusal = "PRIVMSG #door :sorry, eve, you may not use `force`";
        assert!(line.ends_with(refusal), "{text}: {line}");
    }
    ann.say("#door", "door: force build ours x");
    ann.expect_contains(" PRIVMSG #door :forced ours #1 ");
    ann.say("door", "stop build ours x");
    ann.expect_contains(" PRIVMSG anna :sorry, anna, you may not use `stop`");
    let log = attempts(&bot, "force", 5);
    for line in &log[..4] {
        assert!(line.contains("eve!eve@"), "{line}");
        assert!(line.ends_with("refused"), "{line}");
    }
    let first = "in #door: `force build ours x`: ";
    assert!(log[0].contains(first), "{log:?}");
    assert!(log[4].contains("anna!ann@"), "{log:?}");
    assert!(log[4].contains("(account ann)"), "{log:?}");
    assert!(log[4].ends_with("allowed"), "{log:?}");
    attempts(&bot, "stop", 1);
}

#[test]
fn an_attempt_without_an_account_is_logged_once() {
    let talk = Talk::new("plain", "[authorization]\nforce = account:plain-j");
    talk.ask(
        "force build open x",
        "sorry, plain-j, you may not use `force`",
    );
    attempts(&talk.bot, "force", 1);
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

/// Runs one command against a master, with all of it logged.
#[track_caller]
fn execute_verbose(url: &str, login: &str, command: &str) -> Finished {
    let dir = config_dir(&format!("[buildbot]\nurl = {url}\n{login}\n"));
    let done = Bot::run(&dir, &["-v", "-x", command]);
    assert_no_password(&done.stderr);
    done
}

const BOSS: &str = "user = boss\npassword = sesame";
const BASIC: &str = "Authorization: Basic Ym9zczpzZXNhbWU=";
const LOGIN: &str = "logging in to the master";

#[track_caller]
fn assert_no_password(log: &str) {
    assert!(!log.contains("sesame"), "{log}");
    assert!(!log.contains("Ym9zczpzZXNhbWU"), "{log}");
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
fn the_role_of_the_login_decides() {
    let master = Master::start("roles", AUTH);
    let force = "force build app x";
    let stop = "stop build app x";
    let no_role = |name| format!("the master refuses: you need to have role '{name}' (403)\n");
    let check = |login: &str, command: &str, answer: &str| {
        let done = execute_verbose(&master.url(), login, command);
        let reply = format!("{}{}", done.stderr, done.stdout);
        assert!(reply.ends_with(answer), "{login}: not {answer}: {done:?}");
        let logins = usize::from(!login.is_empty());
        assert_eq!(done.stderr.matches(LOGIN).count(), logins, "{done:?}");
    };
    let guest = "user = guest\npassword = sesame";
    let half = "user = half\npassword = sesame";
    let wrong = "user = boss\npassword = open sesame";
    check(guest, force, &no_role("forcers"));
    check(half, force, "queued app: no worker is online\n");
    check(half, stop, &no_role("admins"));
    check(
        BOSS,
        stop,
        "app: nothing runs; took back 1 queued request\n",
    );
    check(
        wrong,
        force,
        "the master refuses: user and password are not accepted (401)\n",
    );
    check("", force, &no_role("forcers"));
}

#[test]
fn an_order_that_the_master_refuses_ends_with_code_65() {
    for order in ["unlisted", "--props=level=x form", "--props=flavour=1 form"] {
        let command = format!("force build {order} why");
        let done = execute_verbose(&shared_lab().master_url, "", &command);
        assert_eq!(done.code, 65, "{order}: {done:?}");
        assert_eq!(done.stdout, "", "{order}: {done:?}");
    }
}

/// The master keeps its sessions over a restart; without its secret they are void.
#[test]
fn a_session_outlives_the_master_and_is_renewed_when_it_does_not() {
    let mut lab = Lab::new().with_master("session", AUTH).with_ngircd();
    let joe = lab.person("joe", &[]);
    let buildbot = format!("{BOSS}\npoll_interval = 1");
    let mut bot = start(&lab, "renew", &buildbot, EVERYONE);
    let ask = |text: &str, answer: &str| {
        joe.say("renew", text);
        joe.expect(|line| line.contains(" PRIVMSG joe :") && line.ends_with(answer));
    };
    ask("force build app x", "queued app: no worker is online");
    ask("force build lib x", "queued lib: no worker is online");
    bot.assert_logged(LOGIN, 1);
    lab.master_mut().restart();
    bot.wait_subscribed(2);
    ask(
        "stop build app x",
        "app: nothing runs; took back 1 queued request",
    );
    bot.assert_logged(LOGIN, 1);
    lab.master_mut().stop();
    delete_session_secret(lab.master());
    lab.master_mut().start_again();
    bot.wait_subscribed(3);
    ask(
        "stop build lib x",
        "lib: nothing runs; took back 1 queued request",
    );
    bot.assert_logged(LOGIN, 2);
    assert_no_password(&bot.log());
}

#[track_caller]
fn delete_session_secret(master: &Master) {
    let script = "import sqlite3; d = sqlite3.connect('state.sqlite', isolation_level=None)\n\
                  exit(d.execute(\"delete from object_state where name = 'session_secret'\").rowcount != 1)";
    let status = Command::new(venv("python"))
        .args(["-c", script])
        .current_dir(&master.dir)
        .status();
    assert!(status.unwrap().success());
}

/// A master with a builder `app` that can be forced, and no builds.
fn forceable_master(path: &str) -> Answer {
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
            return Answer::stream(b"");
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
            path => forceable_master(path),
        });
        let done = execute_verbose(&master.url(), BOSS, "force build app x");
        assert_all_basic(&master);
        let requests = master.requests();
        let last = &requests.last().unwrap().path;
        assert!(last.starts_with(at), "{last}: {done:?}");
        assert!(!done.stdout.contains("forced"), "{at}: {done:?}");
        assert_ne!(done.code, 0, "{at}: {done:?}");
        assert!(!done.stdout.contains("merged"), "{at}: {done:?}");
        assert!(thief.requests().is_empty(), "{at}: {:?}", thief.requests());
    }
}

/// Every request had the Authorization header.
#[track_caller]
fn assert_all_basic(server: &FakeHttp) {
    for request in server.requests() {
        assert!(request.head.contains(BASIC), "{request:?}");
    }
}

#[test]
fn basic_authentication_goes_with_every_request() {
    let proxy = FakeHttp::start(|request| match request.head.contains(BASIC) {
        true => forceable_master(&request.path),
        false => Answer::Status(
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"lab\"\r\n".into(),
            "{}".into(),
        ),
    });
    let lab = Lab::new().with_fake_master(proxy).with_ngircd();
    let joe = lab.person("joe", &[]);
    let bot = start(&lab, "basic", BOSS, EVERYONE);
    joe.say("basic", "force build app x");
    joe.expect_contains(" PRIVMSG joe :app: merged with an equal request");
    for path in [
        "/sse/listen",
        "/sse/add",
        "/api/v2/builds",
        "/api/v2/forceschedulers/f",
        "/api/v2/buildrequests/7",
    ] {
        lab.fake_master().expect(path);
    }
    assert_all_basic(lab.fake_master());
    assert_no_password(&bot.log());
    let wrong = "user = boss\npassword = wrong";
    let done = execute_verbose(&lab.master_url, wrong, "force build app x");
    assert_eq!(done.code, 69, "{done:?}");
    assert_eq!(done.stdout, "", "{done:?}");
    let last = done.stderr.lines().next_back().unwrap();
    assert!(last.contains("401"), "{done:?}");
}

#[test]
fn the_bot_answers_promptly_while_the_master_is_silent() {
    let shared = shared_lab();
    let proxy = Proxy::start(shared.master().port);
    let mut lab = Lab::new().with_ngircd();
    lab.master_url = proxy.url();
    let joe = lab.person("hasty", &[]);
    let mut bot = start(&lab, "silent", "", EVERYONE);
    joe.say("silent", "hello"); // the bot has paid for its registration when this comes
    joe.expect_contains(" PRIVMSG hasty :hello");
    proxy.freeze();
    joe.say("silent", "force build quick 0");
    bot.expect_log("/forceschedulers"); // now one job waits for the master, and eight may wait behind it
    for n in 1..=8 {
        joe.say("silent", &format!("force build quick {n}"));
    }
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
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(5), "{text} took {took:?}");
    }
    proxy.thaw();
    joe.expect_contains(" PRIVMSG hasty :forced quick #1 ");
}
