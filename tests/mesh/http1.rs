//! HTTP/1.1 through the proxy, byte by byte: what a client sends, what the service gets, and back (RFC 9110, RFC 9112).

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use ringmesh_loadgen::load::{BodyCheck, BodyForm, Entry, Reuse};
use ringmesh_loadgen::serve::{Http, ResponseForm};
use ringmesh_tests::client::is_end;
use ringmesh_tests::service::{chunked, chunks, ok};
use ringmesh_tests::{Client, DEADLINE, Message, Service, eventually, hold, on_both_drivers, peers, ports};

use crate::load;
use crate::support::{caller, forwarding, pattern, proxy_to, ringmesh, strict};

/// Sizes around the proxy's buffers (16 and 64 KiB) and beyond what sockets hold.
const SIZES: [usize; 8] = [0, 1, 1_000, 16_384, 16_500, 65_536, 300_000, 5_000_000];

#[test]
fn fixed_bodies_go_both_ways_unchanged() {
    on_both_drivers(|driver| {
        let service = Service::echo();
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for bytes in SIZES {
            let body = pattern(bytes);
            let response = post(&mut client, &format!("Content-Length: {bytes}"), &body);
            assert_eq!(response.status(), 200);
            assert_eq!(response.field("content-length"), Some(bytes.to_string().as_str()));
            assert!(response.body == body, "{bytes} bytes came back as {}", response.body.len());
            assert_eq!(service.last().field("content-length"), Some(bytes.to_string().as_str()));
        }
        assert_eq!(service.accepted(), 1, "one connection upstream carried all of them");
    });
}

#[test]
fn a_client_that_comes_after_a_long_rest_of_all_has_the_whole_idle_timeout() {
    const IDLE: Duration = Duration::from_secs(2);
    on_both_drivers(|driver| {
        let service = Service::echo();
        let front = ports::free();
        let config = forwarding(front, &[service.address()], "idle_timeout = \"2s\"", "");
        let _proxy = ringmesh(driver).config(config).start();
        hold(IDLE * 2);
        let mut client = Client::connect(front);
        hold(IDLE / 4);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().status(), 200);
    });
}

/// Sends a POST whose body may come back before it has been sent.
fn post(client: &mut Client, framing: &str, body: &[u8]) -> Message {
    let mut writer = client.socket().try_clone().unwrap();
    let (head, body) = (format!("POST /echo HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n"), body.to_vec());
    let writing = thread::spawn(move || {
        io::Write::write_all(&mut writer, head.as_bytes())?;
        io::Write::write_all(&mut writer, &body)
    });
    let response = client.response();
    writing.join().unwrap().unwrap();
    response
}

#[test]
fn chunked_bodies_go_both_ways_in_the_chunks_in_which_they_came() {
    on_both_drivers(|driver| {
        let service = Service::echo();
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for (bytes, chunk) in [(0, 1), (1, 1), (3_000, 7), (100_000, 16_384), (1_000_000, 70_000), (300_000, 999)] {
            let body = pattern(bytes);
            let mut framed = Vec::new();
            chunks(&body, chunk, "", &mut framed);
            let response = post(&mut client, "Transfer-Encoding: chunked", &framed);
            assert_eq!(response.field("transfer-encoding"), Some("chunked"));
            assert!(response.body == body, "{bytes} bytes came back as {}", response.body.len());
            assert!(service.last().body == body, "the service got another body than was sent");
        }
    });
}

