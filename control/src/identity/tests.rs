//! What is issued can be read, here and by OpenSSL; what cannot be used is refused with its cause.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};
use ringmesh_model::listener::CertificateFiles;
use ringmesh_model::spiffe::SpiffeId;
use tempfile::TempDir;

use super::ca::{self, Authority};
use super::files::{self, BUNDLE_FILE, CHAIN_FILE, KEY_FILE};
use super::{Certificate, Date};

const HOUR: Duration = Duration::from_hours(1);

fn checkout() -> SpiffeId {
    SpiffeId::workload("shop.example", "default", "checkout").unwrap()
}

/// A directory with an authority in `ca` and checkout's identity in `svid`.
struct Fixture(TempDir);

impl Fixture {
    fn new() -> Self {
        let fixture = Self(tempfile::tempdir().unwrap());
        ca::init(&fixture.ca(), "shop.example").unwrap();
        ca::issue(&fixture.ca(), &fixture.svid(), &checkout(), HOUR).unwrap();
        fixture
    }

    fn ca(&self) -> std::path::PathBuf {
        self.0.path().join("ca")
    }

    fn svid(&self) -> std::path::PathBuf {
        self.0.path().join("svid")
    }

    fn mode(&self, file: &str) -> u32 {
        fs::metadata(self.0.path().join(file)).unwrap().permissions().mode() & 0o777
    }

    /// An error as shown, with the fixture's place as DIR.
    fn shown(&self, error: &impl ToString) -> String {
        error.to_string().replace(self.0.path().to_str().unwrap(), "DIR")
    }
}

/// Spoils an identity and expects that reading says so.
#[track_caller]
fn check(spoil: impl FnOnce(&Path), expected: &str) {
    let fixture = Fixture::new();
    spoil(&fixture.svid());
    let error = files::read(&fixture.svid()).expect_err("a spoiled identity is refused");
    assert_eq!(fixture.shown(&error), expected);
}

