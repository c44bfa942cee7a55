//! The data plane as a process: obeys one control at a time, and goes on without any.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use ringmesh_model::snapshot::{Level, Name};
use ringmesh_model::wire::{Runtime, ToControl, ToDataPlane, WIRE_VERSION, WIRE_WITH_LISTENERS, portions};
use ringmesh_ring::shared_memory::{self, SharedMemory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::filter;
use crate::link::{self, Link};
use crate::plane::{self, Plane, Taken};
use crate::telemetry::ring::producers;

/// How often the loader looks whether a worker has ended while nothing else happens, and whether there is memory to give
/// back.
const LOOK_AFTER_WORKERS: Duration = Duration::from_secs(5);

/// How long the loader pauses when it cannot accept a newcomer.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Runs the data plane of the process until it is told to end. `control` is the connection that it was started with; `log`
/// sets from which importance on the process logs, as the configuration says.
pub fn run(control: UnixStream, log: impl Fn(Level) + 'static) -> ExitCode {
    ringmesh_ring::socket::raise_descriptor_limit();
    match Served::new(control, Vec::new(), Box::new(log)).and_then(Served::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(target: "loader", "the data plane ends: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a data plane inside the calling process is started with.
#[derive(Default)]
pub struct Start {
    /// Test-only filters.
    pub filters: Vec<filter::Make>,
}

/// A data plane inside the calling process. It ends when the link is told to drain.
pub struct Running {
    /// Speaks as control does: `Hello`, `Start`, `Listeners`, `Snapshot` and so on.
    pub link: Link,
    /// The loader's thread.
    pub thread: std::thread::JoinHandle<Result<(), Error>>,
}

/// Starts a data plane inside the calling process, for tests and benchmarks.
///
/// # Errors
/// If there are no descriptors or threads left.
pub fn start(start: Start) -> io::Result<Running> {
    let (ours, theirs) = UnixStream::pair()?;
    let thread = std::thread::Builder::new()
        .name("loader".into())
        .spawn(move || Served::new(theirs, start.filters, Box::new(|_| ())).and_then(Served::serve))?;
    Ok(Running { link: Link::new(ours)?, thread })
}

/// Why a data plane ends that was not told to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It has no control, and none can find it.
    #[error("control is gone before it has said how to start")]
    NeverStarted,
    /// A worker has ended.
    #[error("a worker has ended; a new data plane is needed")]
    WorkerLost,
    /// It could not start.
    #[error(transparent)]
    Plane(#[from] plane::Error),
    /// Memory that control has passed is not what it should be.
    #[error(transparent)]
    Memory(#[from] shared_memory::Error),
    /// The system refused something.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// A data plane with those it obeys.
struct Served {
    /// Whom it obeys.
    control: Option<Link>,
    /// Has connected, but said nothing yet.
    waiting: Option<Link>,
    epoch: u64,
    plane: Option<Started>,
    filters: Vec<filter::Make>,
    log: Box<dyn Fn(Level)>,
    /// What `log` was last told.
    level: Option<Level>,
}

/// What `Start` has brought.
struct Started {
    plane: Plane,
    /// Kept for the control that adopts us.
    telemetry: OwnedFd,
    events: OwnedFd,
    nudge: OwnedFd,
    adoption: UnixListener,
}

/// What is to be done after a message.
enum Then {
    Continue,
    End,
}

impl Served {
    fn new(control: UnixStream, filters: Vec<filter::Make>, log: Box<dyn Fn(Level)>) -> Result<Self, Error> {
        let control = Some(Link::new(control)?);
        Ok(Self { control, waiting: None, epoch: 0, plane: None, filters, log, level: None })
    }

    fn serve(mut self) -> Result<(), Error> {
        let mut look = Instant::now() + LOOK_AFTER_WORKERS;
        loop {
            let behind = self.plane.as_mut().is_some_and(|started| started.plane.flush());
            let ready = self.wait(if behind { plane::FLUSH_INTERVAL } else { LOOK_AFTER_WORKERS })?;
            if Instant::now() >= look
                && let Some(started) = &mut self.plane
            {
                started.plane.look_after_memory();
                started.plane.listen_again();
                look = Instant::now() + LOOK_AFTER_WORKERS;
            }
            if ready.workers
                && let Some(started) = &mut self.plane
            {
                started.plane.listen_to_workers();
                if let Some(version) = started.plane.completed() {
                    tracing::info!(target: "loader", version, "all workers use it now");
                    self.tell(&ToControl::Live { version });
                }
            }
            if self.plane.as_ref().is_some_and(|started| started.plane.has_lost_a_worker()) {
                return Err(Error::WorkerLost);
            }
            if ready.adoption {
                self.accept();
            }
            if ready.waiting {
                self.hear_newcomer();
            }
            if ready.control
                && let Then::End = self.hear_control()?
            {
                return Ok(());
            }
        }
    }

    /// Tells control something that it has not just asked for.
    fn tell(&mut self, message: &ToControl) {
        if let Some(link) = &self.control
            && let Err(error) = link.send(message, &[])
        {
            tracing::warn!(target: "loader", "control is gone ({error})");
            self.control = None;
        }
    }

    fn wait(&self, longest: Duration) -> Result<Ready, Error> {
        let mut descriptors = Vec::with_capacity(4);
        let mut order = Vec::with_capacity(4);
        if let Some(control) = &self.control {
            descriptors.push(PollFd::new(control, PollFlags::IN));
            order.push(0);
        }
        if let Some(waiting) = &self.waiting {
            descriptors.push(PollFd::new(waiting, PollFlags::IN));
            order.push(1);
        }
        let worker_descriptor = self.plane.as_ref().map(|started| started.plane.descriptor());
        if let (Some(started), Some(workers)) = (&self.plane, worker_descriptor.as_ref()) {
            descriptors.push(PollFd::new(workers, PollFlags::IN));
            order.push(2);
            descriptors.push(PollFd::new(&started.adoption, PollFlags::IN));
            order.push(3);
        }
        let timeout = Timespec::try_from(longest).expect("a few seconds fit");
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut ready = Ready::default();
        for (descriptor, kind) in descriptors.iter().zip(order) {
            let set = !descriptor.revents().is_empty();
            match kind {
                0 => ready.control = set,
                1 => ready.waiting = set,
                2 => ready.workers = set,
                _ => ready.adoption = set,
            }
        }
        Ok(ready)
    }

    /// Somebody wants to adopt us. Only our own user may.
    fn accept(&mut self) {
        let Some(started) = &self.plane else { return };
        let stream = match started.adoption.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Without descriptors left whoever wants us stays there, and would be heard again at once.
                tracing::warn!(target: "loader", "cannot hear a newcomer: {error}");
                std::thread::sleep(ACCEPT_PAUSE);
                return;
            }
        };
        let allowed = rustix::net::sockopt::socket_peercred(&stream)
            .is_ok_and(|peer| peer.uid == rustix::process::geteuid() || peer.uid.is_root());
        if !allowed {
            tracing::warn!(target: "loader", "another user tried to control this data plane");
            return;
        }
        // One that says nothing is replaced by the next.
        self.waiting = Link::new(stream).ok();
    }

    /// The newcomer's first message decides whether it takes over.
    fn hear_newcomer(&mut self) {
        let Some(link) = self.waiting.take() else { return };
        match link.receive::<ToDataPlane>() {
            Ok((ToDataPlane::Hello { wire, epoch }, _)) => {
                if epoch <= self.epoch {
                    tracing::warn!(target: "loader", epoch, ours = self.epoch, "a control of an older epoch is refused");
                    let _ = link.send(&ToControl::Superseded, &[]);
                    return;
                }
                if let Some(old) = self.control.take() {
                    let _ = old.send(&ToControl::Superseded, &[]);
                }
                self.welcome(link, wire, epoch);
            }
            Ok(_) => tracing::warn!(target: "loader", "a newcomer did not say hello"),
            Err(error) => tracing::debug!(target: "loader", "a newcomer left: {error}"),
        }
    }

    fn welcome(&mut self, link: Link, wire: u32, epoch: u64) {
        self.epoch = epoch;
        if let Some(started) = &mut self.plane {
            started.plane.forget_staged();
        }
        match self.send_welcome(&link, wire) {
            // A control of another wire version can only tell us to drain, which every version understands.
            Ok(()) => {
                tracing::info!(target: "loader", epoch, wire, "obeying a new control");
                self.control = Some(link);
            }
            Err(error) => tracing::warn!(target: "loader", "the new control left: {error}"),
        }
    }

    fn send_welcome(&self, link: &Link, wire: u32) -> Result<(), link::Error> {
        let mut descriptors = Vec::new();
        let (mut started, mut listeners, mut version) = (None, Vec::new(), 0);
        if let Some(kept) = &self.plane {
            started = Some(kept.plane.runtime().clone());
            version = kept.plane.version();
            descriptors = vec![kept.telemetry.as_fd(), kept.events.as_fd(), kept.nudge.as_fd()];
            let all: Vec<(&Name, Vec<BorrowedFd<'_>>)> = kept
                .plane
                .listeners()
                .map(|(name, sockets)| (name, sockets.iter().map(AsFd::as_fd).collect()))
                .collect();
            let all = all.iter().map(|(name, sockets)| (*name, &sockets[..]));
            let mut portions = portions(all, descriptors.len()).into_iter();
            let (counts, sockets) = portions.next().unwrap_or_default();
            // An older control would not understand more: it replaces us anyway, and binds the rest again.
            for (counts, sockets) in portions.filter(|_| wire >= WIRE_WITH_LISTENERS) {
                link.send(&ToControl::Listeners { counts }, &sockets)?;
            }
            listeners = counts;
            descriptors.extend(sockets);
        }
        let pid = std::process::id();
        link.send(&ToControl::Welcome { wire: WIRE_VERSION, pid, started, listeners, version }, &descriptors)
    }

    fn hear_control(&mut self) -> Result<Then, Error> {
        let Some(link) = self.control.take() else { return Ok(Then::Continue) };
        let (message, descriptors) = match link.receive::<ToDataPlane>() {
            Ok(received) => received,
            Err(error) => {
                if self.plane.is_none() {
                    return Err(Error::NeverStarted);
                }
                tracing::warn!(target: "loader", "control is gone ({error}); going on with the last good tables");
                return Ok(Then::Continue);
            }
        };
        match self.obey(message, descriptors, &link)? {
            Obeyed::Answer(answer) => match link.send(&answer, &[]) {
                Ok(()) => self.control = Some(link),
                Err(error) => tracing::warn!(target: "loader", "control is gone ({error})"),
            },
            Obeyed::Silently => self.control = Some(link),
            Obeyed::Welcome { wire, epoch } => self.welcome(link, wire, epoch),
            Obeyed::Drain(timeout) => {
                let cut = self.plane.take().map_or(0, |started| started.plane.drain(timeout));
                let _ = link.send(&ToControl::Drained { cut }, &[]);
                return Ok(Then::End);
            }
        }
        Ok(Then::Continue)
    }

    fn obey(&mut self, message: ToDataPlane, descriptors: Vec<OwnedFd>, link: &Link) -> Result<Obeyed, Error> {
        Ok(match (message, &mut self.plane) {
            (ToDataPlane::Hello { wire, epoch }, _) => Obeyed::Welcome { wire, epoch },
            (ToDataPlane::Drain { timeout }, _) => Obeyed::Drain(timeout),
            (ToDataPlane::Start { runtime }, None) => self.start(runtime, descriptors)?,
            (ToDataPlane::Start { .. }, Some(_)) => refused("a data plane starts once"),
            (_, None) => refused("nothing can be done before Start"),
            (ToDataPlane::Listeners { counts }, Some(started)) => {
                set_listeners(&mut started.plane, counts, descriptors);
                Obeyed::Silently
            }
            (ToDataPlane::Snapshot(snapshot), Some(started)) => {
                let version = snapshot.version;
                let taken = started.plane.load(snapshot);
                self.set_log_level();
                Obeyed::Answer(live(version, taken))
            }
            (ToDataPlane::Delta(delta), Some(started)) => {
                let taken = started.plane.apply(&delta);
                self.set_log_level();
                Obeyed::Answer(live(delta.version, taken))
            }
            (ToDataPlane::Report, Some(started)) => {
                let _ = link;
                Obeyed::Answer(ToControl::Report(started.plane.report()))
            }
        })
    }

    /// Logs as the tables say from now on.
    fn set_log_level(&mut self) {
        let level = self.plane.as_ref().and_then(|started| started.plane.log_level());
        if let Some(level) = level.filter(|level| self.level != Some(*level)) {
            (self.log)(level);
            self.level = Some(level);
        }
    }

    fn start(&mut self, runtime: Runtime, descriptors: Vec<OwnedFd>) -> Result<Obeyed, Error> {
        let Ok([telemetry, events, nudge, adoption]) = <[OwnedFd; 4]>::try_from(descriptors) else {
            return Ok(refused("Start needs four descriptors"));
        };
        let memory = SharedMemory::from_fd(telemetry.try_clone()?)?.map_writer()?;
        let rings = SharedMemory::from_fd(events.try_clone()?)?;
        let producers = producers(&rings, runtime.workers, &nudge)?;
        let filters = self.filters.clone();
        let plane = Plane::start(plane::Start { runtime, telemetry: memory, events: producers, filters })?;
        let adoption = UnixListener::from(adoption);
        adoption.set_nonblocking(true)?;
        let grant = plane.grant().clone();
        tracing::info!(target: "loader", driver = %grant.driver, workers = plane.runtime().workers, "started");
        if let Some(reason) = &grant.reason {
            tracing::warn!(target: "loader", driver = %grant.driver, "not the best driver: {reason}");
        }
        self.plane = Some(Started { plane, telemetry, events, nudge, adoption });
        Ok(Obeyed::Answer(ToControl::Started { driver: grant.driver.to_string(), reason: grant.reason }))
    }
}

/// What has something to say.
#[derive(Default)]
struct Ready {
    control: bool,
    waiting: bool,
    workers: bool,
    adoption: bool,
}

/// What became of a message.
enum Obeyed {
    Answer(ToControl),
    Silently,
    Welcome { wire: u32, epoch: u64 },
    Drain(Duration),
}

fn refused(reason: &str) -> Obeyed {
    Obeyed::Answer(ToControl::Refused { version: 0, reason: reason.to_owned() })
}

fn live(version: u64, result: Result<Taken, String>) -> ToControl {
    match result {
        Ok(Taken::Live(version)) => ToControl::Live { version },
        Ok(Taken::Partly { version, workers }) => ToControl::Partly { version, workers },
        Err(reason) => ToControl::Refused { version, reason },
    }
}

fn set_listeners(plane: &mut Plane, counts: Vec<(Name, u16)>, descriptors: Vec<OwnedFd>) {
    let mut descriptors = descriptors.into_iter();
    for (name, count) in counts {
        plane.add_sockets(name, descriptors.by_ref().take(usize::from(count)));
    }
}
