//! An established TLS connection as a stream like any other.
//!
//! rustls does no I/O here and keeps no bytes: ciphertext is received into a pool buffer that is given back when it is
//! used up, and records are sealed into pool buffers that the kernel's send gives back. State is borrowed between
//! awaits only, so that one reader and one writer may be in flight at once.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::{BUFFER_BYTES, Buffer, Error, Idle, Output, Pipe, Size, Stop, Stream};

use super::reading::Decoded;
use super::refused::Refused;
use super::shared::Shared;

/// A TLS connection over `S`. Its handshake is over and the peer is known.
pub struct TlsStream<S> {
    pub(super) shared: Rc<Shared<S>>,
}

impl<S: Stream> TlsStream<S> {
    /// Why a write failed. A peer that refuses us sends an alert and closes, and then a write fails before any read:
    /// the alert, if it has arrived, is the cause.
    fn cause(&self, error: io::Error) -> io::Error {
        if self.shared.state.borrow().reading.lent() {
            return error;
        }
        let mut probe = Buffer::take(Size::Small);
        match self.try_fill(&mut probe) {
            Err(refused) if Refused::inside(&refused).is_some() => refused,
            Ok(Some(1..)) => {
                self.shared.state.borrow_mut().reading.unread(probe.filled());
                error
            }
            _ => error,
        }
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    async fn readable(&self) -> io::Result<()> {
        if self.shared.state.borrow().reading.ready() {
            return Ok(());
        }
        self.shared.inner.readable().await
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        loop {
            match self.shared.decode(buffer)? {
                Decoded::Bytes(added) => return Ok(Some(added)),
                Decoded::End => return Ok(Some(0)),
                Decoded::Starved => {}
            }
            let mut input = self.shared.lend()?;
            let received = self.shared.inner.try_fill(&mut input);
            self.shared.give_back(input, received.as_ref().ok().copied().flatten());
            if received?.is_none() {
                return Ok(None);
            }
        }
    }

    /// A peer's session ticket or key update is taken without being data.
    fn check_idle(&self) -> io::Result<Idle> {
        if self.shared.state.borrow().reading.quiet() {
            match self.shared.inner.check_idle()? {
                Idle::Data => {}
                other => return Ok(other),
            }
        }
        let mut probe = Buffer::take(Size::Small);
        match self.try_fill(&mut probe) {
            Ok(Some(0)) | Err(_) => Ok(Idle::Closed),
            Ok(Some(_)) => {
                self.shared.state.borrow_mut().reading.unread(probe.filled());
                Ok(Idle::Data)
            }
            Ok(None) if self.shared.state.borrow().reading.quiet() => Ok(Idle::Open),
            Ok(None) => Ok(Idle::Data),
        }
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        loop {
            match self.shared.decode(buffer) {
                Ok(Decoded::Bytes(added)) => return Ok(added),
                Ok(Decoded::End) => return Ok(0),
                Ok(Decoded::Starved) => {}
                Err(error) => {
                    self.shared.report(stop).await;
                    return Err(error.into());
                }
            }
            let mut input = self.shared.lend()?;
            let received = self.shared.inner.fill(&mut input, stop).await;
            self.shared.give_back(input, received.as_ref().ok().copied());
            received?;
        }
    }

    /// As few records and sends as can be. After an error `output` holds what was not sealed, and nothing more can be
    /// written unless the stop was triggered before the call.
    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        if output.is_empty() {
            return Ok(());
        }
        match self.shared.send(output, stop).await {
            Err(Error::Io(error)) => Err(Error::Io(self.cause(error))),
            result => result,
        }
    }

    /// close_notify, then the transport's half-close; both go on by themselves where the kernel has no room, also when
    /// this stream is dropped. Not to be called while a flush is in flight.
    fn shutdown_write(&self) -> io::Result<()> {
        self.shared.close()
    }

    fn reset_on_close(&self) {
        self.shared.inner.reset_on_close();
    }

    /// Copies: the bytes have to pass through the cipher.
    async fn splice_telling(
        &self,
        to: &Self,
        _pipe: &mut Pipe,
        max: usize,
        stop: &Stop,
        mut waiting: impl FnMut(usize),
    ) -> Result<usize, Error> {
        let mut buffer = Buffer::take(if max > BUFFER_BYTES { Size::Large } else { Size::Small });
        let received = self.fill(&mut buffer, stop).await?;
        let taken = received.min(max);
        if taken < received {
            self.shared.state.borrow_mut().reading.unread(&buffer.filled()[taken..]);
        }
        let mut output = Output::new();
        output.push(buffer.slice(0..taken));
        waiting(taken);
        to.flush(&mut output, stop).await?;
        Ok(taken)
    }

    fn keep_alive(&self, silence: Duration) {
        self.shared.inner.keep_alive(silence);
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        self.shared.inner.peer_address()
    }

    fn original_destination(&self) -> Option<SocketAddr> {
        self.shared.inner.original_destination()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.shared.inner.local_address()
    }
}
