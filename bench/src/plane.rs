//! A data plane inside this process, over real sockets, spoken to as control does.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use ringmesh_dataplane::telemetry::layout;
use ringmesh_dataplane::{Running, Start, filter, start};
use ringmesh_model::snapshot::{AccessLog, Hop, Key, Listener, Object};
use ringmesh_model::wire::{Driver, Pin, Runtime, ToControl, ToDataPlane, WIRE_VERSION};
use ringmesh_ring::shared_memory::SharedMemory;
use ringmesh_ring::socket::bind_group;

use crate::snapshot::{self, LISTENER};

const WORKERS: u16 = 1;

/// A data plane with one worker.
pub struct Plane {
    running: Running,
    address: SocketAddr,
    driver: String,
    _folder: tempfile::TempDir,
}

impl Plane {
    /// Starts one in front of a service.
    ///
    /// # Errors
    /// If the driver is denied, or the system refuses something else.
    pub fn start(
        driver: Driver,
        service: SocketAddr,
        access_log: AccessLog,
        hop: Hop,
        filters: Vec<filter::Make>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let running = start(Start { filters })?;
        let telemetry = SharedMemory::create("telemetry", layout::memory_bytes(WORKERS))?;
        let events = SharedMemory::create("events", layout::event_memory_bytes(WORKERS))?;
        let nudge: OwnedFd = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let adoption: OwnedFd = UnixListener::bind(folder.path().join("data.sock"))?.into();
        let sockets = bind_group(SocketAddr::from(([127, 0, 0, 1], 0)), usize::from(WORKERS))?;
        let address = TcpListener::from(sockets[0].try_clone()?).local_addr()?;

        let mut plane = Self { running, address, driver: String::new(), _folder: folder };
        plane.ask(&ToDataPlane::Hello { wire: WIRE_VERSION, epoch: 1 }, &[])?;
        let runtime = Runtime { driver, workers: WORKERS, pin: Pin::None };
        let passed = [telemetry.fd(), events.fd(), nudge.as_fd(), adoption.as_fd()];
        if let ToControl::Started { driver, .. } = plane.ask(&ToDataPlane::Start { runtime }, &passed)? {
            plane.driver = driver;
        }
        let passed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        plane.running.link.send(&ToDataPlane::Listeners { counts: vec![(LISTENER.into(), WORKERS)] }, &passed)?;
        let mut snapshot = snapshot::snapshot(address, service, 1, access_log);
        if let Some(Object::Listener(listener)) = snapshot.objects.get_mut(&Key::Listener(LISTENER.into())) {
            *listener = Arc::new(Listener { hop, ..listener.as_ref().clone() });
        }
        match plane.ask(&ToDataPlane::Snapshot(snapshot), &[])? {
            ToControl::Live { .. } => Ok(plane),
            answer => bail!("the data plane does not go live: {answer:?}"),
        }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it runs on.
    pub fn driver(&self) -> &str {
        &self.driver
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end as it should.
    pub fn end(self) -> anyhow::Result<()> {
        let answer = self.ask(&ToDataPlane::Drain { timeout: Duration::from_secs(1) }, &[])?;
        if !matches!(answer, ToControl::Drained { .. }) {
            bail!("the data plane does not drain: {answer:?}");
        }
        match self.running.thread.join() {
            Ok(ended) => Ok(ended?),
            Err(_) => bail!("the data plane has panicked"),
        }
    }

    fn ask(&self, message: &ToDataPlane, passed: &[BorrowedFd<'_>]) -> anyhow::Result<ToControl> {
        self.running.link.send(message, passed)?;
        Ok(self.running.link.receive().context("the data plane ended; its driver may be denied")?.0)
    }
}
