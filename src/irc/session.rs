//! The conversation with an IRC server, over all its connections. It hands each message to the
//! machines that it concerns, and collects what they want done. Pure: it takes messages and `now`,
//! and leaves actions and a deadline.

use super::accounts::Accounts;
use super::channels::Channels;
use super::history::History;
use super::isupport::Isupport;
use super::liveness::{Check, Liveness};
use super::nick::{NextNick, Nick};
use super::numerics::*;
use super::pacing::Software;
use super::registration::{Failure, Registration};
use super::services::{self, Services};
use super::wire::{Line, Message, addressed};
use super::{Account, Action, Actions, Invocation, Refusal, Upstream, bouncer};
use crate::backoff::{Backoff, Jitter};
use crate::config::Irc;
use crate::names::{Casemapping, Name};
use crate::sanitize::{sanitize, strip_formatting};
use std::time::{Duration, Instant};

/// Name lookup, all addresses and the TLS hand-shake.
const CONNECT: Duration = Duration::from_secs(300);
/// Services may take so long to know us.
const IDENTIFY: Duration = Duration::from_secs(20);
/// Between connections, doubling; a restarted server sees us soon.
const RECONNECT: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(300));
/// After a connection that lasted so long the waits begin anew.
const STABLE: Duration = Duration::from_secs(120);
/// The least wait when the server says that we come too often.
const THROTTLED: Duration = Duration::from_secs(120);
/// A bouncer says when it is back on its network; without that word we join our channels after so
/// long.
const WITHOUT_NETWORK: Duration = Duration::from_secs(300);
/// The least wait for what only an operator or time can mend.
const OPERATOR: Duration = Duration::from_secs(300);
/// Bytes of `user@host` until the server has shown ours: a tilde and a host of 63 (RFC 1459 has
/// no limit; hostnames of RFC 1035 as servers cut them).
const UNKNOWN_HOST: usize = 65;
/// Characters of a command that are looked at.
const COMMAND: usize = 450;

/// Where we stand with the server.
///
/// ```text
/// Waiting ──► Connecting ──► Registering ──001──► Identifying ──services, or 20 s──► Online
///    ▲             │              │                    │                               │
///    └─────────────┴──────────────┴──── disconnected ──┴───────────────────────────────┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionState {
    Waiting { until: Instant },
    Connecting { until: Instant },
    Registering,
    Identifying { until: Instant },
    Online,
}

/// What one message does. The parameters are at least as many as its row in the table says.
type Handler = fn(&mut Session, &Message, &[&str], Instant);

/// Which message is handled by what, and how many parameters it needs. A message with fewer is
/// odd, and ignored.
const HANDLERS: &[(&str, usize, Handler)] = &[
    ("AUTHENTICATE", 1, Session::on_authenticate),
    ("BATCH", 1, Session::on_batch),
    ("CAP", 2, Session::on_cap),
    ("ERROR", 1, Session::on_error),
    ("INVITE", 2, Session::on_invite),
    ("JOIN", 1, Session::on_join),
    ("KICK", 2, Session::on_kick),
    ("MODE", 2, Session::on_mode),
    ("NICK", 1, Session::on_nick),
    ("NOTICE", 2, Session::on_notice),
    ("PART", 1, Session::on_part),
    ("PING", 1, Session::on_ping),
    ("PONG", 1, Session::on_pong),
    ("PRIVMSG", 2, Session::on_privmsg),
    ("QUIT", 0, Session::on_quit),
    (RPL_WELCOME, 1, Session::on_welcome),
    (RPL_MYINFO, 3, Session::on_myinfo),
    (RPL_ISUPPORT, 2, Session::on_isupport),
    (RPL_NAMREPLY, 4, Session::on_names),
    (RPL_ENDOFMOTD, 0, Session::on_end_of_welcome),
    (ERR_NOMOTD, 0, Session::on_end_of_welcome),
    (RPL_HOSTHIDDEN, 2, Session::on_host_hidden),
    (RPL_WHOISUSER, 4, Session::on_whois),
    (RPL_WHOISACCOUNT, 3, Session::on_whois),
    (RPL_WHOISREGNICK, 2, Session::on_whois),
    (RPL_ENDOFWHOIS, 2, Session::on_end_of_whois),
    (ERR_NOSUCHNICK, 2, Session::on_end_of_whois),
    (RPL_MONOFFLINE, 0, Session::on_nick_free),
    (RPL_LOGGEDIN, 0, Session::on_logged_in),
    (RPL_SASLSUCCESS, 0, Session::on_sasl_success),
    (ERR_SASLALREADY, 0, Session::on_sasl_success),
    (ERR_NICKLOCKED, 1, Session::on_sasl_refused),
    (ERR_SASLFAIL, 1, Session::on_sasl_refused),
    (ERR_SASLTOOLONG, 1, Session::on_sasl_refused),
    (ERR_SASLABORTED, 0, Session::on_sasl_aborted),
    (ERR_UNKNOWNCOMMAND, 2, Session::on_unknown_command),
    (ERR_NOTREGISTERED, 1, Session::on_not_registered),
    (ERR_ERRONEUSNICKNAME, 3, Session::on_nick_refused),
    (ERR_NICKNAMEINUSE, 3, Session::on_nick_refused),
    (ERR_NICKCOLLISION, 3, Session::on_nick_refused),
    (ERR_UNAVAILRESOURCE, 3, Session::on_nick_refused),
    (ERR_CANTCHANGENICK, 3, Session::on_nick_refused),
    (ERR_PASSWDMISMATCH, 1, Session::on_password_refused),
    (ERR_YOUREBANNEDCREEP, 1, Session::on_banned),
];

