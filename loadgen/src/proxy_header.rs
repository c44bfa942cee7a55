//! The PROXY protocol's header, as a client sends it (haproxy.org, proxy-protocol.txt).

use std::net::{IpAddr, SocketAddr};

/// What precedes everything else on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProxyHeader {
    /// Its form.
    pub version: ProxyVersion,
    /// Who the client is said to be, if not this end of the connection.
    pub source: Option<SocketAddr>,
}

/// The two forms of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text.
    V1,
    /// Binary.
    V2,
}

/// What a header of version 2 begins with.
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2, command PROXY.
const PROXY: u8 = 0x21;

/// Version 2, command LOCAL: the connection is the proxy's own.
const LOCAL: u8 = 0x20;

impl ProxyHeader {
    /// The header for a connection between two addresses; a Unix socket has none.
    pub(crate) fn encode(self, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Vec<u8> {
        let ends = self.source.or(local).zip(peer.or(self.source)).filter(|(from, to)| from.is_ipv4() == to.is_ipv4());
        match (self.version, ends) {
            (ProxyVersion::V1, Some((from, to))) => {
                let family = if from.is_ipv4() { "TCP4" } else { "TCP6" };
                format!("PROXY {family} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
            }
            (ProxyVersion::V1, None) => b"PROXY UNKNOWN\r\n".to_vec(),
            (ProxyVersion::V2, Some((from, to))) => {
                let (family, length) = if from.is_ipv4() { (0x11, 12_u16) } else { (0x21, 36) };
                let mut header = [SIGNATURE, &[PROXY, family], &length.to_be_bytes()].concat();
                for ip in [from.ip(), to.ip()] {
                    match ip {
                        IpAddr::V4(ip) => header.extend(ip.octets()),
                        IpAddr::V6(ip) => header.extend(ip.octets()),
                    }
                }
                header.extend(from.port().to_be_bytes());
                header.extend(to.port().to_be_bytes());
                header
            }
            (ProxyVersion::V2, None) => [SIGNATURE, &[LOCAL, 0, 0, 0]].concat(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_say_who_speaks_to_whom() {
        let address = |text: &str| text.parse::<SocketAddr>().ok();
        let header = |version, source| ProxyHeader { version, source };
        let local = address("10.0.0.1:1000");
        let peer = address("10.0.0.2:80");
        let v1 = |source, local, peer| header(ProxyVersion::V1, source).encode(local, peer);
        assert_eq!(v1(None, local, peer), b"PROXY TCP4 10.0.0.1 10.0.0.2 1000 80\r\n");
        assert_eq!(v1(address("1.2.3.4:5"), local, peer), b"PROXY TCP4 1.2.3.4 10.0.0.2 5 80\r\n");
        assert_eq!(v1(None, address("[::1]:1"), address("[::2]:2")), b"PROXY TCP6 ::1 ::2 1 2\r\n");
        assert_eq!(v1(None, None, None), b"PROXY UNKNOWN\r\n");
        let v2 = header(ProxyVersion::V2, None).encode(local, peer);
        assert_eq!(v2, b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\0\0\x01\x0a\0\0\x02\x03\xe8\0\x50");
        assert_eq!(header(ProxyVersion::V2, None).encode(None, None).len(), 16);
    }
}
