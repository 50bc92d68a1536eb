//! What is measured and with what: masters of several sizes with Buildbot's reporter inside, bots, a counting
//! proxy, and what the kernel knows of a process.

use super::common::{Master, Process, Worker, free_port, guarded, root, scratch, venv};
use super::hall::Hall;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
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
pub struct Site {
    pub master: Master,
    pub reporter: String,
    /// From the start of the master until its reporter had joined.
    pub reporter_start: f64,
    /// Builders for the puppet to build.
    pub builders: Vec<u64>,
    request: u64,
    puppet: u16,
    _worker: Worker,
}

impl Site {
    pub fn start(size: usize, hall: &Hall) -> Site {
        super::tell(&format!(
            "starting a master with {size} builders and {BUILDS} builds"
        ));
        let (reporter, puppet) = (format!("reporter{size}"), free_port());
        let config = include_str!("bench.cfg")
            .replace(
                "@CONFIGURED@",
                &if size > CONFIGURED { 10 } else { size }.to_string(),
            )
            .replace("@PUPPET@", &puppet.to_string())
            .replace("@REPORTER@", &reporter)
            .replace("@IRC@", &hall.port.to_string());
        let (mark, from) = (hall.mark(), Instant::now());
        let master = Master::start(&format!("bench{size}"), &config);
        let joined = hall
            .joined(mark, &reporter, Duration::from_secs(60))
            .expect("the reporter joins");
        let worker = Worker::start(&master, "w1");
        let filled = guarded(venv("python"))
            .arg(root().join("tests/scene/bench/fill.py"))
            .arg(master.dir.join("state.sqlite"))
            .args([size.to_string(), BUILDS.to_string()])
            .output()
            .expect("python runs");
        let filled: Value = serde_json::from_slice(&filled.stdout)
            .unwrap_or_else(|_| panic!("fill.py: {filled:?}"));
        for n in 0..12 {
            let (revision, comments) = (format!("{n:040x}"), format!("Change {n}"));
            let author = "Ann Author <ann@example.org>";
            let fields = [
                ("author", author),
                ("revision", &revision),
                ("comments", &comments),
                ("branch", "other"),
            ];
            master.change_with(&fields);
        }
        let builders = filled["builders"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(Value::as_u64)
            .collect();
        let request = filled["request"].as_u64().expect("a request");
        let reporter_start = super::ms(joined.at - from);
        Site {
            master,
            reporter,
            reporter_start,
            builders,
            request,
            puppet,
            _worker: worker,
        }
    }

    /// Has builds made: `per_second` starts, or at 0 all at once. Returns when they have ended.
    pub fn builds(&self, builders: &[u64], per_second: u32) {
        let order =
            json!({"request": self.request, "builders": builders, "per_second": per_second});
        let mut stream =
            TcpStream::connect(("127.0.0.1", self.puppet)).expect("the puppet listens");
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .expect("a timeout");
        stream
            .write_all(format!("{order}\n").as_bytes())
            .expect("the puppet listens");
        let mut done = String::new();
        BufReader::new(stream)
            .read_line(&mut done)
            .expect("the puppet answers");
        assert_eq!(
            done,
            "done\n",
            "the puppet failed; see {}",
            self.master.dir.display()
        );
    }

    /// A small GET from beside: the milliseconds that it took.
    pub fn small_get(&self) -> Option<f64> {
        let from = Instant::now();
        let answer = self
            .master
            .request("GET", "/api/v2/builds?order=-buildid&limit=1", "", "")
            .ok();
        answer
            .filter(|(status, _)| *status == 200)
            .map(|_| super::ms(from.elapsed()))
    }

    /// When builds ended, as the master wrote it down: builder, number, time.
    pub fn ends(&self) -> Vec<(u64, u64, SystemTime)> {
        let text = fs::read_to_string(self.master.dir.join("stamps")).unwrap_or_default();
        let one = |line: &str| {
            let mut words = line.split(' ');
            let (builder, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
            let at = Duration::from_secs_f64(words.next()?.parse().ok()?);
            Some((builder, number, SystemTime::UNIX_EPOCH + at))
        };
        text.lines().filter_map(one).collect()
    }
}

/// A second listener on the event stream of a master: when the end of each build arrives there.
pub struct Listener(Arc<Mutex<Vec<(u64, u64, SystemTime)>>>);

impl Listener {
    pub fn open(port: u16) -> Listener {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the master listens");
        stream
            .write_all(b"GET /sse/listen/builds/*/finished HTTP/1.1\r\nHost: m\r\n\r\n")
            .expect("the master listens");
        let ends = Arc::new(Mutex::new(Vec::new()));
        let heard = ends.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let at = SystemTime::now();
                let event: Value = line
                    .strip_prefix("data: ")
                    .and_then(|e| serde_json::from_str(e).ok())
                    .unwrap_or_default();
                let number = |key: &str| event["message"][key].as_u64();
                heard.lock().unwrap().extend(
                    number("builderid")
                        .zip(number("number"))
                        .map(|(b, n)| (b, n, at)),
                );
            }
        });
        Listener(ends)
    }

    pub fn heard(&self, builder: u64, number: u64) -> Option<SystemTime> {
        self.0
            .lock()
            .unwrap()
            .iter()
            .find(|(b, n, _)| (*b, *n) == (builder, number))
            .map(|heard| heard.2)
    }
}

