//! A proxy that cuts and freezes the connections through it, and a tunnel into TLS.

use super::Certificates;
use super::net::{Acceptor, is_timeout};
use native_tls::{Certificate, TlsConnector};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A request line is remembered to this length.
const LONGEST_LINE: usize = 4096;

#[derive(Default)]
struct Traffic {
    open: Vec<TcpStream>,
    frozen: bool,
    refusing: bool,
    connections: usize,
    requests: Vec<String>,
}

impl Traffic {
    /// Takes down the request lines in these bytes; `line` is what has come of the last one.
    fn record(&mut self, bytes: &[u8], line: &mut Vec<u8>) {
        for byte in bytes {
            if *byte != b'\n' {
                if line.len() < LONGEST_LINE {
                    line.push(*byte);
                }
                continue;
            }
            if line.ends_with(b" HTTP/1.1\r") || line.ends_with(b" HTTP/1.0\r") {
                let text = String::from_utf8_lossy(line);
                self.requests.push(text.trim_end().to_string());
            }
            line.clear();
        }
    }
}

type SharedTraffic = Arc<(Mutex<Traffic>, Condvar)>;

/// Stands between the bot and a server, for the test to cut.
pub struct Proxy {
    pub port: u16,
    traffic: SharedTraffic,
    _acceptor: Acceptor,
}

impl Proxy {
    pub fn start(to: u16) -> Proxy {
        let traffic = SharedTraffic::default();
        let shared = traffic.clone();
        let acceptor = Acceptor::start(move |near, _| connect(near, to, &shared));
        Proxy {
            port: acceptor.port,
            traffic,
            _acceptor: acceptor,
        }
    }

    fn with<T>(&self, change: impl FnOnce(&mut Traffic) -> T) -> T {
        let value = change(&mut self.traffic.0.lock().unwrap());
        self.traffic.1.notify_all();
        value
    }

    /// As the bot is to be told of an HTTP server behind it.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Closes every connection there is; new ones are served.
    pub fn cut(&self) {
        self.with(|traffic| {
            for stream in traffic.open.drain(..) {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
    }

    /// From now on new connections are closed at once (true) or served again (false).
    pub fn refuse(&self, yes: bool) {
        self.with(|traffic| traffic.refusing = yes);
    }

    /// Nothing passes any more and no connection is closed, as when a cable is pulled out.
    pub fn freeze(&self) {
        self.with(|traffic| traffic.frozen = true);
    }

    /// Passes on what was held back.
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

/// A plain port that leads into TLS, for a [`super::Client`] with a client certificate.
pub struct Tunnel {
    pub port: u16,
    _acceptor: Acceptor,
}

impl Tunnel {
    /// To a TLS port of 127.0.0.1 whose certificate must be good; `certificate` is ours (`client`).
    pub fn start(to: u16, certificate: Option<&str>) -> Tunnel {
        let ca = std::fs::read(Certificates::get().path("ca.pem")).unwrap();
        let mut builder = TlsConnector::builder();
        builder.add_root_certificate(Certificate::from_pem(&ca).unwrap());
        if let Some(name) = certificate {
            builder.identity(Certificates::get().identity(name));
        }
        let connector = builder.build().unwrap();
        let acceptor = Acceptor::start(move |mut near, stop| {
            let Ok(tcp) = TcpStream::connect(("127.0.0.1", to)) else {
                return;
            };
            let Ok(mut far) = connector.connect("127.0.0.1", tcp) else {
                return;
            };
            // One thread for both ways, since a TLS stream cannot be shared: each is read in turn.
            let turn = Some(Duration::from_millis(5));
            near.set_read_timeout(turn).unwrap();
            far.get_ref().set_read_timeout(turn).unwrap();
            while !stop.load(Ordering::SeqCst)
                && pass(&mut near, &mut far)
                && pass(&mut far, &mut near)
            {}
        });
        Tunnel {
            port: acceptor.port,
            _acceptor: acceptor,
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
        Err(e) => is_timeout(&e),
    }
}

/// Connects to the server and copies both ways, the answers in a thread of their own.
fn connect(near: TcpStream, to: u16, shared: &SharedTraffic) {
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
    let answers = clone(&far);
    let into = clone(&near);
    let back = shared.clone();
    thread::spawn(move || pump(answers, into, &back, false));
    pump(near, far, shared, true);
}

/// Copies until the end; takes down the request lines if they come this way.
fn pump(mut from: TcpStream, mut into: TcpStream, shared: &SharedTraffic, requests: bool) {
    let mut chunk = [0; 8192];
    let mut line = Vec::new();
    while let Ok(size @ 1..) = from.read(&mut chunk) {
        let mut traffic = shared.0.lock().unwrap();
        while traffic.frozen {
            traffic = shared.1.wait(traffic).unwrap();
        }
        if requests {
            traffic.record(&chunk[..size], &mut line);
        }
        drop(traffic);
        if into.write_all(&chunk[..size]).is_err() {
            break;
        }
    }
    let _ = into.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
