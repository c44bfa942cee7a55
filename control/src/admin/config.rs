//! `/config`: the configuration in effect as JSON, with defaults filled in and names resolved, in the words of the config
//! file. What is shown is picked field by field, so that a secret that is added to the model does not show up here.

use std::num::NonZeroU32;
use std::time::Duration;

use ringmesh_model::health::Probe;
use ringmesh_model::hop::{Connect, Forwarded, Write};
use ringmesh_model::snapshot::{
    AccessLog, AllowRule, Balance, Certificate, Destination, Direction, HealthCheck, HostPattern, Identity, Listener,
    ListenerTarget, Mtls, Object, Others, PathMatch, Permissions, Policy, ProxyProtocol, ProxyVersion, Route,
    RouteProtocol, RouteRule, Service, Settings, Snapshot,
};
use ringmesh_model::unit::{self, ByteSize};
use serde_json::{Value, json};

use crate::telemetry::time::rfc3339;

/// The configuration, without its secrets.
pub fn show(snapshot: &Snapshot) -> Value {
    let mut shown = json!({
        "version": snapshot.version,
        "settings": null,
        "identity": null,
        "listener": [],
        "service": [],
        "route": [],
        "policy": [],
    });
    for object in snapshot.objects.values() {
        let (section, value) = match object {
            Object::Settings(settings) => ("settings", settings_value(settings)),
            Object::Identity(identity) => ("identity", identity_value(identity)),
            Object::Listener(listener) => ("listener", listener_value(listener)),
            Object::Service(service) => ("service", service_value(service)),
            Object::Route(route) => ("route", route_value(route)),
            Object::Policy(policy) => ("policy", policy_value(policy)),
        };
        match &mut shown[section] {
            Value::Array(values) => values.push(value),
            single => *single = value,
        }
    }
    shown
}

fn settings_value(settings: &Settings) -> Value {
    json!({
        "trust_domain": settings.trust_domain,
        "workload": settings.workload,
        "access": matches!(settings.access_log, AccessLog::On),
        "level": settings.log_level.as_str(),
        "drain_timeout": unit::show(settings.drain_timeout),
    })
}

/// Certificates are public, but long; the key is neither shown nor described.
fn identity_value(identity: &Identity) -> Value {
    json!({
        "id": identity.id.as_str(),
        "expires": rfc3339(identity.expires.saturating_mul(1_000_000)),
        "chain_certificates": identity.chain.len(),
        "bundle_certificates": identity.bundle.len(),
    })
}

/// Never shows the key.
fn certificate_value(certificate: &Certificate) -> Value {
    json!({
        "names": certificate.names,
        "expires": rfc3339(certificate.expires.saturating_mul(1_000_000)),
        "chain_certificates": certificate.chain.len(),
    })
}

fn listener_value(listener: &Listener) -> Value {
    let (mut service, mut redirect) = (None, None);
    match &listener.target {
        ListenerTarget::Service(name) | ListenerTarget::RoutesElse(name) => service = Some(name),
        ListenerTarget::Redirect(to) => redirect = Some(json!({ "port": to.port, "status": to.status.code() })),
        ListenerTarget::Routes => {}
    }
    json!({
        "name": listener.name,
        "bind": listener.bind.to_string(),
        "ipv6_only": listener.ipv6_only,
        "permissions": permissions_value(&listener.permissions),
        "protocol": listener.protocol.word(),
        "intercept": listener.intercept.map(|direction| match direction {
            Direction::Inbound => "inbound",
            Direction::Outbound => "outbound",
        }),
        "mtls": match listener.mtls { Mtls::Off => "off", Mtls::Strict => "strict" },
        "tls": listener.tls.iter().map(certificate_value).collect::<Vec<_>>(),
        "proxy_protocol": listener.proxy_protocol.as_ref().map(proxies_value),
        "service": service,
        "redirect": redirect,
        "hsts": listener.edge.hsts.map(|hsts| hsts.to_string()),
        "tls_min_version": (!listener.tls.is_empty()).then(|| listener.edge.tls_min_version.word()),
        "max_connections_per_source": listener.edge.max_connections_per_source,
        "max_handshakes": listener.edge.max_handshakes,
        "max_body": listener.edge.max_body_bytes.map(|bytes| ByteSize(bytes).to_string()),
        "max_header_bytes": listener.limits.max_header_bytes,
        "max_headers": listener.limits.max_headers,
        "max_connections": listener.limits.max_connections,
        "max_streams": listener.limits.max_streams,
        "min_transfer_rate": optional_rate(listener.limits.min_transfer_rate),
        "header_timeout": unit::show(listener.limits.header_timeout),
        "idle_timeout": unit::show(listener.limits.idle_timeout),
        "handshake_timeout": unit::show(listener.limits.handshake_timeout),
        "request_timeout": optional_duration(listener.limits.request_timeout),
        "detect_timeout": unit::show(listener.limits.detect_timeout),
        "tcp_keepalive": optional_duration(listener.limits.tcp_keepalive),
        "max_connection_duration": optional_duration(listener.limits.opaque.max_duration),
        "upgrade": listener.hop.upgrade,
        "connect": match listener.hop.connect {
            Connect::Off => "off",
            Connect::Forward => "forward",
            Connect::Terminate => "terminate",
        },
        "tunnel_idle_timeout": unit::show(listener.hop.tunnel_idle_timeout),
        "forwarded": listener.hop.forwarded.as_ref().map(forwarded_value),
        "via": listener.hop.via,
        "grpc_web": listener.hop.grpc_web,
    })
}

