//! Names become references: a config, what DNS answered and the own identity become a [`Snapshot`], or a list of what does
//! not fit together.
//!
//! # Which rule wins
//! Within a route, the rule that says most about a request wins. As in the Gateway API (`HTTPRouteRule`):
//! 1. an exact path before a path prefix,
//! 2. a longer prefix before a shorter one (no path at all counts as the prefix `/`),
//! 3. a rule with a method before one without,
//! 4. more header fields before fewer,
//! 5. a rule with ALPN protocols before one without,
//! 6. and else the one that stands first in the file.
//!
//! Rules are sorted that way here, so the data plane takes the first that matches. Between routes nothing needs to win: one
//! host on one listener belongs to one route. An exact host goes before a longer suffix, that before a shorter one, and
//! `*` comes last.

mod identity;
mod listener;
mod service;
mod route;
mod policy;
mod intercept;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use crate::config::Config;
use crate::error::{Cause, Hint, Located, Place, Problem, Problems};
use crate::intercept::Marking;
use crate::listener::{CertificateFiles, Listener};
use crate::nearest;
use crate::route::Route;
use crate::service::{HostPort, Service};
use crate::snapshot::{Certificate, HostPattern, Identity, Key, Object, Protocol, RouteProtocol, Settings, Snapshot};

/// What DNS said about the names that [`Config::names`] lists. A name without an answer has no endpoints yet.
pub type Answers = BTreeMap<HostPort, Vec<SocketAddr>>;

/// The name of the rule that a route's own `to` makes.
pub const FALLBACK_RULE: &str = "default";

/// Problems for which a similar name is looked for; comparing with all of ten thousand names takes its time.
const MAX_SUGGESTIONS: usize = 20;

/// What the config names and who runs it has read: certificates with their keys.
#[derive(Clone, Debug, Default)]
pub struct Credentials {
    /// The SVID.
    pub identity: Option<Identity>,
    /// The listeners' certificates.
    pub certificates: BTreeMap<CertificateFiles, Certificate>,
    /// Whether the data plane may mark its connections.
    pub marking: Marking,
}

impl From<Option<Identity>> for Credentials {
    fn from(identity: Option<Identity>) -> Self {
        Self { identity, ..Self::default() }
    }
}

/// Makes the snapshot of a config.
///
/// # Errors
/// All references that lead nowhere and all things that do not fit together, with file, line and key.
pub fn resolve(
    config: &Config,
    answers: &Answers,
    credentials: impl Into<Credentials>,
    version: u64,
) -> Result<Snapshot, Problems> {
    let Credentials { identity, certificates, marking } = credentials.into();
    let mut resolver = Resolver::new(config, identity.is_some());
    resolver.identity(identity.as_ref());
    resolver.addresses();
    resolver.interception(&marking);
    let mut objects = BTreeMap::new();
    objects.insert(Key::Settings, Object::Settings(settings(config).into()));
    for (index, listener) in config.listeners.iter().enumerate() {
        let found = resolver.listener(index, listener, &certificates);
        objects.insert(Key::Listener(found.name.clone()), Object::Listener(found.into()));
    }
    for (index, service) in config.services.iter().enumerate() {
        let found = resolver.service(index, service, answers);
        objects.insert(Key::Service(found.name.clone()), Object::Service(found.into()));
    }
    for (index, route) in config.routes.iter().enumerate() {
        let found = resolver.route(index, route);
        objects.insert(Key::Route(found.name.clone()), Object::Route(found.into()));
    }
    for (index, policy) in config.policies.iter().enumerate() {
        let found = resolver.policy(index, policy);
        objects.insert(Key::Policy(found.name.clone()), Object::Policy(found.into()));
    }
    if let Some(identity) = identity {
        objects.insert(Key::Identity, Object::Identity(identity.into()));
    }
    if !resolver.problems.is_empty() {
        return Err(Problems::new(resolver.problems));
    }
    Ok(Snapshot { version, objects })
}

fn settings(config: &Config) -> Settings {
    Settings {
        trust_domain: config.mesh.trust_domain.as_ref().map(|name| name.value.clone()).unwrap_or_default(),
        workload: config.workload.name.clone(),
        access_log: config.log.access,
        log_level: config.log.level,
        drain_timeout: config.runtime.drain_timeout,
    }
}

/// The object that a problem belongs to.
#[derive(Clone, Copy)]
struct Subject<'a> {
    kind: &'static str,
    index: usize,
    name: &'a str,
}

/// A listener, or all without a service (None), and the route that claims a host there.
type Claim<'a> = (Option<&'a str>, &'a Route);

