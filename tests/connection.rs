//! The bot and IRC servers: real ones for what they do, fake ones for what they should not do.

mod common;

use common::{
    Answer, Bot, Certificates, Client, FakeHttp, FakeIrc, FakePeer, Inspircd, InspircdOptions,
    Ngircd, NgircdOptions, Tunnel, wait_for,
};
use serde_json::json;
use std::time::{Duration, Instant};

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");

/// A bot whose master is away: nobody listens on port 1. `irc` goes into `[irc]`, sections may follow.
fn start(port: u16, irc: &str) -> Bot {
    let (master, server) = ("url = http://127.0.0.1:1/", "host = 127.0.0.1\nnick = bot");
    Bot::start(
        BOT,
        &format!("[buildbot]\n{master}\n[irc]\n{server}\nport = {port}\n{irc}\n"),
    )
}

/// `use_ssl` with the authority of the lab, and our own certificate if one is named.
fn tls(certificate: Option<&str>) -> String {
    let path = |file: String| Certificates::get().path(&file);
    let own = certificate.map(|name| {
        let (pem, key) = (path(format!("{name}.pem")), path(format!("{name}.key")));
        format!("tls_cert_file = {pem}\ntls_key_file = {key}\n")
    });
    format!(
        "use_ssl = yes\ntls_ca_file = {}\n{}",
        path("ca.pem".into()),
        own.unwrap_or_default()
    )
}

/// The bot gives up by itself, with this sentence as its last.
#[track_caller]
fn refused(mut bot: Bot, sentence: &str) {
    assert_eq!(bot.wait_exit(), 78, "{}", bot.log());
    assert!(
        bot.log().trim_end().ends_with(sentence),
        "not {sentence:?}:\n{}",
        bot.log()
    );
}

/// Takes the bot's connection through registration and into #lab, where `joe` can then speak.
fn lab(irc: &FakeIrc) -> FakePeer {
    let mut peer = irc.accept();
    let nick = peer.register();
    peer.expect("JOIN #lab");
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    peer.send(&format!(":fake.test 353 {nick} = #lab :@joe {nick}"));
    peer.send(&format!(":fake.test 366 {nick} #lab :End of /NAMES list."));
    peer
}

/// InspIRCd with services and a channel #lab for registered nicks only. A channel of that configuration has no operators.
fn guarded(certificate: Option<&str>) -> (Inspircd, Client) {
    let extra = "<module name=\"samode\"><class name=\"all\" commands=\"*\" chanmodes=\"*\">\
                 <type name=\"all\" classes=\"all\"><oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\">";
    let irc = Inspircd::start_with(InspircdOptions {
        services: true,
        certificate,
        extra,
    });
    let joe = Client::connect(irc.easy, "joe");
    joe.join("#lab");
    joe.send("OPER joe lab");
    joe.send("SAMODE #lab +R");
    joe.expect_contains(" MODE #lab ");
    (irc, joe)
}

#[track_caller]
fn answers(peer: &mut FakePeer) {
    peer.send(":joe!j@h PRIVMSG #lab :bot: source");
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG #lab :Buildbot: https://buildbot.net/"
    );
}

/// A number in kB of /proc/PID/status.
fn memory(bot: &Bot, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", bot.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn tls_with_ngircd_and_inspircd() {
    let certificate = Some("server");
    let ngircd = Ngircd::start(NgircdOptions {
        certificate,
        ..Default::default()
    });
    let inspircd = Inspircd::start_with(InspircdOptions {
        certificate,
        ..Default::default()
    });
    for (port, easy) in [
        (ngircd.tls_port, ngircd.port),
        (inspircd.tls_port, inspircd.easy),
    ] {
        let joe = Client::connect(easy, "joe");
        joe.join("#lab");
        let _bot = start(port, &format!("{}[channel #lab]", tls(None)));
        joe.expect_contains("JOIN");
        joe.say("#lab", "bot: source");
        joe.expect_contains(" PRIVMSG #lab :Buildbot: https://buildbot.net/");
    }
}

