//! A request's head.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::authority;
use crate::framing::BodyLength;
use crate::head::{Head, Method, Version};
use crate::limits::{Limits, MAX_FIELDS};
use crate::name::{self, Name};
use crate::refusal::Refusal;

use super::Parsed;
use super::edits::Edits;
use super::fields::{Fields, Span};
use super::parser;
use super::progress::Progress;
use super::target::{Form, Target};
use super::write::{self, Sink};

/// A request's head as offsets into the buffer it arrived in. Borrows nothing: every question takes the bytes that were
/// parsed, from the same first byte. Meant to be kept and used again; parsing allocates only until its storage has
/// grown.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    progress: Progress,
    /// Where the request line starts: after an empty line, if one came first.
    start: u16,
    length: u16,
    version: Version,
    method: Span,
    known_method: Method,
    target: Target,
    host: Option<Span>,
    framing: BodyLength,
    expects_continue: bool,
    fields: Fields,
}

impl RequestHead {
    /// Parses the head at the start of `bytes`. After [`Parsed::Partial`], call again with the same bytes and more of
    /// them; call [`RequestHead::clear`] before another request if that one never came to its end.
    ///
    /// # Errors
    /// Anything malformed, too large, unsupported, or ambiguous in length or destination. What was understood before
    /// the fault (method, target) can be asked for, so that the access log can name it; the rest is empty.
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, Refusal> {
        let Some(window) = self.progress.window(bytes, limits) else { return Ok(Parsed::Partial) };
        let result = match self.parse_window(window.bytes, limits) {
            Ok(Parsed::Partial) if line_is_too_long(window.bytes, limits) => Err(Refusal::TargetTooLong),
            Ok(Parsed::Partial) if window.is_full => Err(Refusal::HeadTooLarge),
            Ok(Parsed::Partial) => return Ok(Parsed::Partial),
            result => result,
        };
        self.progress = Progress::default();
        result
    }

    fn parse_window(&mut self, window: &[u8], limits: &Limits) -> Result<Parsed, Refusal> {
        self.forget();
        let start = skip_empty_line(window)?;
        let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let storage = &mut storage[..limits.max_fields.min(MAX_FIELDS)];
        let mut request = httparse::Request::new(&mut []);
        let length = match request.parse_with_uninit_headers(&window[start..], storage) {
            Ok(httparse::Status::Complete(length)) => start + length,
            Ok(httparse::Status::Partial) => return Ok(Parsed::Partial),
            Err(error) => return Err(parser::refusal(error, third_word(window), Refusal::BadRequestLine)),
        };
        self.start = start as u16;
        self.length = length as u16;
        let method = request.method.expect("a complete request has a method").as_bytes();
        let target = request.path.expect("a complete request has a target").as_bytes();
        self.version = if request.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.interpret(&window[..length], method, target, request.headers, limits)?;
        Ok(Parsed::Complete)
    }

    fn interpret(
        &mut self,
        head: &[u8],
        method: &[u8],
        target: &[u8],
        headers: &[httparse::Header<'_>],
        limits: &Limits,
    ) -> Result<(), Refusal> {
        if target.len() > limits.max_target_bytes {
            return Err(Refusal::TargetTooLong);
        }
        self.method = Span::locate(head, method);
        self.known_method = Method::from_bytes(method);
        self.target = Target::parse(head, target, self.known_method)?;
        let mut host = None;
        let mut expects_continue = false;
        let version = self.version;
        self.fields.fill(head, headers, |known, value| match known {
            Name::Host if host.is_some() => Err(Refusal::RepeatedHost),
            Name::Host => {
                host = Some(value);
                authority::parse(value.of(head)).map(|_| ())
            }
            // HTTP/1.0 has no expectations, and none may be inferred from it (RFC 9110 section 10.1.1).
            Name::Expect if version == Version::Http11 => {
                expects_continue = true;
                check_expectations(value.of(head))
            }
            _ => Ok(()),
        })?;
        self.framing = self.fields.announced.request(version)?;
        match version {
            Version::Http11 if host.is_none() => return Err(Refusal::MissingHost),
            Version::Http11 => {}
            Version::Http10 => self.check_old_body()?,
        }
        self.host = host;
        self.expects_continue = expects_continue && !self.framing.is_empty();
        if self.known_method == Method::Connect {
            return self.interpret_connect();
        }
        Ok(())
    }

    /// Readers of HTTP/1.0 look for no body behind these methods, whatever the fields say, and take it for a request.
    #[cold]
    fn check_old_body(&self) -> Result<(), Refusal> {
        let expects_none = matches!(self.known_method, Method::Get | Method::Head | Method::Delete);
        if expects_none && !self.framing.is_empty() { Err(Refusal::BodyInOldVersion) } else { Ok(()) }
    }

    /// What follows CONNECT is the tunnel's, so that it has no body. And it is the last request of its connection: where no
    /// tunnel comes of it, what its client has sent in hope of one must not be read as requests.
    #[cold]
    fn interpret_connect(&mut self) -> Result<(), Refusal> {
        if self.framing != BodyLength::None {
            return Err(Refusal::ConnectWithBody);
        }
        self.fields.options.end();
        Ok(())
    }

    /// Forgets the request and keeps the storage.
    pub fn clear(&mut self) {
        self.progress = Progress::default();
        self.forget();
    }

    /// No offset may outlive the bytes it points into.
    fn forget(&mut self) {
        let mut fields = std::mem::take(&mut self.fields);
        fields.clear();
        *self = Self { fields, progress: self.progress, ..Self::default() };
    }

    /// Bytes of the head, with the blank line and an empty line before it: where the body starts.
    #[allow(clippy::len_without_is_empty, reason = "a complete head is never empty")]
    pub fn len(&self) -> usize {
        self.length.into()
    }

    /// The head's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The method as sent.
    #[inline]
    pub fn method<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        self.method.of(bytes)
    }

