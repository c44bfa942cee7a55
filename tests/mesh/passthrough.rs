//! TLS that is passed on unopened, by what its client asks for; and clients that speak something else than a port does.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{client_config, connect_to, web_service};
use ringmesh_tests::{Client, Driver, Proxy, Service, on_both_drivers, ports};

use crate::support::{DOMAIN, forwarding, ringmesh, strict};

/// A proxy whose port passes TLS on as `routes` say, to services of these names.
fn passing(driver: Driver, services: &[(&str, SocketAddr)], keys: &str, routes: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let services: String = services
        .iter()
        .map(|(name, address)| format!("[[service]]\nname = \"{name}\"\nendpoints = [\"{address}\"]\n"))
        .collect();
    let config =
        format!("[[listener]]\nname = \"front\"\nbind = \"{front}\"\nprotocol = \"tls\"\n{keys}\n{services}{routes}");
    (ringmesh(driver).config(config).start(), front)
}

fn route(hosts: &str, to: &str) -> String {
    format!("[[route]]\nprotocol = \"tls\"\nhosts = [{hosts}]\nto = \"{to}\"\n")
}

/// What `openssl s_client` makes of a connection; it says nothing itself.
fn s_client(address: SocketAddr, options: &[&str]) -> String {
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &address.to_string()]).args(options);
    let Output { stdout, stderr, .. } = client.stdin(Stdio::null()).output().expect("apt install openssl");
    String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned()
}

/// What `openssl s_client` sends first.
fn first_bytes_of_openssl(options: &[&str]) -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let recording = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        // Whole records, until the message is there: it is in the first ones.
        loop {
            let mut header = [0; 5];
            stream.read_exact(&mut header).unwrap();
            let mut fragment = vec![0; usize::from(u16::from_be_bytes([header[3], header[4]]))];
            stream.read_exact(&mut fragment).unwrap();
            bytes.extend(header.iter().chain(&fragment));
            let message = message_of(&bytes);
            let [_, high, middle, low] = message[..4] else { panic!("a message has a header") };
            if message.len() >= u32::from_be_bytes([0, high, middle, low]) as usize + 4 {
                return bytes;
            }
        }
    });
    s_client(address, options);
    recording.join().unwrap()
}

/// What lies in the records.
fn message_of(mut records: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    while let [_, _, _, high, low, rest @ ..] = records {
        let (fragment, rest) = rest.split_at(usize::from(u16::from_be_bytes([*high, *low])));
        message.extend_from_slice(fragment);
        records = rest;
    }
    message
}

/// The same message in records of up to `size` bytes.
fn cut(records: &[u8], size: usize) -> Vec<u8> {
    let message = message_of(records);
    let record = |part: &[u8]| [&[22, 3, 1][..], &(part.len() as u16).to_be_bytes(), part].concat();
    message.chunks(size).flat_map(record).collect()
}

/// A service that sends back what it gets.
fn mirror() -> Service {
    Service::sockets(|mut stream| {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut buffer) {
            if stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    })
}

fn refused(proxy: &Proxy, reason: &str, count: u64) {
    let labels = [("listener", "front"), ("reason", reason)];
    proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, count);
}

#[test]
fn curl_reaches_the_service_that_it_names_and_sees_its_own_certificate() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let web = |name: &'static str| {
            web_service(&authority.server(&[name]), &["http/1.1"], move |request| {
                ok(&format!("{name} for {}", request.field("host").unwrap_or_default()))
            })
        };
        let (shop, eu) = (web("shop.example"), web("eu.pay.example"));
        let routes = route("\"shop.example\"", "shop") + &route("\"*.pay.example\"", "pay");
        let (proxy, front) = passing(driver, &[("shop", shop.address()), ("pay", eu.address())], "", &routes);
        let root = proxy.folder().join("root.pem");
        fs::write(&root, authority.server(&["x.example"]).bundle).unwrap();
        let curl = |host: &str| {
            Command::new("curl")
                .args(["--silent", "--show-error", "--max-time", "10", "--cacert"])
                .arg(&root)
                .args(["--resolve", &format!("{host}:{}:127.0.0.1", front.port())])
                .arg(format!("https://{host}:{}/", front.port()))
                .output()
                .unwrap()
        };
        for host in ["shop.example", "eu.pay.example"] {
            let answer = curl(host);
            let expected = format!("{host} for {host}:{}", front.port());
            assert_eq!(String::from_utf8_lossy(&answer.stdout), expected, "{answer:?}");
        }
        let line = proxy.wait_for_access("of the shop", |line| line["authority"] == "shop.example");
        assert_eq!((&line["route"], &line["service"]), (&"shop.example".into(), &"shop".into()), "{line}");
        assert!(line["alpn"].as_str().unwrap().contains("http/1.1"), "{line}");
        assert!(line["received_bytes"].as_u64().unwrap() > 300 && line["reason"] == "ok", "{line}");

        let nobody = curl("other.example");
        let told = String::from_utf8_lossy(&nobody.stderr);
        assert!(nobody.status.code() == Some(35) && told.contains("unrecognized name"), "{told}");
        refused(&proxy, "unrecognized_name", 1);
    });
}

