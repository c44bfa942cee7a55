//! What control knows about itself, its config and its data plane: what `ringmesh status` prints and the admin pages show.
//!
//! One thread writes it, everything else reads it. Times are seconds since the Unix epoch, so that a reader computes ages
//! when it shows them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use ringmesh_model::wire::Report;
use serde::{Deserialize, Serialize};

/// Everything that `ringmesh status --json` prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// The mesh's trust domain; empty if it has none.
    pub mesh: String,
    /// The workload's name.
    pub workload: String,
    /// Which of the workload's proxies on this host.
    pub instance: String,
    /// The runtime directory.
    pub runtime_directory: String,
    /// Where the admin pages are, if anywhere.
    pub admin: Option<String>,
    /// Why they are nowhere, if the config wants them.
    pub admin_problem: Option<String>,
    /// This process.
    pub control: Control,
    /// The data plane process.
    pub dataplane: Dataplane,
    /// The configuration.
    pub config: Config,
    /// Ports that are bound.
    pub listeners: Vec<Listener>,
    /// Services with their endpoints.
    pub services: Vec<Service>,
    /// Endpoint names.
    pub names: Vec<NameAnswer>,
    /// The SVID in use, if the workload has one.
    pub identity: Option<Identity>,
}

/// The control process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Control {
    /// Its process id.
    pub pid: u32,
    /// Version of Ringmesh.
    pub version: String,
    /// Counts the controls of this instance.
    pub epoch: u64,
    /// When it started.
    pub started_at: u64,
}

/// What the data plane is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It was started, or is being adopted, and has no live configuration that we know of.
    #[default]
    Starting,
    /// It serves.
    Running,
    /// It died and will be started again.
    Restarting,
    /// One is there, but it does not answer. It goes on with what it has.
    Unreachable,
    /// It finishes what is open and ends.
    Draining,
}

impl Phase {
    /// As status and log write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Unreachable => "unreachable",
            Self::Draining => "draining",
        }
    }
}

/// The data plane process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dataplane {
    /// What it is about.
    pub phase: Phase,
    /// Its process id, while there is one.
    pub pid: Option<u32>,
    /// Whether it was found running rather than started by this control.
    pub adopted: bool,
    /// How often this control has started one.
    pub starts: u64,
    /// How the last one ended, if one did.
    pub last_exit: Option<String>,
    /// The driver in use.
    pub driver: Option<String>,
    /// Why not the better one.
    pub driver_reason: Option<String>,
    /// How many workers it has.
    pub workers: u16,
    /// Its last account of itself.
    pub report: Option<Report>,
    /// When that came.
    pub report_at: Option<u64>,
}

/// The configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Config {
    /// The file.
    pub file: String,
    /// The version that is wanted.
    pub version: u64,
    /// The version that all workers use; 0: none.
    pub live_version: u64,
    /// When that became so.
    pub live_at: Option<u64>,
    /// When the file was last read without problems.
    pub read_at: u64,
    /// How often it was read anew and taken.
    pub reloads: u64,
    /// How often it was read anew and refused.
    pub refused_reloads: u64,
    /// What is wrong with the file as it is now, or with what it names; empty if the file is in use.
    pub problems: Vec<String>,
    /// What is in the file but takes effect only when the data plane is next started.
    pub pending: Option<String>,
}

/// A port that is bound.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Its name.
    pub name: String,
    /// Where it is bound.
    pub bind: String,
    /// What is spoken there.
    pub protocol: String,
    /// Whether peers must prove who they are.
    pub mtls: String,
    /// When the first of the certificates ends that it shows to clients which need not prove who they are, in seconds since
    /// the Unix epoch. None: it shows none.
    #[serde(default)]
    pub tls_expires_at: Option<u64>,
    /// How many sockets share the port.
    pub sockets: usize,
    /// Why nobody accepts connections on them, if so.
    #[serde(default)]
    pub problem: Option<String>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Its name.
    pub name: String,
    /// The identity that its endpoints must prove, if any.
    pub peer: Option<String>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Whether an endpoint answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointState {
    /// The data plane has not told yet.
    #[default]
    Unknown,
    /// The last connect did not fail.
    Up,
    /// The last connects failed.
    Failing,
    /// Probes say that it does not serve.
    Unhealthy,
}

impl EndpointState {
    /// As status writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Failing => "failing",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// One endpoint of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its address.
    pub address: String,
    /// The zone it is in, if known.
    pub zone: Option<String>,
    /// Whether it answers.
    pub state: EndpointState,
    /// Requests in flight.
    pub in_flight: u64,
    /// Unused connections kept.
    pub idle: u64,
    /// Connects that failed in a row, at present.
    pub consecutive_failures: u64,
}

/// An endpoint's name and what it resolves to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameAnswer {
    /// The name.
    pub name: String,
    /// Its addresses; empty if it never resolved.
    pub addresses: Vec<String>,
    /// When that answer came.
    pub answered_at: Option<u64>,
    /// Why the last question was not answered; the addresses of the last answer go on.
    pub error: Option<String>,
}

/// The SVID in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Whom it names.
    pub id: String,
    /// When the certificate ends.
    pub expires_at: u64,
    /// Why the files as they are now are not used; those read before go on.
    pub problem: Option<String>,
}

impl State {
    /// On how many cores the wanted version is live, and of how many.
    pub fn live_cores(&self) -> (usize, usize) {
        let Some(report) = &self.dataplane.report else { return (0, usize::from(self.dataplane.workers)) };
        let live = report.workers.iter().filter(|worker| worker.version == self.config.version).count();
        (live, report.workers.len())
    }

    /// Whether traffic is served by a configuration.
    pub fn is_ready(&self) -> bool {
        self.dataplane.phase == Phase::Running && self.config.live_version > 0
    }
}

/// The state, shared by those who read it. Whoever reads copies what it needs; nobody holds it over a wait.
#[derive(Clone, Default)]
pub struct Handle(Arc<Mutex<State>>);

impl Handle {
    /// Looks at the state.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the state.
    pub fn write<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy.
    pub fn get(&self) -> State {
        self.read(State::clone)
    }
}

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use ringmesh_model::wire::WorkerReport;

    use super::*;

    #[test]
    fn a_core_counts_as_live_only_with_the_wanted_version() {
        let mut state = State::default();
        state.dataplane.workers = 2;
        assert_eq!(state.live_cores(), (0, 2), "nothing is known before a report");
        state.config.version = 7;
        let worker = |version| WorkerReport { version, ..WorkerReport::default() };
        state.dataplane.report = Some(Report { workers: vec![worker(7), worker(6)], ..Report::default() });
        assert_eq!(state.live_cores(), (1, 2));
    }
}
