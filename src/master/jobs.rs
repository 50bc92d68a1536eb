//! What must be asked of the master at the moment of a command, and what is nice to have in a
//! line. [`run`] does one job and knows nothing of threads; the job threads and `-x` call it.

use super::client::{Client, Error, ErrorKind};
use super::details::{BuildsetInfo, Details, Wanted};
use super::diagnosis::{Diagnosis, Question, bad_steps, diagnose};
use super::force::{Order, fill_form};
use super::resources::{Build, Change, SourceStamp, Worker};
use super::sync::Lookup;
use crate::encoding::percent_encode;
use crate::outcome::Outcome;
use crate::sanitize::sanitize;
use serde_json::{Value, json};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a forced build may take to start before the answer is "queued".
const START: Duration = Duration::from_secs(4);
const START_POLL: Duration = Duration::from_millis(200);
/// Codebases of a buildset whose changes are looked at.
const SOURCES: usize = 10;
/// Changes of a build that are looked at.
const CHANGES: usize = 50;

/// What a command wants to know or done.
#[derive(Clone, Debug, PartialEq)]
pub enum Job {
    /// The last builds of these builders, and the steps that these running builds are in.
    Lookup {
        builders: Vec<u64>,
        steps: Vec<u64>,
    },
    /// The newest changes, so many of them.
    Changes(usize),
    Force(Order),
    Stop(StopOrder),
    /// Why a build went wrong.
    Why(Question),
    /// What a request was made together with: its buildset, which may be known.
    Buildset {
        request: u64,
        known: Option<Box<BuildsetInfo>>,
    },
    /// What is nice to have in the line of a build.
    Details {
        build: u64,
        request: Option<u64>,
        wanted: Wanted,
    },
}

impl Job {
    /// Whether it changes something at the master.
    pub fn is_order(&self) -> bool {
        matches!(self, Job::Force(_) | Job::Stop(_))
    }
}

/// Stop what runs, or take back what is queued if nothing runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StopOrder {
    pub builder_id: u64,
    pub builder: String,
    pub reason: String,
    /// Take back these requests only, and stop nothing.
    pub only: Option<Vec<u64>>,
}

/// What came of a job.
#[derive(Clone, Debug)]
pub enum JobResult {
    Lookup(Lookup),
    Changes(Vec<Change>),
    Forced(Forced),
    Stopped {
        builder: String,
        stopped: Stopped,
    },
    Why(Box<Diagnosis>),
    Buildset {
        request: u64,
        answer: BuildsetAnswer,
    },
    Details {
        build: u64,
        details: Details,
    },
}

#[derive(Clone, Debug)]
pub enum BuildsetAnswer {
    Known(Box<BuildsetInfo>),
    /// The master knows it no more.
    Gone,
    /// It may tell later.
    Failed,
}

/// What became of a forced build within a moment.
#[derive(Clone, Debug)]
pub struct Forced {
    pub builder: String,
    /// Named where the builder has several.
    pub scheduler: Option<String>,
    /// The request whose end the asker wants to hear of.
    pub request: u64,
    pub state: ForcedState,
}

#[derive(Clone, Debug)]
pub enum ForcedState {
    Started(Build),
    Queued(QueueReason),
    /// Merged into another request, where that is known.
    Merged(Option<u64>),
    Cancelled,
    /// It is on its way, but the master said this when it was asked how it does.
    Unknown(String),
}

/// Why a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueReason {
    NoWorker,
    Paused,
    /// Behind so many other requests.
    Behind(usize),
    Busy,
    /// A worker is free, and yet nothing starts.
    Lock,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The numbers of the builds that are being stopped.
    Builds(Vec<u64>),
    /// So many queued requests were taken back.
    Requests(usize),
    /// The same, and nothing else was to be touched.
    OwnRequests(usize),
}

