//! What is spoken, by first bytes that come one by one.

use proptest::collection::vec;
use proptest::prelude::*;
use ringmesh_codec::sniff::{MAX_LINE_BYTES, PREFACE, Protocol, Sniffer, is_plain_http, is_tls};

/// What bytes that arrive one by one are taken for, and after how many.
fn sniff(bytes: &[u8]) -> (Option<Protocol>, usize) {
    let mut sniffer = Sniffer::default();
    for end in 0..=bytes.len() {
        let found = sniffer.sniff(&bytes[..end]);
        assert_eq!(found, Sniffer::default().sniff(&bytes[..end]), "{end} bytes, at once and one by one");
        if found.is_some() {
            return (found, end);
        }
    }
    (None, bytes.len())
}

#[track_caller]
fn check(bytes: &[u8], expected: Protocol, after: usize) {
    assert_eq!(sniff(bytes), (Some(expected), after), "{:?}", bytes.escape_ascii().to_string());
}

#[test]
fn each_protocol_is_known_as_early_as_it_can_be() {
    check(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", Protocol::Tls, 6);
    check(PREFACE, Protocol::Http2, PREFACE.len());
    check(b"GET / HTTP/1.1\r\n", Protocol::Http1, 5);
    check(b"OPTIONS * HTTP/1.1\r\n", Protocol::Http1, 20);
    check(b"CONNECT a:443 HTTP/1.1\r\n", Protocol::Http1, 24);
    check(b"POST http://a/ HTTP/1.1\r\n", Protocol::Http1, 25);
    check(b"PURGE /a HTTP/1.1\r\n", Protocol::Http1, 19);
    // SSH, RESP, PostgreSQL, MQTT, a line of memcached.
    check(b"SSH-2.0-OpenSSH\r\n", Protocol::Opaque, 16);
    check(b"*1\r\n$4\r\nPING\r\n", Protocol::Opaque, 3);
    check(b"\x00\x00\x00\x08\x04\xd2\x16\x2f", Protocol::Opaque, 1);
    check(b"\x10\x0c\x00\x04MQTT", Protocol::Opaque, 1);
    check(b"get a\r\n", Protocol::Opaque, 7);
    check(b"OPTIONS rtsp://a RTSP/1.0\r\n", Protocol::Opaque, 27);
    check(&[&b"x".repeat(100)[..], b"="].concat(), Protocol::Opaque, 101);
}

#[test]
fn what_a_lenient_server_could_take_for_a_request_is_one() {
    for request in [
        "get / http/1.1\r\n",
        "GET\t/\tHTTP/1.1\r\n",
        "\r\n\r\nGET / HTTP/1.1\r\n",
        "GET  / HTTP/1.1\n",
        "GET /\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX",
    ] {
        assert_eq!(sniff(request.as_bytes()).0, Some(Protocol::Http1), "{request:?}");
    }
    let endless = [b"GET x".to_vec(), b"x".repeat(MAX_LINE_BYTES)].concat();
    assert_eq!(sniff(&endless), (Some(Protocol::Http1), MAX_LINE_BYTES + 1));
    assert_eq!(sniff(&b"\r\n".repeat(MAX_LINE_BYTES)), (Some(Protocol::Http1), MAX_LINE_BYTES + 1));
    // A method may be as long as it likes (RFC 9110 section 9.1).
    let long = [&b"M".repeat(100)[..], b" / HTTP/1.1\r\n"].concat();
    check(&long, Protocol::Http1, long.len());
    assert_eq!(sniff(&b"M".repeat(100)).0, None);
    assert_eq!(sniff(&b"M".repeat(2 * MAX_LINE_BYTES)), (Some(Protocol::Http1), MAX_LINE_BYTES + 1));
}

#[test]
fn records_that_begin_no_handshake_are_not_tls() {
    for bytes in [&b"\x16\x02"[..], b"\x16\x03\x05", b"\x16\x03\x01\x41", b"\x16\x03\x01\x00\x05\x02"] {
        check(bytes, Protocol::Opaque, bytes.len());
    }
    for bytes in [&b""[..], b"\x16", b"\x16\x03\x01\x00\x05", b"PRI * HTTP/2.0\r\n", b"GET ", b"\r\n"] {
        assert_eq!(sniff(bytes).0, None, "{bytes:?}");
    }
}

#[test]
fn a_client_at_the_wrong_port_is_known_by_its_first_bytes() {
    for bytes in [&b"GET / HTTP/1.1"[..], b"CONNECT a:1", b"PRI * HTTP/2.0\r\n"] {
        assert!(is_plain_http(bytes) && !is_tls(bytes));
    }
    for bytes in [&b"GETTER"[..], b"get /", b"SSH-2.0", b"\x16\x03\x01", b""] {
        assert!(!is_plain_http(bytes));
    }
    for bytes in [&b"\x16"[..], b"\x16\x03", b"\x16\x03\x01\x02"] {
        assert!(is_tls(bytes));
    }
    for bytes in [&b""[..], b"\x16\x02", b"\x16\x03\x05", b"\x15\x03\x03"] {
        assert!(!is_tls(bytes));
    }
}

proptest! {
    #[test]
    fn any_bytes_are_decided_the_same_at_once_and_one_by_one(bytes in vec(any::<u8>(), 0..200)) {
        sniff(&bytes);
    }

    #[test]
    fn any_line_that_names_a_version_of_http_is_a_request(method in "[A-Za-z!#$%&'*+.^_`|~-]{1,64}", target in "[!-~]{1,50}") {
        prop_assume!(method != "PRI");
        let line = format!("{method} {target} HTTP/1.1\r\n");
        prop_assert_eq!(sniff(line.as_bytes()).0, Some(Protocol::Http1));
    }
}
