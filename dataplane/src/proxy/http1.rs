//! HTTP/1 on both sides: heads are read, judged and forwarded from the buffer they arrived in, bodies pass through as they
//! came (RFC 9112).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::future::poll_fn;
use std::ops::{Deref, Range};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringmesh_codec::body::{BodyScanner, State};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::grpc::{self as words, UNKNOWN};
use ringmesh_codec::head::{Head, Method, Version};
use ringmesh_codec::http1::{
    Chunked, Connection as ConnectionOption, Edits, Framing, Parsed, RequestHead, ResponseHead, Sink, Upgrade,
    write_local_response,
};
use ringmesh_codec::http2::begins_preface;
use ringmesh_codec::refusal::Refusal;
use ringmesh_codec::sniff;
use ringmesh_model::hop::Connect;
use ringmesh_ring::buffer::{Buffer, Size, Slice};
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error as StreamError, Idle, Stream};

use crate::outcome::{Reason, phrase};
use crate::pool::{Lease, Leased, shared};
use crate::proxy::connection::{Connection, Next};
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::exchange::replay::Kept;
use crate::proxy::exchange::tunnel::{Side, Wanted};
use crate::proxy::pace::{Credit, Pace};
use crate::proxy::progress::{Awaiting, Progress, Uploaded, Uploading, Watch};
use crate::proxy::redirect::{self, Elsewhere, HSTS};
use crate::proxy::relay::{Raced, Turn, race};
use crate::proxy::request::{self, Account, Call, Failed, Patience};
use crate::proxy::transport::Transport;
use crate::proxy::{date, exchange, grpc, grpc_web, hop, tunnel};
use crate::tables::{Listener, Tables};
use crate::upstream::Needs;
use crate::worker::{Worker, unix_micros};

/// The answer to a CONNECT whose tunnel ends here.
const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// Longest time that our own answer may take to be written.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Interim responses to one request at most: an endpoint that sends them without end would keep the request open for
/// ever. A `103` or two and a `100` are usual; a `102` (RFC 2518 section 10.1) may come every 20 seconds.
pub(super) const MAX_INTERIM: u32 = 100;

/// A body of known length goes through `splice(2)` if so many bytes of it are still to come.
const SPLICE_FROM: u64 = 512 * 1024;

/// Storage of one busy connection, used again by the next.
#[derive(Default)]
pub struct Scratch {
    request: RequestHead,
    response: ResponseHead,
    edits: Edits,
    to_upstream: Output,
    to_client: Output,
    text: Vec<u8>,
}

impl Scratch {
    /// What a request to an HTTP/1 endpoint needs that has come otherwise: its response's head, and what is sent.
    pub fn for_endpoint(&mut self) -> (&mut ResponseHead, &mut Output) {
        self.to_upstream.clear();
        (&mut self.response, &mut self.to_upstream)
    }
}

/// One busy time of a connection: serves requests until nothing more has come. `buffer` has what came already.
pub async fn serve<N: Net>(connection: Rc<Connection<N>>, mut buffer: Buffer) -> Next {
    let worker = connection.worker.clone();
    let mut scratch = worker.take_scratch();
    let next = loop {
        if connection.turn.takes_last_step() {
            ringmesh_ring::yield_now().await;
        }
        match one(&worker, &connection, &mut buffer, &mut scratch).await {
            Some(next) => break next,
            None if buffer.is_empty() => break Next::Idle,
            None => buffer.compact(),
        }
    };
    // What a refused body left there would hold its buffer.
    scratch.to_upstream.clear();
    worker.return_scratch(scratch);
    next
}

/// Serves one request. None: the connection may go on.
async fn one<N: Net>(
    worker: &Rc<Worker<N>>,
    connection: &Rc<Connection<N>>,
    buffer: &mut Buffer,
    scratch: &mut Scratch,
) -> Option<Next> {
    let tables = worker.tables();
    let listener = tables.listener(connection.listener).filter(|listener| connection.belongs(listener));
    let Some(listener) = listener else { return Some(Next::Close) };
    match read_head(worker, connection, listener, buffer, &mut scratch.request).await {
        Ok(true) => {}
        Ok(false) => return Some(Next::Idle),
        Err(Reason::ClientAborted) => return Some(Next::Close),
        Err(_) if begins_preface(buffer.filled()) && connection.may_begin_http2() => {
            return Some(Next::Http2(std::mem::replace(buffer, Buffer::hollow())));
        }
        Err(reason) => {
            return Some(Box::pin(refuse(worker, connection, &tables, listener, buffer, scratch, reason)).await);
        }
    }
    let head_bytes = scratch.request.len();
    let head = HeadBytes::Arrived(buffer.slice(0..head_bytes));
    let body = BodyScanner::new(scratch.request.framing(), &listener.head_limits);
    let web = grpc_web::Call::asked(listener, &scratch.request.view(&head));
    let stage = {
        let mut exchange = Exchange {
            worker,
            connection,
            listener,
            buffer,
            scratch,
            head,
            body,
            stage: Stage::Waiting,
            asks: Asks::Nothing,
            head_taken: false,
            kept: None,
            web,
        };
        request::serve(worker, connection, &tables, listener, &connection.stop, &mut exchange).await;
        exchange.stage
    };
    // Nobody else shows the head's bytes any more, so that their room can be used again.
    match stage {
        Stage::Done => {
            if scratch.request.framing().is_empty() {
                buffer.consume(head_bytes);
            }
            None
        }
        Stage::DoneAndClose => Some(Next::Linger),
        Stage::Waiting | Stage::Begun => Some(Next::Close),
    }
}

/// Answers a request whose head could not be read.
async fn refuse<N: Net>(
    worker: &Worker<N>,
    connection: &Connection<N>,
    tables: &Tables,
    listener: &Listener,
    buffer: &Buffer,
    scratch: &mut Scratch,
    mut reason: Reason,
) -> Next {
    if sniff::is_tls(buffer.filled()) {
        reason = Reason::TlsToPlainPort;
        worker.tell_hint(listener, connection.client_text(), reason);
    } else if let Some(refusal) = why_refused(buffer, listener) {
        worker.tell_unreadable(listener, connection.client_text(), reason, refusal);
    }
    let mut account = Account::default();
    let mut answer =
        Answer { reason, elsewhere: None, web: None, listener, close: true, head_only: false, account: &mut account };
    let sent = answer.send(connection, scratch).await;
    request::refused(worker, connection, tables, listener, &account, reason);
    if sent { Next::Linger } else { Next::Close }
}

