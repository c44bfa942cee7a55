//! Who may call what: allow rules by identity, method and path, and the rule that decided in the access log.

use ringmesh_tests::certificates::Authority;
use ringmesh_tests::tls::{Stream, client_config, connect};
use ringmesh_tests::{Client, Service, on_both_drivers, ports};

use crate::support::{DOMAIN, identity, ringmesh, strict};

const POLICIES: &str = "
[[policy]]
name = \"shop\"
listener = \"inbound\"
[[policy.allow]]
name = \"charge\"
from = [\"checkout\"]
methods = [\"POST\"]
paths = [\"/charge\", \"/items/*\"]
[[policy.allow]]
name = \"health\"
methods = [\"GET\"]
paths = [\"/health\"]
[[policy]]
name = \"audit\"
listener = \"inbound\"
[[policy.allow]]
name = \"all\"
from = [\"batch/nightly\", \"spiffe://mesh.test/cron\"]
";

#[test]
fn what_a_rule_allows_passes_and_everything_else_gets_403() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("done");
        let payments = strict(driver, &authority, "payments", app.address(), "", POLICIES);
        let client = |id: &str| -> Client<Stream> {
            let svid = authority.leaf(&[id], ringmesh_tests::certificates::Validity::Now);
            connect(payments.inbound, &client_config(Some(&svid))).unwrap()
        };
        let checkout = authority.id("checkout");
        let web = authority.id("web");
        let nightly = "spiffe://mesh.test/ns/batch/sa/nightly".to_owned();
        let cron = "spiffe://mesh.test/cron".to_owned();
        let cases = [
            (&checkout, "POST /charge", Some("shop/charge")),
            (&checkout, "POST /charge?amount=1", Some("shop/charge")),
            (&checkout, "POST /items", Some("shop/charge")),
            (&checkout, "POST /items/7/x", Some("shop/charge")),
            (&checkout, "POST /%63harge", Some("shop/charge")),
            (&checkout, "POST /x/../charge", Some("shop/charge")),
            (&checkout, "GET /charge", None),
            (&checkout, "post /charge", None),
            (&checkout, "POST /charge/", None),
            (&checkout, "POST /CHARGE", None),
            (&checkout, "POST //charge", None),
            (&checkout, "POST /itemsx", None),
            (&checkout, "POST /items/../admin", None),
            (&checkout, "POST /items/%2e%2e/admin", None),
            (&checkout, "POST /items/..%2fadmin", None),
            (&checkout, "POST /items/..;x/admin", None),
            (&checkout, "POST /items\\..\\admin", None),
            (&checkout, "DELETE /admin", None),
            (&web, "POST /charge", None),
            (&web, "GET /health", Some("shop/health")),
            (&web, "POST /health", None),
            (&nightly, "DELETE /admin", Some("audit/all")),
            (&cron, "GET /anything", Some("audit/all")),
        ];
        let (mut allowed, mut logged) = (0, Vec::new());
        for (id, request, rule) in cases {
            let mut client = client(id);
            client.send(format!("{request} HTTP/1.1\r\nHost: app\r\nX-Case: 1\r\nContent-Length: 0\r\n\r\n"));
            let response = client.response();
            match rule {
                Some(_) => assert_eq!(response.status(), 200, "{id} {request}"),
                // What no rule could be about is refused before any rule is asked.
                None if response.status() == 400 => assert!(request.contains('\\'), "{id} {request}"),
                None => {
                    assert_eq!(response.status(), 403, "{id} {request}");
                    assert_eq!(response.field("x-ringmesh-reason"), Some("policy_denied"), "{id} {request}");
                }
            }
            allowed += usize::from(rule.is_some());
            if response.status() != 400 {
                logged.push((id, request, rule.unwrap_or("audit,shop"), response.status()));
            }
        }
        for (id, request, decided_by, status) in logged {
            let (method, target) = request.split_once(' ').unwrap();
            let path = target.split('?').next().unwrap();
            let line = payments.proxy.wait_for_access(request, |line| {
                line["method"] == method && line["path"] == path && line["peer"] == id.as_str()
            });
            assert_eq!((&line["decided_by"], &line["status"]), (&decided_by.into(), &status.into()), "{line}");
        }
        assert_eq!(app.requests().len(), allowed, "nothing that was refused reached the service");
    });
}

#[test]
fn a_refused_request_leaves_the_connection_usable() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("done");
        let payments = strict(driver, &authority, "payments", app.address(), "", POLICIES);
        let mut client = connect(payments.inbound, &client_config(Some(&authority.svid("checkout")))).unwrap();
        for _ in 0..10 {
            client.send("GET /secret HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(client.response().status(), 403);
            client.send("POST /charge HTTP/1.1\r\nHost: app\r\nContent-Length: 2\r\n\r\nhi");
            assert_eq!(client.response().status(), 200);
        }
        payments.proxy.wait_for_metric("ringmesh_request_outcome_total", &[("reason", "policy_denied")], 10);
    });
}

#[test]
fn without_a_policy_every_identity_of_the_trust_domain_may_call_and_with_an_empty_one_nobody() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("done");
        let open = strict(driver, &authority, "payments", app.address(), "", "");
        let config = client_config(Some(&authority.svid("anybody")));
        assert_eq!(connect(open.inbound, &config).unwrap().get("app", "/").status(), 200);

        let nobody = "[[policy]]\nname = \"closed\"\nlistener = \"inbound\"\nallow = []\n";
        let closed = strict(driver, &authority, "payments", app.address(), "", nobody);
        assert_eq!(connect(closed.inbound, &config).unwrap().get("app", "/").status(), 403);
    });
}

