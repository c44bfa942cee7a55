//! Keeps the [`State`](crate::state::State) up to date, which status and the admin pages show.

use std::collections::HashMap;

use ringmesh_model::snapshot::{Destination, Mtls, Object, Service, Snapshot};
use ringmesh_model::wire::{EndpointReport, Health, Report};

use super::{Supervisor, instance_of, listeners, plane::Plane};
use crate::machine;
use crate::source::Error;
use crate::state::{self, Endpoint, EndpointState, Identity, NameAnswer, Phase, State};

impl Supervisor {
    pub(super) fn show_start(&self) {
        let config = &self.files.config;
        let file = std::path::absolute(&self.options.file).unwrap_or_else(|_| self.options.file.clone());
        self.state.write(|state| {
            state.mesh = config.mesh.trust_domain.as_ref().map(|name| name.value.clone()).unwrap_or_default();
            state.workload = config.workload.name.clone();
            state.instance = instance_of(config);
            state.runtime_directory = self.directory.path().display().to_string();
            state.control.pid = std::process::id();
            state.control.version = env!("CARGO_PKG_VERSION").to_owned();
            state.control.epoch = self.epoch;
            state.control.started_at = state::now();
            state.config.file = file.display().to_string();
            state.config.read_at = state::now();
        });
        self.show_identity(None);
    }

    /// Everything that follows from what is wanted.
    pub(super) fn show_all(&self) {
        self.show_config();
        self.show_listeners();
        self.show_services();
        self.show_names();
    }

    pub(super) fn show_config(&self) {
        let wanted = self.files.config.runtime.decide(self.files.config.role(), machine::look());
        let pending = (wanted != self.runtime).then(|| {
            "[runtime] driver, workers or pin have changed: they take effect at the next start (`ringmesh stop`, then \
             `ringmesh run`)"
                .to_owned()
        });
        let before = self.state.write(|state| {
            state.config.version = self.publisher.wanted().version;
            std::mem::replace(&mut state.config.pending, pending.clone())
        });
        if let (None, Some(pending)) = (before, pending) {
            tracing::warn!(target: "ringmesh::config", "{pending}");
        }
    }

    /// An edit was taken; `fault` is what it names and could not be read.
    pub(super) fn show_taken(&self, fault: Option<&Error>) {
        let (identity, other) = match fault {
            Some(Error::Identity { .. }) => (fault.map(ToString::to_string), Vec::new()),
            Some(fault) => (None, fault.lines()),
            None => (None, Vec::new()),
        };
        self.state.write(|state| {
            state.config.reloads += 1;
            state.config.read_at = state::now();
            state.config.problems = other;
        });
        self.show_identity(identity);
    }

    /// What the files had wrong at the start that did not keep it from serving.
    pub(super) fn show_fault(&self, fault: &Error) {
        self.state.write(|state| state.config.problems = fault.lines());
    }

    /// An edit was refused.
    pub(super) fn show_refused(&self, problems: Vec<String>) {
        self.state.write(|state| {
            state.config.refused_reloads += 1;
            state.config.problems = problems;
        });
    }

    fn show_identity(&self, problem: Option<String>) {
        let identity = self.files.credentials.identity.as_ref();
        let identity =
            identity.map(|identity| Identity { id: identity.id.to_string(), expires_at: identity.expires, problem });
        self.state.write(|state| state.identity = identity);
    }

    pub(super) fn show_live(&self, version: u64) {
        self.state.write(|state| {
            state.config.version = self.publisher.wanted().version;
            state.config.live_version = version;
            state.config.live_at = Some(state::now());
            state.dataplane.phase = Phase::Running;
        });
    }

    /// There is a new data plane process.
    pub(super) fn show_plane(&self, phase: Phase, adopted: bool) {
        let pid = self.plane.process().map(super::process::Process::pid);
        self.state.write(|state| {
            let dataplane = &mut state.dataplane;
            dataplane.phase = phase;
            dataplane.pid = pid;
            dataplane.adopted = adopted;
            dataplane.starts += u64::from(!adopted);
            dataplane.workers = self.runtime.workers;
            state.control.epoch = self.epoch;
        });
    }

    /// There is none any more.
    pub(super) fn show_lost(&self, how: &str) {
        self.state.write(|state| {
            let dataplane = &mut state.dataplane;
            dataplane.phase = Phase::Restarting;
            dataplane.pid = None;
            dataplane.report = None;
            dataplane.report_at = None;
            dataplane.last_exit = Some(how.to_owned());
        });
        self.show_services();
    }

