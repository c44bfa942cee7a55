//! A worker's tasks: spawning with panics contained, sleeping, and ending with nothing left in the kernel's hands.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use crate::clock::Instant;
pub use crate::fair::yield_now;
use crate::fair::{Gate, Ready};
use crate::heap;
use crate::memory::executor;
use crate::timer::Timer;

/// What drives this thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing: the thread is no worker.
    Outside,
    IoUring,
    Epoll,
    /// [`memory::block_on`](crate::memory::block_on).
    Memory,
}

/// What belongs to the worker running on this thread.
pub(crate) struct Worker {
    mode: Cell<Mode>,
    tasks: RefCell<Tasks>,
    /// Spawned tasks that have not ended.
    live: Cell<usize>,
    closing: Cell<bool>,
    closer: Cell<Option<Waker>>,
    /// Operations whose memory the kernel may still touch.
    lent: Cell<usize>,
    panics: Cell<u64>,
    pub(crate) ready: RefCell<Option<std::rc::Rc<Ready>>>,
    pub(crate) gate: Gate,
}

/// The wakers of tasks that have been polled, so that all can be woken to end.
struct Tasks {
    wakers: Vec<Option<Waker>>,
    free: Vec<u32>,
}

thread_local! {
    pub(crate) static WORKER: Worker = const {
        Worker {
            mode: Cell::new(Mode::Outside),
            tasks: RefCell::new(Tasks { wakers: Vec::new(), free: Vec::new() }),
            live: Cell::new(0),
            closing: Cell::new(false),
            closer: Cell::new(None),
            lent: Cell::new(0),
            panics: Cell::new(0),
            ready: RefCell::new(None),
            gate: Gate::new(),
        }
    };
}

pub(crate) fn mode() -> Mode {
    WORKER.with(|worker| worker.mode.get())
}

pub(crate) fn set_mode(mode: Mode) -> Mode {
    match mode {
        Mode::Outside => heap::keep_nothing(),
        _ => heap::keep(),
    }
    WORKER.with(|worker| worker.mode.replace(mode))
}

/// Starts a task on this worker. A panic in it ends this task alone, and is counted; so is one while it is dropped.
///
/// # Panics
/// Outside a worker.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    if mode() == Mode::Memory {
        return executor::spawn(future);
    }
    WORKER.with(|worker| worker.live.set(worker.live.get() + 1));
    drop(monoio::spawn(Task { future: Some(future), key: None }));
}

/// How many tasks of this thread have panicked.
pub fn panics() -> u64 {
    WORKER.with(|worker| worker.panics.get())
}

pub(crate) fn count_panic() {
    WORKER.with(|worker| worker.panics.set(worker.panics.get() + 1));
}

/// Waits until `at`, or up to about a millisecond longer (in memory: up to 10 ms of virtual time). May be dropped at
/// any time. One timer entry a call: deadlines of connections belong into a [`Stop`](crate::Stop).
pub async fn sleep_until(at: Instant) {
    if mode() == Mode::Memory {
        return executor::sleep_until(at).await;
    }
    monoio::time::sleep_until(monoio_instant(at)).await;
}

/// The same moment in monoio's terms; both clocks are the monotonic one.
pub(crate) fn monoio_instant(at: Instant) -> monoio::time::Instant {
    let (now, here) = (monoio::time::Instant::now(), Instant::now());
    now + at.saturating_since(here).min(std::time::Duration::from_secs(365 * 24 * 3600))
}

/// A spawned future. Behind it stand the promises of [`spawn`].
struct Task<F> {
    future: Option<F>,
    key: Option<u32>,
}

impl<F: Future<Output = ()>> Future for Task<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        // SAFETY: `future` is pinned with the task: it is only polled in place, dropped in place, and never moved out.
        let task = unsafe { self.get_unchecked_mut() };
        if WORKER.with(|worker| worker.closing.get()) {
            task.end();
            return Poll::Ready(());
        }
        if task.key.is_none() {
            task.key = Some(WORKER.with(|worker| worker.tasks.borrow_mut().enter(cx.waker().clone())));
        }
        let Some(future) = &mut task.future else { return Poll::Ready(()) };
        // SAFETY: as above; the task itself is pinned.
        let future = unsafe { Pin::new_unchecked(future) };
        match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => {}
            Err(_) => count_panic(),
        }
        task.end();
        Poll::Ready(())
    }
}

impl<F> Task<F> {
    /// Drops the future where it lies, containing its panic, and signs the task off.
    fn end(&mut self) {
        if self.future.is_none() {
            return;
        }
        if catch_unwind(AssertUnwindSafe(|| self.future = None)).is_err() {
            count_panic();
        }
        let key = self.key.take();
        WORKER.with(|worker| worker.leave(key));
    }
}

