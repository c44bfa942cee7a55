//! Waiting by deadline.

use std::time::{Duration, Instant};

/// How long anything may take that should come soon. Many times what it takes, because tests share few cores.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// How often is looked.
const LOOK: Duration = Duration::from_millis(5);

/// Looks until there is something.
///
/// # Panics
/// If there is nothing within [`DEADLINE`]; `what` says what was waited for.
#[track_caller]
pub fn eventually<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    within(DEADLINE, what, look)
}

/// Looks until there is something.
///
/// # Panics
/// If there is nothing within `deadline`.
#[track_caller]
pub fn within<T>(deadline: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < deadline, "not within {deadline:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

/// Lets time pass in which nothing may happen, or load goes on: the only sleep, for what has no event to wait for.
pub fn hold(time: Duration) {
    std::thread::sleep(time);
}
