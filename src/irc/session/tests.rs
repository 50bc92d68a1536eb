//! Tests of the session as a whole: lines in, lines out. Its machines have their own.

use super::super::wire::LineBuffer;
use super::*;
use crate::config::tests::{SHORT, parse};
use crate::fuzz::fuzz;

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}

/// A session with its clock.
struct Rig {
    session: Session,
    now: Instant,
    /// What it wanted done beside saying something.
    others: Vec<Action>,
}

impl Rig {
    /// Connected and registering; `more` goes into `[irc]`.
    fn new(more: &str) -> Rig {
        let config = parse(&format!("{SHORT}username = u\nrealname = r\n{more}")).unwrap();
        let now = Instant::now();
        let mut rig = Rig {
            session: Session::new(config.irc.unwrap(), now, 1),
            now,
            others: Vec::new(),
        };
        rig.session.tick(now);
        rig.said();
        let connect = Action::Connect {
            port: 6667,
            with_tls: false,
        };
        assert_eq!(rig.others, [connect]);
        rig.others.clear();
        rig.session.on_connected(now);
        rig
    }

    /// Online, with what was said on the way thrown away.
    fn online(more: &str) -> Rig {
        let mut rig = Rig::new(more);
        rig.hear(":s CAP * LS :\n:s 001 bot :hi\n:s 422 bot :none");
        rig.said();
        rig.others.clear();
        rig
    }

    /// Online and in #a.
    fn in_channel(more: &str) -> Rig {
        let mut rig = Rig::online(&format!("{more}[channel #a]\n"));
        rig.hear(":bot!u@host.example JOIN #A");
        rig.said();
        rig.others.clear();
        rig
    }

    fn hear(&mut self, lines: &str) {
        for line in lines.lines() {
            let message = Message::parse(line).unwrap();
            self.session.on_message(&message, self.now);
        }
        self.session.tick(self.now);
    }

    fn wait(&mut self, time: u64) {
        self.now += seconds(time);
        self.session.tick(self.now);
    }

    /// The lines that it sent since the last call.
    fn said(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for action in self.session.take_actions() {
            match action {
                Action::Send(line) | Action::SendInTurn(_, line) => {
                    let bytes = line.bytes();
                    said.push(String::from_utf8(bytes).unwrap().trim_end().to_owned());
                }
                other => self.others.push(other),
            }
        }
        said
    }

    #[track_caller]
    fn answers(&mut self, lines: &str, expected: &[&str]) {
        self.hear(lines);
        assert_eq!(self.said(), expected, "after {lines}");
    }

    /// Why it wanted to close the connection.
    fn closed(&mut self) -> Option<String> {
        self.said();
        self.others.iter().find_map(|action| match action {
            Action::Close(why) => Some(why.clone()),
            _ => None,
        })
    }

    /// The last thing that was said to us: where, what, whether by an operator, by whom.
    fn invoked(&mut self, line: &str) -> Option<(String, String, bool, Account)> {
        self.others.clear();
        self.hear(line);
        self.said();
        self.others.iter().find_map(|action| match action {
            Action::Invoked(i) => Some((
                i.place.to_string(),
                i.text.clone(),
                i.is_op,
                i.account.clone(),
            )),
            _ => None,
        })
    }
}

fn name(text: &str) -> Name {
    Casemapping::default().name(text)
}

#[test]
fn registration_joining_and_pings() {
    let mut rig = Rig::new("[channel #a]\n[channel #b]\npassword = k\n");
    assert_eq!(rig.said(), ["CAP LS 302", "NICK bot", "USER u 0 * :r"]);
    rig.answers(":s CAP * LS :", &["CAP END"]);
    let isupport = ":s 001 bot :hi\n:s 005 bot BOT=B CASEMAPPING=ascii :x";
    rig.answers(isupport, &["MODE bot +B"]);
    assert_eq!(rig.session.casemapping(), Casemapping::Ascii);
    rig.answers(":s 376 bot :end", &["JOIN #b,#a k"]);
    rig.answers("PING :x y", &["PONG :x y"]);
}

#[test]
fn nickserv_comes_before_joining() {
    let mut rig = Rig::new("password = pw\n[channel #a]\n");
    rig.said();
    rig.answers(":s 422 bot :none", &[]);
    rig.answers(":s 001 bot :hi", &["PRIVMSG NickServ :IDENTIFY pw"]);
    rig.answers(":s 422 bot :none", &[]);
    rig.answers(":eve!e@h NOTICE bot :You are now identified", &[]);
    let notice = ":NickServ!s@s NOTICE bot :You are now identified for \u{2}bot\u{2}.";
    rig.answers(notice, &["JOIN #a"]);
}

