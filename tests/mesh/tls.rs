//! Mutual TLS between real proxies, and with peers that do not prove who they should be.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringmesh_tests::certificates::{Authority, Svid, Validity};
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{client_config, connect, service};
use ringmesh_tests::{Client, Proxy, Service, eventually, hold, on_both_drivers, peers, ports};

use crate::support::{DOMAIN, caller, identity, ringmesh, strict};

#[test]
fn both_ends_of_a_hop_prove_who_they_are() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::echo();
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let (web, outbound) = caller(driver, &authority.svid("web"), "web", "checkout", &[checkout.inbound], "");
        let mut client = Client::connect(outbound);
        for bytes in [0, 5, 20_000, 3_000_000] {
            let body = vec![b'x'; bytes];
            let mut writer = client.socket().try_clone().unwrap();
            let head = format!("POST /pay HTTP/1.1\r\nHost: there\r\nContent-Length: {bytes}\r\n\r\n");
            let sent = [head.into_bytes(), body.clone()].concat();
            let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
            assert!(client.response().body == body, "{bytes} bytes come back as they went");
            writing.join().unwrap();
        }
        for (proxy, direction, peer) in [(&web, "outbound", "checkout"), (&checkout.proxy, "inbound", "web")] {
            proxy.wait_for_metric("ringmesh_tls_handshakes_total", &[("side", direction), ("result", "ok")], 1);
            let handshakes = eventually("the handshake is recorded", || {
                Some(proxy.json("/handshakes")).filter(|all| !all.as_array().unwrap().is_empty())
            });
            let record = &handshakes[0];
            assert_eq!(record["peer"].as_str(), Some(authority.id(peer).as_str()), "{record}");
            assert_eq!((&record["direction"], &record["tls"]), (&direction.into(), &"TLSv1.3".into()), "{record}");
        }
        let line = checkout.proxy.wait_for_access("of the request", |line| line["path"] == "/pay");
        assert_eq!(line["peer"].as_str(), Some(authority.id("web").as_str()), "{line}");
    });
}

#[test]
fn a_client_without_a_certificate_is_told_before_the_connection_ends() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        for keys in ["", "protocol = \"detect\"\n"] {
            let checkout = strict(driver, &authority, "checkout", app.address(), keys, "");
            let url = format!("https://{}/", checkout.inbound);
            // Its handshake is over before ours, and its request is on its way by then: all depends on who is faster.
            for _ in 0..20 {
                let output = Command::new("curl").args(["-sSk", "--max-time", "20", &url]).output().unwrap();
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(said.contains("certificate required"), "{said}");
            }
            checkout.proxy.wait_for_metric(
                "ringmesh_tls_handshakes_total",
                &[("side", "inbound"), ("result", "no_certificate")],
                20,
            );
            // Who does not leave is not waited for.
            let _silent = connect(checkout.inbound, &client_config(None));
            let closed = "ringmesh_listener_connections_closed_total";
            checkout.proxy.wait_for_metric(closed, &[("listener", "inbound")], 21);
        }
    });
}

