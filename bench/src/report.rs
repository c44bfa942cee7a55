//! What is left of a run: a table for people, records for machines, and the raw observations.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::machine::Machine;
use crate::scenario::{self, Kind};
use crate::side_by_side::Outcome;
use crate::statistics::{self, Interval};
use crate::turn::{Lengths, Observation};

/// Whom all others are compared with.
pub const REFERENCE: &str = "haproxy";

/// Share of its core taken by others from which on a figure is called noisy.
const NOISY_FROM: f64 = 0.05;

/// One contender in one scenario: medians over the rounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The scenario's name.
    pub scenario: String,
    /// The contender's name.
    pub proxy: String,
    /// Its version.
    pub version: String,
    /// The folder of `bench/results` with the raw observations.
    pub run: String,
    /// Rounds that count.
    pub rounds: usize,
    /// Whether others used the contender's core meanwhile: then only the order can be trusted.
    pub noisy: bool,
    /// What an operation is.
    pub operation: String,
    /// CPU time of all its processes for an operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_op: Option<f64>,
    /// Width of the middle half of the rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_us_spread: Option<f64>,
    /// CPU time as a ratio to the reference's in the same rounds, with its 95 % bootstrap interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<Interval>,
    /// Operations that a second of one core's time is enough for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_core: Option<f64>,
    /// Operations a second as measured; load and service, on one core together, may be what limits them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ops_per_s: Option<f64>,
    /// Latency that half of the operations kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p50_us: Option<u64>,
    /// Latency that 99 % kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p99_us: Option<u64>,
    /// Latency that 99.9 % kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p999_us: Option<u64>,
    /// Resident memory of all its processes.
    pub rss_kib: u64,
    /// The same, with what is shared divided among those who share it.
    pub pss_kib: u64,
    /// Wake-ups a second while idle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_ups_per_s: Option<f64>,
    /// Memory that an idle connection adds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kib_per_connection: Option<f64>,
}

/// The records of a scenario.
pub fn records(outcome: &Outcome, machine: &Machine) -> Vec<Record> {
    let mut by_proxy: BTreeMap<&str, Vec<&Observation>> = BTreeMap::new();
    for seen in &outcome.observations {
        by_proxy.entry(&seen.proxy).or_default().push(seen);
    }
    let reference: BTreeMap<usize, f64> = by_proxy
        .get(REFERENCE)
        .into_iter()
        .flatten()
        .filter_map(|seen| Some((seen.round, seen.cpu_us_per_op?)))
        .collect();
    let record = |(proxy, version): &(String, String)| {
        let seen = by_proxy.get(proxy.as_str())?;
        let of =
            |value: fn(&Observation) -> Option<f64>| -> Vec<f64> { seen.iter().filter_map(|one| value(one)).collect() };
        let median = |value: fn(&Observation) -> Option<f64>| statistics::median(&of(value));
        let ratios: Vec<f64> =
            seen.iter().filter_map(|one| Some(one.cpu_us_per_op? / reference.get(&one.round)?)).collect();
        let cpu = median(|one| one.cpu_us_per_op);
        let foreign = median(|one| Some(one.foreign_share)).unwrap_or(0.0);
        let whole = |value: Option<f64>| value.map(|value| value.round() as u64);
        let has_operations = outcome.scenario.load.kind != Kind::Idle;
        Some(Record {
            scenario: outcome.scenario.name.clone(),
            proxy: proxy.clone(),
            version: version.clone(),
            run: folder_name(machine),
            rounds: seen.len(),
            noisy: cpu.is_some() && foreign > NOISY_FROM,
            operation: outcome.scenario.load.kind.operation().to_owned(),
            cpu_us_per_op: cpu,
            cpu_us_spread: statistics::spread(&of(|one| one.cpu_us_per_op)),
            cpu_ratio: statistics::bootstrap(&ratios),
            ops_per_core: cpu.filter(|cpu| *cpu > 0.0).map(|cpu| 1e6 / cpu),
            ops_per_s: if has_operations { median(|one| Some(one.ops_per_s)) } else { None },
            p50_us: whole(median(|one| one.p50_us.map(|value| value as f64))),
            p99_us: whole(median(|one| one.p99_us.map(|value| value as f64))),
            p999_us: whole(median(|one| one.p999_us.map(|value| value as f64))),
            rss_kib: whole(median(|one| Some(one.rss_kib as f64))).unwrap_or(0),
            pss_kib: whole(median(|one| Some(one.pss_kib as f64))).unwrap_or(0),
            wake_ups_per_s: median(|one| one.wake_ups_per_s),
            kib_per_connection: median(|one| one.kib_per_connection),
        })
    };
    outcome.versions.iter().filter_map(record).collect()
}

