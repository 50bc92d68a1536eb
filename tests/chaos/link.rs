//! The links between the bot and its servers: they can be cut, frozen and corrupted, and record what passes.

use crate::chaos::Dice;
use crate::common::TIMEOUT;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// What a link does to the bytes that pass.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Condition {
    #[default]
    Healthy,
    Frozen,
    /// New connections are closed at once.
    Refusing,
    /// Junk between the lines of the IRC server: every line arrives.
    Junk,
    /// Lines and answers are damaged, so that they cannot be taken for others.
    Damaged,
    /// Events of the master's stream are lost or doubled.
    Uneven,
}

/// What a bouncer plays back when the bot has come into the channel: commands of long ago.
const PLAYBACK: &str = ":***!znc@znc.in PRIVMSG #lab :Buffer Playback...\r\n\
    :joe!j@h PRIVMSG #lab :bot: force build last again\r\n\
    :joe!j@h PRIVMSG #lab :bot_: force build last again\r\n\
    :***!znc@znc.in PRIVMSG #lab :Playback Complete.\r\n";

/// How a connection ended.
#[derive(Clone, Copy)]
pub struct End {
    pub cause: &'static str,
    /// A confirmation after this moment may not have counted any more.
    pub doubtful_since: Instant,
}

/// A line of the bot for the channel, as it passed.
pub struct Announcement {
    pub at: Instant,
    pub connection: usize,
    pub text: String,
    /// When the server's answer to a later PING went to the bot.
    pub confirmed: Option<Instant>,
    /// The server has not taken it, and the bot has been told so.
    pub is_refused: bool,
    /// The server has not taken another one before the same PING: which one that was it does not say, so the bot says
    /// both again.
    pub is_beside_refused: bool,
}

/// A PING of the bot.
struct Ping {
    connection: usize,
    token: String,
    /// How many announcements were made before.
    announcements: usize,
}

#[derive(Default)]
pub struct Traffic {
    pub condition: Condition,
    dice: Dice,
    open: Vec<TcpStream>,
    /// For each connection how it ended, if it has.
    pub ends: Vec<Option<End>>,
    pub announcements: Vec<Announcement>,
    pings: Vec<Ping>,
}

impl Traffic {
    /// All connections that stood have ended now.
    pub fn end_all(&mut self, cause: &'static str, grace: Duration) {
        for connection in 0..self.ends.len() {
            self.end(connection, cause, grace);
        }
    }

    fn end(&mut self, connection: usize, cause: &'static str, grace: Duration) {
        self.ends[connection].get_or_insert(End {
            cause,
            doubtful_since: Instant::now() - grace,
        });
    }

    /// Takes down what the bot says.
    fn record(&mut self, connection: usize, lines: &str) {
        for line in lines.lines() {
            if let Some(text) = line.strip_prefix("PRIVMSG #lab :") {
                self.announcements.push(Announcement {
                    at: Instant::now(),
                    connection,
                    text: text.to_string(),
                    confirmed: None,
                    is_refused: false,
                    is_beside_refused: false,
                });
            } else if let Some(token) = line.strip_prefix("PING :") {
                self.pings.push(Ping {
                    connection,
                    token: token.to_string(),
                    announcements: self.announcements.len(),
                });
            }
        }
    }

    /// The server refuses in the order in which it was told.
    fn record_refusal(&mut self, connection: usize, line: &str) {
        let is_refusal = line.split(' ').nth(1) == Some("404") && line.contains(" #lab ");
        let mut open = self.announcements.iter_mut().filter(|one| {
            one.connection == connection && one.confirmed.is_none() && !one.is_refused
        });
        if let Some(refused) = open.next().filter(|_| is_refusal) {
            refused.is_refused = true;
        }
    }

    /// How many announcements were made before the PING that this line answers. While lines are damaged none counts: the
    /// bot may not have understood it.
    fn confirmed_by(&self, connection: usize, line: &str) -> usize {
        if !line.contains(" PONG ") || self.condition == Condition::Damaged {
            return 0;
        }
        let token = line.trim_end().rsplit(':').next();
        let mut pings = self.pings.iter().rev();
        let ping =
            pings.find(|ping| ping.connection == connection && Some(ping.token.as_str()) == token);
        ping.map_or(0, |ping| ping.announcements)
    }

