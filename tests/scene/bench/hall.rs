//! An IRC server without limits, on which the bot and Buildbot's reporter are heard by the same ears: every
//! line is stamped as soon as it is read, and nothing is ever delayed or refused.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A line from one of the bots: PRIVMSG, NOTICE, JOIN or PONG.
#[derive(Clone, Debug)]
pub struct Said {
    pub nick: String,
    pub command: String,
    pub target: String,
    pub text: String,
    pub at: Instant,
    /// The same moment on the clock that other processes share.
    pub wall: SystemTime,
}

#[derive(Default)]
struct State {
    said: Vec<Said>,
    seats: HashMap<String, TcpStream>,
    penalties: HashMap<String, Instant>,
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// The server; it stays until the process ends.
pub struct Hall {
    pub port: u16,
    shared: Shared,
}

impl Hall {
    pub fn open() -> Hall {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound socket").port();
        let shared = Shared::default();
        let state = shared.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                thread::spawn(move || serve(stream, &state));
            }
        });
        Hall { port, shared }
    }

    /// How many lines were said so far.
    pub fn mark(&self) -> usize {
        self.shared.0.lock().unwrap().said.len()
    }

    /// The lines since a mark that the closure likes.
    pub fn since(&self, mark: usize, like: impl Fn(&Said) -> bool) -> Vec<Said> {
        self.shared.0.lock().unwrap().said[mark..]
            .iter()
            .filter(|said| like(said))
            .cloned()
            .collect()
    }

    /// The first line since a mark that the closure likes; none within the limit is none.
    pub fn wait(&self, mark: usize, limit: Duration, like: impl Fn(&Said) -> bool) -> Option<Said> {
        let (end, mut at) = (Instant::now() + limit, mark);
        let mut state = self.shared.0.lock().unwrap();
        loop {
            if let Some(said) = state.said[at..].iter().find(|said| like(said)) {
                return Some(said.clone());
            }
            at = state.said.len();
            let left = end.checked_duration_since(Instant::now())?;
            state = self.shared.1.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn joined(&self, mark: usize, nick: &str, limit: Duration) -> Option<Said> {
        self.wait(mark, limit, |said| {
            said.command == "JOIN" && said.nick == nick
        })
    }

    /// Sends a line to one bot; the time is that before it was written.
    pub fn send(&self, nick: &str, line: &str) -> Instant {
        let seat = self
            .shared
            .0
            .lock()
            .unwrap()
            .seats
            .get(nick)
            .and_then(|seat| seat.try_clone().ok());
        let at = Instant::now();
        // A bot that has gone is noticed by its silence.
        let _ = seat.map(|mut seat| seat.write_all(format!("{line}\r\n").as_bytes()));
        at
    }

    /// Says a command to a bot in the channel: when it was said.
    pub fn say(&self, nick: &str, text: &str) -> Instant {
        self.send(
            nick,
            &format!(":joe!joe@lab PRIVMSG #bench :{nick}: {text}"),
        )
    }

    /// The same: the milliseconds until the first line of the answer came, and that line.
    pub fn ask(&self, nick: &str, text: &str, limit: Duration) -> Option<(f64, String)> {
        let mark = self.mark();
        let asked = self.say(nick, text);
        let said = self.wait(mark, limit, |said| {
            said.nick == nick && said.command == "PRIVMSG"
        })?;
        Some((super::ms(said.at - asked), said.text))
    }

    /// Waits until a bot has said nothing for a while.
    pub fn quiet(&self, nick: &str, pause: Duration) {
        let mut mark = self.mark();
        while self.wait(mark, pause, |said| said.nick == nick).is_some() {
            mark = self.mark();
        }
    }

    /// From when on a bot that keeps to RFC 1459, section 8.10, need not wait before its next line. Commands are
    /// asked after that: their row is about speed, not about good manners.
    pub fn rested(&self, nick: &str) -> Instant {
        self.shared
            .0
            .lock()
            .unwrap()
            .penalties
            .get(nick)
            .copied()
            .unwrap_or_else(Instant::now)
    }
}

fn serve(stream: TcpStream, shared: &(Mutex<State>, Condvar)) {
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else {
        return;
    };
    let (mut nick, mut reader, mut bytes) = (String::new(), BufReader::new(stream), Vec::new());
    while reader
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|size| size > 0)
    {
        let (at, wall) = (Instant::now(), SystemTime::now());
        let line = String::from_utf8_lossy(&bytes)
            .trim_end_matches(['\r', '\n'])
            .to_string();
        let cost = Duration::from_millis((1000 + 10 * bytes.len() as u64).max(2000));
        bytes.clear();
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let (target, text) = rest.split_once(' ').unwrap_or((rest, ""));
        let (target, text) = (
            target.trim_start_matches(':'),
            text.strip_prefix(':').unwrap_or(text),
        );
        let mut state = shared.0.lock().unwrap();
        let answer = match command {
            "CAP" if target == "LS" => ":hall CAP * LS :".to_string(),
            "NICK" => {
                nick = target.to_string();
                out.try_clone()
                    .into_iter()
                    .for_each(|seat| drop(state.seats.insert(nick.clone(), seat)));
                String::new()
            }
            "USER" => format!(":hall 001 {nick} :Welcome\r\n:hall 422 {nick} :No MOTD"),
            "JOIN" => {
                let channels = target.split(',');
                let joined = channels
                    .map(|name| format!(":{nick}!bot@lab JOIN {name}\r\n{}", names(&nick, name)));
                joined.collect::<Vec<_>>().join("\r\n")
            }
            "NAMES" => names(&nick, target),
            "PING" => format!(":hall PONG hall :{}", rest.trim_start_matches(':')),
            _ => String::new(),
        };
        let penalty = state.penalties.entry(nick.clone()).or_insert(at);
        *penalty = at.max(*penalty) + cost;
        // Before the line counts as said: whoever waits for a JOIN may speak as soon as that is so.
        if !answer.is_empty() && out.write_all(format!("{answer}\r\n").as_bytes()).is_err() {
            return;
        }
        if ["PRIVMSG", "NOTICE", "JOIN", "PONG"].contains(&command) && !text.starts_with('\u{1}') {
            let (nick, command, text) = (&nick, command.to_string(), text.to_string());
            let said = |target: &str| {
                let (nick, command, target, text) =
                    (nick.clone(), command.clone(), target.into(), text.clone());
                Said {
                    nick,
                    command,
                    target,
                    text,
                    at,
                    wall,
                }
            };
            state.said.extend(target.split(',').map(said));
            shared.1.notify_all();
        }
    }
}

fn names(nick: &str, channel: &str) -> String {
    format!(
        ":hall 353 {nick} = {channel} :@joe {nick}\r\n:hall 366 {nick} {channel} :End of /NAMES list."
    )
}
