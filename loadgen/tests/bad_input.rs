//! What the command says when it is asked for what cannot be.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::process::Command;

use common::Certificates;

fn check(arguments: &[&str], part: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_ringmesh-load")).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert!(text.contains(part), "{arguments:?} does not say `{part}`: {text}");
}

#[test]
fn targets_and_requests_that_cannot_be_are_refused_with_what_would_be_right() {
    let files = Certificates::new();
    let requests = files.path("requests");
    std::fs::write(&requests, "{\"path\": \"/a\"}\n{\"pth\": \"/b\"}\n").unwrap();
    let requests = requests.to_str().unwrap();
    check(&["http", "ftp://x/"], "write one such as http://127.0.0.1:8080/path");
    check(&["http", "http://127.0.0.1:99999/"], "cannot resolve `127.0.0.1:99999`");
    check(&["http", "http://127.0.0.1:1/{{x}}"], "`{{x}}` is no placeholder; there are {{counter}}");
    check(&["http", "http://127.0.0.1:1/", "-H", "x: {{counter"], "is not followed by `}}`");
    check(&["http", "http://127.0.0.1:1/", "--requests-from", requests], "line 2 of");
    check(&["http", "http://127.0.0.1:1/", "--requests-from", "/none"], "cannot read the requests `/none`");
    check(&["http", "http://127.0.0.1:1/", "--data", "@/none"], "cannot read the body `/none`");
    check(&["http", "http://127.0.0.1:1/", "--http2", "--streams", "0"], "1 to 10,000 streams");
    check(&["http", "http://a b/", "--unix-socket", "/none"], "visible ASCII");
    check(&["grpc", "http://127.0.0.1:1/Method"], "`/Method` is no gRPC method");
    check(&["grpc", "http://127.0.0.1:1/a.B/C", "--message", "/none"], "cannot read the message `/none`");
    check(&["serve", "http", "--bind", "unix:/none/socket"], "cannot listen on unix:/none/socket");
}

#[test]
fn certificates_that_cannot_be_used_are_refused_with_the_file_and_the_cause() {
    let files = Certificates::new();
    let [ca, cert, key, other] =
        ["ca.pem", "server.pem", "server.key", "client.key"].map(|name| files.path(name).to_str().unwrap().to_owned());
    let url = "https://localhost:1/";
    check(&["http", url, "--cacert", "/none.pem"], "cannot read `/none.pem` as PEM");
    check(&["http", url, "--cacert", &key], "holds no certificate");
    check(&["http", url, "--cert", &cert, "--key", &other], "see that --key belongs to the first certificate");
    check(&["http", url, "--cert", &cert], "--key <FILE>");
    check(&["http", url, "--cacert", &ca, "--sni", "a..b"], "`a..b` is no name that a certificate could have");
    check(&["http", "http://localhost:1/", "--cacert", &ca], "write https://");
    check(&["tcp", "localhost:1", "--insecure"], "--tls");
    let serve = ["serve", "http", "--bind", "127.0.0.1:0"];
    check(&[&serve[..], &["--cert", &cert, "--key", &other]].concat(), "see that --key belongs to");
    check(&[&serve[..], &["--cert", &key, "--key", &key]].concat(), "holds no certificate");
    check(&[&serve[..], &["--cert", &cert, "--key", &key, "--client-ca", &key]].concat(), "holds no certificate");
}
