//! Heads from one version of HTTP to the other (RFC 9113 section 8).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use ringmesh_codec::body::is_forbidden_trailer;
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::http1::{RequestHead, ResponseHead, for_each_trailer};
use ringmesh_codec::name::Name;
use ringmesh_ring::output::Output;

/// A head that the other version cannot have, though it was legal in its own. The codec refuses such heads before; what is
/// left is that the library is stricter.
#[derive(Debug)]
pub struct Unfit;

/// Whether the hop to the endpoint is protected, which its `:scheme` says: servers may compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// In plain.
    Plain,
    /// In TLS.
    Tls,
}

impl Hop {
    /// What `:scheme` says there.
    pub fn scheme(self) -> Scheme {
        match self {
            Self::Plain => Scheme::HTTP,
            Self::Tls => Scheme::HTTPS,
        }
    }
}

/// An HTTP/1 request's head for an HTTP/2 endpoint. `bytes` are those that were parsed; `host`: what it is for, if it names none.
///
/// # Errors
/// [`Unfit`].
pub fn request_to_http2(head: &RequestHead, bytes: &[u8], host: Option<&[u8]>, hop: Hop) -> Result<Request<()>, Unfit> {
    let copy = Bytes::copy_from_slice(&bytes[..head.len()]);
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method(bytes)).map_err(|_| Unfit)?;
    let path = PathAndQuery::try_from(head.target(bytes)).map_err(|_| Unfit)?;
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(path);
    match head.authority(bytes).or(host) {
        Some(authority) => {
            uri.scheme = Some(hop.scheme());
            uri.authority = Some(Authority::try_from(authority).map_err(|_| Unfit)?);
            *request.version_mut() = Version::HTTP_2;
        }
        // HTTP/1.0 without Host: there is no authority then. The library wants this to be said so.
        None => *request.version_mut() = Version::HTTP_11,
    }
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| Unfit)?;
    let takes_trailers = head.fields(bytes).any(|(name, value)| is_te(name) && takes_trailers(value));
    let fields = head.end_to_end().filter(|(known, ..)| match known {
        Name::Host => false,
        Name::Expect => head.version() == ringmesh_codec::Version::Http11,
        _ => true,
    });
    copy_fields(fields, &copy, request.headers_mut())?;
    if takes_trailers {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}

/// An HTTP/1 request for a tunnel to its target, for an HTTP/2 endpoint (RFC 9113 section 8.5).
///
/// # Errors
/// [`Unfit`].
pub fn connect_to_http2(head: &RequestHead, bytes: &[u8]) -> Result<Request<()>, Unfit> {
    let copy = Bytes::copy_from_slice(&bytes[..head.len()]);
    let mut request = connect(head.authority(bytes).unwrap_or_default())?;
    copy_fields(head.end_to_end().filter(|(known, ..)| *known != Name::Host), &copy, request.headers_mut())?;
    Ok(request)
}

/// A request for a tunnel.
///
/// # Errors
/// [`Unfit`].
pub fn connect(authority: &[u8]) -> Result<Request<()>, Unfit> {
    let mut request = Request::new(());
    *request.method_mut() = Method::CONNECT;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::from(Authority::try_from(authority).map_err(|_| Unfit)?);
    Ok(request)
}

/// Takes the spaces off the ends of all values, as [`trim`]. How many bytes names and values have.
pub fn trim_all(fields: &mut HeaderMap) -> usize {
    let weigh = |(name, value): (&HeaderName, &mut HeaderValue)| {
        trim(value);
        name.as_str().len() + value.len()
    };
    fields.iter_mut().map(weigh).sum()
}

/// Takes the spaces off the ends of a value. HTTP/2 knows none there, and a next hop may not get them (RFC 9113 section 8.2.1);
/// gRPC's metadata may come with some, which mean nothing.
#[inline]
pub fn trim(value: &mut HeaderValue) {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    let bytes = value.as_bytes();
    if is_space(bytes.first()) || is_space(bytes.last()) {
        *value = trimmed(value);
    }
}

