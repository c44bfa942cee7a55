//! One request with its response: what endpoints of both versions have in common, and those of HTTP/1.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::future::poll_fn;
use std::ops::Deref;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use ringmesh_codec::authority;
use ringmesh_codec::body::{BodyScanner, State};
use ringmesh_codec::grpc as words;
use ringmesh_codec::head::{Head, Method};
use ringmesh_codec::http1::Upgrade;
use ringmesh_model::hop::Connect;
use ringmesh_ring::buffer::{Buffer, Slice};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::{Error as StreamError, Stream};

use super::Scratch;
use super::answer::Answer;
use super::respond::{Respond, of_upstream};
use super::spans::Spans;
use super::upload::{Upload, pass_on};
use crate::outcome::Reason;
use crate::pool::{Lease, Leased};
use crate::proxy::connection::Connection;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::exchange::replay::Kept;
use crate::proxy::pace::Pace;
use crate::proxy::progress::{Progress, Uploaded, Uploading, Watch};
use crate::proxy::relay::Turn;
use crate::proxy::request::{Account, Call, Failed, Patience};
use crate::proxy::{exchange, grpc, grpc_web, hop, redirect, tunnel};
use crate::tables::Listener;
use crate::upstream::Needs;
use crate::worker::Worker;

/// The answer to a CONNECT whose tunnel ends here.
const CONNECTED: &[u8] = b"HTTP/1.1 200 Connection Established\r\n\r\n";

/// How far the response has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
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
    pub(super) fn of(stage: exchange::Stage, persists: bool) -> Self {
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
pub(super) enum Asks {
    /// Nothing but a response.
    Nothing,
    /// One of another protocol.
    Upgrade,
    /// A tunnel.
    Connect,
}

/// The bytes of a request's head.
pub(super) enum HeadBytes {
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
pub(super) struct Exchange<'a, N: Net> {
    pub(super) worker: &'a Rc<Worker<N>>,
    pub(super) connection: &'a Rc<Connection<N>>,
    pub(super) listener: &'a Listener,
    /// From the head's first byte on; once the body is being passed on, what was not yet passed on.
    pub(super) buffer: &'a mut Buffer,
    pub(super) scratch: &'a mut Scratch,
    /// The head, which stays readable to the end.
    pub(super) head: HeadBytes,
    /// How much of the request's body was passed on.
    pub(super) body: BodyScanner,
    pub(super) stage: Stage,
    pub(super) asks: Asks,
    /// Whether the body alone is left in the buffer, after an attempt over HTTP/2.
    pub(super) head_taken: bool,
    /// What of the body an HTTP/2 endpoint has got that may not have looked at it.
    pub(super) kept: Option<Box<Kept>>,
    /// What it is as a call in gRPC-Web.
    pub(super) web: Option<Box<grpc_web::Call>>,
    /// The host for the next hop, where the client names none.
    pub(super) host: Option<Box<str>>,
}

impl<N: Net> Exchange<'_, N> {
    /// Whether the client's side may be used again after this request, as far as is known before the response.
    fn client_persists(&self) -> bool {
        self.scratch.request.persistent() && self.connection.goes_on()
    }

    /// Whether it is a gRPC call.
    fn is_grpc(&self) -> bool {
        self.scratch.request.view(&self.head).field("content-type").is_some_and(words::is_grpc)
    }
}

impl<N: Net> Call<N> for Exchange<'_, N> {
    fn head(&self) -> impl Head + '_ {
        self.scratch.request.view(&self.head)
    }

    fn timeout(&self) -> Option<Duration> {
        if let Some(web) = &self.web {
            return web.timeout;
        }
        // Between two of our proxies a call comes by HTTP/1; it is a POST always, and most requests are none.
        if self.scratch.request.known_method() != Method::Post || !self.is_grpc() {
            return None;
        }
        let head = self.scratch.request.view(&self.head);
        head.field(grpc::TIMEOUT.as_str()).and_then(words::parse_timeout)
    }

    fn needs(&self) -> Needs {
        if self.web.is_some() { Needs::Http2 } else { Needs::Anything }
    }

    fn is_for_http2(&self) -> bool {
        self.connection.transport.plain().is_none() && self.is_grpc()
    }

    fn announces_too_much(&self) -> bool {
        self.body.refused().is_some()
    }

    #[cold]
    fn name_host(&mut self, host: &str) {
        self.host = authority::parse(host.as_bytes()).is_ok().then(|| host.into());
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
        // Between two of our proxies a call comes by HTTP/1, and its caller is to know the answer.
        let is_grpc = self.is_grpc();
        if is_grpc || self.web.is_some() {
            account.grpc_status = Some(grpc::status(reason));
        }
        if self.stage != Stage::Waiting {
            // The client must not take what it got for the whole.
            self.connection.transport.reset_on_close();
            return;
        }
        let close = !self.client_persists() || self.body.state() != State::Done;
        let head_only = self.scratch.request.known_method() == Method::Head;
        let elsewhere = redirect::elsewhere(reason, self.listener, &self.head()).filter(|_| !is_grpc);
        let call = match &self.web {
            _ if is_grpc => Some(grpc::answer(reason)),
            Some(web) if elsewhere.is_none() => Some(web.answer(reason)),
            _ => None,
        };
        let mut answer = Answer { reason, elsewhere, call, listener: self.listener, close, head_only, account };
        if answer.send(self.connection, self.scratch).await {
            self.stage = if close { Stage::DoneAndClose } else { Stage::Done };
        }
    }
}

impl<N: Net> Exchange<'_, N> {
    /// Whether this hop has anything to say to others, or they to it.
    #[inline]
    pub(super) fn writes_to_hops(&self) -> bool {
        self.scratch.request.speaks_to_hops() || hop::writes(&self.listener.config.hop)
    }

    /// Writes the head, with what this hop has to change in it.
    fn write_request(&mut self) -> Result<(), Failed> {
        self.scratch.edits.clear();
        self.scratch.to_upstream.clear();
        if self.writes_to_hops() {
            self.edit_request();
        }
        if let Some(host) = &self.host {
            self.scratch.edits.set("Host", host.as_bytes()).map_err(|_| Failed::Ended(Reason::Internal))?;
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
