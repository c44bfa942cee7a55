//! Giving memory back after a peak: what this thread keeps for the next use, and what the allocator keeps of what was freed.

/// Frees what this thread keeps unused: buffers, what operations are cancelled by, and small blocks of the heap. What it needs from then on it
/// allocates again.
pub fn free_unused() {
    crate::storage::free_unused();
    crate::stop::free_unused();
    crate::heap::free_unused();
}

/// Gives freed memory back to the system, wherever it lies. The allocator by itself does so only at the end of its arenas,
/// so that one small block in use keeps all that a peak has needed. Takes as long as there is much to give back, and holds
/// up threads that allocate meanwhile: some milliseconds for 100 MiB.
pub fn release() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes the allocator's own locks, and touches only memory that nobody has.
    unsafe {
        libc::malloc_trim(0);
    }
}
