//! Tunnels of which at least one side is a stream of HTTP/2: CONNECT (RFC 9113 section 8.5) and other protocols by extended
//! CONNECT (RFC 8441), which is the Upgrade of HTTP/1.1 by another name. First a request is sent and its response awaited;
//! if that agrees, bytes pass both ways until both have ended. END_STREAM is the end of one side, RST_STREAM a reset.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::io;
use std::pin::pin;

use bytes::{Buf, Bytes};
use h2::ext::Protocol;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use ringmesh_ring::buffer::{Buffer, Size, Slice};
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error as StreamError, Stream};

use super::data::Data;
use super::{Answer, Exchange, Lost, More, Part, Reply, Sink, Source, Stage, http2};
use crate::outcome::Reason;
use crate::pool::shared;
use crate::proxy::deadline::{Deadlines, Part as Wait};
use crate::proxy::relay::{Raced, Turn, both, race};
use crate::proxy::request::{Account, Failed};
use crate::proxy::transport::Transport;
use crate::proxy::websocket::{self, Key};
use crate::worker::Worker;

/// Most bytes of one read that are copied, so that they hold no buffer: about a quarter of one.
const MAX_COPIED_BYTES: usize = 4 * 1024;

/// A tunnel that a client wants.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// To the authority, whatever is spoken in it.
    Connect,
    /// Of this protocol. A client or an endpoint that asks for WebSocket by HTTP/1.1 has a key.
    Upgrade(Protocol, Option<Key>),
}

