//! How long to wait after each failure in a row: doubled each time, up to a limit. Pure.

use std::time::Duration;

/// A growing wait. Reset by success.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
}

impl Backoff {
    pub const fn new(first: Duration, limit: Duration) -> Backoff {
        Backoff {
            first,
            limit,
            failures: 0,
        }
    }

    /// How long to wait after one more failure.
    pub fn next_wait(&mut self) -> Duration {
        // Past sixteen doublings any limit is reached.
        let factor = 1 << self.failures.min(16);
        self.failures = self.failures.saturating_add(1);
        self.first.saturating_mul(factor).min(self.limit)
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// Spreads waits by up to a quarter each way, so that many bots do not come back at once.
#[derive(Debug)]
pub struct Jitter(u64);

impl Jitter {
    pub fn new(seed: u64) -> Jitter {
        Jitter(seed)
    }

    pub fn spread(&mut self, wait: Duration) -> Duration {
        // Knuth's linear congruential generator (MMIX); its upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let fraction = (self.0 >> 33) as f64 / f64::from(1u32 << 31);
        wait.mul_f64(0.75 + fraction / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_limit_and_begin_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(4), Duration::from_secs(60));
        let seconds: Vec<u64> = (0..6).map(|_| backoff.next_wait().as_secs()).collect();
        assert_eq!(seconds, [4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.failures(), 6);
        backoff.reset();
        assert_eq!(backoff.next_wait().as_secs(), 4);
    }

    #[test]
    fn jitter_stays_within_a_quarter() {
        let mut jitter = Jitter::new(7);
        let waits: Vec<Duration> = (0..1000)
            .map(|_| jitter.spread(Duration::from_secs(4)))
            .collect();
        let range = Duration::from_secs(3)..=Duration::from_secs(5);
        assert!(waits.iter().all(|wait| range.contains(wait)));
        assert!(waits.iter().any(|wait| *wait < Duration::from_millis(3300)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_millis(4700)));
    }
}
