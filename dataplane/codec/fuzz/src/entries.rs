//! What must hold for all bytes that a peer can send. Each function takes any input and panics where something does not
//! hold; it stands by itself, so that both a fuzzer and the tests of `ringmesh-codec` can run it.
//!
//! With a nightly toolchain: `cargo fuzz run request_head` in this folder's parent; without one the tests are enough to run
//! the corpus and seeded changes of it.

use ringmesh_codec::body::State;
use ringmesh_codec::client_hello::{self, MAX_NAME_BYTES, MAX_WIRE_BYTES, Scanner};
use ringmesh_codec::grpc_health::read_response;
use ringmesh_codec::grpc_web::{BadBase64, ContentType, Decoder, Encoder, write_trailers};
use ringmesh_codec::http1::{Edits, Joined, Parsed, RequestHead, ResponseHead};
use ringmesh_codec::mux::{self, Frame};
use ringmesh_codec::proxy_protocol::{self, Between, Fault, MAX_HEADER_BYTES, Version};
use ringmesh_codec::sniff::{MAX_LINE_BYTES, Protocol, Sniffer};
use ringmesh_codec::{BodyLength, BodyScanner, ClientHello, Head, Limits, Method, Refusal, normalize};

/// A request's head: it reads alike however it arrives, and what is written of it reads like it and does not change again.
pub fn request_head(data: &[u8]) {
    let limits = Limits::default();
    let mut head = RequestHead::default();
    let whole = head.parse(data, &limits);
    let mut pieces = RequestHead::default();
    let mut arrived = Ok(Parsed::Partial);
    let mut end = 0;
    while arrived == Ok(Parsed::Partial) && end < data.len() {
        end = data.len().min(end + 1 + end % 7);
        arrived = pieces.parse(&data[..end], &limits);
    }
    if whole != Ok(Parsed::Complete) {
        // In pieces it is looked at less often, so that a fault may be told later, or another one first.
        return assert_ne!(arrived, Ok(Parsed::Complete), "in pieces");
    }
    assert_eq!(arrived, whole, "in pieces");
    assert_eq!(pieces.len(), head.len());
    let written = write(&head, data);
    let Some(again) = reread(&written, &head, data) else { return };
    assert_eq!(again.framing(), head.framing());
    assert_eq!(again.method(&written), head.method(data));
    assert_eq!(again.target(&written), head.target(data));
    assert_eq!(again.authority(&written), Some(head.authority(data).unwrap_or_default()));
    assert_eq!(write(&again, &written), written, "what was written anew stays");
    assert!(!again.upgrade(), "nobody upgrades unless it is kept");
}

fn write(head: &RequestHead, bytes: &[u8]) -> Vec<u8> {
    let mut joined = Joined { bytes, text: Vec::new() };
    head.write(bytes, &Edits::default(), &mut joined);
    joined.text
}

/// Reads what was written. None for HTTP/1.0 without Host, which goes on with an empty one, and for what has grown beyond a
/// limit by what was written.
fn reread(written: &[u8], head: &RequestHead, bytes: &[u8]) -> Option<RequestHead> {
    let mut again = RequestHead::default();
    match again.parse(written, &Limits::default()) {
        Ok(Parsed::Complete) => {
            assert_eq!(again.len(), written.len());
            Some(again)
        }
        Err(Refusal::BadHost) if head.authority(bytes).is_none() => None,
        Err(Refusal::HeadTooLarge | Refusal::TooManyFields) => None,
        other => panic!("{other:?} of {}", written.escape_ascii()),
    }
}

