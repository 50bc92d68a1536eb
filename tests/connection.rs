//! The bot and IRC servers: real ones for what they do, fake ones for what they should not do.

mod common;

use common::{
    Answer, Bot, Certificates, Client, FakeHttp, FakeIrc, InspircdOptions, Lab, NgircdOptions,
    Random, Tunnel, wait_for,
};
use serde_json::json;
use std::time::{Duration, Instant};

/// `use_ssl` with the authority of the tests, and one of our own certificates if it is named.
fn tls(certificate: Option<&str>) -> String {
    let path = |file: &str| Certificates::get().path(file);
    let mut lines = format!("use_ssl = yes\ntls_ca_file = {}\n", path("ca.pem"));
    if let Some(name) = certificate {
        let pem = path(&format!("{name}.pem"));
        let key = path(&format!("{name}.key"));
        lines += &format!("tls_cert_file = {pem}\ntls_key_file = {key}\n");
    }
    lines
}

/// ngIRCd with a plain port for people and a TLS port for the bot.
#[track_caller]
fn ngircd_tls(certificate: &str) -> Lab {
    let mut lab = Lab::new().with_ngircd_options(NgircdOptions {
        certificate: Some(certificate),
        ..NgircdOptions::default()
    });
    lab.irc_port = lab.ngircd().tls_port;
    lab
}

/// The bot gives up by itself, with this sentence as its last.
#[track_caller]
fn expect_refusal(mut bot: Bot, sentence: &str) {
    bot.expect_exit(78);
    let log = bot.log();
    assert!(
        log.trim_end().ends_with(sentence),
        "not {sentence:?}: {log}"
    );
}

/// InspIRCd with services, and a channel #lab for registered nicks only, in which `joe` is. A channel of that
/// configuration has no operators.
fn registered_only(certificate: Option<&str>) -> (Lab, Client) {
    let extra = "<module name=\"samode\"><class name=\"all\" commands=\"*\" chanmodes=\"*\">\
                 <type name=\"all\" classes=\"all\"><oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\">";
    let lab = Lab::new().with_inspircd_options(InspircdOptions {
        services: true,
        certificate,
        extra,
    });
    let joe = lab.person("joe", &["#lab"]);
    joe.become_operator("lab");
    joe.send("SAMODE #lab +R");
    joe.expect_contains(" MODE #lab ");
    (lab, joe)
}

/// A nick is logged in to an account.
#[track_caller]
fn expect_account(person: &Client, nick: &str, account: &str) {
    person.send(&format!("WHOIS {nick}"));
    person.expect_contains(&format!(" 330 {} {nick} {account} ", person.nick));
}

/// The bot answers a person in #lab.
#[track_caller]
fn expect_alive(person: &Client) {
    person.say("#lab", "bot: source");
    person.expect_contains(" PRIVMSG #lab :Buildbot: https://buildbot.net/");
}

#[test]
fn tls_with_ngircd_and_inspircd() {
    let ngircd = ngircd_tls("server");
    let mut inspircd = Lab::new().with_inspircd_options(InspircdOptions {
        certificate: Some("server"),
        ..InspircdOptions::default()
    });
    inspircd.irc_port = inspircd.inspircd().tls_port;
    for lab in [ngircd, inspircd] {
        let joe = lab.person("joe", &["#lab"]);
        let _bot = lab.start(&format!("{}[channel #lab]", tls(None)));
        joe.expect_contains("JOIN");
        expect_alive(&joe);
    }
}

#[test]
fn a_bad_certificate_is_refused_before_anything_is_said() {
    for (certificate, own, error) in [
        ("wrong", tls(None), "IP address mismatch"),
        ("expired", tls(None), "certificate has expired"),
        (
            "server",
            "use_ssl = yes\n".into(),
            "unable to get local issuer certificate",
        ),
    ] {
        let server = FakeIrc::start_tls(Some(certificate));
        let lab = Lab::new().with_running_fake_irc(server);
        let mut bot = lab.start(&format!("{own}server_password = swordfish"));
        if let Some(mut peer) = lab.fake_irc().try_accept() {
            assert_eq!(peer.expect_closed(), Vec::<String>::new());
        }
        bot.expect_log(&format!(
            "IRC: 127.0.0.1:{}: the certificate is refused: {error} (tls_ca_file names an authority to trust); next try in ",
            lab.irc_port
        ));
        bot.assert_not_logged(">>");
    }
}

