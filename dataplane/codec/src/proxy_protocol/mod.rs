//! The PROXY protocol, versions 1 and 2, as HAProxy's `proxy-protocol.txt` has it: what a proxy says of its client before
//! the client's first byte. Read strictly, because whoever writes it decides whom we believe to be calling.

mod fault;
mod v1;
mod v2;

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

pub use self::fault::Fault;

/// Longest header of version 1, its CRLF included: the longest that the format can have (section 2.1).
pub const MAX_V1_BYTES: usize = 107;

/// Longest header of version 2. The format can say 64 KiB; the peer chooses, so we choose the bound, as nginx does. The
/// addresses take at most 232 bytes, and senders in the field add some hundred: names, IDs, a certificate's subject.
pub const MAX_V2_BYTES: usize = 4096;
const _: () = assert!(MAX_V1_BYTES <= MAX_V2_BYTES);

/// Longest header of either version: nobody needs to keep more of one.
pub const MAX_HEADER_BYTES: usize = MAX_V2_BYTES;

/// A version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// A line of text.
    V1,
    /// Binary, with TLVs.
    V2,
}

/// What a header says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Who is connected to whom.
    pub between: Between,
    /// The protocol that the client and the proxy agreed on (TLV `ALPN`).
    pub alpn: Option<Box<[u8]>>,
    /// The host that the client asked for, as in SNI (TLV `AUTHORITY`).
    pub authority: Option<Box<str>>,
    /// How the proxy calls this connection (TLV `UNIQUE_ID`).
    pub unique_id: Option<Box<[u8]>>,
}

/// Who is connected to whom.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Between {
    /// The proxy itself calls, as for a health check (`LOCAL`), or does not know who does (`UNKNOWN`): the connection's
    /// own addresses are the right ones.
    #[default]
    Own,
    /// Two addresses of one family.
    Ip {
        /// The client's.
        source: SocketAddr,
        /// Where the client connected to.
        destination: SocketAddr,
    },
    /// A client of a Unix socket.
    Unix {
        /// The path that the client's end is bound to; empty for most.
        source: Box<[u8]>,
    },
}

/// Reads a header from the beginning of `bytes`, with how many of them it takes; None: it is not whole yet, and all of
/// `bytes` belong to it.
///
/// # Errors
/// As soon as it is certain that no header begins there, see [`Fault`]. With [`MAX_HEADER_BYTES`] there is an answer.
pub fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Fault> {
    match bytes.first() {
        None => Ok(None),
        Some(first) if *first == v2::SIGNATURE[0] => v2::read(bytes),
        Some(_) => v1::read(bytes),
    }
}

/// Writes a header. What version 1 has no words for is left out.
pub fn write(version: Version, header: &Header) -> Vec<u8> {
    match version {
        Version::V1 => v1::write(header),
        Version::V2 => v2::write(header),
    }
}

/// Both addresses in one family: an IPv4 address beside an IPv6 one in its mapped form (RFC 4291 section 2.5.5.2).
fn one_family(source: SocketAddr, destination: SocketAddr) -> (SocketAddr, SocketAddr) {
    if source.is_ipv4() == destination.is_ipv4() {
        return (source, destination);
    }
    (
        SocketAddr::new(mapped(source.ip()).into(), source.port()),
        SocketAddr::new(mapped(destination.ip()).into(), destination.port()),
    )
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}
