//! Clients of any protocol: where a listener finds out what is spoken, ALPN (RFC 7301) may agree on a protocol, but need not.

use std::sync::Arc;

use ringmesh_codec::ClientHello;
use ringmesh_model::snapshot::Mtls;
use ringmesh_ring::{Buffer, Stop, Stream};
use rustls::ServerConfig;

use super::handshake::{Parting, Peer, accept_read, known};
use super::refused::Refused;
use super::stream::TlsStream;
use crate::detect::read_hello;

/// Like [`accept_as`], but a client that offers none of the protocols of `config` is not refused
/// for it (RFC 7301 section 3.2 would have it so): it agrees on none, and may speak what it likes.
///
/// # Errors
/// By cause, see [`Refused`].
pub async fn accept_any_protocol<S: Stream>(
    stream: S,
    config: Arc<ServerConfig>,
    mtls: Mtls,
    stop: &Stop,
    parting: &mut Option<Parting<S>>,
) -> Result<(TlsStream<S>, Peer), Refused> {
    let mut arrived = Buffer::hollow();
    // What is wrong with it, or that none came, the handshake finds out again, and tells the client.
    let hello = read_hello(&stream, stop, &mut arrived).await.ok();
    let config = match hello {
        Some(hello) if offers_others_alone(&hello, &config) => without_protocols(&config),
        _ => config,
    };
    admitted(accept_read(stream, config, arrived, stop, parting).await?, mtls)
}

/// Like [`super::accept`], of clients who must prove who they are or not, as `mtls` says; a client that is refused for its certificate is left in
/// `parting`.
///
/// # Errors
/// By cause, see [`Refused`].
pub async fn accept_as<S: Stream>(
    stream: S,
    config: Arc<ServerConfig>,
    mtls: Mtls,
    stop: &Stop,
    parting: &mut Option<Parting<S>>,
) -> Result<(TlsStream<S>, Peer), Refused> {
    admitted(accept_read(stream, config, Buffer::hollow(), stop, parting).await?, mtls)
}

fn admitted<S: Stream>(accepted: (TlsStream<S>, Peer), mtls: Mtls) -> Result<(TlsStream<S>, Peer), Refused> {
    match mtls {
        Mtls::Strict => known(accepted),
        Mtls::Off => Ok(accepted),
    }
}

fn offers_others_alone(hello: &ClientHello, config: &ServerConfig) -> bool {
    hello.protocols().next().is_some() && !config.alpn_protocols.iter().any(|ours| hello.offers(ours))
}

fn without_protocols(config: &ServerConfig) -> Arc<ServerConfig> {
    let mut config = config.clone();
    config.alpn_protocols.clear();
    Arc::new(config)
}
