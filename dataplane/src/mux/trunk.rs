//! What both sides keep of a trunk: its channels, what waits to be sent, and what each frame does.

use std::any::Any;
use std::cell::{Cell, OnceCell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Waker};

use ringmesh_codec::mux::{Cause, Fault, Frame, Frames, INITIAL_CHANNELS, INITIAL_WINDOW_BYTES, data_header};
use ringmesh_ring::buffer::{Buffer, Slice};
use ringmesh_ring::clock::Instant;
use ringmesh_ring::output::Output;
use ringmesh_ring::stream::Halted;

use super::channel::{Channel, Ended, State};
use super::limits::{
    CREDIT_PER_SECOND, LAST_CHANNEL, LATE_BYTES, MAX_COPIED_BYTES, MAX_CREDIT, MAX_EXTRA_BYTES, MAX_KEPT_BYTES,
    MAX_OWED_BYTES, MAX_WAITING_BYTES,
};
use crate::proxy::allowance::{Allowance, MIN_EARNING_BYTES};
use crate::tls::Refused;

/// Cost of a reset channel: what it carried was begun in vain.
const RESET: u32 = 6;

/// Frames that may answer each 4 KiB that we send: a receiver may give credit in small steps.
const ANSWERS: u32 = 2;

/// Which side of a trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Opens channels.
    Client,
    /// Serves them.
    Server,
}

/// Why a trunk is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// Bytes that are no frames.
    #[error(transparent)]
    Frame(#[from] Fault),
    /// A frame that may not come now.
    #[error("{0}")]
    Order(&'static str),
    /// More bytes in a channel than it may send.
    #[error("more bytes in channel {0} than there was credit for")]
    Window(u32),
    /// More frames that do nothing than may come.
    #[error("a flood of frames that do nothing")]
    Flood,
}

/// Both ends of an address, as they were when the connection was made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ends {
    pub(super) peer: Option<SocketAddr>,
    pub(super) local: Option<SocketAddr>,
    pub(super) original: Option<SocketAddr>,
}

/// A connection that carries channels.
pub struct Trunk {
    pub(super) side: Side,
    pub(super) ends: Ends,
    /// The open ones, by their numbers.
    channels: RefCell<Vec<Rc<State>>>,
    pub(super) output: RefCell<Output>,
    /// Some of what was written is being sent.
    pub(super) sending: Cell<bool>,
    /// What moves the trunk's bytes, and whether it will run.
    pump: RefCell<Option<Waker>>,
    woken: Cell<bool>,
    /// Channels that wait until less waits to be sent; each knows its place.
    crowd: RefCell<Vec<Rc<State>>>,
    /// Counts what channels put on it.
    turns: Cell<u64>,
    /// The one of them that has waited for longest, until it has its turn; 0: none.
    first: Cell<u32>,
    /// The highest number so far.
    last: Cell<u32>,
    /// Channels that have been opened.
    opened: Cell<u64>,
    /// Channels that the other side takes.
    takes: Cell<u32>,
    /// Channels that we take.
    most: u32,
    greeted: Cell<bool>,
    /// Kept until the other side has said how many channels it takes.
    until_greeted: Cell<Option<Rc<dyn Any>>>,
    /// Closes the channels that only wait, once there shall be no further ones.
    close_unused: OnceCell<Box<dyn Fn()>>,
    /// Channels that somebody uses, those among them that the other side has ended.
    held: Cell<u32>,
    /// We have said that there shall be no further channels.
    leaving: Cell<bool>,
    /// The other side has.
    left: Cell<bool>,
    ended: Cell<bool>,
    /// What broke the connection, or ended it before its channels.
    cause: RefCell<Option<io::Error>>,
    /// Channels on which something is waited for.
    pub(super) awaited: Cell<u32>,
    /// Bytes by which windows may still grow.
    pub(super) extra: Cell<u32>,
    /// Bytes that channels have left where they have come.
    kept: Cell<usize>,
    /// Credit was not written because too much waits to be sent.
    postponed: Cell<bool>,
    /// Bytes that may still come for channels that we have ended: what was granted, and not used when we did.
    late: Cell<u64>,
    allowance: RefCell<Allowance>,
    /// For channels that the other side resets.
    resets: RefCell<Allowance>,
}

