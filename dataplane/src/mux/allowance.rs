//! How many frames that do nothing for anybody the other side of a trunk may send: each costs credit, bodies earn it, and some
//! comes back with time. As `proxy::http2::calm` has it for HTTP/2.

use ringmesh_ring::clock::Instant;

use super::limits::{CREDIT_PER_SECOND, MAX_CREDIT};

/// Credit of one trunk.
#[derive(Debug)]
pub(super) struct Allowance {
    credit: u32,
    refilled: Instant,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self { credit: MAX_CREDIT, refilled: now }
    }

    pub(super) fn earn(&mut self, credit: u32) {
        self.credit = self.credit.saturating_add(credit).min(MAX_CREDIT);
    }

    /// Whether there is enough left. The clock is only asked when there is not.
    pub(super) fn pay(&mut self, cost: u32, now: impl Fn() -> Instant) -> bool {
        if self.credit < cost {
            let now = now();
            let seconds = now.saturating_since(self.refilled).as_secs();
            self.refilled = now;
            self.earn(seconds.saturating_mul(u64::from(CREDIT_PER_SECOND)).min(u64::from(MAX_CREDIT)) as u32);
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
