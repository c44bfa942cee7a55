use super::*;
use ringmesh_codec::normalize::unambiguous;
use ringmesh_model::snapshot::{AllowRule, PathMatch};

fn id(name: &str) -> SpiffeId {
    SpiffeId::workload("shop", "default", name).expect("a valid name")
}

fn table() -> Table {
    let rule = |name: &str, from: &[&str], methods: &[&str], paths: &[PathMatch]| AllowRule {
        name: name.into(),
        from: from.iter().map(|name| id(name)).collect(),
        methods: methods.iter().map(|&method| method.into()).collect(),
        paths: paths.to_vec(),
    };
    let policy = snapshot::Policy {
        name: "pay".into(),
        listener: "inbound".into(),
        allow: vec![
            rule("charge", &["checkout"], &["POST"], &[PathMatch::Exact("/charge".into())]),
            rule("read", &["checkout", "audit"], &["GET"], &[PathMatch::Prefix("/receipts".into())]),
            rule("health", &[], &[], &[PathMatch::Exact("/health".into())]),
        ],
    };
    Table::new([&policy].into_iter())
}

fn check(peer: Option<&str>, method: &str, path: &str, expected: Decision<'_>) {
    let peer = peer.map(id);
    let table = table();
    let found = table.authorize(peer.as_ref(), method.as_bytes(), unambiguous(path.as_bytes()).as_deref());
    assert_eq!(found, expected, "{peer:?} {method} {path}");
}

#[test]
fn a_rule_admits_what_all_of_its_parts_match() {
    check(Some("checkout"), "POST", "/charge", Decision::Allow("pay/charge"));
    check(Some("checkout"), "GET", "/charge", Decision::Deny("pay"));
    check(Some("audit"), "POST", "/charge", Decision::Deny("pay"));
    check(Some("audit"), "GET", "/receipts/7", Decision::Allow("pay/read"));
    check(Some("web"), "GET", "/receipts/7", Decision::Deny("pay"));
    check(None, "POST", "/charge", Decision::Deny("pay"));
    check(None, "GET", "/health", Decision::Allow("pay/health"));
}

#[test]
fn a_path_is_compared_as_the_service_will_read_it_and_refused_on_doubt() {
    check(Some("audit"), "GET", "/receipts/../charge", Decision::Deny("pay"));
    check(Some("audit"), "GET", "/x/../receipts/1", Decision::Allow("pay/read"));
    check(Some("audit"), "GET", "/receipts/..%2fcharge", Decision::Deny("pay"));
    check(Some("audit"), "GET", "/receipts/%zz", Decision::Deny("pay"));
}

#[test]
fn without_a_policy_everybody_is_admitted() {
    let table = Table::new(std::iter::empty());
    assert_eq!(table.authorize(None, b"GET", Some(b"/")), Decision::Allow("default"));
    assert_eq!(table.authorize_connection(None), Decision::Allow("default"));
}

#[test]
fn a_policy_without_rules_admits_nobody() {
    let policy = snapshot::Policy { name: "none".into(), listener: "inbound".into(), allow: Vec::new() };
    let table = Table::new([&policy].into_iter());
    assert_eq!(table.authorize(Some(&id("web")), b"GET", Some(b"/")), Decision::Deny("none"));
    assert_eq!(table.authorize_connection(Some(&id("web"))), Decision::Deny("none"));
}

#[test]
fn an_opaque_connection_needs_a_rule_without_methods_and_paths() {
    assert_eq!(table().authorize_connection(Some(&id("checkout"))), Decision::Deny("pay"));
}

#[test]
fn identities_that_the_same_rules_name_share_a_list_and_each_rule_is_there_once() {
    let many: Vec<SpiffeId> = (0..10_000).map(|number| id(&format!("w{number}"))).collect();
    let rule = |name: &str, from: &[SpiffeId]| AllowRule {
        name: name.into(),
        from: from.to_vec(),
        methods: vec!["GET".into()],
        paths: (0..8).map(|path| PathMatch::Exact(format!("/{name}/{path}"))).collect(),
    };
    let twice = [&many[..], &many[9_999..]].concat();
    let allow = ["a", "b", "c", "d", "e"].map(|name| rule(name, &twice)).into_iter();
    let policy = snapshot::Policy {
        name: "p".into(),
        listener: "inbound".into(),
        allow: allow.chain([rule("odd", &many[9_999..])]).collect(),
    };
    let table = Table::new([&policy].into_iter());
    assert_eq!((table.rules.len(), table.lists.len(), table.by_identity.len()), (6, 2, 10_000));
    for (number, path, expected) in [
        (0, "/a/0", Decision::Allow("p/a")),
        (5_000, "/e/7", Decision::Allow("p/e")),
        (9_999, "/e/7", Decision::Allow("p/e")),
        (9_999, "/odd/0", Decision::Allow("p/odd")),
        (9_998, "/odd/0", Decision::Deny("p")),
    ] {
        assert_eq!(table.authorize(Some(&many[number]), b"GET", Some(path.as_bytes())), expected, "{number} {path}");
    }
}
