//! What a listener demands of a connection, it demands of a channel.

use std::io::Write;
use std::time::{Duration, Instant};

use ringmesh_loadgen::load::Reuse;
use ringmesh_tests::certificates::Authority;
use ringmesh_tests::gate::Gate;
use ringmesh_tests::mux::{Peer, data, open};
use ringmesh_tests::tls::client_config_offering;
use ringmesh_tests::{Client, Service, hold, mux, on_both_drivers, on_both_drivers_at_once, peers};

use super::{Hop, Keys, far, opened};
use crate::load::{self, assert_nothing_failed, echoed};
use crate::support::DOMAIN;

#[test]
fn more_requests_than_a_trunk_may_carry_go_in_others_and_none_fails() {
    on_both_drivers(|driver| {
        let app = load::echo();
        for max in [1, 3, 20] {
            let inbound = format!("max_streams = {max}\n");
            let hop = Hop::to(driver, app.address(), Keys { inbound: &inbound, ..Keys::default() });
            let report = load::some(hop.front, 600, 50, Reuse::KeepAlive, vec![echoed("app", 500)]);
            assert_nothing_failed(&report, 600);
            let made = opened(&hop.here, "there");
            eprintln!("max_streams = {max}: {made} connections");
            assert!(made <= 50 / max + 10, "{made} connections");
        }
    });
}

#[test]
fn a_client_of_channels_never_has_more_than_it_may() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        // Neither by many at once, nor by ending them and going on.
        for ends in [false, true] {
            let gate = Gate::shut();
            let keys = Keys { inbound: "max_streams = 5\n", workers: 1, ..Keys::default() };
            let (_there, inbound) = far(driver, &authority, gate.address(), keys);
            let config = client_config_offering(Some(&authority.svid("web")), &[mux::NAME]);
            let mut peer = Peer::greeted(inbound, &config);
            for _ in 0..200 {
                let channel = peer.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
                if ends {
                    peer.send(mux::close(channel)).unwrap();
                }
            }
            peer.read_for(Duration::from_millis(500)).unwrap();
            assert_eq!(peer.takes, Some(5));
            let refused = peer.channels.values().filter(|channel| channel.reset == Some(1)).count();
            // Those that were ended count until our side has done with them, which takes a moment.
            assert_eq!((refused, gate.most()), if ends { (190, 10) } else { (195, 5) });
        }
    });
}

#[test]
fn a_trunk_is_one_connection_of_its_listener_and_what_it_carries_is_counted_by_the_service() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::conversing(|talk| {
            talk.send(b"first")?;
            talk.rest().map(drop)
        });
        for (app_keys, expected) in [("", 3), ("max_in_flight = 2\n", 2)] {
            let inbound = "protocol = \"tcp\"\nmax_connections = 1\nmax_streams = 3\n";
            let keys = Keys { inbound, app: app_keys, workers: 1, ..Keys::default() };
            let (there, inbound) = far(driver, &authority, app.address(), keys);
            let config = client_config_offering(Some(&authority.svid("web")), &[mux::NAME]);
            let mut peer = Peer::greeted(inbound, &config);
            let opened: Vec<u32> = (0..4).map(|_| peer.next_channel()).collect();
            opened.iter().for_each(|channel| peer.send(open(*channel)).unwrap());
            let served = peer.until(|peer| {
                let known = opened.iter().map(|channel| peer.channels.get(channel));
                let told =
                    known.map(|channel| channel.filter(|channel| channel.is_over() || !channel.bytes.is_empty()));
                let told: Option<Vec<bool>> = told.map(|channel| Some(channel?.bytes == b"first")).collect();
                Some(told?.into_iter().filter(|served| *served).count())
            });
            assert_eq!(served.unwrap(), expected, "{app_keys}");
            // Another connection is one too many.
            assert!(Peer::connect(inbound, &config).is_err());
            there.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "connection_limit")], 1);
        }
    });
}

#[test]
fn limits_of_heads_bodies_and_paths_hold_in_channels() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"inbound\"\nallow = [{ paths = [\"/open/*\"] }]\n";
        let inbound = "max_header_bytes = \"4KiB\"\nmax_body = \"10KiB\"\n";
        let hop = Hop::to(driver, app.address(), Keys { inbound, app: policy, workers: 1, ..Keys::default() });
        let large = "x".repeat(6_000);
        for _ in 0..3 {
            let mut client = Client::connect(hop.front);
            client.send(format!("GET /open/x HTTP/1.1\r\nHost: app\r\nX: {large}\r\n\r\n"));
            assert_eq!(client.response().status(), 431);
            let mut client = Client::connect(hop.front);
            client.send(format!(
                "POST /open/x HTTP/1.1\r\nHost: app\r\nContent-Length: 20000\r\n\r\n{}",
                "y".repeat(20_000)
            ));
            assert_eq!(client.response().status(), 413);
            let mut client = Client::connect(hop.front);
            assert_eq!(client.get("app", "/closed").status(), 403);
            client.send(format!(
                "POST /open/x HTTP/1.1\r\nHost: app\r\nContent-Length: 9000\r\n\r\n{}",
                "y".repeat(9_000)
            ));
            assert_eq!(client.response().body.len(), 9_000);
        }
        assert_eq!(opened(&hop.here, "there"), 1);
        assert_eq!(app.requests().len(), 3);
    });
}

