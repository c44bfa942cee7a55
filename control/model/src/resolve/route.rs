//! Routes: hosts, rules in the order in which they apply, splits.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};

use super::{FALLBACK_RULE, Kind, Resolver, Subject};
use crate::error::{Cause, Located};
use crate::route::{Route, Rule, Share};
use crate::snapshot::{self, PathMatch, Protocol, RouteMatch, RouteProtocol};

impl<'a> Resolver<'a> {
    pub(super) fn route(&mut self, index: usize, route: &'a Route) -> snapshot::Route {
        let subject = Subject { kind: "route", index, name: &route.name };
        let before = self.problems.len();
        self.route_listeners(subject, route);
        self.claim_hosts(subject, route);
        let rules = self.rules(subject, route);
        self.routes_to_original(subject, route);
        // Where something else is wrong with the route, that is what to look at first.
        if route.listeners.is_empty() && !self.free.contains(&route.protocol) && self.problems.len() == before {
            let kind = match route.protocol {
                RouteProtocol::Http => "http",
                RouteProtocol::Tls => "tls",
            };
            self.note(subject, "", route.name.place, Cause::RouteWithoutListener(kind));
        }
        snapshot::Route {
            name: route.name.value.clone(),
            protocol: route.protocol,
            listeners: route.listeners.iter().map(|name| name.value.clone()).collect(),
            hosts: route.hosts.iter().map(|host| host.value.clone()).collect(),
            rules,
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
                    (_, protocol) if !protocol.routes().contains(&route.protocol) => {
                        let (requests, tls) = ("requests", "TLS that is passed on unopened");
                        let (takes, routes) = match route.protocol {
                            RouteProtocol::Http => (tls, requests),
                            RouteProtocol::Tls => (requests, tls),
                        };
                        Cause::RouteProtocol { listener: name.value.clone(), takes, routes }
                    }
                    (Some(_), Protocol::Detect) => continue,
                    (Some(service), _) => Cause::ListenerHasService {
                        listener: name.value.clone(),
                        service: service.value.clone(),
                        line: service.place.line,
                    },
                    (None, _) if listener.edge.redirect.is_some() => Cause::ListenerRedirects(name.value.clone()),
                    (None, _) => continue,
                },
            };
            self.note(subject, &format!("listeners[{position}]"), name.place, cause);
        }
    }

    /// One host on one listener belongs to one route.
    fn claim_hosts(&mut self, subject: Subject<'_>, route: &'a Route) {
        let everywhere = route.listeners.is_empty().then_some(None);
        let places: Vec<_> =
            everywhere.into_iter().chain(route.listeners.iter().map(|name| Some(name.as_str()))).collect();
        for (position, host) in route.hosts.iter().enumerate() {
            let claims = self.claims.entry((route.protocol, &host.value)).or_default();
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
            self.visible(subject, &field, route.protocol, rule);
            let to = self.split(subject, &format!("{field}.to"), &rule.to, route.protocol);
            rules.push(snapshot::RouteRule {
                name,
                matches: rule.matches.value.clone(),
                to,
                timeout: rule.timeout.or(route.timeout).map(|timeout| timeout.value),
            });
        }
        if let (RouteProtocol::Tls, Some(timeout)) = (route.protocol, &route.timeout) {
            self.note(subject, "timeout", timeout.place, Cause::NotInTls("the end of a response"));
        }
        rules.sort_by_key(|rule| precedence(&rule.matches));
        if let Some(to) = &route.to {
            if let Some(first) = matches.get(&admitted(&RouteMatch::default())) {
                let first = *first;
                self.note(subject, "to", to.place, Cause::Unreachable(first));
            }
            rules.push(fallback(route, self.split(subject, "to", to, route.protocol)));
        } else if let Some(service) = self.implied_service(route) {
            self.call(subject, "hosts", service, route.name.place, called_with(route.protocol));
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
        protocol: RouteProtocol,
    ) -> Vec<snapshot::Target> {
        let mut seen = HashSet::new();
        for (position, share) in to.iter().enumerate() {
            let field = if to.len() == 1 { field.to_owned() } else { format!("{field}[{position}]") };
            self.call(subject, &field, &share.service, share.place, called_with(protocol));
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

    /// What a rule looks at must be there to see.
    fn visible(&mut self, subject: Subject<'_>, field: &str, protocol: RouteProtocol, rule: &Rule) {
        let place = rule.matches.place;
        let RouteMatch { path, methods, headers, alpn } = &rule.matches.value;
        if protocol == RouteProtocol::Http {
            if !alpn.is_empty() {
                self.note(subject, &format!("{field}.match"), place, Cause::AlpnOfRequest);
            }
            return;
        }
        let hidden = [
            (*path != PathMatch::Any, "a path"),
            (!methods.is_empty(), "a method"),
            (!headers.is_empty(), "a header field"),
        ];
        if let Some((_, what)) = hidden.into_iter().find(|(named, _)| *named) {
            self.note(subject, &format!("{field}.match"), place, Cause::NotInTls(what));
        }
        if let Some(timeout) = &rule.timeout {
            self.note(subject, &format!("{field}.timeout"), timeout.place, Cause::NotInTls("the end of a response"));
        }
    }
}

/// What a service is called with by a route.
fn called_with(protocol: RouteProtocol) -> Protocol {
    match protocol {
        RouteProtocol::Http => Protocol::Http,
        RouteProtocol::Tls => Protocol::Tcp,
    }
}

fn fallback(route: &Route, to: Vec<snapshot::Target>) -> snapshot::RouteRule {
    snapshot::RouteRule {
        name: FALLBACK_RULE.to_owned(),
        matches: RouteMatch::default(),
        to,
        timeout: route.timeout.map(|timeout| timeout.value),
    }
}

/// What tells which requests a match admits: two that give the same here admit the same.
fn admitted(matches: &RouteMatch) -> (PathMatch, BTreeSet<&str>, &[snapshot::HeaderMatch], BTreeSet<&str>) {
    let path = match &matches.path {
        PathMatch::Any => PathMatch::Prefix("/".to_owned()),
        path => path.clone(),
    };
    let [methods, alpn] = [&matches.methods, &matches.alpn].map(|words| words.iter().map(String::as_str).collect());
    (path, methods, &matches.headers, alpn)
}

/// What a rule is sorted by; the least comes first. See the top of this file.
fn precedence(matches: &RouteMatch) -> impl Ord + use<> {
    let (exact, length) = match &matches.path {
        PathMatch::Exact(_) => (true, 0),
        PathMatch::Prefix(prefix) => (false, prefix.len()),
        PathMatch::Any => (false, 1),
    };
    Reverse((exact, length, !matches.methods.is_empty(), matches.headers.len(), !matches.alpn.is_empty()))
}
