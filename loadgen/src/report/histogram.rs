//! Latencies, told apart to three digits from a nanosecond to two minutes.

use std::cmp::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};

use crate::limits::MAX_LATENCY;

/// What all of them are counted in.
pub type Latencies = Histogram<u64>;

/// About 230 KiB.
pub(crate) fn new() -> Latencies {
    Histogram::new_with_bounds(1, MAX_LATENCY.as_nanos() as u64, 3).expect("the bounds are constants that it accepts")
}

pub(crate) fn record(histogram: &mut Latencies, latency: Duration) {
    histogram.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
}

pub(crate) fn quantile(histogram: &Latencies, share: f64) -> Duration {
    // Its maximum is the bound of a class; the largest value itself would be a little below.
    Duration::from_nanos(histogram.value_at_quantile(share))
}

/// Compressed as HdrHistogram tools exchange them (V2, deflate).
pub(crate) fn compress(histogram: &Latencies) -> Vec<u8> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes).expect("memory takes everything");
    bytes
}

/// The opposite of [`compress`]. None: these bytes are no such histogram, or one of other bounds.
pub(crate) fn expand(mut bytes: &[u8]) -> Option<Latencies> {
    let found: Latencies = Deserializer::new().deserialize(&mut bytes).ok()?;
    let mut latencies = new();
    latencies.add(found).ok()?;
    Some(latencies)
}

/// What few values there are: a histogram that is kept for long.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sparse(Vec<(u64, u64)>);

impl Sparse {
    pub(crate) fn new(histogram: &Latencies) -> Self {
        Self(histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect())
    }

    /// Both together.
    pub(crate) fn with(&self, other: &Self) -> Self {
        let (mut mine, mut theirs) = (&self.0[..], &other.0[..]);
        let mut sum = Vec::with_capacity(mine.len().max(theirs.len()));
        while let (Some(one), Some(other)) = (mine.first(), theirs.first()) {
            match one.0.cmp(&other.0) {
                Ordering::Less => sum.push(*one),
                Ordering::Equal => sum.push((one.0, one.1 + other.1)),
                Ordering::Greater => sum.push(*other),
            }
            mine = &mine[usize::from(one.0 <= other.0)..];
            theirs = &theirs[usize::from(other.0 <= one.0)..];
        }
        sum.extend_from_slice(mine);
        sum.extend_from_slice(theirs);
        Self(sum)
    }

    pub(crate) fn add_to(&self, histogram: &mut Latencies) {
        for (value, count) in &self.0 {
            histogram.saturating_record_n(*value, *count);
        }
    }

    /// Values in nanoseconds, ascending, and how often each came.
    pub fn values(&self) -> &[(u64, u64)] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_survives_compression_and_thinning() {
        let mut whole = new();
        for microseconds in [1, 20, 20, 500, 1_000_000, 500_000_000] {
            record(&mut whole, Duration::from_micros(microseconds));
        }
        assert_eq!(expand(&compress(&whole)).as_ref(), Some(&whole));
        let mut thick = new();
        Sparse::new(&whole).add_to(&mut thick);
        assert_eq!(thick, whole);
        assert_eq!(expand(b"nonsense"), None);
    }

    #[test]
    fn thinned_histograms_add_up_as_whole_ones_do() {
        let of = |microseconds: &[u64]| {
            let mut latencies = new();
            microseconds.iter().for_each(|value| record(&mut latencies, Duration::from_micros(*value)));
            latencies
        };
        let parts: [&[u64]; 4] = [&[], &[1, 5, 5, 90], &[5, 7, 1_000], &[0, 2_000]];
        for one in parts {
            for other in parts {
                let both = Sparse::new(&of(&[one, other].concat()));
                assert_eq!(Sparse::new(&of(one)).with(&Sparse::new(&of(other))), both, "{one:?} {other:?}");
            }
        }
    }
}
