//! Frames of the connection that two Ringmesh proxies share: many byte streams ("channels") in one connection, protocol
//! `ringmesh/1`. What they mean, and in which order they may come, is specified in `dataplane/src/mux/PROTOCOL.md`.

/// The protocol's name in ALPN (RFC 7301).
pub const ALPN: &str = "ringmesh/1";

/// Its name where each channel carries HTTP/1.1 in place of a later version, which only a proxy of HTTP can turn back.
pub const ALPN_HTTP: &str = "ringmesh-http/1";

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;

/// Most bytes that one frame carries. A power of two, as what is read at once is, so that no crumbs are left over; what has come
/// of a frame is told before the rest has, so that it waits for no further TLS record.
pub const MAX_DATA_BYTES: usize = 32 * 1024;

/// Most bytes behind the header of a frame that carries no data. Larger than any of version 1, so that later releases may
/// say more in the same frame.
pub const MAX_CONTROL_BYTES: usize = 256;

/// What a channel may send before the first credit, in bytes. Part of version 1: both sides know it without being told.
pub const INITIAL_WINDOW_BYTES: u32 = 64 * 1024;

/// Channels that the opener may have open before the other side has said how many it takes: as many as everybody takes.
pub const INITIAL_CHANNELS: u32 = 1;

/// Kinds from here on say nothing that must be understood: who does not know one skips it.
pub const FIRST_OPTIONAL_KIND: u8 = 0x80;

/// The flag of [`Frame::Data`] for the last bytes of a direction.
const END: u8 = 1;

mod kind {
    pub(super) const HELLO: u8 = 0;
    pub(super) const OPEN: u8 = 1;
    pub(super) const DATA: u8 = 2;
    pub(super) const CREDIT: u8 = 3;
    pub(super) const CLOSE: u8 = 4;
    pub(super) const RESET: u8 = 5;
    pub(super) const PING: u8 = 6;
    pub(super) const PONG: u8 = 7;
    pub(super) const GOAWAY: u8 = 8;
}

/// Why a channel was reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its user has given up, or broke off.
    Cancelled,
    /// It was not looked at: nothing that came in it had an effect.
    Refused,
}

/// A frame, or a part of one that carries data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// The first frame of each side: how many channels it takes.
    Hello {
        /// Channels that may be open at a time.
        channels: u32,
    },
    /// Opens a channel.
    Open {
        /// Its number.
        channel: u32,
    },
    /// Bytes of a channel; as many as have arrived.
    Data {
        /// Of this channel.
        channel: u32,
        /// The bytes.
        bytes: &'a [u8],
        /// Whether these are the last ones of the direction.
        end: bool,
    },
    /// So many more bytes may be sent.
    Credit {
        /// In this channel.
        channel: u32,
        /// Bytes.
        bytes: u32,
    },
    /// The sender neither sends nor reads any more; all went well.
    Close {
        /// This channel.
        channel: u32,
    },
    /// The sender neither sends nor reads any more; the bytes so far are not all.
    Reset {
        /// This channel.
        channel: u32,
        /// Why.
        cause: Cause,
    },
    /// Asks whether the other side is there.
    Ping([u8; 8]),
    /// The answer, with the same bytes.
    Pong([u8; 8]),
    /// The sender wants no further channels; who opens them answers with one, and opens none after it.
    GoAway,
    /// A frame of a later release that need not be understood.
    Skipped,
}

/// Why bytes are no frames of this protocol. The connection is over then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The kind is unknown, and would have to be understood.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A frame carries more than one may, or less than its kind needs.
    #[error("frame of kind {kind} with {length} bytes")]
    Length {
        /// Its kind.
        kind: u8,
        /// Bytes behind the header.
        length: usize,
    },
    /// A frame of a channel names none, or one of the connection names one.
    #[error("frame of kind {kind} for channel {channel}")]
    Channel {
        /// Its kind.
        kind: u8,
        /// The channel.
        channel: u32,
    },
}

/// Finds the frames in the bytes of one direction.
#[derive(Debug, Default)]
pub struct Frames {
    /// The frame of data that has not come whole: its channel, the bytes to come, and its flags.
    open: Option<(u32, usize, u8)>,
}

