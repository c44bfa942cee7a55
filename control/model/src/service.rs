//! `[[service]]`: what is called, and its endpoints.

use std::collections::HashSet;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::error::{Cause, Located};
use crate::health::{self, HealthCheck};
use crate::listener::{MAX_TIMEOUT, MIN_TIMEOUT, tcp_keepalive};
use crate::name::Name;
use crate::reader::{Field, FromField, Keys, Section, UNIX, Word, unix, word};
use crate::snapshot::{Address, Balance, Destination, Protocol, ProxyVersion};

/// Keys of `[[service]]`.
pub const KEYS: Keys = Keys {
    path: "service",
    header: "[[service]]",
    names: &[
        "name",
        "peer",
        "endpoints",
        "protocol",
        "proxy_protocol",
        "balance",
        "connect_timeout",
        "connect_retries",
        "idle_timeout",
        "max_in_flight",
        "max_idle_per_endpoint",
        "share_connections",
        "tcp_keepalive",
        "health_check",
    ],
};

/// Keys of an endpoint that is written as a table.
pub const ENDPOINT_KEYS: Keys =
    Keys { path: "service.endpoints", header: "`endpoints` of a [[service]]", names: &["address", "zone"] };

/// How an endpoint is chosen: of two picked at random the one with fewer requests in flight. It needs no knowledge of
/// weights and speeds, and sends a slow endpoint less ("The Power of Two Random Choices", Mitzenmacher).
pub const DEFAULT_BALANCE: Balance = Balance::LeastRequest;

/// For one endpoint, TLS handshake included. A lost SYN is sent again after 1 s (RFC 6298 section 2); this survives one.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How many further endpoints are tried when connecting fails: no request was sent yet, so nothing can happen twice.
pub const DEFAULT_CONNECT_RETRIES: u32 = 2;

/// Most further endpoints that can be tried. Each is a connect timeout that a client may have to wait for.
pub const MAX_CONNECT_RETRIES: u32 = 16;

/// How long an unused connection is kept. Shorter than servers keep theirs (nginx 75 s, Tomcat and Ringmesh itself more), so
/// that we close first and no request meets a connection that is closing.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Most unused connections that one worker keeps to one endpoint: enough for the swings of a busy worker, and a bound for
/// what a burst leaves behind.
pub const DEFAULT_MAX_IDLE_PER_ENDPOINT: u32 = 128;

/// What shares wake-ups, records and system calls is cheaper, and endpoints that are no proxies of ours never notice.
pub const DEFAULT_SHARE_CONNECTIONS: bool = true;

/// `[[service]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Unique name.
    pub name: Located<String>,
    /// The identity that its endpoints must prove, as written: short, `ns/name`, or whole. None: plain connections.
    pub peer: Option<Located<String>>,
    /// Where its requests go.
    pub destination: Destination,
    /// Its endpoints: at least one, or none if they go to the original destination.
    pub endpoints: Vec<Located<Endpoint>>,
    /// What its endpoints speak. None: tcp if only tcp listeners send to it, else http.
    pub protocol: Option<Located<Protocol>>,
    /// The PROXY header that each connection to an endpoint begins with. None: none.
    pub proxy_protocol: Option<ProxyVersion>,
    /// How an endpoint is chosen.
    pub balance: Balance,
    /// From the first connect system call to the end of the handshake, for one endpoint.
    pub connect_timeout: Duration,
    /// How many further endpoints are tried when connecting fails.
    pub connect_retries: u32,
    /// How long an unused connection is kept.
    pub idle_timeout: Duration,
    /// Most requests in flight over all workers. None: no limit.
    pub max_in_flight: Option<u32>,
    /// Most unused connections that one worker keeps to one endpoint.
    pub max_idle_per_endpoint: u32,
    /// Whether requests and opaque connections share connections to endpoints that are proxies of ours.
    pub share_connections: bool,
    /// Silence after which the kernel asks whether an endpoint is still there.
    pub tcp_keepalive: Option<Duration>,
    /// How its endpoints are asked whether they serve. None: they are not.
    pub health_check: Option<Located<HealthCheck>>,
}

/// One entry of `endpoints`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it is.
    pub address: EndpointAddress,
    /// The zone it is in, if known.
    pub zone: Option<String>,
}

/// Where an endpoint is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    /// At an address.
    At(Address),
    /// Wherever DNS says.
    Name(HostPort),
}

impl fmt::Display for EndpointAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(address) => address.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// A DNS name and a port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The name, in lower case.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Service {
    pub(crate) fn read(section: &Section<'_>) -> Option<Self> {
        let name = section.required::<Located<Name>>("name", "name = \"payments\"");
        let peer = section.optional::<Located<String>>("peer");
        let destination = destination(section);
        let endpoints = match destination {
            Destination::Endpoints => endpoints(section),
            Destination::Original => Some(Vec::new()),
        };
        let protocol = section
            .field("protocol")
            .and_then(|field| Some(Located { value: word::<Spoken>(&field)?.0, place: field.place() }));
        let proxy_protocol = section.field("proxy_protocol").and_then(|field| word(&field));
        let balance = section.word("balance", DEFAULT_BALANCE);
        let timeout = |key, default| section.ranged(key, default, MIN_TIMEOUT, MAX_TIMEOUT);
        let connect_timeout = timeout("connect_timeout", DEFAULT_CONNECT_TIMEOUT);
        let connect_retries = section.number("connect_retries", DEFAULT_CONNECT_RETRIES, 0, MAX_CONNECT_RETRIES);
        let idle_timeout = timeout("idle_timeout", DEFAULT_IDLE_TIMEOUT);
        let max_in_flight = section.number_or_off("max_in_flight", None, 1, u32::MAX);
        let max_idle_per_endpoint = section.number("max_idle_per_endpoint", DEFAULT_MAX_IDLE_PER_ENDPOINT, 0, 65_536);
        Some(Self {
            name: Name::unwrap(name?),
            peer,
            destination,
            endpoints: endpoints?,
            protocol,
            proxy_protocol,
            balance,
            connect_timeout,
            connect_retries,
            idle_timeout,
            max_in_flight,
            max_idle_per_endpoint,
            share_connections: section.or("share_connections", DEFAULT_SHARE_CONNECTIONS),
            tcp_keepalive: tcp_keepalive(section),
            health_check: section.field("health_check").and_then(|field| health::read(&field)),
        })
    }
}