/// Who comes to a strict port, and what it is called.
enum Caller<'a> {
    Shows(&'a Svid),
    ShowsNothing,
    Says(&'static [u8]),
    SaysNothing,
    Leaves,
}

#[test]
fn a_caller_without_a_right_to_be_there_is_refused_by_name_of_the_cause() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let foreign = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let timeout = "handshake_timeout = \"1s\"";
        let checkout = strict(driver, &authority, "checkout", app.address(), timeout, "");
        let id = authority.id("web");
        let expired = authority.leaf(&[&id], Validity::Expired);
        let later = authority.leaf(&[&id], Validity::Later);
        let of_others = foreign.svid("web");
        let none = authority.leaf(&[], Validity::Now);
        let two = authority.leaf(&[&id, &authority.id("checkout")], Validity::Now);
        let elsewhere = authority.leaf(&["spiffe://other.test/ns/default/sa/web"], Validity::Now);
        let no_spiffe = authority.leaf(&["https://mesh.test/web"], Validity::Now);
        let bad_path = authority.leaf(&["spiffe://mesh.test/a/../b"], Validity::Now);
        let callers = [
            ("expired", Caller::Shows(&expired)),
            ("not_yet_valid", Caller::Shows(&later)),
            ("unknown_issuer", Caller::Shows(&of_others)),
            ("no_uri", Caller::Shows(&none)),
            ("several_uris", Caller::Shows(&two)),
            ("wrong_trust_domain", Caller::Shows(&elsewhere)),
            ("bad_spiffe_id", Caller::Shows(&no_spiffe)),
            ("bad_spiffe_id", Caller::Shows(&bad_path)),
            ("no_certificate", Caller::ShowsNothing),
            ("plain_http", Caller::Says(b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")),
            ("deadline", Caller::SaysNothing),
            // In the next second: the log has only so many refusals of one.
            ("not_tls", Caller::Says(b"HELO app\r\n")),
            // The first bytes of a hello, and then nothing.
            ("deadline", Caller::Says(b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03")),
            ("closed", Caller::Leaves),
        ];
        let good = client_config(Some(&authority.svid("web")));
        let mut open = connect(checkout.inbound, &good).unwrap();
        for (label, caller) in &callers {
            let handshakes = |proxy: &Proxy| {
                proxy.metrics().sum("ringmesh_tls_handshakes_total", &[("side", "inbound"), ("result", label)])
            };
            let before = handshakes(&checkout.proxy);
            refused(checkout.inbound, caller);
            eventually(label, || (handshakes(&checkout.proxy) == before + 1).then_some(()));
            checkout.proxy.wait_for_log(&["handshake refused", &format!("\"cause\":\"{label}\"")]);
            assert_eq!(open.get("app", "/").text(), "hello", "{label}: others are not concerned");
            assert_eq!(connect(checkout.inbound, &good).unwrap().get("app", "/").text(), "hello", "{label}");
        }
        let good_requests = callers.len() * 2;
        assert_eq!(app.requests().len(), good_requests, "nothing of the refused reached the service");
        let outcome = |reason, count| {
            let labels = [("reason", reason)];
            checkout.proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, count);
        };
        outcome("plain_to_tls_port", 1);
        outcome("tls_refused", callers.len() as u64 - 1);
        let counts = checkout.proxy.json("/handshakes/counts").to_string();
        assert!(callers.iter().all(|(label, _)| counts.contains(&format!("\"{label}\""))), "{counts}");
    });
}

/// Sees that a caller gets no answer to a request.
fn refused(address: SocketAddr, caller: &Caller<'_>) {
    let request = "GET /secret HTTP/1.1\r\nHost: app\r\n\r\n";
    let svid = match caller {
        Caller::Shows(svid) => Some(*svid),
        Caller::ShowsNothing => None,
        Caller::Says(bytes) => {
            let mut client = Client::connect(address);
            client.send(bytes);
            // A TLS alert may come, or the word that this is the wrong port; an answer may not.
            let answer = String::from_utf8_lossy(&client.rest().unwrap_or_default()).into_owned();
            assert!(!answer.starts_with("HTTP/") || answer.starts_with("HTTP/1.1 400 "), "{answer}");
            return;
        }
        Caller::SaysNothing => return Client::connect(address).expect_end(),
        Caller::Leaves => return drop(Client::connect(address)),
    };
    // The client's handshake is over before the server has seen its certificate (RFC 8446 section 4.4.4).
    let Ok(mut client) = connect(address, &client_config(svid)) else { return };
    let error = client.try_send(request).and_then(|()| client.try_response()).expect_err("no answer");
    assert!(!error.to_string().contains("timed out"), "{error}");
}

#[test]
fn a_client_of_an_older_tls_is_refused() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let address = checkout.inbound.to_string();
        let client = Command::new("openssl")
            .args(["s_client", "-connect", &address, "-tls1_2"])
            .stdin(Stdio::null())
            .output()
            .expect("openssl is needed: apt-get install -y openssl");
        assert!(!client.status.success(), "{}", String::from_utf8_lossy(&client.stdout));
        let labels = [("side", "inbound"), ("result", "incompatible")];
        checkout.proxy.wait_for_metric("ringmesh_tls_handshakes_total", &labels, 1);
    });
}

