//! `bot.conf`: text to a validated [`Config`], or every error at once, each with `file:line`.
//!
//! Pure: files that `*_file` keys name are read through a function that the caller gives.
//! A key is known because some line below asks for it; there is no second list.

use crate::irc::wire::{Casemapping, is_channel};
use crate::status::{EVENT_NAMES, Events, Settings};
use crate::text::nearest;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// The commands that `[authorization]` may name: the table in `command`, which a test compares.
pub const COMMANDS: [&str; 16] = [
    "list", "status", "last", "watch", "notify", "mute", "unmute", "join", "leave", "force", "stop", "help",
    "commands", "source", "version", "hello",
];
/// Commands that are nobody's unless the configuration says otherwise.
const GUARDED: [&str; 4] = ["force", "stop", "join", "leave"];
const SECTIONS: [&str; 5] = ["buildbot", "irc", "channel", "authorization", "bot"];
const BOOLEAN: [(&str, bool); 2] = [("yes true on 1", true), ("no false off 0", false)];
const SASL: [(&str, Sasl); 3] = [("no", Sasl::No), ("plain", Sasl::Plain), ("external", Sasl::External)];
/// Units of a duration, in milliseconds.
const UNITS: [(&str, u64); 6] =
    [("ms", 1), ("", 1000), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sasl {
    No,
    Plain,
    External,
}

/// `[irc]` and the `[channel]` sections.
#[derive(Clone, Debug, PartialEq)]
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
    pub defaults: Settings,
    pub pm_to_nicks: Vec<String>,
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, PartialEq)]
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

impl Config {
    /// Parses a configuration; `read` reads a named file. The errors are all those of the text, as
    /// `name:line: sentence`, in the order of the lines.
    pub fn parse(name: &str, text: &str, read: &ReadFile) -> Result<Config, Vec<String>> {
        let mut p = Parser { read, sections: Vec::new(), errors: Vec::new(), known: BTreeSet::new() };
        p.split(text);
        let config = p.config();
        p.leftovers();
        p.errors.sort();
        let place = |line| if line == 0 { name.to_owned() } else { format!("{name}:{line}") };
        let errors: Vec<String> = p.errors.into_iter().map(|(line, why)| format!("{}: {why}", place(line))).collect();
        if errors.is_empty() { Ok(config) } else { Err(errors) }
    }
}

pub type ReadFile<'a> = dyn Fn(&str) -> Result<Vec<u8>, String> + 'a;

struct Parser<'a> {
    read: &'a ReadFile<'a>,
    sections: Vec<Section<'a>>,
    errors: Vec<(usize, String)>,
    /// Section kind and key of all that was asked for.
    known: BTreeSet<(String, String)>,
}

/// `[kind label]` in `line`; each of the keys with its value and line.
struct Section<'a> {
    kind: &'a str,
    label: &'a str,
    line: usize,
    keys: Vec<(&'a str, &'a str, usize)>,
    used: bool,
}

impl<'a> Parser<'a> {
    fn split(&mut self, text: &'a str) {
        for (i, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            if let Err(why) = self.line(i + 1, raw.trim()) {
                self.errors.push((i + 1, why));
            }
        }
    }

    fn line(&mut self, line: usize, text: &'a str) -> Result<(), String> {
        if text.is_empty() || text.starts_with(['#', ';']) {
            return Ok(());
        }
        refuse(text.contains(char::is_control), "a control character has no place here")?;
        if let Some(header) = text.strip_prefix('[') {
            let header = header.strip_suffix(']').ok_or("a section header ends with ]")?;
            let (kind, label) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
            let label = label.trim();
            let same = |s: &&Section| s.kind == kind && Casemapping::Rfc1459.same(s.label, label);
            let first = self.sections.iter().find(same).map(|s| s.line);
            self.sections.push(Section { kind, label, line, keys: Vec::new(), used: false });
            return first.map_or(Ok(()), |first| Err(format!("[{header}] was there before, in line {first}")));
        }
        let (key, value) = text.split_once('=').ok_or("expected `key = value`, a [section] or a # comment")?;
        let (key, value) = (key.trim(), value.trim());
        let none = || format!("`{key}` stands before the first [section]");
        let keys = &mut self.sections.last_mut().ok_or_else(none)?.keys;
        if let Some((_, _, first)) = keys.iter().find(|k| k.0 == key) {
            return Err(format!("`{key}` was given before, in line {first}"));
        }
        keys.push((key, value, line));
        Ok(())
    }

    /// Opens the first section of that kind that was not opened before.
    fn open(&mut self, kind: &str) -> Option<usize> {
        let s = self.sections.iter().position(|s| s.kind == kind && !s.used)?;
        self.sections[s].used = true;
        Some(s)
    }

