//! Heads and bodies that arrive in pieces, or that are nothing of the kind.

use proptest::collection::vec;
use proptest::prelude::*;
use ringmesh_codec::body::State;
use ringmesh_codec::http1::{Parsed, RequestHead, ResponseHead};
use ringmesh_codec::{BodyLength, BodyScanner, Limits, Method, Refusal};

const REQUEST: &str =
    "POST /a/b?c HTTP/1.1\r\nHost: a.example:80\r\nAccept: */*\r\nX-Empty:\r\nContent-Length: 5\r\n\r\n";
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n";

#[test]
fn head_is_complete_with_its_last_byte_and_not_before() {
    let bytes = [REQUEST.as_bytes(), b"hello"].concat();
    let mut piecewise = RequestHead::default();
    for end in 0..=bytes.len() {
        let expected = if end < REQUEST.len() { Parsed::Partial } else { Parsed::Complete };
        let part = &bytes[..end];
        assert_eq!(RequestHead::default().parse(part, &Limits::default()), Ok(expected), "fresh, {end} bytes");
        assert_eq!(piecewise.parse(part, &Limits::default()), Ok(expected), "byte by byte, {end} bytes");
    }
    assert_eq!(piecewise.len(), REQUEST.len());
    assert_eq!(piecewise.target(&bytes), b"/a/b?c");

    let mut head = ResponseHead::default();
    for end in 0..=RESPONSE.len() {
        let expected = if end < RESPONSE.len() { Parsed::Partial } else { Parsed::Complete };
        assert_eq!(head.parse(&RESPONSE.as_bytes()[..end], &Limits::default()), Ok(expected), "{end} bytes");
    }
}

#[test]
fn head_is_used_again_after_a_request_that_never_ended() {
    let mut head = RequestHead::default();
    // The next one's blank line lies in what was searched of this one.
    let unfinished = format!("GET /{}", "x".repeat(REQUEST.len()));
    assert_eq!(head.parse(unfinished.as_bytes(), &Limits::default()), Ok(Parsed::Partial));
    head.clear();
    let next = format!("{REQUEST}{}", "x".repeat(20));
    assert_eq!(head.parse(next.as_bytes(), &Limits::default()), Ok(Parsed::Complete));
    assert_eq!(head.fields(REQUEST.as_bytes()).count(), 4);
    assert_eq!(head.parse(b"GET / HTTP/1.0\r\n\r\n", &Limits::default()), Ok(Parsed::Complete));
    assert_eq!(head.fields(b"").count(), 0);
    assert_eq!(head.framing(), BodyLength::None);
}

#[test]
fn refused_head_tells_what_was_understood_and_nothing_of_the_one_before() {
    let mut head = RequestHead::default();
    let long = REQUEST.replace("/a/b?c", &format!("/{}", "x".repeat(500)));
    for (bytes, method, target) in [
        (&b"DELETE /a HTTP/1.1\r\n\r\n"[..], &b"DELETE"[..], &b"/a"[..]),
        (b"PUT #a HTTP/1.1\r\n\r\n", b"PUT", b""),
        (b"\x16\x03\x01", b"", b""),
        (b"GET /a", b"", b""),
    ] {
        assert_eq!(head.parse(long.as_bytes(), &Limits::default()), Ok(Parsed::Complete));
        assert_ne!(head.parse(bytes, &Limits::default()), Ok(Parsed::Complete));
        assert_eq!((head.method(bytes), head.target(bytes)), (method, target));
        assert_eq!((head.path(bytes), head.raw_target(bytes), head.authority(bytes)), (target, target, None));
        assert_eq!((head.framing(), head.fields(bytes).count()), (BodyLength::None, 0));
        assert!(head.len() <= bytes.len() && head.request_line().end <= bytes.len());
        head.clear();
    }
    let mut head = ResponseHead::default();
    assert_eq!(head.parse(RESPONSE.as_bytes(), &Limits::default()), Ok(Parsed::Complete));
    assert_eq!(head.parse(b"x", &Limits::default()), Err(Refusal::BadStatusLine));
    assert_eq!((head.status(), head.reason(b"x"), head.fields(b"x").count()), (0, &b""[..], 0));
}

