//! The shared mesh hop: between two Ringmesh proxies, each worker keeps one connection to an endpoint (a few under load), the
//! trunk, and everything goes in channels of it. A channel is a byte stream like any other
//! ([`Stream`](ringmesh_ring::stream::Stream)), so that above it nothing changes: it carries HTTP/1.1 or opaque bytes as a
//! connection of its own would, is pooled, reset and drained like one, and each limit holds in it. What is ready in the same
//! turn leaves in one TLS record and one send.
//!
//! Both sides know each other by ALPN, after the mutual handshake; who calls is who the trunk's certificate names. The bytes on
//! the wire are specified in `PROTOCOL.md`, and read by [`ringmesh_codec::mux`].
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

mod care;
mod channel;
mod limits;
mod pump;
mod trunk;

pub mod client;
pub mod server;

pub use channel::Channel;
pub use trunk::{Broken, Trunk};

#[cfg(test)]
mod tests;
