//! Endpoints that agree to channels and then misbehave: whoever asked is told in time, and nothing hangs or grows.

use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::mux::{
    self, Channel, Frame, Peer, close, credit, data, goaway, hello, kind, last, open, ping, reset,
};
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::server_config;
use ringmesh_tests::{
    Client, Driver, Message, Proxy, Service, eventually, hold, on_both_drivers, on_both_drivers_at_once,
};

use super::{Keys, assert_bounded, memory, near, opened};
use crate::support::DOMAIN;

/// A proxy before such an endpoint. It waits 3 s for an answer.
fn before(
    driver: Driver,
    talk: impl Fn(&mut Peer) -> std::io::Result<()> + Send + Sync + 'static,
) -> (Proxy, std::net::SocketAddr, Service) {
    let authority = Authority::new(DOMAIN);
    let service = mux::server(server_config(&authority.svid("app"), &[mux::NAME]), talk);
    let keys = Keys {
        front: "request_timeout = \"3s\"\n",
        there: "connect_timeout = \"2s\"\n",
        workers: 1,
        ..Keys::default()
    };
    let (here, front) = near(driver, &authority, "web", &[service.address()], keys);
    (here, front, service)
}

/// Waits for the next channel in which something has come, and gives its number and its head.
fn asked_for(peer: &mut Peer) -> std::io::Result<(u32, String)> {
    peer.until(|peer| {
        let is_whole = |came: &Channel| came.bytes.windows(4).any(|window| window == b"\r\n\r\n");
        let (number, came) = peer.channels.iter_mut().find(|(_, came)| is_whole(came))?;
        let head = String::from_utf8_lossy(&came.bytes).into_owned();
        came.bytes.clear();
        Some((*number, head))
    })
}

fn asked(peer: &mut Peer) -> std::io::Result<u32> {
    asked_for(peer).map(|(channel, _)| channel)
}

fn ask(front: std::net::SocketAddr) -> (Message, Duration) {
    let begun = Instant::now();
    let answer = Client::connect(front).get("app", "/");
    (answer, begun.elapsed())
}

