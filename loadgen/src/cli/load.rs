//! What all loads have in common: how much, how long, and what is shown.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, Exchange, Protocol};
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::unit;

use super::target::Place;
use super::{RuntimeArgs, TICK, on_signal};

#[derive(Args)]
pub(crate) struct LoadArgs {
    /// Requests a second over all connections (open loop)
    #[arg(long, short, default_value_t = 1000.0, conflicts_with = "closed")]
    rate: f64,
    /// Each connection sends its next request when it has its answer
    #[arg(long)]
    closed: bool,
    /// Connections
    #[arg(long, short, default_value_t = 10)]
    connections: usize,
    /// How long no less than the last request is sent, such as 10s
    #[arg(long, short, value_parser = unit::duration, default_value = "10s")]
    duration: Duration,
    /// Ends after so many requests, if that is sooner
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// How long a request may take
    #[arg(long, value_parser = unit::duration, default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &LoadArgs, place: Place, protocol: Protocol) -> anyhow::Result<ExitCode> {
    let closed = args.closed || matches!(protocol, Protocol::Tcp(Exchange::Upload { .. }));
    let settings = load::Settings {
        targets: place.targets,
        tls: place.tls,
        proxy_header: place.proxy_header,
        protocol,
        connections: args.connections,
        arrivals: if closed { Arrivals::Closed } else { Arrivals::Constant { per_second: args.rate } },
        duration: Some(args.duration),
        requests: args.requests,
        timeout: args.timeout,
        threads: args.runtime.threads,
        driver: args.runtime.driver.into(),
    };
    let stopped = on_signal()?;
    let mut running = load::start(settings)?;
    let live = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    while !running.is_finished() {
        std::thread::sleep(TICK);
        if stopped.load(Ordering::Relaxed) {
            running.end();
        }
        if live && shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            show_progress(&running.progress());
        }
    }
    if live {
        eprint!("\r\x1b[K");
    }
    let report = running.wait()?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    Ok(if report.total.succeeded == report.total.requests() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_progress(report: &Report) {
    let total = &report.total;
    eprint!(
        "\r\x1b[K{:>4.0} s  {} requests  {:.0}/s  {} failed  {} cut  p99 {}",
        report.elapsed.as_secs_f64(),
        total.requests(),
        report.rate(),
        total.failed(),
        total.cut(),
        unit::show_duration(total.quantile(0.99)),
    );
    // Nobody looks when standard error is gone.
    let _gone = std::io::stderr().flush();
}
