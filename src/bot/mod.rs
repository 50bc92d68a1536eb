//! Main event loop: read, decide, write, wait. This thread owns the connection, the session, the
//! routing, the outbox and the state file. It never asks the master, never waits for another
//! thread, and sleeps while there is nothing to do.

mod changes;
mod connection;
mod event_queue;
mod invocations;
mod reply_limiter;

use crate::clock::unix_now;
use crate::config::{Config, Irc, Pacing};
use crate::irc::outbox::{Confirmation, Outbox, Route};
use crate::irc::pacing::Software;
use crate::irc::session::Session;
use crate::irc::wire::{Line, text_budget};
use crate::irc::{Action, Upstream};
use crate::master::builder::BuildEvent;
use crate::master::client::Error;
use crate::master::details::{Details, Wanted};
use crate::master::jobs::{Job, JobResult};
use crate::master::model::{MasterEvent, Model, RequestEnd};
use crate::master::poller::{PollerEvent, Ticket, TrackedRequests, lock};
use crate::names::Name;
use crate::net::{self, SocketEvent};
use crate::notify_events::{Event, EventSet};
use crate::routing::buildsets::Buildsets;
use crate::routing::{self, Recipients, Routing};
use crate::sanitize::sanitize;
use crate::state_file::{Announcement, State};
use crate::systemd::Supervisor;
use crate::text;
use connection::{Connection, Written};
use event_queue::EventQueue;
use invocations::{HeldInvocation, WaitingJobs};
use native_tls::TlsConnector;
use reply_limiter::ReplyLimiter;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// After a signal to stop, what waits has so long to be said.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(3);
/// Bytes of lines that are handed to the socket at once, if they wait.
const WRITE_AT_ONCE: usize = 4096;
/// Changes are written to the state file together, so long after the first: a crash meanwhile
/// repeats a line or forgets a command.
const SAVE_DELAY: Duration = Duration::from_millis(50);
/// So many times as long as it takes to write the state file it is not written again.
const SAVE_SHARE: u32 = 10;
/// A state file that cannot be written is tried again after so long.
const SAVE_RETRY: Duration = Duration::from_secs(60);
/// A server that has killed us for flooding gets the pace that is safe everywhere, for so many
/// seconds.
const SAFE_PACING: i64 = 86_400;
/// Builds that run; with more than these, nobody asks beforehand who is behind each.
const PREPARED_BUILDS: usize = 200;
/// Between two looks for people who were not seen for long.
const FORGET_ABSENT: Duration = Duration::from_secs(86_400);
/// A ticket that nobody waits for.
const NO_TICKET: Ticket = 0;

/// What other threads bring.
pub enum Input {
    /// From the reader of the connection with this number.
    Socket(u64, SocketEvent),
    Poller(PollerEvent),
    JobDone(Ticket, Result<JobResult, Error>),
    Stop,
    Reload,
}

/// Why the bot ends: a sentence, and what kind of failure it is.
#[derive(Debug)]
pub struct Failure {
    pub kind: FailureKind,
    pub why: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The configuration is wrong, or the network refuses us in a way that no retry mends.
    Configuration,
    /// A file cannot be read or written.
    File,
}

impl Failure {
    pub fn configuration(why: impl Into<String>) -> Failure {
        Failure {
            kind: FailureKind::Configuration,
            why: why.into(),
        }
    }

    pub fn file(why: impl Into<String>) -> Failure {
        Failure {
            kind: FailureKind::File,
            why: why.into(),
        }
    }
}

/// A job, and who waits for it.
pub type JobOrder = (Ticket, Job);

/// What connects the bot to the rest of the program.
pub struct Handles {
    pub model: Arc<Mutex<Model>>,
    pub tracked: TrackedRequests,
    /// For the readers of connections.
    pub inputs: SyncSender<Input>,
    /// Look-ups, for which somebody waits.
    pub lookups: SyncSender<JobOrder>,
    /// What changes something at the master.
    pub orders: SyncSender<JobOrder>,
    /// What is nice to have in a line.
    pub details: SyncSender<JobOrder>,
    pub reload: Box<dyn Fn() -> Result<Config, String>>,
}

