//! People on IRC.

use super::TIMEOUT;
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

#[derive(Default)]
struct Conversation {
    /// What came, without line ends.
    lines: Vec<String>,
    /// Both directions, for the reader of a failed test.
    both: Vec<String>,
    closed: bool,
}

/// A person's connection, which the thread that reads, the [`Client`] and its listeners share.
pub struct Connection {
    stream: TcpStream,
    conversation: Mutex<Conversation>,
    changed: Condvar,
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Conversation> {
        self.conversation.lock().unwrap()
    }

    /// Sends a line as it is. A closed connection shows in the next expectation.
    pub fn send(&self, line: &str) {
        self.lock().both.push(format!(">> {line}"));
        let _ = (&self.stream).write_all(format!("{line}\r\n").as_bytes());
    }

    pub fn say(&self, target: &str, text: &str) {
        self.send(&format!("PRIVMSG {target} :{text}"));
    }

    /// What was said to a target so far: `<nick> text` for a PRIVMSG, `-nick- text` for a NOTICE.
    pub fn lines(&self, target: &str) -> Vec<String> {
        let conversation = self.lock();
        let lines = conversation.lines.iter();
        lines.filter_map(|line| said(line, target)).collect()
    }

    /// Waits until the closure finds something in the lines that came; `None` when time is up or the connection closed.
    fn wait<T>(&self, limit: Duration, mut find: impl FnMut(&[String]) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        let mut conversation = self.lock();
        loop {
            if let Some(found) = find(&conversation.lines) {
                return Some(found);
            }
            let left = end.saturating_duration_since(Instant::now());
            if conversation.closed || left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(conversation, left);
            conversation = waited.unwrap().0;
        }
    }

    /// Waits for the line with this index among those that were said to a target.
    pub fn wait_line(&self, target: &str, index: usize) -> Option<String> {
        self.wait(TIMEOUT, |lines| {
            let mut said = lines.iter().filter_map(|line| said(line, target));
            said.nth(index)
        })
    }

    /// Reads until the end, and answers PING.
    fn read(&self) {
        let mut reader = BufReader::new(&self.stream);
        let mut bytes = Vec::new();
        while reader.read_until(b'\n', &mut bytes).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&bytes);
            let line = text.trim_end_matches(['\r', '\n']).to_string();
            bytes.clear();
            if let Some(token) = line.strip_prefix("PING ") {
                let _ = (&self.stream).write_all(format!("PONG {token}\r\n").as_bytes());
            }
            let mut conversation = self.lock();
            conversation.both.push(format!("<< {line}"));
            conversation.lines.push(line);
            self.changed.notify_all();
        }
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

/// A person on IRC. Expectations look at what came since the last one that was met.
pub struct Client {
    pub nick: String,
    pub connection: Arc<Connection>,
    next: Cell<usize>,
    tokens: Cell<usize>,
}

impl Client {
    #[track_caller]
    pub fn connect(port: u16, nick: &str) -> Client {
        Client::connect_with(port, nick, &[])
    }

    /// Sends some lines (PASS …) before NICK and USER.
    #[track_caller]
    pub fn connect_with(port: u16, nick: &str, first: &[&str]) -> Client {
        let stream = TcpStream::connect(("127.0.0.1", port));
        let stream = stream.unwrap_or_else(|e| panic!("{nick}: {e}"));
        stream.set_write_timeout(Some(TIMEOUT)).unwrap();
        let connection = Arc::new(Connection {
            stream,
            conversation: Mutex::default(),
            changed: Condvar::new(),
        });
        let reader = connection.clone();
        std::thread::spawn(move || reader.read());
        let client = Client {
            nick: nick.to_string(),
            connection,
            next: Cell::new(0),
            tokens: Cell::new(0),
        };
        for line in first {
            client.send(line);
        }
        client.send(&format!("NICK {nick}"));
        client.send(&format!("USER {nick} 0 * :{nick} of the lab"));
        client.expect(|line| line.contains(" 376 ") || line.contains(" 422 "));
        client
    }

    /// Sends a line as it is.
    pub fn send(&self, line: &str) {
        self.connection.send(line);
    }

    pub fn say(&self, target: &str, text: &str) {
        self.connection.say(target, text);
    }

    /// What was said to a channel (or to our nick) so far: `<nick> text` for a PRIVMSG, `-nick- text` for a NOTICE.
    pub fn lines(&self, target: &str) -> Vec<String> {
        self.connection.lines(target)
    }

    #[track_caller]
    pub fn join(&self, channel: &str) {
        self.send(&format!("JOIN {channel}"));
        self.expect(|line| line.contains(" 366 ") && line.contains(&format!(" {channel} ")));
    }

