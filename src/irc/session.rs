//! The conversation with an IRC server: registration, CAP, SASL, NickServ, our nick, channels,
//! liveness and back-off. Pure: it takes messages and `now`, and leaves actions and a deadline.

use super::wire::{Casemapping, Line, Message, addressed, is_channel};
use crate::command::{Account, Ask};
use crate::config::{Irc, Sasl};
use crate::text::{base64, clean, plain};
use std::collections::{BTreeMap, btree_map::Entry};
use std::mem::take;
use std::time::{Duration, Instant};

const fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

const CONNECT: Duration = seconds(120); // name lookup, all addresses and the TLS hand-shake
const REGISTRATION: Duration = seconds(60);
const STEP: Duration = seconds(20); // SASL, services and the message of the day may each take so long
/// First wait before a new connection (a restarted server sees us soon), doubling up to the second;
/// a connection that lasted longer than the third starts anew.
const BACK_OFF: (Duration, Duration, Duration) = (seconds(4), seconds(300), seconds(120));
const THROTTLED: Duration = seconds(120); // the least wait when the server says that we come too often
const SLOW: Duration = seconds(300); // the least wait for what only an operator or time can mend
const REGAIN: (Duration, Duration) = (seconds(15), seconds(600)); // asking for our nick: first, doubling up to
const REJOIN: [u64; 4] = [30, 60, 120, 300]; // seconds until a refused JOIN is tried again, the last for ever
const KICKS: (u32, Duration) = (5, seconds(3600)); // so many in a row: wait for an INVITE; a calm hour forgets them
const JOINS: (usize, usize) = (10, 400); // channels and bytes in one JOIN
const UNKNOWN_HOST: usize = 65; // our `user@host` until the server has shown it: a tilde, and a host of 63
const NICK_REFUSED: [&str; 5] = ["432", "433", "436", "437", "447"]; // 437 is for either
const JOIN_REFUSED: [&str; 11] = ["403", "405", "437", "471", "473", "474", "475", "476", "477", "489", "520"];

/// Bytes of offered capabilities, and people with a rank in one channel, that we care to remember: a
/// server could send more for ever.
const CAPS: usize = 16 * 1024;
const RANKED: usize = 10_000;

/// What the session wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Connect,
    Close(String), // drop the connection, for this reason
    Send(Line),    // at once
    Command(Ask),
    Notice(String, String), // the answer to this nick's CTCP, in private
    Pong(String),           // the server has answered the PING with this token
    Account { nick: String, mask: String, account: Account }, // who the one with this mask is, after Session::whois
    Fatal(String),          // no retry mends this
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting,
    Registering,
    Identifying,
    Online,
}

/// A channel that we are in or want to be in.
#[derive(Default)]
struct Place {
    name: String,
    key: String,
    joined: Option<Instant>,
    retry: Option<Instant>, // never, when kicked too often
    tries: usize,
    kicks: u32,
    refusal: String,
    ranks: BTreeMap<String, String>, // PREFIX letters by folded nick
}

/// What is known of one connection and forgotten with it.
#[derive(Default)]
struct Link {
    nick: String,
    user_host: Option<usize>, // bytes of ours as others see it
    tried: usize,             // nicks other than the first
    welcomed: bool,
    spoken: bool,  // the server has said something
    closing: bool, // what still comes is of no interest
    logged_in: bool,
    offered: String, // capabilities, each behind a blank
    account_tag: bool,
    mapping: Casemapping,
    prefix: (String, String), // PREFIX: mode letters and their signs, highest first
    modes: (String, String),  // CHANMODES: always with a parameter, and only when set
    monitor: bool,
    bot_mode: Option<String>,
    asked: bool,                         // a PING is on its way
    regain: Option<(Instant, Duration)>, // when to ask for our nick again, and how long to wait then
    recoveries: &'static [&'static str], // the words to try on NickServ
    whois: BTreeMap<String, Proof>,      // by folded nick
}

/// What WHOIS has said so far of the one with this mask.
#[derive(Debug, Default)]
struct Proof {
    mask: String,
    same: bool, // the one who has the nick now is the one who asked
    account: Account,
}

