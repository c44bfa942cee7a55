//! `ringmesh intercept`: connections come to the proxy by themselves, go where they wanted to go, and never round in circles.
//! Each test has a machine of its own (a network namespace) with a neighbour on a cable.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::http2::message::grpc_frame;
use ringmesh_tests::http2::{self, Outgoing, service_at};
use ringmesh_tests::network::{Machine, alone, neighbour};
use ringmesh_tests::process::Role;
use ringmesh_tests::wait::within;
use ringmesh_tests::{Client, Driver, Message, Proxy, Service, eventually, on_both_drivers};

use crate::support::{RINGMESH, identity, ringmesh};

const HERE: [&str; 2] = ["10.77.0.1", "fd77::1"];
const THERE: [&str; 2] = ["10.77.0.2", "fd77::2"];

/// Takes all connections of both directions and families, and sends each to where it wanted to go. A circle would end at the
/// limit.
const TRANSPARENT: &str = "\
[[listener]]
name = \"outbound\"
bind = \"127.0.0.1:15001\"
intercept = \"outbound\"
max_connections = 200
service = \"away\"
[[listener]]
name = \"outbound6\"
bind = \"[::1]:15001\"
intercept = \"outbound\"
max_connections = 200
service = \"away\"
[[listener]]
name = \"inbound\"
bind = \"0.0.0.0:15006\"
intercept = \"inbound\"
max_connections = 200
service = \"away\"
[[listener]]
name = \"inbound6\"
bind = \"[::]:15006\"\nipv6_only = true
intercept = \"inbound\"
max_connections = 200
service = \"away\"
[[service]]
name = \"away\"
endpoints = \"original_destination\"
";

/// Runs a test on both drivers, each time on a machine with a neighbour.
fn on_machines(test: impl Fn(Driver, &Machine) + Sync) {
    on_both_drivers(|driver| on_machines_with(driver, &test));
}

fn on_machines_with(driver: Driver, test: impl Fn(Driver, &Machine) + Sync) {
    alone(|| {
        let other =
            neighbour(&["10.77.0.1/24", "fd77::1/64"], &["10.77.0.2/24", "fd77::2/64", "10.77.0.3/24", "fd77::3/64"]);
        test(driver, &other);
    });
}

