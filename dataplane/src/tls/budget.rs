//! How much of a worker's turn handshakes may take: a few steps, then everybody else's I/O comes first.
//!
//! A storm of new connections otherwise stops established ones for as long as it lasts: key exchange and signatures
//! cost more than a hundred requests' parsing. Those who wait stand in a queue, and only its first pays for the way
//! through the loop, so that ten thousand waiting handshakes cost no more turns than ten.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::limits::MAX_HANDSHAKE_STEPS_PER_TURN;

thread_local! {
    static BUDGET: Budget = const {
        Budget {
            left: Cell::new(MAX_HANDSHAKE_STEPS_PER_TURN),
            driven: Cell::new(false),
            waiting: RefCell::new(VecDeque::new()),
        }
    };
}

/// One worker's budget.
struct Budget {
    left: Cell<u32>,
    /// Whether the first in the queue is on its way through the loop.
    driven: Cell<bool>,
    waiting: RefCell<VecDeque<Rc<Ticket>>>,
}

/// A place in the queue.
#[derive(Default)]
struct Ticket {
    granted: Cell<bool>,
    driving: Cell<bool>,
    waker: Cell<Option<Waker>>,
}

/// Waits until this turn has room for one more handshake step.
pub(super) async fn step() {
    let free = BUDGET.with(|budget| {
        let free = budget.left.get() > 0 && budget.waiting.borrow().is_empty();
        if free {
            budget.left.set(budget.left.get() - 1);
        }
        free
    });
    if free {
        return;
    }
    let place = Place::take();
    while !place.0.granted.get() {
        if BUDGET.with(|budget| budget.driven.replace(true)) {
            place.woken().await;
        } else {
            place.0.driving.set(true);
            ringmesh_ring::yield_now().await;
            place.0.driving.set(false);
            BUDGET.with(Budget::open_turn);
        }
    }
}

impl Budget {
    /// A turn of the loop is over: lets the next few go, and makes the one behind them drive the next turn.
    fn open_turn(&self) {
        self.driven.set(false);
        let mut waiting = self.waiting.borrow_mut();
        let going = waiting.len().min(MAX_HANDSHAKE_STEPS_PER_TURN as usize);
        for ticket in waiting.drain(..going) {
            ticket.granted.set(true);
            ticket.wake();
        }
        self.left.set(MAX_HANDSHAKE_STEPS_PER_TURN - going as u32);
        if let Some(next) = waiting.front() {
            next.wake();
        }
    }
}

impl Ticket {
    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A place in the queue that is given up when dropped.
struct Place(Rc<Ticket>);

impl Place {
    fn take() -> Self {
        let ticket = Rc::new(Ticket::default());
        BUDGET.with(|budget| budget.waiting.borrow_mut().push_back(ticket.clone()));
        Self(ticket)
    }

    /// Until granted, or until nobody drives.
    async fn woken(&self) {
        poll_fn(|context| {
            if self.0.granted.get() || !BUDGET.with(|budget| budget.driven.get()) {
                return Poll::Ready(());
            }
            self.0.waker.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.granted.get() {
            return;
        }
        // Dropped while waiting: its connection ended some other way, or its task unwinds.
        BUDGET.with(|budget| {
            budget.waiting.borrow_mut().retain(|ticket| !Rc::ptr_eq(ticket, &self.0));
            if self.0.driving.get() {
                budget.driven.set(false);
                if let Some(next) = budget.waiting.borrow().front() {
                    next.wake();
                }
            }
        });
    }
}
