//! What makes other bots fall silent: floods, kicks, bans, lost connections, a full disk, a kill. Real servers where
//! possible; fake ones where the moment must be exact.

/// Takes minutes, in which the other tests can run.
mod chaos;
mod common;

use common::{
    ANNOUNCING, Bot, Client, FAILURE, FakeIrc, FakeMaster, FakePeer, InspircdOptions, Lab,
    Listener, NgircdOptions, POLLING, Proxy, SUCCESS, TIMEOUT, read_state, scratch, wait_for,
};
use serde_json::{Value, json};
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

const SECOND: Duration = Duration::from_secs(1);

/// Seconds since the epoch.
fn now() -> i64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}

/// The builds that lines of the bot name, `b7 #7`, in order.
fn named(lines: &[String]) -> Vec<String> {
    let is_number = |word: &str, sign: char| {
        let digits = word.strip_prefix(sign);
        digits.is_some_and(|digits| digits.parse::<u32>().is_ok())
    };
    let mut found = Vec::new();
    for line in lines.iter().filter(|line| line.starts_with("<bot> ")) {
        let words: Vec<&str> = line.split([' ', ',', ';']).collect();
        for pair in words.windows(2) {
            if is_number(pair[0], 'b') && is_number(pair[1], '#') {
                found.push(pair.join(" "));
            }
        }
    }
    found
}

/// Waits until fifty builds are named on both servers, within ten seconds.
#[track_caller]
fn wait_fifty(audiences: &[Audience; 2], since: Instant) {
    wait_for("fifty builds", 2 * TIMEOUT, || {
        let lines = audiences.each_ref().map(|one| one.joe.lines("#lab"));
        let complete = lines.iter().all(|lines| named(lines).len() >= 50);
        // Ten seconds where nothing else runs; pacing.rs looks at that.
        let in_time = since.elapsed() < 30 * SECOND;
        assert!(complete || in_time, "heard in thirty seconds: {lines:#?}");
        complete.then_some(())
    });
}

/// An IRC server with its default limits, joe in #lab there, and a bot that announces what ends.
struct Audience {
    _lab: Lab,
    joe: Client,
    bot: Bot,
}

impl Audience {
    /// One on each kind of server.
    #[track_caller]
    fn on_both_servers(master_url: &str) -> [Audience; 2] {
        let ngircd = Lab::new().with_ngircd_options(NgircdOptions {
            penalties: true,
            ..NgircdOptions::default()
        });
        let inspircd = Lab::new().with_inspircd();
        [ngircd, inspircd].map(|lab| Audience::start(lab, master_url))
    }

    #[track_caller]
    fn start(mut lab: Lab, master_url: &str) -> Audience {
        lab.master_url = master_url.to_string();
        let joe = lab.person("joe", &["#lab"]);
        let bot = lab.start_ready("bot", POLLING, ANNOUNCING);
        Audience {
            _lab: lab,
            joe,
            bot,
        }
    }

