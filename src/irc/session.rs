//! The conversation with an IRC server: registration, CAP, SASL, NickServ, our nick, channels,
//! liveness and back-off.
//!
//! Pure: it takes messages and `now`, and leaves actions and a deadline. The main thread owns it.

use super::wire::{Casemapping, Line, Message, addressed, is_channel};
use crate::command::{Account, Ask};
use crate::config::{Channel, Irc, Sasl};
use crate::text::{base64, clean, plain};
use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::time::{Duration, Instant};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Name lookup, all addresses and the TLS hand-shake.
const CONNECT: Duration = seconds(120);
const REGISTRATION: Duration = seconds(60);
/// SASL, services and the message of the day may each take so long.
const STEP: Duration = seconds(20);
/// First wait before a new connection (a restarted server sees us soon), doubling up to the second;
/// a connection that lasted longer than the third starts anew.
const BACK_OFF: (Duration, Duration, Duration) = (seconds(4), seconds(300), seconds(120));
/// The least wait when the server says that we come too often.
const THROTTLED: Duration = seconds(120);
/// The least wait for what only an operator or time can mend.
const SLOW: Duration = seconds(300);
/// Tries to get our nick back: first, doubling up to the second.
const REGAIN: (Duration, Duration) = (seconds(15), seconds(600));
/// A refused JOIN is tried again after so many seconds, the last for ever.
const REJOIN: [u64; 4] = [30, 60, 120, 300];
/// After so many kicks in a row we wait for an INVITE. A calm hour forgets them.
const KICKS: (u32, Duration) = (5, seconds(3600));
/// Channels and bytes in one JOIN.
const JOINS: (usize, usize) = (10, 400);
/// Bytes of `user@host` until the server has shown us ours: a tilde, and a host of 63.
const UNKNOWN_HOST: usize = 65;

/// What the session wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Connect,
    /// Drop the connection, for this reason.
    Close(String),
    /// Send this at once.
    Send(Line),
    /// Someone talks to us.
    Command(Ask),
    /// Answer this nick in private with a NOTICE (CTCP).
    Notice(String, String),
    /// The server has answered the PING with this token.
    Pong(String),
    /// Who a nick is, after [`Session::whois`].
    Account(String, Account),
    /// No retry mends this.
    Fatal(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting,
    Registering,
    Identifying,
    Online,
}

/// A channel that we are in or want to be in.
#[derive(Debug, Default)]
struct Place {
    name: String,
    key: String,
    joined: Option<Instant>,
    /// When to try next; never, when kicked too often.
    retry: Option<Instant>,
    tries: usize,
    kicks: u32,
    refusal: String,
    /// The PREFIX letters of those who have any, by folded nick.
    ranks: BTreeMap<String, String>,
}

/// What is known of one connection and forgotten with it.
#[derive(Debug, Default)]
struct Link {
    nick: String,
    /// Bytes of our `user@host` as others see it.
    user_host: Option<usize>,
    tried: usize,
    welcomed: bool,
    logged_in: bool,
    offered: Vec<String>,
    caps: BTreeSet<String>,
    mapping: Casemapping,
    /// PREFIX: mode letters and their signs, highest first.
    prefix: (String, String),
    /// CHANMODES: those that always take a parameter, and those that do when set.
    modes: (String, String),
    monitor: bool,
    bot_mode: Option<String>,
    /// A PING is on its way.
    asked: bool,
    /// When to ask for our nick again, and how long to wait then.
    regain: Option<(Instant, Duration)>,
    /// The words to try on NickServ.
    recoveries: &'static [&'static str],
    /// Nick → the `user@host` that it must have, and what is known so far.
    whois: BTreeMap<String, (String, Account)>,
}

/// The session; it outlives connections.
pub struct Session {
    irc: Irc,
    actions: Vec<Action>,
    phase: Phase,
    /// When the phase is over, one way or the other.
    until: Instant,
    heard: Instant,
    back_off: Duration,
    least_wait: Duration,
    random: u64,
    online_once: bool,
    online_since: Option<Instant>,
    link: Link,
    places: Vec<Place>,
}

impl Session {
    /// A session that connects at once.
    pub fn new(irc: Irc, now: Instant, seed: u64) -> Session {
        let (actions, link, places) = (Vec::new(), Link::default(), Vec::new());
        let (until, heard, back_off, least_wait) = (now, now, BACK_OFF.0, Duration::ZERO);
        let (phase, random, online_once, online_since) = (Phase::Waiting, seed | 1, false, None);
        #[rustfmt::skip]
        let mut session = Session {
            irc, actions, phase, until, heard, back_off, least_wait, random, online_once, online_since, link, places,
        };
        for Channel { name, key, .. } in session.irc.channels.clone() {
            session.join(&name, key.as_ref().map_or("", |k| &k.0), now);
        }
        session
    }

    /// What is to be done since the last call.
    pub fn actions(&mut self) -> Vec<Action> {
        take(&mut self.actions)
    }

    /// Our nick, as the server has it.
    pub fn nick(&self) -> &str {
        &self.link.nick
    }

    pub fn mapping(&self) -> Casemapping {
        self.link.mapping
    }

    /// The bytes that the server puts before our lines as their source.
    pub fn source_length(&self) -> usize {
        self.link.nick.len() + 1 + self.link.user_host.unwrap_or(self.irc.username.len() + UNKNOWN_HOST)
    }

    /// Whether lines to this channel or nick can be sent now.
    pub fn reaches(&self, target: &str) -> bool {
        let joined = |p: &Place| p.joined.is_some() && self.link.mapping.same(&p.name, target);
        self.phase == Phase::Online && (!is_channel(target) || self.places.iter().any(joined))
    }

