//! Programs of others on either side: curl, h2load, nginx, HAProxy.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::{Client, Program, Service, on_both_drivers, ports};

use super::proxy_by_http2;
use crate::support::{DOMAIN, forwarding, pattern, proxy_to, ringmesh};

/// nginx, which speaks HTTP/2 by prior knowledge, and whose server has these directives; and where it listens.
pub(crate) fn nginx(server: &str) -> (Program, SocketAddr) {
    let address = ports::free();
    (Program::nginx_http(address, &format!("server {{ listen {address} http2;\n{server}\n}}")), address)
}

/// HAProxy, which speaks HTTP/2 by prior knowledge on both sides; and where it listens.
fn haproxy(behind: SocketAddr) -> (Program, SocketAddr) {
    let address = ports::free();
    let listen = format!("listen front\n  mode http\n  bind {address} proto h2\n  server app {behind} proto h2\n");
    (Program::haproxy(address, &listen), address)
}

/// Requests of every kind that both ends must carry.
#[track_caller]
pub(crate) fn check(front: SocketAddr, what: &str) {
    let mut two = Connection::connect(front);
    for bytes in [0, 1, 70_000, 1_000_000] {
        let body = pattern(bytes);
        let answer = two.exchange(&Outgoing::post("app", "/echo", body.clone()));
        assert_eq!(answer.status(), 200, "{what}: {answer:?}");
        assert!(answer.body == body, "{what}: {bytes} bytes");
    }
    let streams: Vec<u32> = (0..50).map(|_| two.request(&Outgoing::post("app", "/echo", "many"))).collect();
    for stream in streams {
        assert_eq!(two.response(stream).text(), "many", "{what}");
    }
    let mut one = Client::connect(front);
    for _ in 0..3 {
        one.send("POST /echo HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nover");
        assert_eq!(one.response().text(), "over", "{what}");
    }
}

fn echo() -> Service {
    http2::service(|request| Outgoing::ok(request.body.clone()))
}

#[test]
fn haproxy_as_a_service_is_spoken_to_by_http_2() {
    on_both_drivers(|driver| {
        let service = echo();
        let (_haproxy, address) = haproxy(service.address());
        let (_proxy, front) = proxy_by_http2(driver, &[address], "", "");
        check(front, "haproxy");
    });
}

#[test]
fn nginx_as_a_service_is_spoken_to_by_http_2_and_its_goodbyes_lose_no_request() {
    const REQUESTS: usize = 300;
    on_both_drivers(|driver| {
        // It says goodbye after every 20 requests.
        let (_nginx, address) = nginx(
            "keepalive_requests 20;\nlocation / { default_type text/plain; return 200 \"$server_protocol $request_method\"; }",
        );
        let (_proxy, front) = proxy_by_http2(driver, &[address], "", "");
        let mut two = Connection::connect(front);
        for number in 0..REQUESTS {
            let answer = two.get("app", "/");
            assert_eq!((answer.status(), answer.text().as_str()), (200, "HTTP/2.0 GET"), "request {number}");
        }
        for number in 0..REQUESTS / 10 {
            let streams: Vec<u32> = (0..10).map(|_| two.request(&Outgoing::get("app", "/"))).collect();
            for stream in streams {
                let answer = two.response(stream);
                assert_eq!((answer.status(), answer.text().as_str()), (200, "HTTP/2.0 GET"), "group {number}");
            }
        }
        let mut one = Client::connect(front);
        for _ in 0..REQUESTS {
            assert_eq!(one.get("app", "/").text(), "HTTP/2.0 GET");
        }
    });
}

#[test]
fn haproxy_in_front_of_the_proxy_speaks_http_2_with_it() {
    on_both_drivers(|driver| {
        let service = echo();
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let (_haproxy, address) = haproxy(front);
        let mut two = Connection::connect(address);
        for bytes in [0, 1, 70_000, 1_000_000] {
            let body = pattern(bytes);
            assert!(two.exchange(&Outgoing::post("app", "/echo", body.clone())).body == body, "{bytes} bytes");
        }
    });
}

