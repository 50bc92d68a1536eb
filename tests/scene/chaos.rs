//! The chaos run: for some minutes the IRC server, the master, the links to both and the bot itself are cut, frozen,
//! garbled, restarted and killed at random while real builds end. Then what the channel saw is compared with what the
//! master did. `make chaos MINUTES=30 SEED=7` runs longer or otherwise. The seed decides what happens; when exactly
//! is up to the machine.

use super::BOT;
use crate::common::{
    Bot, Client, Master, Ngircd, NgircdOptions, Process, TIMEOUT, Worker, wait_for,
};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

const BUILDERS: [&str; 7] = ["alpha", "beta", "gamma", "mac os", "slow", "coin", "last"];
const CONFIG: &str = "ends('alpha', SUCCESS)\nends('beta', FAILURE)\nends('gamma', WARNINGS)\nbroken('mac os')\n\
    builder('slow', 'sleep 4')\nbuilder('coin', 'test $(($$ % 2)) = 0')\nends('last', SUCCESS)\n";
/// An answer that came so shortly before a crash the bot may not have read or written down; before an orderly end, so.
const CRASH: Duration = Duration::from_secs(2);
const FAREWELL: Duration = Duration::from_millis(500);
/// So long before its death a server may have answered the bot and not yet told the listener.
const IN_FLIGHT: Duration = Duration::from_secs(3);
/// How long the bot may take at the end until all is said: the rest of a back-off, and a queue that is paced.
const SETTLE: Duration = Duration::from_secs(60);

/// Xorshift; each actor has its own, so that one's dice do not depend on another's haste.
#[derive(Default)]
struct Random(u64);

impl Random {
    fn new(seed: u64, actor: u64) -> Random {
        let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (actor << 32 | 1));
        (0..8).map(|_| random.below(2)).for_each(drop); // small seeds are alike in their first numbers
        random
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    fn seconds(&mut self, from: usize, to: usize) -> Duration {
        Duration::from_millis((from * 1000 + self.below((to - from) * 1000)) as u64)
    }
}

/// What a wire does to what should pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Mood {
    #[default]
    Well,
    Frozen,
    /// New connections are closed at once.
    Refusing,
    /// Rubbish between the lines of the IRC server: every line arrives.
    Junk,
    /// Lines and answers are damaged, so that nobody can take them for something else.
    Damaged,
    /// Events of the master's stream are lost or doubled.
    Uneven,
}

/// A line of the bot for the channel, as the wire saw it.
struct Said {
    at: Instant,
    connection: usize,
    text: String,
    /// When the server's answer to a later PING went to the bot.
    confirmed: Option<Instant>,
}

#[derive(Default)]
struct Traffic {
    mood: Mood,
    random: Random,
    open: Vec<TcpStream>,
    /// For each connection that has ended, how, and since when answers may not have counted any more.
    ended: Vec<Option<(&'static str, Instant)>>,
    said: Vec<Said>,
    /// PINGs of the bot: connection, token, and the number of lines said before.
    pings: Vec<(usize, String, usize)>,
}

impl Traffic {
    /// Some connections have ended, unless they had before.
    fn end(&mut self, some: impl Iterator<Item = usize>, how: &'static str, grace: Duration) {
        for connection in some {
            self.ended[connection].get_or_insert((how, Instant::now() - grace));
        }
    }

    /// What the bot says.
    fn take_down(&mut self, connection: usize, lines: &str) {
        for line in lines.lines() {
            if let Some(text) = line.strip_prefix("PRIVMSG #lab :") {
                let (at, text, confirmed) = (Instant::now(), text.to_string(), None);
                self.said.push(Said {
                    at,
                    connection,
                    text,
                    confirmed,
                });
            } else if let Some(token) = line.strip_prefix("PING :") {
                self.pings
                    .push((connection, token.to_string(), self.said.len()));
            }
        }
    }

