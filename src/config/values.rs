//! Single values of `bot.conf`, and what can be wrong with one. Pure.

use super::error::{suggestion, write_suggestion};
use super::{Announce, Pacing, ReadFile, Sasl, Secret, Url, Who};
use crate::names::Filter;
use crate::notify_events::EventSet;
use crate::words::split_words;
use std::fmt;
use std::time::Duration;

/// Units of a duration, in milliseconds.
const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("", 1000),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

/// The longest duration, in milliseconds: ten years.
const LONGEST: u64 = 3650 * 86_400_000;

#[derive(Debug, PartialEq, Eq)]
pub enum ValueError {
    Empty,
    Blanks,
    Comma,
    NotBoolean(String),
    NotOneOf(String, &'static str),
    NotPort(String),
    NotDuration(String),
    NotNick(String),
    NotMask(String),
    NotWho(String),
    NotAlone,
    UnknownEvent {
        name: String,
        suggestion: Option<String>,
    },
    UnknownPlaceholder(String),
    ExcludesNothing,
    Quote(String),
    ChannelKey,
    AllowForce,
    EmptyFile,
    File {
        path: String,
        why: String,
    },
    UrlScheme(String),
    UrlPassword,
    UrlCharacter(String),
    UrlHost(String),
    NotHost(String),
}

impl fmt::Display for ValueError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            ValueError::Empty => f.write_str("needs a value"),
            ValueError::Blanks => f.write_str("no blanks here"),
            ValueError::Comma => f.write_str("a list is separated by blanks, without commas"),
            ValueError::NotBoolean(v) => write!(f, "`{v}` is neither yes nor no"),
            ValueError::NotOneOf(v, words) => write!(f, "`{v}` is none of {words}"),
            ValueError::NotPort(v) => write!(f, "`{v}` is not a port from 1 to 65535"),
            ValueError::NotDuration(v) => {
                write!(f, "`{v}` is not a duration like 90, 15s, 10m, 2h or 1d")
            }
            ValueError::NotNick(v) => write!(f, "`{v}` cannot be a nick"),
            ValueError::NotMask(v) => write!(f, "`{v}` is not mask:NICK!USER@HOST"),
            ValueError::NotWho(v) => write!(
                f,
                "`{v}` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST \
                 (a nick alone proves nothing)"
            ),
            ValueError::NotAlone => f.write_str("`everyone` and `nobody` stand alone"),
            ValueError::UnknownEvent { name, suggestion } => {
                write!(f, "unknown event `{name}`")?;
                write_suggestion(f, suggestion.as_deref())
            }
            ValueError::UnknownPlaceholder(name) => write!(
                f,
                "unknown placeholder {{{name}}}; there are {{account}} and {{password}}"
            ),
            ValueError::ExcludesNothing => f.write_str("`!` needs a name behind it"),
            ValueError::Quote(why) => f.write_str(why),
            ValueError::ChannelKey => f.write_str("a channel's key holds no blank and no comma"),
            ValueError::AllowForce => {
                f.write_str("`allow_force` gives it to everyone already; leave one of the two out")
            }
            ValueError::EmptyFile => f.write_str("the file is empty"),
            ValueError::File { path, why } => write!(f, "{path}: {why}"),
            ValueError::UrlScheme(v) => {
                write!(f, "`{v}` does not begin with http:// or https://")
            }
            ValueError::UrlPassword => f.write_str(
                "a password does not belong into an address; use `user` and `password_file`",
            ),
            ValueError::UrlCharacter(v) => write!(
                f,
                "`{v}` holds a blank, a ?, a # or a character beyond ASCII"
            ),
            ValueError::NotHost(v) => write!(f, "`{v}` is no host; a port goes into `port`"),
            ValueError::UrlHost(v) => write!(f, "`{v}` names no host"),
        }
    }
}

type Result<T> = std::result::Result<T, ValueError>;

/// A value as it stands in the file, not empty.
pub struct Value<'a> {
    pub text: &'a str,
    pub read: &'a ReadFile<'a>,
}

