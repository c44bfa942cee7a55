//! What the kernel grants, and turning a thread into a worker on it.

use std::fmt;
use std::future::Future;
use std::io;

use io_uring::{IoUring, Probe, opcode};
use monoio::{IoUringDriver, LegacyDriver, RuntimeBuilder};

use crate::runtime::{Mode, work};

/// Entries of a submission queue. A turn that starts more operations enters the kernel in between.
const ENTRIES: u32 = 1024;

/// Entries of a completion queue. Idle connections each have a wait in flight, and many may end in one turn; what does
/// not fit waits in the kernel, at a price.
const COMPLETIONS: u32 = 4096;
const _: () = assert!(COMPLETIONS >= 2 * ENTRIES);

/// What the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// io_uring where the kernel grants it, else epoll.
    #[default]
    Auto,
    /// io_uring or an error.
    IoUring,
    /// epoll.
    Epoll,
}

/// What drives a worker's I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// A ring with these flags.
    IoUring(RingFlags),
    /// epoll and plain system calls.
    Epoll,
}

/// The flags a ring was granted, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RingFlags {
    /// `DEFER_TASKRUN` with `SINGLE_ISSUER` (Linux 6.1): completions are reaped only when the worker asks.
    DeferTaskrun,
    /// `COOP_TASKRUN` (Linux 5.19): the worker is not interrupted for completions.
    CoopTaskrun,
    /// Older kernels. Slower than epoll was measured to be, but correct.
    None,
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Driver::IoUring(RingFlags::DeferTaskrun) => "io_uring (defer_taskrun)",
            Driver::IoUring(RingFlags::CoopTaskrun) => "io_uring (coop_taskrun)",
            Driver::IoUring(RingFlags::None) => "io_uring (no flags)",
            Driver::Epoll => "epoll",
        })
    }
}

/// What a worker may use, and why it is not something better.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// What to run on.
    pub driver: Driver,
    /// Why not the better one; none when this is the best, or what was asked for.
    pub reason: Option<String>,
}

/// Why what was asked for cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// io_uring was demanded. Side: the machine's configuration.
    #[error("io_uring is demanded, but {reason}; set driver = \"auto\" to fall back to epoll")]
    NoIoUring {
        /// What the kernel said.
        reason: String,
    },
}

/// Finds out what the kernel grants for `wish`, by asking it.
///
/// # Errors
/// When io_uring is demanded and denied, with the reason.
pub fn probe(wish: Wish) -> Result<Grant, Error> {
    if wish == Wish::Epoll {
        return Ok(Grant { driver: Driver::Epoll, reason: None });
    }
    let mut reason = None;
    for flags in [RingFlags::DeferTaskrun, RingFlags::CoopTaskrun, RingFlags::None] {
        match try_ring(flags) {
            Ok(()) => return Ok(Grant { driver: Driver::IoUring(flags), reason }),
            Err(cause) => reason = Some(cause),
        }
    }
    match wish {
        Wish::IoUring => Err(Error::NoIoUring { reason: reason.unwrap_or_default() }),
        _ => Ok(Grant { driver: Driver::Epoll, reason }),
    }
}

/// Every driver and flag set that works here, best first. Tests run on all of them.
pub fn probe_all() -> Vec<Grant> {
    [RingFlags::DeferTaskrun, RingFlags::CoopTaskrun, RingFlags::None]
        .into_iter()
        .filter(|flags| try_ring(*flags).is_ok())
        .map(Driver::IoUring)
        .chain([Driver::Epoll])
        .map(|driver| Grant { driver, reason: None })
        .collect()
}

/// Makes this thread a worker until `main` ends. Tasks still running then are dropped, and operations still in flight
/// are cancelled and awaited, before this returns.
///
/// # Errors
/// When the ring or epoll instance cannot be made, for instance when descriptors or locked memory are exhausted.
///
/// # Panics
/// When `main` does, or on a thread that is a worker already.
pub fn run<F: Future>(grant: &Grant, main: F) -> io::Result<F::Output> {
    match grant.driver {
        Driver::IoUring(flags) => {
            let mut builder = RuntimeBuilder::<IoUringDriver>::new().with_entries(ENTRIES);
            builder = builder.uring_builder(ring(flags));
            builder.enable_timer().build()?.block_on(work(Mode::IoUring, main))
        }
        Driver::Epoll => {
            let builder = RuntimeBuilder::<LegacyDriver>::new().with_entries(ENTRIES);
            builder.enable_timer().build()?.block_on(work(Mode::Epoll, main))
        }
    }
}

fn ring(flags: RingFlags) -> io_uring::Builder {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS);
    match flags {
        RingFlags::DeferTaskrun => builder.setup_single_issuer().setup_defer_taskrun(),
        RingFlags::CoopTaskrun => builder.setup_coop_taskrun(),
        RingFlags::None => &mut builder,
    };
    builder
}

/// Makes a ring exactly like a worker's and asks for every operation that we use.
fn try_ring(flags: RingFlags) -> Result<(), String> {
    let name = Driver::IoUring(flags);
    let ring = ring(flags).build(ENTRIES).map_err(|error| {
        let hint = match error.raw_os_error() {
            Some(libc::EPERM) => " (look at sysctl kernel.io_uring_disabled and at the container's seccomp profile)",
            Some(libc::ENOSYS) => " (the kernel or the container's seccomp profile has no io_uring)",
            Some(libc::ENOMEM) => " (raise the limit on locked memory, RLIMIT_MEMLOCK)",
            _ => "",
        };
        format!("the kernel refuses {name}: {error}{hint}")
    })?;
    if !ring.params().is_feature_nodrop() {
        return Err(format!("the kernel's {name} loses completions when its queue is full"));
    }
    let mut probe = Probe::new();
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(|error| format!("the kernel does not tell what {name} can do: {error}"))?;
    let needed = [
        ("recv", opcode::Recv::CODE),
        ("send", opcode::Send::CODE),
        ("writev", opcode::Writev::CODE),
        ("poll", opcode::PollAdd::CODE),
        ("cancel", opcode::AsyncCancel::CODE),
        ("close", opcode::Close::CODE),
    ];
    match needed.iter().find(|(_, code)| !probe.is_supported(*code)) {
        Some((operation, _)) => Err(format!("the kernel's {name} lacks the operation {operation}")),
        None => Ok(()),
    }
}
