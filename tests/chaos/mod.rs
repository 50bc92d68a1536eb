//! The chaos run: for some minutes the IRC server, the master, the links to both and the bot itself are cut, frozen,
//! corrupted, restarted and killed at random while real builds end. Then what the channel heard is compared with what
//! the master did. `make chaos MINUTES=30 SEED=7` runs longer or otherwise. The seed decides what happens; when exactly
//! is up to the machine.

mod link;
mod verify;

use crate::common::{Bot, Client, Lab, Master, Ngircd, NgircdOptions, Process, Random, wait_for};
use link::{Condition, Link, Protocol};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};
use verify::{BuildLabel, missing};

const BUILDERS: [&str; 7] = ["alpha", "beta", "gamma", "mac os", "slow", "coin", "last"];
const CONFIG: &str = "ends('alpha', SUCCESS)\nends('beta', FAILURE)\nends('gamma', WARNINGS)\nbroken('mac os')\n\
    builder('slow', 'sleep 4')\nbuilder('coin', 'test $(($$ % 2)) = 0')\nends('last', SUCCESS)\n";
/// An answer that came so shortly before a crash the bot may not have read or written down.
const CRASH: Duration = Duration::from_secs(2);
/// The same before an orderly end.
const SHUTDOWN: Duration = Duration::from_millis(500);
/// How long the bot may take at the end to announce all: the rest of a back-off, and a queue that is paced.
const DELIVERY: Duration = Duration::from_secs(60);
/// So long before the end the last bot starts, with a fresh back-off, to get through what the others do.
const LAST_BOT: Duration = Duration::from_secs(25);
/// So long before the end the IRC server is left alone.
const LAST_IRC_EVENT: Duration = Duration::from_secs(10);

/// Each actor has its own, so that one's numbers do not depend on another's pace.
#[derive(Default)]
pub struct Dice(Random);

impl Dice {
    fn new(seed: u64, actor: u64) -> Dice {
        let seed = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut dice = Dice(Random(seed ^ (actor << 32 | 1)));
        for _ in 0..8 {
            dice.below(2); // small seeds are alike in their first numbers
        }
        dice
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0.below(limit)
    }

    fn seconds(&mut self, from: usize, to: usize) -> Duration {
        let millis = from * 1000 + self.below((to - from) * 1000);
        Duration::from_millis(millis as u64)
    }
}

/// What all actors share.
pub struct Run {
    start: Instant,
    end: Instant,
    irc_link: Link,
    master_link: Link,
    journal: Mutex<String>,
    violations: Mutex<Vec<String>>,
    /// Every person who listened; the last one still does.
    listeners: Mutex<Vec<Client>>,
    /// When IRC servers died.
    irc_deaths: Mutex<Vec<Instant>>,
}

impl Run {
    fn new(minutes: u64, irc_link: Link, master_link: Link) -> Run {
        let start = Instant::now();
        Run {
            start,
            end: start + Duration::from_secs(60 * minutes),
            irc_link,
            master_link,
            journal: Mutex::default(),
            violations: Mutex::default(),
            listeners: Mutex::default(),
            irc_deaths: Mutex::default(),
        }
    }

    fn since_start(&self, time: Instant) -> String {
        let elapsed = time.saturating_duration_since(self.start);
        format!("{:7.2}", elapsed.as_secs_f64())
    }

    fn note(&self, text: &str) {
        let time = self.since_start(Instant::now());
        *self.journal.lock().unwrap() += &format!("{time} {text}\n");
    }

    /// Leaves things as they are for a while; false when time is up, which is `early` before the end.
    fn pause(&self, time: Duration, early: Duration) -> bool {
        let end = self.end - early;
        thread::sleep(time.min(end.saturating_duration_since(Instant::now())));
        Instant::now() < end
    }

