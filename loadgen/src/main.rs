//! `ringmesh-load`: load and services from the command line.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result of a command line goes to standard output")]

use std::io::{IsTerminal, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, BodyCheck, BodyForm, Entry, Exchange, Expect, Http, Protocol, Reuse};
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::serve::{self, Delay, ResponseForm, Service};
use ringmesh_loadgen::{Wish, unit};
use ringmesh_ring::net::Address;

/// How often the state is looked at.
const TICK: Duration = Duration::from_millis(50);

/// Load for HTTP/1.1 and TCP that counts honestly, and the servers to aim it at.
///
/// Exit codes: 0 all requests succeeded, 1 some did not, 2 the command makes no sense or could not run.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:
  ringmesh-load serve http --bind 127.0.0.1:8080 --body 1KiB
  ringmesh-load http http://127.0.0.1:8080/ --rate 2000 --duration 10s
  ringmesh-load http http://127.0.0.1:8080/ --closed --connections 32 --json
  ringmesh-load tcp 127.0.0.1:9000 --upload"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send HTTP/1.1 requests.
    #[command(after_help = "Examples:
  ringmesh-load http http://127.0.0.1:8080/ --rate 500
      500 requests a second for 10 seconds; latency counts from the instant each was due
  ringmesh-load http http://127.0.0.1:8080/ --closed --connections 64
      as many as 64 connections carry
  ringmesh-load http http://127.0.0.1:8080/ --entry 'GET /shop 9' --entry 'POST /cart 1' --body 2KiB
      a mix; the body goes with the methods that have one
  ringmesh-load http http://127.0.0.1:8080/ --host shop --count-field x-served-by
      another Host field, and how often each value of a response field came")]
    Http(HttpArgs),
    /// Send bytes over TCP: round trips, or bulk one way.
    #[command(after_help = "Examples:
  ringmesh-load tcp 127.0.0.1:9000 --connections 8
      round trips of 64 bytes against `ringmesh-load serve echo --bind 127.0.0.1:9000`
  ringmesh-load tcp 127.0.0.1:9000 --upload
      bulk against `ringmesh-load serve sink --bind 127.0.0.1:9000`")]
    Tcp(TcpArgs),
    /// Serve what loads are aimed at.
    #[command(after_help = "Examples:
  ringmesh-load serve http --bind 127.0.0.1:8080 --delay exp:5ms --errors 1%
  ringmesh-load serve http --bind 127.0.0.1:8080 --echo
  ringmesh-load serve echo --bind 127.0.0.1:9000")]
    Serve(ServeArgs),
}

#[derive(Args)]
struct LoadArgs {
    /// Requests a second over all connections (open loop)
    #[arg(long, short, default_value_t = 1000.0, conflicts_with = "closed")]
    rate: f64,
    /// Each connection sends its next request when it has its answer
    #[arg(long)]
    closed: bool,
    /// Connections
    #[arg(long, short, default_value_t = 10)]
    connections: usize,
    /// How long no less than the last request is sent, such as 10s
    #[arg(long, short, value_parser = unit::duration, default_value = "10s")]
    duration: Duration,
    /// Ends after so many requests, if that is sooner
    #[arg(long, short = 'n')]
    requests: Option<u64>,
    /// How long a request may take
    #[arg(long, value_parser = unit::duration, default_value = "10s")]
    timeout: Duration,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// Print the result as one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct RuntimeArgs {
    /// Threads, each with its own ring
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// I/O driver
    #[arg(long, value_enum, default_value = "auto")]
    driver: Driver,
}

#[derive(Clone, Copy, ValueEnum)]
enum Driver {
    /// io_uring where the kernel grants it, else epoll
    Auto,
    /// io_uring or nothing
    #[value(name = "io_uring")]
    IoUring,
    /// epoll
    Epoll,
}

