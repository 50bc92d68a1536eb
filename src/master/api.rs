//! Buildbot's REST API v2 and event stream: paths and payloads to values.
//!
//! Each thread that asks has a [`Master`] of its own, with one kept connection. Answers are asked
//! for in pages of at most 100: larger ones of a 4.3.0 master can stall in mid-body for a minute.

use super::http::{self, Head, method};
use crate::config::Buildbot;
use crate::net::{self, Stream};
use crate::status::{Build, Change, Worker};
use crate::text::{base64, complaint};
use native_tls::TlsConnector;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt;
use std::mem::take;
use std::net::TcpStream;
use std::time::Duration;

/// The most items in one answer, see above.
pub const PAGE: usize = 100;
/// The same for builders behind the first hundred: the master reads all of them for each page, so few pages
/// count for more. On a connection of their own, such answers do not stall.
const LONG_PAGE: usize = 1000;
/// More requests that wait than people count.
const WAITING: usize = 10 * PAGE;
/// Bytes of a list, and of any other answer: parsed, they take up to twenty times as much memory, and
/// all of the bot shall stay below 32 MiB. The longest page has 600 KiB: two workers of 10,000 builders.
const LIST: usize = 1024 * 1024;
const OTHER: usize = 256 * 1024;
/// Between two pieces of one body the master may pause for so long; then we ask anew.
const STALL: Duration = Duration::from_secs(5);
/// The stream is silent while nothing happens; the poll notices when it has died.
const STREAM_SILENCE: Duration = Duration::from_secs(30 * 86_400);
/// An event longer than this is dropped; they are near 500 bytes.
const EVENT: usize = 256 * 1024;

/// Lists with the fields that we read. What is filtered or ordered on must be among them.
pub const BUILDERS: &str =
    "/builders?field=builderid&field=name&field=tags&field=masterids&order=name";
pub const BUILDS: &str = "/builds?field=buildid&field=builderid&field=number&field=buildrequestid\
    &field=started_at&field=complete&field=complete_at&field=results&field=state_string";
pub const CHANGES: &str =
    "/changes?field=changeid&field=author&field=revision&field=comments&field=branch";
pub const WORKERS: &str = "/workers?field=workerid&field=name&field=paused&field=connected_to";
/// Requests that wait for a worker, oldest first.
const QUEUED: &str = "/buildrequests?field=buildrequestid&field=builderid&field=claimed&field=complete\
    &complete=false&claimed=false&order=buildrequestid";

/// Why the master did not do what it was asked to.
#[derive(Debug)]
pub enum Error {
    /// No answer, or half of one: later may be better. The sentence names the request.
    Unreachable(String),
    /// An answer that refuses: status and the master's own words.
    Refused(u16, String),
    /// What was wanted makes no sense to this master, and why.
    Wrong(String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Unreachable(why) | Error::Wrong(why) => f.write_str(&complaint(why)),
            Error::Refused(status, why) => {
                write!(f, "the master refuses: {} ({status})", complaint(why))
            }
        }
    }
}

#[derive(Debug, Deserialize)]
pub struct Request {
    #[serde(rename = "buildrequestid")]
    pub id: u64,
    pub builderid: u64,
    #[serde(default)]
    pub claimed: bool,
    #[serde(default)]
    pub complete: bool,
    /// As those of a build; -1 while it is open.
    #[serde(default)]
    pub results: i64,
}

/// Every answer of the API is an object that holds one list.
#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(
        alias = "builders",
        alias = "builds",
        alias = "buildrequests",
        alias = "changes"
    )]
    #[serde(alias = "forceschedulers", alias = "steps", alias = "workers")]
    items: Vec<T>,
}

type Connection = http::Connection<Box<dyn Stream>>;
type Answer = (Head, Vec<u8>);

/// The master, as one thread talks to it.
pub struct Master {
    config: Buildbot,
    tls: Option<TlsConnector>,
    connection: Option<Connection>,
    /// Lines that every request bears, the session's cookie behind them.
    headers: String,
    cookie: String,
}

