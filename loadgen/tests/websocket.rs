//! WebSocket of both sides over real sockets, on every driver that this machine grants.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::{Certificates, on_every_driver, run, serve, serve_tls};
use ringmesh_loadgen::load;
use ringmesh_loadgen::report::Failure;
use ringmesh_loadgen::serve::{Http, Service};
use ringmesh_ring::net::Address;

fn messages(address: impl Into<Address>, bytes: u64, requests: u64) -> load::Settings {
    load::Settings {
        duration: None,
        requests: Some(requests),
        connections: 2,
        timeout: Duration::from_secs(20),
        ..load::Settings::websocket(address.into(), "shop", "/chat", bytes)
    }
}

#[test]
fn messages_of_all_sizes_come_back_plain_and_over_tls() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let plain = serve(grant, Service::WebSocket);
        let tls = serve_tls(grant, Service::WebSocket, certificates.server());
        for bytes in [0, 1, 125, 126, 65_535, 65_536, 200_000] {
            let over_tls = load::Settings { tls: Some(certificates.client()), ..messages(tls.address(), bytes, 20) };
            for settings in [messages(plain.address(), bytes, 20), over_tls] {
                let report = run(grant, settings);
                assert_eq!((report.total.succeeded, report.total.requests()), (20, 20), "{bytes}: {report}");
                assert_eq!(report.connections, 2, "{report}");
            }
        }
    });
}

#[test]
fn a_server_without_websocket_is_named_as_such() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        let report = run(grant, messages(server.address(), 10, 4));
        assert_eq!(report.total.failure(Failure::Upgrade), 4, "{report}");
        let why = report.explanations.keys().next().unwrap();
        assert!(why.contains("answers 200 instead of opening a WebSocket"), "{why}");
    });
}

/// The opening of RFC 6455 section 1.3 and its answer.
const OPENING: &[u8] =
    b"GET /chat HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const ACCEPT: &str = "sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    String::from_utf8(head).unwrap()
}

#[test]
fn the_echo_answers_the_examples_of_the_specification() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::WebSocket);
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(OPENING).unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains(ACCEPT), "{head}");
        let mut check = |sent: &[u8], expected: &[u8]| {
            stream.write_all(sent).unwrap();
            let mut answer = vec![0; expected.len()];
            stream.read_exact(&mut answer).unwrap();
            assert_eq!(answer, expected);
        };
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let hello = [0x7f, 0x9f, 0x4d, 0x51, 0x58];
        // A text, the same in two parts with a ping between them, and a close.
        check(&[&[0x81, 0x85][..], &mask, &hello].concat(), b"\x81\x05Hello");
        let parts = [
            &[&[0x01, 0x83][..], &mask, &hello[..3]].concat()[..],
            &[&[0x89, 0x85][..], &mask, &hello].concat(),
            &[&[0x80, 0x82][..], &mask, &[0x6c ^ 0x37, 0x6f ^ 0xfa]].concat(),
        ];
        check(&parts.concat(), b"\x01\x03Hel\x8a\x05Hello\x80\x02lo");
        check(&[&[0x88, 0x82][..], &mask, &[0x03 ^ 0x37, 0xe8 ^ 0xfa]].concat(), b"\x88\x02\x03\xe8");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "closed after its close");
        // Without a mask it is no frame of a client's.
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(OPENING).unwrap();
        read_head(&mut stream);
        stream.write_all(b"\x81\x05Hello").unwrap();
        assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    });
}

#[test]
fn a_client_answers_pings_and_counts_what_a_server_does_wrong() {
    let cases: [(&[u8], Option<Failure>); 6] = [
        (b"\x89\x02hi\x82\x01\x00", None),
        (b"\x02\x00\x80\x01\x00", None),
        (b"\x82\x01\x07", Some(Failure::WrongBody)),
        (b"\x82\x81\x00\x00\x00\x00\x00", Some(Failure::Malformed)),
        (b"\x88\x02\x03\xe8", Some(Failure::Cut)),
        (b"\x82", Some(Failure::Truncated)),
    ];
    on_every_driver(|grant| {
        for (answer, failure) in cases {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let head = read_head(&mut stream);
                assert!(head.contains("sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"), "{head}");
                stream.write_all(format!("HTTP/1.1 101 Switching\r\n{ACCEPT}\r\n").as_bytes()).unwrap();
                // One byte, masked.
                stream.read_exact(&mut [0; 7]).unwrap();
                stream.write_all(answer).unwrap();
                if answer[0] == 0x89 {
                    let mut pong = [0; 8];
                    stream.read_exact(&mut pong).unwrap();
                    assert_eq!(pong[..2], [0x8a, 0x82]);
                    assert_eq!([pong[6] ^ pong[2], pong[7] ^ pong[3]], *b"hi");
                }
            });
            let mut settings = messages(address, 1, 1);
            settings.connections = 1;
            let report = run(grant, settings);
            match failure {
                None => assert_eq!(report.total.succeeded, 1, "{answer:?}: {report}"),
                Some(failure) => assert_eq!(report.total.failure(failure), 1, "{answer:?}: {report}"),
            }
            server.join().unwrap();
        }
    });
}
