//! Which bytes after a head belong to its body.
//!
//! The scanner looks at bytes without changing them, so that a body is forwarded as it arrived, chunk framing and
//! trailers included. It is as strict as the head's parser: what is forwarded unchanged must not be understood
//! differently by the next reader.

use std::ops::Range;

use crate::framing::BodyLength;
use crate::limits::Limits;
use crate::name::is_token;
use crate::refusal::Refusal;

/// Whether a body has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// More bytes belong to it.
    More,
    /// It is complete: the next byte belongs to the next message.
    Done,
}

/// What [`BodyScanner::scan`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// How many leading bytes belong to the body. All of them unless the body ended.
    pub consumed: usize,
    /// Whether the body ended there.
    pub state: State,
}

/// One run of a body's bytes, from [`BodyScanner::next_piece`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// How many leading bytes were looked at; they end with the data.
    pub consumed: usize,
    /// Content without chunk framing and trailers; may be empty.
    pub data: Range<usize>,
    /// What of the looked at bytes belongs to the trailer section: lines with their CRLF, and the blank line. Mostly empty.
    pub trailers: Range<usize>,
    /// Whether the body ended there.
    pub state: State,
}

/// Follows one body through the reads it arrives in. Any split of the bytes into reads gives the same result.
#[derive(Clone, Debug)]
pub struct BodyScanner {
    at: At,
    /// Bytes of content still to come in this body (fixed) or chunk; while a size is read, its value so far.
    left: u64,
    /// Bytes of content that further chunks may have.
    room: u64,
    /// Bytes of the current chunk line or trailer section so far.
    line_bytes: u32,
    max_chunk_line_bytes: u32,
    max_trailer_bytes: u32,
    trailer: TrailerName,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Fixed,
    UntilClose,
    Size,
    Extension(Extension),
    LineFeed,
    ChunkData,
    ChunkReturn,
    ChunkLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Done,
    Refused(Refusal),
}

/// Where in `*( BWS ";" BWS name [ BWS "=" BWS value ] )` (RFC 9112 section 7.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Extension {
    /// Spaces after the size: only a `;` may follow.
    BeforeSemicolon,
    BeforeName,
    Name,
    AfterName,
    BeforeValue,
    Token,
    Quoted,
    Escaped,
    AfterQuoted,
    /// Spaces after a token value.
    AfterValue,
}

impl BodyScanner {
    /// A scanner for a body of that length, in front of its first byte.
    pub fn new(length: BodyLength, limits: &Limits) -> Self {
        let (at, left) = match length {
            BodyLength::None | BodyLength::Fixed(0) => (At::Done, 0),
            BodyLength::Fixed(length) if length > limits.max_body_bytes => (At::Refused(Refusal::BodyTooLarge), 0),
            BodyLength::Fixed(length) => (At::Fixed, length),
            BodyLength::Chunked => (At::Size, 0),
            BodyLength::UntilClose => (At::UntilClose, 0),
        };
        let bound = |limit: usize| u32::try_from(limit).unwrap_or(u32::MAX);
        Self {
            at,
            left,
            room: limits.max_body_bytes,
            line_bytes: 0,
            max_chunk_line_bytes: bound(limits.max_chunk_line_bytes),
            max_trailer_bytes: bound(limits.max_trailer_bytes),
            trailer: TrailerName::default(),
        }
    }

