//! Buildbot's REST API v2 and event stream: paths and payloads to values.
//!
//! Each thread that asks has a [`Master`] of its own, with one kept connection. Answers are asked
//! for in pages of at most 100: larger ones of a 4.3.0 master can stall in mid-body for a minute.

use super::http::{Connection, Head};
use crate::config::Buildbot;
use crate::net::{self, Stream};
use crate::status::{Build, Builder, Worker};
use crate::text::{base64, clean};
use native_tls::TlsConnector;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::mem::take;
use std::time::Duration;
use std::{fmt, io};

/// The most items in one answer, see above.
pub const PAGE: usize = 100;
/// The same for workers with all their builders, which may be thousands.
const LONG_PAGE: usize = 10;
/// Far above what any master has: one that lists more does not look at `offset`.
const LISTED: usize = 100_000;
/// Between two pieces of one body the master may pause for so long; then we ask anew.
const STALL: Duration = Duration::from_secs(5);
/// The stream is silent while nothing happens; the poll notices when it has died.
const STREAM_SILENCE: Duration = Duration::from_secs(30 * 86_400);
/// An event longer than this is dropped; they are near 500 bytes.
const EVENT: usize = 256 * 1024;
/// The fields that we read. What is filtered or ordered on must be among them.
const BUILD: &str = "field=buildid&field=builderid&field=number&field=buildrequestid\
    &field=started_at&field=complete&field=complete_at&field=results&field=state_string";
const CHANGE: &str = "field=changeid&field=author&field=revision&field=comments&field=branch";
const REQUEST: &str = "field=buildrequestid&field=builderid&field=claimed&field=complete";

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
            Error::Unreachable(why) | Error::Wrong(why) => f.write_str(why),
            Error::Refused(status, why) => write!(f, "the master refuses: {why} ({status})"),
        }
    }
}

impl Error {
    /// Nothing where the master refuses; only a master that is away is an error.
    pub fn unless_away<T: Default>(self) -> Result<T, Error> {
        match self {
            Error::Unreachable(_) => Err(self),
            refused => {
                log!(Warning, "{refused}");
                Ok(T::default())
            }
        }
    }
}

impl From<String> for Error {
    fn from(why: String) -> Error {
        Error::Wrong(why)
    }
}

/// A worker, which the status keeps by its id.
#[derive(Debug, Deserialize)]
pub struct ListedWorker {
    #[serde(rename = "workerid")]
    pub id: u64,
    #[serde(flatten)]
    pub worker: Worker,
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
    /// -1 while it is open.
    #[serde(default)]
    results: i64,
}

impl Request {
    /// As those of a build.
    pub fn results(&self) -> Option<usize> {
        usize::try_from(self.results).ok().filter(|_| self.complete)
    }
}

/// A change, of which everything but the author may be missing.
#[derive(Debug, Deserialize)]
pub struct Change {
    #[serde(rename = "changeid", default)]
    pub id: u64,
    pub author: String,
    pub revision: Option<String>,
    pub comments: Option<String>,
    pub branch: Option<String>,
}

/// A scheduler that starts builds on demand.
#[derive(Debug, Deserialize)]
pub struct ForceScheduler {
    pub name: String,
    enabled: Option<bool>,
    #[serde(rename = "all_fields", default)]
    pub fields: Vec<Field>,
}

/// A field of its form; a tree, whose leaves are what is sent.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Field {
    #[serde(deserialize_with = "null_is_empty")]
    pub name: String,
    #[serde(rename = "fullName", deserialize_with = "null_is_empty")]
    pub full_name: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub default: Value,
    pub required: bool,
    pub strict: bool,
    pub choices: Vec<Value>,
    pub fields: Vec<Field>,
}

fn null_is_empty<'de, D: serde::Deserializer<'de>>(value: D) -> Result<String, D::Error> {
    Option::deserialize(value).map(Option::unwrap_or_default)
}

