//! Limits that hold over all workers: a limit of N never admits more than N requests at a time.
//!
//! Each admitted request holds a permit. A large limit's permits are lent to the workers in batches (a worker's lease), so
//! that a request touches only numbers of its own core; the coordinator moves unused ones to where they are asked for. A
//! limit below four for each worker cannot be divided sensibly and uses one shared number instead, the one exception to
//! the rule that requests write nothing that another core writes.
//!
//! The sum of all leases and of what the coordinator holds back is the limit, at every moment: a lease is made smaller by
//! its worker first, and only what it gave up is lent to another.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmesh_ring::clock::Instant;

use crate::places::Place;
use crate::tables::Service;

/// A worker keeps at most this share of an even lease when another asks: with all of the others idle, one worker reaches
/// nine tenths of the limit and more.
const KEEP_DIVISOR: u32 = 10;

/// How long a worker that was given nothing waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Most requests of one worker that wait for the coordinator's answer; more are refused at once.
const MAX_WAITING: usize = 1024;

/// One service's limit, part of its tables.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Most requests in flight.
    pub max: u32,
    /// What each worker is lent at first.
    pub initial: u32,
    /// What a worker keeps when asked to give back.
    pub keep: u32,
    /// For a small limit: the requests in flight on all workers.
    pub shared: Option<Arc<AtomicU32>>,
}

impl Limit {
    /// The limit `max` on `workers` workers. `before` is the one that it replaces: requests in flight go on counting.
    pub fn new(max: u32, workers: u16, before: Option<&Self>) -> Self {
        let workers = u32::from(workers.max(1));
        if max < 4 * workers {
            let shared = before.and_then(|before| before.shared.clone()).unwrap_or_default();
            return Self { max, initial: 0, keep: 0, shared: Some(shared) };
        }
        Self { max, initial: max / workers, keep: max / (KEEP_DIVISOR * workers), shared: None }
    }
}

/// From a worker to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// Wants more.
    Want(Trade),
    /// Gives back; answers [`ToWorker::Recall`].
    Returned(Trade),
}

/// From the coordinator to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// Lends more; answers [`ToCoordinator::Want`]. The amount may be 0.
    Grant(Trade),
    /// Asks for what is not needed.
    Recall(Trade),
}

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trade {
    /// The service.
    pub place: Place,
    /// Its limit: it tells messages of before a change from those after.
    pub max: u32,
    /// How many permits.
    pub amount: u32,
}

/// Permission for one request; it ends when dropped.
pub enum Permit {
    /// The service has no limit.
    Unlimited,
    /// From the worker's lease.
    Leased(LeasedPermit),
    /// From a number that all workers share.
    Shared(SharedPermit),
}

/// A permit from the worker's lease: counted where all leases of the same service on this worker count.
pub struct LeasedPermit(Rc<Cell<u32>>);

/// A permit from a shared number.
pub struct SharedPermit(Arc<AtomicU32>);

impl Drop for LeasedPermit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl Drop for SharedPermit {
    fn drop(&mut self) {
        #[allow(
            clippy::disallowed_methods,
            reason = "the one shared number of the design: a limit too small to divide"
        )]
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The service has as many requests in flight as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// A worker's leases.
#[derive(Default)]
pub struct Leases {
    /// By the service's place.
    leases: RefCell<Vec<Option<Rc<Lease>>>>,
}