fn at(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// `ringmesh intercept` with the proxy's config.
fn intercept(proxy: &Proxy, words: &[&str]) -> Output {
    let file = proxy.file();
    let with_config = ["-c", file.to_str().unwrap()];
    proxy.command(&[&["intercept"], words, &with_config].concat())
}

#[track_caller]
fn said(output: &Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A proxy with this config, and interception as it says.
#[track_caller]
fn transparent(driver: Driver, config: &str) -> Proxy {
    let proxy = ringmesh(driver).config(config).start();
    assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");
    proxy
}

/// How many connections a rule has met.
#[track_caller]
fn met(proxy: &Proxy, rule: &str) -> u64 {
    let text = said(&intercept(proxy, &["--show"]));
    let line = text.lines().find(|line| line.ends_with(&format!("  {rule}")));
    let line = line.unwrap_or_else(|| panic!("no rule `{rule}` in\n{text}"));
    line.split_whitespace().next().unwrap().parse().unwrap()
}

fn accepted(proxy: &Proxy, listener: &str) -> u64 {
    proxy.metrics().sum("ringmesh_listener_connections_accepted_total", &[("listener", listener)])
}

// ---- where connections go ----

#[test]
fn outbound_connections_go_through_the_proxy_to_where_they_wanted_to_go() {
    on_machines(|driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let proxy = transparent(driver, TRANSPARENT);
        let wanted = [at(THERE[0], 80), at("10.77.0.3", 80), at(THERE[1], 80), at("fd77::3", 80)];
        for (number, address) in wanted.into_iter().enumerate() {
            let mut client = Client::connect(address);
            for _ in 0..3 {
                assert_eq!(client.get("shop.example", "/").text(), "there");
            }
            let listener = if address.is_ipv4() { "outbound" } else { "outbound6" };
            let client_address = client.socket().local_addr().unwrap().to_string();
            let line = proxy.wait_for_access("the request", |line| line["client"] == client_address.as_str());
            assert_eq!((line["listener"].as_str(), line["service"].as_str()), (Some(listener), Some("away")));
            assert_eq!(line["endpoint"], address.to_string());
            assert_eq!(service.accepted(), number + 1, "its requests share a connection, and with nobody else");
        }
        assert_eq!(service.last().field("host"), Some("shop.example"), "the head is what the client wrote");
        assert_eq!(met(&proxy, "outbound: brought to 127.0.0.1:15001"), 2);
        assert_eq!(met(&proxy, "outbound: brought to [::1]:15001"), 2);
        other.run(move || drop(service));
    });
}

#[test]
fn what_no_route_knows_reaches_where_it_was_going_and_the_rest_its_service() {
    on_machines(|driver, other| {
        let services = other.run(|| [Service::saying_at("[::]:80", "there"), Service::saying_at("[::]:9000", "shop")]);
        let config = "\
            [[listener]]\nname = \"outbound\"\nbind = \"127.0.0.1:15001\"\nintercept = \"outbound\"\n\
            [[service]]\nname = \"shop\"\nendpoints = [\"10.77.0.3:9000\"]\n[[route]]\nhosts = [\"shop\"]\n\
            [[service]]\nname = \"away\"\nendpoints = \"original_destination\"\n[[route]]\nhosts = [\"*\"]\nto = \"away\"\n";
        let proxy = transparent(driver, config);
        let mut client = Client::connect(at(THERE[0], 80));
        for (host, text) in [("shop", "shop"), ("elsewhere", "there"), ("shop", "shop"), ("elsewhere", "there")] {
            assert_eq!(client.get(host, "/").text(), text, "one connection serves both");
        }
        // A destination that is not there, and one that was there before.
        let mut client = Client::connect(at(THERE[0], 81));
        assert_eq!(client.get("elsewhere", "/").status(), 503);
        assert_eq!(client.get("shop", "/").text(), "shop");
        let line = proxy.wait_for_access("the failure", |line| line["status"] == 503);
        assert_eq!((&line["endpoint"], &line["reason"]), (&"10.77.0.2:81".into(), &"connect_failed".into()));
        other.run(move || drop(services));
    });
}

#[test]
fn opaque_connections_reach_where_they_wanted_to_go_in_both_directions() {
    on_machines(|driver, other| {
        let echo = || Service::echoing_at("[::]:5000", b"hello, who is there?\n");
        let (there, here) = (other.run(echo), echo());
        let config = TRANSPARENT.replace("service = \"away\"\n[", "service = \"away\"\nprotocol = \"tcp\"\n[");
        let proxy = transparent(driver, &config);
        let talk = |address: SocketAddr| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut greeting = [0; 21];
            stream.read_exact(&mut greeting).unwrap();
            let bytes = crate::support::pattern(200_000);
            let (mut writing, sent) = (stream.try_clone().unwrap(), bytes.clone());
            let writer = std::thread::spawn(move || {
                writing.write_all(&sent).unwrap();
                writing.shutdown(std::net::Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            stream.read_to_end(&mut back).unwrap();
            writer.join().unwrap();
            assert!(greeting == *b"hello, who is there?\n" && back == bytes, "{} bytes came back", back.len());
        };
        for address in THERE {
            talk(at(address, 5000));
            proxy.wait_for_access("outbound", |line| line["endpoint"] == at(address, 5000).to_string());
        }
        for address in HERE {
            let address = at(address, 5000);
            other.run(move || talk(address));
            proxy.wait_for_access("inbound", |line| line["endpoint"] == address.to_string());
        }
        other.run(move || drop(there));
        drop(here);
    });
}

#[test]
fn inbound_connections_come_through_the_proxy_each_to_the_application_at_its_port() {
    on_machines(|driver, other| {
        let _apps = [Service::saying_at("[::]:8080", "first"), Service::saying_at("[::]:8081", "second")];
        // What is for this machine alone stays so.
        let _private = Service::saying_at("127.0.0.1:8082", "private");
        let proxy = transparent(driver, TRANSPARENT);
        for (family, address) in HERE.into_iter().enumerate() {
            for (port, text) in [(8080, "first"), (8081, "second")] {
                let wanted = at(address, port);
                let answer = other.run(move || Client::connect(wanted).get("app", "/").text());
                assert_eq!(answer, text);
                let line = proxy.wait_for_access("the request", |line| line["endpoint"] == wanted.to_string());
                assert_eq!(line["listener"], ["inbound", "inbound6"][family]);
                assert!(line["client"].as_str().unwrap().contains(["10.77.0.", "fd77::"][family]), "{line}");
            }
        }
        let wanted = at(HERE[0], 8082);
        let answer = other.run(move || Client::connect(wanted).get("app", "/").status());
        assert_eq!(answer, 503, "nobody listens at that address");
    });
}

/// What a call came to: status, gRPC status and message.
fn called(answer: &Message) -> (u16, Option<&str>, &[u8]) {
    let trailer = answer.trailers.iter().find(|(name, _)| name == "grpc-status").map(|(_, value)| value.as_str());
    (answer.status(), trailer, &answer.body)
}

#[test]
fn both_versions_of_http_go_on_as_their_client_speaks_them() {
    on_machines(|driver, other| {
        let answer = |_: &Message| Outgoing::grpc(b"cart", 0);
        let services = other.run(move || [Service::saying_at("[::]:80", "there"), service_at("[::]:50051", answer)]);
        let proxy = transparent(driver, TRANSPARENT);
        let call = Outgoing::post("shop.example", "/shop.Cart/Get", grpc_frame(b"which?"))
            .with("content-type", "application/grpc")
            .with("te", "trailers");
        for address in THERE {
            let mut grpc = http2::Connection::connect(at(address, 50051));
            for _ in 0..3 {
                let answer = grpc.exchange(&call);
                assert_eq!(called(&answer), (200, Some("0"), &grpc_frame(b"cart")[..]));
            }
            assert_eq!(Client::connect(at(address, 80)).get("shop.example", "/").text(), "there");
            // Not only calls: whoever speaks it in plain means a server that does.
            assert_eq!(http2::Connection::connect(at(address, 50051)).get("shop.example", "/").status(), 200);
        }
        assert_eq!(services[1].accepted(), 4, "the requests of one client share a connection, and with nobody else");
        within(Duration::from_secs(10), "they end with their clients", || (services[1].open() == 0).then_some(()));
        other.run(move || drop(services));

        // One listener stands before applications of both versions.
        let _apps = [Service::saying_at("[::]:8080", "here"), service_at("[::]:50052", answer)];
        for address in HERE {
            let call = call.clone();
            other.run(move || {
                let answer = http2::Connection::connect(at(address, 50052)).exchange(&call);
                assert_eq!(called(&answer), (200, Some("0"), &grpc_frame(b"cart")[..]));
                assert_eq!(Client::connect(at(address, 8080)).get("app", "/").text(), "here");
            });
        }
        assert_eq!(proxy.metrics().sum("ringmesh_request_outcome_total", &[("reason", "upstream_garbage")]), 0);
    });
}

#[test]
fn a_call_from_a_proxy_reaches_a_grpc_application_that_nobody_has_declared() {
    on_machines(|driver, other| {
        let authority = Authority::new(crate::support::DOMAIN);
        let _apps = [Service::saying_at("[::]:8080", "app"), service_at("[::]:50052", |_| Outgoing::grpc(b"cart", 0))];
        let inbound = TRANSPARENT.replace("\"inbound\"\nmax", "\"inbound\"\nmtls = \"strict\"\nmax");
        let mut proxy = ringmesh(driver).config(identity("app") + &inbound).prepare();
        authority.svid("app").write(&proxy.folder().join("svid"));
        proxy.run();
        assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");

        let service = |name: &str, port: u16, keys: &str| {
            format!(
                "[[service]]\nname = \"{name}\"\npeer = \"app\"\nendpoints = [\"10.77.0.1:{port}\"]\n{keys}\n\
                 [[route]]\nhosts = [\"{name}\"]\n"
            )
        };
        let config = identity("web")
            + "[admin]\nbind = \"off\"\n[[listener]]\nname = \"front\"\nbind = \"127.0.0.1:9000\"\n"
            + &service("shared", 50052, "protocol = \"http2\"")
            + &service("lone", 50052, "protocol = \"http2\"\nshare_connections = false")
            + &service("page", 8080, "")
            // What is agreed on in TLS is between the proxies, and says nothing of the application.
            + &service("page-by-http2", 8080, "protocol = \"http2\"\nshare_connections = false");
        let folder = tempfile::tempdir().unwrap();
        authority.svid("web").write(&folder.path().join("svid"));
        std::fs::write(folder.path().join("web.toml"), config).unwrap();
        let place = folder.path().to_owned();
        other.run(move || {
            let words = ["exec", "-c", "web.toml", "--runtime-dir", "run", "--", "cat"];
            let mut command = Command::new("timeout");
            command.arg("60").arg(RINGMESH).args(words).current_dir(place).stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut far = command.spawn().unwrap();
            // It reads what is written only once the proxy serves.
            let mut there = [0; 6];
            far.stdin.as_ref().unwrap().write_all(b"ready\n").unwrap();
            far.stdout.as_mut().unwrap().read_exact(&mut there).unwrap();
            let front = at("127.0.0.1", 9000);
            for host in ["shared", "lone"] {
                let call = Outgoing::post(host, "/shop.Cart/Get", grpc_frame(b"which?"))
                    .with("content-type", "application/grpc")
                    .with("te", "trailers");
                let answer = http2::Connection::connect(front).exchange(&call);
                assert_eq!(called(&answer), (200, Some("0"), &grpc_frame(b"cart")[..]), "{host}");
            }
            for host in ["page", "page-by-http2"] {
                assert_eq!(Client::connect(front).get(host, "/").text(), "app", "{host}");
            }
            drop(far.stdin.take());
            assert!(far.wait().unwrap().success());
        });
    });
}

#[test]
fn intercepted_connections_prove_who_they_are_where_the_listener_is_strict() {
    on_machines(|driver, other| {
        let authority = Authority::new(crate::support::DOMAIN);
        let app = Service::saying_at("[::]:8080", "app");
        let inbound = TRANSPARENT.replace("\"inbound\"\nmax", "\"inbound\"\nmtls = \"strict\"\nmax");
        let mut proxy = ringmesh(driver).config(identity("app") + &inbound).prepare();
        authority.svid("app").write(&proxy.folder().join("svid"));
        proxy.run();
        assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");

        // The neighbour's proxy calls the application's own port, and knows nothing of the one in between.
        let config = identity("web")
            + "[admin]\nbind = \"off\"\n[[listener]]\nname = \"front\"\nbind = \"127.0.0.1:9000\"\nservice = \"app\"\n\
               [[service]]\nname = \"app\"\npeer = \"app\"\nendpoints = [\"10.77.0.1:8080\"]\n";
        let folder = tempfile::tempdir().unwrap();
        authority.svid("web").write(&folder.path().join("svid"));
        std::fs::write(folder.path().join("web.toml"), config).unwrap();
        let place = folder.path().to_owned();
        let text = other.run(move || {
            let words =
                ["exec", "-c", "web.toml", "--runtime-dir", "run", "--", "curl", "-sS", "http://127.0.0.1:9000/"];
            Command::new("timeout").arg("60").arg(RINGMESH).args(words).current_dir(place).output().unwrap()
        });
        assert_eq!(said(&text), "app");
        let line = proxy.wait_for_access("the request", |line| line["endpoint"] == "10.77.0.1:8080");
        assert_eq!(line["peer"], authority.id("web"));

        let plain = other.run(|| {
            let mut client = Client::connect(at(HERE[0], 8080));
            let _ = client.try_send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            client.try_response().ok().map(|answer| answer.status())
        });
        assert!(matches!(plain, None | Some(400)), "without an identity nothing is served: {plain:?}");
        assert_eq!(app.accepted(), 1);
    });
}

// ---- what is left alone ----

#[test]
fn excluded_ports_networks_users_and_groups_go_around_the_proxy() {
    on_machines(|driver, other| {
        let services = other.run(|| [Service::saying_at("[::]:80", "there"), Service::saying_at("[::]:81", "there")]);
        let _apps = [Service::saying_at("[::]:8080", "here"), Service::saying_at("[::]:8081", "here")];
        let config = TRANSPARENT.to_owned()
            + "[intercept]\nexclude_outbound_ports = [81]\nexclude_outbound_networks = [\"10.77.0.3\", \"fd77::3/128\"]\n\
               exclude_inbound_ports = [8081]\nexclude_inbound_networks = [\"10.77.0.3\", \"fd77::3\"]\n\
               exclude_users = [\"nobody\", 4711]\nexclude_groups = [4712]\n";
        let proxy = transparent(driver, &config);
        let curl = |ids: &[&str], address: &str| {
            let url = format!("http://{address}/");
            let output =
                Command::new("setpriv").args(ids).args(["--clear-groups", "curl", "-sS", "-m", "20", &url]).output();
            assert_eq!(said(&output.unwrap()), "there");
        };
        let inbound = |from: &'static str, to: SocketAddr| {
            let text = other.run(move || {
                let url = format!("http://{to}/");
                Command::new("curl").args(["-sS", "-m", "20", "-g", "--interface", from, &url]).output().unwrap()
            });
            assert_eq!(said(&text), "here");
        };
        for address in THERE {
            assert_eq!(Client::connect(at(address, 81)).get("a", "/").text(), "there");
        }
        for address in ["10.77.0.3", "fd77::3"] {
            assert_eq!(Client::connect(at(address, 80)).get("a", "/").text(), "there");
            for own in HERE.iter().filter(|own| own.contains(':') == address.contains(':')) {
                inbound(address, at(own, 8080));
            }
        }
        for own in HERE {
            let from = THERE[usize::from(own.contains(':'))];
            inbound(from, at(own, 8081));
        }
        for ids in [&["--reuid=4711"][..], &["--reuid=65534"], &["--regid=4712"]] {
            curl(ids, "10.77.0.2");
            curl(ids, "[fd77::2]");
        }
        for listener in ["outbound", "outbound6", "inbound", "inbound6"] {
            assert_eq!(accepted(&proxy, listener), 0, "{listener}");
        }
        for (rule, times) in [
            ("outbound: left alone, port 81", 2),
            ("outbound: left alone, to 10.77.0.3/32", 1),
            ("outbound: left alone, to fd77::3/128", 1),
            ("outbound: left alone, user 4711", 2),
            ("outbound: left alone, user nobody", 2),
            ("outbound: left alone, group 4712", 2),
            ("inbound: left alone, port 8081", 2),
            ("inbound: left alone, from 10.77.0.3/32", 1),
            ("inbound: left alone, from fd77::3/128", 1),
        ] {
            assert_eq!(met(&proxy, rule), times, "{rule}");
        }
        // Others are not.
        curl(&["--reuid=4710", "--regid=4710"], "10.77.0.2");
        inbound(THERE[0], at(HERE[0], 8080));
        proxy.wait_for_metric("ringmesh_listener_connections_accepted_total", &[("listener", "outbound")], 1);
        proxy.wait_for_metric("ringmesh_listener_connections_accepted_total", &[("listener", "inbound")], 1);
        other.run(move || drop(services));
    });
}

#[test]
fn a_family_that_no_listener_takes_is_refused_and_does_not_go_around() {
    on_machines_with(Driver::Epoll, |driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let _app = Service::saying_at("[::]:8080", "here");
        let config = "\
            [[listener]]\nname = \"outbound\"\nbind = \"127.0.0.1:15001\"\nintercept = \"outbound\"\nservice = \"away\"\n\
            [[listener]]\nname = \"inbound\"\nbind = \"0.0.0.0:15006\"\nintercept = \"inbound\"\nservice = \"away\"\n\
            [[service]]\nname = \"away\"\nendpoints = \"original_destination\"\n";
        let proxy = transparent(driver, config);
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        let refused = |address| Client::try_connect(address).err().map(|error| error.kind());
        assert_eq!(refused(at(THERE[1], 80)), Some(std::io::ErrorKind::ConnectionRefused));
        let kind = other.run(|| Client::try_connect(at(HERE[1], 8080)).err().map(|error| error.kind()));
        assert_eq!(kind, Some(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(met(&proxy, "outbound: refused, no listener takes IPv6"), 1);
        assert_eq!(met(&proxy, "inbound: refused, no listener takes IPv6"), 1);
        assert_eq!(Client::connect(at("::1", 8080)).get("a", "/").text(), "here", "the machine itself is left alone");
        other.run(move || drop(service));
    });
}

#[test]
fn a_listener_of_all_addresses_takes_the_connections_of_both_families() {
    on_machines(|driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let _app = Service::saying_at("[::]:8080", "here");
        let listener = |name: &str, port: u16| {
            format!(
                "[[listener]]\nname = \"{name}\"\nbind = \"[::]:{port}\"\nintercept = \"{name}\"\nservice = \"away\"\n"
            )
        };
        let config = listener("outbound", 15001)
            + &listener("inbound", 15006)
            + "[[service]]\nname = \"away\"\nendpoints = \"original_destination\"\n";
        let proxy = transparent(driver, &config);
        for address in THERE {
            assert_eq!(Client::connect(at(address, 80)).get("a", "/").text(), "there", "{address}");
        }
        for address in HERE {
            let text = other.run(move || Client::connect(at(address, 8080)).get("a", "/").text());
            assert_eq!(text, "here", "{address}");
        }
        assert_eq!(["outbound", "inbound"].map(|name| accepted(&proxy, name)), [2, 2]);
        for (name, port) in [("outbound", 15001), ("inbound", 15006)] {
            assert_eq!(met(&proxy, &format!("{name}: brought to [::]:{port}")), 1);
            assert_eq!(met(&proxy, &format!("{name}: IPv4 brought to [::]:{port}")), 1);
        }
        // Ports of its own are none that anybody wanted to reach, in either family.
        for address in [at("127.0.0.1", 15001), at(HERE[0], 15006), at("::1", 15001), at(HERE[1], 15006)] {
            assert_eq!(Client::connect(address).get("a", "/").status(), 421, "{address}");
        }
        other.run(move || drop(service));
    });
}

// ---- no circles ----

#[test]
fn whoever_connects_to_a_listener_itself_is_refused_and_nothing_is_dialled() {
    on_machines(|driver, other| {
        let proxy = transparent(driver, TRANSPARENT);
        let own =
            [at("127.0.0.1", 15001), at("::1", 15001), at(HERE[0], 15006), at(HERE[1], 15006), at("127.0.0.1", 15006)];
        for address in own {
            let answer = Client::connect(address).get("shop.example", "/");
            assert_eq!((answer.status(), answer.text().contains("no_original_destination")), (421, true), "{address}");
        }
        for address in HERE.map(|own| at(own, 15006)) {
            assert_eq!(other.run(move || Client::connect(address).get("a", "/").status()), 421);
        }
        let all: u64 = ["outbound", "outbound6", "inbound", "inbound6"].map(|name| accepted(&proxy, name)).iter().sum();
        assert_eq!(all, 7, "no connection but those of the clients");
        assert_eq!(met(&proxy, "outbound: left alone, the proxy's own"), 0, "nothing was dialled");

        // Opaque connections likewise.
        drop(proxy);
        let config = TRANSPARENT.replace("service = \"away\"\n[", "service = \"away\"\nprotocol = \"tcp\"\n[");
        let proxy = ringmesh(driver).config(config).start();
        for address in own {
            // It may be over before this end has noticed that it began.
            if let Ok(mut client) = Client::try_connect(address) {
                client.expect_end();
            }
        }
        let reason = [("reason", "no_original_destination")];
        proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &reason, 5);
    });
}

/// Rules of somebody else that bring everything to the proxy, so that only what it does itself keeps it from going round.
const FOREIGN: &str = "
table inet foreign {
    chain everything {
        type nat hook output priority -110; policy accept;
        meta mark 0x524d accept
        meta nfproto ipv4 tcp dport { 80, 9000, 15001, 15006 } dnat ip to 127.0.0.1:15001
        meta nfproto ipv6 meta l4proto tcp tcp dport { 80, 9000, 15001, 15006 } dnat ip6 to [::1]:15001
    }
}
";

fn nft(script: &str) {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
}

#[test]
fn a_proxy_that_calls_its_own_ports_or_what_it_intercepts_never_goes_in_circles() {
    on_machines(|driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        // A service whose endpoints are the proxy's own ports, directly and by the machine's address, and one that is
        // intercepted when others call it.
        let config = TRANSPARENT.to_owned()
            + "[[listener]]\nname = \"front\"\nbind = \"127.0.0.1:9000\"\n\
               [[service]]\nname = \"self\"\nendpoints = [\"127.0.0.1:15001\"]\n[[route]]\nhosts = [\"self\"]\n\
               [[service]]\nname = \"self6\"\nendpoints = [\"[::1]:15001\"]\n[[route]]\nhosts = [\"self6\"]\n\
               [[service]]\nname = \"inbound\"\nendpoints = [\"10.77.0.1:15006\"]\n[[route]]\nhosts = [\"inbound\"]\n\
               [[service]]\nname = \"there\"\nendpoints = [\"10.77.0.2:80\", \"[fd77::2]:80\"]\n[[route]]\nhosts = [\"there\"]\n";
        let proxy = transparent(driver, &config);
        for (host, status) in [("self", 421), ("self6", 421), ("inbound", 421), ("there", 200)] {
            assert_eq!(Client::connect(at("127.0.0.1", 9000)).get(host, "/").status(), status, "{host}");
        }
        let count = |name: &str| accepted(&proxy, name);
        assert_eq!(["outbound", "outbound6", "inbound"].map(count), [1, 1, 1], "one step, and no further");
        assert_eq!(met(&proxy, "outbound: brought to 127.0.0.1:15001"), 0, "its own connections are left alone");

        // Where others' rules say that somebody wanted to reach a port of ours, nobody is called.
        nft(FOREIGN);
        let before = count("outbound") + count("outbound6");
        for address in
            [at("127.0.0.1", 15001), at("127.0.0.1", 9000), at(HERE[0], 15006), at("::1", 15001), at(HERE[1], 15006)]
        {
            assert_eq!(Client::connect(address).get("a", "/").status(), 421, "{address}");
        }
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        assert_eq!(count("outbound") + count("outbound6"), before + 6);
        other.run(move || drop(service));
    });
}