#[test]
fn a_real_server_with_an_expired_certificate_is_refused() {
    let lab = ngircd_tls("expired");
    let mut bot = lab.start(&tls(None));
    bot.expect_log("the certificate is refused: certificate has expired");
    bot.assert_not_logged(">>");
}

#[test]
fn tls_and_plain_ports_mixed_up_are_told_in_a_sentence() {
    let ngircd = ngircd_tls("server");
    let mut plain_bot = ngircd.start("");
    let lab = Lab::new().with_fake_irc();
    let mut tls_bot = lab.start(&tls(None));
    let mut peer = lab.fake_irc().accept();
    peer.send(":fake.test NOTICE * :*** Looking up your hostname");
    tls_bot.expect_log(&format!(
        "IRC: 127.0.0.1:{}: no TLS is spoken on this port; next try in ",
        lab.irc_port
    ));
    plain_bot.expect_log("(is this a TLS port? use_ssl = yes); next try in ");
}

#[test]
fn the_right_server_password_lets_the_bot_in() {
    let lab = locked_ngircd();
    let joe = Client::connect_with(lab.irc_port, "joe", &["PASS swordfish"]);
    joe.join("#lab");
    let _bot = lab.start("server_password = swordfish\n[channel #lab]");
    joe.expect_contains(":bot!~bot@");
}

/// ngIRCd with a server password.
#[track_caller]
fn locked_ngircd() -> Lab {
    Lab::new().with_ngircd_options(NgircdOptions {
        password: Some("swordfish"),
        ..NgircdOptions::default()
    })
}

/// ngIRCd knows no 464 and closes with an ERROR.
#[test]
fn a_wrong_server_password_ends_the_bot() {
    let lab = Lab::new().with_fake_irc();
    let bot = lab.start("server_password = wrong");
    let mut peer = lab.fake_irc().accept();
    assert_eq!(peer.line(), "CAP LS 302");
    peer.send(":fake.test CAP * LS :");
    assert_eq!(peer.line(), "PASS :wrong");
    peer.send(":fake.test 464 * :Password incorrect");
    expect_refusal(bot, "IRC: server_password is refused: Password incorrect");

    let lab = locked_ngircd();
    let bot = lab.start("server_password = wrong");
    expect_refusal(bot, "Access denied: Bad password?");
}

/// Once the password has worked, a refusal may be a fault of the server.
#[test]
fn a_password_that_is_refused_later_is_no_reason_to_give_up() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("server_password = swordfish\n[channel #lab]");
    drop(lab.accept());
    let mut peer = lab.fake_irc().accept();
    peer.expect("CAP LS");
    peer.send(":fake.test CAP * LS :");
    peer.expect("PASS");
    peer.send(":fake.test 464 * :Password incorrect");
    bot.expect_log("IRC: server_password is refused: Password incorrect; next try in 300 s");
}

#[test]
fn keyed_channels_are_joined_with_the_right_key_only() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &[]);
    for channel in ["#open", "#right", "#wrong"] {
        joe.join(channel);
        joe.set_mode(channel, "+k tulip");
    }
    joe.set_mode("#open", "-k tulip");
    let mut bot = lab.start(
        "[channel #open]\n[channel #right]\npassword = tulip\n[channel #wrong]\npassword = rose",
    );
    let joined = [joe.expect_contains("JOIN"), joe.expect_contains("JOIN")].concat();
    assert!(joined.contains("#open"), "{joined}");
    assert!(joined.contains("#right"), "{joined}");
    bot.expect_log("IRC: cannot join #wrong: Cannot join channel (+k) -- Wrong channel key (475); still trying");
    joe.expect_none("JOIN :#wrong");
}

#[test]
fn a_nick_in_use_is_regained_when_its_holder_leaves() {
    let lab = Lab::new().with_ngircd();
    let holder = lab.person("bot", &["#lab"]);
    let joe = lab.person("joe", &["#lab"]);
    let mut bot = lab.start("alt_nicks = spare\n[channel #lab]");
    joe.expect_contains(":spare!~bot@");
    bot.expect_log("IRC: nick bot: Nickname already in use (433); trying spare");
    joe.say("#lab", "spare: source");
    joe.expect_contains("Buildbot: https://buildbot.net/");
    drop(holder);
    joe.expect_contains(" NICK :bot");
    joe.say("#lab", "bot: source");
    joe.expect_contains(":bot!~bot@");
}