    /// All fifty builds are named once, failures before the rest in each line, and the bot stays connected. Returns the
    /// first line.
    #[track_caller]
    fn check_fifty(&self) -> String {
        let mut lines = self.joe.lines("#lab");
        let mut names = named(&lines);
        assert_eq!(names.len(), 50, "{lines:#?}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 50, "{lines:#?}");
        for line in &lines {
            let failure = line.find("failure b");
            let success = line.find("success b");
            if failure.is_some() && success.is_some() {
                assert!(failure < success, "{line}");
            }
        }
        self.joe.say("#lab", "bot: source");
        self.joe.expect_contains("Buildbot: https://buildbot.net/");
        self.joe.expect_none(" QUIT ");
        self.bot.assert_not_logged("next try");
        lines.swap_remove(0)
    }
}

#[test]
fn fifty_builds_that_end_together_are_told_failures_first() {
    let master = FakeMaster::new(50);
    let server = master.serve();
    let audiences = Audience::on_both_servers(&server.url());
    let result = |n| if n % 5 == 0 { FAILURE } else { SUCCESS };
    master.end((1..=50).map(|n| (n, result(n))), now());
    wait_fifty(&audiences, Instant::now());
    let failures: Vec<String> = (1..=10).map(|n| format!("b{0} #{0}", n * 5)).collect();
    let failures = failures.join(", ");
    let start = format!("<bot> meanwhile: failure {failures}; success b1 #1, ");
    for audience in audiences {
        let first = audience.check_fifty();
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
    let lab = Lab::new().with_master("fifty", config).with_worker("w1");
    let audiences = Audience::on_both_servers(&lab.master_url);
    let master = lab.master();
    let all = json!({}); // without a builder it starts all
    master.post("/api/v2/forceschedulers/force", "force", all);
    master.wait_count("complete=false&state_string=building", 50);
    fs::write(master.dir.join("go"), "").unwrap();
    master.wait_count("complete=true", 50);
    wait_fifty(&audiences, Instant::now());
    for audience in audiences {
        audience.check_fifty();
    }
}

/// All of 400 lines take 13 minutes, so only the first of them are awaited, and a shorter reply to its end. At once they
/// would be more than the 8,192 bytes for which InspIRCd closes a connection.
#[test]
fn a_long_reply_is_cut_in_a_channel_and_paced_in_private() {
    let master = FakeMaster::new(400);
    let lab = Lab::new().with_fake_master(master.serve()).with_inspircd();
    let joe = lab.person("joe", &["#lab"]);
    let ann = lab.person("ann", &[]);
    let failures = "pacing = safe\nnotify_events = failure\n[channel #lab]";
    let starts = "pacing = safe\nnotify_events = started\n[channel #lab]";
    let bot = lab.start_ready("bot", POLLING, failures);
    let two = lab.start_ready("two", POLLING, starts);
    let three = lab.start_ready("three", POLLING, starts);
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    let shorter = Listener::new(&ann, "ann");
    let mut names: Vec<String> = (1..=400).map(|n| format!("b{n}")).collect();
    names.sort();
    let since = Instant::now();
    joe.say("bot", "status all");
    ann.say("two", "status b1*5*");
    private.hear(&format!("<bot> {}: offline*", names[0]));
    let lines = bot.log().matches(">> PRIVMSG joe").count() as u64;
    let elapsed = since.elapsed();
    let allowed = 6 + elapsed.as_secs() / 2;
    assert!(lines <= allowed, "{lines} lines in {elapsed:?}");
    master.end([(7, FAILURE)], now());
    channel.hear("<bot> b7 #1 failure: *");
    let elapsed = since.elapsed();
    assert!(elapsed < 15 * SECOND, "{elapsed:?}");
    joe.say("#lab", "three: status all");
    for name in &names[..10] {
        channel.hear(&format!("<three> {name}: offline*"));
    }
    channel.hear("<three> … and 390 more, ask in private");
    let matching = |name: &&String| name.starts_with("b1") && name.contains('5');
    for name in names.iter().filter(matching) {
        shorter.hear(&format!("<two> {name}: offline*"));
    }
    for name in &names[1..15] {
        private.hear(&format!("<bot> {name}: *"));
    }
    for bot in [bot, two, three] {
        bot.assert_not_logged("next try");
    }
}

/// A channel, the mode that keeps the bot out, the numeric that says so, and the mode that lets it in.
const CLOSED_CHANNELS: [(&str, &str, &str, &str); 4] = [
    ("#limit", "+l 1", "471", "-l"),
    ("#invite", "+i", "473", "-i"),
    ("#ban", "+b *!*@*", "474", "-b *!*@*"),
    ("#key", "+k x", "475", "-i"),
];

#[test]
fn channels_that_put_it_out_or_keep_it_out_are_joined_in_the_end() {
    let mut lab = Lab::new().with_ngircd();
    let proxy = Proxy::start(lab.irc_port);
    lab.irc_port = proxy.port;
    let op = lab.person("op", &["#kick"]);
    let mut config = String::new();
    for (channel, close, ..) in CLOSED_CHANNELS {
        op.join(channel);
        op.set_mode(channel, close);
        config += &format!("[channel {channel}]\n");
    }
    let mut bot = lab.start(&format!("{config}[channel #kick]"));
    bot.expect_log("IRC: joined #kick");
    for (_, _, numeric, _) in CLOSED_CHANNELS {
        bot.expect_log(&format!("({numeric}); still trying"));
    }
    // On a new connection it is refused again: the same reason is not logged again, another one is.
    op.set_mode("#key", "-k+i x");
    proxy.cut();
    bot.expect_log_times("IRC: joined #kick", 2);
    for reply in ["471 bot #limit", "473 bot #invite", "474 bot #ban"] {
        bot.expect_log_times(reply, 2);
    }
    bot.expect_log_times("IRC: cannot join #key: ", 2);
    for (channel, times) in [("#limit", 1), ("#invite", 1), ("#ban", 1), ("#key", 2)] {
        bot.assert_logged(&format!("IRC: cannot join {channel}: "), times);
    }
    let since = Instant::now();
    op.send("KICK #kick bot :out with you");
    for (channel, _, _, open) in CLOSED_CHANNELS {
        op.send(&format!("MODE {channel} {open}"));
    }
    bot.expect_log("IRC: kicked from #kick by op: out with you; back in 30 s");
    op.skip();
    let mut joined = Vec::new();
    for _ in 0..5 {
        joined.push(op.expect_within(":bot!~bot@", 2 * TIMEOUT));
    }
    joined.sort();
    let channels = ["ban", "invite", "key", "kick", "limit"];
    let expected = channels.map(|name| format!(":bot!~bot@127.0.0.1 JOIN :#{name}"));
    assert_eq!(joined, expected);
    let seconds = since.elapsed().as_secs();
    assert!((25..36).contains(&seconds), "after {seconds} s");
    op.say("#kick", "bot: source");
    op.expect_contains(" PRIVMSG #kick :Buildbot: ");
}

/// Who comes first is an operator of a channel on ngIRCd only, so only there the channel can be moderated.
#[test]
fn what_a_server_does_not_pass_on_is_told_later() {
    let ngircd = Lab::new().with_ngircd();
    let inspircd = Lab::new().with_inspircd();
    for (lab, is_moderated) in [(ngircd, true), (inspircd, false)] {
        let master = FakeMaster::new(2);
        let lab = lab.with_fake_master(master.serve());
        let op = lab.person("op", &["#lab"]);
        if is_moderated {
            op.set_mode("#lab", "+m");
        }
        let config = "notify_events = success\npm_to_nicks = joe\n[channel #lab]";
        let mut bot = lab.start_ready("bot", POLLING, config);
        master.end([(1, SUCCESS)], now());
        bot.expect_log("IRC: cannot speak to joe: ");
        if is_moderated {
            bot.expect_log("IRC: cannot speak to #lab: ");
            op.send("MODE #lab +v bot");
        }
        op.expect_contains(" PRIVMSG #lab :b1 #1 success");
        let joe = lab.person("joe", &["#lab"]);
        joe.expect_contains(" PRIVMSG joe :b1 #1 success");
        master.end([(2, SUCCESS)], now());
        joe.expect_contains(" PRIVMSG joe :b2 #2 success");
        op.expect_contains(" PRIVMSG #lab :b2 #2 success");
        assert_eq!(op.lines("#lab").len(), 2, "{:?}", op.lines("#lab"));
        assert_eq!(joe.lines("joe").len(), 2, "{:?}", joe.lines("joe"));
    }
}

/// No channel shows who holds the nick, and the first slow retry would come after 15 s.
#[test]
fn a_nick_in_use_is_watched_by_monitor_and_both_are_answered_to() {
    let lab = Lab::new().with_inspircd();
    let holder = lab.person("bot", &[]);
    let joe = lab.person("joe", &["#lab"]);
    let mut bot = lab.start("[channel #lab]");
    bot.expect_log("IRC: online as bot_");
    let since = Instant::now();
    joe.expect_contains(":bot_!bot@127.0.0.1 JOIN");
    for name in ["bot", "bot_"] {
        joe.say("#lab", &format!("{name}: source"));
        joe.expect_contains(":bot_!bot@127.0.0.1 PRIVMSG #lab :Buildbot: ");
    }
    holder.send("NICK robert");
    joe.expect_contains(":bot_!bot@127.0.0.1 NICK :bot");
    let elapsed = since.elapsed();
    assert!(elapsed < 14 * SECOND, "{elapsed:?}");
    joe.say("#lab", "bot: source");
    joe.expect_contains(":bot!bot@127.0.0.1 PRIVMSG #lab :Buildbot: ");
}

/// Whichever address comes first, one of the two servers needs the second one.
#[test]
fn every_address_of_a_host_is_tried() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let server = FakeIrc::start_at(address, None);
        let lab = Lab::new().with_running_fake_irc(server);
        let hosts = "printf '127.0.0.1 localhost\\n::1 localhost\\n' > hosts; mount --bind hosts /etc/hosts";
        let config = lab.config("bot", "", "[channel #lab]");
        let config = config.replace("host = 127.0.0.1", "host = localhost");
        let _bot = Bot::start_within(hosts, &config);
        lab.accept();
    }
}

/// A name server that takes queries and never answers.
struct SilentDns {
    socket: UdpSocket,
    /// Shell that makes it the only one of a mount namespace.
    setup: String,
}

impl SilentDns {
    #[track_caller]
    fn start() -> SilentDns {
        let pid = std::process::id();
        let address = format!("127.{}.{}.53", 64 + pid / 256 % 64, pid % 256);
        let socket = UdpSocket::bind((address.as_str(), 53));
        let socket = socket.expect("port 53 of a loopback address, which only root may bind");
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        let setup = format!(
            "printf 'nameserver {address}\\noptions timeout:30\\n' > resolv.conf; mount --bind resolv.conf /etc/resolv.conf; \
             echo 'hosts: files dns' > nsswitch.conf; mount --bind nsswitch.conf /etc/nsswitch.conf"
        );
        SilentDns { socket, setup }
    }

