//! Buildsets that are told as one: what their places hear of them, and when.

use super::{Bot, NO_TICKET};
use crate::clock::unix_now;
use crate::config::Announce;
use crate::master::builder::BuildEvent;
use crate::master::details::{BuildsetInfo, Details};
use crate::master::jobs::{BuildsetAnswer, Job};
use crate::master::model::Model;
use crate::master::poller::lock;
use crate::master::resources::{Build, BuildRequest};
use crate::names::Name;
use crate::notify_events::{Event, EventSet};
use crate::routing::buildsets::{Audience, Places, Step, Told};
use crate::routing::{Routing, cares, events_of};
use crate::state_file::{Announcement, OpenBuildset};
use crate::text;
use crate::text::changes::{ToldBuild, change_label, ended_line, started_line, worst};
use std::collections::BTreeSet;
use std::time::Instant;

/// What the end of a build may take to reach us behind two polls, in seconds.
const GRACE: i64 = 5;
/// For how many seconds a buildset may keep what has ended to itself where `catch_up` is nothing.
const PATIENCE: i64 = 3600;

impl Bot {
    /// Whether a build has a line of its own everywhere.
    pub(super) fn is_alone(&self, event: &BuildEvent) -> bool {
        let has_changes = self.routing.change_targets().next().is_some();
        !has_changes || !event.is_new || event.build.request_id.is_none()
    }

    /// How long a build that has ended may take to reach us, and how long a buildset may keep what
    /// has ended to itself; in seconds.
    fn buildset_times(&self) -> (i64, i64) {
        let poll_interval = self.config.buildbot.poll_interval.as_secs() as i64;
        let patience = match self.config.catch_up.as_secs() as i64 {
            0 => PATIENCE,
            catch_up => catch_up,
        };
        (2 * poll_interval + GRACE, patience)
    }

    pub(super) fn next_buildset_due(&self) -> Option<i64> {
        if !lock(&self.handles.model).is_complete {
            return None;
        }
        let (grace, patience) = self.buildset_times();
        self.buildsets.next_due(unix_now(), grace, patience)
    }

    /// Tells what is due of the buildsets under way, and asks for what is not known.
    pub(super) fn tend_buildsets(&mut self, now: Instant) {
        // Before the first poll nobody knows which builders a place cares for.
        if !lock(&self.handles.model).is_complete {
            return;
        }
        let (grace, patience) = self.buildset_times();
        let steps = self.buildsets.take_due(unix_now(), grace, patience);
        if !steps.is_empty() {
            self.take_buildset_steps(steps);
            self.save_soon(now);
        }
    }

    pub(super) fn take_buildset_steps(&mut self, steps: Vec<Step>) {
        for step in steps {
            match step {
                Step::Ask(request, known) => {
                    let job = Job::Buildset { request, known };
                    if self.handles.details.try_send((NO_TICKET, job)).is_err() {
                        self.buildsets.on_not_asked(request, unix_now());
                    }
                }
                Step::TellStart(info, start) => self.tell_start(&info, &start),
                Step::TellEnd(told) => self.tell_end(&told),
                Step::TellAlone(builds, start, places) => {
                    if let Some(start) = start {
                        self.announce_alone(&start, None, &places);
                    }
                    for build in &builds {
                        self.announce_alone(&build.event, Some(&build.details), &places);
                    }
                }
            }
        }
    }

    /// A build that stands alone, for those of these places that want it and have not heard of it.
    fn announce_alone(&mut self, event: &BuildEvent, details: Option<&Details>, places: &Places) {
        let mut recipients = self.routing.recipients_alone(event);
        recipients.retain(|place, _| {
            let heard = places.get(place.as_str());
            heard.is_some_and(|heard| !heard.contains(&event.build.id))
        });
        self.announce_to(recipients, event, details);
    }

    /// The answer to a question about a buildset.
    pub(super) fn take_buildset_answer(&mut self, request: u64, answer: BuildsetAnswer) {
        let routing = &self.routing;
        let model = lock(&self.handles.model);
        let audience = |set: &OpenBuildset| audience_of(set, routing, &model);
        let unix = unix_now();
        let steps = self.buildsets.on_answer(request, answer, &audience, unix);
        drop(model);
        self.take_buildset_steps(steps);
    }

