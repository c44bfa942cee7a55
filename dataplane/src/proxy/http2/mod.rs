//! HTTP/2 with clients: one connection, many requests at a time, each a task of its own (RFC 9113).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod calm;
pub mod head;
pub mod keeper;
pub mod limits;
pub mod stream;
pub mod tunnel;

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use h2::{PingPong, Reason as Code, server};
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::duplex::{Duplex, Pipe, Sending, Watcher, pump};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Stream as _;

use crate::drain::{Registered, Registry};
use crate::outcome::Reason;
use crate::proxy::connection::Connection;
use crate::proxy::exchange::data::Data;
use crate::proxy::exchange::http2::Unasked;
use crate::proxy::pace::Pace;
use crate::proxy::request::{self, Account};
use crate::telemetry::layout::listener as counter;
use crate::telemetry::recorder::Series;
use calm::Calm;
use keeper::{Keeper, Seen, Verdict};

/// How long a client that was told to leave may take to do so.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// At once.
    Close,
    /// Once the client has had a chance to read why.
    Linger,
}

/// One connection with its streams.
pub struct Session<N: Net> {
    /// The connection below.
    pub connection: Rc<Connection<N>>,
    /// What the client may be given without asking whether it takes it.
    pub unasked: Unasked,
    /// The streams that are being served.
    streams: Rc<Registry>,
    /// Streams since the beginning.
    served: Cell<u64>,
    /// Streams since the beginning that the library has refused by itself.
    refused: Cell<u64>,
    calm: RefCell<Calm>,
    flooded: Cell<bool>,
    heard: Cell<bool>,
    /// A stream may have been reset.
    reset: Cell<bool>,
    /// A head has begun and not ended, and has a deadline.
    in_head: Cell<bool>,
    /// Until when that head may take.
    head_by: Cell<Instant>,
    /// Until when the client may take to leave: it was said goodbye to because it asked for nothing.
    gone_by: Cell<Instant>,
    /// The client took what there was for it too slowly.
    slow: Cell<bool>,
    /// When to look after it again.
    clock: Stop,
    header_timeout: Duration,
    /// Counts for its listener.
    series: Series,
    start: Start<N>,
}

type Library = server::Connection<Duplex, Data>;

/// Starts the task of a stream.
type Start<N> = Box<dyn Fn(stream::Begun<N>)>;