#[test]
fn nickserv_knows_the_bot_before_it_joins() {
    let (lab, joe) = registered_only(None);
    lab.person("bot", &[]).register("tulip");
    let mut bot = lab.start("password = tulip\n[channel #lab]");
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    bot.expect_log(">> JOIN #lab");
    let log = bot.log();
    let identify = log.find(">> PRIVMSG ***");
    let join = log.find(">> JOIN #lab");
    assert!(identify.is_some(), "{log}");
    assert!(identify < join, "{log}");
    assert!(!log.contains(" 477 "), "it joined too early: {log}");
    drop(bot);
    joe.expect_contains("QUIT");

    let mut bot = lab.start("password = rose\n[channel #lab]");
    bot.expect_log("IRC: NickServ: password incorrect");
    bot.expect_log("IRC: cannot join #lab: ");
    bot.expect_log("(477); still trying");
}

#[test]
fn nickserv_gives_the_bot_back_its_nick() {
    let (lab, joe) = registered_only(None);
    let owner = lab.person("bot", &[]);
    owner.register("tulip");
    owner.join("#lab");
    drop(owner);
    joe.expect_contains("QUIT"); // the nick is free again
    let thief = lab.person("bot", &[]);
    let _bot = lab.start("password = tulip\naccount = bot\n[channel #lab]");
    thief.expect(|line| line.contains(" NICK ") || line.contains("ERROR"));
    joe.expect(|line| line.starts_with(":bot_!") && line.ends_with(" NICK :bot"));
    expect_account(&joe, "bot", "bot");
}

#[test]
fn sasl_plain_logs_in_and_a_wrong_password_ends_the_bot() {
    let (lab, joe) = registered_only(None);
    lab.person("keeper", &[]).register("tulip");
    let sasl = "sasl = plain\naccount = keeper\n[channel #lab]";
    let _bot = lab.start(&format!("password = tulip\n{sasl}"));
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    expect_account(&joe, "bot", "keeper");
    let bot = lab.start(&format!("alt_nicks = two\npassword = rose\n{sasl}"));
    expect_refusal(bot, "IRC: SASL failed: SASL authentication failed");
}

#[test]
fn sasl_external_logs_in_by_the_client_certificate() {
    let (mut lab, joe) = registered_only(Some("server"));
    lab.irc_port = lab.inspircd().tls_port;
    let tunnel = Tunnel::start(lab.irc_port, Some("client"));
    let owner = Client::connect(tunnel.port, "keeper");
    owner.register("tulip");
    owner.add_certificate();
    drop(owner);
    let sasl = "sasl = external\naccount = keeper\n[channel #lab]";
    let _bot = lab.start(&format!("{}{sasl}", tls(Some("client"))));
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    expect_account(&joe, "bot", "keeper");
    let wrong = tls(Some("server"));
    let bot = lab.start(&format!("alt_nicks = two\n{wrong}{sasl}"));
    expect_refusal(bot, "IRC: SASL failed: SASL authentication failed");
}

#[test]
fn without_services_there_is_no_way_around_sasl() {
    let mut lab = Lab::new().with_services();
    lab.inspircd().stop_services();
    let sasl = "password = tulip\nsasl = plain\n[channel #lab]";
    let mut bot = lab.start(sasl);
    bot.expect_log("no SASL PLAIN: the server does not offer it (services down?); not going on without; next try in ");
    bot.assert_not_logged(">> JOIN");
    bot.assert_not_logged(" 001 ");
    for reply in [
        "421 * CAP :Unknown command",
        "CAP * LS :sasl=EXTERNAL",
        "001 bot :Welcome",
    ] {
        let lab = Lab::new().with_fake_irc();
        let mut bot = lab.start(sasl);
        let mut peer = lab.fake_irc().accept();
        peer.expect("CAP LS");
        peer.send(&format!(":fake.test {reply}"));
        let lines = peer.expect_closed();
        let joined = lines.iter().any(|line| line.starts_with("JOIN"));
        assert!(!joined, "{lines:?}");
        bot.expect_log("not going on without; next try in 120 s");
    }
}

