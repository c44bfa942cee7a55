//! A worker's thread: what the loader tells it, and what it answers.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::wire::{EndpointReport, Pin, WorkerReport};
use ringmesh_ring::affinity;
use ringmesh_ring::mailbox::{Receiver, Sender};
use ringmesh_ring::net::{Net, Sockets};
use ringmesh_ring::reclaim;
use ringmesh_ring::setup::{self, Grant};
use ringmesh_ring::shared_memory::Memory;
use ringmesh_ring::socket::Listener;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use super::{FLUSH_INTERVAL, FromWorker, LAST_MOMENT, Open, ToWorker};
use crate::filter;
use crate::health::Checker;
use crate::listener::{self, Placement, Places};
use crate::outbox::Outbox;
use crate::places::Place;
use crate::proxy::connection::Exchanges;
use crate::proxy::pooled::pooled;
use crate::telemetry::layout::gauge;
use crate::telemetry::recorder::Recorder;
use crate::telemetry::ring::Producer;
use crate::tls;
use crate::worker::{Events, Worker};

/// How long a connection may be on its way from one worker to another.
const HANDOVER: Duration = Duration::from_millis(20);

/// What a worker's thread takes with it.
pub(super) struct Seat {
    pub(super) number: u16,
    pub(super) grant: Grant,
    pub(super) pin: Pin,
    pub(super) recorder: Arc<Memory>,
    pub(super) places: Places,
    pub(super) events: Producer,
    pub(super) filters: Vec<filter::Make>,
    pub(super) receiver: Receiver<ToWorker>,
    pub(super) others: Vec<Sender<ToWorker>>,
}

/// A worker's way to the loader.
type ToLoader = Rc<RefCell<Outbox<(u16, FromWorker)>>>;

/// Tells the loader that the worker's thread ends, be it by a panic: others may wait for what this one would say.
struct Farewell(u16, ToLoader);

impl Drop for Farewell {
    fn drop(&mut self) {
        // A loader so far behind that there is no room sees some seconds later that the thread has ended.
        if let Ok(mut to_loader) = self.1.try_borrow_mut() {
            let _ = to_loader.try_send((self.0, FromWorker::Ended));
        }
    }
}

impl Seat {
    pub(super) fn run(self, to_loader: Sender<(u16, FromWorker)>) -> io::Result<()> {
        let to_loader = Rc::new(RefCell::new(Outbox::new(to_loader)));
        let _farewell = Farewell(self.number, to_loader.clone());
        if self.pin == Pin::Cores
            && let Err(error) = affinity::pin_to(&affinity::allowed_cores(), usize::from(self.number))
        {
            tracing::warn!(target: "worker", worker = self.number, "cannot stay on one core: {error}");
        }
        let grant = self.grant.clone();
        setup::run(&grant, self.work(to_loader))
    }

    async fn work(self, to_loader: ToLoader) {
        let Self { number, grant, recorder, places, mut events, filters, mut receiver, others, .. } = self;
        let recorder = Recorder::new(recorder, number);
        // What an earlier data plane has left here is over.
        recorder.gauge_set(gauge::CONNECTIONS, 0);
        recorder.gauge_set(gauge::IN_FLIGHT, 0);
        recorder.gauge_set(gauge::EPOLL, u64::from(grant.driver == setup::Driver::Epoll));
        let coordinator = {
            let to_loader = to_loader.clone();
            move |message| to_loader.borrow_mut().try_send((number, FromWorker::Permit(message))).is_ok()
        };
        let filters = filters.iter().map(|make| make()).collect();
        let events = Events::new(move |bytes| events.push(bytes));
        let worker = Rc::new(Worker::new(number, Sockets, recorder, events, filters, coordinator));
        let exchanges = pooled::<Sockets>();
        let others = RefCell::new(others);
        let placement = {
            let send = move |to: u16, handover| match others.borrow_mut()[usize::from(to)]
                .send(ToWorker::Handover(handover))
            {
                Ok(()) => Ok(()),
                Err(full) => match full.0 {
                    ToWorker::Handover(handover) => Err(handover),
                    _ => unreachable!("it is the message just sent"),
                },
            };
            Rc::new(Placement::new(worker.clone(), places, send))
        };
        let mut accepting: HashMap<Place, Stop> = HashMap::new();
        let checker = Checker::default();
        loop {
            if let Err(error) = receiver.ready().await {
                tracing::error!(target: "worker", worker = number, "cannot wait for the loader: {error}");
                return;
            }
            while let Some(message) = receiver.try_recv() {
                match message {
                    ToWorker::Commit(tables) => {
                        let version = tables.version;
                        let before = worker.commit(tables);
                        worker.end_left_behind(&before);
                        // One worker asks for all.
                        if number == 0 {
                            checker.commit(&worker, &before);
                        }
                        drop(before);
                        tell(&to_loader, number, FromWorker::Committed(version));
                    }
                    ToWorker::Listen(place, socket) => {
                        let Ok(listener) = Listener::from_fd(socket) else { continue };
                        let stop = worker.net.stop();
                        accepting.insert(place, stop.clone());
                        ringmesh_ring::spawn(listener::accept(
                            placement.clone(),
                            exchanges.clone(),
                            listener,
                            place,
                            stop,
                        ));
                    }
                    ToWorker::Unlisten(place, open) => {
                        if let Some(stop) = accepting.remove(&place) {
                            stop.trigger(StopReason::Drain);
                        }
                        if open == Open::EndIdle {
                            worker.connections.stop_idle_of(place.index);
                        }
                    }
                    ToWorker::Handover(handover) => listener::take_over(&worker, &exchanges, handover),
                    ToWorker::Permit(message) => {
                        if let Some(answer) = worker.leases.receive(message, worker.net.now()) {
                            tell(&to_loader, number, FromWorker::Permit(answer));
                        }
                    }
                    ToWorker::Report => {
                        let (report, endpoints) = report(&worker);
                        tell(&to_loader, number, FromWorker::Report(report, endpoints));
                    }
                    ToWorker::Shrink => {
                        exchanges.clear();
                        worker.free_scratch();
                        tls::free_unused();
                        reclaim::free_unused();
                    }
                    ToWorker::Drain(timeout) => {
                        for (_, stop) in accepting.drain() {
                            stop.trigger(StopReason::Drain);
                        }
                        let tell = |message| tell(&to_loader, number, message);
                        let cut = drain(&worker, &exchanges, &mut receiver, timeout, &tell).await;
                        tell(FromWorker::Drained(cut));
                        // The runtime ends with this task, and with it the one that tells what waits.
                        while !to_loader.borrow_mut().flush() {
                            ringmesh_ring::sleep_until(worker.net.now() + FLUSH_INTERVAL).await;
                        }
                        return;
                    }
                }
            }
        }
    }
}

