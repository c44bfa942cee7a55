//! Paths as policy and route have to see them: what two servers could read as different resources is either brought to
//! one form or reported, so that deny wins on doubt.

use std::borrow::Cow;

use crate::refusal::Refusal;
use crate::words;

/// Whether a path is surely its own normal form: no percent-encoding, no segment that starts with a dot, no backslash.
/// False only means that [`normalized`] has to look.
pub fn path_is_plain(path: &[u8]) -> bool {
    let doubtful = |word| words::equal(word, b'%') | words::equal(word, b'\\') | words::equal(word, b'.');
    let Some(first) = words::find(path, doubtful) else { return true };
    let (before, from_there) = path.split_at(first);
    let mut previous = before.last().copied().unwrap_or_default();
    for &byte in from_there {
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

/// The normal form of a path, if it has one: what [`normalized`] gives, but for the cause.
pub fn unambiguous(path: &[u8]) -> Option<Cow<'_, [u8]>> {
    if path_is_plain(path) { Some(Cow::Borrowed(path)) } else { normalized(path).ok() }
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
        if has_dots_and_parameters(segment) {
            return Err(Refusal::AmbiguousDotSegment);
        }
        match segment {
            b"." => {}
            b".." => {
                let parent = resolved.iter().rposition(|&byte| byte == b'/').ok_or(Refusal::AmbiguousDotSegment)?;
                resolved.truncate(parent);
            }
            _ => {
                resolved.push(b'/');
                resolved.extend_from_slice(segment);
                continue;
            }
        }
        // A dot segment at the end names a folder: it leaves its slash.
        if segments.peek().is_none() {
            resolved.push(b'/');
        }
    }
    Ok(resolved)
}

/// Servers that cut parameters off before they resolve see `..` in `..;x`, the others see a name.
fn has_dots_and_parameters(segment: &[u8]) -> bool {
    let dots = segment.iter().take_while(|&&byte| byte == b'.').count();
    let rest = &segment[dots..];
    (1..=2).contains(&dots) && (rest.starts_with(b";") || rest.starts_with(b"%3B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(path: &str, expected: Result<&str, Refusal>) {
        let result = normalized(path.as_bytes()).map(|path| String::from_utf8_lossy(&path).into_owned());
        assert_eq!(result, expected.map(str::to_owned), "{path}");
    }

    #[test]
    fn plain_paths_are_borrowed_as_they_are() {
        for path in ["/", "/a/b", "/a//b/", "/a.b/c", "/a..", "/a;b=c", "*", "/a~b_c-d+e|f"] {
            assert!(path_is_plain(path.as_bytes()), "{path}");
            assert!(matches!(normalized(path.as_bytes()), Ok(Cow::Borrowed(_))), "{path}");
            check(path, Ok(path));
        }
    }

    #[test]
    fn a_doubtful_byte_is_seen_wherever_it_stands() {
        for (length, place) in (1..32).flat_map(|length| (0..length).map(move |place| (length, place))) {
            let with = |part: &[u8]| [&vec![b'a'; place][..], part, &vec![b'a'; length - place]].concat();
            for part in [&b"%41"[..], b"\\", b"/.", b"/a.b/.", b"..%"] {
                assert!(!path_is_plain(&with(part)), "{:?}", with(part));
            }
            for part in [&b"."[..], b"/a.", b".././."] {
                assert_eq!(path_is_plain(&with(part)), !with(part).windows(2).any(|pair| pair == b"/."));
            }
        }
    }

    #[test]
    fn encodings_of_unreserved_characters_are_decoded_and_others_written_in_upper_case() {
        check("/%61%2D%5f%7e%2e9", Ok("/a-_~.9"));
        check("/a%20b%3fc%c3%bc%25", Ok("/a%20b%3Fc%C3%BC%25"));
        check("/%2561", Ok("/%2561"));
    }

    #[test]
    fn dot_segments_are_resolved() {
        check("/a/./b", Ok("/a/b"));
        check("/a/../b", Ok("/b"));
        check("/a/b/..", Ok("/a/"));
        check("/a/b/.", Ok("/a/b/"));
        check("/a/..", Ok("/"));
        check("/.", Ok("/"));
        check("/a/%2e%2E/b", Ok("/b"));
        check("/a/.%2e/b", Ok("/b"));
        check("/.well-known/...", Ok("/.well-known/..."));
        check("/a//../b", Ok("/a/b"));
        check("//../b", Ok("/b"));
        check("/a/b/../../c", Ok("/c"));
    }

    #[test]
    fn doubtful_paths_are_reported() {
        for path in ["/a%2fb", "/a%2Fb", "/a%5cb", "/a\\b", "/a%00", "/%2f..%2f"] {
            check(path, Err(Refusal::AmbiguousSeparator));
        }
        for path in ["/%", "/%4", "/%zz", "/a%4g", "/%+1", "/%%41"] {
            check(path, Err(Refusal::BadPercentEncoding));
        }
        for path in ["/..", "/../a", "/a/../../b", "/a/..;x/b", "/a/..;/b", "/a/.;x", "/a/%2e%2e;/b", "/a/..%3b/b"] {
            check(path, Err(Refusal::AmbiguousDotSegment));
        }
    }

    #[test]
    fn normal_form_is_its_own_normal_form() {
        for path in ["/a/%2e%2E/b%20c", "/a/./b/../%7e", "/%25", "/a//../b"] {
            let once = normalized(path.as_bytes()).expect("not doubtful").into_owned();
            assert_eq!(normalized(&once).as_deref(), Ok(&once[..]), "{path}");
        }
    }
}
