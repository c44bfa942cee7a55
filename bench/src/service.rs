//! What is behind a contender, and whether it can be reached through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::process::Process;
use crate::scenario::Kind;

/// How long anything may take to start.
pub const START_TIMEOUT: Duration = Duration::from_secs(20);

/// Starts what answers this load, on these cores; where it listens.
///
/// # Errors
/// If it does not start.
pub fn start(
    load: &Path,
    kind: Kind,
    body_bytes: u64,
    cores: &[usize],
    folder: &Path,
) -> anyhow::Result<(Process, SocketAddr)> {
    let name = match kind {
        Kind::Http | Kind::Idle => "http",
        Kind::PingPong => "echo",
        Kind::Upload => "sink",
    };
    let body = body_bytes.to_string();
    let words = ["serve", name, "--bind", "127.0.0.1:0", "--body", &body];
    let command: Vec<String> =
        std::iter::once(load.to_string_lossy().into_owned()).chain(words.map(str::to_owned)).collect();
    let mut process = Process::start(cores, "the service", &command, &folder.join("service.log"))?;
    let until = Instant::now() + START_TIMEOUT;
    loop {
        let log = process.log();
        if let Some(address) = log.lines().find_map(|line| line.strip_prefix("listening on ")) {
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
pub fn try_once(kind: Kind, address: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    match kind {
        Kind::Http | Kind::Idle => request(&mut stream),
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
pub fn request(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
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

fn is_complete(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.is_some_and(|length| length.trim().parse().is_ok_and(|length: usize| body.len() >= length))
}
