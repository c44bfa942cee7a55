//! What a client speaks, where the listener leaves it open.

use ringmesh_codec::sniff::{MAX_LINE_BYTES, Protocol, Sniffer};
use ringmesh_ring::buffer::{BUFFER_BYTES, Buffer, Size};
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Stream};

use crate::outcome::Reason;
use crate::proxy::relay::{Raced, race};

// So the buffer has always room for the byte that decides.
const _: () = assert!(MAX_LINE_BYTES < BUFFER_BYTES);

/// What a client was found to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spoken {
    /// Requests, of either version of HTTP.
    Http,
    /// TLS, which is not ours to end.
    Tls,
    /// Something else.
    Opaque,
    /// Nothing, or too little to tell, until the deadline.
    Unclear,
}

/// Reads until it is clear what is spoken; all that has come is in `buffer` then. Waits for the first byte without a buffer.
/// The deadline is the stop's, which can be used again afterwards.
///
/// # Errors
/// If the client goes away without a word, or the worker ends.
pub async fn detect<S: Stream>(stream: &S, stop: &Stop, buffer: &mut Buffer) -> Result<Spoken, Reason> {
    match race(stream.readable(), stop.stopped()).await {
        Raced::First(Ok(())) => {}
        Raced::First(Err(_)) => return Err(Reason::ClientAborted),
        Raced::Second(reason) => return late(reason, stop),
    }
    *buffer = Buffer::take(Size::Small);
    let mut sniffer = Sniffer::default();
    loop {
        match stream.fill(buffer, stop).await {
            Ok(1..) => {}
            // Too little to be anything that we know.
            Ok(0) if !buffer.is_empty() => return Ok(Spoken::Opaque),
            Ok(0) | Err(Error::Io(_)) => return Err(Reason::ClientAborted),
            Err(Error::Stopped(reason)) => return late(reason, stop),
        }
        match sniffer.sniff(buffer.filled()) {
            Some(Protocol::Http1 | Protocol::Http2) => return Ok(Spoken::Http),
            Some(Protocol::Tls) => return Ok(Spoken::Tls),
            Some(Protocol::Opaque) => return Ok(Spoken::Opaque),
            None => {}
        }
    }
}

fn late(reason: StopReason, stop: &Stop) -> Result<Spoken, Reason> {
    match reason {
        StopReason::Deadline => {
            stop.clear();
            Ok(Spoken::Unclear)
        }
        StopReason::Drain | StopReason::Abort => Err(Reason::of_stop(reason)),
    }
}
