//! The hall: one loop on one thread that takes in events, decides, speaks and waits.
//!
//! This thread owns the connection, the session, the outbox and the state file. It never asks the
//! master, never waits for another thread, and sleeps while there is nothing to do.

use crate::command::{self, Account, Answer, Ask, Effect, Verdict, View};
use crate::config::{Config, Irc};
use crate::irc::outbox::{CHANNEL_LINES, Outbox, Route};
use crate::irc::session::{Action, Session};
use crate::irc::wire::{Line, LineBuffer, is_channel, text_budget};
use crate::log::unix_now;
use crate::master::poller::{Heard, lock};
use crate::master::worker::Job;
use crate::net::{self, Link, Stream};
use crate::status::{Events, News, Settings, Status, Target, Watch};
use crate::store::{Announcement, State};
use crate::supervisor::Supervisor;
use crate::text;
use native_tls::TlsConnector;
use std::collections::BTreeSet;
use std::io::{self, Write};
use std::mem::take;
use std::net::Shutdown;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// After a signal to stop, what waits has so long to be said.
const FAREWELL: Duration = Duration::from_secs(3);
/// Bytes of lines that are handed to the socket at once, if they wait.
const TOGETHER: usize = 4096;
/// Changes are written down together, so long after the first: a crash meanwhile repeats a line or forgets a command.
const SAVE_SOON: Duration = Duration::from_millis(50);
/// A state file that cannot be written is tried again after so long.
const SAVE_AGAIN: Duration = Duration::from_secs(60);

/// What other threads bring.
pub enum Event {
    /// From the reader of connection number so-and-so.
    Link(u64, Link),
    Heard(Heard),
    /// The worker's reply to a command, and a build request whose end is to be told there.
    Done(Ask, Vec<String>, Option<u64>),
    Stop,
    Reload,
}

/// Why the bot ends, with the exit code.
#[derive(Debug)]
pub struct Failure(pub u8, pub String);

/// What ties the bot to the rest of the program.
pub struct Ties {
    pub status: Arc<Mutex<Status>>,
    /// For the readers of connections.
    pub events: SyncSender<Event>,
    /// What is asked of the master, and what it is told to do.
    pub questions: SyncSender<(Ask, Job)>,
    pub orders: SyncSender<(Ask, Job)>,
    pub reload: Box<dyn Fn() -> Result<Config, String>>,
}

/// A connection, and what is forgotten with it.
#[derive(Default)]
struct Wire {
    /// Events of connections with other numbers are stale.
    number: u64,
    stream: Option<Box<dyn Stream>>,
    lines: LineBuffer,
    /// What TLS could not take yet.
    unsent: Vec<u8>,
    /// The last announcement after which we sent a PING.
    pinged: u64,
}

pub struct Bot {
    config: Config,
    irc: Irc,
    tls: Option<TlsConnector>,
    ties: Ties,
    session: Session,
    outbox: Outbox,
    wire: Wire,
    state: State,
    dirty: Option<Instant>,
    stopping: Option<Instant>,
    supervisor: Supervisor,
}

impl Bot {
    pub fn new(config: Config, state: State, ties: Ties) -> Result<Bot, Failure> {
        let now = Instant::now();
        let irc = config
            .irc
            .clone()
            .ok_or(Failure(78, "a section [irc] is needed to run".into()))?;
        let tls = irc.use_ssl.then(|| net::connector(&irc.tls)).transpose();
        let tls = tls.map_err(|e| Failure(78, format!("[irc] {e}")))?;
        let seed = unix_now() as u64 ^ u64::from(std::process::id()) << 32;
        let (session, outbox, wire) = (
            Session::new(irc.clone(), now, seed),
            Outbox::new(now, irc.pacing),
            Wire::default(),
        );
        let (dirty, stopping) = (None, None);
        let supervisor = Supervisor::new(now);
        let mut bot = Bot {
            config,
            irc,
            tls,
            ties,
            session,
            outbox,
            wire,
            state,
            dirty,
            stopping,
            supervisor,
        };
        bot.state
            .joined
            .iter()
            .for_each(|(channel, key)| bot.session.join(channel, key, now));
        bot.state
            .left
            .iter()
            .for_each(|channel| bot.session.leave(channel, ""));
        let mut status = lock(&bot.ties.status);
        status.watches = bot.state.watches.clone();
        status.resume(bot.state.known.clone());
        drop(status);
        bot.settle();
        for pending in take(&mut bot.state.pending) {
            let target = bot.spelled(&pending.target);
            if !is_channel(&target) || bot.is_target(&target) {
                bot.outbox.announce(Announcement { target, ..pending });
            }
        }
        bot.try_save().map_err(|e| Failure(74, e))?;
        Ok(bot)
    }

