//! Responses that come from the proxy itself.

use std::io::Write;

use crate::framing;

/// The interim response that a client with `Expect: 100-continue` waits for.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// Writes a complete head of an own response; the body's `body_bytes` bytes are to follow it. A 1xx or 204 gets no
/// Content-Length. Control characters in values become spaces.
pub fn write_local_response(status: u16, reason: &str, fields: &[(&str, &str)], body_bytes: u64, out: &mut Vec<u8>) {
    let clean = |out: &mut Vec<u8>, text: &str| {
        out.extend(text.bytes().map(|byte| if byte.is_ascii_control() { b' ' } else { byte }));
    };
    write!(out, "HTTP/1.1 {status} ").expect("writing to memory never fails");
    clean(out, reason);
    out.extend_from_slice(b"\r\n");
    for (name, value) in fields {
        debug_assert!(name.bytes().all(crate::name::is_token), "names of own fields are tokens");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        clean(out, value);
        out.extend_from_slice(b"\r\n");
    }
    if !framing::forbids_length(status) {
        write!(out, "Content-Length: {body_bytes}\r\n").expect("writing to memory never fails");
    }
    out.extend_from_slice(b"\r\n");
}
