//! Peers that misbehave on purpose: an IRC server and an HTTP server that a test plays itself, and a
//! proxy that cuts and freezes the connections through it.

use super::{Certificates, TIMEOUT, wait_for};
use native_tls::{Certificate, TlsAcceptor, TlsConnector, TlsStream};
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// A plain or a TLS connection.
trait Stream: Read + Write + Send {}
impl Stream for TcpStream {}
impl Stream for TlsStream<TcpStream> {}

/// How often a blocked reader looks at its deadline.
const SLICE: Duration = Duration::from_millis(50);

fn secure(tcp: TcpStream, acceptor: Option<&TlsAcceptor>) -> Option<Box<dyn Stream>> {
    tcp.set_nodelay(true).unwrap();
    tcp.set_read_timeout(Some(TIMEOUT)).unwrap();
    tcp.set_write_timeout(Some(TIMEOUT)).unwrap();
    let clone = tcp.try_clone().unwrap();
    let stream: Box<dyn Stream> = match acceptor {
        None => Box::new(tcp),
        Some(acceptor) => Box::new(acceptor.accept(tcp).ok()?),
    };
    clone.set_read_timeout(Some(SLICE)).unwrap();
    Some(stream)
}

fn acceptor(certificate: Option<&str>) -> Option<TlsAcceptor> {
    certificate.map(|name| TlsAcceptor::new(Certificates::get().identity(name)).unwrap())
}

/// An IRC server whose every line the test writes.
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
            acceptor: acceptor(certificate),
        }
    }

    /// The next connection; `None` if its TLS hand-shake failed.
    #[track_caller]
    pub fn try_accept(&self) -> Option<FakePeer> {
        let tcp = wait_for("a connection to the fake IRC server", TIMEOUT, || {
            self.listener.accept().ok()
        })
        .0;
        tcp.set_nonblocking(false).unwrap();
        let stream = secure(tcp, self.acceptor.as_ref())?;
        Some(FakePeer {
            stream,
            bytes: Vec::new(),
            talk: Vec::new(),
            tokens: 0,
        })
    }

    #[track_caller]
    pub fn accept(&self) -> FakePeer {
        self.try_accept().expect("the TLS hand-shake failed")
    }

    /// Whether somebody has connected and waits to be accepted; takes that connection and closes it.
    pub fn knocked(&self) -> bool {
        self.listener.accept().is_ok()
    }
}

/// The server's end of one connection; dropped, it is closed.
pub struct FakePeer {
    stream: Box<dyn Stream>,
    bytes: Vec<u8>,
    talk: Vec<String>,
    tokens: usize,
}

impl FakePeer {
    pub fn send(&mut self, line: &str) {
        self.send_bytes(format!("{line}\r\n").as_bytes());
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.talk
            .push(format!(">> {}", String::from_utf8_lossy(bytes).trim_end()));
        let _ = self
            .stream
            .write_all(bytes)
            .and_then(|()| self.stream.flush()); // a closed one shows in the next expect
    }

    /// The next line without its end, `None` when the peer has closed or `limit` is over.
    pub fn line_within(&mut self, limit: Duration) -> Option<String> {
        let end = Instant::now() + limit;
        loop {
            if let Some(at) = self.bytes.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.bytes.drain(..=at).collect();
                let line = String::from_utf8_lossy(&line)
                    .trim_end_matches(['\r', '\n'])
                    .to_string();
                self.talk.push(format!("<< {line}"));
                return Some(line);
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
            Err(e) => matches!(
                e.kind(),
                ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
            ),
        }
    }

    /// The very next line.
    #[track_caller]
    pub fn line(&mut self) -> String {
        self.line_within(TIMEOUT)
            .unwrap_or_else(|| panic!("no line; the conversation:\n  {}", self.talk.join("\n  ")))
    }

