//! Limits: requests in flight over all workers, heads, targets, times and connections. Who is beyond one is told so, and
//! nobody else notices.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use ringmesh_tests::gate::{Gate, LEAVING};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, eventually, hold, on_both_drivers, ports};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::support::{forwarding, proxy_to, ringmesh};

const WORKERS: u16 = 4;

#[track_caller]
fn limited(driver: Driver, app: SocketAddr, listener_keys: &str, service_keys: &str) -> (Proxy, SocketAddr) {
    let front = ports::free();
    let config = forwarding(front, &[app], listener_keys, service_keys);
    (ringmesh(driver).workers(WORKERS).config(config).start(), front)
}

#[track_caller]
fn assert_refused(response: &Message, status: u16, reason: &str) {
    assert_eq!((response.status(), response.field("x-ringmesh-reason")), (status, Some(reason)), "{response:?}");
}

// ---- requests in flight ----

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: app\r\n\r\n";

/// How many open connections each worker has.
fn connections_by_worker(proxy: &Proxy) -> Vec<u64> {
    let metrics = proxy.metrics();
    let worker = |worker: u16| metrics.sum("ringmesh_worker_connections", &[("worker", &worker.to_string())]);
    (0..WORKERS).map(worker).collect()
}

/// So many connections to each worker, listed by worker. The proxy puts each where the fewest are.
fn connections_to_each_worker(proxy: &Proxy, front: SocketAddr, each: usize) -> Vec<Vec<Client>> {
    let mut workers: Vec<Vec<Client>> = (0..WORKERS).map(|_| Vec::new()).collect();
    while workers.iter().any(|connections| connections.len() < each) {
        let before = connections_by_worker(proxy);
        let client = Client::connect(front);
        let worker = eventually("a worker has taken the connection", || {
            let now = connections_by_worker(proxy);
            now.iter().zip(&before).position(|(now, before)| now > before)
        });
        workers[worker].push(client);
    }
    workers
}

/// Asks on all of these connections at once. Waits until each has either reached the gate or been refused; gives back how
/// many were let in, once they have been let out again and the proxy has none of them in flight any more: a client may
/// have its answer a moment before that.
fn ask_at_once(proxy: &Proxy, gate: &Gate, clients: &mut [Client]) -> usize {
    clients.iter_mut().for_each(|client| {
        client.send(REQUEST);
    });
    let mut refused = vec![false; clients.len()];
    let let_in = eventually("every request is held or refused", || {
        for (client, refused) in clients.iter().zip(&mut refused) {
            *refused = *refused || is_answered(client.socket());
        }
        let refused = refused.iter().filter(|refused| **refused).count();
        (gate.inside() + refused == clients.len()).then(|| gate.inside())
    });
    gate.let_go();
    let answers = clients.iter_mut().map(Client::response);
    let good = answers.filter(|answer| {
        answer.status() == 200 || {
            assert_refused(answer, 503, "in_flight_limit");
            false
        }
    });
    assert_eq!(good.count(), let_in, "who was let in is answered, and nobody else");
    wait_for_none_in_flight(proxy);
    let_in
}