impl Trunk {
    /// A trunk on a connection that was just made; `most` channels may be open that the other side opens.
    pub(super) fn new(side: Side, ends: Ends, most: u32, now: Instant) -> Rc<Self> {
        let trunk = Rc::new(Self {
            side,
            ends,
            channels: RefCell::default(),
            output: RefCell::default(),
            sending: Cell::new(false),
            pump: RefCell::default(),
            woken: Cell::new(false),
            crowd: RefCell::default(),
            turns: Cell::new(0),
            first: Cell::new(0),
            last: Cell::new(0),
            opened: Cell::new(0),
            takes: Cell::new(INITIAL_CHANNELS),
            most,
            greeted: Cell::new(false),
            until_greeted: Cell::default(),
            close_unused: OnceCell::new(),
            held: Cell::new(0),
            leaving: Cell::new(false),
            left: Cell::new(false),
            ended: Cell::new(false),
            cause: RefCell::default(),
            awaited: Cell::new(0),
            extra: Cell::new(MAX_EXTRA_BYTES),
            kept: Cell::new(0),
            postponed: Cell::new(false),
            late: Cell::new(0),
            allowance: RefCell::new(Allowance::new(MAX_CREDIT, CREDIT_PER_SECOND, now)),
            resets: RefCell::new(Allowance::new(MAX_CREDIT, CREDIT_PER_SECOND, now)),
        });
        trunk.send(&Frame::Hello { channels: most });
        trunk
    }

    /// Opens a channel. None: there shall be no more.
    pub(super) fn open(self: &Rc<Self>) -> Option<Channel> {
        if !self.takes_more() {
            return None;
        }
        let channel = self.last.get() + 1;
        self.send(&Frame::Open { channel });
        Some(self.enter(channel))
    }

    fn enter(self: &Rc<Self>, number: u32) -> Channel {
        self.last.set(number);
        self.held.set(self.held.get() + 1);
        self.opened.set(self.opened.get() + 1);
        let state = Rc::new(State::new(self.clone(), number));
        self.channels.borrow_mut().push(state.clone());
        Channel::new(state)
    }

    /// Whether further channels may be opened, one of which has room at once. None where the other side takes nothing: each that is
    /// opened and given up would be a few bytes more that wait for it.
    pub(super) fn takes_more(&self) -> bool {
        let is_open = !self.is_over() && self.last.get() < LAST_CHANNEL;
        is_open && self.count() < self.takes.get() && self.output.borrow().len_bytes() < MAX_OWED_BYTES
    }

    /// Whether there shall be no further channels.
    pub(super) fn is_over(&self) -> bool {
        self.ended.get() || self.leaving.get() || self.left.get() || self.last.get() >= LAST_CHANNEL
    }

