//! The conversation with NickServ, or what a network has in its place: logging in, and getting our
//! nick back. Pure.

use super::wire::Line;
use super::{Action, Actions};
use crate::config::{Irc, Secret};
use crate::names::{Casemapping, Name};
use crate::sanitize::{sanitize, strip_formatting};

/// Services differ in their word for "give me my nick"; one that is wrong is answered as such.
const RECOVERY_WORDS: [&str; 3] = ["REGAIN", "RECOVER", "GHOST"];

/// What services say when we are in, in any of their words.
const SUCCESS: [&str; 6] = [
    "now recognized",
    "now identified",
    "identified as",
    "already identified",
    "now logged in",
    "password accepted",
];
/// … when they do not take our password.
const REFUSAL: [&str; 11] = [
    "incorrect",
    "invalid password",
    "wrong password",
    "invalid username or password",
    "wrong credentials",
    "has been frozen",
    "has been suspended",
    "too many failed",
    "authentication failed",
    "invalid account credentials",
    "access denied",
];
/// … when there is no such account. They may say the same of the nick that we have for now.
const NO_ACCOUNT: [&str; 3] = ["not registered", "isn't registered", "not a registered"];
/// … when they do not know the word that we have used.
const UNKNOWN_WORD: [&str; 2] = ["unknown command", "invalid command"];
/// … when they want us to identify.
const PROMPT: [&str; 2] = ["nickname is registered", "registered nickname"];
/// … when our nick is free.
const RECOVERED: [&str; 5] = ["ghost", "killed", "recovered", "regained", "released"];

/// ```text
/// NotAsked ──IDENTIFY──► Asked ──success──► Identified
///                          └────refusal───► Refused      (no more passwords on this connection)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    NotAsked,
    Asked,
    Identified,
    Refused,
}

/// What a NOTICE of services means for the rest.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    Nothing,
    /// We are logged in.
    Identified,
    /// They do not know us; we go on without.
    Refused,
    /// Our nick is free.
    NickIsFree,
}

#[derive(Debug)]
pub struct Services {
    /// The nick of the service, with its server if the configuration names one.
    address: String,
    account: String,
    password: Option<Secret>,
    identify: Option<String>,
    state: State,
    /// The words to try next.
    recovery_words: &'static [&'static str],
    /// What the service has said last, for the log.
    last_notice: String,
}

impl Services {
    pub fn new(config: &Irc) -> Services {
        Services {
            address: config.nickserv.clone(),
            account: config.account.clone(),
            password: config.password.clone(),
            identify: config.identify.clone(),
            state: State::NotAsked,
            recovery_words: &RECOVERY_WORDS,
            last_notice: String::new(),
        }
    }

    pub fn on_connected(&mut self) {
        self.state = State::NotAsked;
        self.recovery_words = &RECOVERY_WORDS;
        self.last_notice.clear();
    }

    /// SASL has logged us in already.
    pub fn set_identified(&mut self) {
        self.state = State::Identified;
    }

    /// Whether a password must be told before joining.
    pub fn has_password(&self) -> bool {
        self.password.is_some()
    }

    /// Tells services who we are, if there is a password.
    pub fn identify(&mut self, nick: &Name, actions: &mut Actions) {
        let Some(password) = &self.password else {
            return;
        };
        // With the password alone, services take the account of the nick that we have.
        let is_own_account =
            nick.refold(Casemapping::Ascii) == Casemapping::Ascii.name(&self.account);
        let usual = if is_own_account {
            "IDENTIFY {password}"
        } else {
            "IDENTIFY {account} {password}"
        };
        let template = self.identify.as_deref().unwrap_or(usual);
        let words = fill(template, &self.account, &password.0);
        actions.push(Action::Send(Line::secret(
            "PRIVMSG",
            &[&self.address],
            Some(&words),
        )));
        self.state = State::Asked;
    }

    /// Asks for our nick, in the next of the words that services have for it. Who is logged in
    /// needs no password for that.
    pub fn recover_nick(&mut self, nick: &str, actions: &mut Actions) {
        let [word, rest @ ..] = self.recovery_words else {
            return;
        };
        let line = match &self.password {
            Some(password) => {
                let words = format!("{word} {nick} {}", password.0);
                Line::secret("PRIVMSG", &[&self.address], Some(&words))
            }
            None if self.state == State::Identified => {
                Line::new("PRIVMSG", &[&self.address], Some(&format!("{word} {nick}")))
            }
            None => return,
        };
        self.recovery_words = rest;
        actions.push(Action::Send(line));
    }

