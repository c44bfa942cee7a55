//! Getting a connection to an endpoint: an unused one, or a new one with its handshake.

use std::rc::Rc;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error as StreamError, Stream};

use crate::outcome::Reason;
use crate::pool::Lease;
use crate::proxy::transport::Transport;
use crate::tables::{Endpoint, Service};
use crate::telemetry::event::Direction;
use crate::telemetry::layout::{gauge, service as counter};
use crate::tls;
use crate::worker::Worker;

/// A connection to an endpoint for one request. `deadline` is the request's, if it has one.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn lease<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Lease<N>, Reason> {
    if let Some(lease) = worker.pools.lease(service, endpoint, worker.net.now()) {
        worker.recorder.add(service.series, counter::REUSED, 1);
        return Ok(lease);
    }
    connect(worker, service, endpoint, stop, deadline).await
}

/// A new connection to an endpoint.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn connect<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Lease<N>, Reason> {
    let state = worker.pools.state(endpoint.place);
    let begun = worker.net.now();
    let own = begun + service.config.connect_timeout;
    let (until, late) = match deadline {
        Some(deadline) if deadline < own => (deadline, Reason::RequestTimeout),
        _ => (own, Reason::ConnectTimeout),
    };
    stop.set_deadline(Some(until));
    let mut result = Box::pin(open(worker, service, endpoint, stop, late)).await;
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
            Ok(Lease::fresh(state, service, transport))
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
    let stream = match worker.net.connect(&endpoint.address, stop).await {
        Ok(stream) => stream,
        Err(StreamError::Stopped(reason)) => return Err(stopped(reason)),
        Err(StreamError::Io(_)) => return Err(Reason::ConnectFailed),
    };
    if let Some(silence) = service.config.tcp_keepalive {
        stream.keep_alive(silence);
    }
    let Some(config) = &service.tls else { return Ok(Transport::Plain(stream)) };
    let ends = Worker::<N>::ends(&stream);
    match tls::connect(stream, config.clone(), stop).await {
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
