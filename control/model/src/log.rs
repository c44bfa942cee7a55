//! `[log]`: what is written about the proxy itself and about each request.

use serde::{Deserialize, Serialize};

use crate::reader::{Keys, Section, Word};
use crate::snapshot::AccessLog;

/// Keys of `[log]`.
pub const KEYS: Keys = Keys { path: "log", header: "[log]", names: &["level", "access"] };

/// From which importance on messages are logged: what an operator should know, without a line for each event.
pub const DEFAULT_LEVEL: Level = Level::Info;

/// Whether each request leaves a line. Not by default: the metrics count every request, and lines of a busy sidecar cost
/// more to keep than its traffic is worth.
pub const DEFAULT_ACCESS: AccessLog = AccessLog::Off;

/// `[log]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// From which importance on messages are logged.
    pub level: Level,
    /// Whether each request leaves a line in the access log.
    pub access: AccessLog,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: DEFAULT_LEVEL, access: DEFAULT_ACCESS }
    }
}

/// Importance of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Level {
    /// Nothing.
    Off,
    /// Something failed that somebody must mend.
    Error,
    /// Something is wrong that may mend itself.
    Warn,
    /// What changed.
    Info,
    /// What led to it.
    Debug,
    /// What the libraries do, in builds that are not optimised; in others no more than `debug`.
    Trace,
}

impl Level {
    /// As the file writes it.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, level)| *level == self).map_or("info", |(word, _)| word)
    }
}

impl Word for Level {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("off", Self::Off),
        ("error", Self::Error),
        ("warn", Self::Warn),
        ("info", Self::Info),
        ("debug", Self::Debug),
        ("trace", Self::Trace),
    ];
}

impl Log {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let access = match section.optional("access") {
            None => DEFAULT_ACCESS,
            Some(true) => AccessLog::On,
            Some(false) => AccessLog::Off,
        };
        Self { level: section.word("level", DEFAULT_LEVEL), access }
    }
}
