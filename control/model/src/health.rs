//! `health_check` of a `[[service]]`: how its endpoints are asked whether they serve.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{Cause, Located};
use crate::reader::{Field, Keys, Section, Word};

/// Keys of `health_check` in a service.
pub const KEYS: Keys = Keys {
    path: "service.health_check",
    header: "`health_check` of a [[service]]",
    names: &["kind", "service", "path", "host", "status", "interval", "timeout", "healthy_after", "unhealthy_after"],
};

/// From one probe's end to the next: what proxies commonly take. Shorter finds a sick endpoint sooner, and costs each endpoint
/// as many probes as there are proxies that call it.
pub const DEFAULT_INTERVAL: Duration = Duration::from_secs(5);

/// Shortest: probes must not become load.
pub const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Longest: what is found out less often nobody waits for.
pub const MAX_INTERVAL: Duration = Duration::from_secs(3600);

/// How long a probe may take, connecting included: an endpoint that needs longer for so little is no help.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);

/// Shortest: the data plane's clock ticks every 10 ms.
pub const MIN_TIMEOUT: Duration = Duration::from_millis(10);

/// Longest.
pub const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// Probes in a row that make a sick endpoint a healthy one: one may be luck.
pub const DEFAULT_HEALTHY_AFTER: u32 = 2;

/// Probes in a row that must fail before an endpoint is passed over: one may be a lost packet.
pub const DEFAULT_UNHEALTHY_AFTER: u32 = 3;

/// Most of either.
pub const MAX_IN_A_ROW: u32 = 100;

/// Longest name of a gRPC service, in bytes: it is in each probe.
pub const MAX_SERVICE_BYTES: usize = 256;

/// Longest path or host, in bytes, for the same reason.
pub const MAX_PATH_BYTES: usize = 1024;

/// How endpoints are asked whether they serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// What they are asked.
    pub probe: Probe,
    /// From one probe's end to the next.
    pub interval: Duration,
    /// How long a probe may take, connecting included.
    pub timeout: Duration,
    /// Probes in a row that make a sick endpoint a healthy one.
    pub healthy_after: u32,
    /// Failed probes in a row that make a healthy endpoint a sick one.
    pub unhealthy_after: u32,
}

/// What an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// `grpc.health.v1.Health/Check` for a service; the whole server if its name is empty.
    Grpc {
        /// Its name, as `shop.Cart`.
        service: String,
    },
    /// GET.
    Http {
        /// Path, and query if there is one.
        path: String,
        /// The authority. None: the service's name in the mesh.
        host: Option<String>,
        /// The status that is healthy. None: every 2xx.
        status: Option<u16>,
    },
    /// To connect is enough, with the handshake if there is one.
    Tcp,
}

/// The word for it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Grpc,
    Http,
    Tcp,
}

impl Word for Kind {
    const WORDS: &'static [(&'static str, Self)] = &[("grpc", Self::Grpc), ("http", Self::Http), ("tcp", Self::Tcp)];

    const FOREIGN: &'static [(&'static str, &'static str)] = &[(
        "https",
        "write `http`; endpoints are asked as they are called, with mutual TLS where the service has a `peer`",
    )];
}

/// Which keys say something of one kind only.
const OF_A_KIND: [(&str, Kind); 4] =
    [("service", Kind::Grpc), ("path", Kind::Http), ("host", Kind::Http), ("status", Kind::Http)];

pub(crate) fn read(field: &Field<'_>) -> Option<Located<HealthCheck>> {
    let table = field.section(&KEYS, "a table such as { kind = \"http\", path = \"/healthy\" }")?;
    let kind = match table.field("kind") {
        Some(kind) => crate::reader::word::<Kind>(&kind),
        None => {
            table.miss("kind", "kind = \"http\"");
            None
        }
    }?;
    let word = Kind::WORDS.iter().find(|(_, one)| *one == kind).map_or("", |(word, _)| word);
    for (key, of) in OF_A_KIND {
        if let Some(field) = table.field(key).filter(|_| of != kind) {
            field.refuse(Cause::NotOfKind(word));
        }
    }
    let probe = match kind {
        Kind::Grpc => {
            // The protocol's own word for the whole server.
            let named = table.field("service").filter(|field| field.text() != Some(""));
            let service = named.map(|field| text(&field, GRPC_SERVICE, MAX_SERVICE_BYTES, is_name));
            Probe::Grpc { service: service.unwrap_or(Some(String::new()))? }
        }
        Kind::Http => http(&table)?,
        Kind::Tcp => Probe::Tcp,
    };
    let check = HealthCheck {
        probe,
        interval: table.ranged("interval", DEFAULT_INTERVAL, MIN_INTERVAL, MAX_INTERVAL),
        timeout: table.ranged("timeout", DEFAULT_TIMEOUT, MIN_TIMEOUT, MAX_TIMEOUT),
        healthy_after: table.number("healthy_after", DEFAULT_HEALTHY_AFTER, 1, MAX_IN_A_ROW),
        unhealthy_after: table.number("unhealthy_after", DEFAULT_UNHEALTHY_AFTER, 1, MAX_IN_A_ROW),
    };
    Some(Located { value: check, place: field.place() })
}

const GRPC_SERVICE: &str = "the name of a gRPC service such as \"shop.Cart\"";

const PATH: &str = "a path such as \"/healthy\"";

const HOST: &str = "a host such as \"shop.example\" or \"shop.example:8080\"";

fn http(table: &Section<'_>) -> Option<Probe> {
    let Some(path) = table.field("path") else {
        table.miss("path", "path = \"/healthy\"");
        return None;
    };
    let path = text(&path, PATH, MAX_PATH_BYTES, |text| text.starts_with('/') && is_visible(text));
    let host = table.field("host").map(|field| text(&field, HOST, MAX_PATH_BYTES, is_authority));
    let status = table.field("status").map(|_| table.number("status", 200, 200, 599) as u16);
    Some(Probe::Http { path: path?, host: host.map_or(Some(None), |host| host.map(Some))?, status })
}

fn text(field: &Field<'_>, expected: &'static str, most: usize, allowed: impl Fn(&str) -> bool) -> Option<String> {
    let text = field.expect_text(expected)?;
    if text.is_empty() || text.len() > most || !allowed(text) {
        field.refuse(Cause::WrongText { expected, found: text.to_owned() });
        return None;
    }
    Some(text.to_owned())
}

/// Visible ASCII without what ends a target.
fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#')
}

fn is_name(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn is_authority(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte))
}