/// Issues an identity with a changed leaf and expects that reading says so.
#[track_caller]
fn check_leaf(change: impl FnOnce(&mut CertificateParams), expected: &str) {
    let fixture = Fixture::new();
    let mut params = ca::leaf_params(&checkout(), HOUR).unwrap();
    change(&mut params);
    Authority::open(&fixture.ca()).unwrap().write(&fixture.svid(), &params).unwrap();
    let error = files::read(&fixture.svid()).expect_err("a wrong leaf is refused");
    assert_eq!(fixture.shown(&error), expected);
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// Issues another identity of the same workload by another authority into `out`.
fn issue_elsewhere(trust_domain: &str, out: &Path) {
    let directory = tempfile::tempdir().unwrap();
    let id = SpiffeId::workload(trust_domain, "default", "checkout").unwrap();
    ca::init(&directory.path().join("ca"), trust_domain).unwrap();
    ca::issue(&directory.path().join("ca"), out, &id, HOUR).unwrap();
}

#[test]
fn what_is_issued_can_be_read() {
    let fixture = Fixture::new();
    let identity = files::read(&fixture.svid()).unwrap();
    assert_eq!(identity.id, checkout());
    assert_eq!(identity.chain.len(), 2, "leaf and intermediate");
    assert_eq!(identity.bundle.len(), 1);
    let left = i64::try_from(identity.expires).unwrap() - Date::now().0;
    assert!((3_500..=3_600).contains(&left), "{left} s are left of an hour");

    let leaf = Certificate::parse(&identity.chain[0]).unwrap();
    assert_eq!(leaf.uris, ["spiffe://shop.example/ns/default/sa/checkout"]);
    let age = Date::now().0 - leaf.not_before.0;
    assert!((300..400).contains(&age), "backdated by five minutes, not {age} s");
}

#[test]
fn keys_are_for_their_owner_only() {
    let fixture = Fixture::new();
    let modes = |names: &[&str]| names.iter().map(|name| fixture.mode(name)).collect::<Vec<_>>();
    assert_eq!(modes(&["ca", "ca/offline", "svid"]), [0o700; 3]);
    assert_eq!(modes(&["ca/offline/root.key", "ca/intermediate.key", "svid/svid.key"]), [0o600; 3]);
}

#[test]
fn an_authority_in_a_directory_that_was_open_to_others_closes_it() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    ca::init(directory.path(), "shop.example").unwrap();
    assert_eq!(fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn an_identity_belongs_to_the_owner_of_its_directory() {
    let fixture = Fixture::new();
    // Only root can give a directory away; for everybody else both owners are the same anyway.
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(fixture.svid(), Some(65_534), Some(65_534)).unwrap();
    }
    ca::issue(&fixture.ca(), &fixture.svid(), &checkout(), HOUR).unwrap();
    let owner = |path: &Path| fs::metadata(path).map(|metadata| (metadata.uid(), metadata.gid())).unwrap();
    for name in [CHAIN_FILE, KEY_FILE, BUNDLE_FILE] {
        assert_eq!(owner(&fixture.svid().join(name)), owner(&fixture.svid()), "{name}");
    }
}

#[test]
fn openssl_accepts_what_is_issued() {
    let fixture = Fixture::new();
    for purpose in ["sslserver", "sslclient"] {
        let verify = Command::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", purpose])
            .args(["-CAfile".as_ref(), fixture.svid().join(BUNDLE_FILE).as_os_str()])
            .args(["-untrusted".as_ref(), fixture.svid().join(CHAIN_FILE).as_os_str()])
            .arg(fixture.svid().join(CHAIN_FILE))
            .output()
            .expect("this test needs openssl; run: apt-get install -y openssl");
        let said = String::from_utf8_lossy(&verify.stderr);
        assert!(verify.status.success(), "openssl verify -purpose {purpose}: {said}");
    }
}

#[test]
fn an_authority_is_never_overwritten() {
    let fixture = Fixture::new();
    let before = fs::read(fixture.ca().join("root.pem")).unwrap();
    let error = ca::init(&fixture.ca(), "shop.example").unwrap_err();
    let expected = "DIR/ca is not empty; nothing was changed. Name a new directory, or move this one away";
    assert_eq!(fixture.shown(&error), expected);
    assert_eq!(fs::read(fixture.ca().join("root.pem")).unwrap(), before);
}

#[test]
fn issuing_needs_no_root_key_and_renewing_does() {
    let fixture = Fixture::new();
    fs::rename(fixture.ca().join("offline"), fixture.0.path().join("away")).unwrap();
    ca::issue(&fixture.ca(), &fixture.svid(), &checkout(), HOUR).unwrap();
    let error = ca::renew(&fixture.ca()).unwrap_err();
    let expected = "DIR/ca/offline/root.key is missing; bring the root's key back from where it is kept";
    assert_eq!(fixture.shown(&error), expected);
}

#[test]
fn svids_of_the_old_and_the_new_intermediate_are_both_good() {
    let fixture = Fixture::new();
    let intermediate = || fs::read(fixture.ca().join("intermediate.pem")).unwrap();
    let before = intermediate();
    ca::renew(&fixture.ca()).unwrap();
    assert_ne!(intermediate(), before);
    files::read(&fixture.svid()).unwrap();
    ca::issue(&fixture.ca(), &fixture.svid(), &checkout(), HOUR).unwrap();
    files::read(&fixture.svid()).unwrap();
}

#[test]
fn an_authority_says_why_it_does_not_issue() {
    let fixture = Fixture::new();
    let check = |id: &SpiffeId, ttl: Duration, expected: &str| {
        let error = ca::issue(&fixture.ca(), &fixture.svid(), id, ttl).unwrap_err();
        let shown = fixture.shown(&error);
        assert!(shown.starts_with(expected), "{shown}");
    };
    let foreign = SpiffeId::workload("bank.example", "default", "checkout").unwrap();
    check(
        &foreign,
        HOUR,
        "spiffe://bank.example/ns/default/sa/checkout is not in this authority's trust domain `shop.example`",
    );
    check(&checkout(), Duration::from_hours(366 * 24), "the intermediate ends at ");
    check(&checkout(), Duration::MAX, "the intermediate ends at ");
    check(&checkout(), Duration::from_millis(1), "a time to live of less than a second");

    fs::remove_file(fixture.ca().join("intermediate.pem")).unwrap();
    check(
        &checkout(),
        HOUR,
        "DIR/ca holds no authority (intermediate.pem is missing there); run: ringmesh ca init DIR/ca",
    );
    fs::copy(fixture.svid().join(CHAIN_FILE), fixture.ca().join("intermediate.pem")).unwrap();
    check(&checkout(), HOUR, "the key in DIR/ca/intermediate.key does not belong to the certificate in ");
    fs::copy(fixture.svid().join(KEY_FILE), fixture.ca().join("intermediate.key")).unwrap();
    check(&checkout(), HOUR, "DIR/ca/intermediate.pem is no authority's certificate: CA and one URI name, ");
    assert!(ca::init(&fixture.0.path().join("new"), "Shop").unwrap_err().to_string().contains("lower-case"));
}

#[test]
fn a_reader_sees_the_old_identity_or_the_new_one_while_it_is_replaced() {
    let fixture = Fixture::new();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let authority = Authority::open(&fixture.ca()).unwrap();
            for _ in 0..100 {
                authority.issue(&fixture.svid(), &checkout(), HOUR).unwrap();
            }
            done.store(true, Ordering::Relaxed);
        });
        while !done.load(Ordering::Relaxed) {
            files::read(&fixture.svid()).unwrap();
        }
    });
}