fn wait_for_none_in_flight(proxy: &Proxy) {
    eventually("nothing is in flight any more", || {
        (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
    });
}

fn is_answered(socket: &TcpStream) -> bool {
    socket.set_nonblocking(true).unwrap();
    let peeked = socket.peek(&mut [0]);
    socket.set_nonblocking(false).unwrap();
    peeked.is_ok()
}

#[test]
fn with_four_workers_a_limit_is_never_exceeded_and_one_worker_alone_reaches_nine_tenths_of_it() {
    const MAX: usize = 40;
    on_both_drivers(|driver| {
        let gate = Gate::shut();
        let (proxy, front) = limited(driver, gate.address(), "", &format!("max_in_flight = {MAX}"));
        let mut workers = connections_to_each_worker(&proxy, front, MAX + 8);
        let mut reached = Vec::new();
        // Each worker in turn has all the demand, so that permits have to follow it; then all have it at once.
        for _ in 0..2 {
            for worker in &mut workers {
                // Not in the first milliseconds: a worker that was told that nothing is left does not ask again at once.
                eventually("one worker alone comes near the limit", || {
                    reached.push(ask_at_once(&proxy, &gate, worker));
                    (*reached.last().unwrap() >= MAX * 9 / 10).then_some(())
                });
            }
        }
        let mut all: Vec<Client> = workers.into_iter().flatten().collect();
        for _ in 0..3 {
            reached.push(ask_at_once(&proxy, &gate, &mut all));
            assert!(*reached.last().unwrap() >= MAX * 9 / 10, "with demand everywhere: {reached:?} of {MAX}");
        }
        eprintln!("of {MAX} permits, in use: {reached:?}");
        assert!(gate.most() <= MAX, "the service was sent {} at a time; {reached:?}", gate.most());
    });
}

#[test]
fn under_shifting_load_the_service_never_sees_more_than_the_limit() {
    const MAX: usize = 20;
    const CLIENTS: usize = 60;
    on_both_drivers(|driver| {
        let gate = Gate::shut();
        let (proxy, front) = limited(driver, gate.address(), "", &format!("max_in_flight = {MAX}"));
        let until = Instant::now() + Duration::from_secs(2);
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                thread::spawn(move || {
                    let mut answered = [0_u64; 2];
                    while Instant::now() < until {
                        // Some go away in the middle; their permits must come back.
                        let mut client = Client::connect(front);
                        for _ in 0..5 {
                            answered[usize::from(client.get("app", "/").status() == 200)] += 1;
                        }
                        if number % 3 == 0 {
                            client.send(format!("GET {LEAVING} HTTP/1.1\r\nHost: app\r\n\r\n"));
                        }
                    }
                    answered
                })
            })
            .collect();
        while !clients.iter().all(thread::JoinHandle::is_finished) {
            hold(Duration::from_millis(3));
            gate.let_go();
        }
        let answered = clients.into_iter().map(|client| client.join().unwrap());
        let [refused, good] = answered.fold([0, 0], |sum, one| [sum[0] + one[0], sum[1] + one[1]]);
        assert!(good > 500 && refused > 50, "{good} answered, {refused} refused: too few to prove anything");
        assert!(gate.most() <= MAX, "the service was sent {} at a time", gate.most());
        assert!(gate.most() >= MAX * 9 / 10, "only {} of {MAX} were ever used", gate.most());
        wait_for_none_in_flight(&proxy);
    });
}

#[test]
fn a_limit_too_small_to_divide_is_exact() {
    on_both_drivers(|driver| {
        for max in [1, 3, 15] {
            let gate = Gate::shut();
            let (proxy, front) = limited(driver, gate.address(), "", &format!("max_in_flight = {max}"));
            let mut clients: Vec<Client> = (0..32).map(|_| Client::connect(front)).collect();
            for _ in 0..5 {
                assert_eq!(ask_at_once(&proxy, &gate, &mut clients), max);
            }
            assert_eq!(gate.most(), max);
            proxy.wait_for_metric(
                "ringmesh_request_outcome_total",
                &[("reason", "in_flight_limit")],
                5 * (32 - max as u64),
            );
        }
    });
}

#[test]
fn permits_of_clients_that_went_away_are_used_again() {
    on_both_drivers(|driver| {
        let gate = Gate::shut();
        let (proxy, front) = limited(driver, gate.address(), "", "max_in_flight = 2");
        for _ in 0..5 {
            let leaving: Vec<Client> = (0..2)
                .map(|_| {
                    let mut client = Client::connect(front);
                    client.send(REQUEST);
                    client
                })
                .collect();
            eventually("both are held", || (gate.inside() == 2).then_some(()));
            assert_refused(&Client::connect(front).get("app", "/"), 503, "in_flight_limit");
            leaving.into_iter().for_each(Client::reset);
            eventually("nothing is in flight", || {
                (proxy.metrics().sum("ringmesh_worker_requests_in_flight", &[]) == 0).then_some(())
            });
            gate.let_go();
        }
    });
}

#[test]
fn a_limit_that_is_edited_holds_from_then_on_and_counts_what_is_in_flight() {
    on_both_drivers(|driver| {
        let gate = Gate::shut();
        let front = ports::free();
        let config = |max: u32| forwarding(front, &[gate.address()], "", &format!("max_in_flight = {max}"));
        let mut proxy = ringmesh(driver).workers(WORKERS).config(config(8)).start();
        let mut clients: Vec<Client> = (0..40).map(|_| Client::connect(front)).collect();
        assert_eq!(ask_at_once(&proxy, &gate, &mut clients), 8);
        proxy.reconfigure(&config(4));
        assert_eq!(ask_at_once(&proxy, &gate, &mut clients), 4);

        // Three are held while the limit rises: three of the five are taken.
        let (held, others) = clients.split_at_mut(3);
        held.iter_mut().for_each(|client| {
            client.send(REQUEST);
        });
        eventually("three are held", || (gate.inside() == 3).then_some(()));
        proxy.reconfigure(&config(5));
        others.iter_mut().for_each(|client| {
            client.send(REQUEST);
        });
        eventually("all others are held or refused", || {
            let refused = others.iter().filter(|client| is_answered(client.socket())).count();
            (refused == others.len() - 2 && gate.inside() == 5).then_some(())
        });
        gate.let_go();
        assert!(held.iter_mut().all(|client| client.response().status() == 200));
        assert_eq!(others.iter_mut().filter_map(|client| (client.response().status() == 200).then_some(())).count(), 2);
    });
}

