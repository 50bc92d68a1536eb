//! Buildbot's REST API v2 and event stream: paths and payloads to values.
//!
//! Each thread that asks has a [`Master`] of its own, with one kept connection. Answers are asked
//! for in pages of at most 100: larger ones of a 4.3.0 master can stall in mid-body for a minute.

use super::http::{self, Connection, Head};
use crate::config::Buildbot;
use crate::net::{self, Stream};
use crate::status::{Build, Worker};
use crate::text::base64;
use native_tls::TlsConnector;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::fmt;
use std::io;
use std::time::Duration;

/// The most items in one answer, see above.
pub const PAGE: usize = 100;
/// The same for workers with all their builders, which may be thousands.
const LONG_PAGE: usize = 10;
/// Between two pieces of one body the master may pause for so long; then we ask anew.
const STALL: Duration = Duration::from_secs(5);
/// The stream is silent while nothing happens; the poll notices when it has died.
const STREAM_SILENCE: Duration = Duration::from_secs(30 * 86_400);
/// An event longer than this is dropped; they are near 500 bytes.
const EVENT: usize = 256 * 1024;
/// The fields of a build that we read. What is filtered or ordered on must be among them.
const BUILD_FIELDS: &str = "field=buildid&field=builderid&field=number&field=buildrequestid\
    &field=started_at&field=complete&field=complete_at&field=results&field=state_string";

/// Why the master did not do what it was asked to.
#[derive(Debug)]
pub enum Error {
    /// No answer, or half of one: later may be better. The sentence names the request.
    Unreachable(String),
    /// An answer that refuses: status and the master's own words.
    Refused(u16, String),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Error::Unreachable(why) => f.write_str(why),
            Error::Refused(status, why) => write!(f, "the master refuses: {why} ({status})"),
        }
    }
}

/// The parts of `/config` that we read.
#[derive(Debug, Deserialize)]
pub struct Identity {
    #[serde(rename = "buildbotURL", default)]
    pub url: String,
    #[serde(default)]
    pub versions: Vec<(String, String)>,
}

impl Identity {
    /// The version of Buildbot.
    pub fn version(&self) -> &str {
        self.versions.iter().find(|(name, _)| name == "Buildbot").map_or("", |(_, v)| v)
    }
}

/// A builder as listed.
#[derive(Debug, Deserialize)]
pub struct ListedBuilder {
    #[serde(rename = "builderid")]
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub tags: Vec<String>,
    /// Empty: removed from the configuration.
    #[serde(default)]
    pub masterids: Vec<u64>,
}

/// A worker as listed or as the stream tells it.
#[derive(Debug, Deserialize)]
pub struct ListedWorker {
    #[serde(rename = "workerid")]
    pub id: u64,
    pub name: String,
    #[serde(default)]
    pub paused: bool,
    #[serde(default)]
    pub connected_to: Vec<serde::de::IgnoredAny>,
    #[serde(default)]
    pub configured_on: Vec<ConfiguredOn>,
}

/// A builder that a worker works for.
#[derive(Debug, Deserialize)]
pub struct ConfiguredOn {
    pub builderid: u64,
}

impl ListedWorker {
    /// As the status keeps it.
    pub fn worker(self) -> (u64, Worker) {
        let mut builders: Vec<u64> = self.configured_on.iter().map(|c| c.builderid).collect();
        builders.sort_unstable();
        builders.dedup();
        let online = !self.connected_to.is_empty();
        let Self { id, name, paused, .. } = self;
        (id, Worker { name, online, paused, missing: false, builders })
    }
}

/// A build request.
#[derive(Debug, Deserialize)]
pub struct Request {
    #[serde(rename = "buildrequestid")]
    pub id: u64,
    pub builderid: u64,
    #[serde(default)]
    pub claimed: bool,
    #[serde(default)]
    pub complete: bool,
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
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(rename = "all_fields", default)]
    fields: Vec<Field>,
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

fn yes() -> bool {
    true
}

impl ForceScheduler {
    /// The leaves of the form.
    pub fn leaves(&self) -> Vec<&Field> {
        fn walk<'a>(fields: &'a [Field], leaves: &mut Vec<&'a Field>) {
            for field in fields {
                match field.kind.as_str() {
                    "nested" => walk(&field.fields, leaves),
                    _ => leaves.push(field),
                }
            }
        }
        let mut leaves = Vec::new();
        walk(&self.fields, &mut leaves);
        leaves
    }
}

