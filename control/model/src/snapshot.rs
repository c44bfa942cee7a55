//! The resolved snapshot: what the data plane needs, with every reference checked and every name resolved.
//!
//! A snapshot is a map of named objects. Two snapshots differ by a [`crate::delta::Delta`], found by comparing objects, so
//! applying a change costs in proportion to the change.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use crate::health::HealthCheck;
pub use crate::hop::Hop;
pub use crate::log::Level;
use crate::network::Network;
use crate::spiffe::SpiffeId;

/// The name of one object of the configuration, unique among its kind.
pub type Name = String;

/// What an object is called: its kind and its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Key {
    /// The settings of the whole process; there is one.
    Settings,
    /// The workload's own SVID and the trust bundle; there is at most one.
    Identity,
    /// A listener.
    Listener(Name),
    /// A service.
    Service(Name),
    /// A route.
    Route(Name),
    /// A policy.
    Policy(Name),
}

/// One object of the configuration. Its variant always matches its [`Key`]. Snapshots, deltas and tables share it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Object {
    /// See [`Settings`].
    Settings(Arc<Settings>),
    /// See [`Identity`].
    Identity(Arc<Identity>),
    /// See [`Listener`].
    Listener(Arc<Listener>),
    /// See [`Service`].
    Service(Arc<Service>),
    /// See [`Route`].
    Route(Arc<Route>),
    /// See [`Policy`].
    Policy(Arc<Policy>),
}

/// Everything the data plane is told, at one version.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Counts up by one with each change that control publishes; starts at 1.
    pub version: u64,
    /// All objects.
    pub objects: BTreeMap<Key, Object>,
}

impl Snapshot {
    /// All listeners, by name.
    pub fn listeners(&self) -> impl Iterator<Item = &Arc<Listener>> {
        let all = self.objects.range(Key::Listener(Name::new())..Key::Service(Name::new()));
        all.filter_map(|(_, object)| if let Object::Listener(listener) = object { Some(listener) } else { None })
    }

    /// All services, by name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let all = self.objects.range(Key::Service(Name::new())..Key::Route(Name::new()));
        all.filter_map(|(_, object)| if let Object::Service(service) = object { Some(service) } else { None })
    }

    /// All routes, by name.
    pub fn routes(&self) -> impl Iterator<Item = &Arc<Route>> {
        let all = self.objects.range(Key::Route(Name::new())..Key::Policy(Name::new()));
        all.filter_map(|(_, object)| if let Object::Route(route) = object { Some(route) } else { None })
    }

    /// All policies, by name.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        let all = self.objects.range(Key::Policy(Name::new())..);
        all.filter_map(|(_, object)| if let Object::Policy(policy) = object { Some(policy) } else { None })
    }
}

/// Where bytes go to or come from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Address {
    /// IPv4 or IPv6 address and port.
    Ip(SocketAddr),
    /// Path of a Unix stream socket, or `@` and the name of one without a file.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Settings of the whole process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Trust domain of the mesh, without scheme.
    pub trust_domain: String,
    /// Name of the workload this proxy serves.
    pub workload: Name,
    /// Whether each request leaves a line in the access log.
    pub access_log: AccessLog,
    /// From which importance on messages are logged.
    pub log_level: Level,
    /// How long open requests may go on after a stop was asked for.
    pub drain_timeout: Duration,
}

/// Whether requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AccessLog {
    /// One JSON line for each request.
    On,
    /// None.
    Off,
}

/// The workload's SVID with its key, and whom it trusts. X.509-SVID, section 4 and 5.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// The SPIFFE ID that the leaf certificate carries.
    pub id: SpiffeId,
    /// DER certificates, leaf first, then the intermediates.
    pub chain: Vec<Vec<u8>>,
    /// DER PKCS#8 private key.
    pub key: Vec<u8>,
    /// DER root certificates of the own trust domain.
    pub bundle: Vec<Vec<u8>>,
    /// End of the leaf's validity, in seconds since the Unix epoch.
    pub expires: u64,
}

impl fmt::Debug for Identity {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("id", &self.id).field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// A certificate for a listener, with its key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The DNS names that it is for, in lower case; `*.` in front means any one label.
    pub names: Vec<String>,
    /// DER certificates, leaf first, then the intermediates.
    pub chain: Vec<Vec<u8>>,
    /// DER PKCS#8 private key.
    pub key: Vec<u8>,
    /// End of the leaf's validity, in seconds since the Unix epoch.
    pub expires: u64,
}

