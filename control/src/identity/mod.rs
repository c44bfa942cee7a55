//! Who the workload is: its SVID with key and trust bundle, from files, and a small authority that writes such files.

mod certificate;
mod error;

pub mod ca;
pub mod files;

#[cfg(test)]
mod tests;

pub use certificate::{Certificate, Date, Kind, Usage};
pub use error::Error;