/// The session; it outlives connections.
pub struct Session {
    irc: Irc,
    actions: Vec<Action>,
    phase: Phase,
    until: Instant, // when the phase is over, one way or the other
    heard: Instant,
    back_off: Duration,
    least_wait: Duration,
    random: u64,
    last_online: Option<Instant>,
    link: Link,
    places: Vec<Place>,
}

impl Session {
    pub fn new(irc: Irc, now: Instant, seed: u64) -> Session {
        let mut session = Session {
            irc,
            actions: Vec::new(),
            phase: Phase::Waiting,
            until: now,
            heard: now,
            back_off: BACK_OFF.0,
            least_wait: Duration::ZERO,
            random: seed | 1,
            last_online: None,
            link: Link::default(),
            places: Vec::new(),
        };
        for channel in session.irc.channels.clone() {
            session.join(&channel.name, channel.key.as_ref().map_or("", |k| &k.0), now);
        }
        session
    }

    /// What is to be done since the last call.
    pub fn actions(&mut self) -> Vec<Action> {
        take(&mut self.actions)
    }

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

    /// The channels that we are in.
    pub fn channels(&self) -> Vec<&str> {
        self.places.iter().filter(|p| p.joined.is_some()).map(|p| p.name.as_str()).collect()
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

    pub fn tick(&mut self, now: Instant) {
        let (silence, limit) = (now.saturating_duration_since(self.heard), self.irc.ping_timeout);
        match self.phase {
            Phase::Online if silence >= limit => {
                self.close("the server has gone silent and does not answer PING", None);
            }
            Phase::Online => {
                if silence >= limit * 3 / 5 && !self.link.asked {
                    self.link.asked = true;
                    self.send(Line::new("PING", &[], Some("alive")));
                }
                if let Some((_, wait)) = self.link.regain.filter(|r| r.0 <= now) {
                    self.link.regain = Some((now + wait, (wait * 2).min(REGAIN.1)));
                    self.want_nick();
                }
                self.join_due(now);
            }
            _ if now < self.until => {}
            Phase::Waiting => {
                (self.phase, self.until) = (Phase::Connecting, now + CONNECT);
                self.actions.push(Action::Connect);
            }
            Phase::Connecting => self.close("no connection within two minutes", None),
            Phase::Registering if self.link.welcomed => self.identify(now),
            Phase::Registering => self.close("registration took too long", None),
            Phase::Identifying => self.online(now),
        }
    }

    /// The connection stands.
    pub fn up(&mut self, now: Instant) {
        (self.phase, self.until, self.heard) = (Phase::Registering, now + REGISTRATION, now);
        let (prefix, modes) = (("ov".into(), "@+".into()), ("beIk".into(), "l".into()));
        self.link = Link { nick: self.irc.nick.clone(), prefix, modes, ..Link::default() };
        if let Some(password) = &self.irc.server_password {
            self.send(Line::secret("PASS", &[], Some(&password.0)));
        }
        self.send(Line::new("CAP", &["LS", "302"], None));
        self.send(Line::new("NICK", &[&self.irc.nick], None));
        self.send(Line::new("USER", &[&self.irc.username, "0", "*"], Some(&self.irc.realname)));
    }

    /// The connection is gone, or could not be made.
    pub fn down(&mut self, why: &str, now: Instant) {
        if self.phase == Phase::Online && self.last_online.is_some_and(|at| now >= at + BACK_OFF.2) {
            self.back_off = BACK_OFF.0;
        }
        let silent = self.phase == Phase::Registering && !self.link.spoken && !self.irc.use_ssl;
        let hint = if silent { " (is this a TLS port? use_ssl = yes)" } else { "" };
        // Xorshift; up to a quarter more or less, so that many bots do not come back at once.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let wait = self.back_off.mul_f64(0.75 + (self.random % 1000) as f64 / 2000.0).max(take(&mut self.least_wait));
        log!(Warning, "IRC: {why}{hint}; next try in {} s", wait.as_secs());
        self.back_off = (self.back_off * 2).min(BACK_OFF.1);
        (self.phase, self.until) = (Phase::Waiting, now + wait);
        let unknown: Vec<String> = self.link.whois.keys().cloned().collect();
        unknown.iter().for_each(|nick| self.end_of_whois(nick, false));
        self.places.iter_mut().for_each(|p| (p.joined, p.tries) = (None, 0));
    }

    /// Wants to be in a channel, from now on.
    pub fn join(&mut self, name: &str, key: &str, now: Instant) {
        let (key, retry) = (key.to_owned(), Some(now));
        match self.place(name) {
            Some(place) => (place.key, place.retry, place.kicks) = (key, retry, 0),
            None => self.places.push(Place { name: name.to_owned(), key, retry, ..Place::default() }),
        }
        self.join_due(now);
    }

    /// Wants to be in a channel no more, and says there why.
    pub fn leave(&mut self, name: &str, why: &str) {
        if self.reaches(name) {
            self.send(Line::new("PART", &[name], Some(why).filter(|w| !w.is_empty())));
        }
        self.places.retain(|p| !self.link.mapping.same(&p.name, name));
    }

    /// A channel of ours as we spell it; any other name as it is.
    pub fn spelled(&self, name: &str) -> String {
        let ours = self.places.iter().find(|p| self.link.mapping.same(&p.name, name));
        ours.map_or(name, |p| &p.name).to_owned()
    }

    /// Asks the server who a nick is. What it says counts only for the one with this mask.
    pub fn whois(&mut self, nick: &str, mask: &str) {
        if let Entry::Vacant(entry) = self.link.whois.entry(self.link.mapping.fold(nick)) {
            entry.insert(Proof { mask: mask.to_owned(), ..Proof::default() });
            self.send(Line::new("WHOIS", &[nick], None));
        }
    }

    /// Takes in a message. Each arm holds the parameters that it needs; a message with fewer is odd
    /// and falls through.
    pub fn message(&mut self, m: &Message, now: Instant) {
        if self.link.closing {
            return;
        }
        (self.heard, self.link.asked, self.link.spoken) = (now, false, true);
        let params: Vec<&str> = m.params.iter().map(String::as_str).collect();
        let sasl = self.irc.sasl != Sasl::No;
        match (m.command.as_str(), &params[..]) {
            ("PING", [.., token]) => self.send(Line::new("PONG", &[], Some(token))),
            ("PONG", [.., token]) => self.actions.push(Action::Pong((*token).to_owned())),
            ("ERROR", [.., why]) => {
                let said = why.to_ascii_lowercase();
                // ngIRCd has no 464 for a wrong server password.
                if said.contains("bad password") && !self.link.welcomed {
                    return self.refuse(&format!("server_password is refused: {}", clean(why)));
                }
                let throttled = ["throttl", "too fast", "too many"].iter().any(|w| said.contains(w));
                let why = format!("the server closes the connection: {}", clean(why));
                self.close(&why, throttled.then_some(THROTTLED));
            }
            ("CAP", [_, "LS", more @ .., caps]) => self.on_offer(caps, *more == ["*"]),
            ("CAP", [_, "ACK", .., caps]) => {
                self.link.account_tag |= caps.split_whitespace().any(|c| c == "account-tag");
                if sasl && !self.link.logged_in {
                    self.until = self.until.min(now + STEP);
                    self.send(Line::new("AUTHENTICATE", &[self.mechanism()], None));
                } else {
                    self.send(Line::new("CAP", &["END"], None));
                }
            }
            ("CAP", [_, "NAK", .., _]) if sasl => self.no_sasl("the server refuses it"),
            ("CAP", [_, "NAK", .., _]) => self.send(Line::new("CAP", &["END"], None)),
            ("AUTHENTICATE", ["+"]) => self.authenticate(),
            ("001", [_, ..]) if sasl && !self.link.logged_in => self.no_sasl("the server let us in before it"),
            ("001", [nick, ..]) => {
                (self.link.nick, self.link.welcomed, self.until) = ((*nick).to_owned(), true, now + STEP);
            }
            ("005", tokens) => tokens.iter().for_each(|token| self.on_isupport(token)),
            ("376" | "422", _) if self.phase == Phase::Registering && self.link.welcomed => self.identify(now),
            ("396", [_, host, ..]) => self.link.user_host = Some(self.irc.username.len() + 2 + host.len()),
            ("900", _) => self.identified(true, now),
            ("903" | "907", _) if !self.link.welcomed => {
                self.link.logged_in = true;
                self.send(Line::new("CAP", &["END"], None));
            }
            ("902" | "904" | "905", [.., why]) => self.refuse(&format!("SASL failed: {}", clean(why))),
            ("906", _) => self.no_sasl("it was aborted"),
            ("421", [_, "CAP", ..]) if sasl => self.no_sasl("the server knows no CAP"),
            ("464", [.., why]) => self.refuse(&format!("server_password is refused: {}", clean(why))),
            ("465", [.., why]) => self.close(&format!("banned from this server: {}", clean(why)), Some(SLOW)),
            (n, [_, nick, .., why]) if NICK_REFUSED.contains(&n) && !is_channel(nick) => {
                self.on_nick_refused(&format!("nick {}: {} ({n})", clean(nick), clean(why)), n == "432");
            }
            (n, [_, channel, why @ ..]) if JOIN_REFUSED.contains(&n) => self.on_channel(m, channel, why, now),
            ("404", [_, channel, .., why]) => log!(Warning, "IRC: cannot speak in {}: {}", clean(channel), clean(why)),
            ("353", [_, _, channel, names]) => self.on_channel(m, channel, &[names], now),
            ("731", [.., nicks]) if nicks.split(',').any(|n| self.is_wanted(n)) => self.want_nick(),
            ("307" | "311" | "330", [_, nick, rest @ ..]) => self.on_whois(&m.command, nick, rest),
            ("318" | "401", [_, nick, ..]) => self.end_of_whois(nick, true),
            ("PRIVMSG", [target, text]) => self.on_privmsg(m, target, text),
            ("NOTICE", [_, text]) => self.on_notice(m.nick(), text, now),
            ("NICK", [new, ..]) => self.on_nick(m.nick(), Some(new)),
            ("QUIT", _) => self.on_nick(m.nick(), None),
            ("JOIN", [channel, ..]) if self.is_me(m.nick()) => {
                self.link.user_host = m.source.split_once('!').map(|(_, rest)| rest.len());
                self.on_channel(m, channel, &[], now);
            }
            ("PART", [channel, ..]) => {
                self.end_of_whois(m.nick(), false);
                self.on_channel(m, channel, &[m.nick()], now);
            }
            ("KICK", [channel, nick, ..]) => {
                self.end_of_whois(nick, false);
                self.on_channel(m, channel, &[nick], now);
            }
            ("INVITE", [_, channel]) => self.on_channel(m, channel, &[], now),
            ("MODE", [target, modes, ..]) if self.is_me(target) && modes.starts_with('+') && modes.contains('r') => {
                self.identified(true, now);
            }
            ("MODE", [channel, changes @ ..]) => self.on_channel(m, channel, changes, now),
            _ => {}
        }
    }

    fn send(&mut self, line: Line) {
        self.actions.push(Action::Send(line));
    }

    /// Ends the connection; the next one waits for `least`, if given.
    fn close(&mut self, why: &str, least: Option<Duration>) {
        self.least_wait = self.least_wait.max(least.unwrap_or_default());
        self.link.closing = true;
        self.actions.push(Action::Close(why.to_owned()));
    }

    /// A refusal that an operator must mend: the end, unless things once were different.
    fn refuse(&mut self, why: &str) {
        match self.last_online {
            Some(_) => self.close(why, Some(SLOW)),
            None => self.actions.push(Action::Fatal(why.to_owned())),
        }
    }

    fn fold(&self, name: &str) -> String {
        self.link.mapping.fold(name)
    }

    fn place(&mut self, name: &str) -> Option<&mut Place> {
        self.places.iter_mut().find(|p| self.link.mapping.same(&p.name, name))
    }

    fn is_me(&self, nick: &str) -> bool {
        self.link.mapping.same(nick, &self.link.nick)
    }

    /// Whether this is the nick that we want, perhaps with a mask behind it.
    fn is_wanted(&self, nick: &str) -> bool {
        self.link.mapping.same(nick.split('!').next().unwrap_or(""), &self.irc.nick)
    }

    /// The server says what it is capable of; when there is no `more` to come, we say what we want.
    fn on_offer(&mut self, caps: &str, more: bool) {
        if self.link.offered.len() < CAPS {
            self.link.offered += &format!(" {caps}");
        }
        if more || self.link.welcomed {
            return;
        }
        let (link, sasl) = (&self.link, self.irc.sasl != Sasl::No);
        let offer = |name: &str| link.offered.split_whitespace().find(|c| c.split('=').next() == Some(name));
        let listed = offer("sasl").map(|c| c.split_once('=').map_or("", |(_, mechanisms)| mechanisms));
        match listed.filter(|l| !l.is_empty()) {
            _ if !sasl => {}
            None if listed.is_none() => return self.no_sasl("the server does not offer it (services down?)"),
            Some(l) if l.split(',').all(|m| m != self.mechanism()) => {
                return self.no_sasl(&format!("the server offers only {l}"));
            }
            _ => {}
        }
        let mut wanted = vec!["account-tag", "message-tags", "multi-prefix", "sasl"];
        wanted.retain(|&name| offer(name).is_some() && (sasl || name != "sasl"));
        self.send(match wanted.is_empty() {
            true => Line::new("CAP", &["END"], None),
            false => Line::new("CAP", &["REQ"], Some(&wanted.join(" "))),
        });
    }

    fn mechanism(&self) -> &'static str {
        if self.irc.sasl == Sasl::External { "EXTERNAL" } else { "PLAIN" }
    }

