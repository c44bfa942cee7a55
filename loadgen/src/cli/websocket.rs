//! `ringmesh-load websocket`: round trips of a message.

use std::process::ExitCode;

use clap::Args;
use ringmesh_loadgen::load::{Protocol, WebSocket};
use ringmesh_loadgen::unit;

use super::load::{self, LoadArgs};
use super::target::{TargetArgs, field, split_url};

#[derive(Args)]
pub(crate) struct WebSocketArgs {
    /// Where to connect, such as ws://127.0.0.1:9001/chat or wss://…
    url: String,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Host field, if not the one of the URL
    #[arg(long)]
    host: Option<String>,
    /// Bytes of a message
    #[arg(long, value_parser = unit::size, default_value = "64")]
    bytes: u64,
    /// A further field of the opening request, such as 'x-a: b'; may be given several times
    #[arg(long = "header", short = 'H', value_parser = field)]
    fields: Vec<(String, String)>,
}

pub(crate) fn websocket(args: WebSocketArgs) -> anyhow::Result<ExitCode> {
    let (security, authority, path) = split_url(&args.url)?;
    let place = args.target.place(&authority, security)?;
    let host = args.host.unwrap_or(authority);
    let websocket = WebSocket { host, path, fields: args.fields, bytes: args.bytes };
    load::run(&args.load, place, Protocol::WebSocket(websocket))
}
