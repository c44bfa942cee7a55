//! Reusable boxes for large futures: an idle connection is small, and a busy one allocates nothing.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// Boxes a pool keeps at most; what a peak needed beyond is freed when it ends.
const MAX_IDLE: usize = 1024;

type Slot<F> = Pin<Box<Option<F>>>;

/// Makes futures of one kind, in boxes that are used again. Clones are the same pool.
///
/// What makes them is part of the type, so that it is compiled into [`run`](Pool::run): a new future is then a few
/// words written into its box, where a call through a pointer has to return it whole and have it copied twice.
pub struct Pool<F, M> {
    make: M,
    idle: Rc<Idle<F>>,
}

type Idle<F> = RefCell<Vec<Slot<F>>>;

impl<F, M: Clone> Clone for Pool<F, M> {
    fn clone(&self) -> Self {
        Pool { make: self.make.clone(), idle: self.idle.clone() }
    }
}

impl<F, M> Pool<F, M> {
    /// A pool of the futures that `make` makes.
    pub fn new<A>(make: M) -> Pool<F, M>
    where
        F: Future,
        M: Fn(A) -> F,
    {
        Pool { make, idle: Rc::default() }
    }

    /// Runs the future made from `argument` in a box of the pool. The box goes back when it is done or dropped.
    #[inline]
    pub fn run<A>(&self, argument: A) -> Run<F>
    where
        F: Future,
        M: Fn(A) -> F,
    {
        let mut slot = self.idle.borrow_mut().pop().unwrap_or_else(|| Box::pin(None));
        slot.set(Some((self.make)(argument)));
        Run { slot: Some(slot), idle: self.idle.clone() }
    }

    /// Frees the boxes that wait to be used.
    pub fn clear(&self) {
        drop(std::mem::take(&mut *self.idle.borrow_mut()));
    }

    /// Boxes that wait to be used.
    pub fn idle(&self) -> usize {
        self.idle.borrow().len()
    }
}

/// A future in a pooled box; two pointers large.
pub struct Run<F> {
    slot: Option<Slot<F>>,
    idle: Rc<Idle<F>>,
}

impl<F: Future> Future for Run<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let slot = self.slot.as_mut().expect("a future is not polled after it is done");
        let future = slot.as_mut().as_pin_mut().expect("a slot in use is not empty");
        let output = std::task::ready!(future.poll(cx));
        self.give_back();
        Poll::Ready(output)
    }
}

impl<F> Run<F> {
    fn give_back(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        // Should this unwind, the box is freed instead.
        slot.set(None);
        let mut idle = self.idle.borrow_mut();
        if idle.len() < MAX_IDLE {
            idle.push(slot);
        }
    }
}

impl<F> Drop for Run<F> {
    fn drop(&mut self) {
        self.give_back();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::pending;

    use super::*;
    use crate::memory::{Network, block_on};

    #[test]
    fn slot_is_used_again_after_its_future_ends() {
        let pool = Pool::new(|x: u32| async move { x + 1 });
        block_on(&Network::new(1), async {
            for x in 0..10 {
                assert_eq!(pool.run(x).await, x + 1);
                assert_eq!(pool.idle(), 1);
            }
        });
    }

    #[test]
    fn slot_goes_back_when_its_future_is_dropped() {
        struct Counted(Rc<Cell<u32>>);
        impl Drop for Counted {
            fn drop(&mut self) {
                self.0.set(self.0.get() + 1);
            }
        }
        let dropped = Rc::new(Cell::new(0));
        let pool = Pool::new(|counted: Counted| async move {
            let _counted = counted;
            pending::<()>().await;
        });
        drop(pool.run(Counted(dropped.clone())));
        assert_eq!((dropped.get(), pool.idle()), (1, 1));
    }

    #[test]
    fn several_futures_of_a_pool_run_at_once() {
        let pool = Pool::new(|x: u32| async move { x });
        let (first, second) = (pool.run(1), pool.run(2));
        block_on(&Network::new(1), async {
            assert_eq!((second.await, first.await), (2, 1));
        });
        assert_eq!(pool.idle(), 2);
    }

    #[test]
    fn cleared_pool_holds_no_box_and_goes_on() {
        let pool = Pool::new(|x: u32| async move { x });
        let first = pool.run(1);
        drop(pool.run(2));
        assert_eq!(pool.idle(), 1);
        pool.clear();
        assert_eq!(pool.idle(), 0);
        assert_eq!(block_on(&Network::new(1), first), 1);
        assert_eq!(pool.idle(), 1);
    }

    #[test]
    fn running_future_is_two_pointers() {
        fn size<F, M>(_: &Pool<F, M>) -> usize {
            size_of::<Run<F>>()
        }
        assert_eq!(size(&Pool::new(|x: [u8; 4096]| async move { x.len() })), 2 * size_of::<usize>());
    }
}
