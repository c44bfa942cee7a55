//! When requests are due. Pure arithmetic, no clock: the schedule is the same on every run.

mod rate;

use std::time::Duration;

pub use rate::Rate;

/// How requests arrive.
#[derive(Clone, Debug, PartialEq)]
pub enum Arrivals {
    /// Open loop: at this rate over all connections, however slow the answers are. Latency counts from the instant a
    /// request was due, so a stalled server is charged for the requests it kept waiting.
    Open {
        /// Requests a second, as it changes over time.
        rate: Rate,
        /// How they lie within it.
        spacing: Spacing,
    },
    /// Closed loop: each connection sends its next request when the answer to the last one is complete. Finds the
    /// capacity; its latencies leave out the waiting that a stall causes.
    Closed,
}

impl Arrivals {
    /// Open loop, evenly spaced, so many requests a second from start to end.
    pub fn constant(per_second: f64) -> Self {
        Self::Open { rate: Rate::constant(per_second), spacing: Spacing::Even }
    }
}

/// How requests lie within their rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Evenly.
    Even,
    /// At random, independently of each other, as those of many users do (a Poisson process). The same seed gives the
    /// same instants.
    Poisson {
        /// Where chance starts from.
        seed: u64,
    },
}

/// The requests that one of several workers sends. Evenly spaced: every `workers`-th arrival of the whole. At random: a
/// process of its own, as those of several add up to one of all.
#[derive(Clone, Debug)]
pub struct Schedule {
    rate: Rate,
    workers: f64,
    /// How many requests of the whole come before the next one.
    position: f64,
    next: u64,
    chance: Option<Chance>,
}

impl Schedule {
    /// The share of worker `index` of `workers`.
    pub fn new(rate: &Rate, spacing: Spacing, index: usize, workers: usize) -> Self {
        let (index, step) = (index as u64, workers as f64);
        let mut chance = match spacing {
            Spacing::Even => None,
            Spacing::Poisson { seed } => Some(Chance::new(seed, index)),
        };
        let position = chance.as_mut().map_or(index as f64, |chance| chance.exponential() * step);
        Self { rate: rate.clone(), workers: step, position, next: index, chance }
    }

    /// When the next request is due, counted from the start of the load. None: never, the rate has fallen to nothing.
    /// Each due instant is computed from the number of requests before it, so that rounding never adds up.
    pub fn next_due(&self) -> Option<Duration> {
        self.due_at(self.position)
    }

    fn due_at(&self, position: f64) -> Option<Duration> {
        let seconds = self.rate.when(position)?;
        Some(Duration::from_nanos((seconds * 1e9).round() as u64))
    }

    /// Takes the next request off the schedule.
    pub fn take(&mut self) -> Option<Duration> {
        let due = self.next_due();
        self.next += self.workers as u64;
        self.position = match &mut self.chance {
            None => self.next as f64,
            Some(chance) => self.position + chance.exponential() * self.workers,
        };
        due
    }
}

impl Schedule {
    /// Takes all requests that are due before an instant, `most` of them at most, and says how many they were. Millions
    /// may be left of a rate that nobody keeps, so evenly spaced ones are not taken one by one.
    pub fn take_before(&mut self, instant: Duration, most: u64) -> u64 {
        if self.chance.is_some() {
            let mut taken = 0;
            while taken < most && self.next_due().is_some_and(|due| due < instant) {
                self.take();
                taken += 1;
            }
            return taken;
        }
        // The first number after which none is due any more; the bound is beyond what any rate sends in a year.
        let (mut low, mut high) = (0, most.min(1 << 50));
        while low < high {
            let middle = low + (high - low) / 2;
            match self.due_at(self.number_after(middle) as f64).is_some_and(|due| due < instant) {
                true => low = middle + 1,
                false => high = middle,
            }
        }
        self.next = self.number_after(low);
        self.position = self.next as f64;
        low
    }

    /// The number of the request that comes so many of this worker's later.
    fn number_after(&self, requests: u64) -> u64 {
        self.next.saturating_add(requests.saturating_mul(self.workers as u64))
    }
}

/// Random numbers that are the same on every run (splitmix64).
#[derive(Clone, Debug)]
pub(crate) struct Chance(u64);