#[test]
fn an_edit_under_load_on_one_worker_lets_nobody_in_beyond_the_new_limit() {
    on_both_drivers(|driver| {
        let gate = Gate::shut();
        let front = ports::free();
        let config = |max: usize| forwarding(front, &[gate.address()], "", &format!("max_in_flight = {max}"));
        let mut proxy = ringmesh(driver).workers(WORKERS).config(config(40)).start();
        let mut workers = connections_to_each_worker(&proxy, front, 48);
        // From one worker's leases to other leases, and to and from a number that all share.
        for (before, held, after) in [(40, 36, 44), (44, 30, 20), (20, 10, 12), (12, 10, 40), (40, 20, 10)] {
            let case = format!("{before}, {held} held, then {after}");
            let (holding, others) = workers.split_first_mut().unwrap();
            let holding = &mut holding[..held];
            holding.iter_mut().for_each(|client| {
                client.send(REQUEST);
            });
            eventually("all are held", || (gate.inside() == held).then_some(()));
            proxy.reconfigure(&config(after));
            let mut asking: Vec<&mut Client> = others.iter_mut().flatten().collect();
            asking.iter_mut().for_each(|client| {
                client.send(REQUEST);
            });
            let inside = eventually("all others are held or refused", || {
                let refused = asking.iter().filter(|client| is_answered(client.socket())).count();
                (gate.inside() + refused == held + asking.len()).then(|| gate.inside())
            });
            assert!(inside <= after.max(held), "{case}: the service was sent {inside} at a time");
            assert!(inside >= after * 9 / 10, "{case}: only {inside} are used");
            gate.let_go();
            assert!(holding.iter_mut().all(|client| client.response().status() == 200), "{case}");
            let admitted = asking.iter_mut().map(|client| client.response()).filter(|answer| {
                answer.status() == 200 || {
                    assert_refused(answer, 503, "in_flight_limit");
                    false
                }
            });
            assert_eq!(admitted.count(), inside - held, "{case}");
            // What was held is there again, for one worker alone too.
            wait_for_none_in_flight(&proxy);
            // Not in the first milliseconds: a worker that was told that nothing is left does not ask again at once.
            eventually("one worker alone comes near the limit", || {
                let alone = ask_at_once(&proxy, &gate, &mut workers[1]);
                assert!(alone <= after, "{case}: {alone} for one worker");
                (alone >= after * 9 / 10).then_some(())
            });
        }
    });
}

// ---- heads ----

/// What the head limits say of a request: 200, or a status and a reason.
#[track_caller]
fn check_head(front: SocketAddr, what: &str, request: String, expected: (u16, Option<&str>)) {
    let mut client = Client::connect(front);
    // The proxy may answer and close before all of it is sent.
    let _ = client.try_send(request);
    let response = client.try_response().unwrap_or_else(|error| panic!("{what}: no answer but {error}"));
    assert_eq!((response.status(), response.field("x-ringmesh-reason")), expected, "{what}");
    if expected.0 != 200 {
        assert_eq!(response.field("connection"), Some("close"), "{what}");
        client.expect_end();
    }
}

