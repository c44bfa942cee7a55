//! Names become references: a config, what DNS answered and the own identity become a [`Snapshot`], or a list of what does
//! not fit together.
//!
//! # Which rule wins
//! Within a route, the rule that says most about a request wins. As in the Gateway API (`HTTPRouteRule`):
//! 1. an exact path before a path prefix,
//! 2. a longer prefix before a shorter one (no path at all counts as the prefix `/`),
//! 3. a rule with a method before one without,
//! 4. more header fields before fewer,
//! 5. and else the one that stands first in the file.
//!
//! Rules are sorted that way here, so the data plane takes the first that matches. Between routes nothing needs to win: one
//! host on one listener belongs to one route. An exact host goes before a longer suffix, that before a shorter one, and
//! `*` comes last.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use crate::config::Config;
use crate::error::{Cause, Hint, Located, Place, Problem, Problems};
use crate::listener::Listener;
use crate::nearest;
use crate::policy::Policy;
use crate::route::{Route, Share};
use crate::service::{EndpointAddress, HostPort, Service};
use crate::snapshot::{self, Address, HostPattern, Identity, Key, ListenerTarget, Mtls, Object, Protocol, Snapshot};
use crate::snapshot::{PathMatch, RouteMatch, Settings};
use crate::spiffe::SpiffeId;

/// What DNS said about the names that [`Config::names`] lists. A name without an answer has no endpoints yet.
pub type Answers = BTreeMap<HostPort, Vec<SocketAddr>>;

/// The name of the rule that a route's own `to` makes.
pub const FALLBACK_RULE: &str = "default";

/// Problems for which a similar name is looked for; comparing with all of ten thousand names takes its time.
const MAX_SUGGESTIONS: usize = 20;

