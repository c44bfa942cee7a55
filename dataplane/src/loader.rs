//! Turns what control sends into tables, off the request path. What did not change is shared with the tables before.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringmesh_codec::limits::Limits;
use ringmesh_model::delta::Delta;
use ringmesh_model::snapshot::{
    self, Identity, Key, ListenerTarget, Mtls, Name, Object, Protocol, RouteProtocol, Settings, Snapshot,
};
use ringmesh_ring::net::Address;

use crate::health::Health;
use crate::listener::handshakes::Handshakes;
use crate::listener::sources::Sources;
use crate::permit::Limit;
use crate::places::{Place, Places};
use crate::tables::{Endpoint, Listener, Service, Tables, Target};
use crate::telemetry::directory::Directory;
use crate::telemetry::layout::Kind;
use crate::telemetry::recorder::Series;
use crate::tls::{Alpn, Anchor};
use crate::{policy, route, tls};

/// Prepares tables. One of them a data plane, on the loader's thread.
pub struct Loader {
    /// What the newest tables were made of.
    snapshot: Snapshot,
    tables: Arc<Tables>,
    directory: Directory,
    workers: u16,
    /// Counts changed limits.
    limit_changes: u64,
    listeners: Places<Name>,
    services: Places<Name>,
    /// By the service's place.
    endpoints: Places<(Place, snapshot::Address)>,
}

/// Why a version cannot be made ready. The one before goes on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The identity cannot be used.
    #[error("the workload's identity cannot be used: {0}")]
    Identity(#[from] tls::Error),
    /// Mutual TLS is asked for without an identity.
    #[error("`{0}` needs mutual TLS, but the workload has no identity")]
    NoIdentity(Name),
    /// A route or listener names a service that is not there. Control resolves names before, so this is a bug there.
    #[error("`{from}` names the service `{service}`, which is not there")]
    NoService {
        /// The listener or route.
        from: Name,
        /// The service.
        service: Name,
    },
    /// There are no settings. Control always sends them, so this is a bug there.
    #[error("the snapshot has no settings")]
    NoSettings,
}

impl Loader {
    /// A loader for so many workers that gives series their places in `directory`.
    pub fn new(directory: Directory, workers: u16) -> Self {
        Self {
            workers,
            limit_changes: 0,
            snapshot: Snapshot::default(),
            tables: Arc::default(),
            directory,
            listeners: Places::default(),
            services: Places::default(),
            endpoints: Places::default(),
        }
    }

    /// Which series has which place.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The newest tables.
    pub fn tables(&self) -> &Arc<Tables> {
        &self.tables
    }

    /// Makes a whole snapshot ready.
    ///
    /// # Errors
    /// If a part of it cannot be used; then nothing changes.
    pub fn load(&mut self, snapshot: Snapshot) -> Result<Arc<Tables>, Error> {
        let changed = Changed::between(&self.snapshot, &snapshot);
        let tables = self.change(&snapshot, &changed)?;
        self.snapshot = snapshot;
        Ok(tables)
    }

    /// Makes a change ready.
    ///
    /// # Errors
    /// If a part of it cannot be used; then nothing changes.
    pub fn apply(&mut self, delta: &Delta) -> Result<Arc<Tables>, Error> {
        let mut snapshot = std::mem::take(&mut self.snapshot);
        let changed = Changed::by(delta, &snapshot);
        let back = delta.apply(&mut snapshot);
        let tables = self.change(&snapshot, &changed);
        if tables.is_err() {
            back.apply(&mut snapshot);
        }
        self.snapshot = snapshot;
        tables
    }

    fn change(&mut self, snapshot: &Snapshot, changed: &Changed) -> Result<Arc<Tables>, Error> {
        match self.prepare(snapshot, changed) {
            Ok(tables) => {
                let before = std::mem::replace(&mut self.tables, Arc::new(tables));
                self.forget_what_is_gone(&before, changed);
                Ok(self.tables.clone())
            }
            Err(error) => {
                self.forget_what_is_not_in_use();
                Err(error)
            }
        }
    }

