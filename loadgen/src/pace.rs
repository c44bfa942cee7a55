//! Waiting for an instant to the microsecond. The runtime's own timers tick by the millisecond, which would be most of the
//! latency that is to be measured; a timer descriptor (timerfd) does not. Tests put a virtual clock in its place.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmesh_ring::Instant;
use ringmesh_ring::Listener;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Wakes the tasks of one thread at exact instants.
pub(crate) struct Pacer {
    clock: Clock,
    waiting: RefCell<Waiting>,
    /// What the timer is set to.
    armed: Cell<Option<Instant>>,
    ended: Cell<bool>,
}

/// Who waits until when. What it needs for each wait it keeps: in steady state waiting allocates nothing.
#[derive(Default)]
struct Waiting {
    /// Instants, earliest first, and whose they are. Those of waits that were dropped are passed over.
    instants: BinaryHeap<Reverse<(Instant, Place)>>,
    places: Vec<Waiter>,
    free: Vec<u32>,
}

/// A place among those who wait; the generation tells its users apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    index: u32,
    generation: u32,
}

#[derive(Default)]
struct Waiter {
    generation: u32,
    waker: Option<Waker>,
}

impl Waiting {
    fn enter(&mut self, instant: Instant) -> Place {
        if self.instants.len() > MIN_SWEPT && self.instants.len() > 2 * self.places.len() {
            self.sweep();
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Waiter::default());
            u32::try_from(self.places.len() - 1).expect("fewer waits than fit in memory")
        });
        let place = Place { index, generation: self.places[index as usize].generation };
        self.instants.push(Reverse((instant, place)));
        place
    }

    fn leave(&mut self, place: Place) {
        let waiter = &mut self.places[place.index as usize];
        waiter.generation = waiter.generation.wrapping_add(1);
        waiter.waker = None;
        self.free.push(place.index);
    }

    fn is_current(places: &[Waiter], place: Place) -> bool {
        places[place.index as usize].generation == place.generation
    }

    /// The earliest instant that somebody still waits for.
    fn earliest(&mut self) -> Option<Instant> {
        while let Some(Reverse((instant, place))) = self.instants.peek() {
            if Self::is_current(&self.places, *place) {
                return Some(*instant);
            }
            self.instants.pop();
        }
        None
    }

    /// The waker of somebody whose instant has come.
    fn pop_due(&mut self, now: Instant) -> Option<Waker> {
        while self.earliest().is_some_and(|earliest| earliest <= now) {
            let Reverse((_, place)) = self.instants.pop()?;
            if let Some(waker) = self.places[place.index as usize].waker.take() {
                return Some(waker);
            }
        }
        None
    }

    /// Forgets the instants of waits that were dropped long before.
    fn sweep(&mut self) {
        let places = &self.places;
        self.instants.retain(|Reverse((_, place))| Self::is_current(places, *place));
    }
}

/// Fewer instants than this are not worth a look at each.
const MIN_SWEPT: usize = 64;

/// A wait; it leaves its place when it is over or dropped.
struct Wait<'a> {
    pacer: &'a Pacer,
    place: Place,
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.pacer.waiting.borrow_mut().leave(self.place);
    }
}

/// Whose time it is.
enum Clock {
    /// The machine's; the descriptor becomes readable when the earliest instant has come.
    Machine(OwnedFd),
    /// A virtual one; whoever moves it calls [`Pacer::expire`].
    #[cfg(test)]
    Memory(ringmesh_ring::memory::Network),
}

/// Whether a wait ended because its instant came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waited {
    Due,
    Ended,
}

impl Pacer {
    /// Makes one, and the task that serves it on this thread.
    pub(crate) fn start() -> io::Result<Rc<Self>> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // Only its readiness is asked for, as for a listener; nothing is accepted.
        let readiness = Listener::from_fd(timer.try_clone()?)?;
        let pacer = Rc::new(Self::new(Clock::Machine(timer)));
        let own = pacer.clone();
        ringmesh_ring::runtime::spawn(async move {
            while !own.ended.get() && readiness.readable().await.is_ok() {
                own.expire();
            }
        });
        Ok(pacer)
    }

    fn new(clock: Clock) -> Self {
        Self { clock, waiting: RefCell::default(), armed: Cell::new(None), ended: Cell::new(false) }
    }

    /// One whose clock is that of a world in memory.
    #[cfg(test)]
    pub(crate) fn in_memory(network: &ringmesh_ring::memory::Network) -> Rc<Self> {
        Rc::new(Self::new(Clock::Memory(network.clone())))
    }

    fn now(&self) -> Instant {
        match &self.clock {
            Clock::Machine(_) => Instant::now(),
            #[cfg(test)]
            Clock::Memory(network) => ringmesh_ring::Net::now(network),
        }
    }

    /// Waits until an instant; returns at once if it has passed.
    pub(crate) async fn until(&self, instant: Instant) -> Waited {
        if self.ended.get() {
            return Waited::Ended;
        }
        if self.now() >= instant {
            return Waited::Due;
        }
        let wait = Wait { pacer: self, place: self.waiting.borrow_mut().enter(instant) };
        poll_fn(|context| {
            if self.ended.get() {
                return Poll::Ready(Waited::Ended);
            }
            if self.now() >= instant {
                return Poll::Ready(Waited::Due);
            }
            let mut waiting = self.waiting.borrow_mut();
            let waker = &mut waiting.places[wait.place.index as usize].waker;
            if !waker.as_ref().is_some_and(|known| known.will_wake(context.waker())) {
                *waker = Some(context.waker().clone());
            }
            drop(waiting);
            self.arm();
            Poll::Pending
        })
        .await
    }

    /// Ends every wait, now and later.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        let wakers: Vec<_> =
            self.waiting.borrow_mut().places.iter_mut().filter_map(|waiter| waiter.waker.take()).collect();
        wakers.into_iter().for_each(Waker::wake);
        // Its task sees that it has ended.
        self.set(Duration::from_nanos(1));
    }

    /// The earliest instant that is waited for.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.waiting.borrow_mut().earliest()
    }

    /// Wakes those whose instant has come.
    pub(crate) fn expire(&self) {
        match &self.clock {
            // Reading clears the readiness; that it may be empty (the timer was set anew meanwhile) does not matter.
            Clock::Machine(timer) => drop(rustix::io::read(timer, &mut [0_u8; 8])),
            #[cfg(test)]
            Clock::Memory(_) => {}
        }
        self.armed.set(None);
        let now = self.now();
        loop {
            let waker = self.waiting.borrow_mut().pop_due(now);
            match waker {
                Some(waker) => waker.wake(),
                None => break,
            }
        }
        self.arm();
    }

    /// Sets the timer to the earliest instant that is waited for.
    fn arm(&self) {
        let Some(earliest) = self.earliest() else { return };
        if self.armed.get().is_some_and(|armed| armed <= earliest) {
            return;
        }
        self.armed.set(Some(earliest));
        // Zero would switch the timer off.
        self.set(earliest.saturating_since(self.now()).max(Duration::from_nanos(1)));
    }

    fn set(&self, delay: Duration) {
        let value = Timespec {
            tv_sec: i64::try_from(delay.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(delay.subsec_nanos()),
        };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        match &self.clock {
            Clock::Machine(timer) => timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)
                .map(drop)
                .expect("the descriptor is a timer and the time valid"),
            #[cfg(test)]
            Clock::Memory(_) => {}
        }
    }
}
