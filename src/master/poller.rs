//! The poller thread: has asked what `sync` finds due, applies what answers, the stream and look-ups
//! bring, and hands over what has happened. It is the only one that writes into the model, and holds
//! its lock never across I/O or a send. It does no I/O itself: two askers do, so that neither the
//! stream nor a build's look-up waits for a list that is slow in coming.

use super::client::{Answer, Client, Error, Query};
use super::events::{StreamEvent, Update};
use super::model::{BuildCursor, MasterEvent, Model};
use super::sync::{Lookup, Sync};
use crate::clock::unix_now;
use std::collections::BTreeSet;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Inputs that are taken in before what has happened is handed over.
const INPUTS_AT_ONCE: usize = 64;
/// What the stream has told while a list was awaited; beyond it the next poll must do.
const STREAM_EVENTS: usize = 10_000;
/// The longest that builds of one answer wait for each other's look-ups.
const TOGETHER: Duration = Duration::from_secs(1);
/// The longest that a poll may take, before a supervisor should know.
const STUCK: Duration = Duration::from_secs(900);

/// What a command waits for.
pub type Ticket = u64;

/// What other threads bring to the poller.
pub enum PollerInput {
    Stream(StreamEvent),
    /// What a command wanted to know.
    Lookup(Lookup, Ticket),
    Answered(Answered),
}

/// What a query of the poller's has come to.
pub struct Answered {
    query: Query,
    answer: Result<Answer, Error>,
    /// The master's clock less ours, in seconds, if the master has told it.
    clock_offset: Option<i64>,
}

/// Asks one query after the other and brings the answers to the poller, until nobody wants them.
pub fn run_asker(mut client: Client, queries: &Receiver<Query>, emit: &dyn Fn(Answered) -> bool) {
    for query in queries {
        let answer = client.ask(&query);
        let clock_offset = client.clock_offset;
        let is_wanted = emit(Answered {
            query,
            answer,
            clock_offset,
        });
        if !is_wanted {
            return;
        }
    }
}

/// A way to one asker, which answers one query at a time.
pub struct Asker {
    queries: SyncSender<Query>,
    /// What it was asked, and has not answered yet.
    asked: Option<Query>,
}

impl Asker {
    pub fn new(queries: SyncSender<Query>) -> Asker {
        Asker {
            queries,
            asked: None,
        }
    }

    fn is_busy(&self) -> bool {
        self.asked.is_some()
    }

    fn ask(&mut self, query: Query) {
        // One that is idle has room for a query; one that is gone ends the program elsewhere.
        let is_sent = self.queries.try_send(query.clone()).is_ok();
        self.asked = Some(query).filter(|_| is_sent);
    }
}

/// The askers of a poller that runs.
pub struct Askers {
    /// For the lists of a poll.
    pub lists: Asker,
    /// For what a build's line needs: several, since one builder's may take long.
    pub lookups: Vec<Asker>,
}

impl Askers {
    fn idle_for_lookup(&mut self) -> Option<&mut Asker> {
        self.lookups.iter_mut().find(|asker| !asker.is_busy())
    }
}

/// What the poller hands over.
pub enum PollerEvent {
    /// What has happened, and how far the master's builds are known with it.
    Happened(Vec<MasterEvent>, BuildCursor),
    /// What this command wanted to know is in the model.
    LookupDone(Ticket),
    /// The first poll is through.
    FirstPoll,
}

/// When a build has started or ended, by the master's clock, which counts whole seconds; what is no
/// build comes first.
fn happened_at(event: &MasterEvent) -> (i64, u64) {
    match event {
        MasterEvent::Build(event) => {
            let build = &event.build;
            (build.complete_at.unwrap_or(build.started_at), build.id)
        }
        _ => (i64::MIN, 0),
    }
}

/// The requests whose end somebody waits for. The main thread sets them, the poller looks.
#[derive(Clone, Default)]
pub struct TrackedRequests(Arc<Mutex<BTreeSet<u64>>>);

impl TrackedRequests {
    pub fn set(&self, requests: BTreeSet<u64>) {
        *lock(&self.0) = requests;
    }

    fn get(&self) -> BTreeSet<u64> {
        lock(&self.0).clone()
    }
}

/// Locks a value. Nobody panics while holding it, and nobody holds it across a wait.
pub fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

