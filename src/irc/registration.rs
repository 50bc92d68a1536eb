//! Registration: PASS, NICK and USER, the capabilities, SASL (RFC 2812, section 3.1; IRCv3
//! capability-negotiation and sasl-3.1), and a server that demands TLS (IRCv3 sts). Pure.

use super::wire::Line;
use super::{Action, Actions, bouncer};
use crate::config::{Irc, Sasl};
use crate::encoding::base64;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// From the connection to the welcome.
const REGISTRATION: Duration = Duration::from_secs(60);
/// SASL may take so long, once it is asked for.
const SASL_STEP: Duration = Duration::from_secs(20);
/// A server that knows no CAP may say nothing to CAP LS at all; one that does may first look for our
/// name and ident.
const PROBE: Duration = Duration::from_secs(30);
/// Bytes of one AUTHENTICATE (IRCv3 sasl-3.1).
const AUTHENTICATE: usize = 400;
/// What we ask for, where it is offered. With draft/chathistory the server replays nothing unasked.
const CAPABILITIES: [&str; 7] = [
    "account-tag",
    "batch",
    "draft/chathistory",
    "message-tags",
    "multi-prefix",
    "sasl",
    "server-time",
];

/// ```text
/// Probing ──CAP LS, or nothing for 30 s─► Listing ──CAP LS──► Requesting ──ACK──► Authenticating
///                                            │                    │                    │ 903
///                                            └────── CAP END ─────┴────────────────────┴──► Ended
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// On a plain connection, PASS is held back until the server had its chance to demand TLS.
    Probing {
        until: Instant,
    },
    /// PASS, NICK and USER are sent; the list of capabilities is to come.
    Listing,
    Requesting,
    Authenticating,
    /// CAP END is sent; the welcome is to come.
    Ended,
}

/// Why registration cannot go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Failure {
    /// SASL was asked for and cannot be had now. We never go on without it.
    NoSasl(String),
    /// The server does not take our password or certificate.
    SaslRefused(String),
    /// The server demands TLS on this port (STS).
    TlsDemanded(u16),
    TooSlow,
}

type Step = Result<(), Failure>;

#[derive(Debug)]
pub struct Registration {
    config: Irc,
    is_tls: bool,
    state: State,
    deadline: Instant,
    /// Capabilities that we know, with their values.
    offered: BTreeMap<String, String>,
    has_account_tag: bool,
    is_behind_bouncer: bool,
    is_logged_in: bool,
    /// The server has said something.
    pub has_spoken: bool,
}

impl Registration {
    pub fn new(config: &Irc, now: Instant) -> Registration {
        Registration {
            config: config.clone(),
            is_tls: false,
            state: State::Listing,
            deadline: now,
            offered: BTreeMap::new(),
            has_account_tag: false,
            is_behind_bouncer: false,
            is_logged_in: false,
            has_spoken: false,
        }
    }

    /// Whether messages tell the account of who has sent them.
    pub fn has_account_tag(&self) -> bool {
        self.has_account_tag
    }

    /// Whether a bouncer is between us and the network.
    pub fn is_behind_bouncer(&self) -> bool {
        self.is_behind_bouncer
    }

    /// Whether SASL has logged us in.
    pub fn is_logged_in(&self) -> bool {
        self.is_logged_in
    }

    pub fn deadline(&self) -> Instant {
        match self.state {
            State::Probing { until } => until.min(self.deadline),
            _ => self.deadline,
        }
    }

    /// The connection stands: CAP LS comes first of all.
    pub fn on_connected(&mut self, is_tls: bool, now: Instant, actions: &mut Actions) {
        *self = Registration::new(&self.config, now);
        self.is_tls = is_tls;
        self.deadline = now + REGISTRATION;
        let has_secret = self.config.server_password.is_some();
        if has_secret && !is_tls {
            self.state = State::Probing { until: now + PROBE };
            actions.push(Action::Send(Line::new("CAP", &["LS", "302"], None)));
        } else {
            self.introduce(true, actions);
        }
    }

    /// PASS, NICK and USER.
    fn introduce(&mut self, with_cap: bool, actions: &mut Actions) {
        self.state = State::Listing;
        let config = &self.config;
        if let Some(password) = &config.server_password {
            actions.push(Action::Send(Line::secret("PASS", &[], Some(&password.0))));
        }
        if with_cap {
            actions.push(Action::Send(Line::new("CAP", &["LS", "302"], None)));
        }
        let nick = Line::new("NICK", &[&config.nick], None);
        let user = Line::new(
            "USER",
            &[&config.username, "0", "*"],
            Some(&config.realname),
        );
        actions.push(Action::Send(nick));
        actions.push(Action::Send(user));
    }

