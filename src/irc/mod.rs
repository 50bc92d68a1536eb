//! The IRC side: bytes, the session with its machines, and what waits to be said. Pure; it knows
//! nothing of commands: it brings messages to us with who said them, their rank and account.

pub mod accounts;
pub mod bouncer;
pub mod channels;
pub mod history;
pub mod isupport;
pub mod liveness;
pub mod modes;
pub mod nick;
pub mod numerics;
pub mod outbox;
pub mod pacing;
pub mod registration;
pub mod services;
pub mod session;
pub mod wire;

use crate::names::{Casemapping, Name};
use wire::Line;

/// A message that is addressed to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Invocation {
    /// Where the answer goes: the channel, or the nick that asked in private.
    pub place: Name,
    pub nick: Name,
    /// `nick!user@host`
    pub mask: String,
    pub text: String,
    /// Who asks is an operator of that channel.
    pub is_op: bool,
    pub account: Account,
}

/// What is known of someone's services account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Account {
    #[default]
    Unknown,
    None,
    LoggedIn(String),
}

/// What the session wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect to this port.
    Connect { port: u16, with_tls: bool },
    /// Drop the connection, for this reason.
    Close(String),
    /// Send at once.
    Send(Line),
    /// Send in its turn, before the replies to that place.
    SendInTurn(Name, Line),
    /// Someone has said something to us.
    Invoked(Invocation),
    /// Answer this nick's CTCP.
    CtcpReply(Name, String),
    /// The server has answered the question with this token.
    Answered(String),
    /// What was said to this target was not passed on.
    Refused(Name, Refusal),
    /// A sign that this target can be told.
    Reachable(Name),
    /// Someone is there.
    Seen(Name),
    /// What the server says of its limits.
    Software(pacing::Software),
    /// The server compares names like this.
    CasemappingKnown(Casemapping),
    /// A bouncer has lost, or has again, its connection to the network.
    Upstream(Upstream),
    /// We were killed for saying too much.
    Flooded(String),
    /// No retry mends this.
    Fatal(String),
}

/// Why something was not passed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The server's words.
    pub reason: String,
    /// It was too much at once, and will do later.
    pub is_rate: bool,
    /// There is nobody by that nick.
    pub is_gone: bool,
}

/// A bouncer's connection to the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upstream {
    Lost,
    Back,
}

/// What the machines leave to be done; the session hands it on.
pub type Actions = Vec<Action>;