pub struct Bot {
    config: Config,
    irc: Irc,
    handles: Handles,
    session: Session,
    routing: Routing,
    outbox: Outbox,
    connection: Connection,
    events: EventQueue,
    /// What is told as one when all of it has ended.
    buildsets: Buildsets,
    waiting_jobs: WaitingJobs,
    /// Questions that came before the first poll was through.
    held: Vec<HeldInvocation>,
    limiter: ReplyLimiter,
    state: State,
    software: Software,
    /// Who is not seen for long is forgotten, but not before they could be seen.
    forget_absent_at: Instant,
    save_at: Option<Instant>,
    /// A large state takes long to write: then it is written less often.
    save_pause: Duration,
    stop_at: Option<Instant>,
    supervisor: Supervisor,
}

impl Bot {
    pub fn new(config: Config, state: State, handles: Handles) -> Result<Bot, Failure> {
        let now = Instant::now();
        let Some(irc) = config.irc.clone() else {
            return Err(Failure::configuration("a section [irc] is needed to run"));
        };
        let seed = unix_now() as u64 ^ u64::from(std::process::id()) << 32;
        let routing = Routing::new(irc.clone(), &state);
        let mut bot = Bot {
            session: Session::new(irc.clone(), now, seed),
            outbox: Outbox::new(irc.pacing != Pacing::No, now),
            connection: Connection::default(),
            events: EventQueue::default(),
            buildsets: Buildsets::default(),
            waiting_jobs: WaitingJobs::default(),
            held: Vec::new(),
            limiter: ReplyLimiter::default(),
            software: Software::Unknown,
            forget_absent_at: now + FORGET_ABSENT,
            save_at: None,
            save_pause: SAVE_DELAY,
            stop_at: None,
            supervisor: Supervisor::new(now),
            config,
            irc,
            handles,
            routing,
            state,
        };
        bot.resume(now);
        bot.try_save().map_err(Failure::file)?;
        Ok(bot)
    }

    /// Goes on from what the state file says.
    fn resume(&mut self, now: Instant) {
        for (channel, key) in self.routing.joined() {
            self.session.join(channel, key, now);
        }
        for channel in self.routing.left() {
            self.session.leave(channel, "");
        }
        lock(&self.handles.model).resume(self.state.cursor.clone());
        let open = std::mem::take(&mut self.state.buildsets);
        self.buildsets = Buildsets::resume(open, unix_now());
        self.track_requests();
        for pending in std::mem::take(&mut self.state.pending) {
            let target = self.canonical(&pending.target);
            if !target.is_channel() || self.routing.is_target(&target) {
                self.outbox.announce(&target, pending);
            }
        }
    }

    /// Runs until asked to stop or refused for good.
    pub fn run(mut self, inputs: &Receiver<Input>) -> Result<(), Failure> {
        self.supervisor.notify("READY=1");
        loop {
            let now = Instant::now();
            self.session.tick(now);
            self.take_actions(now)?;
            self.announce_ready(now);
            self.tend_buildsets(now);
            self.end_mutes(now);
            self.answer_held(now);
            self.flush(now);
            self.save_if_due(now);
            self.report_to_supervisor(now);
            if self.may_stop(now) {
                self.send(&Line::new("QUIT", &[], Some("until next time")), now);
                self.save_if_due(now + SAVE_RETRY);
                return Ok(());
            }
            // Cannot disconnect: we hold a sender.
            let wait = self.deadline().saturating_duration_since(Instant::now());
            if let Ok(input) = inputs.recv_timeout(wait) {
                self.take_input(input, Instant::now());
            }
        }
    }

    fn report_to_supervisor(&mut self, now: Instant) {
        let model = lock(&self.handles.model);
        let session = &self.session;
        self.supervisor.notify_status(|| status_of(session, &model));
        let is_alive = model.poller_deadline.is_none_or(|deadline| now < deadline);
        self.supervisor.feed_watchdog(is_alive, now);
    }

    /// Whether we were asked to stop and all is said, or the time for that is over.
    fn may_stop(&self, now: Instant) -> bool {
        let Some(stop_at) = self.stop_at else {
            return false;
        };
        let nothing_to_send = self.next_line_at().is_none() && self.outbox.unconfirmed().is_none();
        // What waits may still find its channel.
        let may_come = !self.session.is_online() && !self.outbox.is_idle();
        now >= stop_at || !self.connection.is_open() || nothing_to_send && !may_come
    }

