//! Bad configs and what is said about them, word for word: the message is the product.

use std::fs;

use ringmesh_model::config;
use ringmesh_model::resolve::{Answers, resolve};
use ringmesh_model::snapshot::Identity;

/// A config and the lines that reading, or else resolving it says about it.
fn check(text: &str, expected: &[&str]) {
    let text = text.trim_start_matches('\n');
    assert_eq!(problems(text, None), expected, "\n{text}");
}

fn problems(text: &str, identity: Option<Identity>) -> Vec<String> {
    let found = config::parse(text, "x.toml").and_then(|config| resolve(&config, &Answers::new(), identity, 1));
    found.err().map(|problems| problems.iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn identity(id: &str) -> Option<Identity> {
    let id = id.parse().expect("a SPIFFE ID");
    Some(Identity { id, chain: Vec::new(), key: Vec::new(), bundle: Vec::new(), expires: 0 })
}

/// A config that is right, to which tests add what is wrong.
const GOOD: &str = r#"
[[listener]]
name = "front"
bind = "127.0.0.1:8000"
[[service]]
name = "shop"
endpoints = ["127.0.0.1:8080"]
[[route]]
hosts = ["shop"]
"#;

/// Adds `text` to the good config; line numbers go on at 9.
fn check_added(text: &str, expected: &[&str]) {
    check(&format!("{}{}", GOOD.trim_start(), text.trim_start_matches('\n')), expected);
}

#[test]
fn a_good_config_has_no_problems() {
    check(GOOD, &[]);
    check("", &[]);
}

#[test]
fn what_is_no_toml_is_refused_with_its_line() {
    check("[mesh\n", &["x.toml:1: not TOML: unclosed table, expected `]`"]);
    check("[mesh]\ntrust_domain = \"a\"\ntrust_domain = \"b\"\n", &["x.toml:3: not TOML: duplicate key"]);
    check("[mesh]\ntrust_domain = \"a\n", &["x.toml:2: not TOML: invalid basic string, expected `\"`"]);
    let deep = format!("x = {}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert_eq!(problems(&deep, None).len(), 1, "nesting has a bound, and is told once");
}

#[test]
fn a_protocol_by_the_name_that_others_give_it_is_told_in_our_words() {
    let listener = |protocol: &str| {
        format!("[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:80\"\nprotocol = \"{protocol}\"\nservice = \"s\"\n")
            + "[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
    };
    for (word, meaning) in [
        // Never plain `http` alone, which is what the nearest word would make of it.
        ("https", "; write `http`, and `tls` or `mtls = \"strict\"` beside it"),
        ("gRPC", "; gRPC is HTTP/2: write `http`, which takes both versions, or `http2`"),
        ("h2c", "; write `http2`, or `http` for both versions"),
        ("websocket", "; it begins as a request: write `http`"),
        ("htpp", "; did you mean `http`?"),
    ] {
        let expected = format!("x.toml:4: listener \"a\": `protocol`: unknown value \"{word}\"{meaning}");
        check(&listener(word), &[&expected]);
    }
    let service = |keys: &str| format!("[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n{keys}\n");
    for (word, meaning) in [
        ("https", "write `http`; TLS to endpoints is mutual, and `peer` says with whom"),
        ("tls", "write `http`, `http2` or `tcp`; TLS to endpoints is mutual, and `peer` says with whom"),
        ("grpc", "gRPC is HTTP/2: write `http2`"),
        ("h2", "write `http2`"),
    ] {
        let expected = format!("x.toml:4: service \"s\": `protocol`: unknown value \"{word}\"; {meaning}");
        check(&service(&format!("protocol = \"{word}\"")), &[&expected]);
    }
    check(
        &service("health_check = { kind = \"https\", path = \"/\" }"),
        &[
            "x.toml:4: service \"s\": `health_check.kind`: unknown value \"https\"; write `http`; endpoints are asked as they are called, with mutual TLS where the service has a `peer`",
        ],
    );
}

#[test]
fn what_is_said_of_requests_where_there_are_none_is_refused() {
    let config = |protocol: &str, keys: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:80\"\nprotocol = \"{protocol}\"\nservice = \"s\"\n{keys}\n\
             [[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
        )
    };
    for (key, value) in [
        ("grpc_web", "true"),
        ("connect", "\"terminate\""),
        ("upgrade", "[\"websocket\"]"),
        ("forwarded", "{ trust = [\"10.0.0.0/8\"] }"),
        ("via", "\"edge\""),
    ] {
        let keys = format!("{key} = {value}");
        for protocol in ["tcp", "tls"] {
            let expected = format!(
                "x.toml:6: listener \"a\": `{key}`: has no effect: with protocol = \"{protocol}\" no request is looked at; leave it out"
            );
            check(&config(protocol, &keys), &[&expected]);
        }
        for protocol in ["http", "http2", "detect"] {
            check(&config(protocol, &keys), &[]);
        }
    }
    check(
        &config("tcp", "grpc_web = false\nconnect = \"off\"\nupgrade = \"off\"\nforwarded = \"off\"\nvia = \"off\""),
        &[],
    );
}

#[test]
fn an_unknown_key_gets_the_nearest_right_one() {
    let service = |line: &str| format!("[[service]]\nname = \"payments\"\n{line}\n");
    check(
        &service("endpoint = [\"10.0.0.7:80\"]"),
        &["x.toml:3: service \"payments\": unknown key `endpoint`; did you mean `endpoints`?"],
    );
    check(
        &service("endpoints = [{ adress = \"10.0.0.7:80\" }]"),
        &["x.toml:3: service \"payments\": `endpoints[0]`: unknown key `adress`; did you mean `address`?"],
    );
    check_added(
        "
[[listener]]
name = \"in\"
port = 80
service = \"shop\"
timeout = \"1s\"
mtsl = \"strict\"
level = \"info\"
[workload]
colour = \"red\"
[[route.rule]]
match = { prefix = \"/a\" }
to = \"shop\"
[[services]]
name = \"a\"
",
        &[
            "x.toml:11: listener \"in\": unknown key `port`; did you mean `bind`?",
            "x.toml:13: listener \"in\": unknown key `timeout`; did you mean `request_timeout`?",
            "x.toml:14: listener \"in\": unknown key `mtsl`; did you mean `mtls`?",
            "x.toml:15: listener \"in\": unknown key `level`; it belongs in [log]",
            "x.toml:17: [workload]: unknown key `colour`; expected one of `name`, `namespace`, `id`, `instance`, `identity`",
            "x.toml:19: route \"shop\": `rule[0].match`: unknown key `prefix`; did you mean `path_prefix`?",
            "x.toml:21: unknown section `services`; did you mean `service`?",
        ],
    );
    check(
        "[[route]]\nhosts = [\"a\"]\nmatch = { path = \"/\" }\n",
        &["x.toml:3: route \"a\": unknown key `match`; it belongs in [[route.rule]]"],
    );
}

#[test]
fn what_a_listener_does_as_a_hop_is_told_with_its_line() {
    let listener = |line: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"s\"\n{line}\n[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
        )
    };
    for good in [
        "upgrade = \"off\"",
        "upgrade = [\"WebSocket\", \"irc/6.9\"]",
        "connect = \"terminate\"",
        "forwarded = \"off\"",
        "forwarded = {}",
        "forwarded = { trust = [\"10.0.0.0/8\", \"::1\"], write = \"none\" }",
        "via = \"off\"",
        "via = \"edge-1\"",
        "grpc_web = true",
    ] {
        check(&listener(good), &[]);
    }
    for (line, told) in [
        ("upgrade = []", "`upgrade`: the list is empty; write \"off\" for none"),
        (
            "upgrade = [\"websocket\", \"H2C\"]",
            "`upgrade[1]`: an upgrade to \"H2C\" would carry requests past the proxy; it is never passed on",
        ),
        ("upgrade = [\"a b\"]", "`upgrade[0]`: expected a protocol such as \"websocket\", found \"a b\""),
        ("upgrade = [\"a\", \"A\"]", "`upgrade[1]`: a is listed twice"),
        ("connect = \"on\"", "`connect`: unknown value \"on\"; expected one of `off`, `forward`, `terminate`"),
        ("tunnel_idle_timeout = \"1ms\"", "`tunnel_idle_timeout`: must be 10ms to 7d, found 1ms"),
        (
            "forwarded = \"on\"",
            "`forwarded`: expected \"off\", or a table such as { trust = [\"10.0.0.0/8\"], write = \"forwarded\" }, found string \"on\"",
        ),
        (
            "forwarded = { trust = [\"10.0.0.1/8\"] }",
            "`forwarded.trust[0]`: \"10.0.0.1/8\" is no network: it has bits behind its prefix; write \"10.0.0.0/8\" or \"10.0.0.1\"",
        ),
        ("forwarded = { trust = [] }", "`forwarded.trust`: the list is empty; leave it out to believe nobody"),
        (
            "forwarded = { write = \"xff\" }",
            "`forwarded.write`: unknown value \"xff\"; expected one of `x-forwarded`, `forwarded`, `both`, `none`",
        ),
        (
            "via = \"a b\"",
            "`via`: expected a name of at most 64 letters, digits, `.`, `-` and `_`, or \"off\", found \"a b\"",
        ),
    ] {
        check(&listener(line), &[format!("x.toml:5: listener \"a\": {told}").as_str()]);
    }
}

