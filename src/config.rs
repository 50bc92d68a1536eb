//! `bot.conf`: text to a validated [`Config`], or every error at once, each with `file:line`.
//!
//! Pure: files that `*_file` keys name are read through a function that the caller gives. The keys
//! and their meaning are in `bot.conf.example`; it is the list behind "did you mean", too.

use crate::irc::wire::{Casemapping, is_channel};
use crate::status::{self, EVENT_NAMES, Events, Settings};
use crate::text::nearest;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

const MANUAL: &str = include_str!("../bot.conf.example");
/// In the order in which they are read: channels begin with what [irc] says.
const SECTIONS: [&str; 5] = ["buildbot", "irc", "channel", "authorization", "bot"];
/// Units of a duration, in milliseconds.
const UNITS: [(&str, u64); 6] = [
    ("ms", 1),
    ("", 1000),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];
const TEN_YEARS: u64 = 3650 * 86_400_000;

/// A password: never shown, not even by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("***")
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub buildbot: Buildbot,
    /// Absent: only `-x` works.
    pub irc: Option<Irc>,
    /// Who may use a command; one that is not here is everyone's.
    pub authorization: BTreeMap<String, Vec<Who>>,
    pub state_file: Option<String>,
    pub catch_up: Duration,
    /// Whether a secret stands in the file itself.
    pub has_secret: bool,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buildbot {
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub poll_interval: Duration,
    pub event_stream: bool,
    pub timeout: Duration,
    pub tls: Tls,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Url {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// Without a slash at the end.
    pub path: String,
}

/// PEM texts for one peer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tls {
    pub ca: Option<Vec<u8>>,
    pub cert: Option<Vec<u8>>,
    pub key: Option<Secret>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sasl {
    #[default]
    No,
    Plain,
    External,
}

/// `[irc]` and the `[channel]` sections.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Irc {
    pub host: String,
    pub port: u16,
    pub use_ssl: bool,
    pub tls: Tls,
    pub server_password: Option<Secret>,
    pub nick: String,
    pub alt_nicks: Vec<String>,
    pub username: String,
    pub realname: String,
    pub password: Option<Secret>,
    pub nickserv: String,
    pub sasl: Sasl,
    pub account: String,
    pub ping_timeout: Duration,
    pub pacing: bool,
    pub defaults: Settings,
    pub pm_to_nicks: Vec<String>,
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channel {
    pub name: String,
    pub key: Option<Secret>,
    pub settings: Settings,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Everyone,
    Nobody,
    Op,
    Account(String),
    /// A `nick!user@host` glob.
    Mask(String),
}

pub type ReadFile<'a> = dyn Fn(&str) -> Result<Vec<u8>, String> + 'a;

/// `[kind label]` in `line`; each of the keys with its value and line.
struct Section<'a> {
    kind: &'a str,
    label: &'a str,
    line: usize,
    keys: Vec<(&'a str, &'a str, usize)>,
}

