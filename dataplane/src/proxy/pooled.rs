//! Busy connections and streams run in boxes that are used again: an idle one holds none, and a new one allocates none.

use std::rc::Rc;

use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::net::Net;
use ringmesh_ring::slot::Pool;

use super::connection::{Connection, Exchanges, Next};
use super::http1;
use super::http2::stream::{self, Begun};

/// Boxes of both kinds. Clones are the same; each connection has one, so it is a pointer.
struct Pooled<F, M, G, L>(Rc<Boxes<F, M, G, L>>);

struct Boxes<F, M, G, L> {
    connections: Pool<F, M>,
    streams: Pool<G, L>,
}

/// Boxes for everything that a worker serves.
pub fn pooled<N: Net>() -> impl Exchanges<N> {
    Pooled(Rc::new(Boxes {
        connections: Pool::new(|(connection, buffer)| http1::serve::<N>(connection, buffer)),
        streams: Pool::new(stream::serve::<N>),
    }))
}

impl<F, M, G, L> Clone for Pooled<F, M, G, L> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<N: Net, F, M, G, L> Exchanges<N> for Pooled<F, M, G, L>
where
    F: Future<Output = Next> + 'static,
    M: Fn((Rc<Connection<N>>, Buffer)) -> F + Clone + 'static,
    G: Future<Output = ()> + 'static,
    L: Fn(Begun<N>) -> G + Clone + 'static,
{
    fn run(&self, connection: Rc<Connection<N>>, buffer: Buffer) -> impl Future<Output = Next> {
        self.0.connections.run((connection, buffer))
    }

    fn stream(&self, begun: Begun<N>) -> impl Future<Output = ()> + 'static {
        self.0.streams.run(begun)
    }

    fn clear(&self) {
        self.0.connections.clear();
        self.0.streams.clear();
    }
}

#[cfg(test)]
mod tests {
    use ringmesh_ring::net::Sockets;

    use super::*;

    fn bytes<A, F, M: Fn(A) -> F>(_: M) -> usize {
        size_of::<F>()
    }

    fn connection((connection, buffer): (Rc<Connection<Sockets>>, Buffer)) -> impl Future {
        http1::serve(connection, buffer)
    }

    #[test]
    fn a_busy_connection_fits_a_page_and_a_stream_little_more() {
        let connection = bytes(connection);
        assert!((1024..=4096).contains(&connection), "a busy connection's future has {connection} bytes");
        let stream = bytes(stream::serve::<Sockets>);
        assert!((1024..=5120).contains(&stream), "a stream's future has {stream} bytes");
    }
}
