//! Load against services over real sockets, on every driver that this machine grants.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use common::{LIMIT, any_port, http, on_every_driver, run, serve};
use ringmesh_loadgen::arrival::Arrivals;
use ringmesh_loadgen::load::{self, BodyCheck, BodyForm, Entry, Exchange, Expect, Protocol, Reuse, Target, Version};
use ringmesh_loadgen::report::Failure;
use ringmesh_loadgen::serve::{self, Call, Delay, Http, ResponseForm, SERVED_BY, Service, Shop};
use ringmesh_loadgen::{ProxyHeader, ProxyVersion};
use ringmesh_ring::net::Address;

/// Every request of every entry must succeed.
fn check(service: Http, change: impl Fn(&mut load::Settings), entries: Vec<Entry>) {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(service.clone()));
        let mut settings = http(server.address(), entries.clone(), 60);
        change(&mut settings);
        let expected = settings.requests.unwrap();
        let report = run(grant, settings);
        assert_eq!((report.total.succeeded, report.total.requests()), (expected, expected), "{report}");
    });
}

fn with_body(bytes: u64, form: ResponseForm) -> Http {
    Http { body_bytes: bytes, form, ..Http::default() }
}

#[test]
fn fixed_chunked_and_close_delimited_answers_are_read_to_their_end() {
    for form in [ResponseForm::Fixed, ResponseForm::Chunked, ResponseForm::UntilClose] {
        for bytes in [0, 1, 1_000, 70_000, 3_000_000] {
            let entry = Entry { check: BodyCheck::Length(bytes), ..Entry::get("shop", "/") };
            check(with_body(bytes, form), |settings| settings.requests = Some(12), vec![entry]);
        }
    }
}

#[test]
fn bodies_come_back_from_an_echo_as_they_were_sent() {
    for body_form in [BodyForm::Fixed, BodyForm::Chunked] {
        for bytes in [0, 1, 20_000, 1_000_000] {
            let entry = Entry { check: BodyCheck::Echo, body_form, ..Entry::post("shop", "/", bytes) };
            check(with_body(0, ResponseForm::Echo), |settings| settings.requests = Some(12), vec![entry]);
        }
    }
}

#[test]
fn request_bodies_are_drained_before_the_next_request() {
    let chunked = Entry { body_form: BodyForm::Chunked, ..Entry::post("shop", "/a", 50_000) };
    check(with_body(10, ResponseForm::Fixed), |_| {}, vec![chunked, Entry::post("shop", "/b", 50_000)]);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let entry = Entry { method: "HEAD".to_owned(), check: BodyCheck::Length(0), ..Entry::get("shop", "/") };
    for form in [ResponseForm::Fixed, ResponseForm::Chunked] {
        check(with_body(1_000, form), |_| {}, vec![entry.clone()]);
    }
}

#[test]
fn kept_connections_carry_all_requests_and_new_ones_one_each() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        for (reuse, connections) in [(Reuse::KeepAlive, 4), (Reuse::PerRequest, 60)] {
            let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 60);
            if let Protocol::Http(http) = &mut settings.protocol {
                http.reuse = reuse;
            }
            let report = run(grant, settings);
            assert_eq!((report.total.succeeded, report.connections), (60, connections), "{report}");
        }
    });
}

#[test]
fn entries_are_mixed_by_weight_and_tallied_apart() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        let entry = |path, weight, expect| Entry { weight, expect, ..Entry::get("shop", path) };
        let entries = vec![entry("/a", 3, Expect::Success), entry("/b", 1, Expect::Status(404))];
        let report = run(grant, http(server.address(), entries, 100));
        assert_eq!(report.entry("shop/a").unwrap().succeeded, 75);
        let unexpected = report.entry("shop/b").unwrap();
        assert_eq!((unexpected.succeeded, unexpected.unexpected, unexpected.failed()), (0, 25, 25));
        assert_eq!(report.total.statuses[&200], 100);
    });
}