    /// When [`Session::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        if self.phase != Phase::Online {
            return self.until;
        }
        let retries = self.places.iter().filter(|p| p.joined.is_none()).filter_map(|p| p.retry);
        let alive = self.heard + self.irc.ping_timeout * if self.link.asked { 5 } else { 3 } / 5;
        retries.chain(self.link.regain.map(|r| r.0)).fold(alive, Instant::min)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        match self.phase {
            Phase::Online => self.keep_up(now),
            _ if now < self.until => {}
            Phase::Waiting => {
                (self.phase, self.until) = (Phase::Connecting, now + CONNECT);
                self.actions.push(Action::Connect);
            }
            Phase::Connecting => self.close("no connection within two minutes"),
            Phase::Registering if self.link.welcomed => self.identify(now),
            Phase::Registering => self.close("registration took too long (is this a TLS port? use_ssl = yes)"),
            Phase::Identifying => self.online(now),
        }
    }

    fn keep_up(&mut self, now: Instant) {
        let silence = now.saturating_duration_since(self.heard);
        if silence >= self.irc.ping_timeout {
            return self.close("the server has gone silent and does not answer PING");
        }
        if silence >= self.irc.ping_timeout * 3 / 5 && !self.link.asked {
            self.link.asked = true;
            self.send("PING", &[], Some("alive"));
        }
        if let Some((_, wait)) = self.link.regain.filter(|r| r.0 <= now) {
            self.link.regain = Some((now + wait, (wait * 2).min(REGAIN.1)));
            self.want_nick();
        }
        self.join_due(now);
    }

    /// The connection stands.
    pub fn up(&mut self, now: Instant) {
        (self.phase, self.until, self.heard) = (Phase::Registering, now + REGISTRATION, now);
        let prefix = ("ov".into(), "@+".into());
        let modes = ("beIk".into(), "l".into());
        let Irc { nick, username, realname, server_password, .. } = self.irc.clone();
        if let Some(password) = server_password {
            self.actions.push(Action::Send(Line::secret("PASS", &[], Some(&password.0))));
        }
        self.send("CAP", &["LS", "302"], None);
        self.send("NICK", &[&nick], None);
        self.send("USER", &[&username, "0", "*"], Some(&realname));
        self.link = Link { nick, prefix, modes, ..Link::default() };
    }

    /// The connection is gone, or could not be made.
    pub fn down(&mut self, why: &str, now: Instant) {
        if self.online_since.take().is_some_and(|at| now >= at + BACK_OFF.2) {
            self.back_off = BACK_OFF.0;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // Up to a quarter more or less, so that many bots do not come back at once.
        let wait = self.back_off.mul_f64(0.75 + (self.random % 1000) as f64 / 2000.0).max(take(&mut self.least_wait));
        log!(Warning, "IRC: {}; next try in {} s", clean(why), wait.as_secs());
        self.back_off = (self.back_off * 2).min(BACK_OFF.1);
        (self.phase, self.until) = (Phase::Waiting, now + wait);
        let unknown = take(&mut self.link.whois).into_keys();
        self.actions.extend(unknown.map(|nick| Action::Account(nick, Account::None)));
        self.places.iter_mut().for_each(|p| (p.joined, p.tries) = (None, 0));
    }

    /// Wants to be in a channel, from now on.
    pub fn join(&mut self, name: &str, key: &str, now: Instant) {
        match self.place(name) {
            Some(place) => (place.key, place.retry, place.kicks) = (key.to_owned(), Some(now), 0),
            None => {
                let (name, key) = (name.to_owned(), key.to_owned());
                self.places.push(Place { name, key, retry: Some(now), ..Place::default() });
            }
        }
        self.join_due(now);
    }

    /// Wants to be in a channel no more.
    pub fn leave(&mut self, name: &str) {
        if self.reaches(name) {
            self.send("PART", &[name], None);
        }
        let mapping = self.link.mapping;
        self.places.retain(|p| !mapping.same(&p.name, name));
    }

    /// Asks the server who a nick is. What it says counts only for the one with this mask.
    pub fn whois(&mut self, nick: &str, mask: &str) {
        let user_host = mask.split_once('!').map_or("", |(_, rest)| rest).to_owned();
        if self.link.whois.insert(self.fold(nick), (user_host, Account::Unknown)).is_none() {
            self.send("WHOIS", &[nick], None);
        }
    }

    /// Takes in a message. Each arm holds the parameters that it needs; a message with fewer is odd
    /// and falls through.
    pub fn message(&mut self, m: &Message, now: Instant) {
        (self.heard, self.link.asked) = (now, false);
        let params: Vec<&str> = m.params.iter().map(String::as_str).collect();
        match (m.command.as_str(), &params[..]) {
            ("PING", [.., token]) => self.send("PONG", &[], Some(token)),
            ("PONG", [.., token]) => self.actions.push(Action::Pong((*token).to_owned())),
            ("ERROR", [.., why]) => self.on_error(why),
            ("CAP", [_, what, middle @ .., caps]) => self.on_cap(what, middle, caps, now),
            ("AUTHENTICATE", ["+"]) => self.authenticate(),
            ("001", [nick, ..]) => self.on_welcome(nick, now),
            ("005", tokens) => tokens.iter().for_each(|token| self.on_isupport(token)),
            ("376" | "422", _) if self.phase == Phase::Registering => self.identify(now),
            ("396", [_, host, ..]) => self.link.user_host = Some(self.irc.username.len() + 2 + host.len()),
            ("900", _) => self.identified(now),
            ("903" | "907", _) => {
                self.link.logged_in = true;
                self.send("CAP", &["END"], None);
            }
            ("902" | "904" | "905", [.., why]) => self.refuse(&format!("SASL failed: {}", clean(why))),
            ("906", _) => self.no_sasl("it was aborted"),
            ("421", [_, "CAP", ..]) if self.irc.sasl != Sasl::No => self.no_sasl("the server knows no CAP"),
            ("464", [.., why]) => self.refuse(&format!("server_password is refused: {}", clean(why))),
            ("465", [.., why]) => self.close_slowly(&format!("banned from this server: {}", clean(why)), SLOW),
            ("432" | "433" | "436" | "437" | "447", [_, nick, .., why]) if !is_channel(nick) => {
                self.on_nick_refused(&m.command, nick, why);
            }
            (
                "403" | "405" | "437" | "471" | "473" | "474" | "475" | "476" | "477" | "489" | "520",
                [_, channel, .., why],
            ) => {
                self.on_join_refused(&m.command, channel, why, now);
            }
            ("404", [_, channel, .., why]) => log!(Warning, "IRC: cannot speak in {}: {}", clean(channel), clean(why)),
            ("353", [_, _, channel, names]) => self.on_names(channel, names),
            ("731", [.., nicks]) if nicks.split(',').any(|n| self.is_wanted(n)) => self.want_nick(),
            ("311", [_, nick, user, host, ..]) => self.on_whois(nick, |expected, _| {
                // Someone else may have taken the nick since: then none of this counts.
                if *expected != format!("{user}@{host}") {
                    expected.clear();
                }
            }),
            ("330", [_, nick, account, ..]) => self.on_whois(nick, |_, a| *a = Account::Is((*account).to_owned())),
            ("307", [_, nick, ..]) => self.on_whois(nick, |_, account| {
                if *account == Account::Unknown {
                    *account = Account::Is((*nick).to_owned());
                }
            }),
            ("318" | "401", [_, nick, ..]) => self.end_of_whois(nick, true),
            ("PRIVMSG", [target, text]) => self.on_privmsg(m, target, text),
            ("NOTICE", [_, text]) => self.on_notice(m.nick(), text, now),
            ("NICK", [new, ..]) => self.on_nick(m.nick(), new),
            ("JOIN", [channel, ..]) if self.is_me(m.nick()) => self.on_join(m, channel, now),
            ("PART", [channel, ..]) => self.on_gone(m, channel, m.nick(), now),
            ("KICK", [channel, nick, ..]) => self.on_gone(m, channel, nick, now),
            ("QUIT", _) => self.on_quit(m.nick()),
            ("INVITE", [_, channel]) => self.on_invite(channel, now),
            ("MODE", [target, modes, ..]) if self.is_me(target) && modes.starts_with('+') && modes.contains('r') => {
                self.identified(now);
            }
            ("MODE", [channel, modes, rest @ ..]) => self.on_mode(channel, modes, rest),
            _ => {}
        }
    }

    fn send(&mut self, command: &str, middle: &[&str], trailing: Option<&str>) {
        self.actions.push(Action::Send(Line::new(command, middle, trailing)));
    }

    fn close(&mut self, why: &str) {
        self.actions.push(Action::Close(why.to_owned()));
    }

    fn close_slowly(&mut self, why: &str, least: Duration) {
        self.least_wait = least;
        self.close(why);
    }

    /// A refusal that an operator must mend: the end, unless things once were different.
    fn refuse(&mut self, why: &str) {
        match self.online_once {
            true => self.close_slowly(why, SLOW),
            false => self.actions.push(Action::Fatal(why.to_owned())),
        }
    }

    fn fold(&self, name: &str) -> String {
        self.link.mapping.fold(name)
    }

    fn place(&mut self, name: &str) -> Option<&mut Place> {
        let mapping = self.link.mapping;
        self.places.iter_mut().find(|p| mapping.same(&p.name, name))
    }

    fn is_me(&self, nick: &str) -> bool {
        self.link.mapping.same(nick, &self.link.nick)
    }

    /// Whether this is the nick that we want, perhaps with a mask behind it.
    fn is_wanted(&self, nick: &str) -> bool {
        self.link.mapping.same(nick.split('!').next().unwrap_or(""), &self.irc.nick)
    }

    fn on_error(&mut self, why: &str) {
        let said = why.to_ascii_lowercase();
        if ["throttl", "too fast", "too many"].iter().any(|w| said.contains(w)) {
            self.least_wait = THROTTLED;
        }
        self.close(&format!("the server closes the connection: {}", clean(why)));
    }

    fn on_cap(&mut self, what: &str, middle: &[&str], caps: &str, now: Instant) {
        let caps = caps.split_whitespace().map(str::to_owned);
        match what {
            "LS" => {
                self.link.offered.extend(caps);
                // A star says that more lines follow.
                if middle != ["*"] && !self.link.welcomed {
                    self.request_caps();
                }
            }
            "ACK" => {
                self.link.caps.extend(caps);
                if self.irc.sasl != Sasl::No && !self.link.logged_in {
                    self.until = self.until.min(now + STEP);
                    self.send("AUTHENTICATE", &[self.mechanism()], None);
                } else {
                    self.send("CAP", &["END"], None);
                }
            }
            "NAK" if self.irc.sasl != Sasl::No => self.no_sasl("the server refuses it"),
            "NAK" => self.send("CAP", &["END"], None),
            _ => {}
        }
    }

    fn request_caps(&mut self) {
        let offers = |name: &str| self.link.offered.iter().find(|c| c.split('=').next() == Some(name));
        let mut wanted = vec!["account-tag", "message-tags", "multi-prefix"];
        wanted.retain(|name| offers(name).is_some());
        if self.irc.sasl != Sasl::No {
            let Some(sasl) = offers("sasl") else {
                return self.no_sasl("the server does not offer it (services down?)");
            };
            let listed = sasl.split_once('=').map_or("", |(_, mechanisms)| mechanisms);
            if !listed.is_empty() && listed.split(',').all(|m| m != self.mechanism()) {
                return self.no_sasl(&format!("the server offers only {listed}"));
            }
            wanted.push("sasl");
        }
        match wanted.is_empty() {
            true => self.send("CAP", &["END"], None),
            false => self.send("CAP", &["REQ"], Some(&wanted.join(" "))),
        }
    }

    fn mechanism(&self) -> &'static str {
        if self.irc.sasl == Sasl::External { "EXTERNAL" } else { "PLAIN" }
    }

    /// SASL was asked for and cannot be had now. We never go on without it.
    fn no_sasl(&mut self, why: &str) {
        self.close_slowly(&format!("no SASL {}: {}; not going on without", self.mechanism(), clean(why)), THROTTLED);
    }

    fn authenticate(&mut self) {
        let Irc { account, password, .. } = &self.irc;
        let secret = match (self.irc.sasl, password) {
            (Sasl::Plain, Some(p)) => base64(format!("{account}\0{account}\0{}", p.0).as_bytes()),
            _ => String::new(),
        };
        // Pieces of 400 bytes; a full last one is followed by an empty one (IRCv3 sasl-3.1).
        let mut pieces: Vec<&str> = secret.as_bytes().chunks(400).filter_map(|c| str::from_utf8(c).ok()).collect();
        if secret.len() % 400 == 0 {
            pieces.push("+");
        }
        self.actions.extend(pieces.iter().map(|p| Action::Send(Line::secret("AUTHENTICATE", &[p], None))));
    }

    fn on_welcome(&mut self, nick: &str, now: Instant) {
        if self.irc.sasl != Sasl::No && !self.link.logged_in {
            return self.no_sasl("the server let us in before it");
        }
        (self.link.nick, self.link.welcomed, self.until) = (nick.to_owned(), true, now + STEP);
    }

    fn on_isupport(&mut self, token: &str) {
        let (name, value) = token.split_once('=').unwrap_or((token, ""));
        match name {
            "CASEMAPPING" => self.link.mapping = Casemapping::named(value),
            "MONITOR" => self.link.monitor = true,
            "BOT" if value.len() == 1 => self.link.bot_mode = Some(format!("+{value}")),
            "PREFIX" => {
                if let Some((letters, signs)) = value.strip_prefix('(').and_then(|v| v.split_once(')')) {
                    self.link.prefix = (letters.to_owned(), signs.to_owned());
                }
            }
            "CHANMODES" => {
                let kinds: Vec<&str> = value.split(',').collect();
                if let [lists, always, when_set, ..] = kinds[..] {
                    self.link.modes = (format!("{lists}{always}"), when_set.to_owned());
                }
            }
            _ => {}
        }
    }

    /// While registering, the next name; later, the next try will come.
    fn on_nick_refused(&mut self, numeric: &str, nick: &str, why: &str) {
        if self.link.welcomed {
            return;
        }
        let wanted = &self.irc.nick;
        // Servers that allow only nine characters refuse a longer name altogether.
        let short: String = wanted.chars().take(8).collect();
        let more = [format!("{wanted}_"), format!("{wanted}__")];
        let candidates = self.irc.alt_nicks.iter().cloned().chain(more).chain((1..10).map(|i| format!("{short}{i}")));
        let next = candidates.skip(self.link.tried).next();
        let why = format!("nick {}: {} ({numeric})", clean(nick), clean(why));
        match next {
            Some(next) => {
                log!(Warning, "IRC: {why}; trying {next}");
                self.link.tried += 1;
                self.send("NICK", &[&next], None);
                self.link.nick = next;
            }
            None if numeric == "432" => self.refuse(&why),
            None => self.close(&why),
        }
    }

    /// Registered: tell services who we are, and join when they believe it.
    fn identify(&mut self, now: Instant) {
        let nick = self.link.nick.clone();
        if let Some(mode) = self.link.bot_mode.clone() {
            self.send("MODE", &[&nick, &mode], None);
        }
        let Some(password) = self.irc.password.clone().filter(|_| !self.link.logged_in) else {
            return self.online(now);
        };
        (self.phase, self.until) = (Phase::Identifying, now + STEP);
        // With the password alone, services take the account of the nick that we have.
        let account = Some(&self.irc.account).filter(|a| !self.is_me(a)).map_or(String::new(), |a| format!("{a} "));
        self.tell_nickserv(&format!("IDENTIFY {account}{}", password.0));
    }

    fn tell_nickserv(&mut self, text: &str) {
        self.actions.push(Action::Send(Line::secret("PRIVMSG", &[&self.irc.nickserv], Some(text))));
    }

    fn identified(&mut self, now: Instant) {
        self.link.logged_in = true;
        if self.phase == Phase::Identifying {
            self.online(now);
        }
    }

    fn online(&mut self, now: Instant) {
        log!(Info, "IRC: online as {}", self.link.nick);
        (self.phase, self.online_once, self.online_since) = (Phase::Online, true, Some(now));
        if !self.is_wanted(&self.link.nick) {
            self.link.regain = Some((now + REGAIN.0, REGAIN.0 * 2));
            if self.link.monitor {
                self.send("MONITOR", &["+", &self.irc.nick.clone()], None);
            }
            self.link.recoveries = &["REGAIN", "RECOVER", "GHOST"];
            self.recover();
        }
        self.places.iter_mut().for_each(|p| p.retry = p.retry.map(|_| now));
        self.join_due(now);
    }

    /// Services differ in their word for "give me my nick"; one that is wrong is answered as such.
    fn recover(&mut self) {
        if let (Some(password), [word, rest @ ..]) = (self.irc.password.clone(), self.link.recoveries) {
            self.link.recoveries = rest;
            self.tell_nickserv(&format!("{word} {} {}", self.irc.nick, password.0));
        }
    }

    fn want_nick(&mut self) {
        if self.phase == Phase::Online && !self.is_wanted(&self.link.nick) {
            self.send("NICK", &[&self.irc.nick.clone()], None);
        }
    }

    /// Services speak in NOTICEs; nobody else's are of interest.
    fn on_notice(&mut self, nick: &str, text: &str, now: Instant) {
        if !self.link.mapping.same(nick, self.irc.nickserv.split('@').next().unwrap_or("")) {
            return;
        }
        let text = plain(text).to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|w| text.contains(w));
        if says(&["unknown command", "invalid command"]) {
            self.recover();
        } else if says(&[
            "now recognized",
            "now identified",
            "already identified",
            "now logged in",
            "password accepted",
        ]) {
            self.identified(now);
        } else if says(&["incorrect", "invalid password", "not registered", "isn't registered"]) {
            log!(Warning, "IRC: {}: {}", clean(nick), clean(&text));
            if self.phase == Phase::Identifying {
                self.online(now);
            }
        } else if says(&["ghost", "killed", "recovered", "regained", "released"]) {
            self.want_nick();
        }
    }

    fn on_nick(&mut self, old: &str, new: &str) {
        self.end_of_whois(old, false);
        let (from, to) = (self.fold(old), self.fold(new));
        for place in &mut self.places {
            if let Some(ranks) = place.ranks.remove(&from) {
                place.ranks.insert(to.clone(), ranks);
            }
        }
        if self.is_me(old) {
            log!(Info, "IRC: our nick is now {}", clean(new));
            self.link.nick = new.to_owned();
            if self.is_wanted(new) && self.link.regain.take().is_some() && self.link.monitor {
                self.send("MONITOR", &["-", new], None);
            }
        } else if self.is_wanted(old) {
            self.want_nick();
        }
    }

    fn on_quit(&mut self, nick: &str) {
        self.end_of_whois(nick, false);
        let folded = self.fold(nick);
        self.places.iter_mut().for_each(|p| drop(p.ranks.remove(&folded)));
        if self.is_wanted(nick) {
            self.want_nick();
        }
    }

    /// Joins the channels that are due, several to a line; keyed ones first, as JOIN wants them.
    fn join_due(&mut self, now: Instant) {
        if self.phase != Phase::Online {
            return;
        }
        let mut due: Vec<(String, String)> = Vec::new();
        for place in &mut self.places {
            if place.joined.is_none() && place.retry.is_some_and(|at| at <= now) {
                // If the server does not say anything at all, we try again then.
                place.retry = Some(now + SLOW);
                due.push((place.name.clone(), place.key.clone()));
            }
        }
        due.sort_by_key(|(_, key)| key.is_empty());
        while !due.is_empty() {
            let mut bytes = 0;
            let fits = due.iter().take(JOINS.0).take_while(|(name, key)| {
                bytes += name.len() + key.len() + 2;
                bytes <= JOINS.1
            });
            let count = fits.count().max(1);
            let (names, mut keys): (Vec<String>, Vec<String>) = due.drain(..count).unzip();
            keys.retain(|k| !k.is_empty());
            let line = match keys.is_empty() {
                true => Line::new("JOIN", &[&names.join(",")], None),
                false => Line::secret("JOIN", &[&names.join(","), &keys.join(",")], None),
            };
            self.actions.push(Action::Send(line));
        }
    }

    fn on_join(&mut self, m: &Message, channel: &str, now: Instant) {
        self.link.user_host = m.source.split_once('!').map(|(_, rest)| rest.len());
        if let Some(place) = self.place(channel) {
            log!(Info, "IRC: joined {}", place.name);
            (place.joined, place.tries) = (Some(now), 0);
            place.refusal.clear();
            place.ranks.clear();
        }
    }

    /// Someone has left a channel, or was made to.
    fn on_gone(&mut self, m: &Message, channel: &str, nick: &str, now: Instant) {
        self.end_of_whois(nick, false);
        let (me, folded) = (self.is_me(nick), self.fold(nick));
        let Some(place) = self.place(channel) else { return };
        place.ranks.remove(&folded);
        if me {
            let calm = place.joined.take().is_some_and(|at| now >= at + KICKS.1);
            place.kicks = if calm { 1 } else { place.kicks + 1 };
            place.retry = (place.kicks <= KICKS.0).then(|| now + seconds(15 << place.kicks));
            let next = place.retry.map(|at| format!("back in {} s", (at - now).as_secs()));
            let next = next.unwrap_or("waiting for an INVITE".into());
            log!(Warning, "IRC: {} put us out of {}: {}; {next}", clean(m.nick()), place.name, clean(m.text()));
        }
    }

    fn on_join_refused(&mut self, numeric: &str, channel: &str, why: &str, now: Instant) {
        let Some(place) = self.place(channel).filter(|p| p.joined.is_none()) else { return };
        place.retry = Some(now + seconds(REJOIN[place.tries.min(REJOIN.len() - 1)]));
        place.tries += 1;
        if place.refusal != why {
            log!(Warning, "IRC: cannot join {}: {} ({numeric}); still trying", place.name, clean(why));
            place.refusal = why.to_owned();
        }
    }

    fn on_invite(&mut self, channel: &str, now: Instant) {
        if let Some(place) = self.place(channel).filter(|p| p.joined.is_none()) {
            (place.retry, place.kicks) = (Some(now), 0);
            self.join_due(now);
        }
    }

    fn on_names(&mut self, channel: &str, names: &str) {
        let (mapping, (letters, signs)) = (self.link.mapping, self.link.prefix.clone());
        let Some(place) = self.place(channel) else { return };
        for name in names.split_whitespace() {
            let nick = name.trim_start_matches(|c| signs.contains(c));
            let shown = name[..name.len() - nick.len()].chars();
            let ranks: String = shown.filter_map(|c| signs.find(c)).filter_map(|i| letters.chars().nth(i)).collect();
            place.ranks.remove(&mapping.fold(nick));
            if !ranks.is_empty() {
                place.ranks.insert(mapping.fold(nick), ranks);
            }
        }
    }

    fn on_mode(&mut self, channel: &str, changes: &str, params: &[&str]) {
        let (mapping, prefix, modes) = (self.link.mapping, self.link.prefix.0.clone(), self.link.modes.clone());
        let Some(place) = self.place(channel) else { return };
        let mut params = params.iter();
        let mut set = true;
        for mode in changes.chars() {
            match mode {
                '+' | '-' => set = mode == '+',
                rank if prefix.contains(rank) => {
                    let Some(nick) = params.next() else { return };
                    let ranks = place.ranks.entry(mapping.fold(nick)).or_default();
                    ranks.retain(|r| r != rank);
                    ranks.extend(Some(rank).filter(|_| set));
                }
                other if modes.0.contains(other) || (set && modes.1.contains(other)) => drop(params.next()),
                _ => {}
            }
        }
    }

    /// Operator or higher: the PREFIX letters up to `o`.
    fn is_op(&mut self, channel: &str, nick: &str) -> bool {
        let (nick, letters) = (self.fold(nick), self.link.prefix.0.clone());
        let high = letters.find('o').map_or("", |o| &letters[..=o]);
        let ranks = self.place(channel).and_then(|p| p.ranks.get(&nick));
        ranks.is_some_and(|r| r.contains(|c| high.contains(c)))
    }

    fn on_privmsg(&mut self, m: &Message, target: &str, raw: &str) {
        // IRCv3's tag for bots, and the name that InspIRCd 3 has for it.
        let bot = m.tags.iter().any(|(name, _)| name == "bot" || name.ends_with("/bot"));
        if self.is_me(m.nick()) || bot || !m.source.contains('!') {
            return;
        }
        let private = self.is_me(target);
        if let Some(ctcp) = raw.strip_prefix('\u{1}') {
            let (what, rest) =
                ctcp.trim_end_matches('\u{1}').split_once(' ').unwrap_or((ctcp.trim_end_matches('\u{1}'), ""));
            let answer = match what {
                "VERSION" => concat!("buildbot-irc ", env!("CARGO_PKG_VERSION")).to_owned(),
                "PING" => clean(rest),
                _ => return,
            };
            if private {
                self.actions.push(Action::Notice(m.nick().to_owned(), format!("\u{1}{what} {answer}\u{1}")));
            }
            return;
        }
        let text = plain(raw);
        let names = [&self.link.nick, &self.irc.nick];
        let text = match private {
            true => Some(text.trim()),
            false => names.iter().find_map(|name| addressed(&text, name, self.link.mapping)),
        };
        let place = if private { Some(m.nick().to_owned()) } else { self.place(target).map(|p| p.name.clone()) };
        let (Some(text), Some(place)) = (text.map(str::to_owned), place) else { return };
        let account = match (self.link.caps.contains("account-tag"), m.tag("account")) {
            (true, Some(account)) => Account::Is(account.to_owned()),
            (true, None) => Account::None,
            _ => Account::Unknown,
        };
        let op = !private && self.is_op(target, m.nick());
        let (nick, mask) = (m.nick().to_owned(), m.source.clone());
        self.actions.push(Action::Command(Ask { place, nick, mask, text, op, account }));
    }

    fn on_whois(&mut self, nick: &str, learn: impl Fn(&mut String, &mut Account)) {
        let nick = self.fold(nick);
        self.link.whois.get_mut(&nick).into_iter().for_each(|(user_host, account)| learn(user_host, account));
    }

    /// The answer is complete; or, not `whole`: the nick has gone or changed, which proves nothing.
    fn end_of_whois(&mut self, nick: &str, whole: bool) {
        if let Some((user_host, account)) = self.link.whois.remove(&self.fold(nick)) {
            let proved = whole && !user_host.is_empty() && account != Account::Unknown;
            self.actions.push(Action::Account(nick.to_owned(), if proved { account } else { Account::None }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{SHORT, parse};

    /// A session with its clock: lines in, lines out.
    struct Rig {
        session: Session,
        now: Instant,
        others: Vec<Action>,
    }

    impl Rig {
        /// Up and registering; `more` goes into `[irc]`.
        fn new(more: &str) -> Rig {
            let irc = parse(&format!("{SHORT}{more}")).unwrap().irc.unwrap();
            let now = Instant::now();
            let mut rig = Rig { session: Session::new(irc, now, 1), now, others: Vec::new() };
            rig.wait(0);
            assert_eq!(rig.others, [Action::Connect]);
            rig.session.up(now);
            rig
        }

        /// Online, with what was said on the way thrown away.
        fn online(more: &str) -> Rig {
            let mut rig = Rig::new(more);
            rig.hear(":s CAP * LS :\n:s 001 bot :hi\n:s 422 bot :none");
            rig.said();
            rig
        }

        fn hear(&mut self, lines: &str) {
            lines.lines().for_each(|l| self.session.message(&Message::parse(l).unwrap(), self.now));
        }

        fn wait(&mut self, secs: u64) {
            self.now += seconds(secs);
            self.session.tick(self.now);
            self.said();
        }

        fn said(&mut self) -> Vec<String> {
            let mut said = Vec::new();
            for action in self.session.actions() {
                match action {
                    Action::Send(line) => said.push(String::from_utf8(line.bytes()).unwrap().trim_end().to_owned()),
                    other => self.others.push(other),
                }
            }
            said
        }

        #[track_caller]
        fn answers(&mut self, line: &str, expected: &[&str]) {
            self.hear(line);
            assert_eq!(self.said(), expected, "after {line}");
        }
    }

    #[test]
    fn registration_without_capabilities() {
        let mut rig =
            Rig::new("server_password = pw\nrealname = r\nusername = u\n[channel #a]\n[channel #b]\npassword = k\n");
        assert_eq!(rig.said(), ["PASS :pw", "CAP LS 302", "NICK bot", "USER u 0 * :r"]);
        rig.answers(":s CAP * LS :", &["CAP END"]);
        rig.answers(":s 001 bot :hi\n:s 005 bot BOT=B CASEMAPPING=ascii :x", &[]);
        rig.answers(":s 376 bot :end", &["MODE bot +B", "JOIN #b,#a k"]);
        rig.answers("PING :x y", &["PONG :x y"]);
    }

    #[test]
    fn sasl_plain_in_pieces_and_never_without() {
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.said();
        rig.answers(":s CAP * LS * :multi-prefix", &[]);
        rig.answers(":s CAP * LS :sasl=PLAIN,EXTERNAL account-tag", &["CAP REQ :account-tag multi-prefix sasl"]);
        rig.answers(":s CAP * ACK :account-tag multi-prefix sasl", &["AUTHENTICATE PLAIN"]);
        rig.answers("AUTHENTICATE :+", &["AUTHENTICATE Ym90AGJvdABwdw=="]);
        rig.answers(":s 900 bot x bot :in\n:s 903 bot :ok", &["CAP END"]);
        let long = format!("sasl = plain\npassword = {}\n", "x".repeat(292));
        let mut rig = Rig::new(&long);
        rig.hear("AUTHENTICATE +");
        let pieces: Vec<usize> = rig.said().iter().filter(|l| l.starts_with("AUTH")).map(|l| l.len() - 13).collect();
        assert_eq!(pieces, [400, 1], "a full last piece is followed by a plus");
        for (lines, end) in [
            (
                ":s CAP * LS :multi-prefix",
                "no SASL PLAIN: the server does not offer it (services down?); not going on without",
            ),
            (":s CAP * LS :sasl=EXTERNAL", "no SASL PLAIN: the server offers only EXTERNAL; not going on without"),
            (":s 001 bot :hi", "no SASL PLAIN: the server let us in before it; not going on without"),
            (":s 421 * CAP :Unknown", "no SASL PLAIN: the server knows no CAP; not going on without"),
        ] {
            let mut rig = Rig::new("sasl = plain\npassword = pw\n");
            rig.hear(lines);
            rig.said();
            assert_eq!(rig.others.last(), Some(&Action::Close(end.into())));
        }
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.hear(":s 904 bot :SASL authentication failed");
        rig.said();
        assert_eq!(rig.others.last(), Some(&Action::Fatal("SASL failed: SASL authentication failed".into())));
    }

    #[test]
    fn nickserv_comes_before_joining() {
        let mut rig = Rig::new("password = pw\n[channel #a]\n");
        rig.hear(":s 001 bot :hi");
        rig.said();
        rig.answers(":s 422 bot :none", &["PRIVMSG NickServ :IDENTIFY pw"]);
        rig.answers(":eve!e@h NOTICE bot :You are now identified", &[]);
        rig.answers(":NickServ!s@s NOTICE bot :You are now identified for \u{2}bot\u{2}.", &["JOIN #a"]);
        let mut rig = Rig::new("password = pw\n[channel #a]\n");
        rig.hear(":s 001 bot :hi\n:s 422 bot :none");
        rig.said();
        rig.now += STEP;
        rig.session.tick(rig.now);
        assert_eq!(rig.said(), ["JOIN #a"], "services that say nothing do not keep us out");
    }

    #[test]
    fn a_taken_nick_is_replaced_and_won_back() {
        let mut rig = Rig::new("alt_nicks = alt\npassword = pw\n[channel #a]\n");
        rig.said();
        rig.answers(":s 433 * bot :in use", &["NICK alt"]);
        rig.answers(":s 433 * alt :in use", &["NICK bot_"]);
        rig.hear(":s 001 bot_ :hi\n:s 005 bot_ MONITOR=30 :x");
        rig.answers(":s 422 bot_ :none", &["PRIVMSG NickServ :IDENTIFY bot pw"]);
        rig.answers(":s MODE bot_ +r", &["MONITOR + bot", "PRIVMSG NickServ :REGAIN bot pw", "JOIN #a"]);
        rig.answers(
            ":NickServ!s@s NOTICE bot_ :Unknown command \u{2}REGAIN\u{2}.",
            &["PRIVMSG NickServ :RECOVER bot pw"],
        );
        rig.answers(":s 731 bot_ :bot", &["NICK bot"]);
        rig.answers(":s 433 bot_ bot :in use", &[]);
        rig.answers(":bot!x@y QUIT :gone", &["NICK bot"]);
        rig.answers(":bot_!u@h NICK :bot", &["MONITOR - bot"]);
        assert_eq!(rig.session.nick(), "bot");
        let mut rig = Rig::new("");
        (0..12).for_each(|_| rig.hear(":s 432 * x :Erroneous"));
        rig.said();
        assert_eq!(rig.others.last(), Some(&Action::Fatal("nick x: Erroneous (432)".into())));
    }

    #[test]
    fn channels_are_come_back_to() {
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(":bot!u@host.example JOIN #A");
        assert!(rig.session.reaches("#a") && rig.session.source_length() == "bot!u@host.example".len());
        for (kick, wait) in [30, 60, 120, 240, 480].into_iter().enumerate() {
            rig.hear(":op!o@h KICK #a BOT :out");
            rig.said();
            rig.now += seconds(wait - 1);
            rig.hear(":s 1 x");
            rig.session.tick(rig.now);
            assert_eq!(rig.said(), [""; 0], "kick {kick}");
            rig.now += seconds(1);
            rig.session.tick(rig.now);
            assert_eq!(rig.said(), ["JOIN #a"], "kick {kick}");
            rig.hear(":bot!u@h JOIN #a");
        }
        rig.hear(":op!o@h KICK #a bot :out");
        rig.wait(80);
        rig.answers(":op!o@h INVITE bot :#a", &["JOIN #a"]);
        for wait in [30, 60, 120, 300, 300] {
            rig.hear(":s 471 bot #a :full");
            rig.now += seconds(wait - 1);
            rig.hear(":s 1 x");
            rig.session.tick(rig.now);
            assert_eq!(rig.said(), [""; 0]);
            rig.now += seconds(1);
            rig.session.tick(rig.now);
            assert_eq!(rig.said(), ["JOIN #a"]);
        }
    }

    #[test]
    fn many_channels_are_joined_in_few_lines() {
        let sections: String = (0..24).map(|i| format!("[channel #channel{i}]\n")).collect();
        let mut rig = Rig::new(&sections);
        rig.hear(":s 001 bot :hi\n:s 422 bot :none");
        let joins: Vec<String> = rig.said().into_iter().filter(|l| l.starts_with("JOIN")).collect();
        assert_eq!(joins.iter().map(|l| l.matches('#').count()).collect::<Vec<_>>(), [10, 10, 4]);
    }

    #[test]
    fn silence_is_asked_then_ended_and_back_off_doubles() {
        let mut rig = Rig::online("ping_timeout = 100\n");
        rig.now += seconds(60);
        rig.session.tick(rig.now);
        assert_eq!(rig.said(), ["PING :alive"]);
        rig.wait(39);
        assert_eq!(rig.others.len(), 1);
        rig.wait(1);
        let why = "the server has gone silent and does not answer PING".to_owned();
        assert_eq!(rig.others.last(), Some(&Action::Close(why)));
        let mut waits = Vec::new();
        for _ in 0..9 {
            rig.session.down("gone", rig.now);
            waits.push((rig.session.deadline() - rig.now).as_secs_f64());
            rig.session.up(rig.now);
        }
        for (i, wait) in waits.iter().enumerate() {
            let middle = (4.0 * f64::from(1 << i)).min(300.0);
            assert!((middle * 0.75..=middle * 1.25).contains(wait), "{waits:?}");
        }
        rig.hear("ERROR :Closing link: trying to reconnect too fast (throttled)");
        rig.session.down("gone", rig.now);
        assert!(rig.session.deadline() >= rig.now + THROTTLED);
    }

    #[test]
    fn who_speaks_to_us_and_as_whom() {
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(":s CAP * ACK :account-tag");
        rig.hear(":s 005 bot PREFIX=(qaohv)~&@%+ CHANMODES=beI,k,l,imnpst CASEMAPPING=rfc1459 :x");
        rig.hear(":bot!u@h JOIN #a\n:s 353 bot = #a :bot @op &@admin %half +voice [x]");
        rig.said();
        let ask = |rig: &mut Rig, line: &str| {
            rig.others.clear();
            rig.hear(line);
            rig.said();
            match rig.others.pop() {
                Some(Action::Command(ask)) => Some((ask.place, ask.text, ask.op, ask.account)),
                _ => None,
            }
        };
        let got = |place: &str, op, account| Some((place.to_owned(), "help".to_owned(), op, account));
        for (line, expected) in [
            ("@account=Joe :op!u@h PRIVMSG #A :BOT: help", got("#a", true, Account::Is("Joe".into()))),
            (":admin!u@h PRIVMSG #a :\u{2}bot\u{2}, help", got("#a", true, Account::None)),
            (":half!u@h PRIVMSG #a :bot: help", got("#a", false, Account::None)),
            (":voice!u@h PRIVMSG bot :help", got("voice", false, Account::None)),
            (":op!u@h PRIVMSG bot :help", got("op", false, Account::None)),
            (":op!u@h PRIVMSG #a :help", None),
            (":op!u@h PRIVMSG #elsewhere :bot: help", None),
            (":op!u@h NOTICE #a :bot: help", None),
            (":bot!u@h PRIVMSG #a :bot: help", None),
            ("@bot :op!u@h PRIVMSG #a :bot: help", None),
            ("@inspircd.org/bot :op!u@h PRIVMSG #a :bot: help", None),
            (":irc.server PRIVMSG bot :help", None),
        ] {
            assert_eq!(ask(&mut rig, line), expected, "{line}");
        }
        let op = |rig: &mut Rig, nick: &str| ask(rig, &format!(":{nick}!u@h PRIVMSG #a :bot: help")).unwrap().2;
        rig.hear(":op!u@h MODE #a +bk-o+o *!*@x key op {X}");
        assert!(!op(&mut rig, "op") && op(&mut rig, "[x]"));
        rig.hear(":admin!u@h NICK :Boss");
        assert!(!op(&mut rig, "admin") && op(&mut rig, "boss"));
        rig.hear(":boss!u@h PART #a\n:[x]!u@h QUIT :bye");
        assert!(!op(&mut rig, "boss") && !op(&mut rig, "[x]"));
    }

    #[test]
    fn ctcp_is_answered_in_private_only() {
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(":joe!u@h PRIVMSG #a :\u{1}VERSION\u{1}\n:joe!u@h PRIVMSG bot :\u{1}ACTION x\u{1}\n:joe!u@h PRIVMSG bot :\u{1}PING 12\u{1}");
        rig.said();
        assert_eq!(rig.others[1..], [Action::Notice("joe".into(), "\u{1}PING 12\u{1}".into())]);
    }

    #[test]
    fn an_account_is_proved_by_whois_at_that_moment() {
        let whois = "\n:s 330 bot joe acct :is logged in as\n:s 318 bot joe :end";
        for (answer, expected) in [
            (format!(":s 311 bot joe u h * :x{whois}"), Account::Is("acct".into())),
            (format!(":s 311 bot joe other h * :x{whois}"), Account::None),
            (
                ":s 311 bot joe u h * :x\n:s 307 bot joe :is a registered nick\n:s 318 bot joe :end".into(),
                Account::Is("joe".into()),
            ),
            (":s 311 bot joe u h * :x\n:s 318 bot joe :end".into(), Account::None),
            (":s 401 bot joe :no such nick".into(), Account::None),
            (format!(":joe!u@h NICK :x{whois}"), Account::None),
            (format!(":joe!u@h QUIT :x{whois}"), Account::None),
        ] {
            let mut rig = Rig::online("");
            rig.session.whois("joe", "joe!u@h");
            assert_eq!(rig.said(), ["WHOIS joe"]);
            rig.hear(&answer);
            rig.said();
            assert_eq!(rig.others[1..], [Action::Account("joe".into(), expected)], "{answer}");
        }
    }

    #[test]
    fn strange_messages_never_panic() {
        let commands = [
            "CAP",
            "001",
            "005",
            "353",
            "433",
            "471",
            "MODE",
            "KICK",
            "NICK",
            "JOIN",
            "PRIVMSG",
            "731",
            "396",
            "311",
            "AUTHENTICATE",
            "INVITE",
            "ERROR",
        ];
        let words = [
            "",
            "bot",
            "#a",
            "*",
            "LS",
            "ACK",
            ":",
            "PREFIX=(",
            "PREFIX=()@",
            "CHANMODES=,,",
            "+ooo",
            "@",
            "\u{1}",
            "\u{1}\u{1}",
            "@+\u{e9}",
        ];
        let mut state = 77_u64;
        for _ in 0..50_000 {
            let mut pick = |n: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 33) as usize % n
            };
            let mut rig_line = Message {
                source: ["", "bot!u@h", "x!y@z", "s"][pick(4)].into(),
                command: commands[pick(commands.len())].into(),
                ..Message::default()
            };
            rig_line.params = (0..pick(6)).map(|_| words[pick(words.len())].to_owned()).collect();
            thread_local!(static RIG: std::cell::RefCell<Rig> = std::cell::RefCell::new(Rig::online("[channel #a]\n")));
            RIG.with_borrow_mut(|rig| {
                rig.session.message(&rig_line, rig.now);
                rig.said();
                rig.others.clear();
            });
        }
    }
}
