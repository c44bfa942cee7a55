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
pub(super) const FAREWELL: Duration = Duration::from_secs(5);

/// How a trunk is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing is open, and nothing will be.
    Done,
    /// The peer does not answer any more.
    Dead,
    /// The peer has not greeted in time.
    Ungreeted,
}

/// How long a peer may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    /// To greet.
    pub(super) greeting: Duration,
    /// To open another channel, when none is open.
    pub(super) unused: Duration,
}

/// Looks from time to time.
pub(super) struct Care<'a, N: Net> {
    net: &'a N,
    trunk: &'a Trunk,
    keeper: Keeper,
    clock: Stop,
    /// When to look next.
    next: Instant,
    /// When the peer must have greeted.
    greeted_by: Instant,
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
        Patience { greeting, unused }: Patience,
        heard: &'a Cell<bool>,
        rest: &'a Stop,
    ) -> Self {
        let (keeper, now) = (Keeper::new(unused), net.now());
        let (next, greeted_by) = (now + keeper.tick(), now + greeting);
        let care = Self { net, trunk, keeper, clock: net.stop(), next, greeted_by, heard, rest, farewell: None };
        care.wind();
        care
    }

    /// Sets the clock to what comes next.
    fn wind(&self) {
        let greeted_by = if self.trunk.is_greeted() { Instant::FAR_FUTURE } else { self.greeted_by };
        let farewell = self.farewell.unwrap_or(Instant::FAR_FUTURE);
        self.clock.set_deadline(Some(self.next.min(greeted_by).min(farewell)));
    }

    /// Ready when the trunk is to end.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<End> {
        while self.clock.poll_stopped(context).is_ready() {
            self.clock.clear();
            let now = self.net.now();
            if !self.trunk.is_greeted() && now >= self.greeted_by {
                return Poll::Ready(End::Ungreeted);
            }
            if now >= self.next || self.farewell.is_some_and(|farewell| now >= farewell) {
                if self.look() {
                    return Poll::Ready(End::Dead);
                }
                self.next = now + self.keeper.tick();
            }
            self.wind();
        }
        if self.trunk.is_done() {
            return Poll::Ready(End::Done);
        }
        Poll::Pending
    }

    /// Whether the trunk is over at once.
    fn look(&mut self) -> bool {
        let heard = self.heard.replace(false);
        let seen = Seen { open: self.trunk.count(), served: self.trunk.opened(), heard, takes: false };
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
