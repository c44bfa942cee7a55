//! A connection in memory: two queues of bytes.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use super::Shape;
use crate::buffer::{Buffer, Size};
use crate::output::Output;
use crate::socket::Turn;
use crate::splice::Pipe;
use crate::stop::Stop;
use crate::stream::{Bare, Error, Idle};

/// One end of a connection in memory.
pub struct Stream {
    shape: Rc<Shape>,
    incoming: Rc<Queue>,
    outgoing: Rc<Queue>,
    peer: Option<SocketAddr>,
    reset: Cell<bool>,
    reading: Cell<bool>,
    writing: Cell<bool>,
}

/// One direction.
#[derive(Default)]
struct Queue {
    bytes: RefCell<VecDeque<u8>>,
    state: Cell<State>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// The writer will send no more.
    Ended,
    /// One side has torn the connection.
    Reset,
    /// The reader is gone.
    Deaf,
}

impl Stream {
    pub(super) fn pair(shape: &Rc<Shape>, peer: Option<SocketAddr>) -> (Stream, Stream) {
        let (there, back) = (Rc::new(Queue::default()), Rc::new(Queue::default()));
        let end = |incoming: &Rc<Queue>, outgoing: &Rc<Queue>, peer| Stream {
            shape: shape.clone(),
            incoming: incoming.clone(),
            outgoing: outgoing.clone(),
            peer,
            reset: Cell::new(false),
            reading: Cell::new(false),
            writing: Cell::new(false),
        };
        (end(&back, &there, peer), end(&there, &back, None))
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.incoming.bytes.borrow().is_empty() || self.incoming.state.get() != State::Open {
            return Poll::Ready(());
        }
        self.incoming.reader.set(Some(cx.waker().clone()));
        Poll::Pending
    }

    /// Receives what is there, up to `max` bytes. `None`: nothing; `Some(0)`: the end.
    fn take(&self, buffer: &mut Buffer, max: usize) -> io::Result<Option<usize>> {
        if buffer.spare() == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no room to receive into"));
        }
        if self.incoming.state.get() == State::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let mut queue = self.incoming.bytes.borrow_mut();
        if queue.is_empty() {
            return Ok((self.incoming.state.get() != State::Open).then_some(0));
        }
        let (first, _) = queue.as_slices();
        let len = first.len().min(buffer.spare()).min(self.shape.chunk_bytes.get()).min(max);
        if let Some(filled) = &mut *self.shape.filled.borrow_mut() {
            let start = buffer.spare_mut().as_ptr().addr();
            filled.push(start..start + len);
        }
        buffer.extend_from_slice(&first[..len]).expect("cut to the spare room just above");
        queue.drain(..len);
        drop(queue);
        wake(&self.incoming.writer);
        Ok(Some(len))
    }

    async fn receive(&self, buffer: &mut Buffer, max: usize, stop: &Stop) -> Result<usize, Error> {
        let _turn = Turn::take(&self.reading);
        poll_fn(|cx| {
            if let Some(reason) = stop.reason() {
                return Poll::Ready(Err(Error::Stopped(reason)));
            }
            match self.take(buffer, max)? {
                Some(received) => Poll::Ready(Ok(received)),
                None => {
                    self.incoming.reader.set(Some(cx.waker().clone()));
                    stop.poll_stopped(cx).map(|reason| Err(Error::Stopped(reason)))
                }
            }
        })
        .await
    }

    /// Sends what fits now.
    fn try_send(&self, output: &mut Output) -> io::Result<usize> {
        match self.outgoing.state.get() {
            State::Open => {}
            State::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
            State::Ended | State::Deaf => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        let mut queue = self.outgoing.bytes.borrow_mut();
        let mut room = self.shape.capacity_bytes.get().saturating_sub(queue.len());
        let mut sent = 0;
        for slice in output.slices() {
            let part = &slice[..slice.len().min(room)];
            if let Some(flushed) = &mut *self.shape.flushed.borrow_mut()
                && !part.is_empty()
            {
                let start = part.as_ptr().addr();
                flushed.push(start..start + part.len());
            }
            queue.extend(part);
            room -= part.len();
            sent += part.len();
        }
        drop(queue);
        output.advance(sent);
        if sent > 0 {
            wake(&self.outgoing.reader);
        }
        Ok(sent)
    }
}

impl crate::stream::Stream for Stream {
    async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| self.poll_readable(cx)).await;
        Ok(())
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        self.take(buffer, usize::MAX)
    }

    fn check_idle(&self) -> io::Result<Idle> {
        Ok(match self.incoming.state.get() {
            State::Reset => Idle::Closed,
            _ if !self.incoming.bytes.borrow().is_empty() => Idle::Data,
            State::Open => Idle::Open,
            State::Ended | State::Deaf => Idle::Closed,
        })
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        self.receive(buffer, usize::MAX, stop).await
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        let _turn = Turn::take(&self.writing);
        poll_fn(|cx| {
            if output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if let Some(reason) = stop.reason() {
                return Poll::Ready(Err(Error::Stopped(reason)));
            }
            self.try_send(output)?;
            if output.is_empty() {
                return Poll::Ready(Ok(()));
            }
            self.outgoing.writer.set(Some(cx.waker().clone()));
            stop.poll_stopped(cx).map(|reason| Err(Error::Stopped(reason)))
        })
        .await
    }

    fn shutdown_write(&self) -> io::Result<()> {
        if self.outgoing.state.get() == State::Open {
            self.outgoing.change(State::Ended);
        }
        Ok(())
    }

    fn reset_on_close(&self) {
        self.reset.set(true);
    }

    async fn splice_telling(
        &self,
        to: &Stream,
        _pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
        mut waiting: impl FnMut(usize),
    ) -> Result<usize, Error> {
        let mut buffer = Buffer::take(Size::Large);
        let received = self.receive(&mut buffer, max, stop).await?;
        let mut output = Output::new();
        output.push(buffer.slice(0..received));
        waiting(received);
        to.flush(&mut output, stop).await?;
        Ok(received)
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        self.peer
    }
}

impl Bare for Stream {
    fn try_peek(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        if self.incoming.state.get() == State::Reset {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let queue = self.incoming.bytes.borrow();
        if queue.is_empty() {
            return Ok((self.incoming.state.get() != State::Open).then_some(0));
        }
        let len = queue.len().min(into.len()).min(self.shape.chunk_bytes.get());
        into.iter_mut().zip(queue.iter()).take(len).for_each(|(to, from)| *to = *from);
        Ok(Some(len))
    }

    fn try_take(&self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let there = self.try_peek(into)?;
        if let Some(len) = there {
            self.incoming.bytes.borrow_mut().drain(..len);
            wake(&self.incoming.writer);
        }
        Ok(there)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // Like a kernel: closing with bytes unread is a reset.
        if self.reset.get() || !self.incoming.bytes.borrow().is_empty() {
            self.outgoing.change(State::Reset);
            self.incoming.change(State::Reset);
            return;
        }
        if self.outgoing.state.get() == State::Open {
            self.outgoing.change(State::Ended);
        }
        if self.incoming.state.get() == State::Open {
            self.incoming.change(State::Deaf);
        }
    }
}

impl Queue {
    fn change(&self, state: State) {
        self.state.set(state);
        wake(&self.reader);
        wake(&self.writer);
    }
}

fn wake(waker: &Cell<Option<Waker>>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}
