//! Calls of browsers, which speak gRPC-Web, to services that speak gRPC: the request loses its base64, if it has one, and the
//! response's trailers become its last message.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response, StatusCode};
use ringmesh_codec::body::is_forbidden_trailer;
use ringmesh_codec::grpc::{self as words, UNKNOWN};
use ringmesh_codec::grpc_web::{self as codec, ContentType, Decoder, Encoder, Encoding};
use ringmesh_codec::head::{Head, Method};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;

use crate::outcome::Reason;
use crate::pool::shared;
use crate::proxy::exchange::data::Data;
use crate::proxy::exchange::replay::{Kept, Replayed};
use crate::proxy::exchange::{self, Exchange, Lost, More, Part, Reply, Sink, Source, Stage};
use crate::proxy::grpc;
use crate::proxy::request::{Account, Failed};
use crate::tables::Listener;

/// A call in gRPC-Web.
pub struct Call {
    /// How long the caller waits, if it says so.
    pub timeout: Option<Duration>,
    /// Of the request: what it is called for the service.
    content_type: HeaderValue,
    incoming: Incoming,
    form: Form,
}

/// What the client gets.
pub struct Form {
    encoding: Encoding,
    /// What the messages of the request are, and so those of the response, unless it says otherwise.
    format: Box<[u8]>,
}

/// How far the request's body has come.
struct Incoming {
    /// None: its bytes are the messages.
    decoder: Option<Decoder>,
    /// Bytes that came, and are not accounted for as passed on.
    taken: usize,
}

impl Call {
    /// The call that a request is, if its listener takes such.
    #[inline]
    pub fn asked(listener: &Listener, head: &impl Head) -> Option<Box<Self>> {
        if listener.config.hop.grpc_web { Self::read(head) } else { None }
    }

    /// Out of the way of those who are none.
    #[cold]
    fn read(head: &impl Head) -> Option<Box<Self>> {
        if Method::from_bytes(head.method()) != Method::Post {
            return None;
        }
        let sent = ContentType::read(head.field("content-type")?)?;
        let content_type = [b"application/grpc", sent.format].concat();
        Some(Box::new(Self {
            timeout: head.field(grpc::TIMEOUT.as_str()).and_then(words::parse_timeout),
            content_type: HeaderValue::from_bytes(&content_type).ok()?,
            incoming: Incoming { decoder: (sent.encoding == Encoding::Text).then(Decoder::default), taken: 0 },
            form: Form { encoding: codec::wanted(head.field("accept"), sent.encoding), format: sent.format.into() },
        }))
    }

    /// Makes the request's fields those of gRPC.
    pub fn translate(&self, fields: &mut HeaderMap) {
        fields.insert(header::CONTENT_TYPE, self.content_type.clone());
        // Without it, some servers take a caller for one that would lose the status.
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
        // That of the text, if it is one. Calls have none.
        fields.remove(header::CONTENT_LENGTH);
    }

    /// The exchange with an endpoint that speaks HTTP/2: [`exchange::over_http2`], with what this changes between.
    ///
    /// # Errors
    /// As there.
    #[allow(clippy::too_many_arguments, reason = "as what it wraps, and what is kept")]
    pub async fn over_http2<N: Net>(
        &mut self,
        exchange: &Exchange<'_, N>,
        lease: &shared::Lease<N>,
        request: Request<()>,
        source: &mut impl Source,
        kept: &mut Kept,
        reply: &mut impl Reply,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let mut reply = Encoded { reply, form: &self.form, way: Way::Other, told: false };
        let mut source = Decoded { source, incoming: &mut self.incoming };
        let mut body = Replayed::new(&mut source, kept);
        exchange::over_http2(exchange, lease, request, &mut body, &mut reply, stage, account).await
    }

    /// Our own answer: a status without messages, for which the head has room.
    pub fn answer(&self, reason: Reason) -> Response<()> {
        let mut response = grpc::answer(reason);
        response.headers_mut().insert(header::CONTENT_TYPE, self.form.content_type(b""));
        response
    }
}

impl Form {
    /// The content type of a response whose messages are of that format.
    fn content_type(&self, format: &[u8]) -> HeaderValue {
        let format = if format.is_empty() { &*self.format } else { format };
        let mut text = Vec::with_capacity(48);
        ContentType { encoding: self.encoding, format }.write(&mut text);
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("application/grpc-web"))
    }
}

/// The body of a request, without its base64.
pub struct Decoded<'a, S> {
    source: &'a mut S,
    incoming: &'a mut Incoming,
}

impl Incoming {
    /// None: more has to come.
    fn take(&mut self, part: Part) -> Option<Result<Part, Lost>> {
        let Some(decoder) = &mut self.decoder else { return Some(Ok(part)) };
        match part {
            Part::Data(data) => {
                self.taken += data.remaining();
                let mut bytes = Vec::new();
                if decoder.decode(data.chunk(), &mut bytes).is_err() {
                    return Some(Err(Lost::Broken));
                }
                (!bytes.is_empty()).then(|| Ok(Part::Data(Data::Bytes(bytes.into()))))
            }
            Part::End(_) if !decoder.is_whole() => Some(Err(Lost::Broken)),
            end => Some(Ok(end)),
        }
    }
}