/// Does a job.
pub fn run(job: &Job, client: &mut Client) -> Result<JobResult, Error> {
    match job {
        Job::Lookup { builders, steps } => look_up(builders, steps, client).map(JobResult::Lookup),
        Job::Changes(count) => client.newest_changes(*count).map(JobResult::Changes),
        Job::Force(order) => force(order, client).map(JobResult::Forced),
        Job::Stop(order) => Ok(JobResult::Stopped {
            builder: order.builder.clone(),
            stopped: stop(order, client)?,
        }),
        Job::Why(question) => {
            let diagnosis = diagnose(question, client)?;
            Ok(JobResult::Why(Box::new(diagnosis)))
        }
        Job::Buildset { request, known } => {
            let answer = match buildset(*request, known.as_deref(), client) {
                Ok(Some(info)) => BuildsetAnswer::Known(Box::new(info)),
                Ok(None) => BuildsetAnswer::Gone,
                Err(error) => {
                    log!(Debug, "{error}");
                    BuildsetAnswer::Failed
                }
            };
            let request = *request;
            Ok(JobResult::Buildset { request, answer })
        }
        Job::Details {
            build,
            request,
            wanted,
        } => Ok(JobResult::Details {
            build: *build,
            details: details(*build, *request, *wanted, client),
        }),
    }
}

fn look_up(builders: &[u64], steps: &[u64], client: &mut Client) -> Result<Lookup, Error> {
    let mut lookup = Lookup {
        builders: builders.to_vec(),
        ..Lookup::default()
    };
    for &builder in builders {
        lookup.builds.extend(client.last_builds(builder)?);
    }
    for &build in steps {
        let filter = "complete=false&order=number&limit=1";
        let fields = "field=name&field=number&field=complete";
        let path = format!("/builds/{build}/steps?{fields}&{filter}");
        let steps: Vec<Value> = client.list(&path)?;
        if let Some(name) = steps.first().and_then(|step| step["name"].as_str()) {
            lookup.steps.push((build, name.to_owned()));
        }
    }
    Ok(lookup)
}

fn stop(order: &StopOrder, client: &mut Client) -> Result<Stopped, Error> {
    let reason = json!({ "reason": order.reason });
    if order.only.is_none() {
        let builds = client.running_builds(order.builder_id)?;
        for build in &builds {
            client.call(&format!("/builds/{}", build.id), "stop", &reason)?;
        }
        if !builds.is_empty() {
            let numbers = builds.iter().map(|build| build.number);
            return Ok(Stopped::Builds(numbers.collect()));
        }
    }
    let mut queued = client.queued_requests(order.builder_id)?;
    if let Some(only) = &order.only {
        queued.retain(|request| only.contains(&request.id));
    }
    for request in &queued {
        client.call(&format!("/buildrequests/{}", request.id), "cancel", &reason)?;
    }
    Ok(match order.only {
        Some(_) => Stopped::OwnRequests(queued.len()),
        None => Stopped::Requests(queued.len()),
    })
}

/// Forces a build and waits a moment for its number.
fn force(order: &Order, client: &mut Client) -> Result<Forced, Error> {
    let builder = &order.builder;
    // The master builds a builder that its scheduler does not list; we do not.
    let path = format!("/builders/{}/forceschedulers", order.builder_id);
    let mut schedulers: Vec<Value> = client.list(&path)?;
    schedulers.retain(|scheduler| scheduler["enabled"] != false);
    let (scheduler, is_one_of_several) = choose_scheduler(order, &schedulers)?;
    let name = scheduler["name"].as_str().unwrap_or_default();
    let form = fill_form(order, &scheduler["all_fields"]).map_err(Error::wrong)?;
    let path = format!("/forceschedulers/{}", percent_encode(name));
    let result = client.call(&path, "force", &form).map_err(|error| {
        let said = error.to_string();
        match error.kind {
            ErrorKind::Uncertain => Error::new(
                ErrorKind::Uncertain,
                format!("{builder} may have started, but nobody confirms it: {said}"),
            ),
            _ => error,
        }
    })?;
    let requests = result[1].as_object();
    let Some(request) = requests.and_then(|requests| requests.values().next()?.as_u64()) else {
        return Err(Error::wrong("the master has started nothing"));
    };
    let state = match wait_for_start(order.builder_id, request, client) {
        Ok(state) => state,
        // Whatever goes wrong now, the build is on its way, and its end will be told.
        Err(error) => ForcedState::Unknown(error.to_string()),
    };
    Ok(Forced {
        builder: builder.clone(),
        scheduler: is_one_of_several.then(|| name.to_owned()),
        request,
        state,
    })
}

