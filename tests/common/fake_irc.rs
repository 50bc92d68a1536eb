//! An IRC server whose every line the test writes.

use super::net::{Stream, handshake, is_timeout, tls_acceptor};
use super::{TIMEOUT, wait_for};
use native_tls::TlsAcceptor;
use std::net::TcpListener;
use std::time::{Duration, Instant};

/// A recorded line keeps this many characters: tests send lines of megabytes.
const RECORDED: usize = 600;

pub struct FakeIrc {
    pub port: u16,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
}

impl FakeIrc {
    pub fn start() -> FakeIrc {
        FakeIrc::start_tls(None)
    }

    /// With one of the certificates (`server`, `wrong`, `expired`).
    pub fn start_tls(certificate: Option<&str>) -> FakeIrc {
        FakeIrc::start_at("127.0.0.1:0", certificate)
    }

    /// At another address.
    #[track_caller]
    pub fn start_at(address: &str, certificate: Option<&str>) -> FakeIrc {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        listener.set_nonblocking(true).unwrap();
        FakeIrc {
            port: listener.local_addr().unwrap().port(),
            listener,
            acceptor: tls_acceptor(certificate),
        }
    }

    /// The next connection; `None` if its TLS handshake failed.
    #[track_caller]
    pub fn try_accept(&self) -> Option<FakePeer> {
        let (tcp, _) = wait_for("a connection to the fake IRC server", TIMEOUT, || {
            self.listener.accept().ok()
        });
        tcp.set_nonblocking(false).unwrap();
        let stream = handshake(tcp, self.acceptor.as_ref())?;
        Some(FakePeer {
            stream,
            bytes: Vec::new(),
            conversation: Vec::new(),
            tokens: 0,
        })
    }

    #[track_caller]
    pub fn accept(&self) -> FakePeer {
        self.try_accept().expect("the TLS handshake failed")
    }

    /// Accepts, registers the bot and lets it join: `channels` is what its JOIN must ask for, in all of which `joe` is
    /// an operator.
    #[track_caller]
    pub fn accept_into(&self, channels: &str) -> FakePeer {
        let mut peer = self.accept();
        let nick = peer.register();
        assert_eq!(peer.expect("JOIN"), format!("JOIN {channels}"));
        for channel in channels.split(',') {
            peer.send(&format!(":{nick}!~bot@127.0.0.1 JOIN {channel}"));
            peer.send(&format!(":fake.test 353 {nick} = {channel} :@joe {nick}"));
            peer.send(&format!(
                ":fake.test 366 {nick} {channel} :End of /NAMES list."
            ));
        }
        peer
    }

    /// Whether a connection waits to be accepted; accepts and closes it.
    pub fn has_connection(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// The server's end of one connection; dropped, it is closed, and a failed test prints its conversation.
pub struct FakePeer {
    stream: Box<dyn Stream>,
    bytes: Vec<u8>,
    conversation: Vec<String>,
    tokens: usize,
}

impl FakePeer {
    pub fn send(&mut self, line: &str) {
        self.send_bytes(format!("{line}\r\n").as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.record(">>", bytes);
        // A closed connection shows in the next expectation.
        let _ = self
            .stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush());
    }

    /// A message from `joe` to a channel or to the bot.
    pub fn say(&mut self, target: &str, text: &str) {
        self.send(&format!(":joe!j@h PRIVMSG {target} :{text}"));
    }

    fn record(&mut self, direction: &str, bytes: &[u8]) {
        let start = &bytes[..bytes.len().min(RECORDED)];
        let text = String::from_utf8_lossy(start);
        self.conversation
            .push(format!("{direction} {}", text.trim_end()));
    }

    /// The next line without its end, `None` when the peer has closed or `limit` is over.
    pub fn line_within(&mut self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=at).collect();
                self.record("<<", &line);
                let text = String::from_utf8_lossy(&line);
                return Some(text.trim_end_matches(['\r', '\n']).to_string());
            }
            if !self.fill() || Instant::now() > end {
                return None;
            }
        }
    }

    /// Reads once; false when the peer has closed.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 4096];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.bytes.extend(&chunk[..count]);
                true
            }
            Err(e) => is_timeout(&e),
        }
    }

    /// The very next line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.line_within(TIMEOUT).expect("a line of the bot")
    }

    /// The next line that begins like this; those before it are passed over.
    #[track_caller]
    pub fn expect(&mut self, start: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        while let Some(line) = self.line_within(end.saturating_duration_since(Instant::now())) {
            if line.starts_with(start) {
                return line;
            }
        }
        panic!("no line begins with {start:?}");
    }

    /// The next PRIVMSG goes to this target and begins with this text.
    #[track_caller]
    pub fn expect_message(&mut self, target: &str, start: &str) -> String {
        let line = self.expect("PRIVMSG");
        let expected = format!("PRIVMSG {target} :{start}");
        assert!(line.starts_with(&expected), "{line} is not {expected}…");
        line
    }

    /// The bot answers in #lab.
    #[track_caller]
    pub fn expect_alive(&mut self) {
        self.say("#lab", "bot: source");
        assert_eq!(
            self.expect("PRIVMSG"),
            "PRIVMSG #lab :Buildbot: https://buildbot.net/"
        );
    }

    /// PING and its PONG: the bot has dealt with all we sent. Returns the lines that came before the PONG.
    #[track_caller]
    pub fn barrier(&mut self) -> Vec<String> {
        self.tokens += 1;
        let token = format!("barrier-{}", self.tokens);
        self.send(&format!("PING :{token}"));
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            if line.starts_with("PONG ") && line.ends_with(&token) {
                return lines;
            }
            lines.push(line);
        }
    }

    /// The bot has nothing to say to all we sent.
    #[track_caller]
    pub fn expect_silence(&mut self) {
        assert_eq!(self.barrier(), Vec::<String>::new());
    }

    /// Numerics 001, 005 and 422.
    pub fn welcome(&mut self, nick: &str) {
        let support =
            "CASEMAPPING=rfc1459 CHANTYPES=# NICKLEN=30 PREFIX=(ov)@+ CHANMODES=b,k,l,imnpst";
        self.send(&format!(
            ":fake.test 001 {nick} :Welcome to the lab {nick}!bot@127.0.0.1"
        ));
        self.send(&format!(
            ":fake.test 005 {nick} {support} :are supported by this server"
        ));
        self.send(&format!(":fake.test 422 {nick} :No MOTD"));
    }

    /// A whole registration without capabilities; returns the nick.
    #[track_caller]
    pub fn register(&mut self) -> String {
        let mut nick = None;
        let mut has_user = false;
        while nick.is_none() || !has_user {
            let line = self.line();
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("CAP", rest) if rest.starts_with("LS") => self.send(":fake.test CAP * LS :"),
                ("NICK", name) => nick = Some(name.trim_start_matches(':').to_string()),
                ("USER", _) => has_user = true,
                _ => {}
            }
        }
        let nick = nick.unwrap();
        self.welcome(&nick);
        nick
    }

    /// Waits until the bot closes the connection, and returns the lines it still sent.
    #[track_caller]
    pub fn expect_closed(&mut self) -> Vec<String> {
        let end = Instant::now() + TIMEOUT;
        while self.fill() {
            assert!(Instant::now() < end, "the bot does not close");
        }
        std::iter::from_fn(|| self.line_within(Duration::ZERO)).collect()
    }
}

impl Drop for FakePeer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let lines = self.conversation.join("\n  ");
            eprintln!("---- the conversation of the fake IRC server:\n  {lines}");
        }
    }
}