    /// Waits for a query whose name has this label.
    #[track_caller]
    fn expect(&self, label: &str) {
        let mut query = [0; 512];
        loop {
            let size = self.socket.recv(&mut query).expect("a query");
            let mut parts = query[..size].windows(label.len());
            if parts.any(|part| part == label.as_bytes()) {
                return;
            }
        }
    }
}

#[test]
fn a_name_server_that_does_not_answer_freezes_nothing() {
    let dns = SilentDns::start();
    // One bot cannot find its IRC server …
    let config = Lab::new().config("bot", "", "");
    let config = config.replace("host = 127.0.0.1", "host = irc.silent.test");
    let mut bot = Bot::start_within(&dns.setup, &config);
    dns.expect("silent");
    let since = Instant::now();
    bot.reload();
    bot.stop();
    let elapsed = since.elapsed();
    assert!(elapsed < 10 * SECOND, "{elapsed:?}");
    bot.assert_not_logged("name lookup"); // the query was still open
    // … and one its master.
    let mut lab = Lab::new().with_fake_irc();
    lab.master_url = "http://master.lost.test:8010/".to_string();
    let config = lab.config("bot", "", "[channel #lab]");
    let mut bot = Bot::start_within(&dns.setup, &config);
    let mut peer = lab.accept();
    dns.expect("lost");
    peer.expect_alive();
    bot.stop();
    bot.assert_not_logged("does not answer"); // the query was still open
}

/// ngIRCd with the operator joe, whose password is `lab`.
#[track_caller]
fn ngircd_with_operator() -> Lab {
    Lab::new().with_ngircd_options(NgircdOptions {
        extra: "[Operator]\nName = joe\nPassword = lab\n",
        ..NgircdOptions::default()
    })
}

/// InspIRCd with the same operator.
#[track_caller]
fn inspircd_with_operator() -> Lab {
    Lab::new().with_inspircd_options(InspircdOptions {
        extra: "<class name=\"all\" commands=\"*\"><type name=\"all\" classes=\"all\">\
                <oper name=\"joe\" password=\"lab\" host=\"*\" type=\"all\"><insane ipmasks=\"yes\">",
        ..InspircdOptions::default()
    })
}

#[test]
fn banned_it_says_so_and_goes_on() {
    let ngircd = ngircd_with_operator();
    let inspircd = inspircd_with_operator();
    let closed =
        "IRC: the server closes the connection: K-Line by \"joe\": \"no bots\"; next try in ";
    let banned = "IRC: the server closes the connection: Closing link: (bot@127.0.0.1) [";
    let cases = [
        (&ngircd, "KLINE bot!*@*", closed),
        (&inspircd, "KLINE *bot@*", banned),
        (&inspircd, "ZLINE 127.0.0.1", banned),
    ];
    for (lab, ban, sentence) in cases {
        let joe = lab.person("joe", &[]);
        joe.become_operator("lab");
        joe.join("#lab");
        let mut bot = lab.start("[channel #lab]");
        joe.expect_contains("JOIN");
        joe.send(&format!("{ban} 600 :no bots"));
        bot.expect_log(sentence);
        bot.reload();
        assert_eq!(bot.try_exit(), None);
        joe.send(ban); // lifts it
    }
}

#[test]
fn a_nick_that_is_too_long_is_made_shorter() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let nick = "buildbot-of-the-lab";
    let mut bot = lab.start_as(nick, "", "[channel #lab]");
    joe.expect_contains(":buildbot1!~buildbotofthelab@127.0.0.1 JOIN");
    bot.expect_log(&format!(
        "IRC: nick {nick}: Nickname too long, max. 16 characters (432); trying {nick}_"
    ));
    joe.say("#lab", &format!("{nick}: source"));
    joe.expect_contains(":buildbot1!~buildbotofthelab@127.0.0.1 PRIVMSG #lab :Buildbot: ");
}