    /// How many leading bytes belong to the body as sent on the wire. `bytes` are those after what was consumed before.
    ///
    /// # Errors
    /// Chunk framing or trailers that are malformed, forbidden or too large; the same again on every later call.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Scan, Refusal> {
        let content = self.unframed_bytes().min(bytes.len() as u64) as usize;
        if content > 0 && content == bytes.len() {
            // Mostly there is nothing else, and it need not be looked at.
            self.skip(content as u64);
            return Ok(Scan { consumed: content, state: self.state() });
        }
        let mut consumed = 0;
        loop {
            let piece = self.next_piece(&bytes[consumed..])?;
            consumed += piece.consumed;
            if piece.state == State::Done || consumed == bytes.len() {
                return Ok(Scan { consumed, state: piece.state });
            }
        }
    }

    /// The next run of content, for a version of HTTP that frames bodies itself. Call again with the bytes after
    /// `consumed` until these are used up or the body is done.
    ///
    /// # Errors
    /// As [`BodyScanner::scan`].
    pub fn next_piece(&mut self, bytes: &[u8]) -> Result<Piece, Refusal> {
        let mut position = 0;
        let mut trailers = if self.in_trailers() { Some(0) } else { None };
        loop {
            match self.at {
                At::Refused(refusal) => return Err(refusal),
                At::Done => return Ok(self.end_piece(position, trailers)),
                At::Fixed | At::ChunkData => {
                    let available = (bytes.len() - position) as u64;
                    let taken = available.min(self.left);
                    self.skip(taken);
                    return Ok(self.piece(position, taken as usize));
                }
                At::UntilClose => return Ok(self.piece(position, bytes.len() - position)),
                _ => {}
            }
            let Some(&byte) = bytes.get(position) else { return Ok(self.end_piece(position, trailers)) };
            self.at = self.step(byte).inspect_err(|&refusal| self.at = At::Refused(refusal))?;
            position += 1;
            if self.at == At::TrailerStart && trailers.is_none() {
                trailers = Some(position);
            }
        }
    }

    /// Whether the next byte belongs to the trailer section.
    fn in_trailers(&self) -> bool {
        use At::{LastLineFeed, TrailerLineFeed, TrailerName, TrailerStart, TrailerValue};
        matches!(self.at, TrailerStart | TrailerName | TrailerValue | TrailerLineFeed | LastLineFeed)
    }

    /// A piece without content, whose trailers begin at `trailers`.
    fn end_piece(&self, position: usize, trailers: Option<usize>) -> Piece {
        Piece { trailers: trailers.unwrap_or(position)..position, ..self.piece(position, 0) }
    }

    fn piece(&self, position: usize, length: usize) -> Piece {
        let end = position + length;
        Piece { consumed: end, data: position..end, trailers: end..end, state: self.state() }
    }

    /// Why nothing more of it can be had, if that is known.
    pub fn refused(&self) -> Option<Refusal> {
        if let At::Refused(refusal) = self.at { Some(refusal) } else { None }
    }

    /// Whether the body has ended.
    pub fn state(&self) -> State {
        if self.at == At::Done { State::Done } else { State::More }
    }

    /// How many of the next bytes are surely content, which need not be looked at: they may be spliced and told by
    /// [`BodyScanner::skip`]. `u64::MAX` for a body that ends with its connection.
    pub fn unframed_bytes(&self) -> u64 {
        match self.at {
            At::Fixed | At::ChunkData => self.left,
            At::UntilClose => u64::MAX,
            _ => 0,
        }
    }

    /// Takes note of content that passed unseen.
    ///
    /// # Panics
    /// If more passed than [`BodyScanner::unframed_bytes`] said.
    pub fn skip(&mut self, bytes: u64) {
        assert!(bytes <= self.unframed_bytes(), "only content may pass unseen");
        if self.at == At::UntilClose {
            return;
        }
        self.left -= bytes;
        if self.left == 0 {
            self.at = if self.at == At::Fixed { At::Done } else { At::ChunkReturn };
        }
    }

    /// The connection ended here.
    ///
    /// # Errors
    /// [`Refusal::BodyIncomplete`] unless the body was complete or ends with its connection.
    pub fn close(&mut self) -> Result<(), Refusal> {
        match self.at {
            At::Done => Ok(()),
            At::UntilClose => {
                self.at = At::Done;
                Ok(())
            }
            At::Refused(refusal) => Err(refusal),
            _ => Err(Refusal::BodyIncomplete),
        }
    }

    /// One byte of chunk framing or trailers.
    fn step(&mut self, byte: u8) -> Result<At, Refusal> {
        match self.at {
            At::Size => self.step_size(byte),
            At::Extension(extension) => self.step_extension(extension, byte),
            At::LineFeed if byte == b'\n' => self.end_chunk_line(),
            At::LineFeed => Err(Refusal::BadLineEnd),
            At::ChunkReturn if byte == b'\r' => Ok(At::ChunkLineFeed),
            At::ChunkLineFeed if byte == b'\n' => Ok(At::Size),
            At::ChunkReturn | At::ChunkLineFeed => Err(Refusal::BadChunkEnd),
            At::TrailerStart | At::TrailerName | At::TrailerValue | At::TrailerLineFeed | At::LastLineFeed => {
                self.step_trailer(byte)
            }
            At::Fixed | At::UntilClose | At::ChunkData | At::Done | At::Refused(_) => Ok(self.at),
        }
    }

    fn end_chunk_line(&mut self) -> Result<At, Refusal> {
        self.line_bytes = 0;
        self.room = self.room.checked_sub(self.left).ok_or(Refusal::BodyTooLarge)?;
        Ok(if self.left == 0 { At::TrailerStart } else { At::ChunkData })
    }

    fn step_size(&mut self, byte: u8) -> Result<At, Refusal> {
        let digits = self.line_bytes;
        match char::from(byte).to_digit(16) {
            // 16 digits fit a u64; readers that keep a signed number would see another one from 2^63 on.
            Some(digit) if digits < 16 && self.left < 1 << 59 => {
                self.left = (self.left << 4) | u64::from(digit);
                self.line_bytes += 1;
                Ok(At::Size)
            }
            Some(_) => Err(Refusal::BadChunkSize),
            None if digits == 0 => Err(Refusal::BadChunkSize),
            None => match byte {
                b'\r' => Ok(At::LineFeed),
                b'\n' => Err(Refusal::BadLineEnd),
                b';' => self.extend_line(Extension::BeforeName),
                b' ' | b'\t' => self.extend_line(Extension::BeforeSemicolon),
                _ => Err(Refusal::BadChunkSize),
            },
        }
    }

    fn extend_line(&mut self, extension: Extension) -> Result<At, Refusal> {
        self.line_bytes += 1;
        if self.line_bytes > self.max_chunk_line_bytes {
            return Err(Refusal::ChunkLineTooLong);
        }
        Ok(At::Extension(extension))
    }

    fn step_extension(&mut self, extension: Extension, byte: u8) -> Result<At, Refusal> {
        use Extension::*;
        let next = match (extension, byte) {
            (Name | Token | AfterName | AfterQuoted | AfterValue, b'\r') => return Ok(At::LineFeed),
            (_, b'\r' | b'\n') => return Err(Refusal::BadLineEnd),
            (Quoted, b'"') => AfterQuoted,
            (Quoted, b'\\') => Escaped,
            (Quoted | Escaped, b'\t' | b' '..=b'~' | 0x80..) => Quoted,
            (BeforeSemicolon | BeforeName | BeforeValue | AfterName | AfterQuoted | AfterValue, b' ' | b'\t') => {
                extension
            }
            (Name, b' ' | b'\t') => AfterName,
            (Token, b' ' | b'\t') => AfterValue,
            (BeforeSemicolon | Name | AfterName | Token | AfterQuoted | AfterValue, b';') => BeforeName,
            (Name | AfterName, b'=') => BeforeValue,
            (BeforeValue, b'"') => Quoted,
            (BeforeName | Name, _) if is_token(byte) => Name,
            (BeforeValue | Token, _) if is_token(byte) => Token,
            _ => return Err(Refusal::BadChunkExtension),
        };
        self.extend_line(next)
    }

    fn step_trailer(&mut self, byte: u8) -> Result<At, Refusal> {
        self.line_bytes = self.line_bytes.saturating_add(1);
        if self.line_bytes > self.max_trailer_bytes.saturating_add(BLANK_LINE_BYTES) {
            return Err(Refusal::TrailersTooLarge);
        }
        match (self.at, byte) {
            (At::TrailerStart, b'\r') => Ok(At::LastLineFeed),
            (At::LastLineFeed, b'\n') => Ok(At::Done),
            (At::TrailerStart, _) if is_token(byte) => {
                self.trailer = TrailerName::default();
                self.trailer.push(byte);
                Ok(At::TrailerName)
            }
            (At::TrailerName, b':') if self.trailer.is_forbidden() => Err(Refusal::ForbiddenTrailer),
            (At::TrailerName, b':') => Ok(At::TrailerValue),
            (At::TrailerName, _) if is_token(byte) => {
                self.trailer.push(byte);
                Ok(At::TrailerName)
            }
            (At::TrailerValue, b'\r') => Ok(At::TrailerLineFeed),
            (At::TrailerLineFeed, b'\n') => Ok(At::TrailerStart),
            (At::TrailerLineFeed | At::LastLineFeed, _) | (_, b'\r' | b'\n') => Err(Refusal::BadLineEnd),
            (At::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Ok(At::TrailerValue),
            _ => Err(Refusal::BadTrailer),
        }
    }
}

