//! When to ask the master and what, and what becomes of the answers.
//!
//! One thread applies everything that is learnt, be it by poll, stream or on demand, to the shared
//! status, and hands over what is news. REST is the truth; the stream only makes it early.

use super::api::{Error, Master, PAGE, Update};
use super::worker::Facts;
use crate::config::Buildbot;
use crate::log::unix_now;
use crate::status::{Build, Kind, News, Status};
use crate::text;
use std::collections::BTreeSet;
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

/// What other threads bring to the poller.
pub enum Note {
    /// The event stream stands; the socket is for ending it.
    StreamUp(Option<TcpStream>),
    StreamDown,
    Update(Update),
    /// Facts that a command asked for, and the ticket of that command.
    Learned(Facts, u64),
}

/// What the poller hands over.
pub enum Heard {
    /// News, and how far the master's builds are known now: every build up to `mark`, less `open`.
    News { news: Vec<News>, mark: u64, open: Vec<u64> },
    /// The facts for this ticket are in the status.
    Learned(u64),
}

/// Locks the status. Nobody panics while holding it, and nobody holds it across a wait.
pub fn lock(status: &Mutex<Status>) -> MutexGuard<'_, Status> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The poller's own state.
pub struct Poller {
    master: Master,
    status: Arc<Mutex<Status>>,
    interval: Duration,
    /// The event stream's socket, while there is one.
    stream: Option<TcpStream>,
    /// Whether it stood before the last poll, and what it should have told since.
    stood: bool,
    untold: BTreeSet<u64>,
    listed: Option<Instant>,
    synced: bool,
    failures: u32,
    told: (u64, Vec<u64>),
}

impl Poller {
    /// A poller that has not asked anything yet.
    ///
    /// # Errors
    /// The TLS files'.
    pub fn new(config: &Buildbot, status: Arc<Mutex<Status>>) -> Result<Poller, String> {
        Ok(Poller {
            master: Master::new(config)?,
            status,
            interval: config.poll_interval,
            stream: None,
            stood: false,
            untold: BTreeSet::new(),
            listed: None,
            synced: false,
            failures: 0,
            told: (0, Vec::new()),
        })
    }