    /// Takes in an event, decides, speaks, waits; until asked to stop or refused for good.
    pub fn run(mut self, events: &Receiver<Event>) -> Result<(), Failure> {
        self.supervisor.tell("READY=1");
        loop {
            let now = Instant::now();
            self.session.tick(now);
            self.act(now)?;
            self.speak(now);
            self.save(now);
            self.supervisor
                .status(|| summary(&self.session, &lock(&self.ties.status)));
            self.supervisor.feed(
                lock(&self.ties.status)
                    .poller_until
                    .is_none_or(|until| now < until),
                now,
            );
            let to_come = !self.session.is_online() && !self.outbox.is_idle();
            let all_said =
                !to_come && self.waits().is_none() && self.outbox.unconfirmed().is_none();
            if self
                .stopping
                .is_some_and(|at| now >= at || all_said || self.wire.stream.is_none())
            {
                self.send(&Line::new("QUIT", &[], Some("until next time")), now);
                self.save(now + SAVE_AGAIN);
                return Ok(());
            }
            // It never ends but in time: we hold a sender ourselves.
            if let Ok(event) =
                events.recv_timeout(self.deadline().saturating_duration_since(Instant::now()))
            {
                self.take(event, Instant::now());
            }
        }
    }

    fn deadline(&self) -> Instant {
        // While TLS holds a line back, only an event helps.
        let said = self.waits().filter(|_| self.wire.unsent.is_empty());
        let others = said
            .into_iter()
            .chain(self.stopping)
            .chain(self.dirty)
            .chain(self.supervisor.deadline());
        others.fold(self.session.deadline(), Instant::min)
    }

    /// When the next line that waits may go, if one can.
    fn waits(&self) -> Option<Instant> {
        self.outbox
            .deadline(&|target| route(&self.session, &self.irc, target))
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Link(number, _) if number != self.wire.number => {}
            Event::Link(number, Link::Up(stream)) => {
                self.wire = Wire {
                    number,
                    stream: Some(stream),
                    ..Wire::default()
                };
                self.session.up(now);
                self.bytes(&[], now);
            }
            Event::Link(_, Link::Bytes(bytes)) => self.bytes(&bytes, now),
            Event::Link(_, Link::Down(why)) => self.down(&why, now),
            Event::Heard(Heard::News(news, known)) => {
                self.tell(&news);
                self.state.known = known;
                self.save_soon(now);
            }
            Event::Heard(Heard::Learned(ask)) => self.answer(&ask, true, now),
            Event::Done(ask, lines, request) => {
                self.reply(&ask.place, &lines);
                let Ask {
                    place: target,
                    mask,
                    ..
                } = ask;
                self.watch(request.map(|request| Watch {
                    target,
                    request,
                    mask,
                    told: false,
                }));
                self.save_soon(now);
            }
            Event::Stop => {
                self.supervisor.tell("STOPPING=1");
                self.stopping = Some(now + FAREWELL);
            }
            Event::Reload => {
                self.supervisor.tell("RELOADING=1");
                match (self.ties.reload)() {
                    Ok(config) => self.reconfigure(config, now),
                    Err(why) => {
                        why.lines().for_each(|line| log!(Error, "{line}"));
                        log!(Error, "the old configuration stays");
                    }
                }
                self.supervisor.tell("READY=1");
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8], now: Instant) {
        let Some(stream) = &mut self.wire.stream else {
            return;
        };
        let text = match stream.feed(bytes) {
            Ok(text) => text,
            Err(e) => return self.down(&format!("connection: {e}"), now),
        };
        for message in self.wire.lines.feed(&text) {
            log!(
                Debug,
                "<< {}",
                self.session.without_password(&message.shown())
            );
            self.session.message(&message, now);
        }
    }

