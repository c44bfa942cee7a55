//! Heads as they are written: unchanged spans from where they lie.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::ops::Range;

use ringmesh_codec::http1::Sink;
use ringmesh_ring::buffer::Slice;
use ringmesh_ring::output::Output;

/// Where a head is written to: unchanged spans are sent from where they lie.
pub struct Spans<'a> {
    /// The head as it came.
    pub head: &'a Slice,
    /// What is sent.
    pub output: &'a mut Output,
}

impl Sink for Spans<'_> {
    fn original(&mut self, range: Range<usize>) {
        self.output.push(self.head.slice(range));
    }

    fn inserted(&mut self, text: &[u8]) {
        self.output.push_bytes(text);
    }
}
