//! Running one part of a request's path under callgrind, and reading what it has counted: noise plays no part there.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::parts::Part;
use crate::programs;

/// The program that runs one part.
pub const PROGRAM: &str = "ringmesh-bench-parts";

/// Its function that callgrind counts in.
const COUNTED: &str = "ringmesh_bench_parts::counted*";

/// The functions that return memory: Rust's, behind which the product keeps small blocks, and the C library's.
const ALLOCATING: [&str; 9] = [
    "__rustc::__rust_alloc",
    "__rustc::__rust_alloc_zeroed",
    "__rustc::__rust_realloc",
    "malloc",
    "calloc",
    "realloc",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
];

/// What they are made of in Rust.
const BEHIND: [&str; 3] = ["__rustc::__rg_", "__rustc::__rdl_", "ringmesh_ring::heap::"];

/// Instructions by where they are.
pub type Shares = BTreeMap<String, f64>;

/// What running something once takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Instructions in user space.
    pub instructions: f64,
    /// Calls that return memory, reallocations among them.
    pub allocations: f64,
}

/// What a part takes, and where.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Calls that return memory.
    pub allocations: f64,
    /// Instructions by stage, crate or library.
    pub shares: Shares,
    /// Instructions of the network in memory, which is there in place of a kernel: the product has none of them.
    pub stand_in: f64,
}

impl Profile {
    /// Without the places, and without what is there in place of a kernel.
    pub fn cost(&self) -> Cost {
        Cost { instructions: self.shares.values().sum(), allocations: self.allocations }
    }

    /// What is left without `other`.
    pub fn without(mut self, other: &Self) -> Self {
        self.allocations -= other.allocations;
        self.stand_in -= other.stand_in;
        for (place, cost) in &other.shares {
            *self.shares.entry(place.clone()).or_default() -= cost;
        }
        self
    }

    fn divided(mut self, by: f64) -> Self {
        self.allocations /= by;
        self.stand_in /= by;
        self.shares.values_mut().for_each(|cost| *cost /= by);
        self
    }
}

/// Counts what running a part once takes, in this build of the program.
///
/// # Errors
/// If valgrind is missing or fails, or the program does not know the part.
pub fn count(program: &Path, part: &Part) -> anyhow::Result<Profile> {
    let folder = tempfile::tempdir()?;
    let run = |count| read(&callgrind(program, part.name, count, folder.path())?);
    let (few, many) = part.runs;
    Ok(run(many)?.without(&run(few)?).divided((many - few) as f64))
}

