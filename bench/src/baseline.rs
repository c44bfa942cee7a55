//! The counts that are kept in the tree, and what else to compare with where they say nothing.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::callgrind::{Cost, PROGRAM, Shares};
use crate::counts::{self, Costs, Counts, Excess, TOLERANCE};
use crate::machine::Machine;
use crate::parent;
use crate::programs::Build;
use crate::scenario;

/// What a count may exceed the baseline of another machine by, if there is nothing better to compare with: libraries
/// choose their code by processor, and compilers differ.
const FOREIGN_TOLERANCE: f64 = 0.15;

/// What counts are compared with.
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
    /// Each part, and the whole request.
    pub costs: Costs,
    /// Where a whole request's instructions are.
    pub shares: Shares,
}

impl Baseline {
    /// The one in the tree.
    ///
    /// # Errors
    /// If there is none, or it is of another version.
    pub fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string(file()).with_context(|| format!("there is no {}", file().display()))?;
        Self::parse(&text)
    }

    /// One from its text.
    ///
    /// # Errors
    /// If it is of another version.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        serde_json::from_str(text).context("the baseline is of another version: make it anew with --move-baseline")
    }

    /// These counts as a baseline, rounded so that a new one differs where counts do.
    pub fn of(counts: &Counts, machine: &Machine, why: &str) -> Self {
        let round = |value: f64, steps: f64| (value * steps).round() / steps;
        let rounded = |cost: &Cost| Cost {
            instructions: round(cost.instructions, 10.0),
            allocations: round(cost.allocations, 100.0),
        };
        Self {
            why: why.to_owned(),
            cpu: machine.cpu.clone(),
            libc: machine.libc.clone(),
            rustc: machine.rustc.clone(),
            costs: counts.costs.iter().map(|(name, cost)| (name.clone(), rounded(cost))).collect(),
            shares: counts.shares.iter().map(|(place, cost)| (place.clone(), cost.round())).collect(),
        }
    }

    /// Puts it into the tree.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self) -> anyhow::Result<()> {
        fs::write(file(), serde_json::to_string_pretty(self)? + "\n")?;
        Ok(())
    }

    /// Why it says nothing about this machine, if it does not.
    pub fn foreign(&self, machine: &Machine) -> Option<String> {
        let ours = [&machine.cpu, &machine.libc, &machine.rustc];
        let theirs = [&self.cpu, &self.libc, &self.rustc];
        let (ours, theirs) = ours.into_iter().zip(theirs).find(|(ours, theirs)| ours != theirs)?;
        Some(format!("it was made on {theirs}, this is {ours}"))
    }
}

/// Where it is.
pub fn file() -> PathBuf {
    scenario::folder().join("baseline.json")
}

/// Whether the counts have stayed within their bounds, and what they were compared with.
pub struct Verdict {
    /// What they are compared with, in words.
    pub against: String,
    /// That, in numbers.
    pub before: Costs,
    /// What exceeds it.
    pub excesses: Vec<Excess>,
}

