use super::*;
use ringmesh_codec::normalize::unambiguous;
use ringmesh_model::snapshot::{HeaderMatch, RouteMatch};

struct Request<'a> {
    method: &'a str,
    authority: &'a str,
    path: &'a str,
    fields: &'a [(&'a str, &'a str)],
}

impl Head for Request<'_> {
    fn method(&self) -> &[u8] {
        self.method.as_bytes()
    }

    fn target(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn path(&self) -> &[u8] {
        self.path.as_bytes()
    }

    fn authority(&self) -> Option<&[u8]> {
        Some(self.authority.as_bytes())
    }

    fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|field| field.0.eq_ignore_ascii_case(name)).map(|field| field.1.as_bytes())
    }

    fn for_each_field(&self, visit: &mut dyn FnMut(&[u8], &[u8])) {
        for (name, value) in self.fields {
            visit(name.as_bytes(), value.as_bytes());
        }
    }
}

fn rule(name: &str, matches: RouteMatch) -> Rule {
    let series = Series { index: 0, generation: 1 };
    let to = vec![Target { service: 0, weight: 1, series }];
    Rule { route: "route".into(), name: name.into(), matches, to, total_weight: 1, timeout: None }
}

fn table() -> Table {
    let mut table = Table::default();
    let path = |path| RouteMatch { path, ..RouteMatch::default() };
    let shop = HostPattern::Exact("shop.example".into());
    table.add(&shop, rule("exact", path(PathMatch::Exact("/v2/pay".into()))));
    table.add(&shop, rule("prefix", path(PathMatch::Prefix("/v2".into()))));
    let header = HeaderMatch { name: "x-canary".into(), value: "yes".into() };
    table.add(&shop, rule("header", RouteMatch { headers: vec![header], ..RouteMatch::default() }));
    table.add(&shop, rule("method", RouteMatch { methods: vec!["POST".into()], ..RouteMatch::default() }));
    table.add(&HostPattern::Suffix("shop.example".into()), rule("suffix", RouteMatch::default()));
    table.add(&HostPattern::Suffix("example".into()), rule("short suffix", RouteMatch::default()));
    table.add(&HostPattern::Any, rule("any", path(PathMatch::Prefix("/".into()))));
    table
}

fn check(method: &str, authority: &str, path: &str, fields: &[(&str, &str)], expected: &str) {
    let table = table();
    let found = table
        .find(&Request { method, authority, path, fields }, unambiguous(path.as_bytes()).as_deref())
        .map(|rule| &*rule.name);
    assert_eq!(found, Some(expected), "{method} {authority} {path} {fields:?}");
}

#[test]
fn the_first_rule_of_the_most_specific_host_that_matches_is_taken() {
    check("GET", "shop.example", "/v2/pay", &[], "exact");
    check("GET", "shop.example", "/v2/pay/1", &[], "prefix");
    check("GET", "shop.example", "/v2", &[], "prefix");
    check("GET", "shop.example", "/", &[("X-Canary", "yes")], "header");
    check("POST", "shop.example", "/v20", &[("x-canary", "no")], "method");
    check("GET", "shop.example", "/v20", &[], "short suffix");
    check("GET", "a.shop.example", "/", &[], "suffix");
    check("GET", "a.b.shop.example", "/", &[], "suffix");
    check("GET", "b.example", "/", &[], "short suffix");
    check("GET", "other", "/", &[], "any");
}

#[test]
fn a_path_is_compared_in_its_normal_form_and_one_that_has_none_falls_under_rules_for_every_path() {
    check("GET", "shop.example", "/%762/pay", &[], "exact");
    check("GET", "shop.example", "/x/../v2/pay", &[], "exact");
    check("GET", "shop.example", "/v2/./x", &[], "prefix");
    check("GET", "shop.example", "/v2/%2e%2e/x", &[], "short suffix");
    check("GET", "shop.example", "/v2%2fpay", &[], "short suffix");
    check("GET", "shop.example", "/v2/..;/pay", &[], "short suffix");
    check("GET", "other", "/v2%2fpay", &[], "any");
}

#[test]
fn a_host_is_compared_without_case_port_and_trailing_dot() {
    check("GET", "Shop.Example:8080", "/v2", &[], "prefix");
    check("GET", "shop.example.", "/v2", &[], "prefix");
    check("GET", "[::1]:80", "/v2", &[], "any");
    check("GET", &"a".repeat(300), "/v2", &[], "any");
}

#[test]
fn weights_are_shares() {
    let series = Series { index: 0, generation: 1 };
    let target = |service, weight| Target { service, weight, series };
    let mut rule = rule("split", RouteMatch::default());
    rule.to = vec![target(0, 90), target(1, 0), target(2, 10)];
    rule.total_weight = 100;
    let step = u64::MAX / 1000;
    let mut counts = [0u64; 3];
    for point in 0..1000 {
        counts[rule.pick(|| point * step).service as usize] += 1;
    }
    assert!(counts[0].abs_diff(900) <= 1 && counts[1] == 0 && counts[2].abs_diff(100) <= 1, "{counts:?}");
    assert_eq!(rule.pick(|| u64::MAX).service, 2);
}