#[test]
fn a_listener_has_one_kind_of_tls_and_whole_certificates() {
    let listener = |tls: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"s\"\n{tls}\n[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
        )
    };
    check(
        &listener("tls = \"strict\""),
        &[
            "x.toml:5: listener \"a\": `tls`: expected a table such as { certificate = \"shop.pem\", key = \"shop.key\" }, or a list of them, found string \"strict\"",
        ],
    );
    check(
        &listener("tls = []"),
        &["x.toml:5: listener \"a\": `tls`: the list is empty; leave `tls` out for plain connections"],
    );
    check(
        &listener("tls = { cert = \"a.pem\" }"),
        &[
            "x.toml:5: listener \"a\": `tls`: `key` is missing; add for example `key = \"shop.key\"`",
            "x.toml:5: listener \"a\": `tls`: unknown key `cert`; did you mean `certificate`?",
        ],
    );
    check(
        &listener("mtls = \"strict\"\ntls = { certificate = \"a.pem\", key = \"a.key\" }"),
        &[
            "x.toml:5: listener \"a\": `mtls`: \"strict\" needs an identity; add `identity = { files = \"DIR\" }` to [workload]",
            "x.toml:5: listener \"a\": `mtls`: a listener has either `mtls = \"strict\"` or `tls`: the first shows the SVID and demands the peer's",
            "x.toml:6: listener \"a\": `tls`: certificate a.pem is not loaded",
        ],
    );
}

#[test]
fn what_is_said_to_clients_of_everywhere_fits_the_listener() {
    let listener = |keys: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\n{keys}\n[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
        )
    };
    check(&listener("redirect = \"https\""), &[]);
    check(&listener("redirect = { port = 8443, status = 301 }"), &[]);
    check(
        &listener("redirect = \"http\""),
        &[
            "x.toml:4: listener \"a\": `redirect`: expected \"https\", or a table such as { port = 8443 }, found \"http\"",
        ],
    );
    check(
        &listener("redirect = { status = 302 }"),
        &[
            "x.toml:4: listener \"a\": `redirect.status`: expected 308, which keeps the method, or 301, which old clients know, found \"302\"",
        ],
    );
    check(
        &listener("redirect = \"https\"\nservice = \"s\""),
        &[
            "x.toml:4: listener \"a\": `redirect`: a listener that redirects forwards nothing: leave `service` out, or put it on the listener with `tls`",
        ],
    );
    check(
        &listener("redirect = \"https\"\nprotocol = \"tcp\""),
        &[
            "x.toml:4: listener \"a\": `redirect`: only requests can be redirected, and this listener's protocol is \"tcp\"",
        ],
    );
    check(
        &format!("{}[[route]]\nhosts = [\"s\"]\nlisteners = [\"a\"]\n", listener("redirect = \"https\"")),
        &["x.toml:10: route \"s\": `listeners[0]`: listener \"a\" redirects everything, so no route applies there"],
    );
    check(
        &format!("{}[[route]]\nhosts = [\"s\"]\n", listener("redirect = \"https\"")),
        &["x.toml:9: route \"s\": no http listener without a `service` of its own is left for this route"],
    );
    check(
        &listener("service = \"s\"\nhsts = \"365d\"\ntls_min_version = \"1.2\""),
        &[
            "x.toml:5: listener \"a\": `hsts`: is for a listener with `tls`: browsers believe it from nobody else (RFC 6797 section 8.1)",
            "x.toml:6: listener \"a\": `tls_min_version`: is for a listener with `tls`; `mtls = \"strict\"` speaks TLS 1.3 alone",
        ],
    );
    check(
        &listener("service = \"s\"\nhsts = { max_age = \"30d\", include_subdomains = true, preload = true }"),
        &[
            "x.toml:5: listener \"a\": `hsts.preload`: browsers' lists take only `include_subdomains = true` and at least 365d of `max_age`",
        ],
    );
    check(
        &listener("service = \"s\"\nhsts = { preload = true }"),
        &["x.toml:5: listener \"a\": `hsts`: `max_age` is missing; add for example `max_age = \"365d\"`"],
    );
    check(
        &listener("service = \"s\"\nhsts = \"4000d\""),
        &["x.toml:5: listener \"a\": `hsts`: must be 0s to 3650d, found 4000d"],
    );
    check(
        &listener("service = \"s\"\ntls_min_version = \"1.1\""),
        &["x.toml:5: listener \"a\": `tls_min_version`: unknown value \"1.1\"; did you mean `1.2`?"],
    );
    check(
        &listener("service = \"s\"\nmax_connections_per_source = 0"),
        &["x.toml:5: listener \"a\": `max_connections_per_source`: must be 1 to 1000000, found 0"],
    );
}

#[test]
fn proxies_are_named_by_networks_that_can_be_theirs() {
    let listener = |bind: &str, keys: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"{bind}\"\nservice = \"s\"\n{keys}\n[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\n"
        )
    };
    let ip = |keys: &str| listener("127.0.0.1:1", keys);
    for right in
        ["from = [\"10.0.0.0/8\", \"::1\", \"fd00::/8\", \"0.0.0.0/0\"]", "from = [\"::/0\"], others = \"serve\""]
    {
        check(&ip(&format!("proxy_protocol = {{ {right} }}")), &[]);
    }
    check(&listener("unix:/run/a.sock", "proxy_protocol = { from = [\"unix\"] }"), &[]);
    check(
        &ip("proxy_protocol = \"v2\""),
        &[
            "x.toml:5: listener \"a\": `proxy_protocol`: expected a table such as { from = [\"10.0.0.0/8\"] }, found string \"v2\"",
        ],
    );
    check(
        &ip("proxy_protocol = {}"),
        &["x.toml:5: listener \"a\": `proxy_protocol`: `from` is missing; add for example `from = [\"10.0.0.0/8\"]`"],
    );
    check(
        &ip("proxy_protocol = { from = [] }"),
        &[
            "x.toml:5: listener \"a\": `proxy_protocol.from`: the list is empty; list the networks of your proxies, or leave `proxy_protocol` out",
        ],
    );
    check(
        &ip(
            "proxy_protocol = { from = [\"10.0.0.0/33\", \"10.1.0.0/8\", \"lb.internal\", \"::1\", \"::1\"], others = \"allow\" }",
        ),
        &[
            "x.toml:5: listener \"a\": `proxy_protocol.from[0]`: expected a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an address such as \"::1\", found \"10.0.0.0/33\"",
            "x.toml:5: listener \"a\": `proxy_protocol.from[1]`: \"10.1.0.0/8\" is no network: it has bits behind its prefix; write \"10.0.0.0/8\" or \"10.1.0.0\"",
            "x.toml:5: listener \"a\": `proxy_protocol.from[2]`: expected a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an address such as \"::1\", found \"lb.internal\"",
            "x.toml:5: listener \"a\": `proxy_protocol.from[4]`: ::1 is listed twice",
            "x.toml:5: listener \"a\": `proxy_protocol.others`: unknown value \"allow\"; expected `refuse` or `serve`",
        ],
    );
    check(
        &ip("proxy_protocol = { from = [\"unix\"] }"),
        &[
            "x.toml:5: listener \"a\": `proxy_protocol.from`: \"unix\" never connects: only clients of a Unix socket are \"unix\"; write their network",
        ],
    );
    check(
        &listener("unix:/run/a.sock", "proxy_protocol = { from = [\"127.0.0.1\"] }"),
        &[
            "x.toml:5: listener \"a\": `proxy_protocol.from`: \"127.0.0.1\" never connects: clients of a Unix socket have no IP addresses; write \"unix\"",
        ],
    );
    let many: Vec<String> = (0..257).map(|number| format!("\"10.0.{}.{}\"", number / 256, number % 256)).collect();
    check(
        &ip(&format!("proxy_protocol = {{ from = [{}] }}", many.join(", "))),
        &["x.toml:5: listener \"a\": `proxy_protocol`: is a list of 257; at most 256 are possible"],
    );
    check(
        "[[service]]\nname = \"s\"\nendpoints = [\"10.0.0.1:80\"]\nproxy_protocol = \"on\"\n",
        &["x.toml:4: service \"s\": `proxy_protocol`: unknown value \"on\"; expected `v1` or `v2`"],
    );
}

