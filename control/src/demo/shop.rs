//! The shop as it is laid out: which services, which ports, and the config file of each sidecar.

use std::fmt::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use ringmesh_loadgen::Driver;
use ringmesh_model::spiffe::SpiffeId;

use super::ports::{self, Ports};

/// Trust domain of the shop.
pub(super) const TRUST_DOMAIN: &str = "shop.example";

/// Namespace of its workloads.
const NAMESPACE: &str = "default";

/// Weights of the two versions of `payments`, as the file says at the start.
pub(super) const SPLIT: [(&str, u32); 2] = [("v1", 90), ("v2", 10)];

/// How long a sidecar may take to finish open requests.
pub(super) const DRAIN_SECONDS: u64 = 5;

/// The call that `checkout` may make and nobody else.
pub(super) const CHARGE: (&str, &str) = ("POST", "/charge");

/// A service of the shop and the sidecar beside it.
#[derive(Clone, Debug)]
pub(super) struct Member {
    /// Unique: `web`, `checkout`, `payments-v1`, `payments-v2`.
    pub(super) name: &'static str,
    /// Whose identity it has: both versions of `payments` have the same.
    pub(super) workload: &'static str,
    pub(super) version: &'static str,
    pub(super) ports: MemberPorts,
}

/// Where the parts of a member listen, all on loopback.
#[derive(Clone, Debug)]
pub(super) struct MemberPorts {
    /// The service itself.
    pub(super) service: SocketAddr,
    /// Its sidecar for callers: mutual TLS.
    pub(super) inbound: SocketAddr,
    /// Its sidecar for its own calls: plain, from loopback.
    pub(super) outbound: SocketAddr,
    /// Its sidecar's admin pages.
    pub(super) admin: SocketAddr,
}

/// A way through the mesh that requests take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// Member that calls.
    pub(super) from: &'static str,
    /// Member that is called.
    pub(super) to: &'static str,
    /// What the caller's config calls it.
    pub(super) service: &'static str,
}

/// Every hop between sidecars. The last one is there to be refused by the policy of `payments`.
pub(super) const HOPS: [Hop; 4] = [
    Hop { from: "web", to: "checkout", service: "checkout" },
    Hop { from: "checkout", to: "payments-v1", service: "payments" },
    Hop { from: "checkout", to: "payments-v2", service: "payments-v2" },
    Hop { from: "web", to: "payments-v1", service: "payments" },
];

/// The whole shop.
#[derive(Clone, Debug)]
pub(super) struct Shop {
    pub(super) directory: PathBuf,
    /// I/O driver of all parts.
    pub(super) driver: Driver,
    /// Where customers come in: plain, on web's sidecar.
    pub(super) front_door: SocketAddr,
    pub(super) members: Vec<Member>,
}

impl Shop {
    /// Lays the shop out on free ports.
    pub(super) fn new(directory: &Path, driver: Driver) -> Result<Self, ports::Error> {
        let mut free = Ports::find(MEMBERS.len() * 4 + 1)?;
        let mut port = || free.take();
        let front_door = port();
        let members = MEMBERS
            .iter()
            .map(|(name, workload, version)| Member {
                name,
                workload,
                version,
                ports: MemberPorts { service: port(), inbound: port(), outbound: port(), admin: port() },
            })
            .collect();
        Ok(Self { directory: directory.to_owned(), driver, front_door, members })
    }

