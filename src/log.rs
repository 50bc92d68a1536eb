//! The log: one line an event on stderr, for a person or for the journal. Any thread may write.
//! Secrets are left out where lines are built; forbidden characters are escaped here.

use crate::clock;
use crate::sanitize::escape;
use std::fmt::Arguments;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// How much a line matters, with the numbers of syslog (RFC 5424, section 6.2.1).
#[derive(Clone, Copy)]
pub enum Level {
    /// The bot cannot do what it was asked to do.
    Error = 3,
    /// Someone should look.
    Warning = 4,
    Info = 6,
    /// The wire and the requests, for `-v`.
    Debug = 7,
}

/// Characters of one line: a hostile peer must not fill the disk with it.
const LINE: usize = 2048;

static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// systemd sets JOURNAL_STREAM to the device and inode of the stderr it made (systemd.exec(5)).
static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| {
    let Ok(stderr) = std::fs::metadata("/dev/stderr") else {
        return false;
    };
    let identity = format!("{}:{}", stderr.dev(), stderr.ino());
    std::env::var("JOURNAL_STREAM") == Ok(identity)
});

/// Lines above this level are not written.
pub fn set_limit(level: Level) {
    LIMIT.store(level as u8, Ordering::Relaxed);
}

/// `log!(Info, "…", …)` writes one line at that level.
#[macro_export]
macro_rules! log {
    ($level:ident, $($text:tt)*) => {
        $crate::log::write($crate::log::Level::$level, format_args!($($text)*))
    };
}

pub fn write(level: Level, text: Arguments) {
    if level as u8 > LIMIT.load(Ordering::Relaxed) {
        return;
    }
    let prefix = if *TO_JOURNAL {
        format!("<{}>", level as u8)
    } else {
        format!("{} ", clock::rfc3339(clock::unix_now()))
    };
    let text: String = text.to_string().chars().take(LINE).collect();
    let line = format!("{prefix}{}\n", escape(&text));
    // A log that cannot be written is no reason to stop.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