#[test]
fn a_proxy_that_may_not_mark_its_connections_starts_only_as_an_excluded_user() {
    on_machines_with(Driver::Epoll, |driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let without =
            &["setpriv", "--reuid=1337", "--regid=1337", "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"];
        let mut proxy = ringmesh(driver).config(TRANSPARENT).launched_by(without).prepare();
        give(&proxy);
        let ended = within(Duration::from_secs(20), "it ends", {
            let mut control = proxy.spawn_control();
            move || control.try_wait().unwrap()
        });
        assert_eq!(ended.code(), Some(2));
        let log = proxy.log();
        assert!(log.contains("may not mark its own connections") && log.contains("exclude_users = [1337]"), "{log}");
        assert!(proxy.pids(Role::Run).is_empty());

        proxy.write(&(TRANSPARENT.to_owned() + "[intercept]\nexclude_users = [1337]\n"));
        give(&proxy);
        proxy.run();
        assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        assert_eq!(Client::connect(at(THERE[1], 80)).get("a", "/").text(), "there");
        assert_eq!([accepted(&proxy, "outbound"), accepted(&proxy, "outbound6")], [1, 1]);
        assert_eq!(met(&proxy, "outbound: left alone, user 1337"), 2);
        other.run(move || drop(service));
    });
}

