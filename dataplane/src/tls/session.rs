//! rustls' connection without I/O, for both sides: records in, plaintext out, and back. Synchronous and without buffers
//! of its own.

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncryptError, UnbufferedStatus};
use rustls::{CommonState, Error};

/// Bytes of a record's header (RFC 8446 section 5.1).
pub(super) const HEADER_BYTES: usize = 5;

/// One side of a TLS connection.
pub(super) enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What one call into rustls came to.
#[derive(Debug)]
pub(super) enum Progress {
    /// Something happened; there may be more in the input.
    Again,
    /// Nothing more to be had from this input.
    NeedsInput,
    /// The peer closed its side with a close_notify.
    PeerClosed,
}

impl Session {
    pub(super) fn common(&self) -> &CommonState {
        match self {
            Self::Client(connection) => connection,
            Self::Server(connection) => connection,
        }
    }

    /// Takes one step on `input`. Plaintext goes to `plain`, records to be sent are appended to `out`. The number of
    /// bytes returned must be consumed from the front of `input` before the next call, also after an error.
    ///
    /// `input` is what is left of the last call's with new bytes behind it: rustls keeps places in it.
    pub(super) fn process(
        &mut self,
        input: &mut [u8],
        plain: &mut impl FnMut(&[u8]),
        out: &mut Vec<u8>,
    ) -> (usize, Result<Progress, Error>) {
        match self {
            Self::Client(connection) => take_step(connection.process_tls_records(input), plain, out),
            Self::Server(connection) => take_step(connection.process_tls_records(input), plain, out),
        }
    }

    /// Seals `plain`, at most a record's worth, into `to` and returns the bytes written; what was waiting to be sent (the
    /// two sides' key updates) comes before it. `input` as in [`Self::process`].
    pub(super) fn seal(&mut self, input: &mut [u8], plain: &[u8], to: &mut [u8]) -> Result<Sealed, SealError> {
        let mut waiting = 0;
        loop {
            let step = match self {
                Self::Client(connection) => write(connection.process_tls_records(input), plain, &mut to[waiting..]),
                Self::Server(connection) => write(connection.process_tls_records(input), plain, &mut to[waiting..]),
            };
            match step {
                Ok(Written::Waiting(bytes)) => waiting += bytes,
                Ok(Written::Last(bytes)) => return Ok(Sealed { written: waiting + bytes, taken: plain.len() }),
                Err(SealError::NoRoom) if waiting > 0 => return Ok(Sealed { written: waiting, taken: 0 }),
                Err(error) => return Err(error),
            }
        }
    }

    /// Seals a close_notify into `to` and returns the bytes written. Both parameters as in [`Self::seal`].
    pub(super) fn seal_close(&mut self, input: &mut [u8], to: &mut [u8]) -> Result<usize, SealError> {
        let mut waiting = 0;
        loop {
            let to = &mut to[waiting..];
            let step = match self {
                Self::Client(connection) => write_close(connection.process_tls_records(input), to),
                Self::Server(connection) => write_close(connection.process_tls_records(input), to),
            };
            match step? {
                Written::Waiting(bytes) => waiting += bytes,
                Written::Last(bytes) => return Ok(waiting + bytes),
            }
        }
    }
}

/// What [`Session::seal`] did.
pub(super) struct Sealed {
    /// Bytes of ciphertext.
    pub(super) written: usize,
    /// Bytes of plaintext in them: all, or none when what was waiting left no room.
    pub(super) taken: usize,
}

/// Why nothing was sealed.
#[derive(Debug, thiserror::Error)]
pub(super) enum SealError {
    /// Another buffer is needed; nothing was lost.
    #[error("record does not fit the buffer")]
    NoRoom,
    /// The connection is over, or its keys are used up and the peer never let us renew them.
    #[error("TLS connection takes no more data")]
    Over,
}

impl From<EncryptError> for SealError {
    fn from(error: EncryptError) -> Self {
        match error {
            EncryptError::InsufficientSize(_) => Self::NoRoom,
            EncryptError::EncryptExhausted => Self::Over,
        }
    }
}

/// The length of the record at the front of `bytes` with its header, once the header is there.
pub(super) fn record_length(bytes: &[u8]) -> Option<usize> {
    let header = bytes.first_chunk::<HEADER_BYTES>()?;
    Some(HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]])))
}

/// Whether a whole record stands at the front of `bytes`.
pub(super) fn has_record(bytes: &[u8]) -> bool {
    record_length(bytes).is_some_and(|length| bytes.len() >= length)
}

fn take_step<Side>(
    status: UnbufferedStatus<'_, '_, Side>,
    plain: &mut impl FnMut(&[u8]),
    out: &mut Vec<u8>,
) -> (usize, Result<Progress, Error>) {
    let mut discard = status.discard;
    let progress = match status.state {
        Err(error) => return (discard, Err(error)),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        plain(record.payload);
                    }
                    Err(error) => return (discard, Err(error)),
                }
            }
            Progress::Again
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            append(out, |to| data.encode(to));
            Progress::Again
        }
        // The caller sends `out` before it waits for anything.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Progress::Again
        }
        Ok(ConnectionState::PeerClosed) => Progress::PeerClosed,
        Ok(ConnectionState::Closed | ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
            Progress::NeedsInput
        }
        // Early data, which our servers never offer, or a state that this version does not have.
        Ok(_) => return (discard, Err(Error::General("unknown state of the TLS library".into()))),
    };
    (discard, Ok(progress))
}

fn append(out: &mut Vec<u8>, mut encode: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>) {
    let start = out.len();
    loop {
        match encode(&mut out[start..]) {
            Ok(written) => return out.truncate(start + written),
            Err(EncodeError::InsufficientSize(size)) => out.resize(start + size.required_size, 0),
            Err(EncodeError::AlreadyEncoded) => return,
        }
    }
}

enum Written {
    /// So many bytes of what was waiting.
    Waiting(usize),
    /// So many bytes that hold what was to be sealed.
    Last(usize),
}

fn write<Side>(status: UnbufferedStatus<'_, '_, Side>, plain: &[u8], to: &mut [u8]) -> Result<Written, SealError> {
    debug_assert_eq!(status.discard, 0, "the reader has taken whatever can be taken");
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => Ok(Written::Last(traffic.encrypt(plain, to)?)),
        other => write_waiting(other, to),
    }
}

fn write_close<Side>(status: UnbufferedStatus<'_, '_, Side>, to: &mut [u8]) -> Result<Written, SealError> {
    match status.state {
        Ok(ConnectionState::WriteTraffic(mut traffic)) => Ok(Written::Last(traffic.queue_close_notify(to)?)),
        other => write_waiting(other, to),
    }
}

/// What stands before the state in which data can be sent.
fn write_waiting<Side>(
    state: Result<ConnectionState<'_, '_, Side>, Error>,
    to: &mut [u8],
) -> Result<Written, SealError> {
    match state {
        // Only what rustls itself left over when a record did not fit: a key update of 27 bytes.
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            data.encode(to).map(Written::Waiting).map_err(|_| SealError::Over)
        }
        // The end of the handshake was sent by the handshake.
        Ok(ConnectionState::TransmitTlsData(data)) => {
            data.done();
            Ok(Written::Waiting(0))
        }
        _ => Err(SealError::Over),
    }
}
