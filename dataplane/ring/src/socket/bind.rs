//! Binding listening sockets without surprises.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::owner::{Owner, owner_of_port};

/// Clients that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
pub(super) const BACKLOG: i32 = 4096;

/// How long a busy port or path that no process owns is tried again: the kernel takes a killed process's ring down later than
/// the process itself, and its sockets with it.
pub(super) const TEARDOWN: Duration = Duration::from_secs(2);

/// Why a listening socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there. Side: operator.
    #[error("{address} is in use{}", describe(.owner))]
    InUse {
        /// The address asked for.
        address: SocketAddr,
        /// Who it is, if that can be seen.
        owner: Option<Owner>,
    },
    /// Somebody listens on that path. Side: operator.
    #[error("{} is in use{}", path.display(), describe(.owner))]
    PathInUse {
        /// The path asked for.
        path: PathBuf,
        /// Who it is, if that can be seen.
        owner: Option<Owner>,
    },
    /// Something that is no socket lies on that path. Side: operator.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// The folder of that path is not there. Side: operator.
    #[error("cannot listen on {}: the folder {} does not exist; create it", path.display(), folder.display())]
    NoFolder {
        /// The path asked for.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// We may not do that there. Side: operator.
    #[error(
        "cannot listen on {}: no permission; this user must be able to write to {}, and to a socket that is left there",
        path.display(),
        folder.display()
    )]
    Forbidden {
        /// The path asked for.
        path: PathBuf,
        /// Its folder.
        folder: PathBuf,
    },
    /// Who may connect cannot be set. Side: operator.
    #[error("{}: its {what} cannot be set: {error}", path.display())]
    Access {
        /// The path asked for.
        path: PathBuf,
        /// What of it.
        what: &'static str,
        /// What the kernel says.
        error: io::Error,
    },
    /// Anything else the kernel says.
    #[error("cannot listen on {address}: {error}{}", advice(.error))]
    Io {
        /// The address or path asked for.
        address: String,
        /// What the kernel says.
        error: io::Error,
    },
}

/// What would help.
fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            "; a port below net.ipv4.ip_unprivileged_port_start (mostly 1024) takes root or CAP_NET_BIND_SERVICE"
        }
        io::ErrorKind::AddrNotAvailable => "; no interface here has this address",
        _ => "",
    }
}

fn describe(owner: &Option<Owner>) -> String {
    owner.as_ref().map_or(String::new(), |owner| format!(" by {owner}"))
}

/// The families of address that a socket of IPv6's unspecified address takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// Clients of IPv4 come too, on the same port.
    Both,
    /// Clients of IPv6 alone: IPv4's port is somebody else's.
    Own,
}

/// [`bind_group_of`] with [`Families::Both`].
///
/// # Errors
/// As there.
pub fn bind_group(address: SocketAddr, members: usize) -> Result<Vec<OwnedFd>, BindError> {
    bind_group_of(address, members, Families::Both)
}

/// Binds `members` sockets to one address, all listening, among which the kernel spreads the clients (SO_REUSEPORT).
///
/// The first is bound without SO_REUSEPORT: with it, a second program of the same user would join an existing group
/// silently and take a share of its clients. With port 0 the kernel chooses a port, the same for all.
///
/// # Errors
/// [`BindError::InUse`] when anybody else has the port; otherwise what the kernel says.
pub fn bind_group_of(address: SocketAddr, members: usize, families: Families) -> Result<Vec<OwnedFd>, BindError> {
    let failed = |error: io::Error| BindError::Io { address: address.to_string(), error };
    let first = bind_alone(address, families)?;
    let bound = first.local_addr().map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    first.listen(BACKLOG).map_err(failed)?;

    let mut group = vec![OwnedFd::from(first)];
    for _ in 1..members {
        let member = open(address, families).map_err(failed)?;
        member.set_reuse_port(true).map_err(failed)?;
        member.bind(&bound).map_err(failed)?;
        member.listen(BACKLOG).map_err(failed)?;
        group.push(member.into());
    }
    Ok(group)
}

fn bind_alone(address: SocketAddr, families: Families) -> Result<Socket, BindError> {
    let failed = |error: io::Error| BindError::Io { address: address.to_string(), error };
    let patience = Instant::now() + TEARDOWN;
    loop {
        let socket = open(address, families).map_err(failed)?;
        match socket.bind(&address.into()) {
            Ok(()) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                let owner = owner_of_port(address);
                if owner.is_some() || Instant::now() > patience {
                    return Err(BindError::InUse { address, owner });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(error) => return Err(failed(error)),
        }
    }
}

fn open(address: SocketAddr, families: Families) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not block the port. On Linux this does not let two listen.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // Said in any case: what the machine's default is (net.ipv6.bindv6only) must not change what a config means.
        socket.set_only_v6(families == Families::Own || !address.ip().is_unspecified())?;
    }
    Ok(socket)
}
