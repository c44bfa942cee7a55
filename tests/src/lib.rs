//! The harness of the mesh tests: real `ringmesh` processes between fake clients and services, which may misbehave.
//!
//! Everything ends by itself when it is dropped, also while a test panics; processes are ended by their id. Waiting has a
//! deadline, and what is waited for is looked at rather than slept for. None of this uses the proxy's own code for HTTP or
//! TLS identities: a fault there must not hide itself in the instrument.
//!
//! ```text
//! Client ──► Proxy (ringmesh run: control + data plane) ──► Service        well-behaved; misbehaviour: `peers`
//! ```
#![forbid(unsafe_code)]

pub mod wait;
pub mod ports;
pub mod random;
pub mod network;
pub mod driver;

pub mod message;
pub mod client;
pub mod service;
pub mod gate;
pub mod peers;
pub mod certificates;
pub mod tls;
pub mod http2;
pub mod websocket;
pub mod mux;

pub mod process;
pub mod proxy;
pub mod metrics;
pub mod trace;
pub mod programs;

pub use client::Client;
pub use driver::{Driver, on_both_drivers, on_both_drivers_at_once};
pub use message::{Head, Message};
pub use metrics::Metrics;
pub use programs::Program;
pub use proxy::{Builder, Proxy};
pub use random::Random;
pub use service::Service;
pub use wait::{DEADLINE, eventually, hold};