#[test]
fn services_that_say_nothing_do_not_keep_us_out() {
    let mut rig = Rig::new("password = pw\n[channel #a]\n");
    rig.hear(":s 001 bot :hi\n:s 422 bot :none");
    rig.said();
    rig.wait(IDENTIFY.as_secs());
    assert_eq!(rig.said(), ["JOIN #a"]);
}

#[test]
fn a_refused_password_keeps_us_out_of_nothing() {
    let mut rig = Rig::new("password = pw\n[channel #a]\n");
    rig.hear(":s 001 bot :hi\n:s 422 bot :none");
    rig.said();
    let refusal = ":NickServ!s@s NOTICE bot :Authentication failed: Invalid account credentials";
    rig.answers(refusal, &["JOIN #a"]);
}

#[test]
fn a_taken_nick_is_replaced_and_won_back() {
    let mut rig = Rig::new("alt_nicks = alt\npassword = pw\n[channel #a]\n");
    rig.said();
    rig.answers(":s 433 * bot :in use", &["NICK alt"]);
    rig.answers(":s 433 * alt :in use", &["NICK bot_"]);
    rig.answers(":s 001 bot_ :hi", &["PRIVMSG NickServ :IDENTIFY bot pw"]);
    rig.answers(
        ":s 005 bot_ MONITOR=30 :x\n:s 422 bot_ :none",
        &["MONITOR + bot"],
    );
    let identified = ":s MODE bot_ +r";
    rig.answers(identified, &["PRIVMSG NickServ :REGAIN bot pw", "JOIN #a"]);
    let unknown = ":NickServ!s@s NOTICE bot_ :Unknown command \u{2}REGAIN\u{2}.";
    rig.answers(unknown, &["PRIVMSG NickServ :RECOVER bot pw"]);
    rig.answers(":s 731 bot_ :bot", &["NICK bot"]);
    rig.answers(":s 433 bot_ bot :in use", &[]);
    rig.answers(":bot!x@y QUIT :gone", &["NICK bot"]);
    rig.answers(":bot_!u@h NICK :bot", &[]);
    assert_eq!(rig.session.nick().as_str(), "bot");
    rig.answers(":bot!u@h NICK :Guest7", &[]);
    rig.wait(30);
    assert_eq!(rig.said(), ["NICK bot"]);
}

#[test]
fn a_nick_that_no_server_takes_ends_the_bot() {
    let mut rig = Rig::new("");
    (0..12).for_each(|_| rig.hear(":s 432 * x :Erroneous"));
    rig.said();
    let why = "nick x: Erroneous (432)".to_owned();
    assert_eq!(rig.others.last(), Some(&Action::Fatal(why)));
}

#[test]
fn with_a_certificate_the_nick_comes_back_without_a_password() {
    let mut rig = Rig::new("");
    rig.hear(":s 433 * bot :in use\n:s 001 bot_ :hi\n:s 900 bot_ bot!u@h acct :logged in");
    let said = rig.said();
    assert!(
        said.contains(&"PRIVMSG NickServ :REGAIN bot".to_owned()),
        "{said:?}"
    );
}

#[test]
fn silence_ends_the_connection_and_the_waits_double() {
    let mut rig = Rig::online("ping_timeout = 100\n");
    rig.wait(60);
    assert_eq!(rig.said(), ["PING :alive"]);
    rig.wait(39);
    assert_eq!(rig.closed(), None);
    rig.wait(1);
    let why = "the server has gone silent and does not answer PING";
    assert_eq!(rig.closed().as_deref(), Some(why));
    let mut waits = Vec::new();
    for _ in 0..9 {
        rig.session.on_disconnected("gone", rig.now);
        waits.push((rig.session.deadline() - rig.now).as_secs_f64());
        rig.session.on_connected(rig.now);
    }
    for (i, wait) in waits.iter().enumerate() {
        let middle = (4.0 * f64::from(1 << i)).min(300.0);
        let range = middle * 0.75..=middle * 1.25;
        assert!(range.contains(wait), "{waits:?}");
    }
}

