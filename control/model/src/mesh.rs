//! `[mesh]`: what all workloads of a mesh have in common.

use crate::error::{Cause, Located};
use crate::reader::{Keys, Section};
use crate::spiffe;

/// Keys of `[mesh]`.
pub const KEYS: Keys = Keys { path: "mesh", header: "[mesh]", names: &["trust_domain"] };

/// `[mesh]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    /// The SPIFFE trust domain, without scheme. Needed as soon as an identity is: there is no default, because a name that
    /// two meshes share by accident would let them trust each other by accident.
    pub trust_domain: Option<Located<String>>,
}

impl Mesh {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let trust_domain = section.optional::<Located<String>>("trust_domain");
        if let Some(name) = &trust_domain
            && let Err(error) = spiffe::check_trust_domain(name)
            && let Some(field) = section.field("trust_domain")
        {
            field.refuse(Cause::TrustDomain(error));
        }
        Self { trust_domain }
    }
}
