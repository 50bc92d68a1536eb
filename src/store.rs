//! The state file: what must survive the bot. Text, a line a fact, replaced in one step.

use crate::status::{Events, Outcome};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FIRST_LINE: &str = "buildbot-irc state 1";
/// Without this the file is not whole.
const LAST_LINE: &str = "end";

/// Something to be said to a target, until it has been said.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Announcement {
    pub target: String,
    /// When it happened (seconds since the epoch).
    pub at: i64,
    /// How the build ended; nothing for a start or a worker.
    pub outcome: Option<Outcome>,
    /// The build in a summary: `builder #number`.
    pub label: String,
    pub text: String,
}

/// All that is remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct State {
    /// Every build up to this id has been seen, less the ones that were still open.
    pub mark: Option<u64>,
    pub open: Vec<u64>,
    /// By target, where `notify` or `mute` said something else than the configuration.
    pub events: BTreeMap<String, Events>,
    pub muted: BTreeMap<String, i64>,
    /// Channels joined by command, with their keys, and configured ones that were left.
    pub joined: BTreeMap<String, String>,
    pub left: BTreeSet<String>,
    /// Target and build.
    pub watches: Vec<(String, u64)>,
    pub pending: Vec<Announcement>,
}

impl State {
    /// The file's text.
    pub fn text(&self) -> String {
        let mut lines = vec![FIRST_LINE.to_owned()];
        lines.extend(self.mark.map(|m| format!("mark {m}")));
        lines.extend(self.open.iter().map(|id| format!("open {id}")));
        let events = self.events.iter();
        lines.extend(events.map(|(t, e)| format!("notify {t} {}", e.names().join(" "))));
        lines.extend(self.muted.iter().map(|(t, until)| format!("mute {t} {until}")));
        lines.extend(self.joined.iter().map(|(channel, key)| format!("joined {channel} {key}")));
        lines.extend(self.left.iter().map(|channel| format!("left {channel}")));
        lines.extend(self.watches.iter().map(|(t, id)| format!("watch {t} {id}")));
        for Announcement { target, at, outcome, label, text } in &self.pending {
            let outcome = outcome.map_or("-", Outcome::word);
            lines.push(format!("tell {target} {at} {outcome} {label}\t{text}"));
        }
        lines.push(format!("{LAST_LINE}\n"));
        lines.join("\n")
    }

    /// Reads it back.
    ///
    /// # Errors
    /// The first line that is not what it should be.
    pub fn parse(text: &str) -> Result<State, String> {
        let mut state = State::default();
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) || lines.next_back() != Some(LAST_LINE) {
            return Err("not a whole state file of this version".into());
        }
        for line in lines {
            state.line(line).ok_or_else(|| format!("`{line}` is not understood"))?;
        }
        Ok(state)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let (first, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let name = || Some(first.to_owned()).filter(|n| !n.is_empty());
        match kind {
            "mark" => self.mark = Some(rest.parse().ok()?),
            "open" => self.open.push(rest.parse().ok()?),
            "notify" => {
                let names = more.split_whitespace().map(Events::named);
                let events = names.collect::<Option<Vec<_>>>()?;
                self.events.insert(name()?, events.into_iter().fold(Events::default(), Events::with));
            }
            "mute" => drop(self.muted.insert(name()?, more.parse().ok()?)),
            "joined" => drop(self.joined.insert(name()?, more.to_owned())),
            "left" => drop(self.left.insert(name()?)),
            "watch" => self.watches.push((name()?, more.parse().ok()?)),
            "tell" => {
                let (head, text) = more.split_once('\t')?;
                let mut words = head.splitn(3, ' ');
                let at = words.next()?.parse().ok()?;
                let outcome = match words.next()? {
                    "-" => None,
                    word => Some(Outcome::ALL.into_iter().find(|o| o.word() == word)?),
                };
                let label = words.next()?.to_owned();
                self.pending.push(Announcement { target: name()?, at, outcome, label, text: text.to_owned() });
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads the file. One that is not there is an empty state; one that cannot be understood is
    /// moved aside, and the bot starts fresh.
    ///
    /// # Errors
    /// A file that can neither be read nor moved.
    pub fn load(path: &str) -> Result<State, String> {
        let broken = match fs::read(path) {
            Ok(bytes) => match State::parse(&String::from_utf8_lossy(&bytes)) {
                Ok(state) => return Ok(state),
                Err(why) => why,
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(e) => e.to_string(),
        };
        let aside = format!("{path}.bad");
        fs::rename(path, &aside).map_err(|e| format!("{path}: {broken}; moving it aside: {e}"))?;
        log!(Warning, "{path}: {broken}; moved to {aside}, starting fresh");
        Ok(State::default())
    }

    /// Writes the file: beside it, to the disk, then in its place (so a crash leaves one or the
    /// other). It may hold channel keys, so it is the owner's alone.
    ///
    /// # Errors
    /// The system's, with the path in front.
    pub fn save(&self, path: &str) -> Result<(), String> {
        let beside = format!("{path}.new");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            let folder = Path::new(path).parent().filter(|p| !p.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|e| format!("{path}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> State {
        State {
            mark: Some(7),
            open: vec![5, 6],
            events: [("#a".to_owned(), Events::usual()), ("joe".to_owned(), Events::default())].into(),
            muted: [("#a".to_owned(), 99)].into(),
            joined: [("#b".to_owned(), "key".to_owned()), ("#c".to_owned(), String::new())].into(),
            left: ["#d".to_owned()].into(),
            watches: vec![("joe".into(), 6)],
            pending: vec![
                Announcement {
                    target: "#a".into(),
                    at: 1,
                    outcome: Some(Outcome::Failure),
                    label: "b c #1".into(),
                    text: "b c #1 failure \u{e9}".into(),
                },
                Announcement {
                    target: "#a".into(),
                    at: 2,
                    outcome: None,
                    label: "worker w".into(),
                    text: "gone".into(),
                },
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for state in [full(), State::default()] {
            assert_eq!(State::parse(&state.text()), Ok(state));
        }
    }

    #[test]
    fn every_prefix_is_refused_and_mutations_never_panic() {
        let text = full().text();
        for (i, _) in text.char_indices().skip(1).filter(|&(i, _)| i < text.len() - 1) {
            assert!(State::parse(&text[..i]).is_err(), "{i}");
        }
        for i in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[i] ^= 0x15;
            let _ = State::parse(&String::from_utf8_lossy(&bytes));
        }
        assert_eq!(State::parse("buildbot-irc state 1\nmark x\nend\n"), Err("`mark x` is not understood".into()));
    }

    #[test]
    fn a_broken_file_is_moved_aside() {
        let folder = std::env::temp_dir().join(format!("buildbot-irc-store-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state").to_str().unwrap().to_owned();
        assert_eq!(State::load(&path), Ok(State::default()));
        full().save(&path).unwrap();
        assert_eq!(State::load(&path), Ok(full()));
        fs::write(&path, "rubbish").unwrap();
        assert_eq!(State::load(&path), Ok(State::default()));
        assert_eq!(fs::read_to_string(format!("{path}.bad")).unwrap(), "rubbish");
        assert!(full().save("/nonexistent/state").unwrap_err().starts_with("/nonexistent/state: "));
        fs::remove_dir_all(folder).unwrap();
    }
}