/// Serves a connection to its end. `start` begins to serve a stream; `arrived`: its first bytes, if some were read.
pub async fn serve<N: Net>(connection: Rc<Connection<N>>, start: Start<N>, arrived: Buffer) -> End {
    let worker = connection.worker.clone();
    let tables = worker.tables();
    let Some(listener) = tables.listener(connection.listener) else { return End::Close };
    let (limits, series) = (listener.config.limits.clone(), listener.series);
    let takes_protocols = !listener.config.hop.upgrade.is_empty();
    let belongs = connection.belongs(listener);
    drop(tables);
    // What ends idle connections tells this one to end gently; what ends all of them ends it.
    let gentle = worker.net.stop();
    let registered = worker.connections.add(gentle.clone(), connection.listener.index);
    registered.set_idle(true);
    registered.set_standing(connection.standing());
    if worker.draining() {
        gentle.trigger(StopReason::Drain);
    }
    if !belongs {
        gentle.trigger(StopReason::Drain);
    }
    let session = Rc::new(Session {
        unasked: Unasked::default(),
        streams: Rc::default(),
        served: Cell::new(0),
        refused: Cell::new(0),
        calm: RefCell::new(Calm::of_client(worker.net.now())),
        flooded: Cell::new(false),
        heard: Cell::new(false),
        reset: Cell::new(false),
        in_head: Cell::new(false),
        head_by: Cell::new(Instant::FAR_FUTURE),
        gone_by: Cell::new(Instant::FAR_FUTURE),
        slow: Cell::new(false),
        clock: worker.net.stop(),
        header_timeout: limits.header_timeout,
        series,
        start,
        connection: connection.clone(),
    });
    session.received(arrived.filled());
    connection.stop.clear();
    session.head_by.set(worker.net.now() + limits.header_timeout);
    session.wind();
    let pipe = Pipe::new(arrived);
    let began = Cell::new(false);
    let library = async {
        let mut builder = builder(&limits);
        if takes_protocols {
            builder.enable_connect_protocol();
        }
        let mut library = builder.handshake::<_, Data>(pipe.duplex()).await?;
        began.set(true);
        if !session.in_head.get() {
            session.head_by.set(Instant::FAR_FUTURE);
            session.wind();
        }
        let keeper = Keeper::new(limits.idle_timeout);
        session.clock.set_deadline(Some(worker.net.now() + keeper.tick()));
        let (registered, ping) = (Some(registered), None);
        let taking = Taking { pace: Pace::new(limits.min_transfer_rate), idle: limits.idle_timeout, current: None };
        let pipe = &*pipe;
        let mut care = Care { session: &session, pipe, gentle: &gentle, registered, keeper, taking, ping };
        let ended = poll_fn(|context| care.poll(&mut library, context)).await;
        session.end_streams();
        // What was written last may wait for a client that takes nothing, and nobody looks after it any more.
        session.gone_by.set(worker.net.now() + limits.idle_timeout.max(FAREWELL));
        session.wind();
        ended
    };
    let ended = pump(&connection.transport, &pipe, library, &connection.stop, &*session).await;
    let stopped = connection.stop.reason();
    session.end_streams();
    let error = match ended {
        Ok(Err(error)) if !error.is_io() => Some(error),
        _ => None,
    };
    let is_flood = session.flooded.get()
        || error.as_ref().is_some_and(|error| error.is_library() && error.reason() == Some(Code::ENHANCE_YOUR_CALM));
    let reason = match &error {
        _ if session.slow.get() => Some(Reason::ClientReadsSlowly),
        _ if is_flood => Some(Reason::Flood),
        Some(error) if error.is_library() => Some(Reason::Http2Error),
        _ if stopped == Some(StopReason::Deadline) && (!began.get() || session.in_head.get()) => {
            Some(Reason::ClientTimeout)
        }
        _ => None,
    };
    let Some(reason) = reason else { return End::Close };
    worker.recorder.add(series, counter::REASON + reason as usize, 1);
    if let (Reason::Http2Error, false, Some(listener)) =
        (reason, began.get(), worker.tables().listener(connection.listener))
    {
        worker.tell_other_protocol(listener, connection.client_text());
    }
    let why = error.map(|error| error.to_string()).unwrap_or_default();
    tracing::debug!(target: "proxy", client = connection.client_text(), reason = reason.label(), "HTTP/2 ended: {why}");
    if reason == Reason::ClientReadsSlowly {
        // The kernel would go on holding what it does not take.
        connection.transport.reset_on_close();
    }
    if matches!(reason, Reason::ClientTimeout | Reason::ClientReadsSlowly) { End::Close } else { End::Linger }
}

