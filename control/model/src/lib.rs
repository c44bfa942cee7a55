//! The nouns of the mesh: TOML in, resolved snapshot out, and the messages between the processes.
#![forbid(unsafe_code)]

pub mod delta;
pub mod snapshot;
pub mod spiffe;
pub mod wire;
