//! Endpoints that refuse, hang, reset, or answer what is no answer: what the client is told, and when.

use std::time::{Duration, Instant};

use ringmesh_tests::peers::{self, Refusing, Unreachable};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, eventually, hold, on_both_drivers, ports};

use crate::support::{forwarding, proxy_to, ringmesh};

#[track_caller]
fn assert_reason(response: &Message, status: u16, reason: &str) {
    assert_eq!((response.status(), response.field("x-ringmesh-reason")), (status, Some(reason)), "{response:?}");
}

#[track_caller]
fn with_keys(
    driver: Driver,
    app: &[std::net::SocketAddr],
    listener: &str,
    service: &str,
) -> (Proxy, std::net::SocketAddr) {
    let front = ports::free();
    (ringmesh(driver).config(forwarding(front, app, listener, service)).start(), front)
}

#[test]
fn a_refused_connection_is_tried_elsewhere() {
    on_both_drivers(|driver| {
        let (refusing, good) = (Refusing::new(), Service::saying("good"));
        for balance in ["balance = \"round_robin\"", ""] {
            let (proxy, front) = with_keys(driver, &[refusing.address(), good.address()], "", balance);
            let mut client = Client::connect(front);
            for _ in 0..50 {
                client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody");
                assert_eq!(client.response().text(), "good");
            }
            assert!(proxy.metrics().sum("ringmesh_upstream_connections_failed_total", &[("service", "app")]) >= 1);
            assert!(good.requests().iter().all(|request| request.text() == "body"), "bodies are sent whole, once");
        }
    });
}

#[test]
fn when_all_endpoints_refuse_the_client_is_told_503_at_once() {
    on_both_drivers(|driver| {
        let refusing = [Refusing::new(), Refusing::new(), Refusing::new(), Refusing::new()];
        let (proxy, front) = proxy_to(driver, &refusing.each_ref().map(Refusing::address));
        let mut client = Client::connect(front);
        let begun = Instant::now();
        for _ in 0..10 {
            assert_reason(&client.get("app", "/"), 503, "connect_failed");
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "connect_failed")], 10);
        // The first attempt and two retries, as connect_retries is by default.
        proxy.wait_for_metric("ringmesh_request_retries_total", &[], 20);
    });
}

#[test]
fn an_endpoint_that_came_back_is_used_again() {
    on_both_drivers(|driver| {
        let address = ports::free();
        let (_proxy, front) = proxy_to(driver, &[address]);
        let mut client = Client::connect(front);
        assert_reason(&client.get("app", "/"), 503, "connect_failed");
        let listener = std::net::TcpListener::bind(address).unwrap();
        let serving = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut reader = ringmesh_tests::message::Reader::new(stream);
            reader.head().unwrap();
            std::io::Write::write_all(&mut reader.stream, ok("back").as_bytes()).unwrap();
        });
        assert_eq!(client.get("app", "/").text(), "back", "with no other endpoint, it is tried");
        serving.join().unwrap();
    });
}

#[test]
fn a_connection_that_hangs_is_given_up_and_tried_elsewhere() {
    on_both_drivers(|driver| {
        let (unreachable, good) = (Unreachable::new(), Service::saying("good"));
        let keys = "connect_timeout = \"300ms\"\nbalance = \"round_robin\"";
        let (proxy, front) = with_keys(driver, &[unreachable.address(), good.address()], "", keys);
        let mut client = Client::connect(front);
        let begun = Instant::now();
        for _ in 0..4 {
            assert_eq!(client.get("app", "/").text(), "good");
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

        let (_alone, front) = with_keys(driver, &[unreachable.address()], "", keys);
        let begun = Instant::now();
        assert_reason(&Client::connect(front).get("app", "/"), 503, "connect_timeout");
        let took = begun.elapsed();
        assert!((Duration::from_millis(290)..Duration::from_secs(3)).contains(&took), "{took:?}");
        assert!(proxy.metrics().sum("ringmesh_upstream_connections_failed_total", &[]) >= 1);
    });
}

#[test]
fn an_endpoint_is_not_blamed_for_a_request_that_had_less_time_than_connecting_may_take() {
    on_both_drivers(|driver| {
        let unreachable = Unreachable::new();
        let (proxy, front) = with_keys(driver, &[unreachable.address()], "request_timeout = \"100ms\"", "");
        let mut client = Client::connect(front);
        for _ in 0..2 {
            assert_reason(&client.get("app", "/"), 504, "request_timeout");
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "request_timeout")], 2);
        assert_eq!(proxy.metrics().sum("ringmesh_upstream_connections_failed_total", &[]), 0);
        let endpoint = &proxy.status()["services"][0]["endpoints"][0];
        assert_eq!((&endpoint["consecutive_failures"], &endpoint["state"]), (&0.into(), &"up".into()), "{endpoint}");
    });
}

