//! The rows of the table, group by group. What they have in common stands on the stage: masters and bots are
//! started once, when the first row needs them.

use super::Row;
use super::common::{Bot, Certificates, Client, Ngircd, NgircdOptions, root, scratch};
use super::hall::{Hall, Said};
use super::lab::{
    CONFIGURED, Cost, Listener, Site, Subject, Wire, binary, cargo, config, mebibytes, output,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

const SIZES: [usize; 4] = [10, 100, 1000, 10_000];
/// Bots that take turns in answering, because each keeps to the pace that IRC servers want.
const POOL: usize = 6;
/// Milliseconds; a command that takes the reporter so long is not asked for at ten times the size, nor often.
const LONG: f64 = 3000.0;

type Measure = fn(&mut Stage) -> Vec<Row>;

/// In this order: what wants silence comes before the storms. The reporter never forgets a channel that it has left,
/// so the one that it joins many for is the last.
pub const GROUPS: [(&str, Measure); 11] = [
    ("size", size),
    ("start", start),
    ("memory", memory),
    ("commands", commands),
    ("idle", idle),
    ("polls", polls),
    ("events", events),
    ("beside", beside),
    ("burst", burst),
    ("stall", stall),
    ("flood", flood),
];

/// Bots of one master, with what each took to join.
#[derive(Default)]
struct Pool {
    bots: Vec<Subject>,
    joined: Vec<f64>,
}

pub struct Stage {
    hall: Hall,
    sites: BTreeMap<usize, Site>,
    pools: BTreeMap<usize, Pool>,
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// A builder in the middle of the list.
fn middle(size: usize) -> String {
    format!("b{:05}", size / 2)
}

impl Stage {
    pub fn new() -> Stage {
        Stage {
            hall: Hall::open(),
            sites: BTreeMap::new(),
            pools: BTreeMap::new(),
        }
    }

    fn site(&mut self, size: usize) -> &Site {
        self.sites
            .entry(size)
            .or_insert_with(|| Site::start(size, &self.hall))
    }

    /// The bots of this master. They start one after the other, since their starts are measured.
    fn pool(&mut self, size: usize) -> &Pool {
        let url = self.site(size).master.url();
        let hall = &self.hall;
        self.pools.entry(size).or_insert_with(|| {
            super::tell(&format!("starting {POOL} bots at {size} builders"));
            let mut pool = Pool::default();
            let from = Instant::now();
            for i in 0..POOL {
                // A bot that takes this long to start is measured all the same, by fewer.
                if i > 1 && from.elapsed() > seconds(60) {
                    break;
                }
                let nick = format!("bot{size}x{i}");
                let config = config(&url, hall.port, &nick, "", "[channel #bench]");
                let started = Subject::start(hall, &nick, &config);
                if let Some((bot, joined)) =
                    started.filter(|(bot, _)| bot.knows(hall, &middle(size)))
                {
                    pool.bots.push(bot);
                    pool.joined.push(joined);
                }
            }
            pool
        })
    }

    /// A bot for one row, at the master of this size; the pools, which hear of builds too, have to go.
    fn bot(&mut self, size: usize, nick: &str, buildbot: &str, more: &str) -> Option<Subject> {
        let url = self.site(size).master.url();
        self.bot_at(&url, size, nick, buildbot, more)
    }

    /// The same by way of a wire.
    fn bot_at(
        &mut self,
        url: &str,
        size: usize,
        nick: &str,
        buildbot: &str,
        more: &str,
    ) -> Option<Subject> {
        self.pools.clear();
        let (bot, _) = Subject::start(
            &self.hall,
            nick,
            &config(url, self.hall.port, nick, buildbot, more),
        )?;
        bot.knows(&self.hall, &middle(size)).then_some(bot)
    }

    /// Waits until the pace of IRC no longer delays the next line of a bot.
    fn rest(&self, nick: &str) {
        thread::sleep(
            self.hall
                .rested(nick)
                .saturating_duration_since(Instant::now()),
        );
    }
}

fn size(_: &mut Stage) -> Vec<Row> {
    let bytes = fs::metadata(binary()).map(|file| file.len() as f64 / 1e6);
    let target = root().join("target/bench-cold");
    let _ = fs::remove_dir_all(&target);
    let from = Instant::now();
    let built = output(
        cargo(&[
            "build",
            "--release",
            "--locked",
            "-q",
            "-j2",
            "--target-dir",
        ])
        .arg(&target),
    );
    let took = built.map(|_| from.elapsed().as_secs_f64());
    let _ = fs::remove_dir_all(&target);
    let tree =
        output(&mut cargo(&["tree", "-e", "normal", "--prefix", "none"])).unwrap_or_default();
    let crates: BTreeSet<&str> = tree
        .lines()
        .map(|line| line.trim_end_matches(" (*)"))
        .collect();
    let crates = Some(crates.len() as f64).filter(|count| *count > 0.0);
    let row = |what, unit, value: Option<f64>, most| {
        let row = Row::new("size", what, 0, unit, value.into_iter().collect());
        row.aim(&format!("≤ {most}"), |r| r.median() <= most)
    };
    vec![
        row("binary, stripped", "MB", bytes.ok(), 1.2),
        row("cold cargo build --release -j2", "s", took, 30.0),
        row("crates in the tree, this one included", "", crates, 36.0),
    ]
}

fn start(stage: &mut Stage) -> Vec<Row> {
    let mut rows = Vec::new();
    for size in SIZES {
        let reporter = vec![stage.site(size).reporter_start];
        let how = if size > CONFIGURED {
            "most builders are rows in the real master's database"
        } else {
            ""
        };
        let pool = stage.pool(size);
        let joined =
            Row::new("start", "start → joined", size, "ms", pool.joined.clone()).beside(reporter);
        let answering = Row::new(
            "start",
            "start → answering",
            size,
            "ms",
            answering(stage, size),
        );
        rows.extend([
            joined
                .aim("≤ 60", |r| r.median() <= 60.0)
                .note("reporter: start of its master → joined"),
            answering.aim("≤ 5000", |r| r.median() <= 5000.0).note(how),
        ]);
    }
    rows
}

/// From the start of a bot to the last of the master's answers to it, with which it can answer as well. To ask it
/// until it does would be no finer than the pace at which it refuses.
fn answering(stage: &mut Stage, size: usize) -> Vec<f64> {
    let port = stage.site(size).master.port;
    let one = |i| {
        let (wire, nick) = (Wire::start(port, false), format!("start{size}x{i}"));
        let config = config(&wire.url(), stage.hall.port, &nick, "", "[channel #bench]");
        let (bot, _) = Subject::start(&stage.hall, &nick, &config)?;
        let took = super::ms(wire.silence() - bot.started);
        stage.rest(&nick);
        bot.knows(&stage.hall, &middle(size)).then_some(took)
    };
    (0..3).filter_map(one).collect()
}

fn memory(stage: &mut Stage) -> Vec<Row> {
    let aims = BTreeMap::from([(10, 11.0), (1000, 12.0), (10_000, 24.0)]);
    let mut rows = Vec::new();
    for size in SIZES {
        let pool = stage.pool(size);
        let of = |file: &str, names: &[&str]| -> Vec<f64> {
            let one = |bot: &Subject| {
                names
                    .iter()
                    .map(|name| mebibytes(bot.pid(), file, name))
                    .sum()
            };
            pool.bots
                .iter()
                .map(one)
                .filter(|size: &f64| size.is_finite())
                .collect()
        };
        let row = Row::new("memory", "resident", size, "MiB", of("status", &["VmRSS"]));
        rows.push(match aims.get(&size) {
            Some(&aim) => row.aim(&format!("≤ {aim}"), |r| r.median() <= aim),
            None => row,
        });
        let private = of("smaps_rollup", &["Private_Clean", "Private_Dirty"]);
        rows.push(Row::new("memory", "private", size, "MiB", private));
        rows.push(Row::new(
            "memory",
            "resident at most since the start",
            size,
            "MiB",
            of("status", &["VmHWM"]),
        ));
    }
    rows
}

/// A read command at one size, and how many samples are wanted of bot and reporter.
struct Question {
    size: usize,
    index: usize,
    text: String,
    wanted: usize,
    bot: Vec<f64>,
    beside: usize,
    reporter: Vec<f64>,
}

const COMMANDS: [&str; 11] = [
    "status ONE",
    "last ONE",
    "version",
    "help status",
    "commands",
    "list workers",
    "list changes",
    "list builders",
    "last all",
    "status all",
    "status",
];
/// From this one on they answer in many lines, after which a bot has to rest for long.
const MANY: usize = 6;

fn commands(stage: &mut Stage) -> Vec<Row> {
    let mut questions = Vec::new();
    for size in SIZES {
        let bots = stage.pool(size).bots.len();
        for (index, command) in COMMANDS.iter().enumerate() {
            let beside = if index < MANY { 20 } else { bots.max(3) };
            let text = command.replace("ONE", &middle(size));
            let (bot, reporter) = (Vec::new(), Vec::new());
            questions.push(Question {
                size,
                index,
                text,
                wanted: 20,
                bot,
                beside,
                reporter,
            });
        }
    }
    super::tell("asking");
    while questions
        .iter()
        .any(|q| q.bot.len() < q.wanted || q.reporter.len() < q.beside)
    {
        if !(ask_bot(stage, &mut questions) || ask_reporter(stage, &mut questions)) {
            thread::sleep(Duration::from_millis(20));
        }
    }
    questions.into_iter().map(answered).collect()
}

/// Asks a bot that has rested the next thing; false if all of them still rest. No answer ends the question.
fn ask_bot(stage: &Stage, questions: &mut [Question]) -> bool {
    let now = Instant::now();
    for q in questions.iter_mut().filter(|q| q.bot.len() < q.wanted) {
        let rested = |bot: &&Subject| stage.hall.rested(&bot.nick) <= now;
        let Some(bot) = stage.pools[&q.size].bots.iter().find(rested) else {
            continue;
        };
        match stage.hall.ask(&bot.nick, &q.text, seconds(20)) {
            Some((took, _)) => q.bot.push(took),
            None => (q.wanted, q.bot) = (0, Vec::new()),
        }
        return true;
    }
    false
}

/// Asks a reporter the next thing; false if there is no more. What takes it long is asked for once only, and not at
/// all at the next size, where it would take minutes.
fn ask_reporter(stage: &Stage, questions: &mut [Question]) -> bool {
    let Some(q) = questions.iter_mut().find(|q| q.reporter.len() < q.beside) else {
        return false;
    };
    let nick = stage.sites[&q.size].reporter.clone();
    let (size, index) = (q.size, q.index);
    let asked = stage.hall.ask(&nick, &q.text, seconds(180));
    match asked {
        Some((took, _)) => q.reporter.push(took),
        None => q.beside = 0,
    }
    if asked.is_none_or(|(took, _)| took > LONG) {
        q.beside = q.reporter.len();
        questions
            .iter_mut()
            .filter(|q| q.index == index && q.size > size)
            .for_each(|q| q.beside = 0);
    }
    stage.hall.quiet(&nick, Duration::from_millis(50));
    true
}

fn answered(q: Question) -> Row {
    let (name, silent) = (COMMANDS[q.index], q.reporter.is_empty());
    let row = Row::new(
        "commands",
        &format!("{name} → first line"),
        q.size,
        "ms",
        q.bot,
    )
    .beside(q.reporter);
    let row = if silent {
        row.note("the reporter would take minutes")
    } else {
        row
    };
    // Ten thousand are there to show how costs grow.
    if q.size > 1000 {
        return row;
    }
    let row = row.aim("≤ 0.6", |r| r.median() <= 0.6);
    match name {
        "status all" if q.size == 1000 => row.aim("≥ 1000x", |r| r.ratio() >= 1000.0),
        _ if name.starts_with("status") || name.starts_with("last") => {
            row.aim("≥ 10x", |r| r.ratio() >= 10.0)
        }
        _ => row,
    }
}

/// Connected with TLS to a real server, with the event stream, nothing happening.
fn idle(stage: &mut Stage) -> Vec<Row> {
    const WINDOW: u64 = 60;
    stage.pools.clear();
    let wire = Wire::start(stage.site(10).master.port, false);
    let irc = Ngircd::start(NgircdOptions {
        certificate: Some("server"),
        ..NgircdOptions::default()
    });
    let joe = Client::connect(irc.port, "joe");
    joe.join("#bench");
    let tls = format!(
        "use_ssl = yes\ntls_ca_file = {}\n[channel #bench]",
        Certificates::get().path("ca.pem")
    );
    let config = config(&wire.url(), irc.tls_port, "idle", "", &tls);
    let mut bot = Bot::start(binary().to_str().expect("a path in UTF-8"), &config);
    joe.expect_contains("JOIN");
    bot.expect_log("event stream: subscribed");
    thread::sleep(seconds(8)); // what a start leaves to do
    let pings = |bot: &Bot| {
        bot.log()
            .lines()
            .filter(|line| line.contains("PING") || line.contains("PONG"))
            .count()
    };
    let (from, before, heard) = (Instant::now(), Cost::of(bot.pid()), pings(&bot));
    thread::sleep(seconds(WINDOW));
    let cost = Cost::of(bot.pid()).since(before);
    let (requests, heard) = (wire.since(from).len(), pings(&bot) - heard);
    // A line from the server wakes the reader and the loop; an answer of the master its reader, perhaps twice.
    let excused = (2 * heard + 3 * requests) as u64;
    let saw = format!(
        "{heard} PING or PONG, {requests} requests; CPU {:.3} ms by schedstat",
        cost.cpu
    );
    let row = |what, unit, value: u64| Row::new("idle", what, 10, unit, vec![value as f64]);
    vec![
        row("CPU in 60 s, TLS and event stream", "ms", cost.ticks * 10)
            .aim("0", |r| r.median() == 0.0)
            .note(saw),
        row("wake-ups in 60 s, all of them", "", cost.wakes)
            .aim("≤ 2 own", |_| cost.wakes.saturating_sub(excused) <= 2)
            .note("own: beyond PING and poll"),
        row("requests in 60 s, with event stream", "", requests as u64)
            .aim("≤ 2", |r| r.median() <= 2.0),
    ]
}

/// Requests of a poll, told apart by the silence between them; all sizes at the same time.
fn polls(stage: &mut Stage) -> Vec<Row> {
    let mut all = Vec::new();
    for size in SIZES {
        let wire = Wire::start(stage.site(size).master.port, false);
        let quick = "event_stream = no\npoll_interval = 3s";
        let bot = stage.bot_at(
            &wire.url(),
            size,
            &format!("poll{size}"),
            quick,
            "[channel #bench]",
        );
        all.push((size, wire, bot));
    }
    let from = Instant::now();
    thread::sleep(seconds(20));
    let rows = |(size, wire, bot): (usize, Wire, Option<Subject>)| {
        let (mut polls, mut last) = (Vec::<f64>::new(), None);
        for request in wire.since(from) {
            match polls
                .last_mut()
                .filter(|_| last.is_some_and(|last| request.at - last < seconds(1)))
            {
                Some(poll) => *poll += 1.0,
                None => polls.push(1.0),
            }
            last = Some(request.at);
        }
        polls.pop(); // it may not be whole
        let connections = bot.map(|_| wire.connections(from) as f64);
        [
            Row::new(
                "polls",
                "requests of a poll, no event stream",
                size,
                "",
                polls,
            )
            .aim("≤ 4", |r| r.p95() <= 4.0),
            Row::new(
                "polls",
                "connections for them",
                size,
                "",
                connections.into_iter().collect(),
            )
            .aim("1", |r| r.median() == 1.0),
        ]
    };
    all.into_iter().flat_map(rows).collect()
}

/// Has a real build made from a change, and waits until some bots have told its end: how long after it each line
/// came, in milliseconds, and when. `name` is `odd` or `even`, of which builds succeed whose numbers are so.
fn build(stage: &Stage, name: &str, number: u64, tellers: &[&str]) -> Vec<(f64, SystemTime)> {
    tellers
        .iter()
        .filter(|nick| !nick.starts_with("reporter"))
        .for_each(|nick| stage.rest(nick));
    let (site, mark, revision) = (
        &stage.sites[&10],
        stage.hall.mark(),
        format!("{number:040x}"),
    );
    let author = "Bob Builder <bob@example.org>";
    site.master.change_with(&[
        ("author", author),
        ("comments", "Tune"),
        ("branch", name),
        ("revision", &revision),
    ]);
    let id = site.master.builder_id(name) as u64;
    let (ours, theirs, quoted) = (
        format!("{name} #{number} "),
        format!("[#{number}]("),
        format!("`{name}`"),
    );
    let about =
        |text: &str| text.starts_with(&ours) || (text.contains(&theirs) && text.contains(&quoted));
    let told = |nick: &&str| {
        let said = stage.hall.wait(mark, seconds(20), |said| {
            said.nick == **nick && about(&said.text)
        })?;
        let end = site
            .ends()
            .into_iter()
            .find(|(builder, build, _)| (*builder, *build) == (id, number))?
            .2;
        Some((
            said.wall.duration_since(end).map_or(0.0, super::ms),
            said.wall,
        ))
    };
    tellers.iter().filter_map(told).collect()
}

/// Real builds of a worker, each from a change: their ends as bot and reporter tell them.
fn events(stage: &mut Stage) -> Vec<Row> {
    const BUILDS: u64 = 20;
    const COUNTED: u64 = 10;
    let watch = |builder: &str| {
        format!("notify_events = finished\nbuilders = b0* {builder}\n[channel #bench]")
    };
    let tellers = ["odd", "even"].map(|name| (name, format!("tells-{name}")));
    let bots = tellers
        .each_ref()
        .map(|(name, nick)| stage.bot(10, nick, "", &watch(name)));
    super::tell("building");
    let listener = Listener::open(stage.site(10).master.port);
    let mut times = [const { (Vec::new(), Vec::new(), Vec::new()) }; 2];
    for number in 1..=BUILDS {
        for (i, (name, nick)) in tellers.iter().enumerate() {
            let id = stage.site(10).master.builder_id(name) as u64;
            let (ours, theirs, after) = &mut times[(number as usize + i + 1) % 2];
            if let [(our, wall), (their, _)] = build(stage, name, number, &[nick, "reporter10"])[..]
            {
                ours.push(our);
                theirs.push(their);
                let heard = listener.heard(id, number);
                after.extend(heard.map(|heard| wall.duration_since(heard).map_or(0.0, super::ms)));
            }
        }
    }
    drop(bots);
    // Other bots for the requests: a wire between would cost those above some time.
    let port = stage.site(10).master.port;
    let (wire, bare) = (Wire::start(port, false), Wire::start(port, false));
    let (asks, plain) = (
        watch("odd"),
        format!("show_blame_list = no\n{}", watch("odd")),
    );
    let _asks = stage.bot_at(&wire.url(), 10, "asks", "poll_interval = 1h", &asks);
    let _plain = stage.bot_at(&bare.url(), 10, "plain", "poll_interval = 1h", &plain);
    let _polls = stage.bot(10, "polls", "event_stream = no\npoll_interval = 1s", &asks);
    let (start, mut late, mut asked) = (Instant::now(), Vec::new(), (Vec::new(), Vec::new()));
    for number in BUILDS + 1..=BUILDS + COUNTED {
        let from = Instant::now();
        // By the time all have told it, all is asked.
        if let [_, _, (polled, _)] = build(stage, "odd", number, &["asks", "plain", "polls"])[..] {
            late.push(polled);
            asked.0.push(wire.since(from).len() as f64);
            asked.1.push(bare.since(from).len() as f64);
        }
    }
    let [(our_good, their_good, good), (our_bad, their_bad, bad)] = times;
    let row = |what, unit, values| Row::new("events", what, 10, unit, values);
    let event = |what, times| {
        row(what, "ms", times).aim("≤ 2, p95 ≤ 5", |r| r.median() <= 2.0 && r.p95() <= 5.0)
    };
    let latency = |what, ours, theirs| {
        row(what, "ms", ours)
            .beside(theirs)
            .aim("≥ 1x", |r| r.ratio() >= 1.0)
    };
    vec![
        event("stream event → line, success", good),
        event("stream event → line, failure with blame", bad),
        latency("end of a build → line, success", our_good, their_good),
        latency(
            "end of a build → line, failure with blame",
            our_bad,
            their_bad,
        )
        .note("the reporter blames nobody"),
        row("the same, polling each 1 s without stream", "ms", late)
            .aim("p95 ≤ 1200", |r| r.p95() <= 1200.0),
        row("requests in a build's life", "", asked.0).aim("≤ 1", |r| r.p95() <= 1.0),
        row("the same without blame and revisions", "", asked.1).aim("0", |r| r.p95() == 0.0),
        row(
            "connections for them",
            "",
            vec![wire.connections(start) as f64],
        )
        .aim("≤ 1", |r| r.median() <= 1.0),
    ]
}

/// A small GET beside 10 builds a second: with nobody listening, with the reporter, with the bot.
fn beside(stage: &mut Stage) -> Vec<Row> {
    const BUILDS: usize = 80;
    let reporter = stage.site(1000).reporter.clone();
    stage.pools.clear();
    let slice = |stage: &Stage| {
        let (site, mut times) = (&stage.sites[&1000], Vec::new());
        thread::scope(|scope| {
            let builds = scope.spawn(|| site.builds(&site.builders[..BUILDS], 10));
            while !builds.is_finished() {
                times.extend(site.small_get());
                thread::sleep(Duration::from_millis(25));
            }
        });
        times
    };
    let notify = |stage: &Stage, how: &str| {
        stage
            .hall
            .ask(&reporter, &format!("notify {how}"), seconds(10))
    };
    super::tell("80 builds four times: alone, with the reporter, alone, with the bot");
    notify(stage, "off");
    let mut alone = slice(stage);
    notify(stage, "on finished");
    let theirs = slice(stage);
    notify(stage, "off");
    let again = slice(stage);
    let bot = stage.bot(
        1000,
        "beside",
        "",
        "notify_events = finished\n[channel #bench]",
    );
    let before = bot.as_ref().map(|bot| Cost::of(bot.pid()));
    let ours = if bot.is_some() {
        slice(stage)
    } else {
        Vec::new()
    };
    let cpu = bot
        .iter()
        .zip(before)
        .map(|(bot, before)| Cost::of(bot.pid()).since(before).cpu / BUILDS as f64);
    let cpu = cpu.collect();
    notify(stage, "on finished");
    let noise = (super::quantile(&alone, 0.5) - super::quantile(&again, 0.5)).abs();
    alone.extend(again);
    let base = super::quantile(&alone, 0.5);
    let most = base + noise.max(base * 0.1);
    let halves = format!(
        "medians of its two halves differ by {} ms",
        super::number(noise)
    );
    vec![
        Row::new(
            "beside",
            "small GET during 10 builds/s, nobody told",
            1000,
            "ms",
            alone,
        )
        .note(halves),
        Row::new(
            "beside",
            "the same while the bot tells them",
            1000,
            "ms",
            ours,
        )
        .beside(theirs)
        .aim("alone + noise", |r| r.median() <= most),
        Row::new("beside", "CPU of the bot for a build", 1000, "ms", cpu),
    ]
}

/// A thousand announcements that an earlier run has left in the state file, for a server that lets the bot say them all
/// at once. The reporter remembers nothing: for it, twenty builds end together.
fn flood(stage: &mut Stage) -> Vec<Row> {
    const CHANNELS: usize = 50;
    const LINES: usize = 1000;
    let channels: Vec<String> = (1..=CHANNELS).map(|n| format!("#flood{n}")).collect();
    let sections: String = channels
        .iter()
        .map(|name| format!("[channel {name}]\n"))
        .collect();
    let (mark, reporter, url) = (
        stage.hall.mark(),
        stage.site(1000).reporter.clone(),
        stage.sites[&1000].master.url(),
    );
    stage
        .hall
        .say(&reporter, &format!("join {}", channels.join(" ")));
    let last = |said: &Said| {
        said.nick == reporter && said.command == "JOIN" && said.target == channels[CHANNELS - 1]
    };
    stage.hall.wait(mark, seconds(120), last);
    let mark = stage.hall.mark();
    let site = &stage.sites[&1000];
    site.builds(&site.builders[100..100 + LINES / CHANNELS], 0);
    thread::sleep(seconds(10));
    let lines = |mark, nick: &str| {
        stage.hall.since(mark, |said| {
            said.nick == nick && said.target.starts_with("#flood")
        })
    };
    let theirs = lines(mark, &reporter);

    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let pending = (0..LINES).map(|n| {
        let text = format!("builder #{n} success (fixed), took 1m 20s {url}#/builders/7/builds/{n}");
        json!({"target": channels[n % CHANNELS], "at": now, "outcome": "Success", "label": format!("builder #{n}"),
               "text": text, "more": 0})
    });
    let state = json!({"known": {"mark": null, "ahead": [], "open": []}, "events": {}, "muted": {}, "joined": {}, "left": [],
                       "watches": [], "pending": pending.collect::<Vec<_>>()});
    let file = scratch("bench-flood").join("state");
    fs::write(&file, format!("buildbot-irc state 2\n{state}")).expect("a state file");
    let more = format!(
        "pacing = no\n{sections}[bot]\nstate_file = {}",
        file.display()
    );
    let mark = stage.hall.mark();
    let bot = Subject::start(
        &stage.hall,
        "flood",
        &config(&url, stage.hall.port, "flood", "", &more),
    );
    thread::sleep(seconds(5));
    drop(bot);
    let ours = lines(mark, "flood");
    let ours: Vec<Said> = ours
        .into_iter()
        .filter(|said| said.command == "PRIVMSG")
        .collect();
    let rate = |said: &[Said]| {
        let span = said.last()?.at - said.first()?.at;
        Some((said.len() - 1) as f64 / span.as_secs_f64()).filter(|rate| rate.is_finite())
    };
    let row = |what, rate: Option<f64>| {
        Row::new("flood", what, 1000, "lines/s", rate.into_iter().collect())
    };
    vec![
        row("1,000 announcements in 50 channels", rate(&ours))
            .more_is_better()
            .beside(rate(&theirs).into_iter().collect())
            .aim("≥ 50000", |r| r.median() >= 50_000.0)
            .note(format!(
                "{} lines, the reporter's {}",
                ours.len(),
                theirs.len()
            )),
    ]
}

/// 200 builds that end within a second: which of them one hears of, and until when.
fn burst(stage: &mut Stage) -> Vec<Row> {
    const FIRST: usize = 200;
    const BUILDS: usize = 200;
    let bot = stage.bot(
        1000,
        "burst",
        "",
        "notify_events = finished\n[channel #bench]",
    );
    stage.rest("burst");
    let (mark, site) = (stage.hall.mark(), &stage.sites[&1000]);
    site.builds(&site.builders[FIRST..FIRST + BUILDS], 0);
    let ends: Vec<_> = site
        .ends()
        .into_iter()
        .rev()
        .take(BUILDS)
        .map(|end| end.2)
        .collect();
    let (last, first) = (ends[0], ends[BUILDS - 1]);
    let within = last.duration_since(first).unwrap_or_default().as_secs_f64();
    // More than the longest pause that good manners need between two lines.
    stage.hall.quiet("burst", seconds(8));
    let heard = |nick: &str| {
        let said = stage
            .hall
            .since(mark, |said| said.nick == nick && said.command == "PRIVMSG");
        let until = said
            .last()
            .map(|said| super::ms(said.wall.duration_since(last).unwrap_or_default()));
        let mut names = (FIRST + 1..=FIRST + BUILDS).map(|n| format!("b{n:05}"));
        let named = names
            .by_ref()
            .filter(|name| said.iter().any(|said| said.text.contains(name)))
            .count();
        let more = |said: &Said| {
            said.text
                .strip_suffix(" more")?
                .rsplit_once(" and ")?
                .1
                .parse::<usize>()
                .ok()
        };
        (
            named,
            named + said.iter().filter_map(more).sum::<usize>(),
            said.len(),
            until,
        )
    };
    let (ours, theirs) = (heard("burst"), heard(&site.reporter));
    let told = bot.map(|_| ours.1 as f64).into_iter().collect();
    let (named, lines, its_lines) = (ours.0, ours.2, theirs.2);
    vec![
        Row::new(
            "burst",
            "200 builds end at once: named or counted",
            1000,
            "",
            told,
        )
        .more_is_better()
        .beside(vec![theirs.1 as f64])
        .aim("200", |r| r.median() == BUILDS as f64)
        .note(format!(
            "in {within:.2} s; {named} by name; {lines} lines, the reporter's {its_lines}"
        )),
        Row::new(
            "burst",
            "the last end → the last line",
            1000,
            "ms",
            ours.3.into_iter().collect(),
        )
        .beside(theirs.3.into_iter().collect()),
    ]
}

/// 10,000 builders, and every tenth list of them stalls.
fn stall(stage: &mut Stage) -> Vec<Row> {
    const SIZE: usize = 10_000;
    stage.pools.clear();
    let (wire, from) = (
        Wire::start(stage.site(SIZE).master.port, true),
        Instant::now(),
    );
    let config = config(
        &wire.url(),
        stage.hall.port,
        "stall",
        "",
        "[channel #bench]",
    );
    let bot = Subject::start(&stage.hall, "stall", &config).map(|(bot, _)| bot);
    let bot = bot.filter(|bot| bot.knows(&stage.hall, &middle(SIZE)));
    let lists = wire
        .since(from)
        .iter()
        .filter(|request| request.lists_builders())
        .count();
    let answering = bot
        .iter()
        .map(|bot| super::ms(bot.started.elapsed()))
        .collect();
    let after = bot.and_then(|bot| {
        stage.rest(&bot.nick);
        Some(stage.hall.ask(&bot.nick, "list workers", seconds(20))?.0)
    });
    let row = |what, values| Row::new("stall", what, SIZE, "ms", values);
    vec![
        row("start → answering, every tenth list stalls", answering).note(format!(
            "{} of {lists} lists of builders stalled",
            lists.div_ceil(10)
        )),
        row(
            "list workers afterwards → first line",
            after.into_iter().collect(),
        )
        .aim("≤ 0.6", |r| r.median() <= 0.6),
    ]
}
