//! Peers that take their time or too much room: heads that do not end or are too large, bodies that do not come, windows that
//! stay shut.

use std::io;
use std::time::{Duration, Instant};

use ringmesh_tests::http2::connection::Side;
use ringmesh_tests::http2::{self, Connection, Ended, Ends, Frame, Outgoing, code, flag, frame, hpack, setting};
use ringmesh_tests::{Client, DEADLINE, Service, on_both_drivers, on_both_drivers_at_once};

use super::attack::{ATTACKERS, End, REQUEST, check};
use super::{assert_reason, proxy_by_http2};
use crate::support::pattern;

#[test]
fn a_head_larger_than_the_listener_allows_is_a_431_and_the_connection_lives_on() {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let keys = "max_header_bytes = \"8KiB\"\nmax_headers = 20\n";
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], keys, "");
        let mut client = Connection::connect(front);
        client.ping().unwrap();
        let told = client.settings.get(&setting::MAX_HEADER_LIST_SIZE).copied();
        assert!(told.is_some_and(|bytes| bytes >= 8 * 1024), "it is said: {told:?}");
        let many: Vec<(String, &str)> = (0..900).map(|number| (format!("x-{number}"), "y")).collect();
        let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let long = "x".repeat(36_000);
        let larger: [&[(&str, &str)]; 5] =
            [&[("x-large", &long[..9_000])], &[("x-large", &long[..20_000])], &[("x", &long)], &many[..30], &many];
        for (number, more) in larger.into_iter().enumerate() {
            for ends in [Ends::Yes, Ends::No] {
                let stream = client.open(&[&REQUEST[..], more].concat(), ends);
                assert_reason(&client.response(stream), 431, "header_too_large");
                client.ping().unwrap_or_else(|error| panic!("number {number}: {error}"));
            }
        }
        let labels = [("reason", "header_too_large")];
        proxy.wait_for_metric("ringmesh_request_outcome_total", &labels, 2 * larger.len() as u64);
        // One that is several times too large is refused too, in fewer words.
        let longer = "x".repeat(60_000);
        let stream = client.open(&[&REQUEST[..], &[("x-larger", longer.as_str())]].concat(), Ends::Yes);
        assert_eq!(client.response(stream).status(), 431);
        client.ping().unwrap();
        let long_path = format!("/{}", "x".repeat(7_000));
        assert_eq!(client.get("app", &long_path).status(), 200);
        assert_eq!(client.get("app", "/x").text(), "GET /x 0");
        // One that is many times too large ends the connection.
        let huge = "x".repeat(200_000);
        let stream = client.open(&[&REQUEST[..], &[("x-huge", huge.as_str())]].concat(), Ends::Yes);
        assert!(!matches!(client.ended(stream).unwrap(), Ended::Answer(_)));
        assert_eq!(client.goodbyes.last().map(|told| told.1), Some(code::ENHANCE_YOUR_CALM));
        proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "flood")], 1);
        assert_eq!(service.requests().len(), 2);
    });
}

#[test]
fn a_client_whose_windows_stay_shut_costs_a_bound_and_is_let_go_in_time() {
    on_both_drivers_at_once(|driver| {
        // Less than a stream may hold here, so that one answer does not wait for another.
        let body = pattern(100_000);
        let service = http2::service(move |request| match request.head.request().1 {
            "/good" => http2::service::shown(request),
            _ => Outgoing::ok(body.clone()),
        });
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "min_transfer_rate = \"100KiB\"\n", "");
        let ends = check("windows that stay shut", &proxy, front, |_| {
            let mut client = Connection::connect_with(front, &[(setting::INITIAL_WINDOW_SIZE, 0)]);
            let begun = Instant::now();
            let streams: Vec<u32> = (0..50).map(|_| client.request(&Outgoing::get("app", "/large"))).collect();
            for stream in streams {
                let ended = client.ended(stream).unwrap();
                assert!(!matches!(ended, Ended::Answer(_)), "{ended:?}");
            }
            assert!(begun.elapsed() < DEADLINE, "{:?}", begun.elapsed());
            End::Sent
        });
        assert_eq!(ends.len(), ATTACKERS);
        let slow = ATTACKERS as u64 * 50;
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_reads_slowly")], slow);
    });
}