#[test]
fn open_loop_sends_at_its_rate_and_counts_from_the_instant_a_request_was_due() {
    on_every_driver(|grant| {
        // One connection and answers of 20 ms: of 100 requests a second half must wait, each longer than the last.
        let service = Http { delay: Delay::Constant(Duration::from_millis(20)), ..Http::default() };
        let server = serve(grant, Service::Http(service));
        let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 40);
        settings.connections = 1;
        settings.arrivals = Arrivals::constant(100.0);
        let report = run(grant, settings);
        // The last was due after 390 ms and could begin after 780 ms at the earliest.
        assert!(report.total.slowest() >= Duration::from_millis(400), "{report}");
        assert!(report.service().value_at_quantile(0.5) >= 20_000_000, "{report}");
        assert!(report.service().value_at_quantile(0.5) < report.total.latency().value_at_quantile(0.5), "{report}");
    });
}

#[test]
fn a_load_ends_at_its_duration_and_tells_what_was_never_sent() {
    on_every_driver(|grant| {
        let service = Http { delay: Delay::Constant(Duration::from_millis(100)), ..Http::default() };
        let server = serve(grant, Service::Http(service));
        let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 0);
        (settings.requests, settings.duration) = (None, Some(Duration::from_millis(500)));
        settings.arrivals = Arrivals::constant(200.0);
        let report = run(grant, settings);
        assert_eq!(report.total.requests() + report.unsent, 100, "{report}");
        assert!(report.unsent > 50, "{report}");
        assert!(report.elapsed < Duration::from_secs(5), "{report}");
    });
}

#[test]
fn a_load_that_is_ended_stops_soon_and_keeps_its_counts() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 0);
        settings.requests = None;
        settings.arrivals = Arrivals::constant(500.0);
        let mut running = load::start_on(grant, settings).unwrap();
        let started = Instant::now();
        while running.progress().total.succeeded < 20 {
            assert!(started.elapsed() < LIMIT);
            thread::sleep(Duration::from_millis(5));
        }
        running.end();
        let report = running.wait().unwrap();
        assert!(report.total.succeeded >= 20);
        assert_eq!(report.total.succeeded, report.total.requests(), "{report}");
        assert!(report.elapsed < Duration::from_secs(30), "{report}");
    });
}

#[test]
fn hangs_resets_and_errors_are_told_apart() {
    let hangs = Http { hangs: 1.0, ..Http::default() };
    let resets = Http { resets: 1.0, ..Http::default() };
    let errors = Http { errors: 1.0, ..Http::default() };
    on_every_driver(|grant| {
        for (service, cause) in [(&hangs, Some(Failure::Timeout)), (&resets, Some(Failure::Cut)), (&errors, None)] {
            let server = serve(grant, Service::Http(service.clone()));
            let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 8);
            settings.timeout = Duration::from_millis(200);
            let report = run(grant, settings);
            assert_eq!((report.total.requests(), report.total.succeeded), (8, 0), "{report}");
            match cause {
                Some(cause) => assert_eq!(report.total.failure(cause), 8, "{report}"),
                None => assert_eq!(report.total.statuses[&500], 8, "{report}"),
            }
        }
    });
}

#[test]
fn a_port_that_nobody_listens_on_is_a_failed_connect() {
    on_every_driver(|grant| {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let report = run(grant, http(address, vec![Entry::get("shop", "/")], 8));
        assert_eq!((report.total.failure(Failure::Connect), report.total.failed()), (8, 8), "{report}");
    });
}

/// What a raw server does after its answer.
#[derive(Clone, Copy, PartialEq)]
enum After {
    Close,
    StayOpen,
}

/// A server that answers each connection's first request with these bytes and ends it.
fn raw(answer: &'static [u8]) -> SocketAddr {
    raw_then(answer, After::Close)
}

fn raw_then(answer: &'static [u8], after: After) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept() {
            let mut seen = Vec::new();
            let mut part = [0; 1024];
            while !seen.windows(4).any(|end| end == b"\r\n\r\n") {
                match stream.read(&mut part) {
                    Ok(0) | Err(_) => break,
                    Ok(bytes) => seen.extend_from_slice(&part[..bytes]),
                }
            }
            let _gone = stream.write_all(answer);
            if after == After::StayOpen {
                open.push(stream);
            }
        }
    });
    address
}