#[test]
fn an_endpoint_that_never_connects_in_a_requests_time_is_passed_over_after_a_few() {
    on_both_drivers(|driver| {
        let (unreachable, good) = (Unreachable::new(), Service::saying("good"));
        let front = ports::free();
        let config = forwarding(front, &[unreachable.address(), good.address()], "request_timeout = \"100ms\"", "");
        let proxy = ringmesh(driver).workers(1).config(config).start();
        let mut client = Client::connect(front);
        let mut late = 0;
        for _ in 0..200 {
            late += u32::from(client.get("app", "/").status() == 504);
            if late == 3 {
                break;
            }
        }
        for round in 0..20 {
            assert_eq!(client.get("app", "/").text(), "good", "request {round} after the third that was late");
        }
        let failed = proxy.metrics().sum("ringmesh_upstream_connections_failed_total", &[]);
        assert_eq!((late, failed), (3, 1));
    });
}

#[test]
fn a_service_that_does_not_answer_in_time_gets_504() {
    on_both_drivers(|driver| {
        let hanging = peers::hanging_server();
        let (proxy, front) = with_keys(driver, &[hanging.address()], "request_timeout = \"400ms\"", "");
        let mut client = Client::connect(front);
        for round in 0..3 {
            let begun = Instant::now();
            assert_reason(&client.get("app", "/"), 504, "request_timeout");
            let took = begun.elapsed();
            assert!((Duration::from_millis(390)..Duration::from_secs(4)).contains(&took), "round {round}: {took:?}");
        }
        ringmesh_tests::eventually("the connections to the service are closed", || (hanging.open() == 0).then_some(()));
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "request_timeout")], 3);

        // With a body on its way, and for one that has begun to answer.
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 3\r\n\r\nabc");
        assert_reason(&client.response(), 504, "request_timeout");
        let half = Service::conversing(|talk| {
            talk.request()?;
            talk.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")?;
            talk.rest().map(drop)
        });
        let (_proxy, front) = with_keys(driver, &[half.address()], "request_timeout = \"400ms\"", "");
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.head().status(), 200);
        assert_eq!(client.exactly(4).unwrap(), b"half");
        client.expect_end();
    });
}

#[test]
fn a_service_that_cannot_be_reached_is_told_once_and_so_is_that_it_can_again() {
    on_both_drivers(|driver| {
        for protocol in ["http", "tcp"] {
            let endpoints = [ports::free(), ports::free()];
            let front = ports::free();
            let listener = format!("protocol = \"{protocol}\"\n");
            let proxy =
                ringmesh(driver).config(forwarding(front, &endpoints, &listener, &listener)).without_access_log();
            let proxy = proxy.start();
            let ask = || {
                let mut client = Client::try_connect(front)?;
                client.try_send("GET / HTTP/1.1\r\nHost: app\r\n\r\n")?;
                client.try_response()
            };
            let is_well = || ask().is_ok_and(|answer| answer.status() == 200);
            let (gone, back) = ("no endpoint of the service can be reached", "the service can be reached again");
            assert!(!is_well());
            proxy.wait_for_log(&[gone, "\"WARN\"", "\"service\":\"app\"", "\"endpoints\":2", "connect_failed"]);
            assert!((0..30).all(|_| !is_well()));
            let app = Service::saying_at(&endpoints[1].to_string(), "hello");
            eventually("it is found", || is_well().then_some(()));
            let line = proxy.wait_for_log(&[back, "\"INFO\"", "\"service\":\"app\""]);
            assert!(line.contains(&app.address().to_string()), "{line}");
            // One of two is enough, whichever is asked.
            assert!((0..30).all(|_| is_well()));
            let log = proxy.log();
            assert_eq!((log.matches(gone).count(), log.matches(back).count()), (1, 1));
        }
    });
}

#[test]
fn a_timeout_of_a_route_goes_before_that_of_the_listener() {
    on_both_drivers(|driver| {
        let slow = Service::http(|_| {
            hold(Duration::from_millis(800));
            ok("slow")
        });
        let front = ports::free();
        let config = format!(
            "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nrequest_timeout = \"300ms\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n\
             [[route]]\nhosts = [\"app\"]\nto = \"app\"\n\
             [[route.rule]]\nmatch = {{ path = \"/patient\" }}\nto = \"app\"\ntimeout = \"20s\"\n",
            slow.address()
        );
        let _proxy = ringmesh(driver).config(config).start();
        assert_eq!(Client::connect(front).get("app", "/patient").text(), "slow");
        assert_eq!(Client::connect(front).get("app", "/").status(), 504);
    });
}

#[test]
fn a_service_that_resets_or_closes_before_an_answer_gets_502_and_the_request_is_not_repeated() {
    on_both_drivers(|driver| {
        let closing = Service::conversing(|talk| talk.request().map(drop));
        let resetting = peers::resetting_server("");
        for service in [&closing, &resetting] {
            let (_proxy, front) = proxy_to(driver, &[service.address()]);
            let mut client = Client::connect(front);
            for method in ["GET", "POST", "DELETE"] {
                let before = service.requests().len();
                client.send(format!("{method} / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"));
                assert_reason(&client.response(), 502, "upstream_reset");
                assert_eq!(service.requests().len(), before + 1, "{method}: it may have had an effect");
            }
        }
        // A reset that comes while we still connect looks like a refusal.
        let slamming = peers::slamming_server();
        let (_proxy, front) = proxy_to(driver, &[slamming.address()]);
        for _ in 0..10 {
            let response = Client::connect(front).get("app", "/");
            let told = (response.status(), response.field("x-ringmesh-reason"));
            assert!([(502, Some("upstream_reset")), (503, Some("connect_failed"))].contains(&told), "{response:?}");
        }
    });
}

