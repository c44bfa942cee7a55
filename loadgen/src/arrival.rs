//! When requests are due. Pure arithmetic, no clock: the schedule is the same on every run.

use std::time::Duration;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrivals {
    /// Open loop: so many a second over all connections, evenly spaced, however slow the answers are. Latency counts from
    /// the instant a request was due, so a stalled server is charged for the requests it kept waiting.
    Constant {
        /// Requests a second.
        per_second: f64,
    },
    /// Closed loop: each connection sends its next request when the answer to the last one is complete. Finds the
    /// capacity; its latencies leave out the waiting that a stall causes.
    Closed,
}

/// The requests that one of several workers sends: every `workers`-th arrival of the whole.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    nanoseconds_apart: f64,
    next: u64,
    step: u64,
}

impl Schedule {
    /// The share of worker `index` of `workers` in arrivals at a rate.
    pub fn new(per_second: f64, index: usize, workers: usize) -> Self {
        Self { nanoseconds_apart: 1e9 / per_second, next: index as u64, step: workers as u64 }
    }

    /// When the next request is due, counted from the start of the load. Each due instant is computed from the request's
    /// number, so that rounding never adds up.
    pub fn next_due(&self) -> Duration {
        Duration::from_nanos((self.next as f64 * self.nanoseconds_apart).round() as u64)
    }

    /// Takes the next request off the schedule.
    pub fn take(&mut self) -> Duration {
        let due = self.next_due();
        self.next += self.step;
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_even_and_do_not_drift() {
        let mut schedule = Schedule::new(3.0, 0, 1);
        let due: Vec<_> = (0..4).map(|_| schedule.take().as_nanos()).collect();
        assert_eq!(due, [0, 333_333_333, 666_666_667, 1_000_000_000]);
        let mut long = Schedule::new(7_000.0, 0, 1);
        for _ in 0..7_000 * 3_600 {
            long.take();
        }
        assert_eq!(long.next_due(), Duration::from_secs(3_600));
    }

    #[test]
    fn workers_share_one_schedule_without_gap_or_overlap() {
        let mut whole = Schedule::new(1_000.0, 0, 1);
        let mut shares: Vec<_> = (0..3).map(|index| Schedule::new(1_000.0, index, 3)).collect();
        for request in 0..300 {
            assert_eq!(shares[request % 3].take(), whole.take());
        }
    }
}
