//! Tunnels where at least one side speaks HTTP/2: WebSocket and other protocols by extended CONNECT (RFC 8441), and CONNECT
//! (RFC 9113 section 8.5).

use std::borrow::BorrowMut;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Ended, Ends, Manners, Outgoing, code, setting};
use ringmesh_tests::process::proportional_set_size;
use ringmesh_tests::service::{Talk, ok};
use ringmesh_tests::{
    Client, DEADLINE, Driver, Head, Proxy, Service, eventually, hold, on_both_drivers, on_both_drivers_at_once, ports,
    websocket,
};
use rustix::process::Signal;

use super::{assert_reason, proxy_by_http2};
use crate::mux::{Hop, Keys, opened};
use crate::support::{DOMAIN, Program, caller, forwarding, pattern, proxy_to, ringmesh, strict};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

use Version::{One, Two};

const PAIRINGS: [(Version, Version); 4] = [(One, One), (One, Two), (Two, One), (Two, Two)];

/// Those of which at least one side is a stream.
const OURS: [(Version, Version); 3] = [(One, Two), (Two, One), (Two, Two)];

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

const OFFERS: [(u16, u32); 1] = [(setting::ENABLE_CONNECT_PROTOCOL, 1)];

// ---- both ends of a tunnel ----

/// One end.
trait End {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()>;
    fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>>;
    /// All until the other side ends; an error if it ends by a reset.
    fn rest(&mut self) -> io::Result<Vec<u8>>;
    fn end(&mut self) -> io::Result<()>;
    fn reset(&mut self) -> io::Result<()>;
}

/// A stream.
struct Stream<C> {
    connection: C,
    id: u32,
    came: Vec<u8>,
}

impl<C: BorrowMut<Connection>> Stream<C> {
    fn new(connection: C, id: u32) -> Self {
        Self { connection, id, came: Vec::new() }
    }

    /// False: the other side has ended.
    fn more(&mut self) -> io::Result<bool> {
        let bytes = self.connection.borrow_mut().take(self.id, 1)?;
        if bytes.is_empty() && self.connection.borrow().stream(self.id).reset.is_some() {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        self.came.extend_from_slice(&bytes);
        Ok(!bytes.is_empty())
    }
}

impl<C: BorrowMut<Connection>> End for Stream<C> {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.connection.borrow_mut().send_data(self.id, bytes, Ends::No)
    }

    fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.came.len() < count {
            if !self.more()? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.came.drain(..count).collect())
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        while self.more()? {}
        Ok(std::mem::take(&mut self.came))
    }

    fn end(&mut self) -> io::Result<()> {
        self.connection.borrow_mut().send_data(self.id, b"", Ends::Yes)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.connection.borrow_mut().reset(self.id, code::CANCEL)
    }
}

impl End for Client {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.try_send(bytes)
    }

    fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        Client::exactly(self, count)
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        Client::rest(self)
    }

    fn end(&mut self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    fn reset(&mut self) -> io::Result<()> {
        ringmesh_tests::client::reset(self.socket().try_clone()?);
        Ok(())
    }
}

impl End for &mut Talk {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        Talk::send(self, bytes)
    }

    fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        Talk::exactly(self, count)
    }

    fn rest(&mut self) -> io::Result<Vec<u8>> {
        Talk::rest(self)
    }

    fn end(&mut self) -> io::Result<()> {
        self.socket().shutdown(Shutdown::Write)
    }

    fn reset(&mut self) -> io::Result<()> {
        ringmesh_tests::client::reset(self.socket().try_clone()?);
        Ok(())
    }
}

/// A service that agrees to every tunnel, tells what it was asked, and leaves both to `talk`.
fn agreeing(
    version: Version,
    talk: impl Fn(&mut dyn End, &str) -> io::Result<()> + Send + Sync + 'static,
) -> (Service, mpsc::Receiver<Head>) {
    let (tells, told) = mpsc::channel();
    let service = match version {
        One => Service::conversing(move |conversation| {
            let request = conversation.request()?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let path = request.head.request().1.to_owned();
            let accept = websocket::accept(request.field("sec-websocket-key").unwrap_or_default());
            let protocol = request.field("upgrade").unwrap_or_default().to_owned();
            let _ = tells.send(request.head);
            conversation.send(format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: {protocol}\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
            ))?;
            talk(&mut &mut *conversation, &path)
        }),
        Two => http2::conversing(&OFFERS, move |connection| {
            while let Some((stream, head)) = connection.next_head()? {
                let path = head.field(":path").unwrap_or_default().to_owned();
                let _ = tells.send(head);
                let answer = [(":status", "200"), ("sec-websocket-protocol", "chat")];
                connection.send_fields(stream, &answer, Ends::No)?;
                // One that ends in another way than it should is noticed by the test.
                let _ = talk(&mut Stream::new(&mut *connection, stream), &path);
            }
            Ok(())
        }),
    };
    (service, told)
}

/// What comes goes back, to the end.
fn echo(end: &mut dyn End, _path: &str) -> io::Result<()> {
    loop {
        match end.exactly(1) {
            Ok(byte) => end.send(&byte)?,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return end.end(),
            Err(error) => return Err(error),
        }
    }
}

/// Asks for a tunnel, and gives the answer's head with the client's end.
fn ask(version: Version, front: SocketAddr, path: &str, protocol: &str) -> (Head, Box<dyn End>) {
    match version {
        One => {
            let mut client = Client::connect(front);
            client.send(upgrade(path, protocol));
            let head = client.head();
            (head, Box::new(client))
        }
        Two => {
            let mut client = Connection::connect(front);
            let stream = client.open(&extended(path, protocol), Ends::No);
            let head = client.head(stream);
            (head, Box::new(Stream::new(client, stream)))
        }
    }
}

