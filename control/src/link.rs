//! Control's end of the socket to a data plane, for tokio. The frames are those of `ringmesh_model::wire`.
//!
//! Reading and writing are two tasks with queues before them, so that a data plane that hangs costs control nothing but
//! the memory of what it was to be told; a frame that cannot be written in [`SEND_TIMEOUT`] ends the link.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::wire::{MAX_FRAME_BYTES, MAX_FRAME_DESCRIPTORS, ToControl, ToDataPlane};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Longest that the data plane's loader may leave a frame unread before the link counts as broken. Preparing the largest
/// snapshot takes about a second.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a frame's header: length and count of descriptors.
const HEADER_BYTES: usize = 8;

/// Bytes that are read at once into a body: its announced length is not believed before it comes.
const CHUNK_BYTES: usize = 256 * 1024;

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data plane closed it, most often by dying.
    #[error("the data plane closed its link to control")]
    Closed,
    /// The socket failed.
    #[error("the link to the data plane failed: {0}")]
    Io(#[from] io::Error),
    /// A frame larger than any message. Side: data plane.
    #[error("the data plane announced a message of {bytes} bytes and {descriptors} descriptors")]
    TooLarge {
        /// Announced length.
        bytes: usize,
        /// Announced descriptors.
        descriptors: usize,
    },
    /// The descriptors that came are not those announced. Side: data plane, or our own descriptor limit.
    #[error(
        "{found} of {announced} descriptors came from the data plane: is the descriptor limit (ulimit -n) reached?"
    )]
    Descriptors {
        /// How many the frame announced.
        announced: usize,
        /// How many came.
        found: usize,
    },
    /// Not a message of this version.
    #[error("a message of the data plane is not of our wire version: {0}")]
    Malformed(postcard::Error),
    /// It took too long to read what we wrote.
    #[error("the data plane has not read a message for {} s", SEND_TIMEOUT.as_secs())]
    Stuck,
}

/// What comes over a link.
#[derive(Debug)]
pub enum Event {
    /// A message with its descriptors.
    Message(ToControl, Vec<OwnedFd>),
    /// The link has ended; nothing follows.
    Ended(Error),
}

struct Frame {
    bytes: Vec<u8>,
    descriptors: Vec<Arc<OwnedFd>>,
}

/// A connection to a data plane. Dropping it closes the connection.
pub struct Link {
    frames: mpsc::UnboundedSender<Frame>,
    events: mpsc::UnboundedReceiver<Event>,
    tasks: [JoinHandle<()>; 2],
}