#[test]
fn an_account_is_known_by_its_tag() {
    let lab = Lab::new().with_services();
    let owner = lab.person("joe", &[]);
    owner.register("tulip");
    owner.send("NICK moe");
    owner.expect_contains(" NICK ");
    owner.join("#lab");
    let mut bot = lab.start("[channel #lab]\n[authorization]\nsource = account:joe");
    owner.expect_contains("JOIN");
    bot.expect_log("IRC: joined #lab");
    owner.say("#lab", "bot: source");
    owner.expect_contains("Buildbot: https://buildbot.net/");
    owner.say("bot", "source");
    owner.expect_contains(" PRIVMSG moe :Buildbot: https://buildbot.net/");
    let thief = lab.person("joe", &["#lab"]);
    thief.say("#lab", "bot: source");
    thief.expect_contains("sorry, joe, you may not use `source`");
    bot.assert_not_logged(">> WHOIS");
}

#[test]
fn without_tags_an_account_is_proved_by_whois() {
    let name = "330 bot joe joe :is logged in as";
    let here = "311 bot joe j h * :Joe";
    let cases = [
        (vec![here, name], true),
        (vec![here, "307 bot joe :is a registered nick"], true),
        (vec![here], false),
        (vec![here, "330 bot joe moe :is logged in as"], false),
        (vec!["311 bot joe j other * :Joe", name], false),
        (vec!["401 bot joe :No such nick"], false),
        (vec![":joe!j@h NICK moe"], false), // a nick that changes in between proves nothing
    ];
    std::thread::scope(|scope| {
        for (answers, proved) in &cases {
            scope.spawn(move || {
                let reply = reply_after_whois(answers);
                let expected = if *proved {
                    "PRIVMSG #lab :Buildbot: https://buildbot.net/"
                } else {
                    "PRIVMSG #lab :sorry, joe, you may not use `source`"
                };
                assert_eq!(reply, expected, "after {answers:?}");
            });
        }
    });
}

/// An account without user and host could be that of a new owner of the nick.
#[test]
fn a_whois_without_user_and_host_proves_nothing() {
    let reply = reply_after_whois(&["330 bot joe joe :is logged in as"]);
    assert_eq!(reply, "PRIVMSG #lab :sorry, joe, you may not use `source`");
}

/// The bot's reply to joe after these answers to its WHOIS.
#[track_caller]
fn reply_after_whois(answers: &[&str]) -> String {
    let lab = Lab::new().with_fake_irc();
    let _bot = lab.start("[channel #lab]\n[authorization]\nsource = account:joe");
    let mut peer = lab.accept();
    peer.say("#lab", "bot: source");
    peer.expect("WHOIS joe");
    for line in answers {
        let from = if line.starts_with(':') {
            ""
        } else {
            ":fake.test "
        };
        peer.send(&format!("{from}{line}"));
    }
    peer.send(":fake.test 318 bot joe :End of /WHOIS list.");
    peer.expect("PRIVMSG")
}

#[test]
fn an_operator_is_one_as_long_as_the_channel_says_so() {
    let lab = Lab::new().with_ngircd();
    let op = lab.person("op", &["#lab"]);
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.start("[channel #lab]\n[authorization]\nsource = op");
    op.expect_contains(":bot!~bot@");
    let yes = "PRIVMSG #lab :Buildbot: ";
    let no = "PRIVMSG #lab :sorry, joe, you may not use `source`";
    op.say("#lab", "bot: source");
    op.expect_contains(yes);
    joe.say("#lab", "bot: source");
    joe.expect_contains(no);
    for (mode, reply) in [("+o", yes), ("-o", no)] {
        op.send(&format!("MODE #lab {mode} joe"));
        joe.expect_contains(" MODE #lab ");
        joe.say("#lab", "bot: source");
        joe.expect_contains(reply);
    }
    op.say("bot", "source");
    op.expect_contains("sorry, op, you may not use `source`");
}

#[test]
fn kicked_it_comes_back_when_invited() {
    let lab = Lab::new().with_ngircd();
    let op = lab.person("op", &["#lab"]);
    let mut bot = lab.start("[channel #lab]");
    op.expect_contains(":bot!~bot@");
    op.send("MODE #lab +i");
    op.send("KICK #lab bot :out with you");
    bot.expect_log("IRC: kicked from #lab by op: out with you; back in 30 s");
    op.send("INVITE bot #lab");
    op.expect_within("JOIN", Duration::from_secs(5));
    op.say("#lab", "bot: source");
    op.expect_contains("Buildbot: https://buildbot.net/");
}

