//! The path of requests over HTTP/2 on both sides, in memory: client and service are frames made once, so that nearly all that
//! is counted is the proxy's.

use std::rc::Rc;

use ringmesh_dataplane::proxy::connection;
use ringmesh_dataplane::proxy::pooled::pooled;
use ringmesh_ring::memory::{Network, Stream, block_on};
use ringmesh_ring::{Buffer, Net, Output, Size, Stop, Stream as _};

use crate::memory::World;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's header (RFC 9113 section 4.1).
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// What is sent and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A GET, answered with 100 bytes.
    Request,
    /// A unary gRPC call: a message of 100 bytes either way, and a status behind it.
    Call,
}

/// The fields of a call; the last differs with each.
const CALL_FIELDS: &[(&str, &str)] = &[
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "app.bench.example"),
    (":path", "/items/17"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
    ("user-agent", "bench/1"),
    ("grpc-timeout", "9999m"),
];

/// The fields of the request that `memory::REQUEST` has.
const FIELDS: &[(&str, &str)] = &[
    (":method", "GET"),
    (":scheme", "http"),
    (":authority", "app.bench.example"),
    (":path", "/items/17?full=1"),
    ("user-agent", "bench/1"),
    ("accept", "*/*"),
    ("x-request-id", "6f1c2f0a-6d0f-4a52-9f0f-3a1f5a1d2c11"),
];

/// A literal with a new name and without an index (RFC 7541 section 6.2.2).
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        block.push(u8::try_from(text.len()).expect("short"));
        block.extend_from_slice(text.as_bytes());
    }
}

/// The first request's block and that of all others: what stays the same is put into the table once and named from then on,
/// as clients do; the last field differs with each request.
fn blocks(fields: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
    let (&(name, value), same) = fields.split_last().expect("there are some");
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for (place, (name, value)) in same.iter().enumerate() {
        let begin = first.len();
        literal(&mut first, name, value);
        // With incremental indexing (section 6.2.1). The newest entry is the first behind the 61 static ones.
        first[begin] = 0x40;
        others.push(0x80 | u8::try_from(61 + same.len() - place).expect("a small table"));
    }
    literal(&mut first, name, value);
    literal(&mut others, name, value);
    (first, others)
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// One end of a connection.
struct Peer {
    stream: Stream,
    buffer: Buffer,
    output: Output,
    stop: Stop,
}

impl Peer {
    fn new(net: &Network, stream: Stream) -> Self {
        Self { stream, buffer: Buffer::take(Size::Small), output: Output::new(), stop: net.stop() }
    }

    async fn send(&mut self, bytes: &[u8]) {
        self.output.push_bytes(bytes);
        self.stream.flush(&mut self.output, &self.stop).await.expect("the connection is kept");
    }

    /// The next frame's kind, flags and stream. Settings and PINGs are acknowledged on the way.
    async fn next(&mut self) -> (u8, u8, u32) {
        loop {
            while self.buffer.len() < HEADER {
                self.fill().await;
            }
            let head: [u8; HEADER] = self.buffer.filled()[..HEADER].try_into().expect("as long");
            let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
            while self.buffer.len() < HEADER + length {
                self.fill().await;
            }
            let (kind, flags) = (head[3], head[4]);
            let payload = self.buffer.filled()[HEADER..HEADER + length].to_vec();
            self.buffer.consume(HEADER + length);
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&frame(SETTINGS, ACK, 0, &[])).await,
                PING if flags & ACK == 0 => self.send(&frame(PING, ACK, 0, &payload)).await,
                _ => return (kind, flags, u32::from_be_bytes([head[5], head[6], head[7], head[8]])),
            }
        }
    }

    async fn fill(&mut self) {
        self.buffer.compact();
        let filled = self.stream.fill(&mut self.buffer, &self.stop).await.expect("the connection is kept");
        assert_ne!(filled, 0, "the connection is kept");
    }
}

/// The frames of one request or call.
struct Frames {
    first: Vec<u8>,
    others: Vec<u8>,
    message: Option<Vec<u8>>,
    head: Vec<u8>,
    body: Vec<u8>,
    trailers: Option<Vec<u8>>,
}

