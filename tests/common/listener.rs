//! Follows what is said to one target, line by line.

use super::{Client, Connection, Pause, TIMEOUT};
use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

/// A person's view of one target. No line is skipped, so a line too many fails the next expectation.
pub struct Listener {
    connection: Arc<Connection>,
    pub target: String,
    next: Cell<usize>,
}

impl Listener {
    /// Starts behind what was said so far.
    pub fn new(client: &Client, target: &str) -> Listener {
        Listener {
            connection: client.connection.clone(),
            target: target.to_string(),
            next: Cell::new(client.lines(target).len()),
        }
    }

    /// The next line: `<nick> text`, or `-nick- text` for a NOTICE.
    #[track_caller]
    pub fn next(&self) -> String {
        let index = self.next.get();
        let line = self.connection.wait_line(&self.target, index);
        let line = line.unwrap_or_else(|| panic!("no line in {}", self.target));
        self.next.set(index + 1);
        line
    }

    /// The next lines match these patterns, one a line of `expected`.
    #[track_caller]
    pub fn hear(&self, expected: &str) {
        for pattern in expected.lines() {
            let line = self.next();
            assert!(
                matches(pattern, &line),
                "in {}: expected\n  {pattern}\nbut heard\n  {line}",
                self.target
            );
        }
    }

    /// Says something to the target and hears the answer there.
    #[track_caller]
    pub fn ask(&self, text: &str, answer: &str) {
        self.connection.say(&self.target, text);
        self.hear(answer);
    }

    /// Asks again until the answer matches: the bot learns what the master knows a moment later than the test.
    #[track_caller]
    pub fn ask_until(&self, text: &str, answer: &str) {
        let end = Instant::now() + TIMEOUT;
        let mut pause = Pause::default();
        loop {
            self.connection.say(&self.target, text);
            let line = self.next();
            if matches(answer, &line) {
                return;
            }
            assert!(
                Instant::now() < end,
                "{text}: expected\n  {answer}\nbut heard\n  {line}"
            );
            pause.take();
        }
    }
}

/// Whether a text matches a pattern, in which `*` stands for anything.
pub fn matches(pattern: &str, text: &str) -> bool {
    let Some((head, tail)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(text) = text.strip_prefix(head) else {
        return false;
    };
    let mut rests = (0..=text.len()).filter_map(|start| text.get(start..));
    rests.any(|rest| matches(tail, rest))
}