impl Wanted {
    /// What Upgrade asks for in HTTP/1.1. None if a WebSocket is asked for in a way that has no answer.
    pub fn by_upgrade<'a>(protocol: &[u8], mut keys: impl Iterator<Item = &'a [u8]>) -> Option<Self> {
        let key = match protocol.eq_ignore_ascii_case(websocket::PROTOCOL) {
            true => Some(Key::parse(keys.next()?).filter(|_| keys.next().is_none())?),
            false => None,
        };
        let name = std::str::from_utf8(protocol).ok()?.to_ascii_lowercase();
        Some(Self::Upgrade(Protocol::from(name.as_str()), key))
    }

    /// What extended CONNECT asks for, for an endpoint of HTTP/1.1. `random` is asked for a new key.
    pub fn by_connect(protocol: Protocol, random: impl Fn() -> u64) -> Self {
        let is_websocket = protocol.as_ref().eq_ignore_ascii_case(websocket::PROTOCOL);
        let nonce = || (u128::from(random()) << 64 | u128::from(random())).to_be_bytes();
        let key = is_websocket.then(|| Key::new(nonce()));
        Self::Upgrade(protocol, key)
    }

    /// Whether it is a WebSocket, which nothing but a tunnel can be an answer to.
    pub fn is_websocket(&self) -> bool {
        matches!(self, Self::Upgrade(_, Some(_)))
    }

    /// The protocol that it is of.
    pub fn protocol(&self) -> Option<&Protocol> {
        match self {
            Self::Connect => None,
            Self::Upgrade(protocol, _) => Some(protocol),
        }
    }

    /// Makes a request one of HTTP/2.
    pub fn ask_by_http2(&self, request: &mut Request<()>) {
        *request.method_mut() = Method::CONNECT;
        if let Self::Upgrade(protocol, _) = self {
            request.headers_mut().remove(SEC_WEBSOCKET_KEY);
            request.extensions_mut().insert(protocol.clone());
        }
    }

    /// Makes the fields of a request those of HTTP/1.1.
    pub fn ask_by_http1(&self, fields: &mut HeaderMap) {
        // It would speak of a body.
        fields.remove(http::header::TE);
        let Self::Upgrade(protocol, key) = self else { return };
        fields.remove(SEC_WEBSOCKET_KEY);
        // What the listener allows is a token.
        let named = HeaderValue::from_bytes(protocol.as_ref()).unwrap_or(HeaderValue::from_static("websocket"));
        fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        fields.insert(UPGRADE, named);
        if let Some(key) = key {
            fields.insert(SEC_WEBSOCKET_KEY, key.value());
        }
    }

    /// Whether a response of HTTP/1.1 begins a tunnel.
    ///
    /// # Errors
    /// If it neither does nor may be passed on.
    pub fn is_begun_by_http1(&self, response: &Response<()>) -> Result<bool, Reason> {
        let status = response.status();
        match self {
            Self::Connect => Ok(status.is_success()),
            Self::Upgrade(_, key) if status == StatusCode::SWITCHING_PROTOCOLS => {
                // Who does not answer the key has not understood what was asked (RFC 6455 section 4.1).
                let answered = key.as_ref().is_none_or(|key| key.is_answered(response.headers()));
                if answered { Ok(true) } else { Err(Reason::UpstreamGarbage) }
            }
            // To who has asked by HTTP/2, it would mean that the tunnel is there.
            Self::Upgrade(..) if status.is_success() => Err(Reason::UpgradeUnsupported),
            Self::Upgrade(..) => Ok(false),
        }
    }

    /// Makes the response that begins it one of HTTP/2.
    pub fn begin_by_http2(&self, response: &mut Response<()>) {
        response.headers_mut().remove(CONTENT_LENGTH);
        if let Self::Upgrade(..) = self {
            *response.status_mut() = StatusCode::OK;
            response.headers_mut().remove(SEC_WEBSOCKET_ACCEPT);
        }
    }

    /// Makes the response that begins it one of HTTP/1.1.
    pub fn begin_by_http1(&self, response: &mut Response<()>) {
        let fields = response.headers_mut();
        fields.remove(CONTENT_LENGTH);
        let Self::Upgrade(protocol, key) = self else { return };
        fields.remove(SEC_WEBSOCKET_ACCEPT);
        if let Ok(named) = HeaderValue::from_bytes(protocol.as_ref()) {
            fields.insert(UPGRADE, named);
        }
        if let Some(key) = key {
            fields.insert(SEC_WEBSOCKET_ACCEPT, key.accept());
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
}

/// Sends a request for a tunnel and waits for the final head of its response. Nothing of the tunnel is sent before: bytes
/// behind a request that is not agreed to would be read as another one.
///
/// # Errors
/// As [`Exchange::run`].
pub async fn ask<N: Net>(
    exchange: &Exchange<'_, N>,
    sink: &mut impl Sink,
    answer: &mut impl Answer,
    reply: &mut impl Reply,
    stage: &mut Stage,
) -> Result<Response<()>, Failed> {
    exchange.flush_request(sink).await?;
    exchange.final_head(answer, reply, stage).await
}

/// Whether an endpoint of HTTP/2 takes tunnels of other protocols.
///
/// # Errors
/// As [`Exchange::run`].
pub async fn is_taken<N: Net>(exchange: &Exchange<'_, N>, lease: &shared::Lease<N>) -> Result<bool, Failed> {
    exchange.deadlines.for_silence(Wait::Back, exchange.worker.net.now(), Reason::UpstreamSilent);
    let taken = lease.takes_protocols(exchange.stop).await;
    exchange.deadlines.forget(Wait::Back);
    taken.map_err(|lost| exchange.of_endpoint(lost))
}

/// Begins a request for a tunnel on a connection that others use too: the ways to and from the endpoint.
///
/// # Errors
/// As [`Exchange::run`].
pub fn open<'l, N: Net>(
    exchange: &Exchange<'_, N>,
    lease: &'l shared::Lease<N>,
    request: Request<()>,
) -> Result<(http2::Upload<impl Fn(usize) + use<'l, N>>, http2::Awaited<'l>), Failed> {
    let (head, upload) = lease.send(request, false).map_err(|lost| exchange.of_endpoint(lost))?;
    let answer = http2::Awaited::of_tunnel(head, lease.may_be_interim());
    Ok((http2::Upload::new(upload, |bytes| lease.sends(bytes)), answer))
}

