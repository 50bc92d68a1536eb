//! Commands that ask: `list`, `status`, `last`, and those about ourselves.

use super::{
    CommandResult, Context, LINE, LOOKUPS, Response, builders, commands_line, find, manual, say,
    split_name, usage,
};
use crate::config::TargetSettings;
use crate::irc::Invocation;
use crate::master::builder::Builder;
use crate::master::diagnosis::{Question, Which};
use crate::master::jobs::Job;
use crate::master::model::Model;
use crate::master::resources::Build;
use crate::sanitize::sanitize;
use crate::text;
use crate::words::quote;

/// `list changes` shows so many if no number is given; and never more than a page.
const CHANGES: usize = 5;
const ALL_CHANGES: usize = 100;

/// A line about one builder, see [`text`].
type BuilderLine = fn(&Model, &Builder, &TargetSettings, i64) -> String;

pub fn status(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    each_builder(rest, context, true, text::status_line)
}

pub fn last(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    each_builder(rest, context, false, text::last_line)
}

/// Answers with a line a builder, after asking for what is not known, if that is little.
fn each_builder(
    rest: &str,
    context: &Context,
    with_steps: bool,
    line: BuilderLine,
) -> CommandResult {
    let model = context.model;
    let found = builders(rest, context)?;
    let shown = &found[..found.len().min(context.max_lines)];
    if !context.lookup_done
        && model.last_error.is_none()
        && let Some(job) = lookup(shown, model, with_steps)
    {
        return Ok(Response::NeedsJob(job));
    }
    let mut lines: Vec<String> = context.staleness().into_iter().collect();
    for builder in shown {
        lines.push(line(model, builder, context.settings, context.master_now()));
    }
    if lines.is_empty() {
        lines.push("the master has no builders".to_owned());
    }
    Ok(Response::Cut {
        lines,
        omitted: found.len() - shown.len(),
    })
}

/// Asks for last builds that are not known, and for the steps of running ones.
fn lookup(shown: &[&Builder], model: &Model, with_steps: bool) -> Option<Job> {
    let is_unknown = |builder: &&&Builder| builder.last.is_none() && !builder.lookup_done;
    let unknown = shown.iter().filter(is_unknown).map(|builder| builder.id);
    let builders: Vec<u64> = unknown.take(LOOKUPS).collect();
    let running = shown
        .iter()
        .flat_map(|builder| model.running_builds(builder.id));
    let running = running.filter(|_| with_steps).map(|build| build.id);
    let steps: Vec<u64> = running.take(LOOKUPS).collect();
    let is_needed = !builders.is_empty() || !steps.is_empty();
    is_needed.then_some(Job::Lookup { builders, steps })
}

/// Why a build went wrong. Without a builder, the one of this place that went wrong last.
pub fn why(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    if rest.is_empty() {
        return why_last(context);
    }
    let (name, number) = match rest.rsplit_once(' ') {
        Some((name, word)) if context.model.builder_by_name(rest).is_none() => {
            match word.strip_prefix('#').unwrap_or(word).parse::<u64>() {
                Ok(number) => (name, Some(number)),
                Err(_) => (rest, None),
            }
        }
        _ => (rest, None),
    };
    let found = builders(name.trim(), context)?;
    let [builder] = found[..] else {
        let shown = quote(name);
        return Err(format!("why: one builder, please: {shown} is not one"));
    };
    let build = match (number, &builder.last_bad) {
        (Some(number), _) => Which::Number(number),
        (None, Some(build)) => Which::Known(Box::new(build.clone())),
        (None, None) => Which::LastBad,
    };
    Ok(ask_why(builder, build))
}

fn why_last(context: &Context) -> CommandResult {
    let ours = context.model.builders().filter(|builder| {
        let settings = context.settings;
        settings.tags.passes_any(&builder.tags) && settings.builders.passes(&builder.name)
    });
    let bad = ours.filter_map(|builder| Some((builder, builder.last_bad.as_ref()?)));
    let passes = |build: &Build| {
        let branch = build.branch.as_deref().unwrap_or("");
        context.settings.branches.passes(branch)
    };
    let last = bad
        .filter(|(_, build)| passes(build))
        .max_by_key(|(_, build)| (build.complete_at, build.id));
    match last {
        Some((builder, build)) => Ok(ask_why(builder, Which::Known(Box::new(build.clone())))),
        None => say(context.with_age("nothing has gone wrong lately".to_owned())),
    }
}

fn ask_why(builder: &Builder, build: Which) -> Response {
    let branch = match &build {
        Which::Known(build) => builder.branch_to_name(build).map(str::to_owned),
        Which::Number(_) | Which::LastBad => None,
    };
    Response::NeedsJob(Job::Why(Question {
        builder_id: builder.id,
        builder: builder.name.clone(),
        branch,
        build,
    }))
}

/// `[all|N] builders|workers|changes`
struct ListRequest<'a> {
    all: bool,
    limit: Option<usize>,
    what: &'a str,
}

impl ListRequest<'_> {
    fn parse(text: &str) -> Option<ListRequest<'_>> {
        let mut request = ListRequest {
            all: false,
            limit: None,
            what: "",
        };
        for word in text.split_whitespace() {
            match word {
                "all" => request.all = true,
                "builders" | "workers" | "changes" if request.what.is_empty() => {
                    request.what = word;
                }
                number => request.limit = Some(number.parse().ok().filter(|n| *n > 0)?),
            }
        }
        (!request.what.is_empty()).then_some(request)
    }
}