struct Resolver<'a> {
    config: &'a Config,
    has_identity: bool,
    listeners: HashMap<&'a str, &'a Listener>,
    services: HashMap<&'a str, &'a Service>,
    /// Services that get requests, and services that get opaque connections.
    called_by_http: HashSet<&'a str>,
    called_by_tcp: HashSet<&'a str>,
    /// What a listener is there for that routes without `listeners` apply to.
    free: HashSet<RouteProtocol>,
    /// What a route without `listeners` is there for, and the listeners that others name.
    routed_everywhere: HashSet<RouteProtocol>,
    routed: HashSet<(RouteProtocol, &'a str)>,
    /// Which routes claim a host, and where.
    claims: HashMap<(RouteProtocol, &'a HostPattern), Vec<Claim<'a>>>,
    /// What connections to endpoints carry.
    mark: Option<u32>,
    problems: Vec<Problem>,
}

impl<'a> Resolver<'a> {
    fn new(config: &'a Config, has_identity: bool) -> Self {
        let routes = |listener: &&Listener| listener.service.is_none() && listener.edge.redirect.is_none();
        let free = config.listeners.iter().filter(routes);
        let named = |route: &'a Route| route.listeners.iter().map(|name| (route.protocol, name.as_str()));
        let everywhere = config.routes.iter().filter(|route| route.listeners.is_empty());
        let mut resolver = Self {
            free: free.flat_map(|listener| listener.protocol.routes()).copied().collect(),
            routed_everywhere: everywhere.map(|route| route.protocol).collect(),
            routed: config.routes.iter().flat_map(named).collect(),
            config,
            has_identity,
            listeners: HashMap::with_capacity(config.listeners.len()),
            services: HashMap::with_capacity(config.services.len()),
            called_by_http: HashSet::new(),
            called_by_tcp: HashSet::new(),
            claims: HashMap::with_capacity(config.routes.len()),
            mark: None,
            problems: Vec::new(),
        };
        resolver.unique("listener", config.listeners.iter().map(|listener| &listener.name));
        resolver.unique("service", config.services.iter().map(|service| &service.name));
        resolver.unique("route", config.routes.iter().map(|route| &route.name));
        resolver.unique("policy", config.policies.iter().map(|policy| &policy.name));
        resolver.listeners.extend(config.listeners.iter().map(|listener| (listener.name.as_str(), listener)));
        resolver.services.extend(config.services.iter().map(|service| (service.name.as_str(), service)));
        resolver.callers();
        resolver
    }

    fn note(&mut self, subject: Subject<'_>, field: &str, place: Place, cause: Cause) {
        let dot = if field.is_empty() { "" } else { "." };
        self.problems.push(Problem {
            file: self.config.file.clone(),
            place: Some(place),
            key: format!("{}[{}]{dot}{field}", subject.kind, subject.index),
            subject: format!("{} \"{}\"", subject.kind, subject.name),
            field: field.to_owned(),
            cause,
        });
    }

    fn note_section(&mut self, section: &str, field: &str, place: Place, cause: Cause) {
        self.problems.push(Problem {
            file: self.config.file.clone(),
            place: Some(place),
            key: format!("{section}.{field}"),
            subject: format!("[{section}]"),
            field: field.to_owned(),
            cause,
        });
    }

    fn unique(&mut self, kind: &'static str, names: impl Iterator<Item = &'a Located<String>>) {
        let mut seen: HashMap<&str, Place> = HashMap::new();
        for (index, name) in names.enumerate() {
            match seen.get(name.as_str()) {
                None => drop(seen.insert(name, name.place)),
                Some(first) => {
                    let cause = Cause::DuplicateName { name: name.value.clone(), first: first.line };
                    self.note(Subject { kind, index, name }, "", name.place, cause);
                }
            }
        }
    }

    /// Notes who calls which service.
    fn callers(&mut self) {
        for listener in &self.config.listeners {
            let callers = match listener.protocol {
                Protocol::Http | Protocol::Http2 => &mut self.called_by_http,
                Protocol::Tcp | Protocol::Tls => &mut self.called_by_tcp,
                // Requests have routes.
                Protocol::Detect if self.routed.contains(&(RouteProtocol::Http, listener.name.as_str())) => {
                    &mut self.called_by_tcp
                }
                Protocol::Detect => &mut self.called_by_http,
            };
            callers.extend(listener.service.iter().map(|service| service.as_str()));
        }
        for route in &self.config.routes {
            let shares = route.rules.iter().map(|rule| &rule.to).chain(&route.to).flat_map(|to| &to.value);
            let implied = self.implied_service(route);
            let callers = match route.protocol {
                RouteProtocol::Http => &mut self.called_by_http,
                RouteProtocol::Tls => &mut self.called_by_tcp,
            };
            callers.extend(shares.map(|share| share.service.as_str()));
            callers.extend(implied);
        }
    }

    /// The service that gets everything of a route that says nothing else: that with the name of its first host.
    fn implied_service(&self, route: &'a Route) -> Option<&'a str> {
        let HostPattern::Exact(host) = &route.hosts.first()?.value else { return None };
        let silent = route.rules.is_empty() && route.to.is_none();
        (silent && self.services.contains_key(host.as_str())).then_some(host)
    }

    /// Checks that a service is there and speaks what is sent to it.
    fn call(&mut self, subject: Subject<'_>, field: &str, name: &str, place: Place, protocol: Protocol) {
        let Some(service) = self.services.get(name) else {
            let hint = self.similar(name, Kind::Service);
            return self.note(subject, field, place, Cause::NoSuch { kind: "service", name: name.to_owned(), hint });
        };
        let speaks = service.protocol.as_ref().map(|protocol| protocol.value);
        if protocol.is_http() && speaks == Some(Protocol::Tcp) {
            self.note(subject, field, place, Cause::HttpToTcp(name.to_owned()));
        }
    }

    fn similar(&self, name: &str, kind: Kind) -> Hint {
        if self.problems.len() >= MAX_SUGGESTIONS {
            return Hint::Nothing;
        }
        match kind {
            Kind::Service => nearest::name(name, self.config.services.iter().map(|service| service.name.as_str())),
            Kind::Listener => nearest::name(name, self.config.listeners.iter().map(|listener| listener.name.as_str())),
        }
    }
}

/// What a missing name was meant to be.
#[derive(Clone, Copy)]
enum Kind {
    Service,
    Listener,
}
