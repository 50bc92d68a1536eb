//! Whether the connection is alive. Pure.

use std::time::{Duration, Instant};

/// Silence, then a PING, then the end.
///
/// ```text
/// Listening ──3/5 of ping_timeout──► Probing ──2/5──► dead
///     ▲                                 │
///     └────────── any message ──────────┘
/// ```
#[derive(Debug)]
enum State {
    Listening { until: Instant },
    Probing { until: Instant },
}

#[derive(Debug)]
pub struct Liveness {
    timeout: Duration,
    state: State,
}

/// What is to be done now.
#[derive(Debug, PartialEq, Eq)]
pub enum Check {
    Nothing,
    SendPing,
    Dead,
}

impl Liveness {
    /// `timeout`: after so much silence the connection is dead.
    pub fn new(timeout: Duration, now: Instant) -> Liveness {
        Liveness {
            timeout,
            state: State::Listening {
                until: now + timeout * 3 / 5,
            },
        }
    }

    /// The server has said something.
    pub fn on_message(&mut self, now: Instant) {
        self.state = State::Listening {
            until: now + self.timeout * 3 / 5,
        };
    }

    pub fn deadline(&self) -> Instant {
        match self.state {
            State::Listening { until } | State::Probing { until } => until,
        }
    }

    pub fn check(&mut self, now: Instant) -> Check {
        match self.state {
            _ if now < self.deadline() => Check::Nothing,
            State::Listening { .. } => {
                self.state = State::Probing {
                    until: now + self.timeout * 2 / 5,
                };
                Check::SendPing
            }
            State::Probing { .. } => Check::Dead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_asked_then_ended() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(Duration::from_secs(100), start);
        assert_eq!(liveness.check(at(59)), Check::Nothing);
        assert_eq!(liveness.check(at(60)), Check::SendPing);
        assert_eq!(liveness.check(at(99)), Check::Nothing);
        assert_eq!(liveness.check(at(100)), Check::Dead);
    }

    #[test]
    fn any_message_shows_that_it_lives() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut liveness = Liveness::new(Duration::from_secs(100), start);
        assert_eq!(liveness.check(at(60)), Check::SendPing);
        liveness.on_message(at(90));
        assert_eq!(liveness.deadline(), at(150));
        assert_eq!(liveness.check(at(149)), Check::Nothing);
        assert_eq!(liveness.check(at(150)), Check::SendPing);
    }
}