    /// The method, recognized.
    pub fn known_method(&self) -> Method {
        self.known_method
    }

    /// Path and query in origin form: what the upstream gets.
    pub fn target<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        self.or_root(self.target.origin, bytes)
    }

    /// The target as the client sent it, for the access log.
    pub fn raw_target<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        self.target.raw.of(bytes)
    }

    /// The path, not normalized.
    #[inline]
    pub fn path<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        self.or_root(self.target.path, bytes)
    }

    /// An absolute target may have no path: it means `/`, or the whole server for OPTIONS (RFC 9112 section 3.2.4).
    #[inline]
    fn or_root<'b>(&self, span: Span, bytes: &'b [u8]) -> &'b [u8] {
        match self.target.form {
            Form::Absolute if span.is_empty() => self.implied_target(),
            _ => span.of(bytes),
        }
    }

    fn implied_target(&self) -> &'static [u8] {
        if self.known_method == Method::Options { b"*" } else { b"/" }
    }

    /// Host and port that the request is for. The authority of an absolute target, or of CONNECT's, wins over Host, which
    /// is overwritten when the head is written (RFC 9112 section 3.2.2). None only in HTTP/1.0.
    #[inline]
    pub fn authority<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        match self.target.form {
            Form::Absolute | Form::Authority => Some(self.target.authority.of(bytes)),
            Form::Origin | Form::Asterisk => self.host.map(|host| host.of(bytes)),
        }
    }

    /// The value of the first field of that name, in any case, without the spaces around it.
    pub fn field<'b>(&self, bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
        self.fields.find(bytes, name)
    }

    /// The fields that go on to a hop that speaks another version of HTTP: which name, and the ranges of name and value.
    /// Without those of this connection only, and without Transfer-Encoding.
    pub fn end_to_end(&self) -> impl Iterator<Item = (Name, Range<usize>, Range<usize>)> {
        self.fields.end_to_end()
    }

    /// Name and value of each field, in order.
    pub fn fields<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        self.fields.pairs(bytes)
    }

    /// How long the body is.
    pub fn framing(&self) -> BodyLength {
        self.framing
    }

    /// Whether the client wants to use the connection again.
    pub fn persistent(&self) -> bool {
        self.fields.options.persistent(self.version)
    }

    /// Whether the client waits for a 100 before it sends the body.
    pub fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client asks for another protocol on this connection: HTTP/1.1, with Upgrade and named by Connection
    /// (RFC 9110 section 7.8). The field `upgrade` says which.
    pub fn upgrade(&self) -> bool {
        self.version == Version::Http11
            && self.fields.options.upgrade
            && self.fields.iter().any(|field| field.known == Name::Upgrade)
    }

    /// The protocols that [`RequestHead::upgrade`] asks for, in order.
    pub fn upgrades<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = &'b [u8]> {
        let fields = self.fields.iter().filter(|field| field.known == Name::Upgrade);
        fields.flat_map(move |field| name::list(field.value.of(bytes)))
    }

    /// Whether it says something to each hop on its way: OPTIONS and TRACE, which may go only so far, CONNECT, and what asks
    /// for another protocol. Few do, so that the others need not be looked at any further.
    #[inline]
    pub fn speaks_to_hops(&self) -> bool {
        matches!(self.known_method, Method::Options | Method::Trace | Method::Connect) || self.fields.options.upgrade
    }

    /// The head as a stage of the request path sees it.
    pub fn view<'a>(&'a self, bytes: &'a [u8]) -> RequestView<'a> {
        RequestView { head: self, bytes }
    }

    /// Writes the head for the next hop: spans of `bytes` where nothing changes, text where it does. An unchanged head
    /// is one span.
    ///
    /// The version becomes HTTP/1.1, an absolute target origin form, and Host its authority; what is for this
    /// connection only is left out; edits come last, before the blank line. Content-Length and Transfer-Encoding are
    /// written anew where a simpler reader could misread them.
    pub fn write(&self, bytes: &[u8], edits: &Edits, sink: &mut impl Sink) {
        let whole = usize::from(self.start)..self.len();
        let is_plain = self.version == Version::Http11 && self.target.form < Form::Absolute;
        if is_plain && edits.is_empty() && !self.fields.has_hop_by_hop && !self.fields.announced.unusual {
            return sink.original(whole);
        }
        let mut writer = write::Writer::new(bytes, sink);
        self.write_request_line(edits, &mut writer);
        let host = self.host_to_write(bytes, edits);
        writer.fields(&self.fields, edits, self.version, |name| match name {
            Name::Host => host.is_some(),
            // Ignored here (see `interpret`), so the upstream must not act on it either.
            Name::Expect => self.version == Version::Http10,
            _ => false,
        });
        if let Some(host) = host {
            writer.insert_field(b"Host", host);
        }
        writer.end(&self.fields, edits);
    }

    fn write_request_line(&self, edits: &Edits, writer: &mut write::Writer<'_, impl Sink>) {
        let target = self.target.raw.range();
        writer.keep(self.start.into()..target.start);
        match edits.target() {
            Some(target) => writer.insert(target),
            None if self.target.origin.is_empty() => writer.insert(self.implied_target()),
            None => writer.keep(self.target.origin.range()),
        }
        match self.version {
            Version::Http11 => writer.keep(target.end..self.fields.lines().start),
            Version::Http10 => writer.insert(b" HTTP/1.1\r\n"),
        }
    }

    /// The Host to put in place of the one that came, or of the missing one.
    fn host_to_write<'b>(&self, bytes: &'b [u8], edits: &Edits) -> Option<&'b [u8]> {
        let authority = self.authority(bytes).unwrap_or_default();
        let came = self.host.map(|host| host.of(bytes));
        if edits.sets_host() || came == Some(authority) { None } else { Some(authority) }
    }

    /// The range of the request line, without its CRLF; empty before it is complete.
    pub fn request_line(&self) -> Range<usize> {
        self.start.into()..self.fields.lines().start.saturating_sub(2)
    }
}

