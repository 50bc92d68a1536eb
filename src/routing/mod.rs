//! Who hears of what: targets, their settings and mutes, filters, watches. The main thread's alone.
//! Pure.

pub mod buildsets;
pub mod watches;

use crate::config::{Announce, Channel, Irc, TargetSettings};
use crate::master::builder::{BuildEvent, Builder};
use crate::master::details::Wanted;
use crate::names::{Casemapping, Name, glob};
use crate::notify_events::{Event, EventSet};
use crate::state_file::State;
use std::collections::BTreeMap;
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

/// Who an event goes to, and whether because they wait for it.
pub type Recipients = BTreeMap<Name, bool>;

/// What was said in the chat about a channel or by a person.
#[derive(Clone, Debug, Default, PartialEq)]
struct Wishes {
    /// Where `notify` said something else than the configuration.
    events: Option<EventSet>,
    /// Seconds since the epoch.
    muted_until: Option<i64>,
    /// A channel was joined by command, with this key.
    joined: Option<String>,
    /// A configured channel was left by command.
    is_left: bool,
    /// When someone who is told was seen last.
    last_seen: Option<i64>,
}

impl Wishes {
    /// Whether they make a target of someone.
    fn is_target(&self) -> bool {
        self.events.is_some() || self.muted_until.is_some() || self.joined.is_some()
    }
}

#[derive(Debug, Default)]
pub struct Routing {
    irc: Irc,
    casemapping: Casemapping,
    targets: BTreeMap<Name, Target>,
    wishes: BTreeMap<Name, Wishes>,
    pub watches: Watches,
}

impl Routing {
    /// What the configuration says, and what was said in the chat before.
    pub fn new(irc: Irc, state: &State) -> Routing {
        let mut routing = Routing {
            irc,
            // What a server may tell apart is kept apart until it says.
            casemapping: Casemapping::Ascii,
            ..Routing::default()
        };
        for (target, events) in &state.events {
            routing.wishes_of(target).events = Some(*events);
        }
        for (target, until) in &state.muted {
            routing.wishes_of(target).muted_until = Some(*until);
        }
        for (target, key) in &state.joined {
            routing.wishes_of(target).joined = Some(key.clone());
        }
        for target in &state.left {
            routing.wishes_of(target).is_left = true;
        }
        for (target, at) in &state.last_seen {
            routing.wishes_of(target).last_seen = Some(*at);
        }
        routing.watches.import(&state.watches, routing.casemapping);
        routing.rebuild_targets();
        routing
    }

    fn wishes_of(&mut self, target: &str) -> &mut Wishes {
        let name = self.casemapping.name(target);
        self.wishes.entry(name).or_default()
    }

    /// What the state file remembers of all this.
    pub fn export(&self, state: &mut State) {
        state.events.clear();
        state.muted.clear();
        state.joined.clear();
        state.left.clear();
        state.last_seen.clear();
        for (name, wishes) in &self.wishes {
            let target = || name.to_string();
            if let Some(events) = wishes.events {
                state.events.insert(target(), events);
            }
            if let Some(until) = wishes.muted_until {
                state.muted.insert(target(), until);
            }
            if let Some(key) = &wishes.joined {
                state.joined.insert(target(), key.clone());
            }
            if wishes.is_left {
                state.left.insert(target());
            }
            if let Some(at) = wishes.last_seen {
                state.last_seen.insert(target(), at);
            }
        }
        state.watches = self.watches.export();
    }

    /// The server's way to compare names has become known.
    pub fn refold(&mut self, casemapping: Casemapping) {
        self.casemapping = casemapping;
        for (name, wishes) in std::mem::take(&mut self.wishes) {
            self.wishes.insert(name.refold(casemapping), wishes);
        }
        self.watches.refold(casemapping);
        self.rebuild_targets();
    }

