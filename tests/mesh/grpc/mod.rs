//! gRPC through the proxy: calls of all kinds, deadlines, statuses of our own answers; with grpcio on both sides.

pub(crate) mod programs;
mod web;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Connection, Ended, Ends, Outgoing, code, kind};
use ringmesh_tests::peers::{self, Refusing};
use ringmesh_tests::tls::client_config_offering;
use ringmesh_tests::{Client, DEADLINE, Message, Service, hold, on_both_drivers, ports};

use crate::http2::proxy_by_http2;
use crate::support::{DOMAIN, forwarding, identity, pattern, ringmesh, strict};

/// A call with one message.
fn call(path: &str) -> Outgoing {
    Outgoing::post("app", path, grpc_frame(b"ping")).with("te", "trailers").with("content-type", "application/grpc")
}

/// A service that answers every call with what it was sent.
fn echo() -> Service {
    http2::service(|request| {
        let message = request.body.get(5..).unwrap_or_default();
        Outgoing::grpc(message, 0)
    })
}

/// The status that a call ended in, and from where: trailers, or a head without more.
#[track_caller]
fn status(answer: &Message) -> u16 {
    assert_eq!(answer.status(), 200, "{answer:?}");
    let trailer = answer.trailers.iter().find(|(name, _)| name == "grpc-status").map(|(_, value)| value.as_str());
    let told = trailer.or(answer.field("grpc-status")).unwrap_or_else(|| panic!("no status: {answer:?}"));
    told.parse().unwrap()
}

/// The proxy's own answer to a call: trailers alone, with this status and reason.
#[track_caller]
fn assert_own(answer: &Message, expected: u16, reason: &str) {
    assert_eq!(status(answer), expected, "{answer:?}");
    assert_eq!(answer.field("x-ringmesh-reason"), Some(reason), "{answer:?}");
    assert_eq!(answer.field("content-type"), Some("application/grpc"), "{answer:?}");
    assert!(answer.field("grpc-message").is_some_and(|text| text.contains(reason)), "{answer:?}");
    assert!(answer.body.is_empty() && answer.trailers.is_empty(), "trailers alone: {answer:?}");
}

#[test]
fn messages_statuses_and_metadata_pass_both_ways() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| {
            let answer = Outgoing::grpc(request.body.get(5..).unwrap_or_default(), 0);
            let answer = answer.with("x-initial-bin", "AAEC").trailer("x-trailing-bin", "AwQF");
            match request.head.request().1 {
                "/svc/Fails" => Outgoing::status(200)
                    .with("content-type", "application/grpc")
                    .with("grpc-status", "5")
                    .with("grpc-message", "not%20here"),
                _ => answer,
            }
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        for bytes in [0, 4, 16_384, 1_000_000, 4 * 1024 * 1024] {
            let message = pattern(bytes);
            let request = call("/svc/Echo").body(grpc_frame(&message)).with("x-asked-bin", "Bw");
            let answer = client.exchange(&request);
            assert_eq!(status(&answer), 0);
            assert!(answer.body == grpc_frame(&message), "{bytes} bytes");
            assert_eq!(answer.field("x-initial-bin"), Some("AAEC"));
            assert!(answer.trailers.contains(&("x-trailing-bin".to_owned(), "AwQF".to_owned())));
            let asked = service.last();
            assert_eq!((asked.field("x-asked-bin"), asked.field("te")), (Some("Bw"), Some("trailers")));
        }
        let answer = client.exchange(&call("/svc/Fails"));
        assert_eq!((status(&answer), answer.field("grpc-message")), (5, Some("not%20here")));
        assert!(answer.body.is_empty() && answer.trailers.is_empty(), "trailers alone stay so");
    });
}

