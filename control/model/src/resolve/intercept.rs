//! Interception: which listener takes what, and that the proxy leaves its own connections alone.

use super::{Resolver, Subject};
use crate::error::{Cause, Place};
use crate::intercept::{Account, MARK, Marking};
use crate::listener::Listener;
use crate::route::Route;
use crate::snapshot::{Address, Destination, Direction, Protocol};

impl<'a> Resolver<'a> {
    /// One listener for a direction and family, at a port that its connections can be brought to.
    pub(super) fn interception(&mut self, marking: &Marking) {
        let mut seen: Vec<(Direction, bool, &Listener)> = Vec::new();
        let config = self.config;
        for (index, listener) in config.listeners.iter().enumerate() {
            let Some(direction) = &listener.intercept else { continue };
            let subject = Subject { kind: "listener", index, name: &listener.name };
            let cause = match listener.bind.value {
                Address::Ip(address) if address.port() != 0 => {
                    let same = (direction.value, address.is_ipv6());
                    let other = seen.iter().find(|(direction, ipv6, _)| (*direction, *ipv6) == same).map(|seen| seen.2);
                    seen.push((direction.value, address.is_ipv6(), listener));
                    match other {
                        Some(other) => Some(Cause::InterceptedTwice {
                            other: other.name.value.clone(),
                            line: other.name.place.line,
                        }),
                        None if direction.value == Direction::Inbound && address.ip().is_loopback() => {
                            Some(Cause::InterceptsLoopback(address.ip().to_string()))
                        }
                        None => None,
                    }
                }
                _ => Some(Cause::InterceptsNoPort),
            };
            if let Some(cause) = cause {
                self.note(subject, "intercept", direction.place, cause);
            }
            self.mark(subject, direction.place, marking);
        }
    }

    /// The proxy's connections are told from the application's by their mark, or by whose they are.
    fn mark(&mut self, subject: Subject<'_>, place: Place, marking: &Marking) {
        match marking {
            Marking::Granted => self.mark = Some(MARK),
            Marking::Denied { user, group } if self.config.intercept.excludes(user, group) => {}
            Marking::Denied { user, .. } => {
                let id = user.first().map_or("UID".to_owned(), Account::to_string);
                self.note(subject, "intercept", place, Cause::CannotMark(id));
            }
        }
    }

    /// What goes to the original destination must come in where there is one.
    pub(super) fn needs_interception<'l>(
        &mut self,
        subject: Subject<'_>,
        field: &str,
        service: &str,
        place: Place,
        listeners: impl IntoIterator<Item = &'l Listener>,
    ) {
        let is_original =
            self.services.get(service).is_some_and(|service| service.destination == Destination::Original);
        if !is_original {
            return;
        }
        for listener in listeners.into_iter().filter(|listener| listener.intercept.is_none()) {
            let cause = Cause::NoOriginal { service: service.to_owned(), listener: listener.name.value.clone() };
            self.note(subject, field, place, cause);
        }
    }

    /// The same for the services of a route, on all listeners where it applies.
    pub(super) fn routes_to_original(&mut self, subject: Subject<'_>, route: &'a Route) {
        let config = self.config;
        let applies = |listener: &&Listener| match route.listeners.is_empty() {
            true => listener.service.is_none() && listener.protocol == Protocol::Http,
            false => route.listeners.iter().any(|name| name.value == listener.name.value),
        };
        let rules = route.rules.iter().enumerate().map(|(position, rule)| (format!("rule[{position}].to"), &rule.to));
        let fallback = route.to.iter().map(|to| ("to".to_owned(), to));
        for (field, to) in rules.chain(fallback) {
            for share in &to.value {
                let listeners = config.listeners.iter().filter(applies);
                self.needs_interception(subject, &field, &share.service, share.place, listeners);
            }
        }
        if let Some(service) = self.implied_service(route) {
            let listeners = config.listeners.iter().filter(applies);
            self.needs_interception(subject, "hosts", service, route.name.place, listeners);
        }
    }
}
