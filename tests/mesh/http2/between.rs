//! From one version to the other: what means something in one of them alone stays there, and nothing that is only bytes in
//! one becomes a line or a message in the other.

use std::net::SocketAddr;

use ringmesh_tests::http2::{self, Connection, Ended, Ends, Outgoing};
use ringmesh_tests::service::{chunked, ok};
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, on_both_drivers};

use super::proxy_by_http2;
use crate::support::proxy_to;

/// Trailers that would be taken for something else by who merges them into the head (RFC 9110 section 6.5.1).
const NOT_BEHIND_A_BODY: [(&str, &str); 6] = [
    ("content-length", "5"),
    ("host", "other"),
    ("content-type", "text/html"),
    ("authorization", "Basic eDp5"),
    ("set-cookie", "a=b"),
    ("content-encoding", "gzip"),
];

fn names(message: &Message) -> Vec<String> {
    message.trailers.iter().map(|(name, _)| name.to_lowercase()).collect()
}

/// A proxy to a service by either version.
fn to(driver: Driver, service: &Service, is_two: bool) -> (Proxy, SocketAddr) {
    match is_two {
        true => proxy_by_http2(driver, &[service.address()], "", ""),
        false => proxy_to(driver, &[service.address()]),
    }
}

#[test]
fn trailers_that_frame_route_or_authorize_are_left_out_and_the_others_pass() {
    on_both_drivers(|driver| {
        let trailers = [&[("x-first", "1")], &NOT_BEHIND_A_BODY[..], &[("x-last", "2")]].concat();
        let answered = trailers.clone();
        let two = http2::conversing(&[], move |talk| {
            while let Some((stream, _)) = talk.next_request()? {
                talk.send_fields(stream, &[(":status", "200")], Ends::No)?;
                talk.send_data(stream, b"body", Ends::No)?;
                talk.send_fields(stream, &answered, Ends::Yes)?;
            }
            Ok(())
        });
        let one = Service::http(|_| chunked(b"body", 4, "x-first: 1\r\nx-last: 2\r\n"));
        for (service, is_two) in [(&two, true), (&one, false)] {
            let (_proxy, front) = to(driver, service, is_two);
            let mut client = Connection::connect(front);
            for _ in 0..2 {
                let stream = client.begin(&Outgoing::post("app", "/x", "").with("te", "trailers"));
                client.send_data(stream, b"body", Ends::No).unwrap();
                client.send_fields(stream, &trailers, Ends::Yes).unwrap();
                let answer = client.response(stream);
                assert_eq!((answer.status(), answer.text().as_str()), (200, "body"));
                assert_eq!(names(&answer), ["x-first", "x-last"]);
                let asked = service.last();
                assert_eq!((asked.head.request(), asked.text().as_str()), (("POST", "/x"), "body"));
                assert_eq!(names(&asked), ["x-first", "x-last"]);
            }
            let mut client = Client::connect(front);
            for _ in 0..2 {
                client.send("GET /x HTTP/1.1\r\nHost: app\r\nTE: trailers\r\nConnection: te\r\n\r\n");
                let answer = client.response();
                assert_eq!((answer.status(), answer.text().as_str()), (200, "body"));
                assert_eq!(names(&answer), ["x-first", "x-last"]);
            }
        }
    });
}

#[test]
fn fields_of_a_connection_stay_on_it() {
    on_both_drivers(|driver| {
        // This end minds every field of a connection that comes.
        let two = http2::service(|_| Outgoing::ok("hello"));
        let (_proxy, front) = to(driver, &two, true);
        let mut client = Client::connect(front);
        for fields in [
            "Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n",
            "Connection: x-private, close\r\nX-Private: y\r\n",
            "Proxy-Connection: keep-alive\r\n",
            "TE: gzip, trailers\r\nConnection: TE\r\n",
            "Transfer-Encoding: chunked\r\n",
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
        ] {
            let end = if fields.contains("chunked") { "0\r\n\r\n" } else { "" };
            client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{fields}\r\n{end}"));
            let answer = client.response();
            assert_eq!((answer.status(), answer.text().as_str()), (200, "hello"), "{fields}: {answer:?}");
            let asked = two.last();
            for name in ["keep-alive", "x-private", "proxy-connection", "upgrade", "http2-settings", "connection"] {
                assert_eq!(asked.field(name), None, "{fields}");
            }
            if answer.field("connection") == Some("close") {
                client = Client::connect(front);
            }
        }
        let one = Service::conversing(|talk| {
            while talk.request()?.is_some() {
                talk.send(
                    "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive, x-private\r\nX-Private: y\r\n\
                     Keep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\nX-Public: z\r\n\r\nhi",
                )?;
            }
            Ok(())
        });
        let (_proxy, front) = to(driver, &one, false);
        let mut client = Connection::connect(front);
        for _ in 0..3 {
            let answer = client.get("app", "/");
            assert_eq!((answer.text().as_str(), answer.field("x-public")), ("hi", Some("z")));
            assert_eq!(answer.field("x-private"), None);
        }
    });
}