/// The head of an Upgrade.
fn upgrade(path: &str, protocol: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, other\r\n\r\n"
    )
}

/// The head of an extended CONNECT.
fn extended<'a>(path: &'a str, protocol: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", path),
        (":authority", "app"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-protocol", "chat, other"),
    ]
}

fn keys(version: Version) -> &'static str {
    if version == Two { "protocol = \"http2\"\n" } else { "" }
}

/// The proxies between a client and a service.
struct Route {
    front: SocketAddr,
    proxies: Vec<Proxy>,
}

/// A way through one proxy, or through two with HTTP/2 and mutual TLS between them, to a service of that version.
fn routes(driver: Driver, service: &Service, version: Version) -> [Route; 2] {
    let front = ports::free();
    let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys(version))).start();
    let authority = Authority::new(DOMAIN);
    let there = strict(driver, &authority, "there", service.address(), "", keys(version));
    let (here, outbound) = caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], keys(Two));
    [Route { front, proxies: vec![proxy] }, Route { front: outbound, proxies: vec![here, there.proxy] }]
}

#[track_caller]
fn assert_agreed(version: Version, head: &Head) {
    let (status, accept) = match version {
        One => (101, Some(websocket::accept(KEY))),
        Two => (200, None),
    };
    let told = head.field(":status").map_or_else(|| head.status(), |status| status.parse().unwrap());
    assert_eq!(told, status, "{head:?}");
    assert_eq!(head.field("sec-websocket-accept"), accept.as_deref(), "{head:?}");
    assert_eq!(head.field("sec-websocket-protocol"), Some("chat"), "{head:?}");
    let upgrade = (version == One).then_some(("websocket", "Upgrade"));
    assert_eq!(head.field("upgrade").zip(head.field("connection")), upgrade, "{head:?}");
}

// ---- what both ends see ----

#[test]
fn a_web_socket_goes_through_in_every_pairing_of_versions() {
    on_both_drivers(|driver| {
        for (client, version) in PAIRINGS {
            let (service, asked) = agreeing(version, echo);
            for route in routes(driver, &service, version) {
                let (head, mut end) = ask(client, route.front, "/chat?room=1", "websocket");
                assert_agreed(client, &head);
                let asked = asked.recv_timeout(DEADLINE).unwrap();
                match version {
                    One => {
                        assert_eq!(asked.request(), ("GET", "/chat?room=1"));
                        let named = (asked.field("upgrade"), asked.field("connection"), asked.field("host"));
                        assert_eq!(named, (Some("websocket"), Some("Upgrade"), Some("app")));
                        let key = asked.field("sec-websocket-key").unwrap();
                        assert!(key.len() == 24 && key.ends_with("=="), "{key}");
                    }
                    Two => {
                        for (name, value) in [
                            (":method", "CONNECT"),
                            (":protocol", "websocket"),
                            (":path", "/chat?room=1"),
                            (":authority", "app"),
                        ] {
                            assert_eq!(asked.field(name), Some(value), "{asked:?}");
                        }
                        assert_eq!(asked.field("sec-websocket-key"), None);
                    }
                }
                assert_eq!(asked.field("sec-websocket-version"), Some("13"));
                assert_eq!(asked.field("sec-websocket-protocol"), Some("chat, other"));
                for number in 0..100_u32 {
                    end.send(&number.to_be_bytes()).unwrap();
                    assert_eq!(end.exactly(4).unwrap(), number.to_be_bytes());
                }
                end.end().unwrap();
                assert!(end.rest().unwrap().is_empty());
                for proxy in &route.proxies {
                    let line = proxy.wait_for_access("the tunnel", |line| line["path"] == "/chat");
                    assert_eq!((&line["reason"], &line["method"]), (&"ok".into(), &"GET".into()), "{line}");
                    let bytes = (line["request_bytes"].as_u64(), line["response_bytes"].as_u64());
                    assert_eq!(bytes, (Some(400), Some(400)), "{client:?} {version:?}: {line}");
                    proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], 1);
                }
            }
        }
    });
}

#[test]
fn each_side_may_end_first_while_the_other_goes_on() {
    const BYTES: usize = 1_000_000;
    on_both_drivers(|driver| {
        for (client, version) in OURS {
            let (tells, told) = mpsc::channel();
            let (service, _asked) = agreeing(version, move |end, path| {
                if path == "/first" {
                    end.send(&pattern(BYTES))?;
                    end.end()?;
                    let _ = tells.send(end.rest()?.len());
                    return Ok(());
                }
                let bytes = end.rest()?.len();
                end.send(format!("{bytes} bytes came").as_bytes())?;
                end.end()
            });
            for route in routes(driver, &service, version) {
                let what = format!("{client:?} {version:?}, {} proxies", route.proxies.len());
                let (_, mut end) = ask(client, route.front, "/last", "websocket");
                end.send(&pattern(BYTES)).unwrap();
                end.end().unwrap();
                assert_eq!(end.rest().unwrap(), format!("{BYTES} bytes came").as_bytes(), "{what}");

                let (_, mut end) = ask(client, route.front, "/first", "websocket");
                assert!(end.rest().unwrap() == pattern(BYTES), "{what}: the service has ended first");
                end.send(&pattern(BYTES)).unwrap();
                end.end().unwrap();
                assert_eq!(told.recv_timeout(DEADLINE).unwrap(), BYTES, "{what}");
                for proxy in &route.proxies {
                    proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], 2);
                }
            }
        }
    });
}