    fn prepare(&mut self, snapshot: &Snapshot, changed: &Changed) -> Result<Tables, Error> {
        let settings = match &self.tables.settings {
            Some(same) if !changed.settings => same.clone(),
            _ => settings(snapshot)?.clone(),
        };
        let identity = identity(snapshot);
        let mut services = self.tables.services.clone();
        let mut new: Vec<&Arc<snapshot::Service>> = Vec::new();
        for name in &changed.services {
            match (snapshot.objects.get(&Key::Service(name.clone())), self.services.get(name)) {
                (Some(Object::Service(config)), _) => new.push(config),
                (_, Some(place)) => services.set(place.index, None),
                (_, None) => {}
            }
        }
        if changed.identity {
            new = snapshot.services().collect();
        }
        let mut clients = Clients::default();
        for config in new {
            let service = self.service(config, identity, &mut clients)?;
            services.set(service.place.index, Some(Arc::new(service)));
        }
        let mut listeners: Vec<Option<Arc<Listener>>> = Vec::new();
        let mut servers = Servers::default();
        for config in snapshot.listeners() {
            let listener = match self.unchanged_listener(&config.name, changed) {
                Some(listener) => listener,
                None => Arc::new(self.listener(config, snapshot, &settings, identity, &mut servers)?),
            };
            put(&mut listeners, listener.place.index, listener);
        }
        let anchors = match identity {
            Some(identity) if changed.identity => Anchor::all(identity).into(),
            Some(_) => self.tables.anchors.clone(),
            None => Arc::default(),
        };
        Ok(Tables { version: snapshot.version, settings: Some(settings), listeners, services, anchors })
    }

    fn unchanged_listener(&mut self, name: &Name, changed: &Changed) -> Option<Arc<Listener>> {
        if changed.identity || changed.settings || changed.routing || changed.listeners.contains(name) {
            return None;
        }
        let place = self.listeners.of(name);
        self.tables.listeners.get(place.index as usize)?.clone().filter(|listener| listener.place == place)
    }

    /// Gives up the places of what a change has removed.
    fn forget_what_is_gone(&mut self, before: &Tables, changed: &Changed) {
        for (old, new) in self.tables.services.changed_since(&before.services) {
            let Some(old) = old else { continue };
            let new = new.filter(|new| new.place == old.place);
            if new.is_none() {
                self.services.remove(&old.config.name);
            }
            let kept: HashSet<Place> =
                new.iter().flat_map(|new| &new.endpoints).map(|endpoint| endpoint.place).collect();
            let gone = old.config.endpoints.iter().zip(&old.endpoints).filter(|(_, old)| !kept.contains(&old.place));
            gone.for_each(|(endpoint, _)| self.endpoints.remove(&(old.place, endpoint.address.clone())));
        }
        if changed.names_series() {
            self.forget_listeners();
            self.directory.set_in_use(&series_of(&self.tables), Instant::now());
        } else {
            self.directory.expire(Instant::now());
        }
    }

    /// Gives up what was prepared in vain: places that nobody uses.
    fn forget_what_is_not_in_use(&mut self) {
        let tables = self.tables.clone();
        self.forget_listeners();
        let services: HashSet<Place> = tables.services.iter().map(|service| service.place).collect();
        self.services.retain(|_, place| services.contains(&place));
        let endpoints = tables.services.iter().flat_map(|service| &service.endpoints);
        let endpoints: HashSet<Place> = endpoints.map(|endpoint| endpoint.place).collect();
        self.endpoints.retain(|_, place| endpoints.contains(&place));
        // Before the first tables nothing is known of the series that an earlier data plane has left.
        if tables.settings.is_some() {
            self.directory.set_in_use(&series_of(&tables), Instant::now());
        }
    }

    fn forget_listeners(&mut self) {
        let listeners = &self.tables.listeners;
        self.listeners.retain(|_, place| {
            listeners.get(place.index as usize).and_then(Option::as_ref).is_some_and(|listener| listener.place == place)
        });
    }

