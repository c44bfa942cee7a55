//! Events: what an access log line or a handshake record is made of. A worker writes them, encoded, into a ring of its own
//! in shared memory; when nobody drains it they are dropped and counted, and requests never wait.

use serde::{Deserialize, Serialize};

/// Longest encoded event, in bytes; longer parts are cut (see [`clip`]).
pub const MAX_EVENT_BYTES: usize = 4 * 1024;

/// Longest method, path, authority or identity in an event, in bytes.
pub const MAX_TEXT_BYTES: usize = 700;

/// Something that happened on a worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event<'a> {
    /// A request ended.
    #[serde(borrow)]
    Access(Access<'a>),
    /// A handshake ended.
    Handshake(Handshake<'a>),
    /// An opaque connection ended.
    Connection(Connection<'a>),
    /// A connection was refused before its client was known.
    Refused(Refused<'a>),
    /// A client speaks something else than its port does.
    Hint(Hint<'a>),
    /// A message that cannot be read.
    Unreadable(Unreadable<'a>),
    /// No endpoint of a service can be reached, or one can again.
    Reach(Reach<'a>),
}

/// A client that speaks something else than its port does: worth a word to whoever reads the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hint<'a> {
    /// Listener.
    pub listener: &'a str,
    /// The client's address, or empty.
    pub client: &'a str,
    /// Number of the [`crate::outcome::Reason`].
    pub reason: u8,
}

/// A message that cannot be read: who wrote it has to know why.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Unreadable<'a> {
    /// Listener of the request.
    pub listener: &'a str,
    /// The service whose answer it is; empty: it is a request.
    pub service: &'a str,
    /// The address of who wrote it, or empty.
    pub from: &'a str,
    /// Number of the [`crate::outcome::Reason`].
    pub reason: u8,
    /// The refusal in words.
    pub detail: &'a str,
}

/// No endpoint of a service can be reached, or one can again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reach<'a> {
    /// The service.
    pub service: &'a str,
    /// How many endpoints it has.
    pub endpoints: u32,
    /// The one that was tried last, or can be reached.
    pub endpoint: &'a str,
    /// Number of the [`crate::outcome::Reason`] that the last attempt ended in; that of `Ok` if it can be reached.
    pub reason: u8,
}

/// A request that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Access<'a> {
    /// Its end, in microseconds since the Unix epoch.
    pub time: u64,
    /// Listener.
    pub listener: &'a str,
    /// Route, or empty.
    pub route: &'a str,
    /// Rule of the route, or empty.
    pub rule: &'a str,
    /// Service, or empty.
    pub service: &'a str,
    /// The endpoint's address, or empty.
    pub endpoint: &'a str,
    /// The client's address, or empty.
    pub client: &'a str,
    /// The client's SPIFFE ID, or empty.
    pub peer: &'a str,
    /// The allow rule that admitted it, as `policy/rule`; the policies that guard the listener if none did; `default` if no
    /// policy guards it; empty if none was asked.
    pub decided_by: &'a str,
    /// Method.
    pub method: &'a str,
    /// Path, without query.
    pub path: &'a str,
    /// Authority.
    pub authority: &'a str,
    /// Status sent; 0: none.
    pub status: u16,
    /// The call's gRPC status, if it was one.
    pub grpc_status: Option<u8>,
    /// Number of the [`crate::outcome::Reason`].
    pub reason: u8,
    /// Number of attempts.
    pub attempts: u8,
    /// From the head's end to the response's end, in microseconds.
    pub duration: u64,
    /// Bytes of the request body.
    pub request_bytes: u64,
    /// Bytes of the response body.
    pub response_bytes: u64,
}

/// Who began a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// The peer did.
    Inbound,
    /// We did.
    Outbound,
}

/// A handshake that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Handshake<'a> {
    /// Its end, in microseconds since the Unix epoch.
    pub time: u64,
    /// Who began.
    pub direction: Direction,
    /// Listener (inbound) or service (outbound).
    pub name: &'a str,
    /// Own end of the connection.
    pub local: &'a str,
    /// The other end.
    pub remote: &'a str,
    /// The peer's SPIFFE ID, or empty if it was refused before one was known.
    pub peer: &'a str,
    /// Version of TLS, or empty.
    pub version: &'a str,
    /// Cipher suite, or empty.
    pub cipher: &'a str,
    /// The cause of the refusal; empty: it ended well.
    pub refused: &'a str,
    /// The refusal in words; empty: it ended well.
    pub detail: &'a str,
}

/// An opaque connection that ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connection<'a> {
    /// Its end, in microseconds since the Unix epoch.
    pub time: u64,
    /// Listener.
    pub listener: &'a str,
    /// Route, or empty.
    pub route: &'a str,
    /// Rule of the route, or empty.
    pub rule: &'a str,
    /// Service, or empty.
    pub service: &'a str,
    /// The endpoint's address, or empty.
    pub endpoint: &'a str,
    /// The client's address, or empty.
    pub client: &'a str,
    /// The client's SPIFFE ID, or empty.
    pub peer: &'a str,
    /// The server name that a TLS client asks for, or empty.
    pub authority: &'a str,
    /// The protocols that a TLS client offers by ALPN, with commas between them, or empty.
    pub alpn: &'a str,
    /// The policy and rule that decided, or empty.
    pub decided_by: &'a str,
    /// Number of the [`crate::outcome::Reason`].
    pub reason: u8,
    /// Who ended it: `client`, `endpoint` or `proxy`.
    pub ended_by: &'a str,
    /// How it was ended, see `proxy::relay::How`.
    pub ended_how: &'a str,
    /// From accept, or the end of its handshake, to close, in microseconds.
    pub duration: u64,
    /// Bytes received from the client.
    pub received: u64,
    /// Bytes sent to the client.
    pub sent: u64,
}

/// A connection that was refused before its client was known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refused<'a> {
    /// Listener.
    pub listener: &'a str,
    /// Who is at the connection's other end, or empty.
    pub remote: &'a str,
    /// Number of the [`crate::outcome::Reason`].
    pub reason: u8,
    /// The refusal in words.
    pub detail: &'a str,
}

/// The longest valid beginning of `bytes` that an event may hold.
pub fn clip(bytes: &[u8]) -> &str {
    let bytes = &bytes[..bytes.len().min(MAX_TEXT_BYTES)];
    match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&bytes[..error.valid_up_to()]).unwrap_or_default(),
    }
}
