//! TCP load, for the echo and sink of [`crate::serve`]: round trips, and bulk one way.

use std::rc::Rc;

use ringmesh_ring::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, LARGE_BUFFER_BYTES, Output, Size, Slice};

use super::connection::{Connection, before_the_answer, while_sending};
use super::entry::{pattern, pattern_byte};
use super::worker::{self, Answered, CONNECT_PAUSE, Due, Ended, Ready, Shared};
use crate::message::fill;
use crate::report::{Expected, Failure};
use crate::serve::SINK_RECEIPT_BYTES;
use crate::tls;
use crate::transport::Transport;

/// What a TCP load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// Sends so many bytes, waits until as many come back, and compares them. A round trip counts as a request.
    PingPong {
        /// Bytes each way.
        bytes: usize,
    },
    /// Sends without pause, half-closes, and compares the receipt of the sink. A connection counts as a request.
    Upload {
        /// Bytes on each connection. None: until the load ends.
        bytes: Option<u64>,
    },
}

/// Bytes of one send in bulk.
const UPLOAD_BYTES: u64 = LARGE_BUFFER_BYTES as u64;

/// Starts a thread's connections.
pub(super) fn spawn(shared: &Rc<Shared>, exchange: Exchange, connections: usize) {
    let mut slices = Vec::new();
    match exchange {
        Exchange::PingPong { bytes } => pattern(bytes as u64, 0, &mut slices),
        Exchange::Upload { .. } => pattern(UPLOAD_BYTES, 0, &mut slices),
    }
    let slices: Rc<[Slice]> = slices.into();
    let tls = shared.settings.tls.as_ref().map(|tls| tls.offering(&[]));
    for _ in 0..connections {
        let task = Task {
            stop: shared.net.stop(),
            shared: shared.clone(),
            exchange,
            slices: slices.clone(),
            connection: None,
            target: 0,
            tls: tls.clone(),
            output: Output::new(),
        };
        worker::spawn(shared, |ready| task.run(ready));
    }
}

/// One connection at a time.
struct Task {
    shared: Rc<Shared>,
    exchange: Exchange,
    slices: Rc<[Slice]>,
    stop: Stop,
    connection: Option<Connection<Transport>>,
    target: usize,
    tls: Option<tls::Client>,
    output: Output,
}

impl Task {
    async fn run(mut self, ready: Ready) {
        self.shared.begin_deadline(&self.stop);
        // A failure here is met again, and counted, with the first exchange.
        let _failure = self.connect().await;
        self.stop.set_deadline(None);
        self.shared.clone().begin(ready).await;
        while let Some(due) = self.shared.next().await {
            let result = match (self.exchange(&due).await, &self.connection) {
                (Err(failure), Some(connection)) => Err(self.shared.blame(self.target, connection.stream(), failure)),
                (result, _) => result,
            };
            self.stop.set_deadline(None);
            self.output.clear();
            if result.is_err() {
                self.connection = None;
            }
            self.count(&due, result);
            if matches!(result, Err(Failure::Connect | Failure::Tls)) {
                self.shared.pacer.until(Instant::now() + CONNECT_PAUSE).await;
            }
        }
    }

    async fn exchange(&mut self, due: &Due) -> Result<u64, Failure> {
        let begin = Instant::now();
        self.shared.delayed(due, begin);
        self.shared.begin_deadline(&self.stop);
        if self.connection.is_none() {
            self.connect().await?;
        }
        match self.exchange {
            Exchange::PingPong { bytes } => self.ping_pong(bytes).await,
            Exchange::Upload { bytes } => self.upload(bytes).await,
        }
    }

    async fn ping_pong(&mut self, bytes: usize) -> Result<u64, Failure> {
        let connection = self.connection.as_ref().ok_or(Failure::Connect)?;
        self.slices.iter().for_each(|slice| self.output.push(slice.clone()));
        connection.stream().flush(&mut self.output, &self.stop).await.map_err(while_sending)?;
        let mut buffer = Buffer::take(Size::Small);
        let mut seen = 0;
        while seen < bytes {
            if fill(connection.stream(), &mut buffer, &self.stop).await.map_err(before_the_answer)? == 0 {
                return Err(if seen == 0 { Failure::Cut } else { Failure::Truncated });
            }
            let came = buffer.filled();
            if came.iter().zip(seen as u64..).any(|(byte, position)| *byte != pattern_byte(position)) {
                return Err(Failure::WrongBody);
            }
            seen += came.len();
            buffer.consume(buffer.filled().len());
        }
        // More than was sent is not an echo.
        if seen > bytes { Err(Failure::WrongBody) } else { Ok(seen as u64) }
    }

    async fn upload(&mut self, bytes: Option<u64>) -> Result<u64, Failure> {
        // Each upload has its connection: its end says where the bytes end.
        let connection = self.connection.take().ok_or(Failure::Connect)?;
        let mut sent = 0;
        while bytes.is_none_or(|bytes| sent < bytes) && !self.shared.is_over() {
            let mut left = bytes.map_or(UPLOAD_BYTES, |bytes| (bytes - sent).min(UPLOAD_BYTES));
            for slice in self.slices.iter() {
                match usize::try_from(left) {
                    Ok(part) if part < slice.len() => self.output.push_bytes(&slice[..part]),
                    _ => self.output.push(slice.clone()),
                }
                left = left.saturating_sub(slice.len() as u64);
            }
            let part = self.output.len_bytes() as u64;
            self.shared.begin_deadline(&self.stop);
            connection.stream().flush(&mut self.output, &self.stop).await.map_err(while_sending)?;
            sent += part;
            if self.shared.is_measuring() {
                self.shared.report.borrow_mut().bytes_sent += part;
            }
        }
        connection.stream().shutdown_write().map_err(|_| Failure::Cut)?;
        self.shared.begin_deadline(&self.stop);
        let receipt = self.receipt(&connection).await?;
        if receipt == sent { Ok(SINK_RECEIPT_BYTES as u64) } else { Err(Failure::WrongBody) }
    }

    /// The number of bytes that the sink says it got.
    async fn receipt(&self, connection: &Connection<Transport>) -> Result<u64, Failure> {
        let mut buffer = Buffer::take(Size::Small);
        while fill(connection.stream(), &mut buffer, &self.stop).await.map_err(before_the_answer)? > 0 {}
        let bytes: [u8; SINK_RECEIPT_BYTES] = buffer.filled().try_into().map_err(|_| match buffer.filled() {
            [] => Failure::Cut,
            _ => Failure::Malformed,
        })?;
        Ok(u64::from_be_bytes(bytes))
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        self.target = self.shared.pick_target();
        let stream = self.shared.connect(self.target, self.tls.as_ref(), &self.stop).await?;
        self.connection = Some(Connection::over(stream));
        Ok(())
    }

    fn count(&self, due: &Due, result: Result<u64, Failure>) {
        // Bulk counts its bytes as they go; a connection that carries it counts when it ends, however early it began.
        let (due, bytes_sent) = match self.exchange {
            Exchange::PingPong { bytes } => (due, bytes as u64),
            Exchange::Upload { .. } => (&self.shared.measured_part(due), 0),
        };
        let answered = |bytes_received| Answered {
            status: None,
            expected: Expected::Yes,
            field: None,
            bytes_sent,
            bytes_received,
        };
        let begin = due.at.max(due.free);
        self.shared.record(due, &Ended { entry: 0, begin, outcome: result.map(answered) });
    }
}
