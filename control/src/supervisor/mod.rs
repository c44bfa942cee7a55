//! The control process: keeps a data plane running with the newest configuration that works.
//!
//! One task owns everything and takes one event after the other ([`Supervisor::next`] waits for it, [`Supervisor::take`]
//! acts on it without waiting), so that no two events meet half-way.

pub mod accounts;
pub mod init;
pub mod listeners;
pub mod orphan;
pub mod socket;
pub(crate) mod backoff;
mod adopt;
mod keeping;
mod plane;
mod process;
mod show;
mod shown;
mod signals;
mod wanted;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ringmesh_model::config::Config;
use ringmesh_model::wire::{self, ToDataPlane};
use ringmesh_ring::setup;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use self::backoff::Backoff;
use self::listeners::Listeners;
use self::plane::{Memory, Plane};
use self::shown::Shown;
use self::signals::{Signal, Signals};
use self::socket::{Requests, Stop};
use self::wanted::NAMES_TIMEOUT;
use crate::directory::{self, Directory, Held, default_instance};
use crate::log::{self, Format};
use crate::publish::Publisher;
use crate::source::Files;
use crate::source::dns::{Answers, Names};
use crate::source::file::Watcher;
use crate::state::{self, Phase};
use crate::{admin, machine, source, telemetry};

/// How long a process may take to end after its link has ended, before the link counts as broken.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// What a drain is given less than was asked for, so that telling its end fits too: a tenth, up to this.
const MAX_DRAIN_MARGIN: Duration = Duration::from_millis(500);

/// Requests that may wait for the supervisor.
const MAX_WAITING_REQUESTS: usize = 64;

/// What control is started with.
pub struct Options {
    /// The config file.
    pub file: PathBuf,
    /// Where the runtime directory is, if not in its usual place.
    pub runtime_directory: Option<PathBuf>,
    /// How both processes log.
    pub format: Format,
    /// Changes the log's level.
    pub log: log::Handle,
}

