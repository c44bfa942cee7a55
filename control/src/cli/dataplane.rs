//! `ringmesh dataplane`: the other process. Control starts it; nobody else does.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use crate::log::{self, Format};

/// The data plane process; started by `ringmesh run` with its socket to control as standard input
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// From which level on is logged, until the configuration comes
    #[arg(long, default_value = "info")]
    log_level: String,
    /// How the log is written
    #[arg(long, default_value = "json")]
    log_format: Format,
    /// Which proxy this is; for people who list processes
    #[arg(long)]
    of: Option<String>,
}

pub(super) fn run(arguments: &Args) -> ExitCode {
    let log = log::start(&arguments.log_level, arguments.log_format);
    let stream = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(stream) => UnixStream::from(stream),
        Err(error) => {
            tracing::error!(%error, "standard input is not the socket to control");
            return ExitCode::FAILURE;
        }
    };
    // Out of the terminal's reach: Ctrl-C and a closed terminal are for control, which tells us to drain. It fails only
    // for a group's leader, which such signals do not reach either.
    let _ = rustix::process::setsid();
    ringmesh_dataplane::entry::run(stream, move |level| log.set(level.as_str()))
}
