//! Who may use which command. Pure.

use crate::config::{Authorization, Who};
use crate::irc::{Account, Invocation};
use crate::names::{Casemapping, glob};
use crate::sanitize::sanitize;

/// In private these concern the asker alone.
const OWN_BUSINESS: [&str; 4] = ["notify", "mute", "unmute", "watch"];

/// Whether a command may be used, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    No,
    /// It hangs on the asker's account, which has to be found out.
    NeedsAccount,
    Yes,
}

/// Decides who may use a command: the best verdict of its list counts.
pub fn authorize(
    rules: &Authorization,
    command: &str,
    invocation: &Invocation,
    casemapping: Casemapping,
) -> Verdict {
    let is_private = !invocation.place.is_channel();
    let is_own_business = is_private && OWN_BUSINESS.contains(&command);
    let verdict = |who: &Who| {
        let fits = match (who, &invocation.account) {
            (Who::Everyone, _) => true,
            (Who::Nobody, _) => false,
            (Who::Op, _) => invocation.is_op || is_own_business,
            (Who::Mask(mask), _) => {
                let mask = casemapping.fold(mask);
                glob(&mask, &casemapping.fold(&invocation.mask))
            }
            (Who::Account(name), Account::LoggedIn(account)) => {
                casemapping.name(name) == casemapping.name(account)
            }
            (Who::Account(_), Account::None) => false,
            (Who::Account(_), Account::Unknown) => return Verdict::NeedsAccount,
        };
        if fits { Verdict::Yes } else { Verdict::No }
    };
    let list = rules.who_may(command);
    list.iter().map(verdict).max().unwrap_or(Verdict::No)
}

/// What someone hears who may not: that, and no more.
pub fn refusal(invocation: &Invocation, command: &str) -> String {
    let nick = sanitize(invocation.nick.as_str());
    format!("sorry, {nick}, you may not use `{command}`")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{SHORT, parse};

    fn rules(lines: &str) -> Authorization {
        let text = format!("{SHORT}[authorization]\n{lines}");
        parse(&text).unwrap().authorization
    }

    fn invocation(place: &str, is_op: bool, account: Account) -> Invocation {
        Invocation {
            place: Casemapping::Rfc1459.name(place),
            mask: "joe[1]!u@host.example.org".into(),
            is_op,
            account,
            ..Invocation::default()
        }
    }

    /// WHO × asker × what is known of the account.
    #[test]
    fn who_may_do_what() {
        use Verdict::{NeedsAccount, No, Yes};
        let accounts = [
            Account::Unknown,
            Account::None,
            Account::LoggedIn("JOE".into()),
            Account::LoggedIn("eve".into()),
        ];
        let by_account = [NeedsAccount, No, Yes, No];
        for (who, without_op, with_op) in [
            ("everyone", [Yes; 4], [Yes; 4]),
            ("nobody", [No; 4], [No; 4]),
            ("op", [No; 4], [Yes; 4]),
            ("account:joe", by_account, by_account),
            ("account:joe op", by_account, [Yes; 4]),
            ("mask:joe{1}!*@*.EXAMPLE.org", [Yes; 4], [Yes; 4]),
            ("mask:joe!*@*", [No; 4], [No; 4]),
        ] {
            let rules = rules(&format!("force = {who}\n"));
            for (i, account) in accounts.iter().enumerate() {
                for (is_op, expected) in [(false, without_op[i]), (true, with_op[i])] {
                    let asker = invocation("#c", is_op, account.clone());
                    let verdict = authorize(&rules, "force", &asker, Casemapping::Rfc1459);
                    assert_eq!(verdict, expected, "{who} {account:?} {is_op}");
                    let status = authorize(&rules, "status", &asker, Casemapping::Rfc1459);
                    assert_eq!(status, Yes);
                }
            }
        }
    }

    #[test]
    fn another_nick_that_folds_alike_on_other_networks_is_somebody_else() {
        let rules = rules("force = mask:joe{1}!*@*\n");
        let asker = invocation("#c", false, Account::None);
        let verdict = authorize(&rules, "force", &asker, Casemapping::Ascii);
        assert_eq!(verdict, Verdict::No);
    }

    #[test]
    fn in_private_people_decide_for_themselves() {
        let rules = rules("notify = op\nmute = nobody\nwatch = op\nforce = op\n");
        let verdict = |place: &str, command: &str| {
            let asker = invocation(place, false, Account::None);
            authorize(&rules, command, &asker, Casemapping::Rfc1459)
        };
        assert_eq!(verdict("joe", "notify"), Verdict::Yes);
        assert_eq!(verdict("joe", "watch"), Verdict::Yes);
        assert_eq!(verdict("#c", "notify"), Verdict::No);
        assert_eq!(verdict("joe", "mute"), Verdict::No, "nobody is nobody");
        assert_eq!(verdict("joe", "unmute"), Verdict::No, "like mute");
        assert_eq!(verdict("joe", "force"), Verdict::No);
    }
}