    /// Holds a link in some condition for a while.
    fn hold(&self, name: &str, link: &Link, condition: Condition, time: Duration) {
        let seconds = time.as_secs_f64();
        self.note(&format!("{name} link: {condition:?} for {seconds:.1} s"));
        link.set(condition);
        let end = Instant::now() + time;
        while self.pause(Duration::from_millis(200), Duration::ZERO) && Instant::now() < end {
            // Only what the server says can be corrupted, so somebody makes it talk.
            let listeners = self.listeners.lock().unwrap();
            listeners.last().unwrap().say("#lab", "hm");
        }
        if link.protocol == Protocol::Irc && condition == Condition::Damaged {
            self.cut(name, link); // the bot cannot know what it did not get to read
        }
        link.set(Condition::Healthy);
        self.note(&format!("{name} link: healthy"));
    }

    fn cut(&self, name: &str, link: &Link) {
        self.note(&format!("{name} link: cut"));
        link.cut(CRASH);
    }

    fn freeze(&self, name: &str, process: &mut Process, time: Duration) {
        let seconds = time.as_secs_f64();
        self.note(&format!("{name} stopped for {seconds:.1} s"));
        process.signal("STOP");
        self.pause(time, Duration::ZERO);
        process.signal("CONT");
        self.note(&format!("{name} continued"));
    }

    fn listen(&self, port: u16) {
        let client = Client::connect(port, "joe");
        client.join("#lab");
        self.listeners.lock().unwrap().push(client);
    }

    fn irc_actor(&self, irc: &mut Ngircd, mut dice: Dice) {
        let link = &self.irc_link;
        while self.pause(dice.seconds(4, 16), LAST_IRC_EVENT) {
            match dice.below(9) {
                8 => self.moderate(dice.seconds(1, 6)),
                0 | 1 => self.cut("irc", link),
                2 => self.hold("irc", link, Condition::Frozen, dice.seconds(1, 14)),
                3 => self.hold("irc", link, Condition::Refusing, dice.seconds(1, 5)),
                4 => self.hold("irc", link, Condition::Junk, dice.seconds(2, 6)),
                5 => self.hold("irc", link, Condition::Damaged, dice.seconds(2, 6)),
                6 => self.freeze("irc server", irc.process(), dice.seconds(1, 14)),
                _ => self.restart_irc(irc, &mut dice),
            }
        }
    }

    /// For a while the channel takes nothing from those without a voice.
    fn moderate(&self, time: Duration) {
        let set = |mode: &str| {
            self.note(&format!("#lab is {mode}"));
            let listeners = self.listeners.lock().unwrap();
            listeners.last().unwrap().send(&format!("MODE #lab {mode}"));
        };
        set("+m");
        self.pause(time, LAST_IRC_EVENT);
        set("-m");
    }

    fn restart_irc(&self, irc: &mut Ngircd, dice: &mut Dice) {
        let is_killed = dice.below(2) == 0;
        self.note(if is_killed {
            "irc server killed"
        } else {
            "irc server asked to end"
        });
        self.irc_link.set(Condition::Refusing);
        self.irc_deaths.lock().unwrap().push(Instant::now());
        if is_killed {
            irc.process().kill();
        }
        irc.stop();
        self.irc_deaths.lock().unwrap().push(Instant::now());
        self.pause(dice.seconds(0, 4), Duration::ZERO);
        irc.start_again();
        self.listen(irc.port); // before the bot can speak, someone must be there to hear it
        self.irc_link.set(Condition::Healthy);
        self.note("irc server is back");
    }

    fn link_actor(&self, mut dice: Dice) {
        let conditions = [
            Condition::Frozen,
            Condition::Refusing,
            Condition::Damaged,
            Condition::Damaged,
            Condition::Uneven,
            Condition::Uneven,
        ];
        let link = &self.master_link;
        while self.pause(dice.seconds(2, 8), Duration::ZERO) {
            match dice.below(7) {
                6 => self.cut("master", link),
                kind => self.hold("master", link, conditions[kind], dice.seconds(1, 8)),
            }
        }
    }

