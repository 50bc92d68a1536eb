//! What makes other bots silently gone, or silent: floods, kicks, bans, lost links, a full disk, a kill. Real
//! servers wherever they do it; fake ones where the moment must be exact.

/// Takes minutes, in which the other tests can run.
#[path = "scene/chaos.rs"]
mod chaos;
mod common;

use common::{
    Bot, Client, Ear, FAILURE, FakeHttp, FakeIrc, FakePeer, Inspircd, InspircdOptions, Master,
    Ngircd, NgircdOptions, Proxy, SUCCESS, TIMEOUT, Worker, World, scratch, wait_for,
};
use serde_json::{Value, json};
use std::fs;
use std::net::UdpSocket;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

const BOT: &str = env!("CARGO_BIN_EXE_buildbot-irc");
/// Nobody listens on port 1.
const AWAY: &str = "http://127.0.0.1:1/";
const SECOND: Duration = Duration::from_secs(1);

/// `more` ends the section [irc] and has the other ones.
fn config(url: &str, host: &str, port: u16, more: &str) -> String {
    let how = "poll_interval = 200ms\nevent_stream = no";
    format!(
        "[buildbot]\nurl = {url}\n{how}\n[irc]\nhost = {host}\nport = {port}\nnick = bot\n{more}\n"
    )
}

fn start(url: &str, port: u16, more: &str) -> Bot {
    Bot::start(BOT, &config(url, "127.0.0.1", port, more))
}

/// The same under another nick than `bot`.
fn start_as(nick: &str, url: &str, port: u16, more: &str) -> Bot {
    Bot::start(
        BOT,
        &config(url, "127.0.0.1", port, more).replace("nick = bot", &format!("nick = {nick}")),
    )
}

/// It is in its channel and knows what is old.
#[track_caller]
fn ready(bot: &mut Bot) {
    bot.expect_log("IRC: joined #lab");
    bot.expect_log_times("GET /api/v2/buildrequests", 2);
}

/// Seconds since the epoch.
fn now() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}

/// Takes the bot's connection through registration and into #lab, which must be all that it joins.
#[track_caller]
fn lab(irc: &FakeIrc) -> FakePeer {
    let mut peer = irc.accept();
    let nick = peer.register();
    assert_eq!(peer.expect("JOIN"), "JOIN #lab");
    peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN #lab"));
    peer
}

#[track_caller]
fn answers(peer: &mut FakePeer) {
    peer.send(":joe!j@h PRIVMSG #lab :bot: source");
    peer.expect("PRIVMSG #lab :Buildbot: ");
}

/// The builds that lines of the bot name, `b7 #7`, in order.
fn named(lines: &[String]) -> Vec<String> {
    let lines = lines.iter().filter(|line| line.starts_with("<bot> "));
    let words: Vec<&str> = lines.flat_map(|line| line.split([' ', ',', ';'])).collect();
    let number = |word: &str, start: char| {
        word.strip_prefix(start)
            .is_some_and(|rest| rest.parse::<u32>().is_ok())
    };
    let pairs = words
        .windows(2)
        .filter(|pair| number(pair[0], 'b') && number(pair[1], '#'));
    pairs.map(|pair| pair.join(" ")).collect()
}

/// A server of each kind with its default limits, joe in #lab there, and a bot that tells what ends.
struct Crowd {
    _irc: (Ngircd, Inspircd),
    joes: [Client; 2],
    bots: [Bot; 2],
}

impl Crowd {
    #[track_caller]
    fn gather(url: &str) -> Crowd {
        let irc = (
            Ngircd::start(NgircdOptions {
                penalties: true,
                ..Default::default()
            }),
            Inspircd::start(false),
        );
        let joes = [irc.0.port, irc.1.easy].map(|port| Client::connect(port, "joe"));
        joes.iter().for_each(|joe| joe.join("#lab"));
        let mut bots = [irc.0.port, irc.1.port]
            .map(|port| start(url, port, "notify_events = finished\n[channel #lab]"));
        bots.iter_mut().for_each(ready);
        Crowd {
            _irc: irc,
            joes,
            bots,
        }
    }

