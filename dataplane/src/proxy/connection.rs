//! The way of one downstream connection: handshake, then requests one after the other, or opaque bytes.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_model::snapshot::{Mtls, Protocol};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Idle, Stream};

use crate::drain::Registered;
use crate::listener::Reserved;
use crate::outcome::Reason;
use crate::places::Place;
use crate::proxy::relay::{Raced, Turn, race};
use crate::proxy::transport::Transport;
use crate::proxy::{hop, opaque};
use crate::tables::Listener;
use crate::telemetry::event::Direction;
use crate::telemetry::layout::{gauge, listener as counter};
use crate::telemetry::recorder::Series;
use crate::tls;
use crate::worker::Worker;

/// Longest time that a connection which we end is still read, and how many bytes: a client that is still sending would
/// lose our answer if we closed at once (RFC 9112 section 9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(2), 1024 * 1024);

/// How long a client that has only just connected may take to send its request to a worker that drains.
const LAST_REQUEST: Duration = Duration::from_secs(1);

/// A downstream connection.
pub struct Connection<N: Net> {
    /// Whose it is.
    pub worker: Rc<Worker<N>>,
    /// Where it came in.
    pub listener: Place,
    protocol: Protocol,
    /// Its bytes.
    pub transport: Transport<N::Stream>,
    /// Stops everything that is done for it, on both sides.
    pub stop: Stop,
    client: Option<SocketAddr>,
    client_text: OnceCell<Box<str>>,
    peer: Option<tls::Peer>,
    registered: Registered,
    /// What it does in a row.
    pub turn: Turn,
    /// Whether it has been busy.
    served: Cell<bool>,
    _reserved: Option<Reserved>,
}

/// What comes after a busy time of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It waits for the next request.
    Idle,
    /// It is closed at once.
    Close,
    /// It is closed once the client has had a chance to read the answer.
    Linger,
}

/// Runs the busy times of connections in storage that is used again, so that an idle connection holds none.
pub trait Exchanges<N: Net>: Clone + 'static {
    /// One busy time: from the first byte of a request until nothing more has come.
    fn run(&self, connection: Rc<Connection<N>>) -> impl Future<Output = Next>;
}

impl<N: Net> Connection<N> {
    /// A connection of an HTTP listener, ready for requests.
    pub fn new(worker: &Rc<Worker<N>>, listener: Place, transport: Transport<N::Stream>) -> Self {
        let stop = worker.net.stop();
        Self {
            worker: worker.clone(),
            listener,
            protocol: Protocol::Http,
            transport,
            registered: worker.connections.add(stop.clone(), listener.index),
            turn: Turn::default(),
            served: Cell::new(false),
            stop,
            client: None,
            client_text: OnceCell::new(),
            peer: None,
            _reserved: None,
        }
    }

    /// Who the client's certificate says it is.
    pub fn peer_id(&self) -> Option<&SpiffeId> {
        self.peer.as_ref().and_then(|peer| peer.id.as_deref())
    }

    /// Who the client is to the next hop.
    pub fn seen(&self) -> hop::Client {
        hop::Client {
            address: self.client.map(|client| client.ip()),
            is_peer: self.peer_id().is_some(),
            secure: self.transport.plain().is_none(),
        }
    }

    /// The client's address as text, or nothing.
    pub fn client_text(&self) -> &str {
        self.client_text.get_or_init(|| self.client.map(|client| client.to_string()).unwrap_or_default().into())
    }
}

/// Serves a connection from accept to close; `reserved` is its place among the workers. Not an `async fn`, because that
/// would keep its arguments for as long as the connection is open.
pub fn serve<N: Net>(
    worker: Rc<Worker<N>>,
    exchanges: impl Exchanges<N>,
    stream: N::Stream,
    client: Option<SocketAddr>,
    listener: Place,
    reserved: Option<Reserved>,
) -> impl Future<Output = ()> {
    // Counted at once, not when the task first runs: a limit must see all that were accepted in the same turn.
    let open = Open::new(worker, listener);
    let admitted = Box::pin(async move {
        let (open, all) = open?;
        admit(open, all, stream, client, listener, reserved).await
    });
    async move {
        let Some((connection, _open)) = admitted.await else { return };
        match connection.protocol {
            Protocol::Tcp => Box::pin(opaque::serve(connection)).await,
            Protocol::Http => requests(connection, exchanges).await,
        }
    }
}