    fn service(
        &mut self,
        config: &Arc<snapshot::Service>,
        identity: Option<&Identity>,
        clients: &mut Clients,
    ) -> Result<Service, Error> {
        let tls = match &config.peer {
            None => None,
            Some(peer) => {
                let identity = identity.ok_or_else(|| Error::NoIdentity(config.name.clone()))?;
                Some(clients.get(identity, peer, offered(config))?)
            }
        };
        let place = self.services.of(&config.name);
        let healths = self.healths(place, config);
        let endpoints = config.endpoints.iter().map(|endpoint| {
            let place = self.endpoints.of(&(place, endpoint.address.clone()));
            let text = endpoint.address.to_string().into();
            let health = config.health_check.as_ref().map(|_| healths.get(&place).cloned().unwrap_or_default());
            Endpoint { place, address: address(&endpoint.address), text, health }
        });
        let endpoints = endpoints.collect();
        let series = self.directory.place(Kind::Service, &[&config.name]);
        let before = self.tables.services.get(place.index).filter(|service| service.place == place);
        let reach = before.map(|service| service.reach.clone()).unwrap_or_default();
        let before = before.and_then(|service| service.limit.as_ref());
        self.limit_changes += 1;
        let limit = config.max_in_flight.map(|max| Limit::new(max, self.workers, before, self.limit_changes));
        let pool_key = pool_key(config, identity);
        Ok(Service { place, config: config.clone(), series, tls, limit, pool_key, endpoints, reach })
    }

    /// What was found of endpoints stays known when their service is edited.
    fn healths(&self, service: Place, config: &snapshot::Service) -> HashMap<Place, Arc<Health>> {
        let before = self.tables.services.get(service.index);
        let before = before.filter(|before| before.place == service && config.health_check.is_some());
        let endpoints = before.into_iter().flat_map(|before| &before.endpoints);
        endpoints.filter_map(|endpoint| Some((endpoint.place, endpoint.health.clone()?))).collect()
    }

    fn listener(
        &mut self,
        config: &Arc<snapshot::Listener>,
        snapshot: &Snapshot,
        settings: &Settings,
        identity: Option<&Identity>,
        servers: &mut Servers,
    ) -> Result<Listener, Error> {
        let tls = match config.mtls {
            Mtls::Off if config.tls.is_empty() => None,
            Mtls::Off => Some(self.edge_tls(config)?),
            Mtls::Strict => {
                let identity = identity.ok_or_else(|| Error::NoIdentity(config.name.clone()))?;
                Some(servers.get(identity, &settings.trust_domain, config.protocol)?)
            }
        };
        let opaque = match &config.target {
            ListenerTarget::Service(service) | ListenerTarget::RoutesElse(service) => {
                Some(self.target(&config.name, "", "", service, 1, snapshot)?)
            }
            ListenerTarget::Routes | ListenerTarget::Redirect(_) => None,
        };
        let requests = self.routes(config, RouteProtocol::Http, snapshot)?;
        let target = match opaque {
            _ if let ListenerTarget::Redirect(to) = config.target => Target::Redirect(to),
            Some(service) if requests.is_empty() => Target::Service(service),
            _ => Target::Routes(requests),
        };
        let names = self.routes(config, RouteProtocol::Tls, snapshot)?;
        let names = (opaque.is_none() || !names.is_empty()).then_some(names);
        let policies = snapshot.policies().map(Arc::as_ref).filter(|policy| policy.listener == config.name);
        Ok(Listener {
            place: self.listeners.of(&config.name),
            series: self.directory.place(Kind::Listener, &[&config.name]),
            unrouted: self.directory.place(Kind::Request, &[&config.name, "", "", ""]),
            config: config.clone(),
            head_limits: Limits {
                max_head_bytes: config.limits.max_header_bytes,
                max_fields: config.limits.max_headers,
                max_body_bytes: config.edge.max_body_bytes.unwrap_or(u64::MAX),
                ..Limits::default()
            },
            response_limits: Limits::default(),
            tls,
            policy: policy::Table::new(policies),
            target,
            hsts: config.edge.hsts.map(|hsts| hsts.to_string().into()),
            sources: config.edge.max_connections_per_source.map(|_| self.sources(&config.name)),
            handshakes: self.handshakes(&config.name),
            names,
            opaque,
        })
    }

