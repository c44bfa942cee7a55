//! The processes of the shop: started with a log file each, ended by id, none left behind.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How often the end of a process is looked for.
const TICK: Duration = Duration::from_millis(20);

/// How much of a log is shown when its process failed, in bytes.
const TAIL_BYTES: usize = 2_000;

/// A process could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start {name}")]
pub(super) struct Error {
    name: String,
    source: io::Error,
}

/// A process that the demo has started. Dropping it kills it.
pub(super) struct Child {
    /// What it is, for people.
    pub(super) name: String,
    process: Process,
    log: PathBuf,
    /// The data planes that a control process has started; they outlive it if it is killed.
    descendants: Vec<Descendant>,
    ended: Option<ExitStatus>,
}

impl Child {
    /// Starts this very program with other arguments; what it says goes to the log.
    pub(super) fn start<A: AsRef<OsStr>>(name: &str, arguments: &[A], logs: &Path) -> Result<Self, Error> {
        let failed = |source| Error { name: name.to_owned(), source };
        let log = logs.join(format!("{name}.log"));
        let file = File::create(&log).map_err(failed)?;
        let process = Command::new(own_program().map_err(failed)?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file.try_clone().map_err(failed)?)
            .stderr(file)
            // Ctrl-C in the terminal is for the demo alone, which ends the others in their order.
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        Ok(Self { name: name.to_owned(), process, log, descendants: Vec::new(), ended: None })
    }

    /// Its process id.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its child processes, seen so far.
    pub(super) fn descendants(&self) -> impl Iterator<Item = u32> {
        self.descendants.iter().map(|one| one.pid.as_raw_pid().unsigned_abs())
    }

    /// Looks for child processes that are new.
    pub(super) fn find_descendants(&mut self) {
        for pid in children_of(self.id()) {
            if !self.descendants.iter().any(|known| known.pid == pid && known.is_alive()) {
                self.descendants.extend(Descendant::of(self.id(), pid));
            }
        }
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.process.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Asks it to end (SIGTERM).
    pub(super) fn ask_to_end(&mut self) {
        self.find_descendants();
        // Each may have ended just now. Children of a process that has ended already must be told themselves.
        if self.ended().is_none() {
            let _gone = kill_process(pid(self.id()), Signal::TERM);
        } else {
            self.descendants.iter().for_each(|orphan| orphan.signal(Signal::TERM));
        }
    }

    /// Waits for its end and that of its children until a deadline; kills what is left then. Says whether all ended by
    /// themselves and well.
    pub(super) fn wait(&mut self, deadline: Instant) -> Result<(), String> {
        while self.ended().is_none() && Instant::now() < deadline {
            thread::sleep(TICK);
        }
        let mut wrong = Vec::new();
        match self.ended() {
            Some(status) if status.success() => {}
            Some(status) => wrong.push(format!("{} ended with {status}", self.name)),
            None => {
                wrong.push(format!("{} did not end when asked to and was killed", self.name));
                self.kill();
            }
        }
        for orphan in std::mem::take(&mut self.descendants) {
            if !orphan.ends_by(deadline) {
                let pid = orphan.pid.as_raw_pid();
                wrong.push(format!("process {pid} of {} was left behind and was killed", self.name));
                orphan.signal(Signal::KILL);
            }
        }
        if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) }
    }

    /// The end of its log.
    pub(super) fn log_tail(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let tail = String::from_utf8_lossy(&text[text.len().saturating_sub(TAIL_BYTES)..]).into_owned();
        match tail.trim() {
            "" => "(its log is empty)".to_owned(),
            tail => tail.to_owned(),
        }
    }

    fn kill(&mut self) {
        let _gone = self.process.kill();
        self.ended = self.process.wait().ok();
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.ended().is_none() {
            self.find_descendants();
            self.kill();
        }
        self.descendants.iter().for_each(|orphan| orphan.signal(Signal::KILL));
    }
}

/// This program, also when its file was replaced or removed while it runs.
fn own_program() -> io::Result<OsString> {
    let path = std::env::current_exe()?;
    Ok(if path.exists() { path.into_os_string() } else { "/proc/self/exe".into() })
}

fn pid(id: u32) -> Pid {
    i32::try_from(id).ok().and_then(Pid::from_raw).expect("the kernel's process ids are positive")
}

/// A process that a child of ours has started. Its id may be another's once it has ended and was reaped; its descriptor
/// means it and no other.
struct Descendant {
    pid: Pid,
    descriptor: OwnedFd,
}

impl Descendant {
    /// None: it has ended by now.
    fn of(parent: u32, pid: Pid) -> Option<Self> {
        let descriptor = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // Asked once the descriptor is there: whoever has the id now is the one that it means.
        let its_parent = stat(pid.as_raw_pid())?.1;
        (its_parent == parent).then_some(Self { pid, descriptor })
    }

    /// Signals it, unless it has ended.
    fn signal(&self, signal: Signal) {
        let _gone = pidfd_send_signal(&self.descriptor, signal);
    }

    fn ends_by(&self, deadline: Instant) -> bool {
        while self.is_alive() {
            if Instant::now() >= deadline {
                return false;
            }
            thread::sleep(TICK);
        }
        true
    }

    /// Whether it runs; one that waits to be reaped by another does not.
    fn is_alive(&self) -> bool {
        // A pidfd is readable from the process's end on.
        let mut descriptors = [PollFd::new(&self.descriptor, PollFlags::IN)];
        matches!(poll(&mut descriptors, Some(&Timespec::default())), Ok(0))
    }
}

/// The processes whose parent this is.
fn children_of(parent: u32) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|process| stat(*process).is_some_and(|(_, its_parent)| its_parent == parent))
        .filter_map(Pid::from_raw)
        .collect()
}

/// State and parent of a process (proc_pid_stat(5)).
fn stat(process: i32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may itself hold blanks and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
