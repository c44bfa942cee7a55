//! A stream of which its client wants to make a tunnel.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::rc::Rc;

use h2::Reason as Code;
use http::{HeaderMap, Method, Response, Version};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::head::Method as Known;
use ringmesh_model::hop::Connect;
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;

use super::Session;
use super::head::{Asks, Head};
use crate::outcome::Reason;
use crate::pool::{Lease, Leased, shared};
use crate::proxy::deadline::Deadlines;
use crate::proxy::exchange::tunnel::{self, Opaque, Side, Wanted};
use crate::proxy::exchange::{self, Exchange, Sink, Source, Stage, http1, http2};
use crate::proxy::pace::Pace;
use crate::proxy::progress::{Uploaded, Watch};
use crate::proxy::relay::Turn;
use crate::proxy::request::{Account, Failed, Patience};
use crate::tables::Listener;
use crate::worker::Worker;

/// A stream on its way to become a tunnel.
pub struct Asking<'a, N: Net> {
    /// The connection it is on.
    pub session: &'a Session<N>,
    /// Where it runs.
    pub worker: &'a Rc<Worker<N>>,
    /// Where it came in.
    pub listener: &'a Listener,
    /// Ends it.
    pub stop: &'a Stop,
    /// What was asked.
    pub head: &'a Head,
    /// The fields that the endpoint gets.
    pub fields: HeaderMap,
    /// What comes from the client.
    pub body: &'a mut http2::Body,
    /// The way to it.
    pub reply: &'a http2::Shared<'a>,
    /// How far the response has come.
    pub stage: &'a mut Stage,
}

