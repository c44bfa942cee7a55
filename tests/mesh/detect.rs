//! Ports that find out what is spoken: requests, TLS that is passed on, or opaque bytes.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{client_config, connect, connect_to, web_service};
use ringmesh_tests::{Client, Driver, Proxy, Service, on_both_drivers, ports};

use crate::support::{DOMAIN, ringmesh, strict};

/// A proxy that detects at its port, with these services.
fn detecting(driver: Driver, services: &[(&str, SocketAddr)], keys: &str, more: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let services: String = services
        .iter()
        .map(|(name, address)| format!("[[service]]\nname = \"{name}\"\nendpoints = [\"{address}\"]\n"))
        .collect();
    let config =
        format!("[[listener]]\nname = \"front\"\nbind = \"{front}\"\nprotocol = \"detect\"\n{keys}\n{services}{more}");
    (ringmesh(driver).config(config).start(), front)
}

/// A service that answers requests, and everything else with itself; says hello first if nobody else does.
fn polyglot() -> Service {
    Service::conversing(|talk| {
        let first = talk.exactly(1)?;
        let line = if first == b"G" {
            while talk.exactly(1)? != b"\n" {}
            ok("a request")
        } else {
            format!("bytes from {}", first[0])
        };
        talk.send(line)?;
        talk.rest().map(drop)
    })
}

fn ended(proxy: &Proxy, reason: &str, count: u64) {
    let labels = [("reason", reason)];
    proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, count);
}

#[test]
fn requests_and_tls_take_their_routes_and_all_else_goes_to_the_service() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (web, other) = (Service::saying("plain"), polyglot());
        let secure = web_service(&authority.server(&["a.example"]), &[], |_| ok("through TLS"));
        let services = [("web", web.address()), ("secure", secure.address()), ("other", other.address())];
        let routes = "[[route]]\nhosts = [\"a.example\"]\nlisteners = [\"front\"]\nto = \"web\"\n\
                      [[route]]\nname = \"tls\"\nprotocol = \"tls\"\nhosts = [\"a.example\"]\nlisteners = [\"front\"]\nto = \"secure\"\n";
        let (proxy, front) = detecting(driver, &services, "service = \"other\"", routes);

        let mut client = Client::connect(front);
        assert_eq!(client.get("a.example", "/").text(), "plain");
        assert_eq!(client.get("a.example", "/again").text(), "plain", "the connection goes on");
        assert_eq!(client.get("b.example", "/").status(), 404, "requests have routes, so they have no other way");
        assert_eq!(web.accepted(), 1);
        let mut slow = Client::connect(front);
        for byte in b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n" {
            slow.send([*byte]);
        }
        assert_eq!(slow.response().text(), "plain");

        let mut client = connect_to(front, "a.example", &client_config(None)).unwrap();
        assert_eq!(client.get("a.example", "/").text(), "through TLS");
        assert!(connect_to(front, "b.example", &client_config(None)).is_err());
        ended(&proxy, "unrecognized_name", 1);

        let mut client = Client::connect(front);
        client.send("\x01\x02");
        assert_eq!(client.exactly(12).unwrap(), b"bytes from 1");
        let mut client = Client::connect(front);
        client.send("get key\r\n");
        assert_eq!(client.exactly(14).unwrap(), b"bytes from 103", "a line is no request by itself");
        // What could be a request is judged as one, and never gets past as bytes.
        let mut client = Client::connect(front);
        client.send("get / http/1.1\r\nhost: a.example\r\n\r\n");
        assert_eq!(client.response().status() / 100, 4);
        assert_eq!(other.accepted(), 2);
    });
}

