//! An identity in three files of one directory: `svid.pem` (leaf, then intermediates), `svid.key` (PKCS#8, for its owner
//! only) and `bundle.pem` (the roots of the own trust domain).
//!
//! Three files cannot be replaced in one step. [`write`] renames finished files into place, `svid.pem` last, and [`read`]
//! begins with it and reads again, after a moment, when the parts do not belong together: so a reader sees the old
//! identity or the new one, never half of each. Other issuers need do no more than to rename too.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use ringmesh_model::listener::CertificateFiles;
use ringmesh_model::snapshot::{self, Identity};
use ringmesh_model::spiffe::SpiffeId;
use rustix::process::geteuid;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::CertifiedKey;

use super::certificate::Kind;
use super::{Certificate, Date, Error};

/// File name of the certificate chain.
pub const CHAIN_FILE: &str = "svid.pem";

/// File name of the private key.
pub const KEY_FILE: &str = "svid.key";

/// File name of the trust bundle.
pub const BUNDLE_FILE: &str = "bundle.pem";

/// Largest file, in bytes. A federated bundle of a hundred roots is some 200 KiB; beyond this it is a wrong file.
pub const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most certificates in one file. webpki gives up on deep chains anyway; a bundle has a handful of roots.
pub const MAX_CERTIFICATES: usize = 256;

/// How often parts that do not belong together are read, in all.
const READ_ATTEMPTS: u32 = 6;

/// The moment between two attempts. An issuer needs microseconds from rename to rename.
const READ_PAUSE: Duration = Duration::from_millis(20);

/// Reads and checks the identity in `directory`. Whether it is the configured workload's is for `ringmesh_model::resolve` to
/// say, which knows the line of the config. Blocks for some 100 ms if it is being replaced just now.
///
/// # Errors
/// If a file is missing, cannot be read or is not what its name says, if others can read the key, if the parts do not
/// belong together, if a certificate has expired or is not valid yet, or if it names nobody or several.
pub fn read(directory: &Path) -> Result<Identity, Error> {
    until_whole(|| read_at(directory, Date::now()))
}

/// Reads, and again after a moment as long as the parts do not belong together.
fn until_whole<T>(read: impl Fn() -> Result<T, Error>) -> Result<T, Error> {
    for _ in 1..READ_ATTEMPTS {
        match read() {
            Err(error) if error.may_be_half_written() => thread::sleep(READ_PAUSE),
            done => return done,
        }
    }
    read()
}

/// One attempt, at time `now`.
pub(super) fn read_at(directory: &Path, now: Date) -> Result<Identity, Error> {
    let chain_file = directory.join(CHAIN_FILE);
    let chain = read_certificates(&chain_file)?;
    let key = read_key(&directory.join(KEY_FILE))?;
    let bundle = read_certificates(&directory.join(BUNDLE_FILE))?;

    check_pair(&directory.join(KEY_FILE), &key, &chain_file, &chain)?;
    let certificates = parse_all(&chain_file, &chain)?;
    let leaf = &certificates[0];
    let id = spiffe_id(&chain_file, leaf)?;
    check_usage(&chain_file, leaf)?;
    check_dates(&chain_file, &certificates, now)?;
    check_chain(&directory.join(BUNDLE_FILE), &bundle, &chain_file, &chain, now)?;

    Ok(Identity {
        id,
        chain: der(&chain),
        key: key.secret_pkcs8_der().to_vec(),
        bundle: der(&bundle),
        expires: expires(leaf),
    })
}

/// Reads and checks the certificate that a listener shows, and its key. What its clients trust is not known here, so the
/// chain is taken as it is. That it has ended is given back beside it: some clients look, and listeners show others too.
///
/// # Errors
/// As [`read`], but for what only an SVID must be.
pub fn read_certificate(files: &CertificateFiles) -> Result<(snapshot::Certificate, Option<Error>), Error> {
    until_whole(|| read_certificate_at(files, Date::now()))
}

fn read_certificate_at(files: &CertificateFiles, now: Date) -> Result<(snapshot::Certificate, Option<Error>), Error> {
    let CertificateFiles { certificate: file, key: key_file } = files;
    let there = |error| match error {
        Error::Missing { file } => Error::NotThere { file },
        error => error,
    };
    let chain = read_certificates(file).map_err(there)?;
    let key = read_key(key_file).map_err(there)?;
    check_pair(key_file, &key, file, &chain)?;
    let certificates = parse_all(file, &chain)?;
    let leaf = &certificates[0];
    if leaf.kind == Kind::Authority {
        return Err(match *chain {
            [_] => Error::ServerAuthority { file: file.clone() },
            _ => Error::Authority { file: file.clone() },
        });
    }
    if !leaf.usage.server {
        return Err(Error::NotForServers { file: file.clone() });
    }
    let ended = match check_dates(file, &certificates, now) {
        Err(ended @ Error::Expired { .. }) => Some(ended),
        other => other.map(|()| None)?,
    };
    let certificate = snapshot::Certificate {
        names: leaf.names.clone(),
        chain: der(&chain),
        key: key.secret_pkcs8_der().to_vec(),
        expires: expires(leaf),
    };
    Ok((certificate, ended))
}

