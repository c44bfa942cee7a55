//! Frames as they are on the wire (RFC 9113 sections 4 and 6), also those that nobody may send.

/// A frame's nine bytes of head (RFC 9113 section 4.1).
pub const HEAD_BYTES: usize = 9;

/// What a client says first (RFC 9113 section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The window that a connection, and each stream, begins with (RFC 9113 section 6.9.2).
pub const FIRST_WINDOW: i64 = 65_535;

/// The largest window (RFC 9113 section 6.9.1).
pub const MAX_WINDOW: u32 = (1 << 31) - 1;

/// The largest payload that nobody need ask for (RFC 9113 section 4.2).
pub const MAX_PAYLOAD_BYTES: usize = 16_384;

/// Types of frames (RFC 9113 section 6).
pub mod kind {
    #![expect(missing_docs, reason = "the names are those of the RFC")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// Flags (RFC 9113 section 6).
pub mod flag {
    #![expect(missing_docs, reason = "the names are those of the RFC")]
    pub const END_STREAM: u8 = 1;
    pub const ACK: u8 = 1;
    pub const END_HEADERS: u8 = 4;
    pub const PADDED: u8 = 8;
    pub const PRIORITY: u8 = 0x20;
}

/// Settings (RFC 9113 section 6.5.2).
pub mod setting {
    #![expect(missing_docs, reason = "the names are those of the RFC")]
    pub const HEADER_TABLE_SIZE: u16 = 1;
    pub const ENABLE_PUSH: u16 = 2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 3;
    pub const INITIAL_WINDOW_SIZE: u16 = 4;
    pub const MAX_FRAME_SIZE: u16 = 5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 6;
    pub const ENABLE_CONNECT_PROTOCOL: u16 = 8;
}

/// Error codes (RFC 9113 section 7).
pub mod code {
    #![expect(missing_docs, reason = "the names are those of the RFC")]
    pub const NO_ERROR: u32 = 0;
    pub const PROTOCOL_ERROR: u32 = 1;
    pub const INTERNAL_ERROR: u32 = 2;
    pub const FLOW_CONTROL_ERROR: u32 = 3;
    pub const STREAM_CLOSED: u32 = 5;
    pub const FRAME_SIZE_ERROR: u32 = 6;
    pub const REFUSED_STREAM: u32 = 7;
    pub const CANCEL: u32 = 8;
    pub const COMPRESSION_ERROR: u32 = 9;
    pub const CONNECT_ERROR: u32 = 10;
    pub const ENHANCE_YOUR_CALM: u32 = 11;
}

/// A frame, legal or not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// The stream it is on; 0 is the connection.
    pub stream: u32,
    /// What follows its head.
    pub payload: Vec<u8>,
}

