//! Monotonic time as one number, so that a deadline is a cell write and a virtual clock is a counter.

use std::ops::Add;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A moment on the monotonic clock, in nanoseconds. Moments of different clocks (the machine's, a virtual one) must not
/// be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(u64);

impl Instant {
    /// The moment a virtual clock starts from.
    pub const ZERO: Instant = Instant(0);

    /// Later than every deadline.
    pub const FAR_FUTURE: Instant = Instant(u64::MAX);

    /// The machine's monotonic clock (`CLOCK_MONOTONIC`, read through the vDSO).
    pub fn now() -> Instant {
        let now = clock_gettime(ClockId::Monotonic);
        Instant(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
    }

    /// The moment that many nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Instant {
        Instant(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero when `earlier` is later.
    pub const fn saturating_since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Instant;

    fn add(self, length: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(length.as_nanos()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_never_runs_backwards() {
        let first = Instant::now();
        assert!(Instant::now() >= first);
    }

    #[test]
    fn adding_saturates_instead_of_wrapping() {
        assert_eq!(Instant::now() + Duration::MAX, Instant::FAR_FUTURE);
        assert_eq!(Instant::ZERO.saturating_since(Instant::now()), Duration::ZERO);
    }
}