#[test]
fn a_body_that_comes_byte_by_byte_is_passed_on_as_it_comes() {
    on_both_drivers(|driver| {
        let (seen, sees) = mpsc::channel();
        let service = Service::conversing(move |talk| {
            let head = talk.head()?.unwrap();
            let length: usize = head.field("content-length").unwrap().parse().unwrap();
            for _ in 0..length {
                seen.send(talk.exactly(1)?[0]).unwrap();
            }
            talk.send(ok("done"))
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\n");
        for byte in b"abcde" {
            client.send([*byte]);
            assert_eq!(sees.recv_timeout(DEADLINE).unwrap(), *byte, "each byte is there before the next is sent");
        }
        assert_eq!(client.response().text(), "done");
    });
}

const LARGE_BYTES: u64 = 64 * 1024 * 1024;

/// Bodies of 64 MiB to the service and back at once, each byte compared.
fn check_large_echo(front: std::net::SocketAddr) {
    let (before, requests) = (std::time::Instant::now(), 4);
    for body_form in [BodyForm::Fixed, BodyForm::Chunked] {
        let entry = Entry { body_form, ..load::echoed("app", LARGE_BYTES) };
        let report = load::some(front, requests, 2, Reuse::KeepAlive, vec![entry]);
        load::assert_nothing_failed(&report, requests);
    }
    eprintln!("{} of 64 MiB both ways in {:?}", requests * 2, before.elapsed());
}

#[test]
fn bodies_of_64_mib_go_both_ways_at_once_unchanged() {
    on_both_drivers(|driver| {
        let echo = load::echo();
        let (proxy, front) = proxy_to(driver, &[echo.address()]);
        check_large_echo(front);
        // Counted as sent: with the framing of chunks.
        let bytes = |name: &str| proxy.metrics().sum(name, &[]);
        assert!(bytes("ringmesh_request_body_bytes_total") >= 8 * LARGE_BYTES);
        assert!(bytes("ringmesh_response_body_bytes_total") >= 8 * LARGE_BYTES);
    });
}

#[test]
fn bodies_of_64_mib_go_both_ways_at_once_through_mutual_tls() {
    on_both_drivers(|driver| {
        let echo = load::echo();
        let authority = ringmesh_tests::certificates::Authority::new(crate::support::DOMAIN);
        let there = strict(driver, &authority, "there", echo.address(), "", "");
        let (_here, outbound) = caller(driver, &authority.svid("here"), "here", "there", &[there.inbound], "");
        check_large_echo(outbound);
    });
}

#[test]
fn responses_of_64_mib_come_whole_in_every_form() {
    on_both_drivers(|driver| {
        for form in [ResponseForm::Fixed, ResponseForm::Chunked, ResponseForm::UntilClose] {
            let service = load::serve_http(Http { form, body_bytes: LARGE_BYTES, ..Http::default() });
            let (_proxy, front) = proxy_to(driver, &[service.address()]);
            let entry = Entry { check: BodyCheck::Length(LARGE_BYTES), ..Entry::get("app", "/") };
            let report = load::some(front, 4, 2, Reuse::KeepAlive, vec![entry]);
            load::assert_nothing_failed(&report, 4);
        }
    });
}

#[test]
fn a_response_that_ends_with_the_connection_is_passed_on_to_its_end() {
    on_both_drivers(|driver| {
        for bytes in [0, 10, 70_000, 2_000_000] {
            let service = Service::conversing(move |talk| {
                talk.request()?;
                talk.send("HTTP/1.1 200 OK\r\n\r\n")?;
                talk.send(pattern(bytes))
            });
            let (_proxy, front) = proxy_to(driver, &[service.address()]);
            let mut client = Client::connect(front);
            let response = client.get("app", "/");
            assert_eq!(response.field("connection"), Some("close"), "only the end says where the body ends");
            assert!(response.body == pattern(bytes), "{bytes} bytes came as {}", response.body.len());
            client.expect_end();
        }
    });
}

#[test]
fn a_response_to_head_has_no_body_and_the_connection_goes_on() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| match request.head.request() {
            ("HEAD", "/fixed") => "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_owned(),
            ("HEAD", "/chunked") => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
            ("HEAD", _) => "HTTP/1.1 200 OK\r\n\r\n".to_owned(),
            _ => ok("after it"),
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for (target, length) in [("/fixed", Some("1000")), ("/chunked", None), ("/none", None)] {
            client.send(format!("HEAD {target} HTTP/1.1\r\nHost: app\r\n\r\n"));
            let response = client.response_to("HEAD");
            assert_eq!((response.status(), response.field("content-length")), (200, length), "{target}");
            assert_eq!(client.get("app", "/").text(), "after it", "{target}");
        }
    });
}

#[test]
fn statuses_without_a_body_are_passed_on_and_the_connection_goes_on() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| match request.head.request().1 {
            "/204" => "HTTP/1.1 204 No Content\r\n\r\n".to_owned(),
            "/304" => "HTTP/1.1 304 Not Modified\r\nContent-Length: 1000\r\nETag: \"x\"\r\n\r\n".to_owned(),
            _ => ok("after it"),
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for (target, status) in [("/204", 204), ("/304", 304), ("/204", 204)] {
            let response = client.get("app", target);
            assert_eq!((response.status(), response.body.len()), (status, 0));
            assert_eq!(client.get("app", "/").text(), "after it", "{target}");
        }
        assert_eq!(service.accepted(), 1);
    });
}

