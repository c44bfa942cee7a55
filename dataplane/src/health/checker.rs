//! Who asks when: a task for each endpoint that is checked, all on one worker. Each looks at the newest tables before it asks,
//! and ends when they have its endpoint, or the check, no more.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::future::poll_fn;
use std::rc::{Rc, Weak};
use std::task::{Poll, Waker};
use std::time::Duration;

use ringmesh_model::snapshot::HealthCheck;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use super::probe::{Failure, probe};
use super::{Ended, Health, Streak, Verdict};
use crate::places::Place;
use crate::pool::State;
use crate::proxy::request::OnDrop;
use crate::tables::{Endpoint, Service, Tables};
use crate::telemetry::layout::service as counter;
use crate::telemetry::recorder::Series;
use crate::worker::Worker;

/// Most probes under way at a time. Whoever has more endpoints than this can ask in an interval asks less often.
const MAX_PROBES: usize = 64;

/// The first probes are spread over so long at most, so that a start is no burst.
const SPREAD: Duration = Duration::from_secs(1);

/// Asks all endpoints that are to be asked. One of them a data plane.
#[derive(Default)]
pub struct Checker(Rc<Seats>);

/// Who has a task, and who may ask now.
#[derive(Default)]
struct Seats {
    /// Endpoints by their places, with what ends their waiting.
    checked: RefCell<HashMap<Place, Stop>>,
    under_way: Cell<usize>,
    waiting: RefCell<VecDeque<Waker>>,
}

impl Seats {
    /// Waits for a turn; it ends when dropped.
    async fn enter(&self) -> impl Drop + '_ {
        poll_fn(|context| {
            if self.under_way.get() < MAX_PROBES {
                return Poll::Ready(());
            }
            self.waiting.borrow_mut().push_back(context.waker().clone());
            Poll::Pending
        })
        .await;
        self.under_way.set(self.under_way.get() + 1);
        OnDrop(|| {
            self.under_way.set(self.under_way.get() - 1);
            let next = self.waiting.borrow_mut().pop_front();
            next.into_iter().for_each(Waker::wake);
        })
    }
}

impl Checker {
    /// Begins to ask whom new tables name that those before did not, and has the others look at what is said of them now.
    pub fn commit<N: Net>(&self, worker: &Rc<Worker<N>>, before: &Tables) {
        let tables = worker.tables();
        for (old, service) in tables.services.changed_since(&before.services) {
            for endpoint in old.iter().flat_map(|old| &old.endpoints) {
                if let Some(waiting) = self.0.checked.borrow().get(&endpoint.place) {
                    waiting.trigger(StopReason::Abort);
                }
            }
            let Some(service) = service.filter(|service| service.config.health_check.is_some()) else { continue };
            for endpoint in &service.endpoints {
                if self.0.checked.borrow().contains_key(&endpoint.place) {
                    continue;
                }
                let (named, waiting) = (Named { service: service.place, endpoint: endpoint.place }, worker.net.stop());
                self.0.checked.borrow_mut().insert(endpoint.place, waiting.clone());
                ringmesh_ring::spawn(check(Rc::downgrade(worker), self.0.clone(), named, waiting));
            }
        }
    }
}

/// An endpoint by its place, and its service's.
#[derive(Clone, Copy)]
struct Named {
    service: Place,
    endpoint: Place,
}

impl Named {
    fn find<'t>(&self, tables: &'t Tables) -> Option<(&'t Service, &'t Endpoint, &'t Health, &'t HealthCheck)> {
        let service = tables.services.get(self.service.index).filter(|service| service.place == self.service)?;
        let endpoint = service.endpoints.iter().find(|endpoint| endpoint.place == self.endpoint)?;
        Some((service, endpoint, endpoint.health.as_deref()?, service.config.health_check.as_ref()?))
    }
}

/// Asks one endpoint for as long as the tables want it.
async fn check<N: Net>(worker: Weak<Worker<N>>, seats: Rc<Seats>, named: Named, waiting: Stop) {
    let counted: Cell<Option<(Series, usize)>> = Cell::new(None);
    let (left, left_seats) = (worker.clone(), seats.clone());
    // However it ends, a panic included: what nobody asks any more is not held to be sick.
    let _end = OnDrop(|| {
        left_seats.checked.borrow_mut().remove(&named.endpoint);
        let Some(worker) = left.upgrade() else { return };
        count(&worker, &counted, None);
        if let Some((_, _, health, _)) = named.find(&worker.tables()) {
            health.set(Verdict::Unknown);
        }
    });
    let state = Rc::new(State::new(named.endpoint.generation));
    let _connections = OnDrop(|| state.close());
    let mut streak = Streak::default();
    let mut pause: fn(&HealthCheck, u64) -> Duration = |check, random| part(check.interval.min(SPREAD), random);
    loop {
        if !wait(&worker, named, &waiting, pause).await {
            return;
        }
        pause = jittered;
        let _turn = seats.enter().await;
        let Some(worker) = worker.upgrade().filter(|worker| !worker.draining()) else { return };
        let tables = worker.tables();
        let Some((service, endpoint, health, check)) = named.find(&tables) else { return };
        let found = Box::pin(probe(&worker, service, endpoint, check, &state)).await;
        let (ended, word) = match found {
            Ok(()) => (Ended::Passed, counter::PROBES_PASSED),
            Err(_) => (Ended::Failed, counter::PROBES_FAILED),
        };
        worker.recorder.add(service.series, word, 1);
        if found == Err(Failure::Silent) {
            // It may be the connection that is dead, which would have the next probe wait for nothing too.
            state.close();
        }
        let before = streak.verdict();
        let changed = streak.note(ended, check);
        if health.verdict() != streak.verdict() {
            // Also where a check was taken away and added again before this task has seen that.
            health.set(streak.verdict());
        }
        if changed.is_some() {
            tell(service, endpoint, before, found.err());
        }
        let word = if streak.verdict() == Verdict::Healthy { counter::HEALTHY } else { counter::UNHEALTHY };
        count(&worker, &counted, Some((service.series, word)));
    }
}