#[test]
fn what_never_comes_whole_is_not_waited_for_longer_than_a_head_may_take() {
    on_both_drivers_at_once(|driver| {
        let service = http2::service(http2::service::shown);
        let keys = "header_timeout = \"1s\"\nidle_timeout = \"5s\"\n";
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], keys, "");
        let head = hpack::block(&REQUEST);
        let settings = Frame::settings(&[]).bytes();
        let unfinished = Frame::headers(1, &head[..10]).without(flag::END_HEADERS).bytes();
        // A head has its own time; behind the preface a connection without one is idle.
        let (of_a_head, idle) = (Duration::from_secs(4), Duration::from_secs(15));
        for (what, bytes, most) in [
            ("a preface that breaks off", frame::PREFACE[..10].to_vec(), of_a_head),
            ("a preface that breaks off behind its line", frame::PREFACE[..18].to_vec(), of_a_head),
            ("no SETTINGS", frame::PREFACE.to_vec(), idle),
            ("half of SETTINGS", [frame::PREFACE, &settings[..5]].concat(), idle),
            ("a head that does not end", [frame::PREFACE, &settings, &unfinished].concat(), of_a_head),
            ("half of a head's frame", [frame::PREFACE, &settings, &unfinished[..15]].concat(), of_a_head),
        ] {
            let stream = Client::connect(front).into_inner();
            let mut client = Connection::silent(stream, Side::Client);
            let begun = Instant::now();
            client.send_bytes(&bytes).unwrap();
            // An answer would be taken for the rest.
            client.manners.answers = false;
            // Before HTTP/2 was recognized the last word may be one of HTTP/1.1.
            match client.until_end() {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}"),
            }
            let taken = begun.elapsed();
            assert!(taken >= Duration::from_millis(900) && taken < most, "{what}: {taken:?}");
        }
        // Byte by byte is no faster.
        let stream = Client::connect(front).into_inner();
        let mut client = Connection::silent(stream, Side::Client);
        client.send_bytes(&[frame::PREFACE, &settings].concat()).unwrap();
        let begun = Instant::now();
        let slow = Frame::headers(1, head).ending().bytes();
        let cut = slow.iter().any(|byte| {
            let sent = client.send_bytes(&[*byte]);
            sent.is_err() || !client.read_for(Duration::from_millis(100)).unwrap_or(false)
        });
        assert!(cut, "a head came byte by byte in {:?}", begun.elapsed());
        assert!(service.requests().is_empty());
    });
}

#[test]
fn a_request_whose_body_does_not_come_is_ended_in_time_and_the_connection_goes_on() {
    on_both_drivers_at_once(|driver| {
        let service = http2::service(http2::service::shown);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let stream = client.begin(&Outgoing::post("app", "/x", ""));
        client.send_data(stream, b"a few", Ends::No).unwrap();
        assert_reason(&client.response(stream), 408, "client_sends_slowly");
        assert_eq!(client.get("app", "/x").text(), "GET /x 0");
    });
}

#[test]
fn padding_counts_in_windows_and_is_given_back() {
    on_both_drivers(|driver| {
        let service = http2::service(http2::service::shown);
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let stream = client.begin(&Outgoing::post("app", "/x", ""));
        // 257 bytes of a window each, of which one is content: ten times what the first window allows.
        let mut window = 65_535_usize;
        let padded = Frame::data(stream, [&[255, b'x'][..], &[0; 255]].concat()).with(flag::PADDED);
        for _ in 0..2_550 {
            while window < padded.payload.len() {
                let before = client.room(stream);
                client.until(|end| (end.room(stream) > before).then_some(())).unwrap();
                window += client.room(stream) - before;
            }
            client.send(&padded).unwrap();
            window -= padded.payload.len();
        }
        client.send(&Frame::data(stream, "").ending()).unwrap();
        assert_eq!(client.response(stream).text(), "POST /x 2550");
    });
}

/// A service that talks nonsense before it was asked anything is not asked.
#[test]
fn a_service_that_says_nothing_or_hangs_after_the_preface_is_given_up_in_time() {
    on_both_drivers_at_once(|driver| {
        let silent = Service::sockets(|stream| {
            let mut talk = Connection::silent(stream, Side::Server);
            while talk.frame().is_ok_and(|frame| frame.is_some()) {}
        });
        let (_proxy, front) = proxy_by_http2(driver, &[silent.address()], "request_timeout = \"2s\"\n", "");
        let mut client = Connection::connect(front);
        let begun = Instant::now();
        let answer = client.get("app", "/x");
        assert!([502, 503, 504].contains(&answer.status()), "{answer:?}");
        assert!(begun.elapsed() < Duration::from_secs(10));
    });
}