#[derive(Deserialize)]
struct Step {
    name: String,
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
    /// A master that was not asked anything yet.
    ///
    /// # Errors
    /// The TLS files' (see [`net::connector`]).
    pub fn new(config: &Buildbot) -> Result<Master, String> {
        let tls = config.url.https.then(|| net::connector(&config.tls)).transpose()?;
        Ok(Master { config: config.clone(), tls, connection: None, cookie: None })
    }

    /// Version and base of links.
    pub fn identity(&mut self) -> Result<Identity, Error> {
        let mut identity: Identity = self.get_object("/config")?;
        if identity.url.is_empty() {
            identity.url = self.config.url.to_string();
        }
        Ok(identity)
    }

    /// All configured builders.
    pub fn builders(&mut self) -> Result<Vec<ListedBuilder>, Error> {
        let fields = "field=builderid&field=name&field=tags&field=masterids";
        let mut all: Vec<ListedBuilder> = self.pages(&format!("/builders?{fields}&order=name"), PAGE)?;
        all.retain(|b| !b.masterids.is_empty());
        Ok(all)
    }

    /// All workers; with the builders of each, which is long, only if `whole`.
    pub fn workers(&mut self, whole: bool) -> Result<Vec<ListedWorker>, Error> {
        let (more, page) = if whole { ("&field=configured_on", LONG_PAGE) } else { ("", PAGE) };
        let fields = "field=workerid&field=name&field=paused&field=connected_to";
        self.pages(&format!("/workers?{fields}{more}&order=name"), page)
    }

    /// The builds after `mark`, lowest id first, at most a page.
    pub fn builds_since(&mut self, mark: u64) -> Result<Vec<Build>, Error> {
        self.get(&format!("/builds?{BUILD_FIELDS}&buildid__gt={mark}&order=buildid&limit={PAGE}"))
    }

    /// The newest builds, highest id first: page `page`.
    pub fn builds_back(&mut self, page: usize) -> Result<Vec<Build>, Error> {
        let offset = page * PAGE;
        self.get(&format!("/builds?{BUILD_FIELDS}&order=-buildid&limit={PAGE}&offset={offset}"))
    }

    /// The builds with these ids, at most a page of them.
    pub fn builds(&mut self, ids: &[u64]) -> Result<Vec<Build>, Error> {
        let wanted: String = ids.iter().take(PAGE).map(|id| format!("&buildid={id}")).collect();
        self.get(&format!("/builds?{BUILD_FIELDS}{wanted}&limit={PAGE}"))
    }

    /// The last builds of a builder, highest number first.
    pub fn recent(&mut self, builder: u64) -> Result<Vec<Build>, Error> {
        self.get(&format!("/builders/{builder}/builds?{BUILD_FIELDS}&order=-number&limit=10"))
    }

    /// The requests that wait for a worker, oldest first, at most a page.
    pub fn queued(&mut self) -> Result<Vec<Request>, Error> {
        let fields = "field=buildrequestid&field=builderid&field=claimed&field=complete";
        self.get(&format!("/buildrequests?{fields}&complete=false&claimed=false&order=buildrequestid&limit={PAGE}"))
    }

    /// Whether a worker that may build for this builder is online.
    pub fn online(&mut self, builder: u64) -> Result<bool, Error> {
        let path = format!("/builders/{builder}/workers?field=workerid&field=name&field=connected_to&limit={PAGE}");
        let workers: Vec<ListedWorker> = self.get(&path)?;
        Ok(workers.iter().any(|w| !w.connected_to.is_empty()))
    }

    /// The step that a build is in.
    pub fn step(&mut self, build: u64) -> Result<Option<String>, Error> {
        let query = "field=name&field=number&field=complete&complete=false&order=number&limit=1";
        let steps: Vec<Step> = self.get(&format!("/builds/{build}/steps?{query}"))?;
        Ok(steps.into_iter().next().map(|s| s.name))
    }

    /// The changes of a build: since its builder's last success, newest first.
    pub fn changes_of(&mut self, build: u64) -> Result<Vec<Change>, Error> {
        let query = "field=author&field=revision&field=comments&field=branch&limit=50";
        self.get(&format!("/builds/{build}/changes?{query}"))
    }

