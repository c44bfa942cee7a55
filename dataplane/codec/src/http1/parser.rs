//! What httparse's errors mean here.

use crate::refusal::Refusal;

/// The refusal for an error of httparse. `version` is where the version should stand, `bad_line` what a malformed first
/// line is called.
#[cold]
pub(super) fn refusal(error: httparse::Error, version: &[u8], bad_line: Refusal) -> Refusal {
    match error {
        httparse::Error::HeaderName => Refusal::BadFieldName,
        httparse::Error::HeaderValue => Refusal::BadFieldValue,
        httparse::Error::NewLine => Refusal::BadLineEnd,
        httparse::Error::TooManyHeaders => Refusal::TooManyFields,
        httparse::Error::Version if names_other_version(version) => Refusal::UnsupportedVersion,
        httparse::Error::Version | httparse::Error::Token | httparse::Error::Status => bad_line,
    }
}

/// Whether a version of HTTP stands there, but not one of ours.
fn names_other_version(word: &[u8]) -> bool {
    let is_ours = word.starts_with(b"HTTP/1.1") || word.starts_with(b"HTTP/1.0");
    !is_ours && word.strip_prefix(b"HTTP/").and_then(<[u8]>::first).is_some_and(u8::is_ascii_digit)
}
