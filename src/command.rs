//! The commands: one table, and what each says.
//!
//! Pure: a command sees the shared status and answers with lines, with something to be done, or with
//! a job for the worker, after which it is asked once more.

use crate::config::{self, Who};
use crate::irc::wire::{Casemapping, is_channel};
use crate::master::worker::{Job, Order};
use crate::status::{
    self, Build, Builder, EVENT_NAMES, Events, Settings, Status, Target, Worker, glob,
};
use crate::text::{self, clean, nearest, quoted};
use std::collections::BTreeMap;

/// The most builders or steps that one command asks the master for.
const LOOK_UPS: usize = 10;
/// Channels and people who are told of builds; more people may not ask for it.
const TARGETS: usize = 200;
/// `list changes` shows so many, and never more than a page.
pub const CHANGES: usize = 5;

/// Who asks, where, and what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ask {
    /// Where the answer goes: the channel, or the nick that asked in private.
    pub place: String,
    pub nick: String,
    pub mask: String, // `nick!user@host`
    pub text: String,
    pub op: bool,       // is an operator of the channel
    pub own_only: bool, // may `stop` no more than requests of their own
    pub account: Account,
}

/// What is known of someone's services account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Account {
    #[default]
    Unknown,
    None,
    Is(String),
}

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Lines to say, and something to do first.
    Say(Vec<String>, Option<Effect>),
    /// Lines to say, and how many more there are.
    Lines(Vec<String>, usize),
    /// Items to say on as few lines as they need, behind a heading.
    List { head: String, items: Vec<String> },
    /// Ask the master first, then the command once more.
    First(Job),
}

/// What a command changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    Notify(Events),
    MuteUntil(i64),
    Join(String, String),
    Leave(String),
    Watch(Vec<u64>), // the builds of these requests
}

/// What a command can see.
pub struct View<'a> {
    pub status: &'a Status,
    pub settings: &'a Settings, // how the place wants its lines, and what it hears
    pub now: i64,               // seconds since the epoch
    pub again: bool,            // the master has been asked already
    pub most: usize,            // lines that can be said
    pub nick: &'a str,          // ours; empty without IRC
}

/// The error is what was wrong, and how to do better.
type Reply = Result<Answer, String>;

struct Command {
    name: &'static str,
    alone: bool, // works without IRC, too
    run: fn(&str, &Ask, &View) -> Reply,
}

static TABLE: [Command; 16] = [
    Command {
        name: "list",
        alone: true,
        run: list,
    },
    Command {
        name: "status",
        alone: true,
        run: |rest, _, view| each_builder(rest, view, true, text::status_line),
    },
    Command {
        name: "last",
        alone: true,
        run: |rest, _, view| each_builder(rest, view, false, text::last_line),
    },
    Command {
        name: "watch",
        alone: false,
        run: watch,
    },
    Command {
        name: "notify",
        alone: false,
        run: notify,
    },
    Command {
        name: "mute",
        alone: false,
        run: mute,
    },
    Command {
        name: "unmute",
        alone: false,
        run: unmute,
    },
    Command {
        name: "join",
        alone: false,
        run: join,
    },
    Command {
        name: "leave",
        alone: false,
        run: leave,
    },
    Command {
        name: "force",
        alone: true,
        run: force,
    },
    Command {
        name: "stop",
        alone: true,
        run: stop,
    },
    Command {
        name: "help",
        alone: true,
        run: help,
    },
    Command {
        name: "commands",
        alone: true,
        run: |_, _, _| say(all_commands()),
    },
    Command {
        name: "source",
        alone: true,
        run: |_, _, _| say("Buildbot: https://buildbot.net/"),
    },
    Command {
        name: "version",
        alone: true,
        run: version,
    },
    Command {
        name: "hello",
        alone: true,
        run: hello,
    },
];

/// A line a command: how it is written, a colon, and what it does.
const MANUAL: &str = include_str!("help.txt");

fn manual(name: &str) -> &'static str {
    MANUAL
        .lines()
        .find(|line| line.split([' ', ':']).next() == Some(name))
        .unwrap_or("")
}

fn usage(name: &str) -> String {
    format!("usage: {}", manual(name).split(": ").next().unwrap_or(""))
}

/// The name of the command that a text asks for, if there is one, and the text behind it.
pub fn name(text: &str) -> (String, &str) {
    let (word, rest) = text
        .trim()
        .split_once(char::is_whitespace)
        .unwrap_or((text.trim(), ""));
    (word.to_lowercase(), rest.trim())
}

