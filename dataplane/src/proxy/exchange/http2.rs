//! The sides of an exchange that speak HTTP/2.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::{Cell, RefCell};
use std::future::{pending, poll_fn};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use h2::client::ResponseFuture;
use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, Response, StatusCode};
use ringmesh_codec::body::is_forbidden_trailer;
use ringmesh_ring::stop::Stop;

use super::data::Data;
use super::head::trim_all;
use super::{Answer, Lost, More, Part, Reply, Sink, Source};
use crate::proxy::http2::limits::{
    LEAST_UNASKED_BYTES, MAX_RESPONSE_HEADER_BYTES, MAX_TRAILER_BYTES, MAX_UNASKED_BYTES,
};

impl From<h2::Error> for Lost {
    fn from(error: h2::Error) -> Self {
        let code = error.reason();
        match error.into_io_or_self() {
            Ok(error) => Self::Io(error),
            Err(error) if error.is_remote() && (error.is_go_away() || code == Some(Code::REFUSED_STREAM)) => {
                Self::Unprocessed
            }
            Err(error) if error.is_remote() && error.is_reset() => Self::Cut,
            Err(error) if error.is_remote() => Self::Gone,
            Err(error) if error.is_library() => Self::Broken,
            // Ours: a stream that is used after its end.
            Err(_) => Self::Gone,
        }
    }
}

/// The cause below, where the connection broke.
trait IntoIo: Sized {
    fn into_io_or_self(self) -> Result<std::io::Error, Self>;
}

impl IntoIo for h2::Error {
    fn into_io_or_self(self) -> Result<std::io::Error, Self> {
        if self.is_io() { Ok(self.into_io().expect("it is one")) } else { Err(self) }
    }
}

/// Waits for something of a stream, or the stop.
async fn until<T>(stop: &Stop, mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, Lost>>) -> Result<T, Lost> {
    poll_fn(|context| match poll(context) {
        Poll::Pending => stop.poll_stopped(context).map(|reason| Err(Lost::Stopped(reason))),
        ready => ready,
    })
    .await
}

/// A body that comes in a stream.
pub struct Body {
    stream: RecvStream,
    /// All of it was taken. The library has to be asked, until it says so.
    done: Cell<bool>,
    /// Nothing may stand in it, which the library does not look at.
    is_forbidden: bool,
}

impl Body {
    /// The body of a message whose head has come. `ends`: it is known to have none.
    pub fn new(stream: RecvStream, ends: bool) -> Self {
        Self { stream, done: Cell::new(ends), is_forbidden: false }
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Result<Part, Lost>> {
        loop {
            match ready!(self.stream.poll_data(context)) {
                // A frame without bytes is none to anybody; how many may come, the library bounds.
                Some(Ok(data)) if data.is_empty() && !self.is_done() => {}
                Some(Ok(data)) if data.is_empty() => return Poll::Ready(Ok(Part::End(None))),
                Some(Ok(_)) if self.is_forbidden => return Poll::Ready(Err(Lost::Broken)),
                Some(Ok(data)) => return Poll::Ready(Ok(Part::Data(Data::Bytes(data)))),
                Some(Err(error)) => return Poll::Ready(Err(error.into())),
                None => break,
            }
        }
        self.stream.poll_trailers(context).map(|trailers| match trailers? {
            Some(mut trailers) => {
                // As many as these lines have in HTTP/1. The library would take as many as of a head that is to be refused.
                let bytes = trim_all(&mut trailers) + 4 * trailers.len();
                if bytes > MAX_TRAILER_BYTES { Err(Lost::Broken) } else { Ok(Part::End(Some(trailers))) }
            }
            None => Ok(Part::End(None)),
        })
    }
}

impl Source for Body {
    fn is_done(&self) -> bool {
        if !self.done.get() {
            self.done.set(self.stream.is_end_stream());
        }
        self.done.get()
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        match self.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(part) => Some(part),
            Poll::Pending => None,
        }
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        until(stop, |context| self.poll_next(context)).await
    }

    fn passed(&mut self, bytes: usize) {
        // What has ended gives its part of the connection's window back when it is dropped.
        if !self.done.get() {
            // Fails only where nothing more comes.
            let _ended = self.stream.flow_control().release_capacity(bytes);
        }
    }
}

