//! Ways to HTTPS: redirects from plain ports, what browsers are told, and which versions of TLS are spoken.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Command, Output, Stdio};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Outgoing};
use ringmesh_tests::tls::{client_config, client_config_of, client_config_offering, connect};
use ringmesh_tests::{Client, Driver, Proxy, Service, eventually, on_both_drivers, ports};
use rustls::version::TLS12;

use crate::edge::edge;
use crate::support::{DOMAIN, forwarding, pattern, ringmesh};

/// A proxy whose plain port `front` redirects.
fn redirecting(driver: Driver, redirect: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let config = format!("[[listener]]\nname = \"front\"\nbind = \"{front}\"\nredirect = {redirect}\n");
    (ringmesh(driver).config(config).start(), front)
}

fn curl(arguments: &[&str]) -> Output {
    Command::new("curl").args(["--silent", "--show-error", "--max-time", "10"]).args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

// ---- redirects ----

#[test]
fn every_plain_request_is_sent_to_https_by_its_host_path_and_query() {
    on_both_drivers(|driver| {
        let (proxy, front) = redirecting(driver, "\"https\"");
        let mut client = Client::connect(front);
        for (request, location) in [
            ("GET /a?b=c HTTP/1.1\r\nHost: shop.example\r\n\r\n", "https://shop.example/a?b=c"),
            ("GET / HTTP/1.1\r\nHost: shop.example:8080\r\n\r\n", "https://shop.example/"),
            ("GET / HTTP/1.1\r\nHost: [::1]:8080\r\n\r\n", "https://[::1]/"),
            ("GET http://a.example/b HTTP/1.1\r\nHost: shop.example\r\n\r\n", "https://a.example/b"),
            ("OPTIONS * HTTP/1.1\r\nHost: shop.example\r\n\r\n", "https://shop.example"),
            (
                "DELETE //x.example/%2e%2e HTTP/1.1\r\nHost: shop.example\r\n\r\n",
                "https://shop.example//x.example/%2e%2e",
            ),
        ] {
            let answer = client.send(request).response();
            assert_eq!((answer.status(), answer.field("location")), (308, Some(location)), "{request}");
            assert_eq!(answer.field("x-ringmesh-reason"), Some("redirected"), "{request}");
        }
        let answer = client.send("HEAD /a HTTP/1.1\r\nHost: shop.example\r\n\r\n").response_to("HEAD");
        assert_eq!((answer.status(), answer.field("location")), (308, Some("https://shop.example/a")));
        // A body is not waited for.
        let answer = client.send("POST /a HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 5\r\n\r\nhe").response();
        assert_eq!((answer.status(), answer.field("connection")), (308, Some("close")));

        let mut http2 = http2::Connection::connect(front);
        let answer = http2.get("shop.example:80", "/a?b");
        assert_eq!((answer.status(), answer.field("location")), (308, Some("https://shop.example/a?b")));
        let answer = http2.exchange(&Outgoing::post("shop.example", "/a", "hello"));
        assert_eq!((answer.status(), answer.field("location")), (308, Some("https://shop.example/a")));

        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "redirected")], 10);
        let line = proxy.wait_for_access("the request with a query", |line| line["path"] == "/a");
        assert_eq!((&line["reason"], &line["status"]), (&"redirected".into(), &308.into()), "{line}");
    });
}

#[test]
fn who_names_no_host_or_a_bad_one_is_not_redirected() {
    on_both_drivers(|driver| {
        let (proxy, front) = redirecting(driver, "\"https\"");
        for request in [
            "GET / HTTP/1.0\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost:\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example@b.example\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\n\r\n",
        ] {
            let answer = Client::connect(front).send(request).response();
            assert_eq!((answer.status(), answer.field("location")), (400, None), "{request}");
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "bad_request")], 6);
    });
}

#[test]
fn curl_follows_from_the_plain_port_to_that_of_https_and_repeats_its_body() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::echo();
        let certificate = authority.server(&["shop.example"]);
        let plain = ports::free();
        let listener = |https: SocketAddr, status: u16| {
            format!(
                "[[listener]]\nname = \"plain\"\nbind = \"{plain}\"\n\
                 redirect = {{ port = {}, status = {status} }}\n",
                https.port()
            )
        };
        // The port is only known once it is chosen.
        let (mut proxy, front) = edge(driver, app.address(), &[("shop", &certificate)], "");
        let whole = |status| {
            format!(
                "[[listener]]\nname = \"front\"\nbind = \"{front}\"\n\
                 tls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n{}",
                app.address(),
                listener(front, status)
            )
        };
        let root = proxy.folder().join("root.pem");
        fs::write(&root, &certificate.bundle).unwrap();
        let follow = |version: &str, data: &[&str]| {
            let arguments = [
                version,
                "--location",
                "--cacert",
                root.to_str().unwrap(),
                "--resolve",
                &format!("shop.example:{}:127.0.0.1", plain.port()),
                "--resolve",
                &format!("shop.example:{}:127.0.0.1", front.port()),
                "--write-out",
                " %{url_effective} %{method}",
                &format!("http://shop.example:{}/a?b=c", plain.port()),
            ];
            text(&curl(&[&arguments[..], data].concat()))
        };
        proxy.reconfigure(&whole(308));
        let reached = format!("https://shop.example:{}/a?b=c", front.port());
        assert_eq!(follow("--http1.1", &["--data", "hello"]), format!("hello {reached} POST"));
        for _ in 0..10 {
            let followed = follow("--http2-prior-knowledge", &["--data", "hello"]);
            assert_eq!(followed, format!("hello {reached} POST"));
        }
        // Old clients make a GET of it, which 301 lets them.
        proxy.reconfigure(&whole(301));
        assert_eq!(follow("--http1.1", &["--data", "hello"]), format!(" {reached} GET"));
    });
}

