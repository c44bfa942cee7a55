//! `ringmesh-load serve`: what loads are aimed at.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use clap::{Args, ValueEnum};
use ringmesh_loadgen::serve::{self, Delay, ResponseForm, Service};
use ringmesh_loadgen::unit;

use super::target::{Security, address, field};
use super::tls::ServerTlsArgs;
use super::{RuntimeArgs, TICK, on_signal};

#[derive(Args)]
pub(crate) struct ServeArgs {
    /// What to serve
    #[arg(value_enum)]
    service: ServiceName,
    /// Where to listen: ADDRESS:PORT or unix:PATH; port 0 takes a free one, which is printed
    #[arg(long)]
    bind: String,
    #[command(flatten)]
    tls: ServerTlsArgs,
    /// Status of the answers
    #[arg(long, default_value_t = 200)]
    status: u16,
    /// Bytes in the body of each
    #[arg(long, value_parser = unit::size, default_value = "0")]
    body: u64,
    /// Send the body chunked
    #[arg(long)]
    chunked: bool,
    /// Send the request's body back
    #[arg(long, conflicts_with = "chunked")]
    echo: bool,
    /// A further field, such as 'x-a: b'; may be given several times
    #[arg(long = "header", short = 'H', value_parser = field)]
    fields: Vec<(String, String)>,
    /// How long an answer takes: 5ms, uniform:1ms..5ms, exp:5ms, or stall:100ms/1s (nothing is answered for 100 ms of
    /// each second)
    #[arg(long)]
    delay: Option<Delay>,
    /// Share of requests answered with 500 (in gRPC with UNAVAILABLE), such as 1%
    #[arg(long, value_parser = unit::share, default_value = "0")]
    errors: f64,
    /// Share of requests that get no answer
    #[arg(long, value_parser = unit::share, default_value = "0")]
    hangs: f64,
    /// Share of requests whose connection, in HTTP/2 whose stream, is reset
    #[arg(long, value_parser = unit::share, default_value = "0")]
    resets: f64,
    /// Messages in the answer of a gRPC server stream
    #[arg(long, default_value_t = 10)]
    messages: u32,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServiceName {
    /// HTTP/1.1 and HTTP/2 answers
    Http,
    /// gRPC: the message comes back; a method named …ServerStream, …ClientStream or …Bidi streams
    Grpc,
    /// WebSocket: what came goes back
    #[value(name = "websocket", alias = "ws")]
    WebSocket,
    /// TCP: what came goes back
    Echo,
    /// TCP: what came is counted
    Sink,
}

pub(crate) fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let service = match args.service {
        ServiceName::WebSocket => Service::WebSocket,
        ServiceName::Echo => Service::Echo,
        ServiceName::Sink => Service::Sink,
        ServiceName::Grpc => Service::Grpc(serve::Grpc {
            messages: args.messages,
            delay: args.delay.unwrap_or_default(),
            errors: args.errors,
            hangs: args.hangs,
            resets: args.resets,
        }),
        ServiceName::Http => Service::Http(serve::Http {
            status: args.status,
            body_bytes: args.body,
            form: match (args.echo, args.chunked) {
                (true, _) => ResponseForm::Echo,
                (false, true) => ResponseForm::Chunked,
                (false, false) => ResponseForm::Fixed,
            },
            fields: args.fields,
            delay: args.delay.unwrap_or_default(),
            errors: args.errors,
            hangs: args.hangs,
            resets: args.resets,
        }),
    };
    let stopped = on_signal()?;
    let mut running = serve::start(serve::Settings {
        threads: args.runtime.threads(),
        cores: args.runtime.cores(),
        driver: args.runtime.driver.into(),
        bind: address(&args.bind, Security::Plain)?,
        tls: args.tls.server()?,
        ..serve::Settings::new(SocketAddr::from(([127, 0, 0, 1], 0)), service)
    })?;
    println!("listening on {}", running.listening());
    while !stopped.load(Ordering::Relaxed) && !running.is_finished() {
        std::thread::sleep(TICK);
    }
    running.end();
    running.wait()?;
    Ok(ExitCode::SUCCESS)
}
