//! What people say to us: may they, what does the command say, what does it change, and the jobs
//! that it waits for.

use super::{Bot, Job, JobOrder, JobResult, Ticket};
use crate::clock::unix_now;
use crate::commands::authority::{Verdict, authorize, refusal};
use crate::commands::{self, CommandResult, Context, Effect, Response};
use crate::irc::outbox::CHANNEL_LINES;
use crate::irc::{Account, Invocation};
use crate::master::client::Error;
use crate::master::details::Wanted;
use crate::master::jobs::{Forced, ForcedState};
use crate::master::model::MasterEvent;
use crate::master::poller::lock;
use crate::names::Name;
use crate::routing::watches::{Watch, Watched};
use crate::sanitize::sanitize;
use crate::text;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A question that came before the first poll was through waits for it so long.
const FIRST_POLL: Duration = Duration::from_secs(10);
/// Questions that wait for the first poll.
const HELD: usize = 100;

/// A command on its way, and whether it may touch the asker's own requests only.
#[derive(Clone, Debug)]
pub struct Authorized {
    pub invocation: Invocation,
    pub own_only: bool,
}

/// A question that waits for the first poll.
pub struct HeldInvocation {
    pub until: Instant,
    command: Authorized,
}

/// Commands that wait for a job, by their tickets.
#[derive(Default)]
pub struct WaitingJobs {
    last_ticket: Ticket,
    waiting: BTreeMap<Ticket, Authorized>,
}

impl WaitingJobs {
    fn next_ticket(&mut self) -> Ticket {
        self.last_ticket += 1;
        self.last_ticket
    }

    pub fn take(&mut self, ticket: Ticket) -> Option<Authorized> {
        self.waiting.remove(&ticket)
    }
}

impl Bot {
    /// Someone has said something to us: may they?
    pub(super) fn take_invocation(&mut self, mut invocation: Invocation, now: Instant) {
        invocation.place = self.canonical(invocation.place.as_str());
        let place = &invocation.place;
        if !self.outbox.takes_reply(place) {
            log!(
                Debug,
                "{place}: too much waits to be said there, not answering"
            );
            return;
        }
        let (name, rest) = commands::split_name(&invocation.text);
        // An operator here is nobody in particular in another channel.
        if name == "leave" && !rest.is_empty() && self.canonical(rest) != *place {
            invocation.is_op = false;
        }
        let casemapping = self.session.casemapping();
        let verdict = authorize(&self.config.authorization, &name, &invocation, casemapping);
        // Who may not stop builds may still take back what they have forced.
        let own_only =
            verdict == Verdict::No && name == "stop" && self.has_queued_request(&invocation.mask);
        match verdict {
            Verdict::NeedsAccount => self.verify_account(invocation, now),
            Verdict::No if !own_only => {
                log_attempt(&invocation, "refused");
                let line = refusal(&invocation, &name);
                self.reply_error(&invocation, line, now);
            }
            Verdict::Yes | Verdict::No => {
                let decision = if own_only {
                    "allowed for requests of their own"
                } else {
                    "allowed"
                };
                log_attempt(&invocation, decision);
                let command = Authorized {
                    invocation,
                    own_only,
                };
                self.start(command, now);
            }
        }
    }

    fn verify_account(&mut self, invocation: Invocation, now: Instant) {
        let place = invocation.place.clone();
        if !self.session.verify_account(invocation, now) {
            self.reply(&place, &["busy, try again".to_owned()]);
        }
    }

    /// Whether someone has forced a build that still waits: that they may take back.
    fn has_queued_request(&self, mask: &str) -> bool {
        let own = self.routing.watches.requests_of(mask);
        let model = lock(&self.handles.model);
        own.iter().any(|request| model.queued.contains_key(request))
    }

    /// Runs a command, or lets it wait for the first poll: nothing is said to be empty before it
    /// is known.
    fn start(&mut self, command: Authorized, now: Instant) {
        let model = lock(&self.handles.model);
        let is_known = model.is_complete || model.last_error.is_some();
        drop(model);
        let must_wait = !is_known && commands::needs_model(&command.invocation.text);
        if must_wait && self.held.len() < HELD {
            let until = now + FIRST_POLL;
            self.held.push(HeldInvocation { until, command });
        } else {
            self.answer(&command, false, now);
        }
    }

    /// Runs the questions that have waited long enough for the first poll.
    pub(super) fn answer_held(&mut self, now: Instant) {
        for held in self
            .held
            .extract_if(.., |held| held.until <= now)
            .collect::<Vec<_>>()
        {
            self.answer(&held.command, false, now);
        }
    }