/// The session; it outlives connections.
pub struct Session {
    config: Irc,
    state: ConnectionState,
    actions: Actions,
    registration: Registration,
    services: Services,
    nick: Nick,
    channels: Channels,
    accounts: Accounts,
    liveness: Liveness,
    isupport: Isupport,
    history: History,
    backoff: Backoff,
    jitter: Jitter,
    /// The next connection waits at least so long.
    least_wait: Duration,
    /// When we were let in last.
    online_since: Option<Instant>,
    /// Bytes of our `user@host` as others see it.
    user_host: Option<usize>,
    /// Where the server has demanded TLS.
    sts_port: Option<u16>,
    /// This connection is over: what it still says is of no interest.
    is_closing: bool,
}

impl Session {
    pub fn new(config: Irc, now: Instant, seed: u64) -> Session {
        let mut channels = Channels::default();
        for channel in &config.channels {
            let key = channel.key.as_ref().map_or("", |key| &key.0);
            channels.want(Casemapping::default().name(&channel.name), key, now);
        }
        Session {
            state: ConnectionState::Waiting { until: now },
            actions: Actions::new(),
            registration: Registration::new(&config, now),
            services: Services::new(&config),
            nick: Nick::new(&config.nick, &config.alt_nicks, now),
            channels,
            accounts: Accounts::default(),
            liveness: Liveness::new(config.ping_timeout, now),
            // What a server may tell apart is kept apart until it says.
            isupport: Isupport::with_casemapping(Casemapping::Ascii),
            history: History::default(),
            backoff: Backoff::new(RECONNECT.0, RECONNECT.1),
            jitter: Jitter::new(seed),
            least_wait: Duration::ZERO,
            online_since: None,
            user_host: None,
            sts_port: None,
            is_closing: false,
            config,
        }
    }

    /// What is to be done since the last call.
    pub fn take_actions(&mut self) -> Actions {
        std::mem::take(&mut self.actions)
    }

    pub fn nick(&self) -> &Name {
        self.nick.current()
    }

    pub fn casemapping(&self) -> Casemapping {
        self.isupport.casemapping
    }

    /// The bytes that the server puts before our lines as their source.
    pub fn source_length(&self) -> usize {
        let user_host = self
            .user_host
            .unwrap_or(self.config.username.len() + UNKNOWN_HOST);
        self.nick().as_str().len() + 1 + user_host
    }

    /// The channels that we are in.
    pub fn joined_channels(&self) -> impl Iterator<Item = &Name> {
        self.channels.joined()
    }

    /// A channel of ours as we write it.
    pub fn canonical_channel(&self, name: &Name) -> Option<&Name> {
        self.channels.canonical(name)
    }

    pub fn is_online(&self) -> bool {
        self.state == ConnectionState::Online
    }

    /// Whether lines to this channel or nick can be sent now.
    pub fn can_reach(&self, target: &Name) -> bool {
        self.is_online() && (!target.is_channel() || self.channels.is_joined(target))
    }

