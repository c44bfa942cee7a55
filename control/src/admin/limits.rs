//! Bounds on what somebody who reaches the admin port may take. It should be nobody but probes and scrapers, a few at a
//! time; and it must not be able to hold up the control process that it lives in.

use std::time::Duration;

/// Connections served at a time; more wait in the port's queue.
pub const MAX_CONNECTIONS: usize = 64;

/// From the first byte we wait for to the end of the request head. It also ends idle connections.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection is kept at all: whoever does not read answers is rid of after that, and [`GRACE`].
pub const MAX_AGE: Duration = Duration::from_secs(60);

/// How long an answer under way at the end of a connection's time may go on.
pub const GRACE: Duration = Duration::from_secs(10);

/// Largest request head, in bytes. Probes and scrapers send a few hundred.
pub const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Most fields in a head.
pub const MAX_FIELDS: usize = 64;

/// How long accepting pauses when there are no descriptors left.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A page that is longer than this is sent while it is written.
pub const CHUNK_BYTES: usize = 64 * 1024;

/// Pieces of a page that wait for a slow reader; then its writer waits too.
pub const MAX_CHUNKS_WAITING: usize = 2;

/// Pages that are written at a time, each on a thread of its own and with a copy of what it shows: about 10 MB for ten
/// thousand services. Shorter than [`CHUNK_BYTES`], a page waits for no reader.
pub const MAX_PAGES_WRITTEN: usize = 8;
