//! A small certificate authority in a directory: a root, an intermediate that issues, and SVIDs for workloads.
//!
//! | file | what | who needs it |
//! | --- | --- | --- |
//! | `root.pem` | root certificates; becomes the bundle of every identity issued | issuing |
//! | `intermediate.pem`, `intermediate.key` | what issues | issuing |
//! | `offline/root.key` | signs intermediates | [`init`] and [`renew`] only; may be kept elsewhere meanwhile |
//!
//! The trust domain stands in the certificates themselves: an authority carries it as its URI name, without a path
//! (X.509-SVID section 3.2).

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use ringmesh_model::spiffe::{self, SpiffeId};

use super::certificate::Kind;
use super::{Certificate, Date, files};

/// Trust domain of an authority that is not told another.
pub const DEFAULT_TRUST_DOMAIN: &str = "mesh.local";

/// How long an SVID lives unless told otherwise. A stolen key is worth no more than this.
pub const DEFAULT_TTL: Duration = Duration::from_hours(24);

/// How long a root lives. It sits in every bundle, so replacing it touches every workload.
pub const ROOT_LIFETIME: Duration = Duration::from_hours(10 * 365 * 24);

/// How long an intermediate lives. Replacing it touches the authority alone.
pub const INTERMEDIATE_LIFETIME: Duration = Duration::from_hours(365 * 24);

const _: () = assert!(INTERMEDIATE_LIFETIME.as_secs() < ROOT_LIFETIME.as_secs());

/// How far certificates begin in the past, for peers whose clocks are behind.
pub const BACKDATE: Duration = Duration::from_mins(5);

/// Longest common name and organization (RFC 5280 appendix A.1).
const MAX_NAME_BYTES: usize = 64;

const ROOT: &str = "root.pem";
const ROOT_KEY: &str = "root.key";
const OFFLINE: &str = "offline";
const INTERMEDIATE: &str = "intermediate.pem";
const INTERMEDIATE_KEY: &str = "intermediate.key";

/// Why the authority did not do what it was asked. Side: who asks.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory for a new authority is in use.
    #[error("{} is not empty; nothing was changed. Name a new directory, or move this one away", directory.display())]
    NotEmpty {
        /// The directory.
        directory: PathBuf,
    },
    /// There is no authority in the directory.
    #[error("{} holds no authority ({} is missing there); run: ringmesh ca init {}", directory.display(), missing, directory.display())]
    NoAuthority {
        /// The directory.
        directory: PathBuf,
        /// The file that is not there.
        missing: &'static str,
    },
    /// The root's key is not there.
    #[error("{} is missing; bring the root's key back from where it is kept", file.display())]
    NoRootKey {
        /// Where it should be.
        file: PathBuf,
    },
    /// The trust domain's name is not allowed.
    #[error(transparent)]
    TrustDomain(spiffe::Error),
    /// A file of the authority cannot be used.
    #[error(transparent)]
    Files(#[from] super::Error),
    /// The certificate that should sign is none of an authority with one trust domain.
    #[error("{} is no authority's certificate: CA and one URI name, spiffe://TRUST-DOMAIN, are expected", file.display())]
    NotAnAuthority {
        /// The file.
        file: PathBuf,
    },
    /// The intermediate's time is over.
    #[error("the intermediate expired at {since}; run: ringmesh ca renew {}", directory.display())]
    IntermediateExpired {
        /// The authority's directory.
        directory: PathBuf,
        /// The end of its validity.
        since: Date,
    },
    /// The SVID would live longer than the intermediate.
    #[error(
        "the intermediate ends at {end}, before the new SVID would; run: ringmesh ca renew {}, or ask for a shorter --ttl",
        directory.display()
    )]
    Outlives {
        /// The authority's directory.
        directory: PathBuf,
        /// The end of the intermediate's validity.
        end: Date,
    },
    /// The SVID would not live at all.
    #[error("a time to live of less than a second makes no certificate; the default is 24h")]
    NoLife,
    /// The workload belongs to another trust domain.
    #[error("{id} is not in this authority's trust domain `{trust_domain}`")]
    ForeignId {
        /// The ID asked for.
        id: SpiffeId,
        /// The authority's own.
        trust_domain: String,
    },
    /// A file cannot be written.
    #[error("cannot write {}: {cause}", file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// The crypto library failed.
    #[error("cannot make a key or certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