#[test]
fn protocols_decide_among_rules_and_a_client_without_a_name_has_only_the_route_of_all() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let web = |protocols: &[&str]| web_service(&authority.server(&["a.example"]), protocols, |_| ok("x"));
        let (h2, other) = (web(&["h2"]), web(&["http/1.1", "acme-tls/1"]));
        let services = [("h2", h2.address()), ("other", other.address())];
        let rules = "[[route.rule]]\nmatch = { alpn = [\"h2\"] }\nto = \"h2\"\n";
        let routes = route("\"a.example\"", "other") + rules;
        let chosen = |front, options: &[&str]| {
            let told = s_client(front, options);
            let line = told.lines().find_map(|line| line.strip_prefix("ALPN protocol: ").map(str::to_owned));
            line.unwrap_or(told)
        };
        let (proxy, front) = passing(driver, &services, "", &routes);
        assert_eq!(chosen(front, &["-servername", "a.example", "-alpn", "http/1.1,h2"]), "h2");
        assert_eq!(chosen(front, &["-servername", "A.example", "-alpn", "acme-tls/1"]), "acme-tls/1");
        let told = s_client(front, &["-noservername", "-alpn", "h2"]);
        assert!(told.contains("unrecognized name") || told.contains("alert number 112"), "{told}");
        refused(&proxy, "unrecognized_name", 1);

        let (_proxy, front) = passing(driver, &services, "", &(routes + &route("\"*\"", "other")));
        assert_eq!(chosen(front, &["-noservername", "-alpn", "http/1.1"]), "http/1.1");
        assert_eq!(chosen(front, &["-servername", "b.example", "-alpn", "http/1.1"]), "http/1.1");
        assert_eq!(chosen(front, &["-servername", "a.example", "-alpn", "h2"]), "h2");
    });
}

#[test]
fn a_hello_goes_on_as_it_came_whatever_its_pieces() {
    on_both_drivers(|driver| {
        let app = mirror();
        let (proxy, front) = passing(driver, &[("app", app.address())], "", &route("\"a.example\"", "app"));
        let hello = first_bytes_of_openssl(&["-servername", "a.example", "-alpn", "h2"]);
        let long: Vec<String> = (0..2500).map(|number| format!("proto-{number:04}")).collect();
        let long = first_bytes_of_openssl(&["-servername", "a.example", "-alpn", &long.join(",")]);
        assert!(message_of(&long).len() > 20_000, "{} bytes", long.len());
        for (bytes, size) in
            [(&hello, 1), (&hello, 7), (&hello, 100), (&hello, 1 << 14), (&long, 5000), (&long, 1 << 14)]
        {
            let bytes = cut(bytes, size);
            let mut client = Client::connect(front);
            if size == 100 {
                for byte in &bytes {
                    client.send([*byte]);
                }
            } else {
                client.send(&bytes);
            }
            client.send("and what follows");
            let back = client.exactly(bytes.len() + 16).unwrap();
            assert!(back == [&bytes[..], b"and what follows"].concat(), "in records of {size}");
            client.half_close();
            client.expect_end();
        }
        refused(&proxy, "ok", 6);
        let line = proxy.wait_for_access("of a long list", |line| line["alpn"].as_str().is_some_and(|a| a.len() > 100));
        assert!(line["alpn"].as_str().unwrap().starts_with("proto-0000,proto-0001"), "{line}");
    });
}

