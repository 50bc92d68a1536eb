//! The events that a channel can ask for: Buildbot's `notify_events`. An enum, and a set of them
//! as bits. Pure.

use crate::outcome::Outcome;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::ops::{BitOr, Sub};

/// Results between which there are transitions, in the order of their transition events.
const VERDICTS: [Outcome; 4] = [
    Outcome::Success,
    Outcome::Warnings,
    Outcome::Failure,
    Outcome::Exception,
];

/// The names of all events, each at the place of its bit (contract).
const NAMES: [&str; 28] = [
    "started",
    "finished",
    "success",
    "warnings",
    "failure",
    "exception",
    "cancelled",
    "problem",
    "recovery",
    "worse",
    "better",
    "worker",
    "successToSuccess",
    "successToWarnings",
    "successToFailure",
    "successToException",
    "warningsToSuccess",
    "warningsToWarnings",
    "warningsToFailure",
    "warningsToException",
    "failureToSuccess",
    "failureToWarnings",
    "failureToFailure",
    "failureToException",
    "exceptionToSuccess",
    "exceptionToWarnings",
    "exceptionToFailure",
    "exceptionToException",
];

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Started,
    Finished,
    Success,
    Warnings,
    Failure,
    Exception,
    Cancelled,
    Problem,
    Recovery,
    Worse,
    Better,
    Worker,
    /// From one result to another, each by its place in [`VERDICTS`].
    Transition(u8, u8),
}

impl Event {
    fn bit(self) -> u32 {
        let position = match self {
            Event::Started => 0,
            Event::Finished => 1,
            Event::Success => 2,
            Event::Warnings => 3,
            Event::Failure => 4,
            Event::Exception => 5,
            Event::Cancelled => 6,
            Event::Problem => 7,
            Event::Recovery => 8,
            Event::Worse => 9,
            Event::Better => 10,
            Event::Worker => 11,
            Event::Transition(from, to) => 12 + 4 * u32::from(from) + u32::from(to),
        };
        1 << position
    }
}

/// A set of events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventSet(u32);

impl EventSet {
    pub const EMPTY: EventSet = EventSet(0);

    /// What `notify on` alone means.
    pub fn started_and_finished() -> EventSet {
        EventSet::of(&[Event::Started, Event::Finished])
    }

    pub fn of(events: &[Event]) -> EventSet {
        let bits = events.iter().map(|event| event.bit());
        EventSet(bits.fold(0, BitOr::bitor))
    }

    /// The events that a text names, or else the first word that is none.
    pub fn parse(text: &str) -> Result<EventSet, &str> {
        let mut set = EventSet::EMPTY;
        for word in text.split_whitespace() {
            let position = NAMES.iter().position(|name| *name == word).ok_or(word)?;
            set.0 |= 1 << position;
        }
        Ok(set)
    }

    /// Every event that the end of a build is, given how the previous build that counts ended
    /// (`buildbot.reporters.words`, `notify_for_finished`). Where there was none, a build that
    /// goes wrong is a problem and is worse: a new builder or branch was never red before.
    pub fn of_ended_build(outcome: Outcome, previous: Option<Outcome>) -> EventSet {
        let mut events = vec![Event::Finished];
        match outcome {
            Outcome::Success => events.push(Event::Success),
            Outcome::Warnings => events.push(Event::Warnings),
            Outcome::Failure => events.push(Event::Failure),
            Outcome::Exception => events.push(Event::Exception),
            Outcome::Cancelled => events.push(Event::Cancelled),
            Outcome::Skipped | Outcome::Retry => {}
        }
        let Some(to) = verdict_position(outcome) else {
            return EventSet::of(&events);
        };
        let Some(previous) = previous else {
            if !outcome.is_good() {
                events.extend([Event::Problem, Event::Worse]);
            }
            return EventSet::of(&events);
        };
        if let Some(from) = verdict_position(previous) {
            events.push(Event::Transition(from, to));
            if outcome > previous {
                events.push(Event::Worse);
            }
            if outcome < previous {
                events.push(Event::Better);
            }
            match (previous.is_good(), outcome.is_good()) {
                (true, false) => events.push(Event::Problem),
                (false, true) => events.push(Event::Recovery),
                (true, true) | (false, false) => {}
            }
        }
        EventSet::of(&events)
    }