#[test]
fn a_reset_on_one_side_is_one_on_the_other() {
    on_both_drivers(|driver| {
        for (client, version) in OURS {
            let (tells, told) = mpsc::channel();
            let (service, _asked) = agreeing(version, move |end, path| {
                end.exactly(1)?;
                if path == "/reset" {
                    return end.reset();
                }
                end.send(b"y")?;
                let _ = tells.send(end.rest().map(drop));
                Ok(())
            });
            for route in routes(driver, &service, version) {
                let what = format!("{client:?} {version:?}, {} proxies", route.proxies.len());
                let (_, mut end) = ask(client, route.front, "/chat", "websocket");
                end.send(b"x").unwrap();
                assert_eq!(end.exactly(1).unwrap(), b"y");
                end.reset().unwrap();
                // The socket is ours until it is dropped.
                let mut kept = (client == Two).then_some(end);
                let ended = told.recv_timeout(DEADLINE).expect("the service learns of it");
                let ended = ended.expect_err("no orderly end");
                assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset, "{what}");
                route.proxies[0].wait_for_access("the client's doing", |line| line["reason"] == "client_aborted");
                drop(kept.take());

                let (_, mut end) = ask(client, route.front, "/reset", "websocket");
                end.send(b"x").unwrap();
                let ended = end.rest().expect_err("no orderly end");
                assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset, "{what}");
                let last = route.proxies.last().unwrap();
                last.wait_for_access("the service's doing", |line| line["reason"] == "upstream_reset");
            }
        }
    });
}

#[test]
fn a_client_of_http_2_is_told_of_a_broken_tunnel_by_cancel_and_its_connection_goes_on() {
    on_both_drivers(|driver| {
        let (service, _asked) = agreeing(One, |end, _| {
            end.exactly(1)?;
            end.reset()
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect(front);
        for _ in 0..3 {
            let stream = client.open(&extended("/chat", "websocket"), Ends::No);
            client.head(stream);
            client.send_data(stream, b"x", Ends::No).unwrap();
            assert_eq!(client.ended(stream).unwrap(), Ended::Reset(code::CANCEL));
        }
        client.ping().unwrap();
    });
}

#[test]
fn bytes_that_come_together_with_the_heads_are_the_first_of_the_tunnel() {
    on_both_drivers(|driver| {
        for (client, version) in OURS {
            let (service, _asked) = match version {
                // In one piece with the head.
                One => {
                    let service = Service::conversing(|talk| {
                        let request = talk.request()?.unwrap();
                        let accept = websocket::accept(request.field("sec-websocket-key").unwrap());
                        let head = format!(
                            "HTTP/1.1 101 Fine\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                             Sec-WebSocket-Accept: {accept}\r\n\r\n"
                        );
                        talk.send([head.as_bytes(), &pattern(60_000)].concat())?;
                        echo(&mut &mut *talk, "")
                    });
                    (service, mpsc::channel().1)
                }
                Two => agreeing(Two, |end, path| {
                    end.send(&pattern(60_000))?;
                    echo(end, path)
                }),
            };
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys(version))).start();
            let early = b"GET /hidden HTTP/1.1\r\n\r\n";
            let mut end: Box<dyn End> = match client {
                One => {
                    let mut client = Client::connect(front);
                    let head = format!(
                        "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\
                         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
                    );
                    client.send([head.as_bytes(), early].concat());
                    assert_eq!(client.head().status(), 101);
                    Box::new(client)
                }
                Two => {
                    let mut client = Connection::connect(front);
                    let stream = client.open(&extended("/chat", "websocket"), Ends::No);
                    client.send_data(stream, early, Ends::No).unwrap();
                    client.head(stream);
                    Box::new(Stream::new(client, stream))
                }
            };
            assert!(end.exactly(60_000).unwrap() == pattern(60_000));
            assert_eq!(end.exactly(early.len()).unwrap(), early);
            end.send(b"more").unwrap();
            assert_eq!(end.exactly(4).unwrap(), b"more");
        }
    });
}

// ---- what is refused ----

#[test]
fn only_protocols_that_the_listener_allows_are_tunnels() {
    on_both_drivers(|driver| {
        let (service, asked) = agreeing(One, echo);
        let status = |keys: &str, protocol: &str| {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], keys, "")).start();
            let mut client = Connection::connect(front);
            let stream = client.open(&extended("/chat", protocol), Ends::No);
            let status = client.head(stream).field(":status").unwrap().to_owned();
            if status == "501" {
                let answer = client.response(stream);
                assert_reason(&answer, 501, "not_implemented");
            }
            status
        };
        assert_eq!(status("", "websocket"), "200");
        assert_eq!(asked.recv_timeout(DEADLINE).unwrap().field("upgrade"), Some("websocket"));
        assert_eq!(status("", "connect-udp"), "501");
        assert_eq!(status("upgrade = [\"irc/6.9\"]", "websocket"), "501");
        assert!(asked.try_recv().is_err(), "the service is not asked for what is refused");
        assert_eq!(status("upgrade = [\"irc/6.9\"]", "irc/6.9"), "200");
        let asked = asked.recv_timeout(DEADLINE).unwrap();
        assert_eq!((asked.field("upgrade"), asked.field("sec-websocket-key")), (Some("irc/6.9"), None));

        let front = ports::free();
        let config = forwarding(front, &[service.address()], "upgrade = \"off\"", "");
        let _proxy = ringmesh(driver).config(config).start();
        let mut client = Connection::connect(front);
        client.ping().unwrap();
        assert_eq!(client.settings.get(&setting::ENABLE_CONNECT_PROTOCOL), None, "nothing is offered");
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        assert_eq!(client.ended(stream).unwrap(), Ended::Reset(code::PROTOCOL_ERROR));
    });
}