/// Reads until a whole head is there. False: there was nothing at all.
async fn read_head<N: Net>(
    worker: &Worker<N>,
    connection: &Connection<N>,
    listener: &Listener,
    buffer: &mut Buffer,
    head: &mut RequestHead,
) -> Result<bool, Reason> {
    head.clear();
    let mut waited = false;
    while buffer.is_empty() {
        match connection.transport.try_fill(buffer) {
            Ok(Some(0)) | Err(_) => return Err(Reason::ClientAborted),
            Ok(Some(_)) => {}
            Ok(None) if !is_inside_record(&connection.transport) => return Ok(false),
            Ok(None) => {
                if !waited {
                    connection.stop.set_deadline(Some(worker.net.now() + listener.config.limits.header_timeout));
                    waited = true;
                }
                match race(connection.transport.readable(), connection.stop.stopped()).await {
                    Raced::First(_) => {}
                    Raced::Second(StopReason::Deadline) => return Err(Reason::ClientTimeout),
                    Raced::Second(_) => return Err(Reason::ClientAborted),
                }
            }
        }
    }
    loop {
        match head.parse(buffer.filled(), &listener.head_limits) {
            Ok(Parsed::Complete) => return Ok(true),
            Ok(Parsed::Partial) => {}
            Err(refusal) => return Err(Reason::of_refusal(&refusal)),
        }
        if buffer.spare() == 0 {
            buffer.grow();
        }
        if buffer.spare() == 0 {
            return Err(Reason::HeaderTooLarge);
        }
        if !waited {
            connection.stop.set_deadline(Some(worker.net.now() + listener.config.limits.header_timeout));
            waited = true;
        }
        match connection.transport.fill(buffer, &connection.stop).await {
            Ok(0) => return Err(Reason::ClientAborted),
            Ok(_) => {}
            Err(StreamError::Stopped(StopReason::Deadline)) => return Err(Reason::ClientTimeout),
            Err(_) => return Err(Reason::ClientAborted),
        }
    }
}

/// What is wrong with a head that was refused, looked at once more to tell it. None: it came too late, or not to its end.
#[cold]
fn why_refused(buffer: &Buffer, listener: &Listener) -> Option<Refusal> {
    RequestHead::default().parse(buffer.filled(), &listener.head_limits).err()
}

/// Whether a TLS record has begun and not ended. It belongs to a head, or else it could be drawn out for ever.
fn is_inside_record<S: Stream>(transport: &Transport<S>) -> bool {
    transport.plain().is_none() && !matches!(transport.check_idle(), Ok(Idle::Open))
}

/// How far the response has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing of it was sent to the client.
    Waiting,
    /// Its head was.
    Begun,
    /// All of it was, and the connection may go on.
    Done,
    /// All of it was, and the connection must end.
    DoneAndClose,
}

impl Stage {
    /// The same of an exchange with an endpoint that speaks HTTP/2. `persists`: whether the connection may go on behind it.
    fn of(stage: exchange::Stage, persists: bool) -> Self {
        match stage {
            exchange::Stage::Waiting => Self::Waiting,
            exchange::Stage::Begun => Self::Begun,
            exchange::Stage::Done if persists => Self::Done,
            exchange::Stage::Done => Self::DoneAndClose,
        }
    }
}

/// What a client asks to make of its connection.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asks {
    /// Nothing but a response.
    Nothing,
    /// One of another protocol.
    Upgrade,
    /// A tunnel.
    Connect,
}

/// The bytes of a request's head.
enum HeadBytes {
    /// Where they arrived.
    Arrived(Slice),
    /// A copy just as large, so that a tunnel keeps no buffer for as long as it lasts.
    Kept(Box<[u8]>),
}

impl Deref for HeadBytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match self {
            Self::Arrived(slice) => slice,
            Self::Kept(bytes) => bytes,
        }
    }
}

/// One request with its response.
struct Exchange<'a, N: Net> {
    worker: &'a Rc<Worker<N>>,
    connection: &'a Rc<Connection<N>>,
    listener: &'a Listener,
    /// From the head's first byte on; once the body is being passed on, what was not yet passed on.
    buffer: &'a mut Buffer,
    scratch: &'a mut Scratch,
    /// The head, which stays readable to the end.
    head: HeadBytes,
    /// How much of the request's body was passed on.
    body: BodyScanner,
    stage: Stage,
    asks: Asks,
    /// Whether the body alone is left in the buffer, after an attempt over HTTP/2.
    head_taken: bool,
    /// What of the body an HTTP/2 endpoint has got that may not have looked at it.
    kept: Option<Box<Kept>>,
    /// What it is as a call in gRPC-Web.
    web: Option<Box<grpc_web::Call>>,
}

impl<N: Net> Exchange<'_, N> {
    /// Whether the client's side may be used again after this request, as far as is known before the response.
    fn client_persists(&self) -> bool {
        self.scratch.request.persistent() && self.connection.goes_on()
    }
}

