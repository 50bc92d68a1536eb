//! The conversation with an IRC server: registration, CAP, SASL, NickServ, our nick, channels,
//! liveness and back-off.
//!
//! Pure: it takes messages and `now`, and leaves actions and a deadline. One thread owns it.

use super::wire::{Casemapping, Line, Message, addressed, is_channel};
use crate::command::{Account, Ask};
use crate::config::{Channel, Irc, Sasl};
use crate::text::{base64, clean, plain};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Name lookup, all addresses and the TLS hand-shake.
const CONNECT: Duration = seconds(120);
const REGISTRATION: Duration = seconds(60);
const SASL: Duration = seconds(20);
/// Services answer later than the server; then we join all the same.
const IDENTIFY: Duration = seconds(20);
/// First wait before a new connection (a restarted server sees us soon), doubling up to the last.
const BACK_OFF: (Duration, Duration) = (seconds(4), seconds(300));
/// A connection that lasted so long resets the back-off.
const LASTED: Duration = seconds(120);
/// When the server says that we come too often.
const THROTTLED: Duration = seconds(120);
/// What only an operator or time can mend.
const SLOW: Duration = seconds(300);
/// Tries to get the nick back: doubling, RFC has nothing; others use 15 s to 10 min.
const REGAIN: (Duration, Duration) = (seconds(15), seconds(600));
/// A refused JOIN is tried again after these, the last one for ever.
const REJOIN: [u64; 4] = [30, 60, 120, 300];
/// After so many kicks in a row we wait for an INVITE; a calm hour forgets them.
const KICKS: u32 = 5;
const CALM: Duration = seconds(3600);
/// Channels and bytes in one JOIN.
const JOINS: (usize, usize) = (10, 400);
/// Bytes of a source while the server has not shown us ours: nick, user and a host of 63.
const UNKNOWN_HOST: usize = 63 + 12;

/// What the session wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a connection.
    Connect,
    /// Drop the connection, for this reason.
    Close(String),
    /// Send this at once.
    Send(Line),
    /// Registered, identified, joining channels.
    Online,
    /// Someone talks to us.
    Command(Ask),
    /// Answer in private with a NOTICE (CTCP).
    Notice(String, String),
    /// The server has answered the PING with this token.
    Pong(String),
    /// What WHOIS said of a nick.
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
#[derive(Debug)]
struct Place {
    name: String,
    key: String,
    joined: Option<Instant>,
    /// When to try next; never, when kicked too often.
    retry: Option<Instant>,
    tries: usize,
    kicks: u32,
    refusal: String,
    /// The prefix letters of those who have any, by folded nick.
    ranks: BTreeMap<String, String>,
}

/// The session; it outlives connections.
pub struct Session {
    irc: Irc,
    actions: Vec<Action>,
    phase: Phase,
    /// When the phase ends badly (or, while waiting, at all).
    until: Instant,
    back_off: Duration,
    least_wait: Duration,
    random: u64,
    online_once: bool,
    online_since: Option<Instant>,
    /// What the server calls us, and the source it puts before our lines.
    nick: String,
    source: Option<usize>,
    tried: usize,
    welcomed: bool,
    logged_in: bool,
    offered: Vec<String>,
    caps: BTreeSet<String>,
    mapping: Casemapping,
    /// PREFIX: mode letters and their signs, highest first.
    prefix: (String, String),
    /// CHANMODES: those that always take a parameter, and those that take one when set.
    modes: (String, String),
    monitor: bool,
    bot_mode: String,
    heard: Instant,
    pinged: bool,
    regain: Option<(Instant, Duration)>,
    recoveries: &'static [&'static str],
    places: Vec<Place>,
    /// Nick → user@host that it must have, and what is known so far.
    whois: BTreeMap<String, (String, Account)>,
}

type Handler = fn(&mut Session, &Message, Instant);