impl Field {
    pub fn leaves(&self) -> Vec<&Field> {
        if self.kind == "nested" { self.fields.iter().flat_map(Field::leaves).collect() } else { vec![self] }
    }
}

/// Every answer of the API is an object that holds one list.
#[derive(Deserialize)]
struct Envelope<T> {
    #[serde(alias = "builders", alias = "builds", alias = "buildrequests", alias = "changes")]
    #[serde(alias = "forceschedulers", alias = "steps", alias = "workers")]
    items: Vec<T>,
}

/// The master, as one thread talks to it.
pub struct Master {
    config: Buildbot,
    tls: Option<TlsConnector>,
    connection: Option<Connection<Stream>>,
    /// The session's cookie, as `name=value`.
    cookie: Option<String>,
}

impl Master {
    /// A master that was not asked anything yet. The errors are the TLS files' (see [`net::connector`]).
    pub fn new(config: &Buildbot) -> Result<Master, String> {
        let tls = config.url.https.then(|| net::connector(&config.tls)).transpose()?;
        Ok(Master { config: config.clone(), tls, connection: None, cookie: None })
    }

    /// The version of Buildbot, and the base of links for people.
    pub fn identity(&mut self) -> Result<(String, String), Error> {
        let config: Value = self.get_object("/config")?;
        let mut versions = config["versions"].as_array().into_iter().flatten();
        let version = versions.find(|v| v[0] == "Buildbot").and_then(|v| v[1].as_str()).unwrap_or_default();
        let url = config["buildbotURL"].as_str().filter(|url| !url.is_empty());
        Ok((version.to_owned(), url.map_or_else(|| self.config.url.to_string(), str::to_owned)))
    }

    /// All configured builders; those that were removed have no master.
    pub fn builders(&mut self) -> Result<Vec<Builder>, Error> {
        let fields = "field=builderid&field=name&field=tags&field=masterids";
        let mut all: Vec<Builder> = self.pages(&format!("/builders?{fields}&order=name"), PAGE)?;
        all.retain(|b| !b.masterids.is_empty());
        Ok(all)
    }

    /// All workers; with the builders of each, which is long, only if `whole`.
    pub fn workers(&mut self, whole: bool) -> Result<Vec<ListedWorker>, Error> {
        let (more, page) = if whole { ("&field=configured_on", LONG_PAGE) } else { ("", PAGE) };
        let fields = "field=workerid&field=name&field=paused&field=connected_to";
        self.pages(&format!("/workers?{fields}{more}&order=name"), page)
    }

    /// At most a page of builds, chosen and ordered by a query.
    pub fn builds(&mut self, query: &str) -> Result<Vec<Build>, Error> {
        self.get(&format!("/builds?{BUILD}&{query}&limit={PAGE}"))
    }

    /// The last builds of a builder, highest number first.
    pub fn recent(&mut self, builder: u64) -> Result<Vec<Build>, Error> {
        self.get(&format!("/builders/{builder}/builds?{BUILD}&order=-number&limit=10"))
    }

    /// The requests that wait for a worker, of one builder or of all, oldest first, at most a page.
    pub fn queued(&mut self, builder: Option<u64>) -> Result<Vec<Request>, Error> {
        let builder = builder.map_or(String::new(), |id| format!("&builderid={id}"));
        let query = "complete=false&claimed=false&order=buildrequestid";
        self.get(&format!("/buildrequests?{REQUEST}&{query}{builder}&limit={PAGE}"))
    }

    /// Whether a worker that may build for this builder is online.
    pub fn online(&mut self, builder: u64) -> Result<bool, Error> {
        let fields = "field=workerid&field=name&field=connected_to";
        let workers: Vec<Worker> = self.get(&format!("/builders/{builder}/workers?{fields}&limit={PAGE}"))?;
        Ok(workers.iter().any(|w| w.online))
    }