/// The scheduler to use, and whether the builder has several.
fn choose_scheduler<'a>(
    order: &Order,
    schedulers: &'a [Value],
) -> Result<(&'a Value, bool), Error> {
    let builder = &order.builder;
    let mut names: Vec<&str> = schedulers
        .iter()
        .filter_map(|s| s["name"].as_str())
        .collect();
    names.sort_unstable();
    let list = names.join(", ");
    match (&order.scheduler, schedulers) {
        (_, []) => Err(Error::wrong(format!(
            "{builder} cannot be forced: no force scheduler of the master lists it"
        ))),
        (Some(wanted), _) => {
            let found = schedulers
                .iter()
                .find(|scheduler| scheduler["name"] == **wanted);
            let missing =
                || Error::wrong(format!("no such scheduler for {builder}; it has {list}"));
            Ok((found.ok_or_else(missing)?, schedulers.len() > 1))
        }
        (None, [only]) => Ok((only, false)),
        (None, _) => Err(Error::wrong(format!(
            "{builder} has several force schedulers; say which: --scheduler=NAME, one of {list}"
        ))),
    }
}

/// What has become of a request a moment later.
fn wait_for_start(builder: u64, request: u64, client: &mut Client) -> Result<ForcedState, Error> {
    let end = Instant::now() + START;
    while Instant::now() < end {
        let fate = client.request(request)?;
        if let Some(build) = fate.build {
            return Ok(ForcedState::Started(build));
        }
        if let Some(asked) = fate.request.filter(|request| request.complete) {
            return Ok(match asked.outcome() {
                Some(Outcome::Cancelled) => ForcedState::Cancelled,
                _ => ForcedState::Merged(fate.merged_into),
            });
        }
        sleep(START_POLL);
    }
    queue_reason(builder, request, client).map(ForcedState::Queued)
}

fn queue_reason(builder: u64, request: u64, client: &mut Client) -> Result<QueueReason, Error> {
    let fields = "field=workerid&field=name&field=connected_to&field=paused";
    let path = format!("/builders/{builder}/workers?{fields}&limit=100");
    let mut workers: Vec<Worker> = client.list(&path)?;
    workers.retain(|worker| worker.online);
    if workers.is_empty() {
        return Ok(QueueReason::NoWorker);
    }
    workers.retain(|worker| !worker.paused);
    if workers.is_empty() {
        return Ok(QueueReason::Paused);
    }
    let queued = client.queued_requests(builder)?;
    let ahead = queued.iter().filter(|queued| queued.id < request).count();
    if ahead > 0 {
        return Ok(QueueReason::Behind(ahead));
    }
    let fields = "field=buildid&field=workerid&field=complete";
    let path = format!("/builds?{fields}&complete=false&limit=100");
    let running: Vec<Value> = client.list(&path)?;
    let is_idle = |worker: &Worker| running.iter().all(|build| build["workerid"] != worker.id);
    if workers.iter().any(is_idle) {
        return Ok(QueueReason::Lock);
    }
    Ok(QueueReason::Busy)
}

/// A buildset. Of one that is known, only how its requests stand now is asked for.
fn buildset(
    request: u64,
    known: Option<&BuildsetInfo>,
    client: &mut Client,
) -> Result<Option<BuildsetInfo>, Error> {
    if let Some(known) = known {
        let mut info = known.clone();
        info.requests = client.requests_of(info.id)?;
        return Ok(Some(info));
    }
    let Some(id) = client.buildset_of(request)? else {
        return Ok(None);
    };
    let Some(buildset) = client.buildset(id)? else {
        return Ok(None);
    };
    let mut changes: Vec<Change> = Vec::new();
    for source in buildset.sources.iter().take(SOURCES) {
        match client.changes_of_source(source.id) {
            Err(error) if matches!(error.kind, ErrorKind::Refused(_) | ErrorKind::TooLarge) => {
                log!(Debug, "{error}");
            }
            found => changes.extend(found?),
        }
    }
    changes.truncate(CHANGES);
    changes.iter_mut().for_each(Change::shorten);
    let mut sources = buildset.sources;
    sources.truncate(SOURCES);
    sources.iter_mut().for_each(SourceStamp::shorten);
    Ok(Some(BuildsetInfo {
        id,
        reason: sanitize(&buildset.reason),
        sources,
        changes,
        requests: client.requests_of(id)?,
    }))
}

/// What is nice to have. What the master does not tell stays unknown.
fn details(build: u64, request: Option<u64>, wanted: Wanted, client: &mut Client) -> Details {
    let mut details = Details::default();
    let note = |result: Result<(), Error>| {
        if let Err(error) = result {
            log!(Debug, "{error}");
        }
    };
    if wanted.steps {
        note(add_steps(build, &mut details, client));
    }
    if let Some(request) = request.filter(|_| wanted.buildset) {
        note(add_buildset(request, &mut details, client));
    }
    if wanted.authors || wanted.revisions {
        note(add_changes(build, wanted, &mut details, client));
    }
    details
}