    /// Makes the targets what the configuration and the chat say. Configured names come first: a
    /// name is written as it stands there.
    fn rebuild_targets(&mut self) {
        self.wishes.retain(|_, wishes| *wishes != Wishes::default());
        let channels = self.irc.channels.iter().map(|channel| &channel.name);
        let configured = channels.chain(&self.irc.pm_to_nicks);
        let mut names: Vec<Name> = configured.map(|name| self.casemapping.name(name)).collect();
        let wishing = self.wishes.iter().filter(|(_, wishes)| wishes.is_target());
        names.extend(wishing.map(|(name, _)| name.clone()));
        self.targets.clear();
        for name in names {
            if !self.targets.contains_key(&name) && self.is_wanted(&name) {
                let target = Target {
                    settings: self.settings(&name),
                    muted_until: self.wish(&name).and_then(|w| w.muted_until).unwrap_or(0),
                };
                self.targets.insert(name, target);
            }
        }
    }

    fn wish(&self, name: &Name) -> Option<&Wishes> {
        self.wishes.get(name)
    }

    /// A channel whose section is gone is none of ours, and one that was left neither.
    fn is_wanted(&self, name: &Name) -> bool {
        if !name.is_channel() {
            return true;
        }
        let is_joined = self
            .wish(name)
            .is_some_and(|wishes| wishes.joined.is_some());
        let is_left = self.wish(name).is_some_and(|wishes| wishes.is_left);
        !is_left && (is_joined || self.section(name).is_some())
    }

    fn section(&self, name: &Name) -> Option<&Channel> {
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
        if !name.is_channel() {
            settings.pm_blamed = false;
            if !self.is_configured_person(name) {
                settings.events = EventSet::EMPTY;
            }
        }
        settings
    }

