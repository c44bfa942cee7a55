//! How slowly a peer may transfer: at least so many bytes a second, after some grace.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::num::NonZeroU32;
use std::time::Duration;

use ringmesh_ring::clock::Instant;

/// Time that a transfer may take beside what its bytes allow: congestion and a lost packet or two need some, and a small
/// transfer has no rate to speak of. As Kestrel's `MinRequestBodyDataRate`.
pub const GRACE: Duration = Duration::from_secs(5);

/// Most waiting that bytes can buy in advance. A fast start does not buy hours of silence, and a client that sends in
/// bursts may rest between them for as long as nginx's `client_body_timeout` lets it.
pub const MAX_CREDIT: Duration = Duration::from_secs(60);
const _: () = assert!(GRACE.as_secs() <= MAX_CREDIT.as_secs());

/// The fewest bytes a second; none: any number.
#[derive(Clone, Copy, Debug)]
pub struct Pace(Option<NonZeroU32>);

impl Pace {
    /// The pace of so many bytes a second.
    pub const fn new(bytes_per_second: Option<NonZeroU32>) -> Self {
        Self(bytes_per_second)
    }

    /// Whether there is a slowest transfer.
    pub const fn is_bound(self) -> bool {
        self.0.is_some()
    }

    /// How long a peer may take over so many bytes, once they are all there for it.
    pub fn time_for(self, bytes: usize) -> Duration {
        self.earned(bytes).map_or(Duration::MAX, |earned| GRACE.saturating_add(earned))
    }

    /// The moment until which a peer may take so many bytes that are there for it now.
    #[inline]
    pub fn end(self, now: Instant, bytes: usize) -> Instant {
        // In whole numbers from beginning to end: this is asked several times a request.
        let Some(rate) = self.0 else { return Instant::FAR_FUTURE };
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / u64::from(rate.get());
        Instant::from_nanos(now.as_nanos().saturating_add(GRACE.as_nanos() as u64).saturating_add(nanos))
    }

    fn earned(self, bytes: usize) -> Option<Duration> {
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / u64::from(self.0?.get());
        Some(Duration::from_nanos(nanos))
    }
}

/// How much longer a peer may keep us waiting for its bytes: what it sends earns it time, and only waiting for it costs.
#[derive(Clone, Copy, Debug)]
pub struct Credit {
    pace: Pace,
    left: Duration,
}

impl Credit {
    /// The grace that each transfer begins with.
    pub const fn new(pace: Pace) -> Self {
        let left = if pace.0.is_some() { GRACE } else { Duration::MAX };
        Self { pace, left }
    }

    /// How long the next wait may be.
    pub const fn left(&self) -> Duration {
        self.left
    }

    /// Takes a wait into account, and what came of it.
    pub fn settle(&mut self, waited: Duration, bytes: usize) {
        if let Some(earned) = self.pace.earned(bytes) {
            self.left = self.left.saturating_sub(waited).saturating_add(earned).min(MAX_CREDIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Pace = Pace(NonZeroU32::new(100));
    const OFF: Pace = Pace(None);

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn taking_bytes_may_last_the_grace_and_what_the_rate_allows() {
        assert_eq!(SLOW.time_for(0), GRACE);
        assert_eq!(SLOW.time_for(1000), GRACE + seconds(10));
        assert!(SLOW.time_for(usize::MAX) > seconds(86_400 * 365));
        assert_eq!(OFF.time_for(0), Duration::MAX);
        let now = Instant::ZERO + seconds(7);
        for pace in [SLOW, OFF] {
            for bytes in [0, 1, 99, 1000, usize::MAX] {
                assert_eq!(pace.end(now, bytes), now + pace.time_for(bytes), "{bytes} bytes");
            }
        }
    }

    #[test]
    fn waiting_costs_and_bytes_earn_up_to_a_bound() {
        let mut credit = Credit::new(SLOW);
        for (waited, bytes, left) in
            [(0, 0, 5), (3, 0, 2), (2, 300, 3), (4, 0, 0), (9, 0, 0), (0, 1_000_000, 60), (20, 0, 40), (0, 500, 45)]
        {
            credit.settle(seconds(waited), bytes);
            assert_eq!(credit.left(), seconds(left), "{waited} s for {bytes} bytes");
        }
    }

    #[test]
    fn without_a_rate_waiting_costs_nothing() {
        let mut credit = Credit::new(OFF);
        credit.settle(seconds(1_000_000), 1);
        assert_eq!(credit.left(), Duration::MAX);
    }
}