#[test]
fn without_routes_a_service_gets_all_kinds() {
    on_both_drivers(|driver| {
        let app = polyglot();
        let (proxy, front) = detecting(driver, &[("app", app.address())], "service = \"app\"", "");
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "a request");
        let mut client = Client::connect(front);
        client.send("\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03");
        client.send([&[7; 32][..], &[0, 0, 2, 0x13, 1, 1, 0]].concat());
        assert_eq!(client.exactly(13).unwrap(), b"bytes from 22", "TLS goes on unopened");
        let mut client = Client::connect(front);
        client.send("x").half_close();
        assert_eq!(client.rest().unwrap(), b"bytes from 120", "an end makes clear what too little does not");
        let mut quiet = Client::connect(front);
        quiet.half_close();
        quiet.expect_end();
        ended(&proxy, "client_aborted", 1);
        assert_eq!(app.accepted(), 3);
    });
}

#[test]
fn who_does_not_speak_is_taken_for_opaque_after_a_while_and_a_server_may_speak_first_then() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            talk.send("220 hello\r\n")?;
            let said = talk.rest()?;
            assert!(said.is_empty() || said == b"GE", "{said:?}");
            Ok(())
        });
        let keys = "service = \"app\"\ndetect_timeout = \"400ms\"";
        let (proxy, front) = detecting(driver, &[("app", app.address())], keys, "");
        for said in ["", "GE"] {
            let begun = Instant::now();
            let mut client = Client::connect(front);
            client.send(said);
            assert_eq!(client.exactly(11).unwrap(), b"220 hello\r\n");
            let waited = begun.elapsed();
            assert!(waited >= Duration::from_millis(390) && waited < Duration::from_secs(4), "{waited:?}");
            client.half_close();
            client.expect_end();
        }
        ended(&proxy, "ok", 2);
    });
}

#[test]
fn under_rules_about_requests_nothing_unclear_and_nothing_opaque_goes_on() {
    on_both_drivers(|driver| {
        let app = polyglot();
        let keys = "service = \"app\"\ndetect_timeout = \"300ms\"";
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = [{ methods = [\"GET\"] }]\n";
        let (proxy, front) = detecting(driver, &[("app", app.address())], keys, policy);
        for (said, reason, count) in [
            ("", "not_detected", 1),
            ("GET", "not_detected", 2),
            ("\x01", "policy_denied", 1),
            ("get a\r\n", "policy_denied", 2),
        ] {
            let mut client = Client::connect(front);
            let _ = client.try_send(said);
            client.expect_end();
            ended(&proxy, reason, count);
        }
        let mut client = Client::connect(front);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(client.response().status(), 403);
        assert_eq!(app.accepted(), 0);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.response().text(), "a request");
    });
}

#[test]
fn what_has_no_place_is_refused() {
    on_both_drivers(|driver| {
        let web = Service::saying("plain");
        let routes = "[[route]]\nhosts = [\"*\"]\nto = \"web\"\n\
                      [[route]]\nname = \"tls\"\nprotocol = \"tls\"\nhosts = [\"a.example\"]\nto = \"web\"\n";
        let keys = "detect_timeout = \"300ms\"";
        let (proxy, front) = detecting(driver, &[("web", web.address())], keys, routes);
        for (said, reason) in [("\x01", "no_route"), ("", "not_detected")] {
            let mut client = Client::connect(front);
            client.send(said);
            client.expect_end();
            ended(&proxy, reason, 1);
        }
        assert_eq!(Client::connect(front).get("b.example", "/").text(), "plain");
    });
}

#[test]
fn inside_mutual_tls_it_is_detected_too_and_identities_decide() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = polyglot();
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"inbound\"\n\
                      allow = [{ from = [\"web\"], methods = [\"GET\"] }, { from = [\"db\"] }]\n";
        let strict = strict(driver, &authority, "app", app.address(), "protocol = \"detect\"", policy);
        let open = |workload: &str| connect(strict.inbound, &client_config(Some(&authority.svid(workload)))).unwrap();
        let mut web = open("web");
        web.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(web.response().text(), "a request");
        let mut web = open("web");
        web.send("\x01");
        assert!(web.rest().map_or(true, |said| said.is_empty()));
        ended(&strict.proxy, "policy_denied", 1);
        let mut db = open("db");
        db.send("\x01");
        assert_eq!(db.exactly(12).unwrap(), b"bytes from 1");
    });
}
