//! ClientHellos whole, in pieces, cut into records, and not quite what they should be.

use proptest::collection::vec;
use proptest::prelude::*;
use ringmesh_codec::ClientHello;
use ringmesh_codec::client_hello::{Alert, MAX_HELLO_BYTES, MAX_WIRE_BYTES, Refusal, Scanner};

const GREASE: u16 = 0x0a0a;

fn long(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u16).to_be_bytes()[..], content].concat()
}

fn extension(kind: u16, content: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), long(content)].concat()
}

fn server_name(name: &[u8]) -> Vec<u8> {
    extension(0, &long(&[&[0][..], &long(name)].concat()))
}

fn alpn(protocols: &[&[u8]]) -> Vec<u8> {
    let list: Vec<u8> =
        protocols.iter().flat_map(|protocol| [&[protocol.len() as u8][..], protocol].concat()).collect();
    extension(16, &long(&list))
}

/// A message with these extensions; None: without any, as TLS 1.2 allows.
fn message(extensions: Option<&[Vec<u8>]>) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &[32], &[9; 32]].concat();
    body.extend(long(&[GREASE.to_be_bytes(), [0x13, 0x01]].concat()));
    body.extend([1, 0]);
    body.extend(extensions.map(|all| long(&all.concat())).unwrap_or_default());
    [&[1][..], &(body.len() as u32).to_be_bytes()[1..], &body].concat()
}

/// A message in records of up to `size` bytes each.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message.chunks(size).flat_map(|part| [&[22, 3, 1][..], &long(part)].concat()).collect()
}

fn hello(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(Some(extensions)), 1 << 14)
}

/// What comes of bytes that arrive one by one. It must be what comes of all at once.
#[track_caller]
fn scan(bytes: &[u8]) -> Result<Option<ClientHello>, Refusal> {
    let at_once = Scanner::default().scan(bytes);
    let mut piecewise = Scanner::default();
    for end in 0..=bytes.len() {
        let result = piecewise.scan(&bytes[..end]);
        assert_eq!(result, Scanner::default().scan(&bytes[..end]), "{end} bytes, at once and one by one");
        if !matches!(result, Ok(None)) {
            assert_eq!(result, at_once, "what follows after {end} bytes changes nothing");
            return result;
        }
    }
    assert_eq!(at_once, Ok(None));
    at_once
}

#[track_caller]
fn check(bytes: &[u8], name: Option<&str>, protocols: &[&str]) {
    let hello = scan(bytes).expect("a good hello").expect("it is whole");
    assert_eq!(hello.name(), name);
    assert!(hello.protocols().eq(protocols.iter().map(|protocol| protocol.as_bytes())), "{hello:?}");
    protocols.iter().for_each(|protocol| assert!(hello.offers(protocol.as_bytes())));
    assert!(!hello.offers(b"h") && !hello.offers(b""));
}

#[track_caller]
fn check_refused(bytes: &[u8], expected: Refusal) {
    assert_eq!(scan(bytes), Err(expected));
}

#[test]
fn name_and_protocols_are_found_among_what_is_unknown_and_reserved() {
    let grease = || extension(GREASE, b"");
    // Encrypted Client Hello: what is seen is the outer name.
    let ech = extension(0xfe0d, &[0; 300]);
    let both =
        [grease(), ech, server_name(b"Shop.Example"), extension(43, &[2, 3, 4]), alpn(&[b"h2", b"http/1.1"]), grease()];
    check(&hello(&both), Some("shop.example"), &["h2", "http/1.1"]);
    check(&hello(&[alpn(&[b"\x0a\x0a", b"h2"])]), None, &["\n\n", "h2"]);
    check(&hello(&[server_name(b"a_b.x-y.example.")]), Some("a_b.x-y.example"), &[]);
    check(&hello(&[]), None, &[]);
    check(&records(&message(None), 1 << 14), None, &[]);
}

#[test]
fn a_hello_is_read_however_it_is_cut_into_records_and_whatever_follows() {
    let whole = message(Some(&[server_name(b"a.example"), alpn(&[b"h2"])]));
    for size in 1..=whole.len() {
        let mut bytes = records(&whole, size);
        check(&bytes, Some("a.example"), &["h2"]);
        bytes.extend(b"\x14\x03\x03\x00\x01\x01 and early data");
        check(&bytes, Some("a.example"), &["h2"]);
    }
    // More of the same record belongs to nobody yet.
    check(&records(&[&whole[..], b"more"].concat(), 1 << 14), Some("a.example"), &["h2"]);
}

