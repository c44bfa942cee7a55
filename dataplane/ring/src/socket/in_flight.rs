//! Memory on its way through the kernel: what monoio owns while an operation is in flight.
//!
//! When an operation's future is dropped, monoio keeps these values until the kernel has reported the end, so the
//! kernel never touches memory that is used for something else.

use monoio::buf::{IoBuf, IoBufMut, IoVecBuf};

use crate::buffer::Buffer;
use crate::output::Parts;
use crate::runtime::Lent;

/// A buffer that is being received into.
pub(crate) struct Filling {
    buffer: Buffer,
    _lent: Lent,
}

impl Filling {
    /// Takes the buffer away from its owner, leaving a hollow one.
    pub(crate) fn take(buffer: &mut Buffer) -> Filling {
        Filling { buffer: std::mem::replace(buffer, Buffer::hollow()), _lent: Lent::new() }
    }

    pub(crate) fn give_back(self, buffer: &mut Buffer) {
        *buffer = self.buffer;
    }
}

// SAFETY: the pointer leads into the buffer's block, which this value keeps alive and which does not move with it;
// nothing else writes there, because the buffer was moved in here.
unsafe impl IoBufMut for Filling {
    fn write_ptr(&mut self) -> *mut u8 {
        self.buffer.spare_mut().as_mut_ptr()
    }

    fn bytes_total(&mut self) -> usize {
        self.buffer.spare()
    }

    unsafe fn set_init(&mut self, received: usize) {
        self.buffer.commit(received);
    }
}

/// Output that is being sent as one piece: its first.
pub(crate) struct SendingOne {
    parts: Box<Parts>,
    _lent: Lent,
}

/// Output that is being sent as a vector of pieces.
pub(crate) struct SendingMany {
    parts: Box<Parts>,
    _lent: Lent,
}

impl SendingOne {
    pub(crate) fn new(parts: Box<Parts>) -> SendingOne {
        SendingOne { parts, _lent: Lent::new() }
    }

    pub(crate) fn into_parts(self) -> Box<Parts> {
        self.parts
    }
}

impl SendingMany {
    pub(crate) fn new(mut parts: Box<Parts>) -> SendingMany {
        parts.aim();
        SendingMany { parts, _lent: Lent::new() }
    }

    pub(crate) fn into_parts(self) -> Box<Parts> {
        self.parts
    }
}

// SAFETY: the bytes lie in a block that the slice in `parts` keeps alive, and do not move with this value; nobody
// writes to bytes that a slice shows.
unsafe impl IoBuf for SendingOne {
    fn read_ptr(&self) -> *const u8 {
        self.parts.first().as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.parts.first().len()
    }
}

// SAFETY: the vector is on the heap, was aimed at the slices when this value was made, and neither changes while they
// are inside it; the slices keep the bytes alive, and nobody writes to bytes that a slice shows.
unsafe impl IoVecBuf for SendingMany {
    fn read_iovec_ptr(&self) -> *const libc::iovec {
        self.parts.vectors().as_ptr()
    }

    fn read_iovec_len(&self) -> usize {
        self.parts.vectors().len()
    }
}
