//! What a connection's bytes travel in.

use ringmesh_ring::maybe_tls::MaybeTls;

use crate::tls::TlsStream;

/// A connection with or without TLS.
pub type Transport<S> = MaybeTls<S, TlsStream<S>>;
