//! The config edited while traffic goes on.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringmesh_loadgen::load::{Entry, Reuse, Running};
use ringmesh_tests::http2::{Connection, Outgoing, code};
use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, Proxy, Service, eventually, hold, on_both_drivers, ports};
use rustix::process::Signal;

use crate::load::{assert_no_connection_closed, assert_nothing_failed, due, echo, echoed, service};
use crate::support::{forwarding, proxy_to, ringmesh};

const RELOADS: usize = 50;

/// What the many reloads go through: routes and rules come and go, weights move, services gain and lose endpoints,
/// listeners come and go.
fn variant(number: usize, front: SocketAddr, extra: SocketAddr, apps: &[SocketAddr; 3], echo: SocketAddr) -> String {
    let [a, b, c] = apps;
    let more_endpoints = if number.is_multiple_of(2) { format!(", \"{b}\", \"{c}\"") } else { String::new() };
    let weight = number % 11;
    let mut text = format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\n\
         [[service]]\nname = \"one\"\nendpoints = [\"{a}\"{more_endpoints}]\n\
         [[service]]\nname = \"two\"\nendpoints = [\"{b}\"]\n\
         [[service]]\nname = \"echo\"\nendpoints = [\"{echo}\"]\n\
         [[route]]\nhosts = [\"app\"]\nto = [{{ service = \"one\", weight = 5 }}, {{ service = \"two\", weight = {weight} }}]\n"
    );
    if number % 3 == 1 {
        text.push_str("[[route.rule]]\nmatch = { path_prefix = \"/new\" }\nto = \"two\"\n");
    }
    text.push_str("[[route]]\nhosts = [\"echo\"]\nto = \"echo\"\n");
    if number % 4 == 2 {
        text.push_str(&format!(
            "[[service]]\nname = \"three\"\nendpoints = [\"{c}\"]\nmax_in_flight = {}\n",
            10 + number
        ));
        text.push_str("[[route]]\nhosts = [\"third\"]\nto = \"three\"\n");
    }
    if number % 5 == 3 {
        text.push_str(&format!("[[listener]]\nname = \"extra\"\nbind = \"{extra}\"\nservice = \"two\"\n"));
    }
    text
}

/// Requests that are due within this time, however long they take.
const LOAD: Duration = Duration::from_secs(10);

/// A load that ends when its last request is answered, and how many it has.
fn at_rate(front: SocketAddr, rate: f64, connections: usize, reuse: Reuse, entries: Vec<Entry>) -> (Running, u64) {
    let requests = (rate * LOAD.as_secs_f64()) as u64;
    (due(front, rate, requests, connections, reuse, entries), requests)
}

#[test]
fn fifty_reloads_under_load_fail_no_request() {
    on_both_drivers(|driver| {
        let running = [service(), service(), service()];
        let apps = [0, 1, 2].map(|index: usize| running[index].address());
        let echo = echo();
        let (front, extra) = (ports::free(), ports::free());
        let edit = |number| variant(number, front, extra, &apps, echo.address());
        let mut proxy = ringmesh(driver).config(edit(0)).without_access_log().start();
        let dataplane = proxy.dataplane_pid();
        let entries = || vec![Entry::get("app", "/"), Entry::get("app", "/new/x"), Entry::post("app", "/", 2_000)];
        // 1,040 requests a second.
        let kept = at_rate(front, 700.0, 10, Reuse::KeepAlive, entries());
        let fresh = at_rate(front, 300.0, 20, Reuse::PerRequest, entries());
        let bodies = at_rate(front, 40.0, 4, Reuse::KeepAlive, vec![echoed("echo", 300_000)]);
        let mut reloads = 0;
        while reloads < RELOADS || [&kept, &fresh, &bodies].iter().any(|(load, _)| !load.is_finished()) {
            reloads += 1;
            proxy.reconfigure(&edit(reloads));
        }
        let [kept, fresh, bodies] = [kept, fresh, bodies].map(|(load, requests)| {
            let report = load.wait().unwrap();
            assert_nothing_failed(&report, 1);
            assert_eq!(
                (report.total.requests(), report.unsent),
                (requests, 0),
                "all that were due were sent: {report}"
            );
            report
        });
        assert_no_connection_closed(&kept, 10);
        assert_no_connection_closed(&bodies, 4);
        let together = kept.rate() + fresh.rate() + bodies.rate();
        eprintln!("{driver}: {reloads} reloads at {together:.0} requests/s");
        assert_eq!(proxy.dataplane_pid(), dataplane);
        assert_eq!(proxy.status()["config"]["reloads"], reloads);
    });
}

