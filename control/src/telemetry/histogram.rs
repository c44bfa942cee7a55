//! A distribution of durations: which buckets of the workers' fine histograms hold something, and what `/metrics` shows
//! of it.

use ringmesh_dataplane::telemetry::layout;
use ringmesh_dataplane::telemetry::reader;

/// Upper bounds of the buckets in `/metrics`, in microseconds: from 64 µs, each twice the one before, up to half a minute.
/// Each is also a bound of the workers' buckets, so that what is shown is exact: durations are cut to whole microseconds,
/// and those below a bound are counted under it.
pub const BOUNDS_MICROS: [u64; 20] = {
    let mut bounds = [0; 20];
    let mut index = 0;
    while index < bounds.len() {
        bounds[index] = 64 << index;
        assert!(
            layout::bucket_start(layout::bucket(bounds[index])) == bounds[index],
            "aligned with the workers' buckets"
        );
        index += 1;
    }
    bounds
};

/// Durations by bucket, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// Number of each bucket that holds something, in order, with what it holds. Most hold nothing.
    buckets: Vec<(u16, u64)>,
    /// Sum of the durations.
    sum_micros: u64,
}

impl Histogram {
    /// The histogram of a worker's buckets (see [`layout::bucket`]).
    pub fn new(buckets: &[u64], sum_micros: u64) -> Self {
        let numbered = (0_u16..).zip(buckets.iter().copied());
        Self { buckets: numbered.filter(|(_, count)| *count != 0).collect(), sum_micros }
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Self) {
        self.sum_micros = self.sum_micros.wrapping_add(other.sum_micros);
        for (number, count) in &other.buckets {
            match self.buckets.binary_search_by_key(number, |(number, _)| *number) {
                Ok(place) => self.buckets[place].1 = self.buckets[place].1.wrapping_add(*count),
                Err(place) => self.buckets.insert(place, (*number, *count)),
            }
        }
    }

    /// How many durations there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, (_, count)| sum.wrapping_add(*count))
    }

    /// Their sum, in seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_micros as f64 / 1e6
    }

    /// How many durations lie below each of [`BOUNDS_MICROS`].
    pub fn cumulative(&self) -> [u64; BOUNDS_MICROS.len()] {
        let mut cumulative = [0; BOUNDS_MICROS.len()];
        let mut buckets = self.buckets.iter().peekable();
        let mut below: u64 = 0;
        for (total, bound) in cumulative.iter_mut().zip(BOUNDS_MICROS) {
            let first_above = layout::bucket(bound);
            while let Some((_, count)) = buckets.next_if(|(number, _)| usize::from(*number) < first_above) {
                below = below.wrapping_add(*count);
            }
            *total = below;
        }
        cumulative
    }

    /// The duration below which a share `quantile` (0 to 1) lies, in microseconds, exact to the width of a worker's bucket.
    pub fn quantile_micros(&self, quantile: f64) -> Option<u64> {
        let mut dense = vec![0; layout::BUCKETS];
        for (number, count) in &self.buckets {
            dense[usize::from(*number)] = *count;
        }
        reader::quantile(&dense, quantile)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn histogram(durations: &[u64]) -> Histogram {
        let mut buckets = vec![0; layout::BUCKETS];
        for micros in durations {
            buckets[layout::bucket(*micros)] += 1;
        }
        Histogram::new(&buckets, durations.iter().sum())
    }

    #[test]
    fn cumulative_counts_are_those_of_the_durations_themselves() {
        let mut durations: Vec<u64> =
            (0..40).flat_map(|shift| [(1_u64 << shift) - 1, 1 << shift, (1 << shift) + 1]).collect();
        durations.extend((0..10_000).map(|n| n * n * 7 % 40_000_000));
        let histogram = histogram(&durations);
        let expected = BOUNDS_MICROS.map(|bound| durations.iter().filter(|micros| **micros < bound).count() as u64);
        assert_eq!(histogram.cumulative(), expected);
        assert_eq!(histogram.count(), durations.len() as u64);
    }

    #[test]
    fn sums_are_those_of_all_durations_together() {
        let (one, other) = ([1, 50, 900, 70_000], [2, 900, 901, 5_000_000_000]);
        let mut sum = histogram(&one);
        sum.add(&histogram(&other));
        assert_eq!(sum, histogram(&[one, other].concat()));
    }

    #[test]
    fn quantiles_are_exact_to_a_sixteenth() {
        let durations: Vec<u64> = (1..=1000).map(|n| n * 100).collect();
        let histogram = histogram(&durations);
        for (quantile, expected) in [(0.5, 50_000.0), (0.99, 99_000.0), (1.0, 100_000.0)] {
            let found = histogram.quantile_micros(quantile).unwrap() as f64;
            assert!((found - expected).abs() <= expected / 16.0, "{quantile}: {found}");
        }
        assert_eq!(Histogram::default().quantile_micros(0.5), None);
    }
}
