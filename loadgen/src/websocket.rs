//! WebSocket framing, for both sides (RFC 6455 section 5). Without extensions.

/// Longest head of a frame, in bytes.
pub(crate) const MAX_FRAME_HEAD_BYTES: usize = 14;

/// Longest payload of a control frame, in bytes.
pub(crate) const MAX_CONTROL_BYTES: usize = 125;

/// The frame breaks the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the WebSocket frame is malformed")]
pub(crate) struct Malformed;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

impl Opcode {
    pub(crate) fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }

    fn bits(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }
}

/// What precedes a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) last: bool,
    pub(crate) opcode: Opcode,
    pub(crate) mask: Option<[u8; 4]>,
    /// Bytes of payload.
    pub(crate) length: u64,
}

impl Frame {
    /// Reads a head, if it is there as a whole, and says how long it is itself.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, Malformed> {
        let [first, second, rest @ ..] = bytes else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Malformed);
        }
        let opcode = match first & 0x0f {
            0 => Opcode::Continuation,
            1 => Opcode::Text,
            2 => Opcode::Binary,
            8 => Opcode::Close,
            9 => Opcode::Ping,
            10 => Opcode::Pong,
            _ => return Err(Malformed),
        };
        let last = first & 0x80 != 0;
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from(u16::from_be_bytes(*length)), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            length => (u64::from(length), rest),
        };
        if opcode.is_control() && (length > MAX_CONTROL_BYTES as u64 || !last) {
            return Err(Malformed);
        }
        let (mask, rest) = match second & 0x80 {
            0 => (None, rest),
            _ => match rest.split_first_chunk() {
                Some((mask, rest)) => (Some(*mask), rest),
                None => return Ok(None),
            },
        };
        Ok(Some((Self { last, opcode, mask, length }, bytes.len() - rest.len())))
    }

    /// Writes the head, and says how long it is.
    pub(crate) fn write(&self, to: &mut [u8; MAX_FRAME_HEAD_BYTES]) -> usize {
        to[0] = u8::from(self.last) << 7 | self.opcode.bits();
        let masked = u8::from(self.mask.is_some()) << 7;
        let mut end = match self.length {
            length @ 0..126 => {
                to[1] = masked | length as u8;
                2
            }
            length @ 126..=0xffff => {
                to[1] = masked | 126;
                to[2..4].copy_from_slice(&(length as u16).to_be_bytes());
                4
            }
            length => {
                to[1] = masked | 127;
                to[2..10].copy_from_slice(&length.to_be_bytes());
                10
            }
        };
        if let Some(mask) = self.mask {
            to[end..end + 4].copy_from_slice(&mask);
            end += 4;
        }
        end
    }
}

/// Masks or unmasks bytes that stand at a position of a payload.
pub(crate) fn apply_mask(bytes: &mut [u8], mask: [u8; 4], position: u64) {
    for (byte, at) in bytes.iter_mut().zip(position..) {
        *byte ^= mask[(at % 4) as usize];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_read_as_they_were_written() {
        for length in [0, 1, 125, 126, 0xffff, 0x1_0000, 1 << 40] {
            for mask in [None, Some([1, 2, 3, 4])] {
                let frame = Frame { last: length != 126, opcode: Opcode::Binary, mask, length };
                let mut bytes = [0; MAX_FRAME_HEAD_BYTES];
                let end = frame.write(&mut bytes);
                assert_eq!(Frame::parse(&bytes[..end]), Ok(Some((frame, end))), "{length}");
                for part in 0..end {
                    assert_eq!(Frame::parse(&bytes[..part]), Ok(None), "{length}");
                }
            }
        }
    }

    #[test]
    fn heads_that_break_the_protocol_are_malformed() {
        // A reserved bit, an unknown opcode, a ping of 126 bytes, a ping in parts.
        for bytes in [[0xc2, 0], [0x83, 0], [0x89, 126], [0x09, 0]] {
            let bytes = [&bytes[..], &[0, 126]].concat();
            assert_eq!(Frame::parse(&bytes), Err(Malformed), "{bytes:?}");
        }
    }

    #[test]
    fn the_example_of_the_specification_is_unmasked() {
        // RFC 6455 section 5.7.
        let mut hello = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        apply_mask(&mut hello[..2], [0x37, 0xfa, 0x21, 0x3d], 0);
        apply_mask(&mut hello[2..], [0x37, 0xfa, 0x21, 0x3d], 2);
        assert_eq!(&hello, b"Hello");
    }
}
