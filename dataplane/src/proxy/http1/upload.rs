//! The rest of a request's body, to an endpoint that speaks HTTP/1.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::Duration;

use ringmesh_codec::body::{BodyScanner, State};
use ringmesh_ring::buffer::Buffer;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::Stop;
use ringmesh_ring::stream::Stream;

use crate::outcome::Reason;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::pace::Credit;
use crate::proxy::progress::{Uploaded, Uploading};
use crate::proxy::relay::Turn;
use crate::proxy::transport::Transport;
use crate::worker::Worker;

/// Passes the rest of a request's body on.
pub(super) struct Upload<'a, N: Net> {
    pub(super) worker: &'a Worker<N>,
    pub(super) client: &'a Transport<N::Stream>,
    pub(super) upstream: &'a Transport<N::Stream>,
    pub(super) stop: &'a Stop,
    pub(super) turn: Turn,
    pub(super) uploaded: &'a Uploaded,
    pub(super) deadlines: &'a Deadlines<'a>,
}

impl<N: Net> Upload<'_, N> {
    pub(super) async fn run(
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

/// Moves what `buffer` has of a body to `output`; how many bytes.
pub(super) fn pass_on(body: &mut BodyScanner, buffer: &mut Buffer, output: &mut Output) -> Result<usize, Reason> {
    let scan = body.scan(buffer.filled()).map_err(|refusal| Reason::of_body(&refusal))?;
    output.push(buffer.slice(0..scan.consumed));
    buffer.consume(scan.consumed);
    Ok(scan.consumed)
}
