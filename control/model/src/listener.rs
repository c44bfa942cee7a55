//! `[[listener]]`: a port that clients or peers connect to.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::edge::Edge;
use crate::error::{Cause, Located};
use crate::hop::{Clients, Hop};
use crate::name::Name;
use crate::network::Network;
use crate::reader::{Field, FromField, Keys, Section, Word, word};
use crate::snapshot::{
    Address, Direction, ListenerLimits, Mtls, OpaqueLimits, Others, Permissions, Protocol, ProxyAt, ProxyProtocol,
};
use crate::unit::ByteSize;

/// Keys of `[[listener]]`.
pub const KEYS: Keys = Keys {
    path: "listener",
    header: "[[listener]]",
    names: &[
        "name",
        "bind",
        "ipv6_only",
        "permissions",
        "protocol",
        "intercept",
        "mtls",
        "tls",
        "proxy_protocol",
        "service",
        "redirect",
        "hsts",
        "tls_min_version",
        "max_connections",
        "max_connections_per_source",
        "max_handshakes",
        "max_body",
        "max_streams",
        "max_header_bytes",
        "max_headers",
        "handshake_timeout",
        "detect_timeout",
        "header_timeout",
        "min_transfer_rate",
        "request_timeout",
        "idle_timeout",
        "max_connection_duration",
        "tcp_keepalive",
        "upgrade",
        "connect",
        "tunnel_idle_timeout",
        "forwarded",
        "via",
        "grpc_web",
    ],
};

/// Keys of `tls` in a listener.
pub const TLS_KEYS: Keys =
    Keys { path: "listener.tls", header: "`tls` of [[listener]]", names: &["certificate", "key"] };

/// Keys of `permissions` in a listener.
pub const PERMISSIONS_KEYS: Keys =
    Keys { path: "listener.permissions", header: "`permissions` of [[listener]]", names: &["mode", "owner", "group"] };

/// `[::]` is every address: whoever means IPv6 alone says so.
pub const DEFAULT_IPV6_ONLY: bool = false;

/// Keys of `proxy_protocol` in a listener.
pub const PROXY_PROTOCOL_KEYS: Keys =
    Keys { path: "listener.proxy_protocol", header: "`proxy_protocol` of [[listener]]", names: &["from", "others"] };

/// What becomes of clients that are no proxies: who puts a proxy in front wants nobody to pass beside it.
pub const DEFAULT_OTHERS: Others = Others::Refuse;

/// Most networks of proxies: each new connection is compared with all of them.
pub const MAX_PROXIES: usize = 256;

/// Most certificates of a listener.
pub const MAX_CERTIFICATES: usize = 1000;

/// What is spoken where nothing is said: what most services of a mesh speak. It is guessed from the bytes only where
/// a listener says so.
pub const DEFAULT_PROTOCOL: Protocol = Protocol::Http;

/// Mutual TLS must be asked for, because it needs an identity, and an edge listener has clients without one.
pub const DEFAULT_MTLS: Mtls = Mtls::Off;

/// Most open connections of a listener over all workers. A bound, not a target: an idle one costs about a kilobyte, and
/// this many fit the descriptor limits that systemd and container runtimes give.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 65_536;

/// Most requests at a time on one HTTP/2 connection: what RFC 9113 section 6.5.2 recommends not to fall below, and what Envoy
/// and nginx (128) allow. Each may hold a window of bytes.
pub const DEFAULT_MAX_STREAMS: u32 = 100;

/// Most that can be allowed: memory of a connection is bounded by it.
pub const MAX_MAX_STREAMS: u32 = 10_000;
const _: () = assert!(DEFAULT_MAX_STREAMS <= MAX_MAX_STREAMS);

/// Largest request head. The peer chooses the size, so we choose the bound: as Envoy. It takes one large buffer (64 KiB) and
/// leaves room there for the first bytes of a body; less would save nothing until it fits a small one (16 KiB).
pub const DEFAULT_MAX_HEADER: ByteSize = ByteSize(60 << 10);