    fn deadline(&self) -> Instant {
        // While TLS holds a line back, only an event helps.
        let line = self
            .next_line_at()
            .filter(|_| !self.connection.is_blocked());
        let unix = unix_now();
        let now = Instant::now();
        let instant = |until: i64| {
            let seconds = u64::try_from(until.saturating_sub(unix)).unwrap_or(0);
            now + Duration::from_secs(seconds.min(86_400))
        };
        let others = [
            line,
            self.routing.next_unmute().map(instant),
            self.next_buildset_due().map(instant),
            self.connection.questions.again_at,
            self.stop_at,
            self.save_at,
            self.events.deadline(),
            self.supervisor.deadline(),
            self.held.iter().map(|held| held.until).min(),
        ];
        let others = others.into_iter().flatten();
        others.fold(self.session.deadline(), Instant::min)
    }

    /// When the next line that waits may go, if one can.
    fn next_line_at(&self) -> Option<Instant> {
        self.outbox.deadline(&|target| self.route(target))
    }

    /// How a target can be reached: in channels that we are in, and anyone in private.
    fn route(&self, target: &Name) -> Option<Route> {
        route(&self.session, &self.routing, target)
    }

    fn take_input(&mut self, input: Input, now: Instant) {
        match input {
            // Of a connection that is gone.
            Input::Socket(number, _) if number != self.connection.number => {}
            Input::Socket(number, SocketEvent::Up(stream)) => {
                self.connection = Connection::new(number, stream);
                self.session.on_connected(now);
                // What TLS has read with the hand-shake.
                self.receive(&[], now);
            }
            Input::Socket(_, SocketEvent::Bytes(bytes)) => self.receive(&bytes, now),
            Input::Socket(_, SocketEvent::Down(why)) => self.disconnect(&why, now),
            Input::Poller(event) => self.take_poller_event(event, now),
            Input::JobDone(ticket, result) => self.take_job_result(ticket, result, now),
            Input::Stop => {
                self.supervisor.notify("STOPPING=1");
                self.stop_at = Some(now + SHUTDOWN_GRACE);
            }
            Input::Reload => self.reload(now),
        }
    }

    // The connection

    fn receive(&mut self, bytes: &[u8], now: Instant) {
        match self.connection.receive(bytes) {
            Ok(messages) => {
                for message in messages {
                    let shown = self.session.without_password(&message.shown());
                    log!(Debug, "<< {shown}");
                    self.session.on_message(&message, now);
                }
            }
            Err(e) => self.disconnect(&format!("connection: {e}"), now),
        }
    }

    fn disconnect(&mut self, why: &str, now: Instant) {
        self.connection = self.connection.closed();
        self.outbox.on_disconnected(now);
        self.session.on_disconnected(why, now);
    }

    fn connect(&self, port: u16, with_tls: bool) -> Result<(), Failure> {
        let host = self.irc.host.clone();
        let tls = if with_tls {
            Some(self.tls_connector()?)
        } else {
            None
        };
        log!(Info, "IRC: connecting to {host}:{port}");
        let number = self.connection.number;
        let inputs = self.handles.inputs.clone();
        let emit = move |event| inputs.send(Input::Socket(number, event)).is_ok();
        net::open(host, port, tls, emit);
        Ok(())
    }

    fn tls_connector(&self) -> Result<TlsConnector, Failure> {
        let connector = net::connector(&self.irc.tls);
        connector.map_err(|why| Failure::configuration(format!("[irc] {why}")))
    }

    /// Sends a line at once.
    fn send(&mut self, line: &Line, now: Instant) {
        if !self.connection.is_open() {
            return;
        }
        // Flood limits differ during registration.
        if self.session.is_online() {
            self.outbox.charge(line.bytes().len(), now);
        }
        self.connection.push(line);
        self.write();
    }

    /// Writes what waits for the socket; returns whether all of it has gone.
    fn write(&mut self) -> bool {
        match self.connection.write() {
            Written::All => true,
            Written::Blocked => false,
            Written::TimedOut => {
                // That was a wait: `now` is long ago.
                let why = "writing: the server takes nothing any more";
                self.disconnect(why, Instant::now());
                true
            }
        }
    }

    /// Sends what may be sent now, and asks the server whether it has arrived.
    fn flush(&mut self, now: Instant) {
        let oldest = unix_now() - self.config.catch_up.as_secs() as i64;
        while self.write() {
            while self.connection.unsent_bytes() < WRITE_AT_ONCE {
                let session = &self.session;
                let routing = &self.routing;
                let router = |target: &Name| route(session, routing, target);
                let Some(line) = self.outbox.next(now, oldest, &router) else {
                    break;
                };
                self.connection.push(&line);
            }
            if !self.connection.is_blocked() {
                break;
            }
        }
        self.ask_after_lines(now);
    }

