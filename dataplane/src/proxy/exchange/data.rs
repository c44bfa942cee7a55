//! A piece of a body, in the memory it arrived in.

use bytes::{Buf, Bytes};
use ringmesh_ring::buffer::Slice;
use ringmesh_ring::output::Output;

/// Bytes of a body. Cloning shares them.
#[derive(Clone, Debug)]
pub enum Data {
    /// From HTTP/2's library.
    Bytes(Bytes),
    /// From a buffer of ours.
    Slice(Slice),
}

impl Data {
    /// Takes the first `len` bytes off.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, len: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.split_to(len)),
            Self::Slice(slice) => {
                let first = slice.slice(0..len);
                slice.advance(len);
                Self::Slice(first)
            }
        }
    }

    /// Puts it into an output of ours: shared where it lies in our buffers, copied otherwise.
    pub fn push_to(self, output: &mut Output) {
        match self {
            Self::Bytes(bytes) => output.push_bytes(&bytes),
            Self::Slice(slice) => output.push(slice),
        }
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        self.chunk().len()
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Slice(slice) => slice,
        }
    }

    fn advance(&mut self, count: usize) {
        match self {
            Self::Bytes(bytes) => bytes.advance(count),
            Self::Slice(slice) => slice.advance(count),
        }
    }
}
