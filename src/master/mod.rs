//! The master's side: HTTP, Buildbot's API, what is known, when to ask, jobs on demand. It knows
//! nothing of IRC or of commands.

pub mod builder;
pub mod client;
pub mod details;
pub mod diagnosis;
pub mod events;
pub mod force;
pub mod http;
pub mod jobs;
pub mod model;
pub mod pending;
pub mod poller;
pub mod resources;
pub mod sync;