/// Counts a connection as open, for as long as it lives.
struct Open<N: Net> {
    worker: Rc<Worker<N>>,
    series: Series,
}

impl<N: Net> Open<N> {
    /// With the number of the listener's open connections on all workers. None: the listener is gone.
    fn new(worker: Rc<Worker<N>>, listener: Place) -> Option<(Self, u64)> {
        let series = worker.tables().listener(listener)?.series;
        worker.recorder.gauge_add(gauge::CONNECTIONS, 1);
        worker.recorder.add(series, counter::ACCEPTED, 1);
        let all = worker.recorder.add_and_sum(series, counter::OPEN);
        Some((Self { worker, series }, all))
    }
}

impl<N: Net> Drop for Open<N> {
    fn drop(&mut self) {
        self.worker.recorder.gauge_sub(gauge::CONNECTIONS, 1);
        self.worker.recorder.sub(self.series, counter::OPEN, 1);
        self.worker.recorder.add(self.series, counter::CLOSED, 1);
        if std::thread::panicking() {
            self.worker.recorder.gauge_add(gauge::PANICS, 1);
        }
    }
}

/// Admits a connection within the listener's limit, and finds out who the peer is.
async fn admit<N: Net>(
    open: Open<N>,
    all: u64,
    stream: N::Stream,
    client: Option<SocketAddr>,
    listener: Place,
    reserved: Option<Reserved>,
) -> Option<(Rc<Connection<N>>, Open<N>)> {
    let worker = open.worker.clone();
    let tables = worker.tables();
    let found = tables.listener(listener)?;
    if all > u64::from(found.config.limits.max_connections) {
        worker.recorder.add(open.series, counter::REASON + Reason::ConnectionLimit as usize, 1);
        stream.reset_on_close();
        return None;
    }
    let stop = worker.net.stop();
    let registered = worker.connections.add(stop.clone(), listener.index);
    let (transport, peer) = match found.tls {
        None => (Transport::Plain(stream), None),
        Some(_) => {
            let (transport, peer) = handshake(&worker, found, stream, &stop).await?;
            (transport, Some(peer))
        }
    };
    let protocol = found.config.protocol;
    let client_text = OnceCell::new();
    let connection = Connection {
        worker,
        listener,
        protocol,
        transport,
        stop,
        client,
        client_text,
        peer,
        registered,
        turn: Turn::default(),
        served: Cell::new(false),
        _reserved: reserved,
    };
    Some((Rc::new(connection), open))
}

async fn handshake<N: Net>(
    worker: &Rc<Worker<N>>,
    listener: &Listener,
    stream: N::Stream,
    stop: &Stop,
) -> Option<(Transport<N::Stream>, tls::Peer)> {
    let config = listener.tls.clone()?;
    let name = &listener.config.name;
    let ends = Worker::<N>::ends(&stream);
    stop.set_deadline(Some(worker.net.now() + listener.config.limits.handshake_timeout));
    let accepted = match listener.config.mtls {
        Mtls::Strict => tls::accept(stream, config, stop).await,
        Mtls::Off => Box::pin(tls::accept_anybody(stream, config, stop)).await,
    };
    match accepted {
        Ok((stream, peer)) => {
            worker.recorder.add(listener.series, counter::HANDSHAKES, 1);
            worker.tell_handshake(Direction::Inbound, name, ends, Ok(&peer));
            Some((Transport::Tls(stream), peer))
        }
        Err(refused) => {
            worker.recorder.add(listener.series, counter::REFUSED + refused.number(), 1);
            worker.recorder.add(listener.series, counter::REASON + Reason::TlsRefused as usize, 1);
            worker.tell_handshake(Direction::Inbound, name, ends, Err(&refused));
            None
        }
    }
}