    /// The newest changes that the master knows, newest first.
    pub fn changes(&mut self, count: usize) -> Result<Vec<Change>, Error> {
        let query = "field=changeid&field=author&field=revision&field=comments&field=branch";
        let mut changes: Vec<Change> =
            self.get(&format!("/changes?{query}&order=-changeid&limit={}", count.min(PAGE)))?;
        // This one list comes backwards, whatever the order asked for.
        changes.sort_by_key(|c| Reverse(c.id));
        Ok(changes)
    }

    /// The revisions that a build was made from, one for each codebase.
    pub fn revisions(&mut self, build: u64) -> Result<Vec<String>, Error> {
        let query = "field=buildid&field=properties&property=got_revision&property=revision";
        let path = format!("/builds/{build}?{query}");
        let builds: Vec<Value> = self.get(&path)?;
        let properties = builds.first().map(|b| &b["properties"]);
        let found = ["got_revision", "revision"].iter().find_map(|name| match properties.map(|p| &p[name][0]) {
            Some(Value::String(one)) if !one.is_empty() => Some(vec![one.clone()]),
            Some(Value::Object(many)) => {
                let texts = many.values().filter_map(|v| v.as_str());
                Some(texts.filter(|t| !t.is_empty()).map(str::to_owned).collect::<Vec<_>>())
            }
            _ => None,
        });
        Ok(found.unwrap_or_default())
    }

    /// The enabled force schedulers that list a builder, by name.
    pub fn force_schedulers(&mut self, builder: u64) -> Result<Vec<ForceScheduler>, Error> {
        let mut all: Vec<ForceScheduler> = self.get(&format!("/builders/{builder}/forceschedulers"))?;
        all.retain(|s| s.enabled);
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

    /// Asks a build to stop (200 whatever becomes of it).
    pub fn stop(&mut self, build: u64, reason: &str) -> Result<(), Error> {
        self.call(&format!("/builds/{build}"), "stop", json!({ "reason": reason })).map(drop)
    }

    /// Takes a request back.
    pub fn cancel(&mut self, request: u64, reason: &str) -> Result<(), Error> {
        self.call(&format!("/buildrequests/{request}"), "cancel", json!({ "reason": reason })).map(drop)
    }

    /// What has become of a request: whether it is complete, its results, and the build it led to.
    pub fn request(&mut self, id: u64) -> Result<(bool, Option<Build>), Error> {
        let requests: Vec<Request> = self.get(&format!("/buildrequests/{id}"))?;
        let builds: Vec<Build> = self.get(&format!("/buildrequests/{id}/builds?{BUILD_FIELDS}&limit=1"))?;
        Ok((requests.first().is_some_and(|r| r.complete), builds.into_iter().next()))
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
        if method != "GET" {
            self.connection = None;
        }
        let mut first = true;
        loop {
            let reused = self.connection.is_some();
            let why = match self.once(method, path, body, first) {
                Ok(answer) => return Ok(answer),
                Err(why) => why,
            };
            self.connection = None;
            let again = method == "GET" && first && (reused || why.in_body);
            if !again {
                return Err(Error::Unreachable(format!("{method} {}: {}", short(path), why.text)));
            }
            log!(Debug, "{method} {}: {}; asking again", short(path), why.text);
            first = false;
        }
    }

    fn once(&mut self, method: &str, path: &str, body: &[u8], keep: bool) -> Result<(Head, Vec<u8>), Failure> {
        let timeout = self.config.timeout;
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().map_err(|text| Failure { text, in_body: false })?,
        };
        connection.stream.set_limits(timeout, timeout);
        log!(Debug, "master >> {method} {path}");
        let (accept, life) = ("application/json", if keep { "keep-alive" } else { "close" });
        let failed = |in_body| move |e: http::Error| Failure { text: e.to_string(), in_body };
        let head = self.send(&mut connection, method, path, &[("Accept", accept), ("Connection", life)], body);
        let head = head.map_err(failed(false))?;
        connection.stream.set_limits(STALL.min(timeout), timeout);
        let body = connection.body().map_err(failed(true))?;
        log!(Debug, "master << {} {} bytes", head.status, body.len());
        if keep && head.keeps_alive() {
            self.connection = Some(connection);
        }
        Ok((head, body))
    }