/// What one worker may admit for one service.
struct Lease {
    place: Place,
    max: u32,
    keep: u32,
    granted: Cell<u32>,
    /// Requests in flight. Outlives the lease: after a change of the limit they go on counting, and what they hold is
    /// there for others once they end.
    used: Rc<Cell<u32>>,
    asked: Cell<bool>,
    ask_again: Cell<Option<Instant>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Leases {
    /// Admits a request or refuses it. It waits only for the coordinator's answer, and may be dropped meanwhile; `send`
    /// passes a question on to it and says whether that went well.
    ///
    /// # Errors
    /// If the service's limit is reached.
    pub async fn acquire(
        &self,
        service: &Service,
        now: Instant,
        send: impl Fn(ToCoordinator) -> bool,
    ) -> Result<Permit, Exhausted> {
        let Some(limit) = &service.limit else { return Ok(Permit::Unlimited) };
        if let Some(shared) = &limit.shared {
            return acquire_shared(shared, limit.max);
        }
        loop {
            // Looked up each time: it may have been replaced while we waited.
            let lease = self.lease(service.place, limit);
            if let Some(permit) = lease.take() {
                return Ok(permit);
            }
            let refused = lease.ask_again.get().is_some_and(|again| now < again);
            if refused || lease.waiting.borrow().len() >= MAX_WAITING {
                return Err(Exhausted);
            }
            if !lease.asked.replace(true) {
                let amount = (lease.max / 16).max(1);
                if !send(ToCoordinator::Want(Trade { place: lease.place, max: lease.max, amount })) {
                    lease.asked.set(false);
                    return Err(Exhausted);
                }
            }
            // What is lent may be less than all who wait here need. Whoever gets none of it asks again, until the answer is
            // that nothing is left.
            lease.answered().await;
        }
    }

    /// Takes a message of the coordinator; what to answer.
    pub fn receive(&self, message: ToWorker, now: Instant) -> Option<ToCoordinator> {
        let trade = match message {
            ToWorker::Grant(trade) | ToWorker::Recall(trade) => trade,
        };
        let lease = self.leases.borrow().get(trade.place.index as usize).cloned().flatten();
        let lease = lease.filter(|lease| lease.place == trade.place && lease.max == trade.max);
        match (message, lease) {
            (ToWorker::Grant(_), Some(lease)) => {
                lease.grant(trade.amount, now);
                None
            }
            (ToWorker::Grant(_), None) => Some(ToCoordinator::Returned(trade)),
            (ToWorker::Recall(_), lease) => {
                // A worker that has not used the service yet gives back what it would be lent at first.
                let amount = lease.map_or(0, |lease| lease.give_up());
                Some(ToCoordinator::Returned(Trade { amount, ..trade }))
            }
        }
    }

    /// The lease of a service. The newest tables decide on its limit, also for a request that began with older ones: two
    /// leases at once would admit twice.
    fn lease(&self, place: Place, limit: &Limit) -> Rc<Lease> {
        let lease = self.leases.borrow().get(place.index as usize).cloned().flatten();
        // Without one the service is gone, or not limited any more; what is left of its requests is not traded for.
        lease.filter(|lease| lease.place == place).unwrap_or_else(|| Lease::new(place, limit, Rc::default()))
    }

    /// Takes the services of new tables. Whoever waits for a lease that is replaced goes on at once: its answer would not
    /// find it any more.
    pub fn commit<'a>(&self, services: impl Iterator<Item = &'a Service>) {
        let mut leases = self.leases.borrow_mut();
        let mut before = std::mem::take(&mut *leases);
        for service in services {
            let Some(limit) = service.limit.as_ref().filter(|limit| limit.shared.is_none()) else { continue };
            let index = service.place.index as usize;
            let old = before.get_mut(index).and_then(Option::take);
            let lease = match &old {
                Some(old) if old.place == service.place && old.max == limit.max => old.clone(),
                // The sum of what is lent is the new limit; requests that were admitted under the old one count in it.
                Some(old) if old.place == service.place => Lease::new(service.place, limit, old.used.clone()),
                _ => Lease::new(service.place, limit, Rc::default()),
            };
            if let Some(old) = old.filter(|old| !Rc::ptr_eq(old, &lease)) {
                old.end();
            }
            if leases.len() <= index {
                leases.resize_with(index + 1, || None);
            }
            leases[index] = Some(lease);
        }
        before.into_iter().flatten().for_each(|lease| lease.end());
    }
}

impl Lease {
    fn new(place: Place, limit: &Limit, used: Rc<Cell<u32>>) -> Rc<Self> {
        Rc::new(Self {
            place,
            max: limit.max,
            keep: limit.keep,
            granted: Cell::new(limit.initial),
            used,
            asked: Cell::new(false),
            ask_again: Cell::new(None),
            waiting: RefCell::default(),
        })
    }

    fn take(&self) -> Option<Permit> {
        if self.used.get() >= self.granted.get() {
            return None;
        }
        self.used.set(self.used.get() + 1);
        Some(Permit::Leased(LeasedPermit(self.used.clone())))
    }