/// The end of every trailer section, which a section of exactly the allowed size has too.
const BLANK_LINE_BYTES: u32 = 2;

/// The start of a trailer's name in lower case: as much as is needed to tell a forbidden one.
#[derive(Clone, Copy, Debug, Default)]
struct TrailerName {
    start: [u8; 28],
    length: u16,
}

impl TrailerName {
    fn push(&mut self, byte: u8) {
        if let Some(place) = self.start.get_mut(usize::from(self.length)) {
            *place = byte.to_ascii_lowercase();
        }
        self.length = self.length.saturating_add(1);
    }

    /// See [`is_forbidden_trailer`].
    fn is_forbidden(&self) -> bool {
        let Some(name) = self.start.get(..usize::from(self.length)) else {
            return FORBIDDEN_PREFIXES.iter().any(|prefix| self.start.starts_with(prefix));
        };
        FORBIDDEN_TRAILERS.contains(&name) || FORBIDDEN_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    }
}

/// Fields that decide on framing, routing, access or the meaning of what was already sent must not come after it (RFC 9110
/// section 6.5.1). A next hop may merge trailers into its head. In any case of letters.
pub fn is_forbidden_trailer(name: &[u8]) -> bool {
    let mut trailer = TrailerName::default();
    name.iter().for_each(|&byte| trailer.push(byte));
    trailer.is_forbidden()
}

const FORBIDDEN_PREFIXES: [&[u8]; 5] = [b"if-", b"proxy-", b"x-forwarded-", b"access-control-", b"sec-"];

const FORBIDDEN_TRAILERS: [&[u8]; 33] = [
    b"age",
    b"authorization",
    b"cache-control",
    b"connection",
    b"content-encoding",
    b"content-length",
    b"content-range",
    b"content-type",
    b"cookie",
    b"date",
    b"expect",
    b"expires",
    b"forwarded",
    b"host",
    b"http2-settings",
    b"keep-alive",
    b"location",
    b"max-forwards",
    b"origin",
    b"pragma",
    b"range",
    b"retry-after",
    b"set-cookie",
    b"strict-transport-security",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
    b"vary",
    b"via",
    b"warning",
    b"www-authenticate",
    b"x-real-ip",
];
