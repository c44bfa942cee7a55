//! Two things at once: waiting for the first of two, and moving opaque bytes both ways.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;

use ringmesh_ring::buffer::Size;
use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Stream};

use crate::outcome::Reason;
use crate::proxy::deadline::{Deadlines, Part};
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
    /// Takes a step; whether it was the last of its turn, and others have to go first now.
    #[inline]
    pub fn takes_last_step(&self) -> bool {
        let steps = self.0.get() + 1;
        self.0.set(steps % STEPS);
        steps == STEPS
    }

    /// Takes a step; after enough of them others go first. Where every request passes, [`Self::takes_last_step`] is asked
    /// instead, which makes no future.
    pub async fn step(&self) {
        if self.takes_last_step() {
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

/// How two directions have ended that run at once.
pub struct Ends<E> {
    /// How the one from the client failed, if it did.
    pub forth: Option<E>,
    /// How the one to the client failed, if it did.
    pub back: Option<E>,
    /// Which of them was first.
    pub first: Part,
}

/// Runs two directions to their ends. When one fails, what the other has in flight is stopped and awaited.
pub async fn both<E>(
    stop: &Stop,
    mut forth: Pin<&mut impl Future<Output = Result<(), E>>>,
    mut back: Pin<&mut impl Future<Output = Result<(), E>>>,
) -> Ends<E> {
    let (mut forth_ended, mut back_ended) = (None, None);
    let mut first = Part::Forth;
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
                if forth_ended.is_none() {
                    first = Part::Back;
                }
            }
            if !matches!((&forth_ended, &back_ended), (Some(Err(_)), None) | (None, Some(Err(_)))) {
                break;
            }
            stop.trigger(StopReason::Abort);
        }
        if forth_ended.is_some() && back_ended.is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    let failed = |ended: Option<Result<(), E>>| ended?.err();
    Ends { forth: failed(forth_ended), back: failed(back_ended), first }
}

/// Both sides of an opaque connection.
pub struct Sides<'a, S: Stream> {
    /// Who called.
    pub client: &'a Transport<S>,
    /// Who is called.
    pub upstream: &'a Transport<S>,
    /// Stops both directions. Their silence is that of both together.
    pub deadlines: &'a Deadlines<'a>,
    /// When it ends, however busy.
    pub end: Instant,
    /// Bytes from the client.
    pub received: &'a Cell<u64>,
    /// Bytes to the client.
    pub sent: &'a Cell<u64>,
}

impl<S: Stream> Sides<'_, S> {
    /// From now on both are silent.
    fn have_moved(&self, now: Instant) {
        let silent = now + self.deadlines.idle();
        match self.end < silent {
            true => self.deadlines.set(Part::Whole, self.end, Reason::MaxDuration),
            false => self.deadlines.set(Part::Whole, silent, Reason::IdleTimeout),
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// What it is counted as.
    pub reason: Reason,
    /// Who ended it.
    pub by: By,
    /// How.
    pub how: How,
}

/// Who ended a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// Who called.
    Client,
    /// Who was called.
    Endpoint,
    /// We.
    Proxy,
}

/// How a connection was ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// In order: both sides have ended, this one first.
    End,
    /// By a reset.
    Reset,
    /// Nothing is heard of that side any more.
    Vanished,
    /// Some other way, such as TLS that was cut short.
    Broken,
    /// A limit of ours was reached.
    Limit,
    /// We are shutting down, or what the peer has proved holds no more.
    Drain,
    /// It was not served at all.
    Refused,
}

impl By {
    /// The access log's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Endpoint => "endpoint",
            Self::Proxy => "proxy",
        }
    }
}

impl How {
    /// The access log's word.
    pub const fn word(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Reset => "reset",
            Self::Vanished => "vanished",
            Self::Broken => "broken",
            Self::Limit => "limit",
            Self::Drain => "drain",
            Self::Refused => "refused",
        }
    }

    fn of(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected};
        match error.kind() {
            ConnectionReset | BrokenPipe | ConnectionAborted | NotConnected => Self::Reset,
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::Vanished
            }
            _ => Self::Broken,
        }
    }
}

/// Moves bytes both ways until both sides have ended, one has failed, or nothing has moved for too long. The end of one
/// side is passed on while the other direction goes on.
pub async fn relay<N: Net>(worker: &Worker<N>, sides: &Sides<'_, N::Stream>) -> Ended {
    sides.have_moved(worker.net.now());
    let (forth_over, back_over) = (Cell::new(false), Cell::new(false));
    let forth = Direction {
        from: sides.client,
        to: sides.upstream,
        moved: sides.received,
        part: Part::Forth,
        late: Reason::UpstreamReadsSlowly,
        over: &forth_over,
        other_over: &back_over,
    };
    let back = Direction {
        from: sides.upstream,
        to: sides.client,
        moved: sides.sent,
        part: Part::Back,
        late: Reason::ClientReadsSlowly,
        over: &back_over,
        other_over: &forth_over,
    };
    let forth = pin!(one_way(worker, sides, &forth));
    let back = pin!(one_way(worker, sides, &back));
    let ends = both(sides.deadlines.stop(), forth, back).await;
    let first = if ends.first == Part::Forth { By::Client } else { By::Endpoint };
    let (client, upstream) = ((Reason::ClientAborted, By::Client), (Reason::UpstreamReset, By::Endpoint));
    let broken = |(reason, by), error: &io::Error| Some(Ended { reason, by, how: How::of(error) });
    let failed = |end: Option<Failed>, from, to| match end? {
        Failed::From(Error::Io(error)) => broken(from, &error),
        Failed::To(Error::Io(error)) => broken(to, &error),
        Failed::From(Error::Stopped(reason)) | Failed::To(Error::Stopped(reason)) => match reason {
            StopReason::Deadline => {
                Some(Ended { reason: sides.deadlines.reason(reason), by: By::Proxy, how: How::Limit })
            }
            StopReason::Drain => Some(Ended { reason: Reason::Drained, by: By::Proxy, how: How::Drain }),
            StopReason::Abort => None,
        },
    };
    match failed(ends.forth, client, upstream).or_else(|| failed(ends.back, upstream, client)) {
        None => Ended { reason: Reason::Ok, by: first, how: How::End },
        Some(ended) => {
            // The other side learns that this was no orderly end.
            sides.upstream.reset_on_close();
            ended
        }
    }
}

