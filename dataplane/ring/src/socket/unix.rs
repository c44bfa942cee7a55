//! Unix sockets: where they are, who may connect, and who has.
//!
//! An address is a path, or a name without a file: `@name` (unix(7): abstract), which no absolute path looks like.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::SocketAddrUnix;
use socket2::{Domain, SockAddr, Socket, Type};

use super::bind::{BACKLOG, BindError, TEARDOWN};
use super::owner::owner_of_path;

/// Who may connect to a Unix socket; what is None stays as the kernel makes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The file's mode; connecting needs the right to write (unix(7)).
    pub mode: Option<u32>,
    /// The file's owner.
    pub uid: Option<u32>,
    /// The file's group.
    pub gid: Option<u32>,
}

impl Access {
    /// Gives the socket file at `path` this mode and these owners.
    ///
    /// # Errors
    /// What the kernel says, and of what.
    pub fn set(&self, path: &Path) -> Result<(), BindError> {
        let failed = |what| move |error: io::Error| BindError::Access { path: path.to_owned(), what, error };
        if self.uid.is_some() || self.gid.is_some() {
            std::os::unix::fs::lchown(path, self.uid, self.gid).map_err(failed("owner and group"))?;
        }
        if let Some(mode) = self.mode {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("mode"))?;
        }
        Ok(())
    }
}

/// The name without a file that an address is, if it is one.
pub(super) fn abstract_name(path: &Path) -> Option<&[u8]> {
    path.as_os_str().as_bytes().strip_prefix(b"@")
}

/// What connects to an address.
pub(super) fn address(path: &Path) -> io::Result<SocketAddrUnix> {
    let address = match abstract_name(path) {
        Some(name) => SocketAddrUnix::new_abstract_name(name),
        None => SocketAddrUnix::new(path),
    };
    Ok(address?)
}

/// The address of a Unix socket, as its path or name. None: it is bound to neither, or is no Unix socket.
pub fn local_path(socket: impl AsFd) -> Option<PathBuf> {
    let address = SocketAddrUnix::try_from(rustix::net::getsockname(socket).ok()?).ok()?;
    let bytes = match (address.path(), address.abstract_name()) {
        (Some(path), _) => path.to_bytes().to_vec(),
        (None, name) => [b"@", name?].concat(),
    };
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// Binds a listening Unix socket, removing a socket file that nobody listens on any more. Nobody can connect before the
/// file has the mode and the owners of `access`.
///
/// # Errors
/// When a process listens there, when something else lies there, or what the kernel says.
pub fn bind_unix(path: &Path, access: &Access) -> Result<OwnedFd, BindError> {
    let failed = |error: io::Error| BindError::Io { address: path.display().to_string(), error };
    let socket = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    let at = match abstract_name(path) {
        Some(name) => SockAddr::unix(std::ffi::OsStr::from_bytes(&[b"\0", name].concat())),
        None => SockAddr::unix(path),
    };
    let at = at.map_err(failed)?;
    let is_file = abstract_name(path).is_none();
    let patience = Instant::now() + TEARDOWN;
    while let Err(error) = socket.bind(&at) {
        if error.kind() != io::ErrorKind::AddrInUse {
            return Err(refused(path, error));
        }
        let state = if is_file { look(path, &at)? } else { State::Live };
        match state {
            State::Stale => fs::remove_file(path).map_err(|error| refused(path, error))?,
            State::Live => {
                let owner = owner_of_path(path);
                if owner.is_some() || Instant::now() > patience {
                    return Err(BindError::PathInUse { path: path.to_owned(), owner });
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    if is_file && let Err(error) = access.set(path) {
        let _ = fs::remove_file(path);
        return Err(error);
    }
    // Only from here on a client can connect.
    socket.listen(BACKLOG).map_err(failed)?;
    Ok(socket.into())
}

/// Why nothing can be bound there, with what helps.
fn refused(path: &Path, error: io::Error) -> BindError {
    let path = path.to_owned();
    let folder = path.parent().map(Path::to_owned).unwrap_or_default();
    match error.kind() {
        io::ErrorKind::NotFound => BindError::NoFolder { path, folder },
        io::ErrorKind::PermissionDenied => BindError::Forbidden { path, folder },
        _ => BindError::Io { address: path.display().to_string(), error },
    }
}

/// What lies where a socket is to be.
enum State {
    /// A socket that nobody listens on any more.
    Stale,
    /// One that somebody listens on.
    Live,
}

fn look(path: &Path, at: &SockAddr) -> Result<State, BindError> {
    let failed = |error: io::Error| BindError::Io { address: path.display().to_string(), error };
    let kind = match fs::symlink_metadata(path) {
        Ok(found) => found.file_type(),
        // Whoever had it has just taken it away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(State::Live),
        Err(error) => return Err(failed(error)),
    };
    if !kind.is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    // Without waiting: one whose backlog is full lives as well.
    let probe = Socket::new(Domain::UNIX, Type::STREAM.cloexec().nonblocking(), None).map_err(failed)?;
    match probe.connect(at) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(State::Stale),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(refused(path, error)),
        _ => Ok(State::Live),
    }
}

/// Who is at the other end of a Unix socket, as the kernel saw it when it connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProcess {
    /// Its process id; None: it is in a PID namespace that we do not see.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
}

/// The process at the other end of a Unix socket (SO_PEERCRED).
pub(super) fn peer_process(socket: BorrowedFd<'_>) -> Option<PeerProcess> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: both pointers lead to locals that outlive the call, and `len` is the size of what the first points to. Not
    // through rustix, for which a process id is never 0: the kernel says so of a process of another namespace.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, (&raw mut found).cast(), &raw mut len)
    };
    (result == 0).then_some(PeerProcess { pid: u32::try_from(found.pid).ok().filter(|pid| *pid != 0), uid: found.uid })
}