#[test]
fn a_bad_certificate_is_refused_before_anything_is_said() {
    for (certificate, own, why) in [
        ("wrong", tls(None), "IP address mismatch"),
        ("expired", tls(None), "certificate has expired"),
        (
            "server",
            "use_ssl = yes\n".into(),
            "unable to get local issuer certificate",
        ),
    ] {
        let irc = FakeIrc::start_tls(Some(certificate));
        let mut bot = start(irc.port, &format!("{own}server_password = swordfish"));
        if let Some(mut peer) = irc.try_accept() {
            assert_eq!(peer.expect_closed(), Vec::<String>::new());
        }
        bot.expect_log(&format!(
            "IRC: 127.0.0.1:{}: the certificate is refused: {why} (tls_ca_file names an authority to trust); next try in ",
            irc.port
        ));
        assert!(!bot.log().contains(">>"), "{}", bot.log());
    }
}

#[test]
fn a_real_server_with_an_expired_certificate_is_refused() {
    let irc = Ngircd::start(NgircdOptions {
        certificate: Some("expired"),
        ..Default::default()
    });
    let mut bot = start(irc.tls_port, &tls(None));
    bot.expect_log("the certificate is refused: certificate has expired");
    assert!(!bot.log().contains(">>"), "{}", bot.log());
}

#[test]
fn tls_and_plain_ports_mixed_up_are_told_in_a_sentence() {
    let irc = Ngircd::start(NgircdOptions {
        certificate: Some("server"),
        ..Default::default()
    });
    let mut plain = start(irc.tls_port, "");
    let fake = FakeIrc::start();
    let mut bot = start(fake.port, &tls(None));
    fake.accept()
        .send(":fake.test NOTICE * :*** Looking up your hostname");
    bot.expect_log(&format!(
        "IRC: 127.0.0.1:{}: no TLS is spoken on this port; next try in ",
        fake.port
    ));
    plain.expect_log("(is this a TLS port? use_ssl = yes); next try in ");
}

#[test]
fn server_password_right_and_wrong() {
    let irc = Ngircd::start(NgircdOptions {
        password: Some("swordfish"),
        ..Default::default()
    });
    let joe = Client::connect_with(irc.port, "joe", &["PASS swordfish"]);
    joe.join("#lab");
    let _bot = start(irc.port, "server_password = swordfish\n[channel #lab]");
    joe.expect_contains(":bot!~bot@");
    let fake = FakeIrc::start();
    let bot = start(fake.port, "server_password = wrong");
    let mut peer = fake.accept();
    assert_eq!(peer.line(), "PASS :wrong");
    peer.send(":fake.test 464 * :Password incorrect");
    refused(bot, "IRC: server_password is refused: Password incorrect");
}

/// It knows no 464 and closes with an ERROR.
#[test]
fn server_password_wrong_for_ngircd() {
    let irc = Ngircd::start(NgircdOptions {
        password: Some("swordfish"),
        ..Default::default()
    });
    refused(
        start(irc.port, "server_password = wrong"),
        "Access denied: Bad password?",
    );
}

/// Once it has worked, a refusal may be an accident at the other end.
#[test]
fn a_password_that_is_refused_later_is_no_reason_to_give_up() {
    let irc = FakeIrc::start();
    let mut bot = start(irc.port, "server_password = swordfish\n[channel #lab]");
    drop(lab(&irc));
    irc.accept().send(":fake.test 464 * :Password incorrect");
    bot.expect_log("IRC: server_password is refused: Password incorrect; next try in 300 s");
}

#[test]
fn keyed_channels() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    for channel in ["#open", "#right", "#wrong"] {
        joe.join(channel);
        joe.send(&format!("MODE {channel} +k tulip"));
        joe.expect_contains(" MODE ");
    }
    joe.send("MODE #open -k tulip");
    joe.expect_contains(" MODE ");
    let mut bot = start(
        irc.port,
        "[channel #open]\n[channel #right]\npassword = tulip\n[channel #wrong]\npassword = rose",
    );
    let joined = [joe.expect_contains("JOIN"), joe.expect_contains("JOIN")].concat();
    assert!(
        joined.contains("#open") && joined.contains("#right"),
        "{joined}"
    );
    bot.expect_log("IRC: cannot join #wrong: Cannot join channel (+k) -- Wrong channel key (475); still trying");
    joe.expect_none("JOIN :#wrong");
}