impl<N: Net> Call<N> for Exchange<'_, N> {
    fn head(&self) -> impl Head + '_ {
        self.scratch.request.view(&self.head)
    }

    fn timeout(&self) -> Option<Duration> {
        self.web.as_ref()?.timeout
    }

    fn needs(&self) -> Needs {
        if self.web.is_some() { Needs::Http2 } else { Needs::Anything }
    }

    fn is_for_http2(&self) -> bool {
        let head = self.scratch.request.view(&self.head);
        self.connection.transport.plain().is_none() && head.field("content-type").is_some_and(words::is_grpc)
    }

    fn announces_too_much(&self) -> bool {
        self.body.refused().is_some()
    }

    async fn exchange(&mut self, lease: Leased<N>, patience: Patience, account: &mut Account) -> Result<(), Failed> {
        let lease = match lease {
            Leased::Own(lease) => lease,
            Leased::Shared(lease) => return Box::pin(self.exchange_over_http2(lease, patience, account)).await,
        };
        self.write_request()?;
        let deadlines = patience.deadlines(&self.connection.stop, self.listener);
        if self.asks == Asks::Connect {
            // A tunnel begins on a connection of its own: there is no telling whether a kept one is still there.
            if !lease.fresh {
                self.scratch.to_upstream.clear();
                return Err(Failed::Stale);
            }
            if self.listener.config.hop.connect != Connect::Forward {
                return Box::pin(self.terminate_connect(lease, &deadlines, account)).await;
            }
        }
        if self.body.state() != State::Done {
            return Box::pin(self.exchange_with_body(lease, &deadlines, account)).await;
        }
        // Most requests have no body, and go no further than here.
        let stale = lease.reused && self.scratch.request.known_method().is_safe();
        let output = &mut self.scratch.to_upstream;
        let now = self.worker.net.now();
        deadlines.for_taking(Part::Forth, now, output.len_bytes(), Reason::UpstreamReadsSlowly);
        let sent = lease.transport.flush(output, &self.connection.stop).await;
        deadlines.forget(Part::Forth);
        if let Err(error) = sent {
            output.clear();
            return Err(match error {
                StreamError::Io(_) if stale => Failed::Stale,
                error => Failed::Ended(of_upstream(&error, &deadlines)),
            });
        }
        let Scratch { request, response, edits, to_client, text, .. } = &mut *self.scratch;
        let respond = Respond {
            worker: self.worker,
            connection: self.connection,
            listener: self.listener,
            upstream: &lease.transport,
            request,
            request_bytes: &self.head,
            asks: self.asks,
            upload: &Uploaded::whole(),
            stale,
            watch: &Watch::new(request),
            deadlines: &deadlines,
        };
        let end = respond.run(response, edits, text, to_client, &mut self.stage, account).await?;
        if end.tunnel {
            return Box::pin(self.tunnel(lease, account)).await;
        }
        if end.upstream_persists {
            lease.give_back(self.worker);
        }
        self.stage = if end.client_persists { Stage::Done } else { Stage::DoneAndClose };
        Ok(())
    }

    async fn answer(&mut self, reason: Reason, account: &mut Account) {
        if self.web.is_some() {
            account.grpc_status = Some(grpc::status(reason));
        }
        if self.stage != Stage::Waiting {
            // The client must not take what it got for the whole.
            self.connection.transport.reset_on_close();
            return;
        }
        let close = !self.client_persists() || self.body.state() != State::Done;
        let head_only = self.scratch.request.known_method() == Method::Head;
        let elsewhere = redirect::elsewhere(reason, self.listener, &self.head());
        let web = self.web.as_deref();
        let mut answer = Answer { reason, elsewhere, web, listener: self.listener, close, head_only, account };
        if answer.send(self.connection, self.scratch).await {
            self.stage = if close { Stage::DoneAndClose } else { Stage::Done };
        }
    }
}

