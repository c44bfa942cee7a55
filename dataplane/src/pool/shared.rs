//! HTTP/2 connections to endpoints: each serves many requests at a time, a few a worker and endpoint are enough.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use h2::client::{self, ResponseFuture, SendRequest};
use h2::{PingPong, SendStream};
use http::Request;
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::duplex::{Duplex, Pipe, Watcher, pump};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Error;

use super::{InFlight, State};
use crate::outcome::Reason;
use crate::proxy::exchange::Lost;
use crate::proxy::exchange::data::Data;
use crate::proxy::exchange::head::Hop;
use crate::proxy::http2::calm::Calm;
use crate::proxy::http2::keeper::{self, Keeper, Seen, Verdict};
use crate::proxy::http2::limits;
use crate::proxy::transport::Transport;
use crate::standing::{self, Standing};
use crate::tables::Service;
use crate::worker::Worker;

type Library = client::Connection<Duplex, Data>;

/// Most connections that a worker keeps to one endpoint. More than one only where the endpoint allows few streams.
const MAX_CONNECTIONS: usize = 8;

/// An HTTP/2 connection to an endpoint.
pub struct Connection {
    /// As in [`super::Kept`].
    key: u64,
    hop: Hop,
    sender: RefCell<SendRequest<Data>>,
    /// Requests under way.
    streams: Cell<u32>,
    /// As many as the endpoint allows, when the library has had its turn last.
    room: Cell<usize>,
    /// Whether it takes no further request.
    closed: Cell<bool>,
    /// Requests since it was opened.
    served: Cell<u64>,
    /// Wakes what looks after it.
    clock: Stop,
    calm: RefCell<Calm>,
    /// The endpoint may have sent an interim head.
    interim: Cell<bool>,
    /// The endpoint sent more frames that do nothing for anybody than it may.
    flooded: Cell<bool>,
    /// A stream that has ended. Dropping it wakes the connection, which the next request does anyhow.
    resting: Cell<Option<ResponseFuture>>,
    /// Whether the library knows the endpoint's settings.
    settled: Cell<bool>,
    /// Who waits for them.
    unsettled: RefCell<Vec<Waker>>,
    /// The endpoint has refused the handshake after our side of it was over, and has said nothing else.
    refused: Cell<bool>,
    /// We have ended it although requests were under way: the endpoint may not have it any more.
    cut: Cell<bool>,
    /// How the endpoint stands, if it has proved who it is.
    standing: Option<Rc<Standing>>,
}

/// What a worker has of them to one endpoint.
#[derive(Default)]
pub(super) struct Shared {
    open: RefCell<Vec<Rc<Connection>>>,
}

impl Shared {
    /// The connection with the fewest requests, if there is one with room, or no more may be made.
    fn pick(&self, key: u64) -> Option<Rc<Connection>> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.is_closed());
        let fitting = open.iter().filter(|connection| connection.key == key);
        let best = fitting.min_by_key(|connection| connection.streams.get())?;
        let full = best.streams.get() as usize >= best.room.get().max(1);
        (!full || open.len() >= MAX_CONNECTIONS).then(|| best.clone())
    }

    /// Connections without a request.
    pub(super) fn idle(&self) -> usize {
        self.open.borrow().iter().filter(|connection| connection.streams.get() == 0).count()
    }

    /// Takes no further request on any of them; each ends with its last one.
    pub(super) fn close(&self) {
        self.open.take().iter().for_each(|connection| connection.close());
    }
}

impl Connection {
    /// Whether it takes no further request. Nor does it once the endpoint has proved nothing that holds.
    fn is_closed(&self) -> bool {
        if self.standing.as_ref().is_some_and(|standing| !standing.holds()) {
            self.closed.set(true);
        }
        self.closed.get()
    }

    fn close(&self) {
        self.closed.set(true);
        self.clock.trigger(StopReason::Drain);
    }

