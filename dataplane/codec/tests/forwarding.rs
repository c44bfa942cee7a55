//! What goes on to the next hop, and in how many spans.

use std::ops::Range;

use ringmesh_codec::http1::{
    Chunked, ClientFields, Connection, EditError, Edits, Joined, Parsed, RequestHead, ResponseHead, Sink, Upgrade,
    write_local_response,
};
use ringmesh_codec::{BodyLength, Head, Limits, Method, Version};

fn parse_request(bytes: &[u8]) -> RequestHead {
    let mut head = RequestHead::default();
    assert_eq!(head.parse(bytes, &Limits::default()), Ok(Parsed::Complete), "{}", bytes.escape_ascii());
    head
}

fn parse_response(bytes: &[u8]) -> ResponseHead {
    let mut head = ResponseHead::default();
    assert_eq!(head.parse(bytes, &Limits::default()), Ok(Parsed::Complete), "{}", bytes.escape_ascii());
    head
}

fn edits(change: impl FnOnce(&mut Edits)) -> Edits {
    let mut edits = Edits::default();
    change(&mut edits);
    edits
}

/// What is written for the request. Line ends are `\n` on both sides, to keep the tables readable.
#[track_caller]
fn check_request(request: &str, edits: &Edits, expected: &str) {
    let bytes = request.replace('\n', "\r\n");
    let mut sink = Joined { bytes: bytes.as_bytes(), text: Vec::new() };
    parse_request(bytes.as_bytes()).write(bytes.as_bytes(), edits, &mut sink);
    assert_eq!(String::from_utf8_lossy(&sink.text).replace("\r\n", "\n"), expected);
    // What we write we have to understand ourselves, as the same message.
    assert_eq!(parse_request(&sink.text).framing(), parse_request(bytes.as_bytes()).framing());
}

#[track_caller]
fn check_response(response: &str, edits: &Edits, expected: &str) {
    let bytes = response.replace('\n', "\r\n");
    let mut sink = Joined { bytes: bytes.as_bytes(), text: Vec::new() };
    parse_response(bytes.as_bytes()).write(bytes.as_bytes(), edits, &mut sink);
    assert_eq!(String::from_utf8_lossy(&sink.text).replace("\r\n", "\n"), expected);
}

#[derive(Debug, PartialEq)]
enum Span {
    Original(Range<usize>),
    Inserted(Vec<u8>),
}

#[derive(Default)]
struct Spans(Vec<Span>);

impl Sink for Spans {
    fn original(&mut self, range: Range<usize>) {
        self.0.push(Span::Original(range));
    }

    fn inserted(&mut self, text: &[u8]) {
        self.0.push(Span::Inserted(text.to_vec()));
    }
}

#[test]
fn unchanged_heads_are_one_span_of_the_original() {
    let bytes = b"GET /a?b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\n\r\nbody";
    let mut spans = Spans::default();
    parse_request(bytes).write(bytes, &Edits::default(), &mut spans);
    assert_eq!(spans.0, [Span::Original(0..bytes.len() - 4)]);

    let bytes = b"\r\nPOST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut spans = Spans::default();
    parse_request(bytes).write(bytes, &Edits::default(), &mut spans);
    assert_eq!(spans.0, [Span::Original(2..bytes.len())], "the empty line before it is left out");

    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";
    let mut spans = Spans::default();
    parse_response(bytes).write(bytes, &Edits::default(), &mut spans);
    assert_eq!(spans.0, [Span::Original(0..bytes.len() - 4)]);
}