impl<N: Net> Exchange<'_, N> {
    /// The endpoint speaks HTTP/2.
    async fn exchange_over_http2(
        &mut self,
        lease: shared::Lease<N>,
        patience: Patience,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let writes = self.writes_to_hops();
        if self.scratch.request.speaks_to_hops()
            && let Some(wanted) = self.wanted()
            && let Some(result) = Box::pin(self.tunnel_over_http2(&lease, &wanted, patience, account)).await
        {
            return result.map_err(|failed| exchange::tunnel::of_shared(&lease, failed));
        }
        let Scratch { request: head, to_client, text, .. } = &mut *self.scratch;
        let mut request = exchange::head::request_to_http2(head, &self.head, lease.hop())
            .map_err(|_unfit| Failed::Ended(Reason::BadRequest))?;
        let hop = &self.listener.config.hop;
        if writes {
            let version = hop::received(head.version());
            let client = self.connection.seen();
            hop::write_request(hop, client, version, &head.view(&self.head), text, request.headers_mut());
        }
        let (stop, now) = (&self.connection.stop, self.worker.net.now());
        let deadlines = patience.deadlines(stop, self.listener);
        if let Some(web) = &self.web {
            web.translate(request.headers_mut());
        }
        let is_grpc = grpc::is_call(request.headers());
        if is_grpc {
            grpc::pass_timeout_on(request.headers_mut(), patience.deadline, now);
        }
        let bodiless = self.body.state() == State::Done;
        if !bodiless && !std::mem::replace(&mut self.head_taken, true) {
            self.buffer.consume(self.head.len());
        }
        let uploaded = if bodiless {
            Uploaded::whole()
        } else {
            Uploaded::underway(head.expects_continue() && self.buffer.is_empty())
        };
        let watch = Watch::new(head);
        let turn = &self.connection.turn;
        let exchange = exchange::Exchange {
            stale: lease.reused && bodiless && head.known_method().is_safe(),
            is_grpc,
            ..exchange::Exchange::new(self.worker, self.listener, &deadlines, &uploaded, &watch, turn)
        };
        let mut progress = exchange::http1::Progress::new(self.body.clone());
        let mut stage = exchange::Stage::Waiting;
        // A browser that ends its side has gone.
        let may_half_close = watch.may_half_close && self.web.is_none();
        let mut reply = exchange::http1::Download::new(self.connection, head, to_client, may_half_close, &uploaded);
        let result = {
            let mut body = exchange::http1::Body::new(&self.connection.transport, self.buffer, &mut progress);
            let kept = self.kept.get_or_insert_default();
            if let Some(web) = self.web.as_deref_mut() {
                let (body, reply, stage) = (&mut body, &mut reply, &mut stage);
                let result =
                    Box::pin(web.over_http2(&exchange, &lease, request, body, kept, reply, stage, account)).await;
                if result.is_ok() {
                    account.grpc_status.get_or_insert(UNKNOWN);
                }
                result
            } else {
                let mut body = exchange::replay::Replayed::new(&mut body, kept);
                exchange::over_http2(&exchange, &lease, request, &mut body, &mut reply, &mut stage, account).await
            }
        };
        let persists = reply.persists;
        self.body = progress.scanner;
        self.stage = Stage::of(stage, persists && self.body.state() == State::Done);
        match result {
            Err(Failed::Stale) if self.kept.as_ref().is_some_and(|kept| !kept.is_whole()) => {
                Err(Failed::Ended(Reason::UpstreamReset))
            }
            result => result,
        }
    }

    /// The tunnel that the client asks for, if it may have one.
    #[cold]
    fn wanted(&self) -> Option<Wanted> {
        let (request, hop) = (&self.scratch.request, &self.listener.config.hop);
        if request.known_method() == Method::Connect {
            return Some(Wanted::Connect);
        }
        let asks = request.upgrade() && request.framing().is_empty() && request.known_method() == Method::Get;
        if !asks || !hop::may_upgrade(hop, request.upgrades(&self.head)) {
            return None;
        }
        let keys = request.fields(&self.head).filter(|(name, _)| name.eq_ignore_ascii_case(b"sec-websocket-key"));
        Wanted::by_upgrade(request.upgrades(&self.head).next()?, keys.map(|(_, key)| key))
    }

    /// The endpoint speaks HTTP/2, and the client asks for a tunnel. None: the endpoint knows none of that protocol, and the
    /// request may go on as if nothing had been asked (RFC 9110 section 7.8).
    async fn tunnel_over_http2(
        &mut self,
        lease: &shared::Lease<N>,
        wanted: &Wanted,
        patience: Patience,
        account: &mut Account,
    ) -> Option<Result<(), Failed>> {
        let (uploaded, stop) = (Uploaded::whole(), &self.connection.stop);
        let deadlines = patience.deadlines(stop, self.listener);
        let watch = Watch::new(&self.scratch.request);
        let is_connect = matches!(wanted, Wanted::Connect);
        let turn = &self.connection.turn;
        let exchange = exchange::Exchange {
            stale: lease.reused && !is_connect,
            ..exchange::Exchange::new(self.worker, self.listener, &deadlines, &uploaded, &watch, turn)
        };
        if is_connect {
            if self.listener.config.hop.connect == Connect::Terminate {
                // A stream of a connection that others use too carries no other bytes.
                return Some(Err(Failed::Ended(Reason::NotImplemented)));
            }
        } else {
            match exchange::tunnel::is_taken(&exchange, lease).await {
                Ok(true) => {}
                Ok(false) if wanted.is_websocket() => return Some(Err(Failed::Ended(Reason::UpgradeUnsupported))),
                Ok(false) => return None,
                Err(failed) => return Some(Err(failed)),
            }
        }
        Some(self.begin_over_http2(&exchange, lease, wanted, account).await)
    }

    async fn begin_over_http2(
        &mut self,
        exchange: &exchange::Exchange<'_, N>,
        lease: &shared::Lease<N>,
        wanted: &Wanted,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let Scratch { request: head, to_client, text, .. } = &mut *self.scratch;
        let request = match wanted {
            Wanted::Connect => exchange::head::connect_to_http2(head, &self.head),
            Wanted::Upgrade(..) => exchange::head::request_to_http2(head, &self.head, lease.hop()),
        };
        let mut request = request.map_err(|_unfit| Failed::Ended(Reason::BadRequest))?;
        wanted.ask_by_http2(&mut request);
        let (hop, version) = (&self.listener.config.hop, hop::received(head.version()));
        hop::write_request(hop, self.connection.seen(), version, &head.view(&self.head), text, request.headers_mut());
        let may_half_close = exchange.watch.may_half_close;
        let mut reply =
            exchange::http1::Download::new(self.connection, head, to_client, may_half_close, exchange.uploaded);
        let mut stage = exchange::Stage::Waiting;
        let (mut upload, mut answer) = exchange::tunnel::open(exchange, lease, request)?;
        let asked = exchange::tunnel::ask(exchange, &mut upload, &mut answer, &mut reply, &mut stage).await;
        if stage == exchange::Stage::Begun {
            self.stage = Stage::Begun;
        }
        let mut response = asked?;
        if !response.status().is_success() {
            let result = exchange.pass_back(response, &mut answer, &mut reply, &mut stage, account).await;
            self.stage = Stage::of(stage, reply.persists);
            return result;
        }
        wanted.begin_by_http1(&mut response);
        account.status = response.status().as_u16();
        self.stage = Stage::Begun;
        let connection = matches!(wanted, Wanted::Upgrade(..)).then_some("Upgrade");
        to_client.clear();
        let framing = exchange::head::Framing { length: BodyLength::None, connection };
        exchange::head::response_to_http1(&response, framing, to_client);
        let (deadlines, now) = (exchange.deadlines, self.worker.net.now());
        deadlines.for_taking(Part::Back, now, to_client.len_bytes(), Reason::ClientReadsSlowly);
        let sent = self.connection.transport.flush(to_client, &self.connection.stop).await;
        to_client.clear();
        sent.map_err(|error| Failed::Ended(deadlines.reason_of(&error, Reason::ClientAborted)))?;
        let early = self.buffer.slice(self.head.len()..self.buffer.len());
        self.head = HeadBytes::Kept(Box::from(&self.head[..]));
        *self.buffer = Buffer::hollow();
        let client = exchange::tunnel::Opaque::new(&self.connection.transport);
        let (mut from, mut to) = (client.incoming(early), client.outgoing());
        let pace = Pace::new(self.listener.config.limits.min_transfer_rate);
        let deadlines = Deadlines::new(&self.connection.stop, hop.tunnel_idle_timeout, pace);
        let (client, endpoint) = (Side { from: &mut from, to: &mut to }, Side { from: &mut answer, to: &mut upload });
        exchange::tunnel::carry(self.worker, &deadlines, client, endpoint, account).await.map_err(Failed::Ended)
    }

    /// Whether this hop has anything to say to others, or they to it.
    #[inline]
    fn writes_to_hops(&self) -> bool {
        self.scratch.request.speaks_to_hops() || hop::writes(&self.listener.config.hop)
    }

    /// Writes the head, with what this hop has to change in it.
    fn write_request(&mut self) -> Result<(), Failed> {
        self.scratch.edits.clear();
        self.scratch.to_upstream.clear();
        if self.writes_to_hops() {
            self.edit_request();
        }
        let HeadBytes::Arrived(head) = &self.head else { return Err(Failed::Ended(Reason::Internal)) };
        let Scratch { request, edits, to_upstream, .. } = &mut *self.scratch;
        request.write(head, edits, &mut Spans { head, output: to_upstream });
        Ok(())
    }

    /// What this hop has to change: for one connection, and for all who read it after us.
    #[cold]
    fn edit_request(&mut self) {
        let Scratch { request, edits, text, .. } = &mut *self.scratch;
        let hop = &self.listener.config.hop;
        let version = hop::received(request.version());
        hop::write_request(hop, self.connection.seen(), version, &request.view(&self.head), text, edits);
        if request.known_method() == Method::Connect {
            self.asks = Asks::Connect;
        } else if request.upgrade()
            && request.framing().is_empty()
            && hop::may_upgrade(hop, request.upgrades(&self.head))
        {
            // A body in front of the other protocol's bytes would be one more place at which two readers disagree.
            self.asks = Asks::Upgrade;
            edits.set_upgrade(Upgrade::Keep);
        }
    }

    /// Answers a CONNECT whose tunnel ends here, and carries its bytes.
    async fn terminate_connect(
        &mut self,
        lease: Lease<N>,
        deadlines: &Deadlines<'_>,
        account: &mut Account,
    ) -> Result<(), Failed> {
        self.scratch.to_upstream.clear();
        let output = &mut self.scratch.to_client;
        output.clear();
        output.push_bytes(CONNECTED);
        self.stage = Stage::Begun;
        let now = self.worker.net.now();
        deadlines.for_taking(Part::Back, now, output.len_bytes(), Reason::ClientReadsSlowly);
        let sent = self.connection.transport.flush(output, &self.connection.stop).await;
        output.clear();
        sent.map_err(|error| Failed::Ended(deadlines.reason_of(&error, Reason::ClientAborted)))?;
        account.status = 200;
        self.tunnel(lease, account).await
    }

    /// Carries bytes from now on. The head's buffers are given up: tunnels last long, and there may be many.
    async fn tunnel(&mut self, lease: Lease<N>, account: &mut Account) -> Result<(), Failed> {
        let early = &mut self.scratch.to_upstream;
        early.clear();
        early.push(self.buffer.slice(self.head.len()..self.buffer.len()));
        self.head = HeadBytes::Kept(Box::from(&self.head[..]));
        *self.buffer = Buffer::hollow();
        let Connection { transport: client, stop, .. } = &**self.connection;
        let pace = Pace::new(self.listener.config.limits.min_transfer_rate);
        let deadlines = Deadlines::new(stop, self.listener.config.hop.tunnel_idle_timeout, pace);
        let ended = tunnel::run(self.worker, client, &lease.transport, &deadlines, early, account).await;
        ended.map_err(Failed::Ended)
    }

    /// Both directions at once: the response may come before the request has ended.
    async fn exchange_with_body(
        &mut self,
        lease: Lease<N>,
        deadlines: &Deadlines<'_>,
        account: &mut Account,
    ) -> Result<(), Failed> {
        // What of the body came with the head goes with it.
        self.buffer.consume(self.head.len());
        match pass_on(&mut self.body, self.buffer, &mut self.scratch.to_upstream) {
            Ok(count) => account.request_bytes += count as u64,
            Err(reason) => return Err(Failed::Ended(reason)),
        }
        let stop = &self.connection.stop;
        // Who sends a part of the body at once waits for nobody.
        let awaits_continue = self.scratch.request.expects_continue() && account.request_bytes == 0;
        let uploaded = Uploaded::underway(awaits_continue);
        let Scratch { request, response, edits, to_client, to_upstream, text } = &mut *self.scratch;
        let watch = Watch::new(request);
        let respond = Respond {
            worker: self.worker,
            connection: self.connection,
            listener: self.listener,
            upstream: &lease.transport,
            request,
            request_bytes: &self.head,
            asks: Asks::Nothing,
            upload: &uploaded,
            stale: false,
            watch: &watch,
            deadlines,
        };
        let mut response_account = *account;
        let mut stage = self.stage;
        let upload = Upload {
            worker: self.worker,
            client: &self.connection.transport,
            upstream: &lease.transport,
            stop,
            turn: Turn::default(),
            uploaded: &uploaded,
            deadlines,
        };
        let mut upload_ended = None;
        let mut request_bytes = account.request_bytes;
        let responded = {
            let mut upload = pin!(upload.run(&mut self.body, self.buffer, to_upstream, &mut request_bytes));
            let mut respond = pin!(respond.run(response, edits, text, to_client, &mut stage, &mut response_account));
            let responded = poll_fn(|context| {
                if upload_ended.is_none()
                    && let Poll::Ready(result) = upload.as_mut().poll(context)
                {
                    if matches!(result, Err(Uploading::Client(_))) {
                        stop.trigger(StopReason::Abort);
                    }
                    uploaded.progress.set(if result.is_ok() { Progress::Whole } else { Progress::Cut });
                    deadlines.forget(Part::Forth);
                    watch.request_ended(&uploaded, deadlines, self.worker.net.now());
                    upload_ended = Some(result);
                }
                respond.as_mut().poll(context)
            })
            .await;
            if upload_ended.is_none() {
                // The response ended before the request: an operation in flight is stopped, never dropped.
                stop.trigger(StopReason::Abort);
                let _ = upload.await;
            }
            responded
        };
        if stop.reason() == Some(StopReason::Abort) {
            stop.clear();
        }
        self.stage = stage;
        *account = Account { request_bytes, ..response_account };
        if let Some(Err(Uploading::Client(reason))) = upload_ended {
            return Err(Failed::Ended(reason));
        }
        let end = responded?;
        let complete = matches!(upload_ended, Some(Ok(())));
        if end.upstream_persists && complete {
            lease.give_back(self.worker);
        }
        self.stage = if end.client_persists && complete { Stage::Done } else { Stage::DoneAndClose };
        Ok(())
    }
}

