//! The story: what happens to a connection and to a request, in the order it happens. Joins the stages, holds no logic of
//! its own.

pub mod transport;
pub mod pace;
pub(crate) mod allowance;
pub mod deadline;
pub mod original;
pub mod connection;
pub mod preface;
pub mod request;
pub mod redirect;
pub mod progress;
pub mod http1;
pub mod exchange;
pub mod http2;
pub mod grpc;
pub mod grpc_web;
pub mod pooled;
pub mod opaque;
pub mod relay;
pub mod hop;
pub mod date;
pub mod tunnel;
pub mod websocket;
