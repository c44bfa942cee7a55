//! Where bytes arrive, and shared views of them that can be sent without a copy.
//!
//! A block of memory has one writer (the [`Buffer`]) and any number of readers ([`Slice`]s). The writer only ever
//! changes bytes behind everything it has handed out, which is what makes sharing without a copy sound.

use std::fmt;
use std::ops::{Deref, Range};

use crate::storage::Storage;
pub use crate::storage::{BUFFER_BYTES, BULK_BUFFER_BYTES, LARGE_BUFFER_BYTES, Size};

/// The bytes offered do not fit what is left of the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the buffer is full")]
pub struct Full;

/// A block of memory with one writer: bytes `start..end` are filled, the rest behind is spare.
///
/// While a receive is in flight its memory belongs to the kernel. Should that operation's future be dropped, the buffer
/// is left hollow: empty, without capacity, until [`grow`](Buffer::grow) or [`compact`](Buffer::compact).
pub struct Buffer {
    storage: Option<Storage>,
    start: u32,
    end: u32,
}

impl Buffer {
    /// An empty buffer from this thread's pool, or a new one when the pool is empty.
    pub fn take(size: Size) -> Buffer {
        Buffer { storage: Some(Storage::take(size)), start: 0, end: 0 }
    }

    /// A buffer without memory, as a place to put one later. Costs nothing.
    pub const fn hollow() -> Buffer {
        Buffer { storage: None, start: 0, end: 0 }
    }

    /// The bytes not yet consumed.
    pub fn filled(&self) -> &[u8] {
        let Some(storage) = &self.storage else { return &[] };
        // SAFETY: start <= end <= capacity, so the range lies inside the block.
        let first = unsafe { storage.pointer().add(self.start as usize) };
        // SAFETY: all bytes of a block are initialised, and nothing writes before `end` while this borrow lives:
        // only this buffer writes, and it is borrowed.
        unsafe { std::slice::from_raw_parts(first, self.len()) }
    }

