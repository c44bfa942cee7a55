//! Places of telemetry series: used again when their owners are gone, and never mixed up.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]
#![allow(dead_code, reason = "each test binary uses a part of the world")]

mod world;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_dataplane::telemetry::Reader;
use ringmesh_dataplane::telemetry::directory::{Directory, MAX_UNUSED, MAX_UNUSED_TIME};
use ringmesh_dataplane::telemetry::layout::{self, Kind, MAX_SERIES, header, listener, service};
use ringmesh_dataplane::telemetry::reader::Counts;
use ringmesh_dataplane::telemetry::recorder::{Recorder, Series};
use ringmesh_model::snapshot::{Key, Object, Target};
use ringmesh_ring::shared_memory::SharedMemory;
use world::World;

/// A directory and a worker on one memory.
struct Telemetry {
    memory: SharedMemory,
    directory: Directory,
    worker: Recorder,
}

impl Telemetry {
    fn new() -> Self {
        Self::on(SharedMemory::create("telemetry", layout::memory_bytes(1)).unwrap())
    }

    fn on(memory: SharedMemory) -> Self {
        let written = Arc::new(memory.map_writer().unwrap());
        let directory = Directory::open(written.clone(), 1).unwrap();
        Self { memory, directory, worker: Recorder::new(written, 0) }
    }

    /// The next data plane on the same memory.
    fn restart(self) -> Self {
        Self::on(self.memory)
    }

    fn service(&mut self, name: &str) -> Series {
        self.directory.place(Kind::Service, &[name])
    }

    fn use_only(&mut self, series: &[Series], now: Instant) {
        let mut named = vec![false; MAX_SERIES];
        series.iter().for_each(|series| named[series.index as usize] = true);
        self.directory.set_in_use(&named, now);
    }

    /// Frees the places of all series that nobody uses.
    fn expire(&mut self, used: &[Series]) {
        let now = Instant::now();
        self.use_only(used, now);
        self.use_only(used, now + MAX_UNUSED_TIME + Duration::from_secs(1));
    }

    fn opened(&self) -> BTreeMap<String, u64> {
        let series = Reader::open(self.memory.map_reader().unwrap()).unwrap().series();
        series.into_iter().map(|counts| (counts.labels.join("/"), counts.counters[service::OPENED])).collect()
    }
}

