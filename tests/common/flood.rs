//! IRC servers that read as slowly as UnrealIRCd, Solanum and Ergo do, and kill as they do: a real ngIRCd
//! behind a gate. The gate keeps what a client sends in a receive queue, lets ngIRCd have it at the pace of the
//! software that it plays, closes the connection with "Excess Flood" when too much waits, and puts that software's
//! version into 004. All answers are ngIRCd's own. What is measured and what is read, IRC.md of the design says; where
//! public sources are named, too, the rule is as they have it.

use super::net::{Acceptor, is_timeout};
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SECOND: Duration = Duration::from_secs(1);

/// How fast a server reads.
#[derive(Clone, Copy, Debug)]
enum Pace {
    /// Counts lines, and reads while the count is below `burst`; each second, by a clock of its own, it forgives some.
    Counted { burst: u32, forgiven: u32 },
    /// Each line moves a clock ahead by one second, and by one more for each `bytes`; lines are read while that clock
    /// is less than `ahead` before the real one.
    Lagged { bytes: usize, ahead: Duration },
    /// So many at once, then one each `interval`, until the client has been silent for `cooldown`.
    Spaced {
        burst: u32,
        interval: Duration,
        cooldown: Duration,
    },
}

/// How much may wait to be read.
#[derive(Clone, Copy, Debug)]
enum Queue {
    Lines(usize),
    Bytes(usize),
}

/// The rule of one software.
#[derive(Clone, Copy, Debug)]
pub struct FloodRule {
    /// As it stands in 004.
    version: &'static str,
    /// Lines count from the first of these commands on; nothing here: all do.
    counts_from: &'static [&'static str],
    pace: Pace,
    queue: Queue,
}

/// "Unknown users 1 s + 1 s per 90 bytes, up to 10 s ahead" (IRC.md; `parse_addlag` and `client_lagged_up` in its
/// src/parse.c). The receive queue is the 8,000 bytes of its example.conf's class for clients.
pub const UNREAL: FloodRule = FloodRule {
    version: "UnrealIRCd-6.1.8",
    counts_from: &[],
    pace: Pace::Lagged {
        bytes: 90,
        ahead: Duration::from_secs(10),
    },
    queue: Queue::Bytes(8000),
};

/// "5 lines of grace, then 2/s, more than 20 queued kill" (IRC.md; `client_flood_burst_max`, `client_flood_message_num`
/// and `client_flood_max_lines` of its reference.conf). Whoever has not spoken yet may send forty lines a second
/// (`client_flood_burst_rate`).
pub const SOLANUM: FloodRule = FloodRule {
    version: "solanum-1.0-dev",
    counts_from: &["PRIVMSG", "NOTICE"],
    pace: Pace::Counted {
        burst: 5,
        forgiven: 2,
    },
    queue: Queue::Lines(20),
};

/// "Burst 5, then 2/s" (IRC.md; `fakelag` of its default.yaml, with a cooldown of 2 s), for who is registered. Ergo
/// waits and never kills for this: what the client sends meanwhile stays in the socket. Twenty lines, ten seconds of
/// them, are this gate's own limit, or a test on it could not fail.
pub const ERGO: FloodRule = FloodRule {
    version: "ergo-2.11.1",
    counts_from: &["JOIN", "PRIVMSG", "NOTICE"],
    pace: Pace::Spaced {
        burst: 5,
        interval: Duration::from_millis(500),
        cooldown: Duration::from_secs(2),
    },
    queue: Queue::Lines(20),
};

/// What one client has sent, and when it is read.
struct ReceiveQueue {
    rule: FloodRule,
    waiting: VecDeque<Vec<u8>>,
    /// Whether lines count yet.
    is_counting: bool,
    /// Lines that count against the burst.
    count: u32,
    /// When the next lines are forgiven.
    tick: Instant,
    /// The clock that lines move ahead.
    clock: Instant,
    /// When the last line was read.
    last: Instant,
}

impl ReceiveQueue {
    fn new(rule: FloodRule, now: Instant) -> ReceiveQueue {
        ReceiveQueue {
            rule,
            waiting: VecDeque::new(),
            is_counting: rule.counts_from.is_empty(),
            count: 0,
            tick: now + SECOND,
            clock: now,
            last: now,
        }
    }

    /// When the first line that waits may be read.
    fn ready_at(&mut self, now: Instant) -> Instant {
        match self.rule.pace {
            Pace::Counted { burst, forgiven } => {
                while self.tick <= now {
                    self.count = self.count.saturating_sub(forgiven);
                    self.tick += SECOND;
                }
                if self.count < burst { now } else { self.tick }
            }
            Pace::Lagged { ahead, .. } => self.clock.checked_sub(ahead).unwrap_or(now).max(now),
            Pace::Spaced {
                burst,
                interval,
                cooldown,
            } => {
                if now >= self.last + cooldown {
                    self.count = 0;
                }
                let is_burst = self.count < burst;
                if is_burst {
                    now
                } else {
                    now.max(self.last + interval)
                }
            }
        }
    }

