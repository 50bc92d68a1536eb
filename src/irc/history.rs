//! Whether a message is history: something that a server or a bouncer plays back to whoever joins.
//! Such a message is never a command, whoever has the nick now. Pure, but for our clock.

use super::wire::Message;
use crate::clock;
use crate::names::Name;
use std::collections::{BTreeMap, BTreeSet};

/// Batches that can be open at once; further ones are ignored.
const BATCHES: usize = 100;
/// The names of batches that hold history (IRCv3 chathistory; ZNC's playback module).
const HISTORY_BATCHES: [&str; 2] = ["chathistory", "znc.in/playback"];
/// What ZNC says around the buffer that it plays back.
const PLAYBACK_BEGINS: &str = "Buffer Playback...";
const PLAYBACK_ENDS: &str = "Playback Complete.";

/// A point in time as the `server-time` tag has it: `2026-11-28T12:09:35.123Z`. Written that way,
/// times compare as texts.
type ServerTime = String;

/// Some bouncers tell the time of what they play back only. Then our own clock has to do, which may
/// be wrong by so many seconds.
const CLOCK_ERROR: i64 = 60;

/// When a message that we hear now was sent.
fn sent_at(message: &Message) -> ServerTime {
    let here = || clock::rfc3339(clock::unix_now() - CLOCK_ERROR);
    message.tag("time").unwrap_or_else(here)
}

/// What is known of one connection's history.
#[derive(Debug, Default)]
pub struct History {
    /// Open batches, and whether each holds history.
    batches: BTreeMap<String, bool>,
    /// When we were let in.
    connected_at: Option<ServerTime>,
    /// When we joined each channel.
    joined_at: BTreeMap<Name, ServerTime>,
    /// Where a bouncer is playing back its buffer.
    playing: BTreeSet<Name>,
}

impl History {
    /// `BATCH +REF TYPE …` opens a batch, `BATCH -REF` closes it; one can stand in another.
    pub fn on_batch(&mut self, message: &Message, params: &[&str]) {
        let reference = params.first().copied().unwrap_or("");
        if let Some(name) = reference.strip_prefix('+') {
            let kind = params.get(1).copied().unwrap_or("");
            let is_history = HISTORY_BATCHES.contains(&kind) || self.is_in_batch(message);
            if self.batches.len() < BATCHES {
                self.batches.insert(name.to_owned(), is_history);
            }
        } else if let Some(name) = reference.strip_prefix('-') {
            self.batches.remove(name);
        }
    }

    /// The server has let us in.
    pub fn on_welcome(&mut self, message: &Message) {
        self.connected_at = Some(sent_at(message));
    }

    /// We have joined a channel.
    pub fn on_join(&mut self, channel: &Name, message: &Message) {
        self.playing.remove(channel);
        self.joined_at.insert(channel.clone(), sent_at(message));
    }

    /// Notes what a bouncer says around its buffer. Such a message is nobody's command.
    pub fn on_playback_word(&mut self, message: &Message, target: &Name, text: &str) {
        if !message.source.starts_with("***!") {
            return;
        }
        if text.starts_with(PLAYBACK_BEGINS) && self.playing.len() < BATCHES {
            self.playing.insert(target.clone());
        } else if text.starts_with(PLAYBACK_ENDS) {
            self.playing.remove(target);
        }
    }

    /// Whether a message to this target is older than our being there.
    pub fn is_replayed(&self, message: &Message, target: &Name) -> bool {
        if self.is_in_batch(message) || self.playing.contains(target) {
            return true;
        }
        let since = if target.is_channel() {
            self.joined_at.get(target)
        } else {
            self.connected_at.as_ref()
        };
        since
            .zip(message.tag("time"))
            .is_some_and(|(since, time)| time < *since)
    }

    fn is_in_batch(&self, message: &Message) -> bool {
        let batch = message.tag("batch");
        // What stands in a batch that we do not know is no command either.
        batch.is_some_and(|batch| self.batches.get(&batch).copied().unwrap_or(true))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Casemapping;

    fn message(line: &str) -> Message {
        Message::parse(line).unwrap()
    }

    fn name(text: &str) -> Name {
        Casemapping::Ascii.name(text)
    }

    #[test]
    fn what_stands_in_a_history_batch_is_history() {
        let mut history = History::default();
        let plain = message("BATCH +x netsplit a b");
        history.on_batch(&plain, &["+x", "netsplit", "a"]);
        history.on_batch(&plain, &["+h", "chathistory", "#c"]);
        let inner = message("@batch=h BATCH +i draft/multiline #c");
        history.on_batch(&inner, &["+i", "draft/multiline", "#c"]);
        let is_replayed = |history: &History, tags: &str| {
            let line = format!("{tags}:a!b@c PRIVMSG #c :x");
            history.is_replayed(&message(&line), &name("#c"))
        };
        assert!(is_replayed(&history, "@batch=h "));
        assert!(is_replayed(&history, "@batch=i "), "a batch in a batch");
        assert!(!is_replayed(&history, "@batch=x "));
        assert!(!is_replayed(&history, ""));
        assert!(is_replayed(&history, "@batch=unknown "));
    }

    #[test]
    fn what_was_said_before_we_came_is_history() {
        let mut history = History::default();
        history.on_welcome(&message("@time=2026-01-01T00:00:10.000Z :s 001 bot"));
        let joined = message("@time=2026-01-01T00:00:20.000Z :bot!u@h JOIN #c");
        history.on_join(&name("#c"), &joined);
        for (second, target, expected) in [
            (5, "bot", true),
            (15, "bot", false),
            (15, "#c", true),
            (25, "#c", false),
        ] {
            let line = format!("@time=2026-01-01T00:00:{second:02}.000Z :a!b@c PRIVMSG x :y");
            let is_replayed = history.is_replayed(&message(&line), &name(target));
            assert_eq!(is_replayed, expected, "{second} {target}");
        }
        assert!(!history.is_replayed(&message(":a!b@c PRIVMSG #c :y"), &name("#c")));
    }

    #[test]
    fn who_tells_the_time_of_history_only_is_understood() {
        let mut history = History::default();
        history.on_welcome(&message(":s 001 bot"));
        history.on_join(&name("#c"), &message(":bot!u@h JOIN #c"));
        let now = clock::rfc3339(clock::unix_now());
        for (time, expected) in [("2026-01-01T00:00:00.000Z", true), (&now, false)] {
            let said = message(&format!("@time={time} :a!b@c PRIVMSG x :y"));
            for target in ["#c", "bot"] {
                assert_eq!(
                    history.is_replayed(&said, &name(target)),
                    expected,
                    "{time}"
                );
            }
        }
    }

    #[test]
    fn what_a_bouncer_plays_back_is_history() {
        let mut history = History::default();
        let word = |history: &mut History, text: &str| {
            let line = format!(":***!znc@znc.in PRIVMSG #c :{text}");
            history.on_playback_word(&message(&line), &name("#c"), text);
        };
        let said = message(":joe!u@h PRIVMSG #c :[12:00:01] bot: force build b x");
        word(&mut history, "Buffer Playback...");
        assert!(history.is_replayed(&said, &name("#C")));
        assert!(!history.is_replayed(&said, &name("#d")));
        word(&mut history, "Playback Complete.");
        assert!(!history.is_replayed(&said, &name("#c")));
        let forged = message(":eve!u@h PRIVMSG #c :Buffer Playback...");
        history.on_playback_word(&forged, &name("#c"), "Buffer Playback...");
        assert!(
            !history.is_replayed(&said, &name("#c")),
            "nobody else says that"
        );
    }
}