/// Largest request head that can be allowed, for the same reason.
pub const MAX_MAX_HEADER: ByteSize = ByteSize(60 << 10);
const _: () = assert!(DEFAULT_MAX_HEADER.0 <= MAX_MAX_HEADER.0);

/// Least that can be allowed: RFC 9112 section 3 recommends 8,000 bytes for the request line alone; tests want less.
pub const MIN_MAX_HEADER: ByteSize = ByteSize(1 << 10);

/// Most fields in a head, as in Envoy and Apache.
pub const DEFAULT_MAX_HEADERS: u32 = 100;

/// Most fields that can be allowed: the parser keeps them on its stack.
pub const MAX_MAX_HEADERS: u32 = 128;
const _: () = assert!(DEFAULT_MAX_HEADERS <= MAX_MAX_HEADERS);

/// From accept to the end of the PROXY header and of the TLS handshake, or of the ClientHello where TLS is passed on
/// unopened. Two round trips round the world take half a second; a client that needs
/// more than ten times that holds a place without proving who it is.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Until it is clear what a client speaks, where that is detected. Whoever speaks first does so at once; a first packet that
/// is lost twice is there after three seconds (RFC 6298). A protocol whose server speaks first is never waited for longer
/// than this, and better declared.
pub const DEFAULT_DETECT_TIMEOUT: Duration = Duration::from_secs(5);

/// From a head's first byte to its end: HAProxy's advice for `http-request`, against heads sent byte by byte.
pub const DEFAULT_HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// Fewest bytes a second of an HTTP body, as in Kestrel (`MinRequestBodyDataRate`): slower than any line that people still
/// use, and fast enough that a peer which holds a connection has to work for it.
pub const DEFAULT_HTTP_MIN_TRANSFER_RATE: ByteSize = ByteSize(240);

/// Fewest that can be asked for.
pub const MIN_MIN_TRANSFER_RATE: ByteSize = ByteSize(1);

/// Most that can be asked for: a bound for mistakes. Whoever wants more wants a shorter timeout.
pub const MAX_MIN_TRANSFER_RATE: ByteSize = ByteSize(1 << 20);

/// Longest silence of an HTTP connection. Longer than clients keep theirs, so that the client closes first and no request
/// meets a connection that is closing.
pub const DEFAULT_HTTP_IDLE_TIMEOUT: Duration = Duration::from_secs(300);
const _: () = assert!(
    DEFAULT_HTTP_IDLE_TIMEOUT.as_secs() > crate::service::DEFAULT_IDLE_TIMEOUT.as_secs(),
    "between two Ringmesh proxies, the calling side closes first"
);

/// Longest silence of an opaque connection, both directions taken together: as Envoy, since databases rest for long.
pub const DEFAULT_TCP_IDLE_TIMEOUT: Duration = Duration::from_secs(3600);

/// Silence after which the kernel asks whether the other side is still there, and again every 15 s; four questions without an
/// answer end the connection. Short enough for what stands between: load balancers forget silent connections after 4 to 6
/// minutes, and a peer that lost its power is known in two. Nobody of ours wakes up for it.
pub const DEFAULT_TCP_KEEPALIVE: Duration = Duration::from_secs(60);

/// Shortest: the kernel counts in seconds.
pub(crate) const MIN_TCP_KEEPALIVE: Duration = Duration::from_secs(1);
/// Longest: what the kernel takes (`MAX_TCP_KEEPIDLE`), in whole hours.
pub(crate) const MAX_TCP_KEEPALIVE: Duration = Duration::from_secs(9 * 3600);

/// Longest that any timeout may be.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// Shortest that any timeout may be: the data plane's clock ticks every 10 ms.
pub(crate) const MIN_TIMEOUT: Duration = Duration::from_millis(10);

