//! The way of one downstream connection: handshake, then requests one after the other, or opaque bytes.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::{Cell, OnceCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_codec::proxy_protocol::Header;
use ringmesh_model::snapshot::{Address, Mtls, Protocol, ProxyProtocol};
use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::socket::PeerProcess;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Bare, Idle, Stream};

use crate::detect::{Spoken, detect};
use crate::drain::{Registered, Registry};
use crate::listener::Reserved;
use crate::listener::proxy_header::{self, Expected, Source};
use crate::listener::sources::{self, Held};
use crate::mux;
use crate::outcome::Reason;
use crate::places::Place;
use crate::proxy::http2::stream::Begun;
use crate::proxy::opaque::{self, Opening};
use crate::proxy::original::Original;
use crate::proxy::preface::canonical;
use crate::proxy::relay::{Raced, Turn, race};
use crate::proxy::transport::Transport;
use crate::proxy::{hop, http2};
use crate::standing::{self, Standing};
use crate::tables::Listener;
use crate::telemetry::event::{Direction, Event, Refused};
use crate::telemetry::layout::{gauge, listener as counter};
use crate::telemetry::recorder::Series;
use crate::tls::{self, Alpn};
use crate::worker::Worker;

/// Longest time that a connection which we end is still read, and how many bytes: a client that is still sending would
/// lose our answer if we closed at once (RFC 9112 section 9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(2), 1024 * 1024);

/// Longest time that a client which is refused for its certificate has to read why. One that reads at all has done so long before;
/// one that does not holds its place among the handshakes for no longer.
const PARTING: Duration = Duration::from_secs(1);

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
    standing: Option<Rc<Standing>>,
    proxied: Option<Box<Header>>,
    original: Option<Box<Original<N::Stream>>>,
    /// The connection that it is a channel of: what is known of the client, is known of that one.
    trunk: Option<Rc<Self>>,
    registered: Registered,
    /// What it does in a row.
    pub turn: Turn,
    /// Whether it has been busy.
    served: Cell<bool>,
    _reserved: Option<Reserved>,
    /// Counts it for its source.
    _held: Option<Box<Held>>,
}

/// What comes after a busy time of a connection.
#[derive(Debug)]
pub enum Next {
    /// It waits for the next request.
    Idle,
    /// It is closed at once.
    Close,
    /// It is closed once the client has had a chance to read the answer.
    Linger,
    /// It speaks HTTP/2, and has begun to: these bytes have come.
    Http2(Buffer),
}

/// Runs the busy times of connections in storage that is used again, so that an idle connection holds none.
pub trait Exchanges<N: Net>: Clone + 'static {
    /// One busy time: from the first byte of a request until nothing more has come. `buffer` has what came already.
    fn run(&self, connection: Rc<Connection<N>>, buffer: Buffer) -> impl Future<Output = Next>;

    /// One request of HTTP/2.
    fn stream(&self, begun: Begun<N>) -> impl Future<Output = ()> + 'static;

    /// Frees the storage that nothing uses.
    fn clear(&self) {}
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
            standing: None,
            proxied: None,
            original: None,
            trunk: None,
            _reserved: None,
            _held: None,
        }
    }

    /// A channel of a connection that carries many, ready for what its listener serves. `channels` are all of them.
    pub fn of_channel(trunk: &Rc<Self>, transport: Transport<N::Stream>, channels: &Rc<Registry>) -> Self {
        let stop = trunk.worker.net.stop();
        let tables = trunk.worker.tables();
        // As if it connected now: its trunk may be older than what the listener says.
        let protocol = tables.listener(trunk.listener).map_or(trunk.protocol, |listener| listener.config.protocol);
        Self {
            protocol,
            registered: channels.add(stop.clone(), trunk.listener.index),
            stop,
            trunk: Some(trunk.clone()),
            ..Self::new(&trunk.worker, trunk.listener, transport)
        }
    }

    /// Whether it is a channel of a trunk whose handshake was for another protocol than its listener has now.
    pub fn is_of_another_time(&self) -> bool {
        self.protocol != self.root().protocol
    }

    /// What has shaken hands: the trunk of a channel.
    #[inline]
    fn root(&self) -> &Self {
        self.trunk.as_deref().unwrap_or(self)
    }

    /// Who the client's certificate says it is.
    pub fn peer_id(&self) -> Option<&SpiffeId> {
        self.root().peer.as_ref().and_then(|peer| peer.id.as_deref())
    }

    /// How who has proved who it is stands.
    #[inline]
    pub fn standing(&self) -> Option<&Rc<Standing>> {
        self.root().standing.as_ref()
    }

    /// Whether new things may begin on it, by what its peer has proved.
    #[inline]
    fn is_proved(&self) -> bool {
        self.standing().is_none_or(|standing| standing.holds())
    }

    /// Where its client wanted to go, if it was intercepted.
    pub fn original(&self) -> Option<&Original<N::Stream>> {
        self.root().original.as_deref()
    }

    /// The client's address, if it has one: that which its proxy names, or else its own.
    pub fn client(&self) -> Option<SocketAddr> {
        self.root().client
    }

    /// What the client's proxy has said of it, if one did.
    pub fn proxied(&self) -> Option<&Header> {
        self.root().proxied.as_deref()
    }

    /// What the client asked for in its handshake, if it asked for anything.
    pub fn asked(&self) -> Option<&tls::Asked> {
        self.root().peer.as_ref().and_then(|peer| peer.asked.as_deref())
    }

    /// Who the client is to the next hop.
    pub fn seen(&self) -> hop::Client {
        hop::Client {
            address: self.client().map(|client| client.ip()),
            is_peer: self.peer_id().is_some(),
            secure: self.transport.plain().is_none(),
        }
    }

    /// The client's address as text, or nothing.
    pub fn client_text(&self) -> &str {
        let root = self.root();
        root.client_text.get_or_init(|| root.client.map(|client| client.to_string()).unwrap_or_default().into())
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
            _ if connection.agreed_on(Alpn::Mesh) || connection.agreed_on(Alpn::MeshHttp) => {
                Box::pin(trunk(connection, exchanges)).await;
            }
            Protocol::Http if !connection.agreed_on(Alpn::Http2) => requests(connection, exchanges).await,
            // Who has agreed on a version of HTTP speaks it.
            Protocol::Detect if connection.agreed_on(Alpn::Http1) || connection.agreed_on(Alpn::Http10) => {
                Box::pin(requests(connection, exchanges)).await;
            }
            Protocol::Detect if connection.agreed_on(Alpn::Http2) => Box::pin(all_http2(connection, exchanges)).await,
            Protocol::Http | Protocol::Http2 => Box::pin(all_http2(connection, exchanges)).await,
            Protocol::Tcp | Protocol::Tls | Protocol::Detect => Box::pin(channel(connection, exchanges)).await,
        }
    }
}

