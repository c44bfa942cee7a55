//! A connection's bytes, as every layer above sees them: over sockets, over TLS, or in memory.

use std::future::{Future, ready};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::buffer::{Buffer, Size};
use crate::output::Output;
use crate::socket::PeerProcess;
use crate::splice::Pipe;
use crate::stop::{Reason, Stop};

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its [`Stop`] was triggered. Side: ours.
    #[error("stopped: {0:?}")]
    Stopped(Reason),
    /// The kernel or the peer. Side: peer, mostly.
    #[error(transparent)]
    Io(io::Error),
}

/// Inside an [`io::Error`]: the operation was not stopped itself, but what its bytes go through was, by us.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("stopped: {0:?}")]
pub struct Halted(pub Reason);

impl Halted {
    /// What an error says of it.
    pub fn inside(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

impl From<Halted> for io::Error {
    fn from(halted: Halted) -> io::Error {
        io::Error::other(halted)
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        match Halted::inside(&error) {
            Some(Halted(reason)) => Error::Stopped(reason),
            None => Error::Io(error),
        }
    }
}

impl From<Reason> for Error {
    fn from(reason: Reason) -> Error {
        Error::Stopped(reason)
    }
}

impl Error {
    /// Whether the peer ended the connection hard, or was gone already.
    pub fn is_reset(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match self {
            Error::Io(error) => {
                matches!(error.kind(), ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected)
            }
            Error::Stopped(_) => false,
        }
    }

    /// Why it was stopped, if it was.
    pub fn stopped(&self) -> Option<Reason> {
        match self {
            Error::Stopped(reason) => Some(*reason),
            Error::Io(_) => None,
        }
    }
}

/// What an idle connection turns out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Open, and silent.
    Open,
    /// Bytes wait to be received.
    Data,
    /// Ended, reset or broken.
    Closed,
}

/// A connected byte stream. Methods take `&self`: one reader and one writer may be in flight at once, also from the
/// same task. Two readers or two writers at once are a bug of the caller.
///
/// `fill`, `flush` and `splice_to` must be awaited to their end; use the [`Stop`] to end them early. Dropping one is
/// sound, but may lose bytes: the connection is useless afterwards. Layers above race only `readable` and
/// [`Stop::stopped`].
pub trait Stream: 'static {
    /// Waits until there is something to receive, be it the end or an error. Holds no buffer; may be dropped at any
    /// time.
    fn readable(&self) -> impl Future<Output = io::Result<()>>;

    /// Receives into the spare room without waiting. `None`: nothing there. `Some(0)`: the end.
    ///
    /// # Errors
    /// What the kernel says; also when the buffer has no spare room.
    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>>;

    /// Receives behind what `output` has, without waiting: into a buffer of this size, or, where the bytes are in memory
    /// already, a few such buffers' worth from where they are. Results as of [`try_fill`](Stream::try_fill).
    ///
    /// # Errors
    /// What the kernel says.
    fn try_receive(&self, output: &mut Output, size: Size) -> io::Result<Option<usize>> {
        let mut buffer = Buffer::take(size);
        let received = self.try_fill(&mut buffer)?;
        output.push(buffer.slice(0..buffer.len()));
        Ok(received)
    }

    /// Looks whether an idle connection is still good, without taking anything.
    fn check_idle(&self) -> io::Result<Idle>;

    /// Receives at least one byte into the spare room; 0 is the end. When the stop is triggered while bytes arrive, the
    /// bytes win: they are returned, and the next operation fails.
    fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> impl Future<Output = Result<usize, Error>>;

    /// Sends all of `output`; it is empty after success. After an error it holds what was not sent.
    fn flush(&self, output: &mut Output, stop: &Stop) -> impl Future<Output = Result<(), Error>>;

    /// Tells the peer that nothing more will come, and goes on receiving.
    fn shutdown_write(&self) -> io::Result<()>;

    /// Makes the close, whenever it happens, a reset: the peer learns that the bytes so far are not all.
    fn reset_on_close(&self);

    /// Moves up to `max` bytes to another stream without showing them to us, waiting for the first; 0 is the end. All
    /// that was taken has been handed to `to` when this succeeds.
    fn splice_to(
        &self,
        to: &Self,
        pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
    ) -> impl Future<Output = Result<usize, Error>> {
        self.splice_telling(to, pipe, max, stop, |_waiting| {})
    }

    /// Like [`splice_to`](Stream::splice_to), and tells how many bytes wait for `to` each time that it has to be waited
    /// for. The pipe is not empty after an error that is the doing of `to`, if bytes went through it. Where nothing is said of it,
    /// it is unsupported, and no byte is taken.
    fn splice_telling(
        &self,
        _to: &Self,
        _pipe: &mut Pipe,
        _max: usize,
        _stop: &Stop,
        _waiting: impl FnMut(usize),
    ) -> impl Future<Output = Result<usize, Error>> {
        ready(Err(Error::Io(io::ErrorKind::Unsupported.into())))
    }

    /// Whether the connection was reset although reading says that it has ended in order: of several operations that are
    /// in flight when a reset comes, one is told of it. Only while our own side is open.
    fn is_torn(&self) -> bool {
        false
    }

    /// Has the kernel ask whether the other end is still there after so much silence, and end the connection when nobody
    /// answers. Nothing where that cannot be asked.
    fn keep_alive(&self, _silence: Duration) {}

    /// The other end's address, if it has one.
    fn peer_address(&self) -> Option<SocketAddr>;

    /// Our own end's address, if it has one.
    fn local_address(&self) -> Option<SocketAddr> {
        None
    }

    /// Where an accepted connection went before the kernel brought it to us (`SO_ORIGINAL_DST`, `IP6T_SO_ORIGINAL_DST`). That
    /// of one that was not brought anywhere is [`Self::local_address`], or nothing.
    fn original_destination(&self) -> Option<SocketAddr> {
        None
    }
}

/// A connection with nothing around it yet, as it was accepted: what comes before everything else can be taken without
/// taking what follows.
pub trait Bare: Stream {
    /// Copies bytes that are there to the front of `into`, and leaves them there. `None`: nothing; `Some(0)`: the end.
    ///
    /// # Errors
    /// What the kernel says.
    fn try_peek(&self, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Takes as many bytes as `into` has room for, or all that are there if they are fewer. Results as of
    /// [`Self::try_peek`].
    ///
    /// # Errors
    /// What the kernel says.
    fn try_take(&self, into: &mut [u8]) -> io::Result<Option<usize>>;

    /// Who is at the other end of a Unix socket. Without meaning for others.
    fn peer_process(&self) -> Option<PeerProcess> {
        None
    }
}
