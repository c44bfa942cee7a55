//! What a client asks for by its first bytes, where they are not ours to answer.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

mod hello;

pub use hello::{Refused, read_hello};