    /// How many lines were said before the PING that this answers. What comes while lines are damaged counts for
    /// nothing: who knows what the bot made of it?
    fn confirms(&self, connection: usize, line: &str) -> usize {
        let token = line
            .trim_end()
            .rsplit(':')
            .next()
            .filter(|_| line.contains(" PONG ") && self.mood != Mood::Damaged);
        let mut pings = self.pings.iter().rev();
        pings
            .find(|ping| ping.0 == connection && Some(ping.1.as_str()) == token)
            .map_or(0, |ping| ping.2)
    }
}

/// A wire between the bot and a server, for IRC or HTTP.
#[derive(Clone)]
struct Wire {
    port: u16,
    irc: bool,
    traffic: Arc<(Mutex<Traffic>, Condvar)>,
}

impl Wire {
    fn start(to: u16, irc: bool, random: Random) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let traffic = Arc::new((
            Mutex::new(Traffic {
                random,
                ..Default::default()
            }),
            Condvar::new(),
        ));
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            irc,
            traffic,
        };
        let shared = wire.clone();
        thread::spawn(move || {
            listener
                .incoming()
                .flatten()
                .for_each(|near| shared.connect(near, to))
        });
        wire
    }

    fn with<T>(&self, change: impl FnOnce(&mut Traffic) -> T) -> T {
        let value = change(&mut self.traffic.0.lock().unwrap());
        self.traffic.1.notify_all();
        value
    }

    fn connect(&self, near: TcpStream, to: u16) {
        if self.with(|traffic| traffic.mood == Mood::Refusing) {
            return;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
            return;
        };
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        near.set_write_timeout(Some(TIMEOUT)).unwrap();
        let connection = self.with(|traffic| {
            traffic.open.extend([clone(&near), clone(&far)]);
            traffic.ended.push(None);
            traffic.ended.len() - 1
        });
        let stream = Arc::new(AtomicBool::new(false)); // whether this is the event stream
        let ends = [(clone(&far), clone(&near), true), (near, far, false)];
        for (from, into, down) in ends {
            let (wire, stream) = (self.clone(), stream.clone());
            thread::spawn(move || wire.pump(connection, from, into, down, &stream));
        }
    }

    /// Copies from the bot to the server, or down to the bot what becomes of the server's answers.
    fn pump(
        &self,
        n: usize,
        mut from: TcpStream,
        mut into: TcpStream,
        down: bool,
        stream: &AtomicBool,
    ) {
        let (mut chunk, mut bytes) = ([0; 8192], Vec::new());
        while let Ok(size @ 1..) = from.read(&mut chunk) {
            bytes.extend(&chunk[..size]);
            if bytes.starts_with(b"GET /sse/listen") {
                stream.store(true, Ordering::SeqCst);
            }
            let (mut out, mut confirmed) = (Vec::new(), 0);
            if !down {
                let end = bytes
                    .iter()
                    .rposition(|b| *b == b'\n' || !self.irc)
                    .map_or(0, |at| at + 1);
                out.extend(bytes.drain(..end));
                self.with(|traffic| traffic.take_down(n, &String::from_utf8_lossy(&out)));
            }
            let traffic = self.traffic.0.lock().unwrap();
            drop(
                self.traffic
                    .1
                    .wait_while(traffic, |traffic| traffic.mood == Mood::Frozen)
                    .unwrap(),
            );
            while let Some(piece) =
                piece(&mut bytes, self.irc, stream.load(Ordering::SeqCst)).filter(|_| down)
            {
                self.with(|traffic| {
                    confirmed = traffic
                        .confirms(n, &String::from_utf8_lossy(&piece))
                        .max(confirmed);
                    out.extend(garbled(traffic, self.irc, &piece));
                });
            }
            if into.write_all(&out).is_err() {
                break;
            }
            self.with(|traffic| {
                let told = traffic.said[..confirmed]
                    .iter_mut()
                    .filter(|said| said.connection == n);
                told.for_each(|said| said.confirmed = said.confirmed.or(Some(Instant::now())));
            });
        }
        self.with(|traffic| traffic.end(n..=n, "broken", CRASH));
        let _ = into.shutdown(Shutdown::Write);
        let _ = from.shutdown(Shutdown::Read);
    }
}