impl Config {
    /// Parses a configuration; `read` reads a named file. The errors are all those of the text, as
    /// `name:line: sentence`, in the order of the lines.
    pub fn parse(name: &str, text: &str, read: &ReadFile) -> Result<Config, Vec<String>> {
        let (mut sections, mut errors) = (Vec::new(), Vec::new());
        for (line, text) in (1..).zip(text.trim_start_matches('\u{feff}').lines()) {
            errors.extend(
                split(text.trim(), line, &mut sections)
                    .err()
                    .map(|why| (line, why)),
            );
        }
        let seconds = Duration::from_secs;
        let (poll_interval, timeout) = (seconds(15), seconds(30));
        let mut config = Config {
            buildbot: Buildbot {
                poll_interval,
                event_stream: true,
                timeout,
                ..Buildbot::default()
            },
            irc: None,
            authorization: ["force", "stop", "join", "leave"]
                .map(|c| (c.to_owned(), vec![Who::Nobody]))
                .into(),
            state_file: None,
            catch_up: seconds(3600),
            has_secret: sections
                .iter()
                .flat_map(|s| &s.keys)
                .any(|(key, ..)| key.ends_with("password")),
        };
        let defaults = Settings {
            blame: true,
            ..Settings::default()
        };
        let mut irc = Irc {
            nickserv: "NickServ".into(),
            ping_timeout: seconds(150),
            pacing: true,
            defaults,
            ..Irc::default()
        };
        for section in SECTIONS
            .iter()
            .flat_map(|kind| sections.iter().filter(move |s| s.kind == *kind))
        {
            if section.kind == "channel" {
                let (name, settings) = (section.label.to_owned(), irc.defaults.clone());
                irc.channels.push(Channel {
                    name,
                    key: None,
                    settings,
                });
            }
            for &(key, value, line) in &section.keys {
                let set = match value {
                    "" => Err("needs a value".to_owned()),
                    _ => config.set(&mut irc, section.kind, key, value, read),
                };
                let hint = if value.contains(" #") {
                    " (a comment stands on its own line)"
                } else {
                    ""
                };
                errors.extend(set.err().map(|why| (line, format!("`{key}`: {why}{hint}"))));
            }
        }
        let has = |kind| sections.iter().any(|s| s.kind == kind);
        // One that was there before lacks nothing.
        let once = sections
            .iter()
            .filter(|s| errors.iter().all(|(line, _)| *line != s.line));
        let fault = |s: &Section| {
            s.faults(&irc, has("irc"))
                .into_iter()
                .map(|why| (s.line, why))
                .collect::<Vec<_>>()
        };
        let faults: Vec<_> = once.flat_map(fault).collect();
        errors.extend(faults);
        if !has("buildbot") {
            errors.push((0, "a section [buildbot] with `url` is needed".into()));
        }
        irc.complete(&config.buildbot.url);
        config.irc = has("irc").then_some(irc);
        errors.sort();
        let place = |line| {
            if line == 0 {
                name.to_owned()
            } else {
                format!("{name}:{line}")
            }
        };
        let errors: Vec<String> = errors
            .into_iter()
            .map(|(line, why)| format!("{}: {why}", place(line)))
            .collect();
        if errors.is_empty() {
            Ok(config)
        } else {
            Err(errors)
        }
    }

