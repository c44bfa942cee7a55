//! One of our streams under a protocol library that wants tokio's I/O traits, such as the h2 crate. No runtime of
//! tokio's: the library reads from and writes to a pipe in memory, and [`pump`] moves bytes between the pipe and the ring,
//! whole buffers at a time and everything written in one vectored send.
//!
//! All three (the receiver, the library's connection and the sender) are polled by one task, one after the other, until
//! none can go on: so the pipe itself needs no wakers. The library's connection costs most, and is polled only when there is
//! something for it.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::buffer::{Buffer, Size};
use crate::output::Output;
use crate::stop::{Stop, wakes_same_task};
use crate::stream::{Error, Stream};

/// Bytes that the library may have written and the sender not taken.
const MAX_WAITING_BYTES: usize = 256 * 1024;

/// What both ends of a pipe share.
#[derive(Default)]
pub struct Pipe {
    input: RefCell<Input>,
    output: RefCell<Output>,
    /// The library had more to write than fits.
    blocked: Cell<bool>,
    /// Bytes of what is being sent.
    sending: Cell<usize>,
    /// How often something was sent.
    sends: Cell<u64>,
    received: Cell<u64>,
    sent: Cell<u64>,
}

struct Input {
    buffer: Buffer,
    /// How the stream ended, told once.
    end: Option<io::Error>,
    ended: bool,
}

impl Default for Input {
    fn default() -> Self {
        Self { buffer: Buffer::hollow(), end: None, ended: false }
    }
}

impl Pipe {
    /// A pipe in which some bytes have arrived already.
    pub fn new(arrived: Buffer) -> Rc<Self> {
        let pipe = Self::default();
        pipe.input.borrow_mut().buffer = arrived;
        Rc::new(pipe)
    }

    /// The end that the library holds.
    pub fn duplex(self: &Rc<Self>) -> Duplex {
        Duplex(self.clone())
    }

    /// Bytes sent and received since this was asked last.
    pub fn take_counts(&self) -> (u64, u64) {
        (self.sent.take(), self.received.take())
    }

    /// What is being sent, if the peer has not taken all of it.
    pub fn sending(&self) -> Option<Sending> {
        let bytes = self.sending.get();
        (bytes > 0).then(|| Sending { number: self.sends.get(), bytes })
    }

    /// Whether the library has read all that came.
    pub fn is_drained(&self) -> bool {
        self.input.borrow().buffer.is_empty()
    }

    /// Whether the library may write: while it may not, it does not look at all that it has read.
    pub fn has_room(&self) -> bool {
        self.output.borrow().len_bytes() < MAX_WAITING_BYTES
    }
}

/// One send.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Which one.
    pub number: u64,
    /// Its bytes, those that the peer has taken among them.
    pub bytes: usize,
}

/// The library's end of a pipe.
pub struct Duplex(Rc<Pipe>);

