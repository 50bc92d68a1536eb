//! Word to a supervisor that listens on `$NOTIFY_SOCKET` (sd_notify(3)): ready, status, watchdog,
//! reloading, stopping. Without that variable nobody is told anything, and nothing wakes for it.

use std::env;
use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that we live, if at all.
    watchdog: Option<Duration>,
    next_watchdog: Instant,
    status: String,
}

impl Supervisor {
    pub fn new(now: Instant) -> Supervisor {
        let socket = match env::var("NOTIFY_SOCKET").map(|name| connect(&name)) {
            Ok(Ok(socket)) => Some(socket),
            Ok(Err(e)) => {
                log!(Warning, "NOTIFY_SOCKET: {e}");
                None
            }
            Err(_) => None,
        };
        Supervisor {
            watchdog: watchdog_period().filter(|_| socket.is_some()),
            socket,
            next_watchdog: now,
            status: String::new(),
        }
    }

    /// Tells one or several assignments, a line each. Best effort: errors are ignored.
    pub fn notify(&self, state: &str) {
        if let Some(socket) = &self.socket {
            let _ = socket.send(state.as_bytes());
        }
    }

    /// Tells what a person wants to know, if that has changed.
    pub fn notify_status(&mut self, status: impl FnOnce() -> String) {
        if self.socket.is_none() {
            return;
        }
        let status = status();
        if status != self.status {
            self.notify(&format!("STATUS={status}"));
            self.status = status;
        }
    }

    /// Says that we live, when it is time and we do.
    pub fn feed_watchdog(&mut self, is_alive: bool, now: Instant) {
        let Some(period) = self.watchdog.filter(|_| now >= self.next_watchdog) else {
            return;
        };
        self.next_watchdog = now + period;
        if is_alive {
            self.notify("WATCHDOG=1");
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|_| self.next_watchdog)
    }
}

fn connect(name: &str) -> io::Result<UnixDatagram> {
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address(name)?)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Half of the watchdog's period, as sd_watchdog_enabled(3) advises; nothing if it is not ours.
fn watchdog_period() -> Option<Duration> {
    let our_id = std::process::id().to_string();
    if env::var("WATCHDOG_PID").is_ok_and(|id| id != our_id) {
        return None;
    }
    let microseconds: u64 = env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    Some(Duration::from_micros(microseconds / 2))
}

/// A path, or behind an `@` a name in Linux's abstract namespace (unix(7)).
fn address(name: &str) -> io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}
