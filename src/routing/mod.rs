//! Who hears of what: targets, their settings and mutes, filters, watches. The main thread's alone.
//! Pure.

pub mod watches;

use crate::config::{Irc, TargetSettings};
use crate::master::model::{BuildEvent, Builder};
use crate::names::{Casemapping, Name, glob};
use crate::notify_events::{Event, EventSet};
use crate::state_file::State;
use std::collections::{BTreeMap, BTreeSet};
use watches::Watches;

/// Channels and people who are told of builds.
const TARGETS: usize = 200;
/// Someone who was not seen for so many seconds is not told any more.
const ABSENT: i64 = 30 * 86_400;

/// A channel or a person who is told of builds.
#[derive(Clone, Debug)]
pub struct Target {
    pub settings: TargetSettings,
    /// Seconds since the epoch.
    pub muted_until: i64,
}

/// What a line wants to say of a build beside its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    Nothing,
    Authors,
    Revisions,
}

/// Who an event goes to, and whether because they wait for it.
pub type Recipients = BTreeMap<Name, bool>;

#[derive(Debug, Default)]
pub struct Routing {
    irc: Irc,
    casemapping: Casemapping,
    targets: BTreeMap<Name, Target>,
    /// Where `notify` said something else than the configuration.
    events: BTreeMap<Name, EventSet>,
    muted: BTreeMap<Name, i64>,
    /// Channels joined by command, with their keys.
    joined: BTreeMap<Name, String>,
    /// Configured channels that were left by command.
    left: BTreeSet<Name>,
    /// When people who are told were seen last.
    last_seen: BTreeMap<Name, i64>,
    pub watches: Watches,
}

impl Routing {
    /// What the configuration says, and what was said in the chat before.
    pub fn new(irc: Irc, state: &State) -> Routing {
        let casemapping = Casemapping::default();
        let name = |text: &String| casemapping.name(text);
        let mut routing = Routing {
            irc,
            casemapping,
            events: state.events.iter().map(|(t, e)| (name(t), *e)).collect(),
            muted: state
                .muted
                .iter()
                .map(|(t, until)| (name(t), *until))
                .collect(),
            joined: state
                .joined
                .iter()
                .map(|(t, key)| (name(t), key.clone()))
                .collect(),
            left: state.left.iter().map(name).collect(),
            last_seen: state
                .last_seen
                .iter()
                .map(|(t, at)| (name(t), *at))
                .collect(),
            ..Routing::default()
        };
        routing.watches.import(&state.watches, casemapping);
        routing.rebuild_targets();
        routing
    }

    /// What the state file remembers of all this.
    pub fn export(&self, state: &mut State) {
        state.events = self
            .events
            .iter()
            .map(|(t, e)| (t.to_string(), *e))
            .collect();
        state.muted = self
            .muted
            .iter()
            .map(|(t, at)| (t.to_string(), *at))
            .collect();
        let joined = self.joined.iter();
        state.joined = joined
            .map(|(t, key)| (t.to_string(), key.clone()))
            .collect();
        state.left = self.left.iter().map(Name::to_string).collect();
        state.last_seen = self
            .last_seen
            .iter()
            .map(|(t, at)| (t.to_string(), *at))
            .collect();
        state.watches = self.watches.export();
    }

    /// The server's way to compare names has become known.
    pub fn refold(&mut self, casemapping: Casemapping) {
        self.casemapping = casemapping;
        self.events = refold_keys(&self.events, casemapping);
        self.muted = refold_keys(&self.muted, casemapping);
        self.joined = refold_keys(&self.joined, casemapping);
        self.last_seen = refold_keys(&self.last_seen, casemapping);
        self.left = self
            .left
            .iter()
            .map(|name| name.refold(casemapping))
            .collect();
        self.watches.refold(casemapping);
        self.rebuild_targets();
    }

    /// Makes the targets what the configuration and the chat say.
    fn rebuild_targets(&mut self) {
        let name = |text: &String| self.casemapping.name(text);
        // Configured names come first: a name is written as it stands there.
        let mut names: BTreeSet<Name> = self.irc.channels.iter().map(|c| name(&c.name)).collect();
        let people = self.irc.pm_to_nicks.iter().map(name);
        let from_chat = self.joined.keys().cloned().chain(self.wishes());
        for name in people.chain(from_chat) {
            if !names.contains(&name) {
                names.insert(name);
            }
        }
        names.retain(|name| self.is_wanted(name));
        let target = |name: &Name| Target {
            settings: self.settings(name),
            muted_until: self.muted.get(name).copied().unwrap_or(0),
        };
        self.targets = names
            .iter()
            .map(|name| (name.clone(), target(name)))
            .collect();
    }

