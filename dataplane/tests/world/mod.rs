//! A worker in memory with one listener and one service, for tests of the whole path.
#![allow(clippy::unwrap_used, reason = "a test ends where its own world is broken")]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmesh_dataplane::loader::Loader;
use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::places::Place;
use ringmesh_dataplane::proxy::connection::{self, Connection};
use ringmesh_dataplane::proxy::pooled::pooled;
use ringmesh_dataplane::proxy::transport::Transport;
use ringmesh_dataplane::telemetry::directory::Directory;
use ringmesh_dataplane::telemetry::recorder::Recorder;
use ringmesh_dataplane::telemetry::{Reader, layout};
use ringmesh_dataplane::worker::{Events, Worker};
use ringmesh_model::snapshot::*;
use ringmesh_ring::memory::{self, Network};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::{Buffer, Net, Output, Size, Stop, Stream};

/// The only endpoint.
pub(crate) const ENDPOINT: &str = "10.0.0.1:80";

/// The listener's.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The listener's least, in bytes a second.
pub(crate) const MIN_TRANSFER_RATE: u32 = 100;

/// A worker in memory.
pub(crate) struct World {
    pub(crate) net: Network,
    pub(crate) worker: Rc<Worker<Network>>,
    listener: Place,
    loader: RefCell<Loader>,
    snapshot: RefCell<Snapshot>,
    upstream: memory::Listener,
    pub(crate) telemetry: SharedMemory,
}

impl World {
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn new() -> Self {
        Self::with(|_listener| {})
    }

    /// A world whose listener passes bytes on without looking at them.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn opaque() -> Self {
        Self::with(|listener| {
            listener.protocol = Protocol::Tcp;
            listener.target = ListenerTarget::Service("s".into());
        })
    }

    /// A world whose listener is changed.
    pub(crate) fn with(change: impl FnOnce(&mut Listener)) -> Self {
        let net = Network::new(1);
        let upstream = net.listen(ENDPOINT.parse::<std::net::SocketAddr>().unwrap());
        let telemetry = SharedMemory::create("telemetry", layout::memory_bytes(1)).unwrap();
        let memory = Arc::new(telemetry.map_writer().unwrap());
        let mut loader = Loader::new(Directory::open(memory.clone(), 1).unwrap(), 1);
        let snapshot = snapshot(change);
        let tables = loader.load(snapshot.clone()).unwrap();
        let listener = tables.listeners.iter().flatten().next().unwrap().place;
        let recorder = Recorder::new(memory, 0);
        let worker = Rc::new(Worker::new(0, net.clone(), recorder, Events::none(), Vec::new(), |_| false));
        worker.commit(tables);
        let (loader, snapshot) = (RefCell::new(loader), RefCell::new(snapshot));
        Self { net, worker, listener, loader, snapshot, upstream, telemetry }
    }

    /// Makes a changed snapshot live.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn reload(&self, change: impl FnOnce(&mut BTreeMap<Key, Object>)) {
        let mut snapshot = self.snapshot.borrow_mut();
        snapshot.version += 1;
        change(&mut snapshot.objects);
        let tables = self.loader.borrow_mut().load(snapshot.clone()).unwrap();
        self.worker.commit(tables);
    }

    /// An object of the snapshot that is live.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn loaded(&self, key: &Key) -> Object {
        self.snapshot.borrow().objects[key].clone()
    }

    /// A client's end of a new connection to the listener.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn connect(&self) -> memory::Stream {
        let (near, far) = self.net.pair();
        ringmesh_ring::spawn(connection::serve(
            self.worker.clone(),
            pooled::<Network>(),
            far,
            None,
            self.listener,
            None,
        ));
        near
    }

    /// A connection that nobody serves.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn connection(&self, stream: memory::Stream) -> Connection<Network> {
        Connection::new(&self.worker, self.listener, Transport::Plain(stream))
    }

    /// The endpoint's end of the next connection.
    pub(crate) async fn accept(&self) -> memory::Stream {
        self.upstream.accept().await
    }

    /// How many requests have ended for a reason.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn ended(&self, reason: Reason) -> u64 {
        let reader = Reader::open(self.telemetry.map_reader().unwrap()).unwrap();
        let requests = reader.series().into_iter().filter(|series| series.kind == layout::Kind::Request);
        requests.map(|series| series.counters[layout::request::REASON + reason as usize]).sum()
    }

    /// How many connections have ended for a reason.
    #[allow(dead_code, reason = "each test binary uses a part of this")]
    pub(crate) fn connections(&self, reason: Reason) -> u64 {
        let reader = Reader::open(self.telemetry.map_reader().unwrap()).unwrap();
        let listeners = reader.series().into_iter().filter(|series| series.kind == layout::Kind::Listener);
        listeners.map(|series| series.counters[layout::listener::REASON + reason as usize]).sum()
    }
}

