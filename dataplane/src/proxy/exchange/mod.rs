//! One request with its response where at least one side speaks HTTP/2. The sides are known by what they do: a [`Source`]
//! gives a body, a [`Sink`] takes one, an [`Answer`] is an endpoint's response, a [`Reply`] what the client gets of it. Each
//! exists in HTTP/1 and HTTP/2, so that any two of them fit. (HTTP/1 on both sides has a shorter way, `proxy::http1`.)
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

pub mod data;
pub mod head;
pub mod http1;
pub mod http2;
pub mod replay;
pub mod tunnel;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Buf;
use http::header::{HeaderValue, VIA};
use http::{HeaderMap, Request, Response, StatusCode};
use ringmesh_codec::grpc;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::Error as StreamError;

use crate::outcome::Reason;
use crate::pool::shared;
use crate::proxy::deadline::{Deadlines, Part as Wait};
use crate::proxy::grpc::STATUS as GRPC_STATUS;
use crate::proxy::hop;
use crate::proxy::http1::MAX_INTERIM;
use crate::proxy::pace::Credit;
use crate::proxy::progress::{Awaiting, Progress, Uploaded, Uploading, Watch};
use crate::proxy::redirect;
use crate::proxy::relay::Turn;
use crate::proxy::request::{Account, Failed};
use crate::tables::Listener;
use crate::worker::Worker;

use data::Data;

/// What comes next of a body.
pub enum Part {
    /// Some of its bytes, never none.
    Data(Data),
    /// Its end, perhaps with trailers.
    End(Option<HeaderMap>),
}

/// Whether more of a body follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum More {
    /// It does, be it only the end.
    Follows,
    /// These are the last bytes, and there are no trailers.
    Nothing,
}

/// How a side failed.
#[derive(Debug)]
pub enum Lost {
    /// Our own stop.
    Stopped(StopReason),
    /// The connection broke.
    Io(io::Error),
    /// The peer ended connection or stream.
    Gone,
    /// The endpoint did so after its response had begun, or by resetting the stream: it has seen the request.
    Cut,
    /// The peer broke the rules.
    Broken,
    /// The client sends more than it may.
    TooLarge,
    /// The endpoint has not looked at the request (RFC 9113 section 8.7).
    Unprocessed,
}

impl From<StreamError> for Lost {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Stopped(reason) => Self::Stopped(reason),
            StreamError::Io(error) => Self::Io(error),
        }
    }
}

impl Lost {
    /// The reason of a stop, or `broken` for everything else.
    fn reason(&self, deadlines: &Deadlines<'_>, broken: Reason) -> Reason {
        match self {
            Self::Stopped(reason) => deadlines.reason(*reason),
            _ => broken,
        }
    }
}

/// Where a body comes from.
pub trait Source {
    /// Whether all of it was taken, without an end to be told.
    fn is_done(&self) -> bool;

    /// What is there already.
    fn ready(&mut self) -> Option<Result<Part, Lost>>;

    /// What comes next. The wait may be dropped and begun again.
    fn next(&mut self, stop: &Stop) -> impl Future<Output = Result<Part, Lost>>;

    /// So many bytes that it gave are passed on: it may be sent as many again.
    fn passed(&mut self, bytes: usize);
}

/// Where a body goes.
pub trait Sink {
    /// Whether anything waits until it is flushed: else neither flush nor end ever waits, and they are not worth a deadline.
    const HOLDS_BACK: bool = true;

    /// Sends what waits, be it a head.
    fn flush(&mut self, stop: &Stop) -> impl Future<Output = Result<(), Lost>>;

    /// Sends bytes if that needs no wait, and so no deadline either; else they come back.
    ///
    /// # Errors
    /// If nobody is left to take them.
    fn data_at_once(&mut self, data: Data, _more: More) -> Result<Option<Data>, Lost> {
        Ok(Some(data))
    }

    /// Sends bytes.
    fn data(&mut self, data: Data, more: More, stop: &Stop) -> impl Future<Output = Result<(), Lost>>;

    /// Sends the end.
    fn end(&mut self, trailers: Option<HeaderMap>, stop: &Stop) -> impl Future<Output = Result<(), Lost>>;
}

/// A response of an endpoint: its heads, then its body.
pub trait Answer: Source {
    /// The next head; a final one is the last.
    fn head(&mut self, stop: &Stop) -> impl Future<Output = Result<Response<()>, Lost>>;
}

/// What the client gets.
pub trait Reply: Sink {
    /// Whether its going away is looked for also between two parts of the body, which may be long after one another.
    const WATCHED: bool = false;

