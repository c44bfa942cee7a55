//! From an identity of the snapshot to rustls' configs, with every check that can be made before a peer comes.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use ringmesh_model::snapshot::{Certificate, Identity, TlsVersion};
use ringmesh_model::spiffe::SpiffeId;
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, InconsistentKeys, RootCertStore, ServerConfig};

use super::fault::Fault;
use super::handshake::Alpn;
use super::verify::{Bundle, Clients, Servers, Side};

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The chain is empty.
    #[error("identity `{0}` has no certificate")]
    NoCertificate(SpiffeId),
    /// The bundle is empty.
    #[error("trust bundle of `{0}` has no root certificate: nobody could be trusted")]
    NoRoots(SpiffeId),
    /// A root cannot be read.
    #[error("root certificate {index} of the trust bundle cannot be read: {cause}")]
    Root {
        /// Its place in the bundle, from 0.
        index: usize,
        /// What is wrong with it.
        cause: rustls::Error,
    },
    /// The private key cannot be read.
    #[error("private key of `{id}` cannot be read: {cause}; it must be PKCS#8 with an ECDSA, Ed25519 or RSA key")]
    Key {
        /// Whose key.
        id: SpiffeId,
        /// What is wrong with it.
        cause: rustls::Error,
    },
    /// The private key is of another certificate.
    #[error("private key does not belong to the certificate of `{0}`: issue both together again")]
    KeyMismatch(SpiffeId),
    /// The own certificate would be refused by every peer with the same bundle.
    #[error("own certificate of `{id}` cannot be used: {cause}")]
    Certificate {
        /// Whose certificate.
        id: SpiffeId,
        /// Why it would be refused.
        cause: Fault,
    },
    /// The certificate names another workload than the config.
    #[error("certificate is of `{found}`, but the workload is `{expected}`")]
    WrongIdentity {
        /// Who the config says we are.
        expected: SpiffeId,
        /// Who the certificate says we are.
        found: SpiffeId,
    },
    /// The own identity, or the peer to be reached, is of another trust domain: the bundle cannot vouch for it.
    #[error("`{found}` is not of trust domain `{expected}`, and other domains' bundles are not known")]
    WrongTrustDomain {
        /// The own trust domain.
        expected: String,
        /// Who is not of it.
        found: SpiffeId,
    },
    /// The certificate of a listener cannot be used.
    #[error("certificate for {names}: {cause}")]
    Listener {
        /// The names that it is for.
        names: String,
        /// What is wrong with it.
        cause: rustls::Error,
    },
    /// The library refuses its own defaults. Side: this program.
    #[error("TLS library refuses the versions of its own provider: {0}")]
    Library(rustls::Error),
}

/// aws-lc-rs for the whole product: it has X25519MLKEM768, which `prefer-post-quantum` puts first.
///
/// With `TLS_AES_128_GCM_SHA256` in front, as browsers have it: processors hash SHA-256 in hardware, but not SHA-384, which
/// with the library's own order is an eighth of a handshake.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
});

/// The same with TLS 1.2 behind it, in the order of its own suites: ephemeral key exchange and authenticated encryption alone,
/// which is all that the library has of it. For edges that ask for it.
static PROVIDER_WITH_TLS12: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    use aws_lc_rs::cipher_suite::{
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    };
    let mut provider = CryptoProvider::clone(&PROVIDER);
    provider.cipher_suites.extend([
        TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ]);
    Arc::new(provider)
});

/// The config of a strict mutual TLS listener: TLS 1.3, and a client of `trust_domain` or no connection. `protocols` are those
/// of ALPN (RFC 7301), the preferred one first; a client that offers only others is refused, one that offers none is not.
///
/// # Errors
/// By cause, see [`Error`]. An identity that is accepted here passes the very checks that peers make.
pub fn server(identity: &Identity, trust_domain: &str, protocols: &[Alpn]) -> Result<Arc<ServerConfig>, Error> {
    server_as(Own::check(identity, trust_domain)?, trust_domain, protocols)
}