impl Master {
    /// A master that was not asked anything yet. The errors are the TLS files' (see [`net::connector`]).
    pub fn new(config: &Buildbot) -> Result<Master, String> {
        let tls = config
            .url
            .https
            .then(|| net::connector(&config.tls))
            .transpose()?;
        let (url, version) = (config.url.to_string(), env!("CARGO_PKG_VERSION"));
        let host = url.split('/').nth(2).unwrap_or("");
        let mut headers = format!("Host: {host}\r\nUser-Agent: buildbot-irc/{version}\r\n");
        // A reverse proxy may want this, too; the master looks at it for /auth/login only.
        if let (Some(user), Some(password)) = (&config.user, &config.password) {
            let login = base64(format!("{user}:{}", password.0).as_bytes());
            headers += &format!("Authorization: Basic {login}\r\n");
        }
        Ok(Master {
            config: config.clone(),
            tls,
            connection: None,
            headers,
            cookie: String::new(),
        })
    }

    /// The version of Buildbot, and the base of links for people.
    pub fn identity(&mut self) -> Result<(String, String), Error> {
        let config = self.settings()?;
        let mut versions = config["versions"].as_array().into_iter().flatten();
        let version = versions
            .find(|v| v[0] == "Buildbot")
            .and_then(|v| v[1].as_str())
            .unwrap_or_default();
        let url = config["buildbotURL"].as_str().filter(|url| !url.is_empty());
        Ok((
            version.to_owned(),
            url.map_or_else(|| self.config.url.to_string(), str::to_owned),
        ))
    }

    /// What the master says of itself and of our session. Before 3.0 it stands in the front page only.
    fn settings(&mut self) -> Result<Value, Error> {
        let (mut head, mut body) = self.exchange("/config", "")?;
        if head.status == 404 {
            (head, body) = self.exchange("/", "")?;
        }
        let text = String::from_utf8_lossy(&body);
        let json = text
            .split_once("constant(\"config\", ")
            .map_or(&*text, |(_, json)| json);
        // There is more behind it in that page.
        match serde_json::Deserializer::from_str(json).into_iter().next() {
            _ if head.status != 200 => Err(Error::Refused(head.status, refusal(&body))),
            Some(Err(e)) => Err(strange("/config", "", &e)),
            config => Ok(config.and_then(Result::ok).unwrap_or_default()),
        }
    }

    /// At most a page of builds, chosen and ordered by a query.
    pub fn builds(&mut self, query: &str) -> Result<Vec<Build>, Error> {
        self.list(&format!("{BUILDS}&{query}&limit={PAGE}"))
    }

    /// The last builds of a builder, highest number first.
    pub fn recent(&mut self, builder: u64) -> Result<Vec<Build>, Error> {
        self.list(&format!(
            "/builders/{builder}{BUILDS}&order=-number&limit=10"
        ))
    }

    /// The newest changes, highest id first, at most a page.
    pub fn changes(&mut self, count: usize) -> Result<Vec<Change>, Error> {
        let query = format!("{CHANGES}&order=-changeid&limit={}", count.min(PAGE));
        let mut changes: Vec<Change> = self.list(&query)?;
        // This one list comes backwards, whatever the order asked for.
        if changes.is_sorted_by_key(|c| c.id) {
            changes.reverse();
        }
        Ok(changes)
    }

    /// The requests that wait for a worker, all or those that a filter leaves.
    pub fn queued(&mut self, filter: &str) -> Result<Vec<Request>, Error> {
        self.pages(&format!("{QUEUED}{filter}"), PAGE, WAITING)
    }

    /// What has become of a request, if the master knows it, and the last build it led to.
    pub fn request(&mut self, id: u64) -> Result<(Option<Request>, Option<Build>), Error> {
        let mut requests: Vec<Request> = match self.list(&format!("/buildrequests/{id}")) {
            Err(Error::Refused(404, _)) => Vec::new(),
            requests => requests?,
        };
        let mut builds: Vec<Build> = self.list(&format!(
            "/buildrequests/{id}{BUILDS}&order=-buildid&limit=1"
        ))?;
        Ok((requests.pop(), builds.pop()))
    }