impl Frame {
    /// Any frame.
    pub fn new(kind: u8, flags: u8, stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags, stream, payload: payload.into() }
    }

    /// DATA that does not end its stream.
    pub fn data(stream: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::DATA, 0, stream, payload)
    }

    /// HEADERS with a whole block, which do not end their stream.
    pub fn headers(stream: u32, block: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::HEADERS, flag::END_HEADERS, stream, block)
    }

    /// A further part of a block, and not the last one.
    pub fn continuation(stream: u32, part: impl Into<Vec<u8>>) -> Self {
        Self::new(kind::CONTINUATION, 0, stream, part)
    }

    /// RST_STREAM
    pub fn reset(stream: u32, code: u32) -> Self {
        Self::new(kind::RST_STREAM, 0, stream, code.to_be_bytes())
    }

    /// SETTINGS
    pub fn settings(values: &[(u16, u32)]) -> Self {
        let each = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
        Self::new(kind::SETTINGS, 0, 0, values.iter().flat_map(each).collect::<Vec<u8>>())
    }

    /// The answer to SETTINGS.
    pub fn settings_ack() -> Self {
        Self::new(kind::SETTINGS, flag::ACK, 0, [])
    }

    /// PING
    pub fn ping(payload: [u8; 8]) -> Self {
        Self::new(kind::PING, 0, 0, payload)
    }

    /// GOAWAY
    pub fn go_away(last_stream: u32, code: u32) -> Self {
        Self::new(kind::GOAWAY, 0, 0, [last_stream.to_be_bytes(), code.to_be_bytes()].concat())
    }

    /// WINDOW_UPDATE
    pub fn window_update(stream: u32, by: u32) -> Self {
        Self::new(kind::WINDOW_UPDATE, 0, stream, by.to_be_bytes())
    }

    /// PRIORITY
    pub fn priority(stream: u32, on: u32, weight: u8) -> Self {
        Self::new(kind::PRIORITY, 0, stream, [&on.to_be_bytes()[..], &[weight]].concat())
    }

    /// The same with a further flag.
    pub fn with(mut self, flag: u8) -> Self {
        self.flags |= flag;
        self
    }

    /// The same without this flag.
    pub fn without(mut self, flag: u8) -> Self {
        self.flags &= !flag;
        self
    }

    /// The same, ending its stream.
    pub fn ending(self) -> Self {
        self.with(flag::END_STREAM)
    }

    /// Whether it has this flag.
    pub fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Its bytes.
    pub fn bytes(&self) -> Vec<u8> {
        let length = (self.payload.len() as u32).to_be_bytes();
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.payload.len());
        bytes.extend_from_slice(&length[1..]);
        bytes.extend_from_slice(&[self.kind, self.flags]);
        bytes.extend_from_slice(&self.stream.to_be_bytes());
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    /// The first frame of some bytes, taken out of them. None: it has not come whole.
    pub fn take(bytes: &mut Vec<u8>) -> Option<Self> {
        let head = bytes.first_chunk::<HEAD_BYTES>()?;
        let end = HEAD_BYTES + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (kind, flags) = (head[3], head[4]);
        // The highest bit means nothing (RFC 9113 section 4.1).
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]) & MAX_WINDOW;
        let payload = bytes.get(HEAD_BYTES..end)?.to_vec();
        bytes.drain(..end);
        Some(Self { kind, flags, stream, payload })
    }

    /// A number of four bytes in its payload; 0 if it is not there.
    pub fn number_at(&self, at: usize) -> u32 {
        let bytes = self.payload.get(at..).and_then(|rest| rest.first_chunk::<4>());
        bytes.map_or(0, |bytes| u32::from_be_bytes(*bytes))
    }

    /// The payload without padding and priority, where it has those by its flags. None: they are longer than it.
    pub fn content(&self) -> Option<&[u8]> {
        let mut content = &self.payload[..];
        if self.has(flag::PADDED) {
            let (padding, rest) = content.split_first()?;
            content = rest.get(..rest.len().checked_sub(usize::from(*padding))?)?;
        }
        if self.kind == kind::HEADERS && self.has(flag::PRIORITY) {
            content = content.get(5..)?;
        }
        Some(content)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written_once_it_is_whole() {
        let frames = [
            Frame::data(1, "hello").ending(),
            Frame::settings(&[(setting::INITIAL_WINDOW_SIZE, 70_000), (9, 1)]),
            Frame::ping(*b"12345678").with(flag::ACK),
            Frame::new(0xbe, 0xef, 77, []),
        ];
        let bytes: Vec<u8> = frames.iter().flat_map(Frame::bytes).collect();
        let (mut came, mut read) = (Vec::new(), Vec::new());
        for byte in bytes {
            came.push(byte);
            read.extend(Frame::take(&mut came));
        }
        assert_eq!(read, frames);
        assert!(came.is_empty());
        assert_eq!(frames[0].bytes()[..HEAD_BYTES], [0, 0, 5, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn padding_and_priority_are_no_content() {
        let padded = Frame::data(1, *b"\x03hello\0\0\0").with(flag::PADDED);
        assert_eq!(padded.content(), Some(&b"hello"[..]));
        assert_eq!(Frame::data(1, *b"\x09hello").with(flag::PADDED).content(), None);
        let both = Frame::headers(1, *b"\x01\0\0\0\0\x10block\0").with(flag::PADDED | flag::PRIORITY);
        assert_eq!(both.content(), Some(&b"block"[..]));
    }
}
