//! One worker: everything that one core owns. Nothing here is shared but the tables, which nobody writes.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringmesh_codec::refusal::Refusal;
use ringmesh_model::snapshot::Protocol;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Stream;

use crate::drain::Registry;
use crate::filter::Filter;
use crate::outcome::Reason;
use crate::permit::{Leases, Permit, ToCoordinator};
use crate::pool::Pools;
use crate::proxy::http1::Scratch;
use crate::proxy::relay::{Raced, race};
use crate::standing::{self, Watch};
use crate::tables::{Current, Endpoint, Listener, Service, Tables};
use crate::telemetry::event::{Direction, Event, Handshake, Hint, MAX_EVENT_BYTES, Unreadable};
use crate::telemetry::layout::gauge;
use crate::telemetry::recorder::Recorder;
use crate::tls;

/// Unused pipes that a worker keeps: each is two descriptors and a buffer of the kernel's.
const MAX_KEPT_PIPES: usize = 8;

/// Storage of busy connections that a worker keeps for the next; what a peak needed beyond is freed when it ends.
const MAX_KEPT_SCRATCH: usize = 256;

/// Stops of requests that a worker keeps for the next.
const MAX_KEPT_STOPS: usize = 256;

/// What one core owns.
pub struct Worker<N: Net> {
    /// Its number, from 0.
    pub number: u16,
    /// Sockets, clock and chance.
    pub net: N,
    /// Its part of the telemetry memory.
    pub recorder: Recorder,
    /// Connections to endpoints.
    pub pools: Pools<N::Stream>,
    /// What it may admit.
    pub leases: Leases,
    /// Its open downstream connections.
    pub connections: Rc<Registry>,
    /// What it has under way on connections to endpoints that have proved who they are.
    pub upstreams: Rc<Registry>,
    /// Looks after how peers stand.
    pub watch: Watch,
    /// What looks at requests before they are routed.
    pub filters: Vec<Box<dyn Filter>>,
    tables: RefCell<Current>,
    events: RefCell<Events>,
    /// Picks so far, by the service's place: where round robin stands.
    turns: RefCell<Vec<u64>>,
    #[allow(clippy::vec_box, reason = "taken and returned for each busy time: a pointer moves, not the storage")]
    scratch: RefCell<Vec<Box<Scratch>>>,
    stops: RefCell<Vec<Stop>>,
    pipes: RefCell<Vec<Pipe>>,
    draining: Cell<bool>,
    coordinator: Box<dyn Fn(ToCoordinator) -> bool>,
}

/// Takes an encoded event; whether there was room.
type Sink = dyn FnMut(&[u8]) -> bool;

/// Where a worker's events go.
pub struct Events {
    sink: Option<Box<Sink>>,
    encoded: Box<[u8; MAX_EVENT_BYTES]>,
}

impl Events {
    /// Events go to `sink`, encoded; it says whether there was room.
    pub fn new(sink: impl FnMut(&[u8]) -> bool + 'static) -> Self {
        Self { sink: Some(Box::new(sink)), encoded: Box::new([0; MAX_EVENT_BYTES]) }
    }

    /// Events go nowhere.
    pub fn none() -> Self {
        Self { sink: None, encoded: Box::new([0; MAX_EVENT_BYTES]) }
    }
}

/// Both ends of a connection, for a handshake's record.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    local: Option<SocketAddr>,
    remote: Option<SocketAddr>,
}

impl Ends {
    /// The same, but with another client at the other end: that which its proxy names.
    pub fn of_client(self, client: Option<SocketAddr>) -> Self {
        Self { remote: client, ..self }
    }
}

impl<N: Net> Worker<N> {
    /// A worker without tables and connections.
    pub fn new(
        number: u16,
        net: N,
        recorder: Recorder,
        events: Events,
        filters: Vec<Box<dyn Filter>>,
        coordinator: impl Fn(ToCoordinator) -> bool + 'static,
    ) -> Self {
        Self {
            number,
            watch: Watch::new(net.stop()),
            net,
            recorder,
            pools: Pools::default(),
            leases: Leases::default(),
            connections: Rc::default(),
            upstreams: Rc::default(),
            filters,
            tables: RefCell::default(),
            events: RefCell::new(events),
            turns: RefCell::default(),
            scratch: RefCell::default(),
            stops: RefCell::default(),
            pipes: RefCell::default(),
            draining: Cell::new(false),
            coordinator: Box::new(coordinator),
        }
    }