    /// Keeps builds coming, and restarts or freezes the master.
    fn master_actor(&self, lab: &mut Lab, mut dice: Dice) {
        let ids = BUILDERS.map(|name| lab.master().builder_id(name));
        while self.pause(dice.seconds(0, 1), Duration::ZERO) {
            let builds = if dice.below(20) == 0 { 12 } else { 1 };
            for _ in 0..builds {
                self.force(lab.master(), ids[dice.below(ids.len() - 1)]);
            }
            match dice.below(160) {
                kind @ (0 | 1) => self.restart_master(lab, kind == 0, &mut dice),
                2 | 3 => {
                    let process = lab.master_mut().process();
                    self.freeze("master", process, dice.seconds(1, 8));
                }
                _ => {}
            }
        }
    }

    /// Forces a build, if the master answers.
    fn force(&self, master: &Master, builder: i64) {
        let params = json!({"builderid": builder});
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "force", "params": params});
        let path = "/api/v2/forceschedulers/force";
        let answer = master.request("POST", path, "application/json", &call.to_string());
        if let Err(e) = answer {
            self.note(&format!("a build could not be forced: {e}"));
        }
    }

    fn restart_master(&self, lab: &mut Lab, is_killed: bool, dice: &mut Dice) {
        if is_killed {
            self.note("master killed");
            lab.master_mut().kill();
        } else {
            self.note("master asked to end");
            lab.master_mut().stop();
        }
        self.pause(dice.seconds(0, 3), Duration::ZERO);
        lab.master_mut().start_again();
        lab.restart_workers();
        self.note("master is back");
    }

    fn bot_actor(&self, bot: &mut Bot, mut dice: Dice) {
        for life in 1.. {
            let is_last = !self.pause(dice.seconds(5, 25), LAST_BOT);
            let is_killed = dice.below(3) > 0;
            self.end_bot(bot, life, is_killed);
            if !is_last {
                self.pause(dice.seconds(0, 6), Duration::ZERO);
            }
            bot.start_again();
            bot.expect_log("IRC: "); // before that it may not know what a signal means
            self.note(&format!("bot {} started", life + 1));
            if is_last {
                return;
            }
        }
    }

    fn end_bot(&self, bot: &mut Bot, life: usize, is_killed: bool) {
        let had_ended = has_ended(bot.pid());
        let cause = if is_killed { "killed" } else { "asked to end" };
        self.note(&format!("bot {life} {cause}"));
        let code = if is_killed { 0 } else { bot.terminate() };
        bot.kill9();
        let grace = if is_killed { CRASH } else { SHUTDOWN };
        self.irc_link.with(|traffic| traffic.end_all(cause, grace));
        let mut violations = self.violations.lock().unwrap();
        if had_ended {
            violations.push(format!("bot {life} has ended by itself"));
        }
        if code != 0 {
            violations.push(format!("bot {life} has ended with {code}"));
        }
        fs::write(bot.dir.join(format!("log.{life}")), bot.log()).unwrap();
    }

    /// All that the channel has heard.
    fn heard(&self) -> Vec<String> {
        let listeners = self.listeners.lock().unwrap();
        let lines = listeners.iter().flat_map(|one| one.lines("#lab"));
        lines.collect()
    }
}

/// Whether a process is a zombie or gone.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

/// Every build that the master knows to be complete.
fn completed(master: &Master) -> BTreeSet<BuildLabel> {
    let mut names = BTreeMap::new();
    for name in BUILDERS {
        names.insert(master.builder_id(name), name);
    }
    let path = "/api/v2/builds?complete=true&field=complete&field=builderid&field=number";
    let answer = master.get(path);
    let mut labels = BTreeSet::new();
    for build in answer["builds"].as_array().unwrap() {
        let builder = build["builderid"].as_i64().unwrap();
        let number = build["number"].as_i64().unwrap();
        labels.insert((names[&builder], number));
    }
    labels
}

/// A number from the environment.
fn setting(name: &str, default: u64) -> u64 {
    let value = std::env::var(name).unwrap_or_default();
    if value.is_empty() {
        return default;
    }
    let number = value.parse();
    number.unwrap_or_else(|_| panic!("{name}={value} is no number"))
}

