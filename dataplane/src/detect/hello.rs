//! The ClientHello of TLS that is passed on unopened.

use ringmesh_codec::ClientHello;
use ringmesh_codec::client_hello::{Alert, MAX_WIRE_BYTES, Scanner};
use ringmesh_ring::buffer::{Buffer, LARGE_BUFFER_BYTES, Size};
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Stream};

use crate::outcome::Reason;
use crate::proxy::relay::{Raced, race};

// All of it is kept in one buffer, until there is an endpoint to send it to.
const _: () = assert!(MAX_WIRE_BYTES <= LARGE_BUFFER_BYTES);

/// Why there is no ClientHello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// How the connection ends.
    pub reason: Reason,
    /// What the client is told.
    pub alert: Option<Alert>,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Self { reason, alert: None }
    }
}

/// Reads a ClientHello; `buffer` has what of it has come already, and in the end all that has. Waits for the first byte
/// without a buffer. The deadline is the stop's.
///
/// # Errors
/// If it is none that we take, does not come in time, or the client goes away.
pub async fn read_hello<S: Stream>(stream: &S, stop: &Stop, buffer: &mut Buffer) -> Result<ClientHello, Refused> {
    if buffer.is_empty() {
        match race(stream.readable(), stop.stopped()).await {
            Raced::First(Ok(())) => *buffer = Buffer::take(Size::Small),
            Raced::First(Err(_)) => return Err(Reason::ClientAborted.into()),
            Raced::Second(reason) => return Err(late(reason).into()),
        }
    }
    let mut scanner = Scanner::default();
    loop {
        match scanner.scan(buffer.filled()) {
            Ok(Some(hello)) => return Ok(hello),
            Ok(None) => {}
            Err(refusal) => {
                let reason = Reason::of_hello(refusal, buffer.filled());
                return Err(Refused { reason, alert: refusal.alert() });
            }
        }
        if buffer.spare() == 0 {
            buffer.grow();
        }
        match stream.fill(buffer, stop).await {
            Ok(1..) => {}
            Ok(0) | Err(Error::Io(_)) => return Err(Reason::ClientAborted.into()),
            Err(Error::Stopped(reason)) => return Err(late(reason).into()),
        }
    }
}

fn late(reason: StopReason) -> Reason {
    match reason {
        StopReason::Deadline => Reason::ClientTimeout,
        StopReason::Drain | StopReason::Abort => Reason::of_stop(reason),
    }
}
