//! Binding listening sockets without surprises.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use super::owner::{Owner, owner_of_port};

/// Clients that may wait to be accepted. The kernel caps it at `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a busy port that no process owns is tried again: the kernel takes a killed process's ring down later than
/// the process itself, and its sockets with it.
const TEARDOWN: Duration = Duration::from_secs(2);

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
    #[error("{} is in use: a process listens there", path.display())]
    PathInUse {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something that is no socket lies on that path. Side: operator.
    #[error("{} exists and is not a socket; remove it or choose another path", path.display())]
    NotASocket {
        /// The path asked for.
        path: PathBuf,
    },
    /// Anything else the kernel says.
    #[error("cannot listen on {address}: {error}")]
    Io {
        /// The address or path asked for.
        address: String,
        /// What the kernel says.
        error: io::Error,
    },
}

fn describe(owner: &Option<Owner>) -> String {
    owner.as_ref().map_or(String::new(), |owner| format!(" by {owner}"))
}

/// Binds `members` sockets to one address, all listening, among which the kernel spreads the clients (SO_REUSEPORT).
///
/// The first is bound without SO_REUSEPORT: with it, a second program of the same user would join an existing group
/// silently and take a share of its clients. With port 0 the kernel chooses a port, the same for all.
///
/// # Errors
/// [`BindError::InUse`] when anybody else has the port; otherwise what the kernel says.
pub fn bind_group(address: SocketAddr, members: usize) -> Result<Vec<OwnedFd>, BindError> {
    let failed = |error: io::Error| BindError::Io { address: address.to_string(), error };
    let first = bind_alone(address)?;
    let bound = first.local_addr().map_err(failed)?;
    first.set_reuse_port(true).map_err(failed)?;
    first.listen(BACKLOG).map_err(failed)?;

    let mut group = vec![OwnedFd::from(first)];
    for _ in 1..members {
        let member = open(address).map_err(failed)?;
        member.set_reuse_port(true).map_err(failed)?;
        member.bind(&bound).map_err(failed)?;
        member.listen(BACKLOG).map_err(failed)?;
        group.push(member.into());
    }
    Ok(group)
}

fn bind_alone(address: SocketAddr) -> Result<Socket, BindError> {
    let failed = |error: io::Error| BindError::Io { address: address.to_string(), error };
    let patience = Instant::now() + TEARDOWN;
    loop {
        let socket = open(address).map_err(failed)?;
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

fn open(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.cloexec().nonblocking(), Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not block the port. On Linux this does not let two listen.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // One address, one meaning: `[::]` must not take IPv4's port along.
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}

/// Binds a listening Unix socket, removing a socket file that nobody listens on any more.
///
/// # Errors
/// When a process listens there, when something else lies there, or what the kernel says.
pub fn bind_unix(path: &Path) -> Result<OwnedFd, BindError> {
    let failed = |error: io::Error| BindError::Io { address: path.display().to_string(), error };
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            remove_stale(path)?;
            UnixListener::bind(path).map_err(failed)?
        }
        result => result.map_err(failed)?,
    };
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener.into())
}

fn remove_stale(path: &Path) -> Result<(), BindError> {
    let failed = |error: io::Error| BindError::Io { address: path.display().to_string(), error };
    let kind = fs::symlink_metadata(path).map_err(failed)?.file_type();
    if !kind.is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path).map_err(failed),
        _ => Err(BindError::PathInUse { path: path.to_owned() }),
    }
}
