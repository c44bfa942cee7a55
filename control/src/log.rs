//! The log of both processes: lines on standard error, as text for people and as JSON for machines.

use std::io::{self, IsTerminal};

use tracing::level_filters::{LevelFilter, STATIC_MAX_LEVEL};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Format {
    /// Text on a terminal, JSON elsewhere.
    pub fn fitting() -> Self {
        if io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }

    /// As the command line writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Whether a stream may be coloured: on a terminal, unless the user does not want it (no-color.org).
pub fn may_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Changes the level of the running log.
#[derive(Clone)]
pub struct Handle(Option<reload::Handle<EnvFilter, Registry>>);

impl Handle {
    /// From now on logs from this level on ("warn", or a filter such as "info,ringmesh_control=debug"), unless the
    /// environment says otherwise.
    pub fn set(&self, level: &str) {
        if let Some(handle) = &self.0 {
            // It fails only if the log is gone.
            let _ = handle.reload(filter(level));
        }
    }
}

/// Begins to log. The environment variable RUST_LOG goes before `level`.
pub fn start(level: &str, format: Format) -> Handle {
    let (filter, handle) = reload::Layer::new(filter(level));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(io::stderr);
    let started = match format {
        Format::Text => registry.with(lines.with_ansi(may_colour(&io::stderr()))).try_init(),
        Format::Json => registry.with(lines.json().flatten_event(true).with_current_span(false)).try_init(),
    };
    // A second start in one process (a test) leaves the first as it is.
    Handle(started.is_ok().then_some(handle))
}

fn filter(level: &str) -> EnvFilter {
    match std::env::var("RUST_LOG") {
        Ok(wanted) if !wanted.is_empty() => EnvFilter::new(wanted),
        // Optimised builds have nothing at that level, and the filter would complain on standard error.
        _ if level == "trace" && STATIC_MAX_LEVEL < LevelFilter::TRACE => EnvFilter::new("debug"),
        _ => EnvFilter::new(level),
    }
}