#[test]
fn an_edit_takes_effect_in_about_a_second() {
    on_both_drivers(|driver| {
        let (one, two) = (Service::saying("one"), Service::saying("two"));
        let (proxy, front) = proxy_to(driver, &[one.address()]);
        let mut client = Client::connect(front);
        assert_eq!(client.get("app", "/").text(), "one");
        let begun = Instant::now();
        proxy.write(&forwarding(front, &[two.address()], "", ""));
        eventually("the edit takes effect on an open connection", || {
            (client.get("app", "/").text() == "two").then_some(())
        });
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    });
}

#[test]
fn a_hang_up_reads_the_file_again() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (proxy, _front) = proxy_to(driver, &[app.address()]);
        let reloads = |proxy: &ringmesh_tests::Proxy| proxy.status()["config"]["reloads"].as_u64();
        assert_eq!(reloads(&proxy), Some(0));
        proxy.signal(Signal::HUP);
        eventually("it is read again", || (reloads(&proxy) == Some(1)).then_some(()));
    });
}

#[test]
fn an_edited_log_level_holds_in_both_processes_and_a_new_control_keeps_to_it() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).level("warn").config(&config).start();
        let dataplane = proxy.dataplane_pid();
        // The data plane tells of a client that breaks HTTP/2, at `debug`.
        let told = |proxy: &Proxy| proxy.log().matches("HTTP/2 ended").count();
        let break_a_rule = |proxy: &Proxy| {
            let broken = || {
                let labels = [("reason", "http2_error")];
                proxy.metrics().sum("ringmesh_listener_connections_outcome_total", &labels)
            };
            let before = broken();
            drop(Connection::connect(front).send_bytes(&[0; 64]));
            eventually("it is counted", || (broken() > before).then_some(()));
        };
        break_a_rule(&proxy);
        for (level, expected) in [("debug", 1), ("warn", 1), ("debug", 2)] {
            proxy.set_level(level);
            proxy.reconfigure(&config);
            break_a_rule(&proxy);
            eventually("it is told", || (told(&proxy) >= expected).then_some(()));
        }
        assert_eq!(proxy.json("/config")["settings"]["level"], "debug");
        // Edited while no control is there.
        proxy.kill_control();
        proxy.set_level("warn");
        proxy.write(&config);
        proxy.run();
        break_a_rule(&proxy);
        proxy.set_level("debug");
        proxy.reconfigure(&config);
        break_a_rule(&proxy);
        eventually("it is told", || (told(&proxy) >= 3).then_some(()));
        assert_eq!(told(&proxy), 3, "at `debug`, and not at `warn`");
        assert_eq!(proxy.dataplane_pid(), dataplane, "without a new start");
    });
}

