//! `ringmesh stop`: ends a proxy, also one whose control is gone.

use std::time::Duration;

use anyhow::anyhow;
use ringmesh_model::unit;

use super::place::{Place, ask};
use super::{Failure, print};
use crate::directory::Directory;
use crate::supervisor::orphan;
use crate::supervisor::socket::{Answer, Question};

const AFTER_HELP: &str = "\
Open requests may go on for the config's [runtime] drain_timeout. A data plane
whose control is gone is ended too.

Examples:
  ringmesh stop -c sidecar.toml
  ringmesh stop -c sidecar.toml --timeout 1s
  ringmesh stop                              the only proxy that this user runs

Exit codes:
  0  it has ended
  1  nothing runs there, or it has not ended in time
  2  the command line is wrong, or several proxies run";

/// Finishes a proxy's open requests and ends it
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    #[command(flatten)]
    place: Place,
    /// How long open requests may go on, such as 5s [default: the config's; 25s without control]
    #[arg(long, value_name = "DURATION", value_parser = unit::duration)]
    timeout: Option<Duration>,
}

pub(super) fn run(arguments: &Args) -> Result<(), Failure> {
    print(&end(arguments.place.find()?, arguments.timeout)?)
}

/// Ends the proxy of a runtime directory, and says what it found.
pub(super) fn end(directory: Directory, timeout: Option<Duration>) -> Result<String, Failure> {
    let shown = directory.path().display().to_string();
    if let Some((answer, mut control)) = ask(&directory, &Question::Stop { timeout })? {
        let Answer::Stopping { timeout } = answer else {
            return Err(anyhow!("control does not say that it ends").into());
        };
        // It closes the connection when all is done.
        return match control.next(Some(timeout)) {
            Ok(_) => Ok(format!("stopped {shown}\n")),
            Err(error) => Err(anyhow!("control has not ended within {timeout:?}: {error}").into()),
        };
    }
    let timeout = timeout.unwrap_or(ringmesh_model::runtime::DEFAULT_DRAIN_TIMEOUT);
    match orphan::stop(directory, timeout)? {
        orphan::Ended::Nobody => Err(anyhow!("nothing runs in {shown}").into()),
        orphan::Ended::Killed => {
            Ok(format!("killed the data plane of {shown}: its control was gone, and it did not answer\n"))
        }
        orphan::Ended::Drained { cut: 0 } => Ok(format!("stopped the data plane of {shown}; its control was gone\n")),
        orphan::Ended::Drained { cut } => {
            Ok(format!("stopped the data plane of {shown}; its control was gone, and {cut} open requests were cut\n"))
        }
    }
}
