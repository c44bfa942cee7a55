//! Connections that change their protocol: WebSocket and other upgrades, CONNECT (RFC 9110 sections 7.8 and 9.3.6).

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringmesh_loadgen::load::{self as generator, Settings};
use ringmesh_loadgen::serve;
use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Ends, Outgoing};
use ringmesh_tests::process::proportional_set_size;
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, DEADLINE, Driver, Proxy, Service, eventually, on_both_drivers, ports};
use rustix::process::Signal;

use crate::load;
use crate::support::{DOMAIN, Program, caller, forwarding, identity, pattern, ringmesh, strict};
use crate::websocket::{Echo, python, script};

/// What a client sends to change to another protocol.
fn upgrade(protocol: &str) -> String {
    format!("GET /chat HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\r\n")
}

const SWITCHED: &str =
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX-Further: kept\r\n\r\n";

/// A service that changes to whatever is asked for, and sends all bytes back.
fn switching() -> Service {
    Service::conversing(|talk| {
        talk.request()?;
        talk.send(SWITCHED)?;
        echo(talk)
    })
}

fn echo(talk: &mut ringmesh_tests::service::Talk) -> io::Result<()> {
    loop {
        let byte = talk.exactly(1)?;
        talk.send(byte)?;
    }
}

/// The proxies between a client and a service.
struct Route {
    front: SocketAddr,
    proxies: Vec<Proxy>,
}

/// A way through one proxy, with these keys of its listener, or through two with mutual TLS between them.
fn routes(driver: Driver, app: SocketAddr, keys: &str) -> [Route; 2] {
    let front = ports::free();
    let proxy = ringmesh(driver).config(forwarding(front, &[app], keys, "")).start();
    let authority = Authority::new(DOMAIN);
    let there = strict(driver, &authority, "there", app, keys, "");
    let (here, outbound) = caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], "");
    [Route { front, proxies: vec![proxy] }, Route { front: outbound, proxies: vec![here, there.proxy] }]
}

#[test]
fn an_upgrade_makes_a_tunnel_that_carries_bytes_both_ways() {
    on_both_drivers(|driver| {
        let service = switching();
        for route in routes(driver, service.address(), "") {
            let mut client = Client::connect(route.front);
            let head = client.send(upgrade("websocket")).head();
            assert_eq!(head.status(), 101);
            for (name, value) in [("upgrade", "websocket"), ("connection", "Upgrade"), ("x-further", "kept")] {
                assert_eq!(head.field(name), Some(value));
            }
            let asked = service.last();
            assert_eq!((asked.field("upgrade"), asked.field("connection")), (Some("websocket"), Some("Upgrade")));
            for number in 0..100_u32 {
                assert_eq!(client.send(number.to_be_bytes()).exactly(4).unwrap(), number.to_be_bytes());
            }
            client.half_close();
            client.expect_end();
            for proxy in &route.proxies {
                let line = proxy.wait_for_access("the tunnel", |line| line["status"] == 101);
                assert_eq!((&line["reason"], &line["path"]), (&"ok".into(), &"/chat".into()), "{line}");
                assert_eq!((line["request_bytes"].as_u64(), line["response_bytes"].as_u64()), (Some(400), Some(400)));
            }
        }
        let accepted = service.accepted();
        let route = &routes(driver, service.address(), "")[0];
        for _ in 0..2 {
            Client::connect(route.front).send(upgrade("websocket")).head();
        }
        assert_eq!(service.accepted(), accepted + 2, "a connection that was a tunnel serves no other client");
    });
}

#[test]
fn bytes_that_come_together_with_the_heads_are_the_first_of_the_tunnel() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.request()?;
            talk.send([SWITCHED.as_bytes(), &pattern(60_000)].concat())?;
            echo(talk)
        });
        for route in routes(driver, service.address(), "") {
            let mut client = Client::connect(route.front);
            client.send([upgrade("websocket").as_bytes(), b"GET /hidden HTTP/1.1\r\n\r\n"].concat());
            assert_eq!(client.head().status(), 101);
            assert!(client.exactly(60_000).unwrap() == pattern(60_000));
            assert_eq!(client.exactly(24).unwrap(), b"GET /hidden HTTP/1.1\r\n\r\n");
            assert_eq!(client.send("more").exactly(4).unwrap(), b"more");
        }
    });
}