impl<F> Drop for Task<F> {
    fn drop(&mut self) {
        self.end();
    }
}

impl Tasks {
    fn enter(&mut self, waker: Waker) -> u32 {
        match self.free.pop() {
            Some(key) => {
                self.wakers[key as usize] = Some(waker);
                key
            }
            None => {
                self.wakers.push(Some(waker));
                u32::try_from(self.wakers.len() - 1).expect("fewer tasks than fit in memory")
            }
        }
    }
}

impl Worker {
    fn leave(&self, key: Option<u32>) {
        if let Some(key) = key {
            let mut tasks = self.tasks.borrow_mut();
            // The waker is a counted reference to the task being ended, which its poller still holds.
            tasks.wakers[key as usize] = None;
            tasks.free.push(key);
        }
        self.live.set(self.live.get() - 1);
        if self.live.get() == 0
            && let Some(closer) = self.closer.take()
        {
            closer.wake();
        }
    }
}

/// Held by an operation's memory while the kernel may touch it.
pub(crate) struct Lent(());

impl Lent {
    pub(crate) fn new() -> Lent {
        WORKER.with(|worker| worker.lent.set(worker.lent.get() + 1));
        Lent(())
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        // Memory can come back from the kernel as late as while the thread is torn down; nobody counts then.
        let _ = WORKER.try_with(|worker| worker.lent.set(worker.lent.get() - 1));
    }
}

/// What a worker does from start to end: its timer, its fairness gate, `main`; then every task left is dropped and
/// every operation left is cancelled and awaited, so that the kernel holds none of our memory or descriptors.
pub(crate) async fn work<F: Future>(mode: Mode, main: F) -> io::Result<F::Output> {
    set_mode(mode);
    let _leave = Leave;
    let ready = std::rc::Rc::new(Ready::new()?);
    WORKER.with(|worker| worker.ready.replace(Some(ready.clone())));
    spawn(Timer::of_thread().drive());
    if mode == Mode::Epoll {
        spawn(Gate::drive()?);
    }

    let mut main = Box::pin(main);
    let result = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| main.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await;
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(main)));

    close(mode, &ready).await;
    match (result, dropped) {
        (Ok(output), Ok(())) => Ok(output),
        (Err(panic), _) | (_, Err(panic)) => resume_unwind(panic),
    }
}

/// Undoes what [`work`] set, also when it is dropped half-way.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        WORKER.with(|worker| {
            set_mode(Mode::Outside);
            worker.closing.set(false);
            worker.closer.take();
            worker.gate.clear();
            worker.ready.take();
        });
    }
}

/// Turns of the loop spent at most on awaiting cancelled operations. Two or three suffice.
const MAX_CLOSING_TURNS: usize = 10_000;

async fn close(mode: Mode, ready: &Ready) {
    let wakers: Vec<Waker> = WORKER.with(|worker| {
        worker.closing.set(true);
        worker.tasks.borrow().wakers.iter().flatten().cloned().collect()
    });
    wakers.into_iter().for_each(Waker::wake);
    poll_fn(|cx| {
        WORKER.with(|worker| match worker.live.get() {
            0 => Poll::Ready(()),
            _ => {
                worker.closer.set(Some(cx.waker().clone()));
                Poll::Pending
            }
        })
    })
    .await;

    // On epoll nothing is ever in the kernel's hands.
    if mode == Mode::IoUring {
        let mut turns = 0;
        while turns < 2 || (WORKER.with(|worker| worker.lent.get()) > 0 && turns < MAX_CLOSING_TURNS) {
            ready.turn().await;
            turns += 1;
        }
        // What follows frees the memory; the kernel would then write into somebody else's.
        if WORKER.with(|worker| worker.lent.get()) > 0 {
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::{Buffer, Size, Socket, Stop, Stream, run, setup};

    #[test]
    fn kernel_holds_none_of_our_memory_once_a_worker_has_ended() {
        let lent = || WORKER.with(|worker| worker.lent.get());
        for grant in setup::probe_all() {
            let mut peers: Vec<OwnedFd> = Vec::new();
            run(&grant, async {
                for _ in 0..100 {
                    let (near, far) = UnixStream::pair().unwrap();
                    peers.push(far.into());
                    let near = Socket::from_fd(near.into()).unwrap();
                    spawn(async move {
                        let _ = near.fill(&mut Buffer::take(Size::Small), &Stop::new()).await;
                    });
                }
                yield_now().await;
                assert_eq!(lent(), 100, "on {}", grant.driver);
            })
            .unwrap();
            assert_eq!((lent(), WORKER.with(|worker| worker.live.get())), (0, 0), "on {}", grant.driver);
        }
    }
}
