//! Two results beside each other: is one faster, or is it chance? Each slice of time is a sample; drawing them again and
//! again with replacement (bootstrap) shows how much the ratio of the two would vary.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::arrival::Chance;
use crate::report::saved::Saved;
use crate::unit::show_duration;

/// Fewer slices than this say nothing about chance.
const MIN_SLICES: usize = 10;

/// How often slices are drawn anew.
const DRAWS: usize = 1_000;

/// The share of the draws that the interval holds.
const CONFIDENCE: f64 = 0.95;

/// Why two results cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// One is too short.
    #[error(
        "{name} has only {slices} whole slices of {}, and chance cannot be told from {MIN_SLICES} or fewer: measure for \
         two seconds at least",
        show_duration(*.length)
    )]
    TooShort {
        /// Which.
        name: &'static str,
        /// How many it has.
        slices: usize,
        /// How long each is.
        length: Duration,
    },
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Measure {
    Rate,
    Mean,
    Quantile(f64),
}

const MEASURES: [(&str, Measure); 7] = [
    ("rate", Measure::Rate),
    ("mean", Measure::Mean),
    ("p50", Measure::Quantile(0.5)),
    ("p90", Measure::Quantile(0.9)),
    ("p99", Measure::Quantile(0.99)),
    ("p99.9", Measure::Quantile(0.999)),
    ("p99.99", Measure::Quantile(0.9999)),
];

/// What a comparison says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The interval holds 1: no difference that is not chance.
    Tie,
    /// B is better.
    Better,
    /// B is worse.
    Worse,
}

/// One line of a comparison.
#[derive(Clone, Debug)]
pub struct Row {
    /// What is compared.
    pub name: &'static str,
    measure: Measure,
    /// Of A and B: seconds, or requests a second.
    pub values: (f64, f64),
    /// B over A.
    pub ratio: f64,
    /// Where the ratio lies with 95 % confidence.
    pub interval: (f64, f64),
}

impl Row {
    /// What it says.
    pub fn verdict(&self) -> Verdict {
        let (low, high) = self.interval;
        let more_is_better = self.measure == Measure::Rate;
        match (low <= 1.0 && high >= 1.0, (self.ratio > 1.0) == more_is_better) {
            (true, _) => Verdict::Tie,
            (false, true) => Verdict::Better,
            (false, false) => Verdict::Worse,
        }
    }
}

/// Two results beside each other.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// A line for each measure that both have.
    pub rows: Vec<Row>,
    /// Shares of requests that did not succeed, of A and B.
    pub errors: (f64, f64),
    /// What to know before believing it.
    pub warnings: Vec<String>,
}

impl Comparison {
    /// Compares B with A.
    ///
    /// # Errors
    /// If one is too short to tell anything from chance.
    pub fn new(a: &Saved, b: &Saved) -> Result<Self, Error> {
        Self::with_draws(a, b, DRAWS)
    }

    fn with_draws(a: &Saved, b: &Saved, draws: usize) -> Result<Self, Error> {
        for (name, saved) in [("A", a), ("B", b)] {
            let slices = saved.slices.len();
            if slices < MIN_SLICES {
                return Err(Error::TooShort { name, slices, length: saved.slice_length });
            }
        }
        let (a_samples, b_samples) = (Samples::new(a), Samples::new(b));
        // Always the same draws: who compares twice gets the same answer.
        let mut chance = Chance::new(1, 0);
        let draws: Vec<_> = (0..draws).map(|_| (a_samples.draw(&mut chance), b_samples.draw(&mut chance))).collect();
        let (a_whole, b_whole) = (a_samples.whole(), b_samples.whole());
        let row = |(name, measure)| {
            let values = (a_whole.measure(measure)?, b_whole.measure(measure)?);
            let mut ratios: Vec<f64> = draws
                .iter()
                .filter_map(|(a, b)| Some(b.measure(measure)? / a.measure(measure)?))
                .filter(|ratio| ratio.is_finite())
                .collect();
            ratios.sort_unstable_by(f64::total_cmp);
            let at = |share: f64| ratios.get(((ratios.len() - 1) as f64 * share).round() as usize).copied();
            let tail = (1.0 - CONFIDENCE) / 2.0;
            let interval = if ratios.is_empty() { return None } else { (at(tail)?, at(1.0 - tail)?) };
            Some(Row { name, measure, values, ratio: values.1 / values.0, interval })
        };
        Ok(Self {
            rows: MEASURES.into_iter().filter_map(row).collect(),
            errors: (errors(a), errors(b)),
            warnings: warnings(a, b),
        })
    }

