//! The access log: one JSON line for each request and each opaque connection that ended. A field that has nothing to say
//! is left out; names are those of the metrics' labels.

use ringmesh_dataplane::outcome::Reason;
use ringmesh_dataplane::telemetry::event::{Access, Connection};
use serde::Serialize;

use super::time::rfc3339;

#[derive(Serialize)]
struct RequestLine<'a> {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    listener: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    authority: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    path: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    decided_by: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    rule: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    attempts: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc_status: Option<u8>,
    reason: &'static str,
    duration_seconds: f64,
    request_bytes: u64,
    response_bytes: u64,
}

#[derive(Serialize)]
struct ConnectionLine<'a> {
    time: String,
    event: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    listener: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    client: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    peer: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    authority: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    alpn: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    decided_by: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    route: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    rule: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    service: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    endpoint: &'a str,
    reason: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ended_by: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    ended_how: &'a str,
    duration_seconds: f64,
    received_bytes: u64,
    sent_bytes: u64,
}

/// Appends the line of a request.
pub fn write_request(access: &Access<'_>, into: &mut Vec<u8>) {
    let line = RequestLine {
        time: rfc3339(access.time),
        event: "request",
        listener: access.listener,
        client: access.client,
        peer: access.peer,
        method: access.method,
        authority: access.authority,
        path: access.path,
        decided_by: access.decided_by,
        route: access.route,
        rule: access.rule,
        service: access.service,
        endpoint: access.endpoint,
        attempts: access.attempts,
        status: Some(access.status).filter(|status| *status != 0),
        grpc_status: access.grpc_status,
        reason: reason_word(access.reason),
        duration_seconds: access.duration as f64 / 1e6,
        request_bytes: access.request_bytes,
        response_bytes: access.response_bytes,
    };
    write(&line, into);
}

/// Appends the line of an opaque connection.
pub fn write_connection(connection: &Connection<'_>, into: &mut Vec<u8>) {
    let line = ConnectionLine {
        time: rfc3339(connection.time),
        event: "connection",
        listener: connection.listener,
        client: connection.client,
        peer: connection.peer,
        authority: connection.authority,
        alpn: connection.alpn,
        decided_by: connection.decided_by,
        route: connection.route,
        rule: connection.rule,
        service: connection.service,
        endpoint: connection.endpoint,
        reason: reason_word(connection.reason),
        ended_by: connection.ended_by,
        ended_how: connection.ended_how,
        duration_seconds: connection.duration as f64 / 1e6,
        received_bytes: connection.received,
        sent_bytes: connection.sent,
    };
    write(&line, into);
}

/// The word for a reason; a number of a later version's data plane has none yet.
pub(super) fn reason_word(number: u8) -> &'static str {
    Reason::from_number(number).map_or("unknown", Reason::label)
}

fn write(line: &impl Serialize, into: &mut Vec<u8>) {
    serde_json::to_writer(&mut *into, line)
        .expect("strings and numbers have a form in JSON, and memory takes any bytes");
    into.push(b'\n');
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::telemetry) fn access() -> Access<'static> {
        Access {
            time: 1_700_000_000_250_000,
            listener: "inbound",
            route: "",
            rule: "",
            service: "local",
            endpoint: "127.0.0.1:8080",
            client: "10.0.0.7:40112",
            peer: "spiffe://shop.example/ns/default/sa/checkout",
            decided_by: "only-checkout/0",
            method: "POST",
            path: "/charge",
            authority: "payments",
            status: 200,
            grpc_status: None,
            reason: 0,
            attempts: 1,
            duration: 1_234,
            request_bytes: 17,
            response_bytes: 2,
        }
    }

    fn check(access: &Access<'_>, expected: &str) {
        let mut line = Vec::new();
        write_request(access, &mut line);
        assert_eq!(String::from_utf8(line).unwrap(), format!("{expected}\n"));
    }

    #[test]
    fn a_request_leaves_one_line_with_what_is_known_of_it() {
        check(
            &access(),
            "{\"time\":\"2023-11-14T22:13:20.250000Z\",\"event\":\"request\",\"listener\":\"inbound\",\
             \"client\":\"10.0.0.7:40112\",\"peer\":\"spiffe://shop.example/ns/default/sa/checkout\",\
             \"method\":\"POST\",\"authority\":\"payments\",\"path\":\"/charge\",\"decided_by\":\"only-checkout/0\",\
             \"service\":\"local\",\"endpoint\":\"127.0.0.1:8080\",\"attempts\":1,\"status\":200,\"reason\":\"ok\",\
             \"duration_seconds\":0.001234,\"request_bytes\":17,\"response_bytes\":2}",
        );
    }

    #[test]
    fn what_never_was_is_left_out_and_what_a_client_wrote_cannot_break_the_line() {
        let hostile =
            Access { method: "GET", path: "/\"\n{\u{7f}\u{1}", listener: "edge", reason: 250, ..Access::default() };
        check(
            &hostile,
            "{\"time\":\"1970-01-01T00:00:00.000000Z\",\"event\":\"request\",\"listener\":\"edge\",\"method\":\"GET\",\
             \"path\":\"/\\\"\\n{\u{7f}\\u0001\",\"attempts\":0,\"reason\":\"unknown\",\"duration_seconds\":0.0,\
             \"request_bytes\":0,\"response_bytes\":0}",
        );
    }

    #[test]
    fn an_opaque_connection_leaves_a_line_with_bytes_both_ways() {
        let connection = Connection {
            time: 0,
            listener: "db",
            service: "postgres",
            endpoint: "10.0.0.9:5432",
            client: "127.0.0.1:40000",
            reason: 26,
            ended_by: "proxy",
            ended_how: "limit",
            duration: 60_000_000,
            received: 10,
            sent: 20,
            ..Connection::default()
        };
        let mut line = Vec::new();
        write_connection(&connection, &mut line);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            "{\"time\":\"1970-01-01T00:00:00.000000Z\",\"event\":\"connection\",\"listener\":\"db\",\
             \"client\":\"127.0.0.1:40000\",\"service\":\"postgres\",\"endpoint\":\"10.0.0.9:5432\",\
             \"reason\":\"idle_timeout\",\"ended_by\":\"proxy\",\"ended_how\":\"limit\",\"duration_seconds\":60.0,\"received_bytes\":10,\"sent_bytes\":20}\n"
        );
    }
}