    fn down(&mut self, why: &str, now: Instant) {
        // Dropping the stream ends its reader; what that still says is stale.
        self.wire = Wire {
            number: self.wire.number + 1,
            ..Wire::default()
        };
        self.outbox.lost(now);
        self.session.down(why, now);
    }

    /// Does what the session wants.
    fn act(&mut self, now: Instant) -> Result<(), Failure> {
        let mut actions = self.session.actions();
        while !actions.is_empty() {
            for action in actions {
                match action {
                    Action::Connect => {
                        let (number, events) = (self.wire.number, self.ties.events.clone());
                        let Irc { host, port, .. } = &self.irc;
                        log!(Info, "IRC: connecting to {host}:{port}");
                        let emit = move |link| events.send(Event::Link(number, link)).is_ok();
                        net::open(host.clone(), *port, self.tls.clone(), emit);
                    }
                    Action::Close(why) => self.down(&why, now),
                    Action::Send(line) => self.send(&line, now),
                    Action::Ask(place, line) => self.outbox.ask(&place, line),
                    Action::Command(ask) => self.command(ask, now),
                    Action::Notice(nick, text) => {
                        self.outbox.reply(
                            &nick,
                            &[text],
                            0,
                            &Route {
                                budget: 400,
                                notice: true,
                            },
                        );
                    }
                    Action::Pong(token) => {
                        let number = token.strip_prefix("told-").and_then(|n| n.parse().ok());
                        if number.is_some_and(|n| self.outbox.confirm(n)) {
                            self.save_soon(now);
                        }
                    }
                    Action::Unheard(target) => {
                        let target = self.spelled(&target);
                        // Who has gone and wanted to hear one thing only may be somebody else next time.
                        if !is_channel(&target) && !self.is_target(&target) {
                            self.outbox.forget(&target);
                        } else if self.outbox.unheard(&target) {
                            self.session.avoid(&target, now);
                        }
                    }
                    Action::Fatal(why) => return Err(Failure(78, format!("IRC: {why}"))),
                }
            }
            actions = self.session.actions();
        }
        Ok(())
    }

    /// Sends what may be sent now, and asks the server whether it has arrived.
    fn speak(&mut self, now: Instant) {
        let oldest = unix_now() - self.config.catch_up.as_secs() as i64;
        // Several lines at once, if several may go.
        while self.write() {
            while self.wire.unsent.len() < TOGETHER
                && let Some(line) = self.outbox.next(now, oldest, &|target| {
                    route(&self.session, &self.irc, target)
                })
            {
                log!(Debug, ">> {}", line.shown());
                self.wire.unsent.extend(line.bytes());
            }
            if self.wire.unsent.is_empty() {
                break;
            }
        }
        let waits = self.waits().is_some();
        // After a burst, now and then in a long one, and before a farewell.
        let due = |n: &u64| {
            *n > self.wire.pinged
                && (!waits || *n > self.wire.pinged + 1 || self.stopping.is_some())
        };
        if let Some(last) = self.outbox.unconfirmed().filter(due) {
            self.wire.pinged = last;
            self.send(&Line::new("PING", &[], Some(&format!("told-{last}"))), now);
        }
    }

    fn send(&mut self, line: &Line, now: Instant) {
        if self.wire.stream.is_none() {
            return;
        }
        log!(Debug, ">> {}", line.shown());
        // Before it has let us in, a server counts otherwise.
        if self.session.is_online() {
            self.outbox.charge(now, line.bytes().len());
        }
        self.wire.unsent.extend(line.bytes());
        self.write();
    }