/// Takes the next whole piece: a line of IRC, the head or a chunk of an event stream, else whatever there is.
fn piece(bytes: &mut Vec<u8>, irc: bool, stream: bool) -> Option<Vec<u8>> {
    let after = |what: &[u8]| {
        Some(
            bytes
                .windows(what.len())
                .position(|window| window == what)?
                + what.len(),
        )
    };
    let end = match (irc, stream) {
        (true, _) => after(b"\n")?,
        (_, false) => Some(bytes.len()).filter(|size| *size > 0)?,
        _ if bytes.starts_with(b"HTTP/") => after(b"\r\n\r\n")?,
        _ => {
            let start = after(b"\r\n")?;
            let size = usize::from_str_radix(String::from_utf8_lossy(&bytes[..start]).trim(), 16);
            size.map_or(bytes.len(), |size| start + size + 2) // an error message comes in no chunks
        }
    };
    (end <= bytes.len()).then(|| bytes.drain(..end).collect())
}

fn garbled(traffic: &mut Traffic, irc: bool, piece: &[u8]) -> Vec<u8> {
    let dice = traffic.random.below(8);
    match traffic.mood {
        Mood::Junk => {
            let junk = match dice {
                0 => (0..300)
                    .map(|_| traffic.random.below(256) as u8)
                    .filter(|b| *b != b'\n')
                    .collect(),
                1 => b":joe!j@h PRIVMSG #lab :bot: \xff\xfe\xc3 \xf0\x9f".to_vec(),
                2 => vec![b'x'; 1 << 20],
                3 => {
                    b"\r\n\n\0\0\n:\r\n: \r\n@a :b\r\n433\r\nCAP\r\n353 *\r\nKICK\r\nNICK :\r\nPING"
                        .to_vec()
                }
                _ => return piece.to_vec(),
            };
            [&junk, &b"\r\n"[..], piece].concat()
        }
        Mood::Damaged if dice < 4 => {
            // Bytes that are no text: what is left cannot be taken for another number or name.
            let mut damaged = piece.to_vec();
            let at = traffic.random.below(piece.len());
            damaged
                .iter_mut()
                .skip(at)
                .take(24)
                .for_each(|byte| *byte = 0xff);
            // Now and then half of it is all that comes; a line then runs into the next.
            damaged.truncate(if dice == 0 { at } else { piece.len() });
            damaged
        }
        Mood::Uneven if !irc && dice < 4 && piece.windows(7).any(|window| window == b"data: {") => {
            let again = [piece, b"1\r\n\n\r\nd\r\nevent: event\n\r\n", piece].concat();
            if dice < 2 { again } else { Vec::new() }
        }
        _ => piece.to_vec(),
    }
}

/// All that the actors share.
struct Scene {
    start: Instant,
    end: Instant,
    irc: Wire,
    http: Wire,
    diary: Mutex<String>,
    faults: Mutex<Vec<String>>,
    /// Every listener there was; the last one listens.
    listeners: Mutex<Vec<Client>>,
    /// When IRC servers died.
    deaths: Mutex<Vec<Instant>>,
}

impl Scene {
    fn at(&self, time: Instant) -> String {
        format!(
            "{:7.2}",
            time.saturating_duration_since(self.start).as_secs_f64()
        )
    }

    fn note(&self, text: &str) {
        *self.diary.lock().unwrap() += &format!("{} {text}\n", self.at(Instant::now()));
    }

    /// Leaves things as they are for a while; false when time is up, `early` seconds before the end.
    fn pause(&self, time: Duration, early: u64) -> bool {
        let end = self.end - Duration::from_secs(early);
        thread::sleep(time.min(end.saturating_duration_since(Instant::now())));
        Instant::now() < end
    }

