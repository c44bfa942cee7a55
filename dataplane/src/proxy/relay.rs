//! Two things at once: waiting for the first of two, and moving opaque bytes both ways.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Stream};

use crate::outcome::Reason;
use crate::proxy::transport::Transport;
use crate::worker::Worker;

/// Reads that filled their buffer before splicing begins: a bulk transfer is recognised by them.
const SPLICE_AFTER: u32 = 3;

/// Most bytes of one splice, so that other connections have their turn.
const SPLICE_BYTES: usize = 1024 * 1024;

/// Splices smaller than this are small; after so many in a row copying begins again.
const SMALL_BYTES: usize = 16 * 1024;
const COPY_AFTER: u32 = 8;

/// Steps that a connection takes in a row before others have their turn.
const STEPS: u32 = 16;

/// Counts what a connection does without a pause. On epoll an operation that can go on at once does so without returning
/// to the loop, so that a peer that always has something ready would keep the whole core to itself.
#[derive(Default)]
pub struct Turn(Cell<u32>);

impl Turn {
    /// Takes a step; after enough of them others go first.
    pub async fn step(&self) {
        let steps = self.0.get() + 1;
        self.0.set(steps % STEPS);
        if steps == STEPS {
            ringmesh_ring::yield_now().await;
        }
    }
}

/// Which of two was first.
pub enum Raced<A, B> {
    /// The first one.
    First(A),
    /// The second one.
    Second(B),
}

/// Waits for the first of two futures; the other is dropped. Only for waits that may be dropped: readiness and stops,
/// never an operation in flight.
pub async fn race<A: Future, B: Future>(first: A, second: B) -> Raced<A::Output, B::Output> {
    let mut first = pin!(first);
    let mut second = pin!(second);
    std::future::poll_fn(|context| {
        if let Poll::Ready(value) = first.as_mut().poll(context) {
            return Poll::Ready(Raced::First(value));
        }
        second.as_mut().poll(context).map(Raced::Second)
    })
    .await
}

/// Both sides of an opaque connection.
pub struct Sides<'a, S: Stream> {
    /// Who called.
    pub client: &'a Transport<S>,
    /// Who is called.
    pub upstream: &'a Transport<S>,
    /// Stops both directions.
    pub stop: &'a Stop,
    /// Longest silence in both directions together.
    pub idle: Duration,
    /// Bytes from the client.
    pub received: &'a Cell<u64>,
    /// Bytes to the client.
    pub sent: &'a Cell<u64>,
}

