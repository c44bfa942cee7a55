//! What a peer may make the TLS stage hold or do.

use std::time::Duration;

use ringmesh_ring::LARGE_BUFFER_BYTES;

/// Largest handshake message with its record headers, in bytes: the peer chooses the length of its certificate chain,
/// so we choose the bound. One large pool buffer; an SVID with two intermediates takes about 2 KiB.
pub const MAX_HANDSHAKE_BYTES: usize = LARGE_BUFFER_BYTES;

/// Most plaintext in one record (RFC 8446 section 5.1).
pub const MAX_RECORD_BYTES: usize = 16 * 1024;

/// Most that a record adds to its plaintext: header 5, nonce 8, tag 16 with AES-GCM in TLS 1.2 (RFC 5288 section 3). TLS 1.3
/// has a content type of 1 in place of the nonce.
pub const RECORD_OVERHEAD_BYTES: usize = 29;

/// What a record of TLS 1.3 adds at least: header 5, content type 1, tag 16 (RFC 8446 section 5.2).
pub const LEAST_OVERHEAD_BYTES: usize = 22;

/// Most sealed buffers in one send; a small one may follow them, as sealing makes what filled buffers of plaintext a little
/// longer. Two, of up to 128 KiB: what a trunk sends at a time.
pub const MAX_SEALED_BUFFERS: usize = 2;

/// Most handshake steps of one worker in one turn of its loop. A step is a flight that came from a peer: key exchange,
/// signature and chain check together. An estimate: a whole handshake without client certificate was measured at
/// 230 µs, so four steps should hold up established connections by about a millisecond a turn at most, while a turn's
/// other cost (a system call of a few µs) stays small beside them.
pub const MAX_HANDSHAKE_STEPS_PER_TURN: u32 = 4;

/// Most bytes that are read and dropped after a refusal, so that closing does not make the kernel answer with a reset
/// that could overtake our alert. What else is under way gets the reset.
pub const MAX_REFUSED_BYTES: usize = 4 * MAX_RECORD_BYTES;

/// Longest that a close_notify may wait for room in the socket, after its connection was let go.
pub const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
