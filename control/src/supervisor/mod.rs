//! The control process: keeps a data plane running with the newest configuration that works.
//!
//! One task owns everything and takes one event after the other ([`Supervisor::next`] waits for it, [`Supervisor::take`]
//! acts on it without waiting), so that no two events meet half-way.

pub mod init;
pub mod listeners;
pub mod orphan;
pub mod socket;
mod adopt;
mod backoff;
mod plane;
mod process;
mod show;
mod shown;
mod signals;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use ringmesh_model::config::Config;
use ringmesh_model::snapshot::Snapshot;
use ringmesh_model::wire::{self, ToControl, ToDataPlane};
use ringmesh_ring::setup;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use self::adopt::{Adopted, Found};
use self::backoff::Backoff;
use self::listeners::Listeners;
use self::plane::{Memory, Plane, Present};
use self::process::Plan;
use self::shown::Shown;
use self::signals::{Signal, Signals};
use self::socket::{Requests, Stop};
use crate::directory::{self, Directory, Held, default_instance};
use crate::log::{self, Format};
use crate::publish::{Outcome, Publisher};
use crate::source::dns::{Answers, Names};
use crate::source::file::Watcher;
use crate::source::{self, Files};
use crate::state::{self, Phase};
use crate::{admin, link, machine, telemetry};

/// How long a configuration waits for the first answers of names that it brings: without them its services have no
/// endpoints. An edit takes effect "in about a second".
const NAMES_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a process may take to end after its link has ended, before the link counts as broken.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// How often a data plane that does not answer is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// What a drain is given less than was asked for, so that telling its end fits too: a tenth, up to this.
const MAX_DRAIN_MARGIN: Duration = Duration::from_millis(500);