#[test]
fn a_client_that_expects_100_continue_gets_it_from_the_service() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            while let Some(head) = talk.head()? {
                assert_eq!(head.field("expect"), Some("100-continue"));
                talk.send("HTTP/1.1 100 Continue\r\n\r\n")?;
                let request = talk.rest_of(head)?;
                talk.send(ok(&request.text()))?;
            }
            Ok(())
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..3 {
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n");
            assert_eq!(client.head().status(), 100);
            client.send("hello");
            assert_eq!(client.response().text(), "hello");
        }
        assert_eq!(service.accepted(), 1);
    });
}

#[test]
fn a_client_that_expects_100_continue_may_be_refused_without_sending_its_body() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.head()?;
            talk.send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\nno")?;
            talk.rest().map(drop)
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 5000000\r\nExpect: 100-continue\r\n\r\n");
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (401, "no"));
        client.expect_end();
    });
}

#[test]
fn interim_responses_are_passed_on_in_order_and_only_to_those_who_know_them() {
    on_both_drivers(|driver| {
        let service = Service::http(|_| {
            format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n\
                 HTTP/1.1 102 Processing\r\n\r\n{}",
                ok("final")
            )
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        let first = client.head();
        assert_eq!((first.status(), first.field("link")), (103, Some("</a.css>; rel=preload")));
        assert_eq!(client.head().status(), 102);
        assert_eq!(client.response().text(), "final");

        let mut old = Client::connect(front);
        old.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n");
        let head = old.head();
        assert_eq!(head.status(), 200, "HTTP/1.0 has no interim responses (RFC 9110 section 15.2)");
    });
}

#[test]
fn trailers_go_both_ways() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| chunked(&request.body, 3, "X-Checksum: abc\r\nX-More: 1\r\n"));
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        let mut framed = Vec::new();
        chunks(b"hello", 2, "X-Sum: 5\r\n", &mut framed);
        let response = post(&mut client, "Transfer-Encoding: chunked\r\nTrailer: X-Sum", &framed);
        assert_eq!(response.text(), "hello");
        let trailers =
            [("X-Checksum", "abc"), ("X-More", "1")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(response.trailers, trailers);
        assert_eq!(service.last().trailers, [("X-Sum".to_owned(), "5".to_owned())]);
    });
}

#[test]
fn dates_of_services_are_left_alone_and_answers_of_the_proxy_have_one() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| match request.head.request().1 {
            "/dated" => "HTTP/1.1 200 OK\r\nDate: yesterday\r\nServer: a\r\nContent-Length: 0\r\n\r\n",
            _ => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        let dated = client.get("app", "/dated");
        assert_eq!((dated.field("date"), dated.field("server")), (Some("yesterday"), Some("a")));
        let without = client.get("app", "/");
        assert_eq!((without.field("date"), without.field("server")), (None, None));
        let own = client.send("GET / HTTP/1.1\r\n\r\n").response();
        let date = own.field("date").unwrap();
        assert!(own.status() == 400 && date.len() == 29 && date.ends_with(" GMT"), "{date}");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| {
            let (method, target) = request.head.request();
            // The first one is the slowest.
            if target == "/0" {
                hold(Duration::from_millis(100));
            }
            ok(&format!("{method} {target} {}", request.text()))
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        let mut all = String::new();
        for number in 0..50 {
            match number % 3 {
                0 => all.push_str(&format!("GET /{number} HTTP/1.1\r\nHost: app\r\n\r\n")),
                1 => all.push_str(&format!("POST /{number} HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody")),
                _ => all.push_str(&format!(
                    "PUT /{number} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nch\r\n0\r\n\r\n"
                )),
            }
        }
        client.send(&all);
        for number in 0..50 {
            let expected = match number % 3 {
                0 => format!("GET /{number} "),
                1 => format!("POST /{number} body"),
                _ => format!("PUT /{number} ch"),
            };
            assert_eq!(client.response().text(), expected);
        }
    });
}