#[test]
fn a_nick_in_use_is_regained_when_its_holder_leaves() {
    let irc = Ngircd::start(NgircdOptions::default());
    let holder = Client::connect(irc.port, "bot");
    let joe = Client::connect(irc.port, "joe");
    holder.join("#lab");
    joe.join("#lab");
    let mut bot = start(irc.port, "alt_nicks = spare\n[channel #lab]");
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
    let (irc, joe) = guarded(None);
    let owner = Client::connect(irc.easy, "bot");
    owner.register("tulip");
    drop(owner);
    let mut bot = start(irc.port, "password = tulip\n[channel #lab]");
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    bot.expect_log(">> JOIN #lab");
    let log = bot.log();
    let at = |text: &str| {
        log.find(text)
            .unwrap_or_else(|| panic!("no {text:?} in:\n{log}"))
    };
    assert!(at(">> PRIVMSG ***") < at(">> JOIN #lab"), "{log}");
    assert!(!log.contains(" 477 "), "it asked too early:\n{log}");
    drop(bot);
    joe.expect_contains("QUIT");

    let mut bot = start(irc.port, "password = rose\n[channel #lab]");
    bot.expect_log("IRC: NickServ: password incorrect");
    bot.expect_log("IRC: cannot join #lab: ");
    bot.expect_log("(477); still trying");
    drop(bot);

    // Another has the nick that services know as ours.
    let thief = Client::connect(irc.easy, "bot");
    let _bot = start(irc.port, "password = tulip\naccount = bot\n[channel #lab]");
    thief.expect(|line| line.contains(" NICK ") || line.contains("ERROR"));
    joe.expect(|line| line.starts_with(":bot_!") && line.ends_with(" NICK :bot"));
    joe.send("WHOIS bot");
    joe.expect_contains(" 330 joe bot bot ");
}

#[test]
fn sasl_plain_right_and_wrong() {
    let (irc, joe) = guarded(None);
    Client::connect(irc.easy, "keeper").register("tulip");
    let sasl = "sasl = plain\naccount = keeper\n[channel #lab]";
    let _bot = start(irc.port, &format!("password = tulip\n{sasl}"));
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    joe.send("WHOIS bot");
    joe.expect_contains(" 330 joe bot keeper ");
    let bot = start(
        irc.port,
        &format!("alt_nicks = two\npassword = rose\n{sasl}"),
    );
    refused(bot, "IRC: SASL failed: SASL authentication failed");
}

#[test]
fn sasl_external_by_the_client_certificate() {
    let (irc, joe) = guarded(Some("server"));
    let tunnel = Tunnel::start(irc.tls_port, Some("client"));
    let owner = Client::connect(tunnel.port, "keeper");
    owner.register("tulip");
    owner.add_certificate();
    drop(owner);
    let sasl = "sasl = external\naccount = keeper\n[channel #lab]";
    let _bot = start(irc.tls_port, &format!("{}{sasl}", tls(Some("client"))));
    joe.expect_contains(":bot!bot@127.0.0.1 JOIN");
    joe.send("WHOIS bot");
    joe.expect_contains(" 330 joe bot keeper ");
    let bot = start(
        irc.tls_port,
        &format!("alt_nicks = two\n{}{sasl}", tls(Some("server"))),
    );
    refused(bot, "IRC: SASL failed: SASL authentication failed");
}

#[test]
fn without_services_there_is_no_way_around_sasl() {
    let mut irc = Inspircd::start(true);
    irc.stop_services();
    let sasl = "password = tulip\nsasl = plain\n[channel #lab]";
    let mut bot = start(irc.port, sasl);
    bot.expect_log("no SASL PLAIN: the server does not offer it (services down?); not going on without; next try in ");
    assert!(
        !bot.log().contains(">> JOIN") && !bot.log().contains(" 001 "),
        "{}",
        bot.log()
    );
    for reply in [
        "421 * CAP :Unknown command",
        "CAP * LS :sasl=EXTERNAL",
        "001 bot :Welcome",
    ] {
        let fake = FakeIrc::start();
        let mut bot = start(fake.port, sasl);
        let mut peer = fake.accept();
        peer.expect("CAP LS");
        peer.send(&format!(":fake.test {reply}"));
        let said = peer.expect_closed();
        assert!(
            said.iter().all(|line| !line.starts_with("JOIN")),
            "{said:?}"
        );
        bot.expect_log("not going on without; next try in 120 s");
    }
}

