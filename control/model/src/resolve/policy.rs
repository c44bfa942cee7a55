//! Policies, and whether their listeners can enforce them.

use std::collections::HashMap;

use super::{Kind, Resolver, Subject};
use crate::error::Cause;
use crate::listener::Listener;
use crate::policy::{Allow, Policy};
use crate::snapshot::{self, Mtls, Protocol};

impl<'a> Resolver<'a> {
    pub(super) fn policy(&mut self, index: usize, policy: &'a Policy) -> snapshot::Policy {
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
    fn enforceable(&mut self, subject: Subject<'_>, field: &str, listener: &Listener, rule: &Allow) {
        let opaque = "is a tcp one, which has neither methods nor paths; set its protocol to \"http\"";
        let plain = "takes clients that prove no identity; set `mtls = \"strict\"` there";
        let unopened = "passes TLS on unopened, where neither methods nor paths can be seen";
        let (is_opaque, opaque) = match listener.protocol {
            Protocol::Http | Protocol::Http2 | Protocol::Detect => (false, opaque),
            Protocol::Tcp => (true, opaque),
            Protocol::Tls => (true, unopened),
        };
        let is_plain = listener.mtls.value == Mtls::Off;
        for (key, place, why) in [
            ("methods", rule.methods.as_ref().map(|methods| methods.place).filter(|_| is_opaque), opaque),
            ("paths", rule.paths.as_ref().map(|paths| paths.place).filter(|_| is_opaque), opaque),
            ("from", rule.from.as_ref().map(|from| from.place).filter(|_| is_plain), plain),
        ] {
            if let Some(place) = place {
                let cause = Cause::Unenforceable { listener: listener.name.value.clone(), why };
                self.note(subject, &format!("{field}.{key}"), place, cause);
            }
        }
    }
}
