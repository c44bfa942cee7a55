//! The handshake of WebSocket where one side speaks HTTP/2: key and accept are part of HTTP/1.1 alone (RFC 6455 section 4,
//! RFC 8441 section 5). All else of WebSocket passes as it came.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use http::header::{HeaderValue, SEC_WEBSOCKET_ACCEPT};

/// What is asked for, as Upgrade and `:protocol` name it.
pub const PROTOCOL: &[u8] = b"websocket";

/// What a server shows that it knows (RFC 6455 section 1.3).
const KNOWN_TO_ALL: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Bytes of a key: 16 in base64.
const KEY_BYTES: usize = 24;

/// What a client asks with, and a server has to answer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// A key of these bytes, chosen at random.
    pub fn new(nonce: [u8; 16]) -> Self {
        let mut key = [0; KEY_BYTES];
        STANDARD.encode_slice(nonce, &mut key).expect("16 bytes become 24");
        Self(key)
    }

    /// The key that came, if it can be one.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let key: [u8; KEY_BYTES] = value.try_into().ok()?;
        let (digits, padding) = key.split_at(KEY_BYTES - 2);
        let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        (padding == b"==" && digits.iter().all(is_digit)).then_some(Self(key))
    }

    /// As it stands in a field.
    pub fn value(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).expect("base64 fits a field")
    }

    /// What answers it.
    pub fn accept(&self) -> HeaderValue {
        let asked = [&self.0, KNOWN_TO_ALL].concat();
        let answer = STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &asked));
        HeaderValue::try_from(answer).expect("base64 fits a field")
    }

    /// Whether a response answers it, and says so once.
    pub fn is_answered(&self, fields: &HeaderMap) -> bool {
        let mut answers = fields.get_all(SEC_WEBSOCKET_ACCEPT).iter();
        answers.next() == Some(&self.accept()) && answers.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_answered_as_in_the_rfc() {
        let key = Key::new(*b"the sample nonce");
        assert_eq!(key, Key::parse(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap());
        assert_eq!(key.accept(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        let answered = |values: &[&'static str]| {
            let mut fields = HeaderMap::new();
            for value in values {
                fields.append(SEC_WEBSOCKET_ACCEPT, HeaderValue::from_static(value));
            }
            key.is_answered(&fields)
        };
        assert!(answered(&["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]));
        for wrong in [&[][..], &["S3pPLMBiTxaQ9kYGzzhZRbK+xOo="], &["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="; 2]] {
            assert!(!answered(wrong), "{wrong:?}");
        }
    }

    #[test]
    fn only_sixteen_bytes_in_base64_are_a_key() {
        for wrong in [
            "",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZQ== ",
            "dGhlIHNhbXBsZSBub25jZQ=x",
            "dGhlIHNhbXBsZSBub25j\r\n==",
            "dGhlIHNhbXBsZSBub25jZQAA",
            "dGhlIHNhbXBsZSBub25jZQ====",
        ] {
            assert_eq!(Key::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
    }
}
