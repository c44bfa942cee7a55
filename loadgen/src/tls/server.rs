//! The server's side.

use std::path::Path;
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{Connection, RootCertStore, ServerConfig, ServerConnection};

use super::pem::certificates;
use super::{Error, Identity, Resumption, provider};

/// TLS of a server.
#[derive(Clone, Debug)]
pub struct Server {
    config: Arc<ServerConfig>,
}

impl Server {
    /// TLS that shows an identity, and asks clients for one that a certificate in `clients` vouches for, if given.
    ///
    /// # Errors
    /// If files cannot be read, or what they hold cannot be used.
    pub fn new(identity: Identity, clients: Option<&Path>, resumption: Resumption) -> Result<Self, Error> {
        let provider = provider();
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Provider)?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                certificates(path)?.into_iter().try_for_each(|root| roots.add(root)).map_err(Error::Root)?;
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .build()
                    .map_err(|error| Error::ClientTrust(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(identity.chain, identity.key).map_err(Error::Identity)?;
        if resumption == Resumption::Forbid {
            config.send_tls13_tickets = 0;
        }
        Ok(Self { config: Arc::new(config) })
    }

    /// The same with protocols to choose from, the preferred first; none at all takes any.
    pub(crate) fn offering(&self, protocols: &[&[u8]]) -> Self {
        let mut config = ServerConfig::clone(&self.config);
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Self { config: Arc::new(config) }
    }

    pub(crate) fn session(&self) -> Result<Connection, rustls::Error> {
        ServerConnection::new(self.config.clone()).map(Connection::from)
    }
}
