//! Jobs that must ask the master at the moment of a command.
//!
//! [`run`] does one job and knows nothing of threads; the worker thread of the bot and `-x` call it.

use super::api::{Change, Error, Master};
use crate::status::Build;
use crate::text;

/// What a command wants to know or done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// The last builds of these builders, and the steps that these builds are in.
    Facts { builders: Vec<u64>, steps: Vec<u64> },
    /// The last so many changes.
    Changes(usize),
}

/// What came of it.
#[derive(Debug)]
pub enum Done {
    /// To be applied to the status; then the command has what it needs.
    Facts(Facts),
    /// The reply.
    Lines(Vec<String>),
}

/// Answers that belong into the status.
#[derive(Debug, Default)]
pub struct Facts {
    pub builds: Vec<Build>,
    /// Builders of which `builds` holds all that the master has.
    pub asked: Vec<u64>,
    /// Build id and step.
    pub steps: Vec<(u64, String)>,
}

/// Does a job. The master's answers take as long as its timeout at most.
pub fn run(job: &Job, master: &mut Master) -> Done {
    match job {
        Job::Facts { builders, steps } => {
            let mut facts = Facts::default();
            let mut ask = || -> Result<(), Error> {
                for &builder in builders {
                    facts.builds.extend(master.recent(builder)?);
                    facts.asked.push(builder);
                }
                for &build in steps {
                    facts.steps.extend(master.step(build)?.map(|step| (build, step)));
                }
                Ok(())
            };
            // What could not be had is missing from the reply, which says that the master is away.
            ask().unwrap_or_else(|e| log!(Warning, "{e}"));
            Done::Facts(facts)
        }
        Job::Changes(count) => Done::Lines(match master.changes(*count) {
            Ok(changes) if changes.is_empty() => vec!["no changes yet".into()],
            Ok(changes) => changes.iter().map(change_line).collect(),
            Err(e) => vec![format!("no answer from the master: {}", text::clean(&e.to_string()))],
        }),
    }
}

/// A change as `list changes` shows it: revision, author, first line of the comment.
fn change_line(change: &Change) -> String {
    let revision = text::short_revision(change.revision.as_deref().unwrap_or("(no revision)"));
    let comment = change.comments.as_deref().unwrap_or("").lines().next().unwrap_or("");
    let branch = change.branch.as_deref().map_or(String::new(), |b| format!(" on {}", text::clean(b)));
    format!("{revision}{branch} by {}: {}", text::author(&change.author), text::clean(comment))
}
