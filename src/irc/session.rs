//! The conversation with an IRC server: registration, CAP, SASL, NickServ, our nick, channels,
//! liveness and back-off. Pure: it takes messages and `now`, and leaves actions and a deadline.

use super::wire::{Casemapping, Line, Message, addressed, is_channel, plain};
use crate::command::{Account, Ask};
use crate::config::{Irc, Sasl};
use crate::text::{base64, clean};
use std::collections::BTreeMap;
use std::mem::take;
use std::time::{Duration, Instant};

const CONNECT: Duration = Duration::from_secs(300); // name lookup, all addresses and the TLS hand-shake
const REGISTRATION: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(20); // SASL and services may each take so long
const PROOF: Duration = Duration::from_secs(40); // and so long may WHOIS, which waits its turn
const BACK_OFF: (u64, u64) = (4, 300); // seconds until a new connection, doubling: a restarted server sees us soon
const STABLE: Duration = Duration::from_secs(120); // after a connection that lasted so long it starts anew
const THROTTLED: u64 = 120; // seconds, the least wait when the server says that we come too often
const SLOW: u64 = 300; // seconds, the least wait for what only an operator or time can mend
const REGAIN: (u64, u64) = (15, 600); // seconds between requests for our nick, doubling
const REJOIN: [u64; 4] = [30, 60, 120, 300]; // seconds until a refused JOIN is tried again, the last for ever
const KICKED: (u64, u64) = (30, 480); // seconds until we come back, doubling
const KICKS: u32 = 5; // so many in a row: wait for an INVITE
const CALM: Duration = Duration::from_secs(3600); // in a channel for so long: not in a row
const JOINS: (usize, usize) = (10, 400); // channels and bytes in one JOIN
const JOIN_REFUSED: &str =
    "403 405 437 448 470 471 473 474 475 476 477 479 480 485 489 495 520 926";
const UNKNOWN_HOST: usize = 65; // our `user@host` until the server has shown it: a tilde, and a host of 63
// Who may ask for history does not get it unasked: old commands would run again.
const CAPS: [&str; 5] = [
    "account-tag",
    "draft/chathistory",
    "message-tags",
    "multi-prefix",
    "sasl",
];
const PROOFS: usize = 32; // under way at once
const UNHEARD: Duration = Duration::from_secs(600); // a channel that could not be told is tried again then
const ABSENT: Duration = Duration::from_secs(3600); // and a person
const NOT_PASSED_ON: [&str; 4] = ["401", "404", "477", "531"];
const RANKED: usize = 10_000; // people with a rank in one channel: a server could name more for ever

/// What the session wants done.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    Connect,
    Close(String),     // drop the connection, for this reason
    Send(Line),        // at once
    Ask(String, Line), // in its turn, among the replies to that place
    Command(Ask),
    Notice(String, String), // the answer to this nick's CTCP, in private
    Pong(String),           // the server has answered the PING with this token
    Unheard(String),        // what was just said to this target has not been passed on
    Fatal(String),          // no retry mends this
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Connecting,
    Registering, // until the welcome
    Identifying, // until services know us, or the end of the welcome if they need not
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
    spoken: bool,             // the server has said something
    asked: bool,              // a PING is on its way
    logged_in: bool,          // by SASL
    refused: bool,            // services do not take our password
    offered: BTreeMap<&'static str, String>, // capabilities that we know, with their values
    account_tag: bool,
    mapping: Casemapping,
    prefix: (String, String), // PREFIX: mode letters and their signs, highest first
    modes: String,            // CHANMODES
    recoveries: &'static [&'static str], // the words to try on NickServ
    unheard: Vec<(String, Instant)>, // targets that cannot be told, and until when not to try
}

impl Link {
    /// A sign that this target can be told again.
    fn heard(&mut self, target: &str) {
        let mapping = self.mapping;
        self.unheard.retain(|(name, _)| !mapping.same(name, target));
    }
}

/// A command whose asker WHOIS is to prove.
struct Proof {
    ask: Ask,
    until: Instant,
    same: bool, // the one who has the nick now is the one who asked
}

/// The session; it outlives connections.
pub struct Session {
    irc: Irc,
    actions: Vec<Action>,
    phase: Phase,
    until: Instant, // when the phase is over, or silence is no longer normal
    failures: u32,
    least_wait: Duration,
    random: u64,
    last_online: Option<Instant>,
    regain: (Instant, u32), // when to ask for our nick again, if we have another, and how often we have
    link: Link,
    places: Vec<Place>,
    proofs: Vec<Proof>,
}

/// Seconds, doubled so often, up to a limit.
fn doubled((first, most): (u64, u64), times: u32) -> Duration {
    Duration::from_secs((first << times.min(16)).min(most))
}

impl Session {
    pub fn new(irc: Irc, now: Instant, random: u64) -> Session {
        let mut session = Session {
            irc,
            actions: Vec::new(),
            phase: Phase::Waiting,
            until: now,
            failures: 0,
            least_wait: Duration::ZERO,
            random,
            last_online: None,
            regain: (now, 0),
            link: Link::default(),
            places: Vec::new(),
            proofs: Vec::new(),
        };
        for channel in session.irc.channels.clone() {
            session.join(
                &channel.name,
                channel.key.as_ref().map_or("", |k| &k.0),
                now,
            );
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
        self.link.nick.len()
            + 1
            + self
                .link
                .user_host
                .unwrap_or(self.irc.username.len() + UNKNOWN_HOST)
    }

    /// The channels that we are in.
    pub fn channels(&self) -> Vec<&str> {
        self.places
            .iter()
            .filter(|p| p.joined.is_some())
            .map(|p| p.name.as_str())
            .collect()
    }

    pub fn is_online(&self) -> bool {
        self.phase == Phase::Online
    }

    /// Whether lines to this channel or nick can be sent now.
    pub fn reaches(&self, target: &str) -> bool {
        let Link {
            mapping, unheard, ..
        } = &self.link;
        let here = |p: &Place| p.joined.is_some() && mapping.same(&p.name, target);
        let in_reach = self.is_online() && (!is_channel(target) || self.places.iter().any(here));
        in_reach && !unheard.iter().any(|(name, _)| mapping.same(name, target))
    }

    /// A channel of ours as we spell it; any other name as it is.
    pub fn spelled(&self, name: &str) -> String {
        let ours = self
            .places
            .iter()
            .find(|p| self.link.mapping.same(&p.name, name));
        ours.map_or(name, |p| &p.name).to_owned()
    }

    /// When [`Session::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        let joins = self
            .places
            .iter()
            .filter(|p| p.joined.is_none())
            .filter_map(|p| p.retry);
        let nick = (!self.has_wanted_nick()).then_some(self.regain.0);
        let online = joins
            .chain(nick)
            .chain(self.link.unheard.iter().map(|(_, until)| *until));
        let online = online.filter(|_| self.phase == Phase::Online);
        online
            .chain(self.proofs.iter().map(|p| p.until))
            .fold(self.until, Instant::min)
    }