/// `[[listener]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Listener {
    /// Unique name.
    pub name: Located<String>,
    /// Where it listens.
    pub bind: Located<Address>,
    /// Whether a port of IPv6's unspecified address is for IPv6 alone; else IPv4's comes with it.
    pub ipv6_only: Located<bool>,
    /// Who may connect to it, if it is a Unix socket. None: it is not said.
    pub permissions: Option<Located<Permissions>>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// Which intercepted connections it takes, if any.
    pub intercept: Option<Located<Direction>>,
    /// Whether peers must prove who they are.
    pub mtls: Located<Mtls>,
    /// The certificates that it shows to clients which need not prove who they are: the edge's TLS. Empty: none.
    pub tls: Vec<Located<CertificateFiles>>,
    /// Whose connections begin with a PROXY header. None: nobody's.
    pub proxy_protocol: Option<Located<ProxyProtocol>>,
    /// The service that gets all of its traffic. None: routes decide.
    pub service: Option<Located<String>>,
    /// What it says to clients of everywhere.
    pub edge: Edge,
    /// Its limits and deadlines.
    pub limits: ListenerLimits,
    /// What it does as one hop of several.
    pub hop: Hop,
}

/// A certificate for a listener, with its key. Relative files are relative to the config file's folder.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CertificateFiles {
    /// PEM, leaf first, then the intermediates.
    pub certificate: PathBuf,
    /// PEM, PKCS#8, readable by its owner only.
    pub key: PathBuf,
}

impl Listener {
    pub(crate) fn read(section: &Section<'_>, folder: &Path) -> Option<Self> {
        let name = section.required::<Located<Name>>("name", "name = \"inbound\"");
        let bind = section.required::<Located<Address>>("bind", "bind = \"127.0.0.1:8080\"");
        let protocol = section.word("protocol", DEFAULT_PROTOCOL);
        let intercept =
            section.field("intercept").and_then(|field| Some(Located { value: word(&field)?, place: field.place() }));
        let mtls = section.field("mtls").map_or(section.place(), |field| field.place());
        let mtls = Located { value: section.word("mtls", DEFAULT_MTLS), place: mtls };
        let tls = certificates(section, folder);
        let service = section.optional::<Located<Name>>("service").map(Name::unwrap);
        let limits = limits(section, protocol);
        let edge = Edge::read(section);
        let proxy_protocol = proxy_protocol(section);
        let ipv6_only = Located { value: DEFAULT_IPV6_ONLY, place: section.place() };
        let ipv6_only = section.or("ipv6_only", ipv6_only);
        let permissions = permissions(section);
        let name = Name::unwrap(name?);
        let bind = bind?;
        let from_elsewhere =
            proxy_protocol.is_some() || intercept.as_ref().is_some_and(|to| to.value == Direction::Inbound);
        let clients = match mtls.value {
            Mtls::Strict => Clients::Peers,
            Mtls::Off if is_local(&bind.value) && !from_elsewhere => Clients::Local,
            Mtls::Off => Clients::Anybody,
        };
        let hop = Hop::read(section, clients, protocol);
        Some(Self {
            name,
            bind,
            ipv6_only,
            permissions,
            protocol,
            intercept,
            mtls,
            tls,
            proxy_protocol,
            service,
            edge,
            limits,
            hop,
        })
    }
}

/// Whether only this machine can connect there, by itself.
fn is_local(bind: &Address) -> bool {
    match bind {
        Address::Ip(address) => address.ip().to_canonical().is_loopback(),
        Address::Unix(_) => true,
    }
}

fn permissions(section: &Section<'_>) -> Option<Located<Permissions>> {
    let field = section.field("permissions")?;
    let table = field.section(&PERMISSIONS_KEYS, "a table such as { mode = \"0660\", group = \"www-data\" }")?;
    let mode = table.field("mode").and_then(|field| mode(&field));
    let owner = table.optional::<String>("owner");
    let group = table.optional::<String>("group");
    Some(Located { value: Permissions { mode, owner, group }, place: field.place() })
}