/// What a program says on standard output; it must succeed.
#[track_caller]
pub(crate) fn output(command: &mut Command, package: &str) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{error}: apt-get install {package}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn curl_speaks_http_2_with_the_proxy_by_prior_knowledge_and_by_alpn() {
    on_both_drivers(|driver| {
        let service = echo();
        let authority = Authority::new(DOMAIN);
        let certificate = authority.server(&["shop.example"]);
        let (front, edge) = (ports::free(), ports::free());
        let config = format!(
            "{}[[listener]]\nname = \"edge\"\nbind = \"{edge}\"\nservice = \"app\"\n\
             tls = {{ certificate = \"svid/svid.pem\", key = \"svid/svid.key\" }}\n",
            forwarding(front, &[service.address()], "", "protocol = \"http2\"")
        );
        let mut proxy = ringmesh(driver).config(config).prepare();
        certificate.write(&proxy.folder().join("svid"));
        proxy.run();
        let body = proxy.folder().join("body");
        fs::write(&body, pattern(300_000)).unwrap();
        let curl = |options: &[&str], url: &str| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--max-time", "20", "-o"]).arg(proxy.folder().join("answer"));
            command.arg("--data-binary").arg(format!("@{}", body.display()));
            command.args(["-w", "%{http_version} %{http_code}"]).args(options).arg(url);
            let told = output(&mut command, "curl");
            assert!(fs::read(proxy.folder().join("answer")).unwrap() == pattern(300_000), "{options:?}");
            told
        };
        assert_eq!(curl(&["--http2-prior-knowledge"], &format!("http://{front}/echo")), "2 200");
        assert_eq!(curl(&["--http1.1"], &format!("http://{front}/echo")), "1.1 200");
        let bundle = proxy.folder().join("svid/bundle.pem");
        let resolve = format!("shop.example:{}:127.0.0.1", edge.port());
        let known = ["--cacert", bundle.to_str().unwrap(), "--resolve", resolve.as_str()];
        let url = format!("https://shop.example:{}/echo", edge.port());
        assert_eq!(curl(&[&known[..], &["--http2"]].concat(), &url), "2 200");
        assert_eq!(curl(&[&known[..], &["--http1.1"]].concat(), &url), "1.1 200");
    });
}

#[test]
fn curl_reads_trailers_by_both_versions_and_what_follows_an_upgrade() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            let request = talk.request()?;
            if request.is_some_and(|request| request.field("upgrade").is_some()) {
                talk.send(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nfirst words",
                )
            } else {
                talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 5\r\n\r\n")
            }
        });
        let front = ports::free();
        let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", "")).start();
        // Heads and trailers as they come, and the body among them.
        let curl = |options: &[&str]| {
            let mut command = Command::new("curl");
            command.args(["-sS", "--max-time", "20", "-D", "-"]).args(options).arg(format!("http://{front}/"));
            output(&mut command, "curl").to_lowercase()
        };
        // The second offers h2c, which nobody takes up (RFC 9113 section 3.1).
        for (version, first) in [
            ("--http1.1", "http/1.1 200 ok"),
            ("--http2", "http/1.1 200 ok"),
            ("--http2-prior-knowledge", "http/2 200"),
        ] {
            let told = curl(&[version, "-H", "TE: trailers"]);
            assert!(told.starts_with(first) && told.contains("hellox-sum: 5"), "{version}: {told}");
        }
        let told = curl(&["-H", "Connection: Upgrade", "-H", "Upgrade: websocket"]);
        assert!(told.starts_with("http/1.1 101 ") && told.ends_with("\r\n\r\nfirst words"), "{told}");
    });
}

#[test]
fn h2load_has_every_request_answered_in_every_pairing() {
    const REQUESTS: u32 = if cfg!(debug_assertions) { 2_000 } else { 20_000 };
    on_both_drivers(|driver| {
        let app = crate::load::service();
        let (_by_2, to_2) = proxy_by_http2(driver, &[app.address()], "", "");
        let (_by_1, to_1) = proxy_to(driver, &[app.address()]);
        for front in [to_2, to_1] {
            for version in [&[][..], &["--h1"]] {
                let mut command = Command::new("h2load");
                command.args([
                    "-n",
                    &REQUESTS.to_string(),
                    "-c",
                    "4",
                    "-m",
                    if version.is_empty() { "20" } else { "1" },
                ]);
                let said = output(command.args(version).arg(format!("http://{front}/")), "nghttp2-client");
                let all =
                    format!("{REQUESTS} total, {REQUESTS} started, {REQUESTS} done, {REQUESTS} succeeded, 0 failed");
                assert!(said.contains(&all), "{version:?} to {front}: {said}");
                assert!(said.contains(&format!("status codes: {REQUESTS} 2xx")), "{said}");
            }
        }
    });
}
