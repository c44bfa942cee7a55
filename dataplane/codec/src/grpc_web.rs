//! gRPC-Web, which browsers speak instead of gRPC (`PROTOCOL-WEB.md` of gRPC): the same messages, their trailers as a last one
//! that has a flag, and all of it in base64 where the client wants text.

/// How a body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// As bytes.
    Binary,
    /// In base64, of which each part that was written at once may have its own padding.
    Text,
}

/// A content type of gRPC-Web.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentType<'a> {
    /// How the body is sent.
    pub encoding: Encoding,
    /// What its messages are: `+proto` and the like, or nothing.
    pub format: &'a [u8],
}

const NAME: &[u8] = b"application/grpc-web";
const TEXT: &[u8] = b"-text";

impl<'a> ContentType<'a> {
    /// Reads one. None if it is not of gRPC-Web. Parameters mean nothing in it.
    pub fn read(value: &'a [u8]) -> Option<Self> {
        let rest = strip_prefix(value, NAME)?;
        let (encoding, rest) = match strip_prefix(rest, TEXT) {
            Some(rest) => (Encoding::Text, rest),
            None => (Encoding::Binary, rest),
        };
        let end = rest.iter().position(|byte| matches!(byte, b';' | b' ' | b'\t')).unwrap_or(rest.len());
        let format = &rest[..end];
        (format.is_empty() || (format[0] == b'+' && format.len() > 1)).then_some(Self { encoding, format })
    }

    /// Writes one.
    pub fn write(self, into: &mut Vec<u8>) {
        into.extend_from_slice(NAME);
        into.extend_from_slice(if self.encoding == Encoding::Text { TEXT } else { b"" });
        into.extend_from_slice(self.format);
    }
}

/// How a client wants its response that sent its request like this: as one of the media types in `accept` says, or else alike.
pub fn wanted(accept: Option<&[u8]>, sent: Encoding) -> Encoding {
    let types = accept.unwrap_or_default().split(|byte| *byte == b',');
    let mut named = types.filter_map(|name| ContentType::read(name.trim_ascii())).map(|named| named.encoding);
    named.next().unwrap_or(sent)
}

fn strip_prefix<'a>(value: &'a [u8], prefix: &[u8]) -> Option<&'a [u8]> {
    let (name, rest) = value.split_at_checked(prefix.len())?;
    name.eq_ignore_ascii_case(prefix).then_some(rest)
}

/// The flag of a message that holds trailers.
pub const TRAILERS: u8 = 0x80;

/// Writes trailers as a message: a flag, a length, and lines as HTTP/1 has them.
pub fn write_trailers<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>, into: &mut Vec<u8>) {
    let begin = into.len();
    into.extend_from_slice(&[TRAILERS, 0, 0, 0, 0]);
    for (name, value) in fields {
        [name, b": ", value, b"\r\n"].iter().for_each(|part| into.extend_from_slice(part));
    }
    let length = u32::try_from(into.len() - begin - 5).expect("a head has a limit far below 4 GiB");
    into[begin + 1..begin + 5].copy_from_slice(&length.to_be_bytes());
}

/// What is no base64 (RFC 4648 section 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadBase64;

/// Reads base64 that comes in pieces, cut anywhere, and padded wherever its sender wrote some of it.
#[derive(Clone, Debug, Default)]
pub struct Decoder {
    /// The bits of the group of four that has begun.
    bits: u32,
    /// Characters of that group, padding included.
    have: u8,
    /// How many of them are padding.
    padding: u8,
    /// Bytes of line ends behind the last group, after which nothing else may come.
    line_ends: u8,
}

/// Most bytes of line ends behind the text: two of them. Programs that write text end it with one, and Closure's decoder (the
/// JavaScript client's) and Go's take it; between groups they would, too, and Envoy takes none.
const MAX_LINE_END_BYTES: u8 = 4;

/// The value of each character; 64 and more are none.
const VALUES: [u8; 256] = {
    let mut values = [255; 256];
    let mut index = 0;
    while index < ALPHABET.len() {
        values[ALPHABET[index] as usize] = index as u8;
        index += 1;
    }
    values
};

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

