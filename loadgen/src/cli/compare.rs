//! `ringmesh-load compare`: is one result better than the other, or is it chance?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use ringmesh_loadgen::compare::Comparison;
use ringmesh_loadgen::report::saved::Saved;

use super::{exit, say};

#[derive(Args)]
pub(crate) struct CompareArgs {
    /// A result, saved with --json
    a: PathBuf,
    /// Another one, which is compared with it
    b: PathBuf,
    /// Exit with 3 if B is worse in any measure, or has more errors
    #[arg(long)]
    fail_if_worse: bool,
    /// Print the comparison as one JSON object
    #[arg(long)]
    json: bool,
}

pub(crate) fn compare(args: &CompareArgs) -> anyhow::Result<ExitCode> {
    let (a, b) = (Saved::read(&args.a)?, Saved::read(&args.b)?);
    let names = || format!("cannot compare {} (A) with {} (B)", args.a.display(), args.b.display());
    let comparison = Comparison::new(&a, &b).with_context(names)?;
    match args.json {
        true => say(comparison.to_json()),
        false => say(&comparison),
    }
    Ok(match args.fail_if_worse && comparison.has_worse() {
        true => ExitCode::from(exit::DOES_NOT_HOLD),
        false => ExitCode::SUCCESS,
    })
}
