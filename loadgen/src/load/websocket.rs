//! WebSocket load: round trips of one message over kept connections, for [`crate::serve`]'s echo or any other.

use std::rc::Rc;

use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Instant, Output, Size, Slice};

use super::connection::{before_the_answer, while_sending};
use super::entry::{pattern_byte, pattern_bytes, slices_of};
use super::worker::{self, Answered, CONNECT_PAUSE, Ended, Ready, Shared};
use crate::message::{Method, fill, parse_response, read_head};
use crate::report::{Expected, Failure};
use crate::tls;
use crate::transport::Transport;
use crate::websocket::{Frame, MAX_CONTROL_BYTES, MAX_FRAME_HEAD_BYTES, Opcode, apply_mask};

/// What is asked for, and what goes back and forth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// Value of the Host field.
    pub host: String,
    /// Request target.
    pub path: String,
    /// Further fields of the request that opens a connection.
    pub fields: Vec<(String, String)>,
    /// Bytes in a message.
    pub bytes: u64,
}

impl WebSocket {
    fn handshake(&self) -> String {
        let mut head = format!(
            "GET {} HTTP/1.1\r\nhost: {}\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: {KEY}\r\n",
            self.path, self.host
        );
        for (name, value) in &self.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        head
    }
}

/// The example's key and its answer (RFC 6455 section 1.3): it only keeps caches out, and nothing is cached here.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

/// Masks every message: it only keeps a page's script from choosing the bytes on the wire, and there is none.
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What all connections of a thread send.
struct Plan {
    handshake: String,
    /// The message in its frame.
    frame: Vec<Slice>,
    frame_bytes: u64,
    bytes: u64,
    tls: Option<tls::Client>,
}

/// Starts a thread's connections.
pub(super) fn spawn(shared: &Rc<Shared>, websocket: &WebSocket, connections: usize) {
    let frame = framed(Opcode::Binary, &pattern_bytes(websocket.bytes));
    let plan = Rc::new(Plan {
        handshake: websocket.handshake(),
        frame: slices_of(&frame),
        frame_bytes: frame.len() as u64,
        bytes: websocket.bytes,
        tls: shared.settings.tls.as_ref().map(|tls| tls.offering(&[tls::HTTP1])),
    });
    for _ in 0..connections {
        let task = Task {
            stop: shared.net.stop(),
            shared: shared.clone(),
            plan: plan.clone(),
            connection: None,
            output: Output::new(),
        };
        worker::spawn(shared, |ready| task.run(ready));
    }
}

