//! A connection of either side: plain or TLS, over TCP or a Unix socket.

use std::io;
use std::net::SocketAddr;

use ringmesh_ring::{Buffer, Error, Idle, Output, Pipe, Socket, Stop, Stream};

use crate::tls::TlsStream;

/// What bytes travel in.
pub(crate) enum Transport {
    Plain(Socket),
    Tls(TlsStream<Socket>),
}

impl Transport {
    /// What broke it, if TLS did.
    pub(crate) fn tls_fault(&self) -> Option<rustls::Error> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.fault(),
        }
    }
}

impl Stream for Transport {
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.readable().await,
            Self::Tls(stream) => stream.readable().await,
        }
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(stream) => stream.try_fill(buffer),
            Self::Tls(stream) => stream.try_fill(buffer),
        }
    }

    fn check_idle(&self) -> io::Result<Idle> {
        match self {
            Self::Plain(stream) => stream.check_idle(),
            Self::Tls(stream) => stream.check_idle(),
        }
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        match self {
            Self::Plain(stream) => stream.fill(buffer, stop).await,
            Self::Tls(stream) => stream.fill(buffer, stop).await,
        }
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        match self {
            Self::Plain(stream) => stream.flush(output, stop).await,
            Self::Tls(stream) => stream.flush(output, stop).await,
        }
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown_write(),
            Self::Tls(stream) => stream.shutdown_write(),
        }
    }

    fn reset_on_close(&self) {
        match self {
            Self::Plain(stream) => stream.reset_on_close(),
            Self::Tls(stream) => stream.reset_on_close(),
        }
    }

    async fn splice_to(&self, to: &Self, pipe: &mut Pipe, max: usize, stop: &Stop) -> Result<usize, Error> {
        match (self, to) {
            (Self::Plain(from), Self::Plain(to)) => from.splice_to(to, pipe, max, stop).await,
            _ => Err(Error::Io(io::ErrorKind::Unsupported.into())),
        }
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_address(),
            Self::Tls(stream) => stream.peer_address(),
        }
    }

    fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.local_address(),
            Self::Tls(stream) => stream.local_address(),
        }
    }
}