    /// Sends an interim response, if the client can take one.
    fn interim(&mut self, response: Response<()>, stop: &Stop) -> impl Future<Output = Result<(), Lost>>;

    /// Sends the head, or keeps it for the first bytes of the body. `more`: whether there is a body, or at least trailers.
    fn begin(&mut self, response: Response<()>, more: More) -> Result<(), Lost>;

    /// Resolves when the client has gone away, as far as nobody else would notice.
    fn gone(&self) -> impl Future<Output = ()>;
}

/// How far the response has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Nothing of it was sent to the client.
    Waiting,
    /// Some of it was.
    Begun,
    /// All of it was.
    Done,
}

/// One request on its way, with what bounds it.
pub struct Exchange<'a, N: Net> {
    /// Where it runs.
    pub worker: &'a Worker<N>,
    /// Stops both directions.
    pub stop: &'a Stop,
    /// Until when each waits.
    pub deadlines: &'a Deadlines<'a>,
    /// How much of the request's body was passed on.
    pub uploaded: &'a Uploaded,
    /// Watches a client that waits.
    pub watch: &'a Watch,
    /// What it does in a row.
    pub turn: &'a Turn,
    /// Whether an end before the first byte means that the endpoint closed the connection while it was unused, and the request
    /// may be sent again.
    pub stale: bool,
    /// Whether it is a gRPC call, whose status is told.
    pub is_grpc: bool,
    /// Where the client came in.
    pub listener: &'a Listener,
}

impl<'a, N: Net> Exchange<'a, N> {
    /// One that is no gRPC call, on a connection that was not there before.
    pub fn new(
        worker: &'a Worker<N>,
        listener: &'a Listener,
        deadlines: &'a Deadlines<'a>,
        uploaded: &'a Uploaded,
        watch: &'a Watch,
        turn: &'a Turn,
    ) -> Self {
        let stop = deadlines.stop();
        Self { worker, stop, deadlines, uploaded, watch, turn, stale: false, is_grpc: false, listener }
    }
}

