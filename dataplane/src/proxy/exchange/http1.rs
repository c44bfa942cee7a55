//! The sides of an exchange that speak HTTP/1.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use bytes::Buf;
use http::{HeaderMap, Response, header};
use ringmesh_codec::body::{BodyScanner, State};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::head::{Method, Version};
use ringmesh_codec::http1::{Parsed, RequestHead, ResponseHead};
use ringmesh_codec::limits::Limits;
use ringmesh_codec::refusal::Refusal;
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::{Error as StreamError, Stream};

use super::data::Data;
use super::head::{self, Framing};
use super::{Answer, Lost, More, Part, Reply, Sink, Source};
use crate::proxy::connection::Connection;
use crate::proxy::http1::{client_gone, is_whole};
use crate::proxy::http2::head::parse_length;
use crate::proxy::progress::Uploaded;
use crate::proxy::transport::Transport;

/// How far a body has come.
pub struct Progress {
    /// Where it ends.
    pub scanner: BodyScanner,
    /// The trailer section so far; the scanner bounds it.
    trailers: Vec<u8>,
    full_reads: u32,
}

impl Progress {
    /// A body of which this much has come.
    pub fn new(scanner: BodyScanner) -> Self {
        Self { scanner, trailers: Vec::new(), full_reads: 0 }
    }

    fn is_done(&self) -> bool {
        self.scanner.state() == State::Done && self.trailers.is_empty()
    }

    /// What the buffer has of it.
    fn take(&mut self, buffer: &mut Buffer) -> Result<Option<Part>, Lost> {
        while !buffer.is_empty() && self.scanner.state() == State::More {
            let piece = self.scanner.next_piece(buffer.filled());
            let piece = piece.map_err(|refusal| match refusal {
                Refusal::BodyTooLarge => Lost::TooLarge,
                _ => Lost::Broken,
            })?;
            self.trailers.extend_from_slice(&buffer.filled()[piece.trailers]);
            let data = (!piece.data.is_empty()).then(|| buffer.slice(piece.data));
            buffer.consume(piece.consumed);
            if let Some(data) = data {
                return Ok(Some(Part::Data(Data::Slice(data))));
            }
        }
        if self.scanner.state() == State::More {
            return Ok(None);
        }
        let section = std::mem::take(&mut self.trailers);
        // The blank line alone is no trailer.
        let trailers = match section.len() {
            0..=2 => None,
            _ => head::trailers_to_http2(&section).map_err(|_unfit| Lost::Broken)?,
        };
        Ok(Some(Part::End(trailers)))
    }

    async fn next<S: Stream>(
        &mut self,
        transport: &Transport<S>,
        buffer: &mut Buffer,
        stop: &Stop,
    ) -> Result<Part, Lost> {
        loop {
            if let Some(part) = self.take(buffer)? {
                return Ok(part);
            }
            buffer.compact();
            if self.full_reads >= 2 {
                buffer.grow();
            }
            let room = buffer.spare();
            match transport.fill(buffer, stop).await? {
                0 => self.scanner.close().map_err(|_refusal| Lost::Gone)?,
                count => self.full_reads += u32::from(count == room),
            }
        }
    }
}

/// A client's body, which comes on a connection.
pub struct Body<'a, S: Stream> {
    transport: &'a Transport<S>,
    buffer: &'a mut Buffer,
    progress: &'a mut Progress,
}

impl<'a, S: Stream> Body<'a, S> {
    /// A body whose next bytes may be in `buffer`.
    pub fn new(transport: &'a Transport<S>, buffer: &'a mut Buffer, progress: &'a mut Progress) -> Self {
        Self { transport, buffer, progress }
    }
}

impl<S: Stream> Source for Body<'_, S> {
    fn is_done(&self) -> bool {
        self.progress.is_done()
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        self.progress.take(self.buffer).transpose()
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        self.progress.next(self.transport, self.buffer, stop).await
    }

    fn passed(&mut self, _bytes: usize) {}
}

/// A body that goes out on a connection, after its head.
pub struct Outgoing<'a, S: Stream> {
    transport: &'a Transport<S>,
    output: &'a mut Output,
    length: BodyLength,
    sent: u64,
}