    pub fn tick(&mut self, now: Instant) {
        match self.phase {
            _ if now < self.until => {}
            Phase::Waiting => {
                (self.phase, self.until) = (Phase::Connecting, now + CONNECT);
                self.actions.push(Action::Connect);
            }
            Phase::Connecting => self.close("no connection within five minutes", 0),
            Phase::Registering
                if self.irc.sasl != Sasl::No && self.link.spoken && !self.link.logged_in =>
            {
                self.no_sasl("no answer in time");
            }
            Phase::Registering => self.close("registration took too long", 0),
            Phase::Identifying => self.online(now),
            Phase::Online if self.link.asked => {
                self.close("the server has gone silent and does not answer PING", 0)
            }
            Phase::Online => {
                (self.link.asked, self.until) = (true, now + self.irc.ping_timeout * 2 / 5);
                self.send(Line::new("PING", &[], Some("alive")));
            }
        }
        if self.phase == Phase::Online {
            if self.regain.0 <= now && !self.has_wanted_nick() {
                self.regain = (now + doubled(REGAIN, self.regain.1), self.regain.1 + 1);
                self.want_nick();
            }
            self.join_due(now);
            self.link.unheard.retain(|(_, until)| *until > now);
        }
        if let Some(nick) = self
            .proofs
            .iter()
            .find(|p| p.until <= now)
            .map(|p| p.ask.nick.clone())
        {
            self.end_of_whois(&nick, false);
        }
    }

    /// The connection stands.
    pub fn up(&mut self, now: Instant) {
        (self.phase, self.until) = (Phase::Registering, now + REGISTRATION);
        let (prefix, modes) = (("ov".into(), "@+".into()), "beI,k,l".into());
        let recoveries = &["REGAIN", "RECOVER", "GHOST"];
        self.link = Link {
            nick: self.irc.nick.clone(),
            prefix,
            modes,
            recoveries,
            ..Link::default()
        };
        if let Some(password) = &self.irc.server_password {
            self.send(Line::secret("PASS", &[], Some(&password.0)));
        }
        self.send(Line::new("CAP", &["LS", "302"], None));
        self.send(Line::new("NICK", &[&self.irc.nick], None));
        self.send(Line::new(
            "USER",
            &[&self.irc.username, "0", "*"],
            Some(&self.irc.realname),
        ));
    }

    /// The connection is gone, or could not be made.
    pub fn down(&mut self, why: &str, now: Instant) {
        let stable =
            self.phase == Phase::Online && self.last_online.is_some_and(|at| now >= at + STABLE);
        let failures = if stable { 0 } else { self.failures };
        // Knuth's generator; up to a quarter more or less, so that many bots do not come back at once.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let jitter = 0.75 + (self.random >> 33) as f64 / f64::from(1u32 << 31) / 2.0;
        let wait = doubled(BACK_OFF, failures)
            .mul_f64(jitter)
            .max(take(&mut self.least_wait));
        let silent = self.phase == Phase::Registering && !self.link.spoken && !self.irc.use_ssl;
        let hint = if silent {
            " (is this a TLS port? use_ssl = yes)"
        } else {
            ""
        };
        log!(
            Warning,
            "IRC: {why}{hint}; next try in {} s",
            wait.as_secs()
        );
        (self.phase, self.until, self.failures) = (Phase::Waiting, now + wait, failures + 1);
        self.places
            .iter_mut()
            .for_each(|p| (p.joined, p.tries, p.retry) = (None, 0, p.retry.map(|_| now)));
        self.proofs.iter_mut().for_each(|p| p.until = now);
    }

    /// Wants to be in a channel, from now on.
    pub fn join(&mut self, name: &str, key: &str, now: Instant) {
        let (key, retry) = (key.to_owned(), Some(now));
        match self
            .places
            .iter_mut()
            .find(|p| self.link.mapping.same(&p.name, name))
        {
            Some(place) => (place.key, place.retry, place.kicks) = (key, retry, 0),
            None => self.places.push(Place {
                name: name.to_owned(),
                key,
                retry,
                ..Place::default()
            }),
        }
    }

    /// Wants to be in a channel no more, and says there why.
    pub fn leave(&mut self, name: &str, why: &str) {
        if self.reaches(name) {
            self.send(Line::new(
                "PART",
                &[name],
                Some(why).filter(|why| !why.is_empty()),
            ));
        }
        self.places
            .retain(|p| !self.link.mapping.same(&p.name, name));
    }

    /// Leaves a target alone for a while, or until there is a sign that it can be told.
    pub fn avoid(&mut self, target: &str, now: Instant) {
        let wait = if is_channel(target) { UNHEARD } else { ABSENT };
        self.link.unheard.push((target.to_owned(), now + wait));
    }

    /// Asks the server who the asker is; then the command comes again, with their account. Returns
    /// false if too many wait for that already.
    pub fn prove(&mut self, ask: Ask, now: Instant) -> bool {
        let room = self.proofs.len() < PROOFS;
        if room
            && self
                .proofs
                .iter()
                .all(|p| !self.link.mapping.same(&p.ask.nick, &ask.nick))
        {
            // Anyone can make us ask, so it takes its time.
            self.actions.push(Action::Ask(
                ask.place.clone(),
                Line::new("WHOIS", &[&ask.nick], None),
            ));
        }
        self.proofs.extend(room.then_some(Proof {
            ask,
            until: now + PROOF,
            same: false,
        }));
        room
    }

