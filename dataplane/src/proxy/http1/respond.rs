//! The response of an endpoint that speaks HTTP/1, to its client.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::future::poll_fn;
use std::pin::pin;

use ringmesh_codec::body::{BodyScanner, State};
use ringmesh_codec::framing::BodyLength;
use ringmesh_codec::head::Version;
use ringmesh_codec::http1::{
    Chunked, Connection as ConnectionOption, Edits, Framing, Parsed, RequestHead, ResponseHead, Upgrade,
};
use ringmesh_ring::buffer::{Buffer, Size};
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::splice::Pipe;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::{Error as StreamError, Idle, Stream};

use super::exchange::{Asks, Stage};
use super::spans::Spans;
use crate::outcome::Reason;
use crate::proxy::connection::Connection;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::hop;
use crate::proxy::progress::{Awaiting, Uploaded, Watch};
use crate::proxy::redirect::HSTS;
use crate::proxy::request::{Account, Failed};
use crate::proxy::transport::Transport;
use crate::tables::Listener;
use crate::worker::Worker;

/// Interim responses to one request at most: an endpoint that sends them without end would keep the request open for
/// ever. A `103` or two and a `100` are usual; a `102` (RFC 2518 section 10.1) may come every 20 seconds.
pub(in crate::proxy) const MAX_INTERIM: u32 = 100;

/// A body of known length goes through `splice(2)` if so many bytes of it are still to come.
const SPLICE_FROM: u64 = 512 * 1024;

/// Passes a response back.
pub(super) struct Respond<'a, N: Net> {
    pub(super) worker: &'a Worker<N>,
    pub(super) connection: &'a Connection<N>,
    pub(super) listener: &'a Listener,
    pub(super) upstream: &'a Transport<N::Stream>,
    pub(super) request: &'a RequestHead,
    pub(super) request_bytes: &'a [u8],
    pub(super) asks: Asks,
    /// Whether all of the request has been passed on. What is left of it when the response is complete is never read: where
    /// that can be known when the head is written, the client is told. A longer response may well end after the request,
    /// as that of a service does which answers while it reads.
    pub(super) upload: &'a Uploaded,
    /// Whether an end before the first byte means that the connection was closed while it was unused.
    pub(super) stale: bool,
    pub(super) watch: &'a Watch,
    pub(super) deadlines: &'a Deadlines<'a>,
}

/// What may be used again after a response.
pub(super) struct End {
    pub(super) upstream_persists: bool,
    pub(super) client_persists: bool,
    /// Whether both are a tunnel from now on.
    pub(super) tunnel: bool,
}

impl<N: Net> Respond<'_, N> {
    pub(super) async fn run(
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
        self.deadlines.for_silence(Part::Back, now, Reason::UpstreamSilent);
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

/// What a failed operation on the endpoint's connection ends in, before its response began.
pub(super) fn of_upstream(error: &StreamError, deadlines: &Deadlines<'_>) -> Reason {
    match error {
        StreamError::Stopped(reason) => deadlines.reason(*reason),
        StreamError::Io(error) => Reason::of_upstream(error),
    }
}

/// Resolves when the client has gone. Never, if it sends further requests meanwhile or ended its side as it may.
pub(in crate::proxy) async fn client_gone<S: Stream>(client: &Transport<S>, may_half_close: bool) {
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
pub(in crate::proxy) fn is_whole(length: BodyLength, bytes: usize) -> bool {
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
