//! Certificates good and bad, made apart from `ringmesh ca`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Largest clock difference that certificates allow for.
const BACKDATE: Duration = Duration::from_mins(5);

const LIFETIME: Duration = Duration::from_hours(24);

/// A root that signs leaves.
pub struct Authority {
    trust_domain: String,
    root: CertifiedIssuer<'static, KeyPair>,
}

/// A leaf with its key and the bundle, as PEM.
#[derive(Clone)]
pub struct Svid {
    /// The chain, leaf first.
    pub chain: String,
    /// The key.
    pub key: String,
    /// Whom the holder trusts.
    pub bundle: String,
}

/// When a leaf is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// It was, until a minute ago.
    Expired,
    /// It will be, in an hour.
    Later,
    /// Now, for so long.
    For(Duration),
}

impl Authority {
    /// A root for a trust domain.
    ///
    /// # Panics
    /// If no key can be made.
    pub fn new(trust_domain: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "Test root");
        params.subject_alt_names = vec![uri(&format!("spiffe://{trust_domain}"))];
        let now = SystemTime::now();
        params.not_before = (now - BACKDATE * 2).into();
        params.not_after = (now + LIFETIME * 2).into();
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        Self { trust_domain: trust_domain.to_owned(), root }
    }

    /// The SPIFFE ID of a workload in namespace `default`.
    pub fn id(&self, workload: &str) -> String {
        format!("spiffe://{}/ns/default/sa/{workload}", self.trust_domain)
    }

    /// A good SVID.
    pub fn svid(&self, workload: &str) -> Svid {
        self.leaf(&[&self.id(workload)], Validity::Now)
    }

    /// A good SVID that ends so long from now.
    ///
    /// # Panics
    /// If the workload's name makes no URI.
    pub fn svid_for(&self, workload: &str, life: Duration) -> Svid {
        self.sign(vec![uri(&self.id(workload))], Validity::For(life))
    }

    /// An ordinary certificate for a server with these DNS names.
    ///
    /// # Panics
    /// If a name is none.
    pub fn server(&self, names: &[&str]) -> Svid {
        let name = |name: &&str| SanType::DnsName((*name).try_into().expect("a DNS name"));
        self.sign(names.iter().map(name).collect(), Validity::Now)
    }

    /// A leaf with these URI names.
    ///
    /// # Panics
    /// If a URI is none.
    pub fn leaf(&self, uris: &[&str], validity: Validity) -> Svid {
        if uris.is_empty() {
            return self.sign(vec![SanType::DnsName("workload.example".try_into().expect("a name"))], validity);
        }
        self.sign(uris.iter().map(|text| uri(text)).collect(), validity)
    }

    fn sign(&self, names: Vec<SanType>, validity: Validity) -> Svid {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = SystemTime::now();
        let minute = Duration::from_mins(1);
        let (from, to) = match validity {
            Validity::Now => (now - BACKDATE, now + LIFETIME),
            Validity::Expired => (now - BACKDATE, now - minute),
            Validity::Later => (now + minute * 60, now + LIFETIME),
            Validity::For(life) => (now - BACKDATE, now + life),
        };
        params.not_before = from.into();
        params.not_after = to.into();
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.root).expect("a leaf");
        Svid { chain: leaf.pem(), key: key.serialize_pem(), bundle: self.root.pem() }
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("a URI"))
}

impl Svid {
    /// Writes the three files of an identity; `svid.pem` last, as the proxy reads it first.
    ///
    /// # Panics
    /// If they cannot be written.
    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).expect("the folder is ours");
        for (name, text, mode) in
            [("svid.key", &self.key, 0o600), ("bundle.pem", &self.bundle, 0o644), ("svid.pem", &self.chain, 0o644)]
        {
            let new = folder.join(format!(".{name}.new"));
            fs::write(&new, text).expect("the folder is ours");
            fs::set_permissions(&new, fs::Permissions::from_mode(mode)).expect("the file is ours");
            fs::rename(&new, folder.join(name)).expect("the folder is ours");
        }
    }

    /// The chain as rustls takes it.
    ///
    /// # Panics
    /// If it is none.
    pub fn chain_der(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.chain.as_bytes()).collect::<Result<_, _>>().expect("our own PEM")
    }

    /// The key as rustls takes it.
    ///
    /// # Panics
    /// If it is none.
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).expect("our own PEM")
    }
}