#[test]
fn each_side_of_a_tunnel_may_end_first_while_the_other_goes_on() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            let order = talk.request()?.unwrap();
            talk.send(SWITCHED)?;
            if order.head.request().1 == "/first" {
                talk.send(pattern(300_000))?;
                talk.socket().shutdown(Shutdown::Write)?;
                let all = talk.rest()?;
                assert_eq!(all.len(), 200_000);
                return Ok(());
            }
            let all = talk.rest()?;
            talk.send(format!("{} bytes came", all.len()))
        });
        for route in routes(driver, service.address(), "") {
            let mut client = Client::connect(route.front);
            client.send(upgrade("websocket")).head();
            client.send(pattern(100_000)).half_close();
            assert_eq!(client.rest().unwrap(), b"100000 bytes came");

            let mut client = Client::connect(route.front);
            client.send(upgrade("websocket").replace("/chat", "/first")).head();
            assert!(client.rest().unwrap() == pattern(300_000), "the service has ended first");
            client.send(pattern(200_000));
            client.half_close();
            eventually("the service has read to the end", || (service.open() == 0).then_some(()));
            for proxy in &route.proxies {
                proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], 2);
            }
        }
    });
}

#[test]
fn a_reset_on_one_side_of_a_tunnel_is_one_on_the_other() {
    on_both_drivers(|driver| {
        let (tells, told) = mpsc::channel();
        let service = Service::conversing(move |talk| {
            let order = talk.request()?.unwrap();
            talk.send(SWITCHED)?;
            if order.head.request().1 == "/reset" {
                talk.exactly(1)?;
                ringmesh_tests::client::reset(talk.socket().try_clone()?);
                return Ok(());
            }
            let _ = tells.send(talk.rest());
            Ok(())
        });
        for route in routes(driver, service.address(), "") {
            let mut client = Client::connect(route.front);
            client.send(upgrade("websocket")).head();
            client.send("x");
            client.reset();
            let end = told.recv_timeout(DEADLINE).expect("the service learns of it").expect_err("no orderly end");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            let first = route.proxies.first().unwrap();
            first.wait_for_access("the client's doing", |line| line["reason"] == "client_aborted");

            let mut client = Client::connect(route.front);
            client.send(upgrade("websocket").replace("/chat", "/reset")).head();
            let end = client.send("x").rest().expect_err("no orderly end");
            assert_eq!(end.kind(), io::ErrorKind::ConnectionReset);
            let last = route.proxies.last().unwrap();
            last.wait_for_access("the service's doing", |line| line["reason"] == "upstream_reset");
        }
    });
}

#[test]
fn a_silent_tunnel_ends_after_its_own_idle_timeout_and_one_that_moves_does_not() {
    on_both_drivers(|driver| {
        let service = switching();
        let keys = "idle_timeout = \"100ms\"\nrequest_timeout = \"200ms\"\ntunnel_idle_timeout = \"1s\"";
        let front = ports::free();
        let proxy = ringmesh(driver).config(forwarding(front, &[service.address()], keys, "")).start();
        let mut client = Client::connect(front);
        client.send(upgrade("websocket")).head();
        let begun = std::time::Instant::now();
        // Longer than every timeout, at a pace that none of them minds.
        while begun.elapsed() < Duration::from_millis(1500) {
            assert_eq!(client.send("x").exactly(1).unwrap(), b"x");
            ringmesh_tests::hold(Duration::from_millis(150));
        }
        let silent = std::time::Instant::now();
        client.rest().expect_err("cut, not ended");
        let silence = silent.elapsed();
        assert!((Duration::from_millis(600)..Duration::from_secs(5)).contains(&silence), "{silence:?}");
        let line = proxy.wait_for_access("the tunnel", |line| line["status"] == 101);
        assert_eq!(line["reason"], "idle_timeout");
        eventually("the service's side is closed", || (service.open() == 0).then_some(()));
    });
}