// ---- what browsers are told ----

const HSTS: &str = "strict-transport-security";

#[test]
fn every_response_of_a_listener_with_tls_tells_browsers_to_keep_to_https() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let answer = "HTTP/1.1 200 OK\r\nStrict-Transport-Security: max-age=0\r\nContent-Length: 5\r\n\r\nhello";
        let old = Service::http(move |_| answer);
        let new = http2::service(|_| Outgoing::ok("hello").with(HSTS, "max-age=0"));
        let plain = ports::free();
        let front = ports::free();
        let text = format!(
            "[[listener]]\nname = \"front\"\nbind = \"{front}\"\ntls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\n\
             hsts = {{ max_age = \"365d\", include_subdomains = true }}\n\
             [[listener]]\nname = \"plain\"\nbind = \"{plain}\"\n\
             [[service]]\nname = \"old\"\nendpoints = [\"{}\"]\n\
             [[service]]\nname = \"new\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n\
             [[service]]\nname = \"none\"\nendpoints = [\"{}\"]\n\
             [[route]]\nhosts = [\"old\"]\n[[route]]\nhosts = [\"new\"]\n[[route]]\nhosts = [\"none\"]\n",
            old.address(),
            new.address(),
            ports::free()
        );
        let mut proxy = ringmesh(driver).config(text).prepare();
        crate::edge::write(proxy.folder(), "shop", &authority.server(&["shop.example"]));
        proxy.run();

        let expected = vec!["max-age=31536000; includeSubDomains"];
        let mut client = connect(front, &client_config(None)).unwrap();
        let mut http2 = http2::Connection::connect_tls(front, &client_config_offering(None, &[b"h2"])).unwrap();
        for (host, status) in [("old", 200), ("new", 200), ("none", 503), ("other", 404)] {
            let answer = client.get(host, "/");
            assert_eq!((answer.status(), answer.head.values(HSTS).collect()), (status, expected.clone()), "{host}");
            let answer = http2.get(host, "/");
            assert_eq!((answer.status(), answer.head.values(HSTS).collect()), (status, expected.clone()), "{host}");
        }
        let answer = client.send("GET / HTTP/1.1\r\n\r\n").response();
        assert_eq!((answer.status(), answer.head.values(HSTS).collect()), (400, expected.clone()));
        let answer = http2.exchange(&Outgoing::get("old", "/").with("x-large", &"x".repeat(200_000)));
        assert_eq!((answer.status(), answer.head.values(HSTS).collect()), (431, expected.clone()));

        // Where nothing is said of it, an endpoint's word is passed on.
        let mut client = Client::connect(plain);
        for host in ["old", "new"] {
            assert_eq!(client.get(host, "/").field(HSTS), Some("max-age=0"), "{host}");
        }
        assert_eq!(client.get("other", "/").field(HSTS), None);
    });
}

// ---- versions of TLS ----

/// An edge that speaks TLS 1.2 too.
fn lenient(driver: Driver, app: &Service, listener_keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let keys = format!(
        "tls = {{ certificate = \"shop.pem\", key = \"shop.key\" }}\ntls_min_version = \"1.2\"\n{listener_keys}"
    );
    let mut proxy = ringmesh(driver).config(forwarding(front, &[app.address()], &keys, "")).prepare();
    crate::edge::write(proxy.folder(), "shop", &Authority::new(DOMAIN).server(&["shop.example"]));
    proxy.run();
    (proxy, front)
}

/// What openssl says after it was given this to send.
fn openssl(front: SocketAddr, arguments: &[&str], input: &str) -> String {
    openssl_for("10", front, arguments, input)
}

/// The same, for so many seconds at most.
fn openssl_for(seconds: &str, front: SocketAddr, arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("timeout")
        .args([seconds, "openssl", "s_client", "-connect", &front.to_string()])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    text(&child.wait_with_output().unwrap())
}

/// A request after which the server ends the connection, so that openssl does.
const LAST: &str = "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";