impl Value<'_> {
    /// The whole text.
    pub fn text(&self) -> String {
        self.text.to_owned()
    }

    pub fn secret(&self) -> Secret {
        Secret(self.text.to_owned())
    }

    /// The file that the value names.
    pub fn file(&self) -> Result<Vec<u8>> {
        (self.read)(self.text).map_err(|why| ValueError::File {
            path: self.text.to_owned(),
            why,
        })
    }

    /// The first line of the file that the value names.
    pub fn secret_of_file(&self) -> Result<Secret> {
        let bytes = self.file()?;
        let text = String::from_utf8_lossy(&bytes);
        let line = text.lines().next().unwrap_or("").trim_end();
        if line.is_empty() {
            return Err(ValueError::EmptyFile);
        }
        Ok(Secret(line.to_owned()))
    }

    pub fn one_word(&self) -> Result<String> {
        if self.text.contains(' ') {
            return Err(ValueError::Blanks);
        }
        Ok(self.text.to_owned())
    }

    /// A host's name or address; an IPv6 address may stand in brackets.
    pub fn host(&self) -> Result<String> {
        let host = self.one_word()?;
        let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
        let inner = inner.unwrap_or(&host);
        if inner.is_empty() || inner.contains(['[', ']']) {
            return Err(ValueError::NotHost(host));
        }
        Ok(inner.to_owned())
    }

    pub fn boolean(&self) -> Result<bool> {
        is_yes(self.text).ok_or_else(|| ValueError::NotBoolean(self.text.to_owned()))
    }

    pub fn port(&self) -> Result<u16> {
        port(self.text)
    }

    pub fn duration(&self) -> Result<Duration> {
        duration(self.text).ok_or_else(|| ValueError::NotDuration(self.text.to_owned()))
    }

    pub fn nick(&self) -> Result<String> {
        nick(self.text)
    }

    pub fn nicks(&self) -> Result<Vec<String>> {
        self.list()?.into_iter().map(nick).collect()
    }

    pub fn sasl(&self) -> Result<Sasl> {
        match self.text.to_ascii_lowercase().as_str() {
            "no" => Ok(Sasl::No),
            "plain" => Ok(Sasl::Plain),
            "external" => Ok(Sasl::External),
            _ => Err(ValueError::NotOneOf(self.text(), "no, plain, external")),
        }
    }

    pub fn pacing(&self) -> Result<Pacing> {
        match (self.text.to_ascii_lowercase().as_str(), is_yes(self.text)) {
            ("auto", _) | (_, Some(true)) => Ok(Pacing::Auto),
            ("safe", _) => Ok(Pacing::Safe),
            (_, Some(false)) => Ok(Pacing::No),
            _ => Err(ValueError::NotOneOf(self.text(), "auto, safe, no")),
        }
    }

    pub fn announce(&self) -> Result<Announce> {
        match self.text.to_ascii_lowercase().as_str() {
            "builds" => Ok(Announce::Builds),
            "changes" => Ok(Announce::Changes),
            _ => Err(ValueError::NotOneOf(self.text(), "builds, changes")),
        }
    }

    /// What a service is told to log us in.
    pub fn identify(&self) -> Result<String> {
        let mut rest = self.text;
        while let Some((_, after)) = rest.split_once('{') {
            let (name, behind) = after.split_once('}').unwrap_or((after, ""));
            if !matches!(name, "account" | "password") {
                return Err(ValueError::UnknownPlaceholder(name.to_owned()));
            }
            rest = behind;
        }
        Ok(self.text.to_owned())
    }

    pub fn channel_key(&self) -> Result<String> {
        if self.text.contains([' ', ',']) {
            return Err(ValueError::ChannelKey);
        }
        Ok(self.text.to_owned())
    }

    /// Names of events, or `none`.
    pub fn events(&self) -> Result<EventSet> {
        if self.text.eq_ignore_ascii_case("none") {
            return Ok(EventSet::EMPTY);
        }
        self.list()?;
        EventSet::parse(self.text).map_err(|name| ValueError::UnknownEvent {
            name: name.to_owned(),
            suggestion: suggestion(name, EventSet::all_names()),
        })
    }

    /// Globs or tags, with exclusions behind a `!`; a name with blanks is quoted.
    pub fn filter(&self) -> Result<Filter> {
        self.list()?;
        let words = split_words(self.text).map_err(ValueError::Quote)?;
        Filter::new(words).map_err(|_| ValueError::ExcludesNothing)
    }

    pub fn who(&self) -> Result<Vec<Who>> {
        let mut list = Vec::new();
        for word in self.list()? {
            list.push(who(word)?);
        }
        let for_all = list.contains(&Who::Everyone) || list.contains(&Who::Nobody);
        if for_all && list.len() > 1 {
            return Err(ValueError::NotAlone);
        }
        Ok(list)
    }

    pub fn url(&self) -> Result<Url> {
        url(self.text)
    }

    /// Words between blanks.
    fn list(&self) -> Result<Vec<&str>> {
        let words: Vec<&str> = self.text.split_whitespace().collect();
        if words.iter().any(|word| word.ends_with(',')) {
            return Err(ValueError::Comma);
        }
        Ok(words)
    }
}

