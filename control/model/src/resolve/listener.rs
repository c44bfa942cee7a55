//! Listeners: where they are and where their traffic goes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;

use super::{Resolver, Subject};
use crate::edge::DEFAULT_TLS_MIN_VERSION;
use crate::error::Cause;
use crate::listener::{CertificateFiles, Listener};
use crate::snapshot::{self, Address, Certificate, ListenerTarget, Mtls, Protocol, ProxyAt, RouteProtocol};

impl<'a> Resolver<'a> {
    /// No two listeners, the admin pages included, on one address.
    pub(super) fn addresses(&mut self) {
        let mut seen: HashMap<Address, String> = HashMap::new();
        // The listener of all addresses at a port, and any listener there.
        let mut wildcards: HashMap<(bool, u16), String> = HashMap::new();
        let mut ports: HashMap<(bool, u16), String> = HashMap::new();
        let config = self.config;
        if let Some(bind) = &config.admin.bind {
            let name = "the admin pages ([admin] `bind`)".to_owned();
            if let Address::Ip(address) = bind.value {
                for is_ipv6 in families(address, false) {
                    let family = (is_ipv6, address.port());
                    ports.insert(family, name.clone());
                    if address.ip().is_unspecified() {
                        wildcards.insert(family, name.clone());
                    }
                }
            }
            seen.insert(bind.value.clone(), name);
        }
        for (index, listener) in config.listeners.iter().enumerate() {
            let bind = &listener.bind;
            let name = format!("listener \"{}\" (line {})", listener.name, bind.place.line);
            let mut taken = seen.get(&bind.value).cloned();
            if let Address::Ip(address) = bind.value {
                // The kernel chooses a free port.
                if address.port() == 0 {
                    continue;
                }
                for is_ipv6 in families(address, listener.ipv6_only.value) {
                    let family = (is_ipv6, address.port());
                    let mut other = wildcards.get(&family).cloned();
                    if address.ip().is_unspecified() {
                        other = other.or_else(|| ports.get(&family).cloned());
                        wildcards.entry(family).or_insert_with(|| name.clone());
                    }
                    ports.entry(family).or_insert_with(|| name.clone());
                    if address.is_ipv6() && !is_ipv6 {
                        other = other.map(|other| format!("{other}, as it takes IPv4 along; set `ipv6_only = true`"));
                    }
                    taken = taken.or(other);
                }
            }
            if let Some(other) = taken {
                let subject = Subject { kind: "listener", index, name: &listener.name };
                self.note(subject, "bind", bind.place, Cause::AddressTaken { address: bind.to_string(), other });
            }
            seen.entry(bind.value.clone()).or_insert(name);
        }
    }

    pub(super) fn listener(
        &mut self,
        index: usize,
        listener: &'a Listener,
        certificates: &BTreeMap<CertificateFiles, Certificate>,
    ) -> snapshot::Listener {
        let subject = Subject { kind: "listener", index, name: &listener.name };
        if listener.mtls.value == Mtls::Strict {
            self.needs_identity(subject, "mtls", listener.mtls.place, "\"strict\"");
            if !listener.tls.is_empty() {
                self.note(subject, "mtls", listener.mtls.place, Cause::TwoKindsOfTls);
            }
        }
        if listener.protocol == Protocol::Tls {
            if listener.mtls.value == Mtls::Strict {
                self.note(subject, "mtls", listener.mtls.place, Cause::TlsEnded);
            }
            if let Some(files) = listener.tls.first() {
                self.note(subject, "tls", files.place, Cause::TlsEnded);
            }
        }
        let mut tls = Vec::new();
        for files in &listener.tls {
            match certificates.get(&files.value) {
                Some(certificate) => tls.push(certificate.clone()),
                None => {
                    let cause = Cause::CertificateNotLoaded(files.certificate.display().to_string());
                    self.note(subject, "tls", files.place, cause);
                }
            }
        }
        self.fitting_address(subject, listener);
        let edge = self.edge(subject, listener);
        let proxy_protocol = listener.proxy_protocol.as_ref().map(|proxies| {
            for proxy in &proxies.from {
                if let Some(cause) = never_connects(*proxy, &listener.bind) {
                    self.note(subject, "proxy_protocol.from", proxies.place, cause);
                }
            }
            proxies.value.clone()
        });
        let target = match (&listener.service, &listener.edge.redirect) {
            (Some(service), _) => {
                let named = |protocol| self.routed.contains(&(protocol, listener.name.as_str()));
                let (http, tls) = (named(RouteProtocol::Http), named(RouteProtocol::Tls));
                let gets = match listener.protocol {
                    Protocol::Detect if http => Protocol::Tcp,
                    Protocol::Detect => Protocol::Http,
                    declared => declared,
                };
                self.call(subject, "service", service, service.place, gets);
                self.needs_interception(subject, "service", service, service.place, [listener]);
                match listener.protocol {
                    Protocol::Detect if http || tls => ListenerTarget::RoutesElse(service.value.clone()),
                    _ => ListenerTarget::Service(service.value.clone()),
                }
            }
            (None, Some(redirect)) => ListenerTarget::Redirect(redirect.value),
            (None, None) => {
                let place = listener.name.place;
                match (
                    listener.protocol,
                    self.is_routed(listener, RouteProtocol::Http),
                    self.is_routed(listener, RouteProtocol::Tls),
                ) {
                    (Protocol::Tcp, ..) => self.note(subject, "", place, Cause::TcpWithoutService),
                    (_, false, false) => self.note(subject, "", place, Cause::NoTarget),
                    (Protocol::Detect, true, false) => {
                        self.note(subject, "", place, Cause::NothingToDetect("requests", "http"));
                    }
                    (Protocol::Detect, false, true) => {
                        self.note(subject, "", place, Cause::NothingToDetect("TLS connections", "tls"));
                    }
                    _ => {}
                }
                ListenerTarget::Routes
            }
        };
        snapshot::Listener {
            name: listener.name.value.clone(),
            bind: listener.bind.value.clone(),
            ipv6_only: listener.ipv6_only.value,
            permissions: listener.permissions.as_ref().map(|permissions| permissions.value.clone()).unwrap_or_default(),
            protocol: listener.protocol,
            intercept: listener.intercept.as_ref().map(|direction| direction.value),
            mtls: listener.mtls.value,
            tls,
            proxy_protocol,
            target,
            edge,
            limits: listener.limits.clone(),
            hop: listener.hop.clone(),
        }
    }

