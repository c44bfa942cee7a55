//! A gRPC service that answers every method; the end of the method's name says how.

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};

use super::Shared;
use super::delay::Delay;
use super::http::HANG;
use super::http2::{next, send_within_window, wait};
use crate::grpc::{STATUS, frame};

/// A gRPC service. A method whose name ends in
///
/// - `ServerStream` answers with so many copies of the request;
/// - `ClientStream` answers with the number of bytes that came, as a big-endian number of eight bytes;
/// - `Bidi` sends each message back when it comes;
/// - anything else sends the message back.
#[derive(Clone, Debug)]
pub struct Grpc {
    /// Messages in the answer of a `ServerStream` method.
    pub messages: u32,
    /// From the end of the request to the beginning of the answer; with `Bidi` before the first.
    pub delay: Delay,
    /// Share of calls, 0 to 1, that end with the status 14 (UNAVAILABLE).
    pub errors: f64,
    /// Share of calls that get no answer.
    pub hangs: f64,
    /// Share of calls whose stream is reset.
    pub resets: f64,
}

impl Default for Grpc {
    fn default() -> Self {
        Self { messages: 10, delay: Delay::None, errors: 0.0, hangs: 0.0, resets: 0.0 }
    }
}

/// UNAVAILABLE.
const UNAVAILABLE: &str = "14";

pub(super) async fn answer(
    shared: &Shared,
    grpc: &Grpc,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let method = head.uri.path();
    let mut came = Vec::new();
    let mut bytes = 0_u64;
    let is_bidirectional = method.ends_with("Bidi");
    if !is_bidirectional {
        let keeps = !method.ends_with("ClientStream");
        while let Some(data) = next(&mut body).await? {
            bytes += data.len() as u64;
            if keeps {
                came.push(data);
            }
        }
    }
    let hang = shared.chance(grpc.hangs);
    let delay = if hang { HANG } else { shared.draw(grpc.delay) };
    if !wait(shared, &mut respond, delay).await {
        return Ok(());
    }
    if shared.chance(grpc.resets) {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return Ok(());
    }
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if shared.chance(grpc.errors) {
        response.headers_mut().insert(STATUS, HeaderValue::from_static(UNAVAILABLE));
        return respond.send_response(response, true).map(drop);
    }
    let mut send = respond.send_response(response, false)?;
    if is_bidirectional {
        while let Some(data) = next(&mut body).await? {
            send_within_window(&mut send, data).await?;
        }
    } else if method.ends_with("ClientStream") {
        send.send_data(frame(&bytes.to_be_bytes()), false)?;
    } else {
        let copies = if method.ends_with("ServerStream") { grpc.messages } else { 1 };
        for _ in 0..copies {
            for part in &came {
                send_within_window(&mut send, part.clone()).await?;
            }
        }
    }
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(STATUS, HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}
