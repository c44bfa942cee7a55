//! What a connection waits for at the same time, and until when. One stop ends all of it at the earliest of these moments,
//! and afterwards it can be told whose it was.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::time::Duration;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Error;

use crate::outcome::Reason;
use crate::proxy::pace::Pace;

/// What waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Both directions together.
    Whole,
    /// The way from client to endpoint.
    Forth,
    /// The way from endpoint to client.
    Back,
}

/// The deadlines of two directions that share a stop.
pub struct Deadlines<'a> {
    stop: &'a Stop,
    idle: Duration,
    pace: Pace,
    waits: [Cell<Wait>; 3],
}

#[derive(Clone, Copy)]
struct Wait {
    until: Instant,
    /// What it means when that moment passes.
    late: Reason,
}

impl Wait {
    const NONE: Self = Self { until: Instant::FAR_FUTURE, late: Reason::RequestTimeout };
}

impl<'a> Deadlines<'a> {
    /// None yet. `idle` is the longest silence of a peer, `pace` the slowest transfer.
    pub const fn new(stop: &'a Stop, idle: Duration, pace: Pace) -> Self {
        Self { stop, idle, pace, waits: [const { Cell::new(Wait::NONE) }; 3] }
    }

    /// What stops all parts.
    pub fn stop(&self) -> &'a Stop {
        self.stop
    }

    /// Longest silence of a peer.
    pub fn idle(&self) -> Duration {
        self.idle
    }

    /// The slowest transfer.
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// A part may wait until then; otherwise it ends for this reason. What has been stopped already stays as it is.
    pub fn set(&self, part: Part, until: Instant, late: Reason) {
        if self.stop.reason().is_none() {
            self.waits[part as usize].set(Wait { until, late });
            self.stop.set_deadline(Some(self.first().until));
        }
    }

    /// A part may be silent for so long.
    pub fn for_silence(&self, part: Part, now: Instant, late: Reason) {
        self.set(part, now + self.idle, late);
    }

    /// The peer at the end of a part may take so long for so many bytes.
    pub fn for_taking(&self, part: Part, now: Instant, bytes: usize, late: Reason) {
        self.set(part, self.pace.end(now, bytes).min(now + self.idle), late);
    }

    /// The peer at the end of a part still takes bytes that it may take until `end`, and may be silent meanwhile.
    pub fn while_taking(&self, part: Part, now: Instant, end: Instant, late: Reason) {
        self.set(part, end.min(now + self.idle), late);
    }

    /// A part waits for nothing, or what it waits for is bounded elsewhere.
    pub fn forget(&self, part: Part) {
        self.set(part, Instant::FAR_FUTURE, Reason::RequestTimeout);
    }

    /// Whether a part's moment has passed.
    pub fn is_over(&self, part: Part, now: Instant) -> bool {
        self.waits[part as usize].get().until <= now
    }

    /// What a stopped operation of any part ends in.
    pub fn reason(&self, stopped: StopReason) -> Reason {
        match stopped {
            StopReason::Deadline => self.first().late,
            StopReason::Drain | StopReason::Abort => Reason::of_stop(stopped),
        }
    }

    /// What a failed operation ends in, if a failure that is no stop means `broken`.
    pub fn reason_of(&self, error: &Error, broken: Reason) -> Reason {
        error.stopped().map_or(broken, |stopped| self.reason(stopped))
    }

    fn first(&self) -> Wait {
        let [whole, forth, back] = self.waits.each_ref().map(Cell::get);
        let first = if forth.until < whole.until { forth } else { whole };
        if back.until < first.until { back } else { first }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_part_is_blamed_whoever_set_its_deadline_last() {
        let stop = Stop::new();
        let deadlines = Deadlines::new(&stop, Duration::from_secs(9), Pace::new(None));
        let at = |seconds: u64| Instant::ZERO + Duration::from_secs(seconds);
        let table = [
            (Part::Whole, 30, Reason::RequestTimeout, Reason::RequestTimeout),
            (Part::Forth, 20, Reason::ClientTimeout, Reason::ClientTimeout),
            (Part::Back, 25, Reason::ClientReadsSlowly, Reason::ClientTimeout),
            (Part::Forth, 40, Reason::UpstreamReadsSlowly, Reason::ClientReadsSlowly),
            (Part::Back, 50, Reason::ClientReadsSlowly, Reason::RequestTimeout),
        ];
        for (part, until, late, expected) in table {
            deadlines.set(part, at(until), late);
            assert_eq!(deadlines.reason(StopReason::Deadline), expected, "{part:?} at {until}");
        }
        stop.trigger(StopReason::Deadline);
        deadlines.set(Part::Back, at(1), Reason::ClientReadsSlowly);
        assert_eq!(deadlines.reason(StopReason::Deadline), Reason::RequestTimeout, "what has ended it stays");
        assert_eq!(deadlines.reason(StopReason::Abort), Reason::ClientAborted);
    }
}
