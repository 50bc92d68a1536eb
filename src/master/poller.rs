//! The poller thread: asks what `sync` finds due, applies what the stream and look-ups bring, and
//! hands over what has happened. It is the only one that writes into the model, and holds its lock
//! never across I/O or a send.

use super::client::{Client, Error};
use super::events::StreamEvent;
use super::model::{BuildCursor, MasterEvent, Model};
use super::sync::{Lookup, Sync};
use crate::clock::unix_now;
use std::collections::BTreeSet;
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Inputs that are taken in before what has happened is handed over.
const INPUTS_AT_ONCE: usize = 64;
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
    client: Client,
    model: Arc<Mutex<Model>>,
    tracked: TrackedRequests,
    sync: Sync,
    stream: Option<TcpStream>,
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
    pub fn new(
        client: Client,
        interval: Duration,
        model: Arc<Mutex<Model>>,
        tracked: TrackedRequests,
    ) -> Poller {
        Poller {
            client,
            model,
            tracked,
            sync: Sync::new(interval, Instant::now()),
            stream: None,
            events: Vec::new(),
            cursor: BuildCursor::default(),
            held_until: None,
            lookups_done: Vec::new(),
            first_poll_told: false,
        }
    }

    /// Polls and takes inputs until nobody takes what it emits.
    pub fn run(mut self, inputs: &Receiver<PollerInput>, emit: &dyn Fn(PollerEvent) -> bool) {
        loop {
            self.sync.set_tracked(self.tracked.get());
            // Between two queries, what the stream has brought is not kept waiting.
            while self.ask_next().is_some() {
                if let Some(report) = self.sync.take_report() {
                    log!(Warning, "{report}");
                }
                self.drain(inputs);
                if !self.hand_over(emit) {
                    return;
                }
            }
            let deadline = self.sync.deadline();
            lock(&self.model).poller_deadline = Some(deadline + STUCK);
            if !self.hand_over(emit) {
                return;
            }
            let wait = deadline.saturating_duration_since(Instant::now());
            match inputs.recv_timeout(wait) {
                Ok(input) => self.take(input),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.drain(inputs);
        }
    }

    fn drain(&mut self, inputs: &Receiver<PollerInput>) {
        for input in inputs.try_iter().take(INPUTS_AT_ONCE) {
            self.take(input);
        }
    }

    /// One whole poll, for `-x`.
    pub fn poll_once(&mut self) -> Result<(), Error> {
        self.sync.set_impatient();
        while !self.sync.is_healthy() || !lock(&self.model).is_complete {
            match self.ask_next() {
                Some(Err(error)) if lock(&self.model).last_error.is_some() => return Err(error),
                Some(_) => {}
                None => break,
            }
        }
        Ok(())
    }

    /// Takes in what a command of `-x` wanted to know.
    pub fn take_lookup(&mut self, lookup: Lookup) {
        let mut model = lock(&self.model);
        self.sync.on_lookup(lookup, &mut model, Instant::now());
    }

    /// Asks one query, if one is due. Returns its error, if it had one.
    fn ask_next(&mut self) -> Option<Result<(), Error>> {
        let query = self.sync.next_query(&mut lock(&self.model), Instant::now());
        self.end_stream_if_asked();
        let query = query?;
        let answer = self.client.ask(&query);
        let result = answer.as_ref().map(|_| ()).map_err(Error::clone);
        let now = Instant::now();
        let mut model = lock(&self.model);
        model.clock_offset = self.client.clock_offset;
        let events = self
            .sync
            .on_answer(&query, answer, &mut model, now, unix_now());
        drop(model);
        self.events.extend(events);
        self.end_stream_if_asked();
        Some(result)
    }

    fn take(&mut self, input: PollerInput) {
        self.sync.set_tracked(self.tracked.get());
        let now = Instant::now();
        let mut model = lock(&self.model);
        match input {
            PollerInput::Stream(StreamEvent::Up { socket, is_prompt }) => {
                self.stream = Some(socket);
                self.sync.on_stream_up(is_prompt, now);
            }
            PollerInput::Stream(StreamEvent::Update(update)) => {
                let events = self.sync.on_update(update, &mut model, now, unix_now());
                self.events.extend(events);
            }
            PollerInput::Stream(StreamEvent::Down) => {
                self.stream = None;
                self.sync.on_stream_down(&mut model, now);
            }
            PollerInput::Lookup(lookup, ticket) => {
                let events = self.sync.on_lookup(lookup, &mut model, now);
                self.events.extend(events);
                self.lookups_done.push(ticket);
            }
        }
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
        if self.sync.expects_builds() && now < *self.held_until.get_or_insert(now + TOGETHER) {
            return true;
        }
        self.held_until = None;
        let cursor = lock(&self.model).cursor();
        if self.events.is_empty() && cursor == self.cursor {
            return true;
        }
        self.cursor = cursor.clone();
        let events = std::mem::take(&mut self.events);
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
