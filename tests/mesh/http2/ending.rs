//! How streams and connections end: resets, goodbyes, drains. No request is lost that somebody could still answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::http2::{self, Connection, Ended, Ends, Frame, Outgoing, code, kind};
use ringmesh_tests::{Client, Service, eventually, on_both_drivers, ports};
use rustix::process::Signal;

use super::{assert_reason, proxy_by_http2};
use crate::support::{forwarding, ringmesh};

/// Resets that a service was told of: the code, and whether the request had come whole.
type Resets = mpsc::Receiver<(u32, bool)>;

/// A service by HTTP/2 that answers nothing but `/quick`, and tells of resets.
fn listening() -> (Service, Resets) {
    let (told, heard) = mpsc::channel();
    let service = http2::conversing(&[], move |talk| {
        while let Some(frame) = talk.frame()? {
            talk.digest(&frame)?;
            if frame.kind == kind::RST_STREAM {
                let _ = told.send((frame.number_at(0), talk.stream(frame.stream).ended));
            }
            while let Some((stream, request)) = talk.waiting_request() {
                match request.head.request().1 {
                    "/quick" => talk.send_message(stream, &Outgoing::ok("quick"))?,
                    "/half" => {
                        talk.send_fields(stream, &[(":status", "200")], Ends::No)?;
                        talk.send_data(stream, b"half", Ends::No)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    });
    (service, heard)
}

#[test]
fn a_client_that_resets_a_stream_ends_it_at_the_service_and_nothing_else() {
    on_both_drivers(|driver| {
        let (service, resets) = listening();
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        assert_eq!(client.get("app", "/quick").text(), "quick");
        // Before an answer, in the middle of a request, and in the middle of an answer.
        let waiting = client.request(&Outgoing::get("app", "/held"));
        let sending = client.begin(&Outgoing::post("app", "/held", ""));
        client.send_data(sending, b"some of it", Ends::No).unwrap();
        let receiving = client.request(&Outgoing::get("app", "/half"));
        client.until(|end| (end.body_bytes(receiving) == 4).then_some(())).unwrap();
        eventually("the service has both others too", || (service.requests().len() == 3).then_some(()));
        for (stream, whole) in [(waiting, true), (sending, false), (receiving, true)] {
            client.reset(stream, code::CANCEL).unwrap();
            let (code, ended) = resets.recv_timeout(ringmesh_tests::DEADLINE).unwrap();
            assert!([code::CANCEL, code::NO_ERROR].contains(&code), "{code}");
            assert_eq!(ended, whole);
        }
        assert_eq!(client.get("app", "/quick").text(), "quick");
        assert_eq!(service.accepted(), 1, "the connection to the service goes on too");
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 3);
    });
}

#[test]
fn a_client_that_resets_a_stream_or_leaves_ends_the_request_at_a_service_of_http_1() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.request()?;
            talk.rest().map(drop)
        });
        let front = ports::free();
        let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", "")).start();
        let mut client = Connection::connect(front);
        let stream = client.request(&Outgoing::get("app", "/held"));
        let other = client.request(&Outgoing::get("app", "/held"));
        eventually("both are there", || (service.open() == 2).then_some(()));
        client.reset(stream, code::CANCEL).unwrap();
        eventually("one was ended", || (service.open() == 1).then_some(()));
        client.ping().unwrap();
        assert!(client.stream(other).at.is_none(), "the other goes on");
        client.slam();
        eventually("the other too", || (service.open() == 0).then_some(()));
    });
}

#[test]
fn a_client_of_http_1_that_leaves_resets_the_stream_at_the_service() {
    on_both_drivers(|driver| {
        let (service, resets) = listening();
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut kept = Client::connect(front);
        assert_eq!(kept.get("app", "/quick").text(), "quick");
        for leave in [Client::reset, |client: Client| drop(client)] {
            let before = service.requests().len();
            let mut client = Client::connect(front);
            client.send("GET /held HTTP/1.1\r\nHost: app\r\n\r\n");
            eventually("it is there", || (service.requests().len() > before).then_some(()));
            leave(client);
            let (code, _) = resets.recv_timeout(ringmesh_tests::DEADLINE).unwrap();
            assert!([code::CANCEL, code::NO_ERROR].contains(&code), "{code}");
        }
        assert_eq!(kept.get("app", "/quick").text(), "quick");
    });
}

