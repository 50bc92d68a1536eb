//! The commands: one table, and what each does. Pure: a command sees the model and the routing, and
//! answers with lines, with something to change, or with a job for the master, after which it is
//! run once more.

pub mod authority;
mod control;
mod queries;
mod settings;

use crate::config::{COMMANDS, TargetSettings};
use crate::irc::Invocation;
use crate::master::builder::Builder;
use crate::master::jobs::Job;
use crate::master::model::Model;
use crate::names::{Filter, Name, glob, nearest};
use crate::notify_events::EventSet;
use crate::routing::Routing;
use crate::routing::watches::Watched;
use crate::sanitize::{EXCERPT, sanitize};
use crate::text;
use crate::words::{quote, split_words};

/// The most builders or steps that one command asks the master for.
const LOOKUPS: usize = 10;
/// Bytes of a line: no reply that is cut needs more than so many for each.
const LINE: usize = 512;

/// What a command comes to.
#[derive(Clone, Debug, PartialEq)]
pub enum Response {
    /// Lines to say.
    Lines(Vec<String>),
    /// Lines to say, and how many more there are.
    Cut { lines: Vec<String>, omitted: usize },
    /// Items to say behind a heading, on as few lines as they need, and how many more there are.
    List {
        heading: String,
        items: Vec<String>,
        omitted: usize,
    },
    /// Lines to say, and something to change.
    Change(Vec<String>, Effect),
    /// Ask the master first, then the command once more.
    NeedsJob(Job),
}

/// What a command changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    SetEvents(EventSet),
    /// Seconds since the epoch.
    MuteUntil(i64),
    Unmute,
    Join {
        channel: String,
        key: String,
    },
    Leave(String),
    Watch(Vec<Watched>),
}

/// What a command can see.
pub struct Context<'a> {
    pub model: &'a Model,
    pub routing: &'a Routing,
    /// How the place wants its lines, and what it hears.
    pub settings: &'a TargetSettings,
    /// Seconds since the epoch, by our clock.
    pub now: i64,
    /// The master has been asked already.
    pub lookup_done: bool,
    /// Lines that can be said.
    pub max_lines: usize,
    /// Ours; nothing without IRC.
    pub nick: Option<&'a Name>,
    /// May `stop` no more than requests of their own.
    pub own_only: bool,
}

impl Context<'_> {
    /// Seconds since the epoch, by the master's clock.
    fn master_now(&self) -> i64 {
        self.model.master_time(self.now)
    }

    /// The line that stands in front of answers while the master is away.
    fn staleness(&self) -> Option<String> {
        let model = self.model;
        let error = match (&model.last_error, model.last_contact) {
            (Some(_), Some(at)) if model.is_complete => {
                let age = text::duration(self.now - at);
                return Some(format!("the master does not answer; as of {age} ago:"));
            }
            (Some(error), _) => sanitize(error),
            (None, _) if !model.is_complete => "the first poll is not through".to_owned(),
            (None, _) => return None,
        };
        Some(format!("the master has not answered yet: {error}"))
    }

    /// A sentence from what is known: with its age, while the master is away.
    fn with_age(&self, line: String) -> String {
        match self.staleness() {
            None => line,
            Some(age) if self.model.is_complete => {
                format!("{age} {line}")
            }
            Some(not_yet) => not_yet,
        }
    }
}

/// The error is what was wrong, and how to do better.
pub type CommandResult = Result<Response, String>;

struct Command {
    name: &'static str,
    /// Works without IRC, too.
    is_standalone: bool,
    /// Looks at what is known of the master.
    needs_model: bool,
    run: fn(&str, &Invocation, &Context) -> CommandResult,
}

impl Command {
    /// A question about what is known of the master.
    const fn query(name: &'static str, run: Run) -> Command {
        Command {
            name,
            is_standalone: true,
            needs_model: true,
            run,
        }
    }

    /// Something that is done on IRC.
    const fn on_irc(name: &'static str, needs_model: bool, run: Run) -> Command {
        Command {
            name,
            is_standalone: false,
            needs_model,
            run,
        }
    }

    /// A question about ourselves.
    const fn about(name: &'static str, run: Run) -> Command {
        Command {
            name,
            is_standalone: true,
            needs_model: false,
            run,
        }
    }
}

type Run = fn(&str, &Invocation, &Context) -> CommandResult;

static TABLE: [Command; 17] = [
    Command::query("list", queries::list),
    Command::query("status", queries::status),
    Command::query("last", queries::last),
    Command::query("why", queries::why),
    Command::on_irc("watch", true, settings::watch),
    Command::on_irc("notify", false, settings::notify),
    Command::on_irc("mute", false, settings::mute),
    Command::on_irc("unmute", false, settings::unmute),
    Command::on_irc("join", false, settings::join),
    Command::on_irc("leave", false, settings::leave),
    Command::query("force", control::force),
    Command::query("stop", control::stop),
    Command::about("help", queries::help),
    Command::about("commands", queries::commands),
    Command::about("source", queries::source),
    Command::query("version", queries::version),
    Command::query("hello", queries::hello),
];