    /// Whether any measure is worse in B.
    pub fn has_worse(&self) -> bool {
        self.rows.iter().any(|row| row.verdict() == Verdict::Worse) || self.errors.1 > self.errors.0
    }

    /// One JSON object.
    pub fn to_json(&self) -> Value {
        let row = |row: &Row| {
            json!({
                "measure": row.name,
                "a": row.values.0,
                "b": row.values.1,
                "ratio": row.ratio,
                "low": row.interval.0,
                "high": row.interval.1,
                "verdict": row.verdict().to_string(),
            })
        };
        json!({
            "confidence": CONFIDENCE,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(),
            "errors": { "a": self.errors.0, "b": self.errors.1 },
            "warnings": self.warnings,
        })
    }
}

fn errors(saved: &Saved) -> f64 {
    let requests: u64 = saved.slices.iter().map(|slice| slice.requests).sum();
    let succeeded: u64 = saved.slices.iter().map(|slice| slice.succeeded).sum();
    (requests - succeeded.min(requests)) as f64 / requests.max(1) as f64
}

fn warnings(a: &Saved, b: &Saved) -> Vec<String> {
    let mut warnings = Vec::new();
    if a.open_loop != b.open_loop {
        warnings.push("one is an open loop and one a closed one: their latencies mean different things".to_owned());
    } else if a.arrivals != b.arrivals {
        warnings.push(format!("the loads differ: A is an {}, B an {}", a.arrivals, b.arrivals));
    }
    for (name, saved) in [("A", a), ("B", b)] {
        if saved.generator_was_bottleneck {
            warnings.push(format!("in {name} the generator was the bottleneck: it measured itself"));
        }
    }
    warnings
}

/// The slices of one result over the values that occur in it.
struct Samples {
    /// Distinct latencies in seconds, ascending.
    values: Vec<f64>,
    /// For each slice the places in `values`, and how often each came.
    slices: Vec<Vec<(u32, u64)>>,
    requests: Vec<u64>,
    slice_seconds: f64,
}

impl Samples {
    fn new(saved: &Saved) -> Self {
        let pairs = || saved.slices.iter().flat_map(|slice| slice.latency.values());
        let mut nanoseconds: Vec<u64> = pairs().map(|(value, _)| *value).collect();
        nanoseconds.sort_unstable();
        nanoseconds.dedup();
        let place = |value: &u64| nanoseconds.binary_search(value).expect("every value is in the list") as u32;
        let places = |(value, count): &(u64, u64)| (place(value), *count);
        Self {
            slices: saved.slices.iter().map(|slice| slice.latency.values().iter().map(places).collect()).collect(),
            values: nanoseconds.iter().map(|value| *value as f64 / 1e9).collect(),
            requests: saved.slices.iter().map(|slice| slice.requests).collect(),
            slice_seconds: saved.slice_length.as_secs_f64(),
        }
    }

    fn whole(&self) -> Drawn {
        self.sum(0..self.slices.len())
    }

    fn draw(&self, chance: &mut Chance) -> Drawn {
        let count = self.slices.len();
        self.sum((0..count).map(|_| (chance.uniform() * count as f64) as usize))
    }

