//! HTTP/1.1 messages as both sides of this crate read them, over httparse: lenient where the proxy must be strict, since it
//! is the proxy that is under test, but never in doubt about where a message ends.

use std::mem::MaybeUninit;
use std::ops::Range;

use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::stop::{Reason, Stop};
use ringmesh_ring::stream::{self, Stream};

use crate::chunked;
use crate::limits::{MAX_FIELDS, MAX_HEAD_BYTES};

/// Why a message was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The connection ended before the first byte of the message.
    #[error("the connection ended")]
    Ended,
    /// The connection ended or broke within the message.
    #[error("the connection broke off")]
    Broken,
    /// It breaks the protocol.
    #[error("the message is malformed")]
    Malformed,
    /// A deadline, or the end of the run.
    #[error("stopped")]
    Stopped(Reason),
}

impl From<stream::Error> for Fault {
    fn from(error: stream::Error) -> Self {
        match error {
            stream::Error::Stopped(reason) => Self::Stopped(reason),
            stream::Error::Io(_) => Self::Broken,
        }
    }
}

impl From<chunked::Malformed> for Fault {
    fn from(_: chunked::Malformed) -> Self {
        Self::Malformed
    }
}

/// How the end of a body is found (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Fixed(u64),
    Chunked,
    UntilClose,
}

/// What a client needs to know of a response's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ResponseHead {
    pub(crate) status: u16,
    pub(crate) length: usize,
    pub(crate) framing: Framing,
    pub(crate) persistent: bool,
    /// Where the value of the field that was asked for stands.
    pub(crate) field: Option<Range<usize>>,
}

/// What a server needs to know of a request's head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub(crate) method: Method,
    pub(crate) length: usize,
    pub(crate) framing: Framing,
    pub(crate) persistent: bool,
    pub(crate) expects_continue: bool,
}

/// A request's method decides whether its response has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Head,
    Other,
}

impl From<&str> for Method {
    fn from(method: &str) -> Self {
        if method == "HEAD" { Self::Head } else { Self::Other }
    }
}

/// Reads a response's head, if it is there as a whole, and the value of `field` in it.
pub(crate) fn parse_response(bytes: &[u8], asked: Method, field: Option<&str>) -> Result<Option<ResponseHead>, Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut response, bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Fault::Malformed),
    };
    let status = response.code.ok_or(Fault::Malformed)?;
    let version = response.version.ok_or(Fault::Malformed)?;
    let seen = Fields::read(response.headers)?;
    let framing = match (status, asked) {
        (100..200 | 204 | 304, _) | (_, Method::Head) => Framing::None,
        _ => seen.framing(Framing::UntilClose)?,
    };
    let value = field.and_then(|name| {
        let field = response.headers.iter().find(|field| field.name.eq_ignore_ascii_case(name))?;
        let start = field.value.as_ptr() as usize - bytes.as_ptr() as usize;
        Some(start..start + field.value.len())
    });
    let persistent = seen.persistent(version) && framing != Framing::UntilClose;
    Ok(Some(ResponseHead { status, length, framing, persistent, field: value }))
}

/// Reads a request's head, if it is there as a whole.
pub(crate) fn parse_request(bytes: &[u8]) -> Result<Option<RequestHead>, Fault> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Fault::Malformed),
    };
    let seen = Fields::read(request.headers)?;
    Ok(Some(RequestHead {
        method: Method::from(request.method.ok_or(Fault::Malformed)?),
        length,
        framing: seen.framing(Framing::None)?,
        persistent: seen.persistent(request.version.ok_or(Fault::Malformed)?),
        expects_continue: seen.expects_continue,
    }))
}

/// The fields that say where a message ends, and what comes after it.
#[derive(Default)]
struct Fields {
    chunked: bool,
    fixed: Option<u64>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
}

impl Fields {
    fn read(fields: &[httparse::Header<'_>]) -> Result<Self, Fault> {
        let mut seen = Self::default();
        for field in fields {
            if field.name.eq_ignore_ascii_case("content-length") {
                let length = std::str::from_utf8(field.value).ok().and_then(|text| text.parse().ok());
                let length = length.ok_or(Fault::Malformed)?;
                if seen.fixed.is_some_and(|other| other != length) {
                    return Err(Fault::Malformed);
                }
                seen.fixed = Some(length);
            } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
                seen.chunked = last_token_is(field.value, "chunked");
            } else if field.name.eq_ignore_ascii_case("connection") {
                seen.close |= has_token(field.value, "close");
                seen.keep_alive |= has_token(field.value, "keep-alive");
            } else if field.name.eq_ignore_ascii_case("expect") {
                seen.expects_continue = has_token(field.value, "100-continue");
            }
        }
        Ok(seen)
    }

    fn framing(&self, otherwise: Framing) -> Result<Framing, Fault> {
        match (self.chunked, self.fixed) {
            // Both at once is how requests are smuggled: nobody may have let this through.
            (true, Some(_)) => Err(Fault::Malformed),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(0)) => Ok(Framing::None),
            (false, Some(length)) => Ok(Framing::Fixed(length)),
            (false, None) => Ok(otherwise),
        }
    }

    fn persistent(&self, minor_version: u8) -> bool {
        !self.close && (minor_version >= 1 || self.keep_alive)
    }
}

