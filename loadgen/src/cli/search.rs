//! `--until`: the highest rate that keeps an objective.

use std::path::Path;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use ringmesh_loadgen::arrival::{Arrivals, Rate};
use ringmesh_loadgen::load;
use ringmesh_loadgen::objective::Objective;
use ringmesh_loadgen::report::{Bottleneck, Report};
use ringmesh_loadgen::search::{Found, Search};
use ringmesh_loadgen::unit;
use serde_json::{Value, json};

use super::load::{drive, save};
use super::screen::Screen;
use super::{exit, say};

/// How long each rate is tried when nothing says otherwise.
const DEFAULT_LENGTH: Duration = Duration::from_secs(5);

/// Share of a rate that must be reached for it to have been kept.
const KEPT_SHARE: f64 = 0.98;

#[derive(Args)]
#[command(next_help_heading = "Search")]
pub(crate) struct SearchArgs {
    /// Search for the highest rate that keeps this, such as 'p99<5ms'; may be given several times. Each rate is tried for
    /// --duration (5s if not given)
    #[arg(long, value_name = "OBJECTIVE", conflicts_with_all = ["closed", "rate", "steps"])]
    pub(crate) until: Vec<Objective>,
    /// The lowest and the highest rate that are tried
    #[arg(long, value_name = "FROM..TO", default_value = "100..1M", requires = "until")]
    between: Range,
    /// How long the search takes at most
    #[arg(long, value_parser = unit::duration, default_value = "2m", requires = "until")]
    at_most: Duration,
}

/// A lowest and a highest rate.
#[derive(Clone, Copy)]
struct Range {
    from: f64,
    to: f64,
}

impl FromStr for Range {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no range of rates; write one such as 100..20k");
        let rate = |text: &str| {
            let rate: Rate = text.parse().map_err(|_| wrong())?;
            rate.is_constant().ok_or_else(wrong)
        };
        let (from, to) = text.split_once("..").ok_or_else(wrong)?;
        let (from, to) = (rate(from)?, rate(to)?);
        if from <= to { Ok(Self { from, to }) } else { Err(wrong()) }
    }
}

/// A search that is to be made.
pub(crate) struct Task<'a> {
    pub(crate) args: &'a SearchArgs,
    pub(crate) settings: load::Settings,
    pub(crate) length: Option<Duration>,
    pub(crate) json: bool,
    pub(crate) save: Option<&'a Path>,
}

/// One rate that was tried.
struct Try {
    rate: f64,
    report: Report,
    /// Why it does not hold.
    broken: Vec<String>,
}

impl Task<'_> {
    pub(crate) fn run(&self, stopped: &AtomicBool, screen: &mut Screen) -> anyhow::Result<ExitCode> {
        let end = Instant::now() + self.args.at_most;
        let length = self.length.unwrap_or(DEFAULT_LENGTH);
        let mut search = Search::new(self.args.between.from, self.args.between.to);
        let mut tries = Vec::new();
        let mut ended = "";
        while let Some(rate) = search.next() {
            if Instant::now() + length > end {
                ended = "the time is over (--at-most)";
                break;
            }
            let settings = load::Settings {
                arrivals: match &self.settings.arrivals {
                    Arrivals::Open { spacing, .. } => Arrivals::Open { rate: Rate::constant(rate), spacing: *spacing },
                    Arrivals::Closed => Arrivals::constant(rate),
                },
                duration: Some(length),
                requests: None,
                ..self.settings.clone()
            };
            let report = drive(settings, stopped, screen)?;
            screen.clear();
            if stopped.load(Ordering::Relaxed) {
                ended = "stopped";
                break;
            }
            let one = Try { rate, broken: self.broken(rate, length, &report), report };
            search.tell(rate, one.broken.is_empty());
            if !self.json {
                say(line(&one));
            }
            tries.push(one);
        }
        let found = search.found();
        match self.json {
            true => say(self.to_json(found, &tries, ended)),
            false => self.print(found, &tries, ended),
        }
        // After printing, as a load does.
        if let Some(file) = self.save {
            save(file, &self.to_json(found, &tries, ended))?;
        }
        Ok(if found.held.is_some() { ExitCode::SUCCESS } else { ExitCode::from(exit::DOES_NOT_HOLD) })
    }

    /// Which objectives a result breaks; the rate itself is one.
    fn broken(&self, rate: f64, length: Duration, report: &Report) -> Vec<String> {
        let mut broken = Vec::new();
        // Answers that come late are late answers, not a lower rate.
        let reached = report.total.requests() as f64 / length.as_secs_f64();
        if reached < rate * KEPT_SHARE {
            broken.push(format!("only {reached:.0}/s ended"));
        }
        for objective in &self.args.until {
            let outcome = objective.judge(report);
            if !outcome.holds {
                broken.push(format!("{objective}: measured {}", outcome.measured));
            }
        }
        broken
    }

    fn print(&self, found: Found, tries: &[Try], ended: &str) {
        let objectives: Vec<_> = self.args.until.iter().map(Objective::to_string).collect();
        let objectives = objectives.join(" and ");
        say("");
        match (found.held, found.broke) {
            (Some(held), Some(broke)) => {
                say(format_args!("highest rate that keeps {objectives}: {held:.0}/s ({broke:.0}/s does not)"));
            }
            (Some(held), None) => say(format_args!("{objectives} holds up to {held:.0}/s at least")),
            (None, Some(broke)) => say(format_args!("{objectives} does not hold even at {broke:.0}/s")),
            (None, None) => say("nothing was measured"),
        }
        if !ended.is_empty() {
            say(format_args!("the search is not complete: {ended}"));
        }
        if let Some(bottleneck) = bottleneck(tries) {
            say(format_args!("warning: the generator was the bottleneck where it did not hold: {bottleneck}"));
        }
    }

    fn to_json(&self, found: Found, tries: &[Try], ended: &str) -> Value {
        let one = |one: &Try| {
            let mut result = one.report.to_json();
            // The search is about the figures; what `compare` needs makes it long.
            if let Some(object) = result.as_object_mut() {
                object.remove("slices");
            }
            json!({ "rate": one.rate, "holds": one.broken.is_empty(), "broken": one.broken, "result": result })
        };
        json!({
            "schema": "ringmesh-load-search",
            "schema_version": 1,
            "until": self.args.until.iter().map(Objective::to_string).collect::<Vec<_>>(),
            "held": found.held,
            "broke": found.broke,
            "complete": ended.is_empty(),
            "generator_was_bottleneck": bottleneck(tries).is_some(),
            "tries": tries.iter().map(one).collect::<Vec<_>>(),
        })
    }
}

/// How the generator limited a try that did not hold, if it did.
fn bottleneck(tries: &[Try]) -> Option<Bottleneck> {
    tries.iter().filter(|one| !one.broken.is_empty()).find_map(|one| one.report.bottleneck())
}

fn line(one: &Try) -> String {
    let total = &one.report.total;
    format!(
        "{:>9.0}/s  p50 {:>8}  p99 {:>8}  errors {}  {}",
        one.rate,
        unit::show_duration(total.quantile(0.5)),
        unit::show_duration(total.quantile(0.99)),
        total.requests() - total.succeeded,
        if one.broken.is_empty() { "holds".to_owned() } else { format!("does not hold: {}", one.broken.join("; ")) },
    )
}
