//! What is measured and with what: masters of several sizes with Buildbot's reporter inside, bots, a counting proxy, and
//! what the kernel knows of a process.

use super::common::{Master, Process, Worker, binary, free_port, guarded, root, scratch, venv};
use super::irc_server::IrcServer;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Every master's database holds so many finished builds.
const BUILDS: usize = 100_000;
/// A master takes minutes to configure more builders than this; the others are rows in its database, which the API
/// and the reporter cannot tell from configured ones.
pub const CONFIGURED: usize = 1000;

/// A real master with a worker and the reporter.
pub struct Installation {
    pub master: Master,
    pub reporter: String,
    /// Milliseconds from the start of the master until its reporter had joined.
    pub reporter_start: f64,
    /// Builders for the simulator to build.
    pub builders: Vec<u64>,
    simulator_port: u16,
    _worker: Worker,
}

impl Installation {
    pub fn start(size: usize, irc: &IrcServer) -> Installation {
        super::progress(&format!(
            "starting a master with {size} builders and {BUILDS} builds"
        ));
        let reporter = format!("reporter{size}");
        let simulator_port = free_port();
        let configured = if size > CONFIGURED { 10 } else { size };
        let config = include_str!("master.cfg")
            .replace("@CONFIGURED@", &configured.to_string())
            .replace("@SIMULATOR@", &simulator_port.to_string())
            .replace("@REPORTER@", &reporter)
            .replace("@IRC@", &irc.port.to_string());
        let before = irc.count();
        let start = Instant::now();
        let master = Master::start(&format!("bench{size}"), &config);
        let joined = irc.joined(before, &reporter, Duration::from_secs(60));
        let joined = joined.expect("the reporter joins");
        let worker = Worker::start(&master, "w1");
        let filled = fill_database(&master, size);
        add_changes(&master);
        let builders = filled["builders"].as_array().expect("a list");
        Installation {
            master,
            reporter,
            reporter_start: super::ms(joined.at - start),
            builders: builders.iter().filter_map(Value::as_u64).collect(),
            simulator_port,
            _worker: worker,
        }
    }

    /// Has builds simulated: `per_second` starts, or at 0 all at once. Returns when they have ended.
    pub fn simulate(&self, builders: &[u64], per_second: u32) {
        self.order(&json!({"builders": builders, "per_second": per_second}));
    }

    /// Has buildsets of so many builders each simulated, all at once.
    pub fn simulate_together(&self, builders: &[u64], together: usize) {
        self.order(&json!({"builders": builders, "per_second": 0, "together": together}));
    }

    fn order(&self, order: &Value) {
        let stream = TcpStream::connect(("127.0.0.1", self.simulator_port));
        let mut stream = stream.expect("the simulator listens");
        let timeout = Some(Duration::from_secs(300));
        stream.set_read_timeout(timeout).expect("a timeout");
        let sent = stream.write_all(format!("{order}\n").as_bytes());
        sent.expect("the simulator listens");
        let mut done = String::new();
        let answered = BufReader::new(stream).read_line(&mut done);
        answered.expect("the simulator answers");
        let dir = self.master.dir.display();
        assert_eq!(done, "done\n", "the simulator failed; see {dir}");
    }

    /// The milliseconds that a small GET takes.
    pub fn small_get(&self) -> Option<f64> {
        let start = Instant::now();
        let path = "/api/v2/builds?order=-buildid&limit=1";
        let (status, _) = self.master.request("GET", path, "", "").ok()?;
        (status == 200).then(|| super::ms(start.elapsed()))
    }

    /// When builds ended, as the master wrote it down: builder, number, time.
    pub fn ends(&self) -> Vec<(u64, u64, SystemTime)> {
        let text = fs::read_to_string(self.master.dir.join("stamps")).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split(' ');
            let builder = words.next()?.parse().ok()?;
            let number = words.next()?.parse().ok()?;
            let at = Duration::from_secs_f64(words.next()?.parse().ok()?);
            Some((builder, number, SystemTime::UNIX_EPOCH + at))
        };
        text.lines().filter_map(parse).collect()
    }
}

/// Fills the database of a master up to this many builders.
fn fill_database(master: &Master, size: usize) -> Value {
    let mut command = guarded(venv("python"));
    command.arg(root().join("tests/bench/fill_database.py"));
    command.arg(master.dir.join("state.sqlite"));
    command.args([size.to_string(), BUILDS.to_string()]);
    let out = command.output().expect("python runs");
    serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("fill_database.py: {out:?}"))
}

fn add_changes(master: &Master) {
    for n in 0..12 {
        master.change_with(&[
            ("author", "Ann Author <ann@example.org>"),
            ("revision", &format!("{n:040x}")),
            ("comments", &format!("Change {n}")),
            ("branch", "other"),
        ]);
    }
}

/// A second listener on the event stream of a master: when the end of each build arrives there.
pub struct StreamListener(Arc<Mutex<Vec<(u64, u64, SystemTime)>>>);