/// The config of connections to `peer`: TLS 1.3, our SVID shown, and exactly that identity or no connection. `protocols` are
/// offered by ALPN.
///
/// # Errors
/// By cause, see [`Error`].
pub fn client(identity: &Identity, peer: &SpiffeId, protocols: &[Alpn]) -> Result<Arc<ClientConfig>, Error> {
    let trust_domain = identity.id.trust_domain();
    let own = Own::check(identity, trust_domain)?;
    if peer.trust_domain() != trust_domain {
        return Err(Error::WrongTrustDomain { expected: trust_domain.to_owned(), found: peer.clone() });
    }
    client_as(own, trust_domain, peer, protocols)
}

/// The config of an edge listener: TLS from `oldest` on with the certificate of the name that the client asks for, and with the first one
/// if it asks for none or for another. Clients need not show one. `protocols` are those of ALPN (RFC 7301), the preferred one
/// first; a client that offers only others is refused.
///
/// # Errors
/// If a certificate or key cannot be read, or they do not belong together.
pub fn edge_server(
    certificates: &[Certificate],
    protocols: &[Alpn],
    oldest: TlsVersion,
) -> Result<Arc<ServerConfig>, Error> {
    let builder = match oldest {
        TlsVersion::Tls13 => ServerConfig::builder_with_provider(PROVIDER.clone()).with_protocol_versions(&[&TLS13]),
        TlsVersion::Tls12 => {
            ServerConfig::builder_with_provider(PROVIDER_WITH_TLS12.clone()).with_protocol_versions(&[&TLS13, &TLS12])
        }
    };
    let mut config =
        builder.map_err(Error::Library)?.with_no_client_auth().with_cert_resolver(Arc::new(ByName::new(certificates)?));
    config.alpn_protocols = names(protocols);
    forbid_resumption(&mut config);
    Ok(Arc::new(config))
}

/// Certificates by the names that they are for.
#[derive(Debug)]
struct ByName {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    first: Arc<CertifiedKey>,
}

impl ByName {
    fn new(certificates: &[Certificate]) -> Result<Self, Error> {
        let (mut exact, mut wildcard, mut first) = (HashMap::new(), HashMap::new(), None);
        for certificate in certificates {
            let key = Arc::new(certified(certificate)?);
            first.get_or_insert_with(|| key.clone());
            for name in &certificate.names {
                match name.strip_prefix("*.") {
                    Some(rest) => wildcard.entry(rest.to_owned()).or_insert_with(|| key.clone()),
                    None => exact.entry(name.clone()).or_insert_with(|| key.clone()),
                };
            }
        }
        let none = || Error::Listener { names: "nobody".to_owned(), cause: rustls::Error::NoCertificatesPresented };
        Ok(Self { exact, wildcard, first: first.ok_or_else(none)? })
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        self.exact.get(&name).or_else(|| self.wildcard.get(name.split_once('.')?.1))
    }
}

thread_local! {
    /// The name in the ClientHello that is being worked on: the library keeps it from who drives it without I/O.
    static ASKED_NAME: Cell<Option<Box<str>>> = const { Cell::new(None) };
}

/// The name that the client asked for whose certificate was chosen in the last step on this thread.
pub(super) fn take_asked_name() -> Option<Box<str>> {
    ASKED_NAME.take()
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        ASKED_NAME.set(hello.server_name().map(Box::from));
        let named = hello.server_name().and_then(|name| self.find(name));
        Some(named.unwrap_or(&self.first).clone())
    }
}

fn certified(certificate: &Certificate) -> Result<CertifiedKey, Error> {
    let wrong = |cause| Error::Listener { names: certificate.names.join(", "), cause };
    let certified = load(&certificate.chain, &certificate.key).map_err(wrong)?;
    check_pair(&certified).map_err(wrong)?;
    Ok(certified)
}

