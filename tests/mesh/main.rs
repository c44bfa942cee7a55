//! The mesh tests: real processes, each stage and theme in a file. Every test runs on both drivers where that can matter.
//!
//! `cargo test -p ringmesh-control --test mesh http1` runs the tests of one file.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]
#![forbid(unsafe_code)]

mod support;
mod load;

mod listener;
mod proxy_protocol;
mod address;
mod http1;
mod smuggling;
mod differential;
mod http2;
mod grpc;
mod crash;
mod driver;
mod reload;
mod tls;
mod envoy;
mod edge;
mod https;
mod sources;
mod body_limit;
mod passthrough;
mod detect;
mod policy;
mod route;
mod balance;
mod health;
mod upstream;
mod limits;
mod tcp;
mod tunnel;
mod websocket;
mod browser;
mod hop;
mod mux;
mod telemetry;
mod panic;
mod hostile;
mod idle;
mod cli;
mod exec;
mod intercept;
mod demo;
mod pages;