    /// Takes a key out of a section and makes a value of it, or notes why that cannot be.
    fn get<T>(&mut self, s: usize, key: &str, make: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let section = &mut self.sections[s];
        self.known.insert((section.kind.to_owned(), key.to_owned()));
        let i = section.keys.iter().position(|k| k.0 == key)?;
        let (_, value, line) = section.keys.remove(i);
        let made = match value {
            "" => Err(format!("`{key}` needs a value")),
            _ => make(value).map_err(|why| format!("`{key}`: {why}")),
        };
        made.map_err(|why| self.errors.push((line, why))).ok()
    }

    /// Notes what is wrong with a section as a whole, unless all is `well`.
    fn check(&mut self, s: usize, well: bool, why: impl Into<String>) {
        if !well {
            self.errors.push((self.sections[s].line, why.into()));
        }
    }

    fn required<T: Default>(&mut self, s: usize, key: &str, make: impl Fn(&str) -> Result<T, String>) -> T {
        let found = self.get(s, key, make);
        // A bad value has its own error; only a key that is not there needs one here.
        let told =
            self.errors.iter().any(|(line, e)| *line > self.sections[s].line && e.starts_with(&format!("`{key}`")));
        self.check(s, found.is_some() || told, format!("[{}] needs `{key}`", self.sections[s].kind));
        found.unwrap_or_default()
    }

    fn file(&mut self, s: usize, key: &str) -> Option<Vec<u8>> {
        let read = self.read;
        self.get(s, key, |path| read(path).map_err(|e| format!("{path}: {e}")))
    }

    /// `key`, or the first line of the file that `key_file` names.
    fn secret(&mut self, s: usize, key: &str) -> Option<Secret> {
        let here = self.get(s, key, text);
        let there = self.file(s, &format!("{key}_file"));
        self.check(s, here.is_none() || there.is_none(), format!("`{key}` and `{key}_file` exclude each other"));
        let empty = there.as_ref().is_some_and(|file| file.trim_ascii_start().is_empty());
        self.check(s, !empty, format!("`{key}_file` names an empty file"));
        let first_line = |file: &[u8]| String::from_utf8_lossy(file).lines().next().unwrap_or("").trim_end().to_owned();
        here.or(there.as_deref().map(first_line)).map(Secret)
    }

    fn tls(&mut self, s: usize) -> Tls {
        let (ca, cert) = (self.file(s, "tls_ca_file"), self.file(s, "tls_cert_file"));
        let key = self.file(s, "tls_key_file").map(|k| Secret(String::from_utf8_lossy(&k).into_owned()));
        self.check(s, cert.is_some() == key.is_some(), "`tls_cert_file` and `tls_key_file` need each other");
        Tls { ca, cert, key }
    }

    fn config(&mut self) -> Config {
        // All keys that are known and end so hold a secret.
        let has_secret = self.sections.iter().flat_map(|s| &s.keys).any(|(key, ..)| key.ends_with("password"));
        let buildbot = self.buildbot();
        let section = self.open("irc");
        let irc = section.map(|s| self.irc(s, &buildbot.url));
        let allow_force = section.and_then(|s| self.get(s, "allow_force", boolean)) == Some(true);
        let allowed = |command| allow_force && ["force", "stop"].contains(&command);
        let who = |command| if allowed(command) { Who::Everyone } else { Who::Nobody };
        let mut authorization: BTreeMap<_, _> = GUARDED.iter().map(|c| (c.to_string(), vec![who(c)])).collect();
        if let Some(s) = self.open("authorization") {
            for command in COMMANDS {
                let Some(list) = self.get(s, command, who_list) else { continue };
                self.check(s, !allowed(command), format!("`allow_force` and `{command}` exclude each other"));
                authorization.insert(command.to_owned(), list);
            }
        }
        let bot = self.open("bot");
        let state_file = bot.and_then(|s| self.get(s, "state_file", text));
        let catch_up = bot.and_then(|s| self.get(s, "catch_up", duration)).unwrap_or(Duration::from_secs(3600));
        Config { buildbot, irc, authorization, state_file, catch_up, has_secret }
    }

