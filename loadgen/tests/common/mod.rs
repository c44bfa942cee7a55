//! Servers, loads and certificates for the tests over real sockets.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use ringmesh_loadgen::Grant;
use ringmesh_loadgen::load::{self, Entry};
use ringmesh_loadgen::report::Report;
use ringmesh_loadgen::serve::{self, Service};
use ringmesh_loadgen::tls::{Client, Expected, Identity, Resumption, Server, Trust};
use ringmesh_ring::setup::probe_all;

/// Far beyond what any of these tests takes.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The SPIFFE ID in the server's certificate, beside the name `localhost`.
pub(crate) const SERVER_ID: &str = "spiffe://shop.example/ns/default/sa/web";

pub(crate) fn any_port() -> SocketAddr {
    "127.0.0.1:0".parse().unwrap()
}

pub(crate) fn serve(grant: &Grant, service: Service) -> serve::Running {
    serve::start_on(grant, serve::Settings::new(any_port(), service)).unwrap()
}

pub(crate) fn serve_tls(grant: &Grant, service: Service, tls: Server) -> serve::Running {
    let settings = serve::Settings { tls: Some(tls), ..serve::Settings::new(any_port(), service) };
    serve::start_on(grant, settings).unwrap()
}

pub(crate) fn http(address: SocketAddr, entries: Vec<Entry>, requests: u64) -> load::Settings {
    load::Settings {
        duration: None,
        requests: Some(requests),
        connections: 4,
        timeout: Duration::from_secs(20),
        ..load::Settings::http(address.into(), entries)
    }
}

pub(crate) fn run(grant: &Grant, settings: load::Settings) -> Report {
    let started = Instant::now();
    let running = load::start_on(grant, settings).unwrap();
    while !running.is_finished() {
        assert!(started.elapsed() < LIMIT, "the load does not end: {}", running.progress());
        thread::sleep(Duration::from_millis(5));
    }
    running.wait().unwrap()
}

pub(crate) fn on_every_driver(check: impl Fn(&Grant)) {
    let grants = probe_all();
    assert!(!grants.is_empty(), "this machine grants no driver at all");
    grants.iter().for_each(check);
}

/// A certificate authority with the certificates of one server and one client, in files.
pub(crate) struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let own = Self { folder };
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        own.write("ca.pem", &issuer.pem());
        for (name, usage, id) in [
            ("server", ExtendedKeyUsagePurpose::ServerAuth, SERVER_ID),
            ("client", ExtendedKeyUsagePurpose::ClientAuth, "spiffe://shop.example/ns/default/sa/load"),
        ] {
            let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names.push(SanType::URI(id.try_into().unwrap()));
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().unwrap();
            own.write(&format!("{name}.pem"), &params.signed_by(&key, &issuer).unwrap().pem());
            own.write(&format!("{name}.key"), &key.serialize_pem());
        }
        own
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn identity(&self, name: &str) -> Identity {
        Identity::read(&self.path(&format!("{name}.pem")), &self.path(&format!("{name}.key"))).unwrap()
    }

    pub(crate) fn server(&self) -> Server {
        Server::new(self.identity("server"), None, Resumption::Allow).unwrap()
    }

    /// A server that wants to know its clients.
    pub(crate) fn strict_server(&self) -> Server {
        Server::new(self.identity("server"), Some(&self.path("ca.pem")), Resumption::Allow).unwrap()
    }

    pub(crate) fn trust(&self) -> Trust {
        Trust::Bundle(self.path("ca.pem"))
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(&self.trust(), &Expected::Name("localhost".into()), None, Resumption::Allow).unwrap()
    }

    pub(crate) fn client_with_identity(&self) -> Client {
        let identity = Some(self.identity("client"));
        Client::new(&self.trust(), &Expected::Name("localhost".into()), identity, Resumption::Allow).unwrap()
    }
}