#[test]
fn an_account_is_known_by_its_tag() {
    let irc = Inspircd::start(true);
    let owner = Client::connect(irc.easy, "joe");
    owner.register("tulip");
    owner.send("NICK moe");
    owner.expect_contains(" NICK ");
    owner.join("#lab");
    let mut bot = start(
        irc.port,
        "[channel #lab]\n[authorization]\nsource = account:joe",
    );
    owner.expect_contains("JOIN");
    bot.expect_log("IRC: joined #lab");
    owner.say("#lab", "bot: source");
    owner.expect_contains("Buildbot: https://buildbot.net/");
    owner.say("bot", "source");
    owner.expect_contains(" PRIVMSG moe :Buildbot: https://buildbot.net/");
    let thief = Client::connect(irc.easy, "joe");
    thief.join("#lab");
    thief.say("#lab", "bot: source");
    thief.expect_contains("sorry, joe, `source` is not for you");
    assert!(!bot.log().contains(">> WHOIS"), "{}", bot.log());
}

#[test]
fn without_tags_an_account_is_proved_by_whois() {
    let (name, here) = ("330 bot joe joe :is logged in as", "311 bot joe j h * :Joe");
    let cases = [
        (vec![here, name], true),
        (vec![here, "307 bot joe :is a registered nick"], true),
        (vec![here], false),
        (vec![here, "330 bot joe moe :is logged in as"], false),
        (vec!["311 bot joe j other * :Joe", name], false),
        (vec!["401 bot joe :No such nick"], false),
        (vec![":joe!j@h NICK moe"], false), // who changes the nick in between has no proof
    ];
    std::thread::scope(|scope| {
        for (answers, proved) in &cases {
            scope.spawn(move || {
                let said = told_after_whois(answers);
                assert_eq!(
                    said.starts_with("PRIVMSG #lab :Buildbot: "),
                    *proved,
                    "{said} after {answers:?}"
                );
                assert!(
                    *proved || said == "PRIVMSG #lab :sorry, joe, `source` is not for you",
                    "{said}"
                );
            });
        }
    });
}

/// A proof without user and host could be of anybody who has the nick now.
#[test]
fn a_whois_that_does_not_say_whose_proves_nothing() {
    let said = told_after_whois(&["330 bot joe joe :is logged in as"]);
    assert_eq!(said, "PRIVMSG #lab :sorry, joe, `source` is not for you");
}

/// What joe hears after the bot's WHOIS was answered so.
fn told_after_whois(answers: &[&str]) -> String {
    let irc = FakeIrc::start();
    let _bot = start(
        irc.port,
        "[channel #lab]\n[authorization]\nsource = account:joe",
    );
    let mut peer = lab(&irc);
    peer.send(":joe!j@h PRIVMSG #lab :bot: source");
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
    let irc = Ngircd::start(NgircdOptions::default());
    let (op, joe) = (
        Client::connect(irc.port, "op"),
        Client::connect(irc.port, "joe"),
    );
    op.join("#lab");
    joe.join("#lab");
    let _bot = start(irc.port, "[channel #lab]\n[authorization]\nsource = op");
    op.expect_contains(":bot!~bot@");
    let (yes, no) = (
        "PRIVMSG #lab :Buildbot: ",
        "PRIVMSG #lab :sorry, joe, `source` is not for you",
    );
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
    op.expect_contains("sorry, op, `source` is not for you");
}

#[test]
fn kicked_it_comes_back_when_invited() {
    let irc = Ngircd::start(NgircdOptions::default());
    let op = Client::connect(irc.port, "op");
    op.join("#lab");
    let mut bot = start(irc.port, "[channel #lab]");
    op.expect_contains(":bot!~bot@");
    op.send("MODE #lab +i");
    op.send("KICK #lab bot :out with you");
    bot.expect_log("IRC: op put us out of #lab: out with you; back in 30 s");
    op.send("INVITE bot #lab");
    op.expect_within("JOIN", Duration::from_secs(5));
    op.say("#lab", "bot: source");
    op.expect_contains("Buildbot: https://buildbot.net/");
}

