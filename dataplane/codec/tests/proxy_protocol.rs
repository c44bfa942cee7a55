//! The PROXY protocol: what headers say, what is none, and that no bytes do harm.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed, and says where")]

use std::net::SocketAddr;

use proptest::prelude::*;
use ringmesh_codec::proxy_protocol::{
    Between, Fault, Header, MAX_HEADER_BYTES, MAX_V1_BYTES, MAX_V2_BYTES, Version, read, write,
};

fn ip(source: &str, destination: &str) -> Between {
    Between::Ip { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn said(between: Between) -> Header {
    Header { between, ..Header::default() }
}

// ---- version 1 ----

#[track_caller]
fn check_line(line: &str, expected: Result<Between, Fault>) {
    let whole = format!("{line}GET / HTTP/1.1\r\n");
    let result = read(whole.as_bytes());
    let expected = expected.map(|between| Some((said(between), line.len())));
    assert_eq!(result, expected, "{line:?}");
}

#[test]
fn lines_of_the_specification_are_read() {
    check_line(
        "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n",
        Ok(ip("255.255.255.255:65535", "255.255.255.255:65535")),
    );
    let ones = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
    check_line(
        &format!("PROXY TCP6 {ones} {ones} 65535 65535\r\n"),
        Ok(ip(&format!("[{ones}]:65535"), &format!("[{ones}]:65535"))),
    );
    check_line("PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", Ok(ip("192.168.0.1:56324", "192.168.0.11:443")));
    check_line("PROXY TCP4 0.0.0.0 10.0.0.1 0 0\r\n", Ok(ip("0.0.0.0:0", "10.0.0.1:0")));
    check_line("PROXY TCP6 2001:DB8::1 ::1 1 2\r\n", Ok(ip("[2001:db8::1]:1", "[::1]:2")));
    check_line("PROXY TCP6 ::ffff:10.0.0.1 ::1 1 2\r\n", Ok(ip("[::ffff:10.0.0.1]:1", "[::1]:2")));
    check_line("PROXY UNKNOWN\r\n", Ok(Between::Own));
    check_line(&format!("PROXY UNKNOWN {ones} {ones} 65535 65535\r\n"), Ok(Between::Own));
    check_line("PROXY UNKNOWN whatever \0 it is\r\n", Ok(Between::Own));
}

#[test]
fn a_line_that_is_not_just_as_it_must_be_is_refused() {
    use Fault::{Address, LineEnd, NoHeader, Parts, Port, Protocol};
    for (line, fault) in [
        ("GET / HTTP/1.1\r\n", NoHeader),
        ("proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n", NoHeader),
        ("PROXY\r\n", NoHeader),
        (" PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", NoHeader),
        ("PROXY \r\n", Protocol),
        ("PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n", Protocol),
        ("PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n", Protocol),
        ("PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n", Protocol),
        ("PROXY UNKNOWNS\r\n", Protocol),
        ("PROXY TCP4\r\n", Parts),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n", Parts),
        ("PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n", Parts),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n", Parts),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n", Parts),
        ("PROXY TCP4 1.2.3.04 5.6.7.8 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n", Address),
        ("PROXY TCP4 ::1 ::1 1 2\r\n", Address),
        ("PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n", Address),
        ("PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", Address),
        ("PROXY TCP6 [::1] ::1 1 2\r\n", Address),
        ("PROXY TCP6 1::2::3 ::1 1 2\r\n", Address),
        ("PROXY TCP4 1.2.3.4 5.6.7.8\t1 2\r\n", Parts),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n", Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n", Port),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n", LineEnd),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n", LineEnd),
        ("PROXY TCP4 1.2.3.4 5.6.7.8 1\r 2\r\n", LineEnd),
        ("PROXY UNKNOWN\n", LineEnd),
        ("PROXY UNKNOWN a\rb\r\n", LineEnd),
    ] {
        check_line(line, Err(fault));
    }
}

#[test]
fn a_line_has_at_most_107_bytes_with_its_end() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1_BYTES - 16));
    assert_eq!(longest.len(), MAX_V1_BYTES);
    check_line(&longest, Ok(Between::Own));
    check_line(&format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1_BYTES - 15)), Err(Fault::LongLine));
    let endless = format!("PROXY UNKNOWN {}", "x".repeat(MAX_V1_BYTES));
    assert_eq!(read(&endless.as_bytes()[..MAX_V1_BYTES - 1]), Ok(None));
    assert_eq!(read(&endless.as_bytes()[..MAX_V1_BYTES]), Err(Fault::LongLine));
}