/// No other nick can be made of one with a letter that the server does not take.
#[test]
fn a_nick_that_the_server_does_not_take_ends_the_bot() {
    let lab = Lab::new().with_ngircd();
    let mut bot = lab.start_as("b\u{f6}t", "", "");
    bot.expect_exit(78);
    let log = bot.log();
    let last = "\nIRC: nick b\u{f6}t9: Erroneous nickname (432)\n";
    assert!(log.ends_with(last), "{log}");
}

/// A bot with a state file, on a fake IRC server and a fake master.
struct Keeper {
    master: FakeMaster,
    lab: Lab,
    bot: Bot,
    peer: FakePeer,
}

impl Keeper {
    #[track_caller]
    fn start() -> Keeper {
        Keeper::start_with("")
    }

    /// With more sections in the configuration.
    #[track_caller]
    fn start_with(sections: &str) -> Keeper {
        let dir = scratch("keeper");
        fs::create_dir(dir.join("states")).unwrap();
        Keeper::launch(sections, |config| Bot::start_in(&dir, config))
    }

    /// With its state file in a directory that this shell mounts.
    #[track_caller]
    fn start_mounted(mount: &str) -> Keeper {
        let setup = format!("mkdir states; {mount}");
        Keeper::launch("", |config| Bot::start_within(&setup, config))
    }