#[test]
fn calls_pass_two_proxies_with_mutual_tls_between_them() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let service = echo();
        let inbound = ports::free();
        let config = format!(
            "{}[[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nprotocol = \"http2\"\nendpoints = [\"{}\"]\n",
            identity("app"),
            service.address()
        );
        let mut there = ringmesh(driver).config(config).prepare();
        authority.svid("app").write(&there.folder().join("svid"));
        there.run();
        let svid = authority.svid("web");
        let keys = "protocol = \"http2\"\n";
        let (_here, outbound) = crate::support::caller(driver, &svid, "web", "app", &[inbound], keys);
        let mut client = Connection::connect(outbound);
        for bytes in [1, 100_000, 1_000_000] {
            let message = pattern(bytes);
            let answer = client.exchange(&call("/svc/Echo").body(grpc_frame(&message)));
            assert_eq!(status(&answer), 0);
            assert!(answer.body == grpc_frame(&message));
        }
        let streams: Vec<u32> = (0..50).map(|_| client.request(&call("/svc/Echo"))).collect();
        for stream in streams {
            assert_eq!(status(&client.response(stream)), 0);
        }
        assert!(service.accepted() <= 2, "many calls share a connection: {}", service.accepted());
    });
}

#[test]
fn an_answer_of_the_far_proxy_is_a_status_too() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let (service, refusing) = (echo(), Refusing::new());
        let policy = "[[policy]]\nname = \"some\"\nlistener = \"inbound\"\n\
                      allow = [{ methods = [\"POST\"], paths = [\"/svc/Open\"] }]\n";
        for (app, path, expected) in [
            (service.address(), "/svc/Open", None),
            (service.address(), "/svc/Shut", Some((7, "policy_denied"))),
            (refusing.address(), "/svc/Open", Some((14, "connect_failed"))),
        ] {
            let there = strict(driver, &authority, "app", app, "", &format!("protocol = \"http2\"\n{policy}"));
            let keys = "protocol = \"http2\"\n";
            let svid = authority.svid("web");
            let (here, outbound) = crate::support::caller(driver, &svid, "web", "app", &[there.inbound], keys);
            let mut client = Connection::connect(outbound);
            let answer = client.exchange(&call(path));
            match expected {
                None => assert_eq!(status(&answer), 0),
                Some((expected, reason)) => assert_own(&answer, expected, reason),
            }
            // Both count it alike.
            let code = ["OK", "PERMISSION_DENIED", "UNAVAILABLE"][expected.map_or(0, |(code, _)| (code / 7) as usize)];
            for proxy in [&here, &there.proxy] {
                proxy.wait_for_metric("ringmesh_request_grpc_total", &[("grpc_status", code)], 1);
            }
        }
    });
}

#[test]
fn trailers_as_large_as_a_head_pass_one_proxy_and_two() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let large = "x".repeat(60_000);
        let told = large.clone();
        let service = http2::service(move |_| Outgoing::grpc(b"pong", 0).trailer("x-details", &told));
        let there = strict(driver, &authority, "app", service.address(), "", "protocol = \"http2\"\n");
        let svid = authority.svid("web");
        let keys = "protocol = \"http2\"\n";
        let (_two, outbound) = crate::support::caller(driver, &svid, "web", "app", &[there.inbound], keys);
        let (_one, front) = proxy_by_http2(driver, &[service.address()], "", "");
        for address in [front, outbound] {
            let answer = Connection::connect(address).exchange(&call("/svc/Echo"));
            assert_eq!(status(&answer), 0);
            assert!(answer.trailers.contains(&("x-details".to_owned(), large.clone())), "{}", answer.trailers.len());
        }
    });
}

#[test]
fn what_is_larger_than_heads_and_trailers_may_be_is_an_error_and_never_a_part() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| {
            let large = "x".repeat(100_000);
            match request.head.request().1 {
                "/svc/Head" => Outgoing::grpc(b"pong", 0).with("x-details", &large),
                _ => Outgoing::grpc(b"pong", 0).trailer("x-details", &large).trailer("x-last", "y"),
            }
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        assert_own(&client.exchange(&call("/svc/Head")), 14, "upstream_garbage");
        let answer = client.exchange(&call("/svc/Trailers"));
        assert_eq!(status(&answer), 14);
        assert!(answer.trailers.contains(&("x-ringmesh-reason".to_owned(), "response_truncated".to_owned())));
    });
}

