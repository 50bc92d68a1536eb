//! What the bot tells by itself: real builds of a real master, heard by real people.

mod common;

use common::{
    Bot, CANCELLED, Client, EXCEPTION, Ear, FAILURE, Master, Ngircd, NgircdOptions, SUCCESS,
    TIMEOUT, WARNINGS, Worker, buildbot, like, wait_for,
};
use serde_json::json;
use std::fs;
use std::time::SystemTime;

const BINARY: &str = env!("CARGO_BIN_EXE_buildbot-irc");
const POLL: &str = "poll_interval = 300ms\nevent_stream = no";

/// A master with its worker, and an IRC server.
struct Lab {
    master: Master,
    irc: Ngircd,
    worker: Option<Worker>,
}

impl Lab {
    #[track_caller]
    fn start(name: &str, config: &str) -> Lab {
        let master = Master::start(name, config);
        let worker = Some(Worker::start(&master, "w1"));
        let irc = Ngircd::start(NgircdOptions::default());
        Lab {
            master,
            irc,
            worker,
        }
    }

    fn config(&self, nick: &str, buildbot: &str, irc: &str) -> String {
        let (url, port) = (self.master.url(), self.irc.port);
        format!(
            "[buildbot]\nurl = {url}\n{buildbot}\n[irc]\nhost = 127.0.0.1\nport = {port}\nnick = {nick}\n{irc}\n"
        )
    }

    /// A bot that polls or holds the event stream; `irc` ends the section [irc] and has the other ones.
    #[track_caller]
    fn bot(&self, nick: &str, buildbot: &str, irc: &str) -> Bot {
        let mut bot = Bot::start(BINARY, &self.config(nick, buildbot, irc));
        ready(&mut bot, irc, buildbot != POLL);
        bot
    }

    /// A person in these channels.
    fn person(&self, nick: &str, channels: &[&str]) -> Client {
        let person = Client::connect(self.irc.port, nick);
        channels.iter().for_each(|channel| person.join(channel));
        person
    }

    /// A build of a gated builder from its start to its end.
    #[track_caller]
    fn build(&self, builder: &str, number: i64, result: i64) {
        self.master.force(builder, &[]);
        self.master.release(builder, result);
        let build = self.master.wait_build(builder, number);
        assert_eq!(build["results"], result, "{build}");
    }
}

