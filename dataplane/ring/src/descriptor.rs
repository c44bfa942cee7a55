//! Frames of bytes with open descriptors attached, over a Unix stream socket.
//!
//! A frame is its length (four bytes, little-endian), then that many bytes; its descriptors travel with its first
//! byte. [`send_part`] and [`receive_part`] are the steps, for those who wait in their own way; [`send`] and
//! [`receive`] do it on a blocking socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};

/// Descriptors that one frame may carry: the kernel's own limit (SCM_MAX_FD).
pub const MAX_DESCRIPTORS: usize = 253;

/// Bytes of the length in front of a frame.
pub const FRAME_HEADER_BYTES: usize = 4;

const CONTROL_BYTES: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));

/// Why a frame did not pass.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The other end closed the socket between two frames.
    #[error("the other end has closed")]
    Closed,
    /// A frame is larger than its reader or writer allows. Side: the writer.
    #[error("a frame of {bytes} bytes is larger than the {max_bytes} allowed")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// What is allowed.
        max_bytes: usize,
    },
    /// More descriptors than [`MAX_DESCRIPTORS`], or than the reader has room for.
    #[error("a frame carries more descriptors than can be received")]
    TooManyDescriptors,
    /// Anything else, among it the end of the stream inside a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Sends a frame.
///
/// # Errors
/// By cause; the stream is useless after any but [`Error::TooManyDescriptors`] and [`Error::TooLarge`].
pub fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
    let length = u32::try_from(bytes.len())
        .map_err(|_| Error::TooLarge { bytes: bytes.len(), max_bytes: u32::MAX as usize })?
        .to_le_bytes();
    let (mut header, mut body, mut attached) = (&length[..], bytes, descriptors);
    while !header.is_empty() || !body.is_empty() {
        let sent = send_part(stream, &[IoSlice::new(header), IoSlice::new(body)], attached)?;
        attached = &[];
        let of_header = sent.min(header.len());
        header = &header[of_header..];
        body = &body[sent - of_header..];
    }
    Ok(())
}

/// Receives a frame of at most `max_bytes`.
///
/// # Errors
/// By cause; the stream is useless after any.
pub fn receive(stream: &UnixStream, max_bytes: usize) -> Result<(Vec<u8>, Vec<OwnedFd>), Error> {
    let mut descriptors = Vec::new();
    let mut header = [0; FRAME_HEADER_BYTES];
    match receive_all(stream, &mut header, &mut descriptors)? {
        FRAME_HEADER_BYTES => {}
        0 => return Err(Error::Closed),
        _ => return Err(Error::Io(io::ErrorKind::UnexpectedEof.into())),
    }
    let bytes = u32::from_le_bytes(header) as usize;
    if bytes > max_bytes {
        return Err(Error::TooLarge { bytes, max_bytes });
    }
    let mut frame = vec![0; bytes];
    if receive_all(stream, &mut frame, &mut descriptors)? < bytes {
        return Err(Error::Io(io::ErrorKind::UnexpectedEof.into()));
    }
    Ok((frame, descriptors))
}

fn receive_all(stream: &UnixStream, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Error> {
    let mut received = 0;
    while received < bytes.len() {
        match receive_part(stream, &mut bytes[received..], descriptors)? {
            0 => break,
            more => received += more,
        }
    }
    Ok(received)
}

/// One `sendmsg(2)`: sends what the socket takes now, with the descriptors attached to the first byte. Returns how many
/// bytes were taken; when any were, so were all descriptors.
///
/// # Errors
/// What the kernel says; [`io::ErrorKind::WouldBlock`] inside on a non-blocking socket.
pub fn send_part(stream: impl AsFd, parts: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> Result<usize, Error> {
    if descriptors.len() > MAX_DESCRIPTORS {
        return Err(Error::TooManyDescriptors);
    }
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    loop {
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(Error::TooManyDescriptors);
        }
        match sendmsg(&stream, parts, &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            result => return Ok(result.map_err(io::Error::from)?),
        }
    }
}

/// One `recvmsg(2)`: receives into `bytes`, and adds the descriptors that came (close-on-exec) to `descriptors`. 0 is
/// the end.
///
/// # Errors
/// What the kernel says; [`Error::TooManyDescriptors`] when some were lost because this process may have no more.
pub fn receive_part(stream: impl AsFd, bytes: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<usize, Error> {
    let mut space = [MaybeUninit::uninit(); CONTROL_BYTES];
    loop {
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(&stream, &mut [IoSliceMut::new(bytes)], &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            Err(rustix::io::Errno::INTR) => continue,
            result => result.map_err(io::Error::from)?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                descriptors.extend(rights);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(Error::TooManyDescriptors);
        }
        return Ok(received.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn frame_arrives_with_its_descriptors() {
        let (near, far) = UnixStream::pair().unwrap();
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        send(&near, b"hello", &[theirs.as_fd()]).unwrap();
        send(&near, b"", &[]).unwrap();
        drop(theirs);

        let (bytes, mut descriptors) = receive(&far, 100).unwrap();
        assert_eq!(bytes, b"hello");
        let mut passed = UnixStream::from(descriptors.pop().unwrap());
        assert!(descriptors.is_empty());
        let flags = rustix::io::fcntl_getfd(&passed).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        passed.write_all(b"x").unwrap();
        let mut byte = [0];
        ours.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");

        assert_eq!(receive(&far, 100).unwrap().0, b"");
        drop(near);
        assert!(matches!(receive(&far, 100), Err(Error::Closed)));
    }

    #[test]
    fn large_frames_with_many_descriptors_arrive_whole() {
        let (near, far) = UnixStream::pair().unwrap();
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let expected = sent.clone();
        let sender = std::thread::spawn(move || {
            let descriptors = vec![near.as_fd(); MAX_DESCRIPTORS];
            send(&near, &sent, &descriptors).unwrap();
            assert!(matches!(
                send(&near, b"", &vec![near.as_fd(); MAX_DESCRIPTORS + 1]),
                Err(Error::TooManyDescriptors)
            ));
        });
        let (bytes, descriptors) = receive(&far, 4_000_000).unwrap();
        sender.join().unwrap();
        assert_eq!(descriptors.len(), MAX_DESCRIPTORS);
        assert!(bytes == expected);
    }

    #[test]
    fn frame_that_is_too_large_or_cut_is_refused() {
        let (near, far) = UnixStream::pair().unwrap();
        send(&near, &[0; 101], &[]).unwrap();
        assert!(matches!(receive(&far, 100), Err(Error::TooLarge { bytes: 101, max_bytes: 100 })));

        let (mut near, far) = UnixStream::pair().unwrap();
        near.write_all(&[5, 0, 0, 0, 1]).unwrap();
        drop(near);
        assert!(matches!(receive(&far, 100), Err(Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof));
    }
}
