//! `[runtime]`: how the data plane runs. Read when a data plane process starts; a change needs a new one.

use std::time::Duration;

use crate::error::Cause;
use crate::reader::{Field, FromField, Keys, Number, Section, Word, within};
use crate::wire;

/// Keys of `[runtime]`.
pub const KEYS: Keys =
    Keys { path: "runtime", header: "[runtime]", names: &["driver", "workers", "pin", "drain_timeout"] };

/// How long open requests may go on after a stop was asked for. Below the 30 s that Kubernetes and most deploy tools wait
/// before they kill.
pub const DEFAULT_DRAIN_TIMEOUT: Duration = Duration::from_secs(25);

/// Most worker threads: more than any machine has cores for, and few enough for one descriptor each in a frame.
pub const MAX_WORKERS: u32 = 240;
const _: () = assert!((MAX_WORKERS as usize) < wire::MAX_FRAME_DESCRIPTORS);

/// Workers of a proxy beside an application, unless said otherwise. It must not take the machine that the application
/// needs, and thirty of them on 64 cores must not make 1,920 threads.
pub const AUTO_SIDECAR_WORKERS: u16 = 2;

/// `[runtime]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Runtime {
    /// Which I/O driver is wanted.
    pub driver: wire::Driver,
    /// How many worker threads.
    pub workers: Workers,
    /// Whether each worker stays on one core.
    pub pin: Pin,
    /// How long open requests may go on after a stop was asked for.
    pub drain_timeout: Duration,
}

impl Default for Runtime {
    fn default() -> Self {
        Self {
            driver: wire::Driver::Auto,
            workers: Workers::Auto,
            pin: Pin::Auto,
            drain_timeout: DEFAULT_DRAIN_TIMEOUT,
        }
    }
}

/// How many worker threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    /// At most [`AUTO_SIDECAR_WORKERS`] for a sidecar, else one for each allowed core; never more than the CPU quota.
    Auto,
    /// One for each allowed core.
    Cores,
    /// So many.
    Count(u16),
}

/// Whether each worker stays on one core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Where it helps: if workers equal allowed cores and no CPU quota is set.
    Auto,
    /// Always.
    Cores,
    /// Never.
    None,
}

/// What a proxy is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It shares its machine with the application it stands beside.
    Sidecar,
    /// It has the machine to itself.
    Edge,
}

/// What the machine allows this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Cores it may run on.
    pub allowed_cores: u16,
    /// CPU quota of its control group, in thousandths of a core.
    pub quota_millicores: Option<u32>,
}

impl Runtime {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Self::default();
        Self {
            driver: section.word("driver", default.driver),
            workers: section.or("workers", default.workers),
            pin: section.word("pin", default.pin),
            drain_timeout: section.ranged(
                "drain_timeout",
                default.drain_timeout,
                Duration::ZERO,
                Duration::from_secs(24 * 3600),
            ),
        }
    }

    /// What the data plane is told, on this machine.
    pub fn decide(&self, role: Role, machine: Machine) -> wire::Runtime {
        let cores = machine.allowed_cores.max(1);
        let quota = machine.quota_millicores.map_or(cores, |quota| quota.div_ceil(1000).try_into().unwrap_or(cores));
        let workers = match (self.workers, role) {
            (Workers::Auto, Role::Sidecar) => AUTO_SIDECAR_WORKERS.min(quota).min(cores),
            (Workers::Auto, Role::Edge) => cores.min(quota),
            (Workers::Cores, _) => cores,
            (Workers::Count(count), _) => count,
        };
        let workers = workers.clamp(1, u16::try_from(MAX_WORKERS).unwrap_or(u16::MAX));
        let pin = match self.pin {
            Pin::Cores => wire::Pin::Cores,
            Pin::Auto if workers == cores && machine.quota_millicores.is_none() => wire::Pin::Cores,
            Pin::Auto | Pin::None => wire::Pin::None,
        };
        wire::Runtime { driver: self.driver, workers, pin }
    }
}

impl Word for wire::Driver {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("io_uring", Self::IoUring), ("epoll", Self::Epoll)];
}

impl Word for Pin {
    const WORDS: &'static [(&'static str, Self)] =
        &[("auto", Self::Auto), ("cores", Self::Cores), ("none", Self::None)];
}

impl FromField for Workers {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "\"auto\", \"cores\" or a whole number";
        match field.text() {
            Some("auto") => Some(Self::Auto),
            Some("cores") => Some(Self::Cores),
            Some(text) => {
                field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
                None
            }
            None if field.is_number() => {
                let count = within(field, Number::from_field(field)?, Number::from(1), MAX_WORKERS.into())?;
                u16::try_from(u32::from(count)).ok().map(Self::Count)
            }
            None => {
                field.refuse_type(EXPECTED);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(workers: Workers, role: Role, cores: u16, quota: Option<u32>, expected: (u16, wire::Pin)) {
        let runtime = Runtime { workers, ..Runtime::default() };
        let found = runtime.decide(role, Machine { allowed_cores: cores, quota_millicores: quota });
        assert_eq!((found.workers, found.pin), expected, "{workers:?} {role:?} {cores} cores, quota {quota:?}");
    }

    #[test]
    fn a_sidecar_takes_two_workers_and_the_edge_all_cores() {
        use wire::Pin::{Cores, None as Free};
        check(Workers::Auto, Role::Sidecar, 64, None, (2, Free));
        check(Workers::Auto, Role::Sidecar, 2, None, (2, Cores));
        check(Workers::Auto, Role::Sidecar, 1, None, (1, Cores));
        check(Workers::Auto, Role::Sidecar, 64, Some(500), (1, Free));
        check(Workers::Auto, Role::Sidecar, 64, Some(1500), (2, Free));
        check(Workers::Auto, Role::Edge, 8, None, (8, Cores));
        check(Workers::Auto, Role::Edge, 8, Some(3000), (3, Free));
        check(Workers::Cores, Role::Sidecar, 8, None, (8, Cores));
        check(Workers::Count(4), Role::Edge, 8, None, (4, Free));
        check(Workers::Count(4), Role::Edge, 4, Some(4000), (4, Free));
        check(Workers::Auto, Role::Edge, 1000, None, (240, Free));
    }
}