    /// A list in pages, up to so many items.
    pub fn pages<T: DeserializeOwned>(
        &mut self,
        path: &str,
        page: usize,
        most: usize,
    ) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let page = if path == BUILDERS && !all.is_empty() {
                LONG_PAGE
            } else {
                page
            };
            let mut more: Vec<T> =
                self.list(&format!("{path}&limit={page}&offset={}", all.len()))?;
            let full = more.len() >= page;
            all.append(&mut more);
            if !full || all.len() >= most {
                return Ok(all);
            }
        }
    }

    /// The list at a path of the API; `limit` is the caller's.
    pub fn list<T: DeserializeOwned>(&mut self, path: &str) -> Result<Vec<T>, Error> {
        self.object(&format!("/api/v2{path}"), "")
            .map(|envelope: Envelope<T>| envelope.items)
    }

    /// JSON-RPC 2.0, as the master wants it. A stop has no result, whatever becomes of it.
    pub fn call(&mut self, path: &str, method: &str, params: &Value) -> Result<Value, Error> {
        let call =
            json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        self.object(&format!("/api/v2{path}"), &call)
            .map(|answer: Value| answer["result"].clone())
    }

    /// What is at a path, as JSON; `json` is what to POST there, or empty for a GET.
    fn object<T: DeserializeOwned>(&mut self, path: &str, json: &str) -> Result<T, Error> {
        let (head, answer) = self.asked(path, json)?;
        if head.status != 200 {
            return Err(Error::Refused(head.status, refusal(&answer)));
        }
        serde_json::from_slice(&answer).map_err(|e| strange(path, json, &e))
    }

    /// [`Master::exchange`], with a new login if the session has ended. A 403 says the same for that
    /// and for a missing role; `/config` tells them apart.
    fn asked(&mut self, path: &str, json: &str) -> Result<Answer, Error> {
        let answer = self.exchange(path, json)?;
        if answer.0.status != 403 || self.config.user.is_none() {
            return Ok(answer);
        }
        let config = self.settings()?;
        if config["user"]["username"].is_string() || config["user"]["email"].is_string() {
            return Ok(answer);
        }
        log!(Info, "logging in to the master");
        let (head, _) = self.exchange("/auth/login", "")?;
        // Two cookies of one name come; the first is an anonymous session.
        let session = head
            .all("set-cookie")
            .filter(|c| c.starts_with("TWISTED_"))
            .last();
        let Some(cookie) = session
            .and_then(|c| c.split(';').next())
            .filter(|_| head.status == 302)
        else {
            return Err(Error::Refused(
                head.status,
                "user and password are not accepted".into(),
            ));
        };
        self.cookie = format!("Cookie: {cookie}\r\n");
        self.exchange(path, json)
    }

    /// One request and its whole answer. A GET whose connection was stale, or whose body stalled,
    /// is asked again on a new one; anything else might be done twice, or take twice as long.
    fn exchange(&mut self, path: &str, json: &str) -> Result<Answer, Error> {
        let failed = |why: String| unreachable(path, json, &why);
        let kept = self.connection.take().filter(|_| json.is_empty());
        let reused = kept.is_some();
        let first = kept.map_or_else(|| self.connect(), Ok).map_err(failed)?;
        let long = path.contains(&format!("&limit={LONG_PAGE}&"));
        let (why, stalled) =
            match self.answer(first, path, if long { "close" } else { "keep-alive" }, json) {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
        if !json.is_empty() || !(reused || stalled) {
            return Err(failed(why));
        }
        log!(Debug, "GET {path}: {why}; asking again");
        let second = self.connect().map_err(failed)?;
        self.answer(second, path, "close", json)
            .map_err(|(why, _)| failed(why))
    }

    fn connect(&self) -> Result<Connection, String> {
        net::connect(
            &self.config.url.host,
            self.config.url.port,
            self.tls.as_ref(),
        )
        .map(Connection::new)
    }

    /// Asks on this connection, and keeps it if that may be. An error tells whether the body failed.
    fn answer(
        &mut self,
        mut on: Connection,
        path: &str,
        life: &str,
        json: &str,
    ) -> Result<Answer, (String, bool)> {
        let more = format!("Accept: application/json\r\nConnection: {life}\r\n");
        let head = self
            .send(&mut on, path, &more, json)
            .map_err(|why| (why, false))?;
        on.stream
            .set_limits(STALL.min(self.config.timeout), self.config.timeout);
        // What becomes a tree of values takes far more memory than its text.
        let list = head.status == 200 && json.is_empty() && path.starts_with("/api/");
        let body = on
            .body(if list { LIST } else { OTHER })
            .map_err(|why| (why, true))?;
        log!(Debug, "master << {} {} bytes", head.status, body.len());
        self.connection = Some(on).filter(|_| life != "close" && !head.has("connection", "close"));
        Ok((head, body))
    }

    /// Sends a request, and reads the head of the answer.
    fn send(
        &self,
        on: &mut Connection,
        path: &str,
        more: &str,
        json: &str,
    ) -> Result<Head, String> {
        log!(Debug, "master >> {} {path}", method(json));
        on.stream
            .set_limits(self.config.timeout, self.config.timeout);
        let headers = format!("{}{}{more}", self.headers, self.cookie);
        on.ask(&format!("{}{path}", self.config.url.path), &headers, json)
    }

    /// Holds the event stream open; `each` hears every update and says whether to go on. Always an
    /// error, in the end: why the stream is no more.
    pub fn listen(&mut self, each: &mut dyn FnMut(Update) -> bool) -> Result<(), Error> {
        let path = "/sse/listen/builds/*/*";
        let broken = |why: String| unreachable(path, "", &why);
        let mut on = self.connect().map_err(broken)?;
        let head = self
            .send(&mut on, path, "Accept: text/event-stream\r\n", "")
            .map_err(broken)?;
        if head.status != 200 {
            return Err(Error::Refused(head.status, "no event stream".into()));
        }
        let mut parser = EventParser::default();
        while let Some(piece) = on.piece().map_err(broken)? {
            for (event, data) in parser.feed(&piece) {
                let update = if event == "handshake" {
                    self.subscribe(&data)?;
                    on.stream.set_limits(STREAM_SILENCE, STREAM_SILENCE);
                    Some(Update::Subscribed(
                        on.stream.socket().map_err(|e| broken(e.to_string()))?,
                    ))
                } else {
                    Update::parse(&data)
                };
                if update.is_some_and(|update| !each(update)) {
                    return Err(broken("nobody listens".into()));
                }
            }
        }
        Err(broken("ended by the master".into()))
    }

    /// More than one kind of event needs more than one subscription.
    fn subscribe(&mut self, stream: &str) -> Result<(), Error> {
        for more in [
            "builders/*/started",
            "workers/*/*",
            "buildrequests/*/*",
            "changes/*/*",
        ] {
            let (head, _) =
                self.exchange(&format!("/sse/add/{}/{more}", percent_encoded(stream)), "")?;
            if head.status != 200 {
                return Err(Error::Refused(head.status, format!("no events of {more}")));
            }
        }
        Ok(())
    }
}

