//! How many instructions a whole request takes in user space, and where: callgrind counts them, so that noise plays no part.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::programs::{self, Build};
use crate::scenario;

/// Requests of the shorter and the longer run: the difference is free of start and end.
const REQUESTS: (u64, u64) = (500, 1500);

/// By how much a count may exceed the baseline.
const TOLERANCE: f64 = 0.02;

/// Instructions of one request by where they are.
pub type Shares = BTreeMap<String, f64>;

/// What the counts are compared with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Baseline {
    /// Why it was last moved.
    pub why: String,
    /// Counts hold for one kind of processor, as libraries choose their code by it,
    pub cpu: String,
    /// for one C library
    pub libc: String,
    /// and for one compiler.
    pub rustc: String,
    /// Instructions of a request in a worker.
    pub request: f64,
    /// Where they are.
    pub shares: Shares,
}

/// Counts a request's instructions in a worker: client and service not included.
///
/// # Errors
/// If valgrind is missing or fails.
pub fn count(build: &Build) -> anyhow::Result<Shares> {
    let folder = tempfile::tempdir()?;
    let one = |between: &str| -> anyhow::Result<Shares> {
        let run = |requests| by_place(&callgrind(build, between, requests, folder.path())?);
        let (few, many) = (run(REQUESTS.0)?, run(REQUESTS.1)?);
        Ok(difference(&many, &few).into_iter().map(|(place, cost)| (place, cost / requests_between())).collect())
    };
    let mut shares = difference(&one("proxy")?, &one("nothing")?);
    shares.retain(|_, cost| cost.abs() >= 1.0);
    Ok(shares)
}

fn requests_between() -> f64 {
    (REQUESTS.1 - REQUESTS.0) as f64
}

