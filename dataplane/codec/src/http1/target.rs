//! The request target in its forms (RFC 9112 section 3.2).

use crate::authority;
use crate::head::Method;
use crate::refusal::Refusal;

use super::fields::Span;

/// Which form the target came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum Form {
    /// Path and query.
    #[default]
    Origin,
    /// `*`.
    Asterisk,
    /// With scheme and authority, as sent to a proxy. From here on the authority stands in the target, whatever Host
    /// says.
    Absolute,
    /// Host and port: where a tunnel is to lead.
    Authority,
}

/// A target taken apart, as offsets into the head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Target {
    pub(super) form: Form,
    /// What the client sent.
    pub(super) raw: Span,
    /// Path and query; empty if an absolute target has none.
    pub(super) origin: Span,
    /// Without query.
    pub(super) path: Span,
    /// Of a target that has one.
    pub(super) authority: Span,
}

impl Target {
    /// # Errors
    /// [`Refusal::BadTarget`], [`Refusal::BadHost`].
    pub(super) fn parse(head: &[u8], target: &[u8], method: Method) -> Result<Self, Refusal> {
        // One walk finds the query and what must not be there.
        let query = match find_special(target) {
            Some(found) if target[found] != b'?' || target[found..].iter().any(is_forbidden) => {
                return Err(Refusal::BadTarget);
            }
            found => found.unwrap_or(target.len()),
        };
        match target {
            _ if method == Method::Connect => Self::tunnel(head, target),
            [b'/', ..] => Ok(Self::origin(head, target, target, query, Form::Origin)),
            b"*" if method == Method::Options => Ok(Self::origin(head, target, target, query, Form::Asterisk)),
            _ => Self::absolute(head, target),
        }
    }

    fn origin(head: &[u8], raw: &[u8], origin: &[u8], path_length: usize, form: Form) -> Self {
        Self {
            form,
            raw: Span::locate(head, raw),
            origin: Span::locate(head, origin),
            path: Span::locate(head, &origin[..path_length]),
            authority: Span::default(),
        }
    }

    /// CONNECT takes this form alone, and its port is no matter of taste (RFC 9112 section 3.2.3).
    #[cold]
    fn tunnel(head: &[u8], target: &[u8]) -> Result<Self, Refusal> {
        if authority::parse(target)?.port.is_none_or(|port| port == 0) {
            return Err(Refusal::BadTarget);
        }
        let whole = Span::locate(head, target);
        Ok(Self { form: Form::Authority, raw: whole, origin: whole, path: Span::default(), authority: whole })
    }

    /// A query without a path (`http://host?x`) is refused: it would have to be put together anew, and no client sends
    /// it.
    fn absolute(head: &[u8], target: &[u8]) -> Result<Self, Refusal> {
        let scheme_end = target.windows(3).position(|window| window == b"://").ok_or(Refusal::BadTarget)?;
        let scheme = &target[..scheme_end];
        if !scheme.eq_ignore_ascii_case(b"http") && !scheme.eq_ignore_ascii_case(b"https") {
            return Err(Refusal::BadTarget);
        }
        let rest = &target[scheme_end + 3..];
        let authority_end = rest.iter().position(|&byte| byte == b'/' || byte == b'?').unwrap_or(rest.len());
        let (authority, origin) = rest.split_at(authority_end);
        authority::parse(authority)?;
        if origin.first() == Some(&b'?') {
            return Err(Refusal::BadTarget);
        }
        let path_length = origin.iter().position(|&byte| byte == b'?').unwrap_or(origin.len());
        let parts = Self::origin(head, target, origin, path_length, Form::Absolute);
        Ok(Self { authority: Span::locate(head, authority), ..parts })
    }
}

/// httparse lets fragments and bytes above ASCII pass. The former never belong on the wire, the latter are decoded
/// differently by everybody.
pub(crate) fn is_forbidden(byte: &u8) -> bool {
    *byte >= 0x80 || *byte == b'#'
}

/// Where the first byte is that is forbidden or begins the query. Looks at eight bytes at once: targets are too short for
/// wider registers to pay.
pub(crate) fn find_special(target: &[u8]) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // Mycroft's test for a zero byte: the lowest bit it sets is right, and only that one is asked for.
    let has = |word: u64, byte: u8| {
        let zero = word ^ (ONES * u64::from(byte));
        zero.wrapping_sub(ONES) & !zero
    };
    let (words, rest) = target.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let found = (has(word, b'?') | has(word, b'#') | word) & HIGH;
        if found != 0 {
            return Some(index * 8 + found.trailing_zeros() as usize / 8);
        }
    }
    let found = rest.iter().position(|byte| *byte == b'?' || is_forbidden(byte))?;
    Some(words.len() * 8 + found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_special_byte_is_found_wherever_it_stands() {
        for length in 0..40 {
            let plain = vec![b'a'; length];
            assert_eq!(find_special(&plain), None);
            for (first, second) in (0..length).flat_map(|first| (first..length).map(move |second| (first, second))) {
                for special in [b'?', b'#', 0x80, 0xff] {
                    let mut target = plain.clone();
                    target[second] = b'#';
                    target[first] = special;
                    assert_eq!(find_special(&target), Some(first), "{target:?}");
                }
            }
            for byte in (0..0x80).filter(|byte| ![b'?', b'#'].contains(byte)) {
                assert_eq!(find_special(&vec![byte; length]), None, "{byte}");
            }
        }
    }
}