impl<N: Net> Exchange<'_, N> {
    /// Passes the request's body on and the response back, both at once: the response may come before the request has ended.
    ///
    /// # Errors
    /// How it failed; `stage` says what the client has got by then.
    pub async fn run(
        &self,
        source: &mut impl Source,
        sink: &mut impl Sink,
        answer: &mut impl Answer,
        reply: &mut impl Reply,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<(), Failed> {
        if self.uploaded.is_whole() {
            self.flush_request(sink).await?;
            return self.respond(answer, reply, stage, account).await;
        }
        let (mut responded_account, mut request_bytes) = (*account, account.request_bytes);
        let mut upload_ended = None;
        let responded = {
            let mut upload = pin!(self.upload(source, sink, &mut request_bytes));
            let mut respond = pin!(self.respond(answer, reply, stage, &mut responded_account));
            let responded = poll_fn(|context| {
                if upload_ended.is_none()
                    && let Poll::Ready(result) = upload.as_mut().poll(context)
                {
                    if matches!(result, Err(Uploading::Client(_))) {
                        self.stop.trigger(StopReason::Abort);
                    }
                    self.uploaded.progress.set(if result.is_ok() { Progress::Whole } else { Progress::Cut });
                    self.deadlines.forget(Wait::Forth);
                    self.watch.request_ended(self.uploaded, self.deadlines, self.worker.net.now());
                    upload_ended = Some(result);
                }
                respond.as_mut().poll(context)
            })
            .await;
            if upload_ended.is_none() {
                // The response ended before the request: an operation in flight is stopped, never dropped.
                self.stop.trigger(StopReason::Abort);
                let _ = upload.await;
            }
            responded
        };
        if self.stop.reason() == Some(StopReason::Abort) && !matches!(upload_ended, Some(Err(Uploading::Client(_)))) {
            self.stop.clear();
        }
        *account = Account { request_bytes, ..responded_account };
        match upload_ended {
            Some(Err(Uploading::Client(reason))) => Err(Failed::Ended(reason)),
            _ => responded,
        }
    }

    async fn flush_request<S: Sink>(&self, sink: &mut S) -> Result<(), Failed> {
        if !S::HOLDS_BACK {
            return Ok(());
        }
        self.deadlines.for_taking(Wait::Forth, self.worker.net.now(), 0, Reason::UpstreamReadsSlowly);
        let flushed = sink.flush(self.stop).await;
        self.deadlines.forget(Wait::Forth);
        flushed.map_err(|lost| self.of_endpoint(lost))
    }

    async fn upload<S: Sink>(&self, source: &mut impl Source, sink: &mut S, passed: &mut u64) -> Result<(), Uploading> {
        let mut credit = Credit::new(self.deadlines.pace());
        let turn = Turn::default();
        let mut room = self.listener.head_limits.max_body_bytes;
        loop {
            turn.step().await;
            let part = match source.ready() {
                Some(part) => {
                    self.uploaded.awaits_continue.set(false);
                    part.map_err(|lost| Uploading::Client(self.of_client_body(&lost)))?
                }
                None => {
                    if S::HOLDS_BACK {
                        self.taking(0);
                        sink.flush(self.stop).await.map_err(|_lost| Uploading::Upstream)?;
                    }
                    self.receive(source, &mut credit).await.map_err(Uploading::Client)?
                }
            };
            match part {
                Part::Data(data) => {
                    let bytes = data.remaining();
                    room = room.checked_sub(bytes as u64).ok_or(Uploading::Client(Reason::BodyTooLarge))?;
                    let more = if source.is_done() { More::Nothing } else { More::Follows };
                    let left = sink.data_at_once(data, more).map_err(|_lost| Uploading::Upstream)?;
                    match left {
                        Some(data) => {
                            self.taking(bytes);
                            sink.data(data, more, self.stop).await.map_err(|_lost| Uploading::Upstream)?;
                        }
                        // It may go on like this for longer than a wait may last.
                        None if more == More::Follows => self.deadlines.forget(Wait::Forth),
                        None => {}
                    }
                    source.passed(bytes);
                    *passed += bytes as u64;
                    if more == More::Nothing {
                        return Ok(());
                    }
                }
                Part::End(trailers) => {
                    if S::HOLDS_BACK {
                        self.taking(0);
                    }
                    return sink.end(trailers, self.stop).await.map_err(|_lost| Uploading::Upstream);
                }
            }
        }
    }

    /// The endpoint is to take so many bytes.
    fn taking(&self, bytes: usize) {
        self.deadlines.for_taking(Wait::Forth, self.worker.net.now(), bytes, Reason::UpstreamReadsSlowly);
    }

    /// Waits for the client, for as long as its credit and the idle timeout allow.
    async fn receive(&self, source: &mut impl Source, credit: &mut Credit) -> Result<Part, Reason> {
        let begun = self.worker.net.now();
        let free = self.uploaded.awaits_continue.get();
        if free || self.deadlines.idle() <= credit.left() {
            self.deadlines.for_silence(Wait::Forth, begun, Reason::ClientTimeout);
        } else {
            self.deadlines.set(Wait::Forth, begun + credit.left(), Reason::ClientSendsSlowly);
        }
        let part = source.next(self.stop).await.map_err(|lost| self.of_client_body(&lost))?;
        self.uploaded.awaits_continue.set(false);
        let waited = if free { Duration::ZERO } else { self.worker.net.now().saturating_since(begun) };
        let bytes = if let Part::Data(data) = &part { data.remaining() } else { 0 };
        credit.settle(waited, bytes);
        Ok(part)
    }

    fn of_client_body(&self, lost: &Lost) -> Reason {
        let broken = match lost {
            Lost::Broken => Reason::BadBody,
            Lost::TooLarge => Reason::BodyTooLarge,
            _ => Reason::ClientAborted,
        };
        lost.reason(self.deadlines, broken)
    }

    async fn respond(
        &self,
        answer: &mut impl Answer,
        reply: &mut impl Reply,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let response = self.final_head(answer, reply, stage).await?;
        let more = self.begin(response, answer, reply, stage, account)?;
        self.pass_body(more, answer, reply, stage, account).await
    }

    /// Waits for the final head of the response, and passes interim ones on.
    async fn final_head(
        &self,
        answer: &mut impl Answer,
        reply: &mut impl Reply,
        stage: &mut Stage,
    ) -> Result<Response<()>, Failed> {
        let mut interim = 0;
        loop {
            let mut response = self.head(answer, reply).await?;
            // What switches protocols is the last head of HTTP.
            if !response.status().is_informational() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
                if self.listener.config.hop.via.is_some() {
                    self.write_via(&mut response);
                }
                return Ok(response);
            }
            interim += 1;
            if interim > MAX_INTERIM {
                return Err(Failed::Ended(Reason::UpstreamGarbage));
            }
            let goes_on = response.status() == StatusCode::CONTINUE;
            // Half of it may go, and then nothing else can be said.
            *stage = Stage::Begun;
            self.giving(0);
            reply.interim(response, self.stop).await.map_err(|lost| self.of_client(&lost))?;
            *stage = Stage::Waiting;
            if goes_on {
                self.uploaded.may_go_on(self.deadlines, self.worker.net.now());
            }
        }
    }

    /// Passes a response on whose final head has come.
    ///
    /// # Errors
    /// As [`Exchange::run`].
    pub async fn pass_back(
        &self,
        response: Response<()>,
        answer: &mut impl Answer,
        reply: &mut impl Reply,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let more = self.begin(response, answer, reply, stage, account)?;
        self.pass_body(more, answer, reply, stage, account).await
    }

    /// Begins it with its head. Apart from the body, so that the head is not kept while that passes.
    fn begin(
        &self,
        mut response: Response<()>,
        answer: &impl Answer,
        reply: &mut impl Reply,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<More, Failed> {
        account.status = response.status().as_u16();
        self.note_grpc_status(response.headers(), account);
        *stage = Stage::Begun;
        let more = if answer.is_done() { More::Nothing } else { More::Follows };
        redirect::tell_hsts(self.listener, response.headers_mut());
        reply.begin(response, more).map_err(|lost| self.of_client(&lost))?;
        Ok(more)
    }

    async fn pass_body<R: Reply>(
        &self,
        more: More,
        answer: &mut impl Answer,
        reply: &mut R,
        stage: &mut Stage,
        account: &mut Account,
    ) -> Result<(), Failed> {
        let mut done = more == More::Nothing;
        while !done {
            self.turn.step().await;
            let part = match answer.ready() {
                Some(part) => part,
                None => {
                    self.flush_reply(reply).await?;
                    self.watch.wait(Awaiting::Body, self.uploaded, self.deadlines, self.worker.net.now());
                    let part = if R::WATCHED && self.uploaded.is_whole() {
                        self.watching(answer.next(self.stop), reply).await
                    } else {
                        answer.next(self.stop).await
                    };
                    self.watch.awaiting.set(Awaiting::Nothing);
                    part
                }
            };
            let part = part.map_err(|lost| Failed::Ended(lost.reason(self.deadlines, Reason::ResponseTruncated)))?;
            match part {
                Part::Data(data) => {
                    let bytes = data.remaining();
                    done = answer.is_done();
                    let more = if done { More::Nothing } else { More::Follows };
                    let left = reply.data_at_once(data, more).map_err(|lost| self.of_client(&lost))?;
                    match left {
                        Some(data) => {
                            self.giving(bytes);
                            reply.data(data, more, self.stop).await.map_err(|lost| self.of_client(&lost))?;
                        }
                        None if more == More::Follows => self.deadlines.forget(Wait::Back),
                        None => {}
                    }
                    answer.passed(bytes);
                    account.response_bytes += bytes as u64;
                }
                Part::End(trailers) => {
                    if let Some(trailers) = &trailers {
                        self.note_grpc_status(trailers, account);
                    }
                    if R::HOLDS_BACK {
                        self.giving(0);
                    }
                    reply.end(trailers, self.stop).await.map_err(|lost| self.of_client(&lost))?;
                    done = true;
                }
            }
        }
        self.flush_reply(reply).await?;
        self.deadlines.forget(Wait::Back);
        *stage = Stage::Done;
        Ok(())
    }

    async fn flush_reply<R: Reply>(&self, reply: &mut R) -> Result<(), Failed> {
        if !R::HOLDS_BACK {
            return Ok(());
        }
        self.giving(0);
        reply.flush(self.stop).await.map_err(|lost| self.of_client(&lost))
    }

    #[cold]
    fn write_via(&self, response: &mut Response<()>) {
        let version = hop::received_as(response.version());
        let came: Vec<HeaderValue> = response.headers().get_all(VIA).iter().cloned().collect();
        let each = |visit: &mut dyn FnMut(&[u8], &[u8])| came.iter().for_each(|value| visit(b"via", value.as_bytes()));
        hop::write_response(&self.listener.config.hop, version, each, &mut Vec::new(), response.headers_mut());
    }

    /// The client is to take so many bytes.
    fn giving(&self, bytes: usize) {
        self.deadlines.for_taking(Wait::Back, self.worker.net.now(), bytes, Reason::ClientReadsSlowly);
    }

    fn of_client(&self, lost: &Lost) -> Failed {
        // An endpoint whose framing breaks on the way to the client has not sent what it announced.
        let broken = if matches!(lost, Lost::Broken) { Reason::ResponseTruncated } else { Reason::ClientAborted };
        Failed::Ended(lost.reason(self.deadlines, broken))
    }

    /// Waits for the endpoint's next head. A client that waits long is watched meanwhile.
    async fn head(&self, answer: &mut impl Answer, reply: &impl Reply) -> Result<Response<()>, Failed> {
        self.watch.wait(Awaiting::Head, self.uploaded, self.deadlines, self.worker.net.now());
        let mut result = answer.head(self.stop).await;
        self.watch.awaiting.set(Awaiting::Nothing);
        if self.watch.due.take() && self.stop.reason() == Some(StopReason::Deadline) {
            let now = self.worker.net.now();
            if !self.deadlines.is_over(Wait::Whole, now) {
                self.stop.clear();
                self.deadlines.for_silence(Wait::Back, now, Reason::UpstreamSilent);
                if matches!(result, Err(Lost::Stopped(_))) {
                    result = self.watching(answer.head(self.stop), reply).await;
                }
            }
        }
        result.map_err(|lost| self.of_endpoint(lost))
    }

    /// Waits for the endpoint, and stops that when the client has gone.
    async fn watching<T>(&self, wait: impl Future<Output = Result<T, Lost>>, reply: &impl Reply) -> Result<T, Lost> {
        let mut wait = pin!(wait);
        let mut gone = pin!(reply.gone());
        let mut watching = true;
        poll_fn(|context| {
            if watching && gone.as_mut().poll(context).is_ready() {
                watching = false;
                self.stop.trigger(StopReason::Abort);
            }
            wait.as_mut().poll(context)
        })
        .await
    }

    /// Takes note of a gRPC status, wherever it stands.
    fn note_grpc_status(&self, fields: &HeaderMap, account: &mut Account) {
        if self.is_grpc
            && let Some(status) = fields.get(&GRPC_STATUS)
        {
            account.grpc_status = Some(grpc::parse_status(status.as_bytes()));
        }
    }

    /// What an endpoint that fails before its response ends the request in.
    fn of_endpoint(&self, lost: Lost) -> Failed {
        match lost {
            Lost::Unprocessed => Failed::Stale,
            Lost::Gone | Lost::Io(_) if self.stale => Failed::Stale,
            Lost::Stopped(reason) => Failed::Ended(self.deadlines.reason(reason)),
            Lost::Gone | Lost::Cut => Failed::Ended(Reason::UpstreamReset),
            Lost::Io(error) => Failed::Ended(Reason::of_upstream(&error)),
            Lost::Broken | Lost::TooLarge => Failed::Ended(Reason::UpstreamGarbage),
        }
    }
}