/// What a failed operation on the endpoint's connection ends in, before its response began.
fn of_upstream(error: &StreamError, deadlines: &Deadlines<'_>) -> Reason {
    match error {
        StreamError::Stopped(reason) => deadlines.reason(*reason),
        StreamError::Io(error) => Reason::of_upstream(error),
    }
}

/// Moves what `buffer` has of a body to `output`; how many bytes.
fn pass_on(body: &mut BodyScanner, buffer: &mut Buffer, output: &mut Output) -> Result<usize, Reason> {
    let scan = body.scan(buffer.filled()).map_err(|refusal| Reason::of_body(&refusal))?;
    output.push(buffer.slice(0..scan.consumed));
    buffer.consume(scan.consumed);
    Ok(scan.consumed)
}

/// Passes the rest of a request's body on.
struct Upload<'a, N: Net> {
    worker: &'a Worker<N>,
    client: &'a Transport<N::Stream>,
    upstream: &'a Transport<N::Stream>,
    stop: &'a Stop,
    turn: Turn,
    uploaded: &'a Uploaded,
    deadlines: &'a Deadlines<'a>,
}

impl<N: Net> Upload<'_, N> {
    async fn run(
        &self,
        body: &mut BodyScanner,
        buffer: &mut Buffer,
        output: &mut Output,
        passed: &mut u64,
    ) -> Result<(), Uploading> {
        // The head, with what came together with it.
        self.flush(output).await?;
        let mut full_reads = 0;
        let mut credit = Credit::new(self.deadlines.pace());
        while body.state() == State::More {
            self.turn.step().await;
            buffer.compact();
            if full_reads >= 2 {
                buffer.grow();
            }
            let room = buffer.spare();
            let count = self.receive(buffer, &mut credit).await.map_err(Uploading::Client)?;
            full_reads += u32::from(count == room);
            *passed += pass_on(body, buffer, output).map_err(Uploading::Client)? as u64;
            self.flush(output).await?;
        }
        Ok(())
    }

    /// Waits for the client, for as long as its credit and the idle timeout allow. Nothing else costs it credit: a client
    /// that is held back by the endpoint is not waited for.
    async fn receive(&self, buffer: &mut Buffer, credit: &mut Credit) -> Result<usize, Reason> {
        let begun = self.worker.net.now();
        let free = self.uploaded.awaits_continue.get();
        if free || self.deadlines.idle() <= credit.left() {
            self.deadlines.for_silence(Part::Forth, begun, Reason::ClientTimeout);
        } else {
            self.deadlines.set(Part::Forth, begun + credit.left(), Reason::ClientSendsSlowly);
        }
        let count = match self.client.fill(buffer, self.stop).await {
            Ok(0) => return Err(Reason::ClientAborted),
            Ok(count) => count,
            Err(error) => return Err(self.deadlines.reason_of(&error, Reason::ClientAborted)),
        };
        self.uploaded.awaits_continue.set(false);
        let waited = if free { Duration::ZERO } else { self.worker.net.now().saturating_since(begun) };
        credit.settle(waited, count);
        Ok(count)
    }

    async fn flush(&self, output: &mut Output) -> Result<(), Uploading> {
        let now = self.worker.net.now();
        self.deadlines.for_taking(Part::Forth, now, output.len_bytes(), Reason::UpstreamReadsSlowly);
        let result = self.upstream.flush(output, self.stop).await;
        output.clear();
        result.map_err(|_error| Uploading::Upstream)
    }
}

