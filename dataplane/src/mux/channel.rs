//! One byte stream of a trunk.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use ringmesh_codec::mux::{Cause, Frame, INITIAL_WINDOW_BYTES, MAX_DATA_BYTES};
use ringmesh_ring::buffer::{Buffer, Size, Slice};
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Idle, Stream};

use super::limits::{MAX_TAKEN_BYTES, MAX_WINDOW_BYTES, MIN_KEPT_BYTES, QUANTUM_BYTES};
use super::trunk::{Broken, Side, Trunk};

/// How a channel ended that its user still has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// The other side neither sends nor reads any more, and has sent all.
    Closed,
    /// The other side broke it off.
    Reset,
    /// The trunk is gone.
    Lost,
}

/// What trunk and user know of a channel.
pub(super) struct State {
    trunk: Rc<Trunk>,
    pub(super) number: u32,
    input: RefCell<Input>,
    reader: Cell<Option<Waker>>,
    writer: Cell<Option<Waker>>,
    /// Bytes that may be sent.
    credit: Cell<u32>,
    /// Bytes that the other side may send ahead.
    window: Cell<u32>,
    /// Bytes of them that it has not used.
    granted: Cell<u32>,
    /// Bytes that were taken and not granted again.
    owed: Cell<u32>,
    /// The other side sends no more.
    has_end: Cell<bool>,
    ended: Cell<Option<Ended>>,
    /// We send no more.
    sent_end: Cell<bool>,
    /// Its place among those who wait until less waits to be sent.
    pub(super) queued: Cell<Option<usize>>,
    /// When it was opened, or has put something on the trunk last.
    pub(super) turn: Cell<u64>,
    /// Something has come since we have last sent something.
    pub(super) asked: Cell<bool>,
    cut: Cell<bool>,
}

/// Bytes that have come and nobody has taken.
#[derive(Default)]
struct Input {
    parts: VecDeque<Part>,
    bytes: usize,
}

/// Some of them.
enum Part {
    /// Copied out of what the trunk received, so that a channel that nobody reads holds its own bytes and no others.
    Copied(Buffer),
    /// Where they have come.
    Kept(Slice),
}

impl Input {
    fn copy(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len();
        while !bytes.is_empty() {
            let size = if self.parts.is_empty() { Size::Small } else { Size::Large };
            let last = match self.parts.back_mut() {
                Some(Part::Copied(last)) if last.spare() > 0 => last,
                _ => {
                    self.parts.push_back(Part::Copied(Buffer::take(size)));
                    continue;
                }
            };
            let fits = last.spare().min(bytes.len());
            // Cut to the room just above.
            let _fits = last.extend_from_slice(&bytes[..fits]);
            bytes = &bytes[fits..];
        }
    }

    fn keep(&mut self, slice: Slice) {
        self.bytes += slice.len();
        self.parts.push_back(Part::Kept(slice));
    }

    /// Moves bytes into the spare room; copied ones into an empty buffer without copying them again. Also, how many of them were
    /// kept.
    fn fill(&mut self, buffer: &mut Buffer) -> Taken {
        let Some(first) = self.parts.front_mut() else { return Taken::default() };
        let mut taken = Taken::default();
        let used_up = match first {
            Part::Copied(first) if buffer.is_empty() => {
                std::mem::swap(first, buffer);
                taken.bytes = buffer.len();
                true
            }
            Part::Copied(first) => {
                taken.bytes = copy_some(first.filled(), buffer);
                first.consume(taken.bytes);
                first.is_empty()
            }
            Part::Kept(first) => {
                taken.bytes = copy_some(first, buffer);
                taken.kept = taken.bytes;
                first.advance(taken.bytes);
                first.is_empty()
            }
        };
        if used_up {
            self.parts.pop_front();
        }
        self.has_given(taken.bytes);
        taken
    }

    /// Moves some behind what `output` has, without copying them.
    fn give(&mut self, output: &mut Output) -> Taken {
        let mut taken = Taken::default();
        while let Some(part) = self.parts.pop_front_if(|part| taken.bytes + part.len() <= MAX_TAKEN_BYTES) {
            taken.bytes += part.len();
            match part {
                Part::Copied(buffer) => output.push(buffer.slice(0..buffer.len())),
                Part::Kept(slice) => {
                    taken.kept += slice.len();
                    output.push(slice);
                }
            }
        }
        self.has_given(taken.bytes);
        taken
    }

