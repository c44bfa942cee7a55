//! The running data plane: its worker threads, and the loader that feeds them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::{Level, Name, Snapshot};
use ringmesh_model::wire::{EndpointReport, Pin, Report, Runtime, WorkerReport};
use ringmesh_ring::affinity;
use ringmesh_ring::mailbox::{Receiver, Sender, mailbox};
use ringmesh_ring::net::{Net, Sockets};
use ringmesh_ring::reclaim;
use ringmesh_ring::setup::{self, Grant, Wish};
use ringmesh_ring::shared_memory::Memory;
use ringmesh_ring::socket::{Listener, refuse_newcomers};
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use crate::filter;
use crate::health::Checker;
use crate::listener::{self, Handover, Placement, Places};
use crate::loader::{self, Loader};
use crate::outbox::Outbox;
use crate::permit::{self, Coordinator};
use crate::places::Place;
use crate::proxy::connection::Exchanges;
use crate::proxy::pooled::pooled;
use crate::tables::Tables;
use crate::telemetry::directory::{self, Directory};
use crate::telemetry::layout::{self, gauge};
use crate::telemetry::recorder::Recorder;
use crate::telemetry::ring::Producer;
use crate::tls;
use crate::worker::{Events, Worker};

/// Messages that wait for one receiver at most. A burst of accepted connections is the largest of them.
const MAILBOX: usize = 1024;

/// How long clients that have begun to connect to a port that closes may take to finish that.
const LAST_CLIENTS: Duration = Duration::from_millis(200);

/// How often what waits for a full mailbox is tried again.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

/// How long workers may take for their reports before one is made without them.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a connection may be on its way from one worker to another.
const HANDOVER: Duration = Duration::from_millis(20);

/// How long connections that were stopped at the end of a drain may take to end.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// To a worker.
#[derive(Debug)]
enum ToWorker {
    /// Use these tables from the next request on.
    Commit(Arc<Tables>),
    /// Accept on this socket.
    Listen(Place, OwnedFd),
    /// Accept there no more.
    Unlisten(Place, Open),
    /// A connection from another worker.
    Handover(Handover),
    /// From the coordinator.
    Permit(permit::ToWorker),
    /// Tell how things are.
    Report,
    /// Free what is kept unused.
    Shrink,
    /// Accept no more, end what is open by then.
    Drain(Duration),
}

/// What becomes of the open connections of a listener whose sockets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    /// They go on: the listener has other sockets now.
    Keep,
    /// Idle ones end: the listener is gone.
    EndIdle,
}

/// From a worker.
#[derive(Debug)]
enum FromWorker {
    Committed(u64),
    Permit(permit::ToCoordinator),
    Report(WorkerReport, Vec<EndpointReport>),
    Drained(u64),
    /// The last that its thread says, however it ends.
    Ended,
}

