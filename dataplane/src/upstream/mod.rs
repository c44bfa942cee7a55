//! Getting a connection to an endpoint: an unused one, or a new one with its handshake.

pub mod reach;

use std::rc::Rc;

use ringmesh_model::snapshot::Protocol;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error as StreamError, Stream};
use rustls::AlertDescription;

use crate::balance::{self, Draw, Probed, Tried};
use crate::mux::Channel;
use crate::mux::client::Another;
use crate::outcome::{Reason, Retry};
use crate::pool::opening::{Found, Opening};
use crate::pool::{Lease, Leased, Mesh, State, shared};
use crate::proxy::transport::Transport;
use crate::standing::{self, Standing};
use crate::tables::{Endpoint, Service};
use crate::telemetry::event::Direction;
use crate::telemetry::layout::{gauge, service as counter};
use crate::tls::{self, Alpn};
use crate::worker::Worker;

/// What is needed of the way to an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// That it gets there.
    Anything,
    /// A stream of HTTP/2, where the service speaks it: the request is one, or is made to be one on its way.
    Http2,
    /// A connection of its own.
    Connection,
}

/// How an endpoint is to be reached.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The PROXY header that a connection begins with, if the service wants one.
    preface: Option<&'a [u8]>,
    /// What is needed of it.
    needs: Needs,
    /// Whether the endpoint is spoken to in HTTP/2.
    is_http2: bool,
}

impl<'a> Way<'a> {
    /// To any endpoint of a service.
    #[inline]
    pub fn to(service: &Service, preface: Option<&'a [u8]>, needs: Needs) -> Self {
        let is_http2 = match service.config.protocol {
            Protocol::Http2 => true,
            // What its client speaks.
            Protocol::Detect => needs == Needs::Http2,
            Protocol::Http | Protocol::Tcp | Protocol::Tls => false,
        };
        Self { preface, needs, is_http2 }
    }

    /// Whether it may be a channel of a connection that carries many.
    fn shares(self, service: &Service) -> bool {
        self.needs == Needs::Anything && service.shares(self.preface)
    }
}

/// One more endpoint of the service that has this number in the tables; none that was tried.
#[inline]
pub fn pick<'t, N: Net>(
    worker: &Worker<N>,
    service: &'t Service,
    number: u32,
    tried: &mut Tried,
) -> Option<&'t Endpoint> {
    let endpoints = &service.endpoints;
    let candidate = |index: usize| Probed {
        seen: worker.pools.state(endpoints[index].place),
        is_unhealthy: endpoints[index].is_unhealthy(),
    };
    let draw = || Draw { now: worker.net.now(), turn: worker.turn(number), random: worker.net.random() };
    let index = balance::pick(service.config.balance, endpoints.len(), candidate, tried, draw)?;
    tried.note(index);
    Some(&endpoints[index])
}

/// A connection to an endpoint, of which `state` is known, for one request. `deadline` is the request's, if it has one.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn lease<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    way: Way<'_>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Leased<N>, Reason> {
    // Each way returns what it has found at once, as moving it costs.
    let state = match way.is_http2 {
        // A proxy of ours takes HTTP/1 in place of it.
        true if way.needs == Needs::Http2 || state.mesh.get() != Mesh::Yes => match shared::lease(state, service) {
            Ok(lease) => {
                worker.recorder.add(service.series, counter::REUSED, 1);
                return Ok(Leased::Shared(lease));
            }
            Err(state) => state,
        },
        _ => match Lease::unused(state, service, way.preface, worker.net.now()) {
            Ok(lease) => {
                worker.recorder.add(service.series, counter::REUSED, 1);
                return Ok(Leased::Own(lease.watched(worker, stop)));
            }
            Err(state) => state,
        },
    };
    connect(worker, service, endpoint, state, way, stop, deadline).await
}

/// A new connection to an endpoint, or a new place on one that many share, see [`lease`].
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn connect<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    way: Way<'_>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Leased<N>, Reason> {
    let is_http2 = way.is_http2;
    if !(way.shares(service) || is_http2) {
        return dedicated(worker, service, endpoint, state, way, stop, deadline).await.map(Leased::Own);
    }
    let find = || {
        if let Some(channel) = channel(worker, service, &state, way) {
            return Found::Open(Leased::Own(Lease::channel(state.clone(), service, channel)));
        }
        if is_http2 {
            return shared::lease(state.clone(), service)
                .map_or(Found::Shared, |lease| Found::Open(Leased::Shared(lease)));
        }
        if matches!(state.mesh.get(), Mesh::Unknown | Mesh::Yes) { Found::Shared } else { Found::Own }
    };
    let make = async |opening| {
        let dialled = dial(worker, service, endpoint, &state, way, stop, deadline).await;
        if let Err(reason) = &dialled
            && reason.retry() == Retry::Elsewhere
            && let Some(channel) = channel(worker, service, &state, way)
        {
            // Those that are open are busy, and have room.
            return Ok(Leased::Own(Lease::channel(state.clone(), service, channel)));
        }
        match dialled? {
            Dialled::Trunk(transport, standing) => {
                trunk(worker, service, &state, transport, standing, opening).map(Leased::Own)
            }
            Dialled::Own(transport, standing) if is_http2 => {
                shared::lease_of(worker, service, state.clone(), transport, standing).await.map(Leased::Shared)
            }
            Dialled::Own(transport, standing) => {
                let lease = Lease::fresh(state.clone(), service, transport, standing, way.preface);
                Ok(Leased::Own(lease.watched(worker, stop)))
            }
        }
    };
    let own = service.config.connect_timeout;
    let leased = Box::pin(state.making.join(&worker.net, own, stop, deadline, find, make)).await;
    stop.set_deadline(deadline);
    leased
}

