//! HTTP/2 and gRPC of both sides over real sockets, on every driver that this machine grants.

#![allow(clippy::unwrap_used, reason = "a test that panics has failed")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

use common::{Certificates, http, on_every_driver, run, serve, serve_tls};
use ringmesh_loadgen::arrival::{Arrivals, Spacing};
use ringmesh_loadgen::load::{self, BodyCheck, Entry, Expect, Grpc, Kind, Protocol, Reuse, Version};
use ringmesh_loadgen::report::{Failure, Report};
use ringmesh_loadgen::serve::{self, Delay, Http, ResponseForm, Service};

/// Of four connections, with so many streams each.
fn http2(address: SocketAddr, entries: Vec<Entry>, requests: u64, streams: usize) -> load::Settings {
    let mut settings = http(address, entries, requests);
    if let Protocol::Http(http) = &mut settings.protocol {
        http.version = Version::Http2 { streams };
    }
    settings
}

fn check(report: &Report, requests: u64, connections: u64) {
    assert_eq!((report.total.succeeded, report.total.requests()), (requests, requests), "{report}");
    assert_eq!(report.connections, connections, "{report}");
}

#[test]
fn all_streams_of_a_connection_carry_requests_with_prior_knowledge() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http { body_bytes: 100, ..Http::default() }));
        for streams in [1, 16] {
            let entry = Entry { check: BodyCheck::Length(100), ..Entry::get("shop", "/a?b=c") };
            check(&run(grant, http2(server.address(), vec![entry], 400, streams)), 400, 4);
        }
    });
}

#[test]
fn answers_of_all_sizes_are_read_to_their_end_over_tls_and_plain() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        for bytes in [0, 1, 20_000, 2_000_000] {
            for form in [ResponseForm::Fixed, ResponseForm::Chunked] {
                let service = Service::Http(Http { body_bytes: bytes, form, ..Http::default() });
                let entry = Entry { check: BodyCheck::Length(bytes), ..Entry::get("shop", "/") };
                let server = serve(grant, service.clone());
                check(&run(grant, http2(server.address(), vec![entry.clone()], 8, 2)), 8, 4);
                let server = serve_tls(grant, service, certificates.strict_server());
                let mut settings = http2(server.address(), vec![entry], 8, 2);
                settings.tls = Some(certificates.client_with_identity());
                let report = run(grant, settings);
                check(&report, 8, 4);
                assert_eq!(report.handshakes, 4, "{report}");
            }
        }
    });
}

#[test]
fn bodies_come_back_from_an_echo_as_they_were_sent() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http { form: ResponseForm::Echo, ..Http::default() }));
        for bytes in [0, 1, 20_000, 2_000_000] {
            let entry = Entry { check: BodyCheck::Echo, ..Entry::post("shop", "/", bytes) };
            check(&run(grant, http2(server.address(), vec![entry], 8, 2)), 8, 4);
        }
    });
}

#[test]
fn each_request_gets_its_connection_where_none_is_kept() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        let mut settings = http2(server.address(), vec![Entry::get("shop", "/")], 40, 8);
        if let Protocol::Http(http) = &mut settings.protocol {
            http.reuse = Reuse::PerRequest;
        }
        check(&run(grant, settings), 40, 40);
    });
}

#[test]
fn one_port_speaks_both_versions() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Http(Http::default()));
        check(&run(grant, http2(server.address(), vec![Entry::get("shop", "/")], 40, 2)), 40, 4);
        check(&run(grant, http(server.address(), vec![Entry::get("shop", "/")], 40)), 40, 4);
    });
}

#[test]
fn statuses_fields_and_faults_are_counted_as_in_http1() {
    on_every_driver(|grant| {
        let service = Http { status: 503, fields: vec![("x-version".into(), "v2".into())], ..Http::default() };
        let server = serve(grant, Service::Http(service));
        let entry = Entry { expect: Expect::Status(503), ..Entry::get("shop", "/") };
        let mut settings = http2(server.address(), vec![entry], 20, 2);
        if let Protocol::Http(http) = &mut settings.protocol {
            http.count_field = Some("x-version".into());
        }
        let report = run(grant, settings);
        assert_eq!((report.total.statuses[&503], report.total.field_values["v2"]), (20, 20), "{report}");
        let hangs = Http { hangs: 1.0, ..Http::default() };
        let resets = Http { resets: 1.0, ..Http::default() };
        let slow = Http { delay: Delay::Constant(Duration::from_millis(5)), ..Http::default() };
        for (service, cause) in [(hangs, Some(Failure::Timeout)), (resets, Some(Failure::Cut)), (slow, None)] {
            let server = serve(grant, Service::Http(service));
            let mut settings = http2(server.address(), vec![Entry::get("shop", "/")], 16, 4);
            settings.timeout = if cause.is_some() { Duration::from_millis(200) } else { settings.timeout };
            let report = run(grant, settings);
            match cause {
                Some(cause) => assert_eq!(report.total.failure(cause), 16, "{report}"),
                None => assert_eq!(report.total.succeeded, 16, "{report}"),
            }
            // A stream's fault is not its connection's.
            assert_eq!(report.connections, 4, "{report}");
        }
    });
}

fn check_explanation(report: &Report, part: &str) {
    assert!(report.explanations.keys().any(|text| text.contains(part)), "`{part}` is not said:\n{report}");
}