/// Compares counts of this build with the baseline; where that was made on another machine, with the parent commit's,
/// counted here; where there is no parent, with the baseline at a wide bound.
///
/// # Errors
/// If the baseline or a part of it is missing, or valgrind or the parent's build fails.
pub fn compare(
    build: &Build,
    counts: &mut Counts,
    machine: &Machine,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Verdict> {
    let (baseline, program) = (Baseline::read()?, build.program(PROGRAM));
    let missing: Vec<&str> =
        counts.costs.keys().filter(|name| !baseline.costs.contains_key(*name)).map(String::as_str).collect();
    if !missing.is_empty() {
        bail!("the baseline lacks {}: add it with --instructions --move-baseline WHY", missing.join(", "));
    }
    let mut judge = |against: String, before: Costs, tolerance: f64, accepted: &dyn Fn(&str) -> Cost| {
        let find = |now: &Costs| counts::excesses(now, &before, tolerance, accepted);
        let excesses = counts::settle(&program, &mut counts.costs, find)?;
        anyhow::Ok(Verdict { against, before, excesses })
    };
    let Some(why) = baseline.foreign(machine) else {
        return judge("the baseline".to_owned(), baseline.costs, TOLERANCE, &|_| Cost::default());
    };
    tell(&format!("the baseline says nothing here: {why}"));
    match parent::find(machine)? {
        Ok(parent) => {
            tell(&format!("building {}, to be counted here", parent.name));
            let before = counts::count_known(&parent.build(build)?);
            let accepted = |name: &str| moved(name, &before, &parent, &baseline);
            judge(parent.name.clone(), before.clone(), TOLERANCE, &accepted)
        }
        Err(why) => {
            tell(&format!("{why}: compared with the baseline all the same, with a wide bound"));
            let against = format!("another machine's baseline, at most {:+.0} %", FOREIGN_TOLERANCE * 100.0);
            judge(against, baseline.costs, FOREIGN_TOLERANCE, &|_| Cost::default())
        }
    }
}

/// What a part may take by the reason that a moved baseline gives: as much more than in the parent as the baseline has
/// grown.
fn moved(name: &str, before: &Costs, parent: &parent::Parent, baseline: &Baseline) -> Cost {
    let grown = || {
        let (before, then) = (before.get(name)?, parent.baseline.as_ref()?.costs.get(name)?);
        let now = baseline.costs.get(name)?;
        Some(Cost {
            instructions: before.instructions * now.instructions / then.instructions,
            allocations: before.allocations + now.allocations - then.allocations,
        })
    };
    grown().unwrap_or_default()
}

/// The lines that say what exceeds.
pub fn complaint(verdict: &Verdict) -> String {
    let line = |excess: &Excess| {
        let Excess { name, before, now } = excess;
        format!(
            "  {name}: {:.1} instructions after {:.1} ({:+.1} %), {:.2} allocations after {:.2}",
            now.instructions,
            before.instructions,
            (now.instructions / before.instructions - 1.0) * 100.0,
            now.allocations,
            before.allocations
        )
    };
    let lines: Vec<String> = verdict.excesses.iter().map(line).collect();
    format!(
        "against {}, these take more than they may:\n{}\nIf that is worth it, say why: cargo run --release -p \
         ringmesh-bench -- --instructions --move-baseline WHY",
        verdict.against,
        lines.join("\n")
    )
}

/// The parts that take clearly less than they did, in words: a bound that is too high lets them grow again unseen.
pub fn praise(verdict: &Verdict, now: &Costs) -> Option<String> {
    let less = |name: &&String| {
        let before = verdict.before.get(*name).map_or(0.0, |before| before.instructions);
        now[*name].instructions < before * (1.0 - TOLERANCE)
    };
    let names: Vec<&str> = now.keys().filter(less).map(String::as_str).collect();
    (!names.is_empty()).then(|| {
        format!("{} take less than before: --instructions --move-baseline WHY makes that the bound", names.join(", "))
    })
}

/// The folder of the tree.
pub fn tree() -> &'static Path {
    scenario::folder().parent().expect("this crate lies in the tree")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_baseline_in_the_tree_has_every_part_and_a_reason() {
        let baseline = Baseline::read().unwrap();
        assert!(!baseline.why.is_empty() && !baseline.cpu.is_empty() && !baseline.libc.is_empty());
        let derived = [crate::parts::REQUEST_WITH_ENDS, crate::parts::ENDS];
        for part in crate::parts::ALL.iter().filter(|part| !derived.contains(&part.name)) {
            assert!(baseline.costs.contains_key(part.name), "{}", part.name);
        }
        assert!(baseline.costs.contains_key(counts::REQUEST));
    }

    #[test]
    fn a_baseline_says_nothing_about_another_processor_or_library() {
        let mut machine = Machine::here();
        let counts = Counts { costs: Costs::new(), shares: Shares::new(), stand_in: 0.0 };
        let baseline = Baseline::of(&counts, &machine, "first");
        assert_eq!(baseline.foreign(&machine), None);
        machine.libc = "another one".to_owned();
        assert!(baseline.foreign(&machine).unwrap().contains("another one"));
    }
}