    #[track_caller]
    fn launch(sections: &str, start: impl Fn(&str) -> Bot) -> Keeper {
        let master = FakeMaster::new(60);
        master.end([(1, SUCCESS)], now()); // old when the bot comes
        let lab = Lab::new().with_fake_master(master.serve()).with_fake_irc();
        let irc = format!("{ANNOUNCING}\n{sections}\n[bot]\nstate_file = states/state");
        let mut bot = start(&lab.config("bot", POLLING, &irc));
        let peer = lab.accept();
        bot.wait_ready();
        Keeper {
            master,
            lab,
            bot,
            peer,
        }
    }

    /// Starts the bot again and takes it into #lab.
    #[track_caller]
    fn start_again(&mut self) {
        self.bot.start_again();
        self.peer = self.lab.accept();
    }

    /// Asks in #lab.
    #[track_caller]
    fn ask(&mut self, text: &str, answer: &str) {
        self.peer.say("#lab", &format!("bot: {text}"));
        assert_eq!(
            self.peer.expect("PRIVMSG"),
            format!("PRIVMSG #lab :{answer}")
        );
    }

    /// The next line is said in #lab and begins like this.
    #[track_caller]
    fn hear(&mut self, start: &str) {
        self.peer.expect_message("#lab", start);
    }

    /// Answers the PING that confirms what was said, and waits until that is on the disk.
    #[track_caller]
    fn confirm(&mut self) {
        self.answer_ping();
        self.wait_state("nothing pending", |state| state["pending"] == json!([]));
    }

    /// Answers the PING that confirms what was said.
    #[track_caller]
    fn answer_ping(&mut self) {
        let line = self.peer.expect("PING :");
        let token = line.replace("PING :", "");
        self.peer
            .send(&format!(":fake.test PONG fake.test :{token}"));
    }

    /// The directory of the state file as the bot sees it.
    fn disk(&self) -> PathBuf {
        let root = format!("/proc/{}/root", self.bot.pid());
        let dir = self.bot.dir.strip_prefix("/").unwrap();
        Path::new(&root).join(dir).join("states")
    }

    /// Waits until the state file is as the closure wants it.
    #[track_caller]
    fn wait_state(&self, what: &str, wanted: impl Fn(&Value) -> bool) {
        let file = self.disk().join("state");
        wait_for(what, TIMEOUT, || wanted(&read_state(&file)?).then_some(()));
    }
}

const RETRYING: &str = "; trying again every 60 s";