#[test]
fn a_drain_lets_tunnels_go_on_until_its_deadline_and_says_that_it_cut_them() {
    on_both_drivers(|driver| {
        let service = switching();
        let front = ports::free();
        let config = forwarding(front, &[service.address()], "", "");
        let mut proxy = ringmesh(driver).config(config).drain_timeout("2s").start();
        let mut client = Client::connect(front);
        client.send(upgrade("websocket")).head();
        let begun = std::time::Instant::now();
        proxy.signal(Signal::TERM);
        while begun.elapsed() < Duration::from_secs(1) {
            assert_eq!(client.send("x").exactly(1).unwrap(), b"x", "the drain waits for its timeout");
        }
        client.rest().expect_err("cut, not ended");
        assert!(begun.elapsed() >= Duration::from_millis(1500), "{:?}", begun.elapsed());
        assert_eq!(proxy.wait(DEADLINE).code(), Some(0));
        let line = proxy.wait_for_access("the tunnel", |line| line["status"] == 101);
        assert_eq!(line["reason"], "drained");
    });
}

#[test]
fn an_answer_other_than_101_is_an_ordinary_response() {
    on_both_drivers(|driver| {
        let service = Service::saying("no web socket here");
        let (_proxy, front) = crate::support::proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..3 {
            assert_eq!(client.send(upgrade("websocket")).response().text(), "no web socket here");
            assert_eq!(client.get("app", "/").text(), "no web socket here");
        }
        assert_eq!(service.accepted(), 1, "both connections are used again");
    });
}

#[test]
fn a_426_says_which_protocol_the_service_wants_if_it_may_be_asked_for() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| {
            let wanted = request.field("x-want").unwrap_or_default();
            format!(
                "HTTP/1.1 426 Upgrade Required\r\nConnection: Upgrade\r\nUpgrade: {wanted}\r\nContent-Length: 0\r\n\r\n"
            )
        });
        let (_proxy, front) = crate::support::proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for (wanted, told) in [("websocket", Some("websocket")), ("h2c", None)] {
            let request = upgrade("websocket").replace("\r\n\r\n", &format!("\r\nX-Want: {wanted}\r\n\r\n"));
            let response = client.send(request).response();
            assert_eq!((response.status(), response.field("upgrade")), (426, told));
        }
        let response = client.send("GET / HTTP/1.1\r\nHost: app\r\nX-Want: websocket\r\n\r\n").response();
        assert_eq!(
            (response.status(), response.field("upgrade")),
            (426, None),
            "who asks for nothing is offered nothing"
        );
    });
}

#[test]
fn only_protocols_that_the_listener_allows_are_passed_on() {
    on_both_drivers(|driver| {
        let service = Service::saying("as before");
        let passed = |keys: &str, protocol: &str, more: &str| {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], keys, "")).start();
            let body = if more.contains("Content-Length") { "x" } else { "" };
            let request = upgrade(protocol).replace("\r\n\r\n", &format!("\r\n{more}\r\n{body}"));
            let mut client = Client::connect(front);
            assert_eq!(client.send(request).response().text(), "as before");
            let request = service.last();
            assert_eq!(request.field("http2-settings"), None);
            (request.field("upgrade").map(str::to_owned), request.field("connection").map(str::to_owned))
        };
        let (none, kept) = ((None, None), |protocol: &str| (Some(protocol.to_owned()), Some("Upgrade".to_owned())));
        assert_eq!(passed("", "WebSocket", ""), kept("WebSocket"));
        assert_eq!(passed("", "h2c", "HTTP2-Settings: AAMAAABkAAQAAP__\r\n"), none);
        assert_eq!(passed("", "websocket, h2c", ""), none);
        assert_eq!(passed("", "irc/6.9", ""), none);
        assert_eq!(passed("", "websocket", "Upgrade: h2c\r\n"), none);
        assert_eq!(passed("", "websocket", "Content-Length: 1\r\n").0, None, "no body goes in front of a tunnel");
        assert_eq!(passed("upgrade = [\"irc/6.9\"]", "irc/6.9", ""), kept("irc/6.9"));
        assert_eq!(passed("upgrade = [\"irc/6.9\"]", "websocket", ""), none);
        assert_eq!(passed("upgrade = \"off\"", "websocket", ""), none);
    });
}