#[test]
fn a_restarted_server_has_the_bot_back_within_ten_seconds() {
    let mut irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let mut bot = start(irc.port, "[channel #lab]");
    joe.expect_contains("JOIN");
    irc.stop();
    bot.expect_log("; next try in ");
    irc.start_again();
    let since = Instant::now();
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    joe.expect_within(
        ":bot!~bot@",
        Duration::from_secs(10).saturating_sub(since.elapsed()),
    );
    joe.say("#lab", "bot: source");
    joe.expect_contains("Buildbot: https://buildbot.net/");
}

#[test]
fn ctcp_is_answered_and_notices_and_bots_are_not() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let _bot = start(irc.port, "[channel #lab]");
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
    assert!(
        !joe.conversation().contains("https://buildbot.net/"),
        "{}",
        joe.conversation()
    );

    let irc = FakeIrc::start();
    let _bot = start(irc.port, "[channel #lab]");
    let mut peer = lab(&irc);
    peer.send("@bot :joe!j@h PRIVMSG #lab :bot: source");
    peer.send(":bot!~bot@127.0.0.1 PRIVMSG #lab :bot: source");
    assert_eq!(peer.barrier(), Vec::<String>::new());
    answers(&mut peer);
}

/// A master whose builders have names of 120 characters, the most that is repeated of one, in 480 bytes.
fn long_names() -> (FakeHttp, String) {
    let names = [("a", "\u{1f980}"), ("b", "\u{fc}"), ("c", "\u{1f980}")]
        .map(|(a, b)| a.to_owned() + &b.repeat(119));
    let item = |(id, name)| json!({"builderid": id, "name": name, "masterids": [1]});
    let builders =
        json!({"builders": names.iter().enumerate().map(item).collect::<Vec<_>>()}).to_string();
    let master = FakeHttp::start(move |request| match request.path.as_str() {
        path if path.starts_with("/api/v2/builders?") => Answer::Json(builders.clone()),
        path if path.starts_with("/api/") => Answer::Json(json!({"builds": []}).to_string()),
        _ => Answer::Json("{}".into()),
    });
    let items = names.map(|name| format!("{name} [offline]"));
    (master, format!("3 builders: {}", items.join(", ")))
}

/// The reply in pieces, as it was said; blanks between them do not count.
fn is_whole(pieces: &[&str], reply: &str) -> bool {
    let solid = |text: &str| text.replace(' ', "");
    solid(&pieces.concat()) == solid(reply)
}

#[test]
fn a_long_reply_is_split_to_what_the_server_relays() {
    let (master, reply) = long_names();
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let conf = |port, nick| {
        let master = master.url();
        format!(
            "[buildbot]\nurl = {master}\n[irc]\nhost = 127.0.0.1\nport = {port}\nnick = {nick}\n[channel #lab]"
        )
    };
    let mut real = Bot::start(BOT, &conf(irc.port, "bot"));
    let fake = FakeIrc::start();
    let mut other = Bot::start(BOT, &conf(fake.port, "bot"));
    let mut peer = lab(&fake);
    // A host far longer than one would think.
    let source = format!("bot!~bot@{}", "h".repeat(120));
    peer.send(&format!(":{source} JOIN #lab"));
    master.expect("/api/v2/workers");
    for bot in [&mut real, &mut other] {
        bot.expect_log("/api/v2/buildrequests");
    }
    joe.expect_contains("JOIN");
    joe.say("bot", "list all builders");
    peer.send(":joe!j@h PRIVMSG bot :list all builders");
    let mut lines: Vec<String> = Vec::new();
    while !is_whole(
        &lines
            .iter()
            .map(|l| &l["PRIVMSG joe :".len()..])
            .collect::<Vec<_>>(),
        &reply,
    ) {
        lines.push(peer.expect("PRIVMSG joe :"));
        let relayed = format!(":{source} {}\r\n", lines.last().unwrap()).len();
        assert!(relayed <= 512, "{relayed} bytes: {lines:?}");
        assert!(
            !lines.concat().contains('\u{fffd}'),
            "cut in a character: {lines:?}"
        );
    }
    wait_for("the whole reply", common::TIMEOUT, || {
        let lines = joe.lines("joe");
        let pieces: Vec<&str> = lines
            .iter()
            .filter_map(|line| line.strip_prefix("<bot> "))
            .collect();
        is_whole(&pieces, &reply).then_some(())
    });
    let longest = joe
        .conversation()
        .lines()
        .filter(|l| l.contains("PRIVMSG joe"))
        .map(str::len)
        .max();
    assert!(
        (480..=510 + "  << ".len()).contains(&longest.unwrap()),
        "{longest:?}"
    );
    assert!(!real.log().contains("next try"), "{}", real.log());
}