/// The bot of `keeper` announces a build although it cannot write its state, and writes all of it with the next change.
#[track_caller]
fn expect_recovery(mut keeper: Keeper, repair: impl Fn()) {
    keeper.master.end([(2, SUCCESS)], now());
    keeper.hear("b2 #2 success");
    assert_eq!(keeper.bot.try_exit(), None);
    repair();
    keeper.ask(
        "notify on started",
        "notify is on for started finished worker",
    );
    let events = json!(["started", "finished", "worker"]);
    keeper.wait_state("all events", |state| state["events"]["#lab"] == events);
    keeper.bot.stop();
}

#[test]
fn a_state_file_whose_directory_is_gone_is_kept_trying() {
    let mut keeper = Keeper::start();
    let here = keeper.bot.dir.join("states");
    let away = keeper.bot.dir.join("elsewhere");
    fs::rename(&here, &away).unwrap();
    keeper.ask("notify on worker", "notify is on for finished worker");
    keeper.bot.expect_log(&format!(
        "states/state: No such file or directory (os error 2){RETRYING}"
    ));
    expect_recovery(keeper, || fs::rename(&away, &here).unwrap());
}

/// On a disk of 64 KiB, of which another file takes what is left.
#[test]
fn a_state_file_on_a_full_disk_is_kept_trying() {
    let mut keeper = Keeper::start_mounted("mount -t tmpfs -o size=64k none states");
    keeper.wait_state("no events", |state| state["events"] == json!({}));
    let filler = keeper.disk().join("filler");
    fs::write(&filler, [0; 1 << 20]).expect_err("the disk should be full");
    keeper.ask("notify on worker", "notify is on for finished worker");
    keeper.bot.expect_log(&format!(
        "states/state: No space left on device (os error 28){RETRYING}"
    ));
    keeper.wait_state("the old events", |state| state["events"] == json!({}));
    expect_recovery(keeper, || fs::remove_file(&filler).unwrap());
}

#[test]
fn killed_it_repeats_what_may_be_lost_and_skips_nothing() {
    let mut keeper = Keeper::start();
    for n in [2, 5] {
        let line = |n| format!("b{n} #{n} failure");
        keeper.master.end([(n, FAILURE)], now());
        keeper.hear(&line(n));
        keeper.confirm();
        // The second is not confirmed, and the third ends while the bot is dead.
        keeper.master.end([(n + 1, FAILURE)], now());
        keeper.hear(&line(n + 1));
        keeper.wait_state("the second build", |state| {
            state["cursor"]["last_build_id"] == n + 1
        });
        keeper.bot.kill9();
        keeper.master.end([(n + 2, FAILURE)], now());
        keeper.start_again();
        keeper.hear(&line(n + 1));
        keeper.hear(&line(n + 2));
        keeper.confirm();
    }
}

/// Settings in a channel and in private, and a configured channel that the bot was told to leave.
#[test]
fn what_it_was_told_to_do_survives_a_kill() {
    let mut keeper = Keeper::start_with("[authorization]\nleave = everyone");
    keeper.ask("mute 1h", "muted for 1h");
    keeper.peer.send(":ann!a@h PRIVMSG bot :notify on failure");
    keeper.peer.expect("PRIVMSG ann :notify is on for failure");
    keeper.wait_state("both settings", |state| {
        state["events"]["ann"] == json!(["failure"]) && state["muted"]["#lab"].is_i64()
    });
    keeper.bot.kill9();
    keeper.start_again();
    keeper.master.end([(2, SUCCESS), (3, FAILURE)], now());
    keeper.peer.expect_message("ann", "b3 #3 failure: ");
    keeper.answer_ping();
    // What a mute holds back survives a kill, too.
    keeper.wait_state("two builds for the channel", |state| {
        state["pending"]
            .as_array()
            .is_some_and(|list| list.len() == 2)
    });
    keeper.bot.kill9();
    keeper.start_again();
    keeper.ask("unmute", "unmuted");
    keeper.hear("while muted: failure b3 #3; success b2 #2 http://m/#/builders/3/builds/3");
    keeper.confirm();
    keeper.master.end([(4, SUCCESS)], now());
    keeper.hear("b4 #4 success");
    keeper.confirm();
    // The configured channel.
    keeper.peer.say("#lab", "bot: leave");
    keeper.peer.expect("PART #lab");
    keeper.wait_state("the channel it left", |state| {
        state["left"] == json!(["#lab"])
    });
    keeper.bot.kill9();
    keeper.bot.start_again();
    keeper.peer = keeper.lab.fake_irc().accept();
    keeper.peer.register();
    assert_eq!(keeper.peer.barrier(), ["CAP END"]);
    keeper.master.end([(5, FAILURE)], now());
    keeper.peer.expect_message("ann", "b5 #5 failure: ");
}

