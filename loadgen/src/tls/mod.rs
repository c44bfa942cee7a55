//! TLS 1.3 of both sides: what is shown, who is trusted, and the stream over it.

mod client;
mod groups;
mod pem;
mod server;
mod stream;
mod verify;

use std::path::PathBuf;
use std::sync::Arc;

use rustls::crypto::CryptoProvider;

pub use client::{Client, Expected, Trust};
pub use groups::Groups;
pub use pem::Identity;
pub use server::Server;
pub(crate) use stream::{Handshake, TlsStream};

/// ALPN name of HTTP/1.1.
pub(crate) const HTTP1: &[u8] = b"http/1.1";

/// ALPN name of HTTP/2.
pub(crate) const HTTP2: &[u8] = b"h2";

/// Whether sessions are taken up again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumption {
    /// Where the other side offers it.
    Allow,
    /// Every handshake is a full one.
    Forbid,
}

/// Why there is no TLS to be had from what was given.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read, or is no PEM.
    #[error("cannot read `{}` as PEM: {cause}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        cause: rustls::pki_types::pem::Error,
    },
    /// The file has no certificate.
    #[error("`{}` holds no certificate; give a PEM file with `-----BEGIN CERTIFICATE-----`", path.display())]
    NoCertificate {
        /// Which file.
        path: PathBuf,
    },
    /// A certificate that nobody could be trusted by.
    #[error("a certificate to trust is malformed")]
    Root(#[source] rustls::Error),
    /// Certificate and key do not belong together, or the key is of a kind that TLS 1.3 does not take.
    #[error("certificate and key cannot be used together; see that --key belongs to the first certificate of --cert")]
    Identity(#[source] rustls::Error),
    /// The expected name is none.
    #[error("`{0}` is no name that a certificate could have; write a DNS name, an IP address or spiffe://DOMAIN/PATH")]
    Name(String),
    /// The clients' bundle cannot be used.
    #[error("clients cannot be checked against these certificates: {0}")]
    ClientTrust(String),
    /// The crypto library has no TLS 1.3: never, as this crate is built.
    #[error("the crypto library refuses TLS 1.3")]
    Provider(#[source] rustls::Error),
}

/// With the cipher suites in the order of today's browsers.
fn provider() -> Arc<CryptoProvider> {
    use rustls::crypto::aws_lc_rs::cipher_suite::{
        TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
    };
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..rustls::crypto::aws_lc_rs::default_provider() })
}
