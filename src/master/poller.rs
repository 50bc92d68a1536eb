//! When to ask the master and what, and what becomes of the answers.
//!
//! One thread applies everything that is learnt, be it by poll, stream or on demand, to the shared
//! status, and hands over what is news. REST is the truth; the stream only makes it early.

use super::api::{Error, Master, PAGE, Update};
use super::worker::Facts;
use crate::command::Ask;
use crate::config::Buildbot;
use crate::log::unix_now;
use crate::status::{Build, Kind, News, Status};
use crate::text;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Pages of recent builds that the first poll looks at, for the last results of all builders.
const LOOK_BACK: usize = 10;
/// The most pages it goes back to reach the builds that were told before a restart.
const LOOK_BACK_MOST: usize = 50;
/// Pages of new builds that one poll takes; the next poll goes on from there.
const PAGES: usize = 20;
/// With a healthy stream the poll is only a check.
const RELAXED: u32 = 6;
/// The list of builders changes with the configuration only, and the stream says nothing of it.
const LIST: Duration = Duration::from_secs(600);
/// The most builds of one batch for whose changes the master is asked.
const DETAILS: usize = 20;
/// While the master is away it is asked again after one second, doubling up to this.
const AWAY: Duration = Duration::from_secs(60);
/// A master without an event stream is asked for one so often.
const NO_STREAM: Duration = Duration::from_secs(600);
/// The longest that a poll may take, before a supervisor should know.
const STUCK: Duration = Duration::from_secs(900);

/// What other threads bring to the poller.
pub enum Note {
    /// The event stream stands; the socket is for ending it.
    StreamUp(Option<TcpStream>),
    StreamDown,
    Update(Update),
    /// Facts, and the command that asked for them.
    Learned(Facts, Ask),
}

/// What the poller hands over.
pub enum Heard {
    /// News, and how far the master's builds are known now: every build up to `mark`, less `open`.
    News { news: Vec<News>, mark: Option<u64>, open: Vec<u64> },
    /// The facts that this command asked for are in the status.
    Learned(Ask),
}

/// Locks the status. Nobody panics while holding it, and nobody holds it across a wait.
pub fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Poller {
    master: Master,
    status: Arc<Mutex<Status>>,
    interval: Duration,
    stream: Option<TcpStream>,
    /// Builds that the stream should have told since the last poll; none until it has stood for a poll.
    untold: Option<BTreeSet<u64>>,
    listed: Option<Instant>,
    synced: bool,
    failures: u32,
    /// The mark and the open builds that were handed over last.
    told: (Option<u64>, Vec<u64>),
}

impl Poller {
    /// A poller that has not asked anything yet. The errors are the TLS files'.
    pub fn new(config: &Buildbot, status: Arc<Mutex<Status>>) -> Result<Poller, String> {
        let (master, interval) = (Master::new(config)?, config.poll_interval);
        let (stream, untold, listed, told) = (None, None, None, (None, Vec::new()));
        Ok(Poller { master, status, interval, stream, untold, listed, synced: false, failures: 0, told })
    }

