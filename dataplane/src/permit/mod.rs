//! Limits that hold over all workers: a limit of N never admits more than N requests at a time.
//!
//! Each admitted request holds a permit. A large limit's permits are lent to the workers in batches (a worker's lease), so
//! that a request touches only numbers of its own core; the coordinator moves unused ones to where they are asked for. A
//! limit below four for each worker cannot be divided sensibly and uses one shared number instead, the one exception to
//! the rule that requests write nothing that another core writes.
//!
//! The sum of all leases and of what the coordinator holds back is the limit, at every moment: a lease is made smaller by
//! its worker first, and only what it gave up is lent to another.
//!
//! A new or changed limit starts with nothing lent. The first request makes the coordinator ask every worker for what it
//! has in flight; only once all have answered, and together have less than the limit, is the rest lent. Workers count what
//! is in flight without a limit too, and what a service had that was removed, under its name: a later limit counts it.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringmesh_ring::clock::Instant;

use crate::pages::Change;
use crate::places::Place;
use crate::tables::Service;

mod coordinator;

pub use coordinator::Coordinator;

/// A worker keeps at most this share of an even lease when another asks: with all of the others idle, one worker reaches
/// nine tenths of the limit and more.
const KEEP_DIVISOR: u32 = 10;

/// How long a worker that was given nothing waits before it asks again.
const ASK_AGAIN: Duration = Duration::from_millis(10);

/// Most requests of one worker that wait for the coordinator's answer; more are refused at once.
const MAX_WAITING: usize = 1024;

/// In a shared number for each worker that has not added its requests in flight yet. More than all workers can have.
const UNCOUNTED: u64 = 1 << 40;

/// One service's limit, part of its tables.
#[derive(Clone, Debug)]
pub struct Limit {
    /// Most requests in flight.
    pub max: u32,
    /// Which change of any limit made it, from 1: it tells messages of before a change from those after.
    pub change: u64,
    /// What a worker keeps when asked to give back.
    pub keep: u32,
    /// For a small limit: the requests in flight on all workers.
    pub shared: Option<Arc<AtomicU64>>,
}

impl Limit {
    /// The limit `max` on `workers` workers. `before` is the one that it replaces, if that was made for the same service;
    /// `change` is another number each time.
    pub fn new(max: u32, workers: u16, before: Option<&Self>, change: u64) -> Self {
        if let Some(same) = before.filter(|before| before.max == max) {
            return same.clone();
        }
        let workers = u32::from(workers.max(1));
        if max < 4 * workers {
            let shared = before.and_then(|before| before.shared.clone());
            let shared = shared.unwrap_or_else(|| Arc::new(AtomicU64::new(UNCOUNTED * u64::from(workers))));
            return Self { max, change, keep: 0, shared: Some(shared) };
        }
        Self { max, change, keep: max / (KEEP_DIVISOR * workers), shared: None }
    }
}

/// From a worker to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToCoordinator {
    /// Wants more.
    Want(Trade),
    /// Gives back; answers [`ToWorker::Recall`].
    Returned(Trade),
    /// Has so many requests in flight and admits none; answers [`ToWorker::Count`].
    InFlight(Trade),
}

/// From the coordinator to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToWorker {
    /// Lends more; answers [`ToCoordinator::Want`], or follows a count. The amount may be 0.
    Grant(Trade),
    /// Asks for what is not needed.
    Recall(Trade),
    /// Asks for what is in flight; nothing is lent yet.
    Count(Trade),
}

/// What a message is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trade {
    /// The service.
    pub place: Place,
    /// Its limit's [`Limit::change`].
    pub change: u64,
    /// How many permits.
    pub amount: u32,
}

/// Permission for one request; it ends when dropped.
pub struct Permit(Rc<Usage>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        if let Some(shared) = &*self.0.shared.borrow() {
            subtract(shared, 1);
        }
    }
}

/// What one worker has in flight to one service. Outlives the leases: after a change of the limit it goes on counting.
#[derive(Default)]
struct Usage {
    in_flight: Cell<u32>,
    /// The number that it is part of, while that is how the service is limited.
    shared: RefCell<Option<Arc<AtomicU64>>>,
}

impl Usage {
    /// Makes it part of another shared number, or of none. What it was part of before stays as it is: it is used again by
    /// nobody but workers that take the new tables a moment later, and has no more room for them than before.
    fn count_in(&self, shared: Option<&Arc<AtomicU64>>) {
        let mut current = self.shared.borrow_mut();
        if let (Some(current), Some(shared)) = (&*current, shared)
            && Arc::ptr_eq(current, shared)
        {
            return;
        }
        if let Some(shared) = shared {
            subtract(shared, UNCOUNTED - u64::from(self.in_flight.get()));
        }
        *current = shared.cloned();
    }
}

fn subtract(shared: &AtomicU64, amount: u64) {
    #[allow(clippy::disallowed_methods, reason = "the one shared number of the design: a limit too small to divide")]
    shared.fetch_sub(amount, Ordering::Relaxed);
}

/// The service has as many requests in flight as it may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exhausted;