    /// The library has seen all that has come.
    fn has_looked(&self) {
        self.room.set(self.sender.borrow().current_max_send_streams());
        if !self.settled.get() && self.calm.borrow().has_settings() {
            self.settled.set(true);
            self.wake_unsettled();
        }
    }

    fn wake_unsettled(&self) {
        self.unsettled.take().into_iter().for_each(Waker::wake);
    }
}

/// A place for one request on a shared connection.
pub struct Lease<N: Net> {
    connection: Rc<Connection>,
    /// Whether it served a request before.
    pub reused: bool,
    _in_flight: InFlight<N::Stream>,
}

impl<N: Net> Lease<N> {
    fn new(connection: Rc<Connection>, in_flight: InFlight<N::Stream>) -> Self {
        connection.streams.set(connection.streams.get() + 1);
        let served = connection.served.get();
        connection.served.set(served + 1);
        let reused = served > 0;
        Self { connection, reused, _in_flight: in_flight }
    }

    /// How the endpoint is reached.
    pub fn hop(&self) -> Hop {
        self.connection.hop
    }

    /// Begins a request. `ends`: it has no body.
    ///
    /// # Errors
    /// [`Lost::Unprocessed`] if the connection takes no more requests, [`Lost::Broken`] if it is none.
    pub fn send(&self, request: Request<()>, ends: bool) -> Result<(ResponseFuture, SendStream<Data>), Lost> {
        self.sends(0);
        let mut sender = self.connection.sender.borrow_mut();
        let ready = sender.poll_ready(&mut Context::from_waker(Waker::noop()));
        let sent = match ready {
            Poll::Ready(Ok(())) => sender.send_request(request, ends),
            // The library holds one request back at a time for each of its handles.
            Poll::Pending => sender.clone().send_request(request, ends),
            Poll::Ready(Err(error)) => Err(error),
        };
        drop(self.connection.resting.take());
        sent.map_err(|error| {
            if error.is_io() || error.is_go_away() || error.is_reset() {
                self.connection.close();
                return Lost::Unprocessed;
            }
            // The library refuses what is no request in HTTP/2.
            Lost::Broken
        })
    }

    /// Keeps the only stream, which has ended on both sides, until there is another one.
    pub fn rest(&self, stream: ResponseFuture) {
        if self.connection.streams.get() == 1 {
            self.connection.resting.set(Some(stream));
        }
    }

    /// Whether the endpoint takes tunnels of other protocols (RFC 8441 section 3), which its settings say: they are waited for.
    ///
    /// # Errors
    /// The own stop, or [`Lost::Unprocessed`] if the connection ends before.
    pub async fn takes_protocols(&self, stop: &Stop) -> Result<bool, Lost> {
        let connection = &self.connection;
        poll_fn(|context| {
            let mut sender = connection.sender.borrow_mut();
            if connection.settled.get() {
                return Poll::Ready(Ok(sender.is_extended_connect_protocol_enabled()));
            }
            // One that takes no further request may live on for this one.
            if matches!(sender.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Err(_))) {
                return Poll::Ready(Err(Lost::Unprocessed));
            }
            let mut waiting = connection.unsettled.borrow_mut();
            if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            stop.poll_stopped(context).map(|reason| Err(Lost::Stopped(reason)))
        })
        .await
    }

    /// The endpoint gets something that it has to acknowledge.
    pub fn sends(&self, bytes: usize) {
        self.connection.calm.borrow_mut().earn_for(bytes);
    }

    /// Whether the endpoint may have sent an interim head to anybody on the connection.
    pub fn may_be_interim(&self) -> &Cell<bool> {
        &self.connection.interim
    }

    /// Whether the connection was ended because the endpoint flooded it.
    pub fn flooded(&self) -> bool {
        self.connection.flooded.get()
    }

    /// Whether the endpoint has refused our certificate, or anything else of the handshake, instead of taking requests.
    pub fn refused(&self) -> bool {
        self.connection.refused.get()
    }

    /// Whether we have ended the connection, and what was under way with it.
    pub fn was_cut(&self) -> bool {
        self.connection.cut.get()
    }

    /// Takes no further request on the connection if it has ended, or said that it will.
    pub fn close_if_over(&self) {
        let ready = self.connection.sender.borrow_mut().poll_ready(&mut Context::from_waker(Waker::noop()));
        if matches!(ready, Poll::Ready(Err(_))) {
            self.connection.close();
        }
    }
}

