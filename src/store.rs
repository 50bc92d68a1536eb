//! The state file: what must survive the bot. A line that names the version, then JSON; replaced in
//! one step.

use crate::status::{Events, Known, Outcome, Watch};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FIRST_LINE: &str = "buildbot-irc state 2\n";

/// Something to be said to a target, until it has been said.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    pub target: String,
    pub at: i64,                  // when it happened, in seconds since the epoch
    pub outcome: Option<Outcome>, // how the build ended; nothing for a start or a worker
    pub label: String,            // the build in a summary: `builder #number`
    pub text: String,
    pub more: usize, // how many this is instead, of which only the number is left
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub known: Known,
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
    fn text(&self) -> serde_json::Result<String> {
        Ok(format!(
            "{FIRST_LINE}{}\n",
            serde_json::to_string_pretty(self)?
        ))
    }

    fn parse(text: &str) -> Result<State, String> {
        let json = text
            .strip_prefix(FIRST_LINE)
            .ok_or("not a state file of this version")?;
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    /// Reads the file. One that is not there is an empty state; one that cannot be understood is
    /// moved aside, and the bot starts fresh. One that cannot be moved is an error.
    pub fn load(path: &str) -> Result<State, String> {
        let broken = match fs::read_to_string(path).map(|text| State::parse(&text)) {
            Ok(Ok(state)) => return Ok(state),
            Ok(Err(why)) => why,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(e) => e.to_string(),
        };
        let aside = format!("{path}.bad");
        fs::rename(path, &aside).map_err(|e| format!("{path}: {broken}; moving it aside: {e}"))?;
        log!(
            Warning,
            "{path}: {broken}; moved to {aside}, starting fresh"
        );
        Ok(State::default())
    }

    /// Writes the file: beside it, to the disk, then in its place (so a crash leaves one or the
    /// other). It may hold channel keys, so it is the owner's alone.
    pub fn save(&self, path: &str) -> Result<(), String> {
        let beside = format!("{path}.new");
        let write = || -> io::Result<()> {
            // Afresh, because an old one may have other rights.
            let _ = fs::remove_file(&beside);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(self.text()?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&beside, path)?;
            let folder = Path::new(path)
                .parent()
                .filter(|p| !p.as_os_str().is_empty());
            File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|e| format!("{path}: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;
    use crate::status;

    fn full() -> State {
        State {
            known: Known {
                mark: Some(7),
                ahead: [9].into(),
                open: [5, 6].into(),
            },
            events: [
                ("#a".to_owned(), status::events("worse started").unwrap()),
                ("joe".to_owned(), Events::new()),
            ]
            .into(),
            muted: [("#a".to_owned(), 99)].into(),
            joined: [
                ("#b".to_owned(), "key".to_owned()),
                ("#c".to_owned(), String::new()),
            ]
            .into(),
            left: ["#d".to_owned()].into(),
            watches: vec![Watch {
                target: "joe".into(),
                request: 6,
                mask: "joe!u@h".into(),
                told: false,
            }],
            pending: vec![
                Announcement {
                    target: "#a".into(),
                    at: 1,
                    outcome: Some(Outcome::Failure),
                    label: "b c #1".into(),
                    text: "b \"c\" #1\nfailure \u{e9}".into(),
                    more: 0,
                },
                Announcement {
                    target: "#a".into(),
                    at: 2,
                    outcome: None,
                    label: "worker w".into(),
                    text: "gone".into(),
                    more: 3,
                },
            ],
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for state in [full(), State::default()] {
            assert_eq!(State::parse(&state.text().unwrap()), Ok(state));
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let text = full().text().unwrap();
        for (i, _) in text
            .char_indices()
            .skip(1)
            .filter(|&(i, _)| i < text.len() - 1)
        {
            assert!(State::parse(&text[..i]).is_err(), "{i}");
        }
        let older = text.replace("state 2", "state 1");
        assert_eq!(
            State::parse(&older),
            Err("not a state file of this version".into())
        );
        let other = text.replace("\"mark\": 7", "\"mark\": \"x\"");
        assert!(
            State::parse(&other)
                .unwrap_err()
                .starts_with("invalid type: string \"x\", expected u64 at line ")
        );
    }

    #[test]
    fn fuzz_store() {
        fuzz(&[full().text().unwrap().as_bytes()], |bytes, _| {
            if let Ok(state) = State::parse(&String::from_utf8_lossy(bytes)) {
                assert_eq!(State::parse(&state.text().unwrap()), Ok(state));
            }
        });
    }

    #[test]
    fn a_broken_file_is_moved_aside() {
        let folder =
            std::env::temp_dir().join(format!("buildbot-irc-store-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("state").to_str().unwrap().to_owned();
        assert_eq!(State::load(&path), Ok(State::default()));
        full().save(&path).unwrap();
        assert_eq!(State::load(&path), Ok(full()));
        fs::write(&path, "rubbish").unwrap();
        assert_eq!(State::load(&path), Ok(State::default()));
        assert_eq!(
            fs::read_to_string(format!("{path}.bad")).unwrap(),
            "rubbish"
        );
        assert!(
            full()
                .save("/nonexistent/state")
                .unwrap_err()
                .starts_with("/nonexistent/state: ")
        );
        fs::remove_dir_all(folder).unwrap();
    }
}
