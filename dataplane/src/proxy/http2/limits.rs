//! What a peer may ask of an HTTP/2 connection.

use std::time::Duration;

use ringmesh_codec::limits::DEFAULT_MAX_TRAILER_BYTES;

/// What one stream may send ahead of being passed on, in bytes. The peer fills it, so it bounds what a stream holds; a quarter
/// of a MiB keeps 100 Mbit/s busy over 20 ms.
pub const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// What all streams of a connection may send ahead of being passed on: as much as a hundred of them together. What a stream
/// holds that nobody reads counts here too, so that a smaller window would make a few slow readers stop all others of a
/// connection that many share.
pub const CONNECTION_WINDOW_BYTES: u32 = 100 * STREAM_WINDOW_BYTES;

/// What of one stream may wait to be sent: more would only lie here longer.
pub const MAX_SEND_BUFFER_BYTES: usize = 128 * 1024;

/// Largest head of a response, as HTTP/2 counts it (RFC 9113 section 6.5.2): that of HTTP/1, and 32 bytes more a field.
pub const MAX_RESPONSE_HEADER_BYTES: u32 = 64 * 1024 + 32 * 128;

/// Largest trailers of a request or a response: as the largest head of either, and as in HTTP/1, by which they may go on.
pub const MAX_TRAILER_BYTES: usize = DEFAULT_MAX_TRAILER_BYTES;

/// Heads of requests are read up to so many times the size that a listener allows, so that it is us who refuse them: with our
/// reason, counted, and with what the listener tells browsers. The library refuses larger ones with a bare 431, and from four times
/// that on it ends the connection. A stream lets go of such a head as soon as it has looked at it. Those of responses are read as
/// far, because of trailers that are larger the library says nothing and gives us a part.
pub const READ_HEAD_FACTOR: usize = 4;

/// After so long without a byte while requests are open, a PING asks whether the peer is still there.
pub const SILENCE: Duration = Duration::from_secs(30);

/// How long the answer to that PING may take; then the connection is over.
pub const PONG_TIMEOUT: Duration = Duration::from_secs(15);

/// Resets of streams that the peer has not heard of yet, and resets by the peer of streams that we have not looked at: the
/// library ends a connection that has more of either ("rapid reset", CVE-2023-44487).
pub const MAX_RESET_STREAMS: usize = 50;

/// Streams that we had to reset because the peer broke their rules ("MadeYouReset", CVE-2025-8671), over a connection's life.
pub const MAX_BROKEN_STREAMS: usize = 1024;

/// What control frames a peer has to its credit at first, and at most: see `calm`.
pub const MAX_CREDIT: u32 = 2_000;

/// Credit that comes back each second. A client that sends a PING a second, and a window update now and then, never notices.
pub const CREDIT_PER_SECOND: u32 = 100;

/// A whole body of up to so many bytes is given to the library with its head, so that both leave in one send: it says only
/// later, in a turn of its own, that the endpoint takes something. Until then it holds them. The last pieces of
/// bodies go to clients in this way too, so many bytes on each connection before it is asked again.
pub const MAX_UNASKED_BYTES: usize = 16 * 1024;

/// What the last piece of a body counts for at least: it may hold a buffer. As it asks again and again, a client that takes
/// nothing can have one such piece wait for each of its streams.
pub const LEAST_UNASKED_BYTES: usize = 1024;

/// What the kernel may hold of what was sent before: a client that takes it steadily makes room for more only after a third of it,
/// and it is no slower for that.
pub const SENT_BEFORE_BYTES: usize = 1024 * 1024;

/// Least time for a send, however short idle connections are kept: how much of it a client has taken is not seen before all is.
pub const LEAST_TAKING: Duration = Duration::from_secs(60);