    /// SASL was asked for and cannot be had now. We never go on without it.
    fn no_sasl(&mut self, why: &str) {
        let why = format!("no SASL {}: {}; not going on without", self.mechanism(), clean(why));
        self.close(&why, Some(THROTTLED));
    }

    fn authenticate(&mut self) {
        let Irc { sasl, account, password, .. } = &self.irc;
        let secret = match password {
            Some(p) if *sasl == Sasl::Plain => base64(format!("{account}\0{account}\0{}", p.0).as_bytes()),
            _ => String::new(),
        };
        // Pieces of 400 bytes; a full last one is followed by an empty one (IRCv3 sasl-3.1).
        for at in (0..=secret.len()).step_by(400) {
            let piece = if at < secret.len() { &secret[at..secret.len().min(at + 400)] } else { "+" };
            self.send(Line::secret("AUTHENTICATE", &[piece], None));
        }
    }

    fn on_isupport(&mut self, token: &str) {
        let (name, value) = token.split_once('=').unwrap_or((token, ""));
        let prefix = value.strip_prefix('(').and_then(|v| v.split_once(')'));
        match (name, prefix, &value.split(',').collect::<Vec<_>>()[..]) {
            ("CASEMAPPING", ..) => self.link.mapping = Casemapping::named(value),
            ("MONITOR", ..) => self.link.monitor = true,
            ("BOT", ..) if value.len() == 1 => self.link.bot_mode = Some(format!("+{value}")),
            ("PREFIX", Some((letters, signs)), _) => self.link.prefix = (letters.to_owned(), signs.to_owned()),
            ("CHANMODES", _, [lists, always, when_set, ..]) => {
                self.link.modes = (format!("{lists}{always}"), (*when_set).to_owned());
            }
            _ => {}
        }
    }

