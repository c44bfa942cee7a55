//! What is asked for, and the bytes that ask for it.

use bytes::Bytes;
use ringmesh_ring::{BUFFER_BYTES, Buffer, LARGE_BUFFER_BYTES, Output, Size, Slice};

use super::Reuse;
use crate::message::Method;

/// One kind of request of a load.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the result.
    pub name: String,
    /// Value of the Host field.
    pub host: String,
    /// Request target. Like the values of the fields and the body it may hold placeholders, see [`super::TemplateError`].
    pub path: String,
    /// Method.
    pub method: String,
    /// Further fields.
    pub fields: Vec<(String, String)>,
    /// Its share, relative to the sum of all entries.
    pub weight: u32,
    /// Bytes in its body. 0 with [`BodyForm::Fixed`]: no body at all.
    pub body_bytes: u64,
    /// The body itself; without it, so many bytes without meaning.
    pub body: Option<Bytes>,
    /// How the body is sent.
    pub body_form: BodyForm,
    /// Which answers count as success.
    pub expect: Expect,
    /// What the answer's body must be.
    pub check: BodyCheck,
}

/// How a request's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// With Content-Length.
    Fixed,
    /// Chunked.
    Chunked,
}

/// Which answers count as success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Any status from 200 to 299.
    Success,
    /// This status.
    Status(u16),
    /// Any.
    Any,
}

impl Expect {
    pub(crate) fn admits(self, status: u16) -> bool {
        match self {
            Self::Success => (200..300).contains(&status),
            Self::Status(expected) => status == expected,
            Self::Any => true,
        }
    }
}

/// What the body of an answer must be, checked for answers whose status is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyCheck {
    /// Anything.
    None,
    /// As long as this.
    Length(u64),
    /// Byte for byte what was sent.
    Echo,
}

impl Entry {
    /// A GET that expects success.
    pub fn get(host: &str, path: &str) -> Self {
        Self {
            name: format!("{host}{path}"),
            host: host.to_owned(),
            path: path.to_owned(),
            method: "GET".to_owned(),
            fields: Vec::new(),
            weight: 1,
            body_bytes: 0,
            body: None,
            body_form: BodyForm::Fixed,
            expect: Expect::Success,
            check: BodyCheck::None,
        }
    }

    /// A POST with a body of so many bytes, that expects success.
    pub fn post(host: &str, path: &str, body_bytes: u64) -> Self {
        Self { method: "POST".to_owned(), body_bytes, ..Self::get(host, path) }
    }

    /// Whether its text parts make one well-formed head: this crate does not smuggle by accident.
    pub(super) fn is_sendable(&self) -> bool {
        let token = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        let value = |text: &str| text.bytes().all(|byte| byte == b' ' || byte == b'\t' || byte.is_ascii_graphic());
        token(&self.method)
            && token(&self.host)
            && token(&self.path)
            && self.fields.iter().all(|(name, text)| token(name) && value(text))
    }

    /// Bytes in its body.
    pub(super) fn length(&self) -> u64 {
        self.body.as_ref().map_or(self.body_bytes, |body| body.len() as u64)
    }

    fn head(&self, reuse: Reuse) -> String {
        let mut head = format!("{} {} HTTP/1.1\r\nhost: {}\r\n", self.method, self.path, self.host);
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match (self.body_form, self.length()) {
            (BodyForm::Fixed, 0) => {}
            (BodyForm::Fixed, bytes) => head.push_str(&format!("content-length: {bytes}\r\n")),
            (BodyForm::Chunked, _) => head.push_str("transfer-encoding: chunked\r\n"),
        }
        if reuse == Reuse::PerRequest {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        head
    }
}

/// An entry as bytes, made once for each thread: sending it copies nothing.
pub(crate) struct Prepared {
    slices: Vec<Slice>,
    pub(crate) bytes: u64,
    pub(crate) method: Method,
    pub(crate) body_bytes: u64,
    pub(crate) body: Option<Bytes>,
    pub(crate) expect: Expect,
    pub(crate) check: BodyCheck,
}

/// Longest chunk sent, in bytes.
const CHUNK_BYTES: u64 = 16 * 1024;

impl Prepared {
    pub(crate) fn new(entry: &Entry, reuse: Reuse) -> Self {
        let mut slices = slices_of(entry.head(reuse).as_bytes());
        match (entry.body_form, &entry.body) {
            (BodyForm::Fixed, None) => pattern(entry.body_bytes, 0, &mut slices),
            (BodyForm::Chunked, None) => chunks(entry.body_bytes, pattern, &mut slices),
            (BodyForm::Fixed, Some(body)) => slices.extend(slices_of(body)),
            (BodyForm::Chunked, Some(body)) => {
                let part = |chunk: u64, from: u64, slices: &mut Vec<Slice>| {
                    slices.extend(slices_of(&body[from as usize..(from + chunk) as usize]));
                };
                chunks(entry.length(), part, &mut slices);
            }
        }
        Self {
            bytes: slices.iter().map(|slice| slice.len() as u64).sum(),
            slices,
            method: Method::from(entry.method.as_str()),
            body_bytes: entry.length(),
            body: entry.body.clone(),
            expect: entry.expect,
            check: entry.check,
        }
    }

