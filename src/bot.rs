//! The hall: one loop on one thread that takes in events, decides, speaks and waits.
//!
//! This thread owns the connection, the session, the outbox and the state file. It never asks the
//! master, never waits for another thread, and sleeps while there is nothing to do.

use crate::command::{self, Account, Answer, Ask, Effect, Verdict, View};
use crate::config::{Config, Irc};
use crate::irc::outbox::{Outbox, Route};
use crate::irc::session::{Action, Session};
use crate::irc::wire::{Line, LineBuffer, Message, is_channel, text_budget};
use crate::log::unix_now;
use crate::master::poller::{Heard, lock};
use crate::master::worker::Job;
use crate::net::{self, Link, Stream};
use crate::status::{Events, News, Settings, Status, Target, Watch};
use crate::store::{Announcement, State};
use crate::text;
use native_tls::TlsConnector;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// WHOIS has so long to prove who someone is.
const PROOF: Duration = Duration::from_secs(10);
/// After a signal to stop, what waits has so long to be said.
const FAREWELL: Duration = Duration::from_secs(3);
/// A state file that cannot be written is tried again after so long.
const SAVE_AGAIN: Duration = Duration::from_secs(60);
/// Commands that wait for a proof or for the master; more are "busy".
const WAITING: usize = 32;

/// What other threads bring.
pub enum Event {
    /// From the reader of connection number so-and-so.
    Link(u64, Link),
    Heard(Heard),
    /// The worker's reply for a ticket, and a build request whose end is to be told there.
    Done(u64, Vec<String>, Option<u64>),
    Stop,
    Reload,
}

/// Why the bot ends, with the exit code.
#[derive(Debug)]
pub struct Failure(pub u8, pub String);

pub struct Bot {
    config: Config,
    irc: Irc,
    tls: Option<TlsConnector>,
    status: Arc<Mutex<Status>>,
    session: Session,
    outbox: Outbox,
    stream: Option<Stream>,
    /// The number of the connection; events of earlier ones are stale.
    link: u64,
    lines: LineBuffer,
    /// What TLS could not take yet.
    unsent: Vec<u8>,
    events: SyncSender<Event>,
    jobs: SyncSender<(u64, Job)>,
    /// Commands whose job is under way, by ticket.
    asked: BTreeMap<u64, Ask>,
    ticket: u64,
    /// Commands that wait for their asker's account.
    unproved: Vec<(Ask, Instant)>,
    state: State,
    dirty: Option<Instant>,
    /// The last announcement after which we sent a PING.
    pinged: u64,
    stopping: Option<Instant>,
    reload: Box<dyn Fn() -> Result<Config, String>>,
}

impl Bot {
    pub fn new(
        config: Config,
        status: Arc<Mutex<Status>>,
        state: State,
        events: SyncSender<Event>,
        jobs: SyncSender<(u64, Job)>,
        reload: Box<dyn Fn() -> Result<Config, String>>,
    ) -> Result<Bot, Failure> {
        let now = Instant::now();
        let irc = config.irc.clone().ok_or(Failure(78, "a section [irc] is needed to run".into()))?;
        let tls =
            irc.use_ssl.then(|| net::connector(&irc.tls)).transpose().map_err(|e| Failure(78, format!("[irc] {e}")))?;
        let seed = unix_now() as u64 ^ u64::from(std::process::id()) << 32;
        let mut bot = Bot {
            session: Session::new(irc.clone(), now, seed),
            outbox: Outbox::new(now),
            stream: None,
            link: 0,
            lines: LineBuffer::default(),
            unsent: Vec::new(),
            asked: BTreeMap::new(),
            ticket: 0,
            unproved: Vec::new(),
            dirty: None,
            pinged: 0,
            stopping: None,
            config,
            irc,
            tls,
            status,
            events,
            jobs,
            state,
            reload,
        };
        bot.restore(now);
        bot.dirty = Some(now);
        bot.save(now).map_err(|e| Failure(74, e))?;
        Ok(bot)
    }