    /// Whether this nick is the service's.
    pub fn is_from_service(&self, nick: &Name) -> bool {
        let name = self.address.split('@').next().unwrap_or("");
        nick.refold(Casemapping::Ascii) == Casemapping::Ascii.name(name)
    }

    /// Takes in a NOTICE of the service.
    pub fn on_notice(
        &mut self,
        text: &str,
        nick: &Name,
        wanted: &str,
        is_online: bool,
        actions: &mut Actions,
    ) -> Outcome {
        let text = strip_formatting(text).to_ascii_lowercase();
        self.last_notice = sanitize(&self.without_password(&text));
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        if says(&UNKNOWN_WORD) {
            if nick.as_str() != wanted {
                self.recover_nick(wanted, actions);
            }
            return Outcome::Nothing;
        }
        let names = |name: &str| text.contains(&name.to_ascii_lowercase());
        let is_of_nick = names(nick.as_str()) && !names(&self.account);
        let lacks_account = says(&NO_ACCOUNT) && !is_of_nick;
        if says(&SUCCESS) && !says(&REFUSAL) && !text.contains("not identified") {
            self.state = State::Identified;
            return Outcome::Identified;
        }
        if says(&REFUSAL) || lacks_account {
            log!(Warning, "IRC: {}: {}", self.address, self.last_notice);
            self.state = State::Refused;
            return Outcome::Refused;
        }
        if says(&PROMPT) && is_online && self.state != State::Refused {
            // Services were restarted: identify again.
            self.identify(nick, actions);
            return Outcome::Nothing;
        }
        if says(&RECOVERED) {
            return Outcome::NickIsFree;
        }
        Outcome::Nothing
    }

    /// They have said neither yes nor no in time.
    pub fn on_timeout(&self) {
        if self.state != State::Asked {
            return;
        }
        let address = &self.address;
        if self.last_notice.is_empty() {
            log!(Warning, "IRC: {address} does not answer; joining without");
        } else {
            let said = &self.last_notice;
            log!(
                Warning,
                "IRC: {address} says neither yes nor no; its last words: {said}"
            );
        }
    }

    /// A text that may repeat what we have told services, as the log may show it.
    pub fn without_password(&self, text: &str) -> String {
        match &self.password {
            Some(password) if !password.0.is_empty() => {
                let hidden = text.replace(&password.0, "***");
                hidden.replace(&password.0.to_ascii_lowercase(), "***")
            }
            _ => text.to_owned(),
        }
    }
}

