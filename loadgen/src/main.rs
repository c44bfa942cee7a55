//! `ringmesh-load`: load and services from the command line.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result of a command line goes to standard output")]

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Load for HTTP/1.1, HTTP/2, gRPC and TCP, plain or over TLS, that counts honestly, and the servers to aim it at.
#[derive(Parser)]
#[command(
    name = "ringmesh-load",
    version,
    after_help = "Examples:
  ringmesh-load serve http --bind 127.0.0.1:8080 --body 1KiB
  ringmesh-load http http://127.0.0.1:8080/ --rate 2000 --duration 10s
  ringmesh-load http http://127.0.0.1:8080/ --rate 100..5000/30s --warmup 2s
  ringmesh-load http http://127.0.0.1:8080/ --assert 'p99<5ms' --assert 'errors=0'
  ringmesh-load http http://127.0.0.1:8080/ --until 'p99<5ms'
  ringmesh-load http http://127.0.0.1:8080/ --closed --connections 32 --json
  ringmesh-load tcp 127.0.0.1:9000 --upload

Exit codes:
  0    every request succeeded; with --assert, everything asserted holds
  1    some requests did not succeed
  2    the command makes no sense, or could not run
  3    an assertion does not hold, a comparison found worse, a search found no rate
  130  interrupted twice; the first Ctrl-C ends the load and prints what there is"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Send HTTP/1.1 or HTTP/2 requests.
    #[command(after_help = "Examples:
  ringmesh-load http http://127.0.0.1:8080/ --rate 500
      500 requests a second for 10 seconds; latency counts from the instant each was due
  ringmesh-load http http://127.0.0.1:8080/ --rate '(200/900ms,2000/100ms)*' --poisson
      bursts, at random instants within their rate, as many users would come
  ringmesh-load http http://127.0.0.1:8080/ --rate 100..1000/60s --steps 10
      ten steps of six seconds
  ringmesh-load http http://127.0.0.1:8080/ --closed --connections 64
      as many as 64 connections carry; its latencies leave out the waiting that a stall causes
  ringmesh-load http http://127.0.0.1:8080/ --until 'p99<5ms' --between 1k..50k
      the highest rate that keeps this
  ringmesh-load http http://127.0.0.1:8080/ --assert 'p99.9<20ms' --assert 'errors<0.1%' --assert 'rate>=990'
      exit code 3 if one does not hold
  ringmesh-load http http://127.0.0.1:8080/ --entry 'GET /shop 9' --entry 'POST /cart 1' --body 2KiB
      a mix; the body goes with the methods that have one
  ringmesh-load http http://127.0.0.1:8080/ --host shop --count-field x-served-by
      another Host field, and how often each value of a response field came
  ringmesh-load http 'http://127.0.0.1:8080/items/{{random:1..1000}}' -H 'x-request-id: {{uuid}}'
      placeholders in path, fields and body: {{counter}}, {{random}}, {{random:1..100}}, {{uuid}}
  ringmesh-load http https://localhost:8443/ --cacert ca.pem --http2 --streams 16
      HTTP/2 over TLS; without https it is spoken with prior knowledge (h2c)
  ringmesh-load http https://localhost:8443/ --insecure --no-keepalive --no-resumption --closed
      full TLS handshakes, one for each request")]
    Http(cli::http::HttpArgs),
    /// Call a gRPC method, with a message from JSON or of raw bytes.
    #[command(after_help = "Examples:
  ringmesh-load grpc http://127.0.0.1:50051/shop.Cart/Get --body 100 --streams 16
      unary calls against `ringmesh-load serve grpc --bind 127.0.0.1:50051`
  ringmesh-load grpc http://cart:50051/shop.Cart/Add --descriptors cart.pb --data @item.json
      the message as JSON; `protoc --include_imports --descriptor_set_out=cart.pb cart.proto` writes what it means
  ringmesh-load grpc https://cart:50051/shop.Cart/Talk --message hello.bin --kind bidi --messages 100 --cacert ca.pem")]
    Grpc(cli::grpc::GrpcArgs),
    /// Send WebSocket messages to an echo.
    #[command(
        name = "websocket",
        visible_alias = "ws",
        after_help = "Examples:
  ringmesh-load websocket ws://127.0.0.1:9001/ --bytes 100
      round trips against `ringmesh-load serve websocket --bind 127.0.0.1:9001`"
    )]
    WebSocket(cli::websocket::WebSocketArgs),
    /// Send bytes over TCP: round trips, or bulk one way.
    #[command(after_help = "Examples:
  ringmesh-load tcp 127.0.0.1:9000 --connections 8
      round trips of 64 bytes against `ringmesh-load serve echo --bind 127.0.0.1:9000`
  ringmesh-load tcp 127.0.0.1:9000 --upload
      bulk against `ringmesh-load serve sink --bind 127.0.0.1:9000`")]
    Tcp(cli::tcp::TcpArgs),
    /// Compare two saved results: better, worse, or a tie.
    #[command(after_help = "Examples:
  ringmesh-load http http://127.0.0.1:8080/ --json > before.json
  ringmesh-load http http://127.0.0.1:8080/ --json > after.json
  ringmesh-load compare before.json after.json
      each ratio with the interval it lies in with 95 % confidence; where that holds 1, it is a tie
  ringmesh-load compare before.json after.json --fail-if-worse
      exit code 3 if anything got worse")]
    Compare(cli::compare::CompareArgs),
    /// Serve what loads are aimed at.
    #[command(after_help = "Examples:
  ringmesh-load serve http --bind 127.0.0.1:8080 --delay exp:5ms --errors 1%
  ringmesh-load serve http --bind 127.0.0.1:8080 --echo
  ringmesh-load serve http --bind 127.0.0.1:8443 --cert server.pem --key server.key --client-ca ca.pem
  ringmesh-load serve grpc --bind 127.0.0.1:50051
  ringmesh-load serve echo --bind unix:/run/echo.sock")]
    Serve(cli::serve::ServeArgs),
    /// Print what makes a shell complete this command.
    #[command(after_help = "Examples:
  ringmesh-load completions bash > /etc/bash_completion.d/ringmesh-load
  ringmesh-load completions zsh > ~/.zfunc/_ringmesh-load
  ringmesh-load completions fish > ~/.config/fish/completions/ringmesh-load.fish")]
    Completions(cli::completions::CompletionsArgs),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Http(args) => cli::http::http(args),
        Command::Grpc(args) => cli::grpc::grpc(args),
        Command::WebSocket(args) => cli::websocket::websocket(args),
        Command::Tcp(args) => cli::tcp::tcp(&args),
        Command::Compare(args) => cli::compare::compare(&args),
        Command::Serve(args) => cli::serve::serve(args),
        Command::Completions(args) => cli::completions::completions::<Cli>(&args),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("ringmesh-load: {error:#}");
        ExitCode::from(cli::exit::CANNOT_RUN)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_free_of_contradictions() {
        super::Cli::command().debug_assert();
    }
}
