//! Every way a TLS connection can be refused: one variant a cause, one label a variant.

use std::io;
use std::sync::Arc;

use ringmesh_model::spiffe::{self, SpiffeId};
use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, OtherError, PeerIncompatible};

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
        let seconds = |value: u64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(value));
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

/// Why there is no TLS connection, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The peer spoke, but not TLS. Side: peer.
    #[error("peer does not speak TLS: it sent plain bytes")]
    NotTls,
    /// The client showed no certificate. Side: client.
    #[error("client showed no certificate")]
    NoCertificate,
    /// The peer's certificate grants no identity, or not the wanted one. Side: peer (or our bundle is outdated).
    #[error("{0}")]
    Certificate(#[from] Fault),
    /// The peer refused us and said why, as far as an alert says it. Its own log has the cause.
    #[error("peer refused the connection with alert `{}`{}", .0.as_str().unwrap_or("unknown"), hint(*.0))]
    PeerAlert(AlertDescription),
    /// There is no version, cipher suite or key exchange that both sides accept; we accept TLS 1.3 only.
    #[error("peer and we have no TLS 1.3 parameters in common: {0:?}")]
    Incompatible(PeerIncompatible),
    /// The peer broke the protocol, or bytes were changed on the way.
    #[error("TLS protocol error: {0}")]
    Protocol(rustls::Error),
    /// A handshake message is larger than [`super::limits::MAX_HANDSHAKE_BYTES`].
    #[error("peer sent a handshake message of more than {} bytes", super::limits::MAX_HANDSHAKE_BYTES)]
    TooLarge,
    /// The peer ended the connection before the handshake was over.
    #[error("peer closed the connection during the handshake")]
    Closed,
    /// We stopped it: the deadline passed, or a drain or an abort came.
    #[error("stopped during the handshake: {0:?}")]
    Stopped(ringmesh_ring::Reason),
    /// The transport failed.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What an alert mostly means between SVID holders.
fn hint(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::CertificateRequired => ": it demands a client certificate",
        AlertDescription::UnknownCA => ": our certificate is not from a root of its trust bundle",
        AlertDescription::CertificateExpired => ": our certificate is not valid at its clock's time",
        AlertDescription::CertificateUnknown => ": our identity is not the one it accepts",
        AlertDescription::ProtocolVersion => ": it speaks no TLS 1.3",
        _ => "",
    }
}

impl Refused {
    /// The cause as metrics and logs name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::NoCertificate => "no_certificate",
            Self::Certificate(fault) => fault.label(),
            Self::PeerAlert(_) => "peer_alert",
            Self::Incompatible(_) => "incompatible",
            Self::Protocol(_) => "protocol",
            Self::TooLarge => "too_large",
            Self::Closed => "closed",
            Self::Stopped(ringmesh_ring::Reason::Deadline) => "deadline",
            Self::Stopped(ringmesh_ring::Reason::Drain) => "drain",
            Self::Stopped(ringmesh_ring::Reason::Abort) => "abort",
            Self::Io(_) => "io",
        }
    }

    /// All labels; the position of one is the number its counter has.
    pub const LABELS: [&'static str; 25] = [
        "not_tls",
        "no_certificate",
        "expired",
        "not_yet_valid",
        "unknown_issuer",
        "bad_chain",
        "bad_signature",
        "wrong_usage",
        "not_a_leaf",
        "malformed_certificate",
        "no_uri",
        "several_uris",
        "bad_spiffe_id",
        "wrong_trust_domain",
        "wrong_identity",
        "peer_alert",
        "incompatible",
        "protocol",
        "too_large",
        "closed",
        "deadline",
        "drain",
        "abort",
        "io",
        "other",
    ];

    /// The position of its label in [`Refused::LABELS`].
    pub fn number(&self) -> usize {
        let label = self.label();
        Self::LABELS.iter().position(|other| *other == label).unwrap_or(Self::LABELS.len() - 1)
    }

    /// Whether the peer's certificate does not grant the identity that we expect.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Certificate(_))
    }

    /// The refusal inside an error of an established [`super::TlsStream`], if it has one. A server that refuses its
    /// client's certificate does so after the client's handshake is over (RFC 8446 section 4.4.4), so a client learns
    /// it here, from its first read.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<rustls::Error> for Refused {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::Certificate(error.into()),
            rustls::Error::NoCertificatesPresented => Self::NoCertificate,
            rustls::Error::AlertReceived(alert) => Self::PeerAlert(alert),
            rustls::Error::PeerIncompatible(why) => Self::Incompatible(why),
            other => Self::Protocol(other),
        }
    }
}

impl From<ringmesh_ring::Error> for Refused {
    fn from(error: ringmesh_ring::Error) -> Self {
        match error {
            ringmesh_ring::Error::Stopped(reason) => Self::Stopped(reason),
            ringmesh_ring::Error::Io(error) => Self::Io(error),
        }
    }
}

impl From<Refused> for io::Error {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Io(error) => error,
            Refused::PeerAlert(_) => Self::new(io::ErrorKind::ConnectionAborted, refused),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}
