//! Moving bulk between two sockets through a pipe, so that the bytes never visit user space.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// What a pipe is asked to hold: the most that an unprivileged process may ask for by default
/// (`/proc/sys/fs/pipe-max-size`). More per turn means fewer system calls.
const PIPE_BYTES: usize = 1024 * 1024;

/// What a pipe holds when asking for more is refused.
const DEFAULT_PIPE_BYTES: usize = 64 * 1024;

/// A pipe for [`Stream::splice_to`](crate::Stream::splice_to). Empty between calls, unless one failed: then drop it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    held: usize,
}

impl Pipe {
    /// A pipe as large as the kernel lets us have. The user's share of pipe memory (`pipe-user-pages-soft`) may keep it
    /// small, which costs speed alone.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn new() -> io::Result<Pipe> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let sizes = [PIPE_BYTES, PIPE_BYTES / 4];
        let capacity = sizes.into_iter().find_map(|size| fcntl_setpipe_size(&write, size).ok());
        Ok(Pipe { read, write, capacity: capacity.unwrap_or(DEFAULT_PIPE_BYTES), held: 0 })
    }

    /// Bytes it can hold.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes inside.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Whether nothing is left inside. A pipe that is not empty after an error must not be used for another pair.
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes from `from` what is there. `None`: nothing; `Some(0)`: the end. `from` must be non-blocking.
    pub(crate) fn take(&mut self, from: BorrowedFd<'_>, max: usize) -> io::Result<Option<usize>> {
        let max = max.min(self.capacity);
        match splice(from, None, self.write.as_fd(), None, max, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
            Ok(taken) => {
                self.held += taken;
                Ok(Some(taken))
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Gives what is held to `to`, as far as it takes it now; false when some is left. `to` must be non-blocking.
    pub(crate) fn give(&mut self, to: BorrowedFd<'_>) -> io::Result<bool> {
        while self.held > 0 {
            match splice(self.read.as_fd(), None, to, None, self.held, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(given) => self.held -= given,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }
}