#[test]
fn fields_for_one_hop_are_not_passed_on_and_all_others_are_as_they_came() {
    on_both_drivers(|driver| {
        let service = Service::http(|_| {
            "HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nX-End: 2\r\n\
             Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 0\r\n\r\n"
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send(
            "GET / HTTP/1.1\r\nHost: app\r\nConnection: keep-alive, X-Mine\r\nX-Mine: 1\r\nKeep-Alive: 3\r\nTE: gzip\r\n\
             Proxy-Connection: keep-alive\r\nX-Theirs: 2\r\nAccept: a\r\nAccept: b\r\nx-EMPTY:\r\n\r\n",
        );
        let response = client.response();
        let names = |message: &Message| -> Vec<String> {
            message.head.fields.iter().map(|(name, value)| format!("{name}: {value}")).collect()
        };
        assert_eq!(names(&response), ["X-End: 2", "Set-Cookie: a=1", "Set-Cookie: b=2", "Content-Length: 0"]);
        assert_eq!(names(&service.last()), ["Host: app", "X-Theirs: 2", "Accept: a", "Accept: b", "x-EMPTY: "]);
    });
}

#[test]
fn a_response_may_come_before_the_request_has_ended() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.head()?;
            talk.send("HTTP/1.1 413 Content Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nstop")?;
            // Reads on for a while, as servers do that want their answer to be read.
            talk.socket().set_read_timeout(Some(Duration::from_secs(1)))?;
            talk.rest().map(drop)
        });
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 100000000\r\n\r\n");
        let mut writer = client.socket().try_clone().unwrap();
        // Sends until nobody takes more.
        let writing = thread::spawn(move || while io::Write::write_all(&mut writer, &[0; 10_000]).is_ok() {});
        let response = client.response();
        assert_eq!((response.status(), response.text().as_str()), (413, "stop"));
        drop(client);
        writing.join().unwrap();
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "ok")], 1);
    });
}

#[test]
fn a_client_that_has_ended_its_side_as_it_may_still_gets_its_response() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| {
            hold(Duration::from_millis(300));
            ok(&format!("late {}", request.text()))
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        for (request, expected) in [
            ("GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n", "late "),
            ("POST / HTTP/1.1\r\nHost: app\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi", "late hi"),
            // Its side ends where its body does, as some clients mark that end.
            ("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi", "late hi"),
            ("GET / HTTP/1.0\r\nHost: app\r\n\r\n", "late "),
        ] {
            let mut client = Client::connect(front);
            client.send(request);
            client.half_close();
            assert_eq!(client.response().text(), expected);
            client.expect_end();
        }
    });
}

#[test]
fn a_client_that_ends_its_side_without_having_said_so_counts_as_gone() {
    on_both_drivers(|driver| {
        let service = peers::hanging_server();
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (service.open() == 1).then_some(()));
        // A half-close and an end look the same, and nobody may work for a client that is gone.
        client.half_close();
        client.expect_end();
        eventually("the service is released", || (service.open() == 0).then_some(()));
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 1);
    });
}

#[test]
fn a_client_that_goes_away_releases_the_service() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.request()?;
            // No answer: the service works on it until it sees that nobody waits any more.
            talk.rest().map(drop)
        });
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        for (number, end) in [Client::reset as fn(Client), drop].into_iter().enumerate() {
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            eventually("the request is with the service", || (service.open() == 1).then_some(()));
            end(client);
            eventually("the service is released", || (service.open() == 0).then_some(()));
            let aborted = [("reason", "client_aborted")];
            proxy.wait_for_metric("ringmesh_request_outcome_total", &aborted, number as u64 + 1);
        }
    });
}

#[test]
fn a_client_that_goes_away_while_it_sends_releases_the_service() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| talk.request().map(drop));
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        for end in [Client::reset as fn(Client), drop] {
            let mut client = Client::connect(front);
            client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\nonly a part");
            eventually("the request is with the service", || (service.open() == 1).then_some(()));
            end(client);
            eventually("the service is released", || (service.open() == 0).then_some(()));
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 2);
        assert_eq!(service.requests().len(), 0, "half a request is none");
    });
}

#[test]
fn a_client_that_goes_away_while_it_receives_releases_the_service() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.request()?;
            talk.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            loop {
                talk.send("a\r\n0123456789\r\n")?;
                hold(Duration::from_millis(1));
            }
        });
        let (proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        client.reset();
        eventually("the service is released", || (service.open() == 0).then_some(()));
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_aborted")], 1);
    });
}

#[test]
fn a_response_that_is_cut_short_cuts_the_client_too() {
    on_both_drivers(|driver| {
        let cuts = [
            "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly a part",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        ];
        for cut in cuts {
            for server in [peers::truncating_server, peers::resetting_server] {
                let service = server(cut);
                let (proxy, front) = proxy_to(driver, &[service.address()]);
                let mut client = Client::connect(front);
                client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
                let error = client.try_response().expect_err("half a response must not look whole");
                assert!(is_end(&error), "{cut:?}: {error}");
                // A reset may overtake the head; what must not be is a response taken for whole.
                proxy.wait_for_metric("ringmesh_request_outcome_total", &[], 1);
                let metrics = proxy.metrics();
                assert_eq!(metrics.sum("ringmesh_request_outcome_total", &[("reason", "ok")]), 0, "{cut:?}");
            }
        }
    });
}

