//! The table of keys: one row a key, with its section, its name and how to set it.

use super::error::{ErrorKind, suggestion};
use super::values::{Value, ValueError};
use super::{COMMANDS, Draft, ReadFile, TargetSettings, Who};

/// All sections, in the order in which they are read: channels begin with what `[irc]` says.
pub const SECTIONS: [&str; 6] = [
    "buildbot",
    "irc",
    "channel",
    "nicks",
    "authorization",
    "bot",
];

type Set = fn(&mut Draft, &Value) -> Result<(), ValueError>;
type SetForTarget = fn(&mut TargetSettings, &Value) -> Result<(), ValueError>;

const KEYS: &[(&str, &str, Set)] = &[
    ("buildbot", "url", |d, v| {
        store(&mut d.buildbot.url, v.url())
    }),
    ("buildbot", "user", |d, v| {
        some(&mut d.buildbot.user, Ok(v.text()))
    }),
    ("buildbot", "password", |d, v| {
        some(&mut d.buildbot.password, Ok(v.secret()))
    }),
    ("buildbot", "password_file", |d, v| {
        some(&mut d.buildbot.password, v.secret_of_file())
    }),
    ("buildbot", "proxy_user", |d, v| {
        some(&mut d.buildbot.proxy_user, Ok(v.text()))
    }),
    ("buildbot", "proxy_password", |d, v| {
        some(&mut d.buildbot.proxy_password, Ok(v.secret()))
    }),
    ("buildbot", "proxy_password_file", |d, v| {
        some(&mut d.buildbot.proxy_password, v.secret_of_file())
    }),
    ("buildbot", "poll_interval", |d, v| {
        store(&mut d.buildbot.poll_interval, v.duration())
    }),
    ("buildbot", "event_stream", |d, v| {
        store(&mut d.buildbot.event_stream, v.boolean())
    }),
    ("buildbot", "timeout", |d, v| {
        store(&mut d.buildbot.timeout, v.duration())
    }),
    ("buildbot", "tls_ca_file", |d, v| {
        some(&mut d.buildbot.tls.ca, v.file())
    }),
    ("buildbot", "tls_cert_file", |d, v| {
        some(&mut d.buildbot.tls.cert, v.file())
    }),
    ("buildbot", "tls_key_file", |d, v| {
        some(&mut d.buildbot.tls.key, whole_file(v))
    }),
    ("irc", "host", |d, v| store(&mut d.irc.host, v.host())),
    ("irc", "port", |d, v| store(&mut d.irc.port, v.port())),
    ("irc", "use_ssl", |d, v| {
        store(&mut d.irc.use_ssl, v.boolean())
    }),
    ("irc", "tls_ca_file", |d, v| {
        some(&mut d.irc.tls.ca, v.file())
    }),
    ("irc", "tls_cert_file", |d, v| {
        some(&mut d.irc.tls.cert, v.file())
    }),
    ("irc", "tls_key_file", |d, v| {
        some(&mut d.irc.tls.key, whole_file(v))
    }),
    ("irc", "server_password", |d, v| {
        some(&mut d.irc.server_password, Ok(v.secret()))
    }),
    ("irc", "server_password_file", |d, v| {
        some(&mut d.irc.server_password, v.secret_of_file())
    }),
    ("irc", "nick", |d, v| store(&mut d.irc.nick, v.nick())),
    ("irc", "alt_nicks", |d, v| {
        store(&mut d.irc.alt_nicks, v.nicks())
    }),
    ("irc", "username", |d, v| {
        store(&mut d.irc.username, v.one_word())
    }),
    ("irc", "realname", |d, v| {
        store(&mut d.irc.realname, Ok(v.text()))
    }),
    ("irc", "password", |d, v| {
        some(&mut d.irc.password, Ok(v.secret()))
    }),
    ("irc", "password_file", |d, v| {
        some(&mut d.irc.password, v.secret_of_file())
    }),
    ("irc", "nickserv", |d, v| {
        store(&mut d.irc.nickserv, v.one_word())
    }),
    ("irc", "identify", |d, v| {
        some(&mut d.irc.identify, v.identify())
    }),
    ("irc", "sasl", |d, v| store(&mut d.irc.sasl, v.sasl())),
    ("irc", "account", |d, v| {
        store(&mut d.irc.account, v.one_word())
    }),
    ("irc", "ping_timeout", |d, v| {
        store(&mut d.irc.ping_timeout, v.duration())
    }),
    ("irc", "pacing", |d, v| store(&mut d.irc.pacing, v.pacing())),
    ("irc", "pm_to_nicks", |d, v| {
        store(&mut d.irc.pm_to_nicks, v.nicks())
    }),
    ("irc", "allow_force", allow_force),
    ("channel", "password", |d, v| {
        channel_key(d, v.channel_key())
    }),
    ("channel", "password_file", |d, v| {
        let key = v.secret_of_file()?.0;
        channel_key(
            d,
            Value {
                text: &key,
                read: v.read,
            }
            .channel_key(),
        )
    }),
    ("authorization", "default", |d, v| {
        some(&mut d.authorization.default, v.who())
    }),
    ("bot", "state_file", |d, v| {
        some(&mut d.state_file, Ok(v.text()))
    }),
    ("bot", "catch_up", |d, v| {
        store(&mut d.catch_up, v.duration())
    }),
];

