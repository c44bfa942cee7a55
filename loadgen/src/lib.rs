//! Load and services for Ringmesh's demo, benchmarks and tests: an HTTP/1.1 and TCP client that counts honestly, and the
//! servers it talks to. Runs on the same ring as the proxy, but never uses the proxy's codec: a framing bug must not hide
//! itself in the instrument that measures it.

#![forbid(unsafe_code)]

pub mod arrival;
pub mod limits;
pub mod report;
pub mod unit;
