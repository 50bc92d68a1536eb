//! The state file: what must survive the bot. A line that names the version, then JSON; replaced
//! in one step. One bot at a time holds it.

use crate::master::builder::BuildEvent;
use crate::master::details::{BuildsetInfo, Details};
use crate::master::model::BuildCursor;
use crate::notify_events::EventSet;
use crate::outcome::Outcome;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const FIRST_LINE: &str = "buildbot-irc state 3\n";
/// The same with other names, which are read as well.
const FIRST_LINE_0_1: &str = "buildbot-irc state 2\n";

/// Blamed people that are remembered.
const BLAMED: usize = 200;

/// Something to be said to a target, until it has been delivered.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Announcement {
    /// A channel or a nick.
    pub target: String,
    /// When it happened, in seconds since the epoch by our own clock.
    pub at: i64,
    /// How the build ended; nothing for a start or a worker.
    pub outcome: Option<Outcome>,
    /// What it is called in a summary: `builder #number`.
    pub label: String,
    /// The builder; empty for what is no build.
    #[serde(default)]
    pub builder: String,
    /// The branch, where it is worth a word.
    #[serde(default)]
    pub branch: String,
    /// The link to the build; empty for what is no build.
    #[serde(default)]
    pub url: String,
    /// The line.
    pub text: String,
    /// So many announcements were left out here, and only their number is known.
    #[serde(default, alias = "more")]
    pub omitted: usize,
    /// It happened while the target was muted.
    #[serde(default)]
    pub was_muted: bool,
    /// Somebody there waits for it: it is told even where announcements are muted.
    #[serde(default)]
    pub is_watched: bool,
    /// What of `notify_events` it is, where that is one build.
    #[serde(default)]
    pub events: EventSet,
    /// Lines that held it and may have been refused, in this run.
    #[serde(skip)]
    pub refusals: u32,
}

/// Someone waits for the end of the build that a request leads to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watch {
    pub target: String,
    /// 0 where it is not known yet.
    pub request: u64,
    /// The next build of this builder is meant.
    #[serde(default)]
    pub next_build_of: Option<String>,
    /// Whose request it is: `nick!user@host`; empty for a mere watch.
    pub mask: String,
}

/// A build that has ended, and who is behind it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndedBuild {
    pub event: BuildEvent,
    pub details: Details,
}

/// A buildset of which something is still to be told.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OpenBuildset {
    /// The request by which we came to know of it.
    pub request: u64,
    /// Nothing until the master has told.
    pub info: Option<BuildsetInfo>,
    /// Requests whose end we have seen.
    pub ended: BTreeSet<u64>,
    /// Builds that have ended.
    pub builds: Vec<EndedBuild>,
    /// When the first of these that were not told has ended: seconds since the epoch, our clock.
    pub first_end: Option<i64>,
    /// The places that are to hear of it, and the builds that each has heard of.
    pub places: BTreeMap<String, BTreeSet<u64>>,
    /// The first start, until it is told.
    pub start: Option<BuildEvent>,
    pub start_told: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    #[serde(alias = "known")]
    pub cursor: BuildCursor,
    /// By target, where `notify` said something else than the configuration.
    pub events: BTreeMap<String, EventSet>,
    /// By target, until when: seconds since the epoch.
    pub muted: BTreeMap<String, i64>,
    /// Channels joined by command, with their keys.
    pub joined: BTreeMap<String, String>,
    /// Configured channels that were left by command.
    pub left: BTreeSet<String>,
    /// When people who asked for news were seen last: seconds since the epoch.
    #[serde(default)]
    pub last_seen: BTreeMap<String, i64>,
    /// The server has killed us for flooding: until then we speak as slowly as is safe everywhere.
    #[serde(default)]
    pub safe_pacing_until: i64,
    /// Who was told in private that they are blamed, and for what; the last ones.
    #[serde(default)]
    pub blamed: Vec<(String, String)>,
    /// Buildsets under way, where they are told as one.
    #[serde(default)]
    pub buildsets: Vec<OpenBuildset>,
    pub watches: Vec<Watch>,
    pub pending: Vec<Announcement>,
}

impl State {
    /// Notes that someone is told of a change. Returns false if they were told of it before.
    pub fn note_blamed(&mut self, nick: &str, change: &str) -> bool {
        let told = (nick.to_owned(), change.to_owned());
        if self.blamed.contains(&told) {
            return false;
        }
        self.blamed.push(told);
        if self.blamed.len() > BLAMED {
            self.blamed.remove(0);
        }
        true
    }

    fn to_text(&self) -> serde_json::Result<String> {
        let json = serde_json::to_string(self)?;
        Ok(format!("{FIRST_LINE}{json}\n"))
    }