#[test]
fn names_are_compared_as_the_server_does() {
    let irc = FakeIrc::start(); // CASEMAPPING=rfc1459
    let conf = "[buildbot]\nurl = http://127.0.0.1:1/\n[irc]\nhost = 127.0.0.1\nnick = bot[1]\n[channel #Lab~]\n";
    let _bot = Bot::start(
        BOT,
        &conf.replace("[irc]", &format!("[irc]\nport = {}", irc.port)),
    );
    let mut peer = irc.accept();
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
        peer.send(&format!(":joe!j@h PRIVMSG #lAB^ :{text}"));
    }
    peer.send(":joe!j@h PRIVMSG BOT{1} :source");
    let said: Vec<String> = (0..3).map(|_| peer.expect("PRIVMSG")).collect();
    let count = |start: &str| said.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!(
        (
            count("PRIVMSG #Lab~ :Buildbot"),
            count("PRIVMSG joe :Buildbot")
        ),
        (2, 1),
        "{said:?}"
    );

    let irc = Ngircd::start(NgircdOptions::default()); // CASEMAPPING=ascii
    let conf = &conf.replace("bot[1]", "bot[1]\nusername = bot");
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let _bot = Bot::start(
        BOT,
        &conf
            .replace("[irc]", &format!("[irc]\nport = {}", irc.port))
            .replace("Lab~", "LAB"),
    );
    joe.expect_contains("JOIN");
    joe.say("#lab", "bot{1}: source");
    joe.say("#lab", "BOT[1]: hello");
    let answer = joe.expect_contains("PRIVMSG #");
    assert!(answer.contains("hello, joe"), "{answer}");
}

/// Such a nick is fine, but no user name that ngIRCd would take.
#[test]
fn a_nick_with_brackets_is_no_obstacle() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let conf = format!(
        "[irc]\nhost = 127.0.0.1\nport = {}\nnick = bot[1]\n[channel #lab]",
        irc.port
    );
    let _bot = Bot::start(
        BOT,
        &format!("[buildbot]\nurl = http://127.0.0.1:1/\n{conf}"),
    );
    joe.expect_contains(":bot[1]!");
}

#[test]
fn a_silent_server_is_left() {
    let irc = FakeIrc::start();
    let mut bot = start(irc.port, "ping_timeout = 1500ms\n[channel #lab]");
    let mut peer = lab(&irc);
    peer.expect("PING :alive");
    peer.send("PONG :alive");
    let since = Instant::now();
    peer.expect("PING :alive");
    peer.expect_closed();
    assert!(
        since.elapsed() < Duration::from_secs(4),
        "{:?}",
        since.elapsed()
    );
    bot.expect_log("IRC: the server has gone silent and does not answer PING; next try in ");
    lab(&irc);
}

#[test]
fn a_connection_cut_in_mid_line_is_made_again() {
    let irc = FakeIrc::start();
    let mut bot = start(irc.port, "[channel #lab]");
    let mut peer = lab(&irc);
    peer.send_bytes(b":joe!j@h PRIVMSG #lab :bot: sou");
    drop(peer);
    bot.expect_log("IRC: closed by the server; next try in ");
    let mut peer = lab(&irc);
    peer.send_bytes(b"rce\r\n");
    assert_eq!(peer.barrier(), Vec::<String>::new());
    answers(&mut peer);
}

