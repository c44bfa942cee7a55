//! What the data plane has counted and told, for people and their tools: `/metrics`, the access log, handshake records.
//!
//! [`merge`] reads the workers' counts when somebody asks; [`prometheus`] says which families they make, [`exposition`]
//! how a page is written. [`events`] takes what the workers tell out of their rings; [`access`] and [`handshakes`] are what
//! it becomes; [`writer`] is the thread that writes the log.

pub mod access;
pub mod events;
pub mod exposition;
pub mod handshakes;
pub mod histogram;
pub mod limits;
pub mod merge;
pub mod processes;
pub mod prometheus;
pub mod summary;
pub mod time;
pub mod writer;

#[cfg(test)]
pub(crate) mod grammar;
#[cfg(test)]
pub(crate) mod testing;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use ringmesh_dataplane::telemetry::{Reader, directory, ring};
use ringmesh_ring::shared_memory::{self, SharedMemory};

use self::events::{Events, Source};
use self::merge::{Merge, Totals};
use self::processes::Usage;
use self::prometheus::Scrape;
use self::writer::{Sink, Writer};
use crate::state::State;

/// Why a data plane's telemetry cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The memory cannot be mapped, or is not what it should be.
    #[error("telemetry memory: {0}")]
    Memory(#[from] shared_memory::Error),
    /// It is laid out otherwise than this version reads.
    #[error("telemetry memory: {0}")]
    Layout(#[from] directory::Error),
    /// The thread that writes the access log cannot be started.
    #[error("the access log cannot be written: {0}")]
    Writer(#[from] io::Error),
}

/// The telemetry of one workload's data planes. Clones share it.
#[derive(Clone, Default)]
pub struct Telemetry {
    merge: Arc<Mutex<Merge>>,
    writer: Arc<Mutex<Option<Writer>>>,
    /// What the workers tell.
    pub events: Events,
}

impl Telemetry {
    /// From now on these are the live data plane's: memory of its counts, memory of its events, and the descriptor that
    /// its workers write to when many events wait. The data plane has started, so that its memory is laid out.
    ///
    /// Once a memory is attached, a data plane that starts again on the same one needs no further call.
    ///
    /// # Errors
    /// If a memory is not what it should be, or no thread can be started.
    pub fn attach(&self, counts: OwnedFd, events: OwnedFd, notification: OwnedFd, log: Sink) -> Result<(), Error> {
        let reader = Reader::open(SharedMemory::from_fd(counts)?.map_reader()?)?;
        let consumers = ring::consumers(&SharedMemory::from_fd(events)?, reader.workers())?;
        let sources = consumers.into_iter().map(|consumer| Box::new(consumer) as Box<dyn Source>);
        self.events.attach(sources.collect(), notification.try_clone()?);
        self.merge(|merge| merge.attach(reader));
        let writer = Writer::start(self.events.clone(), notification, log)?;
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(writer);
        Ok(())
    }

    /// What the workers have counted up to now.
    pub fn totals(&self) -> Totals {
        self.merge(|merge| merge.totals())
    }

    /// Everything that `/metrics` shows.
    pub fn scrape(&self, state: State) -> Scrape {
        self.events.drain();
        let dataplane = state.dataplane.pid.map(Usage::of);
        Scrape {
            totals: self.totals(),
            events: self.events.tally(),
            processes: [("control", Usage::of(std::process::id())), ("dataplane", dataplane.unwrap_or_default())],
            state,
            panics: panics(),
            now: SystemTime::now(),
        }
    }

    /// Writes what the access log still lacks, for at most this long.
    pub fn finish(&self, timeout: Duration) {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            writer.finish(timeout);
        }
    }

    fn merge<R>(&self, look: impl FnOnce(&mut Merge) -> R) -> R {
        look(&mut self.merge.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// From now on panics of this process are counted, before they are told as they were.
pub fn count_panics() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::Relaxed);
        tell(panic);
    }));
}

/// How many panics there were since [`count_panics`].
pub fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use ringmesh_dataplane::telemetry::event::Event;
    use ringmesh_dataplane::telemetry::layout;
    use ringmesh_model::snapshot::AccessLog;
    use rustix::event::{EventfdFlags, eventfd};

    use super::testing::{Dataplane, WORKERS};
    use super::*;

    #[test]
    fn the_descriptors_of_a_data_plane_are_all_that_is_needed() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("access.log");
        let mut dataplane = Dataplane::start();
        let events = SharedMemory::create("test", layout::event_memory_bytes(WORKERS)).unwrap();
        let notification = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let mut producers = ring::producers(&events, WORKERS, &notification).unwrap();

        let telemetry = Telemetry::default();
        telemetry.events.set_log(AccessLog::On);
        let memory = events.fd().try_clone_to_owned().unwrap();
        telemetry.attach(dataplane.descriptor(), memory, notification, Sink::File(log.clone())).unwrap();
        dataplane.serve(0, ["inbound", "", "", "local"], 10);
        let event = postcard::to_stdvec(&Event::Access(access::tests::access())).unwrap();
        assert!(producers[1].push(&event));
        telemetry.finish(Duration::from_secs(10));

        let mut line = Vec::new();
        access::write_request(&access::tests::access(), &mut line);
        assert_eq!(std::fs::read(log).unwrap(), line);
        let scrape = telemetry.scrape(State::default());
        assert_eq!((scrape.totals.requests.len(), scrape.events.read), (1, 1));
    }

    #[test]
    fn memory_that_no_data_plane_has_laid_out_is_refused() {
        let memory = |bytes| SharedMemory::create("test", bytes).unwrap().fd().try_clone_to_owned().unwrap();
        let notification = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let telemetry = Telemetry::default();
        let error = telemetry.attach(memory(4096), memory(4096), notification, Sink::Stdout).unwrap_err();
        assert!(matches!(error, Error::Layout(_)), "{error}");
        assert_eq!(telemetry.totals(), Totals::default());
    }
}
