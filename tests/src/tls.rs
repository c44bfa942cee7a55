//! Plain rustls on both sides, which admits every certificate: whom the proxy admits is what is tested.

use std::io::{self, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned, SupportedProtocolVersion,
};

use crate::certificates::Svid;
use crate::client::Client;
use crate::message::{Message, Reader, WithoutLength};
use crate::service::Service;
use crate::wait::DEADLINE;

/// A connection as its client has it.
pub type Stream = StreamOwned<ClientConnection, TcpStream>;

/// What a client shows.
///
/// # Panics
/// If key and certificate do not fit.
pub fn client_config(svid: Option<&Svid>) -> Arc<ClientConfig> {
    client_config_offering(svid, &[])
}

/// A client that speaks one version alone and shows nothing.
///
/// # Panics
/// Never: the provider has both versions.
pub fn client_config_of(version: &'static SupportedProtocolVersion) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[version]);
    let builder = builder.expect("the provider has it").dangerous();
    let config = builder.with_custom_certificate_verifier(Arc::new(Everybody(provider())));
    Arc::new(config.with_no_client_auth())
}

/// What a client shows, and the protocols that it offers by ALPN.
///
/// # Panics
/// If key and certificate do not fit.
pub fn client_config_offering(svid: Option<&Svid>, protocols: &[&[u8]]) -> Arc<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Everybody(provider())));
    let mut config = match svid {
        Some(svid) => builder.with_client_auth_cert(svid.chain_der(), svid.key_der()).expect("key and chain fit"),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = owned(protocols);
    Arc::new(config)
}

/// Connects, and finishes the handshake as far as the client sees it.
///
/// # Errors
/// If the server refuses before the client is done; it may refuse the client's certificate later, at the first read.
pub fn connect(address: SocketAddr, config: &Arc<ClientConfig>) -> io::Result<Client<Stream>> {
    connect_to(address, "ringmesh.invalid", config)
}

/// Like [`connect`], to a server of that name.
///
/// # Errors
/// As [`connect`].
///
/// # Panics
/// If the name is none.
pub fn connect_to(address: SocketAddr, name: &'static str, config: &Arc<ClientConfig>) -> io::Result<Client<Stream>> {
    let stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    stream.set_write_timeout(Some(DEADLINE))?;
    over(stream, name, config)
}

/// Like [`connect_to`], on a connection that is there already.
///
/// # Errors
/// As [`connect`].
///
/// # Panics
/// If the name is none.
pub fn over(stream: TcpStream, name: &'static str, config: &Arc<ClientConfig>) -> io::Result<Client<Stream>> {
    let name = ServerName::try_from(name).expect("a name");
    let connection = ClientConnection::new(config.clone(), name).map_err(io::Error::other)?;
    let mut stream = StreamOwned::new(connection, stream);
    while stream.conn.is_handshaking() {
        stream.conn.complete_io(&mut stream.sock)?;
    }
    Ok(Client::over(stream))
}

/// A service behind TLS: shows this SVID, demands a certificate, and answers each request with what `answer` makes of it.
///
/// # Panics
/// If key and certificate do not fit.
pub fn service<A: AsRef<[u8]>>(svid: &Svid, answer: impl Fn(&Message) -> A + Send + Sync + 'static) -> Service {
    let config = server_config(svid, &[]);
    Service::recording(move |stream, record| {
        let Ok(connection) = ServerConnection::new(config.clone()) else { return };
        let mut reader = Reader::new(StreamOwned::new(connection, stream));
        while let Ok(Some(head)) = reader.head() {
            let Ok(request) = reader.rest_of(head, WithoutLength::Empty) else { return };
            record.request(request.clone());
            if reader.stream.write_all(answer(&request).as_ref()).is_err() {
                return;
            }
        }
    })
}

/// What a server shows, who demands a certificate, and the protocols that it takes by ALPN.
///
/// # Panics
/// If key and certificate do not fit.
pub fn server_config(svid: &Svid, protocols: &[&[u8]]) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_client_cert_verifier(Arc::new(Everybody(provider())))
        .with_single_cert(svid.chain_der(), svid.key_der())
        .expect("key and chain fit");
    config.alpn_protocols = owned(protocols);
    Arc::new(config)
}

fn owned(protocols: &[&[u8]]) -> Vec<Vec<u8>> {
    protocols.iter().map(|protocol| protocol.to_vec()).collect()
}

/// A service behind ordinary TLS, which asks for no certificate and speaks these protocols of ALPN, or none of any.
///
/// # Panics
/// If key and certificate do not fit.
pub fn web_service(
    certificate: &Svid,
    protocols: &[&str],
    answer: impl Fn(&Message) -> String + Send + Sync + 'static,
) -> Service {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has them")
        .with_no_client_auth()
        .with_single_cert(certificate.chain_der(), certificate.key_der())
        .expect("key and chain fit");
    config.alpn_protocols = protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect();
    serving(config, answer)
}

fn serving(config: ServerConfig, answer: impl Fn(&Message) -> String + Send + Sync + 'static) -> Service {
    let config = Arc::new(config);
    Service::sockets(move |stream| {
        let Ok(connection) = ServerConnection::new(config.clone()) else { return };
        let mut reader = Reader::new(StreamOwned::new(connection, stream));
        while let Ok(Some(head)) = reader.head() {
            let Ok(request) = reader.rest_of(head, WithoutLength::Empty) else { return };
            if reader.stream.write_all(answer(&request).as_bytes()).is_err() {
                return;
            }
        }
    })
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

/// Checks that who shows a certificate has its key, and nothing else.
#[derive(Debug)]
struct Everybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Everybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Everybody {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
