//! One request of an HTTP/2 client, from its head to the end of its response.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use h2::server::SendResponse;
use h2::{Reason as Code, RecvStream};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode, Version};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::grpc::status_without;
use ringmesh_codec::head::Method;
use ringmesh_model::hop::Hop;
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};

use super::Session;
use super::head::{Asks, Head};
use super::tunnel::Asking;
use crate::drain::Registered;
use crate::outcome::Reason;
use crate::pool::{Lease, Leased, shared};
use crate::proxy::deadline::Deadlines;
use crate::proxy::exchange::data::Data;
use crate::proxy::exchange::replay::{Kept, KeptFields, Replayed};
use crate::proxy::exchange::{self, Exchange, Part, Source, Stage, http1, http2};
use crate::proxy::progress::{Uploaded, Watch};
use crate::proxy::redirect::{self, Elsewhere};
use crate::proxy::relay::Turn;
use crate::proxy::request::{self, Account, Call, Failed, Patience};
use crate::proxy::{grpc, grpc_web, hop};
use crate::tables::Listener;
use crate::upstream::Needs;
use crate::worker::Worker;

/// How long a client whose request was answered early may take to send what it has begun to.
const TAKE_REST: Duration = Duration::from_secs(1);

/// A request as the library gives it.
pub type Request = http::Request<RecvStream>;

/// The way of its response.
pub type Respond = SendResponse<Data>;

/// A request that has begun.
pub struct Begun<N: Net> {
    /// Where it came.
    pub session: Rc<Session<N>>,
    /// Ends it.
    pub stop: Stop,
    /// Keeps it among the session's streams.
    pub registered: Registered,
    /// What has come of it.
    pub request: Request,
    /// The way of its response.
    pub respond: Respond,
}

/// Serves one request.
pub async fn serve<N: Net>(begun: Begun<N>) {
    let Begun { session, stop, registered, request, mut respond } = begun;
    let connection = &session.connection;
    let worker = &connection.worker;
    let tables = worker.tables();
    let Some(listener) = tables.listener(connection.listener).filter(|listener| connection.belongs(listener)) else {
        respond.send_reset(Code::REFUSED_STREAM);
        return;
    };
    let (parts, body) = request.into_parts();
    let ends = body.is_end_stream();
    let reply = http2::Shared::new(respond, &session.unasked);
    let mut call = Stream {
        session: &session,
        worker,
        listener,
        stop: &stop,
        head: Head::of(parts, ends),
        body: http2::Body::new(body, ends),
        reply: &reply,
        kept: Kept::default(),
        sent: None,
        web: None,
        stage: Stage::Waiting,
    };
    let checked = call.head.check(&listener.head_limits);
    call.web = grpc_web::Call::asked(listener, &&call.head);
    if let Err(refusal) = checked {
        let reason = Reason::of_refusal(&refusal);
        worker.tell_unreadable(listener, connection.client_text(), reason, refusal);
        let mut account = Account::default();
        call.answer(reason, &mut account).await;
        request::refused(worker, connection, &tables, listener, &account, reason);
    } else {
        let mut serving = pin!(request::serve(worker, connection, &tables, listener, &stop, &mut call));
        let mut left = false;
        poll_fn(|context| {
            if let Poll::Ready(_reason) = serving.as_mut().poll(context) {
                return Poll::Ready(());
            }
            // A body may break rules that no frame's header tells of, and whoever reads it may have stopped to.
            if ends && !session.may_have_reset() {
                // Wakes this when that changes. What is triggered was seen above.
                let _pending = stop.poll_stopped(context);
            } else if !left && reply.poll_reset(context).is_ready() {
                // Nobody waits for it any more. What is under way is stopped and awaited.
                left = true;
                stop.trigger(StopReason::Abort);
                return serving.as_mut().poll(context).map(|_reason| ());
            }
            Poll::Pending
        })
        .await;
    }
    call.take_rest().await;
    drop((call, registered));
    worker.return_stop(stop);
}

/// One request with its response.
struct Stream<'a, N: Net> {
    session: &'a Session<N>,
    worker: &'a Rc<Worker<N>>,
    listener: &'a Listener,
    stop: &'a Stop,
    head: Head,
    body: http2::Body,
    reply: &'a http2::Shared<'a>,
    kept: Kept,
    /// The head's fields, once they have gone to an endpoint that may not look at them.
    sent: Option<KeptFields>,
    /// What it is as a call in gRPC-Web.
    web: Option<Box<grpc_web::Call>>,
    stage: Stage,
}

