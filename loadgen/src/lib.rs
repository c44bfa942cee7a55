//! Load and services for Ringmesh's demo, benchmarks and tests: an HTTP/1.1 and TCP client that counts honestly, and the
//! servers it talks to. Runs on the same ring as the proxy, but never uses the proxy's codec: a framing bug must not hide
//! itself in the instrument that measures it.
//!
//! ```text
//! load::start(settings) → Running → Report        the client side: threads of connections, driven by a schedule
//! serve::start(settings) → Running                the server side: HTTP/1.1, TCP echo and sink, the demo's shop
//! ```

#![forbid(unsafe_code)]

pub mod limits;
pub mod syntax;
pub mod unit;
mod driver;

// One exchange, both sides.
mod chunked;
mod message;

mod proxy_header;
pub mod tls;
mod transport;
mod grpc;
mod websocket;

// When requests are due, and what came of them.
pub mod arrival;
pub mod compare;
pub mod objective;
pub mod search;
pub mod report;

// The two sides.
pub mod load;
pub mod serve;

mod pace;
mod thread;
mod wait;

pub use driver::Driver;
pub use proxy_header::{ProxyHeader, ProxyVersion};
pub use ringmesh_ring::{Grant, Wish};

/// Counts, for the test that says what a request may allocate.
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: ringmesh_ring::allocator::Counting = ringmesh_ring::allocator::Counting;