    /// Takes in one key of a section.
    fn set(
        &mut self,
        irc: &mut Irc,
        kind: &str,
        key: &str,
        v: &str,
        read: &ReadFile,
    ) -> Result<(), String> {
        let read = |path: &str| read(path).map_err(|e| format!("{path}: {e}"));
        let file;
        let v = match key.ends_with("password_file") {
            true => {
                file = String::from_utf8_lossy(&read(v)?).into_owned();
                file.lines()
                    .next()
                    .map(str::trim_end)
                    .filter(|line| !line.is_empty())
                    .ok_or("the file is empty")?
            }
            false => v,
        };
        let (owned, secret) = (|| v.to_owned(), || Some(Secret(v.to_owned())));
        let master = &mut self.buildbot;
        let tls = if kind == "irc" {
            &mut irc.tls
        } else {
            &mut master.tls
        };
        let (channel_key, look) = match irc.channels.last_mut() {
            Some(channel) => (Some(&mut channel.key), &mut channel.settings),
            None => (None, &mut irc.defaults),
        };
        match (kind, stem(key)) {
            ("buildbot", "url") => master.url = url(v)?,
            ("buildbot", "user") => master.user = Some(owned()),
            ("buildbot", "password") => master.password = secret(),
            ("buildbot", "poll_interval") => master.poll_interval = duration(v)?,
            ("buildbot", "event_stream") => master.event_stream = boolean(v)?,
            ("buildbot", "timeout") => master.timeout = duration(v)?,
            ("buildbot" | "irc", "tls_ca_file") => tls.ca = Some(read(v)?),
            ("buildbot" | "irc", "tls_cert_file") => tls.cert = Some(read(v)?),
            ("buildbot" | "irc", "tls_key_file") => {
                tls.key = Some(Secret(String::from_utf8_lossy(&read(v)?).into_owned()));
            }
            ("irc", "host") => irc.host = one_word(v)?,
            ("irc", "port") => irc.port = number(v)?,
            ("irc", "use_ssl") => irc.use_ssl = boolean(v)?,
            ("irc", "server_password") => irc.server_password = secret(),
            ("irc", "nick") => irc.nick = nickname(v)?,
            ("irc", "alt_nicks") => irc.alt_nicks = list(v, nickname)?,
            ("irc", "username") => irc.username = one_word(v)?,
            ("irc", "realname") => irc.realname = owned(),
            ("irc", "password") => irc.password = secret(),
            ("irc", "nickserv") => irc.nickserv = one_word(v)?,
            ("irc", "sasl") => irc.sasl = sasl(v)?,
            ("irc", "account") => irc.account = one_word(v)?,
            ("irc", "ping_timeout") => irc.ping_timeout = duration(v)?,
            ("irc", "pacing") => irc.pacing = boolean(v)?,
            ("irc", "pm_to_nicks") => irc.pm_to_nicks = list(v, nickname)?,
            ("irc", "allow_force") => {
                let who = if boolean(v)? {
                    Who::Everyone
                } else {
                    Who::Nobody
                };
                self.authorization
                    .extend(["force", "stop"].map(|c| (c.to_owned(), vec![who.clone()])));
            }
            ("channel", "password") => {
                refuse(
                    v.contains([' ', ',']),
                    "a channel's key holds no blank and no comma",
                )?;
                channel_key.into_iter().for_each(|key| *key = secret());
            }
            ("irc" | "channel", "notify_events") => look.events = events(v)?,
            ("irc" | "channel", "tags") => look.tags = list(v, |tag| Ok(tag.to_owned()))?,
            ("irc" | "channel", "builders") => {
                look.builders = list(v, |_| Ok(())).and_then(|_| words(v))?
            }
            ("irc" | "channel", "notice_on_channel") => look.notice = boolean(v)?,
            ("irc" | "channel", "use_colors") => look.colors = boolean(v)?,
            ("irc" | "channel", "use_revisions") => look.revisions = boolean(v)?,
            ("irc" | "channel", "show_blame_list") => look.blame = boolean(v)?,
            ("authorization", command) if keys(kind).any(|k| k == command) => {
                let open = self
                    .authorization
                    .get(command)
                    .is_some_and(|list| list[..] == [Who::Everyone]);
                refuse(
                    open,
                    "`allow_force` gives it to everyone already; leave one of the two out",
                )?;
                self.authorization.insert(command.to_owned(), who_list(v)?);
            }
            ("bot", "state_file") => self.state_file = Some(owned()),
            ("bot", "catch_up") => self.catch_up = duration(v)?,
            // A section that is unknown has an error of its own.
            _ => return Err(format!("no such key in [{kind}]{}", hint(key, keys(kind)))),
        }
        Ok(())
    }
}

impl Section<'_> {
    fn has(&self, key: &str) -> bool {
        self.keys.iter().any(|k| stem(k.0) == key)
    }

    /// What is wrong with the section as a whole.
    fn faults(&self, irc: &Irc, has_irc: bool) -> Vec<String> {
        let mut faults = Vec::new();
        let mut check = |kind: &str, well: bool, why: &str| {
            if self.kind == kind && !well {
                faults.push(why.to_owned());
            }
        };
        let pair = self.has("tls_cert_file") == self.has("tls_key_file");
        check(
            self.kind,
            pair,
            "`tls_cert_file` and `tls_key_file` need each other",
        );
        check(
            self.kind,
            self.kind == "channel" || self.label.is_empty(),
            "only [channel #name] takes a name",
        );
        check("buildbot", self.has("url"), "[buildbot] needs `url`");
        check(
            "buildbot",
            self.has("user") == self.has("password"),
            "`user` and `password` need each other",
        );
        check("irc", self.has("host"), "[irc] needs `host`");
        check("irc", self.has("nick"), "[irc] needs `nick`");
        let plain = irc.sasl != Sasl::Plain || self.has("password");
        check(
            "irc",
            plain,
            "`sasl = plain` needs `password` or `password_file`",
        );
        let external = irc.sasl != Sasl::External || irc.use_ssl && irc.tls.cert.is_some();
        check(
            "irc",
            external,
            "`sasl = external` needs `use_ssl = yes`, `tls_cert_file` and `tls_key_file`",
        );
        let named = is_channel(self.label) && !self.label.contains([' ', ',']);
        check(
            "channel",
            named,
            "a channel's section is written [channel #name]",
        );
        check("channel", has_irc, "[channel] needs a section [irc]");
        let unknown = format!(
            "unknown section [{}]{}",
            self.kind,
            hint(self.kind, SECTIONS)
        );
        check(self.kind, SECTIONS.contains(&self.kind), &unknown);
        faults
    }
}