    /// Holds a wire in some mood for a while.
    fn hold(&self, name: &str, wire: &Wire, mood: Mood, time: Duration) {
        self.note(&format!(
            "{name} link: {mood:?} for {:.1} s",
            time.as_secs_f64()
        ));
        wire.with(|traffic| traffic.mood = mood);
        let end = Instant::now() + time;
        while self.pause(Duration::from_millis(200), 0) && Instant::now() < end {
            // Only what the server says can be garbled, so somebody makes it talk.
            self.listeners
                .lock()
                .unwrap()
                .last()
                .unwrap()
                .say("#lab", "hm");
        }
        if wire.irc && mood == Mood::Damaged {
            self.cut(name, wire); // no bot can know what it did not get to read
        }
        wire.with(|traffic| traffic.mood = Mood::Well);
        self.note(&format!("{name} link: well"));
    }

    fn cut(&self, name: &str, wire: &Wire) {
        self.note(&format!("{name} link: cut"));
        wire.with(|traffic| {
            traffic.end(0..traffic.ended.len(), "cut", CRASH);
            traffic
                .open
                .drain(..)
                .for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
        });
    }

    fn freeze(&self, name: &str, process: &mut Process, time: Duration) {
        self.note(&format!("{name} stopped for {:.1} s", time.as_secs_f64()));
        process.signal("STOP");
        self.pause(time, 0);
        process.signal("CONT");
        self.note(&format!("{name} goes on"));
    }

    fn listen(&self, port: u16) {
        let client = Client::connect(port, "joe");
        client.join("#lab");
        self.listeners.lock().unwrap().push(client);
    }

    fn irc_actor(&self, irc: &mut Ngircd, mut random: Random) {
        while self.pause(random.seconds(4, 16), 10) {
            match random.below(8) {
                0 | 1 => self.cut("irc", &self.irc),
                2 => self.hold("irc", &self.irc, Mood::Frozen, random.seconds(1, 14)),
                3 => self.hold("irc", &self.irc, Mood::Refusing, random.seconds(1, 5)),
                4 => self.hold("irc", &self.irc, Mood::Junk, random.seconds(2, 6)),
                5 => self.hold("irc", &self.irc, Mood::Damaged, random.seconds(2, 6)),
                6 => self.freeze("irc server", irc.process(), random.seconds(1, 14)),
                _ => {
                    let kill = random.below(2) == 0;
                    self.note(if kill {
                        "irc server killed"
                    } else {
                        "irc server asked to end"
                    });
                    self.irc.with(|traffic| traffic.mood = Mood::Refusing);
                    self.deaths.lock().unwrap().push(Instant::now());
                    let _ = kill && !irc.process().kill().success();
                    irc.stop();
                    self.deaths.lock().unwrap().push(Instant::now());
                    self.pause(random.seconds(0, 4), 0);
                    irc.start_again();
                    self.listen(irc.port); // before the bot can speak, someone must be there to hear it
                    self.irc.with(|traffic| traffic.mood = Mood::Well);
                    self.note("irc server is back");
                }
            }
        }
    }

    fn link_actor(&self, mut random: Random) {
        while self.pause(random.seconds(2, 8), 0) {
            let moods = [
                Mood::Frozen,
                Mood::Refusing,
                Mood::Damaged,
                Mood::Damaged,
                Mood::Uneven,
                Mood::Uneven,
            ];
            match random.below(7) {
                6 => self.cut("master", &self.http),
                kind => self.hold("master", &self.http, moods[kind], random.seconds(1, 8)),
            }
        }
    }

