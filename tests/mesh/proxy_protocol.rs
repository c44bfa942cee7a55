//! The PROXY protocol: whose word is taken for who calls, and what endpoints are told.

use std::fs;
use std::io::{self, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::client::is_end;
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::client_config;
use ringmesh_tests::{Client, DEADLINE, Driver, Program, Proxy, Service, eventually, hold, on_both_drivers, ports};

use crate::support::{DOMAIN, caller, forwarding, pattern, ringmesh, strict};

/// Clients of the tests are proxies.
const FROM_LOOPBACK: &str = "proxy_protocol = { from = [\"127.0.0.1\"] }";

/// The client that headers name here.
const CLIENT: &str = "192.0.2.7:56324";

const LINE: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n";

const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

const ADDRESSES: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb];

/// A binary header.
fn binary(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap().to_be_bytes();
    [SIGNATURE, &[0x20 | command, family], &length, body].concat()
}

/// A binary header for the client, with these TLVs.
fn with(tlvs: &[u8]) -> Vec<u8> {
    binary(1, 0x11, &[&ADDRESSES[..], tlvs].concat())
}

fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
    [&[kind][..], &u16::try_from(value.len()).unwrap().to_be_bytes(), value].concat()
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n";

/// An HTTP port that takes headers from us, before a service.
fn http(driver: Driver, listener_keys: &str) -> (Proxy, SocketAddr, Service) {
    let app = Service::saying("hello");
    let front = ports::free();
    let config = forwarding(front, &[app.address()], &format!("{FROM_LOOPBACK}\n{listener_keys}"), "");
    (ringmesh(driver).config(config).start(), front, app)
}

/// A port for opaque bytes, before a service at this address.
fn opaque(front: SocketAddr, app: SocketAddr, listener_keys: &str, service_keys: &str) -> String {
    forwarding(front, &[app], &format!("protocol = \"tcp\"\n{listener_keys}"), service_keys)
}

/// Waits until a request, or an opaque connection, has been logged as this client's.
#[track_caller]
fn wait_for_client(proxy: &Proxy, client: &str) {
    proxy.wait_for_access(&format!("of {client}"), |line| line["client"] == client && line["reason"] == "ok");
}

#[track_caller]
fn wait_for_reason(proxy: &Proxy, reason: &str, count: u64) {
    proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", reason)], count);
}

// ---- in ----

#[test]
fn the_client_that_a_header_names_is_the_client_however_the_header_arrives() {
    on_both_drivers(|driver| {
        let (proxy, front, _app) = http(driver, "");
        let long = with(&[tlv(4, &[0; 3500]), tlv(2, b"shop.example")].concat());
        for (name, header) in [("line", LINE.to_vec()), ("binary", with(b"")), ("long", long)] {
            let mut together = Client::connect(front);
            assert_eq!(together.send([&header, GET].concat()).response().text(), "hello", "{name}");
            assert_eq!(together.get("app", "/again").text(), "hello", "{name}: one header is for all requests");
            let mut alone = Client::connect(front);
            alone.send(&header);
            hold(Duration::from_millis(30));
            assert_eq!(alone.get("app", "/").text(), "hello", "{name}: the request comes later");
            let mut pieces = Client::connect(front);
            for piece in [&header, GET].concat().chunks(header.len() / 20 + 1) {
                pieces.send(piece);
                hold(Duration::from_millis(1));
            }
            assert_eq!(pieces.response().text(), "hello", "{name} in pieces");
        }
        let clients = || proxy.access_log().iter().filter(|line| line["client"] == CLIENT).count();
        eventually("all are logged as the client's", || (clients() == 12).then_some(()));
        let mut six = Client::connect(front);
        six.send(b"PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n");
        assert_eq!(six.get("app", "/").text(), "hello");
        wait_for_client(&proxy, "[2001:db8::7]:40000");
        let mut unix = [0; 216];
        unix[..9].copy_from_slice(b"/run/peer");
        let mut client = Client::connect(front);
        client.send(binary(1, 0x31, &unix));
        assert_eq!(client.get("app", "/").text(), "hello");
        wait_for_client(&proxy, "unix:/run/peer");
        assert_eq!(proxy.access_log().len(), 14, "and nothing else is");
    });
}

