//! What is to be sent: a reusable list of slices, and the vectors that show it to the kernel.

use crate::buffer::{Buffer, Size, Slice};

/// Slices that one vectored send shows the kernel at most. More are sent in further rounds; the kernel's own limit is
/// 1024 (IOV_MAX), and past a few dozen a longer vector saves nothing.
const MAX_VECTORS: usize = 64;

/// Bytes waiting to be sent, in order. Storage is reused: in steady state neither pushing nor sending allocates.
///
/// While a send is in flight its contents belong to the kernel. Should that operation's future be dropped, the output
/// is left empty.
#[derive(Default)]
pub struct Output {
    parts: Option<Box<Parts>>,
}

/// Boxed, so that it can be handed to the kernel's side by moving a pointer.
#[derive(Default)]
pub(crate) struct Parts {
    slices: Vec<Slice>,
    /// How many of them are sent. A plain list with a mark, because nearly every output is one piece or two and is sent
    /// as a whole.
    sent: usize,
    /// Where copied bytes live; given back as soon as everything is sent.
    scratch: Option<Buffer>,
    bytes: usize,
    vectors: Vec<libc::iovec>,
}

impl Output {
    /// Nothing to send. Allocates nothing yet.
    pub const fn new() -> Output {
        Output { parts: None }
    }

    /// Adds bytes that lie in shared memory, without a copy.
    pub fn push(&mut self, slice: Slice) {
        if !slice.is_empty() {
            self.parts.get_or_insert_default().push(slice);
        }
    }

    /// Adds a copy of `bytes`; copies pushed one after the other become one piece.
    pub fn push_bytes(&mut self, mut bytes: &[u8]) {
        let parts = self.parts.get_or_insert_default();
        while !bytes.is_empty() {
            let scratch = parts.scratch.get_or_insert_with(|| Buffer::take(Size::Small));
            let (from, fits) = (scratch.len(), scratch.spare().min(bytes.len()));
            if fits == 0 {
                parts.scratch = None;
                continue;
            }
            scratch.extend_from_slice(&bytes[..fits]).expect("cut to the spare room just above");
            let copied = scratch.slice(from..from + fits);
            parts.push(copied);
            bytes = &bytes[fits..];
        }
    }

    /// Moves the first `len` bytes behind those of `to`: pieces of up to `copied` bytes by a copy, so that they become one
    /// with what stands before them there, larger ones without.
    ///
    /// # Panics
    /// When fewer bytes wait.
    pub fn move_to(&mut self, to: &mut Output, len: usize, copied: usize) {
        assert!(len <= self.len_bytes(), "cannot move more than waits");
        let mut left = len;
        for slice in self.parts.iter().flat_map(|parts| parts.waiting()) {
            if left == 0 {
                break;
            }
            let taken = slice.len().min(left);
            left -= taken;
            if taken <= copied {
                to.push_bytes(&slice[..taken]);
            } else {
                to.push(slice.slice(0..taken));
            }
        }
        self.advance(len);
    }

    /// How many bytes wait to be sent.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.parts.as_ref().map_or(0, |parts| parts.bytes)
    }

    /// Whether nothing waits to be sent.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len_bytes() == 0
    }

    /// Forgets everything that waits.
    #[inline]
    pub fn clear(&mut self) {
        // Mostly there is nothing: what was sent is forgotten with its last byte, and its storage given back.
        if let Some(parts) = &mut self.parts
            && parts.bytes > 0
        {
            parts.clear();
        }
    }

    /// The pieces in the order they will be sent.
    pub fn slices(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().flat_map(|parts| parts.waiting().iter().map(|slice| &slice[..]))
    }

    /// Notes that the first `len` bytes are sent.
    ///
    /// # Panics
    /// When fewer bytes wait.
    pub fn advance(&mut self, len: usize) {
        assert!(len <= self.len_bytes(), "cannot have sent more than waited");
        if let Some(parts) = &mut self.parts {
            parts.advance(len);
        }
    }

    pub(crate) fn take_parts(&mut self) -> Box<Parts> {
        self.parts.take().unwrap_or_default()
    }

    pub(crate) fn put_parts(&mut self, parts: Box<Parts>) {
        self.parts = Some(parts);
    }
}

impl Parts {
    fn push(&mut self, slice: Slice) {
        self.bytes += slice.len();
        let joined = self.slices[self.sent..].last_mut().is_some_and(|last| last.join(&slice));
        if !joined {
            self.slices.push(slice);
        }
    }

    fn waiting(&self) -> &[Slice] {
        &self.slices[self.sent..]
    }

    fn clear(&mut self) {
        if !self.slices.is_empty() {
            self.slices.clear();
            self.sent = 0;
            self.bytes = 0;
        }
        self.scratch = None;
    }

    fn advance(&mut self, mut len: usize) {
        self.bytes -= len;
        if self.bytes == 0 {
            return self.clear();
        }
        while len > 0 {
            let first = &mut self.slices[self.sent];
            let whole = first.len() <= len;
            let sent = first.len().min(len);
            first.advance(sent);
            len -= sent;
            self.sent += usize::from(whole);
        }
        if self.sent >= MAX_VECTORS {
            self.slices.drain(..self.sent);
            self.sent = 0;
        }
    }

    pub(crate) fn is_one_piece(&self) -> bool {
        self.waiting().len() == 1
    }

    /// The first piece, which is all there is to send in a plain (not vectored) operation.
    pub(crate) fn first(&self) -> &[u8] {
        self.waiting().first().map_or(&[], |slice| &slice[..])
    }

    /// Writes down where the first pieces lie. The result stays true until the slices change, wherever `self` moves:
    /// vector and bytes are on the heap.
    pub(crate) fn aim(&mut self) {
        self.vectors.clear();
        self.vectors.extend(
            self.slices[self.sent..]
                .iter()
                .take(MAX_VECTORS)
                .map(|slice| libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() }),
        );
    }

    pub(crate) fn vectors(&self) -> &[libc::iovec] {
        &self.vectors
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("bytes", &self.len_bytes()).finish()
    }
}