/// Tells the loader. If it is so far behind that its mailbox is full, a task tries again until all is told.
fn tell(to_loader: &ToLoader, number: u16, message: FromWorker) {
    let waited = to_loader.borrow().is_waiting();
    to_loader.borrow_mut().send((number, message));
    if !waited && to_loader.borrow().is_waiting() {
        let to_loader = to_loader.clone();
        ringmesh_ring::spawn(async move {
            while !to_loader.borrow_mut().flush() {
                ringmesh_ring::sleep_until(Sockets.now() + FLUSH_INTERVAL).await;
            }
        });
    }
}

/// Lets requests end; how many connections were cut.
async fn drain(
    worker: &Rc<Worker<Sockets>>,
    exchanges: &impl Exchanges<Sockets>,
    receiver: &mut Receiver<ToWorker>,
    timeout: Duration,
    tell: &impl Fn(FromWorker),
) -> u64 {
    worker.drain();
    wait_for_connections(worker, exchanges, receiver, timeout, tell).await;
    let cut = worker.connections.count() as u64;
    worker.connections.stop_all();
    wait_for_connections(worker, exchanges, receiver, LAST_MOMENT, tell).await;
    cut
}

/// Waits until all connections have ended, for so long. What they need from others still arrives.
async fn wait_for_connections(
    worker: &Rc<Worker<Sockets>>,
    exchanges: &impl Exchanges<Sockets>,
    receiver: &mut Receiver<ToWorker>,
    length: Duration,
    tell: &impl Fn(FromWorker),
) {
    const STEP: Duration = Duration::from_millis(10);
    let begun = worker.net.now();
    loop {
        while let Some(message) = receiver.try_recv() {
            match message {
                ToWorker::Permit(message) => {
                    // A request on another worker may wait for what this one has to spare.
                    if let Some(answer) = worker.leases.receive(message, worker.net.now()) {
                        tell(FromWorker::Permit(answer));
                    }
                }
                ToWorker::Handover(handover) => listener::take_over(worker, exchanges, handover),
                _ => {}
            }
        }
        // The gauge counts from the accept on. Workers that have not heard of the end yet may still hand something over.
        let waited = worker.net.now().saturating_since(begun);
        if waited >= length || (waited >= HANDOVER && worker.recorder.gauge(gauge::CONNECTIONS) == 0) {
            return;
        }
        ringmesh_ring::sleep_until(worker.net.now() + STEP).await;
    }
}

fn report(worker: &Worker<Sockets>) -> (WorkerReport, Vec<EndpointReport>) {
    let tables = worker.tables();
    let endpoints = tables.services.iter().flat_map(|service| {
        service.endpoints.iter().map(|endpoint| {
            let state = worker.pools.known(endpoint.place);
            let state = state.as_deref();
            EndpointReport {
                service: service.config.name.clone(),
                address: endpoint.text.to_string(),
                in_flight: state.map_or(0, |state| u64::from(state.in_flight())),
                idle: state.map_or(0, |state| state.waiting() as u64),
                consecutive_failures: state.map_or(0, |state| u64::from(state.failures())),
                health: endpoint.health.as_ref().map_or_else(Default::default, |health| health.verdict().into()),
            }
        })
    });
    let report = WorkerReport {
        version: tables.version,
        connections: worker.recorder.gauge(gauge::CONNECTIONS),
        in_flight: worker.recorder.gauge(gauge::IN_FLIGHT),
        panics: ringmesh_ring::panics(),
        silent: false,
    };
    (report, endpoints.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::Reserved;
    use crate::proxy::connection;
    use ringmesh_ring::socket::Socket;
    use std::net::SocketAddr;

    /// The size of the task that a connection is, whatever kind of future its exchanges are.
    fn task_bytes<E: Exchanges<Sockets>>(_: &E) -> usize {
        fn size<A, B, C, D, F, G, H: Future>(_: impl Fn(A, B, C, D, F, G) -> H) -> usize {
            size_of::<H>()
        }
        size(
            |worker: Rc<Worker<Sockets>>,
             exchanges: E,
             socket: Socket,
             client: Option<SocketAddr>,
             place: Place,
             reserved: Option<Reserved>| {
                connection::serve(worker, exchanges, socket, client, place, reserved)
            },
        )
    }

    #[test]
    fn an_idle_connection_is_a_small_task() {
        let exchanges = pooled::<Sockets>();
        let bytes = task_bytes(&exchanges);
        assert!((256..=512).contains(&bytes), "an idle connection's task has {bytes} bytes");
    }
}
