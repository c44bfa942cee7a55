//! The connection that two proxies share, frame by frame, from `dataplane/src/mux/PROTOCOL.md`: a raw peer on either side,
//! which says whatever it is told to.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::{ClientConfig, ServerConfig, ServerConnection, StreamOwned};

use crate::client::is_end;
use crate::message::{Message, Reader, WithoutLength};
use crate::service::Service;
use crate::tls;
use crate::wait::DEADLINE;

/// The name in ALPN under which a channel carries opaque bytes or HTTP/1.1.
pub const NAME: &[u8] = b"ringmesh/1";

/// The name under which it carries HTTP/1.1 in place of another version.
pub const NAME_HTTP: &[u8] = b"ringmesh-http/1";

/// What a channel may send before it is given credit, in bytes.
pub const FIRST_WINDOW: usize = 65_536;

/// Most bytes of one frame of data.
pub const MAX_DATA: usize = 32_768;

/// The flag of data behind which nothing follows.
pub const END: u8 = 1;

/// Kinds of frames.
#[allow(missing_docs, reason = "the names are those of the page that says what they mean")]
pub mod kind {
    pub const HELLO: u8 = 0;
    pub const OPEN: u8 = 1;
    pub const DATA: u8 = 2;
    pub const CREDIT: u8 = 3;
    pub const CLOSE: u8 = 4;
    pub const RESET: u8 = 5;
    pub const PING: u8 = 6;
    pub const PONG: u8 = 7;
    pub const GOAWAY: u8 = 8;
}

/// One frame, good or bad.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Of which channel.
    pub channel: u32,
    /// What it carries.
    pub payload: Vec<u8>,
}

impl Frame {
    /// A frame.
    pub fn new(kind: u8, channel: u32, payload: impl Into<Vec<u8>>) -> Self {
        Self { kind, flags: 0, channel, payload: payload.into() }
    }

    /// As bytes. Its length may be told wrongly by whoever changes them.
    ///
    /// # Panics
    /// If it carries more than its length can tell.
    pub fn bytes(&self) -> Vec<u8> {
        let length = u16::try_from(self.payload.len()).expect("16 bits of length").to_be_bytes();
        [&[self.kind, self.flags][..], &length, &self.channel.to_be_bytes(), &self.payload].concat()
    }
}

/// So many channels may be open.
pub fn hello(channels: u32) -> Vec<u8> {
    Frame::new(kind::HELLO, 0, channels.to_be_bytes()).bytes()
}

/// Opens a channel.
pub fn open(channel: u32) -> Vec<u8> {
    Frame::new(kind::OPEN, channel, []).bytes()
}

/// Bytes of a channel, in as many frames as they need.
pub fn data(channel: u32, bytes: impl AsRef<[u8]>) -> Vec<u8> {
    bytes.as_ref().chunks(MAX_DATA).flat_map(|part| Frame::new(kind::DATA, channel, part).bytes()).collect()
}

/// The last bytes of a channel, in one frame.
pub fn last(channel: u32, bytes: impl Into<Vec<u8>>) -> Vec<u8> {
    Frame { flags: END, ..Frame::new(kind::DATA, channel, bytes) }.bytes()
}

/// So many more bytes may come.
pub fn credit(channel: u32, bytes: u32) -> Vec<u8> {
    Frame::new(kind::CREDIT, channel, bytes.to_be_bytes()).bytes()
}

/// Ends a channel in order.
pub fn close(channel: u32) -> Vec<u8> {
    Frame::new(kind::CLOSE, channel, []).bytes()
}

/// Breaks a channel off.
pub fn reset(channel: u32) -> Vec<u8> {
    Frame::new(kind::RESET, channel, [0]).bytes()
}

/// Asks whether the other side is there.
pub fn ping() -> Vec<u8> {
    Frame::new(kind::PING, 0, *b"answerme").bytes()
}

/// No further channels.
pub fn goaway() -> Vec<u8> {
    Frame::new(kind::GOAWAY, 0, []).bytes()
}

/// A stream that ends in a socket.
trait Duplex: Read + Write + Send {}

impl<S: Read + Write + Send> Duplex for S {}

/// What has come in a channel.
#[derive(Clone, Debug, Default)]
pub struct Channel {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// The other side sends no more.
    pub ended: bool,
    /// The other side has closed it.
    pub closed: bool,
    /// It was reset, for this cause.
    pub reset: Option<u8>,
    /// Credit that the other side has given beyond the first window.
    pub credit: u64,
}

