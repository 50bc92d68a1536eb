//! `bot.conf`: text to a validated [`Config`], or every error at once, each with `file:line`.
//!
//! Pure: files that `*_file` keys name are read through a function that the caller gives. `ini`
//! cuts the text into sections, `keys` is the table of keys, `values` reads single values, `error`
//! makes the sentences.

mod error;
mod ini;
mod keys;
mod values;

pub use error::ConfigError;
pub use values::{duration, is_yes};

use crate::names::{Filter, is_channel};
use crate::notify_events::EventSet;
use error::ErrorKind;
use ini::Section;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The example configuration, which is the manual of every key.
pub const EXAMPLE: &str = include_str!("../../bot.conf.example");

/// All commands, each of which is a key of `[authorization]`.
pub const COMMANDS: [&str; 17] = [
    "force", "stop", "join", "leave", "notify", "mute", "unmute", "watch", "status", "last", "why",
    "list", "help", "commands", "source", "version", "hello",
];

/// Commands that are nobody's until a line of `[authorization]` says otherwise.
const CLOSED: [&str; 4] = ["force", "stop", "join", "leave"];

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
    pub nicks: Nicks,
    pub authorization: Authorization,
    pub state_file: Option<String>,
    /// Missed builds older than this share one summary line.
    pub catch_up: Duration,
    /// Whether a secret stands in the file itself.
    pub has_secret: bool,
    /// What is allowed but hardly meant; each with `file:line`.
    pub warnings: Vec<String>,
}

/// `[buildbot]`: the master.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Buildbot {
    pub url: Url,
    pub user: Option<String>,
    pub password: Option<Secret>,
    /// The login of a reverse proxy, where it is not the master's own.
    pub proxy_user: Option<String>,
    pub proxy_password: Option<Secret>,
    pub poll_interval: Duration,
    pub event_stream: bool,
    pub timeout: Duration,
    pub tls: Tls,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Url {
    pub https: bool,
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
    /// Without a slash at the end.
    pub path: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let scheme = if self.https { "https" } else { "http" };
        write!(f, "{scheme}://{}{}/", self.authority(), self.path)
    }
}

impl Url {
    /// Host and port as the `Host` header wants them; the usual port is left out.
    pub fn authority(&self) -> String {
        let usual_port = if self.https { 443 } else { 80 };
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        if self.port == usual_port {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
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

/// How fast the bot speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pacing {
    /// As fast as the server's software is known to allow.
    #[default]
    Auto,
    /// As is safe on every server.
    Safe,
    /// The server exempts the bot from its limits.
    No,
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
    /// What the service is told instead of the usual words, with `{account}` and `{password}`.
    pub identify: Option<String>,
    pub sasl: Sasl,
    pub account: String,
    pub ping_timeout: Duration,
    pub pacing: Pacing,
    pub defaults: TargetSettings,
    pub pm_to_nicks: Vec<String>,
    pub channels: Vec<Channel>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Channel {
    pub name: String,
    pub key: Option<Secret>,
    pub settings: TargetSettings,
}

/// What gets a line of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Announce {
    #[default]
    Builds,
    /// What was started together: a change on all its builders.
    Changes,
}

/// What a channel or a person hears, and in what form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetSettings {
    pub events: EventSet,
    pub tags: Filter,
    pub builders: Filter,
    pub branches: Filter,
    pub announce: Announce,
    /// Whoever is blamed for a problem hears of it in private, too.
    pub pm_blamed: bool,
    pub notice: bool,
    pub colors: bool,
    pub revisions: bool,
    pub blame: bool,
}

impl TargetSettings {
    /// Whether `builders` or `tags` name something.
    pub fn has_patterns(&self) -> bool {
        let mut patterns = self.builders.patterns().chain(self.tags.patterns());
        patterns.next().is_some()
    }
}

/// `[nicks]`: how those who commit are called on IRC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nicks(BTreeMap<String, String>);

impl Nicks {
    /// The nick of an author as the master has it: `Name <mail>`, or either alone; in any case.
    pub fn of(&self, author: &str) -> Option<&str> {
        let author = author.to_lowercase();
        let (name, mail) = author.split_once('<').unwrap_or((&author, ""));
        let mail = mail.trim_end().trim_end_matches('>');
        let candidates = [author.trim(), mail.trim(), name.trim()];
        let found = candidates
            .iter()
            .find_map(|candidate| self.0.get(*candidate));
        found.map(String::as_str)
    }
}

/// `[authorization]`: who may use which command.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authorization {
    lines: BTreeMap<String, Vec<Who>>,
    default: Option<Vec<Who>>,
}