fn der(certificates: &[CertificateDer<'_>]) -> Vec<Vec<u8>> {
    certificates.iter().map(|one| one.to_vec()).collect()
}

/// When a certificate whose dates have been checked ends, in seconds since the Unix epoch.
fn expires(certificate: &Certificate) -> u64 {
    u64::try_from(certificate.not_after.0).expect("a certificate that ends before 1970 has expired")
}

/// What the certificates of a PEM file say; at least one.
///
/// # Errors
/// If the file is missing, cannot be read, or holds something else.
pub fn certificates(file: &Path) -> Result<Vec<Certificate>, Error> {
    parse_all(file, &read_certificates(file)?)
}

/// The certificates of a PEM file; at least one.
pub(super) fn read_certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let (content, _) = read_file(file)?;
    let mut certificates = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(&content) {
        if certificates.len() == MAX_CERTIFICATES {
            return Err(Error::TooManyCertificates { file: file.to_owned() });
        }
        certificates.push(certificate.map_err(|cause| Error::Pem { file: file.to_owned(), cause })?);
    }
    if certificates.is_empty() {
        return Err(Error::NoCertificate { file: file.to_owned() });
    }
    Ok(certificates)
}

/// The private key of a PEM file that only its owner can read.
pub(super) fn read_key(file: &Path) -> Result<PrivatePkcs8KeyDer<'static>, Error> {
    let (content, mode) = read_file(file)?;
    if mode & 0o077 != 0 {
        return Err(Error::KeyExposed { file: file.to_owned(), mode });
    }
    match PrivateKeyDer::from_pem_slice(&content) {
        Ok(PrivateKeyDer::Pkcs8(key)) => Ok(key),
        Ok(_) => Err(Error::KeyForm { file: file.to_owned() }),
        Err(pem::Error::NoItemsFound) => Err(Error::NoKey { file: file.to_owned() }),
        Err(cause) => Err(Error::Pem { file: file.to_owned(), cause }),
    }
}

/// Content and permission bits of a file, both of the same open file.
fn read_file(file: &Path) -> Result<(Vec<u8>, u32), Error> {
    let failed = |cause: io::Error| match cause.kind() {
        io::ErrorKind::NotFound => Error::Missing { file: file.to_owned() },
        _ => Error::Read { file: file.to_owned(), cause },
    };
    let open = File::open(file).map_err(failed)?;
    let mode = open.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    let mut content = Vec::new();
    open.take(MAX_FILE_BYTES + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::TooLarge { file: file.to_owned() });
    }
    Ok((content, mode))
}

