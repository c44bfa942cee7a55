//! Trunks of clients.

use std::rc::Rc;

use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::Stream;

use super::care::Patience;
use super::pump::{self, Over};
use super::trunk::{Broken, Ends, Side, Trunk};
use crate::drain::Registry;
use crate::outcome::Reason;
use crate::proxy::connection::Connection;
use crate::proxy::transport::Transport;
use crate::telemetry::layout::listener as counter;

/// Serves a trunk to its end. `start` begins to serve each of its channels, as a connection of its own.
pub async fn serve<N: Net>(connection: Rc<Connection<N>>, start: impl Fn(Rc<Connection<N>>)) {
    let worker = connection.worker.clone();
    let tables = worker.tables();
    let Some(listener) = tables.listener(connection.listener) else { return };
    let (limits, series) = (listener.config.limits.clone(), listener.series);
    drop(tables);
    // What ends idle connections tells this one to end gently; what ends all of them ends it.
    let gentle = worker.net.stop();
    let registered = worker.connections.add(gentle.clone(), connection.listener.index);
    registered.set_idle(true);
    registered.set_standing(connection.standing());
    if worker.draining() {
        gentle.trigger(StopReason::Drain);
    }
    connection.stop.set_deadline(None);
    connection.stop.clear();
    let ends = Ends {
        peer: connection.transport.peer_address(),
        local: connection.transport.local_address(),
        original: connection.transport.original_destination(),
    };
    let trunk = Trunk::new(Side::Server, ends, limits.max_streams, worker.net.now());
    let channels = Rc::<Registry>::default();
    let opened = |channel| {
        let transport = Transport::Channel(channel);
        let channel = Connection::of_channel(&connection, transport, &channels);
        if channel.is_of_another_time() {
            // Its client has to ask anew what is spoken here.
            gentle.trigger(StopReason::Drain);
        }
        start(Rc::new(channel));
    };
    let patience = Patience { greeting: limits.handshake_timeout, unused: limits.idle_timeout };
    let (net, transport, stop) = (&worker.net, &connection.transport, &connection.stop);
    let over = pump::run(net, &trunk, transport, patience, stop, &gentle, opened).await;
    drop(registered);
    let drained = stop.reason() == Some(StopReason::Drain);
    channels.end_all(if drained { StopReason::Drain } else { StopReason::Abort });
    if let Over::Broken(broken) = over {
        let reason = if broken == Broken::Flood { Reason::Flood } else { Reason::TrunkError };
        worker.recorder.add(series, counter::REASON + reason as usize, 1);
        tracing::debug!(target: "proxy", client = connection.client_text(), reason = reason.label(), "a trunk ended: {broken}");
    }
}
