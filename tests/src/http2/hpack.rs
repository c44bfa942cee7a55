//! Header blocks (RFC 7541): read whatever form they have, and written in the one that is asked for.

use std::collections::{HashMap, VecDeque};
use std::sync::LazyLock;

use crate::message::Fields;

/// The table that a decoder begins with, in bytes as the RFC counts them (RFC 7541 section 4.2).
pub const FIRST_TABLE_BYTES: usize = 4_096;

/// What an entry of a table counts beside its bytes (RFC 7541 section 4.1).
const ENTRY_BYTES: usize = 32;

/// Fields as literals that no table remembers.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    fields.iter().for_each(|(name, value)| literal(name.as_bytes(), value.as_bytes(), &mut block));
    block
}

/// One field as a literal that no table remembers.
pub fn literal(name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    into.push(0);
    text(name, into);
    text(value, into);
}

/// One field as a literal that the receiver's table remembers: the newest entry has index 62.
pub fn indexed_literal(name: &[u8], value: &[u8], into: &mut Vec<u8>) {
    into.push(0x40);
    text(name, into);
    text(value, into);
}

/// A reference to an entry of the receiver's table.
pub fn reference(index: usize, into: &mut Vec<u8>) {
    number(index, 7, 0x80, into);
}

/// Says which size of the table is used from now on.
pub fn table_size(bytes: usize, into: &mut Vec<u8>) {
    number(bytes, 5, 0x20, into);
}

/// The index of the newest entry.
pub const NEWEST: usize = STATIC.len() + 1;

fn text(bytes: &[u8], into: &mut Vec<u8>) {
    number(bytes.len(), 7, 0, into);
    into.extend_from_slice(bytes);
}

/// A number in the low bits of a byte, and those that follow where it needs more (RFC 7541 section 5.1).
fn number(mut value: usize, bits: u32, high: u8, into: &mut Vec<u8>) {
    let most = (1 << bits) - 1;
    if value < most {
        into.push(high | value as u8);
        return;
    }
    into.push(high | most as u8);
    value -= most;
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}

/// What reads the blocks of one direction of a connection.
pub struct Decoder {
    entries: VecDeque<(String, String)>,
    bytes: usize,
    max_bytes: usize,
}

/// A block that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

impl Default for Decoder {
    fn default() -> Self {
        Self { entries: VecDeque::new(), bytes: 0, max_bytes: FIRST_TABLE_BYTES }
    }
}

impl Decoder {
    /// The fields of a block. Bytes that are no text are replaced.
    ///
    /// # Errors
    /// If it breaks off, or refers to what is not there.
    pub fn decode(&mut self, block: &[u8]) -> Result<Fields, Malformed> {
        let mut input = Input(block);
        let mut fields = Fields::new();
        while let Some(first) = input.0.first().copied() {
            if first & 0x80 != 0 {
                fields.push(self.entry(input.number(7)?)?);
            } else if first & 0xe0 == 0x20 {
                self.max_bytes = input.number(5)?;
                self.shrink();
            } else {
                let remembers = first & 0x40 != 0;
                let index = input.number(if remembers { 6 } else { 4 })?;
                let name = if index == 0 { input.text()? } else { self.entry(index)?.0 };
                let field = (name, input.text()?);
                if remembers {
                    self.bytes += size(&field);
                    self.entries.push_front(field.clone());
                    self.shrink();
                }
                fields.push(field);
            }
        }
        Ok(fields)
    }

    /// From now on the table may not be larger than this.
    pub fn limit(&mut self, bytes: usize) {
        self.max_bytes = self.max_bytes.min(bytes);
        self.shrink();
    }

    fn entry(&self, index: usize) -> Result<(String, String), Malformed> {
        let at = index.checked_sub(1).ok_or(Malformed("an index of 0"))?;
        match (STATIC.get(at), at.checked_sub(STATIC.len())) {
            (Some((name, value)), _) => Ok(((*name).to_owned(), (*value).to_owned())),
            (None, Some(at)) => self.entries.get(at).cloned().ok_or(Malformed("an index beyond the table")),
            (None, None) => unreachable!("an index is in one of the tables or behind both"),
        }
    }

    fn shrink(&mut self) {
        while self.bytes > self.max_bytes
            && let Some(oldest) = self.entries.pop_back()
        {
            self.bytes -= size(&oldest);
        }
    }
}

