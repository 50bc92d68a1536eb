//! Watches: who waits for the end of which build. Pure.
//!
//! ```text
//! next build of a builder ──it starts──► waiting for a request ──its end──► told
//! ```

use crate::names::{Casemapping, Name};
use crate::state_file;
use std::collections::{BTreeSet, VecDeque};

/// Ends that were told lately: who comes to watch one too late is not told twice.
const NOTIFIED: usize = 200;
/// Watches of one target, and of all; beyond it the oldest are dropped.
const PER_TARGET: usize = 50;
const ALL: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    pub target: Name,
    pub what: Watched,
    /// Whose request it is: `nick!user@host`; empty for a mere watch.
    pub mask: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watched {
    Request(u64),
    /// The next build of this builder.
    NextBuildOf(String),
}

#[derive(Debug, Default)]
pub struct Watches {
    waiting: Vec<Watch>,
    notified: VecDeque<(Name, u64)>,
}

impl Watches {
    /// From now on. One target waits for one request once, whoever asks there. Returns false if
    /// its end was told there already.
    pub fn add(&mut self, watch: Watch) -> bool {
        if let Watched::Request(request) = watch.what
            && self.notified.contains(&(watch.target.clone(), request))
        {
            return false;
        }
        let same = |w: &&mut Watch| w.target == watch.target && w.what == watch.what;
        if let Some(known) = self.waiting.iter_mut().find(same) {
            if known.mask.is_empty() {
                known.mask = watch.mask;
            }
            return true;
        }
        let of_target = |w: &Watch| w.target == watch.target;
        if self.waiting.iter().filter(|w| of_target(w)).count() >= PER_TARGET
            && let Some(oldest) = self.waiting.iter().position(of_target)
        {
            self.waiting.remove(oldest);
        }
        if self.waiting.len() >= ALL {
            self.waiting.remove(0);
        }
        self.waiting.push(watch);
        true
    }

    /// The requests that someone waits for.
    pub fn requests(&self) -> BTreeSet<u64> {
        let requests = self.waiting.iter().filter_map(|watch| match watch.what {
            Watched::Request(request) => Some(request),
            Watched::NextBuildOf(_) => None,
        });
        requests.collect()
    }

    /// The requests that someone has made and waits for.
    pub fn requests_of(&self, mask: &str) -> Vec<u64> {
        let own = self.waiting.iter().filter(|watch| watch.mask == mask);
        let requests = own.filter_map(|watch| match watch.what {
            Watched::Request(request) => Some(request),
            Watched::NextBuildOf(_) => None,
        });
        requests.collect()
    }

    /// Who waits for a request.
    pub fn targets_of(&self, request: u64) -> impl Iterator<Item = &Name> {
        let what = Watched::Request(request);
        let waiting = self.waiting.iter().filter(move |watch| watch.what == what);
        waiting.map(|watch| &watch.target)
    }

    /// A build has started: who waits for the next one of its builder waits for it.
    pub fn on_started(&mut self, builder: &str, request: Option<u64>) {
        let Some(request) = request else {
            return;
        };
        let next = Watched::NextBuildOf(builder.to_owned());
        let due: Vec<Watch> = self
            .waiting
            .extract_if(.., |watch| watch.what == next)
            .collect();
        for mut watch in due {
            watch.what = Watched::Request(request);
            self.add(watch);
        }
    }

    /// A request has come to its end: who is to be told.
    pub fn on_ended(&mut self, request: u64) -> Vec<Name> {
        let what = Watched::Request(request);
        let over = self.waiting.extract_if(.., |watch| watch.what == what);
        over.map(|watch| watch.target).collect()
    }

    /// The end of a request was told to a target.
    pub fn note_notified(&mut self, target: &Name, request: u64) {
        self.notified.push_back((target.clone(), request));
        if self.notified.len() > NOTIFIED {
            self.notified.pop_front();
        }
    }

    /// A request was merged into another: the watches move on to that.
    pub fn on_merged(&mut self, request: u64, into: u64) {
        let what = Watched::Request(request);
        let moved: Vec<Watch> = self
            .waiting
            .extract_if(.., |watch| watch.what == what)
            .collect();
        for mut watch in moved {
            watch.what = Watched::Request(into);
            self.add(watch);
        }
    }

