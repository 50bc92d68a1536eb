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

/// A password: never shown, not even by `{:?}`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything that a configuration says.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
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

/// `[buildbot]`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Buildbot {
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<Secret>,
    pub poll_interval: Duration,
    pub event_stream: bool,
    pub timeout: Duration,
    pub tls: Tls,
}

/// A web address, taken apart.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Url {
    pub https: bool,
    pub host: String,
    pub port: u16,
    /// Without a slash at the end.
    pub path: String,
}

/// PEM texts for one peer.
#[derive(Clone, Debug, Default, PartialEq)]
#[allow(missing_docs)]
pub struct Tls {
    pub ca: Option<Vec<u8>>,
    pub cert: Option<Vec<u8>>,
    pub key: Option<Secret>,
}

/// How to log in before registration ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Sasl {
    No,
    Plain,
    External,
}

/// `[irc]` and the `[channel]` sections.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
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

/// One `[channel #name]`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub struct Channel {
    pub name: String,
    pub key: Option<Secret>,
    pub settings: Settings,
}

/// Who may use a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// Whoever asks.
    Everyone,
    /// Nobody at all.
    Nobody,
    /// An operator of the channel in which the command is said.
    Op,
    /// Someone whom services know by this account.
    Account(String),
    /// A `nick!user@host` glob.
    Mask(String),
}

impl Config {
    /// Parses a configuration. `name` stands in front of each error, `read` reads a named file.
    ///
    /// # Errors
    /// Every error of the text, as `name:line: sentence`, in the order of the lines.
    pub fn parse(name: &str, text: &str, read: &ReadFile) -> Result<Config, Vec<String>> {
        let mut p = Parser { read, sections: Vec::new(), errors: Vec::new(), known: BTreeSet::new() };
        p.split(text);
        let config = p.config();
        p.leftovers();
        if p.errors.is_empty() {
            return Ok(config);
        }
        p.errors.sort();
        let place = |line| {
            if line == 0 { name.to_owned() } else { format!("{name}:{line}") }
        };
        Err(p.errors.iter().map(|(line, error)| format!("{}: {error}", place(*line))).collect())
    }
}

/// Reads a file that the configuration names.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<Vec<u8>, String> + 'a;

struct Parser<'a> {
    read: &'a ReadFile<'a>,
    sections: Vec<Section>,
    errors: Vec<(usize, String)>,
    /// Section kind and key of all that was asked for.
    known: BTreeSet<(String, String)>,
}

struct Section {
    /// `irc`, or `channel` with the rest of the header in `label`.
    kind: String,
    label: String,
    line: usize,
    keys: Vec<(String, String, usize)>,
    used: bool,
}

