//! The reading half: ciphertext in, plaintext out, and no memory held while there is neither.

use std::io;
use std::mem;

use ringmesh_ring::{BUFFER_BYTES, Buffer, Size};

use super::limits::{LEAST_OVERHEAD_BYTES, MAX_HANDSHAKE_BYTES};
use super::refused::Refused;
use super::session::{HEADER_BYTES, Progress, Session, has_record, record_length};

/// A read of so few bytes is none of bulk.
const FEW_BYTES: usize = BUFFER_BYTES / 2;

/// What is known of one connection's incoming bytes.
pub(super) struct Reading {
    /// Ciphertext not decoded yet. Hollow when there is none, and while a read is in flight with it.
    pub(super) input: Buffer,
    /// Plaintext that did not fit the caller's buffer. Hollow when there is none.
    plain: Buffer,
    /// So many bytes at the front of `input` are whole records that hold only a part of a handshake message. rustls
    /// keeps places in them: they stay where they are, further bytes are read elsewhere and put behind them, and a
    /// writer shows them to rustls as well.
    held: usize,
    /// A read is in flight.
    lent: bool,
    /// Of the buffer for the next read: what the last records and reads would have filled.
    size: Size,
    end: Option<End>,
}

/// Why nothing more will come.
enum End {
    /// close_notify.
    Clean,
    /// The transport ended without one: the last message may have been cut short on the way.
    Truncated,
    /// rustls refused what came.
    Failed(rustls::Error),
    /// A handshake message is longer than [`MAX_HANDSHAKE_BYTES`].
    TooLarge,
}

/// What [`Reading::decode`] came to.
pub(super) enum Decoded {
    /// So many bytes were added to the caller's buffer.
    Bytes(usize),
    /// Nothing until more bytes arrive: to be received into [`Reading::lend`]'s buffer.
    Starved,
    /// The peer ended its side.
    End,
}

impl Reading {
    pub(super) const fn new() -> Self {
        Self { input: Buffer::hollow(), plain: Buffer::hollow(), held: 0, lent: false, size: Size::Small, end: None }
    }

    /// Whether [`Self::decode`] has something to say without further input.
    pub(super) fn ready(&self) -> bool {
        !self.plain.is_empty() || self.end.is_some() || self.undecoded()
    }

    /// Whether a whole record waits, or bytes that may make a held one whole.
    fn undecoded(&self) -> bool {
        if self.held > 0 { self.input.len() > self.held } else { has_record(self.input.filled()) }
    }

    /// Whether the connection is open, and nothing came since the last whole message.
    pub(super) fn quiet(&self) -> bool {
        self.plain.is_empty() && self.input.is_empty() && !self.lent && self.end.is_none()
    }

    /// Adds what can be decoded to `buffer`, as far as it has room. Records to be sent are appended to `out`.
    ///
    /// # Errors
    /// If the connection is broken; the same error again with each further call.
    pub(super) fn decode(
        &mut self,
        session: &mut Session,
        buffer: &mut Buffer,
        out: &mut Vec<u8>,
    ) -> io::Result<Decoded> {
        debug_assert!(buffer.spare() > 0, "a full buffer would look like the end");
        let before = buffer.len();
        deliver_waiting(&mut self.plain, buffer);
        let mut more = self.input.len() > self.held;
        // Until rustls itself asks for input: an end may stand behind the last record.
        while more && buffer.spare() > 0 && self.end.is_none() {
            if buffer.len() > before && !self.next_fits(buffer.spare()) {
                break;
            }
            let plain = &mut self.plain;
            let mut sink = |bytes: &[u8]| deliver(bytes, buffer, plain);
            let (discard, progress) = session.process(self.input.filled_mut(), &mut sink, out);
            self.input.consume(discard);
            match progress {
                Ok(Progress::Again) => self.held = 0,
                Ok(Progress::NeedsInput) => {
                    self.hold();
                    more = false;
                }
                Ok(Progress::PeerClosed) => self.end = Some(End::Clean),
                Err(error) => {
                    take_alert(session, &mut self.input, out);
                    self.end = Some(End::Failed(error));
                }
            }
        }
        // What is held stays, also behind the end: a writer still shows it to rustls.
        if self.held == 0 && (self.input.is_empty() || self.end.is_some()) {
            self.input = Buffer::hollow();
        }
        match (buffer.len() - before, &self.end) {
            (0, None) => Ok(Decoded::Starved),
            (0, Some(end)) => end.report(),
            (added, _) => Ok(Decoded::Bytes(added)),
        }
    }

    /// rustls has seen all input: whole records that it left there are held.
    fn hold(&mut self) {
        self.held = if has_record(self.input.filled()) { self.input.len() } else { 0 };
    }

    /// Whether the next record's plaintext has room, as far as its length says: what has none after all waits beside it.
    fn next_fits(&self, room: usize) -> bool {
        record_length(self.input.filled()).is_none_or(|length| length <= room + LEAST_OVERHEAD_BYTES)
    }

    /// Whether a read is in flight.
    pub(super) fn lent(&self) -> bool {
        self.lent
    }

    /// Whether rustls refused what came: it must not be asked for anything any more.
    pub(super) fn failed(&self) -> bool {
        matches!(self.end, Some(End::Failed(_) | End::TooLarge))
    }

