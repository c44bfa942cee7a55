//! A tunnel: a connection that was one of HTTP and now carries the bytes of another protocol both ways (RFC 9110 sections
//! 7.8 and 9.3.6). It ends as opaque connections do, and neither side of it is used again.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::cell::Cell;
use std::time::Duration;

use ringmesh_ring::net::Net;
use ringmesh_ring::output::Output;
use ringmesh_ring::stop::{Reason as StopReason, Stop};
use ringmesh_ring::stream::{Error, Stream};

use crate::outcome::Reason;
use crate::proxy::relay::{Sides, relay};
use crate::proxy::request::Account;
use crate::proxy::transport::Transport;
use crate::worker::Worker;

/// Carries bytes until both sides have ended. `early` came behind the request's head and goes to the endpoint first; what
/// came behind the response's has gone to the client together with it. All bytes are counted as those of the request and
/// its response.
///
/// # Errors
/// The way it ended, if not by both sides: a reset, silence, or the end of the drain.
pub async fn run<N: Net>(
    worker: &Worker<N>,
    client: &Transport<N::Stream>,
    upstream: &Transport<N::Stream>,
    stop: &Stop,
    idle: Duration,
    early: &mut Output,
    account: &mut Account,
) -> Result<(), Reason> {
    let (received, sent) = (Cell::new(0), Cell::new(0));
    let sides = Sides { client, upstream, stop, idle, received: &received, sent: &sent };
    let result = carry(worker, &sides, early).await;
    account.request_bytes += received.get();
    account.response_bytes += sent.get();
    result
}

async fn carry<N: Net>(worker: &Worker<N>, sides: &Sides<'_, N::Stream>, early: &mut Output) -> Result<(), Reason> {
    if !early.is_empty() {
        sides.received.set(early.len_bytes() as u64);
        sides.stop.set_deadline(Some(worker.net.now() + sides.idle));
        let sent = sides.upstream.flush(early, sides.stop).await;
        early.clear();
        sent.map_err(|error| match error {
            Error::Io(_) => Reason::UpstreamReset,
            Error::Stopped(StopReason::Deadline) => Reason::IdleTimeout,
            Error::Stopped(reason) => Reason::of_stop(reason),
        })?;
    }
    relay(worker, sides).await
}