impl Irc {
    /// The defaults that hang on other keys.
    fn complete(&mut self, master: &Url) {
        let nick = &self.nick;
        // Servers allow little in a user name: the letters and digits of the nick.
        let username: String = nick.chars().filter(char::is_ascii_alphanumeric).collect();
        let port = if self.use_ssl { 6697 } else { 6667 };
        self.port = if self.port == 0 { port } else { self.port };
        for (value, default) in [
            (
                &mut self.realname,
                format!("buildbot-irc {} for {master}", env!("CARGO_PKG_VERSION")),
            ),
            (&mut self.account, nick.clone()),
            (
                &mut self.username,
                if username.is_empty() {
                    "buildbot".into()
                } else {
                    username
                },
            ),
        ] {
            if value.is_empty() {
                *value = default;
            }
        }
    }
}

/// Sorts one line into the sections.
fn split<'a>(text: &'a str, line: usize, sections: &mut Vec<Section<'a>>) -> Result<(), String> {
    if text.is_empty() || text.starts_with(['#', ';']) {
        return Ok(());
    }
    refuse(
        text.contains(char::is_control),
        "a control character has no place here",
    )?;
    if let Some(header) = text.strip_prefix('[') {
        let header = header
            .strip_suffix(']')
            .ok_or("a section header ends with ]")?
            .trim();
        let (kind, label) = header
            .split_once(' ')
            .map_or((header, ""), |(kind, label)| (kind, label.trim()));
        let same = |s: &&Section| s.kind == kind && Casemapping::Rfc1459.same(s.label, label);
        let first = sections.iter().find(same).map(|s| s.line);
        sections.push(Section {
            kind,
            label,
            line,
            keys: Vec::new(),
        });
        return first.map_or(Ok(()), |first| {
            Err(format!("[{header}] was there before, in line {first}"))
        });
    }
    let (key, value) = text
        .split_once('=')
        .ok_or("expected `key = value`, a [section] or a # comment")?;
    let (key, value) = (key.trim(), value.trim());
    let none = || format!("`{key}` stands before the first [section]");
    let keys = &mut sections.last_mut().ok_or_else(none)?.keys;
    if let Some((same, _, first)) = keys.iter().find(|k| stem(k.0) == stem(key)) {
        return Err(format!("`{same}` was given before, in line {first}"));
    }
    keys.push((key, value, line));
    Ok(())
}

/// What a key sets: passwords may come from a file, and one key has two names.
fn stem(key: &str) -> &str {
    match key.strip_suffix("_file") {
        Some(stem) if stem.ends_with("password") => stem,
        _ if key == "categories" => "tags",
        _ => key,
    }
}

/// The keys of a section, as the manual lists them.
pub fn keys(section: &str) -> impl Iterator<Item = &'static str> {
    let lines = MANUAL
        .lines()
        .skip_while(move |l| l.strip_prefix('[').is_none_or(|l| !l.starts_with(section)));
    let lines = lines
        .skip(1)
        .take_while(|l| !l.starts_with('['))
        .map(|l| l.strip_prefix('#').unwrap_or(l));
    lines
        .filter(|l| !l.starts_with(' '))
        .filter_map(|l| Some(l.split_once(" = ")?.0))
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        let (scheme, usual) = if self.https {
            ("https", 443)
        } else {
            ("http", 80)
        };
        let port = if self.port == usual {
            String::new()
        } else {
            format!(":{}", self.port)
        };
        write!(f, "{scheme}://{host}{port}{}/", self.path)
    }
}

fn refuse(bad: bool, why: impl Into<String>) -> Result<(), String> {
    if bad { Err(why.into()) } else { Ok(()) }
}

fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known.into_iter()).map_or(String::new(), |n| format!("; did you mean `{n}`?"))
}

fn one_word(v: &str) -> Result<String, String> {
    refuse(v.contains(' '), "no blanks here")?;
    Ok(v.to_owned())
}

fn list<T>(v: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    refuse(
        v.split_whitespace().any(|word| word.ends_with(',')),
        "a list is separated by blanks, without commas",
    )?;
    v.split_whitespace().map(one).collect()
}

/// A yes or a no, in any of the usual words.
pub fn boolean(v: &str) -> Result<bool, String> {
    match v.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err(format!("`{v}` is neither yes nor no")),
    }
}

fn sasl(v: &str) -> Result<Sasl, String> {
    match v.to_ascii_lowercase().as_str() {
        "no" => Ok(Sasl::No),
        "plain" => Ok(Sasl::Plain),
        "external" => Ok(Sasl::External),
        _ => Err(format!("`{v}` is none of no, plain, external")),
    }
}

fn number(v: &str) -> Result<u16, String> {
    v.parse()
        .ok()
        .filter(|&n| n > 0)
        .ok_or_else(|| format!("`{v}` is not a port from 1 to 65535"))
}

/// Seconds, or a whole number with one of `ms s m h d`; at least a millisecond, at most 10 years.
pub fn duration(v: &str) -> Result<Duration, String> {
    let (number, unit) = v.split_at(v.find(|c: char| !c.is_ascii_digit()).unwrap_or(v.len()));
    let scale = UNITS
        .iter()
        .find(|(name, _)| *name == unit)
        .map(|(_, ms)| *ms);
    let ms = scale.and_then(|scale| number.parse::<u64>().ok()?.checked_mul(scale));
    let ms = ms.filter(|ms| (1..=TEN_YEARS).contains(ms));
    ms.map(Duration::from_millis)
        .ok_or_else(|| format!("`{v}` is not a duration like 90, 15s, 10m, 2h or 1d"))
}

fn nickname(v: &str) -> Result<String, String> {
    let bad = v.contains(|c| " ,:!@#&*?".contains(c))
        || v.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    refuse(bad, format!("`{v}` cannot be a nick"))?;
    Ok(v.to_owned())
}

fn events(v: &str) -> Result<Events, String> {
    let unknown = |name: &str| {
        format!(
            "unknown event `{name}`{}",
            hint(name, EVENT_NAMES.split(' '))
        )
    };
    status::events(v).map_err(unknown)
}

/// Words as a shell would cut them: quotes of both kinds keep blanks, a backslash the next one.
pub fn words(mut text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    while let Some((word, rest)) = word(text)? {
        words.push(word);
        text = rest;
    }
    Ok(words)
}

/// The first of the [`words`] and the text behind it, as it stands. A quote must be closed.
pub fn word(text: &str) -> Result<Option<(String, &str)>, String> {
    let text = text.trim_start();
    let (mut word, mut quote) = (String::new(), None);
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t') => return Ok(Some((word, text[i..].trim_start()))),
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => word.push(chars.next().map_or('\\', |(_, c)| c)),
            _ => word.push(c),
        }
    }
    match quote {
        Some(q) => Err(format!("the quote {q} is not closed")),
        None => Ok((!text.is_empty()).then_some((word, ""))),
    }
}

fn who_list(v: &str) -> Result<Vec<Who>, String> {
    let who = list(v, |word| match word.split_once(':') {
        Some(("account", name)) if !name.is_empty() => Ok(Who::Account(name.to_owned())),
        Some(("mask", mask)) if mask.contains('!') && mask.contains('@') => {
            Ok(Who::Mask(mask.to_owned()))
        }
        Some(("mask", _)) => Err(format!("`{word}` is not mask:NICK!USER@HOST")),
        None if word == "everyone" => Ok(Who::Everyone),
        None if word == "nobody" => Ok(Who::Nobody),
        None if word == "op" => Ok(Who::Op),
        _ => Err(format!(
            "`{word}` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)"
        )),
    })?;
    let all = who.contains(&Who::Everyone) || who.contains(&Who::Nobody);
    refuse(all && who.len() > 1, "`everyone` and `nobody` stand alone")?;
    Ok(who)
}