impl Decoder {
    /// Appends what `text` completes: at most three bytes for every four of it, and those that waited.
    ///
    /// # Errors
    /// [`BadBase64`].
    pub fn decode(&mut self, text: &[u8], into: &mut Vec<u8>) -> Result<(), BadBase64> {
        into.reserve(text.len().div_ceil(4) * 3);
        for byte in text {
            let value = match *byte {
                b'\r' | b'\n' if self.line_ends < MAX_LINE_END_BYTES => {
                    self.line_ends += 1;
                    continue;
                }
                _ if self.line_ends > 0 => return Err(BadBase64),
                b'=' if self.have < 2 => return Err(BadBase64),
                b'=' => {
                    self.padding += 1;
                    0
                }
                _ if self.padding > 0 => return Err(BadBase64),
                byte => VALUES[usize::from(byte)],
            };
            if value > 63 {
                return Err(BadBase64);
            }
            self.bits = self.bits << 6 | u32::from(value);
            self.have += 1;
            if self.have == 4 {
                let [_, bytes @ ..] = self.bits.to_be_bytes();
                let (whole, rest) = bytes.split_at(3 - usize::from(self.padding));
                if rest.iter().any(|byte| *byte != 0) {
                    return Err(BadBase64);
                }
                into.extend_from_slice(whole);
                *self = Self::default();
            }
        }
        Ok(())
    }

    /// Whether it may end here.
    pub fn is_whole(&self) -> bool {
        self.have == 0
    }
}

/// Writes base64 piece by piece, and padding where it is asked for.
#[derive(Clone, Debug, Default)]
pub struct Encoder {
    waiting: [u8; 2],
    have: usize,
}

impl Encoder {
    /// Appends what is whole groups of three with what waited. Up to two bytes wait on.
    pub fn encode(&mut self, mut bytes: &[u8], into: &mut Vec<u8>) {
        into.reserve((bytes.len() + 4) / 3 * 4);
        if self.have > 0 {
            let missing = 3 - self.have;
            if bytes.len() < missing {
                return self.keep(bytes);
            }
            let (first, rest) = bytes.split_at(missing);
            let mut group = [0; 3];
            group[..self.have].copy_from_slice(&self.waiting[..self.have]);
            group[self.have..].copy_from_slice(first);
            self.have = 0;
            into.extend_from_slice(&four(group));
            bytes = rest;
        }
        let (groups, rest) = bytes.as_chunks::<3>();
        groups.iter().for_each(|group| into.extend_from_slice(&four(*group)));
        self.keep(rest);
    }

    fn keep(&mut self, bytes: &[u8]) {
        self.waiting[self.have..][..bytes.len()].copy_from_slice(bytes);
        self.have += bytes.len();
    }

    /// Appends what waits, with padding.
    pub fn pad(&mut self, into: &mut Vec<u8>) {
        if self.have == 0 {
            return;
        }
        let mut group = [0; 3];
        group[..self.have].copy_from_slice(&self.waiting[..self.have]);
        let mut text = four(group);
        text[self.have + 1..].fill(b'=');
        into.extend_from_slice(&text);
        self.have = 0;
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.have == 0
    }
}