#[test]
fn a_call_that_breaks_off_after_its_first_message_ends_with_a_status() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            while let Some((stream, head)) = talk.next_head()? {
                talk.send_fields(stream, &[(":status", "200"), ("content-type", "application/grpc")], Ends::No)?;
                talk.send_data(stream, &grpc_frame(b"first of many"), Ends::No)?;
                // It has arrived.
                talk.take(stream, 1)?;
                match head.request().1 {
                    "/svc/Dies" => return Ok(()),
                    "/svc/Resets" => talk.reset(stream, code::INTERNAL_ERROR)?,
                    _ => {}
                }
            }
            Ok(())
        });
        let authority = Authority::new(DOMAIN);
        let there = strict(driver, &authority, "app", service.address(), "", "protocol = \"http2\"\n");
        let svid = authority.svid("web");
        let keys = "protocol = \"http2\"\n";
        let (two, outbound) = crate::support::caller(driver, &svid, "web", "app", &[there.inbound], keys);
        let (one, front) = proxy_by_http2(driver, &[service.address()], "", "");
        for (proxy, address) in [(one, front), (two, outbound)] {
            for (path, expected, reason) in [
                ("/svc/Dies", 14, "response_truncated"),
                ("/svc/Resets", 14, "response_truncated"),
                ("/svc/Held", 4, "request_timeout"),
            ] {
                let mut client = Connection::connect(address);
                let request = if expected == 4 { call(path).with("grpc-timeout", "300m") } else { call(path) };
                let stream = client.begin(&request);
                let first = grpc_frame(b"first of many");
                assert_eq!(client.take(stream, first.len()).unwrap(), first, "{path}");
                client.send_data(stream, &grpc_frame(b"more"), Ends::No).unwrap();
                let Ended::Answer(answer) = client.ended(stream).unwrap() else { panic!("{path} was reset") };
                assert_eq!(status(&answer), expected, "{path}");
                assert!(answer.trailers.contains(&("x-ringmesh-reason".to_owned(), reason.to_owned())), "{answer:?}");
                client.ping().unwrap();
            }
            proxy.wait_for_metric("ringmesh_request_grpc_total", &[("grpc_status", "UNAVAILABLE")], 2);
            proxy.wait_for_metric("ringmesh_request_grpc_total", &[("grpc_status", "DEADLINE_EXCEEDED")], 1);
        }
    });
}

#[test]
fn an_answer_of_the_proxy_is_a_status_that_callers_know() {
    on_both_drivers(|driver| {
        let (service, refusing, hanging) = (echo(), Refusing::new(), peers::hanging_server());
        let garbage = http2::conversing(&[], |talk| {
            while let Some((stream, _)) = talk.next_request()? {
                talk.send_fields(stream, &[(":status", "200"), ("connection", "close")], Ends::Yes)?;
            }
            Ok(())
        });
        let resetting = http2::conversing(&[], |talk| {
            while let Some((stream, _)) = talk.next_request()? {
                talk.reset(stream, code::INTERNAL_ERROR)?;
            }
            Ok(())
        });
        let front = ports::free();
        let mut config =
            format!("[[listener]]\nname = \"front\"\nbind = \"{front}\"\nrequest_timeout = \"1s\"\nmax_headers = 20\n");
        for (name, address) in [
            ("app", service.address()),
            ("refusing", refusing.address()),
            ("hanging", hanging.address()),
            ("garbage", garbage.address()),
            ("resetting", resetting.address()),
        ] {
            config.push_str(&format!(
                "[[service]]\nname = \"{name}\"\nprotocol = \"http2\"\nendpoints = [\"{address}\"]\n[[route]]\nhosts = [\"{name}\"]\n"
            ));
        }
        // A name that nobody knows.
        config.push_str(
            "[[service]]\nname = \"empty\"\nprotocol = \"http2\"\nendpoints = [\"nobody.invalid:80\"]\n\
             [[route]]\nhosts = [\"empty\"]\n",
        );
        let proxy = ringmesh(driver).config(config).start();
        let mut client = Connection::connect(front);
        let to = |host: &str| {
            let mut request = call("/svc/Echo");
            request.fields[3].1 = host.to_owned();
            request
        };
        assert_eq!(status(&client.exchange(&to("app"))), 0);
        for (host, expected, reason) in [
            ("nobody", 12, "no_route"),
            ("refusing", 14, "connect_failed"),
            ("empty", 14, "no_endpoint"),
            ("hanging", 4, "request_timeout"),
            ("garbage", 14, "upstream_garbage"),
            ("resetting", 14, "upstream_reset"),
        ] {
            assert_own(&client.exchange(&to(host)), expected, reason);
            // Who does not call gets an HTTP status.
            let plain = client.exchange(&Outgoing::get(host, "/"));
            assert_ne!(plain.status(), 200, "{host}");
            assert_eq!(plain.field("grpc-status"), None);
        }
        let many = (0..30).fold(to("app"), |request, number| request.with(&format!("x-{number}"), "y"));
        assert_own(&client.exchange(&many), 8, "header_too_large");
        assert_eq!(status(&client.exchange(&to("app"))), 0, "on the same connection");
        drop(proxy);
    });
}