/// A response's head, in the same way, for each kind of request.
pub fn response_head(data: &[u8]) {
    let limits = Limits::default();
    let mut head = ResponseHead::default();
    if head.parse(data, &limits) != Ok(Parsed::Complete) {
        return;
    }
    let write = |head: &ResponseHead, bytes: &[u8]| {
        let mut joined = Joined { bytes, text: Vec::new() };
        head.write(bytes, &Edits::default(), &mut joined);
        joined.text
    };
    let written = write(&head, data);
    let mut again = ResponseHead::default();
    match again.parse(&written, &limits) {
        Ok(Parsed::Complete) => {}
        Err(Refusal::HeadTooLarge) => return,
        other => panic!("{other:?} of {}", written.escape_ascii()),
    }
    assert_eq!(again.len(), written.len());
    assert_eq!((again.status(), again.reason(&written)), (head.status(), head.reason(data)));
    for method in [Method::Get, Method::Head, Method::Connect, Method::Post] {
        assert_eq!(again.framing(method), head.framing(method));
    }
    assert_eq!(again.upgrade(&written), None);
    assert_eq!(write(&again, &written), written, "what was written anew stays");
}

/// A chunked body: it ends at the same byte and has the same content however it arrives, and a plain reading of the same
/// bytes agrees. The first byte says how it is cut.
pub fn chunked_body(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let limits = Limits::default();
    let whole = BodyScanner::new(BodyLength::Chunked, &limits).scan(bytes);
    let mut scanner = BodyScanner::new(BodyLength::Chunked, &limits);
    let (mut content, mut at) = (Vec::new(), 0);
    let pieces = loop {
        let end = bytes.len().min(at + 1 + usize::from(*cut) % 13);
        match scanner.next_piece(&bytes[at..end]) {
            Err(refusal) => break Err(refusal),
            Ok(piece) => {
                content.extend_from_slice(&bytes[at..end][piece.data]);
                at += piece.consumed;
                if piece.state == State::Done || (at == bytes.len()) {
                    break Ok((at, piece.state));
                }
            }
        }
    };
    assert_eq!(whole.map(|scan| (scan.consumed, scan.state)), pieces, "in pieces");
    if let Ok((end, State::Done)) = pieces {
        assert_eq!(plain_chunks(&bytes[..end]), Some(content), "a plain reading agrees");
    }
}

/// The content of a whole chunked body, as simple code reads it that trusts its sender.
fn plain_chunks(mut bytes: &[u8]) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    loop {
        let line = bytes.windows(2).position(|window| window == b"\r\n")?;
        let digits = bytes[..line].iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..digits]).ok()?, 16).ok()?;
        bytes = &bytes[line + 2..];
        if size == 0 {
            // Trailers, or none, and a blank line.
            let end = bytes == b"\r\n" || bytes.ends_with(b"\r\n\r\n");
            return end.then_some(content);
        }
        content.extend_from_slice(bytes.get(..size)?);
        bytes = bytes.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// A path's normal form is its own, has nothing left to resolve or decode, and stays a path.
pub fn normalize(path: &[u8]) {
    let normal = normalize::normalized(path);
    assert_eq!(normalize::unambiguous(path).as_deref(), normal.as_deref().ok());
    let Ok(normal) = normal else { return };
    assert_eq!(normalize::normalized(&normal).as_deref(), Ok(&normal[..]), "of {}", path.escape_ascii());
    if path.first() == Some(&b'/') {
        assert_eq!(normal.first(), Some(&b'/'), "of {}", path.escape_ascii());
        let mut segments = normal.split(|byte| *byte == b'/');
        assert!(!segments.any(|segment| matches!(segment, b"." | b"..")), "of {}", path.escape_ascii());
    }
    assert!(!normal.contains(&b'\\') && !normal.windows(3).any(|three| three.eq_ignore_ascii_case(b"%2f")));
}