#[test]
fn a_policy_that_is_edited_holds_for_the_next_request_on_an_open_connection() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::saying("done");
        let mut payments = strict(driver, &authority, "payments", app.address(), "", "");
        let mut client = connect(payments.inbound, &client_config(Some(&authority.svid("web")))).unwrap();
        assert_eq!(client.get("app", "/").status(), 200);
        let config = |policy: &str| {
            format!(
                "{}[[listener]]\nname = \"inbound\"\nbind = \"{}\"\nmtls = \"strict\"\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n{policy}",
                identity("payments"),
                payments.inbound,
                app.address()
            )
        };
        let closed = config("[[policy]]\nname = \"closed\"\nlistener = \"inbound\"\nallow = []\n");
        let open = config("");
        for _ in 0..3 {
            payments.proxy.reconfigure(&closed);
            assert_eq!(client.get("app", "/").status(), 403);
            payments.proxy.reconfigure(&open);
            assert_eq!(client.get("app", "/").status(), 200);
        }
    });
}

#[test]
fn an_opaque_connection_that_no_rule_allows_is_closed() {
    on_both_drivers(|driver| {
        let authority = Authority::new(DOMAIN);
        let app = Service::conversing(|talk| {
            let bytes = talk.exactly(4)?;
            talk.send(bytes)
        });
        let inbound = ports::free();
        let mut proxy = ringmesh(driver)
            .config(format!(
                "{}[[listener]]\nname = \"in\"\nbind = \"{inbound}\"\nprotocol = \"tcp\"\nmtls = \"strict\"\nservice = \"app\"\n\
                 [[service]]\nname = \"app\"\nendpoints = [\"{}\"]\n\
                 [[policy]]\nname = \"cache\"\nlistener = \"in\"\nallow = [{{ from = [\"web\"] }}]\n",
                identity("cache"),
                app.address()
            ))
            .prepare();
        authority.svid("cache").write(&proxy.folder().join("svid"));
        proxy.run();
        let mut web = connect(inbound, &client_config(Some(&authority.svid("web")))).unwrap();
        assert_eq!(web.send("ping").exactly(4).unwrap(), b"ping");
        let mut other = connect(inbound, &client_config(Some(&authority.svid("other")))).unwrap();
        let _ = other.try_send("ping");
        assert!(other.exactly(1).is_err(), "it is closed without a byte");
        let labels = [("reason", "policy_denied")];
        proxy.wait_for_metric("ringmesh_listener_connections_outcome_total", &labels, 1);
        let line = proxy.wait_for_access("of the refusal", |line| line["reason"] == "policy_denied");
        assert_eq!((&line["event"], &line["decided_by"]), (&"connection".into(), &"cache".into()), "{line}");
        assert_eq!(app.accepted(), 1);
    });
}