    /// On each server all fifty are named, once, within ten seconds, failures before the rest in each line; and the
    /// bot is still there. Returns the first lines.
    #[track_caller]
    fn hear_fifty(&self, since: Instant) -> [String; 2] {
        let lines = || self.joes.each_ref().map(|joe| joe.lines("#lab"));
        wait_for("fifty builds", 2 * TIMEOUT, || {
            let all = lines().iter().all(|lines| named(lines).len() >= 50);
            assert!(
                all || since.elapsed() < 10 * SECOND,
                "heard in ten seconds: {:#?}",
                lines()
            );
            all.then_some(())
        });
        for ((joe, bot), lines) in self.joes.iter().zip(&self.bots).zip(lines()) {
            let mut names = named(&lines);
            names.sort();
            names.dedup();
            assert_eq!((names.len(), named(&lines).len()), (50, 50), "{lines:#?}");
            for line in lines
                .iter()
                .filter(|line| line.contains("failure b") && line.contains("success b"))
            {
                assert!(line.find("failure b") < line.find("success b"), "{line}");
            }
            joe.say("#lab", "bot: source");
            joe.expect_contains("Buildbot: https://buildbot.net/");
            joe.expect_none(" QUIT ");
            assert!(!bot.log().contains("next try"), "{}", bot.log());
        }
        lines().map(|mut lines| lines.swap_remove(0))
    }
}

#[test]
fn fifty_builds_that_end_together_are_told_failures_first() {
    let world = World::new(50);
    let master = world.serve();
    let crowd = Crowd::gather(&master.url());
    world.end(
        (1..=50).map(|n| (n, if n % 5 == 0 { FAILURE } else { SUCCESS })),
        now(),
    );
    let failures: Vec<String> = (1..=10).map(|n| format!("b{0} #{0}", n * 5)).collect();
    for first in crowd.hear_fifty(Instant::now()) {
        let start = format!(
            "<bot> meanwhile: failure {}; success b1 #1, ",
            failures.join(", ")
        );
        assert!(first.starts_with(&start), "{first}");
    }
}

#[test]
fn fifty_real_builds_that_end_together_are_told() {
    let config = "import os\nfrom buildbot.util import asyncSleep\n\
                  class Together(BuildStep):\n    async def run(self):\n\
                  \x20       while not os.path.exists(HERE + '/go'):\n            await asyncSleep(0.1)\n\
                  \x20       return FAILURE if int(self.build.builder.name[1:]) % 5 == 0 else SUCCESS\n\
                  for n in range(1, 51):\n    builder(f'b{n}', Together())\n";
    let master = Master::start("fifty", config);
    let _worker = Worker::start(&master, "w1");
    let crowd = Crowd::gather(&master.url());
    master.post("/api/v2/forceschedulers/force", "force", json!({})); // without a builder it starts all
    master.wait_count("complete=false&state_string=building", 50);
    fs::write(master.dir.join("go"), "").unwrap();
    master.wait_count("complete=true", 50);
    crowd.hear_fifty(Instant::now());
}

/// All of 400 lines take 13 minutes, so that reply is watched while a shorter one comes to its end. At once they
/// would be more than the 8,192 bytes for which InspIRCd kills.
#[test]
fn a_long_reply_is_cut_in_a_channel_and_paced_in_private() {
    let world = World::new(400);
    let master = world.serve();
    let irc = Inspircd::start(false);
    let [joe, ann] = ["joe", "ann"].map(|nick| Client::connect(irc.easy, nick));
    joe.join("#lab");
    let mut bots =
        [("bot", "failure"), ("two", "started"), ("three", "started")].map(|(nick, event)| {
            start_as(
                nick,
                &master.url(),
                irc.port,
                &format!("notify_events = {event}\n[channel #lab]"),
            )
        });
    bots.iter_mut().for_each(ready);
    let (channel, private, whole) = (
        Ear::new(&joe, "#lab"),
        Ear::new(&joe, "joe"),
        Ear::new(&ann, "ann"),
    );
    let mut names: Vec<String> = (1..=400).map(|n| format!("b{n}")).collect();
    names.sort();
    let since = Instant::now();
    joe.say("bot", "status all");
    ann.say("two", "status b1*5*");
    private.hear(&format!("<bot> {}: offline*", names[0]));
    let said = bots[0].log().matches(">> PRIVMSG joe").count() as u64;
    assert!(
        said <= 6 + since.elapsed().as_secs() / 2,
        "{said} lines in {:?}",
        since.elapsed()
    );
    world.end([(7, FAILURE)], now());
    channel.hear("<bot> b7 #1 failure: *");
    assert!(since.elapsed() < 15 * SECOND, "{:?}", since.elapsed());
    joe.say("#lab", "three: status all");
    names[..10]
        .iter()
        .for_each(|name| channel.hear(&format!("<three> {name}: offline*")));
    channel.hear("<three> … and 390 more, ask in private");
    let some = names
        .iter()
        .filter(|name| name.starts_with("b1") && name.contains('5')); // 20 of them
    some.for_each(|name| whole.hear(&format!("<two> {name}: offline*")));
    names[1..15]
        .iter()
        .for_each(|name| private.hear(&format!("<bot> {name}: *")));
    bots.iter()
        .for_each(|bot| assert!(!bot.log().contains("next try"), "{}", bot.log()));
}

