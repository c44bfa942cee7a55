//! `[workload]`: whom this proxy stands for.

use std::path::{Path, PathBuf};

use crate::error::{Cause, Located};
use crate::reader::{Keys, Section};
use crate::spiffe::{self, SpiffeId};

/// Keys of `[workload]`.
pub const KEYS: Keys =
    Keys { path: "workload", header: "[workload]", names: &["name", "namespace", "id", "instance", "identity"] };

/// Keys of `[workload] identity`.
pub const IDENTITY_KEYS: Keys =
    Keys { path: "workload.identity", header: "`identity` of [workload]", names: &["files"] };

/// The name of a workload that has none. It names no identity: with one, `name` must be given.
pub const DEFAULT_NAME: &str = "proxy";

/// The namespace of workloads that name none, as in Kubernetes.
pub const DEFAULT_NAMESPACE: &str = "default";

/// File of the certificate chain in the identity's folder, leaf first.
pub const CHAIN_FILE: &str = "svid.pem";
/// File of the private key (PKCS#8) in the identity's folder.
pub const KEY_FILE: &str = "svid.key";
/// File of the root certificates of the trust domain in the identity's folder.
pub const BUNDLE_FILE: &str = "bundle.pem";

/// `[workload]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name; the service account in its SPIFFE ID.
    pub name: String,
    /// Its namespace, and that of all short names.
    pub namespace: String,
    /// Its SPIFFE ID where that is not `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/NAME`.
    pub id: Option<Located<SpiffeId>>,
    /// Tells apart proxies of one workload on one host. None: derived from the config file's path.
    pub instance: Option<String>,
    /// Where its SVID comes from. None: it has no identity and takes no part in mutual TLS.
    pub identity: Option<Located<IdentitySource>>,
}

/// Where the SVID comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdentitySource {
    /// A folder with `svid.pem`, `svid.key` and `bundle.pem`. A relative one is relative to the config file's folder.
    Files(PathBuf),
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            name: DEFAULT_NAME.to_owned(),
            namespace: DEFAULT_NAMESPACE.to_owned(),
            id: None,
            instance: None,
            identity: None,
        }
    }
}

impl Workload {
    pub(crate) fn read(section: &Section<'_>, folder: &Path) -> Self {
        let identity = section.field("identity").and_then(|field| {
            let table = field.section(&IDENTITY_KEYS, "a table such as { files = \"/etc/ringmesh/shop\" }")?;
            let files: PathBuf = table.required("files", "files = \"/etc/ringmesh/shop\"")?;
            Some(Located { value: IdentitySource::Files(folder.join(files)), place: field.place() })
        });
        let id = section.optional::<Located<SpiffeId>>("id");
        if identity.is_some() && id.is_none() && section.field("name").is_none() {
            section.miss("name", "name = \"checkout\"");
        }
        Self {
            name: segment(section, "name", DEFAULT_NAME),
            namespace: segment(section, "namespace", DEFAULT_NAMESPACE),
            id,
            instance: section.field("instance").map(|_| segment(section, "instance", "")),
            identity,
        }
    }
}

/// Reads a name that is a path segment of a SPIFFE ID, and of a folder's name.
fn segment(section: &Section<'_>, key: &'static str, default: &str) -> String {
    let Some(field) = section.field(key) else { return default.to_owned() };
    let Some(text) = field.expect_text("a name") else { return default.to_owned() };
    if !spiffe::is_segment(text) {
        let expected = "letters, digits, `.`, `-` and `_`";
        field.refuse(Cause::WrongText { expected, found: text.to_owned() });
    }
    text.to_owned()
}