/// Serves what comes in a channel, or on a connection like one, as its listener's protocol has it.
async fn channel<N: Net>(connection: Rc<Connection<N>>, exchanges: impl Exchanges<N>) {
    match connection.protocol {
        Protocol::Tcp | Protocol::Tls => opaque::serve(connection, Opening::declared()).await,
        Protocol::Detect => Box::pin(detected(connection, exchanges)).await,
        // In a channel, what would be HTTP/2 elsewhere is HTTP/1.1.
        Protocol::Http | Protocol::Http2 => requests(connection, exchanges).await,
    }
}

/// Serves a connection that speaks HTTP/2 from its first byte on.
async fn all_http2<N: Net>(connection: Rc<Connection<N>>, exchanges: impl Exchanges<N>) {
    http2(&connection, &exchanges, Buffer::hollow()).await;
}

/// Serves many channels.
async fn trunk<N: Net>(connection: Rc<Connection<N>>, exchanges: impl Exchanges<N>) {
    mux::server::serve(connection, |of_channel| ringmesh_ring::spawn(channel(of_channel, exchanges.clone()))).await;
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
    let proves = found.config.proxy_protocol.is_some() || found.tls.is_some();
    let until = proves.then(|| worker.net.now() + found.config.limits.handshake_timeout);
    let mut client = client.map(canonical);
    let mut client_text = OnceCell::new();
    if matches!(found.config.bind, Address::Unix(_)) {
        client_text = process_text(stream.peer_process()).into();
    }
    let mut proxied = None;
    if let Some(proxies) = &found.config.proxy_protocol {
        stop.set_deadline(until);
        let remote = (client, client_text.get().map(AsRef::as_ref));
        let header = Box::pin(take_header(&worker, found, proxies, &stream, remote, &stop)).await?;
        match header.as_deref().and_then(proxy_header::source) {
            Some(Source::Ip(source)) => {
                client = Some(canonical(source));
                client_text = OnceCell::new();
            }
            Some(Source::Unix(text)) => {
                client = None;
                client_text = text.into();
            }
            None => {}
        }
        proxied = header;
        stop.set_deadline(None);
        if stop.reason() == Some(StopReason::Deadline) {
            // It was whole just in time. What follows has deadlines of its own.
            stop.clear();
        }
    }
    let held = match within_source_limit(found, client) {
        Ok(held) => held,
        Err(TooMany) => {
            let detail = "its source has as many connections as `max_connections_per_source` allows";
            refuse(
                &worker,
                found,
                &stream,
                (client, client_text.get().map(AsRef::as_ref)),
                Reason::SourceLimit,
                detail,
            );
            return None;
        }
    };
    let original = Original::of(&tables, found, &stream, client);
    let (transport, peer) = match found.tls {
        None => (Transport::Plain(stream), None),
        Some(_) => {
            stop.set_deadline(until);
            let max = found.config.edge.max_handshakes;
            let under_way = max.map(|max| found.handshakes.begin(max));
            if matches!(under_way, Some(None)) {
                let detail = "as many handshakes are under way as `max_handshakes` allows";
                let remote = (client, client_text.get().map(AsRef::as_ref));
                refuse(&worker, found, &stream, remote, Reason::HandshakeLimit, detail);
                return None;
            }
            let (transport, peer) = handshake(&worker, found, stream, client, &stop).await?;
            drop(under_way);
            (transport, Some(peer))
        }
    };
    let standing = peer.as_ref().and_then(|peer| standing::begin(&worker, peer));
    registered.set_standing(standing.as_ref());
    let protocol = found.config.protocol;
    let connection = Connection {
        worker,
        listener,
        protocol,
        transport,
        stop,
        client,
        client_text,
        peer,
        standing,
        proxied,
        original,
        trunk: None,
        registered,
        turn: Turn::default(),
        served: Cell::new(false),
        _reserved: reserved,
        _held: held,
    };
    Some((Rc::new(connection), open))
}

