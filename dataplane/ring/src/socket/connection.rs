//! A connected TCP or Unix socket.

use std::cell::{Cell, UnsafeCell};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use monoio::io::{CancelableAsyncReadRent, CancelableAsyncWriteRent};
use monoio::net::UnixStream;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, Shutdown, SocketFlags, SocketType, sockopt};

use socket2::SockRef;

use super::in_flight::{Filling, SendingMany, SendingOne};
use super::listener::Accepted;
use super::tcp;
use super::unix::{self, PeerProcess};
use crate::buffer::Buffer;
use crate::clock::Instant;
use crate::net::Address;
use crate::output::Output;
use crate::runtime::{Mode, mode, sleep_until};
use crate::splice::Pipe;
use crate::stop::Stop;
use crate::stream::{Bare, Error, Idle, Stream};

/// A connected stream socket that belongs to this worker.
///
/// On io_uring its descriptor is blocking (a ring receive on a non-blocking one answers EAGAIN instead of waiting), on
/// epoll it is non-blocking. While it takes part in splicing it is non-blocking everywhere, because `splice(2)` has no
/// other way to say that it must not wait.
pub struct Socket {
    /// monoio's Unix type serves all stream sockets: it only ever receives, sends and polls, and is a third of the size
    /// of its TCP type.
    stream: UnsafeCell<UnixStream>,
    reading: Cell<bool>,
    writing: Cell<bool>,
    nonblocking: Cell<bool>,
}

impl Socket {
    /// Takes over a client that was accepted by this worker or another.
    ///
    /// # Errors
    /// When epoll refuses it.
    ///
    /// # Panics
    /// Outside a worker.
    pub fn accepted(Accepted(descriptor): Accepted) -> io::Result<Socket> {
        Socket::wrap(descriptor, mode() == Mode::Epoll)
    }

    /// Takes over a connected socket, for instance one that was handed over by another worker.
    ///
    /// # Errors
    /// When the descriptor's flags cannot be changed, or epoll refuses it.
    ///
    /// # Panics
    /// Outside a worker.
    pub fn from_fd(descriptor: OwnedFd) -> io::Result<Socket> {
        let nonblocking = mode() == Mode::Epoll;
        let flags = fcntl_getfl(&descriptor)?;
        if flags.contains(OFlags::NONBLOCK) != nonblocking {
            fcntl_setfl(&descriptor, flags ^ OFlags::NONBLOCK)?;
        }
        Socket::wrap(descriptor, nonblocking)
    }

    fn wrap(descriptor: OwnedFd, nonblocking: bool) -> io::Result<Socket> {
        assert!(matches!(mode(), Mode::IoUring | Mode::Epoll), "a socket belongs to a worker");
        Ok(Socket {
            stream: UnsafeCell::new(UnixStream::from_std(StdUnixStream::from(descriptor))?),
            reading: Cell::new(false),
            writing: Cell::new(false),
            nonblocking: Cell::new(nonblocking),
        })
    }

    /// Connects. TCP connections get `TCP_NODELAY`, and the mark if there is one.
    ///
    /// # Errors
    /// What the kernel says about the peer, or that it was stopped.
    pub async fn connect(address: &Address, mark: Option<u32>, stop: &Stop) -> Result<Socket, Error> {
        // The wait is one for readiness, so that it can be dropped: nothing is lost but an attempt.
        let descriptor = match address {
            Address::Ip(address) => {
                let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
                let descriptor = open(family)?;
                sockopt::set_tcp_nodelay(&descriptor, true).map_err(io::Error::from)?;
                if let Some(mark) = mark {
                    SockRef::from(&descriptor).set_mark(mark)?;
                }
                match rustix::net::connect(&descriptor, address) {
                    Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => {}
                    Err(error) => return Err(io::Error::from(error).into()),
                }
                descriptor
            }
            Address::Unix(path) => {
                let descriptor = open(AddressFamily::UNIX)?;
                let path = unix::address(path)?;
                // A Unix socket whose listener has a full backlog says so at once, and tells nobody when that changes.
                let mut pause = Duration::from_millis(1);
                loop {
                    match rustix::net::connect(&descriptor, &path) {
                        Ok(()) => break,
                        Err(Errno::AGAIN) => {
                            // Boxed: it is rare, and a timer entry would make every connect's future large.
                            race(Box::pin(sleep_until(Instant::now() + pause)), stop).await?;
                            pause = (pause * 2).min(Duration::from_millis(50));
                        }
                        Err(error) => return Err(io::Error::from(error).into()),
                    }
                }
                descriptor
            }
        };
        let socket = Socket::wrap(descriptor, true)?;
        race(socket.writable(), stop).await??;
        sockopt::socket_error(socket.descriptor()).map_err(io::Error::from)?.map_err(io::Error::from)?;
        if mode() == Mode::IoUring {
            socket.set_nonblocking(false)?;
        }
        Ok(socket)
    }