/// Moves bytes both ways until both sides have ended, one has failed, or nothing has moved for too long. The end of one
/// side is passed on while the other direction goes on.
pub async fn relay<N: Net>(worker: &Worker<N>, sides: &Sides<'_, N::Stream>) -> Result<(), Reason> {
    sides.stop.set_deadline(Some(worker.net.now() + sides.idle));
    let forth = one_way(worker, sides, sides.client, sides.upstream, sides.received);
    let back = one_way(worker, sides, sides.upstream, sides.client, sides.sent);
    let mut forth = pin!(forth);
    let mut back = pin!(back);
    let (mut forth_ended, mut back_ended) = (None, None);
    poll_fn(|context| {
        for _round in 0..2 {
            if forth_ended.is_none()
                && let Poll::Ready(result) = forth.as_mut().poll(context)
            {
                forth_ended = Some(result);
            }
            if back_ended.is_none()
                && let Poll::Ready(result) = back.as_mut().poll(context)
            {
                back_ended = Some(result);
            }
            if !matches!((&forth_ended, &back_ended), (Some(Err(_)), None) | (None, Some(Err(_)))) {
                break;
            }
            // One direction has failed. What the other has in flight is stopped and awaited.
            sides.stop.trigger(StopReason::Abort);
        }
        if forth_ended.is_some() && back_ended.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let (client, upstream) = (Reason::ClientAborted, Reason::UpstreamReset);
    let failed = |end: Option<Result<(), Failed>>, from: Reason, to: Reason| match end?.err()? {
        Failed::From(Error::Io(_)) => Some(from),
        Failed::To(Error::Io(_)) => Some(to),
        Failed::From(Error::Stopped(reason)) | Failed::To(Error::Stopped(reason)) => match reason {
            StopReason::Deadline => Some(Reason::IdleTimeout),
            StopReason::Drain => Some(Reason::Drained),
            StopReason::Abort => None,
        },
    };
    let reason = failed(forth_ended, client, upstream).or_else(|| failed(back_ended, upstream, client));
    match reason {
        None => Ok(()),
        Some(reason) => {
            // The other side learns that this was no orderly end.
            sides.upstream.reset_on_close();
            Err(reason)
        }
    }
}

/// Which end of a direction failed.
enum Failed {
    From(Error),
    To(Error),
}

/// Moves bytes one way until their source ends. Waits without a buffer, so that a silent connection holds none.
async fn one_way<N: Net>(
    worker: &Worker<N>,
    sides: &Sides<'_, N::Stream>,
    from: &Transport<N::Stream>,
    to: &Transport<N::Stream>,
    moved: &Cell<u64>,
) -> Result<(), Failed> {
    let both_plain = from.plain().is_some() && to.plain().is_some();
    let mut output = Output::new();
    let mut full_reads = 0;
    let turn = Turn::default();
    let end = || to.shutdown_write().map_err(|error| Failed::To(error.into()));
    loop {
        // Without descriptors left the bytes are copied.
        if full_reads >= SPLICE_AFTER
            && both_plain
            && let Ok(pipe) = worker.take_pipe()
        {
            if splice(worker, sides, pipe, from, to, moved, &turn).await? == Spliced::End {
                return end();
            }
            full_reads = 0;
        }
        turn.step().await;
        match race(from.readable(), sides.stop.stopped()).await {
            Raced::First(result) => result.map_err(|error| Failed::From(error.into()))?,
            Raced::Second(reason) => return Err(Failed::From(reason.into())),
        }
        let mut buffer = Buffer::take(if full_reads > 0 { Size::Large } else { Size::Small });
        let room = buffer.spare();
        match from.try_fill(&mut buffer).map_err(|error| Failed::From(error.into()))? {
            None => continue,
            Some(0) => return end(),
            Some(count) => {
                full_reads = if count == room { full_reads + 1 } else { 0 };
                moved.set(moved.get() + count as u64);
                sides.stop.set_deadline(Some(worker.net.now() + sides.idle));
                output.push(buffer.slice(0..count));
                drop(buffer);
                to.flush(&mut output, sides.stop).await.map_err(Failed::To)?;
            }
        }
    }
}

/// How splicing stopped.
#[derive(PartialEq, Eq)]
enum Spliced {
    /// The source has ended.
    End,
    /// Little comes at a time, so that copying is cheaper.
    Trickle,
}

/// Moves bytes inside the kernel for as long as they come in large pieces.
async fn splice<N: Net>(
    worker: &Worker<N>,
    sides: &Sides<'_, N::Stream>,
    mut pipe: Pipe,
    from: &Transport<N::Stream>,
    to: &Transport<N::Stream>,
    moved: &Cell<u64>,
    turn: &Turn,
) -> Result<Spliced, Failed> {
    // A call that failed does not say at which end; but only writing finds the other side deaf.
    let failed = |error: Error| match &error {
        Error::Io(cause) if cause.kind() == std::io::ErrorKind::BrokenPipe => Failed::To(error),
        _ => Failed::From(error),
    };
    let mut small = 0;
    while small < COPY_AFTER {
        turn.step().await;
        let count = from.splice_to(to, &mut pipe, SPLICE_BYTES, sides.stop).await.map_err(failed)?;
        if count == 0 {
            worker.return_pipe(pipe);
            return Ok(Spliced::End);
        }
        small = if count < SMALL_BYTES { small + 1 } else { 0 };
        moved.set(moved.get() + count as u64);
        sides.stop.set_deadline(Some(worker.net.now() + sides.idle));
    }
    worker.return_pipe(pipe);
    Ok(Spliced::Trickle)
}
