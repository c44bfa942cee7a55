//! `ringmesh run` as process 1 of a container: a minimal init. The kernel ends a container with its process 1, so this one
//! does nothing that could fail: it starts control, starts it again when it dies, passes signals on, and reaps the
//! orphans that the kernel hands to process 1, the data plane of a control that died among them.

use std::env;
use std::fmt;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal as Number, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

use super::backoff::Backoff;
use super::signals::{Signal, Signals};
use crate::cli::Failure;

/// Tells control that an init is above it.
const UNDER_INIT: &str = "RINGMESH_UNDER_INIT";

/// A control that fails within this time of the first start has a config or a machine that it cannot work with: the
/// container ends, so that somebody sees it.
const FIRST_START: Duration = Duration::from_secs(5);

/// Whether this process is process 1 and has no control below it yet.
pub fn is_needed() -> bool {
    std::process::id() == 1 && env::var_os(UNDER_INIT).is_none()
}

/// Runs control as a child, with the same arguments, until it ends by itself.
///
/// # Errors
/// If control cannot be started at all, or failed at its first start.
pub fn run() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(watch())
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself, with this exit code.
    Code(i32),
    /// By this signal.
    Killed(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Killed(signal) => write!(f, "killed by signal {signal}"),
        }
    }
}

async fn watch() -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut children = signal(SignalKind::child())?;
    let mut backoff = Backoff::default();
    let mut asked_to_end = false;
    let mut first = true;
    loop {
        let started = Instant::now();
        let control = start()?;
        let end = loop {
            tokio::select! {
                signal = signals.next() => {
                    asked_to_end |= signal != Signal::HangUp;
                    pass_on(control, signal);
                }
                _ = children.recv() => {
                    if let Some((_, end)) = reap().into_iter().find(|(pid, _)| *pid == control) {
                        break end;
                    }
                }
            }
        };
        let ran = started.elapsed();
        match end {
            End::Code(0) => return Ok(()),
            End::Code(code) if asked_to_end || (first && ran < FIRST_START) => {
                return Err(match code {
                    2 => Failure::Wrong("ringmesh: control says that the config is wrong".to_owned()),
                    code => Failure::Failed(anyhow::anyhow!("control failed with exit code {code}")),
                });
            }
            end => tracing::error!(?end, "control is gone; the data plane goes on, and a new control adopts it"),
        }
        if asked_to_end {
            return Err(Failure::Failed(anyhow::anyhow!("control was killed while it ended")));
        }
        first = false;
        tokio::time::sleep(backoff.pause(ran)).await;
    }
}

fn start() -> io::Result<Pid> {
    let mut control = Command::new("/proc/self/exe");
    // In a group of its own: Ctrl-C reaches it through us, once.
    control.arg0("ringmesh").args(env::args_os().skip(1)).env(UNDER_INIT, "1").process_group(0);
    let child = control.spawn()?;
    // Reaped below with all others.
    Ok(Pid::from_child(&child))
}

fn pass_on(control: Pid, signal: Signal) {
    let number = match signal {
        Signal::Terminate => Number::TERM,
        Signal::Interrupt => Number::INT,
        Signal::HangUp => Number::HUP,
    };
    // It fails only if control is gone, which is noticed elsewhere.
    let _ = kill_process(control, number);
}

/// Reaps whoever has ended, and says how each did.
pub fn reap() -> Vec<(Pid, End)> {
    let next = || wait(WaitOptions::NOHANG).ok().flatten();
    std::iter::from_fn(next).map(|(pid, status)| (pid, describe(status))).collect()
}

fn describe(status: WaitStatus) -> End {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => End::Code(code),
        (None, signal) => End::Killed(signal.unwrap_or_default()),
    }
}
