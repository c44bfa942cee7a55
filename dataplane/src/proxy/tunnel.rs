//! A tunnel: a connection that was one of HTTP and now carries the bytes of another protocol both ways (RFC 9110 sections
//! 7.8 and 9.3.6). It ends as opaque connections do, and neither side of it is used again.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;

use ringmesh_ring::clock::Instant;
use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stream::Stream;

use crate::outcome::Reason;
use crate::proxy::deadline::{Deadlines, Part};
use crate::proxy::relay::{Sides, relay};
use crate::proxy::request::Account;
use crate::proxy::transport::Transport;
use crate::worker::Worker;

/// Carries bytes until both sides have ended. `early` came behind the request's head and goes to the endpoint first; what
/// came behind the response's has gone to the client together with it. `deadlines` bound the silence of both sides together, and
/// how slowly either may take its bytes. All bytes are counted as those of the request and
/// its response.
///
/// # Errors
/// The way it ended, if not by both sides: a reset, silence, or the end of the drain.
pub async fn run<N: Net>(
    worker: &Worker<N>,
    client: &Transport<N::Stream>,
    upstream: &Transport<N::Stream>,
    deadlines: &Deadlines<'_>,
    early: &mut Output,
    account: &mut Account,
) -> Result<(), Reason> {
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let sides = Sides { client, upstream, deadlines, end: Instant::FAR_FUTURE, received: &received, sent: &sent };
    let result = carry(worker, &sides, early).await;
    account.request_bytes += received.get();
    account.response_bytes += sent.get();
    result
}

async fn carry<N: Net>(worker: &Worker<N>, sides: &Sides<'_, N::Stream>, early: &mut Output) -> Result<(), Reason> {
    if !early.is_empty() {
        sides.received.set(early.len_bytes() as u64);
        let deadlines = sides.deadlines;
        deadlines.for_silence(Part::Whole, worker.net.now(), Reason::IdleTimeout);
        let sent = sides.upstream.flush(early, deadlines.stop()).await;
        early.clear();
        sent.map_err(|error| deadlines.reason_of(&error, Reason::UpstreamReset))?;
    }
    match relay(worker, sides).await.reason {
        Reason::Ok => Ok(()),
        reason => Err(reason),
    }
}
