//! TLS as people ask for it; names as in curl.

use std::path::PathBuf;

use clap::Args;
use ringmesh_loadgen::tls::{Client, Error, Expected, Groups, Identity, Resumption, Server, Trust};

#[derive(Args)]
pub(crate) struct ClientTlsArgs {
    /// Certificates to trust, a PEM file; without it the system's are
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The client's certificate and what it was issued by, a PEM file
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// The client's key, a PEM file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Trust anybody
    #[arg(long, short = 'k', conflicts_with_all = ["cacert", "spiffe_id"])]
    insecure: bool,
    /// The name that is sent as SNI and must be in the certificate, if not the one of the target
    #[arg(long, value_name = "NAME")]
    sni: Option<String>,
    /// The SPIFFE ID that must be in the certificate, instead of the name
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<String>,
    /// A full handshake for every connection
    #[arg(long)]
    no_resumption: bool,
    /// Key exchange groups to offer, the preferred one first, as in `x25519,secp256r1` [default: X25519MLKEM768 and the
    /// usual ones]
    #[arg(long, value_name = "NAMES")]
    groups: Option<Groups>,
}

impl ClientTlsArgs {
    /// Whether any of them is there.
    pub(crate) fn are_given(&self) -> bool {
        let texts = [&self.sni, &self.spiffe_id];
        let files = [&self.cacert, &self.cert, &self.key];
        self.insecure
            || self.no_resumption
            || self.groups.is_some()
            || texts.iter().any(|text| text.is_some())
            || files.iter().any(|file| file.is_some())
    }

    /// TLS with a target of this name.
    pub(crate) fn client(&self, host: &str) -> Result<Client, Error> {
        let trust = match (&self.cacert, self.insecure) {
            (_, true) => Trust::Anyone,
            (Some(path), false) => Trust::Bundle(path.clone()),
            (None, false) => Trust::System,
        };
        let name = self.sni.clone().unwrap_or_else(|| host.trim_matches(['[', ']']).to_owned());
        let expected = match &self.spiffe_id {
            Some(id) => Expected::SpiffeId { id: id.clone(), name },
            None => Expected::Name(name),
        };
        let identity = match (&self.cert, &self.key) {
            (Some(certificate), Some(key)) => Some(Identity::read(certificate, key)?),
            _ => None,
        };
        let groups = self.groups.clone().unwrap_or_default();
        Client::with_groups(&trust, &expected, identity, resumption(self.no_resumption), groups)
    }
}

#[derive(Args)]
pub(crate) struct ServerTlsArgs {
    /// Serve TLS with this certificate and what it was issued by, a PEM file
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, a PEM file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Ask clients for a certificate that one in this PEM file has issued
    #[arg(long, value_name = "FILE", requires = "cert")]
    client_ca: Option<PathBuf>,
    /// Offer no session tickets
    #[arg(long)]
    no_resumption: bool,
}

impl ServerTlsArgs {
    pub(crate) fn server(&self) -> Result<Option<Server>, Error> {
        let (Some(certificate), Some(key)) = (&self.cert, &self.key) else { return Ok(None) };
        let identity = Identity::read(certificate, key)?;
        Server::new(identity, self.client_ca.as_deref(), resumption(self.no_resumption)).map(Some)
    }
}

fn resumption(none: bool) -> Resumption {
    if none { Resumption::Forbid } else { Resumption::Allow }
}
