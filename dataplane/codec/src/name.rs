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
    /// Recognizes a name in any case. The length decides for nearly all other names.
    #[inline]
    pub fn from_bytes(name: &[u8]) -> Self {
        let (candidate, known): (&[u8], Self) = match name.len() {
            2 => (b"te", Self::Te),
            4 => (b"host", Self::Host),
            6 => (b"expect", Self::Expect),
            7 => (b"upgrade", Self::Upgrade),
            10 if name[0] | 0x20 == b'k' => (b"keep-alive", Self::KeepAlive),
            10 => (b"connection", Self::Connection),
            14 if name[0] | 0x20 == b'h' => (b"http2-settings", Self::Http2Settings),
            14 => (b"content-length", Self::ContentLength),
            16 => (b"proxy-connection", Self::ProxyConnection),
            17 => (b"transfer-encoding", Self::TransferEncoding),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(candidate) {
            return known;
        }
        let decides_length = matches!(known, Self::ContentLength | Self::TransferEncoding);
        if decides_length && looks_like(name, candidate) { Self::Lookalike } else { Self::Other }
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
