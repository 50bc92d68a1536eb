//! Buildbot's REST API v2: paths and payloads to values. Each thread that asks has a [`Client`] of
//! its own, with one kept connection.
//!
//! Answers are asked for in pages of at most 100: larger ones of a 4.3.0 master can stall in
//! mid-body for a minute on a kept connection.

use super::builder::Builder;
use super::http::{Connection, Head, HttpError, method};
use super::model::Identity;
use super::resources::{Build, BuildRequest, Buildset, Change, SourceStamp, Worker};
use crate::backoff::Backoff;
use crate::clock;
use crate::config::Buildbot;
use crate::encoding::base64;
use crate::net::{self, Stream};
use crate::sanitize::{sanitize, sanitize_error};
use native_tls::TlsConnector;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The most items in one answer, see above.
pub const PAGE: usize = 100;
/// Builders behind the first hundred come in pages of so many: the master reads all of them for
/// each page, so few pages count for more. On a connection of its own such an answer does not stall.
pub const LONG_PAGE: usize = 1000;
/// Bytes of a list, and of any other answer: parsed, they take up to twenty times as much memory,
/// and all of the bot shall stay below 32 MiB. The longest page has 600 KiB: two workers of 10,000
/// builders.
const LIST: usize = 1024 * 1024;
const OTHER: usize = 256 * 1024;
/// Between two pieces of one body the master may pause for so long; then we ask anew.
const STALL: Duration = Duration::from_secs(5);
/// The same where an answer is short and somebody waits for it.
const SHORT_STALL: Duration = Duration::from_millis(500);
/// What nobody needs may take so long; then it is done without.
const NICE_TO_HAVE: Duration = Duration::from_secs(5);
/// The pauses before a GET is asked once more, for the second time on; doubling.
const RETRY_PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(2));
/// The longest wait that a `Retry-After` can ask for.
const RETRY_AFTER: Duration = Duration::from_secs(600);
/// Seconds by which two clocks that agree can seem to differ.
const CLOCK_NOISE: i64 = 5;
/// Verdicts that are looked for below a build: the last one of its branch should be among them.
const PREVIOUS_BUILDS: usize = PAGE;
/// … page by page; what is farther back counts as never built.
const PREVIOUS_PAGES: usize = 10;
/// The last builds of one builder.
const LAST_BUILDS: usize = 10;
/// Builders of one buildset: far above what any scheduler starts.
const BUILDSET: usize = 10 * PAGE;
/// Changes of one source stamp.
const SOURCE_CHANGES: usize = 50;
/// Later requests of the same builder among which a merged one looks for its successor.
const LATER_REQUESTS: usize = 20;

/// Fields that we read. What is filtered or ordered on must be among them.
const BUILDER_FIELDS: &str = "field=builderid&field=name&field=tags&field=masterids";
const BUILD_FIELDS: &str = "field=buildid&field=builderid&field=number&field=buildrequestid\
    &field=started_at&field=complete&field=complete_at&field=results";
const CHANGE_FIELDS: &str =
    "field=changeid&field=author&field=revision&field=comments&field=branch";
const WORKER_FIELDS: &str = "field=workerid&field=name&field=paused&field=connected_to";
/// The branch of builds of one codebase. It costs the master a look-up a build.
const BRANCH_FIELD: &str = "&field=properties&property=branch";
const REQUEST_FIELDS: &str = "field=buildrequestid&field=builderid&field=buildsetid\
    &field=claimed&field=complete&field=results";

/// What kind of failure it is decides what happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// No connection, so no other request would fare better.
    NoConnection,
    /// Half an answer, or none: later may be better.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// A proxy answers for the master, which is away, or we are to be patient.
    Busy,
    /// A POST without an answer: it may have been done.
    Uncertain,
    /// An answer that refuses, with its status.
    Refused(u16),
    /// What was wanted makes no sense to this master.
    Wrong,
    /// The answer is larger than we take.
    TooLarge,
}

impl ErrorKind {
    /// Whether the master itself has said nothing to a question.
    pub fn is_no_answer(self) -> bool {
        matches!(
            self,
            ErrorKind::NoConnection
                | ErrorKind::Unreachable
                | ErrorKind::TimedOut
                | ErrorKind::Busy
        )
    }
}

/// Why the master did not do what it was asked to; a sentence.
#[derive(Clone, Debug)]
pub struct Error {
    pub kind: ErrorKind,
    message: String,
    /// The master, or a proxy, wants to be left alone for so long.
    pub retry_after: Option<Duration>,
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error {
            kind,
            message: message.into(),
            retry_after: None,
        }
    }

    pub fn wrong(message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Wrong, message)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let message = sanitize_error(&self.message);
        match self.kind {
            ErrorKind::Refused(status) => write!(f, "the master refuses: {message} ({status})"),
            _ => f.write_str(&message),
        }
    }
}

/// What the poller can ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    Identity,
    Builders(Page),
    /// With the builders that each may work for, or without.
    Workers(Page, WithBuilders),
    NewestChanges,
    RunningBuilds(Page),
    /// The newest first.
    RecentBuilds(Page),
    /// The same with their branches, which takes the master longer.
    RecentBranches(Page),
    /// From this id on, the lowest first.
    BuildsFrom(u64, Page),
    BuildsById(Vec<u64>, Page),
    /// Requests that no worker has taken.
    QueuedRequests(Page),
    /// What has become of one request.
    Request(u64),
    Builder(u64),
    /// The branch of a build.
    Branch(u64),
    /// The newest builds of a builder below a number that say something of the code; as far back
    /// as the last one of this branch, where that is known.
    PreviousBuilds {
        builder: u64,
        number: u64,
        branch: String,
    },
}