impl Frames {
    /// The next frame in `bytes`, and how many of them it takes. None: more are needed; at most
    /// [`HEADER_BYTES`] + [`MAX_CONTROL_BYTES`] wait for that.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn next<'a>(&mut self, bytes: &'a [u8]) -> Result<Option<(Frame<'a>, usize)>, Fault> {
        if self.open.is_some() {
            return Ok(self.data(bytes, 0));
        }
        let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
        let [kind, flags, high, low, channel @ ..] = *header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        let channel = u32::from_be_bytes(channel);
        if kind == kind::DATA {
            if length > MAX_DATA_BYTES {
                return Err(Fault::Length { kind, length });
            }
            if channel == 0 {
                return Err(Fault::Channel { kind, channel });
            }
            self.open = Some((channel, length, flags));
            return Ok(self.data(bytes, HEADER_BYTES));
        }
        if length > MAX_CONTROL_BYTES {
            return Err(Fault::Length { kind, length });
        }
        let Some(payload) = bytes.get(HEADER_BYTES..HEADER_BYTES + length) else { return Ok(None) };
        Ok(Some((control(kind, channel, payload)?, HEADER_BYTES + length)))
    }

    /// What has come of the open frame of data behind `skipped` bytes.
    fn data<'a>(&mut self, bytes: &'a [u8], skipped: usize) -> Option<(Frame<'a>, usize)> {
        let (channel, left, flags) = self.open?;
        let bytes = &bytes[skipped..];
        let taken = bytes.len().min(left);
        let whole = taken == left;
        if taken == 0 && !whole {
            // Its header is taken all the same: it is remembered.
            return (skipped > 0).then_some((Frame::Data { channel, bytes: &[], end: false }, skipped));
        }
        self.open = (!whole).then_some((channel, left - taken, flags));
        let end = whole && flags & END != 0;
        Some((Frame::Data { channel, bytes: &bytes[..taken], end }, skipped + taken))
    }
}

/// A frame that carries no data. What is longer than this release knows ends in what it does not need.
fn control<'a>(kind: u8, channel: u32, payload: &[u8]) -> Result<Frame<'a>, Fault> {
    let short = Fault::Length { kind, length: payload.len() };
    let number = || payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).ok_or(short);
    let eight = || payload.first_chunk().copied().ok_or(short);
    let one = || payload.first().copied().ok_or(short);
    let of_channel = (kind::OPEN..=kind::RESET).contains(&kind);
    if kind <= kind::GOAWAY && of_channel != (channel != 0) {
        return Err(Fault::Channel { kind, channel });
    }
    Ok(match kind {
        kind::HELLO => Frame::Hello { channels: number()? },
        kind::OPEN => Frame::Open { channel },
        kind::CREDIT => Frame::Credit { channel, bytes: number()? },
        kind::CLOSE => Frame::Close { channel },
        kind::RESET => match one()? {
            1 => Frame::Reset { channel, cause: Cause::Refused },
            // A later release may have more causes; that it is over is what counts.
            _ => Frame::Reset { channel, cause: Cause::Cancelled },
        },
        kind::PING => Frame::Ping(eight()?),
        kind::PONG => Frame::Pong(eight()?),
        kind::GOAWAY => Frame::GoAway,
        FIRST_OPTIONAL_KIND.. => Frame::Skipped,
        _ => return Err(Fault::UnknownKind(kind)),
    })
}

/// The header of a frame of data. `end`: the direction's last.
///
/// # Panics
/// If it has more than [`MAX_DATA_BYTES`].
pub fn data_header(channel: u32, bytes: usize, end: bool) -> [u8; HEADER_BYTES] {
    assert!(bytes <= MAX_DATA_BYTES, "a frame carries no more");
    header(kind::DATA, if end { END } else { 0 }, bytes as u16, channel)
}

fn header(kind: u8, flags: u8, length: u16, channel: u32) -> [u8; HEADER_BYTES] {
    let ([high, low], [a, b, c, d]) = (length.to_be_bytes(), channel.to_be_bytes());
    [kind, flags, high, low, a, b, c, d]
}

/// A frame without data as bytes.
#[derive(Clone, Copy, Debug)]
pub struct Encoded {
    bytes: [u8; 2 * HEADER_BYTES],
    len: u8,
}

impl std::ops::Deref for Encoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl Frame<'_> {
    /// As bytes. Of a frame with data that is its header, see [`data_header`].
    pub fn encode(&self) -> Encoded {
        match *self {
            Frame::Hello { channels } => encoded(kind::HELLO, 0, &channels.to_be_bytes()),
            Frame::Open { channel } => encoded(kind::OPEN, channel, &[]),
            Frame::Data { channel, bytes, end } => {
                let mut whole = encoded(kind::DATA, channel, &[]);
                whole.bytes[..HEADER_BYTES].copy_from_slice(&data_header(channel, bytes.len(), end));
                whole
            }
            Frame::Credit { channel, bytes } => encoded(kind::CREDIT, channel, &bytes.to_be_bytes()),
            Frame::Close { channel } => encoded(kind::CLOSE, channel, &[]),
            Frame::Reset { channel, cause } => encoded(kind::RESET, channel, &[u8::from(cause == Cause::Refused)]),
            Frame::Ping(payload) => encoded(kind::PING, 0, &payload),
            Frame::Pong(payload) => encoded(kind::PONG, 0, &payload),
            Frame::GoAway => encoded(kind::GOAWAY, 0, &[]),
            Frame::Skipped => encoded(FIRST_OPTIONAL_KIND, 0, &[]),
        }
    }
}