    fn parse(bytes: &[u8]) -> Result<State, String> {
        let text = str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let json = text
            .strip_prefix(FIRST_LINE)
            .or(text.strip_prefix(FIRST_LINE_0_1));
        let json = json.ok_or("not a state file of this version")?;
        serde_json::from_str(json).map_err(|e| e.to_string())
    }

    /// Reads the file. One that is not there is an empty state. One that was read and cannot be
    /// understood is moved aside, and the bot starts afresh. One that cannot be read is an error,
    /// and stays where it is.
    pub fn load(path: &str) -> Result<State, String> {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(State::default()),
            Err(e) => return Err(format!("{path}: {e}")),
        };
        match State::parse(&bytes) {
            Ok(state) => Ok(state),
            Err(why) => {
                let aside = format!("{path}.bad");
                let moving = |e| format!("{path}: {why}; moving it aside: {e}");
                fs::rename(path, &aside).map_err(moving)?;
                log!(Warning, "{path}: {why}; moved to {aside}, starting afresh");
                Ok(State::default())
            }
        }
    }

    /// Writes the file: beside it, to the disk, then in its place, so that a crash leaves one or
    /// the other. It may hold channel keys, so it is the owner's alone.
    pub fn save(&self, path: &str) -> Result<(), String> {
        self.write(path).map_err(|e| format!("{path}: {e}"))
    }

    fn write(&self, path: &str) -> io::Result<()> {
        let path = &resolved(path);
        let beside = format!("{path}.new");
        // Made anew, because an old one may have other rights.
        let _ = fs::remove_file(&beside);
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600);
        let mut file = options.open(&beside)?;
        file.write_all(self.to_text()?.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        File::open(folder(path))?.sync_all()
    }
}

/// Where a symbolic link leads: whoever names the file by another name means the same.
fn resolved(path: &str) -> String {
    let real = fs::canonicalize(path).ok();
    let real = real.and_then(|real| real.into_os_string().into_string().ok());
    real.unwrap_or_else(|| path.to_owned())
}

fn folder(path: &str) -> &Path {
    let parent = Path::new(path).parent();
    let named = parent.filter(|parent| !parent.as_os_str().is_empty());
    named.unwrap_or(Path::new("."))
}