/// One direction of a connection.
struct Direction<'a, S: Stream> {
    from: &'a Transport<S>,
    to: &'a Transport<S>,
    moved: &'a Cell<u64>,
    part: Part,
    /// What it means if `to` is too slow.
    late: Reason,
    /// Whether its end was passed on, and that of the other direction.
    over: &'a Cell<bool>,
    other_over: &'a Cell<bool>,
}

impl<S: Stream> Direction<'_, S> {
    /// Passes the end on, if it is one: a reset of which an operation of the other direction was told looks like one here.
    fn end(&self) -> Result<(), Failed> {
        if !self.other_over.get() && self.from.is_torn() {
            return Err(Failed::From(Error::Io(io::ErrorKind::ConnectionReset.into())));
        }
        self.over.set(true);
        self.to.shutdown_write().map_err(|error| Failed::To(error.into()))
    }

    /// So many bytes have come.
    fn has_moved<N: Net<Stream = S>>(&self, worker: &Worker<N>, sides: &Sides<'_, S>, bytes: usize) -> Instant {
        self.moved.set(self.moved.get() + bytes as u64);
        let now = worker.net.now();
        sides.have_moved(now);
        now
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
    way: &Direction<'_, N::Stream>,
) -> Result<(), Failed> {
    let Direction { from, to, .. } = *way;
    let (deadlines, stop) = (sides.deadlines, sides.deadlines.stop());
    let both_plain = from.plain().is_some() && to.plain().is_some();
    let is_paced = deadlines.pace().is_bound();
    let mut output = Output::new();
    let (mut full_reads, mut size) = (0, Size::Small);
    let turn = Turn::default();
    loop {
        // Without descriptors left the bytes are copied.
        if full_reads >= SPLICE_AFTER
            && both_plain
            && let Ok(pipe) = worker.take_pipe()
        {
            if splice(worker, sides, pipe, way, &turn).await? == Spliced::End {
                return way.end();
            }
            full_reads = 0;
        }
        turn.step().await;
        match race(from.readable(), stop.stopped()).await {
            Raced::First(result) => result.map_err(|error| Failed::From(error.into()))?,
            Raced::Second(reason) => return Err(Failed::From(reason.into())),
        }
        match from.try_receive(&mut output, size).map_err(|error| Failed::From(error.into()))? {
            None => continue,
            Some(0) => return way.end(),
            Some(count) => {
                (full_reads, size) =
                    if count >= size.bytes() { (full_reads + 1, size.next()) } else { (0, Size::Small) };
                let now = way.has_moved(worker, sides, count);
                if is_paced {
                    deadlines.set(way.part, now + deadlines.pace().time_for(count), way.late);
                }
                to.flush(&mut output, stop).await.map_err(Failed::To)?;
                if is_paced {
                    deadlines.forget(way.part);
                }
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
    way: &Direction<'_, N::Stream>,
    turn: &Turn,
) -> Result<Spliced, Failed> {
    let (deadlines, stop) = (sides.deadlines, sides.deadlines.stop());
    let mut small = 0;
    while small < COPY_AFTER {
        turn.step().await;
        let mut end = None;
        // Each time that some were taken: the first time, all that are there wait.
        let waiting = |bytes| {
            let now = worker.net.now();
            sides.have_moved(now);
            if deadlines.pace().is_bound() {
                let end = *end.get_or_insert_with(|| now + deadlines.pace().time_for(bytes));
                deadlines.set(way.part, end, way.late);
            }
        };
        let moved = way.from.splice_telling(way.to, &mut pipe, SPLICE_BYTES, stop, waiting).await;
        deadlines.forget(way.part);
        // Bytes are left in the pipe where giving them has failed.
        let failed = |error: Error| match &error {
            Error::Io(cause) if !pipe.is_empty() || cause.kind() == io::ErrorKind::BrokenPipe => Failed::To(error),
            _ => Failed::From(error),
        };
        let count = moved.map_err(failed)?;
        if count == 0 {
            worker.return_pipe(pipe);
            return Ok(Spliced::End);
        }
        small = if count < SMALL_BYTES { small + 1 } else { 0 };
        way.has_moved(worker, sides, count);
    }
    worker.return_pipe(pipe);
    Ok(Spliced::Trickle)
}
