//! The state file: what must survive the bot. Text, a line a fact, replaced in one step.

use crate::status::{Events, Outcome, Watch};
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

#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    pub watches: Vec<Watch>,
    pub pending: Vec<Announcement>,
}

impl State {
    pub fn text(&self) -> String {
        let mut lines = vec![FIRST_LINE.to_owned()];
        lines.extend(self.mark.map(|id| format!("mark {id}")));
        lines.extend(self.open.iter().map(|id| format!("open {id}")));
        lines.extend(self.events.iter().map(|(target, e)| format!("notify {target} {}", e.names().join(" "))));
        lines.extend(self.muted.iter().map(|(target, until)| format!("mute {target} {until}")));
        lines.extend(self.joined.iter().map(|(channel, key)| format!("joined {channel} {key}")));
        lines.extend(self.left.iter().map(|channel| format!("left {channel}")));
        for Watch { target, id, request, mask } in &self.watches {
            lines.push(format!("watch {target} {} {id} {mask}", if *request { "request" } else { "build" }));
        }
        for Announcement { target, at, outcome, label, text } in &self.pending {
            let outcome = outcome.map_or("-", Outcome::word);
            let (label, text) = (label.replace(['\n', '\t'], " "), text.replace('\n', " "));
            lines.push(format!("tell {target} {at} {outcome} {label}\t{text}"));
        }
        lines.push(format!("{LAST_LINE}\n"));
        lines.join("\n")
    }

    /// Reads it back; the error is the first line that is not what it should be.
    pub fn parse(text: &str) -> Result<State, String> {
        let mut state = State::default();
        let mut lines = text.lines();
        if lines.next() != Some(FIRST_LINE) || lines.next_back() != Some(LAST_LINE) {
            return Err("not a whole state file of this version".into());
        }
        lines.try_for_each(|line| state.line(line).ok_or_else(|| format!("`{line}` is not understood")))?;
        Ok(state)
    }

    fn line(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let (name, more) = rest.split_once(' ').unwrap_or((rest, ""));
        let name = Some(name.to_owned()).filter(|n| !n.is_empty())?;
        let events = || more.split_whitespace().try_fold(Events::default(), |e, n| Some(e.with(Events::named(n)?)));
        match kind {
            "mark" => self.mark = Some(rest.parse().ok()?),
            "open" => self.open.push(rest.parse().ok()?),
            "notify" => self.events.extend([(name, events()?)]),
            "mute" => self.muted.extend([(name, more.parse().ok()?)]),
            "joined" => self.joined.extend([(name, more.to_owned())]),
            "left" => self.left.extend([name]),
            "watch" => {
                let mut words = more.splitn(3, ' ');
                let (request, id) = (words.next()? == "request", words.next()?.parse().ok()?);
                let mask = words.next().unwrap_or("").to_owned();
                self.watches.push(Watch { target: name, id, request, mask });
            }
            "tell" => {
                let (head, text) = more.split_once('\t')?;
                let [at, word, label] = head.splitn(3, ' ').collect::<Vec<_>>()[..] else { return None };
                let outcome = match word {
                    "-" => None,
                    _ => Some(Outcome::ALL.into_iter().find(|o| o.word() == word)?),
                };
                let (at, label, text) = (at.parse().ok()?, label.to_owned(), text.to_owned());
                self.pending.push(Announcement { target: name, at, outcome, label, text });
            }
            _ => return None,
        }
        Some(())
    }

    /// Reads the file. One that is not there is an empty state; one that cannot be understood is
    /// moved aside, and the bot starts fresh. One that cannot be moved is an error.
    pub fn load(path: &str) -> Result<State, String> {
        let broken = match fs::read(path).map(|bytes| State::parse(&String::from_utf8_lossy(&bytes))) {
            Ok(Ok(state)) => return Ok(state),
            Ok(Err(why)) => why,
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
    pub fn save(&self, path: &str) -> Result<(), String> {
        let beside = format!("{path}.new");
        let write = || -> io::Result<()> {
            // Afresh, because an old one may have other rights.
            let _ = fs::remove_file(&beside);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
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
            watches: vec![Watch { target: "joe".into(), id: 6, request: true, mask: "joe!u@h".into() }],
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