impl Query {
    /// Whether nothing can be told without its answer.
    pub fn is_essential(&self) -> bool {
        !matches!(
            self,
            Query::Identity
                | Query::Workers(..)
                | Query::NewestChanges
                | Query::RecentBranches(_)
                | Query::QueuedRequests(_)
        )
    }

    /// Whether it is about one build, and not a list of a poll.
    pub fn is_lookup(&self) -> bool {
        matches!(
            self,
            Query::Builder(_) | Query::Branch(_) | Query::PreviousBuilds { .. }
        )
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithBuilders {
    Yes,
    No,
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    pub offset: usize,
    pub limit: usize,
    /// Without the texts that can be long.
    pub without_text: bool,
}

impl Page {
    /// The first items of a list.
    pub fn first(limit: usize) -> Page {
        Page {
            offset: 0,
            limit,
            without_text: false,
        }
    }

    fn query(self) -> String {
        format!("limit={}&offset={}", self.limit, self.offset)
    }
}

/// The answer to a [`Query`].
#[derive(Clone, Debug)]
pub enum Answer {
    Identity(Identity),
    Builders(List<Builder>),
    Workers(List<Worker>),
    Changes(Vec<Change>),
    Builds(List<Build>),
    Requests(List<BuildRequest>),
    Request(RequestFate),
}

/// What has become of a request.
#[derive(Clone, Debug, Default)]
pub struct RequestFate {
    /// Nothing if the master knows it no more.
    pub request: Option<BuildRequest>,
    /// The last build that it has led to.
    pub build: Option<Build>,
    /// The request that it was merged into.
    pub merged_into: Option<u64>,
}

/// Every answer of the API is an object that holds one list.
#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(
        borrow,
        alias = "builders",
        alias = "builds",
        alias = "buildrequests",
        alias = "buildsets",
        alias = "changes",
        alias = "forceschedulers",
        alias = "logchunks",
        alias = "logs",
        alias = "steps",
        alias = "workers"
    )]
    items: Vec<&'a RawValue>,
}

/// Reads a list, item by item: one odd item costs itself, not its page.
fn parse_list<T: DeserializeOwned>(json: &[u8]) -> serde_json::Result<List<T>> {
    let envelope: Envelope = serde_json::from_slice(json)?;
    let length = envelope.items.len();
    let mut items = Vec::with_capacity(length);
    for item in envelope.items {
        match serde_json::from_str(item.get()) {
            Ok(item) => items.push(item),
            Err(e) => log!(Debug, "an odd item is left out: {e}"),
        }
    }
    Ok(List { items, length })
}

/// A page of a list. How many items it had, odd ones too, says whether there is another page.
#[derive(Clone, Debug)]
pub struct List<T> {
    pub items: Vec<T>,
    pub length: usize,
}

impl<T> From<Vec<T>> for List<T> {
    fn from(items: Vec<T>) -> List<T> {
        List {
            length: items.len(),
            items,
        }
    }
}

pub type HttpConnection = Connection<Box<dyn Stream>>;

/// An answer's head and its body.
struct HttpAnswer {
    head: Head,
    body: Vec<u8>,
}

/// The master, as one thread talks to it.
pub struct Client {
    config: Buildbot,
    tls: Option<TlsConnector>,
    connection: Option<HttpConnection>,
    /// Name and value of the session's cookie, when we are logged in.
    cookie: Option<String>,
    /// For the log: one line is enough.
    was_login_refused: bool,
    /// How long a GET is tried again while somebody waits for it.
    patience: Duration,
    /// How long an answer may take.
    limit: Duration,
    /// How long a body may pause before we ask anew.
    stall: Duration,
    /// The master's clock less ours, in seconds, by its last answer that told.
    pub clock_offset: Option<i64>,
}

impl Client {
    /// A client that has not asked anything yet. The errors are the TLS files' (see
    /// [`net::connector`]).
    pub fn new(config: &Buildbot, patience: Duration) -> Result<Client, String> {
        let tls = if config.url.https {
            Some(net::connector(&config.tls)?)
        } else {
            None
        };
        Ok(Client {
            config: config.clone(),
            tls,
            connection: None,
            cookie: None,
            was_login_refused: false,
            patience,
            limit: config.timeout,
            stall: STALL,
            clock_offset: None,
        })
    }

    /// The same with less patience for an answer.
    pub fn with_timeout(mut self, limit: Duration) -> Client {
        self.config.timeout = self.config.timeout.min(limit);
        self.limit = self.config.timeout;
        self
    }

    /// The same for short answers that somebody waits for.
    pub fn in_haste(mut self) -> Client {
        self.stall = SHORT_STALL;
        self
    }

    /// Asks what the poller wants to know.
    pub fn ask(&mut self, query: &Query) -> Result<Answer, Error> {
        let timeout = self.config.timeout;
        self.limit = if query.is_essential() {
            timeout
        } else {
            timeout.min(NICE_TO_HAVE)
        };
        match query {
            Query::Identity => self.identity().map(Answer::Identity),
            Query::Builders(page) => {
                let path = format!("/builders?{BUILDER_FIELDS}&order=name&{}", page.query());
                self.page(&path).map(Answer::Builders)
            }
            Query::Workers(page, with_builders) => {
                let more = match with_builders {
                    WithBuilders::Yes => "&field=configured_on",
                    WithBuilders::No => "",
                };
                let path = format!("/workers?{WORKER_FIELDS}{more}&order=name&{}", page.query());
                self.page(&path).map(Answer::Workers)
            }
            Query::NewestChanges => self.newest_changes(PAGE).map(Answer::Changes),
            Query::RunningBuilds(page) => self.builds("complete=false&order=buildid", *page, None),
            Query::RecentBuilds(page) => {
                let path = builds_path("order=-buildid", *page);
                self.page(&path).map(Answer::Builds)
            }
            Query::RecentBranches(page) => self.builds("order=-buildid", *page, None),
            Query::BuildsFrom(id, page) => {
                let filter = format!("buildid__ge={id}&order=buildid");
                self.builds(&filter, *page, Some(*id))
            }
            Query::BuildsById(ids, page) => {
                let filter = format!("{}&order=buildid", any_of("buildid", ids));
                self.page(&builds_path(&filter, *page)).map(Answer::Builds)
            }
            Query::Branch(id) => self.builds(&format!("buildid={id}"), Page::first(1), None),
            Query::QueuedRequests(page) => {
                let filter = "complete=false&claimed=false&order=buildrequestid";
                let path = format!("/buildrequests?{REQUEST_FIELDS}&{filter}&{}", page.query());
                self.page(&path).map(Answer::Requests)
            }
            Query::Request(id) => self.request(*id).map(Answer::Request),
            Query::Builder(id) => self.page(&format!("/builders/{id}")).map(Answer::Builders),
            Query::PreviousBuilds {
                builder,
                number,
                branch,
            } => {
                let builds = self.previous_builds(*builder, *number, branch);
                builds.map(Answer::Builds)
            }
        }
    }

