//! The one way to end what a connection is doing: by deadline, drain or abort.
//!
//! Operations in flight are never dropped (their bytes or descriptors would be lost). They are cancelled, and their
//! result is awaited; [`Stop`] is how.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use monoio::io::{CancelHandle, Canceller};

use crate::clock::Instant;
use crate::timer::Timer;
use crate::wheel::Key;

/// Why something was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its deadline passed.
    Deadline,
    /// The worker is being drained.
    Drain,
    /// Whoever wanted it does not any more.
    Abort,
}

/// Shared by everything that belongs to one connection. Small while nothing is in flight: what cancels is borrowed from
/// a pool of the thread only as long as an operation runs.
#[derive(Clone)]
pub struct Stop(Rc<Inner>);

pub(crate) struct Inner {
    deadline: Cell<Instant>,
    /// The earliest deadline that the entry in the wheel is in time for; at or before the deadline, so that postponing it or setting
    /// it once more is a cell write.
    armed: Cell<Instant>,
    timer: Rc<Timer>,
    /// Present while something is in flight.
    canceller: Cell<Option<Canceller>>,
    waiters: RefCell<Waiters>,
    key: Cell<Option<Key>>,
    in_flight: Cell<u32>,
    reason: Cell<Option<Reason>>,
}

/// Tasks in [`Stop::stopped`]: nearly always one.
#[derive(Default)]
struct Waiters {
    first: Option<Waker>,
    others: Vec<Waker>,
}

thread_local! {
    /// Cancellers that nothing in flight uses. Each holds a set whose storage is warm.
    static CANCELLERS: RefCell<Vec<Canceller>> = const { RefCell::new(Vec::new()) };
}

/// Cancellers a thread keeps; more operations at once than this allocate.
const MAX_POOLED_CANCELLERS: usize = 1024;

/// Frees the cancellers that this thread keeps.
pub(crate) fn free_unused() {
    // A thread that is being torn down has freed them already.
    let _ = CANCELLERS.try_with(|pool| drop(pool.take()));
}

impl Default for Stop {
    fn default() -> Self {
        Self::new()
    }
}

impl Stop {
    /// A stop on the machine's clock. In code that may run in memory, ask the world instead:
    /// [`Net::stop`](crate::Net::stop).
    pub fn new() -> Stop {
        Stop::on(Timer::of_thread())
    }

    pub(crate) fn on(timer: Rc<Timer>) -> Stop {
        Stop(Rc::new(Inner {
            deadline: Cell::new(Instant::FAR_FUTURE),
            armed: Cell::new(Instant::FAR_FUTURE),
            timer,
            canceller: Cell::new(None),
            waiters: RefCell::default(),
            key: Cell::new(None),
            in_flight: Cell::new(0),
            reason: Cell::new(None),
        }))
    }

    /// Cancels what is in flight and makes every later operation fail at once, until [`clear`](Stop::clear). The first
    /// reason stays.
    pub fn trigger(&self, reason: Reason) {
        self.0.trigger(reason);
    }

    /// Why it was stopped, if it was.
    pub fn reason(&self) -> Option<Reason> {
        self.0.reason.get()
    }

    /// Makes operations possible again. A deadline that has passed is gone; one still to come stays.
    pub fn clear(&self) {
        self.0.reason.set(None);
    }

    /// Makes it as good as new, if nobody else has it; whether it is. Cheaper than a new one: its entry in the wheel stays for
    /// the next deadline, which lies behind it most likely.
    pub fn renew(&self) -> bool {
        let alone = Rc::strong_count(&self.0) == 1;
        if alone {
            self.0.deadline.set(Instant::FAR_FUTURE);
            self.0.reason.set(None);
            drop(self.0.waiters.take());
        }
        alone
    }