/// Passes a response back.
struct Respond<'a, N: Net> {
    worker: &'a Worker<N>,
    connection: &'a Connection<N>,
    listener: &'a Listener,
    upstream: &'a Transport<N::Stream>,
    request: &'a RequestHead,
    request_bytes: &'a [u8],
    asks: Asks,
    /// Whether all of the request has been passed on. What is left of it when the response is complete is never read: where
    /// that can be known when the head is written, the client is told. A longer response may well end after the request,
    /// as that of a service does which answers while it reads.
    upload: &'a Uploaded,
    /// Whether an end before the first byte means that the connection was closed while it was unused.
    stale: bool,
    watch: &'a Watch,
    deadlines: &'a Deadlines<'a>,
}

/// What may be used again after a response.
struct End {
    upstream_persists: bool,
    client_persists: bool,
    /// Whether both are a tunnel from now on.
    tunnel: bool,
}

impl<N: Net> Respond<'_, N> {
    async fn run(
        &self,
        head: &mut ResponseHead,
        edits: &mut Edits,
        text: &mut Vec<u8>,
        output: &mut Output,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<End, Failed> {
        let mut buffer = Buffer::take(Size::Small);
        output.clear();
        self.read_head(head, edits, output, &mut buffer, stage).await?;
        edits.clear();
        if self.listener.config.hop.via.is_some() {
            self.write_via(head, edits, text, &buffer);
        }
        if self.asks != Asks::Nothing {
            self.keep_offer(head, edits, &buffer);
            if self.begins_tunnel(head) {
                return Box::pin(self.begin_tunnel(head, edits, output, buffer, stage, account)).await;
            }
        }
        let method = self.request.known_method();
        let length = head.framing(method);
        let end = End {
            tunnel: false,
            upstream_persists: head.persistent(method),
            client_persists: self.request.persistent()
                && self.connection.goes_on()
                && self.ends_by_itself(length)
                && (self.upload.is_whole() || !is_whole(length, buffer.len() - head.len())),
        };
        self.write_head(head, edits, output, &mut buffer, length, &end);
        account.status = head.status();
        *stage = Stage::Begun;
        let mut body = BodyScanner::new(length, &self.listener.response_limits);
        self.relay(&mut body, &mut buffer, output, length, account).await.map_err(Failed::Ended)?;
        // Bytes behind the response would be taken for the next one.
        Ok(End { upstream_persists: end.upstream_persists && buffer.is_empty(), ..end })
    }

    #[cold]
    fn write_via(&self, head: &ResponseHead, edits: &mut Edits, text: &mut Vec<u8>, buffer: &Buffer) {
        let each = |visit: &mut dyn FnMut(&[u8], &[u8])| {
            head.fields(buffer.filled()).for_each(|(name, value)| visit(name, value));
        };
        hop::write_response(&self.listener.config.hop, hop::received(head.version()), each, text, edits);
    }

    /// Whether the client gets what it asks to make of its connection.
    fn begins_tunnel(&self, head: &ResponseHead) -> bool {
        match self.asks {
            Asks::Nothing => false,
            Asks::Upgrade => head.switches_protocols(),
            Asks::Connect => (200..300).contains(&head.status()),
        }
    }

    /// Whether a 101 is an answer to what was asked: it names one of the protocols, in the way it must (RFC 9110 section
    /// 7.8).
    fn is_agreed(&self, head: &ResponseHead, bytes: &[u8]) -> bool {
        let named = |protocol: &[u8]| {
            self.request.upgrades(self.request_bytes).any(|asked| asked.eq_ignore_ascii_case(protocol))
        };
        self.asks == Asks::Upgrade && head.upgrade(bytes).is_some_and(named)
    }

    /// Who asked for another protocol also learns which one the service wants instead, as a 426 must say (RFC 9110 section
    /// 15.5.22), if it is one that may be asked for.
    fn keep_offer(&self, head: &ResponseHead, edits: &mut Edits, buffer: &Buffer) {
        if hop::may_upgrade(&self.listener.config.hop, head.upgrade(buffer.filled()).into_iter()) {
            edits.set_upgrade(Upgrade::Keep);
        }
    }

    /// Passes the head of a tunnel back, with what the endpoint has sent already, which is the tunnel's.
    async fn begin_tunnel(
        &self,
        head: &ResponseHead,
        edits: &mut Edits,
        output: &mut Output,
        mut buffer: Buffer,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<End, Failed> {
        edits.set_framing(Framing::Drop);
        let bytes = buffer.slice(0..head.len());
        head.write(&bytes, edits, &mut Spans { head: &bytes, output });
        buffer.consume(head.len());
        account.status = head.status();
        *stage = Stage::Begun;
        account.response_bytes += buffer.len() as u64;
        output.push(buffer.slice(0..buffer.len()));
        self.flush(output).await.map_err(Failed::Ended)?;
        Ok(End { upstream_persists: false, client_persists: false, tunnel: true })
    }

    /// Whether the client can tell where the body ends without the connection's end.
    fn ends_by_itself(&self, length: BodyLength) -> bool {
        match length {
            BodyLength::UntilClose => false,
            BodyLength::Chunked => self.request.version() == Version::Http11,
            BodyLength::None | BodyLength::Fixed(_) => true,
        }
    }

    /// Reads until the final head is there, and passes interim ones on.
    async fn read_head(
        &self,
        head: &mut ResponseHead,
        edits: &mut Edits,
        output: &mut Output,
        buffer: &mut Buffer,
        stage: &mut Stage,
    ) -> Result<(), Failed> {
        let mut stale = self.stale;
        let mut interim = 0;
        loop {
            head.clear();
            loop {
                if !buffer.is_empty() {
                    match head.parse(buffer.filled(), &self.listener.response_limits) {
                        Ok(Parsed::Complete) => break,
                        Ok(Parsed::Partial) => {}
                        Err(refusal) => {
                            tracing::debug!(target: "codec", endpoint = ?self.upstream.peer_address(), "unreadable response: {refusal}");
                            return Err(Failed::Ended(Reason::UpstreamGarbage));
                        }
                    }
                }
                if buffer.spare() == 0 {
                    // Interim heads may have left room in front.
                    buffer.compact();
                    if buffer.spare() == 0 {
                        buffer.grow();
                    }
                    if buffer.spare() == 0 {
                        return Err(Failed::Ended(Reason::UpstreamGarbage));
                    }
                }
                if self.connection.turn.takes_last_step() {
                    ringmesh_ring::yield_now().await;
                }
                match self.receive(buffer).await {
                    Ok(0) if stale => return Err(Failed::Stale),
                    Ok(0) => return Err(Failed::Ended(Reason::UpstreamReset)),
                    Ok(_) => stale = false,
                    Err(StreamError::Io(_)) if stale => return Err(Failed::Stale),
                    Err(error) => return Err(Failed::Ended(of_upstream(&error, self.deadlines))),
                }
            }
            if head.switches_protocols() && !self.is_agreed(head, buffer.filled()) {
                // Nobody asked for it.
                return Err(Failed::Ended(Reason::UpstreamGarbage));
            }
            if !head.interim() {
                return Ok(());
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Failed::Ended(Reason::UpstreamGarbage));
            }
            Box::pin(self.pass_interim(head, edits, output, buffer, stage)).await?;
        }
    }

    /// Passes an interim response on, if the client can take one.
    async fn pass_interim(
        &self,
        head: &ResponseHead,
        edits: &mut Edits,
        output: &mut Output,
        buffer: &mut Buffer,
        stage: &mut Stage,
    ) -> Result<(), Failed> {
        if self.request.version() == Version::Http11 {
            let bytes = buffer.slice(0..head.len());
            edits.clear();
            head.write(&bytes, edits, &mut Spans { head: &bytes, output });
            drop(bytes);
            // Half of it may go, and then nothing else can be said.
            *stage = Stage::Begun;
            self.flush(output).await.map_err(Failed::Ended)?;
            *stage = Stage::Waiting;
            if head.status() == 100 {
                self.upload.may_go_on(self.deadlines, self.worker.net.now());
            }
        }
        buffer.consume(head.len());
        Ok(())
    }

    fn write_head(
        &self,
        head: &ResponseHead,
        edits: &mut Edits,
        output: &mut Output,
        buffer: &mut Buffer,
        length: BodyLength,
        end: &End,
    ) {
        let version = self.request.version();
        if !end.client_persists {
            edits.set_connection(ConnectionOption::Close);
        } else if version == Version::Http10 {
            edits.set_connection(ConnectionOption::KeepAlive);
        }
        if version == Version::Http10 && length == BodyLength::Chunked {
            edits.set_chunked(Chunked::Remove);
        }
        if let Some(hsts) = &self.listener.hsts {
            edits.set(HSTS, hsts.as_bytes()).expect("a field of its own with letters and digits");
        }
        let bytes = buffer.slice(0..head.len());
        head.write(&bytes, edits, &mut Spans { head: &bytes, output });
        buffer.consume(head.len());
    }

    /// Passes the body on, its first bytes together with the head that waits in `output`.
    async fn relay(
        &self,
        body: &mut BodyScanner,
        buffer: &mut Buffer,
        output: &mut Output,
        length: BodyLength,
        account: &mut Account,
    ) -> Result<(), Reason> {
        let only_content = self.request.version() == Version::Http10 && length == BodyLength::Chunked;
        let mut full_reads = 0;
        loop {
            if only_content {
                account.response_bytes += content(body, buffer, output)? as u64;
            } else {
                let scan = body.scan(buffer.filled()).map_err(|_refusal| Reason::ResponseTruncated)?;
                output.push(buffer.slice(0..scan.consumed));
                buffer.consume(scan.consumed);
                account.response_bytes += scan.consumed as u64;
            }
            self.flush(output).await?;
            if body.state() == State::Done {
                return Ok(());
            }
            // Without descriptors left the bytes are copied.
            if !only_content
                && self.may_splice(body, buffer)
                && let Ok(pipe) = self.worker.take_pipe()
            {
                self.splice(pipe, body, account).await?;
                continue;
            }
            self.connection.turn.step().await;
            buffer.compact();
            if full_reads >= 2 {
                buffer.grow();
            }
            let room = buffer.spare();
            self.watch.wait(Awaiting::Body, self.upload, self.deadlines, self.worker.net.now());
            let received = self.upstream.fill(buffer, &self.connection.stop).await;
            self.watch.awaiting.set(Awaiting::Nothing);
            match received {
                Ok(0) => return body.close().map_err(|_refusal| Reason::ResponseTruncated),
                Ok(count) if count == room => full_reads += 1,
                Ok(_) => {}
                Err(error) => return Err(self.deadlines.reason_of(&error, Reason::ResponseTruncated)),
            }
        }
    }

    /// Whether the rest of the body is large and both sides are plain sockets.
    fn may_splice(&self, body: &BodyScanner, buffer: &Buffer) -> bool {
        let left = body.unframed_bytes();
        let both_plain = self.upstream.plain().is_some() && self.connection.transport.plain().is_some();
        (SPLICE_FROM..u64::MAX).contains(&left) && buffer.is_empty() && both_plain
    }

    /// Moves content from socket to socket inside the kernel.
    async fn splice(&self, mut pipe: Pipe, body: &mut BodyScanner, account: &mut Account) -> Result<(), Reason> {
        while body.unframed_bytes() > 0 {
            self.watch.wait(Awaiting::Body, self.upload, self.deadlines, self.worker.net.now());
            let max = usize::try_from(body.unframed_bytes()).unwrap_or(usize::MAX);
            self.connection.turn.step().await;
            // The first time all that is there waits for the client.
            let mut end = None;
            let waiting = |bytes| {
                let now = self.worker.net.now();
                let end = *end.get_or_insert_with(|| now + self.deadlines.pace().time_for(bytes));
                self.deadlines.while_taking(Part::Back, now, end, Reason::ClientReadsSlowly);
            };
            let (client, stop) = (&self.connection.transport, &self.connection.stop);
            let moved = self.upstream.splice_telling(client, &mut pipe, max, stop, waiting).await;
            self.watch.awaiting.set(Awaiting::Nothing);
            match moved {
                Ok(0) => return Err(Reason::ResponseTruncated),
                Ok(count) => {
                    body.skip(count as u64);
                    account.response_bytes += count as u64;
                }
                Err(error) => return Err(self.deadlines.reason_of(&error, Reason::ResponseTruncated)),
            }
        }
        self.worker.return_pipe(pipe);
        Ok(())
    }

    async fn flush(&self, output: &mut Output) -> Result<(), Reason> {
        if output.is_empty() {
            return Ok(());
        }
        let now = self.worker.net.now();
        self.deadlines.for_taking(Part::Back, now, output.len_bytes(), Reason::ClientReadsSlowly);
        let result = self.connection.transport.flush(output, &self.connection.stop).await;
        output.clear();
        result.map_err(|error| self.deadlines.reason_of(&error, Reason::ClientAborted))
    }

    /// Waits for bytes of the response. A client that waits long is watched meanwhile.
    async fn receive(&self, buffer: &mut Buffer) -> Result<usize, StreamError> {
        let stop = &self.connection.stop;
        self.watch.wait(Awaiting::Head, self.upload, self.deadlines, self.worker.net.now());
        let result = self.upstream.fill(buffer, stop).await;
        self.watch.awaiting.set(Awaiting::Nothing);
        if !self.watch.due.take() || stop.reason() != Some(StopReason::Deadline) {
            return result;
        }
        let now = self.worker.net.now();
        if self.deadlines.is_over(Part::Whole, now) {
            return result;
        }
        stop.clear();
        self.deadlines.for_silence(Part::Back, now, Reason::RequestTimeout);
        match result {
            Err(StreamError::Stopped(_)) => Box::pin(self.receive_watching(buffer)).await,
            // Bytes that came at that very moment have won.
            result => result,
        }
    }

    async fn receive_watching(&self, buffer: &mut Buffer) -> Result<usize, StreamError> {
        let stop = &self.connection.stop;
        let mut receive = pin!(self.upstream.fill(buffer, stop));
        let mut gone = pin!(client_gone(&self.connection.transport, self.watch.may_half_close));
        let mut watching = true;
        poll_fn(|context| {
            if watching && gone.as_mut().poll(context).is_ready() {
                watching = false;
                stop.trigger(StopReason::Abort);
            }
            receive.as_mut().poll(context)
        })
        .await
    }
}

