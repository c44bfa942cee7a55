//! Telemetry memory that holds what a test says.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::telemetry::Reader;
use ringmesh_dataplane::telemetry::directory::Directory;
use ringmesh_dataplane::telemetry::layout::{self, Kind, gauge, listener, request, service};
use ringmesh_dataplane::telemetry::recorder::{Recorder, Series};
use ringmesh_ring::shared_memory::SharedMemory;

use super::Telemetry;
use super::events::Tally;
use super::merge::Merge;
use super::processes::Usage;
use super::prometheus::Scrape;
use crate::state::{Identity, NameAnswer, Phase, State};

/// Workers of the memories here.
pub(super) const WORKERS: u16 = 2;

/// A data plane's memory and its writers.
pub(crate) struct Dataplane {
    memory: SharedMemory,
    pub(super) directory: Directory,
    pub(super) workers: [Recorder; WORKERS as usize],
}

impl Dataplane {
    /// One with memory of its own.
    pub(crate) fn start() -> Self {
        Self::start_on(SharedMemory::create("test", layout::memory_bytes(WORKERS)).unwrap())
    }

    /// Its successor on the same memory.
    pub(super) fn restart(self) -> Self {
        Self::start_on(self.memory)
    }

    fn start_on(memory: SharedMemory) -> Self {
        let written = Arc::new(memory.map_writer().unwrap());
        let directory = Directory::open(Arc::clone(&written), WORKERS).unwrap();
        let workers = [0, 1].map(|number| Recorder::new(Arc::clone(&written), number));
        Self { memory, directory, workers }
    }

    /// Its memory, as control gets it.
    pub(super) fn descriptor(&self) -> OwnedFd {
        self.memory.fd().try_clone_to_owned().unwrap()
    }

    pub(super) fn reader(&self) -> Reader {
        Reader::open(self.memory.map_reader().unwrap()).unwrap()
    }

    /// A request that worker `number` has served.
    pub(crate) fn serve(&mut self, number: usize, labels: [&str; 4], micros: u64) {
        let series = self.directory.place(Kind::Request, &labels);
        let worker = &self.workers[number];
        worker.add(series, request::CLASS + 2, 1);
        worker.add(series, request::REASON + Reason::Ok as usize, 1);
        worker.add(series, request::DURATION_SUM, micros);
        worker.series(series).expect("the place counts for it").observe(micros);
    }

    pub(super) fn place(&mut self, kind: Kind, name: &str) -> Series {
        self.directory.place(kind, &[name])
    }
}

/// From now on this is the live data plane.
pub(crate) fn attach(telemetry: &Telemetry, dataplane: &Dataplane) {
    telemetry.merge(|merge| merge.attach(dataplane.reader()));
}

/// A scrape with something of everything.
pub(super) fn scrape() -> Scrape {
    let mut dataplane = Dataplane::start();
    let web = ["inbound", "web \"v1\"\\", "0", "local"];
    dataplane.serve(0, web, 100);
    dataplane.serve(1, web, 3_000);
    let request = dataplane.directory.place(Kind::Request, &web);
    dataplane.workers[0].add(request, request::CLASS, 1);
    dataplane.workers[0].add(request, request::REASON + Reason::ClientAborted as usize, 1);
    dataplane.workers[0].add(request, request::DURATION_SUM, 50);
    dataplane.workers[0].series(request).expect("the place counts for it").observe(50);
    dataplane.workers[0].add(request, request::REQUEST_BYTES, 17);
    dataplane.workers[1].add(request, request::RESPONSE_BYTES, 23);
    dataplane.workers[1].add(request, request::RETRIES, 1);
    let inbound = dataplane.place(Kind::Listener, "inbound");
    dataplane.workers[0].add(inbound, listener::ACCEPTED, 4);
    dataplane.workers[1].add(inbound, listener::ACCEPTED, 2);
    dataplane.workers[1].add(inbound, listener::CLOSED, 3);
    dataplane.workers[0].add(inbound, listener::HANDSHAKES, 3);
    dataplane.workers[1].add(inbound, listener::REFUSED + 2, 1);
    dataplane.workers[1].add(inbound, listener::REASON + Reason::TlsRefused as usize, 1);
    let local = dataplane.place(Kind::Service, "local");
    dataplane.workers[0].add(local, service::OPENED, 2);
    dataplane.workers[0].add(local, service::REUSED, 1);
    dataplane.workers[0].add(local, service::HEALTHY, 2);
    dataplane.workers[0].add(local, service::UNHEALTHY, 1);
    dataplane.workers[0].add(local, service::PROBES_PASSED, 9);
    dataplane.workers[0].add(local, service::PROBES_FAILED, 4);
    dataplane.workers[0].gauge_set(gauge::CONNECTIONS, 3);
    dataplane.workers[0].gauge_set(gauge::VERSION, 7);
    dataplane.workers[1].gauge_set(gauge::VERSION, 6);
    dataplane.workers[1].gauge_add(gauge::EVENTS_DROPPED, 5);
    let mut merge = Merge::default();
    merge.attach(dataplane.reader());
    Scrape {
        totals: merge.totals(),
        events: Tally { read: 9, malformed: 1, lines_lost: 2 },
        state: state(),
        processes: [
            (
                "control",
                Usage {
                    cpu_seconds: Some(1.25),
                    resident_bytes: Some(9_000_000),
                    virtual_bytes: Some(50_000_000),
                    open_fds: Some(30),
                    max_fds: None,
                    start_seconds: Some(1_700_000_000.5),
                },
            ),
            ("dataplane", Usage { cpu_seconds: Some(100.0), max_fds: Some(1_048_576), ..Usage::default() }),
        ],
        panics: 0,
        now: UNIX_EPOCH + Duration::from_millis(1_700_000_100_250),
    }
}

fn state() -> State {
    let mut state = State {
        mesh: "shop.example".to_owned(),
        workload: "checkout".to_owned(),
        instance: "a1".to_owned(),
        identity: Some(Identity {
            id: "spiffe://shop.example/ns/default/sa/checkout".to_owned(),
            expires_at: 1_700_003_600,
            problem: None,
        }),
        names: vec![NameAnswer {
            name: "payments.example:443".to_owned(),
            answered_at: Some(1_700_000_090),
            error: Some("timed out".to_owned()),
            ..NameAnswer::default()
        }],
        ..State::default()
    };
    state.control.started_at = 1_700_000_000;
    state.control.epoch = 3;
    state.dataplane.phase = Phase::Running;
    state.dataplane.driver = Some("epoll".to_owned());
    state.dataplane.driver_reason = Some("io_uring: Operation not permitted".to_owned());
    state.config.version = 7;
    state.config.live_version = 6;
    state.config.read_at = 1_700_000_050;
    state.config.reloads = 6;
    state.config.refused_reloads = 1;
    state.config.problems = vec!["sidecar.toml:3: unknown key".to_owned()];
    state
}