    /// A text that may repeat what we have told services, as the log may show it.
    pub fn without_password(&self, text: &str) -> String {
        self.services.without_password(text)
    }

    /// Whether a bouncer is between us and the network.
    pub fn is_behind_bouncer(&self) -> bool {
        self.registration.is_behind_bouncer()
    }

    /// A question to the server whether what was sent before it has arrived; [`Action::Answered`]
    /// brings the token back.
    pub fn arrival_question(&self, token: &str) -> Line {
        bouncer::arrival_question(token, self.is_behind_bouncer())
    }

    /// When [`Session::tick`] has something to do.
    pub fn deadline(&self) -> Instant {
        let state = match self.state {
            ConnectionState::Waiting { until }
            | ConnectionState::Connecting { until }
            | ConnectionState::Identifying { until } => until,
            ConnectionState::Registering => self.registration.deadline(),
            ConnectionState::Online => self.liveness.deadline(),
        };
        let online = [self.channels.deadline(), self.nick.deadline()];
        let online = online.into_iter().flatten().filter(|_| self.is_online());
        let accounts = self.accounts.deadline();
        online.chain(accounts).fold(state, Instant::min)
    }

    pub fn tick(&mut self, now: Instant) {
        match self.state {
            ConnectionState::Waiting { until } if now >= until => self.connect(now),
            ConnectionState::Connecting { until } if now >= until => {
                self.close("no connection within five minutes", Duration::ZERO);
            }
            ConnectionState::Registering => {
                let step = self.registration.tick(now, &mut self.actions);
                self.check(step);
            }
            ConnectionState::Identifying { until } if now >= until => {
                self.services.on_timeout();
                self.go_online(now);
            }
            ConnectionState::Waiting { .. }
            | ConnectionState::Connecting { .. }
            | ConnectionState::Identifying { .. }
            | ConnectionState::Online => {}
        }
        if self.is_online() {
            self.tick_online(now);
        }
        self.accounts.tick(now, &mut self.actions);
    }

    fn tick_online(&mut self, now: Instant) {
        match self.liveness.check(now) {
            Check::Nothing => {}
            Check::SendPing => self.send(Line::new("PING", &[], Some("alive"))),
            Check::Dead => {
                let why = "the server has gone silent and does not answer PING";
                self.close(why, Duration::ZERO);
                return;
            }
        }
        if self.nick.tick(now) {
            self.ask_for_nick();
        }
        self.channels.join_due(now, &mut self.actions);
    }

    fn connect(&mut self, now: Instant) {
        self.state = ConnectionState::Connecting {
            until: now + CONNECT,
        };
        self.is_closing = false;
        self.actions.push(Action::Connect {
            port: self.sts_port.unwrap_or(self.config.port),
            with_tls: self.is_tls(),
        });
    }

    fn is_tls(&self) -> bool {
        self.config.use_ssl || self.sts_port.is_some()
    }

    /// The connection stands.
    pub fn on_connected(&mut self, now: Instant) {
        self.state = ConnectionState::Registering;
        let casemapping = self.isupport.casemapping;
        self.isupport = Isupport::with_casemapping(casemapping);
        self.history = History::default();
        self.user_host = None;
        self.nick.on_connected();
        self.services.on_connected();
        self.nick.refold(casemapping);
        self.channels.refold(casemapping);
        let is_tls = self.is_tls();
        self.registration
            .on_connected(is_tls, now, &mut self.actions);
    }

    /// The connection is gone, or could not be made.
    pub fn on_disconnected(&mut self, why: &str, now: Instant) {
        let was_connecting = matches!(self.state, ConnectionState::Connecting { .. });
        if let Some(port) = self.sts_port
            && was_connecting
            && self.online_since.is_none()
        {
            self.actions.push(Action::Fatal(format!(
                "the server demands TLS on port {port} (STS), and that fails: {}; \
                 set `port` and `use_ssl = yes`, and `tls_ca_file` if its certificate is your own",
                sanitize(why)
            )));
        }
        let lasted = self.online_since.is_some_and(|since| now >= since + STABLE);
        if lasted && self.is_online() {
            self.backoff.reset();
        }
        let is_registering = self.state == ConnectionState::Registering;
        let is_silent = is_registering && !self.registration.has_spoken && !self.is_tls();
        let hint = if is_silent {
            " (is this a TLS port? use_ssl = yes)"
        } else {
            ""
        };
        if why.contains("throttled") {
            self.least_wait = self.least_wait.max(THROTTLED);
        }
        let least_wait = std::mem::take(&mut self.least_wait);
        let wait = self.jitter.spread(self.backoff.next_wait()).max(least_wait);
        log!(
            Warning,
            "IRC: {why}{hint}; next try in {} s",
            wait.as_secs()
        );
        self.state = ConnectionState::Waiting { until: now + wait };
        self.channels.on_disconnected(now);
        self.accounts.on_disconnected(&mut self.actions);
    }

