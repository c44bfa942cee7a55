//! gRPC over HTTP/2: messages as raw bytes, framed by their length; how a call ended stands in the trailers
//! (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md).

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};

use super::connection::Answer;
use super::entry::BodyCheck;
use super::http2::{Call, Fault, before_the_answer, next_data, within_the_answer};
use crate::grpc::{Messages, STATUS, frame};
use crate::report::Failure;

/// What a gRPC load calls with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grpc {
    /// Who sends how many messages.
    pub kind: Kind,
    /// The message, as it is on the wire after its length.
    pub message: Bytes,
}

/// Who sends how many messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One each.
    Unary,
    /// One, and as many come as the server likes.
    ServerStream,
    /// So many, and one comes.
    ClientStream(u32),
    /// So many, each after the answer to the last; one comes for each.
    Bidirectional(u32),
}

impl Grpc {
    /// The message with its length.
    pub(super) fn frame(&self) -> Bytes {
        frame(&self.message)
    }

    fn sends(&self) -> u32 {
        match self.kind {
            Kind::Unary | Kind::ServerStream => 1,
            Kind::ClientStream(messages) | Kind::Bidirectional(messages) => messages,
        }
    }

    /// Whether so many messages are the right number.
    fn admits(&self, came: u64) -> bool {
        match self.kind {
            Kind::Unary | Kind::ClientStream(_) => came == 1,
            Kind::ServerStream => true,
            Kind::Bidirectional(messages) => came == u64::from(messages),
        }
    }
}

pub(super) fn add_fields(request: &mut Request<()>) {
    let fields = request.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    fields.insert(header::TE, HeaderValue::from_static("trailers"));
}

pub(super) async fn exchange(call: &Call, grpc: &Grpc, mut sender: SendRequest<Bytes>) -> Result<Answer, Fault> {
    let (response, mut requests) = sender.send_request(call.request.clone(), false).map_err(before_the_answer)?;
    let (head, mut stream, mut seen) = if let Kind::Bidirectional(messages) = grpc.kind {
        let mut seen = Received::new(call);
        requests.send_data(call.body.clone(), messages == 1).map_err(before_the_answer)?;
        let (head, mut stream) = response.await.map_err(before_the_answer)?.into_parts();
        for sent in 1..messages {
            if !seen.until(&mut stream, u64::from(sent)).await? {
                break;
            }
            let sent = requests.send_data(call.body.clone(), sent + 1 == messages);
            sent.map_err(within_the_answer)?;
        }
        (head, stream, seen)
    } else {
        for sent in 1..=grpc.sends() {
            requests.send_data(call.body.clone(), sent == grpc.sends()).map_err(before_the_answer)?;
        }
        let (head, stream) = response.await.map_err(before_the_answer)?.into_parts();
        (head, stream, Received::new(call))
    };
    seen.until(&mut stream, u64::MAX).await?;
    let trailers = stream.trailers().await.map_err(within_the_answer)?;
    let status = match (head.status, trailers) {
        (StatusCode::OK, Some(trailers)) => status_in(&trailers)?,
        // An answer without messages says it all in its head.
        (StatusCode::OK, None) => status_in(&head.headers)?,
        (other, _) => status_of_http(other),
    };
    if status == 0 && !(seen.messages.whole() && grpc.admits(seen.messages.count()) && !seen.differs) {
        return Err(Failure::WrongBody.into());
    }
    Ok(Answer { status, field: None, bytes: 0, persistent: true })
}

/// What has come of a call's answers.
struct Received<'a> {
    call: &'a Call,
    messages: Messages,
    /// Bytes since the last message began, for an echo to be compared with.
    at: usize,
    differs: bool,
}

impl<'a> Received<'a> {
    fn new(call: &'a Call) -> Self {
        Self { call, messages: Messages::default(), at: 0, differs: false }
    }

    /// Reads until so many messages have come. False: there are not so many.
    async fn until(&mut self, stream: &mut RecvStream, count: u64) -> Result<bool, Fault> {
        while self.messages.count() < count {
            let Some(data) = next_data(stream).await? else { return Ok(false) };
            self.messages.take(&data);
            if self.call.entry.check == BodyCheck::Echo {
                self.compare(&data);
            }
        }
        Ok(true)
    }

    /// Each answer must be the message that was sent.
    fn compare(&mut self, data: &[u8]) {
        let expected = &self.call.body;
        for byte in data {
            self.differs |= expected[self.at] != *byte;
            self.at = (self.at + 1) % expected.len();
        }
    }
}

fn status_in(fields: &HeaderMap) -> Result<u16, Failure> {
    let value = fields.get(STATUS).ok_or(Failure::Malformed)?;
    value.to_str().ok().and_then(|text| text.parse().ok()).ok_or(Failure::Malformed)
}

/// The gRPC status that an HTTP status stands for (doc/http-grpc-status-mapping.md).
fn status_of_http(status: StatusCode) -> u16 {
    match status.as_u16() {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502..=504 => 14,
        _ => 2,
    }
}
