//! Ports that find out what is spoken: requests, TLS that is passed on, or opaque bytes.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{client_config, client_config_offering, connect, connect_to, web_service};
use ringmesh_tests::{Client, Driver, Proxy, Service, on_both_drivers, ports};

use crate::http2::programs::output;
use crate::support::{DOMAIN, identity, pattern, ringmesh, strict};

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
            let line = proxy.wait_for_access(reason, |line| line["reason"] == reason);
            let lasted = line["duration_seconds"].as_f64().unwrap();
            assert_eq!(lasted >= 0.25, said.is_empty(), "it lasts while it is found out what is spoken: {line}");
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

/// Ports of one proxy that detect inside TLS: one of ordinary TLS, one of mutual TLS. Opaque bytes go to `other`, requests to `web`.
fn inside_tls(driver: Driver, authority: &Authority, web: SocketAddr, other: SocketAddr) -> (Proxy, [SocketAddr; 2]) {
    let (edge, inbound) = (ports::free(), ports::free());
    let keys = "protocol = \"detect\"\nservice = \"other\"\ndetect_timeout = \"400ms\"\n";
    let config = format!(
        "{}[[listener]]\nname = \"edge\"\nbind = \"{edge}\"\n{keys}\
         tls = {{ certificate = \"server/svid.pem\", key = \"server/svid.key\" }}\n\
         [[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\n{keys}\
         [[route]]\nhosts = [\"*\"]\nlisteners = [\"edge\", \"inbound\"]\nto = \"web\"\n\
         [[service]]\nname = \"web\"\nprotocol = \"http2\"\nendpoints = [\"{web}\"]\n\
         [[service]]\nname = \"other\"\nendpoints = [\"{other}\"]\n",
        identity("app")
    );
    let mut proxy = ringmesh(driver).config(config).prepare();
    authority.svid("app").write(&proxy.folder().join("svid"));
    authority.server(&["shop.example"]).write(&proxy.folder().join("server"));
    proxy.run();
    (proxy, [edge, inbound])
}

/// A service of requests by HTTP/2, which answers with their bodies.
fn echo() -> Service {
    http2::service(|request| Outgoing::ok(request.body.clone()))
}

#[test]
fn inside_tls_a_version_of_http_is_agreed_on_and_who_offers_other_protocols_is_served_too() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (web, other) = (echo(), polyglot());
        let (proxy, fronts) = inside_tls(driver, &authority, web.address(), other.address());
        let svid = authority.svid("web");
        for (front, svid) in fronts.into_iter().zip([None, Some(&svid)]) {
            let open = |protocols: &[&[u8]], agreed: Option<&[u8]>| {
                let client = connect(front, &client_config_offering(svid, protocols)).unwrap().into_inner();
                assert_eq!(client.conn.alpn_protocol(), agreed, "{protocols:?}");
                client
            };
            for protocols in [&[&b"h2"[..]][..], &[b"http/1.1", b"h2"], &[b"acme", b"h2"]] {
                let mut two = Connection::client(open(protocols, Some(b"h2")), &[]).unwrap();
                let body = pattern(100_000);
                assert!(two.exchange(&Outgoing::post("a", "/", body.clone())).body == body, "{protocols:?}");
            }
            let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
            // Neither none nor an unknown one keeps anybody from speaking what is found out then.
            for (protocols, agreed) in [
                (&[&b"http/1.1"[..]][..], Some(&b"http/1.1"[..])),
                (&[b"acme", b"http/1.1"], Some(b"http/1.1")),
                (&[], None),
                (&[b"acme"], None),
            ] {
                let mut one = Client::over(open(protocols, agreed));
                assert_eq!(one.send(post).response().text(), "body", "{protocols:?}");
                assert_eq!(one.send(post).response().text(), "body", "{protocols:?}: the connection goes on");
            }
            for protocols in [&[][..], &[&b"postgresql"[..], b"imap"]] {
                let mut opaque = Client::over(open(protocols, None));
                opaque.send("\x01");
                assert_eq!(opaque.exactly(12).unwrap(), b"bytes from 1", "{protocols:?}");
                let mut two = Connection::client(open(protocols, None), &[]).unwrap();
                assert_eq!(two.exchange(&Outgoing::post("a", "/", "known")).text(), "known", "{protocols:?}");
                // Too little to tell, until the time is over.
                let mut unclear = Client::over(open(protocols, None));
                unclear.send("hm");
                assert_eq!(unclear.exactly(14).unwrap(), b"bytes from 104", "{protocols:?}");
            }
            // Who has agreed on requests gets no other way in.
            let mut deceiving = Client::over(open(&[b"http/1.1"], Some(b"http/1.1")));
            deceiving.send("\x01\x02\r\n\r\n");
            assert_eq!(deceiving.response().status(), 400);
        }
        assert_eq!(other.accepted(), 8);
        // Plain text, and a hello that is cut short.
        for (front, side) in fronts.into_iter().zip(["edge", "inbound"]) {
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(client.response().status(), 400);
            let mut client = Client::connect(front);
            client.send("\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x03garbage").half_close();
            let _ = client.rest();
            for (result, count) in [("plain_http", 1), ("closed", 1)] {
                let labels = [("name", side), ("result", result)];
                proxy.wait_for_metric("ringmesh_tls_handshakes_total", &labels, count);
            }
        }
    });
}