impl<N: Net> Call<N> for Stream<'_, N> {
    fn head(&self) -> impl ringmesh_codec::Head + '_ {
        &self.head
    }

    fn timeout(&self) -> Option<Duration> {
        match &self.web {
            Some(web) => web.timeout,
            None if self.head.is_grpc => grpc::timeout(&self.head.fields),
            None => None,
        }
    }

    fn announces_too_much(&self) -> bool {
        matches!(self.head.length, BodyLength::Fixed(length) if length > self.listener.head_limits.max_body_bytes)
    }

    fn admit(&self, hop: &Hop) -> Result<(), Reason> {
        match &self.head.asks {
            Asks::Upgrade(protocol) if !hop::may_upgrade(hop, std::iter::once(protocol.as_ref())) => {
                Err(Reason::NotImplemented)
            }
            _ => Ok(()),
        }
    }

    fn needs(&self) -> Needs {
        if self.web.is_some() { Needs::Http2 } else { Needs::Anything }
    }

    fn is_for_http2(&self) -> bool {
        self.head.is_grpc || self.session.connection.transport.plain().is_some()
    }

    async fn exchange(&mut self, lease: Leased<N>, patience: Patience, account: &mut Account) -> Result<(), Failed> {
        if self.head.asks != Asks::Nothing {
            return Box::pin(self.asking().exchange(lease, patience, account)).await;
        }
        if let Some(fields) = self.sent.take() {
            self.head.fields = fields.to_map();
        }
        let deadlines = patience.deadlines(self.stop, self.listener);
        let is_bridged = self.web.is_some() && matches!(lease, Leased::Shared(_));
        let result = match lease {
            Leased::Shared(lease) => self.over_http2(&lease, &deadlines, patience, account).await,
            Leased::Own(lease) => Box::pin(self.over_http1(lease, &deadlines, patience, account)).await,
        };
        if (self.head.is_grpc || is_bridged) && result.is_ok() {
            account.grpc_status.get_or_insert(status_without(account.status));
        }
        match result {
            Err(Failed::Stale) if !self.kept.is_whole() => Err(Failed::Ended(Reason::UpstreamReset)),
            result => result,
        }
    }

    async fn answer(&mut self, reason: Reason, account: &mut Account) {
        let status = reason.status();
        if self.head.is_grpc || self.web.is_some() {
            account.grpc_status = Some(grpc::status(reason));
        }
        // A caller knows by its status that messages are missing, and by which it may ask again.
        if self.head.is_grpc && self.stage == Stage::Begun && status != 0 {
            self.session.sends(0);
            if self.reply.end(grpc::trailers(reason)).is_ok() {
                self.stage = Stage::Done;
                return;
            }
        }
        if self.stage != Stage::Waiting || status == 0 {
            // The client must not take what it got for the whole.
            self.reply.reset(if reason == Reason::ClientAborted { Code::CANCEL } else { Code::INTERNAL_ERROR });
            return;
        }
        let elsewhere = redirect::elsewhere(reason, self.listener, &&self.head);
        let (mut response, body) = if self.head.is_grpc {
            (grpc::answer(reason), String::new())
        } else if let (Some(web), None) = (&self.web, &elsewhere) {
            (web.answer(reason), String::new())
        } else {
            local(reason, elsewhere, self.head.known_method())
        };
        redirect::tell_hsts(self.listener, response.headers_mut());
        let sent = response.status().as_u16();
        self.session.sends(body.len());
        if self.reply.send(response, body).is_ok() {
            account.status = sent;
            self.stage = Stage::Done;
        }
    }
}

/// Our own answer, and its body.
fn local(reason: Reason, elsewhere: Option<Elsewhere>, method: Method) -> (Response<()>, String) {
    let status = elsewhere.as_ref().map_or(reason.status(), |to| to.status);
    let body = format!("{status} {}: {}\n", crate::outcome::phrase(status), reason.label());
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    fields.insert("x-ringmesh-reason", HeaderValue::from_static(reason.label()));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    if let Some(Ok(location)) = elsewhere.map(|to| HeaderValue::try_from(to.location)) {
        fields.insert(header::LOCATION, location);
    }
    (response, if method == Method::Head { String::new() } else { body })
}