/// A Markdown table of a scenario's records.
pub fn table(outcome: &Outcome, records: &[Record]) -> String {
    let scenario = &outcome.scenario;
    let mut text = format!("### {}\n\n{}\n\n", scenario.name, scenario.question);
    let is_idle = scenario.load.kind == Kind::Idle;
    let header: &[&str] = if is_idle {
        &["", "PSS, MiB", "wake-ups/s", "KiB per idle connection", "rounds"]
    } else {
        &[
            "",
            "CPU µs",
            "spread",
            "ratio to HAProxy (95 %)",
            "per core and s",
            "per s",
            "p50 µs",
            "p99 µs",
            "PSS, MiB",
            "rounds",
        ]
    };
    let _ = writeln!(text, "| {} |", header.join(" | "));
    let _ = writeln!(text, "|---{}|", "|---:".repeat(header.len() - 1));
    for record in records {
        let name = format!("{} {}{}", record.proxy, record.version, if record.noisy { " (noisy)" } else { "" });
        let memory = if record.pss_kib == 0 { String::new() } else { format!("{:.1}", record.pss_kib as f64 / 1024.0) };
        let cells = if is_idle {
            vec![
                name,
                memory,
                show(record.wake_ups_per_s, 1),
                show(record.kib_per_connection, 1),
                record.rounds.to_string(),
            ]
        } else {
            vec![
                name,
                show(record.cpu_us_per_op, 2),
                show(record.cpu_us_spread, 2),
                record.cpu_ratio.filter(|_| record.proxy != REFERENCE).map_or_else(String::new, show_interval),
                show(record.ops_per_core, 0),
                show(record.ops_per_s, 0),
                record.p50_us.map_or_else(String::new, |value| value.to_string()),
                record.p99_us.map_or_else(String::new, |value| value.to_string()),
                memory,
                record.rounds.to_string(),
            ]
        };
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    }
    for failure in &outcome.failures {
        let _ = writeln!(text, "\nFailed: {}", failure.lines().next().unwrap_or_default());
    }
    text
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
}

fn show_interval(interval: Interval) -> String {
    format!("{:.2} ({:.2} to {:.2})", interval.median, interval.low, interval.high)
}

/// The folder of a run, by day and commit.
pub fn folder_name(machine: &Machine) -> String {
    let modified = if machine.modified { "-modified" } else { "" };
    format!("{}-{}{modified}", machine.date, machine.commit)
}

/// Where runs are kept.
pub fn results() -> PathBuf {
    scenario::folder().join("results")
}

/// Writes a scenario's raw observations into the folder of the run, and puts its records into `latest.json` in place of
/// those of earlier runs of the same scenario.
///
/// # Errors
/// If the files cannot be written, or `latest.json` is of another version.
pub fn save(
    results: &Path,
    outcome: &Outcome,
    records: &[Record],
    machine: &Machine,
    lengths: Lengths,
) -> anyhow::Result<()> {
    let folder = results.join(folder_name(machine));
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let raw = json!({
        "machine": machine,
        "question": outcome.scenario.question,
        "lengths": { "warm_up_ms": lengths.warm_up.as_millis() as u64, "measured_ms": lengths.measured.as_millis() as u64 },
        "versions": outcome.versions.iter().cloned().collect::<BTreeMap<_, _>>(),
        "records": records,
        "observations": outcome.observations,
        "failures": outcome.failures,
    });
    write(&folder.join(format!("{}.json", outcome.scenario.name)), &raw)?;
    fs::write(folder.join(format!("{}.md", outcome.scenario.name)), table(outcome, records))?;

    let latest = results.join("latest.json");
    let mut all: Vec<Record> = match fs::read(&latest) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is of another version: move it away", latest.display()))?,
        Err(_) => Vec::new(),
    };
    all.retain(|record| record.scenario != outcome.scenario.name);
    all.extend(records.iter().cloned());
    all.sort_by(|a, b| a.scenario.cmp(&b.scenario));
    write(&latest, &serde_json::to_value(&all)?)
}