#[test]
fn an_endpoint_that_is_not_whom_the_service_names_gets_no_request() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let id = authority.id("payments");
        let endpoints: [(&str, &str, Service); 7] = [
            ("wrong_identity", "upstream_identity", service(&authority.svid("web"), |_| ok("wrong"))),
            ("unknown_issuer", "upstream_identity", service(&Authority::new(DOMAIN).svid("payments"), |_| ok("wrong"))),
            ("expired", "upstream_identity", service(&authority.leaf(&[&id], Validity::Expired), |_| ok("wrong"))),
            ("no_uri", "upstream_identity", service(&authority.leaf(&[], Validity::Now), |_| ok("wrong"))),
            (
                "several_uris",
                "upstream_identity",
                service(&authority.leaf(&[&id, &id], Validity::Now), |_| ok("wrong")),
            ),
            (
                "not_tls",
                "upstream_tls",
                Service::sockets(|mut stream| {
                    let _ = stream.write_all(ok("wrong").as_bytes());
                    hold(Duration::from_millis(200));
                }),
            ),
            ("closed", "upstream_tls", Service::sockets(drop)),
        ];
        for (label, reason, endpoint) in &endpoints {
            let (web, outbound) = caller(driver, &authority.svid("web"), "web", "payments", &[endpoint.address()], "");
            let response = Client::connect(outbound).get("there", "/secret");
            assert_eq!((response.status(), response.field("x-ringmesh-reason")), (503, Some(*reason)), "{label}");
            let labels = [("side", "outbound"), ("name", "there"), ("result", label)];
            eventually(label, || (web.metrics().sum("ringmesh_tls_handshakes_total", &labels) > 0).then_some(()));
            web.wait_for_log(&["handshake refused", &format!("\"cause\":\"{label}\"")]);
            assert_eq!(endpoint.requests().len(), 0);
        }
    });
}

#[test]
fn an_endpoint_that_refuses_our_certificate_is_told_apart_from_one_that_fails() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        // Trusts both roots, but is of one that checkout does not trust.
        let other = Authority::new(DOMAIN).svid("web");
        let both = other.bundle.clone() + &authority.svid("web").bundle;
        let untrusted = Svid { bundle: both, ..other };
        let there = [checkout.inbound];
        let (web, outbound) = caller(driver, &untrusted, "web", "checkout", &there, "connect_retries = 0\n");
        let response = Client::connect(outbound).get("there", "/");
        assert_eq!((response.status(), response.field("x-ringmesh-reason")), (503, Some("upstream_tls")));
        checkout.proxy.wait_for_log(&["handshake refused", "\"cause\":\"unknown_issuer\""]);
        web.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "upstream_tls")], 1);
        assert_eq!(app.requests().len(), 0);
    });
}

#[test]
fn a_good_endpoint_beside_a_wrong_one_gets_the_requests() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let wrong = service(&authority.svid("mallory"), |_| ok("wrong"));
        let there = [wrong.address(), checkout.inbound];
        let (_web, outbound) =
            caller(driver, &authority.svid("web"), "web", "checkout", &there, "balance = \"round_robin\"\n");
        for _ in 0..10 {
            assert_eq!(Client::connect(outbound).get("there", "/").text(), "hello");
        }
    });
}

#[test]
fn new_certificate_files_are_used_by_new_handshakes_and_open_connections_go_on() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let folder = checkout.proxy.folder().join("svid");
        let config = client_config(Some(&authority.svid("web")));
        let shown = |address| {
            let client = connect(address, &config).unwrap();
            client.into_inner().conn.peer_certificates().unwrap()[0].to_vec()
        };
        let mut open = connect(checkout.inbound, &config).unwrap();
        assert_eq!(open.get("app", "/").text(), "hello");
        for round in 0..3 {
            let next = authority.svid("checkout");
            assert_ne!(shown(checkout.inbound), next.chain_der()[0].to_vec());
            next.write(&folder);
            eventually("new handshakes show the new one", || {
                (shown(checkout.inbound) == next.chain_der()[0].to_vec()).then_some(())
            });
            assert_eq!(open.get("app", "/").text(), "hello", "round {round}: the open connection goes on");
        }

        // Another root: who is not of it is not let in any more, and who was in is let go.
        let second = Authority::new(DOMAIN);
        second.svid("checkout").write(&folder);
        eventually("the new bundle is in force", || {
            let mut client = connect(checkout.inbound, &config).ok()?;
            let sent = client.try_send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
            sent.and_then(|()| client.try_response()).is_err().then_some(())
        });
        let theirs = client_config(Some(&second.svid("web")));
        assert_eq!(connect(checkout.inbound, &theirs).unwrap().get("app", "/").text(), "hello");
        open.expect_end();
        checkout.proxy.wait_for_log(&["connections of a peer are drained", "not in the trust bundle any more"]);
    });
}

