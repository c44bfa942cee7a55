//! The product as packages have it: the compiler is told how often each branch was taken while the product carried traffic
//! (profile-guided optimisation, rustc's `-C profile-generate` and `-C profile-use`).
//!
//! It counts in the scenarios that are published afterwards, and in all of them alike. Most of what it gains is gained in
//! libraries with many branches, such as h2.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::contender::Bed;
use crate::programs::{self, Build, PACKAGED};
use crate::scenario::{self, Kind, Scenario};
use crate::side_by_side;
use crate::turn::Lengths;

/// The contender that is the product.
const PRODUCT: &str = "ringmesh";

/// How long each scenario is counted. Proportions count, and they show at once.
const LENGTHS: Lengths = Lengths { warm_up: Duration::from_millis(100), measured: Duration::from_secs(1) };

/// Makes it, beside this build, and brings it up to date. Tells through `tell` what it does.
///
/// # Errors
/// If something cannot be built or run, or the tool is missing that reads the counts; then the error says how to get it.
pub fn make(build: &Build, tell: impl Fn(&str)) -> anyhow::Result<Build> {
    let compiler = Compiler::here()?;
    let folder = build.folder().with_file_name("package");
    let counts = folder.join("counts");
    tell("building the product so that it counts its branches");
    let counting = compiler.build(&folder.join("counting"), &format!("-Cprofile-generate={}", counts.display()))?;
    // Counts of another build would be added to.
    if counts.is_dir() {
        fs::remove_dir_all(&counts).context("cannot remove old counts")?;
    }
    let bed = Bed::new(build.clone(), Build::packaged_in(counting))?;
    for scenario in scenario::all()?.into_iter().filter(|scenario| scenario.in_table) {
        count(&bed, scenario, &tell)?;
    }
    let merged = folder.join("counts.profdata");
    compiler.merge(&counts, &merged)?;
    tell("building the product with these counts");
    let done = compiler.build(&folder.join("done"), &format!("-Cprofile-use={}", merged.display()))?;
    let product = Build::packaged_in(folder);
    fs::copy(done.join(PRODUCT), product.program(PRODUCT)).context("cannot copy the product")?;
    Ok(product)
}

/// Runs a scenario with the product alone.
fn count(bed: &Bed, mut scenario: Scenario, tell: &impl Fn(&str)) -> anyhow::Result<()> {
    scenario.contenders.retain(|contender| contender.proxy == PRODUCT);
    if scenario.load.kind == Kind::Idle || scenario.contenders.is_empty() {
        return Ok(());
    }
    tell(&format!("counting in {}", scenario.name));
    let outcome = side_by_side::run(bed, scenario, 1, LENGTHS, |_line| {})?;
    match outcome.failures.first() {
        Some(failure) => bail!("{failure}"),
        None => Ok(()),
    }
}

/// The compiler that builds this tree.
struct Compiler {
    /// The kind of machine that it builds for.
    host: String,
    /// Its tool for counts.
    merger: PathBuf,
}

impl Compiler {
    fn here() -> anyhow::Result<Self> {
        let version = say(Command::new("rustc").args(["--version", "--verbose"]))?;
        let host =
            version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?.to_owned();
        let root = say(Command::new("rustc").args(["--print", "sysroot"]))?;
        let merger = Path::new(root.trim()).join("lib/rustlib").join(&host).join("bin/llvm-profdata");
        if !merger.is_file() {
            bail!("llvm-profdata of this compiler is missing: rustup component add llvm-tools");
        }
        Ok(Self { host, merger })
    }

    /// Builds the product with a further flag, and returns where it is. For a host that is named, so that what only runs while
    /// it is built does without the flag.
    fn build(&self, target: &Path, flag: &str) -> anyhow::Result<PathBuf> {
        let mut cargo = programs::cargo();
        cargo.args(["build", "--quiet", "--locked", "--package", "ringmesh-control", "--profile", PACKAGED]);
        cargo.args(["--target", &self.host, "--target-dir"]).arg(target).env("CARGO_ENCODED_RUSTFLAGS", flag);
        programs::build(&mut cargo)?;
        Ok(target.join(&self.host).join(PACKAGED))
    }

    fn merge(&self, counts: &Path, merged: &Path) -> anyhow::Result<()> {
        let status = Command::new(&self.merger).arg("merge").arg("-o").args([merged, counts]).status()?;
        if !status.success() {
            bail!("llvm-profdata has failed, {status}");
        }
        Ok(())
    }
}

/// What a program says.
fn say(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{:?} has failed: {}", command.get_program(), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}
