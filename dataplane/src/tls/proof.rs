//! What a peer has proved who it is by: a root that vouches for it, and certificates that end.

use std::cell::Cell;
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use ringmesh_model::snapshot::Identity;
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::certificate::X509Certificate;

use super::fault::Fault;

/// A root that vouches for peers, as its name and key (SHA-256 of both): in a new certificate they are the same root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Anchor([u8; 32]);

impl Anchor {
    pub(super) fn of(root: &TrustAnchor<'_>) -> Self {
        let mut context = Context::new(&SHA256);
        // With its length, so that no other name and key read alike.
        context.update(&(root.subject.len() as u64).to_be_bytes());
        context.update(&root.subject);
        context.update(&root.subject_public_key_info);
        Self(context.finish().as_ref().try_into().expect("SHA-256 has 32 bytes"))
    }

    /// The roots of an identity's trust bundle. One that cannot be read vouches for nobody; configs are not made with it.
    pub fn all(identity: &Identity) -> Vec<Self> {
        let roots = identity.bundle.iter().map(|der| CertificateDer::from(der.as_slice()));
        roots.filter_map(|der| webpki::anchor_from_trusted_cert(&der).map(|root| Self::of(&root)).ok()).collect()
    }
}

/// What was looked at when a peer was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// When the first certificate of its chain ends, since the Unix epoch.
    pub ends: Duration,
    /// Which root vouches for it.
    pub anchor: Anchor,
}

/// When a certificate ends: behind the whole second that it names (RFC 5280 section 4.1.2.5).
pub(super) fn end(certificate: &X509Certificate<'_>) -> Duration {
    let last = certificate.validity().not_after.timestamp();
    Duration::from_secs(u64::try_from(last).map_or(0, |last| last.saturating_add(1)))
}

/// The same of one that was not read yet.
pub(super) fn end_of(der: &CertificateDer<'_>) -> Result<Duration, Fault> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|_| Fault::Malformed)?;
    Ok(end(&certificate))
}

thread_local! {
    /// What the verifier has found in the step of a handshake that is being worked on: the library takes nothing of it along.
    static FOUND: Cell<Option<Proof>> = const { Cell::new(None) };
}

/// The verifier has let a peer in.
pub(super) fn found(proof: Proof) {
    FOUND.set(Some(proof));
}

/// What was found in the last step on this thread.
pub(super) fn take_found() -> Option<Proof> {
    FOUND.take()
}