impl Parser<'_> {
    fn error(&mut self, line: usize, text: impl Into<String>) {
        self.errors.push((line, text.into()));
    }

    fn split(&mut self, text: &str) {
        for (i, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let (line, raw) = (i + 1, raw.trim());
            if raw.is_empty() || raw.starts_with(['#', ';']) {
                continue;
            }
            if raw.contains(char::is_control) {
                self.error(line, "a control character has no place here");
            } else if let Some(header) = raw.strip_prefix('[') {
                let Some(header) = header.strip_suffix(']') else {
                    self.error(line, "a section header ends with ]");
                    continue;
                };
                let (kind, label) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
                let (kind, label) = (kind.to_owned(), label.trim().to_owned());
                let same = |s: &&Section| s.kind == kind && fold(&s.label) == fold(&label);
                if let Some(first) = self.sections.iter().find(same).map(|s| s.line) {
                    self.error(line, format!("[{header}] was there before, in line {first}"));
                }
                self.sections.push(Section { kind, label, line, keys: Vec::new(), used: false });
            } else if let Some((key, value)) = raw.split_once('=') {
                let (key, value) = (key.trim().to_owned(), value.trim().to_owned());
                let Some(section) = self.sections.last_mut() else {
                    self.error(line, format!("`{key}` stands before the first [section]"));
                    continue;
                };
                match section.keys.iter().find(|k| k.0 == key).map(|k| k.2) {
                    Some(first) => {
                        self.error(line, format!("`{key}` was given before, in line {first}"));
                    }
                    None => section.keys.push((key, value, line)),
                }
            } else {
                self.error(line, "expected `key = value`, a [section] or a # comment");
            }
        }
    }

    /// Opens the first section of that kind that was not opened before.
    fn open(&mut self, kind: &str) -> Option<usize> {
        self.known.insert((kind.to_owned(), String::new()));
        let i = self.sections.iter().position(|s| s.kind == kind && !s.used)?;
        self.sections[i].used = true;
        Some(i)
    }

    /// Takes a key out of a section: its value and line.
    fn take(&mut self, section: usize, key: &str) -> Option<(String, usize)> {
        let section = &mut self.sections[section];
        self.known.insert((section.kind.clone(), key.to_owned()));
        let i = section.keys.iter().position(|k| k.0 == key)?;
        let (_, value, line) = section.keys.remove(i);
        if value.is_empty() {
            self.error(line, format!("`{key}` needs a value"));
            return None;
        }
        Some((value, line))
    }

    /// Takes a key and makes a value of it, or notes why that cannot be.
    fn get<T>(&mut self, s: usize, key: &str, make: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let (value, line) = self.take(s, key)?;
        make(&value).map_err(|why| self.error(line, format!("`{key}`: {why}"))).ok()
    }

    fn text(&mut self, s: usize, key: &str) -> Option<String> {
        self.get(s, key, |v| Ok(v.to_owned()))
    }

    fn word(&mut self, s: usize, key: &str) -> Option<String> {
        self.get(s, key, |v| if v.contains(' ') { Err("no blanks here".into()) } else { Ok(v.to_owned()) })
    }

    fn list(&mut self, s: usize, key: &str) -> Option<Vec<String>> {
        self.get(s, key, |v| Ok(v.split_whitespace().map(str::to_owned).collect()))
    }

    fn flag(&mut self, s: usize, key: &str, default: bool) -> bool {
        self.get(s, key, boolean).unwrap_or(default)
    }

    fn duration(&mut self, s: usize, key: &str, default: u64) -> Duration {
        self.get(s, key, duration).unwrap_or(Duration::from_secs(default))
    }

    fn required<T>(&mut self, s: usize, key: &str, found: Option<T>) -> Option<T> {
        let section = &self.sections[s];
        // A bad value has its own error; only a key that is not there needs one here.
        if found.is_none() && !self.errors.iter().any(|(_, e)| e.starts_with(&format!("`{key}`"))) {
            let (line, kind) = (section.line, section.kind.clone());
            self.error(line, format!("[{kind}] needs `{key}`"));
        }
        found
    }

    fn file(&mut self, s: usize, key: &str) -> Option<Vec<u8>> {
        let read = self.read;
        self.get(s, key, |path| read(path).map_err(|e| format!("{path}: {e}")))
    }

    /// `key`, or the first line of the file that `key_file` names.
    fn secret(&mut self, s: usize, key: &str, in_config: &mut bool) -> Option<Secret> {
        let here = self.text(s, key);
        *in_config |= here.is_some();
        let there = self.file(s, &format!("{key}_file"));
        if here.is_some() && there.is_some() {
            let line = self.sections[s].line;
            self.error(line, format!("`{key}` and `{key}_file` exclude each other"));
        }
        let first_line =
            |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).lines().next().unwrap_or("").trim_end().to_owned();
        here.or(there.map(first_line)).map(Secret)
    }

    fn tls(&mut self, s: usize) -> Tls {
        let tls = Tls {
            ca: self.file(s, "tls_ca_file"),
            cert: self.file(s, "tls_cert_file"),
            key: self.file(s, "tls_key_file").map(|k| Secret(String::from_utf8_lossy(&k).into_owned())),
        };
        if tls.cert.is_some() != tls.key.is_some() {
            let line = self.sections[s].line;
            self.error(line, "`tls_cert_file` and `tls_key_file` need each other");
        }
        tls
    }

    fn config(&mut self) -> Config {
        let mut has_secret = false;
        let buildbot = self.buildbot(&mut has_secret);
        let mut force = None;
        let irc = self.open("irc").map(|s| {
            if self.flag(s, "allow_force", false) {
                force = Some(self.sections[s].line);
            }
            self.irc(s, &buildbot.url, &mut has_secret)
        });
        let mut authorization: BTreeMap<String, Vec<Who>> =
            GUARDED.iter().map(|c| (c.to_string(), vec![Who::Nobody])).collect();
        if force.is_some() {
            authorization.extend(["force", "stop"].map(|c| (c.to_owned(), vec![Who::Everyone])));
        }
        if let Some(s) = self.open("authorization") {
            for command in COMMANDS {
                if let Some(list) = self.get(s, command, who_list) {
                    if force.is_some() && ["force", "stop"].contains(&command) {
                        let line = self.sections[s].line;
                        self.error(line, format!("`allow_force` and `{command}` exclude each other"));
                    }
                    authorization.insert(command.to_owned(), list);
                }
            }
        }
        let (mut state_file, mut catch_up) = (None, Duration::from_secs(3600));
        if let Some(s) = self.open("bot") {
            state_file = self.text(s, "state_file");
            catch_up = self.duration(s, "catch_up", 3600);
        }
        Config { buildbot, irc, authorization, state_file, catch_up, has_secret }
    }

    fn buildbot(&mut self, has_secret: &mut bool) -> Buildbot {
        let nowhere = Url { https: false, host: String::new(), port: 80, path: String::new() };
        let Some(s) = self.open("buildbot") else {
            self.error(0, "a section [buildbot] with `url` is needed");
            let (poll_interval, timeout) = (Duration::ZERO, Duration::ZERO);
            let (user, password, tls) = (None, None, Tls::default());
            return Buildbot { url: nowhere, user, password, poll_interval, event_stream: false, timeout, tls };
        };
        let url = self.get(s, "url", url);
        let url = self.required(s, "url", url).unwrap_or(nowhere);
        let user = self.text(s, "user");
        let password = self.secret(s, "password", has_secret);
        if user.is_some() != password.is_some() {
            let line = self.sections[s].line;
            self.error(line, "`user` and `password` need each other");
        }
        Buildbot {
            url,
            user,
            password,
            poll_interval: self.duration(s, "poll_interval", 15),
            event_stream: self.flag(s, "event_stream", true),
            timeout: self.duration(s, "timeout", 30),
            tls: self.tls(s),
        }
    }

    fn irc(&mut self, s: usize, master: &Url, has_secret: &mut bool) -> Irc {
        let line = self.sections[s].line;
        let host = self.word(s, "host");
        let nick = self.get(s, "nick", nick);
        let use_ssl = self.flag(s, "use_ssl", false);
        let usual = if use_ssl { 6697 } else { 6667 };
        let nick = self.required(s, "nick", nick).unwrap_or_default();
        let none = Settings {
            events: Events::default(),
            tags: Vec::new(),
            builders: Vec::new(),
            notice: false,
            colors: false,
            revisions: false,
            blame: true,
        };
        let defaults = self.settings(s, &none);
        let mut irc = Irc {
            host: self.required(s, "host", host).unwrap_or_default(),
            port: self.get(s, "port", number).unwrap_or(usual),
            use_ssl,
            tls: self.tls(s),
            server_password: self.secret(s, "server_password", has_secret),
            alt_nicks: self
                .get(s, "alt_nicks", |v| v.split_whitespace().map(|n| self::nick(n)).collect())
                .unwrap_or_default(),
            username: self.word(s, "username").unwrap_or_else(|| nick.clone()),
            realname: self
                .text(s, "realname")
                .unwrap_or_else(|| format!("buildbot-irc {} for {}", env!("CARGO_PKG_VERSION"), master)),
            password: self.secret(s, "password", has_secret),
            nickserv: self.word(s, "nickserv").unwrap_or_else(|| "NickServ".into()),
            sasl: self.get(s, "sasl", sasl).unwrap_or(Sasl::No),
            account: self.word(s, "account").unwrap_or_else(|| nick.clone()),
            nick,
            ping_timeout: self.duration(s, "ping_timeout", 150),
            pm_to_nicks: self.list(s, "pm_to_nicks").unwrap_or_default(),
            channels: Vec::new(),
            defaults,
        };
        if irc.sasl == Sasl::Plain && irc.password.is_none() {
            self.error(line, "`sasl = plain` needs `password` or `password_file`");
        }
        if irc.sasl == Sasl::External && !(irc.use_ssl && irc.tls.cert.is_some()) {
            self.error(line, "`sasl = external` needs `use_ssl = yes`, `tls_cert_file` and `tls_key_file`");
        }
        while let Some(c) = self.open("channel") {
            let (name, line) = (self.sections[c].label.clone(), self.sections[c].line);
            if !is_channel(&name) || name.contains([' ', ',']) {
                self.error(line, "a channel's section is written [channel #name]");
            }
            let key = self.secret(c, "password", has_secret);
            if key.as_ref().is_some_and(|k| k.0.contains([' ', ','])) {
                self.error(line, "a channel's `password` holds no blank and no comma");
            }
            let settings = self.settings(c, &irc.defaults);
            irc.channels.push(Channel { name, key, settings });
        }
        irc
    }

    fn settings(&mut self, s: usize, base: &Settings) -> Settings {
        let categories = self.list(s, "categories");
        let tags = self.list(s, "tags");
        if categories.is_some() && tags.is_some() {
            let line = self.sections[s].line;
            self.error(line, "`categories` and `tags` are the same key");
        }
        Settings {
            events: self.get(s, "notify_events", events).unwrap_or(base.events),
            tags: categories.or(tags).unwrap_or_else(|| base.tags.clone()),
            builders: self.get(s, "builders", words).unwrap_or_else(|| base.builders.clone()),
            notice: self.flag(s, "notice_on_channel", base.notice),
            colors: self.flag(s, "use_colors", base.colors),
            revisions: self.flag(s, "use_revisions", base.revisions),
            blame: self.flag(s, "show_blame_list", base.blame),
        }
    }

    /// What nobody asked for is an error.
    fn leftovers(&mut self) {
        let mut errors = Vec::new();
        for section in &self.sections {
            let names = |kind: &str| -> Vec<String> {
                let of_kind = self.known.iter().filter(|(k, _)| k == kind);
                of_kind.map(|(_, key)| key.clone()).filter(|k| !k.is_empty()).collect()
            };
            if !section.used {
                let kinds = ["buildbot", "irc", "channel", "authorization", "bot"];
                let why = match section.kind.as_str() {
                    "channel" => "[channel] needs a section [irc]".to_owned(),
                    kind if kinds.contains(&kind) => continue,
                    kind => format!("unknown section [{kind}]{}", hint(kind, &kinds)),
                };
                errors.push((section.line, why));
                continue;
            }
            for (key, _, line) in &section.keys {
                let known = names(&section.kind);
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                let kind = &section.kind;
                errors.push((*line, format!("unknown key `{key}` in [{kind}]{}", hint(key, &known))));
            }
            if !section.label.is_empty() && section.kind != "channel" {
                errors.push((section.line, format!("[{}] takes no name", section.kind)));
            }
        }
        self.errors.extend(errors);
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

fn fold(name: &str) -> String {
    Casemapping::Rfc1459.fold(name)
}

fn hint(word: &str, known: &[&str]) -> String {
    nearest(word, known.iter().copied()).map_or(String::new(), |n| format!("; did you mean `{n}`?"))
}

fn boolean(v: &str) -> Result<bool, String> {
    match v.to_ascii_lowercase().as_str() {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err(format!("`{v}` is neither yes nor no")),
    }
}

fn number(v: &str) -> Result<u16, String> {
    v.parse().ok().filter(|&n| n > 0).ok_or_else(|| format!("`{v}` is not a port from 1 to 65535"))
}

/// Seconds, or a whole number with one of `ms s m h d`; at least a millisecond, at most 10 years.
///
/// # Errors
/// A sentence that shows how to write it.
pub fn duration(v: &str) -> Result<Duration, String> {
    let digits = v.find(|c: char| !c.is_ascii_digit()).unwrap_or(v.len());
    let unit = match &v[digits..] {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => 0,
    };
    let ms = v[..digits].parse::<u64>().ok().and_then(|n| n.checked_mul(unit));
    match ms {
        Some(ms) if ms > 0 && ms <= 3650 * 86_400_000 => Ok(Duration::from_millis(ms)),
        _ => Err(format!("`{v}` is not a duration like 90, 15s, 10m, 2h or 1d")),
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

fn nick(v: &str) -> Result<String, String> {
    let bad = |c: char| " ,:!@#&*?".contains(c);
    match v.contains(bad) || v.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        true => Err(format!("`{v}` cannot be a nick")),
        false => Ok(v.to_owned()),
    }
}

fn events(v: &str) -> Result<Events, String> {
    let mut set = Events::default();
    for name in v.split_whitespace() {
        let hint = || format!("unknown event `{name}`{}", hint(name, &EVENT_NAMES));
        set = set.with(Events::named(name).ok_or_else(hint)?);
    }
    Ok(set)
}

/// Words as a shell would cut them: quotes of both kinds keep blanks, a backslash the next one.
///
/// # Errors
/// A quote that is not closed.
pub fn words(mut text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    while let Some((word, rest)) = word(text)? {
        words.push(word);
        text = rest;
    }
    Ok(words)
}

/// The first of the [`words`] and the text behind it, as it stands.
///
/// # Errors
/// A quote that is not closed.
pub fn word(text: &str) -> Result<Option<(String, &str)>, String> {
    let text = text.trim_start();
    let mut word = None::<String>;
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match (quote, c) {
            (None, ' ' | '\t') => return Ok(word.map(|w| (w, text[i..].trim_start()))),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (Some(q), c) if q == c => quote = None,
            (None | Some('"'), '\\') => {
                word.get_or_insert_default().push(chars.next().map_or('\\', |(_, c)| c));
            }
            _ => word.get_or_insert_default().push(c),
        }
    }
    match quote {
        Some(q) => Err(format!("the quote {q} is not closed")),
        None => Ok(word.map(|w| (w, ""))),
    }
}

fn who_list(v: &str) -> Result<Vec<Who>, String> {
    let one = |word: &str| match word.split_once(':') {
        Some(("account", name)) if !name.is_empty() => Ok(Who::Account(name.to_owned())),
        Some(("mask", mask)) if mask.contains('!') && mask.contains('@') => Ok(Who::Mask(mask.to_owned())),
        Some(("mask", _)) => Err(format!("`{word}` is not mask:NICK!USER@HOST")),
        None if word == "everyone" => Ok(Who::Everyone),
        None if word == "nobody" => Ok(Who::Nobody),
        None if word == "op" => Ok(Who::Op),
        _ => Err(format!(
            "`{word}` is none of everyone, nobody, op, account:NAME, mask:NICK!USER@HOST (a nick alone proves nothing)"
        )),
    };
    v.split_whitespace().map(one).collect()
}

fn url(v: &str) -> Result<Url, String> {
    let bad = |why: &str| format!("`{v}` {why}");
    let (https, rest) = match v.split_once("://") {
        Some(("http", rest)) => (false, rest),
        Some(("https", rest)) => (true, rest),
        _ => return Err(bad("does not begin with http:// or https://")),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err("a password does not belong into an address; use `user` and `password_file`".into());
    }
    if v.contains(['?', '#', ' ']) || !v.is_ascii() {
        return Err(bad("holds a blank, a ?, a # or a character beyond ASCII"));
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|a| a.split_once(']')) {
        Some((v6, rest)) => (v6, rest.strip_prefix(':')),
        None => authority.split_once(':').map_or((authority, None), |(h, p)| (h, Some(p))),
    };
    let usual = if https { 443 } else { 80 };
    let port = port.map_or(Ok(usual), number)?;
    if host.is_empty() {
        return Err(bad("names no host"));
    }
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
        for bad in ["h", "http://", "http://u:p@h/", "http://h/?x", "http://h:x/", "http://h/\u{e9}"] {
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
