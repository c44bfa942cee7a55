//! Writes a head as spans of what came in and inserted text.

use std::ops::Range;

use crate::head::Version;
use crate::name::{self, Name};

use super::edits::{Chunked, ClientFields, Connection, Edits, Upgrade};
use super::fields::{Field, Fields};

/// Takes a written head, in order.
pub trait Sink {
    /// These bytes of the buffer the head arrived in.
    fn original(&mut self, range: Range<usize>);
    /// These bytes instead.
    fn inserted(&mut self, text: &[u8]);
}

/// A sink that copies everything together, for tests and for readers that want the text.
#[derive(Debug)]
pub struct Joined<'a> {
    /// The buffer the head arrived in.
    pub bytes: &'a [u8],
    /// What was written so far.
    pub text: Vec<u8>,
}

impl Sink for Joined<'_> {
    fn original(&mut self, range: Range<usize>) {
        self.text.extend_from_slice(&self.bytes[range]);
    }

    fn inserted(&mut self, text: &[u8]) {
        self.text.extend_from_slice(text);
    }
}

/// Joins neighbouring spans before they reach the sink.
pub(super) struct Writer<'a, S> {
    bytes: &'a [u8],
    sink: &'a mut S,
    pending: Range<usize>,
    keeps_te: bool,
    keeps_upgrade: bool,
}

impl<'a, S: Sink> Writer<'a, S> {
    pub(super) fn new(bytes: &'a [u8], sink: &'a mut S) -> Self {
        Self { bytes, sink, pending: 0..0, keeps_te: false, keeps_upgrade: false }
    }

    pub(super) fn keep(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        if self.pending.end == range.start && !self.pending.is_empty() {
            self.pending.end = range.end;
            return;
        }
        self.flush();
        self.pending = range;
    }

    pub(super) fn insert(&mut self, text: &[u8]) {
        self.flush();
        self.sink.inserted(text);
    }

    pub(super) fn insert_field(&mut self, name: &[u8], value: &[u8]) {
        self.insert(name);
        self.insert(b": ");
        self.insert(value);
        self.insert(b"\r\n");
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.sink.original(std::mem::take(&mut self.pending));
        }
    }

    /// The fields that go on. `drops` names those that the message itself replaces or must not have.
    pub(super) fn fields(&mut self, fields: &Fields, edits: &Edits, version: Version, drops: impl Fn(Name) -> bool) {
        for (field, line) in fields.with_lines() {
            if field.named_by_connection && !self.goes_on_anyway(field, edits, version) {
                continue;
            }
            let name = field.name.of(self.bytes);
            if drops(field.known) || edits.replaces(name) {
                continue;
            }
            if edits.client_fields() == ClientFields::Drop && name::tells_of_client(name) {
                continue;
            }
            self.field(field, line, fields, edits, version);
        }
    }

    /// Fields of this connection that we know how to hand on, with our own Connection field.
    fn goes_on_anyway(&self, field: &Field, edits: &Edits, version: Version) -> bool {
        match field.known {
            Name::Te => version == Version::Http11,
            Name::Upgrade => edits.upgrade() == Upgrade::Keep,
            _ => false,
        }
    }

    fn field(&mut self, field: &Field, line: Range<usize>, fields: &Fields, edits: &Edits, version: Version) {
        match field.known {
            Name::Connection | Name::KeepAlive | Name::ProxyConnection | Name::Http2Settings => {}
            Name::Upgrade if edits.upgrade() == Upgrade::Drop => {}
            Name::Upgrade => {
                self.keeps_upgrade = true;
                self.keep(line);
            }
            Name::Te if version == Version::Http11 && is_trailers(field.value.of(self.bytes)) => {
                self.keeps_te = true;
                self.keep(line);
            }
            Name::Te => {}
            Name::TransferEncoding if edits.chunked() == Chunked::Remove => {}
            Name::TransferEncoding if fields.announced.unusual => self.insert(b"Transfer-Encoding: chunked\r\n"),
            Name::ContentLength if fields.announced.unusual => {
                let digits = without_leading_zeros(field.value.of(self.bytes));
                self.insert_field(b"Content-Length", digits);
            }
            Name::Host | Name::TransferEncoding | Name::ContentLength | Name::Expect => self.keep(line),
            Name::Lookalike | Name::Other => self.keep(line),
        }
    }

    /// What is added, and the blank line.
    pub(super) fn end(&mut self, fields: &Fields, edits: &Edits) {
        for line in edits.lines() {
            self.insert(line);
        }
        self.connection(edits.connection());
        let blank_line = fields.lines().end..fields.lines().end + 2;
        if self.pending.end == blank_line.start {
            self.keep(blank_line)
        } else {
            self.insert(b"\r\n")
        }
        self.flush();
    }

    /// Our own Connection field: the option, and the names of the kept fields that are for one connection only.
    fn connection(&mut self, connection: Connection) {
        let option: Option<&[u8]> = match connection {
            Connection::Unsaid => None,
            Connection::Close => Some(b"close"),
            Connection::KeepAlive => Some(b"keep-alive"),
        };
        let te = self.keeps_te.then_some(&b"TE"[..]);
        let upgrade = self.keeps_upgrade.then_some(&b"Upgrade"[..]);
        let mut separator: &[u8] = b"Connection: ";
        for option in [option, te, upgrade].into_iter().flatten() {
            self.insert(separator);
            self.insert(option);
            separator = b", ";
        }
        if separator == b", " {
            self.insert(b"\r\n");
        }
    }
}

/// `TE: trailers` and nothing else: other codings would be an offer that we do not keep.
fn is_trailers(value: &[u8]) -> bool {
    name::trim(value).eq_ignore_ascii_case(b"trailers")
}

fn without_leading_zeros(mut digits: &[u8]) -> &[u8] {
    while let [b'0', rest @ ..] = digits
        && !rest.is_empty()
    {
        digits = rest;
    }
    digits
}
