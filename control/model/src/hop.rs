//! What an HTTP listener does as one hop of several (RFC 9110 section 7): `upgrade`, `connect`, `tunnel_idle_timeout`,
//! `forwarded`, `via` and `grpc_web` of a `[[listener]]`.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Cause;
use crate::listener::{DEFAULT_TCP_IDLE_TIMEOUT, MAX_TIMEOUT, MIN_TIMEOUT};
use crate::network::Network;
use crate::reader::{Field, FromField, Keys, OFF, Section, Word};
use crate::snapshot::Protocol;

/// Keys of `forwarded` in a listener.
pub const FORWARDED_KEYS: Keys =
    Keys { path: "listener.forwarded", header: "`forwarded` of [[listener]]", names: &["trust", "write"] };

/// The one protocol that requests may change to where nothing is said: all others are rare, and `h2c` is a way past the
/// proxy.
pub const DEFAULT_UPGRADE: &str = "websocket";

/// Most protocols of a listener: each is compared with what a request asks for.
pub const MAX_UPGRADES: usize = 16;

/// Most networks of a listener: each is compared with each request's client.
pub const MAX_TRUSTED: usize = 256;

/// Longest silence in a tunnel, both directions together: as for opaque bytes, which it carries.
pub const DEFAULT_TUNNEL_IDLE_TIMEOUT: Duration = DEFAULT_TCP_IDLE_TIMEOUT;

/// Longest pseudonym in `Via`: each hop's is in every request.
pub const MAX_PSEUDONYM_BYTES: usize = 64;

/// Whether calls in gRPC-Web become gRPC: not unless asked for. Services that speak gRPC-Web themselves are there, and a proxy
/// that nobody asked changes no body.
pub const DEFAULT_GRPC_WEB: bool = false;

/// What a listener does as one hop of several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    /// Protocols that a request may change its connection to, in lower case (RFC 9110 section 7.8).
    pub upgrade: Vec<String>,
    /// What becomes of CONNECT.
    pub connect: Connect,
    /// Longest silence in a tunnel, both directions together.
    pub tunnel_idle_timeout: Duration,
    /// What becomes of the fields that tell who asked first. None: they pass as they came.
    pub forwarded: Option<Forwarded>,
    /// What it calls itself in `Via` (RFC 9110 section 7.6.3). None: it does not.
    pub via: Option<String>,
    /// Whether calls of browsers in gRPC-Web become gRPC for a service of HTTP/2.
    pub grpc_web: bool,
}

impl Default for Hop {
    fn default() -> Self {
        Self {
            upgrade: vec![DEFAULT_UPGRADE.to_owned()],
            connect: Connect::Off,
            tunnel_idle_timeout: DEFAULT_TUNNEL_IDLE_TIMEOUT,
            forwarded: None,
            via: None,
            grpc_web: DEFAULT_GRPC_WEB,
        }
    }
}

/// What becomes of CONNECT (RFC 9110 section 9.3.6). The tunnel leads to an endpoint of the service that the listener or
/// its routes name for the authority, never to an address that the client chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connect {
    /// It is refused.
    Off,
    /// The endpoint is asked for a tunnel in turn.
    Forward,
    /// The tunnel ends here: its bytes go to the endpoint as they are.
    Terminate,
}

impl Word for Connect {
    const WORDS: &'static [(&'static str, Self)] =
        &[(OFF, Self::Off), ("forward", Self::Forward), ("terminate", Self::Terminate)];
}

/// What becomes of `Forwarded` and `X-Forwarded-*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// Whose words are kept and added to; those of others are left out. A peer that has proved an identity of the trust
    /// domain is believed as well, and so is one on a Unix socket, where the file's permissions decide who comes.
    pub trust: Vec<Network>,
    /// What is written of the client.
    pub write: Write,
}

/// Which fields tell of the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Write {
    /// `X-Forwarded-For`, `-Proto` and `-Host`.
    XForwarded,
    /// `Forwarded` (RFC 7239).
    Forwarded,
    /// Both.
    Both,
    /// None.
    None,
}

impl Word for Write {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("x-forwarded", Self::XForwarded),
        ("forwarded", Self::Forwarded),
        ("both", Self::Both),
        ("none", Self::None),
    ];
}

/// Who can come to a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clients {
    /// Applications of this machine.
    Local,
    /// Those with an identity of the trust domain.
    Peers,
    /// Anybody.
    Anybody,
}

