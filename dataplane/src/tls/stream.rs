//! An established TLS connection as a stream like any other.
//!
//! rustls does no I/O here and keeps no bytes: ciphertext is received into a pool buffer that is given back when it is
//! used up, and records are sealed into pool buffers that the kernel's send gives back. State is borrowed between
//! awaits only, so that one reader and one writer may be in flight at once.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ringmesh_ring::{BUFFER_BYTES, Buffer, Error, Idle, Instant, Output, Pipe, Size, Stop, Stream, spawn};

use super::limits::CLOSE_TIMEOUT;
use super::reading::{Decoded, Reading};
use super::session::Session;
use super::writing::{seal, seal_close};

/// A TLS connection over `S`. Its handshake is over and the peer is known.
pub struct TlsStream<S> {
    pub(super) shared: Rc<Shared<S>>,
}

/// What stream, reader, writer and a close under way share.
pub(super) struct Shared<S> {
    pub(super) inner: S,
    pub(super) state: RefCell<State>,
    /// A write is in flight.
    writing: Cell<bool>,
    writer: Cell<Writer>,
}

pub(super) struct State {
    pub(super) session: Session,
    pub(super) reading: Reading,
    /// Records to be sent that no caller's bytes asked for: after the handshake, the alert that tells the peer why it
    /// is refused. (The answer to a key update stays in rustls and goes out before the next record, as RFC 8446
    /// section 4.6.3 asks.)
    pub(super) pending: Vec<u8>,
}

/// What may still be sent.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Open,
    /// close_notify was sealed, and nothing may follow it.
    Closed,
    /// A send failed or was abandoned in the middle of a record.
    Broken,
}

thread_local! {
    /// Lists for sealed records that no send uses, with their storage warm.
    static SEALED: RefCell<Vec<Output>> = const { RefCell::new(Vec::new()) };
}

/// Lists that a thread keeps; more sends at once than this allocate.
const MAX_POOLED_OUTPUTS: usize = 256;

impl<S: Stream> Shared<S> {
    pub(super) fn new(inner: S, session: Session) -> Rc<Self> {
        let state = RefCell::new(State { session, reading: Reading::new(), pending: Vec::new() });
        Rc::new(Self { inner, state, writing: Cell::new(false), writer: Cell::new(Writer::Open) })
    }

    fn decode(&self, buffer: &mut Buffer) -> io::Result<Decoded> {
        let State { session, reading, pending } = &mut *self.state.borrow_mut();
        reading.decode(session, buffer, pending)
    }

    pub(super) fn lend(&self) -> io::Result<Buffer> {
        self.state.borrow_mut().reading.lend()
    }

    pub(super) fn give_back(&self, input: Buffer, received: Option<usize>) {
        self.state.borrow_mut().reading.give_back(input, received);
    }

    /// Sends `output`, or what is pending if it is none.
    async fn send(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if let Some(reason) = stop.reason() {
            return Err(Error::Stopped(reason));
        }
        let writing = Writing::begin(self)?;
        let mut sealed = SEALED.with(|pool| pool.borrow_mut().pop()).unwrap_or_default();
        loop {
            self.seal(output, &mut sealed)?;
            if sealed.is_empty() {
                break;
            }
            self.inner.flush(&mut sealed, stop).await?;
        }
        writing.end();
        SEALED.with(|pool| {
            let mut pool = pool.borrow_mut();
            if pool.len() < MAX_POOLED_OUTPUTS {
                pool.push(sealed);
            }
        });
        Ok(())
    }