    /// Takes in a message. Each arm holds the parameters that it needs; a message with fewer is odd
    /// and falls through.
    pub fn message(&mut self, m: &Message, now: Instant) {
        if let Some(Action::Close(_) | Action::Fatal(_)) = self.actions.last() {
            return;
        }
        (self.link.asked, self.link.spoken) = (false, true);
        if self.phase == Phase::Online {
            self.until = now + self.irc.ping_timeout * 3 / 5;
        }
        let params: Vec<&str> = m.params.iter().map(String::as_str).collect();
        let (registering, sasl) = (self.phase == Phase::Registering, self.irc.sasl != Sasl::No);
        // Perhaps because we have been put out meanwhile.
        if let ([_, target, _, ..], true) =
            (&params[..], NOT_PASSED_ON.contains(&m.command.as_str()))
        {
            self.actions.push(Action::Unheard((*target).to_owned()));
        }
        match (m.command.as_str(), &params[..]) {
            ("PING", [.., token]) => self.send(Line::new("PONG", &[], Some(token))),
            ("PONG", [.., token]) => self.actions.push(Action::Pong((*token).to_owned())),
            // ngIRCd has no 464 for a wrong server password.
            ("ERROR", [.., why]) if registering && why.contains("Bad password") => {
                self.refuse("server_password is refused", why);
            }
            ("ERROR", [.., why]) => {
                let said = why.to_ascii_lowercase();
                let says = |words: &[&str]| words.iter().any(|word| said.contains(word));
                let banned = says(&[
                    "k-line", "g-line", "z-line", "d-line", "banned", "akill", "autokill",
                ]);
                let throttled = says(&["throttl", "too fast", "too many"]);
                let why = format!("the server closes the connection: {}", clean(why));
                self.close(
                    &why,
                    if banned {
                        SLOW
                    } else {
                        u64::from(throttled) * THROTTLED
                    },
                );
            }
            ("CAP", [_, "LS", more @ .., caps]) if registering => {
                self.on_offer(caps, *more == ["*"], now)
            }
            ("CAP", [_, "ACK", .., caps]) => {
                self.link.account_tag |= caps.split_whitespace().any(|c| c == "account-tag");
                let login = sasl && !self.link.logged_in;
                let (command, word) = if login {
                    ("AUTHENTICATE", self.mechanism())
                } else {
                    ("CAP", "END")
                };
                self.send(Line::new(command, &[word], None));
            }
            ("CAP", [_, "NAK", ..]) | ("906", _) if sasl => self.no_sasl("the server refuses it"),
            ("CAP", [_, "NAK", ..]) => self.send(Line::new("CAP", &["END"], None)),
            ("AUTHENTICATE", ["+"]) => self.authenticate(),
            ("900", _) => self.online(now),
            ("903" | "907", _) if registering => {
                (self.link.logged_in, self.until) = (true, now + REGISTRATION);
                self.send(Line::new("CAP", &["END"], None));
            }
            ("902" | "904" | "905", [.., why]) => self.refuse("SASL failed", why),
            ("421", [_, "CAP", ..]) if sasl => self.no_sasl("the server knows no CAP"),
            ("464", [.., why]) => self.refuse("server_password is refused", why),
            ("465", [.., why]) => {
                // The ERROR that follows has the reason.
                log!(Warning, "IRC: banned from this server: {}", clean(why));
                self.least_wait = Duration::from_secs(SLOW);
            }
            ("432" | "433" | "436" | "437" | "447", [_, nick, .., why])
                if registering && !is_channel(nick) =>
            {
                self.next_nick(nick, why, &m.command);
            }
            ("001", [_, ..]) if sasl && !self.link.logged_in => {
                self.no_sasl("the server let us in before it")
            }
            ("001", [nick, ..]) if registering => self.welcome(nick, now),
            ("005", tokens) => tokens.iter().for_each(|token| self.on_isupport(token)),
            ("376" | "422", _) if self.link.logged_in || self.irc.password.is_none() => {
                self.online(now)
            }
            ("396", [_, host, ..]) => {
                self.link.user_host = Some(self.irc.username.len() + 2 + host.len())
            }
            (n, [_, target, .., why]) if NOT_PASSED_ON.contains(&n) && self.reaches(target) => {
                log!(
                    Warning,
                    "IRC: cannot speak to {}: {}",
                    clean(target),
                    clean(why)
                );
                self.end_of_whois(target, true);
            }
            ("731", _) => self.want_nick(),
            ("307" | "311" | "330", [_, nick, rest @ ..]) => self.on_whois(&m.command, nick, rest),
            ("318" | "401", [_, nick, ..]) => self.end_of_whois(nick, true),
            ("PRIVMSG", [target, text]) => self.on_privmsg(m, target, text),
            ("NOTICE", [_, text]) => self.on_notice(m.nick(), text, now),
            ("NICK", [new, ..]) => self.on_nick(m.nick(), Some(new)),
            ("QUIT", _) => self.on_nick(m.nick(), None),
            ("MODE", [nick, modes, ..])
                if self.is_me(nick) && modes.starts_with('+') && modes.contains('r') =>
            {
                self.online(now);
            }
            ("JOIN" | "PART" | "KICK" | "MODE", [channel, rest @ ..])
            | ("353", [_, _, channel, rest @ ..])
            | (_, [_, channel, rest @ ..]) => self.on_channel(m, channel, rest, now),
            _ => {}
        }
    }

    fn send(&mut self, line: Line) {
        self.actions.push(Action::Send(line));
    }

    /// Ends the connection; the next one waits for that many seconds at least.
    fn close(&mut self, why: &str, seconds: u64) {
        self.least_wait = self.least_wait.max(Duration::from_secs(seconds));
        self.actions.push(Action::Close(why.to_owned()));
    }

    /// A refusal that an operator must mend: the end, unless things once were different.
    fn refuse(&mut self, what: &str, why: &str) {
        let why = format!("{what}: {}", clean(why));
        match self.last_online {
            Some(_) => self.close(&why, SLOW),
            None => self.actions.push(Action::Fatal(why)),
        }
    }

    fn is_me(&self, nick: &str) -> bool {
        self.link.mapping.same(nick, &self.link.nick)
    }

    fn has_wanted_nick(&self) -> bool {
        self.is_me(&self.irc.nick)
    }

    /// The server says what it is capable of; when there is no `more` to come, we say what we want.
    fn on_offer(&mut self, caps: &str, more: bool, now: Instant) {
        for cap in caps.split_whitespace() {
            let (name, value) = cap.split_once('=').unwrap_or((cap, ""));
            let known = CAPS.iter().find(|&&known| known == name);
            self.link
                .offered
                .extend(known.map(|&name| (name, value.to_owned())));
        }
        if more {
            return;
        }
        let mut wanted = take(&mut self.link.offered);
        match wanted.get("sasl") {
            _ if self.irc.sasl == Sasl::No => drop(wanted.remove("sasl")),
            None => return self.no_sasl("the server does not offer it (services down?)"),
            Some(list) if !list.is_empty() && list.split(',').all(|m| m != self.mechanism()) => {
                return self.no_sasl(&format!("the server offers only {list}"));
            }
            Some(_) => self.until = self.until.min(now + STEP),
        }
        let wanted = wanted.into_keys().collect::<Vec<_>>().join(" ");
        let (word, list) = if wanted.is_empty() {
            ("END", None)
        } else {
            ("REQ", Some(wanted.as_str()))
        };
        self.send(Line::new("CAP", &[word], list));
    }