#[test]
fn garbage_is_refused_before_a_blank_line_comes() {
    let mut head = RequestHead::default();
    assert_eq!(head.parse(b"\x16\x03\x01", &Limits::default()), Err(Refusal::BadRequestLine));
    // Byte by byte it is seen at the latest when the bytes have doubled.
    let garbage = b"GET / HTTP/1.1\r\nno colon at all, but a lot of text that goes on and on and on\r\n";
    let refused = (1..=garbage.len()).find(|&end| head.parse(&garbage[..end], &Limits::default()).is_err());
    assert!(refused.is_some_and(|end| end <= 64), "{refused:?}");
}

#[test]
fn heads_beyond_their_limits_are_refused() {
    let limits = Limits { max_head_bytes: 100, max_fields: 3, max_target_bytes: 20, ..Limits::default() };
    let request = |target: &str, fields: &str| {
        let bytes = format!("GET {target} HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        RequestHead::default().parse(bytes.as_bytes(), &limits)
    };
    assert_eq!(request("/", "A: b\r\nC: d\r\n"), Ok(Parsed::Complete));
    assert_eq!(request("/", "A: b\r\nC: d\r\nE: f\r\n"), Err(Refusal::TooManyFields));
    assert_eq!(request(&format!("/{}", "x".repeat(19)), ""), Ok(Parsed::Complete));
    assert_eq!(request(&format!("/{}", "x".repeat(20)), ""), Err(Refusal::TargetTooLong));
    assert_eq!(request(&format!("/{}", "x".repeat(200)), ""), Err(Refusal::TargetTooLong));
    // The first two lines and the blank one are 27 bytes, a line's name and end 5.
    assert_eq!(request("/", &format!("A: {}\r\n", "x".repeat(68))), Ok(Parsed::Complete));
    assert_eq!(request("/", &format!("A: {}\r\n", "x".repeat(69))), Err(Refusal::HeadTooLarge));

    let unfinished = |bytes: &str| RequestHead::default().parse(bytes.as_bytes(), &limits);
    assert_eq!(unfinished(&format!("GET /{}", "x".repeat(60))), Err(Refusal::TargetTooLong));
    assert_eq!(unfinished(&format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(80))), Ok(Parsed::Partial));
    assert_eq!(unfinished(&format!("GET / HTTP/1.1\r\nA: {}", "x".repeat(81))), Err(Refusal::HeadTooLarge));
    let response = format!("HTTP/1.1 200 OK\r\nA: {}", "x".repeat(90));
    assert_eq!(ResponseHead::default().parse(response.as_bytes(), &limits), Err(Refusal::HeadTooLarge));
}

#[test]
fn a_megabyte_of_head_is_refused_at_the_limit_however_it_arrives() {
    let bytes = [b"GET / HTTP/1.1\r\nHost: a\r\nX: ", "x".repeat(1 << 20).as_bytes()].concat();
    let limits = Limits { max_head_bytes: usize::MAX, ..Limits::default() };
    assert_eq!(RequestHead::default().parse(&bytes, &limits), Err(Refusal::HeadTooLarge));
    let mut head = RequestHead::default();
    let refused = (1..).find(|&end| head.parse(&bytes[..end], &limits).is_err());
    assert_eq!(refused, Some(ringmesh_codec::limits::MAX_HEAD_BYTES));
}

#[test]
fn chunk_lines_and_trailers_beyond_their_limits_are_refused() {
    let limits = Limits { max_chunk_line_bytes: 10, max_trailer_bytes: 10, ..Limits::default() };
    let scan =
        |bytes: &str| BodyScanner::new(BodyLength::Chunked, &limits).scan(bytes.as_bytes()).map(|scan| scan.state);
    assert_eq!(scan("0;aaaaaaaa\r\n\r\n"), Ok(State::Done));
    assert_eq!(scan("0;aaaaaaaaa\r\n\r\n"), Err(Refusal::ChunkLineTooLong));
    assert_eq!(scan("0\r\nA: bcdef\r\n\r\n"), Ok(State::Done));
    assert_eq!(scan("0\r\nA: bcdefg\r\n\r\n"), Err(Refusal::TrailersTooLarge));
    assert_eq!(scan("0\r\nA:b\r\nC:d\r\n\r\n"), Ok(State::Done));
    assert_eq!(scan("0\r\nA:b\r\nC:d\r\nE:f\r\n\r\n"), Err(Refusal::TrailersTooLarge));
    let none = Limits { max_trailer_bytes: 0, ..limits };
    let scan = |bytes: &[u8]| BodyScanner::new(BodyLength::Chunked, &none).scan(bytes).map(|scan| scan.state);
    assert_eq!(scan(b"0\r\n\r\n"), Ok(State::Done));
    assert_eq!(scan(b"0\r\nA:b\r\n\r\n"), Err(Refusal::TrailersTooLarge));
}