    /// The step that a build is in.
    pub fn step(&mut self, build: u64) -> Result<Option<String>, Error> {
        let query = "field=name&field=number&field=complete&complete=false&order=number&limit=1";
        let steps: Vec<Value> = self.get(&format!("/builds/{build}/steps?{query}"))?;
        Ok(steps.first().and_then(|step| step["name"].as_str()).map(str::to_owned))
    }

    /// The changes of a build: since its builder's last success, newest first.
    pub fn changes_of(&mut self, build: u64) -> Result<Vec<Change>, Error> {
        self.get(&format!("/builds/{build}/changes?{CHANGE}&limit=50"))
    }

    /// The newest changes that the master knows, newest first.
    pub fn changes(&mut self, count: usize) -> Result<Vec<Change>, Error> {
        let limit = count.min(PAGE);
        let mut changes: Vec<Change> = self.get(&format!("/changes?{CHANGE}&order=-changeid&limit={limit}"))?;
        // This one list comes backwards, whatever the order asked for.
        changes.sort_by_key(|c| Reverse(c.id));
        Ok(changes)
    }

    /// The revisions that a build was made from, one for each codebase.
    pub fn revisions(&mut self, build: u64) -> Result<Vec<String>, Error> {
        let query = "field=buildid&field=properties&property=got_revision&property=revision";
        let builds: Vec<Value> = self.get(&format!("/builds/{build}?{query}"))?;
        let properties = builds.first().map_or(&Value::Null, |b| &b["properties"]);
        let texts = |name: &str| -> Vec<String> {
            let value = &properties[name][0];
            let each = value.as_object().into_iter().flat_map(|by_codebase| by_codebase.values());
            let texts = each.chain([value]).filter_map(Value::as_str);
            texts.filter(|text| !text.is_empty()).map(str::to_owned).collect()
        };
        Ok(Some(texts("got_revision")).filter(|got| !got.is_empty()).unwrap_or_else(|| texts("revision")))
    }

