//! Which process listens on a port, for error messages.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A process that listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its process id.
    pub pid: u32,
    /// The name of its program, cut to 15 bytes by the kernel.
    pub command: String,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` (pid {})", self.command, self.pid)
    }
}

/// Who listens on `address`, or on a wildcard address of the same port. None when nobody does, or when it belongs to a
/// process we may not look into.
pub fn owner_of_port(address: SocketAddr) -> Option<Owner> {
    let inodes: Vec<u64> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening(&table, address))
        .collect();
    holder(&inodes)
}

/// Who listens on a Unix socket at this path, or of this name. None as of [`owner_of_port`].
pub fn owner_of_path(path: &Path) -> Option<Owner> {
    let table = fs::read("/proc/net/unix").ok()?;
    let lines = table.split(|byte| *byte == b'\n');
    holder(&lines.filter_map(|line| listening_unix(line, path)).collect::<Vec<_>>())
}

/// The socket of a line of the kernel's table if it listens at `path`: seven words, and the path as it is.
fn listening_unix(line: &[u8], path: &Path) -> Option<u64> {
    const LISTENS: u32 = 0x0001_0000;
    let line = line.strip_suffix(path.as_os_str().as_bytes())?.strip_suffix(b" ")?;
    let [_, _, _, flags, _, _, inode] = std::str::from_utf8(line).ok()?.split_whitespace().collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let listens = u32::from_str_radix(flags, 16).ok()? & LISTENS != 0;
    inode.parse().ok().filter(|_| listens)
}

/// The process that has one of these sockets.
fn holder(inodes: &[u64]) -> Option<Owner> {
    if inodes.is_empty() {
        return None;
    }
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        holds(pid, inodes).then(|| Owner { pid, command: command(pid) })
    })
}

/// The sockets in a table of the kernel's that listen where `address` would.
fn listening(table: &str, address: SocketAddr) -> Vec<u64> {
    const LISTEN: &str = "0A";
    let sockets = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else { return None };
        let local = parse(local)?;
        let overlaps = local.ip() == address.ip() || local.ip().is_unspecified() || address.ip().is_unspecified();
        (state == LISTEN && local.port() == address.port() && overlaps).then(|| inode.parse().ok()).flatten()
    });
    sockets.collect()
}

/// An address as the kernel's tables have it: 32-bit words in the machine's byte order, in hexadecimal.
fn parse(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| Some(u32::from_str_radix(address.get(index * 8..index * 8 + 8)?, 16).ok()?.to_ne_bytes());
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let mut bytes = [0; 16];
            for (index, part) in bytes.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(index)?);
            }
            IpAddr::from(Ipv6Addr::from(bytes)).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(address, port))
}

fn holds(pid: u32, inodes: &[u64]) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    descriptors.flatten().filter_map(|entry| fs::read_link(entry.path()).ok()).any(|target| {
        let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
        inode.is_some_and(|inode| inodes.contains(&inode))
    })
}

fn command(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).map_or_else(|_| "unknown".into(), |name| name.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_kernels_tables_are_read() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(parse(text), expected.map(|address| address.parse().unwrap()), "{text}");
        };
        if cfg!(target_endian = "little") {
            check("0100007F:1F90", Some("127.0.0.1:8080"));
            check("00000000000000000000000001000000:0050", Some("[::1]:80"));
            check("0000000000000000FFFF00000100007F:0050", Some("127.0.0.1:80"));
        }
        check("0100007F", None);
        check("xyz:0050", None);
        check("0100007F00:0050", None);
    }

    #[test]
    fn owner_of_a_listening_port_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let owner = owner_of_port(listener.local_addr().unwrap()).unwrap();
        assert_eq!(owner.pid, std::process::id());
        assert!(!owner.command.is_empty());
    }

    #[test]
    fn owner_of_a_listening_path_is_found_and_a_client_is_none() {
        let folder = std::env::temp_dir().join(format!("ringmesh owner {}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("a socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(owner_of_path(&path).map(|owner| owner.pid), Some(std::process::id()));
        assert_eq!(owner_of_path(Path::new("socket")), None, "the end of a path is another path");
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let accepted = listener.accept().unwrap();
        drop(listener);
        assert_eq!(owner_of_path(&path), None, "{client:?} {accepted:?}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn free_port_has_no_owner() {
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(owner_of_port(address), None);
    }
}