    /// What is said to clients of everywhere must be true of that kind of listener.
    fn edge(&mut self, subject: Subject<'_>, listener: &Listener) -> snapshot::Edge {
        let edge = &listener.edge;
        if let Some(redirect) = &edge.redirect {
            let strict = listener.mtls.value == Mtls::Strict;
            let with = [(listener.service.is_some(), "service"), (!listener.tls.is_empty(), "tls"), (strict, "mtls")];
            for (_, key) in with.iter().filter(|(is_there, _)| *is_there) {
                self.note(subject, "redirect", redirect.place, Cause::RedirectWith(key));
            }
            if !listener.protocol.is_http() {
                let protocol = listener.protocol.word();
                self.note(subject, "redirect", redirect.place, Cause::RedirectOfBytes(protocol));
            }
        }
        if let Some(hsts) = &edge.hsts {
            if listener.tls.is_empty() {
                let why = ": browsers believe it from nobody else (RFC 6797 section 8.1)";
                self.note(subject, "hsts", hsts.place, Cause::NeedsTls(why));
            } else if !listener.protocol.is_http() {
                self.note(
                    subject,
                    "hsts",
                    hsts.place,
                    Cause::NeedsTls(" and with \"http\" or \"http2\" as `protocol`"),
                );
            }
        }
        if edge.tls_min_version.value != DEFAULT_TLS_MIN_VERSION && listener.tls.is_empty() {
            let why = "; `mtls = \"strict\"` speaks TLS 1.3 alone";
            self.note(subject, "tls_min_version", edge.tls_min_version.place, Cause::NeedsTls(why));
        }
        if let Some(max) = &edge.max_handshakes
            && listener.tls.is_empty()
            && listener.mtls.value == Mtls::Off
        {
            self.note(subject, "max_handshakes", max.place, Cause::NoHandshakes);
        }
        snapshot::Edge {
            hsts: edge.hsts.as_ref().map(|hsts| hsts.value),
            tls_min_version: edge.tls_min_version.value,
            max_connections_per_source: edge.max_connections_per_source,
            max_handshakes: edge.max_handshakes.as_ref().map(|max| max.value),
            max_body_bytes: edge.max_body.map(|size| size.0),
        }
    }

    /// What is said of an address must be true of that kind of address.
    fn fitting_address(&mut self, subject: Subject<'_>, listener: &Listener) {
        let mut refuse = |field, place, why| {
            self.note(subject, field, place, Cause::NotForAddress { address: listener.bind.to_string(), why });
        };
        if listener.ipv6_only.value && !is_all_of_ipv6(&listener.bind) {
            refuse(
                "ipv6_only",
                listener.ipv6_only.place,
                "only \"[::]:PORT\" takes IPv4 along, unless it is true there",
            );
        }
        if let Some(permissions) = &listener.permissions {
            match &listener.bind.value {
                Address::Ip(_) => {
                    refuse("permissions", permissions.place, "only a Unix socket has an owner and a mode")
                }
                Address::Unix(path) if path.starts_with("/") => {}
                Address::Unix(_) => {
                    refuse(
                        "permissions",
                        permissions.place,
                        "a name without a file is open to all of its network namespace",
                    );
                }
            }
        }
    }

    fn is_routed(&self, listener: &Listener, protocol: RouteProtocol) -> bool {
        let named = self.routed.contains(&(protocol, listener.name.as_str()));
        named || listener.protocol.routes().contains(&protocol) && self.routed_everywhere.contains(&protocol)
    }
}

fn is_all_of_ipv6(address: &Address) -> bool {
    matches!(address, Address::Ip(SocketAddr::V6(address)) if address.ip().is_unspecified())
}

/// Whether the clients of a port are of IPv6, of IPv4, or of both.
fn families(address: SocketAddr, ipv6_only: bool) -> impl Iterator<Item = bool> {
    let both = is_all_of_ipv6(&Address::Ip(address)) && !ipv6_only;
    [address.is_ipv6(), false].into_iter().take(if both { 2 } else { 1 })
}

/// Why a proxy cannot come in there: its listener is of the other kind of socket.
fn never_connects(proxy: ProxyAt, bind: &Address) -> Option<Cause> {
    let why = match (proxy, bind) {
        (ProxyAt::Network(_), Address::Unix(_)) => "clients of a Unix socket have no IP addresses; write \"unix\"",
        (ProxyAt::Unix, Address::Ip(_)) => "only clients of a Unix socket are \"unix\"; write their network",
        _ => return None,
    };
    Some(Cause::NeverConnects { proxy, why })
}
