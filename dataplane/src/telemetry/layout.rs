//! Where each number lies in the telemetry memory: a sealed file of 64-bit words, mapped by the data plane for writing and
//! by control for reading.
//!
//! ```text
//! header (one page) | directory: one entry a series | worker 0 | worker 1 | …
//! worker: gauges (one page) | marks: one word a series | blocks: one page a series
//! ```
//!
//! A series is one combination of labels. The loader alone gives it a place (an index) and writes its entry. A worker
//! writes a series' block only once it has something to count, so that places that nobody uses cost no memory: the file
//! is sparse. The mark says for which generation of the place the block counts; a block with another mark is not read. An
//! entry of kind 0 has no owner; the next one gets the generation after the one that stands there.

use crate::outcome::MAX_REASONS;

/// First word of the memory: "ringmesh" in ASCII, read as a little-endian number.
pub const MAGIC: u64 = u64::from_le_bytes(*b"ringmesh");

/// Most workers: the gauges have a word for each.
pub const MAX_WORKERS: u16 = 256;

/// Version of this layout. Control reads no other.
pub const LAYOUT_VERSION: u64 = 3;

/// Words in a page of 4 KiB.
pub const PAGE_WORDS: usize = 512;

/// Most series at a time; what comes later is counted by the series `other` of its kind. 10,000 services with a route
/// each take 20,000.
pub const MAX_SERIES: usize = 32 * 1024;

/// Words of one directory entry: generation, kind and length, and the labels' bytes.
pub const ENTRY_WORDS: usize = 32;

/// Most bytes of one entry's labels.
pub const MAX_LABEL_BYTES: usize = (ENTRY_WORDS - 2) * 8;

/// Words of one block.
pub const BLOCK_WORDS: usize = PAGE_WORDS;

/// Words of the header.
pub mod header {
    /// [`super::MAGIC`].
    pub const MAGIC: usize = 0;
    /// [`super::LAYOUT_VERSION`].
    pub const LAYOUT: usize = 1;
    /// Number of workers.
    pub const WORKERS: usize = 2;
    /// [`super::MAX_SERIES`].
    pub const SERIES: usize = 3;
    /// Entries of the directory that have ever been used: none above it is.
    pub const USED: usize = 4;
    /// How often a data plane has started on this memory.
    pub const STARTS: usize = 5;
    /// The version that the loader has published to the workers.
    pub const VERSION: usize = 6;
    /// Series that have a place now.
    pub const TAKEN: usize = 7;
    /// Listeners that no worker accepts on, for want of descriptors.
    pub const DEAF: usize = 8;
}

/// Words of a worker's gauges.
pub mod gauge {
    /// Open downstream connections.
    pub const CONNECTIONS: usize = 0;
    /// Requests in flight.
    pub const IN_FLIGHT: usize = 8;
    /// The version of the tables in use.
    pub const VERSION: usize = 16;
    /// Tasks that panicked, over all starts.
    pub const PANICS: usize = 17;
    /// Events dropped because nobody drained them, over all starts.
    pub const EVENTS_DROPPED: usize = 18;
    /// Connections taken over from other workers, over all starts.
    pub const HANDED_OVER: usize = 19;
    /// Accepts that failed for want of descriptors or memory, over all starts.
    pub const ACCEPT_FAILED: usize = 20;
    /// 1 if this worker runs on epoll, 0 on io_uring.
    pub const EPOLL: usize = 21;
    /// Upstream connections opened, over all starts.
    pub const UPSTREAM_OPENED: usize = 22;
    /// Connections taken over from worker n, over all starts: word `RECEIVED + n`.
    pub const RECEIVED: usize = 64;
}

const _: () = assert!(gauge::RECEIVED + MAX_WORKERS as usize <= PAGE_WORDS);

/// What a series counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// Requests: labels listener, route, rule, service.
    Request = 1,
    /// A listener's connections: label listener.
    Listener = 2,
    /// A service's connections: label service.
    Service = 3,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Request, Self::Listener, Self::Service];

    /// The names of its labels, in order.
    pub const fn labels(self) -> &'static [&'static str] {
        match self {
            Self::Request => &["listener", "route", "rule", "service"],
            Self::Listener => &["listener"],
            Self::Service => &["service"],
        }
    }

    /// The kind with this number.
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u64 == number)
    }
}

/// Words of a block of kind [`Kind::Request`].
pub mod request {
    /// Responses by class: informational is not counted; `CLASS + 2` is 2xx … `CLASS + 5` is 5xx, `CLASS` no response.
    pub const CLASS: usize = 0;
    /// Ends by reason.
    pub const REASON: usize = 8;
    /// Bytes of request bodies passed on.
    pub const REQUEST_BYTES: usize = REASON + super::MAX_REASONS;
    /// Bytes of response bodies passed on.
    pub const RESPONSE_BYTES: usize = REQUEST_BYTES + 1;
    /// Sum of durations, in microseconds.
    pub const DURATION_SUM: usize = RESPONSE_BYTES + 1;
    /// Attempts beyond the first.
    pub const RETRIES: usize = DURATION_SUM + 1;
    /// gRPC calls by status.
    pub const GRPC: usize = 80;
    const _: () = assert!(RETRIES < GRPC && GRPC + ringmesh_codec::grpc::STATUSES <= super::HISTOGRAM);
}