#[test]
fn a_101_that_nobody_asked_for_or_for_another_protocol_is_no_answer() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            let request = talk.request()?.unwrap();
            let fields = request.head.request().1.trim_start_matches('/').replace('|', "\r\n").replace('_', " ");
            talk.send(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\nhello"))?;
            talk.rest().map(drop)
        });
        let (_proxy, front) = crate::support::proxy_to(driver, &[service.address()]);
        let right = "/Upgrade:_websocket|Connection:_upgrade";
        let status = |request: String| Client::connect(front).send(request).head().status();
        assert_eq!(status(upgrade("websocket").replace("/chat", right)), 101);
        assert_eq!(status(format!("GET {right} HTTP/1.1\r\nHost: app\r\n\r\n")), 502);
        assert_eq!(status(format!("POST {right} HTTP/1.1\r\nHost: app\r\nContent-Length: 1\r\n\r\nx")), 502);
        for wrong in [
            "/Upgrade:_h2c|Connection:_upgrade",
            "/Upgrade:_websocket",
            "/Connection:_upgrade",
            "/Upgrade:_websocket,_h2c|Connection:_upgrade",
            "/X:_y",
        ] {
            assert_eq!(status(upgrade("websocket").replace("/chat", wrong)), 502, "{wrong}");
        }
    });
}

#[test]
fn a_tunnel_counts_as_a_request_in_flight_and_policies_decide_of_it() {
    on_both_drivers(|driver| {
        let service = switching();
        let front = ports::free();
        let policy =
            "[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = [{ methods = [\"GET\"], paths = [\"/chat\"] }]\n";
        let config = forwarding(front, &[service.address()], "", "max_in_flight = 1") + policy;
        let proxy = ringmesh(driver).config(config).start();
        let status =
            |path: &str| Client::connect(front).send(upgrade("websocket").replace("/chat", path)).head().status();
        assert_eq!(status("/other"), 403);
        let mut client = Client::connect(front);
        assert_eq!(client.send(upgrade("websocket")).head().status(), 101);
        assert_eq!(status("/chat"), 503, "the limit counts the tunnel");
        let in_flight = || proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]);
        eventually("the tunnel alone is in flight", || (in_flight() == 1).then_some(()));
        drop(client);
        eventually("the permit is back", || (status("/chat") == 101).then_some(()));
    });
}

#[test]
fn a_silent_tunnel_holds_no_buffer() {
    const TUNNELS: usize = 500;
    /// One buffer has 16 KiB; what is left here are two connections, the request's future and its storage.
    const MAX_BYTES: u64 = 12 * 1024;
    on_both_drivers(|driver| {
        let program = Program::new();
        let service = switching();
        let front = ports::free();
        let proxy = program.builder(driver).config(forwarding(front, &[service.address()], "", "")).start();
        let open = |count: usize| -> Vec<Client> {
            let begin = |_| {
                let mut client = Client::connect(front);
                client.send(upgrade("websocket")).head();
                assert_eq!(client.send("x").exactly(1).unwrap(), b"x");
                client
            };
            (0..count).map(begin).collect()
        };
        let _warm = open(50);
        let size = || proportional_set_size(proxy.dataplane_pid());
        let before = size();
        let tunnels = open(TUNNELS);
        let each = size().saturating_sub(before) / TUNNELS as u64;
        eprintln!("{driver}: {each} bytes a tunnel");
        assert!(each <= MAX_BYTES, "{driver}: {each} bytes a tunnel");
        drop(tunnels);
    });
}

// ---- WebSocket as others speak it ----

#[test]
fn web_sockets_of_the_load_generator_echo_messages_of_all_sizes() {
    on_both_drivers(|driver| {
        let echo = load::serve(serve::Service::WebSocket);
        for route in routes(driver, echo.address(), "") {
            for bytes in [0, 1, 125, 126, 65_535, 65_536, 5_000_000] {
                let requests = if bytes > 100_000 { 4 } else { 40 };
                let settings = Settings::websocket(route.front.into(), "app", "/", bytes);
                let timeout = Duration::from_secs(20);
                let settings =
                    Settings { requests: Some(requests), connections: 4, duration: None, timeout, ..settings };
                let report = generator::start(settings).unwrap().wait().unwrap();
                load::assert_nothing_failed(&report, requests);
            }
        }
    });
}

#[test]
fn web_sockets_of_a_python_library_go_through_whole() {
    on_both_drivers(|driver| {
        let echo = Echo::start();
        let routes = routes(driver, echo.address, "");
        let clients: Vec<_> = routes
            .iter()
            .map(|route| {
                let url = format!("ws://{}/chat", route.front);
                thread::spawn(move || {
                    let output = Command::new(python()).arg(script()).args(["check", &url]).output().unwrap();
                    let said = format!(
                        "{}{}",
                        String::from_utf8_lossy(&output.stdout),
                        String::from_utf8_lossy(&output.stderr)
                    );
                    (output.status.success(), said)
                })
            })
            .collect();
        let ended: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
        for (well, said) in ended {
            assert!(well && said.contains("all checks passed"), "{said}");
        }
    });
}

