//! A task of the data plane that panics (one connection ends, one counter moves, and nobody else notices), one that hangs
//! (what is live where is told as it is), and a worker that dies.
//!
//! The data plane runs inside this process, because the filter that panics is no part of the program.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringmesh_dataplane::filter::{self, Filter, Verdict};
use ringmesh_dataplane::telemetry::{Reader, layout};
use ringmesh_dataplane::{Running, Start, entry, start};
use ringmesh_loadgen::load::{Entry, Reuse};
use ringmesh_model::snapshot::{
    AccessLog, Address, Balance, Destination, Endpoint, Hop, Key, Level, Listener, ListenerLimits, ListenerTarget,
    Mtls, Object, OpaqueLimits, Protocol, Service, Settings, Snapshot,
};
use ringmesh_model::wire::{self, Pin, Runtime, ToControl, ToDataPlane, WIRE_VERSION};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::socket::bind_group;
use ringmesh_tests::{Client, Driver, eventually, on_both_drivers, on_both_drivers_at_once};

use crate::load;

const WORKERS: u16 = 2;

/// Panics at `/panic`, and holds its worker at `/hang` for as long as the lock is held.
#[derive(Clone, Default)]
struct Trap {
    hangs: Arc<Mutex<()>>,
    held: Arc<AtomicBool>,
}

impl Filter for Trap {
    fn request(&self, _method: &[u8], path: &[u8]) -> Verdict {
        if path == b"/hang" {
            self.held.store(true, Ordering::Release);
            drop(self.hangs.lock().unwrap());
        }
        assert!(path != b"/panic", "the filter of the test panics, as it should");
        Verdict::Continue
    }
}

/// A data plane without a configuration.
struct Begun {
    running: Running,
    telemetry: SharedMemory,
    folder: tempfile::TempDir,
}

fn begin(driver: Driver, filter: filter::Make) -> Begun {
    let folder = tempfile::tempdir().unwrap();
    let running = start(Start { filters: vec![filter] }).unwrap();
    let telemetry = SharedMemory::create("telemetry", layout::memory_bytes(WORKERS)).unwrap();
    let events = SharedMemory::create("events", layout::event_memory_bytes(WORKERS)).unwrap();
    let nudge: OwnedFd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    let adoption: OwnedFd = UnixListener::bind(folder.path().join("data.sock")).unwrap().into();
    let link = &running.link;
    link.send(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch: 1 }, &[]).unwrap();
    assert!(matches!(link.receive().unwrap().0, ToControl::Welcome { started: None, .. }));
    let driver = match driver {
        Driver::IoUring => wire::Driver::IoUring,
        Driver::Epoll => wire::Driver::Epoll,
        Driver::Auto => wire::Driver::Auto,
    };
    let descriptors = [telemetry.fd(), events.fd(), nudge.as_fd(), adoption.as_fd()];
    let runtime = Runtime { driver, workers: WORKERS, pin: Pin::None };
    link.send(&ToDataPlane::Start { runtime }, &descriptors).unwrap();
    assert!(matches!(link.receive().unwrap().0, ToControl::Started { .. }));
    Begun { running, telemetry, folder }
}

/// A data plane with the trap, whose only port leads to one service.
struct Plane {
    running: Option<Running>,
    reader: Reader,
    front: SocketAddr,
    trap: Trap,
    _telemetry: SharedMemory,
    _folder: tempfile::TempDir,
}

impl Plane {
    fn start(driver: Driver, app: SocketAddr) -> Self {
        let trap = Trap::default();
        let copy = trap.clone();
        let Begun { running, telemetry, folder } = begin(driver, Arc::new(move || Box::new(copy.clone())));
        let sockets = bind_group("127.0.0.1:0".parse().unwrap(), usize::from(WORKERS)).unwrap();
        let front = TcpListener::from(sockets[0].try_clone().unwrap()).local_addr().unwrap();

        let link = &running.link;
        let descriptors: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        link.send(&ToDataPlane::Listeners { counts: vec![("front".into(), WORKERS)] }, &descriptors).unwrap();
        link.send(&ToDataPlane::Snapshot(snapshot(front, app)), &[]).unwrap();
        let answer = link.receive().unwrap().0;
        assert!(matches!(answer, ToControl::Live { version: 1 }), "{answer:?}");
        let reader = Reader::open(telemetry.map_reader().unwrap()).unwrap();
        Self { running: Some(running), reader, front, trap, _telemetry: telemetry, _folder: folder }
    }

