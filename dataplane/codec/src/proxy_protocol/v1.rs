//! Version 1: a line of text (section 2.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::{Between, Fault, Header, MAX_V1_BYTES, one_family};

const START: &[u8] = b"PROXY ";

pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Fault> {
    let known = bytes.len().min(START.len());
    if bytes[..known] != START[..known] {
        return Err(Fault::NoHeader);
    }
    let line = &bytes[..bytes.len().min(MAX_V1_BYTES)];
    let Some(end) = line.iter().position(|byte| *byte == b'\n') else {
        return if bytes.len() < MAX_V1_BYTES { Ok(None) } else { Err(Fault::LongLine) };
    };
    let line = line[..end].strip_suffix(b"\r").ok_or(Fault::LineEnd)?;
    // With the line end gone, this is the whole line, which may be shorter than its first word.
    let rest = line.strip_prefix(START).ok_or(Fault::NoHeader)?;
    let header = Header { between: between(rest)?, ..Header::default() };
    Ok(Some((header, end + 1)))
}

fn between(rest: &[u8]) -> Result<Between, Fault> {
    if rest.contains(&b'\r') {
        return Err(Fault::LineEnd);
    }
    // What comes behind UNKNOWN is to be ignored.
    if rest == b"UNKNOWN" || rest.starts_with(b"UNKNOWN ") {
        return Ok(Between::Own);
    }
    let mut parts = rest.split(|byte| *byte == b' ');
    match parts.next() {
        Some(b"TCP4") => addresses(parts, address::<Ipv4Addr>),
        Some(b"TCP6") => addresses(parts, address::<Ipv6Addr>),
        _ => Err(Fault::Protocol),
    }
}

fn addresses<'a>(
    mut parts: impl Iterator<Item = &'a [u8]>,
    address: fn(&[u8]) -> Result<IpAddr, Fault>,
) -> Result<Between, Fault> {
    let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(Fault::Parts);
    let (source, destination, source_port, destination_port) = (part()?, part()?, part()?, part()?);
    if parts.next().is_some() {
        return Err(Fault::Parts);
    }
    let source = SocketAddr::new(address(source)?, port(source_port)?);
    let destination = SocketAddr::new(address(destination)?, port(destination_port)?);
    Ok(Between::Ip { source, destination })
}

/// The standard library reads just what the format has: no leading zeros in an IPv4 address, no zone in an IPv6 one. An
/// IPv4 address within an IPv6 one is not in the text of the format, but C libraries write mapped addresses so.
fn address<A: FromStr + Into<IpAddr>>(text: &[u8]) -> Result<IpAddr, Fault> {
    let text = std::str::from_utf8(text).map_err(|_| Fault::Address)?;
    text.parse().map(A::into).map_err(|_| Fault::Address)
}

fn port(text: &[u8]) -> Result<u16, Fault> {
    let canonical = text.iter().all(u8::is_ascii_digit) && (text.len() == 1 || text.first() != Some(&b'0'));
    let text = std::str::from_utf8(text).ok().filter(|_| canonical).ok_or(Fault::Port)?;
    text.parse().map_err(|_| Fault::Port)
}

pub(super) fn write(header: &Header) -> Vec<u8> {
    let Between::Ip { source, destination } = header.between else { return b"PROXY UNKNOWN\r\n".to_vec() };
    let (source, destination) = one_family(source, destination);
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    let (from, to) = (source.ip(), destination.ip());
    format!("PROXY {family} {from} {to} {} {}\r\n", source.port(), destination.port()).into_bytes()
}