    /// The bytes not yet consumed, to be changed in place. Copies them first when a [`Slice`] still shows any of them.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        if let Some(storage) = &self.storage
            && !storage.is_unique()
        {
            self.move_to(storage.size());
        }
        let len = self.len();
        let Some(storage) = &self.storage else { return &mut [] };
        // SAFETY: start <= end <= capacity, so the range lies inside the block.
        let first = unsafe { storage.pointer().add(self.start as usize) };
        // SAFETY: the block is initialised and has no other reference (made sure above), and this buffer stays
        // mutably borrowed as long as the result lives.
        unsafe { std::slice::from_raw_parts_mut(first, len) }
    }

    /// How many bytes are filled.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether nothing is filled.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Bytes the buffer can hold in all; zero when hollow.
    pub fn capacity(&self) -> usize {
        self.storage.as_ref().map_or(0, Storage::capacity)
    }

    /// Which size it is; [`Size::Small`] when hollow, as that is what it takes first.
    pub fn size(&self) -> Size {
        self.storage.as_ref().map_or(Size::Small, Storage::size)
    }

    /// Bytes that can be added behind the filled ones without [`compact`](Buffer::compact) or [`grow`](Buffer::grow).
    #[inline]
    pub fn spare(&self) -> usize {
        self.capacity() - self.end as usize
    }

    /// The room behind the filled bytes, to write into before [`commit`](Buffer::commit). Holds old bytes.
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let spare = self.spare();
        let Some(storage) = &self.storage else { return &mut [] };
        // SAFETY: end <= capacity, so the result lies inside the block or one past it.
        let first = unsafe { storage.pointer().add(self.end as usize) };
        // SAFETY: the block is initialised; no slice shows a byte at or behind `end` (they are cut from filled bytes,
        // and `end` only falls back when no slice is alive), and this buffer is mutably borrowed.
        unsafe { std::slice::from_raw_parts_mut(first, spare) }
    }

    /// Marks the first `len` bytes of the spare room as filled.
    ///
    /// # Panics
    /// When there is less spare room than that.
    pub fn commit(&mut self, len: usize) {
        assert!(len <= self.spare(), "cannot fill more than the spare room");
        self.end += len as u32;
    }

    /// Forgets the first `len` filled bytes. Slices that show them keep them.
    ///
    /// # Panics
    /// When fewer bytes are filled.
    #[inline]
    pub fn consume(&mut self, len: usize) {
        assert!(len <= self.len(), "cannot consume more than is filled");
        self.start += len as u32;
        if self.start == self.end && self.storage.as_ref().is_some_and(Storage::is_unique) {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Forgets all filled bytes.
    pub fn clear(&mut self) {
        self.consume(self.len());
    }

    /// Copies `bytes` behind the filled ones.
    ///
    /// # Errors
    /// [`Full`] when they do not fit; nothing is copied then.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result<(), Full> {
        if bytes.len() > self.spare() {
            return Err(Full);
        }
        self.spare_mut()[..bytes.len()].copy_from_slice(bytes);
        self.commit(bytes.len());
        Ok(())
    }

    /// A view of filled bytes that shares the memory; `range` counts from the first filled byte.
    ///
    /// # Panics
    /// When the range is not inside the filled bytes.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "a slice shows filled bytes only");
        let storage = self.storage.clone().unwrap_or_else(|| Storage::take(Size::Small));
        Slice { storage, start: self.start + range.start as u32, len: (range.end - range.start) as u32 }
    }

    /// Makes room by moving the filled bytes to the front: in place when no [`Slice`] is alive, else into a fresh block
    /// of the same size, so that what others still read stays untouched.
    pub fn compact(&mut self) {
        match &self.storage {
            Some(_) if self.start == 0 => {}
            Some(storage) if storage.is_unique() => {
                let (from, len) = (self.start as usize, self.len());
                // SAFETY: the source range lies inside the block (start <= end <= capacity).
                let source = unsafe { storage.pointer().add(from) };
                // SAFETY: both ranges lie inside the block, `copy` allows them to overlap, and no other reference to
                // the block exists.
                unsafe { std::ptr::copy(source, storage.pointer(), len) };
                (self.start, self.end) = (0, len as u32);
            }
            Some(storage) => self.move_to(storage.size()),
            None => self.move_to(Size::Small),
        }
    }

    /// Changes to a large block, keeping the filled bytes. Does nothing on a buffer that is large already.
    pub fn grow(&mut self) {
        self.grow_to(Size::Large);
    }

    /// Changes to a block of this size, keeping the filled bytes. Does nothing on a buffer that is as large already.
    pub fn grow_to(&mut self, size: Size) {
        if self.capacity() < size.bytes() {
            self.move_to(size);
        }
    }

    fn move_to(&mut self, size: Size) {
        let mut fresh = Buffer::take(size);
        fresh.extend_from_slice(self.filled()).expect("the new block is at least as large as the old one");
        *self = fresh;
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer").field("filled", &self.len()).field("capacity", &self.capacity()).finish()
    }
}

/// Bytes that do not change, shared with the [`Buffer`] they arrived in and with other slices.
#[derive(Clone)]
pub struct Slice {
    storage: Storage,
    start: u32,
    len: u32,
}

impl Slice {
    /// A part of this slice, sharing the same memory.
    ///
    /// # Panics
    /// When the range is not inside the slice.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len(), "a part lies inside its slice");
        let start = self.start + range.start as u32;
        Slice { storage: self.storage.clone(), start, len: (range.end - range.start) as u32 }
    }

    /// Takes in `next` when it begins exactly where this slice ends.
    pub(crate) fn join(&mut self, next: &Slice) -> bool {
        let adjacent = self.storage.is_same(&next.storage) && self.start + self.len == next.start;
        if adjacent {
            self.len += next.len;
        }
        adjacent
    }

    /// Forgets the first `len` bytes.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.len(), "cannot skip more than the slice has");
        self.start += len as u32;
        self.len -= len as u32;
    }
}

impl Deref for Slice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: a slice is cut from filled bytes, so its range lies inside the block.
        let first = unsafe { self.storage.pointer().add(self.start as usize) };
        // SAFETY: the block is initialised and kept alive by this slice, and its writer only changes bytes behind
        // everything it has handed out.
        unsafe { std::slice::from_raw_parts(first, self.len as usize) }
    }
}

impl AsRef<[u8]> for Slice {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice").field("len", &self.len).finish()
    }
}
