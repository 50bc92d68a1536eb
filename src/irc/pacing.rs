//! How fast we may speak. A penalty clock runs ahead of the real one by what each line costs, as
//! servers count it themselves (RFC 1459, section 8.10); each server's software has its own prices.
//! Pure.

use std::time::{Duration, Instant};

/// The server's software, as far as its limits are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Software {
    #[default]
    Unknown,
    Ngircd,
    Inspircd,
    Hybrid,
    /// Solanum, Charybdis and their kin.
    Solanum,
    Unreal,
    Ergo,
}

impl Software {
    /// By the version in 004 (RPL_MYINFO).
    pub fn by_version(version: &str) -> Software {
        let version = version.to_ascii_lowercase();
        let begins = |names: &[&str]| names.iter().any(|name| version.starts_with(name));
        if begins(&["ngircd"]) {
            Software::Ngircd
        } else if begins(&["inspircd"]) {
            Software::Inspircd
        } else if begins(&["hybrid", "ircd-hybrid"]) {
            Software::Hybrid
        } else if begins(&["solanum", "charybdis", "ircd-seven", "elemental"]) {
            Software::Solanum
        } else if begins(&["unreal"]) {
            Software::Unreal
        } else if begins(&["ergo", "oragono"]) {
            Software::Ergo
        } else {
            Software::Unknown
        }
    }
}

/// The prices of one software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Profile {
    /// How far the clock may be ahead when a line goes.
    allowance: Duration,
    /// The least that a line costs.
    least: Duration,
    /// What a line costs at its beginning, and for each byte.
    base: Duration,
    per_byte: Duration,
}

impl Profile {
    /// Lines of one price: so many at once, then one each time.
    const fn flat(burst: u32, interval_ms: u64) -> Profile {
        let interval = Duration::from_millis(interval_ms);
        Profile {
            allowance: Duration::from_millis(interval_ms * (burst as u64 - 1)),
            least: interval,
            base: interval,
            per_byte: Duration::ZERO,
        }
    }
}

/// Safe on everything that was measured: five short lines at once, then one every two seconds.
const SAFE: Profile = Profile {
    allowance: Duration::from_secs(8),
    least: Duration::from_secs(2),
    base: Duration::from_secs(1),
    per_byte: Duration::from_millis(10),
};

impl Software {
    /// Each stays well below what that software was measured to take (see IRC.md of the design):
    /// what it reads at once, and how fast it reads on.
    fn profile(self) -> Profile {
        match self {
            Software::Unknown => SAFE,
            // 400 lines at once survive; it reads about three a second.
            Software::Ngircd => Profile::flat(10, 340),
            // 18 long lines at once survive; it reads ten, then one a second.
            Software::Inspircd => Profile::flat(10, 1000),
            // Ten long lines at once survive; one a second is fine, two are not.
            Software::Hybrid => Profile::flat(7, 1000),
            // Five lines of grace, then two a second; more than 20 waiting kill.
            Software::Solanum | Software::Ergo => Profile::flat(5, 500),
            // A second and another for 90 bytes, ten seconds ahead.
            Software::Unreal => Profile {
                allowance: Duration::from_secs(8),
                least: Duration::from_secs(1),
                base: Duration::from_secs(1),
                per_byte: Duration::from_micros(11_200),
            },
        }
    }
}

/// Short lines that a burst of lines to people leaves to channels: an answer, and the PONG that may
/// come in between.
const CHANNEL_RESERVE: u32 = 2;

/// What our lines have cost so far.
#[derive(Debug)]
pub struct PenaltyClock {
    clock: Instant,
    /// Nothing: everything goes at once.
    profile: Option<Profile>,
}

impl PenaltyClock {
    /// A clock with the prices that are safe everywhere, or without any.
    pub fn new(is_paced: bool, now: Instant) -> PenaltyClock {
        PenaltyClock {
            clock: now,
            profile: is_paced.then_some(SAFE),
        }
    }

    /// Goes by the prices of this software from now on.
    pub fn set_software(&mut self, software: Software) {
        if self.profile.is_some() {
            self.profile = Some(software.profile());
        }
    }

    pub fn is_paced(&self) -> bool {
        self.profile.is_some()
    }

    /// A new connection owes nothing.
    pub fn reset(&mut self, now: Instant) {
        self.clock = now;
    }