/// As `chmod` takes it. Text, because a number of the file would be decimal.
fn mode(field: &Field<'_>) -> Option<u32> {
    const EXPECTED: &str = "a mode in octal digits such as \"0660\"";
    let text = field.expect_text(EXPECTED)?;
    let digits = text.len() == 3 || (text.len() == 4 && text.starts_with('0'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|_| digits && text.bytes().all(|byte| byte.is_ascii_digit()));
    if mode.is_none() {
        field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
    }
    mode
}

/// Who is a proxy must be said: whoever may write the header may be anybody.
fn proxy_protocol(section: &Section<'_>) -> Option<Located<ProxyProtocol>> {
    const EXPECTED: &str = "a table such as { from = [\"10.0.0.0/8\"] }";
    let field = section.field("proxy_protocol")?;
    let table = field.section(&PROXY_PROTOCOL_KEYS, EXPECTED)?;
    let others = table.word("others", DEFAULT_OTHERS);
    let Some(from) = table.field("from") else {
        table.miss("from", "from = [\"10.0.0.0/8\"]");
        return None;
    };
    let from = from.expect_set::<ProxyAt>(
        "a list such as [\"10.0.0.0/8\", \"::1\"]",
        "list the networks of your proxies, or leave `proxy_protocol` out",
    )?;
    if from.len() > MAX_PROXIES {
        field.refuse(Cause::TooManyItems { max: MAX_PROXIES, found: from.len() });
    }
    let from = from.into_iter().map(|proxy| proxy.value).collect();
    Some(Located { value: ProxyProtocol { from, others }, place: field.place() })
}

impl FromField for ProxyAt {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const UNIX: &str = "unix";
        if field.text() == Some(UNIX) {
            return Some(Self::Unix);
        }
        Network::from_field(field).map(Self::Network)
    }
}

/// One table, or a list of them.
fn certificates(section: &Section<'_>, folder: &Path) -> Vec<Located<CertificateFiles>> {
    const EXPECTED: &str = "a table such as { certificate = \"shop.pem\", key = \"shop.key\" }, or a list of them";
    let Some(field) = section.field("tls") else { return Vec::new() };
    let fields = match field.items() {
        Some(items) if items.is_empty() => {
            field.refuse(Cause::EmptyList("leave `tls` out for plain connections"));
            return Vec::new();
        }
        Some(items) if items.len() > MAX_CERTIFICATES => {
            field.refuse(Cause::TooManyItems { max: MAX_CERTIFICATES, found: items.len() });
            return Vec::new();
        }
        Some(items) => items,
        None => vec![field],
    };
    let read = |field: &Field<'_>| {
        let table = field.section(&TLS_KEYS, EXPECTED)?;
        let certificate = table.required::<PathBuf>("certificate", "certificate = \"shop.pem\"");
        let key = table.required::<PathBuf>("key", "key = \"shop.key\"");
        let files = CertificateFiles { certificate: folder.join(certificate?), key: folder.join(key?) };
        Some(Located { value: files, place: field.place() })
    };
    fields.iter().filter_map(read).collect()
}