/// Fills in the placeholders of `identify`. A value that looks like one is not filled in again.
fn fill(template: &str, account: &str, password: &str) -> String {
    let mut filled = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('{') {
        filled.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("{account}") {
            filled.push_str(account);
            rest = after;
        } else if let Some(after) = rest.strip_prefix("{password}") {
            filled.push_str(password);
            rest = after;
        } else {
            filled.push('{');
            rest = &rest[1..];
        }
    }
    filled + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{SHORT, parse};

    fn services(more: &str) -> Services {
        let config = parse(&format!("{SHORT}{more}")).unwrap();
        Services::new(&config.irc.unwrap())
    }

    fn said(actions: Actions) -> Vec<String> {
        let lines = actions.into_iter().map(|action| match action {
            Action::Send(line) => {
                let bytes = line.bytes();
                String::from_utf8(bytes).unwrap().trim_end().to_owned()
            }
            other => panic!("{other:?}"),
        });
        lines.collect()
    }

    fn name(text: &str) -> Name {
        Casemapping::Ascii.name(text)
    }

    #[test]
    fn the_words_are_those_of_the_network() {
        for (more, nick, words) in [
            ("", "bot", "PRIVMSG NickServ :IDENTIFY p{w"),
            ("", "bot_", "PRIVMSG NickServ :IDENTIFY bot p{w"),
            (
                "account = acc\n",
                "bot",
                "PRIVMSG NickServ :IDENTIFY acc p{w",
            ),
            (
                "nickserv = Q@CServe\nidentify = AUTH {account} {password}\n",
                "bot",
                "PRIVMSG Q@CServe :AUTH bot p{w",
            ),
            (
                "identify = IDENTIFY {password} {account}\n",
                "bot",
                "PRIVMSG NickServ :IDENTIFY p{w bot",
            ),
        ] {
            let mut actions = Actions::new();
            let mut services = services(&format!("password = p{{w\n{more}"));
            services.identify(&name(nick), &mut actions);
            assert_eq!(said(actions), [words]);
        }
        assert_eq!(fill("{x} {account", "a", "p"), "{x} {account");
        assert_eq!(fill("{account}", "{password}", "p"), "{password}");
    }

    #[test]
    fn notices_are_understood_in_many_words() {
        for (text, expected) in [
            (
                "You are now identified for \u{2}bot\u{2}.",
                Outcome::Identified,
            ),
            (
                "Password accepted - you are now recognized.",
                Outcome::Identified,
            ),
            (
                "Authentication failed: Invalid account credentials",
                Outcome::Refused,
            ),
            ("Password incorrect.", Outcome::Refused),
            ("Your nick isn't registered.", Outcome::Refused),
            (
                "You are not identified as bot. Wrong password.",
                Outcome::Refused,
            ),
            ("You are not identified.", Outcome::Nothing),
            ("\u{2}bot\u{2} has been ghosted.", Outcome::NickIsFree),
            ("Welcome to the network!", Outcome::Nothing),
        ] {
            let mut services = services("password = pw\n");
            let mut actions = Actions::new();
            services.identify(&name("bot"), &mut actions);
            let outcome = services.on_notice(text, &name("bot"), "bot", false, &mut actions);
            assert_eq!(outcome, expected, "{text}");
        }
    }

    /// They may say of the nick that we have for now what concerns no account.
    #[test]
    fn a_nick_that_is_not_registered_is_no_refusal_of_an_account() {
        for (text, expected) in [
            ("The nickname bot is not registered.", Outcome::Nothing),
            ("acc is not a registered nickname.", Outcome::Refused),
        ] {
            let mut services = services("account = acc\npassword = pw\n");
            let mut actions = Actions::new();
            services.identify(&name("bot"), &mut actions);
            let outcome = services.on_notice(text, &name("bot"), "bot", false, &mut actions);
            assert_eq!(outcome, expected, "{text}");
        }
    }

    #[test]
    fn a_prompt_is_answered_until_the_password_is_refused() {
        let mut services = services("password = pw\n");
        let mut actions = Actions::new();
        let prompt = "This nickname is registered and protected.";
        services.on_notice(prompt, &name("bot"), "bot", true, &mut actions);
        assert_eq!(actions.len(), 1);
        services.on_notice(
            "Password incorrect.",
            &name("bot"),
            "bot",
            true,
            &mut actions,
        );
        services.on_notice(prompt, &name("bot"), "bot", true, &mut actions);
        assert_eq!(actions.len(), 1);
    }

    #[test]
    fn the_nick_is_asked_for_in_each_of_the_words_once() {
        let mut services = services("password = pw\n");
        let mut actions = Actions::new();
        services.recover_nick("bot", &mut actions);
        for _ in 0..5 {
            let unknown = "Unknown command \u{2}REGAIN\u{2}.";
            services.on_notice(unknown, &name("bot_"), "bot", true, &mut actions);
        }
        let words: Vec<String> = said(actions);
        let expected =
            ["REGAIN", "RECOVER", "GHOST"].map(|word| format!("PRIVMSG NickServ :{word} bot pw"));
        assert_eq!(words, expected);
    }

    #[test]
    fn who_is_logged_in_needs_no_password_for_the_nick() {
        let mut services = services("");
        let mut actions = Actions::new();
        services.recover_nick("bot", &mut actions);
        assert!(actions.is_empty(), "nobody would believe us");
        services.set_identified();
        services.recover_nick("bot", &mut actions);
        assert_eq!(said(actions), ["PRIVMSG NickServ :REGAIN bot"]);
    }

    #[test]
    fn the_log_shows_no_password() {
        let services = services("password = pW\n");
        let shown = services.without_password("Nickname pW, NOT PW or xpw");
        assert_eq!(shown, "Nickname ***, NOT PW or x***");
    }
}