/// Sends the head that begins a tunnel to a client of HTTP/2.
///
/// # Errors
/// If it has gone.
pub fn begin<N: Net>(
    exchange: &Exchange<'_, N>,
    response: Response<()>,
    reply: &mut impl Reply,
    stage: &mut Stage,
    account: &mut Account,
) -> Result<(), Failed> {
    account.status = response.status().as_u16();
    *stage = Stage::Begun;
    reply.begin(response, More::Follows).map_err(|lost| exchange.of_client(&lost))
}

/// Both ways of one side.
pub struct Side<'a, I, O> {
    /// What comes from it.
    pub from: &'a mut I,
    /// What goes to it.
    pub to: &'a mut O,
}

/// Carries bytes until both sides have ended, one has failed, or nothing has moved for too long. `deadlines` bound the silence
/// of both together, and how slowly either may take its bytes.
///
/// # Errors
/// The way it ended, if not by both sides.
pub async fn carry<N: Net>(
    worker: &Worker<N>,
    deadlines: &Deadlines<'_>,
    client: Side<'_, impl Source, impl Sink>,
    endpoint: Side<'_, impl Source, impl Sink>,
    account: &mut Account,
) -> Result<(), Reason> {
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let forth = Way { worker, deadlines, part: Wait::Forth, late: Reason::UpstreamReadsSlowly, moved: &received };
    let back = Way { part: Wait::Back, late: Reason::ClientReadsSlowly, moved: &sent, ..forth };
    forth.has_moved(0);
    let ends = {
        let forth = pin!(forth.carry(client.from, endpoint.to));
        let back = pin!(back.carry(endpoint.from, client.to));
        both(deadlines.stop(), forth, back).await
    };
    account.request_bytes += received.get();
    account.response_bytes += sent.get();
    let failed = |end: Option<Failure>, from, to| match end? {
        // Stopped because the other has failed, or because the client has reset its stream.
        Failure::From(Lost::Stopped(StopReason::Abort)) | Failure::To(Lost::Stopped(StopReason::Abort)) => None,
        Failure::From(lost) => Some(lost.reason(deadlines, from)),
        Failure::To(lost) => Some(lost.reason(deadlines, to)),
    };
    let is_whole = ends.forth.is_none() && ends.back.is_none();
    match failed(ends.forth, Reason::ClientAborted, Reason::UpstreamReset) {
        _ if is_whole => Ok(()),
        // A stream that ends with its connection may hear of that first.
        _ if deadlines.stop().reason() == Some(StopReason::Drain) => Err(Reason::Drained),
        Some(reason) => Err(reason),
        None => Err(failed(ends.back, Reason::UpstreamReset, Reason::ClientAborted).unwrap_or(Reason::ClientAborted)),
    }
}

/// Which end of a way failed.
enum Failure {
    From(Lost),
    To(Lost),
}

/// One way through a tunnel.
struct Way<'a, N: Net> {
    worker: &'a Worker<N>,
    deadlines: &'a Deadlines<'a>,
    part: Wait,
    /// What it means if its end is too slow.
    late: Reason,
    moved: &'a Cell<u64>,
}

impl<N: Net> Way<'_, N> {
    /// So many bytes have come; from now on both sides are silent.
    fn has_moved(&self, bytes: usize) -> Instant {
        self.moved.set(self.moved.get() + bytes as u64);
        let now = self.worker.net.now();
        self.deadlines.for_silence(Wait::Whole, now, Reason::IdleTimeout);
        now
    }

    async fn carry(&self, source: &mut impl Source, sink: &mut impl Sink) -> Result<(), Failure> {
        let (stop, pace) = (self.deadlines.stop(), self.deadlines.pace());
        let turn = Turn::default();
        loop {
            turn.step().await;
            let part = match source.ready() {
                Some(part) => part,
                None => source.next(stop).await,
            };
            match part.map_err(Failure::From)? {
                Part::Data(data) => {
                    let bytes = data.remaining();
                    let now = self.has_moved(bytes);
                    if pace.is_bound() {
                        self.deadlines.set(self.part, now + pace.time_for(bytes), self.late);
                    }
                    sink.data(data, More::Follows, stop).await.map_err(Failure::To)?;
                    if pace.is_bound() {
                        self.deadlines.forget(self.part);
                    }
                    source.passed(bytes);
                }
                Part::End(None) => return sink.end(None, stop).await.map_err(Failure::To),
                // A tunnel has no fields (RFC 9113 section 8.5).
                Part::End(Some(_)) => return Err(Failure::From(Lost::Broken)),
            }
        }
    }
}