#[test]
fn channels_that_put_it_out_or_keep_it_out_are_joined_in_the_end() {
    let irc = Ngircd::start(NgircdOptions::default());
    let proxy = Proxy::start(irc.port);
    let op = Client::connect(irc.port, "op");
    let refusals = [
        ("#limit", "+l 1", 471),
        ("#invite", "+i", 473),
        ("#ban", "+b *!*@*", 474),
        ("#key", "+k x", 475),
    ];
    for (channel, mode, _) in refusals {
        op.join(channel);
        op.send(&format!("MODE {channel} {mode}"));
        op.expect_contains(" MODE ");
    }
    op.join("#kick");
    let channels: String = refusals
        .iter()
        .map(|(channel, ..)| format!("[channel {channel}]\n"))
        .collect();
    let mut bot = start(AWAY, proxy.port, &format!("{channels}[channel #kick]"));
    bot.expect_log("IRC: joined #kick");
    refusals
        .iter()
        .for_each(|(_, _, numeric)| bot.expect_log(&format!("({numeric}); still trying")));
    // On a new connection it is refused again: what has not changed is not told again, and what has is.
    op.send("MODE #key -k+i x");
    op.expect_contains(" MODE #key ");
    proxy.cut();
    bot.expect_log_times("IRC: joined #kick", 2);
    ["471 bot #limit", "473 bot #invite", "474 bot #ban"]
        .iter()
        .for_each(|reply| bot.expect_log_times(reply, 2));
    bot.expect_log_times("IRC: cannot join #key: ", 2);
    for (channel, count) in [("#limit", 1), ("#invite", 1), ("#ban", 1), ("#key", 2)] {
        let told = bot
            .log()
            .matches(&format!("IRC: cannot join {channel}: "))
            .count();
        assert_eq!(told, count, "{channel}:\n{}", bot.log());
    }
    let since = Instant::now();
    op.send("KICK #kick bot :out with you");
    for lift in ["#limit -l", "#invite -i", "#ban -b *!*@*", "#key -i"] {
        op.send(&format!("MODE {lift}"));
    }
    bot.expect_log("IRC: op put us out of #kick: out with you; back in 30 s");
    op.skip();
    let mut joined: Vec<String> = (0..5)
        .map(|_| op.expect_within(":bot!~bot@", 2 * TIMEOUT))
        .collect();
    joined.sort();
    assert_eq!(
        joined,
        ["ban", "invite", "key", "kick", "limit"]
            .map(|name| format!(":bot!~bot@127.0.0.1 JOIN :#{name}"))
    );
    assert!(
        (25..36).contains(&since.elapsed().as_secs()),
        "{:?}",
        since.elapsed()
    );
    op.say("#kick", "bot: source");
    op.expect_contains(" PRIVMSG #kick :Buildbot: ");
}

#[test]
fn what_a_server_does_not_pass_on_is_told_later() {
    let (ngircd, inspircd) = (
        Ngircd::start(NgircdOptions::default()),
        Inspircd::start(false),
    );
    // Who comes first is an operator on ngIRCd only.
    for (port, is_op) in [(ngircd.port, true), (inspircd.port, false)] {
        let world = World::new(2);
        let master = world.serve();
        let op = Client::connect(port, "op");
        op.join("#lab");
        if is_op {
            op.send("MODE #lab +m");
            op.expect_contains(" MODE #lab ");
        }
        let mut bot = start(
            &master.url(),
            port,
            "notify_events = success\npm_to_nicks = joe\n[channel #lab]",
        );
        ready(&mut bot);
        world.end([(1, SUCCESS)], now());
        bot.expect_log("IRC: cannot speak to joe: ");
        if is_op {
            bot.expect_log("IRC: cannot speak to #lab: ");
            op.send("MODE #lab +v bot");
        }
        op.expect_contains(" PRIVMSG #lab :b1 #1 success");
        let joe = Client::connect(port, "joe");
        joe.join("#lab");
        joe.expect_contains(" PRIVMSG joe :b1 #1 success");
        world.end([(2, SUCCESS)], now());
        joe.expect_contains(" PRIVMSG joe :b2 #2 success");
        op.expect_contains(" PRIVMSG #lab :b2 #2 success");
        assert_eq!(
            (op.lines("#lab").len(), joe.lines("joe").len()),
            (2, 2),
            "{}",
            bot.log()
        );
    }
}

