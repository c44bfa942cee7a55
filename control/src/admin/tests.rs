use std::time::Duration;

use ringmesh_dataplane::telemetry::event::Event;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::testing::{SECRET, ready_state, snapshot};
use super::*;
use crate::state::{Phase, State};
use crate::telemetry::exposition::Format;
use crate::telemetry::grammar;
use crate::telemetry::testing::{Dataplane, attach};

/// More than five times what any answer here takes.
const DEADLINE: Duration = Duration::from_secs(10);

/// An answer as it came.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Self {
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head and its blank line");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
}

/// A proxy's admin port with what it shows.
struct Proxy {
    port: Port,
    state: state::Handle,
    telemetry: Telemetry,
}

impl Proxy {
    fn start(at: &Address) -> Self {
        let state = state::Handle::default();
        state.write(|state| *state = ready_state());
        let telemetry = Telemetry::default();
        let (_, live) = watch::channel(Some(Arc::new(snapshot())));
        let reported = state.clone();
        let refresh: Refresh = Arc::new(move || {
            reported.write(|state| state.dataplane.report_at = Some(state.dataplane.report_at.unwrap_or(0) + 1));
            Box::pin(std::future::ready(()))
        });
        let mut port = Port::new(Inputs { state: state.clone(), live, telemetry: telemetry.clone(), refresh });
        port.serve_at(Some(at)).unwrap();
        Self { port, state, telemetry }
    }

    async fn connect(&self) -> Box<dyn Stream> {
        match self.port.address().expect("it is open") {
            Address::Ip(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        }
    }

    /// Sends bytes and reads to the end.
    async fn exchange(&self, request: &str) -> Vec<u8> {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an end within the deadline").unwrap();
        answer
    }

    async fn ask(&self, method: &str, path: &str, fields: &str) -> Answer {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n{fields}\r\n");
        Answer::read(&self.exchange(&request).await)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, "").await
    }
}

/// Runs a test beside the server, on one thread as in control.
fn with_proxy<F: Future<Output = ()>>(test: impl FnOnce(Proxy) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { test(Proxy::start(&loopback())).await });
}

fn loopback() -> Address {
    Address::Ip("127.0.0.1:0".parse().unwrap())
}

#[test]
fn metrics_are_prometheus_text_unless_openmetrics_is_asked_for() {
    with_proxy(async |proxy| {
        let answer = proxy.get("/metrics").await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: text/plain; version=0.0.4"), "{}", answer.head);
        let samples = grammar::read(&answer.body, Format::Prometheus);
        assert_eq!(samples.sum("ringmesh_config_version", &[]), 7.0);
        let answer = proxy.ask("GET", "/metrics", "accept: application/openmetrics-text;version=1.0.0\r\n").await;
        assert!(answer.head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{}", answer.head);
        assert_eq!(grammar::read(&answer.body, Format::OpenMetrics).names(), samples.names());
    });
}

/// Not one turn of the runtime's thread for the whole page, nor memory for all of it.
#[test]
fn a_page_of_thousands_of_series_is_sent_while_it_is_written_and_others_are_served_meanwhile() {
    with_proxy(async |proxy| {
        let mut dataplane = Dataplane::start();
        for number in 0..3_000 {
            dataplane.serve(number % 2, ["outbound", &format!("route-{number}"), "0", "local"], 1000);
        }
        attach(&proxy.telemetry, &dataplane);
        let mut stream = proxy.connect().await;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
        let mut answer = vec![0; 1];
        timeout(DEADLINE, stream.read_exact(&mut answer)).await.expect("a first byte").unwrap();
        assert_eq!(proxy.get("/live").await.status, 200, "while the rest of the page waits for its reader");
        timeout(DEADLINE, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
        let answer = Answer::read(&answer);
        assert!(!answer.head.contains("content-length"), "{}", answer.head);
        assert!(answer.body.len() > 10_000_000, "{}", answer.body.len());
        let counts = answer.body.lines().filter(|line| line.starts_with("ringmesh_request_duration_seconds_count{"));
        assert_eq!(counts.count(), 3_000);
        assert!(answer.body.ends_with("\"} 1\n"), "the last family is the build");
    });
}

#[test]
fn ready_follows_the_state_and_says_what_is_missing() {
    with_proxy(async |proxy| {
        let answer = proxy.get("/ready").await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "ready\n"));
        proxy.state.write(|state| state.dataplane.phase = Phase::Restarting);
        let answer = proxy.get("/ready").await;
        assert_eq!((answer.status, answer.body.as_str()), (503, "not ready: the data plane is restarting\n"));
        assert_eq!(proxy.get("/live").await.status, 200, "control itself lives");
    });
}

#[test]
fn status_is_the_state_with_a_fresh_report() {
    with_proxy(async |proxy| {
        for asked in 1..=2 {
            let answer = proxy.get("/status").await;
            let state: State = serde_json::from_str(&answer.body).unwrap();
            assert_eq!(state, proxy.state.get());
            assert_eq!(state.dataplane.report_at, Some(asked));
        }
    });
}

#[test]
fn config_is_what_is_in_effect_without_secrets() {
    with_proxy(async |proxy| {
        let answer = proxy.get("/config").await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/json"), "{}", answer.head);
        let config: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(config["version"], 7);
        assert!(!answer.body.contains(std::str::from_utf8(SECRET).unwrap()));
    });
}