    fn buildbot(&mut self) -> Buildbot {
        let Some(s) = self.open("buildbot") else {
            self.errors.push((0, "a section [buildbot] with `url` is needed".into()));
            return Buildbot::default();
        };
        let user = self.get(s, "user", text);
        let password = self.secret(s, "password");
        self.check(s, user.is_some() == password.is_some(), "`user` and `password` need each other");
        Buildbot {
            url: self.required(s, "url", url),
            user,
            password,
            poll_interval: self.get(s, "poll_interval", duration).unwrap_or(Duration::from_secs(15)),
            event_stream: self.get(s, "event_stream", boolean).unwrap_or(true),
            timeout: self.get(s, "timeout", duration).unwrap_or(Duration::from_secs(30)),
            tls: self.tls(s),
        }
    }

    fn irc(&mut self, s: usize, master: &Url) -> Irc {
        let nick = self.required(s, "nick", nickname);
        let use_ssl = self.get(s, "use_ssl", boolean).unwrap_or(false);
        let realname = || format!("buildbot-irc {} for {master}", env!("CARGO_PKG_VERSION"));
        let mut irc = Irc {
            host: self.required(s, "host", one_word),
            port: self.get(s, "port", number).unwrap_or(if use_ssl { 6697 } else { 6667 }),
            use_ssl,
            tls: self.tls(s),
            server_password: self.secret(s, "server_password"),
            alt_nicks: self.get(s, "alt_nicks", |v| list(v, nickname)).unwrap_or_default(),
            username: self.get(s, "username", one_word).unwrap_or_else(|| user_name(&nick)),
            realname: self.get(s, "realname", text).unwrap_or_else(realname),
            password: self.secret(s, "password"),
            nickserv: self.get(s, "nickserv", one_word).unwrap_or_else(|| "NickServ".into()),
            sasl: self.get(s, "sasl", |v| choice(v, &SASL, "none of no, plain, external")).unwrap_or(Sasl::No),
            account: self.get(s, "account", one_word).unwrap_or_else(|| nick.clone()),
            nick,
            ping_timeout: self.get(s, "ping_timeout", duration).unwrap_or(Duration::from_secs(150)),
            defaults: self.settings(s, Settings { blame: true, ..Settings::default() }),
            pm_to_nicks: self.get(s, "pm_to_nicks", |v| list(v, text)).unwrap_or_default(),
            channels: Vec::new(),
        };
        let plain = irc.sasl != Sasl::Plain || irc.password.is_some();
        self.check(s, plain, "`sasl = plain` needs `password` or `password_file`");
        let external = irc.sasl != Sasl::External || irc.use_ssl && irc.tls.cert.is_some();
        self.check(s, external, "`sasl = external` needs `use_ssl = yes`, `tls_cert_file` and `tls_key_file`");
        while let Some(c) = self.open("channel") {
            let name = self.sections[c].label.to_owned();
            let key = self.secret(c, "password");
            let word = |text: &str| !text.contains([' ', ',']);
            self.check(c, is_channel(&name) && word(&name), "a channel's section is written [channel #name]");
            let well = key.as_ref().is_none_or(|k| word(&k.0));
            self.check(c, well, "a channel's `password` holds no blank and no comma");
            irc.channels.push(Channel { name, key, settings: self.settings(c, irc.defaults.clone()) });
        }
        irc
    }

    /// What a section says of announcements, or else what `base` says.
    fn settings(&mut self, s: usize, base: Settings) -> Settings {
        let categories = self.get(s, "categories", |v| list(v, text));
        let tags = self.get(s, "tags", |v| list(v, text));
        self.check(s, categories.is_none() || tags.is_none(), "`categories` and `tags` are the same key");
        let mut flag = |key, default| self.get(s, key, boolean).unwrap_or(default);
        Settings {
            notice: flag("notice_on_channel", base.notice),
            colors: flag("use_colors", base.colors),
            revisions: flag("use_revisions", base.revisions),
            blame: flag("show_blame_list", base.blame),
            events: self.get(s, "notify_events", events).unwrap_or(base.events),
            tags: categories.or(tags).unwrap_or(base.tags),
            builders: self.get(s, "builders", words).unwrap_or(base.builders),
        }
    }

    /// What nobody asked for is an error.
    fn leftovers(&mut self) {
        for Section { kind, label, line, keys, used } in &self.sections {
            let known = self.known.iter().filter(|(k, _)| k == kind).map(|(_, key)| key.as_str());
            let unknown = |key| format!("unknown key `{key}` in [{kind}]{}", hint(key, known.clone()));
            match *kind {
                _ if *used => self.errors.extend(keys.iter().map(|(key, _, line)| (*line, unknown(key)))),
                "channel" => self.errors.push((*line, "[channel] needs a section [irc]".into())),
                kind if SECTIONS.contains(&kind) => {}
                kind => self.errors.push((*line, format!("unknown section [{kind}]{}", hint(kind, SECTIONS)))),
            }
            if SECTIONS.contains(kind) && !label.is_empty() && *kind != "channel" {
                self.errors.push((*line, format!("[{kind}] takes no name")));
            }
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        let (scheme, usual) = if self.https { ("https", 443) } else { ("http", 80) };
        let port = if self.port == usual { String::new() } else { format!(":{}", self.port) };
        write!(f, "{scheme}://{host}{port}{}/", self.path)
    }
}

fn refuse(bad: bool, why: impl Into<String>) -> Result<(), String> {
    if bad { Err(why.into()) } else { Ok(()) }
}

fn hint<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(word, known.into_iter()).map_or(String::new(), |n| format!("; did you mean `{n}`?"))
}

