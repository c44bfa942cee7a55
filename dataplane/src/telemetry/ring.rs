//! Each worker's way to tell events: a ring in shared memory, and a nudge when it fills.

use std::os::fd::OwnedFd;

use ringmesh_ring::event_ring;
use ringmesh_ring::shared_memory::{Error, SharedMemory};

use super::layout::EVENT_RING_BYTES;

/// Control looks by itself about once a second; it is nudged when a ring is fuller than this.
const NUDGE_AT: f64 = 0.25;

/// Pushes between two looks at how full the ring is.
const LOOK_EVERY: u32 = 32;

/// One worker's end.
pub struct Producer {
    ring: event_ring::Producer,
    nudge: OwnedFd,
    pushes: u32,
}

impl Producer {
    /// Writes an encoded event; false if there was no room.
    pub fn push(&mut self, event: &[u8]) -> bool {
        let pushed = self.ring.push(event);
        self.pushes += 1;
        if self.pushes >= LOOK_EVERY || !pushed {
            self.pushes = 0;
            if self.ring.fraction_used() > NUDGE_AT {
                // The counter cannot overflow in practice, and a nudge that is lost is followed by another.
                let _ = rustix::io::write(&self.nudge, &1u64.to_ne_bytes());
            }
        }
        pushed
    }
}

/// The producers of all workers over the event memory; `nudge` is an eventfd that control waits on.
///
/// # Errors
/// If the memory is too small, or the system refuses.
pub fn producers(memory: &SharedMemory, workers: u16, nudge: &OwnedFd) -> Result<Vec<Producer>, Error> {
    (0..usize::from(workers))
        .map(|worker| {
            let part = memory.map_writer_part(worker * EVENT_RING_BYTES, EVENT_RING_BYTES)?;
            let ring = event_ring::Producer::new(part).expect("the part is large enough for a ring");
            Ok(Producer { ring, nudge: nudge.try_clone()?, pushes: 0 })
        })
        .collect()
}

/// Control's ends of the same rings.
///
/// # Errors
/// If the memory is too small, or the system refuses.
pub fn consumers(memory: &SharedMemory, workers: u16) -> Result<Vec<event_ring::Consumer>, Error> {
    (0..usize::from(workers))
        .map(|worker| {
            let part = memory.map_writer_part(worker * EVENT_RING_BYTES, EVENT_RING_BYTES)?;
            Ok(event_ring::Consumer::new(part).expect("the part is large enough for a ring"))
        })
        .collect()
}