    /// The enabled force schedulers that list a builder, by name.
    pub fn force_schedulers(&mut self, builder: u64) -> Result<Vec<ForceScheduler>, Error> {
        let mut all: Vec<ForceScheduler> = self.get(&format!("/builders/{builder}/forceschedulers"))?;
        all.retain(|s| s.enabled != Some(false));
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// Forces a build; returns the build request. `fields` must hold the `builderid`: without it the
    /// master would start every builder of the scheduler.
    pub fn force(&mut self, scheduler: &str, fields: Value) -> Result<u64, Error> {
        let result = self.call(&format!("/forceschedulers/{}", percent_encoded(scheduler)), "force", fields)?;
        let request = result[1].as_object().and_then(|requests| requests.values().next()?.as_u64());
        request.ok_or_else(|| Error::Refused(200, "it has started nothing".into()))
    }

    /// Asks to `stop` a build (200 whatever becomes of it) or to `cancel` a request.
    pub fn end(&mut self, path: &str, method: &str, reason: &str) -> Result<(), Error> {
        self.call(path, method, json!({ "reason": reason })).map(drop)
    }

    /// What has become of a request, and the build it led to.
    pub fn request(&mut self, id: u64) -> Result<(Option<Request>, Option<Build>), Error> {
        let requests: Vec<Request> = self.get(&format!("/buildrequests/{id}"))?;
        let builds: Vec<Build> = self.get(&format!("/buildrequests/{id}/builds?{BUILD}&limit=1"))?;
        Ok((requests.into_iter().next(), builds.into_iter().next()))
    }

    /// JSON-RPC 2.0, as the master wants it.
    fn call(&mut self, path: &str, method: &str, params: Value) -> Result<Value, Error> {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let (head, answer) = self.asked("POST", &format!("/api/v2{path}"), body.as_bytes())?;
        match serde_json::from_slice::<Value>(&answer) {
            Ok(mut answer) if head.status == 200 => Ok(answer["result"].take()),
            _ => Err(Error::Refused(head.status, refusal(&answer))),
        }
    }

    /// [`Master::exchange`], with a new login if the session has ended. A 403 says the same for that
    /// and for a missing role; `/config` tells them apart.
    fn asked(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(Head, Vec<u8>), Error> {
        let answer = self.exchange(method, path, body)?;
        if answer.0.status != 403 || self.config.user.is_none() || path == "/config" {
            return Ok(answer);
        }
        let config: Value = self.get_object("/config")?;
        if config["user"]["username"].is_string() || config["user"]["email"].is_string() {
            return Ok(answer);
        }
        log!(Info, "logging in to the master");
        let (head, _) = self.exchange("GET", "/auth/login", b"")?;
        // Two cookies of one name come; the first is an anonymous session.
        let cookies = head.all("set-cookie").filter(|c| c.starts_with("TWISTED_"));
        let cookie = cookies.last().and_then(|c| c.split(';').next());
        if head.status != 302 || cookie.is_none() {
            return Err(Error::Refused(head.status, "user and password are not accepted".into()));
        }
        self.cookie = cookie.map(str::to_owned);
        self.exchange(method, path, body)
    }

    fn pages<T: DeserializeOwned>(&mut self, path: &str, size: usize) -> Result<Vec<T>, Error> {
        let mut all = Vec::new();
        loop {
            let page: Vec<T> = self.get(&format!("{path}&limit={size}&offset={}", all.len()))?;
            let full = page.len() == size;
            all.extend(page);
            if !full {
                return Ok(all);
            }
            if all.len() >= LISTED {
                return Err(Error::Unreachable(format!("GET {}: a list without end", short(path))));
            }
        }
    }

    fn get<T: DeserializeOwned>(&mut self, path: &str) -> Result<Vec<T>, Error> {
        self.get_object(&format!("/api/v2{path}")).map(|envelope: Envelope<T>| envelope.items)
    }

    fn get_object<T: DeserializeOwned>(&mut self, path: &str) -> Result<T, Error> {
        let (head, body) = self.asked("GET", path, b"")?;
        if head.status != 200 {
            return Err(Error::Refused(head.status, refusal(&body)));
        }
        let strange = |e| format!("GET {}: the answer is not what it should be: {e}", short(path));
        serde_json::from_slice(&body).map_err(|e| Error::Unreachable(strange(e)))
    }

    /// One request and its whole answer. A GET whose connection was stale, or whose body stalled,
    /// is asked again on a new one; anything else might be done twice and is not.
    fn exchange(&mut self, method: &str, path: &str, body: &[u8]) -> Result<(Head, Vec<u8>), Error> {
        let (timeout, get) = (self.config.timeout, method == "GET");
        let mut kept = self.connection.take().filter(|_| get);
        let mut life = "keep-alive";
        loop {
            let headers = [("Accept", "application/json"), ("Connection", life)];
            // An error says why, and whether a new connection may help.
            let reused = kept.is_some();
            let asked = self.send(kept.take(), method, path, &headers, body).map_err(|why| (why, reused));
            let answer = asked.and_then(|(mut connection, head)| {
                connection.stream.set_limits(STALL.min(timeout), timeout);
                let body = connection.body().map_err(|e| (e.to_string(), true))?;
                log!(Debug, "master << {} {} bytes", head.status, body.len());
                self.connection = Some(connection).filter(|_| life == "keep-alive" && head.keeps_alive());
                Ok((head, body))
            });
            match answer {
                Ok(answer) => return Ok(answer),
                Err((why, true)) if get && life == "keep-alive" => {
                    log!(Debug, "{method} {}: {why}; asking again", short(path));
                    life = "close";
                }
                Err((why, _)) => return Err(Error::Unreachable(format!("{method} {}: {why}", short(path)))),
            }
        }
    }

    /// Sends a request with the headers that all have, and reads the head of the answer.
    fn send(
        &self,
        kept: Option<Connection<Stream>>,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(Connection<Stream>, Head), String> {
        let Buildbot { url, user, password, timeout, .. } = &self.config;
        let connect = || Stream::connect(&url.host, url.port, self.tls.as_ref()).map(Connection::new);
        let mut connection = kept.map_or_else(connect, Ok)?;
        connection.stream.set_limits(*timeout, *timeout);
        log!(Debug, "master >> {method} {path}");
        let host = url.to_string();
        let login = user.as_ref().zip(password.as_ref()).map(|(user, password)| format!("{user}:{}", password.0));
        let login = login.map(|login| format!("Basic {}", base64(login.as_bytes())));
        let mut headers = vec![
            ("Host", host.split('/').nth(2).unwrap_or("")),
            ("User-Agent", concat!("buildbot-irc/", env!("CARGO_PKG_VERSION"))),
        ];
        headers.extend_from_slice(more);
        // A reverse proxy may want this, too; the master looks at it for /auth/login only.
        headers.extend(login.as_deref().map(|login| ("Authorization", login)));
        headers.extend(self.cookie.as_deref().map(|cookie| ("Cookie", cookie)));
        headers.extend((method == "POST").then_some(("Content-Type", "application/json")));
        let head = connection.ask(method, &format!("{}{path}", url.path), &headers, body).map_err(|e| e.to_string())?;
        Ok((connection, head))
    }

    /// Opens the event stream. `subscribed` hears when it stands; `each` hears every update and
    /// says whether to go on. Always an error, in the end: why the stream is no more.
    pub fn listen(
        &mut self,
        subscribed: &mut dyn FnMut(io::Result<std::net::TcpStream>),
        each: &mut dyn FnMut(Update) -> bool,
    ) -> Result<(), Error> {
        let path = "/sse/listen/builds/*/*";
        let broken = |why: String| Error::Unreachable(format!("GET {path}: {why}"));
        let headers = [("Accept", "text/event-stream")];
        let (mut connection, head) = self.send(None, "GET", path, &headers, b"").map_err(broken)?;
        if head.status != 200 {
            return Err(Error::Refused(head.status, "no event stream".into()));
        }
        let mut parser = EventParser::default();
        while let Some(piece) = connection.piece().map_err(|e| broken(e.to_string()))? {
            for (event, data) in parser.feed(&piece) {
                if event == "handshake" {
                    // More than one kind of event needs more than one subscription.
                    for more in ["workers/*/*", "buildrequests/*/*"] {
                        let (head, _) =
                            self.exchange("GET", &format!("/sse/add/{}/{more}", percent_encoded(&data)), b"")?;
                        if head.status != 200 {
                            return Err(Error::Refused(head.status, format!("no events of {more}")));
                        }
                    }
                    connection.stream.set_limits(STREAM_SILENCE, STREAM_SILENCE);
                    subscribed(connection.stream.socket());
                } else if Update::parse(&data).is_some_and(|update| !each(update)) {
                    return Err(broken("nobody listens".into()));
                }
            }
        }
        Err(broken("ended by the master".into()))
    }
}

/// RFC 3986: everything but the unreserved characters.
fn percent_encoded(text: &str) -> String {
    let one = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(b).to_string(),
        _ => format!("%{b:02X}"),
    };
    text.bytes().map(one).collect()
}

/// A path as errors show it: without its query.
fn short(path: &str) -> &str {
    path.split('?').next().unwrap_or(path)
}

/// What a refusal says: `error` in the body is a text, or an object with a `message`, which may hold
/// the errors of a force scheduler: each by its field.
fn refusal(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["error"];
    let one = |(field, why): (&String, &Value)| {
        let why = why.as_str().unwrap_or("wrong");
        if why.contains(field.as_str()) { why.to_owned() } else { format!("{field}: {why}") }
    };
    clean(&match if error.is_string() { error } else { &error["message"] } {
        Value::Object(fields) => fields.iter().map(one).collect::<Vec<_>>().join("; "),
        message => message.as_str().unwrap_or("no reason given; is the url right?").to_owned(),
    })
}

/// What the stream tells.
#[derive(Debug)]
pub enum Update {
    Build(Build),
    Worker(ListedWorker),
    Request(Request),
}

impl Update {
    /// Reads `{"key": [kind, id, what], "message": {…}}`; anything else is nothing to us.
    pub fn parse(data: &str) -> Option<Update> {
        let mut event: Value = serde_json::from_str(data).ok()?;
        let message = event.get_mut("message")?.take();
        let key = &event["key"];
        match key[0].as_str()? {
            "builds" => Build::deserialize(message).map(Update::Build).ok(),
            "workers" => {
                let mut listed = ListedWorker::deserialize(message).ok()?;
                listed.worker.missing = key[2] == "missing";
                Some(Update::Worker(listed))
            }
            "buildrequests" => Request::deserialize(message).map(Update::Request).ok(),
            _ => None,
        }
    }
}

/// Server-sent events (WHATWG HTML, section 9.2), as far as Buildbot sends them: `event:` and
/// `data:` lines, an empty line behind. Chunks of HTTP are not events.
#[derive(Default)]
pub struct EventParser {
    line: Vec<u8>,
    event: String,
    data: String,
    /// The event at hand was too long.
    dropping: bool,
}

impl EventParser {
    /// Takes bytes and returns the events that they complete: name and data.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<(String, String)> {
        let mut events = Vec::new();
        for part in bytes.split_inclusive(|&b| b == b'\n') {
            if self.line.len() + self.data.len() + part.len() > EVENT {
                self.dropping = true;
                (self.line, self.data) = (Vec::new(), String::new());
            }
            self.line.extend_from_slice(if self.dropping && part.len() > 2 { b"x" } else { part });
            if !part.ends_with(b"\n") {
                continue;
            }
            let line = String::from_utf8_lossy(&take(&mut self.line)).into_owned();
            let line = line.trim_end_matches(['\r', '\n']);
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    let done = (take(&mut self.event), take(&mut self.data));
                    let whole = !take(&mut self.dropping) && !done.1.is_empty();
                    events.extend(whole.then_some(done));
                }
                "event" => self.event = value.to_owned(),
                "data" if !self.dropping => self.data.push_str(value),
                _ => {}
            }
        }
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "event: handshake\ndata: 8ff8\n\n: comment\nevent: event\r\ndata: {\"key\": [\"builds\", \"2\", \"new\"], \
        \"message\": {\"buildid\":2,\"number\":1,\"builderid\":4,\"buildrequestid\":2,\"started_at\":1795362321,\
        \"complete_at\":null,\"complete\":false,\"state_string\":\"st\u{e4}rting\",\"results\":null,\"properties\":{}}}\r\n\r\nevent: x\n";