    /// While registering, the next name; later, the next try will come.
    fn on_nick_refused(&mut self, why: &str, erroneous: bool) {
        if self.link.welcomed {
            return;
        }
        let wanted = &self.irc.nick;
        let more = [format!("{wanted}_"), format!("{wanted}__")];
        // Servers that allow only nine characters refuse a longer name altogether.
        let short = (1..10).map(|i| format!("{wanted:.8}{i}"));
        match self.irc.alt_nicks.iter().cloned().chain(more).chain(short).nth(self.link.tried) {
            Some(next) => {
                log!(Warning, "IRC: {why}; trying {next}");
                self.link.tried += 1;
                self.send(Line::new("NICK", &[&next], None));
                self.link.nick = next;
            }
            None if erroneous => self.refuse(why),
            None => self.close(why, None),
        }
    }

    /// Registered: tell services who we are, and join when they believe it.
    fn identify(&mut self, now: Instant) {
        if let Some(mode) = &self.link.bot_mode {
            self.send(Line::new("MODE", &[&self.link.nick, mode], None));
        }
        let Irc { account, password: Some(password), nickserv, .. } = &self.irc else { return self.online(now) };
        if self.link.logged_in {
            return self.online(now);
        }
        (self.phase, self.until) = (Phase::Identifying, now + STEP);
        // With the password alone, services take the account of the nick that we have.
        let account = if self.is_me(account) { String::new() } else { format!("{account} ") };
        self.send(Line::secret("PRIVMSG", &[nickserv], Some(&format!("IDENTIFY {account}{}", password.0))));
    }