#[test]
fn an_extended_connect_that_breaks_the_rules_is_refused_and_others_go_on() {
    on_both_drivers(|driver| {
        let (service, _asked) = agreeing(One, echo);
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect(front);
        client.ping().unwrap();
        assert_eq!(client.settings.get(&setting::ENABLE_CONNECT_PROTOCOL), Some(&1), "it is offered");
        let good = extended("/chat", "websocket");
        let but = |name: &str, value: Option<&'static str>| -> Vec<(&str, &str)> {
            let changed = good.iter().filter_map(|(known, old)| match *known == name {
                true => value.map(|value| (*known, value)),
                false => Some((*known, *old)),
            });
            changed.collect()
        };
        let and = |name, value| [&good[..], &[(name, value)]].concat();
        for bad in [
            but(":path", None),
            but(":scheme", None),
            but(":authority", None),
            but(":path", Some("chat")),
            but(":authority", Some("user@app")),
            and("content-length", "0"),
            and("content-length", "5"),
            and("expect", "100-continue"),
            and("host", "other"),
            and("connection", "upgrade"),
            and("upgrade", "websocket"),
        ] {
            let stream = client.open(&bad, Ends::No);
            super::assert_refused(&mut client, stream, code::PROTOCOL_ERROR, &[400], &format!("{bad:?}"));
        }
        let stream = client.open(&good, Ends::No);
        assert_eq!(client.head(stream).field(":status"), Some("200"));
        assert_eq!(service.requests().len(), 1, "none of the others came through");
        // Trailers have no place in a tunnel.
        client.send_fields(stream, &[("x-end", "yes")], Ends::Yes).unwrap();
        assert_eq!(client.ended(stream).unwrap(), Ended::Reset(code::CANCEL));
    });
}

#[test]
fn an_endpoint_of_http_2_that_announces_no_tunnels_gets_none_and_the_client_is_told() {
    on_both_drivers(|driver| {
        let service = http2::service(|_| Outgoing::ok("hello"));
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "upgrade = [\"websocket\", \"irc\"]", "");
        let mut two = Connection::connect(front);
        let stream = two.open(&extended("/chat", "websocket"), Ends::No);
        assert_reason(&two.response(stream), 502, "upgrade_unsupported");
        assert_eq!(two.get("app", "/").text(), "hello");
        let mut one = Client::connect(front);
        let asks = |protocol: &str, key: &str| {
            format!("GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{key}\r\n")
        };
        let key = format!("Sec-WebSocket-Key: {KEY}\r\n");
        assert_reason(&one.send(asks("websocket", &key)).response(), 502, "upgrade_unsupported");
        // Nobody who asks like this waits for a WebSocket, and an Upgrade may be passed over (RFC 9110 section 7.8).
        for request in [asks("irc", ""), asks("websocket", ""), asks("websocket", "Sec-WebSocket-Key: short\r\n")] {
            assert_eq!(one.send(request).response().text(), "hello");
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "upgrade_unsupported")], 2);
    });
}

#[test]
fn an_endpoint_may_say_that_it_takes_tunnels_in_settings_that_come_late() {
    on_both_drivers(|driver| {
        for client in [One, Two] {
            let service = Service::sockets(|stream| {
                // The preface is answered only once a request could long have come.
                hold(Duration::from_millis(300));
                let Ok(mut connection) = Connection::server(stream, &OFFERS) else { return };
                while let Ok(Some((stream, _))) = connection.next_head() {
                    let _ = connection.send_fields(stream, &[(":status", "204")], Ends::No);
                    let _ = echo(&mut Stream::new(&mut connection, stream), "");
                }
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            for _ in 0..2 {
                let (head, mut end) = ask(client, front, "/chat", "websocket");
                let status = head.field(":status").map_or_else(|| head.status(), |status| status.parse().unwrap());
                assert_eq!(status, if client == One { 101 } else { 200 });
                end.send(b"x").unwrap();
                assert_eq!(end.exactly(1).unwrap(), b"x");
            }
        }
        let silent = ringmesh_tests::peers::hanging_server();
        let (_proxy, front) = proxy_by_http2(driver, &[silent.address()], "idle_timeout = \"300ms\"", "");
        let mut two = Connection::connect(front);
        let stream = two.open(&extended("/chat", "websocket"), Ends::No);
        assert_reason(&two.response(stream), 504, "upstream_silent");
    });
}

#[test]
fn an_answer_of_http_1_that_is_no_101_never_looks_like_a_tunnel() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            while let Some(request) = talk.request()? {
                let right = websocket::accept(request.field("sec-websocket-key").unwrap_or_default());
                let switch = |protocol: &str, more: &str| {
                    format!("HTTP/1.1 101 Fine\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n{more}\r\nhello")
                };
                let accept = format!("Sec-WebSocket-Accept: {right}\r\n");
                let answer = match request.head.request().1 {
                    "/ok" => ok("a page"),
                    "/empty" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
                    "/no" => "HTTP/1.1 403 No\r\nContent-Length: 6\r\nX-Why: so\r\n\r\nnot so".to_owned(),
                    "/wanted" => {
                        "HTTP/1.1 426 No\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n"
                            .to_owned()
                    }
                    "/right" => switch("WebSocket", &accept),
                    "/none" => switch("websocket", ""),
                    "/wrong" => switch("websocket", "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"),
                    "/twice" => switch("websocket", &accept.repeat(2)),
                    _ => switch("h2c", &accept),
                };
                talk.send(answer)?;
            }
            Ok(())
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect(front);
        for (path, reason) in [
            ("/ok", "upgrade_unsupported"),
            ("/empty", "upgrade_unsupported"),
            ("/none", "upstream_garbage"),
            ("/wrong", "upstream_garbage"),
            ("/twice", "upstream_garbage"),
            ("/another", "upstream_garbage"),
        ] {
            let stream = client.open(&extended(path, "websocket"), Ends::No);
            assert_reason(&client.response(stream), 502, reason);
        }
        for (path, status, text) in [("/no", 403, "not so"), ("/wanted", 426, "")] {
            let stream = client.open(&extended(path, "websocket"), Ends::No);
            let answer = client.response(stream);
            assert_eq!((answer.status(), answer.text().as_str()), (status, text));
        }
        let stream = client.open(&extended("/right", "websocket"), Ends::No);
        assert_eq!(client.head(stream).field(":status"), Some("200"));
        assert_eq!(client.take(stream, 5).unwrap(), b"hello");
    });
}

