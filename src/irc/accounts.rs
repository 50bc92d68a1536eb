//! Proofs of accounts by WHOIS, each at the moment of its command and never remembered. Pure.

use super::numerics::{RPL_WHOISACCOUNT, RPL_WHOISREGNICK, RPL_WHOISUSER};
use super::wire::Line;
use super::{Account, Action, Actions, Invocation};
use crate::names::Name;
use std::time::{Duration, Instant};

/// Under way at once.
const PENDING: usize = 32;
/// So long may a WHOIS take, which waits its turn.
const PATIENCE: Duration = Duration::from_secs(40);

/// A command whose asker WHOIS is to prove.
///
/// ```text
/// asked ──RPL_WHOISUSER with the asker's user@host──► identified
/// ```
/// What RPL_WHOISACCOUNT or RPL_WHOISREGNICK say counts only if the one who has the nick now is the
/// one who has asked. At the end of WHOIS, or when the nick goes away, or in time, the command is
/// handed on with what is known.
struct PendingWhois {
    invocation: Invocation,
    until: Instant,
    is_same_person: bool,
}

#[derive(Default)]
pub struct Accounts {
    pending: Vec<PendingWhois>,
}

impl Accounts {
    /// Asks the server who the asker is. Returns false if too many wait for that already.
    pub fn verify(&mut self, invocation: Invocation, now: Instant, actions: &mut Actions) -> bool {
        if self.pending.len() >= PENDING {
            return false;
        }
        let nick = &invocation.nick;
        let is_asked = self.pending.iter().any(|p| p.invocation.nick == *nick);
        if !is_asked {
            // Anyone can make us ask, so it takes its turn.
            let whois = Line::new("WHOIS", &[nick.as_str()], None);
            actions.push(Action::SendInTurn(invocation.place.clone(), whois));
        }
        self.pending.push(PendingWhois {
            invocation,
            until: now + PATIENCE,
            is_same_person: false,
        });
        true
    }

    /// The server tells something of a nick; `rest` are the parameters behind it.
    pub fn on_whois(&mut self, numeric: &str, nick: &Name, rest: &[&str]) {
        let of_nick = self.pending.iter_mut();
        for pending in of_nick.filter(|p| p.invocation.nick == *nick) {
            let invocation = &mut pending.invocation;
            match (numeric, rest) {
                (RPL_WHOISUSER, [user, host, ..]) => {
                    let ending = format!("!{user}@{host}");
                    pending.is_same_person = invocation.mask.ends_with(&ending);
                }
                (RPL_WHOISACCOUNT, [account, ..]) => {
                    invocation.account = Account::LoggedIn((*account).to_owned());
                }
                (RPL_WHOISREGNICK, _) if invocation.account == Account::Unknown => {
                    invocation.account = Account::LoggedIn(nick.to_string());
                }
                _ => {}
            }
        }
    }

    /// The answer is complete.
    pub fn on_end(&mut self, nick: &Name, actions: &mut Actions) {
        let ended = |pending: &PendingWhois| pending.invocation.nick == *nick;
        self.finish(ended, true, actions);
    }

    /// The nick has gone or changed, which proves nothing.
    pub fn on_gone(&mut self, nick: &Name, actions: &mut Actions) {
        let gone = |pending: &PendingWhois| pending.invocation.nick == *nick;
        self.finish(gone, false, actions);
    }

    /// No answer any more.
    pub fn on_disconnected(&mut self, actions: &mut Actions) {
        self.finish(|_| true, false, actions);
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.pending.iter().map(|pending| pending.until).min()
    }

    /// What was not answered in time proves nothing.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions) {
        self.finish(|pending| pending.until <= now, false, actions);
    }

    fn finish(
        &mut self,
        is_over: impl Fn(&PendingWhois) -> bool,
        is_complete: bool,
        actions: &mut Actions,
    ) {
        for pending in self.pending.extract_if(.., |pending| is_over(pending)) {
            let mut invocation = pending.invocation;
            let is_known = invocation.account != Account::Unknown;
            if !is_complete || !pending.is_same_person || !is_known {
                invocation.account = Account::None;
            }
            actions.push(Action::Invoked(invocation));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Casemapping;

    fn invocation(nick: &str, mask: &str) -> Invocation {
        Invocation {
            nick: Casemapping::Ascii.name(nick),
            mask: mask.into(),
            ..Invocation::default()
        }
    }

    fn proved(actions: Actions) -> Vec<Account> {
        let accounts = actions.into_iter().filter_map(|action| match action {
            Action::Invoked(invocation) => Some(invocation.account),
            _ => None,
        });
        accounts.collect()
    }

    #[test]
    fn an_account_is_proved_for_the_one_who_asked() {
        let joe = Casemapping::Ascii.name("joe");
        let logged_in = |name: &str| Account::LoggedIn(name.into());
        let user = (RPL_WHOISUSER, vec!["u", "h", "*", "x"]);
        let other = (RPL_WHOISUSER, vec!["eve", "h", "*", "x"]);
        let account = (RPL_WHOISACCOUNT, vec!["acct", "is logged in as"]);
        let registered = (RPL_WHOISREGNICK, vec!["is a registered nick"]);
        for (answers, expected) in [
            (vec![&user, &account], logged_in("acct")),
            (vec![&other, &account], Account::None),
            (vec![&user, &registered], logged_in("joe")),
            (vec![&user], Account::None),
            (vec![&account], Account::None),
            (vec![], Account::None),
        ] {
            let mut accounts = Accounts::default();
            let mut actions = Actions::new();
            let now = Instant::now();
            assert!(accounts.verify(invocation("joe", "joe!u@h"), now, &mut actions));
            assert!(accounts.verify(invocation("joe", "joe!imp@h"), now, &mut actions));
            assert_eq!(actions.len(), 1, "one WHOIS is enough for both");
            for (numeric, rest) in answers {
                accounts.on_whois(numeric, &joe, rest);
            }
            actions.clear();
            accounts.on_end(&joe, &mut actions);
            assert_eq!(proved(actions), [expected, Account::None]);
        }
    }

    #[test]
    fn a_nick_that_goes_away_proves_nothing() {
        let joe = Casemapping::Ascii.name("joe");
        let mut accounts = Accounts::default();
        let mut actions = Actions::new();
        accounts.verify(invocation("joe", "joe!u@h"), Instant::now(), &mut actions);
        accounts.on_whois(RPL_WHOISUSER, &joe, &["u", "h"]);
        accounts.on_whois(RPL_WHOISACCOUNT, &joe, &["acct"]);
        accounts.on_gone(&joe, &mut actions);
        assert_eq!(proved(actions), [Account::None]);
    }

    #[test]
    fn no_answer_in_time_proves_nothing_and_few_are_asked_at_once() {
        let mut accounts = Accounts::default();
        let mut actions = Actions::new();
        let now = Instant::now();
        let taken = (0..40).map(|i| {
            let nick = format!("n{i}");
            accounts.verify(invocation(&nick, "m"), now, &mut actions)
        });
        assert_eq!(taken.filter(|taken| *taken).count(), PENDING);
        assert_eq!(accounts.deadline(), Some(now + PATIENCE));
        actions.clear();
        accounts.tick(now + PATIENCE, &mut actions);
        assert_eq!(proved(actions), vec![Account::None; PENDING]);
        assert_eq!(accounts.deadline(), None);
    }
}
