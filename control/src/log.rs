//! The log of both processes: lines on standard error, as text for people and as JSON for machines.

use std::io::{self, IsTerminal};

use tracing::level_filters::STATIC_MAX_LEVEL;
use tracing_subscriber::filter::LevelFilter;
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
        if let Some(handle) = self.0.as_ref().filter(|_| from_environment().is_none()) {
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

fn from_environment() -> Option<String> {
    std::env::var("RUST_LOG").ok().filter(|wanted| !wanted.is_empty())
}

fn filter(level: &str) -> EnvFilter {
    match from_environment() {
        Some(wanted) => EnvFilter::new(without_libraries(&wanted)),
        // Optimised builds have nothing at that level, and the filter would complain on standard error.
        _ if level == "trace" && STATIC_MAX_LEVEL < LevelFilter::TRACE => EnvFilter::new(without_libraries("debug")),
        _ => EnvFilter::new(without_libraries(level)),
    }
}

/// Libraries that log by themselves, several lines a request some of them.
const LIBRARIES: [&str; 6] = ["h2", "hickory_proto", "hickory_resolver", "hyper", "hyper_util", "rustls"];

/// The same filter, but of libraries only what is wrong, unless it names them.
fn without_libraries(wanted: &str) -> String {
    let directives = || wanted.split(',');
    let is_chatty = |directive: &str| directive.parse::<LevelFilter>().is_ok_and(|level| level > LevelFilter::WARN);
    if !directives().any(is_chatty) {
        return wanted.to_owned();
    }
    let named = |library: &str| {
        let target = |directive: &str| directive.split(['=', '[', ':']).next() == Some(library);
        directives().any(target)
    };
    let quiet = LIBRARIES.into_iter().filter(|library| !named(library)).map(|library| format!(",{library}=warn"));
    wanted.to_owned() + &quiet.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_heard_only_when_something_is_wrong_or_when_they_are_named() {
        let all = ",h2=warn,hickory_proto=warn,hickory_resolver=warn,hyper=warn,hyper_util=warn,rustls=warn";
        let but_h2 = &all[",h2=warn".len()..];
        for (wanted, more) in [
            ("info", all),
            ("debug", all),
            ("TRACE", all),
            ("warn,proxy=debug,debug", all),
            ("warn", ""),
            ("error", ""),
            ("off", ""),
            // Nothing of a library passes these anyhow.
            ("ringmesh=debug,upstream=trace", ""),
            ("debug,h2=trace", but_h2),
            ("debug,h2", but_h2),
            ("debug,h2::proto=debug", but_h2),
            ("debug,h2[span]=debug", but_h2),
            ("debug,h2o=debug", all),
        ] {
            let quiet = without_libraries(wanted);
            assert_eq!(quiet, format!("{wanted}{more}"));
            EnvFilter::try_new(&quiet).unwrap_or_else(|error| panic!("{quiet}: {error}"));
        }
    }
}
