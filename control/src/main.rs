//! The `ringmesh` command.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ringmesh_control::cli::main()
}