/// Resolves when the client has gone. Never, if it sends further requests meanwhile or ended its side as it may.
pub(super) async fn client_gone<S: Stream>(client: &Transport<S>, may_half_close: bool) {
    if client.readable().await.is_err() {
        return;
    }
    match client.check_idle() {
        Err(_) => return,
        Ok(Idle::Closed) if !may_half_close => return,
        // Nobody else reads now, and there is nothing but the end.
        Ok(Idle::Closed) if client.try_fill(&mut Buffer::take(Size::Small)).is_err() => return,
        Ok(_) => {}
    }
    std::future::pending().await
}

/// Whether a body of this length is here whole, with `bytes` of it; chunks are not counted for that.
pub(super) fn is_whole(length: BodyLength, bytes: usize) -> bool {
    match length {
        BodyLength::None => true,
        BodyLength::Fixed(length) => length <= bytes as u64,
        BodyLength::Chunked | BodyLength::UntilClose => false,
    }
}

/// Moves what `buffer` has of a chunked body's content to `output`, without its framing; how many bytes.
fn content(body: &mut BodyScanner, buffer: &mut Buffer, output: &mut Output) -> Result<usize, Reason> {
    let mut passed = 0;
    while !buffer.is_empty() && body.state() == State::More {
        let piece = body.next_piece(buffer.filled()).map_err(|_refusal| Reason::ResponseTruncated)?;
        passed += piece.data.len();
        output.push(buffer.slice(piece.data));
        buffer.consume(piece.consumed);
    }
    Ok(passed)
}

