//! Threads that are workers of a ring, and how others speak to them.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use ringmesh_ring::affinity;
use ringmesh_ring::mailbox::{self, Receiver, Sender};
use ringmesh_ring::setup::{self, Grant};

/// Why a load or a server could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// What was asked for makes no sense.
    #[error("{0}")]
    Settings(&'static str),
    /// A request has a placeholder that there is not.
    #[error(transparent)]
    Template(#[from] crate::load::TemplateError),
    /// The kernel grants no I/O driver as wished.
    #[error(transparent)]
    Driver(#[from] setup::Error),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Bind {
        /// The address.
        address: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A thread or its ring could not be made.
    #[error("cannot start a worker thread")]
    Thread(#[from] io::Error),
    /// The process may not use a core that a thread is to be kept on.
    #[error("core {core} is not to be had: this process may use {}", allowed.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))]
    Core {
        /// The core.
        core: usize,
        /// Those that the process may use.
        allowed: Vec<usize>,
    },
    /// More connections are wanted than the process may have descriptors.
    #[error(
        "{connections} connections need more descriptors than the {allowed} that this process may have: raise the limit \
         (`ulimit -Hn`, LimitNOFILE=), or ask for fewer connections"
    )]
    Descriptors {
        /// Connections that are wanted.
        connections: usize,
        /// Descriptors that the process may have.
        allowed: u64,
    },
    /// A thread panicked: a bug in this crate.
    #[error("a worker thread panicked; this is a bug in ringmesh-loadgen")]
    Panicked,
}

/// Ends a thread's work from another thread. Dropping it does not.
pub(crate) struct Ender(Sender<()>);

impl Ender {
    /// Asks the thread to end. Asking twice is once.
    pub(crate) fn end(&mut self) {
        // Full: it was asked before.
        let _full = self.0.send(());
    }
}

/// A thread, and how to end it.
pub(crate) struct Worker<T> {
    thread: JoinHandle<Result<T, Error>>,
    ender: Ender,
}

impl<T: Send + 'static> Worker<T> {
    /// Starts a thread, kept on `core` if there is one, that runs `main` as a worker. `main` gets the mailbox through which
    /// it is asked to end.
    pub(crate) fn start<M, F>(name: String, core: Option<usize>, grant: Grant, main: M) -> Result<Self, Error>
    where
        M: FnOnce(Receiver<()>) -> F + Send + 'static,
        F: Future<Output = Result<T, Error>>,
    {
        let (mut senders, receiver) = mailbox::mailbox(1, 1)?;
        let ender = Ender(senders.pop().ok_or(Error::Panicked)?);
        let run = move || {
            if let Some(core) = core {
                affinity::pin_to(&[core], 0)?;
            }
            setup::run(&grant, main(receiver))?
        };
        let thread = std::thread::Builder::new().name(name).spawn(run)?;
        Ok(Self { thread, ender })
    }

    pub(crate) fn end(&mut self) {
        self.ender.end();
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    pub(crate) fn join(self) -> Result<T, Error> {
        self.thread.join().map_err(|_| Error::Panicked)?
    }
}

/// Whether the process may use these cores.
pub(crate) fn check_cores(cores: &[usize]) -> Result<(), Error> {
    let allowed = affinity::allowed_cores();
    match cores.iter().find(|core| !allowed.contains(core)) {
        Some(core) => Err(Error::Core { core: *core, allowed }),
        None => Ok(()),
    }
}

/// The core of thread `index`, if threads are kept on cores.
pub(crate) fn core_of(cores: &[usize], index: usize) -> Option<usize> {
    cores.get(index % cores.len().max(1)).copied()
}

/// What a thread has used of the machine's cores.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Usage {
    /// Time on CPU.
    pub(crate) busy: Duration,
    /// Time it could have run and had no core; nothing where the kernel does not tell.
    pub(crate) waiting: Duration,
}

impl Usage {
    /// Of the calling thread.
    pub(crate) fn now() -> Self {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let busy = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0));
        // Time on CPU, time on the run queue, number of turns.
        let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
        let waiting = statistics.split_whitespace().nth(1).and_then(|nanoseconds| nanoseconds.parse().ok());
        Self { busy, waiting: Duration::from_nanos(waiting.unwrap_or(0)) }
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self { busy: self.busy.saturating_sub(before.busy), waiting: self.waiting.saturating_sub(before.waiting) }
    }
}