    /// Keeps builds coming, and the master going.
    fn master_actor(&self, master: &mut Master, worker: &mut Option<Worker>, mut random: Random) {
        let ids: Vec<i64> = BUILDERS
            .iter()
            .map(|name| master.builder_id(name))
            .collect();
        while self.pause(random.seconds(0, 1), 0) {
            for _ in 0..if random.below(20) == 0 { 12 } else { 1 } {
                let params = json!({"builderid": ids[random.below(ids.len() - 1)]});
                let call = json!({"jsonrpc": "2.0", "id": 1, "method": "force", "params": params})
                    .to_string();
                let answer = master.request(
                    "POST",
                    "/api/v2/forceschedulers/force",
                    "application/json",
                    &call,
                );
                answer.map_or_else(
                    |e| self.note(&format!("a build could not be forced: {e}")),
                    drop,
                );
            }
            let dice = random.below(160);
            if dice < 2 {
                self.note(if dice == 0 {
                    "master killed"
                } else {
                    "master asked to end"
                });
                [Master::kill, Master::stop][dice](master);
                self.pause(random.seconds(0, 3), 0);
                master.start_again();
                *worker = None; // it would come back by itself, but takes its time
                *worker = Some(Worker::start(master, "w1"));
                self.note("master is back");
            } else if dice < 4 {
                self.freeze("master", master.process(), random.seconds(1, 8));
            }
        }
    }

    fn bot_actor(&self, bot: &mut Bot, mut random: Random) {
        for life in 1.. {
            // The last one has time to get through what the others do, from a fresh back-off.
            let last = !self.pause(random.seconds(5, 25), 25);
            let stat = fs::read_to_string(format!("/proc/{}/stat", bot.pid())).unwrap_or_default();
            let (ended, kill) = (
                stat.is_empty() || stat.contains(") Z "),
                random.below(3) > 0,
            );
            self.note(&format!(
                "bot {life} {}",
                if kill { "killed" } else { "asked to end" }
            ));
            let code = if kill { -1 } else { bot.terminate() };
            bot.kill9();
            let (how, grace) = if kill {
                ("killed", CRASH)
            } else {
                ("asked to end", FAREWELL)
            };
            self.irc
                .with(|traffic| traffic.end(0..traffic.ended.len(), how, grace));
            if ended || !kill && code != 0 {
                self.faults.lock().unwrap().push(format!(
                    "bot {life} has ended by itself, or with {code} and not 0"
                ));
            }
            fs::write(bot.dir.join(format!("log.{life}")), bot.log()).unwrap();
            let _ = !last && self.pause(random.seconds(0, 6), 0);
            bot.start_again();
            bot.expect_log("IRC: "); // before that it may not know what a signal means
            self.note(&format!("bot {} started", life + 1));
            if last {
                return;
            }
        }
    }

    /// The builds of these that the channel has not heard of from the bot, whatever nick it had; and how many a summary
    /// has only counted.
    fn unheard(&self, done: &BTreeSet<Label>) -> (Vec<Label>, usize) {
        let heard: Vec<String> = self
            .listeners
            .lock()
            .unwrap()
            .iter()
            .flat_map(|one| one.lines("#lab"))
            .collect();
        let heard = || heard.iter().filter(|line| line.starts_with("<bot"));
        let named: BTreeSet<Label> = heard().flat_map(|line| labels(line)).collect();
        (
            done.difference(&named).copied().collect(),
            heard().map(|line| more(line)).sum(),
        )
    }

