//! Tables: a change costs what it changes.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]
#![allow(dead_code, reason = "each test binary uses a part of the world")]

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use ringmesh_dataplane::loader::Loader;
use ringmesh_dataplane::tables::Tables;
use ringmesh_dataplane::telemetry::directory::Directory;
use ringmesh_dataplane::telemetry::layout;
use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::{Address, Endpoint, Key, Object, Snapshot};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::shared_memory::SharedMemory;

mod world;

use world::World;

const SERVICES: usize = 200;

/// A loader with that many services, and the service that they are copies of.
struct Loaded {
    loader: Loader,
    template: Object,
    version: u64,
    /// What was loaded first.
    first: Snapshot,
}

impl Loaded {
    fn new() -> Self {
        let world = World::new();
        let template = world.loaded(&Key::Service("s".into()));
        let mut objects = std::collections::BTreeMap::new();
        for key in [Key::Settings, Key::Listener("in".into()), Key::Service("s".into()), Key::Route("s".into())] {
            objects.insert(key.clone(), world.loaded(&key));
        }
        let memory = SharedMemory::create("telemetry", layout::memory_bytes(1)).unwrap();
        let directory = Directory::open(Arc::new(memory.map_writer().unwrap()), 1).unwrap();
        let mut loaded = Self { loader: Loader::new(directory, 1), template, version: 1, first: Snapshot::default() };
        for n in 0..SERVICES {
            let name = format!("s{n}");
            objects.insert(Key::Service(name.clone()), loaded.service(&name, 1));
        }
        loaded.first = Snapshot { version: 1, objects };
        loaded.loader.load(loaded.first.clone()).unwrap();
        loaded
    }

    fn service(&self, name: &str, port: u16) -> Object {
        let Object::Service(mut shared) = self.template.clone() else { panic!("a service") };
        let service = Arc::make_mut(&mut shared);
        service.name = name.into();
        let address = Address::Ip(SocketAddr::from(([10, 0, 0, 1], port)));
        service.endpoints = vec![Endpoint { address, zone: None }];
        Object::Service(shared)
    }

    fn put(&mut self, name: &str, object: Object) -> Result<Arc<Tables>, String> {
        self.apply(vec![(Key::Service(name.into()), object)], Vec::new())
    }

    fn apply(&mut self, put: Vec<(Key, Object)>, remove: Vec<Key>) -> Result<Arc<Tables>, String> {
        self.version += 1;
        let delta = Delta { version: self.version, put, remove };
        self.loader.apply(&delta).map_err(|error| error.to_string())
    }
}

/// Names of the services that are other ones, before and after.
fn changed<'a>(before: &'a Tables, after: &'a Tables) -> Vec<(Option<&'a str>, Option<&'a str>)> {
    let name = |service: Option<&'a ringmesh_dataplane::tables::Service>| service.map(|service| &*service.config.name);
    after.services.changed_since(&before.services).map(|(old, new)| (name(old), name(new))).collect()
}

#[test]
fn a_change_makes_anew_only_what_it_names() {
    let mut loaded = Loaded::new();
    let first = loaded.loader.tables().clone();
    let object = loaded.service("s7", 2);
    let second = loaded.put("s7", object).unwrap();
    assert_eq!(changed(&first, &second), [(Some("s7"), Some("s7"))]);
    let listener = |tables: &Tables| Arc::as_ptr(tables.listeners[0].as_ref().unwrap());
    assert_eq!(listener(&first), listener(&second), "no route names an endpoint");

    let object = loaded.service("new", 1);
    let third = loaded.put("new", object).unwrap();
    assert_eq!(changed(&second, &third), [(None, Some("new"))]);
    let fourth = loaded.apply(Vec::new(), vec![Key::Service("new".into())]).unwrap();
    assert_eq!(changed(&third, &fourth), [(Some("new"), None)]);
    assert_eq!(fourth.services.iter().count(), SERVICES + 1);
}

#[test]
fn what_cannot_be_used_changes_nothing_neither_now_nor_at_the_next_change() {
    let mut loaded = Loaded::new();
    let first = loaded.loader.tables().clone();
    let good = loaded.service("s7", 2);
    let mut bad = loaded.service("s8", 2);
    let Object::Service(service) = &mut bad else { panic!("a service") };
    Arc::make_mut(service).peer = Some(SpiffeId::workload("example", "default", "peer").unwrap());
    let put = vec![(Key::Service("s7".into()), good), (Key::Service("s8".into()), bad)];
    let error = loaded.apply(put, vec![Key::Service("s9".into())]).err().unwrap();
    assert!(error.contains("`s8` needs mutual TLS"), "{error}");
    assert_eq!(changed(&first, loaded.loader.tables()), []);
    let again = loaded.loader.load(loaded.first.clone()).unwrap();
    assert_eq!(changed(&first, &again), [], "nothing of it is remembered");
    let object = loaded.service("s1", 2);
    let second = loaded.put("s1", object).unwrap();
    assert_eq!(changed(&first, &second), [(Some("s1"), Some("s1"))]);
}

#[test]
fn places_of_services_and_endpoints_that_go_are_used_again() {
    let mut loaded = Loaded::new();
    let mut indexes = BTreeSet::new();
    for round in 1..=1000 {
        let object = loaded.service("s7", round);
        loaded.put("s7", object).unwrap();
        let name = format!("round-{round}");
        let object = loaded.service(&name, round);
        let tables = loaded.put(&name, object).unwrap();
        indexes
            .extend(tables.services.iter().flat_map(|service| &service.endpoints).map(|endpoint| endpoint.place.index));
        loaded.apply(Vec::new(), vec![Key::Service(name)]).unwrap();
    }
    assert!(indexes.len() <= SERVICES + 5, "{} places of endpoints", indexes.len());
    let services = loaded.loader.tables().services.iter().map(|service| service.place.index).max().unwrap();
    assert!(services as usize <= SERVICES + 1, "the last service's place is {services}");
}

#[test]
fn an_endpoint_that_stays_keeps_its_place_and_one_that_comes_back_is_another() {
    let mut loaded = Loaded::new();
    let place = |tables: &Tables| {
        let service = tables.services.iter().find(|service| service.config.name == "s7").unwrap();
        (service.place, service.endpoints[0].place)
    };
    let first = place(loaded.loader.tables());
    let mut slower = loaded.service("s7", 1);
    let Object::Service(service) = &mut slower else { panic!("a service") };
    Arc::make_mut(service).connect_timeout *= 2;
    assert_eq!(place(&loaded.put("s7", slower).unwrap()), first, "its connections can be used on");
    let moved = loaded.service("s7", 2);
    let second = place(&loaded.put("s7", moved).unwrap());
    assert_eq!(second.0, first.0);
    let back = loaded.service("s7", 1);
    let third = place(&loaded.put("s7", back).unwrap());
    assert!(third.1 != first.1 && third.1 != second.1);
}