// ---- version 2 ----

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
const FOUR: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

fn four() -> Between {
    ip("192.0.2.7:56324", "198.51.100.1:443")
}

fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[command, family], &length, body].concat()
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

fn with(tlvs: &[Vec<u8>]) -> Vec<u8> {
    binary(0x21, 0x11, &[&FOUR[..], &tlvs.concat()].concat())
}

#[track_caller]
fn check(header: &[u8], expected: Result<Header, Fault>) {
    let whole = [header, b"\r\n\r\n\0and more"].concat();
    assert_eq!(read(&whole), expected.map(|said| Some((said, header.len()))), "{header:02x?}");
}

#[test]
fn binary_headers_of_every_family_are_read() {
    check(&binary(0x21, 0x11, &FOUR), Ok(said(four())));
    check(&binary(0x21, 0x12, &FOUR), Ok(said(four())));
    let mut six = [0; 36];
    (six[0], six[1], six[15], six[31]) = (0x20, 0x01, 1, 2);
    six[32..].copy_from_slice(&[0, 80, 1, 187]);
    check(&binary(0x21, 0x21, &six), Ok(said(ip("[2001::1]:80", "[::2]:443"))));
    let mut unix = [0; 216];
    unix[..12].copy_from_slice(b"/run/a\0stale");
    check(&binary(0x21, 0x31, &unix), Ok(said(Between::Unix { source: b"/run/a".as_slice().into() })));
    unix[..108].fill(b'x');
    check(&binary(0x21, 0x31, &unix), Ok(said(Between::Unix { source: [b'x'; 108].into() })));
    check(&binary(0x21, 0x00, b""), Ok(said(Between::Own)));
}

#[test]
fn local_discards_what_follows_whatever_it_is() {
    for (family, body) in [(0x00, &b""[..]), (0x11, &FOUR), (0x11, b"short"), (0xff, b"\x01\xff\xff")] {
        check(&binary(0x20, family, body), Ok(Header::default()));
    }
}

#[test]
fn tlvs_are_read_and_those_that_nobody_knows_are_skipped() {
    // Client with a certificate, found valid; its version, name, cipher, signature and key.
    let ssl = [&[7, 0, 0, 0, 0][..], &tlv(0x21, b"TLSv1.3"), &tlv(0x22, b"alice"), &tlv(0x25, b"EC256")].concat();
    let header = with(&[
        tlv(0x01, b"h2"),
        tlv(0x02, "bücher.example".as_bytes()),
        tlv(0x04, &[0; 17]),
        tlv(0x05, b"\x00\xff id"),
        tlv(0x20, &ssl),
        tlv(0x30, b"netns"),
        tlv(0xea, b"\x01vpce-123"),
        tlv(0xe0, b""),
    ]);
    let expected = Header {
        between: four(),
        alpn: Some(b"h2".as_slice().into()),
        authority: Some("bücher.example".into()),
        unique_id: Some(b"\x00\xff id".as_slice().into()),
    };
    check(&header, Ok(expected));
    check(&with(&[tlv(1, b""), tlv(2, b""), tlv(5, b"")]), Ok(said(four())));
}

#[test]
fn the_checksum_is_that_of_the_whole_header_wherever_it_stands() {
    for tlvs in [
        vec![tlv(0x03, &[0; 4])],
        vec![tlv(0x03, &[0; 4]), tlv(0x01, b"h2")],
        vec![tlv(0x01, b"h2"), tlv(0x03, &[0; 4]), tlv(0x04, b"...")],
    ] {
        let mut header = with(&tlvs);
        let at = header.windows(3).position(|window| window == [3, 0, 4]).unwrap() + 3;
        let sum = crc32c(&header);
        header[at..at + 4].copy_from_slice(&sum.to_be_bytes());
        let (found, _) = read(&header).unwrap().unwrap();
        assert_eq!(found.between, four());
        // But for its own type: a checksum that calls itself something else is none.
        for bit in (0..header.len() * 8).filter(|bit| bit / 8 != at - 3) {
            let mut broken = header.clone();
            broken[bit / 8] ^= 1 << (bit % 8);
            assert!(!matches!(read(&broken), Ok(Some((said, _))) if said == found), "bit {bit}");
        }
        header[at] ^= 1;
        check(&header, Err(Fault::Checksum));
    }
}