/// RFC 3986: everything but the unreserved characters.
pub fn percent_encoded(text: &str) -> String {
    let one = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
            char::from(b).to_string()
        }
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(one).collect()
}

/// The error of a request that has no answer; its query is of no interest.
fn unreachable(path: &str, json: &str, why: &str) -> Error {
    Error::Unreachable(format!(
        "{} {}: {why}",
        method(json),
        path.split('?').next().unwrap_or(path)
    ))
}

fn strange(path: &str, json: &str, e: &serde_json::Error) -> Error {
    unreachable(
        path,
        json,
        &format!("the answer is not what it should be: {e}"),
    )
}

/// What a refusal says: `error` in the body is a text, or an object with a `message`, which may hold
/// the errors of a force scheduler: each by its field.
fn refusal(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["error"];
    let one = |(field, why): (&String, &Value)| {
        let why = why.as_str().unwrap_or("wrong");
        if why.contains(field.as_str()) {
            why.to_owned()
        } else {
            format!("{field}: {why}")
        }
    };
    match if error.is_string() {
        error
    } else {
        &error["message"]
    } {
        Value::Object(fields) => fields.iter().map(one).collect::<Vec<_>>().join("; "),
        message => message
            .as_str()
            .unwrap_or("no reason given; is the url right?")
            .to_owned(),
    }
}

/// What the stream tells.
#[derive(Debug)]
pub enum Update {
    /// It stands; the socket is for ending it.
    Subscribed(TcpStream),
    Build(Build),
    Worker(Worker),
    Request(Request),
    Change(Change),
    /// A builder was added. (A master that stops says of all that they are gone.)
    Builders,
}

