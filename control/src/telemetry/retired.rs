//! What data planes that are gone have counted. A series is kept as long as one that counts has a place for it, and goes
//! when that place goes; one that none has a place for is unused, and goes by the rule for unused places.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use ringmesh_dataplane::telemetry::Reader;
use ringmesh_dataplane::telemetry::directory::{MAX_UNUSED, MAX_UNUSED_TIME};
use ringmesh_dataplane::telemetry::layout::Kind;

use super::merge::Totals;

/// A series: its kind and its labels.
pub type Key = (Kind, Vec<String>);

/// Sums over data planes that are gone.
#[derive(Default)]
pub struct Retired {
    totals: Totals,
    series: HashMap<Key, Use>,
}

/// Whether a data plane that counts has a place for a series.
#[derive(Clone, Copy)]
enum Use {
    Named,
    UnusedSince(Instant),
}

impl Retired {
    /// What is kept.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Whether nothing is kept that could go.
    pub fn is_empty(&self) -> bool {
        self.series.is_empty()
    }

    /// These data planes are gone; the others have places for `named`. What these alone had a place for is unused from now
    /// on.
    pub fn add(&mut self, gone: &[Reader], named: &HashSet<Key>, now: Instant) {
        for reader in gone {
            for counts in reader.each_series() {
                self.series.insert(key(counts.kind, counts.labels.clone()), Use::Named);
                self.totals.add_series(counts);
            }
            self.totals.add_workers(reader);
        }
        for worker in &mut self.totals.workers {
            (worker.connections, worker.in_flight) = (0, 0);
        }
        for (key, used) in &mut self.series {
            if matches!(used, Use::Named) && !named.contains(key) {
                *used = Use::UnusedSince(now);
            }
        }
        self.expire(named, now);
    }

    /// Lets go of series that lost their place, and of those that are unused for too long or too many.
    pub fn expire(&mut self, named: &HashSet<Key>, now: Instant) {
        let Self { totals, series } = self;
        series.retain(|key, used| {
            let stays = match *used {
                _ if named.contains(key) => {
                    *used = Use::Named;
                    true
                }
                Use::Named => false,
                Use::UnusedSince(since) => now.saturating_duration_since(since) <= MAX_UNUSED_TIME,
            };
            if !stays {
                totals.remove(key);
            }
            stays
        });
        let since = |(key, used): (&Key, &Use)| match used {
            Use::Named => None,
            Use::UnusedSince(since) => Some((*since, key.clone())),
        };
        let mut unused: Vec<(Instant, Key)> = series.iter().filter_map(since).collect();
        unused.sort();
        for (_, key) in &unused[..unused.len().saturating_sub(MAX_UNUSED)] {
            series.remove(key);
            totals.remove(key);
        }
    }
}

/// Labels that were cut off are empty.
pub fn key(kind: Kind, mut labels: Vec<String>) -> Key {
    labels.resize(kind.labels().len(), String::new());
    (kind, labels)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::merge::Merge;
    use super::super::testing::Dataplane;
    use super::*;

    const STAYS: [&str; 4] = ["inbound", "stays", "0", "local"];
    const GOES: [&str; 4] = ["inbound", "goes", "0", "local"];

    /// A merge whose live data plane names one of two series that a retired one has counted.
    fn replaced(now: Instant) -> (Merge, Dataplane) {
        let mut before = Dataplane::start();
        before.serve(0, STAYS, 10);
        before.serve(1, GOES, 10);
        let mut after = Dataplane::start();
        after.serve(0, STAYS, 10);
        let mut merge = Merge::default();
        merge.attach(before.reader());
        merge.attach(after.reader());
        merge.retire(now);
        (merge, after)
    }

    fn check(merge: &mut Merge, now: Instant, expected: &[(&str, u64)]) {
        let totals = merge.totals(now);
        let found: Vec<_> = totals.requests.iter().map(|(labels, requests)| (&*labels[1], requests.count())).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn a_series_that_no_data_plane_names_goes_when_it_is_unused_for_long() {
        let now = Instant::now();
        let (mut merge, _live) = replaced(now);
        check(&mut merge, now, &[("goes", 1), ("stays", 2)]);
        check(&mut merge, now + MAX_UNUSED_TIME, &[("goes", 1), ("stays", 2)]);
        check(&mut merge, now + MAX_UNUSED_TIME + Duration::from_secs(1), &[("stays", 2)]);
    }

    #[test]
    fn a_series_that_is_named_again_goes_on_where_it_stopped() {
        let now = Instant::now();
        let (mut merge, mut live) = replaced(now);
        live.serve(0, GOES, 10);
        check(&mut merge, now + 2 * MAX_UNUSED_TIME, &[("goes", 2), ("stays", 2)]);
    }

    #[test]
    fn a_series_goes_with_the_place_that_a_live_one_had_for_it_and_so_never_falls() {
        let now = Instant::now();
        let (mut merge, mut live) = replaced(now);
        check(&mut merge, now, &[("goes", 1), ("stays", 2)]);
        live.directory.set_in_use(&[], now);
        live.directory.set_in_use(&[], now + MAX_UNUSED_TIME + Duration::from_secs(1));
        check(&mut merge, now, &[("goes", 1)]);
    }

    #[test]
    fn upgrades_that_bring_ever_new_names_leave_a_bounded_number_of_series() {
        let now = Instant::now();
        let mut merge = Merge::default();
        for upgrade in 0..6 {
            let mut dataplane = Dataplane::start();
            for number in 0..MAX_UNUSED / 2 {
                dataplane.serve(0, ["inbound", &format!("{upgrade}/{number:04}"), "0", "local"], 10);
            }
            merge.attach(dataplane.reader());
            merge.retire(now + Duration::from_secs(upgrade));
        }
        let totals = merge.totals(now + Duration::from_secs(6));
        assert_eq!(totals.requests.len(), MAX_UNUSED + MAX_UNUSED / 2, "the newest, and those of the live one");
        let oldest = totals.requests.keys().next().map(|labels| labels[1].clone());
        assert_eq!(oldest.as_deref(), Some("3/0000"));
        assert_eq!(totals.starts, 6);
    }
}
