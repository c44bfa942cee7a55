//! When a connection that many requests share has been unused for too long, or its peer silent.

use std::task::{Context, Waker};
use std::time::Duration;

use h2::{Ping, PingPong};

use super::limits::{PONG_TIMEOUT, SILENCE};

/// Shortest time between two looks: a timeout may be shorter than the machine's clock can tell.
const MIN_TICK: Duration = Duration::from_millis(10);

/// Looks at one connection from time to time, so that a request costs it nothing.
#[derive(Debug)]
pub struct Keeper {
    tick: Duration,
    max_unused: Duration,
    unused: Duration,
    served: u64,
    /// Of these, when something was heard last.
    heard: u64,
    silent: Duration,
    asked: bool,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All is well.
    Stay,
    /// The peer has been silent while requests wait: it is to be asked whether it is still there.
    Ask,
    /// It has not answered.
    Dead,
    /// There was no request for too long.
    Unused,
}

/// What there is to see.
#[derive(Clone, Copy, Debug)]
pub struct Seen {
    /// Requests under way.
    pub open: u32,
    /// Requests since the beginning.
    pub served: u64,
    /// Whether a byte has come since the last look.
    pub heard: bool,
    /// Whether the peer has still to take something of what it asked for.
    pub takes: bool,
}

impl Keeper {
    /// For a connection that may be unused for so long, and up to half as long again.
    pub fn new(max_unused: Duration) -> Self {
        let tick = (max_unused / 2).clamp(MIN_TICK, SILENCE / 2);
        Self { tick, max_unused, unused: Duration::ZERO, served: 0, heard: 0, silent: Duration::ZERO, asked: false }
    }

    /// When to look next.
    pub fn tick(&self) -> Duration {
        self.tick
    }

    /// Looks.
    pub fn look(&mut self, seen: Seen) -> Verdict {
        let rested = seen.open == 0 && !seen.takes && seen.served == self.served;
        self.served = seen.served;
        self.unused = if rested { self.unused + self.tick } else { Duration::ZERO };
        if seen.heard {
            self.heard = seen.served;
        }
        // One that was given up between two looks was not answered either.
        let waits = !seen.heard && (seen.open > 0 || seen.served != self.heard);
        if waits {
            self.silent += self.tick;
        } else {
            (self.silent, self.asked) = (Duration::ZERO, false);
        }
        if self.unused > self.max_unused {
            Verdict::Unused
        } else if self.asked && self.silent >= SILENCE + PONG_TIMEOUT {
            Verdict::Dead
        } else if !self.asked && self.silent >= SILENCE {
            self.asked = true;
            Verdict::Ask
        } else {
            Verdict::Stay
        }
    }
}

/// Asks the peer whether it is still there, once the library has its next turn. `take`: from the library.
pub fn ask(ping: &mut Option<PingPong>, take: impl FnOnce() -> Option<PingPong>) {
    if ping.is_none() {
        *ping = take();
    }
    let Some(ping) = ping else { return };
    // The library holds the answer to the last one until somebody has taken it, and sends no other before. That it came was
    // heard as a byte already.
    let _last = ping.poll_pong(&mut Context::from_waker(Waker::noop()));
    // Fails if that answer is still outstanding, which is waited for anyhow.
    let _outstanding = ping.send_ping(Ping::opaque());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found after how long, if each look sees the same.
    fn found(keeper: &mut Keeper, mut see: impl FnMut(u32) -> Seen) -> (Verdict, Duration) {
        for look in 1..1000 {
            let verdict = keeper.look(see(look));
            if verdict != Verdict::Stay {
                return (verdict, keeper.tick() * look);
            }
        }
        (Verdict::Stay, Duration::MAX)
    }

    #[test]
    fn an_unused_connection_is_found_in_time_and_a_used_one_never() {
        for timeout in [Duration::from_millis(20), Duration::from_secs(3), Duration::from_secs(3600)] {
            let mut keeper = Keeper::new(timeout);
            let (verdict, after) = found(&mut keeper, |_| Seen { open: 0, served: 7, heard: true, takes: false });
            assert_eq!(verdict, Verdict::Unused);
            assert!(after > timeout && after <= timeout * 5 / 2, "{after:?} for {timeout:?}");
            // With a request between any two looks.
            let seen = |look| Seen { open: 0, served: u64::from(look), heard: true, takes: false };
            assert_eq!(found(&mut Keeper::new(timeout), seen).0, Verdict::Stay);
        }
    }

    #[test]
    fn a_peer_that_says_nothing_to_requests_that_are_given_up_between_two_looks_is_asked_and_given_up() {
        let mut keeper = Keeper::new(Duration::from_secs(300));
        assert_eq!(keeper.look(Seen { open: 0, served: 5, heard: true, takes: false }), Verdict::Stay);
        // One request each third look.
        let silent = |look: u32| Seen { open: 0, served: 5 + u64::from(look.div_ceil(3)), heard: false, takes: false };
        let (verdict, after) = found(&mut keeper, silent);
        assert_eq!(verdict, Verdict::Ask);
        assert!(after >= SILENCE && after <= SILENCE * 3 / 2, "{after:?}");
        assert_eq!(found(&mut keeper, |_| Seen { open: 0, served: 6, heard: false, takes: false }).0, Verdict::Dead);
        // What was answered is expected no more.
        let mut keeper = Keeper::new(Duration::from_secs(300));
        assert_eq!(keeper.look(Seen { open: 0, served: 5, heard: true, takes: false }), Verdict::Stay);
        assert_eq!(found(&mut keeper, |_| Seen { open: 0, served: 5, heard: false, takes: false }).0, Verdict::Unused);
    }

    #[test]
    fn a_silent_peer_is_asked_and_given_up_only_if_it_stays_silent() {
        let mut keeper = Keeper::new(Duration::from_secs(300));
        let silent = |_| Seen { open: 1, served: 1, heard: false, takes: false };
        let (verdict, after) = found(&mut keeper, silent);
        assert_eq!(verdict, Verdict::Ask);
        assert!(after >= SILENCE && after <= SILENCE * 3 / 2, "{after:?}");
        // It answers, and is silent again.
        assert_eq!(keeper.look(Seen { open: 1, served: 1, heard: true, takes: false }), Verdict::Stay);
        assert_eq!(found(&mut keeper, silent).0, Verdict::Ask);
        assert_eq!(found(&mut keeper, silent).0, Verdict::Dead);
    }
}
