//! A plain connection to a port that takes mutual TLS only must get nothing but the word that it is the wrong port.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use ringmesh_dataplane::outcome::Reason;
use serde::Serialize;

/// How long an answer is waited for: longer than a sidecar waits for a handshake.
const TIMEOUT: Duration = Duration::from_secs(8);

/// Most bytes of an answer that are looked at: our own answers are shorter.
const MAX_ANSWER_BYTES: u64 = 4096;

/// TLS record type of an alert (RFC 8446 section 5.1).
const ALERT: u8 = 21;

/// What a plain request to an inbound port came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Attempt {
    /// Whose sidecar.
    pub(super) sidecar: &'static str,
    /// Its inbound port.
    pub(super) address: SocketAddr,
    /// What happened.
    pub(super) result: Outcome,
    /// Whether bytes came through.
    pub(super) got_through: bool,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Outcome {
    /// The sidecar closed the connection.
    Closed,
    /// The sidecar reset the connection.
    Reset,
    /// The sidecar answered with a TLS alert.
    TlsAlert,
    /// The sidecar said that this port speaks TLS.
    ToldTls,
    /// The sidecar took the request and said nothing, neither answer nor end.
    Silent,
    /// An answer came: the port is open to everybody.
    Answered,
    /// There was no connection at all: nothing was proved.
    NotReached,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::TlsAlert => "TLS alert",
            Self::ToldTls => "told to speak TLS",
            Self::Silent => "neither answer nor end",
            Self::Answered => "it was answered",
            Self::NotReached => "nobody listens",
        })
    }
}

/// Tries one port.
pub(super) fn attempt(sidecar: &'static str, address: SocketAddr) -> Attempt {
    let result = request(address).unwrap_or(Outcome::NotReached);
    Attempt { sidecar, address, result, got_through: result == Outcome::Answered }
}

impl Attempt {
    /// Of this one and a later one at the same port, the one that did not fail as it must; else the later one.
    pub(super) fn worse(self, later: Self) -> Self {
        match self.was_refused() {
            true => later,
            false => self,
        }
    }

    /// Whether it failed as it must.
    pub(super) fn was_refused(&self) -> bool {
        matches!(self.result, Outcome::Closed | Outcome::Reset | Outcome::TlsAlert | Outcome::ToldTls)
    }
}

fn request(address: SocketAddr) -> io::Result<Outcome> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    // A send to a peer that has refused already fails; the read tells how.
    let _refused = stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n");
    let mut first = [0];
    Ok(match stream.read(&mut first) {
        Ok(0) => Outcome::Closed,
        Ok(_) if first[0] == ALERT => Outcome::TlsAlert,
        Ok(_) => {
            let mut rest = Vec::new();
            // Whatever is cut short is no word of ours.
            let _cut = stream.take(MAX_ANSWER_BYTES).read_to_end(&mut rest);
            if is_told_tls(&rest) { Outcome::ToldTls } else { Outcome::Answered }
        }
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Outcome::Silent,
        Err(_) => Outcome::Reset,
    })
}

/// Whether an answer (without its first byte) is the sidecar's own word that this is no port for plain requests.
fn is_told_tls(rest: &[u8]) -> bool {
    let head = String::from_utf8_lossy(rest);
    let reason = format!("\r\nx-ringmesh-reason: {}\r\n", Reason::PlainToTlsPort.label());
    head.starts_with("TTP/1.1 400 ") && head.contains(&reason)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    fn check(answer: &'static [u8], expected: Outcome) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_exact(&mut [0; 16]).unwrap();
            // What is left unread would turn the end into a reset.
            stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            let _end = stream.read_to_end(&mut Vec::new());
            stream.write_all(answer).unwrap();
        });
        let attempt = attempt("web", address);
        server.join().unwrap();
        assert_eq!(attempt.result, expected);
        assert_eq!(attempt.was_refused(), expected != Outcome::Answered);
    }

    #[test]
    fn an_end_or_an_alert_is_a_refusal_and_an_answer_is_none() {
        check(b"", Outcome::Closed);
        check(&[21, 3, 3, 0, 2, 2, 10], Outcome::TlsAlert);
        check(b"HTTP/1.1 200 OK\r\n\r\n", Outcome::Answered);
        check(b"HTTP/1.1 400 Bad Request\r\n\r\n", Outcome::Answered);
        check(b"HTTP/1.1 200 OK\r\nx-ringmesh-reason: plain_to_tls_port\r\n\r\n", Outcome::Answered);
        check(b"HTTP/1.1 400 Bad Request\r\nx-ringmesh-reason: plain_to_tls_port\r\n\r\n", Outcome::ToldTls);
    }

    #[test]
    fn a_port_that_nobody_listens_on_proves_nothing() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert!(!attempt("web", address).was_refused());
    }
}
