//! What a fake master knows, and its REST API as far as the bot uses it.

use super::{Answer, FakeHttp, Request};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Builders `b1` …, and the builds of the list.
#[derive(Clone, Default)]
pub struct World {
    builders: usize,
    builds: Arc<Mutex<Vec<Value>>>,
    /// The last builders, so many, are no longer in the configuration.
    removed: Arc<AtomicUsize>,
}

impl World {
    pub fn new(builders: usize) -> World {
        World {
            builders,
            ..World::default()
        }
    }

    /// Builds are numbered in one row, one a builder.
    pub fn build(&self, complete: bool) -> Value {
        let mut builds = self.builds.lock().unwrap();
        let builder = builds.len() % self.builders + 1;
        add(&mut builds, builder, complete.then_some((0, 1_795_361_893)))
    }

    /// Builds of these builders that ended together: each its builder and its result, all of them at this time
    /// (seconds since the epoch). No poll sees only some of them.
    pub fn end(&self, ends: impl IntoIterator<Item = (usize, i64)>, at: i64) {
        let mut builds = self.builds.lock().unwrap();
        ends.into_iter()
            .for_each(|(builder, result)| drop(add(&mut builds, builder, Some((result, at)))));
    }

    /// A build that runs ends well.
    pub fn finish(&self, id: usize) {
        let build = &mut self.builds.lock().unwrap()[id - 1];
        (build["complete"], build["complete_at"], build["results"]) =
            (true.into(), 1_795_361_893.into(), 0.into());
    }

    /// Another database: no build was ever.
    pub fn start_over(&self) {
        self.builds.lock().unwrap().clear();
    }

    /// Takes so many builders out of the configuration.
    pub fn remove(&self, builders: usize) {
        self.removed.store(builders, Ordering::SeqCst);
    }

    /// A server of its own.
    pub fn serve(&self) -> FakeHttp {
        let world = self.clone();
        FakeHttp::start(move |request| world.answer(request))
    }

    /// The REST API; no event stream.
    pub fn answer(&self, request: &Request) -> Answer {
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let all = |key: &str| -> Vec<usize> {
            let values = query
                .split('&')
                .filter_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
            values.filter_map(|value| value.parse().ok()).collect()
        };
        let one = |key: &str, usual: usize| all(key).first().copied().unwrap_or(usual);
        let page = |items: Vec<Value>, name: &str| {
            let items: Vec<_> = items
                .into_iter()
                .skip(one("offset", 0))
                .take(one("limit", 1000))
                .collect();
            Answer::Json(json!({ name: items }).to_string())
        };
        let stay = self.builders - self.removed.load(Ordering::SeqCst);
        let builder = |id: usize| {
            let masters: &[u8] = if id > stay { &[] } else { &[1] };
            json!({"builderid": id, "name": format!("b{id}"), "tags": [], "masterids": masters})
        };
        match path {
            "/config" => Answer::Json(
                json!({"versions": [["Buildbot", "4.3.0"]], "buildbotURL": "http://m/"})
                    .to_string(),
            ),
            "/api/v2/builders" => page((1..=self.builders).map(builder).collect(), "builders"),
            "/api/v2/builds" => {
                let (ids, mark) = (all("buildid"), one("buildid__ge", 0));
                let mut found = self.builds.lock().unwrap().clone();
                let id = |build: &Value| build["buildid"].as_u64().unwrap() as usize;
                found.retain(|build| {
                    id(build) >= mark && (ids.is_empty() || ids.contains(&id(build)))
                });
                if query.contains("order=-buildid") {
                    found.reverse();
                }
                page(found, "builds")
            }
            "/api/v2/workers" => page(
                vec![json!({"workerid": 1, "name": "w1", "connected_to": [{"masterid": 1}]})],
                "workers",
            ),
            _ if let Some(Ok(id)) = path.strip_prefix("/api/v2/builders/").map(str::parse) => {
                page(vec![builder(id)], "builders")
            }
            _ if path.starts_with("/api/v2/") => page(Vec::new(), path.rsplit('/').next().unwrap()),
            _ => Answer::Status("404 Not Found", String::new(), String::new()),
        }
    }
}

fn add(builds: &mut Vec<Value>, builder: usize, end: Option<(i64, i64)>) -> Value {
    let (id, at) = (builds.len() + 1, end.map(|end| end.1));
    builds.push(json!({
        "buildid": id, "builderid": builder, "number": id, "buildrequestid": id,
        "started_at": at.unwrap_or(1_795_361_893) - 3, "complete": end.is_some(), "complete_at": at,
        "results": end.map(|end| end.0), "state_string": "build successful"
    }));
    builds[id - 1].clone()
}