impl Chance {
    pub(crate) fn new(seed: u64, index: u64) -> Self {
        let mut chance = Self(seed ^ index.wrapping_mul(0xd1b5_4a32_d192_ed03));
        // Neighbouring seeds begin alike.
        chance.next();
        chance
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// From 0 to less than 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        // 53 bits are what a float holds.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// The gap to the next of events that come once on average.
    fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn even(rate: &str, index: usize, workers: usize) -> Schedule {
        Schedule::new(&rate.parse().unwrap(), Spacing::Even, index, workers)
    }

    #[test]
    fn arrivals_are_even_and_do_not_drift() {
        let mut schedule = even("3", 0, 1);
        let due: Vec<_> = (0..4).map(|_| schedule.take().unwrap().as_nanos()).collect();
        assert_eq!(due, [0, 333_333_333, 666_666_667, 1_000_000_000]);
        let mut long = even("7000", 0, 1);
        for _ in 0..7_000 * 3_600 {
            long.take();
        }
        assert_eq!(long.next_due(), Some(Duration::from_secs(3_600)));
    }

    #[test]
    fn workers_share_one_schedule_without_gap_or_overlap() {
        let mut whole = even("500..2000/100ms,1000", 0, 1);
        let mut shares: Vec<_> = (0..3).map(|index| even("500..2000/100ms,1000", index, 3)).collect();
        for request in 0..300 {
            assert_eq!(shares[request % 3].take(), whole.take());
        }
    }

    #[test]
    fn requests_that_are_skipped_are_counted_as_if_taken_one_by_one() {
        for (rate, spacing) in
            [("700", Spacing::Even), ("0..900/1s,0/1s,50", Spacing::Even), ("700", Spacing::Poisson { seed: 3 })]
        {
            for (instant, most) in [(0, 99), (1_234, u64::MAX), (3_000, 500), (3_000, u64::MAX)] {
                let instant = Duration::from_millis(instant);
                let mut one_by_one = Schedule::new(&rate.parse().unwrap(), spacing, 1, 2);
                let mut at_once = one_by_one.clone();
                let mut taken = 0;
                while taken < most && one_by_one.next_due().unwrap() < instant {
                    one_by_one.take();
                    taken += 1;
                }
                assert_eq!(at_once.take_before(instant, most), taken, "{rate} {instant:?} {most}");
                assert_eq!(at_once.next_due(), one_by_one.next_due(), "{rate} {instant:?} {most}");
            }
        }
        let mut endless = even("10M", 0, 1);
        assert_eq!(endless.take_before(Duration::from_secs(1_000_000), u64::MAX), 10_000_000_000_000);
        let mut over = even("5/1s,0", 0, 1);
        assert_eq!(over.take_before(Duration::from_secs(10), u64::MAX), 5);
    }

    #[test]
    fn random_arrivals_keep_their_rate_and_are_as_uneven_as_a_poisson_process_is() {
        for workers in [1, 3] {
            let rate = "1000/50s,2000/50s".parse().unwrap();
            let mut counts = vec![0_u32; 10_000];
            for index in 0..workers {
                let mut schedule = Schedule::new(&rate, Spacing::Poisson { seed: 7 }, index, workers);
                while let Some(slot) = schedule.take().map(|due| due.as_millis() as usize / 10)
                    && slot < counts.len()
                {
                    counts[slot] += 1;
                }
            }
            for (half, mean) in counts.chunks(5_000).zip([10.0, 20.0]) {
                let average = half.iter().map(|count| f64::from(*count)).sum::<f64>() / 5_000.0;
                let spread = half.iter().map(|count| (f64::from(*count) - average).powi(2)).sum::<f64>() / 5_000.0;
                assert!((average / mean - 1.0).abs() < 0.02, "{workers} workers: mean {average}");
                // The mark of a Poisson process: the variance of the counts is their mean.
                assert!((spread / average - 1.0).abs() < 0.08, "{workers} workers: variance {spread}, mean {average}");
            }
        }
    }

    #[test]
    fn random_arrivals_are_the_same_for_the_same_seed_only() {
        let rate = Rate::constant(100.0);
        let first = |seed, index| Schedule::new(&rate, Spacing::Poisson { seed }, index, 2).take();
        assert_eq!(first(1, 0), first(1, 0));
        assert_ne!(first(1, 0), first(2, 0));
        assert_ne!(first(1, 0), first(1, 1));
    }
}
