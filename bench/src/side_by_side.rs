//! A scenario from its first turn to its last: the contenders take turns, round after round, so that what the machine does
//! meanwhile hits all of them.

use anyhow::Context;

use crate::contender::Bed;
use crate::scenario::{Contender, Scenario};
use crate::turn::{self, Lengths, Observation};

/// How often a contender may fail in one scenario before it is left out of the rest.
const MAX_FAILURES: usize = 2;

/// What came of a scenario.
pub struct Outcome {
    /// The scenario.
    pub scenario: Scenario,
    /// What each contender is, by name.
    pub versions: Vec<(String, String)>,
    /// All turns that came to their end.
    pub observations: Vec<Observation>,
    /// What went wrong. Figures of others stay good.
    pub failures: Vec<String>,
}

/// Runs a scenario, telling of each turn through `tell`.
///
/// # Errors
/// If a contender is missing.
pub fn run(
    bed: &Bed,
    scenario: Scenario,
    rounds: usize,
    lengths: Lengths,
    mut tell: impl FnMut(&str),
) -> anyhow::Result<Outcome> {
    let versions = scenario.contenders.iter().map(|contender| Ok((contender.proxy.clone(), bed.version(contender)?)));
    let versions = versions.collect::<anyhow::Result<_>>()?;
    let mut outcome = Outcome { versions, observations: Vec::new(), failures: Vec::new(), scenario };
    let mut failed = vec![0; outcome.scenario.contenders.len()];
    for round in 0..rounds {
        for index in order(outcome.scenario.contenders.len(), round) {
            let contender = &outcome.scenario.contenders[index];
            if failed[index] >= MAX_FAILURES || contender.lacks.is_some() {
                continue;
            }
            let seen = turn::run(bed, &outcome.scenario, contender, lengths);
            match seen.with_context(|| format!("{}, {}, round {round}", outcome.scenario.name, contender.proxy)) {
                Ok(seen) => {
                    tell(&line(round, rounds, contender, &seen));
                    outcome.observations.push(Observation { round, ..seen });
                }
                Err(error) => {
                    failed[index] += 1;
                    tell(&format!("{error:#}"));
                    outcome.failures.push(format!("{error:#}"));
                }
            }
        }
    }
    Ok(outcome)
}

/// Each round begins with another contender, and every second one goes the other way round: nobody always follows the same.
fn order(count: usize, round: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).map(|step| (step + round) % count).collect();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

fn line(round: usize, rounds: usize, contender: &Contender, seen: &Observation) -> String {
    let cpu = seen.cpu_us_per_op.map(|cpu| format!("{cpu:.2} µs of CPU, ")).unwrap_or_default();
    let speed = if seen.operations > 0.0 { format!("{:.0} a second", seen.ops_per_s) } else { String::new() };
    let foreign = match seen.foreign_share {
        share if share >= 0.01 => format!(" (others on its core: {:.0} %)", share * 100.0),
        _ => String::new(),
    };
    format!("round {}/{rounds} {}: {cpu}{speed}{foreign}", round + 1, contender.proxy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_has_every_contender_once_and_beginnings_differ() {
        let first: Vec<usize> = (0..4).map(|round| order(4, round)[0]).collect();
        for round in 0..8 {
            let mut sorted = order(4, round);
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3]);
        }
        assert!(first.iter().any(|index| *index != first[0]), "{first:?}");
    }
}