#[test]
fn a_certificate_that_ends_takes_its_connections_along_and_one_that_was_renewed_in_time_none() {
    const LIFE: Duration = Duration::from_secs(8);
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let begun = Instant::now();
        let inbound = [checkout.inbound];
        let (web, renewing) = caller(driver, &authority.svid_for("web", LIFE), "web", "checkout", &inbound, "");
        let (_late, forgetting) = caller(driver, &authority.svid_for("late", LIFE), "late", "checkout", &inbound, "");
        let mut short = connect(checkout.inbound, &client_config(Some(&authority.svid_for("short", LIFE)))).unwrap();
        let mut long = connect(checkout.inbound, &client_config(Some(&authority.svid("long")))).unwrap();
        for client in [&mut short, &mut long] {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        let (mut renewing, mut forgetting) = (Client::connect(renewing), Client::connect(forgetting));
        assert_eq!(forgetting.get("there", "/").text(), "hello");
        assert_eq!(renewing.get("there", "/").text(), "hello");
        authority.svid("web").write(&web.folder().join("svid"));
        assert!(begun.elapsed() < LIFE, "the machine is too slow for this test");
        while begun.elapsed() < LIFE + Duration::from_secs(3) {
            assert_eq!(renewing.get("there", "/").text(), "hello", "after {:?}", begun.elapsed());
            hold(Duration::from_millis(20));
        }
        short.expect_end();
        for who in ["short", "late"] {
            let id = authority.id(who);
            checkout.proxy.wait_for_log(&["connections of a peer are drained", "its certificate has ended", &id]);
        }
        assert_eq!(long.get("app", "/").text(), "hello");
        assert_eq!(forgetting.get("there", "/").status(), 503, "it has nothing to show");
    });
}

#[test]
fn new_certificate_files_of_a_caller_are_used_for_new_connections() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let (web, outbound) = caller(driver, &authority.svid("web"), "web", "checkout", &[checkout.inbound], "");
        assert_eq!(Client::connect(outbound).get("there", "/").text(), "hello");
        let second = Authority::new(DOMAIN);
        second.svid("web").write(&web.folder().join("svid"));
        second.svid("checkout").write(&checkout.proxy.folder().join("svid"));
        let until = |proxy: &Proxy| {
            eventually("the new files are read", || {
                (proxy.status()["config"]["reloads"].as_u64() >= Some(1)).then_some(())
            })
        };
        until(&web);
        until(&checkout.proxy);
        // Pooled connections were made with the old identity: none of them is used for the new one.
        let reused = web.metrics().sum("ringmesh_upstream_connections_opened_total", &[]);
        eventually("a new connection with the new identity", || {
            assert_eq!(Client::connect(outbound).get("there", "/").status(), 200);
            (web.metrics().sum("ringmesh_upstream_connections_opened_total", &[]) > reused).then_some(())
        });
    });
}

#[test]
fn broken_certificate_files_change_nothing_and_are_shown() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let folder = checkout.proxy.folder().join("svid");
        let config = client_config(Some(&authority.svid("web")));
        let good = authority.svid("checkout");
        let broken = [
            ("key", Svid { key: authority.svid("x").key, ..good.clone() }),
            ("no certificate", Svid { chain: "not PEM\n".to_owned(), ..good.clone() }),
            ("several", authority.leaf(&[&authority.id("checkout"), &authority.id("web")], Validity::Now)),
            ("root", Svid { bundle: Authority::new(DOMAIN).svid("x").bundle, ..good.clone() }),
        ];
        for (what, files) in &broken {
            files.write(&folder);
            let problem = eventually(&format!("{what}: the problem is shown"), || {
                let identity = checkout.proxy.status()["identity"]["problem"].clone();
                identity.as_str().map(str::to_owned)
            });
            assert!(problem.contains("svid") || problem.contains("bundle"), "a file is named: {problem}");
            assert_eq!(connect(checkout.inbound, &config).unwrap().get("app", "/").text(), "hello", "{what}");
            authority.svid("checkout").write(&folder);
            eventually("the problem is gone", || {
                checkout.proxy.status()["identity"]["problem"].is_null().then_some(())
            });
        }
    });
}

