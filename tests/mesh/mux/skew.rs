//! Peers of other releases and of other makes, and ways to a peer that a trunk does not go.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::message::{Reader, WithoutLength};
use ringmesh_tests::mux::{self, Frame, Peer, kind};
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{client_config_offering, connect, server_config};
use ringmesh_tests::{Client, Service, eventually, on_both_drivers, ports};
use rustls::{ServerConnection, StreamOwned};

use super::{Hop, Keys, accepted, far, near, opened};
use crate::support::{DOMAIN, identity, ringmesh};

/// Serves HTTP/1.1 by TLS, and takes these protocols of ALPN. What it agreed to is told.
fn http1(config: Arc<rustls::ServerConfig>, agreed: Arc<AtomicUsize>) -> Service {
    Service::sockets(move |socket| {
        let Ok(connection) = ServerConnection::new(config.clone()) else { return };
        let mut reader = Reader::new(StreamOwned::new(connection, socket));
        while let Ok(Some(head)) = reader.head() {
            agreed.fetch_add(usize::from(reader.stream.conn.alpn_protocol().is_some()), Ordering::Relaxed);
            let Ok(_request) = reader.rest_of(head, WithoutLength::Empty) else { return };
            if reader.stream.write_all(ok("as ever").as_bytes()).is_err() {
                return;
            }
        }
    })
}

#[test]
fn endpoints_that_know_nothing_of_channels_are_served_as_before() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        for protocols in [&[][..], &[b"http/1.1".as_slice()]] {
            let agreed = Arc::<AtomicUsize>::default();
            let service = http1(server_config(&authority.svid("app"), protocols), agreed.clone());
            let (here, front) = near(driver, &authority, "web", &[service.address()], Keys::default());
            let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(front)).collect();
            for _ in 0..3 {
                for client in &mut clients {
                    client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi");
                }
                clients.iter_mut().for_each(|client| assert_eq!(client.response().text(), "as ever"));
            }
            assert_eq!(agreed.load(Ordering::Relaxed), protocols.len() * 15);
            assert!((2..=5).contains(&opened(&here, "there")));
        }
        // One that takes HTTP/2 alone.
        let two = http2::tls_service(&authority.svid("app"), |_| Outgoing::ok("by two"));
        let keys = Keys { there: "protocol = \"http2\"\n", ..Keys::default() };
        let (here, front) = near(driver, &authority, "web", &[two.address()], keys);
        let mut client = Connection::connect(front);
        for _ in 0..10 {
            assert_eq!(client.get("app", "/").text(), "by two");
        }
        assert_eq!(opened(&here, "there"), 1);
    });
}

#[test]
fn one_that_does_not_share_calls_one_that_does_and_the_other_way_round() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let hop = Hop::to(driver, app.address(), Keys { there: "share_connections = false\n", ..Keys::default() });
        let (_sharing, front) = near(driver, &hop.authority, "other", &[hop.inbound], Keys::default());
        for _ in 0..10 {
            assert_eq!(Client::connect(hop.front).get("app", "/").text(), "hello");
            assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        }
        // An ordinary client of the mesh, by each version.
        let svid = hop.authority.svid("third");
        for protocols in [&[][..], &[b"http/1.1".as_slice()]] {
            let mut client = connect(hop.inbound, &client_config_offering(Some(&svid), protocols)).unwrap();
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        let by_two = client_config_offering(Some(&svid), &[b"h2"]);
        assert_eq!(Connection::connect_tls(hop.inbound, &by_two).unwrap().get("app", "/").text(), "hello");
    });
}

/// A server of a release to come: it says more in each frame than this one knows, and sends frames that this one skips.
#[test]
fn a_server_of_a_later_release_is_understood() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let config = server_config(&authority.svid("app"), &[b"ringmesh/2", mux::NAME]);
        let service = mux::server(config, |peer| {
            let mut greeting = Frame::new(kind::HELLO, 0, [&100_u32.to_be_bytes()[..], b"and more"].concat());
            greeting.flags = 0xff;
            peer.send(greeting.bytes())?;
            let later = [Frame::new(0x80, 0, vec![7; 256]).bytes(), Frame::new(0xff, 9, "x").bytes()].concat();
            let mut answered = 0;
            loop {
                let Some(frame) = peer.frame()? else { return Ok(()) };
                let channel = frame.channel;
                if frame.kind != kind::DATA || !peer.channels[&channel].bytes.ends_with(b"\r\n\r\n") {
                    continue;
                }
                if let Some(came) = peer.channels.get_mut(&channel) {
                    came.bytes.clear();
                }
                answered += 1;
                let mut data = Frame::new(kind::DATA, channel, ok("from later"));
                data.flags = 0xfe;
                let mut answer = [later.clone(), data.bytes(), later.clone()].concat();
                if answered % 10 == 0 {
                    answer.extend(Frame::new(kind::GOAWAY, 0, "because we say so").bytes());
                }
                peer.send(answer)?;
            }
        });
        let keys = Keys { workers: 1, ..Keys::default() };
        let (here, front) = near(driver, &authority, "web", &[service.address()], keys);
        let mut client = Client::connect(front);
        for _ in 0..35 {
            assert_eq!(client.get("app", "/").text(), "from later");
        }
        assert_eq!(opened(&here, "there"), 4, "each GOAWAY is obeyed");
        eventually("old ones end", || (service.open() <= 1).then_some(()));
    });
}

