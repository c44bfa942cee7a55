//! Whatever is asked goes in one connection of each worker.

use std::io::{Read, Write};
use std::thread;

use ringmesh_loadgen::load::{Entry, Reuse};
use ringmesh_tests::http2::{self, Connection, Outgoing};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Service, on_both_drivers};

use super::{Hop, Keys, accepted, opened};
use crate::load::{self, assert_nothing_failed, echoed};
use crate::support::pattern;

#[test]
fn many_requests_at_once_share_a_connection_of_each_worker_and_without_sharing_they_do_not() {
    on_both_drivers(|driver| {
        let app = load::echo();
        let entries = || vec![echoed("app", 100), echoed("app", 100_000), Entry::get("app", "/")];
        for (sharing, keys) in [(true, ""), (false, "share_connections = false\n")] {
            let hop = Hop::to(driver, app.address(), Keys { there: keys, ..Keys::default() });
            // No worker is asked for more at a time than one trunk is for.
            for connections in [1, 60] {
                let report = load::some(hop.front, 600, connections, Reuse::KeepAlive, entries());
                assert_nothing_failed(&report, 600);
            }
            let (made, taken) = (opened(&hop.here, "there"), accepted(&hop.there, "inbound"));
            assert_eq!(made, taken);
            match sharing {
                true => assert!(made <= 2, "{made} connections"),
                false => assert!(made >= 10, "{made} connections"),
            }
            hop.assert_rested();
        }
    });
}

#[test]
fn a_burst_on_a_cold_proxy_is_served_whole_by_a_few_connections() {
    on_both_drivers(|driver| {
        let app = load::echo();
        let hop = Hop::to(driver, app.address(), Keys::default());
        let report = load::some(hop.front, 2_000, 400, Reuse::KeepAlive, vec![echoed("app", 1_000)]);
        assert_nothing_failed(&report, 2_000);
        let made = opened(&hop.here, "there");
        assert!(made <= 8, "{made} connections");
    });
}

#[test]
fn requests_of_http2_go_side_by_side() {
    on_both_drivers(|driver| {
        let app = http2::service(|request| Outgoing::status(200).body(request.body.clone()).trailer("x-after", "all"));
        let keys = Keys { there: "protocol = \"http2\"\n", app: "protocol = \"http2\"\n", ..Keys::default() };
        let hop = Hop::to(driver, app.address(), keys);
        let mut clients: Vec<Connection> = (0..4).map(|_| Connection::connect(hop.front)).collect();
        for bytes in [0, 1, 20_000, 300_000] {
            let body = pattern(bytes);
            for client in &mut clients {
                let request = Outgoing::post("app", "/x", body.clone());
                let many = if bytes > 100_000 { 2 } else { 25 };
                let streams: Vec<u32> = (0..many).map(|_| client.request(&request)).collect();
                for stream in streams {
                    let answer = client.response(stream);
                    assert!(answer.status() == 200 && answer.body == body, "{bytes} bytes: {:?}", answer.head);
                    assert_eq!(answer.trailers, [("x-after".to_owned(), "all".to_owned())]);
                }
            }
        }
        assert!(opened(&hop.here, "there") <= 2);
        assert!(app.accepted() <= 2, "{}", app.accepted());
        assert_eq!(app.last().field(":authority"), Some("app"));
        hop.assert_rested();
    });
}

#[test]
fn opaque_bytes_go_both_ways_and_each_direction_ends_by_itself() {
    on_both_drivers(|driver| {
        // Tells what it has got once its client has ended, and then goes on.
        let app = Service::conversing(|talk| {
            talk.send(b"first")?;
            let all = talk.rest()?;
            talk.send(format!("{} then ", all.len()))?;
            talk.send(pattern(300_000))
        });
        let keys = Keys { front: "protocol = \"tcp\"\n", inbound: "protocol = \"tcp\"\n", ..Keys::default() };
        let hop = Hop::to(driver, app.address(), keys);
        thread::scope(|scope| {
            for client in 0..60 {
                let front = hop.front;
                scope.spawn(move || {
                    let mut client_end = Client::connect(front);
                    assert_eq!(client_end.exactly(5).unwrap(), b"first");
                    client_end.send(pattern(client * 5_000));
                    client_end.half_close();
                    let expected = [format!("{} then ", client * 5_000).into_bytes(), pattern(300_000)].concat();
                    assert!(client_end.rest().unwrap() == expected, "client {client}");
                });
            }
        });
        assert!(opened(&hop.here, "there") <= 2, "{}", opened(&hop.here, "there"));
        assert_eq!(app.accepted(), 60);
        hop.here.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "ok")], 60);
        hop.there.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "ok")], 60);
    });
}

#[test]
fn tunnels_stay_open_beside_each_other() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            talk.request()?;
            talk.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")?;
            let mut from = talk.socket().try_clone()?;
            let mut buffer = [0; 4096];
            loop {
                match from.read(&mut buffer)? {
                    0 => return talk.send("bye"),
                    count => talk.send(&buffer[..count])?,
                }
            }
        });
        let hop = Hop::to(driver, app.address(), Keys::default());
        let mut tunnels: Vec<Client> = (0..30)
            .map(|_| {
                let mut client = Client::connect(hop.front);
                client.send("GET /chat HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n");
                assert_eq!(client.head().status(), 101);
                client
            })
            .collect();
        for round in 0..20 {
            for (number, tunnel) in tunnels.iter_mut().enumerate() {
                let said = format!("{round} of {number}");
                assert_eq!(tunnel.send(&said).exactly(said.len()).unwrap(), said.as_bytes());
            }
        }
        for tunnel in &mut tunnels {
            tunnel.half_close();
            assert_eq!(tunnel.rest().unwrap(), b"bye");
        }
        assert!(opened(&hop.here, "there") <= 2);
        hop.assert_rested();
    });
}

#[test]
fn the_same_channel_carries_one_request_after_the_other_and_new_ones_are_made_for_those_at_once() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| {
            if request.head.request().1 == "/slow" {
                ringmesh_tests::hold(std::time::Duration::from_millis(300));
            }
            ok("done")
        });
        let hop = Hop::to(driver, app.address(), Keys { workers: 1, ..Keys::default() });
        let mut slow = Client::connect(hop.front);
        slow.send("POST /slow HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n");
        let mut client = Client::connect(hop.front);
        for _ in 0..20 {
            client.socket().write_all(b"POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc").unwrap();
            assert_eq!(client.response().text(), "done");
        }
        assert_eq!(slow.response().text(), "done");
        assert_eq!(opened(&hop.here, "there"), 1);
        // The far proxy's own connections show how many channels there were.
        assert!(app.accepted() <= 2, "{}", app.accepted());
    });
}