fn add_steps(build: u64, details: &mut Details, client: &mut Client) -> Result<(), Error> {
    let steps = bad_steps(build, client)?;
    details.steps = steps.into_iter().map(|step| step.name).collect();
    details.known.steps = true;
    Ok(())
}

fn add_buildset(request: u64, details: &mut Details, client: &mut Client) -> Result<(), Error> {
    details.buildset = client.buildset_of(request)?;
    details.known.buildset = true;
    Ok(())
}

/// Authors and revisions of a build's changes. One without changes knows what it has checked out.
fn add_changes(
    build: u64,
    wanted: Wanted,
    details: &mut Details,
    client: &mut Client,
) -> Result<(), Error> {
    let mut changes = client.changes_of(build, CHANGES + 1)?;
    details.is_partial = changes.len() > CHANGES;
    changes.truncate(CHANGES);
    for change in changes {
        if !change.author.is_empty() && !details.authors.contains(&change.author) {
            details.authors.push(change.author);
        }
        let revision = change.revision.filter(|revision| !revision.is_empty());
        details.revisions.extend(revision);
    }
    details.known.authors = true;
    if wanted.revisions && details.revisions.is_empty() {
        let path = format!("/builds/{build}?property=got_revision&property=revision");
        let builds: Vec<Value> = client.list(&path)?;
        if let Some(build) = builds.first() {
            details.revisions = checked_out(&build["properties"]);
        }
        details.known.revisions = true;
    }
    // Asked for while the build ran, changes may have told it already.
    details.known.revisions |= !details.revisions.is_empty();
    Ok(())
}

/// What a build has checked out: a revision, or with several codebases a dictionary of them.
fn checked_out(properties: &Value) -> Vec<String> {
    for name in ["got_revision", "revision"] {
        let value = &properties[name][0];
        let revisions: Vec<String> = match value {
            Value::String(revision) => vec![revision.clone()],
            Value::Object(codebases) => {
                let revisions = codebases.values().filter_map(Value::as_str);
                revisions.map(str::to_owned).collect()
            }
            _ => Vec::new(),
        };
        let named: Vec<String> = revisions.into_iter().filter(|r| !r.is_empty()).collect();
        if !named.is_empty() {
            return named;
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revisions_of_several_codebases_are_named() {
        let revisions = |properties: Value| checked_out(&properties);
        let one = json!({ "got_revision": ["abc", "Git"], "revision": ["old", "Build"] });
        assert_eq!(revisions(one), ["abc"]);
        let several = json!({ "got_revision": [{ "app": "a1", "lib": "b2", "x": "" }, "Git"] });
        assert_eq!(revisions(several), ["a1", "b2"]);
        let given = json!({ "got_revision": ["", "Git"], "revision": ["r12", "Build"] });
        assert_eq!(revisions(given), ["r12"]);
        assert_eq!(revisions(json!({})), [""; 0]);
        assert_eq!(revisions(json!({ "revision": [null, "Build"] })), [""; 0]);
    }

    #[test]
    fn of_several_schedulers_one_must_be_named() {
        let schedulers = [json!({ "name": "force" }), json!({ "name": "deploy" })];
        let mut order = Order {
            builder: "app".into(),
            ..Order::default()
        };
        let why = |order: &Order, schedulers: &[Value]| {
            choose_scheduler(order, schedulers).unwrap_err().to_string()
        };
        let none = "app cannot be forced: no force scheduler of the master lists it";
        assert_eq!(why(&order, &[]), none);
        let which =
            "app has several force schedulers; say which: --scheduler=NAME, one of deploy, force";
        assert_eq!(why(&order, &schedulers), which);
        assert!(!choose_scheduler(&order, &schedulers[..1]).unwrap().1);
        order.scheduler = Some("deploy".into());
        let (chosen, is_one_of_several) = choose_scheduler(&order, &schedulers).unwrap();
        assert!(chosen["name"] == "deploy" && is_one_of_several);
        order.scheduler = Some("gone".into());
        let missing = "no such scheduler for app; it has deploy, force";
        assert_eq!(why(&order, &schedulers), missing);
    }
}
