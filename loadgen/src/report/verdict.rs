//! Whether the generator measured the server, or itself.

use std::fmt;
use std::time::Duration;

use super::Report;
use crate::unit::show_duration;

/// Share of a core above which the generator is suspected of being what limits the result.
pub const SUSPECT_BUSY_SHARE: f64 = 0.8;

/// Share of a latency that the generator's own lateness may be before it is worth telling.
const SUSPECT_DELAY_SHARE: f64 = 0.5;

/// Share of the asked rate below which it was not kept.
const KEPT_RATE_SHARE: f64 = 0.98;

/// How the generator itself limited the result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bottleneck {
    /// A thread had no time left.
    Busy {
        /// Share of the time it was on CPU.
        on_cpu: f64,
        /// Share of the time it waited for a core.
        waiting: f64,
        /// The generator's threads.
        threads: u32,
    },
    /// Requests were sent late by so much that it shows in the latencies.
    Late {
        /// 1 % of the requests were sent at least this late.
        delay: Duration,
        /// 1 % of the latencies are at least this long.
        latency: Duration,
    },
}

impl fmt::Display for Bottleneck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy { on_cpu, waiting, threads } => {
                write!(f, "its busiest thread had no time left ({:.0} % of it on CPU", on_cpu * 100.0)?;
                if *waiting > 0.05 {
                    write!(f, ", {:.0} % waiting for a core that others used", waiting * 100.0)?;
                }
                write!(f, "): give it more than {threads} --threads, cores of its own (--pin), or a lower rate")
            }
            Self::Late { delay, latency } => write!(
                f,
                "1 % of the requests were sent {} late or more by the generator itself, and the p99 of {} includes that",
                show_duration(*delay),
                show_duration(*latency),
            ),
        }
    }
}

impl Report {
    /// How the generator itself limited the result, if it did.
    pub fn bottleneck(&self) -> Option<Bottleneck> {
        if self.busiest_share > SUSPECT_BUSY_SHARE {
            let (on_cpu, waiting) = (self.busy_share(), self.waiting_share());
            return Some(Bottleneck::Busy { on_cpu, waiting, threads: self.workers });
        }
        let (delay, latency) = (self.delay_quantile(0.99), self.total.quantile(0.99));
        (delay.as_secs_f64() > latency.as_secs_f64() * SUSPECT_DELAY_SHARE && !self.delay.is_empty())
            .then_some(Bottleneck::Late { delay, latency })
    }

    /// What the reader must know before trusting the figures.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(bottleneck) = self.bottleneck() {
            warnings.push(format!("the generator was the bottleneck: {bottleneck}"));
        }
        if self.unsent > 0 {
            warnings.push(format!(
                "{} requests were due but never sent: all {} connections were waiting for answers",
                self.unsent, self.asked.connections
            ));
        }
        if let Some(per_second) = self.asked.per_second
            && self.unsent == 0
            && self.elapsed > Duration::from_secs(1)
            && self.rate() < per_second * KEPT_RATE_SHARE
            && self.asked.duration.is_some_and(|duration| self.elapsed >= duration)
        {
            warnings.push(format!("{per_second} requests a second were asked for, {:.0} ended", self.rate()));
        }
        warnings
    }
}