/// Sends bytes if the peer's windows have room for all of them.
fn send_at_once(stream: &mut SendStream<Data>, data: Data, more: More) -> Result<Option<Data>, Lost> {
    let bytes = data.remaining();
    stream.reserve_capacity(bytes);
    if stream.capacity() < bytes {
        return Ok(Some(data));
    }
    stream.send_data(data, more == More::Nothing)?;
    Ok(None)
}

/// Sends bytes as the peer's windows allow, so that no more than one piece waits here.
fn poll_send(
    stream: &mut SendStream<Data>,
    left: &mut Option<Data>,
    more: More,
    context: &mut Context<'_>,
) -> Poll<Result<(), Lost>> {
    while let Some(mut data) = left.take() {
        let bytes = data.remaining();
        stream.reserve_capacity(bytes);
        let mut room = stream.capacity();
        if room == 0 {
            room = match stream.poll_capacity(context) {
                Poll::Ready(Some(room)) => room?,
                Poll::Ready(None) => return Poll::Ready(Err(Lost::Gone)),
                Poll::Pending => {
                    *left = Some(data);
                    return Poll::Pending;
                }
            };
        }
        if room >= bytes {
            stream.send_data(data, more == More::Nothing)?;
        } else {
            stream.send_data(data.split_to(room), false)?;
            *left = Some(data);
        }
    }
    Poll::Ready(Ok(()))
}

/// Trailers without those that a next hop may not find behind a body, since it may merge them into the head.
fn permitted(trailers: HeaderMap) -> Option<HeaderMap> {
    let is_forbidden = |name: &HeaderName| is_forbidden_trailer(name.as_str().as_bytes());
    if !trailers.keys().any(is_forbidden) {
        return Some(trailers);
    }
    let rest = trailers.iter().filter(|(name, _)| !is_forbidden(name));
    let mut permitted = HeaderMap::new();
    for (name, value) in rest {
        // Fewer than there were.
        permitted.append(name, value.clone());
    }
    Some(permitted).filter(|permitted| !permitted.is_empty())
}

fn end(stream: &mut SendStream<Data>, trailers: Option<HeaderMap>) -> Result<(), Lost> {
    match trailers.and_then(permitted) {
        Some(trailers) => stream.send_trailers(trailers)?,
        None => stream.send_data(Data::Bytes(Bytes::new()), true)?,
    }
    Ok(())
}

/// The way of a request's body to an endpoint.
pub struct Upload<F> {
    stream: SendStream<Data>,
    /// Is told how many bytes are sent.
    sends: F,
    /// Nothing of the body was sent.
    first: bool,
}

impl<F: Fn(usize)> Upload<F> {
    /// The head was sent.
    pub fn new(stream: SendStream<Data>, sends: F) -> Self {
        Self { stream, sends, first: true }
    }
}

impl<F: Fn(usize)> Sink for Upload<F> {
    const HOLDS_BACK: bool = false;

    /// What was sent is on its way, once the connection has its turn.
    async fn flush(&mut self, _stop: &Stop) -> Result<(), Lost> {
        Ok(())
    }

    fn data_at_once(&mut self, data: Data, more: More) -> Result<Option<Data>, Lost> {
        let bytes = data.remaining();
        let left = if std::mem::take(&mut self.first) && more == More::Nothing && bytes <= MAX_UNASKED_BYTES {
            self.stream.send_data(data, true)?;
            None
        } else {
            send_at_once(&mut self.stream, data, more)?
        };
        if left.is_none() {
            (self.sends)(bytes);
        }
        Ok(left)
    }

    async fn data(&mut self, data: Data, more: More, stop: &Stop) -> Result<(), Lost> {
        (self.sends)(data.remaining());
        let mut left = Some(data);
        until(stop, |context| poll_send(&mut self.stream, &mut left, more, context)).await
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, _stop: &Stop) -> Result<(), Lost> {
        end(&mut self.stream, trailers)
    }
}