#[test]
fn a_body_that_looks_like_a_request_stays_a_body() {
    const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: app\r\n\r\n";
    on_both_drivers(|driver| {
        let one = Service::saying("hello");
        let (_proxy, front) = to(driver, &one, false);
        let mut client = Connection::connect(front);
        let bodies = [
            HIDDEN.to_owned(),
            format!("0\r\n\r\n{HIDDEN}"),
            format!("\r\n{HIDDEN}"),
            format!("5\r\nhello\r\n0\r\n\r\n{HIDDEN}"),
        ];
        for method in ["POST", "GET", "HEAD", "DELETE", "OPTIONS"] {
            for body in &bodies {
                for length in [None, Some(body.len().to_string())] {
                    let mut request = Outgoing::request(method, "app", "/seen").body(body.as_bytes());
                    if let Some(length) = &length {
                        request = request.with("content-length", length);
                    }
                    let stream = client.request(&request);
                    match client.ended(stream).unwrap() {
                        Ended::Answer(answer) if answer.status() == 200 => {
                            let asked = one.last();
                            assert_eq!(asked.head.request(), (method, "/seen"));
                            assert_eq!(asked.text(), *body, "{method}");
                        }
                        // A body where a method has none may also be refused.
                        Ended::Answer(answer) => {
                            assert!(answer.field("x-ringmesh-reason").is_some() && method != "POST", "{answer:?}");
                        }
                        other => assert!(method != "POST", "{method}: {other:?}"),
                    }
                }
            }
        }
        assert_eq!(client.get("app", "/seen").text(), "hello");
        assert!(one.requests().iter().all(|request| request.head.request().1 == "/seen"));
    });
}

#[test]
fn whom_and_what_is_asked_is_the_same_in_both_versions() {
    on_both_drivers(|driver| {
        let two = http2::service(|_| Outgoing::ok("hello"));
        let (_proxy, front) = to(driver, &two, true);
        let mut client = Client::connect(front);
        for (target, host, authority, path) in [
            ("/", "app", "app", "/"),
            ("/a%20b?c=d&e", "APP.example:8080", "APP.example:8080", "/a%20b?c=d&e"),
            ("http://app/x", "app", "app", "/x"),
            ("http://app", "app", "app", "/"),
            ("/", "[::1]:80", "[::1]:80", "/"),
        ] {
            client.send(format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n"));
            let answer = client.response();
            assert_eq!(answer.status(), 200, "{target}: {answer:?}");
            let asked = two.last();
            assert_eq!(asked.field(":authority"), Some(authority), "{target}");
            assert_eq!(asked.field(":path"), Some(path), "{target}");
            assert_eq!(asked.field(":scheme"), Some("http"), "{target}");
            assert_eq!(asked.field("host"), None, "it is in the authority: {target}");
        }
        client.send("OPTIONS * HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().status(), 200);
        assert_eq!(two.last().head.request(), ("OPTIONS", "*"));

        let one = Service::saying("hello");
        let (_proxy, front) = to(driver, &one, false);
        let mut client = Connection::connect(front);
        for (method, path) in [("GET", "/"), ("GET", "/a%20b?c=d&e"), ("OPTIONS", "*"), ("GET", "//double//slash")] {
            assert_eq!(client.exchange(&Outgoing::request(method, "APP.example:8080", path)).status(), 200, "{path}");
            let asked = one.last();
            assert_eq!(asked.head.start, format!("{method} {path} HTTP/1.1"));
            assert_eq!(asked.head.values("host").collect::<Vec<_>>(), ["APP.example:8080"]);
            let names: Vec<_> = asked.head.fields.iter().map(|(name, _)| name.as_str()).collect();
            assert!(names.iter().all(|name| !name.starts_with(':')), "{names:?}");
        }
    });
}

#[test]
fn a_client_that_waits_for_a_go_ahead_gets_it_across_versions() {
    on_both_drivers(|driver| {
        let two = http2::conversing(&[], |talk| {
            while let Some((stream, _)) = talk.next_head()? {
                talk.send_fields(stream, &[(":status", "100")], Ends::No)?;
                talk.until(|end| end.stream(stream).ended.then_some(()))?;
                talk.send_message(stream, &Outgoing::ok("thanks"))?;
            }
            Ok(())
        });
        let one = Service::conversing(|talk| {
            while let Some(head) = talk.head()? {
                talk.send("HTTP/1.1 100 Continue\r\n\r\n")?;
                talk.rest_of(head)?;
                talk.send(ok("thanks"))?;
            }
            Ok(())
        });
        for (service, is_two) in [(&two, true), (&one, false)] {
            let (_proxy, front) = to(driver, service, is_two);
            let mut client = Connection::connect(front);
            let stream = client.begin(&Outgoing::post("app", "/", "").with("expect", "100-continue"));
            client.until(|end| (!end.stream(stream).interim.is_empty()).then_some(())).unwrap();
            assert_eq!(client.stream(stream).interim[0][0], (":status".to_owned(), "100".to_owned()));
            client.send_data(stream, b"the body", Ends::Yes).unwrap();
            assert_eq!(client.response(stream).text(), "thanks");
            assert_eq!(service.last().text(), "the body");

            let mut client = Client::connect(front);
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n");
            assert_eq!(client.head().status(), 100);
            client.send("the body");
            assert_eq!(client.response().text(), "thanks");
        }
    });
}

#[test]
fn a_listener_speaks_what_it_is_told_to() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (proxy, front) = {
            let front = ringmesh_tests::ports::free();
            let config = crate::support::forwarding(front, &[service.address()], "protocol = \"http2\"", "");
            (crate::support::ringmesh(driver).config(config).start(), front)
        };
        assert_eq!(Connection::connect(front).get("app", "/").text(), "hello");
        // HTTP/1.1 gets no service there, whatever it is told.
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        let said = client.rest().unwrap_or_default();
        assert!(!String::from_utf8_lossy(&said).contains("hello"));
        assert_eq!(service.requests().len(), 1);
        assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0);
    });
}
