//! Build events on their way to their targets: some wait a moment for who is behind the build. What
//! became known together goes on together, and in its order, so that a burst makes one summary.
//! Nothing waits longer than that moment. Pure.

use crate::master::details::{Details, Wanted};
use crate::master::model::{BuildCursor, MasterEvent};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// The longest that a line waits for what is nice to have in it.
const PATIENCE: Duration = Duration::from_secs(1);
/// Builds whose details are kept until they end.
const KNOWN: usize = 500;

struct Waiting {
    event: MasterEvent,
    wanted: Wanted,
    until: Instant,
    batch: u64,
}

/// An event that can go on, with what is known of its build.
pub struct Ready {
    pub event: MasterEvent,
    pub details: Option<Details>,
}

#[derive(Default)]
pub struct EventQueue {
    waiting: VecDeque<Waiting>,
    details: BTreeMap<u64, Details>,
    batch: u64,
    /// How far the master's builds are known after each batch.
    cursors: VecDeque<(u64, BuildCursor)>,
}

impl EventQueue {
    /// A batch of events begins that brings the cursor here. Until all its events are through, an
    /// older one is remembered: a crash repeats a line rather than skip it.
    pub fn begin_batch(&mut self, cursor: BuildCursor) {
        self.batch += 1;
        self.cursors.push_back((self.batch, cursor));
    }

    /// Adds an event. Returns what is to be asked for, since it is wanted and not known.
    pub fn push(&mut self, event: MasterEvent, wanted: Wanted, now: Instant) -> Wanted {
        let missing = match build_id(&event) {
            Some(build) => self.missing(build, wanted),
            None => Wanted::default(),
        };
        self.waiting.push_back(Waiting {
            event,
            wanted,
            until: now + PATIENCE,
            batch: self.batch,
        });
        missing
    }

    /// What is wanted of a build and not known. Some can be asked for while it runs.
    fn missing(&self, build: u64, wanted: Wanted) -> Wanted {
        let known = self.details.get(&build).map(|details| details.known);
        wanted.without(known.unwrap_or_default())
    }

    /// Something has become known of a build.
    pub fn on_details(&mut self, build: u64, details: Details) {
        self.details.entry(build).or_default().add(details);
        if self.details.len() > KNOWN {
            self.details.pop_first();
        }
    }

    /// The events that can go on now, batch by batch.
    pub fn take_ready(&mut self, now: Instant) -> Vec<Ready> {
        let mut ready = Vec::new();
        while let Some(batch) = self.waiting.front().map(|first| first.batch) {
            let in_batch = self.waiting.iter().take_while(|w| w.batch == batch);
            let length = in_batch.clone().count();
            if in_batch.clone().any(|waiting| self.must_wait(waiting, now)) {
                break;
            }
            let through: Vec<Waiting> = self.waiting.drain(..length).collect();
            for waiting in through {
                let build = build_id(&waiting.event);
                ready.push(Ready {
                    details: build.and_then(|build| self.take_details(build, &waiting.event)),
                    event: waiting.event,
                });
            }
        }
        ready
    }

    fn must_wait(&self, waiting: &Waiting, now: Instant) -> bool {
        let build = build_id(&waiting.event);
        let is_known = build.is_none_or(|build| self.missing(build, waiting.wanted).is_empty());
        !is_known && now < waiting.until
    }

    /// What is known of a build; once it has ended, nobody asks again.
    fn take_details(&mut self, build: u64, event: &MasterEvent) -> Option<Details> {
        match event {
            MasterEvent::Build(event) if event.build.complete => self.details.remove(&build),
            _ => None,
        }
    }

    /// How far all events are through, if that has changed.
    pub fn take_cursor(&mut self) -> Option<BuildCursor> {
        let open = self
            .waiting
            .front()
            .map_or(u64::MAX, |waiting| waiting.batch);
        let mut settled = None;
        while self.cursors.front().is_some_and(|(batch, _)| *batch < open) {
            settled = self.cursors.pop_front().map(|(_, cursor)| cursor);
        }
        settled
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|waiting| waiting.until)
    }
}

fn build_id(event: &MasterEvent) -> Option<u64> {
    match event {
        MasterEvent::Build(event) => Some(event.build.id),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::master::builder::BuildEvent;
    use crate::master::resources::Build;

    fn ended(id: u64, builder_id: u64) -> MasterEvent {
        let build = Build {
            id,
            builder_id,
            complete: true,
            ..Build::default()
        };
        MasterEvent::Build(Box::new(BuildEvent {
            build,
            ..BuildEvent::default()
        }))
    }

    fn cursor(id: u64) -> BuildCursor {
        BuildCursor {
            last_build_id: Some(id),
            ..BuildCursor::default()
        }
    }

    fn ids(ready: Vec<Ready>) -> Vec<u64> {
        ready
            .iter()
            .filter_map(|ready| build_id(&ready.event))
            .collect()
    }

    const NOTHING: Wanted = Wanted {
        authors: false,
        revisions: false,
        steps: false,
        buildset: false,
    };
    const AUTHORS: Wanted = Wanted {
        authors: true,
        ..NOTHING
    };
    const REVISIONS: Wanted = Wanted {
        revisions: true,
        ..NOTHING
    };

    #[test]
    fn who_does_not_care_who_did_it_waits_for_nothing() {
        let mut queue = EventQueue::default();
        let now = Instant::now();
        queue.begin_batch(cursor(1));
        assert_eq!(queue.push(ended(1, 1), NOTHING, now), NOTHING);
        assert_eq!(ids(queue.take_ready(now)), [1]);
        assert_eq!(queue.take_cursor(), Some(cursor(1)));
        assert_eq!(queue.deadline(), None);
    }

    #[test]
    fn a_line_waits_a_second_for_its_authors_and_no_longer() {
        let mut queue = EventQueue::default();
        let now = Instant::now();
        queue.begin_batch(cursor(1));
        assert_eq!(queue.push(ended(1, 1), AUTHORS, now), AUTHORS);
        queue.begin_batch(cursor(3));
        queue.push(ended(2, 1), NOTHING, now);
        queue.push(ended(3, 2), NOTHING, now + PATIENCE);
        assert!(queue.take_ready(now).is_empty());
        assert_eq!(queue.take_cursor(), None, "not while the first waits");
        assert_eq!(queue.deadline(), Some(now + PATIENCE));
        let late = queue.take_ready(now + PATIENCE);
        assert!(late[0].details.is_none());
        assert_eq!(ids(late), [1, 2, 3], "in their order");
        assert_eq!(queue.take_cursor(), Some(cursor(3)));
    }

    #[test]
    fn what_was_asked_for_while_the_build_ran_is_used_at_its_end() {
        let mut queue = EventQueue::default();
        let now = Instant::now();
        let details = Details {
            known: AUTHORS,
            authors: vec!["Ann".into()],
            ..Details::default()
        };
        queue.on_details(1, details.clone());
        assert_eq!(queue.push(ended(1, 1), AUTHORS, now), NOTHING);
        let ready = queue.take_ready(now);
        assert_eq!(ready[0].details, Some(details.clone()));
        queue.on_details(2, details);
        assert_eq!(queue.push(ended(2, 1), REVISIONS, now), REVISIONS);
        assert!(queue.take_ready(now).is_empty());
        let without_revision = Details {
            known: REVISIONS,
            ..Details::default()
        };
        queue.on_details(2, without_revision);
        let ready = queue.take_ready(now);
        assert!(
            ready[0]
                .details
                .as_ref()
                .is_some_and(|d| !d.authors.is_empty())
        );
        assert_eq!(ids(ready), [2], "it has no revision");
    }
}
