//! A connection of either side: plain or TLS, over TCP or a Unix socket.

use ringmesh_ring::{MaybeTls, Socket};

use crate::tls::TlsStream;

/// What bytes travel in.
pub(crate) type Transport = MaybeTls<Socket, TlsStream<Socket>>;