/// Makes a root and an intermediate for `trust_domain` in `directory`, which must be empty or missing.
///
/// # Errors
/// If the directory is in use, cannot be written, or the name is not allowed.
pub fn init(directory: &Path, trust_domain: &str) -> Result<(), Error> {
    spiffe::check_trust_domain(trust_domain).map_err(Error::TrustDomain)?;
    let unwritable = |cause| Error::Write { file: directory.to_owned(), cause };
    files::create_private_directory(directory).map_err(unwritable)?;
    if fs::read_dir(directory).map_err(unwritable)?.next().is_some() {
        return Err(Error::NotEmpty { directory: directory.to_owned() });
    }
    fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(unwritable)?;

    let root_key = KeyPair::generate()?;
    let root = authority_params(trust_domain, "Ringmesh root", ROOT_LIFETIME, 1)?;
    let root_pem = root.self_signed(&root_key)?.pem();
    let (pem, key) = intermediate(trust_domain, &Issuer::new(root, &root_key))?;

    let offline = directory.join(OFFLINE);
    files::create_private_directory(&offline).map_err(unwritable)?;
    write_new(&offline.join(ROOT_KEY), &root_key.serialize_pem(), 0o600)?;
    write_new(&directory.join(ROOT), &root_pem, 0o644)?;
    write_new(&directory.join(INTERMEDIATE_KEY), &key, 0o600)?;
    write_new(&directory.join(INTERMEDIATE), &pem, 0o644)
}

/// Replaces the intermediate of the authority in `directory`. SVIDs that the old one issued go on.
///
/// # Errors
/// If there is no authority, the root's key is elsewhere, or a file cannot be written.
pub fn renew(directory: &Path) -> Result<(), Error> {
    let key_file = directory.join(OFFLINE).join(ROOT_KEY);
    if !key_file.exists() {
        return Err(Error::NoRootKey { file: key_file });
    }
    let root = Signer::open(directory, ROOT, &key_file)?;
    let (pem, key) = intermediate(&root.trust_domain, &root.issuer)?;
    let files = [(INTERMEDIATE_KEY, key.as_str(), 0o600), (INTERMEDIATE, pem.as_str(), 0o644)];
    files::replace(directory, &files).map_err(|(file, cause)| Error::Write { file, cause })
}

/// Issues an SVID for `id` by the authority in `directory` and writes the identity into `out`: see [`files`].
///
/// # Errors
/// Those of [`Authority::open`] and [`Authority::issue`].
pub fn issue(directory: &Path, out: &Path, id: &SpiffeId, ttl: Duration) -> Result<Issued, Error> {
    Authority::open(directory)?.issue(out, id, ttl)
}

/// What was issued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// To whom.
    pub id: SpiffeId,
    /// Until when.
    pub expires: Date,
}

/// An authority that is ready to issue.
pub struct Authority {
    directory: PathBuf,
    signer: Signer,
    intermediate_pem: String,
    root_pem: String,
}

impl Authority {
    /// Opens the authority in `directory`. The root's key is not needed.
    ///
    /// # Errors
    /// If a file is missing or cannot be used, or the intermediate has expired.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let signer = Signer::open(directory, INTERMEDIATE, &directory.join(INTERMEDIATE_KEY))?;
        if signer.certificate.not_after < Date::now() {
            let since = signer.certificate.not_after;
            return Err(Error::IntermediateExpired { directory: directory.to_owned(), since });
        }
        Ok(Self {
            intermediate_pem: read_pem(directory, INTERMEDIATE)?,
            root_pem: read_pem(directory, ROOT)?,
            directory: directory.to_owned(),
            signer,
        })
    }

    /// The trust domain it speaks for.
    pub fn trust_domain(&self) -> &str {
        &self.signer.trust_domain
    }

    /// Issues an SVID for `id` that lives for `ttl` from now, and writes the identity into `out`.
    ///
    /// # Errors
    /// If the ID is of another trust domain, the SVID would outlive the intermediate, or `out` cannot be written.
    pub fn issue(&self, out: &Path, id: &SpiffeId, ttl: Duration) -> Result<Issued, Error> {
        if id.trust_domain() != self.trust_domain() {
            return Err(Error::ForeignId { id: id.clone(), trust_domain: self.trust_domain().to_owned() });
        }
        if ttl < Duration::from_secs(1) {
            return Err(Error::NoLife);
        }
        let end = self.signer.certificate.not_after;
        let left = Duration::from_secs(u64::try_from(end.0.saturating_sub(Date::now().0)).unwrap_or(0));
        if left < ttl {
            return Err(Error::Outlives { directory: self.directory.clone(), end });
        }

        let leaf = leaf_params(id, ttl)?;
        self.write(out, &leaf)?;
        Ok(Issued { id: id.clone(), expires: Date(leaf.not_after.unix_timestamp()) })
    }

    /// Signs a leaf for a new key and writes the identity into `out`.
    pub(super) fn write(&self, out: &Path, leaf: &CertificateParams) -> Result<(), Error> {
        let key = KeyPair::generate()?;
        let chain = leaf.signed_by(&key, &self.signer.issuer)?.pem() + &self.intermediate_pem;
        let pems = files::Pems { chain: &chain, key: &key.serialize_pem(), bundle: &self.root_pem };
        files::write(out, &pems).map_err(|(file, cause)| Error::Write { file, cause })
    }
}