    /// We want to be in a channel, from now on.
    pub fn join(&mut self, name: &Name, key: &str, now: Instant) {
        self.channels.want(name.clone(), key, now);
    }

    /// We want to be in a channel no more, and say there why.
    pub fn leave(&mut self, name: &Name, why: &str) {
        let must_part = self.channels.unwant(name);
        if must_part && self.is_online() {
            let why = Some(why).filter(|why| !why.is_empty());
            self.send(Line::new("PART", &[name.as_str()], why));
        }
    }

    /// Asks the server who the asker is; then the command comes again, with their account. Returns
    /// false if too many wait for that already.
    pub fn verify_account(&mut self, invocation: Invocation, now: Instant) -> bool {
        self.accounts.verify(invocation, now, &mut self.actions)
    }

    /// Takes in a message.
    pub fn on_message(&mut self, message: &Message, now: Instant) {
        if self.is_closing {
            return;
        }
        self.registration.has_spoken = true;
        self.liveness.on_message(now);
        let params: Vec<&str> = message.params.iter().map(String::as_str).collect();
        let command = message.command.as_str();
        for (name, needed, handler) in HANDLERS {
            if *name == command && params.len() >= *needed {
                handler(self, message, &params, now);
            }
        }
        if is_error(command) && params.len() >= 2 && !self.is_closing {
            self.on_target_error(command, &params, now);
        }
    }

    fn name(&self, text: &str) -> Name {
        self.isupport.casemapping.name(text)
    }

    fn sender(&self, message: &Message) -> Name {
        self.name(message.nick())
    }

    fn is_me(&self, name: &Name) -> bool {
        name == self.nick.current()
    }

    fn send(&mut self, line: Line) {
        self.actions.push(Action::Send(line));
    }

    /// Ends the connection; the next one waits at least so long.
    fn close(&mut self, why: &str, least_wait: Duration) {
        if self.is_closing {
            return;
        }
        self.is_closing = true;
        self.least_wait = self.least_wait.max(least_wait);
        self.actions.push(Action::Close(why.to_owned()));
    }

    /// A refusal that an operator must mend: the end, unless things were different before.
    fn refuse(&mut self, what: &str, why: &str) {
        let why = format!("{what}: {}", sanitize(why));
        if self.online_since.is_some() {
            self.close(&why, OPERATOR);
        } else {
            self.is_closing = true;
            self.actions.push(Action::Fatal(why));
        }
    }

    /// What registration cannot go on with.
    fn check(&mut self, step: Result<(), Failure>) {
        match step {
            Ok(()) => {}
            Err(Failure::NoSasl(why)) => self.close(&sanitize(&why), THROTTLED),
            Err(Failure::SaslRefused(why)) => {
                let (what, why) = why.split_once(": ").unwrap_or((&why, ""));
                self.refuse(what, why);
            }
            Err(Failure::TlsDemanded(port)) => {
                log!(Info, "IRC: the server demands TLS (STS) on port {port}");
                self.sts_port = Some(port);
                self.backoff.reset();
                self.close("going on with TLS", Duration::ZERO);
            }
            Err(Failure::TooSlow) => self.close("registration took too long", Duration::ZERO),
        }
    }

    // Registration

    fn is_registering(&self) -> bool {
        self.state == ConnectionState::Registering
    }

    fn on_cap(&mut self, _: &Message, params: &[&str], now: Instant) {
        // A server may come to demand TLS at any time.
        if self.is_registering() || params[1] == "NEW" {
            let step = self.registration.on_cap(params, now, &mut self.actions);
            self.check(step);
        }
    }

    fn on_authenticate(&mut self, _: &Message, params: &[&str], _: Instant) {
        if params[0] == "+" {
            self.registration.on_authenticate(&mut self.actions);
        }
    }