/// Holds a file for life, beside the state file, which is itself replaced at each save. The error
/// is a sentence; another bot that has the file is one.
pub fn hold(path: &str) -> Result<File, String> {
    let lock = format!("{}.lock", resolved(path));
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(&lock).map_err(|e| format!("{path}: {e}"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(format!(
            "{path}: another bot uses this state file; each needs one of its own"
        )),
        Err(TryLockError::Error(e)) => Err(format!("{lock}: {e}")),
    }
}

/// Whether the file could be read and written, for `-t`: its folder is there and takes a new file.
pub fn check_writable(path: &str) -> Result<(), String> {
    if Path::new(path).is_dir() {
        return Err(format!("{path}: is a directory"));
    }
    match File::open(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(format!("{path}: {e}")),
        Ok(_) | Err(_) => {}
    }
    let path = &resolved(path);
    let probe = format!("{path}.probe-{}", std::process::id());
    let mut options = OpenOptions::new();
    let made = options.write(true).create_new(true).open(&probe);
    made.map_err(|e| format!("{}: cannot write there: {e}", folder(path).display()))?;
    // Best effort: it has shown what it was made to show.
    let _ = fs::remove_file(&probe);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fuzz;

    fn full() -> State {
        State {
            cursor: BuildCursor {
                last_build_id: Some(7),
                seen_out_of_order: [9].into(),
                running: [5, 6].into(),
            },
            events: [
                ("#a".to_owned(), EventSet::parse("worse started").unwrap()),
                ("joe".to_owned(), EventSet::EMPTY),
            ]
            .into(),
            muted: [("#a".to_owned(), 99)].into(),
            joined: [
                ("#b".to_owned(), "key".to_owned()),
                ("#c".to_owned(), String::new()),
            ]
            .into(),
            left: ["#d".to_owned()].into(),
            last_seen: [("joe".to_owned(), 1000)].into(),
            blamed: vec![("ann".into(), "buildset 7".into())],
            buildsets: vec![OpenBuildset::default()],
            safe_pacing_until: 12,
            watches: vec![Watch {
                target: "joe".into(),
                request: 6,
                next_build_of: Some("app".into()),
                mask: "joe!u@h".into(),
            }],
            pending: vec![
                Announcement {
                    target: "#a".into(),
                    at: 1,
                    outcome: Some(Outcome::Failure),
                    label: "b c #1".into(),
                    builder: "b c".into(),
                    branch: "main".into(),
                    url: "http://m/#1".into(),
                    text: "b \"c\" #1\nfailure \u{e9}".into(),
                    omitted: 0,
                    was_muted: true,
                    is_watched: true,
                    events: EventSet::parse("failure").unwrap(),
                    refusals: 0,
                },
                Announcement {
                    target: "#a".into(),
                    at: 2,
                    label: "worker w".into(),
                    text: "gone".into(),
                    omitted: 3,
                    ..Announcement::default()
                },
            ],
        }
    }

    /// A folder of its own, removed at the end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let id = std::process::id();
            let path = std::env::temp_dir().join(format!("buildbot-irc-{name}-{id}"));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }

        fn file(&self, name: &str) -> String {
            self.0.join(name).to_str().unwrap().to_owned()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for state in [full(), State::default()] {
            let text = state.to_text().unwrap();
            assert_eq!(State::parse(text.as_bytes()), Ok(state));
        }
    }

    #[test]
    fn every_prefix_is_refused() {
        let text = full().to_text().unwrap();
        for end in 1..text.len() - 1 {
            assert!(State::parse(&text.as_bytes()[..end]).is_err(), "{end}");
        }
        let older = text.replace("state 3", "state 1");
        let why = "not a state file of this version".to_owned();
        assert_eq!(State::parse(older.as_bytes()), Err(why));
        let other = text.replace("\"last_build_id\":7", "\"last_build_id\":\"x\"");
        let why = State::parse(other.as_bytes()).unwrap_err();
        assert!(why.starts_with("invalid type: string \"x\", expected u64 at line "));
    }

    #[test]
    fn the_state_of_version_0_1_is_read() {
        let old = "buildbot-irc state 2\n{\"known\": {\"mark\": 7, \"ahead\": [9], \"open\": [5]}, \
            \"events\": {\"#a\": [\"worse\"]}, \"muted\": {}, \"joined\": {\"#b\": \"key\"}, \"left\": [], \
            \"watches\": [{\"target\": \"joe\", \"request\": 6, \"mask\": \"\"}], \"pending\": [{\"target\": \
            \"#a\", \"at\": 1, \"outcome\": \"Failure\", \"label\": \"b #1\", \"text\": \"t\", \"more\": 2}]}\n";
        let state = State::parse(old.as_bytes()).unwrap();
        assert_eq!(state.cursor.last_build_id, Some(7));
        assert_eq!(state.cursor.seen_out_of_order, [9].into());
        assert_eq!(state.cursor.running, [5].into());
        assert_eq!(state.pending[0].omitted, 2);
        assert_eq!(state.watches[0].request, 6);
    }

    #[test]
    fn fuzz_state_file() {
        fuzz(&[full().to_text().unwrap().as_bytes()], |bytes, _| {
            if let Ok(state) = State::parse(bytes) {
                let text = state.to_text().unwrap();
                assert_eq!(State::parse(text.as_bytes()), Ok(state));
            }
        });
    }

    #[test]
    fn only_what_was_read_and_not_understood_is_moved_aside() {
        let folder = Folder::new("state-file");
        let path = folder.file("state");
        assert_eq!(State::load(&path), Ok(State::default()));
        full().save(&path).unwrap();
        assert_eq!(State::load(&path), Ok(full()));
        for broken in [&b"rubbish"[..], b"\xff\xfe"] {
            fs::write(&path, broken).unwrap();
            assert_eq!(State::load(&path), Ok(State::default()));
            assert_eq!(fs::read(format!("{path}.bad")).unwrap(), broken);
        }
        fs::create_dir(&path).unwrap();
        assert!(State::load(&path).unwrap_err().starts_with(&path));
        assert!(fs::metadata(&path).unwrap().is_dir(), "it is left alone");
        let nowhere = full().save("/nonexistent/state").unwrap_err();
        assert!(nowhere.starts_with("/nonexistent/state: "));
    }

    #[test]
    fn one_bot_at_a_time_holds_a_state_file() {
        let folder = Folder::new("state-lock");
        let path = folder.file("state");
        let first = hold(&path).unwrap();
        let why = hold(&path).unwrap_err();
        assert!(why.contains("another bot uses this state file"), "{why}");
        let other_name = folder.file("link");
        std::os::unix::fs::symlink(&path, &other_name).unwrap();
        full().save(&path).unwrap();
        assert!(hold(&other_name).is_err(), "the same file");
        full().save(&other_name).unwrap();
        let still = fs::symlink_metadata(&other_name).unwrap();
        assert!(still.is_symlink());
        drop(first);
        assert!(hold(&path).is_ok());
    }

    #[test]
    fn a_place_that_cannot_be_written_is_found_before() {
        let folder = Folder::new("state-probe");
        assert_eq!(check_writable(&folder.file("state")), Ok(()));
        let left = fs::read_dir(&folder.0).unwrap().count();
        assert_eq!(left, 0, "nothing is left behind");
        assert!(check_writable(&folder.file("gone/state")).is_err());
        let a_folder = folder.0.to_str().unwrap();
        assert!(check_writable(a_folder).unwrap_err().contains("directory"));
    }
}