    /// One member. All names come from [`MEMBERS`].
    pub(super) fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name == name).expect("it is one of the shop's members")
    }

    /// Where a member's config file lies.
    pub(super) fn config_file(&self, member: &Member) -> PathBuf {
        self.directory.join(format!("{}.toml", member.name))
    }

    /// Where a workload's SVID lies.
    pub(super) fn identity(&self, workload: &str) -> PathBuf {
        self.directory.join("identity").join(workload)
    }

    /// The config file of a member's sidecar.
    pub(super) fn config(&self, member: &Member) -> String {
        let mut text = format!(
            "# The sidecar of `{name}` (version {version}), made by `ringmesh demo`. Edit it while the demo runs: a change takes\n\
             # effect in about a second, and a mistake changes nothing.\n\n\
             [mesh]\ntrust_domain = \"{TRUST_DOMAIN}\"\n\n\
             [workload]\nname = \"{workload}\"\nidentity = {{ files = \"{identity}\" }}\n\n\
             [runtime]\ndriver = \"{driver}\"\ndrain_timeout = \"{DRAIN_SECONDS}s\"\n\n\
             [admin]\nbind = \"{admin}\"\n\n",
            name = member.workload,
            version = member.version,
            workload = member.workload,
            identity = self.identity(member.workload).display(),
            driver = self.driver.name(),
            admin = member.ports.admin,
        );
        if member.name == "web" {
            section(
                &mut text,
                "The front door: customers come without certificates. It is an edge, not a hop of the mesh.",
            );
            listener(&mut text, "front-door", self.front_door, "service = \"local\"");
        }
        section(&mut text, "Callers come in here: mutual TLS, or no connection.");
        listener(&mut text, "inbound", member.ports.inbound, "mtls = \"strict\"\nservice = \"local\"");
        section(&mut text, "The service itself.");
        service(&mut text, "local", None, member.ports.service);
        let hops: Vec<_> = HOPS.iter().filter(|hop| hop.from == member.name).collect();
        if !hops.is_empty() {
            section(&mut text, "The service's own calls go out here, plain from loopback, and leave as mutual TLS.");
            listener(&mut text, "outbound", member.ports.outbound, "");
        }
        for hop in hops {
            let to = self.member(hop.to);
            service(&mut text, hop.service, Some(to.workload), to.ports.inbound);
        }
        text.push_str(match member.name {
            "web" => WEB_ROUTES,
            "checkout" => CHECKOUT_ROUTES,
            _ => PAYMENTS_POLICY,
        });
        text
    }
}

/// Name, identity and version of each member.
const MEMBERS: [(&str, &str, &str); 4] = [
    ("web", "web", "v1"),
    ("checkout", "checkout", "v1"),
    ("payments-v1", "payments", "v1"),
    ("payments-v2", "payments", "v2"),
];

const WEB_ROUTES: &str = r#"[[route]]
hosts = ["checkout"]
to = [{ service = "checkout" }]

# web has a way to payments, but no right: the policy of payments refuses it with 403.
[[route]]
hosts = ["payments"]
to = [{ service = "payments" }]
"#;

const CHECKOUT_ROUTES: &str = r#"# The split between the two versions. Try other weights while the demo runs.
[[route]]
hosts = ["payments"]
to = [{ service = "payments", weight = 90 }, { service = "payments-v2", weight = 10 }]
"#;

const PAYMENTS_POLICY: &str = r#"# Only checkout may charge; everything else is refused with 403.
[[policy]]
name = "only-checkout"
listener = "inbound"
allow = [{ from = ["checkout"], methods = ["POST"], paths = ["/charge"] }]
"#;

/// The SPIFFE ID of a workload of the shop.
pub(super) fn spiffe_id(workload: &str) -> SpiffeId {
    SpiffeId::workload(TRUST_DOMAIN, NAMESPACE, workload).expect("the shop's names are valid")
}

fn section(text: &mut String, comment: &str) {
    writeln!(text, "# {comment}").expect(STRING);
}

fn listener(text: &mut String, name: &str, bind: SocketAddr, rest: &str) {
    let newline = if rest.is_empty() { "" } else { "\n" };
    write!(text, "[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nprotocol = \"http\"\n{rest}{newline}\n")
        .expect(STRING);
}

fn service(text: &mut String, name: &str, peer: Option<&str>, endpoint: SocketAddr) {
    let peer = peer.map(|peer| format!("peer = \"{peer}\"\n")).unwrap_or_default();
    write!(text, "[[service]]\nname = \"{name}\"\n{peer}endpoints = [\"{endpoint}\"]\n\n").expect(STRING);
}

/// Why writing to text does not fail.
const STRING: &str = "a String takes whatever is written to it";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_generated_config_is_one_that_ringmesh_reads() {
        let shop = Shop::new(Path::new("/tmp/shop"), Driver::Auto).unwrap();
        for member in &shop.members {
            let text = shop.config(member);
            if let Err(problems) = ringmesh_model::config::parse(&text, member.name) {
                panic!("{problems}\n{text}");
            }
        }
    }

    #[test]
    fn the_split_in_the_file_is_the_one_that_is_announced() {
        for (version, weight) in SPLIT {
            let service = if version == "v1" { "payments" } else { "payments-v2" };
            assert!(CHECKOUT_ROUTES.contains(&format!("{{ service = \"{service}\", weight = {weight} }}")));
        }
    }
}
