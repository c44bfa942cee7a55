//! Killed processes: what clients must not notice, and what they may.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use ringmesh_loadgen::load::{Entry, Reuse};
use ringmesh_loadgen::report::Failure;
use ringmesh_loadgen::serve;
use ringmesh_tests::process::{self, Role};
use ringmesh_tests::service::ok;
use ringmesh_tests::wait::within;
use ringmesh_tests::{
    Client, Proxy, Service, eventually, hold, on_both_drivers, on_both_drivers_at_once, peers, ports,
};
use rustix::process::Signal;

use crate::load::{
    assert_no_connection_closed, assert_nothing_failed, echo, echoed, end, failures, round_trips, service, steady,
};
use crate::support::{forwarding, proxy_to, ringmesh};

const KILLS: usize = 20;

#[test]
fn control_killed_twenty_times_under_load_is_not_noticed_by_anybody() {
    on_both_drivers(|driver| {
        let (app, bytes_back) = (service(), crate::load::serve(serve::Service::Echo));
        let (front, opaque) = (ports::free(), ports::free());
        let config = forwarding(front, &[app.address()], "", "")
            + &format!(
                "[[listener]]\nname = \"opaque\"\nbind = \"{opaque}\"\nprotocol = \"tcp\"\nservice = \"echo\"\n\
                 [[service]]\nname = \"echo\"\nendpoints = [\"{}\"]\n",
                bytes_back.address()
            );
        let mut proxy = ringmesh(driver).config(config).start();
        let dataplane = proxy.dataplane_pid();
        let kept = steady(front, 1_000.0, 20, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        let fresh = steady(front, 100.0, 10, Reuse::PerRequest, vec![Entry::get("app", "/")]);
        let bytes = round_trips(opaque, 1_000, 2);
        for kill in 0..KILLS {
            proxy.kill_control();
            hold(Duration::from_millis(20));
            proxy.run();
            assert_eq!(proxy.dataplane_pid(), dataplane, "the data plane is adopted, not replaced");
            let status = proxy.status();
            assert_eq!(status["dataplane"]["adopted"], true, "{status}");
            assert_eq!(status["control"]["epoch"], kill as u64 + 2, "{status}");
            // An adoption takes some 40 ms: without a pause the load would be over before it proves anything.
            hold(Duration::from_millis(50));
        }
        let (kept, fresh, bytes) = (end(kept), end(fresh), end(bytes));
        assert_nothing_failed(&kept, 1_000);
        assert_no_connection_closed(&kept, 20);
        assert_nothing_failed(&fresh, 100);
        assert_nothing_failed(&bytes, 100);
        assert_no_connection_closed(&bytes, 2);
        proxy.wait_for_metric("ringmesh_request_total", &[], kept.total.requests() + fresh.total.requests());
    });
}

#[test]
fn control_killed_twenty_times_inside_a_pid_namespace_is_not_noticed_by_anybody() {
    // Init waits longer and longer before it starts a control that dies again and again: a minute for twenty.
    on_both_drivers_at_once(|driver| {
        let app = service();
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(config).launched_by(&["unshare", "-pf"]).prepare();
        proxy.run();
        let dataplane = proxy.dataplane_pid();
        let kept = steady(front, 1_000.0, 20, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        for _ in 0..KILLS {
            let control = control_below_init(&proxy);
            process::kill(control);
            let next = eventually("init starts another control", || {
                let next = try_control_below_init(&proxy)?;
                (next != control).then_some(next)
            });
            proxy.wait_until_ready();
            assert_eq!(control_below_init(&proxy), next);
            assert_eq!(proxy.dataplane_pid(), dataplane, "the data plane is adopted, not replaced");
        }
        let kept = end(kept);
        assert_nothing_failed(&kept, 1_000);
        assert_no_connection_closed(&kept, 20);

        let init = process::parent(control_below_init(&proxy)).unwrap();
        process::signal(init, Signal::TERM);
        assert_eq!(proxy.wait(Duration::from_secs(30)).code(), Some(0), "init drains and ends when it is asked to");
        assert!(proxy.dataplane_pids().is_empty());
    });
}

/// The control process whose parent is the init of a PID namespace.
fn try_control_below_init(proxy: &Proxy) -> Option<u32> {
    let all = proxy.pids(Role::Run);
    all.iter().copied().find(|pid| process::parent(*pid).is_some_and(|parent| all.contains(&parent)))
}

fn control_below_init(proxy: &Proxy) -> u32 {
    eventually("control runs below init", || try_control_below_init(proxy))
}

#[test]
fn init_of_a_container_reaps_what_it_is_left() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(config).launched_by(&["unshare", "-pf"]).prepare();
        proxy.run();
        let init = process::parent(control_below_init(&proxy)).unwrap();
        // The data plane's parent dies first, so that init is left with it.
        process::kill(control_below_init(&proxy));
        proxy.wait_until_ready();
        let dataplane = proxy.dataplane_pid();
        eventually("init is its parent", || (process::parent(dataplane) == Some(init)).then_some(()));
        process::kill(dataplane);
        eventually("it is reaped", || (!Path::new(&format!("/proc/{dataplane}")).exists()).then_some(()));
        proxy.wait_until_ready();
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
    });
}

