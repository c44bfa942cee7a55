//! What Connection says: persistence, upgrade, and which fields are for this connection only.

use crate::head::Version;
use crate::limits::MAX_CONNECTION_OPTIONS;
use crate::name::{self, is_token};
use crate::refusal::Refusal;

/// The options of all Connection fields of a head.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    close: bool,
    keep_alive: bool,
    pub(super) upgrade: bool,
    /// Other options, each of which may name a field.
    pub(super) names_fields: bool,
    count: usize,
}

impl Options {
    /// # Errors
    /// [`Refusal::BadConnection`], [`Refusal::TooManyConnectionOptions`].
    pub(super) fn note(&mut self, value: &[u8]) -> Result<(), Refusal> {
        for option in name::list(value) {
            self.count += 1;
            if self.count > MAX_CONNECTION_OPTIONS {
                return Err(Refusal::TooManyConnectionOptions);
            }
            if option.eq_ignore_ascii_case(b"keep-alive") {
                self.keep_alive = true;
            } else if option.eq_ignore_ascii_case(b"close") {
                self.close = true;
            } else if option.eq_ignore_ascii_case(b"upgrade") {
                self.upgrade = true;
            } else if option.iter().copied().all(is_token) {
                self.names_fields = true;
            } else {
                return Err(Refusal::BadConnection);
            }
        }
        Ok(())
    }

    /// The connection does not go on after this message, whatever was said.
    pub(super) fn end(&mut self) {
        self.close = true;
    }

    /// Whether the connection goes on after this message (RFC 9112 section 9.3). HTTP/1.0 clients that ask for it get
    /// it: towards them we are a gateway, not a proxy that they chose.
    pub(super) fn persistent(&self, version: Version) -> bool {
        match version {
            _ if self.close => false,
            Version::Http11 => true,
            Version::Http10 => self.keep_alive,
        }
    }
}

/// Fields that Connection cannot take away. RFC 9110 section 7.6.1 lets a sender name the fields it added for this
/// connection and forbids to name those meant for all recipients; yet removing those is what an attacker names them
/// for: a lost length smuggles, a lost `Authorization` or `X-Forwarded-For` makes an upstream believe another caller.
/// These are kept as if not named.
pub(super) fn is_for_every_recipient(name: &[u8]) -> bool {
    let starts_with = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix));
    PROTECTED.iter().any(|protected| name.eq_ignore_ascii_case(protected))
        || PROTECTED_PREFIXES.iter().any(|prefix| starts_with(prefix))
}

const PROTECTED_PREFIXES: [&[u8]; 6] =
    [b"content-", b"x-forwarded-", b"access-control-", b"if-", b"sec-", b"proxy-auth"];

const PROTECTED: [&[u8]; 21] = [
    b"authorization",
    b"cache-control",
    b"cookie",
    b"date",
    b"etag",
    b"expect",
    b"forwarded",
    b"host",
    b"location",
    b"max-forwards",
    b"origin",
    b"range",
    b"referer",
    b"set-cookie",
    b"strict-transport-security",
    b"trailer",
    b"transfer-encoding",
    b"vary",
    b"via",
    b"www-authenticate",
    b"x-real-ip",
];
