//! What is wanted: files and names become a snapshot, which is told to the data plane, and closed ports follow.

use std::time::Duration;

use ringmesh_model::snapshot::Snapshot;
use ringmesh_model::wire::ToDataPlane;
use ringmesh_ring::reclaim;
use tokio::time::Instant;

use super::plane::{self, Plane};
use super::{Supervisor, listeners, process};
use crate::publish::Outcome;
use crate::source::{self, Files};

/// How long a configuration waits for the first answers of names that it brings: without them its services have no
/// endpoints. An edit takes effect "in about a second".
pub(super) const NAMES_TIMEOUT: Duration = Duration::from_secs(1);

impl Supervisor {
    /// What the files and DNS say together, as a snapshot. The files were seen to fit together when they were read, and
    /// addresses change nothing about that.
    pub(super) fn resolve(&self) -> Snapshot {
        let answers = self.files.answers(&self.names);
        self.files.resolve(&answers).expect("files are kept only if they resolve")
    }

    /// Binds what a snapshot names and is not bound yet.
    pub(super) fn bind(&mut self, snapshot: &Snapshot) -> Result<(), Vec<listeners::Error>> {
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

    /// Reads the files again.
    pub(super) fn reload(&mut self) {
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
        if let Some(fault) = &fault {
            tracing::error!(target: "ringmesh::identity", "{fault}; what was read before goes on");
        }
        self.show_taken(fault.as_ref());
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

    pub(super) fn take_names(&mut self, changed: bool) {
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
    pub(super) fn want(&mut self) {
        let snapshot = self.resolve();
        if self.publisher.want(snapshot) {
            self.show_listeners();
            self.show_services();
        }
        self.show_config();
        self.advance();
    }

    /// Sends what can be sent now.
    pub(super) fn advance(&mut self) {
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

    pub(super) fn take_outcome(&mut self, outcome: &Outcome) {
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
        // The text and what it was parsed into, many times as large as what it says, is garbage now.
        reclaim::release();
    }

    /// A version was given up: the files that made it count as a refused edit.
    pub(super) fn take_back(&mut self, lines: Vec<String>) {
        self.refuse(lines);
        if let Some(proven) = self.proven.clone() {
            self.files = proven;
            self.options.log.set(self.files.config.log.level.as_str());
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
}