    /// Names for which something was said in the chat.
    fn wishes(&self) -> impl Iterator<Item = Name> {
        self.events.keys().chain(self.muted.keys()).cloned()
    }

    /// A channel whose section is gone is none of ours, and one that was left neither.
    fn is_wanted(&self, name: &Name) -> bool {
        if !name.is_channel() {
            return true;
        }
        let is_ours = self.section(name).is_some() || self.joined.contains_key(name);
        is_ours && !self.left.contains(name)
    }

    fn section(&self, name: &Name) -> Option<&crate::config::Channel> {
        let channels = &self.irc.channels;
        channels
            .iter()
            .find(|channel| self.casemapping.name(&channel.name) == *name)
    }

    fn is_configured_person(&self, name: &Name) -> bool {
        let people = &self.irc.pm_to_nicks;
        people
            .iter()
            .any(|nick| self.casemapping.name(nick) == *name)
    }

    /// What the configuration says of a target: its section, or the defaults. A person hears
    /// nothing until they ask, or are named in `pm_to_nicks`.
    fn configured(&self, name: &Name) -> TargetSettings {
        let section = self.section(name).map(|section| &section.settings);
        let mut settings = section.unwrap_or(&self.irc.defaults).clone();
        if !name.is_channel() && !self.is_configured_person(name) {
            settings.events = EventSet::EMPTY;
        }
        settings
    }

    /// How a place wants its lines, and what it hears.
    pub fn settings(&self, name: &Name) -> TargetSettings {
        let mut settings = self.configured(name);
        if let Some(events) = self.events.get(name) {
            settings.events = *events;
        }
        settings
    }

    /// Whether a place wants NOTICEs.
    pub fn wants_notices(&self, name: &Name) -> bool {
        match self.targets.get(name) {
            Some(target) => target.settings.notice,
            None => self.configured(name).notice,
        }
    }

    pub fn is_target(&self, name: &Name) -> bool {
        self.targets.contains_key(name)
    }

    pub fn is_muted(&self, name: &Name, unix: i64) -> bool {
        let target = self.targets.get(name);
        target.is_some_and(|target| target.muted_until > unix)
    }

    /// A target as we write it.
    pub fn canonical(&self, name: &Name) -> Option<&Name> {
        self.targets.get_key_value(name).map(|(name, _)| name)
    }

    /// Whether a channel by that name is among the targets.
    pub fn is_channel_of_ours(&self, name: &str) -> bool {
        self.is_target(&self.casemapping.name(name))
    }

    /// The channel's key, where the configuration has one.
    pub fn configured_key(&self, name: &Name) -> Option<&str> {
        let key = self.section(name)?.key.as_ref()?;
        Some(&key.0)
    }

    /// Channels to be in: joined by command, with their keys; and configured ones to stay out of.
    pub fn joined(&self) -> impl Iterator<Item = (&Name, &str)> {
        self.joined.iter().map(|(name, key)| (name, key.as_str()))
    }

    pub fn left(&self) -> impl Iterator<Item = &Name> {
        self.left.iter()
    }

    // What is said in the chat

    /// A place wants to hear of these events. What the configuration says anyway is not remembered.
    pub fn set_events(&mut self, place: &Name, events: EventSet) {
        if self.configured(place).events == events {
            self.events.remove(place);
        } else {
            self.events.insert(place.clone(), events);
        }
        self.rebuild_targets();
    }

    pub fn mute(&mut self, place: &Name, until: i64) {
        self.muted.insert(place.clone(), until);
        self.rebuild_targets();
    }

    pub fn unmute(&mut self, place: &Name) {
        self.muted.remove(place);
        self.rebuild_targets();
    }

    /// When the next mute ends by itself, in seconds since the epoch.
    pub fn next_unmute(&self) -> Option<i64> {
        self.muted
            .values()
            .copied()
            .filter(|until| *until < i64::MAX)
            .min()
    }

    /// Ends the mutes whose time is over. Returns whether there were any.
    pub fn end_mutes(&mut self, unix: i64) -> bool {
        let before = self.muted.len();
        self.muted.retain(|_, until| *until > unix);
        let has_ended = self.muted.len() < before;
        if has_ended {
            self.rebuild_targets();
        }
        has_ended
    }