    /// Asks after a burst of lines whether they have arrived, now and then in a long one, and before
    /// we stop.
    fn ask_after_lines(&mut self, now: Instant) {
        let questions = &mut self.connection.questions;
        let Some(last) = self.outbox.unconfirmed() else {
            questions.again_at = None;
            return;
        };
        let asked = questions.asked_after;
        let is_overdue = questions.is_overdue(now);
        let is_burst_over = self.next_line_at().is_none();
        let is_due = is_burst_over || last > asked + 1 || self.stop_at.is_some();
        if last > asked && is_due || is_overdue {
            let token = self.connection.questions.ask(last, now);
            let question = self.session.arrival_question(&token);
            self.send(&question, now);
        }
    }

    // What the session wants done

    fn take_actions(&mut self, now: Instant) -> Result<(), Failure> {
        loop {
            let actions = self.session.take_actions();
            if actions.is_empty() {
                return Ok(());
            }
            for action in actions {
                self.take_action(action, now)?;
            }
        }
    }

    fn take_action(&mut self, action: Action, now: Instant) -> Result<(), Failure> {
        match action {
            Action::Connect { port, with_tls } => self.connect(port, with_tls)?,
            Action::Close(why) => self.disconnect(&why, now),
            Action::Send(line) => self.send(&line, now),
            Action::SendInTurn(place, line) => self.outbox.ask_server(&place, line),
            Action::Invoked(invocation) => self.take_invocation(invocation, now),
            Action::CtcpReply(nick, text) => self.outbox.reply_ctcp(&nick, text),
            Action::Answered(token) => self.take_answer(&token, now),
            Action::Refused(target, refusal) => {
                let target = self.canonical(target.as_str());
                self.outbox.on_refused(&target, &refusal);
            }
            Action::Reachable(target) => {
                self.outbox.allow(&target);
                self.routing.note_seen(&target, unix_now());
            }
            Action::Seen(nick) => self.routing.note_seen(&nick, unix_now()),
            Action::Software(software) => {
                self.software = software;
                self.set_pace();
            }
            Action::CasemappingKnown(casemapping) => {
                self.routing.refold(casemapping);
                self.outbox.refold(casemapping);
            }
            Action::Upstream(upstream) => {
                self.outbox.set_upstream(upstream == Upstream::Back);
            }
            Action::Flooded(why) => {
                log!(
                    Warning,
                    "IRC: we said too much at once ({why}); speaking slowly for a day"
                );
                self.state.safe_pacing_until = unix_now() + SAFE_PACING;
                self.save_soon(now);
            }
            Action::Fatal(why) => return Err(Failure::configuration(format!("IRC: {why}"))),
        }
        Ok(())
    }

    /// Speaks as fast as the server's software allows, unless that has gone wrong lately.
    fn set_pace(&mut self) {
        let is_auto = self.irc.pacing == Pacing::Auto;
        if is_auto && self.state.safe_pacing_until <= unix_now() {
            self.outbox.set_software(self.software);
        }
    }

    fn take_answer(&mut self, token: &str, now: Instant) {
        let Some(arrival) = self.connection.questions.on_answer(token) else {
            return;
        };
        // Only a bouncer loses lines without an end of the connection.
        if let Some(lost) = arrival.lost.filter(|_| self.session.is_behind_bouncer()) {
            log!(
                Warning,
                "IRC: the bouncer has lost lines of ours; saying them again"
            );
            self.outbox.lose(lost);
        }
        let confirmation = self.outbox.confirm(arrival.arrived, now);
        if confirmation != Confirmation::default() {
            self.save_soon(now);
        }
        for target in &confirmation.told {
            self.routing.note_seen(target, unix_now());
        }
        for target in confirmation.unreachable {
            // The nick may have a new owner; drop its queue.
            if !self.routing.is_target(&target) {
                self.outbox.forget(&target);
            }
        }
    }

    /// A target as we write it: names that the server takes for one are one.
    fn canonical(&self, text: &str) -> Name {
        let name = self.session.casemapping().name(text);
        let known = self.routing.canonical(&name);
        let known = known.or_else(|| self.session.canonical_channel(&name));
        known.cloned().unwrap_or(name)
    }

