//! What most tests begin with.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use ringmesh_tests::certificates::{Authority, Svid};
use ringmesh_tests::{Builder, Driver, Proxy, ports};

/// The program under test.
pub(crate) const RINGMESH: &str = env!("CARGO_BIN_EXE_ringmesh");

/// A proxy to be started.
pub(crate) fn ringmesh(driver: Driver) -> Builder {
    Builder::new(RINGMESH, driver)
}

/// A listener `front` that sends everything to service `app` at these addresses. Further keys of either may be given, each
/// with its end of line.
pub(crate) fn forwarding(front: SocketAddr, app: &[SocketAddr], listener_keys: &str, service_keys: &str) -> String {
    format!(
        "[[listener]]\nname = \"front\"\nbind = \"{front}\"\nservice = \"app\"\n{listener_keys}\n\
         [[service]]\nname = \"app\"\nendpoints = [{}]\n{service_keys}\n",
        quoted(app)
    )
}

/// Addresses as a TOML array holds them.
fn quoted(addresses: &[SocketAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("\"{address}\"")).collect();
    quoted.join(", ")
}

/// Bytes whose every part looks different.
pub(crate) fn pattern(bytes: usize) -> Vec<u8> {
    (0..251_u8).cycle().take(bytes).collect()
}

/// A proxy whose port `front` leads to these addresses, and that port.
#[track_caller]
pub(crate) fn proxy_to(driver: Driver, app: &[SocketAddr]) -> (Proxy, SocketAddr) {
    let front = ports::free();
    (ringmesh(driver).config(forwarding(front, app, "", "")).start(), front)
}

/// A proxy with an identity of its own, whose strict port `inbound` leads to a service.
pub(crate) struct Strict {
    /// The proxy.
    pub(crate) proxy: Proxy,
    /// Its strict port.
    pub(crate) inbound: SocketAddr,
}

/// A workload whose port `inbound` admits only peers with an SVID. Further lines may be given.
#[track_caller]
pub(crate) fn strict(
    driver: Driver,
    authority: &Authority,
    workload: &str,
    app: SocketAddr,
    listener_keys: &str,
    more: &str,
) -> Strict {
    let inbound = ports::free();
    let config = format!(
        "{}[[listener]]\nname = \"inbound\"\nbind = \"{inbound}\"\nmtls = \"strict\"\nservice = \"app\"\n{listener_keys}\n\
         [[service]]\nname = \"app\"\nendpoints = [\"{app}\"]\n{more}",
        identity(workload)
    );
    let mut proxy = ringmesh(driver).config(config).prepare();
    authority.svid(workload).write(&proxy.folder().join("svid"));
    proxy.run();
    Strict { proxy, inbound }
}

/// A workload whose plain port `outbound` leads to service `there` at these addresses, who must prove to be `peer`.
#[track_caller]
pub(crate) fn caller(
    driver: Driver,
    svid: &Svid,
    workload: &str,
    peer: &str,
    there: &[SocketAddr],
    service_keys: &str,
) -> (Proxy, SocketAddr) {
    let outbound = ports::free();
    let config = format!(
        "{}[[listener]]\nname = \"outbound\"\nbind = \"{outbound}\"\nservice = \"there\"\n\
         [[service]]\nname = \"there\"\npeer = \"{peer}\"\nendpoints = [{}]\n{service_keys}",
        identity(workload),
        quoted(there)
    );
    let mut proxy = ringmesh(driver).config(config).prepare();
    svid.write(&proxy.folder().join("svid"));
    proxy.run();
    (proxy, outbound)
}

/// The sections that name a workload of `mesh.test` with an identity in `svid`.
pub(crate) fn identity(workload: &str) -> String {
    format!(
        "[mesh]\ntrust_domain = \"{DOMAIN}\"\n[workload]\nname = \"{workload}\"\nidentity = {{ files = \"svid\" }}\n"
    )
}

/// The trust domain of the tests.
pub(crate) const DOMAIN: &str = "mesh.test";

/// A copy of the program of its own: pages shared with proxies of tests beside this one would look cheaper than they are.
pub(crate) struct Program {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Program {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ringmesh");
        // By a process of its own: a file that is open for writing here, and so in whatever another test starts meanwhile,
        // cannot be run ("text file busy").
        assert!(std::process::Command::new("cp").arg(RINGMESH).arg(&path).status().unwrap().success());
        Self { _folder: folder, path }
    }

    /// Other users may run it too.
    pub(crate) fn for_everybody(self) -> Self {
        let folder = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(self._folder.path(), folder).unwrap();
        self
    }

    pub(crate) fn builder(&self, driver: Driver) -> Builder {
        Builder::new(self.path.to_str().unwrap(), driver)
    }
}
