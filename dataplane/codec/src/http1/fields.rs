//! The fields of a head, as offsets.

use std::ops::Range;

use crate::framing::Announced;
use crate::limits::MAX_CONNECTION_OPTIONS;
use crate::name::{self, Name};
use crate::refusal::Refusal;

use super::connection::Options;

/// A part of a head. 16 bits, because a head is at most [`MAX_HEAD_BYTES`](crate::limits::MAX_HEAD_BYTES) long and
/// there is one pair per name and value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u16,
    pub(super) end: u16,
}

impl Span {
    /// `part` must lie inside of `whole`, as slices made by the parser do.
    #[inline]
    pub(super) fn locate(whole: &[u8], part: &[u8]) -> Self {
        let start = part.as_ptr().addr() - whole.as_ptr().addr();
        Self::new(start, start + part.len())
    }

    #[inline]
    pub(super) fn new(start: usize, end: usize) -> Self {
        debug_assert!(end <= usize::from(u16::MAX), "the parser is given no more than a head may have");
        Self { start: start as u16, end: end as u16 }
    }

    #[inline]
    pub(super) fn of(self, bytes: &[u8]) -> &[u8] {
        &bytes[self.range()]
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start.into()..self.end.into()
    }

    pub(super) fn is_empty(self) -> bool {
        self.start == self.end
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) name: Span,
    pub(super) value: Span,
    pub(super) known: Name,
    /// Named by Connection, so meant for this connection only.
    pub(super) named_by_connection: bool,
}

/// All fields in order, and what they say about this connection.
#[derive(Clone, Debug, Default)]
pub(super) struct Fields {
    list: Vec<Field>,
    /// Where the first line starts, and where the blank line after the last one does.
    lines: Span,
    pub(super) options: Options,
    pub(super) announced: Announced,
    /// Whether any field has to be left out or rewritten when the head is forwarded.
    pub(super) has_hop_by_hop: bool,
}

impl Fields {
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.lines = Span::default();
        self.options = Options::default();
        self.announced = Announced::default();
        self.has_hop_by_hop = false;
    }

    /// Takes over what httparse found in `head`, which ends with the blank line, into cleared fields. `note` is called with every field that
    /// has a known name.
    ///
    /// # Errors
    /// Bare LF, and whatever Connection, Content-Length and Transfer-Encoding do wrong.
    pub(super) fn fill(
        &mut self,
        head: &[u8],
        parsed: &[httparse::Header<'_>],
        mut note: impl FnMut(Name, Span) -> Result<(), Refusal>,
    ) -> Result<(), Refusal> {
        // httparse also takes a bare LF. Each line starts right after one, so looking before each line is enough.
        if !head.ends_with(b"\r\n\r\n") {
            return Err(Refusal::BadLineEnd);
        }
        for header in parsed {
            let name = Span::locate(head, header.name.as_bytes());
            let value = Span::locate(head, header.value);
            if !head[..name.start.into()].ends_with(b"\r\n") {
                return Err(Refusal::BadLineEnd);
            }
            let known = Name::from_bytes(header.name.as_bytes());
            if known == Name::Lookalike {
                return Err(Refusal::BadFieldName);
            }
            if known != Name::Other {
                self.note(head, known, name, value)?;
                note(known, value)?;
            }
            self.list.push(Field { name, value, known, named_by_connection: false });
        }
        let end = head.len() - 2;
        self.lines = Span::new(self.list.first().map_or(end, |field| field.name.start.into()), end);
        if self.options.names_fields {
            self.mark_named(head);
        }
        Ok(())
    }

    fn note(&mut self, head: &[u8], known: Name, name: Span, value: Span) -> Result<(), Refusal> {
        self.has_hop_by_hop |= known.is_hop_by_hop();
        match known {
            Name::Connection => self.options.note(value.of(head)),
            Name::ContentLength | Name::TransferEncoding => {
                self.announced.note(known, value.of(head))?;
                let one_space = head[name.end.into()..value.start.into()] == *b": ";
                let line_ends = head[usize::from(value.end)] == b'\r';
                self.announced.unusual |= !one_space || !line_ends;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Marks the fields that Connection names, except those that are for every recipient (see `connection`).
    fn mark_named(&mut self, head: &[u8]) {
        let mut names = [&[][..]; MAX_CONNECTION_OPTIONS];
        let mut count = 0;
        for field in self.list.iter().filter(|field| field.known == Name::Connection) {
            for option in name::list(field.value.of(head)) {
                names[count] = option;
                count += 1;
            }
        }
        for field in &mut self.list {
            let name = field.name.of(head);
            let named = names[..count].iter().any(|option| option.eq_ignore_ascii_case(name));
            field.named_by_connection = named && !super::connection::is_for_every_recipient(name);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Field> {
        self.list.iter()
    }

    /// Each field with the range of its line, CRLF included.
    pub(super) fn with_lines(&self) -> impl Iterator<Item = (&Field, Range<usize>)> {
        self.list.iter().enumerate().map(|(index, field)| {
            let end = self.list.get(index + 1).map_or(self.lines.end, |next| next.name.start);
            (field, field.name.start.into()..end.into())
        })
    }

    /// The range of all field lines.
    pub(super) fn lines(&self) -> Range<usize> {
        self.lines.range()
    }

    /// The value of the first field of that name.
    pub(super) fn find<'b>(&self, bytes: &'b [u8], name: &str) -> Option<&'b [u8]> {
        let is_it = |field: &&Field| {
            usize::from(field.name.end - field.name.start) == name.len()
                && field.name.of(bytes).eq_ignore_ascii_case(name.as_bytes())
        };
        self.list.iter().find(is_it).map(|field| field.value.of(bytes))
    }

    /// The fields that another hop gets whatever version of HTTP it speaks: which name, and where name and value stand.
    /// What is for this connection only is left out, and so is Transfer-Encoding, which other versions do not have.
    pub(super) fn end_to_end(&self) -> impl Iterator<Item = (Name, Range<usize>, Range<usize>)> {
        let goes_on = |field: &&Field| {
            !field.known.is_hop_by_hop() && field.known != Name::TransferEncoding && !field.named_by_connection
        };
        self.list.iter().filter(goes_on).map(|field| (field.known, field.name.range(), field.value.range()))
    }

    /// Name and value of each field.
    pub(super) fn pairs<'b>(&self, bytes: &'b [u8]) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        self.list.iter().map(move |field| (field.name.of(bytes), field.value.of(bytes)))
    }
}