    // What happens at the master

    fn take_poller_event(&mut self, event: PollerEvent, now: Instant) {
        if now >= self.forget_absent_at {
            self.forget_absent_at = now + FORGET_ABSENT;
            let dropped = self.routing.drop_absent(unix_now());
            self.forget_absent(&dropped);
        }
        match event {
            PollerEvent::Happened(events, cursor) => {
                self.events.begin_batch(cursor);
                for event in events {
                    self.take_master_event(event, now);
                }
                self.save_soon(now);
            }
            PollerEvent::LookupDone(ticket) => {
                if let Some(job) = self.waiting_jobs.take(ticket) {
                    self.answer(&job, true, now);
                }
            }
            PollerEvent::FirstPoll => {
                self.warn_of_idle_patterns();
                for held in &mut self.held {
                    held.until = now;
                }
            }
        }
    }

    fn warn_of_idle_patterns(&self) {
        let model = lock(&self.handles.model);
        if !model.is_complete {
            return;
        }
        for sentence in routing::idle_patterns(&self.irc, model.builders()) {
            log!(Warning, "{sentence}");
        }
    }

    /// Puts an event on its way; who is behind its build is asked for elsewhere, if a line wants
    /// to say that.
    fn take_master_event(&mut self, event: MasterEvent, now: Instant) {
        let mut wanted = Wanted::default();
        let mut order = None;
        if let MasterEvent::Build(build_event) = &event {
            if !self.is_old(build_event) {
                // One that may turn out to be alone gets its line, too.
                let is_of_several = build_event
                    .buildset
                    .is_some_and(|set| set.known_builders > 1);
                let is_alone = self.is_alone(build_event) || !is_of_several;
                wanted = self.routing.wanted_details(build_event, is_alone);
            }
            if !build_event.build.complete {
                self.prepare_details(build_event);
            }
            order = Some((build_event.build.id, build_event.build.request_id));
        }
        let missing = self.events.push(event, wanted, now);
        if let Some((build, request)) = order {
            self.ask_for_details(build, request, missing);
        }
    }

    /// Whether a build has ended so long ago that it is told in a summary, without details.
    fn is_old(&self, event: &BuildEvent) -> bool {
        let offset = lock(&self.handles.model).clock_offset;
        let oldest = unix_now() - self.config.catch_up.as_secs() as i64;
        event
            .build
            .complete_at
            .is_some_and(|at| at.saturating_sub(offset) < oldest)
    }

    /// Asks for the changes of a build that runs, so that its end can be told at once.
    fn prepare_details(&mut self, event: &BuildEvent) {
        let running = lock(&self.handles.model).running_count();
        if running <= PREPARED_BUILDS && self.routing.may_need_details(event) {
            let authors = Wanted {
                authors: true,
                ..Wanted::default()
            };
            self.ask_for_details(event.build.id, None, authors);
        }
    }

    fn ask_for_details(&self, build: u64, request: Option<u64>, wanted: Wanted) {
        if wanted.is_empty() {
            return;
        }
        let job = Job::Details {
            build,
            request,
            wanted,
        };
        // Best effort: without an answer the line goes without.
        let _ = self.handles.details.try_send((NO_TICKET, job));
    }

    fn announce_ready(&mut self, now: Instant) {
        for ready in self.events.take_ready(now) {
            match ready.event {
                MasterEvent::Build(event) => self.announce_build(&event, ready.details.as_ref()),
                MasterEvent::StartedOver => {
                    self.routing.watches.clear();
                    self.state.blamed.clear();
                    let steps = self.buildsets.start_over();
                    self.take_buildset_steps(steps);
                }
                MasterEvent::RequestDropped(request) => self.buildsets.on_dropped(request),
                MasterEvent::Worker { name, missing } => {
                    let text = text::worker_line(&name, missing);
                    for target in self.routing.worker_recipients() {
                        self.announce_line(&target, &text, Some(Event::Worker));
                    }
                }
                MasterEvent::RequestEnded {
                    request,
                    builder,
                    end,
                } => self.announce_request_end(request, &builder, end),
            }
        }
        if let Some(cursor) = self.events.take_cursor() {
            self.state.cursor = cursor;
            self.save_soon(now);
        }
    }

