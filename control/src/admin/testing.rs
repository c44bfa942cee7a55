//! A configuration and a state that a ready proxy has.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ringmesh_model::network::Network;
use ringmesh_model::snapshot::{
    AccessLog, Address, AllowRule, Balance, Destination, Endpoint, Hop, HostPattern, Identity, Key, Level, Listener,
    ListenerLimits, ListenerTarget, Mtls, Object, OpaqueLimits, Others, PathMatch, Permissions, Policy, Protocol,
    ProxyAt, ProxyProtocol, ProxyVersion, Route, RouteMatch, RouteProtocol, RouteRule, Service, Settings, Snapshot,
    Target,
};

use crate::state::{self, Phase, State};

/// The private key.
pub(super) const SECRET: &[u8] = b"the key that nobody may see";

pub(super) fn ready_state() -> State {
    let mut state = State { mesh: "shop.example".to_owned(), workload: "payments".to_owned(), ..State::default() };
    state.dataplane.phase = Phase::Running;
    (state.config.version, state.config.live_version) = (7, 7);
    state.listeners = vec![state::Listener {
        name: "inbound".to_owned(),
        bind: "127.0.0.1:15006".to_owned(),
        sockets: 2,
        problem: None,
        ..state::Listener::default()
    }];
    state
}

pub(super) fn snapshot() -> Snapshot {
    let name = str::to_owned;
    let objects = [
        (
            Key::Settings,
            Object::Settings(
                Settings {
                    trust_domain: name("shop.example"),
                    workload: name("payments"),
                    access_log: AccessLog::On,
                    log_level: Level::Info,
                    drain_timeout: Duration::from_secs(25),
                }
                .into(),
            ),
        ),
        (
            Key::Identity,
            Object::Identity(
                Identity {
                    id: "spiffe://shop.example/ns/default/sa/payments".parse().unwrap(),
                    chain: vec![vec![1], vec![2]],
                    key: SECRET.to_vec(),
                    bundle: vec![vec![3]],
                    expires: 1_700_000_000,
                }
                .into(),
            ),
        ),
        (Key::Listener(name("inbound")), Object::Listener(listener().into())),
        (Key::Service(name("local")), Object::Service(service().into())),
        (Key::Route(name("payments")), Object::Route(route().into())),
        (
            Key::Policy(name("only-checkout")),
            Object::Policy(
                Policy {
                    name: name("only-checkout"),
                    listener: name("inbound"),
                    allow: vec![AllowRule {
                        name: name("0"),
                        from: vec!["spiffe://shop.example/ns/default/sa/checkout".parse().unwrap()],
                        methods: vec![name("POST")],
                        paths: vec![PathMatch::Exact(name("/charge"))],
                    }],
                }
                .into(),
            ),
        ),
    ];
    Snapshot { version: 7, objects: objects.into() }
}

fn listener() -> Listener {
    Listener {
        name: "inbound".to_owned(),
        bind: Address::Ip("127.0.0.1:15006".parse().unwrap()),
        ipv6_only: false,
        permissions: Permissions { mode: Some(0o660), ..Permissions::default() },
        protocol: Protocol::Http,
        intercept: None,
        mtls: Mtls::Strict,
        tls: Vec::new(),
        proxy_protocol: Some(ProxyProtocol {
            from: vec![ProxyAt::Network(Network::new([10, 0, 0, 0].into(), 8).unwrap()), ProxyAt::Unix],
            others: Others::Serve,
        }),
        target: ListenerTarget::Service("local".to_owned()),
        edge: Default::default(),
        limits: ListenerLimits {
            max_header_bytes: 65_536,
            max_headers: 100,
            max_connections: 1000,
            max_streams: 100,
            header_timeout: Duration::from_secs(10),
            min_transfer_rate: NonZeroU32::new(240),
            idle_timeout: Duration::from_secs(60),
            handshake_timeout: Duration::from_secs(10),
            detect_timeout: Duration::from_secs(5),
            request_timeout: None,
            tcp_keepalive: None,
            opaque: OpaqueLimits {
                idle_timeout: Duration::from_secs(60),
                min_transfer_rate: NonZeroU32::new(240),
                max_duration: None,
            },
        },
        hop: Hop::default(),
    }
}

fn service() -> Service {
    Service {
        name: "local".to_owned(),
        protocol: Protocol::Http,
        peer: None,
        proxy_protocol: Some(ProxyVersion::V2),
        destination: Destination::Endpoints,
        mark: None,
        endpoints: vec![Endpoint { address: Address::Unix(PathBuf::from("/run/app.sock")), zone: None }],
        balance: Balance::LeastRequest,
        connect_timeout: Duration::from_millis(250),
        connect_retries: 2,
        idle_timeout: Duration::from_secs(60),
        max_in_flight: None,
        max_idle_per_endpoint: 16,
        share_connections: true,
        tcp_keepalive: None,
        health_check: None,
    }
}

fn route() -> Route {
    Route {
        protocol: RouteProtocol::Http,
        name: "payments".to_owned(),
        listeners: Vec::new(),
        hosts: vec![
            HostPattern::Exact("payments".to_owned()),
            HostPattern::Suffix("shop".to_owned()),
            HostPattern::Any,
        ],
        rules: vec![RouteRule {
            name: "0".to_owned(),
            matches: RouteMatch { path: PathMatch::Prefix("/v2".to_owned()), ..RouteMatch::default() },
            to: vec![Target { service: "local".to_owned(), weight: 1 }],
            timeout: Some(Duration::from_secs(2)),
        }],
    }
}