#[test]
fn body_ends_where_its_length_says_and_the_next_message_is_left() {
    let cases: [(BodyLength, &str, usize, State); 7] = [
        (BodyLength::None, "GET", 0, State::Done),
        (BodyLength::Fixed(0), "GET", 0, State::Done),
        (BodyLength::Fixed(5), "helloGET", 5, State::Done),
        (BodyLength::Fixed(5), "hell", 4, State::More),
        (BodyLength::UntilClose, "hello", 5, State::More),
        (BodyLength::Chunked, "5\r\nhello\r\n0\r\nA: b\r\n\r\nGET", 21, State::Done),
        (BodyLength::Chunked, "5\r\nhello\r\n0\r\n\r", 14, State::More),
    ];
    for (length, bytes, consumed, state) in cases {
        let scan = BodyScanner::new(length, &Limits::default()).scan(bytes.as_bytes()).expect("valid");
        assert_eq!((scan.consumed, scan.state), (consumed, state), "{length:?} {bytes}");
    }
}

#[test]
fn connection_that_ends_inside_of_a_body_is_noticed() {
    let close = |length, bytes: &[u8]| {
        let mut scanner = BodyScanner::new(length, &Limits::default());
        scanner.scan(bytes).expect("valid so far");
        scanner.close()
    };
    assert_eq!(close(BodyLength::Fixed(5), b"hell"), Err(Refusal::BodyIncomplete));
    assert_eq!(close(BodyLength::Fixed(5), b"hello"), Ok(()));
    assert_eq!(close(BodyLength::UntilClose, b"hell"), Ok(()));
    assert_eq!(close(BodyLength::Chunked, b"0\r\n"), Err(Refusal::BodyIncomplete));
    assert_eq!(close(BodyLength::Chunked, b"0\r\n\r\n"), Ok(()));
}

#[test]
fn content_that_passed_unseen_counts() {
    let mut scanner = BodyScanner::new(BodyLength::Chunked, &Limits::default());
    assert_eq!(scanner.unframed_bytes(), 0);
    scanner.scan(b"a\r\n012").expect("valid");
    assert_eq!(scanner.unframed_bytes(), 7);
    scanner.skip(7);
    assert_eq!(scanner.unframed_bytes(), 0);
    assert_eq!(scanner.scan(b"\r\n0\r\n\r\n").expect("valid").state, State::Done);

    let mut scanner = BodyScanner::new(BodyLength::Fixed(1 << 40), &Limits::default());
    scanner.skip(1 << 40);
    assert_eq!(scanner.state(), State::Done);
}

#[test]
fn refusal_of_a_body_lasts() {
    let mut scanner = BodyScanner::new(BodyLength::Chunked, &Limits::default());
    assert_eq!(scanner.scan(b"x"), Err(Refusal::BadChunkSize));
    assert_eq!(scanner.scan(b"0\r\n\r\n"), Err(Refusal::BadChunkSize));
    assert_eq!(scanner.close(), Err(Refusal::BadChunkSize));
}

/// Everything a reader learns of a body.
#[derive(Debug, PartialEq, Eq)]
struct Reading {
    content: Vec<u8>,
    /// How many bytes belong to it; unknown when it is refused.
    wire_bytes: Option<usize>,
    end: Result<State, Refusal>,
}

