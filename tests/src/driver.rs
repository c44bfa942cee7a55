//! The two I/O drivers of the data plane: what matters is tested on both.

use std::fmt;

use ringmesh_ring::setup::{Wish, probe};

/// A driver, as the config demands it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `driver = "io_uring"`
    IoUring,
    /// `driver = "epoll"`
    Epoll,
    /// `driver = "auto"`
    Auto,
}

impl Driver {
    /// Both that there are.
    pub const ALL: [Self; 2] = [Self::IoUring, Self::Epoll];

    /// As the config writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Epoll => "epoll",
            Self::Auto => "auto",
        }
    }

    fn wish(self) -> Wish {
        match self {
            Self::IoUring => Wish::IoUring,
            Self::Epoll => Wish::Epoll,
            Self::Auto => Wish::Auto,
        }
    }
}

impl fmt::Display for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Runs a test on both drivers; a failing one says on which.
///
/// # Panics
/// If the test does, or this machine denies io_uring: half of the tests would be skipped otherwise.
pub fn on_both_drivers(test: impl Fn(Driver)) {
    for driver in Driver::ALL {
        on(driver, &test);
    }
}

/// Runs a test that mostly waits on both drivers at once.
///
/// # Panics
/// As [`on_both_drivers`].
pub fn on_both_drivers_at_once(test: impl Fn(Driver) + Sync) {
    std::thread::scope(|scope| {
        for driver in Driver::ALL {
            let test = &test;
            scope.spawn(move || on(driver, test));
        }
    });
}

fn on(driver: Driver, test: &impl Fn(Driver)) {
    if let Err(denied) = probe(driver.wish()) {
        panic!("{denied}; the tests need io_uring too: sysctl kernel.io_uring_disabled=0, or another seccomp profile");
    }
    eprintln!("=== on {driver}");
    test(driver);
}