/// How long an older data plane may keep the ports when it was told to drain.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

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
    let files = Files::of(config).map_err(|error| Error::Config(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async { Supervisor::start(options, files).await?.run().await });
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
    async fn start(options: Options, files: Files) -> Result<Self, Error> {
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
        supervisor.shown.serve(&supervisor.files.config)?;
        supervisor.find_plane().await?;
        supervisor.show_all();
        Ok(supervisor)
    }

    /// Adopts the data plane that runs, or starts one.
    async fn find_plane(&mut self) -> Result<(), Error> {
        match adopt::find(&self.directory, self.epoch).await {
            Ok(Found::Nobody) => self.begin()?,
            Ok(Found::Adopted(adopted)) => {
                self.adopt(*adopted);
                let snapshot = self.resolve();
                self.bind(&snapshot).map_err(Error::Listeners)?;
                self.want();
            }
            Ok(Found::OtherVersion(link, listeners)) => self.replace(link, listeners).await?,
            Err(error) => {
                tracing::error!(target: "ringmesh", "{error}");
                self.seek_later();
            }
        }
        Ok(())
    }

    /// Binds the ports and starts the first data plane.
    fn begin(&mut self) -> Result<(), Error> {
        let snapshot = self.resolve();
        self.bind(&snapshot).map_err(Error::Listeners)?;
        self.start_plane().map_err(Error::Start)?;
        self.want();
        Ok(())
    }

    /// Puts a data plane of this version in the place of one of another, which finishes what is open.
    async fn replace(&mut self, old: link::Link, found: Vec<(String, Vec<std::os::fd::OwnedFd>)>) -> Result<(), Error> {
        tracing::warn!(target: "ringmesh", "the data plane is of another version: it drains, and a new one takes its place");
        let timeout = self.files.config.runtime.drain_timeout;
        self.listeners.adopt(found);
        old.send(&ToDataPlane::Drain { timeout }, Vec::new());
        tokio::spawn(async move {
            let mut old = old;
            while let link::Event::Message(..) = old.receive().await {}
        });
        let end = Instant::now() + HANDOVER_TIMEOUT;
        loop {
            match self.begin() {
                // The old one has not closed its ports yet.
                Err(Error::Listeners(_)) if Instant::now() < end => tokio::time::sleep(Duration::from_millis(50)).await,
                done => return done,
            }
        }
    }

    /// Runs until the end.
    async fn run(mut self) -> Result<(), Error> {
        loop {
            let happened = self.next().await;
            if let Some(ended) = self.take(happened) {
                self.finish();
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
            self.state.write(|state| state.dataplane.phase = Phase::Unreachable);
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

    /// Binds what a snapshot names and is not bound yet.
    fn bind(&mut self, snapshot: &Snapshot) -> Result<(), Vec<listeners::Error>> {
        let dataplane = self.plane.process().map(process::Process::pid);
        self.listeners.bind(snapshot, self.runtime.workers, dataplane)
    }

    /// Closes the sockets that nobody needs any more.
    fn close_unused(&mut self) {
        let used: Vec<&Snapshot> = [self.publisher.live(), self.publisher.open(), Some(self.publisher.wanted())]
            .into_iter()
            .flatten()
            .map(|snapshot| &**snapshot)
            .collect();
        match &self.plane {
            // What it was given and does not use stays open on its side: with our copy, it can be used later.
            Plane::Present(present) => {
                self.listeners.keep_only(&used, |address| present.told.values().any(|told| told == address));
            }
            _ => self.listeners.keep_only(&used, |_| false),
        }
    }

    // ---- configuration ----

    /// What the files and DNS say together, as a snapshot. The files were seen to fit together when they were read, and
    /// addresses change nothing about that.
    fn resolve(&self) -> Snapshot {
        let answers = self.files.answers(&self.names);
        self.files.resolve(&answers).expect("files are kept only if they resolve")
    }

    /// Reads the files again.
    fn reload(&mut self) {
        match Files::read_after(&self.options.file, &self.files) {
            Ok((files, fault)) => self.take_files(files, fault),
            Err(error) => self.refuse(error.lines()),
        }
    }

    /// Takes over files that make sense, if their ports can be bound.
    fn take_files(&mut self, files: Files, fault: Option<source::Error>) {
        let hosts = files.hosts();
        let answers = files.answers(&self.names);
        let snapshot = files.resolve(&answers).expect("files that were read resolve");
        let file = &files.config.file;
        if let Err(error) = self.shown.serve(&files.config) {
            return self.refuse(vec![format!("{file}: {error}")]);
        }
        // Of a data plane that is sought we have no sockets: they are looked for once it is found.
        if !matches!(self.plane, Plane::Sought { .. })
            && let Err(errors) = self.bind(&snapshot)
        {
            let lines = errors.iter().map(|error| format!("{file}: {error}")).collect();
            // It fails only if somebody has taken the old port in this moment: then there are no pages.
            let _ = self.shown.serve(&self.files.config);
            return self.refuse(lines);
        }
        self.files = files;
        self.watcher.watch(self.files.paths(&self.options.file));
        self.names.resolve(&hosts);
        self.names_deadline = Instant::now() + NAMES_TIMEOUT;
        self.options.log.set(self.files.config.log.level.as_str());
        let identity_problem = fault.map(|fault| fault.to_string());
        if let Some(problem) = &identity_problem {
            tracing::error!(target: "ringmesh::identity", "{problem}; the SVID that was read before goes on");
        }
        self.show_taken(identity_problem);
        self.want();
    }

    /// An edit cannot be used; everything goes on as it is.
    fn refuse(&mut self, lines: Vec<String>) {
        for line in &lines {
            tracing::error!(target: "ringmesh::config", "{line}");
        }
        tracing::error!(target: "ringmesh::config", problems = lines.len(), "the edit is refused; the last good configuration goes on");
        self.show_refused(lines);
    }

    fn take_names(&mut self, changed: bool) {
        self.show_names();
        if changed {
            let kept = serde_json::to_vec(self.names.answers()).expect("answers are plain data");
            if let Err(error) = self.directory.replace(&self.directory.answers(), &kept) {
                tracing::warn!(target: "ringmesh::dns", "answers cannot be kept for the next control: {error}");
            }
            self.want();
        } else {
            self.advance();
        }
    }

    /// Wants what the files and DNS say now.
    fn want(&mut self) {
        let snapshot = self.resolve();
        if self.publisher.want(snapshot) {
            self.show_config();
            self.show_listeners();
            self.show_services();
        }
        self.advance();
    }

    /// Sends what can be sent now.
    fn advance(&mut self) {
        if self.stopping.is_some() || (self.names.is_waiting() && Instant::now() < self.names_deadline) {
            return;
        }
        let Plane::Present(present) = &mut self.plane else { return };
        let Some(link) = &present.link else { return };
        let Some((message, snapshot)) = self.publisher.next(Instant::now()) else { return };
        for (counts, sockets) in plane::untold(&mut present.told, &self.listeners, &snapshot) {
            link.send(&ToDataPlane::Listeners { counts }, sockets);
        }
        link.send(&message, Vec::new());
    }

    // ---- the data plane ----

    fn hear(&mut self, event: plane::Event) -> Option<Result<(), Error>> {
        match event {
            plane::Event::Message(ToControl::Superseded) => return Some(Err(Error::Superseded)),
            plane::Event::Message(message) => self.listen(message),
            plane::Event::LinkEnded(error) => {
                tracing::debug!(target: "ringmesh", "{error}");
            }
            plane::Event::Ended(how) => return self.lose(&how),
            plane::Event::Found(found) => self.take_found(found),
        }
        None
    }

    fn listen(&mut self, message: ToControl) {
        match message {
            ToControl::Started { driver, reason } => {
                self.attach_telemetry();
                self.state.write(|state| {
                    state.dataplane.driver = Some(driver);
                    state.dataplane.driver_reason = reason;
                });
            }
            ToControl::Live { version } => {
                let outcome = self.publisher.confirmed(version);
                self.take_outcome(&outcome);
            }
            ToControl::Refused { version, reason } => {
                let outcome = self.publisher.refused(version);
                if outcome == Outcome::Nothing {
                    tracing::error!(target: "ringmesh", version, reason, "the data plane refuses");
                } else {
                    self.take_back(vec![format!("the data plane refuses version {version}: {reason}")]);
                }
            }
            ToControl::Report(report) => {
                self.show_report(report);
                for waiting in self.refreshing.drain(..) {
                    let _ = waiting.send(());
                }
            }
            ToControl::Drained { cut: 0 } => tracing::info!(target: "ringmesh", "drained: nothing was cut"),
            ToControl::Drained { cut } => {
                tracing::warn!(target: "ringmesh", cut, "drained; requests that were still open were cut");
            }
            ToControl::Welcome { .. } | ToControl::Superseded => {}
        }
    }

    fn take_outcome(&mut self, outcome: &Outcome) {
        let (Outcome::Live(version) | Outcome::Overtaken(version)) = *outcome else { return };
        let Some(live) = self.publisher.live().cloned() else { return };
        if matches!(outcome, Outcome::Live(_)) {
            self.proven = Some(self.files.clone());
        }
        tracing::info!(target: "ringmesh::config", version, "live");
        if let Plane::Present(present) = &mut self.plane {
            present.told.retain(|name, _| listeners::listeners(&live).any(|listener| listener.name == *name));
            if let Some(link) = &present.link {
                link.send(&ToDataPlane::Report, Vec::new());
            }
        }
        self.close_unused();
        self.shown.live(&live, &self.files.config);
        self.show_live(version);
        self.show_listeners();
        self.advance();
    }

    /// A version was given up: the files that made it count as a refused edit.
    fn take_back(&mut self, lines: Vec<String>) {
        self.refuse(lines);
        if let Some(proven) = self.proven.clone() {
            self.files = proven;
            self.names.resolve(&self.files.hosts());
            self.watcher.watch(self.files.paths(&self.options.file));
        }
        if let Plane::Present(present) = &mut self.plane {
            // It has dropped the sockets that came with what it refused.
            let live = self.publisher.live().cloned().unwrap_or_default();
            present.told = plane::still_told(&present.told, &self.listeners, &live);
        }
        self.close_unused();
        self.show_all();
    }

    /// The data plane is gone.
    fn lose(&mut self, how: &str) -> Option<Result<(), Error>> {
        let (since, pid) = match &self.plane {
            Plane::Present(present) => (present.since, Some(present.process.pid())),
            other => (Instant::now(), other.process().map(process::Process::pid)),
        };
        for waiting in self.refreshing.drain(..) {
            let _ = waiting.send(());
        }
        self.show_lost(how);
        if self.stopping.is_some() {
            return Some(Ok(()));
        }
        let pause = self.backoff.pause(since.elapsed());
        tracing::error!(target: "ringmesh", pid, how, restart_in = ?pause, "the data plane is gone");
        self.plane = Plane::Absent { again: Some(Instant::now() + pause) };
        if let Outcome::TakenBack(version) = self.publisher.lost() {
            self.take_back(vec![format!("no data plane survives version {version}; the last one {how}")]);
        }
        None
    }

    fn restart_plane(&mut self) {
        let wanted = self.files.config.runtime.decide(self.files.config.role(), machine::look());
        if wanted.workers == self.runtime.workers {
            self.runtime = wanted;
        }
        if let Err(error) = self.start_plane() {
            let pause = self.backoff.pause(Duration::ZERO);
            tracing::error!(target: "ringmesh", "the data plane cannot be started: {error}");
            self.plane = Plane::Absent { again: Some(Instant::now() + pause.max(Duration::from_millis(100))) };
        }
    }

    /// Starts a data plane on our sockets and memory. The configuration follows by [`Self::advance`].
    fn start_plane(&mut self) -> io::Result<()> {
        let memory = match &self.memory {
            Some(memory) => memory,
            None => self.memory.insert(Memory::create(self.runtime.workers)?),
        };
        let adoption = plane::listen(&self.directory.data_socket())?;
        let level = self.files.config.log.level.as_str();
        let of = self.directory.path().display().to_string();
        let (process, stream) = process::Process::start(&Plan { level, format: self.options.format, of: &of })?;
        if let Err(error) = self.directory.replace(&self.directory.data_note(), process.note().as_bytes()) {
            tracing::warn!(target: "ringmesh", "{error}");
        }
        let link = link::Link::new(stream)?;
        link.send(&ToDataPlane::Hello { wire: wire::WIRE_VERSION, epoch: self.epoch }, Vec::new());
        link.send(&ToDataPlane::Start { runtime: self.runtime.clone() }, memory.descriptors(adoption));
        tracing::info!(target: "ringmesh", pid = process.pid(), workers = self.runtime.workers, "data plane started");
        self.publisher.forget();
        self.plane = Plane::Present(Box::new(Present::new(process, link)));
        self.show_plane(Phase::Starting, false);
        Ok(())
    }

    /// Makes a found data plane ours.
    fn adopt(&mut self, adopted: Adopted) {
        let Adopted { link, process, runtime, memory, listeners, version } = adopted;
        tracing::info!(target: "ringmesh", pid = process.pid(), version, epoch = self.epoch, "data plane adopted");
        self.runtime = runtime;
        let mut present = Present::new(process, link);
        present.told = plane::told(&listeners);
        if self.memory.is_none() {
            self.listeners.adopt(listeners);
            self.memory = Some(Memory::from(memory));
        }
        self.publisher.adopted(version);
        self.plane = Plane::Present(Box::new(present));
        self.attach_telemetry();
        self.show_plane(Phase::Running, true);
    }

    /// The link has ended, but the process goes on: reach it through its socket.
    fn reach_again(&mut self) {
        let Plane::Present(present) = std::mem::replace(&mut self.plane, Plane::Absent { again: None }) else { return };
        tracing::error!(target: "ringmesh", pid = present.process.pid(), "the link to the data plane is broken");
        self.publisher.forget();
        self.plane = Plane::Sought { process: Some(present.process), attempt: None, again: None };
        self.seek();
    }

    fn seek_later(&mut self) {
        let process = match std::mem::replace(&mut self.plane, Plane::Absent { again: None }) {
            Plane::Sought { process, .. } => process,
            Plane::Present(present) => Some(present.process),
            Plane::Absent { .. } => None,
        };
        let process = process.or_else(|| process::Process::noted(&self.directory.data_note()));
        self.plane = Plane::Sought { process, attempt: None, again: Some(Instant::now() + RETRY_INTERVAL) };
        self.state.write(|state| state.dataplane.phase = Phase::Unreachable);
    }

    fn seek(&mut self) {
        let Plane::Sought { attempt, again, .. } = &mut self.plane else { return };
        match self.directory.next_epoch() {
            Ok(epoch) => self.epoch = epoch,
            Err(error) => tracing::warn!(target: "ringmesh", "{error}"),
        }
        let (directory, epoch) = (Directory::clone(&self.directory), self.epoch);
        *again = None;
        *attempt = Some(tokio::spawn(async move { adopt::find(&directory, epoch).await }));
        self.state.write(|state| state.dataplane.phase = Phase::Unreachable);
    }

    fn take_found(&mut self, found: Result<Found, adopt::Error>) {
        match found {
            Ok(Found::Adopted(adopted)) => {
                self.adopt(*adopted);
                self.reload();
            }
            Ok(Found::Nobody) => {
                // Its process ends any moment, or has never been ours.
                if let Plane::Sought { process: Some(process), .. } = &self.plane {
                    process.kill();
                }
                let again = Some(Instant::now() + LAST_BREATH);
                self.plane = Plane::Absent { again };
                self.reload();
            }
            Ok(Found::OtherVersion(..)) => self.seek_later(),
            Err(error) => {
                tracing::error!(target: "ringmesh", "{error}");
                self.seek_later();
            }
        }
    }

    /// Lets others read what the data plane counts and tells.
    fn attach_telemetry(&mut self) {
        if let Some(memory) = &mut self.memory {
            self.shown.attach(memory);
        }
    }

    /// The last things.
    fn finish(&mut self) {
        self.shown.finish();
        if !matches!(self.plane, Plane::Sought { .. }) {
            self.directory.remove_sockets();
        }
    }
}

/// The answers that an earlier control has kept.
fn kept_answers(directory: &Directory) -> Answers {
    let kept = std::fs::read(directory.answers()).ok();
    kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or_default()
}