    /// Writes what is unsent; false if some of it has to wait.
    fn write(&mut self) -> bool {
        while let (Some(stream), false) = (&mut self.wire.stream, self.wire.unsent.is_empty()) {
            match stream.write(&self.wire.unsent) {
                Ok(n) => drop(self.wire.unsent.drain(..n)),
                // TLS wants to read first: the same bytes again after the next event.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                // That was a wait.
                Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                    self.down(&format!("writing: {e}"), Instant::now());
                }
                // It is closed. What the server has said before tells why: the reader brings it, and ends.
                Err(_) => {
                    let _ = stream
                        .socket()
                        .and_then(|socket| socket.shutdown(Shutdown::Both));
                    self.wire.unsent.clear();
                }
            }
        }
        self.wire.unsent.clear();
        true
    }

    fn reply(&mut self, place: &str, lines: &[String]) {
        self.reply_some(place, lines, 0);
    }

    /// Replies with lines, of which there are more.
    fn reply_some(&mut self, place: &str, lines: &[String], more: usize) {
        if let Some(route) = route(&self.session, &self.irc, place) {
            self.outbox.reply(place, lines, more, &route);
        }
    }

    /// Someone has asked something: may they?
    fn command(&mut self, ask: Ask, now: Instant) {
        let ask = Ask {
            place: self.spelled(&ask.place),
            ..ask
        };
        if !self.outbox.takes(&ask.place) {
            return log!(
                Debug,
                "{}: too much waits to be said there, not answering",
                ask.place
            );
        }
        let (name, rest) = command::name(&ask.text);
        // An operator here is nobody in particular in another channel.
        let elsewhere = name == "leave" && !rest.is_empty() && self.spelled(rest) != ask.place;
        let ask = Ask {
            op: ask.op && !elsewhere,
            ..ask.clone()
        };
        let verdict = command::may(
            &self.config.authorization,
            &name,
            &ask,
            self.session.mapping(),
        );
        let own_only = verdict == Verdict::No && name == "stop" && self.has_queued(&ask.mask);
        // Once for each attempt.
        if verdict != Verdict::NeedsAccount {
            let account = match &ask.account {
                Account::Is(account) => format!("account {}", text::clean(account)),
                Account::None => "no account".into(),
                Account::Unknown => "account not asked for".into(),
            };
            let place = if is_channel(&ask.place) {
                &ask.place
            } else {
                "private"
            };
            let decision = match verdict {
                Verdict::Yes => "allowed",
                _ if own_only => "allowed for requests of their own",
                _ => "refused",
            };
            log!(
                Info,
                "{} ({account}) in {place}: `{}`: {decision}",
                ask.mask,
                command::shown(&ask.text)
            );
        }
        match verdict {
            Verdict::NeedsAccount if self.session.prove(ask.clone(), now) => {}
            Verdict::NeedsAccount => self.reply(&ask.place, &["busy, try again".into()]),
            Verdict::No if !own_only => self.reply(&ask.place, &[command::refusal(&ask, &name)]),
            _ => self.answer(&Ask { own_only, ..ask }, false, now),
        }
    }

    /// Whether someone has forced a build that still waits: that they may take back.
    fn has_queued(&self, mask: &str) -> bool {
        let status = lock(&self.ties.status);
        status
            .watches
            .iter()
            .any(|w| w.mask == mask && status.queued.contains_key(&w.request))
    }

    /// A target as we spell it: names that the server takes for one are one.
    fn spelled(&self, name: &str) -> String {
        let mapping = self.session.mapping();
        let known = lock(&self.ties.status)
            .targets
            .iter()
            .find(|t| mapping.same(&t.name, name))
            .map(|t| t.name.clone());
        let section = self
            .irc
            .channels
            .iter()
            .find(|c| mapping.same(&c.name, name))
            .map(|c| c.name.clone());
        known
            .or(section)
            .unwrap_or_else(|| self.session.spelled(name))
    }

    fn is_target(&self, name: &str) -> bool {
        lock(&self.ties.status)
            .targets
            .iter()
            .any(|t| t.name == name)
    }

    fn answer(&mut self, ask: &Ask, again: bool, now: Instant) {
        let (settings, nick) = (self.settings(&ask.place), self.session.nick());
        let status = lock(&self.ties.status);
        let most = if is_channel(&ask.place) {
            CHANNEL_LINES
        } else {
            usize::MAX
        };
        let view = View {
            status: &status,
            settings: &settings,
            now: unix_now(),
            again,
            most,
            nick,
        };
        let answer = command::run(ask, &view).unwrap_or_else(|why| Answer::Say(vec![why], None));
        drop(status);
        match answer {
            Answer::Lines(lines, more) => self.reply_some(&ask.place, &lines, more),
            Answer::Say(lines, effect) => {
                // Farewell first: there is no speaking in a channel that we have left.
                self.reply(&ask.place, &lines);
                effect.into_iter().for_each(|e| self.effect(ask, e, now));
            }
            Answer::List { head, items } if items.is_empty() => self.reply(&ask.place, &[head]),
            Answer::List { head, items } => {
                self.reply(&ask.place, &[format!("{head}: {}", items.join(", "))])
            }
            Answer::First(job) => {
                let order = matches!(job, Job::Force(_) | Job::Stop { .. });
                let jobs = if order {
                    &self.ties.orders
                } else {
                    &self.ties.questions
                };
                if jobs.try_send((ask.clone(), job)).is_err() {
                    self.reply(&ask.place, &["busy, try again".into()]);
                }
            }
        }
    }

    fn effect(&mut self, ask: &Ask, effect: Effect, now: Instant) {
        let place = &ask.place;
        self.save_soon(now);
        match effect {
            Effect::Notify(on) if on == configured(&self.irc, place).events => {
                drop(self.state.events.remove(place))
            }
            Effect::Notify(on) => drop(self.state.events.insert(place.to_owned(), on)),
            Effect::MuteUntil(until) => drop(self.state.muted.insert(place.to_owned(), until)),
            Effect::Watch(requests) => {
                let watch = |request| Watch {
                    target: place.to_owned(),
                    request,
                    ..Watch::default()
                };
                self.watch(requests.into_iter().map(watch));
            }
            Effect::Join(channel, key) => {
                let channel = self.spelled(&channel);
                self.state.left.remove(&channel);
                let section = self.irc.channels.iter().find(|c| c.name == channel);
                let known = section
                    .and_then(|c| c.key.as_ref())
                    .filter(|_| key.is_empty());
                self.session
                    .join(&channel, known.map_or(&key, |k| &k.0), now);
                if section.is_none() {
                    self.state.joined.insert(channel, key);
                }
            }
            Effect::Leave(channel) => {
                let channel = self.spelled(&channel);
                self.forget(&channel, &format!("leaving, as {} asks", ask.nick));
                if self.irc.channels.iter().any(|c| c.name == channel) {
                    self.state.left.insert(channel);
                }
            }
        }
        self.settle();
    }

    /// Leaves a channel, with all that was said about it.
    fn forget(&mut self, channel: &str, why: &str) {
        self.session.leave(channel, why);
        self.outbox.forget(channel);
        self.state.events.remove(channel);
        self.state.muted.remove(channel);
        self.state.joined.remove(channel);
        lock(&self.ties.status)
            .watches
            .retain(|w| w.target != channel);
    }

    /// Watches from now on; an end that nobody there has heard of is told at once.
    fn watch(&mut self, watches: impl IntoIterator<Item = Watch>) {
        for watch in watches {
            let over = lock(&self.ties.status).watch(watch, unix_now());
            self.tell(over.as_slice());
        }
    }

    /// How a place wants its lines and what it hears.
    fn settings(&self, place: &str) -> Settings {
        let settings = configured(&self.irc, place);
        Settings {
            events: self
                .state
                .events
                .get(place)
                .unwrap_or(&settings.events)
                .clone(),
            ..settings
        }
    }

    /// Makes the targets what the configuration and the state file say.
    fn settle(&mut self) {
        self.state.muted.retain(|_, until| *until > unix_now());
        let State {
            events,
            muted,
            joined,
            left,
            ..
        } = &self.state;
        let mut names: BTreeSet<&String> = events
            .keys()
            .chain(muted.keys())
            .chain(joined.keys())
            .collect();
        names.extend(
            self.irc
                .channels
                .iter()
                .map(|c| &c.name)
                .chain(&self.irc.pm_to_nicks),
        );
        let target = |name: &String| {
            let muted_until = *muted.get(name).unwrap_or(&0);
            Target {
                name: name.clone(),
                settings: self.settings(name),
                muted_until,
            }
        };
        // A channel whose section is gone is none of ours, and one in two spellings is the section's.
        let section = |name: &str| {
            self.irc
                .channels
                .iter()
                .find(|c| c.name.eq_ignore_ascii_case(name))
        };
        let none = |name: &str| !is_channel(name) || joined.contains_key(name);
        let ours = |name: &str| section(name).map_or_else(|| none(name), |c| c.name == name);
        let targets = names
            .into_iter()
            .filter(|&name| ours(name) && !left.contains(name))
            .map(target)
            .collect();
        lock(&self.ties.status).targets = targets;
    }

    fn tell(&mut self, news: &[News]) {
        let base = lock(&self.ties.status).url.clone();
        for (news, target) in news
            .iter()
            .flat_map(|n| n.targets.iter().map(move |target| (n, target)))
        {
            let text = text::announcement(news, &self.settings(target), &base);
            let at = news.build.complete_at.map_or_else(unix_now, |t| t as i64);
            let (target, label, outcome) =
                (target.clone(), text::label(news), news.build.outcome());
            self.outbox.announce(Announcement {
                target,
                at,
                outcome,
                label,
                text,
                more: 0,
            });
        }
        lock(&self.ties.status).handed_over(news);
    }

    /// Takes over a configuration that was read again.
    fn reconfigure(&mut self, config: Config, now: Instant) {
        let Some(irc) = config.irc.clone() else {
            return log!(Error, "[irc] is gone; the old configuration stays");
        };
        // What is in use stays in use, so that the next comparison is with that.
        let Irc {
            channels,
            pm_to_nicks,
            defaults,
            ..
        } = irc.clone();
        let irc_in_use = Irc {
            channels,
            pm_to_nicks,
            defaults,
            ..self.irc.clone()
        };
        let Config {
            buildbot,
            state_file,
            ..
        } = self.config.clone();
        let in_use = Config {
            buildbot,
            state_file,
            irc: Some(irc_in_use.clone()),
            ..config.clone()
        };
        if in_use != config {
            log!(
                Warning,
                "changes of the connections or of state_file need a restart; the rest takes effect now"
            );
        }
        let (irc, config) = (irc_in_use, in_use);
        for old in take(&mut self.irc.channels) {
            if irc.channels.iter().all(|new| new.name != old.name) {
                self.forget(&old.name, "");
            }
        }
        for channel in &irc.channels {
            self.session.join(
                &channel.name,
                channel.key.as_ref().map_or("", |k| &k.0),
                now,
            );
            self.state.left.remove(&channel.name);
            // What was said by `notify` gives way to what the file says now.
            self.state.events.remove(&channel.name);
        }
        (self.irc, self.config) = (irc, config);
        self.settle();
        self.save_soon(now);
        log!(Info, "configuration read again");
    }

    fn save_soon(&mut self, now: Instant) {
        let soon = now + SAVE_SOON;
        self.dirty = Some(self.dirty.map_or(soon, |at| at.min(soon)));
    }

    /// Writes what was to be saved by now, and again later if that fails.
    fn save(&mut self, now: Instant) {
        if self.dirty.is_some_and(|at| at <= now) {
            self.dirty = self.try_save().err().map(|e| {
                log!(Error, "{e}; trying again every {} s", SAVE_AGAIN.as_secs());
                now + SAVE_AGAIN
            });
        }
    }

    /// Writes the state file, if there is one.
    fn try_save(&mut self) -> Result<(), String> {
        let Some(path) = &self.config.state_file else {
            return Ok(());
        };
        self.state.pending = self.outbox.pending();
        self.state.watches = lock(&self.ties.status).watches.clone();
        self.state.save(path)
    }
}

