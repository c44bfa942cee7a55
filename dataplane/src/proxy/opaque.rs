//! A connection whose bytes are not looked at: admitted, sent to an endpoint, relayed until both sides have ended. Of TLS
//! that is passed on unopened, the first message is: it says where to.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_codec::ClientHello;
use ringmesh_codec::client_hello::Alert;
use ringmesh_model::snapshot::{Destination, Protocol};
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::{Error, Stream};

use crate::balance::Tried;
use crate::detect::{Refused, Spoken, read_hello};
use crate::outcome::{Reason, Retry};
use crate::policy::Decision;
use crate::pool::Lease;
use crate::proxy::connection::{Connection, linger};
use crate::proxy::deadline::Deadlines;
use crate::proxy::pace::Pace;
use crate::proxy::relay::{By, Ended, How, Sides, relay};
use crate::proxy::request::OnDrop;
use crate::route::{self, Rule};
use crate::tables::{Endpoint, Listener, Service, Tables};
use crate::telemetry::event::{self, Event, clip};
use crate::telemetry::layout::{gauge, listener as counter};
use crate::upstream::{self, Needs};
use crate::worker::unix_micros;

/// Longest time that our last word to a refused client may take to be written.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Protocols of ALPN that the access log tells of one client; it offers two or three.
const MAX_LOGGED_PROTOCOLS: usize = 16;

/// What is known of a connection before it is served.
pub struct Opening {
    /// What its client speaks, if that was detected. None: what the listener says.
    pub spoken: Option<Spoken>,
    /// What has come from its client.
    pub bytes: Buffer,
    /// Since when that was waited for. None: it begins now.
    pub since: Option<Instant>,
}

impl Opening {
    /// Of a connection of which nothing was read.
    pub const fn declared() -> Self {
        Self { spoken: None, bytes: Buffer::hollow(), since: None }
    }
}

/// Where a connection went, as far as it came.
#[derive(Default)]
struct Way<'t> {
    decided_by: &'t str,
    hello: Option<ClientHello>,
    rule: Option<&'t Rule>,
    service: Option<&'t Service>,
    endpoint: Option<&'t Endpoint>,
}

/// Serves one opaque connection until it has ended.
pub async fn serve<N: Net>(connection: Rc<Connection<N>>, opening: Opening) {
    let worker = &connection.worker;
    let tables = worker.tables();
    let Some(listener) = tables.listener(connection.listener) else { return };
    if !connection.belongs(listener) {
        return connection.transport.reset_on_close();
    }
    let begun = opening.since.unwrap_or_else(|| worker.net.now());
    let mut way = Way::default();
    let (received, sent) = (Cell::new(0), Cell::new(0));
    worker.recorder.gauge_add(gauge::IN_FLIGHT, 1);
    let in_flight = OnDrop(|| worker.recorder.gauge_sub(gauge::IN_FLIGHT, 1));
    let result = forward(&connection, &tables, listener, opening, begun, &mut way, &received, &sent).await;
    drop(in_flight);
    let Ended { reason, by, how } = match &result {
        Ok(ended) => *ended,
        Err(refused) => before_relay(refused.reason),
    };
    if let (Err(_), Some(service), Some(endpoint)) = (&result, way.service, way.endpoint) {
        upstream::reach::failed(worker, service, endpoint, reason);
    }
    if reason == Reason::PlainToTlsPort {
        worker.tell_hint(listener, connection.client_text(), reason);
    }
    worker.recorder.add(listener.series, counter::REASON + reason as usize, 1);
    worker.recorder.add(listener.series, counter::RECEIVED_BYTES, received.get());
    worker.recorder.add(listener.series, counter::SENT_BYTES, sent.get());
    worker.tell(&Event::Connection(event::Connection {
        time: unix_micros(),
        listener: &listener.config.name,
        route: way.rule.map_or("", |rule| &rule.route),
        rule: way.rule.map_or("", |rule| &rule.name),
        service: way.service.map_or("", |service| &service.config.name),
        endpoint: way.endpoint.map_or("", |endpoint| &endpoint.text),
        client: connection.client_text(),
        peer: connection.peer_id().map_or("", |id| id.as_str()),
        authority: way.hello.as_ref().and_then(ClientHello::name).unwrap_or_default(),
        alpn: clip(way.hello.as_ref().map(alpn).unwrap_or_default().as_bytes()),
        decided_by: way.decided_by,
        reason: reason as u8,
        ended_by: by.word(),
        ended_how: how.word(),
        duration: worker.net.now().saturating_since(begun).as_micros() as u64,
        received: received.get(),
        sent: sent.get(),
    }));
    let told = match result {
        Ok(ended) => ended.reason == Reason::Ok,
        Err(refused) => part(&connection, refused).await,
    };
    if !told {
        connection.transport.reset_on_close();
    }
}

/// Who ended a connection that did not come as far as to be relayed.
fn before_relay(reason: Reason) -> Ended {
    let (by, how) = match reason {
        Reason::ClientAborted => (By::Client, How::End),
        Reason::ClientTimeout | Reason::IdleTimeout | Reason::NotDetected => (By::Proxy, How::Limit),
        Reason::Drained => (By::Proxy, How::Drain),
        Reason::UpstreamReset => (By::Endpoint, How::Reset),
        _ => (By::Proxy, How::Refused),
    };
    Ended { reason, by, how }
}

/// The protocols that a client offers, in one line.
fn alpn(hello: &ClientHello) -> String {
    let protocols = hello.protocols().take(MAX_LOGGED_PROTOCOLS);
    protocols.map(|protocol| protocol.escape_ascii().to_string()).collect::<Vec<_>>().join(",")
}

