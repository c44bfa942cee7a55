//! The endpoint speaks HTTP/2.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_codec::body::State;
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::grpc as words;
use ringmesh_codec::head::Method;
use ringmesh_model::hop::Connect;
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::net::Net;
use ringmesh_ring::stream::Stream;

use super::Scratch;
use super::exchange::{Exchange, HeadBytes, Stage};
use crate::outcome::Reason;
use crate::pool::shared;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::exchange::tunnel::{Side, Wanted};
use crate::proxy::pace::Pace;
use crate::proxy::progress::{Uploaded, Watch};
use crate::proxy::request::{Account, Failed, Patience};
use crate::proxy::{exchange, grpc, hop};

impl<N: Net> Exchange<'_, N> {
    /// The endpoint speaks HTTP/2.
    pub(super) async fn exchange_over_http2(
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
            return result.map_err(|failed| exchange::of_shared(&lease, failed));
        }
        let Scratch { request: head, to_client, text, .. } = &mut *self.scratch;
        let host = self.host.as_deref().map(str::as_bytes);
        let mut request = exchange::head::request_to_http2(head, &self.head, host, lease.hop())
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
                Box::pin(web.over_http2(&exchange, &lease, request, body, kept, reply, stage, account)).await
            } else {
                let mut body = exchange::replay::Replayed::new(&mut body, kept);
                exchange::over_http2(&exchange, &lease, request, &mut body, &mut reply, &mut stage, account).await
            }
        };
        if result.is_ok() && (is_grpc || self.web.is_some()) {
            account.grpc_status.get_or_insert(words::status_without(account.status));
        }
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
            Wanted::Upgrade(..) => exchange::head::request_to_http2(head, &self.head, None, lease.hop()),
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
}
