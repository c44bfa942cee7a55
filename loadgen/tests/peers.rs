//! Both sides against programs of others: curl, h2load and nginx. What two sides of one crate agree on could be wrong.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::fmt::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use common::{Certificates, LIMIT, on_every_driver, serve, serve_tls};
use ringmesh_loadgen::serve::{Grpc, Http, ResponseForm, Service};

/// What a program says on standard output; it must succeed.
fn output(command: &mut Command, package: &str) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot start `{program}`: {error}; run `apt-get install {package}`"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

fn curl(arguments: &[&str]) -> String {
    output(Command::new("curl").args(["-sS", "--max-time", "20"]).args(arguments), "curl")
}

#[test]
fn curl_speaks_both_versions_with_a_served_port_plain_and_with_certificates() {
    let certificates = Certificates::new();
    let [ca, client, key] = ["ca.pem", "client.pem", "client.key"].map(|name| certificates.path(name));
    let [ca, client, key] = [&ca, &client, &key].map(|path| path.to_str().unwrap());
    on_every_driver(|grant| {
        let service = Service::Http(Http { form: ResponseForm::Echo, ..Http::default() });
        let plain = serve(grant, service.clone());
        let tls = serve_tls(grant, service, certificates.strict_server());
        let body = "0123456789".repeat(5_000);
        let file = certificates.path("body");
        std::fs::write(&file, &body).unwrap();
        let data = format!("@{}", file.display());
        let sent = ["-w", "\n%{http_version} %{http_code}", "--data-binary", &data];
        let plain = format!("http://{}/", plain.address());
        let tls = format!("https://localhost:{}/", tls.address().port());
        let known = ["--cacert", ca, "--cert", client, "--key", key];
        for (options, url, version) in [
            (vec!["--http1.1"], &plain, "1.1"),
            (vec!["--http2-prior-knowledge"], &plain, "2"),
            ([&known[..], &["--http1.1"]].concat(), &tls, "1.1"),
            ([&known[..], &["--http2"]].concat(), &tls, "2"),
        ] {
            let answer = curl(&[&options[..], &sent, &[url]].concat());
            assert!(answer == format!("{body}\n{version} 200"), "{options:?}: {}", &answer[answer.len() - 20..]);
        }
        // One connection, two requests. (With prior knowledge curl 7.88 fails at the second, whoever serves.)
        let counts = ["-o", "/dev/null", "-o", "/dev/null", "-w", "%{num_connects}"];
        assert_eq!(curl(&[&counts[..], &known, &["--http2", &tls, &tls]].concat()), "10");
    });
}

#[test]
fn h2load_gets_all_its_answers() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        let service = Service::Http(Http { body_bytes: 1_000, ..Http::default() });
        let plain = serve(grant, service.clone());
        let tls = serve_tls(grant, service, certificates.server());
        for url in [format!("http://{}/", plain.address()), format!("https://localhost:{}/", tls.address().port())] {
            let mut command = Command::new("h2load");
            let text = output(command.args(["-n", "2000", "-c", "8", "-m", "25", &url]), "nghttp2-client");
            assert!(text.contains("2000 done, 2000 succeeded, 0 failed, 0 errored, 0 timeout"), "{url}:\n{text}");
            assert!(text.contains("(2000000) data"), "{url}:\n{text}");
        }
    });
}

/// nginx with one server, ended with this.
struct Nginx {
    child: Child,
    _folder: tempfile::TempDir,
}

impl Nginx {
    fn start(listen: &str, address: SocketAddr, server: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = String::new();
        writeln!(config, "daemon off; master_process off; pid {}/pid; error_log stderr;", folder.path().display())
            .unwrap();
        writeln!(config, "events {{ worker_connections 1024; }}\nhttp {{ access_log off;").unwrap();
        for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
            writeln!(config, "{kind}_temp_path {}/{kind};", folder.path().display()).unwrap();
        }
        writeln!(config, "server {{ listen {address} {listen}; {server} }} }}").unwrap();
        let path = folder.path().join("nginx.conf");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("nginx")
            .env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap()))
            .args(["-e", "stderr", "-p"])
            .arg(folder.path())
            .arg("-c")
            .arg(&path)
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start nginx: {error}; run `apt-get install nginx-light`"));
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < LIMIT, "nginx does not listen");
            thread::sleep(Duration::from_millis(10));
        }
        Self { child, _folder: folder }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn ringmesh_load(arguments: &[&str]) -> String {
    output(Command::new(env!("CARGO_BIN_EXE_ringmesh-load")).args(arguments), "none")
}

