//! What must hold before a change lands, in few minutes: no part of a request takes more instructions or allocations than it
//! did, nothing is allocated for a steady request, and Ringmesh is not far from where it was beside HAProxy.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::callgrind::PROGRAM;
use crate::contender::Bed;
use crate::machine::Machine;
use crate::programs::Build;
use crate::turn::Lengths;
use crate::{baseline, counts, report, scenario, side_by_side};

/// What is run side by side.
const SCENARIO: &str = "h1-plain";

/// Paired rounds.
const ROUNDS: usize = 7;

/// How long each turn takes.
const LENGTHS: Lengths = Lengths { warm_up: Duration::from_millis(200), measured: Duration::from_millis(500) };

/// Ringmesh's CPU time as a ratio to HAProxy's from which on something is wrong. Wide, as the machine may be shared: a net
/// for what the counts do not see.
const MAX_RATIO: f64 = 1.5;

/// Runs all checks, telling of each through `tell`.
///
/// # Errors
/// If one fails, or cannot be made.
pub fn run(build: &Build, mut tell: impl FnMut(&str)) -> anyhow::Result<()> {
    tell("instructions and allocations of each part of a request:");
    let mut counted = counts::count(&build.program(PROGRAM))?;
    let verdict = baseline::compare(build, &mut counted, &Machine::here(), &mut tell)?;
    tell(&format!("against {}:\n{}", verdict.against, counts::table(&counted.costs, Some(&verdict.before)).trim_end()));
    if !verdict.excesses.is_empty() {
        bail!(baseline::complaint(&verdict));
    }
    baseline::praise(&verdict, &counted.costs).iter().for_each(|praise| tell(praise));
    tell("allocations of steady HTTP/1.1 requests:");
    let status = Command::new(build.program("ringmesh-bench-allocations")).status().context("counting allocations")?;
    if !status.success() {
        bail!("a steady request allocates; it must not");
    }
    tell("Ringmesh beside HAProxy:");
    let mut scenario = scenario::read(&[SCENARIO.to_owned()])?.remove(0);
    scenario.contenders.retain(|contender| [report::OURS, report::REFERENCE].contains(&contender.proxy.as_str()));
    let bed = Bed::new(build.clone(), build.clone())?;
    let outcome = side_by_side::run(&bed, scenario, ROUNDS, LENGTHS, &mut tell)?;
    if let Some(failure) = outcome.failures.first() {
        bail!("{failure}");
    }
    let records = report::records(&outcome, &Machine::here());
    let ratio = records.iter().find(|record| record.proxy == report::OURS).and_then(|record| record.cpu_ratio);
    let ratio = ratio.context("a ratio of CPU times")?;
    tell(&format!(
        "CPU time of a request, ratio to HAProxy: {:.2} ({:.2} to {:.2}), at most {MAX_RATIO}",
        ratio.median, ratio.low, ratio.high
    ));
    if ratio.median > MAX_RATIO {
        bail!("a request costs {:.2} times of what it costs in HAProxy; at most {MAX_RATIO} is allowed", ratio.median);
    }
    Ok(())
}
