//! Processes as `/proc` shows them: which belong to a proxy, what they hold, how often they wake up; and ending them by id.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// What a process of ours does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `ringmesh run`, also as the init of a PID namespace.
    Run,
    /// `ringmesh dataplane`.
    Dataplane,
}

/// All living processes of the proxy with this config file and runtime directory.
pub fn of_proxy(file: &Path, directory: &Path) -> Vec<(u32, Role)> {
    let (file, directory) = (file.to_string_lossy(), directory.to_string_lossy());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, role(pid, &file, &directory)?))).collect()
}

fn role(pid: u32, file: &str, directory: &str) -> Option<Role> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<&str> = line.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let follows = |flag: &str, value: &str| words.windows(2).any(|pair| pair == [flag, value]);
    // A zombie has no command line, so what is found here lives.
    match *words.get(1)? {
        "dataplane" if follows("--of", directory) => Some(Role::Dataplane),
        "run" if follows("-c", file) => Some(Role::Run),
        _ => None,
    }
}

/// Sends a signal to a process of ours by its id. One that is gone is left alone, and so is whoever has got its id since: it
/// has another command line than `ringmesh`, or another parent than us.
pub fn signal(pid: u32, signal: Signal) {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return };
    let Ok(descriptor) = pidfd_open(id, PidfdFlags::empty()) else { return };
    // Asked once the descriptor is there: whoever has the id now is the one that it means.
    let ours = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| {
        let first = line.split(|byte| *byte == 0).next().unwrap_or_default();
        first == b"ringmesh" || first.ends_with(b"/ringmesh")
    });
    if ours || parent(pid) == Some(std::process::id()) {
        let _ = pidfd_send_signal(&descriptor, signal);
    }
}

/// Ends a process at once.
pub fn kill(pid: u32) {
    signal(pid, Signal::KILL);
}

/// Whether the process lives; one that waits to be reaped does not.
pub fn lives(pid: u32) -> bool {
    status_value(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The id of the parent.
pub fn parent(pid: u32) -> Option<u32> {
    status_value(pid, "PPid")?.parse().ok()
}

/// How many descriptors it has open.
///
/// # Panics
/// If it is gone.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").count()
}

/// What its descriptors are, sorted: for a message about why there are too many.
pub fn descriptor_kinds(pid: u32) -> Vec<String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return Vec::new() };
    let links = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let mut kinds: Vec<String> =
        links.map(|link| link.to_string_lossy().split(":[").next().unwrap_or_default().to_owned()).collect();
    kinds.sort();
    kinds
}

/// Its proportional set size, in bytes.
///
/// # Panics
/// If it is gone, or another user's.
pub fn proportional_set_size(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives, and is ours");
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).expect("Linux 4.14 and later has it");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().expect("a number of kB") * 1024
}

/// Its resident set size, in bytes.
///
/// # Panics
/// If it is gone.
pub fn resident_set_size(pid: u32) -> u64 {
    let text = status_value(pid, "VmRSS").expect("the process lives");
    text.trim_end_matches("kB").trim().parse::<u64>().expect("a number of kB") * 1024
}

/// The processor time that it has used.
///
/// # Panics
/// If it is gone.
pub fn processor_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th behind it.
    let (_, rest) = stat.rsplit_once(')').expect("Linux writes it so");
    let ticks: u64 = rest.split_whitespace().skip(11).take(2).map(|word| word.parse::<u64>().expect("a number")).sum();
    Duration::from_millis(ticks * 1_000 / rustix::param::clock_ticks_per_second())
}

/// How often its threads have woken up after they had chosen to wait.
///
/// # Panics
/// If it is gone.
pub fn wake_ups(pid: u32) -> u64 {
    threads(pid).iter().map(|thread| thread.1).sum()
}

/// The names of its threads, with how often each has woken up.
///
/// # Panics
/// If it is gone.
pub fn threads(pid: u32) -> Vec<(String, u64)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let one = |task: fs::DirEntry| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let count = value(&status, "voluntary_ctxt_switches")?.parse().ok()?;
        Some((value(&status, "Name")?.to_owned(), count))
    };
    tasks.flatten().filter_map(one).collect()
}

fn status_value(pid: u32, key: &str) -> Option<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(value(&status, key)?.to_owned())
}

fn value<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}