#[test]
fn an_answer_that_cannot_be_read_gets_502() {
    on_both_drivers(|driver| {
        let answers = [
            "garbage\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nBad Field: x\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
            "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        ];
        for answer in answers {
            let service = Service::http(move |_| answer);
            let (_proxy, front) = proxy_to(driver, &[service.address()]);
            let mut client = Client::connect(front);
            for _ in 0..2 {
                assert_reason(&client.get("app", "/"), 502, "upstream_garbage");
            }
            assert_eq!(service.accepted(), 2, "{answer:?}: such a connection is not used again");
        }
        for service in [peers::garbage_server(), peers::endless_head_server()] {
            let (_proxy, front) = proxy_to(driver, &[service.address()]);
            let mut client = Client::connect(front);
            assert_reason(&client.get("app", "/"), 502, "upstream_garbage");
        }
    });
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_passed_on() {
    on_both_drivers(|driver| {
        let service = Service::conversing(|talk| {
            talk.request()?;
            talk.send(ok("asked for"))?;
            hold(Duration::from_millis(20));
            talk.send(ok("poison"))?;
            talk.rest().map(drop)
        });
        let (_proxy, front) = proxy_to(driver, &[service.address()]);
        let mut client = Client::connect(front);
        for _ in 0..5 {
            assert_eq!(client.get("app", "/").text(), "asked for");
            // By now the poison lies in the pooled connection.
            hold(Duration::from_millis(100));
        }
        assert_eq!(service.accepted(), 5);
    });
}

#[test]
fn a_name_is_resolved_and_one_that_is_not_known_gets_503() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let config = |name: &str| {
            format!(
                "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{name}:{}\"]\n",
                app.address().port()
            )
        };
        let mut proxy = ringmesh(driver).config(config("localhost")).start();
        let status = proxy.status();
        assert_eq!(status["names"][0]["name"], "localhost", "{status}");
        let client = &mut Client::connect(front);
        assert_eq!(client.get("app", "/").text(), "hello");

        proxy.reconfigure(&config("nobody.invalid"));
        assert_reason(&client.get("app", "/"), 503, "no_endpoint");
        ringmesh_tests::eventually("the problem is shown", || {
            proxy.status()["names"][0]["error"].as_str().map(str::to_owned)
        });
    });
}

#[test]
fn one_bad_service_does_not_slow_requests_to_others() {
    on_both_drivers(|driver| {
        let (refusing, unreachable) = (Refusing::new(), Unreachable::new());
        let silent =
            [peers::hanging_server(), peers::resetting_server("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")];
        let garbage = [peers::garbage_server(), peers::endless_head_server(), peers::slamming_server()];
        let bad = [("refusing", refusing.address()), ("unreachable", unreachable.address())].into_iter().chain(
            ["hanging", "resetting", "garbage", "endless", "slamming"]
                .into_iter()
                .zip(silent.iter().chain(&garbage).map(Service::address)),
        );
        for (name, address) in bad {
            let good = Service::saying("good");
            let front = ports::free();
            let config = format!(
                "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nrequest_timeout = \"5s\"\n\
                 [[service]]\nname = \"bad\"\nendpoints = [\"{address}\"]\n\
                 [[service]]\nname = \"good\"\nendpoints = [\"{}\"]\n\
                 [[route]]\nhosts = [\"bad\"]\n[[route]]\nhosts = [\"good\"]\n",
                good.address()
            );
            let proxy = ringmesh(driver).config(config).start();
            let mut kept = Client::connect(front);
            let mut waiting: Vec<Client> = (0..100)
                .map(|_| {
                    let mut client = Client::connect(front);
                    client.send("GET / HTTP/1.1\r\nHost: bad\r\n\r\n");
                    client
                })
                .collect();
            let begun = Instant::now();
            for _ in 0..50 {
                assert_eq!(Client::connect(front).get("good", "/").text(), "good", "beside {name}");
                assert_eq!(kept.get("good", "/").text(), "good", "beside {name}, on a connection that is kept");
            }
            assert!(begun.elapsed() < Duration::from_secs(5), "beside {name}: {:?}", begun.elapsed());
            // And those who asked the bad one are told so, or cut, in time.
            for client in &mut waiting {
                match client.try_response() {
                    Ok(response) => assert!((502..=504).contains(&response.status()), "{name}: {response:?}"),
                    Err(error) => {
                        assert!(name == "resetting" && ringmesh_tests::client::is_end(&error), "{name}: {error}")
                    }
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(25), "{name}: {:?}", begun.elapsed());
            // A request is counted after its client has the response.
            proxy.wait_for_metric("ringmesh_request_outcome_total", &[("service", "good"), ("reason", "ok")], 100);
        }
    });
}
