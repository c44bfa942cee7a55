//! Free ports on loopback.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Where ports are looked for first: above what services commonly use, below what the kernel gives to connections
/// (ip_local_port_range), which could take one back before its owner binds it.
const FIRST: u16 = 18_000;

/// How many are looked at there.
const RANGE: u16 = 14_000;

/// There are no free ports.
#[derive(Debug, thiserror::Error)]
#[error("cannot find free ports on 127.0.0.1")]
pub(super) struct Error(#[from] io::Error);

/// Ports that were free a moment ago.
pub(super) struct Ports(Vec<SocketAddr>);

impl Ports {
    /// Finds so many different ones. All are held until the last is found.
    pub(super) fn find(count: usize) -> Result<Self, Error> {
        // Two demos at once begin at different places.
        let start = (std::process::id() % u32::from(RANGE)) as u16;
        let preferred = (0..RANGE).map(|step| FIRST + (start + step) % RANGE);
        let mut held: Vec<_> = preferred.filter_map(|port| bind(port).ok()).take(count).collect();
        while held.len() < count {
            held.push(bind(0)?);
        }
        let mut addresses = held.iter().map(TcpListener::local_addr).collect::<Result<Vec<_>, _>>()?;
        addresses.reverse();
        Ok(Self(addresses))
    }

    /// The next one.
    pub(super) fn take(&mut self) -> SocketAddr {
        self.0.pop().expect("as many were found as are taken")
    }
}

fn bind(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_ports_are_different_and_free() {
        let mut ports = Ports::find(30).unwrap();
        let found: Vec<_> = (0..30).map(|_| ports.take()).collect();
        let held: Vec<_> = found.iter().map(|address| bind(address.port()).unwrap()).collect();
        assert_eq!(held.len(), 30);
    }
}