/// A worker's leases.
#[derive(Default)]
pub struct Leases {
    /// By the service's place; of every service, also those without a limit.
    slots: RefCell<Vec<Slot>>,
    /// Of services that were removed while requests were in flight, by name.
    removed: RefCell<HashMap<String, Rc<Lease>>>,
}

/// What is known of the service at one index.
#[derive(Default)]
enum Slot {
    /// There is none.
    #[default]
    Empty,
    /// It has no limit, and this worker has had no request for it.
    Unused(Place),
    Used(Rc<Lease>),
}

/// What one worker may admit for one service.
struct Lease {
    place: Place,
    /// 0 without a limit.
    change: u64,
    max: u32,
    keep: u32,
    /// For a small limit; what is granted means nothing then.
    shared: Option<Arc<AtomicU64>>,
    granted: Cell<u32>,
    /// Whether the service is gone: nobody lends more then.
    removed: Cell<bool>,
    usage: Rc<Usage>,
    asked: Cell<bool>,
    ask_again: Cell<Option<Instant>>,
    /// Emptied with each answer.
    waiting: RefCell<Vec<Option<Waker>>>,
    answers: Cell<u64>,
}

/// How a request fares at first sight.
enum Room {
    Taken(Permit),
    None,
    /// The coordinator may know of some.
    Unknown,
}

impl Leases {
    /// Admits a request if that can be told without asking anybody.
    ///
    /// # Errors
    /// If the service's limit is reached.
    pub fn try_acquire(&self, service: &Service) -> Result<Option<Permit>, Exhausted> {
        match self.lease(service).ok_or(Exhausted)?.take() {
            Room::Taken(permit) => Ok(Some(permit)),
            Room::None => Err(Exhausted),
            Room::Unknown => Ok(None),
        }
    }

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
        loop {
            // Looked up each time: it may have been replaced while we waited.
            let lease = self.lease(service).ok_or(Exhausted)?;
            match lease.take() {
                Room::Taken(permit) => return Ok(permit),
                Room::None => return Err(Exhausted),
                Room::Unknown => {}
            }
            let refused = lease.ask_again.get().is_some_and(|again| now < again);
            if refused || lease.waiting.borrow().len() >= MAX_WAITING {
                return Err(Exhausted);
            }
            if !lease.asked.replace(true) {
                let amount = (lease.max / 16).max(1);
                if !send(ToCoordinator::Want(lease.trade(amount))) {
                    // Others cannot wait: whoever comes first after an answer asks, in its own turn.
                    lease.asked.set(false);
                    return Err(Exhausted);
                }
            }
            // What is lent may be less than all who wait here need. Whoever gets none of it asks again, until the answer is
            // that nothing is left.
            Answered { lease: &lease, answers: lease.answers.get(), slot: None }.await;
        }
    }

    /// Takes a message of the coordinator; what to answer. A message about another limit than the newest is of before a
    /// change, and the coordinator expects no answer to it.
    pub fn receive(&self, message: ToWorker, now: Instant) -> Option<ToCoordinator> {
        let trade = match message {
            ToWorker::Grant(trade) | ToWorker::Recall(trade) | ToWorker::Count(trade) => trade,
        };
        let slots = self.slots.borrow();
        let Some(Slot::Used(lease)) = slots.get(trade.place.index as usize) else { return None };
        if (lease.place, lease.change) != (trade.place, trade.change) {
            return None;
        }
        match message {
            ToWorker::Grant(_) => {
                lease.grant(trade.amount, now);
                None
            }
            ToWorker::Recall(_) => Some(ToCoordinator::Returned(lease.trade(lease.give_up()))),
            ToWorker::Count(_) => Some(ToCoordinator::InFlight(lease.trade(lease.usage.in_flight.get()))),
        }
    }

    /// The lease of a service. The newest tables decide on its limit, also for a request that began with older ones: two
    /// leases at once would admit twice. A request for a service that was removed has what was lent last.
    fn lease(&self, service: &Service) -> Option<Rc<Lease>> {
        let mut slots = self.slots.borrow_mut();
        match slots.get_mut(service.place.index as usize) {
            Some(Slot::Used(lease)) if lease.place == service.place => return Some(lease.clone()),
            Some(slot) if slot.is_unused_by(service.place) => {
                let lease = Lease::new(service.place, None, Rc::default());
                *slot = Slot::Used(lease.clone());
                return Some(lease);
            }
            _ => {}
        }
        self.removed.borrow().get(&service.config.name).filter(|lease| lease.place == service.place).cloned()
    }

    /// Takes what new tables change. Whoever waits for a lease that is replaced goes on at once: its answer would not find
    /// it any more.
    pub fn commit<'a>(&self, changes: impl Iterator<Item = Change<'a, Service>>) {
        let (mut slots, mut removed) = (self.slots.borrow_mut(), self.removed.borrow_mut());
        removed.retain(|_, lease| lease.usage.in_flight.get() > 0);
        let mut new = Vec::new();
        for change in changes {
            match change {
                (Some(old), Some(kept)) if old.place == kept.place => slots[kept.place.index as usize].change(kept),
                (old, added) => {
                    if let Some(old) = old {
                        let lease = std::mem::take(&mut slots[old.place.index as usize]).into_lease(old.place);
                        lease.removed.set(true);
                        lease.wake();
                        removed.insert(old.config.name.clone(), lease);
                    }
                    new.extend(added);
                }
            }
        }
        // Last, as a service that is added may be one that was removed.
        for service in new {
            let index = service.place.index as usize;
            if slots.len() <= index {
                slots.resize_with(index + 1, Slot::default);
            }
            slots[index] = match removed.remove(&service.config.name) {
                None => Slot::new(service),
                Some(old) => {
                    old.end();
                    Slot::Used(Lease::new(service.place, service.limit.as_ref(), old.usage.clone()))
                }
            };
        }
    }
}

