//! Who a server is, where it is not asked by name.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible, RootCertStore, SignatureScheme,
};

/// Asks for the key of the certificate shown, and believes what `trust` admits.
#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Who is believed.
#[derive(Debug)]
enum Trust {
    Anyone,
    /// Whoever the roots vouch for and has this SPIFFE ID.
    Workload {
        id: String,
        roots: RootCertStore,
    },
}

impl Verifier {
    pub(super) fn anyone(provider: &CryptoProvider) -> Self {
        Self { trust: Trust::Anyone, algorithms: provider.signature_verification_algorithms }
    }

    pub(super) fn workload(id: &str, roots: RootCertStore, provider: &CryptoProvider) -> Self {
        let trust = Trust::Workload { id: id.to_owned(), roots };
        Self { trust, algorithms: provider.signature_verification_algorithms }
    }
}

/// The server is somebody else.
#[derive(Debug, thiserror::Error)]
#[error("the certificate is of `{found}`, and `{expected}` was expected")]
struct OtherWorkload {
    expected: String,
    found: String,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Workload { id, roots } = &self.trust else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(leaf)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, intermediates, now, self.algorithms.all)?;
        let names = webpki::EndEntityCert::try_from(leaf).map_err(|_| CertificateError::BadEncoding)?;
        let found: Vec<_> = names.valid_uri_names().collect();
        if found == [id.as_str()] {
            return Ok(ServerCertVerified::assertion());
        }
        let found = if found.is_empty() { "nobody with a SPIFFE ID".to_owned() } else { found.join(", ") };
        let other = OtherWorkload { expected: id.clone(), found };
        Err(CertificateError::Other(OtherError(std::sync::Arc::new(other))).into())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::ServerDoesNotSupportTls12Or13.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
