//! A data plane process: starting it, watching it, killing it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::log::Format;

/// The executable that runs now, even if its file has been replaced.
const OWN_EXECUTABLE: &str = "/proc/self/exe";

/// How a data plane is started.
pub(super) struct Plan<'a> {
    /// From which level on it logs.
    pub(super) level: &'a str,
    /// How it logs.
    pub(super) format: Format,
    /// What it is called in a list of processes.
    pub(super) of: &'a str,
}

/// A data plane process. Dropping it leaves it alone.
pub(super) struct Process {
    pid: u32,
    descriptor: AsyncFd<OwnedFd>,
    /// None: it was adopted, so somebody else reaps it.
    child: Option<Child>,
}

impl Process {
    /// Starts one, with our end of the socket to it.
    pub(super) fn start(plan: &Plan<'_>) -> io::Result<(Self, UnixStream)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let mut command = Command::new(OWN_EXECUTABLE);
        command.arg0("ringmesh").arg("dataplane");
        command.args(["--of", plan.of, "--log-level", plan.level, "--log-format", plan.format.as_str()]);
        let mut child = command.stdin(Stdio::from(theirs)).spawn()?;
        match Self::open(child.id(), None) {
            Ok(process) => Ok((Self { child: Some(child), ..process }, UnixStream::from(ours))),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Watches one that runs already. Somebody must vouch afterwards that it still runs, or the id may be another's.
    pub(super) fn adopt(pid: u32) -> io::Result<Self> {
        Self::open(pid, None)
    }

    fn open(pid: u32, child: Option<Child>) -> io::Result<Self> {
        let id = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = pidfd_open(id, PidfdFlags::NONBLOCK)?;
        #[expect(deprecated, reason = "unsound only for types whose descriptor may change; its successor is unsafe")]
        let descriptor = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        Ok(Self { pid, descriptor, child })
    }

    /// The one that was written down by [`Self::note`], if it still runs.
    pub(super) fn noted(path: &Path) -> Option<Self> {
        let note = fs::read_to_string(path).ok()?;
        let (pid, since) = note.trim().split_once(' ')?;
        let process = Self::open(pid.parse().ok()?, None).ok()?;
        // Asked after the descriptor was opened: if it is the same process now, it was then.
        (start_time(process.pid).as_deref() == Some(since)).then_some(process)
    }

    /// What tells this process from any other, also one that gets its id later.
    pub(super) fn note(&self) -> String {
        format!("{} {}", self.pid, start_time(self.pid).unwrap_or_default())
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits for its end, and says how it ended. May be dropped at any time.
    pub(super) async fn ended(&mut self) -> String {
        // A pidfd is readable from the end on; an error would mean that it is no pidfd.
        let _ = self.descriptor.readable().await;
        let Some(child) = &mut self.child else { return "ended".to_owned() };
        match child.wait() {
            Ok(status) => describe(status),
            // Somebody else (an init that reaps everything) was faster.
            Err(_) => "ended".to_owned(),
        }
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        // It fails only if the process is gone.
        let _ = pidfd_send_signal(self.descriptor.get_ref().as_fd(), Signal::KILL);
    }
}

/// When a process was started, in ticks since the machine was (proc_pid_stat(5), field 22).
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name stands in parentheses, and may hold anything; fields count from 3 behind it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(22 - 3).map(str::to_owned)
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended by itself".to_owned(),
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => status.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_note_finds_the_process_and_no_other_with_its_id() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("data.pid");
        let own = Process::adopt(std::process::id()).expect("we run");
        fs::write(&path, own.note()).expect("written");
        assert_eq!(Process::noted(&path).map(|process| process.pid()), Some(std::process::id()));
        fs::write(&path, format!("{} 1", std::process::id())).expect("written");
        assert!(Process::noted(&path).is_none(), "that was another process");
    }

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(describe(ExitStatus::from_raw(0)), "ended by itself");
        assert_eq!(describe(ExitStatus::from_raw(1 << 8)), "failed with exit code 1");
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by signal 9");
    }
}