#[test]
fn times_of_a_listener_hold_in_channels_while_their_trunk_stays() {
    on_both_drivers_at_once(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = peers::hanging_server();
        let inbound = "header_timeout = \"1s\"\nrequest_timeout = \"2s\"\nidle_timeout = \"4s\"\n";
        let (there, inbound) = far(driver, &authority, app.address(), Keys { inbound, workers: 1, ..Keys::default() });
        let config = client_config_offering(Some(&authority.svid("web")), &[mux::NAME]);
        let mut peer = Peer::greeted(inbound, &config);
        let begun = Instant::now();
        // Byte by byte is no faster.
        let dripping = peer.next_channel();
        peer.send(open(dripping)).unwrap();
        let asked = peer.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
        let idle = peer.next_channel();
        peer.send(open(idle)).unwrap();
        for byte in b"GET / HTTP/1.1\r\nHost: app\r\nX-Long: and it goes on and on and on".chunks(1) {
            if begun.elapsed() > Duration::from_millis(1_500) {
                break;
            }
            peer.send(data(dripping, byte)).unwrap();
            peer.read_for(Duration::from_millis(50)).unwrap();
        }
        let answer = peer.answer(dripping).unwrap();
        assert_eq!(answer.status(), 408);
        assert!(begun.elapsed() < Duration::from_millis(3_000), "{:?}", begun.elapsed());
        let answer = peer.answer(asked).unwrap();
        assert_eq!((answer.status(), answer.field("x-ringmesh-reason")), (504, Some("request_timeout")));
        // A further one keeps the trunk busy.
        peer.ask("GET / HTTP/1.1\r\nHost: app\r\n\r\n").unwrap();
        peer.until(|peer| peer.channels.get(&idle).filter(|channel| channel.is_over()).map(|_| ())).unwrap();
        let took = begun.elapsed();
        assert!((Duration::from_millis(3_500)..Duration::from_secs(8)).contains(&took), "{took:?}");
        drop(there);
    });
}

#[test]
fn a_far_listeners_time_for_a_request_is_told_through_the_trunk() {
    on_both_drivers(|driver| {
        let app = peers::hanging_server();
        let keys = Keys { inbound: "request_timeout = \"500ms\"\n", workers: 1, ..Keys::default() };
        let hop = Hop::to(driver, app.address(), keys);
        let mut client = Client::connect(hop.front);
        for _ in 0..3 {
            assert_eq!(client.get("app", "/").status(), 504);
        }
        assert_eq!(opened(&hop.here, "there"), 1);
    });
}

#[test]
fn logs_and_metrics_tell_of_a_channel_what_they_tell_of_a_connection() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let lines = ["share_connections = true\n", "share_connections = false\n"].map(|there| {
            let hop = Hop::to(driver, app.address(), Keys { there, workers: 1, ..Keys::default() });
            let mut client = Client::connect(hop.front);
            client.send("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello");
            assert_eq!(client.response().text(), "hello");
            let handshakes = [("side", "inbound"), ("result", "ok")];
            hop.there.wait_for_metric("ringmesh_tls_handshakes_total", &handshakes, 1);
            hop.there.wait_for_metric("ringmesh_request_total", &[("listener", "inbound"), ("class", "2xx")], 1);
            hop.there.wait_for_metric("ringmesh_request_body_bytes_total", &[], 5);
            let mut line = hop.there.wait_for_access("the request", |line| line["path"] == "/x");
            let client = line["client"].as_str().unwrap().to_owned();
            assert!(client.starts_with("127.0.0.1:"), "{line}");
            for key in ["time", "client", "duration_seconds", "duration", "duration_ms", "endpoint"] {
                line.as_object_mut().unwrap().remove(key);
            }
            line.to_string()
        });
        assert_eq!(lines[0], lines[1]);
    });
}

#[test]
fn a_large_upload_beside_small_requests_takes_turns() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let hop = Hop::to(driver, app.address(), Keys { workers: 1, ..Keys::default() });
        let client = Client::connect(hop.front);
        let mut writer = client.socket().try_clone().unwrap();
        let uploading = std::thread::spawn(move || {
            let body = vec![b'z'; 30_000_000];
            write!(writer, "POST /up HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n", body.len()).unwrap();
            writer.write_all(&body).unwrap();
        });
        let mut beside = Client::connect(hop.front);
        let (mut longest, mut count) = (Duration::ZERO, 0);
        while !uploading.is_finished() || count < 20 {
            let begun = Instant::now();
            assert_eq!(beside.get("app", "/").status(), 200);
            longest = longest.max(begun.elapsed());
            count += 1;
            hold(Duration::from_millis(1));
        }
        uploading.join().unwrap();
        eprintln!("{count} beside it, {longest:?} at most");
        assert!(longest < Duration::from_secs(2), "{longest:?}");
        let mut client = client;
        assert_eq!(client.response().body.len(), 30_000_000);
    });
}
