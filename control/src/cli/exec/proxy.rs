//! The proxy beside a command: a control process, which starts the data plane.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::Args;
use crate::admin::ready;
use crate::cli::place::ask;
use crate::cli::stop;
use crate::directory::Directory;
use crate::log::Format;
use crate::supervisor::backoff::Backoff;
use crate::supervisor::init::End;
use crate::supervisor::socket::{Answer, Question};

/// How often what has no event is looked at.
pub(super) const LOOK: Duration = Duration::from_millis(10);

/// A control process.
pub(super) struct Proxy {
    config: PathBuf,
    directory: Directory,
    format: Option<Format>,
    /// None: it has ended.
    control: Option<Pid>,
    /// Whether the runtime directory is known to be ours, and not another's with the same config.
    served: bool,
    since: Instant,
    /// When it is started again.
    again: Option<Instant>,
    backoff: Backoff,
}

impl Proxy {
    pub(super) fn start(arguments: &Args, directory: Directory) -> io::Result<Self> {
        let mut proxy = Self {
            config: arguments.config.clone(),
            directory,
            format: arguments.log_format,
            control: None,
            served: false,
            since: Instant::now(),
            again: None,
            backoff: Backoff::default(),
        };
        proxy.start_control()?;
        Ok(proxy)
    }

    fn start_control(&mut self) -> io::Result<()> {
        let mut control = Command::new("/proc/self/exe");
        control.arg0("ringmesh").arg("run").arg("-c").arg(&self.config);
        control.arg("--runtime-dir").arg(self.directory.path());
        control.args(self.format.iter().flat_map(|format| ["--log-format", format.as_str()]));
        // Standard output is the command's: what control prints there, the access log, goes where its log goes. In a group
        // of its own, the terminal's keys do not reach it.
        control.stdin(Stdio::null()).stdout(io::stderr().as_fd().try_clone_to_owned()?).process_group(0);
        self.control = Some(Pid::from_child(&control.spawn()?));
        self.since = Instant::now();
        Ok(())
    }

    /// Whether this is control's process.
    pub(super) fn is(&self, pid: Pid) -> bool {
        self.control == Some(pid)
    }

    pub(super) fn is_there(&self) -> bool {
        self.control.is_some()
    }

    /// It was reaped, as was to be expected.
    pub(super) fn has_ended(&mut self) {
        self.control = None;
    }

    /// It was reaped while it should run.
    pub(super) fn has_died(&mut self, end: End) {
        self.control = None;
        if end == End::Code(0) {
            tracing::warn!(target: "ringmesh", "the proxy was told to end; the command goes on without it");
            return;
        }
        tracing::error!(target: "ringmesh", %end, "control is gone; the data plane goes on, and a new control adopts it");
        self.again = Some(Instant::now() + self.backoff.pause(self.since.elapsed()));
    }

    /// How long until something is to be done.
    pub(super) fn due(&self) -> Duration {
        self.again.map_or(Duration::MAX, |again| again.saturating_duration_since(Instant::now()))
    }

    pub(super) fn restart_if_due(&mut self) {
        if self.again.is_none_or(|again| again > Instant::now()) {
            return;
        }
        self.again = None;
        if let Err(error) = self.start_control() {
            tracing::error!(target: "ringmesh", "control cannot be started: {error}");
            self.again = Some(Instant::now() + self.backoff.pause(Duration::ZERO).max(Duration::from_secs(1)));
        }
    }

    /// All is served as configured.
    pub(super) fn has_become_ready(&mut self) {
        self.served = true;
    }

    /// Sends control a signal.
    pub(super) fn pass_on(&self, signal: Signal) {
        if let Some(control) = self.control {
            // It fails only if control is gone.
            let _ = kill_process(control, signal);
        }
    }

    /// Asks control again and again, in a thread, because it may take seconds to answer.
    pub(super) fn watch_readiness(&self) -> Readiness {
        let readiness = Readiness::default();
        let (shared, directory) = (readiness.clone(), self.directory.clone());
        let control = self.control.map_or(0, |control| control.as_raw_nonzero().get().cast_unsigned());
        thread::spawn(move || {
            while Arc::strong_count(&shared.0) > 1 {
                let missing = match ask(&directory, &Question::Status) {
                    // Another one may have the directory, until ours finds out.
                    Ok(Some((Answer::State(state), _))) if state.control.pid == control => ready::missing(&state),
                    Ok(_) => vec!["control does not answer yet".to_owned()],
                    Err(failure) => vec![failure.to_string()],
                };
                if missing.is_empty() {
                    return shared.0.ready.store(true, Ordering::Release);
                }
                *shared.0.missing.lock().unwrap_or_else(PoisonError::into_inner) = missing.join("; ");
                thread::sleep(LOOK);
            }
        });
        readiness
    }

    /// Ends both at once.
    pub(super) fn kill(&mut self) {
        self.pass_on(Signal::KILL);
        if self.served
            && let Err(failure) = stop::end(self.directory.clone(), Some(Duration::ZERO))
        {
            tracing::error!(target: "ringmesh", "{failure}");
        }
    }

    /// Ends control and data plane; what is open may go on for this time.
    pub(super) fn end(&mut self, patience: Duration) -> Ending {
        self.again = None;
        let ending = Ending::default();
        if !self.served {
            self.pass_on(Signal::TERM);
            ending.0.over.store(true, Ordering::Release);
            return ending;
        }
        let (directory, shared) = (self.directory.clone(), ending.0.clone());
        thread::spawn(move || {
            if let Err(failure) = stop::end(directory, Some(patience)) {
                tracing::warn!(target: "ringmesh", "{failure}");
                shared.failed.store(true, Ordering::Release);
            }
            shared.over.store(true, Ordering::Release);
        });
        ending
    }
}

/// Whether the proxy serves as configured.
#[derive(Clone, Default)]
pub(super) struct Readiness(Arc<Asked>);

#[derive(Default)]
struct Asked {
    ready: AtomicBool,
    missing: Mutex<String>,
}

impl Readiness {
    pub(super) fn is_ready(&self) -> bool {
        self.0.ready.load(Ordering::Acquire)
    }

    /// What is missing for it, in words.
    pub(super) fn missing(&self) -> String {
        self.0.missing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The end of a proxy, under way.
#[derive(Default)]
pub(super) struct Ending(Arc<Asking>);

#[derive(Default)]
struct Asking {
    over: AtomicBool,
    failed: AtomicBool,
}

impl Ending {
    pub(super) fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Acquire)
    }

    /// Whether nobody was found to ask: somebody has swept the runtime directory away. True once.
    pub(super) fn has_failed(&self) -> bool {
        self.0.failed.swap(false, Ordering::AcqRel)
    }
}