    /// The first announcements, so many, are confirmed as far as they were made on this connection.
    fn confirm(&mut self, connection: usize, announcements: usize) {
        let is_open =
            |one: &&mut Announcement| one.connection == connection && one.confirmed.is_none();
        let made_before = self.announcements[..announcements].iter_mut();
        let open: Vec<&mut Announcement> = made_before.filter(is_open).collect();
        let has_refused = open.iter().any(|one| one.is_refused);
        for one in open {
            one.confirmed = Some(Instant::now());
            one.is_beside_refused = has_refused;
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
pub enum Protocol {
    Irc,
    Http,
}

/// Stands between the bot and a server.
#[derive(Clone)]
pub struct Link {
    pub port: u16,
    pub protocol: Protocol,
    traffic: Arc<(Mutex<Traffic>, Condvar)>,
}

impl Link {
    pub fn start(to: u16, protocol: Protocol, dice: Dice) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let traffic = Traffic {
            dice,
            ..Traffic::default()
        };
        let link = Link {
            port: listener.local_addr().unwrap().port(),
            protocol,
            traffic: Arc::new((Mutex::new(traffic), Condvar::new())),
        };
        let accepting = link.clone();
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                accepting.connect(near, to);
            }
        });
        link
    }

    /// Reads or changes the traffic.
    pub fn with<T>(&self, change: impl FnOnce(&mut Traffic) -> T) -> T {
        let value = change(&mut self.traffic.0.lock().unwrap());
        self.traffic.1.notify_all();
        value
    }

    pub fn set(&self, condition: Condition) {
        self.with(|traffic| traffic.condition = condition);
    }

    /// Closes all connections.
    pub fn cut(&self, grace: Duration) {
        self.with(|traffic| {
            traffic.end_all("cut", grace);
            for stream in traffic.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    fn connect(&self, near: TcpStream, to: u16) {
        if self.with(|traffic| traffic.condition == Condition::Refusing) {
            return;
        }
        let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
            return;
        };
        let clone = |stream: &TcpStream| stream.try_clone().unwrap();
        near.set_write_timeout(Some(TIMEOUT)).unwrap();
        let connection = self.with(|traffic| {
            traffic.open.extend([clone(&near), clone(&far)]);
            traffic.ends.push(None);
            traffic.ends.len() - 1
        });
        let is_stream = Arc::new(AtomicBool::new(false));
        let down = Pump {
            link: self.clone(),
            connection,
            from: clone(&far),
            into: clone(&near),
            is_stream: is_stream.clone(),
        };
        let up = Pump {
            link: self.clone(),
            connection,
            from: near,
            into: far,
            is_stream,
        };
        thread::spawn(move || down.pump_down());
        thread::spawn(move || up.pump_up());
    }

    /// Waits while nothing may pass.
    fn wait_thawed(&self) {
        let traffic = self.traffic.0.lock().unwrap();
        let frozen = |traffic: &mut Traffic| traffic.condition == Condition::Frozen;
        drop(self.traffic.1.wait_while(traffic, frozen).unwrap());
    }
}

/// One direction of one connection.
struct Pump {
    link: Link,
    connection: usize,
    from: TcpStream,
    into: TcpStream,
    /// Whether this connection is the master's event stream.
    is_stream: Arc<AtomicBool>,
}

impl Pump {
    /// Copies from the bot to the server, on IRC whole lines.
    fn pump_up(mut self) {
        let mut chunk = [0; 8192];
        let mut bytes = Vec::new();
        while let Ok(size @ 1..) = self.from.read(&mut chunk) {
            bytes.extend(&chunk[..size]);
            if bytes.starts_with(b"GET /sse/listen") {
                self.is_stream.store(true, Ordering::SeqCst);
            }
            let end = match self.link.protocol {
                Protocol::Irc => bytes
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |at| at + 1),
                Protocol::Http => bytes.len(),
            };
            let out: Vec<u8> = bytes.drain(..end).collect();
            let text = String::from_utf8_lossy(&out);
            if text.contains("/changes?") {
                // A builder that was never green has many: sometimes they come too late.
                let seconds = self.link.with(|traffic| traffic.dice.below(16));
                thread::sleep(Duration::from_secs(seconds.saturating_sub(8) as u64));
            }
            self.link
                .with(|traffic| traffic.record(self.connection, &text));
            self.link.wait_thawed();
            if self.into.write_all(&out).is_err() {
                break;
            }
        }
        self.close();
    }

    /// Copies from the server down to the bot what the link's condition makes of it.
    fn pump_down(mut self) {
        let mut chunk = [0; 8192];
        let mut bytes = Vec::new();
        while let Ok(size @ 1..) = self.from.read(&mut chunk) {
            bytes.extend(&chunk[..size]);
            self.link.wait_thawed();
            let mut out = Vec::new();
            let mut confirmed = 0;
            while let Some(unit) = self.next_unit(&mut bytes) {
                let text = String::from_utf8_lossy(&unit);
                self.link.with(|traffic| {
                    traffic.record_refusal(self.connection, &text);
                    confirmed = confirmed.max(traffic.confirmed_by(self.connection, &text));
                    out.extend(corrupt(traffic, self.link.protocol, &unit));
                });
                if text.starts_with(":bot") && text.contains(" JOIN ") {
                    out.extend(PLAYBACK.as_bytes());
                }
            }
            if self.into.write_all(&out).is_err() {
                break;
            }
            self.link
                .with(|traffic| traffic.confirm(self.connection, confirmed));
        }
        self.close();
    }

    /// Takes the next whole unit: a line of IRC, the head or a chunk of an event stream, else whatever there is.
    fn next_unit(&self, bytes: &mut Vec<u8>) -> Option<Vec<u8>> {
        let after = |pattern: &[u8]| {
            let mut windows = bytes.windows(pattern.len());
            let at = windows.position(|window| window == pattern)?;
            Some(at + pattern.len())
        };
        let end = if self.link.protocol == Protocol::Irc {
            after(b"\n")?
        } else if !self.is_stream.load(Ordering::SeqCst) {
            bytes.len()
        } else if bytes.starts_with(b"HTTP/") {
            after(b"\r\n\r\n")?
        } else {
            let start = after(b"\r\n")?;
            let text = String::from_utf8_lossy(&bytes[..start]);
            let size = usize::from_str_radix(text.trim(), 16);
            size.map_or(bytes.len(), |size| start + size + 2) // an error message comes in no chunks
        };
        let is_whole = end > 0 && end <= bytes.len();
        is_whole.then(|| bytes.drain(..end).collect())
    }

    fn close(self) {
        let link = self.link;
        link.with(|traffic| traffic.end(self.connection, "broken", super::CRASH));
        let _ = self.into.shutdown(Shutdown::Write);
        let _ = self.from.shutdown(Shutdown::Read);
    }
}