    /// One line for the start of a buildset, with the builders that a place cares for.
    fn tell_start(&mut self, info: &BuildsetInfo, start: &BuildEvent) {
        let started = EventSet::of(&[Event::Started]);
        let targets: Vec<Name> = self
            .routing
            .change_targets()
            .filter(|(_, settings)| settings.events.intersects(started))
            .map(|(name, _)| name.clone())
            .collect();
        let model = lock(&self.handles.model);
        let builders = builders_of(info, &start.build, &model);
        let base = model.identity.url.clone();
        drop(model);
        for target in targets {
            let settings = self.routing.settings(&target);
            let cared = builders.iter().filter(|(_, event)| cares(&settings, event));
            let names: Vec<String> = cared.map(|(_, event)| event.builder.clone()).collect();
            if !names.is_empty() {
                let text = started_line(info, start, &names, &self.config.nicks, &base);
                self.announce_line(&target, &text, Some(Event::Started));
            }
        }
    }

    /// One line for what has ended of a buildset, if the place has asked for one of its events.
    fn tell_end(&mut self, heard: &Told) {
        let target = self.canonical(&heard.place);
        let settings = self.routing.settings(&target);
        let builds: Vec<ToldBuild> = heard
            .builds
            .iter()
            .map(|build| ToldBuild {
                event: &build.event,
                is_wanted: events_of(&build.event).intersects(settings.events),
            })
            .collect();
        // A place may want builds by now, and one build is a line of its own.
        let is_by_change = settings.announce == Announce::Changes && builds.len() > 1;
        if !is_by_change {
            for build in &heard.builds {
                let places = [(heard.place.clone(), BTreeSet::new())].into();
                self.announce_alone(&build.event, Some(&build.details), &places);
            }
        } else if builds.iter().any(|build| build.is_wanted) {
            self.tell_builds(&target, heard, &builds);
        }
    }

    fn tell_builds(&mut self, target: &Name, heard: &Told, builds: &[ToldBuild]) {
        let Some(worst) = worst(builds) else {
            return;
        };
        let model = lock(&self.handles.model);
        let base = model.identity.url.clone();
        let clock_offset = model.clock_offset;
        drop(model);
        let unix = unix_now();
        let ended = builds
            .iter()
            .filter_map(|build| build.event.build.complete_at);
        let at = match ended.max() {
            // What is told because the rest takes so long is no old news.
            Some(at) if heard.open == 0 => at.saturating_sub(clock_offset),
            _ => unix,
        };
        let settings = self.routing.settings(target);
        let nicks = &self.config.nicks;
        let info = &heard.info;
        let announcement = Announcement {
            target: target.to_string(),
            at,
            outcome: worst.build.outcome(),
            label: change_label(info, worst.build.branch.as_deref()),
            url: text::build_url(&base, &worst.build),
            text: ended_line(info, builds, heard.open, &settings, nicks, &base),
            was_muted: self.routing.is_muted(target, unix),
            ..Announcement::default()
        };
        self.outbox.announce(target, announcement);
    }
}

/// Who is to hear of a buildset, and for which of its requests they care.
fn audience_of(set: &OpenBuildset, routing: &Routing, model: &Model) -> Vec<Audience> {
    let Some(info) = &set.info else {
        return Vec::new();
    };
    // All its builds are of one branch.
    let ended = set.builds.iter().map(|build| &build.event.build);
    let started = set.start.iter().map(|event| &event.build);
    let build = ended.chain(started).next().cloned().unwrap_or_default();
    let mut builders = builders_of(info, &build, model);
    // A builder that is gone is known by its build.
    for ended in set.builds.iter().map(|build| &build.event) {
        let request = ended.build.request_id.unwrap_or(0);
        if !builders.iter().any(|(known, _)| *known == request) {
            builders.push((request, ended.clone()));
        }
    }
    let mut places: BTreeSet<String> = set.places.keys().cloned().collect();
    places.extend(routing.change_targets().map(|(name, _)| name.to_string()));
    let mut audience = Vec::new();
    for place in places {
        let Some(settings) = routing.settings_of_target(&place) else {
            continue;
        };
        let cared = builders.iter().filter(|(_, event)| cares(&settings, event));
        audience.push(Audience {
            place,
            requests: cared.map(|(request, _)| *request).collect(),
        });
    }
    audience
}

/// What the filters look at, of each request of a buildset: a build like this one.
fn builders_of(info: &BuildsetInfo, build: &Build, model: &Model) -> Vec<(u64, BuildEvent)> {
    let event = |request: &BuildRequest| {
        let builder = model.builder(request.builder_id)?;
        let event = BuildEvent {
            builder: builder.name.clone(),
            tags: builder.tags.clone(),
            build: build.clone(),
            ..BuildEvent::default()
        };
        Some((request.id, event))
    };
    info.requests.iter().filter_map(event).collect()
}
