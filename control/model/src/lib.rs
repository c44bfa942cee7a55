//! The nouns of the mesh: TOML in, resolved snapshot out, and the messages between the processes.
#![forbid(unsafe_code)]

pub mod admin;
pub mod config;
pub mod delta;
pub mod error;
pub mod listener;
pub mod log;
pub mod mesh;
pub mod name;
mod nearest;
pub mod policy;
pub mod reader;
pub mod resolve;
pub mod route;
pub mod runtime;
pub mod service;
pub mod snapshot;
pub mod spiffe;
pub mod unit;
pub mod wire;
pub mod workload;
