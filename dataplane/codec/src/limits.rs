//! What a peer may make us keep or scan. The peer chooses the sizes, so we choose the bounds.

/// Fields of one head at most, whatever [`Limits::max_fields`] says: they are parsed on the stack, 32 bytes each.
pub const MAX_FIELDS: usize = 128;

/// Bytes of one head at most, whatever [`Limits::max_head_bytes`] says: offsets into a head are kept as `u16`.
pub const MAX_HEAD_BYTES: usize = u16::MAX as usize;

/// Options of all `Connection` fields of one head together. Each is compared with every field name, so that the
/// product with [`MAX_FIELDS`] has to stay small; honest peers send one or two.
pub const MAX_CONNECTION_OPTIONS: usize = 16;

/// The bounds of one listener or service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest head: start line, fields and blank line (431). Capped by [`MAX_HEAD_BYTES`].
    pub max_head_bytes: usize,
    /// Most fields in a head (431). Capped by [`MAX_FIELDS`].
    pub max_fields: usize,
    /// Longest request target (414).
    pub max_target_bytes: usize,
    /// Longest chunk line: size and extensions, without its CRLF.
    pub max_chunk_line_bytes: usize,
    /// Largest trailer section, all lines together.
    pub max_trailer_bytes: usize,
    /// Most content of a body.
    pub max_body_bytes: u64,
}

/// As Envoy's default: fits one large pool buffer beside the first bytes of a body.
pub const DEFAULT_MAX_HEAD_BYTES: usize = 60 * 1024;
/// As Envoy, Apache httpd and HAProxy (100 to 101).
pub const DEFAULT_MAX_FIELDS: usize = 100;
/// RFC 9112 section 3 asks for at least 8,000.
pub const DEFAULT_MAX_TARGET_BYTES: usize = 16 * 1024;
/// The longest extensions in use, signed chunks of object stores, take about 100 bytes.
pub const DEFAULT_MAX_CHUNK_LINE_BYTES: usize = 1024;
/// Trailers carry a checksum or a status with a message. Those of gRPC have its metadata and may be as large as a head: in HTTP/2
/// they may, and between two of our proxies they go as HTTP/1.
pub const DEFAULT_MAX_TRAILER_BYTES: usize = 64 * 1024;

const _: () = assert!(DEFAULT_MAX_HEAD_BYTES <= MAX_HEAD_BYTES);
const _: () = assert!(DEFAULT_MAX_FIELDS <= MAX_FIELDS);
const _: () = assert!(DEFAULT_MAX_TARGET_BYTES < DEFAULT_MAX_HEAD_BYTES);

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_head_bytes: DEFAULT_MAX_HEAD_BYTES,
            max_fields: DEFAULT_MAX_FIELDS,
            max_target_bytes: DEFAULT_MAX_TARGET_BYTES,
            max_chunk_line_bytes: DEFAULT_MAX_CHUNK_LINE_BYTES,
            max_trailer_bytes: DEFAULT_MAX_TRAILER_BYTES,
            max_body_bytes: u64::MAX,
        }
    }
}
