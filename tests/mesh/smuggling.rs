//! Requests whose end or target two readers could see differently, sent to the real proxy: each gets 400 (or what fits it
//! better), the connection ends, and nothing of it reaches the service.

use std::net::SocketAddr;

use ringmesh_tests::{Client, Service, on_both_drivers};

use crate::support::proxy_to;

/// What would be smuggled. The service must never see its path.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app\r\n\r\n";

/// Sends bytes and sees that they are refused with one of these statuses, and the connection with them.
#[track_caller]
fn check(front: SocketAddr, bytes: &[u8], statuses: &[u16]) {
    let shown = String::from_utf8_lossy(bytes).escape_debug().to_string();
    let mut client = Client::connect(front);
    client.send(bytes);
    let response = client.try_response().unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert!(statuses.contains(&response.status()), "{} for {shown}", response.status());
    assert_eq!(response.field("connection"), Some("close"), "{shown}");
    assert!(response.field("x-ringmesh-reason").is_some(), "it is our own answer: {shown}");
    client.expect_end();
}

#[track_caller]
fn check_nothing_arrived(service: &Service) {
    let requests = service.requests();
    assert!(
        requests.is_empty(),
        "the service got {:?}",
        requests.iter().map(|request| &request.head.start).collect::<Vec<_>>()
    );
}

#[test]
fn a_head_that_announces_its_length_in_two_ways_is_refused() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let fields = [
            "Content-Length: 6\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: chunked\r\nContent-Length: 6",
            "Content-Length: 6\r\nContent-Length: 5",
            "Content-Length: 6, 5",
            "Content-Length: +6",
            "Content-Length: -6",
            "Content-Length: 0x6",
            "Content-Length: 6 6",
            "Content-Length: ",
            "Content-Length: 99999999999999999999999",
            "Content-Length : 6",
            " Content-Length: 6",
            "X: y\r\n Content-Length: 6",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
            "Transfer-Encoding: chunked, identity",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
            "Transfer-Encoding: \x0bchunked",
            "Transfer-Encoding : chunked",
            "Transfer-Encoding\t: chunked",
            "Transfer_Encoding: chunked",
            "Transfer-Encoding: chunked\r\nTransfer-encoding: x",
            "Transfer-Encoding:\n chunked",
            "X: y\nTransfer-Encoding: chunked",
            "X: y\rTransfer-Encoding: chunked",
            "X: a\0b",
            "X\0Y: a",
            "no colon at all",
            ": nameless",
        ];
        for field in fields {
            let bytes = format!("POST / HTTP/1.1\r\nHost: app\r\n{field}\r\n\r\n0\r\n\r\n{HIDDEN}");
            check(front, bytes.as_bytes(), &[400, 501]);
        }
        check_nothing_arrived(&service);
    });
}

#[test]
fn a_head_whose_lines_or_target_could_be_read_differently_is_refused() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let heads: [(&str, u16); 17] = [
            ("GET / HTTP/1.1\nHost: app\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: app\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: app\r\n\n", 400),
            ("GET  / HTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("GET / HTTP/1.1 \r\nHost: app\r\n\r\n", 400),
            ("GET /a b HTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("GET\t/\tHTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("GET /\x01 HTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: app\r\nHost: app\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: app/x\r\n\r\n", 400),
            ("GET http://other/ HTTP/1.1\r\nHost: app\r\nHost: other\r\n\r\n", 400),
            ("GET app HTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n", 400),
            ("GET / HTTP/2.0\r\nHost: app\r\n\r\n", 505),
            ("GET /\r\n\r\n", 400),
        ];
        for (head, status) in heads {
            check(front, format!("{head}{HIDDEN}").as_bytes(), &[status]);
        }
        check(front, b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", &[505]);
        check(front, b"CONNECT other:443 HTTP/1.1\r\nHost: other:443\r\n\r\n", &[501, 400]);
        check(front, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 not TLS here\r\n\r\n", &[400]);
        check_nothing_arrived(&service);
    });
}

#[test]
fn a_chunked_body_that_breaks_its_framing_is_refused_and_is_never_whole_for_the_service() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        let bodies = [
            "5\nhello\r\n0\r\n\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello0\r\n\r\n",
            "5\r\nhelloX\r\n0\r\n\r\n",
            "0x5\r\nhello\r\n0\r\n\r\n",
            "+5\r\nhello\r\n0\r\n\r\n",
            "-5\r\nhello\r\n0\r\n\r\n",
            " 5\r\nhello\r\n0\r\n\r\n",
            "5 \x01\r\nhello\r\n0\r\n\r\n",
            "\r\nhello\r\n0\r\n\r\n",
            "g\r\nhello\r\n0\r\n\r\n",
            "10000000000000005\r\nhello\r\n0\r\n\r\n",
            "0\r\nContent-Length: 5\r\n\r\n",
            "0\r\nTransfer-Encoding: chunked\r\n\r\n",
            "0\r\nHost: other\r\n\r\n",
            "0\r\nbad trailer\r\n\r\n",
            "0\r\nX: y\n\r\n",
        ];
        for (number, body) in bodies.iter().enumerate() {
            let bytes = format!("POST /case HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{body}{HIDDEN}");
            check(front, bytes.as_bytes(), &[400]);
            let counted = [("reason", "bad_body")];
            proxy.wait_for_metric("ringmesh_request_outcome_total", &counted, number as u64 + 1);
        }
        check_nothing_arrived(&service);
    });
}

#[test]
fn a_request_behind_one_that_is_refused_is_not_served() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        // A good one, then a bad one, then another good one in the same bytes.
        client.send(format!(
            "GET /first HTTP/1.1\r\nHost: app\r\n\r\nPOST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab{HIDDEN}"
        ));
        assert_eq!(client.response().text(), "hello");
        assert_eq!(client.response().status(), 400);
        client.expect_end();
        let starts: Vec<String> = service.requests().into_iter().map(|request| request.head.start).collect();
        assert_eq!(starts, ["GET /first HTTP/1.1"]);
    });
}

#[test]
fn a_body_that_looks_like_a_request_stays_a_body() {
    on_both_drivers(|driver| {
        let service = Service::echo();
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for framing in ["fixed", "chunked"] {
            match framing {
                "fixed" => client
                    .send(format!("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len())),
                _ => client.send(format!(
                    "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{HIDDEN}\r\n0\r\n\r\n",
                    HIDDEN.len()
                )),
            };
            assert_eq!(client.response().text(), HIDDEN);
        }
        // GET with a body is odd, but has only one reading.
        client.send(format!("GET / HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n{HIDDEN}", HIDDEN.len()));
        assert_eq!(client.response().text(), HIDDEN);
        assert!(service.requests().iter().all(|request| request.head.request().1 == "/"));
        assert_eq!(service.requests().len(), 3);
    });
}
