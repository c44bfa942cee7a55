//! Whole messages: those to be sent, and the rules that all must keep (RFC 9113 section 8).

use crate::message::Fields;

/// A request or an answer to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outgoing {
    /// Heads of interim answers that go before it.
    pub interim: Vec<Fields>,
    /// Its head, with the pseudo-header fields.
    pub fields: Fields,
    /// Its content.
    pub body: Vec<u8>,
    /// Fields behind the content.
    pub trailers: Fields,
}

impl Outgoing {
    /// A request without a body.
    pub fn request(method: &str, host: &str, path: &str) -> Self {
        let fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", host)];
        Self { fields: owned(&fields), ..Self::default() }
    }

    /// A GET.
    pub fn get(host: &str, path: &str) -> Self {
        Self::request("GET", host, path)
    }

    /// A POST of this body, whose length is not told.
    pub fn post(host: &str, path: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::request("POST", host, path) }
    }

    /// An answer with this status and no body.
    pub fn status(status: u16) -> Self {
        Self { fields: owned(&[(":status", &status.to_string())]), ..Self::default() }
    }

    /// An answer of 200 with this text and its length.
    pub fn ok(text: impl Into<Vec<u8>>) -> Self {
        let body: Vec<u8> = text.into();
        let length = body.len().to_string();
        Self { body, ..Self::status(200).with("content-length", &length) }
    }

    /// A gRPC answer with one message and this status.
    pub fn grpc(message: &[u8], status: u16) -> Self {
        let answer =
            Self::status(200).with("content-type", "application/grpc").trailer("grpc-status", &status.to_string());
        Self { body: grpc_frame(message), ..answer }
    }

    /// The same with a further field.
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with a further trailer.
    pub fn trailer(mut self, name: &str, value: &str) -> Self {
        self.trailers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The same with a body.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// The same behind an interim answer.
    pub fn after(mut self, status: u16, fields: &[(&str, &str)]) -> Self {
        let status = status.to_string();
        self.interim.push(owned(&[&[(":status", status.as_str())], fields].concat()));
        self
    }
}

/// Fields as the harness keeps them.
pub fn owned(fields: &[(&str, &str)]) -> Fields {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

/// A message of gRPC in its frame, not compressed.
pub fn grpc_frame(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}

/// Fields that mean something for one connection, and so nothing in HTTP/2 (RFC 9113 section 8.2.2).
const OF_A_CONNECTION: [&str; 5] = ["connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"];

/// What is wrong with a head or trailers; `known` are the pseudo-header fields that it may have.
pub(super) fn fault(fields: &Fields, known: &[&str]) -> Option<String> {
    let mut regular = false;
    for (at, (name, value)) in fields.iter().enumerate() {
        let bad_value = value.trim() != value || value.contains(['\r', '\n', '\0']);
        let wrong = match name.strip_prefix(':') {
            Some(_) => {
                let twice = fields[..at].iter().any(|(other, _)| other == name);
                regular || twice || !known.contains(&name.as_str())
            }
            None => {
                regular = true;
                let legal = |byte: u8| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b':';
                name.is_empty()
                    || !name.bytes().all(legal)
                    || OF_A_CONNECTION.contains(&name.as_str())
                    || name == "te" && value != "trailers"
            }
        };
        if wrong || bad_value {
            return Some(format!("`{name}: {value}` breaks RFC 9113 section 8"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_found_and_good_heads_have_none() {
        let known = [":method", ":path"];
        let of = |fields: &[(&str, &str)]| fault(&owned(fields), &known).is_some();
        assert!(!of(&[(":method", "GET"), (":path", "/"), ("te", "trailers"), ("a", "b c")]));
        for bad in [
            &[(":method", "GET"), (":method", "GET")][..],
            &[("a", "b"), (":method", "GET")],
            &[(":status", "200")],
            &[("Upper", "x")],
            &[("connection", "close")],
            &[("te", "gzip")],
            &[("a", "b\r\nc: d")],
            &[("", "x")],
        ] {
            assert!(of(bad), "{bad:?}");
        }
    }
}
