//! Who we are, and who others are.

use super::{Resolver, Subject};
use crate::error::{Cause, Located, Place};
use crate::snapshot::Identity;
use crate::spiffe::SpiffeId;

impl Resolver<'_> {
    /// The own SVID must be ours.
    pub(super) fn identity(&mut self, identity: Option<&Identity>) {
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
    pub(super) fn needs_identity(&mut self, subject: Subject<'_>, field: &str, place: Place, what: &'static str) {
        if self.has_identity {
            return;
        }
        let cause = match self.config.identity_folder() {
            None => Cause::NoIdentity { what },
            Some(folder) => Cause::IdentityNotLoaded { what, directory: folder.display().to_string() },
        };
        self.note(subject, field, place, cause);
    }

    /// A short name, `namespace/name`, or a whole ID.
    pub(super) fn spiffe_id(&mut self, subject: Subject<'_>, field: &str, text: &Located<String>) -> Option<SpiffeId> {
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
}