    /// Sets or removes the moment at which this is triggered by itself: then or up to about 20 ms later, never before.
    /// Cheap enough to be called several times a request.
    #[inline]
    pub fn set_deadline(&self, deadline: Option<Instant>) {
        let deadline = deadline.unwrap_or(Instant::FAR_FUTURE);
        self.0.deadline.set(deadline);
        if deadline < self.0.armed.get() {
            Inner::arm(&self.0, deadline);
        }
    }

    /// Waits until this is triggered. May be dropped at any time.
    pub async fn stopped(&self) -> Reason {
        poll_fn(|cx| self.poll_stopped(cx)).await
    }

    /// What [`stopped`](Stop::stopped) does in one poll.
    pub fn poll_stopped(&self, cx: &mut Context<'_>) -> Poll<Reason> {
        match self.0.reason.get() {
            Some(reason) => Poll::Ready(reason),
            None => {
                self.0.waiters.borrow_mut().add(cx.waker());
                Poll::Pending
            }
        }
    }

    /// Wakes who waits for it, although it is not triggered.
    pub fn wake(&self) {
        self.0.waiters.take().wake();
    }

    /// Announces an operation that can be cancelled by the returned handle.
    pub(crate) fn begin(&self) -> Result<(CancelHandle, Operation<'_>), Reason> {
        if let Some(reason) = self.0.reason.get() {
            return Err(reason);
        }
        let canceller = self.0.canceller.take().unwrap_or_else(take_canceller);
        let handle = canceller.handle();
        self.0.canceller.set(Some(canceller));
        self.0.in_flight.set(self.0.in_flight.get() + 1);
        Ok((handle, Operation(&self.0)))
    }
}

impl Inner {
    fn trigger(&self, reason: Reason) {
        if self.reason.get().is_some() {
            return;
        }
        self.reason.set(Some(reason));
        if let Some(canceller) = self.canceller.take() {
            self.canceller.set(Some(canceller.cancel()));
        }
        self.waiters.take().wake();
    }

    fn arm(stop: &Rc<Inner>, deadline: Instant) {
        let (key, earliest) = stop.timer.arm(stop, stop.key.get(), deadline);
        stop.key.set(Some(key));
        stop.armed.set(earliest);
    }

    /// The entry came out of the wheel: is the deadline over, or was it moved meanwhile?
    pub(crate) fn expired(stop: &Rc<Inner>, now: Instant) {
        stop.key.set(None);
        stop.armed.set(Instant::FAR_FUTURE);
        let deadline = stop.deadline.get();
        if deadline <= now {
            stop.deadline.set(Instant::FAR_FUTURE);
            stop.trigger(Reason::Deadline);
        } else if deadline != Instant::FAR_FUTURE {
            Inner::arm(stop, deadline);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(key) = self.key.get() {
            self.timer.disarm(key);
        }
    }
}

impl Waiters {
    fn wake(self) {
        self.first.into_iter().chain(self.others).for_each(Waker::wake);
    }

    fn add(&mut self, waker: &Waker) {
        match &self.first {
            None => self.first = Some(waker.clone()),
            Some(first) if wakes_same_task(first, waker) => {}
            Some(_) if self.others.iter().any(|other| wakes_same_task(other, waker)) => {}
            Some(_) => self.others.push(waker.clone()),
        }
    }
}

/// `Waker::will_wake` compares the tables of functions too, and the compiler may have made several of one kind of task's
/// in an optimised build: then no waker of a task would ever be known again, and each wait of a connection would add one.
/// The data alone names a task: it points to it, and a waker that is kept keeps its task.
pub(crate) fn wakes_same_task(one: &Waker, other: &Waker) -> bool {
    one.data() == other.data()
}

/// An operation in flight; the canceller goes back to the pool with the last one.
pub(crate) struct Operation<'a>(&'a Inner);

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let left = self.0.in_flight.get() - 1;
        self.0.in_flight.set(left);
        if left == 0
            && let Some(canceller) = self.0.canceller.take()
        {
            keep_canceller(canceller);
        }
    }
}