    fn has_given(&mut self, bytes: usize) {
        self.bytes -= bytes;
        if self.parts.is_empty() {
            self.parts.shrink_to_fit();
        }
    }

    /// Forgets all. How many of them were kept.
    fn clear(&mut self) -> usize {
        let parts = std::mem::take(self).parts;
        parts.iter().map(|part| if let Part::Kept(slice) = part { slice.len() } else { 0 }).sum()
    }
}

impl Part {
    fn len(&self) -> usize {
        match self {
            Self::Copied(buffer) => buffer.len(),
            Self::Kept(slice) => slice.len(),
        }
    }
}

/// Bytes that were taken.
#[derive(Clone, Copy, Default)]
struct Taken {
    bytes: usize,
    /// Of these, where they had come.
    kept: usize,
}

/// As many as there is room for.
fn copy_some(bytes: &[u8], buffer: &mut Buffer) -> usize {
    let fits = bytes.len().min(buffer.spare());
    // Cut to the room just above.
    let _fits = buffer.extend_from_slice(&bytes[..fits]);
    fits
}

impl State {
    pub(super) fn new(trunk: Rc<Trunk>, number: u32) -> Self {
        let turn = Cell::new(trunk.next_turn());
        Self {
            trunk,
            number,
            turn,
            input: RefCell::default(),
            reader: Cell::new(None),
            writer: Cell::new(None),
            credit: Cell::new(INITIAL_WINDOW_BYTES),
            window: Cell::new(INITIAL_WINDOW_BYTES),
            granted: Cell::new(INITIAL_WINDOW_BYTES),
            owed: Cell::new(0),
            has_end: Cell::new(false),
            ended: Cell::new(None),
            sent_end: Cell::new(false),
            queued: Cell::new(None),
            asked: Cell::new(false),
            cut: Cell::new(false),
        }
    }

    /// Bytes have come. `keep` shows them where they are.
    pub(super) fn arrived(&self, bytes: &[u8], keep: impl FnOnce() -> Slice, end: bool) -> Result<(), Broken> {
        if self.has_end.get() {
            return Err(Broken::Order("bytes behind the end of a channel"));
        }
        let left = u32::try_from(bytes.len()).ok().and_then(|bytes| self.granted.get().checked_sub(bytes));
        self.granted.set(left.ok_or(Broken::Window(self.number))?);
        if bytes.len() >= MIN_KEPT_BYTES && self.trunk.may_keep(bytes.len()) {
            self.input.borrow_mut().keep(keep());
        } else {
            self.input.borrow_mut().copy(bytes);
        }
        self.has_end.set(end);
        wake(&self.reader);
        Ok(())
    }

    /// Less waits to be sent.
    pub(super) fn has_room(&self) {
        wake(&self.writer);
    }

    /// So many more bytes may be sent.
    pub(super) fn may_send(&self, bytes: u32) -> Result<(), Broken> {
        let credit = self.credit.get().checked_add(bytes).ok_or(Broken::Window(self.number))?;
        self.credit.set(credit);
        wake(&self.writer);
        Ok(())
    }

    /// The other side has ended it, or the trunk is gone: then a client has what has come until then, as from a connection of its own.
    pub(super) fn end(&self, how: Ended) {
        self.ended.set(Some(how));
        match how {
            Ended::Closed => self.has_end.set(true),
            Ended::Lost if self.trunk.side == Side::Client => {}
            Ended::Lost | Ended::Reset => {
                // Nobody is left for whom something might be begun.
                self.forget_input();
                self.has_end.set(false);
            }
        }
        wake(&self.reader);
        wake(&self.writer);
    }

    fn forget_input(&self) {
        self.trunk.keeps_no_more(self.input.borrow_mut().clear());
    }