/// No channel shows who holds the nick, and the first slow retry would come after 15 s.
#[test]
fn a_nick_in_use_is_watched_by_monitor_and_both_are_answered_to() {
    let irc = Inspircd::start(false);
    let (holder, joe) = (
        Client::connect(irc.easy, "bot"),
        Client::connect(irc.easy, "joe"),
    );
    joe.join("#lab");
    let mut bot = start(AWAY, irc.port, "[channel #lab]");
    bot.expect_log("IRC: online as bot_");
    let since = Instant::now();
    joe.expect_contains(":bot_!bot@127.0.0.1 JOIN");
    for name in ["bot", "bot_"] {
        joe.say("#lab", &format!("{name}: source"));
        joe.expect_contains(":bot_!bot@127.0.0.1 PRIVMSG #lab :Buildbot: ");
    }
    holder.send("NICK robert");
    joe.expect_contains(":bot_!bot@127.0.0.1 NICK :bot");
    assert!(since.elapsed() < 14 * SECOND, "{:?}", since.elapsed());
    joe.say("#lab", "bot: source");
    joe.expect_contains(":bot!bot@127.0.0.1 PRIVMSG #lab :Buildbot: ");
}

/// Whichever comes first, one of the two needs the second address.
#[test]
fn every_address_of_a_host_is_tried() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let irc = FakeIrc::start_at(address, None);
        let hosts = "printf '127.0.0.1 localhost\\n::1 localhost\\n' > hosts; mount --bind hosts /etc/hosts";
        let _bot = Bot::start_within(
            hosts,
            BOT,
            &config(AWAY, "localhost", irc.port, "[channel #lab]"),
        );
        lab(&irc);
    }
}

#[test]
fn a_name_server_that_does_not_answer_freezes_nothing() {
    let pid = std::process::id();
    let server = format!("127.{}.{}.53", 64 + pid / 256 % 64, pid % 256);
    let dns = UdpSocket::bind((server.as_str(), 53))
        .expect("port 53 of a loopback address, for which one must be root");
    dns.set_read_timeout(Some(TIMEOUT)).unwrap();
    let setup = format!(
        "printf 'nameserver {server}\\noptions timeout:30\\n' > resolv.conf; mount --bind resolv.conf /etc/resolv.conf; \
         echo 'hosts: files dns' > nsswitch.conf; mount --bind nsswitch.conf /etc/nsswitch.conf"
    );
    let asked_for = |name: &str| {
        let mut query = [0; 512];
        let found = |query: &[u8]| {
            query
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        while !dns
            .recv(&mut query)
            .map(|size| found(&query[..size]))
            .expect("a query")
        {}
    };
    // One cannot find its IRC server …
    let mut bot = Bot::start_within(&setup, BOT, &config(AWAY, "irc.silent.test", 6667, ""));
    asked_for("silent");
    let since = Instant::now();
    bot.signal("HUP");
    bot.expect_log("configuration read again");
    assert_eq!(bot.terminate(), 0, "{}", bot.log());
    assert!(since.elapsed() < 10 * SECOND, "{:?}", since.elapsed());
    assert!(
        !bot.log().contains("name lookup"),
        "it was over:\n{}",
        bot.log()
    );
    // … and one its master.
    let irc = FakeIrc::start();
    let text = config(
        "http://master.lost.test:8010/",
        "127.0.0.1",
        irc.port,
        "[channel #lab]",
    );
    let mut bot = Bot::start_within(&setup, BOT, &text);
    let mut peer = lab(&irc);
    asked_for("lost");
    answers(&mut peer);
    assert_eq!(bot.terminate(), 0, "{}", bot.log());
    assert!(
        !bot.log().contains("does not answer"),
        "it was over:\n{}",
        bot.log()
    );
}

#[test]
fn banned_it_says_so_and_goes_on() {
    let extra = "[Operator]\nName = joe\nPassword = lab\n";
    let ngircd = Ngircd::start(NgircdOptions {
        extra,
        ..Default::default()
    });
    let extra = "<class name=\"all\" commands=\"*\"><type name=\"all\" classes=\"all\">\
                 <oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\"><insane ipmasks=\"yes\">";
    let inspircd = Inspircd::start_with(InspircdOptions {
        extra,
        ..Default::default()
    });
    let closed =
        "IRC: the server closes the connection: K-Line by \"joe\": \"no bots\"; next try in ";
    let banned = "IRC: the server closes the connection: Closing link: (bot@127.0.0.1) [";
    let cases = [
        (ngircd.port, ngircd.port, "KLINE bot!*@*", closed),
        (inspircd.easy, inspircd.port, "KLINE *bot@*", banned),
        (inspircd.easy, inspircd.port, "ZLINE 127.0.0.1", banned),
    ];
    for (easy, port, ban, sentence) in cases {
        let joe = Client::connect(easy, "joe");
        joe.send("OPER joe lab");
        joe.expect_contains(" 381 ");
        joe.join("#lab");
        let mut bot = start(AWAY, port, "[channel #lab]");
        joe.expect_contains("JOIN");
        joe.send(&format!("{ban} 600 :no bots"));
        bot.expect_log(sentence);
        bot.signal("HUP");
        bot.expect_log("configuration read again");
        joe.send(ban); // lifts it
    }
}

#[test]
fn a_nick_that_the_server_refuses_is_told() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    // One that is too long can be made shorter …
    let long = "buildbot-of-the-lab";
    let mut bot = start_as(long, AWAY, irc.port, "[channel #lab]");
    joe.expect_contains(":buildbot1!~buildbotofthelab@127.0.0.1 JOIN");
    bot.expect_log(&format!(
        "IRC: nick {long}: Nickname too long, max. 16 characters (432); trying {long}_"
    ));
    joe.say("#lab", &format!("{long}: source"));
    joe.expect_contains(":buildbot1!~buildbotofthelab@127.0.0.1 PRIVMSG #lab :Buildbot: ");
    // … but no other can be made of what it does not take at all.
    let mut bot = start_as("b\u{f6}t", AWAY, irc.port, "");
    assert_eq!(bot.wait_exit(), 78, "{}", bot.log());
    assert!(
        bot.log()
            .ends_with("\nIRC: nick b\u{f6}t9: Erroneous nickname (432)\n"),
        "{}",
        bot.log()
    );
}