#[test]
fn broken_answers_are_counted_by_what_is_wrong_with_them() {
    let cases: [(&[u8], Result<u16, Failure>); 7] = [
        (b"", Err(Failure::Cut)),
        (b"HTTP/1.1 200 OK\r\nContent-Le", Err(Failure::Cut)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel", Err(Failure::Truncated)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", Err(Failure::Truncated)),
        (b"SSH-2.0-nonsense\r\n\r\n", Err(Failure::Malformed)),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 Done\r\n\r\n", Ok(204)),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more", Ok(200)),
    ];
    on_every_driver(|grant| {
        for (answer, expected) in cases {
            let report = run(grant, http(raw(answer), vec![Entry::get("shop", "/")], 4));
            match expected {
                Ok(status) => assert_eq!(report.total.statuses.get(&status), Some(&4), "{report}"),
                Err(cause) => assert_eq!(report.total.failure(cause), 4, "{cause}: {report}"),
            }
        }
    });
}

#[test]
fn a_connection_whose_answer_says_close_or_is_followed_by_more_is_not_used_again() {
    let answers: [&[u8]; 2] = [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more",
    ];
    on_every_driver(|grant| {
        for answer in answers {
            let mut settings = http(raw_then(answer, After::StayOpen), vec![Entry::get("shop", "/")], 5);
            settings.connections = 1;
            settings.timeout = Duration::from_secs(5);
            let report = run(grant, settings);
            assert_eq!((report.total.succeeded, report.connections), (5, 5), "{report}");
        }
    });
}

#[test]
fn an_echo_that_differs_is_a_wrong_body() {
    let answers: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\x00\x01\x03",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n\x00\x01",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\x00\x01\x02\x03",
    ];
    on_every_driver(|grant| {
        for answer in answers {
            let entry = Entry { check: BodyCheck::Echo, ..Entry::post("shop", "/", 3) };
            let report = run(grant, http(raw(answer), vec![entry], 4));
            assert_eq!(report.total.failure(Failure::WrongBody), 4, "{report}");
        }
    });
}

#[test]
fn an_upload_whose_receipt_differs_is_a_wrong_body() {
    on_every_driver(|grant| {
        // It answers what looks like the end of a request, with a receipt of 9 bytes.
        let sink = raw(&[0, 0, 0, 0, 0, 0, 0, 9]);
        let mut settings = http(sink, Vec::new(), 2);
        settings.protocol = Protocol::Tcp(Exchange::Upload { bytes: Some(10) });
        let report = run(grant, settings);
        assert_eq!(report.total.failure(Failure::WrongBody), 2, "{report}");
    });
}

#[test]
fn bodies_larger_than_any_socket_buffer_are_sent_while_the_echo_is_read() {
    let entry = Entry { check: BodyCheck::Echo, ..Entry::post("shop", "/", 40_000_000) };
    let one = |settings: &mut load::Settings| (settings.requests, settings.connections) = (Some(1), 1);
    check(with_body(0, ResponseForm::Echo), one, vec![entry]);
}

#[test]
fn a_client_reconnects_when_the_server_has_closed_an_idle_connection() {
    on_every_driver(|grant| {
        let settings = serve::Settings {
            idle_timeout: Duration::from_millis(30),
            ..serve::Settings::new("127.0.0.1:0".parse().unwrap(), Service::Http(Http::default()))
        };
        let server = serve::start_on(grant, settings).unwrap();
        let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 4);
        (settings.connections, settings.arrivals) = (1, Arrivals::constant(4.0));
        let report = run(grant, settings);
        assert_eq!((report.total.succeeded, report.closed_by_server), (4, 3), "{report}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(with_body(0, ResponseForm::Echo)));
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let one = |body: &str| format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n{body}");
        let last = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        stream.write_all(format!("{}{}{last}", one("one"), one("two")).as_bytes()).unwrap();
        let mut answers = String::new();
        stream.read_to_string(&mut answers).unwrap();
        assert!(answers.find("one").unwrap() < answers.find("two").unwrap(), "{answers}");
        assert_eq!(answers.matches("200 OK").count(), 3, "{answers}");
    });
}

#[test]
fn a_server_says_continue_when_it_is_expected_to() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(with_body(0, ResponseForm::Echo)));
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let head =
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut interim = [0; 25];
        stream.read_exact(&mut interim).unwrap();
        assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream.write_all(b"abc").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("abc"), "{answer}");
    });
}

