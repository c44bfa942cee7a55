//! What a data plane inside this process is configured with: one HTTP listener, routes by host, one policy rule, one service.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use ringmesh_model::snapshot::*;

/// The listener's name.
pub const LISTENER: &str = "front";

/// The only service.
pub const SERVICE: &str = "app";

/// A host that is routed to the service.
pub const HOST: &str = "app.bench.example";

/// Everything that a request to [`HOST`] needs, with `hosts` routed hosts altogether.
pub fn snapshot(bind: SocketAddr, endpoint: SocketAddr, hosts: usize, access_log: AccessLog) -> Snapshot {
    let settings = Settings {
        trust_domain: "bench.example".into(),
        workload: "bench".into(),
        access_log,
        log_level: Level::Info,
        drain_timeout: Duration::from_secs(1),
    };
    let mut objects = BTreeMap::from([
        (Key::Settings, Object::Settings(settings.into())),
        (Key::Listener(LISTENER.into()), Object::Listener(listener(bind).into())),
        (Key::Service(SERVICE.into()), Object::Service(service(SERVICE, endpoint).into())),
        (Key::Policy("reads".into()), Object::Policy(policy().into())),
    ]);
    for host in std::iter::once(HOST.to_owned()).chain((1..hosts).map(other_host)) {
        objects.insert(Key::Route(host.clone()), Object::Route(route(host).into()));
    }
    Snapshot { version: 1, objects }
}

/// The name of the `n`-th host beside [`HOST`].
pub fn other_host(n: usize) -> String {
    format!("service-{n}.bench.example")
}

fn listener(bind: SocketAddr) -> Listener {
    Listener {
        name: LISTENER.into(),
        bind: Address::Ip(bind),
        ipv6_only: false,
        permissions: Default::default(),
        protocol: Protocol::Http,
        intercept: None,
        mtls: Mtls::Off,
        tls: Vec::new(),
        proxy_protocol: None,
        target: ListenerTarget::Routes,
        edge: Default::default(),
        limits: ListenerLimits {
            max_header_bytes: 60 * 1024,
            max_headers: 100,
            max_connections: 65_536,
            max_streams: 100,
            header_timeout: Duration::from_secs(10),
            min_transfer_rate: NonZeroU32::new(240),
            idle_timeout: Duration::from_mins(5),
            handshake_timeout: Duration::from_secs(5),
            detect_timeout: Duration::from_secs(5),
            request_timeout: None,
            tcp_keepalive: None,
            opaque: OpaqueLimits {
                idle_timeout: Duration::from_mins(5),
                min_transfer_rate: NonZeroU32::new(240),
                max_duration: None,
            },
        },
        hop: Hop::default(),
    }
}

/// A service with one endpoint.
pub fn service(name: &str, endpoint: SocketAddr) -> Service {
    Service {
        name: name.into(),
        protocol: Protocol::Http,
        peer: None,
        proxy_protocol: None,
        destination: Destination::Endpoints,
        mark: None,
        endpoints: vec![Endpoint { address: Address::Ip(endpoint), zone: None }],
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_secs(2),
        connect_retries: 2,
        idle_timeout: Duration::from_secs(30),
        max_in_flight: None,
        max_idle_per_endpoint: 128,
        share_connections: true,
        tcp_keepalive: None,
        health_check: None,
    }
}

fn route(host: String) -> Route {
    let rule = RouteRule {
        name: "0".into(),
        matches: RouteMatch::default(),
        to: vec![Target { service: SERVICE.into(), weight: 1 }],
        timeout: None,
    };
    Route {
        name: host.clone(),
        protocol: RouteProtocol::Http,
        listeners: Vec::new(),
        hosts: vec![HostPattern::Exact(host)],
        rules: vec![rule],
    }
}

fn policy() -> Policy {
    let paths = vec![PathMatch::Prefix("/".into())];
    let rule = AllowRule { name: "0".into(), from: Vec::new(), methods: vec!["GET".into()], paths };
    Policy { name: "reads".into(), listener: LISTENER.into(), allow: vec![rule] }
}