#[test]
fn a_restarted_server_has_the_bot_back_within_ten_seconds() {
    let mut lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let mut bot = lab.start("[channel #lab]");
    joe.expect_contains("JOIN");
    lab.ngircd().stop();
    bot.expect_log("; next try in ");
    lab.ngircd().start_again();
    let since = Instant::now();
    let joe = lab.person("joe", &["#lab"]);
    let left = Duration::from_secs(10).saturating_sub(since.elapsed());
    joe.expect_within(":bot!~bot@", left);
    expect_alive(&joe);
}

#[test]
fn ctcp_is_answered_and_notices_and_actions_are_not() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.start("[channel #lab]");
    joe.expect_contains("JOIN");
    joe.say("bot", "\x01VERSION\x01");
    joe.expect_contains(concat!(
        "NOTICE joe :\x01VERSION buildbot-irc ",
        env!("CARGO_PKG_VERSION"),
        "\x01"
    ));
    joe.send("NOTICE bot :source");
    joe.send("NOTICE #lab :bot: source");
    joe.say("#lab", "\x01ACTION bot: source\x01");
    joe.say("#lab", "robot: source");
    joe.say("bot", "\x01PING 12 34\x01");
    joe.expect_contains("NOTICE joe :\x01PING 12 34\x01");
    joe.expect_none("Buildbot: ");
    let conversation = joe.conversation();
    assert!(!conversation.contains("https://buildbot.net/"));
}

/// A bot has the message tag `bot`; the bot's own lines come back with echo-message.
#[test]
fn other_bots_and_its_own_lines_are_not_answered() {
    let lab = Lab::new().with_fake_irc();
    let _bot = lab.start("[channel #lab]");
    let mut peer = lab.accept();
    peer.send("@bot :joe!j@h PRIVMSG #lab :bot: source");
    peer.send(":bot!~bot@127.0.0.1 PRIVMSG #lab :bot: source");
    peer.expect_silence();
    peer.expect_alive();
}

/// A master whose builders have names of 120 characters, the most that the bot repeats, in 480 bytes; and the reply to
/// `list all builders`.
fn long_names() -> (FakeHttp, String) {
    let names = [("a", "\u{1f980}"), ("b", "\u{fc}"), ("c", "\u{1f980}")]
        .map(|(first, rest)| first.to_string() + &rest.repeat(119));
    let mut builders = Vec::new();
    for (id, name) in names.iter().enumerate() {
        builders.push(json!({"builderid": id, "name": name, "masterids": [1]}));
    }
    let master = FakeHttp::start(move |request| match request.resource() {
        "/api/v2/builders" => Answer::json(json!({"builders": builders})),
        path if path.starts_with("/api/") => Answer::json(json!({"builds": []})),
        _ => Answer::Json("{}".into()),
    });
    let items = names.map(|name| format!("{name} [offline]"));
    (master, format!("3 builders: {}", items.join(", ")))
}

/// Whether the pieces make up the reply; blanks between them do not count.
fn is_whole(pieces: &[String], reply: &str) -> bool {
    let solid = |text: &str| text.replace(' ', "");
    solid(&pieces.concat()) == solid(reply)
}

#[test]
fn a_long_reply_is_split_to_what_the_server_relays() {
    let (master, reply) = long_names();
    let lab = Lab::new().with_fake_master(master).with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.accept();
    // A host far longer than one would think.
    let source = format!("bot!~bot@{}", "h".repeat(120));
    peer.send(&format!(":{source} JOIN #lab"));
    bot.expect_log("/api/v2/buildrequests");
    peer.say("bot", "list all builders");
    let mut pieces = Vec::new();
    while !is_whole(&pieces, &reply) {
        let line = peer.expect("PRIVMSG joe :");
        let relayed = format!(":{source} {line}\r\n").len();
        assert!(relayed <= 512, "{relayed} bytes: {line}");
        assert!(!line.contains('\u{fffd}'), "cut in a character: {line}");
        pieces.push(line["PRIVMSG joe :".len()..].to_string());
    }
}

