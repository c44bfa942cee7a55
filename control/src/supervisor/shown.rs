//! What control lets others read: metrics, the access log and the admin pages.

use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::config::Config;
use ringmesh_model::snapshot::Snapshot;
use tokio::sync::watch;

use super::plane::Memory;
use super::socket::Requests;
use crate::admin::{self, Inputs, Port};
use crate::state;
use crate::telemetry::writer::Sink;
use crate::telemetry::{self, Telemetry};

/// How long the last lines of the access log may take to be written.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Everything that others read.
pub(super) struct Shown {
    state: state::Handle,
    telemetry: Telemetry,
    live: watch::Sender<Option<Arc<Snapshot>>>,
    admin: Port,
}

impl Shown {
    /// Nothing is attached and no port is served yet.
    pub(super) fn new(state: state::Handle, requests: Requests) -> Self {
        let telemetry = Telemetry::default();
        let (live, watched) = watch::channel(None);
        let refresh = Arc::new(move || {
            let requests = requests.clone();
            Box::pin(async move { requests.refresh().await }) as _
        });
        let inputs = Inputs { state: state.clone(), live: watched, telemetry: telemetry.clone(), refresh };
        Self { state, telemetry, live, admin: Port::new(inputs) }
    }

    /// Serves the admin pages where `config` wants them. The default port may be busy (a second proxy on this host): then
    /// there are none, and the log says so.
    ///
    /// # Errors
    /// If another port cannot be had; then the pages stay where they were.
    pub(super) fn serve(&mut self, config: &Config) -> Result<(), admin::Error> {
        let wanted = config.admin.bind.as_deref();
        let mut problem = None;
        match self.admin.serve_at(wanted) {
            Err(error) if !config.admin.named => {
                let text = format!("{error}; there are no admin pages: give [admin] bind another address, or \"off\"");
                tracing::warn!(target: "ringmesh::admin", "{text}");
                problem = Some(text);
                self.admin.serve_at(None)?;
            }
            served => served?,
        }
        let address = self.admin.address().map(ToString::to_string);
        self.state.write(|state| {
            state.admin = address;
            state.admin_problem = problem;
        });
        Ok(())
    }

    /// This is live.
    pub(super) fn live(&self, snapshot: &Arc<Snapshot>, config: &Config) {
        self.live.send_replace(Some(snapshot.clone()));
        self.telemetry.events.set_log(config.log.access);
    }

    /// Reads what the data plane counts and tells from this memory, which it has laid out.
    pub(super) fn attach(&self, memory: &mut Memory) {
        if std::mem::replace(&mut memory.attached, true) {
            return;
        }
        let copies = [&memory.telemetry, &memory.events, &memory.notification].map(|descriptor| descriptor.try_clone());
        let attached = match copies {
            [Ok(counts), Ok(events), Ok(notification)] => {
                self.telemetry.attach(counts, events, notification, Sink::Stdout)
            }
            [counts, events, notification] => {
                counts.and(events).and(notification).map(drop).map_err(telemetry::Error::Writer)
            }
        };
        if let Err(error) = attached {
            tracing::error!(target: "ringmesh::telemetry", "there are no metrics and no access log: {error}");
        }
    }

    /// Writes the last lines of the access log.
    pub(super) fn finish(&self) {
        self.telemetry.finish(LAST_LINES);
    }
}
