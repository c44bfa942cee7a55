//! Heads that break the rules of RFC 9113 section 8: the stream is refused, nothing of it is passed on, and the connection
//! lives on. In both directions.

use std::net::SocketAddr;

use ringmesh_tests::http2::{self, Connection, Ended, Ends, Frame, Outgoing, code, flag, hpack};
use ringmesh_tests::{Client, Service, on_both_drivers, ports};

use super::{assert_reason, assert_refused, proxy_by_http2};
use crate::support::{forwarding, ringmesh};

const METHOD: (&str, &str) = (":method", "GET");
const SCHEME: (&str, &str) = (":scheme", "http");
const PATH: (&str, &str) = (":path", "/hidden");
const AUTHORITY: (&str, &str) = (":authority", "app");
const GOOD: [(&str, &str); 4] = [METHOD, SCHEME, PATH, AUTHORITY];

/// A good head with these fields behind it.
fn and(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&GOOD[..], fields].concat()
}

/// A good head in which one field has another value.
fn but(name: &'static str, value: &'static str) -> Vec<(&'static str, &'static str)> {
    GOOD.iter().map(|field| if field.0 == name { (name, value) } else { *field }).collect()
}

/// Heads with bytes that no field can hold. Who sends them writes no HTTP/2, so that the whole connection may end with them
/// (RFC 9113 section 5.4.1).
fn illegible_heads() -> Vec<Vec<(&'static str, &'static str)>> {
    vec![
        and(&[("Upper", "x")]),
        and(&[("x-UPPER", "x")]),
        and(&[("", "nameless")]),
        and(&[("with space", "x")]),
        and(&[("with:colon", "x")]),
        and(&[("x-\u{7f}", "x")]),
        and(&[("x-\u{e9}", "x")]),
        and(&[("x-y", "a\r\nsmuggled: yes")]),
        and(&[("x-y", "a\nb")]),
        and(&[("x-y", "a\rb")]),
        and(&[("x-y", "a\0b")]),
        and(&[("x\r\ny", "a")]),
        and(&[("x\0", "a")]),
        [&[(":unknown", "x")], &GOOD[..]].concat(),
        but(":method", ""),
        but(":method", "GET /x HTTP/1.1"),
        but(":method", "GE T"),
        but(":method", "G\r\nX: y"),
    ]
}

/// Heads that no request may have.
fn bad_heads() -> Vec<Vec<(&'static str, &'static str)>> {
    vec![
        // Pseudo-header fields (RFC 9113 section 8.3).
        vec![METHOD, SCHEME, ("x", "y"), PATH, AUTHORITY],
        and(&[(":path", "/again")]),
        and(&[(":method", "GET")]),
        and(&[(":scheme", "http")]),
        and(&[(":authority", "app")]),
        and(&[("x", "y"), (":authority", "app")]),
        [&[(":status", "200")], &GOOD[..]].concat(),
        vec![SCHEME, PATH, AUTHORITY],
        vec![METHOD, PATH, AUTHORITY],
        vec![METHOD, SCHEME, AUTHORITY],
        vec![("x", "y")],
        vec![],
        // An extended CONNECT by another method (RFC 8441 section 4), and plain ones.
        and(&[(":protocol", "websocket")]),
        vec![(":method", "CONNECT"), (":authority", "other:443")],
        vec![(":method", "CONNECT"), SCHEME, PATH, AUTHORITY],
        // Paths and schemes.
        but(":path", ""),
        but(":path", "hidden"),
        but(":path", "*"),
        but(":path", "/a b"),
        but(":path", "/a\r\nx: y"),
        but(":path", "/a\tb"),
        but(":path", "/a\u{1}"),
        but(":path", "/a\0"),
        but(":path", "http://other/hidden"),
        but(":path", "//other/hidden HTTP/1.1\r\nHost: x\r\n\r\nGET /hidden"),
        but(":scheme", ""),
        but(":scheme", "http\r\nx: y"),
        but(":scheme", "http://other/x?"),
        // Who is asked (RFC 9113 section 8.3.1).
        but(":authority", ""),
        but(":authority", "app/x"),
        but(":authority", "user:password@app"),
        but(":authority", "app\r\nx: y"),
        but(":authority", "app app"),
        and(&[("host", "other")]),
        and(&[("host", "app"), ("host", "app")]),
        vec![METHOD, SCHEME, PATH, ("host", "app"), ("host", "other")],
        vec![METHOD, SCHEME, PATH],
        // Fields of a connection (RFC 9113 section 8.2.2).
        and(&[("connection", "keep-alive")]),
        and(&[("connection", "x-y"), ("x-y", "z")]),
        and(&[("keep-alive", "timeout=5")]),
        and(&[("proxy-connection", "keep-alive")]),
        and(&[("transfer-encoding", "chunked")]),
        and(&[("transfer-encoding", "identity")]),
        and(&[("upgrade", "h2c")]),
        and(&[("te", "gzip")]),
        and(&[("te", "trailers, deflate")]),
        // Lengths that are none.
        and(&[("content-length", "-1")]),
        and(&[("content-length", "+0")]),
        and(&[("content-length", "0x0")]),
        and(&[("content-length", "")]),
        and(&[("content-length", "99999999999999999999999")]),
        and(&[("content-length", "0"), ("content-length", "1")]),
    ]
}