/// What passes instead of a unit.
fn corrupt(traffic: &mut Traffic, protocol: Protocol, unit: &[u8]) -> Vec<u8> {
    let dice = traffic.dice.below(8);
    let is_event = unit.windows(7).any(|window| window == b"data: {");
    match traffic.condition {
        Condition::Junk if dice < 4 => {
            let junk = junk(dice, &mut traffic.dice);
            [&junk, &b"\r\n"[..], unit].concat()
        }
        Condition::Damaged if dice < 4 => {
            // No text: what is left cannot be taken for another number or name.
            let mut damaged = unit.to_vec();
            let at = traffic.dice.below(unit.len());
            let end = unit.len().min(at + 24);
            damaged[at..end].fill(0xff);
            if dice == 0 {
                damaged.truncate(at); // a line then runs into the next
            }
            damaged
        }
        Condition::Uneven if protocol == Protocol::Http && dice < 2 && is_event => {
            [unit, b"1\r\n\n\r\nd\r\nevent: event\n\r\n", unit].concat()
        }
        Condition::Uneven if protocol == Protocol::Http && dice < 4 && is_event => Vec::new(),
        _ => unit.to_vec(),
    }
}

fn junk(kind: usize, dice: &mut Dice) -> Vec<u8> {
    match kind {
        0 => {
            let mut bytes: Vec<u8> = (0..300).map(|_| dice.below(256) as u8).collect();
            bytes.retain(|byte| *byte != b'\n');
            bytes
        }
        1 => b":joe!j@h PRIVMSG #lab :bot: \xff\xfe\xc3 \xf0\x9f".to_vec(),
        2 => vec![b'x'; 1 << 20],
        _ => b"\r\n\n\0\0\n:\r\n: \r\n@a :b\r\n433\r\nCAP\r\n353 *\r\nKICK\r\nNICK :\r\nPING"
            .to_vec(),
    }
}