    /// The sum of a counter over all workers and series of a kind.
    fn counted(&self, kind: layout::Kind, counter: usize) -> u64 {
        self.reader.series().iter().filter(|series| series.kind == kind).map(|series| series.counters[counter]).sum()
    }

    fn gauge(&self, gauge: usize) -> u64 {
        (0..WORKERS).map(|worker| self.reader.gauge(worker, gauge)).sum()
    }
}

impl Drop for Plane {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let _ = running.link.send(&ToDataPlane::Drain { timeout: Duration::from_secs(2) }, &[]);
        let answer = running.link.receive::<ToControl>().map(|(answer, _)| answer);
        if !std::thread::panicking() {
            assert!(matches!(answer, Ok(ToControl::Drained { .. })), "{answer:?}");
            running.thread.join().unwrap().unwrap();
        }
    }
}

fn snapshot(front: SocketAddr, app: SocketAddr) -> Snapshot {
    let settings = Settings {
        trust_domain: "mesh.test".into(),
        workload: "test".into(),
        access_log: AccessLog::Off,
        log_level: Level::Info,
        drain_timeout: Duration::from_secs(5),
    };
    let limits = ListenerLimits {
        max_header_bytes: 32 * 1024,
        max_headers: 100,
        max_streams: 100,
        max_connections: 1000,
        header_timeout: Duration::from_secs(20),
        min_transfer_rate: None,
        idle_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(5),
        detect_timeout: Duration::from_secs(5),
        request_timeout: None,
        tcp_keepalive: None,
        opaque: OpaqueLimits { idle_timeout: Duration::from_secs(60), min_transfer_rate: None, max_duration: None },
    };
    let listener = Listener {
        name: "front".into(),
        bind: Address::Ip(front),
        ipv6_only: false,
        permissions: Default::default(),
        protocol: Protocol::Http,
        intercept: None,
        mtls: Mtls::Off,
        tls: Vec::new(),
        proxy_protocol: None,
        target: ListenerTarget::Service("app".into()),
        edge: Default::default(),
        limits,
        hop: Hop::default(),
    };
    let service = Service {
        name: "app".into(),
        protocol: Protocol::Http,
        peer: None,
        proxy_protocol: None,
        destination: Destination::Endpoints,
        mark: None,
        endpoints: vec![Endpoint { address: Address::Ip(app), zone: None }],
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_secs(5),
        connect_retries: 0,
        idle_timeout: Duration::from_secs(60),
        // A permit that a panicking request keeps would be missed.
        max_in_flight: Some(100),
        max_idle_per_endpoint: 100,
        share_connections: true,
        tcp_keepalive: None,
        health_check: None,
    };
    let objects = BTreeMap::from([
        (Key::Settings, Object::Settings(settings.into())),
        (Key::Listener("front".into()), Object::Listener(listener.into())),
        (Key::Service("app".into()), Object::Service(service.into())),
    ]);
    Snapshot { version: 1, objects }
}

