//! Every reason why a certificate grants no identity, and its way through rustls, which has words for some of them only.

use std::sync::Arc;
use std::time::Duration;

use ringmesh_model::spiffe::{self, SpiffeId};
use rustls::pki_types::UnixTime;
use rustls::{CertificateError, OtherError};

/// Why a certificate grants no identity (X.509-SVID standard, sections 4 and 5).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Its validity, or that of a certificate above it, is over.
    #[error("certificate expired {} s ago: renew it", now.saturating_sub(*end))]
    Expired {
        /// The time of the check, in seconds since the Unix epoch.
        now: u64,
        /// The end of validity, likewise.
        end: u64,
    },
    /// Its validity has not begun.
    #[error("certificate is valid in {} s only: compare the clocks of both sides", begin.saturating_sub(*now))]
    NotYetValid {
        /// The time of the check, in seconds since the Unix epoch.
        now: u64,
        /// The begin of validity, likewise.
        begin: u64,
    },
    /// No chain leads from it to a root of the trust bundle.
    #[error("certificate was not issued by a root of the trust bundle")]
    UnknownIssuer,
    /// A chain leads to a root but breaks a rule of RFC 5280 section 6.
    #[error("certificate chain breaks a rule: {0}")]
    Chain(webpki::Error),
    /// What was signed in the handshake does not fit the key in the certificate.
    #[error("peer does not hold the private key of its certificate")]
    BadSignature,
    /// Its key usage does not allow it to be shown in a handshake, or not on this side.
    #[error("certificate may not be used for this side of mutual TLS (key usage or extended key usage)")]
    WrongUsage,
    /// It may sign other certificates (X.509-SVID section 5.2).
    #[error("certificate belongs to a CA, not to a workload")]
    NotALeaf,
    /// It cannot be read.
    #[error("certificate is malformed")]
    Malformed,
    /// It has no URI among its names.
    #[error("certificate has no URI name, so no SPIFFE ID")]
    NoUri,
    /// It has more than one URI among its names (X.509-SVID section 5.2: reject).
    #[error("certificate has more than one URI name")]
    SeveralUris,
    /// Its URI is no SPIFFE ID.
    #[error("certificate's URI name is no SPIFFE ID: {0}")]
    BadSpiffeId(spiffe::Error),
    /// It belongs to a workload of another trust domain.
    #[error("certificate of `{found}` is not of trust domain `{expected}`")]
    WrongTrustDomain {
        /// The own trust domain.
        expected: String,
        /// Whom it names.
        found: SpiffeId,
    },
    /// It belongs to another workload than the one that was to be reached.
    #[error("certificate is of `{found}`, expected `{expected}`")]
    WrongIdentity {
        /// Who was to be reached.
        expected: SpiffeId,
        /// Whom it names.
        found: SpiffeId,
    },
}

impl Fault {
    /// The cause as metrics and logs name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Expired { .. } => "expired",
            Self::NotYetValid { .. } => "not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Chain(_) => "bad_chain",
            Self::BadSignature => "bad_signature",
            Self::WrongUsage => "wrong_usage",
            Self::NotALeaf => "not_a_leaf",
            Self::Malformed => "malformed_certificate",
            Self::NoUri => "no_uri",
            Self::SeveralUris => "several_uris",
            Self::BadSpiffeId(_) => "bad_spiffe_id",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::WrongIdentity { .. } => "wrong_identity",
        }
    }
}

impl From<webpki::Error> for Fault {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::CertExpired { time, not_after } => {
                Self::Expired { now: time.as_secs(), end: not_after.as_secs() }
            }
            webpki::Error::CertNotValidYet { time, not_before } => {
                Self::NotYetValid { now: time.as_secs(), begin: not_before.as_secs() }
            }
            // A foreign CA whose name equals ours shows as a wrong signature: to the operator both are one cause.
            webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            webpki::Error::RequiredEkuNotFoundContext(_) | webpki::Error::EmptyEkuExtension => Self::WrongUsage,
            webpki::Error::CaUsedAsEndEntity => Self::NotALeaf,
            webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => Self::Malformed,
            other => Self::Chain(other),
        }
    }
}

/// For the way through rustls: where it has a variant of its own the peer gets the alert that fits, else the fault
/// travels inside (and the alert is `certificate_unknown`). [`Fault::from`] undoes it.
impl From<Fault> for rustls::Error {
    fn from(fault: Fault) -> Self {
        let seconds = |value: u64| UnixTime::since_unix_epoch(Duration::from_secs(value));
        Self::InvalidCertificate(match fault {
            Fault::Expired { now, end } => {
                CertificateError::ExpiredContext { time: seconds(now), not_after: seconds(end) }
            }
            Fault::NotYetValid { now, begin } => {
                CertificateError::NotValidYetContext { time: seconds(now), not_before: seconds(begin) }
            }
            Fault::UnknownIssuer => CertificateError::UnknownIssuer,
            Fault::BadSignature => CertificateError::BadSignature,
            Fault::WrongUsage => CertificateError::InvalidPurpose,
            Fault::Malformed => CertificateError::BadEncoding,
            other => CertificateError::Other(OtherError(Arc::new(other))),
        })
    }
}

impl From<CertificateError> for Fault {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::ExpiredContext { time, not_after } => {
                Self::Expired { now: time.as_secs(), end: not_after.as_secs() }
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Self::NotYetValid { now: time.as_secs(), begin: not_before.as_secs() }
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Self::WrongUsage,
            CertificateError::BadEncoding => Self::Malformed,
            CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Self>() {
                Some(fault) => fault.clone(),
                None => Self::Malformed,
            },
            // What is left comes from rustls' own check of the handshake's signature.
            _ => Self::BadSignature,
        }
    }
}