    /// Seals the next part of `output`. Once the reader has found the connection broken, only its alert goes out.
    fn seal(&self, output: &mut Output, sealed: &mut Output) -> io::Result<()> {
        let State { session, reading, pending } = &mut *self.state.borrow_mut();
        if !pending.is_empty() {
            sealed.push_bytes(pending);
            *pending = Vec::new();
        } else if reading.failed() {
            if !output.is_empty() {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
        } else {
            seal(session, reading.held(), output, sealed).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// After a failed read: sends the alert, unless a write is in flight, which then sends it before it fails.
    async fn report(&self, stop: &Stop) {
        if !self.state.borrow().pending.is_empty() && !self.writing.get() {
            // The connection is lost anyhow, and the reader's error says why.
            let _ = self.send(&mut Output::new(), stop).await;
        }
    }
}

/// The turn of the one writer. Dropped without [`Writing::end`], the connection takes no more data.
struct Writing<'a, S>(&'a Shared<S>);

impl<'a, S> Writing<'a, S> {
    fn begin(shared: &'a Shared<S>) -> io::Result<Self> {
        if shared.writer.get() != Writer::Open || shared.writing.replace(true) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        Ok(Self(shared))
    }

    fn end(self) {
        self.0.writing.set(false);
        std::mem::forget(self);
    }
}

impl<S> Drop for Writing<'_, S> {
    fn drop(&mut self) {
        self.0.writing.set(false);
        self.0.writer.set(Writer::Broken);
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    async fn readable(&self) -> io::Result<()> {
        if self.shared.state.borrow().reading.ready() {
            return Ok(());
        }
        self.shared.inner.readable().await
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        loop {
            match self.shared.decode(buffer)? {
                Decoded::Bytes(added) => return Ok(Some(added)),
                Decoded::End => return Ok(Some(0)),
                Decoded::Starved => {}
            }
            let mut input = self.shared.lend()?;
            let received = self.shared.inner.try_fill(&mut input);
            self.shared.give_back(input, received.as_ref().ok().copied().flatten());
            if received?.is_none() {
                return Ok(None);
            }
        }
    }

    /// A peer's session ticket or key update is taken without being data.
    fn check_idle(&self) -> io::Result<Idle> {
        if self.shared.state.borrow().reading.quiet() {
            match self.shared.inner.check_idle()? {
                Idle::Data => {}
                other => return Ok(other),
            }
        }
        let mut probe = Buffer::take(Size::Small);
        match self.try_fill(&mut probe) {
            Ok(Some(0)) | Err(_) => Ok(Idle::Closed),
            Ok(Some(_)) => {
                self.shared.state.borrow_mut().reading.unread(probe.filled());
                Ok(Idle::Data)
            }
            Ok(None) if self.shared.state.borrow().reading.quiet() => Ok(Idle::Open),
            Ok(None) => Ok(Idle::Data),
        }
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        loop {
            match self.shared.decode(buffer) {
                Ok(Decoded::Bytes(added)) => return Ok(added),
                Ok(Decoded::End) => return Ok(0),
                Ok(Decoded::Starved) => {}
                Err(error) => {
                    self.shared.report(stop).await;
                    return Err(error.into());
                }
            }
            let mut input = self.shared.lend()?;
            let received = self.shared.inner.fill(&mut input, stop).await;
            self.shared.give_back(input, received.as_ref().ok().copied());
            received?;
        }
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if output.is_empty() {
            return Ok(());
        }
        self.shared.send(output, stop).await
    }

    /// close_notify, then the transport's half-close. Where the kernel has no room for the former, both go on in a task
    /// of their own, also when this stream is dropped. Not to be called while a flush is in flight.
    fn shutdown_write(&self) -> io::Result<()> {
        let shared = &self.shared;
        debug_assert!(!shared.writing.get(), "the writer has ended before it says so");
        let mut sealed = Output::new();
        match shared.writer.replace(Writer::Closed) {
            Writer::Closed => return Ok(()),
            Writer::Broken => shared.writer.set(Writer::Broken),
            Writer::Open => {
                let State { session, reading, .. } = &mut *shared.state.borrow_mut();
                if !reading.failed() {
                    seal_close(session, reading.held(), &mut sealed);
                }
            }
        }
        let shared = shared.clone();
        let mut close = Box::pin(async move {
            let stop = Stop::new();
            stop.set_deadline(Some(Instant::now() + CLOSE_TIMEOUT));
            if !sealed.is_empty() {
                // A peer that does not take it will see the end without it, which is what happened.
                let _ = shared.inner.flush(&mut sealed, &stop).await;
            }
            shared.inner.shutdown_write()
        });
        match close.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(result) => result,
            Poll::Pending => {
                spawn(async move {
                    let _ = close.await;
                });
                Ok(())
            }
        }
    }

    fn reset_on_close(&self) {
        self.shared.inner.reset_on_close();
    }

    /// Copies: the bytes have to pass through the cipher.
    async fn splice_to(&self, to: &Self, _pipe: &mut Pipe, max: usize, stop: &Stop) -> Result<usize, Error> {
        let mut buffer = Buffer::take(if max > BUFFER_BYTES { Size::Large } else { Size::Small });
        let received = self.fill(&mut buffer, stop).await?;
        let taken = received.min(max);
        if taken < received {
            self.shared.state.borrow_mut().reading.unread(&buffer.filled()[taken..]);
        }
        let mut output = Output::new();
        output.push(buffer.slice(0..taken));
        to.flush(&mut output, stop).await?;
        Ok(taken)
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        self.shared.inner.peer_address()
    }
}
