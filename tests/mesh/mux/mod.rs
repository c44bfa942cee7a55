//! The connection that two proxies share: what goes in it, what it does not change, and who cannot break it.

mod kinds;
mod neighbours;
mod ending;
mod identities;
mod limits;
mod skew;
mod attack;
mod endpoint;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::process::resident_set_size;
use ringmesh_tests::{Client, Driver, Proxy, ports};

use crate::support::{DOMAIN, identity, ringmesh};

/// What a trunk may add to the memory of a proxy, whatever goes on in it.
const MAX_ADDED_BYTES: u64 = 48 * 1024 * 1024;

/// What is not as it is by default: each key with its end of line.
#[derive(Clone, Copy)]
pub(crate) struct Keys<'a> {
    /// Of the listener that clients connect to.
    pub(crate) front: &'a str,
    /// Of the service behind it, which is the other proxy.
    pub(crate) there: &'a str,
    /// Of the listener there.
    pub(crate) inbound: &'a str,
    /// Of the service behind that, and sections after it.
    pub(crate) app: &'a str,
    pub(crate) workers: u16,
}

impl Default for Keys<'_> {
    fn default() -> Self {
        Self { front: "", there: "", inbound: "", app: "", workers: 2 }
    }
}

/// Two proxies between a client and a service, which know each other.
pub(crate) struct Hop {
    authority: Authority,
    pub(crate) here: Proxy,
    pub(crate) front: SocketAddr,
    pub(crate) there: Proxy,
    inbound: SocketAddr,
}

impl Hop {
    #[track_caller]
    pub(crate) fn to(driver: Driver, app: SocketAddr, keys: Keys<'_>) -> Self {
        let authority = Authority::new(DOMAIN);
        let (there, inbound) = far(driver, &authority, app, keys);
        let (here, front) = near(driver, &authority, "web", &[inbound], keys);
        Self { authority, here, front, there, inbound }
    }

    /// Sees that nobody has panicked, and that nothing is left of what was asked.
    #[track_caller]
    pub(crate) fn assert_rested(&self) {
        for proxy in [&self.here, &self.there] {
            ringmesh_tests::eventually("nothing is left", || {
                (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
            });
            assert_eq!(proxy.metrics().sum("ringmesh_worker_panics_total", &[]), 0, "{}", proxy.log());
        }
    }
}

/// A workload `app` whose strict port leads to a service.
#[track_caller]
fn far(driver: Driver, authority: &Authority, app: SocketAddr, keys: Keys<'_>) -> (Proxy, SocketAddr) {
    let inbound = ports::free();
    let config = format!(
        "{}[[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\nservice = \"app\"\n{}\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n{}",
        identity("app"),
        keys.inbound,
        keys.app
    );
    let mut proxy = ringmesh(driver).workers(keys.workers).config(config).prepare();
    authority.svid("app").write(&proxy.folder().join("svid"));
    proxy.run();
    (proxy, inbound)
}

/// A workload whose plain port leads to such ports.
#[track_caller]
fn near(
    driver: Driver,
    authority: &Authority,
    workload: &str,
    there: &[SocketAddr],
    keys: Keys<'_>,
) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let there: Vec<String> = there.iter().map(|address| format!("\"{address}\"")).collect();
    let config = format!(
        "{}[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"there\"\n{}\n\
         [[service]]\nname = \"there\"\npeer = \"app\"\nendpoints = [{}]\n{}",
        identity(workload),
        keys.front,
        there.join(", "),
        keys.there
    );
    let mut proxy = ringmesh(driver).workers(keys.workers).config(config).prepare();
    authority.svid(workload).write(&proxy.folder().join("svid"));
    proxy.run();
    (proxy, front)
}

/// How many connections a proxy has made to a service.
pub(crate) fn opened(proxy: &Proxy, service: &str) -> u64 {
    proxy.metrics().sum("ringmesh_upstream_connections_opened_total", &[("service", service)])
}

/// How many connections were accepted by a listener.
fn accepted(proxy: &Proxy, listener: &str) -> u64 {
    proxy.metrics().sum("ringmesh_listener_connections_accepted_total", &[("listener", listener)])
}

/// How many connections of a listener have ended for this reason.
fn outcome(proxy: &Proxy, reason: &str) -> u64 {
    proxy.metrics().sum("ringmesh_listener_connections_outcome_total", &[("reason", reason)])
}

/// Asks a hundred times, one after the other: each is answered, and all of them in bounded time.
#[track_caller]
fn hundred_requests(front: SocketAddr, path: &str, what: &str) {
    let begun = Instant::now();
    let mut client = Client::connect(front);
    for _ in 0..100 {
        assert_eq!(client.get("app", path).status(), 200, "{what}");
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{what}: beside it, 100 requests took {:?}", begun.elapsed());
}

/// What the data planes of these proxies hold in memory.
fn memory(proxies: &[&Proxy]) -> Vec<u64> {
    proxies.iter().map(|proxy| resident_set_size(proxy.dataplane_pid())).collect()
}

/// Sees that none of them has grown by more than a trunk may cost.
#[track_caller]
fn assert_bounded(before: &[u64], proxies: &[&Proxy], what: &str) {
    let added: Vec<u64> = memory(proxies).iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect();
    eprintln!("{what}: {:?} KiB more", added.iter().map(|bytes| bytes / 1024).collect::<Vec<_>>());
    assert!(added.iter().all(|added| *added <= MAX_ADDED_BYTES), "{what}: {added:?} bytes more");
}