fn forwarded_value(forwarded: &Forwarded) -> Value {
    json!({
        "trust": forwarded.trust.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "write": match forwarded.write {
            Write::XForwarded => "x-forwarded",
            Write::Forwarded => "forwarded",
            Write::Both => "both",
            Write::None => "none",
        },
    })
}

fn permissions_value(permissions: &Permissions) -> Value {
    json!({
        "mode": permissions.mode.map(|mode| format!("{mode:04o}")),
        "owner": permissions.owner,
        "group": permissions.group,
    })
}

fn proxies_value(proxies: &ProxyProtocol) -> Value {
    json!({
        "from": proxies.from.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "others": match proxies.others { Others::Refuse => "refuse", Others::Serve => "serve" },
    })
}

fn service_value(service: &Service) -> Value {
    let endpoints = service.endpoints.iter();
    let endpoints: Vec<Value> =
        endpoints.map(|endpoint| json!({ "address": endpoint.address.to_string(), "zone": endpoint.zone })).collect();
    json!({
        "name": service.name,
        "protocol": service.protocol.word(),
        "peer": service.peer.as_ref().map(|peer| peer.as_str()),
        "proxy_protocol": service.proxy_protocol.map(|version| match version {
            ProxyVersion::V1 => "v1",
            ProxyVersion::V2 => "v2",
        }),
        "endpoints": match service.destination {
            Destination::Endpoints => json!(endpoints),
            Destination::Original => json!("original_destination"),
        },
        "mark": service.mark,
        "balance": match service.balance { Balance::LeastRequest => "least_request", Balance::RoundRobin => "round_robin" },
        "connect_timeout": unit::show(service.connect_timeout),
        "connect_retries": service.connect_retries,
        "idle_timeout": unit::show(service.idle_timeout),
        "max_in_flight": service.max_in_flight,
        "max_idle_per_endpoint": service.max_idle_per_endpoint,
        "share_connections": service.share_connections,
        "tcp_keepalive": optional_duration(service.tcp_keepalive),
        "health_check": service.health_check.as_ref().map(check_value),
    })
}

fn check_value(check: &HealthCheck) -> Value {
    let mut shown = match &check.probe {
        Probe::Grpc { service } => json!({ "kind": "grpc", "service": service }),
        Probe::Http { path, host, status } => json!({ "kind": "http", "path": path, "host": host, "status": status }),
        Probe::Tcp => json!({ "kind": "tcp" }),
    };
    shown["interval"] = unit::show(check.interval).into();
    shown["timeout"] = unit::show(check.timeout).into();
    shown["healthy_after"] = check.healthy_after.into();
    shown["unhealthy_after"] = check.unhealthy_after.into();
    shown
}

fn route_value(route: &Route) -> Value {
    json!({
        "name": route.name,
        "protocol": match route.protocol {
            RouteProtocol::Http => "http",
            RouteProtocol::Tls => "tls",
        },
        "listeners": route.listeners,
        "hosts": route.hosts.iter().map(host_text).collect::<Vec<_>>(),
        "rule": route.rules.iter().map(rule_value).collect::<Vec<_>>(),
    })
}

fn rule_value(rule: &RouteRule) -> Value {
    let mut matches = path_value(&rule.matches.path);
    let headers = rule.matches.headers.iter();
    matches["methods"] = json!(rule.matches.methods);
    matches["alpn"] = json!(rule.matches.alpn);
    matches["headers"] = headers.map(|header| json!({ "name": header.name, "value": header.value })).collect();
    let to = rule.to.iter().map(|target| json!({ "service": target.service, "weight": target.weight }));
    json!({
        "name": rule.name,
        "match": matches,
        "to": to.collect::<Vec<_>>(),
        "timeout": optional_duration(rule.timeout),
    })
}

fn policy_value(policy: &Policy) -> Value {
    json!({
        "name": policy.name,
        "listener": policy.listener,
        "allow": policy.allow.iter().map(allow_value).collect::<Vec<_>>(),
    })
}

