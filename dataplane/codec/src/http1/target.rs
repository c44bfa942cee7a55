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
        // httparse lets fragments and bytes above ASCII pass. The former never belong on the wire, the latter are
        // decoded differently by everybody.
        if !target.iter().all(|&byte| byte < 0x80 && byte != b'#') {
            return Err(Refusal::BadTarget);
        }
        match target {
            [b'/', ..] => Ok(Self::origin(head, target, target, Form::Origin)),
            b"*" if method == Method::Options => Ok(Self::origin(head, target, target, Form::Asterisk)),
            _ => Self::absolute(head, target),
        }
    }

    fn origin(head: &[u8], raw: &[u8], origin: &[u8], form: Form) -> Self {
        let path_length = origin.iter().position(|&byte| byte == b'?').unwrap_or(origin.len());
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
        let parts = Self::origin(head, target, origin, Form::Absolute);
        Ok(Self { authority: Span::locate(head, authority), ..parts })
    }
}