#[test]
fn what_comes_after_the_end_is_of_no_interest() {
    let mut rig = Rig::new("");
    rig.hear("ERROR :Closing link: trying to reconnect too fast (throttled)");
    rig.hear(":s 001 bot :hi\nERROR :again");
    rig.said();
    let closes = rig
        .others
        .iter()
        .filter(|action| matches!(action, Action::Close(_)));
    assert_eq!(closes.count(), 1, "{:?}", rig.others);
    rig.session.on_disconnected("gone", rig.now);
    assert!(rig.session.deadline() >= rig.now + THROTTLED);
}

#[test]
fn a_throttled_handshake_is_waited_out() {
    let mut rig = Rig::new("");
    let why = "the server refuses the hand-shake (connections are throttled)";
    rig.session.on_disconnected(why, rig.now);
    assert!(rig.session.deadline() >= rig.now + THROTTLED);
}

#[test]
fn a_kill_for_flooding_is_noticed() {
    for reason in ["Excess Flood", "RecvQ exceeded", "SendQ exceeded"] {
        let mut rig = Rig::online("");
        rig.hear(&format!("ERROR :Closing link: {reason}"));
        rig.said();
        let is_flood = |action: &Action| matches!(action, Action::Flooded(_));
        assert!(rig.others.iter().any(is_flood), "{reason}");
    }
}

#[test]
fn a_server_that_demands_tls_gets_it_before_any_secret() {
    let mut rig = Rig::new("server_password = pw\n");
    rig.hear(":s CAP * LS :sts=port=6697,duration=300");
    let said = rig.said();
    assert!(said.iter().all(|line| !line.contains("pw")), "{said:?}");
    assert_eq!(rig.closed().as_deref(), Some("going on with TLS"));
    rig.session.on_disconnected("going on with TLS", rig.now);
    rig.others.clear();
    rig.wait(10);
    rig.said();
    let connect = Action::Connect {
        port: 6697,
        with_tls: true,
    };
    assert_eq!(rig.others, [connect]);
    rig.session.on_connected(rig.now);
    assert_eq!(rig.said()[0], "PASS :pw", "now it may be told");
    let mut rig = Rig::new("");
    rig.hear(":s CAP * LS :sts=port=6697");
    rig.session.on_disconnected("going on with TLS", rig.now);
    rig.wait(10);
    rig.session
        .on_disconnected("the certificate is refused", rig.now);
    rig.said();
    let is_fatal = |action: &Action| match action {
        Action::Fatal(why) => why.contains("demands TLS on port 6697"),
        _ => false,
    };
    assert!(rig.others.iter().any(is_fatal), "{:?}", rig.others);
}

#[test]
fn who_speaks_to_us_and_as_whom() {
    let mut rig = Rig::new("[channel #a]\n");
    rig.hear(":s CAP * LS :account-tag\n:s CAP * ACK :account-tag");
    rig.hear(":s 001 bot :hi\n:s 422 bot :none");
    let isupport = "PREFIX=(qaohv)~&@%+ CHANMODES=beI,k,l,imnpst CASEMAPPING=rfc1459";
    rig.hear(&format!(":s 005 bot {isupport} :x"));
    rig.hear(":bot!u@h JOIN #a\n:s 353 bot = #a :bot @op &@admin %half +voice [x]");
    let got =
        |place: &str, is_op, account| Some((place.to_owned(), "help".to_owned(), is_op, account));
    let joe = Account::LoggedIn("J\\oe".into());
    for (line, expected) in [
        (
            "@account=J\\\\oe :op!u@h PRIVMSG #A :BOT: help",
            got("#a", true, joe),
        ),
        (
            ":admin!u@h PRIVMSG #a :\u{2}bot\u{2}, help",
            got("#a", true, Account::None),
        ),
        (
            ":half!u@h PRIVMSG #a :bot: help",
            got("#a", false, Account::None),
        ),
        (
            ":voice!u@h PRIVMSG bot :help",
            got("voice", false, Account::None),
        ),
        (
            ":voice!u@h PRIVMSG bot :Bot: help",
            got("voice", false, Account::None),
        ),
        (":op!u@h PRIVMSG bot :help", got("op", false, Account::None)),
        (":op!u@h PRIVMSG #a :help", None),
        (":op!u@h PRIVMSG #elsewhere :bot: help", None),
        (":op!u@h NOTICE #a :bot: help", None),
        (":bot!u@h PRIVMSG #a :bot: help", None),
        ("@bot :op!u@h PRIVMSG #a :bot: help", None),
        ("@inspircd.org/bot :op!u@h PRIVMSG #a :bot: help", None),
        (":irc.server PRIVMSG bot :help", None),
        (":*status!znc@znc.in PRIVMSG bot :help", None),
    ] {
        assert_eq!(rig.invoked(line), expected, "{line}");
    }
    let is_op = |rig: &mut Rig, nick: &str| {
        rig.invoked(&format!(":{nick}!u@h PRIVMSG #a :bot: help"))
            .unwrap()
            .2
    };
    rig.hear(":op!u@h MODE #a +bk-o+o *!*@x key op {X}");
    assert!(!is_op(&mut rig, "op") && is_op(&mut rig, "[x]"));
    rig.hear(":admin!u@h NICK :Boss");
    assert!(!is_op(&mut rig, "admin") && is_op(&mut rig, "boss"));
    rig.hear(":boss!u@h PART #a\n:[x]!u@h QUIT :bye");
    assert!(!is_op(&mut rig, "boss") && !is_op(&mut rig, "[x]"));
}

