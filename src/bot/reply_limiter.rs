//! Two bots that answer each other would do so for ever. So a person in private gets only so many
//! identical answers, or answers that say what was wrong, in a while. Pure.

use crate::names::Name;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Answers of one kind in that time; then silence until it is over.
const ANSWERS: u32 = 5;
const WHILE: Duration = Duration::from_secs(300);
/// People who are remembered.
const PEOPLE: usize = 1000;

#[derive(Debug)]
struct Recent {
    since: Instant,
    /// Answers that said what was wrong.
    errors: u32,
    /// The last answer, and how often it was given in a row.
    last: String,
    repeats: u32,
}

#[derive(Debug, Default)]
pub struct ReplyLimiter {
    people: BTreeMap<Name, Recent>,
}

impl ReplyLimiter {
    /// Whether this answer should be given; it is counted.
    pub fn allows(&mut self, nick: &Name, answer: &str, is_error: bool, now: Instant) -> bool {
        if self.people.len() >= PEOPLE {
            self.people.retain(|_, recent| now < recent.since + WHILE);
        }
        let new = || Recent {
            since: now,
            errors: 0,
            last: String::new(),
            repeats: 0,
        };
        let recent = self.people.entry(nick.clone()).or_insert_with(new);
        if now >= recent.since + WHILE {
            *recent = new();
        }
        if recent.last == answer {
            recent.repeats += 1;
        } else {
            answer.clone_into(&mut recent.last);
            recent.repeats = 1;
        }
        recent.errors += u32::from(is_error);
        recent.repeats <= ANSWERS && (!is_error || recent.errors <= ANSWERS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Casemapping;

    #[test]
    fn the_same_answer_is_given_a_few_times_only() {
        let nick = Casemapping::Ascii.name("otherbot");
        let start = Instant::now();
        let mut limiter = ReplyLimiter::default();
        let mut given = |answer: &str, is_error, at| {
            let answers = (0..100).filter(|_| limiter.allows(&nick, answer, is_error, at));
            answers.count()
        };
        assert_eq!(given("hello, otherbot", false, start), 5);
        assert_eq!(given("something else", false, start), 5);
        assert_eq!(given("unknown command", true, start), 5);
        assert_eq!(given("no such thing", true, start), 0, "errors add up");
        assert_eq!(
            given("notify is on", false, start),
            5,
            "what is done is said"
        );
        assert_eq!(given("unknown command", true, start + WHILE), 5);
    }

    #[test]
    fn crowds_do_not_fill_the_memory() {
        let start = Instant::now();
        let mut limiter = ReplyLimiter::default();
        for number in 0..5000u32 {
            let nick = Casemapping::Ascii.name(&format!("n{number}"));
            let at = start + Duration::from_secs(u64::from(number));
            limiter.allows(&nick, "x", true, at);
        }
        assert!(limiter.people.len() <= PEOPLE);
    }
}
