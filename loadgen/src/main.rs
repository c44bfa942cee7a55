//! `ringmesh-load`: load and services from the command line.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result of a command line goes to standard output")]

mod cli;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Load for HTTP/1.1, HTTP/2, gRPC and TCP, plain or over TLS, that counts honestly, and the servers to aim it at.
///
/// Exit codes: 0 all requests succeeded, or all that was asserted holds; 1 some requests did not succeed; 2 the command
/// makes no sense or could not run; 3 an assertion does not hold; 130 interrupted twice.
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
    /// Send HTTP/1.1 or HTTP/2 requests.
    #[command(after_help = "Examples:
  ringmesh-load http http://127.0.0.1:8080/ --rate 500
      500 requests a second for 10 seconds; latency counts from the instant each was due
  ringmesh-load http http://127.0.0.1:8080/ --closed --connections 64
      as many as 64 connections carry
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
    /// Call a gRPC method; its message is raw bytes.
    #[command(after_help = "Examples:
  ringmesh-load grpc http://127.0.0.1:50051/shop.Cart/Get --body 100 --streams 16
      unary calls against `ringmesh-load serve grpc --bind 127.0.0.1:50051`
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
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Http(args) => cli::http::http(args),
        Command::Grpc(args) => cli::grpc::grpc(args),
        Command::WebSocket(args) => cli::websocket::websocket(args),
        Command::Tcp(args) => cli::tcp::tcp(&args),
        Command::Compare(args) => cli::compare::compare(&args),
        Command::Serve(args) => cli::serve::serve(args),
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