/// Words of a block of kind [`Kind::Listener`].
pub mod listener {
    /// Connections accepted.
    pub const ACCEPTED: usize = 0;
    /// Connections closed.
    pub const CLOSED: usize = 1;
    /// Handshakes that ended well.
    pub const HANDSHAKES: usize = 2;
    /// Bytes received from clients on opaque connections.
    pub const RECEIVED_BYTES: usize = 3;
    /// Bytes sent to clients on opaque connections.
    pub const SENT_BYTES: usize = 4;
    /// Connections open now. Set to 0 when a data plane starts.
    pub const OPEN: usize = 5;
    /// Connections that ended for a reason of their own, by reason.
    pub const REASON: usize = 8;
    /// Handshakes refused, by the number of the cause (`tls::Refused`).
    pub const REFUSED: usize = 80;
    const _: () = assert!(REASON + super::MAX_REASONS <= REFUSED);
}

/// Words of a block of kind [`Kind::Service`].
pub mod service {
    /// Connections opened.
    pub const OPENED: usize = 0;
    /// Connects that failed.
    pub const CONNECT_FAILED: usize = 1;
    /// Handshakes that ended well.
    pub const HANDSHAKES: usize = 2;
    /// Requests that an unused connection was found for.
    pub const REUSED: usize = 3;
    /// Endpoints that probes have found healthy, as it stands. Set to 0 when a data plane starts.
    pub const HEALTHY: usize = 4;
    /// Endpoints that probes have found unhealthy, as it stands. Set to 0 when a data plane starts.
    pub const UNHEALTHY: usize = 5;
    /// Probes that found an endpoint to serve.
    pub const PROBES_PASSED: usize = 6;
    /// Probes that did not.
    pub const PROBES_FAILED: usize = 7;
    /// Handshakes refused, by the number of the cause (`tls::Refused`).
    pub const REFUSED: usize = 80;
}

/// First word of a block's histogram.
pub const HISTOGRAM: usize = 128;

/// Buckets of a histogram.
pub const BUCKETS: usize = BLOCK_WORDS - HISTOGRAM;

/// Buckets in each doubling of the value: the relative width of a bucket is at most 1/16.
const SUB_BUCKETS: u64 = 16;

/// The bucket that `micros` falls into. Values up to 31 µs have buckets of their own; the last bucket is open-ended.
pub const fn bucket(micros: u64) -> usize {
    if micros < 2 * SUB_BUCKETS {
        return micros as usize;
    }
    let shift = 59 - micros.leading_zeros() as u64;
    let index = (shift * SUB_BUCKETS + (micros >> shift)) as usize;
    if index < BUCKETS { index } else { BUCKETS - 1 }
}

/// The smallest value of a bucket, in microseconds.
pub const fn bucket_start(index: usize) -> u64 {
    let index = index as u64;
    if index < 2 * SUB_BUCKETS {
        return index;
    }
    let shift = index / SUB_BUCKETS - 1;
    (index - shift * SUB_BUCKETS) << shift
}

/// First word of the directory.
pub const DIRECTORY: usize = PAGE_WORDS;

/// First word of the first worker's part.
pub const WORKERS: usize = DIRECTORY + MAX_SERIES * ENTRY_WORDS;

/// Words of one worker's part.
pub const WORKER_WORDS: usize = PAGE_WORDS + MAX_SERIES + MAX_SERIES * BLOCK_WORDS;

/// Bytes of the telemetry memory for so many workers. Most of it is never touched and takes no memory.
pub const fn memory_bytes(workers: u16) -> usize {
    (WORKERS + workers as usize * WORKER_WORDS) * 8
}

/// Bytes of one worker's event ring: 256 KiB of events, and a page for the ring's own words.
pub const EVENT_RING_BYTES: usize = 260 * 1024;
const _: () = assert!(EVENT_RING_BYTES >= ringmesh_ring::event_ring::memory_bytes(256 * 1024));

/// Bytes of the event memory for so many workers.
pub const fn event_memory_bytes(workers: u16) -> usize {
    workers as usize * EVENT_RING_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_contiguous_and_narrow() {
        for index in 0..BUCKETS - 1 {
            let (start, next) = (bucket_start(index), bucket_start(index + 1));
            assert!(start < next, "bucket {index}");
            assert_eq!(bucket(start), index);
            assert_eq!(bucket(next - 1), index);
            assert!(next - start <= 1 + start / 16, "bucket {index} is too wide");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
        assert!(bucket_start(BUCKETS - 1) > 60_000_000, "a minute is still inside");
    }
}