pub struct Poller {
    model: Arc<Mutex<Model>>,
    tracked: TrackedRequests,
    sync: Sync,
    stream: Option<TcpStream>,
    /// What the stream has told while a list was awaited, but for builds: a list that is older
    /// could undo it.
    held_back: Vec<StreamEvent>,
    /// To be handed over.
    events: Vec<MasterEvent>,
    /// As it was handed over last.
    cursor: BuildCursor,
    /// Builds that came together are handed over together, until then.
    held_until: Option<Instant>,
    lookups_done: Vec<Ticket>,
    first_poll_told: bool,
}

impl Poller {
    /// A poller that has not asked anything yet.
    pub fn new(interval: Duration, model: Arc<Mutex<Model>>, tracked: TrackedRequests) -> Poller {
        Poller {
            model,
            tracked,
            sync: Sync::new(interval, Instant::now()),
            stream: None,
            held_back: Vec::new(),
            events: Vec::new(),
            cursor: BuildCursor::default(),
            held_until: None,
            lookups_done: Vec::new(),
            first_poll_told: false,
        }
    }

    /// Polls and takes inputs until nobody takes what it emits.
    pub fn run(
        mut self,
        mut askers: Askers,
        inputs: &Receiver<PollerInput>,
        emit: &dyn Fn(PollerEvent) -> bool,
    ) {
        loop {
            self.sync.set_tracked(self.tracked.get());
            self.ask_what_is_due(&mut askers);
            if let Some(report) = self.sync.take_report() {
                log!(Warning, "{report}");
            }
            if !self.hand_over(emit) {
                return;
            }
            let now = Instant::now();
            let deadline = self.deadline(&askers).unwrap_or(now + STUCK);
            // A list that never comes is noticed, whatever else comes meanwhile.
            if !askers.lists.is_busy() {
                lock(&self.model).poller_deadline = Some(deadline + STUCK);
            }
            match inputs.recv_timeout(deadline.saturating_duration_since(now)) {
                Ok(input) => self.take(input, &mut askers),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            for input in inputs.try_iter().take(INPUTS_AT_ONCE) {
                self.take(input, &mut askers);
            }
        }
    }

    /// When there is something to do, if nothing comes before.
    fn deadline(&self, askers: &Askers) -> Option<Instant> {
        let next_query = (!askers.lists.is_busy()).then(|| self.sync.deadline());
        let next_lookup = self.sync.lookup_deadline(Instant::now());
        let has_idle = askers.lookups.iter().any(|asker| !asker.is_busy());
        let next_lookup = next_lookup.filter(|_| has_idle);
        [next_query, next_lookup, self.held_until]
            .into_iter()
            .flatten()
            .min()
    }

    fn ask_what_is_due(&mut self, askers: &mut Askers) {
        let now = Instant::now();
        let mut model = lock(&self.model);
        if !askers.lists.is_busy()
            && let Some(query) = self.sync.next_query(&mut model, now)
        {
            askers.lists.ask(query);
        }
        while let Some(asker) = askers.idle_for_lookup()
            && let Some(query) = self.sync.next_lookup(&model, now)
        {
            asker.ask(query);
        }
        drop(model);
        self.end_stream_if_asked();
    }

    /// One whole poll, for `-x`, on this thread.
    pub fn poll_once(&mut self, client: &mut Client) -> Result<(), Error> {
        self.sync.set_impatient();
        while !self.sync.is_healthy() || !lock(&self.model).is_complete {
            let mut model = lock(&self.model);
            let lookup = self.sync.next_lookup(&model, Instant::now());
            let query = lookup.or_else(|| self.sync.next_query(&mut model, Instant::now()));
            drop(model);
            let Some(query) = query else {
                break;
            };
            let answer = client.ask(&query);
            let error = answer.as_ref().err().cloned();
            let clock_offset = client.clock_offset;
            self.take_answer(Answered {
                query,
                answer,
                clock_offset,
            });
            if let Some(error) = error
                && lock(&self.model).last_error.is_some()
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Takes in what a command of `-x` wanted to know.
    pub fn take_lookup(&mut self, lookup: Lookup) {
        let mut model = lock(&self.model);
        self.sync.on_lookup(lookup, &mut model, Instant::now());
    }

    fn take(&mut self, input: PollerInput, askers: &mut Askers) {
        self.sync.set_tracked(self.tracked.get());
        match input {
            PollerInput::Stream(event @ StreamEvent::Update(Update::Build(_))) => {
                self.take_stream_event(event);
            }
            // What belongs together is no list's, and the builds of it may come at once.
            PollerInput::Stream(event @ StreamEvent::Update(Update::Buildset(_))) => {
                self.take_stream_event(event);
            }
            PollerInput::Stream(event) if askers.lists.is_busy() || self.sync.is_gathering() => {
                if let StreamEvent::Update(Update::Request(request)) = &event {
                    lock(&self.model).note_request(request);
                }
                if self.held_back.len() < STREAM_EVENTS {
                    self.held_back.push(event);
                }
            }
            PollerInput::Stream(event) => self.take_stream_event(event),
            PollerInput::Answered(answered) => {
                if answered.query.is_lookup() {
                    let mut lookups = askers.lookups.iter_mut();
                    let asker = lookups.find(|asker| asker.asked.as_ref() == Some(&answered.query));
                    if let Some(asker) = asker {
                        asker.asked = None;
                    }
                    self.take_answer(answered);
                } else {
                    askers.lists.asked = None;
                    self.take_answer(answered);
                    if !self.sync.is_gathering() {
                        for event in std::mem::take(&mut self.held_back) {
                            self.take_stream_event(event);
                        }
                    }
                }
            }
            PollerInput::Lookup(lookup, ticket) => {
                let mut model = lock(&self.model);
                let events = self.sync.on_lookup(lookup, &mut model, Instant::now());
                self.events.extend(events);
                self.lookups_done.push(ticket);
            }
        }
    }

    fn take_stream_event(&mut self, event: StreamEvent) {
        let now = Instant::now();
        let mut model = lock(&self.model);
        match event {
            StreamEvent::Up { socket, is_prompt } => {
                self.stream = Some(socket);
                self.sync.on_stream_up(is_prompt, now);
            }
            StreamEvent::Update(update) => {
                let events = self.sync.on_update(update, &mut model, now, unix_now());
                self.events.extend(events);
            }
            StreamEvent::Down => {
                self.stream = None;
                self.sync.on_stream_down(&mut model, now);
            }
        }
    }

    fn take_answer(&mut self, answered: Answered) {
        let now = Instant::now();
        let mut model = lock(&self.model);
        if let Some(offset) = answered.clock_offset {
            model.clock_offset = offset;
        }
        let events = self.sync.on_answer(
            &answered.query,
            answered.answer,
            &mut model,
            now,
            unix_now(),
        );
        drop(model);
        self.events.extend(events);
        self.end_stream_if_asked();
    }

    /// Ends the stream if that is wanted, so that its thread makes a new one.
    fn end_stream_if_asked(&mut self) {
        if self.sync.take_restart_stream()
            && let Some(socket) = &self.stream
        {
            // Best effort: one that is gone already has ended.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Hands over what has happened, if anything has. Returns false if nobody takes it.
    fn hand_over(&mut self, emit: &dyn Fn(PollerEvent) -> bool) -> bool {
        self.hand_over_events(emit) && self.hand_over_rest(emit)
    }

    /// What became known together goes together, unless that takes long.
    fn hand_over_events(&mut self, emit: &dyn Fn(PollerEvent) -> bool) -> bool {
        let now = Instant::now();
        if self.sync.expects_builds()
            && (self.events.is_empty() || now < *self.held_until.get_or_insert(now + TOGETHER))
        {
            return true;
        }
        self.held_until = None;
        let cursor = lock(&self.model).cursor();
        if self.events.is_empty() && cursor == self.cursor {
            return true;
        }
        self.cursor = cursor.clone();
        let mut events = std::mem::take(&mut self.events);
        // Some have waited for a look-up, others have not.
        events.sort_by_key(happened_at);
        emit(PollerEvent::Happened(events, cursor))
    }

    /// The first poll is through, and look-ups are done.
    fn hand_over_rest(&mut self, emit: &dyn Fn(PollerEvent) -> bool) -> bool {
        if !self.first_poll_told && lock(&self.model).is_complete {
            self.first_poll_told = true;
            if !emit(PollerEvent::FirstPoll) {
                return false;
            }
        }
        let done = std::mem::take(&mut self.lookups_done);
        done.into_iter()
            .all(|ticket| emit(PollerEvent::LookupDone(ticket)))
    }
}