/// The same with an endpoint that speaks HTTP/2, on a connection that others use too.
///
/// # Errors
/// As [`Exchange::run`].
pub async fn over_http2<N: Net>(
    exchange: &Exchange<'_, N>,
    lease: &shared::Lease<N>,
    request: Request<()>,
    body: &mut impl Source,
    reply: &mut impl Reply,
    stage: &mut Stage,
    account: &mut Account,
) -> Result<(), Failed> {
    let (head, upload) = lease.send(request, body.is_done()).map_err(|lost| exchange.of_endpoint(lost))?;
    let mut answer = http2::Awaited::new(head, lease.may_be_interim());
    let result = if exchange.uploaded.is_whole() {
        // The library has less to do for what goes before the stream ends.
        drop(upload);
        exchange.respond(&mut answer, reply, stage, account).await
    } else {
        let mut upload = http2::Upload::new(upload, |bytes| lease.sends(bytes));
        exchange.run(body, &mut upload, &mut answer, reply, stage, account).await
    };
    match result {
        Ok(()) => {
            if exchange.uploaded.is_whole() {
                lease.rest(answer.into_head());
            }
            Ok(())
        }
        Err(failed) => Err(of_shared(lease, failed)),
    }
}

/// How an exchange failed, by what its connection knows that others use too.
pub fn of_shared<N: Net>(lease: &shared::Lease<N>, failed: Failed) -> Failed {
    let is_lost = matches!(failed, Failed::Stale | Failed::Ended(Reason::UpstreamReset));
    if is_lost && lease.flooded() {
        return Failed::Ended(Reason::UpstreamGarbage);
    }
    if lease.was_cut() {
        return Failed::Ended(Reason::Drained);
    }
    if is_lost && lease.refused() {
        return Failed::Ended(Reason::UpstreamTls);
    }
    lease.close_if_over();
    failed
}
