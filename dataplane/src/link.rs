//! Frames between control and the data plane (see [`ringmesh_model::wire`]), blocking.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use ringmesh_model::wire::{MAX_FRAME_BYTES, MAX_FRAME_DESCRIPTORS};
use ringmesh_ring::descriptor;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How long the other side may pause inside a frame, or take no bytes.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(5);

/// One end of the connection.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
}

/// Why a frame was not sent or received.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other side has closed, or the system refused.
    #[error("the link broke: {0}")]
    Io(#[from] io::Error),
    /// Descriptors could not be passed.
    #[error(transparent)]
    Passing(#[from] descriptor::Error),
    /// The other side has closed between two frames.
    #[error("the other side closed the link")]
    Closed,
    /// The frame is larger than any we send.
    #[error("a frame of {0} bytes is more than the {MAX_FRAME_BYTES} allowed")]
    TooLarge(usize),
    /// The frame says that it has more descriptors than came with it, or more than allowed.
    #[error("a frame announces {announced} descriptors and brings {received}")]
    Descriptors {
        /// As its header says.
        announced: usize,
        /// As received.
        received: usize,
    },
    /// The message cannot be read: another version of the messages.
    #[error("a message cannot be read: {0}")]
    Message(#[from] postcard::Error),
}

impl Link {
    /// A link over a connected stream.
    ///
    /// # Errors
    /// If the stream's timeouts cannot be set.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(STALL_TIMEOUT))?;
        stream.set_write_timeout(Some(STALL_TIMEOUT))?;
        Ok(Self { stream })
    }

    /// Sends one message with descriptors.
    ///
    /// # Errors
    /// If the other side is gone or takes nothing for [`STALL_TIMEOUT`]; the link is of no use then.
    pub fn send(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let body = postcard::to_stdvec(message)?;
        if body.len() > MAX_FRAME_BYTES {
            return Err(Error::TooLarge(body.len()));
        }
        let mut frame = Vec::with_capacity(8 + body.len());
        frame.extend_from_slice(&(body.len() as u32).to_le_bytes());
        frame.extend_from_slice(&(descriptors.len() as u32).to_le_bytes());
        frame.extend_from_slice(&body);
        let (mut rest, mut attached) = (&frame[..], descriptors);
        while !rest.is_empty() {
            let sent = descriptor::send_part(&self.stream, &[IoSlice::new(rest)], attached)?;
            attached = &[];
            rest = &rest[sent..];
        }
        Ok(())
    }

    /// Waits for one message, for ever if nothing has come of it yet.
    ///
    /// # Errors
    /// If the other side is gone, pauses inside a frame for [`STALL_TIMEOUT`], or sends what no version of us sends; the
    /// link is of no use then.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), Error> {
        self.wait()?;
        let mut header = [0; 8];
        let mut descriptors = Vec::new();
        let mut filled = 0;
        while filled < header.len() {
            match descriptor::receive_part(&self.stream, &mut header[filled..], &mut descriptors)? {
                0 if filled == 0 => return Err(Error::Closed),
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => filled += count,
            }
        }
        let word =
            |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]) as usize;
        let (length, announced) = (word(0), word(4));
        if length > MAX_FRAME_BYTES {
            return Err(Error::TooLarge(length));
        }
        let mut body = Vec::new();
        while body.len() < length {
            // Grown as bytes come, so that a length alone costs nothing.
            let (start, step) = (body.len(), (length - body.len()).min(1024 * 1024));
            body.resize(start + step, 0);
            match descriptor::receive_part(&self.stream, &mut body[start..], &mut descriptors)? {
                0 => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                count => body.truncate(start + count),
            }
        }
        if announced != descriptors.len() || announced > MAX_FRAME_DESCRIPTORS {
            return Err(Error::Descriptors { announced, received: descriptors.len() });
        }
        Ok((postcard::from_bytes(&body)?, descriptors))
    }

    fn wait(&self) -> io::Result<()> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match poll(&mut [PollFd::new(&self.stream, PollFlags::IN)], None) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The stream below.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