#[test]
fn a_long_reply_passes_a_real_server_whole() {
    let (master, reply) = long_names();
    let lab = Lab::new().with_fake_master(master).with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let mut bot = lab.start("[channel #lab]");
    bot.expect_log("/api/v2/buildrequests");
    joe.expect_contains("JOIN");
    joe.say("bot", "list all builders");
    let private = || {
        let mut pieces = Vec::new();
        for line in joe.lines("joe") {
            pieces.extend(line.strip_prefix("<bot> ").map(String::from));
        }
        pieces
    };
    wait_for("the whole reply", common::TIMEOUT, || {
        is_whole(&private(), &reply).then_some(())
    });
    let conversation = joe.conversation();
    let lines = conversation.split("\n  ");
    let replies = lines.filter(|line| line.contains("PRIVMSG joe"));
    let longest = replies.map(|line| line.len() - "<< ".len()).max().unwrap();
    assert!(longest >= 480, "{longest}");
    assert!(longest <= 510, "{longest}");
    bot.assert_not_logged("next try");
}

/// By RFC 1459 `{}|^` are the lower case of `[]\\~`.
#[test]
fn names_are_compared_by_rfc1459_casemapping() {
    let lab = Lab::new().with_fake_irc();
    let _bot = lab.start_as("bot[1]", "", "[channel #Lab~]");
    let mut peer = lab.fake_irc().accept();
    peer.register();
    peer.expect("JOIN #Lab~");
    peer.send(":BOT{1}!~bot@h JOIN #lab^");
    for text in [
        "bot[1]: source",
        "Bot{1}, source",
        "BOT{1] source",
        "bot{1: source",
        "xbot[1]: source",
    ] {
        peer.say("#lAB^", text);
    }
    peer.say("BOT{1}", "source");
    let replies: Vec<String> = (0..3).map(|_| peer.expect("PRIVMSG")).collect();
    let count = |start: &str| {
        let matching = replies.iter().filter(|line| line.starts_with(start));
        matching.count()
    };
    assert_eq!(count("PRIVMSG #Lab~ :Buildbot"), 2, "{replies:?}");
    assert_eq!(count("PRIVMSG joe :Buildbot"), 1, "{replies:?}");
}

#[test]
fn names_are_compared_by_ascii_casemapping() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.start_as("bot[1]", "", "username = bot\n[channel #LAB]");
    joe.expect_contains("JOIN");
    joe.say("#lab", "bot{1}: source");
    joe.say("#lab", "BOT[1]: hello");
    let answer = joe.expect_contains("PRIVMSG #");
    assert!(answer.contains("hello, joe"), "{answer}");
}

/// ngIRCd takes such a nick, but no user name with brackets.
#[test]
fn a_nick_with_brackets_is_no_obstacle() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let _bot = lab.start_as("bot[1]", "", "[channel #lab]");
    joe.expect_contains(":bot[1]!");
}

#[test]
fn a_silent_server_is_left() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("ping_timeout = 1500ms\n[channel #lab]");
    let mut peer = lab.accept();
    peer.expect("PING :alive");
    peer.send("PONG :alive");
    let since = Instant::now();
    peer.expect("PING :alive");
    peer.expect_closed();
    let elapsed = since.elapsed();
    assert!(elapsed < Duration::from_secs(4), "{elapsed:?}");
    bot.expect_log("IRC: the server has gone silent and does not answer PING; next try in ");
    lab.accept();
}

#[test]
fn a_connection_cut_in_mid_line_is_made_again() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.accept();
    peer.send_bytes(b":joe!j@h PRIVMSG #lab :bot: sou");
    drop(peer);
    bot.expect_log("IRC: closed by the server; next try in ");
    let mut peer = lab.accept();
    peer.send_bytes(b"rce\r\n");
    peer.expect_silence();
    peer.expect_alive();
}

#[test]
fn a_server_that_throttles_is_given_time() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.fake_irc().accept();
    peer.send("ERROR :Closing Link: 127.0.0.1 (Trying to reconnect too fast, throttled)");
    bot.expect_log(
        "IRC: the server closes the connection: Closing Link: 127.0.0.1 (Trying to reconnect too fast, throttled); next try in 120 s",
    );
    assert!(!lab.fake_irc().has_connection());
}