#[test]
fn tcp_round_trips_and_uploads_are_compared_byte_for_byte() {
    on_every_driver(|grant| {
        let echo = serve(grant, Service::Echo);
        for bytes in [1, 64, 30_000] {
            let mut settings = http(echo.address(), Vec::new(), 50);
            settings.protocol = Protocol::Tcp(Exchange::PingPong { bytes });
            let report = run(grant, settings);
            assert_eq!((report.total.succeeded, report.connections), (50, 4), "{report}");
        }
        let sink = serve(grant, Service::Sink);
        let mut settings = http(sink.address(), Vec::new(), 8);
        settings.protocol = Protocol::Tcp(Exchange::Upload { bytes: Some(5_000_001) });
        let report = run(grant, settings);
        assert_eq!((report.total.succeeded, report.bytes_sent), (8, 8 * 5_000_001), "{report}");
    });
}

#[test]
fn an_upload_without_a_size_goes_on_until_the_load_ends() {
    on_every_driver(|grant| {
        let sink = serve(grant, Service::Sink);
        let mut settings = http(sink.address(), Vec::new(), 0);
        settings.protocol = Protocol::Tcp(Exchange::Upload { bytes: None });
        (settings.requests, settings.duration) = (None, Some(Duration::from_millis(200)));
        let report = run(grant, settings);
        assert_eq!((report.total.succeeded, report.total.requests()), (4, 4), "{report}");
        assert!(report.bytes_sent > 1_000_000, "{report}");
    });
}

#[test]
fn several_threads_share_one_load_and_one_server() {
    on_every_driver(|grant| {
        let settings = serve::Settings {
            threads: 2,
            ..serve::Settings::new("127.0.0.1:0".parse().unwrap(), Service::Http(Http::default()))
        };
        let server = serve::start_on(grant, settings).unwrap();
        let mut settings = http(server.address(), vec![Entry::get("shop", "/")], 101);
        (settings.threads, settings.arrivals) = (3, Arrivals::constant(1_000.0));
        let report = run(grant, settings);
        assert_eq!((report.total.succeeded, report.workers), (101, 3), "{report}");
    });
}

#[test]
fn shop_services_call_each_other_and_say_who_had_a_part() {
    let shop = |name: &str, version: &str, calls| {
        Service::Shop(Shop { name: name.to_owned(), version: version.to_owned(), calls, delay: Delay::None })
    };
    let call = |service: &str, via| Call {
        service: service.to_owned(),
        method: "POST".to_owned(),
        path: "/charge".to_owned(),
        via,
    };
    on_every_driver(|grant| {
        let payments = serve(grant, shop("payments", "v2", Vec::new()));
        let checkout = serve(grant, shop("checkout", "v1", vec![call("payments", payments.address())]));
        let mut settings = http(checkout.address(), vec![Entry::get("checkout", "/cart")], 30);
        if let Protocol::Http(http) = &mut settings.protocol {
            http.count_field = Some(SERVED_BY.to_owned());
        }
        let report = run(grant, settings.clone());
        assert_eq!(report.total.field_values.get("checkout/v1, payments/v2"), Some(&30), "{report}");

        // A refusal by the one that is called, and no answer at all, are failures of the one that called.
        let refused = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
        let denied = serve(grant, shop("checkout", "v1", vec![call("payments", raw(refused))]));
        settings.targets = vec![Address::from(denied.address()).into()];
        let report = run(grant, settings.clone());
        assert_eq!(report.total.statuses.get(&502), Some(&30), "{report}");

        drop(payments);
        let alone = serve(grant, shop("checkout", "v1", vec![call("payments", raw(b""))]));
        settings.targets = vec![Address::from(alone.address()).into()];
        let report = run(grant, settings);
        assert_eq!(report.total.statuses.get(&502), Some(&30), "{report}");
    });
}

#[test]
fn unix_sockets_carry_what_tcp_does_and_a_file_left_behind_is_replaced() {
    on_every_driver(|grant| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shop.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let bind = Address::Unix(path.clone());
        let settings = serve::Settings { bind: bind.clone(), ..serve::Settings::new(any_port(), Service::Echo) };
        let server = serve::start_on(grant, settings).unwrap();
        let load = load::Settings {
            requests: Some(40),
            duration: None,
            ..load::Settings::tcp(server.listening().clone(), Exchange::PingPong { bytes: 64 })
        };
        let report = run(grant, load);
        assert_eq!(report.total.succeeded, 40, "{report}");
        drop(server);
        assert!(!path.exists(), "the file of a server that has ended is taken away");
    });
}

