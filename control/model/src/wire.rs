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
pub const WIRE_VERSION: u32 = 6;

/// Largest frame, in bytes. 10,000 services of 20 endpoints are about 10 MiB.
pub const MAX_FRAME_BYTES: usize = 256 * 1024 * 1024;

/// Most descriptors in one frame: the kernel's SCM_MAX_FD is 253.
pub const MAX_FRAME_DESCRIPTORS: usize = 250;

/// The first version whose control understands [`ToControl::Listeners`].
pub const WIRE_WITH_LISTENERS: u32 = 2;

/// Listeners with how many sockets each has, and those sockets: what one frame takes.
pub type Portion<S> = (Vec<(Name, u16)>, Vec<S>);

/// Distributes the sockets of listeners over frames of which each has room for [`MAX_FRAME_DESCRIPTORS`], the first for
/// `reserved` fewer. There is always a first. A listener's sockets may be in two frames: the receiver adds them up.
pub fn portions<'a, S: Clone + 'a>(
    listeners: impl IntoIterator<Item = (&'a Name, &'a [S])>,
    reserved: usize,
) -> Vec<Portion<S>> {
    let mut room = MAX_FRAME_DESCRIPTORS - reserved;
    let mut last: Portion<S> = Default::default();
    let mut all = Vec::new();
    for (name, sockets) in listeners {
        let mut rest = sockets;
        while !rest.is_empty() {
            if room == 0 {
                all.push(std::mem::take(&mut last));
                room = MAX_FRAME_DESCRIPTORS;
            }
            let (now, later) = rest.split_at(rest.len().min(room));
            last.0.push((name.clone(), now.len() as u16));
            last.1.extend_from_slice(now);
            room -= now.len();
            rest = later;
        }
    }
    all.push(last);
    all
}

/// Adds sockets to those of the listener of that name.
pub fn add_up<S>(all: &mut Vec<(Name, Vec<S>)>, name: Name, sockets: impl IntoIterator<Item = S>) {
    match all.iter_mut().find(|(known, _)| *known == name) {
        Some((_, known)) => known.extend(sockets),
        None => all.push((name, sockets.into_iter().collect())),
    }
}

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
    /// Listening sockets of listeners that the next [`Self::Snapshot`] or [`Self::Delta`] names; they take the place of those
    /// that are in use under the same name. Those of several such messages before it add up. Descriptors: as many as
    /// `counts` sums to, in order.
    Listeners {
        /// A listener's name with how many sockets it has (one for each worker, or one that they share).
        counts: Vec<(Name, u16)>,
    },
    /// The whole configuration. The loader keeps what is equal. Answered by [`ToControl::Live`],
    /// [`ToControl::Partly`] or [`ToControl::Refused`].
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
    /// then the listening sockets by `listeners`. Those that do not fit came before it by [`Self::Listeners`].
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
    /// Some workers use this version, and some do not answer. [`Self::Live`] follows when the last one has taken it.
    Partly {
        /// The version.
        version: u64,
        /// The version that each worker uses.
        workers: Vec<u64>,
    },
    /// Before `Welcome`: listening sockets that have no room in it. Descriptors: as many as `counts` sums to, in order.
    Listeners {
        /// A listener's name with how many sockets of it follow.
        counts: Vec<(Name, u16)>,
    },
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
    /// Listeners that no worker accepts on yet, for want of descriptors.
    pub deaf: Vec<Name>,
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
    /// It did not answer in time: only the version is known that it has last confirmed.
    pub silent: bool,
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
    /// What probes have found.
    pub health: Health,
}

/// What probes have found of an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing, or none are made.
    #[default]
    Unknown,
    /// It serves.
    Healthy,
    /// It does not.
    Unhealthy,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_distributed_over_frames_and_add_up_again() {
        let check = |counts: &[usize], reserved: usize, frames: usize| {
            let mut socket = 0..;
            let listeners: Vec<(Name, Vec<i32>)> = counts
                .iter()
                .enumerate()
                .map(|(number, count)| (format!("l{number}"), socket.by_ref().take(*count).collect()))
                .collect();
            let portions = portions(listeners.iter().map(|(name, sockets)| (name, &sockets[..])), reserved);
            assert_eq!(portions.len(), frames, "{counts:?}");
            let mut found = Vec::new();
            for (number, (counts, sockets)) in portions.into_iter().enumerate() {
                let room = MAX_FRAME_DESCRIPTORS - if number == 0 { reserved } else { 0 };
                assert!(sockets.len() <= room, "{} sockets in frame {number}", sockets.len());
                let mut sockets = sockets.into_iter();
                for (name, count) in counts {
                    add_up(&mut found, name, sockets.by_ref().take(usize::from(count)));
                }
                assert_eq!(sockets.next(), None, "all are counted");
            }
            assert_eq!(found, listeners);
        };
        check(&[], 3, 1);
        check(&[2, 2], 3, 1);
        check(&[247], 3, 1);
        check(&[248], 3, 2);
        check(&[2; 300], 3, 3);
        check(&[256, 256], 0, 3);
    }
}
