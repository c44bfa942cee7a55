//! What comes in a connection: read frame by frame, remembered per stream, and held against the rules.

use std::io;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use super::connection::{Came, Connection, Side, broken};
use super::frame::{FIRST_WINDOW, Frame, flag, kind};
use super::message::fault;
use crate::message::Head;
use crate::wait::DEADLINE;

impl Connection {
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

    pub(super) fn more(&mut self) -> io::Result<usize> {
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
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