impl Link {
    /// Takes over a connected socket. Call it within the runtime.
    ///
    /// # Errors
    /// If the socket cannot be registered with the runtime.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let stream = Arc::new(UnixStream::from_std(stream)?);
        let (frames, to_write) = mpsc::unbounded_channel();
        let (to_read, events) = mpsc::unbounded_channel();
        let writer = tokio::spawn(write_all(stream.clone(), to_write, to_read.clone()));
        let reader = tokio::spawn(read_all(stream, to_read));
        Ok(Self { frames, events, tasks: [writer, reader] })
    }

    /// Queues a message with descriptors for sending.
    pub fn send(&self, message: &ToDataPlane, descriptors: Vec<Arc<OwnedFd>>) {
        debug_assert!(descriptors.len() <= MAX_FRAME_DESCRIPTORS, "the caller splits what is too much for one frame");
        let bytes = postcard::to_stdvec(message).expect("messages have no type that cannot be encoded");
        // A link that has ended says so by its last event.
        let _ = self.frames.send(Frame { bytes, descriptors });
    }

    /// The next event. May be dropped at any time without loss.
    pub async fn receive(&mut self) -> Event {
        self.events.recv().await.unwrap_or(Event::Ended(Error::Closed))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn write_all(
    stream: Arc<UnixStream>,
    mut frames: mpsc::UnboundedReceiver<Frame>,
    events: mpsc::UnboundedSender<Event>,
) {
    while let Some(frame) = frames.recv().await {
        let written = match tokio::time::timeout(SEND_TIMEOUT, write_frame(&stream, frame)).await {
            Ok(written) => written,
            Err(_) => Err(Error::Stuck),
        };
        if let Err(error) = written {
            let _ = events.send(Event::Ended(error));
            return;
        }
    }
}

async fn write_frame(stream: &UnixStream, frame: Frame) -> Result<(), Error> {
    let mut header = [0; HEADER_BYTES];
    let too_large = || Error::TooLarge { bytes: frame.bytes.len(), descriptors: frame.descriptors.len() };
    header[..4].copy_from_slice(&u32::try_from(frame.bytes.len()).map_err(|_| too_large())?.to_le_bytes());
    header[4..].copy_from_slice(&u32::try_from(frame.descriptors.len()).map_err(|_| too_large())?.to_le_bytes());
    let descriptors: Vec<BorrowedFd<'_>> = frame.descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    let mut sent = 0;
    while sent < HEADER_BYTES + frame.bytes.len() {
        let parts = [
            IoSlice::new(&header[sent.min(HEADER_BYTES)..]),
            IoSlice::new(&frame.bytes[sent.saturating_sub(HEADER_BYTES)..]),
        ];
        let descriptors = if sent == 0 { &descriptors[..] } else { &[] };
        stream.writable().await?;
        match stream.try_io(Interest::WRITABLE, || send_some(stream, &parts, descriptors)) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Err(Error::Closed),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn send_some(stream: &UnixStream, parts: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        debug_assert!(fits, "the space is for the most descriptors of a frame");
    }
    Ok(sendmsg(stream, parts, &mut ancillary, SendFlags::NOSIGNAL | SendFlags::DONTWAIT)?)
}

async fn read_all(stream: Arc<UnixStream>, events: mpsc::UnboundedSender<Event>) {
    loop {
        let event = match read_frame(&stream).await {
            Ok((message, descriptors)) => Event::Message(message, descriptors),
            Err(error) => Event::Ended(error),
        };
        let ended = matches!(event, Event::Ended(_));
        if events.send(event).is_err() || ended {
            return;
        }
    }
}

async fn read_frame(stream: &UnixStream) -> Result<(ToControl, Vec<OwnedFd>), Error> {
    let mut descriptors = Vec::new();
    let header = read_exactly(stream, HEADER_BYTES, &mut descriptors).await?;
    let number = |range: std::ops::Range<usize>| {
        u32::from_le_bytes(header[range].try_into().expect("four bytes of eight")) as usize
    };
    let (length, announced) = (number(0..4), number(4..8));
    if length > MAX_FRAME_BYTES || announced > MAX_FRAME_DESCRIPTORS {
        return Err(Error::TooLarge { bytes: length, descriptors: announced });
    }
    let bytes = read_exactly(stream, length, &mut descriptors).await?;
    if descriptors.len() != announced {
        return Err(Error::Descriptors { announced, found: descriptors.len() });
    }
    Ok((postcard::from_bytes(&bytes).map_err(Error::Malformed)?, descriptors))
}

async fn read_exactly(stream: &UnixStream, length: usize, descriptors: &mut Vec<OwnedFd>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut filled = 0;
    while filled < length {
        bytes.resize(length.min(filled + CHUNK_BYTES), 0);
        stream.readable().await?;
        match stream.try_io(Interest::READABLE, || receive_some(stream, &mut bytes[filled..], descriptors)) {
            Ok(0) => return Err(Error::Closed),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Err(Error::Closed),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(bytes)
}

fn receive_some(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FRAME_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(stream, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream as StdStream;
    use std::thread;

    use ringmesh_dataplane::link::Link as Blocking;
    use ringmesh_model::delta::Delta;
    use ringmesh_model::snapshot::Key;
    use tokio::time::timeout;

    use super::*;

    /// Five times what any of this takes, and more.
    const DEADLINE: Duration = Duration::from_secs(10);

    fn pair() -> (Link, StdStream) {
        let (ours, theirs) = StdStream::pair().expect("a socket pair");
        (Link::new(ours).expect("within the runtime"), theirs)
    }

    async fn next(link: &mut Link) -> Event {
        timeout(DEADLINE, link.receive()).await.expect("an event in time")
    }

    #[tokio::test]
    async fn messages_and_descriptors_go_both_ways_also_larger_than_the_socket_takes_at_once() {
        let (mut link, theirs) = pair();
        let dataplane = thread::spawn(move || {
            let link = Blocking::new(theirs).expect("a link");
            let (message, descriptors) = link.receive::<ToDataPlane>().expect("a message");
            let ToDataPlane::Delta(delta) = message else { panic!("a delta was sent") };
            let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
            link.send(&ToControl::Live { version: delta.version }, &borrowed).expect("control reads");
            delta.remove.len()
        });
        let remove = (0..100_000).map(|number| Key::Service(format!("service-{number}"))).collect();
        let sent: Vec<Arc<OwnedFd>> = ["/dev/null", "/dev/zero"]
            .map(|path| Arc::new(std::fs::File::open(path).expect("it exists").into()))
            .to_vec();
        link.send(&ToDataPlane::Delta(Delta { version: 7, put: Vec::new(), remove }), sent);
        let Event::Message(ToControl::Live { version: 7 }, descriptors) = next(&mut link).await else {
            panic!("it is live")
        };
        let [null, zero] = descriptors.try_into().expect("both came back");
        assert_eq!(std::fs::File::from(null).read(&mut [0]).expect("read"), 0);
        assert_eq!(std::fs::File::from(zero).read(&mut [0]).expect("read"), 1);
        let removed = tokio::task::spawn_blocking(|| dataplane.join().expect("no panic")).await.expect("no panic");
        assert_eq!(removed, 100_000);
    }

    #[tokio::test]
    async fn an_end_inside_a_frame_is_an_end() {
        let (mut link, mut theirs) = pair();
        theirs.write_all(&[100, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3]).expect("written");
        drop(theirs);
        assert!(matches!(next(&mut link).await, Event::Ended(Error::Closed)));
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_link() {
        let check = async |bytes: &[u8], expected: fn(&Error) -> bool| {
            let (mut link, mut theirs) = pair();
            theirs.write_all(bytes).expect("written");
            let Event::Ended(error) = next(&mut link).await else { panic!("{bytes:?} is no message") };
            assert!(expected(&error), "{bytes:?}: {error}");
        };
        check(&[1, 0, 0, 0, 0, 0, 0, 0, 0xff], |error| matches!(error, Error::Malformed(_))).await;
        check(&[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0], |error| matches!(error, Error::TooLarge { .. })).await;
        check(&[1, 0, 0, 0, 0xff, 0xff, 0, 0], |error| matches!(error, Error::TooLarge { .. })).await;
        check(&[1, 0, 0, 0, 2, 0, 0, 0, 5], |error| matches!(error, Error::Descriptors { announced: 2, found: 0 }))
            .await;
    }

    #[tokio::test]
    async fn one_that_does_not_read_holds_up_nobody() {
        let (link, _theirs) = pair();
        let remove = vec![Key::Service("a long name of a service".into()); 100_000];
        let begin = std::time::Instant::now();
        for version in 0..4 {
            link.send(&ToDataPlane::Delta(Delta { version, put: Vec::new(), remove: remove.clone() }), Vec::new());
            tokio::task::yield_now().await;
        }
        assert!(begin.elapsed() < DEADLINE);
    }
}
