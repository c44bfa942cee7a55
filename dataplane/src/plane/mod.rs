//! The running data plane: its worker threads, and the loader that feeds them.

mod listening;
mod seat;

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::{Level, Name, Snapshot};
use ringmesh_model::wire::{EndpointReport, Report, Runtime, WorkerReport};
use ringmesh_ring::mailbox::{Receiver, Sender, mailbox};
use ringmesh_ring::reclaim;
use ringmesh_ring::setup::{self, Grant, Wish};
use ringmesh_ring::shared_memory::Memory;

use self::listening::Listening;
use self::seat::Seat;
use crate::filter;
use crate::listener::{Handover, Places};
use crate::loader::{self, Loader};
use crate::outbox::Outbox;
use crate::permit::{self, Coordinator};
use crate::places::Place;
use crate::tables::Tables;
use crate::telemetry::directory::{self, Directory};
use crate::telemetry::layout;
use crate::telemetry::ring::Producer;

/// Messages that wait for one receiver at most. A burst of accepted connections is the largest of them.
const MAILBOX: usize = 1024;

/// How often what waits for a full mailbox is tried again.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(5);

/// How long workers may take for their reports before one is made without them.
const REPORT_TIMEOUT: Duration = Duration::from_secs(1);

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
