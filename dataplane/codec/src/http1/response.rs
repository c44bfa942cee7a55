//! A response's head.

use std::mem::MaybeUninit;
use std::ops::Range;

use crate::framing::{self, BodyLength};
use crate::head::{Method, Version};
use crate::limits::{Limits, MAX_FIELDS};
use crate::name::{self, Name};
use crate::refusal::Refusal;

use super::Parsed;
use super::edits::{Edits, Framing};
use super::fields::Fields;
use super::parser;
use super::progress::Progress;
use super::write::{self, Sink};

/// A response's head as offsets into the buffer it arrived in; used like [`RequestHead`](super::RequestHead).
#[derive(Clone, Debug, Default)]
pub struct ResponseHead {
    progress: Progress,
    length: u16,
    status: u16,
    version: Version,
    fields: Fields,
}

/// `HTTP/1.1`, which every status line starts with.
const VERSION_BYTES: usize = 8;

impl ResponseHead {
    /// Parses the head at the start of `bytes`. After [`Parsed::Partial`], call again with the same bytes and more of
    /// them; call [`ResponseHead::clear`] before another response if that one never came to its end.
    ///
    /// # Errors
    /// Anything malformed, too large, or ambiguous in length, whatever was asked for.
    pub fn parse(&mut self, bytes: &[u8], limits: &Limits) -> Result<Parsed, Refusal> {
        let Some(window) = self.progress.window(bytes, limits) else { return Ok(Parsed::Partial) };
        let result = match self.parse_window(window.bytes, limits) {
            Ok(Parsed::Partial) if window.is_full => Err(Refusal::HeadTooLarge),
            Ok(Parsed::Partial) => return Ok(Parsed::Partial),
            result => result,
        };
        self.progress = Progress::default();
        result
    }

    fn parse_window(&mut self, window: &[u8], limits: &Limits) -> Result<Parsed, Refusal> {
        self.forget();
        if let [b'\r' | b'\n', ..] = window {
            return Err(Refusal::LeadingEmptyLines);
        }
        let mut storage = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let storage = &mut storage[..limits.max_fields.min(MAX_FIELDS)];
        let mut response = httparse::Response::new(&mut []);
        let parsed =
            httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut response, window, storage);
        let length = match parsed {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) => return Ok(Parsed::Partial),
            Err(error) => return Err(parser::refusal(error, window, Refusal::BadStatusLine)),
        };
        self.length = length as u16;
        self.version = if response.version == Some(0) { Version::Http10 } else { Version::Http11 };
        self.status = response.code.expect("a complete response has a status");
        if self.status < 100 {
            return Err(Refusal::BadStatusLine);
        }
        self.fields.fill(&window[..length], response.headers, |_, _| Ok(()))?;
        self.fields.announced.check_response(self.version, self.status)?;
        Ok(Parsed::Complete)
    }

    /// Forgets the response and keeps the storage.
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

    /// Bytes of the head, with the blank line: where the body starts.
    #[allow(clippy::len_without_is_empty, reason = "a complete head is never empty")]
    pub fn len(&self) -> usize {
        self.length.into()
    }

    /// The head's version.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The status, 100 to 999.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The reason phrase, often empty.
    pub fn reason<'b>(&self, bytes: &'b [u8]) -> &'b [u8] {
        let end = self.fields.lines().start.saturating_sub(2);
        bytes[..end].get(VERSION_BYTES + 5..).unwrap_or_default()
    }

    /// Whether another response to the same request follows: 1xx other than 101 (RFC 9110 section 15.2).
    pub fn interim(&self) -> bool {
        self.status < 200 && self.status != 101
    }

    /// Whether the upstream switches to another protocol. Only right if the request asked for it
    /// ([`RequestHead::upgrade`](super::RequestHead::upgrade)), which the proxy has to check.
    pub fn switches_protocols(&self) -> bool {
        self.status == 101
    }

    /// The protocol that it switches to: the one that Upgrade names, named by Connection in turn (RFC 9110 section 7.8).
    /// None if it does not say so, or names several.
    pub fn upgrade<'b>(&self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let fields = self.fields.iter().filter(|field| field.known == Name::Upgrade);
        let mut protocols = fields.flat_map(|field| name::list(field.value.of(bytes)));
        let protocol = protocols.next().filter(|_| self.fields.options.upgrade && self.version == Version::Http11);
        protocol.filter(|_| protocols.next().is_none())
    }

    /// How long the body is, given what was asked for.
    #[inline]
    pub fn framing(&self, request: Method) -> BodyLength {
        self.fields.announced.response(self.status, request)
    }

    /// Whether the upstream's connection can be used again once the body has been read.
    #[inline]
    pub fn persistent(&self, request: Method) -> bool {
        self.framing(request) != BodyLength::UntilClose && self.fields.options.persistent(self.version)
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

    /// Writes the head for the client: as [`RequestHead::write`](super::RequestHead::write). A Content-Length of 0
    /// that a 1xx or 204 must not have is left out.
    pub fn write(&self, bytes: &[u8], edits: &Edits, sink: &mut impl Sink) {
        let drops_length = framing::forbids_length(self.status) && self.fields.announced.has_content_length();
        let is_plain = self.version == Version::Http11 && !drops_length;
        if is_plain && edits.is_empty() && !self.fields.has_hop_by_hop && !self.fields.announced.unusual {
            return sink.original(0..self.len());
        }
        let mut writer = write::Writer::new(bytes, sink);
        let line_end = self.fields.lines().start;
        match self.version {
            Version::Http11 => writer.keep(0..line_end),
            Version::Http10 => {
                writer.insert(b"HTTP/1.1");
                writer.keep(VERSION_BYTES..line_end);
            }
        }
        let drops_framing = edits.framing() == Framing::Drop;
        writer.fields(&self.fields, edits, self.version, |name| match name {
            Name::ContentLength => drops_length || drops_framing,
            Name::TransferEncoding => drops_framing,
            _ => false,
        });
        writer.end(&self.fields, edits);
    }
}
