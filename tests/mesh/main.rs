//! The mesh tests: real processes of `ringmesh`, a file a stage.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod demo;
