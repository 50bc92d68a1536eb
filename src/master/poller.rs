//! When to ask the master and what, and what becomes of the answers.
//!
//! One thread applies everything that is learnt, be it by poll, stream or on demand, to the shared
//! status, and hands over what is news. REST is the truth; the stream only makes it early.

use super::api::{BUILDERS, BUILDS, CHANGES, Error, Master, PAGE, Update, WORKERS};
use super::worker::Facts;
use crate::command::{self, Ask};
use crate::log::unix_now;
use crate::status::{Build, Builder, Change, Changes, Known, News, Outcome, Status, Worker};
use crate::text;
use serde_json::Value;
use std::collections::VecDeque;
use std::mem::{replace, take};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Recent builds that the first poll looks at, for the last results of all builders.
const LOOK_BACK: usize = 10 * PAGE;
/// New builds that one poll takes; the next poll goes on from there.
const CATCH_UP: usize = 50 * PAGE;
/// Far above what any master has: one that lists more does not look at `offset`.
const LISTED: usize = 100_000;
/// Workers in an answer that also has the builders of each, which may be thousands.
const LONG_PAGE: usize = 2;
/// Notes that are taken in before what is new is handed over.
const NOTES: usize = 64;
/// With a healthy stream the poll is only a check.
const RELAXED: u32 = 6;
/// The list of builders changes with the configuration only. A master that has no stream is asked for one
/// as rarely.
const RARELY: Duration = Duration::from_secs(600);
/// When a builder is new, its workers become known a moment later.
const SETTLED: Duration = Duration::from_secs(5);
/// A list of builders that was read so lately, as at the start, is not read again for a new stream.
const JUST: Duration = Duration::from_secs(60);
/// The most builds of one batch for whose changes the master is asked, and requests for their end.
const DETAILS: usize = 20;
/// Polls that may fail at the same thing before we do without it.
const TRIES: u32 = 3;
/// The longest that a poll may take, before a supervisor should know.
const STUCK: Duration = Duration::from_secs(900);

/// What other threads bring to the poller.
pub enum Note {
    Update(Update),
    StreamDown,
    /// Facts, and the command that asked for them.
    Learned(Facts, Ask),
}

/// What the poller hands over.
pub enum Heard {
    /// News, and how far the master's builds are known with them.
    News(Vec<News>, Known),
    /// The facts that this command asked for are in the status.
    Learned(Ask),
}

/// Locks the status. Nobody panics while holding it, and nobody holds it across a wait.
pub fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How long to wait after so many failures: a second, doubling up to about a minute.
fn back_off(failures: u32) -> Duration {
    Duration::from_secs(1 << failures.min(6))
}

pub struct Poller {
    master: Master,
    status: Arc<Mutex<Status>>,
    interval: Duration,
    /// To be handed over; and what was known when that was done last.
    news: Vec<News>,
    told: Known,
    /// The event stream, and whether it has said anything since the last poll.
    stream: Option<TcpStream>,
    heard: bool,
    /// Builds that have ended since the last poll.
    ended: usize,
    /// Builds that the stream has told to run, whose changes may be wanted.
    started: VecDeque<u64>,
    listed: Option<Instant>,
    synced: bool,
    failures: u32,
}

impl Poller {
    /// A poller that has not asked anything yet.
    pub fn new(master: Master, interval: Duration, status: Arc<Mutex<Status>>) -> Poller {
        let (news, told, stream, heard, ended) = (Vec::new(), Known::default(), None, false, 0);
        let (started, listed, synced, failures) = (VecDeque::new(), None, false, 0);
        Poller {
            master,
            status,
            interval,
            news,
            told,
            stream,
            heard,
            ended,
            started,
            listed,
            synced,
            failures,
        }
    }

