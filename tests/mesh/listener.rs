//! Ports: which there are, who takes a connection, and what is in the way.

use std::net::TcpListener;
use std::os::unix::net::UnixStream;

use ringmesh_tests::service::ok;
use ringmesh_tests::{Client, DEADLINE, Service, eventually, on_both_drivers, ports};

use crate::support::{forwarding, proxy_to, ringmesh};

#[test]
fn connections_are_spread_evenly_over_the_workers() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let config = forwarding(front, &[app.address()], "", "");
        let proxy = ringmesh(driver).config(config).workers(4).start();
        let mut clients = Vec::new();
        for _ in 0..25 {
            // In bursts, so that the kernel alone would not spread them evenly.
            clients.extend((0..4).map(|_| Client::connect(front)));
        }
        for client in &mut clients {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        let counts = || -> Vec<u64> {
            let workers = proxy.status()["dataplane"]["report"]["workers"].as_array().unwrap().clone();
            workers.iter().map(|worker| worker["connections"].as_u64().unwrap()).collect()
        };
        assert_eq!(counts().iter().sum::<u64>(), 100, "{:?}", counts());
        let (least, most) = (counts().into_iter().min().unwrap(), counts().into_iter().max().unwrap());
        assert!(most - least <= 4, "each goes to the worker with the fewest: {:?}", counts());
        let metrics = proxy.metrics();
        let skew = metrics.find("ringmesh_worker_skew_ratio", &[]).next().unwrap().value;
        assert!(skew < 1.2, "{skew}");
        drop(clients);
        eventually("all are closed", || (counts().iter().sum::<u64>() == 0).then_some(()));
    });
}

#[test]
fn a_unix_socket_is_listened_on_and_called() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| ok(request.head.request().1));
        let mut proxy = ringmesh(driver).prepare();
        let (outer, inner) = (proxy.folder().join("outer.sock"), proxy.folder().join("inner.sock"));
        proxy.write(&format!(
            "[[listener]]\nname = \"outer\"\nbind = \"unix:{}\"\nservice = \"middle\"\n\
             [[service]]\nname = \"middle\"\nendpoints = [\"unix:{inner}\"]\n\
             [[listener]]\nname = \"inner\"\nbind = \"unix:{inner}\"\nservice = \"app\"\n\
             [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
            outer.display(),
            app.address(),
            inner = inner.display(),
        ));
        proxy.run();
        let stream = UnixStream::connect(&outer).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut client = Client::over(stream);
        for number in 0..20 {
            assert_eq!(client.get("app", &format!("/{number}")).text(), format!("/{number}"));
        }
        let dataplane = proxy.dataplane_pid();
        proxy.kill_control();
        proxy.run();
        assert_eq!(proxy.dataplane_pid(), dataplane);
        assert_eq!(client.get("app", "/after").text(), "/after", "control's end and return change nothing");
        proxy.signal(rustix::process::Signal::TERM);
        assert_eq!(proxy.wait(DEADLINE).code(), Some(0));
        assert!(!outer.exists() && !inner.exists(), "the files go with their listeners");
    });
}

#[test]
fn a_listener_of_ip_version_6_serves() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let port = ports::free().port();
        let front = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, port));
        let _proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).start();
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
    });
}

#[test]
fn a_port_that_is_in_use_is_refused_and_its_owner_named() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let front = taken.local_addr().unwrap();
        let mut proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).prepare();
        proxy.run_control();
        assert_eq!(proxy.wait(DEADLINE).code(), Some(1));
        let line = proxy.wait_for_log(&[&front.to_string(), &format!("pid {}", std::process::id())]);
        assert!(line.contains("listener `front`"), "{line}");
        assert!(proxy.dataplane_pids().is_empty());
        // Of a proxy of ours it is the data plane, which has its program's name like all processes.
        drop(taken);
        proxy.run();
        let name = std::fs::read_to_string(format!("/proc/{}/comm", proxy.dataplane_pid())).unwrap();
        assert_eq!(name, "ringmesh\n");
    });
}

#[test]
fn a_second_proxy_does_not_silently_take_half_of_the_connections() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let (first, front) = proxy_to(driver, &[app.address()]);
        let mut second = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).prepare();
        second.run_control();
        assert_eq!(second.wait(DEADLINE).code(), Some(1));
        let owners = [first.control_pid(), first.dataplane_pid()].map(|pid| format!("pid {pid}"));
        let log = second.log();
        assert!(owners.iter().any(|owner| log.contains(owner)), "{owners:?} in {log}");
    });
}

#[test]
fn a_port_that_closes_resets_nobody_who_has_connected() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let [stays, moved, removed, to] = [(); 4].map(|()| ports::free());
        let listener =
            |name: &str, port| format!("[[listener]]\nname = \"{name}\"\nbind = \"{port}\"\nservice = \"app\"\n");
        let first = forwarding(stays, &[app.address()], "", "");
        let before = format!("{first}{}{}", listener("moved", moved), listener("removed", removed));
        let mut proxy = ringmesh(driver).config(&before).start();
        for round in 0..3 {
            let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
            std::thread::scope(|scope| {
                // Each client that is connected gets its answer; those that come too late are refused.
                for port in [moved, removed, moved, removed] {
                    let (done, answered) = (&done, &answered);
                    scope.spawn(move || {
                        while !done.load(Ordering::Relaxed) {
                            let Ok(mut client) = Client::try_connect(port) else { return };
                            client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
                            match client.try_response() {
                                Ok(answer) => assert_eq!(answer.text(), "hello"),
                                Err(error) => panic!("round {round}: a client that had connected was cut: {error}"),
                            }
                            answered.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                eventually("clients come and go", || (answered.load(Ordering::Relaxed) > 100).then_some(()));
                proxy.reconfigure(&format!("{first}{}", listener("moved", to)));
                for port in [moved, removed] {
                    eventually("the port is closed", || Client::try_connect(port).is_err().then_some(()));
                }
                done.store(true, Ordering::Relaxed);
            });
            assert_eq!(Client::connect(to).get("app", "/").text(), "hello");
            proxy.reconfigure(&before);
        }
    });
}

#[test]
fn a_listener_that_changes_but_for_its_address_keeps_its_sockets_and_who_waits_there() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let front = ports::free();
        let proxy = ringmesh(driver).config(forwarding(front, &[app.address()], "", "")).start();
        let inodes = || crate::crash::listening(&[front.port()].into());
        let before = inodes();
        let dataplane = proxy.dataplane_pid();
        ringmesh_tests::process::signal(dataplane, rustix::process::Signal::STOP);
        let mut waiting = Client::connect(front);
        waiting.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        proxy.write(
            &forwarding(front, &[app.address()], "max_connections = 77", "").replace("\"front\"", "\"renamed\""),
        );
        ringmesh_tests::process::signal(dataplane, rustix::process::Signal::CONT);
        eventually("it is live", || (proxy.status()["listeners"][0]["name"] == "renamed").then_some(()));
        assert_eq!(waiting.response().text(), "hello");
        assert_eq!(Client::connect(front).get("app", "/").text(), "hello");
        assert_eq!(inodes(), before);
    });
}