#[test]
fn a_caller_that_policy_does_not_admit_gets_permission_denied() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let service = echo();
        let policy = "[[policy]]\nname = \"some\"\nlistener = \"inbound\"\n\
                      allow = [{ from = [\"friend\"], methods = [\"POST\"], paths = [\"/svc/Open\"] }]\n";
        let more = format!("protocol = \"http2\"\n{policy}");
        let there = strict(driver, &authority, "app", service.address(), "", &more);
        let connect = |name: &str| {
            let config = client_config_offering(Some(&authority.svid(name)), &[b"h2"]);
            Connection::connect_tls(there.inbound, &config).unwrap()
        };
        let mut friend = connect("friend");
        assert_eq!(status(&friend.exchange(&call("/svc/Open"))), 0);
        assert_own(&friend.exchange(&call("/svc/Shut")), 7, "policy_denied");
        assert_own(&connect("stranger").exchange(&call("/svc/Open")), 7, "policy_denied");
        assert_eq!(status(&friend.exchange(&call("/svc/Open"))), 0);
        assert_eq!(service.requests().len(), 2);
    });
}

#[test]
fn a_deadline_of_the_caller_ends_the_call_and_is_passed_on_reduced() {
    on_both_drivers(|driver| {
        let (told, resets) = mpsc::channel();
        let service = http2::conversing(&[], move |talk| {
            while let Some(frame) = talk.frame()? {
                talk.digest(&frame)?;
                if frame.kind == kind::RST_STREAM {
                    let _ = told.send(frame.number_at(0));
                }
                while let Some((stream, request)) = talk.waiting_request() {
                    if request.head.request().1 != "/svc/Held" {
                        talk.send_message(stream, &Outgoing::grpc(b"pong", 0))?;
                    }
                }
            }
            Ok(())
        });
        for (listener, shorter) in [("", false), ("request_timeout = \"700ms\"\n", true)] {
            let (_proxy, front) = proxy_by_http2(driver, &[service.address()], listener, "");
            let mut client = Connection::connect(front);
            for (asked, whole) in [("1000m", 1_000), ("1S", 1_000), ("1000000u", 1_000), ("5S", 5_000)] {
                let begun = Instant::now();
                let held = client.request(&call("/svc/Held").with("grpc-timeout", asked));
                let most = if shorter { 700 } else { whole };
                if most < 5_000 {
                    assert_own(&client.response(held), 4, "request_timeout");
                    let taken = begun.elapsed();
                    assert!(taken >= Duration::from_millis(most - 50), "{asked}: {taken:?}");
                    assert!(taken < Duration::from_millis(most) + Duration::from_secs(3), "{asked}: {taken:?}");
                    let code = resets.recv_timeout(DEADLINE).unwrap();
                    assert!([code::CANCEL, code::NO_ERROR].contains(&code), "{code}");
                    let passed = timeout_of(&service.last());
                    assert!(passed <= Duration::from_millis(most), "{asked}: passed on as {passed:?}");
                    assert!(passed > Duration::from_millis(most / 2), "{asked}: passed on as {passed:?}");
                } else {
                    client.reset(held, code::CANCEL).unwrap();
                    resets.recv_timeout(DEADLINE).unwrap();
                }
            }
            assert_eq!(status(&client.exchange(&call("/svc/Echo").with("grpc-timeout", "10S"))), 0);
            // What is no timeout is passed over, and none is made up where there is no other.
            assert_eq!(status(&client.exchange(&call("/svc/Echo"))), 0);
            assert_eq!(service.last().field("grpc-timeout").is_some(), shorter);
        }
    });
}