/// One connection at a time.
struct Task {
    shared: Rc<Shared>,
    plan: Rc<Plan>,
    stop: Stop,
    connection: Option<(Transport, usize)>,
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
            let begin = Instant::now();
            self.shared.delayed(&due, begin);
            self.shared.begin_deadline(&self.stop);
            let result = match (self.exchange().await, &self.connection) {
                (Err(failure), Some((stream, target))) => Err(self.shared.blame(*target, stream, failure)),
                (result, _) => result,
            };
            self.stop.set_deadline(None);
            self.output.clear();
            if result.is_err() {
                self.connection = None;
            }
            let answered = |bytes_received| Answered {
                status: None,
                expected: Expected::Yes,
                field: None,
                bytes_sent: self.plan.frame_bytes,
                bytes_received,
            };
            self.shared.record(&due, &Ended { entry: 0, begin, outcome: result.map(answered) });
            if matches!(result, Err(Failure::Connect | Failure::Tls | Failure::Upgrade)) {
                self.shared.pacer.until(Instant::now() + CONNECT_PAUSE).await;
            }
        }
    }

    /// Sends the message and reads it back; says how many bytes came.
    async fn exchange(&mut self) -> Result<u64, Failure> {
        if self.connection.is_none() {
            self.connect().await?;
        }
        let (stream, _) = self.connection.as_ref().ok_or(Failure::Connect)?;
        self.plan.frame.iter().for_each(|slice| self.output.push(slice.clone()));
        stream.flush(&mut self.output, &self.stop).await.map_err(while_sending)?;
        let mut buffer = Buffer::take(Size::Small);
        let (mut received, mut seen) = (0, 0);
        loop {
            let (frame, head) = loop {
                if let Some(frame) = Frame::parse(buffer.filled()).map_err(|_| Failure::Malformed)? {
                    break frame;
                }
                let came = fill(stream, &mut buffer, &self.stop).await.map_err(before_the_answer)?;
                if came == 0 {
                    return Err(if received == 0 && buffer.is_empty() { Failure::Cut } else { Failure::Truncated });
                }
            };
            buffer.consume(head);
            received += head as u64 + frame.length;
            if frame.mask.is_some() {
                // A server masks nothing (section 5.1).
                return Err(Failure::Malformed);
            }
            if frame.opcode.is_control() {
                answer(stream, &mut buffer, frame, &mut self.output, &self.stop).await?;
                continue;
            }
            let mut left = frame.length;
            while left > 0 {
                let taken = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                let part = &buffer.filled()[..taken];
                if part.iter().zip(seen..).any(|(byte, position)| *byte != pattern_byte(position)) {
                    return Err(Failure::WrongBody);
                }
                buffer.consume(taken);
                left -= taken as u64;
                seen += taken as u64;
                if left > 0 && fill(stream, &mut buffer, &self.stop).await.map_err(before_the_answer)? == 0 {
                    return Err(Failure::Truncated);
                }
            }
            if frame.last {
                break;
            }
        }
        // More or less than was sent is not an echo.
        if seen == self.plan.bytes && buffer.is_empty() { Ok(received) } else { Err(Failure::WrongBody) }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let target = self.shared.pick_target();
        let stream = self.shared.connect(target, self.plan.tls.as_ref(), &self.stop).await?;
        let result = self.upgrade(&stream, target).await;
        result.map_err(|failure| self.shared.blame(target, &stream, failure))?;
        self.connection = Some((stream, target));
        Ok(())
    }

    async fn upgrade(&mut self, stream: &Transport, target: usize) -> Result<(), Failure> {
        self.output.push_bytes(self.plan.handshake.as_bytes());
        stream.flush(&mut self.output, &self.stop).await.map_err(while_sending)?;
        let mut buffer = Buffer::take(Size::Small);
        let parse = |bytes: &[u8]| parse_response(bytes, Method::Other, Some("sec-websocket-accept"));
        let head = read_head(stream, &mut buffer, &self.stop, parse).await.map_err(before_the_answer)?;
        let address = &self.shared.settings.targets[target].address;
        if head.status != 101 {
            self.shared.explain(|| {
                format!("{address} answers {} instead of opening a WebSocket; is the path right?", head.status)
            });
            return Err(Failure::Upgrade);
        }
        let accept = head.field.map(|range| &buffer.filled()[range]);
        if accept != Some(ACCEPT.as_bytes()) || buffer.len() > head.length {
            self.shared.explain(|| format!("{address} opens a WebSocket with a wrong Sec-WebSocket-Accept"));
            return Err(Failure::Upgrade);
        }
        Ok(())
    }
}

/// Takes a control frame: a ping gets its answer, a close ends the connection.
async fn answer<S: Stream>(
    stream: &S,
    buffer: &mut Buffer,
    frame: Frame,
    output: &mut Output,
    stop: &Stop,
) -> Result<(), Failure> {
    // Its payload is bounded by its parser.
    let length = usize::try_from(frame.length).unwrap_or(MAX_CONTROL_BYTES);
    while buffer.len() < length {
        if fill(stream, buffer, stop).await.map_err(before_the_answer)? == 0 {
            return Err(Failure::Truncated);
        }
    }
    if frame.opcode == Opcode::Ping {
        output.push_bytes(&framed(Opcode::Pong, &buffer.filled()[..length]));
        stream.flush(output, stop).await.map_err(while_sending)?;
    }
    buffer.consume(length);
    if frame.opcode == Opcode::Close { Err(Failure::Cut) } else { Ok(()) }
}

/// A message in one masked frame.
fn framed(opcode: Opcode, message: &[u8]) -> Vec<u8> {
    let mut head = [0; MAX_FRAME_HEAD_BYTES];
    let frame = Frame { last: true, opcode, mask: Some(MASK), length: message.len() as u64 };
    let end = frame.write(&mut head);
    let mut bytes = [&head[..end], message].concat();
    apply_mask(&mut bytes[end..], MASK, 0);
    bytes
}
