//! The few ways in which tasks of one thread wait for each other.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::pin;
use std::task::{Poll, Waker};

/// Something that happens once.
#[derive(Default)]
pub(crate) struct Event {
    happened: Cell<bool>,
    waiting: RefCell<Vec<Waker>>,
}

impl Event {
    pub(crate) fn set(&self) {
        self.happened.set(true);
        for waker in self.waiting.take() {
            waker.wake();
        }
    }

    pub(crate) async fn wait(&self) {
        poll_fn(|context| {
            if self.happened.get() {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// Happens when a number of tasks have all said so.
pub(crate) struct Countdown {
    left: Cell<usize>,
    zero: Event,
}

impl Countdown {
    pub(crate) fn new(count: usize) -> Self {
        let countdown = Self { left: Cell::new(count), zero: Event::default() };
        if count == 0 {
            countdown.zero.set();
        }
        countdown
    }

    pub(crate) fn one_done(&self) {
        debug_assert!(self.left.get() > 0, "each task says so once");
        self.left.set(self.left.get() - 1);
        if self.left.get() == 0 {
            self.zero.set();
        }
    }

    pub(crate) async fn wait(&self) {
        self.zero.wait().await;
    }
}

/// Which of two futures ended first.
pub(crate) enum First<A, B> {
    One(A),
    Other(B),
}

/// Waits for either of two futures, both of which may be dropped at any time: readiness and events, never I/O.
pub(crate) async fn first<A, B>(one: impl Future<Output = A>, other: impl Future<Output = B>) -> First<A, B> {
    let (mut one, mut other) = (pin!(one), pin!(other));
    poll_fn(|context| {
        if let Poll::Ready(output) = one.as_mut().poll(context) {
            return Poll::Ready(First::One(output));
        }
        other.as_mut().poll(context).map(First::Other)
    })
    .await
}

/// Runs two futures to the end of both; `other_ended_first` is called if the second ends before the first.
pub(crate) async fn both<A, B>(
    one: impl Future<Output = A>,
    other: impl Future<Output = B>,
    other_ended_first: impl FnOnce(),
) -> (A, B) {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let (mut from_one, mut from_other) = (None, None);
    let mut other_ended_first = Some(other_ended_first);
    poll_fn(move |context| {
        if from_one.is_none()
            && let Poll::Ready(output) = one.as_mut().poll(context)
        {
            from_one = Some(output);
        }
        if from_other.is_none()
            && let Poll::Ready(output) = other.as_mut().poll(context)
        {
            from_other = Some(output);
            if from_one.is_none()
                && let Some(call) = other_ended_first.take()
            {
                call();
                // What was called may have ended the first at once.
                context.waker().wake_by_ref();
            }
        }
        match (from_one.take(), from_other.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (from_one, from_other) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}
