//! Networks of IP addresses.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::error::Cause;
use crate::reader::{Field, FromField};

/// A network of IP addresses: those whose first bits are the same. One address is a network of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Network {
    /// Its first address; the bits behind the prefix are zero.
    first: IpAddr,
    /// How many bits are the same.
    prefix: u8,
}

impl Network {
    /// The network of an address that has this many bits in common with it. None: it has no such bits.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Self> {
        let bits = width(address);
        if prefix > bits {
            return None;
        }
        let keep = |all: u128| all.checked_shl(u32::from(bits - prefix)).unwrap_or(0);
        let first = match address {
            IpAddr::V4(address) => IpAddr::from((address.to_bits() & keep(u32::MAX.into()) as u32).to_be_bytes()),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & keep(u128::MAX)).into(),
        };
        Some(Self { first, prefix })
    }

    /// Whether an address is in it. An IPv4 address is the same in its mapped form (RFC 4291 section 2.5.5.2), in which it
    /// comes to a socket of both families.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && Self::new(address, self.prefix) == Some(*self)
    }
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        if self.prefix == width(self.first) { Ok(()) } else { write!(f, "/{}", self.prefix) }
    }
}

impl FromField for Network {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        const EXPECTED: &str = "a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an address such as \"::1\"";
        let text = field.expect_text(EXPECTED)?;
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let parsed = address.parse::<IpAddr>().ok().and_then(|address| {
            let prefix = prefix.map_or(Some(width(address)), |prefix| prefix.parse().ok())?;
            Some((address, Self::new(address, prefix)?))
        });
        let Some((address, network)) = parsed else {
            field.refuse(Cause::WrongText { expected: EXPECTED, found: text.to_owned() });
            return None;
        };
        if network.first != address {
            // Half of those who write this mean the one address, and half the network.
            field.refuse(Cause::NotANetwork { found: text.to_owned(), network, address });
            return None;
        }
        Some(network)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_the_addresses_whose_first_bits_are_its_own() {
        let check = |address: &str, prefix: u8, inside: &[&str], outside: &[&str]| {
            let network = Network::new(address.parse().unwrap(), prefix).unwrap();
            for (addresses, expected) in [(inside, true), (outside, false)] {
                for address in addresses {
                    assert_eq!(network.contains(address.parse().unwrap()), expected, "{address} in {network}");
                }
            }
        };
        check(
            "10.0.0.0",
            8,
            &["10.0.0.0", "10.255.255.255", "::ffff:10.1.2.3"],
            &["11.0.0.0", "9.255.255.255", "a00::"],
        );
        check("10.1.2.3", 32, &["10.1.2.3"], &["10.1.2.2", "10.1.2.4"]);
        check("0.0.0.0", 0, &["0.0.0.0", "255.255.255.255"], &["::", "::1"]);
        check("::", 0, &["::", "ffff::"], &["10.0.0.1", "::ffff:10.0.0.1"]);
        check("fd00::", 8, &["fd00::1", "fdff:ffff::"], &["fe00::", "fc00::"]);
        check("192.168.5.128", 25, &["192.168.5.128", "192.168.5.255"], &["192.168.5.127"]);
        assert_eq!(Network::new("10.0.0.0".parse().unwrap(), 33), None);
        assert_eq!(Network::new("::".parse().unwrap(), 129), None);
    }
}