impl<N: Net> Stream<'_, N> {
    /// Takes what is under way of a body that nobody wants any more. We may reset the stream once the answer is sent (RFC 9113
    /// section 8.1), but clients such as curl 7 may then lose the answer. No further window is granted: that bounds it.
    async fn take_rest(&mut self) {
        let stopped = matches!(self.stop.reason(), Some(StopReason::Abort | StopReason::Drain));
        if self.stage != Stage::Done || self.body.is_done() || stopped {
            return;
        }
        self.stop.clear();
        self.stop.set_deadline(Some(self.worker.net.now() + TAKE_REST));
        while let Ok(Part::Data(_)) = self.body.next(self.stop).await {}
    }

    /// How much of the body was passed on: nothing yet.
    fn uploaded(&self) -> Uploaded {
        match self.head.length {
            BodyLength::None => Uploaded::whole(),
            _ => Uploaded::underway(self.head.expects_continue),
        }
    }

    /// Whether the next hop gets other fields than we got.
    fn writes(&self) -> bool {
        hop::writes_into(&self.listener.config.hop, self.head.method.as_str().as_bytes())
    }

    /// What the next hop gets.
    fn fields(&self) -> Cow<'_, HeaderMap> {
        if self.writes() { Cow::Owned(self.written()) } else { Cow::Borrowed(&self.head.fields) }
    }

    /// The same, where it goes for good.
    fn take_fields(&mut self) -> HeaderMap {
        if self.writes() {
            return self.written();
        }
        let fields = std::mem::take(&mut self.head.fields);
        self.sent = Some(KeptFields::of(&fields));
        fields
    }

    #[cold]
    fn written(&self) -> HeaderMap {
        let (hop, client) = (&self.listener.config.hop, self.session.connection.seen());
        let mut fields = self.head.fields.clone();
        hop::write_request(hop, client, hop::HTTP2, &&self.head, &mut Vec::new(), &mut fields);
        fields
    }

    /// It wants to be a tunnel.
    fn asking(&mut self) -> Asking<'_, N> {
        Asking {
            fields: self.fields().into_owned(),
            session: self.session,
            worker: self.worker,
            listener: self.listener,
            stop: self.stop,
            head: &self.head,
            body: &mut self.body,
            reply: self.reply,
            stage: &mut self.stage,
        }
    }

    /// Whether the request may be sent again when a connection that was used before turns out to be closed.
    fn may_repeat(&self) -> bool {
        self.head.length == BodyLength::None && self.head.known_method().is_safe()
    }

    /// The endpoint speaks HTTP/2 too.
    async fn over_http2(
        &mut self,
        lease: &shared::Lease<N>,
        deadlines: &Deadlines<'_>,
        patience: Patience,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let mut request = http::Request::new(());
        *request.version_mut() = Version::HTTP_2;
        *request.method_mut() = self.head.method.clone();
        *request.uri_mut() = self.head.uri_for(lease.hop()).ok_or(Failed::Ended(Reason::BadRequest))?;
        *request.headers_mut() = self.take_fields();
        if let Some(web) = &self.web {
            web.translate(request.headers_mut());
        }
        let is_grpc = self.head.is_grpc || self.web.is_some();
        if is_grpc {
            grpc::pass_timeout_on(request.headers_mut(), patience.deadline, self.worker.net.now());
        }
        let (uploaded, watch, turn) = (self.uploaded(), Watch::nobody(), Turn::default());
        let exchange = Exchange {
            stale: lease.reused && self.may_repeat(),
            is_grpc,
            ..Exchange::new(self.worker, self.listener, deadlines, &uploaded, &watch, &turn)
        };
        let session = self.session;
        let mut reply = http2::Download::new(self.reply, |bytes| session.sends(bytes));
        if let Some(web) = self.web.as_deref_mut() {
            let (body, kept, stage) = (&mut self.body, &mut self.kept, &mut self.stage);
            return Box::pin(web.over_http2(&exchange, lease, request, body, kept, &mut reply, stage, account)).await;
        }
        let mut body = Replayed::new(&mut self.body, &mut self.kept);
        exchange::over_http2(&exchange, lease, request, &mut body, &mut reply, &mut self.stage, account).await
    }

    /// The endpoint speaks HTTP/1.
    async fn over_http1(
        &mut self,
        lease: Lease<N>,
        deadlines: &Deadlines<'_>,
        patience: Patience,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let (uploaded, watch, turn) = (self.uploaded(), Watch::nobody(), Turn::default());
        let exchange = Exchange {
            stale: lease.reused && self.may_repeat(),
            is_grpc: self.head.is_grpc,
            ..Exchange::new(self.worker, self.listener, deadlines, &uploaded, &watch, &turn)
        };
        let mut scratch = self.worker.take_scratch();
        let (head, output) = scratch.for_endpoint();
        {
            // It may be a copy, which is not kept while the endpoint is waited for.
            let mut fields = self.fields();
            if self.head.is_grpc && patience.deadline.is_some() {
                grpc::pass_timeout_on(fields.to_mut(), patience.deadline, self.worker.net.now());
            }
            let Head { method, length, .. } = &self.head;
            let (target, authority) = (self.head.target_bytes(), self.head.authority_bytes());
            exchange::head::request_to_http1(method, target, authority, &fields, *length, output);
        }
        let length = self.head.length;
        let session = self.session;
        let mut reply = http2::Download::new(self.reply, |bytes| session.sends(bytes));
        let mut sink = http1::Outgoing::new(&lease.transport, output, length);
        let buffer = Buffer::take(Size::Small);
        let limits = &self.listener.response_limits;
        let mut answer = http1::Awaited::new(&lease.transport, head, buffer, self.head.known_method(), limits);
        let result = exchange.run(&mut self.body, &mut sink, &mut answer, &mut reply, &mut self.stage, account).await;
        let persists = result.is_ok() && uploaded.is_whole() && answer.persists();
        output.clear();
        self.worker.return_scratch(scratch);
        if persists {
            lease.give_back(self.worker);
        }
        result
    }
}
