//! Items of Buildbot's API: builds, changes, requests, buildsets and workers, with the fields and units
//! of the API. Where something may be missing or `null` it has a default: an odd field costs itself.
//! Pure values.

use crate::outcome::Outcome;
use crate::sanitize;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use std::collections::BTreeSet;

/// Characters of a branch, and of the other texts of a source stamp, that are kept.
pub(super) const SOURCE_TEXT: usize = 200;
/// Characters of one field of a change that are kept.
const CHANGE_TEXT: usize = 300;

/// A build, with the fields and units of `/api/v2/builds` (times in seconds since the epoch).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Build {
    #[serde(rename = "buildid")]
    pub id: u64,
    #[serde(rename = "builderid")]
    pub builder_id: u64,
    pub number: u64,
    #[serde(rename = "buildrequestid", default)]
    pub request_id: Option<u64>,
    #[serde(default, deserialize_with = "seconds")]
    pub started_at: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub complete: bool,
    #[serde(default, deserialize_with = "optional_seconds")]
    pub complete_at: Option<i64>,
    #[serde(default)]
    pub results: Option<u64>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub state_string: String,
    /// The branch that it builds, where that is known; empty for none.
    #[serde(
        rename = "properties",
        default,
        deserialize_with = "branch_property",
        serialize_with = "as_branch_property"
    )]
    pub branch: Option<String>,
    /// What it builds, of each codebase, where the branch alone does not tell.
    #[serde(skip)]
    pub sources: Vec<SourceStamp>,
    /// The step that it is in, where someone has asked.
    #[serde(skip)]
    pub step: Option<String>,
}

impl Build {
    /// How it ended, if it has. Without a number that is an exception.
    pub fn outcome(&self) -> Option<Outcome> {
        let number = self.results.unwrap_or(Outcome::Exception as u64);
        self.complete.then(|| Outcome::from_number(number))
    }

    /// Seconds from start to end, or to `now` by the master's clock.
    pub fn seconds(&self, now: i64) -> i64 {
        let end = self.complete_at.unwrap_or(now);
        end.saturating_sub(self.started_at).max(0)
    }

    /// Whether the master's reason names no more than a command, and not the step that it is of.
    pub fn tells_only_a_command(&self) -> bool {
        self.state_string.starts_with("failed '")
    }

    /// Whether a later build of the same request may follow.
    pub(super) fn will_be_retried(&self) -> bool {
        self.outcome() == Some(Outcome::Retry)
    }
}

/// What is built of one codebase, with the fields of a source stamp.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStamp {
    #[serde(rename = "ssid", default)]
    pub id: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub codebase: String,
    /// Empty for none.
    #[serde(default, deserialize_with = "null_is_default")]
    pub branch: String,
    /// Empty for the newest one.
    #[serde(default, deserialize_with = "null_is_default")]
    pub revision: String,
}

impl SourceStamp {
    pub fn shorten(&mut self) {
        for text in [&mut self.codebase, &mut self.branch, &mut self.revision] {
            *text = sanitize::cut(text, SOURCE_TEXT);
        }
    }
}

/// What one scheduler has started for a change, or one order, with the fields of `/api/v2/buildsets`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Buildset {
    #[serde(rename = "bsid")]
    pub id: u64,
    #[serde(rename = "sourcestamps", default, deserialize_with = "null_is_default")]
    pub sources: Vec<SourceStamp>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub reason: String,
}

/// A change, with the fields of `/api/v2/changes`, any of which but the author may be missing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Change {
    #[serde(rename = "changeid", default)]
    pub id: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub author: String,
    #[serde(default)]
    pub revision: Option<String>,
    #[serde(default)]
    pub comments: Option<String>,
    #[serde(default)]
    pub branch: Option<String>,
}

impl Change {
    pub fn shorten(&mut self) {
        self.author = sanitize::cut(&self.author, CHANGE_TEXT);
        let texts = [&mut self.revision, &mut self.comments, &mut self.branch];
        for text in texts.into_iter().flatten() {
            *text = sanitize::cut(text, CHANGE_TEXT);
        }
    }
}

/// A build request, with the fields of `/api/v2/buildrequests`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildRequest {
    #[serde(rename = "buildrequestid")]
    pub id: u64,
    #[serde(rename = "builderid", default)]
    pub builder_id: u64,
    #[serde(rename = "buildsetid", default)]
    pub buildset_id: u64,
    #[serde(default, deserialize_with = "null_is_default")]
    pub claimed: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    pub complete: bool,
    /// As those of a build; -1 or null while it is open.
    #[serde(default)]
    pub results: Option<i64>,
}

impl BuildRequest {
    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        let number = u64::try_from(self.results?).ok()?;
        self.complete.then(|| Outcome::from_number(number))
    }
}

/// A worker, with the fields of `/api/v2/workers`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Worker {
    #[serde(rename = "workerid")]
    pub id: u64,
    pub name: String,
    #[serde(rename = "connected_to", deserialize_with = "is_not_empty", default)]
    pub online: bool,
    #[serde(default, deserialize_with = "null_is_default")]
    pub paused: bool,
    /// The master has reported it missing, and it has not come back.
    #[serde(skip)]
    pub missing: bool,
    /// The builders that it may work for.
    #[serde(rename = "configured_on", deserialize_with = "builder_ids", default)]
    pub builders: BTreeSet<u64>,
}

/// `null` where a value should be is its default: one odd field costs itself.
pub(super) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Seconds since the epoch, which may come with a fraction.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i64, D::Error> {
    Ok(optional_seconds(deserializer)?.unwrap_or(0))
}

fn optional_seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let seconds: Option<f64> = Option::deserialize(deserializer)?;
    Ok(seconds.map(|seconds| seconds as i64))
}

/// The branch out of a build's properties, each of which is a value and its source. Without one of
/// that name it is not known; `null` is none.
fn branch_property<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    #[derive(Default, Deserialize)]
    struct Properties {
        branch: Option<Vec<Value>>,
    }
    let properties: Option<Properties> = Option::deserialize(deserializer)?;
    let branch = properties.unwrap_or_default().branch;
    Ok(branch.map(|branch| match branch.first() {
        Some(Value::String(name)) => name.clone(),
        _ => String::new(),
    }))
}

fn as_branch_property<S: Serializer>(
    branch: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let property = branch.iter().map(|branch| ("branch", [branch]));
    serializer.collect_map(property)
}

fn is_not_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    let list: Option<Vec<IgnoredAny>> = Option::deserialize(deserializer)?;
    Ok(list.is_some_and(|list| !list.is_empty()))
}

fn builder_ids<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeSet<u64>, D::Error> {
    #[derive(Deserialize)]
    struct Place {
        builderid: u64,
    }
    let places: Option<Vec<Place>> = Option::deserialize(deserializer)?;
    let places = places.unwrap_or_default();
    Ok(places.into_iter().map(|place| place.builderid).collect())
}
