//! History that a server or a bouncer plays back to whoever joins: nothing in it is a command.

mod common;

use common::{InspircdOptions, Lab, Proxy};

/// The module, and an IRC operator: a channel of that configuration has no operators of its own.
const HISTORY: &str = "<module name=\"chanhistory\"><module name=\"samode\">\
    <class name=\"all\" commands=\"*\" chanmodes=\"*\"><type name=\"all\" classes=\"all\">\
    <oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\">";
const SOURCE: &str = "PRIVMSG #h :Buildbot: https://buildbot.net/";

/// InspIRCd with chanhistory replays the last lines of a `+H` channel to everyone who joins, under the nicks of those
/// who said them. A real channel keeps the bot's commands among them.
#[test]
fn what_inspircd_replays_after_a_kick_or_a_lost_link_is_no_command() {
    let mut lab = Lab::new().with_inspircd_options(InspircdOptions {
        extra: HISTORY,
        ..InspircdOptions::default()
    });
    let link = Proxy::start(lab.irc_port);
    lab.irc_port = link.port;
    let joe = lab.person("joe", &["#h"]);
    joe.become_operator("lab");
    joe.send("SAMODE #h +oH joe 20:1d");
    joe.expect_contains(" MODE #h ");
    let bot = lab.start_as("hist", "", "[channel #h]\n[authorization]\nsource = op\n");
    joe.expect(|line| line.contains("hist") && line.contains(" JOIN "));
    joe.say("#h", "hist: source");
    joe.expect_contains(SOURCE);
    joe.send("KICK #h hist :out");
    joe.send("INVITE hist #h");
    joe.expect(|line| line.contains(":hist!") && line.contains(" JOIN "));
    joe.say("#h", "hist: help source");
    joe.expect_contains("PRIVMSG #h :source: where Buildbot lives");
    link.cut();
    joe.expect(|line| line.contains(":hist!") && line.contains(" JOIN "));
    joe.say("#h", "hist: help hello");
    joe.expect_contains("PRIVMSG #h :hello: a greeting");
    let replayed = bot.log().matches("PRIVMSG #h hist: source").count();
    assert!(
        replayed >= 3,
        "the server has replayed it twice: {replayed}"
    );
    bot.assert_logged("`source`: allowed", 1);
    let answers = joe.conversation().matches(SOURCE).count();
    assert_eq!(answers, 1, "{}", joe.conversation());
}

/// A bouncer without `server-time` says only where its buffer begins and ends.
#[test]
fn what_a_bouncer_plays_back_is_no_command() {
    let lab = Lab::new().with_fake_irc();
    let bot = lab.start("[channel #lab]\n");
    let mut peer = lab.accept();
    for line in [
        ":***!znc@znc.in PRIVMSG #lab :Buffer Playback...",
        ":joe!j@h PRIVMSG #lab :[12:00:01] bot: source",
        ":joe!j@h PRIVMSG #lab :bot: source",
        ":***!znc@znc.in PRIVMSG #lab :Playback Complete.",
        ":joe!j@h PRIVMSG #lab :bot: help source",
    ] {
        peer.send(line);
    }
    let first = peer.expect("PRIVMSG #lab :");
    assert!(first.contains("where Buildbot lives"), "{first}");
    bot.assert_logged("`source`: allowed", 0);
}
