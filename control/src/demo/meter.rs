//! Requests of each hop as the sidecars count them: what happened within the last seconds.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ringmesh_loadgen::report::Tally;

use super::admin::Sample;
use super::shop::{HOPS, Hop};

/// Over how long rates and shares are taken.
const WINDOW: Duration = Duration::from_secs(5);

/// Counters of one hop, since the start of its sidecar.
#[derive(Clone, Debug, Default)]
struct Counters {
    requests: f64,
    succeeded: f64,
    /// Connections made.
    opened: f64,
    /// By upper bound in seconds, cumulated.
    buckets: Vec<(f64, f64)>,
}

/// All hops at one instant.
struct Moment {
    at: Instant,
    counters: BTreeMap<(&'static str, &'static str), Counters>,
}

/// The last moments.
#[derive(Default)]
pub(super) struct Meter {
    moments: VecDeque<Moment>,
    /// What the customers have seen, at the same instants.
    customers: VecDeque<(Instant, Tally)>,
}

/// What happened on a hop within the window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Reading {
    pub(super) per_second: f64,
    pub(super) success_rate: f64,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
}

impl Meter {
    /// Takes the metrics pages of all sidecars that answered.
    pub(super) fn take(&mut self, at: Instant, pages: &BTreeMap<&'static str, Vec<Sample>>) {
        let counters = HOPS.iter().filter_map(|hop| Some(((hop.from, hop.to), counters(hop, pages.get(hop.from)?))));
        self.moments.push_back(Moment { at, counters: counters.collect() });
        while self.moments.len() > 2 && at.duration_since(self.moments[1].at) >= WINDOW {
            self.moments.pop_front();
        }
    }

    /// Takes what the customers have seen so far.
    pub(super) fn take_customers(&mut self, at: Instant, tally: &Tally) {
        self.customers.push_back((at, tally.clone()));
        while self.customers.len() > 2 && at.duration_since(self.customers[1].0) >= WINDOW {
            self.customers.pop_front();
        }
    }

    /// What happened at the front door, as the customers see it.
    pub(super) fn read_customers(&self) -> Option<Reading> {
        let ((first, before), (last, now)) = (self.customers.front()?, self.customers.back()?);
        let seconds = last.duration_since(*first).as_secs_f64();
        if seconds == 0.0 {
            return None;
        }
        let within = now.since(before);
        Some(Reading {
            per_second: within.requests() as f64 / seconds,
            success_rate: within.success_rate(),
            p50: within.quantile(0.5),
            p99: within.quantile(0.99),
        })
    }

    /// Connections that were made on a hop since the start, at the last moment.
    pub(super) fn opened(&self, hop: &Hop) -> Option<usize> {
        let counters = self.moments.back()?.counters.get(&(hop.from, hop.to))?;
        Some(counters.opened as usize)
    }

    /// What happened on a hop.
    pub(super) fn read(&self, hop: &Hop) -> Option<Reading> {
        let (first, last) = (self.moments.front()?, self.moments.back()?);
        let key = (hop.from, hop.to);
        let (before, now) = (first.counters.get(&key)?, last.counters.get(&key)?);
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let requests = now.requests - before.requests;
        if seconds == 0.0 || requests <= 0.0 {
            return Some(Reading { success_rate: 1.0, ..Reading::default() });
        }
        let within = difference(&before.buckets, &now.buckets);
        Some(Reading {
            per_second: requests / seconds,
            success_rate: (now.succeeded - before.succeeded) / requests,
            p50: quantile(&within, 0.5),
            p99: quantile(&within, 0.99),
        })
    }
}

