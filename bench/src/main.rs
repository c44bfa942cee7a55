//! `ringmesh-bench`: Ringmesh beside real proxies, and what its request path costs.

#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use ringmesh_bench::baseline::{self, Baseline};
use ringmesh_bench::callgrind::PROGRAM;
use ringmesh_bench::contender::Bed;
use ringmesh_bench::machine::Machine;
use ringmesh_bench::programs::Build;
use ringmesh_bench::scenario::{self, Kind};
use ringmesh_bench::turn::Lengths;
use ringmesh_bench::{counts, gate, package, report, side_by_side};

/// Rounds of a full run: enough for an interval of the median.
const ROUNDS: usize = 30;

/// Rounds of a quick one.
const QUICK_ROUNDS: usize = 3;

/// Rounds at rest: they take long and differ little.
const MAX_IDLE_ROUNDS: usize = 3;

/// A full run: load before anything counts.
const LENGTHS: Lengths = Lengths { warm_up: Duration::from_millis(300), measured: Duration::from_millis(500) };

/// A quick run.
const QUICK_LENGTHS: Lengths = Lengths { warm_up: Duration::from_millis(100), measured: Duration::from_millis(300) };

/// At rest: how long coming to rest may take, and how long it is watched.
const IDLE_LENGTHS: Lengths = Lengths { warm_up: Duration::from_secs(2), measured: Duration::from_secs(5) };

/// The same in a quick run.
const QUICK_IDLE_LENGTHS: Lengths = Lengths { warm_up: Duration::from_millis(800), measured: Duration::from_secs(2) };

