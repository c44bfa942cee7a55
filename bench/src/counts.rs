//! What all parts of a request's path take, and whether that is more than it was.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;

use crate::callgrind::{self, Cost, Profile, Shares};
use crate::parts::{self, Part};

/// By how much a count may exceed what it is compared with.
pub const TOLERANCE: f64 = 0.02;

/// Instructions that are never too many, in parts so small that two more are 2 %: the compiler lays registers out anew
/// when something else changes.
const SLACK_INSTRUCTIONS: f64 = 3.0;

/// Allocations that are never too many: where one comes now and then, a longer run has it once more.
const SLACK_ALLOCATIONS: f64 = 0.01;

/// How often a count that is too high is made anew: a hash map's random seed may be unlucky, slow code is slow each time.
const RECOUNTS: usize = 2;

/// The whole request: what is left of [`parts::REQUEST_WITH_ENDS`] without [`parts::ENDS`].
pub const REQUEST: &str = "request";

/// What each part takes, by its name.
pub type Costs = BTreeMap<String, Cost>;

/// Everything that was counted.
#[derive(Clone, Debug)]
pub struct Counts {
    /// Each part, and the whole request.
    pub costs: Costs,
    /// Where a whole request's instructions are.
    pub shares: Shares,
    /// Instructions a request of what is there in place of a kernel, which are in neither of these.
    pub stand_in: f64,
}

/// Counts every part in this build of the program.
///
/// # Errors
/// If valgrind is missing or fails.
pub fn count(program: &Path) -> anyhow::Result<Counts> {
    let mut profiles = profiles(program, &parts::ALL.iter().collect::<Vec<_>>())
        .into_iter()
        .map(|(name, profile)| Ok((name, profile?)))
        .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
    let Profile { mut shares, stand_in, .. } = whole(&mut profiles).context("the whole request is among the parts")?;
    shares.retain(|_, cost| cost.abs() >= 1.0);
    Ok(Counts { costs: costs(&profiles), shares, stand_in })
}

/// Counts what an older build of the program knows of the parts.
pub fn count_known(program: &Path) -> Costs {
    let all = parts::ALL.iter().collect::<Vec<_>>();
    let mut known = profiles(program, &all).into_iter().filter_map(|(name, one)| Some((name, one.ok()?))).collect();
    whole(&mut known);
    costs(&known)
}

/// Puts the whole request in place of what it is the difference of.
fn whole(profiles: &mut BTreeMap<&'static str, Profile>) -> Option<Profile> {
    let (with, alone) = (profiles.remove(parts::REQUEST_WITH_ENDS)?, profiles.remove(parts::ENDS)?);
    let whole = with.without(&alone);
    profiles.insert(REQUEST, whole.clone());
    Some(whole)
}

fn costs(profiles: &BTreeMap<&'static str, Profile>) -> Costs {
    profiles.iter().map(|(name, profile)| ((*name).to_owned(), profile.cost())).collect()
}

/// As many at once as there are cores: what others do changes no count.
fn profiles(program: &Path, parts: &[&Part]) -> BTreeMap<&'static str, anyhow::Result<Profile>> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    let work = || {
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let profile = callgrind::count(program, part);
            done.lock().expect("counting does not panic").insert(part.name, profile);
        }
    };
    std::thread::scope(|scope| {
        for _ in ringmesh_ring::affinity::allowed_cores() {
            scope.spawn(work);
        }
    });
    done.into_inner().expect("counting does not panic")
}

/// A part that takes more than it may.
#[derive(Clone, Debug, PartialEq)]
pub struct Excess {
    /// The part.
    pub name: String,
    /// What it took.
    pub before: Cost,
    /// What it takes.
    pub now: Cost,
}

/// The parts that exceed `before` by more than `tolerance` and their own spread, and where `accepted` has more by more than that. Parts that
/// are not in `before` are new.
pub fn excesses(now: &Costs, before: &Costs, tolerance: f64, accepted: impl Fn(&str) -> Cost) -> Vec<Excess> {
    let exceeds = |now: f64, before: f64, accepted: f64, slack: f64, tolerance: f64| {
        let bound = before.max(accepted);
        now > (bound * (1.0 + tolerance)).max(bound + slack)
    };
    let compare = |(name, now): (&String, &Cost)| {
        let (before, accepted) = (before.get(name)?, accepted(name));
        let spread = parts::find(name).map_or(0.0, |part| part.spread);
        let tolerated = tolerance + spread;
        let too_many =
            exceeds(now.instructions, before.instructions, accepted.instructions, SLACK_INSTRUCTIONS, tolerated)
                || exceeds(now.allocations, before.allocations, accepted.allocations, SLACK_ALLOCATIONS, tolerance);
        too_many.then(|| Excess { name: name.clone(), before: *before, now: *now })
    };
    now.iter().filter_map(compare).collect()
}

