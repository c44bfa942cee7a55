//! The command line, one command a file.

pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod descriptor;
pub(crate) mod grpc;
pub(crate) mod http;
pub(crate) mod load;
pub(crate) mod screen;
pub(crate) mod search;
pub(crate) mod requests;
pub(crate) mod serve;
pub(crate) mod target;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod websocket;

use std::fmt::Display;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use ringmesh_loadgen::Driver;

/// Exit codes. Success is 0; a second Ctrl-C ends with 130.
pub(crate) mod exit {
    /// Some requests did not succeed, and no assertion says what is allowed.
    pub(crate) const FAILED_REQUESTS: u8 = 1;
    /// The command makes no sense, or could not run.
    pub(crate) const CANNOT_RUN: u8 = 2;
    /// An assertion does not hold, or a comparison that must not be worse is.
    pub(crate) const DOES_NOT_HOLD: u8 = 3;
}

/// Prints a line.
pub(crate) fn say(line: impl Display) {
    print(format_args!("{line}\n"));
}

/// Prints text as it is. Whoever reads it may have seen enough, as `head` has.
pub(crate) fn print(text: impl Display) {
    let mut out = io::stdout().lock();
    match write!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => eprintln!("ringmesh-load: cannot print: {error}"),
        _ => {}
    }
}

/// How often the state is looked at.
const TICK: Duration = Duration::from_millis(50);

#[derive(Args)]
pub(crate) struct RuntimeArgs {
    /// Threads, each with its own ring
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// Keep each thread on a core of its own, such as 0,2-3; there are as many threads as cores then
    #[arg(long, value_parser = cores, conflicts_with = "threads")]
    pub(crate) cores: Option<Cores>,
    /// I/O driver
    #[arg(long, value_enum, default_value = "auto")]
    pub(crate) driver: Driver,
}

/// Numbers of cores.
#[derive(Clone)]
pub(crate) struct Cores(Vec<usize>);

impl RuntimeArgs {
    pub(crate) fn threads(&self) -> usize {
        self.cores.as_ref().map_or(self.threads, |cores| cores.0.len())
    }

    pub(crate) fn cores(&self) -> Vec<usize> {
        self.cores.as_ref().map_or_else(Vec::new, |cores| cores.0.clone())
    }
}

fn cores(text: &str) -> Result<Cores, String> {
    let wrong = || format!("`{text}` is no list of cores; write one such as 0 or 0,2-3");
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) =
            (first.trim().parse().map_err(|_| wrong())?, last.trim().parse().map_err(|_| wrong())?);
        if first > last || last - first > 4_096 {
            return Err(wrong());
        }
        cores.extend(first..=last);
    }
    Ok(Cores(cores))
}

/// A flag that Ctrl-C and SIGTERM set. A second one ends the process at once.
fn on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())?;
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(flag)
}
