//! Much at once: announcements that waited, builds that end together, a master whose answers stall.

use super::{ANNOUNCING, Bench, CHANNEL, middle, seconds, values};
use crate::common::scratch;
use crate::irc_server::Message;
use crate::subjects::{BenchBot, CountingProxy, Installation, mebibytes};
use crate::{Row, ms};
use serde_json::json;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Instant, SystemTime};

/// A thousand announcements that an earlier run has left in the state file, for a server that lets the bot say them all
/// at once. The reporter remembers nothing: for it, twenty builds end together.
pub fn flood(bench: &mut Bench) -> Vec<Row> {
    const CHANNELS: usize = 50;
    const LINES: usize = 1000;
    let channels: Vec<String> = (1..=CHANNELS).map(|n| format!("#flood{n}")).collect();
    bench.installation(1000);
    let installation = &bench.installations[&1000];
    join_reporter(bench, installation, &channels);
    let before = bench.irc.count();
    let builders = &installation.builders[100..100 + LINES / CHANNELS];
    installation.simulate(builders, 0);
    thread::sleep(seconds(10));
    let by_reporter = flooded(bench, before, &installation.reporter);

    let url = installation.master.url();
    let state = pending_state(&url, &channels, LINES);
    let mut irc = "pacing = no\n".to_string();
    for channel in &channels {
        irc += &format!("[channel {channel}]\n");
    }
    irc += &format!("[bot]\nstate_file = {}", state.display());
    let before = bench.irc.count();
    let config = bench.config(&url, "flood", "", &irc);
    let bot = BenchBot::start(&bench.irc, "flood", &config);
    thread::sleep(seconds(5));
    drop(bot);
    let mut by_bot = flooded(bench, before, "flood");
    by_bot.retain(|message| message.command == "PRIVMSG");
    let note = format!(
        "{} lines, the reporter's {}",
        by_bot.len(),
        by_reporter.len()
    );
    let rate = values(rate(&by_bot));
    let what = "1,000 announcements in 50 channels";
    vec![
        Row::new("flood", what, 1000, "lines/s", rate)
            .more_is_better()
            .reporter(values(self::rate(&by_reporter)))
            .aim("≥ 50000", |r| r.median() >= 50_000.0)
            .note(note),
    ]
}

fn join_reporter(bench: &Bench, installation: &Installation, channels: &[String]) {
    let reporter = &installation.reporter;
    let before = bench.irc.count();
    let command = format!("join {}", channels.join(" "));
    bench.irc.say(reporter, &command);
    bench.irc.wait(before, seconds(120), |message| {
        let is_last = Some(&message.target) == channels.last();
        message.nick == *reporter && message.command == "JOIN" && is_last
    });
}

/// What a bot has said in the channels of the flood.
fn flooded(bench: &Bench, before: usize, nick: &str) -> Vec<Message> {
    bench.irc.messages_since(before, |message| {
        message.nick == nick && message.target.starts_with("#flood")
    })
}

/// Lines a second.
fn rate(messages: &[Message]) -> Option<f64> {
    let span = messages.last()?.at - messages.first()?.at;
    let rate = (messages.len() - 1) as f64 / span.as_secs_f64();
    rate.is_finite().then_some(rate)
}

/// A state file with announcements that wait.
fn pending_state(url: &str, channels: &[String], lines: usize) -> PathBuf {
    let now = SystemTime::UNIX_EPOCH.elapsed();
    let now = now.map_or(0, |elapsed| elapsed.as_secs());
    let mut pending = Vec::new();
    for n in 0..lines {
        let text =
            format!("builder #{n} success (fixed), took 1m 20s {url}#/builders/7/builds/{n}");
        pending.push(json!({
            "target": channels[n % channels.len()], "at": now, "outcome": "Success", "label": format!("builder #{n}"),
            "text": text, "more": 0
        }));
    }
    let state = json!({
        "known": {"mark": null, "ahead": [], "open": []}, "events": {}, "muted": {}, "joined": {}, "left": [],
        "watches": [], "pending": pending
    });
    let file = scratch("bench-flood").join("state");
    fs::write(&file, format!("buildbot-irc state 2\n{state}")).expect("a state file");
    file
}

const BURST_FIRST: usize = 200;
const BURST_BUILDS: usize = 200;

/// What was heard of a burst.
struct Heard {
    /// Builds by their names.
    named: usize,
    /// Builds that summaries have only counted.
    counted: usize,
    lines: usize,
    /// Milliseconds from the last end to the last line.
    until: Option<f64>,
}

/// 200 builds that end within a second: which of them are announced, and until when.
pub fn burst(bench: &mut Bench) -> Vec<Row> {
    let bot = bench.bot(1000, "burst", "", ANNOUNCING);
    bench.wait_for_pace("burst");
    let before = bench.irc.count();
    let installation = &bench.installations[&1000];
    let builders = &installation.builders[BURST_FIRST..BURST_FIRST + BURST_BUILDS];
    installation.simulate(builders, 0);
    let all_ends = installation.ends();
    let ends = &all_ends[all_ends.len() - BURST_BUILDS..];
    let first = ends[0].2;
    let last = ends[BURST_BUILDS - 1].2;
    let within = last.duration_since(first).unwrap_or_default().as_secs_f64();
    // More than the longest pause that pacing puts between two lines.
    bench.irc.wait_quiet("burst", seconds(8));
    let by_bot = heard(bench, before, "burst", last);
    let by_reporter = heard(bench, before, &installation.reporter, last);
    let announced = bot.map(|_| (by_bot.named + by_bot.counted) as f64);
    let reporter = (by_reporter.named + by_reporter.counted) as f64;
    let note = format!(
        "in {within:.2} s; {} by name; {} lines, the reporter's {}",
        by_bot.named, by_bot.lines, by_reporter.lines
    );
    let row = |what, unit, value| Row::new("burst", what, 1000, unit, values(value));
    vec![
        row("200 builds end at once: named or counted", "", announced)
            .more_is_better()
            .reporter(vec![reporter])
            .aim("200", |r| r.median() == BURST_BUILDS as f64)
            .note(note),
        row("the last end → the last line", "ms", by_bot.until).reporter(values(by_reporter.until)),
    ]
}