fn check(text: &str, requests: u64) {
    let report: serde_json::Value = serde_json::from_str(text).unwrap();
    let total = &report["total"];
    assert_eq!(total["succeeded"], requests, "{} {}", total["failures"], report["explanations"]);
    assert_eq!(total["requests"], requests);
}

fn path_of(certificates: &Certificates, name: &str) -> String {
    let path: &Path = &certificates.path(name);
    path.to_str().unwrap().to_owned()
}

#[test]
fn nginx_answers_all_requests_over_http2_and_tls_also_when_it_asks_for_new_connections() {
    let certificates = Certificates::new();
    let file = |name: &str| path_of(&certificates, name);
    let address = free_address();
    // A connection is closed in good order after 100 requests, with others under way.
    let server = format!(
        "ssl_protocols TLSv1.3; ssl_certificate {}; ssl_certificate_key {}; ssl_client_certificate {};\n\
         ssl_verify_client on; keepalive_requests 100; return 200 hello;",
        file("server.pem"),
        file("server.key"),
        file("ca.pem"),
    );
    let _nginx = Nginx::start("ssl http2", address, &server);
    let url = format!("https://localhost:{}/", address.port());
    let [ca, cert, key] = [file("ca.pem"), file("client.pem"), file("client.key")];
    let common = ["--closed", "-d", "60s", "-c", "4", "--json", "--cacert", &ca, "--cert", &cert, "--key", &key];
    for (requests, options) in [
        ("2000", &["--http2", "--streams", "8"][..]),
        ("2000", &[]),
        ("100", &["--http2", "--no-keepalive"]),
        ("100", &["--no-keepalive"]),
    ] {
        let report = ringmesh_load(&[&["http", &url][..], &common, &["-n", requests], options].concat());
        check(&report, requests.parse().unwrap());
    }
}

#[test]
fn nginx_reads_who_the_client_is_from_a_proxy_header() {
    let address = free_address();
    let server = "if ($proxy_protocol_addr = 10.1.2.3) { return 200; } return 403;";
    let _nginx = Nginx::start("proxy_protocol", address, server);
    let url = format!("http://{address}/");
    for version in ["v1", "v2"] {
        let source = ["--proxy-protocol", version, "--proxy-source", "10.1.2.3:4567"];
        check(&ringmesh_load(&[&["http", &url, "--closed", "-n", "20", "--json"][..], &source].concat()), 20);
    }
}

#[test]
fn curl_reads_messages_and_the_status_behind_them() {
    let files = Certificates::new();
    // A message of five bytes, not compressed.
    let sent = b"\0\0\0\0\x05hello";
    std::fs::write(files.path("message"), sent).unwrap();
    on_every_driver(|grant| {
        let server = serve(grant, Service::Grpc(Grpc::default()));
        let url = format!("http://{}/shop.Cart/Get", server.address());
        let (data, head, body) =
            (format!("@{}", path_of(&files, "message")), path_of(&files, "head"), path_of(&files, "body"));
        let fields = ["-H", "content-type: application/grpc", "-H", "te: trailers"];
        let common = ["--http2-prior-knowledge", "--data-binary", &data, "-D", &head, "-o", &body, &url];
        curl(&[&fields[..], &common].concat());
        assert_eq!(std::fs::read(&body).unwrap(), sent);
        let head = std::fs::read_to_string(&head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/2 200") && head.contains("grpc-status: 0"), "{head}");
    });
}

#[test]
fn calls_of_all_kinds_pass_through_nginx() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Grpc(Grpc::default()));
        let address = free_address();
        let _nginx =
            Nginx::start("http2", address, &format!("location / {{ grpc_pass grpc://{}; }}", server.address()));
        for (method, kind) in [
            ("Get", "unary"),
            ("GetServerStream", "server-stream"),
            ("AddClientStream", "client-stream"),
            ("Bidi", "bidi"),
        ] {
            let url = format!("http://{address}/shop.Cart/{method}");
            let common = ["--closed", "-n", "100", "-d", "60s", "--streams", "4", "--body", "300", "--json"];
            check(&ringmesh_load(&[&["grpc", &url, "--kind", kind][..], &common].concat()), 100);
        }
    });
}