#[test]
fn a_listener_that_speaks_something_else_ends_what_it_served_once_that_is_idle() {
    on_both_drivers(|driver| {
        let (begun, held) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(true)));
        let (seen, holds) = (begun.clone(), held.clone());
        let app = Service::http(move |request| {
            if request.head.request().1 == "/held" {
                seen.fetch_add(1, Ordering::SeqCst);
                while holds.load(Ordering::SeqCst) {
                    hold(Duration::from_millis(5));
                }
            }
            ok("hello")
        });
        let front = ports::free();
        let http = forwarding(front, &[app.address()], "", "");
        let mut proxy = ringmesh(driver).config(&http).start();
        let (mut idle, mut busy) = (Client::connect(front), Client::connect(front));
        let (mut idle_2, mut busy_2) = (Connection::connect(front), Connection::connect(front));
        assert_eq!(idle.get("app", "/").text(), "hello");
        assert_eq!(idle_2.get("app", "/").text(), "hello");
        busy.send("GET /held HTTP/1.1\r\nHost: app\r\n\r\n");
        let stream = busy_2.request(&Outgoing::get("app", "/held"));
        eventually("both are with the service", || (begun.load(Ordering::SeqCst) == 2).then_some(()));

        proxy.reconfigure(&forwarding(front, &[app.address()], "protocol = \"tcp\"\n", "protocol = \"tcp\"\n"));
        idle.expect_end();
        assert_eq!(idle_2.goodbye().unwrap().1, code::NO_ERROR);
        idle_2.until_end().unwrap();
        assert_eq!(busy_2.goodbye().unwrap().1, code::NO_ERROR);
        held.store(false, Ordering::SeqCst);
        let answer = busy.response();
        assert_eq!((answer.text().as_str(), answer.field("connection")), ("hello", Some("close")));
        busy.expect_end();
        assert_eq!(busy_2.response(stream).text(), "hello");
        busy_2.until_end().unwrap();

        // Of opaque bytes nobody knows when they could end.
        let mut opaque = Client::connect(front);
        assert_eq!(opaque.get("app", "/").text(), "hello");
        proxy.reconfigure(&http);
        assert_eq!(opaque.get("app", "/").text(), "hello");
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        // What it is called by, or where it leads, is no reason.
        let mut kept = Client::connect(front);
        assert_eq!(kept.get("app", "/").text(), "hello");
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"front\"\nallow = [{ paths = [\"/open\"] }]\n";
        proxy.reconfigure(&(http + policy));
        assert_eq!((kept.get("app", "/").status(), kept.get("app", "/open").status()), (403, 200));
    });
}

#[test]
fn listeners_are_added_rebound_and_removed() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| {
            if request.head.request().1 == "/slow" {
                hold(Duration::from_secs(2));
            }
            ok("hello")
        });
        let [first, second, third] = [ports::free(), ports::free(), ports::free()];
        let both = |one: SocketAddr, other: SocketAddr| {
            format!(
                "{}[[listener]]\nname = \"more\"\nbind = \"{other}\"\nservice = \"app\"\n",
                forwarding(one, &[app.address()], "", "")
            )
        };
        let mut proxy = ringmesh(driver).config(forwarding(first, &[app.address()], "", "")).start();
        let dataplane = proxy.dataplane_pid();
        assert!(Client::try_connect(second).is_err());

        proxy.reconfigure(&both(first, second));
        assert_eq!(Client::connect(second).get("app", "/").text(), "hello", "added");
        assert_eq!(Client::connect(first).get("app", "/").text(), "hello", "and the first goes on");

        let mut open = Client::connect(second);
        open.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (app.open() >= 1).then_some(()));
        proxy.reconfigure(&both(first, third));
        assert_eq!(Client::connect(third).get("app", "/").text(), "hello", "rebound");
        eventually("the old port closes", || Client::try_connect(second).is_err().then_some(()));
        assert_eq!(open.response().text(), "hello", "an open request is finished");

        let mut idle = Client::connect(third);
        idle.get("app", "/");
        proxy.reconfigure(&forwarding(first, &[app.address()], "", ""));
        eventually("a removed one closes", || Client::try_connect(third).is_err().then_some(()));
        idle.expect_end();
        assert_eq!(Client::connect(first).get("app", "/").text(), "hello");

        // And once more, as what was closed must be free again.
        proxy.reconfigure(&both(second, third));
        for port in [second, third] {
            assert_eq!(Client::connect(port).get("app", "/").text(), "hello");
        }
        eventually("the first closes", || Client::try_connect(first).is_err().then_some(()));
        assert_eq!(proxy.dataplane_pid(), dataplane, "all that by one data plane");
    });
}