/// Replayed history must not run commands again, whoever has the nick now.
#[test]
fn history_is_never_a_command() {
    let mut rig = Rig::online("[channel #a]\n");
    let said = ":joe!u@h PRIVMSG #a :bot: force build b please";
    assert_eq!(rig.invoked(said), None, "before we have joined");
    rig.hear("@time=2026-01-01T00:00:20.000Z :bot!u@h JOIN #a");
    rig.hear(":s BATCH +7 chathistory #a");
    assert_eq!(rig.invoked(&format!("@batch=7 {said}")), None);
    rig.hear(":s BATCH -7");
    assert_eq!(
        rig.invoked(&format!("@time=2026-01-01T00:00:19.000Z {said}")),
        None
    );
    rig.hear(":***!znc@znc.in PRIVMSG #a :Buffer Playback...");
    assert_eq!(rig.invoked(said), None);
    rig.hear(":***!znc@znc.in PRIVMSG #a :Playback Complete.");
    assert!(rig.invoked(said).is_some());
    assert!(
        rig.invoked(&format!("@time=2026-01-01T00:00:21.000Z {said}"))
            .is_some()
    );
}

#[test]
fn a_private_message_from_before_this_connection_is_no_command() {
    let mut rig = Rig::new("");
    rig.hear("@time=2026-01-01T00:00:20.000Z :s 001 bot :hi\n:s 422 bot :none");
    let old = "@time=2026-01-01T00:00:19.000Z :joe!u@h PRIVMSG bot :force build b x";
    assert_eq!(rig.invoked(old), None);
    let new = "@time=2026-01-01T00:00:21.000Z :joe!u@h PRIVMSG bot :status";
    assert!(rig.invoked(new).is_some());
}

#[test]
fn nothing_is_done_before_it_can_be_answered() {
    let mut rig = Rig::new("password = pw\n");
    rig.hear(":s 001 bot :hi\n:s 422 bot :none");
    assert_eq!(rig.invoked(":joe!u@h PRIVMSG bot :notify on"), None);
    rig.wait(IDENTIFY.as_secs());
    assert!(rig.invoked(":joe!u@h PRIVMSG bot :notify on").is_some());
}

#[test]
fn names_are_compared_anew_on_each_connection() {
    let mut rig = Rig::online("");
    let last = |rig: &mut Rig| {
        rig.said();
        let others = rig.others.iter().rev();
        let mut known = others.filter(|action| matches!(action, Action::CasemappingKnown(_)));
        known.next().cloned()
    };
    let usual = Some(Action::CasemappingKnown(Casemapping::Rfc1459));
    assert_eq!(rig.session.casemapping(), Casemapping::Rfc1459);
    rig.hear(":s 005 bot CASEMAPPING=ascii :x");
    let ascii = Some(Action::CasemappingKnown(Casemapping::Ascii));
    assert_eq!(last(&mut rig), ascii);
    rig.session.on_disconnected("gone", rig.now);
    rig.session.on_connected(rig.now);
    assert_eq!(last(&mut rig), ascii, "until the next one says otherwise");
    rig.hear(":s 001 bot :hi\n:s 376 bot :x");
    assert_eq!(last(&mut rig), usual);
}