fn text(v: &str) -> Result<String, String> {
    Ok(v.to_owned())
}

/// Servers allow little in a user name: the letters and digits of the nick.
fn user_name(nick: &str) -> String {
    let name: String = nick.chars().filter(char::is_ascii_alphanumeric).collect();
    if name.is_empty() { "buildbot".into() } else { name }
}

fn one_word(v: &str) -> Result<String, String> {
    refuse(v.contains(' '), "no blanks here")?;
    text(v)
}

fn list<T>(v: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    v.split_whitespace().map(one).collect()
}

fn choice<T: Copy>(v: &str, choices: &[(&str, T)], what: &str) -> Result<T, String> {
    let chosen = choices.iter().find(|(names, _)| names.split(' ').any(|name| name.eq_ignore_ascii_case(v)));
    chosen.map(|(_, value)| *value).ok_or_else(|| format!("`{v}` is {what}"))
}

fn boolean(v: &str) -> Result<bool, String> {
    choice(v, &BOOLEAN, "neither yes nor no")
}

fn number(v: &str) -> Result<u16, String> {
    v.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("`{v}` is not a port from 1 to 65535"))
}

/// Seconds, or a whole number with one of `ms s m h d`; at least a millisecond, at most 10 years.
pub fn duration(v: &str) -> Result<Duration, String> {
    let (number, unit) = v.split_at(v.find(|c: char| !c.is_ascii_digit()).unwrap_or(v.len()));
    let scale = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
    let ms = scale.and_then(|scale| number.parse::<u64>().ok()?.checked_mul(scale));
    let ms = ms.filter(|ms| (1..=TEN_YEARS).contains(ms));
    ms.map(Duration::from_millis).ok_or_else(|| format!("`{v}` is not a duration like 90, 15s, 10m, 2h or 1d"))
}

fn nickname(v: &str) -> Result<String, String> {
    let bad = v.contains(|c| " ,:!@#&*?".contains(c)) || v.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    refuse(bad, format!("`{v}` cannot be a nick"))?;
    text(v)
}

fn events(v: &str) -> Result<Events, String> {
    let unknown = |name: &str| format!("unknown event `{name}`{}", hint(name, EVENT_NAMES.split(' ')));
    let events = list(v, |name| Events::named(name).ok_or_else(|| unknown(name)))?;
    Ok(events.into_iter().fold(Events::default(), Events::with))
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
    list(v, |word| match word.split_once(':') {
        Some(("account", name)) if !name.is_empty() => Ok(Who::Account(name.to_owned())),
        Some(("mask", mask)) if mask.contains('!') && mask.contains('@') => Ok(Who::Mask(mask.to_owned())),
        Some(("mask", _)) => Err(format!("`{word}` is not mask:NICK!USER@HOST")),
        None if word == "everyone" => Ok(Who::Everyone),
        None if word == "nobody" => Ok(Who::Nobody),
        None if word == "op" => Ok(Who::Op),
        _ => Err(format!(
            "`{word}` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)"
        )),
    })
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
    refuse(strange, format!("`{v}` holds a blank, a ?, a # or a character beyond ASCII"))?;
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((v6, "")) => (v6, None),
        Some((v6, rest)) => (v6, Some(rest.strip_prefix(':').unwrap_or("?"))),
        None => authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p))),
    };
    let port = port.map_or(Ok(usual), number)?;
    refuse(host.is_empty(), format!("`{v}` names no host"))?;
    Ok(Url { https, host: host.to_owned(), port, path: path.trim_end_matches('/').to_owned() })
}