impl Authorization {
    /// Who may use a command. One without a line goes by `default`; without that, some commands
    /// are nobody's and the others everyone's. What some may `mute`, others must not undo.
    pub fn who_may(&self, command: &str) -> &[Who] {
        let mute = self.lines.get("mute").filter(|_| command == "unmute");
        let line = self.lines.get(command).or(mute).or(self.default.as_ref());
        match line {
            Some(list) => list,
            None if CLOSED.contains(&command) => &[Who::Nobody],
            None => &[Who::Everyone],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    Everyone,
    Nobody,
    /// An operator of the channel in which the command is said.
    Op,
    /// Whoever is logged in to this services account at that moment.
    Account(String),
    /// A `nick!user@host` glob.
    Mask(String),
}

/// Reads a file that the configuration names; the error says why it cannot.
pub type ReadFile<'a> = dyn Fn(&str) -> Result<Vec<u8>, String> + 'a;

/// The configuration while it is read: `[irc]` may be absent at the end, and channels begin with
/// what `[irc]` says.
struct Draft {
    buildbot: Buildbot,
    irc: Irc,
    nicks: Nicks,
    authorization: Authorization,
    /// `allow_force` was given.
    allow_force: Option<bool>,
    state_file: Option<String>,
    catch_up: Duration,
}

impl Draft {
    fn new() -> Draft {
        Draft {
            buildbot: Buildbot {
                poll_interval: Duration::from_secs(15),
                event_stream: true,
                timeout: Duration::from_secs(30),
                ..Buildbot::default()
            },
            irc: Irc {
                nickserv: "NickServ".to_owned(),
                ping_timeout: Duration::from_secs(150),
                defaults: TargetSettings {
                    blame: true,
                    ..TargetSettings::default()
                },
                ..Irc::default()
            },
            nicks: Nicks::default(),
            authorization: Authorization::default(),
            allow_force: None,
            state_file: None,
            catch_up: Duration::from_secs(3600),
        }
    }
}

impl Config {
    /// Parses a configuration; `read` reads a file that it names. The errors are all those of the
    /// text, in the order of the lines.
    pub fn parse(file: &str, text: &str, read: &ReadFile) -> Result<Config, Vec<ConfigError>> {
        let mut errors = Vec::new();
        let sections = ini::parse(text, &mut errors);
        let mut draft = Draft::new();
        for name in keys::SECTIONS {
            for section in sections.iter().filter(|section| section.name == name) {
                take_section(section, &mut draft, read, &mut errors);
            }
        }
        let has = |name| sections.iter().any(|section| section.name == name);
        for section in sections.iter().filter(|section| !section.is_repeated) {
            for fault in section_faults(section, &draft, has("irc")) {
                errors.push((section.line, fault));
            }
        }
        if !has("buildbot") {
            errors.push((0, ErrorKind::Missing("a section [buildbot] with `url`")));
        }
        if !errors.is_empty() {
            // The sort is stable: errors of one line stay in the order in which they were found.
            errors.sort_by_key(|(line, _)| *line);
            let located = |(line, kind)| ConfigError::new(file, line, kind);
            return Err(errors.into_iter().map(located).collect());
        }
        let keys = || sections.iter().flat_map(|section| &section.keys);
        complete(&mut draft.irc, &draft.buildbot.url);
        let warnings = warnings(file, &sections, &draft);
        Ok(Config {
            buildbot: draft.buildbot,
            irc: has("irc").then_some(draft.irc),
            nicks: draft.nicks,
            authorization: draft.authorization,
            state_file: draft.state_file,
            catch_up: draft.catch_up,
            has_secret: keys().any(|key| key.name.ends_with("password")),
            warnings,
        })
    }
}

/// Sets all keys of a section.
fn take_section(
    section: &Section,
    draft: &mut Draft,
    read: &ReadFile,
    errors: &mut Vec<(usize, ErrorKind)>,
) {
    if section.name == "channel" {
        draft.irc.channels.push(Channel {
            name: section.label.to_owned(),
            key: None,
            settings: draft.irc.defaults.clone(),
        });
    }
    for key in &section.keys {
        if let Err(error) = keys::set(draft, section.name, key.name, key.value, read) {
            errors.push((key.line, error));
        }
    }
}

/// What is wrong with a section as a whole.
fn section_faults(section: &Section, draft: &Draft, has_irc: bool) -> Vec<ErrorKind> {
    let mut faults = Vec::new();
    let has = |key: &str| section.keys.iter().any(|k| keys::canonical(k.name) == key);
    let mut check = |holds: bool, fault: &'static str| {
        if !holds {
            faults.push(ErrorKind::Section(fault));
        }
    };
    check(
        has("tls_cert_file") == has("tls_key_file"),
        "`tls_cert_file` and `tls_key_file` need each other",
    );
    check(
        section.name == "channel" || section.label.is_empty(),
        "only [channel #name] takes a name",
    );
    match section.name {
        "buildbot" => {
            check(has("url"), "[buildbot] needs `url`");
            check(
                has("user") == has("password"),
                "`user` and `password` need each other",
            );
            check(
                has("proxy_user") == has("proxy_password"),
                "`proxy_user` and `proxy_password` need each other",
            );
        }
        "irc" => {
            let irc = &draft.irc;
            check(has("host"), "[irc] needs `host`");
            check(has("nick"), "[irc] needs `nick`");
            check(
                irc.sasl != Sasl::Plain || has("password"),
                "`sasl = plain` needs `password` or `password_file`",
            );
            check(
                irc.sasl != Sasl::External || irc.use_ssl && has("tls_cert_file"),
                "`sasl = external` needs `use_ssl = yes`, `tls_cert_file` and `tls_key_file`",
            );
        }
        "channel" => {
            let is_name = is_channel(section.label) && !section.label.contains([' ', ',']);
            check(is_name, "a channel's section is written [channel #name]");
            check(has_irc, "[channel] needs a section [irc]");
        }
        "nicks" | "authorization" | "bot" => {}
        unknown => faults.push(ErrorKind::UnknownSection {
            name: unknown.to_owned(),
            suggestion: error::suggestion(unknown, keys::SECTIONS.into_iter()),
        }),
    }
    faults
}

/// What is allowed but hardly meant.
fn warnings(file: &str, sections: &[Section], draft: &Draft) -> Vec<String> {
    let mut warnings = Vec::new();
    let everyone = Some(&[Who::Everyone][..]);
    if draft.authorization.default.as_deref() == everyone {
        let open = |command: &&&str| !draft.authorization.lines.contains_key(**command);
        let opened: Vec<&str> = CLOSED.iter().filter(open).copied().collect();
        let keys = sections.iter().filter(|s| s.name == "authorization");
        let line = keys
            .flat_map(|section| &section.keys)
            .find(|key| key.name == "default")
            .map_or(0, |key| key.line);
        if !opened.is_empty() {
            let opened = opened.join(" ");
            warnings.push(format!(
                "{file}:{line}: `default = everyone` lets everyone use {opened}"
            ));
        }
    }
    for section in sections {
        for key in &section.keys {
            let is_list = matches!(key.name, "builders" | "branches" | "tags" | "categories");
            if is_list && key.value.contains(',') {
                warnings.push(format!(
                    "{file}:{}: `{}`: a list is separated by blanks; a comma is a part of the name",
                    key.line, key.name
                ));
            }
        }
    }
    warnings
}

/// The defaults that hang on other keys.
fn complete(irc: &mut Irc, master: &Url) {
    if irc.port == 0 {
        irc.port = if irc.use_ssl { 6697 } else { 6667 };
    }
    if irc.realname.is_empty() {
        let version = env!("CARGO_PKG_VERSION");
        irc.realname = format!("buildbot-irc {version} for {master}");
    }
    if irc.account.is_empty() {
        irc.account = irc.nick.clone();
    }
    if irc.username.is_empty() {
        // Servers allow little in a user name: the letters and digits of the nick.
        let letters = irc.nick.chars().filter(char::is_ascii_alphanumeric);
        irc.username = letters.collect();
    }
    if irc.username.is_empty() {
        irc.username = "buildbot".to_owned();
    }
}

#[cfg(test)]
pub mod tests;