    /// Services have answered; `proved`: they believe us.
    fn identified(&mut self, proved: bool, now: Instant) {
        self.link.logged_in |= proved;
        if self.phase == Phase::Identifying {
            self.online(now);
        }
    }

    fn online(&mut self, now: Instant) {
        log!(Info, "IRC: online as {}", self.link.nick);
        (self.phase, self.last_online) = (Phase::Online, Some(now));
        if !self.is_wanted(&self.link.nick) {
            self.link.regain = Some((now + REGAIN.0, REGAIN.0 * 2));
            if self.link.monitor {
                self.send(Line::new("MONITOR", &["+", &self.irc.nick], None));
            }
            self.link.recoveries = &["REGAIN", "RECOVER", "GHOST"];
            self.recover();
        }
        self.places.iter_mut().for_each(|p| p.retry = p.retry.map(|_| now));
        self.join_due(now);
    }

    /// Services differ in their word for "give me my nick"; one that is wrong is answered as such.
    fn recover(&mut self) {
        if let (Irc { nick, password: Some(p), nickserv, .. }, [word, rest @ ..]) = (&self.irc, self.link.recoveries) {
            self.link.recoveries = rest;
            self.send(Line::secret("PRIVMSG", &[nickserv], Some(&format!("{word} {nick} {}", p.0))));
        }
    }

