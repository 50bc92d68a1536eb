//! Buildsets that are told as one: what their places hear of them, and when.

use super::{Bot, NO_TICKET};
use crate::clock::unix_now;
use crate::master::builder::BuildEvent;
use crate::master::details::BuildsetInfo;
use crate::master::jobs::Job;
use crate::master::poller::lock;
use crate::names::Name;
use crate::notify_events::{Event, EventSet};
use crate::routing::buildsets::Step;
use crate::routing::cares;
use crate::state_file::{Announcement, EndedBuild, OpenBuildset};
use crate::text;
use crate::text::changes::{Told, change_label, ended_line, is_wanted, started_line, worst};
use std::time::Instant;

/// What the end of a build may take to reach us behind two polls, in seconds.
const GRACE: i64 = 5;

impl Bot {
    /// Whether a build has a line of its own everywhere.
    pub(super) fn is_alone(&self, event: &BuildEvent) -> bool {
        let is_of_one = event.buildset.is_some_and(|set| set.builders == 1);
        let has_changes = self.routing.change_targets().next().is_some();
        is_of_one || !has_changes || !event.is_new || event.build.request_id.is_none()
    }

    /// How long a build that has ended may take to reach us, and how long a buildset may keep what
    /// has ended to itself; in seconds.
    fn buildset_times(&self) -> (i64, i64) {
        let poll_interval = self.config.buildbot.poll_interval.as_secs() as i64;
        (
            2 * poll_interval + GRACE,
            self.config.catch_up.as_secs() as i64,
        )
    }

    pub(super) fn next_buildset_due(&self) -> Option<i64> {
        let (grace, patience) = self.buildset_times();
        self.buildsets.next_due(grace, patience)
    }

    /// Tells what is due of the buildsets under way, and asks for what is not known.
    pub(super) fn tend_buildsets(&mut self, now: Instant) {
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
                Step::TellStart(set, start) => self.tell_start(&set, &start),
                Step::TellEnd(set, open) => self.tell_end(&set, open),
                Step::TellAlone(builds, start) => {
                    if let Some(start) = start {
                        let recipients = self.routing.change_recipients(&start);
                        self.announce_to(recipients, &start, None);
                    }
                    for build in &builds {
                        let recipients = self.routing.change_recipients(&build.event);
                        self.announce_to(recipients, &build.event, Some(&build.details));
                    }
                }
            }
        }
    }

    /// One line for the start of a buildset, with the builders that a place cares for.
    fn tell_start(&mut self, set: &OpenBuildset, start: &BuildEvent) {
        let Some(info) = &set.info else {
            return;
        };
        let started = EventSet::of(&[Event::Started]);
        let targets: Vec<Name> = self
            .routing
            .change_targets()
            .filter(|(_, settings)| settings.events.intersects(started))
            .map(|(name, _)| name.clone())
            .collect();
        let builders = self.builders_of(info, start);
        let base = lock(&self.handles.model).identity.url.clone();
        for target in targets {
            let settings = self.routing.settings(&target);
            let cared = builders.iter().filter(|builder| cares(&settings, builder));
            let names: Vec<String> = cared.map(|builder| builder.builder.clone()).collect();
            if !names.is_empty() {
                let text = started_line(info, start, &names, &self.config.nicks, &base);
                self.announce_line(&target, &text, false);
            }
        }
    }

    /// What the filters look at, of each builder of a buildset: builds of them that start.
    fn builders_of(&self, info: &BuildsetInfo, start: &BuildEvent) -> Vec<BuildEvent> {
        let model = lock(&self.handles.model);
        let requests = info.requests.iter();
        let builders = requests.filter_map(|request| model.builder(request.builder_id));
        builders
            .map(|builder| BuildEvent {
                builder: builder.name.clone(),
                tags: builder.tags.clone(),
                build: start.build.clone(),
                ..BuildEvent::default()
            })
            .collect()
    }

    /// One line for what has ended of a buildset, to each place that has asked for one of its events.
    fn tell_end(&mut self, set: &OpenBuildset, open: usize) {
        let Some(info) = &set.info else {
            return;
        };
        let targets: Vec<Name> = self
            .routing
            .change_targets()
            .map(|(n, _)| n.clone())
            .collect();
        for target in targets {
            let settings = self.routing.settings(&target);
            let cared = set
                .builds
                .iter()
                .filter(|build| cares(&settings, &build.event));
            let builds: Vec<&EndedBuild> = cared.collect();
            let told: Vec<Told> = builds
                .iter()
                .map(|build| Told {
                    event: &build.event,
                    is_wanted: is_wanted(&build.event, settings.events),
                })
                .collect();
            if !told.iter().any(|told| told.is_wanted) {
                continue;
            }
            if let [only] = builds[..] {
                let recipients = [(target, false)].into();
                self.announce_to(recipients, &only.event, Some(&only.details));
                continue;
            }
            self.tell_builds(&target, info, &told, open);
        }
    }

    fn tell_builds(&mut self, target: &Name, info: &BuildsetInfo, told: &[Told], open: usize) {
        let Some(worst) = worst(told) else {
            return;
        };
        let model = lock(&self.handles.model);
        let base = model.identity.url.clone();
        let clock_offset = model.clock_offset;
        drop(model);
        let unix = unix_now();
        let ended = told.iter().filter_map(|told| told.event.build.complete_at);
        let at = ended
            .max()
            .map_or(unix, |at| at.saturating_sub(clock_offset));
        let settings = self.routing.settings(target);
        let label = change_label(info, worst.build.branch.as_deref());
        let announcement = Announcement {
            target: target.to_string(),
            at,
            outcome: worst.build.outcome(),
            label: label.clone(),
            builder: label,
            url: text::build_url(&base, &worst.build),
            text: ended_line(info, told, open, &settings, &self.config.nicks, &base),
            was_muted: self.routing.is_muted(target, unix),
            ..Announcement::default()
        };
        self.outbox.announce(target, announcement);
    }
}
