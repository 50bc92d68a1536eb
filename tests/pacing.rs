//! How fast the bot speaks on real servers, with the pace that it gives each by itself, and that none kills it for that.
//! `MINUTES=10 cargo test --test pacing` keeps at it.

mod common;

use common::{Client, FakeMaster, Lab, POLLING, SUCCESS, wait_for};
use std::time::{Duration, Instant};

const BUILDERS: usize = 50;
/// Ten lines at the pace that is safe everywhere take longer.
const TEN_LINES: Duration = Duration::from_secs(4);
const NEWS: Duration = Duration::from_secs(10);

fn minutes() -> u64 {
    let minutes = std::env::var("MINUTES").ok();
    minutes.map_or(0, |text| text.parse().expect("MINUTES is a number"))
}

/// Asks for many lines, and has many builds end, again and again.
fn check(lab: Lab) {
    let master = FakeMaster::new(BUILDERS);
    let lab = lab.with_fake_master(master.serve());
    let joe = lab.person("joe", &["#lab"]);
    let irc = "notify_events = finished\n[channel #lab]";
    let bot = lab.start_ready("bot", POLLING, irc);
    let end = Instant::now() + Duration::from_secs(60 * minutes());
    loop {
        // Eleven builders have such a name.
        expect_lines(&joe, "status b1*", 11);
        expect_news(&joe, &master);
        if Instant::now() >= end {
            break;
        }
        expect_lines(&joe, "status all", BUILDERS);
    }
    bot.assert_logged("IRC: joined", 1);
}

fn expect_lines(joe: &Client, command: &str, lines: usize) {
    let heard = joe.connection.lines("joe").len();
    let asked = Instant::now();
    joe.say("bot", command);
    for index in 0..lines {
        let line = joe.connection.wait_line("joe", heard + index);
        assert!(line.is_some(), "line {index} of `{command}` never came");
        if index == 9 && lines < BUILDERS {
            let took = asked.elapsed();
            assert!(took < TEN_LINES, "ten lines took {took:?}");
        }
    }
}

/// Fifty builds end: each is named, or counted.
fn expect_news(joe: &Client, master: &FakeMaster) {
    let heard = joe.connection.lines("#lab").len();
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let ends = (1..=BUILDERS).map(|builder| (builder, SUCCESS));
    master.end(ends, i64::try_from(now.as_secs()).unwrap());
    wait_for("fifty builds", NEWS, || {
        let lines = joe.connection.lines("#lab");
        let told: usize = lines[heard..].iter().map(|line| builds_in(line)).sum();
        (told >= BUILDERS).then_some(())
    });
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
    check(Lab::new().with_ngircd());
}

#[test]
fn inspircd_takes_what_its_profile_allows() {
    check(Lab::new().with_inspircd());
}