    fn want_nick(&mut self) {
        if self.phase == Phase::Online && !self.is_wanted(&self.link.nick) {
            self.send(Line::new("NICK", &[&self.irc.nick], None));
        }
    }

    /// Services speak in NOTICEs; nobody else's are of interest.
    fn on_notice(&mut self, nick: &str, text: &str, now: Instant) {
        if !self.link.mapping.same(nick, self.irc.nickserv.split('@').next().unwrap_or("")) {
            return;
        }
        let text = plain(text).to_ascii_lowercase();
        let says = |words: &str| words.split('|').any(|w| text.contains(w));
        if says("unknown command|invalid command") {
            self.recover();
        } else if says("now recognized|now identified|already identified|now logged in|password accepted") {
            self.identified(true, now);
        } else if says("incorrect|invalid password|not registered|isn't registered") {
            log!(Warning, "IRC: {}: {}", clean(nick), clean(&text));
            self.identified(false, now);
        } else if says("ghost|killed|recovered|regained|released") {
            self.want_nick();
        }
    }

    /// Someone has another nick, or none any more (QUIT).
    fn on_nick(&mut self, old: &str, new: Option<&str>) {
        self.end_of_whois(old, false);
        let (from, to) = (self.fold(old), new.map(|n| self.fold(n)));
        for place in &mut self.places {
            let ranks = place.ranks.remove(&from);
            place.ranks.extend(to.clone().zip(ranks));
        }
        match new {
            Some(new) if self.is_me(old) => {
                log!(Info, "IRC: our nick is now {}", clean(new));
                self.link.nick = new.to_owned();
                if self.is_wanted(new) && self.link.regain.take().is_some() && self.link.monitor {
                    self.send(Line::new("MONITOR", &["-", new], None));
                }
            }
            _ if self.is_wanted(old) => self.want_nick(),
            _ => {}
        }
    }