#[test]
fn forced_builds_that_run_or_wait_are_told_after_a_kill() {
    let lab = Lab::new()
        .with_master("forced", "gated('app')\n")
        .with_worker("w1")
        .with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let config = "[channel #lab]\n[authorization]\nforce = everyone\n[bot]\nstate_file = state";
    let mut bot = lab.start_ready("bot", POLLING, config);
    let master = lab.master();
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    channel.ask("bot: force build app it runs", "<bot> forced app #1 *");
    master.wait_started("app", 1);
    joe.say("bot", "force build app it waits");
    private.hear("<bot> queued app: *");
    let wait_watches = |bot: &Bot, count: usize| {
        bot.wait_state("the watches, and nothing pending", |state| {
            let watches = state["watches"].as_array().unwrap();
            watches.len() == count && state["pending"] == json!([])
        });
    };
    wait_watches(&bot, 2);
    bot.kill9();
    master.release("app", SUCCESS);
    master.wait_started("app", 2);
    bot.start_again();
    channel.hear("<bot> app #1 success*");
    wait_watches(&bot, 1);
    bot.kill9();
    master.release("app", FAILURE);
    master.wait_build("app", 2);
    bot.start_again();
    private.hear("<bot> app #2 failure*");
    channel.ask("bot: source", "<bot> Buildbot: *");
}

#[test]
fn older_than_catch_up_is_one_line_and_the_rest_is_told() {
    let mut keeper = Keeper::start();
    keeper.bot.terminate();
    let old = now() - 2 * 3600;
    let ends = [(2, SUCCESS), (3, FAILURE), (4, SUCCESS)];
    keeper.master.end(ends, old);
    keeper
        .master
        .end([(5, FAILURE), (6, SUCCESS)], now() - 1800);
    keeper.start_again();
    let missed = "PRIVMSG #lab :missed while away: failure b3 #3; success b2 #2, b4 #4 \
                  http://m/#/builders/3/builds/3";
    assert_eq!(keeper.peer.expect("PRIVMSG"), missed);
    keeper.hear("b5 #5 failure:");
    keeper.hear("b6 #6 success,");
}

#[test]
fn a_server_that_is_stopped_is_left_and_come_back_to() {
    let master = FakeMaster::new(9);
    let mut lab = Lab::new().with_fake_master(master.serve()).with_ngircd();
    let joe = lab.person("joe", &["#lab"]);
    let config = format!("ping_timeout = 5\n{ANNOUNCING}");
    let mut bot = lab.start_ready("bot", POLLING, &config);
    let channel = Listener::new(&joe, "#lab");
    lab.ngircd().process().signal("STOP");
    bot.expect_log("IRC: the server has gone silent and does not answer PING; next try in ");
    master.end([(1, FAILURE)], now());
    bot.expect_log_times(">> NICK bot", 2); // the kernel still accepts for the server
    lab.ngircd().process().signal("CONT");
    bot.expect_log_times("IRC: joined #lab", 2);
    channel.hear("<bot> b1 #1 failure: *");
    channel.ask("bot: source", "<bot> Buildbot: *");
}

#[test]
fn asked_to_stop_it_says_for_three_seconds_what_waits() {
    let mut keeper = Keeper::start();
    keeper.peer.say("bot", "status all");
    for _ in 0..5 {
        keeper.peer.expect("PRIVMSG joe :b");
    }
    let since = Instant::now();
    keeper.bot.signal("TERM");
    keeper.peer.expect("PRIVMSG joe :b");
    keeper.peer.expect("QUIT :");
    keeper.bot.expect_exit(0);
    let seconds = since.elapsed().as_secs();
    assert!((2..8).contains(&seconds), "{seconds} s");
}

