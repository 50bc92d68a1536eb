//! A bouncer, ZNC, between the bot and its IRC server. It answers PING itself and takes lines that it cannot pass on,
//! so the bot asks past it, and heeds what ZNC says of its own connection; and it plays back what was said while the
//! bot was away.

mod common;

use common::{Bot, Client, FakeMaster, Lab, Listener, POLLING, Proxy, SUCCESS, Znc};
use std::time::SystemTime;

const SOURCE: &str = "<bot> Buildbot: https://buildbot.net/";

/// A real ngIRCd, ZNC, and between them a link that the test can refuse.
struct Bounced {
    lab: Lab,
    link: Proxy,
    znc: Znc,
    master: FakeMaster,
}

impl Bounced {
    fn new() -> Bounced {
        let master = FakeMaster::new(6);
        let mut lab = Lab::new().with_ngircd().with_fake_master(master.serve());
        let link = Proxy::start(lab.irc_port);
        let znc = Znc::start(link.port);
        lab.irc_port = znc.port;
        Bounced {
            lab,
            link,
            znc,
            master,
        }
    }

    /// A bot that announces in #lab what ends, and forces for everyone.
    #[track_caller]
    fn start(&self) -> Bot {
        let password = Znc::PASSWORD;
        let irc = format!(
            "server_password = {password}\nnotify_events = finished\n[channel #lab]\n\
             [authorization]\nforce = everyone"
        );
        self.lab.start_ready("bot", POLLING, &irc)
    }

    /// One build of each of these builders ends.
    fn end(&self, builders: impl IntoIterator<Item = usize>) {
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
        let ends = builders.into_iter().map(|builder| (builder, SUCCESS));
        self.master.end(ends, i64::try_from(now.as_secs()).unwrap());
    }
}

#[test]
fn the_bot_announces_and_answers_through_a_bouncer() {
    let bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    let _bot = bounced.start();
    bounced.end([1]);
    channel.hear("<bot> b1 #1 success*");
    channel.ask("bot: source", SOURCE);
    joe.say("bot", "source");
    private.hear(SOURCE);
}

/// The bot asks for `batch`, in which ZNC then plays back what was said to the channel and to the bot alone.
#[test]
fn what_znc_plays_back_is_no_command() {
    let bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    let mut bot = bounced.start();
    channel.ask("bot: source", SOURCE);
    bot.stop();
    for (target, text) in [
        ("#lab", "bot: version"),
        ("#lab", "bot: force build b1 away"),
        ("bot", "version"),
        ("bot", "force build b1 away"),
    ] {
        joe.say(target, text);
    }
    joe.barrier();
    bot.start_again();
    bot.wait_ready();
    for played in [
        "#lab bot: version",
        "#lab bot: force",
        "bot version",
        "bot force",
    ] {
        bot.expect_log(&format!("<< joe!~joe@127.0.0.1 PRIVMSG {played}"));
    }
    channel.ask("bot: source", SOURCE);
    joe.say("bot", "help hello");
    private.hear("<bot> hello: *");
    bot.assert_logged("`help hello`: allowed", 1);
    bot.assert_not_logged("`version`");
    bot.assert_not_logged("`force");
}

/// Without `batch` it says the words that tests/history.rs has its bouncer say.
#[test]
fn the_words_around_what_znc_plays_back_are_those_that_the_bot_knows() {
    let bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let mut bot = bounced.start();
    bot.stop();
    joe.say("#lab", "bot: source");
    joe.barrier();
    let pass = format!("PASS {}", Znc::PASSWORD);
    let client = Client::connect_with(bounced.znc.port, "bot", &[&pass]);
    client.expect(|line| line == ":***!znc@znc.in PRIVMSG #lab :Buffer Playback...");
    client.expect(|line| line.ends_with("] bot: source"));
    client.expect(|line| line == ":***!znc@znc.in PRIVMSG #lab :Playback Complete.");
}

/// ZNC answers PING before it knows whether its server takes a line, and joins #lab a second after it has come back.
#[test]
fn news_of_an_outage_behind_a_bouncer_come_once() {
    let mut bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let mut bot = bounced.start();
    bounced.end([1]);
    joe.expect_contains("b1 #1 success");
    // The question is behind it in ZNC's queue. What was not answered would be said again.
    bot.expect_log(" 318 bot 1-told ");
    bounced.link.refuse(true);
    bounced.lab.ngircd().stop();
    bot.expect_log("the bouncer has lost its network");
    bounced.end(2..=6);
    // The second poll from now has seen them, and has been dealt with when the third begins.
    let polls = bot.log().matches("GET /api/v2/buildrequests").count();
    bot.expect_log_times("GET /api/v2/buildrequests", polls + 3);
    bounced.lab.ngircd().start_again();
    let ann = bounced.lab.person("ann", &["#lab"]);
    // As channels of real networks are: nobody speaks from outside.
    ann.set_mode("#lab", "+n");
    let channel = Listener::new(&ann, "#lab");
    bounced.link.refuse(false);
    channel.hear("<bot> meanwhile: success b2 #2, b3 #3, b4 #4, b5 #5, b6 #6 *");
    channel.ask("bot: source", SOURCE);
    bounced.end([1]);
    channel.hear("<bot> b1 #7 success*");
    bot.assert_logged("IRC: the bouncer is back on its network", 1);
}

/// ZNC has answered PING long before the server refuses a line.
#[test]
fn what_the_server_behind_a_bouncer_refuses_is_said_later() {
    let bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let mut bot = bounced.start();
    channel.ask("bot: source", SOURCE);
    joe.set_mode("#lab", "+m");
    bounced.end([1]);
    bot.expect_log("IRC: cannot speak to #lab: ");
    joe.set_mode("#lab", "-m");
    channel.hear("<bot> b1 #1 success*");
}

/// What ZNC takes before it sees that its server is gone is lost, and ZNC does not say which lines these were.
#[test]
fn what_a_bouncer_took_for_a_dead_server_is_said_again() {
    let bounced = Bounced::new();
    let joe = bounced.lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let mut bot = bounced.start();
    channel.ask("bot: source", SOURCE);
    bounced.link.freeze();
    bounced.end([1]);
    bot.expect_log(">> PRIVMSG #lab :b1 #1 success");
    bot.expect_log(">> WHOIS 1-told");
    bounced.link.cut();
    bounced.link.thaw();
    channel.hear("<bot> b1 #1 success*");
    bounced.end([2]);
    channel.hear("<bot> b2 #2 success*");
}
