//! Memory that processes share: an anonymous file whose size is sealed, so that nobody can make access to it fail.
//!
//! It is seen as 64-bit atomic words, because another process may write at any moment. What they mean is up to the
//! layers above, which must not believe what they read.

use std::ffi::c_void;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// With these the size can never change again, nor can the seals.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

const WORD_BYTES: usize = size_of::<u64>();

/// Why memory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The descriptor's size could still change. Side: whoever passed it.
    #[error("the memory's size is not sealed")]
    NotSealed,
    /// Empty, or no whole number of words. Side: whoever passed it.
    #[error("memory of {bytes} bytes cannot be shared")]
    Size {
        /// The size in question.
        bytes: u64,
    },
    /// What the kernel says.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A sealed anonymous file. Lives as long as any descriptor or mapping of it.
#[derive(Debug)]
pub struct SharedMemory {
    descriptor: OwnedFd,
    bytes: NonZeroUsize,
}

impl SharedMemory {
    /// New memory, all zero; `name` shows in `/proc/*/maps`.
    ///
    /// # Errors
    /// [`Error::Size`] for no whole number of words, or what the kernel says.
    pub fn create(name: &str, bytes: usize) -> Result<SharedMemory, Error> {
        let size = check_size(bytes as u64)?;
        let descriptor =
            memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).map_err(io::Error::from)?;
        ftruncate(&descriptor, bytes as u64).map_err(io::Error::from)?;
        fcntl_add_seals(&descriptor, SEALS).map_err(io::Error::from)?;
        Ok(SharedMemory { descriptor, bytes: size })
    }

    /// Memory that another process has passed.
    ///
    /// # Errors
    /// When its size is not sealed or makes no sense, or what the kernel says.
    pub fn from_fd(descriptor: OwnedFd) -> Result<SharedMemory, Error> {
        // Not a memfd: the kernel does not know seals for it.
        let seals = fcntl_get_seals(&descriptor).map_err(|_| Error::NotSealed)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(Error::NotSealed);
        }
        let bytes = fstat(&descriptor).map_err(io::Error::from)?.st_size;
        let bytes = check_size(bytes as u64)?;
        Ok(SharedMemory { descriptor, bytes })
    }

    /// Its size.
    pub fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// The descriptor, to be passed on.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    /// Maps it for reading and writing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map_writer(&self) -> Result<Memory, Error> {
        Ok(Memory(self.map(ProtFlags::READ | ProtFlags::WRITE)?))
    }

    /// Maps it for reading.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map_reader(&self) -> Result<ReadMemory, Error> {
        Ok(ReadMemory(self.map(ProtFlags::READ)?))
    }

    /// Maps a part of it for reading and writing: `bytes` bytes from `offset`, which is a multiple of the page size.
    ///
    /// # Errors
    /// When the part does not lie inside, or what the kernel says.
    pub fn map_writer_part(&self, offset: usize, bytes: usize) -> Result<Memory, Error> {
        let size = check_size(bytes as u64)?;
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes.get()) {
            return Err(Error::Size { bytes: bytes as u64 });
        }
        Ok(Memory(self.map_part(ProtFlags::READ | ProtFlags::WRITE, offset as u64, size.get())?))
    }

    fn map(&self, protection: ProtFlags) -> Result<Mapping, Error> {
        self.map_part(protection, 0, self.bytes.get())
    }

    fn map_part(&self, protection: ProtFlags, offset: u64, bytes: usize) -> Result<Mapping, Error> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, protection, MapFlags::SHARED, &self.descriptor, offset) };
        let start =
            NonNull::new(start.map_err(io::Error::from)?).ok_or_else(|| io::Error::from(io::ErrorKind::Other))?;
        Ok(Mapping { start, bytes })
    }
}

fn check_size(bytes: u64) -> Result<NonZeroUsize, Error> {
    let size =
        usize::try_from(bytes).ok().filter(|size| size.is_multiple_of(WORD_BYTES) && *size <= isize::MAX as usize);
    size.and_then(NonZeroUsize::new).ok_or(Error::Size { bytes })
}

/// A mapping of a sealed file: all of it can be accessed as long as this lives.
struct Mapping {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; all access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is exactly what was mapped, and references into it borrow `self`.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// Shared memory that can be written.
pub struct Memory(Mapping);

impl Memory {
    /// All of it, as words.
    pub fn words(&self) -> &[AtomicU64] {
        let words = self.0.bytes / WORD_BYTES;
        // SAFETY: the mapping is page-aligned, readable and writable, and of that size, which is sealed; zeroed or not,
        // any bits are a u64; every process accesses it atomically as far as we are concerned, since a data race with
        // another process can only change values, and atomic access allows for that.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast::<AtomicU64>(), words) }
    }
}

/// Shared memory that can only be read.
pub struct ReadMemory(Mapping);

impl ReadMemory {
    /// All of it, as words.
    pub fn words(&self) -> &[Word] {
        let words = self.0.bytes / WORD_BYTES;
        // SAFETY: as for `Memory::words`, but for writing, which `Word` does not offer.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr().cast::<Word>(), words) }
    }
}

/// A word that can only be read.
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// Its value now. Relaxed: put a [`fence`](std::sync::atomic::fence) behind it where order matters, because only
    /// relaxed loads are promised to work on memory that cannot be written.
    pub fn load(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_mapping_writes_another_reads() {
        let memory = SharedMemory::create("test", 4096).unwrap();
        let passed = SharedMemory::from_fd(memory.fd().try_clone_to_owned().unwrap()).unwrap();
        let (writer, reader) = (memory.map_writer().unwrap(), passed.map_reader().unwrap());
        drop(memory);
        writer.words()[511].store(42, Ordering::Relaxed);
        assert_eq!((reader.words().len(), reader.words()[511].load()), (512, 42));
    }

    #[test]
    fn sealed_size_can_never_change() {
        let memory = SharedMemory::create("test", 8192).unwrap();
        for bytes in [0, 4096, 16384] {
            assert_eq!(ftruncate(memory.fd(), bytes), Err(rustix::io::Errno::PERM));
        }
        assert!(fcntl_add_seals(memory.fd(), SealFlags::WRITE).is_err());
    }

    #[test]
    fn foreign_memory_is_refused_unless_sealed_and_whole() {
        let unsealed = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&unsealed, 4096).unwrap();
        assert!(matches!(SharedMemory::from_fd(unsealed), Err(Error::NotSealed)));

        let odd = memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&odd, 4097).unwrap();
        fcntl_add_seals(&odd, SEALS).unwrap();
        assert!(matches!(SharedMemory::from_fd(odd), Err(Error::Size { bytes: 4097 })));

        let file = std::fs::File::open("/proc/self/stat").unwrap();
        assert!(matches!(SharedMemory::from_fd(file.into()), Err(Error::NotSealed)));
        assert!(matches!(SharedMemory::create("test", 0), Err(Error::Size { bytes: 0 })));
    }
}