    /// The tables in use. A request keeps what it got here from start to end.
    pub fn tables(&self) -> Current {
        self.tables.borrow().clone()
    }

    /// Uses other tables for requests that begin from now on. Returns the old ones: they are freed elsewhere.
    pub fn commit(&self, tables: Arc<Tables>) -> Current {
        self.leases.commit(tables.services.changed_since(&self.tables.borrow().services));
        self.recorder.gauge_set(gauge::VERSION, tables.version);
        let before = self.tables.replace(Rc::new(tables));
        let anchors = self.tables().anchors.clone();
        if anchors != before.anchors {
            standing::look(self, Some(&anchors));
        }
        before
    }

    /// Whether the worker is ending.
    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Ends the worker: nothing idle is kept from now on.
    pub fn drain(&self) {
        self.draining.set(true);
        self.pools.clear();
        self.connections.stop_idle();
    }

    /// Ends idle connections that their listeners would not serve any more, now that other tables are in use than these.
    pub fn end_left_behind(&self, before: &Tables) {
        let now = self.tables();
        for (old, new) in before.listeners.iter().zip(&now.listeners) {
            let (Some(old), Some(new)) = (old, new) else { continue };
            if !Arc::ptr_eq(old, new) && new.place == old.place && new.leaves_behind(old) {
                self.connections.stop_idle_of(old.place.index);
            }
        }
    }

    /// Which of a service's picks this is.
    pub fn turn(&self, service: u32) -> u64 {
        let mut turns = self.turns.borrow_mut();
        let index = service as usize;
        if turns.len() <= index {
            // Each worker starts somewhere else, or many idle workers would all begin with the first endpoint.
            turns.resize(index + 1, u64::from(self.number));
        }
        turns[index] += 1;
        turns[index]
    }

    /// Admits a request within its service's limit.
    ///
    /// # Errors
    /// If the limit is reached, nobody says in time that it is not, or the request was stopped. `deadline` is the request's,
    /// if it has one.
    pub async fn admit(&self, service: &Service, stop: &Stop, deadline: Option<Instant>) -> Result<Permit, Reason> {
        if let Some(permit) = self.leases.try_acquire(service).map_err(|_exhausted| Reason::InFlightLimit)? {
            return Ok(permit);
        }
        // From now on, not from the request's begin: what a worker missed while it stood still is no sign of a limit.
        let now = self.net.now();
        let until = now + service.config.connect_timeout;
        let acquire = self.leases.acquire(service, now, |message| (self.coordinator)(message));
        stop.set_deadline(Some(deadline.map_or(until, |deadline| deadline.min(until))));
        match race(acquire, stop.stopped()).await {
            Raced::First(result) => result.map_err(|_exhausted| Reason::InFlightLimit),
            Raced::Second(StopReason::Deadline) => {
                stop.clear();
                Err(Reason::InFlightLimit)
            }
            Raced::Second(reason) => Err(Reason::of_stop(reason)),
        }
    }

    /// Storage for one busy connection.
    pub fn take_scratch(&self) -> Box<Scratch> {
        self.scratch.borrow_mut().pop().unwrap_or_default()
    }

    /// Returns what [`Worker::take_scratch`] gave.
    pub fn return_scratch(&self, scratch: Box<Scratch>) {
        let mut kept = self.scratch.borrow_mut();
        if kept.len() < MAX_KEPT_SCRATCH {
            kept.push(scratch);
        }
    }

    /// Frees what is kept for the next busy connections.
    pub fn free_scratch(&self) {
        drop((self.scratch.take(), self.stops.take()));
    }

    /// A stop for one request.
    pub fn take_stop(&self) -> Stop {
        self.stops.borrow_mut().pop().unwrap_or_else(|| self.net.stop())
    }

