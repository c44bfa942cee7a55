//! gRPC calls: how long their callers wait, and our own answers in their words.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use ringmesh_codec::grpc;
use ringmesh_ring::clock::Instant;

use crate::outcome::Reason;

pub use ringmesh_codec::grpc::STATUSES;

/// The field in which a caller says how long it waits. Names that are not parsed for each look-up.
pub static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The field in which a service says how a call has ended.
pub static STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// The status of a call whose caller has given it up.
pub const CANCELLED: u8 = 1;

/// Whether a request is a gRPC call.
pub fn is_call(fields: &HeaderMap) -> bool {
    fields.get(header::CONTENT_TYPE).is_some_and(|content_type| grpc::is_grpc(content_type.as_bytes()))
}

/// How long the caller waits, if it says so.
pub fn timeout(fields: &HeaderMap) -> Option<Duration> {
    fields.get(&TIMEOUT).and_then(|value| grpc::parse_timeout(value.as_bytes()))
}

/// Tells the endpoint of a call how long the caller still waits: until `deadline`, if there is one.
pub fn pass_timeout_on(fields: &mut HeaderMap, deadline: Option<Instant>, now: Instant) {
    let Some(deadline) = deadline else { return };
    if let Ok(mut value) = HeaderValue::try_from(grpc::write_timeout(deadline.saturating_since(now))) {
        // It is another one with each call: see `http2::head`.
        value.set_sensitive(true);
        fields.insert(&TIMEOUT, value);
    }
}

/// The status that a call ends in which ends for this reason, unless the endpoint has told one.
pub fn status(reason: Reason) -> u8 {
    if reason == Reason::ClientAborted { CANCELLED } else { grpc::status_of_http(reason.status()) }
}

/// Our own answer to a call: a response of trailers alone.
pub fn answer(reason: Reason) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    *response.headers_mut() = trailers(reason);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// The end of a call that has been answered in part, and to which nothing more comes.
pub fn trailers(reason: Reason) -> HeaderMap {
    let mut fields = HeaderMap::new();
    fields.insert(&STATUS, HeaderValue::from(u16::from(status(reason))));
    let message = format!("ringmesh: {}", reason.label());
    fields.insert("x-ringmesh-reason", HeaderValue::from_static(reason.label()));
    if let Ok(message) = HeaderValue::try_from(grpc::write_message(&message)) {
        fields.insert("grpc-message", message);
    }
    fields
}
