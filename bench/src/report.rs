//! What is left of a run: a table for people, records for machines, and the raw observations.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::machine::Machine;
use crate::plot;
use crate::scenario;
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
    /// CPU time as a ratio to HAProxy's in the same rounds, with its 95 % bootstrap interval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_ratio: Option<Interval>,
    /// Ringmesh's CPU time as a ratio to this one's in the same rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringmesh_cpu_ratio: Option<Interval>,
    /// Ringmesh's 99th percentile as a ratio to this one's in the same rounds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ringmesh_p99_ratio: Option<Interval>,
    /// What it cannot do yet: then there are no figures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacks: Option<String>,
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
    /// What the clients' TLS handshakes agreed on: key exchange group and cipher suite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_parameters: Option<String>,
    /// From its start to the first operation that came through, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_ms: Option<f64>,
    /// Resident memory before the load, with what is shared divided among those who share it.
    #[serde(default)]
    pub start_pss_kib: u64,
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
    /// The kernel's memory that it adds, for both of its ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_kib_per_connection: Option<f64>,
    /// The busiest worker's time on CPU over the mean of all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heaviest_over_mean: Option<f64>,
}

/// Whose ratios to the others are shown.
pub const OURS: &str = "ringmesh";

/// The records of a scenario.
pub fn records(outcome: &Outcome, machine: &Machine) -> Vec<Record> {
    let mut by_proxy: BTreeMap<&str, Vec<&Observation>> = BTreeMap::new();
    for seen in &outcome.observations {
        by_proxy.entry(&seen.proxy).or_default().push(seen);
    }
    let all_of = |proxy: &str| by_proxy.get(proxy).map_or(&[][..], Vec::as_slice);
    let record = |(proxy, version): &(String, String)| {
        let head = Record {
            scenario: outcome.scenario.name.clone(),
            proxy: proxy.clone(),
            version: version.clone(),
            run: folder_name(machine),
            operation: outcome.scenario.load.kind.operation().to_owned(),
            ..Record::default()
        };
        let contender = outcome.scenario.contenders.iter().find(|contender| contender.proxy == *proxy);
        if let Some(lacks) = contender.and_then(|contender| contender.lacks.clone()) {
            return Some(Record { lacks: Some(lacks), ..head });
        }
        let seen = all_of(proxy);
        let mut record = (!seen.is_empty()).then(|| figures(head, seen, all_of(REFERENCE), all_of(OURS)))?;
        // In a closed loop latency is but the throughput, told in another way.
        if outcome.scenario.load.rate.is_none() {
            record.ringmesh_p99_ratio = None;
        }
        Some(record)
    };
    outcome.versions.iter().filter_map(record).collect()
}

/// A record with what was seen of it.
fn figures(head: Record, seen: &[&Observation], reference: &[&Observation], ours: &[&Observation]) -> Record {
    let of =
        |value: fn(&Observation) -> Option<f64>| -> Vec<f64> { seen.iter().filter_map(|one| value(one)).collect() };
    let median = |value: fn(&Observation) -> Option<f64>| statistics::median(&of(value));
    let whole = |value: Option<f64>| value.map(|value| value.round() as u64);
    let cpu = median(|one| one.cpu_us_per_op);
    let cpu_of = |one: &Observation| one.cpu_us_per_op;
    let p99_of = |one: &Observation| one.p99_us.map(|value| value as f64);
    let others = head.proxy != OURS;
    let is_somebody = cpu.is_some();
    Record {
        rounds: seen.len(),
        noisy: is_somebody && median(|one| Some(one.foreign_share)).unwrap_or(0.0) > NOISY_FROM,
        cpu_us_per_op: cpu,
        cpu_us_spread: statistics::spread(&of(cpu_of)),
        cpu_ratio: statistics::bootstrap(&paired(seen, reference, cpu_of)),
        ringmesh_cpu_ratio: if others { statistics::bootstrap(&paired(ours, seen, cpu_of)) } else { None },
        ringmesh_p99_ratio: if others { statistics::bootstrap(&paired(ours, seen, p99_of)) } else { None },
        ops_per_core: cpu.filter(|cpu| *cpu > 0.0).map(|cpu| 1e6 / cpu),
        ops_per_s: median(|one| (one.operations > 0.0).then_some(one.ops_per_s)),
        p50_us: whole(median(|one| one.p50_us.map(|value| value as f64))),
        p99_us: whole(median(p99_of)),
        p999_us: whole(median(|one| one.p999_us.map(|value| value as f64))),
        tls_parameters: seen.iter().find_map(|one| one.tls_parameters.clone()),
        start_ms: median(|one| one.start_ms),
        start_pss_kib: whole(median(|one| Some(one.start_pss_kib as f64))).unwrap_or(0),
        rss_kib: whole(median(|one| Some(one.rss_kib as f64))).unwrap_or(0),
        pss_kib: whole(median(|one| Some(one.pss_kib as f64))).unwrap_or(0),
        wake_ups_per_s: median(|one| one.wake_ups_per_s),
        kib_per_connection: median(|one| one.kib_per_connection),
        kernel_kib_per_connection: median(|one| one.kernel_kib_per_connection),
        heaviest_over_mean: median(|one| one.heaviest_over_mean),
        ..head
    }
}