#[test]
fn a_refusal_by_an_endpoint_of_http_2_is_an_ordinary_response() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&OFFERS, |talk| {
            while let Some((stream, head)) = talk.next_head()? {
                let is_tunnel = head.field(":protocol").is_some();
                let answer = Outgoing::status(if is_tunnel { 403 } else { 200 }).with("x-why", "so").body("not so");
                talk.send_message(stream, &answer)?;
            }
            Ok(())
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut one = Client::connect(front);
        for _ in 0..2 {
            one.send(format!(
                "GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: {KEY}\r\n\r\n"
            ));
            let answer = one.response();
            assert_eq!((answer.status(), answer.text().as_str(), answer.field("x-why")), (403, "not so", Some("so")));
            assert_eq!(one.get("app", "/").status(), 200, "the connection goes on");
        }
        let mut two = Connection::connect(front);
        let stream = two.open(&extended("/chat", "websocket"), Ends::No);
        let answer = two.response(stream);
        assert_eq!((answer.status(), answer.text().as_str(), answer.field("x-why")), (403, "not so", Some("so")));
    });
}

#[test]
fn a_refusal_names_the_hop_once() {
    on_both_drivers(|driver| {
        let one = Service::conversing(|talk| {
            while talk.request()?.is_some() {
                talk.send("HTTP/1.1 403 No\r\nContent-Length: 6\r\nVia: 1.0 cache\r\n\r\nnot so")?;
            }
            Ok(())
        });
        let two = http2::conversing(&OFFERS, |talk| {
            while let Some((stream, _)) = talk.next_head()? {
                talk.send_message(stream, &Outgoing::status(403).with("via", "1.0 cache").body("not so"))?;
            }
            Ok(())
        });
        for (service, version, expected) in [(&one, One, "1.0 cache, 1.1 edge"), (&two, Two, "1.0 cache, 2 edge")] {
            let front = ports::free();
            let config = forwarding(front, &[service.address()], "via = \"edge\"\n", keys(version));
            let _proxy = ringmesh(driver).config(config).start();
            for client in [One, Two] {
                let answer = match client {
                    One => Client::connect(front).send(upgrade("/chat", "websocket")).response(),
                    Two => {
                        let mut client = Connection::connect(front);
                        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
                        client.response(stream)
                    }
                };
                assert_eq!((answer.status(), answer.text().as_str()), (403, "not so"), "{client:?} {version:?}");
                let vias: Vec<&str> = answer.head.values("via").collect();
                assert_eq!(vias, [expected], "{client:?} {version:?}");
            }
        }
    });
}

#[test]
fn a_policy_and_a_limit_of_the_service_hold_for_tunnels_of_http_2() {
    on_both_drivers(|driver| {
        let (service, _asked) = agreeing(One, echo);
        let front = ports::free();
        let policy =
            "[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = [{ methods = [\"GET\"], paths = [\"/chat\"] }]\n";
        let config = forwarding(front, &[service.address()], "", "max_in_flight = 1") + policy;
        let proxy = ringmesh(driver).config(config).start();
        let mut client = Connection::connect(front);
        let refused = |client: &mut Connection, path: &str| {
            let stream = client.open(&extended(path, "websocket"), Ends::No);
            client.response(stream)
        };
        assert_reason(&refused(&mut client, "/other"), 403, "policy_denied");
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        assert_eq!(client.head(stream).field(":status"), Some("200"));
        assert_reason(&refused(&mut client, "/chat"), 503, "in_flight_limit");
        assert_eq!(proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]), 1);
        client.reset(stream, code::CANCEL).unwrap();
        eventually("the permit is back", || {
            let stream = client.open(&extended("/chat", "websocket"), Ends::No);
            (client.head(stream).field(":status") == Some("200")).then_some(())
        });
    });
}

// ---- time, windows ----

#[test]
fn a_silent_tunnel_ends_after_its_own_idle_timeout_and_one_that_moves_does_not() {
    on_both_drivers(|driver| {
        for (client, version) in OURS {
            let (service, _asked) = agreeing(version, echo);
            let limits = "idle_timeout = \"100ms\"\nrequest_timeout = \"300ms\"\ntunnel_idle_timeout = \"1s\"";
            let front = ports::free();
            let config = forwarding(front, &[service.address()], limits, keys(version));
            let proxy = ringmesh(driver).config(config).start();
            let (_, mut end) = ask(client, front, "/chat", "websocket");
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(1500) {
                end.send(b"x").unwrap();
                assert_eq!(end.exactly(1).unwrap(), b"x");
                hold(Duration::from_millis(150));
            }
            let silent = Instant::now();
            end.rest().expect_err("cut, not ended");
            let silence = silent.elapsed();
            assert!((Duration::from_millis(600)..Duration::from_secs(5)).contains(&silence), "{silence:?}");
            let line = proxy.wait_for_access("the tunnel", |line| line["path"] == "/chat");
            assert_eq!(line["reason"], "idle_timeout", "{client:?} {version:?}");
        }
    });
}

