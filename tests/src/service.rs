//! Fake services: a thread a connection, plain sockets, and a memory of all that they were asked.

use std::collections::HashMap;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::message::{Head, Message, Reader, WithoutLength};
use crate::wait::DEADLINE;

/// A running service. Dropped, it ends with all of its connections.
pub struct Service {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    ended: AtomicBool,
    accepted: AtomicUsize,
    open: AtomicUsize,
    connections: Mutex<HashMap<usize, TcpStream>>,
    requests: Mutex<Vec<Message>>,
}

impl Shared {
    fn requests(&self) -> MutexGuard<'_, Vec<Message>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<usize, TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Answers every request with the bytes that `answer` makes of it.
    pub fn http<A: AsRef<[u8]>>(answer: impl Fn(&Message) -> A + Send + Sync + 'static) -> Self {
        Self::conversing(move |talk| {
            while let Some(request) = talk.request()? {
                talk.send(answer(&request))?;
            }
            Ok(())
        })
    }

    /// Answers every request with 200 and this text.
    pub fn saying(text: &'static str) -> Self {
        Self::http(move |_| ok(text))
    }

    /// Answers every request with its own body, in the form in which it came.
    pub fn echo() -> Self {
        Self::http(|request| {
            let body = &request.body;
            if request.field("transfer-encoding").is_some() {
                return chunked(body, 7_000, "");
            }
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            answer.extend_from_slice(body);
            answer
        })
    }

    /// Leaves each connection to `talk`, which may say whatever it likes; the connection is closed when it returns.
    pub fn conversing(talk: impl Fn(&mut Talk) -> io::Result<()> + Send + Sync + 'static) -> Self {
        Self::raw(move |stream, shared| {
            let mut conversation = Talk { reader: Reader::new(stream), shared: shared.clone() };
            // What a client does to a service's connection is judged by the test, not here.
            let _ = talk(&mut conversation);
        })
    }

    /// Leaves each connection's socket to `serve`.
    pub fn sockets(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        Self::raw(move |stream, _| serve(stream))
    }

    /// Leaves each connection's socket to `serve`, with where to tell of requests.
    pub(crate) fn recording(serve: impl Fn(TcpStream, Record) + Send + Sync + 'static) -> Self {
        Self::raw(move |stream, shared| serve(stream, Record(shared.clone())))
    }

    /// The same at this address.
    pub(crate) fn recording_at(address: &str, serve: impl Fn(TcpStream, Record) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::on(listener, move |stream, shared| serve(stream, Record(shared.clone())))
    }