fn tokens(value: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

fn has_token(value: &[u8], token: &str) -> bool {
    tokens(value).any(|part| part.eq_ignore_ascii_case(token.as_bytes()))
}

fn last_token_is(value: &[u8], token: &str) -> bool {
    tokens(value).next_back().is_some_and(|part| part.eq_ignore_ascii_case(token.as_bytes()))
}

/// A body on its way in.
pub(crate) enum Body {
    Fixed(u64),
    Chunked(chunked::Decoder),
    UntilClose,
    Done,
}

impl Body {
    pub(crate) fn new(framing: Framing) -> Self {
        match framing {
            Framing::None | Framing::Fixed(0) => Self::Done,
            Framing::Fixed(length) => Self::Fixed(length),
            Framing::Chunked => Self::Chunked(chunked::Decoder::new()),
            Framing::UntilClose => Self::UntilClose,
        }
    }

    pub(crate) fn done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// Takes bytes from the wire, gives the data among them to `sink`, and returns how many belong to the body.
    pub(crate) fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<usize, Fault> {
        match self {
            Self::Done => Ok(0),
            Self::UntilClose => {
                sink(bytes);
                Ok(bytes.len())
            }
            Self::Fixed(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                sink(&bytes[..taken]);
                *left -= taken as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(taken)
            }
            Self::Chunked(decoder) => {
                let taken = decoder.take(bytes, sink)?;
                if decoder.done() {
                    *self = Self::Done;
                }
                Ok(taken)
            }
        }
    }

    /// Takes what the buffer holds of it.
    pub(crate) fn take_from(&mut self, buffer: &mut Buffer, sink: impl FnMut(&[u8])) -> Result<(), Fault> {
        let taken = self.take(buffer.filled(), sink)?;
        buffer.consume(taken);
        Ok(())
    }

    /// The peer has closed.
    pub(crate) fn end(&mut self) -> Result<(), Fault> {
        match self {
            Self::UntilClose | Self::Done => {
                *self = Self::Done;
                Ok(())
            }
            Self::Fixed(_) | Self::Chunked(_) => Err(Fault::Broken),
        }
    }
}

/// Reads a body to its end and gives its data to `sink`.
pub(crate) async fn read_body<S: Stream>(
    stream: &S,
    buffer: &mut Buffer,
    body: &mut Body,
    stop: &Stop,
    mut sink: impl FnMut(&[u8]),
) -> Result<(), Fault> {
    loop {
        body.take_from(buffer, &mut sink)?;
        if body.done() {
            return Ok(());
        }
        if fill(stream, buffer, stop).await? == 0 {
            return body.end();
        }
    }
}

/// Receives at least one byte more; 0 is the end of the stream.
pub(crate) async fn fill<S: Stream>(stream: &S, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Fault> {
    if buffer.spare() == 0 || buffer.filled().is_empty() {
        buffer.compact();
    }
    if buffer.spare() == 0 {
        if buffer.capacity() >= MAX_HEAD_BYTES {
            return Err(Fault::Malformed);
        }
        buffer.grow();
    }
    Ok(stream.fill(buffer, stop).await?)
}

/// Receives until `parse` finds a whole head. The end of the stream before its first byte is [`Fault::Ended`].
pub(crate) async fn read_head<S: Stream, H>(
    stream: &S,
    buffer: &mut Buffer,
    stop: &Stop,
    parse: impl Fn(&[u8]) -> Result<Option<H>, Fault>,
) -> Result<H, Fault> {
    loop {
        if !buffer.filled().is_empty()
            && let Some(head) = parse(buffer.filled())?
        {
            return Ok(head);
        }
        if fill(stream, buffer, stop).await? == 0 {
            return Err(if buffer.filled().is_empty() { Fault::Ended } else { Fault::Broken });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(text: &str, asked: Method) -> ResponseHead {
        parse_response(text.as_bytes(), asked, Some("x-version")).expect("well-formed").expect("complete")
    }

    #[test]
    fn response_framing_follows_status_method_and_fields() {
        let check = |text: &str, asked, framing, persistent| {
            let head = response(text, asked);
            assert_eq!((head.framing, head.persistent), (framing, persistent), "{text}");
        };
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::Other, Framing::Fixed(5), true);
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", Method::Head, Framing::None, true);
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", Method::Other, Framing::Chunked, true);
        check("HTTP/1.1 200 OK\r\n\r\n", Method::Other, Framing::UntilClose, false);
        check("HTTP/1.1 204 No Content\r\n\r\n", Method::Other, Framing::None, true);
        check("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", Method::Other, Framing::None, true);
        check(
            "HTTP/1.1 200 OK\r\nConnection: x, Close\r\nContent-Length: 0\r\n\r\n",
            Method::Other,
            Framing::None,
            false,
        );
        check("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\n", Method::Other, Framing::Fixed(1), false);
        check(
            "HTTP/1.0 200 OK\r\nContent-Length: 1\r\nConnection: keep-alive\r\n\r\n",
            Method::Other,
            Framing::Fixed(1),
            true,
        );
    }

    #[test]
    fn the_counted_field_is_found_whatever_its_case() {
        let text = "HTTP/1.1 200 OK\r\nX-VERSION: v2\r\n\r\n";
        assert_eq!(response(text, Method::Other).field.map(|range| &text[range]), Some("v2"));
        assert_eq!(response("HTTP/1.1 200 OK\r\n\r\n", Method::Other).field, None);
    }

    #[test]
    fn a_message_with_two_ways_to_find_its_end_is_malformed() {
        for text in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n",
            "nonsense\r\n\r\n",
        ] {
            assert!(parse_response(text.as_bytes(), Method::Other, None).is_err(), "{text}");
        }
    }

    #[test]
    fn an_incomplete_head_asks_for_more() {
        let text = b"GET /a HTTP/1.1\r\nHost: b\r\n\r\n";
        for end in 0..text.len() {
            assert!(parse_request(&text[..end]).expect("well-formed so far").is_none(), "{end}");
        }
        let head = parse_request(text).expect("well-formed").expect("complete");
        assert_eq!((head.method, head.length), (Method::Other, text.len()));
    }
}
