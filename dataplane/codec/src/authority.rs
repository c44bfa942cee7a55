//! Host and port, as they stand in Host and in absolute targets.

use crate::refusal::Refusal;

/// An authority taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Authority<'a> {
    /// Name or address as sent (compare in lower case); an IPv6 address with its brackets.
    pub host: &'a [u8],
    /// The port, if one was given.
    pub port: Option<u16>,
}

/// Takes apart `host [":" port]`.
///
/// Narrower than RFC 3986 section 3.2: no user name, no percent-encoding, no sub-delimiters. Names in a mesh need none
/// of these, and each is read differently by somebody. An empty host is none (RFC 9110 section 4.2.1).
///
/// # Errors
/// [`Refusal::BadHost`].
pub fn parse(authority: &[u8]) -> Result<Authority<'_>, Refusal> {
    let (host, rest) = match authority {
        [b'[', ..] => {
            let end = authority.iter().position(|&byte| byte == b']').ok_or(Refusal::BadHost)?;
            check_ipv6(&authority[1..end])?;
            authority.split_at(end + 1)
        }
        _ => {
            let end = authority.iter().position(|&byte| !is_name(byte)).unwrap_or(authority.len());
            authority.split_at(end)
        }
    };
    if host.is_empty() {
        return Err(Refusal::BadHost);
    }
    let port = match rest {
        [] => None,
        [b':', digits @ ..] => Some(parse_port(digits)?),
        _ => return Err(Refusal::BadHost),
    };
    Ok(Authority { host, port })
}

fn is_name(byte: u8) -> bool {
    NAME[usize::from(byte)]
}

static NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        table[byte] = (byte as u8).is_ascii_alphanumeric() || matches!(byte as u8, b'-' | b'.' | b'_' | b'~');
        byte += 1;
    }
    table
};

fn check_ipv6(address: &[u8]) -> Result<(), Refusal> {
    let text = std::str::from_utf8(address).map_err(|_| Refusal::BadHost)?;
    text.parse::<std::net::Ipv6Addr>().map(|_| ()).map_err(|_| Refusal::BadHost)
}

fn parse_port(digits: &[u8]) -> Result<u16, Refusal> {
    if digits.is_empty() || digits.len() > 5 || !digits.iter().all(u8::is_ascii_digit) {
        return Err(Refusal::BadHost);
    }
    let port = digits.iter().fold(0_u32, |sum, digit| sum * 10 + u32::from(digit - b'0'));
    u16::try_from(port).map_err(|_| Refusal::BadHost)
}
