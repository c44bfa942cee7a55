//! The client's side.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption as Sessions;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, Connection, RootCertStore};

use super::pem::certificates;
use super::verify::Verifier;
use super::{Error, Groups, Identity, Resumption, provider};

/// Where Debian and its relatives keep the certificates that everybody trusts.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Who is believed to be the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Whoever a certificate in this PEM file vouches for.
    Bundle(PathBuf),
    /// Whoever the system's bundle vouches for.
    System,
    /// Anybody: for benches, where who answers is no question.
    Anyone,
}

/// What the server's certificate must say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    /// A DNS name or an IP address; the name also goes out as SNI.
    Name(String),
    /// A SPIFFE ID, whatever the names beside it. The name, if any, goes out as SNI.
    SpiffeId {
        /// The whole ID, `spiffe://…`.
        id: String,
        /// What goes out as SNI.
        name: String,
    },
}

/// TLS of a load. Cloning shares the sessions to be taken up again.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

/// Sessions kept, each with a few tickets: far more than a load has targets.
const MAX_SESSIONS: usize = 4096;

impl Client {
    /// TLS that trusts, expects and shows what is given.
    ///
    /// # Errors
    /// If files cannot be read, or what they hold cannot be used.
    pub fn new(
        trust: &Trust,
        expected: &Expected,
        identity: Option<Identity>,
        resumption: Resumption,
    ) -> Result<Self, Error> {
        Self::with_groups(trust, expected, identity, resumption, Groups::default())
    }

    /// The same, offering these key exchange groups alone.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_groups(
        trust: &Trust,
        expected: &Expected,
        identity: Option<Identity>,
        resumption: Resumption,
        groups: Groups,
    ) -> Result<Self, Error> {
        let provider = Arc::new(CryptoProvider { kx_groups: groups.0, ..CryptoProvider::clone(&provider()) });
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Provider)?;
        let builder = match (trust, expected) {
            (Trust::Anyone, _) => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Verifier::anyone(&provider)))
            }
            (trust, Expected::Name(_)) => builder.with_root_certificates(roots(trust)?),
            (trust, Expected::SpiffeId { id, .. }) => {
                let verifier = Verifier::workload(id, roots(trust)?, &provider);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
            }
        };
        let mut config = match identity {
            Some(identity) => builder.with_client_auth_cert(identity.chain, identity.key).map_err(Error::Identity)?,
            None => builder.with_no_client_auth(),
        };
        config.resumption = match resumption {
            Resumption::Allow => Sessions::in_memory_sessions(MAX_SESSIONS),
            Resumption::Forbid => Sessions::disabled(),
        };
        let (Expected::Name(name) | Expected::SpiffeId { name, .. }) = expected;
        let name = ServerName::try_from(name.clone()).map_err(|_| Error::Name(name.clone()))?;
        Ok(Self { config: Arc::new(config), name })
    }

    /// The same with other protocols offered; none at all offers no ALPN.
    pub(crate) fn offering(&self, protocols: &[&[u8]]) -> Self {
        let mut config = ClientConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { config: Arc::new(config), name: self.name.clone() }
    }

    pub(crate) fn session(&self) -> Result<Connection, rustls::Error> {
        ClientConnection::new(self.config.clone(), self.name.clone()).map(Connection::from)
    }
}

fn roots(trust: &Trust) -> Result<RootCertStore, Error> {
    let path = match trust {
        Trust::Bundle(path) => path.as_path(),
        Trust::System | Trust::Anyone => Path::new(SYSTEM_BUNDLE),
    };
    let mut roots = RootCertStore::empty();
    let found = certificates(path)?;
    if *trust == Trust::System {
        // One that is odd takes nothing from the others.
        roots.add_parsable_certificates(found);
        return Ok(roots);
    }
    found.into_iter().try_for_each(|certificate| roots.add(certificate)).map_err(Error::Root)?;
    Ok(roots)
}
