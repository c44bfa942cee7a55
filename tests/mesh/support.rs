//! What most tests begin with.

use std::net::SocketAddr;

use ringmesh_tests::{Builder, Driver, Proxy, ports};

/// The program under test.
pub(crate) const RINGMESH: &str = env!("CARGO_BIN_EXE_ringmesh");

/// A proxy to be started.
pub(crate) fn ringmesh(driver: Driver) -> Builder {
    Builder::new(RINGMESH, driver)
}

/// A listener `front` that sends everything to service `app` at these addresses. Further keys of either may be given, each
/// with its end of line.
pub(crate) fn forwarding(front: SocketAddr, app: &[SocketAddr], listener_keys: &str, service_keys: &str) -> String {
    let endpoints: Vec<String> = app.iter().map(|address| format!("\"{address}\"")).collect();
    let endpoints = endpoints.join(", ");
    format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"app\"\n{listener_keys}\n\
         [[service]]\nname = \"app\"\nendpoints = [{endpoints}]\n{service_keys}\n"
    )
}

/// A proxy whose port `front` leads to these addresses, and that port.
#[track_caller]
pub(crate) fn proxy_to(driver: Driver, app: &[SocketAddr]) -> (Proxy, SocketAddr) {
    let front = ports::free();
    (ringmesh(driver).config(forwarding(front, app, "", "")).start(), front)
}
