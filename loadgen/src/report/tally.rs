//! Counts and latencies of requests.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Failure;
use super::histogram::{self, Latencies};
use crate::limits::MAX_FIELD_VALUES;

/// Counts and latencies of requests, or of TCP round trips.
#[derive(Clone)]
pub struct Tally {
    /// Complete answers, by status. Empty for TCP.
    pub statuses: BTreeMap<u16, u64>,
    /// Complete answers whose status was expected; for TCP, complete round trips.
    pub succeeded: u64,
    /// Complete answers whose status was not expected.
    pub unexpected: u64,
    /// Requests without a complete answer, by cause.
    pub failures: BTreeMap<Failure, u64>,
    /// Complete answers by the value of the counted field (`""`: it was missing).
    pub field_values: BTreeMap<String, u64>,
    /// From the instant a request was due (closed loop: from its start) to the end of its answer. Complete answers only.
    latency: Latencies,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            statuses: BTreeMap::new(),
            succeeded: 0,
            unexpected: 0,
            failures: BTreeMap::new(),
            field_values: BTreeMap::new(),
            latency: histogram::new(),
        }
    }
}

impl Tally {
    /// Complete answers, whatever they say.
    pub fn answered(&self) -> u64 {
        self.succeeded + self.unexpected
    }

    /// Requests that ended, with or without an answer.
    pub fn requests(&self) -> u64 {
        self.answered() + self.failures.values().sum::<u64>()
    }

    /// Requests that got no answer at all because the connection ended under them.
    pub fn cut(&self) -> u64 {
        self.failure(Failure::Cut)
    }

    /// Requests that failed: unexpected status, or no complete answer for another reason than being cut.
    pub fn failed(&self) -> u64 {
        self.requests() - self.succeeded - self.cut()
    }

    /// Requests that failed for one cause.
    pub fn failure(&self, cause: Failure) -> u64 {
        self.failures.get(&cause).copied().unwrap_or(0)
    }

    /// Answers by class: `2` for 200 to 299, and so on.
    pub fn class(&self, class: u16) -> u64 {
        self.statuses.range(class * 100..(class + 1) * 100).map(|(_, count)| count).sum()
    }

    /// Share of requests that succeeded; 1 if there was none.
    pub fn success_rate(&self) -> f64 {
        match self.requests() {
            0 => 1.0,
            all => self.succeeded as f64 / all as f64,
        }
    }

    /// Latency below which this share (0 to 1) of the complete answers lies.
    pub fn quantile(&self, share: f64) -> Duration {
        histogram::quantile(&self.latency, share)
    }

    /// The longest latency.
    pub fn slowest(&self) -> Duration {
        Duration::from_nanos(self.latency.max())
    }

    /// The mean latency.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latency.mean() / 1e9)
    }

    /// The histogram itself, in nanoseconds.
    pub fn latency(&self) -> &Latencies {
        &self.latency
    }

    pub(crate) fn answer(&mut self, status: Option<u16>, expected: Expected, latency: Duration) {
        if let Some(status) = status {
            *self.statuses.entry(status).or_default() += 1;
        }
        match expected {
            Expected::Yes => self.succeeded += 1,
            Expected::No => self.unexpected += 1,
        }
        histogram::record(&mut self.latency, latency);
    }

    pub(crate) fn fail(&mut self, cause: Failure) {
        *self.failures.entry(cause).or_default() += 1;
    }

    pub(crate) fn field_value(&mut self, value: &str) {
        if let Some(count) = self.field_values.get_mut(value) {
            *count += 1;
            return;
        }
        // The server chooses the values, so we choose how many are told apart.
        let value = if self.field_values.len() < MAX_FIELD_VALUES { value } else { "other" };
        *self.field_values.entry(value.to_owned()).or_default() += 1;
    }

    /// What came after an earlier state of this same tally.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut latency = self.latency.clone();
        latency.subtract(&earlier.latency).expect("an earlier state counts nothing that a later one does not");
        Self {
            statuses: subtract_counts(&self.statuses, &earlier.statuses),
            succeeded: self.succeeded - earlier.succeeded,
            unexpected: self.unexpected - earlier.unexpected,
            failures: subtract_counts(&self.failures, &earlier.failures),
            field_values: subtract_counts(&self.field_values, &earlier.field_values),
            latency,
        }
    }

    pub(super) fn add(&mut self, other: &Self) {
        add_counts(&mut self.statuses, &other.statuses);
        add_counts(&mut self.failures, &other.failures);
        add_counts(&mut self.field_values, &other.field_values);
        self.succeeded += other.succeeded;
        self.unexpected += other.unexpected;
        self.latency.add(&other.latency).expect("all histograms have the same bounds");
    }
}

/// Whether an answer was one of those that its entry expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expected {
    Yes,
    No,
}

fn add_counts<K: Ord + Clone>(mine: &mut BTreeMap<K, u64>, theirs: &BTreeMap<K, u64>) {
    for (key, count) in theirs {
        *mine.entry(key.clone()).or_default() += count;
    }
}

fn subtract_counts<K: Ord + Clone>(now: &BTreeMap<K, u64>, earlier: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let before = |key| earlier.get(key).copied().unwrap_or(0);
    now.iter().map(|(key, count)| (key.clone(), count - before(key))).filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tally {
        let mut tally = Tally::default();
        for millisecond in 1..=100 {
            tally.answer(Some(200), Expected::Yes, Duration::from_millis(millisecond));
        }
        tally.answer(Some(503), Expected::No, Duration::from_millis(1));
        tally.fail(Failure::Cut);
        tally.fail(Failure::Timeout);
        tally
    }

    #[test]
    fn cut_requests_are_counted_apart_from_failed_ones() {
        let tally = sample();
        assert_eq!((tally.requests(), tally.succeeded, tally.failed(), tally.cut()), (103, 100, 2, 1));
        assert_eq!((tally.class(2), tally.class(5)), (100, 1));
    }

    #[test]
    fn merged_tallies_hold_the_counts_of_both() {
        let mut tally = sample();
        tally.add(&sample());
        assert_eq!(tally.requests(), 206);
        let median = tally.quantile(0.5).as_secs_f64();
        assert!((0.049..0.052).contains(&median), "{median}");
    }

    #[test]
    fn what_came_since_is_told_apart_from_what_was_before() {
        let earlier = sample();
        let mut now = earlier.clone();
        for _ in 0..10 {
            now.answer(Some(404), Expected::No, Duration::from_secs(1));
        }
        let since = now.since(&earlier);
        assert_eq!((since.requests(), since.class(4), since.class(2), since.cut()), (10, 10, 0, 0));
        assert!(since.quantile(0.01) >= Duration::from_millis(999));
    }

    #[test]
    fn values_of_the_counted_field_are_bounded() {
        let mut tally = Tally::default();
        for value in 0..MAX_FIELD_VALUES + 50 {
            tally.field_value(&value.to_string());
        }
        assert_eq!(tally.field_values.len(), MAX_FIELD_VALUES + 1);
        assert_eq!(tally.field_values["other"], 50);
    }

    #[test]
    fn latency_beyond_the_bound_counts_as_the_bound() {
        let mut tally = Tally::default();
        tally.answer(None, Expected::Yes, Duration::from_secs(100_000));
        assert!(tally.slowest() >= Duration::from_secs(119));
    }
}