#[test]
fn targets_get_requests_by_their_weights_and_a_dead_one_fails_its_share_alone() {
    on_every_driver(|grant| {
        let first = serve(grant, Service::Http(Http::default()));
        let second = serve(grant, Service::Http(Http { status: 201, ..Http::default() }));
        let dead = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut settings = http(first.address(), vec![Entry::get("shop", "/")], 100);
        settings.targets = [(first.address(), 6), (second.address(), 3), (dead, 1)]
            .map(|(address, weight)| Target { address: address.into(), weight })
            .to_vec();
        let report = run(grant, settings);
        assert_eq!((report.total.statuses[&200], report.total.statuses[&201]), (60, 30), "{report}");
        assert_eq!(report.total.failure(Failure::Connect), 10, "{report}");
        let why = report.explanations.keys().next().unwrap();
        assert!(why.contains(&dead.to_string()) && why.contains("does the server run"), "{why}");
    });
}

#[test]
fn a_proxy_header_precedes_the_first_request_of_each_connection() {
    on_every_driver(|grant| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = vec![0; 4096];
            let mut length = 0;
            while !seen[..length].ends_with(b"\r\n\r\n") {
                length += stream.read(&mut seen[length..]).unwrap();
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
            String::from_utf8(seen[..length].to_vec()).unwrap()
        });
        let source = Some("10.1.2.3:4567".parse().unwrap());
        let mut settings = http(address, vec![Entry::get("shop", "/")], 1);
        settings.connections = 1;
        settings.proxy_header = Some(ProxyHeader { version: ProxyVersion::V1, source });
        let report = run(grant, settings);
        assert_eq!(report.total.succeeded, 1, "{report}");
        let seen = server.join().unwrap();
        let expected = format!("PROXY TCP4 10.1.2.3 127.0.0.1 4567 {}\r\nGET / HTTP/1.1\r\n", address.port());
        assert!(seen.starts_with(&expected), "{seen}");
    });
}

#[test]
fn placeholders_are_filled_for_each_request_and_counters_never_repeat() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http { form: ResponseForm::Echo, ..Http::default() }));
        for body_form in [BodyForm::Fixed, BodyForm::Chunked] {
            for version in [Version::Http1, Version::Http2 { streams: 2 }] {
                let entry = Entry {
                    body: Some(r#"{"number": {{counter}}, "id": "{{uuid}}"}"#.into()),
                    fields: vec![("x-request".into(), "{{random:5..5}}".into())],
                    check: BodyCheck::Echo,
                    body_form,
                    ..Entry::post("shop", "/items/{{ counter }}?of={{random:1..9}}", 0)
                };
                let mut settings = http(server.address(), vec![entry], 60);
                if let Protocol::Http(http) = &mut settings.protocol {
                    http.version = version;
                }
                let report = run(grant, settings);
                assert_eq!(report.total.succeeded, 60, "{body_form:?} {version:?}: {report}");
            }
        }
    });
}

#[test]
fn what_placeholders_become_is_what_a_server_sees() {
    on_every_driver(|grant| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            let serve = |mut stream: TcpStream| {
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    let mut part = [0; 4096];
                    while let Ok(read) = stream.read(&mut part)
                        && read > 0
                    {
                        seen.push(String::from_utf8(part[..read].to_vec()).unwrap());
                        stream.write_all(b"HTTP/1.1 204 OK\r\n\r\n").unwrap();
                    }
                    seen
                })
            };
            let connections: Vec<_> = (0..2).map(|_| serve(listener.accept().unwrap().0)).collect();
            connections.into_iter().flat_map(|connection| connection.join().unwrap()).collect::<Vec<_>>()
        });
        let entry = Entry {
            body: Some("no {{counter}}".into()),
            fields: vec![("x-of".into(), "{{random:5..5}}".into())],
            ..Entry::post("shop", "/{{counter}}", 0)
        };
        let settings = load::Settings { connections: 2, threads: 2, ..http(address, vec![entry], 40) };
        let report = run(grant, settings);
        assert_eq!(report.total.succeeded, 40, "{report}");
        let mut seen = server.join().unwrap();
        let expected = (0..40).map(|number| {
            let body = format!("no {number}");
            let length = body.len();
            format!("POST /{number} HTTP/1.1\r\nhost: shop\r\nx-of: 5\r\ncontent-length: {length}\r\n\r\n{body}")
        });
        let mut expected: Vec<_> = expected.collect();
        seen.sort();
        expected.sort();
        assert_eq!(seen, expected);
    });
}