    fn sum(&self, slices: impl Iterator<Item = usize>) -> Drawn {
        let mut counts = vec![0; self.values.len()];
        let (mut requests, mut seconds) = (0, 0.0);
        for slice in slices {
            requests += self.requests[slice];
            seconds += self.slice_seconds;
            for (place, count) in &self.slices[slice] {
                counts[*place as usize] += count;
            }
        }
        let answers: u64 = counts.iter().sum();
        let sum: f64 = counts.iter().zip(&self.values).map(|(count, value)| *count as f64 * value).sum();
        let quantile = |share: f64| {
            let rank = ((answers as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            let at = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            at.map_or(f64::NAN, |at| self.values[at])
        };
        let quantiles = MEASURES.map(|(_, measure)| match measure {
            Measure::Quantile(share) => quantile(share),
            Measure::Rate | Measure::Mean => f64::NAN,
        });
        Drawn { rate: requests as f64 / seconds, mean: sum / answers as f64, quantiles, answers }
    }
}

/// The measures of one draw.
struct Drawn {
    rate: f64,
    mean: f64,
    /// In the order of `MEASURES`.
    quantiles: [f64; MEASURES.len()],
    answers: u64,
}

impl Drawn {
    /// None: there are too few answers for it.
    fn measure(&self, measure: Measure) -> Option<f64> {
        match measure {
            Measure::Rate => Some(self.rate),
            _ if self.answers == 0 => None,
            Measure::Mean => Some(self.mean),
            // A percentile that not even one answer lies beyond is the maximum under another name.
            Measure::Quantile(share) if self.answers as f64 * (1.0 - share) < 1.0 => None,
            Measure::Quantile(_) => {
                let place = MEASURES.iter().position(|(_, one)| *one == measure)?;
                Some(self.quantiles[place])
            }
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tie => "tie",
            Self::Better => "better",
            Self::Worse => "worse",
        })
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:>8} {:>10} {:>10} {:>8}   95 % interval   B is", "", "A", "B", "B/A")?;
        for row in &self.rows {
            let show = |value: f64| match row.measure {
                Measure::Rate => format!("{value:.0}/s"),
                _ => show_duration(Duration::from_secs_f64(value)),
            };
            writeln!(
                f,
                "{:>8} {:>10} {:>10} {:>8.3}   {:.3} .. {:.3}   {}",
                row.name,
                show(row.values.0),
                show(row.values.1),
                row.ratio,
                row.interval.0,
                row.interval.1,
                row.verdict(),
            )?;
        }
        write!(f, "{:>8} {:>9.3}% {:>9.3}%", "errors", self.errors.0 * 100.0, self.errors.1 * 100.0)?;
        for warning in &self.warnings {
            write!(f, "\nwarning: {warning}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::histogram::{self, Sparse};
    use crate::report::slice::Slice;

    /// Slices of a hundred exponential latencies with this mean, from this seed.
    fn saved(slices: usize, mean: Duration, seed: u64) -> Saved {
        let mut chance = Chance::new(seed, 0);
        let slices = (0..slices).map(|_| {
            let mut latencies = histogram::new();
            for _ in 0..100 {
                histogram::record(&mut latencies, mean.mul_f64(-(1.0 - chance.uniform()).ln()));
            }
            Slice { requests: 100, succeeded: 100, latency: Sparse::new(&latencies) }
        });
        Saved {
            arrivals: "open loop".to_owned(),
            open_loop: true,
            elapsed: Duration::from_secs(10),
            slice_length: Duration::from_millis(100),
            slices: slices.collect(),
            generator_was_bottleneck: false,
        }
    }

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_difference_is_told_from_chance() {
        let a = saved(50, MILLISECOND, 1);
        let verdicts = |b: &Saved| {
            let comparison = Comparison::with_draws(&a, b, 200).unwrap();
            comparison.rows.iter().map(|row| (row.name, row.verdict())).collect::<Vec<_>>()
        };
        let check = |b: &Saved, expected: Verdict| {
            for (name, verdict) in verdicts(b) {
                let expected = if name == "rate" { Verdict::Tie } else { expected };
                assert_eq!(verdict, expected, "{name}");
            }
        };
        check(&a, Verdict::Tie);
        check(&saved(50, MILLISECOND.mul_f64(2.0), 2), Verdict::Worse);
        check(&saved(50, MILLISECOND.mul_f64(0.5), 3), Verdict::Better);
    }

    #[test]
    fn nineteen_in_twenty_intervals_hold_the_true_ratio() {
        // Both sides are draws from the same distribution, so the true ratio is 1.
        let pairs = 60;
        let held = (0..pairs).filter(|seed| {
            let (a, b) = (saved(20, MILLISECOND, 2 * seed + 1_000), saved(20, MILLISECOND, 2 * seed + 1_001));
            let comparison = Comparison::with_draws(&a, &b, 100).unwrap();
            let median = comparison.rows.iter().find(|row| row.name == "p50").unwrap();
            median.verdict() == Verdict::Tie
        });
        let held = held.count();
        assert!((50..=60).contains(&held), "{held} of {pairs}");
    }

    #[test]
    fn what_is_too_short_or_of_another_kind_is_told() {
        let a = saved(50, MILLISECOND, 1);
        let error = Comparison::new(&a, &saved(9, MILLISECOND, 1)).unwrap_err().to_string();
        assert!(error.starts_with("B has only 9 whole slices of 100 ms"), "{error}");
        let closed = Saved { open_loop: false, generator_was_bottleneck: true, ..a.clone() };
        let warnings = Comparison::new(&a, &closed).unwrap().warnings;
        assert!(warnings[0].contains("different things") && warnings[1].contains("in B the generator"), "{warnings:?}");
    }
}