    /// The next line that begins so; those before it are passed over.
    #[track_caller]
    pub fn expect(&mut self, start: &str) -> String {
        let end = Instant::now() + TIMEOUT;
        while let Some(line) = self.line_within(end.saturating_duration_since(Instant::now())) {
            if line.starts_with(start) {
                return line;
            }
        }
        panic!(
            "no line begins with {start:?}; the conversation:\n  {}",
            self.talk.join("\n  ")
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

    /// Numerics 001, 005 and 422.
    pub fn welcome(&mut self, nick: &str) {
        self.send(&format!(
            ":fake.test 001 {nick} :Welcome to the lab {nick}!bot@127.0.0.1"
        ));
        let support =
            "CASEMAPPING=rfc1459 CHANTYPES=# NICKLEN=30 PREFIX=(ov)@+ CHANMODES=b,k,l,imnpst";
        self.send(&format!(
            ":fake.test 005 {nick} {support} :are supported by this server"
        ));
        self.send(&format!(":fake.test 422 {nick} :No MOTD"));
    }

    /// A whole registration without capabilities; returns the nick.
    #[track_caller]
    pub fn register(&mut self) -> String {
        let (mut nick, mut user) = (None, false);
        while nick.is_none() || !user {
            let line = self.line();
            match line.split_once(' ').unwrap_or((&line, "")) {
                ("CAP", rest) if rest.starts_with("LS") => self.send(":fake.test CAP * LS :"),
                ("NICK", name) => nick = Some(name.trim_start_matches(':').to_string()),
                ("USER", _) => user = true,
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
            assert!(
                Instant::now() < end,
                "not closed; the conversation:\n  {}",
                self.talk.join("\n  ")
            );
        }
        std::iter::from_fn(|| self.line_within(Duration::ZERO)).collect()
    }

    /// What was said so far, both ways.
    pub fn conversation(&self) -> String {
        self.talk.join("\n  ")
    }
}

/// Accepts on a port of its own and gives each connection a thread.
struct Listener {
    port: u16,
    stop: Arc<AtomicBool>,
}

impl Listener {
    fn start(handle: impl Fn(TcpStream, &AtomicBool) + Send + Sync + 'static) -> Listener {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, handle) = (stop.clone(), Arc::new(handle));
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (stopped, handle) = (stopped.clone(), handle.clone());
                thread::spawn(move || handle(stream, &stopped));
            }
        });
        Listener { port, stop }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port)); // wakes the accepting thread
    }
}

/// A request as [`FakeHttp`] shows it to the test.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The lines of the head after the first, as they came.
    pub head: String,
    pub body: String,
}

/// What [`FakeHttp`] is to answer.
pub enum Answer {
    /// 200 with this JSON; the connection is kept.
    Json(String),
    /// Another status, more header lines (each with CR LF), and a body; the connection is kept.
    Status(&'static str, String, String),
    /// These bytes as they are, then the end.
    Raw(Vec<u8>),
    /// These bytes, then silence until the other side gives up.
    Stall(Vec<u8>),
    /// These bytes, then those again and again until the other side gives up.
    Endless(Vec<u8>, Vec<u8>),
}

/// A master's web server, played by a closure.
pub struct FakeHttp {
    pub port: u16,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
    _listener: Listener,
}

impl FakeHttp {
    pub fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> FakeHttp {
        FakeHttp::start_tls(None, answer)
    }