/// Parses all certificates of `file`.
pub(super) fn parse_all(file: &Path, certificates: &[CertificateDer<'_>]) -> Result<Vec<Certificate>, Error> {
    let parse = |(index, der): (usize, &CertificateDer<'_>)| {
        let broken = |cause| Error::Certificate { file: file.to_owned(), position: index + 1, cause };
        Certificate::parse(der).map_err(broken)
    };
    certificates.iter().enumerate().map(parse).collect()
}

/// Whether `key` is that of the first certificate.
pub(super) fn check_pair(
    key_file: &Path,
    key: &PrivatePkcs8KeyDer<'static>,
    chain_file: &Path,
    chain: &[CertificateDer<'static>],
) -> Result<(), Error> {
    let unusable = |cause| Error::KeyUnusable { file: key_file.to_owned(), cause };
    let key = aws_lc_rs::sign::any_supported_type(&key.clone_key().into()).map_err(unusable)?;
    match CertifiedKey::new(chain.to_vec(), key).keys_match() {
        Ok(()) => Ok(()),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(Error::KeyMismatch { key: key_file.to_owned(), certificate: chain_file.to_owned() })
        }
        Err(cause) => Err(unusable(cause)),
    }
}

/// The one SPIFFE ID of a leaf (X.509-SVID section 2).
fn spiffe_id(file: &Path, leaf: &Certificate) -> Result<SpiffeId, Error> {
    match leaf.uris.as_slice() {
        [] => Err(Error::NoUri { file: file.to_owned() }),
        [uri] => uri.parse().map_err(|cause| Error::NotSpiffe { file: file.to_owned(), uri: uri.clone(), cause }),
        uris => Err(Error::SeveralUris { file: file.to_owned(), uris: uris.to_vec() }),
    }
}

/// Whether a leaf is one, and good for both ends of a connection (X.509-SVID sections 4.1 to 4.4).
fn check_usage(file: &Path, leaf: &Certificate) -> Result<(), Error> {
    if leaf.kind == Kind::Authority || leaf.usage.sign_certificates {
        return Err(Error::Authority { file: file.to_owned() });
    }
    let needed = [
        (leaf.usage.digital_signature, "digitalSignature"),
        (leaf.usage.server, "serverAuth"),
        (leaf.usage.client, "clientAuth"),
    ];
    match needed.into_iter().find(|(present, _)| !present) {
        Some((_, missing)) => Err(Error::Usage { file: file.to_owned(), missing }),
        None => Ok(()),
    }
}

/// Whether every certificate of the chain is in its time.
fn check_dates(file: &Path, certificates: &[Certificate], now: Date) -> Result<(), Error> {
    for (position, certificate) in (1..).zip(certificates) {
        if certificate.not_after < now {
            return Err(Error::Expired { file: file.to_owned(), position, since: certificate.not_after });
        }
        if now < certificate.not_before {
            let until = certificate.not_before;
            return Err(Error::NotYetValid { file: file.to_owned(), position, until, now });
        }
    }
    Ok(())
}

/// Whether the chain ends in the bundle, as any peer will check it.
fn check_chain(
    bundle_file: &Path,
    bundle: &[CertificateDer<'_>],
    chain_file: &Path,
    chain: &[CertificateDer<'_>],
    now: Date,
) -> Result<(), Error> {
    let invalid = |cause| Error::Chain { chain: chain_file.to_owned(), cause };
    let anchors = bundle
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|cause| Error::Chain { chain: bundle_file.to_owned(), cause })?;
    let leaf = webpki::EndEntityCert::try_from(&chain[0]).map_err(invalid)?;
    let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms.all;
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now.0).unwrap_or(0)));
    for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
        match leaf.verify_for_usage(algorithms, &anchors, &chain[1..], now, usage, None, None) {
            Ok(_) => {}
            // An authority of the same name with another key fails on the signature, and means the same to the reader.
            Err(webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey) => {
                let last = chain.last().expect("a chain has at least one certificate");
                let issuer = Certificate::parse(last).map(|last| last.issuer).unwrap_or_default();
                let (bundle, chain) = (bundle_file.to_owned(), chain_file.to_owned());
                return Err(Error::UnknownIssuer { bundle, chain, issuer });
            }
            Err(cause) => return Err(invalid(cause)),
        }
    }
    Ok(())
}

/// What [`write`] writes; all PEM.
pub(super) struct Pems<'a> {
    /// Leaf, then intermediates.
    pub(super) chain: &'a str,
    /// PKCS#8 key.
    pub(super) key: &'a str,
    /// Roots.
    pub(super) bundle: &'a str,
}

/// Writes an identity into `directory` (made if missing, for its owner only) such that readers see the old one or this
/// one.
pub(super) fn write(directory: &Path, pems: &Pems<'_>) -> Result<(), (PathBuf, io::Error)> {
    create_private_directory(directory).map_err(|error| (directory.to_owned(), error))?;
    // `svid.pem` comes last: who sees the new one finds key and bundle in place.
    let files = [(KEY_FILE, pems.key, 0o600), (BUNDLE_FILE, pems.bundle, 0o644), (CHAIN_FILE, pems.chain, 0o644)];
    replace(directory, &files)
}

/// Replaces files (name, content, mode) of `directory`: writes all of them beside the old ones, then renames them in the
/// order given. Two writers wait for each other. When root writes, the files belong to whom the directory belongs, so that
/// root can issue for a proxy that runs as another user.
pub(super) fn replace(directory: &Path, files: &[(&str, &str, u32)]) -> Result<(), (PathBuf, io::Error)> {
    let at = |file: &Path| {
        let file = file.to_owned();
        move |error| (file, error)
    };
    let lock = File::open(directory).map_err(at(directory))?;
    lock.lock().map_err(at(directory))?;
    let owner = lock.metadata().map_err(at(directory))?;
    for (name, content, mode) in files {
        let new = directory.join(new_name(name));
        // Left over from a writer that was killed: the lock says that nobody is writing it now.
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err((new, error)),
            _ => write_new(&new, content, *mode).map_err(at(&new))?,
        }
        if geteuid().is_root() {
            chown(&new, Some(owner.uid()), Some(owner.gid())).map_err(at(&new))?;
        }
    }
    for (name, ..) in files {
        let file = directory.join(name);
        fs::rename(directory.join(new_name(name)), &file).map_err(at(&file))?;
    }
    lock.sync_all().map_err(at(directory))
}

/// The name under which a file is written before it takes its place.
fn new_name(name: &str) -> String {
    format!(".{name}.new")
}

/// Makes a directory, with its parents, that only its owner can enter; leaves one that exists as it is.
pub(super) fn create_private_directory(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a file that must not exist yet, down to the disk.
pub(super) fn write_new(file: &Path, content: &str, mode: u32) -> io::Result<()> {
    let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(file)?;
    open.write_all(content.as_bytes())?;
    open.sync_all()
}
