//! How fast the bot speaks on real servers, and behind gates that read and kill as other software does, with the pace
//! that it gives each by itself, and that none kills it for that.
//! `MINUTES=10 cargo test --test pacing` keeps at it.

mod common;

use common::{
    Client, ERGO, FakeMaster, FloodGate, FloodRule, Hybrid, Lab, Listener, NgircdOptions, POLLING,
    SOLANUM, SUCCESS, UNREAL,
};
use std::time::{Duration, Instant};

const BUILDERS: usize = 50;
/// At the pace that is safe everywhere both take longer.
const USUAL: Limits = Limits {
    ten_lines: Duration::from_secs(4),
    fifty_builds: Duration::from_secs(10),
    fullest: 33,
};

/// How long the bot may take, and how fast it may be.
#[derive(Clone, Copy)]
struct Limits {
    /// When it has not spoken yet.
    ten_lines: Duration,
    /// Right after these.
    fifty_builds: Duration,
    /// How much of a gate's receive queue it may fill, in percent: the server falls behind, but far from a kill.
    fullest: usize,
}

fn minutes() -> u64 {
    let minutes = std::env::var("MINUTES").ok();
    minutes.map_or(0, |text| text.parse().expect("MINUTES is a number"))
}

/// Asks for many lines, and has many builds end, again and again.
fn check(lab: Lab, limits: Limits) {
    let master = FakeMaster::new(BUILDERS);
    let lab = lab.with_fake_master(master.serve());
    let joe = lab.person("joe", &["#lab"]);
    let channel = Listener::new(&joe, "#lab");
    let private = Listener::new(&joe, "joe");
    let irc = "notify_events = finished\n[channel #lab]";
    let bot = lab.start_ready("bot", POLLING, irc);
    let end = Instant::now() + Duration::from_secs(60 * minutes());
    let mut is_rested = true;
    loop {
        // Eleven builders have such a name: ten lines, and one that says so.
        let asked = Instant::now();
        joe.say("#lab", "bot: status b1*");
        (0..10).for_each(|_| _ = channel.next());
        let took = asked.elapsed();
        assert!(
            took < limits.ten_lines || !is_rested,
            "ten lines took {took:?}"
        );
        channel.hear("<bot> *1 more*");
        let took = expect_news(&channel, &master);
        assert!(took < limits.fifty_builds, "fifty builds took {took:?}");
        if Instant::now() >= end {
            break;
        }
        joe.say("bot", "status all");
        (0..BUILDERS).for_each(|_| _ = private.next());
        is_rested = false;
    }
    bot.assert_logged("IRC: joined", 1);
}

/// The same through a gate that reads and kills by the rule of another software.
fn check_rule(rule: FloodRule, limits: Limits) {
    let mut lab = Lab::new().with_ngircd();
    let gate = FloodGate::start(rule, lab.irc_port);
    lab.irc_port = gate.port;
    check(lab, limits);
    let fullest = gate.fullest();
    assert!(
        fullest <= limits.fullest,
        "the receive queue was full to {fullest} %"
    );
}

/// Fifty builds end: each is named, or counted. Returns how long that took.
fn expect_news(channel: &Listener, master: &FakeMaster) -> Duration {
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ends = (1..=BUILDERS).map(|builder| (builder, SUCCESS));
    let ended = Instant::now();
    master.end(ends, i64::try_from(now.as_secs()).unwrap());
    let mut told = 0;
    while told < BUILDERS {
        told += builds_in(&channel.next());
    }
    assert_eq!(told, BUILDERS);
    ended.elapsed()
}

/// How many builds a line tells of: `b7 #1`, and `and 12 more`.
fn builds_in(line: &str) -> usize {
    let named = line.matches(" #").count();
    let counted = line.split_once(" more").and_then(|(before, _)| {
        let count = before.rsplit(' ').next()?;
        count.parse().ok()
    });
    named + counted.unwrap_or(0)
}

#[test]
fn ngircd_takes_what_its_profile_allows() {
    // With the penalties that it has out of the box.
    let lab = Lab::new().with_ngircd_options(NgircdOptions {
        penalties: true,
        ..NgircdOptions::default()
    });
    check(lab, USUAL);
}

#[test]
fn inspircd_takes_what_its_profile_allows() {
    check(Lab::new().with_inspircd(), USUAL);
}

#[test]
fn solanum_takes_what_its_profile_allows() {
    check_rule(SOLANUM, USUAL);
}

#[test]
fn ergo_takes_what_its_profile_allows() {
    check_rule(ERGO, USUAL);
}

/// It reads five lines at once and then one a second, so nobody's tenth line comes before the fourth second is over.
#[test]
fn hybrid_takes_what_its_profile_allows() {
    let ten_lines = Duration::from_secs(6);
    check(Lab::new().with_hybrid(), Limits { ten_lines, ..USUAL });
}

/// Each line costs a second, and another for ninety bytes: ten short ones make fourteen seconds, of which the profile
/// takes eight in advance, and the few long ones with fifty builds make twenty, none of them in advance any more.
#[test]
fn unreal_takes_what_its_profile_allows() {
    let ten_lines = Duration::from_secs(8);
    let fifty_builds = Duration::from_secs(16);
    // Its queue is large: at this pace hardly a line waits.
    let fullest = 10;
    let limits = Limits {
        ten_lines,
        fifty_builds,
        fullest,
    };
    check_rule(UNREAL, limits);
}

/// They close on who speaks without a pace; or nothing above could fail.
#[test]
fn a_flood_is_killed_by_each_rule() {
    let mut server = Lab::new().with_ngircd();
    let port = server.ngircd().port;
    for (nick, rule) in [("u", UNREAL), ("s", SOLANUM), ("e", ERGO)] {
        let gate = FloodGate::start(rule, port);
        expect_killed(&Client::connect(gate.port, nick));
    }
    let hybrid = Hybrid::start();
    expect_killed(&Client::connect(hybrid.port, "h"));
}

#[track_caller]
fn expect_killed(flooder: &Client) {
    flooder.join("#lab");
    (0..200).for_each(|_| flooder.say("#lab", &"x".repeat(80)));
    flooder.expect(|line| line.starts_with("ERROR :") && line.contains("(Excess Flood)"));
}