#[test]
fn what_a_killed_issuer_left_is_cleared() {
    let fixture = Fixture::new();
    fs::write(fixture.svid().join(".svid.key.new"), "half a k").unwrap();
    ca::issue(&fixture.ca(), &fixture.svid(), &checkout(), HOUR).unwrap();
    files::read(&fixture.svid()).unwrap();
    assert!(!fixture.svid().join(".svid.key.new").exists());
}

#[test]
fn a_missing_file_is_named_with_the_command_that_writes_it() {
    for name in [CHAIN_FILE, KEY_FILE, BUNDLE_FILE] {
        let expected = format!("DIR/svid/{name} is missing; `ringmesh ca issue --ca CA --out DIR/svid NAME` writes it");
        check(|svid| fs::remove_file(svid.join(name)).unwrap(), &expected);
    }
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let expose =
        |mode| move |svid: &Path| fs::set_permissions(svid.join(KEY_FILE), PermissionsExt::from_mode(mode)).unwrap();
    check(expose(0o644), "DIR/svid/svid.key can be read by others (mode 0644); run: chmod 600 DIR/svid/svid.key");
    check(expose(0o640), "DIR/svid/svid.key can be read by others (mode 0640); run: chmod 600 DIR/svid/svid.key");
}

#[test]
fn files_that_are_not_what_their_names_say_are_refused() {
    let put =
        |name: &'static str, content: &'static str| move |svid: &Path| fs::write(svid.join(name), content).unwrap();
    let no_certificate = "holds no certificate; a section `-----BEGIN CERTIFICATE-----` is expected";
    check(put(CHAIN_FILE, ""), &format!("DIR/svid/svid.pem {no_certificate}"));
    check(put(BUNDLE_FILE, "hello"), &format!("DIR/svid/bundle.pem {no_certificate}"));
    check(
        put(KEY_FILE, "hello"),
        "DIR/svid/svid.key holds no private key; a section `-----BEGIN PRIVATE KEY-----` (PKCS#8, not encrypted) is expected",
    );
    check(
        put(KEY_FILE, "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"),
        "the key in DIR/svid/svid.key is not PKCS#8; convert it: openssl pkcs8 -topk8 -nodes -in DIR/svid/svid.key -out NEW",
    );
    check(
        put(KEY_FILE, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        "the key in DIR/svid/svid.key is broken or of a kind that is not used; use P-256, P-384, Ed25519, or RSA of 2048 \
         bits or more",
    );
    check(
        put(CHAIN_FILE, "-----BEGIN CERTIFICATE-----\nAAAA\n"),
        "DIR/svid/svid.pem is not valid PEM: a section lacks its BEGIN or END line, or holds something else than base64",
    );
    let directory = |svid: &Path| {
        fs::remove_file(svid.join(BUNDLE_FILE)).unwrap();
        fs::create_dir(svid.join(BUNDLE_FILE)).unwrap();
    };
    check(directory, "cannot read DIR/svid/bundle.pem: Is a directory (os error 21)");
    let large = |svid: &Path| fs::write(svid.join(CHAIN_FILE), vec![b'a'; 2 << 20]).unwrap();
    check(large, "DIR/svid/svid.pem is larger than 1048576 bytes, so it cannot be what it should be");
    let many = |svid: &Path| {
        let one = fs::read_to_string(svid.join(BUNDLE_FILE)).unwrap();
        fs::write(svid.join(BUNDLE_FILE), one.repeat(257)).unwrap();
    };
    check(many, "DIR/svid/bundle.pem holds more than 256 certificates");
    let garbage = |svid: &Path| {
        let chain = fs::read_to_string(svid.join(CHAIN_FILE)).unwrap();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        fs::write(svid.join(CHAIN_FILE), chain + broken).unwrap();
    };
    check(
        garbage,
        "certificate 3 of DIR/svid/svid.pem cannot be read: BER error: Unexpected Tag (expected: Some(Tag(16)), actual: Tag(0))",
    );
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let swap = |name: &'static str, trust_domain: &'static str| {
        move |svid: &Path| {
            issue_elsewhere(trust_domain, &svid.join("elsewhere"));
            fs::copy(svid.join("elsewhere").join(name), svid.join(name)).unwrap();
        }
    };
    check(
        swap(KEY_FILE, "shop.example"),
        "the key in DIR/svid/svid.key does not belong to the certificate in DIR/svid/svid.pem; issue or copy both again",
    );
    for trust_domain in ["shop.example", "bank.example"] {
        check(
            swap(BUNDLE_FILE, trust_domain),
            "no certificate in DIR/svid/bundle.pem signed the chain in DIR/svid/svid.pem (last issuer: CN=Ringmesh root, \
             O=shop.example); both must come from one authority",
        );
    }
    let no_intermediate = |svid: &Path| {
        let chain = fs::read_to_string(svid.join(CHAIN_FILE)).unwrap();
        let end = chain.find("-----END CERTIFICATE-----\n").unwrap() + "-----END CERTIFICATE-----\n".len();
        fs::write(svid.join(CHAIN_FILE), &chain[..end]).unwrap();
    };
    check(
        no_intermediate,
        "no certificate in DIR/svid/bundle.pem signed the chain in DIR/svid/svid.pem (last issuer: CN=Ringmesh \
         intermediate, O=shop.example); both must come from one authority",
    );
}

#[test]
fn an_identity_has_exactly_one_spiffe_id() {
    let one = "spiffe://shop.example/ns/default/sa/checkout";
    check_leaf(
        |leaf| leaf.subject_alt_names = vec![SanType::DnsName("checkout".try_into().unwrap())],
        "the certificate in DIR/svid/svid.pem has no URI name; an SVID has exactly one, spiffe://TRUST-DOMAIN/PATH",
    );
    check_leaf(
        |leaf| leaf.subject_alt_names = vec![uri(one), uri("spiffe://shop.example/ns/default/sa/web")],
        "the certificate in DIR/svid/svid.pem has 2 URI names (spiffe://shop.example/ns/default/sa/checkout, \
         spiffe://shop.example/ns/default/sa/web); an SVID has exactly one",
    );
    check_leaf(
        |leaf| leaf.subject_alt_names = vec![uri("https://shop.example/checkout")],
        "the URI name `https://shop.example/checkout` in DIR/svid/svid.pem is no SPIFFE ID: a SPIFFE ID begins with \
         `spiffe://`",
    );
}

#[test]
fn a_leaf_that_is_not_good_for_both_ends_is_refused() {
    let lacks = |what: &str| {
        format!(
            "the certificate in DIR/svid/svid.pem lacks {what}; an SVID needs digitalSignature, serverAuth and clientAuth"
        )
    };
    let authority = "the first certificate in DIR/svid/svid.pem may sign others; the workload's own comes first, intermediates after it";
    check_leaf(|leaf| leaf.key_usages = vec![KeyUsagePurpose::KeyAgreement], &lacks("digitalSignature"));
    check_leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], &lacks("clientAuth"));
    check_leaf(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth], &lacks("serverAuth"));
    check_leaf(|leaf| leaf.key_usages.push(KeyUsagePurpose::KeyCertSign), authority);
    check_leaf(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), authority);
}