#[test]
fn a_drain_lets_tunnels_go_on_until_its_deadline_and_says_that_it_cut_them() {
    on_both_drivers(|driver| {
        for (client, version) in OURS {
            let (service, _asked) = agreeing(version, echo);
            let front = ports::free();
            let config = forwarding(front, &[service.address()], "", keys(version));
            let mut proxy = ringmesh(driver).config(config).drain_timeout("2s").start();
            let (_, mut end) = ask(client, front, "/chat", "websocket");
            let begun = Instant::now();
            proxy.signal(Signal::TERM);
            while begun.elapsed() < Duration::from_secs(1) {
                end.send(b"x").unwrap();
                assert_eq!(end.exactly(1).unwrap(), b"x", "the drain waits for its timeout");
            }
            end.rest().expect_err("cut, not ended");
            assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
            assert_eq!(proxy.wait(DEADLINE).code(), Some(0));
            let line = proxy.wait_for_access("the tunnel", |line| line["path"] == "/chat");
            assert_eq!(line["reason"], "drained", "{client:?} {version:?}");
        }
    });
}

#[test]
fn who_does_not_read_holds_the_other_side_back() {
    /// What the windows, the proxy and the sockets on the way may hold together.
    const MAX_ON_THE_WAY: usize = 16 * 1024 * 1024;
    on_both_drivers(|driver| {
        // The client of HTTP/2 grants nothing.
        let sent = Arc::new(AtomicUsize::new(0));
        let counts = sent.clone();
        let (service, _asked) = agreeing(One, move |end, _| {
            loop {
                end.send(&pattern(16 * 1024))?;
                counts.fetch_add(16 * 1024, Ordering::SeqCst);
            }
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect_with(front, &[(setting::INITIAL_WINDOW_SIZE, 20_000)]);
        client.manners = Manners { grants: false, ..Manners::GOOD };
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        client.until(|client| (client.body_bytes(stream) == 20_000).then_some(())).unwrap();
        let still = eventually("the service stands still", || {
            let before = sent.load(Ordering::SeqCst);
            hold(Duration::from_millis(200));
            (sent.load(Ordering::SeqCst) == before).then_some(before)
        });
        assert!(still < MAX_ON_THE_WAY, "{still} bytes");
        assert_eq!(client.body_bytes(stream), 20_000, "no more than was granted");
        client.grant(stream, 30_000).unwrap();
        client.until(|client| (client.body_bytes(stream) == 50_000).then_some(())).unwrap();

        // The service does not read.
        let (service, _asked) = agreeing(One, |end, _| {
            end.exactly(1)?;
            loop {
                hold(Duration::from_secs(1));
            }
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect(front);
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        client.head(stream);
        let mut sent = 0;
        loop {
            while client.room(stream) > 0 {
                let bytes = client.room(stream).min(16 * 1024);
                client.send_data(stream, &pattern(bytes), Ends::No).unwrap();
                sent += bytes;
                assert!(sent < MAX_ON_THE_WAY, "nobody holds it back");
            }
            client.read_for(Duration::from_millis(300)).unwrap();
            if client.room(stream) == 0 {
                break;
            }
        }
        let other = client.open(&extended("/chat", "websocket"), Ends::No);
        assert_eq!(client.head(other).field(":status"), Some("200"), "other streams go on");
    });
}

#[test]
fn who_takes_what_is_there_too_slowly_is_cut_and_named() {
    on_both_drivers_at_once(|driver| {
        let limit = "min_transfer_rate = \"100KiB\"";
        let proxy_to = |service: &Service| {
            let front = ports::free();
            (ringmesh(driver).config(forwarding(front, &[service.address()], limit, "")).start(), front)
        };
        let (service, _asked) = agreeing(One, |end, _| {
            end.send(&pattern(100_000))?;
            end.rest().map(drop)
        });
        let (proxy, front) = proxy_to(&service);
        let mut client = Connection::connect_with(front, &[(setting::INITIAL_WINDOW_SIZE, 20_000)]);
        client.manners = Manners { grants: false, ..Manners::GOOD };
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        assert_eq!(client.ended(stream).unwrap(), Ended::Reset(code::CANCEL));
        let line = proxy.wait_for_access("the tunnel", |line| line["path"] == "/chat");
        assert_eq!(line["reason"], "client_reads_slowly", "{line}");

        let (service, _asked) = agreeing(One, |_, _| {
            hold(DEADLINE);
            Ok(())
        });
        let (proxy, front) = proxy_to(&service);
        let mut client = Connection::connect(front);
        let stream = client.open(&extended("/chat", "websocket"), Ends::No);
        client.head(stream);
        while client.stream(stream).reset.is_none() {
            match client.room(stream) {
                0 => drop(client.read_for(Duration::from_millis(100)).unwrap()),
                room => client.send_data(stream, &pattern(room.min(16_000)), Ends::No).unwrap(),
            }
        }
        let line = proxy.wait_for_access("the tunnel", |line| line["path"] == "/chat");
        assert_eq!(line["reason"], "upstream_reads_slowly", "{line}");
    });
}

#[test]
fn a_client_that_leaves_before_the_answer_ends_the_request_at_the_service() {
    on_both_drivers(|driver| {
        for version in [One, Two] {
            let (tells, told) = mpsc::channel();
            let service = match version {
                One => Service::conversing(move |talk| {
                    talk.head()?;
                    let _ = tells.send("asked");
                    let _ = talk.rest();
                    let _ = tells.send("ended");
                    Ok(())
                }),
                Two => http2::conversing(&OFFERS, move |talk| {
                    let Some((stream, _)) = talk.next_head()? else { return Ok(()) };
                    let _ = tells.send("asked");
                    talk.until(|talk| talk.stream(stream).reset)?;
                    let _ = tells.send("ended");
                    Ok(())
                }),
            };
            let front = ports::free();
            let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys(version))).start();
            let mut client = Connection::connect(front);
            let stream = client.open(&extended("/chat", "websocket"), Ends::No);
            assert_eq!(told.recv_timeout(DEADLINE).unwrap(), "asked");
            client.reset(stream, code::CANCEL).unwrap();
            assert_eq!(told.recv_timeout(DEADLINE).expect("the service learns of it"), "ended", "{version:?}");
            let line = proxy.wait_for_access("the request", |line| line["path"] == "/chat");
            assert_eq!(line["reason"], "client_aborted", "{version:?}: {line}");
            client.ping().unwrap();
        }
    });
}

#[test]
fn an_endpoint_that_ends_before_its_settings_is_asked_once_more_on_a_new_connection() {
    on_both_drivers(|driver| {
        for client in [One, Two] {
            let accepted = Arc::new(AtomicUsize::new(0));
            let count = accepted.clone();
            let service = Service::sockets(move |stream| {
                if count.fetch_add(1, Ordering::SeqCst) == 0 {
                    // The connection is there, and so is the request that waits for what it is never told.
                    return hold(Duration::from_millis(100));
                }
                let Ok(mut connection) = Connection::server(stream, &OFFERS) else { return };
                while let Ok(Some((stream, _))) = connection.next_head() {
                    let _ = connection.send_fields(stream, &[(":status", "200")], Ends::No);
                    let _ = echo(&mut Stream::new(&mut connection, stream), "");
                }
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let (_, mut end) = ask(client, front, "/chat", "websocket");
            end.send(b"x").unwrap();
            assert_eq!(end.exactly(1).unwrap(), b"x");
            assert_eq!(accepted.load(Ordering::SeqCst), 2);
        }
    });
}

#[test]
fn a_silent_tunnel_on_a_stream_holds_no_buffer() {
    const CONNECTIONS: usize = 10;
    const TUNNELS: usize = 50;
    /// One buffer has 16 KiB; what is left here are a stream, its task and a connection to the service.
    const MAX_BYTES: u64 = 14 * 1024;
    on_both_drivers(|driver| {
        let program = Program::new();
        let (service, _asked) = agreeing(One, echo);
        let front = ports::free();
        let proxy = program.builder(driver).config(forwarding(front, &[service.address()], "", "")).start();
        let open = |connections: usize| -> Vec<Connection> {
            let begin = |_| {
                let mut client = Connection::connect(front);
                for _ in 0..TUNNELS {
                    let stream = client.open(&extended("/chat", "websocket"), Ends::No);
                    client.head(stream);
                    client.send_data(stream, b"x", Ends::No).unwrap();
                    assert_eq!(client.take(stream, 1).unwrap(), b"x");
                }
                client
            };
            (0..connections).map(begin).collect()
        };
        let _warm = open(1);
        let size = || proportional_set_size(proxy.dataplane_pid());
        let before = size();
        let tunnels = open(CONNECTIONS);
        let each = size().saturating_sub(before) / (CONNECTIONS * TUNNELS) as u64;
        eprintln!("{driver}: {each} bytes a tunnel");
        assert!(each <= MAX_BYTES, "{driver}: {each} bytes a tunnel");
        drop(tunnels);
    });
}

// ---- CONNECT ----

/// A listener whose routes know `app.test` alone.
fn connecting(front: SocketAddr, word: &str, app: SocketAddr, service_keys: &str) -> String {
    format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nconnect = \"{word}\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n{service_keys}[[route]]\nhosts = [\"app.test\"]\nto = \"app\"\n"
    )
}

fn connect(authority: &str) -> Vec<(&str, &str)> {
    vec![(":method", "CONNECT"), (":authority", authority)]
}

/// Asks for a tunnel to `app.test`, and gives the answer's head with the client's end.
fn ask_connect(version: Version, front: SocketAddr) -> (Head, Box<dyn End>) {
    match version {
        One => {
            let mut client = Client::connect(front);
            client.send("CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\n");
            (client.head(), Box::new(client))
        }
        Two => {
            let mut client = Connection::connect(front);
            let stream = client.open(&connect("app.test:443"), Ends::No);
            (client.head(stream), Box::new(Stream::new(client, stream)))
        }
    }
}

#[test]
fn connect_is_off_unless_it_is_asked_for_and_leads_only_where_the_routes_do() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| echo(&mut &mut *talk, ""));
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Connection::connect(front);
        let stream = client.open(&connect("app.test:443"), Ends::No);
        assert_reason(&client.response(stream), 501, "not_implemented");

        let elsewhere = Service::saying("an address that a client would like to reach");
        let front = ports::free();
        let proxy = ringmesh(driver).config(connecting(front, "terminate", service.address(), "")).start();
        let mut client = Connection::connect(front);
        let target = elsewhere.address().to_string();
        for (authority, status) in
            [(target.as_str(), 404), ("app.test", 400), ("app.test:0", 400), ("a@app.test:1", 400)]
        {
            let stream = client.open(&connect(authority), Ends::No);
            assert_eq!(client.response(stream).status(), status, "{authority}");
        }
        let stream = client.open(&[&connect("app.test:443")[..], &[("content-length", "1")]].concat(), Ends::No);
        assert_eq!(client.response(stream).status(), 400);
        assert_eq!(elsewhere.accepted(), 0);

        let stream = client.open(&connect("APP.test:443"), Ends::No);
        client.send_data(stream, &pattern(50_000), Ends::No).unwrap();
        assert_eq!(client.head(stream).field(":status"), Some("200"));
        let mut end = Stream::new(client, stream);
        assert!(end.exactly(50_000).unwrap() == pattern(50_000));
        end.end().unwrap();
        assert!(end.rest().unwrap().is_empty());
        let line = proxy.wait_for_access("the tunnel", |line| line["request_bytes"] == 50_000);
        assert_eq!((&line["method"], &line["reason"]), (&"CONNECT".into(), &"ok".into()));
        assert_eq!((&line["authority"], &line["service"]), (&"APP.test:443".into(), &"app".into()));
    });
}

