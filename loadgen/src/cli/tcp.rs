//! `ringmesh-load tcp`: round trips, or bulk one way.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use ringmesh_loadgen::load::{Exchange, Protocol};
use ringmesh_loadgen::unit;

use super::load::{self, LoadArgs};
use super::target::{Security, TargetArgs};

#[derive(Args)]
pub(crate) struct TcpArgs {
    /// Where to connect, such as 127.0.0.1:9000 or unix:/run/echo.sock
    address: String,
    #[command(flatten)]
    target: TargetArgs,
    /// Speak TLS
    #[arg(long)]
    tls: bool,
    #[command(flatten)]
    load: LoadArgs,
    /// Bytes of a round trip
    #[arg(long, value_parser = unit::size, default_value = "64")]
    bytes: u64,
    /// Send without pause instead, and compare the receipt of the sink
    #[arg(long)]
    upload: bool,
}

pub(crate) fn tcp(args: &TcpArgs) -> anyhow::Result<ExitCode> {
    let bytes = usize::try_from(args.bytes).context("a round trip of so many bytes fits no memory")?;
    let exchange = if args.upload { Exchange::Upload { bytes: None } } else { Exchange::PingPong { bytes } };
    let security = if args.tls { Security::Tls } else { Security::Plain };
    load::run(&args.load, args.target.place(&args.address, security)?, Protocol::Tcp(exchange))
}