    /// Gives the connection away, for instance to another worker or process.
    ///
    /// # Errors
    /// When descriptors are exhausted.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        // A duplicate: a wait that was dropped a moment ago may still hold the original for one turn.
        Ok(rustix::io::fcntl_dupfd_cloexec(self.descriptor(), 0)?)
    }

    /// The socket's descriptor, for options that have no method here. Whether it blocks must be left alone.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        let raw = self.waiter().as_raw_fd();
        // SAFETY: the stream owns the descriptor and lives as long as the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(raw) }
    }

    async fn writable(&self) -> io::Result<()> {
        loop {
            match self.waiter().writable(false).await {
                Err(error) if is_cancelled(&error) => {}
                result => return result,
            }
        }
    }

    /// The stream, to wait for readiness or to read its descriptor's number.
    fn waiter(&self) -> &UnixStream {
        // SAFETY: nobody has an exclusive reference that is still going to be used: see `receive` and `send`.
        unsafe { &*self.stream.get() }
    }

    /// Receives once through the ring or epoll. Bytes that came are in the buffer, also when it was cancelled.
    async fn receive(&self, buffer: &mut Buffer, stop: &Stop) -> Result<io::Result<usize>, Error> {
        let (handle, operation) = stop.begin()?;
        // SAFETY: monoio's operations are async functions that use the exclusive reference once, in their first poll,
        // to clone the counted descriptor; after that they only carry it. So of several such references (a reader, a
        // writer, a wait) at most one is used at any moment, and never one that another was derived from. monoio's own
        // `Split` for this type rests on the same fact.
        let stream = unsafe { &mut *self.stream.get() };
        let (result, filling) = stream.cancelable_read(Filling::take(buffer), handle).await;
        filling.give_back(buffer);
        drop(operation);
        Ok(result)
    }

    /// Sends once: one piece plainly, several as a vector.
    async fn send(&self, output: &mut Output, stop: &Stop) -> Result<io::Result<usize>, Error> {
        let (handle, operation) = stop.begin()?;
        let parts = output.take_parts();
        // SAFETY: as in `receive`.
        let stream = unsafe { &mut *self.stream.get() };
        let result = if parts.is_one_piece() {
            let (result, sending) = stream.cancelable_write(SendingOne::new(parts), handle).await;
            output.put_parts(sending.into_parts());
            result
        } else {
            let (result, sending) = stream.cancelable_writev(SendingMany::new(parts), handle).await;
            output.put_parts(sending.into_parts());
            result
        };
        drop(operation);
        Ok(result)
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        if self.nonblocking.replace(nonblocking) != nonblocking {
            // A socket's other status flags are all off.
            fcntl_setfl(self.descriptor(), if nonblocking { OFlags::NONBLOCK } else { OFlags::empty() })?;
        }
        Ok(())
    }
}

impl Stream for Socket {
    async fn readable(&self) -> io::Result<()> {
        loop {
            match self.waiter().readable(false).await {
                // Left over from a cancelled operation (epoll keeps it until somebody looks).
                Err(error) if is_cancelled(&error) => {}
                result => return result,
            }
        }
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        refuse_full(buffer)?;
        let received = receive_now(self.descriptor(), buffer.spare_mut(), RecvFlags::empty())?;
        buffer.commit(received.unwrap_or_default());
        Ok(received)
    }