#[derive(Args)]
struct HttpArgs {
    /// Where to send, such as http://127.0.0.1:8080/path
    url: String,
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
    /// Send the body chunked
    #[arg(long)]
    chunked: bool,
    /// A further field, such as 'x-a: b'; may be given several times
    #[arg(long = "header", short = 'H', value_parser = field)]
    fields: Vec<(String, String)>,
    /// One of several kinds of request, as 'METHOD PATH WEIGHT'; replaces the URL's path
    #[arg(long = "entry", value_parser = entry)]
    entries: Vec<(String, String, u32)>,
    /// A new connection for each request
    #[arg(long)]
    new_connections: bool,
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

#[derive(Args)]
struct TcpArgs {
    /// Where to connect, such as 127.0.0.1:9000
    address: String,
    #[command(flatten)]
    load: LoadArgs,
    /// Bytes of a round trip
    #[arg(long, value_parser = unit::size, default_value = "64")]
    bytes: u64,
    /// Send without pause instead, and compare the receipt of the sink
    #[arg(long)]
    upload: bool,
}

#[derive(Args)]
struct ServeArgs {
    /// What to serve
    #[arg(value_enum)]
    service: ServiceName,
    /// Where to listen; port 0 takes a free one, which is printed
    #[arg(long)]
    bind: SocketAddr,
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
    /// How long an answer takes: 5ms, uniform:1ms..5ms or exp:5ms
    #[arg(long)]
    delay: Option<Delay>,
    /// Share of requests answered with 500, such as 1%
    #[arg(long, value_parser = unit::share, default_value = "0")]
    errors: f64,
    /// Share of requests that get no answer
    #[arg(long, value_parser = unit::share, default_value = "0")]
    hangs: f64,
    /// Share of requests whose connection is reset
    #[arg(long, value_parser = unit::share, default_value = "0")]
    resets: f64,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

#[derive(Clone, Copy, ValueEnum)]
enum ServiceName {
    /// HTTP/1.1 answers
    Http,
    /// TCP: what came goes back
    Echo,
    /// TCP: what came is counted
    Sink,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Http(args) => http(args),
        Command::Tcp(args) => tcp(&args),
        Command::Serve(args) => serve(args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ringmesh-load: {error:#}");
        ExitCode::from(2)
    })
}

fn http(args: HttpArgs) -> anyhow::Result<ExitCode> {
    let (authority, path) = split_url(&args.url)?;
    let mut address = resolve(&authority)?;
    if address.port() == 0 {
        address.set_port(80);
    }
    let host = args.host.clone().unwrap_or(authority);
    let kinds = match args.entries.is_empty() {
        true => vec![(args.method.clone(), path, 1)],
        false => args.entries.clone(),
    };
    let entries = kinds.into_iter().map(|(method, path, weight)| Entry {
        name: format!("{method} {path}"),
        // Only these methods have a body whose meaning is defined (RFC 9110 section 9.3).
        body_bytes: if matches!(method.as_str(), "POST" | "PUT" | "PATCH") { args.body } else { 0 },
        body_form: if args.chunked { BodyForm::Chunked } else { BodyForm::Fixed },
        fields: args.fields.clone(),
        expect: args.expect.map_or(Expect::Success, Expect::Status),
        check: if args.check_echo { BodyCheck::Echo } else { BodyCheck::None },
        weight,
        ..Entry { method, ..Entry::get(&host, &path) }
    });
    let protocol = Protocol::Http(Http {
        entries: entries.collect(),
        reuse: if args.new_connections { Reuse::PerRequest } else { Reuse::KeepAlive },
        count_field: args.count_field,
    });
    run(&args.load, address, protocol)
}

fn tcp(args: &TcpArgs) -> anyhow::Result<ExitCode> {
    let bytes = usize::try_from(args.bytes).context("a round trip of so many bytes fits no memory")?;
    let exchange = if args.upload { Exchange::Upload { bytes: None } } else { Exchange::PingPong { bytes } };
    run(&args.load, resolve(&args.address)?, Protocol::Tcp(exchange))
}

fn run(args: &LoadArgs, address: SocketAddr, protocol: Protocol) -> anyhow::Result<ExitCode> {
    let closed = args.closed || matches!(protocol, Protocol::Tcp(Exchange::Upload { .. }));
    let settings = load::Settings {
        protocol,
        connections: args.connections,
        arrivals: if closed { Arrivals::Closed } else { Arrivals::Constant { per_second: args.rate } },
        duration: Some(args.duration),
        requests: args.requests,
        timeout: args.timeout,
        threads: args.runtime.threads,
        driver: args.runtime.driver.into(),
        ..load::Settings::tcp(Address::Ip(address), Exchange::PingPong { bytes: 0 })
    };
    let stopped = on_signal()?;
    let mut running = load::start(settings)?;
    let live = std::io::stderr().is_terminal();
    let mut shown = Instant::now();
    while !running.is_finished() {
        std::thread::sleep(TICK);
        if stopped.load(Ordering::Relaxed) {
            running.end();
        }
        if live && shown.elapsed() >= Duration::from_secs(1) {
            shown = Instant::now();
            show_progress(&running.progress());
        }
    }
    if live {
        eprint!("\r\x1b[K");
    }
    let report = running.wait()?;
    if args.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    Ok(if report.total.succeeded == report.total.requests() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_progress(report: &Report) {
    let total = &report.total;
    eprint!(
        "\r\x1b[K{:>4.0} s  {} requests  {:.0}/s  {} failed  {} cut  p99 {}",
        report.elapsed.as_secs_f64(),
        total.requests(),
        report.rate(),
        total.failed(),
        total.cut(),
        unit::show_duration(total.quantile(0.99)),
    );
    // Nobody looks when standard error is gone.
    let _gone = std::io::stderr().flush();
}

fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let service = match args.service {
        ServiceName::Echo => Service::Echo,
        ServiceName::Sink => Service::Sink,
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
        threads: args.runtime.threads,
        driver: args.runtime.driver.into(),
        ..serve::Settings::new(args.bind, service)
    })?;
    println!("listening on {}", running.address());
    while !stopped.load(Ordering::Relaxed) && !running.is_finished() {
        std::thread::sleep(TICK);
    }
    running.end();
    running.wait()?;
    Ok(ExitCode::SUCCESS)
}

impl From<Driver> for Wish {
    fn from(driver: Driver) -> Self {
        match driver {
            Driver::Auto => Self::Auto,
            Driver::IoUring => Self::IoUring,
            Driver::Epoll => Self::Epoll,
        }
    }
}

/// A flag that Ctrl-C and SIGTERM set. A second one ends the process at once.
fn on_signal() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, flag.clone())?;
        signal_hook::flag::register(signal, flag.clone())?;
    }
    Ok(flag)
}

fn split_url(url: &str) -> anyhow::Result<(String, String)> {
    let Some(rest) = url.strip_prefix("http://") else {
        bail!("`{url}` is no plain HTTP URL; write one such as http://127.0.0.1:8080/path");
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if authority.is_empty() {
        bail!("`{url}` names no host; write one such as http://127.0.0.1:8080/path");
    }
    Ok((authority.to_owned(), format!("/{path}")))
}

fn resolve(authority: &str) -> anyhow::Result<SocketAddr> {
    let with_port = if authority.contains(':') { authority.to_owned() } else { format!("{authority}:80") };
    let mut addresses = with_port.to_socket_addrs().with_context(|| format!("cannot resolve `{authority}`"))?;
    addresses.next().with_context(|| format!("`{authority}` has no address"))
}

fn field(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("write NAME: VALUE")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
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