fn callgrind(program: &Path, part: &str, count: u64, folder: &Path) -> anyhow::Result<String> {
    let file = folder.join(count.to_string());
    let output = Command::new(programs::of_system("valgrind")?)
        .args(["--tool=callgrind", "--quiet", "--compress-strings=no", "--compress-pos=no"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .args([part, &count.to_string()])
        .output()?;
    if !output.status.success() {
        bail!("{part} under valgrind: {}", String::from_utf8_lossy(&output.stderr));
    }
    fs::read_to_string(&file).with_context(|| format!("valgrind has left no {}", file.display()))
}

/// What calls of one function cost, with all that it calls.
#[derive(Default)]
struct Calls {
    all: f64,
    of_stand_in: f64,
}

/// Adds up the self cost by stage, crate or library, and the calls that return memory. What a library's function costs is
/// the stand-in's for that part of its calls which the stand-in makes.
fn read(text: &str) -> anyhow::Result<Profile> {
    let mut profile = Profile::default();
    let mut libraries = BTreeMap::<(String, String), f64>::new();
    let mut calls = BTreeMap::<String, Calls>::new();
    let (mut file, mut function, mut object, mut is_call) = (String::new(), String::new(), String::new(), false);
    let mut callee = String::new();
    for line in text.lines() {
        if let Some((key, value)) = line.split_once('=') {
            match key {
                "fl" | "fi" | "fe" => value.clone_into(&mut file),
                "fn" => value.clone_into(&mut function),
                "ob" => value.clone_into(&mut object),
                "cfn" => value.clone_into(&mut callee),
                // The line after it is what the callee costs, which is counted there.
                "calls" => {
                    is_call = true;
                    // One that allocates by calling another is one call.
                    if ALLOCATING.contains(&callee.as_str()) && !allocates(&function) {
                        let count = value.split_whitespace().next().and_then(|word| word.parse::<f64>().ok());
                        profile.allocations += count.with_context(|| format!("callgrind has written `{line}`"))?;
                    }
                }
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
        let place = place_of(&file, &function, &object);
        if std::mem::take(&mut is_call) {
            let calls = calls.entry(callee.clone()).or_default();
            calls.all += cost;
            calls.of_stand_in += if matches!(place, Place::StandIn) { cost } else { 0.0 };
            continue;
        }
        match place {
            Place::StandIn => profile.stand_in += cost,
            Place::Library(name) => *libraries.entry((name.to_owned(), function.clone())).or_default() += cost,
            Place::Share(place) => *profile.shares.entry(place).or_default() += cost,
        }
    }
    for ((library, function), cost) in libraries {
        let calls = calls.get(&function).filter(|calls| calls.all > 0.0);
        let stand_in = cost * calls.map_or(0.0, |calls| calls.of_stand_in / calls.all);
        profile.stand_in += stand_in;
        *profile.shares.entry(library).or_default() += cost - stand_in;
    }
    if profile.shares.is_empty() {
        bail!("callgrind has counted nothing");
    }
    Ok(profile)
}

fn allocates(function: &str) -> bool {
    ALLOCATING.contains(&function) || BEHIND.iter().any(|part| function.contains(part))
}

/// What an instruction belongs to.
enum Place {
    /// A stage or a crate.
    Share(String),
    /// The standard library or the C library.
    Library(&'static str),
    /// What is there in place of a kernel.
    StandIn,
}

impl Place {
    fn in_ring(module: &str) -> Self {
        match module {
            "memory" => Self::StandIn,
            module => Self::Share(format!("ring: {module}")),
        }
    }
}

/// Where an instruction belongs: inlined code of ours to the file it was written in, that of the standard library to the
/// function that it was inlined into.
fn place_of(file: &str, function: &str, object: &str) -> Place {
    let after = |text: &str, word: &str| text.split_once(word).map(|(_, rest)| rest.to_owned());
    let word = |rest: String| rest.split(['/', ':', '.']).next().unwrap_or_default().to_owned();
    if let Some(rest) = after(file, "dataplane/ring/src/") {
        return Place::in_ring(&word(rest));
    }
    if after(file, "dataplane/codec/src/").is_some() {
        return Place::Share("codec".to_owned());
    }
    if let Some(rest) = after(file, "dataplane/src/") {
        return Place::Share(word(rest));
    }
    if after(file, "bench/src/").is_some() {
        return Place::Share("client and service".to_owned());
    }
    if let Some(rest) = after(file, "/registry/src/") {
        let name = rest.split('/').nth(1).unwrap_or("crates");
        return Place::Share(name.rsplit_once('-').map_or(name, |(name, _version)| name).to_owned());
    }
    if let Some(rest) = after(function, "ringmesh_ring::") {
        return Place::in_ring(&word(rest));
    }
    if after(function, "ringmesh_codec::").is_some() {
        return Place::Share("codec".to_owned());
    }
    if let Some(rest) = after(function, "ringmesh_dataplane::") {
        return Place::Share(word(rest));
    }
    if after(function, "ringmesh_bench::").is_some() {
        return Place::Share("client and service".to_owned());
    }
    if function.starts_with("httparse::") {
        return Place::Share("httparse".to_owned());
    }
    let is_libc = object.rsplit('/').next().is_some_and(|name| name.starts_with("libc"));
    Place::Library(if is_libc { "libc" } else { "std" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn self_cost_is_added_up_by_stage_without_the_stand_in_and_a_call_that_allocates_counts_once() {
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
cob=/lib/libc.so.6
cfn=malloc
calls=1 0
11 20
cfn=__rustc::__rust_alloc
calls=3 0
11 60
cfn=memcpy
calls=1 0
11 30
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
fn=realloc
0 6
cfn=malloc
calls=2 0
0 30
ob=/x/request
fn=__rustc::__rg_alloc
cfn=malloc
calls=1 0
0 20
fl=/work/dataplane/ring/src/memory/stream.rs
fn=<ringmesh_ring::memory::stream::Stream>::take
4 90
cob=/lib/libc.so.6
cfn=memcpy
calls=2 0
4 10
fi=/work/dataplane/ring/src/buffer.rs
5 10
totals: 1176
";
        let expected = [("httparse", 2.0), ("libc", 36.0), ("ring: buffer", 10.0), ("route", 13.0), ("std", 3.0)];
        let profile = read(text).unwrap();
        assert_eq!(profile.shares, expected.map(|(place, cost)| (place.to_owned(), cost)).into());
        assert_eq!(profile.cost(), Cost { instructions: 64.0, allocations: 4.0 });
        assert_eq!(profile.stand_in, 100.0);
    }
}
