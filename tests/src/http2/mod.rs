//! HTTP/2 for both sides of a proxy, frame by frame: polite as long as nobody tells it otherwise, and able to send whatever
//! nobody may send.
//!
//! A [`Connection`] is one thread's: it reads when it waits for something, remembers per stream what came, and checks that
//! whoever is at the other side keeps the rules. What it does by itself for politeness' sake can be turned off.
//!
//! ```text
//! frame       bytes of a frame          hpack      header blocks
//! connection  either side               receiving  what comes, held against the rules
//! client      what a client expects     service    fake services
//! message     whole requests, answers
//! ```

pub mod frame;
pub mod hpack;
pub mod message;
pub mod transport;
pub mod connection;
mod receiving;
pub mod client;
pub mod service;

pub use client::Ended;
pub use connection::{Came, Connection, Ends, Manners, borrowed};
pub use frame::{Frame, code, flag, kind, setting};
pub use message::Outgoing;
pub use service::{conversing, service, service_at, tls_conversing, tls_service};
