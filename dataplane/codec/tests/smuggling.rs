//! Known ways to make two readers disagree about where a message ends or where it goes, each with what we answer.

use ringmesh_codec::http1::{Parsed, RequestHead, ResponseHead};
use ringmesh_codec::refusal::Refusal::{self, *};
use ringmesh_codec::{BodyLength, BodyScanner, Limits, Method, body};

/// What becomes of the first message in `bytes`: its body's length, or why it is refused. A chunked body is read to its
/// end.
fn request(bytes: &[u8]) -> Result<BodyLength, Refusal> {
    let mut head = RequestHead::default();
    match head.parse(bytes, &Limits::default())? {
        Parsed::Partial => panic!("the head is not complete"),
        Parsed::Complete => read_body(head.framing(), &bytes[head.len()..]),
    }
}

fn response(method: Method, bytes: &[u8]) -> Result<BodyLength, Refusal> {
    let mut head = ResponseHead::default();
    match head.parse(bytes, &Limits::default())? {
        Parsed::Partial => panic!("the head is not complete"),
        Parsed::Complete => read_body(head.framing(method), &bytes[head.len()..]),
    }
}

fn read_body(length: BodyLength, bytes: &[u8]) -> Result<BodyLength, Refusal> {
    let scan = BodyScanner::new(length, &Limits::default()).scan(bytes)?;
    if length == BodyLength::Chunked {
        assert_eq!(scan.state, body::State::Done, "the chunked body is complete");
    }
    Ok(length)
}

#[track_caller]
fn check(bytes: impl AsRef<[u8]>, expected: Result<BodyLength, Refusal>) {
    let bytes = bytes.as_ref();
    assert_eq!(request(bytes), expected, "{}", bytes.escape_ascii());
}

/// The fields stand between Host and the blank line.
#[track_caller]
fn check_fields(fields: impl AsRef<[u8]>, expected: Result<BodyLength, Refusal>) {
    check([b"POST / HTTP/1.1\r\nHost: a\r\n", fields.as_ref(), b"\r\n"].concat(), expected);
}

#[track_caller]
fn check_response(fields: &str, expected: Result<BodyLength, Refusal>) {
    let bytes = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    assert_eq!(response(Method::Get, bytes.as_bytes()), expected, "{fields}");
}

/// The chunks follow a head that announces them.
#[track_caller]
fn check_chunks(chunks: impl AsRef<[u8]>, expected: Result<BodyLength, Refusal>) {
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    check([head, chunks.as_ref()].concat(), expected);
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let bytes = [head, chunks.as_ref()].concat();
    assert_eq!(response(Method::Get, &bytes), expected, "response {}", bytes.escape_ascii());
}

const NONE: Result<BodyLength, Refusal> = Ok(BodyLength::None);
const CHUNKED: Result<BodyLength, Refusal> = Ok(BodyLength::Chunked);

const fn fixed(length: u64) -> Result<BodyLength, Refusal> {
    Ok(BodyLength::Fixed(length))
}

#[test]
fn request_with_length_and_coding_is_refused_in_either_order() {
    check_fields("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", Err(LengthAndCoding));
    check_fields("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", Err(LengthAndCoding));
    check_fields("Transfer-Encoding: chunked\r\nContent-Length: 0\r\n", Err(LengthAndCoding));
    check_fields("transfer-encoding: CHUNKED\r\ncontent-length: 6\r\n", Err(LengthAndCoding));
}

#[test]
fn several_codings_are_refused() {
    let cases = [
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", BadTransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", BadTransferEncoding),
        ("Transfer-Encoding: chunked\r\nTransfer-encoding: x\r\n", BadTransferEncoding),
        ("Transfer-Encoding: chunked, chunked\r\n", BadTransferEncoding),
        ("Transfer-Encoding: chunked, identity\r\n", BadTransferEncoding),
        ("Transfer-Encoding: chunked, gzip\r\n", BadTransferEncoding),
        ("Transfer-Encoding: gzip, chunked\r\n", UnknownCoding),
        ("Transfer-Encoding: identity, chunked\r\n", UnknownCoding),
        ("Transfer-Encoding: gzip, br,chunked\r\n", UnknownCoding),
    ];
    for (fields, refusal) in cases {
        check_fields(fields, Err(refusal));
        check_response(fields, Err(refusal));
    }
}

