//! One end of a connection.

use std::collections::BTreeMap;
use std::io;
use std::net::TcpStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::frame::{FIRST_WINDOW, Frame, MAX_PAYLOAD_BYTES, PREFACE, flag, kind, setting};
use super::hpack::{self, Decoder};
use super::message::{Outgoing, fault};
use super::transport::Transport;
use crate::message::{Fields, Head, Message};
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
    stream: Box<dyn Transport>,
    side: Side,
    /// What is done unasked.
    pub manners: Manners,
    bytes: Vec<u8>,
    decoder: Decoder,
    /// A header block whose end has not come: its first frame, and the parts so far.
    block: Option<(Frame, Vec<u8>)>,
    pub(super) next_stream: u32,
    /// Per stream, what has come.
    pub(super) came: BTreeMap<u32, Came>,
    record: Option<Record>,
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
    window: i64,
    /// What of ours may come on all streams together.
    granted: i64,
    own_first_window: i64,
    own_max_payload: usize,
    own_table_bytes: usize,
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
    taken: usize,
    /// What may be sent on it, beyond the first window.
    window: i64,
    /// What may come on it, beyond the first window.
    granted: i64,
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

    // ---- what came ----

    /// What has come on a stream so far.
    pub fn stream(&self, stream: u32) -> &Came {
        static NOTHING: LazyLock<Came> = LazyLock::new(Came::default);
        self.came.get(&stream).unwrap_or(&NOTHING)
    }

    /// All streams on which something has come.
    pub fn streams(&self) -> Vec<u32> {
        self.came.iter().filter(|(_, came)| came.at.is_some()).map(|(stream, _)| *stream).collect()
    }

    /// Forgets a stream.
    pub fn forget(&mut self, stream: u32) -> Came {
        self.came.remove(&stream).unwrap_or_default()
    }

    /// How much of a body has come.
    pub fn body_bytes(&self, stream: u32) -> usize {
        self.came.get(&stream).map_or(0, |came| came.taken + came.message.body.len())
    }

    /// Takes what has come of a body out of the memory, once it is so many bytes or the end.
    ///
    /// # Errors
    /// If they do not come.
    pub fn take(&mut self, stream: u32, at_least: usize) -> io::Result<Vec<u8>> {
        self.until(|end| {
            let came = end.came.get(&stream)?;
            (came.ended || came.reset.is_some() || came.message.body.len() >= at_least).then_some(())
        })?;
        let came = self.came.entry(stream).or_default();
        came.taken += came.message.body.len();
        Ok(std::mem::take(&mut came.message.body))
    }

    /// Reads until there is what is looked for.
    ///
    /// # Errors
    /// If the other side ends, breaks a rule or says nothing for too long.
    pub fn until<T>(&mut self, mut look: impl FnMut(&Self) -> Option<T>) -> io::Result<T> {
        let begun = Instant::now();
        loop {
            if let Some(found) = look(self) {
                return Ok(found);
            }
            if begun.elapsed() > DEADLINE * 2 {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.read()?;
        }
    }

    /// Reads whatever comes within this time. False: the other side has ended.
    ///
    /// # Errors
    /// If the other side ends by a reset or breaks a rule.
    pub fn read_for(&mut self, time: Duration) -> io::Result<bool> {
        let begun = Instant::now();
        let before = self.socket().read_timeout()?;
        let result = loop {
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                break Ok(true);
            }
            self.socket().set_read_timeout(Some(left))?;
            match self.read() {
                Ok(()) => {}
                Err(error) if is_timeout(&error) => break Ok(true),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break Ok(false),
                Err(error) => break Err(error),
            }
        };
        self.socket().set_read_timeout(before)?;
        result
    }

    /// Reads one frame and does what politeness asks for.
    ///
    /// # Errors
    /// If the other side ends, breaks a rule or says nothing for too long.
    pub fn read(&mut self) -> io::Result<()> {
        let frame = self.frame()?.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.digest(&frame)
    }

    /// The next frame, not looked at. None: the other side has ended.
    ///
    /// # Errors
    /// If it ends in the middle of one, or says nothing for too long.
    pub fn frame(&mut self) -> io::Result<Option<Frame>> {
        loop {
            if let Some(frame) = Frame::take(&mut self.bytes) {
                return Ok(Some(frame));
            }
            if self.more()? == 0 {
                return if self.bytes.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }

    fn more(&mut self) -> io::Result<usize> {
        let mut buffer = [0; 16 * 1024];
        let count = loop {
            match self.stream.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // rustls: the socket ended without close_notify, which is for the test to mind.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break 0,
                result => break result?,
            }
        };
        self.bytes.extend_from_slice(&buffer[..count]);
        Ok(count)
    }

    /// Takes note of a frame.
    ///
    /// # Errors
    /// If it breaks a rule, or cannot be answered.
    pub fn digest(&mut self, frame: &Frame) -> io::Result<()> {
        if self.manners.minds && frame.payload.len() > self.own_max_payload {
            return Err(broken(format!("{} bytes in a frame", frame.payload.len())));
        }
        if let Some((first, _)) = &self.block
            && (frame.kind != kind::CONTINUATION || frame.stream != first.stream)
        {
            return Err(broken(format!("in the middle of a header block: {frame:?}")));
        }
        let stream = frame.stream;
        match frame.kind {
            kind::DATA => self.digest_data(frame)?,
            kind::HEADERS => {
                let content = frame.content().ok_or_else(|| broken("padding".to_owned()))?;
                self.block = Some((frame.clone(), content.to_vec()));
                if frame.has(flag::END_HEADERS) {
                    self.digest_block()?;
                }
            }
            kind::CONTINUATION => {
                let Some((_, parts)) = &mut self.block else { return Err(broken("a lone CONTINUATION".to_owned())) };
                parts.extend_from_slice(&frame.payload);
                if frame.has(flag::END_HEADERS) {
                    self.digest_block()?;
                }
            }
            kind::RST_STREAM => {
                let came = self.came.entry(stream).or_default();
                came.reset.get_or_insert(frame.number_at(0));
                came.at = Some(Instant::now());
            }
            kind::SETTINGS if frame.has(flag::ACK) => {
                self.acknowledged += 1;
                self.decoder.limit(self.own_table_bytes);
            }
            kind::SETTINGS => {
                for pair in frame.payload.chunks_exact(6) {
                    let name = u16::from_be_bytes([pair[0], pair[1]]);
                    self.settings.insert(name, u32::from_be_bytes([pair[2], pair[3], pair[4], pair[5]]));
                }
                if self.manners.answers {
                    self.answer(&Frame::settings_ack())?;
                }
            }
            kind::PING if frame.has(flag::ACK) => self.pongs.extend(frame.payload.first_chunk::<8>()),
            kind::PING => {
                self.pings += 1;
                if self.manners.answers {
                    self.answer(&frame.clone().with(flag::ACK))?;
                }
            }
            kind::GOAWAY => self.goodbyes.push((frame.number_at(0), frame.number_at(4))),
            kind::WINDOW_UPDATE if stream == 0 => self.window += i64::from(frame.number_at(0)),
            kind::WINDOW_UPDATE => self.came.entry(stream).or_default().window += i64::from(frame.number_at(0)),
            kind::PUSH_PROMISE => return Err(broken("a push that nobody asked for".to_owned())),
            _ => {}
        }
        Ok(())
    }

    fn digest_data(&mut self, frame: &Frame) -> io::Result<()> {
        let content = frame.content().ok_or_else(|| broken("padding".to_owned()))?.to_vec();
        let (stream, counted) = (frame.stream, frame.payload.len() as u32);
        // Until our settings are known there, the first window may be that of the RFC.
        let first = match self.acknowledged {
            0 => self.own_first_window.max(FIRST_WINDOW),
            _ => self.own_first_window,
        };
        let came = self.came.entry(stream).or_default();
        let too_late = came.ended || !came.has_head;
        self.granted -= i64::from(counted);
        came.granted -= i64::from(counted);
        came.message.body.extend_from_slice(&content);
        came.data_frames += 1;
        came.at = Some(Instant::now());
        let too_much = self.granted < 0 || first + came.granted < 0;
        if self.manners.minds && (too_late || too_much) {
            let what = if too_late { "DATA before a head or behind the end" } else { "more than the window allows" };
            return Err(broken(format!("{what}, on stream {stream}")));
        }
        if frame.has(flag::END_STREAM) {
            self.end(stream)?;
        }
        if self.manners.grants && counted > 0 {
            self.granted += i64::from(counted);
            self.answer(&Frame::window_update(0, counted))?;
            let came = self.came.entry(stream).or_default();
            if !came.ended && came.reset.is_none() {
                came.granted += i64::from(counted);
                self.answer(&Frame::window_update(stream, counted))?;
            }
        }
        Ok(())
    }

    /// Takes note of a head, an interim answer or trailers.
    fn digest_block(&mut self) -> io::Result<()> {
        let (frame, block) = self.block.take().expect("a block was begun");
        let fields = self.decoder.decode(&block).map_err(|error| broken(error.0.to_owned()))?;
        let ends = frame.has(flag::END_STREAM);
        let side = self.side;
        let minds = self.manners.minds;
        let came = self.came.entry(frame.stream).or_default();
        came.at = Some(Instant::now());
        if minds {
            let known: &[&str] = match (side, came.has_head) {
                (_, true) => &[],
                (Side::Client, false) => &[":status"],
                (Side::Server, false) => &[":method", ":scheme", ":path", ":authority", ":protocol"],
            };
            let trailers_go_on = came.has_head && !ends;
            let fault = fault(&fields, known).or_else(|| trailers_go_on.then(|| "trailers that do not end".to_owned()));
            if let Some(fault) = fault {
                return Err(broken(fault));
            }
            if came.ended {
                return Err(broken(format!("HEADERS behind the end of stream {}", frame.stream)));
            }
        }
        let head = Head { start: String::new(), fields };
        let is_interim = side == Side::Client && head.field(":status").is_some_and(|status| status.starts_with('1'));
        match (came.has_head, is_interim) {
            (true, _) => came.message.trailers = head.fields,
            (false, true) => came.interim.push(head.fields),
            (false, false) => {
                came.message.head = head;
                came.has_head = true;
            }
        }
        if ends { self.end(frame.stream) } else { Ok(()) }
    }

    fn end(&mut self, stream: u32) -> io::Result<()> {
        let came = self.came.entry(stream).or_default();
        came.ended = true;
        let length = came.message.field("content-length").and_then(|length| length.parse().ok());
        let body = came.taken + came.message.body.len();
        // An answer to HEAD, and one that nothing has changed, tell of a body that they do not have.
        let has_no_body = body == 0 && self.side == Side::Client;
        if self.manners.minds && !has_no_body && length.is_some_and(|length: usize| length != body) {
            return Err(broken(format!("content-length is {length:?}, and {body} bytes came")));
        }
        if let (Side::Server, Some(record)) = (self.side, &self.record) {
            record.request(came.message.clone());
        }
        Ok(())
    }

    /// Sends an answer that politeness asks for; who is gone needs none.
    fn answer(&mut self, frame: &Frame) -> io::Result<()> {
        match self.send(frame) {
            Err(error) if crate::client::is_end(&error) => Ok(()),
            result => result,
        }
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

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn broken(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("HTTP/2 is broken: {what}"))
}
