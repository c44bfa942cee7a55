//! A message's head as the stages of the request path see it, whatever version of HTTP it came in.

/// A request's head: what policy, route and filters may ask. HTTP/1 implements it over the buffer the bytes arrived in
/// ([`http1::RequestView`](crate::http1::RequestView)).
pub trait Head {
    /// The method as sent; methods are case-sensitive.
    fn method(&self) -> &[u8];
    /// Path and query in origin form, as the upstream gets them (`*` for OPTIONS of the whole server). The authority of
    /// an absolute target is not part of it.
    fn target(&self) -> &[u8];
    /// The target up to its `?`, not normalized: see [`normalize`](crate::normalize).
    fn path(&self) -> &[u8];
    /// Host and optional port, as sent: compare in lower case. None only for HTTP/1.0 without Host.
    fn authority(&self) -> Option<&[u8]>;
    /// The value of the first field of that name, in any case.
    fn field(&self, name: &str) -> Option<&[u8]>;
    /// Calls `visit` with name and value of each field, in the order they were sent.
    fn for_each_field(&self, visit: &mut dyn FnMut(&[u8], &[u8]));
}

/// The version of an HTTP/1 message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Version {
    /// HTTP/1.0: no persistence unless asked for, no transfer codings, no interim responses.
    Http10,
    /// HTTP/1.1.
    #[default]
    Http11,
}

/// A request's method, as far as framing and retries have to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Method {
    /// GET: safe.
    #[default]
    Get,
    /// HEAD: safe, and its response has no body (RFC 9110 section 9.3.2).
    Head,
    /// POST.
    Post,
    /// PUT: idempotent.
    Put,
    /// PATCH.
    Patch,
    /// DELETE: idempotent.
    Delete,
    /// OPTIONS: safe.
    Options,
    /// TRACE: safe.
    Trace,
    /// CONNECT: its successful response turns the connection into a tunnel.
    Connect,
    /// Any other token.
    Other,
}

impl Method {
    /// Recognizes a method by its exact bytes: methods are case-sensitive (RFC 9110 section 9.1).
    pub fn from_bytes(bytes: &[u8]) -> Self {
        match bytes {
            b"GET" => Self::Get,
            b"HEAD" => Self::Head,
            b"POST" => Self::Post,
            b"PUT" => Self::Put,
            b"PATCH" => Self::Patch,
            b"DELETE" => Self::Delete,
            b"OPTIONS" => Self::Options,
            b"TRACE" => Self::Trace,
            b"CONNECT" => Self::Connect,
            _ => Self::Other,
        }
    }

    /// Whether the request asks for no change of state (RFC 9110 section 9.2.1).
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }

    /// Whether sending it twice has the effect of sending it once (RFC 9110 section 9.2.2).
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}