fn builder(limits: &ringmesh_model::snapshot::ListenerLimits) -> server::Builder {
    let mut builder = server::Builder::new();
    // As HTTP/2 counts it, each field is 32 bytes larger (RFC 9113 section 6.5.2).
    let allowed = limits.max_header_bytes + 32 * limits.max_headers + 1024;
    let header = allowed * limits::READ_HEAD_FACTOR;
    builder
        .initial_window_size(limits::STREAM_WINDOW_BYTES)
        .initial_connection_window_size(limits::CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(header).unwrap_or(u32::MAX))
        .max_send_buffer_size(limits::MAX_SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(limits::MAX_RESET_STREAMS)
        .max_pending_accept_reset_streams(limits::MAX_RESET_STREAMS)
        .max_local_error_reset_streams(Some(limits::MAX_BROKEN_STREAMS));
    builder
}

impl<N: Net> Session<N> {
    /// The client gets something that it has to acknowledge.
    pub fn sends(&self, bytes: usize) {
        self.calm.borrow_mut().earn_for(bytes);
    }

    /// Whether a stream without a body may ever have been reset, by the client or for what it has sent. The streams are woken when
    /// that is so first, and are to look from then on whether it was theirs: with many clients it never is, and each look takes
    /// the library's lock. What waits for nothing but a stream's stop is woken by the connection's end too.
    pub fn may_have_reset(&self) -> bool {
        self.reset.get()
    }

    /// Has the connection end at the first moment that it may not outlast.
    fn wind(&self) {
        self.connection.stop.set_deadline(Some(self.head_by.get().min(self.gone_by.get())));
    }

    /// Nobody is left to be answered.
    fn end_streams(&self) {
        let is_drain = self.connection.stop.reason() == Some(StopReason::Drain);
        self.streams.end_all(if is_drain { StopReason::Drain } else { StopReason::Abort });
    }

    /// Whether there is no request that has come and not begun. There may be none too where trailers have come.
    fn has_begun_all(&self) -> bool {
        self.served.get() == self.calm.borrow().heads()
    }

    /// Streams that the library, which has looked at all that came, has neither refused nor given out as far as anybody knows.
    fn missing(&self) -> u64 {
        let known = self.served.get() + self.refused.get();
        self.calm.borrow().opened().and_then(|opened| opened.checked_sub(known)).unwrap_or(0)
    }

    /// Counts streams that the library has refused.
    #[cold]
    fn tell_refused(&self, streams: u64) {
        let (connection, account) = (&self.connection, Account::default());
        let tables = connection.worker.tables();
        let Some(listener) = tables.listener(connection.listener) else { return };
        for _ in 0..streams {
            request::refused(&connection.worker, connection, &tables, listener, &account, Reason::StreamRefused);
        }
    }

    fn begin(self: &Rc<Self>, request: stream::Request, respond: stream::Respond) {
        self.served.set(self.served.get() + 1);
        if self.gone_by.get() < Instant::FAR_FUTURE {
            // It could not know that it was said goodbye to.
            self.gone_by.set(Instant::FAR_FUTURE);
            self.wind();
        }
        let stop = self.connection.worker.take_stop();
        let registered = self.streams.add(stop.clone(), 0);
        (self.start)(stream::Begun { session: self.clone(), stop, registered, request, respond });
    }
}

impl<N: Net> Watcher for Session<N> {
    fn received(&self, bytes: &[u8]) {
        self.heard.set(true);
        let net = &self.connection.worker.net;
        let mut calm = self.calm.borrow_mut();
        if !calm.look(bytes, || net.now()) {
            self.flooded.set(true);
        }
        if calm.is_in_head() != self.in_head.get() {
            self.in_head.set(calm.is_in_head());
            self.head_by.set(if calm.is_in_head() { net.now() + self.header_timeout } else { Instant::FAR_FUTURE });
            self.wind();
        }
        if calm.may_have_reset() && !self.reset.replace(true) {
            self.streams.wake_all();
        }
    }

    fn rests(&self) -> bool {
        self.streams.count() == 0
    }
}

/// Looks after a connection: takes its streams, and ends it when it is time.
struct Care<'a, N: Net> {
    session: &'a Rc<Session<N>>,
    pipe: &'a Pipe,
    /// Tells it to end gently.
    gentle: &'a Stop,
    /// Where that comes from; gone once it has come, so that the connection is counted once.
    registered: Option<Registered>,
    keeper: Keeper,
    taking: Taking,
    /// Taken when it is first needed: from then on the library looks at it at each turn.
    ping: Option<PingPong>,
}

/// How long the client may take over what is being sent to it. What the library was given waits for that without a deadline of
/// its own; it is looked at from time to time, so that sending costs nothing.
struct Taking {
    pace: Pace,
    idle: Duration,
    /// The send that was under way when it was looked last, and until when it may be.
    current: Option<(u64, Instant)>,
}