#[test]
fn a_stream_that_the_service_resets_is_a_502_before_an_answer_and_a_reset_within_one() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            while let Some((stream, request)) = talk.next_request()? {
                match request.head.request().1 {
                    "/before" => talk.reset(stream, code::INTERNAL_ERROR)?,
                    "/within" => {
                        talk.send_fields(stream, &[(":status", "200"), ("content-length", "10")], Ends::No)?;
                        talk.send_data(stream, b"half", Ends::No)?;
                        talk.reset(stream, code::INTERNAL_ERROR)?;
                    }
                    _ => talk.send_message(stream, &Outgoing::ok("quick"))?,
                }
            }
            Ok(())
        });
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        for _ in 0..3 {
            let before = service.requests().len();
            assert_reason(&client.get("app", "/before"), 502, "upstream_reset");
            assert_eq!(service.requests().len(), before + 1, "it may have had an effect, so it is not repeated");
            let stream = client.request(&Outgoing::get("app", "/within"));
            assert!(matches!(client.ended(stream).unwrap(), Ended::Reset(_)));
            assert_eq!(client.get("app", "/quick").text(), "quick");
        }
        assert_eq!(service.accepted(), 1, "streams end, the connection goes on");
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "response_truncated")], 3);
        let mut client = Client::connect(front);
        assert_reason(&client.get("app", "/before"), 502, "upstream_reset");
        client.send("GET /within HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.exactly(4).unwrap(), b"half");
        client.expect_end();
    });
}

#[test]
fn a_service_that_is_cut_within_an_answer_is_never_taken_for_one_that_has_answered_whole() {
    on_both_drivers(|driver| {
        let two = http2::conversing(&[], |talk| {
            let Some((stream, _)) = talk.next_request()? else { return Ok(()) };
            talk.send_fields(stream, &[(":status", "200")], Ends::No)?;
            talk.send_data(stream, b"half", Ends::No)
        });
        let one = Service::conversing(|talk| {
            talk.request()?;
            talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")
        });
        for (service, keys) in [(&two, "protocol = \"http2\""), (&one, "")] {
            let front = ports::free();
            let _proxy = ringmesh(driver).config(forwarding(front, &[service.address()], "", keys)).start();
            let mut client = Connection::connect(front);
            for _ in 0..3 {
                let stream = client.request(&Outgoing::get("app", "/"));
                assert!(matches!(client.ended(stream).unwrap(), Ended::Reset(_)), "`{keys}`");
            }
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(client.head().field("transfer-encoding"), Some("chunked"), "`{keys}`");
            let rest = client.rest();
            assert!(rest.is_err() || !rest.unwrap().ends_with(b"0\r\n\r\n"), "the last chunk does not come: `{keys}`");
        }
    });
}

#[test]
fn a_stream_that_the_service_refuses_is_tried_again_whatever_its_method() {
    on_both_drivers(|driver| {
        let refused: Arc<AtomicU64> = Arc::default();
        let count = refused.clone();
        let service = http2::conversing(&[], move |talk| {
            while let Some((stream, request)) = talk.next_request()? {
                // Every other request is refused once.
                if count.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
                    talk.reset(stream, code::REFUSED_STREAM)?;
                } else {
                    talk.send_message(stream, &http2::service::shown(&request))?;
                }
            }
            Ok(())
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut two = Connection::connect(front);
        let mut one = Client::connect(front);
        for method in ["GET", "POST", "DELETE"] {
            assert_eq!(two.exchange(&Outgoing::request(method, "app", "/x")).text(), format!("{method} /x 0"));
            one.send(format!("{method} /x HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"));
            assert_eq!(one.response().text(), format!("{method} /x 0"));
        }
        assert_eq!(refused.load(Ordering::SeqCst), 12, "each was sent twice");
    });
}

#[test]
fn a_service_that_says_goodbye_again_and_again_loses_no_request() {
    const REQUESTS: usize = 40;
    const A_CONNECTION: usize = 5;
    on_both_drivers(|driver| {
        for closes_at_once in [false, true] {
            let service = http2::conversing(&[], move |talk| {
                let mut last = 0;
                for _ in 0..A_CONNECTION {
                    let Some((stream, request)) = talk.next_request()? else { return Ok(()) };
                    last = stream;
                    talk.send_message(stream, &http2::service::shown(&request))?;
                }
                // What came meanwhile is not known here, and is not served.
                talk.send(&Frame::go_away(last, code::NO_ERROR))?;
                if closes_at_once {
                    let _ = talk.socket().shutdown(std::net::Shutdown::Write);
                }
                talk.manners.minds = false;
                talk.until_end()
            });
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
            let mut two = Connection::connect(front);
            for number in 0..REQUESTS {
                let method = ["GET", "POST"][number % 2];
                let answer = two.exchange(&Outgoing::request(method, "app", "/x"));
                assert_eq!(answer.text(), format!("{method} /x 0"), "request {number}, {closes_at_once}");
            }
            // Some at a time: at most one goodbye comes between each and its answer.
            for _ in 0..REQUESTS / A_CONNECTION {
                let streams: Vec<u32> =
                    (0..A_CONNECTION).map(|_| two.request(&Outgoing::get("app", "/many"))).collect();
                for stream in streams {
                    assert_eq!(two.response(stream).text(), "GET /many 0", "beside others, {closes_at_once}");
                }
            }
            let mut one = Client::connect(front);
            for _ in 0..REQUESTS {
                assert_eq!(one.get("app", "/one").text(), "GET /one 0");
            }
            assert!(service.accepted() >= REQUESTS * 2 / A_CONNECTION, "{} connections", service.accepted());
            eventually("those that were said goodbye to are closed", || (service.open() <= 3).then_some(()));
        }
    });
}

#[test]
fn a_goodbye_lets_the_streams_that_it_knows_end() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            let mut waiting = Vec::new();
            while let Some((stream, request)) = talk.next_request()? {
                if request.head.request().1 == "/held" {
                    waiting.push(stream);
                    continue;
                }
                talk.send(&Frame::go_away(stream, code::NO_ERROR))?;
                talk.send_message(stream, &Outgoing::ok("first"))?;
                for stream in waiting.drain(..) {
                    talk.send_message(stream, &Outgoing::ok("later"))?;
                }
            }
            Ok(())
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let held = client.request(&Outgoing::get("app", "/held"));
        eventually("it is there", || (service.requests().len() == 1).then_some(()));
        assert_eq!(client.get("app", "/").text(), "first");
        assert_eq!(client.response(held).text(), "later");
        assert_eq!(client.get("app", "/").text(), "first");
        assert_eq!(service.accepted(), 2, "a new connection for what comes later");
        eventually("the old one is closed", || (service.open() <= 1).then_some(()));
    });
}