impl Hop {
    pub(crate) fn read(section: &Section<'_>, clients: Clients, protocol: Protocol) -> Self {
        if matches!(protocol, Protocol::Tcp | Protocol::Tls) {
            only_of_requests(section, protocol);
        }
        let idle = section.ranged("tunnel_idle_timeout", DEFAULT_TUNNEL_IDLE_TIMEOUT, MIN_TIMEOUT, MAX_TIMEOUT);
        Self {
            upgrade: section.field("upgrade").map_or_else(|| vec![DEFAULT_UPGRADE.to_owned()], |field| upgrade(&field)),
            connect: section.word("connect", Connect::Off),
            tunnel_idle_timeout: idle,
            forwarded: section.field("forwarded").map_or_else(|| implied(clients), |field| forwarded(&field)),
            via: section.field("via").filter(|field| field.text() != Some(OFF)).and_then(|field| pseudonym(&field)),
            grpc_web: section.or("grpc_web", DEFAULT_GRPC_WEB),
        }
    }
}

/// Notes what is asked for and never happens: somebody counts on it.
fn only_of_requests(section: &Section<'_>, protocol: Protocol) {
    for key in ["upgrade", "connect", "forwarded", "via", "grpc_web"] {
        if let Some(field) = section.field(key).filter(|field| field.text() != Some(OFF) && !field.is_false()) {
            field.refuse(Cause::NotForBytes(protocol.word()));
        }
    }
}

/// What becomes of those fields where nothing is said. Where anybody can come, they could be anybody's words, and services
/// believe them: they are written anew. An application on the same machine and a peer with an identity are part of the
/// mesh, whose words pass.
fn implied(clients: Clients) -> Option<Forwarded> {
    (clients == Clients::Anybody).then_some(Forwarded { trust: Vec::new(), write: DEFAULT_WRITE })
}

/// What services have read for twenty years; few know RFC 7239.
const DEFAULT_WRITE: Write = Write::XForwarded;

fn forwarded(field: &Field<'_>) -> Option<Forwarded> {
    const EXPECTED: &str = "\"off\", or a table such as { trust = [\"10.0.0.0/8\"], write = \"forwarded\" }";
    if field.text() == Some(OFF) {
        return None;
    }
    let table = field.section(&FORWARDED_KEYS, EXPECTED)?;
    let networks = |field: Field<'_>| field.expect_set::<Network>("a list such as [\"10.0.0.0/8\"]", NOBODY);
    let trust: Vec<_> = table.field("trust").and_then(networks).unwrap_or_default();
    if trust.len() > MAX_TRUSTED
        && let Some(field) = table.field("trust")
    {
        field.refuse(Cause::TooMany { found: trust.len(), max: MAX_TRUSTED });
    }
    Some(Forwarded {
        trust: trust.into_iter().map(|network| network.value).collect(),
        write: table.word("write", DEFAULT_WRITE),
    })
}

const NOBODY: &str = "leave it out to believe nobody";

/// Protocols in lower case.
fn upgrade(field: &Field<'_>) -> Vec<String> {
    if field.text() == Some(OFF) {
        return Vec::new();
    }
    let protocols = field.expect_set::<Upgrade>("a list such as [\"websocket\"], or \"off\"", "write \"off\" for none");
    let protocols: Vec<String> = protocols.unwrap_or_default().into_iter().map(|protocol| protocol.value.0).collect();
    if protocols.len() > MAX_UPGRADES {
        field.refuse(Cause::TooMany { found: protocols.len(), max: MAX_UPGRADES });
    }
    protocols
}

/// A protocol that a connection may change to.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Upgrade(String);

impl fmt::Display for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromField for Upgrade {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a protocol such as \"websocket\"";
        let text = field.expect_text(EXPECTED)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~/".contains(&byte);
        if text.is_empty() || !text.bytes().all(allowed) {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
            return None;
        }
        let protocol = text.to_ascii_lowercase();
        let name = protocol.split('/').next().unwrap_or_default();
        if matches!(name, "h2c" | "h2" | "http" | "tls") {
            field.refuse(Cause::UpgradePastTheProxy(text.to_owned()));
            return None;
        }
        Some(Self(protocol))
    }
}

fn pseudonym(field: &Field<'_>) -> Option<String> {
    const EXPECTED: &str = "a name of at most 64 letters, digits, `.`, `-` and `_`, or \"off\"";
    let text = field.expect_text(EXPECTED)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if !(1..=MAX_PSEUDONYM_BYTES).contains(&text.len()) || !text.bytes().all(allowed) {
        field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
        return None;
    }
    Some(text.to_owned())
}
