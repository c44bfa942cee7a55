//! An HTTP/1.1 server whose answers have a given shape, speed and rate of faults.

use std::time::Duration;

use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Output, Size, Slice};

use super::Shared;
use super::delay::Delay;
use crate::load;
use crate::message::{self, Body, Fault, Framing, Method, RequestHead, fill, read_body, read_head};
use crate::wait::{First, first};

/// How long a request that is to hang is left without an answer. Longer than any client waits.
pub(super) const HANG: Duration = Duration::from_secs(3_600);

/// Bytes in flight at once of an answer's body.
const SEND_BYTES: usize = 1024 * 1024;

/// What is answered.
#[derive(Clone, Debug)]
pub struct Http {
    /// Status of the answers.
    pub status: u16,
    /// Bytes in the body of each.
    pub body_bytes: u64,
    /// How the body is sent.
    pub form: ResponseForm,
    /// Further fields.
    pub fields: Vec<(String, String)>,
    /// From the end of the request to the beginning of the answer.
    pub delay: Delay,
    /// Share of requests, 0 to 1, that are answered with 500.
    pub errors: f64,
    /// Share of requests that get no answer, their connection left open.
    pub hangs: f64,
    /// Share of requests whose connection (in HTTP/2 whose stream) is reset instead of an answer.
    pub resets: f64,
}

/// How an answer's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseForm {
    /// With Content-Length.
    Fixed,
    /// Chunked; in HTTP/2 without Content-Length.
    Chunked,
    /// Until the connection closes.
    UntilClose,
    /// The request's own body comes back, in the form in which it came.
    Echo,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            status: 200,
            body_bytes: 0,
            form: ResponseForm::Fixed,
            fields: Vec::new(),
            delay: Delay::None,
            errors: 0.0,
            hangs: 0.0,
            resets: 0.0,
        }
    }
}

/// Whether a connection serves another request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Keep,
    Close,
}

/// Serves one connection to its end.
pub(super) async fn serve<S: Stream>(shared: &Shared, http: &Http, stream: &S, arrived: Buffer, stop: &Stop) {
    let mut answer = Answer::new(http);
    requests(shared, stream, arrived, stop, async |head: RequestHead, buffer: &mut Buffer, output: &mut Output| {
        answer.answer(shared, stream, stop, &head, buffer, output).await
    })
    .await;
}

/// Reads one request head after the other, also those that came in one go, and has each answered. Some bytes may have
/// arrived already.
pub(super) async fn requests<S: Stream>(
    shared: &Shared,
    stream: &S,
    arrived: Buffer,
    stop: &Stop,
    mut answer: impl AsyncFnMut(RequestHead, &mut Buffer, &mut Output) -> Result<Next, Fault>,
) {
    let mut output = Output::new();
    let mut buffer = arrived;
    loop {
        if buffer.is_empty() {
            // An idle connection holds no buffer.
            drop(std::mem::replace(&mut buffer, Buffer::hollow()));
            shared.begin_idle(stop);
            match first(stream.readable(), stop.stopped()).await {
                First::One(Ok(())) => {}
                First::One(Err(_)) | First::Other(_) => return,
            }
            buffer = Buffer::take(Size::Small);
        }
        loop {
            let head = match read_head(stream, &mut buffer, stop, message::parse_request).await {
                Ok(head) => head,
                Err(Fault::Malformed) => {
                    output.push_bytes(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                    let _gone = stream.flush(&mut output, stop).await;
                    return;
                }
                Err(_) => return,
            };
            buffer.consume(head.length);
            if head.expects_continue {
                output.push_bytes(b"HTTP/1.1 100 Continue\r\n\r\n");
                if stream.flush(&mut output, stop).await.is_err() {
                    return;
                }
            }
            match answer(head, &mut buffer, &mut output).await {
                Ok(Next::Keep) => {}
                Ok(Next::Close) => {
                    // The client may be gone.
                    let _gone = stream.shutdown_write();
                    return;
                }
                Err(_) => return,
            }
            if buffer.filled().is_empty() {
                break;
            }
            shared.begin_idle(stop);
        }
    }
}

/// The answers of one connection.
struct Answer<'a> {
    http: &'a Http,
    /// Made with the first answer: most connections of a test never ask.
    body: Option<Vec<Slice>>,
}

impl<'a> Answer<'a> {
    fn new(http: &'a Http) -> Self {
        Self { http, body: None }
    }