#[test]
fn a_client_of_a_later_release_is_understood() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (_there, inbound) = far(driver, &authority, app.address(), Keys::default());
        let config = client_config_offering(Some(&authority.svid("web")), &[b"ringmesh/2", mux::NAME, b"h2"]);
        let mut peer = Peer::connect(inbound, &config).unwrap();
        let mut greeting = Frame::new(kind::HELLO, 0, [&[0; 4][..], &[1; 200]].concat());
        greeting.flags = 0xaa;
        peer.send(greeting.bytes()).unwrap();
        for _ in 0..5 {
            let channel = peer.next_channel();
            let opening = Frame { flags: 0xf0, ..Frame::new(kind::OPEN, channel, "with what it is for") };
            let request =
                Frame { flags: 0xfe, ..Frame::new(kind::DATA, channel, "GET / HTTP/1.1\r\nHost: app\r\n\r\n") };
            let unknown = Frame::new(0xc0, channel, vec![1; 256]);
            peer.send([opening.bytes(), unknown.bytes(), request.bytes()].concat()).unwrap();
            assert_eq!(peer.answer(channel).unwrap().text(), "hello");
            let closing = Frame::new(kind::CLOSE, channel, "thanks");
            let resetting = Frame::new(kind::RESET, channel, [77, 1, 2]);
            peer.send(
                [closing.bytes(), resetting.bytes(), Frame::new(kind::PING, 0, "12345678 and on").bytes()].concat(),
            )
            .unwrap();
        }
        peer.until(|peer| (peer.pongs == 5).then_some(())).unwrap();
        peer.send(Frame::new(kind::GOAWAY, 0, "that was all").bytes()).unwrap();
        peer.until(|peer| peer.left.then_some(())).unwrap();
        assert!(peer.until_end().unwrap() < Duration::from_secs(10));
    });
}

// ---- listeners of other protocols ----

#[test]
fn strict_ports_for_opaque_bytes_serve_clients_of_any_alpn_and_of_none() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::conversing(|talk| {
            let said = talk.exactly(9)?;
            talk.send(format!("{} bytes", said.len()))
        });
        for protocol in ["tcp", "detect"] {
            let inbound = format!("protocol = \"{protocol}\"\n");
            let (there, inbound) =
                far(driver, &authority, app.address(), Keys { inbound: &inbound, ..Keys::default() });
            let svid = authority.svid("web");
            // Where it is found out, who offers a version of HTTP speaks it.
            let others: &[&[u8]] = if protocol == "tcp" { &[b"foo", b"h2", b"http/1.1"] } else { &[b"foo", b"bar"] };
            for offered in [&[][..], &[b"foo".as_slice()], others] {
                let mut client = connect(inbound, &client_config_offering(Some(&svid), offered)).unwrap();
                client.send(b"\x01\x02hello\r\n");
                assert_eq!(client.rest().unwrap(), b"9 bytes", "{protocol}, {offered:?}");
                assert_eq!(client.into_inner().conn.alpn_protocol(), None, "{offered:?}");
            }
            // As another library says it.
            svid.write(&there.folder().join("web"));
            for alpn in [&[][..], &["-alpn", "foo"], &["-alpn", "foo,ringmesh/0"]] {
                let said = by_openssl(inbound, &there.folder().join("web"), alpn);
                assert!(said.contains("9 bytes"), "{protocol}, {alpn:?}: {said}");
            }
            let (_here, front) =
                near(driver, &authority, "web", &[inbound], Keys { front: "protocol = \"tcp\"\n", ..Keys::default() });
            for _ in 0..10 {
                let mut client = Client::connect(front);
                client.send(b"\x01\x02hello\r\n").half_close();
                assert_eq!(client.rest().unwrap(), b"9 bytes", "{protocol}");
            }
            assert!(accepted(&there, "inbound") <= 8, "{protocol}: {}", accepted(&there, "inbound"));
        }
    });
}

