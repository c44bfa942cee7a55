//! The load over time: what ended in each slice of it. Few enough to keep, however long it takes.

use std::sync::Arc;
use std::time::Duration;

use super::histogram::{self, Latencies, Sparse};
use crate::limits::MAX_SLICES;

/// How long a slice is at first. When there are too many, two become one.
const FIRST_LENGTH: Duration = Duration::from_millis(100);

/// What ended within one slice of time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Requests that ended.
    pub requests: u64,
    /// Those that succeeded.
    pub succeeded: u64,
    /// Latencies of complete answers.
    pub latency: Sparse,
}

/// All slices of a load, the first one beginning when measuring does.
#[derive(Clone)]
pub struct Slices {
    length: Duration,
    done: Vec<Arc<Slice>>,
    current: Open,
}

/// The slice that is being filled.
#[derive(Clone)]
struct Open {
    requests: u64,
    succeeded: u64,
    latency: Latencies,
}

impl Open {
    fn new() -> Self {
        Self { requests: 0, succeeded: 0, latency: histogram::new() }
    }

    fn close(&mut self) -> Slice {
        let slice = Slice { requests: self.requests, succeeded: self.succeeded, latency: Sparse::new(&self.latency) };
        (self.requests, self.succeeded) = (0, 0);
        self.latency.reset();
        slice
    }
}

impl Slice {
    fn with(&self, other: &Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            succeeded: self.succeeded + other.succeeded,
            latency: self.latency.with(&other.latency),
        }
    }
}

/// How a request ended, as far as a slice tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Succeeded(Duration),
    Unexpected(Duration),
    Failed,
}

impl Slices {
    pub(crate) fn new() -> Self {
        Self { length: FIRST_LENGTH, done: Vec::new(), current: Open::new() }
    }

    /// How long each is; the last one may be shorter.
    pub fn length(&self) -> Duration {
        self.length
    }

    /// Those that are over, in order.
    pub fn done(&self) -> &[Arc<Slice>] {
        &self.done
    }

    pub(crate) fn record(&mut self, offset: Duration, ending: Ending) {
        self.close_until(offset);
        let current = &mut self.current;
        current.requests += 1;
        if let Ending::Succeeded(latency) | Ending::Unexpected(latency) = ending {
            histogram::record(&mut current.latency, latency);
        }
        current.succeeded += u64::from(matches!(ending, Ending::Succeeded(_)));
    }

    /// Closes slices until the one that an instant falls in is open.
    pub(crate) fn close_until(&mut self, offset: Duration) {
        while self.length * (self.done.len() as u32 + 1) <= offset {
            self.done.push(Arc::new(self.current.close()));
            if self.done.len() == MAX_SLICES {
                self.join_pairs();
            }
        }
    }

    /// Closes the last one, whole or not, if anything is in it.
    pub(crate) fn finish(&mut self) {
        if self.current.requests > 0 {
            self.done.push(Arc::new(self.current.close()));
        }
    }

    fn join_pairs(&mut self) {
        self.length *= 2;
        let join = |pair: &[Arc<Slice>]| match pair {
            [one, other] => Arc::new(one.with(other)),
            pair => pair[0].clone(),
        };
        self.done = self.done.chunks(2).map(join).collect();
    }

    /// Adds those of another thread, which began at the same instant.
    pub(crate) fn add(&mut self, other: &Self) {
        let mut other = other.clone();
        while self.length < other.length {
            self.join_pairs();
        }
        while other.length < self.length {
            other.join_pairs();
        }
        for (at, slice) in other.done.iter().enumerate() {
            match self.done.get_mut(at) {
                None => self.done.push(slice.clone()),
                Some(mine) => *mine = Arc::new(mine.with(slice)),
            }
        }
        self.current.requests += other.current.requests;
        self.current.succeeded += other.current.succeeded;
        self.current.latency.add(&other.current.latency).expect("all histograms have the same bounds");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn filled(milliseconds: std::ops::Range<u32>) -> Slices {
        let mut slices = Slices::new();
        for at in milliseconds {
            slices.record(at * MILLISECOND, Ending::Succeeded(MILLISECOND));
        }
        slices.finish();
        slices
    }

    fn counts(slices: &Slices) -> Vec<u64> {
        slices.done().iter().map(|slice| slice.requests).collect()
    }

    #[test]
    fn each_request_falls_into_the_slice_it_ended_in() {
        assert_eq!(counts(&filled(50..370)), [50, 100, 100, 70]);
        assert_eq!(counts(&filled(250..260)), [0, 0, 10]);
    }

    #[test]
    fn a_long_load_has_longer_slices_not_more_of_them() {
        let slices = filled(0..100 * MAX_SLICES as u32 * 2 + 400);
        assert!(slices.done().len() <= MAX_SLICES);
        assert_eq!(slices.length(), 400 * MILLISECOND);
        assert_eq!(counts(&slices).iter().sum::<u64>(), 100 * MAX_SLICES as u64 * 2 + 400);
        assert!(counts(&slices).iter().all(|count| *count == 400), "{:?}", counts(&slices));
    }

    #[test]
    fn slices_of_threads_add_up_also_when_they_have_different_lengths() {
        let mut sum = filled(0..250);
        sum.add(&filled(0..100 * MAX_SLICES as u32 + 200));
        assert_eq!(sum.length(), 200 * MILLISECOND);
        assert_eq!(counts(&sum)[..3], [400, 250, 200]);
        let slice = &sum.done()[0];
        assert_eq!((slice.succeeded, slice.latency.values().len()), (400, 1));
    }
}
