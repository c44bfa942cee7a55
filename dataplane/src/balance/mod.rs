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

/// Picks one of `count` endpoints, `candidate(index)` telling of each: not one that was tried if there is another, and not
/// one that is avoided if there is another. `turn` counts the service's picks, `random` is uniform.
///
/// Two endpoints are drawn at random and the one with fewer requests in flight is taken, which comes near the best choice
/// of all at a constant cost (Mitzenmacher, "The power of two choices in randomized load balancing", 1996).
pub fn pick<C: Candidate>(
    balance: Balance,
    count: usize,
    candidate: impl Fn(usize) -> C,
    tried: &Tried,
    now: Instant,
    turn: u64,
    random: u64,
) -> Option<usize> {
    let fit =
        |index: usize| !tried.contains(index) && candidate(index).avoided_until().is_none_or(|until| until <= now);
    match count {
        0 => return None,
        1 => return (!tried.contains(0)).then_some(0),
        _ => {}
    }
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
    // Rare: walk on from there to the next that is fit, else to the next that was not tried.
    let order = || (0..count).map(|step| (picked + step) % count);
    order().find(|index| fit(*index)).or_else(|| order().find(|index| !tried.contains(*index)))
}

/// A number below `count`, uniform for a uniform `random`, without a division.
fn below(random: u32, count: usize) -> usize {
    ((u64::from(random) * count as u64) >> 32) as usize
}

#[cfg(test)]
mod tests;