fn write(file: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Load, Scenario};
    use std::time::Duration;

    fn outcome(name: &str) -> Outcome {
        let seen = |proxy: &str, round, cpu: Option<f64>| Observation {
            proxy: proxy.to_owned(),
            round,
            cpu_us_per_op: cpu,
            ops_per_s: 1000.0,
            operations: 1000.0,
            p50_us: Some(100),
            p99_us: Some(200 + round as u64),
            ..Observation::default()
        };
        let rounds = (0..5).flat_map(|round| {
            let drift = 1.0 + round as f64;
            [
                seen("ringmesh", round, Some(8.0 * drift)),
                seen("haproxy", round, Some(10.0 * drift)),
                seen("direct", round, None),
            ]
        });
        let load = Load { kind: Kind::Http, connections: 1, body_bytes: 0, rate: None, workers: 1 };
        Outcome {
            scenario: Scenario { name: name.to_owned(), question: "?".to_owned(), load, contenders: Vec::new() },
            versions: ["ringmesh", "haproxy", "direct"].map(|proxy| (proxy.to_owned(), "1".to_owned())).to_vec(),
            observations: rounds.collect(),
            failures: Vec::new(),
        }
    }

    fn machine() -> Machine {
        let text = String::new;
        Machine {
            cpu: text(),
            cores: 2,
            kernel: text(),
            libc: text(),
            rustc: text(),
            commit: "abc".to_owned(),
            modified: false,
            date: "2000-01-01".to_owned(),
            load_average: 0.0,
        }
    }

    #[test]
    fn a_ratio_is_taken_round_by_round_so_that_drift_cancels() {
        let records = records(&outcome("a"), &machine());
        let ratio = records[0].cpu_ratio.unwrap();
        assert!([ratio.median, ratio.low, ratio.high].iter().all(|value| (value - 0.8).abs() < 1e-9), "{ratio:?}");
        assert_eq!(records[0].cpu_us_per_op, Some(24.0));
        assert_eq!((records[0].p99_us, records[0].rounds), (Some(202), 5));
        assert_eq!((records[2].cpu_us_per_op, records[2].cpu_ratio), (None, None));
    }

    #[test]
    fn another_run_replaces_its_own_scenario_in_the_latest_records_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let lengths = Lengths { warm_up: Duration::ZERO, measured: Duration::from_secs(1) };
        let machine = machine();
        for name in ["a", "b", "a"] {
            let outcome = outcome(name);
            save(folder.path(), &outcome, &records(&outcome, &machine), &machine, lengths).unwrap();
        }
        let text = fs::read(folder.path().join("latest.json")).unwrap();
        let latest: Vec<Record> = serde_json::from_slice(&text).unwrap();
        let scenarios: Vec<&str> = latest.iter().map(|record| record.scenario.as_str()).collect();
        assert_eq!(scenarios, ["a", "a", "a", "b", "b", "b"]);
        assert!(folder.path().join("2000-01-01-abc/a.json").is_file());
    }

    #[test]
    fn the_table_has_a_line_for_each_contender() {
        let outcome = outcome("a");
        let table = table(&outcome, &records(&outcome, &machine()));
        assert!(table.contains("| ringmesh 1 | 24.00 |") && table.contains("0.80 (0.80 to 0.80)"), "{table}");
        assert!(table.contains("| direct 1 |  |"), "{table}");
    }
}
