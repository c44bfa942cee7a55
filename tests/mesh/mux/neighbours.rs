//! One channel that stands still, or breaks off, costs a bound and concerns no other.

use std::io::{self, Write};
use std::net::Shutdown;
use std::sync::mpsc;
use std::time::Duration;

use ringmesh_tests::client::{is_end, reset};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, DEADLINE, Service, eventually, hold, on_both_drivers};

use super::{Hop, Keys, assert_bounded, hundred_requests, memory, opened};

/// More than all windows and buffers between two ends hold.
const MUCH: usize = 64 * 1024 * 1024;

/// A service that answers `/large` with much, reads nothing of what is sent to `/stuck`, and says how a `/watched` ended.
fn service() -> (Service, mpsc::Receiver<io::Error>) {
    let (told, tells) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let service = Service::conversing(move |talk| {
        while let Some(head) = talk.head()? {
            match head.request().1 {
                "/stuck" => hold(Duration::from_secs(8)),
                "/large" | "/watched" => {
                    talk.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {MUCH}\r\n\r\n"))?;
                    let sent = (0..MUCH / 65_536).try_for_each(|_| talk.send([b'x'; 65_536]));
                    if let Err(error) = sent {
                        let _ = told.lock().unwrap().send(error);
                        return Ok(());
                    }
                }
                "/waits" => {
                    // Nothing comes but the end.
                    let ended = talk.exactly(1).expect_err("the client has gone");
                    let _ = told.lock().unwrap().send(ended);
                    return Ok(());
                }
                _ => talk.send(ok("hello"))?,
            }
        }
        Ok(())
    });
    (service, tells)
}

const ONE_WORKER: Keys<'static> = Keys { front: "", there: "", inbound: "", app: "", workers: 1 };