impl Frames {
    fn of(kind: Kind) -> Self {
        // 200 is in the static table.
        let mut head = vec![0x88];
        let body = vec![b'x'; 100];
        match kind {
            Kind::Request => {
                let (first, others) = blocks(FIELDS);
                literal(&mut head, "content-type", "application/octet-stream");
                literal(&mut head, "content-length", "100");
                Self { first, others, message: None, head, body, trailers: None }
            }
            Kind::Call => {
                let (first, others) = blocks(CALL_FIELDS);
                literal(&mut head, "content-type", "application/grpc");
                let mut trailers = Vec::new();
                literal(&mut trailers, "grpc-status", "0");
                let message = [&[0, 0, 0, 0, 100][..], &body].concat();
                Self { first, others, message: Some(message.clone()), head, body: message, trailers: Some(trailers) }
            }
        }
    }

    fn push_request(&mut self, frames: &mut Vec<u8>, stream: u32) {
        let block = if stream == 1 { &mut self.first } else { &mut self.others };
        // The last field's value ends in digits and perhaps one letter.
        let end = block.len() - 1;
        let mut number = stream / 2;
        for digit in block[end - 3..end].iter_mut().rev() {
            *digit = b'0' + (number % 10) as u8;
            number /= 10;
        }
        match &self.message {
            None => frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, block)),
            Some(message) => {
                frames.extend(frame(HEADERS, END_HEADERS, stream, block));
                frames.extend(frame(DATA, END_STREAM, stream, message));
            }
        }
    }

    fn push_answer(&self, frames: &mut Vec<u8>, stream: u32) {
        frames.extend(frame(HEADERS, END_HEADERS, stream, &self.head));
        match &self.trailers {
            None => frames.extend(frame(DATA, END_STREAM, stream, &self.body)),
            Some(trailers) => {
                frames.extend(frame(DATA, 0, stream, &self.body));
                frames.extend(frame(HEADERS, END_HEADERS | END_STREAM, stream, trailers));
            }
        }
    }
}

/// Sends requests or calls over one connection, `at_once` of them together, and answers them over another, `rounds` times.
///
/// # Panics
/// If what comes is not what was sent.
pub fn run(world: &World, kind: Kind, at_once: usize, rounds: u64) {
    let mut frames = Frames::of(kind);
    block_on(&world.net, async {
        let (near, far) = world.net.pair();
        let exchanges = pooled::<Network>();
        let served = connection::serve(Rc::clone(&world.worker), exchanges, far, None, world.listener, None);
        ringmesh_ring::spawn(served);
        let mut client = Peer::new(&world.net, near);
        // A window that no count of requests uses up.
        let window = frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000_u32.to_be_bytes());
        client.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[]), &window].concat()).await;
        let mut service: Option<Peer> = None;
        let mut stream = 1;
        let (mut sent, mut answers) = (Vec::new(), Vec::new());
        for _ in 0..rounds {
            sent.clear();
            for _ in 0..at_once {
                frames.push_request(&mut sent, stream);
                stream += 2;
            }
            client.send(&sent).await;
            let service = match &mut service {
                Some(service) => service,
                none => {
                    let mut peer = Peer::new(&world.net, world.service.accept().await);
                    while peer.buffer.len() < PREFACE.len() {
                        peer.fill().await;
                    }
                    peer.buffer.consume(PREFACE.len());
                    peer.send(&[frame(SETTINGS, 0, 0, &[]), window.clone()].concat()).await;
                    none.insert(peer)
                }
            };
            answers.clear();
            let mut got = 0;
            while got < at_once {
                let (kind, flags, stream) = service.next().await;
                if matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0 {
                    frames.push_answer(&mut answers, stream);
                    got += 1;
                }
            }
            service.send(&answers).await;
            let mut ended = 0;
            while ended < at_once {
                let (kind, flags, _) = client.next().await;
                ended += usize::from(matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0);
            }
        }
    });
}