#[test]
fn a_stream_cut_inside_tls_is_not_taken_for_a_whole_response() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        // A body that ends with the connection: only close_notify tells a whole one from a cut one.
        let app = peers::truncating_server("HTTP/1.1 200 OK\r\n\r\nall of it");
        let checkout = strict(driver, &authority, "checkout", app.address(), "", "");
        let (_web, outbound) = caller(driver, &authority.svid("web"), "web", "checkout", &[checkout.inbound], "");
        assert_eq!(Client::connect(outbound).get("there", "/").text(), "all of it", "a whole one arrives whole");

        // The same between the proxies cut by a process in the middle that closes without a word of TLS.
        let inbound = checkout.inbound;
        let cutting = Service::sockets(move |stream| relay_and_cut(&stream, inbound));
        // (In a connection that is shared, a frame tells it.)
        let own = "share_connections = false\n";
        let (_web, outbound) = caller(driver, &authority.svid("web"), "web", "checkout", &[cutting.address()], own);
        let mut client = Client::connect(outbound);
        client.send("GET / HTTP/1.1\r\nHost: there\r\n\r\n");
        assert!(client.try_response().is_err(), "a response that was cut looks whole");
    });
}

/// Relays until the response's first bytes have come, and then closes both ways of the client's connection.
fn relay_and_cut(client: &TcpStream, server: SocketAddr) {
    use std::io::Read;
    let Ok(upstream) = TcpStream::connect(server) else { return };
    let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let (mut from, mut to) = (upstream, client.try_clone().unwrap());
    let mut buffer = [0; 16 * 1024];
    let mut records = Vec::new();
    loop {
        let Ok(count) = from.read(&mut buffer) else { return };
        if count == 0 {
            let _ = client.shutdown(std::net::Shutdown::Both);
            return;
        }
        records.extend_from_slice(&buffer[..count]);
        // Whole records are passed on, but none that could be the alert: those are the shortest of application data.
        while let [_, _, _, high, low, ..] = records[..] {
            let length = 5 + usize::from(u16::from_be_bytes([high, low]));
            if records.len() < length {
                break;
            }
            let record: Vec<u8> = records.drain(..length).collect();
            const SEALED_ALERT_BYTES: usize = 5 + 2 + 1 + 16;
            if record[0] == 23 && record.len() == SEALED_ALERT_BYTES {
                let _ = client.shutdown(std::net::Shutdown::Both);
                return;
            }
            if to.write_all(&record).is_err() {
                return;
            }
        }
    }
}

#[test]
fn opaque_bytes_and_their_ends_pass_through_mutual_tls() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::conversing(|talk| {
            let all = talk.rest()?;
            talk.send(format!("{} bytes, and the end", all.len()))
        });
        let (inbound, outbound) = (ports::free(), ports::free());
        let mut there = ringmesh(driver)
            .config(format!(
                "{}[[listener]]\nname = \"in\"\nbind = \"{inbound}\"\nprotocol = \"tcp\"\nmtls = \"strict\"\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n",
                identity("there"),
                app.address()
            ))
            .prepare();
        authority.svid("there").write(&there.folder().join("svid"));
        there.run();
        let mut here = ringmesh(driver)
            .config(format!(
                "{}[[listener]]\nname = \"out\"\nbind = \"{outbound}\"\nprotocol = \"tcp\"\nservice = \"there\"\n\
                 [[service]]\nname = \"there\"\npeer = \"there\"\nendpoints = [\"{inbound}\"]\n",
                identity("here")
            ))
            .prepare();
        authority.svid("here").write(&here.folder().join("svid"));
        here.run();
        for bytes in [0, 1, 20_000_000] {
            let mut client = Client::connect(outbound);
            client.send(vec![7; bytes]);
            client.half_close();
            let answer = client.rest().unwrap_or_else(|error| panic!("after {bytes} bytes: {error}"));
            assert_eq!(String::from_utf8_lossy(&answer), format!("{bytes} bytes, and the end"));
        }
        assert!(there.status()["services"][0]["name"] == "app");
    });
}
