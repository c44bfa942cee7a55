//! Load and services in numbers, by the load generator as a library.

use std::net::SocketAddr;
use std::time::Duration;

use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, BodyCheck, Entry, Exchange, Protocol, Reuse, Running, Settings};
use ringmesh_loadgen::report::{Failure, Report};
use ringmesh_loadgen::serve::{self, Http, ResponseForm, Service};

/// A service that answers every request at once, in a few bytes.
pub(crate) fn service() -> serve::Running {
    serve_http(Http { body_bytes: 100, ..Http::default() })
}

/// A service that sends every body back.
pub(crate) fn echo() -> serve::Running {
    serve_http(Http { form: ResponseForm::Echo, ..Http::default() })
}

/// A service of this kind.
pub(crate) fn serve_http(http: Http) -> serve::Running {
    serve(Service::Http(http))
}

/// A service of any kind.
pub(crate) fn serve(service: Service) -> serve::Running {
    serve::start(serve::Settings::new("127.0.0.1:0".parse().unwrap(), service)).unwrap()
}

/// Requests at a steady rate until they are ended.
pub(crate) fn steady(address: SocketAddr, rate: f64, connections: usize, reuse: Reuse, entries: Vec<Entry>) -> Running {
    let http = load::Http { reuse, ..load::Http::new(entries) };
    let arrivals = Arrivals::constant(rate);
    start(Settings { arrivals, connections, ..Settings::http(address.into(), Vec::new()) }, Protocol::Http(http))
}

/// So many requests, due at a steady rate.
pub(crate) fn due(
    address: SocketAddr,
    rate: f64,
    requests: u64,
    connections: usize,
    reuse: Reuse,
    entries: Vec<Entry>,
) -> Running {
    let http = load::Http { reuse, ..load::Http::new(entries) };
    let (arrivals, requests) = (Arrivals::constant(rate), Some(requests));
    start(
        Settings { arrivals, requests, connections, ..Settings::http(address.into(), Vec::new()) },
        Protocol::Http(http),
    )
}

/// So many requests on so many connections, each sent when the last one has its answer.
pub(crate) fn some(
    address: SocketAddr,
    requests: u64,
    connections: usize,
    reuse: Reuse,
    entries: Vec<Entry>,
) -> Report {
    let http = load::Http { reuse, ..load::Http::new(entries) };
    let settings = Settings { requests: Some(requests), connections, ..Settings::http(address.into(), Vec::new()) };
    start(settings, Protocol::Http(http)).wait().unwrap()
}

/// Round trips of so many bytes, as fast as they go, on so many TCP connections until they are ended.
pub(crate) fn round_trips(address: SocketAddr, bytes: usize, connections: usize) -> Running {
    let exchange = Exchange::PingPong { bytes };
    start(Settings { connections, ..Settings::tcp(address.into(), exchange) }, Protocol::Tcp(exchange))
}

fn start(settings: Settings, protocol: Protocol) -> Running {
    // Longer than any of these tests, so that a request that hangs is seen as such at the end.
    let timeout = Duration::from_secs(20);
    load::start(Settings { protocol, duration: None, timeout, ..settings }).unwrap()
}

/// A POST whose body comes back.
pub(crate) fn echoed(host: &str, bytes: u64) -> Entry {
    Entry { check: BodyCheck::Echo, ..Entry::post(host, "/echo", bytes) }
}

/// Ends a load and gives what came of it.
pub(crate) fn end(mut load: Running) -> Report {
    load.end();
    load.wait().unwrap()
}

/// Every request must have got the answer that it should get, and there must have been at least so many.
#[track_caller]
pub(crate) fn assert_nothing_failed(report: &Report, at_least: u64) {
    assert_eq!(report.total.succeeded, report.total.requests(), "{report}\n{:?}", report.total.failures);
    assert!(report.total.requests() >= at_least, "too few requests to prove anything: {report}");
}

/// No connection was closed but by the load itself.
#[track_caller]
pub(crate) fn assert_no_connection_closed(report: &Report, connections: u64) {
    assert_eq!((report.connections, report.closed_by_server), (connections, 0), "{report}");
}

/// Failures of a cause.
pub(crate) fn failures(report: &Report, cause: Failure) -> u64 {
    report.total.failure(cause)
}