/// Waits for requests and serves them, until one side has enough.
async fn requests<N: Net>(connection: Rc<Connection<N>>, exchanges: impl Exchanges<N>) {
    loop {
        let may_be_there = if connection.begins_to_wait() {
            let raced = race(connection.transport.readable(), connection.stop.stopped()).await;
            connection.has_waited(raced)
        } else {
            MayBeThere::Last
        };
        match may_be_there {
            MayBeThere::Yes => {}
            MayBeThere::Last if Box::pin(connection.has_last_request()).await => {}
            MayBeThere::Last | MayBeThere::No => return,
        }
        let next = exchanges.run(connection.clone()).await;
        connection.served.set(true);
        match next {
            Next::Idle => {}
            Next::Close => return,
            Next::Linger => return Box::pin(linger(&connection)).await,
        }
    }
}

/// Whether a request has come.
enum MayBeThere {
    Yes,
    /// The connection may not wait any more; see [`Connection::has_last_request`].
    Last,
    No,
}

impl<N: Net> Connection<N> {
    /// Whether another request may come on it: the worker does not drain, and the listener still serves it.
    pub fn goes_on(&self) -> bool {
        !self.worker.draining() && self.worker.tables().listener(self.listener).is_some_and(|to| self.belongs(to))
    }

    /// Whether a listener serves this connection. One that has begun to demand TLS, or an identity, has no word of who
    /// calls on a connection from before.
    pub fn belongs(&self, listener: &Listener) -> bool {
        match listener.config.mtls {
            Mtls::Strict => self.peer_id().is_some(),
            Mtls::Off => listener.tls.is_none() || self.transport.plain().is_none(),
        }
    }

    /// Begins to wait for a request; false if it may not wait.
    fn begins_to_wait(&self) -> bool {
        let Some(idle_timeout) = self.idle_timeout() else { return false };
        self.stop.set_deadline(Some(self.worker.net.now() + idle_timeout));
        self.stop.clear();
        self.registered.set_idle(true);
        true
    }

    fn has_waited(&self, raced: Raced<io::Result<()>, StopReason>) -> MayBeThere {
        self.registered.set_idle(false);
        match raced {
            Raced::First(Ok(())) => {
                // What stops an idle connection at the same moment is not meant for a busy one.
                self.stop.clear();
                MayBeThere::Yes
            }
            Raced::First(Err(_)) => MayBeThere::No,
            Raced::Second(StopReason::Drain) => MayBeThere::Last,
            Raced::Second(reason) => {
                self.tell_idle_end(reason);
                MayBeThere::No
            }
        }
    }

    /// Whether a request comes on a connection that may not wait any more. One that has come already is served, and a
    /// client that has only just connected gets a moment for its first one: neither could know.
    async fn has_last_request(&self) -> bool {
        let is_there = self.worker.tables().listener(self.listener).is_some_and(|to| self.belongs(to));
        let may_have_sent = !self.served.get() || matches!(self.transport.check_idle(), Ok(Idle::Data));
        if !is_there || !may_have_sent {
            return false;
        }
        self.stop.set_deadline(Some(self.worker.net.now() + LAST_REQUEST));
        self.stop.clear();
        matches!(race(self.transport.readable(), self.stop.stopped()).await, Raced::First(Ok(())))
    }

    /// How long it may wait for a request; None if it may not: the worker drains or the listener is gone.
    fn idle_timeout(&self) -> Option<Duration> {
        if self.worker.draining() {
            return None;
        }
        let tables = self.worker.tables();
        let listener = tables.listener(self.listener).filter(|listener| self.belongs(listener))?;
        Some(listener.config.limits.idle_timeout)
    }

    fn tell_idle_end(&self, reason: StopReason) {
        let tables = self.worker.tables();
        if let (StopReason::Deadline, Some(listener)) = (reason, tables.listener(self.listener)) {
            self.worker.recorder.add(listener.series, counter::REASON + Reason::IdleTimeout as usize, 1);
        }
    }
}

/// Ends the sending side and reads on for a while, so that the client gets our answer before it sees the end.
async fn linger<N: Net>(connection: &Connection<N>) {
    if connection.transport.shutdown_write().is_err() {
        return;
    }
    connection.stop.clear();
    connection.stop.set_deadline(Some(connection.worker.net.now() + LINGER.0));
    let mut buffer = Buffer::take(Size::Small);
    let mut left = LINGER.1;
    while left > 0 {
        match connection.transport.fill(&mut buffer, &connection.stop).await {
            Ok(0) | Err(_) => return,
            Ok(count) => left = left.saturating_sub(count),
        }
        buffer.clear();
    }
}
