//! What a client speaks, where the listener leaves that open, and what it asks for in TLS that is passed on.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

mod protocol;
mod hello;

pub use hello::{Refused, read_hello};
pub use protocol::{Spoken, detect};
