//! The listening sockets. Control owns them, so that they outlive any data plane: clients of one that died wait in the
//! backlog for the next.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use ringmesh_model::snapshot::{Address, Listener, Name, Object, Permissions, Snapshot};
use ringmesh_ring::socket::{self, Access, BindError, Families};
use rustix::net::sockopt::ipv6_v6only;
use socket2::{Domain, Protocol, Socket, Type};

use super::accounts;

/// Clients that may wait to be accepted, as `ring` has it.
const BACKLOG: i32 = 4096;

/// Why a listener of the config cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("listener `{name}`: {source}")]
pub struct Error {
    /// The listener.
    pub name: Name,
    /// Why.
    pub source: Cause,
}

/// Why a listener cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// There is no socket to be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Who may connect to a Unix socket is said by names.
    #[error(transparent)]
    Accounts(#[from] accounts::Error),
}

/// Where sockets are bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) address: Address,
    families: Families,
}

/// One bound address.
struct Bound {
    /// The listener that it was bound for; only a port that the kernel chose is looked for by it.
    name: Name,
    at: At,
    /// What was last asked for; None: an earlier control knew.
    permissions: Option<Permissions>,
    /// The file that is ours, by device and number: somebody else may have put another in its place.
    file: Option<(u64, u64)>,
    sockets: Vec<Arc<OwnedFd>>,
}

impl Bound {
    fn new(name: Name, at: At, permissions: Option<Permissions>, sockets: Vec<OwnedFd>) -> Self {
        let file = file_of(&at.address).and_then(identity);
        Self { name, at, permissions, file, sockets: sockets.into_iter().map(Arc::new).collect() }
    }

    fn fits(&self, listener: &Listener) -> bool {
        let same = match (&self.at.address, &listener.bind) {
            (Address::Ip(ours), Address::Ip(wanted)) if wanted.port() == 0 => {
                self.name == listener.name && ours.ip() == wanted.ip()
            }
            (ours, wanted) => ours == wanted,
        };
        same && self.at.families == families(listener)
    }
}