/// Its source has as many connections as it may.
struct TooMany;

/// Counts a connection for its source, where that is limited. Who has no address, as on a Unix socket, is of no source.
fn within_source_limit(listener: &Listener, client: Option<SocketAddr>) -> Result<Option<Box<Held>>, TooMany> {
    let (Some(sources), Some(max)) = (&listener.sources, listener.config.edge.max_connections_per_source) else {
        return Ok(None);
    };
    let Some(client) = client else { return Ok(None) };
    sources.admit(sources::Source::of(client.ip()), max).map(Some).ok_or(TooMany)
}

/// Resets a connection whose client is not known, and tells why.
fn refuse<N: Net>(
    worker: &Worker<N>,
    listener: &Listener,
    stream: &N::Stream,
    (client, client_text): (Option<SocketAddr>, Option<&str>),
    reason: Reason,
    detail: &str,
) {
    worker.recorder.add(listener.series, counter::REASON + reason as usize, 1);
    let address = client.map(|client| client.to_string());
    let remote = address.as_deref().or(client_text).unwrap_or_default();
    let told = Refused { listener: &listener.config.name, remote, reason: reason as u8, detail };
    worker.tell(&Event::Refused(told));
    stream.reset_on_close();
}

/// Takes the PROXY header off a connection. Within, None: its client is no proxy, and is served as it is.
async fn take_header<N: Net>(
    worker: &Worker<N>,
    listener: &Listener,
    proxies: &ProxyProtocol,
    stream: &N::Stream,
    (client, client_text): (Option<SocketAddr>, Option<&str>),
    stop: &Stop,
) -> Option<Option<Box<Header>>> {
    let refuse = |reason, detail: &str| refuse(worker, listener, stream, (client, client_text), reason, detail);
    match proxy_header::expected(proxies, client) {
        Expected::None => Some(None),
        Expected::Nobody => {
            refuse(Reason::NotAProxy, "it is in none of the networks that `proxy_protocol` names");
            None
        }
        Expected::Header => match proxy_header::take(stream, stop).await {
            Ok(header) => Some(Some(Box::new(header))),
            // Somebody looked whether the port is open.
            Err(proxy_header::Refused::Closed) => {
                worker.recorder.add(listener.series, counter::REASON + Reason::ClientAborted as usize, 1);
                None
            }
            Err(refused) => {
                refuse(refused.reason(), &refused.to_string());
                None
            }
        },
    }
}

/// The client of a Unix socket as text: the process that has connected.
fn process_text(process: Option<PeerProcess>) -> Box<str> {
    let Some(PeerProcess { pid, uid }) = process else { return "unix".into() };
    match pid {
        Some(pid) => format!("unix:pid={pid},uid={uid}").into(),
        None => format!("unix:uid={uid}").into(),
    }
}

