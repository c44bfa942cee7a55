//! What the proxy says of itself and of the client as one hop of several: `Forwarded` and its older kin, `Via`,
//! `Max-Forwards` (RFC 7239, RFC 9110 section 7.6).

use std::net::SocketAddr;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, on_both_drivers, ports};

use crate::support::{DOMAIN, caller, forwarding, ringmesh, strict};

/// What a client may say of who it is.
const SAID: &str = "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: bank\r\n\
                    Forwarded: for=192.0.2.1\r\nX-Real-IP: 192.0.2.1\r\nX_Forwarded_For: 192.0.2.1\r\n";

/// All of its fields about the client as the service sees them, one a line.
fn told(request: &Message) -> Vec<String> {
    let about = |name: &str| {
        let name = name.to_ascii_lowercase().replace('_', "-");
        name.contains("forward") || name == "x-real-ip"
    };
    let fields = request.head.fields.iter().filter(|(name, _)| about(name));
    fields.map(|(name, value)| format!("{}: {value}", name.to_ascii_lowercase())).collect()
}

fn start(driver: Driver, service: &Service, keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    (ringmesh(driver).config(forwarding(front, &[service.address()], keys, "")).start(), front)
}

#[test]
fn services_read_of_the_client_what_its_listener_believes() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let asked = |keys: &str, fields: &str| {
            let (_proxy, front) = start(driver, &service, keys);
            let mut client = Client::connect(front);
            for _ in 0..2 {
                client.send(format!("GET / HTTP/1.1\r\nHost: app.test:8\r\n{fields}\r\n"));
                assert_eq!(client.response().text(), "hello");
            }
            told(&service.last())
        };
        // The listener is on loopback, where applications of this machine speak for their own clients.
        assert_eq!(asked("", SAID).len(), 6);
        assert_eq!(asked("", ""), [""; 0]);
        assert_eq!(asked("forwarded = \"off\"", SAID).len(), 6);
        let anew = ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: app.test:8"];
        for fields in [SAID, ""] {
            assert_eq!(asked("forwarded = {}", fields), anew);
            assert_eq!(asked("forwarded = { trust = [\"10.0.0.0/8\"] }", fields), anew);
            assert_eq!(asked("forwarded = { write = \"none\" }", fields), [""; 0]);
            let forwarded = "forwarded: for=127.0.0.1;host=\"app.test:8\";proto=http";
            assert_eq!(asked("forwarded = { write = \"forwarded\" }", fields), [forwarded]);
            assert_eq!(asked("forwarded = { write = \"both\" }", fields).len(), 4);
        }
        let mut believed = asked("forwarded = { trust = [\"127.0.0.0/8\"], write = \"both\" }", SAID);
        believed.sort_unstable();
        let expected = [
            "forwarded: for=192.0.2.1, for=127.0.0.1;host=\"app.test:8\";proto=http",
            "x-forwarded-for: 192.0.2.1, 127.0.0.1",
            "x-forwarded-host: bank",
            "x-forwarded-proto: https",
            "x-real-ip: 192.0.2.1",
            "x_forwarded_for: 192.0.2.1",
        ];
        assert_eq!(believed, expected);
    });
}

#[test]
fn a_listener_that_anybody_can_reach_believes_nobody_by_itself() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let front = ports::free();
        let open = SocketAddr::from(([0, 0, 0, 0], front.port()));
        let _proxy = ringmesh(driver).config(forwarding(open, &[service.address()], "", "")).start();
        let mut client = Client::connect(front);
        client.send(format!("GET http://shop.test/ HTTP/1.1\r\nHost: other\r\n{SAID}\r\n"));
        assert_eq!(client.response().status(), 200);
        let expected = ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http", "x-forwarded-host: shop.test"];
        assert_eq!(told(&service.last()), expected);
    });
}

#[test]
fn peers_with_an_identity_are_believed() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let authority = Authority::new(DOMAIN);
        for (keys, expected) in [
            ("", "x-forwarded-for: 192.0.2.1"),
            ("forwarded = { write = \"x-forwarded\" }", "x-forwarded-for: 192.0.2.1, 127.0.0.1"),
        ] {
            let there = strict(driver, &authority, "there", service.address(), keys, "");
            let (_here, outbound) = caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], "");
            Client::connect(outbound).send(format!("GET / HTTP/1.1\r\nHost: app\r\n{SAID}\r\n")).response();
            let told = told(&service.last());
            assert!(told.iter().any(|field| field == expected), "{told:?}");
            assert!(told.iter().any(|field| field == "x-forwarded-proto: https"), "{told:?}");
        }
    });
}

