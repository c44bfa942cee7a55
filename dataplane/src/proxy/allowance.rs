//! How many frames that do nothing for anybody a peer may send: each costs credit, what serves somebody earns it, and some
//! comes back with time. Without credit it is flooding.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_ring::clock::Instant;

/// A frame of data with fewer bytes costs its sender next to nothing, so that it earns nothing that pays for a reset: or each
/// request that is broken off could bring along what it costs.
pub(crate) const MIN_EARNING_BYTES: usize = 1024;

/// Credit of one connection.
#[derive(Debug)]
pub(crate) struct Allowance {
    credit: u32,
    max: u32,
    per_second: u32,
    refilled: Instant,
}

impl Allowance {
    /// `max` is there at first, and is the most there can be; so many come back `per_second`.
    pub(crate) fn new(max: u32, per_second: u32, now: Instant) -> Self {
        Self { credit: max, max, per_second, refilled: now }
    }

    pub(crate) fn earn(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit).min(self.max);
    }

    /// What is left.
    #[cfg(test)]
    pub(crate) fn left(&self) -> u32 {
        self.credit
    }

    /// Whether there is enough left. The clock is only asked when there is not.
    pub(crate) fn pay(&mut self, cost: u32, now: impl Fn() -> Instant) -> bool {
        if self.credit < cost {
            let now = now();
            let seconds = now.saturating_since(self.refilled).as_secs();
            self.refilled = now;
            self.earn(seconds.saturating_mul(u64::from(self.per_second)).min(u64::from(self.max)) as u32);
        }
        match self.credit.checked_sub(cost) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }
}