/// A bot that remembers, and the fake server and master that it has.
struct Memory {
    world: World,
    irc: FakeIrc,
    bot: Bot,
    peer: FakePeer,
    _master: FakeHttp,
}

impl Memory {
    /// The state file is in a directory of its own, which may be mounted by `setup`.
    #[track_caller]
    fn start(setup: &str, more: &str) -> Memory {
        let (world, irc) = (World::new(60), FakeIrc::start());
        world.end([(1, SUCCESS)], now()); // old when the bot comes
        let master = world.serve();
        let more = format!(
            "notify_events = finished\n[channel #lab]\n{more}\n[bot]\nstate_file = memory/state"
        );
        let text = config(&master.url(), "127.0.0.1", irc.port, &more);
        let mut bot = if setup.is_empty() {
            let dir = scratch("memory");
            fs::create_dir(dir.join("memory")).unwrap();
            Bot::start_in(&dir, BOT, &text)
        } else {
            Bot::start_within(&format!("mkdir memory; {setup}"), BOT, &text)
        };
        let peer = lab(&irc);
        ready(&mut bot);
        Memory {
            world,
            irc,
            bot,
            peer,
            _master: master,
        }
    }

    /// Asks in #lab.
    #[track_caller]
    fn ask(&mut self, text: &str, answer: &str) {
        self.peer
            .send(&format!(":joe!j@h PRIVMSG #lab :bot: {text}"));
        assert_eq!(
            self.peer.expect("PRIVMSG"),
            format!("PRIVMSG #lab :{answer}")
        );
    }

    /// The next line is said in #lab and begins so.
    #[track_caller]
    fn hear(&mut self, start: &str) {
        let line = self.peer.expect("PRIVMSG");
        assert!(
            line.starts_with(&format!("PRIVMSG #lab :{start}")),
            "{start}: {line}"
        );
    }

    /// Says that what was said has arrived, and waits until that is on the disk.
    #[track_caller]
    fn confirm(&mut self) {
        let token = self.peer.expect("PING :told-").replace("PING :", "");
        self.peer
            .send(&format!(":fake.test PONG fake.test :{token}"));
        self.remembers("that it was told", |state| state["pending"] == json!([]));
    }

    /// The directory of the state file as the bot sees it.
    fn disk(&self) -> String {
        format!(
            "/proc/{}/root{}/memory",
            self.bot.pid(),
            self.bot.dir.display()
        )
    }

    /// Waits until the state file is as it should be.
    #[track_caller]
    fn remembers(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let file = self.disk() + "/state";
        wait_for(what, TIMEOUT, || wanted(&state(&file)?).then_some(()));
    }
}

/// A state file: a line with the version, and JSON.
fn state(file: impl AsRef<Path>) -> Option<Value> {
    serde_json::from_str(fs::read_to_string(file).ok()?.split_once('\n')?.1).ok()
}

