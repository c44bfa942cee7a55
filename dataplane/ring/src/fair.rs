//! Yielding that lets I/O and timers happen.
//!
//! A task that wakes itself is run next, before all others, and on a ring with DEFER_TASKRUN neither completions nor
//! timers advance until the run queue is empty. So a task yields by waiting for something that only the kernel says.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use monoio::net::UnixStream;
use rustix::event::{EventfdFlags, eventfd};

use crate::runtime::{Mode, WORKER, mode};
use crate::stop::wakes_same_task;

/// Lets other tasks, I/O and timers go first: resolves only after the loop has been to the kernel.
///
/// # Panics
/// Outside a worker.
pub async fn yield_now() {
    match mode() {
        Mode::IoUring => {
            let ready = WORKER.with(|worker| worker.ready.borrow().clone()).expect("a worker has its descriptor");
            ready.turn().await;
        }
        Mode::Epoll => Gate::pass().await,
        Mode::Memory => step_back().await,
        Mode::Outside => panic!("only a worker's task can yield"),
    }
}

/// A descriptor that is always readable: waiting for it on a ring takes exactly one trip to the kernel.
pub(crate) struct Ready(UnixStream);

impl Ready {
    pub(crate) fn new() -> io::Result<Ready> {
        let always = eventfd(1, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Ready(waitable(always)?))
    }

    pub(crate) async fn turn(&self) {
        // An error ends the wait as well as readiness does, and there is nobody to tell.
        let _ = self.0.readable(false).await;
    }
}

/// Any descriptor, wrapped so that monoio can wait for it. Only ever polled, so its kind does not matter.
pub(crate) fn waitable(descriptor: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(StdUnixStream::from(descriptor))
}

/// Where tasks yield on epoll. monoio's epoll driver answers a descriptor it believes to be ready without returning to
/// the loop, so an always-ready one does not do; instead one task waits for a counter that is empty when its wait
/// begins, the first task to yield fills the counter, and what the kernel then reports lets everybody pass.
pub(crate) struct Gate {
    waiting: RefCell<Vec<Waker>>,
    /// Counts openings, so that a waiting task knows which one it waits for.
    openings: Cell<u64>,
    counter: RefCell<Option<Rc<OwnedFd>>>,
}

impl Gate {
    pub(crate) const fn new() -> Gate {
        Gate { waiting: RefCell::new(Vec::new()), openings: Cell::new(0), counter: RefCell::new(None) }
    }

    pub(crate) fn clear(&self) {
        self.waiting.take();
        self.counter.take();
    }

    async fn pass() {
        let mut entered: Option<(u64, Waker)> = None;
        poll_fn(|cx| {
            WORKER.with(|worker| {
                let gate = &worker.gate;
                match &entered {
                    Some((opening, _)) if *opening != gate.openings.get() => return Poll::Ready(()),
                    Some((_, waker)) if wakes_same_task(waker, cx.waker()) => return Poll::Pending,
                    _ => entered = Some((gate.openings.get(), cx.waker().clone())),
                }
                gate.wait(cx.waker());
                Poll::Pending
            })
        })
        .await;
    }

    fn wait(&self, waker: &Waker) {
        let mut waiting = self.waiting.borrow_mut();
        waiting.push(waker.clone());
        if waiting.len() == 1
            && let Some(counter) = &*self.counter.borrow()
        {
            // The counter cannot overflow: it is emptied before the gate opens.
            let _ = rustix::io::write(counter, &1u64.to_ne_bytes());
        }
    }

    /// Opens the gate once per turn of the loop, for ever.
    pub(crate) fn drive() -> io::Result<impl Future<Output = ()>> {
        let counter = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let waited = waitable(counter.try_clone()?)?;
        let counter = Rc::new(counter);
        WORKER.with(|worker| worker.gate.counter.replace(Some(counter.clone())));
        Ok(async move {
            let mut passing = Vec::new();
            loop {
                let _ = waited.readable(false).await;
                let _ = rustix::io::read(&counter, &mut [0; 8]);
                WORKER.with(|worker| {
                    worker.gate.openings.set(worker.gate.openings.get().wrapping_add(1));
                    std::mem::swap(&mut passing, &mut worker.gate.waiting.borrow_mut());
                });
                passing.drain(..).for_each(Waker::wake);
            }
        })
    }
}

/// In memory every task gets its turn anyhow: pending once is enough.
async fn step_back() {
    struct Once(bool);
    impl Future for Once {
        type Output = ();
        fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
            if std::mem::replace(&mut self.0, true) {
                return Poll::Ready(());
            }
            cx.waker().wake_by_ref();
            Poll::Pending
        }
    }
    Once(false).await
}
