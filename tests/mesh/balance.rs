//! Which endpoint of a service gets a request.

use std::collections::BTreeMap;
use std::time::Duration;

use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Service, hold, on_both_drivers, ports};

use crate::load;
use crate::support::{forwarding, proxy_to, ringmesh};

#[test]
fn round_robin_gives_each_endpoint_the_same() {
    on_both_drivers(|driver| {
        let services = ["a", "b", "c"].map(Service::saying);
        let front = ports::free();
        let addresses = services.each_ref().map(Service::address);
        let config = forwarding(front, &addresses, "", "balance = \"round_robin\"");
        let _proxy = ringmesh(driver).config(config).start();
        let mut counts = BTreeMap::<String, u32>::new();
        // One connection stays on one worker, whose turns are its own.
        let mut client = Client::connect(front);
        for _ in 0..300 {
            *counts.entry(client.get("app", "/").text()).or_default() += 1;
        }
        assert_eq!(counts.values().copied().collect::<Vec<_>>(), [100, 100, 100], "{counts:?}");
    });
}

#[test]
fn least_request_spares_an_endpoint_that_is_slow() {
    on_both_drivers(|driver| {
        let slow = Service::http(|_| {
            hold(Duration::from_millis(500));
            ok("slow")
        });
        let fast = load::service();
        let (_proxy, front) = proxy_to(driver, &[slow.address(), fast.address()]);
        let load = load::steady(
            front,
            200.0,
            40,
            ringmesh_loadgen::load::Reuse::KeepAlive,
            vec![ringmesh_loadgen::load::Entry::get("app", "/")],
        );
        hold(Duration::from_secs(3));
        let report = load::end(load);
        load::assert_nothing_failed(&report, 300);
        // Chosen blindly it would get half. With one request in flight on each of two workers it gets about four a second.
        let share = slow.requests().len() as f64 / report.total.requests() as f64;
        assert!(share < 0.25, "the slow one got {share:.2} of {}", report.total.requests());
    });
}

#[test]
fn least_request_gives_all_endpoints_a_part() {
    on_both_drivers(|driver| {
        let services = ["a", "b", "c", "d"].map(Service::saying);
        let (_proxy, front) = proxy_to(driver, &services.each_ref().map(Service::address));
        let mut client = Client::connect(front);
        for _ in 0..400 {
            client.get("app", "/");
        }
        let counts = services.each_ref().map(|service| service.requests().len());
        // Drawn at random: 100 expected each, with a deviation of 8.7.
        assert!(counts.iter().all(|count| (50..=150).contains(count)), "{counts:?}");
    });
}
