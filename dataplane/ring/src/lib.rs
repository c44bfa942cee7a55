//! The kernel side of Ringmesh: io_uring and epoll, sockets, timers, shared memory. All its unsafe code is here.
//!
//! A worker is a thread in [`setup::run`]. What belongs to a worker (sockets, buffers, stops, tasks) never leaves it;
//! threads speak by [`mailbox`] alone. The layers above are written against [`Net`] and [`Stream`], so that they run
//! over sockets as well as in [`memory`].

pub mod setup;
pub mod runtime;
mod fair;
pub mod clock;

mod storage;
pub mod buffer;
pub mod output;
pub mod reclaim;

mod wheel;
mod timer;
pub mod stop;

pub mod stream;
pub mod maybe_tls;
pub mod duplex;
pub mod splice;
pub mod socket;
pub mod net;
pub mod memory;

pub mod slot;
pub mod mailbox;

pub mod descriptor;
pub mod shared_memory;
pub mod event_ring;
pub mod affinity;

pub mod heap;
#[cfg(feature = "count-allocations")]
pub mod allocator;

pub use buffer::{BUFFER_BYTES, BULK_BUFFER_BYTES, Buffer, LARGE_BUFFER_BYTES, Size, Slice};
pub use clock::Instant;
pub use fair::yield_now;
pub use maybe_tls::MaybeTls;
pub use net::{Address, Net, Sockets};
pub use output::Output;
pub use runtime::{panics, sleep_until, spawn};
pub use setup::{Driver, Grant, RingFlags, Wish, run};
pub use socket::{Listener, Socket};
pub use splice::Pipe;
pub use stop::{Reason, Stop};
pub use stream::{Bare, Error, Halted, Idle, Stream};