#[test]
fn each_panic_under_load_ends_one_connection_and_moves_one_counter() {
    on_both_drivers(|driver| {
        const PANICS: u64 = 150;
        const CONNECTIONS: u64 = 20;
        let app = load::service();
        let plane = Plane::start(driver, app.address());
        let mut quiet: Vec<Client> = (0..10).map(|_| Client::connect(plane.front)).collect();
        let mut ask_all = |number: usize| {
            for client in &mut quiet {
                assert_eq!(client.get("app", &format!("/{number}")).status(), 200);
            }
        };
        ask_all(0);
        let load =
            load::steady(plane.front, 500.0, CONNECTIONS as usize, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        for panic in 1..=PANICS {
            let mut client = Client::connect(plane.front);
            assert_eq!(client.get("app", "/good").status(), 200);
            client.send("GET /panic HTTP/1.1\r\nHost: app\r\n\r\n").expect_end();
            eventually("the counter moves", || (plane.gauge(layout::gauge::PANICS) == panic).then_some(()));
            if panic % 50 == 0 {
                ask_all(1);
            }
        }
        ask_all(2);
        eventually("the load went on beside all that", || (load.progress().total.requests() >= 100).then_some(()));
        let report = load::end(load);
        load::assert_nothing_failed(&report, 100);
        load::assert_no_connection_closed(&report, CONNECTIONS);
        drop(quiet);

        assert_eq!(plane.gauge(layout::gauge::PANICS), PANICS, "no other counter of panics moves");
        eventually("every connection has ended", || (plane.gauge(layout::gauge::CONNECTIONS) == 0).then_some(()));
        assert_eq!(plane.gauge(layout::gauge::IN_FLIGHT), 0, "what panicked is in flight no more");
        let listener = |counter| plane.counted(layout::Kind::Listener, counter);
        assert_eq!(listener(layout::listener::ACCEPTED), listener(layout::listener::CLOSED));
        assert_eq!(listener(layout::listener::OPEN), 0);
        let good = plane.counted(layout::Kind::Request, layout::request::CLASS + 2);
        assert_eq!(
            good,
            report.total.succeeded + PANICS + 10 * 5,
            "every answer is counted, and none that was not given"
        );
        let mut after = Client::connect(plane.front);
        for _ in 0..200 {
            assert_eq!(after.get("app", "/").status(), 200, "no permit was lost");
        }
    });
}

#[test]
fn a_version_that_one_worker_does_not_take_is_told_as_partly_live_until_it_does() {
    on_both_drivers_at_once(|driver| {
        let app = load::service();
        let plane = Plane::start(driver, app.address());
        let link = &plane.running.as_ref().unwrap().link;
        let next = || link.receive::<ToControl>().unwrap().0;
        let hang = plane.trap.hangs.lock().unwrap();
        let mut client = Client::connect(plane.front);
        client.send("GET /hang HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("a worker hangs", || plane.trap.held.load(Ordering::Acquire).then_some(()));

        let changed = Snapshot { version: 2, ..snapshot(plane.front, app.address()) };
        link.send(&ToDataPlane::Snapshot(changed), &[]).unwrap();
        let ToControl::Partly { version: 2, mut workers } = next() else { panic!("one of them hangs") };
        workers.sort_unstable();
        assert_eq!(workers, [1, 2], "what each worker uses");
        for _ in 0..3 {
            link.send(&ToDataPlane::Report, &[]).unwrap();
            let ToControl::Report(report) = next() else { panic!("a report was asked for") };
            let mut seen: Vec<_> = report.workers.iter().map(|worker| (worker.version, worker.silent)).collect();
            seen.sort_unstable();
            assert_eq!(seen, [(1, true), (2, false)]);
        }

        drop(hang);
        assert!(matches!(next(), ToControl::Live { version: 2 }), "told without being asked");
        let answer = client.response();
        assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (200, None), "what hung goes on");
        link.send(&ToDataPlane::Report, &[]).unwrap();
        let ToControl::Report(report) = next() else { panic!("a report was asked for") };
        assert!(report.workers.iter().all(|worker| worker.version == 2 && !worker.silent), "{report:?}");
    });
}

/// A data plane one of whose workers dies once the lock is free.
fn begin_with_a_dying_worker(driver: Driver, lives: &Arc<Mutex<()>>) -> Running {
    let (lives, first) = (lives.clone(), AtomicBool::new(true));
    let make: filter::Make = Arc::new(move || {
        if first.swap(false, Ordering::AcqRel) {
            drop(lives.lock().unwrap());
            panic!("a worker of the test dies, as it should");
        }
        Box::new(Trap::default())
    });
    begin(driver, make).running
}

#[test]
fn a_worker_that_dies_ends_the_data_plane_at_once() {
    on_both_drivers_at_once(|driver| {
        let lives = Arc::new(Mutex::new(()));
        let life = lives.lock().unwrap();
        let running = begin_with_a_dying_worker(driver, &lives);
        let begun = Instant::now();
        drop(life);
        let ended = running.thread.join().unwrap();
        assert!(matches!(ended, Err(entry::Error::WorkerLost)), "{ended:?}");
        assert!(begun.elapsed() < Duration::from_secs(3), "only after {:?}", begun.elapsed());
    });
}

#[test]
fn a_drain_does_not_wait_for_a_worker_that_has_died() {
    on_both_drivers_at_once(|driver| {
        const DRAIN: Duration = Duration::from_secs(60);
        let lives = Arc::new(Mutex::new(()));
        let life = lives.lock().unwrap();
        let running = begin_with_a_dying_worker(driver, &lives);
        running.link.send(&ToDataPlane::Drain { timeout: DRAIN }, &[]).unwrap();
        let begun = Instant::now();
        drop(life);
        assert!(matches!(running.link.receive().unwrap().0, ToControl::Drained { cut: 0 }));
        running.thread.join().unwrap().unwrap();
        assert!(begun.elapsed() < DRAIN / 3, "{:?}", begun.elapsed());
    });
}
