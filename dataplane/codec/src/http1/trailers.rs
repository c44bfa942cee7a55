//! The trailer section of a chunked body, for a hop that sends trailers in another way.

use crate::limits::MAX_FIELDS;
use crate::refusal::Refusal;

/// Calls `visit` with name and value of each field of a section that [`BodyScanner`](crate::BodyScanner) has passed: lines
/// with their CRLF, and the blank line.
///
/// # Errors
/// [`Refusal::TrailersTooLarge`] if there are more than [`MAX_FIELDS`], [`Refusal::BadTrailer`] if it is no such section.
pub fn for_each_trailer(section: &[u8], mut visit: impl FnMut(&[u8], &[u8])) -> Result<(), Refusal> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(section, &mut lines) {
        Ok(httparse::Status::Complete((_, lines))) => {
            lines.iter().for_each(|line| visit(line.name.as_bytes(), line.value));
            Ok(())
        }
        Err(httparse::Error::TooManyHeaders) => Err(Refusal::TrailersTooLarge),
        _ => Err(Refusal::BadTrailer),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framing::BodyLength;
    use crate::limits::Limits;
    use crate::{BodyScanner, body::State};

    /// What a body in pieces of `step` bytes has of content and trailers.
    fn read(body: &[u8], step: usize) -> (Vec<u8>, Vec<(String, String)>) {
        let mut scanner = BodyScanner::new(BodyLength::Chunked, &Limits::default());
        let (mut content, mut section) = (Vec::new(), Vec::new());
        for mut part in body.chunks(step) {
            while !part.is_empty() && scanner.state() == State::More {
                let piece = scanner.next_piece(part).expect("a good body");
                content.extend_from_slice(&part[piece.data]);
                section.extend_from_slice(&part[piece.trailers]);
                part = &part[piece.consumed..];
            }
        }
        let mut trailers = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        for_each_trailer(&section, |name, value| trailers.push((text(name), text(value)))).expect("a good section");
        (content, trailers)
    }

    #[test]
    fn trailers_are_found_however_the_body_arrives() {
        let body = b"5;x=1\r\nhello\r\n1\r\n!\r\n0\r\nGrpc-Status: 0\r\nx-sum:  7 \r\n\r\n";
        for step in 1..body.len() {
            let (content, trailers) = read(body, step);
            assert_eq!(content, b"hello!", "{step}");
            let expected = [("Grpc-Status", "0"), ("x-sum", "7")].map(|(name, value)| (name.into(), value.into()));
            assert_eq!(trailers, expected, "{step}");
        }
        assert_eq!(read(b"0\r\n\r\n", 3), (vec![], vec![]));
    }

    #[test]
    fn more_trailers_than_a_head_may_have_are_too_many() {
        let section = "a: b\r\n".repeat(MAX_FIELDS + 1) + "\r\n";
        assert_eq!(for_each_trailer(section.as_bytes(), |_, _| {}), Err(Refusal::TrailersTooLarge));
    }
}