#[test]
fn removed_fields_split_the_original_and_nothing_is_copied() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\nAccept: */*\r\n\r\n";
    let mut spans = Spans::default();
    parse_request(bytes).write(bytes, &Edits::default(), &mut spans);
    assert_eq!(spans.0, [Span::Original(0..25), Span::Original(49..bytes.len())]);
}

#[test]
fn added_fields_follow_the_original_with_the_blank_line() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let mut spans = Spans::default();
    parse_request(bytes).write(bytes, &edits(|edits| edits.set("X", b"y").expect("valid")), &mut spans);
    let expected =
        [Span::Original(0..bytes.len() - 2), Span::Inserted(b"X: y\r\n".to_vec()), Span::Inserted(b"\r\n".to_vec())];
    assert_eq!(spans.0, expected);
}

#[test]
fn fields_of_this_connection_are_left_out() {
    let plain = Edits::default();
    check_request(
        "GET / HTTP/1.1\nHost: a\nConnection: close, x-a\nX-A: 1\nKeep-Alive: timeout=5\nProxy-Connection: keep-alive\n\
         x-a: 2\nX-B: 3\nUpgrade: h2c\nHTTP2-Settings: x\n\n",
        &plain,
        "GET / HTTP/1.1\nHost: a\nX-B: 3\n\n",
    );
    check_response(
        "HTTP/1.1 200 OK\nConnection: Upgrade, X-A\nUpgrade: h2c\nX-A: 1\nTrailer: X-T\nProxy-Authenticate: Basic\n\n",
        &plain,
        "HTTP/1.1 200 OK\nTrailer: X-T\nProxy-Authenticate: Basic\n\n",
    );
}

#[test]
fn each_field_of_this_connection_is_left_out_when_alone() {
    let fields = [
        "Connection: close",
        "Keep-Alive: 5",
        "Proxy-Connection: close",
        "TE: gzip",
        "Upgrade: h2c",
        "HTTP2-Settings: x",
    ];
    for field in fields {
        check_request(
            &format!("GET / HTTP/1.1\nHost: a\n{field}\n\n"),
            &Edits::default(),
            "GET / HTTP/1.1\nHost: a\n\n",
        );
    }
}

#[test]
fn connection_cannot_take_away_what_is_for_every_recipient() {
    check_request(
        "POST / HTTP/1.1\nHost: a\nContent-Length: 3\nAuthorization: x\nCookie: y\nX-Forwarded-For: z\nX-A: 1\n\
         Connection: host, content-length, authorization, cookie, x-forwarded-for, x-a\n\n",
        &Edits::default(),
        "POST / HTTP/1.1\nHost: a\nContent-Length: 3\nAuthorization: x\nCookie: y\nX-Forwarded-For: z\n\n",
    );
    check_request(
        "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nConnection: transfer-encoding\n\n",
        &Edits::default(),
        "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n",
    );
}

#[test]
fn te_goes_on_as_trailers_alone() {
    let plain = Edits::default();
    check_request(
        "GET / HTTP/1.1\nHost: a\nTE: trailers\nConnection: te\n\n",
        &plain,
        "GET / HTTP/1.1\nHost: a\nTE: trailers\nConnection: TE\n\n",
    );
    check_request("GET / HTTP/1.1\nHost: a\nTE: trailers, deflate\n\n", &plain, "GET / HTTP/1.1\nHost: a\n\n");
    check_request("GET / HTTP/1.1\nHost: a\nTE: gzip\nConnection: TE\n\n", &plain, "GET / HTTP/1.1\nHost: a\n\n");
    check_request("GET / HTTP/1.0\nHost: a\nTE: trailers\n\n", &plain, "GET / HTTP/1.1\nHost: a\n\n");
}

#[test]
fn upgrade_goes_on_only_if_asked_for() {
    let request = "GET / HTTP/1.1\nHost: a\nUpgrade: websocket\nConnection: keep-alive, Upgrade, X-A\nX-A: 1\nX: y\n\n";
    check_request(request, &Edits::default(), "GET / HTTP/1.1\nHost: a\nX: y\n\n");
    check_request(
        request,
        &edits(|edits| edits.set_upgrade(Upgrade::Keep)),
        "GET / HTTP/1.1\nHost: a\nUpgrade: websocket\nX: y\nConnection: Upgrade\n\n",
    );
    check_response(
        "HTTP/1.1 101 Switching Protocols\nConnection: upgrade\nUpgrade: websocket\n\n",
        &edits(|edits| edits.set_upgrade(Upgrade::Keep)),
        "HTTP/1.1 101 Switching Protocols\nUpgrade: websocket\nConnection: Upgrade\n\n",
    );
}

#[test]
fn own_connection_option_replaces_the_one_that_came() {
    let close = edits(|edits| edits.set_connection(Connection::Close));
    check_response(
        "HTTP/1.1 200 OK\nConnection: keep-alive\nContent-Length: 0\n\n",
        &close,
        "HTTP/1.1 200 OK\nContent-Length: 0\nConnection: close\n\n",
    );
    check_request(
        "GET / HTTP/1.1\nHost: a\nTE: trailers\n\n",
        &close,
        "GET / HTTP/1.1\nHost: a\nTE: trailers\nConnection: close, TE\n\n",
    );
    check_response(
        "HTTP/1.0 200 OK\nContent-Length: 0\n\n",
        &edits(|edits| edits.set_connection(Connection::KeepAlive)),
        "HTTP/1.1 200 OK\nContent-Length: 0\nConnection: keep-alive\n\n",
    );
}

#[test]
fn fields_are_set_appended_and_removed_by_name_in_any_case() {
    let request = "GET / HTTP/1.1\nHost: a\nX-A: 1\nX-B: 2\nx-a: 3\n\n";
    type Change = fn(&mut Edits) -> Result<(), EditError>;
    let cases: [(Change, &str); 7] = [
        (|edits| edits.set("X-a", b"4"), "Host: a\nX-B: 2\nX-a: 4\n"),
        (|edits| edits.append("x-a", b"4"), "Host: a\nX-A: 1\nX-B: 2\nx-a: 3\nx-a: 4\n"),
        (|edits| edits.remove("x-A"), "Host: a\nX-B: 2\n"),
        (|edits| edits.set("x-a", b"4").and(edits.set("X-A", b"5")), "Host: a\nX-B: 2\nX-A: 5\n"),
        (|edits| edits.set("x-a", b"4").and(edits.append("x-a", b"5")), "Host: a\nX-B: 2\nx-a: 4\nx-a: 5\n"),
        (|edits| edits.append("x-a", b"4").and(edits.remove("x-a")), "Host: a\nX-B: 2\n"),
        (|edits| edits.set("host", b"b"), "X-A: 1\nX-B: 2\nx-a: 3\nhost: b\n"),
    ];
    for (change, fields) in cases {
        let edits = edits(|edits| change(edits).expect("a valid edit"));
        check_request(request, &edits, &format!("GET / HTTP/1.1\n{fields}\n"));
    }
}

#[test]
fn what_tells_of_the_client_is_left_out_but_not_what_is_set_in_its_place() {
    check_request(
        "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: b\nx_forwarded_for: c\nFORWARDED: d\nX-Real-Ip: e\nX-Forwarded: f\n\
         X-Forwarded-Client-Cert: g\nForwarded-By: h\n\n",
        &edits(|edits| {
            edits.set_client_fields(ClientFields::Drop);
            edits.set("X-Forwarded-For", b"i").expect("a field");
        }),
        "GET / HTTP/1.1\nHost: a\nX-Forwarded: f\nForwarded-By: h\nX-Forwarded-For: i\n\n",
    );
    let mut dropped = edits(|edits| edits.set_client_fields(ClientFields::Drop));
    assert!(!dropped.is_empty());
    dropped.clear();
    assert!(dropped.is_empty());
}

#[test]
fn edits_that_would_break_the_message_are_refused() {
    let mut edits = Edits::default();
    assert_eq!(edits.set("a b", b""), Err(EditError::BadName));
    assert_eq!(edits.set("", b""), Err(EditError::BadName));
    assert_eq!(edits.append("a", b"b\r\nc: d"), Err(EditError::BadValue));
    assert_eq!(edits.append("a", b"\0"), Err(EditError::BadValue));
    for name in ["content-length", "Transfer-Encoding", "connection", "Upgrade", "TE", "keep-alive"] {
        assert_eq!(edits.set(name, b"1"), Err(EditError::Protected), "{name}");
    }
    assert_eq!(edits.remove("host"), Err(EditError::Protected));
    assert_eq!(edits.append("host", b"a"), Err(EditError::Protected));
    for target in ["", "/a b", "/a#b", "/\r\n", "/\u{fc}"] {
        assert_eq!(edits.set_target(target.as_bytes()), Err(EditError::BadTarget), "{target}");
    }
    assert!(edits.is_empty());
}

#[test]
fn cleared_edits_change_nothing() {
    let mut edits = edits(|edits| {
        edits.set("x", b"y").expect("valid");
        edits.set_target(b"/x").expect("valid");
        edits.set_connection(Connection::Close);
        edits.set_upgrade(Upgrade::Keep);
        edits.set_chunked(Chunked::Remove);
    });
    edits.clear();
    assert!(edits.is_empty());
}

#[test]
fn target_is_replaced_in_every_form() {
    let edits = edits(|edits| edits.set_target(b"/new?q").expect("valid"));
    for target in ["/old", "http://a", "http://a/old?x"] {
        let expected = "GET /new?q HTTP/1.1\nHost: a\n\n";
        check_request(&format!("GET {target} HTTP/1.1\nHost: a\n\n"), &edits, expected);
    }
}

#[test]
fn absolute_target_becomes_origin_form_and_its_authority_wins_over_host() {
    let plain = Edits::default();
    check_request("GET http://a/x?y HTTP/1.1\nHost: a\n\n", &plain, "GET /x?y HTTP/1.1\nHost: a\n\n");
    check_request("GET http://a:80/x HTTP/1.1\nHost: b\nX: y\n\n", &plain, "GET /x HTTP/1.1\nX: y\nHost: a:80\n\n");
    check_request("GET HTTP://a HTTP/1.1\nHost: a\n\n", &plain, "GET / HTTP/1.1\nHost: a\n\n");
    check_request("OPTIONS http://a HTTP/1.1\nHost: a\n\n", &plain, "OPTIONS * HTTP/1.1\nHost: a\n\n");
}

#[test]
fn http_1_0_becomes_http_1_1_with_a_host() {
    let plain = Edits::default();
    check_request("GET /x HTTP/1.0\nHost: a\nX: y\n\n", &plain, "GET /x HTTP/1.1\nHost: a\nX: y\n\n");
    check_request("GET http://a/x HTTP/1.0\n\n", &plain, "GET /x HTTP/1.1\nHost: a\n\n");
    let edits = edits(|edits| edits.set("Host", b"payments").expect("valid"));
    check_request("GET /x HTTP/1.0\n\n", &edits, "GET /x HTTP/1.1\nHost: payments\n\n");
    check_request(
        "POST /x HTTP/1.0\nHost: a\nExpect: 100-continue\nContent-Length: 1\n\n",
        &plain,
        "POST /x HTTP/1.1\nHost: a\nContent-Length: 1\n\n",
    );
    check_response("HTTP/1.0 200 Fine\nX: y\n\n", &plain, "HTTP/1.1 200 Fine\nX: y\n\n");
}

#[test]
fn lengths_that_a_simpler_reader_could_misread_are_written_anew() {
    let plain = Edits::default();
    for value in [" CHUNKED", "chunked", "\tchunked", "  chunked ", " chunked\t"] {
        check_request(
            &format!("POST / HTTP/1.1\nHost: a\nTransfer-encoding:{value}\nX: y\n\n"),
            &plain,
            "POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nX: y\n\n",
        );
    }
    for (value, digits) in [(" 007", "7"), ("7", "7"), (" 7 ", "7"), (" 000", "0")] {
        check_response(
            &format!("HTTP/1.1 200 OK\ncontent-Length:{value}\n\n"),
            &plain,
            &format!("HTTP/1.1 200 OK\nContent-Length: {digits}\n\n"),
        );
    }
}

#[test]
fn length_that_must_not_be_there_is_left_out() {
    check_response("HTTP/1.1 204 None\nContent-Length: 0\n\n", &Edits::default(), "HTTP/1.1 204 None\n\n");
    check_response(
        "HTTP/1.1 304 Same\nContent-Length: 9\n\n",
        &Edits::default(),
        "HTTP/1.1 304 Same\nContent-Length: 9\n\n",
    );
}

#[test]
fn coding_is_left_out_for_a_client_that_cannot_read_it() {
    check_response(
        "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n",
        &edits(|edits| {
            edits.set_chunked(Chunked::Remove);
            edits.set_connection(Connection::Close);
        }),
        "HTTP/1.1 200 OK\nConnection: close\n\n",
    );
}

#[test]
fn request_tells_what_the_path_asks_for() {
    let bytes = b"GET http://A.b:80/p/q?r=s HTTP/1.1\r\nhOST: ignored\r\nX-A:  1 \r\nx-a: 2\r\nEmpty:\r\n\r\n";
    let head = parse_request(bytes);
    let view = head.view(bytes);
    assert_eq!(view.method(), b"GET");
    assert_eq!(view.target(), b"/p/q?r=s");
    assert_eq!(view.path(), b"/p/q");
    assert_eq!(view.authority(), Some(&b"A.b:80"[..]));
    assert_eq!(view.field("X-a"), Some(&b"1"[..]));
    assert_eq!(view.field("empty"), Some(&b""[..]));
    assert_eq!(view.field("x"), None);
    let mut names = Vec::new();
    view.for_each_field(&mut |name, _| names.push(String::from_utf8_lossy(name).into_owned()));
    assert_eq!(names, ["hOST", "X-A", "x-a", "Empty"]);
    assert_eq!(head.raw_target(bytes), b"http://A.b:80/p/q?r=s");
    assert_eq!(head.len(), bytes.len());
}

#[test]
fn connections_persist_as_version_and_options_say() {
    let cases = [
        (1, "", true),
        (1, "Connection: close\r\n", false),
        (1, "Connection: Close, x\r\n", false),
        (1, "Connection: keep-alive\r\nConnection: close\r\n", false),
        (0, "", false),
        (0, "Connection: Keep-Alive\r\n", true),
        (0, "Connection: keep-alive, close\r\n", false),
        (0, "Proxy-Connection: keep-alive\r\n", false),
    ];
    for (minor, fields, expected) in cases {
        let request = format!("GET / HTTP/1.{minor}\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(parse_request(request.as_bytes()).persistent(), expected, "{request}");
        let response = format!("HTTP/1.{minor} 200 OK\r\nContent-Length: 0\r\n{fields}\r\n");
        assert_eq!(parse_response(response.as_bytes()).persistent(Method::Get), expected, "{response}");
    }
    assert!(!parse_response(b"HTTP/1.1 200 OK\r\n\r\n").persistent(Method::Get), "the body ends with the connection");
    assert!(parse_response(b"HTTP/1.1 200 OK\r\n\r\n").persistent(Method::Head));
}

#[test]
fn expectation_counts_only_where_a_body_waits_for_it() {
    let expects = |request: &str| parse_request(request.as_bytes()).expects_continue();
    assert!(expects("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nContent-Length: 1\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n"));
    assert!(!expects("POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n"));
    let mut head = RequestHead::default();
    let refused = head.parse(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", &Limits::default());
    assert_eq!(refused.expect_err("unknown").status(), 417);
}

#[test]
fn upgrade_takes_the_field_and_its_name_in_connection() {
    let asks = |request: &str| parse_request(request.as_bytes()).upgrade();
    assert!(asks("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"));
    assert!(!asks("GET / HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"));
    assert!(!asks("GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\n\r\n"));
    assert!(!asks("GET / HTTP/1.0\r\nHost: a\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"));
}

#[test]
fn response_tells_status_reason_and_whether_another_follows() {
    let bytes = b"HTTP/1.1 404 Not \xfcHere\r\nX: y\r\n\r\n";
    let head = parse_response(bytes);
    assert_eq!((head.status(), head.reason(bytes), head.version()), (404, &b"Not \xfcHere"[..], Version::Http11));
    assert_eq!(head.field(bytes, "x"), Some(&b"y"[..]));
    let bytes = b"HTTP/1.1 200\r\n\r\n";
    assert_eq!(parse_response(bytes).reason(bytes), b"");
    assert!(parse_response(b"HTTP/1.1 103 Hints\r\n\r\n").interim());
    let switching = parse_response(b"HTTP/1.1 101 Switching\r\n\r\n");
    assert!(!switching.interim() && switching.switches_protocols());
    assert_eq!(switching.framing(Method::Get), BodyLength::None);
}

#[test]
fn local_responses_are_complete_and_cannot_be_split() {
    let mut out = Vec::new();
    write_local_response(403, "Forbidden", &[("X-Why", "a\r\nb: c"), ("Connection", "close")], 9, &mut out);
    let expected = "HTTP/1.1 403 Forbidden\r\nX-Why: a  b: c\r\nConnection: close\r\nContent-Length: 9\r\n\r\n";
    assert_eq!(String::from_utf8_lossy(&out), expected);
    let mut out = Vec::new();
    write_local_response(204, "No Content", &[], 0, &mut out);
    assert_eq!(out, b"HTTP/1.1 204 No Content\r\n\r\n");
}