    /// TLS of a listener with certificates of its own. While they stay, so does what was made of them: to read keys anew
    /// with every edit of a route would cost much.
    fn edge_tls(&mut self, config: &snapshot::Listener) -> Result<Arc<rustls::ServerConfig>, tls::Error> {
        let place = self.listeners.of(&config.name);
        let same = |before: &&Listener| {
            let before = &before.config;
            let of = |config: &snapshot::Listener| (config.mtls, config.protocol, config.edge.tls_min_version);
            of(before) == of(config) && before.tls == config.tls
        };
        if let Some(tls) = self.tables.listener(place).filter(same).and_then(|before| before.tls.clone()) {
            return Ok(tls);
        }
        tls::edge_server(&config.tls, accepted(config.protocol), config.edge.tls_min_version)
    }

    /// What is under way stays counted when a listener is edited.
    fn handshakes(&mut self, listener: &Name) -> Arc<Handshakes> {
        let place = self.listeners.of(listener);
        self.tables.listener(place).map(|before| before.handshakes.clone()).unwrap_or_default()
    }

    /// Who is connected to a listener stays known when it is edited.
    fn sources(&mut self, listener: &Name) -> Arc<Sources> {
        let place = self.listeners.of(listener);
        self.tables.listener(place).and_then(|before| before.sources.clone()).unwrap_or_default()
    }

    /// The listener's routes for requests, or for TLS. Those that name no listener apply where nothing else is said.
    fn routes(
        &mut self,
        listener: &snapshot::Listener,
        protocol: RouteProtocol,
        snapshot: &Snapshot,
    ) -> Result<route::Table, Error> {
        let mut table = route::Table::default();
        let takes = listener.protocol.routes().contains(&protocol);
        let named_only = listener.target != ListenerTarget::Routes;
        let listener = &listener.name;
        for route in snapshot.routes().filter(|route| takes && route.protocol == protocol) {
            let applies = if route.listeners.is_empty() { !named_only } else { route.listeners.contains(listener) };
            if !applies {
                continue;
            }
            for rule in &route.rules {
                let rule = self.rule(listener, route, rule, snapshot)?;
                for host in &route.hosts {
                    table.add(host, rule.clone());
                }
            }
        }
        Ok(table)
    }

    fn rule(
        &mut self,
        listener: &str,
        route: &snapshot::Route,
        rule: &snapshot::RouteRule,
        snapshot: &Snapshot,
    ) -> Result<route::Rule, Error> {
        let to: Vec<_> = rule
            .to
            .iter()
            .map(|to| self.target(listener, &route.name, &rule.name, &to.service, to.weight, snapshot))
            .collect::<Result<_, _>>()?;
        Ok(route::Rule {
            route: route.name.as_str().into(),
            name: rule.name.as_str().into(),
            matches: rule.matches.clone(),
            total_weight: to.iter().map(|to| to.weight).sum(),
            to,
            timeout: rule.timeout,
        })
    }

    fn target(
        &mut self,
        listener: &str,
        route: &str,
        rule: &str,
        service: &Name,
        weight: u32,
        snapshot: &Snapshot,
    ) -> Result<route::Target, Error> {
        if !snapshot.objects.contains_key(&Key::Service(service.clone())) {
            let from = if route.is_empty() { listener } else { route };
            return Err(Error::NoService { from: from.to_owned(), service: service.clone() });
        }
        let series = self.directory.place(Kind::Request, &[listener, route, rule, service]);
        Ok(route::Target { service: self.services.of(service).index, weight, series })
    }
}