impl AsyncRead for Duplex {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut input = self.0.input.borrow_mut();
        if !input.buffer.is_empty() {
            let taken = input.buffer.len().min(into.remaining());
            into.put_slice(&input.buffer.filled()[..taken]);
            input.buffer.consume(taken);
            return Poll::Ready(Ok(()));
        }
        match input.end.take() {
            Some(error) => Poll::Ready(Err(error)),
            None if input.ended => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut output = self.0.output.borrow_mut();
        if output.len_bytes() >= MAX_WAITING_BYTES {
            self.0.blocked.set(true);
            return Poll::Pending;
        }
        slices.iter().for_each(|slice| output.push_bytes(slice));
        Poll::Ready(Ok(slices.iter().map(|slice| slice.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What was written is on its way, whoever waits for it.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Who looks on while bytes are moved.
pub trait Watcher {
    /// These bytes have come, and the library has not seen them yet.
    fn received(&self, _bytes: &[u8]) {}

    /// Nothing more comes, because of this. The library will not tell it: of an error it keeps the kind.
    fn failed(&self, _error: &Error) {}

    /// Whether nothing is expected soon, so that waiting must hold no buffer.
    fn rests(&self) -> bool {
        false
    }
}

/// Nobody looks on.
impl Watcher for () {}

/// Wakes a task for its library, and remembers that it did: what the task is woken for by receiver and sender is none of the
/// library's business. Atomic because wakers have to be; it never leaves its thread.
struct Wakes {
    task: Waker,
    woken: AtomicBool,
}

impl Wakes {
    /// For the task that this waker wakes, and as if it had been woken: nobody knows what the library waits for.
    fn of(task: &Waker) -> Arc<Self> {
        Arc::new(Self { task: task.clone(), woken: AtomicBool::new(true) })
    }

    fn take(&self) -> bool {
        let woken = self.woken.load(Ordering::Relaxed);
        if woken {
            self.woken.store(false, Ordering::Relaxed);
        }
        woken
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::Relaxed);
        self.task.wake_by_ref();
    }
}

/// Moves bytes between a stream and a pipe until the library's connection has ended and all it wrote is sent. Its result
/// comes back, or the error that the sender met before there was one.
///
/// The receive under way is dropped at the end: nobody is left to read what it brings, and the stream is closed next. Where the
/// sender fails, what has come is read first, to its end.
///
/// # Errors
/// What the sender met.
pub async fn pump<S: Stream, T>(
    stream: &S,
    pipe: &Pipe,
    connection: impl Future<Output = T>,
    stop: &Stop,
    watcher: &impl Watcher,
) -> Result<T, Error> {
    let mut receiver = pin!(receive(stream, pipe, stop, watcher));
    let mut connection = pin!(connection);
    let mut sender = pin!(send(stream, pipe, stop));
    let (mut receiving, mut result, mut failed) = (true, None, None);
    let mut library: Option<(Arc<Wakes>, Waker)> = None;
    poll_fn(|context| {
        if library.as_ref().is_none_or(|(wakes, _)| !wakes_same_task(&wakes.task, context.waker())) {
            let wakes = Wakes::of(context.waker());
            library = Some((wakes.clone(), wakes.into()));
        }
        let (wakes, waker) = library.as_ref().expect("made just now, if not before");
        let mut look = wakes.take();
        loop {
            if receiving && receiver.as_mut().poll(context).is_ready() {
                receiving = false;
                look = true;
            }
            let had_input = !pipe.is_drained();
            if result.is_none()
                && (look || had_input)
                && let Poll::Ready(ended) = connection.as_mut().poll(&mut Context::from_waker(waker))
            {
                result = Some(ended);
            }
            if failed.is_none()
                && let Poll::Ready(error) = sender.as_mut().poll(context)
            {
                match result.take() {
                    Some(ended) => return Poll::Ready(Ok(ended)),
                    None => failed = Some(error),
                }
            }
            // A peer that has said all it had to say and is gone takes nothing, and its last words may not have been read yet.
            if let Some(error) =
                failed.take_if(|_| !receiving || result.is_some() || stop.poll_stopped(context).is_ready())
            {
                return Poll::Ready(Err(error));
            }
            if failed.is_some() {
                pipe.output.borrow_mut().clear();
            }
            if let Some(ended) = result.take_if(|_| pipe.output.borrow().is_empty() && pipe.sending.get() == 0) {
                return Poll::Ready(Ok(ended));
            }
            // Room to write: the library goes on. Room to receive: the receiver does.
            look = pipe.has_room() && pipe.blocked.take();
            let drained = receiving && had_input && pipe.is_drained();
            if result.is_some() || !look && !drained {
                return Poll::Pending;
            }
        }
    })
    .await
}

/// Receives whenever the library has read all there was.
async fn receive<S: Stream>(stream: &S, pipe: &Pipe, stop: &Stop, watcher: &impl Watcher) {
    loop {
        poll_fn(|_| if pipe.is_drained() { Poll::Ready(()) } else { Poll::Pending }).await;
        if watcher.rests() {
            drop(std::mem::replace(&mut pipe.input.borrow_mut().buffer, Buffer::hollow()));
            // What is wrong, if something is, the receive says.
            let _ = until_readable(stream, stop).await;
        }
        let mut buffer = std::mem::replace(&mut pipe.input.borrow_mut().buffer, Buffer::hollow());
        match (buffer.capacity(), buffer.spare()) {
            (0, _) => buffer = Buffer::take(Size::Small),
            // The last receive filled it whole: more comes at once than it holds.
            (_, 0) => buffer = Buffer::take(Size::Large),
            _ => {}
        }
        let received = stream.fill(&mut buffer, stop).await;
        let mut input = pipe.input.borrow_mut();
        match received {
            Ok(0) => input.ended = true,
            Ok(received) => {
                watcher.received(buffer.filled());
                pipe.received.set(pipe.received.get() + received as u64);
                input.buffer = buffer;
                continue;
            }
            Err(error) => {
                watcher.failed(&error);
                let error = match error {
                    Error::Io(error) => error,
                    Error::Stopped(_) => io::ErrorKind::TimedOut.into(),
                };
                (input.end, input.ended) = (Some(error), true);
            }
        }
        return;
    }
}

/// Waits for bytes without a buffer, or until it is stopped.
async fn until_readable<S: Stream>(stream: &S, stop: &Stop) -> io::Result<()> {
    let mut readable = pin!(stream.readable());
    poll_fn(|context| match stop.poll_stopped(context) {
        Poll::Ready(_) => Poll::Ready(Ok(())),
        Poll::Pending => readable.as_mut().poll(context),
    })
    .await
}

/// Sends whenever the library has written something, until that fails.
async fn send<S: Stream>(stream: &S, pipe: &Pipe, stop: &Stop) -> Error {
    let mut output = Output::new();
    loop {
        poll_fn(|_| if pipe.output.borrow().is_empty() { Poll::Pending } else { Poll::Ready(()) }).await;
        std::mem::swap(&mut output, &mut *pipe.output.borrow_mut());
        pipe.sending.set(output.len_bytes());
        pipe.sends.set(pipe.sends.get() + 1);
        pipe.sent.set(pipe.sent.get() + output.len_bytes() as u64);
        if let Err(error) = stream.flush(&mut output, stop).await {
            return error;
        }
        pipe.sending.set(0);
    }
}

#[cfg(test)]
mod tests {
    use std::task::ready;

    use crate::memory::{self, Network, block_on};
    use crate::runtime::spawn;

    use super::*;

    /// Reads into `into` until `count` bytes are there or the end.
    async fn read(duplex: &mut Duplex, into: &mut Vec<u8>, count: usize) -> io::Result<()> {
        let mut part = [0; 1_000];
        while into.len() < count {
            let read = poll_fn(|context| {
                let mut buffer = ReadBuf::new(&mut part);
                ready!(Pin::new(&mut *duplex).poll_read(context, &mut buffer))?;
                Poll::Ready(Ok::<_, io::Error>(buffer.filled().len()))
            })
            .await?;
            if read == 0 {
                break;
            }
            into.extend_from_slice(&part[..read]);
        }
        Ok(())
    }

    async fn write(duplex: &mut Duplex, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let part = &bytes[..bytes.len().min(10_000)];
            let written = poll_fn(|context| Pin::new(&mut *duplex).poll_write(context, part)).await?;
            let waiting = duplex.0.output.borrow().len_bytes();
            assert!(waiting < MAX_WAITING_BYTES + part.len(), "{waiting} bytes wait");
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Over connections that hold few bytes, and all there are.
    fn both(check: impl AsyncFn(memory::Stream, memory::Stream)) {
        for capacity in [1_000, usize::MAX / 2] {
            let network = Network::new(1);
            network.set_capacity_bytes(capacity);
            let (near, far) = network.pair();
            block_on(&network, check(near, far));
        }
    }

    #[test]
    fn all_bytes_pass_in_order_and_what_waits_is_bounded() {
        both(async |near, far| {
            let sent: Vec<u8> = (0..2_000_000_u32).map(|at| (at % 251) as u8).collect();
            let echoed = sent.clone();
            spawn(async move {
                let pipe = Pipe::new(Buffer::hollow());
                let mut duplex = pipe.duplex();
                let echo = async {
                    let mut came = Vec::new();
                    read(&mut duplex, &mut came, echoed.len()).await.expect("nothing breaks");
                    assert!(came == echoed);
                    write(&mut duplex, &came).await.expect("nothing breaks");
                };
                pump(&far, &pipe, echo, &Stop::new(), &()).await.expect("nothing breaks");
                assert_eq!(pipe.take_counts(), (2_000_000, 2_000_000));
            });
            let pipe = Pipe::new(Buffer::hollow());
            let mut duplex = pipe.duplex();
            let ask = async {
                write(&mut duplex, &sent).await.expect("nothing breaks");
                let mut came = Vec::new();
                read(&mut duplex, &mut came, sent.len()).await.expect("nothing breaks");
                assert!(came == sent);
            };
            pump(&near, &pipe, ask, &Stop::new(), &()).await.expect("nothing breaks");
        });
    }

    #[test]
    fn the_library_is_not_asked_again_for_each_part_that_is_sent() {
        let network = Network::new(1);
        network.set_capacity_bytes(1_000);
        let (near, far) = network.pair();
        block_on(&network, async {
            let taken = Rc::new(Cell::new(0));
            let count = taken.clone();
            spawn(async move {
                let mut buffer = Buffer::take(Size::Small);
                while far.fill(&mut buffer, &Stop::new()).await.is_ok_and(|bytes| bytes > 0) {
                    count.set(count.get() + buffer.len());
                    buffer.clear();
                    if count.get() == 100_000 {
                        let mut output = Output::new();
                        output.push_bytes(b"all");
                        far.flush(&mut output, &Stop::new()).await.expect("somebody listens");
                    }
                }
            });
            let pipe = Pipe::new(Buffer::hollow());
            let mut duplex = pipe.duplex();
            let polls = Cell::new(0);
            let mut library = pin!(async {
                write(&mut duplex, &[b'x'; 100_000]).await.expect("nothing breaks");
                let mut came = Vec::new();
                read(&mut duplex, &mut came, 3).await.expect("nothing breaks");
                came
            });
            let counted = poll_fn(|context| {
                polls.set(polls.get() + 1);
                library.as_mut().poll(context)
            });
            let came = pump(&near, &pipe, counted, &Stop::new(), &()).await.expect("nothing breaks");
            assert_eq!((&came[..], taken.get()), (&b"all"[..], 100_000));
            assert!(polls.get() <= 3, "{} polls", polls.get());
        });
    }

    #[test]
    fn what_had_arrived_comes_first_and_the_end_is_told() {
        both(async |near, far| {
            let mut arrived = Buffer::take(Size::Small);
            arrived.extend_from_slice(b"first ").expect("it fits");
            let mut output = Output::new();
            output.push_bytes(b"then this");
            far.flush(&mut output, &Stop::new()).await.expect("somebody listens");
            far.shutdown_write().expect("somebody listens");
            let pipe = Pipe::new(arrived);
            let mut duplex = pipe.duplex();
            let mut came = Vec::new();
            let all = read(&mut duplex, &mut came, usize::MAX);
            pump(&near, &pipe, all, &Stop::new(), &()).await.expect("nothing is sent").expect("an ordinary end");
            assert_eq!(came, b"first then this");
        });
    }

    #[test]
    fn what_has_come_is_read_although_its_sender_takes_nothing_any_more() {
        let network = Network::new(1);
        network.set_capacity_bytes(1_000_000);
        let (near, far) = network.pair();
        block_on(&network, async {
            let mut output = Output::new();
            output.push_bytes(&[7; 500_000]);
            far.flush(&mut output, &Stop::new()).await.expect("somebody listens");
            drop(far);
            let pipe = Pipe::new(Buffer::hollow());
            let mut duplex = pipe.duplex();
            let came = Cell::new(0);
            let library = async {
                let mut bytes = Vec::new();
                // As it reads it writes, more than may wait.
                while read(&mut duplex, &mut bytes, 1_000).await.is_ok() && !bytes.is_empty() {
                    came.set(came.get() + bytes.len());
                    write(&mut duplex, &[b'x'; 1_000]).await?;
                    bytes.clear();
                }
                io::Result::Ok(())
            };
            let error = pump(&near, &pipe, library, &Stop::new(), &()).await.expect_err("nobody takes it");
            assert!(matches!(error, Error::Io(error) if error.kind() == io::ErrorKind::BrokenPipe));
            assert_eq!(came.get(), 500_000);
        });
    }

    #[test]
    fn a_reset_is_told_to_the_library() {
        both(async |near, far| {
            far.reset_on_close();
            drop(far);
            let pipe = Pipe::new(Buffer::hollow());
            let mut duplex = pipe.duplex();
            let mut came = Vec::new();
            let all = read(&mut duplex, &mut came, usize::MAX);
            let result = pump(&near, &pipe, all, &Stop::new(), &()).await.expect("nothing is sent");
            assert_eq!(result.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
        });
    }
}
