use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Waker};

use ringmesh_model::snapshot::{Balance, Protocol};

fn service(max: Option<u32>, workers: u16) -> Service {
    Service {
        place: Place { index: 0, generation: 1 },
        config: ringmesh_model::snapshot::Service {
            name: "s".into(),
            protocol: Protocol::Http,
            peer: None,
            endpoints: Vec::new(),
            balance: Balance::LeastRequest,
            connect_timeout: Duration::from_secs(1),
            connect_retries: 0,
            idle_timeout: Duration::from_secs(1),
            max_in_flight: max,
            max_idle_per_endpoint: 1,
        },
        series: crate::telemetry::recorder::Series { index: 0, generation: 1 },
        tls: None,
        limit: max.map(|max| Limit::new(max, workers, None)),
        pool_key: 0,
        endpoints: Vec::new(),
    }
}

/// Workers and a coordinator whose messages arrive when the test says so.
struct World {
    service: Service,
    workers: Vec<Leases>,
    coordinator: Coordinator,
    to_coordinator: RefCell<VecDeque<(u16, ToCoordinator)>>,
    now: Instant,
}

impl World {
    fn new(max: u32, workers: u16) -> Self {
        let service = service(Some(max), workers);
        let leases: Vec<Leases> = (0..workers).map(|_| Leases::default()).collect();
        for lease in &leases {
            lease.commit([&service].into_iter());
        }
        let mut coordinator = Coordinator::new(workers);
        coordinator.reset([&service].into_iter());
        Self { service, workers: leases, coordinator, to_coordinator: RefCell::default(), now: Instant::now() }
    }

    /// Delivers all messages.
    fn settle(&mut self) {
        while let Some((from, message)) = { self.to_coordinator.borrow_mut().pop_front() } {
            let mut answers = Vec::new();
            self.coordinator.receive(from, message, |to, answer| answers.push((to, answer)));
            for (to, answer) in answers {
                if let Some(reply) = self.workers[usize::from(to)].receive(answer, self.now) {
                    self.to_coordinator.borrow_mut().push_back((to, reply));
                }
            }
        }
    }

    /// Asks for one permit on a worker, delivering messages while it waits.
    fn acquire(&mut self, worker: u16) -> Result<Permit, Exhausted> {
        self.now = self.now + Duration::from_millis(20);
        let queue = std::mem::take(&mut self.to_coordinator);
        let (workers, service, now) = (std::mem::take(&mut self.workers), self.service.clone_for_test(), self.now);
        let result = {
            let send = |message| {
                queue.borrow_mut().push_back((worker, message));
                true
            };
            let mut future = std::pin::pin!(workers[usize::from(worker)].acquire(&service, now, send));
            let mut context = Context::from_waker(Waker::noop());
            loop {
                if let Poll::Ready(result) = future.as_mut().poll(&mut context) {
                    break result;
                }
                let (from, message) = queue.borrow_mut().pop_front().expect("a request that waits is answered");
                let mut answers = Vec::new();
                self.coordinator.receive(from, message, |to, answer| answers.push((to, answer)));
                for (to, answer) in answers {
                    if let Some(reply) = workers[usize::from(to)].receive(answer, now) {
                        queue.borrow_mut().push_back((to, reply));
                    }
                }
            }
        };
        self.workers = workers;
        self.to_coordinator = queue;
        self.settle();
        result
    }
}

impl Service {
    fn clone_for_test(&self) -> Self {
        Self { limit: self.limit.clone(), ..service(None, 1) }
    }
}

fn admitted(world: &mut World, worker: u16, held: &mut Vec<Permit>) -> u32 {
    let before = held.len();
    while let Ok(permit) = world.acquire(worker) {
        held.push(permit);
    }
    (held.len() - before) as u32
}

#[test]
fn a_limit_is_never_exceeded_and_one_worker_alone_reaches_nine_tenths() {
    for (max, workers) in [(100, 4), (16, 4), (1000, 4), (7, 4), (64, 16), (5, 1)] {
        let mut world = World::new(max, workers);
        let mut held = Vec::new();
        let alone = admitted(&mut world, 0, &mut held);
        assert!(alone <= max && alone * 10 >= max * 9, "{alone} of {max} on one of {workers} workers");
        for worker in 0..workers {
            admitted(&mut world, worker, &mut held);
        }
        assert_eq!(held.len() as u32, max, "all workers together reach the limit, and no more");
        held.clear();
        let again = admitted(&mut world, workers - 1, &mut held);
        assert!(again <= max && again * 10 >= max * 9, "{again} of {max} after demand has moved");
    }
}

