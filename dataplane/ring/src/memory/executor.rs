//! Runs tasks in memory, one after the other, in the order they were woken.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use crate::clock::Instant;
use crate::memory::{Network, World};
use crate::runtime::{Mode, count_panic, set_mode};
use crate::stop::Stop;

type Future_ = Pin<Box<dyn Future<Output = ()>>>;

struct Executor {
    world: Rc<World>,
    tasks: Vec<Option<(Future_, Arc<Flag>)>>,
    /// Spawned while tasks were running.
    fresh: VecDeque<Future_>,
}

/// Whether a task has been woken since it was last polled.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Flag {
    fn raised() -> Arc<Flag> {
        Arc::new(Flag(AtomicBool::new(true)))
    }

    fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

thread_local! {
    static EXECUTOR: RefCell<Option<Executor>> = const { RefCell::new(None) };
}

pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    with(|executor| executor.fresh.push_back(Box::pin(future)));
}

pub(crate) async fn sleep_until(at: Instant) {
    let world = with(|executor| executor.world.clone());
    if at <= world.now.get() {
        return;
    }
    let stop = Stop::on(world.timer.clone());
    stop.set_deadline(Some(at));
    stop.stopped().await;
}

fn with<R>(f: impl FnOnce(&mut Executor) -> R) -> R {
    EXECUTOR.with(|executor| f(executor.borrow_mut().as_mut().expect("in memory, tasks run in `block_on` only")))
}

pub(crate) fn block_on<F: Future>(network: &Network, future: F) -> F::Output {
    let _leave = Leave(set_mode(Mode::Memory));
    assert_eq!(_leave.0, Mode::Outside, "a world in memory cannot run inside a worker");
    let world = network.0.clone();
    EXECUTOR.set(Some(Executor { world: world.clone(), tasks: Vec::new(), fresh: VecDeque::new() }));

    let mut future = pin!(future);
    let woken = Flag::raised();
    let waker = Waker::from(woken.clone());
    loop {
        let mut moved = false;
        if woken.take() {
            moved = true;
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
        }
        moved |= run_tasks();
        if !moved {
            let next = world.timer.next().expect("nothing can move, and there is no deadline to wait for");
            world.now.set(world.now.get().max(next));
            world.timer.expire(world.now.get());
        }
    }
}

/// Polls each task that was woken once; false when there was none.
fn run_tasks() -> bool {
    let mut moved = false;
    with(|executor| {
        for future in executor.fresh.drain(..) {
            executor.tasks.push(Some((future, Flag::raised())));
        }
    });
    let count = with(|executor| executor.tasks.len());
    for index in 0..count {
        // Taken out while it runs: it may spawn.
        let woken = with(|executor| match &executor.tasks[index] {
            Some((_, flag)) if flag.take() => executor.tasks[index].take(),
            _ => None,
        });
        let Some((mut future, flag)) = woken else { continue };
        moved = true;
        let waker = Waker::from(flag.clone());
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut Context::from_waker(&waker)))) {
            Ok(Poll::Pending) => with(|executor| executor.tasks[index] = Some((future, flag))),
            Ok(Poll::Ready(())) => discard(future),
            Err(_) => {
                count_panic();
                discard(future);
            }
        }
    }
    with(|executor| executor.tasks.retain(Option::is_some));
    moved
}

fn discard(future: Future_) {
    if catch_unwind(AssertUnwindSafe(|| drop(future))).is_err() {
        count_panic();
    }
}

/// Ends the world's tasks, also when `block_on` unwinds.
struct Leave(Mode);

impl Drop for Leave {
    fn drop(&mut self) {
        // Tasks that are dropped may spawn others.
        while let Some(future) = EXECUTOR.with(|executor| {
            let mut executor = executor.borrow_mut();
            let executor = executor.as_mut()?;
            executor.fresh.pop_front().or_else(|| executor.tasks.pop().flatten().map(|(future, _)| future))
        }) {
            discard(future);
        }
        EXECUTOR.set(None);
        set_mode(self.0);
    }
}