    fn on_sasl_success(&mut self, _: &Message, _: &[&str], now: Instant) {
        if self.is_registering() {
            self.registration.on_sasl_success(now, &mut self.actions);
        }
    }

    fn on_sasl_refused(&mut self, _: &Message, params: &[&str], _: Instant) {
        if self.is_registering() {
            let step = self.registration.on_sasl_refused(params[params.len() - 1]);
            self.check(step);
        }
    }

    fn on_sasl_aborted(&mut self, _: &Message, _: &[&str], _: Instant) {
        if self.is_registering() {
            let step = self.registration.on_sasl_aborted();
            self.check(step);
        }
    }

    fn on_unknown_command(&mut self, _: &Message, params: &[&str], _: Instant) {
        if params[1] == "CAP" && self.is_registering() {
            let step = self.registration.on_cap_unknown(&mut self.actions);
            self.check(step);
        }
    }

    /// Some servers without CAP say that we are not registered yet.
    fn on_not_registered(&mut self, _: &Message, _: &[&str], _: Instant) {
        if self.is_registering() {
            let step = self.registration.on_cap_unknown(&mut self.actions);
            self.check(step);
        }
    }

    fn on_password_refused(&mut self, _: &Message, params: &[&str], _: Instant) {
        self.refuse("server_password is refused", params[params.len() - 1]);
    }

    fn on_banned(&mut self, _: &Message, params: &[&str], _: Instant) {
        // The ERROR that follows has the reason.
        let why = sanitize(params[params.len() - 1]);
        log!(Warning, "IRC: banned from this server: {why}");
        self.least_wait = OPERATOR;
    }

    fn on_error(&mut self, _: &Message, params: &[&str], _: Instant) {
        let why = params[params.len() - 1];
        // ngIRCd has no 464 for a wrong server password.
        if self.is_registering() && why.contains("Bad password") {
            self.refuse("server_password is refused", why);
            return;
        }
        let lower = why.to_ascii_lowercase();
        let says = |words: &[&str]| words.iter().any(|word| lower.contains(word));
        let mut least_wait = Duration::ZERO;
        if says(&["throttl", "too fast", "too many"]) {
            least_wait = THROTTLED;
        }
        if says(&[
            "k-line", "g-line", "z-line", "d-line", "banned", "akill", "autokill",
        ]) {
            least_wait = OPERATOR;
        }
        if says(&["excess flood", "recvq exceeded", "sendq"]) {
            self.actions.push(Action::Flooded(sanitize(why)));
        }
        let why = format!("the server closes the connection: {}", sanitize(why));
        self.close(&why, least_wait);
    }

    /// The server lets us in: tell services who we are, and join when they believe it.
    fn on_welcome(&mut self, message: &Message, params: &[&str], now: Instant) {
        if !self.is_registering() || params[0].is_empty() {
            return;
        }
        let step = self.registration.on_welcome();
        if step.is_err() {
            self.check(step);
            return;
        }
        self.history.on_welcome(message);
        let nick = self.name(params[0]);
        self.nick.on_welcome(nick, now);
        self.state = ConnectionState::Identifying {
            until: now + IDENTIFY,
        };
        if self.registration.is_logged_in() {
            self.services.set_identified();
        } else {
            let nick = self.nick.current().clone();
            self.services.identify(&nick, &mut self.actions);
        }
    }

    /// `nick server version …`
    fn on_myinfo(&mut self, _: &Message, params: &[&str], _: Instant) {
        let software = if self.is_behind_bouncer() {
            // It passes lines on at its own pace: what is faster only waits there.
            Software::Unknown
        } else {
            Software::by_version(params[2])
        };
        self.actions.push(Action::Software(software));
    }

    fn on_isupport(&mut self, _: &Message, params: &[&str], _: Instant) {
        let before = self.isupport.casemapping;
        for token in &params[1..] {
            self.isupport.take(token);
            if token.starts_with("BOT=")
                && let Some(mode) = &self.isupport.bot_mode
            {
                let nick = self.nick.current().as_str();
                let line = Line::new("MODE", &[nick, &format!("+{mode}")], None);
                self.actions.push(Action::Send(line));
            }
            if token.starts_with("MONITOR") && !self.nick.has_wanted() {
                let wanted = self.nick.wanted().as_str();
                let line = Line::new("MONITOR", &["+", wanted], None);
                self.actions.push(Action::Send(line));
            }
        }
        if self.isupport.casemapping != before {
            self.refold();
        }
    }

