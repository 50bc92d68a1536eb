//! An HTTP server whose answers the test gives.

use super::net::{Acceptor, Stream, handshake, is_timeout, tls_acceptor};
use super::{TIMEOUT, wait_for};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request as [`FakeHttp`] shows it to the test.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// The lines of the head after the first, as they came.
    pub head: String,
    pub body: String,
}

impl Request {
    /// The path without the query.
    pub fn resource(&self) -> &str {
        self.path.split('?').next().unwrap()
    }

    /// The numbers that a key of the query has, in order.
    pub fn numbers(&self, key: &str) -> Vec<usize> {
        let query = self.path.split_once('?').map_or("", |(_, query)| query);
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let values = pairs.filter(|(name, _)| *name == key);
        values.filter_map(|(_, value)| value.parse().ok()).collect()
    }

    /// The first of them.
    pub fn number(&self, key: &str) -> Option<usize> {
        self.numbers(key).first().copied()
    }

    /// The page of these items that `offset` and `limit` ask for, as the REST API answers.
    pub fn page(&self, name: &str, items: impl IntoIterator<Item = Value>) -> Answer {
        let offset = self.number("offset").unwrap_or(0);
        let limit = self.number("limit").unwrap_or(usize::MAX);
        let items: Vec<Value> = items.into_iter().skip(offset).take(limit).collect();
        Answer::Json(json!({ name: items }).to_string())
    }
}

/// What [`FakeHttp`] is to answer.
#[derive(Clone)]
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

impl Answer {
    /// 200 with a JSON value.
    pub fn json(value: Value) -> Answer {
        Answer::Json(value.to_string())
    }

    /// Another status with this body.
    pub fn status(status: &'static str, body: &str) -> Answer {
        Answer::Status(status, String::new(), body.to_string())
    }

    /// An event stream: the handshake and these bytes, each line a chunk, then silence.
    pub fn stream(bytes: &[u8]) -> Answer {
        let handshake = b"event: handshake\ndata: 123\n\n";
        let mut text = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            .to_vec();
        for line in [handshake, bytes]
            .concat()
            .split_inclusive(|byte| *byte == b'\n')
        {
            text.extend(format!("{:x}\r\n", line.len()).as_bytes());
            text.extend(line);
            text.extend(b"\r\n");
        }
        Answer::Stall(text)
    }
}

/// A master's web server, played by a closure.
pub struct FakeHttp {
    pub port: u16,
    scheme: &'static str,
    requests: Arc<Mutex<Vec<Request>>>,
    _acceptor: Acceptor,
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
        let received = requests.clone();
        let tls = tls_acceptor(certificate);
        let acceptor = Acceptor::start(move |tcp, stop| {
            let Some(mut stream) = handshake(tcp, tls.as_ref()) else {
                return;
            };
            while let Some(request) = read_request(&mut *stream, stop) {
                received.lock().unwrap().push(request.clone());
                if !write_answer(&mut *stream, answer(&request), stop) {
                    return;
                }
            }
        });
        FakeHttp {
            port: acceptor.port,
            scheme: if certificate.is_some() {
                "https"
            } else {
                "http"
            },
            requests,
            _acceptor: acceptor,
        }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/", self.scheme, self.port)
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests of the REST API so far, without their queries.
    pub fn resources(&self) -> Vec<String> {
        let requests = self.requests().into_iter();
        let resources = requests.map(|request| request.resource().to_string());
        resources
            .filter(|resource| resource.starts_with("/api/"))
            .collect()
    }

    /// How many requests there were for this resource.
    pub fn count(&self, resource: &str) -> usize {
        let requests = self.requests();
        requests
            .iter()
            .filter(|request| request.resource() == resource)
            .count()
    }

    /// How many polls have come to their last request.
    pub fn polls(&self) -> usize {
        self.count("/api/v2/buildrequests")
    }

    /// Waits until there were this many polls.
    #[track_caller]
    pub fn wait_polls(&self, polls: usize) {
        wait_for(&format!("poll {polls}"), TIMEOUT, || {
            (self.polls() >= polls).then_some(())
        });
    }

    /// Waits for a request whose path begins like this.
    #[track_caller]
    pub fn expect(&self, path: &str) -> Request {
        wait_for(&format!("a request of {path}"), TIMEOUT, || {
            self.requests()
                .into_iter()
                .find(|request| request.path.starts_with(path))
        })
    }
}

/// Reads once more; false when the other side has closed or the server is dropped.
fn read_more(stream: &mut dyn Stream, bytes: &mut Vec<u8>, stop: &AtomicBool) -> bool {
    let mut chunk = [0; 4096];
    while !stop.load(Ordering::SeqCst) {
        match stream.read(&mut chunk) {
            Ok(0) => return false,
            Ok(count) => {
                bytes.extend(&chunk[..count]);
                return true;
            }
            Err(e) if is_timeout(&e) => {}
            Err(_) => return false,
        }
    }
    false
}

fn read_request(stream: &mut dyn Stream, stop: &AtomicBool) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        if let Some(end) = end {
            break end;
        }
        read_more(stream, &mut bytes, stop).then_some(())?;
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_string();
    while bytes.len() < end + 4 + content_length(&head) {
        read_more(stream, &mut bytes, stop).then_some(())?;
    }
    let (first, rest) = head.split_once("\r\n").unwrap_or((&head, ""));
    let mut words = first.split(' ').map(str::to_string);
    Some(Request {
        method: words.next()?,
        path: words.next()?,
        head: rest.to_string(),
        body: String::from_utf8_lossy(&bytes[end + 4..]).to_string(),
    })
}

fn content_length(head: &str) -> usize {
    let mut lengths = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    });
    lengths.next().unwrap_or(0)
}

/// Sends an answer; true if the connection is to be kept.
fn write_answer(stream: &mut dyn Stream, answer: Answer, stop: &AtomicBool) -> bool {
    match answer {
        Answer::Json(body) => {
            let head = "Content-Type: application/json\r\n";
            write_response(stream, "200 OK", head, &body)
        }
        Answer::Status(status, head, body) => write_response(stream, status, &head, &body),
        Answer::Raw(bytes) => {
            write(stream, &bytes);
            false
        }
        Answer::Stall(bytes) => {
            write(stream, &bytes);
            while read_more(stream, &mut Vec::new(), stop) {}
            false
        }
        Answer::Endless(bytes, again) => {
            let mut open = stream.write_all(&bytes).is_ok();
            while open && !stop.load(Ordering::SeqCst) {
                open = stream.write_all(&again).is_ok();
            }
            false
        }
    }
}

fn write_response(stream: &mut dyn Stream, status: &str, head: &str, body: &str) -> bool {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\n{head}Content-Length: {length}\r\n\r\n{body}");
    write(stream, text.as_bytes())
}

/// Whether the other side still took the bytes.
fn write(stream: &mut dyn Stream, bytes: &[u8]) -> bool {
    let written = stream.write_all(bytes);
    written.and_then(|()| stream.flush()).is_ok()
}