/// A line a command: how it is written, a colon, and what it does.
const MANUAL: &str = include_str!("help.txt");

fn manual(name: &str) -> &'static str {
    let mut lines = MANUAL.lines();
    let line = lines.find(|line| line.split([' ', ':']).next() == Some(name));
    line.unwrap_or("")
}

fn usage(name: &str) -> String {
    let syntax = manual(name).split(": ").next().unwrap_or("");
    format!("usage: {syntax}")
}

/// The name of the command that a text asks for, if there is one, and the text behind it.
pub fn split_name(text: &str) -> (String, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
    (word.to_lowercase(), rest.trim())
}

/// The command of a name; or an error with what it most likely meant, or else some advice.
fn find(name: &str, what: &str, advice: &str) -> Result<&'static Command, String> {
    if let Some(command) = TABLE.iter().find(|command| command.name == name) {
        return Ok(command);
    }
    let shown = sanitize(name);
    match nearest(name, TABLE.iter().map(|command| command.name)) {
        Some(near) => Err(format!("{what} `{shown}`; did you mean `{near}`?")),
        None => Err(format!("{what} `{shown}`; {advice}")),
    }
}

/// Whether the command that a text asks for looks at what is known of the master.
pub fn needs_model(text: &str) -> bool {
    let (name, _) = split_name(text);
    TABLE
        .iter()
        .any(|command| command.name == name && command.needs_model)
}

/// A command as the log may show it: without the key of a channel, which may stand behind a
/// mistyped word, too.
pub fn shown(text: &str) -> String {
    let (name, rest) = split_name(text);
    let rest = match name.as_str() {
        "join" => rest.split(char::is_whitespace).next().unwrap_or(""),
        known if COMMANDS.contains(&known) => rest,
        _ => "",
    };
    let shown = format!("{} {}", sanitize(&name), sanitize(rest));
    shown.trim().to_owned()
}

/// Runs the command that was asked for. Whether the asker may was decided before.
pub fn run(invocation: &Invocation, context: &Context) -> CommandResult {
    let (name, rest) = split_name(&invocation.text);
    if name.is_empty() {
        return Err("yes? try `help`".to_owned());
    }
    let command = find(&name, "unknown command", "try `help`")?;
    if !command.is_standalone && context.nick.is_none() {
        return Err(format!("{name}: this works on IRC only"));
    }
    let usage = usage(&name);
    // Words in brackets may be left out.
    let words = usage.split(' ').skip(2);
    let needed = words.filter(|word| !word.starts_with('[')).count();
    if split_words(rest).is_ok_and(|words| words.len() < needed) {
        return Err(usage);
    }
    (command.run)(rest, invocation, context)
}

fn say(line: impl Into<String>) -> CommandResult {
    Ok(Response::Lines(vec![line.into()]))
}

fn change(effect: Effect, line: impl Into<String>) -> CommandResult {
    Ok(Response::Change(vec![line.into()], effect))
}

fn commands_line() -> String {
    let names: Vec<&str> = TABLE.iter().map(|command| command.name).collect();
    format!("commands: {}", names.join(" "))
}

/// The builders that a text names, quoted or not; see [`find_builders`].
fn builders<'a>(text: &str, context: &Context<'a>) -> Result<Vec<&'a Builder>, String> {
    let unquoted = split_words(text).map(|words| words.join(" "));
    let name = unquoted.unwrap_or_else(|_| text.to_owned());
    find_builders(&name, text, context)
}

/// All builders, one by its name or by the text as it came, or some by a glob or an exclusion;
/// sorted by name. The error says what was most likely meant.
fn find_builders<'a>(
    name: &str,
    text: &str,
    context: &Context<'a>,
) -> Result<Vec<&'a Builder>, String> {
    let model = context.model;
    if let Some(builder) = model.builder_by_name(name).or(model.builder_by_name(text)) {
        return Ok(vec![builder]);
    }
    if name.is_empty() || name == "all" {
        return Ok(model.builders().collect());
    }
    if name.chars().count() > EXCERPT {
        return Err(format!(
            "no builder {}; that is longer than a name",
            quote(name)
        ));
    }
    // Names that came through the wire have lost what `sanitize` takes out.
    let matches = |builder: &&Builder| glob(name, &sanitize(&builder.name));
    let excluding = Filter::new(vec![name.to_owned()])
        .ok()
        .filter(|_| name.starts_with('!'));
    let found: Vec<&Builder> = match excluding {
        Some(filter) => model
            .builders()
            .filter(|b| filter.passes(&b.name))
            .collect(),
        None => model.builders().filter(matches).collect(),
    };
    if !found.is_empty() {
        return Ok(found);
    }
    let hint = match nearest(name, model.builders().map(|builder| builder.name.as_str())) {
        Some(near) => format!("did you mean {}?", quote(near)),
        None => "`list all builders` shows them".to_owned(),
    };
    Err(context.with_age(format!("no builder {}; {hint}", quote(name))))
}

#[cfg(test)]
mod tests;