impl fmt::Debug for Certificate {
    /// Never prints the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("names", &self.names)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// A port that clients or peers connect to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Listener {
    /// Unique name.
    pub name: Name,
    /// Where it listens.
    pub bind: Address,
    /// Whether a port of IPv6's unspecified address is for IPv6 alone; else IPv4's comes with it.
    pub ipv6_only: bool,
    /// Who may connect to it, if it is a Unix socket.
    pub permissions: Permissions,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Which intercepted connections it takes, if any: what their clients wanted to reach then belongs to them.
    pub intercept: Option<Direction>,
    /// Whether peers must prove who they are.
    pub mtls: Mtls,
    /// The certificates that it shows to clients which need not prove who they are. Empty: no such TLS.
    pub tls: Vec<Certificate>,
    /// Whose connections begin with a PROXY header. None: nobody's.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Where its traffic goes.
    pub target: ListenerTarget,
    /// What it says to clients of everywhere.
    pub edge: Edge,
    /// Its limits and deadlines.
    pub limits: ListenerLimits,
    /// What it does as one hop of several.
    pub hop: Hop,
}

impl Listener {
    /// When the first of its certificates ends, in seconds since the Unix epoch. None if it has none.
    pub fn tls_expires(&self) -> Option<u64> {
        self.tls.iter().map(|certificate| certificate.expires).min()
    }
}

/// Who may connect to a Unix socket. What is None stays as it is when its file is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permissions {
    /// The file's mode.
    pub mode: Option<u32>,
    /// The file's owner, by name or number.
    pub owner: Option<String>,
    /// The file's group, by name or number.
    pub group: Option<String>,
}

/// Which connections of a machine, container or pod are intercepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Direction {
    /// Those that others make to it.
    Inbound,
    /// Those that it makes to others.
    Outbound,
}

/// A protocol that a listener or service speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// HTTP. A listener takes HTTP/1.1 (RFC 9112) and HTTP/2 (RFC 9113), as the client wants: in plain by prior knowledge,
    /// in TLS by ALPN. A service gets HTTP/1.1.
    Http,
    /// HTTP/2 and nothing else.
    Http2,
    /// Opaque bytes.
    Tcp,
    /// TLS that is passed on unopened, by what its ClientHello asks for. Only listeners.
    Tls,
    /// Of a listener, whatever the first bytes say: HTTP, TLS that is passed on unopened, or opaque bytes. Of a service, the
    /// version of HTTP that its client speaks.
    Detect,
}

impl Protocol {
    /// Which routes may apply to a listener of this protocol.
    pub const fn routes(self) -> &'static [RouteProtocol] {
        match self {
            Self::Http | Self::Http2 => &[RouteProtocol::Http],
            Self::Tls => &[RouteProtocol::Tls],
            Self::Detect => &[RouteProtocol::Http, RouteProtocol::Tls],
            Self::Tcp => &[],
        }
    }

    /// Whether it is a version of HTTP and nothing else: there are requests, with methods, hosts and paths.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http2)
    }

    /// The word of the config.
    pub fn word(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Detect => "detect",
        }
    }
}

/// What a route routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RouteProtocol {
    /// Requests, by their authority (Gateway API `HTTPRoute`).
    Http,
    /// TLS connections that are passed on unopened, by the server name that they ask for (Gateway API `TLSRoute`).
    Tls,
}

/// Mutual TLS of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mtls {
    /// Plain connections only.
    Off,
    /// A peer presents an SVID of the trust domain, or there is no connection.
    Strict,
}

/// Who must say, by a PROXY header, for whom it connects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProxyProtocol {
    /// The proxies. A connection of theirs begins with a header, or is refused; nobody else's header is read.
    pub from: Vec<ProxyAt>,
    /// What becomes of all others.
    pub others: Others,
}

/// Where a proxy connects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProxyAt {
    /// From an address of this network.
    Network(Network),
    /// Over the Unix socket that the listener is.
    Unix,
}

impl fmt::Display for ProxyAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(network) => network.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// What becomes of clients that are none of the proxies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Others {
    /// They are refused.
    Refuse,
    /// They are served as clients that connect themselves.
    Serve,
}