#[test]
fn what_is_no_hello_that_we_take_is_refused_with_the_alert_that_says_why() {
    on_both_drivers(|driver| {
        let app = mirror();
        let (proxy, front) = passing(driver, &[("app", app.address())], "service = \"app\"", "");
        let hello = first_bytes_of_openssl(&["-servername", "a.example"]);
        let named = |name: &[u8; 9]| {
            let mut bytes = hello.clone();
            let at = bytes.windows(9).position(|part| part == b"a.example").expect("the name is there");
            bytes[at..at + 9].copy_from_slice(name);
            bytes
        };
        let doubled = [&[22, 3, 1, 0, 4, 1, 0xff, 0xff, 0xff][..]].concat();
        for (bytes, alert) in [
            (named(b"10.0.0.77"), 47),
            (named(b"a..xample"), 47),
            (named(b"a\0example"), 47),
            (doubled, 50),
            (vec![22, 3, 1, 0, 4, 2, 0, 0, 0], 10),
        ] {
            let mut client = Client::connect(front);
            client.send(&bytes);
            assert_eq!(client.rest().unwrap(), [21, 3, 3, 0, 2, 2, alert]);
        }
        refused(&proxy, "bad_client_hello", 5);
        let mut client = Client::connect(front);
        client.send("SSH-2.0-OpenSSH_9.2\r\n");
        client.expect_end();
        refused(&proxy, "bad_client_hello", 6);
        assert_eq!(app.accepted(), 0, "no endpoint has seen anything of it");
        // The name itself goes on.
        let mut client = Client::connect(front);
        client.send(&hello);
        assert!(client.exactly(hello.len()).unwrap() == hello);
    });
}

#[test]
fn a_hello_that_does_not_come_to_its_end_is_waited_for_as_long_as_a_handshake() {
    on_both_drivers(|driver| {
        let app = mirror();
        let keys = "service = \"app\"\nhandshake_timeout = \"400ms\"";
        let (proxy, front) = passing(driver, &[("app", app.address())], keys, "");
        let hello = first_bytes_of_openssl(&["-servername", "a.example"]);
        for part in [0, 1, hello.len() - 1] {
            let begun = Instant::now();
            let mut client = Client::connect(front);
            client.send(&hello[..part]);
            client.expect_end();
            let waited = begun.elapsed();
            assert!(waited >= Duration::from_millis(390) && waited < Duration::from_secs(4), "{waited:?}");
        }
        refused(&proxy, "client_timeout", 3);
        let mut leaves = Client::connect(front);
        leaves.send(&hello[..100]);
        leaves.half_close();
        leaves.expect_end();
        refused(&proxy, "client_aborted", 1);
        assert_eq!(app.accepted(), 0);
    });
}

#[test]
fn a_policy_guards_tls_that_is_passed_on() {
    on_both_drivers(|driver| {
        let app = mirror();
        let nobody = "[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = []\n";
        let (proxy, front) = passing(driver, &[("app", app.address())], "service = \"app\"", nobody);
        // It may be ended while it still connects.
        if let Ok(mut client) = Client::try_connect(front) {
            let _ = client.try_send(first_bytes_of_openssl(&["-servername", "a.example"]));
            client.expect_end();
        }
        refused(&proxy, "policy_denied", 1);
        assert_eq!(app.accepted(), 0);
    });
}

// ---- the wrong port ----

#[test]
fn plain_http_at_a_tls_port_is_told_so_and_counted() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let check = |proxy: &Proxy, listener: &str, address: SocketAddr| {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n");
            let answer = client.response();
            assert_eq!(answer.status(), 400);
            assert!(answer.text().contains("this port speaks TLS"), "{}", answer.text());
            client.expect_end();
            let labels = [("listener", listener), ("reason", "plain_to_tls_port")];
            proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, 1);
            proxy.wait_for_log(&["https://", listener]);
        };
        let (proxy, front) = passing(driver, &[("app", app.address())], "service = \"app\"", "");
        check(&proxy, "front", front);
        let authority = Authority::new(DOMAIN);
        let strict = strict(driver, &authority, "app", app.address(), "", "");
        check(&strict.proxy, "inbound", strict.inbound);
        // Neither HTTP nor TLS is only closed.
        let mut client = Client::connect(strict.inbound);
        client.send("hello\r\n");
        client.expect_end();
        strict.proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "tls_refused")], 1);
    });
}

#[test]
fn tls_at_a_plain_http_port_is_told_so_and_counted() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).start();
        assert!(connect_to(front, "a.example", &client_config(None)).is_err());
        let told = s_client(front, &["-servername", "a.example"]);
        assert!(told.contains("wrong version number") || told.contains("packet length too long"), "{told}");
        let mut client = Client::connect(front);
        client.send(first_bytes_of_openssl(&["-servername", "a.example"]));
        let answer = client.response();
        assert_eq!(answer.status(), 400);
        assert!(answer.text().contains("this port speaks plain HTTP"), "{}", answer.text());
        client.expect_end();
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "tls_to_plain_port")], 3);
        proxy.wait_for_log(&["this port speaks plain HTTP", "front"]);
        assert_eq!(app.accepted(), 0);
    });
}