/// Why control ends with a failure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The files are wrong; every line says what.
    #[error("{0}")]
    Config(String),
    /// The runtime directory cannot be used.
    #[error(transparent)]
    Directory(#[from] directory::Error),
    /// The driver that the config demands is denied.
    #[error(transparent)]
    Driver(#[from] setup::Error),
    /// The admin port cannot be bound.
    #[error(transparent)]
    Admin(#[from] admin::Error),
    /// Ports cannot be bound.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Listeners(Vec<listeners::Error>),
    /// The data plane cannot be started.
    #[error("the data plane cannot be started: {0}")]
    Start(io::Error),
    /// Another control has taken over our data plane.
    #[error("another control has taken over the data plane; was the runtime directory removed?")]
    Superseded,
    /// The drain did not end as it should.
    #[error("the data plane was killed before it had finished: {0}")]
    Cut(&'static str),
    /// The data plane cannot be told.
    #[error("the data plane does not answer, so it could not be told to end; it goes on")]
    Unreachable,
    /// The system refused something.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Runs control until it is told to end. `config` is what the file said a moment ago.
///
/// # Errors
/// If it cannot begin, or cannot end as it should.
pub fn run(options: Options, config: Config) -> Result<(), Error> {
    telemetry::count_panics();
    let (files, fault) = Files::of(config).map_err(|error| Error::Config(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async { Supervisor::start(options, files, fault).await?.run().await });
    // A question to DNS or a client that does not read holds up nothing.
    runtime.shutdown_background();
    ended
}

/// The runtime directory of a config.
pub fn directory_of(config: &Config) -> Directory {
    let mesh = config.mesh.trust_domain.as_ref().map_or("", |name| name.value.as_str());
    Directory::of(mesh, &config.workload.name, &instance_of(config))
}

fn instance_of(config: &Config) -> String {
    config.workload.instance.clone().unwrap_or_else(|| default_instance(config.file.as_ref()))
}

/// Ending.
struct Stopping {
    deadline: Instant,
    /// Kept until all is done: clients wait for that.
    waiting: Vec<oneshot::Sender<()>>,
}

/// What happened.
enum Happened {
    Signal(Signal),
    Plane(plane::Event),
    Refresh(oneshot::Sender<()>),
    Stop(Stop),
    Files,
    Names { changed: bool },
    Due,
}

struct Supervisor {
    options: Options,
    directory: Held,
    epoch: u64,
    state: state::Handle,
    signals: Signals,
    refreshes: mpsc::Receiver<oneshot::Sender<()>>,
    stops: mpsc::Receiver<Stop>,
    /// What the files said when they last made sense, and the last of it that was live.
    files: Files,
    proven: Option<Files>,
    watcher: Watcher,
    names: Names,
    /// Until then a configuration waits for the first answers of its names.
    names_deadline: Instant,
    listeners: Listeners,
    publisher: Publisher,
    runtime: wire::Runtime,
    memory: Option<Memory>,
    plane: Plane,
    backoff: Backoff,
    /// Admin pages, metrics and access log.
    shown: Shown,
    /// Who waits for the data plane's report.
    refreshing: Vec<oneshot::Sender<()>>,
    stopping: Option<Stopping>,
}

impl Supervisor {
    /// Takes the runtime directory, and adopts or starts a data plane.
    async fn start(options: Options, files: Files, fault: Option<source::Error>) -> Result<Self, Error> {
        let directory = match &options.runtime_directory {
            Some(path) => Directory::at(path.clone()),
            None => directory_of(&files.config),
        };
        let directory = directory.hold()?;
        directory.remember(&options.file)?;
        ringmesh_ring::socket::raise_descriptor_limit();
        let runtime = files.config.runtime.decide(files.config.role(), machine::look());
        setup::probe(machine::wish(runtime.driver))?;

        let signals = Signals::new()?;
        let state = state::Handle::default();
        let (stop, stops) = mpsc::channel(MAX_WAITING_REQUESTS);
        let (refresh, refreshes) = mpsc::channel(MAX_WAITING_REQUESTS);
        let control_socket = socket::listen(&directory.control_socket())?;
        let requests = Requests { stop, refresh };
        let shown = Shown::new(state.clone(), requests.clone());
        tokio::spawn(socket::serve(control_socket, state.clone(), requests));

        let mut names = Names::new(kept_answers(&directory));
        names.resolve(&files.hosts());
        let mut supervisor = Self {
            shown,
            epoch: directory.next_epoch()?,
            state,
            signals,
            stops,
            refreshes,
            watcher: Watcher::new(files.paths(&options.file)),
            proven: None,
            names,
            names_deadline: Instant::now() + NAMES_TIMEOUT,
            listeners: Listeners::default(),
            publisher: Publisher::new(),
            runtime,
            memory: None,
            plane: Plane::Absent { again: None },
            backoff: Backoff::default(),
            refreshing: Vec::new(),
            stopping: None,
            options,
            directory,
            files,
        };
        supervisor.show_start();
        if let Some(fault) = &fault {
            tracing::error!(target: "ringmesh::identity", "{fault}; it is shown to clients all the same");
            supervisor.show_fault(fault);
        }
        supervisor.shown.serve(&supervisor.files.config)?;
        supervisor.find_plane().await?;
        supervisor.show_all();
        Ok(supervisor)
    }

    /// Runs until the end.
    async fn run(mut self) -> Result<(), Error> {
        loop {
            let happened = self.next().await;
            if let Some(ended) = self.take(happened) {
                self.shown.finish();
                // Otherwise a data plane is there, ours or somebody else's.
                if !matches!(ended, Err(Error::Superseded | Error::Unreachable)) {
                    self.directory.remove();
                }
                return ended;
            }
        }
    }

    /// Waits for the next event.
    async fn next(&mut self) -> Happened {
        let due = self.due();
        let Self { signals, plane, stops, refreshes, watcher, names, .. } = self;
        tokio::select! {
            biased;
            signal = signals.next() => Happened::Signal(signal),
            event = plane.next() => Happened::Plane(event),
            Some(stop) = stops.recv() => Happened::Stop(stop),
            Some(waiting) = refreshes.recv() => Happened::Refresh(waiting),
            _ = watcher.changed() => Happened::Files,
            changed = names.changed() => Happened::Names { changed },
            () = sleep_until(due) => Happened::Due,
        }
    }

    /// When something is to be done although nothing happens.
    fn due(&self) -> Instant {
        let holding =
            self.names.is_waiting().then_some(self.names_deadline).filter(|_| self.publisher.open().is_none());
        let held = holding.filter(|deadline| *deadline > Instant::now());
        let stop = self.stopping.as_ref().map(|stopping| stopping.deadline);
        let all = [self.publisher.deadline(), held, stop, self.plane.due()];
        let far = Instant::now() + Duration::from_secs(3600);
        all.into_iter().flatten().fold(far, Instant::min)
    }

    /// Acts on an event. Some: the end has come.
    fn take(&mut self, happened: Happened) -> Option<Result<(), Error>> {
        match happened {
            Happened::Signal(signal) => return self.obey(signal),
            Happened::Plane(event) => return self.hear(event),
            Happened::Stop(Stop { timeout, answer, done }) => {
                let timeout = timeout.unwrap_or(self.files.config.runtime.drain_timeout);
                let _ = answer.send(timeout);
                return self.stop(timeout, Some(done));
            }
            Happened::Refresh(waiting) => self.refresh(waiting),
            Happened::Files => self.reload(),
            Happened::Names { changed } => self.take_names(changed),
            Happened::Due => return self.act_in_time(),
        }
        None
    }

    fn obey(&mut self, signal: Signal) -> Option<Result<(), Error>> {
        tracing::info!(target: "ringmesh", signal = signal.as_str(), "received");
        match (signal, &self.stopping) {
            (Signal::HangUp, _) => self.reload(),
            (Signal::Interrupt, Some(_)) => {
                self.plane.kill();
                return Some(Err(Error::Cut("asked twice to end")));
            }
            (_, Some(_)) => {}
            (_, None) => return self.stop(self.files.config.runtime.drain_timeout, None),
        }
        None
    }

    /// Somebody waits for a fresh report.
    fn refresh(&mut self, waiting: oneshot::Sender<()>) {
        match self.plane.link() {
            // A data plane that drains does nothing else.
            Some(link) if self.stopping.is_none() => {
                if self.refreshing.is_empty() {
                    link.send(&ToDataPlane::Report, Vec::new());
                }
                self.refreshing.push(waiting);
            }
            _ => {
                let _ = waiting.send(());
            }
        }
    }

    /// Its workers' versions are shown by what it answers.
    fn ask_for_report(&self) {
        if let Some(link) = self.plane.link() {
            link.send(&ToDataPlane::Report, Vec::new());
        }
    }

    /// Begins to end.
    fn stop(&mut self, timeout: Duration, done: Option<oneshot::Sender<()>>) -> Option<Result<(), Error>> {
        if let Some(stopping) = &mut self.stopping {
            stopping.waiting.extend(done);
            return None;
        }
        tracing::info!(target: "ringmesh", ?timeout, "ending: open requests are finished first");
        self.stopping = Some(Stopping { deadline: Instant::now() + timeout, waiting: done.into_iter().collect() });
        self.listeners.close();
        self.state.write(|state| state.dataplane.phase = Phase::Draining);
        match &self.plane {
            Plane::Present(present) if let Some(link) = &present.link => {
                let timeout = timeout - (timeout / 10).min(MAX_DRAIN_MARGIN);
                link.send(&ToDataPlane::Drain { timeout }, Vec::new());
                None
            }
            Plane::Present(present) => {
                present.process.kill();
                None
            }
            Plane::Absent { .. } => Some(Ok(())),
            Plane::Sought { process: Some(process), .. } => {
                process.kill();
                None
            }
            Plane::Sought { .. } => Some(Err(Error::Unreachable)),
        }
    }

    /// What is due now.
    fn act_in_time(&mut self) -> Option<Result<(), Error>> {
        let now = Instant::now();
        if self.stopping.as_ref().is_some_and(|stopping| stopping.deadline <= now) {
            self.plane.kill();
            return Some(Err(Error::Cut("the drain timeout is over")));
        }
        if let (Some(open), Some(deadline)) = (self.publisher.open(), self.publisher.deadline())
            && deadline <= now
        {
            let version = open.version;
            tracing::error!(target: "ringmesh", version, "the data plane has not confirmed this version yet");
            self.publisher.postpone(now);
            // Until it answers.
            self.state.write(|state| state.dataplane.phase = Phase::Unreachable);
            self.ask_for_report();
        }
        match &mut self.plane {
            Plane::Absent { again } if again.is_some_and(|again| again <= now) => self.restart_plane(),
            Plane::Present(present) if present.link_ended.is_some_and(|ended| ended + LAST_BREATH <= now) => {
                self.reach_again();
            }
            Plane::Sought { again, .. } if again.is_some_and(|again| again <= now) => self.seek(),
            _ => {}
        }
        self.advance();
        None
    }
}

/// The answers that an earlier control has kept.
fn kept_answers(directory: &Directory) -> Answers {
    let kept = std::fs::read(directory.answers()).ok();
    kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
}