/// A chain (leaf first) with its key, both DER. Whether they belong together is for [`check_pair`].
fn load(chain: &[Vec<u8>], key: &[u8]) -> Result<CertifiedKey, rustls::Error> {
    let key = PROVIDER.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.to_vec()).into())?;
    Ok(CertifiedKey::new(chain.iter().map(|der| CertificateDer::from(der.clone())).collect(), key))
}

/// Whether the key is that of the leaf. A kind of key that does not tell is believed.
fn check_pair(certified: &CertifiedKey) -> Result<(), rustls::Error> {
    match certified.keys_match() {
        Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(()),
        told => told,
    }
}

pub(super) fn server_as(own: Own, trust_domain: &str, protocols: &[Alpn]) -> Result<Arc<ServerConfig>, Error> {
    let verifier = Clients { bundle: own.bundle, trust_domain: trust_domain.to_owned() };
    let mut config = ServerConfig::builder_with_provider(own.provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Library)?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.key)));
    config.alpn_protocols = names(protocols);
    forbid_resumption(&mut config);
    Ok(Arc::new(config))
}

fn names(protocols: &[Alpn]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.name().as_bytes().to_vec()).collect()
}

/// No tickets and, in TLS 1.2, no sessions: rustls accepts one without looking at bundle, expiry or identity again, and its own ticket keys would not be
/// known to another data plane or a successor.
fn forbid_resumption(config: &mut ServerConfig) {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
}

pub(super) fn client_as(
    own: Own,
    trust_domain: &str,
    peer: &SpiffeId,
    protocols: &[Alpn],
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = Servers { bundle: own.bundle, trust_domain: trust_domain.to_owned(), peer: peer.clone() };
    let mut config = ClientConfig::builder_with_provider(own.provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(Error::Library)?
        .dangerous() // rustls' word for a verifier of one's own; ours checks more than a host name, see verify.rs
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.key)));
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = names(protocols);
    Ok(Arc::new(config))
}

/// The same without the offer of a connection that carries channels.
pub fn without_mesh(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    let is_mesh = |name: &Vec<u8>| [Alpn::Mesh, Alpn::MeshHttp].iter().any(|mesh| mesh.name().as_bytes() == name);
    if !config.alpn_protocols.iter().any(is_mesh) {
        return config.clone();
    }
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols.retain(|name| !is_mesh(name));
    Arc::new(config)
}

/// The own side of a handshake.
pub(super) struct Own {
    key: CertifiedKey,
    bundle: Arc<Bundle>,
    pub(super) provider: Arc<CryptoProvider>,
}

impl Own {
    fn check(identity: &Identity, trust_domain: &str) -> Result<Self, Error> {
        let id = &identity.id;
        if id.trust_domain() != trust_domain {
            return Err(Error::WrongTrustDomain { expected: trust_domain.to_owned(), found: id.clone() });
        }
        let own = Self::read(identity)?;
        let (leaf, intermediates) = own.key.cert.split_first().ok_or_else(|| Error::NoCertificate(id.clone()))?;
        let fault = |cause| Error::Certificate { id: id.clone(), cause };
        for side in [Side::Client, Side::Server] {
            let (found, _) = own.bundle.identify(leaf, intermediates, UnixTime::now(), side).map_err(fault)?;
            if found != *id {
                return Err(Error::WrongIdentity { expected: id.clone(), found });
            }
        }
        match check_pair(&own.key) {
            Ok(()) => Ok(own),
            Err(rustls::Error::InconsistentKeys(_)) => Err(Error::KeyMismatch(id.clone())),
            Err(_) => Err(fault(Fault::Malformed)),
        }
    }