#[test]
fn of_two_controls_started_at_once_for_one_instance_one_serves_and_one_says_why_not() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let mut proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).prepare();
        for round in 0..5 {
            let mut both = [proxy.spawn_control(), proxy.spawn_control()];
            let mut ended = within(Duration::from_secs(30), "one of them ends", || {
                both.iter_mut().position(|control| control.try_wait().unwrap().is_some())
            });
            proxy.wait_until_ready();
            let loser = &mut both[ended];
            assert_eq!(loser.wait().unwrap().code(), Some(1));
            ended = 1 - ended;
            let winner = &mut both[ended];
            proxy.wait_for_log(&["already runs this instance", &winner.id().to_string()]);
            assert_eq!(winner.try_wait().unwrap(), None, "round {round}: the other one serves");
            assert_eq!(proxy.dataplane_pids().len(), 1);
            assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
            process::kill(winner.id());
            winner.wait().unwrap();
        }
    });
}

#[test]
fn two_replicas_of_one_workload_live_side_by_side() {
    on_both_drivers(|driver| {
        let base = tempfile::tempdir().unwrap();
        let (one, other) = (Service::saying("one"), Service::saying("other"));
        let ports = [ports::free(), ports::free()];
        let [mut first, second] = [(ports[0], &one), (ports[1], &other)].map(|(front, app)| {
            let config = format!("[workload]\nname = \"shop\"\n{}", forwarding(front, &[app.address()], "", ""));
            ringmesh(driver).config(config).runtime_base(base.path()).start()
        });
        assert_ne!(first.runtime_directory(), second.runtime_directory());
        assert_ne!(first.dataplane_pid(), second.dataplane_pid());
        assert_eq!(Client::connect(ports[0]).get("app", "/").text(), "one");
        assert_eq!(Client::connect(ports[1]).get("app", "/").text(), "other");

        // Each adopts its own.
        let (mine, theirs) = (first.dataplane_pid(), second.dataplane_pid());
        first.kill_control();
        first.run();
        assert_eq!((first.dataplane_pid(), second.dataplane_pid()), (mine, theirs));
        assert_eq!(Client::connect(ports[0]).get("app", "/").text(), "one");

        first.signal(Signal::TERM);
        assert_eq!(first.wait(Duration::from_secs(30)).code(), Some(0));
        assert_eq!(Client::connect(ports[1]).get("app", "/").text(), "other", "the other one is not concerned");
    });
}

#[test]
fn control_killed_while_a_change_is_on_its_way_leaves_all_or_nothing_of_it() {
    on_both_drivers(|driver| {
        let app = echo();
        let front = ports::free();
        let config = |extra: usize| {
            let mut text = forwarding(front, &[app.address()], "", "");
            for number in 0..extra {
                text.push_str(&format!("[[service]]\nname = \"s{number}\"\nendpoints = [\"{}\"]\n", app.address()));
            }
            text
        };
        let mut proxy = ringmesh(driver).config(config(0)).start();
        let kept = steady(front, 1_000.0, 10, Reuse::KeepAlive, vec![echoed("app", 100), echoed("app", 100_000)]);
        for round in 0..KILLS {
            proxy.write(&config(100 + round * 10));
            // An edit is taken 100 ms after it; the kill comes from before to well after that.
            hold(Duration::from_millis(60 + 8 * round as u64));
            proxy.kill_control();
            proxy.run();
            let services = proxy.json("/config")["service"].as_array().unwrap().len();
            assert_eq!(services, 101 + round * 10, "the next control brings the file's state");
        }
        assert_nothing_failed(&end(kept), 500);
    });
}

