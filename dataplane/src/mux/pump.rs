//! Moves a trunk's bytes: one task that receives, takes the frames, and sends what all channels have written since, in one go.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use ringmesh_codec::mux::Frames;
use ringmesh_ring::buffer::{BUFFER_BYTES, Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Halted, Stream};

use super::care::{Care, End, FAREWELL, Patience};
use super::channel::Channel;
use super::trunk::{Broken, Trunk};

/// How a trunk has ended.
#[derive(Debug)]
pub(super) enum Over {
    /// In order: nothing was open.
    Done,
    /// The other side has closed it, or it broke.
    Lost,
    /// The other side was silent for too long.
    Dead,
    /// The other side broke the rules.
    Broken(Broken),
    /// Our own stop.
    Stopped,
}

/// Runs a trunk to its end. `stop` ends it at once; `leave`, gently: it takes no further channels and ends with the last one.
/// `opened` is given each channel that the other side opens.
pub(super) async fn run<N: Net, S: Stream>(
    net: &N,
    trunk: &Rc<Trunk>,
    stream: &S,
    patience: Patience,
    stop: &Stop,
    leave: &Stop,
    opened: impl FnMut(Channel),
) -> Over {
    // However this ends, be it by a panic, nobody waits on for what does not come.
    let _end = OnEnd(trunk);
    let (heard, rest) = (Cell::new(false), net.stop());
    let mut receiver = pin!(receive(net, trunk, stream, &heard, &rest, opened));
    let mut sender = pin!(send(trunk, stream, stop));
    let mut care = Care::new(net, trunk, patience, &heard, &rest);
    let (mut leaving, mut over, mut has_closed) = (false, None, false);
    poll_fn(|context| {
        trunk.runs(context);
        if let Poll::Ready(reason) = stop.poll_stopped(context) {
            broke(trunk, reason.into());
            return Poll::Ready(over.take_if(|_| has_closed).unwrap_or(Over::Stopped));
        }
        if !leaving && leave.poll_stopped(context).is_ready() {
            leaving = true;
            trunk.leave();
        }
        if let Poll::Ready(ended) = receiver.as_mut().poll(context) {
            return Poll::Ready(over.take().unwrap_or(ended));
        }
        if over.is_none()
            && let Poll::Ready(end) = care.poll(context)
        {
            match end {
                End::Done => {
                    over = Some(Over::Done);
                    // What was written last may wait for a peer that takes nothing.
                    stop.set_deadline(Some(net.now() + patience.unused.max(FAREWELL)));
                }
                End::Dead => return Poll::Ready(Over::Dead),
                End::Ungreeted => return Poll::Ready(Over::Broken(Broken::Order("no greeting in time"))),
            }
        }
        if !has_closed && let Poll::Ready(error) = sender.as_mut().poll(context) {
            broke(trunk, error);
            return Poll::Ready(Over::Lost);
        }
        trunk.rests();
        if over.is_some() && !has_closed && trunk.is_sent() {
            // What the other side still says, such as credit for what was sent last, would be answered by a reset if the connection
            // were gone, and a reset overtakes what was sent last.
            has_closed = true;
            stop.set_deadline(Some(net.now() + FAREWELL));
            if stream.shutdown_write().is_err() {
                return Poll::Ready(over.take().unwrap_or(Over::Lost));
            }
        }
        Poll::Pending
    })
    .await
}

/// Has the channels know what became of the connection: that it was ours to end, too, unless its peer was given up.
fn broke(trunk: &Trunk, error: Error) {
    match error {
        Error::Io(error) => trunk.broke(error),
        Error::Stopped(reason @ StopReason::Drain) => trunk.broke(Halted(reason).into()),
        Error::Stopped(StopReason::Deadline | StopReason::Abort) => {}
    }
}

struct OnEnd<'a>(&'a Trunk);

impl Drop for OnEnd<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// Receives and takes frames until nothing more comes, or what comes is wrong.
async fn receive<N: Net, S: Stream>(
    net: &N,
    trunk: &Rc<Trunk>,
    stream: &S,
    heard: &Cell<bool>,
    rest: &Stop,
    mut opened: impl FnMut(Channel),
) -> Over {
    let (mut frames, mut buffer) = (Frames::default(), Buffer::hollow());
    let mut size = Size::Small;
    loop {
        if buffer.is_empty() && rest.reason().is_some() {
            // Nobody expects anything: it is waited for without a buffer.
            buffer = Buffer::hollow();
            if stream.readable().await.is_err() {
                return Over::Lost;
            }
            rest.clear();
        }
        if buffer.capacity() == 0 {
            buffer = Buffer::take(size);
        } else if buffer.spare() == 0 {
            buffer.compact();
        }
        let room = buffer.spare();
        match stream.fill(&mut buffer, rest).await {
            Ok(0) => return Over::Lost,
            Err(Error::Io(error)) => {
                trunk.broke(error);
                return Over::Lost;
            }
            Ok(received) => {
                heard.set(true);
                size = match received {
                    _ if received == room => size.next(),
                    ..=BUFFER_BYTES => Size::Small,
                    _ => size,
                };
            }
            Err(Error::Stopped(_)) if buffer.is_empty() => continue,
            Err(Error::Stopped(_)) => {
                rest.clear();
                continue;
            }
        }
        if let Err(broken) = trunk.receive(&mut frames, &mut buffer, || net.now(), &mut opened) {
            return Over::Broken(broken);
        }
        // Of one that channels have left bytes in, there is only the rest to be had.
        if buffer.is_empty() && (size > Size::Small || buffer.spare() < buffer.capacity()) {
            buffer = Buffer::hollow();
        }
    }
}

/// Sends whenever something was written, until that fails.
async fn send<S: Stream>(trunk: &Trunk, stream: &S, stop: &Stop) -> Error {
    let mut output = Output::new();
    loop {
        poll_fn(|_| if trunk.output.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) }).await;
        std::mem::swap(&mut output, &mut *trunk.output.borrow_mut());
        trunk.sending.set(true);
        if let Err(error) = stream.flush(&mut output, stop).await {
            return error;
        }
        trunk.sending.set(false);
        trunk.has_room();
    }
}
