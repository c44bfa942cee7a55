//! Bringing a network namespace's TCP connections to the proxy: rules in an nftables table of our own.

mod nft;
mod rules;

pub use nft::{Error, Shown, off, off_script, on, show};
pub use rules::{NoListener, Rules};

/// Our table. Nothing else is touched.
pub const TABLE: &str = "inet ringmesh";
