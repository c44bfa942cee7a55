//! The limit of a request's body: whoever sends more gets 413, and nobody else notices.

use std::net::SocketAddr;

use ringmesh_tests::http2::{self, Connection, Ends, Outgoing};
use ringmesh_tests::service::{chunked, chunks};
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, on_both_drivers, ports};

use crate::support::{forwarding, pattern, ringmesh};

const MAX: usize = 100 * 1024;

/// A proxy that takes bodies of at most [`MAX`], before this service.
fn limited(driver: Driver, app: SocketAddr, service_keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let config = forwarding(front, &[app], "max_body = \"100KiB\"", service_keys);
    (ringmesh(driver).config(config).start(), front)
}

#[track_caller]
fn assert_too_large(answer: &Message) {
    assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (413, Some("body_too_large")), "{answer:?}");
}

/// A POST of a body whose length is told.
fn told(body: &[u8]) -> Vec<u8> {
    [format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), body].concat()
}

/// A POST of a body in chunks.
fn in_chunks(body: &[u8], chunk: usize) -> Vec<u8> {
    let mut request = b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    chunks(body, chunk, "", &mut request);
    request
}

#[test]
fn a_body_that_is_too_large_by_its_own_word_is_refused_before_it_is_asked_for() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let (proxy, front) = limited(driver, app.address(), "");
        let head =
            format!("POST / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n", MAX + 1);
        let mut client = Client::connect(front);
        let answer = client.send(head).response();
        assert_too_large(&answer);
        assert_eq!(answer.field("connection"), Some("close"));
        client.expect_end();

        let mut http2 = Connection::connect(front);
        let much = Outgoing::post("app", "/", pattern(MAX + 1)).with("content-length", &(MAX + 1).to_string());
        let stream = http2.begin(&much);
        assert_too_large(&http2.response(stream));
        assert_eq!(http2.get("app", "/").status(), 200, "the connection goes on");
        assert_eq!(app.requests().len(), 1, "the service has seen neither");
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "body_too_large")], 2);
    });
}

#[test]
fn a_body_of_no_told_length_ends_where_it_becomes_too_large_and_is_never_whole_for_the_service() {
    on_both_drivers(|driver| {
        let old = Service::echo();
        let new = http2::service(|request| Outgoing::ok(request.body.clone()));
        for (app, keys) in [(&old, ""), (&new, "protocol = \"http2\"")] {
            let (proxy, front) = limited(driver, app.address(), keys);
            for chunk in [1000, 16 * 1024, MAX, 4 * MAX] {
                let answer = Client::connect(front).send(in_chunks(&pattern(MAX + 1), chunk)).response();
                assert_too_large(&answer);
            }
            let mut http2 = Connection::connect(front);
            let stream = http2.begin(&Outgoing::post("app", "/", pattern(MAX + 1)));
            http2.send_data(stream, &pattern(60_000), Ends::No).unwrap();
            let _ = http2.send_data(stream, &pattern(60_000), Ends::No);
            assert_too_large(&http2.response(stream));
            assert_eq!(app.requests().len(), 0, "none of them was whole");
            proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "body_too_large")], 5);
        }
    });
}

#[test]
fn a_body_of_just_the_limit_passes_however_it_is_framed_and_responses_are_not_limited() {
    on_both_drivers(|driver| {
        let old = Service::echo();
        let new = http2::service(|request| Outgoing::ok(request.body.clone()));
        let body = pattern(MAX);
        for (app, keys) in [(&old, ""), (&new, "protocol = \"http2\"")] {
            let (_proxy, front) = limited(driver, app.address(), keys);
            let mut client = Client::connect(front);
            for request in [told(&body), in_chunks(&body, 7), in_chunks(&body, 16 * 1024), in_chunks(&body, MAX)] {
                assert!(client.send(request).response().body == body);
            }
            let mut http2 = Connection::connect(front);
            assert!(http2.exchange(&Outgoing::post("app", "/", body.clone())).body == body);
        }
        let long = Service::http(|_| {
            let body = pattern(3 * MAX);
            [format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).as_bytes(), &body].concat()
        });
        let (_proxy, front) = limited(driver, long.address(), "");
        assert_eq!(Client::connect(front).get("app", "/").body.len(), 3 * MAX);
        let long = Service::http(|_| chunked(&pattern(3 * MAX), 1000, ""));
        let (_proxy, front) = limited(driver, long.address(), "");
        assert_eq!(Client::connect(front).get("app", "/").body.len(), 3 * MAX);
    });
}
