//! How quickly bot and reporter announce builds, and what the master notices of that.

use super::{ANNOUNCING, Bench, seconds};
use crate::subjects::{Cost, CountingProxy, StreamListener};
use crate::{Row, ms, number, progress, quantile};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// When a line about the end of a build came.
struct Announced {
    /// Milliseconds after the end, by the master's clock.
    delay: f64,
    wall: SystemTime,
}

/// Has a real build made from a change, and waits until these nicks have announced its end; those that do not are left
/// out. `builder` is `odd` or `even`, of which the builds with such numbers succeed; their branches have their names.
fn build(bench: &Bench, builder: &str, number: u64, nicks: &[&str]) -> Vec<Announced> {
    build_branch(bench, builder, builder, number, nicks)
}

/// The same of a branch.
fn build_branch(
    bench: &Bench,
    builder: &str,
    branch: &str,
    number: u64,
    nicks: &[&str],
) -> Vec<Announced> {
    for nick in nicks.iter().filter(|nick| !nick.starts_with("reporter")) {
        bench.wait_for_pace(nick);
    }
    let installation = &bench.installations[&10];
    let before = bench.irc.count();
    installation.master.change_with(&[
        ("author", "Bob Builder <bob@example.org>"),
        ("comments", "Tune"),
        ("branch", branch),
        ("revision", &format!("{number:040x}")),
    ]);
    let id = installation.master.builder_id(builder) as u64;
    let bot_line = format!("{builder} #{number} ");
    let reporter_number = format!("[#{number}](");
    let reporter_name = format!("`{builder}`");
    let is_about = |text: &str| {
        let by_reporter = text.contains(&reporter_number) && text.contains(&reporter_name);
        text.starts_with(&bot_line) || by_reporter
    };
    let mut announced = Vec::new();
    for nick in nicks {
        let message = bench.irc.wait(before, seconds(20), |message| {
            message.nick == *nick && is_about(&message.text)
        });
        let ends = installation.ends();
        let end = ends.iter().find(|end| (end.0, end.1) == (id, number));
        if let (Some(message), Some((_, _, end))) = (message, end) {
            announced.push(Announced {
                delay: message.wall.duration_since(*end).map_or(0.0, ms),
                wall: message.wall,
            });
        }
    }
    announced
}

/// The delays of one kind of builds, in milliseconds.
#[derive(Default)]
struct Delays {
    bot: Vec<f64>,
    reporter: Vec<f64>,
    /// From the event on the stream to the bot's line.
    after_event: Vec<f64>,
}

/// Real builds of a worker, each from a change: their ends as bot and reporter announce them.
pub fn events(bench: &mut Bench) -> Vec<Row> {
    const BUILDS: u64 = 20;
    let [good, bad] = measure_delays(bench, BUILDS);
    let row = |what, unit, values| Row::new("events", what, 10, unit, values);
    let event = |what, values| {
        row(what, "ms", values).aim("≤ 2, p95 ≤ 5", |r| r.median() <= 2.0 && r.p95() <= 5.0)
    };
    let latency = |what, bot, reporter| {
        let row = row(what, "ms", bot).reporter(reporter);
        row.aim("≥ 1x", |r| r.ratio() >= 1.0)
    };
    let mut rows = vec![
        event("stream event → line, success", good.after_event),
        row(
            "stream event → line, failure with step and blame",
            "ms",
            bad.after_event,
        )
        .aim("p95 ≤ 1000", |r| r.p95() <= 1000.0)
        .note("it waits for the step: one request, which the master answers at the end of a build"),
        latency("end of a build → line, success", good.bot, good.reporter),
        row(
            "end of a build → line, failure with step and blame",
            "ms",
            bad.bot,
        )
        .reporter(bad.reporter)
        .aim("p95 ≤ 1000", |r| r.p95() <= 1000.0)
        .note("the reporter names no step and blames nobody"),
    ];
    rows.extend(measure_branches(bench, BUILDS));
    rows.extend(measure_requests(bench, BUILDS));
    rows
}