/// `#dev, #ops; 42 builders; 3 building`: what a supervisor shows of us.
fn summary(session: &Session, status: &Status) -> String {
    let channels = session.channels().join(", ");
    let place = if channels.is_empty() {
        "in no channel"
    } else {
        &channels
    };
    match (&status.trouble, status.builders.len()) {
        (Some(_), _) => format!("{place}; the master does not answer"),
        (None, n) => format!(
            "{place}; {}; {} building",
            text::count(n, "builder"),
            status.open.len()
        ),
    }
}

/// How a target can be reached: in channels that we are in, and anyone in private.
fn route(session: &Session, irc: &Irc, target: &str) -> Option<Route> {
    let notice = is_channel(target) && section(irc, target).notice;
    session.reaches(target).then(|| Route {
        budget: text_budget(target, session.source_length()),
        notice,
    })
}

fn section<'a>(irc: &'a Irc, name: &str) -> &'a Settings {
    irc.channels
        .iter()
        .find(|c| c.name.eq_ignore_ascii_case(name))
        .map_or(&irc.defaults, |c| &c.settings)
}

/// What the configuration says of a target: its section, or the defaults. A person hears nothing
/// until they ask, or are named in `pm_to_nicks`.
fn configured(irc: &Irc, name: &str) -> Settings {
    let settings = section(irc, name).clone();
    match is_channel(name) || irc.pm_to_nicks.iter().any(|n| n.eq_ignore_ascii_case(name)) {
        true => settings,
        false => Settings {
            events: Events::default(),
            ..settings
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    fn bot(conf: &str, state: State) -> Bot {
        let text = format!("[buildbot]\nurl = http://m/\n[irc]\nhost = h\nnick = bot\n{conf}");
        let config = Config::parse("c", &text, &|_| Err("no".into())).unwrap();
        let (events, questions, orders) = (sync_channel(9).0, sync_channel(9).0, sync_channel(9).0);
        let reload = Box::new(|| Err("no".into()));
        let ties = Ties {
            status: Arc::default(),
            events,
            questions,
            orders,
            reload,
        };
        let mut bot = Bot::new(config, state, ties).unwrap();
        bot.session.tick(Instant::now());
        bot.session.up(Instant::now());
        bot.session.actions();
        hear(
            &mut bot,
            ":s 001 bot :hi\r\n:s 376 bot :x\r\n:bot!u@h JOIN #dev",
        );
        bot
    }

    /// The server says this, and the bot does what follows.
    fn hear(bot: &mut Bot, lines: &str) {
        let now = Instant::now();
        for message in bot.wire.lines.feed(format!("{lines}\r\n").as_bytes()) {
            bot.session.message(&message, now);
        }
        bot.act(now).unwrap();
    }

    /// All that it says, however long that takes.
    fn said(bot: &mut Bot) -> Vec<String> {
        let mut now = Instant::now();
        let mut said = Vec::new();
        while let Some(at) = bot.waits() {
            now = now.max(at);
            said.extend(
                bot.outbox
                    .next(now, 0, &|target| route(&bot.session, &bot.irc, target))
                    .map(|l| l.shown()),
            );
        }
        said
    }

    fn targets(bot: &Bot) -> Vec<String> {
        lock(&bot.ties.status)
            .targets
            .iter()
            .map(|t| t.name.clone())
            .collect()
    }

    fn news(target: &str, text: &str) -> Announcement {
        let (target, text) = (target.to_owned(), text.to_owned());
        Announcement {
            target,
            at: unix_now(),
            outcome: None,
            label: text.clone(),
            text,
            more: 0,
        }
    }

    #[test]
    fn a_channel_in_two_spellings_is_one() {
        let joined = [
            ("#Dev".to_owned(), String::new()),
            ("#ops".to_owned(), String::new()),
        ]
        .into();
        let muted = [("#DEV".to_owned(), i64::MAX)].into();
        let pending = vec![news("#Dev", "app #1"), news("#gone", "app #2")];
        let mut bot = bot(
            "[channel #dev]\n",
            State {
                joined,
                muted,
                pending,
                ..State::default()
            },
        );
        assert_eq!(targets(&bot), ["#dev", "#ops"]);
        assert_eq!(said(&mut bot), ["PRIVMSG #dev :app #1"]);
    }

    #[test]
    fn who_wants_to_hear_nothing_takes_no_place() {
        let mut bot = bot("[channel #dev]\n", State::default());
        for i in 0..500 {
            for text in ["notify on", "notify off", "mute 10m", "unmute"] {
                hear(&mut bot, &format!(":n{i}!u@h PRIVMSG bot :{text}"));
            }
        }
        assert_eq!(targets(&bot), ["#dev"]);
        assert_eq!((bot.state.events.len(), bot.state.muted.len()), (0, 0));
    }

    #[test]
    fn what_nobody_hears_waits_for_those_who_want_it() {
        let mut bot = bot(
            "pm_to_nicks = joe\n[channel #dev]\nuse_colors = yes\n",
            State::default(),
        );
        ["joe", "guest"]
            .iter()
            .for_each(|nick| bot.outbox.announce(news(nick, "app #1")));
        assert_eq!(said(&mut bot).len(), 2);
        hear(
            &mut bot,
            ":s 401 bot Joe :No such nick\r\n:s 401 bot guest :No such nick",
        );
        assert_eq!(bot.outbox.pending(), [news("joe", "app #1")]);
        assert_eq!(said(&mut bot), [""; 0]);
        hear(&mut bot, ":joe!u@h JOIN #dev");
        assert_eq!(said(&mut bot), ["PRIVMSG joe :app #1"]);
        bot.outbox.announce(news("#dev", "app \u{3}04failure\u{f}"));
        assert_eq!(said(&mut bot).len(), 1);
        hear(&mut bot, ":s 404 bot #dev :Cannot send to channel (+c)");
        assert_eq!(said(&mut bot), ["PRIVMSG #dev :app failure"]);
        hear(&mut bot, ":s 404 bot #dev :Cannot send to channel (+m)");
        assert_eq!(said(&mut bot), [""; 0]);
        hear(&mut bot, ":op!u@h MODE #dev +v bot");
        assert_eq!(said(&mut bot), ["PRIVMSG #dev :app failure"]);
    }

    #[test]
    fn what_is_left_is_watched_no_more() {
        let mut bot = bot(
            "[channel #dev]\n[authorization]\nleave = everyone\n",
            State::default(),
        );
        let watch = |target: &str| Watch {
            target: target.into(),
            request: 7,
            ..Watch::default()
        };
        lock(&bot.ties.status).watches = vec![watch("#dev"), watch("joe")];
        hear(&mut bot, ":joe!u@h PRIVMSG #dev :bot: leave");
        assert_eq!(lock(&bot.ties.status).watches, [watch("joe")]);
    }

    #[test]
    fn a_list_of_nothing_has_no_colon() {
        let mut bot = bot("[channel #dev]\n", State::default());
        hear(&mut bot, ":joe!u@h PRIVMSG bot :list workers");
        assert_eq!(said(&mut bot), ["PRIVMSG joe :0 workers"]);
    }
}