/// A yes or a no, in any of the usual words.
pub fn is_yes(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Some(true),
        "no" | "false" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Seconds, or a whole number with one of `ms s m h d`; at least a millisecond, at most ten years.
pub fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
    let milliseconds = number.parse::<u64>().ok()?.checked_mul(*scale)?;
    let in_range = (1..=LONGEST).contains(&milliseconds);
    in_range.then(|| Duration::from_millis(milliseconds))
}

fn port(text: &str) -> Result<u16> {
    match text.parse() {
        Ok(0) | Err(_) => Err(ValueError::NotPort(text.to_owned())),
        Ok(port) => Ok(port),
    }
}

/// RFC 2812, section 2.3.1, as far as all servers agree.
fn nick(text: &str) -> Result<String> {
    let begins_wrong = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    if begins_wrong || text.contains([' ', ',', ':', '!', '@', '#', '&', '*', '?']) {
        return Err(ValueError::NotNick(text.to_owned()));
    }
    Ok(text.to_owned())
}

fn who(word: &str) -> Result<Who> {
    match word.split_once(':') {
        None if word == "everyone" => Ok(Who::Everyone),
        None if word == "nobody" => Ok(Who::Nobody),
        None if word == "op" => Ok(Who::Op),
        Some(("account", name)) if !name.is_empty() => Ok(Who::Account(name.to_owned())),
        Some(("mask", mask)) if mask.contains('!') && mask.contains('@') => {
            Ok(Who::Mask(mask.to_owned()))
        }
        Some(("mask", _)) => Err(ValueError::NotMask(word.to_owned())),
        _ => Err(ValueError::NotWho(word.to_owned())),
    }
}

fn url(text: &str) -> Result<Url> {
    let (https, usual_port, rest) = match text.split_once("://") {
        Some(("http", rest)) => (false, 80, rest),
        Some(("https", rest)) => (true, 443, rest),
        _ => return Err(ValueError::UrlScheme(text.to_owned())),
    };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.contains('@') {
        return Err(ValueError::UrlPassword);
    }
    if text.contains(['?', '#', ' ']) || !text.is_ascii() {
        return Err(ValueError::UrlCharacter(text.to_owned()));
    }
    let bracketed = authority.strip_prefix('[').and_then(|a| a.split_once(']'));
    let (host, port_text) = match bracketed {
        Some((host, "")) => (host, None),
        // Anything but a colon behind the bracket is no port, and is shown as the error.
        Some((host, rest)) => (host, Some(rest.strip_prefix(':').unwrap_or(rest))),
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if bracketed.is_some_and(|(_, rest)| !rest.is_empty() && !rest.starts_with(':')) {
        return Err(ValueError::NotPort(authority.to_owned()));
    }
    let port = port_text.map_or(Ok(usual_port), port)?;
    if host.is_empty() {
        return Err(ValueError::UrlHost(text.to_owned()));
    }
    Ok(Url {
        https,
        host: host.to_owned(),
        port,
        path: path.trim_end_matches('/').to_owned(),
    })
}