/// Reads in the given pieces, first by `scan`, then by `next_piece`, and compares the two.
fn read(length: BodyLength, bytes: &[u8], ends: &[usize]) -> Reading {
    let limits = Limits { max_chunk_line_bytes: 24, max_trailer_bytes: 48, ..Limits::default() };
    let mut scanner = BodyScanner::new(length, &limits);
    let mut pieces = BodyScanner::new(length, &limits);
    let mut content = Vec::new();
    let mut position = 0;
    for &end in ends.iter().chain([&bytes.len()]) {
        let scan = scanner.scan(&bytes[position..end]);
        let from_pieces = read_pieces(&mut pieces, &bytes[position..end], &mut content);
        assert_eq!(scan, from_pieces.map(|(consumed, state)| ringmesh_codec::body::Scan { consumed, state }));
        match scan {
            Err(refusal) => return Reading { content, wire_bytes: None, end: Err(refusal) },
            Ok(scan) => position += scan.consumed,
        }
        if scanner.state() == State::Done {
            break;
        }
        assert_eq!(position, end, "an unfinished body takes all bytes");
    }
    Reading { content, wire_bytes: Some(position), end: Ok(scanner.state()) }
}

fn read_pieces(scanner: &mut BodyScanner, bytes: &[u8], content: &mut Vec<u8>) -> Result<(usize, State), Refusal> {
    let mut consumed = 0;
    loop {
        let rest = &bytes[consumed..];
        let piece = scanner.next_piece(rest)?;
        content.extend_from_slice(&rest[piece.data]);
        consumed += piece.consumed;
        if piece.state == State::Done || consumed == bytes.len() {
            return Ok((consumed, piece.state));
        }
    }
}

fn chunked_body() -> impl Strategy<Value = Vec<u8>> {
    let extension = prop_oneof![Just(""), Just(";a"), Just(";a=b"), Just(" ; a = \"b;\\\"\" ")];
    let chunk = (vec(any::<u8>(), 1..40), extension)
        .prop_map(|(data, extension)| [format!("{:x}{extension}\r\n", data.len()).as_bytes(), &data, b"\r\n"].concat());
    let trailers = prop_oneof![Just(""), Just("A: b\r\n"), Just("Digest:\tx\r\nempty:\r\n"), Just("Host: a\r\n")];
    (vec(chunk, 0..6), trailers, vec(any::<u8>(), 0..8)).prop_map(|(chunks, trailers, next)| {
        [chunks.concat(), format!("0\r\n{trailers}\r\n").into_bytes(), next].concat()
    })
}

/// A valid body in which some bytes were changed to those that framing is about.
fn damaged_body() -> impl Strategy<Value = Vec<u8>> {
    let byte = prop::sample::select(&b"\r\n 0;:=\"\\x\0"[..]);
    (chunked_body(), vec((any::<prop::sample::Index>(), byte), 0..4)).prop_map(|(mut bytes, changes)| {
        for (index, byte) in changes {
            let index = index.index(bytes.len());
            bytes[index] = byte;
        }
        bytes
    })
}

fn ends_of(splits: &[prop::sample::Index], length: usize) -> Vec<usize> {
    let mut ends: Vec<usize> = splits.iter().map(|split| split.index(length + 1)).collect();
    ends.sort_unstable();
    ends
}