/// Ways of a head to a service by either version. Whoever is asked at `/seen` answers what `shown` does.
fn ways() -> [(Service, &'static str); 2] {
    [(http2::service(http2::service::shown), "protocol = \"http2\""), (Service::saying("GET /seen 0"), "")]
}

/// Nothing has arrived but what was to.
#[track_caller]
fn assert_only_seen(service: &Service, front: SocketAddr) {
    assert_eq!(Connection::connect(front).get("app", "/seen").text(), "GET /seen 0");
    let asked = service.requests();
    let others: Vec<_> = asked.iter().filter(|request| request.head.request().1 != "/seen").collect();
    assert!(others.is_empty(), "{others:?}");
}

#[test]
fn a_head_that_breaks_a_rule_is_refused_alone() {
    on_both_drivers(|driver| {
        for (service, keys) in ways() {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut client = Connection::connect(front);
            for fields in bad_heads() {
                for ends in [Ends::Yes, Ends::No] {
                    let what = format!("{fields:?} {ends:?}");
                    let stream = client.open(&fields, ends);
                    assert_refused(&mut client, stream, code::PROTOCOL_ERROR, &[400, 501], &what);
                }
                client.ping().unwrap_or_else(|error| panic!("the connection lives on after {fields:?}: {error}"));
            }
            assert_eq!(client.get("app", "/seen").text(), "GET /seen 0");
            assert_only_seen(&service, front);
        }
    });
}

#[test]
fn a_head_that_cannot_be_read_is_refused_and_other_connections_go_on() {
    on_both_drivers(|driver| {
        for (service, keys) in ways() {
            let front = ports::free();
            let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut bystander = Connection::connect(front);
            let mut ended = 0;
            for fields in illegible_heads() {
                let mut client = Connection::connect(front);
                let stream = client.open(&fields, Ends::Yes);
                match client.ended(stream).unwrap() {
                    Ended::Reset(told) => assert_eq!(told, code::PROTOCOL_ERROR, "{fields:?}"),
                    Ended::Answer(answer) => assert_eq!(answer.status(), 400, "{fields:?}"),
                    Ended::GoAway(_) | Ended::Closed => {
                        assert_eq!(client.goodbyes.last().map(|told| told.1), Some(code::PROTOCOL_ERROR), "{fields:?}");
                        ended += 1;
                    }
                }
                let labels = [("reason", "http2_error")];
                proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, ended);
                assert_eq!(bystander.get("app", "/seen").text(), "GET /seen 0");
            }
            assert_only_seen(&service, front);
        }
    });
}

#[test]
fn a_body_that_is_not_as_long_as_its_head_says_is_refused_and_never_whole_for_the_service() {
    on_both_drivers(|driver| {
        for (service, keys) in ways() {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut client = Connection::connect(front);
            // Not 0 and a body: such a head is whole by itself, and may be on its way before the body is seen.
            for (length, body) in [("5", "1234"), ("5", "123456"), ("5", "")] {
                let what = format!("{length} and `{body}`");
                let fields = [(":method", "POST"), SCHEME, PATH, AUTHORITY, ("content-length", length)];
                let stream = client.open(&fields, if body.is_empty() { Ends::Yes } else { Ends::No });
                if !body.is_empty() {
                    // The stream may be reset before this is read.
                    client.send(&Frame::data(stream, body).ending()).unwrap();
                }
                assert_refused(&mut client, stream, code::PROTOCOL_ERROR, &[400], &what);
                client.ping().unwrap();
            }
            assert_only_seen(&service, front);
        }
    });
}

