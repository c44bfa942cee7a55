//! Why the files of an identity cannot be used.

use std::io;
use std::path::PathBuf;

use ringmesh_model::spiffe;
use rustls::pki_types::pem;
use x509_parser::error::X509Error;

use super::Date;

/// Why the files of an identity cannot be used. Each names the file and what would be right. Side: own configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file is not there.
    #[error("{} is missing; `ringmesh ca issue --ca CA --out {} NAME` writes it", file.display(), directory(file))]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// A file of a listener's certificate is not there.
    #[error("{} is missing", file.display())]
    NotThere {
        /// The file.
        file: PathBuf,
    },
    /// The certificate is for clients only.
    #[error("the certificate in {} is not for servers (extended key usage without serverAuth)", file.display())]
    NotForServers {
        /// The file.
        file: PathBuf,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// A file is larger than any certificate chain, key or bundle.
    #[error("{} is larger than {} bytes, so it cannot be what it should be", file.display(), super::files::MAX_FILE_BYTES)]
    TooLarge {
        /// The file.
        file: PathBuf,
    },
    /// The private key can be read by others.
    #[error("{} can be read by others (mode {mode:04o}); run: chmod 600 {}", file.display(), file.display())]
    KeyExposed {
        /// The key file.
        file: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// A PEM section is broken.
    #[error("{} is not valid PEM: a section lacks its BEGIN or END line, or holds something else than base64", file.display())]
    Pem {
        /// The file.
        file: PathBuf,
        /// What the parser says; not shown, as it prints bytes as numbers.
        cause: pem::Error,
    },
    /// A certificate file holds no certificate.
    #[error("{} holds no certificate; a section `-----BEGIN CERTIFICATE-----` is expected", file.display())]
    NoCertificate {
        /// The file.
        file: PathBuf,
    },
    /// A certificate file holds more certificates than any chain needs.
    #[error("{} holds more than {} certificates", file.display(), super::files::MAX_CERTIFICATES)]
    TooManyCertificates {
        /// The file.
        file: PathBuf,
    },
    /// The key file holds no private key.
    #[error("{} holds no private key; a section `-----BEGIN PRIVATE KEY-----` (PKCS#8, not encrypted) is expected", file.display())]
    NoKey {
        /// The file.
        file: PathBuf,
    },
    /// The private key has an older form.
    #[error("the key in {} is not PKCS#8; convert it: openssl pkcs8 -topk8 -nodes -in {} -out NEW", file.display(), file.display())]
    KeyForm {
        /// The file.
        file: PathBuf,
    },
    /// The private key is of a kind that TLS 1.3 does not use, or broken.
    #[error("the key in {} is broken or of a kind that is not used; use P-256, P-384, Ed25519, or RSA of 2048 bits or more", file.display())]
    KeyUnusable {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        cause: rustls::Error,
    },
    /// Key and certificate are not a pair.
    #[error(
        "the key in {} does not belong to the certificate in {}; issue or copy both again",
        key.display(),
        certificate.display()
    )]
    KeyMismatch {
        /// The key file.
        key: PathBuf,
        /// The certificate file.
        certificate: PathBuf,
    },
    /// A section holds something else than an X.509 certificate.
    #[error("certificate {position} of {} cannot be read: {cause}", file.display())]
    Certificate {
        /// The file.
        file: PathBuf,
        /// Its place in the file, from 1.
        position: usize,
        /// What is wrong with it.
        cause: X509Error,
    },
    /// The certificate names nobody.
    #[error("the certificate in {} has no URI name; an SVID has exactly one, spiffe://TRUST-DOMAIN/PATH", file.display())]
    NoUri {
        /// The file.
        file: PathBuf,
    },
    /// The certificate names several, so it is not known whom it stands for (X.509-SVID section 2).
    #[error("the certificate in {} has {} URI names ({}); an SVID has exactly one", file.display(), uris.len(), uris.join(", "))]
    SeveralUris {
        /// The file.
        file: PathBuf,
        /// Those it has.
        uris: Vec<String>,
    },
    /// The certificate's URI is not a SPIFFE ID.
    #[error("the URI name `{uri}` in {} is no SPIFFE ID: {cause}", file.display())]
    NotSpiffe {
        /// The file.
        file: PathBuf,
        /// The name.
        uri: String,
        /// What is wrong with it.
        cause: spiffe::Error,
    },
    /// The first certificate belongs to an authority, not to a workload.
    #[error("the first certificate in {} may sign others; the workload's own comes first, intermediates after it", file.display())]
    Authority {
        /// The file.
        file: PathBuf,
    },
    /// The only certificate belongs to an authority, as what `openssl req -x509` makes by itself does.
    #[error(
        "the certificate in {} may sign others, which many clients take from no server; add `-addext basicConstraints=critical,CA:FALSE` \
         to `openssl req -x509`",
        file.display()
    )]
    ServerAuthority {
        /// The file.
        file: PathBuf,
    },
    /// The certificate may not be used for what a sidecar does with it: be server, be client, sign handshakes.
    #[error("the certificate in {} lacks {missing}; an SVID needs digitalSignature, serverAuth and clientAuth", file.display())]
    Usage {
        /// The file.
        file: PathBuf,
        /// The first use that is missing.
        missing: &'static str,
    },
    /// A certificate's time is over.
    #[error("certificate {position} of {} expired at {since}; issue a new one", file.display())]
    Expired {
        /// The file.
        file: PathBuf,
        /// Its place in the file, from 1.
        position: usize,
        /// The end of its validity.
        since: Date,
    },
    /// A certificate's time has not begun.
    #[error("certificate {position} of {} is not valid before {until}; is this machine's clock right? It says {now}", file.display())]
    NotYetValid {
        /// The file.
        file: PathBuf,
        /// Its place in the file, from 1.
        position: usize,
        /// The begin of its validity.
        until: Date,
        /// The time here.
        now: Date,
    },
    /// Nobody in the bundle vouches for the chain.
    #[error(
        "no certificate in {} signed the chain in {} (last issuer: {issuer}); both must come from one authority",
        bundle.display(),
        chain.display()
    )]
    UnknownIssuer {
        /// The bundle file.
        bundle: PathBuf,
        /// The certificate file.
        chain: PathBuf,
        /// Who signed the last certificate of the chain.
        issuer: String,
    },
    /// The chain breaks a rule of RFC 5280.
    #[error("the chain in {} is not valid: {cause}", chain.display())]
    Chain {
        /// The certificate file.
        chain: PathBuf,
        /// Which rule.
        cause: webpki::Error,
    },
}

impl Error {
    /// Whether a reader may have come between two renames of an issuer, so that reading again may help.
    pub(super) fn may_be_half_written(&self) -> bool {
        matches!(self, Self::KeyMismatch { .. } | Self::UnknownIssuer { .. })
    }
}

/// The directory of `file`, as a command takes it.
fn directory(file: &std::path::Path) -> std::path::Display<'_> {
    file.parent().unwrap_or(file).display()
}
