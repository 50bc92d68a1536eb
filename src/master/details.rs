//! What is nice to know of builds beside their results: who and what is behind one, and what was
//! started together with it. Pure values.

use super::resources::{BuildRequest, Change, SourceStamp};
use serde::{Deserialize, Serialize};

/// What a line wants to say of a build beside its result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub authors: bool,
    pub revisions: bool,
    /// The names of the steps that went wrong.
    pub steps: bool,
    /// What it was started together with.
    pub buildset: bool,
}

impl Wanted {
    pub fn is_empty(self) -> bool {
        self == Wanted::default()
    }

    /// What either wants.
    pub fn or(self, other: Wanted) -> Wanted {
        Wanted {
            authors: self.authors || other.authors,
            revisions: self.revisions || other.revisions,
            steps: self.steps || other.steps,
            buildset: self.buildset || other.buildset,
        }
    }

    /// What is left to ask for where some is known.
    pub fn without(self, known: Wanted) -> Wanted {
        Wanted {
            authors: self.authors && !known.authors,
            revisions: self.revisions && !known.revisions,
            steps: self.steps && !known.steps,
            buildset: self.buildset && !known.buildset,
        }
    }
}

/// Who and what is behind a build, as far as it was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// What the master was asked for and has told, if only that there is none.
    #[serde(skip)]
    pub known: Wanted,
    /// Authors of its changes, newest first, as the master has them: `Name <mail>`.
    pub authors: Vec<String>,
    pub revisions: Vec<String>,
    /// There are more changes than were looked at.
    pub is_partial: bool,
    /// The names of the steps that went wrong.
    pub steps: Vec<String>,
    pub buildset: Option<u64>,
}

impl Details {
    /// Takes in what has become known since.
    pub fn add(&mut self, new: Details) {
        if new.known.authors {
            self.authors = new.authors;
            self.is_partial = new.is_partial;
        }
        if new.known.revisions {
            self.revisions = new.revisions;
        }
        if new.known.steps {
            self.steps = new.steps;
        }
        if new.known.buildset {
            self.buildset = new.buildset;
        }
        self.known = self.known.or(new.known);
    }
}

/// A buildset: what one scheduler has started for a change, or one order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BuildsetInfo {
    pub id: u64,
    /// Why it was started, in the master's words.
    pub reason: String,
    pub sources: Vec<SourceStamp>,
    /// Its changes, the newest first.
    pub changes: Vec<Change>,
    /// One for each of its builders.
    pub requests: Vec<BuildRequest>,
}