/// Why a data plane does not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The driver that is demanded is not there.
    #[error(transparent)]
    Driver(#[from] setup::Error),
    /// The telemetry memory cannot be used.
    #[error(transparent)]
    Telemetry(#[from] directory::Error),
    /// The system refused something.
    #[error("cannot start the workers: {0}")]
    System(#[from] io::Error),
    /// More workers than the telemetry memory has room for.
    #[error("at most {} workers are possible", layout::MAX_WORKERS)]
    TooManyWorkers,
}

/// So many connections more than there are now make a peak whose memory is worth giving back: each may have held two
/// buffers and what goes with them, so that these are 20 MiB.
const PEAK: u64 = 512;

/// What is done after a peak of connections, one step a look.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// There was none.
    Nothing,
    /// Many have ended; so many are left. What ends later would leave its storage behind, so the number must stand first.
    Falling(u64),
    /// The workers have been told to free what they keep.
    Shrinking,
}

/// A data plane with its workers.
pub struct Plane {
    places: Places,
    after_peak: After,
    grant: Grant,
    runtime: Runtime,
    started: Instant,
    loader: Loader,
    coordinator: Coordinator,
    workers: Vec<Handle>,
    receiver: Receiver<(u16, FromWorker)>,
    /// Listening sockets by listener; the workers have duplicates.
    listeners: HashMap<Name, Listening>,
    /// Sockets that wait for the tables that need them; dropped if those are refused.
    staged: HashMap<Name, Vec<OwnedFd>>,
    /// Sockets of listeners that no worker accepts on, for want of descriptors.
    deaf: HashMap<Name, Vec<OwnedFd>>,
    /// Sent to the workers, but not taken by all of them yet.
    partly: Option<Arc<Tables>>,
    /// Tables that some request may still use: freed here, not on a worker.
    retired: Vec<Arc<Tables>>,
    cut: u64,
}

/// The sockets of one listener.
struct Listening {
    sockets: Vec<OwnedFd>,
    /// What the workers know it by.
    place: Place,
}

/// A worker seen from here.
struct Handle {
    outbox: Outbox<ToWorker>,
    thread: JoinHandle<io::Result<()>>,
    /// The version that it has last said it uses.
    version: u64,
    /// Asked for a report that has not come; it is not asked again.
    asked: bool,
    course: Course,
}

/// How far a worker has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Course {
    Works,
    Drained,
    /// Its thread has ended, but not by a drain.
    Lost,
}

/// What became of a version that could be made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Taken {
    /// All workers use it.
    Live(u64),
    /// Some do. It has been sent to all, and [`Plane::completed`] says when the last one has taken it.
    Partly {
        /// The version.
        version: u64,
        /// What each worker uses.
        workers: Vec<u64>,
    },
}

/// What a data plane is given at its start.
pub struct Start {
    /// How its workers run.
    pub runtime: Runtime,
    /// See [`layout`].
    pub telemetry: Memory,
    /// Each worker's event ring.
    pub events: Vec<Producer>,
    /// Test-only filters.
    pub filters: Vec<filter::Make>,
}

impl Plane {
    /// Starts the workers, without tables and listeners.
    ///
    /// # Errors
    /// If the driver, the memory or the threads cannot be had.
    pub fn start(start: Start) -> Result<Self, Error> {
        let Start { runtime, telemetry, events, filters } = start;
        let count = runtime.workers;
        if count == 0 || count > layout::MAX_WORKERS {
            return Err(Error::TooManyWorkers);
        }
        let wish = match runtime.driver {
            ringmesh_model::wire::Driver::Auto => Wish::Auto,
            ringmesh_model::wire::Driver::IoUring => Wish::IoUring,
            ringmesh_model::wire::Driver::Epoll => Wish::Epoll,
        };
        let grant = setup::probe(wish)?;
        let telemetry = Arc::new(telemetry);
        let directory = Directory::open(telemetry.clone(), count)?;
        let (to_loader, receiver) = mailbox::<(u16, FromWorker)>(usize::from(count), MAILBOX)?;
        let mut mailboxes = Vec::new();
        for _ in 0..count {
            // One sender for the loader, and one for each worker.
            mailboxes.push(mailbox::<ToWorker>(usize::from(count) + 1, MAILBOX)?);
        }
        let mut senders: Vec<Vec<Sender<ToWorker>>> = (0..count).map(|_| Vec::new()).collect();
        let mut receivers = Vec::new();
        let mut own = Vec::new();
        for (mut sending, receiver) in mailboxes {
            own.push(sending.pop().expect("one sender more than workers"));
            for (from, sender) in sending.into_iter().enumerate() {
                senders[from].push(sender);
            }
            receivers.push(receiver);
        }
        let places = Places::new(count);
        let mut workers = Vec::new();
        let parts = own.into_iter().zip(senders).zip(receivers).zip(to_loader).zip(events).enumerate();
        for (number, ((((sender, others), receiver), to_loader), events)) in parts {
            let seat = Seat {
                number: number as u16,
                grant: grant.clone(),
                pin: runtime.pin,
                recorder: telemetry.clone(),
                places: places.clone(),
                events,
                filters: filters.clone(),
                receiver,
                others,
            };
            let thread =
                std::thread::Builder::new().name(format!("worker {number}")).spawn(move || seat.run(to_loader))?;
            workers.push(Handle {
                outbox: Outbox::new(sender),
                thread,
                version: 0,
                asked: false,
                course: Course::Works,
            });
        }
        Ok(Self {
            places,
            after_peak: After::Nothing,
            grant,
            coordinator: Coordinator::new(count),
            loader: Loader::new(directory, count),
            runtime,
            started: Instant::now(),
            workers,
            receiver,
            listeners: HashMap::new(),
            staged: HashMap::new(),
            deaf: HashMap::new(),
            partly: None,
            retired: Vec::new(),
            cut: 0,
        })
    }