/// Command, parameters that it must have, handler.
const HANDLERS: [(&str, usize, Handler); 15] = [
    ("PING", 0, |s, m, _| s.send("PONG", &[], Some(m.text()))),
    ("PONG", 1, |s, m, _| s.actions.push(Action::Pong(m.text().to_owned()))),
    ("ERROR", 0, Session::on_error),
    ("CAP", 3, Session::on_cap),
    ("AUTHENTICATE", 1, Session::on_authenticate),
    ("PRIVMSG", 2, Session::on_privmsg),
    ("NOTICE", 2, Session::on_notice),
    ("NICK", 1, Session::on_nick),
    ("JOIN", 1, Session::on_join),
    ("PART", 1, |s, m, now| s.on_gone(m, m.param(0), m.nick(), now)),
    ("KICK", 2, |s, m, now| s.on_gone(m, m.param(0), m.param(1), now)),
    ("QUIT", 0, Session::on_quit),
    ("INVITE", 2, Session::on_invite),
    ("MODE", 2, Session::on_mode),
    ("396", 2, |s, m, _| s.source = Some(s.nick.len() + 14 + m.param(1).len())),
];

impl Session {
    /// A session that connects at once.
    pub fn new(irc: Irc, now: Instant, seed: u64) -> Session {
        let mut session = Session {
            actions: Vec::new(),
            phase: Phase::Waiting,
            until: now,
            back_off: BACK_OFF.0,
            least_wait: Duration::ZERO,
            random: seed | 1,
            online_once: false,
            online_since: None,
            nick: irc.nick.clone(),
            source: None,
            tried: 0,
            welcomed: false,
            logged_in: false,
            offered: Vec::new(),
            caps: BTreeSet::new(),
            mapping: Casemapping::default(),
            prefix: (String::new(), String::new()),
            modes: (String::new(), String::new()),
            monitor: false,
            bot_mode: String::new(),
            heard: now,
            pinged: false,
            regain: None,
            recoveries: &[],
            places: Vec::new(),
            whois: BTreeMap::new(),
            irc,
        };
        for Channel { name, key, .. } in session.irc.channels.clone() {
            session.join(&name, key.as_ref().map_or("", |k| &k.0), now);
        }
        session
    }

    /// What is to be done since the last call.
    pub fn actions(&mut self) -> Vec<Action> {
        std::mem::take(&mut self.actions)
    }

    /// Our nick, as the server has it.
    pub fn nick(&self) -> &str {
        &self.nick
    }

    /// How the server compares names.
    pub fn mapping(&self) -> Casemapping {
        self.mapping
    }

    /// The bytes that the server puts before our lines as their source.
    pub fn source_length(&self) -> usize {
        self.source.unwrap_or(self.nick.len() + self.irc.username.len() + UNKNOWN_HOST)
    }

    /// Whether lines to this channel or nick can be sent now.
    pub fn reaches(&self, target: &str) -> bool {
        let joined = |p: &Place| p.joined.is_some() && self.mapping.same(&p.name, target);
        self.phase == Phase::Online && (!is_channel(target) || self.places.iter().any(joined))
    }

    /// The channels that we are in.
    pub fn joined(&self) -> Vec<&str> {
        self.places.iter().filter(|p| p.joined.is_some()).map(|p| p.name.as_str()).collect()
    }