/// Waits until it is time to ask an endpoint again, by what the newest tables say. Whether it is to be asked at all.
async fn wait<N: Net>(
    worker: &Weak<Worker<N>>,
    named: Named,
    waiting: &Stop,
    pause: fn(&HealthCheck, u64) -> Duration,
) -> bool {
    let mut since: Option<(Instant, u64)> = None;
    loop {
        {
            let Some(worker) = worker.upgrade() else { return false };
            let tables = worker.tables();
            let Some((_, _, _, check)) = named.find(&tables) else { return false };
            let (begun, random) = *since.get_or_insert_with(|| (worker.net.now(), worker.net.random()));
            waiting.clear();
            waiting.set_deadline(Some(begun + pause(check, random)));
        }
        if waiting.stopped().await == StopReason::Deadline {
            return true;
        }
    }
}

/// Counts an endpoint among those that are thought alike.
fn count<N: Net>(worker: &Worker<N>, counted: &Cell<Option<(Series, usize)>>, now: Option<(Series, usize)>) {
    let before = counted.replace(now);
    if before == now {
        return;
    }
    if let Some((series, word)) = before {
        worker.recorder.sub(series, word, 1);
    }
    if let Some((series, word)) = now {
        worker.recorder.add(series, word, 1);
    }
}

/// A line for each change; that an endpoint is well from the start is none.
fn tell(service: &Service, endpoint: &Endpoint, before: Verdict, failure: Option<Failure>) {
    let (all, sick) =
        (service.endpoints.len(), service.endpoints.iter().filter(|endpoint| endpoint.is_unhealthy()).count());
    let well = all - sick;
    let (service, endpoint) = (&service.config.name, &*endpoint.text);
    match failure {
        Some(failure) if well == 0 => tracing::warn!(
            target: "health", service, endpoint, well, all,
            "the endpoint does not serve: {failure} (none of the service does, so that all are used)"
        ),
        Some(failure) => {
            tracing::warn!(target: "health", service, endpoint, well, all, "the endpoint does not serve: {failure}");
        }
        None if before == Verdict::Unknown => {
            tracing::debug!(target: "health", service, endpoint, well, all, "the endpoint serves");
        }
        None => tracing::info!(target: "health", service, endpoint, well, all, "the endpoint serves again"),
    }
}

/// A tenth more or less, so that many who began together do not go on so.
fn jittered(check: &HealthCheck, random: u64) -> Duration {
    check.interval - check.interval / 10 + part(check.interval / 5, random)
}

/// A part of it, any one.
fn part(whole: Duration, random: u64) -> Duration {
    let nanos = u64::try_from(whole.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(((u128::from(nanos) * u128::from(random)) >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicBool);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    #[test]
    fn no_more_probes_are_under_way_than_may_be_and_who_waits_comes_next() {
        let seats = Seats::default();
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut context = Context::from_waker(&waker);
        let mut inside = Vec::new();
        for _ in 0..MAX_PROBES {
            match pin!(seats.enter()).poll(&mut context) {
                Poll::Ready(turn) => inside.push(turn),
                Poll::Pending => panic!("there is room"),
            }
        }
        let mut late = pin!(seats.enter());
        assert!(late.as_mut().poll(&mut context).is_pending());
        assert!(!woken.0.load(Ordering::SeqCst));
        inside.pop();
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(late.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn probes_of_one_endpoint_are_an_interval_apart_a_tenth_more_or_less() {
        let interval = Duration::from_secs(10);
        let check = HealthCheck {
            probe: ringmesh_model::health::Probe::Tcp,
            interval,
            timeout: interval,
            healthy_after: 1,
            unhealthy_after: 1,
        };
        assert_eq!(jittered(&check, 0), Duration::from_secs(9));
        assert_eq!(jittered(&check, 1 << 63), interval);
        assert!(jittered(&check, u64::MAX) > Duration::from_millis(10_999));
        assert!(jittered(&check, u64::MAX) <= Duration::from_secs(11));
    }
}