/// Of the empty lines that old clients send after a body, one is skipped (RFC 9112 section 2.2 asks for at least one).
fn skip_empty_line(bytes: &[u8]) -> Result<usize, Refusal> {
    match bytes {
        [b'\r', b'\n', b'\r' | b'\n', ..] => Err(Refusal::LeadingEmptyLines),
        [b'\n', ..] => Err(Refusal::BadLineEnd),
        [b'\r', b'\n', ..] => Ok(2),
        _ => Ok(0),
    }
}

fn check_expectations(value: &[u8]) -> Result<(), Refusal> {
    let known = name::list(value).all(|expectation| expectation.eq_ignore_ascii_case(b"100-continue"));
    if known { Ok(()) } else { Err(Refusal::UnknownExpectation) }
}

/// Whether a request line that has not ended yet cannot be within the limit: 32 bytes are enough for method and version.
fn line_is_too_long(window: &[u8], limits: &Limits) -> bool {
    window.len() > limits.max_target_bytes + 32 && !window.contains(&b'\n')
}

/// Where the version of a request stands.
fn third_word(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == b' ').nth(2).unwrap_or_default()
}

/// A request's head together with its bytes.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// The offsets.
    pub head: &'a RequestHead,
    /// The bytes they point into.
    pub bytes: &'a [u8],
}

impl Head for RequestView<'_> {
    #[inline]
    fn method(&self) -> &[u8] {
        self.head.method(self.bytes)
    }

    fn target(&self) -> &[u8] {
        self.head.target(self.bytes)
    }

    #[inline]
    fn path(&self) -> &[u8] {
        self.head.path(self.bytes)
    }

    #[inline]
    fn authority(&self) -> Option<&[u8]> {
        self.head.authority(self.bytes)
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.head.field(self.bytes, name)
    }

    fn for_each_field(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        self.head.fields(self.bytes).for_each(|(name, value)| visit(name, value));
    }
}
