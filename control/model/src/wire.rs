//! What control and the data plane say to each other, over one Unix stream socket.
//!
//! A frame is a little-endian `u32` length, a little-endian `u32` count of descriptors, and that many bytes of one
//! message (postcard). The descriptors travel with the frame's first byte (SCM_RIGHTS). The framing itself is in
//! `ringmesh_dataplane::link`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::delta::Delta;
use crate::snapshot::{Name, Snapshot};

/// Version of these messages. Another one means upgrade, not adoption.
pub const WIRE_VERSION: u32 = 1;

/// Largest frame, in bytes. 10,000 services of 20 endpoints are about 10 MiB.
pub const MAX_FRAME_BYTES: usize = 256 * 1024 * 1024;

/// Most descriptors in one frame: the kernel's SCM_MAX_FD is 253.
pub const MAX_FRAME_DESCRIPTORS: usize = 250;

/// How the workers run. Fixed for the life of a data plane process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Runtime {
    /// Which I/O driver is wanted.
    pub driver: Driver,
    /// Worker threads; at least one.
    pub workers: u16,
    /// Whether each worker stays on one core.
    pub pin: Pin,
}

/// An I/O driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Driver {
    /// io_uring where the kernel grants it, else epoll.
    Auto,
    /// io_uring or nothing.
    IoUring,
    /// epoll.
    Epoll,
}

/// Whether each worker stays on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Pin {
    /// Worker n on the n-th allowed core.
    Cores,
    /// Where the scheduler likes.
    None,
}

/// From control to the data plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToDataPlane {
    /// First on every connection. A data plane follows the control with the highest epoch that it has seen and closes all
    /// other connections.
    Hello {
        /// [`WIRE_VERSION`].
        wire: u32,
        /// Higher than that of every control before.
        epoch: u64,
    },
    /// Only once, to a data plane that was just started. Descriptors: telemetry memory, event memory, event
    /// notification, the adoption socket (listening).
    Start {
        /// How its workers run.
        runtime: Runtime,
    },
    /// Listening sockets of listeners that the next [`Self::Snapshot`] or [`Self::Delta`] names; replaces those of the same
    /// name. Descriptors: as many as `counts` sums to, in order.
    Listeners {
        /// A listener's name with how many sockets it has (one for each worker, or one that they share).
        counts: Vec<(Name, u16)>,
    },
    /// The whole configuration. The loader keeps what is equal. Answered by [`ToControl::Live`] or [`ToControl::Refused`].
    Snapshot(Snapshot),
    /// A change. Answered like a snapshot.
    Delta(Delta),
    /// Asks for [`ToControl::Report`].
    Report,
    /// Stop accepting, finish what is open for at most this long, say [`ToControl::Drained`], exit 0.
    Drain {
        /// Bound on the whole drain.
        timeout: Duration,
    },
}

/// From the data plane to control.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum ToControl {
    /// Answers `Hello`. Descriptors if it has been started before: telemetry memory, event memory, event notification,
    /// then the listening sockets by `listeners`.
    Welcome {
        /// The data plane's [`WIRE_VERSION`].
        wire: u32,
        /// Its process id.
        pid: u32,
        /// Whether `Start` was received before.
        started: Option<Runtime>,
        /// The listening sockets that follow, by name and count.
        listeners: Vec<(Name, u16)>,
        /// The version that is live (0: none).
        version: u64,
    },
    /// Workers are running.
    Started {
        /// The driver in use: "io_uring" with its flags, or "epoll".
        driver: String,
        /// Why not the better one.
        reason: Option<String>,
    },
    /// All workers use this version.
    Live {
        /// The version.
        version: u64,
    },
    /// This version could not be made ready; the one before goes on.
    Refused {
        /// The version.
        version: u64,
        /// What is wrong.
        reason: String,
    },
    /// Answers `Report`.
    Report(Report),
    /// The drain has ended.
    Drained {
        /// Requests and connections that were cut.
        cut: u64,
    },
    /// Another control with a higher epoch has taken over; the connection closes.
    Superseded,
}

/// The data plane's own account of itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Its process id.
    pub pid: u32,
    /// The driver in use, and its flags.
    pub driver: String,
    /// Why not the better one.
    pub driver_reason: Option<String>,
    /// Seconds since its start.
    pub uptime_seconds: u64,
    /// For each worker, in order.
    pub workers: Vec<WorkerReport>,
    /// For each endpoint that is configured.
    pub endpoints: Vec<EndpointReport>,
}

/// One worker's account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct WorkerReport {
    /// The version it uses.
    pub version: u64,
    /// Open downstream connections.
    pub connections: u64,
    /// Requests in flight.
    pub in_flight: u64,
    /// Tasks that panicked since the start.
    pub panics: u64,
}

/// One endpoint's account, summed over the workers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Its service.
    pub service: Name,
    /// Its address.
    pub address: String,
    /// Requests in flight.
    pub in_flight: u64,
    /// Unused connections kept.
    pub idle: u64,
    /// Connects that failed in a row, at present.
    pub consecutive_failures: u64,
}