#[cold]
fn trimmed(value: &HeaderValue) -> HeaderValue {
    let mut trimmed = HeaderValue::from_bytes(value.as_bytes().trim_ascii()).expect("a part of a value is one");
    trimmed.set_sensitive(value.is_sensitive());
    trimmed
}

fn is_te(name: &[u8]) -> bool {
    Name::from_bytes(name) == Name::Te
}

fn takes_trailers(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

/// An HTTP/1 response's head for an HTTP/2 client. Its version is that in which it came.
///
/// # Errors
/// [`Unfit`].
pub fn response_to_http2(head: &ResponseHead, bytes: &[u8]) -> Result<Response<()>, Unfit> {
    let copy = Bytes::copy_from_slice(&bytes[..head.len()]);
    let mut response = Response::new(());
    *response.version_mut() = match head.version() {
        ringmesh_codec::Version::Http10 => Version::HTTP_10,
        ringmesh_codec::Version::Http11 => Version::HTTP_11,
    };
    *response.status_mut() = StatusCode::from_u16(head.status()).map_err(|_| Unfit)?;
    // A length that a response without content must not have was checked to be 0.
    let forbids_length = head.status() < 200 || head.status() == 204;
    let fields = head.end_to_end().filter(|(known, ..)| !(forbids_length && *known == Name::ContentLength));
    copy_fields(fields, &copy, response.headers_mut())?;
    Ok(response)
}

/// Whether this field's value is another one with each request, so that it must not be indexed for the next hop (RFC 7541 section
/// 6.2.3): it would push out of the table what comes again, and the library compares it with all others of its name there.
pub(crate) fn is_of_one_request(name: &[u8]) -> bool {
    matches!(
        name,
        b"b3"
            | b"traceparent"
            | b"uber-trace-id"
            | b"x-amzn-trace-id"
            | b"x-b3-parentspanid"
            | b"x-b3-spanid"
            | b"x-b3-traceid"
            | b"x-cloud-trace-context"
            | b"x-correlation-id"
            | b"x-request-id"
    )
}

fn copy_fields(
    fields: impl Iterator<Item = (Name, std::ops::Range<usize>, std::ops::Range<usize>)>,
    bytes: &Bytes,
    into: &mut HeaderMap,
) -> Result<(), Unfit> {
    for (known, name, value) in fields {
        let name = HeaderName::from_bytes(&bytes[name]).map_err(|_| Unfit)?;
        let mut value = HeaderValue::from_maybe_shared(bytes.slice(value)).map_err(|_| Unfit)?;
        value.set_sensitive(known == Name::Other && is_of_one_request(name.as_str().as_bytes()));
        into.try_append(name, value).map_err(|_| Unfit)?;
    }
    Ok(())
}

/// The trailer section of a chunked body, as the codec has checked it.
///
/// # Errors
/// [`Unfit`].
pub fn trailers_to_http2(section: &[u8]) -> Result<Option<HeaderMap>, Unfit> {
    let (mut trailers, mut unfit) = (HeaderMap::new(), false);
    let read = for_each_trailer(section, |name, value| {
        match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            // The codec refuses those that HTTP/1 forbids; what is left of those of one connection has no meaning here.
            (Ok(name), Ok(_)) if Name::from_bytes(name.as_str().as_bytes()) != Name::Other => {}
            (Ok(name), Ok(value)) => unfit |= trailers.try_append(name, value).is_err(),
            _ => unfit = true,
        }
    });
    if unfit || read.is_err() {
        return Err(Unfit);
    }
    Ok(Some(trailers).filter(|trailers| !trailers.is_empty()))
}

