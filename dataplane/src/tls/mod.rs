//! tls
pub mod limits;
pub mod config;
pub mod verify;
pub mod refused;
#[cfg(test)]
pub(crate) mod testing;