    /// The driver in use, and why it is not a better one.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// How the workers run.
    pub fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The version that the newest tables have.
    pub fn version(&self) -> u64 {
        self.loader.tables().version
    }

    /// From which importance on is logged, as the newest tables say. None before there are any.
    pub fn log_level(&self) -> Option<Level> {
        self.loader.tables().settings.as_ref().map(|settings| settings.log_level)
    }

    /// Readable when a worker has said something; then call [`Plane::listen_to_workers`].
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.receiver.descriptor()
    }

    /// Gives memory back once a peak of connections is over. To be called every few seconds: once their number stands the
    /// workers free what they keep, and the next call gives it to the system.
    pub fn look_after_memory(&mut self) {
        let (now, peak) = self.places.now_and_peak();
        self.after_peak = match self.after_peak {
            After::Nothing | After::Falling(_) if peak < 2 * now + PEAK => After::Nothing,
            After::Falling(before) if now + PEAK / 16 >= before => {
                self.places.forget_peak();
                for number in 0..self.workers.len() {
                    self.send(number, ToWorker::Shrink);
                }
                After::Shrinking
            }
            After::Nothing | After::Falling(_) => After::Falling(now),
            After::Shrinking => {
                let begun = Instant::now();
                reclaim::release();
                tracing::info!(target: "loader", took = ?begun.elapsed(), "memory of a peak of connections is given back");
                After::Nothing
            }
        };
    }

    /// Takes listening sockets in place of those of the same name, as soon as the next snapshot or change is live. What
    /// comes for a name before that adds up.
    pub fn add_sockets(&mut self, name: Name, sockets: impl IntoIterator<Item = OwnedFd>) {
        self.staged.entry(name).or_default().extend(sockets);
    }

    /// All listening sockets, by name.
    pub fn listeners(&self) -> impl Iterator<Item = (&Name, &[OwnedFd])> {
        self.listeners.iter().map(|(name, listening)| (name, &listening.sockets[..]))
    }

    /// Makes a snapshot live on all workers.
    ///
    /// # Errors
    /// If it cannot be used; then nothing changes.
    pub fn load(&mut self, snapshot: Snapshot) -> Result<Taken, String> {
        let before = self.loader.tables().clone();
        let tables = self.loader.load(snapshot);
        let taken = self.take(&before, tables);
        if before.version == 0 {
            // What it came in and what it was made with is garbage now. There is no traffic yet that this could hold up.
            reclaim::release();
        }
        taken
    }

    /// Makes a change live on all workers.
    ///
    /// # Errors
    /// If it cannot be used; then nothing changes.
    pub fn apply(&mut self, delta: &Delta) -> Result<Taken, String> {
        let before = self.loader.tables().clone();
        let tables = self.loader.apply(delta);
        self.take(&before, tables)
    }

    fn take(&mut self, before: &Tables, tables: Result<Arc<Tables>, loader::Error>) -> Result<Taken, String> {
        match tables {
            Ok(tables) => Ok(self.commit(before, tables)),
            Err(error) => {
                self.staged.clear();
                Err(error.to_string())
            }
        }
    }

    fn commit(&mut self, before: &Tables, tables: Arc<Tables>) -> Taken {
        let version = tables.version;
        self.accept_the_last(&tables);
        self.coordinator.change(tables.services.changed_since(&before.services));
        for number in 0..self.workers.len() {
            self.send(number, ToWorker::Commit(tables.clone()));
        }
        self.retired.retain(|old| Arc::strong_count(old) > 1);
        self.retired.push(tables.clone());
        self.partly = Some(tables);
        let until = Instant::now() + loader::COMMIT_TIMEOUT;
        loop {
            if self.completed() == Some(version) {
                return Taken::Live(version);
            }
            if Instant::now() >= until || self.has_lost_a_worker() {
                let workers: Vec<u64> = self.workers.iter().map(|worker| worker.version).collect();
                tracing::error!(target: "loader", version, ?workers, "a worker hangs or has ended: not all use the newest version");
                return Taken::Partly { version, workers };
            }
            self.wait(until);
        }
    }

    /// The version that all workers use now, if they did not before.
    pub fn completed(&mut self) -> Option<u64> {
        let version = self.partly.as_ref()?.version;
        if self.workers.iter().any(|worker| worker.version != version) {
            return None;
        }
        let tables = self.partly.take()?;
        self.loader.directory().set_version(version);
        self.listen(&tables);
        Some(version)
    }

    /// Another control has come, which gives us all sockets that we do not have.
    pub fn forget_staged(&mut self) {
        self.staged.clear();
        self.deaf.clear();
    }

    /// Ports that these tables give up take no new clients from now on, and those that have begun to connect are accepted
    /// while the old tables still serve them: nobody is left in a backlog when it closes.
    fn accept_the_last(&mut self, tables: &Tables) {
        let stays = |name: &Name, place: Place| {
            let found = tables.listeners.get(place.index as usize).and_then(Option::as_deref);
            found.is_some_and(|listener| listener.place == place && listener.config.name == *name)
        };
        let address = |sockets: &[OwnedFd]| rustix::net::getsockname(sockets.first()?).ok();
        let used: Vec<_> = self.staged.values().map(|sockets| address(sockets)).collect();
        let mut waits = false;
        for (name, listening) in &self.listeners {
            let replaced = self.staged.contains_key(name) || !stays(name, listening.place);
            // The same sockets may go on under another name.
            if !replaced || used.contains(&address(&listening.sockets)) {
                continue;
            }
            for socket in &listening.sockets {
                if let Err(error) = refuse_newcomers(socket) {
                    tracing::warn!(target: "loader", listener = name, "clients may be reset while its port closes: {error}");
                }
            }
            waits = true;
        }
        let until = Instant::now() + LAST_CLIENTS;
        while waits && Instant::now() < until {
            self.wait(until);
        }
    }

    /// Lets the workers accept where the tables say, and nowhere else. Where that fails, what listens goes on, and it is tried
    /// again, see [`Plane::listen_again`].
    fn listen(&mut self, tables: &Tables) {
        let places: HashMap<&Name, Place> =
            tables.listeners.iter().flatten().map(|listener| (&listener.config.name, listener.place)).collect();
        let mut wanted = std::mem::take(&mut self.deaf);
        let known: Vec<Name> = wanted.keys().cloned().collect();
        wanted.extend(std::mem::take(&mut self.staged));
        let gone: Vec<Name> = self.listeners.keys().filter(|name| !places.contains_key(name)).cloned().collect();
        for name in gone {
            if let Some(Listening { place, .. }) = self.listeners.remove(&name) {
                self.unlisten(place, Open::EndIdle);
            }
        }
        for (name, sockets) in wanted {
            let Some(place) = places.get(&name).copied() else { continue };
            let was_deaf = known.contains(&name);
            // Duplicated first.
            match self.for_workers(&sockets) {
                Ok(duplicates) => {
                    if was_deaf {
                        tracing::info!(target: "loader", listener = name, "workers accept connections on it now");
                    }
                    if let Some(old) = self.listeners.insert(name, Listening { sockets, place }) {
                        self.unlisten(old.place, Open::Keep);
                    }
                    for (number, socket) in duplicates {
                        self.send(number, ToWorker::Listen(place, socket));
                    }
                }
                Err(error) => {
                    if !was_deaf {
                        tracing::error!(
                            target: "loader", listener = name,
                            "no worker accepts connections on it yet: {error}; raise the limit on descriptors (`ulimit -n`, \
                             LimitNOFILE= of systemd)"
                        );
                    }
                    self.deaf.insert(name, sockets);
                }
            }
        }
        self.loader.directory().set_deaf(self.deaf.len());
    }

    /// A socket for each worker: one of its own, or one that they share.
    fn for_workers(&self, sockets: &[OwnedFd]) -> io::Result<Vec<(usize, OwnedFd)>> {
        let of = |number: usize| sockets.get(number % sockets.len().max(1));
        let each = (0..self.workers.len()).filter_map(|number| of(number).map(|socket| (number, socket)));
        each.map(|(number, socket)| Ok((number, socket.try_clone()?))).collect()
    }

    /// Tries again to let the workers accept where there were no descriptors for it.
    pub fn listen_again(&mut self) {
        // A version that not all workers use yet listens once they do.
        if !self.deaf.is_empty() && self.partly.is_none() {
            let tables = self.loader.tables().clone();
            self.listen(&tables);
        }
    }

    fn unlisten(&mut self, place: Place, open: Open) {
        for number in 0..self.workers.len() {
            self.send(number, ToWorker::Unlisten(place, open));
        }
    }

    /// Sends a message to a worker. If it is so far behind that its mailbox is full, the message waits.
    fn send(&mut self, number: usize, message: ToWorker) {
        self.workers[number].outbox.send(message);
    }

    /// Sends what waits for workers that are behind. Whether something still waits: then it is to be called again after
    /// [`FLUSH_INTERVAL`].
    pub fn flush(&mut self) -> bool {
        let mut waits = false;
        for worker in &mut self.workers {
            waits |= !worker.outbox.flush();
        }
        waits
    }

    /// Waits until a worker has said something, or `until`.
    fn wait(&mut self, until: Instant) -> Reports {
        let left = until.saturating_duration_since(Instant::now());
        let left = if self.flush() { left.min(FLUSH_INTERVAL) } else { left };
        let mut descriptors =
            [rustix::event::PollFd::from_borrowed_fd(self.receiver.descriptor(), rustix::event::PollFlags::IN)];
        let left = rustix::time::Timespec::try_from(left).expect("a few seconds fit");
        // Whatever it says, there is something to be read or the time is over.
        let _ = rustix::event::poll(&mut descriptors, Some(&left));
        self.listen_to_workers()
    }

    /// Takes what the workers have said. Reports are returned.
    pub fn listen_to_workers(&mut self) -> Reports {
        let mut reports = Vec::new();
        while let Some((number, message)) = self.receiver.try_recv() {
            match message {
                FromWorker::Committed(version) => self.workers[usize::from(number)].version = version,
                FromWorker::Permit(message) => {
                    let mut answers = Vec::new();
                    self.coordinator.receive(number, message, |worker, answer| answers.push((worker, answer)));
                    self.send_permits(answers);
                }
                FromWorker::Report(worker, endpoints) => {
                    self.workers[usize::from(number)].asked = false;
                    reports.push((number, worker, endpoints));
                }
                FromWorker::Drained(cut) => {
                    self.cut += cut;
                    self.leave(number, Course::Drained);
                }
                FromWorker::Ended if self.workers[usize::from(number)].course == Course::Drained => {}
                FromWorker::Ended => {
                    tracing::error!(target: "loader", worker = number, "a worker's thread has ended, and its connections with it");
                    self.leave(number, Course::Lost);
                }
            }
        }
        reports
    }

    /// A worker has no requests any more: who works or still drains does not wait for its answers.
    fn leave(&mut self, number: u16, course: Course) {
        self.workers[usize::from(number)].course = course;
        let mut answers = Vec::new();
        self.coordinator.leave(number, |worker, answer| answers.push((worker, answer)));
        self.send_permits(answers);
    }

    fn send_permits(&mut self, messages: Vec<(u16, permit::ToWorker)>) {
        for (worker, message) in messages {
            self.send(usize::from(worker), ToWorker::Permit(message));
        }
    }

    /// How things are. Of a worker that does not answer in time only the version is known that it has last confirmed.
    pub fn report(&mut self) -> Report {
        // Answers that came too late for an earlier question are not counted twice.
        self.listen_to_workers();
        for number in 0..self.workers.len() {
            if !std::mem::replace(&mut self.workers[number].asked, true) {
                self.send(number, ToWorker::Report);
            }
        }
        let mut reports: Reports = Vec::new();
        let until = Instant::now() + REPORT_TIMEOUT;
        while reports.len() < self.workers.len() && Instant::now() < until {
            reports.extend(self.wait(until));
        }
        for (number, worker) in (0..).zip(&self.workers) {
            if !reports.iter().any(|report| report.0 == number) {
                let silent = WorkerReport { version: worker.version, silent: true, ..WorkerReport::default() };
                reports.push((number, silent, Vec::new()));
            }
        }
        reports.sort_by_key(|report| report.0);
        let mut endpoints: Vec<EndpointReport> = Vec::new();
        let mut workers = Vec::new();
        for (_, worker, seen) in reports {
            workers.push(worker);
            if endpoints.is_empty() {
                endpoints = seen;
                continue;
            }
            // While workers use different versions, endpoints that are in one of them only are not summed.
            let same = |(sum, one): &(&mut EndpointReport, EndpointReport)| {
                sum.service == one.service && sum.address == one.address
            };
            for (sum, one) in endpoints.iter_mut().zip(seen).filter(same) {
                sum.in_flight += one.in_flight;
                sum.idle += one.idle;
                sum.consecutive_failures = sum.consecutive_failures.max(one.consecutive_failures);
            }
        }
        Report {
            pid: std::process::id(),
            driver: self.grant.driver.to_string(),
            driver_reason: self.grant.reason.clone(),
            uptime_seconds: self.started.elapsed().as_secs(),
            workers,
            endpoints,
            deaf: self.deaf.keys().cloned().collect(),
        }
    }

    /// Whether a worker has ended that should not have: then the process must end, so that control starts another.
    pub fn has_lost_a_worker(&self) -> bool {
        self.workers.iter().any(|worker| worker.course == Course::Lost || worker.thread.is_finished())
    }

    /// Accepts no more, finishes what is open within `timeout`, ends the workers. Returns how many connections were cut.
    pub fn drain(mut self, timeout: Duration) -> u64 {
        self.listeners.clear();
        for number in 0..self.workers.len() {
            self.send(number, ToWorker::Drain(timeout));
        }
        let until = Instant::now() + timeout + LAST_MOMENT * 3;
        let all_left = |plane: &Self| plane.workers.iter().all(|worker| worker.course != Course::Works);
        while !all_left(&self) && Instant::now() < until {
            self.wait(until);
        }
        if all_left(&self) {
            for worker in self.workers {
                let _ = worker.thread.join();
            }
        }
        self.cut
    }
}

/// Workers' accounts, with their numbers.
type Reports = Vec<(u16, WorkerReport, Vec<EndpointReport>)>;

/// What a worker's thread takes with it.
struct Seat {
    number: u16,
    grant: Grant,
    pin: Pin,
    recorder: Arc<Memory>,
    places: Places,
    events: Producer,
    filters: Vec<filter::Make>,
    receiver: Receiver<ToWorker>,
    others: Vec<Sender<ToWorker>>,
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
    fn run(self, to_loader: Sender<(u16, FromWorker)>) -> io::Result<()> {
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