#[test]
fn disguised_chunked_is_refused() {
    let values = [
        "xchunked",
        "chunkedx",
        "chunke",
        "identity",
        "gzip",
        "",
        ",",
        "chunked,",
        ",chunked",
        "chunked;q=1",
        "\"chunked\"",
        "chunked chunked",
        "chunk\u{e9}d",
        "gzip;x, chunked",
    ];
    for value in values {
        let fields = format!("Transfer-Encoding: {value}\r\n");
        check_fields(&fields, Err(BadTransferEncoding));
        check_response(&fields, Err(BadTransferEncoding));
    }
    check_fields("Transfer-Encoding: \x0bchunked\r\n", Err(BadFieldValue));
    check_fields("Transfer-Encoding: chunked\x0c\r\n", Err(BadFieldValue));
    check_fields("Transfer-Encoding: \0chunked\r\n", Err(BadFieldValue));
}

#[test]
fn disguised_field_names_are_refused() {
    check_fields("Transfer-Encoding : chunked\r\n", Err(BadFieldName));
    check_fields("Transfer-Encoding\t: chunked\r\n", Err(BadFieldName));
    check_fields("Content-Length : 5\r\n", Err(BadFieldName));
    check_fields(" Content-Length: 5\r\n", Err(BadFieldName));
    check_fields("Content-Length\0: 5\r\n", Err(BadFieldName));
    check_fields("Content-Length\r: 5\r\n", Err(BadFieldName));
    check_fields("Transfer_Encoding: chunked\r\n", Err(BadFieldName));
    check_fields("content_length: 5\r\n", Err(BadFieldName));
    check_fields("Transfer\u{2010}Encoding: chunked\r\n", Err(BadFieldName));
    check_fields(": chunked\r\n", Err(BadFieldName));
    check_fields("no colon\r\n", Err(BadFieldName));
    check_fields("X: y\r\nno-colon\r\n", Err(BadFieldName));
}

#[test]
fn folded_lines_are_refused() {
    check_fields("Transfer-Encoding:\r\n chunked\r\n", Err(BadFieldName));
    check_fields("X: y\r\n\tz\r\n", Err(BadFieldName));
    check_fields("X: y\r\n Content-Length: 5\r\n", Err(BadFieldName));
    check("POST / HTTP/1.1\r\n Host: a\r\n\r\n", Err(BadFieldName));
}