/// Which series tables name, by index.
fn series_of(tables: &Tables) -> Vec<bool> {
    let mut named = Vec::new();
    let mut name = |series: Series| {
        let index = series.index as usize;
        if named.len() <= index {
            named.resize(index + 1, false);
        }
        named[index] = true;
    };
    tables.services.iter().for_each(|service| name(service.series));
    for listener in tables.listeners.iter().flatten() {
        name(listener.series);
        name(listener.unrouted);
        match &listener.target {
            Target::Service(target) => name(target.series),
            Target::Routes(routes) => routes.targets().for_each(|target| name(target.series)),
            Target::Redirect(_) => {}
        }
        listener.opaque.iter().for_each(|target| name(target.series));
        listener.names.iter().flat_map(route::Table::targets).for_each(|target| name(target.series));
    }
    named
}

/// Which tables a change touches.
#[derive(Default)]
struct Changed {
    identity: bool,
    settings: bool,
    /// A route or policy, or the set of services: routes name services by place.
    routing: bool,
    services: Vec<Name>,
    listeners: HashSet<Name>,
}

impl Changed {
    /// What leads from `old` to `new`.
    fn between(old: &Snapshot, new: &Snapshot) -> Self {
        let mut changed = Self::default();
        for (key, object) in &new.objects {
            let before = old.objects.get(key);
            if before != Some(object) {
                changed.add(key, before.is_some());
            }
        }
        old.objects.keys().filter(|key| !new.objects.contains_key(key)).for_each(|key| changed.add(key, false));
        changed
    }

    /// What a delta makes of `old`.
    fn by(delta: &Delta, old: &Snapshot) -> Self {
        let mut changed = Self::default();
        delta.put.iter().for_each(|(key, _)| changed.add(key, old.objects.contains_key(key)));
        delta.remove.iter().for_each(|key| changed.add(key, false));
        changed
    }

    /// `stays`: whether it is there before and after.
    fn add(&mut self, key: &Key, stays: bool) {
        match key {
            Key::Identity => self.identity = true,
            Key::Settings => self.settings = true,
            Key::Route(_) | Key::Policy(_) => self.routing = true,
            Key::Service(name) => {
                self.routing |= !stays;
                self.services.push(name.clone());
            }
            Key::Listener(name) => {
                self.listeners.insert(name.clone());
            }
        }
    }

    /// Whether other series may be named than before: those of a service that stays have its name.
    fn names_series(&self) -> bool {
        self.routing || !self.listeners.is_empty()
    }
}

/// What a listener agrees to in the handshake with its mesh, the preferred one first.
fn accepted_of_mesh(protocol: Protocol) -> &'static [Alpn] {
    match protocol {
        Protocol::Http | Protocol::Detect => &[Alpn::Mesh, Alpn::MeshHttp, Alpn::Http2, Alpn::Http1, Alpn::Http10],
        Protocol::Http2 => &[Alpn::Mesh, Alpn::MeshHttp, Alpn::Http2],
        Protocol::Tcp | Protocol::Tls => &[Alpn::Mesh],
    }
}

/// What a listener of a protocol agrees to in a handshake, the preferred one first.
fn accepted(protocol: Protocol) -> &'static [Alpn] {
    match protocol {
        // Where it is found out, a client that offers neither agrees on none: see `tls::accept_any_protocol`.
        Protocol::Http | Protocol::Detect => &[Alpn::Http2, Alpn::Http1, Alpn::Http10],
        Protocol::Http2 => &[Alpn::Http2],
        // A server whose protocols are not known to us agrees on none.
        Protocol::Tcp | Protocol::Tls => &[],
    }
}

/// What is offered to the endpoints of a service, the preferred one first.
fn offered(config: &snapshot::Service) -> &'static [Alpn] {
    let shares = config.share_connections && config.proxy_protocol.is_none();
    match config.protocol {
        Protocol::Http if shares => &[Alpn::Mesh, Alpn::Http1],
        Protocol::Http => &[Alpn::Http1],
        Protocol::Http2 if shares => &[Alpn::MeshHttp, Alpn::Http2],
        Protocol::Http2 => &[Alpn::Http2],
        Protocol::Tcp | Protocol::Tls | Protocol::Detect if shares => &[Alpn::Mesh],
        Protocol::Tcp | Protocol::Tls | Protocol::Detect => &[],
    }
}

/// Server configurations of the own identity by protocol: listeners of the same one share it.
#[derive(Default)]
struct Servers(HashMap<Protocol, Arc<rustls::ServerConfig>>);

