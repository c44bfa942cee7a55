//! Every bound on what a peer or a user can make this crate hold.

use std::time::Duration;

/// Largest message head, in bytes: the largest pool buffer.
pub const MAX_HEAD_BYTES: usize = 64 * 1024;

/// Most fields in a head. More than any proxy under test allows, so that it is the proxy that refuses.
pub const MAX_FIELDS: usize = 256;

/// Longest line that gives a chunk's size, or of a trailer, in bytes.
pub const MAX_CHUNK_LINE_BYTES: usize = 8 * 1024;

/// Most bytes of trailers after a chunked body.
pub const MAX_TRAILER_BYTES: usize = 64 * 1024;

/// Most connections of one load. The descriptors of one process end before.
pub const MAX_CONNECTIONS: usize = 100_000;

/// Most different values of the counted response field that are told apart; further ones are counted as `other`.
pub const MAX_FIELD_VALUES: usize = 64;

/// Longest value of the counted response field that is kept, in bytes.
pub const MAX_FIELD_VALUE_BYTES: usize = 128;

/// Most different explanations of what went wrong that are told apart.
pub const MAX_EXPLANATIONS: usize = 16;

/// Most streams that a load has on one connection.
pub const MAX_STREAMS: usize = 10_000;

/// Largest message of a load that is not HTTP, in bytes: it is held as a whole.
pub const MAX_MESSAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Most targets of one load.
pub const MAX_TARGETS: usize = 1_000;

/// Most entries in one load.
pub const MAX_ENTRIES: usize = 1_000;

/// Most connections that a server keeps open at once.
pub const MAX_SERVED_CONNECTIONS: usize = 100_000;

/// Most streams that a server takes at once on one connection. Their bodies are held while an answer waits.
pub const MAX_SERVED_STREAMS: u32 = 1_000;

/// Largest answer that the shop service takes from the service it calls, in bytes.
pub const MAX_NESTED_ANSWER_BYTES: usize = 64 * 1024;

/// Longest latency that a histogram tells apart; longer ones count as this.
pub const MAX_LATENCY: Duration = Duration::from_secs(120);

/// Highest rate of a load, in requests a second.
pub const MAX_RATE: f64 = 10_000_000.0;

/// Most levels and ramps that a rate is made of.
pub const MAX_RATE_PIECES: usize = 10_000;

/// Most slices of time that a result is divided into: enough for confidence intervals, few enough for a file.
pub const MAX_SLICES: usize = 128;
const _: () = assert!(MAX_SLICES.is_multiple_of(2), "two slices become one");
