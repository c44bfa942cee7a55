//! Who may call. Deny wins on doubt: once a policy names a listener, what no rule allows is refused.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use ringmesh_model::snapshot;
use ringmesh_model::spiffe::SpiffeId;

use self::rules::{List, Rule};
use crate::tables::Map;

mod rules;

/// All policies of one listener. Rules are found by identity, path and method, so that their number does not matter.
#[derive(Debug, Default)]
pub struct Table {
    /// Names of the policies that guard the listener; None: nobody does.
    guards: Option<Box<str>>,
    /// In their order.
    rules: Vec<Rule>,
    /// Which rules concern an identity: one list for all that the same rules name. A rule may name thousands.
    lists: Vec<List>,
    /// Place of each identity's list.
    by_identity: Map<SpiffeId, usize>,
    anybody: List,
}

/// What was decided, and by what: the allow rule as `policy/rule`; the policies that guard the listener if none of their
/// rules admits; `default` if there is no policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision<'a> {
    /// Go on.
    Allow(&'a str),
    /// Refuse.
    Deny(&'a str),
}

impl Table {
    /// The table of all policies that name one listener.
    pub fn new<'a>(policies: impl Iterator<Item = &'a snapshot::Policy>) -> Self {
        let mut table = Self::default();
        let mut guards: Vec<&str> = Vec::new();
        let mut named: Map<&SpiffeId, Vec<u32>> = Map::default();
        for policy in policies {
            guards.push(&policy.name);
            for allow in &policy.allow {
                let number = table.rules.len() as u32;
                table.rules.push(Rule {
                    name: format!("{}/{}", policy.name, allow.name).into(),
                    methods: allow.methods.clone(),
                    paths: allow.paths.clone(),
                });
                if allow.from.is_empty() {
                    table.anybody.push(number, &table.rules);
                }
                for id in &allow.from {
                    let numbers = named.entry(id).or_default();
                    if numbers.last() != Some(&number) {
                        numbers.push(number);
                    }
                }
            }
        }
        table.guards = (!guards.is_empty()).then(|| guards.join(",").into());
        table.share(named);
        table
    }

    /// Makes one list of those that are equal.
    fn share(&mut self, named: Map<&SpiffeId, Vec<u32>>) {
        let mut places: Map<Vec<u32>, usize> = Map::default();
        for (id, numbers) in named {
            let place = match places.get(&numbers) {
                Some(place) => *place,
                None => {
                    let mut list = List::default();
                    numbers.iter().for_each(|number| list.push(*number, &self.rules));
                    self.lists.push(list);
                    places.insert(numbers, self.lists.len() - 1);
                    self.lists.len() - 1
                }
            };
            self.by_identity.insert(id.clone(), place);
        }
    }

    /// Whether a request may go on. `peer` is who the connection's certificate says the caller is; `path` is in normal
    /// form. What the service would make of an ambiguous path (None) is not known, so no rule about paths admits it.
    pub fn authorize(&self, peer: Option<&SpiffeId>, method: &[u8], path: Option<&[u8]>) -> Decision<'_> {
        let Some(guards) = &self.guards else { return Decision::Allow("default") };
        match self.first(peer, |list| list.find(&self.rules, method, path)) {
            Some(rule) => Decision::Allow(&rule.name),
            None => Decision::Deny(guards),
        }
    }

    /// Whether an opaque connection may go on. Rules about methods or paths admit none; the model refuses them there.
    pub fn authorize_connection(&self, peer: Option<&SpiffeId>) -> Decision<'_> {
        let Some(guards) = &self.guards else { return Decision::Allow("default") };
        match self.first(peer, |list| list.unconditional(&self.rules)) {
            Some(rule) => Decision::Allow(&rule.name),
            None => Decision::Deny(guards),
        }
    }

    /// Whether some rule is about requests.
    pub fn is_about_requests(&self) -> bool {
        self.rules.iter().any(|rule| !rule.methods.is_empty() || !rule.paths.is_empty())
    }

    /// What is found among the rules for this caller by name, or else among those for anybody.
    #[inline]
    fn first<'a>(&'a self, peer: Option<&SpiffeId>, find: impl Fn(&'a List) -> Option<&'a Rule>) -> Option<&'a Rule> {
        let named = peer.and_then(|peer| self.by_identity.get(peer)).and_then(|place| self.lists.get(*place));
        named.and_then(&find).or_else(|| find(&self.anybody))
    }
}

#[cfg(test)]
mod tests;
