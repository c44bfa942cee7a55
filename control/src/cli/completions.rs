//! `ringmesh completions`: what makes a shell complete our commands.

use clap::CommandFactory;
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
    clap_complete::generate(arguments.shell, &mut super::Ringmesh::command(), "ringmesh", &mut script);
    print(&String::from_utf8_lossy(&script))
}
