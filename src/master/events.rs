//! The master's event stream (`/sse`): the subscription, and the parser of what it carries. The
//! thread that holds it open passes everything on to the poller, which applies it.

use super::client::{Client, Error, ErrorKind, stream_refusal};
use super::resources::{Build, BuildRequest, Buildset, Change, Worker};
use crate::backoff::Backoff;
use crate::encoding::percent_encode;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The first subscription; what is on it decides whether there is a stream at all.
const PATH: &str = "/sse/listen/builds/*/*";
/// More than one kind of event needs more than one subscription.
const MORE: [&str; 5] = [
    "builders/*/started",
    "workers/*/*",
    "buildrequests/*/*",
    "buildsets/*/new",
    "changes/*/*",
];
/// The stream is silent while nothing happens; the poll notices when it has died.
const SILENCE: Duration = Duration::from_secs(30 * 86_400);
/// An event longer than this many bytes is dropped; they are near 500.
const EVENT: usize = 256 * 1024;
/// A hand-shake that takes longer comes through a proxy that keeps events back.
const PROMPT: Duration = Duration::from_secs(3);
/// A stream that stood for so long has worked.
const STABLE: Duration = Duration::from_secs(5);
/// Waits between attempts, doubling.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));
/// A master without a stream is asked for one as rarely as this.
const NO_STREAM: Duration = Duration::from_secs(600);

/// What the stream tells.
#[derive(Debug)]
pub enum Update {
    Build(Build),
    Worker(Worker),
    Request(BuildRequest),
    Buildset(Buildset),
    Change(Change),
    /// A builder was added. (A master that stops says of all that they are gone.)
    BuilderAdded,
}

/// What happens to the stream.
#[derive(Debug)]
pub enum StreamEvent {
    /// The subscription stands.
    Up {
        /// For ending it.
        socket: TcpStream,
        /// The hand-shake came at once, so events will, too.
        is_prompt: bool,
    },
    Update(Update),
    Down,
}

impl Update {
    /// Reads `{"key": [kind, id, what], "message": {…}}`. Anything else is not for us.
    pub fn parse(data: &str) -> Option<Update> {
        #[derive(Deserialize)]
        struct Event<'a> {
            key: Vec<String>,
            #[serde(borrow, default)]
            message: Option<&'a RawValue>,
        }
        let event: Event = serde_json::from_str(data).ok()?;
        let kind = event.key.first()?.as_str();
        let message = event.message.map_or("null", RawValue::get);
        match kind {
            "builds" => serde_json::from_str(message).map(Update::Build).ok(),
            "buildrequests" => serde_json::from_str(message).map(Update::Request).ok(),
            "buildsets" => serde_json::from_str(message).map(Update::Buildset).ok(),
            "changes" => serde_json::from_str(message).map(Update::Change).ok(),
            "builders" => Some(Update::BuilderAdded),
            "workers" => {
                let mut worker: Worker = serde_json::from_str(message).ok()?;
                worker.missing = event.key.get(2).is_some_and(|what| what == "missing");
                Some(Update::Worker(worker))
            }
            _ => None,
        }
    }
}

/// Holds the stream open and passes on what happens to it, until nobody takes it any more.
pub fn run(mut client: Client, emit: &mut dyn FnMut(StreamEvent) -> bool) {
    let mut backoff = Backoff::new(RECONNECT.0, RECONNECT.1);
    let mut last_reason = String::new();
    loop {
        let mut up_since = None;
        let mut is_wanted = true;
        let error = listen(&mut client, &mut |event| {
            if matches!(event, StreamEvent::Up { .. }) {
                up_since = Some(Instant::now());
            }
            is_wanted = emit(event);
            is_wanted
        });
        if !is_wanted || up_since.is_some() && !emit(StreamEvent::Down) {
            return;
        }
        if up_since.is_some_and(|since: Instant| since.elapsed() > STABLE) {
            backoff.reset();
        }
        let reason = error.to_string();
        if reason != last_reason {
            log!(Info, "event stream: {reason}");
            last_reason = reason;
        }
        let wait = match error.kind {
            ErrorKind::Refused(400..=499) => NO_STREAM,
            _ => backoff.next_wait(),
        };
        let wait = wait.max(error.retry_after.unwrap_or_default());
        std::thread::sleep(wait);
    }
}

/// One subscription, from its request to its end. Returns why the stream is no more.
fn listen(client: &mut Client, emit: &mut dyn FnMut(StreamEvent) -> bool) -> Error {
    match follow(client, emit) {
        Ok(()) => broken("ended by the master"),
        Err(error) => error,
    }
}

fn follow(client: &mut Client, emit: &mut dyn FnMut(StreamEvent) -> bool) -> Result<(), Error> {
    let asked_at = Instant::now();
    let mut connection = client.connect().map_err(|why| broken(&why))?;
    let accept = "Accept: text/event-stream\r\n";
    let head = client.send(&mut connection, PATH, accept, "");
    let head = head.map_err(|e| broken(&e.to_string()))?;
    let content_type = head.get("content-type").unwrap_or("");
    if head.status != 200 || !content_type.starts_with("text/event-stream") {
        return Err(stream_refusal(PATH, head));
    }
    let mut parser = EventParser::default();
    loop {
        let piece = connection.piece().map_err(|e| broken(&e.to_string()))?;
        let Some(piece) = piece else {
            return Ok(());
        };
        for (event, data) in parser.feed(&piece) {
            let event = if event == "handshake" {
                let is_prompt = asked_at.elapsed() < PROMPT;
                subscribe(client, &data)?;
                connection.stream.set_read_limits(SILENCE, SILENCE);
                let socket = connection.stream.socket();
                let socket = socket.map_err(|e| broken(&e.to_string()))?;
                log!(Info, "event stream: subscribed");
                StreamEvent::Up { socket, is_prompt }
            } else {
                match Update::parse(&data) {
                    Some(update) => StreamEvent::Update(update),
                    None => continue,
                }
            };
            if !emit(event) {
                return Ok(());
            }
        }
    }
}