#[test]
fn a_server_that_throttles_is_given_time() {
    let irc = FakeIrc::start();
    let mut bot = start(irc.port, "[channel #lab]");
    irc.accept()
        .send("ERROR :Closing Link: 127.0.0.1 (Trying to reconnect too fast, throttled)");
    bot.expect_log(
        "IRC: the server closes the connection: Closing Link: 127.0.0.1 (Trying to reconnect too fast, throttled); next try in 120 s",
    );
    assert!(!irc.knocked());
}

#[test]
fn garbage_is_survived_in_bounded_memory() {
    let irc = FakeIrc::start();
    let mut bot = start(irc.port, "[channel #lab]");
    let mut peer = irc.accept();
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
        for more in [" :", " bot", " * :\u{ff}", " #lab", " #lab :"] {
            // These mean something even so.
            if !["ERROR", "001", "904"].contains(&word) {
                peer.send(&format!(":joe!j@h {word}{more}"));
            }
        }
    }
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    let mut random = 88_172_645_463_325_252_u64;
    for _ in 0..2000 {
        let noise: Vec<u8> = (0..16)
            .map(|_| {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                random as u8
            })
            .collect();
        peer.send_bytes(&noise);
    }
    peer.send_bytes(b"\r\n:j\xfcrgen!j@h PRIVMSG #lab :bot: hello\r\n");
    assert!(peer.expect("PRIVMSG #lab :hello").contains("j\u{fc}rgen"));
    for _ in 0..10 {
        peer.send_bytes(&[b'x'; 1 << 20]);
    }
    peer.send_bytes(b"\r\n:joe!j@h PRIVMSG #lab :bot: source\r\n");
    while !peer
        .line_within(common::TIMEOUT)
        .expect("an answer")
        .contains("https://buildbot.net/")
    {}
    bot.expect_log("IRC: dropped a line that was too long");
    let most = memory(&bot, "VmHWM:");
    assert!(most < 32 * 1024, "{most} kB");
}

#[test]
fn no_secret_is_in_the_log() {
    let irc = FakeIrc::start();
    let text = format!(
        "[buildbot]\nurl = http://127.0.0.1:1/\nuser = admin\npassword = secret-1\n[irc]\nhost = 127.0.0.1\n\
         port = {}\nnick = bot\nserver_password = secret-2\npassword = secret-3\naccount = keeper\nsasl = plain\n\
         [channel #lab]\npassword = secret-4\n",
        irc.port
    );
    let mut bot = Bot::start(BOT, &text);
    let mut peer = irc.accept();
    assert_eq!(peer.line(), "PASS :secret-2");
    peer.expect("CAP LS");
    peer.send(":fake.test CAP * LS :sasl");
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
    answers(&mut peer);
    // Without SASL, the same password goes to NickServ.
    bot.configure(&text.replace("sasl = plain", "sasl = no"));
    let log = bot.log();
    bot.start_again();
    let mut peer = irc.accept();
    peer.register();
    assert_eq!(
        peer.expect("PRIVMSG"),
        "PRIVMSG NickServ :IDENTIFY keeper secret-3"
    );
    peer.send(":NickServ!s@services NOTICE bot :You are now identified for keeper.");
    peer.expect("JOIN #lab secret-4");
    bot.expect_log(">> JOIN ***");
    let log = log + &bot.log();
    assert!(!log.contains("secret-") && !log.contains(&login), "{log}");
}

/// Keys that come over the wire are secrets, too: a command of the bot, and the mode that sets one.
#[test]
fn no_channel_key_that_is_heard_is_in_the_log() {
    let irc = FakeIrc::start();
    let bot = start(irc.port, "[channel #lab]\n[authorization]\njoin = everyone");
    let mut peer = lab(&irc);
    peer.send(":joe!j@h PRIVMSG bot :join #den secret-5");
    assert_eq!(peer.expect("JOIN"), "JOIN #den secret-5");
    peer.send(":joe!j@h MODE #lab +k secret-6");
    peer.barrier();
    assert!(!bot.log().contains("secret-"), "{}", bot.log());
}