#[test]
fn connections_made_while_there_is_no_data_plane_are_served_by_the_next() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, front) = proxy_to(driver, &[app.address()]);
        let control = proxy.control_pid();
        for _ in 0..3 {
            // Control is held, so that these connections certainly come between the two data planes.
            process::signal(control, Signal::STOP);
            let killed = proxy.kill_dataplane();
            let mut waiting: Vec<Client> = (0..50).map(|_| Client::connect(front)).collect();
            waiting.iter_mut().for_each(|client| {
                client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            });
            process::signal(control, Signal::CONT);
            for client in &mut waiting {
                assert_eq!(client.response().text(), "hello");
            }
            assert_ne!(proxy.dataplane_pid(), killed);
        }
        assert_eq!(proxy.status()["dataplane"]["starts"], 4);
        proxy.wait_for_log(&["the data plane is gone", "signal"]);
    });
}

#[test]
fn a_data_plane_killed_under_load_cuts_what_it_had_and_refuses_nobody() {
    on_both_drivers(|driver| {
        let app = service();
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let kept = steady(front, 500.0, 10, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        let fresh = steady(front, 500.0, 20, Reuse::PerRequest, vec![Entry::get("app", "/")]);
        const DEATHS: u64 = 3;
        for _ in 0..DEATHS {
            hold(Duration::from_millis(500));
            proxy.kill_dataplane();
            proxy.wait_until_ready();
        }
        hold(Duration::from_millis(500));
        let reports = [end(kept), end(fresh)];
        for (report, connections) in reports.iter().zip([10, 20]) {
            let cut = report.total.cut() + failures(report, Failure::Truncated);
            assert_eq!(report.total.succeeded + cut, report.total.requests(), "{report}\n{:?}", report.total.failures);
            assert!(cut <= DEATHS * connections, "at most what was open: {report}");
        }
        let answered: u64 = reports.iter().map(|report| report.total.succeeded).sum();
        let counted = proxy.metrics().sum("ringmesh_request_total", &[("class", "2xx")]);
        let cut: u64 = reports.iter().map(|report| report.total.requests()).sum::<u64>() - answered;
        // A request is counted once its answer is out. Death may come between the two, at most once for each connection.
        let least = answered - DEATHS * 30;
        assert!((least..=answered + cut).contains(&counted), "{counted} counted, {answered} answered, {cut} cut");
    });
}

#[test]
fn a_control_that_hangs_holds_up_no_request_and_another_one_is_told_who_it_is() {
    on_both_drivers(|driver| {
        let app = service();
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let kept = steady(front, 500.0, 10, Reuse::KeepAlive, vec![Entry::get("app", "/")]);
        let fresh = steady(front, 100.0, 10, Reuse::PerRequest, vec![Entry::get("app", "/")]);
        let hanging = proxy.control_pid();
        process::signal(hanging, Signal::STOP);
        hold(Duration::from_secs(1));
        let mut second = proxy.spawn_control();
        let ended = within(Duration::from_secs(30), "the second one gives up", || second.try_wait().unwrap());
        assert_eq!(ended.code(), Some(1));
        proxy.wait_for_log(&["already runs this instance", &hanging.to_string()]);
        process::signal(hanging, Signal::CONT);
        proxy.wait_until_ready();
        let (kept, fresh) = (end(kept), end(fresh));
        assert_nothing_failed(&kept, 200);
        assert_no_connection_closed(&kept, 10);
        assert_nothing_failed(&fresh, 50);
    });
}

#[test]
fn when_both_are_killed_ports_close_and_the_next_start_serves_again() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        for _ in 0..3 {
            proxy.kill_control();
            assert_eq!(Client::connect(front).get("app", "/").text(), "hello", "the data plane goes on alone");
            proxy.kill_dataplane();
            eventually("the port closes", || Client::try_connect(front).is_err().then_some(()));
            proxy.run();
            assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        }
    });
}

#[test]
fn sigterm_finishes_open_requests_closes_idle_connections_and_exits_0() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| {
            if request.head.request().1 == "/slow" {
                hold(Duration::from_secs(1));
            }
            ok("done")
        });
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let mut idle = Client::connect(front);
        idle.get("app", "/");
        let mut busy = Client::connect(front);
        busy.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (app.accepted() >= 1 && app.open() >= 1).then_some(()));
        hold(Duration::from_millis(100));
        proxy.signal(Signal::TERM);
        idle.expect_end();
        eventually("nobody new is let in", || Client::try_connect(front).is_err().then_some(()));
        let response = busy.response();
        assert_eq!((response.text().as_str(), response.field("connection")), ("done", Some("close")));
        busy.expect_end();
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
        assert!(proxy.dataplane_pids().is_empty(), "nothing is left");
        assert!(!proxy.runtime_directory().join("control.sock").exists());
    });
}

