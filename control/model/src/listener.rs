//! `[[listener]]`: a port that clients or peers connect to.

use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Cause, Located};
use crate::hop::Hop;
use crate::name::Name;
use crate::reader::{Field, Keys, Section, Word};
use crate::snapshot::{Address, ListenerLimits, Mtls, Protocol};
use crate::unit::ByteSize;

/// Keys of `[[listener]]`.
pub const KEYS: Keys = Keys {
    path: "listener",
    header: "[[listener]]",
    names: &[
        "name",
        "bind",
        "protocol",
        "mtls",
        "tls",
        "service",
        "max_connections",
        "max_header_bytes",
        "max_headers",
        "handshake_timeout",
        "header_timeout",
        "min_transfer_rate",
        "request_timeout",
        "idle_timeout",
        "upgrade",
        "connect",
        "tunnel_idle_timeout",
        "forwarded",
        "via",
    ],
};

/// Keys of `tls` in a listener.
pub const TLS_KEYS: Keys =
    Keys { path: "listener.tls", header: "`tls` of [[listener]]", names: &["certificate", "key"] };

/// Most certificates of a listener.
pub const MAX_CERTIFICATES: usize = 1000;

/// What is spoken where nothing is said: what most services of a mesh speak. It is never guessed from the bytes.
pub const DEFAULT_PROTOCOL: Protocol = Protocol::Http;

/// Mutual TLS must be asked for, because it needs an identity, and an edge listener has clients without one.
pub const DEFAULT_MTLS: Mtls = Mtls::Off;

/// Most open connections of a listener over all workers. A bound, not a target: an idle one costs about a kilobyte, and
/// this many fit the descriptor limits that systemd and container runtimes give.
pub const DEFAULT_MAX_CONNECTIONS: u32 = 65_536;

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

/// From accept to the end of the TLS handshake. Two round trips round the world take half a second; a client that needs
/// more than ten times that holds a place without proving who it is.
pub const DEFAULT_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

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
    /// What is spoken there.
    pub protocol: Protocol,
    /// Whether peers must prove who they are.
    pub mtls: Located<Mtls>,
    /// The certificates that it shows to clients which need not prove who they are: the edge's TLS. Empty: none.
    pub tls: Vec<Located<CertificateFiles>>,
    /// The service that gets all of its traffic. None: routes decide.
    pub service: Option<Located<String>>,
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
        let mtls = section.field("mtls").map_or(section.place(), |field| field.place());
        let mtls = Located { value: section.word("mtls", DEFAULT_MTLS), place: mtls };
        let tls = certificates(section, folder);
        let service = section.optional::<Located<Name>>("service").map(Name::unwrap);
        let limits = limits(section, protocol);
        let bind = bind?;
        let hop = Hop::read(section, &bind.value, mtls.value);
        Some(Self { name: Name::unwrap(name?), bind, protocol, mtls, tls, service, limits, hop })
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
    let idle = match protocol {
        Protocol::Http => DEFAULT_HTTP_IDLE_TIMEOUT,
        Protocol::Tcp => DEFAULT_TCP_IDLE_TIMEOUT,
    };
    let header_size = section.ranged("max_header_bytes", DEFAULT_MAX_HEADER, MIN_MAX_HEADER, MAX_MAX_HEADER);
    ListenerLimits {
        max_header_bytes: usize::try_from(header_size.0).unwrap_or(usize::MAX),
        max_headers: section.number("max_headers", DEFAULT_MAX_HEADERS, 1, MAX_MAX_HEADERS) as usize,
        max_connections: section.number("max_connections", DEFAULT_MAX_CONNECTIONS, 1, u32::MAX),
        header_timeout: timeout("header_timeout", DEFAULT_HEADER_TIMEOUT),
        min_transfer_rate: min_transfer_rate(section, protocol),
        idle_timeout: timeout("idle_timeout", idle),
        handshake_timeout: timeout("handshake_timeout", DEFAULT_HANDSHAKE_TIMEOUT),
        request_timeout: section.ranged_or_off("request_timeout", None, MIN_TIMEOUT, MAX_TIMEOUT),
    }
}

fn min_transfer_rate(section: &Section<'_>, protocol: Protocol) -> Option<NonZeroU32> {
    // Clients of a database pause while they leaf through a result: only who runs it can say what is too slow.
    let default = match protocol {
        Protocol::Http => Some(DEFAULT_HTTP_MIN_TRANSFER_RATE),
        Protocol::Tcp => None,
    };
    let rate = section.ranged_or_off("min_transfer_rate", default, MIN_MIN_TRANSFER_RATE, MAX_MIN_TRANSFER_RATE)?;
    u32::try_from(rate.0).ok().and_then(NonZeroU32::new)
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[("http", Self::Http), ("tcp", Self::Tcp)];
}

impl Word for Mtls {
    const WORDS: &'static [(&'static str, Self)] = &[("off", Self::Off), ("strict", Self::Strict)];
}
