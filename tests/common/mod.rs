//! The harness of the black-box tests: real servers started on free ports of the loopback
//! interface, people on IRC, fake peers, and the bot as a process.
//!
//! Nothing sleeps to synchronise: a wait polls a condition or a condition variable and ends in a
//! panic that shows what was seen. Whatever a test starts ends with it, even if it is killed.
#![allow(dead_code, unused_imports)] // every test file uses a part of it

mod bot;
mod certificates;
mod client;
mod fake_http;
mod fake_irc;
mod fake_master;
mod flood;
mod fuzz;
mod irc;
mod lab;
mod listener;
mod master;
mod net;
mod process;
mod proxy;
mod worker;
mod znc;

pub use bot::{Bot, Finished, binary, config_dir, read_state, run, write_config};
pub use certificates::Certificates;
pub use client::{Client, Connection};
pub use fake_http::{Answer, FakeHttp, Request};
pub use fake_irc::{FakeIrc, FakePeer};
pub use fake_master::FakeMaster;
pub use flood::{ERGO, FloodGate, FloodRule, SOLANUM, UNREAL};
pub use fuzz::Random;
pub use irc::{Hybrid, Inspircd, InspircdOptions, Ngircd, NgircdOptions};
pub use lab::{ANNOUNCING, Lab, NO_MASTER, POLLING, execute};
pub use listener::{Listener, matches};
pub use master::{CANCELLED, EXCEPTION, FAILURE, Master, RETRY, SKIPPED, SUCCESS, WARNINGS};
pub use process::{Process, collect, daemon, guarded, spawn};
pub use proxy::{Proxy, Tunnel};
pub use worker::Worker;
pub use znc::Znc;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long an expectation waits.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a server may take to come up: a master needs 2 s of CPU, and two cores may run a dozen at once.
pub const START: Duration = Duration::from_secs(90);
/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A new directory under target/lab, of which the last part is unique on this machine.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicUsize = AtomicUsize::new(1);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = root().join(format!("target/lab/{name}-{}-{count}", std::process::id()));
    let _ = fs::remove_dir_all(&dir); // of an earlier process with this number
    fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
    dir
}

/// A port of 127.0.0.1 that nobody listens on. From below the ephemeral range, or the kernel might give
/// it to some outgoing connection before our server binds it; each process searches from a place of its own.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 20_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % u32::from(COUNT)) as u16;
    for _ in 0..COUNT {
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let offset = start.wrapping_mul(61).wrapping_add(next) % COUNT;
        if TcpListener::bind(("127.0.0.1", FIRST + offset)).is_ok() {
            return FIRST + offset;
        }
    }
    panic!("no free port on 127.0.0.1");
}

/// Polls until the closure has a value.
#[track_caller]
pub fn wait_for<T>(what: &str, limit: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    let mut pause = Pause::default();
    loop {
        if let Some(value) = poll() {
            return value;
        }
        assert!(Instant::now() < end, "waited {limit:?} for {what}");
        pause.take();
    }
}

/// The pause between two polls: short at first, then longer, since polling takes time from what is waited for.
#[derive(Default)]
struct Pause(u64);

impl Pause {
    fn take(&mut self) {
        self.0 = (self.0 * 2).clamp(2, 50);
        thread::sleep(Duration::from_millis(self.0));
    }
}

/// The path of a program that the tests need; its absence is a failure, not a reason to skip.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin:/usr/local/sbin";
    let mut files = path.split(':').map(|dir| Path::new(dir).join(name));
    let found = files.find(|file| file.is_file());
    found.unwrap_or_else(|| {
        panic!("{name} is not installed; `sh tests/common/setup.sh` installs what the tests need")
    })
}

/// The release of Buildbot that `make test-masters` names; empty is the one of tests/requirements.txt.
pub fn buildbot() -> String {
    std::env::var("BUILDBOT").unwrap_or_default()
}

/// A program of the Python environment with that Buildbot.
pub fn venv(name: &str) -> PathBuf {
    let version = buildbot();
    let dir = if version.is_empty() {
        "target/venv".to_string()
    } else {
        format!("target/venv-{version}")
    };
    let file = root().join(dir).join("bin").join(name);
    assert!(
        file.exists(),
        "{} is not there; `sh tests/common/setup.sh {version}` makes it",
        file.display()
    );
    file
}

/// Writes one of the templates beside this file, its `@KEY@`s replaced.
fn fill(file: &Path, template: &str, values: &[(&str, &str)]) {
    let mut text = template.to_string();
    for (key, value) in values {
        text = text.replace(&format!("@{key}@"), value);
    }
    fs::write(file, text).unwrap();
}
