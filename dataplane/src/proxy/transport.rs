//! A connection with or without TLS, so that everything above knows one type.

use std::io;
use std::net::SocketAddr;

use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::output::Output;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::{Error, Idle, Stream};

use crate::tls::TlsStream;

/// A connection of either kind.
pub enum Transport<S: Stream> {
    /// Bytes as they are.
    Plain(S),
    /// Inside TLS.
    Tls(TlsStream<S>),
}

impl<S: Stream> Transport<S> {
    /// The stream below if there is no TLS: what `splice(2)` may work on.
    pub fn plain(&self) -> Option<&S> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) => None,
        }
    }
}

impl<S: Stream> Stream for Transport<S> {
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