/// Keys of every channel; in `[irc]` they are the defaults.
const TARGET_KEYS: &[(&str, SetForTarget)] = &[
    ("notify_events", |s, v| store(&mut s.events, v.events())),
    ("categories", |s, v| store(&mut s.tags, v.filter())),
    ("tags", |s, v| store(&mut s.tags, v.filter())),
    ("builders", |s, v| store(&mut s.builders, v.filter())),
    ("branches", |s, v| store(&mut s.branches, v.filter())),
    ("announce", |s, v| store(&mut s.announce, v.announce())),
    ("pm_blamed", |s, v| store(&mut s.pm_blamed, v.boolean())),
    ("notice_on_channel", |s, v| {
        store(&mut s.notice, v.boolean())
    }),
    ("use_colors", |s, v| store(&mut s.colors, v.boolean())),
    ("use_revisions", |s, v| store(&mut s.revisions, v.boolean())),
    ("show_blame_list", |s, v| store(&mut s.blame, v.boolean())),
];

/// Sets one key of a section.
pub fn set(
    draft: &mut Draft,
    section: &str,
    key: &str,
    text: &str,
    read: &ReadFile,
) -> Result<(), ErrorKind> {
    if !SECTIONS.contains(&section) {
        return Ok(()); // that is an error of its own
    }
    let value = Value { text, read };
    let result = if text.is_empty() {
        Err(ValueError::Empty)
    } else if let Some((_, _, set)) = KEYS.iter().find(|row| row.0 == section && row.1 == key) {
        set(draft, &value)
    } else if let Some((_, set)) = target_key(section, key) {
        set(target_settings(draft, section), &value)
    } else if section == "nicks" {
        set_nick(draft, key, &value)
    } else if section == "authorization" && COMMANDS.contains(&key) {
        set_authority(draft, key, &value)
    } else {
        let has_it = |other: &&&str| names(other).any(|name| name == key);
        return Err(ErrorKind::UnknownKey {
            key: key.to_owned(),
            section: section.to_owned(),
            home: SECTIONS.iter().find(has_it).copied(),
            suggestion: suggestion(key, names(section)),
        });
    };
    result.map_err(|error| ErrorKind::Value {
        key: key.to_owned(),
        error,
        has_comment: text.contains(" #"),
    })
}

/// The names of all keys of a section.
pub fn names(section: &str) -> impl Iterator<Item = &'static str> {
    let own = KEYS.iter().filter(move |row| row.0 == section);
    let has_target_keys = matches!(section, "irc" | "channel");
    let of_targets = TARGET_KEYS.iter().filter(move |_| has_target_keys);
    let commands = COMMANDS.iter().filter(move |_| section == "authorization");
    own.map(|row| row.1)
        .chain(of_targets.map(|row| row.0))
        .chain(commands.copied())
}

/// Whether two keys of a section set the same thing.
pub fn is_same(section: &str, one: &str, other: &str) -> bool {
    if section == "nicks" {
        return one.to_lowercase() == other.to_lowercase();
    }
    canonical(one) == canonical(other)
}

/// What a key sets: a password may come from a file, and one key has two names.
pub fn canonical(key: &str) -> &str {
    match key.strip_suffix("_file") {
        Some(stem) if stem.ends_with("password") => stem,
        _ if key == "categories" => "tags",
        _ => key,
    }
}

fn target_key(section: &str, key: &str) -> Option<&'static (&'static str, SetForTarget)> {
    let has_target_keys = matches!(section, "irc" | "channel");
    let row = TARGET_KEYS.iter().find(|row| row.0 == key);
    row.filter(|_| has_target_keys)
}

/// The settings that a section sets: those of the newest channel, or the defaults.
fn target_settings<'a>(draft: &'a mut Draft, section: &str) -> &'a mut TargetSettings {
    match draft.irc.channels.last_mut() {
        Some(channel) if section == "channel" => &mut channel.settings,
        _ => &mut draft.irc.defaults,
    }
}

fn store<T>(place: &mut T, value: Result<T, ValueError>) -> Result<(), ValueError> {
    *place = value?;
    Ok(())
}

fn some<T>(place: &mut Option<T>, value: Result<T, ValueError>) -> Result<(), ValueError> {
    *place = Some(value?);
    Ok(())
}

/// A key in PEM form is a secret of many lines.
fn whole_file(value: &Value) -> Result<super::Secret, ValueError> {
    let bytes = value.file()?;
    Ok(super::Secret(String::from_utf8_lossy(&bytes).into_owned()))
}

fn channel_key(draft: &mut Draft, key: Result<String, ValueError>) -> Result<(), ValueError> {
    let key = key?;
    if let Some(channel) = draft.irc.channels.last_mut() {
        channel.key = Some(super::Secret(key));
    }
    Ok(())
}

/// `allow_force = yes` is short for `force = everyone` and `stop = everyone`.
fn allow_force(draft: &mut Draft, value: &Value) -> Result<(), ValueError> {
    let allowed = value.boolean()?;
    draft.allow_force = Some(allowed);
    let who = if allowed { Who::Everyone } else { Who::Nobody };
    for command in ["force", "stop"] {
        let lines = &mut draft.authorization.lines;
        lines.insert(command.to_owned(), vec![who.clone()]);
    }
    Ok(())
}

fn set_nick(draft: &mut Draft, author: &str, value: &Value) -> Result<(), ValueError> {
    let nick = value.nick()?;
    draft.nicks.0.insert(author.to_lowercase(), nick);
    Ok(())
}

fn set_authority(draft: &mut Draft, command: &str, value: &Value) -> Result<(), ValueError> {
    if matches!(command, "force" | "stop") && draft.allow_force == Some(true) {
        return Err(ValueError::AllowForce);
    }
    let list = value.who()?;
    let lines = &mut draft.authorization.lines;
    lines.insert(command.to_owned(), list);
    Ok(())
}
