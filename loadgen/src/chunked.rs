//! The chunked coding (RFC 9112 section 7.1), decoded as bytes arrive.

use crate::limits::{MAX_CHUNK_LINE_BYTES, MAX_TRAILER_BYTES};

/// The peer's chunked body breaks the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the chunked body is malformed")]
pub(crate) struct Malformed;

/// Where in the coding the next byte stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In the digits of a chunk's size.
    Size { digits: u8 },
    /// In an extension, which is skipped.
    Extension,
    /// At the LF after a size.
    SizeEnd,
    /// In a chunk's data.
    Content,
    /// At the CR after a chunk's data.
    ContentReturn,
    /// At the LF after a chunk's data.
    ContentEnd,
    /// At the first byte of a trailer line, or the CR of the last line.
    TrailerStart,
    /// In a trailer line.
    Trailer,
    /// At the LF of a trailer line.
    TrailerEnd,
    /// At the LF of the last line.
    LastEnd,
    /// The body is complete.
    Done,
}

/// Decodes one body.
#[derive(Debug)]
pub(crate) struct Decoder {
    state: State,
    /// What is left of the chunk.
    left: u64,
    /// Bytes of the present line, or of all trailers.
    line_bytes: usize,
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { state: State::Size { digits: 0 }, left: 0, line_bytes: 0 }
    }

    pub(crate) fn done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes bytes from the wire, gives the data among them to `sink`, and returns how many belong to the body: all, or
    /// fewer when the body ends among them.
    pub(crate) fn take(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> Result<usize, Malformed> {
        let mut at = 0;
        while at < bytes.len() && !self.done() {
            if self.state == State::Content {
                let take = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
                sink(&bytes[at..at + take]);
                at += take;
                self.left -= take as u64;
                if self.left == 0 {
                    self.state = State::ContentReturn;
                }
                continue;
            }
            self.byte(bytes[at])?;
            at += 1;
        }
        Ok(at)
    }

    /// One byte that is not data.
    fn byte(&mut self, byte: u8) -> Result<(), Malformed> {
        self.line_bytes += 1;
        self.state = match (self.state, byte) {
            (State::Size { digits }, byte) if byte.is_ascii_hexdigit() => {
                // 15 digits are 2^60 bytes, which no sender means.
                if digits == 15 {
                    return Err(Malformed);
                }
                let digit = (byte as char).to_digit(16).expect("it is a hexadecimal digit");
                self.left = self.left * 16 + u64::from(digit);
                State::Size { digits: digits + 1 }
            }
            (State::Size { digits: 1.. }, b'\r') => State::SizeEnd,
            (State::Size { digits: 1.. }, b';' | b' ' | b'\t') => State::Extension,
            (State::Extension, b'\r') => State::SizeEnd,
            (State::Extension, byte) if byte != b'\n' && self.line_bytes < MAX_CHUNK_LINE_BYTES => State::Extension,
            (State::SizeEnd, b'\n') => {
                self.line_bytes = 0;
                if self.left == 0 { State::TrailerStart } else { State::Content }
            }
            (State::ContentReturn, b'\r') => State::ContentEnd,
            (State::ContentEnd, b'\n') => {
                self.line_bytes = 0;
                State::Size { digits: 0 }
            }
            (State::TrailerStart, b'\r') => State::LastEnd,
            (State::Trailer, b'\r') => State::TrailerEnd,
            (State::TrailerStart | State::Trailer, byte) if byte != b'\n' && self.line_bytes < MAX_TRAILER_BYTES => {
                State::Trailer
            }
            (State::TrailerEnd, b'\n') => State::TrailerStart,
            (State::LastEnd, b'\n') => State::Done,
            _ => return Err(Malformed),
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes with every split into two reads; the result must not depend on it.
    fn check(wire: &[u8], expected: Result<(&[u8], usize), Malformed>) {
        for split in 0..=wire.len() {
            let mut decoder = Decoder::new();
            let mut body = Vec::new();
            let mut consumed = 0;
            let mut result = Ok(());
            for part in [&wire[..split], &wire[split..]] {
                match decoder.take(part, |bytes| body.extend_from_slice(bytes)) {
                    Ok(taken) => consumed += taken,
                    Err(error) => result = Err(error),
                }
            }
            match expected {
                Ok((data, length)) => {
                    assert_eq!(result, Ok(()), "split at {split}");
                    assert!(decoder.done(), "split at {split}");
                    assert_eq!((&body[..], consumed), (data, length), "split at {split}");
                }
                Err(error) => assert_eq!(result, Err(error), "split at {split}"),
            }
        }
    }

    #[test]
    fn chunks_extensions_and_trailers_are_decoded_whatever_the_reads() {
        check(b"0\r\n\r\n", Ok((b"", 5)));
        check(b"5\r\nhello\r\n0\r\n\r\n", Ok((b"hello", 15)));
        check(b"5;a=b\r\nhello\r\n6\r\n world\r\n0\r\nX: y\r\nZ: w\r\n\r\n", Ok((b"hello world", 42)));
        check(b"A\r\n0123456789\r\n0\r\n\r\nGET /", Ok((b"0123456789", 20)));
    }

    #[test]
    fn malformed_chunks_are_refused() {
        for wire in [
            &b"\r\n\r\n"[..],
            b"x\r\n",
            b"5\nhello",
            b"5\r\nhello!\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"1234567890123456\r\n",
            b";\r\n",
            b"0\r\n\n",
        ] {
            check(wire, Err(Malformed));
        }
    }
}