    fn check_idle(&self) -> io::Result<Idle> {
        let mut byte = [0];
        match rustix::net::recv(self.descriptor(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((0, _)) => Ok(Idle::Closed),
            Ok(_) => Ok(Idle::Data),
            Err(Errno::AGAIN | Errno::INTR) => Ok(Idle::Open),
            Err(Errno::CONNRESET | Errno::NOTCONN | Errno::TIMEDOUT | Errno::PIPE) => Ok(Idle::Closed),
            Err(error) => Err(error.into()),
        }
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        refuse_full(buffer)?;
        let _turn = Turn::take(&self.reading);
        loop {
            match self.receive(buffer, stop).await? {
                Ok(received) => return Ok(received),
                // Either the stop says why, or it is a cancellation meant for an operation that had ended already.
                Err(error) if is_cancelled(&error) => {}
                // Somebody made the descriptor non-blocking: splicing, or another holder of it.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => race(self.readable(), stop).await??,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if output.is_empty() {
            return Ok(());
        }
        let _turn = Turn::take(&self.writing);
        if mode() == Mode::IoUring {
            self.set_nonblocking(false)?;
        }
        while !output.is_empty() {
            match self.send(output, stop).await? {
                Ok(0) => return Err(Error::Io(io::ErrorKind::WriteZero.into())),
                Ok(sent) => output.advance(sent),
                Err(error) if is_cancelled(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => race(self.writable(), stop).await??,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn shutdown_write(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(self.descriptor(), Shutdown::Write)?)
    }

    fn reset_on_close(&self) {
        // Without it the close is an ordinary one, which is no reason to fail.
        let _ = sockopt::set_socket_linger(self.descriptor(), Some(Duration::ZERO));
    }

    async fn splice_telling(
        &self,
        to: &Socket,
        pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
        mut waiting: impl FnMut(usize),
    ) -> Result<usize, Error> {
        let _reading = Turn::take(&self.reading);
        let _writing = Turn::take(&to.writing);
        let taken = loop {
            race(self.readable(), stop).await??;
            self.set_nonblocking(true)?;
            if let Some(taken) = pipe.take(self.descriptor(), max)? {
                break taken;
            }
        };
        to.set_nonblocking(true)?;
        while !pipe.give(to.descriptor())? {
            waiting(pipe.held());
            race(to.writable(), stop).await??;
            to.set_nonblocking(true)?;
        }
        Ok(taken)
    }

    fn is_torn(&self) -> bool {
        tcp::is_closed(self.descriptor())
    }

    fn keep_alive(&self, silence: Duration) {
        tcp::keep_alive(self.descriptor(), Some(silence));
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        rustix::net::getpeername(self.descriptor()).ok().flatten()?.try_into().ok()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(self.descriptor()).ok()?.try_into().ok()
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        let descriptor = self.descriptor();
        let socket = SockRef::from(&descriptor);
        // A listener of all addresses has IPv4's in their mapped form (RFC 4291 section 2.5.5.2).
        let is_ipv4 = self.local_address()?.ip().to_canonical().is_ipv4();
        let original = if is_ipv4 { socket.original_dst_v4() } else { socket.original_dst_v6() };
        original.ok()?.as_socket()
    }
}

impl Bare for Socket {
    fn try_peek(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        receive_now(self.descriptor(), into, RecvFlags::PEEK)
    }

    fn try_take(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        receive_now(self.descriptor(), into, RecvFlags::empty())
    }

    fn peer_process(&self) -> Option<PeerProcess> {
        unix::peer_process(self.descriptor())
    }
}

/// Receives what is there without waiting.
fn receive_now(socket: BorrowedFd<'_>, into: &mut [u8], flags: RecvFlags) -> io::Result<Option<usize>> {
    loop {
        match rustix::net::recv(socket, &mut *into, flags | RecvFlags::DONTWAIT) {
            Ok((received, _)) => return Ok(Some(received)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Socket").field(&self.waiter().as_raw_fd()).finish()
    }
}

fn open(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socket_with(family, SocketType::STREAM, flags, None)?)
}

/// A receive into no room would report the end of the stream.
fn refuse_full(buffer: &Buffer) -> io::Result<()> {
    match buffer.spare() {
        0 => Err(io::Error::new(io::ErrorKind::InvalidInput, "no room to receive into")),
        _ => Ok(()),
    }
}

fn is_cancelled(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ECANCELED)
}

/// Awaits something that may be dropped, unless the stop comes first.
pub(crate) async fn race<F: Future>(future: F, stop: &Stop) -> Result<F::Output, Error> {
    let mut future = pin!(future);
    poll_fn(|cx| {
        if let Poll::Ready(reason) = stop.poll_stopped(cx) {
            return Poll::Ready(Err(Error::Stopped(reason)));
        }
        future.as_mut().poll(cx).map(Ok)
    })
    .await
}

/// One direction of a stream, in use.
pub(crate) struct Turn<'a>(&'a Cell<bool>);

impl<'a> Turn<'a> {
    pub(crate) fn take(taken: &'a Cell<bool>) -> Turn<'a> {
        let before = taken.replace(true);
        debug_assert!(!before, "two readers or two writers on one stream at once");
        Turn(taken)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}
