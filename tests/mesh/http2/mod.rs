//! HTTP/2 on both sides of the proxy, frame by frame (RFC 9113).

mod pairing;
mod streams;
mod windows;
mod ending;
mod rules;
mod between;
mod attack;
mod slow;
mod tunnels;
pub(crate) mod programs;

use std::net::SocketAddr;

use ringmesh_tests::http2::{Connection, Ended};
use ringmesh_tests::{Driver, Message, Proxy, ports};

use crate::support::{forwarding, ringmesh};

/// A proxy whose port `front` leads to these addresses by HTTP/2, and that port. Further keys of either may be given, each
/// with its end of line.
#[track_caller]
pub(crate) fn proxy_by_http2(
    driver: Driver,
    app: &[SocketAddr],
    listener_keys: &str,
    service_keys: &str,
) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let keys = format!("protocol = \"http2\"\n{service_keys}");
    (ringmesh(driver).config(forwarding(front, app, listener_keys, &keys)).start(), front)
}

/// The proxy has answered by itself, with this status and reason.
#[track_caller]
pub(crate) fn assert_reason(response: &Message, status: u16, reason: &str) {
    let told = (response.status(), response.field("x-ringmesh-reason"));
    assert_eq!(told, (status, Some(reason)), "{response:?}");
}

/// A stream was refused by the proxy: by a reset with this code, or by an answer of its own with one of these statuses.
#[track_caller]
pub(crate) fn assert_refused(client: &mut Connection, stream: u32, code: u32, statuses: &[u16], what: &str) {
    match client.ended(stream) {
        Ok(Ended::Reset(told)) => assert_eq!(told, code, "{what}"),
        Ok(Ended::Answer(answer)) => {
            assert!(statuses.contains(&answer.status()), "{what}: {answer:?}");
            assert!(answer.field("x-ringmesh-reason").is_some(), "it is the proxy's own answer: {what}: {answer:?}");
        }
        other => panic!("{what}: {other:?}"),
    }
}
