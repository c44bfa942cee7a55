//! The command line: one command a file.

mod run;
mod exec;
mod intercept;
mod check;
mod status;
mod stop;
mod ca;
mod demo;
mod demo_service;
mod completions;
mod dataplane;
mod place;

use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// What follows the help of the whole program.
const AFTER_HELP: &str = "\
Examples:
  ringmesh demo                      a shop of three services, meshed; Ctrl-C ends it
  ringmesh check sidecar.toml        what is wrong, and what the machine grants
  ringmesh run -c sidecar.toml       the proxy; an edit is live in a second
  ringmesh exec -c sidecar.toml -- ./job
                                     a command with a proxy beside it, which ends with it
  ringmesh intercept --on -c sidecar.toml
                                     brings connections to the proxy by themselves
  ringmesh status -c sidecar.toml    what it is doing
  ringmesh stop -c sidecar.toml      ends it, open requests first
  ringmesh ca init ca/               a certificate authority for mutual TLS

Exit codes:
  0  done
  1  failed; standard error says why and what to try
  2  the command line or the config is wrong";

/// A service mesh in one binary: a thread-per-core proxy on io_uring, and a small process that feeds it.
#[derive(Debug, Parser)]
#[command(name = "ringmesh", version, max_term_width = 100, after_help = AFTER_HELP, propagate_version = true)]
struct Ringmesh {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Args),
    Exec(exec::Args),
    Intercept(intercept::Args),
    Check(check::Args),
    Status(status::Args),
    Stop(stop::Args),
    Ca(ca::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Dataplane(dataplane::Args),
    #[command(hide = true)]
    DemoService(demo_service::Args),
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub enum Failure {
    /// It failed. Exit code 1.
    Failed(anyhow::Error),
    /// The command line or the config is wrong, as these lines say. Exit code 2.
    Wrong(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Failed(_) => 1,
            Self::Wrong(_) => 2,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => {
                let mut said = format!("ringmesh: {error}");
                // Some errors say their cause themselves.
                for cause in error.chain().skip(1).map(ToString::to_string) {
                    if !said.ends_with(&cause) {
                        said.push_str(": ");
                        said.push_str(&cause);
                    }
                }
                f.write_str(&said)
            }
            Self::Wrong(lines) => f.write_str(lines),
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the command that the process was started with.
pub fn main() -> ExitCode {
    // Processes that are started from /proc/self/exe would be called `exe` in lists of processes. It cannot fail with a name.
    let _ = rustix::thread::set_name(c"ringmesh");
    let done = match Ringmesh::parse().command {
        Command::Run(arguments) => run::run(arguments),
        Command::Exec(arguments) => return exec::run(arguments),
        Command::Intercept(arguments) => intercept::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Stop(arguments) => stop::run(&arguments),
        Command::Ca(arguments) => ca::run(arguments).map_err(Failure::Failed),
        Command::Demo(arguments) => demo::run(arguments).map_err(Failure::Failed),
        Command::Completions(arguments) => completions::run(&arguments),
        Command::DemoService(arguments) => demo_service::run(arguments).map_err(Failure::Failed),
        Command::Dataplane(arguments) => return dataplane::run(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody is left to be told when standard error is closed.
            let _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.code())
        }
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// If it cannot be written for another reason.
fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn a_cause_is_told_once() {
        let cause = || io::Error::from(io::ErrorKind::NotFound);
        #[derive(Debug, thiserror::Error)]
        #[error("there is no way: {0}")]
        struct Saying(#[from] io::Error);
        let told = Failure::from(Saying(cause())).to_string();
        assert_eq!(told, format!("ringmesh: there is no way: {}", cause()));
        let told = Failure::Failed(anyhow::Error::from(cause()).context("there is no way")).to_string();
        assert_eq!(told, format!("ringmesh: there is no way: {}", cause()));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Ringmesh::command().debug_assert();
    }

    #[test]
    fn every_visible_command_has_an_example() {
        let program = Ringmesh::command();
        for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.clone().render_long_help().to_string();
            assert!(help.contains("Example"), "`ringmesh {} --help` shows no example", command.get_name());
        }
    }
}
