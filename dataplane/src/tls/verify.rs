//! Who a peer is: from a certificate to a SPIFFE ID, or to the fault that grants none. Nothing else in the product
//! grants an identity.

use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::spiffe::SpiffeId;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, PeerIncompatible, RootCertStore, SignatureScheme};
use x509_parser::extensions::GeneralName;

use super::fault::Fault;
use super::proof::{self, Anchor, Proof};
use super::proven;

/// Which side of a handshake a certificate is shown by.
#[derive(Clone, Copy)]
pub(super) enum Side {
    Client,
    Server,
}

/// The roots of the own trust domain.
#[derive(Debug)]
pub(super) struct Bundle {
    pub(super) roots: RootCertStore,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl Bundle {
    /// Checks the chain (RFC 5280 section 6, by webpki) and what X.509-SVID section 5.2 asks of a leaf; says who it is, and for
    /// how long that is proved. A root's own end is not looked at.
    pub(super) fn identify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        side: Side,
    ) -> Result<(SpiffeId, Proof), Fault> {
        let usage = match side {
            Side::Client => webpki::KeyUsage::client_auth(),
            Side::Server => webpki::KeyUsage::server_auth(),
        };
        let end_entity = webpki::EndEntityCert::try_from(leaf)?;
        let path = end_entity.verify_for_usage(
            proven::algorithms(),
            &self.roots.roots,
            intermediates,
            now,
            usage,
            None,
            None,
        )?;
        let (id, mut ends) = read(leaf)?;
        for intermediate in path.intermediate_certificates() {
            ends = ends.min(proof::end_of(&intermediate.der())?);
        }
        Ok((id, Proof { ends, anchor: Anchor::of(path.anchor()) }))
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

/// The SPIFFE ID that a leaf carries. Says nothing about who issued it: only for certificates already checked.
///
/// # Errors
/// If it is no leaf, or has not exactly one URI name that is a SPIFFE ID. Doubt is refusal: a name that cannot be read
/// is not skipped, since it could be the second URI.
pub(super) fn spiffe_id(leaf: &CertificateDer<'_>) -> Result<SpiffeId, Fault> {
    read(leaf).map(|(id, _)| id)
}

/// Whom a leaf names, and when it ends.
fn read(leaf: &CertificateDer<'_>) -> Result<(SpiffeId, Duration), Fault> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(leaf).map_err(|_| Fault::Malformed)?;
    if !rest.is_empty() {
        return Err(Fault::Malformed);
    }
    if certificate.basic_constraints().map_err(|_| Fault::Malformed)?.is_some_and(|extension| extension.value.ca) {
        return Err(Fault::NotALeaf);
    }
    if let Some(usage) = certificate.key_usage().map_err(|_| Fault::Malformed)? {
        if usage.value.key_cert_sign() || usage.value.crl_sign() {
            return Err(Fault::NotALeaf);
        }
        if !usage.value.digital_signature() {
            return Err(Fault::WrongUsage);
        }
    }
    let names = certificate.subject_alternative_name().map_err(|_| Fault::Malformed)?.ok_or(Fault::NoUri)?;
    let mut found = None;
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(_) if found.is_some() => return Err(Fault::SeveralUris),
            GeneralName::URI(uri) => found = Some(*uri),
            GeneralName::Invalid(..) => return Err(Fault::Malformed),
            _ => {}
        }
    }
    let id = found.ok_or(Fault::NoUri)?.parse().map_err(Fault::BadSpiffeId)?;
    Ok((id, proof::end(&certificate)))
}

/// A server's check of its clients: any identity of the own trust domain.
#[derive(Debug)]
pub(super) struct Clients {
    pub(super) bundle: Arc<Bundle>,
    pub(super) trust_domain: String,
}

impl ClientCertVerifier for Clients {
    /// None: a workload has one SVID, so it needs no help in choosing.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let (found, proof) = self.bundle.identify(leaf, intermediates, now, Side::Client)?;
        if found.trust_domain() != self.trust_domain {
            return Err(Fault::WrongTrustDomain { expected: self.trust_domain.clone(), found }.into());
        }
        proof::found(proof);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.bundle.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.bundle.algorithms.supported_schemes()
    }
}

/// A client's check of its server: exactly the identity it wants to reach. Host names play no part.
#[derive(Debug)]
pub(super) struct Servers {
    pub(super) bundle: Arc<Bundle>,
    pub(super) trust_domain: String,
    pub(super) peer: SpiffeId,
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (found, proof) = self.bundle.identify(leaf, intermediates, now, Side::Server)?;
        if found.trust_domain() != self.trust_domain {
            return Err(Fault::WrongTrustDomain { expected: self.trust_domain.clone(), found }.into());
        }
        if found != self.peer {
            return Err(Fault::WrongIdentity { expected: self.peer.clone(), found }.into());
        }
        proof::found(proof);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.bundle.verify_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.bundle.algorithms.supported_schemes()
    }
}