    pub fn is_empty(self) -> bool {
        self == EventSet::EMPTY
    }

    /// Whether the two have an event in common.
    pub fn intersects(self, other: EventSet) -> bool {
        self.0 & other.0 != 0
    }

    /// The names, in the order of the contract.
    pub fn names(self) -> Vec<&'static str> {
        let positions = 0..NAMES.len();
        let held = positions.filter(|position| self.0 & 1 << position != 0);
        held.map(|position| NAMES[position]).collect()
    }

    pub fn all_names() -> impl Iterator<Item = &'static str> {
        NAMES.iter().copied()
    }
}

fn verdict_position(outcome: Outcome) -> Option<u8> {
    let position = VERDICTS.iter().position(|verdict| *verdict == outcome);
    position.map(|position| position as u8)
}

impl BitOr for EventSet {
    type Output = EventSet;

    fn bitor(self, other: EventSet) -> EventSet {
        EventSet(self.0 | other.0)
    }
}

/// The events of the first that are not in the second.
impl Sub for EventSet {
    type Output = EventSet;

    fn sub(self, other: EventSet) -> EventSet {
        EventSet(self.0 & !other.0)
    }
}

impl fmt::Display for EventSet {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.names().join(" "))
    }
}

/// In the state file a set is a list of names, for whoever reads it.
impl Serialize for EventSet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.names().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for EventSet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<EventSet, D::Error> {
        let names = Vec::<String>::deserialize(deserializer)?.join(" ");
        let unknown = |name| de::Error::custom(format!("unknown event {name}"));
        EventSet::parse(&names).map_err(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_at_the_place_of_their_bit() {
        for (position, name) in NAMES.iter().enumerate() {
            assert_eq!(EventSet::parse(name), Ok(EventSet(1 << position)));
        }
        let transition = Event::Transition(2, 0);
        assert_eq!(EventSet::of(&[transition]).to_string(), "failureToSuccess");
        assert_eq!(EventSet::of(&[Event::Worker]).to_string(), "worker");
        assert_eq!(EventSet::parse("failure failed started"), Err("failed"));
    }

    /// Every pair of results against every event, told by the rules of Buildbot's own reporter.
    #[test]
    fn every_event_is_told_for_every_pair_of_results_that_it_names() {
        let severity = |o| VERDICTS.iter().position(|&verdict| verdict == o);
        let capital = |o: Outcome| o.word()[..1].to_uppercase() + &o.word()[1..];
        for name in NAMES {
            for was in Outcome::ALL {
                for now in Outcome::ALL {
                    let previous = Some(was).filter(|was| was.is_verdict());
                    let events = EventSet::of_ended_build(now, previous);
                    let told = EventSet::parse(name).unwrap().intersects(events);
                    let both = severity(was).zip(severity(now));
                    let first = severity(was).is_none() && severity(now) >= Some(2);
                    let expected = match name {
                        "started" | "worker" => false,
                        "finished" => true,
                        "worse" => first || both.is_some_and(|(a, b)| b > a),
                        "better" => both.is_some_and(|(a, b)| b < a),
                        "problem" => first || both.is_some_and(|(a, b)| a < 2 && b >= 2),
                        "recovery" => both.is_some_and(|(a, b)| a >= 2 && b < 2),
                        n if n.contains("To") => {
                            both.is_some() && n == format!("{}To{}", was.word(), capital(now))
                        }
                        n => n == now.word(),
                    };
                    assert_eq!(told, expected, "{name}: {was:?} then {now:?}");
                }
            }
        }
    }

    #[test]
    fn sets_are_added_and_subtracted() {
        let set = |text| EventSet::parse(text).unwrap();
        assert_eq!(set("started") | set("worse"), set("worse started"));
        assert_eq!(set("started worse") - set("started failure"), set("worse"));
        assert!(EventSet::EMPTY.is_empty() && !set("worker").is_empty());
    }
}
