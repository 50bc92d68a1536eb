//! The log: one line per event on stderr, for a person or for the journal. Any thread may write.
//! Secrets are redacted where lines are built; control characters are made visible here, so that
//! nothing from outside can forge a line.

use std::fmt::{Arguments, Write as _};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
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

/// Longer lines are cut: a hostile peer must not fill the disk with one line.
const LINE: usize = 2048;

static LIMIT: AtomicU8 = AtomicU8::new(Level::Info as u8);

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
    let mut line = if to_journal() { format!("<{}>", level as u8) } else { format!("{} ", timestamp(unix_now())) };
    for c in text.to_string().replace('\t', " ").chars() {
        if c.is_control() {
            let _ = write!(line, "\\x{:02x}", c as u32);
        } else {
            line.push(c);
        }
        if line.len() > LINE {
            line.push('…');
            break;
        }
    }
    // A log that cannot be written is no reason to stop.
    let _ = std::io::stderr().write_all((line + "\n").as_bytes());
}

/// Seconds since the epoch, UTC, as the master counts them.
pub fn unix_now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}

/// systemd sets JOURNAL_STREAM to the device and inode of the stderr it made (systemd.exec(5)).
fn to_journal() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    let stderr = || std::fs::metadata("/dev/stderr").map(|m| format!("{}:{}", m.dev(), m.ino()));
    *ANSWER.get_or_init(|| std::env::var("JOURNAL_STREAM").is_ok_and(|journal| stderr().is_ok_and(|s| s == journal)))
}

/// RFC 3339 in UTC; days to a civil date as in Howard Hinnant's paper on date algorithms.
fn timestamp(unix: i64) -> String {
    let (days, second) = (unix.div_euclid(86_400), unix.rem_euclid(86_400));
    let z = days + 719_468;
    let day_of_era = z.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + z.div_euclid(146_097) * 400 + i64::from(month <= 2);
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{:02}Z", second % 60)
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