#[test]
fn sigterm_cuts_what_does_not_end_within_the_drain_timeout_and_exits_0() {
    on_both_drivers(|driver| {
        let app = peers::hanging_server();
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(config).drain_timeout("5s").start();
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (app.open() == 1).then_some(()));
        let begun = Instant::now();
        proxy.signal(Signal::TERM);
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0), "{}", proxy.log());
        let took = begun.elapsed();
        // The data plane has half a second of it to end in: a tenth of two seconds is too little on a loaded machine.
        assert!(took >= Duration::from_secs(4), "the request had its time: {took:?}");
        assert!(took < Duration::from_secs(6), "the timeout is the whole: {took:?}");
        client.expect_end();
        proxy.wait_for_log(&["requests that were still open were cut", "\"cut\":1"]);
    });
}

#[test]
fn ctrl_c_ends_as_sigterm_does_and_a_second_one_ends_at_once() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, _front) = proxy_to(driver, &[app.address()]);
        proxy.signal(Signal::INT);
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(0));
        assert!(proxy.dataplane_pids().is_empty());

        let app = peers::hanging_server();
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (app.open() == 1).then_some(()));
        proxy.signal(Signal::INT);
        proxy.wait_for_log(&["open requests are finished first"]);
        let begun = Instant::now();
        proxy.signal(Signal::INT);
        assert_eq!(proxy.wait(Duration::from_secs(10)).code(), Some(1));
        assert!(begun.elapsed() < Duration::from_secs(3), "at once, not after the drain timeout of 5 s");
        eventually("nothing is left", || proxy.dataplane_pids().is_empty().then_some(()));
        client.expect_end();
    });
}

/// Listening sockets at these ports of IPv4, by inode: the same number is the same socket.
pub(crate) fn listening(ports: &BTreeSet<u16>) -> BTreeSet<u64> {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let port = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        // 0A is LISTEN.
        (fields[3] == "0A" && ports.contains(&port)).then(|| fields[9].parse().unwrap())
    });
    rows.collect()
}

/// The sockets that a process has open, by inode.
fn sockets_of(pid: u32) -> BTreeSet<u64> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let links = entries.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.filter_map(|link| link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()).collect()
}

#[test]
fn three_hundred_listeners_are_adopted_with_the_sockets_that_they_have() {
    const LISTENERS: usize = 300;
    const WORKERS: usize = 2;
    let driver = ringmesh_tests::Driver::Epoll;
    let app = Service::saying("hello");
    let fronts: Vec<_> = (0..LISTENERS).map(|_| ports::free()).collect();
    let listener = |(number, front): (usize, &std::net::SocketAddr)| {
        format!("[[listener]]\nname = \"l{number}\"\nbind = \"{front}\"\nservice = \"app\"\n")
    };
    let listeners: String = fronts.iter().enumerate().map(listener).collect();
    let config = format!("{listeners}[[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n", app.address());
    let mut proxy = ringmesh(driver).config(config).workers(WORKERS as u16).start();
    let dataplane = proxy.dataplane_pid();
    let ports: BTreeSet<u16> = fronts.iter().map(std::net::SocketAddr::port).collect();
    let before = listening(&ports);
    assert_eq!(before.len(), LISTENERS * WORKERS);
    let mut kept = Client::connect(fronts[LISTENERS - 1]);
    assert_eq!(kept.get("app", "/").text(), "hello");

    // Those that nobody can accept now are in the backlogs when the next control asks for the sockets.
    process::signal(dataplane, Signal::STOP);
    let mut waiting: Vec<Client> = [0, LISTENERS / 2, LISTENERS - 1].map(|at| Client::connect(fronts[at])).into();
    for client in &mut waiting {
        client.send("GET / HTTP/1.1\r\nhost: app\r\n\r\n");
    }
    proxy.kill_control();
    proxy.run_control();
    process::signal(dataplane, Signal::CONT);
    proxy.wait_until_ready();
    assert_eq!(proxy.dataplane_pid(), dataplane, "the data plane is adopted, not replaced");
    assert_eq!(proxy.status()["dataplane"]["adopted"], true);
    assert_eq!(listening(&ports), before, "nothing is bound again");
    assert!(sockets_of(proxy.control_pid()).is_superset(&before), "control has them all");
    for client in &mut waiting {
        assert_eq!(client.response().text(), "hello");
    }
    assert_eq!(kept.get("app", "/").text(), "hello");

    proxy.kill_dataplane();
    proxy.wait_until_ready();
    for front in &fronts {
        assert_eq!(Client::connect(*front).get("app", "/").text(), "hello");
    }
    assert_eq!(listening(&ports), before, "the next data plane has the same ones");
}
