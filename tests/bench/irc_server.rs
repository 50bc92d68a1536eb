//! An IRC server without limits for the bot and for Buildbot's reporter: every line is stamped as soon as it is read, and
//! nothing is ever delayed or refused.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// A PRIVMSG, NOTICE, JOIN or PONG of a bot.
#[derive(Clone, Debug)]
pub struct Message {
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
    messages: Vec<Message>,
    connections: HashMap<String, TcpStream>,
    /// The message timer of RFC 1459 for each nick.
    timers: HashMap<String, Instant>,
}

impl State {
    /// Counts a line by RFC 1459, section 8.10.
    fn add_penalty(&mut self, nick: &str, at: Instant, size: usize) {
        let cost = Duration::from_millis((1000 + 10 * size as u64).max(2000));
        let timer = self.timers.entry(nick.to_string()).or_insert(at);
        *timer = at.max(*timer) + cost;
    }
}

type Shared = Arc<(Mutex<State>, Condvar)>;

/// The server; it stays until the process ends.
pub struct IrcServer {
    pub port: u16,
    shared: Shared,
}

impl IrcServer {
    pub fn start() -> IrcServer {
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
        IrcServer { port, shared }
    }

    /// How many messages there were so far.
    pub fn count(&self) -> usize {
        self.shared.0.lock().unwrap().messages.len()
    }

    /// The messages after the first ones, so many, that the closure accepts.
    pub fn messages_since(&self, count: usize, wanted: impl Fn(&Message) -> bool) -> Vec<Message> {
        let state = self.shared.0.lock().unwrap();
        let new = state.messages[count..].iter();
        new.filter(|message| wanted(message)).cloned().collect()
    }

    /// The first of them; `None` if there is none within the limit.
    pub fn wait(
        &self,
        count: usize,
        limit: Duration,
        wanted: impl Fn(&Message) -> bool,
    ) -> Option<Message> {
        let end = Instant::now() + limit;
        let mut next = count;
        let mut state = self.shared.0.lock().unwrap();
        loop {
            let mut new = state.messages[next..].iter();
            if let Some(message) = new.find(|message| wanted(message)) {
                return Some(message.clone());
            }
            next = state.messages.len();
            let left = end.checked_duration_since(Instant::now())?;
            state = self.shared.1.wait_timeout(state, left).unwrap().0;
        }
    }

    pub fn joined(&self, count: usize, nick: &str, limit: Duration) -> Option<Message> {
        self.wait(count, limit, |message| {
            message.command == "JOIN" && message.nick == nick
        })
    }

    /// Says a command to a bot in the channel; returns the time before it was written. A bot that has gone is noticed by
    /// its silence.
    pub fn say(&self, nick: &str, text: &str) -> Instant {
        self.send(
            nick,
            &format!(":joe!joe@lab PRIVMSG #bench :{nick}: {text}"),
        )
    }

    /// Sends a line to a bot, as other people's messages come or the server's own; returns the time before it was written.
    pub fn send(&self, nick: &str, line: &str) -> Instant {
        let line = format!("{line}\r\n");
        let state = self.shared.0.lock().unwrap();
        let connection = state.connections.get(nick);
        let connection = connection.and_then(|stream| stream.try_clone().ok());
        drop(state);
        let at = Instant::now();
        if let Some(mut stream) = connection {
            let _ = stream.write_all(line.as_bytes());
        }
        at
    }

    /// The same; returns the milliseconds until the first line of the answer came, and that line.
    pub fn ask(&self, nick: &str, text: &str, limit: Duration) -> Option<(f64, String)> {
        let count = self.count();
        let asked = self.say(nick, text);
        let answer = self.wait(count, limit, |message| {
            message.nick == nick && message.command == "PRIVMSG"
        })?;
        Some((super::ms(answer.at - asked), answer.text))
    }