    /// What is wrong, and a summary.
    fn judge(&self, done: &BTreeSet<Label>) -> (Vec<String>, String) {
        let (mut faults, mut repeats) = (self.faults.lock().unwrap().clone(), 0);
        let ((unheard, counted), deaths) = (self.unheard(done), self.deaths.lock().unwrap());
        let traffic = self.irc.traffic.0.lock().unwrap();
        let mut told = BTreeMap::<Label, Vec<&Said>>::new();
        for said in &traffic.said {
            labels(&said.text)
                .into_iter()
                .for_each(|label| told.entry(label).or_default().push(said));
        }
        let mut fault = |what: &str, label: &Label| {
            let mut text = format!("{what}: {} #{}", label.0, label.1);
            for said in told.get(label).into_iter().flatten() {
                let (at, n, confirmed) = (
                    self.at(said.at),
                    said.connection,
                    said.confirmed.map(|at| self.at(at)),
                );
                let ended = traffic.ended[n].map_or("stands", |end| end.0);
                text += &format!(
                    "\n    {at} on connection {n} ({ended}), confirmed {confirmed:?}: {:.99}",
                    said.text
                );
            }
            faults.push(text);
        };
        // The bot cannot have known for certain that this line had arrived.
        let uncertain = |said: &Said| {
            traffic.ended[said.connection]
                .is_some_and(|end| said.confirmed.is_none_or(|at| at > end.1))
        };
        for (label, lines) in &told {
            let doubled =
                |pair: &[&Said]| pair[0].connection == pair[1].connection || !uncertain(pair[0]);
            if lines.windows(2).any(doubled) {
                fault("doubled", label);
            }
            if !done.contains(label) {
                fault("never ended", label);
            }
            repeats += lines.len() - 1;
        }
        // The server had it, and died with it.
        let drowned = |label: &&Label| {
            let mut lines = told
                .get(*label)
                .into_iter()
                .flatten()
                .filter(|said| said.confirmed.is_some());
            lines.any(|said| {
                deaths
                    .iter()
                    .any(|&death| said.at < death && said.at + IN_FLIGHT > death)
            })
        };
        let (drowned, lost): (Vec<&Label>, Vec<&Label>) = unheard.iter().partition(drowned);
        if lost.len() > counted {
            lost.iter().for_each(|label| fault("lost", label));
        }
        // What was named, but not for certain, may be counted later; and a line that counts may be said again.
        let named = told
            .values()
            .filter(|lines| lines.iter().all(|said| uncertain(said)))
            .count();
        let again: usize = traffic
            .said
            .iter()
            .filter(|said| uncertain(said))
            .map(|said| more(&said.text))
            .sum();
        if counted > lost.len() + named + again {
            faults.push(format!(
                "summaries have counted {counted} builds, but {} were not named",
                lost.len()
            ));
        }
        let (lines, connections, drowned) =
            (traffic.said.len(), traffic.ended.len(), drowned.len());
        let summary = format!(
            "{} builds in {lines} lines on {connections} connections; {repeats} repeated, {counted} only counted, \
             {drowned} drowned with an IRC server; {} faults",
            done.len(),
            faults.len()
        );
        (faults, summary)
    }
}

