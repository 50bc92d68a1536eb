//! `buildbot-irc`: an IRC bot for a Buildbot master. Prints the error and picks the exit code.

#[macro_use]
mod log;
mod backoff;
mod bot;
mod cli;
mod clock;
mod commands;
mod config;
mod encoding;
mod irc;
mod master;
mod names;
mod net;
mod notify_events;
mod outcome;
mod routing;
mod sanitize;
mod state_file;
mod systemd;
mod text;
mod words;

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A bug in any thread ends the program, with the code for that.
    std::panic::set_hook(Box::new(|bug| {
        let _ = writeln!(std::io::stderr(), "buildbot-irc: this is a bug: {bug}");
        std::process::exit(cli::EXIT_BUG.into());
    }));
    match cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(cli::Exit { code, why }) => {
            // A log that cannot be written stops nothing.
            let _ = writeln!(std::io::stderr(), "{why}");
            ExitCode::from(code)
        }
    }
}

#[cfg(test)]
#[path = "../tests/common/fuzz.rs"]
mod fuzz;
