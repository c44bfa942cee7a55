//! `ringmesh completions`: what makes a shell complete our commands.

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::{Failure, print};

const AFTER_HELP: &str = "\
Examples:
  ringmesh completions bash > /etc/bash_completion.d/ringmesh
  ringmesh completions zsh > ~/.zfunc/_ringmesh
  ringmesh completions fish > ~/.config/fish/completions/ringmesh.fish";

/// Prints completions for a shell
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// The shell
    shell: Shell,
}

pub(super) fn run(arguments: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut visible(), "ringmesh", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// The command line as its help shows it. The generator for bash would offer what is hidden, too.
fn visible() -> Command {
    let whole = super::Ringmesh::command();
    let shown = whole.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    Command::new("ringmesh").version(env!("CARGO_PKG_VERSION")).propagate_version(true).subcommands(shown)
}