/// Makes the snapshot of a config.
///
/// # Errors
/// All references that lead nowhere and all things that do not fit together, with file, line and key.
pub fn resolve(
    config: &Config,
    answers: &Answers,
    identity: Option<Identity>,
    version: u64,
) -> Result<Snapshot, Problems> {
    let mut resolver = Resolver::new(config, identity.is_some());
    resolver.identity(identity.as_ref());
    resolver.addresses();
    let mut objects = BTreeMap::new();
    objects.insert(Key::Settings, Object::Settings(settings(config)));
    for (index, listener) in config.listeners.iter().enumerate() {
        let found = resolver.listener(index, listener);
        objects.insert(Key::Listener(found.name.clone()), Object::Listener(found));
    }
    for (index, service) in config.services.iter().enumerate() {
        let found = resolver.service(index, service, answers);
        objects.insert(Key::Service(found.name.clone()), Object::Service(found));
    }
    for (index, route) in config.routes.iter().enumerate() {
        let found = resolver.route(index, route);
        objects.insert(Key::Route(found.name.clone()), Object::Route(found));
    }
    for (index, policy) in config.policies.iter().enumerate() {
        let found = resolver.policy(index, policy);
        objects.insert(Key::Policy(found.name.clone()), Object::Policy(found));
    }
    if let Some(identity) = identity {
        objects.insert(Key::Identity, Object::Identity(identity));
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

struct Resolver<'a> {
    config: &'a Config,
    has_identity: bool,
    listeners: HashMap<&'a str, &'a Listener>,
    services: HashMap<&'a str, &'a Service>,
    /// Services that get requests, and services that get opaque connections.
    called_by_http: HashSet<&'a str>,
    called_by_tcp: HashSet<&'a str>,
    /// Whether a listener is there that routes without `listeners` apply to.
    has_free_listener: bool,
    /// Whether a route without `listeners` is there, and the listeners that others name.
    routed_everywhere: bool,
    routed: HashSet<&'a str>,
    /// Which routes claim a host, and where: a listener, or all without a service (None).
    claims: HashMap<&'a HostPattern, Vec<(Option<&'a str>, &'a Route)>>,
    problems: Vec<Problem>,
}

impl<'a> Resolver<'a> {
    fn new(config: &'a Config, has_identity: bool) -> Self {
        let free = |listener: &Listener| listener.service.is_none() && listener.protocol == Protocol::Http;
        let named = config.routes.iter().flat_map(|route| &route.listeners);
        let mut resolver = Self {
            has_free_listener: config.listeners.iter().any(free),
            routed_everywhere: config.routes.iter().any(|route| route.listeners.is_empty()),
            routed: named.map(|name| name.as_str()).collect(),
            config,
            has_identity,
            listeners: HashMap::with_capacity(config.listeners.len()),
            services: HashMap::with_capacity(config.services.len()),
            called_by_http: HashSet::new(),
            called_by_tcp: HashSet::new(),
            claims: HashMap::with_capacity(config.routes.len()),
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
                Protocol::Http => &mut self.called_by_http,
                Protocol::Tcp => &mut self.called_by_tcp,
            };
            callers.extend(listener.service.iter().map(|service| service.as_str()));
        }
        for route in &self.config.routes {
            let shares = route.rules.iter().map(|rule| &rule.to).chain(&route.to).flat_map(|to| &to.value);
            self.called_by_http.extend(shares.map(|share| share.service.as_str()));
            self.called_by_http.extend(self.implied_service(route));
        }
    }

    /// The service that gets everything of a route that says nothing else: that with the name of its first host.
    fn implied_service(&self, route: &'a Route) -> Option<&'a str> {
        let HostPattern::Exact(host) = &route.hosts.first()?.value else { return None };
        let silent = route.rules.is_empty() && route.to.is_none();
        (silent && self.services.contains_key(host.as_str())).then_some(host)
    }

    /// The own SVID must be ours.
    fn identity(&mut self, identity: Option<&Identity>) {
        let Some(source) = &self.config.workload.identity else { return };
        let Some(trust_domain) = &self.config.mesh.trust_domain else {
            let cause = Cause::NoTrustDomain(self.config.workload.name.clone());
            return self.note_section("workload", "identity", source.place, cause);
        };
        let workload = &self.config.workload;
        let expected = match &workload.id {
            Some(id) => Ok(id.value.clone()),
            None => SpiffeId::workload(trust_domain, &workload.namespace, &workload.name),
        };
        match (expected, identity) {
            (Err(error), _) => {
                let cause = Cause::NotAnIdentity { text: workload.name.clone(), error };
                self.note_section("workload", "name", source.place, cause);
            }
            (Ok(expected), _) if expected.trust_domain() != trust_domain.as_str() => {
                let cause =
                    Cause::ForeignTrustDomain { id: expected.to_string(), trust_domain: trust_domain.value.clone() };
                let place = workload.id.as_ref().map_or(source.place, |id| id.place);
                self.note_section("workload", "id", place, cause);
            }
            (Ok(expected), Some(identity)) if identity.id != expected => {
                let cause = Cause::WrongIdentity { found: identity.id.to_string(), expected: expected.to_string() };
                self.note_section("workload", "identity", source.place, cause);
            }
            (Ok(_), _) => {}
        }
    }

    /// Whether an identity is there; if not, notes that `what` needs one.
    fn needs_identity(&mut self, subject: Subject<'_>, field: &str, place: Place, what: &'static str) {
        if self.has_identity {
            return;
        }
        let cause = match self.config.identity_folder() {
            None => Cause::NoIdentity { what },
            Some(folder) => Cause::IdentityNotLoaded { what, directory: folder.display().to_string() },
        };
        self.note(subject, field, place, cause);
    }

    /// No two listeners, the admin pages included, on one address.
    fn addresses(&mut self) {
        let mut seen: HashMap<Address, String> = HashMap::new();
        // The listener of all addresses at a port, and any listener there.
        let mut wildcards: HashMap<(bool, u16), String> = HashMap::new();
        let mut ports: HashMap<(bool, u16), String> = HashMap::new();
        let config = self.config;
        if let Some(bind) = &config.admin.bind {
            let name = "the admin pages ([admin] `bind`)".to_owned();
            if let Address::Ip(address) = bind.value {
                let family = (address.is_ipv6(), address.port());
                ports.insert(family, name.clone());
                if address.ip().is_unspecified() {
                    wildcards.insert(family, name.clone());
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
                let family = (address.is_ipv6(), address.port());
                taken = taken.or_else(|| wildcards.get(&family).cloned());
                if address.ip().is_unspecified() {
                    taken = taken.or_else(|| ports.get(&family).cloned());
                    wildcards.entry(family).or_insert_with(|| name.clone());
                }
                ports.entry(family).or_insert_with(|| name.clone());
            }
            if let Some(other) = taken {
                let subject = Subject { kind: "listener", index, name: &listener.name };
                self.note(subject, "bind", bind.place, Cause::AddressTaken { address: bind.to_string(), other });
            }
            seen.entry(bind.value.clone()).or_insert(name);
        }
    }

    fn listener(&mut self, index: usize, listener: &'a Listener) -> snapshot::Listener {
        let subject = Subject { kind: "listener", index, name: &listener.name };
        if listener.mtls.value == Mtls::Strict {
            self.needs_identity(subject, "mtls", listener.mtls.place, "\"strict\"");
        }
        let target = match &listener.service {
            Some(service) => {
                self.call(subject, "service", service, service.place, listener.protocol);
                ListenerTarget::Service(service.value.clone())
            }
            None => {
                if listener.protocol == Protocol::Tcp {
                    self.note(subject, "", listener.name.place, Cause::TcpWithoutService);
                } else if !self.is_routed(listener) {
                    self.note(subject, "", listener.name.place, Cause::NoTarget);
                }
                ListenerTarget::Routes
            }
        };
        snapshot::Listener {
            name: listener.name.value.clone(),
            bind: listener.bind.value.clone(),
            protocol: listener.protocol,
            mtls: listener.mtls.value,
            target,
            limits: listener.limits.clone(),
        }
    }

    fn is_routed(&self, listener: &Listener) -> bool {
        self.routed_everywhere || self.routed.contains(listener.name.as_str())
    }

    /// Checks that a service is there and speaks what is sent to it.
    fn call(&mut self, subject: Subject<'_>, field: &str, name: &str, place: Place, protocol: Protocol) {
        let Some(service) = self.services.get(name) else {
            let hint = self.similar(name, Kind::Service);
            return self.note(subject, field, place, Cause::NoSuch { kind: "service", name: name.to_owned(), hint });
        };
        let speaks = service.protocol.as_ref().map(|protocol| protocol.value);
        if protocol == Protocol::Http && speaks == Some(Protocol::Tcp) {
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

    fn service(&mut self, index: usize, service: &'a Service, answers: &Answers) -> snapshot::Service {
        let subject = Subject { kind: "service", index, name: &service.name };
        let peer = service.peer.as_ref().and_then(|peer| {
            self.needs_identity(subject, "peer", peer.place, "mutual TLS");
            self.spiffe_id(subject, "peer", peer)
        });
        let endpoints = endpoints(service, answers);
        let name = service.name.as_str();
        let only_tcp = self.called_by_tcp.contains(name) && !self.called_by_http.contains(name);
        let implied = if only_tcp { Protocol::Tcp } else { Protocol::Http };
        snapshot::Service {
            name: service.name.value.clone(),
            protocol: service.protocol.as_ref().map_or(implied, |protocol| protocol.value),
            peer,
            endpoints,
            balance: service.balance,
            connect_timeout: service.connect_timeout,
            connect_retries: service.connect_retries,
            idle_timeout: service.idle_timeout,
            max_in_flight: service.max_in_flight,
            max_idle_per_endpoint: service.max_idle_per_endpoint,
        }
    }

    /// A short name, `namespace/name`, or a whole ID.
    fn spiffe_id(&mut self, subject: Subject<'_>, field: &str, text: &Located<String>) -> Option<SpiffeId> {
        let Some(trust_domain) = &self.config.mesh.trust_domain else {
            self.note(subject, field, text.place, Cause::NoTrustDomain(text.value.clone()));
            return None;
        };
        let id = match text.split_once('/') {
            _ if text.contains("://") => text.parse(),
            Some((namespace, name)) => SpiffeId::workload(trust_domain, namespace, name),
            None => SpiffeId::workload(trust_domain, &self.config.workload.namespace, text),
        };
        match id {
            Ok(id) if id.trust_domain() != trust_domain.as_str() => {
                let trust_domain = trust_domain.value.clone();
                self.note(subject, field, text.place, Cause::ForeignTrustDomain { id: id.to_string(), trust_domain });
                None
            }
            Ok(id) => Some(id),
            Err(error) => {
                self.note(subject, field, text.place, Cause::NotAnIdentity { text: text.value.clone(), error });
                None
            }
        }
    }

    fn route(&mut self, index: usize, route: &'a Route) -> snapshot::Route {
        let subject = Subject { kind: "route", index, name: &route.name };
        self.route_listeners(subject, route);
        self.claim_hosts(subject, route);
        snapshot::Route {
            name: route.name.value.clone(),
            listeners: route.listeners.iter().map(|name| name.value.clone()).collect(),
            hosts: route.hosts.iter().map(|host| host.value.clone()).collect(),
            rules: self.rules(subject, route),
        }
    }

    fn route_listeners(&mut self, subject: Subject<'_>, route: &'a Route) {
        for (position, name) in route.listeners.iter().enumerate() {
            let cause = match self.listeners.get(name.as_str()) {
                None => {
                    let hint = self.similar(name, Kind::Listener);
                    Cause::NoSuch { kind: "listener", name: name.value.clone(), hint }
                }
                Some(listener) => match (&listener.service, listener.protocol) {
                    (_, Protocol::Tcp) => Cause::RouteOnTcp(name.value.clone()),
                    (Some(service), Protocol::Http) => Cause::ListenerHasService {
                        listener: name.value.clone(),
                        service: service.value.clone(),
                        line: service.place.line,
                    },
                    (None, Protocol::Http) => continue,
                },
            };
            self.note(subject, &format!("listeners[{position}]"), name.place, cause);
        }
        if route.listeners.is_empty() && !self.has_free_listener {
            self.note(subject, "", route.name.place, Cause::RouteWithoutListener);
        }
    }

    /// One host on one listener belongs to one route.
    fn claim_hosts(&mut self, subject: Subject<'_>, route: &'a Route) {
        let everywhere = route.listeners.is_empty().then_some(None);
        let places: Vec<_> =
            everywhere.into_iter().chain(route.listeners.iter().map(|name| Some(name.as_str()))).collect();
        for (position, host) in route.hosts.iter().enumerate() {
            let claims = self.claims.entry(&host.value).or_default();
            let overlap = |(claimed, _): &&(Option<&str>, &Route)| {
                claimed.is_none() || places.contains(&None) || places.contains(claimed)
            };
            let cause = claims.iter().find(overlap).map(|(claimed, other)| {
                let shared = claimed.or(places.first().copied().flatten());
                Cause::HostTaken {
                    host: host.to_string(),
                    listener: shared.map(str::to_owned),
                    other: other.name.value.clone(),
                    line: other.name.place.line,
                }
            });
            claims.extend(places.iter().map(|place| (*place, route)));
            if let Some(cause) = cause {
                self.note(subject, &format!("hosts[{position}]"), host.place, cause);
            }
        }
    }

    fn rules(&mut self, subject: Subject<'_>, route: &'a Route) -> Vec<snapshot::RouteRule> {
        let mut rules = Vec::with_capacity(route.rules.len() + 1);
        let mut names = HashMap::new();
        let mut matches = HashMap::new();
        for (position, rule) in route.rules.iter().enumerate() {
            let field = format!("rule[{position}]");
            let name = rule.name.as_ref().map_or_else(|| position.to_string(), |name| name.value.clone());
            let line = rule.matches.place.line;
            let place = rule.name.as_ref().map_or(rule.matches.place, |name| name.place);
            if let Some(first) = names.insert(name.clone(), place.line) {
                self.note(subject, &format!("{field}.name"), place, Cause::DuplicateName { name: name.clone(), first });
            }
            match matches.get(&admitted(&rule.matches)) {
                Some(first) => self.note(subject, &field, rule.matches.place, Cause::Unreachable(*first)),
                None => drop(matches.insert(admitted(&rule.matches), line)),
            }
            let to = self.split(subject, &format!("{field}.to"), &rule.to);
            rules.push(snapshot::RouteRule {
                name,
                matches: rule.matches.value.clone(),
                to,
                timeout: rule.timeout.or(route.timeout),
            });
        }
        rules.sort_by_key(|rule| precedence(&rule.matches));
        if let Some(to) = &route.to {
            if let Some(first) = matches.get(&admitted(&RouteMatch::default())) {
                let first = *first;
                self.note(subject, "to", to.place, Cause::Unreachable(first));
            }
            rules.push(fallback(route, self.split(subject, "to", to)));
        } else if let Some(service) = self.implied_service(route) {
            self.call(subject, "hosts", service, route.name.place, Protocol::Http);
            rules.push(fallback(route, vec![snapshot::Target { service: service.to_owned(), weight: 1 }]));
        } else if rules.is_empty() {
            let host = route.hosts.first().map(|host| host.to_string()).unwrap_or_default();
            self.note(subject, "", route.name.place, Cause::RouteWithoutTarget(host));
        }
        rules
    }

    fn split(
        &mut self,
        subject: Subject<'_>,
        field: &str,
        to: &'a Located<Vec<Located<Share>>>,
    ) -> Vec<snapshot::Target> {
        let mut seen = HashSet::new();
        for (position, share) in to.iter().enumerate() {
            let field = if to.len() == 1 { field.to_owned() } else { format!("{field}[{position}]") };
            self.call(subject, &field, &share.service, share.place, Protocol::Http);
            if !seen.insert(&share.service) {
                self.note(subject, &field, share.place, Cause::Twice(format!("service \"{}\"", share.service)));
            }
        }
        if to.iter().all(|share| share.weight == 0) {
            self.note(subject, field, to.place, Cause::NoWeight);
        }
        let target = |share: &Located<Share>| snapshot::Target { service: share.service.clone(), weight: share.weight };
        to.iter().map(target).collect()
    }

    fn policy(&mut self, index: usize, policy: &'a Policy) -> snapshot::Policy {
        let subject = Subject { kind: "policy", index, name: &policy.name };
        let listener = self.listeners.get(policy.listener.as_str()).copied();
        if listener.is_none() {
            let hint = self.similar(&policy.listener, Kind::Listener);
            let cause = Cause::NoSuch { kind: "listener", name: policy.listener.value.clone(), hint };
            self.note(subject, "listener", policy.listener.place, cause);
        }
        let mut names = HashMap::new();
        let mut allow = Vec::with_capacity(policy.allow.len());
        for (position, rule) in policy.allow.iter().enumerate() {
            let field = format!("allow[{position}]");
            let name = rule.name.as_ref().map_or_else(|| position.to_string(), |name| name.value.clone());
            let place = rule.name.as_ref().map_or(policy.name.place, |name| name.place);
            if let Some(first) = names.insert(name.clone(), place.line) {
                self.note(subject, &format!("{field}.name"), place, Cause::DuplicateName { name: name.clone(), first });
            }
            if let Some(listener) = listener {
                self.enforceable(subject, &field, listener, rule);
            }
            let from = rule.from.iter().flat_map(|from| &from.value);
            let from = from.filter_map(|id| self.spiffe_id(subject, &format!("{field}.from"), id)).collect();
            allow.push(snapshot::AllowRule {
                name,
                from,
                methods: rule.methods.as_ref().map(|methods| methods.value.clone()).unwrap_or_default(),
                paths: rule.paths.as_ref().map(|paths| paths.value.clone()).unwrap_or_default(),
            });
        }
        snapshot::Policy { name: policy.name.value.clone(), listener: policy.listener.value.clone(), allow }
    }

    /// A listener must be able to see what a rule looks at.
    fn enforceable(&mut self, subject: Subject<'_>, field: &str, listener: &Listener, rule: &crate::policy::Allow) {
        let opaque = "is a tcp one, which has neither methods nor paths; set its protocol to \"http\"";
        let plain = "takes plain connections, which prove no identity; set `mtls = \"strict\"` there";
        let is_tcp = listener.protocol == Protocol::Tcp;
        let is_plain = listener.mtls.value == Mtls::Off;
        for (key, place, why) in [
            ("methods", rule.methods.as_ref().map(|methods| methods.place).filter(|_| is_tcp), opaque),
            ("paths", rule.paths.as_ref().map(|paths| paths.place).filter(|_| is_tcp), opaque),
            ("from", rule.from.as_ref().map(|from| from.place).filter(|_| is_plain), plain),
        ] {
            if let Some(place) = place {
                let cause = Cause::Unenforceable { listener: listener.name.value.clone(), why };
                self.note(subject, &format!("{field}.{key}"), place, cause);
            }
        }
    }
}

/// What a missing name was meant to be.
#[derive(Clone, Copy)]
enum Kind {
    Service,
    Listener,
}

/// The endpoints of a service, once each: listed ones in the order of the file, those of a name in the order of their
/// addresses, since DNS servers rotate them and that is no change.
fn endpoints(service: &Service, answers: &Answers) -> Vec<snapshot::Endpoint> {
    let mut seen = HashSet::with_capacity(service.endpoints.len());
    let mut endpoints = Vec::with_capacity(service.endpoints.len());
    let mut push = |address: Address, zone: &Option<String>| {
        if seen.insert(address.clone()) {
            endpoints.push(snapshot::Endpoint { address, zone: zone.clone() });
        }
    };
    for endpoint in &service.endpoints {
        match &endpoint.address {
            EndpointAddress::At(address) => push(address.clone(), &endpoint.zone),
            EndpointAddress::Name(name) => {
                let mut found = answers.get(name).cloned().unwrap_or_default();
                found.sort_unstable();
                found.into_iter().for_each(|address| push(Address::Ip(address), &endpoint.zone));
            }
        }
    }
    endpoints
}

fn fallback(route: &Route, to: Vec<snapshot::Target>) -> snapshot::RouteRule {
    snapshot::RouteRule { name: FALLBACK_RULE.to_owned(), matches: RouteMatch::default(), to, timeout: route.timeout }
}

/// What tells which requests a match admits: two that give the same here admit the same.
fn admitted(matches: &RouteMatch) -> (PathMatch, BTreeSet<&str>, &[snapshot::HeaderMatch]) {
    let path = match &matches.path {
        PathMatch::Any => PathMatch::Prefix("/".to_owned()),
        path => path.clone(),
    };
    (path, matches.methods.iter().map(String::as_str).collect(), &matches.headers)
}

/// What a rule is sorted by; the least comes first. See the top of this file.
fn precedence(matches: &RouteMatch) -> impl Ord + use<> {
    let (exact, length) = match &matches.path {
        PathMatch::Exact(_) => (true, 0),
        PathMatch::Prefix(prefix) => (false, prefix.len()),
        PathMatch::Any => (false, 1),
    };
    Reverse((exact, length, !matches.methods.is_empty(), matches.headers.len()))
}
