//! `ringmesh-load http`: HTTP/1.1 and HTTP/2 requests.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use ringmesh_loadgen::load::{BodyCheck, BodyForm, Entry, Expect, Http, Protocol, Reuse, Version};
use ringmesh_loadgen::unit;

use super::load::{self, LoadArgs};
use super::requests;
use super::target::{TargetArgs, field, split_url};

#[derive(Args)]
pub(crate) struct HttpArgs {
    /// Where to send, such as http://127.0.0.1:8080/path or https://localhost/
    url: String,
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    load: LoadArgs,
    /// Host field, if not the one of the URL
    #[arg(long)]
    host: Option<String>,
    /// Method
    #[arg(long, short, default_value = "GET")]
    method: String,
    /// Bytes in the body, such as 100 or 64KiB
    #[arg(long, value_parser = unit::size, default_value = "0")]
    body: u64,
    /// The body itself, or with @ in front the file that holds it
    #[arg(long, value_name = "TEXT", conflicts_with = "body")]
    data: Option<String>,
    /// Send the body chunked
    #[arg(long)]
    chunked: bool,
    /// A further field, such as 'x-a: b'; may be given several times
    #[arg(long = "header", short = 'H', value_parser = field)]
    fields: Vec<(String, String)>,
    /// One of several kinds of request, as 'METHOD PATH WEIGHT'; replaces the URL's path
    #[arg(long = "entry", value_parser = entry)]
    entries: Vec<(String, String, u32)>,
    /// A file of requests, a JSON object a line: path, and if need be method, host, headers, body, body_bytes, weight,
    /// expect, name. In turn where their weights are equal
    #[arg(long, value_name = "FILE", conflicts_with_all = ["entries", "body", "data", "fields", "method"])]
    requests_from: Option<PathBuf>,
    /// A new connection for each request
    #[arg(long, visible_alias = "no-keepalive")]
    new_connections: bool,
    /// Speak HTTP/2: as ALPN offers it over TLS, with prior knowledge over plain connections
    #[arg(long)]
    http2: bool,
    /// Streams on each HTTP/2 connection
    #[arg(long, default_value_t = 1, requires = "http2")]
    streams: usize,
    /// The status that counts as success, if not any from 200 to 299
    #[arg(long)]
    expect: Option<u16>,
    /// The answer must be the body that was sent
    #[arg(long)]
    check_echo: bool,
    /// Count the values of this response field
    #[arg(long)]
    count_field: Option<String>,
}

pub(crate) fn http(args: HttpArgs) -> anyhow::Result<ExitCode> {
    let (security, authority, path) = split_url(&args.url)?;
    let place = args.target.place(&authority, security)?;
    let host = args.host.clone().unwrap_or(authority);
    let kinds = match args.entries.is_empty() {
        true => vec![(args.method.clone(), path, 1)],
        false => args.entries.clone(),
    };
    let body = args.data.as_deref().map(read_data).transpose()?;
    let has_body = |method: &str| matches!(method, "POST" | "PUT" | "PATCH");
    let entries = kinds.into_iter().map(|(method, path, weight)| Entry {
        name: format!("{method} {path}"),
        // Only these methods have a body whose meaning is defined (RFC 9110 section 9.3).
        body_bytes: if has_body(&method) { args.body } else { 0 },
        body: body.clone().filter(|_| has_body(&method)),
        body_form: if args.chunked { BodyForm::Chunked } else { BodyForm::Fixed },
        fields: args.fields.clone(),
        expect: args.expect.map_or(Expect::Success, Expect::Status),
        check: if args.check_echo { BodyCheck::Echo } else { BodyCheck::None },
        weight,
        ..Entry { method, ..Entry::get(&host, &path) }
    });
    let protocol = Protocol::Http(Http {
        entries: match &args.requests_from {
            Some(path) => requests::read(path, &host)?,
            None => entries.collect(),
        },
        version: if args.http2 { Version::Http2 { streams: args.streams } } else { Version::Http1 },
        reuse: if args.new_connections { Reuse::PerRequest } else { Reuse::KeepAlive },
        count_field: args.count_field,
    });
    load::run(&args.load, place, protocol)
}

/// A body as curl takes it.
pub(super) fn read_data(text: &str) -> anyhow::Result<Bytes> {
    match text.strip_prefix('@') {
        Some(path) => Ok(std::fs::read(path).with_context(|| format!("cannot read the body `{path}`"))?.into()),
        None => Ok(text.to_owned().into()),
    }
}

fn entry(text: &str) -> Result<(String, String, u32), String> {
    match text.split_whitespace().collect::<Vec<_>>()[..] {
        [method, path] => Ok((method.to_owned(), path.to_owned(), 1)),
        [method, path, weight] => {
            let weight = weight.parse().map_err(|_| format!("the weight `{weight}` is no whole number"))?;
            Ok((method.to_owned(), path.to_owned(), weight))
        }
        _ => Err("write METHOD PATH WEIGHT".to_owned()),
    }
}
