//! Whether a service can be reached at all, told once when that changes. All workers share one word a service; they look at it
//! when they connect, or fail to, and write it only when it changes.

use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;

use crate::outcome::{Reason, Retry};
use crate::tables::{Endpoint, Service};
use crate::telemetry::event::{Event, Reach as Told};
use crate::worker::Worker;

/// How soon after it was told that a service can be reached again the contrary may be told, in milliseconds: one that comes and
/// goes is two lines in that time.
const PAUSE_MILLIS: u64 = 10_000;

/// Whether a service is held to be out of reach, in the lowest bit; above it, since when, in milliseconds of the clock.
#[derive(Debug, Default)]
pub struct Reach(AtomicU64);

impl Reach {
    /// When it was last told.
    fn told(&self) -> Instant {
        Instant::from_nanos((self.0.load(Ordering::Relaxed) >> 1).saturating_mul(1_000_000))
    }

    /// Whether it is told that it cannot be reached.
    fn is_lost(&self) -> bool {
        self.0.load(Ordering::Relaxed) & 1 == 1
    }

    /// It cannot be reached. Whether that is to be told.
    fn lose(&self, now: Instant) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        let is_lost = word & 1 == 1;
        let is_early = word != 0 && millis(now) < (word >> 1) + PAUSE_MILLIS;
        !is_lost && !is_early && self.change(word, millis(now) << 1 | 1)
    }

    /// It can be reached. Whether that is to be told. The clock is only asked if it is.
    fn regain(&self, now: impl Fn() -> Instant) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        word & 1 == 1 && self.change(word, millis(now()) << 1)
    }

    /// One worker alone succeeds.
    fn change(&self, from: u64, to: u64) -> bool {
        self.0.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

/// Never zero, which stands for never.
fn millis(now: Instant) -> u64 {
    (now.as_nanos() / 1_000_000).max(1)
}

/// Notes that an endpoint could be reached.
pub(super) fn reached<N: Net>(worker: &Worker<N>, service: &Service, endpoint: &Endpoint) {
    if service.reach.regain(|| worker.net.now()) {
        tell(worker, service, endpoint, Reason::Ok);
    }
}

/// Notes that a request or connection has come to nothing, `endpoint` being the last that was tried. If none of the service's
/// endpoints could be connected to when that was last tried, and no connection is left, it is out of reach. What this worker
/// has not tried since another one could connect says nothing.
#[cold]
pub fn failed<N: Net>(worker: &Rc<Worker<N>>, service: &Service, endpoint: &Endpoint, reason: Reason) {
    // One whose client had no patience left says so, whatever it waited for.
    if reason.retry() != Retry::Elsewhere && reason != Reason::RequestTimeout {
        return;
    }
    // Requests that fail meanwhile look no endpoint up.
    if service.reach.is_lost() {
        return;
    }
    let since = service.reach.told();
    let is_out =
        |endpoint: &Endpoint| worker.pools.known(endpoint.place).is_some_and(|state| state.is_out_of_reach(since));
    let is_lost = !service.endpoints.is_empty() && service.endpoints.iter().all(is_out);
    if is_lost && service.reach.lose(worker.net.now()) {
        tell(worker, service, endpoint, reason);
    }
}

fn tell<N: Net>(worker: &Worker<N>, service: &Service, endpoint: &Endpoint, reason: Reason) {
    worker.tell(&Event::Reach(Told {
        service: &service.config.name,
        endpoints: service.endpoints.len() as u32,
        endpoint: &endpoint.text,
        reason: reason as u8,
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_comes_and_goes_is_told_twice_in_ten_seconds_and_its_last_state_is_never_wrong() {
        let reach = Reach::default();
        let lose = |millis: u64| reach.lose(Instant::from_nanos(millis * 1_000_000));
        let regain = |millis: u64| reach.regain(|| Instant::from_nanos(millis * 1_000_000));
        assert!(!regain(0), "nobody was told that it is gone");
        assert!(lose(0));
        assert!(!lose(0) && !lose(60_000), "once");
        assert!(regain(70_000));
        assert!(!regain(70_001), "once");
        assert!(!lose(79_999) && !regain(79_999), "what was not told is not taken back");
        assert!(lose(80_000));
        assert!(regain(80_000));
        assert_eq!(reach.told(), Instant::from_nanos(80_000_000_000));
        assert!(!lose(89_999));
        assert!(lose(90_000));
    }
}