    /// How the server compares names has become known.
    fn refold(&mut self) {
        let casemapping = self.isupport.casemapping;
        self.nick.refold(casemapping);
        self.channels.refold(casemapping);
        self.actions.push(Action::CasemappingKnown(casemapping));
    }

    /// The end of the message of the day. Who needs no services is online now.
    fn on_end_of_welcome(&mut self, _: &Message, _: &[&str], now: Instant) {
        let usual = Casemapping::default();
        if !self.isupport.is_casemapping_told && self.isupport.casemapping != usual {
            self.isupport.casemapping = usual;
            self.refold();
        }
        if self.registration.is_logged_in() || !self.services.has_password() {
            self.go_online(now);
        }
    }

    fn on_logged_in(&mut self, _: &Message, _: &[&str], now: Instant) {
        self.services.set_identified();
        self.go_online(now);
    }

    /// Joins and speaks from now on, if that was what we waited for.
    fn go_online(&mut self, now: Instant) {
        if !matches!(self.state, ConnectionState::Identifying { .. }) {
            return;
        }
        log!(Info, "IRC: online as {}", self.nick.current());
        self.state = ConnectionState::Online;
        self.liveness = Liveness::new(self.config.ping_timeout, now);
        self.online_since = Some(now);
        self.recover_nick();
    }

    fn on_host_hidden(&mut self, _: &Message, params: &[&str], _: Instant) {
        let host = params[1];
        self.user_host = Some(self.config.username.len() + 2 + host.len());
    }

    // Our nick

    fn on_nick_refused(&mut self, message: &Message, params: &[&str], _: Instant) {
        // 437 may name a channel.
        if !self.is_registering() || self.name(params[1]).is_channel() {
            return;
        }
        let refused = sanitize(params[1]);
        let numeric = message.command.as_str();
        let why = format!("{} ({numeric})", sanitize(params[params.len() - 1]));
        match self.nick.on_refused(numeric) {
            NextNick::Try(next) => {
                log!(Warning, "IRC: nick {refused}: {why}; trying {next}");
                self.send(Line::new("NICK", &[&next], None));
            }
            NextNick::Impossible => self.refuse(&format!("nick {refused}"), &why),
            NextNick::GiveUp => self.close(&format!("nick {refused}: {why}"), Duration::ZERO),
        }
    }

    fn recover_nick(&mut self) {
        if !self.nick.has_wanted() {
            let wanted = self.nick.wanted().as_str();
            self.services.recover_nick(wanted, &mut self.actions);
        }
    }

    fn ask_for_nick(&mut self) {
        if !self.nick.has_wanted() {
            let wanted = self.nick.wanted().as_str();
            let line = Line::new("NICK", &[wanted], None);
            self.actions.push(Action::Send(line));
        }
    }

    /// MONITOR says that our nick is free.
    fn on_nick_free(&mut self, _: &Message, _: &[&str], _: Instant) {
        self.ask_for_nick();
    }

    fn on_nick(&mut self, message: &Message, params: &[&str], now: Instant) {
        let old = self.sender(message);
        let new = self.name(params[0]);
        if new.is_empty() {
            return;
        }
        self.accounts.on_gone(&old, &mut self.actions);
        self.channels.on_nick(&old, Some(&new));
        self.actions.push(Action::Reachable(new.clone()));
        if self.is_me(&old) {
            log!(Info, "IRC: our nick is now {}", sanitize(new.as_str()));
            self.nick.on_changed(new, self.isupport.nick_length, now);
        } else if old == *self.nick.wanted() {
            self.ask_for_nick();
        }
    }

    fn on_quit(&mut self, message: &Message, _: &[&str], _: Instant) {
        let nick = self.sender(message);
        self.accounts.on_gone(&nick, &mut self.actions);
        self.channels.on_nick(&nick, None);
        if nick == *self.nick.wanted() {
            self.ask_for_nick();
        }
    }

    // Services

