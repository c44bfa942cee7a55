//! Which endpoint of a service a request goes to. Decides by what its own worker sees: no number of another core is read.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_model::snapshot::Balance;
use ringmesh_ring::clock::Instant;

/// Most endpoints that one request is tried on.
pub const MAX_ATTEMPTS: usize = 8;

/// What is known about an endpoint when one is picked.
pub trait Candidate {
    /// Requests in flight.
    fn in_flight(&self) -> u32;
    /// Until when it is passed over, because connecting to it failed.
    fn avoided_until(&self) -> Option<Instant>;
    /// Whether probes say that it does not serve.
    fn is_unhealthy(&self) -> bool {
        false
    }
}

/// A candidate, and what probes say of it.
pub struct Probed<C> {
    /// What its own worker sees of it.
    pub seen: C,
    /// Whether probes say that it does not serve.
    pub is_unhealthy: bool,
}

impl<C: Candidate> Candidate for Probed<C> {
    fn in_flight(&self) -> u32 {
        self.seen.in_flight()
    }

    fn avoided_until(&self) -> Option<Instant> {
        self.seen.avoided_until()
    }

    fn is_unhealthy(&self) -> bool {
        self.is_unhealthy
    }
}

/// What a choice depends on beside the candidates.
#[derive(Clone, Copy, Debug)]
pub struct Draw {
    /// Tells who is avoided still.
    pub now: Instant,
    /// Counts the service's picks.
    pub turn: u64,
    /// Uniform over all 64-bit numbers.
    pub random: u64,
}

/// Endpoints that a request was already tried on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tried {
    indices: [u32; MAX_ATTEMPTS],
    count: usize,
}

impl Tried {
    /// Notes an endpoint, by its index in the service. Beyond [`MAX_ATTEMPTS`] the first is forgotten.
    pub fn note(&mut self, index: usize) {
        self.indices[self.count % MAX_ATTEMPTS] = index as u32;
        self.count += 1;
    }

    /// Whether the request was tried on an endpoint.
    pub fn contains(&self, index: usize) -> bool {
        self.indices[..self.count.min(MAX_ATTEMPTS)].contains(&(index as u32))
    }
}

/// How often another one is drawn where those drawn first are passed over, before the next one is taken that is not: it would
/// get what all in front of it do not.
const DRAWS: usize = 8;

/// Picks one of `count` endpoints, `candidate(index)` telling of each: not one that was tried, one that probes call sick only
/// if all others were, and not one that is avoided if there is another. `turn` counts the service's picks, `random` is uniform.
///
/// Where probes call all of them sick, all are used. A check that asks for the wrong thing, or a fault that all endpoints
/// share, must not make an outage of what still serves in part; an endpoint that really is sick says so to its callers itself.
///
/// Two endpoints are drawn at random and the one with fewer requests in flight is taken, which comes near the best choice
/// of all at a constant cost (Mitzenmacher, "The power of two choices in randomized load balancing", 1996).
pub fn pick<C: Candidate>(
    balance: Balance,
    count: usize,
    candidate: impl Fn(usize) -> C,
    tried: &Tried,
    draw: impl FnOnce() -> Draw,
) -> Option<usize> {
    match count {
        0 => return None,
        1 => return (!tried.contains(0)).then_some(0),
        _ => {}
    }
    let Draw { now, turn, random } = draw();
    let fit = |index: usize| {
        let is_fit = |seen: C| !seen.is_unhealthy() && seen.avoided_until().is_none_or(|until| until <= now);
        !tried.contains(index) && is_fit(candidate(index))
    };
    let picked = match balance {
        Balance::RoundRobin => (turn % count as u64) as usize,
        Balance::LeastRequest => {
            let first = below(random as u32, count);
            let second = (first + 1 + below((random >> 32) as u32, count - 1)) % count;
            match (fit(first), fit(second)) {
                (true, true) if candidate(second).in_flight() < candidate(first).in_flight() => second,
                (true, _) => first,
                (false, _) => second,
            }
        }
    };
    if fit(picked) {
        return Some(picked);
    }
    let mut random = random;
    for _ in 0..DRAWS {
        random = mixed(random);
        let drawn = below(random as u32, count);
        if fit(drawn) {
            return Some(drawn);
        }
    }
    // Rare: walk on from there to the next that is fit, else to the next that serves, else to the next that was not tried.
    let order = || (0..count).map(|step| (picked + step) % count);
    let untried = |index: &usize| !tried.contains(*index);
    let serves = |index: &usize| untried(index) && !candidate(*index).is_unhealthy();
    order().find(|index| fit(*index)).or_else(|| order().find(serves)).or_else(|| order().find(untried))
}

/// The next of a row of random numbers (SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// A number below `count`, uniform for a uniform `random`, without a division.
fn below(random: u32, count: usize) -> usize {
    ((u64::from(random) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests;
