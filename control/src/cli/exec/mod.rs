//! `ringmesh exec`: a command that finds its proxy serving from its first moment on, and a proxy that ends with it.
//!
//! It is the init of both: it starts control, which starts the data plane, waits until all is served, starts the command,
//! passes signals on to it, and reaps whatever ends. A control that dies is started again and adopts the data plane, so
//! that the command notices nothing.

mod proxy;
mod signals;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::anyhow;
use ringmesh_model::unit;
use rustix::process::{Pid, Signal, kill_process};

use self::proxy::Proxy;
use self::signals::Received;
use super::Failure;
use crate::directory::Directory;
use crate::log::{self, Format};
use crate::supervisor;
use crate::supervisor::init::{End, reap};

const AFTER_HELP: &str = "\
The command starts once the proxy serves: its config is live on all workers,
its ports are bound, its identity is there. Otherwise the command never runs.
When the command ends, open requests are finished and the proxy ends too.

The command has standard input, output and error to itself, but for the
proxy's log and access log, which go to standard error. SIGTERM, SIGINT,
SIGQUIT, SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH reach it. It works as process
1 of a container.

Examples:
  ringmesh exec -c sidecar.toml -- ./server --port 8080
  ringmesh exec -c sidecar.toml --ready-timeout 5s -- sh -c 'curl -s http://payments/ | jq'

Exit codes:
  that of the command, or 128 and the number of the signal that killed it
  125  the proxy does not start, so the command did not run
  126  the command cannot be run
  127  there is no such command";

/// As `env`, `timeout` and `docker run` have it: the exit codes below it are the command's.
const NOT_READY: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What shells add to the number of a signal that has ended a command.
const KILLED: u8 = 128;

/// How long a proxy that was told to end may take to do so, beside the drain.
const GRACE: Duration = Duration::from_secs(5);

/// Runs a command with a proxy that serves before it starts and ends after it
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The config file (TOML); changes take effect while it runs
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// How long the proxy may take until it serves as configured
    #[arg(long, value_name = "DURATION", value_parser = unit::duration, default_value = "30s")]
    ready_timeout: Duration,
    /// How long what is open when the command has ended may go on
    #[arg(long, value_name = "DURATION", value_parser = unit::duration, default_value = "5s")]
    drain_timeout: Duration,
    /// Where this instance keeps its sockets and lock, as for `ringmesh run`
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// How the proxy's log on standard error is written [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(super) fn run(arguments: Args) -> ExitCode {
    log::start("info", arguments.log_format.unwrap_or_else(Format::fitting));
    match execute(&arguments) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            let name = arguments.command[0].display();
            let _ = writeln!(io::stderr(), "{failure}\nringmesh: so `{name}` was not run");
            ExitCode::from(NOT_READY)
        }
    }
}

fn execute(arguments: &Args) -> Result<u8, Failure> {
    let config =
        ringmesh_model::config::read(&arguments.config).map_err(|problems| Failure::Wrong(problems.to_string()))?;
    let directory = match &arguments.runtime_dir {
        Some(path) => Directory::at(path.clone()),
        None => supervisor::directory_of(&config),
    };
    let events = signals::listen()?;
    let mut proxy = Proxy::start(arguments, directory)?;
    match wait_until_ready(&mut proxy, &events, arguments.ready_timeout) {
        Ok(Begin::Ready) => {}
        Ok(Begin::Ended(signal)) => {
            finish(proxy, &events, arguments.drain_timeout);
            return Ok(killed_by(signal));
        }
        Err(failure) => {
            finish(proxy, &events, Duration::ZERO);
            return Err(failure);
        }
    }
    let command = match Command::new(&arguments.command[0]).args(&arguments.command[1..]).spawn() {
        Ok(child) => Pid::from_child(&child),
        Err(error) => {
            let _ = writeln!(io::stderr(), "ringmesh: `{}`: {error}", arguments.command[0].display());
            finish(proxy, &events, arguments.drain_timeout);
            return Ok(if error.kind() == io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE });
        }
    };
    let end = accompany(&mut proxy, command, &events);
    finish(proxy, &events, arguments.drain_timeout);
    Ok(match end {
        End::Code(code) => code as u8,
        End::Killed(signal) => killed_by(signal),
    })
}

fn killed_by(signal: i32) -> u8 {
    KILLED.saturating_add(signal as u8)
}

/// How the time before the command ends.
enum Begin {
    /// All is served.
    Ready,
    /// This signal has asked us to end.
    Ended(i32),
}

fn wait_until_ready(proxy: &mut Proxy, events: &Receiver<Received>, patience: Duration) -> Result<Begin, Failure> {
    let ready = proxy.watch_readiness();
    let deadline = Instant::now() + patience;
    loop {
        if ready.is_ready() {
            proxy.has_become_ready();
            return Ok(Begin::Ready);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(anyhow!("the proxy is not ready within {patience:?}: {}", ready.missing()).into());
        }
        match events.recv_timeout(left.min(proxy::LOOK)) {
            Ok(Received::Child) => {
                for (pid, end) in reap() {
                    if proxy.is(pid) {
                        proxy.has_ended();
                        return Err(anyhow!("the proxy does not start ({end}; its log says why)").into());
                    }
                }
            }
            Ok(Received::Signal(signal)) if signal.asks_to_end() => return Ok(Begin::Ended(signal.number.as_raw())),
            Ok(Received::Signal(_)) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => unreachable!("the thread that listens to signals never ends"),
        }
    }
}

/// Passes signals on and keeps control alive until the command has ended.
fn accompany(proxy: &mut Proxy, command: Pid, events: &Receiver<Received>) -> End {
    loop {
        match events.recv_timeout(proxy.due()) {
            Ok(Received::Child) => {
                let mut ended = None;
                for (pid, end) in reap() {
                    if pid == command {
                        ended = Some(end);
                    } else if proxy.is(pid) {
                        proxy.has_died(end);
                    }
                }
                if let Some(end) = ended {
                    return end;
                }
            }
            Ok(Received::Signal(signal)) if signal.from_terminal => {
                // The terminal has sent it to the whole group, of which the command is one.
            }
            // It fails only if the command is gone, which is noticed by its own signal.
            Ok(Received::Signal(signal)) => drop(kill_process(command, signal.number)),
            Err(_) => proxy.restart_if_due(),
        }
    }
}

/// Ends the proxy; whoever asks for the end once more gets it at once.
fn finish(mut proxy: Proxy, events: &Receiver<Received>, patience: Duration) {
    let ended = proxy.end(patience);
    let begun = Instant::now();
    let deadline = begun + patience + GRACE;
    let mut at_once = None;
    while !ended.is_over() || proxy.is_there() {
        if ended.has_failed() {
            // Control is our child, and needs no directory to reach the data plane.
            proxy.pass_on(Signal::TERM);
            at_once = Some(begun + patience);
        }
        if at_once.is_some_and(|time| time <= Instant::now()) {
            at_once = None;
            proxy.pass_on(Signal::INT);
        }
        match events.recv_timeout(proxy::LOOK) {
            Ok(Received::Child) => {
                if reap().into_iter().any(|(pid, _)| proxy.is(pid)) {
                    proxy.has_ended();
                }
            }
            Ok(Received::Signal(signal)) if signal.asks_to_end() => proxy.pass_on(Signal::INT),
            Ok(Received::Signal(_)) => {}
            Err(_) if Instant::now() > deadline => {
                tracing::error!(target: "ringmesh", "the proxy has not ended in time");
                return proxy.kill();
            }
            Err(_) => {}
        }
    }
}
