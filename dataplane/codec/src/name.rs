//! Field names that decide about framing, persistence or hops. They are recognized once, while a head is parsed, so
//! that no later question needs a second search.

/// A field name, as far as the codec has to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Name {
    /// Host.
    Host,
    /// Content-Length.
    ContentLength,
    /// Transfer-Encoding.
    TransferEncoding,
    /// Connection.
    Connection,
    /// Keep-Alive.
    KeepAlive,
    /// Proxy-Connection.
    ProxyConnection,
    /// TE.
    Te,
    /// Upgrade.
    Upgrade,
    /// HTTP2-Settings, the companion of `Upgrade: h2c` (RFC 7540 section 3.2.1).
    Http2Settings,
    /// Expect.
    Expect,
    /// Content-Length or Transfer-Encoding with `_` for `-`. Readers that fold names for CGI take them for the real
    /// ones, so a head with one is refused.
    Lookalike,
    /// Any other name.
    Other,
}

impl Name {
    /// Recognizes a name in any case; `name` is a token, as parsers see to. Length and first letter
    /// decide for nearly all other names.
    #[inline]
    pub fn from_bytes(name: &[u8]) -> Self {
        let Some(first) = name.first() else { return Self::Other };
        match (name.len(), first | 0x20) {
            (2, b't') if is(name, b"te") => Self::Te,
            (4, b'h') if is(name, b"host") => Self::Host,
            (6, b'e') if is(name, b"expect") => Self::Expect,
            (7, b'u') if is(name, b"upgrade") => Self::Upgrade,
            (10, b'c') if is(name, b"connection") => Self::Connection,
            (10, b'k') if is(name, b"keep-alive") => Self::KeepAlive,
            (14, b'c') if is(name, b"content-length") => Self::ContentLength,
            (14, b'c') if looks_like(name, b"content-length") => Self::Lookalike,
            (14, b'h') if is(name, b"http2-settings") => Self::Http2Settings,
            (16, b'p') if is(name, b"proxy-connection") => Self::ProxyConnection,
            (17, b't') if is(name, b"transfer-encoding") => Self::TransferEncoding,
            (17, b't') if looks_like(name, b"transfer-encoding") => Self::Lookalike,
            _ => Self::Other,
        }
    }

    /// Whether the field says something about this connection only, so that it is not forwarded as it came (RFC 9110
    /// section 7.6.1). Transfer-Encoding is one too, but is kept, because the body is forwarded in the chunks it came
    /// in.
    pub fn is_hop_by_hop(self) -> bool {
        matches!(
            self,
            Self::Connection | Self::KeepAlive | Self::ProxyConnection | Self::Te | Self::Upgrade | Self::Http2Settings
        )
    }
}

/// Whether a field tells who asked first: `Forwarded` (RFC 7239), `X-Forwarded-*` and `X-Real-IP`. `_` is taken for `-`, as
/// by readers that fold names for CGI.
pub fn tells_of_client(name: &[u8]) -> bool {
    let starts_with = |prefix: &[u8]| name.len() >= prefix.len() && looks_like(&name[..prefix.len()], prefix);
    let is = |known: &[u8]| name.len() == known.len() && starts_with(known);
    starts_with(b"x-forwarded-") || is(b"forwarded") || is(b"x-real-ip")
}

/// Whether a token is this name, in any case: all bytes at once, because the bit that tells the cases apart is set in
/// letters of the lower one, digits and `-`, and no byte of a token becomes one of those by it but a letter.
#[inline]
fn is<const N: usize>(name: &[u8], lower: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name) else { return false };
    let mut difference = 0;
    for i in 0..N {
        difference |= (name[i] | 0x20) ^ lower[i];
    }
    difference == 0
}

fn looks_like(name: &[u8], candidate: &[u8]) -> bool {
    let fold = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.iter().map(fold).eq(candidate.iter().copied())
}

/// Whether a byte may stand in a token: method, field name, Connection option, chunk extension (RFC 9110 section 5.6.2).
#[inline]
pub(crate) fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

static TOKEN: [bool; 256] = {
    let mut table = [false; 256];
    let allowed = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut i = 0;
    while i < allowed.len() {
        table[allowed[i] as usize] = true;
        i += 1;
    }
    table
};

/// The elements of a comma-separated list without their surrounding spaces; empty ones are skipped (RFC 9110 section
/// 5.6.1.2).
pub(crate) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&byte| byte == b',').map(trim).filter(|element| !element.is_empty())
}

/// Without optional whitespace (SP, HTAB) around it.
pub(crate) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_recognized_in_any_case_and_no_token_that_differs_in_one_byte_is() {
        let names = ["host", "te", "expect", "upgrade", "connection", "keep-alive", "content-length", "http2-settings"];
        for name in names.into_iter().chain(["proxy-connection", "transfer-encoding"]) {
            let known = Name::from_bytes(name.as_bytes());
            assert_ne!(known, Name::Other, "{name}");
            assert_eq!(Name::from_bytes(name.to_ascii_uppercase().as_bytes()), known, "{name}");
            for (index, byte) in (0..name.len()).flat_map(|index| (0..=255).map(move |byte| (index, byte))) {
                let mut other = name.as_bytes().to_vec();
                other[index] = byte;
                if is_token(byte) && !other.eq_ignore_ascii_case(name.as_bytes()) {
                    assert_ne!(Name::from_bytes(&other), known, "{}", String::from_utf8_lossy(&other));
                }
            }
        }
    }
}
