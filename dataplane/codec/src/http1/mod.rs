//! HTTP/1.0 and HTTP/1.1 heads: parsed as offsets, written as spans of what came in plus the changed text.

mod connection;
mod edits;
mod fields;
mod local;
mod parser;
mod progress;
mod request;
mod response;
pub(crate) mod target;
mod trailers;
mod write;

pub use edits::{Chunked, ClientFields, Connection, EditError, Edits, Framing, Upgrade};
pub use local::{CONTINUE, write_local_response};
pub use request::{RequestHead, RequestView};
pub use response::ResponseHead;
pub use trailers::for_each_trailer;
pub use write::{Joined, Sink};

/// How far a head has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parsed {
    /// It is all there: [`RequestHead::len`] bytes.
    Complete,
    /// More bytes are needed; call again with all of them, from the same first byte.
    Partial,
}