/// Ratios of what was seen of two in the same rounds: what the machine did meanwhile hit both.
fn paired(above: &[&Observation], below: &[&Observation], value: impl Fn(&Observation) -> Option<f64>) -> Vec<f64> {
    let ratio = |one: &&Observation| {
        let other = below.iter().find(|other| other.round == one.round)?;
        Some(value(one)? / value(other).filter(|value| *value > 0.0)?)
    };
    above.iter().filter_map(ratio).collect()
}

/// A Markdown table of a scenario's records.
pub fn table(outcome: &Outcome, records: &[Record]) -> String {
    let scenario = &outcome.scenario;
    let mut text = format!("### {}\n\n{}\n\n", scenario.name, scenario.question);
    let columns: Vec<&Column> =
        COLUMNS.iter().filter(|column| records.iter().any(|record| !(column.cell)(record).is_empty())).collect();
    let titles: Vec<&str> = columns.iter().map(|column| column.title).collect();
    let _ = writeln!(text, "|  | {} |", titles.join(" | "));
    let _ = writeln!(text, "|---{}|", "|---:".repeat(columns.len()));
    for record in records {
        let mut name = format!("{} {}", record.proxy, record.version).trim_end().to_owned();
        if record.noisy {
            name.push_str(" (noisy)");
        }
        if let Some(lacks) = &record.lacks {
            let _ = write!(name, " (lacks {lacks})");
        }
        let cells: Vec<String> = columns.iter().map(|column| (column.cell)(record)).collect();
        let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
    }
    for failure in &outcome.failures {
        let _ = writeln!(text, "\nFailed: {}", failure.lines().next().unwrap_or_default());
    }
    text
}

/// A column of the table; one without a single figure is left out.
struct Column {
    title: &'static str,
    cell: fn(&Record) -> String,
}

/// All columns.
const COLUMNS: &[Column] = &[
    Column { title: "CPU µs", cell: |record| show(record.cpu_us_per_op, 2) },
    Column { title: "spread", cell: |record| show(record.cpu_us_spread, 2) },
    Column { title: "Ringmesh's ratio to it (95 %)", cell: |record| show_ratio(record.ringmesh_cpu_ratio) },
    Column { title: "per core and s", cell: |record| show(record.ops_per_core, 0) },
    Column { title: "per s", cell: |record| show(record.ops_per_s, 0) },
    Column { title: "p50 µs", cell: |record| show(record.p50_us.map(|value| value as f64), 0) },
    Column { title: "p99 µs", cell: |record| show(record.p99_us.map(|value| value as f64), 0) },
    Column { title: "p99.9 µs", cell: |record| show(record.p999_us.map(|value| value as f64), 0) },
    Column { title: "Ringmesh's p99, ratio to its (95 %)", cell: |record| show_ratio(record.ringmesh_p99_ratio) },
    Column { title: "busiest worker / mean", cell: |record| show(record.heaviest_over_mean, 2) },
    Column { title: "TLS", cell: |record| record.tls_parameters.clone().unwrap_or_default() },
    Column { title: "start ms", cell: |record| show(record.start_ms, 0) },
    Column { title: "PSS at start, MiB", cell: |record| show_mib(record.start_pss_kib) },
    Column { title: "loaded, MiB", cell: |record| show_mib(record.pss_kib) },
    Column { title: "wake-ups/s", cell: |record| show(record.wake_ups_per_s, 1) },
    Column {
        title: "MiB per 1,000 idle connections",
        cell: |record| show(record.kib_per_connection.map(per_thousand), 2),
    },
    Column {
        title: "kernel's MiB for them",
        cell: |record| show(record.kernel_kib_per_connection.map(per_thousand), 1),
    },
    Column {
        title: "rounds",
        cell: |record| if record.rounds > 0 { record.rounds.to_string() } else { String::new() },
    },
];