    /// Whether the other side has greeted.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted.get()
    }

    /// Keeps something until the other side has said how many channels it takes, or the trunk is gone.
    pub(super) fn keep_until_greeted(&self, kept: Rc<dyn Any>) {
        self.until_greeted.set(Some(kept));
    }

    /// What is to be done once there shall be no further channels.
    pub(super) fn on_leave(&self, close_unused: impl Fn() + 'static) {
        let _first = self.close_unused.set(Box::new(close_unused));
    }

    /// The user of a channel has dropped it.
    pub(super) fn is_dropped(&self) {
        self.held.set(self.held.get() - 1);
    }

    /// Whether the other side may open another channel. What it has ended counts for a moment longer, until our side has done
    /// with it: or it could have us do any number of things at a time.
    fn has_place(&self) -> bool {
        self.count() < self.most && self.held.get() < self.most.saturating_mul(2)
    }

    /// Whether something new may begin in a channel that has done with the last: that is the client's to say, who would have
    /// to open another one else.
    pub(super) fn may_go_on(&self) -> bool {
        self.side == Side::Server || !self.is_over()
    }

    /// Open channels.
    pub(super) fn count(&self) -> u32 {
        self.channels.borrow().len() as u32
    }

    /// Channels since the beginning.
    pub(super) fn opened(&self) -> u64 {
        self.opened.get()
    }

    /// Whether both sides have said that there shall be no further channels, and none is open.
    pub(super) fn is_done(&self) -> bool {
        self.leaving.get() && self.left.get() && self.channels.borrow().is_empty()
    }

    /// Whether all that was written is sent.
    pub(super) fn is_sent(&self) -> bool {
        self.output.borrow().is_empty() && !self.sending.get()
    }

    /// Says that there shall be no further channels.
    pub(super) fn leave(&self) {
        if !self.leaving.replace(true) {
            self.send(&Frame::GoAway);
            if let Some(close_unused) = self.close_unused.get() {
                close_unused();
            }
        }
    }

    /// Writes a frame without data.
    pub(super) fn send(&self, frame: &Frame<'_>) {
        if !self.ended.get() {
            self.output.borrow_mut().push_bytes(&frame.encode());
            self.wake();
        }
    }

    /// Writes the first `count` bytes of `from` as a frame of data.
    pub(super) fn send_data(&self, channel: u32, from: &mut Output, count: usize) {
        let mut output = self.output.borrow_mut();
        output.push_bytes(&data_header(channel, count, false));
        from.move_to(&mut output, count, MAX_COPIED_BYTES);
        drop(output);
        let earned = ANSWERS * (count as u32 / 4096 + 1);
        self.allowance.borrow_mut().earn(earned);
        self.resets.borrow_mut().earn(earned);
        self.wake();
    }

    /// Writes the end of a direction.
    pub(super) fn send_end(&self, channel: u32) {
        if !self.ended.get() {
            self.output.borrow_mut().push_bytes(&data_header(channel, 0, true));
            self.wake();
        }
    }

    /// Whether those who have something to send must wait, which this channel does then. Half of the room is for who has waited
    /// longest: the others, who come back for more at once or are woken by something else, might leave it none for ever.
    pub(super) fn is_crowded(&self, state: &Rc<State>) -> bool {
        let room = if self.first.get() == 0 { MAX_WAITING_BYTES } else { MAX_WAITING_BYTES / 2 };
        let crowded = self.output.borrow().len_bytes() >= room;
        if crowded {
            self.queue(state);
        }
        crowded
    }

    /// Whether a channel may leave so many bytes where they have come: then they are counted.
    pub(super) fn may_keep(&self, bytes: usize) -> bool {
        let kept = self.kept.get() + bytes;
        let may = kept <= MAX_KEPT_BYTES;
        if may {
            self.kept.set(kept);
        }
        may
    }

    /// Bytes that channels have left where they have come.
    #[cfg(test)]
    pub(super) fn kept_bytes(&self) -> usize {
        self.kept.get()
    }

    /// A channel has given so many of them away.
    pub(super) fn keeps_no_more(&self, bytes: usize) {
        self.kept.set(self.kept.get() - bytes);
    }

    /// Has a channel go on when all that waits now is on its way.
    pub(super) fn queue(&self, state: &Rc<State>) {
        if state.queued.get().is_none() {
            let mut crowd = self.crowd.borrow_mut();
            state.queued.set(Some(crowd.len()));
            crowd.push(state.clone());
        }
    }

    /// A channel that waits for that does not any more.
    pub(super) fn unqueue(&self, state: &State) {
        let Some(place) = state.queued.take() else { return };
        let mut crowd = self.crowd.borrow_mut();
        crowd.swap_remove(place);
        if let Some(moved) = crowd.get(place) {
            moved.queued.set(Some(place));
        }
    }

    /// A channel comes to put something on the trunk.
    pub(super) fn has_its_turn(&self, state: &State) {
        if self.first.get() == state.number {
            self.first.set(0);
        }
    }

    /// Tells whose turn was longest ago.
    pub(super) fn next_turn(&self) -> u64 {
        self.turns.replace(self.turns.get() + 1)
    }

    /// How many wait for that.
    #[cfg(test)]
    pub(super) fn crowd(&self) -> usize {
        self.crowd.borrow().len()
    }

    /// All that waited is on its way.
    pub(super) fn has_room(&self) {
        let mut crowd = self.crowd.take();
        let first = (0..crowd.len()).min_by_key(|index| crowd[*index].turn.get());
        first.inspect(|first| crowd.swap(0, *first));
        self.first.set(crowd.first().map_or(0, |first| first.number));
        for state in crowd {
            state.queued.set(None);
            state.has_room();
        }
        if self.postponed.replace(false) {
            self.channels.borrow().iter().for_each(|state| state.grant_late());
        }
    }

    /// Whether credit has to wait, because the other side takes nothing of what waits for it: once it has used up what it has, it can
    /// have us write no more.
    pub(super) fn postpones_credit(&self) -> bool {
        let postpones = self.output.borrow().len_bytes() >= MAX_OWED_BYTES;
        if postpones {
            self.postponed.set(true);
        }
        postpones
    }

    /// The task of `context` moves the bytes, and runs now. It looks for what was written last.
    pub(super) fn runs(&self, context: &Context<'_>) {
        self.woken.set(true);
        let mut pump = self.pump.borrow_mut();
        if !pump.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
            *pump = Some(context.waker().clone());
        }
    }

    /// It has looked.
    pub(super) fn rests(&self) {
        self.woken.set(false);
    }

    fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(pump) = &*self.pump.borrow()
        {
            pump.wake_by_ref();
        }
    }

    /// Forgets a channel.
    pub(super) fn forget(&self, number: u32) {
        let mut channels = self.channels.borrow_mut();
        if let Ok(index) = channels.binary_search_by_key(&number, |state| state.number) {
            channels.remove(index);
            if channels.is_empty() {
                drop(channels);
                // It may be the last thing that a trunk waits for that is to end.
                self.wake();
            }
        }
    }

    /// Forgets a channel that we have ended. The other side may have sent so much before it hears of that.
    pub(super) fn abandon(&self, number: u32, granted: u32) {
        self.expect_late(granted);
        self.forget(number);
    }

    fn expect_late(&self, bytes: u32) {
        self.late.set(self.late.get().saturating_add(bytes.into()));
    }

    fn find(&self, number: u32) -> Option<Rc<State>> {
        let channels = self.channels.borrow();
        let index = channels.binary_search_by_key(&number, |state| state.number).ok()?;
        Some(channels[index].clone())
    }

    /// Notes what has broken the connection.
    pub(super) fn broke(&self, cause: io::Error) {
        self.cause.borrow_mut().get_or_insert(cause);
    }

    /// What those hear whose channels went with the connection.
    pub(super) fn lost(&self) -> io::Error {
        match &*self.cause.borrow() {
            Some(cause) => Halted::inside(cause).map_or_else(|| Refused::repeat(cause), io::Error::from),
            None => io::ErrorKind::ConnectionReset.into(),
        }
    }

    /// Ends all channels; nothing is sent any more.
    pub(super) fn end(&self) {
        self.ended.set(true);
        self.until_greeted.take();
        self.output.borrow_mut().clear();
        let channels = self.channels.take();
        channels.iter().for_each(|state| state.end(Ended::Lost));
        self.has_room();
    }

    /// Takes all frames that are whole. `opened` is given each new channel.
    pub(super) fn receive(
        self: &Rc<Self>,
        frames: &mut Frames,
        buffer: &mut Buffer,
        now: impl Fn() -> Instant,
        mut opened: impl FnMut(Channel),
    ) -> Result<(), Broken> {
        if self.side == Side::Server {
            // Each channel that it opens and ends, and each byte that is read, has an answer that it may leave where it is.
            self.owe()?;
        }
        while let Some((frame, taken)) = frames.next(buffer.filled())? {
            // A frame of data ends in its bytes.
            let keep = |bytes: usize| buffer.slice(taken - bytes..taken);
            self.take(&frame, keep, &now, &mut opened)?;
            buffer.consume(taken);
        }
        Ok(())
    }

    fn take(
        self: &Rc<Self>,
        frame: &Frame<'_>,
        keep: impl FnOnce(usize) -> Slice,
        now: &impl Fn() -> Instant,
        opened: &mut impl FnMut(Channel),
    ) -> Result<(), Broken> {
        let pay = |cost| if self.allowance.borrow_mut().pay(cost, now) { Ok(()) } else { Err(Broken::Flood) };
        let pay_reset = || if self.resets.borrow_mut().pay(RESET, now) { Ok(()) } else { Err(Broken::Flood) };
        if !self.greeted.get() && !matches!(frame, Frame::Hello { .. }) {
            return Err(Broken::Order("the first frame is no greeting"));
        }
        match *frame {
            Frame::Hello { channels } => {
                if self.greeted.replace(true) {
                    return Err(Broken::Order("a second greeting"));
                }
                self.takes.set(channels);
                self.until_greeted.take();
                if channels == 0 && self.side == Side::Client {
                    // It would be of no use, and each further request would have another one made beside it.
                    self.leave();
                }
            }
            Frame::Open { channel } => {
                if self.side == Side::Client || channel <= self.last.get() {
                    return Err(Broken::Order("a channel that the sender may not open"));
                }
                pay(1)?;
                if self.left.get() || !self.has_place() {
                    self.last.set(channel);
                    self.expect_late(INITIAL_WINDOW_BYTES);
                    self.owe()?;
                    self.send(&Frame::Reset { channel, cause: Cause::Refused });
                } else {
                    opened(self.enter(channel));
                }
            }
            Frame::Data { channel, bytes, end } => match self.find(channel) {
                Some(state) => {
                    if bytes.is_empty() && !end {
                        pay(1)?;
                    } else {
                        self.allowance.borrow_mut().earn(1);
                        self.resets.borrow_mut().earn(u32::from(bytes.len() >= MIN_EARNING_BYTES));
                    }
                    state.asked.set(true);
                    state.arrived(bytes, || keep(bytes.len()), end)?;
                }
                None => {
                    self.check_old(channel)?;
                    match self.late.get().checked_sub(bytes.len() as u64) {
                        Some(left) if !bytes.is_empty() => self.late.set(left),
                        // Nobody who keeps to the rules can have had so much on its way.
                        _ => pay(1 + (bytes.len() / LATE_BYTES) as u32)?,
                    }
                }
            },
            Frame::Credit { channel, bytes } => {
                pay(1)?;
                match self.find(channel) {
                    Some(state) => state.may_send(bytes)?,
                    None => self.check_old(channel)?,
                }
            }
            Frame::Close { channel } => {
                let is_begun = || self.find(channel).is_some_and(|state| state.owes_answer());
                if self.side == Side::Server && is_begun() {
                    pay_reset()?
                } else {
                    pay(1)?
                }
                self.take_end(channel, Ended::Closed)?;
            }
            // Whether it was looked at, the user finds by what has come of it.
            Frame::Reset { channel, .. } => {
                pay_reset()?;
                self.take_end(channel, Ended::Reset)?;
            }
            Frame::Ping(payload) => {
                pay(1)?;
                self.owe()?;
                self.send(&Frame::Pong(payload));
            }
            Frame::Pong(_) | Frame::Skipped => pay(1)?,
            Frame::GoAway => {
                pay(1)?;
                self.left.set(true);
                self.leave();
            }
        }
        Ok(())
    }

    /// Before an answer to a frame that only wants one: whoever takes none gets no further ones.
    fn owe(&self) -> Result<(), Broken> {
        if self.output.borrow().len_bytes() < MAX_OWED_BYTES { Ok(()) } else { Err(Broken::Flood) }
    }

    fn take_end(&self, channel: u32, how: Ended) -> Result<(), Broken> {
        match self.find(channel) {
            Some(state) => {
                self.forget(channel);
                state.end(how);
                Ok(())
            }
            None => self.check_old(channel),
        }
    }

    /// What comes for a channel that we have forgotten was sent before the other side knew. One that never was is a fault.
    fn check_old(&self, channel: u32) -> Result<(), Broken> {
        if channel <= self.last.get() {
            Ok(())
        } else {
            Err(Broken::Order("a frame of a channel that was never opened"))
        }
    }
}