    /// The next line, if it is read by now.
    fn take(&mut self, now: Instant) -> Option<Vec<u8>> {
        if self.ready_at(now) > now {
            return None;
        }
        let line = self.waiting.pop_front()?;
        let is_one = |command: &&str| line.starts_with(command.as_bytes());
        self.is_counting |= self.rule.counts_from.iter().any(is_one);
        if !self.is_counting {
            return Some(line);
        }
        self.count += 1;
        self.last = now;
        if let Pace::Lagged { bytes, .. } = self.rule.pace {
            let seconds = 1 + line.len() / bytes;
            self.clock = self.clock.max(now) + SECOND * u32::try_from(seconds).unwrap();
        }
        Some(line)
    }

    /// How much of what may wait does, in percent.
    fn percent(&self) -> usize {
        let (waiting, limit) = match self.rule.queue {
            Queue::Lines(limit) => (self.waiting.len(), limit),
            Queue::Bytes(limit) => (self.waiting.iter().map(Vec::len).sum(), limit),
        };
        (waiting * 100).div_ceil(limit)
    }
}

/// The gate before an IRC server on a port of 127.0.0.1.
pub struct FloodGate {
    pub port: u16,
    fullest: Arc<AtomicUsize>,
    _acceptor: Acceptor,
}

impl FloodGate {
    pub fn start(rule: FloodRule, to: u16) -> FloodGate {
        let fullest = Arc::<AtomicUsize>::default();
        let noted = fullest.clone();
        let acceptor = Acceptor::start(move |near, _| {
            let far = TcpStream::connect(("127.0.0.1", to)).unwrap();
            let answers = (far.try_clone().unwrap(), near.try_clone().unwrap());
            let copier =
                thread::spawn(move || announce_version(rule.version, answers.0, answers.1));
            guard(rule, &near, &far, &noted);
            let _ = near.shutdown(Shutdown::Both);
            let _ = far.shutdown(Shutdown::Both);
            let _ = copier.join();
        });
        FloodGate {
            port: acceptor.port,
            fullest,
            _acceptor: acceptor,
        }
    }

    /// How full a receive queue has been at most, in percent; beyond a hundred the server kills.
    pub fn fullest(&self) -> usize {
        self.fullest.load(Ordering::SeqCst)
    }
}

/// Passes the server's lines on, with this version in 004.
fn announce_version(version: &str, far: TcpStream, mut near: TcpStream) {
    for line in BufReader::new(far).split(b'\n').map_while(Result::ok) {
        let text = String::from_utf8_lossy(&line);
        // `:server 004 nick server version modes …`
        let mut words: Vec<&str> = text.split(' ').collect();
        if words.len() > 4 && words[1] == "004" {
            words[4] = version;
        }
        if near
            .write_all(format!("{}\n", words.join(" ")).as_bytes())
            .is_err()
        {
            break;
        }
    }
    let _ = near.shutdown(Shutdown::Both);
}

/// Passes the client's lines on at the pace of the rule, until it has gone, or has said too much.
fn guard(rule: FloodRule, mut near: &TcpStream, mut far: &TcpStream, fullest: &AtomicUsize) {
    let mut queue = ReceiveQueue::new(rule, Instant::now());
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let now = Instant::now();
        while let Some(line) = queue.take(now) {
            if far.write_all(&line).is_err() {
                return;
            }
        }
        fullest.fetch_max(queue.percent(), Ordering::SeqCst);
        if queue.percent() > 100 {
            kill(near);
            return;
        }
        let wait = queue.ready_at(now) - now;
        let is_waiting = !queue.waiting.is_empty();
        let timeout = is_waiting.then_some(wait.max(Duration::from_millis(1)));
        near.set_read_timeout(timeout).unwrap();
        match near.read(&mut chunk) {
            Ok(0) => return,
            Ok(count) => bytes.extend(&chunk[..count]),
            Err(e) if is_timeout(&e) => {}
            Err(_) => return,
        }
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            queue.waiting.push_back(bytes.drain(..=end).collect());
        }
    }
}

/// Says why, and reads on for a moment: a socket that is closed with something unread takes back what it has sent.
fn kill(mut near: &TcpStream) {
    let _ = near.write_all(b"ERROR :Closing Link: 127.0.0.1 (Excess Flood)\r\n");
    let _ = near.shutdown(Shutdown::Write);
    near.set_read_timeout(Some(SECOND)).unwrap();
    let mut chunk = [0; 4096];
    while near.read(&mut chunk).is_ok_and(|count| count > 0) {}
}