    /// What a reader finds. None: nothing yet.
    fn fill(&self, buffer: &mut Buffer) -> Option<io::Result<usize>> {
        if !buffer.is_empty() && buffer.spare() == 0 {
            return Some(Err(ErrorKind::InvalidInput.into()));
        }
        self.take(|input| input.fill(buffer))
    }

    /// What one finds who takes by this. None: nothing yet.
    fn take(&self, by: impl FnOnce(&mut Input) -> Taken) -> Option<io::Result<usize>> {
        let (Taken { bytes, kept }, left) = {
            let mut input = self.input.borrow_mut();
            (by(&mut input), input.bytes)
        };
        if bytes > 0 {
            self.trunk.keeps_no_more(kept);
            self.taken(bytes as u32, left);
            return Some(Ok(bytes));
        }
        match self.ended.get() {
            Some(Ended::Reset) => Some(Err(ErrorKind::ConnectionReset.into())),
            _ if self.has_end.get() => Some(Ok(0)),
            Some(Ended::Lost) => Some(Err(self.trunk.lost())),
            Some(Ended::Closed) | None => None,
        }
    }

    /// Grants anew what was taken, by half windows. A reader that keeps up gets a larger one: then the way there and back may be
    /// what holds it up, and it holds little.
    fn taken(&self, bytes: u32, left: usize) {
        self.owed.set(self.owed.get() + bytes);
        self.grant(left);
    }

    /// What has waited for the other side to take something.
    pub(super) fn grant_late(&self) {
        let left = self.input.borrow().bytes;
        self.grant(left);
    }

    fn grant(&self, left: usize) {
        let (owed, window) = (self.owed.get(), self.window.get());
        if owed < window / 2 || self.has_end.get() || self.ended.get().is_some() || self.trunk.postpones_credit() {
            return;
        }
        let extra = self.trunk.extra.get();
        let keeps_up = left <= window as usize / 2;
        let more = if keeps_up && window < MAX_WINDOW_BYTES && window <= extra { window } else { 0 };
        self.trunk.extra.set(extra - more);
        self.window.set(window + more);
        self.granted.set(self.granted.get() + owed + more);
        self.owed.set(0);
        self.trunk.send(&Frame::Credit { channel: self.number, bytes: owed + more });
    }

    /// Whether the other side waits for something that we have not begun to send.
    pub(super) fn owes_answer(&self) -> bool {
        self.asked.get() && !self.sent_end.get()
    }

    /// Why nothing can be sent. None: it can.
    fn refuses(&self) -> Option<io::Error> {
        match self.ended.get() {
            Some(Ended::Closed) => Some(ErrorKind::BrokenPipe.into()),
            Some(Ended::Lost) => Some(self.trunk.lost()),
            Some(Ended::Reset) => Some(ErrorKind::ConnectionReset.into()),
            None if self.sent_end.get() => Some(ErrorKind::BrokenPipe.into()),
            None => None,
        }
    }

    /// Puts as much of `output` on the trunk as may be sent now. Whether that is all.
    fn put(self: &Rc<Self>, output: &mut Output, context: &Context<'_>) -> Poll<io::Result<()>> {
        self.trunk.has_its_turn(self);
        if let Some(error) = self.refuses() {
            return Poll::Ready(Err(error));
        }
        let mut quantum = QUANTUM_BYTES;
        while !output.is_empty() {
            if quantum == 0 || self.trunk.is_crowded(self) {
                // The end of the channel may come before there is room.
                self.writer.set(Some(context.waker().clone()));
                return Poll::Pending;
            }
            let count = output.len_bytes().min(self.credit.get() as usize).min(MAX_DATA_BYTES).min(quantum);
            if count == 0 {
                self.writer.set(Some(context.waker().clone()));
                return Poll::Pending;
            }
            self.credit.set(self.credit.get() - count as u32);
            quantum -= count;
            self.asked.set(false);
            self.turn.set(self.trunk.next_turn());
            self.trunk.send_data(self.number, output, count);
            if quantum == 0 && !output.is_empty() {
                // On with it once others have had their turn.
                self.trunk.queue(self);
            }
        }
        Poll::Ready(Ok(()))
    }
}

fn wake(waiting: &Cell<Option<Waker>>) {
    if let Some(waker) = waiting.take() {
        waker.wake();
    }
}