    /// Joins the channels that are due, several to a line; keyed ones first, as JOIN wants them.
    fn join_due(&mut self, now: Instant) {
        if self.phase != Phase::Online {
            return;
        }
        let mut due: Vec<(String, String)> = Vec::new();
        for place in self.places.iter_mut().filter(|p| p.joined.is_none() && p.retry.is_some_and(|at| at <= now)) {
            // If the server does not say anything at all, we try again then.
            place.retry = Some(now + SLOW);
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
            let (names, mut keys): (Vec<String>, Vec<String>) = due.drain(..count).unzip();
            keys.retain(|k| !k.is_empty());
            self.send(match keys.is_empty() {
                true => Line::new("JOIN", &[&names.join(",")], None),
                false => Line::secret("JOIN", &[&names.join(","), &keys.join(",")], None),
            });
        }
    }

    /// What happens in a channel that is ours, or on our way into it.
    fn on_channel(&mut self, m: &Message, channel: &str, rest: &[&str], now: Instant) {
        let Session { places, link, .. } = self;
        let (mapping, (letters, signs)) = (link.mapping, &link.prefix);
        let Some(place) = places.iter_mut().find(|p| mapping.same(&p.name, channel)) else { return };
        place.ranks.retain(|_, ranks| !ranks.is_empty());
        if place.ranks.len() > RANKED {
            place.ranks.clear();
        }
        match (m.command.as_str(), rest) {
            ("JOIN", _) => {
                log!(Info, "IRC: joined {}", place.name);
                (place.joined, place.tries) = (Some(now), 0);
                place.refusal.clear();
                place.ranks.clear();
            }
            ("PART" | "KICK", [nick, ..]) => {
                place.ranks.remove(&mapping.fold(nick));
                if !mapping.same(nick, &link.nick) {
                    return;
                }
                let calm = place.joined.take().is_some_and(|at| now >= at + KICKS.1);
                place.kicks = if calm { 1 } else { place.kicks + 1 };
                let wait = (place.kicks <= KICKS.0).then(|| 15 << place.kicks);
                place.retry = wait.map(|secs| now + seconds(secs));
                let next = wait.map_or("waiting for an INVITE".into(), |secs| format!("back in {secs} s"));
                log!(
                    Warning,
                    "IRC: {} put us out of {}: {}; {next}",
                    clean(m.nick()),
                    place.name,
                    clean(m.params.last().map_or("", |p| p))
                );
            }
            ("353", [names]) => {
                for name in names.split_whitespace() {
                    let nick = name.trim_start_matches(|c| signs.contains(c));
                    let shown = name.chars().map_while(|c| signs.find(c));
                    place.ranks.insert(mapping.fold(nick), shown.filter_map(|i| letters.chars().nth(i)).collect());
                }
            }
            ("MODE", [changes, params @ ..]) => {
                let (mut set, mut params) = (true, params.iter());
                for mode in changes.chars() {
                    match mode {
                        '+' | '-' => set = mode == '+',
                        rank if letters.contains(rank) => {
                            let Some(nick) = params.next() else { return };
                            let ranks = place.ranks.entry(mapping.fold(nick)).or_default();
                            ranks.retain(|r| r != rank);
                            ranks.extend(set.then_some(rank));
                        }
                        other if link.modes.0.contains(other) || (set && link.modes.1.contains(other)) => {
                            params.next();
                        }
                        _ => {}
                    }
                }
            }
            _ if place.joined.is_some() => {}
            ("INVITE", _) => {
                (place.retry, place.kicks) = (Some(now), 0);
                self.join_due(now);
            }
            (numeric, [.., why]) => {
                place.retry = Some(now + seconds(REJOIN[place.tries.min(REJOIN.len() - 1)]));
                place.tries += 1;
                if place.refusal != *why {
                    log!(Warning, "IRC: cannot join {}: {} ({numeric}); still trying", place.name, clean(why));
                    place.refusal = (*why).to_owned();
                }
            }
            _ => {}
        }
    }