/// Lets user 1337 have the proxy's folder.
fn give(proxy: &Proxy) {
    let given = Command::new("chown").args(["-R", "1337:1337"]).arg(proxy.folder()).status().unwrap();
    assert!(given.success());
}

// ---- on and off ----

#[test]
fn it_is_on_once_off_once_and_open_connections_go_on_when_it_is_turned_on() {
    on_machines_with(Driver::Epoll, |driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let proxy = ringmesh(driver).config(TRANSPARENT).start();
        let show = || said(&proxy.command(&["intercept", "--show"]));
        assert_eq!(show(), "off\n");
        assert_eq!(said(&proxy.command(&["intercept", "--off"])), "off, as before\n");

        let mut open = Client::connect(at(THERE[0], 80));
        assert_eq!(open.get("a", "/").text(), "there");
        let rules = said(&intercept(&proxy, &["--on", "--dry-run"]));
        assert!(rules.contains("table inet ringmesh {") && rules.contains("redirect to :15006"), "{rules}");
        assert_eq!(show(), "off\n", "--dry-run changes nothing");

        assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        assert_eq!(open.get("a", "/").text(), "there", "it was open before");
        assert_eq!(accepted(&proxy, "outbound"), 1);
        assert_eq!(said(&intercept(&proxy, &["--on"])), "on, as before\n");
        assert_eq!(met(&proxy, "outbound: brought to 127.0.0.1:15001"), 1, "the counters go on");

        // An edit of the config changes the rules when it is said so.
        proxy.write(&(TRANSPARENT.to_owned() + "[intercept]\nexclude_outbound_ports = [80]\n"));
        assert!(said(&intercept(&proxy, &["--show"])).starts_with("on, but not as the config says now"));
        assert_eq!(said(&intercept(&proxy, &["--on"])), "on\n");
        assert!(said(&intercept(&proxy, &["--show"])).starts_with("on, as the config says\n"));
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        assert_eq!(accepted(&proxy, "outbound"), 1, "port 80 is left alone now");

        assert_eq!(
            said(&proxy.command(&["intercept", "--off", "--dry-run"])),
            "add table inet ringmesh\ndelete table inet ringmesh\n"
        );
        let mut through = Client::connect(at("10.77.0.3", 81));
        through.send("GET / HTTP/1.1\r\n");
        eventually("it came to the proxy", || (accepted(&proxy, "outbound") == 2).then_some(()));
        assert_eq!(said(&proxy.command(&["intercept", "--off"])), "off\n");
        assert_eq!(show(), "off\n");
        let _ = through.try_send("Host: a\r\n\r\n");
        assert!(through.try_response().is_err(), "the kernel knows no more whose it was");
        let left = Command::new("nft").args(["list", "ruleset"]).output().unwrap();
        assert_eq!(said(&left), "", "nothing of it is left");
        assert_eq!(Client::connect(at(THERE[0], 80)).get("a", "/").text(), "there");
        assert_eq!(accepted(&proxy, "outbound"), 2);
        assert_eq!(open.get("a", "/").text(), "there");
        other.run(move || drop(service));
    });
}

