//! Connecting: to one of the targets, with a PROXY header if asked for, and TLS.

use std::io;

use ringmesh_ring::net::{Address, Net};
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::{self, Stream};
use ringmesh_ring::{Instant, Output};
use rustls::{CertificateError, Error as TlsError};

use super::worker::Shared;
use crate::report::Failure;
use crate::tls::{self, Handshake, TlsStream};
use crate::transport::Transport;

/// One of the places that a load goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where it listens.
    pub address: Address,
    /// Its share of the requests, relative to the sum of all targets.
    pub weight: u32,
}

impl From<Address> for Target {
    fn from(address: Address) -> Self {
        Self { address, weight: 1 }
    }
}

impl Shared {
    /// Opens a connection to a target. What went wrong is told to the report.
    pub(super) async fn connect(
        &self,
        target: usize,
        tls: Option<&tls::Client>,
        stop: &Stop,
    ) -> Result<Transport, Failure> {
        let address = &self.settings.targets[target].address;
        let socket = self.net.connect(address, None, stop).await.map_err(|error| match error {
            stream::Error::Stopped(_) => Failure::Timeout,
            stream::Error::Io(error) => {
                self.explain(|| format!("cannot connect to {address}: {error}{}", advice_on_connecting(&error)));
                Failure::Connect
            }
        })?;
        self.report.borrow_mut().connections += 1;
        if let Some(header) = self.settings.proxy_header {
            let mut output = Output::new();
            output.push_bytes(&header.encode(socket.local_address(), socket.peer_address()));
            socket.flush(&mut output, stop).await.map_err(|_| Failure::Cut)?;
        }
        let Some(tls) = tls else { return Ok(Transport::Plain(socket)) };
        let begin = Instant::now();
        let session = tls.session().map_err(|error| self.refused(address, &error))?;
        let stream = match TlsStream::open(socket, session, stop).await {
            Ok(stream) => stream,
            Err(Handshake::Stream(stream::Error::Stopped(_))) => return Err(Failure::Timeout),
            Err(Handshake::Tls(error)) => return Err(self.refused(address, &error)),
            Err(error @ (Handshake::Closed | Handshake::Stream(_))) => {
                self.explain(|| format!("no TLS with {address}: {error}; does it speak TLS 1.3 there?"));
                return Err(Failure::Tls);
            }
        };
        let mut report = self.report.borrow_mut();
        let took = Instant::now().saturating_since(begin);
        report.shook_hands(took, stream.is_resumed(), stream.parameters());
        Ok(Transport::Tls(stream))
    }

    /// One side refused the other: says so.
    pub(super) fn refused(&self, address: &Address, error: &TlsError) -> Failure {
        self.explain(|| match error {
            // Ours, which says it better than what it is wrapped in.
            TlsError::InvalidCertificate(CertificateError::Other(error)) => {
                format!("no TLS with {address}: {}", error.0)
            }
            error => format!("no TLS with {address}: {error}{}", advice_on_tls(error)),
        });
        Failure::Tls
    }

    /// What an exchange failed for, which is TLS' fault if TLS says so.
    pub(super) fn blame(&self, target: usize, transport: &Transport, failure: Failure) -> Failure {
        match transport.tls().and_then(TlsStream::fault) {
            Some(error) => self.refused(&self.settings.targets[target].address, &error),
            None => failure,
        }
    }

    pub(super) fn explain(&self, text: impl FnOnce() -> String) {
        self.report.borrow_mut().explain(&text());
    }
}

fn advice_on_connecting(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "; does the server run, and is the port right?",
        io::ErrorKind::NotFound => "; is the path of the socket right?",
        io::ErrorKind::AddrNotAvailable => {
            "; local ports are used up: fewer new connections, or a wider net.ipv4.ip_local_port_range"
        }
        _ => match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => {
                "; raise the limit on descriptors (`ulimit -n`), or take fewer connections"
            }
            _ => "",
        },
    }
}

fn advice_on_tls(error: &TlsError) -> &'static str {
    match error {
        // A bad signature: another issuer of the same name.
        TlsError::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "; give its issuer with --cacert, or trust anybody with --insecure"
        }
        TlsError::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "; give the name that it has with --sni, or trust anybody with --insecure",
        TlsError::AlertReceived(rustls::AlertDescription::NoApplicationProtocol) | TlsError::NoApplicationProtocol => {
            "; it does not speak the version of HTTP that was offered: see --http2"
        }
        TlsError::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
            "; it wants a client certificate: give --cert and --key"
        }
        TlsError::InvalidMessage(_) => "; does it speak TLS there at all?",
        TlsError::PeerIncompatible(_) | TlsError::AlertReceived(rustls::AlertDescription::ProtocolVersion) => {
            "; only TLS 1.3 is spoken here"
        }
        _ => "",
    }
}
