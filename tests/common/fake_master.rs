//! A fake master: its builders and builds, and its REST API as far as the bot uses it.

use super::{Answer, FakeHttp, Request, SUCCESS};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// When builds end that were given no time, in seconds since the epoch: those of the first database, and so much later
/// those of another one.
const COMPLETE_AT: i64 = 1_795_361_893;
const NEXT_DATABASE: i64 = 3600;

/// Builders `b1` …, and the builds of the list. Clones share them.
#[derive(Clone, Default)]
pub struct FakeMaster {
    builders: usize,
    builds: Arc<Mutex<Vec<Value>>>,
    /// How many of the last builders are no longer configured.
    removed: Arc<AtomicUsize>,
    complete_at: Arc<AtomicI64>,
}

impl FakeMaster {
    pub fn new(builders: usize) -> FakeMaster {
        FakeMaster {
            builders,
            complete_at: Arc::new(AtomicI64::new(COMPLETE_AT)),
            ..FakeMaster::default()
        }
    }

    /// Adds a build of the next builder in turn, and returns it.
    pub fn build(&self, complete: bool) -> Value {
        let mut builds = self.builds.lock().unwrap();
        let builder = builds.len() % self.builders + 1;
        let complete_at = self.complete_at.load(Ordering::SeqCst);
        let end = complete.then_some((SUCCESS, complete_at));
        add(&mut builds, builder, complete_at - 3, end)
    }

    /// Adds builds that ended together at this time (seconds since the epoch), each given by its builder and its result.
    /// No poll sees only some of them.
    pub fn end(&self, ends: impl IntoIterator<Item = (usize, i64)>, at: i64) {
        let mut builds = self.builds.lock().unwrap();
        for (builder, result) in ends {
            add(&mut builds, builder, at - 3, Some((result, at)));
        }
    }

    /// A running build ends with success.
    pub fn finish(&self, id: usize) {
        let build = &mut self.builds.lock().unwrap()[id - 1];
        build["complete"] = json!(true);
        build["complete_at"] = json!(self.complete_at.load(Ordering::SeqCst));
        build["results"] = json!(SUCCESS);
    }

    /// A new database, without builds.
    pub fn start_over(&self) {
        self.builds.lock().unwrap().clear();
        self.complete_at.fetch_add(NEXT_DATABASE, Ordering::SeqCst);
    }

    /// Takes the last builders, this many, out of the configuration.
    pub fn remove(&self, builders: usize) {
        self.removed.store(builders, Ordering::SeqCst);
    }

    /// Serves it without an event stream.
    pub fn serve(&self) -> FakeHttp {
        let master = self.clone();
        FakeHttp::start(move |request| master.answer(request))
    }

    /// Serves it with an event stream that never says anything.
    pub fn serve_with_silent_stream(&self) -> FakeHttp {
        let master = self.clone();
        FakeHttp::start(move |request| master.answer_with_stream(request, b""))
    }

    /// The REST API, and an event stream with these bytes.
    pub fn answer_with_stream(&self, request: &Request, bytes: &[u8]) -> Answer {
        if request.path.starts_with("/sse/listen/") {
            Answer::stream(bytes)
        } else if request.path.starts_with("/sse/add/") {
            Answer::Json("ok".into())
        } else {
            self.answer(request)
        }
    }

    /// The REST API; no event stream.
    pub fn answer(&self, request: &Request) -> Answer {
        let builder_id = |path: &str| -> Option<usize> {
            let id = path.strip_prefix("/api/v2/builders/")?;
            id.parse().ok()
        };
        match request.resource() {
            "/config" => Answer::json(
                json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"}),
            ),
            "/api/v2/builders" => {
                let builders = (1..=self.builders).map(|id| self.builder(id));
                request.page("builders", builders)
            }
            "/api/v2/builds" => request.page("builds", self.builds_for(request)),
            "/api/v2/workers" => request.page(
                "workers",
                [json!({"workerid": 1, "name": "w1", "connected_to": [{"masterid": 1}]})],
            ),
            path => match builder_id(path) {
                Some(id) => request.page("builders", [self.builder(id)]),
                None if path.starts_with("/api/v2/") => {
                    request.page(path.rsplit('/').next().unwrap(), [])
                }
                None => Answer::status("404 Not Found", ""),
            },
        }
    }

    fn builder(&self, id: usize) -> Value {
        let configured = self.builders - self.removed.load(Ordering::SeqCst);
        let masters: &[u8] = if id > configured { &[] } else { &[1] };
        json!({"builderid": id, "name": format!("b{id}"), "tags": [], "masterids": masters})
    }

    /// The builds that the filters of a request leave, in the order that it wants.
    fn builds_for(&self, request: &Request) -> Vec<Value> {
        let ids = request.numbers("buildid");
        let first = request.number("buildid__ge").unwrap_or(0);
        let mut builds = self.builds.lock().unwrap().clone();
        builds.retain(|build| {
            let id = build["buildid"].as_u64().unwrap() as usize;
            id >= first && (ids.is_empty() || ids.contains(&id))
        });
        if request.path.contains("order=-buildid") {
            builds.reverse();
        }
        builds
    }
}

/// Adds a build that runs, or has ended with this result at this time.
fn add(builds: &mut Vec<Value>, builder: usize, started_at: i64, end: Option<(i64, i64)>) -> Value {
    let id = builds.len() + 1;
    let result = end.map(|(result, _)| result);
    let complete_at = end.map(|(_, at)| at);
    let state = match result {
        None | Some(SUCCESS) => "build successful",
        _ => "failed 'make' (failure)",
    };
    let build = json!({
        "buildid": id, "builderid": builder, "number": id, "buildrequestid": id,
        "started_at": started_at,
        "complete": end.is_some(), "complete_at": complete_at,
        "results": result, "state_string": state,
        "properties": {"branch": ["main", "Build"]}
    });
    builds.push(build.clone());
    build
}