#[test]
fn via_names_the_proxy_both_ways_and_ends_loops() {
    on_both_drivers(|driver| {
        let service = Service::http(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.0 cache\r\n\r\nok");
        let (proxy, front) = start(driver, &service, "via = \"edge-1\"");
        let mut client = Client::connect(front);
        for (asked, expected) in [("", "1.1 edge-1"), ("Via: 2 a\r\nVia: 1.1 b (c)\r\n", "2 a, 1.1 b (c), 1.1 edge-1")]
        {
            let response = client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{asked}\r\n")).response();
            assert_eq!(response.field("via"), Some("1.0 cache, 1.1 edge-1"));
            assert_eq!(service.last().field("via"), Some(expected));
        }
        let mut old = Client::connect(front);
        assert_eq!(old.send("GET / HTTP/1.0\r\n\r\n").response().status(), 200);
        assert_eq!(service.last().field("via"), Some("1.0 edge-1"), "the version in which it came");

        // A proxy whose service is itself.
        let round = ports::free();
        let looping = ringmesh(driver).config(forwarding(round, &[round], "via = \"edge-1\"", "")).start();
        let response = Client::connect(round).get("app", "/");
        assert_eq!((response.status(), response.field("x-ringmesh-reason")), (508, Some("loop_detected")));
        looping.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "loop_detected")], 1);
        looping.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], 1);
        drop(proxy);
    });
}

#[test]
fn max_forwards_ends_what_traces_a_way_and_nothing_else() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| ok(request.field("max-forwards").unwrap_or("none")));
        let (_proxy, front) = start(driver, &service, "");
        let mut client = Client::connect(front);
        let mut ask = |method: &str, target: &str, left: &str| {
            client.send(format!("{method} {target} HTTP/1.1\r\nHost: app\r\nMax-Forwards: {left}\r\n\r\n")).response()
        };
        for method in ["OPTIONS", "TRACE"] {
            assert_eq!(ask(method, "/", "7").text(), "6");
            assert_eq!(ask(method, "/", "1").text(), "0");
        }
        assert_eq!(ask("GET", "/", "0").text(), "0");
        let asked = service.requests().len();
        let answer = ask("OPTIONS", "*", "0");
        assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (200, Some("max_forwards")));
        assert_eq!(ask("OPTIONS", "/a", "0").status(), 200);
        assert_eq!(ask("TRACE", "/", "0").status(), 501);
        assert_eq!(service.requests().len(), asked, "nothing of it went on");
        assert_eq!(ask("OPTIONS", "*", "3").text(), "2");
        assert_eq!(service.last().head.request(), ("OPTIONS", "*"));
    });
}

// ---- HTTP/2 ----

/// The versions of client and service where not both are 1.1.
const PAIRS: [(&str, &str); 3] = [("1.1", "2"), ("2", "1.1"), ("2", "2")];

