//! Accepting clients.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use monoio::net::UnixStream;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{SocketFlags, acceptfrom_with};
use socket2::{Domain, SockFilter, SockRef};

use super::tcp;
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
        // It may have been given up before: see `refuse_newcomers`. Without a filter there is nothing to take off.
        let _ = SockRef::from(&descriptor).detach_filter();
        let waiter = waitable(descriptor.try_clone()?)?;
        Ok(Listener { descriptor, waiter })
    }

    /// Waits until a client may be there, be it one that was there before and not taken. May be dropped at any time.
    ///
    /// # Errors
    /// What the kernel says about the listener.
    pub async fn readable(&self) -> io::Result<()> {
        self.waiter.readable(false).await
    }

    /// Sets what clients that come from now on have from their listener, see [`set_client_options`](super::set_client_options).
    pub fn set_client_options(&self, silence: Option<Duration>) {
        tcp::set_client_options(self.descriptor.as_fd(), silence);
    }

    /// Takes a client if one is there, with its address if it has one.
    ///
    /// # Errors
    /// What the kernel says; [`is_out_of_descriptors`] tells apart the case in which the client still waits, and the
    /// listener stays readable until descriptors are free again.
    pub fn accept(&self) -> io::Result<Option<(Accepted, Option<SocketAddr>)>> {
        let mut flags = SocketFlags::CLOEXEC;
        if mode() == Mode::Epoll {
            flags |= SocketFlags::NONBLOCK;
        }
        loop {
            match acceptfrom_with(&self.descriptor, flags) {
                Ok((client, address)) => {
                    return Ok(Some((Accepted(client), address.and_then(|any| any.try_into().ok()))));
                }
                Err(Errno::AGAIN) => return Ok(None),
                // This client is gone already; the next may not be (accept(2): treat like EAGAIN by retrying).
                Err(Errno::INTR | Errno::CONNABORTED | Errno::PROTO | Errno::PERM) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// A client's connection, which blocks or not as the driver of all workers wants it.
#[derive(Debug)]
pub struct Accepted(pub(super) OwnedFd);

impl AsFd for Accepted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listener").field(&self.descriptor).finish()
    }
}

/// Lets no new client begin to connect to a TCP listener, wherever its descriptor is held: those whose handshake is under
/// way finish it and can be accepted. Once they are, closing the listener resets nobody. [`Listener::from_fd`] undoes it.
///
/// # Errors
/// What the kernel says. A Unix socket has no handshake, and stays as it is.
pub fn refuse_newcomers(listener: impl AsFd) -> io::Result<()> {
    const FLAGS_OFFSET: u32 = 13;
    const SYN: u32 = 0x02;
    const SYN_ACK: u32 = 0x12;
    // Classic BPF over the TCP header (packet(7)): load the flags, keep SYN and ACK, drop what has SYN alone.
    let first_packets = [
        SockFilter::new((libc::BPF_LD | libc::BPF_B | libc::BPF_ABS) as u16, 0, 0, FLAGS_OFFSET),
        SockFilter::new((libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16, 0, 0, SYN_ACK),
        SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, 0, 1, SYN),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, 0),
        SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, u32::MAX),
    ];
    let socket = SockRef::from(&listener);
    if socket.domain()? == Domain::UNIX {
        return Ok(());
    }
    socket.attach_filter(&first_packets)
}

/// Whether a call failed for want of descriptors or memory: the process's limit, the machine's, or socket memory.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}
