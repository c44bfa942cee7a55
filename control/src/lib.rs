//! The control process of Ringmesh: reads the config and what it names, keeps a data plane running with the newest
//! configuration that works, and tells what is going on.
//!
//! [`cli`] is the command line. [`supervisor`] is the heart of `ringmesh run`: [`source`] says what is wanted, [`publish`]
//! what the data plane is told of it over a [`link`], and [`state`] what people are shown.
#![forbid(unsafe_code)]

pub mod cli;
pub mod log;
pub mod machine;

pub mod directory;
pub mod source;
pub mod identity;
pub mod publish;
pub mod link;
pub mod supervisor;
pub mod intercept;

pub mod state;
pub mod telemetry;
pub mod admin;

pub mod demo;