/// Proves who the client is. The deadline is the stop's.
async fn handshake<N: Net>(
    worker: &Rc<Worker<N>>,
    listener: &Listener,
    stream: N::Stream,
    client: Option<SocketAddr>,
    stop: &Stop,
) -> Option<(Transport<N::Stream>, tls::Peer)> {
    let config = listener.tls.clone()?;
    let name = &listener.config.name;
    let ends = Worker::<N>::ends(&stream).of_client(client);
    let (mtls, mut parting) = (listener.config.mtls, None);
    let accepted = if matches!(listener.config.protocol, Protocol::Detect | Protocol::Tcp) {
        Box::pin(tls::accept_any_protocol(stream, config, mtls, stop, &mut parting)).await
    } else {
        tls::accept_as(stream, config, mtls, stop, &mut parting).await
    };
    match accepted {
        Ok((stream, peer)) => {
            worker.recorder.add(listener.series, counter::HANDSHAKES, 1);
            worker.tell_handshake(Direction::Inbound, name, ends, Ok(&peer));
            Some((Transport::Tls(stream), peer))
        }
        Err(refused) => {
            worker.recorder.add(listener.series, counter::REFUSED + refused.number(), 1);
            let reason = match refused {
                tls::Refused::PlainHttp => Reason::PlainToTlsPort,
                _ => Reason::TlsRefused,
            };
            worker.recorder.add(listener.series, counter::REASON + reason as usize, 1);
            worker.tell_handshake(Direction::Inbound, name, ends, Err(&refused));
            if let Some(parting) = parting {
                stop.set_deadline(Some(worker.net.now() + PARTING));
                Box::pin(parting.linger(stop)).await;
            }
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
        let next = exchanges.run(connection.clone(), Buffer::take(Size::Small)).await;
        connection.served.set(true);
        if !matches!(next, Next::Idle) {
            return end(&connection, &exchanges, next).await;
        }
    }
}

/// Serves many requests at a time. `arrived`: what has come of them.
async fn http2<N: Net>(connection: &Rc<Connection<N>>, exchanges: &impl Exchanges<N>, arrived: Buffer) {
    let exchanges = exchanges.clone();
    let start = move |begun| ringmesh_ring::spawn(exchanges.stream(begun));
    if let http2::End::Linger = Box::pin(http2::serve(connection.clone(), Box::new(start), arrived)).await {
        Box::pin(linger(connection)).await;
    }
}

/// Ends a connection after its last busy time, or goes on in HTTP/2.
async fn end<N: Net>(connection: &Rc<Connection<N>>, exchanges: &impl Exchanges<N>, next: Next) {
    match next {
        Next::Idle | Next::Close => {}
        Next::Linger => Box::pin(linger(connection)).await,
        Next::Http2(arrived) => http2(connection, exchanges, arrived).await,
    }
}

/// Finds out what a client speaks, and serves that.
async fn detected<N: Net>(connection: Rc<Connection<N>>, exchanges: impl Exchanges<N>) {
    let tables = connection.worker.tables();
    let Some(listener) = tables.listener(connection.listener) else { return };
    let begun = connection.worker.net.now();
    connection.stop.set_deadline(Some(begun + listener.config.limits.detect_timeout));
    let mut bytes = Buffer::hollow();
    let spoken = match detect(&connection.transport, &connection.stop, &mut bytes).await {
        Ok(spoken) => spoken,
        Err(reason) => {
            connection.worker.recorder.add(listener.series, counter::REASON + reason as usize, 1);
            return;
        }
    };
    drop(tables);
    if spoken != Spoken::Http {
        let opening = Opening { spoken: Some(spoken), bytes, since: Some(begun) };
        return Box::pin(opaque::serve(connection, opening)).await;
    }
    let next = exchanges.run(connection.clone(), bytes).await;
    connection.served.set(true);
    match next {
        Next::Idle => requests(connection, exchanges).await,
        next => end(&connection, &exchanges, next).await,
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
    /// Whether that was agreed on in the handshake.
    fn agreed_on(&self, protocol: Alpn) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.alpn == Some(protocol))
    }

    /// Whether HTTP/2 may begin on it without an agreement: by prior knowledge, as its first bytes (RFC 9113 section 3.3).
    pub fn may_begin_http2(&self) -> bool {
        !self.served.get() && self.root().peer.as_ref().is_none_or(|peer| peer.alpn.is_none())
    }

    /// Whether another request may come on it: the worker does not drain, the listener still serves it, and what its client has
    /// proved holds.
    pub fn goes_on(&self) -> bool {
        !self.worker.draining()
            && self.is_proved()
            && self.worker.tables().listener(self.listener).is_some_and(|to| self.belongs(to))
    }

    /// Whether a listener serves this connection. One that has begun to demand TLS, or an identity, has no word of who
    /// calls on a connection from before; and what such a word rests on does not last for ever.
    pub fn belongs(&self, listener: &Listener) -> bool {
        if self.standing().is_some_and(|standing| standing.is_over()) {
            return false;
        }
        match listener.config.mtls {
            // It speaks something else now, for which it has other routes and policies.
            _ if listener.config.protocol != self.protocol => false,
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

    /// How long it may wait for a request; None if it may not: the worker drains, the listener is gone, or what its client has
    /// proved holds no more.
    fn idle_timeout(&self) -> Option<Duration> {
        if self.worker.draining() || !self.is_proved() {
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
pub async fn linger<N: Net>(connection: &Connection<N>) {
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