#[test]
fn a_state_file_that_cannot_be_written_is_kept_trying() {
    let mut lost = Memory::start("", "");
    let [here, away] = ["memory", "elsewhere"].map(|name| lost.bot.dir.join(name));
    fs::rename(&here, &away).unwrap();
    lost.ask("notify on worker", "notify is on for finished worker");
    lost.bot.expect_log(
        "memory/state: No such file or directory (os error 2); trying again every 60 s",
    );

    // A disk of 64 KiB, of which someone else takes what is left.
    let mut full = Memory::start("mount -t tmpfs -o size=64k none memory", "");
    full.remembers("the state file", |state| state["events"] == json!({}));
    let filler = full.disk() + "/filler";
    fs::write(&filler, [0; 1 << 20]).expect_err("the disk should be full");
    full.ask("notify on worker", "notify is on for finished worker");
    full.bot
        .expect_log("memory/state: No space left on device (os error 28); trying again every 60 s");
    full.remembers("the old state", |state| state["events"] == json!({}));

    // They go on, and write all of it with the next change.
    for memory in [&mut lost, &mut full] {
        memory.world.end([(2, SUCCESS)], now());
        memory.hear("b2 #2 success");
    }
    fs::rename(&away, &here).unwrap();
    fs::remove_file(&filler).unwrap();
    for mut memory in [lost, full] {
        memory.ask(
            "notify on started",
            "notify is on for started finished worker",
        );
        memory.remembers("what was lost", |state| {
            state["events"]["#lab"] == json!(["finished", "started", "worker"])
        });
        assert_eq!(memory.bot.terminate(), 0, "{}", memory.bot.log());
    }
}

#[test]
fn killed_it_repeats_what_may_be_lost_and_skips_nothing() {
    let mut memory = Memory::start("", "");
    for n in [2, 5] {
        let [one, two, three] = [n, n + 1, n + 2].map(|n| format!("b{n} #{n} failure"));
        memory.world.end([(n, FAILURE)], now());
        memory.hear(&one);
        memory.confirm();
        // Nobody says whether the second has arrived, and the third ends while the bot is dead.
        memory.world.end([(n + 1, FAILURE)], now());
        memory.hear(&two);
        memory.remembers("that it has ended", |state| state["known"]["mark"] == n + 1);
        memory.bot.kill9();
        memory.world.end([(n + 2, FAILURE)], now());
        memory.bot.start_again();
        memory.peer = lab(&memory.irc);
        memory.hear(&two);
        memory.hear(&three);
        memory.confirm();
    }
}
/// Settings in a channel and in private, and a channel that it was sent out of.
#[test]
fn what_it_was_told_to_do_survives_a_kill() {
    let mut memory = Memory::start("", "[authorization]\nleave = everyone");
    memory.ask("mute 1h", "muted for 1h");
    memory.peer.send(":ann!a@h PRIVMSG bot :notify on failure");
    memory.peer.expect("PRIVMSG ann :notify is on for failure");
    memory.remembers("all of it", |state| {
        state["events"]["ann"] == json!(["failure"]) && state["muted"]["#lab"].is_i64()
    });
    memory.bot.kill9();
    memory.bot.start_again();
    memory.peer = lab(&memory.irc);
    memory.world.end([(2, SUCCESS), (3, FAILURE)], now());
    assert!(
        memory
            .peer
            .expect("PRIVMSG")
            .starts_with("PRIVMSG ann :b3 #3 failure: ")
    );
    memory.confirm();
    memory.ask("unmute", "unmuted");
    memory.world.end([(4, SUCCESS)], now());
    memory.hear("b4 #4 success");
    memory.confirm();
    // A configured channel that it was sent out of.
    memory.peer.send(":joe!j@h PRIVMSG #lab :bot: leave");
    memory.peer.expect("PART #lab");
    memory.remembers("that it left", |state| state["left"] == json!(["#lab"]));
    memory.bot.kill9();
    memory.bot.start_again();
    memory.peer = memory.irc.accept();
    memory.peer.register();
    assert_eq!(memory.peer.barrier(), ["CAP END"]);
    memory.world.end([(5, FAILURE)], now());
    assert!(
        memory
            .peer
            .expect("PRIVMSG")
            .starts_with("PRIVMSG ann :b5 #5 failure: ")
    );
}