#[test]
fn trailers_that_break_a_rule_are_never_passed_on_and_the_request_is_never_whole_for_the_service() {
    on_both_drivers(|driver| {
        let large = "x".repeat(100_000);
        let bad: [(&[(&str, &str)], Ends); 8] = [
            (&[("Upper", "x")], Ends::Yes),
            (&[("x", "a\r\nb: c")], Ends::Yes),
            (&[("x\r\ny", "z")], Ends::Yes),
            (&[("connection", "close")], Ends::Yes),
            (&[("transfer-encoding", "chunked")], Ends::Yes),
            (&[("te", "gzip")], Ends::Yes),
            (&[("x", "they do not end the stream")], Ends::No),
            (&[("large", &large)], Ends::Yes),
        ];
        for (service, keys) in ways() {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut bystander = Connection::connect(front);
            for (trailers, ends) in bad {
                let mut client = Connection::connect(front);
                let stream = client.begin(&Outgoing::post("app", "/hidden", ""));
                client.send_data(stream, b"body", Ends::No).unwrap();
                client.send_fields(stream, trailers, ends).unwrap();
                match client.ended(stream).unwrap() {
                    Ended::Reset(told) => assert_eq!(told, code::PROTOCOL_ERROR, "{trailers:?}"),
                    Ended::Answer(answer) => assert_eq!(answer.status(), 400, "{trailers:?}"),
                    // As with a head that cannot be read.
                    _ => assert_eq!(
                        client.goodbyes.last().map(|told| told.1),
                        Some(code::PROTOCOL_ERROR),
                        "{trailers:?}"
                    ),
                }
                assert_eq!(bystander.get("app", "/seen").text(), "GET /seen 0");
            }
            assert_only_seen(&service, front);
        }
    });
}

#[test]
fn host_alone_or_beside_an_equal_authority_is_good_and_the_service_learns_whom_the_client_asked() {
    on_both_drivers(|driver| {
        let (two, one) = (http2::service(http2::service::shown), Service::saying("hello"));
        for (service, keys) in [(&two, "protocol = \"http2\""), (&one, "")] {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut client = Connection::connect(front);
            for fields in [
                vec![METHOD, SCHEME, PATH, AUTHORITY],
                vec![METHOD, SCHEME, PATH, ("host", "app")],
                vec![METHOD, SCHEME, PATH, AUTHORITY, ("host", "app")],
                vec![METHOD, SCHEME, PATH, AUTHORITY, ("te", "trailers")],
                vec![METHOD, (":scheme", "https"), PATH, AUTHORITY],
            ] {
                let stream = client.open(&fields, Ends::Yes);
                assert_eq!(client.response(stream).status(), 200, "{fields:?}");
                let asked = service.last();
                assert_eq!(asked.field(":authority").or(asked.field("host")), Some("app"), "{fields:?}");
                assert!(asked.head.values("host").count() <= 1);
            }
            // Pieces of one cookie are one again where HTTP/1.1 asks for it (RFC 9113 section 8.2.3).
            let fields = and(&[("cookie", "a=b"), ("cookie", "c=d")]);
            let stream = client.open(&fields, Ends::Yes);
            assert_eq!(client.response(stream).status(), 200);
            let asked = service.last();
            let cookies: Vec<_> = asked.head.values("cookie").collect();
            match keys {
                "" => assert_eq!(cookies, ["a=b; c=d"]),
                _ => assert_eq!(cookies.join("; "), "a=b; c=d"),
            }
        }
    });
}

/// Answers that no service may give: the head, and what follows it.
fn bad_answers() -> Vec<(Vec<(&'static str, &'static str)>, &'static str)> {
    let ok = (":status", "200");
    vec![
        (vec![("x", "y")], ""),
        (vec![], ""),
        (vec![(":status", "")], ""),
        (vec![(":status", "20")], ""),
        (vec![(":status", "2000")], ""),
        (vec![(":status", "abc")], ""),
        (vec![ok, ok], ""),
        (vec![("x", "y"), ok], ""),
        (vec![ok, (":unknown", "/")], ""),
        (vec![ok, ("Upper", "x")], ""),
        (vec![ok, ("x", "a\r\nset-cookie: b")], ""),
        (vec![ok, ("x", "a\0b")], ""),
        (vec![ok, ("x\r\ny", "z")], ""),
        (vec![ok, ("connection", "close")], ""),
        (vec![ok, ("transfer-encoding", "chunked")], ""),
        (vec![ok, ("keep-alive", "timeout=5")], ""),
        (vec![ok, ("upgrade", "h2c")], ""),
        (vec![ok, ("content-length", "x")], ""),
        (vec![ok, ("content-length", "5"), ("content-length", "6")], "hello"),
        (vec![(":status", "101")], ""),
    ]
}

