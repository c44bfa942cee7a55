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
    pub(crate) failed: Rc<Cell<Option<Reason>>>,
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

    /// What `find` finds, or what `make` makes, by whoever asks first. `own` is how long connecting may take, and so may waiting for
    /// others to do it, however many try. Whoever makes it may keep the others waiting beyond that, for as long as what it is given
    /// lives.
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
        let mut until = None;
        loop {
            match find() {
                Found::Open(open) => return Ok(open),
                Found::Own => return make(Rc::default()).await,
                Found::Shared => {}
            }
            let opening = self.0.borrow().upgrade();
            let Some(opening) = opening else { break };
            let until = *until.get_or_insert_with(|| net.now() + own);
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

#[cfg(test)]
mod tests {
    use ringmesh_ring::memory::{Network, block_on};

    use super::*;

    #[test]
    fn who_waits_for_others_to_connect_waits_no_longer_than_connecting_may_take_however_many_try() {
        const WAITING: usize = 6;
        let net = Network::new(1);
        let (own, patience) = (Duration::from_secs(1), Duration::from_millis(600));
        let (making, ended) = (Rc::new(Making::default()), Rc::new(RefCell::new(Vec::new())));
        let begun = net.now();
        block_on(&net, async {
            for _ in 0..WAITING {
                let (net, making, ended) = (net.clone(), making.clone(), ended.clone());
                ringmesh_ring::spawn(async move {
                    // Whoever connects has no time left before it is known whether the endpoint answers.
                    let make = async |_opening| {
                        ringmesh_ring::sleep_until(net.now() + patience).await;
                        Err::<(), _>(Reason::RequestTimeout)
                    };
                    let joined = making.join(&net, own, &net.stop(), None, || Found::Shared, make).await;
                    ended.borrow_mut().push((joined, net.now().saturating_since(begun)));
                });
            }
            ringmesh_ring::sleep_until(begun + Duration::from_secs(60)).await;
        });
        let ended = ended.take();
        assert_eq!(ended.len(), WAITING);
        for (joined, after) in ended {
            assert!(joined.is_err() && after <= own + patience, "{joined:?} after {after:?}");
        }
    }
}