fn encoded(kind: u8, channel: u32, payload: &[u8]) -> Encoded {
    let mut bytes = [0; 2 * HEADER_BYTES];
    bytes[..HEADER_BYTES].copy_from_slice(&header(kind, 0, payload.len() as u16, channel));
    bytes[HEADER_BYTES..HEADER_BYTES + payload.len()].copy_from_slice(payload);
    Encoded { bytes, len: (HEADER_BYTES + payload.len()) as u8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Vec<String>, Fault> {
        let (mut frames, mut found, mut at) = (Frames::default(), Vec::new(), 0);
        while let Some((frame, taken)) = frames.next(&bytes[at..])? {
            assert!(taken > 0 || at == bytes.len(), "each frame takes something");
            at += taken;
            found.push(format!("{frame:?}"));
        }
        assert_eq!(at, bytes.len(), "all is read");
        Ok(found)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let all = [
            Frame::Hello { channels: 100 },
            Frame::Open { channel: 1 },
            Frame::Open { channel: u32::MAX },
            Frame::Data { channel: 7, bytes: &[], end: true },
            Frame::Data { channel: 7, bytes: &[], end: false },
            Frame::Credit { channel: 7, bytes: u32::MAX },
            Frame::Close { channel: 7 },
            Frame::Reset { channel: 7, cause: Cause::Cancelled },
            Frame::Reset { channel: 7, cause: Cause::Refused },
            Frame::Ping(*b"whoisit?"),
            Frame::Pong(*b"whoisit?"),
            Frame::GoAway,
            Frame::Skipped,
        ];
        let bytes: Vec<u8> = all.iter().flat_map(|frame| frame.encode().to_vec()).collect();
        assert_eq!(read(&bytes), Ok(all.iter().map(|frame| format!("{frame:?}")).collect()));
    }

    #[test]
    fn data_is_told_as_it_comes_and_its_end_once() {
        let mut bytes = data_header(3, 10, true).to_vec();
        bytes.extend(b"0123456789");
        for step in 1..=bytes.len() {
            let (mut frames, mut have, mut data, mut ends) = (Frames::default(), Vec::new(), Vec::new(), 0);
            for part in bytes.chunks(step) {
                have.extend_from_slice(part);
                while let Some((frame, taken)) = frames.next(&have).expect("it is one") {
                    let Frame::Data { channel: 3, bytes, end } = frame else { panic!("{frame:?}") };
                    data.extend_from_slice(bytes);
                    ends += u32::from(end);
                    have.drain(..taken);
                    assert!(taken > 0);
                }
            }
            assert_eq!((data.as_slice(), ends, have.len()), (&b"0123456789"[..], 1, 0), "{step}");
        }
    }

    #[test]
    fn faults_are_told_apart() {
        type Row = (&'static [u8], Result<&'static str, Fault>);
        let table: [Row; 11] = [
            (&[9, 0, 0, 0, 0, 0, 0, 0], Err(Fault::UnknownKind(9))),
            (&[0x7f, 0, 0, 0, 0, 0, 0, 0], Err(Fault::UnknownKind(0x7f))),
            (&[0x80, 0, 0, 1, 0, 0, 0, 9, 1], Ok("Skipped")),
            (&[0x80, 0, 1, 1, 0, 0, 0, 0], Err(Fault::Length { kind: 0x80, length: 257 })),
            (&[2, 0, 0x80, 0x01, 0, 0, 0, 1], Err(Fault::Length { kind: 2, length: 32_769 })),
            (&[2, 0, 0, 1, 0, 0, 0, 0, 1], Err(Fault::Channel { kind: 2, channel: 0 })),
            (&[1, 0, 0, 1, 0, 0, 0, 0, 1], Err(Fault::Channel { kind: 1, channel: 0 })),
            (&[5, 0, 0, 0, 0, 0, 0, 1], Err(Fault::Length { kind: 5, length: 0 })),
            (&[3, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0], Err(Fault::Length { kind: 3, length: 3 })),
            (&[6, 0, 0, 8, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], Err(Fault::Channel { kind: 6, channel: 1 })),
            // What a later release says beyond what this one knows.
            (&[0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 100, 1, 2], Ok("Hello { channels: 100 }")),
        ];
        for (bytes, expected) in table {
            assert_eq!(read(bytes), expected.map(|frame| vec![frame.to_owned()]), "{bytes:?}");
        }
    }
}