#[test]
fn an_answer_that_breaks_a_rule_is_a_502_and_nothing_of_it_is_passed_on() {
    on_both_drivers(|driver| {
        for (fields, body) in bad_answers() {
            let sent = fields.clone();
            let service = http2::conversing(&[], move |talk| {
                while let Some((stream, request)) = talk.next_request()? {
                    if request.head.request().1 == "/good" {
                        talk.send_message(stream, &Outgoing::ok("good"))?;
                        continue;
                    }
                    talk.send_fields(stream, &sent, if body.is_empty() { Ends::Yes } else { Ends::No })?;
                    if !body.is_empty() {
                        talk.send_data(stream, body.as_bytes(), Ends::Yes)?;
                    }
                }
                Ok(())
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let (mut two, mut one) = (Connection::connect(front), Client::connect(front));
            for _ in 0..2 {
                let answer = two.get("app", "/bad");
                assert_eq!(answer.status(), 502, "{fields:?}: {answer:?}");
                assert_reason(&answer, 502, "upstream_garbage");
                assert_reason(&one.get("app", "/bad"), 502, "upstream_garbage");
                assert_eq!(two.get("app", "/good").text(), "good");
                assert_eq!(one.get("app", "/good").text(), "good");
            }
        }
    });
}

/// What the service answers with is never whole for the client.
fn check_is_no_answer(client: &mut Connection, answered: &str) {
    let stream = client.request(&Outgoing::get("app", "/"));
    match client.ended(stream).unwrap() {
        Ended::Reset(_) => {}
        Ended::Answer(answer) => assert_reason(&answer, 502, "upstream_garbage"),
        other => panic!("{answered}: {other:?}"),
    }
}

#[test]
fn an_answer_whose_body_is_not_as_long_as_its_head_says_is_never_whole_for_the_client() {
    on_both_drivers(|driver| {
        for (length, body) in [("5", "1234"), ("5", "123456"), ("0", "1")] {
            let service = http2::conversing(&[], move |talk| {
                while let Some((stream, _)) = talk.next_request()? {
                    talk.send_fields(stream, &[(":status", "200"), ("content-length", length)], Ends::No)?;
                    talk.send_data(stream, body.as_bytes(), Ends::Yes)?;
                }
                Ok(())
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let mut client = Connection::connect(front);
            check_is_no_answer(&mut client, &format!("{length} and `{body}`"));
            client.ping().unwrap();
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            match client.try_response() {
                // Whole with its head, which may have gone before the byte too many came.
                Ok(answer) if length == "0" && answer.status() == 200 => assert_eq!(answer.text(), ""),
                Ok(answer) => assert_reason(&answer, 502, "upstream_garbage"),
                Err(error) => assert!(ringmesh_tests::client::is_end(&error), "{error}"),
            }
        }
    });
}

/// RFC 9113 section 8.2.1. gRPC's metadata may come with some, which mean nothing.
#[test]
fn spaces_around_a_value_are_not_passed_on_in_either_direction() {
    on_both_drivers(|driver| {
        let (tell, told) = std::sync::mpsc::channel();
        let service = http2::conversing(&[], move |talk| {
            while let Some((stream, request)) = talk.next_request()? {
                let values = |head: &ringmesh_tests::Head| head.field("x").map(str::to_owned);
                tell.send((values(&request.head), request.trailers)).unwrap();
                talk.send_fields(stream, &[(":status", "200"), ("y", "\tb c ")], Ends::No)?;
                talk.send_fields(stream, &[("z", " d ")], Ends::Yes)?;
            }
            Ok(())
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let stream = client.open(&and(&[("x", " a b\t"), ("empty", " ")]), Ends::No);
        client.send_fields(stream, &[("t", " u ")], Ends::Yes).unwrap();
        let answer = client.response(stream);
        assert_eq!(answer.field("y"), Some("b c"));
        assert_eq!(answer.trailers, [("z".to_owned(), "d".to_owned())]);
        let (x, trailers) = told.recv_timeout(ringmesh_tests::DEADLINE).unwrap();
        assert_eq!((x.as_deref(), &trailers[..]), (Some("a b"), &[("t".to_owned(), "u".to_owned())][..]));
    });
}

/// RFC 9110 section 6.4.1. By HTTP/1 such a body could not be told from the next response.
#[test]
fn an_answer_that_can_have_no_body_and_has_one_is_never_whole_for_the_client() {
    on_both_drivers(|driver| {
        for (status, length) in [("204", None), ("204", Some("4")), ("304", None), ("304", Some("4"))] {
            let service = http2::conversing(&[], move |talk| {
                while let Some((stream, request)) = talk.next_request()? {
                    let length = length.map(|length| ("content-length", length));
                    let fields: Vec<_> = [(":status", status)].into_iter().chain(length).collect();
                    talk.send_fields(stream, &fields, Ends::No)?;
                    let body = if request.head.request().1 == "/good" { "" } else { "evil" };
                    talk.send_data(stream, body.as_bytes(), Ends::Yes)?;
                }
                Ok(())
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let mut client = Connection::connect(front);
            check_is_no_answer(&mut client, &format!("{status}, {length:?}"));
            // Where a length is told, the library wants the head to be the end.
            if length.is_none() {
                assert_eq!(client.get("app", "/good").status().to_string(), status, "an empty body is none");
            }
            client.ping().unwrap();
        }
    });
}

/// What breaks the connection itself: frames, and the code of the goodbye (RFC 9113 sections 4 to 6).
fn broken_connections() -> Vec<(&'static str, Vec<Frame>, &'static [u32])> {
    use http2::kind;
    let head = || hpack::block(&GOOD);
    let get = |stream| Frame::headers(stream, head()).ending();
    const PROTOCOL: &[u32] = &[code::PROTOCOL_ERROR];
    const SIZE: &[u32] = &[code::FRAME_SIZE_ERROR, code::PROTOCOL_ERROR];
    const COMPRESSION: &[u32] = &[code::COMPRESSION_ERROR, code::PROTOCOL_ERROR];
    const CLOSED: &[u32] = &[code::STREAM_CLOSED, code::PROTOCOL_ERROR];
    const FLOW: &[u32] = &[code::FLOW_CONTROL_ERROR, code::PROTOCOL_ERROR];
    vec![
        ("DATA on the connection", vec![Frame::data(0, "x")], PROTOCOL),
        ("DATA on an idle stream", vec![Frame::data(1, "x")], CLOSED),
        ("HEADERS on the connection", vec![get(0)], PROTOCOL),
        ("HEADERS on an even stream", vec![get(2)], PROTOCOL),
        ("a stream that goes back", vec![get(5), get(3)], CLOSED),
        ("RST_STREAM on the connection", vec![Frame::reset(0, 8)], PROTOCOL),
        ("RST_STREAM on an idle stream", vec![Frame::reset(1, 8)], PROTOCOL),
        ("RST_STREAM of another length", vec![get(1), Frame::new(kind::RST_STREAM, 0, 1, [0; 5])], SIZE),
        ("SETTINGS on a stream", vec![Frame { stream: 1, ..Frame::settings(&[]) }], PROTOCOL),
        ("SETTINGS of an odd length", vec![Frame::new(kind::SETTINGS, 0, 0, [0; 5])], SIZE),
        ("an answer to SETTINGS with a payload", vec![Frame::new(kind::SETTINGS, flag::ACK, 0, [0; 6])], SIZE),
        ("ENABLE_PUSH of 2", vec![Frame::settings(&[(http2::setting::ENABLE_PUSH, 2)])], PROTOCOL),
        ("a window beyond 31 bits", vec![Frame::settings(&[(http2::setting::INITIAL_WINDOW_SIZE, 1 << 31)])], FLOW),
        ("frames of 1 byte", vec![Frame::settings(&[(http2::setting::MAX_FRAME_SIZE, 1)])], PROTOCOL),
        ("PUSH_PROMISE", vec![Frame::new(kind::PUSH_PROMISE, flag::END_HEADERS, 1, [0, 0, 0, 2])], PROTOCOL),
        ("PING on a stream", vec![Frame { stream: 1, ..Frame::ping([0; 8]) }], PROTOCOL),
        ("PING of 7 bytes", vec![Frame::new(kind::PING, 0, 0, [0; 7])], SIZE),
        ("GOAWAY on a stream", vec![Frame { stream: 1, ..Frame::go_away(0, 0) }], PROTOCOL),
        ("WINDOW_UPDATE of nothing", vec![Frame::window_update(0, 0)], PROTOCOL),
        ("WINDOW_UPDATE of 3 bytes", vec![Frame::new(kind::WINDOW_UPDATE, 0, 0, [0; 3])], SIZE),
        ("a window that overflows", vec![Frame::window_update(0, http2::frame::MAX_WINDOW)], FLOW),
        ("WINDOW_UPDATE on an idle stream", vec![Frame::window_update(1, 1)], PROTOCOL),
        ("a lone CONTINUATION", vec![Frame::continuation(1, head())], PROTOCOL),
        ("CONTINUATION behind the end", vec![get(1), Frame::continuation(1, head())], PROTOCOL),
        ("another frame within a header block", vec![get(1).without(flag::END_HEADERS), Frame::ping([0; 8])], PROTOCOL),
        (
            "CONTINUATION of another stream",
            vec![get(1).without(flag::END_HEADERS), Frame::continuation(3, "").with(flag::END_HEADERS)],
            PROTOCOL,
        ),
        ("a frame larger than allowed", vec![Frame::new(kind::PING, 0, 0, vec![0; 20_000])], SIZE),
        ("padding longer than its frame", vec![get(1), Frame::headers(3, *b"\xff\0").with(flag::PADDED)], PROTOCOL),
        ("a header block that refers to nothing", vec![Frame::headers(1, *b"\xff\xff\x03").ending()], COMPRESSION),
        ("a header block that breaks off", vec![Frame::headers(1, *b"\0\x7f").ending()], COMPRESSION),
        ("a table larger than allowed", vec![Frame::headers(1, *b"\x3f\xff\xff\x7f").ending()], COMPRESSION),
        ("a text that is no code", vec![Frame::headers(1, *b"\0\x84\xff\xff\xff\xff\x01x").ending()], COMPRESSION),
    ]
}

#[test]
fn what_breaks_a_connection_ends_it_with_a_goodbye_that_says_why_and_others_go_on() {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut bystander = Connection::connect(front);
        for (what, frames, codes) in broken_connections() {
            let mut client = Connection::connect(front);
            client.ping().unwrap();
            client.send_all(&frames).unwrap();
            let (_, told) = client.goodbye().unwrap_or_else(|error| panic!("{what}: no goodbye: {error}"));
            assert!(codes.contains(&told), "{what}: {told}");
            client.until_end().unwrap();
            assert_eq!(bystander.get("app", "/x").text(), "GET /x 0", "beside {what}");
        }
        assert!(bystander.goodbyes.is_empty());
        assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0);
        assert_eq!(service.accepted(), service.open(), "connections to the service are not concerned");
    });
}

#[test]
fn what_breaks_a_connection_to_a_service_is_a_502_and_the_next_request_has_a_new_one() {
    on_both_drivers(|driver| {
        let breaking: Vec<(&str, Vec<Frame>)> = vec![
            ("DATA on the connection", vec![Frame::data(0, "x")]),
            ("DATA on an idle stream", vec![Frame::data(99, "x")]),
            ("HEADERS on an idle stream", vec![Frame::headers(99, hpack::block(&[(":status", "200")]))]),
            ("a push", vec![Frame::new(http2::kind::PUSH_PROMISE, flag::END_HEADERS, 1, [0, 0, 0, 2])]),
            ("a header block that refers to nothing", vec![Frame::headers(1, *b"\xff\xff\x03").ending()]),
            ("a window that overflows", vec![Frame::window_update(0, http2::frame::MAX_WINDOW)]),
            ("an odd SETTINGS", vec![Frame::new(http2::kind::SETTINGS, 0, 0, [0; 5])]),
            ("a frame larger than allowed", vec![Frame::new(http2::kind::PING, 0, 0, vec![0; 20_000])]),
        ];
        for (what, frames) in breaking {
            let service = http2::conversing(&[], move |talk| {
                while let Some((stream, request)) = talk.next_request()? {
                    match request.head.request().1 {
                        "/bad" => talk.send_all(&frames)?,
                        _ => talk.send_message(stream, &Outgoing::ok("good"))?,
                    }
                }
                Ok(())
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let mut client = Connection::connect(front);
            for _ in 0..2 {
                let answer = client.get("app", "/bad");
                assert_eq!(answer.status(), 502, "{what}: {answer:?}");
                assert_reason(&answer, 502, "upstream_garbage");
                assert_eq!(client.get("app", "/good").text(), "good", "{what}");
            }
        }
        // One that does not speak HTTP/2 at all.
        let service = Service::sockets(|mut stream| {
            use std::io::Write;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        for _ in 0..2 {
            assert_reason(&client.get("app", "/"), 502, "upstream_garbage");
        }
    });
}