    pub(super) fn show_listeners(&self) {
        let listeners = listeners::listeners(self.publisher.wanted())
            .map(|listener| {
                let bound = self.listeners.find(listener);
                state::Listener {
                    name: listener.name.clone(),
                    bind: bound.map_or(&listener.bind, |(at, _)| &at.address).to_string(),
                    protocol: listener.protocol.word().to_owned(),
                    mtls: mtls(listener.mtls).to_owned(),
                    tls_expires_at: listener.tls_expires(),
                    sockets: bound.map_or(0, |(_, sockets)| sockets.len()),
                    problem: None,
                }
            })
            .collect();
        self.state.write(|state| {
            state.listeners = listeners;
            show_deaf(state);
        });
    }

    pub(super) fn show_services(&self) {
        self.state.write(|state| {
            state.services = services(self.publisher.wanted(), state.dataplane.report.as_ref());
        });
    }

    pub(super) fn show_names(&self) {
        let names = self.names.answers().iter().map(|(name, answer)| NameAnswer {
            name: name.clone(),
            addresses: answer.addresses.iter().map(ToString::to_string).collect(),
            answered_at: answer.answered_at,
            error: answer.error.clone(),
        });
        let names = names.collect();
        self.state.write(|state| state.names = names);
    }

    /// The data plane has accounted for itself.
    pub(super) fn show_report(&self, report: Report) {
        self.state.write(|state| {
            let dataplane = &mut state.dataplane;
            if matches!(self.plane, Plane::Present(_)) && dataplane.phase == Phase::Unreachable {
                dataplane.phase = Phase::Running;
            }
            dataplane.driver = Some(report.driver.clone());
            dataplane.driver_reason = report.driver_reason.clone();
            dataplane.report_at = Some(state::now());
            dataplane.report = Some(report);
            show_deaf(state);
        });
        self.show_services();
    }
}

/// Says of which listeners the data plane accepts no connections.
fn show_deaf(state: &mut State) {
    let deaf = state.dataplane.report.as_ref().map_or(&[][..], |report| &report.deaf);
    for listener in &mut state.listeners {
        let is_deaf = deaf.contains(&listener.name);
        listener.problem = is_deaf.then(|| "not accepted on: the data plane is out of descriptors".to_owned());
    }
}

fn mtls(mtls: Mtls) -> &'static str {
    match mtls {
        Mtls::Off => "off",
        Mtls::Strict => "strict",
    }
}

/// The services of a snapshot, with what the data plane says about their endpoints.
fn services(snapshot: &Snapshot, report: Option<&Report>) -> Vec<state::Service> {
    let reports: HashMap<(&str, &str), &EndpointReport> = report
        .into_iter()
        .flat_map(|report| &report.endpoints)
        .map(|endpoint| ((endpoint.service.as_str(), endpoint.address.as_str()), endpoint))
        .collect();
    let endpoint = |service: &Service, endpoint: &ringmesh_model::snapshot::Endpoint| {
        let address = endpoint.address.to_string();
        let mut shown = Endpoint { zone: endpoint.zone.clone(), ..Endpoint::default() };
        if let Some(report) = reports.get(&(service.name.as_str(), address.as_str())) {
            shown.state = match (report.health, report.consecutive_failures) {
                (Health::Unhealthy, _) => EndpointState::Unhealthy,
                (_, 0) => EndpointState::Up,
                _ => EndpointState::Failing,
            };
            shown.in_flight = report.in_flight;
            shown.idle = report.idle;
            shown.consecutive_failures = report.consecutive_failures;
        }
        Endpoint { address, ..shown }
    };
    snapshot
        .objects
        .values()
        .filter_map(|object| match object {
            Object::Service(service) => Some(service),
            _ => None,
        })
        .map(|service| state::Service {
            name: service.name.clone(),
            peer: service.peer.as_ref().map(ToString::to_string),
            endpoints: match service.destination {
                Destination::Endpoints => service.endpoints.iter().map(|one| endpoint(service, one)).collect(),
                // Any there is.
                Destination::Original => {
                    vec![Endpoint { address: "original destination".to_owned(), ..Endpoint::default() }]
                }
            },
        })
        .collect()
}