#[test]
fn a_proxy_that_calls_for_itself_is_the_client() {
    on_both_drivers(|driver| {
        let (proxy, front, _app) = http(driver, "");
        for header in [
            binary(0, 0, b""),
            binary(0, 0x11, &ADDRESSES),
            binary(0, 0xee, b"whatever it is"),
            binary(1, 0, b""),
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ::1 ::1 1 2\r\n".to_vec(),
        ] {
            let mut client = Client::connect(front);
            let own = client.socket().local_addr().unwrap().to_string();
            assert_eq!(client.send(&header).get("app", "/").text(), "hello", "{header:?}");
            wait_for_client(&proxy, &own);
        }
    });
}

#[test]
fn opaque_bytes_behind_a_header_arrive_whole() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            let all = talk.rest()?;
            talk.send(all)
        });
        let front = ports::free();
        let proxy = ringmesh(driver).config(opaque(front, app.address(), FROM_LOOPBACK, "")).start();
        for bytes in [0, 1, 100_000] {
            let mut client = Client::connect(front);
            client.send([LINE, &pattern(bytes)].concat()).half_close();
            assert!(client.rest().unwrap() == pattern(bytes), "{bytes}");
        }
        wait_for_client(&proxy, CLIENT);
        // What comes behind the first header is the client's, whatever it is.
        let mut client = Client::connect(front);
        client.send([LINE, LINE].concat()).half_close();
        assert_eq!(client.rest().unwrap(), LINE);
    });
}

/// A proxy with a certificate for `shop.example`.
fn edge(driver: Driver, config: String) -> Proxy {
    let certificate = Authority::new(DOMAIN).server(&["shop.example"]);
    let mut proxy = ringmesh(driver).config(config).prepare();
    fs::write(proxy.folder().join("shop.pem"), &certificate.chain).unwrap();
    fs::write(proxy.folder().join("shop.key"), &certificate.key).unwrap();
    fs::set_permissions(proxy.folder().join("shop.key"), fs::Permissions::from_mode(0o600)).unwrap();
    proxy.run();
    proxy
}

/// A TLS connection to `shop.example` that sends `header` first.
fn tls_behind(front: SocketAddr, header: &[u8], protocols: &[&str]) -> Client<ringmesh_tests::tls::Stream> {
    let mut config = (*client_config(None)).clone();
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    let mut stream = Client::connect(front);
    stream.send(header);
    ringmesh_tests::tls::over(stream.into_inner(), "shop.example", &config.into()).unwrap()
}

#[test]
fn the_header_comes_before_tls_and_tells_endpoints_what_the_client_asked_for() {
    on_both_drivers(|driver| {
        let (tells, told) = mpsc::channel();
        let app = Service::conversing(move |talk| {
            let _ = tells.send(read_header(talk.socket()));
            while talk.request()?.is_some() {
                talk.send(ok("hello"))?;
            }
            Ok(())
        });
        let front = ports::free();
        let keys = format!("{FROM_LOOPBACK}\ntls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}");
        let proxy = edge(driver, forwarding(front, &[app.address()], &keys, "proxy_protocol = \"v2\""));
        let mut client = tls_behind(front, &with(&tlv(5, b"id-1")), &["http/1.0", "http/1.1"]);
        assert_eq!(client.get("shop.example", "/").text(), "hello");
        wait_for_client(&proxy, CLIENT);
        let handshakes = proxy.json("/handshakes");
        assert!(handshakes.to_string().contains(CLIENT), "{handshakes}");
        let header = told.recv_timeout(DEADLINE).unwrap().unwrap();
        let expected = with(&[tlv(1, b"http/1.1"), tlv(2, b"shop.example"), tlv(5, b"id-1")].concat());
        assert_eq!(without_checksum(&header), body(&expected), "{header:?}");
        // Without either, there is nothing to tell.
        let mut client = tls_behind(front, &with(&tlv(2, b"other.example")), &[]);
        assert_eq!(client.get("shop.example", "/").text(), "hello");
        let header = told.recv_timeout(DEADLINE).unwrap().unwrap();
        let expected = with(&tlv(2, b"shop.example"));
        assert_eq!(without_checksum(&header), body(&expected), "the own handshake is nearer: {header:?}");
    });
}

/// What a binary header says after its length.
fn body(header: &[u8]) -> &[u8] {
    &header[16..]
}