fn head_text() -> impl Strategy<Value = Vec<u8>> {
    let line = prop::sample::select(
        &[
            "GET / HTTP/1.1\r\n",
            "POST http://a/b HTTP/1.1\r\n",
            "HTTP/1.1 200 OK\r\n",
            "Host: a\r\n",
            "Connection: close\r\n",
            "Content-Length: 5\r\n",
            "Transfer-Encoding: chunked\r\n",
            "X: y\r\n",
            "\r\n",
            "\n",
            " ",
            "\r",
            ":",
            "x",
            "\0",
            "\u{fc}",
        ][..],
    );
    vec(line, 0..12).prop_map(|lines| lines.concat().into_bytes())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn chunked_body_reads_the_same_however_it_is_split(
        bytes in damaged_body(),
        splits in vec(any::<prop::sample::Index>(), 0..12),
    ) {
        let whole = read(BodyLength::Chunked, &bytes, &[]);
        let split = read(BodyLength::Chunked, &bytes, &ends_of(&splits, bytes.len()));
        let bytewise = read(BodyLength::Chunked, &bytes, &(0..bytes.len()).collect::<Vec<_>>());
        prop_assert_eq!((&split.end, split.wire_bytes), (&whole.end, whole.wire_bytes));
        prop_assert_eq!((&bytewise.end, bytewise.wire_bytes), (&whole.end, whole.wire_bytes));
        prop_assert_eq!(&bytewise.content, &whole.content);
        prop_assert_eq!(&split.content, &whole.content);
    }

    #[test]
    fn fixed_body_reads_the_same_however_it_is_split(
        bytes in vec(any::<u8>(), 0..64),
        length in 0_u64..96,
        splits in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let whole = read(BodyLength::Fixed(length), &bytes, &[]);
        prop_assert_eq!(&read(BodyLength::Fixed(length), &bytes, &ends_of(&splits, bytes.len())), &whole);
        prop_assert_eq!(whole.content.len(), bytes.len().min(length as usize));
    }

    #[test]
    fn head_reads_the_same_however_it_is_split(
        bytes in head_text(),
        splits in vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let limits = Limits { max_head_bytes: 120, max_fields: 4, max_target_bytes: 10, ..Limits::default() };
        let whole = RequestHead::default().parse(&bytes, &limits);
        let mut head = RequestHead::default();
        let mut ends = ends_of(&splits, bytes.len());
        ends.push(bytes.len());
        let mut split = Ok(Parsed::Partial);
        for end in ends {
            split = head.parse(&bytes[..end], &limits);
            if split != Ok(Parsed::Partial) {
                break;
            }
        }
        // What is refused without its blank line may be refused later in pieces.
        if split != Ok(Parsed::Partial) || whole.is_ok() {
            prop_assert_eq!(split.is_ok(), whole.is_ok(), "{:?} {:?}", split, whole);
            prop_assert_eq!(split.ok(), whole.ok());
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop_oneof![vec(any::<u8>(), 0..200), head_text()]) {
        let mut request = RequestHead::default();
        if request.parse(&bytes, &Limits::default()) == Ok(Parsed::Complete) {
            prop_assert!(request.len() <= bytes.len());
            let mut sink = ringmesh_codec::http1::Joined { bytes: &bytes, text: Vec::new() };
            request.write(&bytes, &ringmesh_codec::http1::Edits::default(), &mut sink);
            let mut again = RequestHead::default();
            prop_assert_eq!(again.parse(&sink.text, &Limits::default()), Ok(Parsed::Complete));
            prop_assert_eq!(again.framing(), request.framing());
            prop_assert_eq!(again.target(&sink.text), request.target(&bytes));
        }
        let mut response = ResponseHead::default();
        if response.parse(&bytes, &Limits::default()) == Ok(Parsed::Complete) {
            prop_assert!(response.len() <= bytes.len());
            let _ = response.reason(&bytes);
            for method in [Method::Get, Method::Head] {
                let _ = BodyScanner::new(response.framing(method), &Limits::default()).scan(&bytes[response.len()..]);
            }
        }
        let _ = BodyScanner::new(BodyLength::Chunked, &Limits::default()).scan(&bytes);
        let _ = ringmesh_codec::normalize::normalized(&bytes);
        let _ = ringmesh_codec::authority::parse(&bytes);
    }
}

#[test]
fn a_body_may_have_as_much_content_as_the_limit_and_its_framing_does_not_count() {
    let limits = Limits { max_body_bytes: 10, ..Limits::default() };
    let scan = |length, bytes: &str| BodyScanner::new(length, &limits).scan(bytes.as_bytes()).map(|scan| scan.state);
    assert_eq!(scan(BodyLength::Fixed(10), "0123456789"), Ok(State::Done));
    assert_eq!(scan(BodyLength::Fixed(11), ""), Err(Refusal::BodyTooLarge));
    assert_eq!(
        scan(BodyLength::Chunked, "4\r\n0123\r\n6;x=y\r\n456789\r\n0\r\nx: a long trailer\r\n\r\n"),
        Ok(State::Done)
    );
    assert_eq!(scan(BodyLength::Chunked, "4\r\n0123\r\n7\r\n"), Err(Refusal::BodyTooLarge));
    assert_eq!(scan(BodyLength::Chunked, "7ffffffffffffff\r\n"), Err(Refusal::BodyTooLarge));
}