/// The command of a name, or what there is instead.
fn find(name: &str, lead: &str, advice: &str) -> Result<&'static Command, String> {
    TABLE.iter().find(|c| c.name == name).ok_or_else(|| {
        let near = nearest(name, TABLE.iter().map(|c| c.name))
            .map(|near| format!("did you mean `{near}`?"));
        format!(
            "{lead} `{}`; {}",
            clean(name),
            near.as_deref().unwrap_or(advice)
        )
    })
}

/// Whether the command that a text asks for looks at the master's state.
pub fn asks_master(text: &str) -> bool {
    let (name, _) = name(text);
    find(&name, "", "").is_ok() && !["help", "commands", "source"].contains(&name.as_str())
}

/// A command as the log may show it: without the key of a channel, which may stand behind a mistyped
/// word, too.
pub fn shown(text: &str) -> String {
    let (name, rest) = name(text);
    let rest = match name.as_str() {
        "join" => rest.split(char::is_whitespace).next().unwrap_or(""),
        known if TABLE.iter().any(|c| c.name == known) => rest,
        _ => "",
    };
    format!("{} {}", clean(&name), clean(rest))
        .trim()
        .to_owned()
}

/// Runs the command that was asked for. Whether the asker may was decided before.
pub fn run(ask: &Ask, view: &View) -> Reply {
    let (name, rest) = name(&ask.text);
    if name.is_empty() {
        return Err("yes? try `help`".into());
    }
    let command = find(&name, "unknown command", "try `help`")?;
    if !command.alone && view.nick.is_empty() {
        return Err(format!("{name}: this works on IRC only"));
    }
    // Words in brackets may be left out.
    let usage = usage(&name);
    let needed = usage
        .split(' ')
        .skip(2)
        .filter(|word| !word.starts_with('['))
        .count();
    if config::words(rest).is_ok_and(|words| words.len() < needed) {
        return Err(usage);
    }
    (command.run)(rest, ask, view)
}

/// What someone hears who may not: that, and no more.
pub fn refusal(ask: &Ask, name: &str) -> String {
    format!("sorry, {}, `{name}` is not for you", clean(&ask.nick))
}

/// Whether a command may be used, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    No,
    /// It hangs on the asker's account, which has to be found out.
    NeedsAccount,
    Yes,
}

/// Decides who may use a command. A command that the rules do not name is everyone's; but what some
/// may `mute`, others must not undo.
pub fn may(
    rules: &BTreeMap<String, Vec<Who>>,
    command: &str,
    ask: &Ask,
    mapping: Casemapping,
) -> Verdict {
    let like = if command == "unmute" { "mute" } else { command };
    let Some(list) = rules.get(command).or(rules.get(like)) else {
        return Verdict::Yes;
    };
    let verdict = |who: &Who| {
        let fits = match (who, &ask.account) {
            (Who::Everyone, _) => true,
            (Who::Nobody, _) => false,
            (Who::Op, _) => ask.op,
            (Who::Mask(mask), _) => glob(&mapping.fold(mask), &mapping.fold(&ask.mask)),
            (Who::Account(name), Account::Is(account)) => mapping.same(name, account),
            (Who::Account(_), Account::None) => false,
            (Who::Account(_), Account::Unknown) => return Verdict::NeedsAccount,
        };
        if fits { Verdict::Yes } else { Verdict::No }
    };
    list.iter().map(verdict).max().unwrap_or(Verdict::No)
}

fn say(line: impl Into<String>) -> Reply {
    Ok(Answer::Say(vec![line.into()], None))
}

/// Whether there is room for one more place to tell.
fn room(ask: &Ask, view: &View) -> Result<(), String> {
    let targets = &view.status.targets;
    let hears = |t: &&Target| t.muted_until > view.now || !t.settings.events.is_empty();
    let room = targets.iter().filter(hears).count() < TARGETS
        || targets.iter().any(|t| t.name == ask.place);
    if room {
        Ok(())
    } else {
        Err("I have too many to tell already".into())
    }
}

fn doing(effect: Effect, line: impl Into<String>) -> Reply {
    Ok(Answer::Say(vec![line.into()], Some(effect)))
}

/// The line that stands in front of answers while the master is away.
fn stale(view: &View) -> Option<String> {
    let trouble = view.status.trouble.as_ref()?;
    Some(match view.status.reached {
        Some(at) => format!(
            "the master does not answer; as of {} ago:",
            text::duration(view.now - at)
        ),
        None => format!("the master has not answered yet: {}", clean(trouble)),
    })
}

/// A sentence from what is known: with its age, while the master is away.
fn aged(view: &View, line: String) -> String {
    match stale(view) {
        Some(why) if view.status.reached.is_none() => why,
        Some(age) => format!("{age} {line}"),
        None => line,
    }
}