/// The same without the checksum at its end.
#[track_caller]
fn without_checksum(header: &[u8]) -> &[u8] {
    let (rest, checksum) = header.split_at(header.len() - 7);
    assert_eq!(checksum[..3], [3, 0, 4], "the last TLV is the checksum");
    body(rest)
}

/// Reads a header of either version as its length or its line end says, and not a byte more.
fn read_header(mut stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut header = vec![0; 6];
    stream.read_exact(&mut header)?;
    let mut more = |header: &mut Vec<u8>, count: usize| {
        let known = header.len();
        header.resize(known + count, 0);
        stream.read_exact(&mut header[known..])
    };
    if header[0] == b'P' {
        while !header.ends_with(b"\r\n") {
            more(&mut header, 1)?;
        }
    } else {
        more(&mut header, 10)?;
        let length = u16::from_be_bytes([header[14], header[15]]);
        more(&mut header, length.into())?;
    }
    Ok(header)
}

#[test]
fn a_proxy_without_a_valid_header_is_refused_and_its_neighbours_are_served() {
    on_both_drivers(|driver| {
        let (proxy, front, app) = http(driver, "");
        let mut neighbour = Client::connect(front);
        neighbour.send(LINE);
        let broken_sum = with(&tlv(3, &[1, 2, 3, 4]));
        let overrun = with(&[1, 0xff, 0xff, b'h', b'2']);
        let most = [SIGNATURE, &[0x21, 0x11, 0xff, 0xff]].concat();
        let short = binary(1, 0x11, &ADDRESSES[..4]);
        let line_after_107 = [b"PROXY UNKNOWN ".as_slice(), &[b'x'; 200]].concat();
        let cases: [(&[u8], &str); 12] = [
            (GET, "does not begin with a PROXY header"),
            (b"\x16\x03\x01\x02\x00", "does not begin with a PROXY header"),
            (b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\n", "does not end with CRLF"),
            (b"PROXY TCP5 192.0.2.7 198.51.100.1 56324 443\r\n", "neither TCP4, TCP6 nor UNKNOWN"),
            (b"PROXY TCP4 192.0.2.07 198.51.100.1 56324 443\r\n", "not one of the family"),
            (&line_after_107, "longer than 107 bytes"),
            (&broken_sum, "CRC32C does not match"),
            (&overrun, "TLV 0x01 is longer than what holds it"),
            (&most, "at most 4096"),
            (&short, "no room for the addresses"),
            (b"\r\n\r\n\0\r\nQUIT\n\x31\x11\0\x0c", "version is 3"),
            (b"\r\n\r\n\0\r\nQUIX", "does not begin with a PROXY header"),
        ];
        for (header, cause) in cases {
            let mut client = Client::connect(front);
            client.send(header);
            let own = client.socket().local_addr().unwrap().to_string();
            client.expect_end();
            proxy.wait_for_log(&["\"front\"", &own, "proxy_header", cause]);
            assert_eq!(neighbour.get("app", "/").text(), "hello");
        }
        wait_for_reason(&proxy, "proxy_header", cases.len() as u64);
        assert_eq!(app.requests().len(), cases.len(), "only the neighbour's came through");
        // One that ends in the middle, for which its length is truncated.
        let mut client = Client::connect(front);
        client.send(&broken_sum[..20]).half_close();
        client.expect_end();
        proxy.wait_for_log(&["ended after 20 bytes of a PROXY header"]);
        wait_for_reason(&proxy, "proxy_header", cases.len() as u64 + 1);
        // A look whether the port is open is no fault.
        drop(Client::connect(front));
        wait_for_reason(&proxy, "client_aborted", 1);
        assert!(!proxy.log().contains("before a PROXY header"));
    });
}

#[test]
fn a_header_that_does_not_come_whole_in_time_ends_its_connection() {
    on_both_drivers(|driver| {
        let (proxy, front, _app) = http(driver, "handshake_timeout = \"400ms\"");
        let begun = Instant::now();
        let mut silent = Client::connect(front);
        let mut half = Client::connect(front);
        half.send(&with(b"")[..20]);
        let mut slow = Client::connect(front);
        let slowly = std::thread::spawn(move || {
            // Never silent for long, and done only after several times the deadline.
            for byte in [&LINE[..LINE.len() - 2], &[b' '; 200]].concat() {
                hold(Duration::from_millis(40));
                if slow.try_send([byte]).is_err() {
                    return;
                }
            }
            panic!("a header may take as long as it likes");
        });
        silent.expect_end();
        half.expect_end();
        let waited = begun.elapsed();
        assert!(waited >= Duration::from_millis(390) && waited < DEADLINE / 2, "{waited:?}");
        slowly.join().unwrap();
        wait_for_reason(&proxy, "proxy_header_timeout", 3);
        proxy.wait_for_log(&["proxy_header_timeout", "20 bytes came"]);
        // In time, the deadline is gone with the header.
        let mut client = Client::connect(front);
        client.send(LINE);
        hold(Duration::from_millis(600));
        assert_eq!(client.get("app", "/").text(), "hello");
    });
}

#[test]
fn a_late_header_leaves_less_time_for_the_handshake() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let keys = "tls = { certificate = \"shop.pem\", key = \"shop.key\" }\nhandshake_timeout = \"1s\"";
        let _proxy = edge(driver, forwarding(front, &[app.address()], &format!("{FROM_LOOPBACK}\n{keys}"), ""));
        let (mut prompt, mut late) = (Client::connect(front), Client::connect(front));
        prompt.send(LINE);
        hold(Duration::from_millis(700));
        late.send(LINE);
        let ended = |error: Option<io::Error>| error.is_none_or(|error| is_end(&error));
        assert!(ended(prompt.rest().err()));
        // With a second of its own it would go on for 700 ms more.
        late.set_patience(Duration::from_millis(350));
        assert!(ended(late.rest().err()), "both had a second from accept");
    });
}