#[test]
fn chaos_loses_nothing_and_doubles_nothing() {
    let seed = setting("SEED", 4);
    let minutes = setting("MINUTES", 3);
    let mut lab = Lab::new().with_master("chaos", CONFIG).with_worker("w1");
    // With the penalties that ngIRCd has out of the box.
    let mut irc = Ngircd::start(NgircdOptions {
        penalties: true,
        ..NgircdOptions::default()
    });
    let irc_link = Link::start(irc.port, Protocol::Irc, Dice::new(seed, 1));
    let master_link = Link::start(lab.master().port, Protocol::Http, Dice::new(seed, 2));
    lab.irc_port = irc_link.port;
    lab.master_url = format!("http://127.0.0.1:{}/", master_link.port);
    let run = Run::new(minutes, irc_link, master_link);
    run.listen(irc.port); // the first one there is its operator
    let mut bot = lab.start_as(
        "bot",
        "poll_interval = 1\ntimeout = 5",
        "ping_timeout = 10\nnotify_events = finished\n[channel #lab]\n[bot]\nstate_file = state\n\
         [authorization]\nforce = everyone",
    );
    bot.wait_subscribed(1);
    bot.expect_log("GET /api/v2/buildrequests"); // what ends from now on is news
    thread::scope(|scope| {
        scope.spawn(|| run.irc_actor(&mut irc, Dice::new(seed, 3)));
        scope.spawn(|| run.link_actor(Dice::new(seed, 4)));
        scope.spawn(|| run.bot_actor(&mut bot, Dice::new(seed, 5)));
        scope.spawn(|| run.master_actor(&mut lab, Dice::new(seed, 6)));
    });
    run.note("quiet");
    revive_master(&run, &mut lab);
    wait_delivered(&run, lab.master());
    run.note("the end");

    let (violations, summary) = verify::verify(&run, &completed(lab.master()));
    fs::write(bot.dir.join("log.last"), bot.log()).unwrap();
    let bot_dir = bot.dir.display();
    let master_dir = lab.master().dir.display();
    let summary = format!(
        "SEED={seed} MINUTES={minutes}: {summary}; the bot's logs: {bot_dir}, the master: {master_dir}"
    );
    println!("{summary}");
    let journal = run.journal.lock().unwrap();
    let report = format!("{journal}\n{}\n{summary}", violations.join("\n"));
    fs::write(bot.dir.join("journal"), &report).unwrap();
    assert!(violations.is_empty(), "{report}");
}

/// Twisted has lost count of its sockets once and answered nobody any more: then the master is killed once more.
fn revive_master(run: &Run, lab: &mut Lab) {
    let limit = Instant::now() + Duration::from_secs(15);
    let answers = wait_for("the master", DELIVERY, || {
        let answers = lab.master().request("GET", "/config", "", "").is_ok();
        (answers || Instant::now() > limit).then_some(answers)
    });
    if !answers {
        run.note("the master is stuck: killed");
        lab.master_mut().kill();
        lab.master_mut().start_again();
        lab.restart_workers();
    }
}

/// Waits until all builds have ended and are announced, or time is up: the verification says what is missing.
fn wait_delivered(run: &Run, master: &Master) {
    // A build that has lost its worker at the wrong moment never ends, so some may stay.
    let limit = Instant::now() + Duration::from_secs(15);
    wait_for("what was forced to be built", DELIVERY, || {
        let path = "/api/v2/buildrequests?complete=false&field=complete&field=buildrequestid";
        let open = master.get(path);
        (open["buildrequests"] == json!([]) || Instant::now() > limit).then_some(())
    });
    let limit = Instant::now() + DELIVERY;
    wait_for("all to be announced", 3 * DELIVERY, || {
        let (missing, omitted) = missing(&run.heard(), &completed(master));
        (missing.len() <= omitted || Instant::now() > limit).then_some(())
    });
    // An announcement that still waited would come before this.
    master.force("last", &[]);
    master.wait_build("last", 1);
    let last = BTreeSet::from([("last", 1)]);
    wait_for("the last build to be announced", 3 * DELIVERY, || {
        let (missing, _) = missing(&run.heard(), &last);
        (missing.is_empty() || Instant::now() > limit).then_some(())
    });
}