    /// Waits until a bot has said nothing for a while.
    pub fn wait_quiet(&self, nick: &str, pause: Duration) {
        let mut count = self.count();
        while self
            .wait(count, pause, |message| message.nick == nick)
            .is_some()
        {
            count = self.count();
        }
    }

    /// When a bot that paces itself by RFC 1459, section 8.10, may send its next line. Commands are asked after that: their
    /// row is about speed, not about pacing.
    pub fn next_line_allowed(&self, nick: &str) -> Instant {
        let state = self.shared.0.lock().unwrap();
        let timer = state.timers.get(nick).copied();
        timer.unwrap_or_else(Instant::now)
    }
}

/// A line as the server takes it apart.
struct Line<'a> {
    command: &'a str,
    target: &'a str,
    text: &'a str,
    rest: &'a str,
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Line<'a> {
        let (command, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (target, text) = rest.split_once(' ').unwrap_or((rest, ""));
        Line {
            command,
            target: target.trim_start_matches(':'),
            text: text.strip_prefix(':').unwrap_or(text),
            rest,
        }
    }

    /// What the server replies, without the last line end; empty if nothing.
    fn reply(&self, nick: &str) -> String {
        match self.command {
            "CAP" if self.target == "LS" => ":bench CAP * LS :".to_string(),
            "USER" => format!(":bench 001 {nick} :Welcome\r\n:bench 422 {nick} :No MOTD"),
            "JOIN" => {
                let channels = self.target.split(',');
                let joined = channels.map(|channel| {
                    format!(":{nick}!bot@lab JOIN {channel}\r\n{}", names(nick, channel))
                });
                joined.collect::<Vec<_>>().join("\r\n")
            }
            "NAMES" => names(nick, self.target),
            "PING" => format!(":bench PONG bench :{}", self.rest.trim_start_matches(':')),
            _ => String::new(),
        }
    }

    /// Whether it is kept as a message. CTCP is not.
    fn is_message(&self) -> bool {
        ["PRIVMSG", "NOTICE", "JOIN", "PONG"].contains(&self.command)
            && !self.text.starts_with('\u{1}')
    }

    /// One message a target.
    fn messages(&self, nick: &str, at: Instant, wall: SystemTime) -> Vec<Message> {
        let mut messages = Vec::new();
        for target in self.target.split(',') {
            messages.push(Message {
                nick: nick.to_string(),
                command: self.command.to_string(),
                target: target.to_string(),
                text: self.text.to_string(),
                at,
                wall,
            });
        }
        messages
    }
}

fn serve(stream: TcpStream, shared: &(Mutex<State>, Condvar)) {
    let _ = stream.set_nodelay(true);
    let Ok(mut out) = stream.try_clone() else {
        return;
    };
    let mut nick = String::new();
    let mut reader = BufReader::new(stream);
    let mut bytes = Vec::new();
    while reader
        .read_until(b'\n', &mut bytes)
        .is_ok_and(|size| size > 0)
    {
        let at = Instant::now();
        let wall = SystemTime::now();
        let text = String::from_utf8_lossy(&bytes).to_string();
        let line = Line::parse(text.trim_end_matches(['\r', '\n']));
        let mut state = shared.0.lock().unwrap();
        if line.command == "NICK" {
            nick = line.target.to_string();
            if let Ok(connection) = out.try_clone() {
                state.connections.insert(nick.clone(), connection);
            }
        }
        state.add_penalty(&nick, at, bytes.len());
        bytes.clear();
        // Before the line counts as said: whoever waits for a JOIN may speak as soon as that is so.
        let reply = line.reply(&nick);
        if !reply.is_empty() && out.write_all(format!("{reply}\r\n").as_bytes()).is_err() {
            return;
        }
        if line.is_message() {
            state.messages.extend(line.messages(&nick, at, wall));
            shared.1.notify_all();
        }
    }
}

fn names(nick: &str, channel: &str) -> String {
    format!(
        ":bench 353 {nick} = {channel} :@joe {nick}\r\n:bench 366 {nick} {channel} :End of /NAMES list."
    )
}
