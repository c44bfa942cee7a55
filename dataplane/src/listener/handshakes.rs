//! How many handshakes of one listener are under way, over all workers. Asked once a connection, and only where a limit is set.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Handshakes that are under way.
#[derive(Debug, Default)]
pub struct Handshakes(AtomicU32);

impl Handshakes {
    /// Counts a handshake for as long as the result lives. None: there are `max` already.
    pub fn begin(self: &Arc<Self>, max: NonZeroU32) -> Option<UnderWay> {
        let one_more = |now| (now < max.get()).then(|| now + 1);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(UnderWay(self.clone()))
    }
}

/// A handshake that counts.
pub struct UnderWay(Arc<Handshakes>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}