    /// Builds with their branches. That of one which is known already is not looked for.
    fn builds(&mut self, filter: &str, page: Page, known: Option<u64>) -> Result<Answer, Error> {
        let path = format!("{}{BRANCH_FIELD}", builds_path(filter, page));
        let mut list: List<Build> = self.page(&path)?;
        let is_new = |build: &&mut Build| Some(build.id) != known;
        self.add_sources(list.items.iter_mut().filter(is_new));
        Ok(Answer::Builds(list))
    }

    /// Builds of several codebases have no property for their branches; their buildsets know them.
    /// Without an answer they stay unknown.
    fn add_sources<'a>(&mut self, builds: impl IntoIterator<Item = &'a mut Build>) {
        let builds = builds.into_iter();
        let unknown = builds.filter(|build| build.branch.is_none());
        let mut unknown: Vec<&mut Build> = unknown.collect();
        let requests: BTreeSet<u64> = unknown.iter().filter_map(|b| b.request_id).collect();
        let sources = self.sources_of(&requests).unwrap_or_else(|error| {
            log!(Debug, "{error}");
            BTreeMap::new()
        });
        for build in &mut unknown {
            let known = build.request_id.and_then(|id| sources.get(&id));
            build.sources = known.cloned().unwrap_or_default();
        }
    }

    /// What each of these requests is to build.
    fn sources_of(
        &mut self,
        requests: &BTreeSet<u64>,
    ) -> Result<BTreeMap<u64, Vec<SourceStamp>>, Error> {
        if requests.is_empty() {
            return Ok(BTreeMap::new());
        }
        let filter = any_of("buildrequestid", requests);
        let path = format!("/buildrequests?{REQUEST_FIELDS}&{filter}&limit={PAGE}");
        let requests: Vec<BuildRequest> = self.list(&path)?;
        let ids: BTreeSet<u64> = requests.iter().map(|r| r.buildset_id).collect();
        if ids.is_empty() {
            return Ok(BTreeMap::new());
        }
        let filter = any_of("bsid", &ids);
        let fields = "field=bsid&field=sourcestamps";
        let buildsets: Vec<Buildset> =
            self.list(&format!("/buildsets?{fields}&{filter}&limit={PAGE}"))?;
        let sources = buildsets.into_iter().map(|set| (set.id, set.sources));
        let sources: BTreeMap<u64, Vec<SourceStamp>> = sources.collect();
        let of = |request: &BuildRequest| {
            let found = sources.get(&request.buildset_id)?;
            Some((request.id, found.clone()))
        };
        Ok(requests.iter().filter_map(of).collect())
    }

    /// The last builds of a builder, highest number first.
    pub fn last_builds(&mut self, builder: u64) -> Result<Vec<Build>, Error> {
        let fields = format!("{BUILD_FIELDS}&field=state_string{BRANCH_FIELD}");
        let path = format!("/builders/{builder}/builds?{fields}&order=-number&limit={LAST_BUILDS}");
        let mut builds: Vec<Build> = self.list_with_text(&path, "&field=state_string")?;
        self.add_sources(&mut builds);
        Ok(builds)
    }

    /// The newest build of a builder that a filter lets through.
    pub fn newest_build(&mut self, builder: u64, filter: &str) -> Result<Option<Build>, Error> {
        let fields = format!("{BUILD_FIELDS}&field=state_string");
        let path = format!("/builders/{builder}/builds?{fields}&{filter}&order=-number&limit=1");
        Ok(self.list_with_text(&path, "&field=state_string")?.pop())
    }

    /// The running builds of a builder, lowest number first.
    pub fn running_builds(&mut self, builder: u64) -> Result<Vec<Build>, Error> {
        let filter = format!("builderid={builder}&complete=false&order=number&limit={PAGE}");
        self.list(&format!("/builds?{BUILD_FIELDS}&{filter}"))
    }

    /// The verdicts of a builder below a number, highest number first.
    fn previous_builds(
        &mut self,
        builder: u64,
        number: u64,
        branch: &str,
    ) -> Result<List<Build>, Error> {
        // Success, warnings, failure, exception: the results that say something of the code.
        let verdicts = "results=0&results=1&results=2&results=4";
        let filter = format!("complete=true&number__lt={number}&{verdicts}&order=-number");
        let fields = format!("{BUILD_FIELDS}{BRANCH_FIELD}");
        let path = format!("/builders/{builder}/builds?{fields}&{filter}");
        let mut found = List::from(Vec::new());
        // Behind the first page only that branch is of interest.
        for page in 0..PREVIOUS_PAGES {
            let offset = page * PREVIOUS_BUILDS;
            let path = format!("{path}&limit={PREVIOUS_BUILDS}&offset={offset}");
            let mut list: List<Build> = self.page(&path)?;
            self.add_sources(&mut list.items);
            let is_same = |build: &Build| build.branch.as_deref().is_none_or(|b| b == branch);
            let has_branch = branch.is_empty() || list.items.iter().any(is_same);
            list.items.retain(|build| page == 0 || is_same(build));
            found.items.extend(list.items);
            found.length += list.length;
            if has_branch || list.length < PREVIOUS_BUILDS {
                break;
            }
        }
        Ok(found)
    }

    /// The newest changes, highest id first, at most a page.
    pub fn newest_changes(&mut self, count: usize) -> Result<Vec<Change>, Error> {
        let limit = count.min(PAGE);
        let path = format!("/changes?{CHANGE_FIELDS}&order=-changeid&limit={limit}");
        let mut changes: Vec<Change> = self.list_with_text(&path, "&field=comments")?;
        // This one list comes backwards, whatever the order asked for.
        if changes.is_sorted_by_key(|change| change.id) {
            changes.reverse();
        }
        Ok(changes)
    }

    /// The changes of a build: all since the builder's last success, newest first.
    pub fn changes_of(&mut self, build: u64, limit: usize) -> Result<Vec<Change>, Error> {
        let fields = "field=changeid&field=author&field=revision";
        self.list(&format!("/builds/{build}/changes?{fields}&limit={limit}"))
    }

    /// The requests of one builder that wait for a worker, oldest first.
    pub fn queued_requests(&mut self, builder: u64) -> Result<Vec<BuildRequest>, Error> {
        let filter = "complete=false&claimed=false&order=buildrequestid";
        let path = format!("/buildrequests?{REQUEST_FIELDS}&builderid={builder}&{filter}");
        self.list(&format!("{path}&limit={PAGE}"))
    }

    /// The buildset of a request, if the master knows it still.
    pub fn buildset_of(&mut self, request: u64) -> Result<Option<u64>, Error> {
        let path = format!("/buildrequests/{request}?{REQUEST_FIELDS}");
        let requests: Result<Vec<BuildRequest>, Error> = self.list(&path);
        if is_not_found(&requests) {
            return Ok(None);
        }
        Ok(requests?.first().map(|request| request.buildset_id))
    }

    /// All requests of a buildset, as they stand now.
    pub fn requests_of(&mut self, buildset: u64) -> Result<Vec<BuildRequest>, Error> {
        let filter = format!("buildsetid={buildset}&order=buildrequestid");
        let mut requests = Vec::new();
        while requests.len() < BUILDSET {
            let page = Page {
                offset: requests.len(),
                ..Page::first(PAGE)
            };
            let path = format!("/buildrequests?{REQUEST_FIELDS}&{filter}&{}", page.query());
            let list: List<BuildRequest> = self.page(&path)?;
            requests.extend(list.items);
            if list.length < PAGE {
                break;
            }
        }
        Ok(requests)
    }

    /// A buildset with its sources, if the master knows it still. One whose patch is too large goes
    /// without.
    pub fn buildset(&mut self, id: u64) -> Result<Option<Buildset>, Error> {
        let fields = "field=bsid&field=reason&field=sourcestamps";
        let found: Result<Vec<Buildset>, Error> = self.list(&format!("/buildsets/{id}?{fields}"));
        match found {
            Err(error) if error.kind == ErrorKind::Refused(404) => Ok(None),
            Err(error) if error.kind == ErrorKind::TooLarge => Ok(Some(Buildset {
                id,
                ..Buildset::default()
            })),
            found => Ok(found?.pop()),
        }
    }

    /// The changes of a source stamp, newest first.
    pub fn changes_of_source(&mut self, source: u64) -> Result<Vec<Change>, Error> {
        let path = format!("/sourcestamps/{source}/changes?{CHANGE_FIELDS}");
        let mut changes: Vec<Change> = self.list(&format!("{path}&limit={SOURCE_CHANGES}"))?;
        changes.sort_by_key(|change| std::cmp::Reverse(change.id));
        Ok(changes)
    }

    /// What has become of a request.
    pub fn request(&mut self, id: u64) -> Result<RequestFate, Error> {
        let found = self.list(&format!("/buildrequests/{id}?{REQUEST_FIELDS}"));
        let mut requests: Vec<BuildRequest> = if is_not_found(&found) {
            Vec::new()
        } else {
            found?
        };
        let fields = format!("{BUILD_FIELDS}&field=state_string{BRANCH_FIELD}");
        let path = format!("/buildrequests/{id}/builds?{fields}&order=-buildid&limit=1");
        let mut builds: Vec<Build> = self.list_with_text(&path, "&field=state_string")?;
        self.add_sources(&mut builds);
        let request = requests.pop();
        let build = builds.pop();
        let mut merged_into = None;
        if let Some(request) = &request
            && build.is_none()
            && request.outcome() == Some(crate::outcome::Outcome::Skipped)
        {
            merged_into = self.successor(request)?;
        }
        Ok(RequestFate {
            request,
            build,
            merged_into,
        })
    }

    /// The request that a skipped one was merged into: the next of the same builder with the same
    /// source that was not skipped itself (`buildbot.process.buildrequest`, `canBeCollapsed`).
    fn successor(&mut self, skipped: &BuildRequest) -> Result<Option<u64>, Error> {
        let filter = format!(
            "builderid={}&buildrequestid__gt={}",
            skipped.builder_id, skipped.id
        );
        let order = format!("order=buildrequestid&limit={LATER_REQUESTS}");
        let path = format!("/buildrequests?{REQUEST_FIELDS}&{filter}&{order}");
        let later: Vec<BuildRequest> = self.list(&path)?;
        let wanted = self.source_of(skipped.buildset_id)?;
        for request in later {
            let is_skipped = request.outcome() == Some(crate::outcome::Outcome::Skipped);
            if !is_skipped && self.source_of(request.buildset_id)? == wanted {
                return Ok(Some(request.id));
            }
        }
        Ok(None)
    }

    /// Codebase, repository and branch of each source stamp of a buildset, sorted.
    fn source_of(&mut self, buildset: u64) -> Result<Vec<[String; 3]>, Error> {
        let sets: Vec<Value> = self.list(&format!("/buildsets/{buildset}"))?;
        let stamps = sets.first().and_then(|set| set["sourcestamps"].as_array());
        let mut source: Vec<[String; 3]> = stamps
            .into_iter()
            .flatten()
            .map(|stamp| ["codebase", "repository", "branch"].map(|key| stamp[key].to_string()))
            .collect();
        source.sort_unstable();
        Ok(source)
    }

    /// The list at a path of the API; `limit` is the caller's.
    pub fn list<T: DeserializeOwned>(&mut self, path: &str) -> Result<Vec<T>, Error> {
        Ok(self.page(path)?.items)
    }

    /// The same with a field that can be long; without it, where that is too much.
    fn list_with_text<T: DeserializeOwned>(
        &mut self,
        path: &str,
        text: &str,
    ) -> Result<Vec<T>, Error> {
        match self.list(path) {
            Err(error) if error.kind == ErrorKind::TooLarge => self.list(&path.replace(text, "")),
            answer => answer,
        }
    }

    fn page<T: DeserializeOwned>(&mut self, path: &str) -> Result<List<T>, Error> {
        let path = format!("/api/v2{path}");
        let answer = self.ask_as_user(&path, "")?;
        if answer.head.status != 200 {
            return Err(refusal(&path, "", &answer));
        }
        parse_list(&answer.body).map_err(|e| not_json(&path, "", &answer, &e))
    }

    /// JSON-RPC 2.0, as the master wants it. A stop has no result, whatever becomes of it.
    pub fn call(&mut self, path: &str, method: &str, params: &Value) -> Result<Value, Error> {
        let call = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let call = call.to_string();
        let path = format!("/api/v2{path}");
        let answer = self.ask_as_user(&path, &call)?;
        if answer.head.status != 200 {
            return Err(refusal(&path, &call, &answer));
        }
        let parsed = serde_json::from_slice(&answer.body);
        let mut json: Value = parsed.map_err(|e| not_json(&path, &call, &answer, &e))?;
        Ok(json["result"].take())
    }

    /// The version of Buildbot, and the base of links for people.
    pub fn identity(&mut self) -> Result<Identity, Error> {
        let config = self.master_config()?;
        let versions = config["versions"].as_array();
        let mut versions = versions.into_iter().flatten();
        let buildbot = versions.find(|version| version[0] == "Buildbot");
        let version = buildbot.and_then(|version| version[1].as_str());
        let url = config["buildbotURL"].as_str().filter(|url| !url.is_empty());
        let url = url.map_or_else(|| self.config.url.to_string(), str::to_owned);
        Ok(Identity {
            version: sanitize(version.unwrap_or_default()),
            url: sanitize(&url),
            is_cluster: config["multiMaster"] == true,
        })
    }

    /// What the master says of itself and of our session. Before 3.0 it stands in the front page
    /// only.
    fn master_config(&mut self) -> Result<Value, Error> {
        let mut answer = self.exchange("/config", "")?;
        if answer.head.status == 404 {
            answer = self.exchange("/", "")?;
        }
        if answer.head.status != 200 {
            return Err(refusal("/config", "", &answer));
        }
        let text = String::from_utf8_lossy(&answer.body);
        let json = text.split_once("constant(\"config\", ");
        let json = json.map_or(&*text, |(_, json)| json);
        // There is more behind it in that page.
        let mut values = serde_json::Deserializer::from_str(json).into_iter();
        match values.next() {
            Some(Ok(config)) => Ok(config),
            Some(Err(e)) => Err(not_json("/config", "", &answer, &e)),
            None => Ok(Value::Null),
        }
    }

    /// [`Client::exchange`], with a new login if the session has ended. A 403 says the same for
    /// that and for a missing role; `/config` tells them apart.
    fn ask_as_user(&mut self, path: &str, json: &str) -> Result<HttpAnswer, Error> {
        let answer = self.exchange(path, json)?;
        let has_login = self.config.user.is_some() || self.config.proxy_user.is_some();
        let is_order = !json.is_empty();
        if answer.head.status != 403 || !has_login && !is_order {
            return Ok(answer);
        }
        let config = self.master_config()?;
        let user = &config["user"];
        if user["username"].is_string() || user["email"].is_string() {
            return Ok(answer);
        }
        if config["auth"]["oauth2"] == true {
            return Err(Error::wrong(
                "this master knows only a login by browser (OAuth), which a program cannot do; \
                 see doc/coming-from-buildbot.md",
            ));
        }
        if !has_login {
            return Ok(answer);
        }
        self.log_in()?;
        self.exchange(path, json)
    }

    /// Gets the cookie of a session: from `/auth/login`, or where the master takes a proxy's word
    /// for the user (RemoteUserAuth) and knows no login, from the front page.
    fn log_in(&mut self) -> Result<(), Error> {
        if !self.was_login_refused {
            log!(Info, "logging in to the master");
        }
        let mut answer = self.exchange("/auth/login", "")?;
        let takes_proxys_word = answer.head.status == 403;
        if takes_proxys_word {
            answer = self.exchange("/", "")?;
        }
        let expected = if takes_proxys_word { 200 } else { 302 };
        // Two cookies of one name come; the first is an anonymous session.
        let cookies = answer.head.all("set-cookie");
        let sessions = cookies.filter(|cookie| cookie.starts_with("TWISTED_"));
        let session = sessions.last().and_then(|cookie| cookie.split(';').next());
        match session {
            Some(cookie) if answer.head.status == expected => {
                self.cookie = Some(cookie.to_owned());
                self.was_login_refused = false;
                Ok(())
            }
            _ => {
                self.was_login_refused = true;
                let kind = ErrorKind::Refused(answer.head.status);
                Err(Error::new(kind, "user and password are not accepted"))
            }
        }
    }

    /// One request and its whole answer. A GET whose connection was stale, or whose answer broke
    /// off, is asked again on a new one, for some time if somebody waits. A POST is not: it might
    /// be done twice.
    fn exchange(&mut self, path: &str, json: &str) -> Result<HttpAnswer, Error> {
        let give_up = Instant::now() + self.patience;
        let mut pauses = Backoff::new(RETRY_PAUSE.0, RETRY_PAUSE.1);
        for attempt in 0.. {
            let kept = self
                .connection
                .take()
                .filter(|_| attempt == 0 && json.is_empty());
            let is_kept = kept.is_some();
            let connection = match kept {
                Some(connection) => connection,
                None => {
                    let connected = self.connect();
                    connected.map_err(|why| connection_error(path, json, &why))?
                }
            };
            let is_fresh = attempt > 0;
            let failure = match self.attempt(connection, path, json, is_fresh) {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let error = failure.error;
            let is_broken = matches!(
                error,
                HttpError::EndedEarly | HttpError::Timeout | HttpError::Broken
            );
            let worth_another = is_kept || failure.in_body && is_broken;
            let has_time = attempt == 0 || Instant::now() < give_up;
            let is_large = matches!(error, HttpError::TooLarge(_));
            if !json.is_empty() || !worth_another || !has_time || is_large {
                return Err(http_error(path, json, &error));
            }
            log!(Debug, "GET {path}: {error}; asking again");
            if attempt > 0 {
                sleep(pauses.next_wait());
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// Both clocks are read in whole seconds, and a moment apart: a small difference is none.
    fn note_clock(&mut self, master_time: i64) {
        let offset = master_time - clock::unix_now();
        let is_noise = offset.abs() < CLOCK_NOISE;
        self.clock_offset = Some(if is_noise { 0 } else { offset });
    }

    pub fn connect(&self) -> Result<HttpConnection, String> {
        let url = &self.config.url;
        net::connect(&url.host, url.port, self.tls.as_ref()).map(Connection::new)
    }

    /// Asks on this connection, and keeps it if that may be.
    fn attempt(
        &mut self,
        mut connection: HttpConnection,
        path: &str,
        json: &str,
        is_fresh: bool,
    ) -> Result<HttpAnswer, Failure> {
        let is_long = path.contains(&format!("limit={}", LONG_PAGE));
        let life = if is_long || is_fresh {
            "close"
        } else {
            "keep-alive"
        };
        let more = format!("Accept: application/json\r\nConnection: {life}\r\n");
        let head = self
            .send(&mut connection, path, &more, json)
            .map_err(|error| Failure {
                error,
                in_body: false,
            })?;
        let whole = self.limit;
        connection
            .stream
            .set_read_limits(self.stall.min(whole), whole);
        // What becomes a tree of values takes far more memory than its text.
        let is_list = head.status == 200 && json.is_empty() && path.starts_with("/api/");
        let limit = if is_list { LIST } else { OTHER };
        let body = connection.body(limit).map_err(|error| Failure {
            error,
            in_body: true,
        })?;
        log!(Debug, "master << {} {} bytes", head.status, body.len());
        if is_list && is_broken_json(&body) {
            return Err(Failure {
                error: HttpError::Broken,
                in_body: true,
            });
        }
        if let Some(master_time) = head.get("date").and_then(clock::parse_http_date) {
            self.note_clock(master_time);
        }
        let may_keep = life == "keep-alive" && !head.has("connection", "close");
        if may_keep && connection.is_reusable() {
            self.connection = Some(connection);
        }
        Ok(HttpAnswer { head, body })
    }

    /// Sends a request, and reads the head of the answer.
    pub fn send(
        &self,
        connection: &mut HttpConnection,
        path: &str,
        more: &str,
        json: &str,
    ) -> Result<Head, HttpError> {
        log!(Debug, "master >> {} {path}", method(json));
        connection.stream.set_read_limits(self.limit, self.limit);
        let headers = format!("{}{more}", self.headers(path));
        let target = format!("{}{path}", self.config.url.path);
        connection.ask(&target, &headers, json)
    }

    /// Whether a GET of this path is answered with 200.
    pub fn is_ok(&mut self, path: &str) -> Result<bool, Error> {
        let answer = self.exchange(path, "")?;
        Ok(answer.head.status == 200)
    }

    /// Lines that a request bears: who we are, and our login. A request has room for one login:
    /// the proxy's goes with everything but `/auth/login`, which is the master's.
    fn headers(&self, path: &str) -> String {
        let config = &self.config;
        let version = env!("CARGO_PKG_VERSION");
        let host = config.url.authority();
        let mut headers = format!("Host: {host}\r\nUser-Agent: buildbot-irc/{version}\r\n");
        let master = config.user.as_ref().zip(config.password.as_ref());
        let proxy = config
            .proxy_user
            .as_ref()
            .zip(config.proxy_password.as_ref());
        let login = if path == "/auth/login" {
            master.or(proxy)
        } else {
            proxy.or(master)
        };
        if let Some((user, password)) = login {
            let encoded = base64(format!("{user}:{}", password.0).as_bytes());
            headers.push_str(&format!("Authorization: Basic {encoded}\r\n"));
        }
        if let Some(cookie) = &self.cookie {
            headers.push_str(&format!("Cookie: {cookie}\r\n"));
        }
        headers
    }
}

fn is_not_found<T>(answer: &Result<T, Error>) -> bool {
    matches!(answer, Err(error) if error.kind == ErrorKind::Refused(404))
}

fn builds_path(filter: &str, page: Page) -> String {
    let text = if page.without_text {
        ""
    } else {
        "&field=state_string"
    };
    format!("/builds?{BUILD_FIELDS}{text}&{filter}&{}", page.query())
}

/// A filter for items whose field has one of these values.
fn any_of<'a>(field: &str, values: impl IntoIterator<Item = &'a u64>) -> String {
    let filters = values.into_iter().map(|value| format!("{field}={value}"));
    filters.collect::<Vec<_>>().join("&")
}

/// Whether an answer has lost some of its bytes. A busy master writes it in a thread that its HTTP
/// server does not expect (`_write_json_data` in Buildbot's www/rest.py). HTML is another matter.
fn is_broken_json(body: &[u8]) -> bool {
    !body.starts_with(b"<") && serde_json::from_slice::<IgnoredAny>(body).is_err()
}

/// Why one attempt failed.
struct Failure {
    error: HttpError,
    /// The head had come already.
    in_body: bool,
}

/// The error of a request that has no answer; its query is of no interest.
fn unreachable_error(path: &str, json: &str, why: &str) -> Error {
    let place = path.split('?').next().unwrap_or(path);
    let message = format!("{} {place}: {why}", method(json));
    Error::new(ErrorKind::Unreachable, message)
}

fn connection_error(path: &str, json: &str, why: &str) -> Error {
    Error {
        kind: ErrorKind::NoConnection,
        ..unreachable_error(path, json, why)
    }
}

fn http_error(path: &str, json: &str, error: &HttpError) -> Error {
    let mut result = unreachable_error(path, json, &error.to_string());
    if matches!(error, HttpError::TooLarge(_)) {
        result.kind = ErrorKind::TooLarge;
    } else if !json.is_empty() {
        result.kind = ErrorKind::Uncertain;
    } else if matches!(error, HttpError::Timeout) {
        result.kind = ErrorKind::TimedOut;
    }
    result
}

/// An answer that should be JSON and is not.
fn not_json(path: &str, json: &str, answer: &HttpAnswer, error: &serde_json::Error) -> Error {
    let content_type = answer.head.get("content-type").unwrap_or("");
    let is_html = content_type.starts_with("text/html") || answer.body.starts_with(b"<");
    let why = if is_html {
        "there is no Buildbot API here (HTML instead of JSON); is the url right?".to_owned()
    } else {
        format!("the answer is not what it should be: {error}")
    };
    let mut result = unreachable_error(path, json, &why);
    if !json.is_empty() {
        result.kind = ErrorKind::Uncertain;
    }
    result
}

/// The error of an answer that is no event stream; its body is of no interest.
pub fn stream_refusal(path: &str, head: Head) -> Error {
    if head.status == 200 {
        let content_type = sanitize(head.get("content-type").unwrap_or("no type"));
        let why = format!("no event stream, but {content_type}; is the url right?");
        return unreachable_error(path, "", &why);
    }
    let body = Vec::new();
    let error = refusal(path, "", &HttpAnswer { head, body });
    match error.kind {
        ErrorKind::Refused(401 | 407) => error,
        ErrorKind::Refused(_) => Error::new(error.kind, "no event stream"),
        _ => error,
    }
}

/// The error of an answer that is no 200.
fn refusal(path: &str, json: &str, answer: &HttpAnswer) -> Error {
    let status = answer.head.status;
    let mut error = match status {
        300..=399 => {
            let to = answer.head.get("location").unwrap_or("nowhere");
            let why = format!("redirected to {to} ({status}); is the url right?");
            unreachable_error(path, json, &why)
        }
        // Those from 520 on are Cloudflare's.
        502..=504 | 520..=530 => proxys_answer(path, json, status),
        // The master has a reason for what it refuses.
        200..=299 | 408 | 499 | 500.. if !json.is_empty() && !has_reason(&answer.body) => {
            proxys_answer(path, json, status)
        }
        429 if json.is_empty() => {
            let mut error = unreachable_error(path, json, "asked too often (429)");
            error.kind = ErrorKind::Busy;
            error
        }
        401 | 407 if !has_reason(&answer.body) => {
            let why = "a proxy wants a login: is proxy_user, or user, right?";
            Error::new(ErrorKind::Refused(status), why)
        }
        _ => Error::new(ErrorKind::Refused(status), refusal_text(&answer.body)),
    };
    error.retry_after = retry_after(&answer.head);
    error
}

/// It may have been passed on, or not.
fn proxys_answer(path: &str, json: &str, status: u16) -> Error {
    let why = format!("a proxy answers for the master ({status})");
    let mut error = unreachable_error(path, json, &why);
    error.kind = if json.is_empty() {
        ErrorKind::Busy
    } else {
        ErrorKind::Uncertain
    };
    error
}

/// How long we are to be patient: seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(head: &Head) -> Option<Duration> {
    let text = head.get("retry-after")?;
    let until = |date| {
        date - head
            .get("date")
            .and_then(clock::parse_http_date)
            .unwrap_or_else(clock::unix_now)
    };
    let seconds: i64 = match text.parse() {
        Ok(seconds) => seconds,
        Err(_) => until(clock::parse_http_date(text)?),
    };
    let wait = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
    Some(wait.min(RETRY_AFTER))
}

/// Whether the body is the master's own, which says why.
fn has_reason(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|json| !json["error"].is_null())
}