fn allow_value(rule: &AllowRule) -> Value {
    json!({
        "name": rule.name,
        "from": rule.from.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        "methods": rule.methods,
        "paths": rule.paths.iter().map(path_value).collect::<Vec<_>>(),
    })
}

fn path_value(path: &PathMatch) -> Value {
    match path {
        PathMatch::Any => json!({}),
        PathMatch::Exact(path) => json!({ "path": path }),
        PathMatch::Prefix(prefix) => json!({ "path_prefix": prefix }),
    }
}

fn host_text(host: &HostPattern) -> String {
    match host {
        HostPattern::Exact(name) => name.clone(),
        HostPattern::Suffix(name) => format!("*.{name}"),
        HostPattern::Any => "*".to_owned(),
    }
}

fn optional_rate(rate: Option<NonZeroU32>) -> Option<String> {
    rate.map(|rate| ByteSize(rate.get().into()).to_string())
}

fn optional_duration(duration: Option<Duration>) -> Option<String> {
    duration.map(unit::show)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{SECRET, snapshot};
    use super::*;

    #[test]
    fn the_config_is_shown_in_the_words_of_the_file() {
        let shown = show(&snapshot());
        assert_eq!(shown["version"], 7);
        assert_eq!(shown["settings"]["drain_timeout"], "25s");
        assert_eq!(shown["settings"]["level"], "info");
        assert_eq!(shown["listener"][0]["bind"], "127.0.0.1:15006");
        assert_eq!(shown["listener"][0]["mtls"], "strict");
        assert_eq!(shown["listener"][0]["request_timeout"], Value::Null);
        assert_eq!(shown["listener"][0]["permissions"]["mode"], "0660");
        assert_eq!(
            shown["listener"][0]["proxy_protocol"],
            json!({ "from": ["10.0.0.0/8", "unix"], "others": "serve" })
        );
        assert_eq!(shown["service"][0]["proxy_protocol"], "v2");
        assert_eq!(shown["service"][0]["endpoints"][0]["address"], "unix:/run/app.sock");
        assert_eq!(shown["route"][0]["hosts"], json!(["payments", "*.shop", "*"]));
        assert_eq!(shown["route"][0]["rule"][0]["match"]["path_prefix"], "/v2");
        assert_eq!(shown["policy"][0]["allow"][0]["from"][0], "spiffe://shop.example/ns/default/sa/checkout");
    }

    #[test]
    fn every_key_of_listeners_and_services_is_shown() {
        let file = "
            [[listener]]\nname = \"front\"\nbind = \"127.0.0.1:80\"\nservice = \"shop\"\nconnect = \"forward\"\nvia = \"edge\"
            grpc_web = true\nforwarded = { trust = [\"10.0.0.0/8\"], write = \"both\" }\ntunnel_idle_timeout = \"2m\"
            [[service]]\nname = \"shop\"\nendpoints = [\"10.0.0.1:80\"]
            health_check = { kind = \"http\", path = \"/healthy\", status = 204, interval = \"9s\" }\n";
        let config = ringmesh_model::config::parse(file, "x.toml").unwrap();
        let shown = show(&ringmesh_model::resolve::resolve(&config, &Default::default(), None, 1).unwrap());
        let keys = |section: &str, keys: &[&str]| {
            for key in keys {
                assert!(shown[section][0].get(key).is_some(), "{section}.{key} in {shown:#}");
            }
        };
        keys("listener", ringmesh_model::listener::KEYS.names);
        keys("service", ringmesh_model::service::KEYS.names);
        let (front, shop) = (&shown["listener"][0], &shown["service"][0]);
        assert_eq!(front["forwarded"], json!({ "trust": ["10.0.0.0/8"], "write": "both" }));
        assert_eq!((&front["connect"], &front["via"]), (&json!("forward"), &json!("edge")));
        assert_eq!((&front["upgrade"], &front["tunnel_idle_timeout"]), (&json!(["websocket"]), &json!("2m")));
        assert_eq!(front["grpc_web"], true);
        let check = &shop["health_check"];
        assert_eq!(
            (&check["kind"], &check["path"], &check["status"]),
            (&json!("http"), &json!("/healthy"), &json!(204))
        );
        assert_eq!((&check["interval"], &check["healthy_after"]), (&json!("9s"), &json!(2)));
    }

    #[test]
    fn the_private_key_is_not_shown_in_any_form() {
        let snapshot = snapshot();
        let shown = show(&snapshot).to_string();
        let text = std::str::from_utf8(SECRET).unwrap();
        let numbers = SECRET.iter().map(u8::to_string).collect::<Vec<_>>().join(",");
        assert!(shown.contains("spiffe://shop.example/ns/default/sa/payments"), "the identity itself is: {shown}");
        assert!(!shown.contains(text) && !shown.contains(&numbers), "{shown}");
        assert!(!shown.contains("\"key\""), "{shown}");
    }
}