    #[test]
    fn events_come_whole_whatever_the_chunks() {
        let bytes = STREAM.as_bytes();
        let whole = EventParser::default().feed(bytes);
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], ("handshake".into(), "8ff8".into()));
        let Some(Update::Build(build)) = Update::parse(&whole[1].1) else { panic!("no build") };
        assert_eq!((build.id, build.builderid, build.state_string.as_str()), (2, 4, "st\u{e4}rting"));
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
            assert!(parser.line.capacity() + parser.data.capacity() <= 4 * EVENT);
        }
        assert!(parser.feed(b"\n\n").is_empty(), "the long one is dropped");
        assert_eq!(parser.feed(b"data: c\n\n").len(), 1, "the next one is whole again");
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
        let deep = format!("{{\"key\":[\"builds\"],\"message\":{}1{}}}", "[".repeat(500), "]".repeat(500));
        assert!(Update::parse(&deep).is_none());
    }

    #[test]
    fn mutated_streams_never_panic() {
        let mut state = 0x1234_5678_9abc_def1_u64;
        for _ in 0..5000 {
            let mut bytes = STREAM.as_bytes().to_vec();
            for _ in 0..5 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state as usize % bytes.len();
                bytes[at] = (state >> 33) as u8;
            }
            for (_, data) in EventParser::default().feed(&bytes) {
                let _ = Update::parse(&data);
            }
        }
    }
}