    /// Polls and takes notes until nobody listens to `emit` any more.
    pub fn run(mut self, notes: &Receiver<Note>, emit: &dyn Fn(Heard) -> bool) {
        let mut next = Instant::now();
        loop {
            lock(&self.status).poller_until = Some(next + STUCK);
            let wait = next.saturating_duration_since(Instant::now());
            // A poll that is due comes first, however many notes wait.
            let note = if wait.is_zero() { Err(RecvTimeoutError::Timeout) } else { notes.recv_timeout(wait) };
            let (mut news, mut learned) = (Vec::new(), None);
            match note {
                Ok(Note::StreamUp(socket)) => {
                    log!(Info, "event stream: subscribed");
                    // What happened before the subscription stood, and perhaps a new configuration.
                    (self.stream, self.untold, self.listed, next) = (socket, None, None, Instant::now());
                }
                Ok(Note::StreamDown) => (self.stream, next) = (None, Instant::now()),
                Ok(Note::Update(update)) => self.update(update, &mut news),
                Ok(Note::Learned(facts, ask)) => (news, learned) = (self.learn(facts), Some(ask)),
                Err(RecvTimeoutError::Timeout) => next = self.turn(&mut news),
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if !self.hand_over(news, emit) || learned.is_some_and(|ask| !emit(Heard::Learned(ask))) {
                return;
            }
        }
    }

    /// One poll, and when the next is due.
    fn turn(&mut self, news: &mut Vec<News>) -> Instant {
        let polled = self.poll(news);
        let trouble = polled.as_ref().err().map(|e| text::clean(&e.to_string()));
        lock(&self.status).trouble = trouble;
        if let Err(e) = polled {
            if self.failures == 0 {
                log!(Warning, "the master does not answer: {e}");
            }
            let doubled = Duration::from_secs(1 << self.failures.min(6)).min(AWAY);
            self.failures += 1;
            return Instant::now() + doubled.min(self.interval.max(Duration::from_secs(1)));
        }
        lock(&self.status).reached = Some(unix_now());
        if self.failures > 0 {
            log!(Info, "the master answers again");
        }
        self.failures = 0;
        self.check_stream(news);
        Instant::now() + self.interval * if self.stream.is_some() { RELAXED } else { 1 }
    }

    /// A connection can die without a word. What a poll found and the stream has not told by the
    /// next poll, it will never tell.
    fn check_stream(&mut self, news: &[News]) {
        let Some(socket) = &self.stream else { return };
        let missed = self.untold.as_ref().map_or(0, BTreeSet::len);
        if missed > 0 {
            log!(Warning, "event stream: it missed {}; starting it anew", text::count(missed, "build"));
            let _ = socket.shutdown(Shutdown::Both);
        }
        let finished = news.iter().filter(|n| n.kind == Kind::Finished && self.untold.is_some());
        self.untold = Some(finished.map(|n| n.build.id).collect());
    }

    /// Asks for everything that may have changed; what was learnt before an error stays learnt.
    pub fn poll(&mut self, news: &mut Vec<News>) -> Result<(), Error> {
        let list = self.listed.is_none_or(|at| at.elapsed() >= LIST);
        if list {
            self.list(news)?;
        }
        let mut seen = Vec::new();
        for _ in 0..PAGES {
            let mark = lock(&self.status).mark.unwrap_or(0);
            let newer = format!("buildid__gt={mark}&order=buildid");
            let builds = if self.synced { self.master.builds(&newer)? } else { self.history()? };
            let more = self.synced && builds.len() == PAGE;
            let last = builds.last().map_or(mark, |b| b.id);
            seen.extend(builds.iter().map(|b| b.id));
            self.apply(builds, news)?;
            lock(&self.status).caught_up(last);
            self.synced = true;
            if !more {
                break;
            }
        }
        let open: Vec<u64> = lock(&self.status).open.keys().copied().filter(|id| !seen.contains(id)).collect();
        for ids in open.chunks(PAGE) {
            let wanted: Vec<String> = ids.iter().map(|id| format!("buildid={id}")).collect();
            let builds = self.master.builds(&wanted.join("&"))?;
            let known: Vec<u64> = builds.iter().map(|b| b.id).collect();
            self.apply(builds, news)?;
            lock(&self.status).open.retain(|id, _| known.contains(id) || !ids.contains(id));
        }
        let queued = self.master.queued(None)?;
        lock(&self.status).queued = queued.iter().map(|r| (r.id, r.builderid)).collect();
        self.requests(news)?;
        if !list && self.stream.is_none() {
            self.workers(false, news)?;
        }
        Ok(())
    }

    /// Who the master is, its builders, and its workers with the builders of each.
    fn list(&mut self, news: &mut Vec<News>) -> Result<(), Error> {
        let (version, url) = self.master.identity()?;
        let builders = self.master.builders()?;
        let mut status = lock(&self.status);
        (status.version, status.url) = (version, text::clean(&url));
        status.set_builders(builders);
        drop(status);
        self.workers(true, news)?;
        self.listed = Some(Instant::now());
        Ok(())
    }

    fn workers(&mut self, whole: bool, news: &mut Vec<News>) -> Result<(), Error> {
        let workers = self.master.workers(whole)?;
        let mut status = lock(&self.status);
        status.workers.retain(|id, _| workers.iter().any(|w| w.id == *id));
        news.extend(workers.into_iter().filter_map(|w| status.apply_worker(w.id, w.worker, unix_now())));
        Ok(())
    }

    /// The recent builds, lowest id first: enough for the last results of most builders, and all
    /// since the mark of an earlier run, if that is not too far back.
    fn history(&mut self) -> Result<Vec<Build>, Error> {
        let mark = lock(&self.status).mark.unwrap_or(u64::MAX);
        let mut builds: Vec<Build> = Vec::new();
        for page in 1..=LOOK_BACK_MOST {
            let found = self.master.builds(&format!("order=-buildid&offset={}", (page - 1) * PAGE))?;
            let full = found.len() == PAGE;
            builds.extend(found);
            let gap = builds.last().map_or(0, |b| b.id.saturating_sub(mark));
            if !full || (gap == 0 && page >= LOOK_BACK) {
                break;
            }
            if page == LOOK_BACK_MOST && gap > 1 {
                log!(Warning, "{} builds ended too long ago to be told", gap - 1);
            }
        }
        // New builds push old ones from page to page: the same one may come twice.
        builds.sort_by_key(|b| b.id);
        builds.dedup_by_key(|b| b.id);
        let newest = builds.last().map_or(0, |b| b.id);
        if mark != u64::MAX && newest < mark {
            log!(Warning, "the master counts its builds anew; forgetting where we were");
            let mut status = lock(&self.status);
            (status.mark, status.open) = (Some(newest), BTreeMap::new());
            status.watches.clear();
        }
        Ok(builds)
    }

    /// Applies builds in the order of their ids; asks for what their news need.
    fn apply(&mut self, builds: Vec<Build>, news: &mut Vec<News>) -> Result<(), Error> {
        for build in builds {
            let status = lock(&self.status);
            let (known, past) = (status.builder_by_id(build.builderid).is_some(), status.needs_past(&build));
            let fresh = status.mark.is_some_and(|mark| build.id > mark) || status.open.contains_key(&build.id);
            drop(status);
            if !known && self.listed.is_none_or(|at| at.elapsed() >= Duration::from_secs(5)) {
                self.list(news)?;
            }
            if past && fresh {
                // A master that refuses to tell of one builder must not keep us from the others.
                let builds = self.master.recent(build.builderid).or_else(Error::unless_away)?;
                news.extend(self.learn(Facts { builds, asked: vec![build.builderid], ..Facts::default() }));
            }
            news.extend(lock(&self.status).apply(build, unix_now()));
        }
        Ok(())
    }

    fn update(&mut self, update: Update, news: &mut Vec<News>) {
        // Before the first poll it is not known what is new; that poll will see all of it.
        if !self.synced {
            return;
        }
        match update {
            Update::Build(build) => {
                if let Some(untold) = self.untold.as_mut().filter(|_| build.complete) {
                    untold.remove(&build.id);
                }
                // The next poll brings what this one could not.
                self.apply(vec![build], news).unwrap_or_else(|e| log!(Warning, "{e}"));
            }
            Update::Worker(w) => news.extend(lock(&self.status).apply_worker(w.id, w.worker, unix_now())),
            Update::Request(r) => {
                match r.claimed || r.complete {
                    true => lock(&self.status).queued.remove(&r.id),
                    false => lock(&self.status).queued.insert(r.id, r.builderid),
                };
                if r.complete {
                    self.requests(news).unwrap_or_else(|e| log!(Warning, "{e}"));
                }
            }
        }
        lock(&self.status).reached = Some(unix_now());
    }

    /// Watched requests that may have ended without a build: merged with another, or cancelled.
    fn requests(&mut self, news: &mut Vec<News>) -> Result<(), Error> {
        let unclear = lock(&self.status).unclear_requests();
        for id in unclear.into_iter().take(DETAILS) {
            match self.master.request(id).or_else(Error::unless_away)? {
                (None, None) => lock(&self.status).watches.retain(|w| !w.request || w.id != id),
                (_, Some(build)) => {
                    let ended = Some(build.clone()).filter(|b| b.complete);
                    self.apply(vec![build], news)?;
                    news.extend(ended.and_then(|b| lock(&self.status).ended(&b, unix_now())));
                }
                (Some(r), None) if r.complete => news.extend(lock(&self.status).lapse(id, r.builderid, r.results())),
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts what was asked for into the status.
    pub fn learn(&mut self, mut facts: Facts) -> Vec<News> {
        facts.builds.sort_by_key(|b| b.id);
        let mut status = lock(&self.status);
        let news = facts.builds.into_iter().filter_map(|b| status.apply(b, unix_now())).collect();
        for id in facts.asked {
            status.builder_mut(id).into_iter().for_each(|b| b.asked = true);
        }
        for (id, step) in facts.steps {
            status.open.entry(id).and_modify(|b| b.step = Some(step));
        }
        news
    }

    /// Hands over what is new, if anything is.
    fn hand_over(&mut self, mut news: Vec<News>, emit: &dyn Fn(Heard) -> bool) -> bool {
        for one in news.iter_mut().filter(|n| n.kind == Kind::Finished).take(DETAILS) {
            self.details(one).unwrap_or_else(|e| log!(Warning, "{e}"));
        }
        let status = lock(&self.status);
        let (mark, open) = (status.mark, status.open.keys().copied().collect());
        drop(status);
        let before = std::mem::replace(&mut self.told, (mark, open));
        let (mark, open) = self.told.clone();
        (news.is_empty() && before == self.told) || emit(Heard::News { news, mark, open })
    }

    /// Authors and revisions, where a target wants to hear them.
    fn details(&mut self, news: &mut News) -> Result<(), Error> {
        let status = lock(&self.status);
        let hearers = status.targets.iter().filter(|t| news.targets.contains(&t.name));
        let bad = news.build.outcome().is_some_and(|o| !o.is_good());
        let blame = bad && hearers.clone().any(|t| t.settings.blame);
        let revisions = hearers.clone().any(|t| t.settings.revisions);
        drop(status);
        if !blame && !revisions {
            return Ok(());
        }
        for change in self.master.changes_of(news.build.id)? {
            let author = text::author(&change.author);
            if !author.is_empty() && !news.blame.contains(&author) {
                news.blame.push(author);
            }
            news.revisions.extend(change.revision.filter(|r| !r.is_empty()));
        }
        if revisions && news.revisions.is_empty() {
            news.revisions = self.master.revisions(news.build.id)?;
        }
        Ok(())
    }
}

/// Holds the event stream open and passes on what it carries, until the poller is gone.
pub fn listen(config: &Buildbot, notes: &SyncSender<Note>) -> Result<(), String> {
    let mut master = Master::new(config)?;
    let mut wait = Duration::from_secs(1);
    loop {
        let mut stood = false;
        let mut subscribed = |socket: std::io::Result<TcpStream>| {
            stood = true;
            // Without a poller the next send says so.
            let _ = notes.send(Note::StreamUp(socket.ok()));
        };
        let ended = master.listen(&mut subscribed, &mut |update| notes.send(Note::Update(update)).is_ok());
        if stood {
            wait = Duration::from_secs(1);
        }
        let told = ended.as_ref().err().filter(|_| wait == Duration::from_secs(1));
        told.iter().for_each(|e| log!(Info, "event stream: {e}"));
        if stood && notes.send(Note::StreamDown).is_err() {
            return Ok(());
        }
        std::thread::sleep(if matches!(ended, Err(Error::Refused(..499, _))) { NO_STREAM } else { wait });
        wait = (wait * 2).min(AWAY);
    }
}