    /// `CAP * SUBCOMMAND [*] :CAPABILITIES`
    pub fn on_cap(&mut self, params: &[&str], now: Instant, actions: &mut Actions) -> Step {
        match params {
            [_, "LS", "*", capabilities] => {
                self.note_offered(capabilities);
                Ok(())
            }
            [_, "LS", .., capabilities] => {
                self.note_offered(capabilities);
                self.on_list_complete(now, actions)
            }
            [_, "ACK", .., capabilities] => {
                let mut acknowledged = capabilities.split_whitespace();
                self.has_account_tag |= acknowledged.any(|name| name == "account-tag");
                if self.wants_sasl() && !self.is_logged_in {
                    self.state = State::Authenticating;
                    let mechanism = Line::new("AUTHENTICATE", &[self.mechanism()], None);
                    actions.push(Action::Send(mechanism));
                } else {
                    self.end(actions);
                }
                Ok(())
            }
            [_, "NEW", .., capabilities] => {
                self.note_offered(capabilities);
                let sts = self.offered.remove("sts");
                self.heed_sts(sts)
            }
            [_, "NAK", ..] if self.wants_sasl() => self.no_sasl("the server refuses it"),
            [_, "NAK", ..] => {
                self.end(actions);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn note_offered(&mut self, capabilities: &str) {
        for capability in capabilities.split_whitespace() {
            let (name, value) = capability.split_once('=').unwrap_or((capability, ""));
            self.is_behind_bouncer |= bouncer::is_bouncers(name);
            if CAPABILITIES.contains(&name) || name == "sts" {
                self.offered.insert(name.to_owned(), value.to_owned());
            }
        }
    }

    /// The server has said what it is capable of; we say what we want.
    fn on_list_complete(&mut self, now: Instant, actions: &mut Actions) -> Step {
        let mut offered = std::mem::take(&mut self.offered);
        self.heed_sts(offered.remove("sts"))?;
        if let State::Probing { .. } = self.state {
            self.introduce(false, actions);
        }
        if !self.wants_sasl() {
            offered.remove("sasl");
        } else {
            let Some(mechanisms) = offered.get("sasl") else {
                return self.no_sasl("the server does not offer it (services down?)");
            };
            let mut list = mechanisms.split(',');
            if !mechanisms.is_empty() && list.all(|name| name != self.mechanism()) {
                return self.no_sasl(&format!("the server offers only {mechanisms}"));
            }
            self.deadline = self.deadline.min(now + SASL_STEP);
        }
        if offered.is_empty() {
            self.end(actions);
        } else {
            let wanted: Vec<String> = offered.into_keys().collect();
            self.state = State::Requesting;
            actions.push(Action::Send(Line::new(
                "CAP",
                &["REQ"],
                Some(&wanted.join(" ")),
            )));
        }
        Ok(())
    }

    /// Goes no further on a plain connection where the server demands TLS.
    fn heed_sts(&self, sts: Option<String>) -> Step {
        match sts.as_deref().and_then(sts_port) {
            Some(port) if !self.is_tls => Err(Failure::TlsDemanded(port)),
            _ => Ok(()),
        }
    }

    fn end(&mut self, actions: &mut Actions) {
        self.state = State::Ended;
        actions.push(Action::Send(Line::new("CAP", &["END"], None)));
    }

    fn wants_sasl(&self) -> bool {
        self.config.sasl != Sasl::No
    }

    fn mechanism(&self) -> &'static str {
        match self.config.sasl {
            Sasl::External => "EXTERNAL",
            Sasl::Plain | Sasl::No => "PLAIN",
        }
    }

    fn no_sasl(&self, why: &str) -> Step {
        let mechanism = self.mechanism();
        let reason = format!("no SASL {mechanism}: {why}; not going on without");
        Err(Failure::NoSasl(reason))
    }

    /// The server waits for our credentials.
    pub fn on_authenticate(&mut self, actions: &mut Actions) {
        if self.state != State::Authenticating {
            return;
        }
        let credentials = match (self.config.sasl, &self.config.password) {
            (Sasl::Plain, Some(password)) => {
                let account = &self.config.account;
                format!("{account}\0{account}\0{}", password.0)
            }
            _ => String::new(),
        };
        let encoded = base64(credentials.as_bytes());
        let mut pieces: Vec<&str> = Vec::new();
        let mut rest = encoded.as_str();
        while rest.len() >= AUTHENTICATE {
            let (piece, after) = rest.split_at(AUTHENTICATE);
            pieces.push(piece);
            rest = after;
        }
        // A full last piece is followed by an empty one, which is written as a plus.
        pieces.push(if rest.is_empty() { "+" } else { rest });
        for piece in pieces {
            actions.push(Action::Send(Line::secret("AUTHENTICATE", &[piece], None)));
        }
    }

    pub fn on_sasl_success(&mut self, now: Instant, actions: &mut Actions) {
        self.is_logged_in = true;
        self.deadline = now + REGISTRATION;
        self.end(actions);
    }

    /// 902, 904, 905
    pub fn on_sasl_refused(&self, why: &str) -> Step {
        Err(Failure::SaslRefused(format!("SASL failed: {why}")))
    }

    /// 906
    pub fn on_sasl_aborted(&self) -> Step {
        if self.wants_sasl() {
            self.no_sasl("the server refuses it")
        } else {
            Ok(())
        }
    }

    /// The server knows no CAP.
    pub fn on_cap_unknown(&mut self, actions: &mut Actions) -> Step {
        if self.wants_sasl() {
            return self.no_sasl("the server knows no CAP");
        }
        if let State::Probing { .. } = self.state {
            self.introduce(false, actions);
        }
        Ok(())
    }

    /// The server lets us in.
    pub fn on_welcome(&mut self) -> Step {
        if self.wants_sasl() && !self.is_logged_in {
            return self.no_sasl("the server let us in before it");
        }
        self.state = State::Ended;
        Ok(())
    }

    pub fn tick(&mut self, now: Instant, actions: &mut Actions) -> Step {
        if now >= self.deadline {
            if self.wants_sasl() && self.has_spoken && !self.is_logged_in {
                return self.no_sasl("no answer in time");
            }
            return Err(Failure::TooSlow);
        }
        if let State::Probing { until } = self.state
            && now >= until
        {
            self.introduce(false, actions);
        }
        Ok(())
    }
}

/// The port of `port=6697,duration=300`.
fn sts_port(value: &str) -> Option<u16> {
    let mut keys = value.split(',');
    let port = keys.find_map(|key| key.strip_prefix("port="))?;
    port.parse().ok().filter(|port| *port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{SHORT, parse};

    /// A registration with its clock.
    struct Rig {
        registration: Registration,
        now: Instant,
        actions: Actions,
    }

    impl Rig {
        fn new(more: &str) -> Rig {
            let config = parse(&format!("{SHORT}username = u\nrealname = r\n{more}")).unwrap();
            let now = Instant::now();
            let mut rig = Rig {
                registration: Registration::new(&config.irc.unwrap(), now),
                now,
                actions: Actions::new(),
            };
            rig.registration.on_connected(false, now, &mut rig.actions);
            rig
        }

        fn cap(&mut self, params: &[&str]) -> Step {
            self.registration
                .on_cap(params, self.now, &mut self.actions)
        }

        fn said(&mut self) -> Vec<String> {
            let sent = self.actions.drain(..).map(|action| match action {
                Action::Send(line) => String::from_utf8(line.bytes()).unwrap(),
                other => panic!("{other:?}"),
            });
            sent.map(|line| line.trim_end().to_owned()).collect()
        }
    }

    fn no_sasl(why: &str) -> Step {
        let reason = format!("no SASL PLAIN: {why}; not going on without");
        Err(Failure::NoSasl(reason))
    }

    #[test]
    fn without_capabilities() {
        let mut rig = Rig::new("");
        assert_eq!(rig.said(), ["CAP LS 302", "NICK bot", "USER u 0 * :r"]);
        assert_eq!(rig.cap(&["*", "LS", ""]), Ok(()));
        assert_eq!(rig.said(), ["CAP END"]);
        assert_eq!(rig.registration.on_welcome(), Ok(()));
    }

    #[test]
    fn a_server_password_waits_until_the_server_could_demand_tls() {
        let mut rig = Rig::new("server_password = pw\n");
        assert_eq!(rig.said(), ["CAP LS 302"]);
        assert_eq!(rig.cap(&["*", "LS", ""]), Ok(()));
        let introduced = ["PASS :pw", "NICK bot", "USER u 0 * :r", "CAP END"];
        assert_eq!(rig.said(), introduced);
        let mut rig = Rig::new("server_password = pw\n");
        rig.said();
        rig.now += PROBE;
        assert_eq!(rig.registration.tick(rig.now, &mut rig.actions), Ok(()));
        assert_eq!(rig.said(), introduced[..3], "a server that knows no CAP");
        let mut rig = Rig::new("server_password = pw\n");
        rig.said();
        assert_eq!(rig.registration.on_cap_unknown(&mut rig.actions), Ok(()));
        assert_eq!(rig.said(), introduced[..3]);
    }

    #[test]
    fn no_secret_goes_out_before_tls_where_the_server_demands_it() {
        for more in ["server_password = pw\n", "sasl = plain\npassword = pw\n"] {
            let mut rig = Rig::new(more);
            let offer = "sasl sts=duration=300,port=6697";
            assert_eq!(
                rig.cap(&["*", "LS", offer]),
                Err(Failure::TlsDemanded(6697))
            );
            let said = rig.said();
            assert!(said.iter().all(|line| !line.contains("pw")), "{said:?}");
        }
        let mut rig = Rig::new("");
        rig.registration
            .on_connected(true, rig.now, &mut rig.actions);
        assert_eq!(rig.cap(&["*", "LS", "sts=port=6697"]), Ok(()), "it has TLS");
        let mut rig = Rig::new("");
        assert_eq!(
            rig.cap(&["*", "NEW", "sts=port=6697"]),
            Err(Failure::TlsDemanded(6697)),
            "it may come later"
        );
        assert_eq!(sts_port("duration=1"), None);
        assert_eq!(sts_port("port=0"), None);
        assert_eq!(sts_port("port=x"), None);
    }

    #[test]
    fn sasl_plain_in_a_piece() {
        let mut rig = Rig::new("sasl = plain\npassword = pw\n");
        rig.said();
        assert_eq!(rig.cap(&["*", "LS", "*", "multi-prefix"]), Ok(()));
        assert_eq!(rig.said(), [""; 0]);
        let offer = "sasl=PLAIN,EXTERNAL account-tag echo-message";
        assert_eq!(rig.cap(&["*", "LS", offer]), Ok(()));
        assert_eq!(rig.said(), ["CAP REQ :account-tag multi-prefix sasl"]);
        assert_eq!(
            rig.cap(&["*", "ACK", "account-tag multi-prefix sasl"]),
            Ok(())
        );
        assert_eq!(rig.said(), ["AUTHENTICATE PLAIN"]);
        rig.registration.on_authenticate(&mut rig.actions);
        assert_eq!(rig.said(), ["AUTHENTICATE Ym90AGJvdABwdw=="]);
        rig.registration.on_sasl_success(rig.now, &mut rig.actions);
        assert_eq!(rig.said(), ["CAP END"]);
        let deadline = rig.now + REGISTRATION;
        assert_eq!(
            rig.registration.deadline(),
            deadline,
            "what follows has all its time"
        );
        assert!(rig.registration.has_account_tag() && rig.registration.is_logged_in());
    }

    #[test]
    fn sasl_in_pieces() {
        for (password, expected) in [(292, vec![400, 1]), (293, vec![400, 4])] {
            let password = "x".repeat(password);
            let mut rig = Rig::new(&format!("sasl = plain\npassword = {password}\n"));
            rig.cap(&["*", "LS", "sasl"]).unwrap();
            rig.cap(&["*", "ACK", "sasl"]).unwrap();
            rig.said();
            rig.registration.on_authenticate(&mut rig.actions);
            let lengths = rig
                .said()
                .into_iter()
                .map(|line| line.len() - "AUTHENTICATE ".len());
            assert_eq!(lengths.collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn never_without_sasl_if_it_was_asked_for() {
        let rig = || Rig::new("sasl = plain\npassword = pw\n");
        let none = "the server does not offer it (services down?)";
        assert_eq!(rig().cap(&["*", "LS", "multi-prefix"]), no_sasl(none));
        let other = "the server offers only EXTERNAL";
        assert_eq!(rig().cap(&["*", "LS", "sasl=EXTERNAL"]), no_sasl(other));
        assert_eq!(
            rig().cap(&["*", "NAK", "sasl"]),
            no_sasl("the server refuses it")
        );
        let early = "the server let us in before it";
        assert_eq!(rig().registration.on_welcome(), no_sasl(early));
        let unknown = rig().registration.on_cap_unknown(&mut Actions::new());
        assert_eq!(unknown, no_sasl("the server knows no CAP"));
        assert_eq!(
            rig().registration.on_sasl_aborted(),
            no_sasl("the server refuses it")
        );
        let refused = rig().registration.on_sasl_refused("wrong");
        assert_eq!(
            refused,
            Err(Failure::SaslRefused("SASL failed: wrong".into()))
        );
        let mut rig = rig();
        rig.cap(&["*", "LS", "sasl draft/chathistory"]).unwrap();
        assert_eq!(
            rig.said().last().unwrap(),
            "CAP REQ :draft/chathistory sasl"
        );
        rig.registration.has_spoken = true;
        let late = rig.registration.tick(rig.now + SASL_STEP, &mut rig.actions);
        assert_eq!(late, no_sasl("no answer in time"));
    }
}