/// A request's head for an HTTP/1 endpoint. `length`: of its body; one that is not known is sent in chunks.
pub fn request_to_http1(
    method: &Method,
    target: &[u8],
    authority: &[u8],
    fields: &HeaderMap,
    length: BodyLength,
    output: &mut Output,
) {
    let mut text = Vec::with_capacity(512);
    put(&mut text, &[method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\nhost: ", authority, b"\r\n"]);
    put_fields(&mut text, fields);
    if fields.contains_key(header::TE) {
        // In HTTP/2 it can say nothing but `trailers`.
        text.extend_from_slice(b"te: trailers\r\nconnection: te\r\n");
    }
    match length {
        // A server may wait for the length of a body that its method suggests (RFC 9110 section 8.6).
        BodyLength::None if may_expect_body(method) && !fields.contains_key(header::CONTENT_LENGTH) => {
            text.extend_from_slice(b"content-length: 0\r\n");
        }
        BodyLength::Chunked => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        _ => {}
    }
    text.extend_from_slice(b"\r\n");
    output.push_bytes(&text);
}

fn may_expect_body(method: &Method) -> bool {
    *method == Method::POST || *method == Method::PUT || *method == Method::PATCH
}

/// What an HTTP/1 client is told beside the response's own fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// How the body is sent.
    pub length: BodyLength,
    /// What is said of the connection, if anything.
    pub connection: Option<&'static str>,
}

/// A response's head for an HTTP/1 client.
pub fn response_to_http1(response: &Response<()>, framing: Framing, output: &mut Output) {
    let mut text = Vec::with_capacity(512);
    let status = response.status();
    put(&mut text, &[b"HTTP/1.1 ", status.as_str().as_bytes(), b" "]);
    text.extend_from_slice(status.canonical_reason().unwrap_or_default().as_bytes());
    text.extend_from_slice(b"\r\n");
    put_fields(&mut text, response.headers());
    match framing.length {
        BodyLength::Chunked => text.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        BodyLength::Fixed(0) if !response.headers().contains_key(header::CONTENT_LENGTH) => {
            text.extend_from_slice(b"content-length: 0\r\n");
        }
        _ => {}
    }
    if let Some(connection) = framing.connection {
        put(&mut text, &[b"connection: ", connection.as_bytes(), b"\r\n"]);
    }
    text.extend_from_slice(b"\r\n");
    output.push_bytes(&text);
}

/// All fields but those that HTTP/1 says in its own way. A cookie that came in parts becomes whole (RFC 9113 section 8.2.3).
fn put_fields(text: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        if *name == header::HOST || *name == header::TE || *name == header::COOKIE {
            continue;
        }
        put(text, &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    let mut cookies = fields.get_all(header::COOKIE).iter();
    if let Some(first) = cookies.next() {
        put(text, &[b"cookie: ", first.as_bytes()]);
        cookies.for_each(|next| put(text, &[b"; ", next.as_bytes()]));
        text.extend_from_slice(b"\r\n");
    }
}

/// The end of a chunked body. Trailers that HTTP/1 forbids are left out, since a next hop may merge them into the head.
pub fn last_chunk(trailers: Option<&HeaderMap>, output: &mut Output) {
    let mut text = Vec::with_capacity(64);
    text.extend_from_slice(b"0\r\n");
    let fields = trailers.into_iter().flatten();
    for (name, value) in fields.filter(|(name, _)| !is_forbidden_trailer(name.as_str().as_bytes())) {
        put(&mut text, &[name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"]);
    }
    text.extend_from_slice(b"\r\n");
    output.push_bytes(&text);
}

fn put(text: &mut Vec<u8>, parts: &[&[u8]]) {
    parts.iter().for_each(|part| text.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use ringmesh_codec::limits::Limits;

    use super::*;

    #[test]
    fn fields_of_one_request_by_http1_are_not_indexed_for_the_next_hop_and_others_are() {
        let bytes = b"GET / HTTP/1.1\r\nHost: s\r\nUser-Agent: a\r\nX-Request-ID: 1\r\nTraceParent: 00-1-1-00\r\n\r\n";
        let mut head = RequestHead::default();
        head.parse(bytes, &Limits::default()).unwrap();
        let request = request_to_http2(&head, bytes, None, Hop::Plain).unwrap();
        let sensitive = request.headers().iter().filter(|(_, value)| value.is_sensitive());
        let mut names: Vec<_> = sensitive.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["traceparent", "x-request-id"]);
    }
}