/// A version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// Where a listener's traffic goes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ListenerTarget {
    /// All of it to one service.
    Service(Name),
    /// To where the routes say that apply to this listener.
    Routes,
    /// Requests and TLS to where the routes say that name this listener, if there are any for them; all else to one service.
    /// Only where the protocol is detected.
    RoutesElse(Name),
    /// Nowhere: clients are sent to HTTPS.
    Redirect(Redirect),
}

/// Where clients are sent that came in plain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Redirect {
    /// The port of HTTPS as clients see it.
    pub port: NonZeroU16,
    /// What they are told.
    pub status: RedirectStatus,
}

impl Default for Redirect {
    fn default() -> Self {
        Self { port: const { NonZeroU16::new(443).expect("it is not 0") }, status: RedirectStatus::PermanentRedirect }
    }
}

/// A status that sends clients elsewhere for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedirectStatus {
    /// 301: clients may make a GET of a POST (RFC 9110 section 15.4.2).
    MovedPermanently,
    /// 308: the method stays (RFC 9110 section 15.4.9).
    PermanentRedirect,
}

impl RedirectStatus {
    /// The number.
    pub fn code(self) -> u16 {
        match self {
            Self::MovedPermanently => 301,
            Self::PermanentRedirect => 308,
        }
    }
}

/// What a listener says to clients of everywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Edge {
    /// What browsers are told of HTTPS. None: nothing.
    pub hsts: Option<Hsts>,
    /// The oldest version of TLS that is spoken with clients without an identity.
    pub tls_min_version: TlsVersion,
    /// Most open connections of one source, over all workers. None: no limit.
    pub max_connections_per_source: Option<NonZeroU32>,
    /// Most TLS handshakes under way at a time, over all workers. None: no limit.
    pub max_handshakes: Option<NonZeroU32>,
    /// Most bytes of a request's body. None: no limit.
    pub max_body_bytes: Option<u64>,
}

/// HTTP Strict Transport Security (RFC 6797).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hsts {
    /// How long browsers remember it, in whole seconds. 0: they forget it.
    pub max_age: Duration,
    /// Whether it is true of all subdomains too.
    pub include_subdomains: bool,
    /// Whether it may be built into browsers.
    pub preload: bool,
}

impl fmt::Display for Hsts {
    /// As the field's value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max-age={}", self.max_age.as_secs())?;
        f.write_str(if self.include_subdomains { "; includeSubDomains" } else { "" })?;
        f.write_str(if self.preload { "; preload" } else { "" })
    }
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsVersion {
    /// TLS 1.2 (RFC 5246).
    Tls12,
    /// TLS 1.3 (RFC 8446).
    #[default]
    Tls13,
}

impl TlsVersion {
    /// The word of the config.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        }
    }
}

/// What a peer may ask of a listener.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ListenerLimits {
    /// Largest request head (request line and fields), in bytes; also of the response head.
    pub max_header_bytes: usize,
    /// Most fields in a head.
    pub max_headers: usize,
    /// Most open connections over all workers.
    pub max_connections: u32,
    /// Most requests at a time on one HTTP/2 connection.
    pub max_streams: u32,
    /// From accept, or the end of a request, to the end of the next head once its first byte came.
    pub header_timeout: Duration,
    /// Fewest bytes a second that a peer may send or take, after some grace, while it is waited for. None: no bound but
    /// `idle_timeout`.
    pub min_transfer_rate: Option<NonZeroU32>,
    /// Longest silence of a keep-alive connection between two requests.
    pub idle_timeout: Duration,
    /// From accept to the end of the PROXY header and of the TLS handshake.
    pub handshake_timeout: Duration,
    /// From the head's end to the response's end, unless the route says otherwise. None: no bound but `idle_timeout` on
    /// each wait for a body.
    pub request_timeout: Option<Duration>,
    /// From accept, or the end of the TLS handshake, until it is clear what a client speaks, where that is detected.
    pub detect_timeout: Duration,
    /// Silence after which the kernel asks whether a client is still there (TCP keep-alive). None: it never asks.
    pub tcp_keepalive: Option<Duration>,
    /// For connections that are opaque.
    pub opaque: OpaqueLimits,
}

/// What may be asked of an opaque connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpaqueLimits {
    /// Longest silence in both directions together.
    pub idle_timeout: Duration,
    /// Fewest bytes a second that a peer may take while some wait for it, after some grace. None: no bound.
    pub min_transfer_rate: Option<NonZeroU32>,
    /// From accept to close, however busy. None: no bound.
    pub max_duration: Option<Duration>,
}