    /// We are to be in a channel, by command.
    pub fn join(&mut self, channel: &Name, key: &str) {
        self.left.remove(channel);
        if self.section(channel).is_none() {
            self.joined.insert(channel.clone(), key.to_owned());
        }
        self.rebuild_targets();
    }

    /// We are to leave a channel, by command: all that was said about it is forgotten.
    pub fn leave(&mut self, channel: &Name) {
        self.forget(channel);
        if self.section(channel).is_some() {
            self.left.insert(channel.clone());
        }
        self.rebuild_targets();
    }

    fn forget(&mut self, name: &Name) {
        self.events.remove(name);
        self.muted.remove(name);
        self.joined.remove(name);
        self.last_seen.remove(name);
        self.watches.remove_target(name);
    }

    // People

    /// Someone has shown that they are there.
    pub fn note_seen(&mut self, name: &Name, unix: i64) {
        if !name.is_channel() && self.targets.contains_key(name) {
            self.last_seen.insert(name.clone(), unix);
        }
    }

    /// Makes room for one more place to tell: those who were not seen for long give theirs up, and
    /// if that is not enough, whoever was gone longest. Returns who was dropped, or nothing if
    /// there is no room.
    pub fn make_room(&mut self, place: &Name, unix: i64) -> Option<Vec<Name>> {
        let mut dropped = self.drop_absent(unix);
        let is_full = |routing: &Routing| {
            let busy = routing.targets.values();
            let busy = busy.filter(|t| t.muted_until > unix || !t.settings.events.is_empty());
            busy.count() >= TARGETS && !routing.targets.contains_key(place)
        };
        if is_full(self) {
            let longest = self
                .guests()
                .min_by_key(|name| self.last_seen.get(name).copied());
            let longest = longest.cloned()?;
            self.forget(&longest);
            self.rebuild_targets();
            dropped.push(longest);
        }
        (!is_full(self)).then_some(dropped)
    }

    /// Forgets people who were not seen for long.
    pub fn drop_absent(&mut self, unix: i64) -> Vec<Name> {
        let seen = |name: &Name| self.last_seen.get(name).copied();
        let is_absent = |name: &&Name| seen(name).is_some_and(|at| at + ABSENT < unix);
        let absent: Vec<Name> = self.guests().filter(is_absent).cloned().collect();
        for name in &absent {
            self.forget(name);
        }
        if !absent.is_empty() {
            self.rebuild_targets();
        }
        absent
    }

    /// People whom the configuration does not name.
    fn guests(&self) -> impl Iterator<Item = &Name> {
        let people = self.targets.keys().filter(|name| !name.is_channel());
        people.filter(|name| !self.is_configured_person(name))
    }

    // Events

    /// Who hears of the start or the end of a build; those who watch it among them. From then on
    /// nobody waits for it.
    pub fn recipients(&mut self, event: &BuildEvent) -> Recipients {
        let mut recipients = Recipients::new();
        if event.is_new {
            let interested = self.interested(event);
            recipients.extend(interested.map(|(name, _)| (name.clone(), false)));
        }
        if !event.build.complete {
            self.watches
                .on_started(&event.builder, event.build.request_id);
        }
        if let Some(request) = event.build.request_id.filter(|_| event.ends_request) {
            let watchers = self.watches.on_ended(request);
            recipients.extend(watchers.into_iter().map(|name| (name, true)));
            for name in recipients.keys() {
                self.watches.note_told(name, request);
            }
        }
        recipients
    }

    fn interested(&self, event: &BuildEvent) -> impl Iterator<Item = (&Name, &Target)> {
        let events = events_of(event);
        self.targets.iter().filter(move |(_, target)| {
            target.settings.events.intersects(events) && cares(&target.settings, event)
        })
    }

    /// What someone will want to know of the end of a build beside its result.
    pub fn wanted_details(&self, event: &BuildEvent) -> Wanted {
        let Some(outcome) = event.build.outcome() else {
            return Wanted::Nothing;
        };
        let wanted = |settings: &TargetSettings| {
            if settings.revisions {
                Wanted::Revisions
            } else if settings.blame && !outcome.is_good() {
                Wanted::Authors
            } else {
                Wanted::Nothing
            }
        };
        let mut most = Wanted::Nothing;
        if event.is_new {
            let interested = self.interested(event);
            let wishes = interested.map(|(_, target)| wanted(&target.settings));
            most = wishes.max().unwrap_or(most);
        }
        if let Some(request) = event.build.request_id.filter(|_| event.ends_request) {
            let watchers = self.watches.targets_of(request);
            let wishes = watchers.map(|target| wanted(&self.settings(target)));
            most = most.max(wishes.max().unwrap_or(most));
        }
        most
    }