    /// When the next line may go.
    pub fn ready_at(&self) -> Instant {
        let allowance = self
            .profile
            .map_or(Duration::ZERO, |profile| profile.allowance);
        self.clock.checked_sub(allowance).unwrap_or(self.clock)
    }

    pub fn is_ready(&self, now: Instant) -> bool {
        self.profile.is_none() || self.ready_at() <= now
    }

    /// When the next line to a person may go: room for some lines is kept for channels, so that what
    /// a crowd asks for in private delays none of them.
    pub fn ready_for_person_at(&self) -> Instant {
        let reserve = self.profile.map_or(Duration::ZERO, |profile| {
            (profile.least * CHANNEL_RESERVE).min(profile.allowance / 2)
        });
        self.ready_at() + reserve
    }

    pub fn is_ready_for_person(&self, now: Instant) -> bool {
        self.profile.is_none() || self.ready_for_person_at() <= now
    }

    /// A line of so many bytes goes over the wire, whoever has sent it.
    pub fn charge(&mut self, bytes: usize, now: Instant) {
        let Some(profile) = self.profile else {
            return;
        };
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let cost = profile
            .base
            .saturating_add(profile.per_byte.saturating_mul(bytes));
        let clock = self.clock.max(now) + cost.max(profile.least);
        // What goes at once must not silence us for long, however much of it a server provokes.
        self.clock = clock.min(now + 4 * profile.allowance);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds at which so many lines of a length go.
    fn times(software: Software, lines: usize, bytes: usize) -> Vec<f64> {
        let start = Instant::now();
        let mut clock = PenaltyClock::new(true, start);
        clock.set_software(software);
        let mut now = start;
        let mut times = Vec::new();
        for _ in 0..lines {
            now = now.max(clock.ready_at());
            assert!(clock.is_ready(now));
            times.push((now - start).as_secs_f64());
            clock.charge(bytes, now);
        }
        times
    }

    #[test]
    fn a_burst_then_one_line_every_two_seconds_is_safe_everywhere() {
        let short = times(Software::Unknown, 8, 40);
        assert_eq!(short, [0.0, 0.0, 0.0, 0.0, 0.0, 2.0, 4.0, 6.0]);
        let long = times(Software::Unknown, 5, 400);
        assert_eq!(long, [0.0, 0.0, 2.0, 7.0, 12.0]);
    }

    #[test]
    fn people_leave_some_of_a_burst_to_channels() {
        let now = Instant::now();
        let mut clock = PenaltyClock::new(true, now);
        let mut lines = 0;
        while clock.is_ready_for_person(now) {
            clock.charge(40, now);
            lines += 1;
        }
        assert_eq!(lines, 3);
        assert!(clock.is_ready(now), "a channel does not wait");
        let soon = now + Duration::from_secs(2);
        assert!(clock.is_ready_for_person(soon), "the same in the long run");
    }

    #[test]
    fn each_software_is_known_by_its_version() {
        for (version, software) in [
            ("ngIRCd-26.1", Software::Ngircd),
            ("InspIRCd-3", Software::Inspircd),
            ("hybrid-8.2.43+dfsg.1-1", Software::Hybrid),
            ("solanum-1.0-dev", Software::Solanum),
            ("UnrealIRCd-6.1.8", Software::Unreal),
            ("ergo-2.11.1", Software::Ergo),
            ("u2.10.12.19", Software::Unknown),
        ] {
            assert_eq!(Software::by_version(version), software, "{version}");
        }
    }

    #[test]
    fn ten_lines_take_four_seconds_at_most_where_the_server_allows_it() {
        for software in [
            Software::Ngircd,
            Software::Inspircd,
            Software::Hybrid,
            Software::Solanum,
            Software::Ergo,
        ] {
            let last = times(software, 10, 100)[9];
            assert!(last <= 4.0, "{software:?}: {last}");
        }
    }

    #[test]
    fn without_pacing_everything_goes_at_once() {
        let now = Instant::now();
        let mut clock = PenaltyClock::new(false, now);
        clock.set_software(Software::Ngircd);
        (0..1000).for_each(|_| clock.charge(500, now));
        assert!(clock.is_ready(now) && !clock.is_paced());
    }

    #[test]
    fn what_a_server_provokes_does_not_silence_for_long() {
        let now = Instant::now();
        let mut clock = PenaltyClock::new(true, now);
        (0..1000).for_each(|_| clock.charge(20, now));
        assert!(clock.ready_at() <= now + Duration::from_secs(24));
    }
}