/// A channel of a connection that is open to the endpoint. Further ones are made beside it unless that has just failed.
fn channel<N: Net>(worker: &Worker<N>, service: &Service, state: &State<N::Stream>, way: Way<'_>) -> Option<Channel> {
    if !way.shares(service) {
        return None;
    }
    let is_due = !state.making.is_under_way() && !state.is_avoided(|| worker.net.now());
    let another = if is_due { Another::CanBeMade } else { Another::NotNow };
    state.trunks.open(service.pool_key, another)
}

/// The first channel of a trunk that was just made.
fn trunk<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    state: &Rc<State<N::Stream>>,
    transport: Transport<N::Stream>,
    standing: Option<Rc<Standing>>,
    opening: Rc<Opening>,
) -> Result<Lease<N>, Reason> {
    let channel =
        state.trunks.begin(worker, service, state, transport, standing, opening).ok_or(Reason::UpstreamReset)?;
    Ok(Lease::fresh(state.clone(), service, Transport::Channel(channel), None, None))
}

/// A new connection to an endpoint for one client, or a new channel of one that many share.
///
/// # Errors
/// The way the attempt ended; nothing was sent on it.
pub async fn dedicated<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: Rc<State<N::Stream>>,
    way: Way<'_>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Lease<N>, Reason> {
    if way.shares(service) {
        return match Box::pin(connect(worker, service, endpoint, state, way, stop, deadline)).await? {
            Leased::Own(lease) => Ok(lease),
            // Only what speaks HTTP/2 is given such a one.
            Leased::Shared(_) => Err(Reason::Internal),
        };
    }
    match dial(worker, service, endpoint, &state, way, stop, deadline).await? {
        Dialled::Own(transport, standing) => {
            Ok(Lease::fresh(state, service, transport, standing, way.preface).watched(worker, stop))
        }
        Dialled::Trunk(transport, standing) => trunk(worker, service, &state, transport, standing, Rc::default()),
    }
}

/// A connection that was just made.
enum Dialled<S: Stream> {
    /// For one request or client at a time, or for HTTP/2.
    Own(Transport<S>, Option<Rc<Standing>>),
    /// For channels.
    Trunk(Transport<S>, Option<Rc<Standing>>),
}

async fn dial<N: Net>(
    worker: &Rc<Worker<N>>,
    service: &Service,
    endpoint: &Endpoint,
    state: &Rc<State<N::Stream>>,
    way: Way<'_>,
    stop: &Stop,
    deadline: Option<Instant>,
) -> Result<Dialled<N::Stream>, Reason> {
    let begun = worker.net.now();
    let own = begun + service.config.connect_timeout;
    let (until, late) = match deadline {
        Some(deadline) if deadline < own => (deadline, Reason::RequestTimeout),
        _ => (own, Reason::ConnectTimeout),
    };
    stop.set_deadline(Some(until));
    let mut result = Box::pin(open(worker, service, endpoint, state, way, stop, late)).await;
    if let Ok(Dialled::Own(_, Some(standing)) | Dialled::Trunk(_, Some(standing))) = &result
        && standing.is_over()
    {
        // Its root has left the bundle meanwhile.
        result = Err(Reason::UpstreamIdentity);
    }
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
            reach::reached(worker, service, endpoint);
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
    state: &State<N::Stream>,
    way: Way<'_>,
    stop: &Stop,
    late: Reason,
) -> Result<Dialled<N::Stream>, Reason> {
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
    if let Some(preface) = way.preface {
        let mut output = Output::new();
        output.push_bytes(preface);
        match stream.flush(&mut output, stop).await {
            Ok(()) => {}
            Err(StreamError::Stopped(reason)) => return Err(stopped(reason)),
            Err(StreamError::Io(_)) => return Err(Reason::ConnectFailed),
        }
    }
    let Some(config) = &service.tls else { return Ok(Dialled::Own(Transport::Plain(stream), None)) };
    let ends = Worker::<N>::ends(&stream);
    let offers_mesh = way.shares(service) && state.mesh.get() != Mesh::Never;
    let config = if offers_mesh { config.clone() } else { tls::without_mesh(config) };
    let connected = tls::connect(stream, config, stop).await;
    if let (true, Ok((_, peer))) = (offers_mesh, &connected) {
        let agreed = matches!(peer.alpn, Some(Alpn::Mesh | Alpn::MeshHttp));
        state.mesh.set(if agreed { Mesh::Yes } else { Mesh::No });
    }
    match connected {
        Ok((stream, peer)) if matches!(peer.alpn, Some(Alpn::Mesh | Alpn::MeshHttp)) => {
            worker.recorder.add(service.series, counter::HANDSHAKES, 1);
            worker.tell_handshake(Direction::Outbound, &service.config.name, ends, Ok(&peer));
            Ok(Dialled::Trunk(Transport::Tls(stream), standing::begin(worker, &peer)))
        }
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
            Ok(Dialled::Own(Transport::Tls(stream), standing::begin(worker, &peer)))
        }
        // It agrees to nothing that it does not know (RFC 7301 section 3.2), and knows us no more than before.
        Err(tls::Refused::PeerAlert(AlertDescription::NoApplicationProtocol)) if offers_mesh => {
            state.mesh.set(Mesh::Never);
            Box::pin(open(worker, service, endpoint, state, way, stop, late)).await
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
