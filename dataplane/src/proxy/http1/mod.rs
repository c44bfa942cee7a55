//! HTTP/1 on both sides: heads are read, judged and forwarded from the buffer they arrived in, bodies pass through as they
//! came (RFC 9112).
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

mod answer;
mod exchange;
mod over_http2;
mod respond;
mod spans;
mod upload;

use std::rc::Rc;

use ringmesh_codec::body::BodyScanner;
use ringmesh_codec::http1::{Edits, Parsed, RequestHead, ResponseHead};
use ringmesh_codec::http2::begins_preface;
use ringmesh_codec::refusal::Refusal;
use ringmesh_codec::sniff;
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::{Error as StreamError, Idle, Stream};

use self::answer::Answer;
use self::exchange::{Asks, Exchange, HeadBytes, Stage};
use crate::outcome::Reason;
use crate::proxy::connection::{Connection, Next};
use crate::proxy::relay::{Raced, race};
use crate::proxy::request::Account;
use crate::proxy::transport::Transport;
use crate::proxy::{grpc_web, request};
use crate::tables::{Listener, Tables};
use crate::worker::Worker;

pub(super) use self::respond::{MAX_INTERIM, client_gone, is_whole};
pub use self::spans::Spans;

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
            host: None,
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
        Stage::DoneAndClose if has_said_all(connection, &scratch.request, buffer) => Some(Next::Close),
        Stage::DoneAndClose => Some(Next::Linger),
        Stage::Waiting | Stage::Begun => Some(Next::Close),
    }
}

/// Whether the client sends nothing more, so that no byte of it can come too late and reset the connection, with our answer in it:
/// it has said that this request is its last (RFC 9112 section 9.6), and all of it is in `buffer`.
fn has_said_all<N: Net>(connection: &Connection<N>, request: &RequestHead, buffer: &Buffer) -> bool {
    let is_last = !request.persistent() && request.framing().is_empty() && buffer.len() == request.len();
    // TLS says itself that it ends.
    is_last && connection.transport.plain().is_some()
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
        Answer { reason, elsewhere: None, call: None, listener, close: true, head_only: false, account: &mut account };
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
