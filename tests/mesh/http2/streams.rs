//! Streams beside each other on one connection: deadlines, limits, settings.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ringmesh_tests::http2::{self, Connection, Ended, Ends, Outgoing, code, kind, setting};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Service, eventually, hold, on_both_drivers, on_both_drivers_at_once, ports};

use super::{assert_reason, proxy_by_http2};
use crate::support::{forwarding, pattern, ringmesh};

/// What a service never answers.
const HELD: &str = "/held";

/// A service by HTTP/2 that holds some requests, and counts streams that are reset.
fn holding(resets: &Arc<AtomicU64>) -> Service {
    let resets = resets.clone();
    http2::conversing(&[], move |talk| {
        while let Some(frame) = talk.frame()? {
            talk.digest(&frame)?;
            if frame.kind == kind::RST_STREAM {
                resets.fetch_add(1, Ordering::SeqCst);
            }
            while let Some((stream, request)) = talk.waiting_request() {
                if request.head.request().1 != HELD {
                    talk.send_message(stream, &Outgoing::ok("quick"))?;
                }
            }
        }
        Ok(())
    })
}

/// The same by HTTP/1.1.
fn holding_by_1() -> Service {
    Service::conversing(|talk| {
        while let Some(request) = talk.request()? {
            if request.head.request().1 == HELD {
                return talk.rest().map(drop);
            }
            talk.send(ok("quick"))?;
        }
        Ok(())
    })
}

#[test]
fn streams_go_on_beside_each_other_and_each_has_its_own_deadline() {
    const STREAMS: usize = 20;
    on_both_drivers_at_once(|driver| {
        let resets = Arc::default();
        let (two, one) = (holding(&resets), holding_by_1());
        for (service, is_two) in [(&two, true), (&one, false)] {
            let front = ports::free();
            let keys = if is_two { "protocol = \"http2\"" } else { "" };
            let config = forwarding(front, &[service.address()], "request_timeout = \"2s\"", keys);
            let _proxy = ringmesh(driver).config(config).start();
            let mut client = Connection::connect(front);
            let begun = Instant::now();
            let held: Vec<u32> = (0..STREAMS).map(|_| client.request(&Outgoing::get("app", HELD))).collect();
            for _ in 0..STREAMS {
                assert_eq!(client.get("app", "/quick").text(), "quick");
            }
            assert!(begun.elapsed() < Duration::from_secs(2), "quick ones do not wait for held ones");
            // Another deadline, because it began later.
            hold(Duration::from_secs(1));
            let late = client.request(&Outgoing::get("app", HELD));
            for stream in held {
                assert_reason(&client.response(stream), 504, "request_timeout");
            }
            assert!(begun.elapsed() >= Duration::from_secs(2));
            assert!(client.stream(late).at.is_none(), "the late one has its own deadline");
            assert_reason(&client.response(late), 504, "request_timeout");
            assert!(begun.elapsed() >= Duration::from_secs(3));
            assert_eq!(client.get("app", "/quick").text(), "quick", "the connection lives on");
            if is_two {
                eventually("the service hears that nobody waits any more", || {
                    (resets.load(Ordering::SeqCst) == STREAMS as u64 + 1).then_some(())
                });
            } else {
                eventually("connections that nobody waits for are closed", || (one.open() <= 2).then_some(()));
            }
        }
    });
}

#[test]
fn streams_beyond_what_the_listener_allows_are_refused_and_those_before_go_on() {
    on_both_drivers(|driver| {
        let resets = Arc::default();
        let service = holding(&resets);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "max_streams = 4\n", "");
        let mut client = Connection::connect(front);
        client.ping().unwrap();
        assert_eq!(client.settings.get(&setting::MAX_CONCURRENT_STREAMS), Some(&4), "it is said");
        let held: Vec<u32> = (0..4).map(|_| client.request(&Outgoing::get("app", HELD))).collect();
        for _ in 0..3 {
            let stream = client.request(&Outgoing::get("app", "/quick"));
            assert_eq!(client.ended(stream).unwrap(), Ended::Reset(code::REFUSED_STREAM));
        }
        client.reset(held[0], code::CANCEL).unwrap();
        assert_eq!(client.get("app", "/quick").text(), "quick", "there is room again");
        for stream in &held[1..] {
            assert!(client.stream(*stream).at.is_none(), "it is still waited for");
        }
        // Each connection has its own.
        assert_eq!(Connection::connect(front).get("app", "/quick").text(), "quick");
    });
}

