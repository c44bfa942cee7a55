//! The data plane as control sees it: its process, the link to it, what it has been told, and the memory that outlives it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use ringmesh_dataplane::telemetry::layout;
use ringmesh_model::snapshot::{Listener, Name, Snapshot};
use ringmesh_model::wire::{Portion, ToControl, portions};
use ringmesh_ring::shared_memory::SharedMemory;
use rustix::event::{EventfdFlags, eventfd};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::LAST_BREATH;
use super::adopt::{self, Found};
use super::listeners::{At, Listeners, listeners};
use super::process::Process;
use crate::link::{self, Link};

/// Where each listener that the data plane has sockets of was bound when it got them.
pub(super) type Told = BTreeMap<Name, At>;

/// A data plane process with a link to it.
pub(super) struct Present {
    pub(super) process: Process,
    /// None: it has ended.
    pub(super) link: Option<Link>,
    pub(super) link_ended: Option<Instant>,
    pub(super) told: Told,
    pub(super) since: Instant,
}

impl Present {
    pub(super) fn new(process: Process, link: Link) -> Self {
        Self { process, link: Some(link), link_ended: None, told: Told::new(), since: Instant::now() }
    }
}

/// The data plane.
pub(super) enum Plane {
    /// There is none; one is started at `again`.
    Absent {
        /// None: not before somebody says so.
        again: Option<Instant>,
    },
    /// There is one that listens to us.
    Present(Box<Present>),
    /// There is one, but we have no link to it.
    Sought {
        /// Its process, if we know it.
        process: Option<Process>,
        /// The attempt that is under way.
        attempt: Option<JoinHandle<Result<Found, adopt::Error>>>,
        /// When the next begins.
        again: Option<Instant>,
    },
}

/// What happens to it.
pub(super) enum Event {
    Message(ToControl),
    LinkEnded(link::Error),
    Ended(String),
    Found(Result<Found, adopt::Error>),
}

impl Plane {
    /// Waits for something to happen. May be dropped at any time without loss.
    pub(super) async fn next(&mut self) -> Event {
        match self {
            Self::Absent { .. } => std::future::pending().await,
            Self::Present(present) => present.next().await,
            Self::Sought { attempt: Some(attempt), .. } => Event::Found(match attempt.await {
                Ok(found) => found,
                Err(_) => Err(adopt::Error::Silent),
            }),
            Self::Sought { process: Some(process), .. } => Event::Ended(process.ended().await),
            Self::Sought { .. } => std::future::pending().await,
        }
    }

    /// When something is to be done about it.
    pub(super) fn due(&self) -> Option<Instant> {
        match self {
            Self::Absent { again } | Self::Sought { again, .. } => *again,
            Self::Present(present) => present.link_ended.map(|ended| ended + LAST_BREATH),
        }
    }

    /// The link to it.
    pub(super) fn link(&self) -> Option<&Link> {
        match self {
            Self::Present(present) => present.link.as_ref(),
            _ => None,
        }
    }

    /// Its process.
    pub(super) fn process(&self) -> Option<&Process> {
        match self {
            Self::Present(present) => Some(&present.process),
            Self::Sought { process, .. } => process.as_ref(),
            Self::Absent { .. } => None,
        }
    }

    /// Ends it at once, if we know its process.
    pub(super) fn kill(&self) {
        if let Some(process) = self.process() {
            process.kill();
        }
    }
}

impl Present {
    async fn next(&mut self) -> Event {
        // A process that ends closes its link; its last words are heard before its end is noticed.
        let Some(link) = &mut self.link else { return Event::Ended(self.process.ended().await) };
        match link.receive().await {
            link::Event::Message(message, _) => Event::Message(message),
            link::Event::Ended(error) => {
                self.link = None;
                self.link_ended = Some(Instant::now());
                Event::LinkEnded(error)
            }
        }
    }
}

/// The memory that data planes write and control reads; it outlives both.
pub(super) struct Memory {
    pub(super) telemetry: Arc<OwnedFd>,
    pub(super) events: Arc<OwnedFd>,
    pub(super) notification: Arc<OwnedFd>,
    /// Whether somebody reads it already.
    pub(super) attached: bool,
}

impl Memory {
    /// Fresh memory for so many workers.
    pub(super) fn create(workers: u16) -> io::Result<Self> {
        let create = |name, bytes| -> io::Result<Arc<OwnedFd>> {
            let memory = SharedMemory::create(name, bytes).map_err(io::Error::other)?;
            Ok(Arc::new(memory.fd().try_clone_to_owned()?))
        };
        Ok(Self {
            telemetry: create("ringmesh-telemetry", layout::memory_bytes(workers))?,
            events: create("ringmesh-events", layout::event_memory_bytes(workers))?,
            notification: Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?),
            attached: false,
        })
    }

    /// What comes with `Start`.
    pub(super) fn descriptors(&self, adoption: UnixListener) -> Vec<Arc<OwnedFd>> {
        let adoption = Arc::new(OwnedFd::from(adoption));
        vec![self.telemetry.clone(), self.events.clone(), self.notification.clone(), adoption]
    }
}

impl From<adopt::Memory> for Memory {
    fn from(adopted: adopt::Memory) -> Self {
        let adopt::Memory { telemetry, events, notification } = adopted;
        let [telemetry, events, notification] = [telemetry, events, notification].map(Arc::new);
        Self { telemetry, events, notification, attached: false }
    }
}

/// The socket where the data plane waits for the next control. Whoever had one there before is gone.
pub(super) fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// What an adopted data plane has.
pub(super) fn told(listeners: &[(Name, Vec<OwnedFd>)]) -> Told {
    let address = |sockets: &[OwnedFd]| super::listeners::local_address(sockets.first()?);
    listeners.iter().filter_map(|(name, sockets)| Some((name.clone(), address(sockets)?))).collect()
}

/// What of `told` holds for `snapshot`.
pub(super) fn still_told(told: &Told, bound: &Listeners, snapshot: &Snapshot) -> Told {
    let holds = |listener: &&Listener| {
        bound.find(listener).is_some_and(|(address, _)| told.get(&listener.name) == Some(address))
    };
    let entry = |listener: &Listener| Some((listener.name.clone(), told.get(&listener.name)?.clone()));
    listeners(snapshot).filter(holds).filter_map(entry).collect()
}

/// The sockets that `snapshot` needs and the data plane does not have yet, in portions that fit a frame each; they count as
/// told.
pub(super) fn untold(told: &mut Told, bound: &Listeners, snapshot: &Snapshot) -> Vec<Portion<Arc<OwnedFd>>> {
    let mut new = Vec::new();
    for listener in listeners(snapshot) {
        let Some((address, sockets)) = bound.find(listener) else {
            debug_assert!(false, "listeners are bound before they are published");
            continue;
        };
        if told.get(&listener.name) == Some(address) {
            continue;
        }
        told.insert(listener.name.clone(), address.clone());
        new.push((&listener.name, sockets));
    }
    if new.is_empty() { Vec::new() } else { portions(new, 0) }
}