fn limits(section: &Section<'_>, protocol: Protocol) -> ListenerLimits {
    let timeout = |key, default| section.ranged(key, default, MIN_TIMEOUT, MAX_TIMEOUT);
    let idle = section.ranged_or_none("idle_timeout", MIN_TIMEOUT, MAX_TIMEOUT);
    if let Some(field) = section.field("detect_timeout")
        && says(section, protocol)
        && protocol != Protocol::Detect
    {
        field.refuse(Cause::NothingDetected(protocol.word()));
    }
    let rate = min_transfer_rate(section);
    // Clients of a database pause while they leaf through a result: only who runs it can say what is too slow.
    let http =
        (idle.unwrap_or(DEFAULT_HTTP_IDLE_TIMEOUT), rate.unwrap_or(bytes_a_second(DEFAULT_HTTP_MIN_TRANSFER_RATE)));
    let opaque = (idle.unwrap_or(DEFAULT_TCP_IDLE_TIMEOUT), rate.flatten());
    let (http, opaque) = match protocol {
        Protocol::Http | Protocol::Http2 => (http, http),
        Protocol::Tcp | Protocol::Tls => (opaque, opaque),
        Protocol::Detect => (http, opaque),
    };
    let header_size = section.ranged("max_header_bytes", DEFAULT_MAX_HEADER, MIN_MAX_HEADER, MAX_MAX_HEADER);
    ListenerLimits {
        max_header_bytes: usize::try_from(header_size.0).unwrap_or(usize::MAX),
        max_headers: section.number("max_headers", DEFAULT_MAX_HEADERS, 1, MAX_MAX_HEADERS) as usize,
        max_connections: section.number("max_connections", DEFAULT_MAX_CONNECTIONS, 1, u32::MAX),
        max_streams: section.number("max_streams", DEFAULT_MAX_STREAMS, 1, MAX_MAX_STREAMS),
        header_timeout: timeout("header_timeout", DEFAULT_HEADER_TIMEOUT),
        min_transfer_rate: http.1,
        idle_timeout: http.0,
        handshake_timeout: timeout("handshake_timeout", DEFAULT_HANDSHAKE_TIMEOUT),
        request_timeout: section.ranged_or_off("request_timeout", None, MIN_TIMEOUT, MAX_TIMEOUT),
        detect_timeout: timeout("detect_timeout", DEFAULT_DETECT_TIMEOUT),
        tcp_keepalive: tcp_keepalive(section),
        opaque: OpaqueLimits {
            idle_timeout: opaque.0,
            min_transfer_rate: opaque.1,
            max_duration: section.ranged_or_off("max_connection_duration", None, MIN_TIMEOUT, MAX_TIMEOUT),
        },
    }
}

/// Whether that is the protocol that a section says or implies, and not one in place of a word that is wrong.
fn says(section: &Section<'_>, protocol: Protocol) -> bool {
    section.field("protocol").is_none_or(|field| field.text() == Some(protocol.word()))
}

/// `tcp_keepalive` of a listener or service.
pub(crate) fn tcp_keepalive(section: &Section<'_>) -> Option<Duration> {
    section.ranged_or_off("tcp_keepalive", Some(DEFAULT_TCP_KEEPALIVE), MIN_TCP_KEEPALIVE, MAX_TCP_KEEPALIVE)
}

/// The rate that is written; None: none is.
fn min_transfer_rate(section: &Section<'_>) -> Option<Option<NonZeroU32>> {
    section.field("min_transfer_rate")?;
    let rate = section.ranged_or_off("min_transfer_rate", None, MIN_MIN_TRANSFER_RATE, MAX_MIN_TRANSFER_RATE);
    Some(rate.and_then(bytes_a_second))
}

fn bytes_a_second(rate: ByteSize) -> Option<NonZeroU32> {
    u32::try_from(rate.0).ok().and_then(NonZeroU32::new)
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("http", Self::Http),
        ("http2", Self::Http2),
        ("tcp", Self::Tcp),
        ("tls", Self::Tls),
        ("detect", Self::Detect),
    ];

    const FOREIGN: &'static [(&'static str, &'static str)] = &[
        ("https", "write `http`, and `tls` or `mtls = \"strict\"` beside it"),
        ("grpc", "gRPC is HTTP/2: write `http`, which takes both versions, or `http2`"),
        ("h2", "write `http2`, or `http` for both versions"),
        ("h2c", "write `http2`, or `http` for both versions"),
        ("websocket", "it begins as a request: write `http`"),
    ];
}

impl Word for Others {
    const WORDS: &'static [(&'static str, Self)] = &[("refuse", Self::Refuse), ("serve", Self::Serve)];
}

impl Word for Direction {
    const WORDS: &'static [(&'static str, Self)] = &[("inbound", Self::Inbound), ("outbound", Self::Outbound)];
}

impl Word for Mtls {
    const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("strict", Self::Strict)];
}
