use super::*;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use ringmesh_model::snapshot::{Balance, Destination, Protocol};

fn service(max: Option<u32>, workers: u16) -> Service {
    Service {
        place: Place { index: 0, generation: 1 },
        config: std::sync::Arc::new(ringmesh_model::snapshot::Service {
            name: "s".into(),
            protocol: Protocol::Http,
            peer: None,
            proxy_protocol: None,
            destination: Destination::Endpoints,
            mark: None,
            endpoints: Vec::new(),
            balance: Balance::LeastRequest,
            connect_timeout: Duration::from_secs(1),
            connect_retries: 0,
            idle_timeout: Duration::from_secs(1),
            max_in_flight: max,
            max_idle_per_endpoint: 1,
            share_connections: true,
            tcp_keepalive: None,
            health_check: None,
        }),
        series: crate::telemetry::recorder::Series { index: 0, generation: 1 },
        tls: None,
        limit: max.map(|max| Limit::new(max, workers, None, 1)),
        pool_key: 0,
        endpoints: Vec::new(),
        reach: Default::default(),
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
            lease.commit([(None, Some(&service))].into_iter());
        }
        let mut coordinator = Coordinator::new(workers);
        coordinator.change([(None, Some(&service))].into_iter());
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

/// Workers and a coordinator with a queue each way, as between threads: what is sent waits until the test lets it arrive.
/// Tables travel in the same queues.
struct Mesh {
    workers: Vec<MeshWorker>,
    coordinator: Coordinator,
    newest: Option<Service>,
    /// The limit of each version; None: none.
    limits: Vec<Option<u32>>,
    generation: u32,
    now: Instant,
}

type Held = Pin<Box<dyn Future<Output = Result<Permit, Exhausted>>>>;

#[derive(Default)]
struct MeshWorker {
    leases: Rc<Leases>,
    version: usize,
    service: Option<Rc<Service>>,
    inbox: VecDeque<ToMeshWorker>,
    outbox: Rc<RefCell<VecDeque<ToCoordinator>>>,
    waiting: Vec<Held>,
    held: Vec<Permit>,
}

enum ToMeshWorker {
    Commit(usize, Option<Rc<Service>>),
    Permit(ToWorker),
}

/// What becomes of the service.
#[derive(Clone, Copy, Debug)]
enum Edit {
    Limit(u32),
    NoLimit,
    Remove,
}

impl Mesh {
    fn new(workers: u16, first: Edit) -> Self {
        let mut mesh = Self {
            workers: (0..workers).map(|_| MeshWorker::default()).collect(),
            coordinator: Coordinator::new(workers),
            newest: None,
            limits: vec![None],
            generation: 0,
            now: Instant::now(),
        };
        mesh.edit(first);
        mesh.settle();
        mesh
    }

    fn edit(&mut self, edit: Edit) {
        let max = match edit {
            Edit::Limit(max) => Some(max),
            Edit::NoLimit | Edit::Remove => None,
        };
        let workers = self.workers.len() as u16;
        let before = self.newest.take();
        if before.is_none() {
            self.generation += 1;
        }
        let limit = before.as_ref().and_then(|before| before.limit.as_ref());
        let change = self.limits.len() as u64;
        let new = || Service {
            place: Place { index: 0, generation: self.generation },
            limit: max.map(|max| Limit::new(max, workers, limit, change)),
            ..service(None, 1)
        };
        let version = self.limits.len();
        self.limits.push(max);
        let (newest, sent) = if let Edit::Remove = edit { (None, None) } else { (Some(new()), Some(new())) };
        // Both have the same limit, as its shared number is the same.
        let sent =
            sent.zip(newest.as_ref()).map(|(sent, newest)| Rc::new(Service { limit: newest.limit.clone(), ..sent }));
        self.newest = newest;
        self.coordinator.change(std::iter::once((before.as_ref(), self.newest.as_ref())));
        for worker in &mut self.workers {
            worker.inbox.push_back(ToMeshWorker::Commit(version, sent.clone()));
        }
    }

    fn in_flight(&self) -> usize {
        self.workers.iter().map(|worker| worker.held.len()).sum()
    }

    /// The most that any version allows that is in use by a worker.
    fn allowed(&self) -> u32 {
        let versions = || self.workers.iter().map(|worker| worker.version);
        let (first, last) = (versions().min().unwrap(), versions().max().unwrap());
        self.limits[first..=last].iter().map(|max| max.unwrap_or(u32::MAX)).max().unwrap()
    }

    fn ask(&mut self, number: usize) {
        let worker = &mut self.workers[number];
        let Some(service) = worker.service.clone() else { return };
        let (leases, outbox, now) = (worker.leases.clone(), worker.outbox.clone(), self.now);
        worker.waiting.push(Box::pin(async move {
            let send = |message| {
                outbox.borrow_mut().push_back(message);
                true
            };
            leases.acquire(&service, now, send).await
        }));
        self.poll(number);
    }

    /// Polls all that wait on a worker. Each one that is admitted is within what is allowed.
    fn poll(&mut self, number: usize) {
        let mut context = Context::from_waker(Waker::noop());
        for mut request in std::mem::take(&mut self.workers[number].waiting) {
            match request.as_mut().poll(&mut context) {
                Poll::Pending => self.workers[number].waiting.push(request),
                Poll::Ready(Err(Exhausted)) => {}
                Poll::Ready(Ok(permit)) => {
                    self.workers[number].held.push(permit);
                    let (all, allowed) = (self.in_flight(), self.allowed());
                    assert!(all <= allowed as usize, "{all} in flight of {allowed}: limits {:?}", self.limits);
                }
            }
        }
    }

    /// Lets a worker's next message arrive; whether there was one.
    fn reach_worker(&mut self, number: usize) -> bool {
        let worker = &mut self.workers[number];
        match worker.inbox.pop_front() {
            None => return false,
            Some(ToMeshWorker::Permit(message)) => {
                let answer = worker.leases.receive(message, self.now);
                worker.outbox.borrow_mut().extend(answer);
            }
            Some(ToMeshWorker::Commit(version, service)) => {
                worker.leases.commit(std::iter::once((worker.service.as_deref(), service.as_deref())));
                (worker.version, worker.service) = (version, service);
            }
        }
        self.poll(number);
        true
    }

    /// Lets the next message of a worker arrive; whether there was one.
    fn reach_coordinator(&mut self, number: usize) -> bool {
        let message = self.workers[number].outbox.borrow_mut().pop_front();
        let Some(message) = message else { return false };
        let workers = &mut self.workers;
        self.coordinator.receive(number as u16, message, |to, answer| {
            workers[usize::from(to)].inbox.push_back(ToMeshWorker::Permit(answer));
        });
        true
    }

    /// Lets everything arrive.
    fn settle(&mut self) {
        for _ in 0..100_000 {
            let workers = 0..self.workers.len();
            if !workers.fold(false, |any, number| self.reach_worker(number) | self.reach_coordinator(number) | any) {
                assert!(self.workers.iter().all(|worker| worker.waiting.is_empty()), "a request waits for ever");
                return;
            }
        }
        panic!("messages without an end");
    }

    /// All that a worker is given while it asks for more than there is; it keeps that.
    fn demand(&mut self, number: usize, requests: usize) -> usize {
        let before = self.workers[number].held.len();
        for _ in 0..requests {
            self.now = self.now + Duration::from_millis(20);
            self.ask(number);
            self.settle();
        }
        self.workers[number].held.len() - before
    }
}

#[test]
fn edits_at_any_moment_let_nobody_in_beyond_the_limit_and_lose_no_permit() {
    const MOST: u32 = 60;
    for seed in 1..=400_u64 {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let workers = [1, 2, 4, 5][random(4) as usize];
        let mut mesh = Mesh::new(workers as u16, Edit::Limit(40));
        let edits = [5, 20, 100][random(3) as usize];
        for _ in 0..1_500 {
            let number = random(workers) as usize;
            match random(20) {
                0..6 => mesh.ask(number),
                6..10 => drop(mesh.reach_worker(number)),
                10..14 => drop(mesh.reach_coordinator(number)),
                14..17 if !mesh.workers[number].held.is_empty() => {
                    let held = &mut mesh.workers[number].held;
                    held.swap_remove(random(held.len() as u64) as usize);
                }
                17 if !mesh.workers[number].waiting.is_empty() => drop(mesh.workers[number].waiting.pop()),
                18 => mesh.now = mesh.now + Duration::from_millis(20),
                19 if random(edits) == 0 => mesh.edit(match random(10) {
                    0 => Edit::NoLimit,
                    1 | 2 => Edit::Remove,
                    _ => Edit::Limit(1 + random(u64::from(MOST)) as u32),
                }),
                _ => {}
            }
        }
        mesh.settle();
        // Whatever has happened, with everything ended each worker alone has nine tenths.
        let max = 1 + random(u64::from(MOST)) as u32;
        mesh.edit(Edit::Limit(max));
        mesh.settle();
        for number in 0..workers as usize {
            mesh.workers.iter_mut().for_each(|worker| worker.held.clear());
            let reached = mesh.demand(number, MOST as usize + 10);
            assert!(reached * 10 >= max as usize * 9 && reached <= max as usize, "seed {seed}: {reached} of {max}");
        }
    }
}

#[test]
fn what_is_in_flight_over_a_change_counts_against_the_new_limit() {
    use Edit::{Limit, NoLimit, Remove};
    // So many are in flight on one worker, then the edits come, then another worker asks.
    for (first, in_flight, edits, room) in [
        (Limit(40), 37, &[Limit(44)][..], 7),
        (Limit(40), 30, &[Limit(20)], 0),
        (Limit(40), 10, &[Limit(20)], 10),
        (Limit(40), 37, &[Limit(44), Limit(40)], 3),
        (Limit(40), 10, &[Limit(12)], 2),
        (Limit(12), 10, &[Limit(40)], 30),
        (Limit(12), 10, &[Limit(11)], 1),
        (Limit(12), 10, &[Limit(40), Limit(12)], 2),
        (Limit(40), 30, &[Remove, Limit(40)], 10),
        (Limit(12), 10, &[Remove, Limit(12)], 2),
        (Limit(40), 30, &[NoLimit, Limit(40)], 10),
        (NoLimit, 30, &[Limit(40)], 10),
        (NoLimit, 10, &[Limit(12)], 2),
    ] {
        let mut mesh = Mesh::new(4, first);
        let case = format!("{first:?}, {in_flight} in flight, {edits:?}");
        let held = mesh.demand(0, in_flight);
        assert_eq!(held, in_flight, "{case}");
        for edit in edits {
            mesh.edit(*edit);
            mesh.settle();
        }
        let admitted = mesh.demand(1, 100);
        assert!(admitted <= room && admitted + 4 >= room, "{case}: {admitted} where there is room for {room}");
        // What ends makes room for others, once it is less than the limit.
        mesh.workers[0].held.clear();
        mesh.workers[1].held.clear();
        let Some(Limit(max)) = edits.last().copied() else { unreachable!("every case ends with a limit") };
        let admitted = mesh.demand(2, 100);
        assert!(admitted <= max as usize && admitted * 10 >= max as usize * 9, "{case}: {admitted} of {max} after all");
    }
}

#[test]
fn a_worker_that_has_ended_is_waited_for_no_more_and_leaves_its_permits() {
    let mut mesh = Mesh::new(4, Edit::Limit(40));
    assert_eq!(mesh.demand(0, 1), 1);
    // A recall is on its way to the last worker when that ends.
    for _ in 0..20 {
        mesh.ask(1);
    }
    while mesh.reach_coordinator(1) {}
    mesh.workers[3].inbox.clear();
    let workers = &mut mesh.workers;
    mesh.coordinator.leave(3, |to, message| workers[usize::from(to)].inbox.push_back(ToMeshWorker::Permit(message)));
    mesh.settle();
    let held = mesh.workers[1].held.len();
    let more = mesh.demand(1, 100);
    assert!((37..40).contains(&(held + more)), "{held} and {more}");
}

#[test]
fn a_request_that_is_polled_often_waits_once_and_not_at_all_when_dropped() {
    let leases = Leases::default();
    let service = service(Some(40), 1);
    leases.commit([(None, Some(&service))].into_iter());
    let waiting = |count: usize| {
        let lease = leases.lease(&service).expect("it is in the tables");
        assert_eq!(lease.waiting.borrow().len(), count);
    };
    {
        let mut requests: Vec<_> =
            (0..3).map(|_| Box::pin(leases.acquire(&service, Instant::now(), |_| true))).collect();
        for _ in 0..10 {
            for request in &mut requests {
                assert!(request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            }
        }
        waiting(3);
    }
    waiting(0);
}

#[test]
fn a_request_of_a_service_that_was_removed_has_what_was_lent_and_never_waits() {
    let mut mesh = Mesh::new(4, Edit::Limit(40));
    assert_eq!(mesh.demand(0, 1), 1);
    let old = mesh.workers[0].service.clone();
    mesh.edit(Edit::Remove);
    mesh.settle();
    mesh.workers[0].service = old;
    let admitted = mesh.demand(0, 100);
    assert_eq!(admitted, 9, "its even lease has ten");
}