#[test]
fn garbage_is_survived_in_bounded_memory() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.fake_irc().accept();
    // Before registration, too.
    peer.send_bytes(b"\r\n\n:\r\n@\r\n: \r\n@a :b\r\n\0\0\r\n\xff\xfe\xc3\r\n433\r\n432 *\r\n464\r\n904\r\nCAP\r\n");
    let nick = peer.register();
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    let commands = "PING PONG ERROR CAP AUTHENTICATE PRIVMSG NOTICE NICK JOIN PART KICK QUIT INVITE MODE 001 005 353 \
                    366 376 396 404 421 433 471 477 730 731 900 904 311 318 330 307 401";
    for word in commands.split_whitespace() {
        peer.send_bytes(
            format!("{word}\r\n{word}  \r\n:joe!j@h {word}\r\n:\u{2}!@ {word}\r\n").as_bytes(),
        );
        for rest in [" :", " bot", " * :\u{ff}", " #lab", " #lab :"] {
            // These have a meaning even so.
            if !["ERROR", "001", "904"].contains(&word) {
                peer.send(&format!(":joe!j@h {word}{rest}"));
            }
        }
    }
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    let mut random = Random(88_172_645_463_325_252);
    for _ in 0..2000 {
        let noise: Vec<u8> = (0..16).map(|_| random.below(256) as u8).collect();
        peer.send_bytes(&noise);
    }
    peer.send_bytes(b"\r\n:j\xfcrgen!j@h PRIVMSG #lab :bot: hello\r\n");
    assert!(peer.expect("PRIVMSG #lab :hello").contains("j\u{fc}rgen"));
    for _ in 0..10 {
        peer.send_bytes(&[b'x'; 1 << 20]);
    }
    peer.send_bytes(b"\r\n:joe!j@h PRIVMSG #lab :bot: source\r\n");
    let mut reply = String::new();
    while !reply.contains("https://buildbot.net/") {
        reply = peer.line();
    }
    bot.expect_log("IRC: dropped a line that was too long");
    let peak = bot.peak_memory();
    assert!(peak < 32 * 1024, "{peak} kB");
}

#[test]
fn no_secret_is_in_the_log() {
    let lab = Lab::new().with_fake_irc();
    let text = lab.config(
        "bot",
        "user = admin\npassword = secret-1",
        "server_password = secret-2\npassword = secret-3\naccount = keeper\nsasl = plain\n\
         [channel #lab]\npassword = secret-4",
    );
    let mut bot = Bot::start(&text);
    let mut peer = lab.fake_irc().accept();
    assert_eq!(peer.line(), "CAP LS 302");
    peer.send(":fake.test CAP * LS :sasl");
    assert_eq!(peer.line(), "PASS :secret-2");
    peer.expect("CAP REQ");
    peer.send(":fake.test CAP * ACK :sasl");
    peer.expect("AUTHENTICATE PLAIN");
    peer.send("AUTHENTICATE +");
    let login = peer.expect("AUTHENTICATE ").replace("AUTHENTICATE ", "");
    assert_eq!(login, "a2VlcGVyAGtlZXBlcgBzZWNyZXQtMw==");
    peer.send(":fake.test 903 * :SASL authentication successful");
    peer.expect("CAP END");
    peer.welcome("bot");
    assert_eq!(peer.expect("JOIN"), "JOIN #lab secret-4");
    peer.send(":bot!~bot@127.0.0.1 JOIN #lab");
    peer.expect_alive();
    let log = bot.log();
    assert!(!log.contains("secret-"), "{log}");
    assert!(!log.contains(&login), "{log}");

    // Without SASL, the same password goes to NickServ.
    bot.configure(&text.replace("sasl = plain", "sasl = no"));
    bot.start_again();
    let mut peer = lab.fake_irc().accept();
    peer.register();
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG NickServ :IDENTIFY keeper secret-3"
    );
    peer.send(":NickServ!s@services NOTICE bot :You are now identified for keeper.");
    peer.expect("JOIN #lab secret-4");
    bot.expect_log(">> JOIN ***");
    bot.assert_not_logged("secret-");
}

/// Keys that the bot hears are secrets, too: in a command, and in the mode that sets one.
#[test]
fn no_channel_key_that_is_heard_is_in_the_log() {
    let lab = Lab::new().with_fake_irc();
    let bot = lab.start("[channel #lab]\n[authorization]\njoin = everyone");
    let mut peer = lab.accept();
    peer.send(":joe!j@h PRIVMSG bot :join #den secret-5");
    assert_eq!(peer.expect("JOIN"), "JOIN #den secret-5");
    peer.send(":joe!j@h MODE #lab +k secret-6");
    peer.barrier();
    bot.assert_not_logged("secret-");
}
