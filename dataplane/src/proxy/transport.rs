//! What a connection's bytes travel in.

use ringmesh_ring::maybe_tls::MaybeTls;

use crate::mux::Channel;
use crate::tls::TlsStream;

/// A connection with or without TLS, or a channel of one that carries many.
pub type Transport<S> = MaybeTls<S, TlsStream<S>, Channel>;
