//! Mutual TLS with SPIFFE identities: the only stage that grants an identity.
//!
//! [`server`] and [`client`] make configs of an identity, once for each change of it. [`accept`] and [`connect`] take a
//! connected stream to a [`TlsStream`] and the [`Peer`] at its other end, or to the cause why not ([`Refused`]).
//! TLS 1.3 only, both sides show an SVID, no tickets: rustls would accept one without looking at bundle, expiry or
//! identity again.

mod budget;
mod config;
mod fault;
mod handshake;
pub mod limits;
mod reading;
mod refused;
mod session;
mod shared;
mod stream;
#[cfg(test)]
pub(crate) mod testing;
mod verify;
mod writing;

pub use config::{Error, client, server};
pub use fault::Fault;
pub use handshake::{Peer, accept, connect};
pub use refused::Refused;
pub use shared::free_unused;
pub use stream::TlsStream;

#[cfg(test)]
mod tests;