#[test]
fn bare_cr_and_bare_lf_in_a_head_are_refused() {
    check("GET / HTTP/1.1\nHost: a\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\r\n\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\n\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\nX: y\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\r\nX:\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\r\nX:\nY: z\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\rHost: a\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n", Err(BadFieldValue));
    check("GET / HTTP/1.1\r\nHost: a\r\n\rX: y\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.1\r\nHost: a\r\nX: y\r\r\n\r\n", Err(BadFieldValue));
    check("GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Err(BadLineEnd));
    let bytes = b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n";
    assert_eq!(response(Method::Get, bytes), Err(BadLineEnd));
    let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 0\n\r\n";
    assert_eq!(response(Method::Get, bytes), Err(BadLineEnd));
    let bytes = b"HTTP/1.1 200\nContent-Length: 0\r\n\r\n";
    assert_eq!(response(Method::Get, bytes), Err(BadLineEnd));
}

#[test]
fn control_characters_in_values_are_refused() {
    for byte in (0..32).chain([127]).filter(|byte| !b"\t\r\n".contains(byte)) {
        check_fields([b"X: a", &[byte][..], b"b\r\n"].concat(), Err(BadFieldValue));
    }
}

#[test]
fn malformed_lengths_are_refused() {
    let values = [
        "",
        "+5",
        "-5",
        "-0",
        "0x5",
        "5a",
        "5 5",
        "5,5",
        "5, 5",
        "5;",
        "5.0",
        "1e1",
        "\"5\"",
        "9223372036854775808",
        "18446744073709551616",
        "18446744073709551621",
        "00000000000000000005",
        "\u{665}",
        "five",
    ];
    for value in values {
        let fields = format!("Content-Length: {value}\r\n");
        check_fields(&fields, Err(BadContentLength));
        check_response(&fields, Err(BadContentLength));
    }
    check_fields("Content-Length: 5\r\n", fixed(5));
    check_fields("Content-Length: 9223372036854775807\r\n", fixed(i64::MAX as u64));
    check_fields("Content-Length: 0\r\n", fixed(0));
}

#[test]
fn several_lengths_are_refused_even_if_they_agree() {
    for fields in ["Content-Length: 5\r\nContent-Length: 6\r\n", "Content-Length: 5\r\nContent-Length: 5\r\n"] {
        check_fields(fields, Err(RepeatedContentLength));
        check_response(fields, Err(RepeatedContentLength));
    }
}

#[test]
fn coding_in_http_1_0_is_refused() {
    check("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(CodingInOldVersion));
    let bytes = b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(response(Method::Get, bytes), Err(CodingInOldVersion));
}

#[test]
fn request_without_length_has_no_body_whatever_its_method() {
    for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "PURGE", "get"] {
        check(format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\nGET /evil HTTP/1.1\r\n\r\n"), NONE);
    }
}

#[test]
fn request_lines_that_two_readers_split_differently_are_refused() {
    let lines = [
        "GET  / HTTP/1.1",
        "GET /  HTTP/1.1",
        " GET / HTTP/1.1",
        "GET\t/ HTTP/1.1",
        "GET /\tHTTP/1.1",
        "GET /a b HTTP/1.1",
        "GET / HTTP/1.1 x HTTP/1.1",
        "GET /",
        "GET",
        "GET / ",
        "GET / http/1.1",
        "GET / XTTP/1.1",
        "G(T / HTTP/1.1",
        "/ HTTP/1.1",
        "GET /\u{7f} HTTP/1.1",
    ];
    for line in lines {
        let bytes = format!("{line}\r\nHost: a\r\n\r\n");
        let refusal = request(bytes.as_bytes()).expect_err(line);
        assert!(matches!(refusal, BadRequestLine | BadLineEnd), "{line}: {refusal:?}");
    }
    check("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", Err(BadLineEnd));
    check("GET / HTTP/1.12\r\nHost: a\r\n\r\n", Err(BadLineEnd));
}

#[test]
fn other_versions_are_named_as_such() {
    check("GET / HTTP/2.0\r\nHost: a\r\n\r\n", Err(UnsupportedVersion));
    check("GET / HTTP/0.9\r\nHost: a\r\n\r\n", Err(UnsupportedVersion));
    check("GET / HTTP/1.2\r\nHost: a\r\n\r\n", Err(UnsupportedVersion));
    check("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Err(UnsupportedVersion));
    assert_eq!(response(Method::Get, b"HTTP/2.0 200 OK\r\n\r\n"), Err(UnsupportedVersion));
}

#[test]
fn one_empty_line_before_a_request_is_skipped_and_no_more() {
    check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", NONE);
    check("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(LeadingEmptyLines));
    check("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(BadLineEnd));
    check("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(LeadingEmptyLines));
    check("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", Err(BadLineEnd));
    assert_eq!(response(Method::Get, b"\r\nHTTP/1.1 200 OK\r\n\r\n"), Err(LeadingEmptyLines));
}

#[test]
fn host_is_needed_once() {
    check("GET / HTTP/1.1\r\n\r\n", Err(MissingHost));
    check("GET http://a/ HTTP/1.1\r\n\r\n", Err(MissingHost));
    check("GET / HTTP/1.0\r\n\r\n", NONE);
    check("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", Err(RepeatedHost));
    check("GET / HTTP/1.1\r\nHost: a\r\nhOST: b\r\n\r\n", Err(RepeatedHost));
    check("GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", Err(RepeatedHost));
    check("GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", Err(RepeatedHost));
}

#[test]
fn hosts_that_two_readers_take_apart_differently_are_refused() {
    let hosts = [
        "",
        "a b",
        "a,b",
        "a/b",
        "a@b",
        "user@a",
        "a?b",
        "a#b",
        "a\\b",
        "a:b",
        "a:80:81",
        "a:",
        ":80",
        "a:65536",
        "a:+80",
        "a:000080",
        "[::1",
        "::1",
        "[a]",
        "[::1]x",
        "[::1%25eth0]",
        "a%2eb",
        "*.a",
        "b\u{fc}ro",
        "\"a\"",
    ];
    for host in hosts {
        check(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Err(BadHost));
    }
    for host in ["a", "a.b-c_d~e", "A:80", "127.0.0.1:8080", "[::1]", "[2001:db8::1]:443", "a."] {
        check(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), NONE);
    }
}

#[test]
fn targets_in_no_known_form_are_refused() {
    let targets = [
        "a",
        "*",
        "a:80",
        "?x",
        "/a#b",
        "/b\u{fc}ro",
        "ftp://a/",
        "http:/a",
        "http:///",
        "http://",
        "http://u@a/",
        "http://a?x",
        "http://a:b/",
        "//",
        "\\",
        "javascript:x",
        "a://http://b/",
    ];
    for target in targets.into_iter().filter(|target| *target != "//") {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let refusal = request(bytes.as_bytes()).expect_err(target);
        assert!(matches!(refusal, BadTarget | BadHost), "{target}: {refusal:?}");
    }
    for target in ["/", "//", "/a?b=c://d", "/%41", "/a|b", "http://a", "http://a/", "HTTPS://a:443/x?y"] {
        check(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"), NONE);
    }
    check("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", NONE);
    check("OPTIONS ** HTTP/1.1\r\nHost: a\r\n\r\n", Err(BadTarget));
}

#[test]
fn connect_names_host_and_port_and_has_no_body() {
    check("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", NONE);
    check("CONNECT [::1]:443 HTTP/1.1\r\nHost: other\r\n\r\n", NONE);
    check("CONNECT a:443 HTTP/1.0\r\n\r\n", NONE);
    for target in ["a", "a:0", "/", "*", "http://a:443/", "http://a:443", "a:443/", "a:443?x", "//a:443"] {
        let bytes = format!("CONNECT {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let refusal = request(bytes.as_bytes()).expect_err(target);
        assert!(matches!(refusal, BadTarget | BadHost), "{target}: {refusal:?}");
    }
    for fields in ["Content-Length: 0\r\n", "Content-Length: 5\r\n", "Transfer-Encoding: chunked\r\n"] {
        check(format!("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n{fields}\r\nhello"), Err(ConnectWithBody));
    }
}

#[test]
fn connection_that_is_no_list_of_tokens_is_refused() {
    check_fields("Connection: close;q=1\r\n", Err(BadConnection));
    check_fields("Connection: \"close\"\r\n", Err(BadConnection));
    check_fields(format!("Connection: {}\r\n", "a,".repeat(17)), Err(TooManyConnectionOptions));
    check_fields("Connection: a,b\r\nConnection: close,,keep-alive\r\nConnection:\r\n", NONE);
}

#[test]
fn response_without_a_body_has_none_whatever_it_announces() {
    let chunked = "Transfer-Encoding: chunked\r\n";
    let cases = [
        (Method::Head, "200 OK", "Content-Length: 5\r\n", NONE),
        (Method::Head, "200 OK", chunked, NONE),
        (Method::Head, "200 OK", "", NONE),
        (Method::Get, "304 Not Modified", "Content-Length: 5\r\n", NONE),
        (Method::Get, "304 Not Modified", chunked, NONE),
        (Method::Get, "204 No Content", "", NONE),
        (Method::Get, "204 No Content", "Content-Length: 0\r\n", NONE),
        (Method::Get, "204 No Content", "Content-Length: 5\r\n", Err(BodyForbidden)),
        (Method::Get, "204 No Content", chunked, Err(BodyForbidden)),
        (Method::Get, "100 Continue", "", NONE),
        (Method::Get, "100 Continue", "Content-Length: 5\r\n", Err(BodyForbidden)),
        (Method::Get, "101 Switching Protocols", "", NONE),
        (Method::Get, "103 Early Hints", chunked, Err(BodyForbidden)),
        (Method::Get, "200 OK", "", Ok(BodyLength::UntilClose)),
        (Method::Get, "200 OK", "Content-Length: 5\r\n", fixed(5)),
        (Method::Get, "205 Reset Content", "Content-Length: 0\r\n", fixed(0)),
        (Method::Post, "404 Not Found", "Content-Length: 5\r\n", fixed(5)),
    ];
    for (method, status, fields, expected) in cases {
        let bytes = format!("HTTP/1.1 {status}\r\n{fields}\r\n");
        assert_eq!(response(method, bytes.as_bytes()), expected, "{method:?} {bytes}");
    }
}

#[test]
fn response_with_length_and_coding_is_refused() {
    check_response("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n", Err(LengthAndCoding));
    check_response("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n", Err(LengthAndCoding));
}

#[test]
fn malformed_status_lines_are_refused() {
    let lines = [
        "HTTP/1.1 20 OK",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 099 x",
        "HTTP/1.1 000 x",
        "HTTP/1.1 -20 x",
        "HTTP/1.1",
        "HTTP 200 OK",
        "200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1 2x0 OK",
        "HTTP/1.1 200 a\0b",
        "GET / HTTP/1.1",
    ];
    for line in lines {
        let bytes = format!("{line}\r\n\r\n");
        assert_eq!(response(Method::Get, bytes.as_bytes()), Err(BadStatusLine), "{line}");
    }
    for line in ["HTTP/1.1 200", "HTTP/1.1 200 ", "HTTP/1.1 200 \u{fc}", "HTTP/1.0 999 x y"] {
        let bytes = format!("{line}\r\n\r\n");
        assert_eq!(response(Method::Get, bytes.as_bytes()), Ok(BodyLength::UntilClose), "{line}");
    }
}

#[test]
fn chunk_sizes_that_two_readers_take_differently_are_refused() {
    let sizes = [
        "",
        "0x5",
        "+5",
        "-5",
        "g",
        "5 x",
        "5_",
        "5\0",
        "\t5",
        " 5",
        "10000000000000000",
        "00000000000000005",
        "8000000000000000",
        "FFFFFFFFFFFFFFFF",
        "fffffffffffffffff",
        "5,5",
        "5.",
        "\u{ff15}",
    ];
    for size in sizes {
        let chunks = format!("{size}\r\nhello\r\n0\r\n\r\n");
        let expected = if size == "5 x" { BadChunkExtension } else { BadChunkSize };
        check_chunks(chunks, Err(expected));
    }
    check_chunks("5\r\nhello\r\n0\r\n\r\n", CHUNKED);
    check_chunks("0000000000000005\r\nhello\r\n0000\r\n\r\n", CHUNKED);
    check_chunks("a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n", CHUNKED);
}

#[test]
fn bare_cr_and_bare_lf_in_chunk_framing_are_refused() {
    check_chunks("5\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("5\rhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("5\r\nhello\n0\r\n\r\n", Err(BadChunkEnd));
    check_chunks("5\r\nhello\r0\r\n\r\n", Err(BadChunkEnd));
    check_chunks("5\r\nhello0\r\n\r\n", Err(BadChunkEnd));
    check_chunks("5\r\nhello!\r\n0\r\n\r\n", Err(BadChunkEnd));
    check_chunks("5;a\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("5;a\rb\r\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("0\n\r\n", Err(BadLineEnd));
    check_chunks("0\r\n\n", Err(BadLineEnd));
    check_chunks("0\r\n\rx", Err(BadLineEnd));
    check_chunks("0\r\nX: y\n\r\n", Err(BadLineEnd));
    check_chunks("0\r\nX: y\rz\r\n\r\n", Err(BadLineEnd));
    check_chunks("0\r\nX: y\r\n\n", Err(BadLineEnd));
}

#[test]
fn chunk_extensions_follow_their_grammar() {
    for extension in
        [";a", ";a=b", ";a=\"b;\\\"c\"", ";a;b=c", " ; a = b", ";a ", ";a=b\t;c", ";a=\"\"", ";a=\"\t \u{fc}\" ;b"]
    {
        check_chunks(format!("5{extension}\r\nhello\r\n0\r\n\r\n"), CHUNKED);
    }
    for extension in [";", ";;", ";a=", ";=b", ";a b", ";a=b c", ";a=\"b\"c", " ", ";a=(b)", ";\0", ";a=\"\0\""] {
        let chunks = format!("5{extension}\r\nhello\r\n0\r\n\r\n");
        let refusal = request_with_chunks(&chunks).expect_err(extension);
        assert!(matches!(refusal, BadChunkExtension | BadLineEnd), "{extension}: {refusal:?}");
    }
    // The end of a line inside of quotes is where readers disagree.
    check_chunks("5;a=\"b\r\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("5;a=\"b\\\r\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
    check_chunks("5;a=\"b\nc\"\r\nhello\r\n0\r\n\r\n", Err(BadLineEnd));
}

fn request_with_chunks(chunks: &str) -> Result<BodyLength, Refusal> {
    request(format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}").as_bytes())
}

#[test]
fn trailers_that_are_no_fields_are_refused() {
    check_chunks("0\r\nX : y\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\n X: y\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\nX: y\r\n z\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\nX\r\n\r\n", Err(BadLineEnd));
    check_chunks("0\r\n: y\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\nX: \0\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\nGET / HTTP/1.1\r\n\r\n", Err(BadTrailer));
    check_chunks("0\r\nX: y\r\ngrpc-status: 0\r\nEmpty:\r\nU: \u{fc}\t\r\n\r\n", CHUNKED);
}

#[test]
fn trailers_that_would_change_framing_or_access_are_refused() {
    for name in [
        "Transfer-Encoding",
        "content-length",
        "HOST",
        "Trailer",
        "Authorization",
        "Cookie",
        "Set-Cookie",
        "X-Forwarded-For",
        "x-forwarded-client-cert-with-a-very-long-name",
        "If-Match",
        "Proxy-Authenticate",
        "Connection",
        "TE",
        "Strict-Transport-Security",
    ] {
        check_chunks(format!("0\r\nX: y\r\n{name}: z\r\n\r\n"), Err(ForbiddenTrailer));
    }
    check_chunks("0\r\nHostess: z\r\nContent-Digest: z\r\n\r\n", CHUNKED);
}
