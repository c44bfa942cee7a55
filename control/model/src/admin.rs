//! `[admin]`: metrics, readiness and the running config, over HTTP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::error::{Located, Place};
use crate::reader::{Keys, OFF, Section};
use crate::snapshot::Address;

/// Keys of `[admin]`.
pub const KEYS: Keys = Keys { path: "admin", header: "[admin]", names: &["bind"] };

/// Where the admin pages are: on loopback only, because they show the config and know no users. 15021 is where Istio's
/// proxies answer readiness probes, so that probes and scrape jobs from there go on working.
pub const DEFAULT_BIND: Address = Address::Ip(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15021));

/// `[admin]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Admin {
    /// Where it listens. None: nowhere.
    pub bind: Option<Located<Address>>,
    /// Whether the file says so. Where it does not, a proxy does without pages if a neighbour has the default port.
    pub named: bool,
}

impl Default for Admin {
    fn default() -> Self {
        Self { bind: Some(Located { value: DEFAULT_BIND, place: Place { line: 1, column: 1 } }), named: false }
    }
}

impl Admin {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let default = Some(Located { value: DEFAULT_BIND, place: section.place() });
        let bind = match section.field("bind") {
            None => default,
            Some(field) if field.text() == Some(OFF) => None,
            Some(_) => section.optional("bind"),
        };
        Self { bind, named: section.field("bind").is_some() }
    }
}