/// Where a head is written to: unchanged spans are sent from where they lie.
pub struct Spans<'a> {
    /// The head as it came.
    pub head: &'a Slice,
    /// What is sent.
    pub output: &'a mut Output,
}

impl Sink for Spans<'_> {
    fn original(&mut self, range: Range<usize>) {
        self.output.push(self.head.slice(range));
    }

    fn inserted(&mut self, text: &[u8]) {
        self.output.push_bytes(text);
    }
}

/// An answer of our own.
struct Answer<'a> {
    reason: Reason,
    elsewhere: Option<Elsewhere>,
    web: Option<&'a grpc_web::Call>,
    listener: &'a Listener,
    close: bool,
    head_only: bool,
    account: &'a mut Account,
}

impl Answer<'_> {
    /// Sends it; whether that went well.
    async fn send<N: Net>(&mut self, connection: &Connection<N>, scratch: &mut Scratch) -> bool {
        let mut status = self.elsewhere.as_ref().map_or(self.reason.status(), |to| to.status);
        if status == 0 || connection.stop.reason() == Some(StopReason::Drain) {
            return false;
        }
        let mut body = format_args!("{status} {}: {}\n", phrase(status), self.reason.words()).to_string();
        let date = date::text(unix_micros() / 1_000_000);
        let reason = ("x-ringmesh-reason", self.reason.label());
        let mut fields = [("", ""); 8];
        fields[..3].copy_from_slice(&[("content-type", "text/plain"), ("date", &date), reason]);
        let mut count = 3;
        let call = self.web.filter(|_| self.elsewhere.is_none()).map(|web| web.answer(self.reason));
        if let Some(call) = &call {
            let field =
                |name| (name, call.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default());
            (fields[0], fields[3], fields[4]) = (field("content-type"), field("grpc-status"), field("grpc-message"));
            count = 5;
            status = call.status().as_u16();
            body.clear();
        }
        let location = self.elsewhere.as_ref().map(|to| ("location", to.location.as_str()));
        let hsts = self.listener.hsts.as_deref().map(|hsts| (HSTS, hsts));
        let close = self.close.then_some(("connection", "close"));
        for field in [location, hsts, close].into_iter().flatten() {
            fields[count] = field;
            count += 1;
        }
        scratch.text.clear();
        write_local_response(status, phrase(status), &fields[..count], body.len() as u64, &mut scratch.text);
        if !self.head_only {
            scratch.text.extend_from_slice(body.as_bytes());
        }
        scratch.to_client.clear();
        scratch.to_client.push_bytes(&scratch.text);
        connection.stop.set_deadline(Some(connection.worker.net.now() + ANSWER_TIMEOUT));
        connection.stop.clear();
        let sent = connection.transport.flush(&mut scratch.to_client, &connection.stop).await.is_ok();
        scratch.to_client.clear();
        if sent {
            self.account.status = status;
        }
        sent
    }
}
