//! One end of a connection.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::frame::{FIRST_WINDOW, Frame, MAX_PAYLOAD_BYTES, PREFACE, flag, setting};
use super::hpack::{self, Decoder};
use super::message::Outgoing;
use super::transport::Transport;
use crate::message::{Fields, Message};
use crate::service::Record;
use crate::wait::DEADLINE;

/// What an end does by itself.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Answers SETTINGS and PING.
    pub answers: bool,
    /// Gives the window of DATA back when it has come.
    pub grants: bool,
    /// Fails when the other side breaks a rule.
    pub minds: bool,
}

impl Manners {
    /// Those of an ordinary client or server.
    pub const GOOD: Self = Self { answers: true, grants: true, minds: true };
}

/// Which end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that connected.
    Client,
    /// The one that accepted.
    Server,
}

/// One end of a connection, and all that it has seen.
pub struct Connection {
    pub(super) stream: Box<dyn Transport>,
    pub(super) side: Side,
    /// What is done unasked.
    pub manners: Manners,
    pub(super) bytes: Vec<u8>,
    pub(super) decoder: Decoder,
    /// A header block whose end has not come: its first frame, and the parts so far.
    pub(super) block: Option<(Frame, Vec<u8>)>,
    pub(super) next_stream: u32,
    /// Per stream, what has come.
    pub(super) came: BTreeMap<u32, Came>,
    pub(super) record: Option<Record>,
    /// What the other side told in SETTINGS, the newest value of each.
    pub settings: BTreeMap<u16, u32>,
    /// Settings of ours that were acknowledged.
    pub acknowledged: usize,
    /// Payloads of PING that came back.
    pub pongs: Vec<[u8; 8]>,
    /// PINGs that came.
    pub pings: usize,
    /// Every GOAWAY that came: the last stream it knows, and its code.
    pub goodbyes: Vec<(u32, u32)>,
    /// What may be sent on all streams together.
    pub(super) window: i64,
    /// What of ours may come on all streams together.
    pub(super) granted: i64,
    pub(super) own_first_window: i64,
    pub(super) own_max_payload: usize,
    pub(super) own_table_bytes: usize,
}

/// What has come on a stream.
#[derive(Clone, Debug, Default)]
pub struct Came {
    /// Interim answers.
    pub interim: Vec<Fields>,
    /// The message as far as it has come.
    pub message: Message,
    /// Its head is there.
    pub has_head: bool,
    /// It ended well.
    pub ended: bool,
    /// It was reset, with this code.
    pub reset: Option<u32>,
    /// When its last frame came.
    pub at: Option<Instant>,
    /// DATA frames, empty ones too.
    pub data_frames: usize,
    /// What has come of it that was taken by [`Connection::take`].
    pub(super) taken: usize,
    /// What may be sent on it, beyond the first window.
    pub(super) window: i64,
    /// What may come on it, beyond the first window.
    pub(super) granted: i64,
    pub(super) seen_head: bool,
    pub(super) seen_whole: bool,
}

