//! What all loads have in common: how much, how long, and what is shown.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use clap::{Args, ValueEnum};
use ringmesh_loadgen::arrival::{Arrivals, Rate, Spacing};
use ringmesh_loadgen::load::{self, Exchange, Protocol};
use ringmesh_loadgen::objective::Objective;
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::unit;
use serde_json::Value;

use super::screen::{Progress, Screen};
use super::search;
use super::target::Place;
use super::{RuntimeArgs, TICK, exit, on_signal, print, say};

/// How long a load that is stopped waits for answers.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(next_help_heading = "Load")]
pub(crate) struct LoadArgs {
    /// Requests a second over all connections (open loop): 1000, a ramp 100..5000/30s, steps 100/10s,200/10s, bursts
    /// (200/900ms,2000/100ms)*
    #[arg(long, short, default_value = "1000", conflicts_with = "closed")]
    rate: Rate,
    /// Go up each ramp in so many even steps
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..=1000), conflicts_with = "closed")]
    steps: Option<u32>,
    /// Requests at random instants, as those of many users (Poisson), instead of even ones
    #[arg(long, conflicts_with = "closed")]
    poisson: bool,
    /// Where chance starts from; the same seed gives the same instants
    #[arg(long, default_value_t = 1, requires = "poisson")]
    seed: u64,
    /// Each connection sends its next request when it has its answer
    #[arg(long)]
    closed: bool,
    /// Connections
    #[arg(long, short, default_value_t = 10)]
    connections: usize,
    /// How long requests are sent, such as 10s; if not given, as long as --rate or --requests says, or 10s
    #[arg(long, short, value_parser = unit::duration)]
    duration: Option<Duration>,
    /// For how long requests are sent before any is counted
    #[arg(long, value_parser = unit::duration, default_value = "0s")]
    warmup: Duration,
    /// Ends after so many requests, if that is sooner
    #[arg(long, short = 'n', conflicts_with = "until")]
    requests: Option<u64>,
    /// How long a request may take
    #[arg(long, value_parser = unit::duration, default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// How the result is printed
    #[arg(long, value_enum, default_value = "table", help_heading = "Result")]
    format: Format,
    /// What is shown meanwhile, on standard error
    #[arg(long, value_enum, default_value = "auto", help_heading = "Result")]
    progress: Progress,
    #[command(flatten)]
    search: search::SearchArgs,
    /// What the result must be, such as 'p99<5ms' or 'errors=0'; may be given several times. If one does not hold, the
    /// exit code is 3. A search has --until instead
    #[arg(long = "assert", value_name = "OBJECTIVE", conflicts_with = "until", help_heading = "Result")]
    asserts: Vec<Objective>,
    /// Write the result to this file, too, as JSON for `compare`, which reads no search
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    save: Option<PathBuf>,
    /// Print the result as one JSON object; short for --format json
    #[arg(long, conflicts_with = "format", help_heading = "Result")]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// One JSON object, which `compare` reads
    Json,
    /// HDR log: compressed histograms over time, for HdrHistogram tools
    Hdr,
    /// Prometheus text
    Prometheus,
}

impl LoadArgs {
    fn arrivals(&self) -> Arrivals {
        if self.closed {
            return Arrivals::Closed;
        }
        let rate = self.steps.map_or_else(|| self.rate.clone(), |steps| self.rate.in_steps(steps));
        let spacing = if self.poisson { Spacing::Poisson { seed: self.seed } } else { Spacing::Even };
        Arrivals::Open { rate, spacing }
    }

    fn duration(&self) -> Option<Duration> {
        let by_rate = if self.closed { None } else { self.rate.length() };
        // Who asks for a number of requests wants that number.
        let default = if self.requests.is_some() { None } else { Some(load::DEFAULT_DURATION) };
        self.duration.or(by_rate).or(default)
    }

    fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

pub(crate) fn run(args: &LoadArgs, place: Place, protocol: Protocol) -> anyhow::Result<ExitCode> {
    let upload = matches!(protocol, Protocol::Tcp(Exchange::Upload { .. }));
    let settings = load::Settings {
        targets: place.targets,
        tls: place.tls,
        proxy_header: place.proxy_header,
        protocol,
        connections: args.connections,
        arrivals: if upload { Arrivals::Closed } else { args.arrivals() },
        warm_up: args.warmup,
        duration: args.duration(),
        requests: args.requests,
        timeout: args.timeout,
        threads: args.runtime.threads(),
        cores: args.runtime.cores(),
        driver: args.runtime.driver.into(),
    };
    let stopped = on_signal()?;
    let mut screen = Screen::new(args.progress);
    if !args.search.until.is_empty() {
        let json = match args.format() {
            Format::Table => false,
            Format::Json => true,
            Format::Hdr | Format::Prometheus => {
                anyhow::bail!("the result of a search (--until) is printed as `table` or `json`");
            }
        };
        let save = args.save.as_deref();
        let search = search::Task { args: &args.search, settings, length: args.duration, json, save };
        return search.run(&stopped, &mut screen);
    }
    let began = SystemTime::now();
    let report = drive(settings, &stopped, &mut screen)?;
    screen.clear();
    match args.format() {
        Format::Table => say(&report),
        Format::Json => say(report.to_json()),
        Format::Hdr => print(report.to_hdr_log(began)),
        Format::Prometheus => print(report.to_prometheus()),
    }
    // After printing: what has been measured is not lost when a disk is full.
    if let Some(file) = &args.save {
        save(file, &report.to_json())?;
    }
    Ok(judge(args, &report))
}

/// Keeps a result in a file.
pub(super) fn save(file: &Path, result: &Value) -> anyhow::Result<()> {
    std::fs::write(file, format!("{result}\n")).with_context(|| format!("cannot write {}", file.display()))
}

/// Runs a load to its end, or until it is stopped; then what there is counts, without the requests that are still open
/// after a moment.
pub(crate) fn drive(settings: load::Settings, stopped: &AtomicBool, screen: &mut Screen) -> anyhow::Result<Report> {
    let mut running = load::start(settings)?;
    let mut stopped_at = None;
    while !running.is_finished() {
        std::thread::sleep(TICK);
        if stopped.load(Ordering::Relaxed) {
            let since = stopped_at.get_or_insert_with(Instant::now).elapsed();
            running.end();
            // Publishing stops a while after nobody has looked.
            let report = running.progress();
            if since >= GRACE {
                return Ok(report);
            }
        }
        if screen.is_due() {
            screen.show(&running.progress());
        }
    }
    Ok(running.wait()?)
}

/// The exit code that a result deserves.
fn judge(args: &LoadArgs, report: &Report) -> ExitCode {
    let mut all_hold = true;
    for objective in &args.asserts {
        let outcome = objective.judge(report);
        all_hold &= outcome.holds;
        let word = if outcome.holds { "holds" } else { "DOES NOT HOLD" };
        eprintln!("assert {objective}: {word}, measured {}", outcome.measured);
    }
    match (args.asserts.is_empty(), all_hold) {
        (true, _) if report.total.succeeded == report.total.requests() => ExitCode::SUCCESS,
        (true, _) => ExitCode::from(exit::FAILED_REQUESTS),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::from(exit::DOES_NOT_HOLD),
    }
}
