//! How many descriptors the process may have.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The limits on open descriptors; none means no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DescriptorLimit {
    /// What holds now.
    pub soft: Option<u64>,
    /// Up to where an unprivileged process may raise it.
    pub hard: Option<u64>,
}

/// Raises the soft limit on open descriptors to the hard one, and says what holds now. Every client takes one
/// descriptor and its endpoint another, while the usual soft limit is 1024.
pub fn raise_descriptor_limit() -> DescriptorLimit {
    let before = getrlimit(Resource::Nofile);
    if before.current != before.maximum {
        // When the kernel says no, the old limit holds, and is what we report.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: before.maximum, maximum: before.maximum });
    }
    let now = getrlimit(Resource::Nofile);
    DescriptorLimit { soft: now.current, hard: now.maximum }
}