impl<N: Net> Asking<'_, N> {
    /// Asks an endpoint for it, and carries it.
    ///
    /// # Errors
    /// How it failed. A tunnel that had begun was reset.
    pub async fn exchange(mut self, lease: Leased<N>, patience: Patience, account: &mut Account) -> Result<(), Failed> {
        let deadlines = patience.deadlines(self.stop, self.listener);
        let result = match lease {
            Leased::Own(lease) => self.over_http1(lease, &deadlines, account).await,
            Leased::Shared(lease) => {
                let result = self.over_http2(&lease, &deadlines, account).await;
                result.map_err(|failed| exchange::of_shared(&lease, failed))
            }
        };
        if result.is_err() && *self.stage == Stage::Begun {
            // RFC 8441 section 5, and RFC 9113 section 8.5.
            self.reply.reset(if self.head.asks == Asks::Connect { Code::CONNECT_ERROR } else { Code::CANCEL });
        }
        result
    }

    fn wanted(&self) -> Wanted {
        match &self.head.asks {
            Asks::Upgrade(protocol) => Wanted::by_connect(protocol.clone(), || self.worker.net.random()),
            Asks::Connect | Asks::Nothing => Wanted::Connect,
        }
    }

    /// The endpoint speaks HTTP/1.
    async fn over_http1(
        &mut self,
        lease: Lease<N>,
        deadlines: &Deadlines<'_>,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let wanted = self.wanted();
        let (uploaded, watch, turn) = (Uploaded::whole(), Watch::nobody(), Turn::default());
        let is_connect = self.head.asks == Asks::Connect;
        if is_connect && !lease.fresh {
            // There is no telling whether a kept connection is still there.
            return Err(Failed::Stale);
        }
        let exchange = Exchange {
            stale: lease.reused && !is_connect,
            ..Exchange::new(self.worker, self.listener, deadlines, &uploaded, &watch, &turn)
        };
        let session = self.session;
        let mut reply = http2::Download::new(self.reply, |bytes| session.sends(bytes));
        if is_connect && self.listener.config.hop.connect == Connect::Terminate {
            tunnel::begin(&exchange, Response::new(()), &mut reply, self.stage, account)?;
            return self.carry_over_http1(lease, Buffer::hollow(), account).await;
        }
        wanted.ask_by_http1(&mut self.fields);
        let mut scratch = self.worker.take_scratch();
        let (head, output) = scratch.for_endpoint();
        let (target, authority) = (self.head.target_bytes(), self.head.authority_bytes());
        let method = if is_connect { Method::CONNECT } else { Method::GET };
        exchange::head::request_to_http1(&method, target, authority, &self.fields, BodyLength::None, output);
        let mut sink = http1::Outgoing::new(&lease.transport, output, BodyLength::None);
        let limits = &self.listener.response_limits;
        let buffer = Buffer::take(Size::Small);
        let known = if is_connect { Known::Connect } else { Known::Get };
        let mut answer = http1::Awaited::new(&lease.transport, head, buffer, known, limits);
        if let Some(protocol) = wanted.protocol() {
            answer = answer.asking_for(protocol.as_ref());
        }
        let mut response = tunnel::ask(&exchange, &mut sink, &mut answer, &mut reply, self.stage).await?;
        if !wanted.is_begun_by_http1(&response).map_err(Failed::Ended)? {
            exchange.pass_back(response, &mut answer, &mut reply, self.stage, account).await?;
            let persists = answer.persists();
            self.worker.return_scratch(scratch);
            if persists {
                lease.give_back(self.worker);
            }
            return Ok(());
        }
        let early = std::mem::replace(&mut answer.buffer, Buffer::hollow());
        self.worker.return_scratch(scratch);
        wanted.begin_by_http2(&mut response);
        tunnel::begin(&exchange, response, &mut reply, self.stage, account)?;
        self.carry_over_http1(lease, early, account).await
    }

    /// `early`: what the endpoint has sent of it already.
    async fn carry_over_http1(&mut self, lease: Lease<N>, early: Buffer, account: &mut Account) -> Result<(), Failed> {
        let connection = Opaque::new(&lease.transport);
        let early = {
            let buffer = early;
            buffer.slice(0..buffer.len())
        };
        let (mut from, mut to) = (connection.incoming(early), connection.outgoing());
        let result = self.carry(Side { from: &mut from, to: &mut to }, account).await;
        if result.is_err() {
            // The endpoint learns that this was no orderly end.
            lease.transport.reset_on_close();
        }
        result
    }

    /// The endpoint speaks HTTP/2 too.
    async fn over_http2(
        &mut self,
        lease: &shared::Lease<N>,
        deadlines: &Deadlines<'_>,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let (uploaded, watch, turn) = (Uploaded::whole(), Watch::nobody(), Turn::default());
        let is_connect = self.head.asks == Asks::Connect;
        let exchange = Exchange {
            stale: lease.reused && !is_connect,
            ..Exchange::new(self.worker, self.listener, deadlines, &uploaded, &watch, &turn)
        };
        let bad = Failed::Ended(Reason::BadRequest);
        let mut request = if is_connect {
            if self.listener.config.hop.connect == Connect::Terminate {
                // A stream of a connection that others use too carries no other bytes.
                return Err(Failed::Ended(Reason::NotImplemented));
            }
            exchange::head::connect(self.head.authority_bytes()).map_err(|_unfit| bad)?
        } else {
            if !tunnel::is_taken(&exchange, lease).await? {
                return Err(Failed::Ended(Reason::UpgradeUnsupported));
            }
            let mut request = http::Request::new(());
            *request.version_mut() = Version::HTTP_2;
            *request.uri_mut() = self.head.uri_for(lease.hop()).ok_or(bad)?;
            request
        };
        *request.headers_mut() = std::mem::take(&mut self.fields);
        let wanted = self.wanted();
        wanted.ask_by_http2(&mut request);
        let session = self.session;
        let mut reply = http2::Download::new(self.reply, |bytes| session.sends(bytes));
        let (mut upload, mut answer) = tunnel::open(&exchange, lease, request)?;
        let mut response = tunnel::ask(&exchange, &mut upload, &mut answer, &mut reply, self.stage).await?;
        if !response.status().is_success() {
            return exchange.pass_back(response, &mut answer, &mut reply, self.stage, account).await;
        }
        wanted.begin_by_http2(&mut response);
        tunnel::begin(&exchange, response, &mut reply, self.stage, account)?;
        self.carry(Side { from: &mut answer, to: &mut upload }, account).await
    }

    async fn carry(&mut self, endpoint: Side<'_, impl Source, impl Sink>, account: &mut Account) -> Result<(), Failed> {
        let limits = &self.listener.config;
        let pace = Pace::new(limits.limits.min_transfer_rate);
        let deadlines = Deadlines::new(self.stop, limits.hop.tunnel_idle_timeout, pace);
        let session = self.session;
        let mut to = http2::Download::new(self.reply, |bytes| session.sends(bytes));
        let client = Side { from: &mut *self.body, to: &mut to };
        tunnel::carry(self.worker, &deadlines, client, endpoint, account).await.map_err(Failed::Ended)?;
        *self.stage = Stage::Done;
        Ok(())
    }
}