/// A service of this version whose answer has come through a cache, and the keys that lead to it.
fn cached(version: &str) -> (Service, &'static str) {
    match version {
        "2" => (http2::service(|_| Outgoing::ok("ok").with("via", "1.0 cache")), "protocol = \"http2\""),
        _ => (Service::http(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nVia: 1.0 cache\r\n\r\nok"), ""),
    }
}

/// Asks twice on one connection of this version, with these lines, and gives the last answer.
fn ask_twice(front: SocketAddr, version: &str, method: &str, lines: &str) -> Message {
    if version == "2" {
        let lines = lines.lines().filter_map(|line| line.split_once(": "));
        let request = Outgoing::request(method, "app.test:8", "/");
        let request = lines.fold(request, |request, (name, value)| request.with(&name.to_ascii_lowercase(), value));
        let mut client = Connection::connect(front);
        client.exchange(&request);
        client.exchange(&request)
    } else {
        let request = format!("{method} / HTTP/{version}\r\nHost: app.test:8\r\n{lines}\r\n");
        let mut client = Client::connect(front);
        client.send(&request).response_to(method);
        client.send(&request).response_to(method)
    }
}

#[test]
fn what_a_hop_writes_is_the_same_in_http2() {
    on_both_drivers(|driver| {
        for (client, server) in PAIRS {
            let (service, service_keys) = cached(server);
            let ask = |keys: &str, lines: &str| {
                let front = ports::free();
                let config = forwarding(front, &[service.address()], keys, service_keys);
                let _proxy = ringmesh(driver).config(config).start();
                let answer = ask_twice(front, client, "GET", lines);
                assert_eq!((answer.status(), answer.text().as_str()), (200, "ok"), "{client} {server} {keys}");
                let vias = |message: &Message| message.head.values("via").map(str::to_owned).collect::<Vec<_>>();
                let (asked, answered) = (vias(&service.last()), vias(&answer));
                let mut told = told(&service.last());
                told.sort_unstable();
                (told, asked, answered)
            };
            let forwarded = |keys: &str, lines: &str| ask(keys, lines).0;
            assert_eq!(forwarded("", SAID).len(), 6, "{client} {server}");
            let (none, asked, answered) = ask("", "");
            assert_eq!((none.len(), asked.len(), answered), (0, 0, vec!["1.0 cache".to_owned()]));
            let anew = ["x-forwarded-for: 127.0.0.1", "x-forwarded-host: app.test:8", "x-forwarded-proto: http"];
            for lines in [SAID, ""] {
                assert_eq!(forwarded("forwarded = {}", lines), anew, "{client} {server}");
                assert_eq!(forwarded("forwarded = { write = \"none\" }", lines), [""; 0], "{client} {server}");
            }
            let expected = [
                "forwarded: for=192.0.2.1, for=127.0.0.1;host=\"app.test:8\";proto=http",
                "x-forwarded-for: 192.0.2.1, 127.0.0.1",
                "x-forwarded-host: bank",
                "x-forwarded-proto: https",
                "x-real-ip: 192.0.2.1",
                "x_forwarded_for: 192.0.2.1",
            ];
            let believing = "forwarded = { trust = [\"127.0.0.0/8\"], write = \"both\" }";
            assert_eq!(forwarded(believing, SAID), expected, "{client} {server}");
            let long = "192.0.2.7, ".repeat(100);
            let told = forwarded(believing, &format!("X-Forwarded-For: {}\r\n", long.trim_end()));
            let fors = told.iter().filter(|field| field.starts_with("x-forwarded-for: "));
            assert_eq!(fors.count(), 2, "a line of its own: {told:?}");

            for (lines, before) in [("", ""), ("Via: 2 a\r\nVia: 1.1 b (c)\r\n", "2 a, 1.1 b (c), ")] {
                let (_, asked, answered) = ask("via = \"edge-1\"", lines);
                assert_eq!(asked, [format!("{before}{client} edge-1")], "{client} {server}");
                assert_eq!(answered, [format!("1.0 cache, {server} edge-1")], "{client} {server}");
            }
        }
        let old = Service::http(|_| "HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok");
        let (_proxy, front) = start(driver, &old, "via = \"edge-1\"");
        assert_eq!(ask_twice(front, "2", "GET", "").field("via"), Some("1.0 edge-1"));
    });
}

#[test]
fn loops_and_ways_that_are_traced_end_in_http2_as_well() {
    on_both_drivers(|driver| {
        for (client, server) in PAIRS {
            let (service, service_keys) = cached(server);
            let front = ports::free();
            let config = forwarding(front, &[service.address()], "via = \"edge-1\"", service_keys);
            let _proxy = ringmesh(driver).config(config).start();
            let told = |answer: Message| (answer.status(), answer.field("x-ringmesh-reason").map(str::to_owned));
            let looped = ask_twice(front, client, "GET", "Via: 1.1 edge-1\r\n");
            assert_eq!(told(looped), (508, Some("loop_detected".to_owned())), "{client} {server}");
            for method in ["OPTIONS", "TRACE"] {
                assert_eq!(ask_twice(front, client, method, "Max-Forwards: 7\r\n").status(), 200);
                assert_eq!(service.last().field("max-forwards"), Some("6"), "{client} {server} {method}");
            }
            let asked = service.requests().len();
            let last = ask_twice(front, client, "OPTIONS", "Max-Forwards: 0\r\n");
            assert_eq!(told(last), (200, Some("max_forwards".to_owned())), "{client} {server}");
            assert_eq!(ask_twice(front, client, "TRACE", "Max-Forwards: 0\r\n").status(), 501, "{client} {server}");
            assert_eq!(service.requests().len(), asked, "nothing of it went on");
        }
    });
}