    /// Becomes an IRC operator, where the configuration has one with this name.
    #[track_caller]
    pub fn become_operator(&self, password: &str) {
        self.send(&format!("OPER {} {password}", self.nick));
        self.expect_contains(" 381 ");
    }

    /// Changes the modes of a channel, and waits until the server has.
    #[track_caller]
    pub fn set_mode(&self, channel: &str, modes: &str) {
        self.send(&format!("MODE {channel} {modes}"));
        self.expect_contains(&format!(" MODE {channel} "));
    }

    /// The next line that the closure accepts; those before it are passed over.
    #[track_caller]
    pub fn expect(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.await_line("a certain line", TIMEOUT, wanted)
    }

    #[track_caller]
    pub fn expect_contains(&self, text: &str) -> String {
        self.expect_within(text, TIMEOUT)
    }

    #[track_caller]
    pub fn expect_within(&self, text: &str, limit: Duration) -> String {
        self.await_line(&format!("{text:?}"), limit, |line| line.contains(text))
    }

    #[track_caller]
    fn await_line(&self, what: &str, limit: Duration, wanted: impl Fn(&str) -> bool) -> String {
        let mut next = self.next.get();
        let found = self.connection.wait(limit, |lines| {
            let new = &lines[next..];
            let Some(offset) = new.iter().position(|line| wanted(line)) else {
                next = lines.len();
                return None;
            };
            next += offset + 1;
            Some(new[offset].clone())
        });
        let Some(line) = found else {
            panic!("{} waited in vain for {what}", self.nick);
        };
        self.next.set(next);
        line
    }

    /// PING and its PONG: the server has dealt with all we sent. Returns how many lines had come by then;
    /// expectations still see every line.
    #[track_caller]
    pub fn barrier(&self) -> usize {
        self.tokens.set(self.tokens.get() + 1);
        let token = format!("barrier-{}", self.tokens.get());
        self.send(&format!("PING :{token}"));
        let before = self.next.get();
        self.expect(|line| line.contains(" PONG ") && line.ends_with(&token));
        let after = self.next.replace(before);
        after - 1
    }

    /// Forgets what came until now.
    #[track_caller]
    pub fn skip(&self) {
        let until = self.barrier() + 1;
        self.next.set(self.next.get().max(until));
    }

    /// No line since the last met expectation and before a barrier holds this text. That is a barrier with the server
    /// only: the test must know that whoever should have spoken has had time to.
    #[track_caller]
    pub fn expect_none(&self, text: &str) {
        let until = self.barrier();
        let conversation = self.connection.lock();
        let mut lines = conversation.lines[self.next.get().min(until)..until].iter();
        let found = lines.find(|line| line.contains(text)).cloned();
        drop(conversation);
        assert_eq!(found, None, "{} heard {text:?}", self.nick);
    }

    /// Both directions, for a message.
    pub fn conversation(&self) -> String {
        self.connection.lock().both.join("\n  ")
    }

    /// Registers our nick with NickServ, which logs us in as well.
    #[track_caller]
    pub fn register(&self, password: &str) {
        self.say(
            "NickServ",
            &format!("REGISTER {password} {}@example.org", self.nick),
        );
        self.expect(|line| line.contains(" 900 ") || line.contains("registered"));
    }

    /// Has NickServ remember the client certificate of our connection (through a [`super::Tunnel`]).
    #[track_caller]
    pub fn add_certificate(&self) {
        self.say("NickServ", "CERT ADD");
        self.expect_contains("'s certificate list");
    }

    #[track_caller]
    pub fn identify(&self, password: &str) {
        self.say("NickServ", &format!("IDENTIFY {password}"));
        self.expect_contains("you are now recognized");
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let nick = &self.nick;
            eprintln!(
                "---- the conversation of {nick}:\n  {}",
                self.conversation()
            );
        }
        let mut stream = &self.connection.stream;
        let _ = stream.write_all(b"QUIT\r\n");
        let _ = stream.shutdown(Shutdown::Both); // which ends the thread that reads
    }
}

/// A line to a target as `<nick> text` or `-nick- text`; `None` if it is something else.
fn said(line: &str, target: &str) -> Option<String> {
    let line = if line.starts_with('@') {
        line.split_once(' ')?.1
    } else {
        line
    };
    let (prefix, rest) = line.strip_prefix(':')?.split_once(' ')?;
    let (command, rest) = rest.split_once(' ')?;
    let (to, text) = rest.split_once(' ')?;
    let nick = prefix.split('!').next()?;
    let text = text.strip_prefix(':').unwrap_or(text);
    match command {
        _ if !to.eq_ignore_ascii_case(target) => None,
        "PRIVMSG" => Some(format!("<{nick}> {text}")),
        "NOTICE" => Some(format!("-{nick}- {text}")),
        _ => None,
    }
}
