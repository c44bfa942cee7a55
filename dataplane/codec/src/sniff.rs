//! What a client speaks, by its first bytes.
//!
//! What could be HTTP is taken for HTTP, also where it is malformed: then it is refused there, and nobody gets past rules
//! about requests by writing one that we find odd and a service does not.

/// The client connection preface of HTTP/2 (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest first line that is waited for before a text is called a request for the sake of caution. Who speaks in lines says
/// little in the first one.
pub const MAX_LINE_BYTES: usize = 8 * 1024;

/// Methods after which `/` is enough to know that it is a request.
const METHODS: [&[u8]; 9] = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"CONNECT"];

/// What is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TLS: a ClientHello begins.
    Tls,
    /// HTTP/1.
    Http1,
    /// HTTP/2 without TLS, known beforehand (RFC 9113 section 3.3).
    Http2,
    /// Something else.
    Opaque,
}

/// Decides by bytes that grow.
#[derive(Clone, Debug, Default)]
pub struct Sniffer {
    /// So many bytes hold no end of a line.
    searched: usize,
    /// So many bytes hold nothing but empty lines and what could be a method, of which RFC 9110 does not say how long it may be.
    word: usize,
}

impl Sniffer {
    /// Looks at all bytes that have come so far, those of earlier calls included. None: they could still be several things.
    pub fn sniff(&mut self, bytes: &[u8]) -> Option<Protocol> {
        match bytes.first()? {
            0x16 => return tls(bytes),
            _ if bytes.starts_with(PREFACE) => return Some(Protocol::Http2),
            _ if PREFACE.starts_with(bytes) => return None,
            _ => {}
        }
        // Empty lines in front of a request are skipped by some (RFC 9112 section 2.2).
        let begin = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n'));
        let Some(begin) = begin else { return self.wait(bytes) };
        let known = self.word.max(begin);
        self.word = known + bytes[known..].iter().take_while(|byte| is_token(**byte)).count();
        let (method, after) = (&bytes[begin..self.word], &bytes[self.word..]);
        if after.is_empty() {
            return self.wait(bytes);
        }
        if method.is_empty() || !is_blank(after[0]) {
            return Some(Protocol::Opaque);
        }
        if after.get(1) == Some(&b'/') && METHODS.contains(&method) {
            return Some(Protocol::Http1);
        }
        let from = self.searched.max(begin);
        match bytes[from..].iter().position(|byte| *byte == b'\n') {
            Some(end) if names_version(&bytes[begin..from + end]) => Some(Protocol::Http1),
            Some(_) => Some(Protocol::Opaque),
            None => {
                self.searched = bytes.len();
                self.wait(bytes)
            }
        }
    }

    fn wait(&self, bytes: &[u8]) -> Option<Protocol> {
        (bytes.len() > MAX_LINE_BYTES).then_some(Protocol::Http1)
    }
}

/// Whether a client that was to speak TLS has sent a request in plain text, as far as its first bytes say it.
pub fn is_plain_http(bytes: &[u8]) -> bool {
    let is_request = |method: &&[u8]| bytes.strip_prefix(*method).is_some_and(|rest| rest.first() == Some(&b' '));
    METHODS.iter().any(is_request) || bytes.starts_with(&PREFACE[..6])
}

/// Whether a client that was to speak something in plain text has begun with TLS, as far as its first bytes say it.
pub fn is_tls(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16] | [0x16, 3] | [0x16, 3, 0..=4, ..])
}

/// A record of a handshake that begins with a ClientHello (RFC 8446 sections 4 and 5.1).
fn tls(bytes: &[u8]) -> Option<Protocol> {
    match bytes {
        [_, major, ..] if *major != 3 => Some(Protocol::Opaque),
        [_, _, minor, ..] if *minor > 4 => Some(Protocol::Opaque),
        [_, _, _, high, ..] if *high > 0x40 => Some(Protocol::Opaque),
        [_, _, _, _, _, kind, ..] => Some(if *kind == 1 { Protocol::Tls } else { Protocol::Opaque }),
        _ => None,
    }
}

/// Whether a line has a blank and `HTTP/` somewhere.
fn names_version(line: &[u8]) -> bool {
    line.windows(6).any(|window| is_blank(window[0]) && window[1..].eq_ignore_ascii_case(b"HTTP/"))
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}