/// Bit by bit, unlike the code under test.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

#[test]
fn a_binary_header_that_is_not_just_as_it_must_be_is_refused() {
    use Fault::{Command, Family, NoHeader, NoRoom, Overrun, Rest, Tlv, Twice, Version};
    check(b"\r\n\r\n\0\r\nQUIX\n", Err(NoHeader));
    check(b"\r\nGET", Err(NoHeader));
    check(&binary(0x11, 0x11, &FOUR), Err(Version(1)));
    check(&binary(0x31, 0x11, &FOUR), Err(Version(3)));
    check(&binary(0x22, 0x11, &FOUR), Err(Command(2)));
    check(&binary(0x2f, 0x11, &FOUR), Err(Command(15)));
    for family in [0x01, 0x02, 0x10, 0x13, 0x20, 0x33, 0x41, 0xff] {
        check(&binary(0x21, family, &[0; 300]), Err(Family(family)));
    }
    check(&binary(0x21, 0x11, &FOUR[..11]), Err(NoRoom));
    check(&binary(0x21, 0x21, &[0; 35]), Err(NoRoom));
    check(&binary(0x21, 0x31, &[0; 215]), Err(NoRoom));
    for rest in [&[4][..], &[4, 0]] {
        check(&with(&[tlv(4, b""), rest.to_vec()]), Err(Rest));
    }
    check(&with(&[vec![4, 0, 1]]), Err(Overrun(4)));
    check(&with(&[vec![1, 0xff, 0xff, b'h', b'2']]), Err(Overrun(1)));
    check(&with(&[vec![3, 0, 4, 0, 0, 0]]), Err(Overrun(3)));
    check(&with(&[tlv(0x20, &[0; 4])]), Err(Tlv(0x20)));
    check(&with(&[tlv(0x20, &[0, 0, 0, 0, 0, 0x21, 0, 9, b'x'])]), Err(Overrun(0x21)));
    check(&with(&[tlv(0x20, &[0, 0, 0, 0, 0, 0x21])]), Err(Rest));
    check(&with(&[tlv(1, b"h2"), tlv(1, b"h2")]), Err(Twice(1)));
    check(&with(&[tlv(2, b"a"), tlv(2, b"b")]), Err(Twice(2)));
    check(&with(&[tlv(5, b"a"), tlv(5, b"b")]), Err(Twice(5)));
    check(&with(&[tlv(2, b""), tlv(2, b"b")]), Err(Twice(2)));
    for (kind, value) in [
        (1, vec![b'x'; 256]),
        (2, vec![0xff]),
        (2, b"a\0b".to_vec()),
        (2, vec![b'x'; 256]),
        (3, vec![0; 3]),
        (3, vec![0; 5]),
        (5, vec![0; 129]),
    ] {
        check(&with(&[tlv(kind, &value)]), Err(Tlv(kind)));
    }
}

#[test]
fn a_header_has_at_most_4096_bytes_and_is_refused_as_soon_as_it_says_more() {
    let room = MAX_V2_BYTES - 16 - FOUR.len() - 3;
    let longest = with(&[tlv(4, &vec![0; room])]);
    assert_eq!(longest.len(), MAX_V2_BYTES);
    check(&longest, Ok(said(four())));
    assert_eq!(read(&longest[..MAX_V2_BYTES - 1]), Ok(None));
    let longer = with(&[tlv(4, &vec![0; room + 1])]);
    assert_eq!(read(&longer[..16]), Err(Fault::TooLong(MAX_V2_BYTES + 1)), "its length is known from 16 bytes");
    let most = [SIGNATURE, &[0x20, 0, 0xff, 0xff]].concat();
    assert_eq!(read(&most), Err(Fault::TooLong(65_551)), "also of what would be discarded");
}

// ---- both ----

