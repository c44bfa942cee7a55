//! One turn of one contender: fresh processes, a warm-up, a measurement.

use std::time::Duration;

use anyhow::ensure;
use serde::Serialize;

use crate::contender::{Bed, Running};
use crate::load::{self, Latency};
use crate::machine::{self, CoreTime};
use crate::process::Usage;
use crate::scenario::{Contender, Kind, Scenario};
use crate::{idle, service};

/// How long each part of a turn takes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Lengths {
    /// Load before anything counts.
    pub warm_up: Duration,
    /// Load that counts.
    pub measured: Duration,
}

/// What was seen in one turn.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Observation {
    /// Who.
    pub proxy: String,
    /// Which round, from 0.
    pub round: usize,
    /// CPU time of all its processes for an operation, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_op: Option<f64>,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Operations.
    pub operations: f64,
    /// Latency that half of the operations kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// Latency that 99 % kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// Latency that 99.9 % kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p999_us: Option<u64>,
    /// What the clients' TLS handshakes agreed on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_parameters: Option<String>,
    /// From its start to the first operation that came through.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<f64>,
    /// Resident memory of all its processes before the load, with what is shared divided among those who share it.
    pub start_pss_kib: u64,
    /// Resident memory of all its processes after the load.
    pub rss_kib: u64,
    /// The same, with what is shared divided among those who share it.
    pub pss_kib: u64,
    /// Wake-ups a second of all its threads while idle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wake_ups_per_s: Option<f64>,
    /// Memory that an idle connection adds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kib_per_connection: Option<f64>,
    /// The kernel's memory that an idle connection adds, for both of its ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_kib_per_connection: Option<f64>,
    /// The busiest worker's time on CPU over the mean of all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heaviest_over_mean: Option<f64>,
    /// Share of the time that load and service could have had, which they used.
    pub load_busy_share: f64,
    /// Whether the load generator says that it was what limited the rate.
    pub load_was_bottleneck: bool,
    /// Share of the contender's core that others used: 0 on a quiet machine.
    pub foreign_share: f64,
}

/// Runs one turn.
///
/// # Errors
/// If something does not start, or an operation fails.
pub fn run(bed: &Bed, scenario: &Scenario, contender: &Contender, lengths: Lengths) -> anyhow::Result<Observation> {
    let load = &scenario.load;
    if load.kind == Kind::Idle {
        return idle::run(bed, scenario, contender, lengths);
    }
    let folder = bed.new_folder()?;
    let (_service, address) = service::start(bed, load, contender, folder.path())?;
    // With several workers there are not cores enough for anybody to be alone on one.
    let alone = load.workers == 1;
    let (core, all) = ([bed.proxy_core()], bed.all_cores());
    let (proxy_cores, load_cores) = if alone { (&core[..], bed.load_cores()) } else { (all, all) };
    let mut running = bed.start(contender, load, address, proxy_cores, folder.path())?;
    let send = |running: &mut Running, length| {
        let outcome = load::run(bed, load, running.address(), length, load_cores);
        outcome.map_err(|error| error.context(running.last_words()))
    };
    let at_start = running.usage();
    send(&mut running, lengths.warm_up)?;

    let before = Moment::now(&running, core[0]);
    let outcome = send(&mut running, lengths.measured)?;
    let after = Moment::now(&running, core[0]);

    // The time of one that has ended would be missing, and the contender would look fast.
    ensure!(
        before.usage.processes == after.usage.processes,
        "its processes came and went meanwhile\n{}",
        running.last_words()
    );
    let cpu = after.usage.cpu.saturating_sub(before.usage.cpu);
    let busy = after.core.busy.saturating_sub(before.core.busy);
    let whole = after.core.all.saturating_sub(before.core.all);
    let foreign = (busy.saturating_sub(cpu).as_secs_f64() / whole.as_secs_f64().max(1e-9)).clamp(0.0, 1.0);
    let latency = |which: fn(&Latency) -> u64| outcome.latency.as_ref().map(which);
    Ok(Observation {
        proxy: contender.proxy.clone(),
        cpu_us_per_op: (!running.is_direct()).then(|| cpu.as_secs_f64() * 1e6 / outcome.operations),
        ops_per_s: outcome.operations / outcome.seconds,
        operations: outcome.operations,
        p50_us: latency(|latency| latency.p50),
        p99_us: latency(|latency| latency.p99),
        p999_us: latency(|latency| latency.p999),
        start_ms: (!running.is_direct()).then(|| running.start().as_secs_f64() * 1e3),
        start_pss_kib: at_start.pss_kib,
        rss_kib: after.usage.rss_kib,
        pss_kib: after.usage.pss_kib,
        heaviest_over_mean: heaviest_over_mean(&before.threads, &after.threads, load.workers),
        load_busy_share: outcome.busy_share,
        load_was_bottleneck: outcome.was_bottleneck,
        tls_parameters: outcome.tls_parameters,
        foreign_share: if alone { foreign } else { 0.0 },
        ..Observation::default()
    })
}

/// What a contender and its core have used up to now.
struct Moment {
    usage: Usage,
    core: CoreTime,
    threads: Vec<(String, Duration)>,
}

impl Moment {
    fn now(running: &Running, core: usize) -> Self {
        Self { usage: running.usage(), core: machine::core_time(core), threads: running.threads() }
    }
}

/// The busiest worker's time on CPU over the mean of all; nothing, if there is one only. Workers are the busiest threads:
/// what other threads do is little beside them.
fn heaviest_over_mean(before: &[(String, Duration)], after: &[(String, Duration)], workers: u16) -> Option<f64> {
    if workers < 2 {
        return None;
    }
    let began = |thread: &str| before.iter().find(|(name, _)| name == thread).map_or(Duration::ZERO, |(_, time)| *time);
    let mut times: Vec<f64> =
        after.iter().map(|(thread, time)| time.saturating_sub(began(thread)).as_secs_f64()).collect();
    times.sort_by(|a, b| b.total_cmp(a));
    times.truncate(usize::from(workers));
    let mean = times.iter().sum::<f64>() / f64::from(workers);
    (mean > 0.0).then(|| times[0] / mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_second_worker_makes_the_first_twice_the_mean() {
        let times = |list: &[(&str, u64)]| -> Vec<(String, Duration)> {
            list.iter().map(|(name, ms)| ((*name).to_owned(), Duration::from_millis(*ms))).collect()
        };
        let before = times(&[("main", 10), ("a", 100), ("b", 50)]);
        let check = |after: &[(&str, u64)], workers, expected| {
            assert_eq!(heaviest_over_mean(&before, &times(after), workers), expected);
        };
        check(&[("main", 11), ("a", 300), ("b", 50)], 2, Some(200.0 / 100.5));
        check(&[("main", 11), ("a", 300), ("b", 250)], 2, Some(1.0));
        check(&[("main", 11), ("a", 300), ("b", 50)], 1, None);
    }
}