impl<S: Source> Source for Decoded<'_, S> {
    fn is_done(&self) -> bool {
        self.source.is_done() && self.incoming.decoder.as_ref().is_none_or(Decoder::is_whole)
    }

    fn ready(&mut self) -> Option<Result<Part, Lost>> {
        loop {
            let taken = match self.source.ready()? {
                Ok(part) => self.incoming.take(part),
                Err(lost) => Some(Err(lost)),
            };
            if taken.is_some() {
                return taken;
            }
        }
    }

    async fn next(&mut self, stop: &Stop) -> Result<Part, Lost> {
        loop {
            let part = self.source.next(stop).await?;
            if let Some(taken) = self.incoming.take(part) {
                return taken;
            }
        }
    }

    fn passed(&mut self, bytes: usize) {
        let taken = std::mem::take(&mut self.incoming.taken);
        self.source.passed(if self.incoming.decoder.is_some() { taken } else { bytes });
    }
}

/// The way of a response, whose trailers become its last message.
pub struct Encoded<'a, R> {
    reply: &'a mut R,
    form: &'a Form,
    way: Way,
    /// Whether the head has told the status already.
    told: bool,
}

/// How the body goes on.
enum Way {
    /// As it comes: it is no response to a call.
    Other,
    Binary,
    Text(Encoder),
}

impl<R: Reply> Encoded<'_, R> {
    async fn put(&mut self, bytes: Vec<u8>, more: More, stop: &Stop) -> Result<(), Lost> {
        self.reply.data(Data::Bytes(Bytes::from(bytes)), more, stop).await
    }
}

/// The last message. A response that ends without a status gets one here: clients take its absence for success.
fn last_message(trailers: Option<&HeaderMap>) -> Vec<u8> {
    let mut message = Vec::with_capacity(64);
    match trailers {
        Some(trailers) if trailers.contains_key("grpc-status") => {
            let permitted = trailers.iter().map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes()));
            codec::write_trailers(permitted.filter(|(name, _)| !is_forbidden_trailer(name)), &mut message);
        }
        _ => {
            let status = UNKNOWN.to_string();
            let told: [(&[u8], &[u8]); 2] =
                [(b"grpc-status", status.as_bytes()), (b"grpc-message", b"the response ended without a status")];
            codec::write_trailers(told.into_iter(), &mut message);
        }
    }
    message
}

impl<R: Reply> Sink for Encoded<'_, R> {
    async fn flush(&mut self, stop: &Stop) -> Result<(), Lost> {
        // A message that is whole must not wait for the next one.
        if let Way::Text(encoder) = &mut self.way
            && !encoder.is_empty()
        {
            let mut text = Vec::with_capacity(4);
            encoder.pad(&mut text);
            self.put(text, More::Follows, stop).await?;
        }
        self.reply.flush(stop).await
    }

    async fn data(&mut self, data: Data, more: More, stop: &Stop) -> Result<(), Lost> {
        match &mut self.way {
            Way::Other => return self.reply.data(data, more, stop).await,
            Way::Binary => self.reply.data(data, More::Follows, stop).await?,
            Way::Text(encoder) => {
                let mut text = Vec::new();
                encoder.encode(data.chunk(), &mut text);
                if !text.is_empty() {
                    self.put(text, More::Follows, stop).await?;
                }
            }
        }
        match more {
            More::Follows => Ok(()),
            More::Nothing => self.end(None, stop).await,
        }
    }

    async fn end(&mut self, trailers: Option<HeaderMap>, stop: &Stop) -> Result<(), Lost> {
        if matches!(self.way, Way::Other) {
            return self.reply.end(trailers, stop).await;
        }
        let mut message = if self.told { Vec::new() } else { last_message(trailers.as_ref()) };
        if let Way::Text(encoder) = &mut self.way {
            let mut text = Vec::new();
            encoder.encode(&message, &mut text);
            encoder.pad(&mut text);
            message = text;
        }
        if message.is_empty() { self.reply.end(None, stop).await } else { self.put(message, More::Nothing, stop).await }
    }
}

impl<R: Reply> Reply for Encoded<'_, R> {
    /// A page that is closed ends its calls, and a stream may have nothing to send for hours.
    const WATCHED: bool = true;

    async fn interim(&mut self, response: Response<()>, stop: &Stop) -> Result<(), Lost> {
        self.reply.interim(response, stop).await
    }

    fn begin(&mut self, mut response: Response<()>, more: More) -> Result<(), Lost> {
        let content_type = response.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let format = content_type.and_then(words::format).filter(|_| response.status() == StatusCode::OK);
        let Some(format) = format else { return self.reply.begin(response, more) };
        let content_type = self.form.content_type(format);
        let fields = response.headers_mut();
        self.told = fields.contains_key("grpc-status");
        fields.insert(header::CONTENT_TYPE, content_type);
        fields.remove(header::CONTENT_LENGTH);
        fields.remove(header::TRAILER);
        if more == More::Nothing && !self.told {
            fields.insert(HeaderName::from_static("grpc-status"), HeaderValue::from(u16::from(UNKNOWN)));
        }
        self.way = match self.form.encoding {
            Encoding::Binary => Way::Binary,
            Encoding::Text => Way::Text(Encoder::default()),
        };
        self.reply.begin(response, more)
    }

    async fn gone(&self) {
        self.reply.gone().await;
    }
}