    pub(super) fn answer(&mut self, command: &Authorized, lookup_done: bool, now: Instant) {
        let place = &command.invocation.place;
        match self.run_command(command, lookup_done) {
            Err(why) => self.reply_error(&command.invocation, why, now),
            Ok(Response::Lines(lines)) => self.reply_answer(&command.invocation, &lines, now),
            Ok(Response::Cut { lines, omitted }) => {
                if let Some(route) = self.route(place) {
                    self.outbox.reply(place, &lines, omitted, &route);
                }
            }
            Ok(Response::List { heading, items, .. }) if items.is_empty() => {
                self.reply(place, &[heading]);
            }
            Ok(Response::List {
                heading,
                items,
                omitted,
            }) => {
                if let Some(route) = self.route(place) {
                    self.outbox
                        .reply_list(place, &heading, &items, omitted, &route);
                }
            }
            Ok(Response::Change(lines, effect)) => {
                self.apply_effect(&command.invocation, lines, effect, now);
            }
            Ok(Response::NeedsJob(job)) => self.start_job(command, job),
        }
    }

    fn run_command(&self, command: &Authorized, lookup_done: bool) -> CommandResult {
        let invocation = &command.invocation;
        let settings = self.routing.settings(&invocation.place);
        let model = lock(&self.handles.model);
        let max_lines = if invocation.place.is_channel() {
            CHANNEL_LINES
        } else {
            usize::MAX
        };
        let context = Context {
            model: &model,
            routing: &self.routing,
            settings: &settings,
            now: unix_now(),
            lookup_done,
            max_lines,
            nick: Some(self.session.nick()),
            own_only: command.own_only,
        };
        commands::run(invocation, &context)
    }

    // Replies

    fn reply(&mut self, place: &Name, lines: &[String]) {
        if let Some(route) = self.route(place) {
            self.outbox.reply(place, lines, 0, &route);
        }
    }

    fn reply_answer(&mut self, invocation: &Invocation, lines: &[String], now: Instant) {
        let answer = lines.first().map_or("", String::as_str);
        if self.may_answer(invocation, answer, false, now) {
            self.reply(&invocation.place, lines);
        }
    }

    /// Says what was wrong.
    fn reply_error(&mut self, invocation: &Invocation, why: String, now: Instant) {
        if self.may_answer(invocation, &why, true, now) {
            self.reply(&invocation.place, &[why]);
        }
    }

    /// In private, somebody may be a bot that answers our answers.
    fn may_answer(
        &mut self,
        invocation: &Invocation,
        answer: &str,
        is_error: bool,
        now: Instant,
    ) -> bool {
        let place = &invocation.place;
        let allowed = place.is_channel() || self.limiter.allows(place, answer, is_error, now);
        if !allowed {
            log!(Debug, "{place}: said that often enough, not answering");
        }
        allowed
    }

    // Effects

    fn apply_effect(
        &mut self,
        invocation: &Invocation,
        lines: Vec<String>,
        effect: Effect,
        now: Instant,
    ) {
        let place = &invocation.place;
        if matches!(effect, Effect::SetEvents(_) | Effect::MuteUntil(_)) && !self.make_room(place) {
            self.reply(place, &["I have too many to tell already".to_owned()]);
            return;
        }
        match effect {
            Effect::SetEvents(events) => {
                self.routing.set_events(place, events);
                self.routing.note_seen(place, unix_now());
                self.outbox.keep_announcements(place, events);
            }
            Effect::MuteUntil(until) => {
                self.routing.mute(place, until);
                self.routing.note_seen(place, unix_now());
                self.outbox.mark_muted(place);
            }
            Effect::Unmute => self.routing.unmute(place),
            Effect::Watch(watched) => self.watch(invocation, watched),
            Effect::Join { channel, key } => self.join(&channel, &key, now),
            Effect::Leave(channel) => {
                // There is no speaking in a channel that we have left.
                self.reply(place, &lines);
                self.leave(&channel, &invocation.nick);
                self.save_soon(now);
                return;
            }
        }
        self.reply_answer(invocation, &lines, now);
        self.save_soon(now);
    }

    /// Whether one more place can be told.
    fn make_room(&mut self, place: &Name) -> bool {
        let Some(dropped) = self.routing.make_room(place, unix_now()) else {
            return false;
        };
        self.forget_absent(&dropped);
        true
    }

    /// Nothing waits any more for people who have lost their place.
    pub(super) fn forget_absent(&mut self, dropped: &[Name]) {
        for name in dropped {
            log!(
                Info,
                "{name} was not seen for long; not telling them any more"
            );
            self.outbox.forget(name);
        }
    }

