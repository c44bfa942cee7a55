//! Getting a connection to an endpoint: an unused one, or a new one with its handshake.

use std::rc::Rc;

use ringmesh_model::snapshot::Protocol;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error as StreamError, Stream};

use crate::outcome::Reason;
use crate::pool::{Lease, Leased, State, shared};
use crate::proxy::transport::Transport;
use crate::tables::{Endpoint, Service};
use crate::telemetry::event::Direction;
use crate::telemetry::layout::{gauge, service as counter};
use crate::tls::{self, Alpn};
use crate::worker::Worker;

/// A connection to an endpoint, of which `state` is known, for one request. `preface` is the PROXY header that it begins with,
/// if the service wants one; `deadline` is the request's, if it has one.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn lease<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    preface: Option<&[u8]>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Leased<N>, Reason> {
    // Each way returns what it has found at once, as moving it costs.
    let state = match service.config.protocol {
        Protocol::Http2 => match shared::lease(state, service) {
            Ok(lease) => {
                worker.recorder.add(service.series, counter::REUSED, 1);
                return Ok(Leased::Shared(lease));
            }
            Err(state) => state,
        },
        _ => match Lease::unused(state, service, preface, worker.net.now()) {
            Ok(lease) => {
                worker.recorder.add(service.series, counter::REUSED, 1);
                return Ok(Leased::Own(lease));
            }
            Err(state) => state,
        },
    };
    connect(worker, service, endpoint, state, preface, stop, deadline).await
}

/// A new connection to an endpoint, see [`lease`]; in HTTP/2 one that was not there before, which another request may have
/// begun to make.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn connect<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    preface: Option<&[u8]>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Leased<N>, Reason> {
    match service.config.protocol {
        Protocol::Http2 => {
            let dial = async || dial(worker, service, endpoint, &state, preface, stop, deadline).await;
            let opened = Box::pin(shared::open(worker, service, state.clone(), stop, deadline, dial)).await;
            stop.set_deadline(deadline);
            opened.map(Leased::Shared)
        }
        _ => dedicated(worker, service, endpoint, state, preface, stop, deadline).await.map(Leased::Own),
    }
}

/// A new connection to an endpoint, for one request or client.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn dedicated<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    preface: Option<&[u8]>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Lease<N>, Reason> {
    let transport = dial(worker, service, endpoint, &state, preface, stop, deadline).await?;
    Ok(Lease::fresh(state, service, transport, preface))
}

async fn dial<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: &Rc<State<N::Stream>>,
    preface: Option<&[u8]>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Transport<N::Stream>, Reason> {
    let begun = worker.net.now();
    let own = begun + service.config.connect_timeout;
    let (until, late) = match deadline {
        Some(deadline) if deadline < own => (deadline, Reason::RequestTimeout),
        _ => (own, Reason::ConnectTimeout),
    };
    stop.set_deadline(Some(until));
    let mut result = Box::pin(open(worker, service, endpoint, preface, stop, late)).await;
    stop.set_deadline(deadline);
    if result.is_ok() && stop.reason() == Some(StopReason::Deadline) {
        // The last bytes of the handshake came together with its deadline. What follows must not end by that.
        stop.clear();
        if late == Reason::RequestTimeout {
            result = Err(late);
        }
    }
    match result {
        Ok(transport) => {
            state.succeeded();
            worker.recorder.add(service.series, counter::OPENED, 1);
            worker.recorder.gauge_add(gauge::UPSTREAM_OPENED, 1);
            Ok(transport)
        }
        Err(reason) => {
            let now = worker.net.now();
            let failed = match reason {
                // Our own stop says nothing about the endpoint.
                Reason::Drained | Reason::ClientAborted => false,
                Reason::RequestTimeout => {
                    state.gave_up(now.saturating_since(begun), service.config.connect_timeout, now)
                }
                _ => {
                    state.failed(now);
                    true
                }
            };
            if failed {
                worker.recorder.add(service.series, counter::CONNECT_FAILED, 1);
            }
            Err(reason)
        }
    }
}

async fn open<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    preface: Option<&[u8]>,
    stop: &Stop,
    late: Reason,
) -> Result<Transport<N::Stream>, Reason> {
    let stopped = |reason| {
        let reason = Reason::of_stop(reason);
        if reason == Reason::RequestTimeout {
            stop.clear();
            return late;
        }
        reason
    };
    let stream = match worker.net.connect(&endpoint.address, service.config.mark, stop).await {
        Ok(stream) => stream,
        Err(StreamError::Stopped(reason)) => return Err(stopped(reason)),
        Err(StreamError::Io(_)) => return Err(Reason::ConnectFailed),
    };
    if let Some(silence) = service.config.tcp_keepalive {
        stream.keep_alive(silence);
    }
    if let Some(preface) = preface {
        let mut output = Output::new();
        output.push_bytes(preface);
        match stream.flush(&mut output, stop).await {
            Ok(()) => {}
            Err(StreamError::Stopped(reason)) => return Err(stopped(reason)),
            Err(StreamError::Io(_)) => return Err(Reason::ConnectFailed),
        }
    }
    let Some(config) = &service.tls else { return Ok(Transport::Plain(stream)) };
    let ends = Worker::<N>::ends(&stream);
    match tls::connect(stream, config.clone(), stop).await {
        // What we would say next, it would not understand. One that knows no ALPN may still speak HTTP/1.
        Ok((_, peer)) if service.config.protocol == Protocol::Http2 && peer.alpn != Some(Alpn::Http2) => {
            tracing::warn!(
                target: "upstream",
                service = service.config.name, endpoint = &*endpoint.text,
                "the endpoint takes TLS, but not HTTP/2 in it (ALPN `h2`); set `protocol = \"http\"` if it speaks HTTP/1.1"
            );
            Err(Reason::UpstreamTls)
        }
        Ok((stream, peer)) => {
            worker.recorder.add(service.series, counter::HANDSHAKES, 1);
            worker.tell_handshake(Direction::Outbound, &service.config.name, ends, Ok(&peer));
            Ok(Transport::Tls(stream))
        }
        Err(refused) => {
            worker.recorder.add(service.series, counter::REFUSED + refused.number(), 1);
            worker.tell_handshake(Direction::Outbound, &service.config.name, ends, Err(&refused));
            Err(match refused {
                tls::Refused::Stopped(reason) => stopped(reason),
                refused if refused.is_identity() => Reason::UpstreamIdentity,
                _ => Reason::UpstreamTls,
            })
        }
    }
}