    /// With one of the certificates.
    pub fn start_tls(
        certificate: Option<&str>,
        answer: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> FakeHttp {
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (seen, tls) = (requests.clone(), acceptor(certificate));
        let listener = Listener::start(move |tcp, stop| {
            let Some(mut stream) = secure(tcp, tls.as_ref()) else {
                return;
            };
            while let Some(request) = read_request(&mut *stream, stop) {
                seen.lock().unwrap().push(request.clone());
                if !give(&mut *stream, answer(&request), stop) {
                    return;
                }
            }
        });
        let scheme = if certificate.is_some() {
            "https"
        } else {
            "http"
        };
        FakeHttp {
            port: listener.port,
            scheme,
            requests,
            _listener: listener,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/", self.scheme, self.port)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Waits for a request whose path begins so.
    #[track_caller]
    pub fn expect(&self, path: &str) -> Request {
        wait_for(&format!("a request of {path}"), TIMEOUT, || {
            self.requests()
                .into_iter()
                .find(|request| request.path.starts_with(path))
        })
    }
}

/// Reads on, in slices; false when the other side has closed or the server is dropped.
fn more(stream: &mut dyn Stream, bytes: &mut Vec<u8>, stop: &AtomicBool) -> bool {
    let mut chunk = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        match stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => {
                bytes.extend(&chunk[..count]);
                return true;
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => return false,
        }
    }
    false
}

fn read_request(stream: &mut dyn Stream, stop: &AtomicBool) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        match bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            Some(end) => break end,
            None => more(stream, &mut bytes, stop).then_some(())?,
        }
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_string();
    let (first, head) = head.split_once("\r\n").unwrap_or((&head, ""));
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().ok())?
    });
    while bytes.len() < end + 4 + length.unwrap_or(0) {
        more(stream, &mut bytes, stop).then_some(())?;
    }
    let body = String::from_utf8_lossy(&bytes[end + 4..]).to_string();
    let mut words = first.split(' ').map(str::to_string);
    Some(Request {
        method: words.next()?,
        path: words.next()?,
        head: head.to_string(),
        body,
    })
}