    fn join(&mut self, channel: &str, key: &str, now: Instant) {
        let channel = self.canonical(channel);
        let configured = self
            .routing
            .configured_key(&channel)
            .filter(|_| key.is_empty());
        let key = configured.unwrap_or(key).to_owned();
        self.session.join(&channel, &key, now);
        self.routing.join(&channel, &key);
    }

    fn leave(&mut self, channel: &str, asker: &Name) {
        let channel = self.canonical(channel);
        self.session
            .leave(&channel, &format!("leaving, as {asker} asks"));
        self.routing.leave(&channel);
        self.outbox.forget(&channel);
        self.track_requests();
    }

    /// Watches from now on; an end that nobody there has heard of is told at once.
    fn watch(&mut self, invocation: &Invocation, watched: Vec<Watched>) {
        for what in watched {
            self.add_watch(Watch {
                target: invocation.place.clone(),
                what,
                mask: String::new(),
            });
        }
    }

    fn add_watch(&mut self, watch: Watch) {
        // A job may have taken so long that we have left meanwhile.
        if watch.target.is_channel() && !self.routing.is_target(&watch.target) {
            return;
        }
        let request = match watch.what {
            Watched::Request(request) => Some(request),
            Watched::NextBuildOf(_) => None,
        };
        let is_new = self.routing.watches.add(watch);
        let model = lock(&self.handles.model);
        let ended = request.and_then(|request| model.ended_build_of(request));
        drop(model);
        if let Some(event) = ended.filter(|_| is_new) {
            let event = MasterEvent::Build(Box::new(event));
            self.events.push(event, Wanted::default(), Instant::now());
        }
        self.track_requests();
    }

    // Jobs

    fn start_job(&mut self, command: &Authorized, job: Job) {
        let ticket = self.waiting_jobs.next_ticket();
        let jobs = if job.is_order() {
            &self.handles.orders
        } else {
            &self.handles.lookups
        };
        let order: JobOrder = (ticket, job);
        if jobs.try_send(order).is_ok() {
            self.waiting_jobs.waiting.insert(ticket, command.clone());
        } else {
            self.reply(&command.invocation.place, &["busy, try again".to_owned()]);
        }
    }

    pub(super) fn take_job_result(
        &mut self,
        ticket: Ticket,
        result: Result<JobResult, Error>,
        now: Instant,
    ) {
        if let Ok(JobResult::Details { build, details }) = result {
            self.events.on_details(build, details);
            return;
        }
        if let Ok(JobResult::Buildset { request, answer }) = result {
            self.take_buildset_answer(request, answer);
            return;
        }
        let Some(command) = self.waiting_jobs.take(ticket) else {
            return;
        };
        let invocation = &command.invocation;
        match result {
            Err(error) => {
                let lead = if error.kind.is_no_answer() {
                    "the master does not answer: "
                } else {
                    ""
                };
                self.reply(&invocation.place, &[format!("{lead}{error}")]);
            }
            Ok(result) => {
                let base = lock(&self.handles.model).identity.url.clone();
                let lines = text::job_result(&result, &base);
                self.reply(&invocation.place, &lines);
                if let JobResult::Forced(forced) = result {
                    self.watch_forced(invocation, &forced);
                }
                self.save_soon(now);
            }
        }
    }

    /// Whoever has forced a build hears of its end.
    fn watch_forced(&mut self, invocation: &Invocation, forced: &Forced) {
        let request = match forced.state {
            ForcedState::Cancelled | ForcedState::Merged(None) => return,
            ForcedState::Merged(Some(into)) => into,
            ForcedState::Started(_) | ForcedState::Queued(_) | ForcedState::Unknown(_) => {
                forced.request
            }
        };
        self.add_watch(Watch {
            target: invocation.place.clone(),
            what: Watched::Request(request),
            mask: invocation.mask.clone(),
        });
    }
}

/// One line for each attempt.
fn log_attempt(invocation: &Invocation, decision: &str) {
    let account = match &invocation.account {
        Account::LoggedIn(account) => format!("account {}", sanitize(account)),
        Account::None => "no account".to_owned(),
        Account::Unknown => "account not checked".to_owned(),
    };
    let place = if invocation.place.is_channel() {
        invocation.place.as_str()
    } else {
        "private"
    };
    let mask = &invocation.mask;
    let command = commands::shown(&invocation.text);
    log!(
        Info,
        "{mask} ({account}) in {place}: `{command}`: {decision}"
    );
}
