//! Answers of our own.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::time::Duration;

use ringmesh_codec::http1::write_local_response;
use ringmesh_ring::net::Net;
use ringmesh_ring::stop::Reason as StopReason;
use ringmesh_ring::stream::Stream;

use super::Scratch;
use crate::outcome::{Reason, phrase};
use crate::proxy::connection::Connection;
use crate::proxy::date;
use crate::proxy::redirect::{Elsewhere, HSTS};
use crate::proxy::request::Account;
use crate::tables::Listener;
use crate::worker::unix_micros;

/// Longest time that our own answer may take to be written.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// An answer of our own.
pub(super) struct Answer<'a> {
    pub(super) reason: Reason,
    pub(super) elsewhere: Option<Elsewhere>,
    /// What a caller of gRPC or gRPC-Web is told, in its words.
    pub(super) call: Option<http::Response<()>>,
    pub(super) listener: &'a Listener,
    pub(super) close: bool,
    pub(super) head_only: bool,
    pub(super) account: &'a mut Account,
}

impl Answer<'_> {
    /// Sends it; whether that went well.
    pub(super) async fn send<N: Net>(&mut self, connection: &Connection<N>, scratch: &mut Scratch) -> bool {
        let mut status = self.elsewhere.as_ref().map_or(self.reason.status(), |to| to.status);
        if status == 0 || connection.stop.reason() == Some(StopReason::Drain) {
            return false;
        }
        let mut body = format_args!("{status} {}: {}\n", phrase(status), self.reason.words()).to_string();
        let date = date::text(unix_micros() / 1_000_000);
        let reason = ("x-ringmesh-reason", self.reason.label());
        let mut fields = [("", ""); 8];
        fields[..3].copy_from_slice(&[("content-type", "text/plain"), ("date", &date), reason]);
        let mut count = 3;
        if let Some(call) = &self.call {
            let field =
                |name| (name, call.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default());
            (fields[0], fields[3], fields[4]) = (field("content-type"), field("grpc-status"), field("grpc-message"));
            count = 5;
            status = call.status().as_u16();
            body.clear();
        }
        let location = self.elsewhere.as_ref().map(|to| ("location", to.location.as_str()));
        let hsts = self.listener.hsts.as_deref().map(|hsts| (HSTS, hsts));
        let close = self.close.then_some(("connection", "close"));
        for field in [location, hsts, close].into_iter().flatten() {
            fields[count] = field;
            count += 1;
        }
        scratch.text.clear();
        write_local_response(status, phrase(status), &fields[..count], body.len() as u64, &mut scratch.text);
        if !self.head_only {
            scratch.text.extend_from_slice(body.as_bytes());
        }
        scratch.to_client.clear();
        scratch.to_client.push_bytes(&scratch.text);
        connection.stop.set_deadline(Some(connection.worker.net.now() + ANSWER_TIMEOUT));
        connection.stop.clear();
        let sent = connection.transport.flush(&mut scratch.to_client, &connection.stop).await.is_ok();
        scratch.to_client.clear();
        if sent {
            self.account.status = status;
        }
        sent
    }
}