/// The bot under test: the release build, as quiet as a user would run it.
pub struct Subject {
    pub nick: String,
    pub started: Instant,
    process: Process,
}

pub fn binary() -> PathBuf {
    root().join("target/release/buildbot-irc")
}

/// A configuration: more of `[buildbot]`, and more of `[irc]` with the sections behind it.
pub fn config(url: &str, irc: u16, nick: &str, buildbot: &str, more: &str) -> String {
    format!(
        "[buildbot]\nurl = {url}\n{buildbot}\n[irc]\nhost = 127.0.0.1\nport = {irc}\nnick = {nick}\n{more}\n"
    )
}

impl Subject {
    /// Starts one: it, and the milliseconds until it had joined.
    pub fn start(hall: &Hall, nick: &str, config: &str) -> Option<(Subject, f64)> {
        let (dir, mark) = (scratch("bench-bot"), hall.mark());
        fs::write(dir.join("bot.conf"), config).ok()?;
        let mut command = guarded(binary());
        command.args(["-q", "-c", "bot.conf"]).current_dir(dir);
        let started = Instant::now();
        let subject = Subject {
            nick: nick.to_string(),
            process: Process::start("bot", command),
            started,
        };
        let joined = hall.joined(mark, nick, Duration::from_secs(10))?.at - started;
        Some((subject, super::ms(joined)))
    }