impl Servers {
    fn get(
        &mut self,
        identity: &Identity,
        trust_domain: &str,
        protocol: Protocol,
    ) -> Result<Arc<rustls::ServerConfig>, tls::Error> {
        if let Some(config) = self.0.get(&protocol) {
            return Ok(config.clone());
        }
        let config = tls::server(identity, trust_domain, accepted_of_mesh(protocol))?;
        self.0.insert(protocol, config.clone());
        Ok(config)
    }
}

/// Client configurations by expected peer and what is offered: many services may have the same ones.
#[derive(Default)]
struct Clients(HashMap<(String, &'static [Alpn]), Arc<rustls::ClientConfig>>);

impl Clients {
    fn get(
        &mut self,
        identity: &Identity,
        peer: &ringmesh_model::spiffe::SpiffeId,
        offered: &'static [Alpn],
    ) -> Result<Arc<rustls::ClientConfig>, tls::Error> {
        let key = (peer.as_str().to_owned(), offered);
        if let Some(config) = self.0.get(&key) {
            return Ok(config.clone());
        }
        let config = tls::client(identity, peer, offered)?;
        self.0.insert(key, config.clone());
        Ok(config)
    }
}

fn settings(snapshot: &Snapshot) -> Result<&Arc<Settings>, Error> {
    match snapshot.objects.get(&Key::Settings) {
        Some(Object::Settings(settings)) => Ok(settings),
        _ => Err(Error::NoSettings),
    }
}

fn identity(snapshot: &Snapshot) -> Option<&Identity> {
    match snapshot.objects.get(&Key::Identity) {
        Some(Object::Identity(identity)) => Some(identity),
        _ => None,
    }
}

fn address(address: &snapshot::Address) -> Address {
    match address {
        snapshot::Address::Ip(address) => Address::Ip(*address),
        snapshot::Address::Unix(path) => Address::Unix(path.clone()),
    }
}

/// A number that differs if connections must not be shared: own identity and certificate (one that carries many requests would
/// outlive any), trust bundle and expected peer, and what they begin with.
fn pool_key(config: &snapshot::Service, identity: Option<&Identity>) -> u64 {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    config.proxy_protocol.hash(&mut hasher);
    if let Some(peer) = &config.peer {
        peer.hash(&mut hasher);
        // What was agreed on says what a connection that carries many requests carries.
        offered(config).hash(&mut hasher);
        identity.map(|identity| (&identity.id, &identity.chain, &identity.bundle)).hash(&mut hasher);
    }
    hasher.finish()
}

fn put<T>(list: &mut Vec<Option<T>>, index: u32, value: T) {
    let index = index as usize;
    if list.len() <= index {
        list.resize_with(index + 1, || None);
    }
    list[index] = Some(value);
}

/// How long the loader waits for workers to take over new tables before it says that one hangs. Less than control waits for
/// an answer.
pub const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_offered_to_an_endpoint_tells_its_connections_apart() {
        let second = std::time::Duration::from_secs(1);
        let service = |protocol, share_connections| snapshot::Service {
            name: "s".into(),
            protocol,
            peer: Some("spiffe://test/ns/default/sa/s".parse().expect("it is one")),
            proxy_protocol: None,
            destination: snapshot::Destination::Endpoints,
            mark: None,
            endpoints: Vec::new(),
            balance: snapshot::Balance::LeastRequest,
            connect_timeout: second,
            connect_retries: 1,
            idle_timeout: second,
            max_in_flight: None,
            max_idle_per_endpoint: 8,
            share_connections,
            tcp_keepalive: None,
            health_check: None,
        };
        let all = [(Protocol::Http, true), (Protocol::Http2, true), (Protocol::Tcp, true), (Protocol::Http, false)];
        let keys = all.map(|(protocol, shares)| pool_key(&service(protocol, shares), None));
        assert_eq!(HashSet::from(keys).len(), keys.len());
        assert_eq!(pool_key(&service(Protocol::Http, true), None), keys[0]);
    }
}
