//! Bounds on what control keeps of what the data plane tells.

use std::time::Duration;

use ringmesh_dataplane::telemetry::event::MAX_EVENT_BYTES;
use ringmesh_dataplane::telemetry::layout::EVENT_RING_BYTES;

/// Handshake records kept, the newest. At a few hundred bytes each they take about a megabyte when full; a demo or a test
/// that compares both ends of each hop looks at far fewer.
pub const MAX_HANDSHAKE_RECORDS: usize = 4096;

/// Combinations of direction, name, peer, version and cipher that are counted apart; what comes later is counted as
/// `other`. A peer chooses what identity it shows, so we choose the bound.
pub const MAX_HANDSHAKE_COUNTS: usize = 1024;

/// Access log lines that wait for a slow reader of the log, in bytes. Past that, lines are dropped and counted.
pub const MAX_PENDING_BYTES: usize = 1024 * 1024;
const _: () = assert!(MAX_PENDING_BYTES >= EVENT_RING_BYTES, "what one ring holds fits, so that a burst is not lost");

/// Events taken from one worker in one go, so that a worker that writes faster than we read cannot hold us.
pub const MAX_EVENTS_AT_ONCE: usize = 16 * 1024;
const _: () =
    assert!(MAX_EVENTS_AT_ONCE >= EVENT_RING_BYTES / MAX_EVENT_BYTES, "a full ring of long events is emptied");

/// How long an event may lie in its ring before it is logged, while there are too few of them for a worker to wake us.
/// It also is how often control wakes up for them while idle.
pub const DRAIN_INTERVAL: Duration = Duration::from_secs(1);

/// Refused handshakes logged in one second; the rest are counted and told as one line.
pub const MAX_REFUSALS_LOGGED: u32 = 10;
