//! How a build ends, in Buildbot's numbers and in the words that people grep for. Pure.

use Outcome::{Cancelled, Exception, Failure, Retry, Skipped, Success, Warnings};
use serde::{Deserialize, Serialize};

/// The result of a build, in the order of the master's numbers (`buildbot.process.results`). For
/// those that say something of the code this is the order of severity, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Outcome {
    Success,
    Warnings,
    Failure,
    Skipped,
    Exception,
    Retry,
    Cancelled,
}

impl Outcome {
    pub const ALL: [Outcome; 7] = [
        Success, Warnings, Failure, Skipped, Exception, Retry, Cancelled,
    ];

    /// By the master's number. One that we do not know is an exception.
    pub fn from_number(number: u64) -> Outcome {
        let known = usize::try_from(number).ok().and_then(|n| Self::ALL.get(n));
        known.copied().unwrap_or(Exception)
    }

    /// The word in replies and announcements (contract).
    pub fn word(self) -> &'static str {
        match self {
            Success => "success",
            Warnings => "warnings",
            Failure => "failure",
            Skipped => "skipped",
            Exception => "exception",
            Retry => "retry",
            Cancelled => "cancelled",
        }
    }

    /// Whether it says something of the code. The others make no transitions.
    pub fn is_verdict(self) -> bool {
        matches!(self, Success | Warnings | Failure | Exception)
    }

    pub fn is_good(self) -> bool {
        matches!(self, Success | Warnings)
    }

    /// Lower is more important to someone who reads a summary.
    pub fn importance(self) -> usize {
        match self {
            Exception => 0,
            Failure => 1,
            Warnings => 2,
            Retry => 3,
            Cancelled => 4,
            Skipped => 5,
            Success => 6,
        }
    }
}
