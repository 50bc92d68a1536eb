//! What the bot costs: its size, its start, its memory, and what it does while nothing happens.

use super::{Bench, CHANNEL, SIZES, middle, seconds, values};
use crate::Row;
use crate::common::{Bot, Certificates, Client, Ngircd, NgircdOptions, binary, root};
use crate::subjects::{BenchBot, CONFIGURED, Cost, CountingProxy, cargo, mebibytes, output};
use std::collections::BTreeSet;
use std::fs;
use std::thread;
use std::time::Instant;

pub fn size(_: &mut Bench) -> Vec<Row> {
    let bytes = fs::metadata(binary()).map(|file| file.len() as f64 / 1e6);
    let row = |what, unit, value, most: f64| {
        let row = Row::new("size", what, 0, unit, values(value));
        row.aim(&format!("≤ {most}"), |r| r.median() <= most)
    };
    vec![
        row("binary, stripped", "MB", bytes.ok(), 1.2),
        row("cold cargo build --release -j2", "s", cold_build(), 30.0),
        row(
            "crates in the tree, this one included",
            "",
            crates_in_tree(),
            36.0,
        ),
    ]
}

/// The seconds that a build from nothing takes.
fn cold_build() -> Option<f64> {
    let target = root().join("target/bench-cold");
    let _ = fs::remove_dir_all(&target);
    let start = Instant::now();
    let mut command = cargo(&["build", "--release", "--locked", "-q", "-j2"]);
    command.arg("--target-dir").arg(&target);
    let built = output(&mut command);
    let took = start.elapsed().as_secs_f64();
    let _ = fs::remove_dir_all(&target);
    built.map(|_| took)
}

fn crates_in_tree() -> Option<f64> {
    let tree = output(&mut cargo(&["tree", "-e", "normal", "--prefix", "none"]))?;
    let lines = tree.lines().map(|line| line.trim_end_matches(" (*)"));
    let crates: BTreeSet<&str> = lines.collect();
    Some(crates.len() as f64)
}

pub fn start(bench: &mut Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in SIZES {
        let reporter = vec![bench.installation(size).reporter_start];
        let joined = bench.pool(size).joined.clone();
        rows.push(
            Row::new("start", "start → joined", size, "ms", joined)
                .reporter(reporter)
                .aim("≤ 60", |r| r.median() <= 60.0)
                .note("reporter: start of its master → joined"),
        );
        let note = if size > CONFIGURED {
            "most builders are rows in the real master's database"
        } else {
            ""
        };
        rows.push(
            Row::new(
                "start",
                "start → answering",
                size,
                "ms",
                answering(bench, size),
            )
            .aim("≤ 5000", |r| r.median() <= 5000.0)
            .note(note),
        );
    }
    rows
}

/// Milliseconds from the start of a bot to the last of the master's answers to it, with which it can answer as well. To
/// ask the bot until it does would be no finer than its pacing.
fn answering(bench: &mut Bench, size: usize) -> Vec<f64> {
    let port = bench.installation(size).master.port;
    let one = |i| {
        let proxy = CountingProxy::start(port);
        let nick = format!("start{size}x{i}");
        let config = bench.config(&proxy.url(), &nick, "", CHANNEL);
        let (bot, _) = BenchBot::start(&bench.irc, &nick, &config)?;
        let took = crate::ms(proxy.wait_silence() - bot.started);
        bench.wait_for_pace(&nick);
        let is_ready = bot.wait_until_ready(&bench.irc, &middle(size));
        is_ready.then_some(took)
    };
    (0..3).filter_map(one).collect()
}

pub fn memory(bench: &mut Bench) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in SIZES {
        let bots = &bench.pool(size).bots;
        let sum = |file: &str, names: &[&str]| {
            let mut values = Vec::new();
            for bot in bots {
                let parts = names.iter().map(|name| mebibytes(bot.pid(), file, name));
                values.push(parts.sum());
            }
            values.retain(|value: &f64| value.is_finite());
            values
        };
        let row = |what, values| Row::new("memory", what, size, "MiB", values);
        let resident = row("resident", sum("status", &["VmRSS"]));
        rows.push(match resident_aim(size) {
            Some(aim) => resident.aim(&format!("≤ {aim}"), |r| r.median() <= aim),
            None => resident,
        });
        let private = sum("smaps_rollup", &["Private_Clean", "Private_Dirty"]);
        rows.push(row("private", private));
        let peak = sum("status", &["VmHWM"]);
        rows.push(row("resident at most since the start", peak));
    }
    rows
}

