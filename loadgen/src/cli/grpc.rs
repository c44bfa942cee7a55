//! `ringmesh-load grpc`: calls of one method.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::{Args, ValueEnum};
use ringmesh_loadgen::limits::MAX_MESSAGE_BYTES;
use ringmesh_loadgen::load::{BodyCheck, Entry, Expect, Grpc, Http, Kind, Protocol, Version};
use ringmesh_loadgen::unit;

use super::descriptor::describe;
use super::http::read_data;
use super::load::{self, LoadArgs};
use super::target::{TargetArgs, field, split_url};

#[derive(Args)]
pub(crate) struct GrpcArgs {
    /// Server and method, such as http://127.0.0.1:50051/shop.Cart/Get or https://…
    url: String,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Authority, if not the one of the URL
    #[arg(long)]
    host: Option<String>,
    /// Who sends how many messages; without it what the descriptor set says, else unary
    #[arg(long, value_enum)]
    kind: Option<KindName>,
    /// Messages of a client or bidirectional stream
    #[arg(long, default_value_t = 10)]
    messages: u32,
    /// The message as JSON, or with @ in front the file that holds it
    #[arg(long, value_name = "JSON", requires = "descriptors", conflicts_with_all = ["body", "message"])]
    data: Option<String>,
    /// What the messages are: a descriptor set, as `protoc --include_imports --descriptor_set_out=FILE` writes it
    #[arg(long, value_name = "FILE", conflicts_with_all = ["body", "message"])]
    descriptors: Option<PathBuf>,
    /// The message, encoded, as a file; `protoc --encode` writes one
    #[arg(long, value_name = "FILE", conflicts_with = "body")]
    message: Option<PathBuf>,
    /// Bytes of a message without meaning, for a server that reads none, such as `ringmesh-load serve grpc`
    #[arg(long, value_parser = unit::size, default_value = "0")]
    body: u64,
    /// Streams on each connection
    #[arg(long, default_value_t = 1)]
    streams: usize,
    /// Metadata, such as 'x-a: b'; may be given several times
    #[arg(long = "header", short = 'H', value_parser = field)]
    fields: Vec<(String, String)>,
    /// The gRPC status that counts as success
    #[arg(long, default_value_t = 0)]
    expect: u16,
    /// Each answer must be the message that was sent
    #[arg(long)]
    check_echo: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum KindName {
    /// One message each
    Unary,
    /// One message, and as many come as the server likes
    ServerStream,
    /// So many as --messages says, and one comes
    ClientStream,
    /// So many as --messages says, each after the answer to the last
    Bidi,
}

pub(crate) fn grpc(args: GrpcArgs) -> anyhow::Result<ExitCode> {
    let (security, authority, path) = split_url(&args.url)?;
    if path.matches('/').count() != 2 {
        bail!("`{path}` is no gRPC method; write a URL such as http://127.0.0.1:50051/shop.Cart/Get");
    }
    let described = match &args.descriptors {
        Some(file) => {
            let json = args.data.as_deref().map_or(Ok(Bytes::from_static(b"{}")), read_data)?;
            let json = std::str::from_utf8(&json).context("the message is no JSON: it is not even text")?;
            Some(describe(file, &path, json)?)
        }
        None => None,
    };
    let kind = args.kind.or(described.as_ref().map(|described| described.kind)).unwrap_or(KindName::Unary);
    let message = match (described, &args.message) {
        (Some(described), _) => described.message,
        (None, Some(path)) => {
            std::fs::read(path).with_context(|| format!("cannot read the message `{}`", path.display()))?.into()
        }
        (None, None) => vec![0; args.body.min(MAX_MESSAGE_BYTES + 1) as usize].into(),
    };
    if message.len() as u64 > MAX_MESSAGE_BYTES {
        bail!("a message has at most 64 MiB");
    }
    if args.messages == 0 {
        bail!("a stream has at least one message");
    }
    let kind = match kind {
        KindName::Unary => Kind::Unary,
        KindName::ServerStream => Kind::ServerStream,
        KindName::ClientStream => Kind::ClientStream(args.messages),
        KindName::Bidi => Kind::Bidirectional(args.messages),
    };
    let entry = Entry {
        name: path.clone(),
        fields: args.fields,
        expect: Expect::Status(args.expect),
        check: if args.check_echo { BodyCheck::Echo } else { BodyCheck::None },
        ..Entry::post(args.host.as_deref().unwrap_or(&authority), &path, message.len() as u64)
    };
    let http = Http { version: Version::Http2 { streams: args.streams }, ..Http::new(vec![entry]) };
    let protocol = Protocol::Grpc(http, Grpc { kind, message });
    load::run(&args.load, args.target.place(&authority, security)?, protocol)
}