/// It is in its channels and knows what is old.
#[track_caller]
fn ready(bot: &mut Bot, config: &str, stream: bool) {
    bot.expect_log_times("IRC: joined", config.matches("[channel").count());
    match stream {
        true => bot.expect_log("event stream: subscribed"),
        false => bot.expect_log_times("GET /api/v2/buildrequests", 2),
    }
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

/// The events of a build that ended, as Buildbot's documentation tells them.
fn events(result: i64, before: Option<i64>) -> Vec<String> {
    let word = |result: i64| WORDS[result as usize];
    let mut events = vec!["finished".to_string(), word(result).to_string()];
    let Some(before) = before.filter(|_| result != CANCELLED) else {
        return events;
    };
    let capital = word(result)[..1].to_uppercase() + &word(result)[1..];
    events.push(format!("{}To{capital}", word(before)));
    let bad = |result| result == FAILURE || result == EXCEPTION;
    let more = [
        ("problem", bad(result) && !bad(before)),
        ("recovery", !bad(result) && bad(before)),
        ("worse", result > before),
        ("better", result < before),
    ];
    events.extend(
        more.iter()
            .filter(|(_, is)| *is)
            .map(|(name, _)| name.to_string()),
    );
    events
}

/// A bot for each event, and some that only poll; two builders take turns until each transition came once.
#[test]
fn every_event_from_real_builds_is_told_once() {
    let lab = Lab::start("events", "gated('a')\ngated('b')\nends('last', SUCCESS)\n");
    let (s, w, f, e) = (SUCCESS, WARNINGS, FAILURE, EXCEPTION);
    let builds = [
        ("a", [s, s, w, CANCELLED, s, f, s, e, w, w]),
        ("b", [w, f, w, e, CANCELLED, f, f, e, e, s]),
    ];
    let names = "success warnings failure exception cancelled problem recovery worse better";
    let mut names: Vec<String> = names.split(' ').map(String::from).collect();
    for before in [s, w, f, e] {
        names.extend([s, w, f, e].map(|now| events(now, Some(before)).remove(2)));
    }
    // What every build is has a bot for each builder; `worker` has a test of its own.
    let mut setups: Vec<_> = names.iter().map(|name| (name.as_str(), "*", "")).collect();
    setups.extend(["cancelled", "recovery", "failureToSuccess"].map(|name| (name, "*", POLL)));
    for (builder, how) in [("a", ""), ("b", ""), ("a", POLL), ("b", POLL)] {
        setups.extend(["started", "finished"].map(|name| (name, builder, how)));
    }
    let joe = lab.person("joe", &[]);
    let mut bots = Vec::new();
    for (i, (event, builder, how)) in setups.iter().enumerate() {
        joe.join(&format!("#b{i}"));
        let irc = format!("notify_events = {event}\nbuilders = {builder} last\n[channel #b{i}]");
        bots.push(Bot::start(BINARY, &lab.config(&format!("b{i}"), how, &irc)));
    }
    bots.iter_mut()
        .zip(&setups)
        .for_each(|(bot, (.., how))| ready(bot, "[channel", *how != POLL));
    let ears: Vec<_> = (0..setups.len())
        .map(|i| Ear::new(&joe, &format!("#b{i}")))
        .collect();
    let hear = |event: &str, builder: &str, line: &str| {
        for (i, (name, glob, _)) in setups.iter().enumerate() {
            if *name == event && like(glob, builder) {
                ears[i].hear(&format!("<b{i}> {line}"));
            }
        }
    };

    let mut before = [None; 2];
    for turn in 0..20 {
        let (which, number) = (turn % 2, turn / 2 + 1);
        let (builder, result) = (builds[which].0, builds[which].1[number - 1]);
        lab.master.force(builder, &[]);
        let url = format!(
            "{}#/builders/{}/builds/{number}",
            lab.master.url(),
            lab.master.builder_id(builder)
        );
        hear(
            "started",
            builder,
            &format!("{builder} #{number} started {url}"),
        );
        lab.master.release(builder, result);
        for event in events(result, before[which]) {
            let word = WORDS[result as usize];
            hear(
                &event,
                builder,
                &format!("{builder} #{number} {word}*, took *s {url}"),
            );
        }
        before[which] = Some(result)
            .filter(|result| *result != CANCELLED)
            .or(before[which]);
    }
    // Whoever still had something to tell would tell it before this.
    for (i, ear) in ears.iter().enumerate() {
        // A bot that wants nothing of the last build may not have seen its end yet.
        loop {
            joe.say(&ear.place, &format!("b{i}: last b"));
            if like(&format!("<b{i}> b: #10 *"), &ear.next()) {
                break;
            }
        }
        joe.say(&ear.place, &format!("b{i}: notify off started success"));
        joe.say(&ear.place, &format!("b{i}: notify on finished"));
        ear.hear(&format!(
            "<b{i}> notify is o*\n<b{i}> notify is on for *finished*"
        ));
    }
    lab.master.force("last", &[]);
    ears.iter()
        .enumerate()
        .for_each(|(i, ear)| ear.hear(&format!("<b{i}> last #1 success, took *")));
}

const EVE: &str = "Eve\r\nQUIT :x\u{2}\u{3}04 red\u{202e}\u{0} <eve@example.org>";

/// Many channels of a bot (of two, for speed), and people in private: each hears just what it wants, as it wants it.
#[test]
fn channels_and_people_differ() {
    let config = "ends('app', FAILURE, tags=['release'])\nends('mac os', FAILURE)\nends('größe/x', FAILURE, tags=['x'])\n\
                  on_change('changes', ['app'])\nforce('force', ['mac os', 'größe/x'])";
    let lab = Lab::start("channels", config);
    let places = [
        "#all",
        "#tags",
        "#globs",
        "#off",
        "#notice",
        "#colors",
        "#revisions",
        "#noblame",
    ];
    let joe = lab.person("joe", &places);
    let ann = lab.person("ann", &[]);
    let config = "notify_events = failure\nbuilders = app\npm_to_nicks = ann\n[channel #all]\nbuilders = *\n\
                  [channel #tags]\ncategories = other release\nbuilders = *\n[channel #globs]\nbuilders = \"mac o?\" gr*/x\n\
                  [channel #off]\nnotify_events = success\n";
    let _bot = lab.bot("bot", "", config);
    let config = "notify_events = failure\nbuilders = app\n[channel #notice]\nnotice_on_channel = yes\n\
                  [channel #colors]\nuse_colors = yes\n[channel #revisions]\nuse_revisions = yes\nbuilders = app \"mac os\"\n\
                  [channel #noblame]\nshow_blame_list = no\n";
    let _two = lab.bot("two", "", config);
    let [all, tags, globs, off, notice, colors, revisions, noblame] =
        places.map(|place| Ear::new(&joe, place));
    let (private, other) = (Ear::new(&ann, "ann"), Ear::new(&joe, "joe"));
    lab.master.change(
        "Ann <ann@example.org>",
        "3f786850e387550fdab836ed7e6dc881de23001b",
        "Add",
    );
    let id = lab.master.wait_build("app", 1)["builderid"].clone();
    let url = format!("{}#/builders/{id}/builds/1", lab.master.url());
    let line = format!("app #1 failure: failed 'false', took *s, blame Ann {url}");
    for ear in [&all, &tags, &private] {
        ear.hear(&format!("<bot> {line}"));
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

    // Without a change nobody is to blame. Joe asks for himself, and turns a channel on.
    joe.say("bot", "notify on exception");
    other.hear("<bot> notify is on for exception");
    joe.say("bot", "notify on failure");
    other.hear("<bot> notify is on for failure exception");
    joe.say("#off", "bot: notify on failure");
    off.hear("<bot> notify is on for success failure");
    lab.master.force("mac os", &[("revision", "1234abc")]);
    for ear in [&all, &globs] {
        ear.hear("<bot> mac os #1 failure: failed 'false', took *s http:*");
    }
    revisions.hear("<two> mac os #1 failure: failed 'false', took *s, revision 1234abc http:*");
    lab.master.force("größe/x", &[]);
    for ear in [&all, &globs] {
        ear.hear("<bot> größe/x #1 failure: failed 'false', took *s http:*");
    }
    // The last build, wanted by most: who heard too much before fails here.
    lab.master.change(EVE, "r\u{2}2\r\nQUIT", "Drop\u{0}\nit");
    let line = "app #2 failure (2nd in a row): failed 'false', took *s";
    colors.hear(&format!(
        "<two> {}, blame *",
        line.replacen("failure", "\u{3}04failure\u{f}", 1)
    ));
    for ear in [&all, &tags, &off, &other, &private] {
        ear.hear(&format!("<bot> {line}, blame Eve QUIT :x 04 red, Ann *"));
    }
    notice.hear(&format!("-two- {line}, blame *"));
    revisions.hear(&format!(
        "<two> {line}, blame Eve QUIT :x 04 red, Ann, revisions r 2 QUIT, 3f786850e3 {}#*",
        lab.master.url()
    ));
    noblame.hear(&format!("<two> {line} http*"));
    joe.say("#globs", "bot: list 1 changes");
    globs.hear("<bot> r 2 QUIT on main by Eve QUIT :x 04 red: Drop");
}

/// Nothing from outside becomes a line, a colour or a command of its own.
#[test]
fn hostile_names_and_reasons_stay_text() {
    let config = "name = 'ev\\x02il\\tna\\x07me \\x0304 \\u202ered'\n\
                  builder(name, steps.ShellCommand(name='st\\x03ep\\r\\nQUIT', command=['sleep', '60']))\n\
                  broken('boom')\nends('end', SUCCESS)\n";
    let lab = Lab::start("hostile", config);
    let name = lab.master.get("/api/v2/builders?order=-name&limit=1")["builders"][0]["name"]
        .as_str()
        .unwrap()
        .to_string();
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.bot(
        "bot",
        "",
        "notify_events = started finished\nuse_revisions = yes\n[channel #lab]",
    );
    let ear = Ear::new(&joe, "#lab");
    let shown = "ev il na me 04 red";
    lab.master.force(&name, &[]);
    ear.hear(&format!(
        "<bot> {shown} #1 started {}#/builders/*/builds/1",
        lab.master.url()
    ));
    let build = lab.master.wait_started(&name, 1)["buildid"].clone();
    joe.say("#lab", &format!("bot: status {shown}"));
    ear.hear(&format!(
        "<bot> {shown}: building #1 (step st ep QUIT) for *s"
    ));
    let reason = json!({"reason": format!("no\r\nPRIVMSG #lab :mine\u{0}\u{2}\u{3}04,02red\u{1}ACTION\u{f} {}", "é".repeat(900))});
    lab.master
        .post(&format!("/api/v2/builds/{build}"), "stop", reason);
    let line = ear.next();
    // A 2.x master does not say why a build was stopped.
    let told = if buildbot().starts_with("2.") {
        "'sleep 60'"
    } else {
        "(no PRIVMSG #lab :mine 04,02red ACTION éé"
    };
    let start = format!("<bot> {shown} #1 cancelled: {told}");
    assert!(
        line.starts_with(&start) && line.contains(", took ") && line.ends_with("/builds/1"),
        "{line}"
    );
    lab.master.force("boom", &[]);
    ear.hear("<bot> boom #1 started *\n<bot> boom #1 exception, took *");
    lab.master.force("end", &[]);
    ear.hear("<bot> end #1 started *\n<bot> end #1 success, took *");
    let conversation = joe.conversation();
    for line in conversation
        .split("\n  ")
        .filter(|line| line.starts_with("<< :bot!"))
    {
        assert!(
            !line.chars().any(char::is_control) && !line.contains(['\u{fffd}', '\u{202e}']),
            "{line}"
        );
        assert!(line.len() - "<< ".len() <= 510, "{line}");
    }
}

/// What was missed while the bot was away is told once, by those who remember.
#[test]
fn the_state_file_loses_nothing_and_repeats_nothing() {
    let lab = Lab::start(
        "memory",
        "for name in ['app', 'doc', 'lib']:\n    gated(name)\n",
    );
    let joe = lab.person("joe", &["#keep", "#late", "#none"]);
    let [keep, late, none] = ["#keep", "#late", "#none"].map(|place| Ear::new(&joe, place));
    let private = Ear::new(&joe, "joe");
    let setups = [
        ("keep", "", "[bot]\nstate_file = state"),
        ("late", POLL, "[bot]\nstate_file = state\ncatch_up = 1"),
        ("none", "", ""),
    ];
    lab.build("app", 1, SUCCESS); // old when the bots come
    let irc = setups
        .map(|(nick, _, more)| format!("notify_events = finished\n[channel #{nick}]\n{more}"));
    let mut bots = [0, 1, 2].map(|i| lab.bot(setups[i].0, setups[i].1, &irc[i]));
    let everyone = |text: &str| {
        [(&keep, "keep"), (&late, "late"), (&none, "none")]
            .map(|(ear, nick)| ear.hear(&format!("<{nick}> {text}")))
    };
    lab.build("app", 2, FAILURE);
    everyone("app #2 failure (was success)*");
    joe.say("#keep", "keep: notify on started");
    keep.hear("<keep> notify is on for started finished");
    lab.master.force("lib", &[]);
    lab.master.wait_started("lib", 1);
    keep.hear("<keep> lib #1 started *");
    joe.say("keep", "watch lib");
    private.hear("<keep> watching lib #1*");
    joe.say("#none", "none: notify on started");
    none.hear("<none> notify is on for started finished");

    // Away: one build ends that had begun, others come and go.
    bots.iter_mut()
        .for_each(|bot| assert_eq!(bot.terminate(), 0));
    lab.master.release("lib", FAILURE);
    lab.master.wait_build("lib", 1);
    lab.build("app", 3, SUCCESS);
    lab.build("doc", 1, WARNINGS);
    let ended = lab.master.wait_build("doc", 1)["complete_at"]
        .as_f64()
        .unwrap();
    wait_for("the builds to be too old for some", TIMEOUT, || {
        (SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64() > ended + 2.5).then_some(())
    });
    bots.iter_mut().for_each(Bot::start_again);
    keep.hear("<keep> lib #1 failure: *, took *\n<keep> app #3 success (fixed), took *\n<keep> doc #1 warnings: *");
    private.hear("<keep> lib #1 failure: *, took *");
    late.hear("<late> missed while away: failure lib #1; warnings doc #1; success app #3");
    for ((bot, irc), (_, how, _)) in bots.iter_mut().zip(&irc).zip(setups) {
        ready(bot, irc, how != POLL);
    }

    // Killed, with all confirmed: nothing is said again, and what `notify` set is still set.
    let state = bots[0].dir.join("state");
    wait_for("the state to hold nothing untold", TIMEOUT, || {
        (fs::read_to_string(&state)
            .unwrap()
            .contains("\"pending\": []"))
        .then_some(())
    });
    bots[0].kill9();
    lab.build("doc", 2, SUCCESS);
    everyone_but_keep(&late, &none);
    bots[0].start_again();
    keep.hear("<keep> doc #2 success (was warnings)*");
    lab.build("app", 4, SUCCESS);
    keep.hear("<keep> app #4 started *");
    everyone("app #4 success, took *");
    joe.say("keep", "source");
    private.hear("<keep> Buildbot: *");
}

fn everyone_but_keep(late: &Ear, none: &Ear) {
    late.hear("<late> doc #2 success (was warnings)*");
    none.hear("<none> doc #2 success (was warnings)*");
}

/// A place is the same place in any case.
#[test]
fn told_once_whatever_the_case_of_a_name() {
    let lab = Lab::start("case", "ends('app', SUCCESS)\n");
    let joe = lab.person("joe", &["#lab"]);
    let (channel, private) = (Ear::new(&joe, "#lab"), Ear::new(&joe, "joe"));
    let _bot = lab.bot(
        "bot",
        "",
        "notify_events = finished\n[channel #lab]\n[authorization]\njoin = everyone",
    );
    joe.say("#lab", "bot: join #LAB");
    channel.hear("<bot> joining #LAB");
    joe.say("bot", "notify on finished");
    private.hear("<bot> notify is on for finished");
    joe.send("NICK JOE");
    joe.say("bot", "notify on finished");
    private.hear("<bot> notify is on for finished");
    for number in 1..3 {
        lab.master.force("app", &[]);
        channel.hear(&format!("<bot> app #{number} success, took *"));
        private.hear(&format!("<bot> app #{number} success, took *"));
    }
}

/// What cannot be told in one place is no reason to tell everything twice in another.
#[test]
fn a_closed_channel_is_in_nobodys_way() {
    let lab = Lab::start("closed", "ends('app', SUCCESS)\n");
    let joe = lab.person("joe", &["#open", "#closed"]);
    joe.send("MODE #closed +i");
    let open = Ear::new(&joe, "#open");
    let config =
        "notify_events = finished\n[channel #open]\n[channel #closed]\n[bot]\nstate_file = state\n";
    let mut bot = Bot::start(BINARY, &lab.config("bot", "", config));
    ready(&mut bot, "[channel", true);
    lab.master.force("app", &[]);
    open.hear("<bot> app #1 success, took *");
    wait_for("the state to say that #open was told", TIMEOUT, || {
        (!fs::read_to_string(bot.dir.join("state"))
            .unwrap()
            .contains("\"target\": \"#open\""))
        .then_some(())
    });
    bot.start_again();
    ready(&mut bot, "[channel", true);
    lab.master.force("app", &[]);
    open.hear("<bot> app #2 success, took *");
}

/// Restarts of the master, a worker that is missing, and a build that is tried again because of that.
#[test]
fn the_master_comes_back_and_so_does_a_worker() {
    let config = "worker('w2', missing_timeout=1)\nends('app', SUCCESS, workers=['w1', 'w2'])\n\
                  gated('slow', workers=['w2'])\n";
    let mut lab = Lab::start("restart", config);
    let worker = Worker::start(&lab.master, "w2"); // before the bot: a master that starts misses its workers, too
    let joe = lab.person("joe", &["#live", "#poll", "#both"]);
    let _live = lab.bot(
        "live",
        "",
        "notify_events = finished\n[channel #live]\n[channel #both]\nnotify_events = worker",
    );
    let _poll = lab.bot("poll", POLL, "notify_events = finished\n[channel #poll]");
    let [live, poll, workers] = ["#live", "#poll", "#both"].map(|place| Ear::new(&joe, place));
    let told = |text: &str| {
        live.hear(&format!("<live> {text}"));
        poll.hear(&format!("<poll> {text}"));
    };
    lab.master.force("app", &[]);
    told("app #1 success, took *");
    worker.stop(&lab.master);
    workers.hear("<live> worker w2 is offline and missing");
    let worker = Worker::start(&lab.master, "w2");
    workers.hear("<live> worker w2 is back");
    joe.say("#both", "live: source");
    workers.hear("<live> Buildbot: *");

    lab.master.force("slow", &[]);
    lab.master.wait_started("slow", 1);
    joe.say("#both", "live: watch slow");
    workers.hear("<live> watching slow #1");
    worker.stop(&lab.master);
    told("slow #1 retry*");
    workers.hear("<live> worker w2 is offline and missing");
    let worker = Worker::start(&lab.master, "w2");
    workers.hear("<live> worker w2 is back");
    lab.master.wait_started("slow", 2);
    lab.master.release("slow", 0);
    told("slow #2 success*");
    workers.hear("<live> slow #2 success*");

    // A builder is known as soon as the master has it.
    lab.master
        .configure(&format!("{config}ends('new', SUCCESS)\n"));
    lab.master.process().signal("HUP");
    workers.ask_until("live: status new", "<live> new: idle*");

    lab.worker.take();
    lab.master.stop();
    drop(worker);
    joe.say("#live", "live: status");
    live.hear("<live> the master does not answer; as of *s ago:\n<live> app: *last #1 success *\n<live> new: *\n<live> slow: *");
    lab.master.start_again();
    lab.worker = Some(Worker::start(&lab.master, "w1"));
    lab.master.force("app", &[]);
    told("app #2 success, took *");
    lab.master.force("app", &[]);
    told("app #3 success, took *");
}