    /// When [`Session::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        if self.phase != Phase::Online {
            return self.until;
        }
        let retries = self.places.iter().filter(|p| p.joined.is_none()).filter_map(|p| p.retry);
        let alive = self.heard + self.irc.ping_timeout.mul_f32(if self.pinged { 1.0 } else { 0.6 });
        retries.chain(self.regain.map(|r| r.0)).fold(alive, Instant::min)
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        if self.phase != Phase::Online {
            if now < self.until {
                return;
            }
            match self.phase {
                Phase::Waiting => {
                    (self.phase, self.until) = (Phase::Connecting, now + CONNECT);
                    self.actions.push(Action::Connect);
                }
                Phase::Connecting => self.close("no connection within 120 s"),
                Phase::Registering if self.welcomed => self.identify(now),
                Phase::Registering => self.close("registration took too long (is it a TLS port? use_ssl = yes)"),
                _ => self.online(now),
            }
            return;
        }
        let silence = now.saturating_duration_since(self.heard);
        if silence >= self.irc.ping_timeout {
            return self.close("the server has gone silent: no answer to PING");
        }
        if silence >= self.irc.ping_timeout.mul_f32(0.6) && !self.pinged {
            self.pinged = true;
            self.send("PING", &[], Some("alive"));
        }
        if let Some((at, wait)) = self.regain
            && at <= now
        {
            self.regain = Some((now + wait, (wait * 2).min(REGAIN.1)));
            self.want_nick();
        }
        self.join_due(now);
    }

    /// The connection stands.
    pub fn up(&mut self, now: Instant) {
        (self.phase, self.until) = (Phase::Registering, now + REGISTRATION);
        (self.heard, self.pinged, self.tried, self.welcomed, self.logged_in) = (now, false, 0, false, false);
        (self.source, self.regain, self.monitor, self.bot_mode) = (None, None, false, String::new());
        (self.mapping, self.prefix) = (Casemapping::default(), ("ov".into(), "@+".into()));
        self.modes = ("beIk".into(), "l".into());
        self.offered.clear();
        self.caps.clear();
        self.nick = self.irc.nick.clone();
        if let Some(password) = &self.irc.server_password {
            self.actions.push(Action::Send(Line::secret("PASS", &[], Some(&password.0))));
        }
        self.send("CAP", &["LS", "302"], None);
        self.send("NICK", &[&self.irc.nick.clone()], None);
        let (username, realname) = (self.irc.username.clone(), self.irc.realname.clone());
        self.send("USER", &[&username, "0", "*"], Some(&realname));
    }

    /// The connection is gone, or could not be made.
    pub fn down(&mut self, why: &str, now: Instant) {
        if why.contains("certificate") {
            self.least_wait = self.least_wait.max(seconds(60));
        }
        if self.online_since.take().is_some_and(|at| now >= at + LASTED) {
            self.back_off = BACK_OFF.0;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // Up to a quarter more or less, so that many bots do not come back at once.
        let wait = self.back_off.mul_f64(0.75 + (self.random % 1000) as f64 / 2000.0).max(self.least_wait);
        log!(Warning, "IRC: {}; next try in {} s", clean(why), wait.as_secs());
        self.back_off = (self.back_off * 2).min(BACK_OFF.1);
        (self.phase, self.until, self.least_wait) = (Phase::Waiting, now + wait, Duration::ZERO);
        for (nick, _) in std::mem::take(&mut self.whois) {
            self.actions.push(Action::Account(nick, Account::None));
        }
        for place in &mut self.places {
            (place.joined, place.tries) = (None, 0);
        }
    }

    /// Takes in a message.
    pub fn message(&mut self, m: &Message, now: Instant) {
        (self.heard, self.pinged) = (now, false);
        match HANDLERS.iter().find(|h| h.0 == m.command) {
            Some((_, least, handler)) if m.params.len() >= *least => handler(self, m, now),
            Some(_) => log!(Debug, "{} with too few parameters", m.command),
            None if m.command.len() == 3 => self.on_numeric(m, now),
            None => {}
        }
    }

    /// Wants to be in a channel, from now on.
    pub fn join(&mut self, name: &str, key: &str, now: Instant) {
        match self.place(name) {
            Some(place) if place.joined.is_some() => return,
            Some(place) => (place.key, place.retry, place.kicks) = (key.to_owned(), Some(now), 0),
            None => self.places.push(Place {
                name: name.to_owned(),
                key: key.to_owned(),
                joined: None,
                retry: Some(now),
                tries: 0,
                kicks: 0,
                refusal: String::new(),
                ranks: BTreeMap::new(),
            }),
        }
        self.join_due(now);
    }

    /// Wants to be in a channel no more.
    pub fn leave(&mut self, name: &str) {
        self.send("PART", &[name], None);
        let mapping = self.mapping;
        self.places.retain(|p| !mapping.same(&p.name, name));
    }

    /// Asks the server who a nick is; the answer is an [`Action::Account`]. It counts only for the
    /// one who has this `nick!user@host`.
    pub fn whois(&mut self, nick: &str, mask: &str) {
        let host = mask.split_once('!').map_or("", |(_, host)| host);
        if self.whois.insert(self.mapping.fold(nick), (host.to_owned(), Account::Unknown)).is_none() {
            self.send("WHOIS", &[nick], None);
        }
    }

    fn send(&mut self, command: &str, middle: &[&str], trailing: Option<&str>) {
        self.actions.push(Action::Send(Line::new(command, middle, trailing)));
    }

    fn close(&mut self, why: &str) {
        self.actions.push(Action::Close(why.to_owned()));
    }

    /// A refusal that an operator must mend: the end, unless it once was different.
    fn refused(&mut self, why: &str) {
        match self.online_once {
            true => {
                self.least_wait = SLOW;
                self.close(why);
            }
            false => self.actions.push(Action::Fatal(why.to_owned())),
        }
    }

    fn place(&mut self, name: &str) -> Option<&mut Place> {
        let mapping = self.mapping;
        self.places.iter_mut().find(|p| mapping.same(&p.name, name))
    }

    fn is_me(&self, nick: &str) -> bool {
        self.mapping.same(nick, &self.nick)
    }

    fn on_error(&mut self, m: &Message, _: Instant) {
        let why = m.text().to_ascii_lowercase();
        if ["throttl", "too fast", "too many", "reconnect"].iter().any(|w| why.contains(w)) {
            self.least_wait = THROTTLED;
        }
        self.close(&format!("the server closes the connection: {}", clean(m.text())));
    }

    fn on_cap(&mut self, m: &Message, now: Instant) {
        let caps = m.text().split_whitespace().map(str::to_owned);
        match m.param(1) {
            "LS" => {
                self.offered.extend(caps);
                if m.param(2) == "*" && m.params.len() > 3 {
                    return;
                }
                let offers = |name: &str| self.offered.iter().find(|c| c.split('=').next() == Some(name));
                let mut wanted = vec!["account-tag", "message-tags", "multi-prefix"];
                wanted.retain(|name| offers(name).is_some());
                if self.irc.sasl != Sasl::No {
                    let listed = offers("sasl").map(|c| c.split_once('=').map_or("", |(_, m)| m).to_owned());
                    match listed {
                        Some(l) if l.is_empty() || l.split(',').any(|m| m == self.mechanism()) => {}
                        // Services may be down for a while: that mends itself.
                        Some(_) => return self.no_sasl("the server does not offer this SASL mechanism", false),
                        None => return self.no_sasl("the server offers no SASL (services down?)", false),
                    }
                    wanted.push("sasl");
                }
                match wanted.is_empty() || self.welcomed {
                    true => self.send("CAP", &["END"], None),
                    false => self.send("CAP", &["REQ"], Some(&wanted.join(" "))),
                }
            }
            "ACK" => {
                self.caps.extend(caps);
                if self.caps.contains("sasl") && self.irc.sasl != Sasl::No && !self.logged_in {
                    self.until = self.until.min(now + SASL);
                    self.send("AUTHENTICATE", &[self.mechanism()], None);
                } else {
                    self.send("CAP", &["END"], None);
                }
            }
            "NAK" if self.irc.sasl != Sasl::No => self.no_sasl("the server refuses SASL", false),
            "NAK" => self.send("CAP", &["END"], None),
            _ => {}
        }
    }

    fn mechanism(&self) -> &'static str {
        if self.irc.sasl == Sasl::External { "EXTERNAL" } else { "PLAIN" }
    }

    /// SASL was asked for and cannot be had. We never go on without.
    fn no_sasl(&mut self, why: &str, for_ever: bool) {
        let why = format!("SASL {} failed: {why}; not going on without it", self.mechanism());
        if for_ever {
            return self.refused(&why);
        }
        self.least_wait = THROTTLED;
        self.close(&why);
    }

    fn on_authenticate(&mut self, m: &Message, _: Instant) {
        if m.param(0) != "+" || self.irc.sasl == Sasl::No {
            return;
        }
        let Irc { account, password, .. } = &self.irc;
        let secret = match (self.irc.sasl, password) {
            (Sasl::Plain, Some(p)) => base64(format!("{account}\0{account}\0{}", p.0).as_bytes()),
            _ => String::new(),
        };
        // Pieces of 400 bytes; a last one that is full is followed by an empty one.
        let mut pieces: Vec<&str> = secret.as_bytes().chunks(400).filter_map(|c| str::from_utf8(c).ok()).collect();
        if secret.len() % 400 == 0 {
            pieces.push("+");
        }
        self.actions.extend(pieces.iter().map(|p| Action::Send(Line::secret("AUTHENTICATE", &[p], None))));
    }

    fn on_numeric(&mut self, m: &Message, now: Instant) {
        match m.command.as_str() {
            "001" => {
                if self.irc.sasl != Sasl::No && !self.logged_in {
                    return self.no_sasl("the server let us in without it", false);
                }
                (self.nick, self.welcomed, self.until) = (m.param(0).to_owned(), true, now + SASL);
            }
            "005" => m.params.iter().for_each(|token| self.on_isupport(token)),
            "376" | "422" if self.phase == Phase::Registering => self.identify(now),
            "900" => self.identified(now),
            "903" | "907" => {
                self.logged_in = true;
                self.send("CAP", &["END"], None);
            }
            "902" | "904" | "905" => self.no_sasl(&clean(m.text()), true),
            "906" => self.no_sasl("aborted", false),
            "908" => log!(Warning, "IRC: SASL mechanisms of the server: {}", clean(m.param(1))),
            "421" if m.param(1) == "CAP" && self.irc.sasl != Sasl::No => self.no_sasl("no CAP here", false),
            "464" => self.refused(&format!("the server refuses server_password: {}", clean(m.text()))),
            "465" => {
                self.least_wait = SLOW;
                self.close(&format!("banned from this server: {}", clean(m.text())));
            }
            "432" | "433" | "436" | "437" | "447" if !is_channel(m.param(1)) => self.next_nick(m),
            "353" => self.on_names(m),
            "731" if m.text().split(',').any(|n| self.is_wanted(n.split('!').next().unwrap_or(""))) => self.want_nick(),
            "403" | "405" | "437" | "471" | "473" | "474" | "475" | "476" | "477" | "489" | "520" => {
                self.on_refusal(m, now)
            }
            "404" => log!(Warning, "IRC: cannot speak in {}: {}", clean(m.param(1)), clean(m.text())),
            "311" | "307" | "330" | "318" | "401" => self.on_whois(m),
            _ => {}
        }
    }

    fn on_isupport(&mut self, token: &str) {
        let (name, value) = token.split_once('=').unwrap_or((token, ""));
        match name {
            "CASEMAPPING" => self.mapping = Casemapping::named(value),
            "MONITOR" => self.monitor = true,
            "BOT" if value.len() == 1 => self.bot_mode = format!("+{value}"),
            "PREFIX" => {
                if let Some((letters, signs)) = value.strip_prefix('(').and_then(|v| v.split_once(')')) {
                    self.prefix = (letters.to_owned(), signs.to_owned());
                }
            }
            "CHANMODES" => {
                let mut kinds = value.split(',');
                let always = [kinds.next(), kinds.next()].map(Option::unwrap_or_default).concat();
                self.modes = (always, kinds.next().unwrap_or("").to_owned());
            }
            _ => {}
        }
    }

    /// Our nick cannot be had: another one while registering, later while online.
    fn next_nick(&mut self, m: &Message) {
        if self.welcomed {
            return;
        }
        let nick = &self.irc.nick;
        let cut: String = nick.chars().take(8).collect();
        let mut candidates = self.irc.alt_nicks.clone();
        candidates.extend([format!("{nick}_"), format!("{nick}__")]);
        candidates.extend((1..10).map(|i| format!("{cut}{i}")));
        let Some(next) = candidates.get(self.tried).cloned() else {
            let why = format!("no nick is to be had: {} ({})", clean(m.text()), m.command);
            return if m.command == "432" { self.refused(&why) } else { self.close(&why) };
        };
        log!(Warning, "IRC: nick {}: {}; trying {next}", clean(m.param(1)), clean(m.text()));
        self.tried += 1;
        self.nick = next.clone();
        self.send("NICK", &[&next], None);
    }

    /// Registered. Tell services who we are, and join when they believe it.
    fn identify(&mut self, now: Instant) {
        if !self.bot_mode.is_empty() {
            let (nick, mode) = (self.nick.clone(), self.bot_mode.clone());
            self.send("MODE", &[&nick, &mode], None);
        }
        let Some(password) = self.irc.password.clone().filter(|_| !self.logged_in) else {
            return self.online(now);
        };
        (self.phase, self.until) = (Phase::Identifying, now + IDENTIFY);
        let Irc { nick, account, .. } = &self.irc;
        // With one parameter, services take the account of the nick we have.
        let who = if account != nick || !self.is_me(nick) { format!("{account} ") } else { String::new() };
        self.to_nickserv(&format!("IDENTIFY {who}{}", password.0));
    }

    fn to_nickserv(&mut self, text: &str) {
        let line = Line::secret("PRIVMSG", &[&self.irc.nickserv], Some(text));
        self.actions.push(Action::Send(line));
    }

    fn identified(&mut self, now: Instant) {
        self.logged_in = true;
        if self.phase == Phase::Identifying {
            self.online(now);
        }
    }

    fn online(&mut self, now: Instant) {
        log!(Info, "IRC: online as {}", self.nick);
        (self.phase, self.online_once, self.online_since) = (Phase::Online, true, Some(now));
        self.places.iter_mut().for_each(|p| p.retry = p.retry.map(|_| now));
        self.actions.push(Action::Online);
        if !self.is_wanted(&self.nick.clone()) {
            self.regain = Some((now + REGAIN.0, REGAIN.0 * 2));
            let nick = self.irc.nick.clone();
            if self.monitor {
                self.send("MONITOR", &["+", &nick], None);
            }
            self.recoveries = &["REGAIN", "RECOVER", "GHOST"];
            self.recover();
        }
        self.join_due(now);
    }

    /// Services differ in the word for "give me my nick"; an unknown word is answered as such.
    fn recover(&mut self) {
        if let (Some(password), Some((word, rest))) = (self.irc.password.clone(), self.recoveries.split_first()) {
            self.recoveries = rest;
            self.to_nickserv(&format!("{word} {} {}", self.irc.nick, password.0));
        }
    }

    fn is_wanted(&self, nick: &str) -> bool {
        self.mapping.same(nick, &self.irc.nick)
    }

    fn want_nick(&mut self) {
        if self.welcomed && !self.is_wanted(&self.nick) {
            self.send("NICK", &[&self.irc.nick.clone()], None);
        }
    }

    fn on_nick(&mut self, m: &Message, _: Instant) {
        let (old, new) = (m.nick().to_owned(), m.param(0).to_owned());
        self.forget_account(&old);
        if self.is_me(&old) {
            log!(Info, "IRC: nick is now {}", clean(&new));
            self.nick = new;
            self.source = None;
            if self.is_wanted(&self.nick) {
                (self.regain, self.recoveries) = (None, &[]);
                if self.monitor {
                    self.send("MONITOR", &["-", &self.irc.nick.clone()], None);
                }
            }
            return;
        }
        let (from, to) = (self.mapping.fold(&old), self.mapping.fold(&new));
        for place in &mut self.places {
            if let Some(ranks) = place.ranks.remove(&from) {
                place.ranks.insert(to.clone(), ranks);
            }
        }
        if self.is_wanted(&old) {
            self.want_nick();
        }
    }

    fn on_quit(&mut self, m: &Message, _: Instant) {
        self.forget_account(m.nick());
        let nick = self.mapping.fold(m.nick());
        self.places.iter_mut().for_each(|p| drop(p.ranks.remove(&nick)));
        if self.is_wanted(m.nick()) {
            self.want_nick();
        }
    }

    /// Channels that are due, several to a line; those with keys first, as JOIN wants them.
    fn join_due(&mut self, now: Instant) {
        if self.phase != Phase::Online {
            return;
        }
        let mut due: Vec<(String, String)> = Vec::new();
        for place in self.places.iter_mut().filter(|p| p.joined.is_none() && p.retry.is_some_and(|at| at <= now)) {
            // If the server says nothing at all, try again then.
            place.retry = Some(now + seconds(REJOIN[3]));
            due.push((place.name.clone(), place.key.clone()));
        }
        due.sort_by_key(|(_, key)| key.is_empty());
        while !due.is_empty() {
            let mut bytes = 0;
            let fits = due.iter().take(JOINS.0).take_while(|(name, key)| {
                bytes += name.len() + key.len() + 2;
                bytes <= JOINS.1
            });
            let count = fits.count().max(1);
            let (names, keys): (Vec<String>, Vec<String>) = due.drain(..count).unzip();
            let keys: Vec<String> = keys.into_iter().filter(|k| !k.is_empty()).collect();
            let params = [names.join(","), keys.join(",")];
            let params: Vec<&str> = params.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
            let line = if keys.is_empty() { Line::new } else { Line::secret }("JOIN", &params, None);
            self.actions.push(Action::Send(line));
        }
    }

    fn on_join(&mut self, m: &Message, now: Instant) {
        if !self.is_me(m.nick()) {
            return;
        }
        if m.source.contains('@') {
            self.source = Some(m.source.len());
        }
        if let Some(place) = self.place(m.param(0)) {
            log!(Info, "IRC: joined {}", place.name);
            (place.joined, place.tries) = (Some(now), 0);
            place.refusal.clear();
            place.ranks.clear();
        }
    }

    /// Someone has left a channel, or was made to.
    fn on_gone(&mut self, m: &Message, channel: &str, nick: &str, now: Instant) {
        self.forget_account(nick);
        let (me, folded) = (self.is_me(nick), self.mapping.fold(nick));
        let Some(place) = self.place(channel) else { return };
        place.ranks.remove(&folded);
        if !me {
            return;
        }
        if place.joined.take().is_some_and(|at| now >= at + CALM) {
            place.kicks = 0;
        }
        place.kicks += 1;
        place.retry = (place.kicks <= KICKS).then(|| now + seconds(30 << (place.kicks - 1)));
        let name = &place.name;
        let next = match place.retry {
            Some(at) => format!("back in {} s", (at - now).as_secs()),
            None => "waiting for an INVITE".into(),
        };
        log!(Warning, "IRC: {} made us leave {name}: {}; {next}", clean(m.nick()), clean(m.text()));
    }

    fn on_refusal(&mut self, m: &Message, now: Instant) {
        let Some(place) = self.place(m.param(1)).filter(|p| p.joined.is_none()) else { return };
        place.retry = Some(now + seconds(REJOIN[place.tries.min(REJOIN.len() - 1)]));
        place.tries += 1;
        let refusal = clean(m.text());
        if place.refusal != refusal {
            log!(Warning, "IRC: cannot join {}: {refusal} ({}); still trying", place.name, m.command);
            place.refusal = refusal;
        }
    }

    fn on_invite(&mut self, m: &Message, now: Instant) {
        if let Some(place) = self.place(m.param(1)).filter(|p| p.joined.is_none()) {
            (place.retry, place.kicks) = (Some(now), 0);
            self.join_due(now);
        }
    }

    fn on_names(&mut self, m: &Message) {
        let (mapping, (letters, signs)) = (self.mapping, self.prefix.clone());
        let Some(place) = self.place(m.param(2)) else { return };
        for name in m.text().split_whitespace() {
            let nick = name.trim_start_matches(|c| signs.contains(c));
            let shown = &name[..name.len() - nick.len()];
            let ranks = shown.chars().filter_map(|c| signs.find(c)).filter_map(|i| letters.chars().nth(i));
            let ranks: String = ranks.collect();
            // userhost-in-names is not asked for, but costs nothing to understand.
            let nick = mapping.fold(nick.split('!').next().unwrap_or(""));
            match ranks.is_empty() {
                true => place.ranks.remove(&nick),
                false => place.ranks.insert(nick, ranks),
            };
        }
    }

    fn on_mode(&mut self, m: &Message, now: Instant) {
        if self.is_me(m.param(0)) && m.param(1).starts_with('+') && m.param(1).contains('r') {
            return self.identified(now);
        }
        let (mapping, prefix, modes) = (self.mapping, self.prefix.0.clone(), self.modes.clone());
        let Some(place) = self.place(m.param(0)) else { return };
        let mut params = m.params.iter().skip(2);
        let mut set = true;
        for mode in m.param(1).chars() {
            match mode {
                '+' => set = true,
                '-' => set = false,
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
        let high: String = self.prefix.0.split_inclusive('o').next().unwrap_or("").to_owned();
        let nick = self.mapping.fold(nick);
        let ranks = self.place(channel).and_then(|p| p.ranks.get(&nick));
        high.ends_with('o') && ranks.is_some_and(|r| r.chars().any(|c| high.contains(c)))
    }

    fn on_privmsg(&mut self, m: &Message, _: Instant) {
        // Other bots, by the tag of IRCv3 or the one that InspIRCd 3 calls it.
        let bot = m.tags.iter().any(|(name, _)| name == "bot" || name.ends_with("/bot"));
        if self.is_me(m.nick()) || bot || !m.source.contains('!') {
            return;
        }
        let (target, raw) = (m.param(0), m.param(1));
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
                let answer = format!("\u{1}{what} {answer}\u{1}");
                self.actions.push(Action::Notice(m.nick().to_owned(), answer));
            }
            return;
        }
        let text = plain(raw);
        let text = match private {
            true => Some(text.trim()),
            false => [&self.nick, &self.irc.nick].iter().find_map(|nick| addressed(&text, nick, self.mapping)),
        };
        let Some(text) = text.map(str::to_owned) else { return };
        let place = if private { Some(m.nick().to_owned()) } else { self.place(target).map(|p| p.name.clone()) };
        let Some(place) = place else { return };
        let account = match m.tag("account") {
            Some(account) if self.caps.contains("account-tag") => Account::Is(account.to_owned()),
            None if self.caps.contains("account-tag") => Account::None,
            _ => Account::Unknown,
        };
        let op = !private && self.is_op(target, m.nick());
        let (nick, mask) = (m.nick().to_owned(), m.source.clone());
        self.actions.push(Action::Command(Ask { place, nick, mask, text, op, account }));
    }

    /// Services speak in NOTICEs; nobody else's are of interest.
    fn on_notice(&mut self, m: &Message, now: Instant) {
        let nickserv = self.irc.nickserv.split('@').next().unwrap_or("");
        if !self.mapping.same(m.nick(), nickserv) {
            return;
        }
        let text = plain(m.text()).to_ascii_lowercase();
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
            log!(Warning, "IRC: {}: {}", m.nick(), clean(&plain(m.text())));
            if self.phase == Phase::Identifying {
                self.online(now);
            }
        } else if says(&["ghost", "has been killed", "recovered", "regained", "has been released"]) {
            self.want_nick();
        }
    }

    /// Whoever changes nick or leaves has proved nothing.
    fn forget_account(&mut self, nick: &str) {
        if self.whois.remove(&self.mapping.fold(nick)).is_some() {
            self.actions.push(Action::Account(nick.to_owned(), Account::None));
        }
    }

    fn on_whois(&mut self, m: &Message) {
        let nick = m.param(1);
        let Some((host, account)) = self.whois.get_mut(&self.mapping.fold(nick)) else { return };
        match m.command.as_str() {
            // Someone else may have taken the nick since: then none of this counts.
            "311" if *host != format!("{}@{}", m.param(2), m.param(3)) => host.clear(),
            "330" => *account = Account::Is(m.param(2).to_owned()),
            "307" if *account == Account::Unknown => *account = Account::Is(nick.to_owned()),
            "318" | "401" => {
                let found = match account {
                    Account::Is(name) if !host.is_empty() => Account::Is(name.clone()),
                    _ => Account::None,
                };
                self.whois.remove(&self.mapping.fold(nick));
                self.actions.push(Action::Account(nick.to_owned(), found));
            }
            _ => {}
        }
    }
}