/// The builders that a text names, quoted or not; see [`named`].
fn builders<'a>(text: &str, view: &View<'a>) -> Result<Vec<&'a Builder>, String> {
    named(
        &config::words(text).map_or(text.to_owned(), |words| words.join(" ")),
        text,
        view,
    )
}

/// All builders, one by its name or by the text as it came, or some by a glob; sorted by name.
fn named<'a>(name: &str, text: &str, view: &View<'a>) -> Result<Vec<&'a Builder>, String> {
    let mut all: Vec<&Builder> = view.status.builders.values().collect();
    if let Some(builder) = all.iter().find(|b| b.name == name || b.name == text) {
        return Ok(vec![builder]);
    }
    all.sort_unstable_by_key(|b| &b.name);
    if name.is_empty() || name == "all" {
        return Ok(all);
    }
    // Names that came through the wire have lost what `clean` takes out.
    let found: Vec<&Builder> = all
        .iter()
        .copied()
        .filter(|b| glob(name, &clean(&b.name)))
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let near = nearest(name, all.iter().map(|b| b.name.as_str()));
    let hint = near.map_or("`list all builders` shows them".into(), |near| {
        format!("did you mean {}?", quoted(near))
    });
    Err(aged(view, format!("no builder {}; {hint}", quoted(name))))
}

/// A line about one builder, see [`text`].
type Line = fn(&Status, &Builder, &Settings, i64) -> String;

/// Answers with a line a builder, after asking for what is not known, if that is little.
fn each_builder(text: &str, view: &View, steps: bool, line: Line) -> Reply {
    let found = builders(text, view)?;
    if !view.again && view.status.trouble.is_none() {
        let shown = found.iter().take(view.most);
        let unknown = shown
            .clone()
            .filter(|b| b.last.is_none() && !b.asked)
            .map(|b| b.id);
        let running = shown
            .flat_map(|b| view.status.running(b.id))
            .filter(|_| steps)
            .map(|b| b.id);
        let builders: Vec<u64> = unknown.take(LOOK_UPS).collect();
        let steps: Vec<u64> = running.take(LOOK_UPS).collect();
        if !builders.is_empty() || !steps.is_empty() {
            return Ok(Answer::First(Job::Facts { builders, steps }));
        }
    }
    let more = found.len().saturating_sub(view.most);
    let lines = found
        .into_iter()
        .take(view.most)
        .map(|b| line(view.status, b, view.settings, view.now));
    let mut lines: Vec<String> = stale(view).into_iter().chain(lines).collect();
    if lines.is_empty() {
        lines.push("the master has no builders".into());
    }
    Ok(Answer::Lines(lines, more))
}

fn list(rest: &str, _: &Ask, view: &View) -> Reply {
    let (mut all, mut most, mut what) = (false, None, "");
    for word in rest.split_whitespace() {
        match (word, word.parse::<usize>()) {
            ("all", _) => all = true,
            (_, Ok(n)) if n > 0 => most = Some(n),
            ("builders" | "workers" | "changes", _) if what.is_empty() => what = word,
            _ => return Err(usage("list")),
        }
    }
    let marks = |marks: &[(bool, &str)]| {
        let marks: Vec<&str> = marks.iter().filter(|m| m.0).map(|m| m.1).collect();
        if marks.is_empty() {
            String::new()
        } else {
            format!(" [{}]", marks.join(", "))
        }
    };
    let status = view.status;
    let mut named: Vec<(&str, String)> = match what {
        "builders" => {
            let online = |b: &Builder| status.workers_of(b.id).any(|w| w.online);
            status
                .builders
                .values()
                .map(|b| (b.name.as_str(), marks(&[(!online(b), "offline")])))
                .collect()
        }
        "workers" => {
            let marked = |w: &Worker| {
                marks(&[
                    (!w.online, "offline"),
                    (w.missing, "missing"),
                    (w.paused, "paused"),
                ])
            };
            // The master remembers those that it had.
            let listed = status
                .workers
                .values()
                .filter(|w| all || !w.builders.is_empty());
            listed.map(|w| (w.name.as_str(), marked(w))).collect()
        }
        "changes" => {
            let count = if all {
                usize::MAX
            } else {
                most.unwrap_or(CHANGES)
            };
            let known = status.changes.values().rev().take(count);
            let lines = Answer::Lines(stale(view).into_iter().chain(known.cloned()).collect(), 0);
            return Ok(if status.changes.len() < count {
                Answer::First(Job::Changes(count))
            } else {
                lines
            });
        }
        _ => return Err(usage("list")),
    };
    named.sort_unstable();
    let total = named.len();
    let mut head = text::count(total, what.trim_end_matches('s'));
    if what == "builders" && !all {
        named.retain(|(_, marks)| marks.is_empty());
    }
    if named.len() < total {
        head += &format!(" ({} offline: list all builders)", total - named.len());
    }
    head = aged(view, head);
    named.truncate(most.unwrap_or(usize::MAX));
    Ok(Answer::List {
        head,
        items: named
            .into_iter()
            .map(|(name, marks)| quoted(name) + &marks)
            .collect(),
    })
}

