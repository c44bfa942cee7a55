//! A request's head as it comes in a stream: what the library has checked, and the rest (RFC 9113 section 8.3).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use h2::ext::Protocol;
use http::header::{self, HeaderMap, HeaderValue};
use http::uri::Authority;
use http::{Method, Uri, request};
use ringmesh_codec::authority;
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::grpc;
use ringmesh_codec::head::{self, Method as Known};
use ringmesh_codec::http2::{check_authority, check_path};
use ringmesh_codec::limits::Limits;
use ringmesh_codec::name::Name;
use ringmesh_codec::refusal::Refusal;

use crate::proxy::exchange::head::{Hop, is_of_one_request, trim};
use crate::proxy::grpc::is_call;

/// What a request asks for beside a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asks {
    /// Nothing.
    Nothing,
    /// A tunnel to its authority (RFC 9113 section 8.5).
    Connect,
    /// A tunnel of this protocol, as Upgrade asks for in HTTP/1.1 (RFC 8441 section 4).
    Upgrade(Protocol),
}

/// A request's head.
pub struct Head {
    /// Its method. That of an extended CONNECT is GET, as it is where HTTP/1.1 asks for the same: policies, routes and the next
    /// hop are to take them for one thing.
    pub method: Method,
    known: Known,
    /// Scheme, authority and path, as they came.
    pub uri: Uri,
    /// What else it asks for.
    pub asks: Asks,
    /// Its fields, without Host.
    pub fields: HeaderMap,
    /// Where the query begins in the target.
    query: usize,
    /// The authority, if only Host told it.
    host: Option<HeaderValue>,
    /// How long its body is; [`BodyLength::Chunked`] where that is not told.
    pub length: BodyLength,
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
    /// Whether the client waits for a 100 before it sends the body.
    pub expects_continue: bool,
}

impl Head {
    /// Takes a request's head, which is to be checked. `ends`: there is no body.
    // Inlined, so that each part moves once.
    #[inline]
    pub fn of(parts: request::Parts, ends: bool) -> Self {
        let request::Parts { mut method, uri, headers: fields, mut extensions, .. } = parts;
        let asks = match extensions.remove::<Protocol>() {
            Some(protocol) => {
                method = Method::GET;
                Asks::Upgrade(protocol)
            }
            None if method == Method::CONNECT => Asks::Connect,
            None => Asks::Nothing,
        };
        let known = Known::from_bytes(method.as_str().as_bytes());
        let length = if ends { BodyLength::None } else { BodyLength::Chunked };
        let (host, is_grpc, expects_continue) = (None, false, false);
        Self { method, known, uri, asks, fields, query: 0, host, length, is_grpc, expects_continue }
    }

    /// Checks it.
    ///
    /// # Errors
    /// What the request ends in if it must not go on.
    pub fn check(&mut self, limits: &Limits) -> Result<(), Refusal> {
        let checked = self.interpret(limits);
        if matches!(checked, Err(Refusal::HeadTooLarge | Refusal::TooManyFields)) {
            // It may be several times as large as one that is passed on, and its stream may last a while.
            self.fields = HeaderMap::new();
        }
        checked
    }

    fn interpret(&mut self, limits: &Limits) -> Result<(), Refusal> {
        // Callers are to understand a refusal, whichever field it is for.
        let seen = self.check_fields(limits).inspect_err(|_| self.is_grpc = is_call(&self.fields))?;
        if seen.hosts > 0 {
            self.host = self.fields.remove(header::HOST);
        }
        if self.asks != Asks::Nothing {
            return self.interpret_tunnel(&seen, limits);
        }
        self.is_grpc = seen.is_grpc;
        self.check_target(limits)?;
        if self.length != BodyLength::None {
            self.length = seen.length.map_or(BodyLength::Chunked, BodyLength::Fixed);
            self.expects_continue = seen.expects_continue;
        }
        Ok(())
    }

    /// What follows belongs to the tunnel, so that there is no body.
    #[cold]
    fn interpret_tunnel(&mut self, seen: &Seen, limits: &Limits) -> Result<(), Refusal> {
        if seen.length.is_some() || seen.expects_continue {
            return Err(Refusal::ConnectWithBody);
        }
        self.length = BodyLength::None;
        if self.asks != Asks::Connect {
            return self.check_target(limits);
        }
        let host = self.host.as_ref().map(HeaderValue::as_bytes);
        let asked = self.uri.authority().ok_or(Refusal::BadTarget)?.as_str().as_bytes();
        check_authority(Some(asked), host)?;
        // Its port is no matter of taste (RFC 9110 section 9.3.6).
        match authority::parse(asked).map(|authority| authority.port) {
            Ok(Some(port)) if port != 0 => Ok(()),
            _ => Err(Refusal::BadTarget),
        }
    }

