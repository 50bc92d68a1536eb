//! The log: one line per event on stderr, for a person or for the journal. Any thread may write.
//! Secrets are redacted where lines are built; control characters are made visible here, so that
//! nothing from outside can forge a line.

use std::fmt::Arguments;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// How much a line matters, with the numbers of syslog (RFC 5424, section 6.2.1).
#[derive(Clone, Copy)]
pub enum Level {
    Error = 3,   // the bot cannot do what it was asked to do
    Warning = 4, // someone should look
    Info = 6,
    Debug = 7, // the wire and the requests, for `-v`
}

/// Characters of one line: a hostile peer must not fill the disk with it.
const LINE: usize = 2048;

static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);

/// systemd sets JOURNAL_STREAM to the device and inode of the stderr it made (systemd.exec(5)).
static TO_JOURNAL: LazyLock<bool> = LazyLock::new(|| {
    let stderr = std::fs::metadata("/dev/stderr").map(|m| format!("{}:{}", m.dev(), m.ino()));
    stderr.is_ok_and(|stderr| std::env::var("JOURNAL_STREAM") == Ok(stderr))
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
    if level as u8 <= LIMIT.load(Ordering::Relaxed) {
        let lead = if *TO_JOURNAL {
            format!("<{}>", level as u8)
        } else {
            timestamp(unix_now()) + " "
        };
        let shown = |c: char| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        };
        let text: String = text.to_string().chars().take(LINE).map(shown).collect();
        // A log that cannot be written is no reason to stop.
        let _ = std::io::stderr().write_all(format!("{lead}{text}\n").as_bytes());
    }
}

/// Seconds since the epoch, UTC, as the master counts them.
pub fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() as i64)
}

/// RFC 3339, in UTC.
fn timestamp(unix: i64) -> String {
    let leap = |year| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = |year, month| match month {
        2 => 28 + i64::from(leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let (mut day, mut month, mut year) = (unix / 86_400, 1, 1970);
    while day >= length(year, month) {
        day -= length(year, month);
        (year, month) = (year + month / 12, month % 12 + 1);
    }
    let (day, hour, minute, second) = (day + 1, unix / 3600 % 24, unix / 60 % 60, unix % 60);
    format!("{year}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::timestamp;

    #[test]
    fn timestamps_are_rfc3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00Z");
        assert_eq!(timestamp(951_782_399), "2000-02-28T23:59:59Z");
        assert_eq!(timestamp(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(timestamp(1_795_361_890), "2026-11-22T15:38:10Z");
    }
}
