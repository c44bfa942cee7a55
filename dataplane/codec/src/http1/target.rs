//! The request target in its forms (RFC 9112 section 3.2).

use crate::authority;
use crate::head::Method;
use crate::refusal::Refusal;

use super::fields::Span;

/// Which form the target came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) enum Form {
    /// Path and query.
    #[default]
    Origin,
    /// With scheme and authority, as sent to a proxy.
    Absolute,
    /// `*`.
    Asterisk,
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
    /// Of an absolute target.
    pub(super) authority: Span,
}

impl Target {
    /// # Errors
    /// [`Refusal::BadTarget`], [`Refusal::BadHost`].
    pub(super) fn parse(head: &[u8], target: &[u8], method: Method) -> Result<Self, Refusal> {
        // One walk finds the query and what must not be there.
        let special = |&byte: &u8| SPECIAL[usize::from(byte)];
        let query = match target.iter().position(special) {
            Some(found) if target[found] != b'?' || target[found..].iter().any(is_forbidden) => {
                return Err(Refusal::BadTarget);
            }
            found => found.unwrap_or(target.len()),
        };
        match target {
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
fn is_forbidden(byte: &u8) -> bool {
    *byte >= 0x80 || *byte == b'#'
}

/// What is forbidden, and where the query begins.
static SPECIAL: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0x80;
    while byte < 256 {
        table[byte] = true;
        byte += 1;
    }
    table[b'#' as usize] = true;
    table[b'?' as usize] = true;
    table
};
