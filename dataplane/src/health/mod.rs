//! Whether endpoints serve, as probes find out. One worker asks, all see the answer: a data plane with 64 workers asks no more
//! than one with a single worker, and goes on asking when control is gone.

pub mod checker;
pub mod probe;

use std::sync::atomic::{AtomicU64, Ordering};

use ringmesh_model::snapshot::HealthCheck;
use ringmesh_model::wire;

pub use checker::Checker;

/// What probes have found of one endpoint. The worker that asks writes it, all others read it, in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Health(AtomicU64);

/// What probes have found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet: it is taken for healthy, so that traffic need not wait for probes.
    #[default]
    Unknown,
    /// It serves.
    Healthy,
    /// It does not.
    Unhealthy,
}

impl Health {
    /// Whether it is to be passed over.
    #[inline]
    pub fn is_unhealthy(&self) -> bool {
        self.0.load(Ordering::Relaxed) == Verdict::Unhealthy as u64
    }

    /// What was found last.
    pub fn verdict(&self) -> Verdict {
        match self.0.load(Ordering::Relaxed) {
            word if word == Verdict::Healthy as u64 => Verdict::Healthy,
            word if word == Verdict::Unhealthy as u64 => Verdict::Unhealthy,
            _ => Verdict::Unknown,
        }
    }

    fn set(&self, verdict: Verdict) {
        self.0.store(verdict as u64, Ordering::Relaxed);
    }
}

impl From<Verdict> for wire::Health {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Unknown => Self::Unknown,
            Verdict::Healthy => Self::Healthy,
            Verdict::Unhealthy => Self::Unhealthy,
        }
    }
}

/// How a probe ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The endpoint serves.
    Passed,
    /// It does not, or was not to be asked.
    Failed,
}

/// What probes have found of one endpoint, and how many in a row say otherwise.
#[derive(Debug, Default)]
pub struct Streak {
    verdict: Verdict,
    against: u32,
}

impl Streak {
    /// What is thought of it.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Takes one more probe into account; the verdict, if it changes. The first probe decides alone: of an endpoint of which
    /// nothing is known, it is all that is known.
    pub fn note(&mut self, ended: Ended, check: &HealthCheck) -> Option<Verdict> {
        let (says, needed) = match ended {
            Ended::Passed => (Verdict::Healthy, check.healthy_after),
            Ended::Failed => (Verdict::Unhealthy, check.unhealthy_after),
        };
        if says == self.verdict {
            self.against = 0;
            return None;
        }
        self.against += 1;
        if self.verdict != Verdict::Unknown && self.against < needed {
            return None;
        }
        *self = Self { verdict: says, against: 0 };
        Some(says)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringmesh_model::health::Probe;

    use super::*;

    #[test]
    fn the_first_probe_decides_alone_and_later_ones_only_so_many_in_a_row() {
        let second = Duration::from_secs(1);
        let check =
            HealthCheck { probe: Probe::Tcp, interval: second, timeout: second, healthy_after: 2, unhealthy_after: 3 };
        let check = |probes: &str, expected: &str| {
            let mut streak = Streak::default();
            let note = |probe: char| {
                let ended = if probe == '+' { Ended::Passed } else { Ended::Failed };
                match streak.note(ended, &check) {
                    Some(Verdict::Healthy) => 'H',
                    Some(_) => 'U',
                    None => '.',
                }
            };
            assert_eq!(probes.chars().map(note).collect::<String>(), expected, "{probes}");
        };
        check("+", "H");
        check("-", "U");
        check("+--+---", "H.....U");
        check("+---++", "H..U.H");
        check("-+-++", "U...H");
        check("-++---", "U.H..U");
    }
}