#[test]
fn whatever_an_endpoint_breaks_its_client_is_told_in_time() {
    type Breaks = fn(&mut Peer) -> std::io::Result<()>;
    let table: [(&str, Breaks, &[u16]); 18] = [
        ("opens channels", |peer| peer.send([hello(100), open(1)].concat()), &[502]),
        ("greets twice", |peer| peer.send([hello(100), hello(100)].concat()), &[502]),
        // Those that wait for its greeting have sent it nothing.
        ("sends garbage", |peer| peer.send([0xff, 0xff, 0xff, 0xff, 0, 1, 2, 3, 4]), &[502, 503]),
        ("speaks HTTP", |peer| peer.send(ok("hello")), &[502, 503]),
        ("speaks of a channel that is none", |peer| peer.send([hello(100), data(77, ok("hello"))].concat()), &[502]),
        (
            "sends more than it may",
            |peer| {
                peer.send(hello(100))?;
                let channel = asked(peer)?;
                let head = "HTTP/1.1 200 OK\r\nContent-Length: 90000000\r\n\r\n";
                peer.send([data(channel, head), data(channel, vec![b'x'; 20_000_000])].concat())
            },
            &[502, 504],
        ),
        (
            "gives more credit than there are numbers",
            |peer| {
                peer.send(hello(100))?;
                let channel = asked(peer)?;
                peer.send(credit(channel, u32::MAX))
            },
            &[502],
        ),
        (
            "resets each channel",
            |peer| {
                peer.send(hello(100))?;
                loop {
                    let channel = asked(peer)?;
                    peer.send(reset(channel))?;
                }
            },
            &[502],
        ),
        (
            "refuses each channel",
            |peer| {
                peer.send(hello(100))?;
                loop {
                    let channel = asked(peer)?;
                    peer.send(Frame::new(kind::RESET, channel, [1]).bytes())?;
                }
            },
            &[502, 503],
        ),
        (
            "closes each channel",
            |peer| {
                peer.send(hello(100))?;
                loop {
                    let channel = asked(peer)?;
                    peer.send(close(channel))?;
                }
            },
            &[502],
        ),
        (
            "ends each channel",
            |peer| {
                peer.send(hello(100))?;
                loop {
                    let channel = asked(peer)?;
                    peer.send(last(channel, ""))?;
                }
            },
            &[502],
        ),
        (
            "never answers",
            |peer| {
                peer.send(hello(100))?;
                peer.until_end().map(drop)
            },
            &[504],
        ),
        (
            "never greets",
            |peer| {
                peer.manners = mux::Manners { answers: false, grants: false };
                peer.until_end().map(drop)
            },
            &[502, 503, 504],
        ),
        (
            "takes no channels",
            |peer| {
                peer.send(hello(0))?;
                peer.until_end().map(drop)
            },
            &[504, 503],
        ),
        (
            "leaves at once",
            |peer| {
                peer.send([hello(100), goaway()].concat())?;
                peer.until_end().map(drop)
            },
            &[504, 503],
        ),
        ("closes the connection at once", |_| Err(std::io::ErrorKind::ConnectionAborted.into()), &[502, 503]),
        (
            "closes the connection when asked",
            |peer| {
                peer.send(hello(100))?;
                asked(peer)?;
                Err(std::io::ErrorKind::ConnectionAborted.into())
            },
            &[502],
        ),
        (
            "floods with PING",
            |peer| {
                peer.send(hello(100))?;
                asked(peer)?;
                peer.manners.answers = false;
                loop {
                    peer.send(ping().repeat(1_000))?;
                    peer.read_for(Duration::from_millis(1))?;
                }
            },
            &[502],
        ),
    ];
    on_both_drivers_at_once(|driver| {
        for (what, breaks, statuses) in table {
            let (here, front, service) = before(driver, move |peer| {
                let broke = breaks(peer);
                // What it has said is to be read before the end.
                if peer.read_for(Duration::from_millis(200)).unwrap_or(false) && broke.is_ok() {
                    let _ = peer.until_end();
                }
                Ok(())
            });
            let held = memory(&[&here]);
            std::thread::scope(|scope| {
                let asking: Vec<_> = (0..4)
                    .map(|_| {
                        scope.spawn(move || {
                            let begun = Instant::now();
                            let mut client = Client::connect(front);
                            let answer =
                                client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n").try_response();
                            (answer, begun.elapsed())
                        })
                    })
                    .collect();
                for one in asking {
                    let (answer, took) = one.join().unwrap();
                    match answer {
                        Ok(answer) => assert!(statuses.contains(&answer.status()), "{what}: {answer:?}"),
                        // A response had begun.
                        Err(error) => assert_eq!(what, "sends more than it may", "{error}"),
                    }
                    assert!(took < Duration::from_secs(8), "{what}: {took:?}");
                }
            });
            eventually(what, || (here.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(()));
            assert_eq!(here.metrics().sum("ringmesh_worker_panics_total", &[]), 0, "{what}");
            assert_bounded(&held, &[&here], what);
            drop(service);
        }
    });
}

#[test]
fn an_endpoint_that_comes_to_its_senses_is_used_again() {
    on_both_drivers(|driver| {
        let bad = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
        let is_bad = bad.clone();
        let (here, front, _service) = before(driver, move |peer| {
            if is_bad.load(std::sync::atomic::Ordering::SeqCst) {
                return peer.send("nonsense that is long enough to be a frame");
            }
            peer.send(hello(100))?;
            loop {
                let channel = asked(peer)?;
                peer.send(data(channel, ok("well")))?;
            }
        });
        for _ in 0..5 {
            let (answer, took) = ask(front);
            assert!([502, 503].contains(&answer.status()) && took < Duration::from_secs(3), "{answer:?} {took:?}");
        }
        bad.store(false, std::sync::atomic::Ordering::SeqCst);
        eventually("it is used again", || (ask(front).0.status() == 200).then_some(()));
        let before = opened(&here, "there");
        for _ in 0..20 {
            assert_eq!(ask(front).0.text(), "well");
        }
        assert_eq!(opened(&here, "there"), before);
        let told = here.log().matches("broke the rules").count();
        assert!((1..=6).contains(&told), "{told}");
    });
}

#[test]
fn an_answer_that_breaks_off_in_the_middle_is_cut_and_neighbours_get_theirs() {
    on_both_drivers(|driver| {
        let (here, front, _service) = before(driver, |peer| {
            peer.send(hello(100))?;
            loop {
                let (channel, head) = asked_for(peer)?;
                let part = data(channel, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nnot all of it");
                match head.split(' ').nth(1) {
                    Some("/closed") => peer.send([part, close(channel)].concat())?,
                    Some("/ended") => peer.send([part, last(channel, "")].concat())?,
                    Some("/reset") => peer.send([part, reset(channel)].concat())?,
                    _ => peer.send(data(channel, ok("whole")))?,
                }
            }
        });
        for _ in 0..10 {
            for path in ["/closed", "/ended", "/reset", "/whole"] {
                let mut client = Client::connect(front);
                match (path, client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n")).try_response()) {
                    ("/whole", Ok(answer)) => assert_eq!(answer.text(), "whole"),
                    ("/reset", Ok(answer)) => assert_eq!(answer.status(), 502, "it came before the part was looked at"),
                    ("/closed" | "/ended" | "/reset", Err(_)) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        assert_eq!(opened(&here, "there"), 1);
    });
}

#[test]
fn an_endpoint_that_stops_in_the_middle_of_a_frame_holds_nobody_for_ever() {
    on_both_drivers_at_once(|driver| {
        let (here, front, _service) = before(driver, |peer| {
            peer.send(hello(100))?;
            let channel = asked(peer)?;
            let frame = data(channel, ok("hello"));
            peer.send(&frame[..frame.len() - 3])?;
            hold(Duration::from_secs(20));
            Ok(())
        });
        let begun = Instant::now();
        let answer = Client::connect(front).send("GET / HTTP/1.1\r\nHost: app\r\n\r\n").try_response();
        assert!(answer.is_err() || answer.is_ok_and(|answer| answer.status() == 504));
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!(opened(&here, "there"), 1);
    });
}