#[test]
fn a_call_that_comes_by_http_1_has_its_deadline_too() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            talk.next_head()?;
            talk.until_end()
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Client::connect(front);
        client.send(
            "POST /svc/Held HTTP/1.1\r\nHost: app\r\nContent-Type: application/grpc\r\nTE: trailers\r\n\
             Connection: TE\r\ngrpc-timeout: 300m\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0",
        );
        assert_own(&client.response(), 4, "request_timeout");
        let passed = timeout_of(&service.last());
        assert!(passed < Duration::from_millis(300), "{passed:?}");
    });
}

/// What a service was told that its caller waits.
fn timeout_of(request: &Message) -> Duration {
    let text = request.field("grpc-timeout").expect("it is passed on");
    let (digits, unit) = text.split_at(text.len() - 1);
    assert!(digits.len() <= 8, "{text}");
    let number: u64 = digits.parse().unwrap();
    match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => panic!("{text}"),
    }
}

#[test]
fn a_call_that_the_caller_cancels_ends_at_the_service() {
    on_both_drivers(|driver| {
        let (told, resets) = mpsc::channel();
        let service = http2::conversing(&[], move |talk| {
            while let Some(frame) = talk.frame()? {
                talk.digest(&frame)?;
                if frame.kind == kind::RST_STREAM {
                    let _ = told.send(frame.number_at(0));
                }
                while let Some((stream, _)) = talk.waiting_request() {
                    talk.send_fields(stream, &[(":status", "200"), ("content-type", "application/grpc")], Ends::No)?;
                    talk.send_data(stream, &grpc_frame(b"first of many"), Ends::No)?;
                }
            }
            Ok(())
        });
        let (proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let stream = client.request(&call("/svc/ServerStream"));
        client.take(stream, 18).unwrap();
        client.reset(stream, code::CANCEL).unwrap();
        assert_eq!(resets.recv_timeout(DEADLINE).unwrap(), code::CANCEL);
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 1);
    });
}

#[test]
fn messages_of_a_stream_are_passed_on_as_they_come() {
    on_both_drivers(|driver| {
        let service = http2::conversing(&[], |talk| {
            let Some((stream, _)) = talk.next_head()? else { return Ok(()) };
            talk.send_fields(stream, &[(":status", "200"), ("content-type", "application/grpc")], Ends::No)?;
            loop {
                let part = talk.take(stream, 1)?;
                if talk.stream(stream).ended && part.is_empty() {
                    talk.send_fields(stream, &[("grpc-status", "0")], Ends::Yes)?;
                    return talk.until_end();
                }
                talk.send_data(stream, &part, Ends::No)?;
            }
        });
        let (_proxy, front) = proxy_by_http2(driver, &[service.address()], "", "");
        let mut client = Connection::connect(front);
        let head = call("/svc/Bidi");
        let stream = client.begin(&head);
        assert_eq!(client.head(stream).field("content-type"), Some("application/grpc"));
        let message = grpc_frame(b"one of many");
        for _ in 0..20 {
            client.send_data(stream, &message, Ends::No).unwrap();
            assert_eq!(client.take(stream, message.len()).unwrap(), message);
        }
        client.send_data(stream, &[], Ends::Yes).unwrap();
        assert!(matches!(client.ended(stream).unwrap(), Ended::Answer(_)));
        assert_eq!(client.stream(stream).message.trailers, [("grpc-status".to_owned(), "0".to_owned())]);
    });
}

#[test]
fn calls_under_way_end_well_while_the_proxy_drains() {
    on_both_drivers(|driver| {
        let service = http2::service(|request| {
            hold(Duration::from_millis(500));
            Outgoing::grpc(request.body.get(5..).unwrap_or_default(), 0)
        });
        let front = ports::free();
        let config = forwarding(front, &[service.address()], "", "protocol = \"http2\"");
        let mut proxy = ringmesh(driver).config(config).start();
        let mut client = Connection::connect(front);
        let streams: Vec<u32> = (0..3).map(|_| client.request(&call("/svc/Echo"))).collect();
        client.ping().unwrap();
        proxy.signal(rustix::process::Signal::TERM);
        for stream in streams {
            assert_eq!(status(&client.response(stream)), 0);
        }
        assert_eq!(client.goodbye().unwrap().1, code::NO_ERROR);
        client.until_end().unwrap();
        assert_eq!(proxy.wait(Duration::from_secs(30)).code(), Some(0));
    });
}