    /// Asks until it knows this builder to be idle, for some minutes at most: whether it does.
    pub fn knows(&self, hall: &Hall, builder: &str) -> bool {
        while self.started.elapsed() < Duration::from_secs(180) {
            let asked = hall.ask(
                &self.nick,
                &format!("status {builder}"),
                Duration::from_secs(60),
            );
            if asked.is_some_and(|(_, text)| text.starts_with(&format!("{builder}: idle"))) {
                return true;
            }
            // Not so often that its own pace makes it wait for long.
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
        let (mut cpu, mut wakes) = (0.0, 0);
        for task in fs::read_dir(format!("/proc/{pid}/task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let read = |file: &str| fs::read_to_string(task.path().join(file)).unwrap_or_default();
            cpu += read("schedstat")
                .split(' ')
                .next()
                .and_then(|ns| ns.parse().ok())
                .unwrap_or(0.0)
                / 1e6;
            let status = read("status");
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            wakes += line
                .and_then(|count| count.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
        Cost { ticks, cpu, wakes }
    }

    pub fn since(self, before: Cost) -> Cost {
        let Cost { ticks, cpu, wakes } = before;
        Cost {
            ticks: self.ticks - ticks,
            cpu: self.cpu - cpu,
            wakes: self.wakes - wakes,
        }
    }
}

/// A request as it went over a wire.
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

/// A wire between a bot and a master that counts requests, and lets answers stall if it is told to.
pub struct Wire {
    pub port: u16,
    requests: Arc<Mutex<Vec<Request>>>,
    /// When the master last said something.
    answered: Arc<Mutex<Instant>>,
}

impl Wire {
    /// With `stall` every tenth list of builders, the first one included, stops after some bytes and says no more:
    /// what a 4.3.0 master does now and then with a large answer.
    pub fn start(to: u16, stall: bool) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let answered = Arc::new(Mutex::new(Instant::now()));
        let (shared, heard) = (requests.clone(), answered.clone());
        thread::spawn(move || {
            for (number, near) in listener.incoming().flatten().enumerate() {
                let (shared, heard) = (shared.clone(), heard.clone());
                let far = TcpStream::connect(("127.0.0.1", to));
                thread::spawn(move || {
                    far.map(|far| pump(number, near, far, (&shared, heard), stall))
                });
            }
        });
        Wire {
            port,
            requests,
            answered,
        }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// The requests since a moment.
    pub fn since(&self, from: Instant) -> Vec<Request> {
        self.requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.at >= from)
            .cloned()
            .collect()
    }

    /// Waits for a second without an answer: when the last one had come.
    pub fn silence(&self) -> Instant {
        loop {
            let last = *self.answered.lock().unwrap();
            match Duration::from_secs(1).checked_sub(last.elapsed()) {
                Some(rest) => thread::sleep(rest),
                None => return last,
            }
        }
    }

    /// How many connections carried requests since then, the event stream's not counted.
    pub fn connections(&self, from: Instant) -> usize {
        let requests = self
            .since(from)
            .into_iter()
            .filter(|request| request.line.contains("/api/"));
        requests
            .map(|request| request.connection)
            .collect::<BTreeSet<_>>()
            .len()
    }
}

fn pump(
    connection: usize,
    mut near: TcpStream,
    far: TcpStream,
    (shared, heard): (&Mutex<Vec<Request>>, Arc<Mutex<Instant>>),
    stall: bool,
) {
    near.set_nodelay(true)
        .and(far.set_nodelay(true))
        .expect("sockets of our own");
    let (Ok(from), Ok(into), Ok(mut out)) = (far.try_clone(), near.try_clone(), far.try_clone())
    else {
        return;
    };
    let held = Arc::new(AtomicBool::new(false));
    let hold = held.clone();
    thread::spawn(move || answers(from, into, &held, &heard));
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
            let mut requests = shared.lock().unwrap();
            let lists = requests
                .iter()
                .filter(|request| request.lists_builders())
                .count();
            hold.store(
                stall && request.lists_builders() && lists.is_multiple_of(10),
                Ordering::SeqCst,
            );
            requests.push(request);
        }
        if out.write_all(&chunk[..size]).is_err() {
            break;
        }
    }
    let _ = far.shutdown(Shutdown::Both);
}

fn answers(mut from: TcpStream, mut into: TcpStream, held: &AtomicBool, heard: &Mutex<Instant>) {
    let mut chunk = [0; 65536];
    while let Ok(size @ 1..) = from.read(&mut chunk) {
        *heard.lock().unwrap() = Instant::now();
        let held = held.load(Ordering::SeqCst);
        let passed = into.write_all(&chunk[..if held { size.min(400) } else { size }]);
        if held {
            return; // neither more bytes nor an end
        }
        if passed.is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
}

/// The output of a program of the system or of cargo; none if it failed.
pub fn output(command: &mut Command) -> Option<String> {
    let out = command
        .current_dir(root())
        .output()
        .ok()
        .filter(|out| out.status.success())?;
    Some(String::from_utf8_lossy(&out.stdout).trim().to_string())
}

/// Cargo says where it is to what it runs.
pub fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(args);
    command
}
