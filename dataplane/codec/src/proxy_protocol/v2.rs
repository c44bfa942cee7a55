//! Version 2: binary (section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Between, Fault, Header, MAX_V2_BYTES, one_family};

pub(super) const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// Signature, version and command, family and transport, length of what follows.
const FIXED_BYTES: usize = 16;

/// Type and length.
const TLV_HEAD_BYTES: usize = 3;

/// Bytes of one path of a Unix socket.
const UNIX_PATH_BYTES: usize = 108;

mod tlv {
    pub(super) const ALPN: u8 = 0x01;
    pub(super) const AUTHORITY: u8 = 0x02;
    pub(super) const CRC32C: u8 = 0x03;
    pub(super) const UNIQUE_ID: u8 = 0x05;
    pub(super) const SSL: u8 = 0x20;
}

/// Longest protocol name of ALPN (RFC 7301 section 3.1).
const MAX_ALPN_BYTES: usize = 255;
/// Longest host name (RFC 1035 section 2.3.4).
const MAX_AUTHORITY_BYTES: usize = 255;
/// Longest ID that the format allows (section 2.2.5).
const MAX_UNIQUE_ID_BYTES: usize = 128;
/// Before the TLVs within the SSL TLV: what the client did, and whether its certificate was found valid.
const SSL_HEAD_BYTES: usize = 5;

pub(super) fn read(bytes: &[u8]) -> Result<Option<(Header, usize)>, Fault> {
    let known = bytes.len().min(SIGNATURE.len());
    if bytes[..known] != SIGNATURE[..known] {
        return Err(Fault::NoHeader);
    }
    let Some(fixed) = bytes.first_chunk::<FIXED_BYTES>() else { return Ok(None) };
    let [.., version_and_command, family, high, low] = *fixed;
    if version_and_command >> 4 != 2 {
        return Err(Fault::Version(version_and_command >> 4));
    }
    let length = FIXED_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if length > MAX_V2_BYTES {
        return Err(Fault::TooLong(length));
    }
    let command = version_and_command & 0xf;
    if command > 1 {
        return Err(Fault::Command(command));
    }
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    // All that follows LOCAL is to be discarded, its family included.
    let header = if command == 0 { Header::default() } else { proxied(family, whole)? };
    Ok(Some((header, length)))
}

fn proxied(family: u8, whole: &[u8]) -> Result<Header, Fault> {
    let body = &whole[FIXED_BYTES..];
    // Streams and datagrams alike: some proxies turn datagrams into a stream.
    let (between, tlvs) = match family {
        0x00 => (Between::Own, body),
        0x11 | 0x12 => {
            let (addresses, tlvs) = body.split_first_chunk::<12>().ok_or(Fault::NoRoom)?;
            let [a, b, c, d, e, f, g, h, i, j, k, l] = *addresses;
            let source = SocketAddr::new(Ipv4Addr::new(a, b, c, d).into(), u16::from_be_bytes([i, j]));
            let destination = SocketAddr::new(Ipv4Addr::new(e, f, g, h).into(), u16::from_be_bytes([k, l]));
            (Between::Ip { source, destination }, tlvs)
        }
        0x21 | 0x22 => {
            let (source, rest) = body.split_first_chunk::<16>().ok_or(Fault::NoRoom)?;
            let (destination, rest) = rest.split_first_chunk::<16>().ok_or(Fault::NoRoom)?;
            let (ports, tlvs) = rest.split_first_chunk::<4>().ok_or(Fault::NoRoom)?;
            let [i, j, k, l] = *ports;
            let source = SocketAddr::new(Ipv6Addr::from(*source).into(), u16::from_be_bytes([i, j]));
            let destination = SocketAddr::new(Ipv6Addr::from(*destination).into(), u16::from_be_bytes([k, l]));
            (Between::Ip { source, destination }, tlvs)
        }
        0x31 | 0x32 => {
            let (paths, tlvs) = body.split_at_checked(2 * UNIX_PATH_BYTES).ok_or(Fault::NoRoom)?;
            let source = paths[..UNIX_PATH_BYTES].split(|byte| *byte == 0).next().unwrap_or_default();
            (Between::Unix { source: source.into() }, tlvs)
        }
        family => return Err(Fault::Family(family)),
    };
    let mut header = Header { between, ..Header::default() };
    read_tlvs(tlvs, whole, &mut header)?;
    Ok(header)
}

fn read_tlvs(tlvs: &[u8], whole: &[u8], header: &mut Header) -> Result<(), Fault> {
    let mut seen = Vec::new();
    for tlv in Tlvs(tlvs) {
        let (kind, value) = tlv?;
        if matches!(kind, tlv::ALPN | tlv::AUTHORITY | tlv::CRC32C | tlv::UNIQUE_ID) {
            // What is there twice could be read in two ways.
            if seen.contains(&kind) {
                return Err(Fault::Twice(kind));
            }
            seen.push(kind);
        }
        let within = |fits: bool| if fits { Ok(()) } else { Err(Fault::Tlv(kind)) };
        match kind {
            // One without a value says nothing: HAProxy sends an ID of no bytes if it has no format for one.
            tlv::ALPN | tlv::AUTHORITY | tlv::UNIQUE_ID if value.is_empty() => {}
            tlv::ALPN => {
                within(value.len() <= MAX_ALPN_BYTES)?;
                header.alpn = Some(value.into());
            }
            tlv::AUTHORITY => {
                let name = std::str::from_utf8(value).map_err(|_| Fault::Tlv(kind))?;
                within(name.len() <= MAX_AUTHORITY_BYTES && !name.contains(char::is_control))?;
                header.authority = Some(name.into());
            }
            tlv::CRC32C => {
                let sum = value.try_into().map(u32::from_be_bytes).map_err(|_| Fault::Tlv(kind))?;
                let at = whole.len() - tlvs.len() + offset_in(tlvs, value);
                if checksum(whole, at) != sum {
                    return Err(Fault::Checksum);
                }
            }
            tlv::UNIQUE_ID => {
                within(value.len() <= MAX_UNIQUE_ID_BYTES)?;
                header.unique_id = Some(value.into());
            }
            // What a proxy says of the client's certificate grants nothing here, but it must be well-formed.
            tlv::SSL => {
                let inner = value.get(SSL_HEAD_BYTES..).ok_or(Fault::Tlv(kind))?;
                Tlvs(inner).try_for_each(|tlv| tlv.map(drop))?;
            }
            _ => {}
        }
    }
    Ok(())
}