    /// Admits nobody from now on, and lets nobody wait.
    fn end(&self) {
        self.granted.set(0);
        self.wake();
    }

    fn wake(&self) {
        self.asked.set(false);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    fn grant(&self, amount: u32, now: Instant) {
        self.granted.set(self.granted.get() + amount);
        if amount == 0 {
            self.ask_again.set(Some(now + ASK_AGAIN));
        }
        self.wake();
    }

    fn give_up(&self) -> u32 {
        let spare = self.granted.get().saturating_sub(self.used.get().max(self.keep));
        self.granted.set(self.granted.get() - spare);
        spare
    }

    /// Resolves once the question on the way is answered.
    async fn answered(&self) {
        poll_fn(|context| {
            if !self.asked.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            if !waiting.last().is_some_and(|last| last.will_wake(context.waker())) {
                waiting.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await;
    }
}

fn acquire_shared(shared: &Arc<AtomicU32>, max: u32) -> Result<Permit, Exhausted> {
    #[allow(clippy::disallowed_methods, reason = "the one shared number of the design: a limit too small to divide")]
    let taken = shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < max).then_some(used + 1));
    taken.map(|_| Permit::Shared(SharedPermit(shared.clone()))).map_err(|_| Exhausted)
}

/// Moves permits between workers. Lives on the loader's thread.
pub struct Coordinator {
    workers: u16,
    books: HashMap<Place, Book>,
}

/// What the coordinator knows of one service.
struct Book {
    max: u32,
    /// Lent to nobody.
    held: u32,
    /// Workers that wait, with how much they want.
    wants: Vec<(u16, u32)>,
    /// Recalls that are not answered yet.
    recalls: u16,
}

impl Coordinator {
    /// A coordinator of so many workers.
    pub fn new(workers: u16) -> Self {
        Self { workers, books: HashMap::new() }
    }

    /// Takes the services of new tables: leases start as their limits say.
    pub fn reset<'a>(&mut self, services: impl Iterator<Item = &'a Service>) {
        let mut books = HashMap::new();
        for service in services {
            let Some(limit) = service.limit.as_ref().filter(|limit| limit.shared.is_none()) else { continue };
            let book = match self.books.remove(&service.place) {
                Some(book) if book.max == limit.max => book,
                _ => Book {
                    max: limit.max,
                    held: limit.max - limit.initial * u32::from(self.workers),
                    wants: Vec::new(),
                    recalls: 0,
                },
            };
            books.insert(service.place, book);
        }
        self.books = books;
    }

    /// Takes a worker's message; `send` passes messages on to workers.
    pub fn receive(&mut self, worker: u16, message: ToCoordinator, mut send: impl FnMut(u16, ToWorker)) {
        let trade = match message {
            ToCoordinator::Want(trade) | ToCoordinator::Returned(trade) => trade,
        };
        let Some(book) = self.books.get_mut(&trade.place).filter(|book| book.max == trade.max) else {
            // Of before a change. A worker that waits is told that there is nothing, and asks again if it still wants.
            if let ToCoordinator::Want(_) = message {
                send(worker, ToWorker::Grant(Trade { amount: 0, ..trade }));
            }
            return;
        };
        match message {
            ToCoordinator::Want(_) => {
                book.wants.push((worker, trade.amount));
                if book.held == 0 && book.recalls == 0 {
                    for other in (0..self.workers).filter(|other| *other != worker) {
                        book.recalls += 1;
                        send(other, ToWorker::Recall(Trade { amount: 0, ..trade }));
                    }
                }
            }
            ToCoordinator::Returned(_) => {
                book.held += trade.amount;
                book.recalls = book.recalls.saturating_sub(1);
            }
        }
        book.settle(trade, send);
    }
}

impl Book {
    /// Lends what is there to those who wait; once all recalls are answered the others are told that there is nothing.
    fn settle(&mut self, trade: Trade, mut send: impl FnMut(u16, ToWorker)) {
        while let Some((worker, amount)) = self.wants.first().copied() {
            if self.held == 0 && self.recalls > 0 {
                return;
            }
            self.wants.remove(0);
            let amount = amount.min(self.held);
            self.held -= amount;
            send(worker, ToWorker::Grant(Trade { amount, ..trade }));
        }
    }
}

#[cfg(test)]
mod tests;
