//! Commands that change what a place hears: `notify`, `mute`, `unmute`, `watch`, `join`, `leave`.

use super::{
    CommandResult, Context, Effect, LOOKUPS, Response, builders, change, say, split_name, usage,
};
use crate::config::duration;
use crate::irc::Invocation;
use crate::master::builder::Builder;
use crate::master::jobs::Job;
use crate::master::resources::Build;
use crate::names::{Casemapping, is_channel, nearest};
use crate::notify_events::EventSet;
use crate::routing::watches::Watched;
use crate::sanitize::sanitize;
use crate::text;
use crate::words::quote;

pub fn watch(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    if let Some(name) = rest.strip_prefix("next ")
        && context.model.builder_by_name(rest).is_none()
    {
        return watch_next(name, context);
    }
    let model = context.model;
    let found = builders(rest, context)?;
    let running: Vec<(&Builder, &Build)> = found
        .iter()
        .flat_map(|&builder| model.running_builds(builder.id).map(move |b| (builder, b)))
        .collect();
    if running.is_empty() {
        if !context.lookup_done {
            let builders = found.iter().take(LOOKUPS).map(|builder| builder.id);
            return Ok(Response::NeedsJob(Job::Lookup {
                builders: builders.collect(),
                steps: Vec::new(),
            }));
        }
        let line = match found[..] {
            [one] => {
                let typed = quote(&one.name);
                let name = sanitize(&one.name);
                format!("{name}: not building now; `watch next {typed}` tells of its next build")
            }
            _ => "none of them is building now".to_owned(),
        };
        return say(context.with_age(line));
    }
    let labels = running.iter().map(|(builder, build)| {
        let remaining = text::remaining(build, builder, context.master_now());
        format!("{} #{}{remaining}", sanitize(&builder.name), build.number)
    });
    let line = format!("watching {}", labels.collect::<Vec<_>>().join(", "));
    let requests = running.iter().filter_map(|(_, build)| build.request_id);
    change(
        Effect::Watch(requests.map(Watched::Request).collect()),
        line,
    )
}

fn watch_next(name: &str, context: &Context) -> CommandResult {
    let found = builders(name, context)?;
    let [builder] = found[..] else {
        return Err(format!(
            "watch: one builder, please: {} is not one",
            quote(name)
        ));
    };
    let watched = Watched::NextBuildOf(builder.name.clone());
    let line = format!("watching the next build of {}", sanitize(&builder.name));
    change(Effect::Watch(vec![watched]), line)
}

pub fn notify(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    let (what, names) = split_name(rest);
    let named = EventSet::parse(names).map_err(|name| {
        let hint = match nearest(name, EventSet::all_names()) {
            Some(near) => format!("did you mean {near}?"),
            None => "`help notify` lists them".to_owned(),
        };
        format!("notify: unknown event `{}`; {hint}", sanitize(name))
    })?;
    let now = context.settings.events;
    let next = match (what.as_str(), named.is_empty()) {
        ("list", _) => return say(notify_line(now)),
        ("on", true) => now | EventSet::started_and_finished(),
        ("on", false) => now | named,
        ("off", true) => EventSet::EMPTY,
        ("off", false) => now - named,
        _ => return Err(usage("notify")),
    };
    change(Effect::SetEvents(next), notify_line(next))
}

fn notify_line(events: EventSet) -> String {
    if events.is_empty() {
        "notify is off: nothing is announced here".to_owned()
    } else {
        format!("notify is on for {events}")
    }
}

pub fn mute(rest: &str, _: &Invocation, context: &Context) -> CommandResult {
    if rest.is_empty() {
        return change(Effect::MuteUntil(i64::MAX), "muted; `unmute` ends it");
    }
    let wrong = || {
        let shown = sanitize(rest);
        format!("mute: `{shown}` is not a duration like 90, 15s, 10m, 2h or 1d")
    };
    let time = duration(rest).ok_or_else(wrong)?;
    let seconds = time.as_secs().max(1) as i64;
    let line = format!("muted for {}", text::duration(seconds));
    change(Effect::MuteUntil(context.now + seconds), line)
}

pub fn unmute(_: &str, invocation: &Invocation, context: &Context) -> CommandResult {
    if context.routing.is_muted(&invocation.place, context.now) {
        change(Effect::Unmute, "unmuted")
    } else {
        say("nothing is muted here")
    }
}

pub fn join(rest: &str, _: &Invocation, _: &Context) -> CommandResult {
    let (channel, key) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_name = is_channel(channel) && !channel.contains([',', '\u{7}']);
    if !is_name || key.contains([' ', ',']) {
        let help = "join: a channel is written #name, a key without blanks behind it";
        return Err(help.to_owned());
    }
    let effect = Effect::Join {
        channel: channel.to_owned(),
        key: key.to_owned(),
    };
    change(effect, format!("joining {}", sanitize(channel)))
}

pub fn leave(rest: &str, invocation: &Invocation, context: &Context) -> CommandResult {
    let place = invocation.place.as_str();
    let channel = if rest.is_empty() { place } else { rest };
    if !is_channel(channel) || channel.contains(' ') {
        return Err("leave: which channel? It is written #name".to_owned());
    }
    if !context.routing.is_channel_of_ours(channel) {
        let shown = sanitize(channel);
        return Err(format!("leave: {shown} is no channel of mine"));
    }
    let is_here = Casemapping::Ascii.fold(channel) == Casemapping::Ascii.fold(place);
    // Whoever is there sees us go, and why.
    let lines = if is_here {
        Vec::new()
    } else {
        vec![format!("leaving {}", sanitize(channel))]
    };
    Ok(Response::Change(lines, Effect::Leave(channel.to_owned())))
}
