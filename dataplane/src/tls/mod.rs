//! TLS, and mutual TLS with SPIFFE identities: the only stage that grants an identity.
//!
//! [`server`] and [`client`] make configs of an identity, once for each change of it; [`edge_server`] makes one of ordinary
//! certificates, whose clients are nobody ([`accept_as`]). [`accept`] and [`connect`] take a
//! connected stream to a [`TlsStream`] and the [`Peer`] at its other end, or to the cause why not ([`Refused`]).
//! TLS 1.3 only, both sides show an SVID, no tickets: rustls would accept one without looking at bundle, expiry or
//! identity again.

mod budget;
mod config;
mod fault;
mod handshake;
pub mod limits;
mod offer;
mod proof;
mod proven;
mod reading;
mod refused;
mod session;
mod shared;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod verify;
mod writing;

pub use config::{Error, client, edge_server, server, without_mesh};
pub use fault::Fault;
pub use handshake::{Alpn, Asked, Parting, Peer, accept, connect};
pub use offer::{accept_any_protocol, accept_as};
pub use proof::{Anchor, Proof};
pub use refused::Refused;
pub use shared::free_unused;
pub use stream::TlsStream;

#[cfg(test)]
mod tests;