    fn on_privmsg(&mut self, m: &Message, target: &str, raw: &str) {
        // IRCv3's tag for bots, and the name that InspIRCd 3 has for it.
        let bot = m.tags().any(|(name, _)| name == "bot" || name.ends_with("/bot"));
        if self.is_me(m.nick()) || bot || !m.source.contains('!') {
            return;
        }
        let (nick, mask, private) = (m.nick().to_owned(), m.source.clone(), self.is_me(target));
        if let Some(ctcp) = raw.strip_prefix('\u{1}') {
            let ctcp = ctcp.trim_end_matches('\u{1}');
            let (what, rest) = ctcp.split_once(' ').unwrap_or((ctcp, ""));
            let answer = match what {
                "VERSION" if private => concat!("buildbot-irc ", env!("CARGO_PKG_VERSION")).to_owned(),
                "PING" if private => clean(rest),
                _ => return,
            };
            return self.actions.push(Action::Notice(nick, format!("\u{1}{what} {answer}\u{1}")));
        }
        let account = match m.tags().find(|(name, _)| *name == "account") {
            _ if !self.link.account_tag => Account::Unknown,
            // Nothing else that IRCv3 escapes can be in an account's name.
            Some((_, account)) => Account::Is(account.replace(r"\\", r"\")),
            None => Account::None,
        };
        let text = plain(raw);
        let ours = [&self.link.nick, &self.irc.nick];
        let command = ours.iter().find_map(|name| addressed(&text, name, self.link.mapping));
        // Operator or higher: the PREFIX letters up to `o`.
        let letters = self.link.prefix.0.clone();
        let high = letters.find('o').map_or("", |o| &letters[..=o]);
        let folded = self.fold(&nick);
        let (place, text, op) = match (command, self.place(target)) {
            // Some address us by habit even there.
            _ if private => (nick.clone(), command.unwrap_or(text.trim()), false),
            (Some(command), Some(place)) => {
                let op = place.ranks.get(&folded).is_some_and(|r| r.contains(|c| high.contains(c)));
                (place.name.clone(), command, op)
            }
            _ => return,
        };
        self.actions.push(Action::Command(Ask {
            place,
            nick,
            mask,
            text: text.to_owned(),
            op,
            own_only: false,
            account,
        }));
    }

    /// The server tells something of a nick.
    fn on_whois(&mut self, numeric: &str, nick: &str, rest: &[&str]) {
        let folded = self.fold(nick);
        let Some(Proof { mask, same, account }) = self.link.whois.get_mut(&folded) else { return };
        match (numeric, rest) {
            // Someone else may have taken the nick since: then none of this counts.
            ("311", [user, host, ..]) => *same = mask.ends_with(&format!("!{user}@{host}")),
            ("330", [name, ..]) => *account = Account::Is((*name).to_owned()),
            ("307", _) if *account == Account::Unknown => *account = Account::Is(nick.to_owned()),
            _ => {}
        }
    }

    /// The answer is complete; or, not `whole`: the nick has gone or changed, which proves nothing.
    pub fn end_of_whois(&mut self, nick: &str, whole: bool) {
        if let Some(Proof { mask, same, account }) = self.link.whois.remove(&self.fold(nick)) {
            let proved = whole && same && account != Account::Unknown;
            let account = if proved { account } else { Account::None };
            self.actions.push(Action::Account { nick: nick.to_owned(), mask, account });
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
        rig.hear("ERROR :Closing link: trying to reconnect too fast (throttled)\n:s 001 bot :hi\nERROR :again");
        rig.said();
        assert_eq!(rig.others.len(), 3, "what comes after the end is of no interest: {:?}", rig.others);
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
            ("@account=J\\\\oe :op!u@h PRIVMSG #A :BOT: help", got("#a", true, Account::Is("J\\oe".into()))),
            (":admin!u@h PRIVMSG #a :\u{2}bot\u{2}, help", got("#a", true, Account::None)),
            (":half!u@h PRIVMSG #a :bot: help", got("#a", false, Account::None)),
            (":voice!u@h PRIVMSG bot :help", got("voice", false, Account::None)),
            (":voice!u@h PRIVMSG bot :Bot: help", got("voice", false, Account::None)),
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
            (whois.trim().into(), Account::None),
            (format!(":joe!u@h NICK :x{whois}"), Account::None),
            (format!(":joe!u@h QUIT :x{whois}"), Account::None),
        ] {
            let mut rig = Rig::online("");
            rig.session.whois("joe", "joe!u@h");
            assert_eq!(rig.said(), ["WHOIS joe"]);
            rig.hear(&answer);
            rig.said();
            let proof = Action::Account { nick: "joe".into(), mask: "joe!u@h".into(), account: expected };
            assert_eq!(rig.others[1..], [proof], "{answer}");
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
