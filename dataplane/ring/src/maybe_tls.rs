//! A connection with or without TLS, or a part of one that carries many, so that everything above knows one type. Whose TLS and
//! whose parts these are does not matter here.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::buffer::{Buffer, Size};
use crate::output::Output;
use crate::splice::Pipe;
use crate::stop::Stop;
use crate::stream::{Error, Idle, Stream};

/// A connection of any kind.
pub enum MaybeTls<S, T, C = Infallible> {
    /// Bytes as they are.
    Plain(S),
    /// Inside TLS.
    Tls(T),
    /// A byte stream of several in one connection.
    Channel(C),
}

impl<S, T, C> MaybeTls<S, T, C> {
    /// The stream itself if there is nothing around it: what `splice(2)` may work on.
    #[inline]
    pub fn plain(&self) -> Option<&S> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(_) | Self::Channel(_) => None,
        }
    }

    /// The TLS connection, if it is one.
    #[inline]
    pub fn tls(&self) -> Option<&T> {
        match self {
            Self::Plain(_) | Self::Channel(_) => None,
            Self::Tls(stream) => Some(stream),
        }
    }
}

impl<S: Stream, T: Stream, C: Stream> Stream for MaybeTls<S, T, C> {
    #[inline]
    async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.readable().await,
            Self::Tls(stream) => stream.readable().await,
            Self::Channel(stream) => stream.readable().await,
        }
    }

    #[inline]
    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(stream) => stream.try_fill(buffer),
            Self::Tls(stream) => stream.try_fill(buffer),
            Self::Channel(stream) => stream.try_fill(buffer),
        }
    }

    #[inline]
    fn try_receive(&self, output: &mut Output, size: Size) -> io::Result<Option<usize>> {
        match self {
            Self::Plain(stream) => stream.try_receive(output, size),
            Self::Tls(stream) => stream.try_receive(output, size),
            Self::Channel(stream) => stream.try_receive(output, size),
        }
    }

    #[inline]
    fn check_idle(&self) -> io::Result<Idle> {
        match self {
            Self::Plain(stream) => stream.check_idle(),
            Self::Tls(stream) => stream.check_idle(),
            Self::Channel(stream) => stream.check_idle(),
        }
    }

    #[inline]
    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        match self {
            Self::Plain(stream) => stream.fill(buffer, stop).await,
            Self::Tls(stream) => stream.fill(buffer, stop).await,
            Self::Channel(stream) => stream.fill(buffer, stop).await,
        }
    }

    #[inline]
    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        match self {
            Self::Plain(stream) => stream.flush(output, stop).await,
            Self::Tls(stream) => stream.flush(output, stop).await,
            Self::Channel(stream) => stream.flush(output, stop).await,
        }
    }

    #[inline]
    fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.shutdown_write(),
            Self::Tls(stream) => stream.shutdown_write(),
            Self::Channel(stream) => stream.shutdown_write(),
        }
    }

    #[inline]
    fn reset_on_close(&self) {
        match self {
            Self::Plain(stream) => stream.reset_on_close(),
            Self::Tls(stream) => stream.reset_on_close(),
            Self::Channel(stream) => stream.reset_on_close(),
        }
    }

    #[inline]
    async fn splice_telling(
        &self,
        to: &Self,
        pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
        waiting: impl FnMut(usize),
    ) -> Result<usize, Error> {
        match (self, to) {
            (Self::Plain(from), Self::Plain(to)) => from.splice_telling(to, pipe, max, stop, waiting).await,
            _ => Err(Error::Io(io::ErrorKind::Unsupported.into())),
        }
    }

    #[inline]
    fn is_torn(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_torn(),
            Self::Tls(stream) => stream.is_torn(),
            Self::Channel(stream) => stream.is_torn(),
        }
    }

    #[inline]
    fn keep_alive(&self, silence: Duration) {
        match self {
            Self::Plain(stream) => stream.keep_alive(silence),
            Self::Tls(stream) => stream.keep_alive(silence),
            Self::Channel(stream) => stream.keep_alive(silence),
        }
    }

    #[inline]
    fn peer_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.peer_address(),
            Self::Tls(stream) => stream.peer_address(),
            Self::Channel(stream) => stream.peer_address(),
        }
    }

    #[inline]
    fn original_destination(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.original_destination(),
            Self::Tls(stream) => stream.original_destination(),
            Self::Channel(stream) => stream.original_destination(),
        }
    }

    fn local_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(stream) => stream.local_address(),
            Self::Tls(stream) => stream.local_address(),
            Self::Channel(stream) => stream.local_address(),
        }
    }
}

/// Where nothing carries many.
impl Stream for Infallible {
    async fn readable(&self) -> io::Result<()> {
        match *self {}
    }

    fn try_fill(&self, _buffer: &mut Buffer) -> io::Result<Option<usize>> {
        match *self {}
    }

    fn check_idle(&self) -> io::Result<Idle> {
        match *self {}
    }

    async fn fill(&self, _buffer: &mut Buffer, _stop: &Stop) -> Result<usize, Error> {
        match *self {}
    }

    async fn flush(&self, _output: &mut Output, _stop: &Stop) -> Result<(), Error> {
        match *self {}
    }

    fn shutdown_write(&self) -> io::Result<()> {
        match *self {}
    }

    fn reset_on_close(&self) {
        match *self {}
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        match *self {}
    }
}