    /// Whether someone will perhaps want to know who is behind a build that has started.
    pub fn may_need_details(&self, event: &BuildEvent) -> bool {
        let wants = |s: &TargetSettings| !s.events.is_empty() && (s.blame || s.revisions);
        let mut targets = self.targets.values();
        targets.any(|target| wants(&target.settings) && cares(&target.settings, event))
    }

    /// Who hears of workers; filters are for builders only.
    pub fn worker_recipients(&self) -> Vec<Name> {
        let worker = EventSet::of(&[Event::Worker]);
        let wants = |target: &&Target| target.settings.events.intersects(worker);
        let targets = self.targets.iter().filter(|(_, target)| wants(target));
        targets.map(|(name, _)| name.clone()).collect()
    }

    // The configuration

    /// Takes over a configuration that was read again. What was said by `notify` gives way where
    /// its section says something new. Returns the channels to join and those to leave.
    pub fn reconfigure(&mut self, irc: Irc) -> Changes {
        let name = |text: &String| self.casemapping.name(text);
        let old_settings: BTreeMap<Name, TargetSettings> = self
            .irc
            .channels
            .iter()
            .map(|c| (name(&c.name), c.settings.clone()))
            .collect();
        let new_names: BTreeSet<Name> = irc.channels.iter().map(|c| name(&c.name)).collect();
        let mut changes = Changes::default();
        for old in old_settings.keys() {
            if !new_names.contains(old) {
                changes.leave.push(old.clone());
            }
        }
        for channel in &irc.channels {
            let name = name(&channel.name);
            let key = channel.key.as_ref().map_or("", |key| &key.0);
            let before = old_settings.get(&name);
            if before.is_none_or(|before| before.events != channel.settings.events) {
                self.events.remove(&name);
            }
            self.left.remove(&name);
            self.joined.remove(&name);
            changes.join.push((name, key.to_owned()));
        }
        self.irc = irc;
        for gone in &changes.leave {
            self.forget(gone);
            self.left.remove(gone);
        }
        self.rebuild_targets();
        changes
    }
}

/// Patterns of the configuration that match nothing there is, each as a sentence: a slip of the pen
/// would silence a channel for ever.
pub fn idle_patterns<'a>(irc: &Irc, builders: impl Iterator<Item = &'a Builder>) -> Vec<String> {
    let builders: Vec<&Builder> = builders.collect();
    let mut sentences = Vec::new();
    let mut check = |section: &str, settings: &TargetSettings| {
        for pattern in settings.builders.patterns() {
            if !builders.iter().any(|builder| glob(pattern, &builder.name)) {
                sentences.push(format!(
                    "[{section}] `builders`: `{pattern}` matches no builder"
                ));
            }
        }
        for tag in settings.tags.patterns() {
            if !builders
                .iter()
                .any(|builder| builder.tags.iter().any(|own| own == tag))
            {
                sentences.push(format!("[{section}] `tags`: no builder is tagged `{tag}`"));
            }
        }
    };
    check("irc", &irc.defaults);
    for channel in &irc.channels {
        if channel.settings.builders != irc.defaults.builders
            || channel.settings.tags != irc.defaults.tags
        {
            check(&format!("channel {}", channel.name), &channel.settings);
        }
    }
    sentences
}

/// What a new configuration asks for.
#[derive(Debug, Default)]
pub struct Changes {
    pub join: Vec<(Name, String)>,
    pub leave: Vec<Name>,
}

/// The events that a build's start or end is.
fn events_of(event: &BuildEvent) -> EventSet {
    match event.build.outcome() {
        Some(outcome) => EventSet::of_ended_build(outcome, event.previous),
        None => EventSet::of(&[Event::Started]),
    }
}

fn cares(settings: &TargetSettings, event: &BuildEvent) -> bool {
    settings.tags.passes_any(&event.tags) && settings.builders.passes(&event.builder)
}

fn refold_keys<T: Clone>(map: &BTreeMap<Name, T>, mapping: Casemapping) -> BTreeMap<Name, T> {
    let refolded = map
        .iter()
        .map(|(name, value)| (name.refold(mapping), value.clone()));
    refolded.collect()
}

#[cfg(test)]
mod tests;