/// From KiB for one to MiB for a thousand.
fn per_thousand(kib: f64) -> f64 {
    kib * 1000.0 / 1024.0
}

fn show_mib(kib: u64) -> String {
    if kib == 0 { String::new() } else { format!("{:.1}", kib as f64 / 1024.0) }
}

fn show(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(String::new, |value| format!("{value:.digits$}"))
}

/// Where the interval holds 1, nobody is faster.
fn show_ratio(ratio: Option<Interval>) -> String {
    ratio.map_or_else(String::new, |Interval { median, low, high }| {
        let tie = if (low..=high).contains(&1.0) { ", a tie" } else { "" };
        format!("{median:.2} ({low:.2} to {high:.2}{tie})")
    })
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
    plot::bars(&folder.join(format!("{}.svg", outcome.scenario.name)), &outcome.scenario.name, records)?;
    write_summary(&folder, machine)?;

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

/// One page of all scenarios of the run so far.
fn write_summary(folder: &Path, machine: &Machine) -> anyhow::Result<()> {
    let mut names: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<anyhow::Result<_>>()?;
    names.retain(|file| file.extension().is_some_and(|extension| extension == "md") && !file.ends_with(SUMMARY));
    names.sort();
    let mut text = format!(
        "# {} at {}{}\n\n{}, {} cores, Linux {}, {}, {}.\n",
        machine.date,
        machine.commit,
        if machine.modified { " with changes" } else { "" },
        machine.cpu,
        machine.cores,
        machine.kernel,
        machine.libc,
        machine.rustc
    );
    for file in names {
        let _ = write!(text, "\n{}", fs::read_to_string(&file)?);
        let plot = file.with_extension("svg");
        if let Some(name) = plot.file_name().filter(|_| plot.is_file()) {
            let _ = write!(text, "\n![CPU time]({})\n", name.to_string_lossy());
        }
    }
    fs::write(folder.join(SUMMARY), text)?;
    Ok(())
}

/// Its name, which is what is shown for a folder.
const SUMMARY: &str = "README.md";

fn write(file: &Path, value: &serde_json::Value) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::{Contender, Scenario};
    use std::time::Duration;

    #[derive(Deserialize)]
    struct Contenders {
        contender: Vec<Contender>,
    }

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
        let load = toml::from_str("kind = 'http'\nconnections = 1").unwrap();
        Outcome {
            scenario: Scenario {
                name: name.to_owned(),
                family: name.to_owned(),
                question: "?".to_owned(),
                in_table: true,
                load,
                contenders: toml::from_str::<Contenders>("[[contender]]\nproxy = 'envoy'\nlacks = 'a leg'")
                    .unwrap()
                    .contender,
            },
            versions: ["ringmesh", "haproxy", "direct", "envoy"]
                .map(|proxy| (proxy.to_owned(), "1".to_owned()))
                .to_vec(),
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
        assert_eq!(records[0].cpu_ratio, records[1].ringmesh_cpu_ratio);
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
        assert_eq!(scenarios, ["a", "a", "a", "a", "b", "b", "b", "b"]);
        for file in ["a.json", "a.svg"] {
            assert!(folder.path().join("2000-01-01-abc").join(file).is_file(), "{file}");
        }
        let summary = fs::read_to_string(folder.path().join("2000-01-01-abc/README.md")).unwrap();
        assert_eq!(summary.matches("### ").count(), 2, "{summary}");
    }

    #[test]
    fn the_table_has_a_line_for_each_contender() {
        let outcome = outcome("a");
        let table = table(&outcome, &records(&outcome, &machine()));
        assert!(table.contains("| ringmesh 1 | 24.00 |") && table.contains("0.80 (0.80 to 0.80)"), "{table}");
        assert!(table.contains("| direct 1 |  |"), "{table}");
        assert!(table.contains("| envoy 1 (lacks a leg) |"), "{table}");
        assert!(!table.contains("wake-ups"), "a column without a figure is left out:\n{table}");
    }

    #[test]
    fn where_the_interval_holds_1_it_is_a_tie_and_called_so() {
        let interval = |low, high| Some(Interval { median: (low + high) / 2.0, low, high });
        assert_eq!(show_ratio(interval(0.9, 1.1)), "1.00 (0.90 to 1.10, a tie)");
        assert_eq!(show_ratio(interval(0.8, 0.9)), "0.85 (0.80 to 0.90)");
    }
}