#[test]
fn tables_of_others_are_not_touched() {
    on_machines_with(Driver::Epoll, |driver, _| {
        nft("table inet other {\n\tchain c {\n\t\ttype filter hook input priority 0; policy accept;\n\t}\n}\n");
        let proxy = transparent(driver, TRANSPARENT);
        said(&proxy.command(&["intercept", "--off"]));
        let left = said(&Command::new("nft").args(["list", "tables"]).output().unwrap());
        assert_eq!(left, "table inet other\n");
    });
}

#[test]
fn what_keeps_it_from_being_turned_on_is_told_with_what_helps() {
    alone(|| {
        let refused = |words: &[&str], proxy: &Proxy, code: i32, reasons: &[&str]| {
            let file = proxy.file();
            let mut all = words.iter().copied().chain([RINGMESH, "intercept", "--on", "-c", file.to_str().unwrap()]);
            let output = Command::new(all.next().unwrap()).args(all).output().unwrap();
            let error = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(code), "{error}");
            for reason in reasons {
                assert!(error.contains(reason), "no `{reason}` in {error}");
            }
            assert_eq!(said(&proxy.command(&["intercept", "--show"])), "off\n");
        };
        let proxy = ringmesh(Driver::Epoll).config(TRANSPARENT).prepare();
        refused(
            &["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"],
            &proxy,
            1,
            &["CAP_NET_ADMIN in this network namespace", "Operation not permitted"],
        );
        let hidden = "mount -t tmpfs none /usr/sbin; PATH=/usr/bin exec \"$@\"";
        refused(&["unshare", "-m", "sh", "-c", hidden, "sh"], &proxy, 1, &["apt-get install nftables"]);

        let unknown = TRANSPARENT.to_owned() + "[intercept]\nexclude_users = [\"no-such-user\"]\n";
        let proxy = ringmesh(Driver::Epoll).config(unknown).prepare();
        refused(&["env"], &proxy, 1, &["nothing has changed", "User does not exist", "meta skuid \"no-such-user\""]);

        let none = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"s\"\n[[service]]\nname = \"s\"\nendpoints = [\"a:1\"]\n";
        let proxy = ringmesh(Driver::Epoll).config(none).prepare();
        refused(
            &["env"],
            &proxy,
            2,
            &["no listener takes intercepted connections; give one `intercept = \"outbound\"`"],
        );
        let proxy = ringmesh(Driver::Epoll).config(TRANSPARENT.replace("0.0.0.0:15006", "127.0.0.1:15006")).prepare();
        refused(&["env"], &proxy, 2, &["connections from outside cannot be brought to 127.0.0.1"]);
    });
}

#[test]
fn nothing_is_let_through_while_the_proxy_is_away() {
    on_machines_with(Driver::Epoll, |driver, other| {
        let service = other.run(|| Service::saying_at("[::]:80", "there"));
        let proxy = transparent(driver, TRANSPARENT);
        let file = proxy.file();
        said(&proxy.command(&["stop", "-c", file.to_str().unwrap()]));
        eventually("the port is closed", || Client::try_connect(at("127.0.0.1", 15001)).is_err().then_some(()));
        let error = Client::try_connect(at(THERE[0], 80)).err().map(|error| error.kind());
        assert_eq!(error, Some(std::io::ErrorKind::ConnectionRefused));
        assert_eq!(service.accepted(), 0);
        other.run(move || drop(service));
    });
}