type Label = (&'static str, i64);

/// The builds that a line names: `NAME #NUMBER`, wherever it stands.
fn labels(text: &str) -> BTreeSet<Label> {
    let mut found = BTreeSet::new();
    for name in BUILDERS {
        for (at, sign) in text.match_indices(&format!("{name} #")) {
            let digits = text[at + sign.len()..]
                .split(|c: char| !c.is_ascii_digit())
                .next();
            found.extend(digits.and_then(|digits| Some((name, digits.parse().ok()?))));
        }
    }
    found
}

/// The number in `and N more`.
fn more(text: &str) -> usize {
    text.strip_suffix(" more")
        .and_then(|text| text.rsplit(' ').next()?.parse().ok())
        .unwrap_or(0)
}

/// A large answer of a busy master may come without its head or its tail.
fn ask(master: &Master, path: &str) -> serde_json::Value {
    wait_for(path, SETTLE, || {
        serde_json::from_str(&master.request("GET", path, "", "").ok()?.1).ok()
    })
}

/// Every build that the master knows to be over.
fn over(master: &Master) -> BTreeSet<Label> {
    let names: BTreeMap<i64, &str> = BUILDERS
        .iter()
        .map(|name| (master.builder_id(name), *name))
        .collect();
    let builds = ask(
        master,
        "/api/v2/builds?complete=true&field=complete&field=builderid&field=number",
    );
    let label = |build: &serde_json::Value| {
        (
            names[&build["builderid"].as_i64().unwrap()],
            build["number"].as_i64().unwrap(),
        )
    };
    builds["builds"]
        .as_array()
        .unwrap()
        .iter()
        .map(label)
        .collect()
}

fn number(name: &str, usual: u64) -> u64 {
    let value = std::env::var(name).ok().filter(|value| !value.is_empty());
    value.map_or(usual, |value| {
        value
            .parse()
            .unwrap_or_else(|_| panic!("{name}={value} is no number"))
    })
}

#[test]
fn chaos_loses_nothing_and_doubles_nothing() {
    let (seed, minutes) = (number("SEED", 4), number("MINUTES", 3));
    let mut master = Master::start("chaos", CONFIG);
    let mut worker = Some(Worker::start(&master, "w1"));
    // With the penalties that ngIRCd has out of the box.
    let mut irc = Ngircd::start(NgircdOptions {
        penalties: true,
        ..Default::default()
    });
    let wire = Wire::start(irc.port, true, Random::new(seed, 1));
    let http = Wire::start(master.port, false, Random::new(seed, 2));
    let mut bot = Bot::start(
        BOT,
        &format!(
            "[buildbot]\nurl = http://127.0.0.1:{}/\npoll_interval = 1\ntimeout = 5\n[irc]\nhost = 127.0.0.1\nport = {}\n\
             nick = bot\nping_timeout = 10\nnotify_events = finished\n[channel #lab]\n[bot]\nstate_file = state\n",
            http.port, wire.port
        ),
    );
    bot.expect_log("event stream: subscribed");
    bot.expect_log("GET /api/v2/buildrequests"); // what ends from now on is news

    let start = Instant::now();
    let end = start + Duration::from_secs(60 * minutes);
    let (diary, faults, listeners, deaths) = Default::default();
    let scene = Scene {
        start,
        end,
        irc: wire,
        http,
        diary,
        faults,
        listeners,
        deaths,
    };
    scene.listen(irc.port);
    thread::scope(|scope| {
        scope.spawn(|| scene.irc_actor(&mut irc, Random::new(seed, 3)));
        scope.spawn(|| scene.link_actor(Random::new(seed, 4)));
        scope.spawn(|| scene.bot_actor(&mut bot, Random::new(seed, 5)));
        scope.spawn(|| scene.master_actor(&mut master, &mut worker, Random::new(seed, 6)));
    });
    scene.note("quiet");
    // Twisted has lost count of its sockets once and answered nobody any more: then it is killed once more.
    let patience = Instant::now() + Duration::from_secs(15);
    while master.request("GET", "/config", "", "").is_err() {
        thread::sleep(Duration::from_millis(200));
        if Instant::now() > patience {
            scene.note("the master is stuck: killed");
            drop(worker.take());
            master.kill();
            master.start_again();
            worker = Some(Worker::start(&master, "w1"));
            break;
        }
    }
    let _worker = worker;

    // A build that has lost its worker at the wrong moment never ends, so some may stay.
    let quiet = Instant::now() + Duration::from_secs(15);
    wait_for("what was forced to be built", SETTLE, || {
        let open = ask(
            &master,
            "/api/v2/buildrequests?complete=false&field=complete&field=buildrequestid",
        );
        (open["buildrequests"] == json!([]) || Instant::now() > quiet).then_some(())
    });
    let limit = Instant::now() + SETTLE;
    let wait = |what: &str, done: &dyn Fn() -> bool| {
        wait_for(what, 3 * SETTLE, || {
            (done() || Instant::now() > limit).then_some(())
        }); // the judge says what is missing
    };
    wait(
        "all to be told",
        &|| matches!(scene.unheard(&over(&master)), (unheard, counted) if unheard.len() <= counted),
    );
    // Whatever else there was to say would be said before this.
    master.force("last", &[]);
    master.wait_build("last", 1);
    wait("the last build to be told", &|| {
        scene.unheard(&[("last", 1)].into()).0.is_empty()
    });
    scene.note("the end");

    let (faults, summary) = scene.judge(&over(&master));
    fs::write(bot.dir.join("log.last"), bot.log()).unwrap();
    let (dir, database) = (bot.dir.display(), master.dir.display());
    let summary = format!(
        "SEED={seed} MINUTES={minutes}: {summary}; the bot's logs: {dir}, the master: {database}"
    );
    println!("{summary}");
    let report = format!(
        "{}\n{}\n{summary}",
        scene.diary.lock().unwrap(),
        faults.join("\n")
    );
    fs::write(bot.dir.join("diary"), &report).unwrap();
    assert!(faults.is_empty(), "{report}");
}