/// A builder that builds two branches in turn: its lines name them.
fn measure_branches(bench: &mut Bench, builds: u64) -> Vec<Row> {
    let port = bench.installation(10).master.port;
    let proxy = CountingProxy::start(port);
    let hourly = "poll_interval = 1h";
    let _bot = bench.bot_behind(&proxy, 10, "branches", hourly, &announces("forked"));
    let master = &bench.installations[&10].master;
    let id = master.builder_id("forked") as u64;
    let stream = StreamListener::open(port);
    proxy.wait_silence();
    let mut delays = Vec::new();
    let mut requests = Vec::new();
    let mut named = 0;
    for number in 1..=builds {
        let from = Instant::now();
        let before = bench.irc.count();
        let branch = if number % 2 == 0 { "fork-a" } else { "fork-b" };
        let announced = build_branch(bench, "forked", branch, number, &["branches"]);
        let is_named = |text: &str| text.contains(&format!("#{number} on {branch} "));
        let lines = bench
            .irc
            .messages_since(before, |message| is_named(&message.text));
        named += lines.len();
        if let ([told], Some(event)) = (&announced[..], stream.heard(id, number)) {
            delays.push(told.wall.duration_since(event).map_or(0.0, ms));
            requests.push(proxy.since(from).len() as f64);
        }
    }
    let note = format!("{named} of {builds} lines name it");
    vec![
        Row::new(
            "events",
            "stream event → line with branch",
            10,
            "ms",
            delays,
        )
        .aim("≤ 2, p95 ≤ 5", |r| r.median() <= 2.0 && r.p95() <= 5.0)
        .note(note),
        // Authors are asked for while a build runs, since it may fail.
        Row::new("events", "requests for its branch", 10, "", requests)
            .aim("≤ 1", |r| r.median() <= 1.0)
            .note("one for its authors; the first build of all costs one more"),
    ]
}

/// `why`, by a bot behind a proxy: what it asks of the master, and what it takes beside the master's own time.
pub fn why(bench: &mut Bench) -> Vec<Row> {
    const QUESTIONS: usize = 10;
    let proxy = CountingProxy::start(bench.installation(10).master.port);
    let _bot = bench.bot_behind(&proxy, 10, "asks-why", "poll_interval = 1h", super::CHANNEL);
    let installation = &bench.installations[&10];
    installation.master.force("talks", &[]);
    installation.master.wait_build("talks", 1);
    let mut beyond = Vec::new();
    let mut requests = Vec::new();
    for _ in 0..QUESTIONS {
        bench.wait_for_pace("asks-why");
        let from = Instant::now();
        let answer = bench.irc.ask("asks-why", "why talks", seconds(20));
        let asked = proxy.since(from);
        // The same again, without the bot.
        let again = Instant::now();
        for request in &asked {
            let path = request.line.trim_start_matches("GET ");
            let _ = installation.master.request("GET", path, "", "");
        }
        if let Some((took, _)) = answer {
            beyond.push((took - ms(again.elapsed())).max(0.0));
            requests.push(asked.len() as f64);
        }
    }
    let row = |what, unit, values| Row::new("why", what, 10, unit, values);
    vec![
        row(
            "why, a log of 100,000 lines: beyond the master's own time",
            "ms",
            beyond,
        )
        .aim("≤ 100", |r| r.p95() <= 100.0),
        row("requests for it", "", requests).aim("≤ 5", |r| r.p95() <= 5.0),
    ]
}

/// Lines that end `[irc]` of a bot that announces one real builder, and has the others in its list.
fn announces(builder: &str) -> String {
    format!("notify_events = finished\nbuilders = b0* {builder}\n[channel #bench]")
}

/// The delays of good and of bad builds.
fn measure_delays(bench: &mut Bench, builds: u64) -> [Delays; 2] {
    let builders = [("odd", "tells-odd"), ("even", "tells-even")];
    let _bots = builders.map(|(builder, nick)| bench.bot(10, nick, "", &announces(builder)));
    progress("building");
    let master = &bench.installations[&10].master;
    let stream = StreamListener::open(master.port);
    let mut delays = [Delays::default(), Delays::default()];
    for number in 1..=builds {
        for (i, (builder, nick)) in builders.into_iter().enumerate() {
            let id = master.builder_id(builder) as u64;
            let announced = build(bench, builder, number, &[nick, "reporter10"]);
            let [bot, reporter] = &announced[..] else {
                continue;
            };
            let of_kind = &mut delays[(number as usize + i + 1) % 2];
            of_kind.bot.push(bot.delay);
            of_kind.reporter.push(reporter.delay);
            if let Some(event) = stream.heard(id, number) {
                let delay = bot.wall.duration_since(event).map_or(0.0, ms);
                of_kind.after_event.push(delay);
            }
        }
    }
    delays
}