    pub fn remove_target(&mut self, target: &Name) {
        self.waiting.retain(|watch| watch.target != *target);
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    pub fn refold(&mut self, casemapping: Casemapping) {
        for watch in &mut self.waiting {
            watch.target = watch.target.refold(casemapping);
        }
        for (target, _) in &mut self.notified {
            *target = target.refold(casemapping);
        }
    }

    /// As the state file remembers them.
    pub fn export(&self) -> Vec<state_file::Watch> {
        let export = |watch: &Watch| {
            let (request, next_build_of) = match &watch.what {
                Watched::Request(request) => (*request, None),
                Watched::NextBuildOf(builder) => (0, Some(builder.clone())),
            };
            state_file::Watch {
                target: watch.target.to_string(),
                request,
                next_build_of,
                mask: watch.mask.clone(),
            }
        };
        self.waiting.iter().map(export).collect()
    }

    pub fn import(&mut self, watches: &[state_file::Watch], casemapping: Casemapping) {
        for watch in watches {
            let what = match &watch.next_build_of {
                Some(builder) => Watched::NextBuildOf(builder.clone()),
                None => Watched::Request(watch.request),
            };
            self.add(Watch {
                target: casemapping.name(&watch.target),
                what,
                mask: watch.mask.clone(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Casemapping::default().name(text)
    }

    fn watch(target: &str, request: u64, mask: &str) -> Watch {
        Watch {
            target: name(target),
            what: Watched::Request(request),
            mask: mask.into(),
        }
    }

    #[test]
    fn a_watch_and_a_force_of_one_request_are_one_in_one_place() {
        let mut watches = Watches::default();
        watches.add(watch("#c", 7, ""));
        watches.add(watch("#C", 7, "joe!u@h"));
        watches.add(watch("joe", 7, ""));
        assert_eq!(watches.requests_of("joe!u@h"), [7]);
        assert_eq!(watches.on_ended(7), [name("#c"), name("joe")]);
        assert_eq!(watches.on_ended(7), []);
    }

    #[test]
    fn an_end_that_was_told_is_not_watched_again() {
        let mut watches = Watches::default();
        watches.note_notified(&name("#c"), 7);
        assert!(!watches.add(watch("#c", 7, "")));
        assert!(watches.add(watch("joe", 7, "")));
        (100..100 + NOTIFIED as u64)
            .for_each(|request| watches.note_notified(&name("#c"), request));
        assert!(watches.add(watch("#c", 7, "")), "that was long ago");
    }

    #[test]
    fn a_merged_request_hands_its_watches_on() {
        let mut watches = Watches::default();
        watches.add(watch("#c", 7, "joe!u@h"));
        watches.add(watch("#c", 8, ""));
        watches.on_merged(7, 8);
        assert_eq!(watches.on_ended(7), []);
        assert_eq!(watches.requests_of("joe!u@h"), [8]);
        assert_eq!(watches.on_ended(8), [name("#c")]);
    }

    #[test]
    fn the_next_build_of_a_builder_is_waited_for() {
        let mut watches = Watches::default();
        watches.add(Watch {
            what: Watched::NextBuildOf("app".into()),
            ..watch("#c", 0, "")
        });
        assert!(watches.requests().is_empty());
        watches.on_started("lib", Some(5));
        watches.on_started("app", Some(6));
        watches.on_started("app", Some(7));
        assert_eq!(watches.requests(), [6].into());
    }

    #[test]
    fn one_target_cannot_hold_any_number_of_watches() {
        let mut watches = Watches::default();
        for request in 0..1000 {
            assert!(watches.add(watch("joe", request, "")));
        }
        assert_eq!(watches.requests().len(), PER_TARGET);
        assert!(watches.requests().contains(&999));
        for number in 0..5000 {
            watches.add(watch(&format!("n{number}"), number, ""));
        }
        assert!(watches.waiting.len() <= ALL);
    }

    #[test]
    fn watches_survive_in_the_state_file() {
        let mut watches = Watches::default();
        watches.add(watch("#c", 7, "joe!u@h"));
        watches.add(Watch {
            what: Watched::NextBuildOf("app".into()),
            ..watch("joe", 0, "")
        });
        let mut again = Watches::default();
        again.import(&watches.export(), Casemapping::default());
        assert_eq!(again.waiting, watches.waiting);
    }
}
