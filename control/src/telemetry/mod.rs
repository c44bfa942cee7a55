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
pub mod prometheus;
pub mod summary;
pub mod time;
pub mod writer;

#[cfg(test)]
pub(crate) mod grammar;
#[cfg(test)]
mod testing;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use ringmesh_dataplane::telemetry::Reader;

use self::events::Events;
use self::merge::{Merge, Totals};
use self::prometheus::Scrape;
use crate::state::State;

/// The telemetry of one workload's data planes. Clones share it.
#[derive(Clone, Default)]
pub struct Telemetry {
    merge: Arc<Mutex<Merge>>,
    /// What the workers tell.
    pub events: Events,
}

impl Telemetry {
    /// From now on `reader` is the live data plane's memory; see [`Merge::attach`].
    pub fn attach(&self, reader: Reader) {
        self.merge(|merge| merge.attach(reader));
    }

    /// The data planes that were draining are gone; see [`Merge::retire`].
    pub fn retire(&self) {
        self.merge(Merge::retire);
    }

    /// What the workers have counted up to now.
    pub fn totals(&self) -> Totals {
        self.merge(|merge| merge.totals())
    }

    /// Everything that `/metrics` shows.
    pub fn scrape(&self, state: State) -> Scrape {
        self.events.drain();
        Scrape { totals: self.totals(), events: self.events.tally(), state, panics: panics(), now: SystemTime::now() }
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
