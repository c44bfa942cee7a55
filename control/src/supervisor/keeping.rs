//! Keeping a data plane: adopting or starting it, hearing it, and starting it again.

use std::io;
use std::time::Duration;

use ringmesh_model::wire::{self, ToControl, ToDataPlane};
use tokio::time::Instant;

use super::adopt::{self, Adopted, Found, Sockets};
use super::plane::{self, Memory, Plane, Present};
use super::process::{Plan, Process};
use super::{Error, LAST_BREATH, Supervisor};
use crate::directory::Directory;
use crate::link::{self, Link};
use crate::machine;
use crate::publish::Outcome;
use crate::state::Phase;

/// How often a data plane that does not answer is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);

/// How long an older data plane may keep the ports when it was told to drain.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(5);

impl Supervisor {
    /// Adopts the data plane that runs, or starts one.
    pub(super) async fn find_plane(&mut self) -> Result<(), Error> {
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
    async fn replace(&mut self, old: Link, found: Sockets) -> Result<(), Error> {
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

    pub(super) fn restart_plane(&mut self) {
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
        let (process, stream) = Process::start(&Plan { level, format: self.options.format, of: &of })?;
        if let Err(error) = self.directory.replace(&self.directory.data_note(), process.note().as_bytes()) {
            tracing::warn!(target: "ringmesh", "{error}");
        }
        let link = Link::new(stream)?;
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

    pub(super) fn hear(&mut self, event: plane::Event) -> Option<Result<(), Error>> {
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
            ToControl::Partly { version, workers } => {
                tracing::error!(
                    target: "ringmesh", version, ?workers,
                    "not all workers use the newest version yet; later edits wait, and a worker that stays so needs a restart: \
                     `ringmesh stop`, then `ringmesh run`"
                );
                self.ask_for_report();
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
            ToControl::Welcome { .. } | ToControl::Listeners { .. } | ToControl::Superseded => {}
        }
    }

    /// Lets others read what the data plane counts and tells.
    fn attach_telemetry(&mut self) {
        if let Some(memory) = &mut self.memory {
            self.shown.attach(memory);
        }
    }

    /// The data plane is gone.
    fn lose(&mut self, how: &str) -> Option<Result<(), Error>> {
        let (since, pid) = match &self.plane {
            Plane::Present(present) => (present.since, Some(present.process.pid())),
            other => (Instant::now(), other.process().map(Process::pid)),
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

    /// The link has ended, but the process goes on: reach it through its socket.
    pub(super) fn reach_again(&mut self) {
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
        let process = process.or_else(|| Process::noted(&self.directory.data_note()));
        self.plane = Plane::Sought { process, attempt: None, again: Some(Instant::now() + RETRY_INTERVAL) };
        self.state.write(|state| state.dataplane.phase = Phase::Unreachable);
    }

    pub(super) fn seek(&mut self) {
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
}