#[test]
fn a_listeners_own_authority_is_refused_with_what_makes_a_server_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key) = (folder.path().join("a.pem"), folder.path().join("a.key"));
    let make = |words: &[&str]| {
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=shop.example"]);
        openssl.arg("-keyout").arg(&key).arg("-out").arg(&certificate).args(words);
        let output = openssl.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let files = CertificateFiles { certificate: certificate.clone(), key: key.clone() };
    make(&[]);
    let error = files::read_certificate(&files).expect_err("it may sign others").to_string();
    let helps = "-addext basicConstraints=critical,CA:FALSE";
    assert!(error.contains("may sign others") && error.contains(helps), "{error}");
    make(&helps.split(' ').collect::<Vec<_>>());
    assert!(files::read_certificate(&files).expect("a server's").1.is_none());
}

#[test]
fn a_certificate_outside_its_time_is_refused() {
    check_leaf(
        |leaf| leaf.not_after = rcgen::date_time_ymd(2024, 2, 29),
        "certificate 1 of DIR/svid/svid.pem expired at 2024-02-29T00:00:00Z; issue a new one",
    );
    let fixture = Fixture::new();
    let mut leaf = ca::leaf_params(&checkout(), HOUR).unwrap();
    leaf.not_before = rcgen::date_time_ymd(2030, 1, 1);
    leaf.not_after = rcgen::date_time_ymd(2060, 1, 1);
    Authority::open(&fixture.ca()).unwrap().write(&fixture.svid(), &leaf).unwrap();
    let at = |date| fixture.shown(&files::read_at(&fixture.svid(), date).unwrap_err());
    assert_eq!(
        at(Date(1_890_000_000 - 1)),
        "certificate 1 of DIR/svid/svid.pem is not valid before 2030-01-01T00:00:00Z; is this machine's clock right? It \
         says 2029-11-21T23:59:59Z"
    );
    let expired = at(Date(2_800_000_000));
    assert!(
        expired.starts_with("certificate 2 of DIR/svid/svid.pem expired at "),
        "the intermediate counts too: {expired}"
    );
}