#[cfg(test)]
pub mod tests {
    use super::*;

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
        assert_eq!((irc.nickserv.as_str(), irc.account.as_str()), ("NickServ", "bot"));
        assert_eq!(irc.ping_timeout, Duration::from_secs(150));
        assert_eq!((irc.channels[0].name.as_str(), irc.defaults.blame), ("#dev", true));
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
        assert_eq!(irc.channels[0].settings.events.names(), ["failure", "problem"]);
        assert_eq!(irc.channels[0].key, Some(Secret("k".into())));
        let b = &irc.channels[1].settings;
        assert_eq!((b.events.names(), b.colors), (vec!["worker"], false));
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
            "bot.conf:5: unknown key `pol_interval` in [buildbot]; did you mean `poll_interval`?",
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
        assert_eq!(parse("").unwrap_err(), ["bot.conf: a section [buildbot] with `url` is needed"]);
    }

    #[test]
    fn secrets_come_from_files_too_and_are_never_shown() {
        let c = parse(&format!("{SHORT}sasl = plain\npassword_file = there\n")).unwrap();
        assert!(!c.has_secret);
        let irc = c.irc.unwrap();
        assert_eq!(irc.password, Some(Secret("hidden".into())));
        assert!(!format!("{irc:?}").contains("hidden"));
        assert!(parse(&format!("{SHORT}password = x # y ; z\n")).unwrap().has_secret);
    }

    #[test]
    fn addresses() {
        let ok = |v| url(v).map(|u| (u.https, u.host, u.port, u.path)).unwrap();
        assert_eq!(ok("http://h"), (false, "h".into(), 80, "".into()));
        assert_eq!(ok("https://h/a/b/"), (true, "h".into(), 443, "/a/b".into()));
        assert_eq!(ok("https://[::1]:8010/"), (true, "::1".into(), 8010, "".into()));
        assert_eq!(url("https://[::1]:8010/x/").unwrap().to_string(), "https://[::1]:8010/x/");
        for bad in [
            "h",
            "http://",
            "http://[::1]x:9/",
            "http://[::1]99/",
            "http://u:p@h/",
            "http://h/?x",
            "http://h:x/",
            "http://h/\u{e9}",
        ] {
            assert!(url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_cut_as_in_a_shell() {
        assert_eq!(words("a \"b c\" 'd \\' e\\ f ''").unwrap(), ["a", "b c", "d \\", "e f", ""]);
        assert_eq!(words("a \"b").unwrap_err(), "the quote \" is not closed");
        assert_eq!(words("  ").unwrap(), [""; 0]);
    }

    #[test]
    fn who_may() {
        let list = who_list("op account:joe mask:*!*@*.example.org").unwrap();
        assert_eq!(list, [Who::Op, Who::Account("joe".into()), Who::Mask("*!*@*.example.org".into())]);
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
        let read = |_: &str| Err(String::new());
        let mut p = Parser { read: &read, sections: vec![], errors: vec![], known: BTreeSet::new() };
        p.split("[buildbot]\n[irc]\n[channel #a]\n[authorization]\n[bot]\n");
        p.config();
        let known: BTreeSet<_> = p.known.into_iter().filter(|(_, key)| !key.is_empty()).collect();
        assert_eq!(known.difference(&named).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        assert_eq!(named.difference(&known).collect::<Vec<_>>(), Vec::<&(String, String)>::new());
        parse(example).expect("the example as it stands is a valid configuration");
        // Spelled out, the defaults that it states change nothing.
        let mut spelled = String::new();
        let mut example_only = false;
        for line in example.lines() {
            match line.strip_prefix('#') {
                Some(setting) if !setting.starts_with(' ') && !example_only => spelled += setting,
                Some(setting) if setting.starts_with(' ') => example_only = setting.ends_with("No default."),
                _ => spelled += line,
            }
            spelled += "\n";
            example_only &= line.starts_with("# ");
        }
        let mut stated = parse(&spelled).expect("the defaults as spelled out are valid");
        for (command, who) in parse(example).unwrap().authorization {
            assert_eq!(stated.authorization.remove(&command), Some(who));
        }
        assert!(stated.authorization.values().all(|who| *who == [Who::Everyone]));
        stated.authorization = parse(example).unwrap().authorization;
        assert_eq!(stated, parse(example).unwrap(), "the example states a wrong default");
    }

    #[test]
    fn mutated_configurations_never_panic() {
        let seed =
            format!("{SHORT}notify_events = failure\n[channel #x]\nbuilders = \"a b\"\n[authorization]\nforce = op\n");
        let mut state = 88_172_645_463_325_252_u64;
        for _ in 0..5000 {
            let mut text: Vec<char> = seed.chars().collect();
            for _ in 0..4 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let at = state as usize % text.len();
                match state >> 40 & 1 {
                    0 => text[at] = char::from((state >> 50) as u8 & 0x7f),
                    _ => drop(text.remove(at)),
                }
            }
            let _ = parse(&text.into_iter().collect::<String>());
        }
    }
}