/// Tells a refused client why, if there is something that it understands. False: there is not, or it does not listen.
async fn part<N: Net>(connection: &Connection<N>, refused: Refused) -> bool {
    let mut output = Output::new();
    match refused.alert {
        Some(alert) => output.push_bytes(&alert.record()),
        None if refused.reason == Reason::PlainToTlsPort => output.push_bytes(&refused.reason.last_answer()),
        None => return false,
    }
    connection.stop.set_deadline(Some(connection.worker.net.now() + ANSWER_TIMEOUT));
    if connection.transport.flush(&mut output, &connection.stop).await.is_err() {
        return false;
    }
    linger(connection).await;
    true
}

#[allow(clippy::too_many_arguments, reason = "one story, told once")]
async fn forward<'t, N: Net>(
    connection: &'t Connection<N>,
    tables: &'t Tables,
    listener: &'t Listener,
    opening: Opening,
    begun: Instant,
    way: &mut Way<'t>,
    received: &Cell<u64>,
    sent: &Cell<u64>,
) -> Result<Ended, Refused> {
    let worker = &connection.worker;
    let limits = &listener.config.limits.opaque;
    let Opening { spoken, bytes: mut first, .. } = opening;
    // What might become a request is no opaque connection: deny wins on doubt.
    if spoken == Some(Spoken::Unclear) && (listener.policy.is_about_requests() || listener.opaque.is_none()) {
        return Err(Reason::NotDetected.into());
    }
    match listener.policy.authorize_connection(connection.peer_id()) {
        Decision::Allow(rule) => way.decided_by = rule,
        Decision::Deny(rule) => {
            way.decided_by = rule;
            return Err(Reason::PolicyDenied.into());
        }
    }
    if spoken == Some(Spoken::Tls) || listener.config.protocol == Protocol::Tls {
        connection.stop.set_deadline(Some(begun + listener.config.limits.handshake_timeout));
        let hello = read_hello(&connection.transport, &connection.stop, &mut first).await?;
        way.hello = Some(hello);
    }
    let target = find(listener, way, || worker.net.random())?;
    let service = tables.service(target.service).ok_or(Reason::NoEndpoint)?;
    way.service = Some(service);
    let _permit = worker.admit(service, &connection.stop, None).await?;
    let lease = reach(connection, service, target.service, way).await?;
    received.set(first.len() as u64);
    connection.stop.set_deadline(Some(worker.net.now() + limits.idle_timeout));
    if !first.is_empty() {
        pass_on(first, &lease, connection).await?;
    }
    let deadlines = Deadlines::new(&connection.stop, limits.idle_timeout, Pace::new(limits.min_transfer_rate));
    let sides = Sides {
        client: &connection.transport,
        upstream: &lease.transport,
        deadlines: &deadlines,
        end: limits.max_duration.map_or(Instant::FAR_FUTURE, |duration| begun + duration),
        received,
        sent,
    };
    Ok(relay(worker, &sides).await)
}

/// The service that a connection goes to.
fn find<'t>(
    listener: &'t Listener,
    way: &mut Way<'t>,
    random: impl FnOnce() -> u64,
) -> Result<&'t route::Target, Refused> {
    const NOBODY: Refused = Refused { reason: Reason::UnrecognizedName, alert: Some(Alert::UnrecognizedName) };
    match (&way.hello, &listener.names) {
        (Some(hello), Some(names)) => {
            let rule = names.find_name(hello).ok_or(NOBODY)?;
            way.rule = Some(rule);
            Ok(rule.pick(random))
        }
        _ => listener.opaque.as_ref().ok_or_else(|| Reason::NoRoute.into()),
    }
}

/// Sends an endpoint what has been read of its client.
async fn pass_on<N: Net>(first: Buffer, lease: &Lease<N>, connection: &Connection<N>) -> Result<(), Reason> {
    let mut output = Output::new();
    output.push(first.slice(0..first.len()));
    drop(first);
    let sent = lease.transport.flush(&mut output, &connection.stop).await;
    sent.map_err(|error| {
        lease.transport.reset_on_close();
        match error {
            Error::Io(error) => Reason::of_upstream(&error),
            Error::Stopped(StopReason::Deadline) => Reason::IdleTimeout,
            Error::Stopped(reason) => Reason::of_stop(reason),
        }
    })
}

/// A connection to one of the service's endpoints.
async fn reach<'t, N: Net>(
    connection: &'t Connection<N>,
    service: &'t Service,
    index: u32,
    way: &mut Way<'t>,
) -> Result<Lease<N>, Reason> {
    let worker = &connection.worker;
    let preface = connection.preface(service);
    let through = upstream::Way::to(service, preface.as_deref(), Needs::Anything);
    if service.config.destination == Destination::Original {
        let original = connection.original().ok_or(Reason::NoOriginalDestination)?;
        way.endpoint = Some(&original.endpoint);
        let (endpoint, state) = (&original.endpoint, original.state.clone());
        return upstream::dedicated(worker, service, endpoint, state, through, &connection.stop, None).await;
    }
    let mut tried = Tried::default();
    let mut last = Reason::NoEndpoint;
    for _attempt in 0..=service.config.connect_retries {
        let endpoint = upstream::pick(worker, service, index, &mut tried).ok_or(last)?;
        let state = worker.pools.state(endpoint.place);
        way.endpoint = Some(endpoint);
        match upstream::dedicated(worker, service, endpoint, state, through, &connection.stop, None).await {
            Ok(lease) => return Ok(lease),
            Err(reason) if reason.retry() == Retry::Elsewhere => last = reason,
            Err(reason) => return Err(reason),
        }
    }
    Err(last)
}