#[test]
fn a_head_beyond_a_limit_gets_431_or_414_and_nothing_of_it_is_passed_on() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = limited(driver, app.address(), "max_header_bytes = \"4KiB\"\nmax_headers = 10", "");
        let large = (431, Some("header_too_large"));
        let good = (200, None);
        let head = |fields: &str| format!("GET / HTTP/1.1\r\nHost: app\r\n{fields}\r\n");
        let field = |bytes: usize| head(&format!("X-Large: {}\r\n", "x".repeat(bytes)));
        let fields = |count: usize| head(&(1..count).map(|number| format!("X-{number}: 1\r\n")).collect::<String>());
        let target = |bytes: usize| format!("GET /{} HTTP/1.1\r\nHost: app\r\n\r\n", "x".repeat(bytes - 1));
        check_head(front, "a small head", head(""), good);
        check_head(front, "just 4 KiB", field(4096 - field(0).len()), good);
        check_head(front, "a byte more", field(4097 - field(0).len()), large);
        check_head(front, "1 MiB", field(1024 * 1024), large);
        check_head(front, "1 MiB without an end", field(1024 * 1024).trim_end().to_owned(), large);
        check_head(front, "10 fields", fields(10), good);
        check_head(front, "11 fields", fields(11), large);
        check_head(front, "50,000 fields", fields(50_000), large);
        check_head(front, "a long target", target(3_000), good);
        assert_eq!(app.requests().len(), 4);
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "header_too_large")], 5);

        // With room in the head, it is the target that is too long.
        let (proxy, front) = proxy_to(driver, &[app.address()]);
        let long = (414, Some("target_too_long"));
        check_head(front, "a target of 8,000 bytes", target(8_000), good);
        check_head(front, "a target of 20,000 bytes", target(20_000), long);
        check_head(front, "a target of 1 MiB", target(1024 * 1024), long);
        assert_eq!(app.requests().len(), 5);
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "target_too_long")], 2);
    });
}

#[test]
fn a_head_that_comes_byte_by_byte_gets_408_in_time_while_others_go_on() {
    const TIMEOUT: Duration = Duration::from_millis(600);
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = limited(driver, app.address(), "header_timeout = \"600ms\"", "");
        const SLOW: usize = 20;
        let slow: Vec<_> = (0..SLOW)
            .map(|_| {
                thread::spawn(move || {
                    let mut client = Client::connect(front);
                    let begun = Instant::now();
                    // It would take a minute.
                    for byte in REQUEST
                        .bytes()
                        .cycle()
                        .take(REQUEST.len() - 4)
                        .collect::<Vec<u8>>()
                        .into_iter()
                        .chain(*b"X-Slow: 1")
                    {
                        if client.try_send([byte]).is_err() || is_answered(client.socket()) {
                            break;
                        }
                        hold(Duration::from_millis(100));
                    }
                    (client.try_response(), begun.elapsed())
                })
            })
            .collect();
        let mut others = Client::connect(front);
        let mut answered = 0;
        while !slow.iter().all(thread::JoinHandle::is_finished) {
            let begun = Instant::now();
            assert_eq!(others.get("app", "/").text(), "hello");
            assert!(begun.elapsed() < TIMEOUT * 5, "{:?} for a request beside slow ones", begun.elapsed());
            answered += 1;
        }
        assert!(answered >= 20, "{answered} requests beside slow ones prove nothing");
        for slow in slow {
            let (response, took) = slow.join().unwrap();
            assert_refused(&response.unwrap(), 408, "client_timeout");
            assert!(took >= TIMEOUT && took < TIMEOUT * 5, "{took:?}");
        }
        proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "client_timeout")], SLOW as u64);
        assert_eq!(app.requests().len(), answered, "nothing of the slow ones was passed on");

        // A connection that waits between requests is not slow.
        hold(TIMEOUT * 2);
        assert_eq!(others.get("app", "/").text(), "hello");
    });
}

// ---- bodies ----

#[test]
fn bytes_beyond_the_announced_body_are_no_part_of_it_and_end_the_connection() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| ok(&request.text()));
        let (_proxy, front) = proxy_to(driver, &[app.address()]);
        let mut client = Client::connect(front);
        client.send("POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody and more\r\n\r\n");
        assert_eq!(client.response().text(), "body");
        assert_refused(&client.response(), 400, "bad_request");
        client.expect_end();
        assert_eq!(app.requests().len(), 1);
    });
}

#[test]
fn a_body_shorter_than_announced_never_looks_whole_to_the_service() {
    on_both_drivers(|driver| {
        let app = Service::echo();
        let (proxy, front) = proxy_to(driver, &[app.address()]);
        let short = [
            "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nshort",
            "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n",
            "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\nA\r\nshort",
        ];
        for request in short {
            let mut client = Client::connect(front);
            client.send(request).half_close();
            // A clear error or the end, but no answer of the service.
            match client.try_response() {
                Ok(response) => assert_refused(&response, 400, "bad_body"),
                Err(error) => assert!(ringmesh_tests::client::is_end(&error), "{request}: {error}"),
            }
            client.expect_end();
        }
        eventually("the connections to the service are closed", || (app.open() == 0).then_some(()));
        assert_eq!(app.requests().len(), 0);
        assert_eq!(Client::connect(front).get("app", "/").status(), 200);
        let reasons = ["bad_body", "client_aborted"];
        eventually("each is counted", || {
            let metrics = proxy.metrics();
            let count = |reason: &&str| metrics.sum("ringmesh_request_outcome_total", &[("reason", *reason)]);
            (reasons.iter().map(count).sum::<u64>() == short.len() as u64).then_some(())
        });
    });
}

