//! How long connections of mutual TLS may go on: until a certificate of the peer's chain ends, or the root that vouches for it is
//! not trusted any more. Then they are drained: nothing new begins on them. What is under way goes on, as certificates end as a
//! matter of routine, each hour where they come from SPIRE, and databases are to stay connected; but where the root was taken
//! away, it has `drain_timeout`.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::rc::{Rc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringmesh_model::spiffe::SpiffeId;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;

use crate::drain::Registered;
use crate::tls::{Anchor, Peer};
use crate::worker::Worker;

/// What was sent before its sender could know that its certificate has ended is still served for so long; so may clocks differ, and
/// the watch be late.
const ALLOWANCE: Duration = Duration::from_secs(2);

/// Shortest time between two looks: peers whose certificates end one after the other cost no look each.
const STEP: Duration = Duration::from_secs(1);

/// Peers that one look tells of by name.
const MAX_TOLD: usize = 8;

/// How a peer stands that has proved who it is. Shared by everything that serves it on one connection.
#[derive(Debug)]
pub struct Standing {
    id: Rc<SpiffeId>,
    anchor: Anchor,
    ends: Cell<Instant>,
    stage: Cell<Stage>,
    /// Whether the root is none of the trust bundle's.
    distrusted: Cell<bool>,
}

/// What a connection may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Everything.
    Holds,
    /// What has come, it may finish; nothing new is to begin.
    Leaves,
    /// Nothing new is served.
    Over,
}

/// Why a proof holds no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A certificate has ended.
    Expired,
    /// The root is none of the trust bundle's.
    Distrusted,
}

impl Cause {
    const fn words(self) -> &'static str {
        match self {
            Self::Expired => "its certificate has ended",
            Self::Distrusted => "the root that vouches for it is not in the trust bundle any more",
        }
    }
}

impl Standing {
    /// Whether new things may begin.
    #[inline]
    pub fn holds(&self) -> bool {
        self.stage.get() == Stage::Holds
    }

    /// Whether nothing new is served any more.
    #[inline]
    pub fn is_over(&self) -> bool {
        self.stage.get() == Stage::Over
    }

    /// Until when it holds, unless something happens.
    #[inline]
    pub fn until(&self) -> Instant {
        self.ends.get()
    }

    /// When what is still under way is cut, if that may go on for `grace`.
    pub fn cut_at(&self, grace: Duration) -> Instant {
        if self.distrusted.get() { self.ends.get() + grace } else { Instant::FAR_FUTURE }
    }

    /// Looks at the time and, if they may have changed, at the roots. What has just come to hold no more, and when to look next.
    pub fn look(&self, now: Instant, anchors: Option<&[Anchor]>) -> (Option<Cause>, Instant) {
        let over = self.ends.get() + ALLOWANCE;
        let distrusted = anchors.is_some_and(|anchors| !anchors.contains(&self.anchor));
        if distrusted && !self.distrusted.replace(true) {
            // Nothing is left to doubt in its favour.
            self.ends.set(now);
            self.stage.set(Stage::Over);
            return (Some(Cause::Distrusted), Instant::FAR_FUTURE);
        }
        match self.stage.get() {
            Stage::Holds if self.ends.get() <= now => {
                self.stage.set(Stage::Leaves);
                (Some(Cause::Expired), over)
            }
            Stage::Holds => (None, self.ends.get()),
            Stage::Leaves if now < over => (None, over),
            Stage::Leaves | Stage::Over => {
                self.stage.set(Stage::Over);
                (None, Instant::FAR_FUTURE)
            }
        }
    }
}

/// Wakes what looks after a worker's connections.
pub struct Watch {
    clock: Stop,
    runs: Cell<bool>,
    next: Cell<Instant>,
    looked: Cell<Instant>,
}

impl Watch {
    /// Nothing is watched yet.
    pub fn new(clock: Stop) -> Self {
        Self { clock, runs: Cell::new(false), next: Cell::new(Instant::FAR_FUTURE), looked: Cell::new(Instant::ZERO) }
    }

    /// Something is to be looked at by then.
    fn expect(&self, at: Instant) {
        let at = at.max(self.looked.get() + STEP);
        if at < self.next.get() {
            self.next.set(at);
            self.clock.set_deadline(Some(at));
        }
    }
}

/// How the peer of a new connection stands, who is watched from now on. None: it has proved nothing.
pub fn begin<N: Net>(worker: &Rc<Worker<N>>, peer: &Peer) -> Option<Rc<Standing>> {
    let (id, proof) = (peer.id.clone()?, peer.proof?);
    let now = worker.net.now();
    // A clock that is set later on changes nothing: who is let in by it then, is judged by it.
    let left = proof.ends.saturating_sub(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    // The bundle may have changed since the handshake began.
    let trusted = worker.tables().anchors.contains(&proof.anchor);
    let ends = if trusted { now + left } else { now };
    let stage = if trusted { Stage::Holds } else { Stage::Over };
    let watch = &worker.watch;
    watch.expect(ends);
    if !watch.runs.replace(true) {
        ringmesh_ring::spawn(run(Rc::downgrade(worker), watch.clock.clone()));
    }
    let (ends, stage, distrusted) = (Cell::new(ends), Cell::new(stage), Cell::new(!trusted));
    Some(Rc::new(Standing { id, anchor: proof.anchor, ends, stage, distrusted }))
}

/// Has `stop` end what is under way on a connection to an endpoint, once it goes on for too long after what the endpoint has
/// proved; an idle one, as soon as that holds no more.
pub fn watch<N: Net>(worker: &Worker<N>, standing: &Rc<Standing>, stop: Stop) -> Registered {
    // Nothing may have stood for it since it was last used.
    worker.watch.expect(standing.until());
    let registered = worker.upstreams.add(stop, u32::MAX);
    registered.set_standing(Some(standing));
    registered
}

async fn run<N: Net>(worker: Weak<Worker<N>>, clock: Stop) {
    loop {
        clock.stopped().await;
        clock.clear();
        let Some(worker) = worker.upgrade() else { return };
        look(&worker, None);
    }
}

/// Looks at all connections whose peers have proved who they are. `anchors`: the roots that are trusted now, if these may have
/// changed.
pub fn look<N: Net>(worker: &Worker<N>, anchors: Option<&[Anchor]>) {
    let now = worker.net.now();
    let grace = worker.tables().settings.as_ref().map_or(Duration::ZERO, |settings| settings.drain_timeout);
    let mut told: Vec<(Rc<SpiffeId>, Cause, u32)> = Vec::new();
    let mut others = 0;
    let mut tell = |standing: &Standing, cause| {
        if let Some((_, _, count)) = told.iter_mut().find(|(id, same, _)| *id == standing.id && *same == cause) {
            *count += 1;
        } else if told.len() < MAX_TOLD {
            told.push((standing.id.clone(), cause, 1));
        } else {
            others += 1;
        }
    };
    let watch = &worker.watch;
    watch.looked.set(now);
    watch.next.set(Instant::FAR_FUTURE);
    for registry in [&worker.connections, &worker.upstreams] {
        watch.expect(registry.look(now, grace, anchors, &mut tell));
    }
    for (peer, cause, connections) in told {
        tracing::info!(target: "tls", peer = peer.as_str(), connections, "connections of a peer are drained: {}", cause.words());
    }
    if others > 0 {
        tracing::info!(target: "tls", connections = others, "connections of further peers are drained, for the same causes");
    }
}
