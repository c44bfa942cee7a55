//! A TLS connection as a stream like any other, over rustls' buffered connection. On purpose not the adapter of the
//! proxy: what is under test must not be its own yardstick.

use std::cell::{Cell, RefCell};
use std::io::{self, BufRead, IoSlice, Read, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use ringmesh_ring::{Buffer, Error, Idle, Instant, Output, Size, Stop, Stream, spawn};
use rustls::{Connection, HandshakeKind};

use super::groups::label;

/// How long saying goodbye may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Most slices that rustls is given at once.
const MAX_SLICES: usize = 16;

/// A TLS connection over `S`.
pub(crate) struct TlsStream<S>(Rc<Inner<S>>);

struct Inner<S> {
    stream: S,
    state: RefCell<State>,
    /// Where records wait to be sent, with its storage warm; taken while a send is under way.
    sealed: Cell<Output>,
}

struct State {
    session: Connection,
    /// Ciphertext that rustls has not taken yet.
    input: Buffer,
    /// What broke the connection, for the one who tells the user.
    fault: Option<rustls::Error>,
}

impl<S: Stream> TlsStream<S> {
    /// Shakes hands. After an error [`Handshake`] says why.
    pub(crate) async fn open(stream: S, session: Connection, stop: &Stop) -> Result<Self, Handshake> {
        let state = RefCell::new(State { session, input: Buffer::hollow(), fault: None });
        let own = Self(Rc::new(Inner { stream, state, sealed: Cell::default() }));
        loop {
            own.send_waiting(stop).await?;
            if !own.0.state.borrow().session.is_handshaking() {
                return Ok(own);
            }
            let mut input = own.0.lend();
            let received = own.0.stream.fill(&mut input, stop).await;
            own.0.give_back(input);
            if received? == 0 {
                return Err(Handshake::Closed);
            }
            let decoded = own.0.state.borrow_mut().decode();
            if let Err(error) = decoded {
                return Err(own.refuse(error, stop).await);
            }
        }
    }

    /// The protocol that both sides agreed on.
    pub(crate) fn alpn(&self) -> Option<Vec<u8>> {
        self.0.state.borrow().session.alpn_protocol().map(<[u8]>::to_vec)
    }

    /// Whether an earlier session was taken up again.
    pub(crate) fn is_resumed(&self) -> bool {
        self.0.state.borrow().session.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// What both sides agreed on: key exchange group and cipher suite.
    pub(crate) fn parameters(&self) -> Option<String> {
        let session = &self.0.state.borrow().session;
        let group = label(session.negotiated_key_exchange_group()?.name());
        // rustls tells them apart from those of TLS 1.2 by a number that IANA's names do not have.
        let suite = format!("{:?}", session.negotiated_cipher_suite()?.suite()).replace("TLS13_", "TLS_");
        Some(format!("{group} {suite}"))
    }

    /// What broke the connection, if TLS did.
    pub(crate) fn fault(&self) -> Option<rustls::Error> {
        self.0.state.borrow().fault.clone()
    }

    /// Tells the peer why, as far as it listens.
    async fn refuse(&self, error: io::Error, stop: &Stop) -> Handshake {
        let _gone = self.send_waiting(stop).await;
        match self.fault() {
            Some(fault) => Handshake::Tls(fault),
            None => Handshake::Stream(error.into()),
        }
    }

    async fn send_waiting(&self, stop: &Stop) -> Result<(), Error> {
        let mut sealed = Output::new();
        self.0.state.borrow_mut().take_records(&mut sealed)?;
        self.0.stream.flush(&mut sealed, stop).await
    }
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Handshake {
    /// The peer closed in the middle of it.
    #[error("the peer closed the connection during the TLS handshake")]
    Closed,
    /// One side refuses the other.
    #[error(transparent)]
    Tls(rustls::Error),
    /// The connection below, or a deadline.
    #[error(transparent)]
    Stream(#[from] Error),
}

impl State {
    /// Gives rustls what has come, until there is plaintext to be read or nothing left.
    fn decode(&mut self) -> io::Result<()> {
        while !self.input.is_empty() {
            let mut input = self.input.filled();
            let taken = self.session.read_tls(&mut input)?;
            self.input.consume(taken);
            match self.session.process_new_packets() {
                Ok(state) if state.plaintext_bytes_to_read() > 0 || state.peer_has_closed() => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    self.fault.get_or_insert_with(|| error.clone());
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
            }
        }
        // An idle connection holds no buffer.
        self.input = Buffer::hollow();
        Ok(())
    }

    /// Reads plaintext. None: there is none yet.
    fn read(&mut self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        loop {
            match self.session.reader().read(buffer.spare_mut()) {
                Ok(read) => {
                    buffer.commit(read);
                    return Ok(Some(read));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
            if self.input.is_empty() {
                return Ok(None);
            }
            self.decode()?;
        }
    }

    /// The transport has ended: without a close_notify that is an error, which the next read tells.
    fn end(&mut self) -> io::Result<()> {
        self.session.read_tls(&mut io::empty()).map(drop)
    }

    /// Moves what rustls has sealed.
    fn take_records(&mut self, sealed: &mut Output) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut Sink(sealed))?;
        }
        Ok(())
    }

    /// Seals as much of `output` as rustls takes at once.
    fn seal(&mut self, output: &mut Output, sealed: &mut Output) -> io::Result<()> {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let mut count = 0;
        for (slot, slice) in slices.iter_mut().zip(output.slices()) {
            *slot = IoSlice::new(slice);
            count += 1;
        }
        let taken = self.session.writer().write_vectored(&slices[..count])?;
        output.advance(taken);
        self.take_records(sealed)
    }
}

/// Where records are written to.
struct Sink<'a>(&'a mut Output);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.push_bytes(bytes);
        Ok(bytes.len())
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        slices.iter().for_each(|slice| self.0.push_bytes(slice));
        Ok(slices.iter().map(|slice| slice.len()).sum())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<S> Inner<S> {
    /// The buffer to receive ciphertext into. It goes back when something was received.
    fn lend(&self) -> Buffer {
        let mut input = std::mem::replace(&mut self.state.borrow_mut().input, Buffer::hollow());
        if input.capacity() == 0 {
            input = Buffer::take(Size::Small);
        }
        if input.spare() == 0 {
            input.compact();
        }
        if input.spare() == 0 {
            input.grow();
        }
        input
    }

    fn give_back(&self, input: Buffer) {
        self.state.borrow_mut().input = if input.is_empty() { Buffer::hollow() } else { input };
    }
}

impl<S: Stream> Stream for TlsStream<S> {
    async fn readable(&self) -> io::Result<()> {
        if self.has_plaintext() {
            return Ok(());
        }
        self.0.stream.readable().await
    }

    fn try_fill(&self, buffer: &mut Buffer) -> io::Result<Option<usize>> {
        loop {
            if let Some(read) = self.0.state.borrow_mut().read(buffer)? {
                return Ok(Some(read));
            }
            let mut input = self.0.lend();
            let received = self.0.stream.try_fill(&mut input);
            self.0.give_back(input);
            match received? {
                Some(0) => self.0.state.borrow_mut().end()?,
                Some(_) => {}
                None => return Ok(None),
            }
        }
    }

    /// A session ticket is taken without being data.
    fn check_idle(&self) -> io::Result<Idle> {
        loop {
            if self.has_plaintext() {
                return Ok(Idle::Data);
            }
            match self.0.stream.check_idle()? {
                Idle::Data => {}
                other => return Ok(other),
            }
            let mut input = self.0.lend();
            let received = self.0.stream.try_fill(&mut input);
            self.0.give_back(input);
            let mut state = self.0.state.borrow_mut();
            match received {
                Ok(Some(1..)) if state.decode().is_ok() => {}
                Ok(None) => return Ok(Idle::Open),
                _ => return Ok(Idle::Closed),
            }
            // Readable without data: the peer has said goodbye.
            match state.session.reader().fill_buf() {
                Ok([]) => return Ok(Idle::Closed),
                Ok(_) => return Ok(Idle::Data),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Ok(Idle::Closed),
            }
        }
    }

    async fn fill(&self, buffer: &mut Buffer, stop: &Stop) -> Result<usize, Error> {
        loop {
            let read = self.0.state.borrow_mut().read(buffer);
            match read {
                Ok(Some(read)) => return Ok(read),
                Ok(None) => {}
                Err(error) => {
                    // An alert tells the peer why, unless it is the one who told us.
                    let _gone = self.send_waiting(stop).await;
                    return Err(error.into());
                }
            }
            let mut input = self.0.lend();
            let received = self.0.stream.fill(&mut input, stop).await;
            self.0.give_back(input);
            if received? == 0 {
                self.0.state.borrow_mut().end()?;
            }
        }
    }

    async fn flush(&self, output: &mut Output, stop: &Stop) -> Result<(), Error> {
        let mut sealed = self.0.sealed.take();
        while !output.is_empty() {
            self.0.state.borrow_mut().seal(output, &mut sealed)?;
            self.0.stream.flush(&mut sealed, stop).await?;
        }
        self.0.sealed.set(sealed);
        Ok(())
    }

    /// close_notify, then the half-close of the transport, in a task of their own.
    fn shutdown_write(&self) -> io::Result<()> {
        let own = self.0.clone();
        let mut sealed = Output::new();
        {
            let mut state = own.state.borrow_mut();
            state.session.send_close_notify();
            state.take_records(&mut sealed)?;
        }
        spawn(async move {
            let stop = Stop::new();
            stop.set_deadline(Some(Instant::now() + CLOSE_TIMEOUT));
            // A peer that is gone needs no goodbye.
            let _gone = own.stream.flush(&mut sealed, &stop).await;
            let _gone = own.stream.shutdown_write();
        });
        Ok(())
    }

    fn reset_on_close(&self) {
        self.0.stream.reset_on_close();
    }

    fn peer_address(&self) -> Option<SocketAddr> {
        self.0.stream.peer_address()
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.0.stream.local_address()
    }
}

impl<S> TlsStream<S> {
    fn has_plaintext(&self) -> bool {
        let mut state = self.0.state.borrow_mut();
        !state.input.is_empty() || state.session.reader().fill_buf().is_ok_and(|bytes| !bytes.is_empty())
    }
}
