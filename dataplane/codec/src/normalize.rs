//! Paths as policy and route have to see them: what two servers could read as different resources is either brought to
//! one form or reported, so that deny wins on doubt.

use std::borrow::Cow;

use crate::refusal::Refusal;

/// Whether a path is surely its own normal form: no percent-encoding, no segment that starts with a dot, no backslash.
/// False only means that [`normalized`] has to look.
pub fn path_is_plain(path: &[u8]) -> bool {
    let mut previous = 0;
    for &byte in path {
        if byte == b'%' || byte == b'\\' || (byte == b'.' && previous == b'/') {
            return false;
        }
        previous = byte;
    }
    true
}

/// The normal form of a path (RFC 3986 section 6.2.2): unreserved characters decoded, other encodings with upper-case
/// digits, dot segments resolved. Nothing else is merged: `//` stays. Allocates only where the path is not plain.
///
/// # Errors
/// What servers read differently: [`Refusal::BadPercentEncoding`], [`Refusal::AmbiguousSeparator`] (`%2f`, `%5c`,
/// `%00`, `\`), [`Refusal::AmbiguousDotSegment`] (above the root, or with parameters as in `..;x`).
pub fn normalized(path: &[u8]) -> Result<Cow<'_, [u8]>, Refusal> {
    if path_is_plain(path) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode_unreserved(path)?;
    resolve_dot_segments(&decoded).map(Cow::Owned)
}

fn decode_unreserved(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path;
    while let [first, tail @ ..] = rest {
        rest = tail;
        match first {
            b'\\' => return Err(Refusal::AmbiguousSeparator),
            b'%' => {
                let [high, low, tail @ ..] = tail else { return Err(Refusal::BadPercentEncoding) };
                rest = tail;
                match (hex(*high)? << 4) | hex(*low)? {
                    b'/' | b'\\' | 0 => return Err(Refusal::AmbiguousSeparator),
                    byte if is_unreserved(byte) => decoded.push(byte),
                    _ => decoded.extend([b'%', high.to_ascii_uppercase(), low.to_ascii_uppercase()]),
                }
            }
            byte => decoded.push(*byte),
        }
    }
    Ok(decoded)
}

fn hex(digit: u8) -> Result<u8, Refusal> {
    char::from(digit).to_digit(16).map(|value| value as u8).ok_or(Refusal::BadPercentEncoding)
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// RFC 3986 section 5.2.4, but climbing above the root is reported instead of ignored.
fn resolve_dot_segments(path: &[u8]) -> Result<Vec<u8>, Refusal> {
    let Some(segments) = path.strip_prefix(b"/") else { return Ok(path.to_vec()) };
    let mut resolved = Vec::with_capacity(path.len());
    let mut segments = segments.split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let name = segment.split(|&byte| byte == b';').next().unwrap_or_default();
        let is_dots = matches!(name, b"." | b"..");
        if is_dots && name.len() != segment.len() {
            return Err(Refusal::AmbiguousDotSegment);
        }
        if name == b".." && is_dots {
            let parent = resolved.iter().rposition(|&byte| byte == b'/').ok_or(Refusal::AmbiguousDotSegment)?;
            resolved.truncate(parent);
        }
        if !is_dots {
            resolved.push(b'/');
            resolved.extend_from_slice(segment);
        } else if segments.peek().is_none() {
            resolved.push(b'/');
        }
    }
    Ok(resolved)
}