#[test]
fn two_listeners_may_swap_their_ports() {
    on_both_drivers(|driver| {
        let (one, two) = (Service::saying("one"), Service::saying("two"));
        let [first, second] = [ports::free(), ports::free()];
        let config = |a: SocketAddr, b: SocketAddr| {
            format!(
                "[[listener]]\nname = \"a\"\nbind = \"{a}\"\nservice = \"one\"\n\
                 [[listener]]\nname = \"b\"\nbind = \"{b}\"\nservice = \"two\"\n\
                 [[service]]\nname = \"one\"\nendpoints = [\"{}\"]\n[[service]]\nname = \"two\"\nendpoints = [\"{}\"]\n",
                one.address(),
                two.address()
            )
        };
        let mut proxy = ringmesh(driver).config(config(first, second)).start();
        for round in 0..4 {
            let swapped = round % 2 == 1;
            let (a, b) = if swapped { (second, first) } else { (first, second) };
            if round > 0 {
                proxy.reconfigure(&config(a, b));
            }
            eventually("each port leads where it should", || {
                let text = |port| Client::connect(port).get("app", "/").text();
                (text(a) == "one" && text(b) == "two").then_some(())
            });
        }
    });
}

#[test]
fn a_broken_edit_changes_nothing_and_is_shown() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (mut proxy, front) = proxy_to(driver, &[app.address()]);
        let mut client = Client::connect(front);
        let good = forwarding(front, &[app.address()], "", "");
        let busy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let busy = busy.local_addr().unwrap();
        let pid = format!("pid {}", std::process::id());
        let broken = [
            (good.replace("bind", "bynd"), "`bynd`"),
            (good.replace("name = \"app\"", "name = \"other\""), "app"),
            (format!("{good}\n[[listener"), "proxy.toml"),
            (good.replace("[[service]]", ""), "duplicate key"),
            (forwarding(busy, &[app.address()], "", ""), pid.as_str()),
            (String::new() + "\u{0}", "proxy.toml"),
        ];
        for (number, (text, word)) in broken.iter().enumerate() {
            proxy.write(text);
            let problems = eventually("the problem is shown", || {
                let config = proxy.status()["config"].clone();
                (config["refused_reloads"] == number as u64 + 1).then(|| config["problems"].to_string())
            });
            assert!(problems.contains(word), "{word} is named: {problems}");
            assert!(proxy.metrics().sum("ringmesh_config_problems", &[]) >= 1);
            assert_eq!(
                proxy.metrics().sum("ringmesh_config_reloads_total", &[("result", "refused")]),
                number as u64 + 1
            );
            assert_eq!(client.get("app", "/").text(), "hello", "traffic goes on");
            assert_eq!(proxy.page("/ready").status(), 200);
            proxy.wait_for_log(&["the edit is refused"]);
        }
        // A file that vanishes is as bad.
        fs::remove_file(proxy.file()).unwrap();
        eventually("it is shown", || (proxy.status()["config"]["refused_reloads"] == 7).then_some(()));
        assert_eq!(client.get("app", "/").text(), "hello");
        proxy.reconfigure(&good);
        assert_eq!(proxy.metrics().sum("ringmesh_config_problems", &[]), 0);
        assert_eq!(client.get("app", "/").text(), "hello");
    });
}

#[test]
fn a_request_goes_on_with_the_config_it_began_with() {
    on_both_drivers(|driver| {
        let slow = Service::http(|_| {
            hold(Duration::from_secs(2));
            ok("as it was")
        });
        let fast = Service::saying("as it is");
        let (mut proxy, front) = proxy_to(driver, &[slow.address()]);
        let mut client = Client::connect(front);
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("the request is with the service", || (slow.open() == 1).then_some(()));
        proxy.reconfigure(&format!(
            "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"new\"\n\
             [[service]]\nname = \"new\"\nendpoints = [\"{}\"]\n",
            fast.address()
        ));
        assert_eq!(Client::connect(front).get("app", "/").text(), "as it is");
        assert_eq!(client.response().text(), "as it was");
        assert_eq!(client.get("app", "/").text(), "as it is", "the next request on that connection takes the new one");
    });
}