impl Slot {
    /// Only a limit needs a lease from the start: workers that share a number must all add to it.
    fn new(service: &Service) -> Self {
        match &service.limit {
            None => Self::Unused(service.place),
            Some(limit) => Self::Used(Lease::new(service.place, Some(limit), Rc::default())),
        }
    }

    fn is_unused_by(&self, service: Place) -> bool {
        matches!(self, Self::Unused(place) if *place == service)
    }

    /// The service has changed, and perhaps its limit.
    fn change(&mut self, service: &Service) {
        let change = service.limit.as_ref().map_or(0, |limit| limit.change);
        match self {
            Self::Used(lease) if lease.change == change => {}
            Self::Used(lease) => {
                let old =
                    std::mem::replace(lease, Lease::new(service.place, service.limit.as_ref(), lease.usage.clone()));
                old.end();
            }
            Self::Empty | Self::Unused(_) => *self = Self::new(service),
        }
    }

    fn into_lease(self, place: Place) -> Rc<Lease> {
        match self {
            Self::Used(lease) => lease,
            Self::Empty | Self::Unused(_) => Lease::new(place, None, Rc::default()),
        }
    }
}

impl Lease {
    /// With a limit, nothing is granted at first.
    fn new(place: Place, limit: Option<&Limit>, usage: Rc<Usage>) -> Rc<Self> {
        let shared = limit.and_then(|limit| limit.shared.clone());
        usage.count_in(shared.as_ref());
        Rc::new(Self {
            place,
            change: limit.map_or(0, |limit| limit.change),
            max: limit.map_or(u32::MAX, |limit| limit.max),
            keep: limit.map_or(0, |limit| limit.keep),
            shared,
            granted: Cell::new(if limit.is_none() { u32::MAX } else { 0 }),
            removed: Cell::new(false),
            usage,
            asked: Cell::new(false),
            ask_again: Cell::new(None),
            waiting: RefCell::default(),
            answers: Cell::new(0),
        })
    }

    fn trade(&self, amount: u32) -> Trade {
        Trade { place: self.place, change: self.change, amount }
    }

    fn take(&self) -> Room {
        let usage = &self.usage;
        match &self.shared {
            None if usage.in_flight.get() >= self.granted.get() => {
                return if self.removed.get() { Room::None } else { Room::Unknown };
            }
            None => {}
            Some(shared) => {
                let max = u64::from(self.max);
                #[allow(
                    clippy::disallowed_methods,
                    reason = "the one shared number of the design: a limit too small to divide"
                )]
                let taken =
                    shared.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < max).then_some(used + 1));
                match taken {
                    Ok(_) => {}
                    // The workers may take new tables a moment apart.
                    Err(UNCOUNTED..) if !self.removed.get() => return Room::Unknown,
                    Err(_) => return Room::None,
                }
            }
        }
        usage.in_flight.set(usage.in_flight.get() + 1);
        Room::Taken(Permit(usage.clone()))
    }

    /// Admits nobody from now on, and lets nobody wait.
    fn end(&self) {
        self.granted.set(0);
        self.removed.set(true);
        self.wake();
    }

    fn wake(&self) {
        self.asked.set(false);
        self.answers.set(self.answers.get() + 1);
        for waker in self.waiting.take().into_iter().flatten() {
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
        let spare = self.granted.get().saturating_sub(self.usage.in_flight.get().max(self.keep));
        self.granted.set(self.granted.get() - spare);
        spare
    }
}

/// Resolves once the question on the way is answered. However often it is polled, it waits once, and not at all once it is
/// dropped.
struct Answered<'a> {
    lease: &'a Lease,
    /// So many answers there were when it began.
    answers: u64,
    slot: Option<usize>,
}

impl Future for Answered<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.lease.answers.get() != self.answers {
            return Poll::Ready(());
        }
        let mut waiting = self.lease.waiting.borrow_mut();
        match self.slot {
            Some(slot) => waiting[slot] = Some(context.waker().clone()),
            None => {
                waiting.push(Some(context.waker().clone()));
                self.slot = Some(waiting.len() - 1);
            }
        }
        Poll::Pending
    }
}

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.slot
            && self.lease.answers.get() == self.answers
        {
            let mut waiting = self.lease.waiting.borrow_mut();
            waiting[slot] = None;
            while let Some(None) = waiting.last() {
                waiting.pop();
            }
        }
    }
}

#[cfg(test)]
mod tests;