#[test]
fn a_burst_on_one_worker_is_admitted_as_far_as_the_limit_goes() {
    let mut world = World::new(40, 4);
    let queue = RefCell::new(VecDeque::new());
    let send = |message| {
        queue.borrow_mut().push_back((0, message));
        true
    };
    let now = world.now;
    let mut waiting: Vec<_> = (0..60).map(|_| Box::pin(world.workers[0].acquire(&world.service, now, send))).collect();
    let mut context = Context::from_waker(Waker::noop());
    let (mut held, mut refused) = (Vec::new(), 0);
    while !waiting.is_empty() {
        waiting.retain_mut(|request| match request.as_mut().poll(&mut context) {
            Poll::Ready(Ok(permit)) => {
                held.push(permit);
                false
            }
            Poll::Ready(Err(Exhausted)) => {
                refused += 1;
                false
            }
            Poll::Pending => true,
        });
        let message = queue.borrow_mut().pop_front();
        let Some((from, message)) = message else { continue };
        let mut answers = Vec::new();
        world.coordinator.receive(from, message, |to, answer| answers.push((to, answer)));
        for (to, answer) in answers {
            if let Some(reply) = world.workers[usize::from(to)].receive(answer, now) {
                queue.borrow_mut().push_back((to, reply));
            }
        }
    }
    assert!((36..=40).contains(&held.len()), "{} of 40 at once, {refused} refused", held.len());
}

#[test]
fn demand_that_moves_about_stays_within_the_limit() {
    let mut world = World::new(40, 4);
    let mut held: Vec<Permit> = Vec::new();
    let mut state = 1u64;
    for _ in 0..20_000 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let worker = (state >> 40) as u16 % 4;
        if (state >> 50).is_multiple_of(3) && !held.is_empty() {
            held.swap_remove((state >> 20) as usize % held.len());
        } else if let Ok(permit) = world.acquire(worker) {
            held.push(permit);
        }
        assert!(held.len() <= 40);
    }
}

#[test]
fn without_a_limit_everything_is_admitted() {
    let leases = Leases::default();
    let service = service(None, 4);
    let mut future = std::pin::pin!(leases.acquire(&service, Instant::now(), |_| false));
    let result = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(result, Poll::Ready(Ok(Permit::Unlimited))));
}

#[test]
fn a_small_limit_goes_on_counting_over_a_change() {
    let before = Limit::new(3, 4, None);
    let held = acquire_shared(before.shared.as_ref().expect("small"), before.max);
    assert!(held.is_ok());
    let after = Limit::new(1, 4, Some(&before));
    let shared: &Arc<AtomicU32> = after.shared.as_ref().expect("small");
    assert!(acquire_shared(shared, after.max).is_err(), "the request in flight still counts");
}

/// One poll of a request for a permit.
fn poll(leases: &Leases, service: &Service, now: Instant) -> Option<Result<Permit, Exhausted>> {
    let future = std::pin::pin!(leases.acquire(service, now, |_| true));
    match future.poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => Some(result),
        Poll::Pending => None,
    }
}

#[test]
fn a_request_that_waits_while_its_limit_changes_or_goes_is_not_forgotten() {
    for after in [Some(service(Some(20), 1)), Some(service(Some(1), 1)), None] {
        let (leases, now) = (Leases::default(), Instant::now());
        let before = service(Some(10), 1);
        leases.commit([&before].into_iter());
        let _held: Vec<_> = (0..10).map(|_| poll(&leases, &before, now)).collect();
        let mut waiting = std::pin::pin!(leases.acquire(&before, now, |_| true));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        leases.commit(after.iter());
        assert!(waiting.as_mut().poll(&mut context).is_ready());
    }
}

#[test]
fn requests_in_flight_over_a_change_count_until_they_end() {
    let (leases, now) = (Leases::default(), Instant::now());
    let admit = |service: &Service| -> Vec<_> {
        std::iter::from_fn(|| poll(&leases, service, now).and_then(Result::ok)).collect()
    };
    let (small, large) = (service(Some(10), 1), service(Some(20), 1));
    leases.commit([&small].into_iter());
    let first = admit(&small);
    assert_eq!(first.len(), 10);
    leases.commit([&large].into_iter());
    let second = admit(&large);
    assert_eq!(second.len(), 10);
    leases.commit([&small].into_iter());
    leases.commit([&large].into_iter());
    drop(first);
    assert_eq!(admit(&large).len(), 10, "what has ended may be used again");
    drop(second);
    assert_eq!(admit(&large).len(), 20);
}

#[test]
fn a_request_with_older_tables_does_not_bring_the_old_limit_back() {
    let (leases, now) = (Leases::default(), Instant::now());
    let (large, small) = (service(Some(20), 1), service(Some(10), 1));
    leases.commit([&large].into_iter());
    leases.commit([&small].into_iter());
    let held: Vec<_> = std::iter::from_fn(|| poll(&leases, &large, now).and_then(Result::ok)).collect();
    assert_eq!(held.len(), 10);
    assert!(poll(&leases, &small, now).is_none_or(|result| result.is_err()));
}