/// Ringmesh beside HAProxy, nginx, Envoy and nghttpx in one run: the proxy alone on the first core with one worker, load
/// and service on the second, fresh processes each turn, the contenders taking turns.
///
/// Exit codes: 0 done, 1 something failed (figures of others are kept), 2 the command makes no sense.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  cargo run --release -p ringmesh-bench -- --quick
      the whole table in few rounds, about 5 minutes: the order of the contenders
  cargo run --release -p ringmesh-bench -- --scenario h1-plain
      one scenario in all rounds, on a machine where nothing else runs
  cargo run --release -p ringmesh-bench -- --gate
      what CI runs: instructions and allocations against bench/baseline.json, and a short comparison with a wide bound
  cargo run --release -p ringmesh-bench -- --instructions
      instructions of a request by stage and of its parts, under callgrind, compared with bench/baseline.json
  cargo run --release -p ringmesh-bench -- --package
      the product as packages have it, optimised by counts of its own traffic: target/package/ringmesh
  cargo bench -p ringmesh-bench
      each stage by itself, in nanoseconds"
)]
struct Cli {
    /// Few rounds
    #[arg(long)]
    quick: bool,
    /// Only this scenario, or all cases of this file; may be given several times
    #[arg(long = "scenario", value_name = "NAME")]
    scenarios: Vec<String>,
    /// Only this contender; may be given several times
    #[arg(long = "proxy", value_name = "NAME", requires = "no_save")]
    proxies: Vec<String>,
    /// How many rounds [default: 30, with --quick 3]
    #[arg(long)]
    rounds: Option<usize>,
    /// How long the load of a turn is measured [default: 500ms, with --quick 300ms]
    #[arg(long, value_parser = ringmesh_loadgen::unit::duration)]
    length: Option<Duration>,
    /// Name the scenarios and what they ask
    #[arg(long)]
    list: bool,
    /// Write nothing into bench/results
    #[arg(long)]
    no_save: bool,
    /// Take the programs as they are built
    #[arg(long)]
    no_build: bool,
    /// Compare counted instructions and allocations with the baseline, and shortly with HAProxy
    #[arg(long, conflicts_with_all = ["scenarios", "quick"])]
    gate: bool,
    /// Count the instructions of a request
    #[arg(long, conflicts_with_all = ["scenarios", "quick", "gate"])]
    instructions: bool,
    /// Build the product as packages have it, into target/package
    #[arg(long, conflicts_with_all = ["scenarios", "quick", "gate", "instructions"])]
    package: bool,
    /// Make the counted instructions the new baseline, for this reason
    #[arg(long, value_name = "WHY", requires = "instructions")]
    move_baseline: Option<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match &cli {
        cli if cli.list => list(),
        cli if cli.gate => run_gate(cli),
        cli if cli.instructions => count_instructions(cli),
        cli if cli.package => make_package(cli),
        cli => compare(cli),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("ringmesh-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a line of the result. Nobody looks when standard output is gone.
fn say(line: &str) {
    let _gone = writeln!(std::io::stdout(), "{line}");
}

fn list() -> anyhow::Result<ExitCode> {
    for scenario in scenario::all()? {
        let place = if scenario.in_table { "" } else { " (by name only)" };
        say(&format!("{:<20} {}{place}", scenario.name, scenario.question));
    }
    Ok(ExitCode::SUCCESS)
}

/// The programs of this build, up to date.
fn build(cli: &Cli) -> anyhow::Result<Build> {
    let build = Build::of_this_program()?;
    if build.profile() == "dev" {
        bail!("figures of a dev build mean nothing: cargo run --release -p ringmesh-bench");
    }
    if (cli.gate || cli.instructions) && build.profile() != "release" {
        bail!("the baseline holds for the release profile: cargo run --release -p ringmesh-bench");
    }
    if !cli.no_build {
        build.bring_up_to_date(&["--bins"])?;
    }
    Ok(build)
}

fn run_gate(cli: &Cli) -> anyhow::Result<ExitCode> {
    gate::run(&build(cli)?, say)?;
    say("the gate is passed");
    Ok(ExitCode::SUCCESS)
}

fn make_package(cli: &Cli) -> anyhow::Result<ExitCode> {
    let product = package::make(&build(cli)?, |line| eprintln!("{line}"))?;
    say(&product.program("ringmesh").display().to_string());
    Ok(ExitCode::SUCCESS)
}

fn count_instructions(cli: &Cli) -> anyhow::Result<ExitCode> {
    let build = build(cli)?;
    let mut counted = counts::count(&build.program(PROGRAM))?;
    let machine = Machine::here();
    say(&counts::shares_table(&counted));
    if let Some(why) = &cli.move_baseline {
        say(counts::table(&counted.costs, None).trim_end());
        Baseline::of(&counted, &machine, why).write()?;
        say("this is the baseline now");
        return Ok(ExitCode::SUCCESS);
    }
    let verdict = baseline::compare(&build, &mut counted, &machine, say)?;
    say(counts::table(&counted.costs, Some(&verdict.before)).trim_end());
    baseline::praise(&verdict, &counted.costs).iter().for_each(|praise| say(praise));
    if verdict.excesses.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    bail!(baseline::complaint(&verdict));
}

fn compare(cli: &Cli) -> anyhow::Result<ExitCode> {
    if cli.no_build && !cli.no_save {
        bail!("figures are kept under a commit, so they need programs of it: drop --no-build, or add --no-save");
    }
    let scenarios = scenario::read(&cli.scenarios)?;
    let machine = Machine::here();
    let build = build(cli)?;
    let product =
        if cli.quick || cli.no_build { build.clone() } else { package::make(&build, |line| eprintln!("{line}"))? };
    let bed = Bed::new(build, product)?;
    eprintln!(
        "{}, {} cores, Linux {}, load average {:.2}, commit {}{}",
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.load_average,
        machine.commit,
        if machine.modified { " with changes" } else { "" }
    );
    let mut code = ExitCode::SUCCESS;
    for mut scenario in scenarios {
        if !cli.proxies.is_empty() {
            scenario.contenders.retain(|contender| cli.proxies.contains(&contender.proxy));
        }
        let mut rounds = cli.rounds.unwrap_or(if cli.quick { QUICK_ROUNDS } else { ROUNDS });
        let mut lengths = if cli.quick { QUICK_LENGTHS } else { LENGTHS };
        lengths.measured = cli.length.unwrap_or(lengths.measured);
        if scenario.load.kind == Kind::Idle {
            rounds = rounds.min(if cli.quick { 1 } else { MAX_IDLE_ROUNDS });
            lengths = if cli.quick { QUICK_IDLE_LENGTHS } else { IDLE_LENGTHS };
        }
        eprintln!("\n{}", scenario.name);
        let outcome = match side_by_side::run(&bed, scenario, rounds, lengths, |line| eprintln!("  {line}")) {
            Ok(outcome) => outcome,
            Err(error) => {
                eprintln!("  {error:#}");
                code = ExitCode::FAILURE;
                continue;
            }
        };
        if !outcome.failures.is_empty() {
            code = ExitCode::FAILURE;
        }
        let records = report::records(&outcome, &machine);
        say(&report::table(&outcome, &records));
        if !cli.no_save {
            report::save(&report::results(), &outcome, &records, &machine, lengths)?;
        }
    }
    Ok(code)
}