fn url(v: &str) -> Result<Url, String> {
    let (https, usual, rest) = match v.split_once("://") {
        Some(("http", rest)) => (false, 80, rest),
        Some(("https", rest)) => (true, 443, rest),
        _ => return Err(format!("`{v}` does not begin with http:// or https://")),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let login = "a password does not belong into an address; use `user` and `password_file`";
    refuse(authority.contains('@'), login)?;
    let strange = v.contains(['?', '#', ' ']) || !v.is_ascii();
    refuse(
        strange,
        format!("`{v}` holds a blank, a ?, a # or a character beyond ASCII"),
    )?;
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((v6, "")) => (v6, None),
        Some((v6, rest)) => (v6, Some(rest.strip_prefix(':').unwrap_or("?"))),
        None => authority
            .split_once(':')
            .map_or((authority, None), |(h, p)| (h, Some(p))),
    };
    let port = port.map_or(Ok(usual), number)?;
    refuse(host.is_empty(), format!("`{v}` names no host"))?;
    Ok(Url {
        https,
        host: host.to_owned(),
        port,
        path: path.trim_end_matches('/').to_owned(),
    })
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::fuzz::fuzz;
    use std::collections::BTreeSet;

    /// Parses as `bot.conf`, with one file `there` that holds `hidden`.
    pub fn parse(text: &str) -> Result<Config, Vec<String>> {
        Config::parse("bot.conf", text, &|path| match path {
            "there" => Ok(b"hidden\nsecond\n".to_vec()),
            _ => Err("No such file".into()),
        })
    }

    /// The shortest useful configuration.
    pub const SHORT: &str = "[buildbot]\nurl = http://m:8010/\n[irc]\nhost = irc\nnick = bot\n";

    #[test]
    fn the_shortest_configuration_has_the_documented_defaults() {
        let c = parse(&format!("{SHORT}[channel #dev]\n")).unwrap();
        let irc = c.irc.unwrap();
        assert_eq!((irc.port, irc.use_ssl, irc.sasl), (6667, false, Sasl::No));
        assert_eq!(
            (irc.nickserv.as_str(), irc.account.as_str()),
            ("NickServ", "bot")
        );
        assert_eq!(irc.ping_timeout, Duration::from_secs(150));
        assert_eq!(
            (irc.channels[0].name.as_str(), irc.defaults.blame),
            ("#dev", true)
        );
        assert_eq!(c.buildbot.poll_interval, Duration::from_secs(15));
        assert_eq!(c.catch_up, Duration::from_secs(3600));
        assert_eq!(c.authorization["force"], [Who::Nobody]);
        assert_eq!(c.authorization.get("status"), None);
    }

    #[test]
    fn channels_inherit_and_override() {
        let c = parse(&format!(
            "{SHORT}notify_events = failure problem\nuse_colors = on\n\
             [channel #a]\npassword = k\n[channel #b]\nnotify_events = worker\nuse_colors=0\nbuilders = a* \"b c\"\n"
        ));
        let irc = c.unwrap().irc.unwrap();
        assert_eq!(
            irc.channels[0].settings.events,
            status::events("failure problem").unwrap()
        );
        assert_eq!(irc.channels[0].key, Some(Secret("k".into())));
        let b = &irc.channels[1].settings;
        assert_eq!(
            (&b.events, b.colors),
            (&status::events("worker").unwrap(), false)
        );
        assert_eq!(b.builders, ["a*", "b c"]);
    }

    #[test]
    fn every_error_is_reported_with_its_line() {
        let text = "key = 1\n[buildbot]\nurl = ftp://x\nuser = u\npol_interval = 3\n[irc]\nhost = a\nhost = b\n\
                    nick = 9lives\nport = 0\nuse_ssl = maybe\nsasl = plain\nnotify_events = failed\n\
                    tls_ca_file = gone\n[channel dev]\n[authorization]\nforce = joe account:x mask:y\n[what]\nx=y\nnonsense\n[bot\n\
                    [channel #A]\n[channel #a]\nuse_colors = \u{7}\n[bot]\ncatch_up = 1 week\n";
        let errors = parse(text).unwrap_err();
        let expected = [
            "bot.conf:1: `key` stands before the first [section]",
            "bot.conf:2: `user` and `password` need each other",
            "bot.conf:3: `url`: `ftp://x` does not begin with http:// or https://",
            "bot.conf:5: `pol_interval`: no such key in [buildbot]; did you mean `poll_interval`?",
            "bot.conf:6: `sasl = plain` needs `password` or `password_file`",
            "bot.conf:8: `host` was given before, in line 7",
            "bot.conf:9: `nick`: `9lives` cannot be a nick",
            "bot.conf:10: `port`: `0` is not a port from 1 to 65535",
            "bot.conf:11: `use_ssl`: `maybe` is neither yes nor no",
            "bot.conf:13: `notify_events`: unknown event `failed`; did you mean `failure`?",
            "bot.conf:14: `tls_ca_file`: gone: No such file",
            "bot.conf:15: a channel's section is written [channel #name]",
            "bot.conf:17: `force`: `joe` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)",
            "bot.conf:18: unknown section [what]",
            "bot.conf:20: expected `key = value`, a [section] or a # comment",
            "bot.conf:21: a section header ends with ]",
            "bot.conf:23: [channel #a] was there before, in line 22",
            "bot.conf:24: a control character has no place here",
            "bot.conf:26: `catch_up`: `1 week` is not a duration like 90, 15s, 10m, 2h or 1d",
        ];
        assert_eq!(errors, expected);
        let again = "[buildbot]\nurl = http://m\n[irc]\nhost = a\nnick = b\npassword_file = there\npassword = c\n[irc]\n\
                     [authorization]\nforce = nobody everyone\nstop = account:a, op\n[channel #a]\nbuilders = a, b\n[bot]\ncatch_up = 2h # or so\n";
        let expected = [
            "bot.conf:7: `password_file` was given before, in line 6",
            "bot.conf:8: [irc] was there before, in line 3",
            "bot.conf:10: `force`: `everyone` and `nobody` stand alone",
            "bot.conf:11: `stop`: a list is separated by blanks, without commas",
            "bot.conf:13: `builders`: a list is separated by blanks, without commas",
            "bot.conf:15: `catch_up`: `2h # or so` is not a duration like 90, 15s, 10m, 2h or 1d (a comment stands on its own line)",
        ];
        assert_eq!(parse(again).unwrap_err(), expected);
        assert_eq!(
            parse("").unwrap_err(),
            ["bot.conf: a section [buildbot] with `url` is needed"]
        );
    }

    #[test]
    fn secrets_come_from_files_too_and_are_never_shown() {
        let c = parse(&format!("{SHORT}sasl = plain\npassword_file = there\n")).unwrap();
        assert!(!c.has_secret);
        let irc = c.irc.unwrap();
        assert_eq!(irc.password, Some(Secret("hidden".into())));
        assert!(!format!("{irc:?}").contains("hidden"));
        assert!(
            parse(&format!("{SHORT}password = x # y ; z\n"))
                .unwrap()
                .has_secret
        );
    }

    #[test]
    fn addresses() {
        let ok = |v| url(v).map(|u| (u.https, u.host, u.port, u.path)).unwrap();
        assert_eq!(ok("http://h"), (false, "h".into(), 80, "".into()));
        assert_eq!(ok("https://h/a/b/"), (true, "h".into(), 443, "/a/b".into()));
        assert_eq!(
            ok("https://[::1]:8010/"),
            (true, "::1".into(), 8010, "".into())
        );
        assert_eq!(
            url("https://[::1]:8010/x/").unwrap().to_string(),
            "https://[::1]:8010/x/"
        );
        for bad in [
            "h",
            "http://",
            "http://[::1]x:9/",
            "http://[::1]99/",
            "http://u@h/",
            "http://h/?x",
            "http://h:x/",
            "http://h/\u{e9}",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
        assert!(!url("http://u:secret@h/").unwrap_err().contains("secret"));
    }

    #[test]
    fn words_are_cut_as_in_a_shell() {
        assert_eq!(
            words("a \"b c\" 'd \\' e\\ f ''").unwrap(),
            ["a", "b c", "d \\", "e f", ""]
        );
        assert_eq!(words("a \"b").unwrap_err(), "the quote \" is not closed");
        assert_eq!(words("  ").unwrap(), [""; 0]);
    }

    #[test]
    fn who_may() {
        let list = who_list("op account:joe mask:*!*@*.example.org").unwrap();
        assert_eq!(
            list,
            [
                Who::Op,
                Who::Account("joe".into()),
                Who::Mask("*!*@*.example.org".into())
            ]
        );
        let c = parse(&format!("{SHORT}allow_force = yes\n")).unwrap();
        assert_eq!(
            (&c.authorization["force"][..], &c.authorization["stop"][..]),
            (&[Who::Everyone][..], &[Who::Everyone][..])
        );
    }

    /// The example is the manual: it names every key that the parser knows, and only those, and
    /// each default in it is the parser's.
    #[test]
    fn the_example_and_the_parser_agree() {
        let example = include_str!("../bot.conf.example");
        let mut named = BTreeSet::new();
        let mut section = String::new();
        // `#key = value` is a setting, `# text` is prose.
        for line in example.lines().map(|l| l.strip_prefix('#').unwrap_or(l)) {
            if let Some(header) = line.strip_prefix('[') {
                section = header.split([' ', ']']).next().unwrap().to_owned();
            } else if !line.starts_with(' ')
                && let Some((key, _)) = line.split_once(" = ")
            {
                named.insert((section.clone(), key.to_owned()));
            }
        }
        // What the example names is tried below; what the parser names must be in the example.
        let arms = include_str!("config.rs")
            .lines()
            .map(str::trim)
            .filter(|l| l.starts_with("(\"") && l.contains("=>"));
        let arms =
            arms.filter_map(|arm| arm.split_once("\") =>").or(arm.split_once("\", command)")));
        let mut known = 0;
        for (kinds, key) in arms.map(|(arm, _)| arm.rsplit_once(", \"").unwrap_or((arm, ""))) {
            known += 1;
            for kind in SECTIONS
                .iter()
                .filter(|kind| kinds.contains(&format!("\"{kind}\"")))
            {
                let there = named.iter().any(|(section, name)| {
                    section == kind && (key.is_empty() || stem(name) == key)
                });
                assert!(there, "[{kind}] `{key}` is not in the example");
            }
        }
        assert!(
            known > 30,
            "the arms of `set` look different from what this test reads"
        );
        for (section, key) in &named {
            assert!(keys(section).any(|k| k == key), "[{section}] `{key}`");
        }
        parse(example).expect("the example as it stands is a valid configuration");
        // Spelled out, the defaults that it states change nothing.
        let mut spelled = String::new();
        let mut example_only = false;
        for line in example.lines() {
            match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') && !example_only => spelled += setting,
                Some(setting) if setting.starts_with(' ') => {
                    example_only = setting.ends_with("No default.")
                }
                _ => spelled += line,
            }
            spelled += "\n";
            example_only &= line.starts_with("# ");
        }
        let mut stated = parse(&spelled).expect("the defaults as spelled out are valid");
        for (command, who) in parse(example).unwrap().authorization {
            assert_eq!(stated.authorization.remove(&command), Some(who));
        }
        assert!(
            stated
                .authorization
                .values()
                .all(|who| *who == [Who::Everyone])
        );
        stated.authorization = parse(example).unwrap().authorization;
        assert_eq!(
            stated,
            parse(example).unwrap(),
            "the example states a wrong default"
        );
    }

    #[test]
    fn fuzz_config() {
        let seed = format!(
            "{SHORT}notify_events = failure\n[channel #x]\nbuilders = \"a b\"\n[authorization]\nforce = op\n"
        );
        fuzz(&[seed.as_bytes(), MANUAL.as_bytes()], |bytes, _| {
            if let Err(errors) = parse(&String::from_utf8_lossy(bytes)) {
                assert!(
                    !errors.is_empty() && errors.iter().all(|e| e.starts_with("bot.conf:")),
                    "{errors:?}"
                );
            }
        });
    }
}
