//! Trunks to endpoints.

use std::cell::RefCell;
use std::rc::Rc;

use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Stream;

use super::Channel;
use super::care::Patience;
use super::limits::{BUSY_CHANNELS, MAX_TRUNKS};
use super::pump::{self, Over};
use super::trunk::{Ends, Side, Trunk};
use crate::outcome::Reason;
use crate::pool::State;
use crate::pool::opening::Opening;
use crate::proxy::transport::Transport;
use crate::standing::{self, Standing};
use crate::tables::Service;
use crate::worker::Worker;

/// The trunks of a worker to one endpoint.
#[derive(Default)]
pub struct Trunks(RefCell<Vec<Outward>>);

struct Outward {
    /// The service's `pool_key`: another identity has another trunk.
    key: u64,
    trunk: Rc<Trunk>,
    leave: Stop,
}

/// Whether a further trunk can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Another {
    /// By who asks.
    CanBeMade,
    /// One is being made, or could not be made just now.
    NotNow,
}

impl Trunks {
    /// A new channel in the trunk with the fewest, if there is one with room. None too if all are busy and another can be made.
    pub fn open(&self, key: u64, another: Another) -> Option<Channel> {
        let mut all = self.0.borrow_mut();
        if all.is_empty() {
            return None;
        }
        all.retain(|one| !one.trunk.is_over());
        all.iter().filter(|one| one.key != key).for_each(|old| old.leave.trigger(StopReason::Drain));
        let fitting = all.iter().filter(|one| one.key == key && one.trunk.takes_more());
        let best = fitting.min_by_key(|one| one.trunk.count())?;
        if best.trunk.count() >= BUSY_CHANNELS && all.len() < MAX_TRUNKS && another == Another::CanBeMade {
            return None;
        }
        let trunk = best.trunk.clone();
        drop(all);
        trunk.open()
    }

    /// Trunks without a channel.
    pub fn idle(&self) -> usize {
        self.0.borrow().iter().filter(|one| one.trunk.count() == 0).count()
    }

    /// Opens no further channels; each trunk ends with its last one.
    pub fn close(&self) {
        self.0.take().iter().for_each(|one| one.leave.trigger(StopReason::Drain));
    }

    /// Makes a trunk of a connection that was just made, whose other side has agreed to it, and a task that moves its bytes. Its
    /// first channel comes back.
    /// Others who want one wait as long as `opening` lives: until it is known how many they may have.
    pub(crate) fn begin<N: Net>(
        &self,
        worker: &Rc<Worker<N>>,
        service: &Service,
        state: &Rc<State<N::Stream>>,
        transport: Transport<N::Stream>,
        standing: Option<Rc<Standing>>,
        opening: Rc<Opening>,
    ) -> Option<Channel> {
        let ends = Ends { peer: transport.peer_address(), local: transport.local_address(), original: None };
        // An endpoint opens no channels.
        let trunk = Trunk::new(Side::Client, ends, 0, worker.net.now());
        let failed = opening.failed.clone();
        trunk.keep_until_greeted(opening);
        let (unused, net) = (Rc::downgrade(state), worker.net.clone());
        trunk.on_leave(move || {
            if let Some(state) = unused.upgrade() {
                state.sweep(net.now());
            }
        });
        let leave = worker.net.stop();
        if worker.draining() {
            leave.trigger(StopReason::Drain);
        }
        let first = trunk.open();
        self.0.borrow_mut().push(Outward { key: service.pool_key, trunk: trunk.clone(), leave: leave.clone() });
        let net = worker.net.clone();
        let patience = Patience { greeting: service.config.connect_timeout, unused: service.config.idle_timeout };
        let name = service.config.name.clone();
        let stop = worker.net.stop();
        let watched = standing.map(|standing| {
            let gently = standing::watch(worker, &standing, leave.clone());
            gently.set_idle(true);
            (gently, standing::watch(worker, &standing, stop.clone()))
        });
        ringmesh_ring::spawn(async move {
            let _watched = watched;
            let over = pump::run(&net, &trunk, &transport, patience, &stop, &leave, |_| {}).await;
            if !trunk.is_greeted() && matches!(over, Over::Lost | Over::Dead | Over::Broken(_)) {
                // Those who wait would find out one after the other, by a connection each.
                failed.set(Some(match Reason::of_upstream(&trunk.lost()) {
                    Reason::UpstreamTls => Reason::UpstreamTls,
                    _ => Reason::ConnectFailed,
                }));
            }
            match over {
                Over::Broken(broken) => {
                    tracing::warn!(target: "upstream", service = name.as_str(), "an endpoint of the mesh broke the rules: {broken}");
                }
                Over::Dead => {
                    tracing::warn!(target: "upstream", service = name.as_str(), "an endpoint of the mesh does not answer any more");
                }
                Over::Done | Over::Lost | Over::Stopped => {}
            }
        });
        first
    }
}