    /// Takes in an event, decides, speaks, waits; until asked to stop or refused for good.
    pub fn run(mut self, events: &Receiver<Event>) -> Result<(), Failure> {
        loop {
            let now = Instant::now();
            self.session.tick(now);
            self.act(now)?;
            self.speak(now);
            if let Err(e) = self.save(now) {
                log!(Error, "{e}; trying again every {} s", SAVE_AGAIN.as_secs());
            }
            if self.stopping.is_some_and(|at| now >= at || self.outbox.is_idle() || self.stream.is_none()) {
                self.send(&Line::new("QUIT", &[], Some("until next time")), now);
                return Ok(());
            }
            match events.recv_timeout(self.deadline().saturating_duration_since(Instant::now())) {
                Ok(event) => self.take(event, Instant::now()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Err(Failure(70, "all threads are gone".into())),
            }
        }
    }

    fn deadline(&self) -> Instant {
        let proofs = self.unproved.iter().map(|p| p.1);
        let said = self.outbox.deadline(&|t| self.route(t));
        let others = proofs.chain(said).chain(self.stopping).chain(self.dirty);
        others.fold(self.session.deadline(), Instant::min)
    }

    fn take(&mut self, event: Event, now: Instant) {
        match event {
            Event::Link(id, _) if id != self.link => {}
            Event::Link(_, Link::Up(stream)) => {
                (self.stream, self.lines) = (Some(stream), LineBuffer::default());
                self.unsent.clear();
                self.session.up(now);
                self.bytes(&[], now);
            }
            Event::Link(_, Link::Bytes(bytes)) => self.bytes(&bytes, now),
            Event::Link(_, Link::Down(why)) => self.down(&why, now),
            Event::Heard(Heard::News { news, mark, open }) => {
                news.iter().for_each(|n| self.tell(n));
                (self.state.mark, self.state.open) = (Some(mark), open);
                self.dirty = Some(now);
            }
            Event::Heard(Heard::Learned(ticket)) => {
                if let Some(ask) = self.asked.remove(&ticket) {
                    self.answer(&ask, true, now);
                }
            }
            Event::Done(ticket, lines, request) => {
                if let Some(ask) = self.asked.remove(&ticket) {
                    self.reply(&ask.place, &lines);
                    let watch = request.map(|id| Watch { target: ask.place, id, request: true });
                    let over = watch.and_then(|w| lock(&self.status).watch(w, unix_now()));
                    over.iter().for_each(|news| self.tell(news));
                    self.dirty = Some(now);
                }
            }
            Event::Stop => self.stopping = Some(now + FAREWELL),
            Event::Reload => match (self.reload)() {
                Ok(config) => self.reconfigure(config, now),
                Err(why) => {
                    why.lines().for_each(|line| log!(Error, "{line}"));
                    log!(Error, "the old configuration stays");
                }
            },
        }
    }

    fn bytes(&mut self, bytes: &[u8], now: Instant) {
        let Some(stream) = &mut self.stream else { return };
        let text = match stream.feed(bytes) {
            Ok(text) => text,
            Err(e) => return self.down(&format!("connection: {e}"), now),
        };
        for line in self.lines.feed(&text) {
            match line {
                Ok(line) => {
                    let Some(message) = Message::parse(&line) else { continue };
                    log!(Debug, "<< {}", message.shown());
                    self.session.message(&message, now);
                }
                Err(_) => log!(Warning, "IRC: dropped a line that was too long"),
            }
        }
    }

    fn down(&mut self, why: &str, now: Instant) {
        // Dropping the stream ends its reader; what that still says is stale.
        self.stream = None;
        self.link += 1;
        self.outbox.lost(now);
        self.session.down(why, now);
    }

    /// Does what the session wants.
    fn act(&mut self, now: Instant) -> Result<(), Failure> {
        loop {
            let actions = self.session.actions();
            if actions.is_empty() {
                break;
            }
            for action in actions {
                match action {
                    Action::Connect => {
                        self.link += 1;
                        let (id, events) = (self.link, self.events.clone());
                        let Irc { host, port, .. } = &self.irc;
                        log!(Info, "IRC: connecting to {host}:{port}");
                        let emit = move |link| events.send(Event::Link(id, link)).is_ok();
                        net::open(host.clone(), *port, self.tls.clone(), emit);
                    }
                    Action::Close(why) => self.down(&why, now),
                    Action::Send(line) => self.send(&line, now),
                    Action::Command(ask) => self.command(ask, now),
                    Action::Notice(nick, text) => {
                        drop(self.outbox.reply(&nick, &[text], &Route { budget: 400, notice: true }))
                    }
                    Action::Pong(token) => {
                        let number = token.strip_prefix("told-").and_then(|n| n.parse().ok());
                        if number.is_some_and(|n| self.outbox.confirm(n)) {
                            self.dirty = Some(now);
                        }
                    }
                    Action::Account { nick, mask, account } => self.proved(&nick, &mask, &account, now),
                    Action::Fatal(why) => return Err(Failure(78, format!("IRC: {why}"))),
                }
            }
        }
        let late: Vec<String> = self.unproved.iter().filter(|p| p.1 <= now).map(|p| p.0.nick.clone()).collect();
        late.iter().for_each(|nick| self.proved(nick, "", &Account::None, now));
        Ok(())
    }

    /// Sends what may be sent now, and asks the server whether it has arrived.
    fn speak(&mut self, now: Instant) {
        let oldest = unix_now() - self.config.catch_up.as_secs() as i64;
        loop {
            if !self.unsent.is_empty() && !self.write(now) {
                return;
            }
            let (session, irc) = (&self.session, &self.irc);
            let Some(line) = self.outbox.next(now, oldest, &|t| route(session, irc, t)) else { break };
            log!(Debug, ">> {}", line.shown());
            self.unsent = line.bytes();
        }
        if let Some(last) =
            self.outbox.unconfirmed().filter(|&n| n > self.pinged && self.outbox.deadline(&|t| self.route(t)).is_none())
        {
            self.pinged = last;
            self.send(&Line::new("PING", &[], Some(&format!("told-{last}"))), now);
        }
    }

    fn send(&mut self, line: &Line, now: Instant) {
        log!(Debug, ">> {}", line.shown());
        self.outbox.charge(now, line.bytes().len());
        self.unsent.extend(line.bytes());
        self.write(now);
    }

    /// Writes what is unsent; false if some of it has to wait.
    fn write(&mut self, now: Instant) -> bool {
        while let (Some(stream), false) = (&mut self.stream, self.unsent.is_empty()) {
            match stream.write(&self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                // TLS wants to read first: the same bytes again after the next event.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) => self.down(&format!("writing: {e}"), now),
            }
        }
        self.unsent.clear();
        true
    }

    fn route(&self, target: &str) -> Option<Route> {
        route(&self.session, &self.irc, target)
    }

    fn reply(&mut self, place: &str, lines: &[String]) {
        let Some(route) = self.route(place) else { return };
        if !self.outbox.reply(place, lines, &route) {
            log!(Warning, "{place}: too much waits to be said there, not answering");
        }
    }

    /// Someone has asked something: may they?
    fn command(&mut self, ask: Ask, now: Instant) {
        let ask = Ask { place: self.spelled(&ask.place), ..ask };
        if !self.outbox.takes(&ask.place) {
            return log!(Debug, "{}: too much waits to be said there, not answering", ask.place);
        }
        let (name, rest) = command::name(&ask.text);
        let verdict = command::may(&self.config.authorization, &name, &ask, self.session.mapping());
        // The key of a channel is nobody else's business.
        let shown = if name == "join" { rest.split(' ').next().unwrap_or("") } else { rest };
        log!(Info, "{} ({:?}) in {}: {name} {}: {verdict:?}", ask.mask, ask.account, ask.place, text::clean(shown));
        match verdict {
            Verdict::Yes => self.answer(&ask, false, now),
            Verdict::No => self.reply(&ask.place, &[format!("sorry, {}, `{name}` is not for you", ask.nick)]),
            Verdict::NeedsAccount if self.unproved.len() >= WAITING => {
                self.reply(&ask.place, &["busy, try again".into()])
            }
            Verdict::NeedsAccount => {
                self.session.whois(&ask.nick, &ask.mask);
                self.unproved.push((ask, now + PROOF));
            }
        }
    }

    /// A target as we spell it: names that the server takes for one are one.
    fn spelled(&self, name: &str) -> String {
        let mapping = self.session.mapping();
        let known = lock(&self.status).targets.iter().find(|t| mapping.same(&t.name, name)).map(|t| t.name.clone());
        known.unwrap_or_else(|| self.session.spelled(name))
    }

    fn proved(&mut self, nick: &str, mask: &str, account: &Account, now: Instant) {
        let mapping = self.session.mapping();
        let (theirs, others) =
            std::mem::take(&mut self.unproved).into_iter().partition(|p| mapping.same(&p.0.nick, nick));
        self.unproved = others;
        let theirs: Vec<(Ask, Instant)> = theirs;
        for (ask, _) in theirs {
            // Someone else may have had the nick a moment ago: what was proved is not theirs.
            let account = if ask.mask == mask { account.clone() } else { Account::None };
            self.command(Ask { account, ..ask }, now);
        }
    }

    fn answer(&mut self, ask: &Ask, again: bool, now: Instant) {
        let settings = self.settings(&ask.place);
        let answer = {
            let status = lock(&self.status);
            let view = View { status: &status, settings: &settings, now: unix_now(), again, nick: self.session.nick() };
            command::run(ask, &view)
        };
        match answer {
            Answer::Say(lines, effect) => {
                // Farewell first: there is no speaking in a channel that we have left.
                self.reply(&ask.place, &lines);
                effect.into_iter().for_each(|e| self.effect(ask, e, now));
            }
            Answer::List { head, items } => self.reply(&ask.place, &[format!("{head}: {}", items.join(", "))]),
            Answer::Wrong(why) => self.reply(&ask.place, &[why]),
            Answer::First(job) => {
                self.ticket += 1;
                match self.asked.len() < WAITING && self.jobs.try_send((self.ticket, job)).is_ok() {
                    true => drop(self.asked.insert(self.ticket, ask.clone())),
                    false => self.reply(&ask.place, &["busy, try again".into()]),
                }
            }
        }
    }

    fn effect(&mut self, ask: &Ask, effect: Effect, now: Instant) {
        let place = ask.place.clone();
        self.dirty = Some(now);
        match effect {
            Effect::Notify(events) => {
                self.state.events.insert(place.clone(), events);
                self.target(&place, |t| t.settings.events = events);
            }
            Effect::MuteUntil(until) => {
                self.state.muted.insert(place.clone(), until);
                self.target(&place, |t| t.muted_until = until);
            }
            Effect::Watch(builds) => {
                let mut status = lock(&self.status);
                let watches = builds.into_iter().map(|id| Watch { target: place.clone(), id, request: false });
                let over: Vec<News> = watches.filter_map(|w| status.watch(w, unix_now())).collect();
                drop(status);
                over.iter().for_each(|news| self.tell(news));
            }
            Effect::Join(channel, key) => {
                let channel = self.spelled(&channel);
                self.state.left.remove(&channel);
                if !self.irc.channels.iter().any(|c| c.name == channel) {
                    self.state.joined.insert(channel.clone(), key.clone());
                }
                self.session.join(&channel, &key, now);
                self.target(&channel, |_| {});
            }
            Effect::Leave(channel) => {
                let channel = self.spelled(&channel);
                self.state.joined.remove(&channel);
                self.state.left.insert(channel.clone());
                self.session.leave(&channel, &format!("leaving, as {} asks", ask.nick));
                self.outbox.forget(&channel);
                lock(&self.status).targets.retain(|t| t.name != channel);
            }
        }
    }

    /// Changes a target, which may be new.
    fn target(&self, name: &str, change: impl FnOnce(&mut Target)) {
        let fresh = Target { name: name.to_owned(), settings: configured(&self.irc, name), muted_until: 0 };
        let targets = &mut lock(&self.status).targets;
        let at = targets.iter().position(|t| t.name == name).unwrap_or_else(|| {
            targets.push(fresh);
            targets.len() - 1
        });
        change(&mut targets[at]);
    }

    /// How a place wants its lines and what it hears.
    fn settings(&self, place: &str) -> Settings {
        let known = lock(&self.status).targets.iter().find(|t| t.name == place).map(|t| t.settings.clone());
        known.unwrap_or_else(|| configured(&self.irc, place))
    }

    fn tell(&mut self, news: &News) {
        let base = lock(&self.status).url.clone();
        for target in &news.targets {
            let text = text::announcement(news, &self.settings(target), &base);
            let at = news.build.complete_at.map_or_else(unix_now, |t| t as i64);
            let (target, label, outcome) = (target.clone(), text::label(news), news.build.outcome());
            self.outbox.announce(Announcement { target, at, outcome, label, text });
        }
    }

    /// Puts targets, channels and what was remembered in their places.
    fn restore(&mut self, now: Instant) {
        let State { events, muted, joined, left, watches, pending, mark, open, .. } = self.state.clone();
        let mut names: BTreeSet<String> = events.into_keys().chain(muted.into_keys()).collect();
        names.extend(self.irc.channels.iter().map(|c| c.name.clone()));
        names.extend(self.irc.pm_to_nicks.iter().cloned().chain(joined.keys().cloned()));
        names.retain(|n| !left.contains(n));
        for name in names {
            let events = self.state.events.get(&name).copied();
            let muted = self.state.muted.get(&name).copied();
            self.target(&name, |t| {
                t.settings.events = events.unwrap_or(t.settings.events);
                t.muted_until = muted.unwrap_or(0);
            });
        }
        joined.iter().for_each(|(channel, key)| self.session.join(channel, key, now));
        left.iter().for_each(|channel| self.session.leave(channel, ""));
        pending.into_iter().for_each(|p| self.outbox.announce(p));
        let mut status = lock(&self.status);
        status.mark = mark;
        status.watches.extend(watches);
        status.reopen(&open);
    }

    /// Takes over a configuration that was read again.
    fn reconfigure(&mut self, config: Config, now: Instant) {
        let Some(irc) = config.irc.clone() else { return log!(Error, "[irc] is gone; the old configuration stays") };
        let link = |c: &Irc| Irc {
            channels: Vec::new(),
            pm_to_nicks: Vec::new(),
            defaults: self.irc.defaults.clone(),
            ..c.clone()
        };
        if link(&irc) != link(&self.irc)
            || config.buildbot != self.config.buildbot
            || config.state_file != self.config.state_file
        {
            log!(Warning, "changes of the connections or of state_file need a restart; the rest takes effect now");
        }
        let has = |irc: &Irc, name: &str| irc.channels.iter().any(|c| c.name == name);
        let gone: Vec<String> = self.irc.channels.iter().map(|c| c.name.clone()).filter(|n| !has(&irc, n)).collect();
        gone.iter().for_each(|name| self.session.leave(name, ""));
        lock(&self.status).targets.retain(|t| !gone.contains(&t.name));
        for channel in &irc.channels {
            self.session.join(&channel.name, channel.key.as_ref().map_or("", |k| &k.0), now);
            self.state.left.remove(&channel.name);
            // What was said by `notify` gives way to what the file says now.
            self.state.events.remove(&channel.name);
        }
        (self.irc, self.config) = (irc, config);
        let names: Vec<String> = lock(&self.status).targets.iter().map(|t| t.name.clone()).collect();
        let channels = self.irc.channels.iter().map(|c| c.name.clone());
        for name in names.into_iter().chain(channels).collect::<BTreeSet<_>>() {
            let settings = configured(&self.irc, &name);
            let events = self.state.events.get(&name).copied().unwrap_or(settings.events);
            self.target(&name, |t| t.settings = Settings { events, ..settings });
        }
        self.dirty = Some(now);
        log!(Info, "configuration read again");
    }

    /// Writes the state file, if there is one and something has changed.
    fn save(&mut self, now: Instant) -> Result<(), String> {
        if self.dirty.is_none_or(|at| at > now) {
            return Ok(());
        }
        self.dirty = None;
        let Some(path) = self.config.state_file.clone() else { return Ok(()) };
        self.state.pending = self.outbox.pending();
        self.state.watches = lock(&self.status).watches.clone();
        self.state.save(&path).inspect_err(|_| self.dirty = Some(now + SAVE_AGAIN))
    }
}

/// How a target can be reached: in channels that we are in, and anyone in private.
fn route(session: &Session, irc: &Irc, target: &str) -> Option<Route> {
    let notice = is_channel(target) && configured(irc, target).notice;
    session.reaches(target).then(|| Route { budget: text_budget(target, session.source_length()), notice })
}

/// What the configuration says of a target: its section, or the defaults. A person hears nothing
/// until they ask, or are named in `pm_to_nicks`.
fn configured(irc: &Irc, name: &str) -> Settings {
    let section = irc.channels.iter().find(|c| c.name.eq_ignore_ascii_case(name));
    let settings = section.map_or(&irc.defaults, |c| &c.settings).clone();
    match is_channel(name) || irc.pm_to_nicks.iter().any(|n| n.eq_ignore_ascii_case(name)) {
        true => settings,
        false => Settings { events: Events::default(), ..settings },
    }
}