impl Taking {
    /// Whether the client has had its time.
    fn is_over(&mut self, sending: Option<Sending>, now: Instant) -> bool {
        match (sending, self.current) {
            (None, _) => self.current = None,
            (Some(sending), Some((number, until))) if sending.number == number => return until <= now,
            (Some(sending), _) => {
                let idle = self.idle.max(limits::LEAST_TAKING);
                let until = self.pace.end(now, sending.bytes + limits::SENT_BEFORE_BYTES).min(now + idle);
                self.current = Some((sending.number, until));
            }
        }
        false
    }
}

impl<N: Net> Care<'_, N> {
    fn poll(&mut self, library: &mut Library, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let session = self.session;
        if session.flooded.get() {
            library.abrupt_shutdown(Code::ENHANCE_YOUR_CALM);
        }
        if self.registered.is_some() && self.gentle.poll_stopped(context).is_ready() {
            self.registered = None;
            library.graceful_shutdown();
        }
        while session.clock.poll_stopped(context).is_ready() {
            session.clock.clear();
            self.look(library);
        }
        while let Poll::Ready(next) = library.poll_accept(context) {
            match next {
                Some(Ok((request, respond))) => session.begin(request, respond),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => return Poll::Ready(Ok(())),
            }
            // Each call goes through the whole connection first, and has left nothing to do there.
            if session.has_begun_all() {
                break;
            }
        }
        // Of what comes while the client is told to leave, it knows that it may ask elsewhere.
        let missing = session.missing();
        if missing > 0 && self.pipe.is_drained() && self.pipe.has_room() {
            session.refused.set(session.refused.get() + missing);
            if self.registered.is_some() {
                session.tell_refused(missing);
            }
        }
        Poll::Pending
    }

    fn look(&mut self, library: &mut Library) {
        let session = self.session;
        let open = u32::try_from(session.streams.count()).unwrap_or(u32::MAX);
        let sending = self.pipe.sending();
        let heard = session.heard.replace(false);
        let seen = Seen { open, served: session.served.get(), heard, takes: sending.is_some() };
        let (worker, stop) = (&session.connection.worker, &session.connection.stop);
        let now = worker.net.now();
        if self.taking.is_over(sending, now) {
            session.slow.set(true);
            stop.trigger(StopReason::Deadline);
        }
        match self.keeper.look(seen) {
            Verdict::Stay => {}
            Verdict::Ask => keeper::ask(&mut self.ping, || library.ping_pong()),
            Verdict::Dead => stop.trigger(StopReason::Deadline),
            // It has its time already: looking again must not give it more.
            Verdict::Unused if session.gone_by.get() < Instant::FAR_FUTURE => {}
            Verdict::Unused => {
                if self.registered.take().is_some() {
                    worker.recorder.add(session.series, counter::REASON + Reason::IdleTimeout as usize, 1);
                }
                library.graceful_shutdown();
                session.gone_by.set(now + FAREWELL);
                session.wind();
            }
        }
        session.clock.set_deadline(Some(now + self.keeper.tick()));
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_client_may_take_over_each_send_as_long_as_it_may_be_idle_and_a_minute_at_least() {
        let seconds = |seconds| Instant::ZERO + Duration::from_secs(seconds);
        let sending = |number| Some(Sending { number, bytes: 1_000 });
        for (idle, rate, allowed) in [(300, Some(240), 300), (4, Some(240), 60), (4, None, 60), (300, Some(1 << 20), 6)]
        {
            let pace = Pace::new(rate.and_then(NonZeroU32::new));
            let mut taking = Taking { pace, idle: Duration::from_secs(idle), current: None };
            assert!(!taking.is_over(sending(1), seconds(0)));
            assert!(!taking.is_over(sending(1), seconds(allowed - 1)));
            assert!(!taking.is_over(sending(2), seconds(allowed)), "it has taken the first");
            assert!(taking.is_over(sending(2), seconds(2 * allowed + 1)), "{idle} s, {rate:?} bytes a second");
            assert!(!taking.is_over(None, seconds(2 * allowed + 1)));
            assert!(!taking.is_over(sending(2), seconds(9 * allowed)));
        }
    }
}