#[test]
fn a_header_from_elsewhere_is_never_believed() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let [refusing, serving] = [(); 2].map(|()| ports::free());
        let listener = |name: &str, bind: SocketAddr, others: &str| {
            format!(
                "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nservice = \"app\"\n\
                 proxy_protocol = {{ from = [\"10.0.0.0/8\", \"::1\"]{others} }}\n"
            )
        };
        let config = format!(
            "{}{}[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
            listener("refusing", refusing, ""),
            listener("serving", serving, ", others = \"serve\""),
            app.address()
        );
        let proxy = ringmesh(driver).config(config).start();
        for bytes in [GET, &[LINE, GET].concat(), b""] {
            // It may be refused before it has said anything, or sees that it is connected.
            let Ok(mut client) = Client::try_connect(refusing) else { continue };
            let _ = client.try_send(bytes);
            client.expect_end();
        }
        wait_for_reason(&proxy, "not_a_proxy", 3);
        proxy.wait_for_log(&["\"refusing\"", "127.0.0.1:", "not_a_proxy", "none of the networks"]);
        assert!(app.requests().is_empty());

        let mut client = Client::connect(serving);
        let own = client.socket().local_addr().unwrap().to_string();
        assert_eq!(client.get("app", "/").text(), "hello");
        wait_for_client(&proxy, &own);
        let mut client = Client::connect(serving);
        client.send([LINE, GET].concat());
        assert_eq!(client.response().status(), 400, "it is an ordinary client's bytes, and no HTTP");
        assert!(proxy.access_log().iter().all(|line| line["client"] != CLIENT));
    });
}

#[test]
fn an_edit_holds_for_connections_that_begin_after_it() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let plain = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(&plain).start();
        let mut before = Client::connect(front);
        assert_eq!(before.get("app", "/").text(), "hello");
        proxy.reconfigure(&forwarding(front, &[app.address()], FROM_LOOPBACK, ""));
        let mut after = Client::connect(front);
        after.send([LINE, GET].concat());
        assert_eq!(after.response().text(), "hello");
        assert_eq!(before.get("app", "/").text(), "hello");
        proxy.reconfigure(&plain);
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        assert_eq!(after.get("app", "/").text(), "hello");
    });
}

// ---- out ----

/// A service that tells each connection's header and answers with it.
fn telling(requests: bool) -> Service {
    Service::conversing(move |talk| {
        let header = read_header(talk.socket())?;
        if !requests {
            talk.send(header)?;
            return talk.rest().map(drop);
        }
        while talk.request()?.is_some() {
            talk.send(ok(&String::from_utf8_lossy(&header)))?;
        }
        Ok(())
    })
}

/// The line for a client's connection to `front`.
fn line_of(client: &Client, front: SocketAddr) -> String {
    let own = client.socket().local_addr().unwrap();
    format!("PROXY TCP4 {} {} {} {}\r\n", own.ip(), front.ip(), own.port(), front.port())
}