fn subscribe(client: &mut Client, handshake_id: &str) -> Result<(), Error> {
    for events in MORE {
        let id = percent_encode(handshake_id);
        if !client.is_ok(&format!("/sse/add/{id}/{events}"))? {
            return Err(broken(&format!("no events of {events}")));
        }
    }
    Ok(())
}

fn broken(why: &str) -> Error {
    Error::new(ErrorKind::Unreachable, format!("GET {PATH}: {why}"))
}

/// Server-sent events (WHATWG HTML, section 9.2), as far as Buildbot sends them: `event:` and
/// `data:` lines, an empty line behind. Chunks of HTTP are not events.
#[derive(Default)]
pub struct EventParser {
    /// The event at hand so far.
    bytes: Vec<u8>,
    /// It was too long, and is dropped at its end.
    is_oversized: bool,
}

impl EventParser {
    /// Takes bytes and returns the events that they complete: name and data.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for &byte in bytes.iter().filter(|&&byte| byte != b'\r') {
            self.bytes.push(byte);
            if self.bytes.len() > EVENT {
                // The last byte stays: it may be half of the end.
                self.bytes.drain(..EVENT);
                self.is_oversized = true;
            }
            if self.bytes.ends_with(b"\n\n") {
                events.extend(self.complete());
            }
        }
        events
    }

    fn complete(&mut self) -> Option<(String, String)> {
        let bytes = std::mem::take(&mut self.bytes);
        if std::mem::take(&mut self.is_oversized) {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let field = |name: &str| {
            let values = text.lines().filter_map(|line| line.strip_prefix(name));
            values.map(str::trim).collect::<String>()
        };
        let data = field("data:");
        (!data.is_empty()).then(|| (field("event:"), data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    const STREAM: &str = "event: handshake\ndata: 8ff8\n\n: comment\nevent: event\r\n\
        data: {\"key\": [\"builds\", \"2\", \"new\"], \"message\": {\"buildid\":2,\"number\":1,\
        \"builderid\":4,\"buildrequestid\":2,\"started_at\":1795362321,\"complete_at\":null,\
        \"complete\":false,\"state_string\":\"st\u{e4}rting\",\"results\":null,\
        \"properties\":{}}}\r\n\r\nevent: x\n";

    #[test]
    fn events_come_whole_whatever_the_chunks() {
        let bytes = STREAM.as_bytes();
        let whole = EventParser::default().feed(bytes);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], ("handshake".into(), "8ff8".into()));
        let Some(Update::Build(build)) = Update::parse(&whole[1].1) else {
            panic!("no build")
        };
        assert_eq!((build.id, build.builder_id), (2, 4));
        assert_eq!(build.state_string, "st\u{e4}rting");
        for at in 0..bytes.len() {
            let mut parser = EventParser::default();
            let mut events = parser.feed(&bytes[..at]);
            events.extend(parser.feed(&bytes[at..]));
            assert_eq!(events, whole, "split at {at}");
        }
    }

    #[test]
    fn an_endless_event_is_dropped_in_bounded_memory() {
        let mut parser = EventParser::default();
        for _ in 0..200 {
            assert!(parser.feed(&[b'a'; 16 * 1024]).is_empty());
            assert!(parser.feed(b"\ndata: b").is_empty());
            assert!(parser.bytes.capacity() <= 4 * EVENT);
        }
        assert!(parser.feed(b"\n\n").is_empty(), "the long one is dropped");
        let next = parser.feed(b"data: c\n\n");
        assert_eq!(next.len(), 1, "the next one is whole again");
    }

    #[test]
    fn strange_events_are_nothing() {
        for data in [
            "",
            "{}",
            "[]",
            "{\"key\":[],\"message\":{}}",
            "{\"key\":[\"builds\"],\"message\":{}}",
            "{\"key\":[\"logs\",\"1\"],\"message\":{}}",
        ] {
            assert!(Update::parse(data).is_none(), "{data}");
        }
        let added = Update::parse("{\"key\":[\"builders\",\"7\",\"started\"]}");
        assert!(matches!(added, Some(Update::BuilderAdded)));
        let open = "[".repeat(500);
        let close = "]".repeat(500);
        let deep = format!("{{\"key\":[\"builds\"],\"message\":{open}1{close}}}");
        assert!(Update::parse(&deep).is_none());
    }

    #[test]
    fn fuzz_events() {
        fuzz(&[STREAM.as_bytes()], |bytes, random| {
            let (one, two) = bytes.split_at(random.below(bytes.len()));
            let whole = EventParser::default().feed(bytes);
            let mut parser = EventParser::default();
            let mut events = parser.feed(one);
            events.extend(parser.feed(two));
            assert_eq!(events, whole);
            for (_, data) in events {
                let _ = Update::parse(&data);
            }
        });
    }
}
