//! Waiting for an instant to the microsecond. The runtime's own timers tick by the millisecond, which would be most of the
//! latency that is to be measured; a timer descriptor (timerfd) does not. Tests put a virtual clock in its place.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
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
    /// Who waits until when; the number keeps equal instants apart.
    waiting: RefCell<BTreeMap<(Instant, u64), Waker>>,
    number: Cell<u64>,
    /// What the timer is set to.
    armed: Cell<Option<Instant>>,
    ended: Cell<bool>,
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
        Self {
            clock,
            waiting: RefCell::default(),
            number: Cell::new(0),
            armed: Cell::new(None),
            ended: Cell::new(false),
        }
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
        let key = (instant, self.number.replace(self.number.get() + 1));
        poll_fn(|context| {
            if self.ended.get() {
                return Poll::Ready(Waited::Ended);
            }
            if self.now() >= instant {
                self.waiting.borrow_mut().remove(&key);
                return Poll::Ready(Waited::Due);
            }
            self.waiting.borrow_mut().insert(key, context.waker().clone());
            self.arm();
            Poll::Pending
        })
        .await
    }

    /// Ends every wait, now and later.
    pub(crate) fn end(&self) {
        self.ended.set(true);
        for waker in self.waiting.take().into_values() {
            waker.wake();
        }
        // Its task sees that it has ended.
        self.set(Duration::from_nanos(1));
    }

    /// The earliest instant that is waited for.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.waiting.borrow().first_key_value().map(|((instant, _), _)| *instant)
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
        let mut waiting = self.waiting.borrow_mut();
        while let Some(entry) = waiting.first_entry()
            && entry.key().0 <= now
        {
            entry.remove().wake();
        }
        drop(waiting);
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