    /// Sends a request with the headers that all have, and reads the head of the answer.
    fn send(
        &self,
        to: &mut Connection<Stream>,
        method: &str,
        path: &str,
        more: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Head, http::Error> {
        let Buildbot { url, user, password, .. } = &self.config;
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
        if method == "POST" {
            headers.push(("Content-Type", "application/json"));
        }
        to.ask(method, &format!("{}{path}", url.path), &headers, body)
    }

    fn connect(&self) -> Result<Connection<Stream>, String> {
        let url = &self.config.url;
        Ok(Connection::new(Stream::connect(&url.host, url.port, self.tls.as_ref())?))
    }

    /// Opens the event stream. `subscribed` hears when it stands; `each` hears every update and
    /// says whether to go on.
    ///
    /// # Errors
    /// Always, in the end: why the stream is no more.
    pub fn listen(
        &mut self,
        subscribed: &mut dyn FnMut(io::Result<std::net::TcpStream>),
        each: &mut dyn FnMut(Update) -> bool,
    ) -> Result<(), Error> {
        let path = "/sse/listen/builds/*/*";
        let broken = |why: String| Error::Unreachable(format!("GET {path}: {why}"));
        let mut connection = self.connect().map_err(broken)?;
        connection.stream.set_limits(self.config.timeout, self.config.timeout);
        let head = self.send(&mut connection, "GET", path, &[("Accept", "text/event-stream")], b"");
        let head = head.map_err(|e| broken(e.to_string()))?;
        if head.status != 200 {
            return Err(Error::Refused(head.status, "no event stream".into()));
        }
        let mut parser = EventParser::default();
        loop {
            let piece = connection.piece().map_err(|e| broken(e.to_string()))?;
            let Some(piece) = piece else {
                return Err(broken("ended by the master".into()));
            };
            for (event, data) in parser.feed(&piece) {
                if event == "handshake" {
                    // More than one kind of event needs more than one subscription.
                    for more in ["workers/*/*", "buildrequests/*/*"] {
                        let (head, _) = self.exchange("GET", &format!("/sse/add/{data}/{more}"), b"")?;
                        if head.status != 200 {
                            return Err(Error::Refused(head.status, format!("no events of {more}")));
                        }
                    }
                    connection.stream.set_limits(STREAM_SILENCE, STREAM_SILENCE);
                    subscribed(connection.stream.socket());
                } else if let Some(update) = Update::parse(&data)
                    && !each(update)
                {
                    return Err(broken("nobody listens".into()));
                }
            }
        }
    }
}

struct Failure {
    text: String,
    /// The head was fine; the body stalled or broke.
    in_body: bool,
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

/// What a refusal says: `error` in the body is a text, or an object with a `message`.
fn refusal(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["error"];
    let message = if error.is_string() { error } else { &error["message"] };
    let text = match message {
        // Field errors of a force scheduler: each by its field.
        Value::Object(fields) => {
            let one = |(field, why): (&String, &Value)| {
                let why = why.as_str().unwrap_or("wrong");
                if why.contains(field.as_str()) { why.to_owned() } else { format!("{field}: {why}") }
            };
            fields.iter().map(one).collect::<Vec<_>>().join("; ")
        }
        message => message.as_str().unwrap_or("no reason given").to_owned(),
    };
    crate::text::clean(&text)
}

/// What the stream tells.
#[derive(Debug)]
pub enum Update {
    Build(Build),
    /// The flag: the master says that it is missing.
    Worker(ListedWorker, bool),
    Request(Request),
}

impl Update {
    /// Reads `{"key": [kind, id, what], "message": {…}}`; anything else is nothing to us.
    pub fn parse(data: &str) -> Option<Update> {
        #[derive(Deserialize)]
        struct Event {
            key: Vec<String>,
            message: Value,
        }
        let Event { key, message } = serde_json::from_str(data).ok()?;
        match key.first()?.as_str() {
            "builds" => Some(Update::Build(serde_json::from_value(message).ok()?)),
            "workers" => {
                let missing = key.get(2).is_some_and(|what| what == "missing");
                Some(Update::Worker(serde_json::from_value(message).ok()?, missing))
            }
            "buildrequests" => Some(Update::Request(serde_json::from_value(message).ok()?)),
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
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
            let line = line.trim_end_matches(['\r', '\n']);
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() => {
                    let done = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
                    if !std::mem::take(&mut self.dropping) && !done.1.is_empty() {
                        events.push(done);
                    }
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