#[test]
fn ctcp_is_answered_in_private_only() {
    let mut rig = Rig::in_channel("");
    rig.hear(":joe!u@h PRIVMSG #a :\u{1}VERSION\u{1}");
    rig.hear(":joe!u@h PRIVMSG bot :\u{1}ACTION x\u{1}");
    rig.hear(":joe!u@h PRIVMSG bot :\u{1}PING 12\u{1}");
    rig.said();
    rig.others
        .retain(|action| !matches!(action, Action::Seen(_)));
    let reply = Action::CtcpReply(name("joe"), "\u{1}PING 12\u{1}".into());
    assert_eq!(rig.others, [reply]);
}

#[test]
fn every_error_that_names_a_target_is_a_refusal() {
    for (line, target, is_rate) in [
        (":s 401 bot Joe :No such nick", "joe", false),
        (":s 404 bot #A :Cannot send to channel", "#a", false),
        (":s 403 bot #a :No such channel", "#a", false),
        (":s 415 bot #a :Only registered", "#a", false),
        (":s 477 bot #a :You need to identify", "#a", false),
        (":s 486 bot joe :Registered only", "joe", false),
        (":s 531 bot joe :Not accepting", "joe", false),
        (":s 716 bot joe :is in +g mode", "joe", false),
        (":s 439 bot joe :Target change too fast", "joe", true),
        (":s 707 bot joe :Targets changing too fast", "joe", true),
    ] {
        let mut rig = Rig::in_channel("");
        rig.hear(line);
        rig.said();
        let refused = rig.others.iter().find_map(|action| match action {
            Action::Refused(target, refusal) => Some((target.clone(), refusal.is_rate)),
            _ => None,
        });
        assert_eq!(refused, Some((name(target), is_rate)), "{line}");
    }
    for line in [
        ":s 001 bot Joe :x",
        ":s 318 bot joe :End",
        ":s 904 bot :SASL failed",
    ] {
        let mut rig = Rig::in_channel("");
        rig.hear(line);
        rig.said();
        let is_refusal = |action: &Action| matches!(action, Action::Refused(..));
        assert!(!rig.others.iter().any(is_refusal), "{line}");
    }
}

#[test]
fn signs_that_a_target_can_be_told() {
    for (sign, target) in [
        (":joe!u@h JOIN #a", "joe"),
        (":joe_!u@h NICK joe", "joe"),
        (":joe!u@h PRIVMSG bot :help", "joe"),
        (":op!o@h MODE #a +v bot", "#a"),
        (":joe!u@h PRIVMSG #a :bot: help", "#a"),
        (":bot!u@h JOIN #a", "#a"),
    ] {
        let mut rig = Rig::in_channel("");
        rig.hear(sign);
        rig.said();
        let expected = Action::Reachable(name(target));
        assert!(rig.others.contains(&expected), "{sign}: {:?}", rig.others);
    }
}

#[test]
fn a_bouncer_tells_of_its_own_network() {
    let mut rig = Rig::in_channel("");
    let status = |text: &str| format!(":*status!znc@znc.in PRIVMSG bot :{text}");
    rig.hear(&status("Disconnected from IRC. Reconnecting..."));
    rig.hear(&status(
        "Your message to #a got lost, you are not connected to IRC!",
    ));
    rig.hear(&status("Connected!"));
    rig.said();
    let lost = || Action::Upstream(Upstream::Lost);
    let back = Action::Upstream(Upstream::Back);
    assert_eq!(rig.others[..2], [lost(), lost()]);
    assert_eq!(rig.others[2], back);
    rig.others.clear();
    rig.hear(":eve!e@h PRIVMSG bot :Disconnected from IRC");
    rig.said();
    let is_upstream = |action: &Action| matches!(action, Action::Upstream(_));
    assert!(!rig.others.iter().any(is_upstream));
}

#[test]
fn a_bouncer_that_is_back_on_its_network_is_in_no_channel_yet() {
    let mut rig = Rig::in_channel("");
    let channel = name("#a");
    assert!(rig.session.can_reach(&channel));
    rig.hear(":*status!znc@znc.in PRIVMSG bot :Disconnected from IRC. Reconnecting...");
    assert_eq!(rig.said(), [""; 0]);
    assert!(!rig.session.can_reach(&channel));
    rig.hear(":*status!znc@znc.in PRIVMSG bot :Connected!");
    assert_eq!(rig.said(), ["JOIN #a"]);
    assert!(!rig.session.can_reach(&channel));
    rig.hear(":bot!u@host.example JOIN #A");
    assert!(rig.session.can_reach(&channel));
}

