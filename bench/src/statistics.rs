//! Medians, and how sure they are.

use serde::{Deserialize, Serialize};

/// Resamples of a bootstrap: enough that the interval's own noise is far below the measurement's.
const RESAMPLES: usize = 10_000;

/// A median with the 95 % interval that a bootstrap gives it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The value below which this share (0 to 1) of the values lies; between two values it is interpolated.
///
/// # Panics
/// If there are none.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = share * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    low + (high - low) * place.fract()
}

/// The median; None of nothing.
pub fn median(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| quantile(values, 0.5))
}

/// Half of the values lie within this width around the median.
pub fn spread(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| quantile(values, 0.75) - quantile(values, 0.25))
}

/// The median of some values with its interval; None of nothing.
pub fn bootstrap(values: &[f64]) -> Option<Interval> {
    let median = median(values)?;
    // Always the same seed: the same values give the same interval.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut medians = Vec::with_capacity(RESAMPLES);
    let mut sample = vec![0.0; values.len()];
    for _ in 0..RESAMPLES {
        sample.fill_with(|| values[(random() % values.len() as u64) as usize]);
        medians.push(quantile(&sample, 0.5));
    }
    Some(Interval { median, low: quantile(&medians, 0.025), high: quantile(&medians, 0.975) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(&[]), None);
        assert_eq!(spread(&[1.0, 2.0, 3.0, 4.0, 5.0]), Some(2.0));
    }

    #[test]
    fn more_rounds_make_an_interval_narrower_and_it_holds_the_median() {
        let values = |count: usize| -> Vec<f64> { (0..count).map(|n| 1.0 + (n * 7 % 11) as f64 / 100.0).collect() };
        let width = |count| {
            let Interval { median, low, high } = bootstrap(&values(count)).unwrap();
            assert!(low <= median && median <= high);
            high - low
        };
        assert!(width(110) < width(11));
        let Interval { low, high, .. } = bootstrap(&[2.0; 9]).unwrap();
        assert_eq!((low, high), (2.0, 2.0));
    }
}