impl<N: Net> Drop for Lease<N> {
    fn drop(&mut self) {
        let connection = &self.connection;
        let left = connection.streams.get() - 1;
        connection.streams.set(left);
        if left == 0 && connection.is_closed() {
            connection.clock.trigger(StopReason::Drain);
        }
    }
}

/// A place on a connection that is open.
///
/// # Errors
/// If there is none.
pub(crate) fn lease<N: Net>(state: Rc<State<N::Stream>>, service: &Service) -> Result<Lease<N>, Rc<State<N::Stream>>> {
    match state.shared.pick(service.pool_key) {
        Some(connection) => Ok(Lease::new(connection, InFlight::begin(state))),
        None => Err(state),
    }
}

/// A place on a connection that was just made.
///
/// # Errors
/// If it ended at once.
pub(crate) async fn lease_of<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    state: Rc<State<N::Stream>>,
    transport: Transport<N::Stream>,
    standing: Option<Rc<Standing>>,
) -> Result<Lease<N>, Reason> {
    match begin(worker, service, &state, transport, standing).await {
        Some(connection) => Ok(Lease::new(connection, InFlight::begin(state))),
        None => Err(Reason::UpstreamReset),
    }
}

/// Puts HTTP/2 on a connection that was just made, and a task beside it that moves its bytes.
async fn begin<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    state: &Rc<State<N::Stream>>,
    transport: Transport<N::Stream>,
    standing: Option<Rc<Standing>>,
) -> Option<Rc<Connection>> {
    let pipe = Pipe::new(Buffer::hollow());
    let mut builder = client::Builder::new();
    builder
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_header_list_size(limits::MAX_RESPONSE_HEADER_BYTES * limits::READ_HEAD_FACTOR as u32)
        .max_send_buffer_size(limits::MAX_SEND_BUFFER_BYTES)
        .enable_push(false);
    // Nothing is waited for: the preface is written into the pipe.
    let (sender, mut library) = builder.handshake::<_, Data>(pipe.duplex()).await.ok()?;
    let hop = if transport.plain().is_some() { Hop::Plain } else { Hop::Tls };
    let connection = Rc::new(Connection {
        key: service.pool_key,
        hop,
        room: Cell::new(sender.current_max_send_streams()),
        sender: RefCell::new(sender),
        streams: Cell::new(0),
        closed: Cell::new(worker.draining()),
        served: Cell::new(0),
        clock: worker.net.stop(),
        calm: RefCell::new(Calm::of_endpoint(worker.net.now())),
        interim: Cell::new(false),
        flooded: Cell::new(false),
        resting: Cell::new(None),
        settled: Cell::new(false),
        unsettled: RefCell::default(),
        refused: Cell::new(false),
        cut: Cell::new(false),
        standing,
    });
    let stop = worker.net.stop();
    let watched = connection.standing.as_ref().map(|standing| {
        let gently = standing::watch(worker, standing, connection.clock.clone());
        gently.set_idle(true);
        (gently, standing::watch(worker, standing, stop.clone()))
    });
    state.shared.open.borrow_mut().push(connection.clone());
    let idle_timeout = service.config.idle_timeout;
    let net = worker.net.clone();
    let kept = connection.clone();
    ringmesh_ring::spawn(async move {
        let _watched = watched;
        let heard =
            Heard { net: &net, connection: &kept, stop: &stop, since: Cell::new(false), ever: Cell::new(false) };
        let keeper = Keeper::new(idle_timeout);
        kept.clock.set_deadline(Some(net.now() + keeper.tick()));
        let mut care = Care { net: &net, connection: &kept, heard: &heard, ping: None, keeper, stop: &stop };
        let looked_after = async {
            let ended = poll_fn(|context| {
                // First, since it may have something to send; and what was to be sent last is.
                let over = care.poll(&mut library, context);
                match std::pin::Pin::new(&mut library).poll(context) {
                    Poll::Pending => {
                        kept.has_looked();
                        over.map(Ok)
                    }
                    ended => ended,
                }
            })
            .await;
            // What was written last may wait for an endpoint that takes nothing, and nobody looks after it any more.
            stop.set_deadline(Some(net.now() + idle_timeout));
            ended
        };
        match pump(&transport, &pipe, looked_after, &stop, &heard).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(target: "upstream", "an HTTP/2 connection broke: {error}"),
            Err(error) => {
                heard.failed(&error);
                tracing::debug!(target: "upstream", "an HTTP/2 connection broke: {error}");
            }
        }
        kept.closed.set(true);
        kept.wake_unsettled();
    });
    Some(connection)
}

