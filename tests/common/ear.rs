//! Listening to what is said at one place, line by line.

use super::{Client, TIMEOUT, wait_for};
use std::cell::Cell;
use std::time::Instant;

/// A person listens to what is said at a place. No line is skipped, so one too many fails the next expectation.
pub struct Ear<'a> {
    client: &'a Client,
    pub place: String,
    heard: Cell<usize>,
}

impl<'a> Ear<'a> {
    pub fn new(client: &'a Client, place: &str) -> Ear<'a> {
        let heard = Cell::new(client.lines(place).len());
        Ear {
            client,
            place: place.to_string(),
            heard,
        }
    }

    /// The next line: `<nick> text`, or `-nick- text` for a NOTICE.
    #[track_caller]
    pub fn next(&self) -> String {
        let (at, end) = (self.heard.get(), Instant::now() + TIMEOUT);
        let line = wait_for("a line", 2 * TIMEOUT, || {
            let line = self.client.lines(&self.place).get(at).cloned();
            let late = line.is_none() && Instant::now() > end;
            assert!(
                !late,
                "no line in {}:\n  {}",
                self.place,
                self.client.conversation()
            );
            line
        });
        self.heard.set(at + 1);
        line
    }

    /// The next lines are these, one a line of `wanted`; `*` stands for anything.
    #[track_caller]
    pub fn hear(&self, wanted: &str) {
        for wanted in wanted.lines() {
            let line = self.next();
            assert!(
                like(wanted, &line),
                "in {}: wanted\n  {wanted}\nbut heard\n  {line}",
                self.place
            );
        }
    }

    /// Says something here and hears the answer.
    #[track_caller]
    pub fn ask(&self, text: &str, answer: &str) {
        self.client.say(&self.place, text);
        self.hear(answer);
    }

    /// The same, until the answer is what it should be: the bot hears of the master's news a moment later than we.
    #[track_caller]
    pub fn ask_until(&self, text: &str, answer: &str) {
        let mut line = String::new();
        for _ in 0..6 {
            self.client.say(&self.place, text);
            line = self.next();
            if like(answer, &line) {
                return;
            }
        }
        panic!("{text}: wanted\n  {answer}\nbut heard\n  {line}");
    }
}

/// Whether a text is as a pattern says, in which `*` stands for anything.
pub fn like(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text.strip_prefix(head).is_some_and(|text| {
            let mut rests = (0..=text.len()).filter_map(|i| text.get(i..));
            rests.any(|rest| like(tail, rest))
        }),
    }
}