/// Starts h2load with these words, and gives what it says once all its requests were answered with 200.
fn h2load(requests: u32, words: &[&str]) -> String {
    let mut command = Command::new("h2load");
    command.args(["-n", &requests.to_string(), "-c", "4", "-m", "10"]);
    let said = output(command.args(words), "nghttp2-client");
    let all = format!("{requests} total, {requests} started, {requests} done, {requests} succeeded, 0 failed");
    assert!(said.contains(&all) && said.contains(&format!("status codes: {requests} 2xx")), "{words:?}: {said}");
    said
}

/// The version that curl spoke, with the status.
fn curl(words: &[&str]) -> String {
    let mut command = Command::new("curl");
    command.args(["-sS", "-k", "--max-time", "20", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"]);
    output(command.args(words), "curl")
}

#[test]
fn both_versions_of_http_tls_opaque_and_unclear_bytes_share_a_port_under_load() {
    const REQUESTS: u32 = 1_000;
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (web, other) = (echo(), polyglot());
        let secure = web_service(&authority.server(&["a.example"]), &["http/1.1"], |_| ok("through TLS"));
        let front = ports::free();
        let config = format!(
            "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nprotocol = \"detect\"\nservice = \"other\"\ndetect_timeout = \"400ms\"\n\
             [[service]]\nname = \"web\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n\
             [[service]]\nname = \"secure\"\nendpoints = [\"{}\"]\n[[service]]\nname = \"other\"\nendpoints = [\"{}\"]\n\
             [[route]]\nhosts = [\"*\"]\nlisteners = [\"front\"]\nto = \"web\"\n\
             [[route]]\nname = \"tls\"\nprotocol = \"tls\"\nhosts = [\"a.example\"]\nlisteners = [\"front\"]\nto = \"secure\"\n",
            web.address(),
            secure.address(),
            other.address()
        );
        let proxy = ringmesh(driver).config(config).start();
        let url = format!("http://{front}/");
        std::thread::scope(|scope| {
            let loads = [&[][..], &["--h1"]].map(|version| {
                let url = url.as_str();
                scope.spawn(move || h2load(REQUESTS, &[version, &[url]].concat()))
            });
            for round in 0..5 {
                assert_eq!(curl(&["--http2-prior-knowledge", &url]), "2 200", "round {round}");
                assert_eq!(curl(&["--http1.1", &url]), "1.1 200", "round {round}");
                let mut two = Connection::connect(front);
                assert_eq!(two.exchange(&Outgoing::post("a.example", "/", "by 2")).text(), "by 2", "round {round}");
                let mut client = connect_to(front, "a.example", &client_config(None)).unwrap();
                assert_eq!(client.get("a.example", "/").text(), "through TLS", "round {round}");
                let mut opaque = Client::connect(front);
                opaque.send("\x01\x02");
                assert_eq!(opaque.exactly(12).unwrap(), b"bytes from 1", "round {round}");
                let mut unclear = Client::connect(front);
                // The preface of HTTP/2, as far as it could still be a word.
                unclear.send("PRI");
                assert_eq!(unclear.exactly(13).unwrap(), b"bytes from 80", "round {round}");
            }
            for load in loads {
                load.join().unwrap();
            }
        });
        assert_eq!(other.accepted(), 10);
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], u64::from(2 * REQUESTS + 15));
        assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0);

        let (_proxy, [edge, _]) = inside_tls(driver, &authority, web.address(), other.address());
        let url = format!("https://{edge}/");
        std::thread::scope(|scope| {
            let loads = ["h2", "http/1.1"].map(|version| {
                let (url, npn) = (url.as_str(), format!("--npn-list={version}"));
                scope.spawn(move || (version, h2load(REQUESTS, &[&npn, url])))
            });
            for round in 0..5 {
                assert_eq!(curl(&["--http2", &url]), "2 200", "round {round}");
                assert_eq!(curl(&["--http1.1", &url]), "1.1 200", "round {round}");
                assert_eq!(curl(&["--no-alpn", &url]), "1.1 200", "round {round}");
                let mut opaque = connect(edge, &client_config(None)).unwrap();
                opaque.send("\x01");
                assert_eq!(opaque.exactly(12).unwrap(), b"bytes from 1", "round {round}");
            }
            for load in loads {
                let (version, said) = load.join().unwrap();
                assert!(said.contains(&format!("Application protocol: {version}")), "{said}");
            }
        });
    });
}