#[test]
fn a_hello_with_large_key_shares_is_read_up_to_our_bound() {
    let sized = |bytes| message(Some(&[extension(51, &vec![5; bytes]), server_name(b"big.example")]));
    let rest = sized(0).len();
    let largest = sized(MAX_HELLO_BYTES - rest);
    assert_eq!(largest.len(), MAX_HELLO_BYTES);
    let bytes = records(&largest, 1 << 14);
    let read = Scanner::default().scan(&bytes).unwrap().expect("it is whole");
    assert_eq!(read.name(), Some("big.example"));
    let too_large = records(&sized(MAX_HELLO_BYTES - rest + 1), 1 << 14);
    // Known from its first bytes.
    assert_eq!(Scanner::default().scan(&too_large[..9]), Err(Refusal::TooLarge));
    assert_eq!(Refusal::TooLarge.alert(), Some(Alert::DecodeError));
    let in_crumbs = records(&largest, 1);
    assert_eq!(Scanner::default().scan(&in_crumbs[..MAX_WIRE_BYTES - 1]), Ok(None));
    assert_eq!(Scanner::default().scan(&in_crumbs[..MAX_WIRE_BYTES]), Err(Refusal::TooLarge));
}

#[test]
fn names_that_dns_could_not_have_are_refused() {
    let label = "x".repeat(63);
    let longest = format!("{label}.{label}.{label}.{}", "y".repeat(61));
    assert_eq!(longest.len(), 253);
    check(&hello(&[server_name(longest.as_bytes())]), Some(&longest), &[]);
    let too_long = format!("{label}.{label}.{label}.{}", "y".repeat(62));
    let long_label = format!("{label}x.example");
    let names = [
        "",
        ".",
        "a..b",
        ".a",
        "a b",
        "a/b",
        "a:443",
        "*.a",
        "a\0.example",
        "\u{e4}.example",
        "10.0.0.7",
        "[::1]",
        "7",
        &too_long,
        &long_label,
    ];
    for name in names {
        check_refused(&hello(&[server_name(name.as_bytes())]), Refusal::BadName);
    }
    check_refused(&hello(&[server_name(b"\xff\xfe")]), Refusal::BadName);
    assert_eq!(Refusal::BadName.alert().map(Alert::record), Some([21, 3, 3, 0, 2, 2, 47]));
}

#[test]
fn what_two_readers_could_understand_differently_is_refused() {
    let name = || server_name(b"a.example");
    let two_names = [&[0][..], &long(b"a.example"), &[0], &long(b"b.example")].concat();
    let malformed = [
        hello(&[name(), name()]),
        hello(&[alpn(&[b"h2"]), alpn(&[b"h2"])]),
        hello(&[extension(0, b"")]),
        hello(&[extension(0, &long(&two_names))]),
        hello(&[extension(0, &long(&[&[1][..], &long(b"a.example")].concat()))]),
        hello(&[extension(0, &[&long(&[&[0][..], &long(b"a")].concat())[..], b"x"].concat())]),
        hello(&[alpn(&[])]),
        hello(&[alpn(&[b"h2", b""])]),
        hello(&[extension(16, &[&long(b"\x02h2")[..], b"x"].concat())]),
        hello(&[extension(16, &long(b"\x03h2"))]),
        records(&[&[1, 0, 0, 2][..], &[3, 3]].concat(), 1 << 14),
        b"\x16\x03\x01\x00\x00\x01".to_vec(),
        b"\x16\x03\x01\x40\x01\x01".to_vec(),
    ];
    for bytes in malformed {
        check_refused(&bytes, Refusal::Malformed);
    }
    // Something behind the extensions.
    let mut longer = message(Some(&[name()]));
    longer.push(0);
    longer[3] += 1;
    check_refused(&records(&longer, 1 << 14), Refusal::Malformed);
}

#[test]
fn what_is_no_hello_is_refused_as_early_as_it_can_be_known() {
    for bytes in [&b"G"[..], b"\x80\x2e\x01", b"\x15", b"\x16\x02", b"\x16\x03\x05"] {
        check_refused(bytes, Refusal::NotTls);
    }
    assert_eq!(Refusal::NotTls.alert(), None);
    check_refused(b"\x16\x03\x01\x00\x04\x02", Refusal::NotHello);
    // An alert, or anything, between two records of it.
    let cut = records(&message(Some(&[])), 20);
    check_refused(&[&cut[..25], b"\x15"].concat(), Refusal::NotHello);
    for end in 0..cut.len() {
        assert_eq!(scan(&cut[..end]), Ok(None), "{end} bytes");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_read_the_same_at_once_and_one_by_one(bytes in vec(any::<u8>(), 0..300)) {
        let _ = scan(&bytes);
        let _ = scan(&[&[22, 3, 1][..], &bytes].concat());
        let _ = scan(&records(&[&[1, 0, 0, bytes.len() as u8][..], &bytes].concat(), 50));
    }

    #[test]
    fn a_changed_byte_is_refused_or_read_but_never_more(at in 0..500_usize, value in any::<u8>(), size in 1..300_usize) {
        let whole = message(Some(&[server_name(b"a.example"), alpn(&[b"h2", b"http/1.1"])]));
        let mut bytes = records(&whole, size);
        let at = at % bytes.len();
        bytes[at] = value;
        if let Ok(Some(hello)) = scan(&bytes) {
            prop_assert!(hello.name().is_none_or(|name| name.len() <= 9));
            prop_assert!(hello.protocols().map(<[u8]>::len).sum::<usize>() <= 11);
        }
    }
}