    /// The buffer for the next read, with room for at least the rest of the record that has begun.
    ///
    /// # Errors
    /// If an earlier read was abandoned in flight: bytes are lost then.
    pub(super) fn lend(&mut self) -> io::Result<Buffer> {
        if mem::replace(&mut self.lent, true) {
            return Err(io::Error::other("an earlier read of this TLS connection was abandoned"));
        }
        if self.held > 0 {
            return Ok(Buffer::take(Size::Small));
        }
        let mut input = mem::replace(&mut self.input, Buffer::hollow());
        if input.capacity() == 0 {
            return Ok(Buffer::take(self.size));
        }
        let record = record_length(input.filled());
        match record {
            Some(..=BUFFER_BYTES) => self.size = Size::Small,
            Some(_) => self.size = self.size.max(Size::Large),
            None => {}
        }
        let missing = record.unwrap_or(HEADER_BYTES).saturating_sub(input.len()).max(1);
        if input.spare() < missing {
            if input.capacity() < self.size.bytes() {
                input.grow_to(self.size);
            } else {
                input.compact();
            }
        }
        Ok(input)
    }

    /// Takes the lent buffer back. `received` is what the read came to, if it came to anything; 0 is the end.
    pub(super) fn give_back(&mut self, input: Buffer, received: Option<usize>) {
        self.lent = false;
        match received {
            Some(_) if input.spare() == 0 => self.size = input.size().next(),
            Some(..=FEW_BYTES) => self.size = Size::Small,
            _ => {}
        }
        if received == Some(0) && self.end.is_none() {
            self.end = Some(End::Truncated);
        }
        if self.held == 0 {
            self.input = if input.is_empty() { Buffer::hollow() } else { input };
            return;
        }
        if self.input.spare() < input.len() {
            self.input.grow();
        }
        if self.input.len() + input.len() > MAX_HANDSHAKE_BYTES || self.input.extend_from_slice(input.filled()).is_err()
        {
            self.end = Some(End::TooLarge);
        }
    }

    /// What a writer must show rustls as its input: the records that hold a part of a message, if any. A read in flight
    /// never has them.
    pub(super) fn held(&mut self) -> &mut [u8] {
        if self.held > 0 { &mut self.input.filled_mut()[..self.held] } else { &mut [] }
    }

    /// Puts plaintext back in front, to be read again.
    pub(super) fn unread(&mut self, bytes: &[u8]) {
        let mut front =
            Buffer::take(if bytes.len() + self.plain.len() > BUFFER_BYTES { Size::Large } else { Size::Small });
        for part in [bytes, self.plain.filled()] {
            front.extend_from_slice(part).expect("one read and the rest of one record fit a large buffer");
        }
        self.plain = front;
    }

    /// Keeps plaintext that came with the end of the handshake.
    pub(super) fn keep(plain: &mut Buffer, bytes: &[u8]) {
        if plain.capacity() == 0 {
            *plain = Buffer::take(Size::Small);
        }
        plain.extend_from_slice(bytes).expect("a record's plaintext fits an empty small buffer");
    }

    /// One step of the handshake, see [`super::handshake`].
    pub(super) fn shake(&mut self, session: &mut Session, out: &mut Vec<u8>) -> Result<Progress, Refused> {
        let plain = &mut self.plain;
        let (discard, progress) = session.process(self.input.filled_mut(), &mut |bytes| Self::keep(plain, bytes), out);
        self.input.consume(discard);
        match progress {
            Ok(progress) => {
                match progress {
                    Progress::NeedsInput => self.hold(),
                    Progress::Again => self.held = 0,
                    Progress::PeerClosed => {
                        self.held = 0;
                        self.end = Some(End::Clean);
                    }
                }
                if self.input.is_empty() {
                    self.input = Buffer::hollow();
                }
                Ok(progress)
            }
            Err(error) => {
                take_alert(session, &mut self.input, out);
                Err(error.into())
            }
        }
    }
}

impl End {
    fn report(&self) -> io::Result<Decoded> {
        match self {
            Self::Clean => Ok(Decoded::End),
            Self::Truncated => {
                let text = "TLS connection truncated: it ended without close_notify";
                Err(io::Error::new(io::ErrorKind::UnexpectedEof, text))
            }
            Self::Failed(error) => Err(Refused::from(error.clone()).into()),
            Self::TooLarge => Err(Refused::TooLarge.into()),
        }
    }
}

/// After an error: the alert that tells the peer.
fn take_alert(session: &mut Session, input: &mut Buffer, out: &mut Vec<u8>) {
    let mut sink = |_: &[u8]| {};
    while session.common().wants_write() {
        let (discard, progress) = session.process(input.filled_mut(), &mut sink, out);
        input.consume(discard);
        if progress.is_err() {
            return;
        }
    }
}

/// To the caller as far as there is room, the rest waits.
fn deliver(bytes: &[u8], buffer: &mut Buffer, plain: &mut Buffer) {
    let (now, later) = bytes.split_at(bytes.len().min(buffer.spare()));
    buffer.extend_from_slice(now).expect("cut to the spare room just above");
    if !later.is_empty() {
        Reading::keep(plain, later);
    }
}

fn deliver_waiting(plain: &mut Buffer, buffer: &mut Buffer) {
    if plain.is_empty() {
        return;
    }
    let fits = plain.len().min(buffer.spare());
    buffer.extend_from_slice(&plain.filled()[..fits]).expect("cut to the spare room just above");
    plain.consume(fits);
    if plain.is_empty() {
        *plain = Buffer::hollow();
    }
}

#[cfg(test)]
impl Reading {
    /// Memory held for bytes.
    pub(super) fn buffer_bytes(&self) -> usize {
        self.input.capacity() + self.plain.capacity()
    }
}
