//! The nouns of the mesh: TOML in, resolved snapshot out, and the messages between the processes.
//!
//! In the order in which things happen: [`config`] reads the file into one type for each section, [`resolve`] follows the
//! names in it and makes a [`snapshot`], [`delta`] tells two snapshots apart, and [`wire`] carries them to the data plane.
//! Whatever is wrong on the way is an [`error::Problem`] with file, line and key.
#![forbid(unsafe_code)]

pub mod config;
pub mod mesh;
pub mod workload;
pub mod runtime;
pub mod log;
pub mod admin;
pub mod listener;
pub mod edge;
pub mod health;
pub mod hop;
pub mod service;
pub mod route;
pub mod policy;
pub mod intercept;
pub mod resolve;
pub mod snapshot;
pub mod delta;
pub mod wire;

pub mod error;
pub mod name;
pub mod network;
mod nearest;
pub mod reader;
pub mod spiffe;
pub mod unit;