#[test]
fn tls_1_2_is_refused_with_an_alert_that_says_so_unless_the_listener_allows_it() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) =
            edge(driver, app.address(), &[("shop", &Authority::new(DOMAIN).server(&["shop.example"]))], "");
        let said = openssl(front, &["-tls1_2"], LAST);
        assert!(said.contains("alert protocol version") && !said.contains("hello"), "{said}");
        let refused = curl(&["--insecure", "--tls-max", "1.2", &format!("https://{front}/")]);
        assert_eq!(refused.status.code(), Some(35), "{}", text(&refused));
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "incompatible")], 2);
        assert!(openssl(front, &["-tls1_3", "-ign_eof"], LAST).contains("hello"));
    });
}

#[test]
fn a_listener_that_allows_tls_1_2_speaks_it_with_forward_secrecy_and_authenticated_encryption_alone() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = lenient(driver, &app, "");
        let said = openssl(front, &["-tls1_2", "-ign_eof", "-cipher", "ECDHE-ECDSA-AES128-GCM-SHA256"], LAST);
        assert!(said.contains("hello") && said.contains("Cipher is ECDHE-ECDSA-AES128-GCM-SHA256"), "{said}");
        assert!(said.contains("Secure Renegotiation IS supported"), "{said}");
        let shown = eventually("the handshake is on record", || proxy.json("/handshakes").as_array()?.last().cloned());
        assert_eq!(shown["tls"], "TLSv1.2", "{shown}");
        assert_eq!(shown["cipher"], "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", "{shown}");
        // Who can do better does.
        let said = openssl(front, &["-ign_eof"], LAST);
        assert!(said.contains("hello") && said.contains("New, TLSv1.3"), "{said}");
        let suites = ["ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"];
        for suite in suites {
            let said = openssl(front, &["-tls1_2", "-ign_eof", "-cipher", suite], LAST);
            assert!(said.contains("hello"), "{suite}: {said}");
        }
        for suite in
            ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES128-SHA256", "AES128-GCM-SHA256", "DHE-RSA-AES128-GCM-SHA256"]
        {
            let said = openssl(front, &["-tls1_2", "-cipher", suite], LAST);
            assert!(said.contains("alert handshake failure"), "{suite}: {said}");
        }
        for version in ["-tls1", "-tls1_1"] {
            let said = openssl(front, &[version, "-cipher", "ALL:@SECLEVEL=0"], LAST);
            // Which of the two depends on what the client leaves out.
            let refused =
                ["alert protocol version", "alert handshake failure"].iter().any(|alert| said.contains(alert));
            assert!(refused, "{version}: {said}");
        }
        proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", "incompatible")], 6);
        // Nothing is resumed, neither by ticket nor by session.
        for tickets in [&["-tls1_2", "-reconnect"][..], &["-tls1_2", "-reconnect", "-no_ticket"]] {
            let said = openssl(front, tickets, "");
            assert!(said.contains("New, TLSv1.2") && !said.contains("Reused,"), "{said}");
        }
    });
}

#[test]
fn over_tls_1_2_bodies_go_both_ways_whole_and_the_end_is_told() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let (proxy, front) = lenient(driver, &app, "");
        let body = pattern(3 << 20);
        let file = proxy.folder().join("body");
        fs::write(&file, &body).unwrap();
        for version in ["--http1.1", "--http2"] {
            let data = format!("@{}", file.display());
            let url = format!("https://{front}/");
            let answer = curl(&[version, "--insecure", "--tls-max", "1.2", "--data-binary", &data, &url]);
            assert!(answer.stdout == body, "{version}: {} bytes of {}", answer.stdout.len(), body.len());
        }

        let mut client = connect(front, &client_config_of(&TLS12)).unwrap();
        for length in [0, 1, 100, 16_355, 16_360, 16_384, 65_507, 65_536, 100_000] {
            let body = &body[..length];
            let head = format!("POST / HTTP/1.1\r\nHost: shop.example\r\nContent-Length: {length}\r\n\r\n");
            let answer = client.send([head.as_bytes(), body].concat()).response();
            assert!(answer.body == body, "{length}: {} bytes", answer.body.len());
        }
        client.send(LAST);
        // Without a close_notify this were an error.
        assert_eq!(client.response().status(), 200);
        assert_eq!(client.rest().unwrap(), b"");
    });
}

#[test]
fn a_client_that_wants_to_renegotiate_gets_nothing_by_it_and_others_are_served() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (_proxy, front) = lenient(driver, &app, "");
        let mut open = connect(front, &client_config(None)).unwrap();
        let said = openssl_for("2", front, &["-tls1_2", "-msg"], "R\n");
        let asked = said.find("RENEGOTIATING").expect("it asks");
        assert!(!said[asked..].contains("ServerHello"), "{said}");
        assert_eq!(open.get("shop.example", "/").text(), "hello");
    });
}
