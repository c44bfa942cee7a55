//! Bytes to messages and back, without I/O, clock or runtime.
//!
//! A connection hands its unread bytes to a head ([`http1::RequestHead`], [`http1::ResponseHead`]), which remembers
//! offsets into them and nothing else, so that a message can be forwarded from the buffer it arrived in. [`framing`]
//! alone decides how long a body is; [`body::BodyScanner`] then says which of the following bytes belong to it.
//! Everything whose length or destination two readers could understand differently is a [`Refusal`].
//!
//! [`client_hello`] and [`sniff`] look at a connection's first bytes: what a TLS client asks for, and what is spoken at all.
//!
//! Bytes from a peer never panic here. Nothing allocates per message once storage has grown to a connection's needs.

#![forbid(unsafe_code)]

pub mod sniff;
pub mod client_hello;

pub mod authority;
pub mod body;
pub mod framing;
pub mod head;
pub mod grpc;
pub mod grpc_web;
pub mod grpc_health;
pub mod http1;
pub mod http2;
pub mod limits;
pub mod mux;
pub mod name;
pub mod normalize;
pub mod proxy_protocol;
pub mod refusal;
mod words;

pub use body::BodyScanner;
pub use client_hello::ClientHello;
pub use framing::BodyLength;
pub use head::{Head, Method, Version};
pub use limits::Limits;
pub use refusal::Refusal;