    pub(crate) fn write(&self, output: &mut Output) {
        for slice in &self.slices {
            output.push(slice.clone());
        }
    }

    /// Whether it may fill the socket's buffers, so that the answer must be read while it is sent.
    pub(crate) fn is_large(&self) -> bool {
        self.bytes > BUFFER_BYTES as u64
    }
}

/// The byte at a position of every body that this crate sends. 251 is prime, so that a piece lost, doubled or swapped at
/// any buffer size shows.
pub(crate) fn pattern_byte(position: u64) -> u8 {
    (position % 251) as u8
}

/// The bytes of a body, as slices of one shared buffer.
pub(crate) fn body_pattern(bytes: u64) -> Vec<Slice> {
    let mut slices = Vec::new();
    pattern(bytes, 0, &mut slices);
    slices
}

/// The bytes of a body in one piece.
pub(crate) fn pattern_bytes(bytes: u64) -> Bytes {
    (0..bytes).map(pattern_byte).collect()
}

/// Appends the bytes of a body from a position on.
pub(crate) fn pattern(bytes: u64, from: u64, slices: &mut Vec<Slice>) {
    if bytes == 0 {
        return;
    }
    // A whole number of periods, so that the buffer can follow itself.
    let period = LARGE_BUFFER_BYTES as u64 / 251 * 251;
    let shared = slices_of(&(0..period.min(bytes)).map(|at| pattern_byte(from + at)).collect::<Vec<_>>());
    let whole = shared.iter().map(|slice| slice.len() as u64).sum::<u64>();
    let mut left = bytes;
    while left >= whole {
        slices.extend(shared.iter().cloned());
        left -= whole;
    }
    if left > 0 {
        slices.extend(slices_of(&(0..left).map(|at| pattern_byte(from + at)).collect::<Vec<_>>()));
    }
}

fn chunks(bytes: u64, mut part: impl FnMut(u64, u64, &mut Vec<Slice>), slices: &mut Vec<Slice>) {
    let mut position = 0;
    while position < bytes {
        let chunk = (bytes - position).min(CHUNK_BYTES);
        slices.extend(slices_of(format!("{chunk:x}\r\n").as_bytes()));
        part(chunk, position, slices);
        slices.extend(slices_of(b"\r\n"));
        position += chunk;
    }
    slices.extend(slices_of(b"0\r\n\r\n"));
}

/// Bytes in pool buffers.
pub(crate) fn slices_of(bytes: &[u8]) -> Vec<Slice> {
    let fill = |part: &[u8]| {
        let mut buffer = Buffer::take(if part.len() > BUFFER_BYTES { Size::Large } else { Size::Small });
        buffer.extend_from_slice(part).expect("a part fits a large buffer");
        buffer.slice(0..part.len())
    };
    bytes.chunks(LARGE_BUFFER_BYTES).map(fill).collect()
}

/// Picks entries so that each keeps its share at every moment, not only in the long run (smooth weighted round robin).
pub(crate) struct Mix {
    weights: Vec<(i64, i64)>,
    sum: i64,
}

impl Mix {
    pub(crate) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let weights: Vec<_> = weights.map(|weight| (i64::from(weight), 0)).collect();
        Self { sum: weights.iter().map(|(weight, _)| weight).sum(), weights }
    }

    pub(crate) fn pick(&mut self) -> usize {
        let mut picked = 0;
        for index in 0..self.weights.len() {
            self.weights[index].1 += self.weights[index].0;
            if self.weights[index].1 > self.weights[picked].1 {
                picked = index;
            }
        }
        self.weights[picked].1 -= self.sum;
        picked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_keeps_its_shares_at_every_moment() {
        let mut mix = Mix::new([7, 2, 1, 0].into_iter());
        let mut counts = [0; 4];
        for round in 1..=100 {
            for _ in 0..10 {
                counts[mix.pick()] += 1;
            }
            assert_eq!(counts, [7 * round, 2 * round, round, 0]);
        }
    }

    #[test]
    fn a_request_is_sent_as_it_was_asked_for() {
        let entry = Entry { fields: vec![("x-a".into(), "b c".into())], ..Entry::post("shop", "/cart?a=b", 3) };
        let head = "POST /cart?a=b HTTP/1.1\r\nhost: shop\r\nx-a: b c\r\ncontent-length: 3\r\n\r\n";
        assert_eq!(entry.head(Reuse::KeepAlive), head);
        let chunked = Entry { body_form: BodyForm::Chunked, ..Entry::get("shop", "/") };
        let head = "GET / HTTP/1.1\r\nhost: shop\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n";
        assert_eq!(chunked.head(Reuse::PerRequest), head);
    }

    #[test]
    fn an_entry_that_would_make_two_requests_is_refused() {
        let entry = Entry::get("shop", "/ HTTP/1.1\r\nx: y");
        assert!(!entry.is_sendable());
        let entry = Entry { fields: vec![("x".into(), "y\r\nz: w".into())], ..Entry::get("shop", "/") };
        assert!(!entry.is_sendable());
    }
}