/// Which clients a listener's address stands for.
fn families(listener: &Listener) -> Families {
    match listener.bind {
        Address::Ip(SocketAddr::V6(address)) if address.ip().is_unspecified() && !listener.ipv6_only => Families::Both,
        _ => Families::Own,
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Listeners(Vec<Bound>);

impl Listeners {
    /// Binds what `snapshot` names and is not bound yet, with a socket for each worker. If one fails, none is bound that was
    /// not before.
    /// Sockets that `ours` (the data plane) has of the same port are not in the way.
    pub(super) fn bind(&mut self, snapshot: &Snapshot, workers: u16, ours: Option<u32>) -> Result<(), Vec<Error>> {
        let mut new = Vec::new();
        let mut errors = Vec::new();
        for listener in listeners(snapshot).filter(|listener| self.find(listener).is_none()) {
            match self.bind_one(listener, workers, ours) {
                Ok(bound) => new.push(bound),
                Err(source) => errors.push(Error { name: listener.name.clone(), source }),
            }
        }
        if errors.is_empty() {
            errors = self.permit(snapshot);
        }
        if errors.is_empty() {
            self.0.append(&mut new);
            return Ok(());
        }
        new.iter().for_each(remove_file);
        Err(errors)
    }

    /// Gives sockets that stay the permissions that are new to them.
    fn permit(&mut self, snapshot: &Snapshot) -> Vec<Error> {
        let mut errors = Vec::new();
        for listener in listeners(snapshot).filter(|listener| listener.permissions != Permissions::default()) {
            let Some(bound) = self.0.iter_mut().find(|bound| bound.fits(listener)) else { continue };
            let Some(path) = file_of(&bound.at.address) else { continue };
            if bound.permissions.as_ref() == Some(&listener.permissions) || identity(path) != bound.file {
                continue;
            }
            let set = access(&listener.permissions).and_then(|access| Ok(access.set(path)?));
            match set {
                Ok(()) => bound.permissions = Some(listener.permissions.clone()),
                Err(source) => errors.push(Error { name: listener.name.clone(), source }),
            }
        }
        errors
    }

    fn bind_one(&self, listener: &Listener, workers: u16, ours: Option<u32>) -> Result<Bound, Cause> {
        let families = families(listener);
        let sockets = match &listener.bind {
            Address::Unix(path) => vec![socket::bind_unix(path, &access(&listener.permissions)?)?],
            Address::Ip(address) => match socket::bind_group_of(*address, usize::from(workers), families) {
                // From 0.0.0.0 to 127.0.0.1 with the same port, or back: the port is busy with our own sockets, which go on
                // until the new ones serve.
                Err(busy @ BindError::InUse { .. }) if self.overlap(*address) || is_ours(&busy, ours) => {
                    join_group(*address, workers, families).map_err(|_| busy)?
                }
                bound => bound?,
            },
        };
        let at = sockets.first().and_then(local_address);
        let at = at.unwrap_or_else(|| At { address: listener.bind.clone(), families });
        Ok(Bound::new(listener.name.clone(), at, Some(listener.permissions.clone()), sockets))
    }

    /// Whether we have the same port on an address that covers this one, or is covered by it.
    fn overlap(&self, wanted: SocketAddr) -> bool {
        self.0.iter().any(|bound| match bound.at.address {
            Address::Ip(ours) => {
                ours.port() == wanted.port() && (ours.ip().is_unspecified() || wanted.ip().is_unspecified())
            }
            Address::Unix(_) => false,
        })
    }

    /// Takes over the sockets of an adopted data plane.
    pub(super) fn adopt(&mut self, found: Vec<(Name, Vec<OwnedFd>)>) {
        for (name, sockets) in found {
            let Some(at) = sockets.first().and_then(local_address) else { continue };
            self.0.push(Bound::new(name, at, None, sockets));
        }
    }

    /// The sockets of a listener, and where they are bound.
    pub(super) fn find(&self, listener: &Listener) -> Option<(&At, &[Arc<OwnedFd>])> {
        self.0.iter().find(|bound| bound.fits(listener)).map(|bound| (&bound.at, bound.sockets.as_slice()))
    }

    /// Closes what none of these snapshots names, but for addresses that the data plane still has.
    pub(super) fn keep_only(&mut self, snapshots: &[&Snapshot], still_there: impl Fn(&At) -> bool) {
        self.0.retain(|bound| {
            let named = snapshots.iter().any(|snapshot| listeners(snapshot).any(|listener| bound.fits(listener)));
            let kept = named || still_there(&bound.at);
            if !kept {
                tracing::info!(target: "ringmesh::listener", listener = bound.name, address = %bound.at.address, "closed");
                remove_file(bound);
            }
            kept
        });
    }

    /// Closes our copies of all of them; the data plane still has its own.
    pub(super) fn close(&mut self) {
        self.0.iter().for_each(remove_file);
        self.0.clear();
    }
}

/// The listeners of a snapshot.
pub(super) fn listeners(snapshot: &Snapshot) -> impl Iterator<Item = &Listener> {
    snapshot.objects.values().filter_map(|object| match object {
        Object::Listener(listener) => Some(&**listener),
        _ => None,
    })
}

/// Whether the data plane has the port: sockets that it kept when control was away.
fn is_ours(busy: &BindError, dataplane: Option<u32>) -> bool {
    matches!(busy, BindError::InUse { owner: Some(owner), .. } if Some(owner.pid) == dataplane)
}

/// The file of a Unix socket does not go by itself.
fn remove_file(bound: &Bound) {
    if let Some(path) = file_of(&bound.at.address)
        && identity(path) == bound.file
    {
        let _ = fs::remove_file(path);
    }
}

/// The file of an address, if it has one.
fn file_of(address: &Address) -> Option<&Path> {
    match address {
        Address::Unix(path) if path.is_absolute() => Some(path),
        _ => None,
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    let found = fs::symlink_metadata(path).ok()?;
    Some((found.dev(), found.ino()))
}

fn access(permissions: &Permissions) -> Result<Access, Cause> {
    let Permissions { mode, owner, group } = permissions;
    Ok(Access {
        mode: *mode,
        uid: owner.as_deref().map(accounts::user).transpose()?,
        gid: group.as_deref().map(accounts::group).transpose()?,
    })
}

/// Where a socket is bound.
pub(super) fn local_address(socket: &OwnedFd) -> Option<At> {
    let own = |address| At { address, families: Families::Own };
    let address = rustix::net::getsockname(socket).ok()?;
    match SocketAddr::try_from(address) {
        Ok(SocketAddr::V6(address)) if address.ip().is_unspecified() && !ipv6_v6only(socket).ok()? => {
            Some(At { address: Address::Ip(address.into()), families: Families::Both })
        }
        Ok(address) => Some(own(Address::Ip(address))),
        Err(_) => socket::local_path(socket).map(Address::Unix).map(own),
    }
}

/// Binds a group to an address whose port a group of ours has on another address. The kernel lets only sockets of the same
/// user do so.
fn join_group(address: SocketAddr, members: u16, families: Families) -> std::io::Result<Vec<OwnedFd>> {
    let member = |_| {
        let kind = Type::STREAM.cloexec().nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(families == Families::Own)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..members).map(member).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringmesh_model::snapshot::{Hop, Key, ListenerLimits, ListenerTarget, Mtls, OpaqueLimits, Protocol};

    use super::*;

    fn snapshot(listeners: &[(&str, &str)]) -> Arc<Snapshot> {
        let object = |(name, bind): &(&str, &str)| {
            let second = Duration::from_secs(1);
            let bind = match bind.strip_prefix("unix:") {
                Some(path) => Address::Unix(path.into()),
                None => Address::Ip(bind.parse().expect("an address")),
            };
            let listener = Listener {
                name: (*name).into(),
                bind,
                ipv6_only: false,
                permissions: Default::default(),
                protocol: Protocol::Http,
                intercept: None,
                mtls: Mtls::Off,
                tls: Vec::new(),
                proxy_protocol: None,
                target: ListenerTarget::Routes,
                edge: Default::default(),
                limits: ListenerLimits {
                    max_header_bytes: 1024,
                    max_headers: 10,
                    max_connections: 10,
                    max_streams: 100,
                    header_timeout: second,
                    min_transfer_rate: None,
                    idle_timeout: second,
                    handshake_timeout: second,
                    detect_timeout: Duration::from_secs(5),
                    request_timeout: None,
                    tcp_keepalive: None,
                    opaque: OpaqueLimits { idle_timeout: second, min_transfer_rate: None, max_duration: None },
                },
                hop: Hop::default(),
            };
            (Key::Listener(listener.name.clone()), Object::Listener(listener.into()))
        };
        Arc::new(Snapshot { version: 1, objects: listeners.iter().map(object).collect() })
    }

    fn address(bound: &Listeners, snapshot: &Snapshot, name: &str) -> Address {
        let listener = listeners(snapshot).find(|listener| listener.name == name).expect("it is there");
        bound.find(listener).expect("it is bound").0.address.clone()
    }

    #[test]
    fn a_listener_that_is_renamed_keeps_its_sockets() {
        let mut bound = Listeners::default();
        let first = snapshot(&[("a", "127.0.0.1:0")]);
        bound.bind(&first, 2, None).expect("a free port");
        let Address::Ip(at) = address(&bound, &first, "a") else { panic!("a TCP port") };
        let renamed = snapshot(&[("b", &at.to_string())]);
        bound.bind(&renamed, 2, None).expect("nothing is to be bound");
        bound.keep_only(&[&renamed], |_| false);
        assert_eq!(address(&bound, &renamed, "b"), Address::Ip(at));
    }

    #[test]
    fn a_busy_port_refuses_the_edit_and_binds_nothing() {
        let other = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let busy = other.local_addr().expect("bound");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.sock");
        let mut bound = Listeners::default();
        let wanted = snapshot(&[("a", &format!("unix:{}", path.display())), ("b", &busy.to_string())]);
        let errors = bound.bind(&wanted, 1, None).expect_err("the port is busy");
        let pid = format!("pid {}", std::process::id());
        assert!(errors[0].to_string().contains("listener `b`") && errors[0].to_string().contains(&pid), "{errors:?}");
        assert!(bound.0.is_empty() && !path.exists());
    }

    #[test]
    fn a_listener_moves_from_all_addresses_to_one_with_the_same_port() {
        let mut bound = Listeners::default();
        let wide = snapshot(&[("a", "0.0.0.0:0")]);
        bound.bind(&wide, 2, None).expect("a free port");
        let Address::Ip(at) = address(&bound, &wide, "a") else { panic!("a TCP port") };
        let narrow = snapshot(&[("a", &format!("127.0.0.1:{}", at.port()))]);
        bound.bind(&narrow, 2, None).expect("only our own sockets are in the way");
        bound.keep_only(&[&narrow], |_| false);
        assert_eq!(bound.0.len(), 1);
    }

    #[test]
    fn the_file_of_a_unix_socket_goes_with_its_listener() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.sock");
        let mut bound = Listeners::default();
        let wanted = snapshot(&[("a", &format!("unix:{}", path.display()))]);
        bound.bind(&wanted, 4, None).expect("a free path");
        assert!(path.exists());
        assert_eq!(bound.0[0].sockets.len(), 1, "Unix sockets have no groups");
        bound.keep_only(&[&snapshot(&[])], |_| false);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_somebody_else_has_put_there_stays() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("a.sock");
        let mut bound = Listeners::default();
        let wanted = snapshot(&[("a", &format!("unix:{}", path.display()))]);
        bound.bind(&wanted, 1, None).expect("a free path");
        fs::remove_file(&path).expect("it is there");
        let _other = std::os::unix::net::UnixListener::bind(&path).expect("the path is free again");
        bound.close();
        assert!(path.exists());
    }

    #[test]
    fn a_port_of_all_addresses_changes_whether_ip_version_4_is_among_them() {
        let with = |ipv6_only: bool| {
            let mut snapshot = Snapshot::clone(&snapshot(&[("a", "[::]:0")]));
            for object in snapshot.objects.values_mut() {
                let Object::Listener(listener) = object else { continue };
                Arc::make_mut(listener).ipv6_only = ipv6_only;
            }
            snapshot
        };
        let at = |bound: &Listeners, snapshot: &Snapshot| {
            bound.find(listeners(snapshot).next().expect("one")).expect("it is bound").0.clone()
        };
        let mut bound = Listeners::default();
        bound.bind(&with(false), 2, None).expect("a free port");
        assert_eq!(at(&bound, &with(false)).families, Families::Both);
        let Address::Ip(address) = at(&bound, &with(false)).address else { panic!("a port") };
        let four = SocketAddr::from(([127, 0, 0, 1], address.port()));
        assert!(std::net::TcpStream::connect(four).is_ok());

        let mut only = with(true);
        for object in only.objects.values_mut() {
            let Object::Listener(listener) = object else { continue };
            Arc::make_mut(listener).bind = Address::Ip(address);
        }
        bound.bind(&only, 2, None).expect("only our own sockets are in the way");
        bound.keep_only(&[&only], |_| false);
        assert_eq!((bound.0.len(), at(&bound, &only).families), (1, Families::Own));
        assert!(std::net::TcpStream::connect(four).is_err());
    }
}