#[test]
fn hup_changes_authority_and_channels_of_a_real_connection() {
    let lab = Lab::new().with_ngircd();
    let joe = lab.person("joe", &["#lab", "#new"]);
    let mut bot = lab.start("[channel #lab]");
    joe.expect_contains(":bot!~bot@127.0.0.1 JOIN :#lab");
    joe.say("#lab", "bot: source");
    joe.expect_contains(" PRIVMSG #lab :Buildbot: ");
    let next = "[channel #new]\n[authorization]\nsource = nobody";
    bot.configure(&lab.config("bot", "", next));
    bot.signal("HUP");
    let changes = [
        joe.expect_contains(":bot!~bot@127.0.0.1 "),
        joe.expect_contains(":bot!~bot@127.0.0.1 "),
    ]
    .concat();
    assert!(changes.contains("PART #lab"), "{changes}");
    assert!(changes.contains("JOIN :#new"), "{changes}");
    joe.say("#new", "bot: source");
    joe.expect_contains(" PRIVMSG #new :sorry, joe, you may not use `source`");
    bot.assert_logged("IRC: connecting to ", 1);
}

/// The last wait that the log announces, in seconds.
fn next_try(log: &str) -> u64 {
    let (_, rest) = log.rsplit_once("; next try in ").unwrap();
    let (seconds, _) = rest.split_once(' ').unwrap();
    seconds.parse().unwrap()
}

/// The reason of a ban is logged, and the bot does not try again every few seconds, whichever words a server has.
#[test]
fn every_ban_is_told_with_its_reason_and_waited_for() {
    for (lab, mask) in [
        (ngircd_with_operator(), "bot!*@*"),
        (inspircd_with_operator(), "*bot@*"),
    ] {
        let joe = lab.person("joe", &[]);
        joe.become_operator("lab");
        joe.send(&format!("KLINE {mask} 600 :no bots"));
        joe.barrier();
        let mut bot = lab.start("[channel #lab]");
        bot.expect_log("; next try in ");
        let log = bot.log();
        let mut lines = log.lines().filter(|line| line.contains(" IRC: "));
        assert!(lines.any(|line| line.contains("no bots")), "{log}");
        assert!(next_try(&log) >= 120, "{log}");
    }
}

/// Seconds of the day at which the last line with this text was logged, by the bot's clock: the test may read a line
/// later.
fn logged_at(log: &str, text: &str) -> u64 {
    let line = log.lines().rev().find(|line| line.contains(text)).unwrap();
    let clock = line[11..19].split(':');
    clock.fold(0, |all, number| all * 60 + number.parse::<u64>().unwrap())
}

/// PONGs are not paced, so they fill what the kernel holds for a peer: 16 MB are enough for its usual limits. The wait
/// begins when it is logged.
#[test]
fn a_server_that_reads_nothing_is_left_for_as_long_as_is_said() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.accept();
    let pings = format!("PING :{}\r\n", "x".repeat(400)).repeat(1000);
    for _ in 0..40 {
        peer.send_bytes(pings.as_bytes());
    }
    bot.expect_log("IRC: writing: the server takes nothing any more; next try in ");
    let wait = next_try(&bot.log());
    bot.expect_log_times("IRC: connecting to ", 2);
    let log = bot.log();
    let left = logged_at(&log, "; next try in ");
    let back = logged_at(&log, "IRC: connecting to ");
    let waited = (back + 86_400 - left) % 86_400;
    assert!(waited + 1 >= wait, "{waited} s rather than {wait} s");
    lab.accept().expect_alive();
}

/// Three seconds for what waits to be said, and some to spare.
#[test]
fn it_stops_in_time_though_the_server_reads_nothing() {
    let lab = Lab::new().with_fake_irc();
    let mut bot = lab.start("[channel #lab]");
    let mut peer = lab.accept();
    let pings = format!("PING :{}\r\n", "x".repeat(400)).repeat(500);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..80 {
                peer.send_bytes(pings.as_bytes());
            }
        });
        wait_stuck(&bot);
        let since = Instant::now();
        bot.signal("TERM");
        let code = wait_for("the end", 3 * TIMEOUT, || bot.try_exit());
        let elapsed = since.elapsed();
        assert_eq!(code, 0, "after {elapsed:?}");
        assert!(elapsed < 6 * SECOND, "after {elapsed:?}");
    });
}

/// Waits until the bot has logged nothing for two seconds: a write blocks it.
#[track_caller]
fn wait_stuck(bot: &Bot) {
    let mut size = 0;
    let mut changed = Instant::now();
    wait_for("a blocked write", 2 * TIMEOUT, || {
        if bot.log().len() != size {
            size = bot.log().len();
            changed = Instant::now();
        }
        (changed.elapsed() > 2 * SECOND).then_some(())
    });
}