    fn on_notice(&mut self, message: &Message, params: &[&str], now: Instant) {
        let sender = self.sender(message);
        if !self.services.is_from_service(&sender) {
            return;
        }
        let nick = self.nick.current().clone();
        let wanted = self.nick.wanted().to_string();
        let is_online = self.is_online();
        let services = &mut self.services;
        match services.on_notice(params[1], &nick, &wanted, is_online, &mut self.actions) {
            services::Outcome::Nothing => {}
            services::Outcome::Identified | services::Outcome::Refused => self.go_online(now),
            services::Outcome::NickIsFree => self.ask_for_nick(),
        }
    }

    // Channels

    fn on_join(&mut self, message: &Message, params: &[&str], now: Instant) {
        let sender = self.sender(message);
        let channel = self.name(params[0]);
        if !self.is_me(&sender) {
            self.actions.push(Action::Reachable(sender));
            return;
        }
        if let Some((_, user_host)) = message.source.split_once('!') {
            self.user_host = Some(user_host.len());
        }
        self.channels.on_own_join(&channel, now);
        self.history.on_join(&channel, message);
        self.actions.push(Action::Reachable(channel));
    }

    fn on_part(&mut self, message: &Message, params: &[&str], now: Instant) {
        let nick = self.sender(message);
        let reason = params.get(1).copied().unwrap_or("");
        self.on_leave(params[0], nick, message.nick(), reason, now);
    }

    fn on_kick(&mut self, message: &Message, params: &[&str], now: Instant) {
        let nick = self.name(params[1]);
        let reason = params.get(2).copied().unwrap_or("");
        self.on_leave(params[0], nick, message.nick(), reason, now);
    }

    fn on_leave(&mut self, channel: &str, nick: Name, by: &str, reason: &str, now: Instant) {
        let channel = self.name(channel);
        if self.is_me(&nick) {
            self.channels.on_own_leave(&channel, by, reason, now);
        } else {
            self.channels.on_leave(&channel, &nick);
            self.accounts.on_gone(&nick, &mut self.actions);
        }
    }

    fn on_names(&mut self, _: &Message, params: &[&str], _: Instant) {
        let channel = self.name(params[2]);
        self.channels.on_names(&channel, params[3], &self.isupport);
        for word in params[3].split_whitespace() {
            let (_, nick) = self.isupport.split_ranks(word);
            // With userhost-in-names there is more behind it.
            let nick = self.name(nick.split('!').next().unwrap_or(nick));
            self.actions.push(Action::Seen(nick));
        }
    }

    fn on_mode(&mut self, _: &Message, params: &[&str], now: Instant) {
        let target = self.name(params[0]);
        let changes = params[1];
        if target.is_channel() {
            self.channels
                .on_mode(&target, changes, &params[2..], &self.isupport);
            self.actions.push(Action::Reachable(target));
        } else if self.is_me(&target) && is_registered(changes) {
            self.services.set_identified();
            self.go_online(now);
        }
    }

    fn on_invite(&mut self, _: &Message, params: &[&str], now: Instant) {
        let channel = self.name(params[1]);
        self.channels.on_invite(&channel, now);
    }

    /// An error numeric that names a target: a JOIN was refused, or something that we said was.
    fn on_target_error(&mut self, numeric: &str, params: &[&str], now: Instant) {
        let target = self.name(params[1]);
        let reason = params[params.len() - 1];
        if JOIN_REFUSED.contains(&numeric) && target.is_channel() {
            let actions = &mut self.actions;
            let casemapping = self.isupport.casemapping;
            let rest = &params[2..];
            self.channels
                .on_refused(&target, numeric, rest, casemapping, now, actions);
        }
        let refusal = Refusal {
            reason: format!("{} ({numeric})", sanitize(reason)),
            is_rate: TOO_MANY_TARGETS.contains(&numeric),
            is_gone: numeric == ERR_NOSUCHNICK,
        };
        self.actions.push(Action::Refused(target, refusal));
        // A question by WHOIS ends like this, too.
        self.actions.push(Action::Answered(params[1].to_owned()));
    }

    // People

    fn on_ping(&mut self, _: &Message, params: &[&str], _: Instant) {
        let token = params[params.len() - 1];
        self.send(Line::new("PONG", &[], Some(token)));
    }

    fn on_pong(&mut self, _: &Message, params: &[&str], _: Instant) {
        let token = params[params.len() - 1].to_owned();
        self.actions.push(Action::Answered(token));
    }

    fn on_batch(&mut self, message: &Message, params: &[&str], _: Instant) {
        self.history.on_batch(message, params);
    }