fn take_canceller() -> Canceller {
    CANCELLERS.try_with(|pool| pool.borrow_mut().pop()).ok().flatten().unwrap_or_default()
}

fn keep_canceller(canceller: Canceller) {
    // A thread that is being torn down has no pool any more; the canceller is freed then.
    let _ = CANCELLERS.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.len() < MAX_POOLED_CANCELLERS {
            pool.push(canceller);
        }
    });
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stop").field("reason", &self.reason()).field("in_flight", &self.0.in_flight.get()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::task::{RawWaker, RawWakerVTable};

    use crate::memory::{Network, block_on};
    use crate::net::Net;

    use super::*;

    #[test]
    fn stop_without_operations_is_small() {
        // The reference counts lie in front of the value.
        let bytes = size_of::<Inner>() + 2 * size_of::<usize>();
        assert!((96..=144).contains(&bytes), "{bytes} bytes");
    }

    #[test]
    fn a_task_waits_once_however_its_wakers_are_made() {
        fn waker(table: &'static RawWakerVTable) -> Waker {
            // SAFETY: the functions of both tables ignore the data, which points to nothing.
            unsafe { Waker::new(std::ptr::without_provenance(8), table) }
        }
        static FIRST: RawWakerVTable = RawWakerVTable::new(|data| RawWaker::new(data, &FIRST), |_| {}, |_| {}, |_| {});
        static SECOND: RawWakerVTable = RawWakerVTable::new(|data| RawWaker::new(data, &FIRST), |_| {}, |_| (), |_| {});
        let stop = Stop::new();
        for table in [&FIRST, &SECOND, &FIRST, &SECOND] {
            let waker = waker(table);
            assert!(stop.poll_stopped(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(stop.0.waiters.borrow().others.len(), 0);
        assert!(stop.poll_stopped(&mut Context::from_waker(Waker::noop())).is_pending());
        assert_eq!(stop.0.waiters.borrow().others.len(), 1, "another task waits too");
    }

    #[test]
    fn a_stop_that_nobody_else_has_can_be_made_new() {
        let net = Network::new(1);
        block_on(&net, async {
            let second = std::time::Duration::from_secs(1);
            let (stop, begun) = (net.stop(), net.now());
            stop.set_deadline(Some(begun + second));
            assert!(stop.poll_stopped(&mut Context::from_waker(Waker::noop())).is_pending());
            let other = stop.clone();
            assert!(!stop.renew());
            drop(other);
            stop.trigger(Reason::Abort);
            assert!(stop.renew());
            assert_eq!((stop.reason(), stop.0.waiters.borrow().first.is_none()), (None, true));
            crate::sleep_until(begun + 2 * second).await;
            assert_eq!(stop.reason(), None, "its old deadline means nothing");
            stop.set_deadline(Some(begun + 3 * second));
            assert_eq!(stop.stopped().await, Reason::Deadline);
        });
    }

    #[test]
    fn a_deadline_that_is_set_again_is_entered_once() {
        let net = Network::new(1);
        for millis in [1, 1_000, 1_003] {
            let (stop, deadline) = (net.stop(), net.now() + std::time::Duration::from_millis(millis));
            stop.set_deadline(Some(deadline));
            let earliest = stop.0.armed.get();
            assert!(earliest <= deadline, "{millis}: an entry for {earliest:?} is too late for {deadline:?}");
            stop.set_deadline(Some(deadline + std::time::Duration::from_nanos(1)));
            assert_eq!(stop.0.armed.get(), earliest, "{millis}");
        }
    }

    #[test]
    fn first_reason_stays_until_cleared() {
        let stop = Stop::new();
        stop.trigger(Reason::Drain);
        stop.trigger(Reason::Abort);
        assert_eq!(stop.reason(), Some(Reason::Drain));
        assert!(stop.begin().is_err());
        stop.clear();
        assert!(stop.begin().is_ok());
    }
}
