//! A request's fields and the begin of its body, kept until a response comes: an endpoint may say that it has not looked at the request
//! (RFC 9113 section 8.7), and then it is sent again elsewhere.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use bytes::Buf;
use http::{HeaderMap, HeaderName, HeaderValue};
use ringmesh_ring::stop::Stop;

use super::data::Data;
use super::{Lost, Part, Source};

/// Most bytes that are kept for one request: the message of an ordinary call. The peer chooses its size, so we choose the
/// bound; a longer request is not sent again.
const MAX_KEPT_BYTES: usize = 16 * 1024;

/// Most pieces that are kept: each costs memory beside its bytes.
const MAX_KEPT_PIECES: usize = 64;

/// The fields of a head as text, which takes one allocation: a copy of the map takes one for nearly every field, and nearly
/// no copy is ever used.
pub struct KeptFields(Vec<u8>);

/// Bytes in front of each field: its two lengths, that of the value with a bit that says whether it is sensitive.
const LENGTHS_BYTES: usize = 2 * size_of::<u32>();

/// Room for an ordinary field.
const FIELD_BYTES: usize = 64;

impl KeptFields {
    /// A copy of these.
    pub fn of(fields: &HeaderMap) -> Self {
        let mut text = Vec::with_capacity(fields.len() * FIELD_BYTES);
        for (name, value) in fields {
            let name = name.as_str().as_bytes();
            // A head is far shorter than half of what these can tell.
            let lengths = (value.len() as u64) << 33 | u64::from(value.is_sensitive()) << 32 | name.len() as u64;
            text.extend_from_slice(&lengths.to_le_bytes());
            text.extend_from_slice(name);
            text.extend_from_slice(value.as_bytes());
        }
        Self(text)
    }

    /// The fields as they were.
    #[cold]
    pub fn to_map(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        let mut rest = &self.0[..];
        while let Some((lengths, text)) = rest.split_at_checked(LENGTHS_BYTES) {
            let number = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| lengths[at + byte])) as usize;
            let (name, text) = text.split_at(number(0));
            let (value, text) = text.split_at(number(4) >> 1);
            let name = HeaderName::from_bytes(name).expect("it was one");
            let mut value = HeaderValue::from_bytes(value).expect("it was one");
            value.set_sensitive(number(4) & 1 != 0);
            fields.append(name, value);
            rest = text;
        }
        fields
    }
}

/// What of a body was sent to an endpoint.
#[derive(Default)]
pub struct Kept {
    pieces: Vec<Data>,
    bytes: usize,
    /// The end was told too.
    end: Option<Option<HeaderMap>>,
    /// More than may be kept.
    too_much: bool,
}

impl Kept {
    /// Whether all that was sent can be sent again.
    pub fn is_whole(&self) -> bool {
        !self.too_much
    }

    fn keep(&mut self, data: &Data) {
        self.bytes += data.remaining();
        if self.bytes > MAX_KEPT_BYTES || self.pieces.len() == MAX_KEPT_PIECES {
            self.too_much = true;
            self.pieces = Vec::new();
        }
        if !self.too_much {
            self.pieces.push(data.clone());
        }
    }
}

/// A body of which the begin is kept, and given first if there is one already.
pub struct Replayed<'a, S> {
    source: &'a mut S,
    kept: &'a mut Kept,
    /// Pieces that an earlier attempt has taken, and this one has not.
    again: usize,
    again_end: bool,
}

impl<'a, S: Source> Replayed<'a, S> {
    /// Gives what is kept first, then the rest.
    pub fn new(source: &'a mut S, kept: &'a mut Kept) -> Self {
        let (again, again_end) = (kept.pieces.len(), kept.end.is_some());
        Self { source, kept, again, again_end }
    }

    fn take_again(&mut self) -> Option<Part> {
        if self.again > 0 {
            let piece = self.kept.pieces[self.kept.pieces.len() - self.again].clone();
            self.again -= 1;
            return Some(Part::Data(piece));
        }
        std::mem::take(&mut self.again_end).then(|| Part::End(self.kept.end.clone().flatten()))
    }

    fn keep(&mut self, part: &Part) {
        match part {
            Part::Data(data) => self.kept.keep(data),
            Part::End(trailers) => self.kept.end = Some(trailers.clone()),
        }
    }
}

impl<S: Source> Source for Replayed<'_, S> {
    fn is_done(&self) -> bool {
        self.again == 0 && !self.again_end && self.source.is_done()
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        if let Some(part) = self.take_again() {
            return Some(Ok(part));
        }
        let part = self.source.ready()?;
        if let Ok(part) = &part {
            self.keep(part);
        }
        Some(part)
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        if let Some(part) = self.take_again() {
            return Ok(part);
        }
        let part = self.source.next(stop).await?;
        self.keep(&part);
        Ok(part)
    }

    /// The bytes of an earlier attempt were accounted for then.
    fn passed(&mut self, bytes: usize) {
        if self.again == 0 {
            self.source.passed(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_fields_come_back_as_they_were() {
        let mut fields = HeaderMap::new();
        assert_eq!(KeptFields::of(&fields).to_map(), fields);
        for (name, value) in [("accept", &b"*/*"[..]), ("x-own", b""), ("cookie", b"a=b"), ("cookie", b"c=\xff")] {
            fields.append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
        }
        let mut secret = HeaderValue::from_static("secret");
        secret.set_sensitive(true);
        fields.insert("authorization", secret);
        let back = KeptFields::of(&fields).to_map();
        let list = |fields: &HeaderMap| {
            let all = fields.iter().map(|(name, value)| (name.clone(), value.clone(), value.is_sensitive()));
            all.collect::<Vec<_>>()
        };
        assert_eq!(list(&back), list(&fields));
    }
}
