//! The heap of a program with workers: small blocks that a worker frees it keeps for its next.
//!
//! A request over HTTP/2 allocates some twenty small blocks in the libraries below us, and frees them all within the same
//! turns of the loop. The C library takes some 160 instructions for a block and its return, these lists take 25.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ptr;

/// Blocks come in multiples of this many bytes, as the C library's do, so that nothing is wasted by rounding.
const STEP_BYTES: usize = 16;

/// Largest block that is kept.
const MAX_KEPT: usize = 1024;

const SIZES: usize = MAX_KEPT / STEP_BYTES;

/// Bytes of one size that a worker keeps: what a few hundred requests at once need. In all it is 512 KiB at most.
const MAX_BYTES_PER_SIZE: usize = 8 * 1024;
const _: () = assert!(MAX_BYTES_PER_SIZE * SIZES <= 512 * 1024 && MAX_BYTES_PER_SIZE >= MAX_KEPT);

/// The system's allocator with lists in front of it. Make it the global one:
/// `#[global_allocator] static HEAP: ringmesh_ring::heap::Heap = ringmesh_ring::heap::Heap;`
pub struct Heap;

/// Blocks of one size that nobody uses: each begins with a pointer to the next.
struct List {
    first: Cell<*mut u8>,
    /// How many more may be kept.
    room: Cell<u32>,
}

thread_local! {
    // Constant and without a destructor: can be used at any time, also while a thread starts or ends. No thread keeps
    // anything before it becomes a worker.
    static LISTS: [List; SIZES] =
        const { [const { List { first: Cell::new(ptr::null_mut()), room: Cell::new(0) } }; SIZES] };
}

/// From now on this thread keeps blocks.
pub(crate) fn keep() {
    LISTS.with(|lists| {
        let all_bytes = (1..).map(|step| step * STEP_BYTES);
        lists.iter().zip(all_bytes).for_each(|(list, bytes)| list.room.set((MAX_BYTES_PER_SIZE / bytes) as u32));
    });
}

/// From now on it keeps none, and those that it has are freed.
pub(crate) fn keep_nothing() {
    LISTS.with(|lists| {
        free_unused();
        lists.iter().for_each(|list| list.room.set(0));
    });
}

/// Frees the blocks that this thread keeps.
pub(crate) fn free_unused() {
    LISTS.with(|lists| {
        for (index, list) in lists.iter().enumerate() {
            while let Some(block) = list.take() {
                // SAFETY: blocks in a list were allocated with this layout, see `Heap`, and nobody else has them.
                unsafe { System.dealloc(block, layout_of(index)) };
            }
        }
    });
}

impl List {
    #[inline]
    fn take(&self) -> Option<*mut u8> {
        let first = self.first.get();
        if first.is_null() {
            return None;
        }
        // SAFETY: a block in a list is unused, large and aligned enough for a pointer, and `put` has written one there.
        let next = unsafe { first.cast::<*mut u8>().read() };
        self.first.set(next);
        self.room.set(self.room.get() + 1);
        Some(first)
    }

    /// Keeps a block that nobody uses any more, if there is room for it.
    ///
    /// # Safety
    /// It was allocated with the layout of this list's size, and nobody has it.
    #[inline]
    unsafe fn put(&self, block: *mut u8) -> bool {
        let room = self.room.get();
        if room == 0 {
            return false;
        }
        self.room.set(room - 1);
        // SAFETY: the caller's promise; the smallest block is large and aligned enough for a pointer.
        unsafe { block.cast::<*mut u8>().write(self.first.get()) };
        self.first.set(block);
        true
    }
}

/// Which list a block belongs to, if any. Known from its layout alone, so that it is the same when it is freed.
#[inline]
const fn list_of(bytes: usize, align: usize) -> Option<usize> {
    if bytes <= MAX_KEPT && align <= STEP_BYTES && bytes > 0 { Some((bytes - 1) / STEP_BYTES) } else { None }
}

/// What the system is asked for where there is a list.
#[inline]
const fn layout_of(index: usize) -> Layout {
    // SAFETY: the alignment is a power of two, and the size is a multiple of it and small.
    unsafe { Layout::from_size_align_unchecked((index + 1) * STEP_BYTES, STEP_BYTES) }
}

#[inline]
fn with_list<R>(index: usize, f: impl FnOnce(&List) -> R) -> R {
    LISTS.with(|lists| f(&lists[index]))
}