#[test]
fn slow_readers_hold_up_nobody_else() {
    on_both_drivers(|driver| {
        let (app, _tells) = service();
        let hop = Hop::to(driver, app.address(), ONE_WORKER);
        hundred_requests(hop.front, "/", "alone");
        let before = memory(&[&hop.here, &hop.there]);
        let readers: Vec<Client> = (0..20)
            .map(|_| {
                let mut client = Client::connect(hop.front);
                client.send("GET /large HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(client.head().status(), 200);
                client
            })
            .collect();
        hundred_requests(hop.front, "/", "slow readers");
        hold(Duration::from_millis(500));
        assert_bounded(&before, &[&hop.here, &hop.there], "slow readers");
        assert_eq!(opened(&hop.here, "there"), 1);
        drop(readers);
        hundred_requests(hop.front, "/", "afterwards");
        hop.assert_rested();
    });
}

#[test]
fn uploads_that_nobody_takes_hold_up_nobody_else() {
    on_both_drivers(|driver| {
        let (app, _tells) = service();
        let hop = Hop::to(driver, app.address(), ONE_WORKER);
        hundred_requests(hop.front, "/", "alone");
        let before = memory(&[&hop.here, &hop.there]);
        let senders: Vec<Client> = (0..20)
            .map(|_| {
                let mut client = Client::connect(hop.front);
                client.send(format!("POST /stuck HTTP/1.1\r\nHost: app\r\nContent-Length: {MUCH}\r\n\r\n"));
                client.socket().set_nonblocking(true).unwrap();
                client
            })
            .collect();
        let mut still = 0;
        while still < 20 {
            let sent = senders.iter().filter(|client| client.socket().write(&[b'y'; 65_536]).is_ok()).count();
            still = if sent == 0 { still + 1 } else { 0 };
            hold(Duration::from_millis(5));
        }
        hundred_requests(hop.front, "/", "uploads");
        assert_bounded(&before, &[&hop.here, &hop.there], "uploads");
        assert_eq!(opened(&hop.here, "there"), 1);
        drop(senders);
        hundred_requests(hop.front, "/", "afterwards");
    });
}

#[test]
fn the_endpoint_hears_of_a_client_that_has_gone_and_neighbours_go_on() {
    on_both_drivers(|driver| {
        let (app, tells) = service();
        let hop = Hop::to(driver, app.address(), ONE_WORKER);
        hundred_requests(hop.front, "/", "alone");
        for by_reset in [true, false] {
            for path in ["/watched", "/waits"] {
                let mut client = Client::connect(hop.front);
                client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
                if path == "/watched" {
                    assert_eq!(client.head().status(), 200);
                } else {
                    eventually("it has come", || {
                        (hop.there.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 1).then_some(())
                    });
                }
                match by_reset {
                    true => client.reset(),
                    false => drop(client),
                }
                let error = tells.recv_timeout(DEADLINE).expect("the endpoint is told");
                assert!(is_end(&error), "{path}: {error}");
                hundred_requests(hop.front, "/", path);
            }
        }
        assert_eq!(opened(&hop.here, "there"), 1, "the same connection all the time");
        hop.assert_rested();
    });
}

#[test]
fn a_reset_of_opaque_bytes_arrives_as_one_and_an_end_as_an_end() {
    on_both_drivers(|driver| {
        let (told, tells) = mpsc::channel();
        let told = std::sync::Mutex::new(told);
        let app = Service::conversing(move |talk| {
            talk.send(b"hello")?;
            let ended = talk.rest().map(|all| all.len());
            told.lock().unwrap().send(ended).map_err(io::Error::other)
        });
        let tcp = "protocol = \"tcp\"\n";
        let hop = Hop::to(driver, app.address(), Keys { front: tcp, inbound: tcp, ..ONE_WORKER });
        let mut beside = Client::connect(hop.front);
        assert_eq!(beside.exactly(5).unwrap(), b"hello");
        for by_reset in [true, false, true] {
            let mut client = Client::connect(hop.front);
            assert_eq!(client.exactly(5).unwrap(), b"hello");
            client.send(b"some bytes");
            eventually("they have come", || (app.open() == 2).then_some(()));
            match by_reset {
                true => reset(client.into_inner()),
                false => client.socket().shutdown(Shutdown::Write).unwrap(),
            }
            match (by_reset, tells.recv_timeout(DEADLINE).expect("the endpoint is told")) {
                (true, Err(error)) => assert!(is_end(&error), "{error}"),
                (false, Ok(count)) => assert_eq!(count, 10),
                other => panic!("{other:?}"),
            }
        }
        beside.send(b"12345").half_close();
        assert_eq!(tells.recv_timeout(DEADLINE).unwrap().unwrap(), 5);
        assert_eq!(opened(&hop.here, "there"), 1);
    });
}

#[test]
fn a_service_that_resets_is_told_to_its_own_client_alone() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| {
            while let Some(request) = talk.request()? {
                match request.head.request().1 {
                    "/half" => {
                        talk.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nonly a part")?;
                        return ringmesh_tests::peers::reset_talk(talk);
                    }
                    "/none" => return ringmesh_tests::peers::reset_talk(talk),
                    _ => talk.send(ok("hello"))?,
                }
            }
            Ok(())
        });
        let hop = Hop::to(driver, app.address(), ONE_WORKER);
        let mut beside = Client::connect(hop.front);
        for _ in 0..30 {
            let mut client = Client::connect(hop.front);
            // A reset may overtake the head that was sent before it.
            match client.send("GET /half HTTP/1.1\r\nHost: app\r\n\r\n").try_response() {
                Ok(answer) => assert_eq!(answer.status(), 502, "{answer:?}"),
                Err(error) => assert!(is_end(&error), "{error}"),
            }
            let answer = Client::connect(hop.front).get("app", "/none");
            assert_eq!(answer.status(), 502);
            assert_eq!(beside.get("app", "/").text(), "hello");
        }
        assert_eq!(opened(&hop.here, "there"), 1);
        hop.assert_rested();
    });
}
