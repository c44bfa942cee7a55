//! What the two processes take of the machine, as Linux tells it (proc(5)): read when somebody asks.

use std::fs;
use std::path::Path;

/// What one process takes. What the system does not tell is None.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on processors, in user and system mode, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Memory that is there, in bytes.
    pub resident_bytes: Option<u64>,
    /// Addresses that mean something, in bytes.
    pub virtual_bytes: Option<u64>,
    /// Descriptors in use.
    pub open_fds: Option<u64>,
    /// Descriptors that it may have. None: as many as it likes.
    pub max_fds: Option<u64>,
    /// When it started, in seconds since the Unix epoch.
    pub start_seconds: Option<f64>,
}

impl Usage {
    /// What a process takes at this moment. Of one that is gone, nothing is known.
    pub fn of(pid: u32) -> Self {
        let folder = Path::new("/proc").join(pid.to_string());
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        let units = Units {
            ticks_per_second: rustix::param::clock_ticks_per_second() as f64,
            page_bytes: rustix::param::page_size() as u64,
        };
        Self {
            open_fds: fs::read_dir(folder.join("fd")).ok().map(|all| all.count() as u64),
            max_fds: max_fds(&read("limits")),
            ..Self::of_stat(&read("stat"), &machine, &units)
        }
    }

    /// From `/proc/PID/stat`, and `/proc/stat` for when the machine started.
    fn of_stat(stat: &str, machine: &str, units: &Units) -> Self {
        // The command's name stands in parentheses, and may hold anything; fields count from 3 behind it.
        let fields: Vec<&str> = stat.rsplit_once(')').map_or(Vec::new(), |(_, rest)| rest.split_whitespace().collect());
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / units.ticks_per_second;
        let booted = machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<f64>().ok());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, system)| seconds(user + system)),
            start_seconds: field(22).zip(booted).map(|(ticks, booted)| booted + seconds(ticks)),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages * units.page_bytes),
            open_fds: None,
            max_fds: None,
        }
    }
}

/// What this machine counts in.
struct Units {
    ticks_per_second: f64,
    page_bytes: u64,
}

/// The soft limit.
fn max_fds(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_writes_is_read_whatever_the_process_is_called() {
        let stat = "4242 (a) S 1 (b) R 1 4242 4242 0 -1 4194560 900 0 3 0 150 25 7 8 20 0 3 0 12345 104857600 256 18446744073709551615 1";
        let machine = "cpu  1 2 3\nintr 5\nbtime 1700000000\nprocesses 9\n";
        let units = Units { ticks_per_second: 100.0, page_bytes: 4096 };
        let usage = Usage::of_stat(stat, machine, &units);
        assert_eq!((usage.cpu_seconds, usage.start_seconds), (Some(1.75), Some(1_700_000_123.45)));
        assert_eq!((usage.virtual_bytes, usage.resident_bytes), (Some(104_857_600), Some(1_048_576)));
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max processes             100                  100                  processes \n\
                      Max open files            1024                 524288               files     \n";
        assert_eq!(max_fds(limits), Some(1024));
        assert_eq!(max_fds(&limits.replace("1024 ", "unlimited ")), None);
        for torn in ["", "1 (x", "1 (x) S 1 2", "1 (x) S a b c d e f g h i j k l m n o p q r s t u v w"] {
            assert_eq!(Usage::of_stat(torn, "", &units), Usage::default(), "{torn}");
        }
    }

    #[test]
    fn of_a_process_that_lives_all_is_known_and_of_one_that_does_not_nothing() {
        let usage = Usage::of(std::process::id());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(usage.cpu_seconds.is_some_and(|seconds| seconds < 3_600.0), "{usage:?}");
        assert!(usage.start_seconds.is_some_and(|start| start < now + 2.0 && start > now - 3_600.0), "{usage:?}");
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 1 << 20), "{usage:?}");
        assert!(usage.virtual_bytes > usage.resident_bytes, "{usage:?}");
        assert!(usage.open_fds.is_some_and(|count| count >= 3), "{usage:?}");
        // No process id is so large (proc_sys_kernel(5), `pid_max`).
        assert_eq!(Usage::of(u32::MAX), Usage::default());
    }
}
