//! What the reader, the writer and a close under way share of one connection.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ringmesh_ring::{Buffer, Error, Instant, Output, Stop, Stream, spawn};

use super::limits::CLOSE_TIMEOUT;
use super::reading::{Decoded, Reading};
use super::session::Session;
use super::writing::{seal, seal_close};

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

/// Frees the lists that this thread keeps.
pub fn free_unused() {
    SEALED.with(|pool| drop(pool.take()));
}

impl<S: Stream> Shared<S> {
    pub(super) fn new(inner: S, session: Session) -> Rc<Self> {
        let state = RefCell::new(State { session, reading: Reading::new(), pending: Vec::new() });
        Rc::new(Self { inner, state, writing: Cell::new(false), writer: Cell::new(Writer::Open) })
    }

    pub(super) fn decode(&self, buffer: &mut Buffer) -> io::Result<Decoded> {
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
    pub(super) async fn send(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
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

    /// close_notify (after a failed read its alert, if that is still here), then the transport's half-close. Where the
    /// kernel has no room, both go on in a task of their own.
    pub(super) fn close(self: &Rc<Self>) -> io::Result<()> {
        debug_assert!(!self.writing.get(), "the writer has ended before it says so");
        let mut sealed = Output::new();
        match self.writer.get() {
            Writer::Closed => return Ok(()),
            Writer::Broken => {}
            Writer::Open => {
                let State { session, reading, pending } = &mut *self.state.borrow_mut();
                if reading.failed() {
                    sealed.push_bytes(pending);
                } else {
                    seal_close(session, reading.held(), &mut sealed);
                }
            }
        }
        self.writer.set(Writer::Closed);
        let shared = self.clone();
        let mut close = Box::pin(async move {
            let stop = Stop::new();
            stop.set_deadline(Some(Instant::now() + CLOSE_TIMEOUT));
            // A peer that does not take it sees the end without it, which is what happened.
            let _ = shared.inner.flush(&mut sealed, &stop).await;
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

    /// After a failed read: sends the alert, unless a write is in flight, which then sends it before it fails.
    pub(super) async fn report(&self, stop: &Stop) {
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
