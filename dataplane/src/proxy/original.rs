//! Where the client of an intercepted connection wanted to go. It belongs to the connection, with what is known of that
//! place: nobody else's request goes there over a connection that was made for this client.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::net::SocketAddr;
use std::rc::Rc;

use ringmesh_model::snapshot::{self, Direction};
use ringmesh_ring::net::Address;
use ringmesh_ring::stream::Stream;

use crate::places::Place;
use crate::pool::State;
use crate::tables::{Endpoint, Listener, Tables};

/// The original destination of a connection.
pub struct Original<S: Stream> {
    /// It, as an endpoint.
    pub endpoint: Endpoint,
    /// What is known of it, with the connection that waits there for the next request.
    pub state: Rc<State<S>>,
}

impl<S: Stream> Original<S> {
    /// Where a connection wanted to go that `listener` has taken. None: to a port of ours, or it was not intercepted. Nothing
    /// is forwarded there, or we would call ourselves.
    pub fn of(tables: &Tables, listener: &Listener, stream: &S, client: Option<SocketAddr>) -> Option<Box<Self>> {
        let direction = listener.config.intercept?;
        let wanted = stream.original_destination()?;
        if is_ours(tables, direction, wanted, canonical(stream.local_address()?), client.map(canonical)) {
            return None;
        }
        let nowhere = Place { index: u32::MAX, generation: 0 };
        let endpoint =
            Endpoint { place: nowhere, address: Address::Ip(wanted), text: wanted.to_string().into(), health: None };
        Some(Box::new(Self { endpoint, state: Rc::new(State::new(0)) }))
    }
}

impl<S: Stream> Drop for Original<S> {
    /// Nobody else will use what was made for this client.
    fn drop(&mut self) {
        self.state.close();
    }
}

/// An address of IPv4 as one, which a listener of all addresses has in its mapped form (RFC 4291 section 2.5.5.2).
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Whether a destination is a port of ours. `here` is where the connection was brought to.
fn is_ours(
    tables: &Tables,
    direction: Direction,
    wanted: SocketAddr,
    here: SocketAddr,
    client: Option<SocketAddr>,
) -> bool {
    if wanted == here {
        return true;
    }
    let address = wanted.ip();
    // Who calls an address of its own machine has that address itself.
    let is_local = direction == Direction::Inbound
        || address.is_loopback()
        || address == here.ip()
        || client.is_some_and(|client| client.ip() == address);
    let mut listeners = tables.listeners.iter().flatten();
    is_local
        && listeners.any(|listener| match listener.config.bind {
            snapshot::Address::Ip(bind) => bind.port() == wanted.port(),
            snapshot::Address::Unix(_) => false,
        })
}