    /// How a place wants its lines, and what it hears.
    pub fn settings(&self, name: &Name) -> TargetSettings {
        let mut settings = self.configured(name);
        if let Some(events) = self.wish(name).and_then(|wishes| wishes.events) {
            settings.events = events;
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

    /// All who are told of builds.
    pub fn targets(&self) -> impl Iterator<Item = &Name> {
        self.targets.keys()
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

    /// Channels that were joined by command, with their keys.
    pub fn joined(&self) -> impl Iterator<Item = (&Name, &str)> {
        let wishes = self.wishes.iter();
        wishes.filter_map(|(name, wishes)| Some((name, wishes.joined.as_deref()?)))
    }

    /// Configured channels that were left by command.
    pub fn left(&self) -> impl Iterator<Item = &Name> {
        let left = self.wishes.iter().filter(|(_, wishes)| wishes.is_left);
        left.map(|(name, _)| name)
    }

    // What is said in the chat

    /// A place wants to hear of these events. What the configuration says anyway is not remembered.
    pub fn set_events(&mut self, place: &Name, events: EventSet) {
        let is_usual = self.configured(place).events == events;
        self.wishes_of(place.as_str()).events = Some(events).filter(|_| !is_usual);
        self.rebuild_targets();
    }

    pub fn mute(&mut self, place: &Name, until: i64) {
        self.wishes_of(place.as_str()).muted_until = Some(until);
        self.rebuild_targets();
    }

    pub fn unmute(&mut self, place: &Name) {
        self.wishes_of(place.as_str()).muted_until = None;
        self.rebuild_targets();
    }

    /// When the next mute ends by itself, in seconds since the epoch.
    pub fn next_unmute(&self) -> Option<i64> {
        let mutes = self.wishes.values().filter_map(|wishes| wishes.muted_until);
        mutes.filter(|until| *until < i64::MAX).min()
    }

    /// Ends the mutes whose time is over. Returns whether there were any.
    pub fn end_mutes(&mut self, unix: i64) -> bool {
        if self.next_unmute().is_none_or(|until| until > unix) {
            return false;
        }
        for wishes in self.wishes.values_mut() {
            wishes.muted_until = wishes.muted_until.filter(|until| *until > unix);
        }
        self.rebuild_targets();
        true
    }

    /// We are to be in a channel, by command.
    pub fn join(&mut self, channel: &Name, key: &str) {
        let is_configured = self.section(channel).is_some();
        let wishes = self.wishes_of(channel.as_str());
        wishes.is_left = false;
        if !is_configured {
            wishes.joined = Some(key.to_owned());
        }
        self.rebuild_targets();
    }

    /// We are to leave a channel, by command: all that was said about it is forgotten.
    pub fn leave(&mut self, channel: &Name) {
        self.forget(channel);
        let is_configured = self.section(channel).is_some();
        self.wishes_of(channel.as_str()).is_left = is_configured;
        self.rebuild_targets();
    }

    fn forget(&mut self, name: &Name) {
        self.wishes.remove(name);
        self.watches.remove_target(name);
    }

    // People

    /// Someone has shown that they are there.
    pub fn note_seen(&mut self, name: &Name, unix: i64) {
        if !name.is_channel() && self.is_target(name) {
            self.wishes_of(name.as_str()).last_seen = Some(unix);
        }
    }

    /// Makes room for one more place to tell: those who were not seen for long give theirs up, and
    /// if that is not enough, whoever was gone longest. Returns who was dropped, or nothing if
    /// there is no room.
    pub fn make_room(&mut self, place: &Name, unix: i64) -> Option<Vec<Name>> {
        let mut dropped = self.drop_absent(unix);
        if self.is_full(place, unix) {
            let longest = self.guests().min_by_key(|name| self.last_seen(name));
            let longest = longest.cloned()?;
            self.forget(&longest);
            self.rebuild_targets();
            dropped.push(longest);
        }
        (!self.is_full(place, unix)).then_some(dropped)
    }

    fn is_full(&self, place: &Name, unix: i64) -> bool {
        let targets = self.targets.values();
        let busy = targets.filter(|t| t.muted_until > unix || !t.settings.events.is_empty());
        busy.count() >= TARGETS && !self.is_target(place)
    }

    fn last_seen(&self, name: &Name) -> Option<i64> {
        self.wish(name)?.last_seen
    }

    /// Forgets people who were not seen for long.
    pub fn drop_absent(&mut self, unix: i64) -> Vec<Name> {
        let is_absent = |name: &&Name| self.last_seen(name).is_some_and(|at| at + ABSENT < unix);
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
    /// nobody waits for it. Who wants changes hears of builds that stand alone only.
    pub fn recipients(&mut self, event: &BuildEvent, is_alone: bool) -> Recipients {
        let mut recipients = Recipients::new();
        if event.is_new {
            let interested = self.interested(event, is_alone);
            recipients.extend(interested.map(|(name, _)| (name.clone(), false)));
        }
        if !event.build.complete || event.start_was_missed {
            self.watches
                .on_started(&event.builder, event.build.request_id);
        }
        if let Some(request) = event.build.request_id.filter(|_| event.ends_request) {
            let watchers = self.watches.on_ended(request);
            recipients.extend(watchers.into_iter().map(|name| (name, true)));
            for name in recipients.keys() {
                self.watches.note_notified(name, request);
            }
        }
        recipients
    }

    fn interested(
        &self,
        event: &BuildEvent,
        is_alone: bool,
    ) -> impl Iterator<Item = (&Name, &Target)> {
        let events = events_of(event);
        self.targets.iter().filter(move |(_, target)| {
            let settings = &target.settings;
            let by_build = is_alone || settings.announce == Announce::Builds;
            by_build && settings.events.intersects(events) && cares(settings, event)
        })
    }

    /// The places that want a line for a change.
    pub fn change_targets(&self) -> impl Iterator<Item = (&Name, &TargetSettings)> {
        let targets = self.targets.iter();
        targets
            .filter(|(_, target)| {
                let settings = &target.settings;
                settings.announce == Announce::Changes && !settings.events.is_empty()
            })
            .map(|(name, target)| (name, &target.settings))
    }

    /// Who hears of a build that turns out to stand alone, whatever they want of changes.
    pub fn recipients_alone(&self, event: &BuildEvent) -> Recipients {
        let interested = self.interested(event, true);
        interested.map(|(name, _)| (name.clone(), false)).collect()
    }

    /// What a place wants, if it is told of anything.
    pub fn settings_of_target(&self, name: &str) -> Option<TargetSettings> {
        let target = self.targets.get(&self.casemapping.name(name));
        target.map(|target| target.settings.clone())
    }

    /// What someone will want to know of the end of a build beside its result.
    pub fn wanted_details(&self, event: &BuildEvent, is_alone: bool) -> Wanted {
        let Some(outcome) = event.build.outcome() else {
            return Wanted::default();
        };
        let wanted = |settings: &TargetSettings| Wanted {
            revisions: settings.revisions,
            authors: settings.blame && !outcome.is_good(),
            steps: !outcome.is_good() && event.build.tells_only_a_command(),
            buildset: false,
        };
        let mut all = Wanted::default();
        if event.is_new {
            for (_, target) in self.interested(event, is_alone) {
                all = all.or(wanted(&target.settings));
            }
            if self.blaming(event).next().is_some() {
                all.authors = true;
                all.buildset = event.buildset.is_none();
                all.steps |= event.build.tells_only_a_command();
            }
        }
        if let Some(request) = event.build.request_id.filter(|_| event.ends_request) {
            for target in self.watches.targets_of(request) {
                all = all.or(wanted(&self.settings(target)));
            }
        }
        all
    }

    /// The channels where whoever is blamed for this build also hears of it in private.
    pub fn blaming(&self, event: &BuildEvent) -> impl Iterator<Item = (&Name, &Target)> {
        let worse = EventSet::of(&[Event::Problem, Event::Worse]);
        let is_worse = event.is_new && events_of(event).intersects(worse);
        self.targets.iter().filter(move |(_, target)| {
            let settings = &target.settings;
            is_worse && settings.pm_blamed && cares(settings, event)
        })
    }

    /// Whether someone will perhaps want to know who is behind a build that has started.
    pub fn may_need_details(&self, event: &BuildEvent) -> bool {
        let wants =
            |s: &TargetSettings| s.pm_blamed || !s.events.is_empty() && (s.blame || s.revisions);
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
        let old = std::mem::replace(&mut self.irc, irc);
        let mut changes = Changes::default();
        for channel in &old.channels {
            let name = self.casemapping.name(&channel.name);
            if self.section(&name).is_none() {
                self.forget(&name);
                changes.leave.push(name);
            }
        }
        for channel in self.irc.channels.clone() {
            let name = self.casemapping.name(&channel.name);
            let is_same = |old: &&Channel| self.casemapping.name(&old.name) == name;
            let before = old.channels.iter().find(is_same);
            let says_new = before.is_none_or(|old| old.settings.events != channel.settings.events);
            let is_new_section = before.is_none();
            let wishes = self.wishes_of(&channel.name);
            wishes.is_left &= !is_new_section;
            wishes.joined = None;
            if says_new {
                wishes.events = None;
            }
            if !wishes.is_left {
                let key = channel.key.map_or_else(String::new, |key| key.0);
                changes.join.push((name, key));
            }
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
        let passes = |builder: &&Builder| {
            let name = settings.builders.passes(&builder.name);
            name && settings.tags.passes_any(&builder.tags)
        };
        if settings.has_patterns() && !builders.iter().any(passes) {
            sentences.push(format!(
                "[{section}] `builders` and `tags` together leave no builder"
            ));
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
pub fn events_of(event: &BuildEvent) -> EventSet {
    match event.build.outcome() {
        Some(outcome) => EventSet::of_ended_build(outcome, event.previous),
        None => EventSet::of(&[Event::Started]),
    }
}

/// Whether the filters of a place let a build through.
pub fn cares(settings: &TargetSettings, event: &BuildEvent) -> bool {
    let branch = event.build.branch.as_deref().unwrap_or("");
    settings.tags.passes_any(&event.tags)
        && settings.builders.passes(&event.builder)
        && settings.branches.passes(branch)
}

#[cfg(test)]
mod tests;