impl StreamListener {
    pub fn open(port: u16) -> StreamListener {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the master listens");
        let request = b"GET /sse/listen/builds/*/finished HTTP/1.1\r\nHost: m\r\n\r\n";
        stream.write_all(request).expect("the master listens");
        let ends = Arc::new(Mutex::new(Vec::new()));
        let heard = ends.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let at = SystemTime::now();
                let data = line.strip_prefix("data: ").unwrap_or("");
                let event: Value = serde_json::from_str(data).unwrap_or_default();
                let builder = event["message"]["builderid"].as_u64();
                let number = event["message"]["number"].as_u64();
                if let (Some(builder), Some(number)) = (builder, number) {
                    heard.lock().unwrap().push((builder, number, at));
                }
            }
        });
        StreamListener(ends)
    }

    pub fn heard(&self, builder: u64, number: u64) -> Option<SystemTime> {
        let ends = self.0.lock().unwrap();
        let mut found = ends
            .iter()
            .filter(|end| (end.0, end.1) == (builder, number));
        found.next().map(|end| end.2)
    }
}

/// The bot under test: the release build, as quiet as a user would run it.
pub struct BenchBot {
    pub nick: String,
    pub started: Instant,
    process: Process,
}

impl BenchBot {
    /// Starts one: it, and the milliseconds until it had joined.
    pub fn start(irc: &IrcServer, nick: &str, config: &str) -> Option<(BenchBot, f64)> {
        let dir = scratch("bench-bot");
        let before = irc.count();
        fs::write(dir.join("bot.conf"), config).ok()?;
        let mut command = guarded(binary());
        command.args(["-q", "-c", "bot.conf"]).current_dir(dir);
        let started = Instant::now();
        let bot = BenchBot {
            nick: nick.to_string(),
            process: Process::start("bot", command),
            started,
        };
        let joined = irc.joined(before, nick, Duration::from_secs(10))?;
        Some((bot, super::ms(joined.at - started)))
    }

