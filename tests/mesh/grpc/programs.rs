//! grpcio, and nginx between it and the proxy.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::{Driver, Proxy, eventually, on_both_drivers, ports};

use crate::http2::programs::nginx;
use crate::support::{DOMAIN, RINGMESH, identity, ringmesh};

/// The folder of other implementations, which `./tests/run` puts beside the build.
pub(super) fn peers() -> PathBuf {
    PathBuf::from(RINGMESH).ancestors().nth(2).unwrap().join("peers")
}

/// The Python that has grpcio.
fn python() -> PathBuf {
    let python = peers().join("bin/python");
    let folder = peers();
    assert!(
        python.exists(),
        "grpcio is needed: python3 -m venv {0} && {0}/bin/pip install grpcio grpcio-health-checking",
        folder.display()
    );
    python
}

pub(super) fn script(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/mesh/grpc").join(name)
}

/// A service by grpcio. It ends when it is dropped.
pub(crate) struct Grpcio {
    child: Child,
    output: BufReader<ChildStdout>,
    pub(crate) address: SocketAddr,
}

impl Grpcio {
    pub(crate) fn start() -> Self {
        Self::serving("serve")
    }

    /// One that serves `shop.Cart`, and says so.
    pub(crate) fn with_health() -> Self {
        Self::serving("serve-with-health")
    }

    /// What it says of itself from now on.
    pub(crate) fn set_health(&mut self, service: &str, status: &str) {
        let input = self.child.stdin.as_mut().unwrap();
        writeln!(input, "{service} {status}").unwrap();
    }

    fn serving(word: &str) -> Self {
        let mut command = Command::new(python());
        command.arg(script("peer.py")).arg(word).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut port = String::new();
        output.read_line(&mut port).unwrap();
        let address = SocketAddr::from(([127, 0, 0, 1], port.trim().parse::<u16>().expect("a port")));
        Self { child, output, address }
    }

    /// Waits until it has seen a call cancelled.
    pub(super) fn wait_for_cancelled(&mut self) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "cancelled");
    }
}

impl Drop for Grpcio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Calls of all kinds, by grpcio.
#[track_caller]
fn call(address: SocketAddr) {
    let Output { status, stdout, stderr } =
        Command::new(python()).arg(script("peer.py")).args(["call", &address.to_string(), "app"]).output().unwrap();
    let said = String::from_utf8_lossy(&stdout);
    assert!(status.success() && said.contains("all well"), "{said}{}", String::from_utf8_lossy(&stderr));
}

/// A proxy that knows `app` alone.
fn routed(driver: Driver, app: SocketAddr) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let config = format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\n[[route]]\nhosts = [\"app\"]\n\
         [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"{app}\"]\n"
    );
    (ringmesh(driver).config(config).start(), front)
}

#[test]
fn grpcio_calls_grpcio_in_all_four_kinds_with_deadlines_cancellation_statuses_and_metadata() {
    on_both_drivers(|driver| {
        let mut service = Grpcio::start();
        let (proxy, front) = routed(driver, service.address);
        call(front);
        // One by its deadline, one by its caller.
        service.wait_for_cancelled();
        service.wait_for_cancelled();
        let metrics = proxy.metrics();
        assert_eq!(metrics.sum("ringmesh_worker_panics_total", &[]), 0);
        eventually("nothing is left", || {
            (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
        });
    });
}

/// A workload with a listener of these keys, and `app` behind it by HTTP/2.
fn workload(driver: Driver, authority: &Authority, name: &str, listener: &str, app: &str) -> Proxy {
    let config = format!(
        "{}[[listener]]\n{listener}\n[[route]]\nhosts = [\"app\"]\n[[service]]\nname = \"app\"\nprotocol = \"http2\"\n{app}\n",
        identity(name)
    );
    let mut proxy = ringmesh(driver).config(config).prepare();
    authority.svid(name).write(&proxy.folder().join("svid"));
    proxy.run();
    proxy
}

#[test]
fn grpcio_calls_through_two_proxies_in_one_connection_of_each_worker() {
    on_both_drivers(|driver| {
        let mut service = Grpcio::start();
        let authority = Authority::new(DOMAIN);
        let [front, inbound] = [(); 2].map(|()| ports::free());
        let listener = format!("name = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"");
        let there = workload(driver, &authority, "there", &listener, &format!("endpoints = [\"{}\"]", service.address));
        let listener = format!("name = \"front\"\nbind = \"{front}\"");
        let here =
            workload(driver, &authority, "here", &listener, &format!("peer = \"there\"\nendpoints = [\"{inbound}\"]"));
        call(front);
        service.wait_for_cancelled();
        service.wait_for_cancelled();
        // 300 calls at once, on one connection of the caller: no more than a worker has trunks under load.
        let opened = here.metrics().sum("ringmesh_upstream_connections_opened_total", &[]);
        assert!(opened <= 8, "{opened} connections");
        for proxy in [&here, &there] {
            assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0);
            eventually("nothing is left", || {
                (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
            });
        }
    });
}

/// What a listener leaves of a call's time, the next proxy and the service are told.
#[test]
fn the_time_that_is_left_of_a_call_is_told_through_a_channel() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| Outgoing::grpc(request.body.get(5..).unwrap_or_default(), 0));
        let authority = Authority::new(DOMAIN);
        let [front, inbound] = [(); 2].map(|()| ports::free());
        let listener = format!("name = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"");
        let _there =
            workload(driver, &authority, "there", &listener, &format!("endpoints = [\"{}\"]", service.address()));
        let listener = format!("name = \"front\"\nbind = \"{front}\"\nrequest_timeout = \"2s\"");
        let _here =
            workload(driver, &authority, "here", &listener, &format!("peer = \"there\"\nendpoints = [\"{inbound}\"]"));
        let mut client = Connection::connect(front);
        for _ in 0..2 {
            let call = Outgoing::post("app", "/svc/Echo", grpc_frame(b"ping")).with("te", "trailers");
            let call = call.with("content-type", "application/grpc").with("grpc-timeout", "10S");
            assert_eq!(client.exchange(&call).status(), 200);
            let told = service.last().field("grpc-timeout").map(str::to_owned).expect("it is told");
            let (number, unit) = told.split_at(told.len() - 1);
            let each = match unit {
                "S" => 1_000_000,
                "m" => 1_000,
                "u" => 1,
                other => panic!("{other}: {told}"),
            };
            assert!(number.parse::<u64>().unwrap() * each <= 2_000_000, "{told}");
        }
    });
}

#[test]
fn grpcio_calls_through_nginx_in_front_of_the_proxy() {
    on_both_drivers(|driver| {
        let service = Grpcio::start();
        let (_proxy, front) = routed(driver, service.address);
        let (_nginx, address) = nginx(&format!(
            "client_max_body_size 0; client_body_timeout 30s; \
             location / {{ grpc_pass grpc://{front}; grpc_set_header Host $host; grpc_read_timeout 30s; }}"
        ));
        call(address);
    });
}