fn watch(rest: &str, _: &Ask, view: &View) -> Reply {
    let found = builders(rest, view)?;
    let running: Vec<(&Builder, &Build)> = found
        .iter()
        .flat_map(|&b| view.status.running(b.id).map(move |build| (b, build)))
        .collect();
    if running.is_empty() && !view.again {
        let builders = found.iter().take(LOOK_UPS).map(|b| b.id).collect();
        return Ok(Answer::First(Job::Facts {
            builders,
            steps: vec![],
        }));
    }
    if running.is_empty() {
        let what = if let [one] = found[..] {
            clean(&one.name)
        } else {
            "none of them".into()
        };
        return say(aged(
            view,
            format!("{what}: not building now; `notify on finished` tells of every build"),
        ));
    }
    let labels = running.iter().map(|(builder, build)| {
        let left = builder
            .typical()
            .map(|t| t - build.seconds(view.now))
            .filter(|&left| left > 0);
        let left = left.map_or(String::new(), |l| {
            format!(" (about {} to go)", text::duration(l))
        });
        format!("{} #{}{left}", clean(&builder.name), build.number)
    });
    let line = format!("watching {}", labels.collect::<Vec<_>>().join(", "));
    doing(
        Effect::Watch(
            running
                .iter()
                .filter_map(|(_, build)| build.buildrequestid)
                .collect(),
        ),
        line,
    )
}

fn notify(rest: &str, ask: &Ask, view: &View) -> Reply {
    let (what, names) = name(rest);
    let named = status::events(names).map_err(|name| {
        let near = nearest(name, EVENT_NAMES.split(' '));
        let hint = near.map_or("`help notify` lists them".into(), |n| {
            format!("did you mean {n}?")
        });
        format!("notify: unknown event `{}`; {hint}", clean(name))
    })?;
    if what == "on" {
        room(ask, view)?;
    }
    let on = &view.settings.events;
    let next = match (what.as_str(), named.is_empty()) {
        ("list", _) => on.clone(),
        ("on", true) => on | &["started", "finished"].map(str::to_owned).into(),
        ("on", false) => on | &named,
        ("off", true) => Events::new(),
        ("off", false) => on - &named,
        _ => return Err(usage("notify")),
    };
    let names: Vec<&str> = EVENT_NAMES
        .split(' ')
        .filter(|n| next.contains(*n))
        .collect();
    let line = match names.is_empty() {
        true => "notify is off: nothing is announced here".to_owned(),
        false => format!("notify is on for {}", names.join(" ")),
    };
    if what == "list" {
        say(line)
    } else {
        doing(Effect::Notify(next), line)
    }
}

fn mute(rest: &str, ask: &Ask, view: &View) -> Reply {
    room(ask, view)?;
    if rest.is_empty() {
        return doing(Effect::MuteUntil(i64::MAX), "muted; `unmute` ends it");
    }
    let time = config::duration(rest).map_err(|why| format!("mute: {}", clean(&why)))?;
    let seconds = time.as_secs().max(1) as i64;
    doing(
        Effect::MuteUntil(view.now + seconds),
        format!("muted for {}", text::duration(seconds)),
    )
}

fn unmute(_: &str, ask: &Ask, view: &View) -> Reply {
    let muted = view
        .status
        .targets
        .iter()
        .any(|t| t.name == ask.place && t.muted_until > view.now);
    if muted {
        doing(Effect::MuteUntil(0), "unmuted")
    } else {
        say("nothing is muted here")
    }
}

fn join(rest: &str, _: &Ask, _: &View) -> Reply {
    let (channel, key) = rest.split_once(' ').unwrap_or((rest, ""));
    if !is_channel(channel) || channel.contains([',', '\u{7}']) || key.contains([' ', ',']) {
        return Err("join: a channel is written #name, a key without blanks behind it".into());
    }
    doing(
        Effect::Join(channel.into(), key.into()),
        format!("joining {}", clean(channel)),
    )
}

fn leave(rest: &str, ask: &Ask, view: &View) -> Reply {
    let channel = if rest.is_empty() { &ask.place } else { rest };
    if !is_channel(channel) || channel.contains(' ') {
        return Err("leave: which channel? It is written #name".into());
    }
    if !view
        .status
        .targets
        .iter()
        .any(|t| Casemapping::Rfc1459.same(&t.name, channel))
    {
        return Err(format!("leave: {} is no channel of mine", clean(channel)));
    }
    // Whoever is there sees us go, and why.
    let lines = if *channel == *ask.place {
        vec![]
    } else {
        vec![format!("leaving {}", clean(channel))]
    };
    Ok(Answer::Say(lines, Some(Effect::Leave(channel.to_owned()))))
}