fn counts(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[test]
fn a_late_count_never_reaches_the_next_owner_of_a_place() {
    let mut telemetry = Telemetry::new();
    let old = telemetry.service("old");
    telemetry.worker.add(old, service::OPENED, 7);
    telemetry.expire(&[]);
    assert_eq!(telemetry.opened(), counts(&[]), "what has no place is not shown");
    let new = telemetry.service("new");
    assert_eq!(new.index, old.index);
    telemetry.worker.add(old, service::OPENED, 1);
    assert_eq!(telemetry.opened(), counts(&[]), "nobody has counted for the new one");
    telemetry.worker.add(new, service::OPENED, 2);
    telemetry.worker.add(old, service::OPENED, 1);
    assert!(telemetry.worker.series(old).is_none(), "the place counts for another");
    telemetry.worker.sub(old, service::OPENED, 1);
    assert_eq!(telemetry.worker.add_and_sum(old, service::OPENED), 0);
    assert_eq!(telemetry.opened(), counts(&[("new", 2)]));
}

#[test]
fn a_series_that_comes_back_in_time_goes_on_where_it_stopped() {
    let mut telemetry = Telemetry::new();
    let (now, series) = (Instant::now(), telemetry.service("s"));
    telemetry.worker.add(series, service::OPENED, 7);
    telemetry.use_only(&[], now);
    telemetry.use_only(&[], now + MAX_UNUSED_TIME);
    assert_eq!(telemetry.opened(), counts(&[("s", 7)]), "its last counts can still be read");
    assert_eq!(telemetry.service("s"), series);
    telemetry.use_only(&[series], now + MAX_UNUSED_TIME);
    telemetry.use_only(&[series], now + 3 * MAX_UNUSED_TIME);
    telemetry.use_only(&[], now + 3 * MAX_UNUSED_TIME);
    telemetry.worker.add(series, service::OPENED, 1);
    assert_eq!(telemetry.opened(), counts(&[("s", 8)]), "its time begins anew");
}

#[test]
fn a_data_plane_that_starts_again_goes_on_with_series_free_places_and_generations() {
    let mut telemetry = Telemetry::new();
    let (gone, stays) = (telemetry.service("gone"), telemetry.service("stays"));
    telemetry.worker.add(gone, service::OPENED, 7);
    telemetry.worker.add(stays, service::OPENED, 5);
    telemetry.expire(&[stays]);
    let mut telemetry = telemetry.restart();
    assert_eq!(telemetry.opened(), counts(&[("stays", 5)]));
    assert_eq!(telemetry.service("stays"), stays);
    let new = telemetry.service("new");
    assert_eq!((new.index, new.generation), (gone.index, gone.generation + 1));
    telemetry.worker.add(new, service::OPENED, 1);
    assert_eq!(telemetry.opened(), counts(&[("new", 1), ("stays", 5)]));
}

#[test]
fn a_data_plane_killed_while_it_gave_a_place_away_leaves_no_generation_to_be_used_twice() {
    let mut telemetry = Telemetry::new();
    let old = telemetry.service("old");
    telemetry.worker.add(old, service::OPENED, 7);
    let entry = layout::DIRECTORY + old.index as usize * layout::ENTRY_WORDS;
    telemetry.directory.memory().words()[entry].store(0, std::sync::atomic::Ordering::Relaxed);
    let mut telemetry = telemetry.restart();
    let new = telemetry.service("new");
    assert_eq!((new.index, new.generation), (old.index, old.generation + 1));
}

#[test]
fn a_listener_with_open_connections_keeps_its_place() {
    let mut telemetry = Telemetry::new();
    let inbound = telemetry.directory.place(Kind::Listener, &["inbound"]);
    telemetry.worker.add(inbound, listener::OPEN, 1);
    telemetry.expire(&[]);
    assert_eq!(telemetry.directory.place(Kind::Listener, &["inbound"]), inbound);
    telemetry.worker.sub(inbound, listener::OPEN, 1);
    telemetry.expire(&[]);
    assert_ne!(telemetry.directory.place(Kind::Listener, &["inbound"]), inbound);
}

#[test]
fn reloads_with_more_names_than_there_are_places_leave_every_series_its_own_and_memory_bounded() {
    const NAMES: usize = 1000;
    const ROUNDS: u64 = 20;
    const { assert!(ROUNDS as usize * 2 * NAMES > MAX_SERIES, "a service and a request series each") };
    let world = World::new();
    let template = |key: &Key| world.loaded(key);
    let (service, route) = (template(&Key::Service("s".into())), template(&Key::Route("s".into())));
    let reader = Reader::open(world.telemetry.map_reader().unwrap()).unwrap();
    let steady =
        |reader: &Reader| find(reader, Kind::Service, "s").map_or(0, |counts| counts.counters[service::OPENED]);
    for round in 1..=ROUNDS {
        world.reload(|objects| {
            objects.retain(|key, _| !matches!(key, Key::Service(name) | Key::Route(name) if name != "s"));
            for n in 0..NAMES {
                let name = format!("s-{round}-{n}");
                let (mut service, mut route) = (service.clone(), route.clone());
                if let (Object::Service(service), Object::Route(route)) = (&mut service, &mut route) {
                    let (service, route) = (Arc::make_mut(service), Arc::make_mut(route));
                    service.name = name.clone();
                    route.name = name.clone();
                    route.rules[0].to = vec![Target { service: name.clone(), weight: 1 }];
                }
                objects.insert(Key::Service(name.clone()), service);
                objects.insert(Key::Route(name), route);
            }
        });
        let tables = world.worker.tables();
        for service in tables.services.iter() {
            world.worker.recorder.add(service.series, service::OPENED, 1);
        }
        assert_eq!(steady(&reader), round, "the count of a service that stays goes by one");
        assert!(find(&reader, Kind::Service, "other").is_none(), "round {round}");
        let newest = find(&reader, Kind::Service, &format!("s-{round}-{}", NAMES - 1)).unwrap();
        assert_eq!(newest.counters[service::OPENED], 1, "a new name begins with nothing");
        let taken = reader.header(header::TAKEN) as usize;
        assert!(taken <= 2 * NAMES + MAX_UNUSED + 10, "{taken} places are taken in round {round}");
    }
    // Two rounds at a time, while one is replaced by the other.
    assert!(reader.header(header::USED) as usize <= 4 * NAMES + MAX_UNUSED + 10, "places are used again");
}

fn find(reader: &Reader, kind: Kind, label: &str) -> Option<Counts> {
    reader.each_series().find(|counts| counts.kind == kind && counts.labels[0] == label)
}