/// Lines about length, of which each input byte picks one. What passes has one length and one reading.
pub fn framing_pairs(data: &[u8]) {
    const LINES: [&[u8]; 24] = [
        b"Content-Length: 5\r\n",
        b"content-length:5\r\n",
        b"Content-Length: 05\r\n",
        b"Content-Length: 0\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length : 5\r\n",
        b"Content_Length: 5\r\n",
        b"Content-Length: 5\n",
        b"Content-Length:\r\n 5\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:\tCHUNKED \r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"Connection: content-length, transfer-encoding\r\n",
        b"Connection: close\r\n",
        b"X: y\r\n",
        b"Expect: 100-continue\r\n",
        b"TE: trailers\r\n",
        b"Trailer: x\r\n",
    ];
    let lines: Vec<&[u8]> = data.iter().take(8).map(|byte| LINES[usize::from(*byte) % LINES.len()]).collect();
    let fields = lines.concat();
    let about = |name: &[u8]| {
        let is_it = |line: &&&[u8]| line.len() > name.len() && line[..name.len()].eq_ignore_ascii_case(name);
        lines.iter().filter(is_it).count()
    };
    let (lengths, codings) = (about(b"content-length"), about(b"transfer-encoding"));
    let check = |framing: BodyLength, without: BodyLength| match framing {
        BodyLength::Chunked => assert_eq!((lengths, codings), (0, 1), "{}", fields.escape_ascii()),
        BodyLength::Fixed(bytes) => {
            assert_eq!((lengths, codings), (1, 0), "{}", fields.escape_ascii());
            assert!(bytes == 5 || bytes == 0);
        }
        framing => {
            assert_eq!(framing, without);
            assert_eq!((lengths, codings), (0, 0), "{}", fields.escape_ascii());
        }
    };
    let mut head = RequestHead::default();
    let request = [b"POST / HTTP/1.1\r\nHost: a\r\n", &fields[..], b"\r\n"].concat();
    if head.parse(&request, &Limits::default()) == Ok(Parsed::Complete) {
        check(head.framing(), BodyLength::None);
        assert_eq!(head.view(&request).method(), b"POST");
    }
    request_head(&request);
    let mut head = ResponseHead::default();
    let response = [b"HTTP/1.1 200 OK\r\n", &fields[..], b"\r\n"].concat();
    if head.parse(&response, &Limits::default()) == Ok(Parsed::Complete) {
        check(head.framing(Method::Get), BodyLength::UntilClose);
    }
    response_head(&response);
}

/// A body of gRPC-Web: base64 reads alike however it is cut, what is written of its bytes reads as them wherever it is padded,
/// and trailers are one message with their own length. The first byte says how things are cut. The answer to a health check is
/// read alike whatever stands behind it in its own frame.
pub fn grpc_web(data: &[u8]) {
    let _ = ContentType::read(data);
    let framed = [&[0; 3][..], &(data.len() as u16).to_be_bytes(), data].concat();
    if let Some(serving) = read_response(&framed) {
        let longer = [&[0; 3][..], &(data.len() as u16 + 2).to_be_bytes(), data, b"\x10\x05"].concat();
        assert_eq!(read_response(&longer), Some(serving), "a further field changes nothing");
    }
    let Some((cut, text)) = data.split_first() else { return };
    let size = 1 + usize::from(*cut) % 13;
    let whole = decode(&[text]);
    let pieces: Vec<&[u8]> = text.chunks(size).collect();
    assert_eq!(decode(&pieces), whole, "in pieces");
    let (mut encoder, mut written) = (Encoder::default(), Vec::new());
    for (number, piece) in text.chunks(size).enumerate() {
        encoder.encode(piece, &mut written);
        if number % 3 == 2 {
            encoder.pad(&mut written);
        }
    }
    encoder.pad(&mut written);
    assert_eq!(decode(&[&written]).as_deref(), Ok(text), "what is written is read");
    let fields = || text.chunks(size).map(|piece| piece.split_at(piece.len() / 2));
    let mut message = Vec::new();
    write_trailers(fields(), &mut message);
    assert_eq!(message[0], 0x80);
    assert_eq!(u32::from_be_bytes([message[1], message[2], message[3], message[4]]) as usize, message.len() - 5);
}

fn decode(pieces: &[&[u8]]) -> Result<Vec<u8>, BadBase64> {
    let (mut decoder, mut bytes) = (Decoder::default(), Vec::new());
    for piece in pieces {
        decoder.decode(piece, &mut bytes)?;
    }
    if decoder.is_whole() { Ok(bytes) } else { Err(BadBase64) }
}