fn heard(bench: &Bench, before: usize, nick: &str, last_end: SystemTime) -> Heard {
    let messages = bench.irc.messages_since(before, |message| {
        message.nick == nick && message.command == "PRIVMSG"
    });
    let mut named = 0;
    for n in BURST_FIRST + 1..=BURST_FIRST + BURST_BUILDS {
        let name = format!("b{n:05}");
        if messages.iter().any(|message| message.text.contains(&name)) {
            named += 1;
        }
    }
    let counts = messages.iter().map(|message| counted(&message.text));
    let until = messages.last().map(|message| {
        let delay = message.wall.duration_since(last_end);
        ms(delay.unwrap_or_default())
    });
    Heard {
        named,
        counted: counts.sum(),
        lines: messages.len(),
        until,
    }
}

/// How many a summary has only counted. It may end with a link.
fn counted(text: &str) -> usize {
    let count = text
        .split_once(" more")
        .and_then(|(before, _)| before.rsplit_once(" and "));
    count.map_or(0, |(_, count)| count.parse().unwrap_or(0))
}

/// 100 buildsets of 20 builders each end together, for a place that wants a line for each change.
pub fn changes(bench: &mut Bench) -> Vec<Row> {
    const SETS: usize = 100;
    const BUILDERS: usize = 20;
    let irc = format!("announce = changes\n{ANNOUNCING}");
    let bot = bench.bot(1000, "changes", "", &irc);
    bench.wait_for_pace("changes");
    let before = bench.irc.count();
    let installation = &bench.installations[&1000];
    let builders: Vec<u64> = (0..SETS * BUILDERS)
        .map(|n| installation.builders[n % 900])
        .collect();
    installation.simulate_together(&builders, BUILDERS);
    let all_ends = installation.ends();
    let ends = &all_ends[all_ends.len() - SETS * BUILDERS..];
    let last = ends[ends.len() - 1].2;
    let within = last.duration_since(ends[0].2).unwrap_or_default();
    bench.irc.wait_quiet("changes", seconds(10));
    let lines = bench.irc.messages_since(before, |message| {
        message.nick == "changes" && message.command == "PRIVMSG"
    });
    let named: usize = lines
        .iter()
        .map(|line| line.text.matches(" on main").count())
        .sum();
    // A line for one change counts builds.
    let summaries = lines
        .iter()
        .filter(|line| line.text.starts_with("meanwhile:"));
    let counted: usize = summaries.map(|line| counted(&line.text)).sum();
    let until = lines.last().map(|message| {
        let delay = message.wall.duration_since(last);
        ms(delay.unwrap_or_default())
    });
    let memory = bot
        .as_ref()
        .map(|bot| mebibytes(bot.pid(), "status", "VmHWM"));
    let told = bot.map(|_| (named + counted) as f64);
    let note = format!(
        "in {:.1} s; {named} by name; {} lines",
        within.as_secs_f64(),
        lines.len()
    );
    let row = |what, unit, value| Row::new("changes", what, 1000, unit, values(value));
    vec![
        row("100 changes of 20 builders end: named or counted", "", told)
            .aim("100", |r| r.median() == SETS as f64)
            .note(note),
        row("the last end → the last line", "ms", until),
        row("resident then, at most", "MiB", memory).aim("≤ 32", |r| r.median() <= 32.0),
    ]
}

/// 10,000 builders, and every tenth list of them stalls.
pub fn stall(bench: &mut Bench) -> Vec<Row> {
    const SIZE: usize = 10_000;
    bench.pools.clear();
    let proxy = CountingProxy::start_stalling(bench.installation(SIZE).master.port);
    let start = Instant::now();
    let config = bench.config(&proxy.url(), "stall", "", CHANNEL);
    let mut answering = None;
    let mut after = None;
    let mut lists = 0;
    if let Some((bot, _)) = BenchBot::start(&bench.irc, "stall", &config) {
        let is_ready = bot.wait_until_ready(&bench.irc, &middle(SIZE));
        let requests = proxy.since(start);
        lists = requests.iter().filter(|one| one.lists_builders()).count();
        if is_ready {
            answering = Some(ms(bot.started.elapsed()));
            bench.wait_for_pace(&bot.nick);
            let answer = bench.irc.ask(&bot.nick, "list workers", seconds(20));
            after = answer.map(|(took, _)| took);
        }
    }
    let stalled = lists.div_ceil(10);
    let row = |what, value| Row::new("stall", what, SIZE, "ms", values(value));
    vec![
        row("start → answering, every tenth list stalls", answering)
            .note(format!("{stalled} of {lists} lists of builders stalled")),
        row("list workers afterwards → first line", after).aim("≤ 0.6", |r| r.median() <= 0.6),
    ]
}
