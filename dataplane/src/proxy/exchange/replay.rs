//! The begin of a request's body, kept until a response comes: an endpoint may say that it has not looked at the request
//! (RFC 9113 section 8.7), and then it is sent again elsewhere.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use bytes::Buf;
use http::HeaderMap;
use ringmesh_ring::stop::Stop;

use super::data::Data;
use super::{Lost, Part, Source};

/// Most bytes that are kept for one request: the message of an ordinary call. The peer chooses its size, so we choose the
/// bound; a longer request is not sent again.
const MAX_KEPT_BYTES: usize = 16 * 1024;

/// Most pieces that are kept: each costs memory beside its bytes.
const MAX_KEPT_PIECES: usize = 64;

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
