//! Every file in `configs/` says what the parser and the resolver accept.

use std::path::{Path, PathBuf};

use ringmesh_model::config::{self, Config};
use ringmesh_model::resolve::{Answers, resolve};
use ringmesh_model::snapshot::{Identity, Snapshot};
use ringmesh_model::spiffe::SpiffeId;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

/// The identity that a config asks for, without certificates.
fn identity(config: &Config) -> Option<Identity> {
    let workload = &config.workload;
    workload.identity.as_ref()?;
    let trust_domain = config.mesh.trust_domain.as_ref().expect("an identity has a trust domain");
    let id = SpiffeId::workload(trust_domain, &workload.namespace, &workload.name).expect("a valid ID");
    Some(Identity { id, chain: Vec::new(), key: Vec::new(), bundle: Vec::new(), expires: 0 })
}

fn snapshot(path: &Path) -> Snapshot {
    let config = config::read(path).unwrap_or_else(|problems| panic!("{problems}"));
    resolve(&config, &Answers::new(), identity(&config), 1).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_file_resolves() {
    let files: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    assert!(!files.is_empty());
    for path in files {
        let snapshot = snapshot(&path);
        assert!(snapshot.objects.len() > 1, "{} configures something", path.display());
    }
}