/// A connection of HTTP/1 whose bytes are a tunnel's.
pub struct Opaque<'a, S: Stream> {
    transport: &'a Transport<S>,
    /// Whether our side has ended.
    over: Cell<bool>,
}

impl<'a, S: Stream> Opaque<'a, S> {
    /// A connection that is open both ways.
    pub fn new(transport: &'a Transport<S>) -> Self {
        Self { transport, over: Cell::new(false) }
    }

    /// What comes on it, behind `early`.
    pub fn incoming(&self, early: Slice) -> Incoming<'_, S> {
        let early = (!early.is_empty()).then_some(early);
        Incoming { connection: self, early, full_reads: 0 }
    }

    /// What goes out on it.
    pub fn outgoing(&self) -> Outgoing<'_, S> {
        Outgoing { connection: self, output: Output::new() }
    }
}

/// What comes on a connection. While nothing does, it holds no buffer.
pub struct Incoming<'a, S: Stream> {
    connection: &'a Opaque<'a, S>,
    early: Option<Slice>,
    full_reads: u32,
}

impl<S: Stream> Source for Incoming<'_, S> {
    fn is_done(&self) -> bool {
        false
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        self.early.take().map(|early| Ok(Part::Data(Data::Slice(early))))
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        if let Some(part) = self.ready() {
            return part;
        }
        let transport = self.connection.transport;
        loop {
            match race(transport.readable(), stop.stopped()).await {
                Raced::First(result) => result.map_err(StreamError::from)?,
                Raced::Second(reason) => return Err(Lost::Stopped(reason)),
            }
            let mut buffer = Buffer::take(if self.full_reads > 0 { Size::Large } else { Size::Small });
            let room = buffer.spare();
            match transport.try_fill(&mut buffer).map_err(StreamError::from)? {
                None => {}
                // A reset of which an operation of the other way was told looks like an end.
                Some(0) if !self.connection.over.get() && transport.is_torn() => {
                    return Err(Lost::Io(io::ErrorKind::ConnectionReset.into()));
                }
                Some(0) => return Ok(Part::End(None)),
                Some(count) => {
                    self.full_reads = if count == room { self.full_reads + 1 } else { 0 };
                    return Ok(Part::Data(match count {
                        // Small ones may wait in large numbers, and each would hold a whole buffer.
                        0..=MAX_COPIED_BYTES => Data::Bytes(Bytes::copy_from_slice(buffer.filled())),
                        _ => Data::Slice(buffer.slice(0..count)),
                    }));
                }
            }
        }
    }

    fn passed(&mut self, _bytes: usize) {}
}

/// What goes out on a connection.
pub struct Outgoing<'a, S: Stream> {
    connection: &'a Opaque<'a, S>,
    output: Output,
}

impl<S: Stream> Sink for Outgoing<'_, S> {
    async fn flush(&mut self, stop: &Stop) -> Result<(), Lost> {
        if self.output.is_empty() {
            return Ok(());
        }
        let flushed = self.connection.transport.flush(&mut self.output, stop).await;
        self.output.clear();
        Ok(flushed?)
    }

    async fn data(&mut self, data: Data, _more: More, stop: &Stop) -> Result<(), Lost> {
        data.push_to(&mut self.output);
        self.flush(stop).await
    }

    async fn end(&mut self, _trailers: Option<HeaderMap>, _stop: &Stop) -> Result<(), Lost> {
        self.connection.over.set(true);
        Ok(self.connection.transport.shutdown_write().map_err(StreamError::from)?)
    }
}
