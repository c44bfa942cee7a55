//! Processes of our own: started on a core, measured by what `/proc` says of them and of all that they started, ended by id.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::machine::TICKS_PER_SECOND;
use crate::programs;

/// How long a process may take to end when it is asked to.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// Lines of the log that an error shows.
const TAIL_LINES: usize = 20;

/// A process with all that it has started. Dropped, all of them end.
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

/// What processes have used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Time on CPU of all threads, those included that have ended while their process lives.
    pub cpu: Duration,
    /// Processes.
    pub processes: usize,
    /// How often threads have woken up after they had chosen to wait.
    pub wake_ups: u64,
    /// Resident memory.
    pub rss_kib: u64,
    /// Resident memory, with what is shared between processes divided among them.
    pub pss_kib: u64,
}

impl Process {
    /// Starts `command` on these cores and no other. What it says goes to `log`.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(cores: &[usize], name: &str, command: &[String], log: &Path) -> anyhow::Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let child = on_cores(cores, command)?
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name: name.to_owned(), log: log.to_owned() })
    }

    /// Fails if it has ended, with the end of its log.
    ///
    /// # Errors
    /// If it has ended.
    pub fn check(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} has ended, {status}; its log:\n{}", self.name, self.log_tail());
        }
        Ok(())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// All that it and its descendants have said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it and its descendants have used.
    pub fn usage(&self) -> Usage {
        let mut sum = Usage::default();
        for pid in family(self.child.id()) {
            sum.cpu += cpu(pid);
            sum.processes += 1;
            sum.wake_ups += wake_ups(pid);
            sum.rss_kib += number_after(format!("/proc/{pid}/status"), "VmRSS:");
            sum.pss_kib += number_after(format!("/proc/{pid}/smaps_rollup"), "Pss:");
        }
        sum
    }

    /// The time on CPU of each living thread of it and its descendants, by the thread's place in `/proc`.
    pub fn threads(&self) -> Vec<(String, Duration)> {
        let tasks = |pid: u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let time = |task: fs::DirEntry| {
            let nanoseconds = nanoseconds(&task)?;
            Some((task.path().to_string_lossy().into_owned(), Duration::from_nanos(nanoseconds)))
        };
        family(self.child.id()).into_iter().flat_map(tasks).filter_map(time).collect()
    }

    /// Waits until none of these lives any more; whether that came to pass.
    fn wait_for(&mut self, family: &[u32], length: Duration) -> bool {
        let until = Instant::now() + length;
        loop {
            let reaped = !matches!(self.child.try_wait(), Ok(None));
            if reaped && !family.iter().any(|pid| lives(*pid)) {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was reaped has no id any more: whoever has it now is not ours.
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        // As long as the parent lives, its children are known to be ours; their descriptors mean them even afterwards.
        let family = family(self.child.id());
        let own =
            |pid: &u32| Some((*pid, pidfd_open(Pid::from_raw(i32::try_from(*pid).ok()?)?, PidfdFlags::empty()).ok()?));
        let descriptors: Vec<(u32, OwnedFd)> = family.iter().filter_map(own).collect();
        let still = self::family(self.child.id());
        let signal_to = |pid: u32, descriptor: &OwnedFd, signal: Signal| {
            // The id was ours before and after the descriptor was opened. One that has just ended needs none.
            if still.contains(&pid) {
                let _ = pidfd_send_signal(descriptor, signal);
            }
        };
        for (pid, descriptor) in descriptors.iter().filter(|(pid, _)| *pid == self.child.id()) {
            signal_to(*pid, descriptor, Signal::TERM);
        }
        if !self.wait_for(&family, END_TIMEOUT) {
            descriptors.iter().for_each(|(pid, descriptor)| signal_to(*pid, descriptor, Signal::KILL));
            self.wait_for(&family, END_TIMEOUT);
        }
    }
}

/// One that waits to be reaped has no command line, and does not live.
fn lives(pid: u32) -> bool {
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// A command that runs on these cores and no other.
///
/// # Errors
/// If `taskset` is missing.
pub fn on_cores(cores: &[usize], command: &[String]) -> anyhow::Result<Command> {
    let list: Vec<String> = cores.iter().map(usize::to_string).collect();
    let mut pinned = Command::new(programs::of_system("taskset")?);
    pinned.args(["-c", &list.join(",")]).args(command);
    Ok(pinned)
}

/// A process and its descendants.
fn family(first: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut family = vec![first];
    let mut next = 0;
    while let Some(pid) = family.get(next) {
        family.extend(children.get(pid).into_iter().flatten().copied().collect::<Vec<u32>>());
        next += 1;
    }
    family
}

/// The fields of `/proc/PID/stat` from the third (the state) on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(") ")?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

/// The kernel counts a thread's time in nanoseconds while it lives, and that of all threads in ticks for ever.
fn cpu(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let of_living: u64 = tasks.filter_map(|task| nanoseconds(&task)).sum();
    let ticks: u64 = stat(pid)
        .and_then(|fields| fields.get(11..13)?.iter().map(|field| field.parse::<u64>().ok()).sum())
        .unwrap_or(0);
    let of_all = Duration::from_secs(ticks) / TICKS_PER_SECOND;
    Duration::from_nanos(of_living).max(of_all)
}

/// A thread's time on CPU.
fn nanoseconds(task: &fs::DirEntry) -> Option<u64> {
    let text = fs::read_to_string(task.path().join("schedstat")).ok()?;
    text.split_whitespace().next()?.parse().ok()
}

fn wake_ups(pid: u32) -> u64 {
    let count = |task: fs::DirEntry| number_after(task.path().join("status"), "voluntary_ctxt_switches:");
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten().map(count).sum()
}

/// The number after a word at a line's beginning; 0 if there is none.
fn number_after(file: impl AsRef<Path>, word: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(word));
    value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_measured_with_its_children_and_ends_with_them() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let script = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; sleep 60 & echo ready; wait";
        let command = ["sh", "-c", script].map(str::to_owned);
        let cores = ringmesh_ring::affinity::allowed_cores();
        let process = Process::start(&cores[..1], "a shell", &command, &log).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        while !process.log().contains("ready") && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let usage = process.usage();
        assert!(usage.cpu > Duration::ZERO && usage.rss_kib > 0 && usage.pss_kib > 0, "{usage:?}");
        let pids = family(process.child.id());
        assert_eq!(pids.len(), 2, "the shell and its child");
        drop(process);
        for pid in pids {
            assert!(!lives(pid), "{pid} lives");
        }
    }
}
