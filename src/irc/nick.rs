//! The nick that we want, the one that we have, and how we get the one instead of the other. Pure.

use super::numerics::ERR_ERRONEUSNICKNAME;
use crate::backoff::Backoff;
use crate::names::{Casemapping, Name};
use std::time::{Duration, Instant};

/// Between requests for our nick, doubling.
const REGAIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(600));
/// Characters of a nick that every server takes, less one for a digit: some refuse longer ones.
const SHORT: usize = 8;

/// ```text
/// Held ◄──our NICK, or a nick that the server has cut── Substitute { ask_at }
///   └──────────────── somebody renames us ─────────────────►┘
/// ```
#[derive(Debug, PartialEq, Eq)]
enum State {
    /// We have the nick that we want.
    Held,
    /// We have another one, and ask for ours then.
    Substitute { ask_at: Instant },
}

#[derive(Debug)]
pub struct Nick {
    configured: String,
    alternatives: Vec<String>,
    wanted: Name,
    current: Name,
    /// How many alternatives were tried on this connection.
    tried: usize,
    /// We had it once: if it is refused now, it is held by services and not impossible.
    was_held: bool,
    state: State,
    backoff: Backoff,
}

/// What to do after a nick was refused.
#[derive(Debug, PartialEq, Eq)]
pub enum NextNick {
    Try(String),
    /// All were tried.
    GiveUp,
    /// All were refused as invalid (432).
    Impossible,
}

impl Nick {
    pub fn new(wanted: &str, alternatives: &[String], now: Instant) -> Nick {
        let name = Casemapping::default().name(wanted);
        Nick {
            configured: wanted.to_owned(),
            alternatives: alternatives.to_vec(),
            wanted: name.clone(),
            current: name,
            tried: 0,
            was_held: false,
            state: State::Substitute { ask_at: now },
            backoff: Backoff::new(REGAIN.0, REGAIN.1),
        }
    }

    /// A new connection begins: we ask for the one that we want.
    pub fn on_connected(&mut self) {
        self.wanted = Casemapping::default().name(&self.configured);
        self.current = self.wanted.clone();
        self.tried = 0;
    }

    /// The server's way to compare names has become known.
    pub fn refold(&mut self, casemapping: Casemapping) {
        self.wanted = self.wanted.refold(casemapping);
        self.current = self.current.refold(casemapping);
    }

    /// The nick that we have.
    pub fn current(&self) -> &Name {
        &self.current
    }

    /// The nick that we want.
    pub fn wanted(&self) -> &Name {
        &self.wanted
    }

    pub fn has_wanted(&self) -> bool {
        self.current == self.wanted
    }

    /// A nick is refused during registration: which one to try next.
    pub fn on_refused(&mut self, numeric: &str) -> NextNick {
        let wanted = &self.configured;
        let start: String = wanted.chars().take(SHORT).collect();
        let short = (1..10).map(|digit| format!("{start}{digit}"));
        let underscored = [format!("{wanted}_")];
        let mut candidates = self
            .alternatives
            .iter()
            .cloned()
            .chain(underscored)
            .chain(short);
        match candidates.nth(self.tried) {
            Some(next) => {
                self.tried += 1;
                self.current = Casemapping::default().name(&next);
                NextNick::Try(next)
            }
            None if numeric == ERR_ERRONEUSNICKNAME && !self.was_held => NextNick::Impossible,
            None => NextNick::GiveUp,
        }
    }

    /// The server has let us in under this nick. It may have cut the one that we asked for: then
    /// that is what we want here.
    pub fn on_welcome(&mut self, nick: Name, now: Instant) {
        let is_cut = self.wanted.as_str().starts_with(nick.as_str()) && !nick.is_empty();
        if is_cut && self.tried == 0 && nick != self.wanted {
            log!(Info, "IRC: the server cuts our nick to {nick}");
            self.wanted = nick.clone();
        }
        self.backoff.reset();
        self.set_current(nick, now);
    }

    /// Our nick has changed; perhaps the server has cut it to its length.
    pub fn on_changed(&mut self, nick: Name, length: Option<usize>, now: Instant) {
        let wanted = self.wanted.as_str();
        let cut = length.and_then(|length| wanted.get(..length));
        if cut == Some(nick.as_str()) {
            self.wanted = nick.clone();
        }
        self.set_current(nick, now);
    }

    fn set_current(&mut self, nick: Name, now: Instant) {
        self.current = nick;
        if self.has_wanted() {
            self.was_held = true;
            self.state = State::Held;
        } else {
            self.state = State::Substitute {
                ask_at: now + self.backoff.next_wait(),
            };
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Held => None,
            State::Substitute { ask_at } => Some(ask_at),
        }
    }

    /// Whether it is time to ask for our nick again.
    pub fn tick(&mut self, now: Instant) -> bool {
        match self.state {
            State::Substitute { ask_at } if ask_at <= now => {
                self.state = State::Substitute {
                    ask_at: now + self.backoff.next_wait(),
                };
                true
            }
            State::Held | State::Substitute { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::numerics::ERR_NICKNAMEINUSE;
    use super::*;

    fn name(text: &str) -> Name {
        Casemapping::default().name(text)
    }

    #[test]
    fn a_taken_nick_is_replaced_by_the_next_best() {
        let now = Instant::now();
        let mut nick = Nick::new("buildbot-irc", &["alt".to_owned()], now);
        let mut tried = Vec::new();
        while let NextNick::Try(next) = nick.on_refused(ERR_NICKNAMEINUSE) {
            tried.push(next);
        }
        assert_eq!(tried[..3], ["alt", "buildbot-irc_", "buildbot1"]);
        assert_eq!(tried.len(), 11);
        assert_eq!(nick.on_refused(ERR_NICKNAMEINUSE), NextNick::GiveUp);
        assert_eq!(nick.on_refused(ERR_ERRONEUSNICKNAME), NextNick::Impossible);
    }

    #[test]
    fn a_nick_that_we_held_before_is_not_impossible() {
        let now = Instant::now();
        let mut nick = Nick::new("bot", &[], now);
        nick.on_welcome(name("bot"), now);
        nick.on_connected();
        while let NextNick::Try(_) = nick.on_refused(ERR_ERRONEUSNICKNAME) {}
        assert_eq!(nick.on_refused(ERR_ERRONEUSNICKNAME), NextNick::GiveUp);
    }

    #[test]
    fn it_is_asked_for_again_ever_more_rarely() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut nick = Nick::new("bot", &[], start);
        nick.on_refused(ERR_NICKNAMEINUSE);
        nick.on_welcome(name("bot_"), start);
        assert!(!nick.has_wanted());
        assert_eq!(nick.deadline(), Some(at(15)));
        assert!(!nick.tick(at(14)) && nick.tick(at(15)));
        assert_eq!(nick.deadline(), Some(at(45)));
        nick.on_changed(name("BOT"), None, at(20));
        assert!(nick.has_wanted());
        assert_eq!(nick.deadline(), None);
    }

    #[test]
    fn a_nick_that_the_server_has_cut_is_ours() {
        let now = Instant::now();
        let mut nick = Nick::new("averylongnick", &[], now);
        nick.on_welcome(name("averylong"), now);
        assert!(nick.has_wanted());
        assert_eq!(nick.deadline(), None);
        nick.on_connected();
        nick.on_welcome(name("other"), now);
        nick.on_changed(name("averylong"), Some(9), now);
        assert!(nick.has_wanted(), "won back, and cut");
        nick.on_connected();
        assert_eq!(nick.current().as_str(), "averylongnick", "next time, anew");
    }
}