#[test]
fn connect_that_goes_on_asks_the_endpoint_in_its_version() {
    on_both_drivers(|driver| {
        let one = Service::conversing(|talk| {
            let request = talk.request()?.unwrap();
            if request.field("x-refuse").is_some() {
                return talk.send("HTTP/1.1 407 No\r\nContent-Length: 2\r\n\r\nno");
            }
            talk.send("HTTP/1.1 201 Fine\r\nContent-Length: 5\r\nX-Further: kept\r\n\r\nfirst")?;
            echo(&mut &mut *talk, "")
        });
        let two = http2::conversing(&[], |talk| {
            while let Some((stream, head)) = talk.next_head()? {
                if head.field("x-refuse").is_some() {
                    talk.send_message(stream, &Outgoing::status(407).body("no"))?;
                    continue;
                }
                assert_eq!((head.field(":scheme"), head.field(":path")), (None, None));
                assert_eq!((head.field(":method"), head.field(":authority")), (Some("CONNECT"), Some("app.test:443")));
                talk.send_fields(stream, &[(":status", "201"), ("x-further", "kept")], Ends::No)?;
                let mut end = Stream::new(&mut *talk, stream);
                end.send(b"first")?;
                let _ = echo(&mut end, "");
            }
            Ok(())
        });
        for (service, version) in [(&one, One), (&two, Two)] {
            let front = ports::free();
            let config = connecting(front, "forward", service.address(), keys(version));
            let _proxy = ringmesh(driver).config(config).start();
            for client in [One, Two] {
                if (client, version) == (One, One) {
                    continue;
                }
                let refused = match client {
                    One => Client::connect(front)
                        .send("CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\nX-Refuse: 1\r\n\r\n")
                        .response(),
                    Two => {
                        let mut client = Connection::connect(front);
                        let head = [&connect("app.test:443")[..], &[("x-refuse", "1")]].concat();
                        let stream = client.open(&head, Ends::No);
                        client.response(stream)
                    }
                };
                assert_eq!((refused.status(), refused.text().as_str()), (407, "no"), "{client:?} {version:?}");
                let (head, mut end) = ask_connect(client, front);
                assert_eq!((head.field("content-length"), head.field("x-further")), (None, Some("kept")), "{head:?}");
                assert_eq!(end.exactly(5).unwrap(), b"first");
                end.send(b"x").unwrap();
                assert_eq!(end.exactly(1).unwrap(), b"x");
                end.end().unwrap();
                assert!(end.rest().unwrap().is_empty());
            }
        }
    });
}