#[test]
fn an_endpoint_is_told_who_calls_before_the_first_byte() {
    on_both_drivers(|driver| {
        let app = telling(false);
        let [one, two, relayed] = [(); 3].map(|()| ports::free());
        let config = opaque(one, app.address(), "", "proxy_protocol = \"v1\"")
            + &opaque(two, app.address(), "", "proxy_protocol = \"v2\"")
                .replace("\"front\"", "\"two\"")
                .replace("\"app\"", "\"app2\"")
            + &format!(
                "[[listener]]\nname = \"relayed\"\nbind = \"{relayed}\"\nprotocol = \"tcp\"\nservice = \"app\"\n{FROM_LOOPBACK}\n"
            );
        let _proxy = ringmesh(driver).config(config).start();
        let mut client = Client::connect(one);
        let expected = line_of(&client, one);
        assert_eq!(client.exactly(expected.len()).unwrap(), expected.as_bytes());
        let mut client = Client::connect(two);
        let header = client.exactly(16 + 12 + 7).unwrap();
        let octets = |address: SocketAddr| match address {
            SocketAddr::V4(address) => address.ip().octets(),
            SocketAddr::V6(_) => panic!("{address}"),
        };
        let own = client.socket().local_addr().unwrap();
        let ports = [own.port().to_be_bytes(), two.port().to_be_bytes()].concat();
        assert_eq!(header[..16], [SIGNATURE, &[0x21, 0x11, 0, 19]].concat());
        assert_eq!(without_checksum(&header), [&octets(own)[..], &octets(two), &ports].concat());
        // Who calls is whom the proxy before us names, and not that proxy.
        let mut client = Client::connect(relayed);
        client.send(LINE);
        assert_eq!(client.exactly(LINE.len()).unwrap(), LINE);
        let mut client = Client::connect(relayed);
        client.send(b"PROXY UNKNOWN\r\n");
        let expected = line_of(&client, relayed);
        assert_eq!(client.exactly(expected.len()).unwrap(), expected.as_bytes(), "it calls for itself");
    });
}

#[test]
fn a_connection_for_one_client_carries_no_other_clients_requests() {
    on_both_drivers(|driver| {
        let app = telling(true);
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "proxy_protocol = \"v1\"\nmax_idle_per_endpoint = 3");
        // One worker, so that all share its unused connections.
        let proxy = ringmesh(driver).config(config).workers(1).start();
        let mut clients: Vec<Client> = (0..3).map(|_| Client::connect(front)).collect();
        for _ in 0..5 {
            for client in &mut clients {
                let expected = line_of(client, front);
                assert_eq!(client.get("app", "/").text(), expected);
            }
        }
        assert_eq!(app.accepted(), 3, "each client's next request finds its own connection again");
        // Those of clients that have gone make room.
        drop(clients);
        for _ in 0..10 {
            let mut client = Client::connect(front);
            let expected = line_of(&client, front);
            assert_eq!(client.get("app", "/").text(), expected);
            assert_eq!(client.get("app", "/").text(), expected);
        }
        assert_eq!(app.accepted(), 13);
        eventually("no more are kept than may be", || (app.open() <= 3).then_some(()));
        drop(proxy);
    });
}

#[test]
fn behind_the_mesh_the_header_comes_before_the_handshake() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let there = strict(driver, &authority, "there", app.address(), FROM_LOOPBACK, "");
        let (_here, front) =
            caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], "proxy_protocol = \"v2\"");
        let mut client = Client::connect(front);
        let own = client.socket().local_addr().unwrap().to_string();
        assert_eq!(client.get("there", "/").text(), "hello");
        let line = there.proxy.wait_for_access("the request", |line| line["client"] == own.as_str());
        assert_eq!(line["peer"], authority.id("here").as_str(), "and who the peer is, only its certificate says");
    });
}

// ---- beside others ----

