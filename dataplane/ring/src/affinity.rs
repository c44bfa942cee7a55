//! Which cores the process may use, how much of them, and pinning a thread to one.

use std::fs;
use std::io;

/// The cores this process may run on, in ascending order. Never empty.
pub fn allowed_cores() -> Vec<usize> {
    let mut cores: Vec<usize> = core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect();
    cores.sort_unstable();
    // The kernel did not tell: count instead.
    let counted = || (0..std::thread::available_parallelism().map_or(1, usize::from)).collect();
    if cores.is_empty() { counted() } else { cores }
}

/// Keeps the calling thread on the `n`-th core of `allowed` (counted from 0, around the end).
///
/// # Errors
/// When there is no such core, or the kernel does not allow it.
pub fn pin_to(allowed: &[usize], n: usize) -> io::Result<()> {
    let id = *allowed.get(n % allowed.len().max(1)).ok_or(io::ErrorKind::InvalidInput)?;
    if core_affinity::set_for_current(core_affinity::CoreId { id }) {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}

/// How many cores' worth of time the control group grants (2.5 means two and a half), if it limits them.
pub fn cpu_quota() -> Option<f64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    // Every group on the way to the root may set a limit; the smallest holds.
    let quotas = paths(&groups).into_iter().filter_map(|(version, path)| match version {
        Version::One => {
            let quota = fs::read_to_string(format!("{path}/cpu.cfs_quota_us")).ok()?;
            let period = fs::read_to_string(format!("{path}/cpu.cfs_period_us")).ok()?;
            parse_quota(&quota, &period)
        }
        Version::Two => {
            let max = fs::read_to_string(format!("{path}/cpu.max")).ok()?;
            let (quota, period) = max.trim().split_once(' ')?;
            parse_quota(quota, period)
        }
    });
    quotas.reduce(f64::min)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// The directories of the process's groups and their parents, as `/proc/self/cgroup` names them. Inside a container
/// the named path may be the host's; the mount's root is then the container's own group, and is among the parents.
fn paths(groups: &str) -> Vec<(Version, String)> {
    let mut paths = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        let (version, root) = match controllers {
            "" => (Version::Two, "/sys/fs/cgroup".to_owned()),
            _ if controllers.split(',').any(|name| name == "cpu") => {
                (Version::One, format!("/sys/fs/cgroup/{controllers}"))
            }
            _ => continue,
        };
        let mut path = path.trim_end_matches('/');
        loop {
            paths.push((version, format!("{root}{path}")));
            match path.rfind('/') {
                Some(parent) => path = &path[..parent],
                None => break,
            }
        }
    }
    paths
}

fn parse_quota(quota: &str, period: &str) -> Option<f64> {
    let quota: f64 = quota.trim().parse().ok()?;
    let period: f64 = period.trim().parse().ok()?;
    // Version one says -1 where version two says "max".
    (quota > 0.0 && period > 0.0).then_some(quota / period)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_runs_where_it_is_pinned() {
        std::thread::spawn(|| {
            let allowed = allowed_cores();
            for n in 0..allowed.len() + 1 {
                pin_to(&allowed, n).unwrap();
                assert_eq!(allowed_cores(), [allowed[n % allowed.len()]]);
            }
            assert!(pin_to(&[], 0).is_err());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn quotas_are_read() {
        let check = |quota, period, expected| assert_eq!(parse_quota(quota, period), expected, "{quota} {period}");
        check("250000", "100000\n", Some(2.5));
        check("max", "100000", None);
        check("-1\n", "100000\n", None);
        check("50000", "0", None);
    }

    #[test]
    fn groups_are_looked_for_up_to_the_root() {
        assert_eq!(
            paths("0::/a/b\n"),
            ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"].map(|path| (Version::Two, path.to_owned()))
        );
        assert_eq!(
            paths("4:cpu,cpuacct:/x\n3:memory:/x\n"),
            ["/sys/fs/cgroup/cpu,cpuacct/x", "/sys/fs/cgroup/cpu,cpuacct"].map(|path| (Version::One, path.to_owned()))
        );
    }
}