    fn announce_build(&mut self, event: &BuildEvent, details: Option<&Details>) {
        let is_alone = self.is_alone(event);
        if !is_alone {
            let places = self.routing.change_targets().map(|(name, _)| name.as_str());
            self.buildsets.add(event, details, places, unix_now());
        }
        let mut recipients = self.routing.recipients(event, is_alone);
        for nick in self.blamed(event, details) {
            recipients.entry(nick).or_insert(false);
        }
        let by_change = self.routing.change_targets();
        let told = by_change.filter(|(name, _)| recipients.contains_key(*name));
        self.buildsets
            .note_told(event, told.map(|(name, _)| name.as_str()));
        self.announce_to(recipients, event, details);
        self.track_requests();
    }

    /// One line for a build, to each of these.
    fn announce_to(
        &mut self,
        recipients: Recipients,
        event: &BuildEvent,
        details: Option<&Details>,
    ) {
        let model = lock(&self.handles.model);
        let base = model.identity.url.clone();
        let clock_offset = model.clock_offset;
        drop(model);
        let unix = unix_now();
        for (target, is_watched) in recipients {
            let settings = self.routing.settings(&target);
            let nicks = &self.config.nicks;
            let announcement = Announcement {
                target: target.to_string(),
                at: event
                    .build
                    .complete_at
                    .map_or(unix, |at| at.saturating_sub(clock_offset)),
                outcome: event.build.outcome(),
                label: text::build_label(event),
                builder: sanitize(&event.builder),
                branch: sanitize(event.branch_to_name().unwrap_or("")),
                url: text::build_url(&base, &event.build),
                text: text::announcement(event, details, &settings, nicks, &base),
                was_muted: !is_watched && self.routing.is_muted(&target, unix),
                is_watched,
                events: routing::events_of(event),
                ..Announcement::default()
            };
            self.outbox.announce(&target, announcement);
        }
    }

    /// Who is blamed for this build, is known by nick, and is to hear of it in private: once for
    /// what was started together.
    fn blamed(&mut self, event: &BuildEvent, details: Option<&Details>) -> Vec<Name> {
        let Some(details) = details.filter(|_| self.routing.blaming(event).next().is_some()) else {
            return Vec::new();
        };
        // What was started together has the same buildset; where that is not known, the same newest
        // revision.
        let told_by_stream = event.buildset.map(|buildset| buildset.id);
        let buildset = told_by_stream.or(details.buildset);
        let key = match (buildset, details.revisions.first()) {
            (Some(buildset), _) => format!("buildset {buildset}"),
            (None, Some(revision)) => format!("revision {}", sanitize(revision)),
            (None, None) => String::new(),
        };
        let mut blamed = Vec::new();
        for author in &details.authors {
            let Some(nick) = self.config.nicks.of(author) else {
                continue;
            };
            let nick = self.canonical(nick);
            let is_told = !key.is_empty() && !self.state.note_blamed(nick.as_str(), &key);
            if !is_told && !blamed.contains(&nick) {
                blamed.push(nick);
            }
        }
        blamed
    }

    /// A line that is no build's: of this event, or for somebody who waits for it.
    fn announce_line(&mut self, target: &Name, text: &str, event: Option<Event>) {
        let unix = unix_now();
        let is_watched = event.is_none();
        let announcement = Announcement {
            target: target.to_string(),
            at: unix,
            label: text.to_owned(),
            text: text.to_owned(),
            was_muted: !is_watched && self.routing.is_muted(target, unix),
            is_watched,
            events: event.map_or(EventSet::EMPTY, |event| EventSet::of(&[event])),
            ..Announcement::default()
        };
        self.outbox.announce(target, announcement);
    }

    /// A watched request has ended without a build. One that was merged hands its watches on.
    fn announce_request_end(&mut self, request: u64, builder: &str, end: RequestEnd) {
        let watchers: Vec<Name> = self.routing.watches.targets_of(request).cloned().collect();
        if end != RequestEnd::Forgotten {
            let text = text::request_end_line(builder, end);
            for target in watchers {
                self.announce_line(&target, &text, None);
            }
        }
        match end {
            RequestEnd::Merged(Some(into)) => self.routing.watches.on_merged(request, into),
            _ => drop(self.routing.watches.on_ended(request)),
        }
        self.track_requests();
    }

    /// Tells the poller whose end somebody waits for.
    fn track_requests(&self) {
        self.handles.tracked.set(self.routing.watches.requests());
    }