impl Connection {
    /// A client's end: says the preface and these settings.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn client(stream: impl Transport + 'static, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut connection = Self::silent(stream, Side::Client);
        connection.send_bytes(PREFACE)?;
        connection.send_settings(settings)?;
        Ok(connection)
    }

    /// A server's end: reads the preface and says these settings.
    ///
    /// # Errors
    /// If the other side is gone, or says something else.
    pub fn server(stream: impl Transport + 'static, settings: &[(u16, u32)]) -> io::Result<Self> {
        let mut connection = Self::silent(stream, Side::Server);
        while connection.bytes.len() < PREFACE.len() {
            if connection.more()? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let preface: Vec<u8> = connection.bytes.drain(..PREFACE.len()).collect();
        if preface != PREFACE {
            return Err(broken(format!("no preface: {}", String::from_utf8_lossy(&preface).escape_debug())));
        }
        connection.send_settings(settings)?;
        Ok(connection)
    }

    /// An end that has not said anything.
    pub fn silent(stream: impl Transport + 'static, side: Side) -> Self {
        Self {
            stream: Box::new(stream),
            side,
            manners: Manners::GOOD,
            bytes: Vec::new(),
            decoder: Decoder::default(),
            block: None,
            next_stream: if side == Side::Client { 1 } else { 2 },
            came: BTreeMap::new(),
            record: None,
            settings: BTreeMap::new(),
            acknowledged: 0,
            pongs: Vec::new(),
            pings: 0,
            goodbyes: Vec::new(),
            window: FIRST_WINDOW,
            granted: FIRST_WINDOW,
            own_first_window: FIRST_WINDOW,
            own_max_payload: MAX_PAYLOAD_BYTES,
            own_table_bytes: hpack::FIRST_TABLE_BYTES,
        }
    }

    /// Tells whole requests to a service.
    pub(super) fn recorded(mut self, record: Record) -> Self {
        self.record = Some(record);
        self
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        self.stream.socket()
    }

    /// What was chosen by ALPN.
    pub fn protocol(&self) -> Option<&[u8]> {
        self.stream.protocol()
    }

    /// How long a read may take from now on.
    ///
    /// # Panics
    /// If that is no time at all.
    pub fn set_patience(&self, patience: Duration) {
        self.socket().set_read_timeout(Some(patience)).expect("a time");
    }

    // ---- sending ----

    /// Sends bytes that need be no frame.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()
    }

    /// Sends a frame, whatever it is.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send(&mut self, frame: &Frame) -> io::Result<()> {
        self.send_bytes(&frame.bytes())
    }

    /// Sends frames, in one piece.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send_all(&mut self, frames: &[Frame]) -> io::Result<()> {
        self.send_bytes(&frames.iter().flat_map(Frame::bytes).collect::<Vec<u8>>())
    }

    /// Sends SETTINGS, and keeps to them.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send_settings(&mut self, settings: &[(u16, u32)]) -> io::Result<()> {
        for (name, value) in settings {
            match *name {
                setting::INITIAL_WINDOW_SIZE => self.own_first_window = i64::from(*value),
                setting::MAX_FRAME_SIZE => self.own_max_payload = *value as usize,
                setting::HEADER_TABLE_SIZE => self.own_table_bytes = *value as usize,
                _ => {}
            }
        }
        self.send(&Frame::settings(settings))
    }

    /// Sends a head or trailers on a stream.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send_fields(&mut self, stream: u32, fields: &[(&str, &str)], ends: Ends) -> io::Result<()> {
        self.send_block(stream, &hpack::block(fields), ends)
    }

    /// Sends a header block in as many frames as it takes.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn send_block(&mut self, stream: u32, block: &[u8], ends: Ends) -> io::Result<()> {
        let mut parts = block.chunks(MAX_PAYLOAD_BYTES);
        let mut frames = vec![Frame::headers(stream, parts.next().unwrap_or_default())];
        frames.extend(parts.map(|part| Frame::continuation(stream, part)));
        if frames.len() > 1 {
            frames[0].flags = 0;
            frames.last_mut().expect("there are two").flags = flag::END_HEADERS;
        }
        if ends == Ends::Yes {
            frames[0].flags |= flag::END_STREAM;
        }
        self.send_all(&frames)
    }

    /// Sends content as the windows allow, and reads what comes while it waits for them.
    ///
    /// # Errors
    /// If the other side is gone, breaks a rule or resets the stream.
    pub fn send_data(&mut self, stream: u32, mut data: &[u8], ends: Ends) -> io::Result<()> {
        loop {
            let room = self.until(|end| match end.stream(stream).reset {
                Some(code) => Some(Err(io::Error::new(io::ErrorKind::BrokenPipe, format!("reset with {code}")))),
                None if data.is_empty() => Some(Ok(0)),
                None => Some(end.room(stream)).filter(|room| *room > 0).map(Ok),
            })??;
            let (part, rest) = data.split_at(room.min(data.len()).min(self.max_payload()));
            data = rest;
            let frame = Frame::data(stream, part);
            let last = data.is_empty();
            self.window -= part.len() as i64;
            self.came.entry(stream).or_default().window -= part.len() as i64;
            self.send(&if last && ends == Ends::Yes { frame.ending() } else { frame })?;
            if last {
                return Ok(());
            }
        }
    }

    /// Sends a whole message on a stream.
    ///
    /// # Errors
    /// As [`Self::send_data`].
    pub fn send_message(&mut self, stream: u32, message: &Outgoing) -> io::Result<()> {
        let ends = |last: bool| if last { Ends::Yes } else { Ends::No };
        for interim in &message.interim {
            self.send_fields(stream, &borrowed(interim), Ends::No)?;
        }
        let (has_body, has_trailers) = (!message.body.is_empty(), !message.trailers.is_empty());
        self.send_fields(stream, &borrowed(&message.fields), ends(!has_body && !has_trailers))?;
        if has_body {
            self.send_data(stream, &message.body, ends(!has_trailers))?;
        }
        if has_trailers {
            self.send_fields(stream, &borrowed(&message.trailers), Ends::Yes)?;
        }
        Ok(())
    }

    /// Allows so many bytes more on a stream, and on the connection.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn grant(&mut self, stream: u32, bytes: u32) -> io::Result<()> {
        self.granted += i64::from(bytes);
        self.came.entry(stream).or_default().granted += i64::from(bytes);
        self.send_all(&[Frame::window_update(0, bytes), Frame::window_update(stream, bytes)])
    }

    /// Allows so many bytes more on all streams together.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn grant_connection(&mut self, bytes: u32) -> io::Result<()> {
        self.granted += i64::from(bytes);
        self.send(&Frame::window_update(0, bytes))
    }

    /// What may be sent on a stream now.
    pub fn room(&self, stream: u32) -> usize {
        let first = self.settings.get(&setting::INITIAL_WINDOW_SIZE).map_or(FIRST_WINDOW, |value| i64::from(*value));
        let own = first + self.came.get(&stream).map_or(0, |came| came.window);
        usize::try_from(own.min(self.window)).unwrap_or(0)
    }

    fn max_payload(&self) -> usize {
        self.settings.get(&setting::MAX_FRAME_SIZE).map_or(MAX_PAYLOAD_BYTES, |value| *value as usize)
    }

    /// Ends the connection by a reset.
    ///
    /// # Panics
    /// If the kernel knows no linger.
    pub fn slam(self) {
        rustix::net::sockopt::set_socket_linger(self.socket(), Some(Duration::ZERO)).expect("sockets know it");
    }

    /// Resets a stream.
    ///
    /// # Errors
    /// If the other side is gone.
    pub fn reset(&mut self, stream: u32, code: u32) -> io::Result<()> {
        self.send(&Frame::reset(stream, code))
    }

    /// Sends PING and waits for its answer: what was sent before has been looked at, and the connection lives.
    ///
    /// # Errors
    /// If it does not come.
    pub fn ping(&mut self) -> io::Result<()> {
        let before = self.pongs.len();
        self.send(&Frame::ping(*b"ringmesh"))?;
        self.until(|end| (end.pongs.len() > before).then_some(()))
    }

    /// Waits until the other side says GOAWAY, with whatever code, and gives the last stream it knows and the code.
    ///
    /// # Errors
    /// If it does not.
    pub fn goodbye(&mut self) -> io::Result<(u32, u32)> {
        self.until(|end| end.goodbyes.last().copied())
    }

    /// Reads until the other side ends, by a reset or otherwise.
    ///
    /// # Errors
    /// If it does not end, or breaks a rule.
    pub fn until_end(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            match self.read() {
                Err(error) if crate::client::is_end(&error) => return Ok(()),
                Err(error) => return Err(error),
                Ok(()) if begun.elapsed() > DEADLINE * 2 => return Err(io::ErrorKind::TimedOut.into()),
                Ok(()) => {}
            }
        }
    }
}

/// Whether a frame ends its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ends {
    /// It does.
    Yes,
    /// More follows.
    No,
}

/// Fields as they are sent.
pub fn borrowed(fields: &Fields) -> Vec<(&str, &str)> {
    fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

pub(super) fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/2 is broken: {what}"))
}