    fn on_whois(&mut self, message: &Message, params: &[&str], _: Instant) {
        let nick = self.name(params[1]);
        self.accounts
            .on_whois(&message.command, &nick, &params[2..]);
    }

    fn on_end_of_whois(&mut self, _: &Message, params: &[&str], _: Instant) {
        let nick = self.name(params[1]);
        self.accounts.on_end(&nick, &mut self.actions);
        self.actions.push(Action::Answered(params[1].to_owned()));
    }

    fn on_privmsg(&mut self, message: &Message, params: &[&str], now: Instant) {
        let target = self.name(params[0]);
        let text = params[1];
        let is_private = self.is_me(&target);
        self.history.on_playback_word(message, &target, text);
        if message.source.starts_with('*') {
            if is_private {
                self.on_bouncer(message, text, now);
            }
            return;
        }
        let sender = self.sender(message);
        // Servers have no `!`.
        let is_person = message.source.contains('!') && !self.is_me(&sender);
        if !is_person || message.is_from_bot() || self.history.is_replayed(message, &target) {
            return;
        }
        self.actions.push(Action::Seen(sender.clone()));
        match text.strip_prefix('\u{1}') {
            Some(ctcp) if is_private => self.on_ctcp(sender, ctcp),
            Some(_) => {}
            None => self.on_text(message, target, text, sender, is_private),
        }
    }

    fn on_ctcp(&mut self, sender: Name, ctcp: &str) {
        let ctcp = sanitize(ctcp);
        let version = concat!("VERSION buildbot-irc ", env!("CARGO_PKG_VERSION"));
        let answer = match ctcp.as_str() {
            "VERSION" => version,
            ping if ping.starts_with("PING ") => ping,
            _ => return,
        };
        let reply = format!("\u{1}{answer}\u{1}");
        self.actions.push(Action::CtcpReply(sender, reply));
    }

    /// Someone says something, perhaps to us.
    fn on_text(
        &mut self,
        message: &Message,
        target: Name,
        text: &str,
        sender: Name,
        is_private: bool,
    ) {
        let text: String = strip_formatting(text).chars().take(COMMAND).collect();
        let casemapping = self.isupport.casemapping;
        let command = addressed(&text, self.nick.current(), casemapping)
            .or_else(|| addressed(&text, self.nick.wanted(), casemapping));
        let (place, command) = match command {
            // Nobody would hear our answer yet.
            _ if !self.is_online() => return,
            // Some address us by habit even there.
            _ if is_private => (sender.clone(), command.unwrap_or(text.trim())),
            Some(command) if self.channels.is_joined(&target) => {
                let channel = self.channels.canonical(&target).cloned();
                (channel.unwrap_or(target), command)
            }
            _ => return,
        };
        let ranks = self.channels.ranks(&place, &sender);
        let is_op = place.is_channel() && self.isupport.is_op(ranks);
        self.actions.push(Action::Reachable(place.clone()));
        self.actions.push(Action::Invoked(Invocation {
            place,
            nick: sender,
            mask: message.source.clone(),
            text: command.to_owned(),
            is_op,
            account: self.account_of(message),
        }));
    }

    fn account_of(&self, message: &Message) -> Account {
        if !self.registration.has_account_tag() {
            return Account::Unknown;
        }
        match message.tag("account") {
            Some(account) => Account::LoggedIn(account),
            None => Account::None,
        }
    }

    /// A bouncer speaks of its own connection to the network.
    fn on_bouncer(&mut self, message: &Message, text: &str, now: Instant) {
        let Some(upstream) = bouncer::upstream(message, text) else {
            return;
        };
        // It has left our channels without a word, and joins them a while after it has come back.
        let join_at = match upstream {
            Upstream::Lost => {
                let text = sanitize(text);
                log!(Warning, "IRC: the bouncer has lost its network: {text}");
                now + WITHOUT_NETWORK
            }
            Upstream::Back => {
                log!(Info, "IRC: the bouncer is back on its network");
                now
            }
        };
        self.actions.push(Action::Upstream(upstream));
        self.channels.on_disconnected(join_at);
    }
}

/// Whether services have set the mode of a registered nick: `+r`, perhaps among others.
fn is_registered(changes: &str) -> bool {
    let mut is_set = true;
    for mode in changes.chars() {
        match mode {
            '+' | '-' => is_set = mode == '+',
            'r' => return is_set,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests;
