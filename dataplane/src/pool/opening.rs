//! A connection that is being made and that many may use: one makes it, the others wait.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use crate::outcome::Reason;

/// The connection that is being made, if one is.
#[derive(Default)]
pub(crate) struct Making(RefCell<Weak<Opening>>);

/// Ends when the last one drops it: those who wait look then for what there is.
#[derive(Default)]
pub(crate) struct Opening {
    /// How it ended; None while it lasts, and if nobody is left who makes it.
    failed: Rc<Cell<Option<Reason>>>,
    waiting: RefCell<Vec<Waker>>,
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.waiting.take().into_iter().for_each(Waker::wake);
    }
}

/// What those find who ask for a connection.
pub(crate) enum Found<T> {
    /// One that is open.
    Open(T),
    /// None, and what is made is for many.
    Shared,
    /// None, and what is made is for one.
    Own,
}

impl Making {
    /// Whether one is being made.
    pub(crate) fn is_under_way(&self) -> bool {
        self.0.borrow().strong_count() > 0
    }

    /// What `find` finds, or what `make` makes, by whoever asks first. `own` is how long connecting may take. Whoever makes it
    /// may keep the others waiting beyond that, for as long as what it is given lives.
    ///
    /// # Errors
    /// What connecting ended in, or the own stop.
    pub(crate) async fn join<N: Net, T>(
        &self,
        net: &N,
        own: Duration,
        stop: &Stop,
        deadline: Option<Instant>,
        find: impl Fn() -> Found<T>,
        make: impl AsyncFnOnce(Rc<Opening>) -> Result<T, Reason>,
    ) -> Result<T, Reason> {
        loop {
            match find() {
                Found::Open(open) => return Ok(open),
                Found::Own => return make(Rc::default()).await,
                Found::Shared => {}
            }
            let opening = self.0.borrow().upgrade();
            let Some(opening) = opening else { break };
            let until = net.now() + own;
            stop.set_deadline(Some(deadline.map_or(until, |deadline| deadline.min(until))));
            let failed = wait(opening, stop).await.map_err(|stopped| match stopped {
                StopReason::Deadline if deadline.is_none_or(|deadline| deadline > net.now()) => {
                    stop.clear();
                    Reason::ConnectTimeout
                }
                stopped => Reason::of_stop(stopped),
            })?;
            if let Some(reason) = failed {
                return Err(reason);
            }
        }
        let opening = Rc::new(Opening::default());
        *self.0.borrow_mut() = Rc::downgrade(&opening);
        let made = make(opening.clone()).await;
        // A request that has no time left, or nobody who waits for it, says nothing of the endpoint.
        if let Err(reason) = &made
            && !matches!(reason, Reason::RequestTimeout | Reason::ClientAborted | Reason::Drained)
        {
            opening.failed.set(Some(*reason));
        }
        made
    }
}

/// Waits until a connection is made, or nobody makes it any more.
async fn wait(opening: Rc<Opening>, stop: &Stop) -> Result<Option<Reason>, StopReason> {
    let (weak, failed) = (Rc::downgrade(&opening), opening.failed.clone());
    drop(opening);
    poll_fn(|context| {
        let Some(opening) = weak.upgrade() else { return Poll::Ready(Ok(failed.get())) };
        let mut waiting = opening.waiting.borrow_mut();
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        stop.poll_stopped(context).map(Err)
    })
    .await
}
