//! Word to a supervisor that listens on `$NOTIFY_SOCKET` (sd_notify(3)): ready, status, watchdog,
//! reloading, stopping. Without that variable nobody is told anything, and nothing wakes for it.

use std::env;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

pub struct Supervisor {
    socket: Option<UnixDatagram>,
    /// How often it wants to hear that we live, if at all, and when next.
    watchdog: Option<Duration>,
    due: Instant,
    status: String,
}

impl Supervisor {
    pub fn new(now: Instant) -> Supervisor {
        let connect = |name: String| {
            let socket = UnixDatagram::unbound()?;
            socket.connect_addr(&address(&name)?)?;
            socket.set_nonblocking(true)?;
            Ok::<_, std::io::Error>(socket)
        };
        let socket = env::var("NOTIFY_SOCKET").ok().map(connect).transpose();
        let socket = socket
            .inspect_err(|e| log!(Warning, "NOTIFY_SOCKET: {e}"))
            .unwrap_or_default();
        let ours =
            env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
        let period = env::var("WATCHDOG_USEC")
            .ok()
            .filter(|_| ours)
            .and_then(|us| us.parse().ok());
        // Half of the period, as sd_watchdog_enabled(3) advises.
        let watchdog = period
            .map(|us: u64| Duration::from_micros(us / 2))
            .filter(|_| socket.is_some());
        Supervisor {
            socket,
            watchdog,
            due: now,
            status: String::new(),
        }
    }

    /// Tells one or several assignments, a line each. It may not listen; that is its own affair.
    pub fn tell(&self, state: &str) {
        let _ = self
            .socket
            .as_ref()
            .map(|socket| socket.send(state.as_bytes()));
    }

    /// Tells what a person wants to know, if that has changed.
    pub fn status(&mut self, status: impl FnOnce() -> String) {
        if self.socket.is_some() {
            let before = std::mem::replace(&mut self.status, status());
            if before != self.status {
                self.tell(&format!("STATUS={}", self.status));
            }
        }
    }

    /// Says that we live, when it is time and we do.
    pub fn feed(&mut self, alive: bool, now: Instant) {
        let Some(period) = self.watchdog.filter(|_| now >= self.due) else {
            return;
        };
        self.due = now + period;
        if alive {
            self.tell("WATCHDOG=1");
        }
    }

    pub fn deadline(&self) -> Option<Instant> {
        self.watchdog.map(|_| self.due)
    }
}

/// A path, or behind an `@` a name in Linux's abstract namespace (unix(7)).
fn address(name: &str) -> std::io::Result<SocketAddr> {
    #[cfg(target_os = "linux")]
    if let Some(name) = name.strip_prefix('@') {
        return <SocketAddr as std::os::linux::net::SocketAddrExt>::from_abstract_name(name);
    }
    SocketAddr::from_pathname(name)
}