/// Whether anything has come since the last look.
struct Heard<'a, N> {
    net: &'a N,
    connection: &'a Connection,
    /// Ends the connection.
    stop: &'a Stop,
    since: Cell<bool>,
    /// Whether anything has come at all.
    ever: Cell<bool>,
}

impl<N: Net> Watcher for Heard<'_, N> {
    fn received(&self, bytes: &[u8]) {
        self.since.set(true);
        self.ever.set(true);
        let mut calm = self.connection.calm.borrow_mut();
        let is_calm = calm.look(bytes, || self.net.now());
        self.connection.interim.set(calm.may_be_interim());
        drop(calm);
        if !is_calm {
            self.connection.flooded.set(true);
            self.connection.closed.set(true);
            self.stop.trigger(StopReason::Abort);
        }
    }

    fn failed(&self, error: &Error) {
        let connection = self.connection;
        match error {
            Error::Io(error) if !self.ever.get() && Reason::of_upstream(error) == Reason::UpstreamTls => {
                connection.refused.set(true);
                connection.closed.set(true);
            }
            Error::Stopped(StopReason::Drain) => connection.cut.set(true),
            Error::Io(_) | Error::Stopped(_) => {}
        }
    }

    fn rests(&self) -> bool {
        self.connection.streams.get() == 0
    }
}

/// Looks after one connection: closes it when it was unused for long, and asks an endpoint that is silent while requests wait
/// whether it is still there.
struct Care<'a, N: Net> {
    net: &'a N,
    connection: &'a Connection,
    heard: &'a Heard<'a, N>,
    /// Taken when it is first needed: from then on the library looks at it at each turn.
    ping: Option<PingPong>,
    keeper: Keeper,
    stop: &'a Stop,
}

impl<N: Net> Care<'_, N> {
    /// Ready when the connection is to be closed.
    fn poll(&mut self, library: &mut Library, context: &mut Context<'_>) -> Poll<()> {
        let clock = &self.connection.clock;
        while let Poll::Ready(reason) = clock.poll_stopped(context) {
            clock.clear();
            let open = self.connection.streams.get();
            if open == 0 && self.connection.is_closed() {
                return Poll::Ready(());
            }
            if reason != StopReason::Deadline {
                continue;
            }
            let heard = self.heard.since.replace(false);
            let seen = Seen { open, served: self.connection.served.get(), heard, takes: false };
            match self.keeper.look(seen) {
                Verdict::Stay => {}
                Verdict::Ask => keeper::ask(&mut self.ping, || library.ping_pong()),
                Verdict::Dead => {
                    self.connection.closed.set(true);
                    self.stop.trigger(StopReason::Deadline);
                }
                Verdict::Unused => {
                    self.connection.closed.set(true);
                    return Poll::Ready(());
                }
            }
            clock.set_deadline(Some(self.net.now() + self.keeper.tick()));
        }
        Poll::Pending
    }
}