#[test]
fn a_service_that_closes_its_connection_between_requests_loses_none() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            let Some((stream, request)) = talk.next_request()? else { return Ok(()) };
            talk.send_message(stream, &http2::service::shown(&request))
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        for number in 0..10 {
            assert_eq!(client.get("app", "/x").text(), "GET /x 0");
            eventually("the service has closed", || (service.open() == 0).then_some(()));
            assert_eq!(service.accepted(), number + 1);
        }
    });
}

#[test]
fn sigterm_says_goodbye_and_open_streams_end_well() {
    on_both_drivers(|driver| {
        let release = Arc::new(AtomicBool::new(false));
        let go = release.clone();
        let service = http2::conversing(&[], move |talk| {
            let mut held = Vec::new();
            loop {
                if !talk.read_for(Duration::from_millis(5))? {
                    return Ok(());
                }
                while let Some((stream, request)) = talk.waiting_request() {
                    match request.head.request().1 {
                        "/held" => held.push(stream),
                        _ => talk.send_message(stream, &Outgoing::ok("quick"))?,
                    }
                }
                if go.load(Ordering::SeqCst) {
                    for stream in held.drain(..) {
                        talk.send_message(stream, &Outgoing::ok("let go"))?;
                    }
                }
            }
        });
        let (mut proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut idle = Connection::connect(front);
        assert_eq!(idle.get("app", "/").text(), "quick");
        let mut client = Connection::connect(front);
        let held = client.request(&Outgoing::get("app", "/held"));
        let sending = client.begin(&Outgoing::post("app", "/", ""));
        eventually("the held one is there", || (service.requests().len() == 2).then_some(()));
        let begun = Instant::now();
        proxy.signal(Signal::TERM);
        let (_, told) = idle.goodbye().unwrap();
        assert_eq!(told, code::NO_ERROR);
        idle.until_end().unwrap();
        let (last, told) = client.goodbye().unwrap();
        assert_eq!(told, code::NO_ERROR);
        assert!(last >= sending, "what is open is known: {last}");
        client.send_data(sending, b"the rest", Ends::Yes).unwrap();
        assert_eq!(client.response(sending).text(), "quick");
        release.store(true, Ordering::SeqCst);
        assert_eq!(client.response(held).text(), "let go");
        client.until_end().unwrap();
        assert_eq!(proxy.wait(Duration::from_secs(30)).code(), Some(0));
        assert!(
            begun.elapsed() < Duration::from_secs(5),
            "it does not wait for the drain timeout: {:?}",
            begun.elapsed()
        );
    });
}

/// Asks without a pause, some streams at a time, until it is said goodbye to; then what is known there is waited for. Gives
/// how many were answered, and how many began behind the goodbye.
fn ask_until_goodbye(front: std::net::SocketAddr) -> (u64, u64) {
    let mut client = Connection::connect(front);
    let mut answered = 0;
    loop {
        let mut streams = Vec::new();
        for _ in 0..5 {
            // The connection may end once it has said goodbye.
            match client.try_request(&Outgoing::get("app", "/")) {
                Ok(stream) => streams.push(stream),
                Err(_) if !client.goodbyes.is_empty() => break,
                Err(error) => {
                    let _ = client.read_for(Duration::from_secs(1));
                    assert!(!client.goodbyes.is_empty(), "no goodbye before the end: {error}");
                    break;
                }
            }
        }
        let mut late = 0;
        for stream in streams {
            match client.ended(stream).unwrap() {
                Ended::Answer(answer) => {
                    assert_eq!(answer.status(), 200, "{answer:?}");
                    answered += 1;
                }
                ended => {
                    let last = client.goodbyes.last().map(|goodbye| goodbye.0);
                    let known = last.is_none_or(|last| last >= stream && last < (1 << 31) - 1);
                    let refused = matches!(ended, Ended::Reset(code::REFUSED_STREAM));
                    assert!(!known || refused, "stream {stream} is lost: {ended:?}, goodbyes {:?}", client.goodbyes);
                    late += 1;
                }
            }
        }
        if !client.goodbyes.is_empty() {
            return (answered, late);
        }
    }
}

#[test]
fn clients_that_ask_without_a_pause_lose_no_request_when_the_proxy_drains() {
    on_both_drivers(|driver| {
        let service = http2::service(|_| Outgoing::ok("served"));
        let (mut proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let asking: Vec<_> = (0..4).map(|_| thread::spawn(move || ask_until_goodbye(front))).collect();
        eventually("all ask", || (service.requests().len() > 200).then_some(()));
        proxy.signal(Signal::TERM);
        for thread in asking {
            let (answered, late) = thread.join().unwrap();
            assert!(answered > 0);
            eprintln!("{answered} answered, {late} began too late");
        }
        assert_eq!(proxy.wait(Duration::from_secs(30)).code(), Some(0));
    });
}

#[test]
fn a_listener_that_is_taken_away_says_goodbye_to_its_clients_and_ends_their_streams_well() {
    on_both_drivers(|driver| {
        let (service, _resets) = listening();
        let (front, other) = (ports::free(), ports::free());
        let both = |more: &str| {
            format!(
                "[[listener]]\nname = \"other\"\nbind = \"{other}\"\nservice = \"app\"\n{more}\
                 [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n",
                service.address()
            )
        };
        let front_too = format!("[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"app\"\n");
        let mut proxy = ringmesh(driver).config(both(&front_too)).start();
        let (mut client, mut kept) = (Connection::connect(front), Connection::connect(other));
        assert_eq!(client.get("app", "/quick").text(), "quick");
        assert_eq!(kept.get("app", "/quick").text(), "quick");
        let open = client.begin(&Outgoing::post("app", "/quick", ""));
        proxy.reconfigure(&both(""));
        assert_eq!(client.goodbye().unwrap().1, code::NO_ERROR);
        client.send_data(open, b"the rest", Ends::Yes).unwrap();
        assert_eq!(client.response(open).text(), "quick");
        client.until_end().unwrap();
        assert_eq!(kept.get("app", "/quick").text(), "quick");
        assert!(kept.goodbyes.is_empty());
        assert!(Client::try_connect(front).is_err(), "nobody listens there any more");
    });
}

#[test]
fn a_service_that_is_taken_away_or_moves_loses_no_request() {
    on_both_drivers(|driver| {
        let (first, second) = (http2::service(|_| Outgoing::ok("first")), http2::service(|_| Outgoing::ok("second")));
        let front = ports::free();
        let keys = "protocol = \"http2\"\nidle_timeout = \"1s\"";
        let config = |service: &Service| forwarding(front, &[service.address()], "", keys);
        let mut proxy = ringmesh(driver).config(config(&first)).start();
        let mut client = Connection::connect(front);
        assert_eq!(client.get("app", "/").text(), "first");
        let open = client.begin(&Outgoing::post("app", "/", ""));
        client.send_data(open, b"some", Ends::No).unwrap();
        client.ping().unwrap();
        proxy.reconfigure(&config(&second));
        assert_eq!(client.get("app", "/").text(), "second");
        client.send_data(open, b"the rest", Ends::Yes).unwrap();
        assert_eq!(client.response(open).text(), "first", "a request goes on where it began");
        eventually("connections to the first are closed", || (first.open() == 0).then_some(()));
        assert!(client.goodbyes.is_empty());
    });
}