    /// Polls and takes notes until nobody listens to `emit` any more.
    pub fn run(mut self, notes: &Receiver<Note>, emit: &dyn Fn(Heard) -> bool) {
        let mut next = Instant::now();
        loop {
            lock(&self.status).poller_until = Some(next + STUCK);
            // A poll that is due comes soon, however many notes wait; other work only when none does.
            let due = if self.started.is_empty() {
                next
            } else {
                Instant::now()
            };
            let first = match notes.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    self.prepare();
                    None
                }
                first => first.ok(),
            };
            let mut learned = Vec::new();
            for note in first.into_iter().chain(notes.try_iter()).take(NOTES) {
                match note {
                    Note::Update(Update::Subscribed(socket)) => {
                        log!(Info, "event stream: subscribed");
                        // What happened before the subscription stood, and perhaps a new configuration.
                        (self.stream, self.heard, next) = (Some(socket), true, Instant::now());
                        self.listed = self.listed.filter(|at| at.elapsed() < JUST);
                        let seen = self.workers("", PAGE).and_then(|()| self.last_changes());
                        seen.unwrap_or_else(|e| log!(Warning, "{e}"));
                    }
                    Note::Update(Update::Builders) => {
                        (self.listed, next) = (None, next.min(Instant::now() + SETTLED));
                    }
                    Note::StreamDown => {
                        self.stream = None;
                        next = if self.failures > 0 {
                            next
                        } else {
                            Instant::now()
                        };
                        lock(&self.status).changes.clear();
                    }
                    // Before the first poll it is not known what is new; that poll will see all of it.
                    Note::Update(Update::Build(_) | Update::Request(_)) if !self.synced => {}
                    Note::Update(update) => {
                        if let Err(e) = self.update(update) {
                            log!(Warning, "{e}");
                            // The next poll brings what this could not.
                            let soon = Instant::now() + back_off(0);
                            next = if self.failures > 0 {
                                next
                            } else {
                                next.min(soon)
                            };
                        }
                    }
                    Note::Learned(facts, ask) => {
                        self.learn(facts);
                        learned.push(ask);
                    }
                }
            }
            if next <= Instant::now() {
                let wait = self.turn();
                next = Instant::now() + wait;
            }
            if !self.hand_over(emit) || !learned.into_iter().all(|ask| emit(Heard::Learned(ask))) {
                return;
            }
        }
    }

    /// One poll, and how long to wait for the next.
    fn turn(&mut self) -> Duration {
        let polled = self.poll();
        lock(&self.status).trouble = polled.as_ref().err().map(|e| text::clean(&e.to_string()));
        if let Err(e) = polled {
            if self.failures == 0 {
                log!(Warning, "the master does not answer: {e}");
            }
            self.failures += 1;
            // It may come back with another configuration, or another database.
            self.listed = None;
            if let Error::Unreachable(_) = e {
                self.synced = false;
                let _ = self
                    .stream
                    .as_ref()
                    .map(|socket| socket.shutdown(Shutdown::Both));
            }
            return back_off(self.failures - 1).min(self.interval.max(back_off(0)));
        }
        lock(&self.status).reached = Some(unix_now());
        if take(&mut self.failures) > 0 {
            log!(Info, "the master answers again");
        }
        let (heard, missed) = (take(&mut self.heard), take(&mut self.ended));
        let Some(socket) = &self.stream else {
            return self.interval;
        };
        // A connection can die without a word: of what this poll has found, it should have said some.
        if missed > 0 && !heard {
            log!(
                Warning,
                "event stream: it missed {}; starting it anew",
                text::count(missed, "build")
            );
            let _ = socket.shutdown(Shutdown::Both);
        }
        self.interval * RELAXED
    }

    /// Asks for everything that may have changed; what was learnt before an error stays learnt.
    pub fn poll(&mut self) -> Result<(), Error> {
        let list = self.listed.is_none_or(|at| at.elapsed() >= RARELY);
        if list {
            self.list()?;
        }
        if !self.synced {
            self.look_back()?;
        }
        self.new_builds()?;
        self.open_builds()?;
        let queued = self.master.queued("")?;
        lock(&self.status).queued = queued.iter().map(|r| (r.id, r.builderid)).collect();
        self.requests()?;
        if !list && self.stream.is_none() {
            self.workers("", PAGE)?;
        }
        Ok(())
    }

    /// Who the master is, its builders, and its workers with the builders of each.
    fn list(&mut self) -> Result<(), Error> {
        let (version, url) = self.master.identity()?;
        let mut builders: Vec<Builder> = self.master.pages(BUILDERS, PAGE, LISTED)?;
        builders.retain(Builder::is_listed);
        let mut status = lock(&self.status);
        (status.version, status.url) = (version, text::clean(&url));
        status.set_builders(builders);
        drop(status);
        self.workers("&field=configured_on", LONG_PAGE)?;
        if self.stream.is_some() {
            self.last_changes()?;
        }
        self.listed = Some(Instant::now());
        Ok(())
    }

    fn workers(&mut self, more: &str, page: usize) -> Result<(), Error> {
        let workers: Vec<Worker> =
            self.master
                .pages(&format!("{WORKERS}{more}&order=name"), page, LISTED)?;
        let mut status = lock(&self.status);
        status
            .workers
            .retain(|id, _| workers.iter().any(|w| w.id == *id));
        if !more.is_empty() {
            status.workers.values_mut().for_each(|w| w.builders.clear());
        }
        self.news.extend(
            workers
                .into_iter()
                .filter_map(|w| status.apply_worker(w, unix_now())),
        );
        Ok(())
    }

    /// The changes that are asked for most; the stream goes on from there.
    fn last_changes(&mut self) -> Result<(), Error> {
        let changes = self.master.changes(command::CHANGES)?;
        lock(&self.status).changes = changes
            .iter()
            .map(|c| (c.id, text::change_line(c)))
            .collect();
        Ok(())
    }

    /// The recent builds, for the last results of most builders. They are no news, but for the end
    /// of builds that ran when an earlier run left off; what came behind its mark is asked for next.
    fn look_back(&mut self) -> Result<(), Error> {
        // Some may have run for long.
        let mut builds = self.master.builds("complete=false&order=buildid")?;
        let recent: Vec<Build> =
            self.master
                .pages(&format!("{BUILDS}&order=-buildid"), PAGE, LOOK_BACK)?;
        builds.extend(recent.into_iter().rev());
        let newest = builds.last().map_or(0, |b| b.id);
        let mut status = lock(&self.status);
        if status.mark > Some(newest) {
            log!(
                Warning,
                "the master counts its builds anew; forgetting where we were"
            );
            status.start_over();
        }
        let mark = status.mark.unwrap_or(newest);
        drop(status);
        builds.retain(|b| b.id <= mark);
        self.apply(builds)?;
        lock(&self.status).caught_up(mark);
        self.synced = true;
        Ok(())
    }

    /// All builds since the mark, lowest id first. With them comes the one at the mark, if this is still
    /// the same database.
    fn new_builds(&mut self) -> Result<(), Error> {
        let mark = lock(&self.status).mark.unwrap_or(0);
        let query = format!("{BUILDS}&buildid__ge={mark}&order=buildid");
        let builds: Vec<Build> = self.master.pages(&query, PAGE, CATCH_UP)?;
        if mark > 0 && builds.is_empty() {
            return self.look_back();
        }
        let last = builds.last().map_or(mark, |b| b.id);
        self.apply(builds)?;
        lock(&self.status).caught_up(last);
        Ok(())
    }

    /// The builds that ran when we last heard of them; some may be gone.
    fn open_builds(&mut self) -> Result<(), Error> {
        let open: Vec<u64> = lock(&self.status).open.keys().copied().collect();
        for ids in open.chunks(PAGE) {
            let wanted: Vec<String> = ids.iter().map(|id| format!("buildid={id}")).collect();
            let builds = self.master.builds(&wanted.join("&"))?;
            let known: Vec<u64> = builds.iter().map(|b| b.id).collect();
            self.apply(builds)?;
            lock(&self.status)
                .open
                .retain(|id, _| known.contains(id) || !ids.contains(id));
        }
        Ok(())
    }

    /// A master that refuses to tell of one thing must not keep us from the others. An error of its own
    /// may pass: only if it stays is it taken for a refusal.
    fn unless_refused<T>(&self, answer: Result<T, Error>) -> Result<Option<T>, Error> {
        match answer {
            Err(e @ Error::Refused(status, _)) if status < 500 || self.failures >= TRIES => {
                log!(Warning, "{e}");
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    /// Applies builds in the order of their ids; asks for what their news need.
    fn apply(&mut self, builds: Vec<Build>) -> Result<(), Error> {
        let mut outdated = false;
        for build in builds {
            let (id, ended) = (build.builderid, build.complete);
            let status = lock(&self.status);
            let mut known = status.builders.contains_key(&id);
            let fresh = status.mark.is_some_and(|mark| build.id > mark)
                || status.open.contains_key(&build.id);
            let watched = status
                .watches
                .iter()
                .any(|w| build.buildrequestid == Some(w.request));
            drop(status);
            self.ended += usize::from(fresh && ended);
            // Not over and over: builders that are gone have left builds, too.
            let wanted = fresh || watched;
            if wanted && !known && self.listed.is_none_or(|at| at.elapsed() >= SETTLED) {
                self.list()?;
                known = lock(&self.status).builders.contains_key(&id);
            }
            // One that was renamed or removed meanwhile still ends what it has begun.
            if wanted && !known {
                let found = self.master.list::<Builder>(&format!("/builders/{id}"));
                for builder in self.unless_refused(found)?.into_iter().flatten() {
                    outdated |= ended || builder.is_listed();
                    lock(&self.status).builders.insert(id, builder);
                }
            }
            if fresh && lock(&self.status).needs_past(&build) {
                let recent = self.master.recent(id);
                let recent = self.unless_refused(recent)?;
                let facts = |builds| Facts {
                    builds,
                    asked: vec![id],
                    ..Facts::default()
                };
                self.learn(recent.map(facts).unwrap_or_default());
            }
            self.news
                .extend(lock(&self.status).apply(build, unix_now()));
        }
        self.listed = self.listed.filter(|_| !outdated);
        Ok(())
    }

    /// Takes in what the stream has told.
    fn update(&mut self, update: Update) -> Result<(), Error> {
        self.heard = true;
        lock(&self.status).reached = Some(unix_now());
        match update {
            Update::Subscribed(_) | Update::Builders => {}
            // More at once than any master has are for the poll, which takes them in pages.
            Update::Build(_) if lock(&self.status).is_full() => {}
            Update::Build(build) => {
                let id = build.id;
                let known = lock(&self.status).open.contains_key(&id);
                self.apply(vec![build])?;
                if !known && self.started.len() < PAGE && lock(&self.status).wants_changes(id) {
                    self.started.push_back(id);
                }
            }
            // One that is new is listed, with its builders, by the next poll.
            Update::Worker(w) if !lock(&self.status).workers.contains_key(&w.id) => {
                self.listed = None
            }
            Update::Worker(w) => self
                .news
                .extend(lock(&self.status).apply_worker(w, unix_now())),
            Update::Change(change) => {
                let changes = &mut lock(&self.status).changes;
                changes.insert(change.id, text::change_line(&change));
                if changes.len() > PAGE {
                    changes.pop_first();
                }
            }
            Update::Request(r) if r.complete => {
                lock(&self.status).queued.remove(&r.id);
                self.requests()?;
            }
            Update::Request(r) if r.claimed => drop(lock(&self.status).queued.remove(&r.id)),
            Update::Request(_) if lock(&self.status).queued.len() >= CATCH_UP => {}
            Update::Request(r) => drop(lock(&self.status).queued.insert(r.id, r.builderid)),
        }
        Ok(())
    }

    /// Watched requests that may have ended without a build: merged with another, or cancelled.
    fn requests(&mut self) -> Result<(), Error> {
        let unclear = lock(&self.status).unclear_requests();
        for id in unclear.into_iter().take(DETAILS) {
            match self.master.request(id) {
                // The next poll asks again.
                Err(e @ Error::Refused(..)) => log!(Warning, "{e}"),
                Err(e) => return Err(e),
                Ok((None, None)) => lock(&self.status).watches.retain(|w| w.request != id),
                Ok((Some(r), build))
                    if r.complete
                        && build
                            .as_ref()
                            .is_none_or(|b| b.outcome() == Some(Outcome::Retry)) =>
                {
                    let results = usize::try_from(r.results).ok();
                    self.news
                        .extend(lock(&self.status).lapse(id, r.builderid, results));
                }
                Ok((_, Some(build))) => self.apply(vec![build])?,
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// Puts what was asked for into the status.
    pub fn learn(&mut self, facts: Facts) {
        let mut status = lock(&self.status);
        self.news.extend(
            facts
                .builds
                .into_iter()
                .rev()
                .filter_map(|b| status.apply(b, unix_now())),
        );
        for id in facts.asked {
            status.builders.entry(id).and_modify(|b| b.asked = true);
        }
        for (id, step) in facts.steps {
            status.open.entry(id).and_modify(|b| b.step = Some(step));
        }
    }

    /// Hands over what is new, if anything is.
    fn hand_over(&mut self, emit: &dyn Fn(Heard) -> bool) -> bool {
        let mut news = take(&mut self.news);
        for one in news.iter_mut().filter(|n| n.build.complete).take(DETAILS) {
            if let Err(e) = self.details(one) {
                log!(Warning, "{e}");
                // Better without than late.
                if let Error::Unreachable(_) = e {
                    break;
                }
            }
        }
        let known = lock(&self.status).known();
        let before = replace(&mut self.told, known.clone());
        (news.is_empty() && before == known) || emit(Heard::News(news, known))
    }

    /// Authors and revisions, where a target wants to hear them and they are not known yet.
    fn details(&mut self, news: &mut News) -> Result<(), Error> {
        let bad = news
            .build
            .outcome()
            .is_some_and(|outcome| !outcome.is_good());
        let status = lock(&self.status);
        let hearers = || {
            status
                .targets
                .iter()
                .filter(|t| news.targets.contains(&t.name))
                .map(|t| &t.settings)
        };
        let (revisions, blame) = (
            hearers().any(|s| s.revisions),
            bad && hearers().any(|s| s.blame),
        );
        drop(status);
        let build = &mut news.build;
        if build.changes.is_none() && (revisions || blame) {
            build.changes = Some(self.changes(build.id)?);
        }
        if let Some(Changes {
            revisions: known, ..
        }) = build
            .changes
            .as_mut()
            .filter(|c| revisions && c.revisions.is_empty())
        {
            // A build without changes knows what it has checked out.
            let query = format!(
                "/builds/{}?property=got_revision&property=revision",
                build.id
            );
            let builds: Vec<Value> = self.master.list(&query)?;
            let properties = builds
                .first()
                .map_or(&Value::Null, |build| &build["properties"]);
            let values =
                ["got_revision", "revision"].map(|name| properties[name][0].as_str().unwrap_or(""));
            known.extend(
                values
                    .into_iter()
                    .find(|value| !value.is_empty())
                    .map(str::to_owned),
            );
        }
        Ok(())
    }

    fn changes(&mut self, build: u64) -> Result<Changes, Error> {
        let (mut changes, list) = (
            Changes::default(),
            format!("/builds/{build}{CHANGES}&limit=50"),
        );
        for Change {
            author, revision, ..
        } in self.master.list::<Change>(&list)?
        {
            let author = text::author(&author);
            if !author.is_empty() && !changes.authors.contains(&author) {
                changes.authors.push(author);
            }
            changes.revisions.extend(revision.filter(|r| !r.is_empty()));
        }
        Ok(changes)
    }

    /// Asks for the changes of a build that runs, so that its end can be told at once.
    fn prepare(&mut self) {
        let Some(build) = self
            .started
            .pop_front()
            .filter(|&id| lock(&self.status).wants_changes(id))
        else {
            return;
        };
        match self.changes(build) {
            Ok(changes) => drop(
                lock(&self.status)
                    .open
                    .entry(build)
                    .and_modify(|b| b.changes = Some(changes)),
            ),
            Err(e) => log!(Debug, "{e}"),
        }
    }
}

/// Holds the event stream open and passes on what it carries, until the poller is gone.
pub fn listen(mut master: Master, notes: &SyncSender<Note>) {
    let mut failures = 0;
    loop {
        let mut stood = None;
        let ended = master.listen(&mut |update| {
            if let Update::Subscribed(_) = update {
                stood = Some(Instant::now());
            }
            notes.send(Note::Update(update)).is_ok()
        });
        if stood.is_some() && notes.send(Note::StreamDown).is_err() {
            return;
        }
        // One that ends at once, again and again, is no better than none.
        failures = if stood.is_some_and(|at| at.elapsed() > SETTLED) {
            0
        } else {
            failures + 1
        };
        if failures < 2
            && let Err(e) = &ended
        {
            log!(Info, "event stream: {e}");
        }
        let none = matches!(ended, Err(Error::Refused(..499, _)));
        std::thread::sleep(if none { RARELY } else { back_off(failures) });
    }
}
