//! Counted memory blocks under [`Buffer`](crate::Buffer) and [`Slice`](crate::Slice), kept in a pool per thread.
//!
//! One allocation holds the counter and the bytes. The counter is a plain cell: a block never leaves its thread.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::mem::size_of;
use std::ptr::NonNull;

/// Bytes in a small block: one full TLS record of plaintext, and the usual read of a request.
pub const BUFFER_BYTES: usize = 16 * 1024;

/// Bytes in a large block: fewer system calls while bulk flows (16 KiB reads cost half as much again per byte).
pub const LARGE_BUFFER_BYTES: usize = 64 * 1024;

/// Bytes in a block for what does not end: half the system calls again, and whole batches of those who send as much at a time.
pub const BULK_BUFFER_BYTES: usize = 128 * 1024;

/// Idle small blocks a thread keeps: 2 MiB, enough that a steady load below this many requests at once allocates
/// nothing, and small enough that an idle worker after a peak stays small.
const MAX_POOLED_SMALL: usize = 128;

/// Idle large blocks a thread keeps: 2 MiB.
const MAX_POOLED_LARGE: usize = 32;

/// Idle blocks for bulk a thread keeps: 2 MiB.
const MAX_POOLED_BULK: usize = 16;

/// Where the bytes begin, so that they are aligned for any copy instruction.
const DATA_OFFSET: usize = 64;
const _: () = assert!(size_of::<Header>() <= DATA_OFFSET);

/// The sizes blocks come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Size {
    /// [`BUFFER_BYTES`].
    Small,
    /// [`LARGE_BUFFER_BYTES`].
    Large,
    /// [`BULK_BUFFER_BYTES`].
    Bulk,
}

impl Size {
    /// Bytes in a block of this size.
    pub const fn bytes(self) -> usize {
        match self {
            Size::Small => BUFFER_BYTES,
            Size::Large => LARGE_BUFFER_BYTES,
            Size::Bulk => BULK_BUFFER_BYTES,
        }
    }

    /// The next size, for who has filled a block of this one at once. There is none above [`Size::Bulk`].
    pub const fn next(self) -> Size {
        match self {
            Size::Small => Size::Large,
            Size::Large | Size::Bulk => Size::Bulk,
        }
    }

    const fn layout(self) -> Layout {
        match Layout::from_size_align(DATA_OFFSET + self.bytes(), DATA_OFFSET) {
            Ok(layout) => layout,
            Err(_) => panic!("all sizes are far below the largest allocation"),
        }
    }
}

struct Header {
    references: Cell<u32>,
    size: Size,
}

/// One counted reference to a block. All its bytes are always initialised.
pub(crate) struct Storage {
    header: NonNull<Header>,
}

impl Storage {
    pub(crate) fn take(size: Size) -> Storage {
        let header = POOL.try_with(|pool| pool.take(size)).ok().flatten().unwrap_or_else(|| allocate(size));
        let storage = Storage { header };
        storage.header().references.set(1);
        storage
    }

    pub(crate) fn capacity(&self) -> usize {
        self.header().size.bytes()
    }

    pub(crate) fn size(&self) -> Size {
        self.header().size
    }

    pub(crate) fn is_unique(&self) -> bool {
        self.header().references.get() == 1
    }

    pub(crate) fn is_same(&self, other: &Storage) -> bool {
        self.header == other.header
    }

    /// The first byte; valid for [`capacity`](Self::capacity) bytes as long as any reference to the block lives.
    pub(crate) fn pointer(&self) -> *mut u8 {
        // SAFETY: the block was allocated with DATA_OFFSET bytes in front of its data, so the result stays inside it.
        unsafe { self.header.as_ptr().cast::<u8>().add(DATA_OFFSET) }
    }

    /// Nobody references the block any more.
    fn give_back(&self) {
        let size = self.size();
        // While the thread is being torn down its pool may be gone already; the block then goes to the allocator.
        let kept = POOL.try_with(|pool| pool.keep(self.header, size)).unwrap_or(false);
        if !kept {
            free(self.header, size);
        }
    }

    fn header(&self) -> &Header {
        // SAFETY: a live reference keeps the block allocated and its header initialised, and headers are only ever
        // accessed through shared references and cells.
        unsafe { self.header.as_ref() }
    }
}

impl Clone for Storage {
    fn clone(&self) -> Storage {
        let references = self.header().references.get();
        self.header().references.set(references.checked_add(1).expect("fewer slices than memory has bytes"));
        Storage { header: self.header }
    }
}

impl Drop for Storage {
    #[inline]
    fn drop(&mut self) {
        let left = self.header().references.get() - 1;
        self.header().references.set(left);
        if left == 0 {
            self.give_back();
        }
    }
}

fn allocate(size: Size) -> NonNull<Header> {
    let layout = size.layout();
    // SAFETY: the layout's size is not zero. Zeroed, so that a reference to any byte of it is sound from the start.
    let block = unsafe { alloc_zeroed(layout) };
    let Some(header) = NonNull::new(block.cast::<Header>()) else { handle_alloc_error(layout) };
    // SAFETY: the block is fresh, large enough for a header (asserted above) and aligned beyond it.
    unsafe { header.write(Header { references: Cell::new(0), size }) };
    header
}

fn free(header: NonNull<Header>, size: Size) {
    // SAFETY: callers hold the only way to the block, and it was allocated with exactly this layout.
    unsafe { dealloc(header.as_ptr().cast(), size.layout()) };
}

/// Blocks that nobody references.
struct Pool {
    small: RefCell<Vec<NonNull<Header>>>,
    large: RefCell<Vec<NonNull<Header>>>,
    bulk: RefCell<Vec<NonNull<Header>>>,
}

thread_local! {
    static POOL: Pool = const {
        Pool { small: RefCell::new(Vec::new()), large: RefCell::new(Vec::new()), bulk: RefCell::new(Vec::new()) }
    };
}

impl Pool {
    fn take(&self, size: Size) -> Option<NonNull<Header>> {
        self.blocks(size).borrow_mut().pop()
    }

    fn keep(&self, block: NonNull<Header>, size: Size) -> bool {
        let mut blocks = self.blocks(size).borrow_mut();
        let room = match size {
            Size::Small => blocks.len() < MAX_POOLED_SMALL,
            Size::Large => blocks.len() < MAX_POOLED_LARGE,
            Size::Bulk => blocks.len() < MAX_POOLED_BULK,
        };
        if room {
            blocks.push(block);
        }
        room
    }

    fn blocks(&self, size: Size) -> &RefCell<Vec<NonNull<Header>>> {
        match size {
            Size::Small => &self.small,
            Size::Large => &self.large,
            Size::Bulk => &self.bulk,
        }
    }
}

impl Pool {
    fn clear(&self) {
        for size in [Size::Small, Size::Large, Size::Bulk] {
            std::mem::take(&mut *self.blocks(size).borrow_mut()).into_iter().for_each(|block| free(block, size));
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Frees the blocks that this thread keeps.
pub(crate) fn free_unused() {
    // A thread that is being torn down has freed them already.
    let _ = POOL.try_with(Pool::clear);
}