    /// Answers every request at this address with 200 and this text.
    ///
    /// # Panics
    /// If the address cannot be had.
    pub fn saying_at(address: &str, text: &'static str) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::on(listener, move |stream, shared| {
            let mut talk = Talk { reader: Reader::new(stream), shared: shared.clone() };
            while let Ok(Some(_)) = talk.request() {
                if talk.send(ok(text)).is_err() {
                    return;
                }
            }
        })
    }

    /// Greets every connection at this address and sends back what comes.
    ///
    /// # Panics
    /// If the address cannot be had.
    pub fn echoing_at(address: &str, greeting: &'static [u8]) -> Self {
        let listener = TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"));
        Self::on(listener, move |mut stream, _| {
            if let (Ok(()), Ok(mut from)) = (stream.write_all(greeting), stream.try_clone()) {
                let _ = io::copy(&mut from, &mut stream);
                let _ = stream.shutdown(Shutdown::Write);
            }
        })
    }

    fn raw(serve: impl Fn(TcpStream, &Arc<Shared>) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::on(listener, serve)
    }

    fn on(listener: TcpListener, serve: impl Fn(TcpStream, &Arc<Shared>) + Send + Sync + 'static) -> Self {
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared::default());
        let (accepting, serve) = (shared.clone(), Arc::new(serve));
        thread::spawn(move || {
            for stream in listener.incoming() {
                if accepting.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (shared, serve) = (accepting.clone(), serve.clone());
                let number = shared.accepted.fetch_add(1, Ordering::SeqCst);
                shared.open.fetch_add(1, Ordering::SeqCst);
                let _ = stream.set_nodelay(true);
                let _ = stream.set_read_timeout(Some(DEADLINE * 4));
                if let Ok(copy) = stream.try_clone() {
                    shared.connections().insert(number, copy);
                }
                thread::spawn(move || {
                    serve(stream, &shared);
                    // Our copy would keep the connection open.
                    shared.connections().remove(&number);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        Self { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many connections it has accepted.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many of them are open.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// The requests it has read whole, in their order.
    pub fn requests(&self) -> Vec<Message> {
        self.shared.requests().clone()
    }

    /// The newest request.
    ///
    /// # Panics
    /// If there was none.
    pub fn last(&self) -> Message {
        self.shared.requests().last().cloned().expect("the service was asked something")
    }
}

/// Where requests are told of that a service has read whole.
pub(crate) struct Record(Arc<Shared>);

impl Record {
    /// Tells of one.
    pub(crate) fn request(&self, request: Message) {
        self.0.requests().push(request);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        for connection in self.shared.connections().values() {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

/// One connection of a service.
pub struct Talk {
    reader: Reader<TcpStream>,
    shared: Arc<Shared>,
}

impl Talk {
    /// The next request, whole. None: the client has ended.
    ///
    /// # Errors
    /// If it does not come whole.
    pub fn request(&mut self) -> io::Result<Option<Message>> {
        let Some(head) = self.reader.head()? else { return Ok(None) };
        let request = self.rest_of(head)?;
        Ok(Some(request))
    }

    /// The next request's head alone. None: the client has ended.
    ///
    /// # Errors
    /// If it does not come whole.
    pub fn head(&mut self) -> io::Result<Option<Head>> {
        self.reader.head()
    }

    /// The body of a request whose head was read; it counts as asked from then on.
    ///
    /// # Errors
    /// If it does not come whole.
    pub fn rest_of(&mut self, head: Head) -> io::Result<Message> {
        let request = self.reader.rest_of(head, WithoutLength::Empty)?;
        self.shared.requests().push(request.clone());
        Ok(request)
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// If the client is gone.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.reader.stream.write_all(bytes.as_ref())
    }

    /// So many bytes of what comes.
    ///
    /// # Errors
    /// If they do not come.
    pub fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        self.reader.exactly(count)
    }

    /// All that comes until the client ends.
    ///
    /// # Errors
    /// If it ends by a reset.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        self.reader.rest()
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.reader.stream
    }

    /// Does nothing for so long, or until the peer has ended its side or broken off. What it sends stays where it is.
    pub fn stand_still(&self, at_most: Duration) {
        let until = Instant::now() + at_most;
        let mut ends = [PollFd::new(&self.reader.stream, PollFlags::RDHUP)];
        let left = Timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: at_most.subsec_nanos().into() };
        // A signal may come between.
        while Instant::now() < until && !matches!(poll(&mut ends, Some(&left)), Ok(1..)) {}
    }
}

/// A response of 200 with this text.
pub fn ok(text: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

/// A chunked response of 200, in chunks of this size, with trailer lines (each with its `\r\n`).
pub fn chunked(body: &[u8], chunk: usize, trailers: &str) -> Vec<u8> {
    let mut answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunks(body, chunk, trailers, &mut answer);
    answer
}

/// Writes a body as chunks.
pub fn chunks(body: &[u8], chunk: usize, trailers: &str, into: &mut Vec<u8>) {
    for piece in body.chunks(chunk) {
        into.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        into.extend_from_slice(piece);
        into.extend_from_slice(b"\r\n");
    }
    into.extend_from_slice(format!("0\r\n{trailers}\r\n").as_bytes());
}