/// What openssl is answered to nine bytes.
fn by_openssl(address: std::net::SocketAddr, svid: &std::path::Path, alpn: &[&str]) -> String {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-quiet", "-connect", &address.to_string()]).args(alpn);
    command.arg("-cert").arg(svid.join("svid.pem")).arg("-cert_chain").arg(svid.join("svid.pem"));
    command.arg("-key").arg(svid.join("svid.key"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("openssl is needed: apt-get install -y openssl");
    child.stdin.take().unwrap().write_all(b"\x01\x02hello\r\n").unwrap();
    let output = child.wait_with_output().unwrap();
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn what_a_channel_of_a_detecting_port_speaks_is_found_out_in_it() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            let first = talk.exactly(1)?;
            if first == b"G" {
                return talk.send(ok("a request"));
            }
            talk.send(b"bytes")
        });
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"inbound\"\nallow = [{ from = [\"web\"] }]\n";
        let keys =
            Keys { front: "protocol = \"tcp\"\n", inbound: "protocol = \"detect\"\n", app: policy, ..Keys::default() };
        let hop = Hop::to(driver, app.address(), keys);
        for _ in 0..5 {
            let mut client = Client::connect(hop.front);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().text(), "a request");
            let mut client = Client::connect(hop.front);
            client.send(b"\x01");
            assert_eq!(client.rest().unwrap(), b"bytes");
        }
        assert!(opened(&hop.here, "there") <= 2);
        hop.there.wait_for_metric("ringmesh_request_total", &[("listener", "inbound"), ("class", "2xx")], 5);
    });
}

#[test]
fn a_service_that_tells_of_each_client_has_a_connection_for_each() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let keys = Keys {
            there: "proxy_protocol = \"v2\"\n",
            inbound: "proxy_protocol = { from = [\"127.0.0.1\"] }\n",
            ..Keys::default()
        };
        let hop = Hop::to(driver, app.address(), keys);
        let mut clients: Vec<Client> = (0..5).map(|_| Client::connect(hop.front)).collect();
        for client in &mut clients {
            let own = client.socket().local_addr().unwrap().to_string();
            assert_eq!(client.get("app", "/").text(), "hello");
            assert_eq!(client.get("app", "/").text(), "hello");
            hop.there.wait_for_access("the request", |line| line["client"] == own.as_str());
        }
        assert_eq!(opened(&hop.here, "there"), 5);
    });
}

#[test]
fn the_client_that_a_proxy_header_names_in_front_of_a_trunk_is_that_of_all_its_channels() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let keys = Keys { inbound: "proxy_protocol = { from = [\"127.0.0.1\"] }\n", ..Keys::default() };
        let (there, inbound) = far(driver, &authority, app.address(), keys);
        let config = client_config_offering(Some(&authority.svid("web")), &[mux::NAME]);
        let mut socket = Client::connect(inbound).into_inner();
        socket.write_all(b"PROXY TCP4 192.0.2.7 198.51.100.1 56324 443\r\n").unwrap();
        let stream = ringmesh_tests::tls::over(socket, "ringmesh.invalid", &config).unwrap().into_inner();
        let mut peer = Peer::over_tls(stream).unwrap();
        peer.send(mux::hello(0)).unwrap();
        for path in ["/one", "/two"] {
            assert_eq!(peer.get(path).unwrap().text(), "hello");
            there.wait_for_access("it", |line| line["client"] == "192.0.2.7:56324" && line["path"] == path);
        }
    });
}

#[test]
fn trunks_go_through_unix_sockets() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let name = format!("@ringmesh-mux-{}-{driver}", std::process::id());
        let config = format!(
            "{}[[listener]]\nname = \"inbound\"\nbind = \"unix:{name}\"\nmtls = \"strict\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
            identity("app"),
            app.address()
        );
        let mut there = ringmesh(driver).config(config).prepare();
        authority.svid("app").write(&there.folder().join("svid"));
        there.run();
        let front = ports::free();
        let config = format!(
            "{}[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"there\"\n\
             [[service]]\nname = \"there\"\npeer = \"app\"\nendpoints = [\"unix:{name}\"]\n",
            identity("web")
        );
        let mut here = ringmesh(driver).config(config).prepare();
        authority.svid("web").write(&here.folder().join("svid"));
        here.run();
        for _ in 0..20 {
            assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        }
        assert!(opened(&here, "there") <= 2);
        let line = there.wait_for_access("of the request", |line| line["path"] == "/");
        assert!(line["client"].as_str().unwrap().starts_with("unix:pid="), "{line}");
    });
}
