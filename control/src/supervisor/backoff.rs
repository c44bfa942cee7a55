//! How soon a process that died is started again.

use std::time::Duration;

/// The pause before the second restart in a row; the first is immediate.
const FIRST: Duration = Duration::from_millis(100);

/// Longest pause. One that dies at once every time costs a start every five seconds.
const LONGEST: Duration = Duration::from_secs(5);

/// Who ran so long has not died of its start.
const HEALTHY: Duration = Duration::from_secs(10);

/// Counts deaths in a row.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    deaths: u32,
}

impl Backoff {
    /// The pause before the next start, after one that ran for `ran`.
    pub(crate) fn pause(&mut self, ran: Duration) -> Duration {
        self.deaths = if ran >= HEALTHY { 1 } else { self.deaths.saturating_add(1) };
        match self.deaths {
            0 | 1 => Duration::ZERO,
            deaths => FIRST.saturating_mul(1 << (deaths - 2).min(16)).min(LONGEST),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_restart_is_immediate_and_later_ones_wait_longer() {
        let mut backoff = Backoff::default();
        let pauses: Vec<u128> = (0..9).map(|_| backoff.pause(Duration::ZERO).as_millis()).collect();
        assert_eq!(pauses, [0, 100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(backoff.pause(HEALTHY), Duration::ZERO, "it ran well for a while");
    }
}
