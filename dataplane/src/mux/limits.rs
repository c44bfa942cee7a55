//! What the other side of a trunk may ask of it.

use ringmesh_codec::mux::{HEADER_BYTES, INITIAL_WINDOW_BYTES, MAX_DATA_BYTES};
use ringmesh_ring::LARGE_BUFFER_BYTES;

/// Largest window that one channel grows to, in bytes. The other side fills it, so it bounds what a channel holds that nobody
/// reads; 1 MiB keeps 800 Mbit/s busy over 10 ms.
pub(super) const MAX_WINDOW_BYTES: u32 = 1024 * 1024;

/// What all channels of a trunk may have together beyond their first windows, in bytes.
pub(super) const MAX_EXTRA_BYTES: u32 = 8 * 1024 * 1024;

/// What may wait to be sent on a trunk before those who have more wait themselves, in bytes.
pub(super) const MAX_WAITING_BYTES: usize = 256 * 1024;

/// What may wait there together with answers that cost nothing to ask for: whoever asks on and takes none is flooding.
pub(super) const MAX_OWED_BYTES: usize = 2 * MAX_WAITING_BYTES;

/// What one channel puts there at a time, in bytes: then it is the others' turn.
pub(super) const QUANTUM_BYTES: usize = 128 * 1024;

/// Pieces up to this size are copied behind their header, so that they are sealed in one go; larger ones are sent from where
/// they are.
pub(super) const MAX_COPIED_BYTES: usize = 2 * 1024;

/// Pieces from this size on stay where they have come, unless more than [`MAX_KEPT_BYTES`] do; smaller ones are copied out. So a
/// piece that nobody takes holds up to eight times its size.
pub(super) const MIN_KEPT_BYTES: usize = 16 * 1024;

/// What all channels of a trunk may leave where it has come, in bytes: a few reads' worth, which those who keep up take at once.
pub(super) const MAX_KEPT_BYTES: usize = 512 * 1024;

/// What a channel gives to one who takes without copying, at a time, in bytes.
pub(super) const MAX_TAKEN_BYTES: usize = 128 * 1024;

/// A trunk with so many open channels gets another beside it, as long as there are fewer than [`MAX_TRUNKS`].
pub(super) const BUSY_CHANNELS: u32 = 64;

/// Most trunks of a worker to one endpoint while the endpoint takes more channels on those that there are.
pub(super) const MAX_TRUNKS: usize = 4;

/// Numbers of channels from here on are not given out: a trunk that has come so far is replaced.
pub(super) const LAST_CHANNEL: u32 = u32::MAX / 2;

const _: () = assert!(HEADER_BYTES * 4 < MAX_COPIED_BYTES && QUANTUM_BYTES <= MAX_WAITING_BYTES);
const _: () = assert!(MIN_KEPT_BYTES < MAX_DATA_BYTES && MAX_DATA_BYTES <= LARGE_BUFFER_BYTES);
const _: () = assert!(LARGE_BUFFER_BYTES <= MAX_TAKEN_BYTES);
const _: () = assert!(INITIAL_WINDOW_BYTES <= MAX_WINDOW_BYTES);

/// What frames that do nothing a peer has to its credit at first, and at most. Twenty times what one client of HTTP/2 has: a
/// trunk is that of all clients of a proxy, and ends for all of them.
pub(super) const MAX_CREDIT: u32 = 40_000;

/// Credit that comes back each second. 1,000 clients that break off each second, as when an endpoint stands still, are no flood.
pub(super) const CREDIT_PER_SECOND: u32 = 8_000;

/// So many bytes for a channel that is over cost 1, where they are more than can have been on their way.
pub(super) const LATE_BYTES: usize = 1024;