/// Requests during a build, by bots of their own: a proxy would have cost those above some time.
fn measure_requests(bench: &mut Bench, after: u64) -> Vec<Row> {
    const BUILDS: u64 = 10;
    let port = bench.installation(10).master.port;
    let proxy = CountingProxy::start(port);
    let plain_proxy = CountingProxy::start(port);
    let asking = announces("odd");
    let plain = format!("show_blame_list = no\n{asking}");
    let hourly = "poll_interval = 1h";
    let polling = "event_stream = no\npoll_interval = 1s";
    let _asks = bench.bot_behind(&proxy, 10, "asks", hourly, &asking);
    let _plain = bench.bot_behind(&plain_proxy, 10, "plain", hourly, &plain);
    let _polls = bench.bot(10, "polls", polling, &asking);
    // What a start asks for is over.
    proxy.wait_silence();
    plain_proxy.wait_silence();
    let start = Instant::now();
    let mut polled_delays = Vec::new();
    let mut requests = Vec::new();
    let mut plain_requests = Vec::new();
    for number in after + 1..=after + BUILDS {
        let from = Instant::now();
        // When all have announced it, all requests are made.
        let announced = build(bench, "odd", number, &["asks", "plain", "polls"]);
        if let [_, _, polled] = &announced[..] {
            polled_delays.push(polled.delay);
            requests.push(proxy.since(from).len() as f64);
            plain_requests.push(plain_proxy.since(from).len() as f64);
        }
    }
    let connections = vec![proxy.connections(start) as f64];
    let row = |what, unit, values| Row::new("events", what, 10, unit, values);
    vec![
        row(
            "the same, polling each 1 s without stream",
            "ms",
            polled_delays,
        )
        .aim("p95 ≤ 1200", |r| r.p95() <= 1200.0),
        row("requests in a build's life", "", requests)
            .aim("≤ 2", |r| r.p95() <= 2.0)
            .note("one for its authors, and one for the step of one that fails"),
        row("the same without blame and revisions", "", plain_requests)
            .aim("≤ 1", |r| r.p95() <= 1.0),
        row("connections for them", "", connections).aim("≤ 1", |r| r.median() <= 1.0),
    ]
}

const BESIDE_BUILDS: usize = 80;

/// A small GET beside 10 builds a second: with nobody listening, with the reporter, with the bot.
pub fn beside(bench: &mut Bench) -> Vec<Row> {
    let reporter = bench.installation(1000).reporter.clone();
    bench.pools.clear();
    let notify = |bench: &Bench, how: &str| {
        bench
            .irc
            .ask(&reporter, &format!("notify {how}"), seconds(10));
    };
    progress("80 builds four times: alone, with the reporter, alone, with the bot");
    notify(bench, "off");
    let mut alone = times_of_gets(bench);
    notify(bench, "on finished");
    let with_reporter = times_of_gets(bench);
    notify(bench, "off");
    let again = times_of_gets(bench);
    let mut with_bot = Vec::new();
    let mut cpu = Vec::new();
    if let Some(bot) = bench.bot(1000, "beside", "", ANNOUNCING) {
        let before = Cost::of(bot.pid());
        with_bot = times_of_gets(bench);
        cpu.push(Cost::of(bot.pid()).since(before).cpu / BESIDE_BUILDS as f64);
    }
    notify(bench, "on finished");
    let noise = (quantile(&alone, 0.5) - quantile(&again, 0.5)).abs();
    alone.extend(again);
    let base = quantile(&alone, 0.5);
    let most = base + noise.max(base * 0.1);
    let note = format!("medians of its two halves differ by {} ms", number(noise));
    let row = |what, values| Row::new("beside", what, 1000, "ms", values);
    vec![
        row("small GET during 10 builds/s, nobody told", alone).note(note),
        row("the same while the bot tells them", with_bot)
            .reporter(with_reporter)
            .aim("alone + noise", |r| r.median() <= most),
        row("CPU of the bot for a build", cpu),
    ]
}

/// The milliseconds of GETs while the simulator makes builds.
fn times_of_gets(bench: &Bench) -> Vec<f64> {
    let installation = &bench.installations[&1000];
    let builders = &installation.builders[..BESIDE_BUILDS];
    let mut times = Vec::new();
    thread::scope(|scope| {
        let builds = scope.spawn(|| installation.simulate(builders, 10));
        while !builds.is_finished() {
            times.extend(installation.small_get());
            thread::sleep(Duration::from_millis(25));
        }
    });
    times
}