#[test]
fn a_service_of_http2_gets_what_asks_for_an_upgrade_as_an_ordinary_request() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            while let Some((stream, request)) = talk.next_request()? {
                match request.head.request().1 {
                    "/chat" => talk.send_message(stream, &Outgoing::ok("no"))?,
                    // No part of HTTP/2 (RFC 9113 section 8.6).
                    _ => talk.send_fields(stream, &[(":status", "101"), ("x-upgrade", "websocket")], Ends::No)?,
                }
            }
            Ok(())
        });
        let front = ports::free();
        let _proxy =
            ringmesh(driver).config(forwarding(front, &[service.address()], "", "protocol = \"http2\"")).start();
        let mut client = Client::connect(front);
        for _ in 0..2 {
            assert_eq!(client.send(upgrade("websocket")).response().text(), "no");
            let asked = service.last();
            assert_eq!((asked.field("upgrade"), asked.field("connection")), (None, None));
        }
        let answer = client.send(upgrade("websocket").replace("/chat", "/switch")).response();
        assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (502, Some("upstream_garbage")));
    });
}

// ---- CONNECT ----

#[test]
fn connect_is_off_unless_it_is_asked_for() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = crate::support::proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("CONNECT app:443 HTTP/1.1\r\nHost: app:443\r\n\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.field("x-ringmesh-reason")), (501, Some("not_implemented")));
        client.expect_end();
        assert_eq!(service.requests().len(), 0, "what was meant for the tunnel is no request");
    });
}

#[test]
fn connect_that_ends_here_has_no_way_to_a_service_of_http2() {
    on_both_drivers(|driver| {
        let service = http2::service(|_| Outgoing::ok("hello"));
        let front = ports::free();
        let config = connecting(front, "terminate", service.address())
            .replace("name = \"app\"\n", "name = \"app\"\nprotocol = \"http2\"\n");
        let _proxy = ringmesh(driver).config(config).start();
        let mut client = Client::connect(front);
        client.send("CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\nGET / HTTP/1.1\r\nHost: app\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.field("x-ringmesh-reason")), (501, Some("not_implemented")));
        client.expect_end();
        assert_eq!(service.requests().len(), 0, "what was meant for the tunnel is no request");
    });
}

/// A listener whose routes know `app` and `other`, and one that knows nobody else.
fn connecting(front: SocketAddr, word: &str, app: SocketAddr) -> String {
    format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nconnect = \"{word}\"\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n[[route]]\nhosts = [\"app.test\"]\nto = \"app\"\n"
    )
}

#[test]
fn connect_that_ends_here_hands_the_bytes_to_the_service_of_its_route_and_to_nobody_else() {
    on_both_drivers(|driver| {
        let service = Service::conversing(echo);
        let elsewhere = Service::saying("an address that a client would like to reach");
        let front = ports::free();
        let proxy = ringmesh(driver).config(connecting(front, "terminate", service.address())).start();
        for early in ["", "early"] {
            let mut client = Client::connect(front);
            client.send(format!("CONNECT APP.test:443 HTTP/1.1\r\nHost: app.test:443\r\n\r\n{early}"));
            let head = client.head();
            assert_eq!(
                (head.status(), head.field("content-length"), head.field("transfer-encoding")),
                (200, None, None)
            );
            assert_eq!(client.exactly(early.len()).unwrap(), early.as_bytes());
            assert_eq!(client.send(pattern(50_000)).exactly(50_000).unwrap(), pattern(50_000));
            client.half_close();
            client.expect_end();
            let count = u64::try_from(50_000 + early.len()).unwrap();
            let line = proxy.wait_for_access("the tunnel", |line| line["request_bytes"] == count);
            assert_eq!((&line["method"], &line["reason"]), (&"CONNECT".into(), &"ok".into()));
            assert_eq!((&line["authority"], &line["service"]), (&"APP.test:443".into(), &"app".into()));
        }
        let target = elsewhere.address();
        let mut client = Client::connect(front);
        client.send(format!("CONNECT {target} HTTP/1.1\r\nHost: app.test\r\n\r\n"));
        assert_eq!(client.response().status(), 404, "the authority of the target decides, and no route knows it");
        client.expect_end();
        assert_eq!(elsewhere.accepted(), 0);
        for wrong in ["CONNECT app.test HTTP/1.1", "CONNECT / HTTP/1.1", "CONNECT http://app.test:443/ HTTP/1.1"] {
            let response = Client::connect(front).send(format!("{wrong}\r\nHost: app.test\r\n\r\n")).response();
            assert_eq!(response.status(), 400, "{wrong}");
        }
        let body = "CONNECT app.test:443 HTTP/1.1\r\nHost: app.test:443\r\nContent-Length: 4\r\n\r\nbody";
        assert_eq!(Client::connect(front).send(body).response().status(), 400);
    });
}

