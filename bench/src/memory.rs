//! The whole path of a request in memory, without a kernel: client, worker and service are tasks of one thread.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use ringmesh_dataplane::loader::Loader;
use ringmesh_dataplane::places::Place;
use ringmesh_dataplane::proxy::connection::{self, Connection};
use ringmesh_dataplane::proxy::pooled::pooled;
use ringmesh_dataplane::proxy::transport::Transport;
use ringmesh_dataplane::telemetry::directory::Directory;
use ringmesh_dataplane::telemetry::layout;
use ringmesh_dataplane::telemetry::recorder::Recorder;
use ringmesh_dataplane::worker::{Events, Worker};
use ringmesh_model::snapshot::{AccessLog, Key, ListenerTarget, Object, Protocol, Snapshot};
use ringmesh_ring::memory::{self, Network, Stream, block_on};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::{Buffer, Net, Output, Size, Stop, Stream as _};

use crate::snapshot;

/// A request as a small client sends it.
pub const REQUEST: &[u8] = b"GET /items/17?full=1 HTTP/1.1\r\nHost: app.bench.example\r\nUser-Agent: bench/1\r\n\
    Accept: */*\r\nX-Request-Id: 6f1c2f0a-6d0f-4a52-9f0f-3a1f5a1d2c11\r\n\r\n";

/// Its answer, with 100 bytes.
pub const RESPONSE: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 100\r\n\r\n\
    0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789";

const ENDPOINT: &str = "10.0.0.1:80";

/// What is between client and service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Between {
    /// A worker.
    Proxy,
    /// Nothing: what client and service cost by themselves.
    Nothing,
}

/// A worker in memory with its service.
pub struct World {
    pub(crate) net: Network,
    /// The worker, for what is measured apart.
    pub worker: Rc<Worker<Network>>,
    pub(crate) listener: Place,
    pub(crate) service: memory::Listener,
}

impl World {
    /// A worker that routes `hosts` hosts.
    ///
    /// # Errors
    /// If there is no memory for its telemetry.
    pub fn new(hosts: usize) -> anyhow::Result<Self> {
        Self::changed(hosts, |_snapshot| {})
    }

    /// A worker before a service that speaks `protocol`.
    ///
    /// # Errors
    /// If there is no memory for its telemetry.
    pub fn with(hosts: usize, protocol: Protocol) -> anyhow::Result<Self> {
        Self::changed(hosts, |snapshot| {
            for object in snapshot.objects.values_mut() {
                if let Object::Service(service) = object {
                    Arc::make_mut(service).protocol = protocol;
                }
            }
        })
    }

    /// A worker before a service of gRPC, whose policy allows calls.
    ///
    /// # Errors
    /// If there is no memory for its telemetry.
    pub fn of_calls() -> anyhow::Result<Self> {
        Self::changed(1, |snapshot| {
            for object in snapshot.objects.values_mut() {
                match object {
                    Object::Service(service) => Arc::make_mut(service).protocol = Protocol::Http2,
                    Object::Policy(policy) => {
                        Arc::make_mut(policy).allow.iter_mut().for_each(|rule| rule.methods = vec!["POST".into()]);
                    }
                    _ => {}
                }
            }
        })
    }

    /// A worker that passes bytes on without looking at them.
    ///
    /// # Errors
    /// If there is no memory for its telemetry.
    pub fn opaque() -> anyhow::Result<Self> {
        Self::changed(1, |snapshot| {
            // Rules about requests admit no opaque connection.
            snapshot.objects.retain(|key, _| !matches!(key, Key::Policy(_)));
            for object in snapshot.objects.values_mut() {
                if let Object::Listener(listener) = object {
                    let listener = Arc::make_mut(listener);
                    listener.protocol = Protocol::Tcp;
                    listener.target = ListenerTarget::Service(snapshot::SERVICE.into());
                    listener.limits.opaque.min_transfer_rate = None;
                }
            }
        })
    }

    fn changed(hosts: usize, change: impl FnOnce(&mut Snapshot)) -> anyhow::Result<Self> {
        let net = Network::new(1);
        let endpoint = ENDPOINT.parse().expect("an address");
        let telemetry = SharedMemory::create("telemetry", layout::memory_bytes(1))?;
        let memory = Arc::new(telemetry.map_writer()?);
        let mut loader = Loader::new(Directory::open(memory.clone(), 1)?, 1);
        let bind = "127.0.0.1:1".parse().expect("an address");
        let mut snapshot = snapshot::snapshot(bind, endpoint, hosts, AccessLog::Off);
        change(&mut snapshot);
        let tables = loader.load(snapshot)?;
        let listener = tables.listeners.iter().flatten().next().context("the snapshot has a listener")?.place;
        let recorder = Recorder::new(memory, 0);
        let worker = Rc::new(Worker::new(0, net.clone(), recorder, Events::none(), Vec::new(), |_| false));
        worker.commit(tables);
        let service = net.listen(endpoint);
        Ok(Self { net, worker, listener, service })
    }

    /// A connection that nobody serves.
    pub fn connection(&self) -> Connection<Network> {
        Connection::new(&self.worker, self.listener, Transport::Plain(self.net.pair().1))
    }

    /// Sends requests one after the other on one kept connection, and answers them; `then` runs between the first ones,
    /// which warm everything up, and the `count` others, and is given what does those.
    ///
    /// # Panics
    /// If an answer is not the one that the service gave.
    pub fn run<T>(&self, between: Between, warm_up: u64, count: u64, timer: impl Fn() -> T) -> (T, T) {
        block_on(&self.net, async {
            let (client, service) = match between {
                Between::Nothing => self.net.pair(),
                Between::Proxy => {
                    let (client, far) = self.net.pair();
                    let exchanges = pooled::<Network>();
                    let served = connection::serve(self.worker.clone(), exchanges, far, None, self.listener, None);
                    ringmesh_ring::spawn(served);
                    send(&client, REQUEST, &mut Output::new(), &self.net.stop()).await;
                    let service = self.service.accept().await;
                    receive(&service, REQUEST, &self.net.stop()).await;
                    send(&service, RESPONSE, &mut Output::new(), &self.net.stop()).await;
                    receive(&client, RESPONSE, &self.net.stop()).await;
                    (client, service)
                }
            };
            let (stop, mut output) = (self.net.stop(), Output::new());
            let mut began = timer();
            for number in 0..warm_up + count {
                if number == warm_up {
                    began = timer();
                }
                send(&client, REQUEST, &mut output, &stop).await;
                receive(&service, REQUEST, &stop).await;
                send(&service, RESPONSE, &mut output, &stop).await;
                receive(&client, RESPONSE, &stop).await;
            }
            (began, timer())
        })
    }
}

async fn send(stream: &Stream, bytes: &[u8], output: &mut Output, stop: &Stop) {
    output.push_bytes(bytes);
    stream.flush(output, stop).await.expect("the connection is kept");
}

async fn receive(stream: &Stream, expected: &[u8], stop: &Stop) {
    let mut buffer = Buffer::take(Size::Small);
    while buffer.len() < expected.len() {
        let received = stream.fill(&mut buffer, stop).await.expect("the connection is kept");
        assert!(received > 0, "the connection is kept");
    }
    assert_eq!(buffer.filled().len(), expected.len());
}

/// How long `count` requests take.
pub fn time(world: &World, count: u64) -> Duration {
    let (began, ended) = world.run(Between::Proxy, 0, count, std::time::Instant::now);
    ended - began
}