    async fn answer<S: Stream>(
        &mut self,
        shared: &Shared,
        stream: &S,
        stop: &Stop,
        head: &RequestHead,
        buffer: &mut Buffer,
        output: &mut Output,
    ) -> Result<Next, Fault> {
        let mut body = Body::new(head.framing);
        if self.http.form != ResponseForm::Echo {
            read_body(stream, buffer, &mut body, stop, |_| {}).await?;
        }
        if shared.chance(self.http.resets) {
            stream.reset_on_close();
            return Err(Fault::Broken);
        }
        let hang = shared.chance(self.http.hangs);
        let delay = if hang { HANG } else { shared.draw(self.http.delay) };
        if !delay.is_zero() {
            shared.wait(stream, stop, delay).await?;
        }
        let status = if shared.chance(self.http.errors) { 500 } else { self.http.status };
        let next = match (self.http.form, head.persistent) {
            (ResponseForm::UntilClose, _) | (_, false) => Next::Close,
            (_, true) => Next::Keep,
        };
        self.write_head(status, head, next, output);
        match self.http.form {
            ResponseForm::Echo => {
                let form = if head.framing == Framing::Chunked { Piece::Chunk } else { Piece::Plain };
                echo(stream, stop, &mut body, form, buffer, output).await?;
            }
            _ if head.method == Method::Head || matches!(status, 204 | 304) => {}
            ResponseForm::Fixed | ResponseForm::UntilClose => self.send(Piece::Plain, stream, stop, output).await?,
            ResponseForm::Chunked => self.send(Piece::Chunk, stream, stop, output).await?,
        }
        stream.flush(output, stop).await?;
        Ok(next)
    }

    fn write_head(&self, status: u16, request: &RequestHead, next: Next, output: &mut Output) {
        let mut head = format!("HTTP/1.1 {status} {}\r\n", reason_of(status));
        for (name, value) in &self.http.fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        match (self.http.form, request.framing) {
            (ResponseForm::Fixed, _) if status != 204 => {
                head.push_str(&format!("content-length: {}\r\n", self.http.body_bytes));
            }
            (ResponseForm::Echo, Framing::Fixed(bytes)) => head.push_str(&format!("content-length: {bytes}\r\n")),
            (ResponseForm::Echo, Framing::None) => head.push_str("content-length: 0\r\n"),
            (ResponseForm::Chunked, _) | (ResponseForm::Echo, _) => head.push_str("transfer-encoding: chunked\r\n"),
            (ResponseForm::Fixed | ResponseForm::UntilClose, _) => {}
        }
        if next == Next::Close {
            head.push_str("connection: close\r\n");
        }
        head.push_str("\r\n");
        output.push_bytes(head.as_bytes());
    }

    /// Sends the body, a bounded part at a time; the last part is left in `output`.
    async fn send<S: Stream>(
        &mut self,
        piece: Piece,
        stream: &S,
        stop: &Stop,
        output: &mut Output,
    ) -> Result<(), Fault> {
        let bytes = self.http.body_bytes;
        let slices = self.body.get_or_insert_with(|| load::body_pattern(bytes));
        let mut in_flight = 0;
        for slice in slices.iter() {
            piece.begin(slice.len(), output);
            output.push(slice.clone());
            piece.end(output);
            in_flight += slice.len();
            if in_flight >= SEND_BYTES {
                stream.flush(output, stop).await?;
                in_flight = 0;
            }
        }
        piece.last(output);
        Ok(())
    }
}

/// How a piece of a body stands on the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    Plain,
    Chunk,
}

impl Piece {
    fn begin(self, bytes: usize, output: &mut Output) {
        if self == Self::Chunk {
            output.push_bytes(format!("{bytes:x}\r\n").as_bytes());
        }
    }

    fn end(self, output: &mut Output) {
        if self == Self::Chunk {
            output.push_bytes(b"\r\n");
        }
    }

    fn last(self, output: &mut Output) {
        if self == Self::Chunk {
            output.push_bytes(b"0\r\n\r\n");
        }
    }
}

/// Sends a body back while it comes; the last piece is left in `output`.
async fn echo<S: Stream>(
    stream: &S,
    stop: &Stop,
    body: &mut Body,
    piece: Piece,
    buffer: &mut Buffer,
    output: &mut Output,
) -> Result<(), Fault> {
    loop {
        body.take_from(buffer, |bytes| {
            if !bytes.is_empty() {
                piece.begin(bytes.len(), output);
                output.push_bytes(bytes);
                piece.end(output);
            }
        })?;
        if body.done() {
            piece.last(output);
            return Ok(());
        }
        stream.flush(output, stop).await?;
        if fill(stream, buffer, stop).await? == 0 {
            body.end()?;
        }
    }
}

/// A reason phrase; nobody reads it.
fn reason_of(status: u16) -> &'static str {
    match status {
        200..300 => "OK",
        300..400 => "Elsewhere",
        400..500 => "Refused",
        _ => "Failed",
    }
}