    fn check_target(&mut self, limits: &Limits) -> Result<(), Refusal> {
        // The library takes an empty one for a scheme (RFC 9113 section 8.3.1).
        if self.uri.scheme_str().is_some_and(str::is_empty) {
            return Err(Refusal::BadTarget);
        }
        let authority = self.uri.authority().map(|authority| authority.as_str().as_bytes());
        check_authority(authority, self.host.as_ref().map(HeaderValue::as_bytes))?;
        let target = self.target_bytes();
        if target.len() > limits.max_target_bytes {
            return Err(Refusal::TargetTooLong);
        }
        self.query = check_path(target, self.known_method())?;
        Ok(())
    }

    /// One walk over the fields. The sizes are those that the same head had in HTTP/1, so that one limit serves both.
    fn check_fields(&mut self, limits: &Limits) -> Result<Seen, Refusal> {
        if self.fields.len() > limits.max_fields {
            return Err(Refusal::TooManyFields);
        }
        let mut seen = Seen::default();
        let mut bytes = self.target_bytes().len();
        for (name, value) in &mut self.fields {
            trim(value);
            let name = name.as_str().as_bytes();
            bytes += name.len() + value.len() + 4;
            match Name::from_bytes(name) {
                Name::Lookalike => return Err(Refusal::BadFieldName),
                Name::Expect if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
                    return Err(Refusal::UnknownExpectation);
                }
                Name::Expect => seen.expects_continue = true,
                Name::Host if seen.hosts > 0 => return Err(Refusal::RepeatedHost),
                Name::Host => seen.hosts += 1,
                Name::ContentLength if seen.length.is_some() => return Err(Refusal::RepeatedContentLength),
                Name::ContentLength => seen.length = Some(parse_length(value).ok_or(Refusal::BadContentLength)?),
                Name::Other if name == b"content-type" => seen.is_grpc = grpc::is_grpc(value.as_bytes()),
                Name::Other if is_of_one_request(name) => value.set_sensitive(true),
                _ => {}
            }
        }
        if bytes > limits.max_head_bytes { Err(Refusal::HeadTooLarge) } else { Ok(seen) }
    }

    /// The same target for an endpoint that is reached by that hop.
    pub fn uri_for(&self, hop: Hop) -> Option<Uri> {
        let scheme = hop.scheme();
        if self.uri.scheme() == Some(&scheme) && self.uri.authority().is_some() {
            return Some(self.uri.clone());
        }
        let mut parts = http::uri::Parts::default();
        parts.authority = Some(Authority::try_from(self.authority_bytes()).ok()?);
        parts.path_and_query = self.uri.path_and_query().cloned();
        parts.scheme = Some(scheme);
        Uri::from_parts(parts).ok()
    }

    /// Path and query; of CONNECT, whom it wants to reach.
    pub fn target_bytes(&self) -> &[u8] {
        if self.asks == Asks::Connect {
            return self.authority_bytes();
        }
        self.uri.path_and_query().map_or(b"", |target| target.as_str().as_bytes())
    }

    /// Whom the request is for.
    pub fn authority_bytes(&self) -> &[u8] {
        match (self.uri.authority(), &self.host) {
            (Some(authority), _) => authority.as_str().as_bytes(),
            (None, Some(host)) => host.as_bytes(),
            (None, None) => b"",
        }
    }

    /// The method, as far as the proxy has to know it.
    pub fn known_method(&self) -> Known {
        self.known
    }
}

/// What a walk over the fields has found.
#[derive(Default)]
struct Seen {
    hosts: u32,
    length: Option<u64>,
    is_grpc: bool,
    expects_continue: bool,
}

/// That a body has this length, the library sees to; digits alone are a length.
pub(crate) fn parse_length(value: &HeaderValue) -> Option<u64> {
    let digits = value.as_bytes();
    let plain = !digits.is_empty() && digits.len() <= 19 && digits.iter().all(u8::is_ascii_digit);
    let number = value.to_str().ok().filter(|_| plain)?.parse::<u64>().ok()?;
    (number <= i64::MAX as u64).then_some(number)
}

impl head::Head for &Head {
    fn method(&self) -> &[u8] {
        self.method.as_str().as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.target_bytes()
    }

    fn path(&self) -> &[u8] {
        &self.target_bytes()[..self.query]
    }

    fn authority(&self) -> Option<&[u8]> {
        Some(self.authority_bytes())
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        if name.eq_ignore_ascii_case("host") {
            return Some(self.authority_bytes());
        }
        self.fields.get(name).map(HeaderValue::as_bytes)
    }

    fn for_each_field(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        visit(b"host", self.authority_bytes());
        self.fields.iter().for_each(|(name, value)| visit(name.as_str().as_bytes(), value.as_bytes()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_one_request_are_not_indexed_for_the_next_hop_and_others_are() {
        let request = http::Request::get("http://s/").header("user-agent", "a").header("x-request-id", "1");
        let request = request.header("traceparent", "00-1-1-00").body(()).unwrap();
        let mut head = Head::of(request.into_parts().0, true);
        head.check(&Limits::default()).unwrap();
        let sensitive = head.fields.iter().filter(|(_, value)| value.is_sensitive());
        let mut names: Vec<_> = sensitive.map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["traceparent", "x-request-id"]);
    }
}