/// What `endpoints` says instead of a list.
const ORIGINAL: &str = "original_destination";

fn destination(section: &Section<'_>) -> Destination {
    match section.field("endpoints").and_then(|field| field.text()) {
        Some(ORIGINAL) => Destination::Original,
        _ => Destination::Endpoints,
    }
}

fn endpoints(section: &Section<'_>) -> Option<Vec<Located<Endpoint>>> {
    const EXPECTED: &str = "a list such as [\"10.0.0.7:8080\"], or \"original_destination\"";
    let Some(field) = section.field("endpoints") else {
        section.miss("endpoints", "endpoints = [\"10.0.0.7:8080\"]");
        return None;
    };
    let items = field.expect_items(EXPECTED, "list at least one address")?;
    let mut seen = HashSet::with_capacity(items.len());
    let mut endpoints = Vec::with_capacity(items.len());
    for item in &items {
        let Some(endpoint) = Located::<Endpoint>::from_field(item) else { continue };
        if seen.insert(endpoint.address.clone()) {
            endpoints.push(endpoint);
        } else {
            item.refuse(Cause::Twice(endpoint.address.to_string()));
        }
    }
    Some(endpoints)
}

impl FromField for Endpoint {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        if !field.is_table() {
            return Some(Self { address: EndpointAddress::from_field(field)?, zone: None });
        }
        let table = field.section(&ENDPOINT_KEYS, "an endpoint")?;
        let address = table.required("address", "address = \"10.0.0.7:8080\"");
        let zone = table.optional::<Located<Name>>("zone").map(|zone| Name::unwrap(zone).value);
        Some(Self { address: address?, zone })
    }
}

/// What an endpoint looks like, for messages.
const ENDPOINT_EXAMPLE: &str =
    "an endpoint such as \"10.0.0.7:8080\", \"payments.local:8080\" or \"unix:/run/shop.sock\"";

impl FromField for EndpointAddress {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text(ENDPOINT_EXAMPLE)?;
        if let Some(path) = text.strip_prefix(UNIX) {
            return unix(field, path).map(|path| Self::At(Address::Unix(path)));
        }
        let address = match text.parse::<SocketAddr>() {
            Ok(address) => Some(Self::At(Address::Ip(address))).filter(|_| address.port() != 0),
            Err(_) => host_port(text).map(Self::Name),
        };
        if address.is_none() {
            field.refuse(Cause::WrongText { expected: ENDPOINT_EXAMPLE, found: text.to_owned() });
        }
        address
    }
}

fn host_port(text: &str) -> Option<HostPort> {
    let (host, port) = text.rsplit_once(':')?;
    let port = port.parse().ok().filter(|port| *port != 0)?;
    is_host(host).then(|| HostPort { host: host.to_ascii_lowercase(), port })
}

/// Whether a text may be a DNS name (RFC 1123 section 2.1, and the underscores that exist all the same), and not an address
/// that lacks something: the last label of a name is never all digits.
pub(crate) fn is_host(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| !label.is_empty() && label.len() <= 63 && label.bytes().all(allowed);
    let last = text.rsplit('.').next().unwrap_or_default();
    text.len() <= 253 && text.split('.').all(label) && !last.bytes().all(|byte| byte.is_ascii_digit())
}

impl Word for ProxyVersion {
    const WORDS: &'static [(&'static str, Self)] = &[("v1", Self::V1), ("v2", Self::V2)];
}

/// What endpoints can speak: TLS that a listener passes on unopened is opaque to us.
#[derive(Clone, Copy)]
struct Spoken(Protocol);

impl Word for Spoken {
    const WORDS: &'static [(&'static str, Self)] =
        &[("http", Self(Protocol::Http)), ("http2", Self(Protocol::Http2)), ("tcp", Self(Protocol::Tcp))];

    const FOREIGN: &'static [(&'static str, &'static str)] = &[
        ("https", "write `http`; TLS to endpoints is mutual, and `peer` says with whom"),
        ("tls", "write `http`, `http2` or `tcp`; TLS to endpoints is mutual, and `peer` says with whom"),
        ("grpc", "gRPC is HTTP/2: write `http2`"),
        ("h2", "write `http2`"),
        ("h2c", "write `http2`"),
        ("websocket", "it begins as a request: write `http`"),
    ];
}

impl Word for Balance {
    const WORDS: &'static [(&'static str, Self)] =
        &[("least_request", Self::LeastRequest), ("round_robin", Self::RoundRobin)];
}