fn size(field: &(String, String)) -> usize {
    field.0.len() + field.1.len() + ENTRY_BYTES
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> Result<u8, Malformed> {
        let (first, rest) = self.0.split_first().ok_or(Malformed("a block that breaks off"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self, bits: u32) -> Result<usize, Malformed> {
        let most = (1 << bits) - 1;
        let mut value = usize::from(self.byte()?) & most;
        if value < most {
            return Ok(value);
        }
        for shift in (0..28).step_by(7) {
            let byte = usize::from(self.byte()?);
            value += (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Malformed("a number without end"))
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let is_huffman = self.0.first().is_some_and(|first| first & 0x80 != 0);
        let length = self.number(7)?;
        let (text, rest) = self.0.split_at_checked(length).ok_or(Malformed("a text that breaks off"))?;
        self.0 = rest;
        let text = if is_huffman { &huffman(text)? } else { text };
        Ok(String::from_utf8_lossy(text).into_owned())
    }
}

/// Texts in the code of RFC 7541 section 5.2.
fn huffman(bytes: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut text = Vec::new();
    let (mut code, mut length) = (0_u32, 0_u8);
    for bit in bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)) {
        (code, length) = (code << 1 | u32::from(bit), length + 1);
        match CODES.get(&(length, code)) {
            Some(symbol) => {
                text.push(u8::try_from(*symbol).map_err(|_| Malformed("the end inside a text"))?);
                (code, length) = (0, 0);
            }
            None if length == MAX_CODE_BITS => return Err(Malformed("no code")),
            None => {}
        }
    }
    let is_padding = length < 8 && code == (1 << length) - 1;
    if is_padding { Ok(text) } else { Err(Malformed("a text that ends in something else than padding")) }
}

/// What each code means, by its length. The code is canonical, so the lengths say everything.
static CODES: LazyLock<HashMap<(u8, u32), u16>> = LazyLock::new(|| {
    let mut symbols: Vec<u16> = (0..CODE_BITS.len() as u16).collect();
    symbols.sort_by_key(|symbol| CODE_BITS[usize::from(*symbol)]);
    let (mut code, mut length) = (0, CODE_BITS[usize::from(symbols[0])]);
    let mut codes = HashMap::new();
    for symbol in symbols {
        let bits = CODE_BITS[usize::from(symbol)];
        code <<= bits - length;
        length = bits;
        codes.insert((length, code), symbol);
        code += 1;
    }
    codes
});

const MAX_CODE_BITS: u8 = 30;

/// The length of each byte's code, and of the end's (RFC 7541 appendix B).
#[rustfmt::skip]
const CODE_BITS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, 5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, 24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, 26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

/// The table that everybody has (RFC 7541 appendix A).
#[rustfmt::skip]
const STATIC: [(&str, &str); 61] = [
    (":authority", ""), (":method", "GET"), (":method", "POST"), (":path", "/"), (":path", "/index.html"),
    (":scheme", "http"), (":scheme", "https"), (":status", "200"), (":status", "204"), (":status", "206"),
    (":status", "304"), (":status", "400"), (":status", "404"), (":status", "500"), ("accept-charset", ""),
    ("accept-encoding", "gzip, deflate"), ("accept-language", ""), ("accept-ranges", ""), ("accept", ""),
    ("access-control-allow-origin", ""), ("age", ""), ("allow", ""), ("authorization", ""), ("cache-control", ""),
    ("content-disposition", ""), ("content-encoding", ""), ("content-language", ""), ("content-length", ""),
    ("content-location", ""), ("content-range", ""), ("content-type", ""), ("cookie", ""), ("date", ""), ("etag", ""),
    ("expect", ""), ("expires", ""), ("from", ""), ("host", ""), ("if-match", ""), ("if-modified-since", ""),
    ("if-none-match", ""), ("if-range", ""), ("if-unmodified-since", ""), ("last-modified", ""), ("link", ""),
    ("location", ""), ("max-forwards", ""), ("proxy-authenticate", ""), ("proxy-authorization", ""), ("range", ""),
    ("referer", ""), ("refresh", ""), ("retry-after", ""), ("server", ""), ("set-cookie", ""),
    ("strict-transport-security", ""), ("transfer-encoding", ""), ("user-agent", ""), ("vary", ""), ("via", ""),
    ("www-authenticate", ""),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
        let pair = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
        digits.chunks(2).map(pair).collect()
    }

    fn shown(fields: &Fields) -> Vec<String> {
        fields.iter().map(|(name, value)| format!("{name}={value}")).collect()
    }

    /// The examples of RFC 7541 appendix C, sections 3 and 4: plain texts and coded ones.
    #[test]
    fn the_examples_of_the_rfc_are_read() {
        let plain = [
            "8286 8441 0f77 7777 2e65 7861 6d70 6c65 2e63 6f6d",
            "8286 84be 5808 6e6f 2d63 6163 6865",
            "8287 85bf 400a 6375 7374 6f6d 2d6b 6579 0c63 7573 746f 6d2d 7661 6c75 65",
        ];
        let coded = [
            "8286 8441 8cf1 e3c2 e5f2 3a6b a0ab 90f4 ff",
            "8286 84be 5886 a8eb 1064 9cbf",
            "8287 85bf 4088 25a8 49e9 5ba9 7d7f 8925 a849 e95b b8e8 b4bf",
        ];
        let first = [":method=GET", ":scheme=http", ":path=/", ":authority=www.example.com"];
        for blocks in [plain, coded] {
            let mut decoder = Decoder::default();
            assert_eq!(shown(&decoder.decode(&bytes(blocks[0])).unwrap()), first);
            let second = decoder.decode(&bytes(blocks[1])).unwrap();
            assert_eq!(shown(&second)[4], "cache-control=no-cache");
            let third = decoder.decode(&bytes(blocks[2])).unwrap();
            assert_eq!(shown(&third)[1..4], [":scheme=https", ":path=/index.html", ":authority=www.example.com"]);
            assert_eq!(shown(&third)[4], "custom-key=custom-value");
            assert_eq!(decoder.bytes, 164);
        }
    }

    #[test]
    fn what_is_written_is_read_and_old_entries_leave_the_table() {
        let mut decoder = Decoder::default();
        let long = "x".repeat(3_000);
        let mut written = block(&[(":path", "/"), ("a", &long)]);
        indexed_literal(b"b", long.as_bytes(), &mut written);
        reference(NEWEST, &mut written);
        let fields = decoder.decode(&written).unwrap();
        assert_eq!(fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [":path", "a", "b", "b"]);
        let mut written = Vec::new();
        indexed_literal(b"c", long.as_bytes(), &mut written);
        reference(NEWEST + 1, &mut written);
        assert_eq!(decoder.decode(&written), Err(Malformed("an index beyond the table")));
        let mut written = Vec::new();
        table_size(0, &mut written);
        reference(NEWEST, &mut written);
        assert_eq!(decoder.decode(&written), Err(Malformed("an index beyond the table")));
        assert_eq!(decoder.decode(b"\0\x7fshort"), Err(Malformed("a text that breaks off")));
    }
}