#[test]
fn forced_builds_that_run_or_wait_are_told_after_a_kill() {
    let master = Master::start("forced", "gated('app')\n");
    let _worker = Worker::start(&master, "w1");
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let more = "[channel #lab]\n[authorization]\nforce = everyone\n[bot]\nstate_file = state";
    let mut bot = start(&master.url(), irc.port, more);
    ready(&mut bot);
    let (channel, private) = (Ear::new(&joe, "#lab"), Ear::new(&joe, "joe"));
    channel.ask("bot: force build app it runs", "<bot> forced app #1 *");
    master.wait_started("app", 1);
    joe.say("bot", "force build app it waits");
    private.hear("<bot> queued app: *");
    let file = bot.dir.join("state");
    let remembers = |watches| {
        wait_for("the watches, and nothing untold", TIMEOUT, || {
            let state = state(&file)?;
            (state["watches"].as_array()?.len() == watches && state["pending"] == json!([]))
                .then_some(())
        })
    };
    remembers(2);
    bot.kill9();
    master.release("app", SUCCESS);
    master.wait_started("app", 2);
    bot.start_again();
    channel.hear("<bot> app #1 success*");
    remembers(1);
    bot.kill9();
    master.release("app", FAILURE);
    master.wait_build("app", 2);
    bot.start_again();
    private.hear("<bot> app #2 failure*");
    channel.ask("bot: source", "<bot> Buildbot: *");
}

#[test]
fn older_than_catch_up_is_one_line_and_the_rest_is_told() {
    let mut memory = Memory::start("", "");
    memory.bot.terminate();
    let old = now() - 2 * 3600;
    memory
        .world
        .end([(2, SUCCESS), (3, FAILURE), (4, SUCCESS)], old);
    memory.world.end([(5, FAILURE), (6, SUCCESS)], now() - 1800);
    memory.bot.start_again();
    memory.peer = lab(&memory.irc);
    let missed = "PRIVMSG #lab :missed while away: failure b3 #3; success b2 #2, b4 #4";
    assert_eq!(memory.peer.expect("PRIVMSG"), missed);
    memory.hear("b5 #5 failure:");
    memory.hear("b6 #6 success,");
}

#[test]
fn a_server_that_is_stopped_is_left_and_come_back_to() {
    let world = World::new(9);
    let master = world.serve();
    let mut irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    joe.join("#lab");
    let mut bot = start(
        &master.url(),
        irc.port,
        "ping_timeout = 5\nnotify_events = finished\n[channel #lab]",
    );
    ready(&mut bot);
    let ear = Ear::new(&joe, "#lab");
    irc.process().signal("STOP");
    bot.expect_log("IRC: the server has gone silent and does not answer PING; next try in ");
    world.end([(1, FAILURE)], now());
    bot.expect_log_times(">> NICK bot", 2); // the kernel still takes connections for it
    irc.process().signal("CONT");
    bot.expect_log_times("IRC: joined #lab", 2);
    ear.hear("<bot> b1 #1 failure: *");
    ear.ask("bot: source", "<bot> Buildbot: *");
}

#[test]
fn asked_to_stop_it_says_for_three_seconds_what_waits() {
    let mut memory = Memory::start("", "");
    memory.peer.send(":joe!j@h PRIVMSG bot :status all");
    (0..5).for_each(|_| drop(memory.peer.expect("PRIVMSG joe :b")));
    let since = Instant::now();
    memory.bot.signal("TERM");
    memory.peer.expect("PRIVMSG joe :b");
    memory.peer.expect("QUIT :");
    assert_eq!(memory.bot.wait_exit(), 0, "{}", memory.bot.log());
    assert!(
        (2..8).contains(&since.elapsed().as_secs()),
        "{:?}",
        since.elapsed()
    );
}

#[test]
fn hup_changes_authority_and_channels_of_a_real_connection() {
    let irc = Ngircd::start(NgircdOptions::default());
    let joe = Client::connect(irc.port, "joe");
    ["#lab", "#new"]
        .iter()
        .for_each(|channel| joe.join(channel));
    let mut bot = start(AWAY, irc.port, "[channel #lab]");
    joe.expect_contains(":bot!~bot@127.0.0.1 JOIN :#lab");
    joe.say("#lab", "bot: source");
    joe.expect_contains(" PRIVMSG #lab :Buildbot: ");
    bot.configure(&config(
        AWAY,
        "127.0.0.1",
        irc.port,
        "[channel #new]\n[authorization]\nsource = nobody",
    ));
    bot.signal("HUP");
    let changes = [
        joe.expect_contains(":bot!~bot@127.0.0.1 "),
        joe.expect_contains(":bot!~bot@127.0.0.1 "),
    ]
    .concat();
    assert!(
        changes.contains("PART #lab") && changes.contains("JOIN :#new"),
        "{changes}"
    );
    joe.say("#new", "bot: source");
    joe.expect_contains(" PRIVMSG #new :sorry, joe, `source` is not for you");
    assert_eq!(
        bot.log().matches("IRC: connecting to ").count(),
        1,
        "{}",
        bot.log()
    );
}