/// An endpoint's response.
pub struct Awaited<'a> {
    head: ResponseFuture,
    /// Whether an interim head may have come. The library keeps them apart from final ones, and drops those that were not asked
    /// for before a final one.
    may_be_interim: &'a Cell<bool>,
    /// What comes behind any 2xx is no body, but the tunnel's (RFC 9113 section 8.5).
    asks_for_tunnel: bool,
    body: Option<Body>,
}

impl<'a> Awaited<'a> {
    /// The response that was promised.
    pub fn new(head: ResponseFuture, may_be_interim: &'a Cell<bool>) -> Self {
        Self { head, may_be_interim, asks_for_tunnel: false, body: None }
    }

    /// The response that was promised to a request for a tunnel.
    pub fn of_tunnel(head: ResponseFuture, may_be_interim: &'a Cell<bool>) -> Self {
        Self { asks_for_tunnel: true, ..Self::new(head, may_be_interim) }
    }

    /// What of the stream is left once the body has ended.
    pub fn into_head(self) -> ResponseFuture {
        self.head
    }

    fn poll_head(&mut self, context: &mut Context<'_>) -> Poll<Result<Response<()>, Lost>> {
        if self.may_be_interim.get() {
            match self.head.poll_informational(context) {
                // No part of HTTP/2, and to a client that asked for an upgrade the end of HTTP (RFC 9113 section 8.6).
                Poll::Ready(Some(Ok(interim))) if interim.status() == StatusCode::SWITCHING_PROTOCOLS => {
                    return Poll::Ready(Err(Lost::Broken));
                }
                Poll::Ready(Some(Ok(interim))) => return Poll::Ready(Ok(interim)),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                // Neither an interim head nor a final one.
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => {}
            }
        }
        let (mut parts, stream) = ready!(std::pin::Pin::new(&mut self.head).poll(context))?.into_parts();
        if parts.status.is_informational() {
            // A final head cannot be one (RFC 9113 section 8.1).
            return Poll::Ready(Err(Lost::Broken));
        }
        // As HTTP/2 counts them (RFC 9113 section 6.5.2).
        let bytes = trim_all(&mut parts.headers) + 32 * parts.headers.len();
        if bytes > MAX_RESPONSE_HEADER_BYTES as usize {
            return Poll::Ready(Err(Lost::Broken));
        }
        let is_empty = parts.status == StatusCode::NO_CONTENT && !self.asks_for_tunnel;
        if is_empty && parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
            return Poll::Ready(Err(Lost::Broken));
        }
        let is_forbidden = is_empty || parts.status == StatusCode::NOT_MODIFIED;
        self.body = Some(Body { is_forbidden, ..Body::new(stream, false) });
        Poll::Ready(Ok(Response::from_parts(parts, ())))
    }
}

impl Source for Awaited<'_> {
    fn is_done(&self) -> bool {
        self.body.as_ref().is_some_and(Source::is_done)
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        self.body.as_mut()?.ready()
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        match &mut self.body {
            Some(body) => body.next(stop).await,
            None => Err(Lost::Gone),
        }
    }

    fn passed(&mut self, bytes: usize) {
        if let Some(body) = &mut self.body {
            body.passed(bytes);
        }
    }
}

impl Answer for Awaited<'_> {
    async fn head(&mut self, stop: &Stop) -> Result<Response<()>, Lost> {
        until(stop, |context| self.poll_head(context)).await
    }
}

/// What a connection may still be given without asking whether its peer takes it, which costs as much as sending a small
/// body. That it took the last one is a good sign and no promise, so that it is asked again after a few bytes: what it does
/// not take waits where nobody knows for how long, as it does in a socket.
#[derive(Default)]
pub struct Unasked(Cell<usize>);

impl Unasked {
    fn take(&self, bytes: usize) -> bool {
        let left = self.0.get().checked_sub(bytes.max(LEAST_UNASKED_BYTES));
        left.inspect(|left| self.0.set(*left)).is_some()
    }

    fn has_asked(&self, had_room: bool) {
        self.0.set(if had_room { MAX_UNASKED_BYTES } else { 0 });
    }
}

/// The way of a response, for those who send it and for who looks whether the client still wants it.
pub struct Shared<'a> {
    way: RefCell<Way>,
    unasked: &'a Unasked,
}

struct Way {
    respond: SendResponse<Data>,
    body: Option<SendStream<Data>>,
}