/// What is called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Unique name.
    pub name: Name,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// The identity that its endpoints must prove by mutual TLS. None: plain connections.
    pub peer: Option<SpiffeId>,
    /// The PROXY header that each connection to an endpoint begins with. None: none.
    pub proxy_protocol: Option<ProxyVersion>,
    /// Where its requests go.
    pub destination: Destination,
    /// What connections to its endpoints carry (`SO_MARK`), so that they are not intercepted. None: nothing.
    pub mark: Option<u32>,
    /// Its endpoints, resolved. May be empty (a name that did not resolve yet): then requests get 503.
    pub endpoints: Vec<Endpoint>,
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
    /// Most idle connections that one worker keeps to one endpoint.
    pub max_idle_per_endpoint: u32,
    /// Whether what goes to endpoints that are proxies of ours shares connections.
    pub share_connections: bool,
    /// Silence after which the kernel asks whether an endpoint is still there (TCP keep-alive). None: it never asks.
    pub tcp_keepalive: Option<Duration>,
    /// How its endpoints are asked whether they serve. None: they are not.
    pub health_check: Option<HealthCheck>,
}

/// Where the requests for a service go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Destination {
    /// To one of its endpoints.
    Endpoints,
    /// To where the client of the intercepted connection wanted to go. The service has no endpoints.
    Original,
}

/// One address that serves a service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// The zone it is in, if known.
    pub zone: Option<String>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Balance {
    /// The one with fewer requests in flight of two picked at random.
    LeastRequest,
    /// One after the other.
    RoundRobin,
}

/// Which requests go where.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Route {
    /// Unique name.
    pub name: Name,
    /// What it routes.
    pub protocol: RouteProtocol,
    /// Listeners it applies to; empty means all of its protocol that have no service of their own.
    pub listeners: Vec<Name>,
    /// Hosts it applies to. TLS without a server name has any host and no other.
    pub hosts: Vec<HostPattern>,
    /// Its rules; the most specific match wins (see [`crate::resolve`]), already in that order here.
    pub rules: Vec<RouteRule>,
}

/// Which hosts a route applies to. Names are in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HostPattern {
    /// This name.
    Exact(String),
    /// Any name that ends in `.` and this one.
    Suffix(String),
    /// Any name.
    Any,
}

impl fmt::Display for HostPattern {
    /// As the file writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Suffix(name) => write!(f, "*.{name}"),
            Self::Any => f.write_str("*"),
        }
    }
}

/// One rule of a route.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RouteRule {
    /// Unique within the route; the key's position ("0", "1") unless the file names it.
    pub name: Name,
    /// What a request must be like.
    pub matches: RouteMatch,
    /// Where it goes; weights sum to more than nothing.
    pub to: Vec<Target>,
    /// From the head's end to the response's end; replaces the listener's.
    pub timeout: Option<Duration>,
}

/// What a request must be like, or a TLS connection: then only `alpn` says something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RouteMatch {
    /// Its path.
    pub path: PathMatch,
    /// Its method, one of these; empty means any. Case-sensitive (RFC 9110 section 9.1).
    pub methods: Vec<String>,
    /// Fields it carries; all of them.
    pub headers: Vec<HeaderMatch>,
    /// Protocols of ALPN (RFC 7301) of which the client offers one; empty means any, or none at all.
    pub alpn: Vec<String>,
}

/// How a path is matched, query excluded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// Exactly this path.
    Exact(String),
    /// This path, or one that continues it after a `/` (Gateway API `PathPrefix`). No trailing slash but for `/` itself.
    Prefix(String),
}

/// A field that a request must carry with just this value.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeaderMatch {
    /// Field name in lower case.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A service with its share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// Name of the service.
    pub service: Name,
    /// Its share, relative to the sum of the rule.
    pub weight: u32,
}

/// Who may call a listener. A listener without a policy admits every identity of its trust domain (or everybody, without
/// mutual TLS); with one, only what some rule of some policy allows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Unique name.
    pub name: Name,
    /// The listener it guards.
    pub listener: Name,
    /// What is allowed.
    pub allow: Vec<AllowRule>,
}

/// One allow rule. All of its parts must match; an empty part matches anything.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AllowRule {
    /// Unique within the policy; the key's position unless the file names it.
    pub name: Name,
    /// Identities; one of them.
    pub from: Vec<SpiffeId>,
    /// Methods; one of them.
    pub methods: Vec<String>,
    /// Paths; one of them.
    pub paths: Vec<PathMatch>,
}