impl Channel {
    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.ended || self.closed || self.reset.is_some()
    }
}

/// What a peer does by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// Answers PING and GOAWAY.
    pub answers: bool,
    /// Gives credit for what it has read.
    pub grants: bool,
}

/// One side of a trunk.
pub struct Peer {
    stream: Box<dyn Duplex>,
    socket: TcpStream,
    bytes: Vec<u8>,
    /// What was agreed on.
    pub protocol: Option<Vec<u8>>,
    /// What has come, by channel.
    pub channels: BTreeMap<u32, Channel>,
    /// How many channels the other side takes, once it has said so.
    pub takes: Option<u32>,
    /// The other side wants no further channels.
    pub left: bool,
    /// PONGs that have come.
    pub pongs: u64,
    /// What it does by itself.
    pub manners: Manners,
    next: u32,
}

impl Peer {
    /// Connects a client that offers this name, which must be agreed on.
    ///
    /// # Errors
    /// If the server refuses, or chooses something else.
    pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Self> {
        Self::over_tls(tls::connect(address, config)?.into_inner())
    }

    /// A client on a connection by TLS, on which one of the names must have been agreed on.
    ///
    /// # Errors
    /// If it was not.
    pub fn over_tls(stream: tls::Stream) -> io::Result<Self> {
        let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
        if !protocol.as_ref().is_some_and(|name| name == NAME || name == NAME_HTTP) {
            let chosen = protocol.map(|name| name.escape_ascii().to_string());
            return Err(io::Error::other(format!("ALPN chose {chosen:?}")));
        }
        let socket = stream.sock.try_clone()?;
        Ok(Self::over(Box::new(stream), socket, protocol))
    }