/// The last wait that the log tells, in seconds.
fn next_try(bot: &Bot) -> u64 {
    let log = bot.log();
    log.rsplit("; next try in ")
        .next()
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .unwrap()
}

/// A ban is told with its reason, and not knocked at every few seconds, whichever words a server has for it.
#[test]
fn every_ban_is_told_with_its_reason_and_waited_for() {
    let extra = "[Operator]\nName = joe\nPassword = lab\n";
    let ngircd = Ngircd::start(NgircdOptions {
        extra,
        ..Default::default()
    });
    let extra = "<class name=\"all\" commands=\"*\"><type name=\"all\" classes=\"all\">\
                 <oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\">";
    let inspircd = Inspircd::start_with(InspircdOptions {
        extra,
        ..Default::default()
    });
    let mut wrong = Vec::new();
    for (easy, port, ban) in [
        (ngircd.port, ngircd.port, "bot!*@*"),
        (inspircd.easy, inspircd.port, "*bot@*"),
    ] {
        let joe = Client::connect(easy, "joe");
        joe.send("OPER joe lab");
        joe.expect_contains(" 381 ");
        joe.send(&format!("KLINE {ban} 600 :no bots"));
        joe.barrier();
        let mut bot = start(AWAY, port, "[channel #lab]");
        bot.expect_log("; next try in ");
        let told = bot
            .log()
            .lines()
            .any(|line| line.contains("no bots") && line.contains(" IRC: "));
        if !told || next_try(&bot) < 120 {
            wrong.push(
                bot.log()
                    .lines()
                    .filter(|line| line.contains("ERROR") || line.contains(" IRC: "))
                    .collect::<Vec<_>>()
                    .join("\n"),
            );
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n---\n"));
}

/// PONGs go at once, so they can fill what the kernel holds for a peer: 16 MB are enough for its usual limits. The wait
/// that is told begins when it is told.
#[test]
fn a_server_that_reads_nothing_is_left_for_as_long_as_is_said() {
    let irc = FakeIrc::start();
    let mut bot = start(AWAY, irc.port, "[channel #lab]");
    let mut peer = lab(&irc);
    let pings = format!("PING :{}\r\n", "x".repeat(400)).repeat(1000);
    (0..40).for_each(|_| peer.send_bytes(pings.as_bytes()));
    bot.expect_log("IRC: writing: timed out; next try in ");
    let wait = next_try(&bot);
    bot.expect_log_times("IRC: connecting to ", 2);
    // By its own clock, because such a log comes late.
    let log = bot.log();
    let seconds = |text: &str| {
        let line = log.lines().rev().find(|line| line.contains(text)).unwrap();
        let clock: Vec<u64> = line[11..19]
            .split(':')
            .map(|n| n.parse().unwrap())
            .collect();
        clock.iter().fold(0, |all, n| all * 60 + n)
    };
    let waited = (seconds("IRC: connecting to ") + 86_400 - seconds("; next try in ")) % 86_400;
    assert!(waited + 1 >= wait, "{waited} s rather than {wait} s");
    answers(&mut lab(&irc));
}

/// A peer that reads nothing must not keep the bot from stopping: three seconds for what waits, and some to spare.
#[test]
fn it_stops_in_time_though_the_server_reads_nothing() {
    let irc = FakeIrc::start();
    let mut bot = start(AWAY, irc.port, "[channel #lab]");
    let mut peer = lab(&irc);
    let pings = format!("PING :{}\r\n", "x".repeat(400)).repeat(500);
    std::thread::scope(|scope| {
        scope.spawn(|| (0..80).for_each(|_| peer.send_bytes(pings.as_bytes())));
        // It has said nothing for two seconds: it is stuck.
        let mut seen = (0, Instant::now());
        wait_for("a blocked write", 2 * TIMEOUT, || {
            let size = bot.log().len();
            if size != seen.0 {
                seen = (size, Instant::now());
            }
            (seen.1.elapsed() > 2 * SECOND).then_some(())
        });
        let since = Instant::now();
        bot.signal("TERM");
        let code = wait_for("the end", 3 * TIMEOUT, || bot.try_exit());
        assert!(
            code == 0 && since.elapsed() < 6 * SECOND,
            "exit {code} after {:?}",
            since.elapsed()
        );
    });
}