#[test]
fn what_is_written_is_what_haproxy_and_nginx_read() {
    let header = said(four());
    assert_eq!(write(Version::V1, &header), b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n");
    let sum = {
        let mut zeros = with(&[tlv(3, &[0; 4])]);
        let at = zeros.len() - 4;
        let sum = crc32c(&zeros).to_be_bytes();
        zeros[at..].copy_from_slice(&sum);
        zeros
    };
    assert_eq!(write(Version::V2, &header), sum);
    let mixed = said(ip("192.0.2.7:1", "[2001:db8::1]:2"));
    assert_eq!(write(Version::V1, &mixed), b"PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n");
    assert_eq!(write(Version::V1, &Header::default()), b"PROXY UNKNOWN\r\n");
    assert_eq!(write(Version::V2, &Header::default())[12..16], [0x20, 0, 0, 7], "LOCAL, with a checksum");
}

#[test]
fn no_header_is_longer_than_its_limit() {
    let header = Header {
        between: ip("[::1]:1", "[::2]:2"),
        alpn: Some(vec![b'x'; 255].into()),
        authority: Some("x".repeat(255).into()),
        unique_id: Some(vec![0; 128].into()),
    };
    assert!(write(Version::V1, &header).len() <= MAX_V1_BYTES);
    let written = write(Version::V2, &header);
    assert!(written.len() <= MAX_V2_BYTES);
    assert_eq!(read(&written), Ok(Some((header, written.len()))));
    let oversized = Header { authority: Some("x".repeat(100_000).into()), ..Header::default() };
    assert_eq!(
        write(Version::V2, &oversized),
        write(Version::V2, &Header::default()),
        "it says nothing rather than half"
    );
}

fn any_address() -> impl Strategy<Value = Between> {
    let four = any::<([u8; 4], [u8; 4], u16, u16)>()
        .prop_map(|(a, b, c, d)| (SocketAddr::from((a, c)), SocketAddr::from((b, d))));
    let six = any::<([u8; 16], [u8; 16], u16, u16)>()
        .prop_map(|(a, b, c, d)| (SocketAddr::from((a, c)), SocketAddr::from((b, d))));
    prop_oneof![four, six].prop_map(|(source, destination)| Between::Ip { source, destination })
}

fn any_header() -> impl Strategy<Value = Header> {
    let bytes = |most| prop::option::of(prop::collection::vec(any::<u8>(), 1..=most).prop_map(Into::into));
    let name = prop::option::of("[a-z.ü-]{1,80}".prop_map(Into::into));
    (any_address(), bytes(255), name, bytes(128)).prop_map(|(between, alpn, authority, unique_id)| Header {
        between,
        alpn,
        authority,
        unique_id,
    })
}

/// Bytes that are nearly a header: of one, some are changed, cut or added.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![Just(Version::V1), Just(Version::V2)];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (any_header(), version, changes, any::<prop::sample::Index>(), prop::collection::vec(any::<u8>(), 0..20)).prop_map(
        |(header, version, changes, cut, more)| {
            let mut bytes = write(version, &header);
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() * 2).max(1));
            bytes.extend(more);
            bytes
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(header in any_header(), more in prop::collection::vec(any::<u8>(), 0..50)) {
        let written = write(Version::V2, &header);
        let whole = [&written[..], &more].concat();
        prop_assert_eq!(read(&whole), Ok(Some((header.clone(), written.len()))));
        let line = write(Version::V1, &header);
        let whole = [&line[..], &more].concat();
        prop_assert_eq!(read(&whole), Ok(Some((said(header.between), line.len()))));
    }

    #[test]
    fn a_header_in_pieces_is_the_same_header(header in any_header(), version in prop_oneof![Just(Version::V1), Just(Version::V2)]) {
        let written = write(version, &header);
        for cut in 0..written.len() {
            prop_assert_eq!(read(&written[..cut]), Ok(None), "of {} bytes {}", written.len(), cut);
        }
    }

    #[test]
    fn any_bytes_have_an_answer_within_the_limit_and_the_same_whatever_follows(bytes in nearly(), more in any::<[u8; 8]>()) {
        let first = read(&bytes);
        if let Ok(Some((_, length))) = &first {
            prop_assert!(*length <= bytes.len() && *length <= MAX_HEADER_BYTES);
        }
        if first != Ok(None) {
            prop_assert_eq!(read(&[&bytes[..], &more].concat()), first);
        }
        let mut padded = bytes;
        padded.resize(MAX_HEADER_BYTES.max(padded.len()), b' ');
        prop_assert_ne!(read(&padded), Ok(None));
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = read(&bytes);
        let _ = read(&[SIGNATURE, &bytes].concat());
        let _ = read(&[b"PROXY ", &bytes[..]].concat());
    }
}
