//! Whether latencies are those that users would have: against a server that stalls at known times, what the load reports
//! is compared with what can be computed.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

use std::time::Duration;

use ringmesh_loadgen::Grant;
use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, Entry};
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::serve::{self, Delay, Http, Service};
use ringmesh_ring::setup::probe_all;

/// The server answers nothing in the first 100 ms of each second.
const STALL: Duration = Duration::from_millis(100);
const EVERY: Duration = Duration::from_secs(1);

const LENGTH: Duration = Duration::from_secs(5);

const CONNECTIONS: usize = 4;

/// Percentiles that lie inside the stall: a tenth of the requests is due there.
const INSIDE: [f64; 5] = [0.92, 0.95, 0.97, 0.98, 0.99];

/// What the computed values may be missed by, beside what the load says of its own delay.
const TOLERANCE: f64 = 0.02;

/// Anything else that runs on the machine makes answers late; then it is measured again.
const TRIES: usize = 8;

fn measure(grant: &Grant, arrivals: Arrivals, connections: usize) -> Report {
    let service = Service::Http(Http { delay: Delay::Stall { length: STALL, every: EVERY }, ..Http::default() });
    let settings = serve::Settings::new("127.0.0.1:0".parse().unwrap(), service);
    let server = serve::start_on(grant, settings).unwrap();
    let settings = load::Settings {
        arrivals,
        connections,
        duration: Some(LENGTH),
        ..load::Settings::http(server.address().into(), vec![Entry::get("shop", "/")])
    };
    // Begins and ends between two stalls, so that none is cut in two.
    let now = Duration::from_nanos(ringmesh_ring::Instant::now().as_nanos());
    let into = Duration::from_nanos((now.as_nanos() % EVERY.as_nanos()) as u64);
    std::thread::sleep(EVERY + EVERY / 2 - into);
    load::start_on(grant, settings).unwrap().wait().unwrap()
}

/// Those who come within the stall wait for its end, however late they come: the share that waits longer than `t` is
/// `(STALL - t) / EVERY`, so this share of all waits no longer than the result.
fn computed(share: f64) -> f64 {
    STALL.as_secs_f64() - (1.0 - share) * EVERY.as_secs_f64()
}

/// Requests are evenly spaced, not everywhere: a percentile lies between two of them.
fn spacing(rate: f64) -> f64 {
    // The stalls of all seconds are hit at different places, because the rate is no whole number.
    1.0 / rate / LENGTH.as_secs_f64() * EVERY.as_secs_f64()
}

#[test]
fn open_loop_percentiles_inside_a_stall_equal_the_computed_ones() {
    // Four connections: most who come within a stall find none free, which is what coordinated omission leaves out.
    // The rate is no whole number: each second hits the stall at other places.
    let rate = 211.2;
    for grant in probe_all() {
        let mut tries = Vec::new();
        let right = (0..TRIES).any(|_| {
            let report = measure(&grant, Arrivals::constant(rate), CONNECTIONS);
            assert_eq!(report.total.succeeded + report.unsent, 1056, "{report}");
            if report.unsent > 0 {
                return false;
            }
            // What the load says of its own delay; and the queue that a stall leaves behind, which is served one after the
            // other at the pace that requests outside of a stall have.
            let delay = Duration::from_nanos(report.delay().max()).as_secs_f64();
            let pace = report.service().value_at_quantile(0.85) as f64 / 1e9;
            let own = delay + pace * (1.0 + rate * STALL.as_secs_f64() / CONNECTIONS as f64);
            let missed = INSIDE.map(|share| {
                let (expected, found) = (computed(share), report.total.quantile(share).as_secs_f64());
                let least = expected * (1.0 - TOLERANCE) - spacing(rate);
                // Never less, on no machine: that would be coordinated omission.
                assert!(found >= least, "p{}: {found} s, computed {expected} s\n{report}", share * 100.0);
                found - (expected * (1.0 + TOLERANCE) + spacing(rate) + own)
            });
            tries.push(format!("missed by {missed:?} s with {own} s of its own\n{report}"));
            missed.iter().all(|by| *by <= 0.0)
        });
        assert!(right, "on {}:\n{}", grant.driver, tries.join("\n"));
    }
}

#[test]
fn a_closed_loop_reports_a_fraction_of_what_users_of_a_stalled_server_wait() {
    for grant in probe_all() {
        let report = measure(&grant, Arrivals::Closed, CONNECTIONS);
        // Each connection is caught once a second, however many requests it sends in the rest of it.
        for share in INSIDE {
            let (users, found) = (computed(share), report.total.quantile(share).as_secs_f64());
            assert!(found < users / 2.0, "p{}: {found} s, users wait {users} s\n{report}", share * 100.0);
        }
        assert!(report.total.slowest() >= STALL.mul_f64(0.9), "{report}");
    }
}