/// Counts anew what `excesses` finds, and keeps the lowest.
///
/// # Errors
/// If valgrind fails.
pub fn settle(
    program: &Path,
    costs: &mut Costs,
    excesses: impl Fn(&Costs) -> Vec<Excess>,
) -> anyhow::Result<Vec<Excess>> {
    for _ in 0..RECOUNTS {
        let again: Vec<String> = excesses(costs).into_iter().map(|excess| excess.name).collect();
        if again.is_empty() {
            break;
        }
        let wanted = |part: &&Part| {
            let of_request = [parts::REQUEST_WITH_ENDS, parts::ENDS].contains(&part.name);
            again.iter().any(|name| name == part.name || (name == REQUEST && of_request))
        };
        let parts: Vec<&Part> = parts::ALL.iter().filter(wanted).collect();
        let mut profiles = profiles(program, &parts)
            .into_iter()
            .map(|(name, profile)| Ok((name, profile?)))
            .collect::<anyhow::Result<BTreeMap<_, _>>>()?;
        whole(&mut profiles);
        for (name, profile) in &profiles {
            let (now, kept) = (profile.cost(), costs.entry((*name).to_owned()).or_default());
            kept.instructions = kept.instructions.min(now.instructions);
            kept.allocations = kept.allocations.min(now.allocations);
        }
    }
    Ok(excesses(costs))
}

/// The counts beside what they were, in the order of the parts.
pub fn table(now: &Costs, before: Option<&Costs>) -> String {
    let mut text = format!("{:>12} {:>9} {:>12}\n", "instructions", "before", "allocations");
    let names = parts::ALL.iter().map(|part| part.name).chain([REQUEST]);
    for (name, cost) in names.filter_map(|name| Some((name, now.get(name)?))) {
        let change = match before.and_then(|before| before.get(name)) {
            Some(before) => format!("{:+.1} %", (cost.instructions / before.instructions - 1.0) * 100.0),
            None if before.is_some() => "new".to_owned(),
            None => String::new(),
        };
        let _ = writeln!(text, "{:>12.1} {change:>9} {:>12.2}  {name}", cost.instructions, cost.allocations);
    }
    text
}

/// Where a whole request's instructions are, the most first.
pub fn shares_table(Counts { shares, stand_in, .. }: &Counts) -> String {
    let total: f64 = shares.values().sum();
    let mut sorted: Vec<_> = shares.iter().collect();
    sorted.sort_by(|a, b| b.1.total_cmp(a.1));
    let mut text = format!("{total:>8.0}  instructions a request\n");
    for (place, cost) in sorted {
        let _ = writeln!(text, "{cost:>8.0}  {:>4.1} %  {place}", cost / total * 100.0);
    }
    let _ = writeln!(text, "{stand_in:>8.0}  more, of the network in memory that is there in place of a kernel");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn costs(instructions: f64, allocations: f64) -> Costs {
        [("route".to_owned(), Cost { instructions, allocations })].into()
    }

    fn check(now: Costs, before: Costs, accepted: Cost, expected: bool) {
        let found = excesses(&now, &before, TOLERANCE, |_| accepted);
        assert_eq!(!found.is_empty(), expected, "{now:?} after {before:?}, accepted {accepted:?}");
    }

    #[test]
    fn two_percent_more_instructions_are_too_many_unless_they_are_a_handful() {
        let none = Cost::default();
        check(costs(1019.0, 0.0), costs(1000.0, 0.0), none, false);
        check(costs(1021.0, 0.0), costs(1000.0, 0.0), none, true);
        check(costs(33.0, 0.0), costs(30.0, 0.0), none, false);
        check(costs(34.0, 0.0), costs(30.0, 0.0), none, true);
        check(costs(1021.0, 0.0), Costs::new(), none, false);
    }

    #[test]
    fn a_part_may_exceed_by_its_own_spread_too() {
        let costs =
            |instructions| Costs::from([("tls/record-of-1KiB".to_owned(), Cost { instructions, allocations: 2.0 })]);
        check(costs(1049.0), costs(1000.0), Cost::default(), false);
        check(costs(1051.0), costs(1000.0), Cost::default(), true);
    }

    #[test]
    fn one_allocation_is_too_many_where_there_was_none() {
        let none = Cost::default();
        check(costs(1000.0, 0.005), costs(1000.0, 0.0), none, false);
        check(costs(1000.0, 1.0), costs(1000.0, 0.0), none, true);
        check(costs(1000.0, 2.6), costs(1000.0, 2.5), none, true);
    }

    #[test]
    fn what_a_moved_baseline_has_accepted_is_not_too_much() {
        let accepted = |instructions| Cost { instructions, allocations: 0.0 };
        check(costs(1100.0, 0.0), costs(1000.0, 0.0), accepted(1090.0), false);
        check(costs(1100.0, 0.0), costs(1000.0, 0.0), accepted(1050.0), true);
    }
}