// ---- connections ----

/// A client that was answered. The end of its connection may come at any moment before, also while it connects.
fn visit(front: SocketAddr) -> io::Result<Client> {
    let mut client = Client::try_connect(front)?;
    client.try_send(REQUEST)?;
    assert_eq!(client.try_response()?.text(), "hello");
    Ok(client)
}

#[test]
fn connections_beyond_the_limit_are_closed_and_room_is_made_by_those_that_end() {
    const MAX: usize = 10;
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = limited(driver, app.address(), &format!("max_connections = {MAX}"), "");
        let mut clients: Vec<Client> = (0..MAX).map(|_| Client::connect(front)).collect();
        let mut turned_away = 0;
        for _ in 0..3 {
            clients.iter_mut().for_each(|client| assert_eq!(client.get("app", "/").text(), "hello"));
            for _ in 0..5 {
                let error = visit(front).err().expect("there is no room");
                assert!(ringmesh_tests::client::is_end(&error), "{error}");
                turned_away += 1;
            }
            clients.truncate(MAX / 2);
            while clients.len() < MAX {
                // Who comes before the others have gone is turned away too.
                match visit(front) {
                    Ok(client) => clients.push(client),
                    Err(error) => {
                        assert!(ringmesh_tests::client::is_end(&error), "{error}");
                        turned_away += 1;
                        assert!(turned_away < 10_000, "no room is made by those that end");
                    }
                }
            }
        }
        let labels = [("listener", "front"), ("reason", "connection_limit")];
        proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, turned_away);
    });
}

/// The limit on descriptors under which a process may open so many more.
fn limit_for(pid: u32, more: u64) -> u64 {
    let open: Vec<u64> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    (0..).filter(|number| !open.contains(number)).nth(more as usize - 1).unwrap() + 1
}

#[test]
fn a_listener_that_there_are_no_descriptors_for_is_shown_and_accepted_on_as_soon_as_there_are() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (front, new) = (ports::free(), ports::free());
        let one = forwarding(front, &[app.address()], "", "");
        let two = format!("{one}[[listener]]\nname = \"new\"\nbind = \"{new}\"\nservice = \"app\"\n");
        let mut proxy = ringmesh(driver).config(&*one).start();
        let mut open = Client::connect(front);
        assert_eq!(open.get("app", "/").text(), "hello");
        let dataplane = Pid::from_raw(proxy.dataplane_pid() as i32);
        // Enough to be given the sockets, one a worker, and not to give each worker its own.
        let current = Some(limit_for(proxy.dataplane_pid(), 2));
        let maximum = getrlimit(Resource::Nofile).maximum;
        let before = prlimit(dataplane, Resource::Nofile, Rlimit { current, maximum }).unwrap();

        proxy.reconfigure(&two);
        let problem = |proxy: &Proxy, name: &str| {
            let status = proxy.status();
            let listeners = status["listeners"].as_array().unwrap().clone();
            listeners.into_iter().find(|one| one["name"] == name).unwrap()["problem"].clone()
        };
        assert!(problem(&proxy, "new").as_str().is_some_and(|text| text.contains("out of descriptors")));
        assert!(problem(&proxy, "front").is_null());
        assert_eq!(proxy.metrics().sum("ringmesh_dataplane_listeners_deaf", &[]), 1);
        let shown = proxy.command(&["status", "--runtime-dir", proxy.runtime_directory().to_str().unwrap()]);
        let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert!(shown.contains("not accepted on: the data plane is out of descriptors"), "{shown}");
        proxy.wait_for_log(&["no worker accepts connections on it yet", "\"listener\":\"new\"", "ulimit -n"]);
        assert_eq!(open.get("app", "/").text(), "hello", "what is open goes on");

        prlimit(dataplane, Resource::Nofile, before).unwrap();
        // Who has connected meanwhile is served too.
        assert_eq!(Client::connect(new).get("app", "/").text(), "hello");
        proxy.wait_for_metric("ringmesh_dataplane_listeners_deaf", &[], 0);
        assert!(problem(&proxy, "new").is_null());
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
    });
}