#[test]
fn handshakes_are_those_up_to_the_moment_of_asking() {
    use crate::telemetry::events::tests::{self, Ring};
    use crate::telemetry::handshakes::tests::handshake;
    with_proxy(async |proxy| {
        let ring = Ring::default();
        tests::attach(&proxy.telemetry.events, &ring);
        ring.push(&Event::Handshake(handshake("spiffe://shop.example/ns/default/sa/web")));
        let records: Value = serde_json::from_str(&proxy.get("/handshakes").await.body).unwrap();
        assert_eq!(records.as_array().unwrap().len(), 1);
        assert_eq!(records[0]["peer"], "spiffe://shop.example/ns/default/sa/web");
        assert_eq!(records[0]["direction"], "inbound");
        let counts: Value = serde_json::from_str(&proxy.get("/handshakes/counts").await.body).unwrap();
        assert_eq!(counts[0]["handshakes"], 1);
    });
}

#[test]
fn every_page_that_the_index_names_is_there_and_head_has_the_fields_alone() {
    with_proxy(async |proxy| {
        let index = proxy.get("/").await;
        assert!(index.head.contains("content-type: text/html"), "{}", index.head);
        let links: Vec<&str> = index.body.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert!(links.contains(&"/metrics") && links.contains(&"/handshakes"), "{links:?}");
        for link in links {
            let answer = proxy.get(link).await;
            assert_eq!(answer.status, 200, "{link}");
            let head = proxy.ask("HEAD", link, "").await;
            assert_eq!((head.status, head.body.as_str()), (200, ""), "{link}");
            assert!(head.head.contains("content-length: "), "{}", head.head);
        }
    });
}

#[test]
fn other_methods_are_refused_and_other_paths_get_a_hint() {
    with_proxy(async |proxy| {
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let answer = proxy.ask(method, "/metrics", "content-length: 0\r\n").await;
            assert_eq!(answer.status, 405, "{method}");
            assert!(answer.head.contains("allow: get, head"), "{}", answer.head);
        }
        let answer = proxy.get("/config_dump").await;
        assert_eq!(answer.status, 404);
        assert!(answer.body.contains("did you mean /config?"), "{}", answer.body);
        assert!(proxy.get("/nothing").await.body.contains("/metrics "));
    });
}

#[test]
fn what_the_workload_is_called_cannot_write_html() {
    with_proxy(async |proxy| {
        proxy.state.write(|state| state.workload = "<script>\"&".to_owned());
        let answer = proxy.get("/").await;
        assert!(
            answer.body.contains("&lt;script&gt;&quot;&amp;") && !answer.body.contains("<script>"),
            "{}",
            answer.body
        );
    });
}

#[test]
fn a_head_beyond_the_limits_is_refused_and_garbage_closes() {
    with_proxy(async |proxy| {
        let answer = proxy.ask("GET", "/live", &format!("x: {}\r\n", "a".repeat(limits::MAX_HEAD_BYTES))).await;
        assert_eq!(answer.status, 431);
        let answer = proxy.ask("GET", "/live", &"x: y\r\n".repeat(limits::MAX_FIELDS + 1)).await;
        assert_eq!(answer.status, 431);
        let answer = proxy.exchange("\u{16}\u{3}\u{1} no HTTP\r\n\r\n").await;
        assert!(answer.is_empty() || Answer::read(&answer).status == 400);
        assert_eq!(proxy.get("/live").await.status, 200, "the next one is served");
    });
}

/// Waits out the time that silent connections have, so it is the slowest test here.
#[test]
fn connections_that_say_nothing_are_closed_and_keep_others_out_no_longer_than_that() {
    with_proxy(async |proxy| {
        let mut silent = Vec::new();
        for _ in 0..limits::MAX_CONNECTIONS {
            silent.push(proxy.connect().await);
        }
        let mut late = proxy.connect().await;
        late.write_all(b"GET /live HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        timeout(5 * limits::HEAD_TIMEOUT, late.read_to_end(&mut answer)).await.expect("served in time").unwrap();
        assert_eq!(Answer::read(&answer).status, 200);
    });
}

#[test]
fn the_pages_are_served_over_a_unix_socket_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let proxy = Proxy::start(&Address::Unix(path));
        assert_eq!(proxy.get("/live").await.status, 200);
    });
}

#[test]
fn a_port_in_use_is_an_error_that_names_its_key_and_changes_nothing() {
    with_proxy(async |mut proxy| {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = Address::Ip(taken.local_addr().unwrap());
        let error = proxy.port.serve_at(Some(&address)).expect_err("it is in use").to_string();
        assert!(error.starts_with("[admin] bind: ") && error.contains("in use"), "{error}");
        assert_eq!(proxy.get("/live").await.status, 200, "the pages stay where they were");
    });
}

#[test]
fn the_pages_move_with_the_config_and_close_with_it() {
    with_proxy(async |mut proxy| {
        let folder = tempfile::tempdir().unwrap();
        let old = proxy.port.address().unwrap().clone();
        let Address::Ip(old_port) = old else { panic!("bound to a port") };
        let mut open = proxy.connect().await;
        open.write_all(b"GET /live HTTP/1.1\r\nhost: admin\r\n\r\n").await.unwrap();
        let mut answer = [0; 1024];
        let length = timeout(DEADLINE, open.read(&mut answer)).await.unwrap().unwrap();
        assert_eq!(Answer::read(&answer[..length]).status, 200);
        proxy.port.serve_at(Some(&loopback())).unwrap();
        assert_eq!(proxy.port.address(), Some(&old), "the same wish moves nothing");
        proxy.port.serve_at(Some(&Address::Unix(folder.path().join("admin.sock")))).unwrap();
        assert_eq!(proxy.get("/live").await.status, 200);
        assert_eq!(timeout(DEADLINE, open.read(&mut [0])).await.unwrap().unwrap(), 0, "what was open ends");
        assert!(TcpStream::connect(old_port).await.is_err(), "the old port is closed");
        proxy.port.serve_at(None).unwrap();
        assert_eq!(proxy.port.address(), None);
    });
}
