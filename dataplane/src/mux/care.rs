//! Looks after a trunk: asks a silent peer whether it is there, ends one that nobody uses, and frees what an idle one holds.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::Duration;

use ringmesh_codec::mux::Frame;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use super::trunk::Trunk;
use crate::proxy::http2::keeper::{Keeper, Seen, Verdict};

/// How long the other side may take to say that it opens no more channels, once we have asked for that and none is open.
const FAREWELL: Duration = Duration::from_secs(5);

/// How a trunk is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is open, and nothing will be.
    Done,
    /// The peer does not answer any more.
    Dead,
}

/// Looks from time to time.
pub(super) struct Care<'a, N: Net> {
    net: &'a N,
    trunk: &'a Trunk,
    keeper: Keeper,
    clock: Stop,
    /// Whether a byte has come since the last look.
    heard: &'a Cell<bool>,
    /// Has the receiver give its buffer back.
    rest: &'a Stop,
    farewell: Option<Instant>,
}

impl<'a, N: Net> Care<'a, N> {
    pub(super) fn new(
        net: &'a N,
        trunk: &'a Trunk,
        max_unused: Duration,
        heard: &'a Cell<bool>,
        rest: &'a Stop,
    ) -> Self {
        let keeper = Keeper::new(max_unused);
        let clock = net.stop();
        clock.set_deadline(Some(net.now() + keeper.tick()));
        Self { net, trunk, keeper, clock, heard, rest, farewell: None }
    }

    /// Ready when the trunk is to end.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        while self.clock.poll_stopped(context).is_ready() {
            self.clock.clear();
            if self.look() {
                return Poll::Ready(End::Dead);
            }
            let tick = self.net.now() + self.keeper.tick();
            self.clock.set_deadline(Some(self.farewell.map_or(tick, |farewell| farewell.min(tick))));
        }
        if self.trunk.is_done() {
            return Poll::Ready(End::Done);
        }
        Poll::Pending
    }

    /// Whether the trunk is over at once.
    fn look(&mut self) -> bool {
        let heard = self.heard.replace(false);
        let seen = Seen { open: self.trunk.count(), served: self.trunk.opened(), heard };
        if !heard && self.trunk.awaited.get() == 0 {
            self.rest.trigger(StopReason::Abort);
        }
        match self.keeper.look(seen) {
            Verdict::Stay => {}
            Verdict::Ask => self.trunk.send(&Frame::Ping(*b"ringmesh")),
            Verdict::Dead => return true,
            Verdict::Unused => self.trunk.leave(),
        }
        if self.trunk.is_over() && self.trunk.count() == 0 {
            let now = self.net.now();
            let until = *self.farewell.get_or_insert(now + FAREWELL);
            return now >= until;
        }
        self.farewell = None;
        false
    }
}
