//! `ringmesh run`: the control process, and the data plane with it.

use std::path::PathBuf;

use super::Failure;
use crate::log::{self, Format};
use crate::supervisor::{self, init};

const AFTER_HELP: &str = "\
It stays in the foreground. The proxy itself is a second process that goes
on when this one is killed; the next `ringmesh run` with the same file
adopts it, without a connection lost.

Signals:
  SIGTERM, SIGINT  end; open requests may go on for [runtime] drain_timeout
  second SIGINT    end at once
  SIGHUP           read the file again now

Examples:
  ringmesh run -c sidecar.toml
  ringmesh run -c sidecar.toml --log-format json 2>>/var/log/ringmesh.log
  RUST_LOG=debug ringmesh run -c sidecar.toml
  RUST_LOG=debug,h2=debug ringmesh run -c sidecar.toml   # and its library's lines

Exit codes:
  0  ended as asked, within the drain timeout
  1  failed: a port is in use, another control runs this instance, …
  2  the command line or the config is wrong";

/// Runs the proxy that a config file describes
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The config file (TOML); changes take effect while it runs
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Where this instance keeps its sockets and lock, instead of a folder named after mesh, workload and instance in
    /// $XDG_RUNTIME_DIR/ringmesh, /run/ringmesh (root) or /tmp/ringmesh-UID
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// How the log on standard error is written [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<Format>,
}

pub(super) fn run(arguments: Args) -> Result<(), Failure> {
    let format = arguments.log_format.unwrap_or_else(Format::fitting);
    if init::is_needed() {
        log::start("info", format);
        return init::run();
    }
    let config =
        ringmesh_model::config::read(&arguments.config).map_err(|problems| Failure::Wrong(problems.to_string()))?;
    let options = supervisor::Options {
        file: arguments.config,
        runtime_directory: arguments.runtime_dir,
        format,
        log: log::start(config.log.level.as_str(), format),
    };
    supervisor::run(options, config).map_err(|error| match error {
        supervisor::Error::Config(problems) => Failure::Wrong(problems),
        error => error.into(),
    })
}
