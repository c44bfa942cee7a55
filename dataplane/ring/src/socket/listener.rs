//! Accepting clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use monoio::net::UnixStream;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};

use crate::fair::waitable;
use crate::runtime::{Mode, mode};

/// A listening socket that this worker accepts from. Closing it leaves it open wherever else the descriptor is held.
pub struct Listener {
    descriptor: OwnedFd,
    waiter: UnixStream,
}

impl Listener {
    /// Takes over a listening socket. It becomes non-blocking, for all who share it: another worker may be faster.
    ///
    /// # Errors
    /// When descriptors are exhausted, or epoll refuses it.
    ///
    /// # Panics
    /// Outside a worker.
    pub fn from_fd(descriptor: OwnedFd) -> io::Result<Listener> {
        let flags = fcntl_getfl(&descriptor)?;
        if !flags.contains(OFlags::NONBLOCK) {
            fcntl_setfl(&descriptor, flags | OFlags::NONBLOCK)?;
        }
        let waiter = waitable(descriptor.try_clone()?)?;
        Ok(Listener { descriptor, waiter })
    }

    /// Waits until a client may be there. May be dropped at any time.
    ///
    /// # Errors
    /// What the kernel says about the listener.
    pub async fn readable(&self) -> io::Result<()> {
        self.waiter.readable(false).await
    }

    /// Takes a client if one is there, with its address if it has one. The descriptor suits
    /// [`Socket::from_fd`](crate::Socket::from_fd) on any worker of this kind.
    ///
    /// # Errors
    /// What the kernel says; [`is_out_of_descriptors`] tells apart the case in which the client still waits, and the
    /// listener stays readable until descriptors are free again.
    pub fn accept(&self) -> io::Result<Option<(OwnedFd, Option<SocketAddr>)>> {
        let mut flags = SocketFlags::CLOEXEC;
        if mode() == Mode::Epoll {
            flags |= SocketFlags::NONBLOCK;
        }
        loop {
            match acceptfrom_with(&self.descriptor, flags) {
                Ok((client, address)) => return Ok(Some((client, address.and_then(|any| any.try_into().ok())))),
                Err(Errno::AGAIN) => return Ok(None),
                // This client is gone already; the next may not be (accept(2): treat like EAGAIN by retrying).
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listener").field(&self.descriptor).finish()
    }
}

/// Whether a call failed for want of descriptors or memory: the process's limit, the machine's, or socket memory.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