// SAFETY: a block is one of the system's, at least as large and aligned as was asked for, and has one owner: who it was
// returned to, or else the list of one thread. A layout with a list is always rounded up in the same way before it gets to
// the system.
unsafe impl GlobalAlloc for Heap {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some(index) = list_of(layout.size(), layout.align()) else {
            // SAFETY: the caller's promises are the callee's demands.
            return unsafe { System.alloc(layout) };
        };
        match with_list(index, List::take) {
            Some(block) => block,
            // SAFETY: the size is not zero.
            None => unsafe { System.alloc(layout_of(index)) },
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(index) = list_of(layout.size(), layout.align()) else {
            // SAFETY: the caller's promises are the callee's demands.
            return unsafe { System.alloc_zeroed(layout) };
        };
        match with_list(index, List::take) {
            Some(block) => {
                // SAFETY: the block is at least that large, and nobody else has it.
                unsafe { block.write_bytes(0, layout.size()) };
                block
            }
            // SAFETY: the size is not zero.
            None => unsafe { System.alloc_zeroed(layout_of(index)) },
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some(index) = list_of(layout.size(), layout.align()) else {
            // SAFETY: the caller's promises are the callee's demands.
            return unsafe { System.dealloc(block, layout) };
        };
        // SAFETY: the caller gives the block up, which was allocated for this list's size.
        let kept = with_list(index, |list| unsafe { list.put(block) });
        if !kept {
            // SAFETY: as above, and no list has it.
            unsafe { System.dealloc(block, layout_of(index)) };
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        match (list_of(layout.size(), layout.align()), list_of(bytes, layout.align())) {
            (Some(old), Some(new)) if old == new => block,
            // SAFETY: the caller's promises are the callee's demands.
            (None, None) => unsafe { System.realloc(block, layout, bytes) },
            _ => {
                // SAFETY: the caller's promises: `bytes` is neither zero nor too large for the alignment.
                let asked = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
                // SAFETY: its size is not zero.
                let moved = unsafe { self.alloc(asked) };
                if !moved.is_null() {
                    // SAFETY: both blocks are at least that large, and are not the same.
                    unsafe { ptr::copy_nonoverlapping(block, moved, layout.size().min(bytes)) };
                    // SAFETY: the caller gives it up once there is another.
                    unsafe { self.dealloc(block, layout) };
                }
                moved
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every size and alignment, with lists and without.
    fn layouts() -> impl Iterator<Item = Layout> {
        let sizes = [1, 7, 8, 15, 16, 17, 24, 31, 32, 33, 100, 1008, 1009, 1023, 1024, 1025, 4000, 100_000];
        let aligns = [1, 2, 8, 16, 32, 64];
        sizes.into_iter().flat_map(move |size| aligns.map(|align| Layout::from_size_align(size, align).unwrap()))
    }

    fn fill(block: *mut u8, bytes: usize, with: u8) {
        // SAFETY: callers own so many bytes there.
        unsafe { block.write_bytes(with, bytes) };
    }

    fn is_filled(block: *const u8, bytes: usize, with: u8) -> bool {
        // SAFETY: callers own so many bytes there, and have written them.
        unsafe { std::slice::from_raw_parts(block, bytes) }.iter().all(|byte| *byte == with)
    }

    /// In a thread of its own, whose lists are its own.
    fn in_thread(test: fn()) {
        std::thread::spawn(test).join().unwrap();
    }

    #[test]
    fn blocks_are_aligned_apart_and_keep_their_bytes_when_they_move() {
        in_thread(|| {
            keep();
            for round in 0..3 {
                let blocks: Vec<_> = layouts()
                    .enumerate()
                    .map(|(number, layout)| {
                        // SAFETY: the size is not zero.
                        let block = unsafe { Heap.alloc(layout) };
                        assert!(!block.is_null() && block.addr() % layout.align() == 0, "{layout:?}");
                        fill(block, layout.size(), number as u8);
                        (block, layout, number as u8)
                    })
                    .collect();
                for (mut block, layout, number) in blocks {
                    let (mut here, mut whole) = (layout, layout.size());
                    for bytes in [1, 16, 40, 1024, 2000, 1000, layout.size()] {
                        assert!(is_filled(block, whole, number), "{layout:?} as {here:?} in round {round}");
                        // SAFETY: the block is the last one, of this layout; the size is neither zero nor large.
                        block = unsafe { Heap.realloc(block, here, bytes) };
                        whole = whole.min(bytes);
                        here = Layout::from_size_align(bytes, layout.align()).unwrap();
                    }
                    assert!(is_filled(block, whole, number) && block.addr() % layout.align() == 0, "{layout:?}");
                    fill(block, layout.size(), number);
                    // SAFETY: the block is of this layout again.
                    unsafe { Heap.dealloc(block, layout) };
                    // SAFETY: the size is not zero.
                    let zeroed = unsafe { Heap.alloc_zeroed(layout) };
                    assert!(is_filled(zeroed, layout.size(), 0), "{layout:?}");
                    // SAFETY: it was allocated with this layout just above.
                    unsafe { Heap.dealloc(zeroed, layout) };
                }
            }
            keep_nothing();
        });
    }

    #[test]
    fn a_worker_gets_back_what_it_freed_and_keeps_no_more_than_it_may() {
        in_thread(|| {
            let layout = Layout::from_size_align(100, 8).unwrap();
            // SAFETY: the size is not zero.
            let allocate = || unsafe { Heap.alloc(layout) };
            // SAFETY: the blocks come from above, and each is freed once.
            let free = |block| unsafe { Heap.dealloc(block, layout) };
            let kept = || with_list(6, |list| list.room.get());
            free(allocate());
            assert_eq!(kept(), 0, "a thread that is no worker keeps nothing");
            keep();
            let room = kept();
            let block = allocate();
            free(block);
            assert_eq!((kept(), allocate()), (room - 1, block));
            free(block);
            let many: Vec<_> = (0..1000).map(|_| allocate()).collect();
            many.into_iter().for_each(free);
            assert_eq!(kept(), 0);
            free_unused();
            assert_eq!(kept(), room);
            free(allocate());
            keep_nothing();
            assert_eq!(kept(), 0);
        });
    }
}