fn snapshot(change: impl FnOnce(&mut Listener)) -> Snapshot {
    let mut listener = Listener {
        name: "in".into(),
        bind: Address::Ip("127.0.0.1:1".parse().unwrap()),
        ipv6_only: false,
        permissions: Default::default(),
        protocol: Protocol::Http,
        intercept: None,
        mtls: Mtls::Off,
        tls: Vec::new(),
        proxy_protocol: None,
        target: ListenerTarget::Routes,
        edge: Default::default(),
        limits: ListenerLimits {
            max_header_bytes: 16 * 1024,
            max_headers: 100,
            max_streams: 100,
            max_connections: 100,
            header_timeout: Duration::from_secs(5),
            min_transfer_rate: NonZeroU32::new(MIN_TRANSFER_RATE),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(5),
            detect_timeout: Duration::from_secs(5),
            request_timeout: Some(REQUEST_TIMEOUT),
            tcp_keepalive: None,
            opaque: OpaqueLimits {
                idle_timeout: Duration::from_secs(60),
                min_transfer_rate: NonZeroU32::new(MIN_TRANSFER_RATE),
                max_duration: None,
            },
        },
        hop: Hop::default(),
    };
    change(&mut listener);
    let service = Service {
        name: "s".into(),
        protocol: Protocol::Http,
        peer: None,
        proxy_protocol: None,
        destination: Destination::Endpoints,
        mark: None,
        endpoints: vec![Endpoint { address: Address::Ip(ENDPOINT.parse().unwrap()), zone: None }],
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_secs(1),
        connect_retries: 1,
        idle_timeout: Duration::from_secs(60),
        max_in_flight: None,
        max_idle_per_endpoint: 8,
        share_connections: true,
        tcp_keepalive: None,
        health_check: None,
    };
    let route = Route {
        protocol: RouteProtocol::Http,
        name: "s".into(),
        listeners: Vec::new(),
        hosts: vec![HostPattern::Exact("s".into())],
        rules: vec![RouteRule {
            name: "0".into(),
            matches: RouteMatch::default(),
            to: vec![Target { service: "s".into(), weight: 1 }],
            timeout: None,
        }],
    };
    let path = |path: &str| PathMatch::Exact(path.into());
    let paths = vec![path("/"), path("/a"), path("/b"), path("/pay")];
    let rule = AllowRule { name: "0".into(), from: Vec::new(), methods: Vec::new(), paths };
    let policy = Policy { name: "p".into(), listener: "in".into(), allow: vec![rule] };
    let guarded = listener.protocol == Protocol::Http;
    let settings = Settings {
        trust_domain: "test".into(),
        workload: "test".into(),
        access_log: AccessLog::Off,
        log_level: Level::Info,
        drain_timeout: Duration::from_secs(5),
    };
    let mut objects = BTreeMap::from([
        (Key::Settings, Object::Settings(settings.into())),
        (Key::Listener("in".into()), Object::Listener(listener.into())),
        (Key::Service("s".into()), Object::Service(service.into())),
        (Key::Route("s".into()), Object::Route(route.into())),
    ]);
    if guarded {
        objects.insert(Key::Policy("p".into()), Object::Policy(policy.into()));
    }
    Snapshot { version: 1, objects }
}

fn stop(net: &Network) -> Stop {
    let stop = net.stop();
    stop.set_deadline(Some(net.now() + Duration::from_secs(60)));
    stop
}

#[allow(dead_code, reason = "each test binary uses a part of this")]
pub(crate) async fn send(stream: &memory::Stream, net: &Network, bytes: &[u8]) {
    let mut output = Output::new();
    output.push_bytes(bytes);
    stream.flush(&mut output, &stop(net)).await.unwrap();
}

/// Everything up to and including a blank line.
#[allow(dead_code, reason = "each test binary uses a part of this")]
pub(crate) async fn read_head(stream: &memory::Stream, net: &Network) -> String {
    let mut text = String::new();
    while !text.ends_with("\r\n\r\n") {
        text.push_str(&read_bytes(stream, net, 1).await);
    }
    text
}

pub(crate) async fn read_bytes(stream: &memory::Stream, net: &Network, count: usize) -> String {
    let mut bytes = Vec::new();
    while bytes.len() < count {
        // A buffer with just the room that is wanted.
        let mut buffer = Buffer::take(Size::Small);
        let unused = buffer.spare() - (count - bytes.len());
        buffer.commit(unused);
        let received = stream.fill(&mut buffer, &stop(net)).await.unwrap();
        assert!(received > 0, "the connection ended after {:?}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&buffer.filled()[unused..]);
    }
    String::from_utf8(bytes).unwrap()
}

#[allow(dead_code, reason = "each test binary uses a part of this")]
pub(crate) async fn read_to_end(stream: &memory::Stream, net: &Network) {
    let mut buffer = Buffer::take(Size::Small);
    while let Ok(1..) = stream.fill(&mut buffer, &stop(net)).await {
        buffer.clear();
    }
}
