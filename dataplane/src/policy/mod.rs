//! Who may call. Deny wins on doubt: once a policy names a listener, what no rule allows is refused.
#![deny(clippy::disallowed_types, clippy::disallowed_methods)]

use std::borrow::Cow;
use std::collections::HashMap;

use foldhash::fast::FixedState;
use ringmesh_codec::normalize;
use ringmesh_model::snapshot;
use ringmesh_model::spiffe::SpiffeId;

use self::rules::{Rule, Rules};

mod rules;

/// All policies of one listener. Rules are found by identity, path and method, so that their number does not matter.
#[derive(Debug, Default)]
pub struct Table {
    /// Names of the policies that guard the listener; None: nobody does.
    guards: Option<Box<str>>,
    /// Only the config puts keys in, so nobody can choose ones that collide.
    by_identity: HashMap<SpiffeId, Rules, FixedState>,
    anybody: Rules,
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
        for policy in policies {
            guards.push(&policy.name);
            for rule in &policy.allow {
                table.add(policy, rule);
            }
        }
        table.guards = (!guards.is_empty()).then(|| guards.join(",").into());
        table
    }

    fn add(&mut self, policy: &snapshot::Policy, allow: &snapshot::AllowRule) {
        let rule = Rule {
            name: format!("{}/{}", policy.name, allow.name).into(),
            methods: allow.methods.clone(),
            paths: allow.paths.clone(),
        };
        if allow.from.is_empty() {
            self.anybody.push(rule);
            return;
        }
        for id in &allow.from {
            self.by_identity.entry(id.clone()).or_default().push(rule.clone());
        }
    }

    /// Whether a request may go on. `peer` is who the connection's certificate says the caller is.
    pub fn authorize(&self, peer: Option<&SpiffeId>, method: &[u8], path: &[u8]) -> Decision<'_> {
        let Some(guards) = &self.guards else { return Decision::Allow("default") };
        // What the service would make of an ambiguous path is not known, so no rule about paths admits it.
        let path = if normalize::path_is_plain(path) { Ok(Cow::Borrowed(path)) } else { normalize::normalized(path) };
        let path = path.as_deref().ok();
        match self.rules_for(peer).find_map(|rules| rules.find(method, path)) {
            Some(rule) => Decision::Allow(&rule.name),
            None => Decision::Deny(guards),
        }
    }

    /// Whether an opaque connection may go on. Rules about methods or paths admit none; the model refuses them there.
    pub fn authorize_connection(&self, peer: Option<&SpiffeId>) -> Decision<'_> {
        let Some(guards) = &self.guards else { return Decision::Allow("default") };
        match self.rules_for(peer).find_map(Rules::unconditional) {
            Some(rule) => Decision::Allow(&rule.name),
            None => Decision::Deny(guards),
        }
    }

    /// Rules for this caller by name, then those for anybody.
    fn rules_for(&self, peer: Option<&SpiffeId>) -> impl Iterator<Item = &Rules> {
        peer.and_then(|peer| self.by_identity.get(peer)).into_iter().chain([&self.anybody])
    }
}

#[cfg(test)]
mod tests;
