//! The thread-per-core proxy. A request passes these stages, in this order; each is a module, and `proxy` tells the story
//! that joins them.
#![forbid(unsafe_code)]

/// Accepting connections, and giving each to the worker with the fewest.
pub mod listener;
/// What a client asks for, by its first bytes.
pub mod detect;
/// Mutual TLS: SPIFFE identities presented and checked.
pub mod tls;
/// Who may call.
pub mod policy;
/// What may look at a request before it is routed.
pub mod filter;
/// Which rule a request falls under, and which service it goes to.
pub mod route;
/// Which endpoint of the service.
pub mod balance;
/// Whether endpoints serve, as probes find out.
pub mod health;
/// Limits that hold over all workers.
pub mod permit;
/// Unused connections to endpoints.
pub mod pool;
/// New connections to endpoints.
pub mod upstream;
/// Many requests and opaque connections in one connection between two proxies of ours.
pub mod mux;

pub mod proxy;
pub mod outcome;
pub mod drain;
pub mod standing;
pub mod telemetry;

pub mod tables;
pub mod places;
pub mod pages;
pub mod loader;
pub mod worker;
pub mod outbox;
pub mod plane;
pub mod link;
pub mod entry;

pub use entry::{Running, Start, start};