/// A channel, as who uses it has it. Dropped, it is closed: in order, or as a reset if something that came was not read, or
/// [`Stream::reset_on_close`] was called.
pub struct Channel {
    state: Rc<State>,
}

impl Channel {
    pub(super) fn new(state: Rc<State>) -> Self {
        Self { state }
    }

    fn has_something(&self) -> bool {
        let state = &self.state;
        state.input.borrow().bytes > 0 || state.has_end.get() || state.ended.get().is_some()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let state = &self.state;
        let (extra, window) = (&state.trunk.extra, state.window.get());
        extra.set(extra.get() + (window - INITIAL_WINDOW_BYTES));
        state.trunk.is_dropped();
        let unread = state.input.borrow().bytes > 0;
        state.forget_input();
        state.trunk.unqueue(state);
        if state.ended.get().is_some() {
            return;
        }
        let channel = state.number;
        if state.cut.get() || unread {
            state.trunk.send(&Frame::Reset { channel, cause: Cause::Cancelled });
        } else {
            state.trunk.send(&Frame::Close { channel });
        }
        let granted = if state.has_end.get() { 0 } else { state.granted.get() };
        state.trunk.abandon(channel, granted);
    }
}

/// Counts who waits for bytes as long as it lives.
struct Awaiting<'a>(&'a Trunk);

impl<'a> Awaiting<'a> {
    fn begin(trunk: &'a Trunk) -> Self {
        trunk.awaited.set(trunk.awaited.get() + 1);
        Self(trunk)
    }
}

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.awaited.set(self.0.awaited.get() - 1);
    }
}

impl Stream for Channel {
    async fn readable(&self) -> io::Result<()> {
        poll_fn(|context| {
            if self.has_something() {
                return Poll::Ready(Ok(()));
            }
            self.state.reader.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        self.state.fill(buffer).transpose()
    }

    fn try_receive(&self, output: &mut Output, _size: Size) -> io::Result<Option<usize>> {
        self.state.take(|input| input.give(output)).transpose()
    }

    fn check_idle(&self) -> io::Result<Idle> {
        let state = &self.state;
        Ok(match state.ended.get() {
            _ if state.input.borrow().bytes > 0 => Idle::Data,
            // Nothing new is to begin in one of a trunk that is to end.
            None if !state.has_end.get() && state.trunk.may_go_on() => Idle::Open,
            _ => Idle::Closed,
        })
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        if let Some(reason) = stop.reason() {
            return Err(Error::Stopped(reason));
        }
        if let Some(taken) = self.state.fill(buffer) {
            return Ok(taken?);
        }
        let _awaiting = Awaiting::begin(&self.state.trunk);
        poll_fn(|context| {
            if let Some(taken) = self.state.fill(buffer) {
                return Poll::Ready(taken.map_err(Error::from));
            }
            self.state.reader.set(Some(context.waker().clone()));
            stopped(stop, context).map(Err)
        })
        .await
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if output.is_empty() {
            return Ok(());
        }
        if let Some(reason) = stop.reason() {
            return Err(Error::Stopped(reason));
        }
        poll_fn(|context| match self.state.put(output, context) {
            Poll::Ready(result) => Poll::Ready(result.map_err(Error::from)),
            Poll::Pending => stopped(stop, context).map(Err),
        })
        .await
    }

    fn shutdown_write(&self) -> io::Result<()> {
        let state = &self.state;
        if let Some(error) = state.refuses() {
            return Err(error);
        }
        state.sent_end.set(true);
        state.trunk.send_end(state.number);
        Ok(())
    }

    fn reset_on_close(&self) {
        self.state.cut.set(true);
    }

    /// Copies, as what comes here has passed through the cipher anyhow.
    fn peer_address(&self) -> Option<SocketAddr> {
        self.state.trunk.ends.peer
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.state.trunk.ends.local
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.state.trunk.ends.original
    }
}

fn stopped(stop: &Stop, context: &mut Context<'_>) -> Poll<Error> {
    stop.poll_stopped(context).map(|reason: StopReason| Error::Stopped(reason))
}