/// Sends an answer; true if the connection is to be kept.
fn give(stream: &mut dyn Stream, answer: Answer, stop: &AtomicBool) -> bool {
    let (status, head, body) = match answer {
        Answer::Json(body) => (
            "200 OK",
            "Content-Type: application/json\r\n".to_string(),
            body,
        ),
        Answer::Status(status, head, body) => (status, head, body),
        Answer::Raw(bytes) => {
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            return false;
        }
        Answer::Stall(bytes) => {
            let _ = stream.write_all(&bytes).and_then(|()| stream.flush());
            while more(stream, &mut Vec::new(), stop) {}
            return false;
        }
        Answer::Endless(bytes, again) => {
            let mut going = stream.write_all(&bytes).is_ok();
            while going && !stop.load(Ordering::SeqCst) {
                going = stream.write_all(&again).is_ok();
            }
            return false;
        }
    };
    let text = format!(
        "HTTP/1.1 {status}\r\n{head}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream
        .write_all(text.as_bytes())
        .and_then(|()| stream.flush())
        .is_ok()
}

#[derive(Default)]
struct Traffic {
    open: Vec<TcpStream>,
    frozen: bool,
    refusing: bool,
    connections: usize,
    requests: Vec<String>,
}

/// A wire between the bot and a server, for the test to cut.
pub struct Proxy {
    pub port: u16,
    traffic: Arc<(Mutex<Traffic>, Condvar)>,
    _listener: Listener,
}

impl Proxy {
    pub fn start(to: u16) -> Proxy {
        let traffic = Arc::<(Mutex<Traffic>, Condvar)>::default();
        let shared = traffic.clone();
        let listener = Listener::start(move |near, _| {
            if shared.0.lock().unwrap().refusing {
                return;
            }
            let Ok(far) = TcpStream::connect(("127.0.0.1", to)) else {
                return;
            };
            let clone = |stream: &TcpStream| stream.try_clone().unwrap();
            let mut traffic = shared.0.lock().unwrap();
            traffic.connections += 1;
            traffic.open.extend([clone(&near), clone(&far)]);
            drop(traffic);
            let (from, into, back) = (clone(&far), clone(&near), shared.clone());
            thread::spawn(move || pump(from, into, &back, false));
            pump(near, far, &shared, true);
        });
        Proxy {
            port: listener.port,
            traffic,
            _listener: listener,
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Traffic) -> T) -> T {
        let value = change(&mut self.traffic.0.lock().unwrap());
        self.traffic.1.notify_all();
        value
    }

    /// Closes every connection there is; new ones are served.
    pub fn cut(&self) {
        self.with(|traffic| {
            traffic
                .open
                .drain(..)
                .for_each(|stream| drop(stream.shutdown(Shutdown::Both)))
        });
    }

    /// From now on new connections are closed at once (true) or served again (false).
    pub fn refuse(&self, yes: bool) {
        self.with(|traffic| traffic.refusing = yes);
    }

    /// Nothing passes any more, and nobody is told: a cable pulled out.
    pub fn freeze(&self) {
        self.with(|traffic| traffic.frozen = true);
    }

    /// What was held back goes on its way.
    pub fn thaw(&self) {
        self.with(|traffic| traffic.frozen = false);
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.with(|traffic| traffic.connections)
    }

    /// The request lines of HTTP that went through, in order.
    pub fn requests(&self) -> Vec<String> {
        self.with(|traffic| traffic.requests.clone())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.thaw();
        self.cut();
    }
}

/// A plain port that leads into TLS, for a [`super::Client`] who is to have a client certificate.
pub struct Tunnel {
    pub port: u16,
    _listener: Listener,
}

impl Tunnel {
    /// To a TLS port of 127.0.0.1 whose certificate must be good; `certificate` is ours (`client`).
    pub fn start(to: u16, certificate: Option<&str>) -> Tunnel {
        let ca = std::fs::read(Certificates::get().path("ca.pem")).unwrap();
        let mut builder = TlsConnector::builder();
        builder.add_root_certificate(Certificate::from_pem(&ca).unwrap());
        certificate.map(|name| builder.identity(Certificates::get().identity(name)));
        let connector = builder.build().unwrap();
        let listener = Listener::start(move |mut near, stop| {
            let far = TcpStream::connect(("127.0.0.1", to))
                .ok()
                .and_then(|tcp| connector.connect("127.0.0.1", tcp).ok());
            let Some(mut far) = far else { return };
            // One thread for both ways, since a TLS stream cannot be shared: each is heard in turn.
            let turn = Some(Duration::from_millis(5));
            near.set_read_timeout(turn).unwrap();
            far.get_ref().set_read_timeout(turn).unwrap();
            while !stop.load(Ordering::SeqCst)
                && pass(&mut near, &mut far)
                && pass(&mut far, &mut near)
            {}
        });
        Tunnel {
            port: listener.port,
            _listener: listener,
        }
    }
}

/// Copies what there is to be read; false at the end.
fn pass(from: &mut impl Read, into: &mut impl Write) -> bool {
    let mut chunk = [0; 8192];
    match from.read(&mut chunk) {
        Ok(0) => false,
        Ok(size) => into
            .write_all(&chunk[..size])
            .and_then(|()| into.flush())
            .is_ok(),
        Err(e) => matches!(
            e.kind(),
            ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
        ),
    }
}

fn pump(mut from: TcpStream, mut into: TcpStream, shared: &(Mutex<Traffic>, Condvar), count: bool) {
    let (mut chunk, mut line) = ([0; 8192], Vec::new());
    while let Ok(size @ 1..) = from.read(&mut chunk) {
        let mut traffic = shared.0.lock().unwrap();
        while traffic.frozen {
            traffic = shared.1.wait(traffic).unwrap();
        }
        if count {
            for byte in &chunk[..size] {
                match byte {
                    b'\n' if line.ends_with(b" HTTP/1.1\r") || line.ends_with(b" HTTP/1.0\r") => {
                        traffic
                            .requests
                            .push(String::from_utf8_lossy(&line).trim_end().to_string());
                        line.clear();
                    }
                    b'\n' => line.clear(),
                    _ if line.len() < 4096 => line.push(*byte),
                    _ => {}
                }
            }
        }
        drop(traffic);
        if into.write_all(&chunk[..size]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
