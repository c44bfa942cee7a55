//! How long is this body: the one place that decides (RFC 9112 section 6).
//!
//! Strict in both directions, because a length that two readers understand differently is how requests are smuggled:
//! one length or one `chunked`, never both, never twice, never in a version or a response that must not have it.

use crate::head::{Method, Version};
use crate::name::{self, Name};
use crate::refusal::Refusal;

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum BodyLength {
    /// There is none.
    #[default]
    None,
    /// After so many bytes, which may be 0.
    Fixed(u64),
    /// With the last chunk and its trailers.
    Chunked,
    /// With the connection (responses only).
    UntilClose,
}

impl BodyLength {
    /// Whether not a single byte follows the head.
    pub fn is_empty(self) -> bool {
        matches!(self, Self::None | Self::Fixed(0))
    }
}

/// What the fields of one head said about length, collected while they are read.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Announced {
    content_length: Option<u64>,
    chunked: bool,
    /// A line that a simpler reader could misread (`chUnked`, a tab, leading zeros), and that is therefore written
    /// anew.
    pub(crate) unusual: bool,
}

impl Announced {
    /// Takes note of a field, if it is about length. `value` has no spaces around it.
    pub(crate) fn note(&mut self, name: Name, value: &[u8]) -> Result<(), Refusal> {
        match name {
            Name::ContentLength => self.note_content_length(value),
            Name::TransferEncoding => self.note_transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn note_content_length(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.content_length.is_some() {
            return Err(Refusal::RepeatedContentLength);
        }
        let length = parse_length(value)?;
        self.unusual |= value.len() > 1 && value[0] == b'0';
        self.content_length = Some(length);
        Ok(())
    }

    fn note_transfer_encoding(&mut self, value: &[u8]) -> Result<(), Refusal> {
        if self.chunked {
            return Err(Refusal::BadTransferEncoding);
        }
        if value != b"chunked" {
            check_codings(value)?;
            self.unusual = true;
        }
        self.chunked = true;
        Ok(())
    }

    pub(crate) fn has_content_length(&self) -> bool {
        self.content_length.is_some()
    }

    fn check(&self, version: Version) -> Result<(), Refusal> {
        match (self.chunked, self.content_length, version) {
            (true, Some(_), _) => Err(Refusal::LengthAndCoding),
            (true, None, Version::Http10) => Err(Refusal::CodingInOldVersion),
            _ => Ok(()),
        }
    }

    /// The length of a request's body.
    pub(crate) fn request(&self, version: Version) -> Result<BodyLength, Refusal> {
        self.check(version)?;
        Ok(match (self.chunked, self.content_length) {
            (true, _) => BodyLength::Chunked,
            (false, Some(length)) => BodyLength::Fixed(length),
            (false, None) => BodyLength::None,
        })
    }

    /// Checks what a response announces, whatever was asked for.
    pub(crate) fn check_response(&self, version: Version, status: u16) -> Result<(), Refusal> {
        self.check(version)?;
        let announces_body = self.chunked || self.content_length.is_some_and(|length| length > 0);
        if forbids_length(status) && announces_body { Err(Refusal::BodyForbidden) } else { Ok(()) }
    }

    /// The length of a response's body, which depends on what was asked for (RFC 9112 section 6.3 items 1 and 2).
    #[inline]
    pub(crate) fn response(&self, status: u16, request: Method) -> BodyLength {
        let tunnel = request == Method::Connect && (200..300).contains(&status);
        match (self.chunked, self.content_length) {
            _ if request == Method::Head || tunnel || forbids_length(status) || status == 304 => BodyLength::None,
            (true, _) => BodyLength::Chunked,
            (false, Some(length)) => BodyLength::Fixed(length),
            (false, None) => BodyLength::UntilClose,
        }
    }
}

/// Responses that must not even announce a length (RFC 9110 section 8.6, RFC 9112 section 6.1). A 304 may: it tells of
/// the response that a GET would have had.
#[inline]
pub(crate) fn forbids_length(status: u16) -> bool {
    status < 200 || status == 204
}

/// Digits only: no sign, no spaces, no list. Below 2^63, because readers that keep a signed number would see another
/// one; with at most 19 digits, so that leading zeros cannot grow without end.
fn parse_length(value: &[u8]) -> Result<u64, Refusal> {
    if value.is_empty() || value.len() > 19 {
        return Err(Refusal::BadContentLength);
    }
    let mut length = 0_u64;
    for byte in value {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            return Err(Refusal::BadContentLength);
        }
        length = length * 10 + u64::from(digit);
    }
    if length > i64::MAX as u64 { Err(Refusal::BadContentLength) } else { Ok(length) }
}

/// Accepts nothing but one `chunked` (codings are case-insensitive). Where `chunked` is the last of several, the length
/// is clear but the coding is not ours to undo: 501. Where it is not the last, the length is anybody's guess: 400.
fn check_codings(value: &[u8]) -> Result<(), Refusal> {
    if value.eq_ignore_ascii_case(b"chunked") {
        return Ok(());
    }
    let is_chunked = |coding: &[u8]| coding.eq_ignore_ascii_case(b"chunked");
    let well_formed = |coding: &[u8]| !coding.is_empty() && coding.iter().copied().all(name::is_token);
    let mut codings = value.rsplit(|&byte| byte == b',').map(name::trim);
    let last_is_chunked = codings.next().is_some_and(is_chunked);
    if last_is_chunked && codings.all(|coding| well_formed(coding) && !is_chunked(coding)) {
        return Err(Refusal::UnknownCoding);
    }
    Err(Refusal::BadTransferEncoding)
}
