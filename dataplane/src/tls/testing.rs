//! SVIDs for tests: a root and an intermediate as `ringmesh ca` makes them, and leaves with any fault.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use ringmesh_model::snapshot::Identity;

/// A root with an intermediate below it.
pub(crate) struct Authority {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = || KeyPair::generate().unwrap();
        let root = CertifiedIssuer::self_signed(ca("root"), key()).unwrap();
        let intermediate = CertifiedIssuer::signed_by(ca("intermediate"), key(), &root).unwrap();
        Self { root, intermediate }
    }

    /// A sound SVID.
    pub(crate) fn svid(&self, id: &str) -> Identity {
        self.issue(id, |_| {})
    }

    /// An SVID with what `edit` does to it. It says `id` to its own side in any case.
    pub(crate) fn issue(&self, id: &str, edit: impl FnOnce(&mut CertificateParams)) -> Identity {
        let mut certificate = CertificateParams::default();
        certificate.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        certificate.is_ca = IsCa::ExplicitNoCa;
        certificate.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        certificate.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        edit(&mut certificate);
        let key = KeyPair::generate().unwrap();
        let leaf = certificate.signed_by(&key, &self.intermediate).unwrap();
        Identity {
            id: id.parse().unwrap(),
            chain: vec![leaf.der().to_vec(), self.intermediate.der().to_vec()],
            key: key.serialize_der(),
            bundle: vec![self.root.der().to_vec()],
            expires: u64::MAX,
        }
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// Ends the validity of a certificate long ago.
pub(crate) fn expire(certificate: &mut CertificateParams) {
    certificate.not_before = rcgen::date_time_ymd(2020, 1, 1);
    certificate.not_after = rcgen::date_time_ymd(2021, 1, 1);
}