    fn end_mutes(&mut self, now: Instant) {
        if self.routing.end_mutes(unix_now()) {
            self.save_soon(now);
        }
    }

    // The configuration and the state file

    fn reload(&mut self, now: Instant) {
        self.supervisor.notify("RELOADING=1");
        match (self.handles.reload)() {
            Ok(config) => self.reconfigure(config, now),
            Err(why) => {
                for line in why.lines() {
                    log!(Error, "{line}");
                }
                log!(Error, "the old configuration stays");
            }
        }
        self.supervisor.notify("READY=1");
    }

    /// Takes over a configuration that was read again: channels, events and authority. What
    /// concerns the connections stays as it is until a restart.
    fn reconfigure(&mut self, config: Config, now: Instant) {
        let Some(new) = config.irc.clone() else {
            log!(Error, "[irc] is gone; the old configuration stays");
            return;
        };
        let in_use = Irc {
            channels: new.channels.clone(),
            pm_to_nicks: new.pm_to_nicks.clone(),
            defaults: new.defaults.clone(),
            ..self.irc.clone()
        };
        let is_same = in_use == new
            && self.config.buildbot == config.buildbot
            && self.config.state_file == config.state_file;
        if !is_same {
            log!(
                Warning,
                "changes of the connections or of state_file need a restart; the rest takes \
                 effect now"
            );
        }
        self.config = Config {
            buildbot: self.config.buildbot.clone(),
            state_file: self.config.state_file.clone(),
            irc: Some(in_use.clone()),
            ..config
        };
        self.irc = in_use.clone();
        let told: Vec<Name> = self.routing.targets().cloned().collect();
        let changes = self.routing.reconfigure(in_use);
        for target in told {
            let events = if self.routing.is_target(&target) {
                self.routing.settings(&target).events
            } else {
                EventSet::EMPTY
            };
            self.outbox.keep_announcements(&target, events);
        }
        self.buildsets.ask_again();
        for channel in &changes.leave {
            self.session.leave(channel, "");
            self.outbox.forget(channel);
        }
        for (channel, key) in &changes.join {
            self.session.join(channel, key, now);
        }
        self.warn_of_idle_patterns();
        self.track_requests();
        self.save_soon(now);
        log!(Info, "configuration read again");
    }

    fn save_soon(&mut self, now: Instant) {
        let soon = now + self.save_pause;
        self.save_at = Some(self.save_at.map_or(soon, |at| at.min(soon)));
    }

    /// Writes what was to be saved by now, and again later if that fails.
    fn save_if_due(&mut self, now: Instant) {
        if self.save_at.is_none_or(|at| at > now) {
            return;
        }
        self.save_at = None;
        if let Err(why) = self.try_save() {
            log!(
                Error,
                "{why}; trying again every {} s",
                SAVE_RETRY.as_secs()
            );
            self.save_at = Some(now + SAVE_RETRY);
        }
    }

    /// Writes the state file, if there is one.
    fn try_save(&mut self) -> Result<(), String> {
        let Some(path) = &self.config.state_file else {
            return Ok(());
        };
        self.routing.export(&mut self.state);
        self.state.buildsets = self.buildsets.export();
        self.state.pending = self.outbox.pending();
        let started = Instant::now();
        let saved = self.state.save(path);
        self.save_pause = SAVE_DELAY.max(started.elapsed() * SAVE_SHARE);
        saved
    }
}

/// `#dev, #ops; 42 builders; 3 building`: what a supervisor shows of us.
fn status_of(session: &Session, model: &Model) -> String {
    let channels: Vec<&str> = session.joined_channels().map(Name::as_str).collect();
    let place = if channels.is_empty() {
        "in no channel".to_owned()
    } else {
        channels.join(", ")
    };
    if model.last_error.is_some() {
        return format!("{place}; the master does not answer");
    }
    let builders = text::count(model.builder_counts().total, "builder");
    let building = model.running_count();
    format!("{place}; {builders}; {building} building")
}

fn route(session: &Session, routing: &Routing, target: &Name) -> Option<Route> {
    if !session.can_reach(target) {
        return None;
    }
    let is_notice = target.is_channel() && routing.wants_notices(target);
    Some(Route {
        budget: text_budget(target.as_str(), session.source_length()),
        is_notice,
        is_muted: routing.is_muted(target, unix_now()),
    })
}

#[cfg(test)]
mod tests;