impl<'a, S: Stream> Outgoing<'a, S> {
    /// A body of that length; `output` has the head.
    pub fn new(transport: &'a Transport<S>, output: &'a mut Output, length: BodyLength) -> Self {
        Self { transport, output, length, sent: 0 }
    }
}

impl<S: Stream> Sink for Outgoing<'_, S> {
    async fn flush(&mut self, stop: &Stop) -> Result<(), Lost> {
        if self.output.is_empty() {
            return Ok(());
        }
        let flushed = self.transport.flush(self.output, stop).await;
        self.output.clear();
        Ok(flushed?)
    }

    async fn data(&mut self, data: Data, more: More, stop: &Stop) -> Result<(), Lost> {
        let bytes = data.remaining();
        self.sent += bytes as u64;
        match self.length {
            BodyLength::Chunked => {
                self.output.push_bytes(format!("{bytes:x}\r\n").as_bytes());
                data.push_to(self.output);
                self.output.push_bytes(b"\r\n");
            }
            BodyLength::Fixed(length) if self.sent > length => return Err(Lost::Broken),
            BodyLength::None => return Err(Lost::Broken),
            BodyLength::Fixed(_) | BodyLength::UntilClose => data.push_to(self.output),
        }
        match more {
            More::Follows => self.flush(stop).await,
            More::Nothing => self.end(None, stop).await,
        }
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, stop: &Stop) -> Result<(), Lost> {
        match self.length {
            BodyLength::Chunked => head::last_chunk(trailers.as_ref(), self.output),
            BodyLength::Fixed(length) if self.sent < length => return Err(Lost::Broken),
            _ => {}
        }
        self.flush(stop).await
    }
}

/// An endpoint's response.
pub struct Awaited<'a, S: Stream> {
    /// What comes of it.
    pub transport: &'a Transport<S>,
    /// Its head.
    pub head: &'a mut ResponseHead,
    /// Bytes that have come and were not passed on.
    pub buffer: Buffer,
    /// What was asked for.
    pub method: Method,
    /// Bounds of its head.
    pub limits: &'a Limits,
    /// The protocol that was asked for.
    asked: Option<&'a [u8]>,
    body: Option<Progress>,
    begun: bool,
}

impl<'a, S: Stream> Awaited<'a, S> {
    /// A response of which nothing has come.
    pub fn new(
        transport: &'a Transport<S>,
        head: &'a mut ResponseHead,
        buffer: Buffer,
        method: Method,
        limits: &'a Limits,
    ) -> Self {
        head.clear();
        Self { transport, head, buffer, method, limits, asked: None, body: None, begun: false }
    }

    /// A response that may switch to this protocol.
    pub fn asking_for(self, protocol: &'a [u8]) -> Self {
        Self { asked: Some(protocol), ..self }
    }

    /// Whether a 101 is an answer to what was asked (RFC 9110 section 7.8).
    fn is_agreed(&self) -> bool {
        let named = self.head.upgrade(self.buffer.filled());
        self.asked.is_some_and(|asked| named.is_some_and(|named| named.eq_ignore_ascii_case(asked)))
    }

    /// Whether the connection may serve another request, once all of the response was read.
    pub fn persists(&self) -> bool {
        self.head.persistent(self.method)
            && self.head.framing(self.method) != BodyLength::UntilClose
            && self.buffer.is_empty()
            && self.is_done()
    }
}

impl<S: Stream> Source for Awaited<'_, S> {
    fn is_done(&self) -> bool {
        self.body.as_ref().is_some_and(Progress::is_done)
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        self.body.as_mut()?.take(&mut self.buffer).transpose()
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        match &mut self.body {
            Some(body) => body.next(self.transport, &mut self.buffer, stop).await,
            None => Err(Lost::Gone),
        }
    }

    fn passed(&mut self, _bytes: usize) {}
}