    /// Polls and takes notes until nobody listens to `emit` any more.
    pub fn run(mut self, notes: &Receiver<Note>, emit: &dyn Fn(Heard) -> bool) {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                let (news, wait) = self.turn();
                next = Instant::now() + wait;
                if !self.hand_over(news, emit) {
                    return;
                }
            }
            let note = match notes.recv_timeout(next.saturating_duration_since(Instant::now())) {
                Ok(note) => note,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let (news, ticket) = match note {
                Note::StreamUp(socket) => {
                    log!(Info, "event stream: subscribed");
                    (self.stream, self.stood) = (socket, false);
                    self.untold.clear();
                    // What happened before the subscription stood, and perhaps a new configuration.
                    (self.listed, next) = (None, Instant::now());
                    continue;
                }
                Note::StreamDown => {
                    self.stream = None;
                    next = Instant::now();
                    continue;
                }
                Note::Update(update) => (self.update(update), None),
                Note::Learned(facts, ticket) => (self.learn(facts), Some(ticket)),
            };
            if !self.hand_over(news, emit) || ticket.is_some_and(|t| !emit(Heard::Learned(t))) {
                return;
            }
        }
    }

    /// One poll, and how long to wait until the next.
    fn turn(&mut self) -> (Vec<News>, Duration) {
        let mut news = Vec::new();
        match self.poll(&mut news) {
            Ok(()) => {
                if self.failures > 0 {
                    log!(Info, "the master answers again");
                }
                self.failures = 0;
                self.reached(None);
                self.check_stream(&news);
                (news, self.interval * if self.stream.is_some() { RELAXED } else { 1 })
            }
            Err(e) => {
                if self.failures == 0 {
                    log!(Warning, "the master does not answer: {e}");
                }
                self.failures += 1;
                self.reached(Some(text::clean(&e.to_string())));
                let doubled = Duration::from_secs(1 << self.failures.min(6).saturating_sub(1));
                (news, doubled.min(AWAY).min(self.interval.max(Duration::from_secs(1))))
            }
        }
    }

    /// A connection can die without a word. What a poll found and the stream has not told by the
    /// next poll, it will never tell.
    fn check_stream(&mut self, news: &[News]) {
        let Some(socket) = &self.stream else { return };
        if !self.untold.is_empty() {
            log!(Warning, "event stream: it missed {}; starting it anew", text::count(self.untold.len(), "build"));
            let _ = socket.shutdown(Shutdown::Both);
        }
        let finished = news.iter().filter(|n| n.kind == Kind::Finished && self.stood);
        self.untold = finished.map(|n| n.build.id).collect();
        self.stood = true;
    }

    fn reached(&self, trouble: Option<String>) {
        let mut status = lock(&self.status);
        if trouble.is_none() {
            status.reached = Some(unix_now());
        }
        status.trouble = trouble;
    }

    /// Asks for everything that may have changed; what was learnt before an error stays learnt.
    pub fn poll(&mut self, news: &mut Vec<News>) -> Result<(), Error> {
        let list = self.listed.is_none_or(|at| at.elapsed() >= LIST);
        if list {
            self.list(news)?;
        }
        let mut seen = Vec::new();
        if self.synced {
            for _ in 0..PAGES {
                let mark = lock(&self.status).mark.unwrap_or(0);
                let page = self.master.builds_since(mark)?;
                let (full, last) = (page.len() == PAGE, page.last().map_or(mark, |b| b.id));
                seen.extend(page.iter().map(|b| b.id));
                self.apply(page, news)?;
                lock(&self.status).caught_up(last);
                if !full {
                    break;
                }
            }
        } else {
            let builds = self.history()?;
            seen.extend(builds.iter().map(|b| b.id));
            let last = builds.last().map_or(0, |b| b.id);
            self.apply(builds, news)?;
            lock(&self.status).caught_up(last);
            self.synced = true;
        }
        let open: Vec<u64> = lock(&self.status).open.keys().copied().filter(|id| !seen.contains(id)).collect();
        for ids in open.chunks(PAGE) {
            let builds = self.master.builds(ids)?;
            let gone: Vec<u64> = ids.iter().copied().filter(|id| builds.iter().all(|b| b.id != *id)).collect();
            self.apply(builds, news)?;
            lock(&self.status).open.retain(|id, _| !gone.contains(id));
        }
        let queued = self.master.queued()?;
        lock(&self.status).queued = queued.iter().map(|r| (r.id, r.builderid)).collect();
        if !list && self.stream.is_none() {
            self.workers(false, news)?;
        }
        Ok(())
    }

    /// Who the master is, its builders, and its workers with the builders of each.
    fn list(&mut self, news: &mut Vec<News>) -> Result<(), Error> {
        let identity = self.master.identity()?;
        let builders = self.master.builders()?;
        let builders = builders.into_iter().map(|b| (b.id, b.name, b.tags)).collect();
        {
            let mut status = lock(&self.status);
            status.version = identity.version().to_owned();
            status.url = text::clean(&identity.url);
            status.set_builders(builders);
        }
        self.workers(true, news)?;
        self.listed = Some(Instant::now());
        Ok(())
    }

    fn workers(&mut self, whole: bool, news: &mut Vec<News>) -> Result<(), Error> {
        let workers = self.master.workers(whole)?;
        let mut status = lock(&self.status);
        status.workers.retain(|id, _| workers.iter().any(|w| w.id == *id));
        for listed in workers {
            let (id, worker) = listed.worker();
            news.extend(status.apply_worker(id, worker, false, unix_now()));
        }
        Ok(())
    }

    /// The recent builds, lowest id first: enough for the last results of most builders, and all
    /// since the mark of an earlier run, if that is not too far back.
    fn history(&mut self) -> Result<Vec<Build>, Error> {
        let mark = lock(&self.status).mark;
        let mut builds: Vec<Build> = Vec::new();
        for page in 0..LOOK_BACK_MOST {
            let more = self.master.builds_back(page)?;
            let full = more.len() == PAGE;
            builds.extend(more);
            let reached = mark.is_none_or(|m| builds.last().is_none_or(|b| b.id <= m));
            if !full || (reached && page + 1 >= LOOK_BACK) {
                break;
            }
        }
        if let (Some(mark), Some(oldest)) = (mark, builds.last())
            && oldest.id > mark + 1
            && builds.len() >= PAGE * LOOK_BACK_MOST
        {
            log!(Warning, "{} builds ended too long ago to be told", oldest.id - mark - 1);
        }
        // New builds push old ones from page to page: the same one may come twice.
        builds.sort_by_key(|b| b.id);
        builds.dedup_by_key(|b| b.id);
        Ok(builds)
    }

    /// Applies builds in the order of their ids; asks for what their news need.
    fn apply(&mut self, builds: Vec<Build>, news: &mut Vec<News>) -> Result<(), Error> {
        for build in builds {
            let (known, past) = {
                let status = lock(&self.status);
                (status.builder_by_id(build.builderid).is_some(), status.needs_past(&build))
            };
            if !known && self.listed.is_none_or(|at| at.elapsed() >= Duration::from_secs(5)) {
                self.list(news)?;
            }
            if past && self.synced {
                let mut recent = self.master.recent(build.builderid)?;
                recent.sort_by_key(|b| b.id);
                let mut status = lock(&self.status);
                news.extend(recent.into_iter().filter_map(|b| status.apply(b, unix_now())));
                status.builder_mut(build.builderid).into_iter().for_each(|b| b.asked = true);
            }
            news.extend(lock(&self.status).apply(build, unix_now()));
        }
        Ok(())
    }

    fn update(&mut self, update: Update) -> Vec<News> {
        let mut news = Vec::new();
        // Before the first poll it is not known what is new; that poll will see all of it.
        if !self.synced {
            return news;
        }
        let result = match update {
            Update::Build(build) => {
                if build.complete {
                    self.untold.remove(&build.id);
                }
                self.apply(vec![build], &mut news)
            }
            Update::Worker(listed, missing) => {
                let (id, worker) = listed.worker();
                news.extend(lock(&self.status).apply_worker(id, worker, missing, unix_now()));
                Ok(())
            }
            Update::Request(request) => {
                let queued = &mut lock(&self.status).queued;
                match request.claimed || request.complete {
                    true => queued.remove(&request.id),
                    false => queued.insert(request.id, request.builderid),
                };
                Ok(())
            }
        };
        // The next poll brings what this one could not.
        result.unwrap_or_else(|e| log!(Warning, "{e}"));
        lock(&self.status).reached = Some(unix_now());
        news
    }

    /// Puts what a command asked for into the status.
    pub fn learn(&mut self, facts: Facts) -> Vec<News> {
        let mut builds = facts.builds;
        builds.sort_by_key(|b| b.id);
        let mut status = lock(&self.status);
        let news = builds.into_iter().filter_map(|b| status.apply(b, unix_now())).collect();
        for id in facts.asked {
            status.builder_mut(id).into_iter().for_each(|b| b.asked = true);
        }
        for (id, step) in facts.steps {
            status.open.get_mut(&id).into_iter().for_each(|b| b.step = Some(step.clone()));
        }
        news
    }

    /// Hands over what is new, if anything is.
    fn hand_over(&mut self, mut news: Vec<News>, emit: &dyn Fn(Heard) -> bool) -> bool {
        for one in news.iter_mut().filter(|n| n.kind == Kind::Finished).take(DETAILS) {
            self.details(one).unwrap_or_else(|e| log!(Warning, "{e}"));
        }
        let (mark, open) = {
            let status = lock(&self.status);
            (status.mark.unwrap_or(0), status.open.keys().copied().collect::<Vec<_>>())
        };
        if news.is_empty() && self.told == (mark, open.clone()) {
            return true;
        }
        self.told = (mark, open.clone());
        emit(Heard::News { news, mark, open })
    }

    /// Authors and revisions, where a target wants to hear them.
    fn details(&mut self, news: &mut News) -> Result<(), Error> {
        let bad = news.build.outcome().is_some_and(|o| !o.is_good());
        let (blame, revisions) = {
            let status = lock(&self.status);
            let mut wanted = status.targets.iter().filter(|t| news.targets.contains(&t.name));
            let looks: Vec<_> = wanted.by_ref().map(|t| (bad && t.settings.blame, t.settings.revisions)).collect();
            (looks.iter().any(|l| l.0), looks.iter().any(|l| l.1))
        };
        if !blame && !revisions {
            return Ok(());
        }
        for change in self.master.changes_of(news.build.id)? {
            let (author, revision) = (text::author(&change.author), change.revision);
            if !author.is_empty() && !news.blame.contains(&author) {
                news.blame.push(author);
            }
            news.revisions.extend(revision.filter(|r| !r.is_empty()));
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
        let why = ended.err();
        if stood || wait == Duration::from_secs(1) {
            why.iter().for_each(|e| log!(Info, "event stream: {e}"));
        }
        if stood {
            wait = Duration::from_secs(1);
            if notes.send(Note::StreamDown).is_err() {
                return Ok(());
            }
        }
        let refused = matches!(why, Some(Error::Refused(..)));
        std::thread::sleep(if refused { NO_STREAM } else { wait });
        wait = (wait * 2).min(AWAY);
    }
}