#[test]
fn a_missing_key_is_named_with_an_example() {
    check(
        "[[listener]]\n\n[[service]]\n[[route]]\n[[policy]]\n[workload]\nidentity = {}\n",
        &[
            "x.toml:1: [[listener]]: `name` is missing; add for example `name = \"inbound\"`",
            "x.toml:1: [[listener]]: `bind` is missing; add for example `bind = \"127.0.0.1:8080\"`",
            "x.toml:3: [[service]]: `name` is missing; add for example `name = \"payments\"`",
            "x.toml:3: [[service]]: `endpoints` is missing; add for example `endpoints = [\"10.0.0.7:8080\"]`",
            "x.toml:4: [[route]]: `hosts` is missing; add for example `hosts = [\"payments\"]`",
            "x.toml:5: [[policy]]: `name` is missing; add for example `name = \"only-web\"`",
            "x.toml:5: [[policy]]: `listener` is missing; add for example `listener = \"inbound\"`",
            "x.toml:5: [[policy]]: `allow` is missing; add for example `allow = [{ from = [\"web\"] }]`",
            "x.toml:7: [workload]: `identity`: `files` is missing; add for example `files = \"/etc/ringmesh/shop\"`",
        ],
    );
    check(
        "[workload]\nidentity = { files = \"x\" }\n",
        &["x.toml:1: [workload]: `name` is missing; add for example `name = \"checkout\"`"],
    );
}

