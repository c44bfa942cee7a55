//! A world without a kernel: connections in memory and a clock that only moves when nothing else can.
//!
//! The whole request path runs in it, deterministically, in a unit test or a benchmark.

pub(crate) mod executor;
mod stream;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::{Future, pending, poll_fn};
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use crate::clock::Instant;
use crate::net::{Address, Net, next_random};
use crate::socket::race;
use crate::stop::Stop;
use crate::stream::Error;
use crate::timer::Timer;

pub use stream::Stream;

/// Bytes on their way in one direction at most, like a socket's buffer.
const DEFAULT_CAPACITY_BYTES: usize = 64 * 1024;

/// A world in memory. Clones are the same world.
#[derive(Clone)]
pub struct Network(Rc<World>);

struct World {
    now: Cell<Instant>,
    timer: Rc<Timer>,
    chance: Cell<u64>,
    listeners: RefCell<HashMap<Address, Place>>,
    shape: Rc<Shape>,
}

/// How connections behave, and what they have seen.
struct Shape {
    chunk_bytes: Cell<usize>,
    capacity_bytes: Cell<usize>,
    /// Where flushed slices lay, if that is to be remembered.
    flushed: RefCell<Option<Vec<Range<usize>>>>,
    /// Where received bytes were put, likewise.
    filled: RefCell<Option<Vec<Range<usize>>>>,
}

enum Place {
    Listening(Rc<Backlog>),
    Silent,
}

#[derive(Default)]
struct Backlog {
    clients: RefCell<VecDeque<Stream>>,
    acceptor: Cell<Option<Waker>>,
}

impl Network {
    /// A world whose clock starts at one second and whose chance starts from `seed`.
    pub fn new(seed: u64) -> Network {
        let start = Instant::ZERO + Duration::from_secs(1);
        Network(Rc::new(World {
            now: Cell::new(start),
            timer: Rc::new(Timer::new(start)),
            // Any seed will do, also zero, which xorshift cannot leave.
            chance: Cell::new(seed ^ 0x9e37_79b9_7f4a_7c15),
            listeners: RefCell::default(),
            shape: Rc::new(Shape {
                chunk_bytes: Cell::new(usize::MAX),
                capacity_bytes: Cell::new(DEFAULT_CAPACITY_BYTES),
                flushed: RefCell::new(None),
                filled: RefCell::new(None),
            }),
        }))
    }

    /// Moves the clock, and fires the deadlines that passes.
    pub fn advance(&self, length: Duration) {
        self.0.now.set(self.0.now.get() + length);
        self.0.timer.expire(self.0.now.get());
    }

    /// Lets every receive return at most so many bytes, so that boundaries fall everywhere. Holds for existing
    /// connections too.
    pub fn set_chunk_bytes(&self, bytes: usize) {
        self.0.shape.chunk_bytes.set(bytes.max(1));
    }

    /// How many bytes may be on their way in one direction before a flush has to wait. Holds for existing connections
    /// too.
    pub fn set_capacity_bytes(&self, bytes: usize) {
        self.0.shape.capacity_bytes.set(bytes.max(1));
    }

    /// From now on remembers where flushed slices lay in memory, and where received bytes were put.
    pub fn record(&self) {
        *self.0.shape.flushed.borrow_mut() = Some(Vec::new());
        *self.0.shape.filled.borrow_mut() = Some(Vec::new());
    }

    /// The address ranges that received bytes were put to since the last call, in order.
    pub fn take_filled(&self) -> Vec<Range<usize>> {
        self.0.shape.filled.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The address ranges of all slices flushed since the last call, in order. A test can tell from them that bytes
    /// were sent from where they had arrived.
    pub fn take_flushed(&self) -> Vec<Range<usize>> {
        self.0.shape.flushed.borrow_mut().as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Listens on an address; connecting elsewhere is refused.
    pub fn listen(&self, address: impl Into<Address>) -> Listener {
        let address = address.into();
        let backlog = Rc::new(Backlog::default());
        self.0.listeners.borrow_mut().insert(address.clone(), Place::Listening(backlog.clone()));
        Listener { world: self.0.clone(), address, backlog }
    }

    /// Makes connecting to an address hang, as if packets were lost.
    pub fn silence(&self, address: impl Into<Address>) {
        self.0.listeners.borrow_mut().insert(address.into(), Place::Silent);
    }

    /// A connected pair.
    pub fn pair(&self) -> (Stream, Stream) {
        Stream::pair(&self.0.shape, None)
    }
}

impl Net for Network {
    type Stream = Stream;

    fn now(&self) -> Instant {
        self.0.now.get()
    }

    fn stop(&self) -> Stop {
        Stop::on(self.0.timer.clone())
    }

    fn random(&self) -> u64 {
        next_random(&self.0.chance)
    }

    async fn connect(&self, address: &Address, _mark: Option<u32>, stop: &Stop) -> Result<Stream, Error> {
        if let Some(reason) = stop.reason() {
            return Err(Error::Stopped(reason));
        }
        let backlog = match self.0.listeners.borrow().get(address) {
            Some(Place::Listening(backlog)) => Some(backlog.clone()),
            Some(Place::Silent) => None,
            None => return Err(Error::Io(io::ErrorKind::ConnectionRefused.into())),
        };
        let Some(backlog) = backlog else { return race(pending(), stop).await };
        let peer = match address {
            Address::Ip(address) => Some(*address),
            Address::Unix(_) => None,
        };
        let (near, far) = Stream::pair(&self.0.shape, peer);
        backlog.clients.borrow_mut().push_back(far);
        if let Some(acceptor) = backlog.acceptor.take() {
            acceptor.wake();
        }
        Ok(near)
    }
}

/// The accepting side of an address in memory. Dropping it makes the address refuse.
pub struct Listener {
    world: Rc<World>,
    address: Address,
    backlog: Rc<Backlog>,
}

impl Listener {
    /// Waits for a client. May be dropped at any time.
    pub async fn accept(&self) -> Stream {
        poll_fn(|cx| match self.backlog.clients.borrow_mut().pop_front() {
            Some(client) => Poll::Ready(client),
            None => {
                self.backlog.acceptor.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.world.listeners.borrow_mut().remove(&self.address);
    }
}

/// Runs `future`, and everything it spawns, in the world of `network`. Whenever nothing can move, the clock jumps to
/// the next deadline. Tasks still running at the end are dropped.
///
/// # Panics
/// When nothing can move and no deadline is set: it would hang for ever. Also inside a worker.
pub fn block_on<F: Future>(network: &Network, future: F) -> F::Output {
    executor::block_on(network, future)
}