fn callgrind(build: &Build, between: &str, requests: u64, folder: &Path) -> anyhow::Result<String> {
    let file = folder.join(format!("{between}-{requests}"));
    let output = Command::new(programs::of_system("valgrind")?)
        .args(["--tool=callgrind", "--quiet", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(build.program("ringmesh-bench-request"))
        .args([between, &requests.to_string()])
        .output()?;
    if !output.status.success() {
        bail!("valgrind has failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::read_to_string(&file).with_context(|| format!("valgrind has left no {}", file.display()))
}

/// Adds up the self cost by stage, crate or library.
fn by_place(text: &str) -> anyhow::Result<Shares> {
    let mut shares = Shares::new();
    let (mut file, mut function, mut object, mut is_call) = (String::new(), String::new(), String::new(), false);
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=') {
            match key {
                "fl" | "fi" | "fe" => value.clone_into(&mut file),
                "fn" => value.clone_into(&mut function),
                "ob" => value.clone_into(&mut object),
                // The line after it is what the callee costs, which is counted there.
                "calls" => is_call = true,
                _ => {}
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let (Some(place), Some(cost), None) = (words.next(), words.next(), words.next()) else { continue };
        if !place.starts_with(|first: char| first.is_ascii_digit()) {
            continue;
        }
        let cost: f64 = cost.parse().with_context(|| format!("callgrind has written `{line}`"))?;
        if !std::mem::take(&mut is_call) {
            *shares.entry(place_of(&file, &function, &object)).or_default() += cost;
        }
    }
    if shares.is_empty() {
        bail!("callgrind has counted nothing");
    }
    Ok(shares)
}

/// Where an instruction belongs: inlined code of ours to the file it was written in, that of the standard library to the
/// function that it was inlined into.
fn place_of(file: &str, function: &str, object: &str) -> String {
    let after = |text: &str, word: &str| text.split_once(word).map(|(_, rest)| rest.to_owned());
    let word = |rest: String| rest.split(['/', ':', '.']).next().unwrap_or_default().to_owned();
    if let Some(rest) = after(file, "dataplane/ring/src/") {
        return in_ring(&word(rest));
    }
    if after(file, "dataplane/codec/src/").is_some() {
        return "codec".to_owned();
    }
    if let Some(rest) = after(file, "dataplane/src/") {
        return word(rest);
    }
    if after(file, "bench/src/").is_some() {
        return "client and service".to_owned();
    }
    if let Some(rest) = after(file, "/registry/src/") {
        let name = rest.split('/').nth(1).unwrap_or("crates");
        return name.rsplit_once('-').map_or(name, |(name, _version)| name).to_owned();
    }
    if let Some(rest) = after(function, "ringmesh_ring::") {
        return in_ring(&word(rest));
    }
    if after(function, "ringmesh_codec::").is_some() {
        return "codec".to_owned();
    }
    if let Some(rest) = after(function, "ringmesh_dataplane::") {
        return word(rest);
    }
    if after(function, "ringmesh_bench::").is_some() {
        return "client and service".to_owned();
    }
    if function.starts_with("httparse::") {
        return "httparse".to_owned();
    }
    match object.rsplit('/').next() {
        Some(name) if name.starts_with("libc") => "libc".to_owned(),
        _ => "std".to_owned(),
    }
}

fn in_ring(module: &str) -> String {
    match module {
        "memory" => "ring: memory, in place of a kernel".to_owned(),
        module => format!("ring: {module}"),
    }
}

fn difference(more: &Shares, less: &Shares) -> Shares {
    let mut difference = more.clone();
    for (place, cost) in less {
        *difference.entry(place.clone()).or_default() -= cost;
    }
    difference
}

/// The counts, the largest first.
pub fn table(shares: &Shares) -> String {
    let total: f64 = shares.values().sum();
    let mut sorted: Vec<_> = shares.iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(a.1));
    let mut text = format!("{total:>8.0}  instructions a request\n");
    for (place, cost) in sorted {
        let _ = writeln!(text, "{cost:>8.0}  {:>4.1} %  {place}", cost / total * 100.0);
    }
    text
}

/// Where the baseline is.
pub fn baseline_file() -> PathBuf {
    scenario::folder().join("baseline.json")
}

/// Makes these counts the baseline, for the reason `why`.
///
/// # Errors
/// If it cannot be written.
pub fn move_baseline(shares: &Shares, machine: &Machine, why: &str) -> anyhow::Result<()> {
    let round = |cost: f64| cost.round();
    let baseline = Baseline {
        why: why.to_owned(),
        cpu: machine.cpu.clone(),
        libc: machine.libc.clone(),
        rustc: machine.rustc.clone(),
        request: round(shares.values().sum()),
        shares: shares.iter().map(|(place, cost)| (place.clone(), round(*cost))).collect(),
    };
    fs::write(baseline_file(), serde_json::to_string_pretty(&baseline)? + "\n")?;
    Ok(())
}

/// How counts stand to the baseline.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Within the tolerance, by this ratio.
    Kept(f64),
    /// Above it.
    Exceeded(f64),
    /// It says nothing about this machine.
    Foreign(String),
}

/// Compares counts with the baseline.
///
/// # Errors
/// If there is none.
pub fn compare(shares: &Shares, machine: &Machine) -> anyhow::Result<Verdict> {
    let file = baseline_file();
    let text = fs::read(&file).with_context(|| format!("there is no {}", file.display()))?;
    Ok(judge(shares.values().sum(), &serde_json::from_slice(&text)?, machine))
}

fn judge(request: f64, baseline: &Baseline, machine: &Machine) -> Verdict {
    let ours = [&machine.cpu, &machine.libc, &machine.rustc];
    let theirs = [&baseline.cpu, &baseline.libc, &baseline.rustc];
    if let Some((ours, theirs)) = ours.into_iter().zip(theirs).find(|(ours, theirs)| ours != theirs) {
        return Verdict::Foreign(format!("it was made on {theirs}, this is {ours}"));
    }
    match request / baseline.request {
        ratio if ratio > 1.0 + TOLERANCE => Verdict::Exceeded(ratio),
        ratio => Verdict::Kept(ratio),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_cost_is_added_up_by_stage_and_calls_are_not() {
        let text = "events: Ir

ob=/x/request
fl=/work/dataplane/src/route/mod.rs
fn=<ringmesh_dataplane::route::Table>::find
10 5
fi=/rustc/abc/library/core/src/slice.rs
20 7
fe=/work/dataplane/src/route/mod.rs
cfn=other
calls=3 0
11 900
12 1
fl=/rustc/abc/library/core/src/str.rs
fn=core::str::from_utf8
1 3
fl=/root/.cargo/registry/src/index/httparse-1.10.1/src/lib.rs
fn=httparse::parse
1 2
ob=/lib/libc.so.6
fl=???
fn=memcpy
0 40
totals: 958
";
        let expected = [("httparse", 2.0), ("libc", 40.0), ("route", 13.0), ("std", 3.0)];
        assert_eq!(by_place(text).unwrap(), expected.map(|(place, cost)| (place.to_owned(), cost)).into());
    }

    #[test]
    fn a_count_is_judged_by_a_baseline_of_the_same_machine_alone() {
        let text = |text: &str| text.to_owned();
        let mut machine = Machine::here();
        let baseline = Baseline {
            why: text("first"),
            cpu: machine.cpu.clone(),
            libc: machine.libc.clone(),
            rustc: machine.rustc.clone(),
            request: 1000.0,
            shares: Shares::new(),
        };
        assert!(matches!(judge(1019.0, &baseline, &machine), Verdict::Kept(_)));
        assert!(matches!(judge(1021.0, &baseline, &machine), Verdict::Exceeded(_)));
        machine.cpu = text("another one");
        assert!(matches!(judge(1021.0, &baseline, &machine), Verdict::Foreign(_)));
    }
}