/// The counters of a hop in its caller's metrics.
fn counters(hop: &Hop, page: &[Sample]) -> Counters {
    let mut counters = Counters::default();
    let mut buckets: BTreeMap<u64, f64> = BTreeMap::new();
    for sample in page.iter().filter(|sample| sample.labels.get("service").is_some_and(|name| name == hop.service)) {
        if sample.name == REQUESTS {
            counters.requests += sample.value;
            if sample.labels.get("class").is_some_and(|class| class.starts_with('2')) {
                counters.succeeded += sample.value;
            }
        } else if sample.name == OPENED {
            counters.opened += sample.value;
        } else if sample.name == BUCKETS
            && let Some(bound) = sample.labels.get("le").and_then(|bound| bound.parse::<f64>().ok())
        {
            // Positive floats sort like their bits.
            *buckets.entry(bound.to_bits()).or_default() += sample.value;
        }
    }
    counters.buckets = buckets.into_iter().map(|(bound, count)| (f64::from_bits(bound), count)).collect();
    counters
}

/// Requests by service and class.
const REQUESTS: &str = "ringmesh_request_total";

/// Connections made, by service.
const OPENED: &str = "ringmesh_upstream_connections_opened_total";

/// Their durations.
const BUCKETS: &str = "ringmesh_request_duration_seconds_bucket";

fn difference(before: &[(f64, f64)], now: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let at = |bound: f64| {
        // A bucket that was not there yet held what the one below it held.
        before.iter().take_while(|(other, _)| *other <= bound).last().map_or(0.0, |(_, count)| *count)
    };
    now.iter().map(|(bound, count)| (*bound, count - at(*bound))).collect()
}

/// The upper bound of the bucket in which a share of the requests ends, interpolated as Prometheus does.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Duration {
    let all = buckets.last().map_or(0.0, |(_, count)| *count);
    let wanted = all * share;
    let (mut lower, mut below) = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= wanted && *count > below {
            let seconds = match bound.is_finite() {
                true => lower + (bound - lower) * (wanted - below) / (count - below),
                false => lower,
            };
            return Duration::from_secs_f64(seconds.max(0.0));
        }
        (lower, below) = (*bound, *count);
    }
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(ok: f64, failed: f64) -> BTreeMap<&'static str, Vec<Sample>> {
        let sample = |name: &str, labels: &[(&str, &str)], value| Sample {
            name: name.to_owned(),
            labels: labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            value,
        };
        let samples = vec![
            sample(REQUESTS, &[("service", "checkout"), ("class", "2xx")], ok),
            sample(REQUESTS, &[("service", "checkout"), ("class", "5xx")], failed),
            sample(REQUESTS, &[("service", "payments"), ("class", "2xx")], 1_000.0),
            sample(BUCKETS, &[("service", "checkout"), ("le", "0.001")], ok / 2.0),
            sample(BUCKETS, &[("service", "checkout"), ("le", "0.002")], ok + failed),
            sample(BUCKETS, &[("service", "checkout"), ("le", "+Inf")], ok + failed),
        ];
        BTreeMap::from([("web", samples)])
    }

    #[test]
    fn rates_are_those_of_the_last_seconds() {
        let start = Instant::now();
        let mut meter = Meter::default();
        for second in 0..20_u32 {
            // From the tenth second on a fifth fails.
            let late = f64::from(second.saturating_sub(10));
            meter.take(start + Duration::from_secs(second.into()), &page(f64::from(second) * 80.0, late * 20.0));
        }
        let reading = meter.read(&HOPS[0]).unwrap();
        assert!((reading.per_second - 100.0).abs() < 0.1, "{reading:?}");
        assert!((reading.success_rate - 0.8).abs() < 0.001, "{reading:?}");
        let p99 = reading.p99.as_secs_f64();
        assert!((0.001..=0.002).contains(&p99), "{reading:?}");
        assert!(reading.p50 < reading.p99);
    }

    #[test]
    fn a_hop_without_requests_has_no_latency() {
        let mut meter = Meter::default();
        assert_eq!(meter.read(&HOPS[0]), None);
        meter.take(Instant::now(), &page(5.0, 0.0));
        assert_eq!(meter.read(&HOPS[0]).unwrap().p99, Duration::ZERO);
    }
}