#[test]
fn lines_that_lack_what_they_need_are_ignored() {
    let mut rig = Rig::in_channel("");
    for odd in [
        ":bot!u@h NICK :",
        ":bot!u@h NICK",
        ":op!o@h KICK #a",
        ":op!o@h KICK",
        ":s 353 bot",
        ":s MODE",
        ":s 005 bot",
        "PING",
        ":joe!u@h PRIVMSG bot",
        ":s 001",
        ":s CAP *",
        ":joe!u@h JOIN",
        ":s 404 bot",
        ":s 001 :",
    ] {
        rig.hear(odd);
    }
    rig.said();
    assert_eq!(rig.session.nick().as_str(), "bot");
    assert!(rig.session.can_reach(&name("#a")));
    assert_eq!(rig.others, []);
}

#[test]
fn what_the_server_puts_before_our_lines_is_learnt() {
    let mut rig = Rig::online("[channel #a]\n");
    assert_eq!(rig.session.source_length(), "bot!u".len() + UNKNOWN_HOST);
    rig.hear(":bot!u@host.example JOIN #a");
    assert_eq!(rig.session.source_length(), "bot!u@host.example".len());
    rig.hear(":s 396 bot hidden.example :is now your host");
    assert_eq!(rig.session.source_length(), "bot!~u@hidden.example".len());
}

#[test]
fn we_leave_with_a_word_and_do_not_come_back() {
    let mut rig = Rig::in_channel("");
    rig.session.leave(&name("#A"), "leaving, as joe asks");
    assert_eq!(rig.said(), ["PART #A :leaving, as joe asks"]);
    rig.wait(600);
    assert_eq!(rig.session.joined_channels().count(), 0);
}

/// Whatever a server says, in whatever order, and whatever the time.
#[test]
fn fuzz_session() {
    crate::log::set_limit(crate::log::Level::Error);
    let seed = ":s CAP * LS :sasl account-tag\r\n:s CAP * ACK :sasl\r\nAUTHENTICATE +\r\n\
        :s 903 bot :ok\r\n:s 001 bot :hi\r\n\
        :s 005 bot CASEMAPPING=ascii PREFIX=(ov)@+ MONITOR=9 BOT=B :x\r\n\
        :s 433 * bot :used\r\n:s 422 bot :none\r\n:bot!u@h JOIN #a\r\n\
        :s 353 bot = #a :@joe +ann\r\n:s MODE #a -o+v joe joe\r\n\
        :joe!u@h PRIVMSG #a :bot: help\r\n:joe!u@h KICK #a bot :out\r\n\
        :s 471 bot #a :full\r\n:joe!u@h INVITE bot #a\r\n:s 311 bot joe u h * :r\r\n\
        :s 330 bot joe acc :is\r\n:s 318 bot joe :end\r\n\
        :NickServ!s@s NOTICE bot :you are now identified\r\n:joe!u@h NICK bot\r\n\
        :bot!u@h QUIT :x\r\nERROR :throttled\r\nPING :x\r\n:s 465 bot :banned\r\n\
        :s BATCH +1 chathistory #a\r\n@batch=1;time=2026 :joe!u@h PRIVMSG #a :bot: x\r\n\
        :s BATCH -1\r\n:s 470 bot #a #b :fwd\r\n:s CAP * LS :sts=port=1\r\n\
        :*status!z@z PRIVMSG bot :Disconnected from IRC\r\n:s 004 bot s ngircd-26\r\n";
    fuzz(&[seed.as_bytes()], |bytes, random| {
        let more = ["", "sasl = plain\npassword = p\n", "password = p\n"][random.below(3)];
        let mut rig = Rig::new(&format!("{more}[channel #a]\n"));
        let invocation = Invocation {
            place: name("#a"),
            nick: name("joe"),
            mask: "joe!u@h".into(),
            ..Invocation::default()
        };
        rig.session.verify_account(invocation, rig.now);
        for message in LineBuffer::default().feed(bytes) {
            rig.session.on_message(&message, rig.now);
            rig.now += seconds([0, 0, 0, 1, 20, 700][random.below(6)]);
            for line in rig.said() {
                assert!(
                    line.len() <= 510 && !line.contains(['\r', '\n', '\0']),
                    "{line:?}"
                );
            }
            if let Some(Action::Close(why)) = rig.others.last() {
                rig.session.on_disconnected(&why.clone(), rig.now);
            }
            rig.session.tick(rig.now);
            if let Some(Action::Connect { .. }) = rig.others.pop() {
                rig.session.on_connected(rig.now);
            }
        }
    });
}