impl Update {
    /// Reads `{"key": [kind, id, what], "message": {…}}`; anything else is nothing to us.
    pub fn parse(data: &str) -> Option<Update> {
        let event: Value = serde_json::from_str(data).ok()?;
        let (key, message) = (&event["key"], &event["message"]);
        match key[0].as_str()? {
            "builds" => Build::deserialize(message).map(Update::Build).ok(),
            "buildrequests" => Request::deserialize(message).map(Update::Request).ok(),
            "changes" => Change::deserialize(message).map(Update::Change).ok(),
            "builders" => Some(Update::Builders),
            "workers" => {
                let worker = Worker::deserialize(message).ok()?;
                Some(Update::Worker(Worker {
                    missing: key[2] == "missing",
                    ..worker
                }))
            }
            _ => None,
        }
    }
}

/// Server-sent events (WHATWG HTML, section 9.2), as far as Buildbot sends them: `event:` and
/// `data:` lines, an empty line behind. Chunks of HTTP are not events.
#[derive(Default)]
pub struct EventParser {
    /// The event at hand so far, and whether it was too long.
    bytes: Vec<u8>,
    dropping: bool,
}

impl EventParser {
    /// Takes bytes and returns the events that they complete: name and data.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for &byte in bytes.iter().filter(|&&b| b != b'\r') {
            self.bytes.push(byte);
            if self.bytes.len() > EVENT {
                // The last byte stays: it may be half of the end.
                self.bytes.drain(..EVENT);
                self.dropping = true;
            }
            if !self.bytes.ends_with(b"\n\n") {
                continue;
            }
            let text = String::from_utf8_lossy(&take(&mut self.bytes)).into_owned();
            let field = |name| {
                text.lines()
                    .filter_map(|l| l.strip_prefix(name))
                    .map(str::trim)
                    .collect::<String>()
            };
            let event = (field("event:"), field("data:"));
            if !take(&mut self.dropping) && !event.1.is_empty() {
                events.push(event);
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    const STREAM: &str = "event: handshake\ndata: 8ff8\n\n: comment\nevent: event\r\ndata: {\"key\": [\"builds\", \"2\", \"new\"], \
        \"message\": {\"buildid\":2,\"number\":1,\"builderid\":4,\"buildrequestid\":2,\"started_at\":1795362321,\
        \"complete_at\":null,\"complete\":false,\"state_string\":\"st\u{e4}rting\",\"results\":null,\"properties\":{}}}\r\n\r\nevent: x\n";

    #[test]
    fn events_come_whole_whatever_the_chunks() {
        let bytes = STREAM.as_bytes();
        let whole = EventParser::default().feed(bytes);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], ("handshake".into(), "8ff8".into()));
        let Some(Update::Build(build)) = Update::parse(&whole[1].1) else {
            panic!("no build")
        };
        assert_eq!(
            (build.id, build.builderid, build.state_string.as_str()),
            (2, 4, "st\u{e4}rting")
        );
        for i in 0..bytes.len() {
            let mut parser = EventParser::default();
            let mut events = parser.feed(&bytes[..i]);
            events.extend(parser.feed(&bytes[i..]));
            assert_eq!(events, whole, "split at {i}");
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
        assert_eq!(
            parser.feed(b"data: c\n\n").len(),
            1,
            "the next one is whole again"
        );
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
        assert!(matches!(added, Some(Update::Builders)));
        let deep = format!(
            "{{\"key\":[\"builds\"],\"message\":{}1{}}}",
            "[".repeat(500),
            "]".repeat(500)
        );
        assert!(Update::parse(&deep).is_none());
    }

    #[test]
    fn fuzz_events() {
        fuzz(&[STREAM.as_bytes()], |bytes, random| {
            let (one, two) = bytes.split_at(random.below(bytes.len()));
            let (events, mut parser) = (EventParser::default().feed(bytes), EventParser::default());
            assert_eq!(events, [parser.feed(one), parser.feed(two)].concat());
            for (_, data) in events {
                let _ = Update::parse(&data);
            }
            let _ = refusal(bytes);
        });
    }
}
