//! HTTP/2, for clients that begin with its preface or chose it by ALPN: answers of a given shape, and gRPC.

use std::future::poll_fn;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{self, SendResponse};
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use ringmesh_ring::duplex::{Pipe, Watcher, pump};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;
use ringmesh_ring::{Buffer, Size, runtime};

use super::delay::Delay;
use super::grpc;
use super::http::{HANG, Http, ResponseForm};
use super::{Service, Shared};
use crate::limits::MAX_SERVED_STREAMS;
use crate::message::fill;
use crate::wait::{First, first};

/// What a client says first that speaks HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What a stream and a connection may receive ahead of being read, in bytes.
const WINDOW_BYTES: u32 = 1024 * 1024;

/// Reads enough to know which version of HTTP a client speaks. None: it has left.
pub(super) async fn sniff<S: Stream>(stream: &S, buffer: &mut Buffer, stop: &Stop) -> Option<Spoken> {
    // An idle connection holds no buffer.
    let First::One(Ok(())) = first(stream.readable(), stop.stopped()).await else { return None };
    *buffer = Buffer::take(Size::Small);
    loop {
        let seen = buffer.filled();
        if seen.starts_with(PREFACE) {
            return Some(Spoken::Http2);
        }
        if !PREFACE.starts_with(seen) {
            return Some(Spoken::Http1);
        }
        if fill(stream, buffer, stop).await.ok()? == 0 {
            return None;
        }
    }
}

/// A version of HTTP.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    Http2,
}

/// Serves one connection, of which some bytes have arrived, to its end.
pub(super) async fn serve<S: Stream>(shared: &Rc<Shared>, stream: &S, arrived: Buffer, stop: &Stop) {
    let pipe = Pipe::new(arrived);
    let connection = async {
        let mut builder = server::Builder::new();
        builder
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_concurrent_streams(MAX_SERVED_STREAMS);
        let mut connection = builder.handshake::<_, Bytes>(pipe.duplex()).await?;
        while let Some(request) = connection.accept().await {
            let (request, respond) = request?;
            answer(shared, request, respond);
        }
        Ok::<_, h2::Error>(())
    };
    match pump(stream, &pipe, connection, stop, &Alive(shared, stop)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP/2 connection broke"),
        Err(error) => tracing::debug!(%error, "an HTTP/2 connection broke"),
    }
}

/// Bytes from the client postpone the end of an idle connection.
struct Alive<'a>(&'a Shared, &'a Stop);

impl Watcher for Alive<'_> {
    fn received(&self, _bytes: &[u8]) {
        self.0.begin_idle(self.1);
    }
}

/// Answers a request: at once where that takes no waiting, else in a task of its own.
fn answer(shared: &Rc<Shared>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    if let Service::Http(http) = &shared.settings.service
        && request.body().is_end_stream()
        && http.delay == Delay::None
        && http.hangs == 0.0
    {
        // A client that has left needs no answer.
        let _gone = send_shape(shared, http, request.method(), &mut respond);
        return;
    }
    let shared = shared.clone();
    runtime::spawn(async move {
        let result = match &shared.settings.service {
            Service::Http(http) => answer_http(&shared, http, request, respond).await,
            Service::Grpc(grpc) => grpc::answer(&shared, grpc, request, respond).await,
            Service::Shop(_) | Service::WebSocket | Service::Echo | Service::Sink => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a stream broke");
        }
    });
}

async fn answer_http(
    shared: &Shared,
    http: &Http,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    if http.form != ResponseForm::Echo {
        while next(&mut body).await?.is_some() {}
    }
    let hang = shared.chance(http.hangs);
    let delay = if hang { HANG } else { shared.draw(http.delay) };
    if !wait(shared, &mut respond, delay).await {
        return Ok(());
    }
    if http.form != ResponseForm::Echo {
        return send_shape(shared, http, &head.method, &mut respond);
    }
    let mut response = head_of(shared, http);
    if let Some(length) = head.headers.get(header::CONTENT_LENGTH) {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.clone());
    }
    let mut send = respond.send_response(response, false)?;
    while let Some(data) = next(&mut body).await? {
        send_within_window(&mut send, data).await?;
    }
    send.send_data(Bytes::new(), true)
}

/// Sends an answer that depends on no body.
fn send_shape(
    shared: &Shared,
    http: &Http,
    method: &Method,
    respond: &mut SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    if shared.chance(http.resets) {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut response = head_of(shared, http);
    let status = response.status();
    let bodiless = status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED;
    if http.form == ResponseForm::Fixed && !bodiless {
        response.headers_mut().insert(header::CONTENT_LENGTH, http.body_bytes.into());
    }
    if bodiless || http.body_bytes == 0 || method == Method::HEAD || http.form == ResponseForm::Echo {
        return respond.send_response(response, true).map(drop);
    }
    let body = shared.body(http.body_bytes);
    respond.send_response(response, false)?.send_data(body, true)
}

fn head_of(shared: &Shared, http: &Http) -> Response<()> {
    let status = if shared.chance(http.errors) { 500 } else { http.status };
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    for (name, value) in &http.fields {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

/// Waits. False: the client has given up meanwhile.
pub(super) async fn wait(shared: &Shared, respond: &mut SendResponse<Bytes>, delay: Duration) -> bool {
    if delay.is_zero() {
        return true;
    }
    let due = shared.net.now() + delay;
    let given_up = poll_fn(|context| respond.poll_reset(context));
    matches!(first(shared.pacer.until(due), given_up).await, First::One(_))
}

/// The next part of a request's body, whose window is given back at once.
pub(super) async fn next(body: &mut RecvStream) -> Result<Option<Bytes>, h2::Error> {
    let Some(data) = body.data().await.transpose()? else { return Ok(None) };
    // Fails only where nothing more comes.
    let _ended = body.flow_control().release_capacity(data.len());
    Ok(Some(data))
}

/// Sends bytes as the client's windows allow, so that no more than one part of a body is held.
pub(super) async fn send_within_window(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        match poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(room)) => send.send_data(data.split_to(room.min(data.len())), false)?,
            Some(Err(error)) => return Err(error),
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}
