//! Good configs and the snapshots they make.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use ringmesh_model::config::{self, Config};
use ringmesh_model::delta::Delta;
use ringmesh_model::resolve::{Answers, resolve};
use ringmesh_model::runtime::Role;
use ringmesh_model::service::HostPort;
use ringmesh_model::snapshot::{Identity, Key, Object, Policy, Protocol, Route, RouteRule, Service, Snapshot};

fn parse(text: &str) -> Config {
    config::parse(text, "x.toml").unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn identity() -> Option<Identity> {
    let id = "spiffe://shop/ns/default/sa/web".parse().expect("a SPIFFE ID");
    Some(Identity { id, chain: Vec::new(), key: Vec::new(), bundle: Vec::new(), expires: 0 })
}

fn snapshot(text: &str, answers: &Answers, identity: Option<Identity>) -> Snapshot {
    resolve(&parse(text), answers, identity, 7).unwrap_or_else(|problems| panic!("{problems}\n{text}"))
}

fn service(snapshot: &Snapshot, name: &str) -> Service {
    match &snapshot.objects[&Key::Service(name.into())] {
        Object::Service(service) => Service::clone(service),
        other => panic!("{other:?}"),
    }
}

fn route(snapshot: &Snapshot, name: &str) -> Route {
    match &snapshot.objects[&Key::Route(name.into())] {
        Object::Route(route) => Route::clone(route),
        other => panic!("{other:?}"),
    }
}

fn policy(snapshot: &Snapshot, name: &str) -> Policy {
    match &snapshot.objects[&Key::Policy(name.into())] {
        Object::Policy(policy) => Policy::clone(policy),
        other => panic!("{other:?}"),
    }
}

const ROUTED: &str = r#"
[[listener]]
name = "front"
bind = "127.0.0.1:8000"
[[service]]
name = "shop"
endpoints = ["127.0.0.1:8080"]
[[route]]
hosts = ["shop"]
"#;

/// The names of a route's rules in the order in which they apply.
fn check_order(rules: &[(&str, &str)], expected: &[&str]) {
    let mut text = ROUTED.to_owned();
    for (name, matches) in rules {
        write!(text, "[[route.rule]]\nname = \"{name}\"\nmatch = {{ {matches} }}\nto = \"shop\"\n")
            .expect("into memory");
    }
    let route = route(&snapshot(&text, &Answers::new(), None), "shop");
    let names: Vec<_> = route.rules.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(names, expected, "{rules:?}");
}

#[test]
fn the_rule_that_says_most_comes_first() {
    check_order(&[("prefix", "path_prefix = \"/a/b\""), ("exact", "path = \"/a\"")], &["exact", "prefix"]);
    check_order(
        &[("short", "path_prefix = \"/a\""), ("long", "path_prefix = \"/a/b\""), ("all", "")],
        &["long", "short", "all"],
    );
    check_order(&[("any", "path_prefix = \"/a\""), ("get", "path_prefix = \"/a\", method = \"GET\"")], &["get", "any"]);
    check_order(
        &[
            ("one", "path = \"/a\", headers = { a = \"1\" }"),
            ("two", "path = \"/a\", headers = { a = \"1\", b = \"2\" }"),
            ("get", "path = \"/a\", method = \"GET\""),
        ],
        &["get", "two", "one"],
    );
    check_order(&[("first", "headers = { a = \"1\" }"), ("second", "headers = { b = \"1\" }")], &["first", "second"]);
    check_order(&[("root", "path_prefix = \"/\""), ("get", "method = \"GET\"")], &["get", "root"]);
}

/// Rule names with the services they lead to.
fn targets(rules: &[RouteRule]) -> Vec<(&str, Vec<(&str, u32)>)> {
    let split = |rule: &RouteRule| rule.to.len();
    rules
        .iter()
        .inspect(|rule| assert!(split(rule) > 0))
        .map(|rule| {
            let to = rule.to.iter().map(|target| (target.service.as_str(), target.weight)).collect();
            (rule.name.as_str(), to)
        })
        .collect()
}

#[test]
fn a_route_without_rules_leads_to_the_service_of_its_first_host() {
    let snapshot = snapshot(ROUTED, &Answers::new(), None);
    assert_eq!(targets(&route(&snapshot, "shop").rules), [("default", vec![("shop", 1)])]);
}

#[test]
fn what_no_rule_matches_goes_where_the_route_says() {
    let text = format!(
        "{ROUTED}to = [\"shop\"]\ntimeout = \"3s\"\n[[route.rule]]\nmatch = {{ path = \"/a\" }}\nto = \"shop\"\n\
         [[route.rule]]\nmatch = {{ path = \"/b\" }}\nto = \"shop\"\ntimeout = \"1s\"\n"
    );
    let route = route(&snapshot(&text, &Answers::new(), None), "shop");
    assert_eq!(
        targets(&route.rules),
        [("0", vec![("shop", 1)]), ("1", vec![("shop", 1)]), ("default", vec![("shop", 1)])]
    );
    let timeouts: Vec<_> = route.rules.iter().map(|rule| rule.timeout.map(|timeout| timeout.as_secs())).collect();
    assert_eq!(timeouts, [Some(3), Some(1), Some(3)]);
}

#[test]
fn a_route_with_rules_has_no_rule_that_nobody_wrote() {
    let text = format!("{ROUTED}[[route.rule]]\nmatch = {{ path = \"/a\" }}\nto = \"shop\"\n");
    assert_eq!(targets(&route(&snapshot(&text, &Answers::new(), None), "shop").rules), [("0", vec![("shop", 1)])]);
}

#[test]
fn short_names_are_of_the_own_domain_and_namespace() {
    let text = "
[mesh]
trust_domain = \"shop\"
[workload]
name = \"web\"
identity = { files = \"web\" }
[[listener]]
name = \"in\"
bind = \"127.0.0.1:1\"
mtls = \"strict\"
service = \"a\"
[[service]]
name = \"a\"
peer = \"a\"
endpoints = [\"127.0.0.1:2\"]
[[policy]]
name = \"p\"
listener = \"in\"
allow = [{ from = [\"web\", \"batch/nightly\", \"spiffe://shop/cron\"], paths = [\"/a\", \"/b/*\", \"/*\"] }, {}]
";
    let snapshot = snapshot(text, &Answers::new(), identity());
    assert_eq!(
        service(&snapshot, "a").peer.map(String::from).as_deref(),
        Some("spiffe://shop/ns/default/sa/a"),
        "a peer's short name is completed"
    );
    let policy = policy(&snapshot, "p");
    let from: Vec<_> = policy.allow[0].from.iter().map(|id| id.as_str()).collect();
    assert_eq!(from, ["spiffe://shop/ns/default/sa/web", "spiffe://shop/ns/batch/sa/nightly", "spiffe://shop/cron"]);
    use ringmesh_model::snapshot::PathMatch::{Exact, Prefix};
    assert_eq!(policy.allow[0].paths, [Exact("/a".into()), Prefix("/b".into()), Prefix("/".into())]);
    assert_eq!(policy.allow[1].name, "1");

    let elsewhere = text.replace("name = \"web\"\nidentity", "name = \"web\"\nnamespace = \"team\"\nidentity");
    let mut own = identity();
    own.as_mut().expect("it is there").id = "spiffe://shop/ns/team/sa/web".parse().expect("a SPIFFE ID");
    let snapshot = resolve(&parse(&elsewhere), &Answers::new(), own, 1).expect("the namespace is known");
    assert_eq!(service(&snapshot, "a").peer.map(String::from).as_deref(), Some("spiffe://shop/ns/team/sa/a"));
}

#[test]
fn names_become_the_addresses_that_dns_gave() {
    let text = "
[[service]]
name = \"a\"
endpoints = [\"Db.internal:80\", { address = \"10.0.0.2:80\", zone = \"z\" }, \"gone.internal:80\"]
";
    let config = parse(text);
    let name = |host: &str| HostPort { host: host.to_owned(), port: 80 };
    assert_eq!(config.names().into_iter().collect::<Vec<_>>(), [name("db.internal"), name("gone.internal")]);

    let addresses = |list: &[&str]| list.iter().map(|text| text.parse().expect("an address")).collect();
    let check = |answer: &[&str]| {
        let answers = BTreeMap::from([(name("db.internal"), addresses(answer))]);
        let service = service(&snapshot(text, &answers, None), "a");
        service.endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(check(&["10.0.0.9:80", "10.0.0.1:80"]), ["10.0.0.1:80", "10.0.0.9:80", "10.0.0.2:80"]);
    assert_eq!(check(&["10.0.0.2:80"]), ["10.0.0.2:80"], "no address counts twice");
    assert_eq!(check(&["10.0.0.1:80", "10.0.0.9:80"]), check(&["10.0.0.9:80", "10.0.0.1:80"]), "rotation is no change");
}

#[test]
fn a_service_speaks_what_is_sent_to_it() {
    let text = |protocol: &str, route: &str| {
        format!(
            "[[listener]]\nname = \"raw\"\nbind = \"127.0.0.1:1\"\nprotocol = \"tcp\"\nservice = \"a\"\n\
             [[service]]\nname = \"a\"\nendpoints = [\"a:1\"]\n{protocol}{route}"
        )
    };
    let routed = "[[listener]]\nname = \"front\"\nbind = \"127.0.0.1:2\"\n[[route]]\nhosts = [\"a\"]\n";
    let check = |text: String, expected: Protocol| {
        assert_eq!(service(&snapshot(&text, &Answers::new(), None), "a").protocol, expected, "{text}");
    };
    check(text("", ""), Protocol::Tcp);
    check(text("", routed), Protocol::Http);
    check(text("protocol = \"http\"\n", ""), Protocol::Http);
}

#[test]
fn hosts_and_fields_are_matched_in_lower_case() {
    use ringmesh_model::snapshot::HostPattern::{Any, Exact, Suffix};
    let text = ROUTED.replace("[\"shop\"]", "[\"Shop\", \"*.Shop.Example\", \"*\"]\nto = \"shop\"\n[[route.rule]]\nto = \"shop\"\nmatch = { headers = { X-Tenant = \"Blue\" } }");
    let route = route(&snapshot(&text, &Answers::new(), None), "shop");
    assert_eq!(route.hosts, [Exact("shop".into()), Suffix("shop.example".into()), Any]);
    let header = &route.rules[0].matches.headers[0];
    assert_eq!((header.name.as_str(), header.value.as_str()), ("x-tenant", "Blue"));
}

#[test]
fn a_proxy_with_nothing_on_its_own_machine_is_an_edge() {
    let check = |bind: &str, endpoint: &str, expected: Role| {
        let text = format!(
            "[[listener]]\nname = \"a\"\nbind = \"{bind}\"\nservice = \"b\"\n\
             [[service]]\nname = \"b\"\nendpoints = [\"{endpoint}\"]\n"
        );
        assert_eq!(parse(&text).role(), expected, "{bind} {endpoint}");
    };
    check("0.0.0.0:80", "10.0.0.1:80", Role::Edge);
    check("0.0.0.0:80", "web.internal:80", Role::Edge);
    check("0.0.0.0:80", "127.0.0.1:80", Role::Sidecar);
    check("0.0.0.0:80", "localhost:80", Role::Sidecar);
    check("0.0.0.0:80", "unix:/run/app.sock", Role::Sidecar);
    check("[::1]:80", "10.0.0.1:80", Role::Sidecar);
}

#[test]
fn lines_that_only_moved_are_no_change() {
    let moved = format!(
        "# A comment.\n\n{}",
        ROUTED.replace("name = \"shop\"\nendpoints", "\n\nname = \"shop\" # here\nendpoints")
    );
    assert_eq!(parse(ROUTED), parse(&moved));
    let before = snapshot(ROUTED, &Answers::new(), None);
    assert!(Delta::between(&before, &snapshot(&moved, &Answers::new(), None)).is_empty());
    let reweighted = snapshot(&format!("{ROUTED}timeout = \"1s\"\n"), &Answers::new(), None);
    assert_eq!(Delta::between(&before, &reweighted).put.len(), 1, "only what changed is sent");
}

#[test]
fn paths_are_relative_to_the_files_folder() {
    let text = "[workload]\nname = \"a\"\nidentity = { files = \"keys/a\" }\n";
    let folder =
        |file: &str| config::parse(text, file).expect("valid").identity_folder().map(|path| path.display().to_string());
    assert_eq!(folder("/etc/ringmesh/a.toml").as_deref(), Some("/etc/ringmesh/keys/a"));
    assert_eq!(folder("a.toml").as_deref(), Some("keys/a"));
}

/// A mesh of so many services, each with twenty endpoints, a route and two rules.
fn large(services: usize) -> String {
    let mut text = "[[listener]]\nname = \"out\"\nbind = \"127.0.0.1:1\"\n".to_owned();
    for index in 0..services {
        let endpoints: Vec<_> = (0..20).map(|n| format!("\"10.{}.{}.{n}:80\"", index / 250, index % 250)).collect();
        write!(
            text,
            "[[service]]\nname = \"service-{index}\"\nendpoints = [{}]\nconnect_timeout = \"1s\"\n\
             [[route]]\nhosts = [\"service-{index}\"]\n\
             [[route.rule]]\nmatch = {{ path_prefix = \"/v2\" }}\nto = \"service-{index}\"\n\
             [[route.rule]]\nto = [{{ service = \"service-{index}\", weight = 9 }}]\n",
            endpoints.join(", ")
        )
        .expect("into memory");
    }
    text
}

/// The bound is five times and more what an unoptimized build needs; quadratic work would need minutes.
#[test]
fn ten_thousand_services_are_read_and_resolved_in_time() {
    let text = large(10_000);
    let started = Instant::now();
    let config = parse(&text);
    let read = started.elapsed();
    let snapshot = resolve(&config, &Answers::new(), None, 1).expect("nothing is wrong");
    let resolved = started.elapsed();
    println!("{} MiB: read in {read:?}, resolved in {:?}", text.len() >> 20, resolved - read);
    assert_eq!(snapshot.objects.len(), 20_002);
    assert!(resolved < Duration::from_secs(30), "took {resolved:?}");
}

#[test]
fn ten_thousand_mistakes_are_found_in_time() {
    let text = large(10_000).replace("to = \"service-", "to = \"sevrice-");
    let started = Instant::now();
    let problems = resolve(&parse(&text), &Answers::new(), None, 1).expect_err("no rule leads anywhere");
    assert_eq!(problems.count(), 10_000);
    assert!(started.elapsed() < Duration::from_secs(30), "took {:?}", started.elapsed());
}

#[test]
fn connections_to_endpoints_are_marked_where_others_are_intercepted() {
    use ringmesh_model::intercept::{Account, MARK, Marking};
    use ringmesh_model::resolve::Credentials;
    let text = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"s\"\nintercept = \"outbound\"\n\
                [[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n";
    let with = |text: &str, marking: Marking| {
        resolve(&parse(text), &Answers::new(), Credentials { marking, ..Credentials::default() }, 1)
    };
    let mark = |snapshot: Snapshot| service(&snapshot, "s").mark;
    assert_eq!(mark(with(text, Marking::Granted).expect("valid")), Some(MARK));
    assert_eq!(mark(with(&text.replace("intercept = \"outbound\"\n", ""), Marking::Granted).expect("valid")), None);

    let denied = || Marking::Denied {
        user: vec![Account::Id(1337), Account::Name("proxy".to_owned())],
        group: vec![Account::Id(1338)],
    };
    let problems = with(text, denied()).expect_err("it would call itself").to_string();
    assert!(problems.starts_with("x.toml:5: listener \"a\": `intercept`: the proxy may not mark"), "{problems}");
    assert!(problems.contains("exclude_users = [1337]"), "{problems}");
    for (exclusion, fits) in [
        ("exclude_users = [1337]", true),
        ("exclude_users = [\"proxy\"]", true),
        ("exclude_groups = [1338]", true),
        ("exclude_users = [1338]", false),
        ("exclude_groups = [\"proxy\"]", false),
    ] {
        let found = with(&format!("{text}[intercept]\n{exclusion}\n"), denied());
        assert_eq!(found.is_ok(), fits, "{exclusion}");
        assert!(found.ok().is_none_or(|snapshot| mark(snapshot).is_none()), "{exclusion}");
    }
}