#[test]
fn a_client_of_http_1_0_gets_responses_that_it_can_read() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| match request.head.request().1 {
            "/chunked" => String::from_utf8(chunked(b"in pieces", 3, "X-Trailer: 1\r\n")).unwrap(),
            _ => ok("fixed"),
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("GET /chunked HTTP/1.0\r\nHost: app\r\n\r\n");
        let response = client.response();
        assert_eq!(response.field("transfer-encoding"), None, "HTTP/1.0 knows no chunks");
        assert_eq!(response.text(), "in pieces");
        client.expect_end();

        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.0\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().text(), "fixed");
        client.expect_end();

        let mut client = Client::connect(front);
        for _ in 0..3 {
            client.send("GET / HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n");
            let response = client.response();
            assert_eq!(response.field("connection"), Some("keep-alive"));
            assert_eq!(response.text(), "fixed");
        }
        assert!(service.requests().iter().all(|request| request.head.start.ends_with("HTTP/1.1")), "our own version");
    });
}

/// HTTP/1.1 wants a Host, and many servers one that is not empty: nginx, and the next proxy.
#[test]
fn a_client_of_http_1_0_that_names_no_host_is_taken_for_one_that_names_the_service() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let [front, next] = [ports::free(), ports::free()];
        for (protocol, named) in [("http", "next"), ("http2", "next")] {
            let second = format!(
                "[[listener]]\nname = \"next\"\nbind = \"{next}\"\nservice = \"app\"\n\
                 [[service]]\nname = \"next\"\nprotocol = \"{protocol}\"\nendpoints = [\"{next}\"]\n"
            );
            let config = forwarding(front, &[service.address()], "", "").replacen("\"app\"", "\"next\"", 1) + &second;
            let _proxy = ringmesh(driver).config(config).start();
            let mut client = Client::connect(front);
            client.send("GET / HTTP/1.0\r\n\r\n");
            assert_eq!(client.response().text(), "hello", "{protocol}");
            client.expect_end();
            assert_eq!(service.last().head.field("host"), Some(named), "{protocol}");
        }
    });
}

#[test]
fn a_client_that_says_close_is_closed_and_one_that_does_not_is_kept() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..100 {
            let response = client.get("app", "/");
            assert_eq!((response.text().as_str(), response.field("connection")), ("hello", None));
        }
        client.send("GET / HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n");
        let response = client.response();
        assert_eq!((response.text().as_str(), response.field("connection")), ("hello", Some("close")));
        client.expect_end();
        assert_eq!(service.accepted(), 1, "upstream the connection is kept all the while");
    });
}

#[test]
fn a_service_that_says_close_is_not_sent_another_request_on_that_connection() {
    on_both_drivers(|driver| {
        let service =
            Service::http(|_| "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi".to_owned());
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..5 {
            let response = client.get("app", "/");
            assert_eq!((response.text().as_str(), response.field("connection")), ("hi", None));
        }
        assert_eq!(service.accepted(), 5);
    });
}

#[test]
fn a_service_that_closes_unused_connections_fails_no_request() {
    on_both_drivers(|driver| {
        // Closes after each response without a word of it.
        let service = Service::conversing(|talk| {
            let request = talk.request()?;
            talk.send(ok(&request.map(|request| request.text()).unwrap_or_default()))
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for round in 0..50 {
            if round % 2 == 0 {
                // The end of the connection is there before the next request.
                hold(Duration::from_millis(5));
            }
            assert_eq!(client.get("app", "/").status(), 200, "round {round}");
        }
    });
}

#[test]
fn bytes_behind_a_response_are_not_taken_for_the_next_one() {
    on_both_drivers(|driver| {
        let service = Service::http(|request| match request.head.request().1 {
            "/poison" => format!("{}{}", ok("first"), ok("poison")),
            _ => ok("good"),
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..10 {
            assert_eq!(client.get("app", "/poison").text(), "first");
            assert_eq!(client.get("app", "/").text(), "good");
        }
    });
}

#[test]
fn a_target_in_absolute_form_reaches_its_host() {
    on_both_drivers(|driver| {
        let service = Service::saying("hello");
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        client.send("GET http://app/path?q=1 HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().text(), "hello");
        let request = service.last();
        assert_eq!((request.head.request(), request.field("host")), (("GET", "/path?q=1"), Some("app")));
        client.send("OPTIONS * HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().text(), "hello");
        assert_eq!(service.last().head.request(), ("OPTIONS", "*"));
    });
}