#[test]
fn a_service_is_never_given_more_streams_than_it_allows_and_no_request_is_lost() {
    const REQUESTS: usize = 30;
    on_both_drivers(|driver| {
        let beyond: Arc<AtomicU64> = Arc::default();
        let seen = beyond.clone();
        let service = http2::conversing(&[(setting::MAX_CONCURRENT_STREAMS, 2)], move |talk| {
            let (mut open, mut last_unknowing) = (Vec::new(), None);
            loop {
                if last_unknowing.is_none() && talk.acknowledged > 0 {
                    last_unknowing = Some(talk.streams().last().copied().unwrap_or(0));
                }
                while let Some((stream, _)) = talk.waiting_request() {
                    if open.len() < 2 {
                        open.push(stream);
                        continue;
                    }
                    // Legal only for who could not know the limit.
                    if last_unknowing.is_some_and(|last| last < stream) {
                        seen.fetch_add(1, Ordering::SeqCst);
                    }
                    talk.reset(stream, code::REFUSED_STREAM)?;
                }
                if open.is_empty() {
                    talk.read()?;
                } else if !talk.read_for(Duration::from_millis(10))? {
                    return Ok(());
                } else {
                    talk.send_message(open.remove(0), &Outgoing::ok("served"))?;
                }
            }
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        // The limit is not known before the first answer.
        assert_eq!(client.get("app", "/").text(), "served");
        let streams: Vec<u32> = (0..REQUESTS).map(|_| client.request(&Outgoing::get("app", "/"))).collect();
        for stream in streams {
            assert_eq!(client.response(stream).text(), "served");
        }
        assert!(service.requests().len() > REQUESTS);
        assert_eq!(beyond.load(Ordering::SeqCst), 0, "streams beyond the limit");
    });
}

#[test]
fn what_either_side_says_in_settings_is_kept() {
    let all: [&[(u16, u32)]; 5] = [
        &[(setting::INITIAL_WINDOW_SIZE, 1)],
        &[(setting::HEADER_TABLE_SIZE, 0)],
        &[(setting::MAX_FRAME_SIZE, 16_777_215), (setting::INITIAL_WINDOW_SIZE, 1 << 30)],
        &[(setting::ENABLE_PUSH, 0), (0xfafa, 7)],
        &[],
    ];
    on_both_drivers(|driver| {
        for settings in all {
            let service = http2::conversing(settings, |talk| {
                talk.until(|end| (end.acknowledged > 0).then_some(()))?;
                while let Some((stream, request)) = talk.next_request()? {
                    talk.send_message(stream, &Outgoing::ok(request.body).with("x-a-field", "that tables keep"))?;
                }
                Ok(())
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let mut client = Connection::connect_with(front, settings);
            client.until(|end| (end.acknowledged > 0).then_some(())).unwrap();
            for bytes in [0, 1, 300] {
                let body = pattern(bytes);
                for _ in 0..3 {
                    let request = Outgoing::post("app", "/", body.clone()).with("x-a-field", "that tables keep");
                    let answer = client.exchange(&request);
                    assert_eq!((answer.status(), &answer.body), (200, &body), "{settings:?}");
                    assert_eq!(answer.field("x-a-field"), Some("that tables keep"), "{settings:?}");
                }
            }
        }
    });
}

#[test]
fn pings_are_answered_with_what_they_hold_also_while_streams_are_open() {
    on_both_drivers(|driver| {
        let resets = Arc::default();
        let service = holding(&resets);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let held = client.request(&Outgoing::get("app", HELD));
        for number in 0..20_u64 {
            client.send(&http2::Frame::ping(number.to_be_bytes())).unwrap();
            client.until(|end| (end.pongs.len() as u64 == number + 1).then_some(())).unwrap();
            assert_eq!(client.pongs.last(), Some(&number.to_be_bytes()));
        }
        assert!(client.stream(held).at.is_none());
        assert_eq!(client.get("app", "/quick").text(), "quick");
    });
}

#[test]
fn an_answer_before_the_end_of_the_request_reaches_the_client_in_every_pairing() {
    on_both_drivers(|driver| {
        let two = http2::conversing(&[], |talk| {
            while let Some((stream, _)) = talk.next_head()? {
                talk.send_message(stream, &Outgoing::status(413).body("too large"))?;
                talk.reset(stream, code::NO_ERROR)?;
            }
            Ok(())
        });
        let one = Service::conversing(|talk| {
            talk.head()?;
            talk.send("HTTP/1.1 413 Too Large\r\nContent-Length: 9\r\nConnection: close\r\n\r\ntoo large")?;
            let _ = talk.socket().shutdown(std::net::Shutdown::Write);
            talk.rest().map(drop)
        });
        for (service, keys) in [(&two, "protocol = \"http2\""), (&one, "")] {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            early_by_2(front, keys);
            early_by_1(front, keys);
        }
    });
}

fn early_by_2(front: SocketAddr, what: &str) {
    let mut client = Connection::connect(front);
    for _ in 0..3 {
        let stream = client.begin(&Outgoing::post("app", "/", ""));
        client.send_data(stream, b"some of it", Ends::No).unwrap();
        let answer = client.response(stream);
        assert_eq!((answer.status(), answer.text().as_str()), (413, "too large"), "by 2 to `{what}`");
        // Whether the rest is still taken is the proxy's to say, by a reset without an error or not at all.
        client.ping().unwrap();
        match client.stream(stream).reset {
            Some(told) => assert_eq!(told, code::NO_ERROR),
            None => client.send_data(stream, b"the rest", Ends::Yes).unwrap(),
        }
    }
}

fn early_by_1(front: SocketAddr, what: &str) {
    let mut client = Client::connect(front);
    client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\nsome of it");
    let answer = client.response();
    assert_eq!((answer.status(), answer.text().as_str()), (413, "too large"), "by 1 to `{what}`");
}

#[test]
fn an_idle_connection_is_said_goodbye_to_and_one_whose_streams_move_is_not_idle() {
    on_both_drivers_at_once(|driver| {
        let service = http2::service(http2::service::shown);
        let keys = "idle_timeout = \"1s\"\nmin_transfer_rate = \"off\"\n";
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], keys, "");
        let mut busy = Connection::connect(front);
        let trickle = busy.begin(&Outgoing::post("app", "/trickle", ""));
        for _ in 0..10 {
            busy.send_data(trickle, b"a few", Ends::No).unwrap();
            assert!(busy.read_for(Duration::from_millis(250)).unwrap());
        }
        assert!(busy.goodbyes.is_empty() && busy.stream(trickle).at.is_none(), "it is not idle");
        busy.send_data(trickle, b"", Ends::Yes).unwrap();
        assert_eq!(busy.response(trickle).text(), "POST /trickle 50");

        let mut silent = Client::connect(front);
        let mut idle = Connection::connect(front);
        assert_eq!(idle.get("app", "/x").text(), "GET /x 0");
        let begun = Instant::now();
        assert_eq!(idle.goodbye().unwrap().1, code::NO_ERROR);
        assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
        idle.until_end().unwrap();
        silent.expect_end();
        busy.until_end().unwrap();
        assert_eq!(busy.goodbyes.last().map(|goodbye| goodbye.1), Some(code::NO_ERROR));
    });
}

#[test]
fn a_client_may_begin_at_once_and_say_everything_in_one_piece_or_byte_by_byte() {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let block =
            http2::hpack::block(&[(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "app")]);
        let bytes = [
            http2::frame::PREFACE.to_vec(),
            http2::Frame::settings(&[]).bytes(),
            http2::Frame::headers(1, block).ending().bytes(),
        ]
        .concat();
        for piece in [bytes.len(), 1, 9, 25] {
            let stream = Client::connect(front).into_inner();
            let mut client = Connection::silent(stream, http2::connection::Side::Client);
            for part in bytes.chunks(piece) {
                client.send_bytes(part).unwrap();
                if piece < bytes.len() {
                    hold(Duration::from_millis(1));
                }
            }
            assert_eq!(client.response(1).text(), "GET /x 0", "in pieces of {piece}");
        }
    });
}
