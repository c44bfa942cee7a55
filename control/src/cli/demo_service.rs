//! `ringmesh demo-service`: one of the demo's services. The demo starts it; nobody else does.

use std::net::SocketAddr;

use ringmesh_loadgen::Driver;

use crate::demo::service::{self, CallArgument};

/// A service of the demo's shop
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Its name
    #[arg(long)]
    name: String,
    /// Its version (`--version` is the program's own)
    #[arg(long)]
    shop_version: String,
    /// Where it listens
    #[arg(long)]
    bind: SocketAddr,
    /// Whom it asks before it answers, as SERVICE,METHOD,PATH,ADDRESS
    #[arg(long = "call")]
    calls: Vec<CallArgument>,
    /// I/O driver
    #[arg(long, value_enum, default_value = "auto")]
    driver: Driver,
}

pub(super) fn run(arguments: Args) -> anyhow::Result<()> {
    service::run(arguments.name, arguments.shop_version, arguments.bind, arguments.calls, arguments.driver)
}