/// Frames of a shared connection: they are the same however they arrive, each takes something, none is larger than said, and
/// what is written of them reads like them. The first byte says how they are cut.
pub fn mux_frames(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let whole = frames_of(bytes, bytes.len().max(1));
    assert_eq!(frames_of(bytes, 1 + usize::from(*cut) % 29), whole, "in pieces");
    let (frames, _) = whole;
    let mut written = Vec::new();
    frames.iter().for_each(|frame| frame.write(&mut written));
    let (again, fault) = frames_of(&written, 7);
    assert_eq!((again, fault), (frames, None), "of {}", bytes.escape_ascii());
}

/// A frame that stands by itself: data as one, whatever it came in.
#[derive(Debug, PartialEq, Eq)]
enum Whole {
    Data { channel: u32, bytes: Vec<u8>, end: bool },
    Control(Vec<u8>),
}

impl Whole {
    fn write(&self, output: &mut Vec<u8>) {
        match self {
            Self::Control(bytes) => output.extend_from_slice(bytes),
            Self::Data { channel, bytes, end } => {
                output.extend_from_slice(&mux::data_header(*channel, bytes.len(), *end));
                output.extend_from_slice(bytes);
            }
        }
    }
}

/// The frames that are whole in bytes that come in pieces of this size, and what was wrong with the first that is none.
fn frames_of(bytes: &[u8], size: usize) -> (Vec<Whole>, Option<mux::Fault>) {
    let (mut frames, mut arrived, mut all) = (mux::Frames::default(), Vec::new(), Vec::new());
    // The header that was read, and how much of what it announces has come.
    let mut open: Option<(u32, usize, Vec<u8>)> = None;
    for piece in bytes.chunks(size) {
        arrived.extend_from_slice(piece);
        loop {
            let (frame, taken) = match frames.next(&arrived) {
                Err(fault) => return (all, Some(fault)),
                Ok(None) => break,
                Ok(Some(next)) => next,
            };
            assert!((1..=arrived.len()).contains(&taken), "each takes something that is there");
            match frame {
                Frame::Data { channel, bytes, end } => {
                    let (of, announced, mut so_far) = open.take().unwrap_or_else(|| {
                        (channel, usize::from(u16::from_be_bytes([arrived[2], arrived[3]])), Vec::new())
                    });
                    assert!(channel == of && channel != 0 && announced <= mux::MAX_DATA_BYTES);
                    so_far.extend_from_slice(bytes);
                    assert!(so_far.len() <= announced);
                    if so_far.len() == announced {
                        all.push(Whole::Data { channel, bytes: so_far, end });
                    } else {
                        assert!(!end, "the end comes with the last byte");
                        open = Some((of, announced, so_far));
                    }
                }
                frame => {
                    assert!(open.is_none(), "no frame comes within another");
                    assert!(taken <= mux::HEADER_BYTES + mux::MAX_CONTROL_BYTES);
                    all.push(Whole::Control(frame.encode().to_vec()));
                }
            }
            arrived.drain(..taken);
        }
        assert!(arrived.len() < mux::HEADER_BYTES + mux::MAX_CONTROL_BYTES, "more waits than may");
    }
    (all, None)
}

/// The first message of a TLS client: it reads alike however it arrives, whatever follows, and however it is cut into records.
/// The first byte says how it is cut.
pub fn client_hello(data: &[u8]) {
    let Some((cut, bytes)) = data.split_first() else { return };
    let whole = Scanner::default().scan(bytes);
    let (mut scanner, mut end) = (Scanner::default(), 0);
    let pieces = loop {
        let found = scanner.scan(&bytes[..end]);
        if !matches!(found, Ok(None)) || end == bytes.len() {
            break found;
        }
        end = bytes.len().min(end + 1 + usize::from(*cut) % 7);
    };
    assert_eq!(pieces, whole, "in pieces");
    let Ok(Some(hello)) = whole else { return };
    if let Some(name) = hello.name() {
        assert!(!name.is_empty() && name.len() <= MAX_NAME_BYTES && !name.ends_with('.'), "{name}");
        assert!(name.bytes().all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase()), "{name}");
    }
    assert!(hello.protocols().all(|protocol| !protocol.is_empty() && hello.offers(protocol)));
    assert_eq!(recut(bytes, 1 + usize::from(*cut) % 61), Some(hello), "in other records");
}

