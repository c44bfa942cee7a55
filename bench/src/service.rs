//! What is behind a contender, and whether it can be reached through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::contender::Bed;
use crate::process::Process;
use crate::scenario::{Contender, Kind, Load, Security};

/// How long anything may take to start: Envoy takes seconds for 10,000 services on an idle machine.
pub const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Starts what answers this load; where it listens. It has the protection that clients expect if nothing is between.
///
/// # Errors
/// If it does not start.
pub fn start(bed: &Bed, load: &Load, between: &Contender, folder: &Path) -> anyhow::Result<(Process, SocketAddr)> {
    let name = match load.kind {
        Kind::Http | Kind::Idle => "http",
        Kind::Grpc => "grpc",
        Kind::WebSocket => "websocket",
        Kind::PingPong => "echo",
        Kind::Upload => "sink",
    };
    let mut command = vec![bed.load_program().to_string_lossy().into_owned()];
    let body = load.body_bytes.to_string();
    command.extend(["serve", name, "--bind", "127.0.0.1:0", "--body", &body].map(str::to_owned));
    if between.is_nobody() && load.security != Security::Plain {
        let file = |name: &str| Ok::<_, anyhow::Error>(bed.certificates()?.join(name).to_string_lossy().into_owned());
        command.extend(["--cert".to_owned(), file("far/svid.pem")?, "--key".to_owned(), file("far/svid.key")?]);
        command.push("--no-resumption".to_owned());
        if load.security == Security::Mtls {
            command.extend(["--client-ca".to_owned(), file("far/bundle.pem")?]);
        }
    }
    let cores = if load.workers > 1 { bed.all_cores() } else { bed.load_cores() };
    let mut process = Process::start(cores, "the service", &command, &folder.join("service.log"))?;
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let log = process.log();
        if let Some(address) =
            log.lines().find_map(|line| line.strip_prefix("listening on ")?.split_whitespace().next())
        {
            return Ok((process, address.parse().context("the service says where it listens")?));
        }
        process.check()?;
        if Instant::now() > until {
            bail!("the service does not start");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether one operation succeeds at this address.
///
/// # Errors
/// If it does not.
pub fn try_once(load: &Load, address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    match load.kind {
        Kind::Http | Kind::Grpc | Kind::Idle => request(&mut stream, load.host().unwrap_or("app")),
        Kind::WebSocket => switch(&mut stream),
        Kind::PingPong => {
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])
        }
        Kind::Upload => {
            stream.shutdown(Shutdown::Write)?;
            stream.read_exact(&mut [0; ringmesh_loadgen::serve::SINK_RECEIPT_BYTES])
        }
    }
}

/// One request on a kept connection. The answer has a body with a length, and comes in one piece or is waited for.
///
/// # Errors
/// If the answer is not 200.
pub fn request(stream: &mut TcpStream, host: &str) -> io::Result<()> {
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes())?;
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        answer.extend_from_slice(&buffer[..count]);
        if is_complete(&answer) {
            break;
        }
    }
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
    Err(io::Error::other(format!("answered {}", String::from_utf8_lossy(line))))
}

/// Opens a WebSocket.
fn switch(stream: &mut TcpStream) -> io::Result<()> {
    let key = "dGhlIHNhbXBsZSBub25jZQ==";
    stream.write_all(
        format!(
            "GET /items/17 HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        .as_bytes(),
    )?;
    let mut line = [0; 12];
    stream.read_exact(&mut line)?;
    match &line {
        b"HTTP/1.1 101" => Ok(()),
        _ => Err(io::Error::other(format!("answered {}", String::from_utf8_lossy(&line)))),
    }
}

fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_some_and(|length| length.trim().parse().is_ok_and(|length: usize| body.len() >= length))
}