    /// Returns what [`Worker::take_stop`] gave. One that is still known elsewhere is not kept.
    pub fn return_stop(&self, stop: Stop) {
        let mut kept = self.stops.borrow_mut();
        if kept.len() < MAX_KEPT_STOPS && stop.renew() {
            kept.push(stop);
        }
    }

    /// A pipe for `splice(2)`.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn take_pipe(&self) -> io::Result<Pipe> {
        self.pipes.borrow_mut().pop().map_or_else(Pipe::new, Ok)
    }

    /// Keeps a pipe that is empty.
    pub fn return_pipe(&self, pipe: Pipe) {
        let mut pipes = self.pipes.borrow_mut();
        if pipes.len() < MAX_KEPT_PIPES {
            pipes.push(pipe);
        }
    }

    /// Writes an event, or counts it as dropped.
    pub fn tell(&self, event: &Event<'_>) {
        let mut events = self.events.borrow_mut();
        let Events { sink: Some(sink), encoded } = &mut *events else { return };
        let told = match postcard::to_slice(event, &mut encoded[..]) {
            Ok(bytes) => sink(bytes),
            Err(_) => false,
        };
        if !told {
            self.recorder.gauge_add(gauge::EVENTS_DROPPED, 1);
        }
    }

    /// Writes that a client speaks something else than a port does.
    pub fn tell_hint(&self, listener: &Listener, client: &str, reason: Reason) {
        self.tell(&Event::Hint(Hint { listener: &listener.config.name, client, reason: reason as u8 }));
    }

    /// Writes why a request is refused before it is one.
    pub fn tell_unreadable(&self, listener: &Listener, client: &str, reason: Reason, refusal: Refusal) {
        self.tell_refused(listener, client, reason, &refusal.to_string());
    }

    /// Writes that a client does not begin HTTP/2 where nothing else is spoken.
    pub fn tell_other_protocol(&self, listener: &Listener, client: &str) {
        let detail = "it does not begin as HTTP/2 does, the only version here; `protocol = \"http\"` takes both";
        self.tell_refused(listener, client, Reason::Http2Error, detail);
    }

    fn tell_refused(&self, listener: &Listener, client: &str, reason: Reason, detail: &str) {
        let (listener, reason) = (&listener.config.name, reason as u8);
        self.tell(&Event::Unreadable(Unreadable { listener, service: "", from: client, reason, detail }));
    }

    /// Writes that a service's answer cannot be understood. Mostly it speaks another protocol than was said.
    pub fn tell_garbage(&self, listener: &Listener, service: &Service, endpoint: &Endpoint) {
        let detail = match service.config.protocol {
            Protocol::Http2 => "it is no HTTP/2, or breaks its rules; does `protocol = \"http2\"` say what it speaks?",
            _ => {
                "it is no HTTP/1.1, or breaks its rules; does it speak HTTP/2 (`protocol = \"http2\"`) or something else?"
            }
        };
        self.tell(&Event::Unreadable(Unreadable {
            listener: &listener.config.name,
            service: &service.config.name,
            from: &endpoint.text,
            reason: Reason::UpstreamGarbage as u8,
            detail,
        }));
    }

    /// Both ends of a connection.
    pub fn ends(stream: &impl Stream) -> Ends {
        Ends { local: stream.local_address(), remote: stream.peer_address() }
    }

    /// Writes a handshake's record.
    pub fn tell_handshake(
        &self,
        direction: Direction,
        name: &str,
        ends: Ends,
        result: Result<&tls::Peer, &tls::Refused>,
    ) {
        let text = |address: Option<SocketAddr>| address.map(|address| address.to_string()).unwrap_or_default();
        let (local, remote) = (text(ends.local), text(ends.remote));
        let detail = result.err().map(ToString::to_string).unwrap_or_default();
        self.tell(&Event::Handshake(Handshake {
            time: unix_micros(),
            direction,
            name,
            local: &local,
            remote: &remote,
            peer: result.ok().and_then(|peer| peer.id.as_deref()).map_or("", |id| id.as_str()),
            version: result.map_or("", |peer| peer.version),
            cipher: result.map_or("", |peer| peer.cipher_suite),
            refused: result.err().map_or("", tls::Refused::label),
            detail: &detail,
        }));
    }
}

/// Microseconds since the Unix epoch.
pub fn unix_micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}