    /// Asks until it knows this builder to be idle, for some minutes at most: whether it does.
    pub fn wait_until_ready(&self, irc: &IrcServer, builder: &str) -> bool {
        let question = format!("status {builder}");
        let answer = format!("{builder}: idle");
        while self.started.elapsed() < Duration::from_secs(180) {
            let asked = irc.ask(&self.nick, &question, Duration::from_secs(60));
            if asked.is_some_and(|(_, text)| text.starts_with(&answer)) {
                return true;
            }
            // Not so often that its pacing makes it wait for long.
            thread::sleep(Duration::from_millis(400));
        }
        false
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// The value of a line `Name: value kB` of one of /proc's files, in MiB.
pub fn mebibytes(pid: u32, file: &str, name: &str) -> f64 {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib: Option<f64> = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

/// What a process has cost so far.
#[derive(Clone, Copy)]
pub struct Cost {
    /// User and system time as the kernel tells everybody, in ticks of 10 ms.
    pub ticks: u64,
    /// The same by the scheduler's own clock, in milliseconds.
    pub cpu: f64,
    /// How often one of its threads woke up because what it waited for had come.
    pub wakes: u64,
}

impl Cost {
    pub fn of(pid: u32) -> Cost {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // The name in parentheses may hold blanks; utime and stime are the 12th and 13th field after it.
        let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
        let ticks = fields
            .skip(11)
            .take(2)
            .filter_map(|field| field.parse::<u64>().ok())
            .sum();
        let mut cost = Cost {
            ticks,
            cpu: 0.0,
            wakes: 0,
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            let schedstat = read("schedstat");
            let nanoseconds = schedstat.split(' ').next().and_then(|ns| ns.parse().ok());
            cost.cpu += nanoseconds.unwrap_or(0.0) / 1e6;
            let status = read("status");
            let mut lines = status.lines();
            let switches = lines.find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            let switches = switches.and_then(|count| count.trim().parse().ok());
            cost.wakes += switches.unwrap_or(0);
        }
        cost
    }

    pub fn since(self, before: Cost) -> Cost {
        Cost {
            ticks: self.ticks - before.ticks,
            cpu: self.cpu - before.cpu,
            wakes: self.wakes - before.wakes,
        }
    }
}

/// A request as it passed a [`CountingProxy`].
#[derive(Clone)]
pub struct Request {
    pub at: Instant,
    connection: usize,
    pub line: String,
}

impl Request {
    /// Of all builders, a page of them or the whole.
    pub fn lists_builders(&self) -> bool {
        self.line.contains("/api/v2/builders?")
    }
}

/// What a [`CountingProxy`] has seen, which its threads share.
struct Traffic {
    requests: Mutex<Vec<Request>>,
    /// When the master last said something.
    answered: Mutex<Instant>,
    stalls: Stalls,
}

/// Which answers stop after some bytes.
#[derive(Clone, Copy, PartialEq)]
enum Stalls {
    Never,
    /// Every tenth list of builders, the first one included: what a 4.3.0 master does now and then with a large answer.
    BuilderLists,
    /// Every tenth answer, and every list of a build's changes: that one is slow where there are many.
    Everything,
}

/// Stands between a bot and a master, counts requests, and lets answers stall if it is told to.
pub struct CountingProxy {
    pub port: u16,
    traffic: Arc<Traffic>,
}

impl CountingProxy {
    pub fn start(to: u16) -> CountingProxy {
        CountingProxy::launch(to, Stalls::Never)
    }

    /// Every tenth list of builders stalls.
    pub fn start_stalling(to: u16) -> CountingProxy {
        CountingProxy::launch(to, Stalls::BuilderLists)
    }

    /// Every tenth answer stalls, and no list of a build's changes ever comes.
    pub fn start_hostile(to: u16) -> CountingProxy {
        CountingProxy::launch(to, Stalls::Everything)
    }

    fn launch(to: u16, stalls: Stalls) -> CountingProxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let traffic = Arc::new(Traffic {
            requests: Mutex::default(),
            answered: Mutex::new(Instant::now()),
            stalls,
        });
        let shared = traffic.clone();
        thread::spawn(move || {
            for (connection, near) in listener.incoming().flatten().enumerate() {
                let traffic = shared.clone();
                thread::spawn(move || {
                    if let Ok(far) = TcpStream::connect(("127.0.0.1", to)) {
                        pass_requests(connection, near, far, &traffic);
                    }
                });
            }
        });
        CountingProxy { port, traffic }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The requests since a moment.
    pub fn since(&self, from: Instant) -> Vec<Request> {
        let mut requests = self.traffic.requests.lock().unwrap().clone();
        requests.retain(|request| request.at >= from);
        requests
    }

    /// Waits for a second without an answer; returns when the last one had come.
    pub fn wait_silence(&self) -> Instant {
        loop {
            let last = *self.traffic.answered.lock().unwrap();
            let Some(left) = Duration::from_secs(1).checked_sub(last.elapsed()) else {
                return last;
            };
            thread::sleep(left);
        }
    }

    /// How many connections carried requests since then, the event stream's not counted.
    pub fn connections(&self, from: Instant) -> usize {
        let mut connections = BTreeSet::new();
        for request in self.since(from) {
            if request.line.contains("/api/") {
                connections.insert(request.connection);
            }
        }
        connections.len()
    }
}

/// Copies requests, and starts a thread that copies the answers.
fn pass_requests(connection: usize, mut near: TcpStream, far: TcpStream, traffic: &Arc<Traffic>) {
    near.set_nodelay(true).expect("a socket of our own");
    far.set_nodelay(true).expect("a socket of our own");
    let (Ok(from), Ok(into), Ok(mut out)) = (far.try_clone(), near.try_clone(), far.try_clone())
    else {
        return;
    };
    let is_held = Arc::new(AtomicBool::new(false));
    let held = is_held.clone();
    let answers = traffic.clone();
    thread::spawn(move || pass_answers(from, into, &held, &answers));
    let mut chunk = [0; 65536];
    // Bots do not pipeline: what comes at once is one request, and its first line is whole.
    while let Ok(size @ 1..) = near.read(&mut chunk) {
        let text = String::from_utf8_lossy(&chunk[..size]);
        if let Some((line, _)) = text.split_once(" HTTP/1.1\r\n") {
            let request = Request {
                at: Instant::now(),
                connection,
                line: line.to_string(),
            };
            is_held.store(traffic.record(request), Ordering::SeqCst);
        }
        if out.write_all(&chunk[..size]).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Both);
}

impl Traffic {
    /// Takes down a request; returns whether its answer is to stall.
    fn record(&self, request: Request) -> bool {
        let mut requests = self.requests.lock().unwrap();
        let lists = requests.iter().filter(|request| request.lists_builders());
        let stalls = match self.stalls {
            Stalls::Never => false,
            Stalls::BuilderLists => request.lists_builders() && lists.count().is_multiple_of(10),
            // The event stream stays: without it, nobody's news would be early.
            Stalls::Everything if request.line.contains("/sse/") => false,
            Stalls::Everything => {
                request.line.contains("/changes?") || (requests.len() + 1).is_multiple_of(10)
            }
        };
        requests.push(request);
        stalls
    }
}

fn pass_answers(mut from: TcpStream, mut into: TcpStream, held: &AtomicBool, traffic: &Traffic) {
    let mut chunk = [0; 65536];
    while let Ok(size @ 1..) = from.read(&mut chunk) {
        *traffic.answered.lock().unwrap() = Instant::now();
        if held.load(Ordering::SeqCst) {
            let _ = into.write_all(&chunk[..size.min(400)]);
            return; // neither more bytes nor an end
        }
        if into.write_all(&chunk[..size]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
}

/// The output of a program of the system or of cargo; none if it failed.
pub fn output(command: &mut Command) -> Option<String> {
    let out = command.current_dir(root()).output().ok()?;
    let text = String::from_utf8_lossy(&out.stdout);
    out.status.success().then(|| text.trim().to_string())
}

/// Cargo says where it is to what it runs.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}