/// The builder that comes first in a text, and the reason behind it, signed as the master records
/// it: who asks, where, and why.
fn builder_and_reason<'a>(
    text: &str,
    ask: &Ask,
    view: &View<'a>,
) -> Result<(&'a Builder, String), String> {
    let usage = || usage(&name(&ask.text).0);
    let (word, reason) = config::word(text)?.ok_or_else(usage)?;
    let found = named(&word, &word, view)?;
    let [builder] = found[..] else {
        return Err(format!("one builder, please: {} is not one", quoted(&word)));
    };
    if reason.is_empty() {
        return Err(usage());
    }
    let place = if is_channel(&ask.place) {
        format!(" in {}", ask.place)
    } else {
        String::new()
    };
    let who = match &ask.account {
        _ if ask.mask.is_empty() => "the command line".to_owned(),
        Account::Is(account) => format!("{}, account {}", ask.nick, clean(account)),
        _ => ask.nick.clone(),
    };
    Ok((builder, format!("{} ({who}{place})", text::whole(reason))))
}

fn force(rest: &str, ask: &Ask, view: &View) -> Reply {
    let mut rest = rest.strip_prefix("build ").ok_or_else(|| usage("force"))?;
    let mut order = Order::default();
    while rest.trim_start().starts_with("--") {
        let (option, after) = config::word(rest)
            .map_err(|why| format!("force: {why}"))?
            .unwrap_or_default();
        rest = after;
        let (key, value) = option[2..].split_once('=').unwrap_or((&option[2..], ""));
        let value = value.to_owned();
        match key {
            "codebase" | "scheduler" | "branch" | "revision" | "props" if value.is_empty() => {
                return Err(format!("force: write --{key}=VALUE"));
            }
            "codebase" => order.codebase = Some(value),
            "scheduler" => order.scheduler = Some(value),
            "branch" | "revision" => order.source.push((key.to_owned(), value)),
            "props" => {
                for pair in value.split(',') {
                    let (name, value) = pair
                        .split_once('=')
                        .ok_or("force: write --props=NAME=VALUE,…")?;
                    order.properties.push((name.to_owned(), value.to_owned()));
                }
            }
            _ => {
                return Err(format!(
                    "force: no option --{}; see `help force`",
                    clean(key)
                ));
            }
        }
    }
    let (builder, reason) = builder_and_reason(rest, ask, view)?;
    (order.builder, order.name, order.reason) = (builder.id, builder.name.clone(), reason);
    // Schedulers insist on an address; this one can never be written to (RFC 2606).
    order.who = format!("{nick} <{nick}@irc.invalid>", nick = ask.nick);
    Ok(Answer::First(Job::Force(order)))
}

fn stop(rest: &str, ask: &Ask, view: &View) -> Reply {
    let rest = rest.strip_prefix("build ").ok_or_else(|| usage("stop"))?;
    let (builder, reason) = builder_and_reason(rest, ask, view)?;
    let own = view
        .status
        .watches
        .iter()
        .filter(|w| w.mask == ask.mask)
        .map(|w| w.request);
    let own: Vec<u64> = own
        .filter(|id| view.status.queued.get(id) == Some(&builder.id))
        .collect();
    if ask.own_only && own.is_empty() {
        return Err(refusal(ask, "stop"));
    }
    let only = ask.own_only.then_some(own);
    Ok(Answer::First(Job::Stop {
        builder: builder.id,
        name: builder.name.clone(),
        reason,
        only,
    }))
}

fn help(rest: &str, _: &Ask, view: &View) -> Reply {
    let nick = if view.nick.is_empty() {
        "NICK"
    } else {
        view.nick
    };
    let call = format!("say `{nick}: COMMAND` in a channel, or COMMAND to me alone");
    match name(rest).0.as_str() {
        "" => say(format!(
            "{call}; {}; `help COMMAND` tells more",
            all_commands()
        )),
        "commands" => say(all_commands()),
        name => say(manual(
            find(name, "help: no command", "try `commands`")?.name,
        )),
    }
}

fn all_commands() -> String {
    format!(
        "commands: {}",
        TABLE.iter().map(|c| c.name).collect::<Vec<_>>().join(" ")
    )
}

fn version(_: &str, _: &Ask, view: &View) -> Reply {
    let master = match view.status.version.as_str() {
        "" => "the master has not told its version".to_owned(),
        version => format!("Buildbot {} at {}", clean(version), view.status.url),
    };
    say(format!(
        "buildbot-irc {}; {master}",
        env!("CARGO_PKG_VERSION")
    ))
}