#[test]
fn haproxy_and_nginx_are_believed_when_they_name_their_clients() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let [front, raw] = [(); 2].map(|()| ports::free());
        let config = forwarding(front, &[app.address()], FROM_LOOPBACK, "")
            + &format!(
                "[[listener]]\nname = \"raw\"\nbind = \"{raw}\"\nprotocol = \"tcp\"\nservice = \"app\"\n{FROM_LOOPBACK}\n"
            );
        let proxy = ringmesh(driver).config(config).start();
        let [one, two, all, six, nginx] = [(); 5].map(|()| ports::free());
        let listen = |name: &str, mode: &str, bind: &str, server: &str| {
            format!("listen {name}\n  mode {mode}\n  bind {bind}\n  server s {server}\n")
        };
        let _haproxy = Program::haproxy(
            one,
            &[
                listen("one", "http", &one.to_string(), &format!("{front} send-proxy")),
                listen("two", "tcp", &two.to_string(), &format!("{raw} send-proxy-v2")),
                listen(
                    "all",
                    "http",
                    &all.to_string(),
                    &format!("{front} send-proxy-v2 proxy-v2-options crc32c,unique-id,authority check check-send-proxy inter 50ms"),
                ),
                listen("six", "http", &format!("[::1]:{}", six.port()), &format!("{front} send-proxy-v2")),
            ]
            .concat(),
        );
        let _nginx = Program::nginx(
            nginx,
            &format!("stream {{ server {{ listen {nginx}; proxy_pass {front}; proxy_protocol on; }} }}"),
        );
        let six = SocketAddr::new(std::net::Ipv6Addr::LOCALHOST.into(), six.port());
        for (name, through) in [("v1", one), ("v2 tcp", two), ("v2 with TLVs", all), ("v6", six), ("nginx", nginx)] {
            let mut client = Client::connect(through);
            let own = client.socket().local_addr().unwrap().to_string();
            assert_eq!(client.get("app", "/").text(), "hello", "{name}");
            drop(client);
            wait_for_client(&proxy, &own);
        }
        let metrics = proxy.metrics();
        for reason in ["proxy_header", "proxy_header_timeout"] {
            let refused = metrics.sum("ringmesh_listener_connections_outcome_total", &[("reason", reason)]);
            assert_eq!(refused, 0, "{reason}: checks are welcome");
        }
    });
}

#[test]
fn haproxy_and_nginx_understand_whom_they_are_told() {
    on_both_drivers(|driver| {
        let [haproxy, nginx, one, two, three] = [(); 5].map(|()| ports::free());
        let _haproxy = Program::haproxy(
            haproxy,
            &format!(
                "frontend f\n  mode http\n  bind {haproxy} accept-proxy\n  \
                 http-request return status 200 content-type text/plain lf-string \"%[src] %[src_port] %[dst] %[dst_port]\"\n"
            ),
        );
        let _nginx = Program::nginx_http(
            nginx,
            &format!(
                "server {{ listen {nginx} proxy_protocol;\n\
                 location / {{ return 200 '$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port'; }} }}"
            ),
        );
        let way = |name: &str, front: SocketAddr, to: SocketAddr, version: &str| {
            forwarding(front, &[to], "", &format!("proxy_protocol = \"{version}\""))
                .replace("\"front\"", &format!("\"{name}\""))
                .replace("\"app\"", &format!("\"to-{name}\""))
        };
        let config =
            way("one", one, haproxy, "v1") + &way("two", two, haproxy, "v2") + &way("three", three, nginx, "v2");
        let _proxy = ringmesh(driver).config(config).start();
        for front in [one, two, three] {
            for _ in 0..2 {
                let mut client = Client::connect(front);
                let own = client.socket().local_addr().unwrap();
                let expected = format!("{} {} {} {}", own.ip(), own.port(), front.ip(), front.port());
                for _ in 0..2 {
                    assert_eq!(client.get("app", "/").text(), expected);
                }
            }
        }
    });
}

#[test]
fn peers_that_send_headers_and_vanish_leave_nothing() {
    on_both_drivers(|driver| {
        let (proxy, front, _app) = http(driver, "handshake_timeout = \"300ms\"");
        let pid = proxy.dataplane_pid();
        assert_eq!(Client::connect(front).send(LINE).get("app", "/").text(), "hello");
        let before = ringmesh_tests::process::descriptors(pid);
        for number in 0..200_usize {
            let mut client = Client::connect(front);
            let _ = client.try_send(&LINE[..number % LINE.len()]);
            if number % 2 == 0 {
                client.reset();
            }
        }
        eventually("all are closed", || (ringmesh_tests::process::descriptors(pid) <= before + 2).then_some(()));
        let mut client = Client::connect(front);
        assert_eq!(client.send(LINE).get("app", "/").text(), "hello");
    });
}
