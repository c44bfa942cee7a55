//! One turn of one contender: fresh processes, a warm-up, a measurement.

use std::time::Duration;

use serde::Serialize;

use crate::contender::{Bed, Running};
use crate::load::{self, Latency};
use crate::machine;
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
    /// Share of the time that load and service could have had, which they used.
    pub load_busy_share: f64,
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
    let program = bed.load_program();
    let (_service, address) = service::start(&program, load.kind, load.body_bytes, bed.load_cores(), folder.path())?;
    let core = [bed.proxy_core()];
    let mut running = bed.start(contender, load.kind, load.workers, address, &core, folder.path())?;
    let send = |running: &mut Running, length| {
        let outcome = load::run(&program, load, running.address(), length, bed.load_cores());
        outcome.map_err(|error| error.context(running.last_words()))
    };
    send(&mut running, lengths.warm_up)?;

    let before = (running.usage(), machine::core_time(core[0]));
    let outcome = send(&mut running, lengths.measured)?;
    let after = (running.usage(), machine::core_time(core[0]));

    let cpu = after.0.cpu.saturating_sub(before.0.cpu);
    let (busy, whole) = (after.1.busy.saturating_sub(before.1.busy), after.1.all.saturating_sub(before.1.all));
    let latency = |which: fn(&Latency) -> u64| outcome.latency.as_ref().map(which);
    Ok(Observation {
        proxy: contender.proxy.clone(),
        cpu_us_per_op: (!running.is_direct()).then(|| cpu.as_secs_f64() * 1e6 / outcome.operations),
        ops_per_s: outcome.operations / outcome.seconds,
        operations: outcome.operations,
        p50_us: latency(|latency| latency.p50),
        p99_us: latency(|latency| latency.p99),
        p999_us: latency(|latency| latency.p999),
        rss_kib: after.0.rss_kib,
        pss_kib: after.0.pss_kib,
        load_busy_share: outcome.busy_share,
        foreign_share: (busy.saturating_sub(cpu).as_secs_f64() / whole.as_secs_f64().max(1e-9)).clamp(0.0, 1.0),
        ..Observation::default()
    })
}