/// What comes of a ClientHello in records of this size. Each header costs five bytes, so that it may become too large.
fn recut(mut records: &[u8], size: usize) -> Option<ClientHello> {
    let mut message = Vec::new();
    while let Some(header) = records.first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        message.extend_from_slice(&records[5..records.len().min(5 + length)]);
        records = records.get(5 + length..).unwrap_or_default();
    }
    let length = 4 + u32::from_be_bytes([0, message[1], message[2], message[3]]) as usize;
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    let again: Vec<u8> = message[..length].chunks(size.max(length / 6000 + 1)).flat_map(record).collect();
    assert!(again.len() <= MAX_WIRE_BYTES);
    match Scanner::default().scan(&again) {
        Ok(hello) => hello,
        Err(refusal @ client_hello::Refusal::TooLarge) => panic!("{refusal}"),
        Err(refusal) => panic!("{refusal}: {}", again.escape_ascii()),
    }
}

/// What a proxy says of its client: it reads alike however it arrives and whatever follows, it takes no byte of that, and what
/// is written of it reads like it.
pub fn proxy_header(data: &[u8]) {
    let whole = proxy_protocol::read(data);
    let (header, taken) = match whole {
        Ok(Some(found)) => found,
        Ok(None) => return assert!(data.len() < MAX_HEADER_BYTES, "more waits than may"),
        Err(fault) => return assert_faulty(data, &fault),
    };
    assert!((1..=data.len().min(MAX_HEADER_BYTES)).contains(&taken));
    assert_eq!(proxy_protocol::read(&data[..taken]), Ok(Some((header.clone(), taken))), "whatever follows");
    for end in 0..taken {
        assert_eq!(proxy_protocol::read(&data[..end]), Ok(None), "{end} of {taken} bytes");
    }
    let written = proxy_protocol::write(Version::V2, &header);
    let (again, length) = proxy_protocol::read(&written).expect("it is one").expect("it is whole");
    assert_eq!(length, written.len());
    assert_eq!((&again.alpn, &again.authority), (&header.alpn, &header.authority));
    assert_eq!(again.unique_id, header.unique_id);
    let line = proxy_protocol::write(Version::V1, &header);
    let (short, length) = proxy_protocol::read(&line).expect("it is one").expect("it is whole");
    assert_eq!(length, line.len());
    match header.between {
        // Of two families one becomes the other's mapped form, which is the same address.
        Between::Ip { source, destination } if source.is_ipv4() == destination.is_ipv4() => {
            assert_eq!((&again.between, &short.between), (&header.between, &header.between));
        }
        Between::Ip { .. } => {}
        Between::Own | Between::Unix { .. } => assert_eq!((again.between, short.between), (Between::Own, Between::Own)),
    }
}

/// Nothing that could still have become a header is one with more bytes, and nothing that is none becomes one.
fn assert_faulty(data: &[u8], fault: &Fault) {
    let first =
        (0..=data.len()).find(|end| proxy_protocol::read(&data[..*end]) != Ok(None)).expect("at its end at last");
    assert!(proxy_protocol::read(&data[..first]).is_err(), "{fault}, after {first} bytes");
}

/// What a client speaks: it is found alike however its bytes arrive, what was found stays, and what is a request or TLS is never
/// taken for something else.
pub fn sniff(data: &[u8]) {
    let mut sniffer = Sniffer::default();
    let pieces = (0..=data.len()).find_map(|end| sniffer.sniff(&data[..end]));
    let whole = Sniffer::default().sniff(data);
    if data.len() <= MAX_LINE_BYTES {
        assert_eq!(pieces, whole, "in pieces");
    }
    let mut head = RequestHead::default();
    if head.parse(data, &Limits::default()) == Ok(Parsed::Complete) {
        assert_eq!(pieces, Some(Protocol::Http1), "a request");
    }
    if matches!(Scanner::default().scan(data), Ok(Some(_))) {
        assert_eq!(pieces, Some(Protocol::Tls), "a ClientHello");
    }
}
