//! Counts what a thread allocates, for tests that say how much that may be.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator with counters per thread. Make it the global one:
/// `#[global_allocator] static ALLOCATOR: ringmesh_ring::allocator::Counting = ringmesh_ring::allocator::Counting;`
pub struct Counting;

/// What a thread has allocated so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Calls that returned new memory, reallocations among them.
    pub allocations: u64,
    /// Bytes asked for in them.
    pub bytes: u64,
}

thread_local! {
    // Constant and without a destructor: can be used at any time, also while a thread starts or ends.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

/// What this thread has allocated so far.
pub fn counts() -> Counts {
    Counts { allocations: ALLOCATIONS.get(), bytes: BYTES.get() }
}

fn count(bytes: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    BYTES.set(BYTES.get() + bytes as u64);
}

// SAFETY: every method hands its arguments on to the system's allocator and returns what that returns; counting does
// not allocate.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the callee's demands.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are the callee's demands.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        count(bytes);
        // SAFETY: the caller's promises are the callee's demands.
        unsafe { System.realloc(block, layout, bytes) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are the callee's demands.
        unsafe { System.dealloc(block, layout) }
    }
}