/// An authority's certificate with its key.
struct Signer {
    trust_domain: String,
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Signer {
    fn open(directory: &Path, name: &'static str, key_file: &Path) -> Result<Self, Error> {
        let file = directory.join(name);
        // What cannot be looked at may be there.
        if fs::metadata(&file).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Err(Error::NoAuthority { directory: directory.to_owned(), missing: name });
        }
        let chain = files::read_certificates(&file)?;
        let key = files::read_key(key_file)?;
        files::check_pair(key_file, &key, &file, &chain)?;
        let certificate = files::parse_all(&file, &chain)?.swap_remove(0);
        let trust_domain = match certificate.uris.as_slice() {
            [uri] if certificate.kind == Kind::Authority => uri.strip_prefix("spiffe://").map(str::to_owned),
            _ => None,
        };
        let Some(trust_domain) = trust_domain.filter(|name| spiffe::check_trust_domain(name).is_ok()) else {
            return Err(Error::NotAnAuthority { file });
        };
        let issuer = Issuer::from_ca_cert_der(&chain[0], KeyPair::try_from(&key)?)?;
        Ok(Self { trust_domain, certificate, issuer })
    }
}

/// A new intermediate, certificate and key, both PEM.
fn intermediate(trust_domain: &str, root: &Issuer<'_, impl rcgen::SigningKey>) -> Result<(String, String), Error> {
    let key = KeyPair::generate()?;
    let params = authority_params(trust_domain, "Ringmesh intermediate", INTERMEDIATE_LIFETIME, 0)?;
    Ok((params.signed_by(&key, root)?.pem(), key.serialize_pem()))
}

/// What root and intermediate have in common. `below` is how many authorities may stand between it and a leaf.
fn authority_params(trust_domain: &str, name: &str, life: Duration, below: u8) -> Result<CertificateParams, Error> {
    let mut params = lasting(life);
    params.distinguished_name.push(DnType::CommonName, name);
    if trust_domain.len() <= MAX_NAME_BYTES {
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    }
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// An SVID (X.509-SVID sections 2 and 4). Its subject is empty: the name that counts is the URI, which is critical then
/// (RFC 5280 section 4.2.1.6).
pub(super) fn leaf_params(id: &SpiffeId, ttl: Duration) -> Result<CertificateParams, Error> {
    let mut params = lasting(ttl);
    params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    Ok(params)
}

/// Parameters of a certificate that lives for `life` from now, and names nobody yet.
fn lasting(life: Duration) -> CertificateParams {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let mut params = CertificateParams::default();
    params.not_before = epoch + now.saturating_sub(BACKDATE);
    params.not_after = epoch + (now + life);
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params
}

fn write_new(file: &Path, content: &str, mode: u32) -> Result<(), Error> {
    files::write_new(file, content, mode).map_err(|cause| Error::Write { file: file.to_owned(), cause })
}

fn read_pem(directory: &Path, name: &'static str) -> Result<String, Error> {
    fs::read_to_string(directory.join(name)).map_err(|cause| match cause.kind() {
        io::ErrorKind::NotFound => Error::NoAuthority { directory: directory.to_owned(), missing: name },
        _ => Error::Files(super::Error::Read { file: directory.join(name), cause }),
    })
}