#[test]
fn tunnels_of_every_kind_begin_in_new_channels_of_a_connection_between_proxies_that_was_there_before() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            while let Some(request) = talk.request()? {
                let accept = request.field("sec-websocket-key").map(websocket::accept);
                match (request.head.request().0, accept) {
                    ("CONNECT", _) => talk.send("HTTP/1.1 200 OK\r\n\r\n")?,
                    (_, Some(accept)) => talk.send(format!(
                        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                         Sec-WebSocket-Accept: {accept}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"
                    ))?,
                    _ => {
                        talk.send(ok("plain"))?;
                        continue;
                    }
                }
                return echo(&mut &mut *talk, "");
            }
            Ok(())
        });
        let forward = "connect = \"forward\"\n";
        // The declared version is what the other proxy gets where the connection is not shared.
        for declared in [One, Two] {
            let hop_keys =
                Keys { front: forward, inbound: forward, there: keys(declared), workers: 1, ..Keys::default() };
            let hop = Hop::to(driver, service.address(), hop_keys);
            assert_eq!(Client::connect(hop.front).get("app", "/").text(), "plain");
            // The channel of that request waits for the next, and nothing but a new one is fit for CONNECT. Behind the first
            // tunnel none waits any more.
            let mut tunnels = Vec::new();
            for (number, client) in [One, Two, Two, One].into_iter().enumerate() {
                let what = format!("{client:?} over {declared:?}, tunnels {number}");
                let (head, end) = ask_connect(client, hop.front);
                let told = head.field(":status").map_or_else(|| head.status(), |status| status.parse().unwrap());
                assert_eq!(told, 200, "{what}: {head:?}");
                tunnels.push((format!("{what}, CONNECT"), end));
                let (head, end) = ask(client, hop.front, "/chat", "websocket");
                assert_agreed(client, &head);
                tunnels.push((format!("{what}, WebSocket"), end));
            }
            for round in 0..3 {
                for (what, end) in &mut tunnels {
                    let said = format!("{round} {what}");
                    end.send(said.as_bytes()).unwrap();
                    assert_eq!(end.exactly(said.len()).unwrap(), said.as_bytes(), "{what}");
                }
            }
            assert_eq!(opened(&hop.here, "there"), 1, "{declared:?}: all of them share a connection");
            let all = tunnels.len() as u64 + 1;
            for (what, mut end) in tunnels {
                end.end().unwrap();
                assert!(end.rest().unwrap().is_empty(), "{what}");
            }
            for proxy in [&hop.here, &hop.there] {
                proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], all);
            }
            hop.assert_rested();
        }
    });
}
