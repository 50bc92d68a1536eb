//! Commands that act on the master: `force build` and `stop build`.

use super::authority::refusal;
use super::{CommandResult, Context, Response, find_builders, split_name, usage};
use crate::irc::{Account, Invocation};
use crate::master::builder::Builder;
use crate::master::force::{Order, SourceField};
use crate::master::jobs::{Job, StopOrder};
use crate::sanitize::{one_line, sanitize};
use crate::words::{first_word, quote};

pub fn force(rest: &str, invocation: &Invocation, context: &Context) -> CommandResult {
    let rest = rest.strip_prefix("build ").ok_or_else(|| usage("force"))?;
    let mut order = Order::default();
    let rest = take_options(rest, &mut order)?;
    let (builder, reason) = builder_and_reason(rest, invocation, context)?;
    order.builder_id = builder.id;
    order.builder = builder.name.clone();
    order.reason = reason;
    let nick = &invocation.nick;
    // Schedulers insist on an address; this one can never be written to (RFC 2606).
    order.who = format!("{nick} <{nick}@irc.invalid>");
    Ok(Response::NeedsJob(Job::Force(order)))
}

/// Takes the options in front of a text into the order, and returns the text behind them. Each
/// branch and revision belongs to the codebase before it.
fn take_options<'a>(mut rest: &'a str, order: &mut Order) -> Result<&'a str, String> {
    let mut codebase = None;
    let mut is_codebase_used = true;
    while rest.trim_start().starts_with("--") {
        let word = first_word(rest).map_err(|why| format!("force: {why}"))?;
        let Some((option, after)) = word else {
            break;
        };
        rest = after;
        let option = &option["--".len()..];
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let key = match key {
            "codebase" | "scheduler" | "branch" | "revision" | "props" => key,
            _ => {
                let shown = sanitize(key);
                return Err(format!("force: no option --{shown}; see `help force`"));
            }
        };
        if value.is_empty() {
            return Err(format!("force: write --{key}=VALUE"));
        }
        let value = value.to_owned();
        match key {
            "codebase" if !is_codebase_used => return Err(codebase_without_source()),
            "codebase" => {
                codebase = Some(value);
                is_codebase_used = false;
            }
            "scheduler" if order.scheduler.is_some() => {
                return Err("force: --scheduler is given twice".to_owned());
            }
            "scheduler" => order.scheduler = Some(value),
            "props" => take_properties(&value, order)?,
            _ => {
                let key = if key == "branch" {
                    "branch"
                } else {
                    "revision"
                };
                let codebase = codebase.clone();
                order.source.push(SourceField {
                    codebase,
                    key,
                    value,
                });
                is_codebase_used = true;
            }
        }
    }
    if !is_codebase_used {
        return Err(codebase_without_source());
    }
    Ok(rest)
}

fn codebase_without_source() -> String {
    "force: --codebase goes before --branch or --revision".to_owned()
}

/// `NAME=VALUE,…`
fn take_properties(text: &str, order: &mut Order) -> Result<(), String> {
    for pair in text.split(',') {
        let written = || "force: write --props=NAME=VALUE,…".to_owned();
        let (name, value) = pair.split_once('=').ok_or_else(written)?;
        if name.is_empty() || value.is_empty() {
            return Err(written());
        }
        order.properties.push((name.to_owned(), value.to_owned()));
    }
    Ok(())
}

/// The builder that comes first in a text, and the reason behind it, signed as the master records
/// it: who asks, where, and why.
fn builder_and_reason<'a>(
    text: &str,
    invocation: &Invocation,
    context: &Context<'a>,
) -> Result<(&'a Builder, String), String> {
    let usage = || usage(&split_name(&invocation.text).0);
    let (name, reason) = first_word(text)?.ok_or_else(usage)?;
    let found = find_builders(&name, &name, context)?;
    let [builder] = found[..] else {
        return Err(format!("one builder, please: {} is not one", quote(&name)));
    };
    if reason.is_empty() {
        return Err(usage());
    }
    let reason = one_line(reason);
    Ok((builder, format!("{reason} ({})", signature(invocation))))
}

/// Who asks, and where: `ann in #app`, `ann, account a`, `the command line`.
fn signature(invocation: &Invocation) -> String {
    if invocation.mask.is_empty() {
        return "the command line".to_owned();
    }
    let nick = invocation.nick.as_str();
    let who = match &invocation.account {
        Account::LoggedIn(account) => format!("{nick}, account {}", sanitize(account)),
        Account::None | Account::Unknown => nick.to_owned(),
    };
    if invocation.place.is_channel() {
        format!("{who} in {}", invocation.place)
    } else {
        who
    }
}

pub fn stop(rest: &str, invocation: &Invocation, context: &Context) -> CommandResult {
    let rest = rest.strip_prefix("build ").ok_or_else(|| usage("stop"))?;
    let (builder, reason) = builder_and_reason(rest, invocation, context)?;
    let mut only = None;
    if context.own_only {
        let mut own = context.routing.watches.requests_of(&invocation.mask);
        own.retain(|request| context.model.queued.get(request) == Some(&builder.id));
        if own.is_empty() {
            return Err(refusal(invocation, "stop"));
        }
        only = Some(own);
    }
    Ok(Response::NeedsJob(Job::Stop(StopOrder {
        builder_id: builder.id,
        builder: builder.name.clone(),
        reason,
        only,
    })))
}