impl<'a> Shared<'a> {
    /// Nothing was sent yet.
    pub fn new(respond: SendResponse<Data>, unasked: &'a Unasked) -> Self {
        Self { way: RefCell::new(Way { respond, body: None }), unasked }
    }

    /// Ready when the client has reset the stream, or is gone.
    pub fn poll_reset(&self, context: &mut Context<'_>) -> Poll<()> {
        let way = &mut *self.way.borrow_mut();
        match &mut way.body {
            Some(body) => body.poll_reset(context).map(drop),
            None => way.respond.poll_reset(context).map(drop),
        }
    }

    /// Resets the stream.
    pub fn reset(&self, code: Code) {
        let way = &mut *self.way.borrow_mut();
        match &mut way.body {
            Some(body) => body.send_reset(code),
            None => way.respond.send_reset(code),
        }
    }

    /// Ends a response that has begun.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn end(&self, trailers: HeaderMap) -> Result<(), Lost> {
        match &mut self.way.borrow_mut().body {
            Some(body) => end(body, Some(trailers)),
            None => Err(Lost::Gone),
        }
    }

    /// Sends a response whole.
    ///
    /// # Errors
    /// If the client has gone.
    pub fn send(&self, response: Response<()>, body: String) -> Result<(), Lost> {
        let respond = &mut self.way.borrow_mut().respond;
        let mut stream = respond.send_response(response, body.is_empty())?;
        if !body.is_empty() {
            stream.send_data(Data::Bytes(body.into()), true)?;
        }
        Ok(())
    }
}

/// What a client gets in its stream.
pub struct Download<'a, F> {
    way: &'a Shared<'a>,
    /// Is told how many bytes are sent.
    sends: F,
}

impl<'a, F: Fn(usize)> Download<'a, F> {
    /// Nothing was sent yet.
    pub fn new(way: &'a Shared<'a>, sends: F) -> Self {
        Self { way, sends }
    }
}

impl<F: Fn(usize)> Sink for Download<'_, F> {
    const HOLDS_BACK: bool = false;

    /// What was sent is on its way, once the connection has its turn.
    async fn flush(&mut self, _stop: &Stop) -> Result<(), Lost> {
        Ok(())
    }

    fn data_at_once(&mut self, data: Data, more: More) -> Result<Option<Data>, Lost> {
        let bytes = data.remaining();
        let Shared { way, unasked } = self.way;
        let way = &mut *way.borrow_mut();
        let body = way.body.as_mut().ok_or(Lost::Gone)?;
        let left = if more == More::Nothing && unasked.take(bytes) {
            body.send_data(data, true)?;
            None
        } else {
            let left = send_at_once(body, data, more)?;
            unasked.has_asked(left.is_none());
            left
        };
        if left.is_none() {
            (self.sends)(bytes);
        }
        Ok(left)
    }

    async fn data(&mut self, data: Data, more: More, stop: &Stop) -> Result<(), Lost> {
        (self.sends)(data.remaining());
        let mut left = Some(data);
        until(stop, |context| {
            let way = &mut *self.way.way.borrow_mut();
            match &mut way.body {
                Some(body) => poll_send(body, &mut left, more, context),
                None => Poll::Ready(Err(Lost::Gone)),
            }
        })
        .await
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, _stop: &Stop) -> Result<(), Lost> {
        match &mut self.way.way.borrow_mut().body {
            Some(body) => end(body, trailers),
            None => Err(Lost::Gone),
        }
    }
}

impl<F: Fn(usize)> Reply for Download<'_, F> {
    async fn interim(&mut self, response: Response<()>, _stop: &Stop) -> Result<(), Lost> {
        (self.sends)(0);
        self.way.way.borrow_mut().respond.send_informational(response).map_err(Lost::from)
    }

    fn begin(&mut self, response: Response<()>, more: More) -> Result<(), Lost> {
        (self.sends)(0);
        let way = &mut *self.way.way.borrow_mut();
        way.body = Some(way.respond.send_response(response, more == More::Nothing)?);
        Ok(())
    }

    /// The stream's own task hears of its reset.
    async fn gone(&self) {
        pending().await
    }
}
