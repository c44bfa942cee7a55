//! The deadlines of one world: a coarse wheel of [`Stop`](crate::Stop)s, and the one task that sleeps until the next.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};

use crate::clock::Instant;
use crate::stop;
use crate::wheel::{Key, Wheel};

/// Length of a tick. Deadlines are promises to close something that misbehaves, not appointments: 10 ms late is fine,
/// and a coarse tick lets many connections share a wake-up.
const TICK_NANOS: u64 = 10_000_000;

pub(crate) struct Timer {
    wheel: RefCell<Wheel<Weak<stop::Inner>>>,
    /// What expired, between taking it out of the wheel and triggering it. Kept for its capacity.
    due: RefCell<Vec<Rc<stop::Inner>>>,
    /// The tick its driver sleeps until.
    planned: Cell<u64>,
    driver: Cell<Option<Waker>>,
}

thread_local! {
    static TIMER: Rc<Timer> = Rc::new(Timer::new(Instant::now()));
}

impl Timer {
    /// A timer whose clock shows `now`.
    pub(crate) fn new(now: Instant) -> Timer {
        Timer {
            wheel: RefCell::new(Wheel::new(now.as_nanos() / TICK_NANOS)),
            due: RefCell::new(Vec::new()),
            planned: Cell::new(u64::MAX),
            driver: Cell::new(None),
        }
    }

    /// This thread's timer on the machine's clock.
    pub(crate) fn of_thread() -> Rc<Timer> {
        TIMER.with(Rc::clone)
    }

    /// Puts `stop` in the wheel for `deadline`, or moves it there. Returns the earliest deadline that its entry is in time for.
    pub(crate) fn arm(&self, stop: &Rc<stop::Inner>, key: Option<Key>, deadline: Instant) -> (Key, Instant) {
        // Rounded up: never early.
        let tick = deadline.as_nanos().div_ceil(TICK_NANOS);
        let key = {
            let mut wheel = self.wheel.borrow_mut();
            match key {
                Some(key) => {
                    wheel.reschedule(key, tick);
                    key
                }
                None => wheel.insert(tick, Rc::downgrade(stop)),
            }
        };
        if tick < self.planned.get() {
            self.planned.set(tick);
            if let Some(driver) = self.driver.take() {
                driver.wake();
            }
        }
        (key, Instant::from_nanos(tick.saturating_sub(1).saturating_mul(TICK_NANOS).saturating_add(1)))
    }

    pub(crate) fn disarm(&self, key: Key) {
        self.wheel.borrow_mut().remove(key);
    }

    /// Triggers every stop whose deadline has passed, and puts back those that were postponed meanwhile.
    pub(crate) fn expire(&self, now: Instant) {
        let mut due = self.due.take();
        self.wheel.borrow_mut().expire(now.as_nanos() / TICK_NANOS, |stop| due.extend(stop.upgrade()));
        for stop in due.drain(..) {
            stop::Inner::expired(&stop, now);
        }
        self.due.replace(due);
    }

    /// When [`expire`](Timer::expire) has something to do next.
    pub(crate) fn next(&self) -> Option<Instant> {
        let tick = self.wheel.borrow().next()?;
        Some(Instant::from_nanos(tick.saturating_mul(TICK_NANOS)))
    }

    /// Fires this timer's deadlines on a worker, for ever; asleep in between, and for good while there are none.
    pub(crate) async fn drive(self: Rc<Timer>) {
        // A waker must not outlive the runtime it belongs to.
        struct Leave<'a>(&'a Timer);
        impl Drop for Leave<'_> {
            fn drop(&mut self) {
                self.0.driver.take();
                self.0.planned.set(u64::MAX);
            }
        }
        let _leave = Leave(&self);

        let far = monoio::time::Instant::now() + std::time::Duration::from_secs(365 * 24 * 3600);
        let mut sleep = pin!(monoio::time::sleep_until(far));
        loop {
            self.expire(Instant::now());
            let planned = self.wheel.borrow().next().unwrap_or(u64::MAX);
            self.planned.set(planned);
            sleep.as_mut().reset(match planned {
                u64::MAX => far,
                _ => crate::runtime::monoio_instant(Instant::from_nanos(planned.saturating_mul(TICK_NANOS))),
            });
            std::future::poll_fn(|cx| {
                if self.planned.get() != planned {
                    return Poll::Ready(());
                }
                self.driver.set(Some(cx.waker().clone()));
                match planned {
                    u64::MAX => Poll::Pending,
                    _ => sleep.as_mut().poll(cx),
                }
            })
            .await;
        }
    }
}