/// Where `part` begins, which is a part of `whole`.
fn offset_in(whole: &[u8], part: &[u8]) -> usize {
    part.as_ptr().addr() - whole.as_ptr().addr()
}

/// Type and value, one after the other, until there are no more.
struct Tlvs<'a>(&'a [u8]);

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8]), Fault>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.0);
        let Some(([kind, high, low], rest)) = rest.split_first_chunk::<TLV_HEAD_BYTES>() else {
            return Some(Err(Fault::Rest));
        };
        let Some((value, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes([*high, *low]))) else {
            return Some(Err(Fault::Overrun(*kind)));
        };
        self.0 = rest;
        Some(Ok((*kind, value)))
    }
}

pub(super) fn write(header: &Header) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    bytes.extend_from_slice(&SIGNATURE);
    match header.between {
        Between::Ip { source, destination } => {
            let (source, destination) = one_family(source, destination);
            bytes.extend_from_slice(&[0x21, if source.is_ipv4() { 0x11 } else { 0x21 }, 0, 0]);
            write_ip(source.ip(), &mut bytes);
            write_ip(destination.ip(), &mut bytes);
            bytes.extend_from_slice(&source.port().to_be_bytes());
            bytes.extend_from_slice(&destination.port().to_be_bytes());
        }
        // As HAProxy does where it knows no addresses: whatever receivers think of other families, this they must accept.
        Between::Own | Between::Unix { .. } => bytes.extend_from_slice(&[0x20, 0x00, 0, 0]),
    }
    for (kind, value) in [
        (tlv::ALPN, header.alpn.as_deref().unwrap_or_default()),
        (tlv::AUTHORITY, header.authority.as_deref().unwrap_or_default().as_bytes()),
        (tlv::UNIQUE_ID, header.unique_id.as_deref().unwrap_or_default()),
        (tlv::CRC32C, &[0; 4]),
    ] {
        if !value.is_empty() {
            write_tlv(kind, value, &mut bytes);
        }
    }
    let length = u16::try_from(bytes.len() - FIXED_BYTES).expect("each of the parts is bounded when it is read");
    bytes[FIXED_BYTES - 2..FIXED_BYTES].copy_from_slice(&length.to_be_bytes());
    let at = bytes.len() - 4;
    let sum = checksum(&bytes, at);
    bytes[at..].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn write_ip(address: IpAddr, into: &mut Vec<u8>) {
    match address {
        IpAddr::V4(address) => into.extend_from_slice(&address.octets()),
        IpAddr::V6(address) => into.extend_from_slice(&address.octets()),
    }
}

/// A value longer than its length can say is left out: a TLV tells more, and never something else.
fn write_tlv(kind: u8, value: &[u8], into: &mut Vec<u8>) {
    let limit = match kind {
        tlv::UNIQUE_ID => MAX_UNIQUE_ID_BYTES,
        _ => MAX_AUTHORITY_BYTES,
    };
    let Some(length) = u16::try_from(value.len()).ok().filter(|_| value.len() <= limit) else { return };
    into.push(kind);
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(value);
}

/// CRC32C (RFC 3720 appendix B.4) of `bytes`, with the four at `at` taken for zeros.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let step = |crc: u32, byte: u8| (crc >> 8) ^ CRC32C[usize::from(crc as u8 ^ byte)];
    let before = bytes[..at].iter().fold(u32::MAX, |crc, byte| step(crc, *byte));
    let between = [0; 4].into_iter().fold(before, step);
    !bytes[at + 4..].iter().fold(between, |crc, byte| step(crc, *byte))
}

/// What eight steps of the division make of each byte.
static CRC32C: [u32; 256] = {
    /// Castagnoli's polynomial, its bits in the order in which they are sent.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let mut crc = index as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn the_checksum_is_castagnolis() {
        // RFC 3720 appendix B.4: 32 bytes of zeros, of ones, and counting up; four more zeros behind do not matter for the
        // comparison, so each is checked against the value that a second implementation gives for 36 bytes.
        let slow = |bytes: &[u8]| {
            !bytes.iter().fold(u32::MAX, |crc, byte| {
                (0..8).fold(
                    crc ^ u32::from(*byte),
                    |crc, _| {
                        if crc & 1 == 1 { (crc >> 1) ^ 0x82f6_3b78 } else { crc >> 1 }
                    },
                )
            })
        };
        assert_eq!(slow(&[0; 32]), 0x8a91_36aa);
        assert_eq!(slow(&[0xff; 32]), 0x62a8_ab43);
        let mut counting: Vec<u8> = (0..32).collect();
        assert_eq!(slow(&counting), 0x46dd_794e);
        counting.extend([0; 4]);
        assert_eq!(checksum(&counting, 32), slow(&counting));
        let mut other = counting.clone();
        other[32..].fill(7);
        assert_eq!(checksum(&other, 32), checksum(&counting, 32), "the sum's own place counts as zeros");
    }
}
