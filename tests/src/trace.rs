//! The system calls of a running process, as strace sees them. Operations that go through an io_uring are none.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::process;
use crate::wait::eventually;

/// A strace that is attached to all threads of a process.
pub struct Trace {
    strace: Child,
    folder: tempfile::TempDir,
}

/// What came of one system call, over all of its uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// How often it returned something.
    pub count: u64,
    /// The sum of what it returned: for those that move data, bytes.
    pub sum: u64,
}

impl Trace {
    /// Attaches to a process, for these system calls.
    ///
    /// # Panics
    /// If there is no strace (Debian: `apt-get install strace`), or it may not attach.
    #[track_caller]
    pub fn attach(pid: u32, calls: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let said = fs::File::create(folder.path().join("said")).expect("the folder is ours");
        let mut command = Command::new("strace");
        command.args(["-f", "-s", "0", "-e", "signal=none", "-e", &format!("trace={}", calls.join(","))]);
        command.arg("-o").arg(folder.path().join("calls")).args(["-p", &pid.to_string()]);
        let strace = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(said).spawn();
        let trace = Self { strace: strace.expect("strace; Debian: apt-get install strace"), folder };
        let threads = process::threads(pid).len();
        eventually("strace is attached to every thread", || {
            let said = fs::read_to_string(trace.file("said")).unwrap_or_default();
            assert!(!said.contains("ptrace"), "strace may not attach: {said}");
            // It says so of the process, and again of how many threads there are.
            (attached(&said) >= threads).then_some(())
        });
        trace
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Detaches, and gives what each system call has returned.
    ///
    /// # Panics
    /// If strace does not end.
    pub fn end(mut self) -> BTreeMap<String, Calls> {
        process::signal(self.strace.id(), Signal::INT);
        let _ = self.strace.wait();
        let text = fs::read(self.file("calls")).expect("strace has written it");
        let mut all = BTreeMap::<String, Calls>::new();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some((name, returned)) = call(line) {
                let calls = all.entry(name.to_owned()).or_default();
                calls.count += 1;
                calls.sum += returned;
            }
        }
        all
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // One that has ended may have left its id to another process.
        if let Ok(None) = self.strace.try_wait() {
            process::signal(self.strace.id(), Signal::INT);
            let _ = self.strace.wait();
        }
    }
}

/// How many threads strace says it has attached to.
fn attached(said: &str) -> usize {
    let with_threads =
        said.lines().find_map(|line| line.split_once(" attached with ")?.1.split(' ').next()?.parse().ok());
    with_threads.unwrap_or_else(|| said.matches(" attached").count())
}

/// The name of a call that returned something, and what. A line that begins a call that returns later says nothing yet.
fn call(line: &str) -> Option<(&str, u64)> {
    let (_thread, line) = line.split_once(' ')?;
    let line = line.trim_start();
    let returned = line.rsplit_once(" = ")?.1.split(' ').next()?.parse().ok()?;
    let name = match line.strip_prefix("<... ") {
        Some(resumed) => resumed.split(' ').next()?,
        None => line.split('(').next()?,
    };
    Some((name, returned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_read_whether_or_not_they_were_interrupted_by_others() {
        assert_eq!(call("12 splice(5, NULL, 7, NULL, 1048576, SPLICE_F_MOVE) = 65536"), Some(("splice", 65_536)));
        assert_eq!(call("12 <... splice resumed>) = 4096"), Some(("splice", 4096)));
        assert_eq!(call("12 splice(5, NULL, 7, NULL, 1048576, SPLICE_F_MOVE <unfinished ...>"), None);
        assert_eq!(call("12 read(5, 0x1, 8) = -1 EAGAIN (Resource temporarily unavailable)"), None);
        assert_eq!(call("12 +++ exited with 0 +++"), None);
    }

    #[test]
    fn attaching_is_counted_by_thread() {
        assert_eq!(attached("strace: Process 1 attached with 4 threads\n"), 4);
        assert_eq!(attached("strace: Process 1 attached\n"), 1);
    }
}
