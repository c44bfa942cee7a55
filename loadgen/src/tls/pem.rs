//! Certificates and keys from files.

use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::Error;

/// A chain and the key of its first certificate.
#[derive(Debug)]
pub struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// From PEM files; the chain begins with the own certificate.
    ///
    /// # Errors
    /// If a file cannot be read or lacks what it should hold.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let wrong = |cause| Error::File { path: key.to_owned(), cause };
        Ok(Self { chain: certificates(certificate)?, key: PrivateKeyDer::from_pem_file(key).map_err(wrong)? })
    }
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let wrong = |cause| Error::File { path: path.to_owned(), cause };
    let certificates: Vec<_> =
        CertificateDer::pem_file_iter(path).map_err(wrong)?.collect::<Result<_, _>>().map_err(wrong)?;
    if certificates.is_empty() {
        return Err(Error::NoCertificate { path: path.to_owned() });
    }
    Ok(certificates)
}
