//! Ends of proxies: in order, nothing is lost; hard, what was under way is told at once.

use std::time::{Duration, Instant};

use ringmesh_loadgen::load::{Entry, Reuse};
use ringmesh_tests::certificates::Authority;
use ringmesh_tests::gate::Gate;
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Proxy, Service, eventually, hold, on_both_drivers};
use rustix::process::Signal;

use super::{Hop, Keys, accepted, far, near, opened};
use crate::load::{self, assert_nothing_failed, echoed};
use crate::support::DOMAIN;

#[test]
fn the_drain_of_one_of_two_far_proxies_fails_no_request() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = load::echo();
        for there in ["", "protocol = \"http2\"\n"] {
            let keys = Keys { there, ..Keys::default() };
            let (mut first, inbound) = far(driver, &authority, app.address(), keys);
            let (second, other) = far(driver, &authority, app.address(), keys);
            let (here, front) = near(driver, &authority, "web", &[inbound, other], keys);
            let entries = vec![echoed("app", 2_000), echoed("app", 100), Entry::get("app", "/")];
            let load = load::steady(front, 400.0, 20, Reuse::KeepAlive, entries);
            eventually("both serve", || {
                let served = |proxy: &Proxy| proxy.metrics().sum("ringmesh_request_total", &[("class", "2xx")]);
                (served(&first) > 100 && served(&second) > 100).then_some(())
            });
            let begun = Instant::now();
            first.signal(Signal::TERM);
            assert_eq!(first.wait(Duration::from_secs(10)).code(), Some(0));
            let took = begun.elapsed();
            // Its time to drain is 5 s: it has not waited for that.
            assert!(took < Duration::from_secs(4), "{took:?}");
            hold(Duration::from_millis(500));
            assert_nothing_failed(&load::end(load), 300);
            drop(here);
        }
    });
}

#[test]
fn a_far_proxy_with_channels_that_only_wait_ends_at_once() {
    on_both_drivers(|driver| {
        let app = load::echo();
        let mut hop = Hop::to(driver, app.address(), Keys::default());
        assert_nothing_failed(&load::some(hop.front, 200, 50, Reuse::KeepAlive, vec![echoed("app", 100)]), 200);
        let begun = Instant::now();
        hop.there.signal(Signal::TERM);
        assert_eq!(hop.there.wait(Duration::from_secs(10)).code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    });
}

#[test]
fn requests_under_way_end_well_when_either_proxy_drains() {
    on_both_drivers(|driver| {
        for far_one in [true, false] {
            let app = Service::http(|request| {
                hold(Duration::from_millis(1_500));
                ok(&format!("{} bytes", request.body.len()))
            });
            let mut hop = Hop::to(driver, app.address(), Keys::default());
            let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(hop.front)).collect();
            for client in &mut clients {
                client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
            }
            eventually("they are with the service", || (app.requests().len() == 20).then_some(()));
            let draining = if far_one { &mut hop.there } else { &mut hop.here };
            draining.signal(Signal::TERM);
            for client in &mut clients {
                assert_eq!(client.response().text(), "4 bytes");
            }
            let draining = if far_one { &mut hop.there } else { &mut hop.here };
            assert_eq!(draining.wait(Duration::from_secs(10)).code(), Some(0));
        }
    });
}

#[test]
fn a_far_proxy_that_is_killed_ends_what_it_had_and_the_other_one_serves_what_comes() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (gate, app) = (Gate::shut(), Service::saying("hello"));
        let (mut first, inbound) = far(driver, &authority, gate.address(), Keys::default());
        let keys = Keys { there: "balance = \"round_robin\"\n", ..Keys::default() };
        let (second, other) = far(driver, &authority, app.address(), Keys::default());
        let (here, front) = near(driver, &authority, "web", &[inbound, other], keys);
        let mut clients: Vec<Client> = (0..20).map(|_| Client::connect(front)).collect();
        let begun = Instant::now();
        for client in &mut clients {
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
        }
        eventually("half of them wait", || (gate.inside() == 10 && accepted(&second, "inbound") > 0).then_some(()));
        first.kill_control();
        first.kill_dataplane();
        let statuses: Vec<u16> = clients.iter_mut().map(|client| client.response().status()).collect();
        assert_eq!(statuses.iter().filter(|status| **status == 502).count(), 10, "{statuses:?}");
        assert!(begun.elapsed() < Duration::from_secs(10), "they are told at once");
        let mut client = Client::connect(front);
        for _ in 0..50 {
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
            assert_eq!(client.response().text(), "hello");
        }
        drop((here, gate));
    });
}

#[test]
fn a_listener_that_is_removed_ends_its_trunks_and_one_that_stays_keeps_them() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let hop = Hop::to(driver, app.address(), Keys { workers: 1, ..Keys::default() });
        let mut client = Client::connect(hop.front);
        for _ in 0..10 {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        // Another listener there comes and goes.
        let mut hop = hop;
        let text = std::fs::read_to_string(hop.there.file()).unwrap();
        let own = &text[text.find("[mesh]").unwrap()..];
        let extra = ringmesh_tests::ports::free();
        hop.there
            .reconfigure(&format!("{own}\n[[listener]]\nname = \"extra\"\nbind = \"{extra}\"\nservice = \"app\"\n"));
        assert_eq!(client.get("app", "/").text(), "hello");
        hop.there.reconfigure(own);
        assert_eq!(client.get("app", "/").text(), "hello");
        assert_eq!(opened(&hop.here, "there"), 1);
        // Its own place changes: what comes later fails at once or is served, and the connection ends.
        hop.there.reconfigure(&own.replace("name = \"inbound\"", "name = \"another\""));
        eventually("it is served by the new one", || {
            let answer = Client::connect(hop.front).get("app", "/");
            (answer.status() == 200 && opened(&hop.here, "there") == 2).then_some(())
        });
        eventually("the old one ends", || {
            (hop.there.metrics().sum("ringmesh_worker_connections", &[]) == 1).then_some(())
        });
    });
}

#[test]
fn who_changes_what_is_spoken_has_new_channels_speak_that() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let tcp = "protocol = \"tcp\"\n";
        let keys = Keys { front: tcp, there: tcp, inbound: tcp, workers: 1, ..Keys::default() };
        let mut hop = Hop::to(driver, app.address(), keys);
        assert_eq!(Client::connect(hop.front).get("app", "/").text(), "hello");
        // A trunk that somebody uses stays.
        let mut held = Client::connect(hop.front);
        assert_eq!(held.get("app", "/").text(), "hello");
        assert_eq!(opened(&hop.here, "there"), 1);
        let text = std::fs::read_to_string(hop.there.file()).unwrap();
        let policy = "\n[[policy]]\nname = \"p\"\nlistener = \"inbound\"\nallow = [{ paths = [\"/open\"] }]\n";
        hop.there.reconfigure(&(text[text.find("[mesh]").unwrap()..].replace(tcp, "") + policy));
        for (path, status) in [("/open", 200), ("/", 403), ("/open", 200)] {
            assert_eq!(Client::connect(hop.front).get("app", path).status(), status, "{path}");
        }
        assert_eq!(opened(&hop.here, "there"), 2, "what is spoken was asked anew");
        assert_eq!(held.get("app", "/").text(), "hello", "what was open goes on");
        // Its own side.
        let text = std::fs::read_to_string(hop.here.file()).unwrap();
        hop.here.reconfigure(&text[text.find("[mesh]").unwrap()..].replace(tcp, ""));
        let mut client = Client::connect(hop.front);
        assert_eq!(client.get("app", "/open").text(), "hello");
        assert_eq!(opened(&hop.here, "there"), 3);
    });
}
