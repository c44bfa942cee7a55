//! The request target in its forms (RFC 9112 section 3.2).

use crate::authority;
use crate::head::Method;
use crate::refusal::Refusal;
use crate::words;

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
        let query = find_query(target)?;
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

/// Where the query of a target begins, or the target's length. httparse lets fragments and bytes above ASCII pass: the former
/// never belong on the wire, the latter are decoded differently by everybody.
///
/// # Errors
/// [`Refusal::BadTarget`] if it has any of these.
pub(crate) fn find_query(target: &[u8]) -> Result<usize, Refusal> {
    match words::find(target, |word| words::equal(word, b'#') | words::above_ascii(word)) {
        Some(_forbidden) => Err(Refusal::BadTarget),
        None => Ok(words::find(target, |word| words::equal(word, b'?')).unwrap_or(target.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_begins_at_the_first_question_mark_and_nothing_forbidden_stands_before_or_in_it() {
        for (target, expected) in [("/", 1), ("/a?", 2), ("/items/17?full=1?", 9), ("?", 0), ("/items/of/a/shop", 16)] {
            assert_eq!(find_query(target.as_bytes()), Ok(expected), "{target}");
            for (place, bad) in (0..=target.len()).flat_map(|place| [(place, b'#'), (place, 0x80), (place, 0xff)]) {
                let mut bytes = target.as_bytes().to_vec();
                bytes.insert(place, bad);
                assert_eq!(find_query(&bytes), Err(Refusal::BadTarget), "{bytes:?}");
            }
        }
    }
}