#[test]
fn a_server_of_http1_alone_is_named_as_such() {
    let certificates = Certificates::new();
    on_every_driver(|grant| {
        // The shop speaks HTTP/1.1 only.
        let shop = |tls| {
            let service = Service::Shop(serve::Shop {
                name: "web".into(),
                version: "v1".into(),
                delay: Delay::None,
                calls: Vec::new(),
            });
            match tls {
                true => serve_tls(grant, service, certificates.server()),
                false => serve(grant, service),
            }
        };
        let server = shop(false);
        let report = run(grant, http2(server.address(), vec![Entry::get("shop", "/")], 4, 1));
        assert_eq!((report.total.succeeded, report.total.requests()), (0, 4), "{report}");
        check_explanation(&report, "does it speak HTTP/2 there?");
        let server = shop(true);
        let mut settings = http2(server.address(), vec![Entry::get("shop", "/")], 4, 1);
        settings.tls = Some(certificates.client());
        let report = run(grant, settings);
        assert_eq!(report.total.failure(Failure::Tls), 4, "{report}");
        check_explanation(&report, "see --http2");
        // One that knows no ALPN agrees on nothing.
        let server = serve_tls(grant, Service::Echo, certificates.server());
        let mut settings = http2(server.address(), vec![Entry::get("shop", "/")], 4, 1);
        settings.tls = Some(certificates.client());
        let report = run(grant, settings);
        assert_eq!(report.total.failure(Failure::Tls), 4, "{report}");
        check_explanation(&report, "takes TLS but not HTTP/2 within it");
    });
}

#[test]
fn a_server_that_closes_between_requests_costs_none() {
    on_every_driver(|grant| {
        // Raw: each connection takes the preface, answers SETTINGS, and ends with a GOAWAY that has seen no stream, the
        // third one excepted, which is silent.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().unwrap();
                let mut seen = [0; 24];
                stream.read_exact(&mut seen).unwrap();
                stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).unwrap();
                stream.write_all(&[0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap();
                while stream.read(&mut seen).is_ok_and(|read| read > 0) {}
            }
        });
        let mut settings = http2(address, vec![Entry::get("shop", "/")], 1, 1);
        settings.connections = 1;
        let report = run(grant, settings);
        // Tried three times, which it may be, and then given up.
        assert_eq!((report.total.cut(), report.total.requests()), (1, 1), "{report}");
        assert!(report.connections >= 3, "{report}");
        server.join().unwrap();
    });
}

fn grpc(address: SocketAddr, method: &str, kind: Kind, requests: u64) -> load::Settings {
    let grpc = Grpc { kind, message: vec![7; 300].into() };
    load::Settings {
        duration: None,
        requests: Some(requests),
        connections: 2,
        timeout: Duration::from_secs(20),
        ..load::Settings::grpc(address.into(), "shop", method, grpc)
    }
}

#[test]
fn calls_of_all_four_kinds_succeed_by_their_status() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Grpc(serve::Grpc::default()));
        for (method, kind) in [
            ("/shop.Cart/Get", Kind::Unary),
            ("/shop.Cart/ListServerStream", Kind::ServerStream),
            ("/shop.Cart/AddClientStream", Kind::ClientStream(20)),
            ("/shop.Cart/TalkBidi", Kind::Bidirectional(20)),
        ] {
            let mut settings = grpc(server.address(), method, kind, 40);
            if let Protocol::Grpc(http, _) = &mut settings.protocol
                && !matches!(kind, Kind::ClientStream(_))
            {
                http.entries[0].check = BodyCheck::Echo;
            }
            let report = run(grant, settings);
            check(&report, 40, 2);
            assert_eq!(report.total.statuses[&0], 40, "{method}: {report}");
        }
    });
}

#[test]
fn calls_that_fail_are_counted_by_their_status() {
    on_every_driver(|grant| {
        let server = serve(grant, Service::Grpc(serve::Grpc { errors: 1.0, ..serve::Grpc::default() }));
        let report = run(grant, grpc(server.address(), "/shop.Cart/Get", Kind::Unary, 20));
        assert_eq!((report.total.unexpected, report.total.statuses[&14]), (20, 20), "{report}");
        // A plain HTTP server: its 404 stands for UNIMPLEMENTED.
        let server = serve(grant, Service::Http(Http { status: 404, ..Http::default() }));
        let report = run(grant, grpc(server.address(), "/shop.Cart/Get", Kind::Unary, 20));
        assert_eq!(report.total.statuses[&12], 20, "{report}");
        // One without a status breaks the protocol.
        let server = serve(grant, Service::Http(Http::default()));
        let report = run(grant, grpc(server.address(), "/shop.Cart/Get", Kind::Unary, 20));
        assert_eq!(report.total.failure(Failure::Malformed), 20, "{report}");
        // Fewer messages than asked for are not an answer.
        let server = serve(grant, Service::Grpc(serve::Grpc { messages: 0, ..serve::Grpc::default() }));
        let report = run(grant, grpc(server.address(), "/shop.Cart/ListServerStream", Kind::Unary, 20));
        assert_eq!(report.total.failure(Failure::WrongBody), 20, "{report}");
    });
}

#[test]
fn an_idle_connection_is_closed_and_a_long_stream_is_not_idle() {
    on_every_driver(|grant| {
        let settings = serve::Settings {
            idle_timeout: Duration::from_millis(200),
            ..serve::Settings::new(common::any_port(), Service::Grpc(serve::Grpc::default()))
        };
        let server = serve::start_on(grant, settings).unwrap();
        // One call that goes on for longer than that, message by message.
        let mut long = grpc(server.address(), "/shop.Cart/TalkBidi", Kind::Bidirectional(4_000), 1);
        long.connections = 1;
        check(&run(grant, long), 1, 1);
        // Two requests, with more than that between them.
        let mut idle = grpc(server.address(), "/shop.Cart/Get", Kind::Unary, 2);
        idle.connections = 1;
        idle.arrivals = Arrivals::Open { rate: "1".parse().unwrap(), spacing: Spacing::Even };
        let report = run(grant, idle);
        check(&report, 2, 2);
        assert_eq!(report.closed_by_server, 1, "{report}");
    });
}
