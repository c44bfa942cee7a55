//! What the kernel denies: the proxy starts all the same, and says why it is not on the better driver.
//!
//! The kernel is made to deny by strace, which answers `io_uring_setup(2)` in its place.

use std::process::Command;

use ringmesh_tests::client::Client;
use ringmesh_tests::service::Service;
use ringmesh_tests::{Driver, ports};

use crate::support::{RINGMESH, forwarding, ringmesh};

/// Runs a command whose every `io_uring_setup(2)` fails with this error; `when` as strace writes it.
fn denying(error_and_when: &str) -> Vec<String> {
    let inject = format!("inject=io_uring_setup:error={error_and_when}");
    ["strace", "-f", "-q", "-o", "/dev/null", "-e", "trace=io_uring_setup", "-e", &inject].map(str::to_owned).to_vec()
}

/// What `ringmesh check` says about a config with this driver, and its exit code.
fn check(denied: &str, driver: &str) -> (String, Option<i32>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("proxy.toml");
    let config = forwarding(ports::free(), &[ports::free()], "", "");
    std::fs::write(&file, format!("[runtime]\ndriver = \"{driver}\"\n{config}")).unwrap();
    let words = denying(denied);
    let output = Command::new(&words[0])
        .args(&words[1..])
        .args([RINGMESH, "check"])
        .arg(&file)
        .output()
        .expect("strace is needed: apt-get install strace");
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

#[test]
fn io_uring_denied_means_epoll_and_check_names_the_reason() {
    let (said, code) = check("EPERM", "auto");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("epoll, because the kernel refuses io_uring"), "{said}");
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(said.contains("kernel.io_uring_disabled"), "what to look at is said: {said}");
}

#[test]
fn a_kernel_that_does_not_know_the_best_flags_gets_the_next_best() {
    let (said, code) = check("EINVAL:when=1", "auto");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("io_uring (coop_taskrun), because the kernel refuses io_uring (defer_taskrun)"), "{said}");
    let (said, code) = check("EINVAL:when=1..2", "auto");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("io_uring (no flags), because the kernel refuses io_uring (coop_taskrun)"), "{said}");
}

#[test]
fn io_uring_demanded_and_denied_is_an_error() {
    let (said, code) = check("EPERM", "io_uring");
    assert_ne!(code, Some(0), "{said}");
    assert!(said.contains("io_uring is demanded"), "{said}");
    assert!(said.contains("driver = \"auto\""), "what to do is said: {said}");
}

#[test]
fn a_proxy_whose_kernel_denies_io_uring_serves_on_epoll_and_says_so() {
    let service = Service::saying("hello");
    let front = ports::free();
    let words = denying("EPERM");
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let proxy =
        ringmesh(Driver::Auto).launched_by(&words).config(forwarding(front, &[service.address()], "", "")).start();
    assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
    assert_eq!(proxy.metrics().sum("ringmesh_driver_info", &[("driver", "epoll")]), 1);
    proxy.wait_for_log(&["not the best driver", "Operation not permitted"]);
    let status = proxy.status().to_string();
    assert!(status.contains("epoll"), "{status}");
}