    /// Connects a client that has said HELLO.
    ///
    /// # Panics
    /// If nobody accepts.
    #[track_caller]
    pub fn greeted(address: SocketAddr, config: &Arc<ClientConfig>) -> Self {
        let greeted = Self::connect(address, config).and_then(|mut peer| peer.send(hello(0)).map(|()| peer));
        greeted.unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Takes a server's side, by whatever was agreed on.
    ///
    /// # Errors
    /// If the handshake fails.
    pub fn accept(socket: TcpStream, config: &Arc<ServerConfig>) -> io::Result<Self> {
        let copy = socket.try_clone()?;
        let connection = ServerConnection::new(config.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let protocol = stream.conn.alpn_protocol().map(<[u8]>::to_vec);
        Ok(Self::over(Box::new(stream), copy, protocol))
    }

    fn over(stream: Box<dyn Duplex>, socket: TcpStream, protocol: Option<Vec<u8>>) -> Self {
        let manners = Manners { answers: true, grants: true };
        Self {
            stream,
            socket,
            bytes: Vec::new(),
            protocol,
            channels: BTreeMap::new(),
            takes: None,
            left: false,
            pongs: 0,
            manners,
            next: 1,
        }
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.socket
    }

    /// Ends the connection as it is.
    pub fn cut(&self) {
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// A number that was not used.
    pub fn next_channel(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    /// Sends bytes.
    ///
    /// # Errors
    /// If the other side is gone, or takes nothing.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.stream.write_all(bytes.as_ref())?;
        self.stream.flush()
    }

    /// The next frame, of which note was taken. None: the other side has ended.
    ///
    /// # Errors
    /// If nothing comes, or the connection breaks.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = self.take_frame() {
                self.note(&frame)?;
                return Ok(Some(frame));
            }
            let mut buffer = [0; 32 * 1024];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(None),
                Ok(count) => self.bytes.extend_from_slice(&buffer[..count]),
                Err(error) if is_end(&error) => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take_frame(&mut self) -> Option<Frame> {
        let header: [u8; 8] = *self.bytes.first_chunk()?;
        let [kind, flags, high, low, channel @ ..] = header;
        let whole = 8 + usize::from(u16::from_be_bytes([high, low]));
        if self.bytes.len() < whole {
            return None;
        }
        let payload = self.bytes.drain(..whole).skip(8).collect();
        Some(Frame { kind, flags, channel: u32::from_be_bytes(channel), payload })
    }

    fn note(&mut self, frame: &Frame) -> io::Result<()> {
        let number = || frame.payload.first_chunk().map(|bytes| u32::from_be_bytes(*bytes)).unwrap_or_default();
        let channel = match frame.kind {
            kind::OPEN..=kind::RESET => Some(self.channels.entry(frame.channel).or_default()),
            _ => None,
        };
        match (frame.kind, channel) {
            (kind::HELLO, _) => self.takes = Some(number()),
            (kind::DATA, Some(channel)) => {
                channel.bytes.extend_from_slice(&frame.payload);
                channel.ended |= frame.flags & END != 0;
                if self.manners.grants && !frame.payload.is_empty() && !channel.is_over() {
                    let again = credit(frame.channel, frame.payload.len() as u32);
                    return self.send(again);
                }
            }
            (kind::CREDIT, Some(channel)) => channel.credit += u64::from(number()),
            (kind::CLOSE, Some(channel)) => channel.closed = true,
            (kind::RESET, Some(channel)) => channel.reset = Some(frame.payload.first().copied().unwrap_or_default()),
            (kind::PING, _) if self.manners.answers => {
                return self.send(Frame::new(kind::PONG, 0, frame.payload.clone()).bytes());
            }
            (kind::PONG, _) => self.pongs += 1,
            (kind::GOAWAY, _) => {
                let is_first = !std::mem::replace(&mut self.left, true);
                if is_first && self.manners.answers {
                    return self.send(goaway());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads until there is something to see.
    ///
    /// # Errors
    /// If the other side ends before, or nothing comes.
    pub fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> io::Result<T> {
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if self.frame()?.is_none() {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Reads what comes within this time. Whether the other side has not ended.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn read_for(&mut self, time: Duration) -> io::Result<bool> {
        let until = Instant::now() + time;
        loop {
            let left = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.socket.set_read_timeout(Some(left))?;
            let frame = self.frame();
            self.socket.set_read_timeout(Some(DEADLINE))?;
            match frame {
                Ok(None) => return Ok(false),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(true);
                }
                Err(error) => return Err(error),
                Ok(Some(_)) if Instant::now() >= until => return Ok(true),
                Ok(Some(_)) => {}
            }
        }
    }

    /// Reads until the other side ends; how long that took. What comes meanwhile is dropped.
    ///
    /// # Errors
    /// If it does not.
    pub fn until_end(&mut self) -> io::Result<Duration> {
        let begun = Instant::now();
        while self.frame()?.is_some() {
            if begun.elapsed() > DEADLINE {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
        Ok(begun.elapsed())
    }

    /// Opens a channel and sends this in it.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn ask(&mut self, request: impl AsRef<[u8]>) -> io::Result<u32> {
        let channel = self.next_channel();
        self.send([open(channel), data(channel, request)].concat())?;
        Ok(channel)
    }

    /// The answer to a GET in a channel, which it leaves open.
    ///
    /// # Errors
    /// If there is no whole one.
    pub fn answer(&mut self, channel: u32) -> io::Result<Message> {
        self.until(|peer| {
            let came = peer.channels.get(&channel)?;
            let mut reader = Reader::new(&came.bytes[..]);
            let whole = reader.head().and_then(|head| match head {
                Some(head) => reader.rest_of(head, WithoutLength::Empty).map(Some),
                None => Ok(None),
            });
            match whole {
                Ok(Some(message)) => Some(Ok(message)),
                Ok(None) | Err(_) if !came.is_over() => None,
                Ok(None) => Some(Err(io::ErrorKind::UnexpectedEof.into())),
                Err(error) => Some(Err(error)),
            }
        })?
    }

    /// Asks in a channel of its own, which it closes, and reads the answer.
    ///
    /// # Errors
    /// If there is no whole one.
    pub fn get(&mut self, path: &str) -> io::Result<Message> {
        let channel = self.ask(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"))?;
        let answer = self.answer(channel)?;
        self.channels.remove(&channel);
        self.send(close(channel))?;
        Ok(answer)
    }
}

/// A server that leaves each connection to `talk`, once the handshake is over. The connection ends when that returns.
pub fn server(
    config: Arc<ServerConfig>,
    talk: impl Fn(&mut Peer) -> io::Result<()> + Send + Sync + 'static,
) -> Service {
    Service::sockets(move |socket| {
        let Ok(mut peer) = Peer::accept(socket, &config) else { return };
        // What becomes of it is for the test to judge.
        let _ = talk(&mut peer);
    })
}
