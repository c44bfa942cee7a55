//! `ringmesh demo`: a meshed shop from one command.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use ringmesh_loadgen::{Driver, unit};

use crate::demo::{self, DEFAULT_RATE, Keep, Options, Show};

const AFTER_HELP: &str = "\
Four services with a sidecar each: web calls checkout, checkout calls payments, of which there are two versions.
Every hop between sidecars is mutual TLS; 90 of 100 payments go to v1, 10 to v2; only checkout may call payments.

Without --duration it runs until Ctrl-C, shows a live table, and tells three things to try.

Examples:
  ringmesh demo
  ringmesh demo --duration 10s
  ringmesh demo --duration 10s --json
  ringmesh demo --dir /tmp/shop --rate 1000

Exit codes (with --duration):
  0  every request was answered, every hop mutually authenticated, every plain connection and forbidden call refused
  1  something of that was not so, or the shop did not come up; standard error says what";

/// Runs a small shop whose services talk only through Ringmesh
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// Ends after this time, such as 10s, and prints a summary
    #[arg(long, value_name = "TIME", value_parser = unit::duration)]
    duration: Option<Duration>,
    /// Prints the summary as one JSON object, and nothing else
    #[arg(long, requires = "duration")]
    json: bool,
    /// Requests a second at the shop's front door
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RATE, value_parser = rate)]
    rate: f64,
    /// I/O driver of all parts
    #[arg(long, value_enum, default_value = "auto")]
    driver: Driver,
    /// Keeps the files that the demo makes
    #[arg(long)]
    keep: bool,
    /// Makes its files in this folder, which must be empty or missing, and keeps them [default: a new one in the folder
    /// for temporary files]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn run(arguments: Args) -> anyhow::Result<()> {
    let attended = arguments.duration.is_none();
    let summary = demo::run(&Options {
        duration: arguments.duration,
        rate: arguments.rate,
        driver: arguments.driver,
        directory: arguments.dir,
        keep: if arguments.keep { Keep::Always } else { Keep::OnFailure },
        show: if arguments.json { Show::Nothing } else { Show::Live },
    })?;
    let text = if arguments.json { summary.to_json().to_string() } else { summary.to_string() };
    super::print(&format!("{text}\n")).map_err(plain)?;
    let problems = summary.problems().join("\n  ");
    match (problems.as_str(), attended) {
        ("", _) => Ok(()),
        // Whoever tries what happens has made it happen.
        (_, true) => super::print(&format!("\nnot as it was at the start:\n  {problems}\n")).map_err(plain),
        (_, false) => bail!("the demo was not as it must be:\n  {problems}"),
    }
}

fn plain(failure: super::Failure) -> anyhow::Error {
    anyhow::anyhow!("{failure}")
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(rate) if (1.0..=100_000.0).contains(&rate) => Ok(rate),
        _ => Err("a rate lies between 1 and 100000 requests a second".to_owned()),
    }
}
