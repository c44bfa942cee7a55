//! The thread that writes the access log, about once a second, or sooner when a worker's ring fills.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::events::Events;
use super::limits::DRAIN_INTERVAL;

/// Where the lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; opened again when it was moved away (log rotation).
    File(PathBuf),
}

/// The running thread. Dropped, it ends soon after, without anybody waiting for it.
pub struct Writer {
    stop: OwnedFd,
    ended: mpsc::Receiver<()>,
}

impl Writer {
    /// Starts it. `wake` is the descriptor that workers write to when their ring fills.
    ///
    /// # Errors
    /// If there is no descriptor or no thread left.
    pub fn start(events: Events, wake: OwnedFd, sink: Sink) -> io::Result<Self> {
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stopped = stop.try_clone()?;
        let (end, ended) = mpsc::channel();
        thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            run(&events, wake.as_fd(), stopped.as_fd(), Output::new(sink));
            let _ = end.send(());
        })?;
        Ok(Self { stop, ended })
    }

    /// Writes what there is and ends; gives up after `timeout`, if nobody reads the log.
    pub fn finish(self, timeout: Duration) {
        self.signal();
        let _ = self.ended.recv_timeout(timeout);
    }

    fn signal(&self) {
        // Only a counter at its very end refuses this, and it would be signalled already.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.signal();
    }
}

fn run(events: &Events, wake: BorrowedFd<'_>, stop: BorrowedFd<'_>, mut output: Output) {
    let mut lines = Vec::new();
    let mut patience = DRAIN_INTERVAL;
    loop {
        let stopped = wait(wake, stop, patience);
        lines.clear();
        events.take_lines(&mut lines);
        if let Err(error) = output.write(&lines) {
            events.count_lost(lines.iter().filter(|byte| **byte == b'\n').count() as u64);
            output.complain(&error);
        }
        if stopped {
            return;
        }
        // Where there were lines there may be more already.
        patience = if lines.is_empty() { DRAIN_INTERVAL } else { Duration::ZERO };
    }
}

/// Waits until a worker wakes us, patience is over, or the end has come (then true).
fn wait(wake: BorrowedFd<'_>, stop: BorrowedFd<'_>, patience: Duration) -> bool {
    let mut ready = [PollFd::new(&wake, PollFlags::IN), PollFd::new(&stop, PollFlags::IN)];
    let patience = Timespec::try_from(patience).expect("a second fits");
    if poll(&mut ready, Some(&patience)).is_err() {
        return false;
    }
    let [woken, stopped] = ready.map(|descriptor| !descriptor.revents().is_empty());
    if woken && rustix::io::read(wake, &mut [0; 8]).is_err() && !stopped {
        // Not a counter that can be read: do not spin on it.
        thread::sleep(DRAIN_INTERVAL);
    }
    stopped
}

/// Where lines are written, and what was last wrong with it.
struct Output {
    sink: Sink,
    file: Option<File>,
    complaint: Option<io::ErrorKind>,
}

impl Output {
    fn new(sink: Sink) -> Self {
        Self { sink, file: None, complaint: None }
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if lines.is_empty() {
            return Ok(());
        }
        match &self.sink {
            Sink::Stdout => {
                let mut stdout = io::stdout().lock();
                stdout.write_all(lines)?;
                stdout.flush()
            }
            Sink::Stderr => io::stderr().lock().write_all(lines),
            Sink::File(path) => {
                if !self.file.as_ref().is_some_and(|file| names(path, file)) {
                    // Paths and identities are for the operator alone.
                    self.file = Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?);
                }
                self.file.as_mut().expect("opened above").write_all(lines)
            }
        }?;
        self.complaint = None;
        Ok(())
    }

    /// Says what is wrong, once until it is something else.
    fn complain(&mut self, error: &io::Error) {
        if self.complaint.replace(error.kind()) != Some(error.kind()) {
            tracing::warn!(target: "ringmesh::telemetry", sink = ?self.sink, "the access log cannot be written: {error}");
        }
    }
}

/// Whether the path still names the open file.
fn names(path: &Path, file: &File) -> bool {
    match (fs::metadata(path), file.metadata()) {
        (Ok(named), Ok(open)) => named.dev() == open.dev() && named.ino() == open.ino(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ringmesh_dataplane::telemetry::event::Event;

    use super::super::access::{self, tests::access};
    use super::super::events::tests::{Ring, attached};
    use super::*;

    /// Five times what a line may take to arrive, and more.
    const DEADLINE: Duration = Duration::from_secs(10);

    fn line() -> Vec<u8> {
        let mut line = Vec::new();
        access::write_request(&access(), &mut line);
        line
    }

    fn wait_for(path: &Path, expected: &[u8]) {
        let begin = Instant::now();
        while fs::read(path).unwrap_or_default() != expected {
            assert!(
                begin.elapsed() < DEADLINE,
                "found {:?}",
                String::from_utf8_lossy(&fs::read(path).unwrap_or_default())
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn nudge(wake: &OwnedFd) {
        rustix::io::write(wake, &1_u64.to_ne_bytes()).unwrap();
    }

    #[test]
    fn lines_are_written_when_a_worker_wakes_us_and_in_any_case_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ring = Ring::default();
        let writer = Writer::start(attached(&ring), wake.try_clone().unwrap(), Sink::File(path.clone())).unwrap();
        ring.push(&Event::Access(access()));
        nudge(&wake);
        wait_for(&path, &line());
        ring.push(&Event::Access(access()));
        wait_for(&path, &line().repeat(2));
        writer.finish(DEADLINE);
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, old) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ring = Ring::default();
        let writer = Writer::start(attached(&ring), wake.try_clone().unwrap(), Sink::File(path.clone())).unwrap();
        ring.push(&Event::Access(access()));
        nudge(&wake);
        wait_for(&path, &line());
        fs::rename(&path, &old).unwrap();
        ring.push(&Event::Access(access()));
        nudge(&wake);
        wait_for(&path, &line());
        assert_eq!(fs::read(&old).unwrap(), line());
        writer.finish(DEADLINE);
    }

    #[test]
    fn the_end_waits_for_the_last_lines() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ring = Ring::default();
        let writer = Writer::start(attached(&ring), wake, Sink::File(path.clone())).unwrap();
        (0..100).for_each(|_| ring.push(&Event::Access(access())));
        writer.finish(DEADLINE);
        assert_eq!(fs::read(&path).unwrap(), line().repeat(100));
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_the_thread_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("missing").join("access.log");
        let wake = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        let ring = Ring::default();
        let events = attached(&ring);
        let writer = Writer::start(events.clone(), wake.try_clone().unwrap(), Sink::File(path.clone())).unwrap();
        ring.push(&Event::Access(access()));
        nudge(&wake);
        let begin = Instant::now();
        while events.tally().lines_lost != 1 {
            assert!(begin.elapsed() < DEADLINE);
            thread::sleep(Duration::from_millis(5));
        }
        fs::create_dir(path.parent().unwrap()).unwrap();
        ring.push(&Event::Access(access()));
        nudge(&wake);
        wait_for(&path, &line());
        writer.finish(DEADLINE);
    }
}
