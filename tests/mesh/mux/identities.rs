//! Who calls is who the trunk's certificate names, and a trunk is for one identity on either side.

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::service::ok;
use ringmesh_tests::tls::{server_config, service};
use ringmesh_tests::{Client, Service, eventually, on_both_drivers, ports};

use super::{Hop, Keys, accepted, far, near, opened};
use crate::support::{DOMAIN, identity, ringmesh};

const POLICY: &str = "[[policy]]\nname = \"web-only\"\nlistener = \"inbound\"\n\
    allow = [{ from = [\"web\"] }, { from = [\"batch\"], paths = [\"/report\"] }]\n";

#[test]
fn each_caller_is_judged_in_its_own_trunk_and_one_that_is_refused_disturbs_nobody() {
    on_both_drivers(|driver| {
        let app = Service::saying("hello");
        let hop = Hop::to(driver, app.address(), Keys { app: POLICY, workers: 1, ..Keys::default() });
        let [(batch, for_batch), (stranger, for_stranger)] = ["batch", "stranger"]
            .map(|name| near(driver, &hop.authority, name, &[hop.inbound], Keys { workers: 1, ..Keys::default() }));
        let [mut web, mut reporting, mut refused] = [hop.front, for_batch, for_stranger].map(Client::connect);
        for _ in 0..20 {
            assert_eq!(web.get("app", "/").text(), "hello");
            let denied = reporting.get("app", "/");
            assert_eq!((denied.status(), denied.field("x-ringmesh-reason")), (403, Some("policy_denied")));
            assert_eq!(reporting.get("app", "/report").text(), "hello");
            assert_eq!(refused.get("app", "/report").status(), 403);
        }
        for proxy in [&hop.here, &batch, &stranger] {
            assert_eq!(opened(proxy, "there"), 1);
        }
        assert_eq!(accepted(&hop.there, "inbound"), 3);
        for (peer, path, status) in
            [("web", "/", 200), ("batch", "/report", 200), ("batch", "/", 403), ("stranger", "/report", 403)]
        {
            let line = hop.there.wait_for_access(peer, |line| {
                line["peer"] == hop.authority.id(peer).as_str() && line["path"] == path && line["status"] == status
            });
            assert!(line["client"].as_str().unwrap().starts_with("127.0.0.1:"), "{line}");
        }
        assert_eq!(app.requests().len(), 40);
    });
}

#[test]
fn a_policy_for_opaque_bytes_decides_of_each_channel() {
    on_both_drivers(|driver| {
        let app = Service::conversing(|talk| talk.send("hello"));
        let policy = "[[policy]]\nname = \"p\"\nlistener = \"inbound\"\nallow = [{ from = [\"web\"] }]\n";
        let tcp = "protocol = \"tcp\"\n";
        let keys = Keys { front: tcp, inbound: tcp, app: policy, workers: 1, ..Keys::default() };
        let hop = Hop::to(driver, app.address(), keys);
        let (_stranger, for_stranger) = near(driver, &hop.authority, "stranger", &[hop.inbound], keys);
        for _ in 0..10 {
            assert_eq!(Client::connect(hop.front).rest().unwrap(), b"hello");
            let said = Client::try_connect(for_stranger).and_then(|mut client| client.rest());
            assert!(said.is_err() || said.is_ok_and(|said| said.is_empty()));
        }
        assert_eq!(app.accepted(), 10);
        hop.there.wait_for_metric("ringmesh_listener_connections_outcome_total", &[("reason", "policy_denied")], 10);
    });
}

#[test]
fn a_renewed_certificate_makes_a_new_trunk_and_the_old_one_ends_once_nothing_uses_it() {
    on_both_drivers(|driver| {
        let app = Service::http(|request| {
            if request.head.request().1 == "/slow" {
                ringmesh_tests::hold(std::time::Duration::from_secs(3));
            }
            ok("hello")
        });
        let hop = Hop::to(driver, app.address(), Keys { workers: 1, ..Keys::default() });
        let mut client = Client::connect(hop.front);
        assert_eq!(client.get("app", "/").text(), "hello");
        let mut slow = Client::connect(hop.front);
        slow.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n");
        eventually("it is with the service", || (app.requests().len() == 2).then_some(()));
        hop.authority.svid("web").write(&hop.here.folder().join("svid"));
        eventually("requests go by the new certificate", || {
            assert_eq!(client.get("app", "/").text(), "hello");
            (opened(&hop.here, "there") == 2).then_some(())
        });
        for _ in 0..20 {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        assert_eq!(slow.response().text(), "hello", "what was under way goes on");
        eventually("the old one ends", || {
            (hop.there.metrics().sum("ringmesh_worker_connections", &[]) == 1).then_some(())
        });
        assert_eq!(opened(&hop.here, "there"), 2);
    });
}

#[test]
fn services_with_the_same_address_and_other_peers_never_share() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("hello");
        let (there, inbound) = far(driver, &authority, app.address(), Keys::default());
        let front = ports::free();
        let mut config = format!("{}[[listener]]\nname = \"front\"\nbind = \"{front}\"\n", identity("web"));
        for (name, peer) in [("right", "app"), ("wrong", "other")] {
            config += &format!(
                "[[service]]\nname = \"{name}\"\npeer = \"{peer}\"\nendpoints = [\"{inbound}\"]\n[[route]]\nhosts = [\"{name}\"]\n"
            );
        }
        let mut here = ringmesh(driver).workers(1).config(config).prepare();
        authority.svid("web").write(&here.folder().join("svid"));
        here.run();
        let mut client = Client::connect(front);
        for _ in 0..10 {
            assert_eq!(client.get("right", "/").text(), "hello");
            let refused = client.get("wrong", "/secret");
            assert_eq!((refused.status(), refused.field("x-ringmesh-reason")), (503, Some("upstream_identity")));
        }
        assert_eq!((opened(&here, "right"), opened(&here, "wrong")), (1, 0));
        assert!(app.requests().iter().all(|request| request.head.request().1 == "/"));
        drop(there);
    });
}

#[test]
fn who_agrees_to_channels_and_is_not_whom_the_service_names_gets_nothing() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let wrong = ringmesh_tests::mux::server(
            server_config(&authority.svid("other"), &[ringmesh_tests::mux::NAME]),
            |peer| {
                peer.send(ringmesh_tests::mux::hello(100))?;
                let frame = peer.frame()?;
                panic!("it was sent {frame:?}");
            },
        );
        let right = service(&authority.svid("app"), |_| ok("hello"));
        let keys = Keys { workers: 1, ..Keys::default() };
        let (here, front) = near(driver, &authority, "web", &[wrong.address(), right.address()], keys);
        let mut client = Client::connect(front);
        for _ in 0..10 {
            assert_eq!(client.get("app", "/").text(), "hello");
        }
        let refused = [("side", "outbound"), ("result", "wrong_identity")];
        assert!(here.metrics().sum("ringmesh_tls_handshakes_total", &refused) > 0);
    });
}