fn four([first, second, third]: [u8; 3]) -> [u8; 4] {
    let bits = u32::from_be_bytes([0, first, second, third]);
    [18, 12, 6, 0].map(|shift| ALPHABET[(bits >> shift & 63) as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(text: &str) -> Result<Vec<u8>, BadBase64> {
        let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
        decoder.decode(text.as_bytes(), &mut bytes)?;
        if decoder.is_whole() { Ok(bytes) } else { Err(BadBase64) }
    }

    #[test]
    fn content_types_tell_encoding_and_format() {
        let check = |text: &str, encoding, format: &str| {
            let read = ContentType::read(text.as_bytes());
            assert_eq!(read, Some(ContentType { encoding, format: format.as_bytes() }), "{text}");
        };
        check("application/grpc-web", Encoding::Binary, "");
        check("application/grpc-web+proto", Encoding::Binary, "+proto");
        check("Application/gRPC-Web-Text+json; charset=utf-8", Encoding::Text, "+json");
        check("application/grpc-web-text", Encoding::Text, "");
        check("application/grpc-web;a=b", Encoding::Binary, "");
        let others =
            ["", "application/grpc", "application/grpc+proto", "application/grpc-webby", "application/grpc-web+"];
        for text in others {
            assert_eq!(ContentType::read(text.as_bytes()), None, "{text}");
        }
        let mut written = Vec::new();
        ContentType { encoding: Encoding::Text, format: b"+proto" }.write(&mut written);
        assert_eq!(written, b"application/grpc-web-text+proto");
    }

    #[test]
    fn a_response_is_encoded_as_the_client_accepts_it_or_else_as_it_sent() {
        let check = |accept: Option<&str>, sent, expected| {
            assert_eq!(wanted(accept.map(str::as_bytes), sent), expected, "{accept:?}");
        };
        check(None, Encoding::Text, Encoding::Text);
        check(Some("*/*"), Encoding::Binary, Encoding::Binary);
        check(Some("application/grpc-web-text"), Encoding::Binary, Encoding::Text);
        check(Some("text/html, application/grpc-web-text+proto;q=1"), Encoding::Binary, Encoding::Text);
        check(Some("application/grpc-web+proto"), Encoding::Text, Encoding::Binary);
    }

    #[test]
    fn trailers_are_a_message_of_their_own() {
        let mut bytes = b"x".to_vec();
        let fields: [(&[u8], &[u8]); 2] = [(b"grpc-status", b"0"), (b"grpc-message", b"")];
        write_trailers(fields.into_iter(), &mut bytes);
        assert_eq!(bytes, b"x\x80\0\0\0\x20grpc-status: 0\r\ngrpc-message: \r\n");
        bytes.clear();
        write_trailers([].into_iter(), &mut bytes);
        assert_eq!(bytes, b"\x80\0\0\0\0");
    }

    #[test]
    fn base64_may_be_padded_wherever_it_was_written() {
        // RFC 4648 section 10, by itself and one after the other.
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg==", "foob")] {
            assert_eq!(decode(text).as_deref(), Ok(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decode("++//"), Ok(vec![0xfb, 0xef, 0xff]));
        assert_eq!(decode("Zg==Zm8=Zm9vZg==").as_deref(), Ok(&b"ffofoof"[..]));
    }

    #[test]
    fn base64_may_end_with_line_ends_however_it_is_cut() {
        for (text, bytes) in [("\n", ""), ("Zm9v\n", "foo"), ("Zg==\r\n", "f"), ("Zg==Zm8=\r\n\r\n", "ffo")] {
            assert_eq!(decode(text).as_deref(), Ok(bytes.as_bytes()), "{text:?}");
            let (mut decoder, mut decoded) = (Decoder::default(), Vec::new());
            for byte in text.as_bytes() {
                decoder.decode(&[*byte], &mut decoded).expect("it is as good in pieces");
            }
            assert_eq!((decoder.is_whole(), &*decoded), (true, bytes.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for text in
            ["Z", "Zg", "Zg=", "=", "Z===", "====", "Zg=g", "Zm8==", "Zm9v=", "Zm 8=", "Zm8\n", "Zm-_", "Zh==", "Zm9="]
        {
            assert_eq!(decode(text), Err(BadBase64), "{text}");
        }
        // Line ends are nowhere but at the end, and few.
        for text in ["Zm9v\nZm9v", "\nZm9v", "Zm9\nv", "Zg=\n=", "Zm9v ", "Zm9v\t", "Zm9v\n=", "Zm9v\n\n\n\n\n"] {
            assert_eq!(decode(text), Err(BadBase64), "{text:?}");
        }
    }

    #[test]
    fn what_is_encoded_in_pieces_is_as_if_at_once_and_padded_only_where_asked() {
        let bytes: Vec<u8> = (0..=255).collect();
        let mut whole = Vec::new();
        let mut encoder = Encoder::default();
        encoder.encode(&bytes, &mut whole);
        encoder.pad(&mut whole);
        for size in 1..10 {
            let (mut encoder, mut text) = (Encoder::default(), Vec::new());
            bytes.chunks(size).for_each(|piece| encoder.encode(piece, &mut text));
            assert!(!text.contains(&b'='), "in pieces of {size}");
            encoder.pad(&mut text);
            assert!(encoder.is_empty());
            encoder.pad(&mut text);
            assert_eq!(text, whole, "in pieces of {size}");
        }
        assert_eq!(decode(std::str::from_utf8(&whole).expect("it is ASCII")), Ok(bytes));
    }
}