fn hello(_: &str, ask: &Ask, view: &View) -> Reply {
    let count = view.status.builders.len();
    let watching = if count > 0 {
        format!("I watch {}, ", text::count(count, "builder"))
    } else {
        String::new()
    };
    say(format!(
        "hello, {}; {watching}try `status` or `help`",
        clean(&ask.nick)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;
    use crate::status;
    use crate::status::Outcome::{Failure, Success};
    use crate::status::tests::{build, settings, status as new_status};

    fn reply(status: &Status, text: &str, again: bool) -> Reply {
        let ask = Ask {
            place: "#c".into(),
            nick: "joe".into(),
            text: text.into(),
            ..Ask::default()
        };
        let settings = settings("failure");
        run(
            &ask,
            &View {
                status,
                settings: &settings,
                now: 1120,
                again,
                most: usize::MAX,
                nick: "bot",
            },
        )
    }

    fn answer(status: &Status, text: &str, again: bool) -> Answer {
        reply(status, text, again).unwrap()
    }

    /// The lines of an answer, or the one that says what was wrong.
    fn lines(status: &Status, text: &str) -> Vec<String> {
        match reply(status, text, true).unwrap_or_else(|why| Answer::Say(vec![why], None)) {
            Answer::Say(lines, _) | Answer::Lines(lines, _) => lines,
            Answer::List { head, items } => vec![format!("{head}: {}", items.join(", "))],
            Answer::First(job) => panic!("{text}: {job:?}"),
        }
    }

    #[test]
    fn every_wrong_command_gets_one_line_that_helps() {
        let s = new_status(&["linux", "mac os"], "");
        for (text, reply) in [
            ("", "yes? try `help`"),
            ("stauts", "unknown command `stauts`; did you mean `status`?"),
            (
                "frobnicate\u{2}\u{3}4 x",
                "unknown command `frobnicate 4`; try `help`",
            ),
            ("watch", "usage: watch BUILDER"),
            ("stop build b", "usage: stop build BUILDER REASON"),
            ("watch linx", "no builder linx; did you mean linux?"),
            ("status macos", "no builder macos; did you mean \"mac os\"?"),
            (
                "status zzzzzz",
                "no builder zzzzzz; `list all builders` shows them",
            ),
            ("list", "usage: list [all|N] builders|workers|changes"),
            (
                "list bilders",
                "usage: list [all|N] builders|workers|changes",
            ),
            ("notify maybe", "usage: notify on|off|list [EVENT...]"),
            (
                "notify on failed",
                "notify: unknown event `failed`; did you mean failure?",
            ),
            (
                "mute tomorrow",
                "mute: `tomorrow` is not a duration like 90, 15s, 10m, 2h or 1d",
            ),
            (
                "join dev",
                "join: a channel is written #name, a key without blanks behind it",
            ),
            ("leave #nowhere", "leave: #nowhere is no channel of mine"),
            (
                "force build --revison linux x",
                "force: no option --revison; see `help force`",
            ),
            (
                "force build --branch linux x",
                "force: write --branch=VALUE",
            ),
            (
                "help stat",
                "help: no command `stat`; did you mean `status`?",
            ),
        ] {
            assert_eq!(lines(&s, text), [reply], "{text}");
        }
    }

    #[test]
    fn builders_are_named_quoted_or_not_by_glob_or_all() {
        let s = new_status(&["all-in", "linux", "mac os"], "");
        let view = View {
            status: &s,
            settings: &settings(""),
            now: 0,
            again: false,
            most: usize::MAX,
            nick: "bot",
        };
        let named = |text: &str| {
            builders(text, &view)
                .unwrap()
                .iter()
                .map(|b| b.id)
                .collect::<Vec<_>>()
        };
        assert_eq!(named("linux"), [2]);
        for text in ["mac os", "\"mac os\"", "'mac os'", "mac\\ os"] {
            assert_eq!(named(text), [3], "{text}");
        }
        assert_eq!(named("*l*"), [1, 2]);
        assert_eq!((named(""), named("all")), (vec![1, 2, 3], vec![1, 2, 3]));
        // As we show them, they can be typed.
        for name in [
            "a b",
            "a\"b",
            "it's",
            r"dir\a b",
            "a\"'\\'\"",
            "",
            &"x".repeat(110),
        ] {
            let s = new_status(&["other", name], "");
            let order = |text: &str| answer(&s, &format!("force build {text} why"), false);
            let Answer::First(Job::Force(order)) = order(&quoted(name)) else {
                panic!("{name}")
            };
            assert_eq!((order.builder, order.name.as_str()), (2, name));
        }
    }

    #[test]
    fn the_log_shows_no_key() {
        assert_eq!(shown("join #c sesame"), "join #c");
        assert_eq!(shown("join #c\u{a0}sesame"), "join #c");
        assert_eq!(shown("jion #c sesame"), "jion");
        assert_eq!(shown("Status \u{2}b"), "status b");
    }

    #[test]
    fn there_are_not_more_to_tell_than_can_be_told() {
        let mut s = new_status(&["b"], "");
        let target = |i| status::Target {
            name: format!("n{i}"),
            settings: settings("failure"),
            muted_until: 0,
        };
        s.targets = (0..TARGETS).map(target).collect();
        assert_eq!(lines(&s, "notify on"), ["I have too many to tell already"]);
        assert_eq!(lines(&s, "mute"), ["I have too many to tell already"]);
        s.targets[0].name = "#c".into();
        assert_eq!(lines(&s, "mute"), ["muted; `unmute` ends it"]);
    }

    #[test]
    fn what_is_not_known_is_asked_for_once() {
        let mut s = new_status(&["b"], "");
        let job = |builders, steps| Answer::First(Job::Facts { builders, steps });
        assert_eq!(answer(&s, "status b", false), job(vec![1], vec![]));
        assert_eq!(answer(&s, "last", false), job(vec![1], vec![]));
        s.apply(build(1, 1, Some(Success)), 0);
        s.apply(build(2, 2, None), 0);
        assert_eq!(answer(&s, "status b", false), job(vec![], vec![2]));
        assert_eq!(
            lines(&s, "last b"),
            ["b: #1 success 1m ago, took 1m #/builders/1/builds/1"]
        );
        s.trouble = Some("gone".into());
        s.reached = Some(1000);
        let Answer::Lines(lines, 0) = answer(&s, "status b", false) else {
            panic!()
        };
        assert_eq!(lines[0], "the master does not answer; as of 2m ago:");
        assert_eq!(
            reply(&s, "status c", true).unwrap_err(),
            format!("{} no builder c; did you mean b?", lines[0])
        );
        assert_eq!(
            reply(&s, "list workers", true),
            Ok(Answer::List {
                head: lines[0].clone() + " 0 workers",
                items: vec![]
            })
        );
        s.reached = None;
        assert_eq!(
            reply(&s, "status c", true).unwrap_err(),
            "the master has not answered yet: gone"
        );
    }

    #[test]
    fn watching() {
        let mut s = new_status(&["b"], "");
        assert_eq!(
            answer(&s, "watch b", false),
            Answer::First(Job::Facts {
                builders: vec![1],
                steps: vec![]
            })
        );
        assert_eq!(
            lines(&s, "watch b"),
            ["b: not building now; `notify on finished` tells of every build"]
        );
        s.apply(build(1, 1, Some(Success)), 0);
        s.apply(
            Build {
                started_at: 1110.0,
                buildrequestid: Some(7),
                ..build(2, 2, None)
            },
            0,
        );
        let effect = Some(Effect::Watch(vec![7]));
        assert_eq!(
            answer(&s, "watch b", false),
            Answer::Say(vec!["watching b #2 (about 50s to go)".into()], effect)
        );
    }

    #[test]
    fn notify_says_what_is_on_afterwards() {
        let s = new_status(&["b"], "");
        let on = |names: &str| status::events(names).unwrap();
        for (text, reply, events) in [
            (
                "notify on",
                "notify is on for started finished failure",
                Some(on("started finished failure")),
            ),
            (
                "notify on worse",
                "notify is on for failure worse",
                Some(on("failure worse")),
            ),
            (
                "notify off failure",
                "notify is off: nothing is announced here",
                Some(on("")),
            ),
            (
                "notify off",
                "notify is off: nothing is announced here",
                Some(on("")),
            ),
            ("notify list", "notify is on for failure", None),
        ] {
            assert_eq!(
                answer(&s, text, false),
                Answer::Say(vec![reply.into()], events.map(Effect::Notify))
            );
        }
    }

    #[test]
    fn lists() {
        let mut s = new_status(&["a", "b c", "d"], "");
        s.workers.insert(
            1,
            Worker {
                name: "w1".into(),
                online: true,
                paused: true,
                builders: [1, 2].into(),
                ..Worker::default()
            },
        );
        assert_eq!(
            lines(&s, "list builders"),
            ["3 builders (1 offline: list all builders): a, \"b c\""]
        );
        assert_eq!(
            lines(&s, "list all builders"),
            ["3 builders: a, \"b c\", d [offline]"]
        );
        assert_eq!(
            lines(&s, "list 1 builders"),
            ["3 builders (1 offline: list all builders): a"]
        );
        s.workers.insert(
            2,
            Worker {
                name: "old".into(),
                ..Worker::default()
            },
        );
        assert_eq!(lines(&s, "list workers"), ["1 worker: w1 [paused]"]);
        assert_eq!(
            lines(&s, "list all workers"),
            ["2 workers: old [offline], w1 [paused]"]
        );
        // What is not here, the master must tell.
        s.changes = [(7, "r7".to_owned()), (10, "r10".into()), (9, "r9".into())].into();
        assert_eq!(
            answer(&s, "list 4 changes", false),
            Answer::First(Job::Changes(4))
        );
        assert_eq!(lines(&s, "list 2 changes"), ["r10", "r9"]);
    }

    #[test]
    fn the_table_and_the_configuration_know_the_same_commands() {
        let mut names: Vec<&str> = TABLE.iter().map(|c| c.name).collect();
        let mut known = config::keys("authorization").collect::<Vec<_>>();
        names.sort_unstable();
        known.sort_unstable();
        assert_eq!(names, known);
        assert_eq!(MANUAL.lines().count(), TABLE.len());
        for command in &TABLE {
            assert!(
                manual(command.name).contains(": "),
                "{} is in the manual",
                command.name
            );
            let s = new_status(&["b"], "");
            assert_eq!(lines(&s, &format!("help {}", command.name)).len(), 1);
        }
    }

    /// WHO × asker × what is known of the account.
    #[test]
    fn who_may_do_what() {
        use Verdict::{NeedsAccount, No, Yes};
        let ask = |op, account: &Account| Ask {
            mask: "joe[1]!u@host.example.org".into(),
            op,
            account: account.clone(),
            ..Ask::default()
        };
        let joe = Account::Is("JOE".into());
        let other = Account::Is("eve".into());
        let accounts = [Account::Unknown, Account::None, joe, other];
        for (who, without_op, with_op) in [
            (vec![], [No; 4], [No; 4]),
            (vec![Who::Everyone], [Yes; 4], [Yes; 4]),
            (vec![Who::Nobody], [No; 4], [No; 4]),
            (vec![Who::Op], [No; 4], [Yes; 4]),
            (
                vec![Who::Account("joe".into())],
                [NeedsAccount, No, Yes, No],
                [NeedsAccount, No, Yes, No],
            ),
            (
                vec![Who::Account("joe".into()), Who::Op],
                [NeedsAccount, No, Yes, No],
                [Yes; 4],
            ),
            (
                vec![Who::Mask("joe{1}!*@*.EXAMPLE.org".into())],
                [Yes; 4],
                [Yes; 4],
            ),
            (vec![Who::Mask("joe!*@*".into())], [No; 4], [No; 4]),
        ] {
            let rules = [("force".to_owned(), who.clone())].into();
            for (i, account) in accounts.iter().enumerate() {
                for (op, expected) in [(false, without_op[i]), (true, with_op[i])] {
                    let verdict = may(&rules, "force", &ask(op, account), Casemapping::Rfc1459);
                    assert_eq!(verdict, expected, "{who:?} {account:?} {op}");
                }
            }
            assert_eq!(
                may(
                    &rules,
                    "status",
                    &ask(false, &Account::None),
                    Casemapping::Rfc1459
                ),
                Yes
            );
        }
        let nobody = |names: &[&str]| {
            names
                .iter()
                .map(|n| ((*n).to_owned(), vec![Who::Nobody]))
                .collect()
        };
        let unmute = |rules| may(&rules, "unmute", &Ask::default(), Casemapping::Rfc1459);
        assert_eq!(
            (unmute(nobody(&["mute"])), unmute(nobody(&["notify"]))),
            (No, Yes)
        );
        let mut both: BTreeMap<String, Vec<Who>> = nobody(&["mute"]);
        both.insert("unmute".into(), vec![Who::Everyone]);
        assert_eq!(unmute(both), Yes);
    }

    #[test]
    fn fuzz_commands() {
        let mut s = new_status(&["b", "c \"d\""], "");
        s.apply(build(1, 1, Some(Failure)), 0);
        let seeds = [
            "status \"b",
            "notify on x",
            "list 99999999999999999999 builders",
            "watch 'c",
            "mute 9d",
            "help \\",
        ];
        fuzz(&seeds.map(str::as_bytes), |bytes, random| {
            let said = reply(&s, &String::from_utf8_lossy(bytes), random.below(2) == 0);
            if let Ok(Answer::Say(lines, _) | Answer::Lines(lines, _)) = said {
                assert!(
                    lines.iter().all(|line| !line.contains(char::is_control)),
                    "{lines:?}"
                );
            }
        });
    }
}