/// What a refusal says: `error` in the body is a text, or an object with a `message`, which may
/// hold the errors of a force scheduler, each by its field.
fn refusal_text(body: &[u8]) -> String {
    let json: Value = serde_json::from_slice(body).unwrap_or_default();
    let error = &json["error"];
    let message = if error.is_string() {
        error
    } else {
        &error["message"]
    };
    let Value::Object(fields) = message else {
        let text = message.as_str();
        return text
            .unwrap_or("no reason given; is the url right?")
            .to_owned();
    };
    let sentences = fields.iter().map(|(field, why)| {
        let why = why.as_str().unwrap_or("wrong");
        if why.contains(field.as_str()) {
            why.to_owned()
        } else {
            format!("{field}: {why}")
        }
    });
    sentences.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    fn answer(status: u16, headers: &[(&str, &str)], body: &str) -> HttpAnswer {
        let owned = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let head = Head {
            status,
            headers: headers.iter().map(owned).collect(),
        };
        HttpAnswer {
            head,
            body: body.as_bytes().to_vec(),
        }
    }

    #[test]
    fn a_proxys_answers_are_named_as_such() {
        let moved = refusal(
            "/api/v2/builders?x",
            "",
            &answer(302, &[("Location", "/login")], ""),
        );
        assert_eq!(moved.kind, ErrorKind::Unreachable);
        let sentence = "GET /api/v2/builders: redirected to /login (302); is the url right?";
        assert_eq!(moved.to_string(), sentence);
        let busy = answer(503, &[("Retry-After", "7")], "<html>");
        let get = refusal("/api/v2/builders", "", &busy);
        assert_eq!(get.kind, ErrorKind::Busy);
        assert_eq!(get.retry_after, Some(Duration::from_secs(7)));
        let sentence = "GET /api/v2/builders: a proxy answers for the master (503)";
        assert_eq!(get.to_string(), sentence);
        let post = refusal("/api/v2/forceschedulers/f", "{}", &answer(504, &[], ""));
        assert_eq!(post.kind, ErrorKind::Uncertain);
        for status in [202, 204, 408, 499, 500, 520, 524] {
            let post = refusal("/api/v2/f", "{}", &answer(status, &[], "<html>"));
            assert_eq!(post.kind, ErrorKind::Uncertain, "{status}");
        }
        let own = answer(500, &[], r#"{"error": {"message": "no"}}"#);
        assert_eq!(refusal("/f", "{}", &own).kind, ErrorKind::Refused(500));
        let login = refusal("/api/v2/builders", "", &answer(401, &[], "<html>"));
        assert!(login.to_string().contains("proxy_user"), "{login}");
        let often = refusal("/api/v2/builders", "", &answer(429, &[], ""));
        assert_eq!(often.kind, ErrorKind::Busy);
        let date = [
            ("Date", "Sun, 06 Nov 1994 08:49:37 GMT"),
            ("Retry-After", "Sun, 06 Nov 1994 08:50:07 GMT"),
        ];
        let until = refusal("/api/v2/builders", "", &answer(503, &date, ""));
        assert_eq!(until.retry_after, Some(Duration::from_secs(30)));
        let html = answer(200, &[("Content-Type", "text/html")], "<html>");
        let error = serde_json::from_slice::<Value>(&html.body).unwrap_err();
        let error = not_json("/api/v2/builders", "", &html, &error).to_string();
        assert!(error.contains("there is no Buildbot API here"), "{error}");
        let patient = answer(429, &[("Retry-After", "99999")], "{}");
        assert_eq!(refusal("/", "", &patient).retry_after, Some(RETRY_AFTER));
    }

    #[test]
    fn refusals_say_what_the_master_says() {
        let said = |body: &str| refusal("/x", "", &answer(400, &[], body)).to_string();
        assert_eq!(
            said(r#"{"error": "invalid limit"}"#),
            "the master refuses: invalid limit (400)"
        );
        assert_eq!(
            said(r#"{"error":{"message":{"level":"not a number","reason":"'reason' needs it"}}}"#),
            "the master refuses: level: not a number; 'reason' needs it (400)"
        );
        assert_eq!(
            said("rubbish"),
            "the master refuses: no reason given; is the url right? (400)"
        );
    }

    #[test]
    fn one_odd_item_costs_itself_only() {
        let page = r#"{"builds": [
            {"buildid": 1, "builderid": 2, "number": 3, "results": null, "started_at": null,
             "complete": null, "state_string": null},
            {"buildid": null},
            {"buildid": 5, "builderid": 2, "number": 4, "results": 2, "started_at": 7.5,
             "complete": true, "complete_at": 9, "state_string": "x"}
        ], "meta": {}}"#;
        let list: List<Build> = parse_list(page.as_bytes()).unwrap();
        assert_eq!(list.length, 3, "as long as the master says");
        let usual = list.items.iter().map(|b| (b.id, b.started_at, b.complete));
        let expected = [(1, 0, false), (5, 7, true)];
        assert_eq!(usual.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_request_has_one_login() {
        let login = |user: &str| format!("Basic {}", base64(format!("{user}:pw").as_bytes()));
        let secret = || Some(crate::config::Secret("pw".into()));
        let mut config = Buildbot {
            user: Some("bot".into()),
            password: secret(),
            ..Buildbot::default()
        };
        let headers = |config: &Buildbot, path| {
            let client = Client::new(config, Duration::ZERO).unwrap();
            client.headers(path)
        };
        for path in ["/api/v2/builds", "/auth/login"] {
            assert!(headers(&config, path).contains(&login("bot")));
        }
        config.proxy_user = Some("proxy".into());
        config.proxy_password = secret();
        assert!(headers(&config, "/api/v2/builds").contains(&login("proxy")));
        assert!(headers(&config, "/auth/login").contains(&login("bot")));
        assert!(!headers(&config, "/auth/login").contains(&login("proxy")));
    }

    #[test]
    fn fuzz_refusal() {
        let seed = br#"{"error":{"message":{"level":"bad"}}}"#;
        fuzz(&[seed], |bytes, _| drop(refusal_text(bytes)));
    }
}