#[test]
fn a_wrong_type_says_what_was_expected_and_found() {
    check(
        "
[[service]]
name = \"a\"
endpoints = \"10.0.0.1:80\"
connect_timeout = 250
connect_retries = \"two\"
balance = 3
max_in_flight = 2.5
[[listener]]
name = 1
bind = [\"127.0.0.1:80\"]
mtls = true
[log]
access = \"yes\"
[runtime]
workers = [1]
",
        &[
            "x.toml:3: service \"a\": `endpoints`: expected a list such as [\"10.0.0.7:8080\"], or \"original_destination\", found string \"10.0.0.1:80\"",
            "x.toml:4: service \"a\": `connect_timeout`: expected a duration such as \"250ms\", found integer 250",
            "x.toml:5: service \"a\": `connect_retries`: expected a whole number, found string \"two\"",
            "x.toml:6: service \"a\": `balance`: expected `least_request` or `round_robin`, found integer 3",
            "x.toml:7: service \"a\": `max_in_flight`: expected a whole number, found float 2.5",
            "x.toml:9: [[listener]]: `name`: expected a name, found integer 1",
            "x.toml:10: [[listener]]: `bind`: expected an address such as \"127.0.0.1:8080\", \"[::1]:8080\" or \"unix:/run/shop.sock\", found a list",
            "x.toml:11: [[listener]]: `mtls`: expected `off` or `strict`, found boolean true",
            "x.toml:13: [log]: `access`: expected true or false, found string \"yes\"",
            "x.toml:15: [runtime]: `workers`: expected \"auto\", \"cores\" or a whole number, found a list",
        ],
    );
}

#[test]
fn single_and_double_brackets_are_told_apart() {
    check(
        "[service]\nname = \"a\"\n[[mesh]]\ntrust_domain = \"a\"\n[[route]]\nhosts = [\"a\"]\n[route.rule]\nto = \"a\"\n",
        &[
            "x.toml:1: `service`: write [[service]]",
            "x.toml:3: `mesh`: write [mesh]",
            "x.toml:7: route \"a\": `rule`: write [[route.rule]]",
        ],
    );
    check(
        "admin = 3\nlistener = 4\n",
        &["x.toml:1: `admin`: write [admin]", "x.toml:2: `listener`: write [[listener]]"],
    );
}

#[test]
fn units_are_strict() {
    check(
        "
[[service]]
name = \"a\"
endpoints = [\"10.0.0.1:80\"]
connect_timeout = \"1.5s\"
idle_timeout = \"30\"
[[listener]]
name = \"b\"
bind = \"127.0.0.1:80\"
service = \"a\"
max_header_bytes = \"64KB\"
max_headers = -1
max_connections = 0
header_timeout = \"1ms\"
idle_timeout = \"2 min\"
request_timeout = \"none\"
",
        &[
            "x.toml:4: service \"a\": `connect_timeout`: expected a duration such as \"250ms\", found \"1.5s\": fractions are not allowed; use a smaller unit",
            "x.toml:5: service \"a\": `idle_timeout`: expected a duration such as \"250ms\", found \"30\": the unit is missing; one of ns, us, ms, s, m, h, d",
            "x.toml:10: listener \"b\": `max_header_bytes`: expected a size such as \"64KiB\", found \"64KB\": unknown unit `KB`; did you mean `KiB`?",
            "x.toml:11: listener \"b\": `max_headers`: must be 1 to 128, found -1",
            "x.toml:12: listener \"b\": `max_connections`: must be 1 to 4294967295, found 0",
            "x.toml:13: listener \"b\": `header_timeout`: must be 10ms to 7d, found 1ms",
            "x.toml:14: listener \"b\": `idle_timeout`: expected a duration such as \"250ms\", found \"2 min\": unknown unit ` min`; did you mean `m`?",
            "x.toml:15: listener \"b\": `request_timeout`: expected a duration such as \"250ms\", or \"off\", found \"none\"",
        ],
    );
}

#[test]
fn words_are_corrected() {
    check(
        "[runtime]\ndriver = \"uring\"\nworkers = \"all\"\npin = \"core\"\n[log]\nlevel = \"verbose\"\n",
        &[
            "x.toml:2: [runtime]: `driver`: unknown value \"uring\"; did you mean `io_uring`?",
            "x.toml:3: [runtime]: `workers`: expected \"auto\", \"cores\" or a whole number, found \"all\"",
            "x.toml:4: [runtime]: `pin`: unknown value \"core\"; did you mean `cores`?",
            "x.toml:6: [log]: `level`: unknown value \"verbose\"; expected one of `off`, `error`, `warn`, `info`, `debug`, `trace`",
        ],
    );
    check("[runtime]\nworkers = 0\n", &["x.toml:2: [runtime]: `workers`: must be 1 to 240, found 0"]);
}

#[test]
fn addresses_are_complete() {
    let expected = "expected an endpoint such as \"10.0.0.7:8080\", \"payments.local:8080\" or \"unix:/run/shop.sock\"";
    let message = |index: usize, found: &str| {
        format!("x.toml:3: service \"a\": `endpoints[{index}]`: {expected}, found \"{found}\"")
    };
    check(
        "[[service]]\nname = \"a\"\nendpoints = [\"10.0.0.1\", \"10.0.0.1:0\", \"10.0.0:80\", \"a:b\", \"http://a:80\", \"unix:run/x\", \"10.0.0.2:80\", \"10.0.0.2:80\"]\n",
        &[
            &message(0, "10.0.0.1"),
            &message(1, "10.0.0.1:0"),
            &message(2, "10.0.0:80"),
            &message(3, "a:b"),
            &message(4, "http://a:80"),
            "x.toml:3: service \"a\": `endpoints[5]`: path \"run/x\" must be absolute",
            "x.toml:3: service \"a\": `endpoints[7]`: 10.0.0.2:80 is listed twice",
        ],
    );
    check(
        "[[listener]]\nname = \"a\"\nbind = \"localhost:80\"\n",
        &[
            "x.toml:3: listener \"a\": `bind`: expected an address such as \"127.0.0.1:8080\", \"[::1]:8080\" or \"unix:/run/shop.sock\", found \"localhost:80\"",
        ],
    );
}

#[test]
fn an_empty_list_is_never_taken_for_everybody() {
    check(
        "
[[service]]
name = \"a\"
endpoints = []
[[route]]
hosts = []
listeners = []
[[policy]]
name = \"p\"
listener = \"b\"
allow = [{ from = [], methods = [], paths = [] }]
",
        &[
            "x.toml:3: service \"a\": `endpoints`: the list is empty; list at least one address",
            "x.toml:5: [[route]]: `hosts`: the list is empty; write [\"*\"] for any host",
            "x.toml:6: [[route]]: `listeners`: the list is empty; leave it out for all listeners",
            "x.toml:10: policy \"p\": `allow[0].from`: the list is empty; that could mean nobody or everybody; leave the key out for any",
            "x.toml:10: policy \"p\": `allow[0].methods`: the list is empty; leave it out for any method",
            "x.toml:10: policy \"p\": `allow[0].paths`: the list is empty; that could mean nobody or everybody; leave the key out for any",
        ],
    );
}

#[test]
fn a_match_that_cannot_be_is_refused() {
    let rule = |matches: &str| format!("[[route.rule]]\nto = \"shop\"\nmatch = {{ {matches} }}\n");
    let check_match = |matches: &str, field: &str, expected: &str| {
        check_added(&rule(matches), &[&format!("x.toml:11: route \"shop\": `rule[0].match{field}`: {expected}")]);
    };
    check_match("path = \"v2\"", ".path", "path \"v2\" never matches: a path begins with `/`");
    check_match("path = \"/a?b=c\"", ".path", "path \"/a?b=c\" never matches: the query is not part of the path");
    check_match(
        "path = \"/a/../b\"",
        ".path",
        "path \"/a/../b\" never matches: `.` and `..` are resolved before paths are compared",
    );
    check_match(
        "path = \"/a b\"",
        ".path",
        "path \"/a b\" never matches: such characters are percent-encoded in requests",
    );
    check_match(
        "path_prefix = \"/a/*\"",
        ".path_prefix",
        "path \"/a/*\" never matches: `*` may only be the end of a policy's path, as `/*`",
    );
    check_match("path = \"/a\", path_prefix = \"/b\"", "", "`path` and `path_prefix` exclude each other; keep one");
    check_match("method = \"GET\", methods = [\"PUT\"]", "", "`method` and `methods` exclude each other; keep one");
    check_match(
        "method = \"get\"",
        ".method",
        "method \"get\" is not \"GET\": methods are case-sensitive; write it in capitals",
    );
    check_match("headers = { \"a b\" = \"c\" }", ".headers.a b", "expected a field name, found \"a b\"");
    check_match("headers = { Host = \"c\" }", ".headers.Host", "the host is matched by `hosts` of the [[route]]");
    check_match("headers = { A = \"1\", a = \"2\" }", ".headers.a", "field `a` (case does not matter) is listed twice");
    check_match(
        "headers = { a = \" 1\" }",
        ".headers.a",
        "expected a field value: visible characters, with no space at its ends, found \" 1\"",
    );
    check_match("headers = { a = 1 }", ".headers.a", "expected a string, found integer 1");
}

#[test]
fn a_path_is_written_as_it_is_compared() {
    let check_path = |path: &str, expected: Option<&str>| {
        let text = format!("[[route.rule]]\nto = \"shop\"\nmatch = {{ path = '{path}' }}\n");
        let said = |why: &str| {
            format!("x.toml:11: route \"shop\": `rule[0].match.path`: path \"{path}\" never matches: {why}")
        };
        let found = problems(&format!("{}{text}", GOOD.trim_start()), None);
        assert_eq!(found, expected.map(said).into_iter().collect::<Vec<_>>());
    };
    for fine in ["/", "/a//b", "/.well-known/x", "/a;b=c", "/a%20b", "/%C3%BC", "/..."] {
        check_path(fine, None);
    }
    check_path("/a/..;x", Some("`.` and `..` are resolved before paths are compared"));
    check_path("/a\\b", Some("requests with a backslash are refused"));
    check_path("/a%2Fb", Some("requests with an encoded `/`, `\\` or NUL are refused"));
    check_path("/a%", Some("two hex digits follow each `%`"));
    check_path("/%zz", Some("two hex digits follow each `%`"));
    check_path("/%+f", Some("two hex digits follow each `%`"));
    check_path("/%41", Some("letters, digits, `-`, `.`, `_` and `~` are decoded before"));
    check_path("/%c3%bc", Some("hex digits are written in capitals"));
    check_path("/ü", Some("such characters are percent-encoded in requests"));
}

#[test]
fn a_split_has_a_bound() {
    let shares = vec!["\"shop\""; 1001].join(", ");
    check_added(
        &format!("to = [{shares}]\n"),
        &["x.toml:9: route \"shop\": `to`: the list has 1001 entries; at most 1000 are allowed"],
    );
}

#[test]
fn hosts_are_names_without_port() {
    let expected = "expected a host without a port, such as \"payments\", \"*.shop.example\" or \"*\"";
    let message =
        |index: usize, found: &str| format!("x.toml:2: route \"a:80\": `hosts[{index}]`: {expected}, found {found}");
    check(
        "[[route]]\nhosts = [\"a:80\", \"a.*\", \"*a\", \"\", 3, \"a\", \"A\", \"10.0.0.1\", \"[::1]\"]\n",
        &[
            &message(0, "\"a:80\""),
            &message(1, "\"a.*\""),
            &message(2, "\"*a\""),
            &message(3, "\"\""),
            &message(4, "integer 3"),
            "x.toml:2: route \"a:80\": `hosts[6]`: a is listed twice",
        ],
    );
}

#[test]
fn names_can_stand_in_a_label() {
    check(
        "[[service]]\nname = \"a b\"\nendpoints = [\"a:1\"]\n[workload]\nname = \"a/b\"\n[mesh]\ntrust_domain = \"Shop\"\n",
        &[
            "x.toml:2: service \"a b\": `name`: expected a name of at most 253 letters, digits, `.`, `-`, `_`, `/` and `*`, found \"a b\"",
            "x.toml:5: [workload]: `name`: expected letters, digits, `.`, `-` and `_`, found \"a/b\"",
            "x.toml:7: [mesh]: `trust_domain`: trust domain `Shop` may hold lower-case letters, digits, `.`, `-` and `_` only, and at most 255 of them",
        ],
    );
}

#[test]
fn a_reference_that_leads_nowhere_gets_the_nearest_name() {
    check_added(
        "
listeners = [\"frnot\"]
to = [{ service = \"shop\", weight = 1 }, { service = \"shpo\" }]
[[route.rule]]
match = { path = \"/a\" }
to = \"elsewhere\"
[[listener]]
name = \"in\"
bind = \"127.0.0.1:1\"
service = \"shops\"
[[policy]]
name = \"p\"
listener = \"inn\"
allow = []
",
        &[
            "x.toml:2: listener \"front\": no route applies to it and it has no `service`; add one of them",
            "x.toml:9: route \"shop\": `listeners[0]`: there is no listener \"frnot\"; did you mean `front`?",
            "x.toml:10: route \"shop\": `to[1]`: there is no service \"shpo\"; did you mean `shop`?",
            "x.toml:13: route \"shop\": `rule[0].to`: there is no service \"elsewhere\"",
            "x.toml:17: listener \"in\": `service`: there is no service \"shops\"; did you mean `shop`?",
            "x.toml:20: policy \"p\": `listener`: there is no listener \"inn\"; did you mean `in`?",
        ],
    );
}

#[test]
fn what_is_said_of_an_address_fits_its_kind() {
    let listener = |bind: &str, keys: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"{bind}\"\nservice = \"s\"\n{keys}\n[[service]]\nname = \"s\"\nendpoints = [\"unix:@s\"]\n"
        )
    };
    let socket = |keys: &str| listener("unix:/run/a.sock", keys);
    check(&listener("[::]:1", "ipv6_only = true"), &[]);
    check(&listener("[::]:1", "ipv6_only = false"), &[]);
    check(&socket("permissions = { mode = \"0660\", owner = \"app\", group = \"1000\" }"), &[]);
    check(&socket("permissions = { mode = \"777\" }"), &[]);
    for bind in ["0.0.0.0:1", "[::1]:1", "unix:/run/a.sock"] {
        check(
            &listener(bind, "ipv6_only = true"),
            &[&format!(
                "x.toml:5: listener \"a\": `ipv6_only`: has no effect on {bind}: only \"[::]:PORT\" takes IPv4 along, unless it is true there"
            )],
        );
    }
    check(
        &listener("127.0.0.1:1", "permissions = { mode = \"0660\" }"),
        &[
            "x.toml:5: listener \"a\": `permissions`: has no effect on 127.0.0.1:1: only a Unix socket has an owner and a mode",
        ],
    );
    check(
        &listener("unix:@a", "permissions = { mode = \"0660\" }"),
        &[
            "x.toml:5: listener \"a\": `permissions`: has no effect on unix:@a: a name without a file is open to all of its network namespace",
        ],
    );
    for wrong in ["660u", "0o660", "66", "1660", "00660", "0680", "+660", "rw-rw----"] {
        check(
            &socket(&format!("permissions = {{ mode = \"{wrong}\" }}")),
            &[&format!(
                "x.toml:5: listener \"a\": `permissions.mode`: expected a mode in octal digits such as \"0660\", found \"{wrong}\""
            )],
        );
    }
    check(
        &socket("permissions = { mode = 660, user = \"app\" }"),
        &[
            "x.toml:5: listener \"a\": `permissions.mode`: expected a mode in octal digits such as \"0660\", found integer 660",
            "x.toml:5: listener \"a\": `permissions`: unknown key `user`; expected one of `mode`, `owner`, `group`",
        ],
    );
}

#[test]
fn a_unix_socket_has_a_path_or_a_name_of_at_most_107_bytes() {
    let config = |path: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"unix:{path}\"\nservice = \"s\"\n[[service]]\nname = \"s\"\nendpoints = [\"127.0.0.1:1\"]\n"
        )
    };
    let wrong = |shown: &str, bytes: usize| {
        format!(
            "x.toml:3: listener \"a\": `bind`: \"{shown}\" has {bytes} bytes; a Unix socket's path, or its name behind `@`, has 1 to 107, and no NUL"
        )
    };
    let path = |bytes: usize| format!("/{}", "x".repeat(bytes - 1));
    let name = |bytes: usize| format!("@{}", "x".repeat(bytes));
    check(&config(&path(107)), &[]);
    check(&config(&name(107)), &[]);
    check(&config(&path(108)), &[&wrong(&path(108), 108)]);
    check(&config(&name(108)), &[&wrong(&name(108), 108)]);
    check(&config("@"), &[&wrong("@", 0)]);
    check(&config("/a\\u0000b"), &[&wrong("/a\\u{0}b", 4)]);
    check(&config("run/a"), &["x.toml:3: listener \"a\": `bind`: path \"run/a\" must be absolute"]);
}

#[test]
fn names_are_unique() {
    check_added(
        "
[[service]]
name = \"shop\"
endpoints = [\"a:1\"]
[[listener]]
name = \"front\"
bind = \"127.0.0.1:1\"
[[route]]
hosts = [\"other\"]
name = \"shop\"
[[route.rule]]
name = \"1\"
match = { path = \"/a\" }
to = \"shop\"
[[route.rule]]
to = \"shop\"
",
        &[
            "x.toml:10: service \"shop\": the name \"shop\" is taken since line 5; give each its own",
            "x.toml:13: listener \"front\": the name \"front\" is taken since line 2; give each its own",
            "x.toml:17: route \"shop\": the name \"shop\" is taken since line 8; give each its own",
            "x.toml:22: route \"shop\": `rule[1].name`: the name \"1\" is taken since line 19; give each its own",
        ],
    );
}

#[test]
fn one_address_has_one_listener() {
    let listener = |name: &str, bind: &str| format!("[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\n");
    check_added(
        &[
            listener("b", "127.0.0.1:8000"),
            listener("c", "0.0.0.0:8000"),
            listener("d", "127.0.0.2:8000"),
            listener("e", "127.0.0.1:15021"),
            listener("f", "unix:/run/a"),
            listener("g", "unix:/run/a"),
            listener("h", "127.0.0.1:0"),
            listener("i", "127.0.0.1:0"),
            listener("j", "[::]:8000") + "ipv6_only = true\n",
            listener("k", "[::1]:8000"),
            listener("l", "127.0.0.9:81"),
            listener("m", "[::]:81"),
            listener("n", "[::]:82"),
            listener("o", "0.0.0.0:82"),
            listener("p", "unix:@a"),
            listener("q", "unix:@a"),
        ]
        .concat(),
        &[
            "x.toml:11: listener \"b\": `bind`: 127.0.0.1:8000 is already the address of listener \"front\" (line 3)",
            "x.toml:14: listener \"c\": `bind`: 0.0.0.0:8000 is already the address of listener \"front\" (line 3)",
            "x.toml:17: listener \"d\": `bind`: 127.0.0.2:8000 is already the address of listener \"c\" (line 14)",
            "x.toml:20: listener \"e\": `bind`: 127.0.0.1:15021 is already the address of the admin pages ([admin] `bind`)",
            "x.toml:26: listener \"g\": `bind`: unix:/run/a is already the address of listener \"f\" (line 23)",
            "x.toml:39: listener \"k\": `bind`: [::1]:8000 is already the address of listener \"j\" (line 35)",
            "x.toml:45: listener \"m\": `bind`: [::]:81 is already the address of listener \"l\" (line 42), as it takes IPv4 along; set `ipv6_only = true`",
            "x.toml:51: listener \"o\": `bind`: 0.0.0.0:82 is already the address of listener \"n\" (line 48)",
            "x.toml:57: listener \"q\": `bind`: unix:@a is already the address of listener \"p\" (line 54)",
        ],
    );
}

#[test]
fn routes_apply_where_they_can() {
    check_added(
        "
[[listener]]
name = \"db\"
bind = \"127.0.0.1:1\"
protocol = \"tcp\"
[[listener]]
name = \"in\"
bind = \"127.0.0.1:2\"
service = \"shop\"
[[route]]
name = \"r\"
hosts = [\"r\"]
listeners = [\"db\", \"in\", \"front\"]
to = \"shop\"
",
        &[
            "x.toml:10: listener \"db\": a tcp listener needs `service`: there is no host to route by",
            "x.toml:20: route \"r\": `listeners[0]`: listener \"db\" is a tcp one, which has no hosts to route by; set its `service` instead",
            "x.toml:20: route \"r\": `listeners[1]`: listener \"in\" sends everything to service \"shop\" (line 16), so no route applies there",
        ],
    );
    check(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:2\"\nservice = \"shop\"\n[[service]]\nname = \"shop\"\nendpoints = [\"a:1\"]\n[[route]]\nhosts = [\"shop\"]\n",
        &["x.toml:9: route \"shop\": no http listener without a `service` of its own is left for this route"],
    );
    // Beside another fault of the route that one is not told.
    check(
        "[[listener]]\nname = \"in\"\nbind = \"127.0.0.1:2\"\nservice = \"shop\"\n[[service]]\nname = \"shop\"\nendpoints = [\"a:1\"]\n[[route]]\nhosts = [\"shop\"]\nto = \"ship\"\n",
        &["x.toml:10: route \"shop\": `to`: there is no service \"ship\"; did you mean `shop`?"],
    );
}

#[test]
fn one_host_belongs_to_one_route() {
    check_added(
        "
[[route]]
name = \"b\"
hosts = [\"SHOP\", \"x\"]
listeners = [\"front\"]
to = \"shop\"
[[route]]
name = \"c\"
hosts = [\"x\"]
to = \"shop\"
",
        &[
            "x.toml:11: route \"b\": `hosts[0]`: host \"shop\" on listener \"front\" is already routed by route \"shop\" (line 8)",
            "x.toml:16: route \"c\": `hosts[0]`: host \"x\" on listener \"front\" is already routed by route \"b\" (line 10)",
        ],
    );
}

#[test]
fn requests_must_have_somewhere_to_go() {
    check_added(
        "
[[route]]
hosts = [\"nobody\"]
[[route]]
hosts = [\"a\"]
to = [{ service = \"shop\", weight = 0 }]
[[route]]
hosts = [\"b\"]
to = [\"shop\", \"shop\"]
[[service]]
name = \"raw\"
endpoints = [\"a:1\"]
protocol = \"tcp\"
[[route]]
hosts = [\"raw\"]
",
        &[
            "x.toml:10: route \"nobody\": has neither `to` nor a [[route.rule]], and no service is named like its first host \"nobody\"; say `to = \"SERVICE\"`",
            "x.toml:13: route \"a\": `to`: the weights sum to 0, so no request could go anywhere; give at least one service a weight above 0",
            "x.toml:16: route \"b\": `to[1]`: service \"shop\" is listed twice",
            "x.toml:22: route \"raw\": `hosts`: service \"raw\" speaks tcp, so requests cannot be sent to it",
        ],
    );
}

#[test]
fn a_rule_that_is_never_reached_is_refused() {
    check_added(
        "
to = \"shop\"
[[route.rule]]
match = { path_prefix = \"/a\", methods = [\"GET\", \"PUT\"] }
to = \"shop\"
[[route.rule]]
match = { path_prefix = \"/a/\", methods = [\"PUT\", \"GET\"] }
to = \"shop\"
[[route.rule]]
to = \"shop\"
[[route.rule]]
match = { path_prefix = \"/\" }
to = \"shop\"
",
        &[
            "x.toml:9: route \"shop\": `to`: is never reached: the rule in line 16 matches the same requests and comes first",
            "x.toml:14: route \"shop\": `rule[1]`: is never reached: the rule in line 11 matches the same requests and comes first",
            "x.toml:19: route \"shop\": `rule[3]`: is never reached: the rule in line 16 matches the same requests and comes first",
        ],
    );
}

#[test]
fn a_policy_that_cannot_be_enforced_is_refused() {
    check_added(
        "
[mesh]
trust_domain = \"shop.example\"
[[listener]]
name = \"db\"
bind = \"127.0.0.1:1\"
protocol = \"tcp\"
service = \"shop\"
[[policy]]
name = \"p\"
listener = \"db\"
allow = [{ methods = [\"GET\"] }, { paths = [\"/a\"] }, {}]
[[policy]]
name = \"q\"
listener = \"front\"
allow = [{ from = [\"web\"] }, { methods = [\"GET\"], paths = [\"/a\"] }]
",
        &[
            "x.toml:19: policy \"p\": `allow[0].methods`: cannot be enforced: listener \"db\" is a tcp one, which has neither methods nor paths; set its protocol to \"http\"",
            "x.toml:19: policy \"p\": `allow[1].paths`: cannot be enforced: listener \"db\" is a tcp one, which has neither methods nor paths; set its protocol to \"http\"",
            "x.toml:23: policy \"q\": `allow[0].from`: cannot be enforced: listener \"front\" takes clients that prove no identity; set `mtls = \"strict\"` there",
        ],
    );
}

#[test]
fn mutual_tls_needs_an_identity() {
    let text = "
[[listener]]
name = \"in\"
bind = \"127.0.0.1:1\"
mtls = \"strict\"
service = \"a\"
[[service]]
name = \"a\"
endpoints = [\"a:1\"]
peer = \"a\"
";
    check(
        text,
        &[
            "x.toml:4: listener \"in\": `mtls`: \"strict\" needs an identity; add `identity = { files = \"DIR\" }` to [workload]",
            "x.toml:9: service \"a\": `peer`: mutual TLS needs an identity; add `identity = { files = \"DIR\" }` to [workload]",
            "x.toml:9: service \"a\": `peer`: \"a\" needs a trust domain; set `trust_domain` in [mesh]",
        ],
    );
    let workload = "[mesh]\ntrust_domain = \"shop\"\n[workload]\nname = \"a\"\nidentity = { files = \"/x\" }\n";
    check(
        &format!("{text}{workload}"),
        &[
            "x.toml:4: listener \"in\": `mtls`: \"strict\" needs the identity in /x, which is not loaded",
            "x.toml:9: service \"a\": `peer`: mutual TLS needs the identity in /x, which is not loaded",
        ],
    );
    let text = format!("{text}{workload}");
    assert_eq!(problems(&text, identity("spiffe://shop/ns/default/sa/a")), [""; 0]);
    assert_eq!(
        problems(&text, identity("spiffe://shop/ns/default/sa/b")),
        [
            "x.toml:15: [workload]: `identity`: the SVID is that of spiffe://shop/ns/default/sa/b, but this is spiffe://shop/ns/default/sa/a; issue the right one, or set `id` in [workload]"
        ]
    );
}

#[test]
fn identities_are_of_the_own_trust_domain() {
    let text = "
[mesh]
trust_domain = \"shop\"
[workload]
name = \"a\"
id = \"spiffe://other/a\"
identity = { files = \"/x\" }
[[service]]
name = \"b\"
endpoints = [\"a:1\"]
peer = \"spiffe://other/b\"
[[service]]
name = \"c\"
endpoints = [\"a:1\"]
peer = \"a/b/c\"
[[service]]
name = \"d\"
endpoints = [\"a:1\"]
peer = \"*\"
";
    assert_eq!(
        problems(text.trim_start(), identity("spiffe://shop/ns/default/sa/a")),
        [
            "x.toml:5: [workload]: `id`: spiffe://other/a is not of the trust domain \"shop\", and others are not trusted",
            "x.toml:10: service \"b\": `peer`: spiffe://other/b is not of the trust domain \"shop\", and others are not trusted",
            "x.toml:14: service \"c\": `peer`: \"a/b/c\" is no identity; write NAME, NAMESPACE/NAME or spiffe://DOMAIN/PATH (path segment `b/c` may hold letters, digits, `.`, `-` and `_` only, and be neither empty nor `.` nor `..`)",
            "x.toml:18: service \"d\": `peer`: \"*\" is no identity; write NAME, NAMESPACE/NAME or spiffe://DOMAIN/PATH (path segment `*` may hold letters, digits, `.`, `-` and `_` only, and be neither empty nor `.` nor `..`)",
        ]
    );
    check(
        "[workload]\nname = \"a\"\nidentity = { files = \"x\" }\n",
        &["x.toml:3: [workload]: `identity`: \"a\" needs a trust domain; set `trust_domain` in [mesh]"],
    );
}

#[test]
fn a_problem_knows_its_key_and_column() {
    let problems = config::parse("[[service]]\nname = \"a\"\nendpoints = [\"a:1\", \"bäd\"]\nendpoin = 1\n", "x.toml")
        .expect_err("it is bad");
    let found: Vec<_> = problems
        .iter()
        .map(|problem| (problem.key.as_str(), problem.place.map(|place| (place.line, place.column))))
        .collect();
    assert_eq!(found, [("service[0].endpoints[1]", Some((3, 21))), ("service[0].endpoin", Some((4, 1)))]);
}

#[test]
fn a_thousand_problems_are_counted_and_twenty_shown() {
    let text = "[[service]]\nname = \"a\"\n".repeat(1000);
    let problems = config::parse(&text, "x.toml").expect_err("endpoints are missing");
    assert_eq!(problems.count(), 1000);
    let shown = problems.to_string();
    assert_eq!(shown.lines().count(), 21);
    assert!(shown.ends_with("\n… and 980 more"), "{shown}");
}

#[test]
fn a_file_that_cannot_be_read_says_why() {
    let folder = std::env::temp_dir().join(format!("ringmesh-model-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for the test");
    let check_file = |name: &str, bytes: Option<&[u8]>, expected: &str| {
        let path = folder.join(name);
        if let Some(bytes) = bytes {
            fs::write(&path, bytes).expect("a file for the test");
        }
        let problems = config::read(&path).expect_err(name).to_string();
        assert_eq!(problems, format!("{}{expected}", path.display()));
    };
    check_file("missing.toml", None, ": cannot be read: No such file or directory (os error 2)");
    check_file("binary.toml", Some(b"[mesh]\ntrust_domain = \"\xff\"\n"), ":2: is not UTF-8 here, and so no TOML");
    let device = config::read("/dev/zero".as_ref()).expect_err("it has no end").to_string();
    assert_eq!(device, "/dev/zero: is larger than 64MiB, the most that is read; is it the right file?");
    fs::remove_dir_all(&folder).expect("the folder is removed");
}

#[test]
fn interception_needs_a_port_for_each_direction_and_family_that_can_be_reached() {
    let listener = |name: &str, bind: &str, intercept: &str| {
        format!("[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nintercept = \"{intercept}\"\nservice = \"s\"\n")
    };
    let service = "[[service]]\nname = \"s\"\nendpoints = \"original_destination\"\n";
    let all = [
        listener("out", "127.0.0.1:15001", "outbound"),
        listener("out6", "[::1]:15001", "outbound"),
        listener("in", "0.0.0.0:15006", "inbound"),
        listener("in6", "[::]:15006", "inbound") + "ipv6_only = true\n",
    ];
    check(&(all.concat() + service), &[]);
    check(
        &(listener("out", "unix:/run/out.sock", "outbound") + &listener("chosen", "127.0.0.1:0", "outbound") + service),
        &["out", "chosen"].map(|name| {
            let line = if name == "out" { 4 } else { 9 };
            format!(
                "x.toml:{line}: listener \"{name}\": `intercept`: a Unix socket or a port that the kernel chooses cannot take intercepted \
                 connections; give `bind` an address with a port"
            )
        })
        .each_ref()
        .map(String::as_str),
    );
    check(
        &(listener("in", "127.0.0.1:15006", "inbound") + service),
        &[
            "x.toml:4: listener \"in\": `intercept`: connections from outside cannot be brought to 127.0.0.1; bind \"0.0.0.0:PORT\" or \
             \"[::]:PORT\"",
        ],
    );
    check(
        &(listener("a", "127.0.0.1:1", "outbound") + &listener("b", "127.0.0.2:1", "outbound") + service),
        &[
            "x.toml:9: listener \"b\": `intercept`: listener \"a\" (line 2) takes these connections already; each direction has one \
             listener for IPv4 and one for IPv6",
        ],
    );
    check(
        &(listener("a", "127.0.0.1:1", "out") + service),
        &["x.toml:4: listener \"a\": `intercept`: unknown value \"out\"; expected `inbound` or `outbound`"],
    );
}

#[test]
fn the_original_destination_belongs_to_intercepted_connections() {
    let original = "[[service]]\nname = \"away\"\nendpoints = \"original_destination\"\n";
    let none = |line: u32, subject: &str, field: &str, listener: &str| {
        format!(
            "x.toml:{line}: {subject}: `{field}`: service \"away\" goes to the original destination, which connections of listener \
             \"{listener}\" do not have; set `intercept` there"
        )
    };
    check(
        &("[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"away\"\n".to_owned() + original),
        &[&none(4, "listener \"a\"", "service", "a")],
    );
    let routed = "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nintercept = \"outbound\"\n\
                  [[listener]]\nname = \"b\"\nbind = \"127.0.0.1:2\"\n[[route]]\nhosts = [\"*\"]\nto = \"away\"\n";
    check(&(routed.to_owned() + original), &[&none(10, "route \"*\"", "to", "b")]);
    let narrowed = routed.replace("hosts = [\"*\"]", "listeners = [\"a\"]\nhosts = [\"*\"]");
    let other = "[[route]]\nname = \"other\"\nhosts = [\"*\"]\nlisteners = [\"b\"]\nto = \"c\"\n[[service]]\nname = \"c\"\nendpoints = [\"a:1\"]\n";
    check(&(narrowed + other + original), &[]);
}

#[test]
fn exclusions_of_interception_are_ports_networks_and_accounts() {
    check(
        "[intercept]\nexclude_inbound_ports = [0, 22, 65536]\nexclude_outbound_networks = [\"10.0.0.1/8\"]\n\
         exclude_users = [-1, \"a b\", \"postgres\"]\nexclude_groups = [4294967295]\n",
        &[
            "x.toml:2: [intercept]: `exclude_inbound_ports[0]`: must be 1 to 65535, found 0",
            "x.toml:2: [intercept]: `exclude_inbound_ports[2]`: must be 1 to 65535, found 65536",
            "x.toml:3: [intercept]: `exclude_outbound_networks[0]`: expected a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an \
             address, found \"10.0.0.1/8\"",
            "x.toml:4: [intercept]: `exclude_users[0]`: must be 0 to 4294967294, found -1",
            "x.toml:4: [intercept]: `exclude_users[1]`: expected a user's or group's number or name, such as 1337 or \"backup\", found \
             \"a b\"",
            "x.toml:5: [intercept]: `exclude_groups[0]`: must be 0 to 4294967294, found 4294967295",
        ],
    );
    let many: Vec<String> = (1..=257).map(|port: u32| port.to_string()).collect();
    check(
        &format!("[intercept]\nexclude_inbound_ports = [{}]\n", many.join(", ")),
        &["x.toml:2: [intercept]: `exclude_inbound_ports`: the list has 257 entries; at most 256 are allowed"],
    );
}

#[test]
fn tls_that_is_passed_on_is_routed_by_its_own_routes_and_by_what_can_be_seen() {
    let tls = "[[listener]]\nname = \"pass\"\nbind = \"127.0.0.1:1\"\nprotocol = \"tls\"\n";
    check_added(
        tls,
        &["x.toml:10: listener \"pass\": no route applies to it and it has no `service`; add one of them"],
    );
    check_added(&format!("{tls}service = \"shop\"\n"), &[]);
    check_added(&format!("{tls}[[route]]\nprotocol = \"tls\"\nname = \"t\"\nhosts = [\"shop\"]\n"), &[]);
    check_added(
        &format!(
            "{tls}mtls = \"strict\"\nservice = \"shop\"\n[mesh]\ntrust_domain = \"a\"\n[workload]\nname = \"a\"\nidentity = {{ files = \"a\" }}\n"
        ),
        &[
            "x.toml:13: listener \"pass\": `mtls`: \"strict\" needs the identity in a, which is not loaded",
            "x.toml:13: listener \"pass\": `mtls`: a tls listener passes TLS on unopened and so shows no certificate; to end TLS here, say what is inside: protocol \"http\" or \"tcp\"",
        ],
    );
    check_added(
        &format!(
            "{tls}[[route]]\nname = \"a\"\nhosts = [\"a\"]\nlisteners = [\"pass\"]\nto = \"shop\"\n[[route]]\nprotocol = \"tls\"\nname = \"b\"\nhosts = [\"a\"]\nlisteners = [\"front\"]\nto = \"shop\"\n"
        ),
        &[
            "x.toml:16: route \"a\": `listeners[0]`: listener \"pass\" takes TLS that is passed on unopened, and this route is for requests; set the route's `protocol`",
            "x.toml:22: route \"b\": `listeners[0]`: listener \"front\" takes requests, and this route is for TLS that is passed on unopened; set the route's `protocol`",
        ],
    );
    check_added(
        &format!(
            "{tls}[[route]]\nprotocol = \"tls\"\nname = \"a\"\nhosts = [\"a\"]\ntimeout = \"1s\"\nto = \"shop\"\n\
             [[route.rule]]\nmatch = {{ path = \"/a\" }}\nto = \"shop\"\n\
             [[route.rule]]\nmatch = {{ headers = {{ a = \"b\" }}, alpn = [\"h2\"] }}\nto = \"shop\"\ntimeout = \"1s\"\n\
             [[route.rule]]\nmatch = {{ alpn = [\"h2\", \"h3\"] }}\nto = \"shop\"\n\
             [[route.rule]]\nmatch = {{ alpn = [\"h3\", \"h2\"] }}\nto = \"shop\"\n"
        ),
        &[
            "x.toml:17: route \"a\": `timeout`: the end of a response cannot be seen in TLS that is passed on unopened; only `alpn` can be matched",
            "x.toml:20: route \"a\": `rule[0].match`: a path cannot be seen in TLS that is passed on unopened; only `alpn` can be matched",
            "x.toml:23: route \"a\": `rule[1].match`: a header field cannot be seen in TLS that is passed on unopened; only `alpn` can be matched",
            "x.toml:25: route \"a\": `rule[1].timeout`: the end of a response cannot be seen in TLS that is passed on unopened; only `alpn` can be matched",
            "x.toml:30: route \"a\": `rule[3]`: is never reached: the rule in line 27 matches the same requests and comes first",
        ],
    );
    check_added(
        "[[route.rule]]\nmatch = { alpn = [\"h2\"] }\nto = \"shop\"\n",
        &[
            "x.toml:10: route \"shop\": `rule[0].match`: `alpn` is matched by a route with `protocol = \"tls\"`, which passes TLS on unopened",
        ],
    );
    check_added(
        "[[route.rule]]\nmatch = { alpn = [\"h2\", \"\", \"h 2\", \"h2\"] }\nto = \"shop\"\n",
        &[
            "x.toml:10: route \"shop\": `rule[0].match.alpn[1]`: expected a protocol of ALPN such as \"h2\" or \"http/1.1\", found \"\"",
            "x.toml:10: route \"shop\": `rule[0].match.alpn[2]`: expected a protocol of ALPN such as \"h2\" or \"http/1.1\", found \"h 2\"",
            "x.toml:10: route \"shop\": `rule[0].match.alpn[3]`: h2 is listed twice",
        ],
    );
    check(
        "[[route]]\nprotocol = \"tls\"\nhosts = [\"shop\"]\n[[service]]\nname = \"shop\"\nendpoints = [\"a:1\"]\nprotocol = \"tls\"\n",
        &[
            "x.toml:7: service \"shop\": `protocol`: unknown value \"tls\"; write `http`, `http2` or `tcp`; TLS to endpoints is mutual, and `peer` says with whom",
        ],
    );
    check(
        "[[route]]\nprotocol = \"tls\"\nhosts = [\"shop\"]\n[[service]]\nname = \"shop\"\nendpoints = [\"a:1\"]\n",
        &["x.toml:3: route \"shop\": no tls listener without a `service` of its own is left for this route"],
    );
    let guard = |rule: &str| {
        format!("{tls}service = \"shop\"\n[[policy]]\nname = \"p\"\nlistener = \"pass\"\nallow = [{rule}]\n")
    };
    check_added(
        &guard("{ methods = [\"GET\"] }"),
        &[
            "x.toml:17: policy \"p\": `allow[0].methods`: cannot be enforced: listener \"pass\" passes TLS on unopened, where neither methods nor paths can be seen",
        ],
    );
}

#[test]
fn a_port_that_detects_has_a_place_for_more_than_one_protocol() {
    let detect = "[[listener]]\nname = \"any\"\nbind = \"127.0.0.1:1\"\nprotocol = \"detect\"\n";
    let tls = "[[route]]\nprotocol = \"tls\"\nname = \"t\"\nhosts = [\"shop\"]\nto = \"shop\"\n";
    check_added(
        detect,
        &[
            "x.toml:10: listener \"any\": only requests have somewhere to go: add routes for the others or a `service`, or set the protocol to \"http\"",
        ],
    );
    check_added(&format!("{detect}{tls}"), &[]);
    check_added(&format!("{detect}service = \"shop\"\n"), &[]);
    let named = "[[route]]\nname = \"n\"\nhosts = [\"a\"]\nlisteners = [\"any\"]\nto = \"shop\"\n";
    check_added(
        &format!(
            "{detect}service = \"raw\"\n{named}[[service]]\nname = \"raw\"\nprotocol = \"tcp\"\nendpoints = [\"a:1\"]\n"
        ),
        &[],
    );
    check_added(
        &format!("{detect}service = \"raw\"\n[[service]]\nname = \"raw\"\nprotocol = \"tcp\"\nendpoints = [\"a:1\"]\n"),
        &["x.toml:13: listener \"any\": `service`: service \"raw\" speaks tcp, so requests cannot be sent to it"],
    );
    let only_tls = GOOD
        .replace("[[route]]\nhosts = [\"shop\"]\n", "service = \"shop\"\n")
        .replace("8000\"\n", "8000\"\nservice = \"shop\"\n")
        .replace("8080\"]\nservice = \"shop\"\n", "8080\"]\n");
    check(
        &format!("{only_tls}{detect}{tls}"),
        &[
            "x.toml:9: listener \"any\": only TLS connections have somewhere to go: add routes for the others or a `service`, or set the protocol to \"tls\"",
        ],
    );
    check_added(
        "[[policy]]\nname = \"p\"\nlistener = \"any\"\nallow = [{ methods = [\"GET\"] }]\n[[listener]]\nname = \"any\"\nbind = \"127.0.0.1:1\"\nprotocol = \"detect\"\nservice = \"shop\"\n",
        &[],
    );
    check_added(
        &format!(
            "{detect}service = \"shop\"\ndetect_timeout = \"1ms\"\ntcp_keepalive = \"100ms\"\nmax_connection_duration = \"never\"\n"
        ),
        &[
            "x.toml:14: listener \"any\": `detect_timeout`: must be 10ms to 7d, found 1ms",
            "x.toml:15: listener \"any\": `tcp_keepalive`: must be 1s to 9h, found 100ms",
            "x.toml:16: listener \"any\": `max_connection_duration`: expected a duration such as \"250ms\", or \"off\", found \"never\"",
        ],
    );
}

#[test]
fn what_bounds_handshakes_or_detection_where_there_are_none_is_refused() {
    let listener =
        |keys: &str| format!("[[listener]]\nname = \"l\"\nbind = \"127.0.0.1:1\"\nservice = \"shop\"\n{keys}\n");
    let no_tls = "`max_handshakes`: has no effect: no TLS ends at this listener; leave it out, or add `tls` or `mtls = \"strict\"`";
    for protocol in ["http", "tcp", "tls", "detect"] {
        check_added(
            &listener(&format!("protocol = \"{protocol}\"\nmax_handshakes = 5")),
            &[&format!("x.toml:14: listener \"l\": {no_tls}")],
        );
    }
    check_added(&listener("max_handshakes = \"off\""), &[]);
    check_added(
        &listener("max_handshakes = 5\ntls = { certificate = \"/a\", key = \"/b\" }"),
        &["x.toml:14: listener \"l\": `tls`: certificate /a is not loaded"],
    );
    for protocol in ["http", "http2", "tcp", "tls"] {
        let told = format!(
            "x.toml:14: listener \"l\": `detect_timeout`: has no effect: with protocol = \"{protocol}\" nothing is detected; leave it \
             out, or set `protocol = \"detect\"`"
        );
        check_added(&listener(&format!("protocol = \"{protocol}\"\ndetect_timeout = \"1s\"")), &[&told]);
    }
    check_added(
        &listener("detect_timeout = \"1s\""),
        &[
            "x.toml:13: listener \"l\": `detect_timeout`: has no effect: with protocol = \"http\" nothing is detected; leave it out, or set \
             `protocol = \"detect\"`",
        ],
    );
    check_added(&listener("protocol = \"detect\"\ndetect_timeout = \"1s\""), &[]);
    // Nobody knows which one was meant.
    check_added(
        &listener("protocol = \"detec\"\ndetect_timeout = \"1s\""),
        &["x.toml:13: listener \"l\": `protocol`: unknown value \"detec\"; did you mean `detect`?"],
    );
}

#[test]
fn a_health_check_says_what_its_kind_needs_and_nothing_else() {
    let service = |line: &str| {
        format!(
            "[[listener]]\nname = \"a\"\nbind = \"127.0.0.1:1\"\nservice = \"s\"\n[[service]]\nname = \"s\"\n{line}\n"
        )
    };
    let plain = "endpoints = [\"10.0.0.1:80\"]\n";
    for good in [
        "health_check = { kind = \"tcp\" }",
        "health_check = { kind = \"http\", path = \"/\" }",
        "health_check = { kind = \"http\", path = \"/a?b=c\", host = \"[::1]:80\", status = 404, interval = \"1h\" }",
        "health_check = { kind = \"grpc\", service = \"shop.Cart\", timeout = \"10ms\" }\nprotocol = \"http2\"",
        "health_check = { kind = \"grpc\", service = \"\" }\nprotocol = \"http2\"",
        "health_check = { kind = \"grpc\" }\nprotocol = \"http2\"",
    ] {
        check(&service(&format!("{plain}{good}")), &[]);
    }
    let table = "expected a table such as { kind = \"http\", path = \"/healthy\" }";
    let needs =
        "a check by gRPC needs an endpoint of HTTP/2; set `protocol = \"http2\"`, or check by \"http\" or \"tcp\"";
    for (written, told) in [
        ("true", format!("`health_check`: {table}, found boolean true")),
        ("{}", "`health_check`: `kind` is missing; add for example `kind = \"http\"`".to_owned()),
        (
            "{ kind = \"icmp\" }",
            "`health_check.kind`: unknown value \"icmp\"; expected one of `grpc`, `http`, `tcp`".to_owned(),
        ),
        ("{ kind = \"http\" }", "`health_check`: `path` is missing; add for example `path = \"/healthy\"`".to_owned()),
        (
            "{ kind = \"http\", path = \"a\" }",
            "`health_check.path`: expected a path such as \"/healthy\", found \"a\"".to_owned(),
        ),
        (
            "{ kind = \"http\", path = \"/\", host = \"a b\" }",
            "`health_check.host`: expected a host such as \"shop.example\" or \"shop.example:8080\", found \"a b\""
                .to_owned(),
        ),
        (
            "{ kind = \"http\", path = \"/\", status = 101 }",
            "`health_check.status`: must be 200 to 599, found 101".to_owned(),
        ),
        (
            "{ kind = \"http\", path = \"/\", service = \"a\" }",
            "`health_check.service`: says nothing of kind \"http\"; leave it out".to_owned(),
        ),
        (
            "{ kind = \"tcp\", path = \"/\" }",
            "`health_check.path`: says nothing of kind \"tcp\"; leave it out".to_owned(),
        ),
        (
            "{ kind = \"tcp\", interval = \"1ms\" }",
            "`health_check.interval`: must be 100ms to 1h, found 1ms".to_owned(),
        ),
        (
            "{ kind = \"tcp\", unhealthy_after = 0 }",
            "`health_check.unhealthy_after`: must be 1 to 100, found 0".to_owned(),
        ),
        (
            "{ kind = \"grpc\", service = \"a b\" }",
            "`health_check.service`: expected the name of a gRPC service such as \"shop.Cart\", found \"a b\""
                .to_owned(),
        ),
        ("{ kind = \"grpc\" }", format!("`health_check.kind`: {needs}")),
    ] {
        let told = format!("x.toml:7: service \"s\": {told}");
        check(&service(&format!("health_check = {written}\n{plain}")), &[&told]);
    }
}