    fn mechanism(&self) -> &'static str {
        if self.irc.sasl == Sasl::External {
            "EXTERNAL"
        } else {
            "PLAIN"
        }
    }

    /// SASL was asked for and cannot be had now. We never go on without it.
    fn no_sasl(&mut self, why: &str) {
        self.close(
            &format!(
                "no SASL {}: {}; not going on without",
                self.mechanism(),
                clean(why)
            ),
            THROTTLED,
        );
    }

    fn authenticate(&mut self) {
        let secret = match &self.irc {
            Irc {
                sasl: Sasl::Plain,
                account,
                password: Some(p),
                ..
            } => format!("{account}\0{account}\0{}", p.0),
            _ => String::new(),
        };
        let secret = base64(secret.as_bytes());
        // Pieces of 400 bytes; a full last one is followed by an empty one (IRCv3 sasl-3.1).
        for at in (0..=secret.len()).step_by(400) {
            let piece = if at < secret.len() {
                &secret[at..secret.len().min(at + 400)]
            } else {
                "+"
            };
            self.send(Line::secret("AUTHENTICATE", &[piece], None));
        }
    }

    fn on_isupport(&mut self, token: &str) {
        let (name, value) = token.split_once('=').unwrap_or((token, ""));
        match (name, value.trim_start_matches('(').split_once(')')) {
            ("CASEMAPPING", _) => self.link.mapping = Casemapping::named(value),
            ("PREFIX", Some((letters, signs))) => {
                self.link.prefix = (letters.to_owned(), signs.to_owned())
            }
            ("CHANMODES", _) => self.link.modes = value.to_owned(),
            ("BOT", _) => self.send(Line::new(
                "MODE",
                &[&self.link.nick, &format!("+{value}")],
                None,
            )),
            ("MONITOR", _) if !self.has_wanted_nick() => {
                self.send(Line::new("MONITOR", &["+", &self.irc.nick], None));
            }
            _ => {}
        }
    }

    /// The nick is refused: tries the next one, and this one again when we are online.
    fn next_nick(&mut self, nick: &str, why: &str, numeric: &str) {
        let (what, why) = (
            format!("nick {}", clean(nick)),
            format!("{} ({numeric})", clean(why)),
        );
        let wanted = &self.irc.nick;
        // Servers that allow only nine characters refuse a longer name altogether.
        let short = (1..10).map(|i| format!("{wanted:.8}{i}"));
        let mut names = self
            .irc
            .alt_nicks
            .iter()
            .cloned()
            .chain([format!("{wanted}_")])
            .chain(short);
        match names.nth(self.link.tried) {
            Some(next) => {
                log!(Warning, "IRC: {what}: {why}; trying {next}");
                self.link.tried += 1;
                self.send(Line::new("NICK", &[&next], None));
                self.link.nick = next;
            }
            None if numeric == "432" => self.refuse(&what, &why),
            None => self.close(&format!("{what}: {why}"), 0),
        }
    }

    /// Registered: tell services who we are, and join when they believe it.
    fn welcome(&mut self, nick: &str, now: Instant) {
        (self.link.nick, self.phase, self.until) =
            (nick.to_owned(), Phase::Identifying, now + STEP);
        if !self.link.logged_in {
            self.identify();
        }
    }

    fn identify(&mut self) {
        // With the password alone, services take the account of the nick that we have.
        let account = if self.is_me(&self.irc.account) {
            ""
        } else {
            &self.irc.account
        };
        self.tell_nickserv(format!("IDENTIFY {account}").trim_end());
    }

    /// Says something to services that the nick's password goes with, if there is one.
    fn tell_nickserv(&mut self, words: &str) {
        if let Irc {
            nickserv,
            password: Some(password),
            ..
        } = &self.irc
        {
            self.send(Line::secret(
                "PRIVMSG",
                &[nickserv],
                Some(&format!("{words} {}", password.0)),
            ));
        }
    }

    /// Joins and speaks from now on, if that was what we waited for.
    fn online(&mut self, now: Instant) {
        if self.phase == Phase::Identifying {
            log!(Info, "IRC: online as {}", self.link.nick);
            (self.phase, self.until) = (Phase::Online, now + self.irc.ping_timeout * 3 / 5);
            (self.last_online, self.regain) = (Some(now), (now + doubled(REGAIN, 0), 1));
            self.recover();
        }
    }

    /// Services differ in their word for "give me my nick"; one that is wrong is answered as such.
    fn recover(&mut self) {
        if let (false, [word, rest @ ..]) = (self.has_wanted_nick(), self.link.recoveries) {
            self.link.recoveries = rest;
            self.tell_nickserv(&format!("{word} {}", self.irc.nick));
        }
    }

    /// A text that may repeat what we have told services, as the log may show it.
    pub fn without_password(&self, text: &str) -> String {
        let password = self.irc.password.as_ref().map_or("", |p| &p.0);
        let hide = |text: &str, word: &str| {
            if word.is_empty() {
                text.to_owned()
            } else {
                text.replace(word, "***")
            }
        };
        hide(&hide(text, password), &password.to_ascii_lowercase())
    }

    fn want_nick(&mut self) {
        if !self.has_wanted_nick() {
            self.send(Line::new("NICK", &[&self.irc.nick], None));
        }
    }

    /// Services speak in NOTICEs; nobody else's are of interest.
    fn on_notice(&mut self, nick: &str, text: &str, now: Instant) {
        let services = self
            .irc
            .nickserv
            .split('@')
            .next()
            .is_some_and(|name| self.link.mapping.same(nick, name));
        let text = plain(text).to_ascii_lowercase();
        let says = |words: &str| services && words.split('|').any(|w| text.contains(w));
        if says("unknown command|invalid command") {
            self.recover();
        } else if says(
            "now recognized|now identified|identified as|already identified|now logged in|password accepted",
        ) {
            self.online(now);
        } else if says("incorrect|invalid password|not registered|isn't registered") {
            log!(
                Warning,
                "IRC: {}: {}",
                clean(nick),
                clean(&self.without_password(&text))
            );
            self.link.refused = true;
            self.online(now);
        } else if says("nickname is registered|registered nickname")
            && self.is_online()
            && !self.link.refused
        {
            // They have come after us, and know us no more.
            self.identify();
        } else if says("ghost|killed|recovered|regained|released") {
            self.want_nick();
        }
    }

    /// Someone has another nick, or none any more (QUIT).
    fn on_nick(&mut self, old: &str, new: Option<&str>) {
        self.end_of_whois(old, false);
        let mapping = self.link.mapping;
        self.link.heard(new.unwrap_or(""));
        for place in &mut self.places {
            let ranks = place.ranks.remove(&mapping.fold(old));
            place.ranks.extend(new.map(|n| mapping.fold(n)).zip(ranks));
        }
        if self.is_me(old)
            && let Some(new) = new
        {
            log!(Info, "IRC: our nick is now {}", clean(new));
            self.link.nick = new.to_owned();
        } else if mapping.same(old, &self.irc.nick) {
            self.want_nick();
        }
    }

    /// Joins the channels that are due, several to a line; keyed ones first, as JOIN wants them.
    fn join_due(&mut self, now: Instant) {
        let is_due = |p: &&mut Place| p.joined.is_none() && p.retry.is_some_and(|at| at <= now);
        let mut due: Vec<&mut Place> = self.places.iter_mut().filter(is_due).collect();
        // If the server does not say anything at all, we try again then.
        due.iter_mut()
            .for_each(|p| p.retry = Some(now + Duration::from_secs(SLOW)));
        due.sort_by_key(|p| p.key.is_empty());
        for some in due.chunks(JOINS.0) {
            let bytes: usize = some.iter().map(|p| p.name.len() + p.key.len() + 2).sum();
            for some in some.chunks(if bytes > JOINS.1 { 1 } else { JOINS.0 }) {
                let list = |part: fn(&Place) -> &str| {
                    some.iter().map(|p| part(p)).collect::<Vec<_>>().join(",")
                };
                let (names, keys) = (list(|p| &p.name), list(|p| &p.key));
                self.actions
                    .push(Action::Send(match keys.trim_end_matches(',') {
                        "" => Line::new("JOIN", &[&names], None),
                        keys => Line::secret("JOIN", &[&names, keys], None),
                    }));
            }
        }
    }

    /// What happens in a channel that is ours, or on our way into it.
    fn on_channel(&mut self, m: &Message, channel: &str, params: &[&str], now: Instant) {
        let Session { places, link, .. } = self;
        let mapping = link.mapping;
        // Perhaps we may speak now.
        match (m.command.as_str(), mapping.same(m.nick(), &link.nick)) {
            ("MODE", _) | ("JOIN", true) => link.heard(channel),
            ("JOIN", false) => link.heard(m.nick()),
            _ => {}
        }
        let (letters, signs) = &link.prefix;
        let Some(place) = places.iter_mut().find(|p| mapping.same(&p.name, channel)) else {
            return;
        };
        if place.ranks.len() > RANKED {
            place.ranks.clear();
        }
        match (m.command.as_str(), params) {
            ("JOIN", _) if mapping.same(m.nick(), &link.nick) => {
                log!(Info, "IRC: joined {}", place.name);
                link.user_host = m.source.split_once('!').map(|(_, rest)| rest.len());
                (place.joined, place.tries) = (Some(now), 0);
                place.refusal.clear();
                place.ranks.clear();
            }
            ("PART" | "KICK", _) => {
                let nick = params
                    .first()
                    .filter(|_| m.command == "KICK")
                    .map_or(m.nick(), |nick| nick);
                place.ranks.remove(&mapping.fold(nick));
                if mapping.same(nick, &link.nick) {
                    let calm = place.joined.take().is_some_and(|at| now >= at + CALM);
                    place.kicks = if calm { 1 } else { place.kicks + 1 };
                    let wait = (place.kicks <= KICKS).then(|| doubled(KICKED, place.kicks - 1));
                    place.retry = wait.map(|wait| now + wait);
                    let next = wait.map_or("waiting for an INVITE".into(), |w| {
                        format!("back in {} s", w.as_secs())
                    });
                    let why = clean(params.last().unwrap_or(&""));
                    log!(
                        Warning,
                        "IRC: {} put us out of {}: {why}; {next}",
                        clean(m.nick()),
                        place.name
                    );
                }
                self.end_of_whois(nick, false);
            }
            ("353", [names]) => {
                for name in names
                    .split_whitespace()
                    .filter(|name| name.starts_with(|c| signs.contains(c)))
                {
                    let nick = name.trim_start_matches(|c| signs.contains(c));
                    let shown = name.chars().map_while(|c| signs.find(c));
                    place.ranks.insert(
                        mapping.fold(nick),
                        shown.filter_map(|i| letters.chars().nth(i)).collect(),
                    );
                }
            }
            ("MODE", [changes, rest @ ..]) => {
                let (mut set, mut rest) = (true, rest.iter());
                for mode in changes.chars() {
                    let rank = letters.contains(mode);
                    // Of CHANMODES, the third kind has a parameter only when it is set.
                    let mut kinds = link.modes.split(',').take(if set { 3 } else { 2 });
                    let takes = rank || kinds.any(|kind| kind.contains(mode));
                    match if takes { rest.next() } else { None } {
                        Some(nick) if rank => {
                            let ranks = place.ranks.entry(mapping.fold(nick)).or_default();
                            ranks.retain(|r| r != mode);
                            ranks.extend(set.then_some(mode));
                        }
                        _ if mode == '+' || mode == '-' => set = mode == '+',
                        _ => {}
                    }
                }
            }
            ("INVITE", _) => (place.retry, place.kicks) = (Some(now), 0),
            (n, [.., why]) if JOIN_REFUSED.contains(n) && place.joined.is_none() => {
                place.retry =
                    Some(now + Duration::from_secs(REJOIN[place.tries.min(REJOIN.len() - 1)]));
                place.tries += 1;
                if place.refusal != *why {
                    log!(
                        Warning,
                        "IRC: cannot join {}: {} ({n}); still trying",
                        place.name,
                        clean(why)
                    );
                    place.refusal = (*why).to_owned();
                }
            }
            _ => {}
        }
    }

    fn on_privmsg(&mut self, m: &Message, target: &str, raw: &str) {
        // IRCv3's tag for bots, and the name that InspIRCd 3 has for it.
        let bot = m
            .tags()
            .any(|(name, _)| name == "bot" || name.ends_with("/bot"));
        // A bouncer's modules talk back.
        if self.is_me(m.nick()) || bot || m.source.starts_with('*') || !m.source.contains('!') {
            return;
        }
        let (nick, private) = (m.nick().to_owned(), self.is_me(target));
        if let Some(ctcp) = raw.strip_prefix('\u{1}') {
            let answer = match clean(ctcp).as_str() {
                "VERSION" if private => {
                    concat!("VERSION buildbot-irc ", env!("CARGO_PKG_VERSION")).to_owned()
                }
                ping if private && ping.starts_with("PING ") => ping.to_owned(),
                _ => return,
            };
            return self
                .actions
                .push(Action::Notice(nick, format!("\u{1}{answer}\u{1}")));
        }
        let Link {
            mapping,
            prefix: (letters, _),
            ..
        } = &self.link;
        let text = plain(raw);
        let command = [&self.link.nick, &self.irc.nick]
            .iter()
            .find_map(|name| addressed(&text, name, *mapping));
        let (place, text, op) = match (
            command,
            self.places.iter().find(|p| mapping.same(&p.name, target)),
        ) {
            // Some address us by habit even there.
            _ if private => (nick.clone(), command.unwrap_or(text.trim()), false),
            (Some(command), Some(place)) => {
                // Operator or higher: the PREFIX letters up to `o`.
                let high = letters.find('o').map_or("", |o| &letters[..=o]);
                let op = place
                    .ranks
                    .get(&mapping.fold(&nick))
                    .is_some_and(|r| r.contains(|c| high.contains(c)));
                (place.name.clone(), command, op)
            }
            _ => return,
        };
        let account = match m.tags().find(|(name, _)| *name == "account") {
            _ if !self.link.account_tag => Account::Unknown,
            // Nothing else that IRCv3 escapes can be in an account's name.
            Some((_, account)) => Account::Is(account.replace(r"\\", r"\")),
            None => Account::None,
        };
        let (mask, text) = (m.source.clone(), text.to_owned());
        self.link.heard(&place);
        self.actions.push(Action::Command(Ask {
            place,
            nick,
            mask,
            text,
            op,
            own_only: false,
            account,
        }));
    }

    /// The server tells something of a nick.
    fn on_whois(&mut self, numeric: &str, nick: &str, rest: &[&str]) {
        let mapping = self.link.mapping;
        for Proof { ask, same, .. } in self
            .proofs
            .iter_mut()
            .filter(|p| mapping.same(&p.ask.nick, nick))
        {
            match (numeric, rest) {
                // Someone else may have taken the nick since: then none of this counts.
                ("311", [user, host, ..]) => *same = ask.mask.ends_with(&format!("!{user}@{host}")),
                ("330", [name, ..]) => ask.account = Account::Is((*name).to_owned()),
                ("307", _) if ask.account == Account::Unknown => {
                    ask.account = Account::Is(nick.to_owned())
                }
                _ => {}
            }
        }
    }

    /// The answer is complete; or, not `whole`: the nick has gone or changed, which proves nothing.
    fn end_of_whois(&mut self, nick: &str, whole: bool) {
        let mapping = self.link.mapping;
        for Proof { ask, same, .. } in self
            .proofs
            .extract_if(.., |p| mapping.same(&p.ask.nick, nick))
        {
            let proved = whole && same && ask.account != Account::Unknown;
            let account = if proved { ask.account } else { Account::None };
            self.actions.push(Action::Command(Ask { account, ..ask }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::LineBuffer;
    use super::*;
    use crate::config::tests::{SHORT, parse};
    use crate::fuzz::fuzz;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

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
            let mut rig = Rig {
                session: Session::new(irc, now, 1),
                now,
                others: Vec::new(),
            };
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
            lines
                .lines()
                .for_each(|l| self.session.message(&Message::parse(l).unwrap(), self.now));
            self.session.tick(self.now);
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
                    Action::Send(line) | Action::Ask(_, line) => said.push(
                        String::from_utf8(line.bytes())
                            .unwrap()
                            .trim_end()
                            .to_owned(),
                    ),
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
        let mut rig = Rig::new(
            "server_password = pw\nrealname = r\nusername = u\n[channel #a]\n[channel #b]\npassword = k\n",
        );
        assert_eq!(
            rig.said(),
            ["PASS :pw", "CAP LS 302", "NICK bot", "USER u 0 * :r"]
        );
        rig.answers(":s CAP * LS :", &["CAP END"]);
        rig.answers(
            ":s 001 bot :hi\n:s 005 bot BOT=B CASEMAPPING=ascii :x",
            &["MODE bot +B"],
        );
        rig.answers(":s 376 bot :end", &["JOIN #b,#a k"]);
        rig.answers("PING :x y", &["PONG :x y"]);
    }

    #[test]
    fn sasl_plain_in_pieces_and_never_without() {
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.said();
        rig.answers(":s CAP * LS * :multi-prefix", &[]);
        rig.answers(
            ":s CAP * LS :sasl=PLAIN,EXTERNAL account-tag",
            &["CAP REQ :account-tag multi-prefix sasl"],
        );
        rig.answers(
            ":s CAP * ACK :account-tag multi-prefix sasl",
            &["AUTHENTICATE PLAIN"],
        );
        rig.answers("AUTHENTICATE :+", &["AUTHENTICATE Ym90AGJvdABwdw=="]);
        rig.answers(":s 900 bot x bot :in\n:s 903 bot :ok", &["CAP END"]);
        assert_eq!(
            rig.session.deadline(),
            rig.now + REGISTRATION,
            "what follows has all its time"
        );
        let long = format!("sasl = plain\npassword = {}\n", "x".repeat(292));
        let mut rig = Rig::new(&long);
        rig.hear("AUTHENTICATE +");
        let pieces: Vec<usize> = rig
            .said()
            .iter()
            .filter(|l| l.starts_with("AUTH"))
            .map(|l| l.len() - 13)
            .collect();
        assert_eq!(pieces, [400, 1], "a full last piece is followed by a plus");
        for (lines, end) in [
            (
                ":s CAP * LS :multi-prefix",
                "no SASL PLAIN: the server does not offer it (services down?); not going on without",
            ),
            (
                ":s CAP * LS :sasl=EXTERNAL",
                "no SASL PLAIN: the server offers only EXTERNAL; not going on without",
            ),
            (
                ":s 001 bot :hi",
                "no SASL PLAIN: the server let us in before it; not going on without",
            ),
            (
                ":s 421 * CAP :Unknown",
                "no SASL PLAIN: the server knows no CAP; not going on without",
            ),
        ] {
            let mut rig = Rig::new("sasl = plain\npassword = pw\n");
            rig.hear(lines);
            rig.said();
            assert_eq!(rig.others.last(), Some(&Action::Close(end.into())));
        }
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.hear(":s CAP * LS :sasl draft/chathistory");
        assert_eq!(
            rig.said().last().unwrap(),
            "CAP REQ :draft/chathistory sasl"
        );
        rig.wait(STEP.as_secs());
        assert_eq!(
            rig.others.last(),
            Some(&Action::Close(
                "no SASL PLAIN: no answer in time; not going on without".into()
            ))
        );
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.hear(":s 904 bot :SASL authentication failed");
        rig.said();
        assert_eq!(
            rig.others.last(),
            Some(&Action::Fatal(
                "SASL failed: SASL authentication failed".into()
            ))
        );
    }

    #[test]
    fn nickserv_comes_before_joining() {
        let mut rig = Rig::new("password = pw\n[channel #a]\n");
        rig.said();
        rig.answers(":s 422 bot :none", &[]);
        rig.answers(":s 001 bot :hi", &["PRIVMSG NickServ :IDENTIFY pw"]);
        rig.answers(":s 422 bot :none", &[]);
        rig.answers(":eve!e@h NOTICE bot :You are now identified", &[]);
        rig.answers(
            ":NickServ!s@s NOTICE bot :You are now identified for \u{2}bot\u{2}.",
            &["JOIN #a"],
        );
        let mut rig = Rig::new("password = pw\n[channel #a]\n");
        rig.hear(":s 001 bot :hi\n:s 422 bot :none");
        rig.said();
        rig.now += STEP;
        rig.session.tick(rig.now);
        assert_eq!(
            rig.said(),
            ["JOIN #a"],
            "services that say nothing do not keep us out"
        );
        let prompt = ":NickServ!s@s NOTICE bot :This nickname is registered and protected.";
        rig.answers(prompt, &["PRIVMSG NickServ :IDENTIFY pw"]);
        rig.answers(":NickServ!s@s NOTICE bot :Password incorrect.", &[]);
        rig.answers(prompt, &[]);
        assert_eq!(
            rig.session.without_password("Nickname pw, NOT PW or xpw"),
            "Nickname ***, NOT PW or x***"
        );
    }

    #[test]
    fn a_taken_nick_is_replaced_and_won_back() {
        let mut rig = Rig::new("alt_nicks = alt\npassword = pw\n[channel #a]\n");
        rig.said();
        rig.answers(":s 433 * bot :in use", &["NICK alt"]);
        rig.answers(":s 433 * alt :in use", &["NICK bot_"]);
        rig.answers(":s 001 bot_ :hi", &["PRIVMSG NickServ :IDENTIFY bot pw"]);
        rig.answers(
            ":s 005 bot_ MONITOR=30 :x\n:s 422 bot_ :none",
            &["MONITOR + bot"],
        );
        rig.answers(
            ":s MODE bot_ +r",
            &["PRIVMSG NickServ :REGAIN bot pw", "JOIN #a"],
        );
        rig.answers(
            ":NickServ!s@s NOTICE bot_ :Unknown command \u{2}REGAIN\u{2}.",
            &["PRIVMSG NickServ :RECOVER bot pw"],
        );
        rig.answers(":s 731 bot_ :bot", &["NICK bot"]);
        rig.answers(":s 433 bot_ bot :in use", &[]);
        rig.answers(":bot!x@y QUIT :gone", &["NICK bot"]);
        rig.answers(":bot_!u@h NICK :bot", &[]);
        assert_eq!(rig.session.nick(), "bot");
        rig.now += seconds(15);
        rig.answers(":bot!u@h NICK :Guest7", &["NICK bot"]);
        assert_eq!(rig.session.deadline(), rig.now + seconds(30));
        let mut rig = Rig::new("");
        (0..12).for_each(|_| rig.hear(":s 432 * x :Erroneous"));
        rig.said();
        assert_eq!(
            rig.others.last(),
            Some(&Action::Fatal("nick x: Erroneous (432)".into()))
        );
    }

    #[test]
    fn a_calm_hour_forgives_a_kick() {
        let mut rig = Rig::online("[channel #a]\n");
        for _ in 0..3 {
            rig.hear(":bot!u@h JOIN #a");
            rig.now += CALM;
            rig.answers(":op!o@h KICK #a bot :out", &[""; 0]);
            rig.now += seconds(30);
            rig.hear(":s 1 x");
            rig.session.tick(rig.now);
            assert_eq!(rig.said(), ["JOIN #a"]);
        }
    }

    #[test]
    fn channels_are_come_back_to() {
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(":bot!u@host.example JOIN #A");
        assert!(
            rig.session.reaches("#a") && rig.session.source_length() == "bot!u@host.example".len()
        );
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
            rig.hear(":s 470 bot #a ##over :Forwarding to another channel");
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
        let sections: String = (0..24)
            .map(|i| format!("[channel #channel{i}]\n"))
            .collect();
        let mut rig = Rig::new(&sections);
        rig.hear(":s 001 bot :hi\n:s 422 bot :none");
        let joins: Vec<String> = rig
            .said()
            .into_iter()
            .filter(|l| l.starts_with("JOIN"))
            .collect();
        assert_eq!(
            joins
                .iter()
                .map(|l| l.matches('#').count())
                .collect::<Vec<_>>(),
            [10, 10, 4]
        );
        let sections: String = (0..12).map(|i| format!("[channel #{:040}]\n", i)).collect();
        let mut rig = Rig::new(&sections);
        rig.hear(":s 001 bot :hi\n:s 422 bot :none");
        assert!(rig.said().iter().all(|l| l.len() < 500));
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
        assert_eq!(
            rig.others.len(),
            3,
            "what comes after the end is of no interest: {:?}",
            rig.others
        );
        rig.session.down("gone", rig.now);
        assert!(rig.session.deadline() >= rig.now + seconds(THROTTLED));
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
        let got =
            |place: &str, op, account| Some((place.to_owned(), "help".to_owned(), op, account));
        for (line, expected) in [
            (
                "@account=J\\\\oe :op!u@h PRIVMSG #A :BOT: help",
                got("#a", true, Account::Is("J\\oe".into())),
            ),
            (
                ":admin!u@h PRIVMSG #a :\u{2}bot\u{2}, help",
                got("#a", true, Account::None),
            ),
            (
                ":half!u@h PRIVMSG #a :bot: help",
                got("#a", false, Account::None),
            ),
            (
                ":voice!u@h PRIVMSG bot :help",
                got("voice", false, Account::None),
            ),
            (
                ":voice!u@h PRIVMSG bot :Bot: help",
                got("voice", false, Account::None),
            ),
            (":op!u@h PRIVMSG bot :help", got("op", false, Account::None)),
            (":op!u@h PRIVMSG #a :help", None),
            (":op!u@h PRIVMSG #elsewhere :bot: help", None),
            (":op!u@h NOTICE #a :bot: help", None),
            (":bot!u@h PRIVMSG #a :bot: help", None),
            ("@bot :op!u@h PRIVMSG #a :bot: help", None),
            ("@inspircd.org/bot :op!u@h PRIVMSG #a :bot: help", None),
            (":irc.server PRIVMSG bot :help", None),
            (":*status!znc@znc.in PRIVMSG bot :help", None),
        ] {
            assert_eq!(ask(&mut rig, line), expected, "{line}");
        }
        let crowd = |n: usize| (0..20).map(|i| format!(" nick{n}x{i}")).collect::<String>();
        (0..RANKED / 10).for_each(|n| rig.hear(&format!(":s 353 bot = #a :{}", crowd(n))));
        let op = |rig: &mut Rig, nick: &str| {
            ask(rig, &format!(":{nick}!u@h PRIVMSG #a :bot: help"))
                .unwrap()
                .2
        };
        assert!(op(&mut rig, "op"), "a crowd does not make us forget");
        rig.hear(":op!u@h MODE #a +bk-o+o *!*@x key op {X}");
        assert!(!op(&mut rig, "op") && op(&mut rig, "[x]"));
        rig.hear(":admin!u@h NICK :Boss");
        assert!(!op(&mut rig, "admin") && op(&mut rig, "boss"));
        rig.hear(":boss!u@h PART #a\n:[x]!u@h QUIT :bye");
        assert!(!op(&mut rig, "boss") && !op(&mut rig, "[x]"));
    }

    #[test]
    fn who_cannot_be_told_is_left_in_peace_for_a_while() {
        for (refusal, target, sign) in [
            (":s 401 bot Joe :No such nick", "joe", ":joe!u@h JOIN #a"),
            (":s 401 bot Joe :No such nick", "joe", ":joe_!u@h NICK joe"),
            (
                ":s 401 bot Joe :No such nick",
                "joe",
                ":joe!u@h PRIVMSG bot :help",
            ),
            (
                ":s 404 bot #A :Cannot send to channel",
                "#a",
                ":op!o@h MODE #a +v bot",
            ),
            (
                ":s 404 bot #A :Cannot send to channel",
                "#a",
                ":joe!u@h PRIVMSG #a :bot: help",
            ),
            (
                ":s 404 bot #A :Cannot send to channel",
                "#a",
                ":bot!u@h JOIN #a",
            ),
        ] {
            let mut rig = Rig::online("[channel #a]\n");
            rig.hear(":bot!u@h JOIN #a");
            assert!(rig.session.reaches(target));
            rig.hear(refusal);
            rig.said();
            let name = refusal.split(' ').nth(3).unwrap();
            assert_eq!(rig.others.last(), Some(&Action::Unheard(name.to_owned())));
            rig.session.avoid(name, rig.now);
            rig.hear(":joe!u@h PRIVMSG #a :not to the bot");
            assert!(
                !rig.session.reaches(target) && rig.session.reaches("ann"),
                "{refusal}"
            );
            rig.hear(sign);
            assert!(rig.session.reaches(target), "{sign}");
            rig.session.avoid(name, rig.now);
            let wait = if is_channel(target) { UNHEARD } else { ABSENT };
            (0..wait.as_secs() / 60).for_each(|_| {
                assert!(!rig.session.reaches(target) && rig.session.deadline() <= rig.now + wait);
                rig.hear("PING x");
                rig.wait(60);
            });
            assert!(rig.session.reaches(target), "after a while");
        }
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(
            ":bot!u@h JOIN #a\n:op!o@h KICK #a bot :out\n:s 404 bot #a :Cannot send to channel",
        );
        rig.said();
        assert_eq!(
            rig.others.last(),
            Some(&Action::Unheard("#a".into())),
            "what the kick has crossed"
        );
    }

    #[test]
    fn ctcp_is_answered_in_private_only() {
        let mut rig = Rig::online("[channel #a]\n");
        rig.hear(":joe!u@h PRIVMSG #a :\u{1}VERSION\u{1}\n:joe!u@h PRIVMSG bot :\u{1}ACTION x\u{1}\n:joe!u@h PRIVMSG bot :\u{1}PING 12\u{1}");
        rig.said();
        assert_eq!(
            rig.others[1..],
            [Action::Notice("joe".into(), "\u{1}PING 12\u{1}".into())]
        );
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
            let ask = |mask: &str| Ask { nick: "joe".into(), mask: mask.into(), ..Ask::default() };
            assert!(rig.session.prove(ask("joe!u@h"), rig.now) && rig.session.prove(ask("joe!eve@h"), rig.now));
            assert_eq!(rig.said(), ["WHOIS joe"]);
            rig.hear(&answer);
            rig.said();
            let proofs =
                [Ask { account: expected, ..ask("joe!u@h") }, Ask { account: Account::None, ..ask("joe!eve@h") }];
            rig.others.retain(|action| !matches!(action, Action::Unheard(_)));
            assert_eq!(rig.others[1..], proofs.map(Action::Command), "{answer}");
        }
        let mut rig = Rig::online("");
        let proofs = (0..40).map(|i| {
            rig.session.prove(
                Ask {
                    nick: format!("n{i}"),
                    ..Ask::default()
                },
                rig.now,
            )
        });
        assert_eq!(proofs.filter(|taken| *taken).count(), PROOFS);
        rig.now += PROOF;
        assert_eq!(rig.session.deadline(), rig.now);
        (0..40).for_each(|_| rig.wait(0));
        let nobody = |a: &Action| {
            matches!(
                a,
                Action::Command(Ask {
                    account: Account::None,
                    ..
                })
            )
        };
        assert_eq!(
            rig.others.iter().filter(|a| nobody(a)).count(),
            PROOFS,
            "no answer in time proves nothing"
        );
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
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                (state >> 33) as usize % n
            };
            let mut rig_line = Message {
                source: ["", "bot!u@h", "x!y@z", "s"][pick(4)].into(),
                command: commands[pick(commands.len())].into(),
                ..Message::default()
            };
            rig_line.params = (0..pick(6))
                .map(|_| words[pick(words.len())].to_owned())
                .collect();
            thread_local!(static RIG: std::cell::RefCell<Rig> = std::cell::RefCell::new(Rig::online("[channel #a]\n")));
            RIG.with_borrow_mut(|rig| {
                rig.session.message(&rig_line, rig.now);
                rig.said();
                rig.others.clear();
            });
        }
    }

    /// Whatever a server says, in whatever order, and whatever the time.
    #[test]
    fn fuzz_session() {
        crate::log::set_limit(crate::log::Level::Error);
        let seed = ":s CAP * LS :sasl account-tag\r\n:s CAP * ACK :sasl\r\nAUTHENTICATE +\r\n:s 903 bot :ok\r\n:s 001 bot :hi\r\n\
                    :s 005 bot CASEMAPPING=ascii PREFIX=(ov)@+ MONITOR=9 BOT=B :x\r\n:s 433 * bot :used\r\n:s 422 bot :none\r\n\
                    :bot!u@h JOIN #a\r\n:s 353 bot = #a :@joe +ann\r\n:s MODE #a -o+v joe joe\r\n:joe!u@h PRIVMSG #a :bot: help\r\n\
                    :joe!u@h KICK #a bot :out\r\n:s 471 bot #a :full\r\n:joe!u@h INVITE bot #a\r\n:s 311 bot joe u h * :r\r\n\
                    :s 330 bot joe acc :is\r\n:s 318 bot joe :end\r\n:NickServ!s@s NOTICE bot :you are now identified\r\n\
                    :joe!u@h NICK bot\r\n:bot!u@h QUIT :x\r\nERROR :throttled\r\nPING :x\r\n:s 465 bot :banned\r\n";
        fuzz(&[seed.as_bytes()], |bytes, random| {
            let more = ["", "sasl = plain\npassword = p\n", "password = p\n"][random.below(3)];
            let mut rig = Rig::new(&format!("{more}[channel #a]\n"));
            let ask = Ask {
                place: "#a".into(),
                nick: "joe".into(),
                mask: "joe!u@h".into(),
                ..Ask::default()
            };
            rig.session.prove(ask, rig.now);
            for message in LineBuffer::default().feed(bytes) {
                rig.session.message(&message, rig.now);
                rig.now += seconds([0, 0, 0, 1, 20, 700][random.below(6)]);
                assert!(
                    rig.said()
                        .iter()
                        .all(|line| line.len() <= 510 && !line.contains(['\r', '\n', '\0']))
                );
                if let Some(Action::Close(why)) = rig.others.last() {
                    rig.session.down(&why.clone(), rig.now);
                }
                rig.session.tick(rig.now);
                if rig.others.pop() == Some(Action::Connect) {
                    rig.session.up(rig.now);
                }
            }
        });
    }
}
