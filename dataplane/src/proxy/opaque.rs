//! A connection whose bytes are not looked at: admitted, sent to an endpoint, relayed until both sides have ended.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::rc::Rc;

use ringmesh_model::snapshot::Destination;
use ringmesh_ring::net::Net;
use ringmesh_ring::stream::Stream;

use crate::balance::{self, Tried};
use crate::outcome::{Reason, Retry};
use crate::policy::Decision;
use crate::pool::Lease;
use crate::proxy::connection::Connection;
use crate::proxy::relay::{Sides, relay};
use crate::proxy::request::OnDrop;
use crate::tables::{Endpoint, Listener, Service, Tables, Target};
use crate::telemetry::event::{self, Event};
use crate::telemetry::layout::{gauge, listener as counter};
use crate::upstream;
use crate::worker::unix_micros;

/// Where a connection went, as far as it came.
#[derive(Default)]
struct Way<'t> {
    decided_by: &'t str,
    service: Option<&'t Service>,
    endpoint: Option<&'t Endpoint>,
}

/// Serves one opaque connection until it has ended.
pub async fn serve<N: Net>(connection: Rc<Connection<N>>) {
    let worker = &connection.worker;
    let tables = worker.tables();
    let Some(listener) = tables.listener(connection.listener) else { return };
    let begun = worker.net.now();
    let mut way = Way::default();
    let (received, sent) = (Cell::new(0), Cell::new(0));
    worker.recorder.gauge_add(gauge::IN_FLIGHT, 1);
    let in_flight = OnDrop(|| worker.recorder.gauge_sub(gauge::IN_FLIGHT, 1));
    let result = forward(&connection, &tables, listener, &mut way, &received, &sent).await;
    drop(in_flight);
    let reason = result.err().unwrap_or(Reason::Ok);
    if reason != Reason::Ok {
        connection.transport.reset_on_close();
    }
    worker.recorder.add(listener.series, counter::REASON + reason as usize, 1);
    worker.recorder.add(listener.series, counter::RECEIVED_BYTES, received.get());
    worker.recorder.add(listener.series, counter::SENT_BYTES, sent.get());
    worker.tell(&Event::Connection(event::Connection {
        time: unix_micros(),
        listener: &listener.config.name,
        service: way.service.map_or("", |service| &service.config.name),
        endpoint: way.endpoint.map_or("", |endpoint| &endpoint.text),
        client: connection.client_text(),
        peer: connection.peer_id().map_or("", |id| id.as_str()),
        decided_by: way.decided_by,
        reason: reason as u8,
        duration: worker.net.now().saturating_since(begun).as_micros() as u64,
        received: received.get(),
        sent: sent.get(),
    }));
}

async fn forward<'t, N: Net>(
    connection: &'t Connection<N>,
    tables: &'t Tables,
    listener: &'t Listener,
    way: &mut Way<'t>,
    received: &Cell<u64>,
    sent: &Cell<u64>,
) -> Result<(), Reason> {
    let worker = &connection.worker;
    match listener.policy.authorize_connection(connection.peer_id()) {
        Decision::Allow(rule) => way.decided_by = rule,
        Decision::Deny(rule) => {
            way.decided_by = rule;
            return Err(Reason::PolicyDenied);
        }
    }
    let Target::Service(target) = &listener.target else { return Err(Reason::NoRoute) };
    let service = tables.service(target.service).ok_or(Reason::NoEndpoint)?;
    way.service = Some(service);
    let _permit = worker.admit(service, &connection.stop, None).await?;
    let lease = reach(connection, service, target.service, way).await?;
    let sides = Sides {
        client: &connection.transport,
        upstream: &lease.transport,
        stop: &connection.stop,
        idle: listener.config.limits.idle_timeout,
        received,
        sent,
    };
    relay(worker, &sides).await
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
    if service.config.destination == Destination::Original {
        let original = connection.original.as_deref().ok_or(Reason::NoOriginalDestination)?;
        way.endpoint = Some(&original.endpoint);
        let (endpoint, state) = (&original.endpoint, original.state.clone());
        return upstream::dedicated(worker, service, endpoint, state, preface.as_deref(), &connection.stop, None).await;
    }
    let mut tried = Tried::default();
    let mut last = Reason::NoEndpoint;
    for _attempt in 0..=service.config.connect_retries {
        let state = |index: usize| worker.pools.state(service.endpoints[index].place);
        let (now, turn, random) = (worker.net.now(), worker.turn(index), worker.net.random());
        let picked = balance::pick(service.config.balance, service.endpoints.len(), state, &tried, now, turn, random);
        let picked = picked.ok_or(last)?;
        tried.note(picked);
        let endpoint = &service.endpoints[picked];
        way.endpoint = Some(endpoint);
        let (state, preface) = (state(picked), preface.as_deref());
        match upstream::dedicated(worker, service, endpoint, state, preface, &connection.stop, None).await {
            Ok(lease) => return Ok(lease),
            Err(reason) if reason.retry() == Retry::Elsewhere => last = reason,
            Err(reason) => return Err(reason),
        }
    }
    Err(last)
}