impl<S: Stream> Answer for Awaited<'_, S> {
    async fn head(&mut self, stop: &Stop) -> Result<Response<()>, Lost> {
        loop {
            if !self.buffer.is_empty() {
                match self.head.parse(self.buffer.filled(), self.limits) {
                    Ok(Parsed::Complete) => break,
                    Ok(Parsed::Partial) => {}
                    Err(refusal) => {
                        tracing::debug!(target: "codec", endpoint = ?self.transport.peer_address(), "unreadable response: {refusal}");
                        return Err(Lost::Broken);
                    }
                }
            }
            if self.buffer.spare() == 0 {
                // Interim heads may have left room in front.
                self.buffer.compact();
            }
            if self.buffer.spare() == 0 {
                self.buffer.grow();
            }
            if self.buffer.spare() == 0 {
                return Err(Lost::Broken);
            }
            match self.transport.fill(&mut self.buffer, stop).await {
                Ok(0) if self.begun => return Err(Lost::Cut),
                Ok(0) => return Err(Lost::Gone),
                Ok(_) => self.begun = true,
                Err(StreamError::Io(_)) if self.begun => return Err(Lost::Cut),
                Err(error) => return Err(error.into()),
            }
        }
        if self.head.switches_protocols() && !self.is_agreed() {
            // Nobody asked for it.
            return Err(Lost::Broken);
        }
        let response = head::response_to_http2(self.head, self.buffer.filled()).map_err(|_unfit| Lost::Broken)?;
        self.buffer.consume(self.head.len());
        let length = self.head.framing(self.method);
        if self.head.interim() {
            self.head.clear();
        } else {
            self.body = Some(Progress::new(BodyScanner::new(length, self.limits)));
        }
        Ok(response)
    }
}

/// What an HTTP/1 client gets.
pub struct Download<'a, N: Net> {
    body: Outgoing<'a, N::Stream>,
    connection: &'a Connection<N>,
    version: Version,
    method: Method,
    wants_more: bool,
    may_half_close: bool,
    uploaded: &'a Uploaded,
    /// Whether the connection may serve another request once all of the response was sent.
    pub persists: bool,
}

impl<'a, N: Net> Download<'a, N> {
    /// The response to a request on that connection.
    pub fn new(
        connection: &'a Connection<N>,
        request: &RequestHead,
        output: &'a mut Output,
        may_half_close: bool,
        uploaded: &'a Uploaded,
    ) -> Self {
        output.clear();
        Self {
            body: Outgoing::new(&connection.transport, output, BodyLength::None),
            connection,
            version: request.version(),
            method: request.known_method(),
            wants_more: request.persistent(),
            may_half_close,
            uploaded,
            persists: false,
        }
    }

    /// How the body is sent to this client.
    fn length(&self, response: &Response<()>, more: More) -> BodyLength {
        let status = response.status().as_u16();
        if self.method == Method::Head || status == 204 || status == 304 {
            return BodyLength::None;
        }
        let told = response.headers().get(header::CONTENT_LENGTH);
        match (told.map(parse_length), more) {
            (Some(Some(length)), _) => BodyLength::Fixed(length),
            (_, More::Nothing) => BodyLength::Fixed(0),
            _ if self.version == Version::Http10 => BodyLength::UntilClose,
            _ => BodyLength::Chunked,
        }
    }
}

impl<N: Net> Sink for Download<'_, N> {
    async fn flush(&mut self, stop: &Stop) -> Result<(), Lost> {
        self.body.flush(stop).await
    }

    async fn data(&mut self, data: Data, more: More, stop: &Stop) -> Result<(), Lost> {
        self.body.data(data, more, stop).await
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, stop: &Stop) -> Result<(), Lost> {
        self.body.end(trailers, stop).await
    }
}

impl<N: Net> Reply for Download<'_, N> {
    async fn interim(&mut self, response: Response<()>, stop: &Stop) -> Result<(), Lost> {
        if self.version == Version::Http10 {
            return Ok(());
        }
        let framing = Framing { length: BodyLength::None, connection: None };
        head::response_to_http1(&response, framing, self.body.output);
        self.body.flush(stop).await
    }

    fn begin(&mut self, response: Response<()>, more: More) -> Result<(), Lost> {
        let length = self.length(&response, more);
        self.persists = self.wants_more
            && self.connection.goes_on()
            && length != BodyLength::UntilClose
            && (self.uploaded.is_whole() || !is_whole(length, 0));
        let connection = match (self.persists, self.version) {
            (false, _) => Some("close"),
            (true, Version::Http10) => Some("keep-alive"),
            (true, Version::Http11) => None,
        };
        head::response_to_http1(&response, Framing { length, connection }, self.body.output);
        self.body.length = length;
        Ok(())
    }

    async fn gone(&self) {
        client_gone(&self.connection.transport, self.may_half_close).await;
    }
}