    /// Reads, but checks nothing: tests show peers what [`Own::check`] would refuse.
    pub(super) fn read(identity: &Identity) -> Result<Self, Error> {
        let mut roots = RootCertStore::empty();
        for (index, der) in identity.bundle.iter().enumerate() {
            roots.add(CertificateDer::from(der.as_slice())).map_err(|cause| Error::Root { index, cause })?;
        }
        if roots.is_empty() {
            return Err(Error::NoRoots(identity.id.clone()));
        }
        let wrong = |cause| Error::Key { id: identity.id.clone(), cause };
        let key = load(&identity.chain, &identity.key).map_err(wrong)?;
        let bundle = Arc::new(Bundle { roots, algorithms: PROVIDER.signature_verification_algorithms });
        Ok(Self { key, bundle, provider: PROVIDER.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Authority, expire};
    use super::*;
    use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

    const WEB: &str = "spiffe://shop.example/ns/default/sa/web";

    fn check(identity: &Identity, expected: &str) {
        match server(identity, "shop.example", &[]) {
            Ok(_) => assert_eq!("", expected),
            Err(error) => assert!(error.to_string().contains(expected), "`{error}` lacks `{expected}`"),
        }
    }

    #[test]
    fn a_sound_identity_makes_configs_of_tls_1_3_with_the_post_quantum_group_first() {
        let identity = Authority::new().svid(WEB);
        check(&identity, "");
        let config = client(&identity, &"spiffe://shop.example/ns/default/sa/pay".parse().unwrap(), &[]).unwrap();
        assert_eq!(config.crypto_provider().kx_groups[0].name(), rustls::NamedGroup::X25519MLKEM768);
        let first = config.crypto_provider().cipher_suites[0].suite();
        assert_eq!(first, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn an_identity_that_peers_would_refuse_is_refused_with_its_cause() {
        let ours = Authority::new();
        let svid = |edit: fn(&mut rcgen::CertificateParams)| ours.issue(WEB, edit);
        check(&svid(expire), "certificate expired");
        check(&svid(|c| c.not_before = rcgen::date_time_ymd(4000, 1, 1)), "compare the clocks");
        check(&svid(|c| c.subject_alt_names.clear()), "has no URI name");
        check(&svid(|c| c.subject_alt_names.push(SanType::URI("spiffe://a/b".try_into().unwrap()))), "more than one");
        check(&svid(|c| c.subject_alt_names = vec![SanType::URI("https://a/b".try_into().unwrap())]), "no SPIFFE ID");
        check(&svid(|c| c.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained)), "belongs to a CA");
        check(&svid(|c| c.key_usages.push(KeyUsagePurpose::CrlSign)), "belongs to a CA");
        check(&svid(|c| c.key_usages = vec![KeyUsagePurpose::KeyEncipherment]), "may not be used for this side");
        check(&svid(|c| c.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]), "may not be used");
        check(&Identity { bundle: Authority::new().svid(WEB).bundle, ..ours.svid(WEB) }, "not issued by a root");
        check(&Identity { bundle: vec![], ..ours.svid(WEB) }, "no root certificate");
        check(&Identity { bundle: vec![vec![1, 2]], ..ours.svid(WEB) }, "root certificate 0");
        check(&Identity { chain: vec![], ..ours.svid(WEB) }, "has no certificate");
        check(&Identity { chain: vec![vec![1, 2]], ..ours.svid(WEB) }, "certificate is malformed");
        check(&Identity { key: ours.svid(WEB).key, ..ours.svid(WEB) }, "does not belong to the certificate");
        check(&Identity { key: vec![1, 2], ..ours.svid(WEB) }, "cannot be read");
        check(&ours.svid("spiffe://other.example/a"), "not of trust domain `shop.example`");
        let other = Identity { id: "spiffe://shop.example/other".parse().unwrap(), ..ours.svid(WEB) };
        check(&other, "but the workload is `spiffe://shop.example/other`");
    }

    #[test]
    fn a_peer_of_another_trust_domain_is_refused_before_connecting() {
        let peer = "spiffe://other.example/a".parse().unwrap();
        let refused = client(&Authority::new().svid(WEB), &peer, &[]);
        assert!(matches!(refused, Err(Error::WrongTrustDomain { .. })), "{refused:?}");
    }
}