pub fn list(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    let request = ListRequest::parse(rest).ok_or_else(|| usage("list"))?;
    match request.what {
        "builders" => list_builders(&request, context),
        "workers" => list_workers(&request, context),
        _ => list_changes(&request, context),
    }
}

fn list_builders(request: &ListRequest, context: &Context) -> CommandResult {
    let model = context.model;
    let counts = model.builder_counts();
    let mut list = ItemList::new(request.limit, context.max_lines);
    for builder in model.builders() {
        if list.is_full() {
            break;
        }
        if !model.is_offline(builder) {
            list.add(quote(&builder.name));
        } else if request.all {
            list.add(format!("{} [offline]", quote(&builder.name)));
        }
    }
    let mut heading = text::count(counts.total, "builder");
    if counts.offline > 0 && !request.all {
        let offline = counts.offline;
        heading.push_str(&format!(" ({offline} offline: list all builders)"));
    }
    let listed = if request.all {
        counts.total
    } else {
        counts.total - counts.offline
    };
    Ok(list.response(context.with_age(heading), listed))
}

fn list_workers(request: &ListRequest, context: &Context) -> CommandResult {
    let workers = context.model.workers();
    // The master remembers those that it had.
    let listed = workers.filter(|worker| request.all || !worker.builders.is_empty());
    let mut items: Vec<String> = listed
        .map(|worker| format!("{}{}", quote(&worker.name), text::worker_marks(worker)))
        .collect();
    items.sort_unstable();
    let heading = text::count(items.len(), "worker");
    let listed = items.len();
    let mut list = ItemList::new(request.limit, context.max_lines);
    items.into_iter().for_each(|item| list.add(item));
    Ok(list.response(context.with_age(heading), listed))
}

/// Items of a list: only as many are written as can be shown.
struct ItemList {
    limit: usize,
    /// Bytes that all lines of the reply can hold together.
    room: usize,
    items: Vec<String>,
}

impl ItemList {
    fn new(limit: Option<usize>, max_lines: usize) -> ItemList {
        ItemList {
            limit: limit.unwrap_or(usize::MAX),
            room: max_lines.saturating_mul(LINE),
            items: Vec::new(),
        }
    }

    fn is_full(&self) -> bool {
        self.room == 0 || self.items.len() >= self.limit
    }

    fn add(&mut self, item: String) {
        if !self.is_full() {
            self.room = self.room.saturating_sub(item.len() + 2);
            self.items.push(item);
        }
    }

    /// The reply, where there are so many items in all.
    fn response(self, heading: String, listed: usize) -> Response {
        Response::List {
            heading,
            omitted: listed.min(self.limit).saturating_sub(self.items.len()),
            items: self.items,
        }
    }
}

fn list_changes(request: &ListRequest, context: &Context) -> CommandResult {
    let model = context.model;
    let limit = request.limit.unwrap_or(CHANGES);
    let limit = if request.all {
        ALL_CHANGES
    } else {
        limit.min(ALL_CHANGES)
    };
    let may_ask = !context.lookup_done && model.last_error.is_none();
    if model.changes.len() < limit && may_ask {
        return Ok(Response::NeedsJob(Job::Changes(limit)));
    }
    let mut lines: Vec<String> = context.staleness().into_iter().collect();
    let newest = model.changes.values().rev().take(limit);
    lines.extend(newest.map(text::change_line));
    Ok(Response::Lines(lines))
}

pub fn help(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    let nick = context.nick.map_or("NICK", |nick| nick.as_str());
    let call = format!("say `{nick}: COMMAND` in a channel, or COMMAND to me alone");
    match split_name(rest).0.as_str() {
        "" => say(format!(
            "{call}; {}; `help COMMAND` tells more",
            commands_line()
        )),
        "commands" => say(commands_line()),
        name => {
            let command = find(name, "help: no command", "try `commands`")?;
            say(manual(command.name))
        }
    }
}

pub fn commands(_: &str, _: &Invocation, _: &Context) -> CommandResult {
    say(commands_line())
}

pub fn source(_: &str, _: &Invocation, _: &Context) -> CommandResult {
    say("Buildbot: https://buildbot.net/")
}

pub fn version(_: &str, _: &Invocation, context: &Context) -> CommandResult {
    let identity = &context.model.identity;
    let version = sanitize(&identity.version);
    let master = if version.is_empty() {
        "the master has not told its version".to_owned()
    } else {
        format!("Buildbot {version} at {}", identity.url)
    };
    say(format!(
        "buildbot-irc {}; {master}",
        env!("CARGO_PKG_VERSION")
    ))
}

pub fn hello(_: &str, invocation: &Invocation, context: &Context) -> CommandResult {
    let nick = sanitize(invocation.nick.as_str());
    let count = context.model.builder_counts().total;
    let watching = if count > 0 {
        format!("I watch {}, ", text::count(count, "builder"))
    } else {
        String::new()
    };
    say(format!("hello, {nick}; {watching}try `status` or `help`"))
}
