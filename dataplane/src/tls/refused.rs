//! Every way a TLS connection can be refused: one variant a cause, one label a variant.

use std::io;

use rustls::{AlertDescription, PeerIncompatible};

use super::fault::Fault;

/// Why there is no TLS connection, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// The peer spoke, but not TLS. Side: peer.
    #[error("peer does not speak TLS: it sent plain bytes")]
    NotTls,
    /// The client sent a request in plain text; it was answered. Side: client.
    #[error("client sent a request in plain HTTP: use https:// at this port")]
    PlainHttp,
    /// The client showed no certificate. Side: client.
    #[error("client showed no certificate")]
    NoCertificate,
    /// The peer's certificate grants no identity, or not the wanted one. Side: peer (or our bundle is outdated).
    #[error(transparent)]
    Certificate(#[from] Fault),
    /// The peer refused us and said why, as far as an alert says it. Its own log has the cause.
    #[error("peer refused the connection with alert `{}`{}", .0.as_str().unwrap_or("unknown"), hint(*.0))]
    PeerAlert(AlertDescription),
    /// There is no version, cipher suite or key exchange that both sides accept; we accept TLS 1.3 only,
    /// unless an edge says otherwise.
    #[error("peer and we have no version or parameters of TLS in common: {}", in_common(.0))]
    Incompatible(PeerIncompatible),
    /// The peer broke the protocol, or bytes were changed on the way.
    #[error("TLS protocol error: {}", broken(.0))]
    Protocol(rustls::Error),
    /// A handshake message is larger than [`super::limits::MAX_HANDSHAKE_BYTES`].
    #[error("peer sent a handshake message of more than {} bytes", super::limits::MAX_HANDSHAKE_BYTES)]
    TooLarge,
    /// The peer ended the connection before the handshake was over.
    #[error("peer closed the connection during the handshake")]
    Closed,
    /// We stopped it: the deadline passed, or a drain or an abort came.
    #[error("{}", stopped(*.0))]
    Stopped(ringmesh_ring::Reason),
    /// The transport failed.
    #[error(transparent)]
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

/// What is missing, with what helps.
fn in_common(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::SupportedVersionsExtensionRequired => {
            "the client speaks no TLS 1.3; `tls_min_version = \"1.2\"` lets it in where `mtls` is off".to_owned()
        }
        other => format!("{other:?}"),
    }
}

fn broken(error: &rustls::Error) -> String {
    match error {
        rustls::Error::NoApplicationProtocol => {
            "by ALPN the client offers only protocols that this listener does not speak; HTTP is `h2` and `http/1.1`"
                .to_owned()
        }
        other => other.to_string(),
    }
}

fn stopped(reason: ringmesh_ring::Reason) -> &'static str {
    match reason {
        ringmesh_ring::Reason::Deadline => "the handshake was not over in time; does the peer speak TLS?",
        ringmesh_ring::Reason::Drain => "the proxy ended during the handshake",
        ringmesh_ring::Reason::Abort => "the handshake was given up",
    }
}

impl Refused {
    /// The cause as metrics and logs name it.
    pub fn label(&self) -> &'static str {
        match self {
            Self::NotTls => "not_tls",
            Self::PlainHttp => "plain_http",
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
    pub const LABELS: [&'static str; 26] = [
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
        "plain_http",
    ];

    /// The position of the label of what has none of its own.
    const OTHER: usize = 24;

    /// The position of its label in [`Refused::LABELS`].
    pub fn number(&self) -> usize {
        let label = self.label();
        Self::LABELS.iter().position(|other| *other == label).unwrap_or(Self::OTHER)
    }

    /// Whether the peer's certificate does not grant the identity that we expect.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Certificate(_))
    }

    /// The refusal inside an error of an established [`super::TlsStream`], if it has one. A server that refuses its
    /// client's certificate does so after the client's handshake is over (RFC 8446 section 4.4.4), so a client learns
    /// it here, from its first read or from a write that failed.
    pub fn inside(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// An error that says the same, for another who has to hear of it.
    pub fn repeat(error: &io::Error) -> io::Error {
        match Self::inside(error) {
            Some(Self::PeerAlert(alert)) => io::Error::new(error.kind(), Self::PeerAlert(*alert)),
            _ => error.kind().into(),
        }
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

#[cfg(test)]
mod tests {
    use ringmesh_ring::Reason;
    use rustls::Error;

    use super::*;

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_helps() {
        let says = |refused: Refused, words: &str| assert!(refused.to_string().contains(words), "{refused}");
        says(
            Error::NoApplicationProtocol.into(),
            "by ALPN the client offers only protocols that this listener does not speak",
        );
        says(
            Refused::Incompatible(PeerIncompatible::SupportedVersionsExtensionRequired),
            "`tls_min_version = \"1.2\"` lets it in",
        );
        says(Refused::Stopped(Reason::Deadline), "was not over in time; does the peer speak TLS?");
        says(Refused::Stopped(Reason::Drain), "the proxy ended");
    }

    #[test]
    fn every_cause_has_a_label_and_number_of_its_own() {
        let id = || "spiffe://shop.example/web".parse().unwrap();
        let faults = [
            Fault::Expired { now: 2, end: 1 },
            Fault::NotYetValid { now: 1, begin: 2 },
            Fault::UnknownIssuer,
            Fault::Chain(webpki::Error::PathLenConstraintViolated),
            Fault::BadSignature,
            Fault::WrongUsage,
            Fault::NotALeaf,
            Fault::Malformed,
            Fault::NoUri,
            Fault::SeveralUris,
            Fault::BadSpiffeId(ringmesh_model::spiffe::Error::NoPath),
            Fault::WrongTrustDomain { expected: "shop.example".into(), found: id() },
            Fault::WrongIdentity { expected: id(), found: id() },
        ];
        // The way through rustls loses nothing.
        for fault in &faults {
            match Refused::from(Error::from(fault.clone())) {
                Refused::Certificate(same) => assert_eq!(same, *fault),
                other => panic!("{fault} became {other}"),
            }
        }
        let others = [
            Refused::NotTls,
            Refused::PlainHttp,
            Refused::NoCertificate,
            Refused::PeerAlert(AlertDescription::UnknownCA),
            Refused::Incompatible(PeerIncompatible::Tls12NotOfferedOrEnabled),
            Refused::Protocol(Error::DecryptError),
            Refused::TooLarge,
            Refused::Closed,
            Refused::Stopped(Reason::Deadline),
            Refused::Stopped(Reason::Drain),
            Refused::Stopped(Reason::Abort),
            Refused::Io(io::ErrorKind::ConnectionReset.into()),
        ];
        let causes = faults.into_iter().map(Refused::Certificate).chain(others);
        let mut numbers: Vec<_> = causes.map(|cause| cause.number()).collect();
        numbers.sort_unstable();
        // All but the one that stands for causes that this version does not know.
        let known = (0..Refused::LABELS.len()).filter(|number| *number != Refused::OTHER);
        assert_eq!(numbers, known.collect::<Vec<_>>());
    }
}