fn resident_aim(size: usize) -> Option<f64> {
    match size {
        10 => Some(11.0),
        1000 => Some(12.0),
        10_000 => Some(24.0),
        _ => None,
    }
}

/// Connected with TLS to a real server, with the event stream, while nothing happens.
pub fn idle(bench: &mut Bench) -> Vec<Row> {
    bench.pools.clear();
    let proxy = CountingProxy::start(bench.installation(10).master.port);
    let irc = Ngircd::start(NgircdOptions {
        certificate: Some("server"),
        ..NgircdOptions::default()
    });
    let joe = Client::connect(irc.port, "joe");
    joe.join("#bench");
    let ca = Certificates::get().path("ca.pem");
    let tls = format!("use_ssl = yes\ntls_ca_file = {ca}\n{CHANNEL}");
    let config = bench.config(&proxy.url(), "idle", "", &tls);
    let plain_port = format!("port = {}", bench.irc.port);
    let tls_port = format!("port = {}", irc.tls_port);
    let mut bot = Bot::start(&config.replace(&plain_port, &tls_port));
    joe.expect_contains("JOIN");
    bot.wait_subscribed(1);
    thread::sleep(seconds(8)); // what a start leaves to do

    let start = Instant::now();
    let before = Cost::of(bot.pid());
    let pings_before = pings(&bot);
    thread::sleep(seconds(60));
    let cost = Cost::of(bot.pid()).since(before);
    let requests = proxy.since(start).len();
    let pings = pings(&bot) - pings_before;
    // A line from the server wakes the reader and the loop; an answer of the master its reader, perhaps twice.
    let excused = (2 * pings + 3 * requests) as u64;
    let note = format!(
        "{pings} PING or PONG, {requests} requests; CPU {:.3} ms by schedstat",
        cost.cpu
    );
    let row = |what, unit, value: u64| Row::new("idle", what, 10, unit, vec![value as f64]);
    vec![
        row("CPU in 60 s, TLS and event stream", "ms", cost.ticks * 10)
            .aim("0", |r| r.median() == 0.0)
            .note(note),
        row("wake-ups in 60 s, all of them", "", cost.wakes)
            .aim("≤ 2 own", |_| cost.wakes.saturating_sub(excused) <= 2)
            .note("own: beyond PING and poll"),
        row("requests in 60 s, with event stream", "", requests as u64)
            .aim("≤ 2", |r| r.median() <= 2.0),
    ]
}

/// Lines of the log about PING and PONG.
fn pings(bot: &Bot) -> usize {
    let log = bot.log();
    let is_ping = |line: &&str| line.contains("PING") || line.contains("PONG");
    log.lines().filter(is_ping).count()
}

/// Requests of a poll, told apart by the silence between them; all sizes at the same time.
pub fn polls(bench: &mut Bench) -> Vec<Row> {
    let mut all = Vec::new();
    for size in SIZES {
        let proxy = CountingProxy::start(bench.installation(size).master.port);
        let polling = "event_stream = no\npoll_interval = 3s";
        let nick = format!("poll{size}");
        let bot = bench.bot_behind(&proxy, size, &nick, polling, CHANNEL);
        all.push((size, proxy, bot));
    }
    let start = Instant::now();
    thread::sleep(seconds(20));
    let mut rows = Vec::new();
    for (size, proxy, bot) in all {
        let polls = requests_of_polls(&proxy, start);
        let connections = bot.map(|_| proxy.connections(start) as f64);
        let row = |what, values| Row::new("polls", what, size, "", values);
        rows.push(row("requests of a poll, no event stream", polls).aim("≤ 4", |r| r.p95() <= 4.0));
        rows.push(row("connections for them", values(connections)).aim("1", |r| r.median() == 1.0));
    }
    rows
}

/// How many requests each poll had; the last poll may not be whole and is left out.
fn requests_of_polls(proxy: &CountingProxy, start: Instant) -> Vec<f64> {
    let mut polls = Vec::new();
    let mut last = None;
    for request in proxy.since(start) {
        let is_same_poll = last.is_some_and(|last| request.at - last < seconds(1));
        last = Some(request.at);
        match polls.last_mut() {
            Some(poll) if is_same_poll => *poll += 1.0,
            _ => polls.push(1.0),
        }
    }
    polls.pop();
    polls
}
