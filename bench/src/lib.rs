//! How fast Ringmesh is, against what, and at which cost.
//!
//! ```text
//! scenario → turn → report          Ringmesh beside real proxies: fresh processes, taking turns
//!            contender, template, service, process, load
//! memory, parts, plane              the data plane inside this process: micro benchmarks, instructions, allocations
//! ```

#![forbid(unsafe_code)]

// Side by side.
pub mod scenario;
pub mod template;
pub mod contender;
pub mod service;
pub mod load;
pub mod process;
pub mod turn;
pub mod idle;
pub mod side_by_side;
pub mod statistics;
pub mod machine;
pub mod plot;
pub mod report;

// In this process.
pub mod snapshot;
pub mod http2;
pub mod memory;
pub mod parts;
pub mod plane;

// One number, and a bound for it.
pub mod callgrind;
pub mod counts;
pub mod baseline;
pub mod parent;
pub mod gate;
pub mod programs;
pub mod package;