#[test]
fn connect_that_goes_on_becomes_a_tunnel_when_the_service_says_so() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            let request = talk.request()?.unwrap();
            let ("CONNECT", target) = request.head.request() else { return talk.send(ok("plain")) };
            if target.starts_with("no") || request.field("x-refuse").is_some() {
                return talk.send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno");
            }
            // RFC 9110 section 9.3.6: such fields mean nothing in this answer, and go no further.
            talk.send("HTTP/1.1 201 Fine\r\nContent-Length: 5\r\nX-Further: kept\r\n\r\nfirst")?;
            echo(talk)
        });
        let front = ports::free();
        let proxy = ringmesh(driver).config(connecting(front, "forward", service.address())).start();
        // A connection that the pool keeps is none that a tunnel may begin on.
        assert_eq!(Client::connect(front).get("app.test", "/").text(), "plain");
        let mut client = Client::connect(front);
        client.send("CONNECT app.test:443 HTTP/1.1\r\nHost: other\r\n\r\nsecond");
        let head = client.head();
        assert_eq!((head.status(), head.field("content-length"), head.field("x-further")), (201, None, Some("kept")));
        assert_eq!(client.exactly(11).unwrap(), b"firstsecond");
        assert_eq!(client.send("x").exactly(1).unwrap(), b"x");
        let asked = service.last();
        assert_eq!((asked.head.request(), asked.field("host")), (("CONNECT", "app.test:443"), Some("app.test:443")));
        client.half_close();
        client.expect_end();
        let line = proxy.wait_for_access("the tunnel", |line| line["status"] == 201);
        assert_eq!((line["request_bytes"].as_u64(), line["response_bytes"].as_u64()), (Some(7), Some(12)));

        let mut client = Client::connect(front);
        client.send(
            "CONNECT app.test:443 HTTP/1.1\r\nHost: a\r\nX-Refuse: 1\r\n\r\nGET / HTTP/1.1\r\nHost: app.test\r\n\r\n",
        );
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (407, "no"));
        client.expect_end();
    });
}

#[test]
fn connect_goes_from_sidecar_to_sidecar_and_ends_at_the_last() {
    on_both_drivers(|driver| {
        let service = Service::conversing(echo);
        let authority = Authority::new(DOMAIN);
        let there = strict(driver, &authority, "there", service.address(), "connect = \"terminate\"", "");
        let outbound = ports::free();
        let config = format!(
            "{}[[listener]]\nname = \"outbound\"\nbind = \"{outbound}\"\nconnect = \"forward\"\n\
             [[service]]\nname = \"there\"\npeer = \"there\"\nendpoints = [\"{}\"]\n[[route]]\nhosts = [\"app.test\"]\nto = \"there\"\n",
            identity("here"),
            there.inbound
        );
        let mut here = ringmesh(driver).config(config).prepare();
        authority.svid("here").write(&here.folder().join("svid"));
        here.run();
        let mut client = Client::connect(outbound);
        client.send([&b"CONNECT app.test:5432 HTTP/1.1\r\nHost: app.test:5432\r\n\r\n"[..], &pattern(20_000)].concat());
        assert_eq!(client.head().status(), 200);
        assert!(client.exactly(20_000).unwrap() == pattern(20_000));
        assert_eq!(client.send("more").exactly(4).unwrap(), b"more");
        client.half_close();
        client.expect_end();
        for proxy in [&here, &there.proxy] {
            let line = proxy.wait_for_access("the tunnel", |line| line["method"] == "CONNECT");
            assert_eq!((&line["reason"], line["request_bytes"].as_u64()), (&"ok".into(), Some(20_004)), "{line}");
        }
    });
}
