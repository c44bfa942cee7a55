//! `[intercept]`: what `ringmesh intercept --on` leaves alone.

use std::fmt;
use std::hash::Hash;
use std::net::IpAddr;

use crate::error::{Cause, Located};
use crate::reader::{Field, FromField, Keys, Number, Section, within};

/// Keys of `[intercept]`.
pub const KEYS: Keys = Keys {
    path: "intercept",
    header: "[intercept]",
    names: &[
        "exclude_inbound_ports",
        "exclude_inbound_networks",
        "exclude_outbound_ports",
        "exclude_outbound_networks",
        "exclude_users",
        "exclude_groups",
    ],
};

/// What the proxy's own connections carry (`SO_MARK`), so that they are not intercepted in their turn. "RM"; not one of the
/// bits that kube-proxy (0x4000, 0x8000), Cilium (0x0f00) or Calico (0xffff0000) give a meaning of their own.
pub const MARK: u32 = 0x524d;

/// Most entries of each list: every new connection is compared with all of them.
pub const MAX_EXCLUSIONS: usize = 256;

/// `[intercept]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Intercept {
    /// Own ports whose clients reach the application directly.
    pub inbound_ports: Vec<u16>,
    /// Networks whose clients do.
    pub inbound_networks: Vec<Network>,
    /// Ports that the application reaches directly, wherever they are.
    pub outbound_ports: Vec<u16>,
    /// Networks that it does.
    pub outbound_networks: Vec<Network>,
    /// Users whose processes do.
    pub users: Vec<Account>,
    /// Groups whose processes do.
    pub groups: Vec<Account>,
}

/// A network, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    /// Its first address.
    pub address: IpAddr,
    /// How many leading bits its addresses share.
    pub prefix: u8,
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// A user or group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Account {
    /// By its number.
    Id(u32),
    /// By its name, as the machine knows it.
    Name(String),
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Whether this process may mark its connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Marking {
    /// It may.
    #[default]
    Granted,
    /// It may not, and is known by these accounts.
    Denied {
        /// Its user, by number and name.
        user: Vec<Account>,
        /// Its group, by number and name.
        group: Vec<Account>,
    },
}

impl Intercept {
    pub(crate) fn read(section: &Section<'_>) -> Self {
        let ports = |key| list::<Port>(section, key).into_iter().map(|port| port.0).collect();
        Self {
            inbound_ports: ports("exclude_inbound_ports"),
            inbound_networks: list(section, "exclude_inbound_networks"),
            outbound_ports: ports("exclude_outbound_ports"),
            outbound_networks: list(section, "exclude_outbound_networks"),
            users: list(section, "exclude_users"),
            groups: list(section, "exclude_groups"),
        }
    }

    /// Whether connections of a process with these accounts are left alone.
    pub fn excludes(&self, user: &[Account], group: &[Account]) -> bool {
        self.users.iter().any(|one| user.contains(one)) || self.groups.iter().any(|one| group.contains(one))
    }
}

fn list<T>(section: &Section<'_>, key: &'static str) -> Vec<T>
where
    T: FromField + Clone + Eq + Hash + fmt::Display,
{
    let Some(field) = section.field(key) else { return Vec::new() };
    let items = field.expect_set::<T>("a list", "leave the key out to exclude nothing").unwrap_or_default();
    if items.len() > MAX_EXCLUSIONS {
        field.refuse(Cause::TooMany { max: MAX_EXCLUSIONS, found: items.len() });
    }
    items.into_iter().map(|item: Located<T>| item.value).collect()
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Port(u16);

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromField for Port {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let number = within(field, Number::from_field(field)?, Number::from(1), Number::from(u32::from(u16::MAX)))?;
        u16::try_from(u32::from(number)).ok().map(Self)
    }
}

/// What a network looks like, for messages.
const NETWORK_EXAMPLE: &str = "a network such as \"10.0.0.0/8\" or \"fd00::/8\", or an address";

impl FromField for Network {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        let text = field.expect_text(NETWORK_EXAMPLE)?;
        let network = network(text);
        if network.is_none() {
            field.refuse(Cause::WrongText { expected: NETWORK_EXAMPLE, found: text.to_owned() });
        }
        network
    }
}

/// Bits behind the prefix are refused: a slip there would exclude other addresses than were meant.
fn network(text: &str) -> Option<Network> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().ok()?;
    let (bits, width) = match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 32),
        IpAddr::V6(address) => (address.to_bits(), 128),
    };
    let prefix: u8 = match prefix {
        Some(prefix) if prefix.bytes().all(|byte| byte.is_ascii_digit()) => prefix.parse().ok()?,
        Some(_) => return None,
        None => width,
    };
    let rest = bits.checked_shl(prefix.into()).unwrap_or(0);
    (prefix <= width && rest == 0).then_some(Network { address, prefix })
}

/// What an account looks like, for messages.
const ACCOUNT_EXAMPLE: &str = "a user's or group's number or name, such as 1337 or \"backup\"";

impl FromField for Account {
    fn from_field(field: &Field<'_>) -> Option<Self> {
        if field.is_number() {
            // The last number means "no account" to the kernel.
            let id = within(field, Number::from_field(field)?, Number::from(0), Number::from(u32::MAX - 1))?;
            return Some(Self::Id(id.into()));
        }
        let name = field.expect_text(ACCOUNT_EXAMPLE)?;
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
        let is_name =
            name.bytes().all(fits) && name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        if !is_name || name.len() > 32 {
            field.refuse(Cause::WrongText { expected: ACCOUNT_EXAMPLE, found: name.to_owned() });
            return None;
        }
        Some(Self::Name(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_has_no_bits_behind_its_prefix() {
        for (text, expected) in [
            ("10.0.0.0/8", Some("10.0.0.0/8")),
            ("10.0.0.7", Some("10.0.0.7/32")),
            ("0.0.0.0/0", Some("0.0.0.0/0")),
            ("fd00::/8", Some("fd00::/8")),
            ("::1", Some("::1/128")),
            ("::/0", Some("::/0")),
            ("10.0.0.1/8", None),
            ("10.0.0.0/33", None),
            ("fd00::1/64", None),
            ("fd00::/129", None),
            ("10.0.0.0/+8", None),
            ("10.0.0.0/", None),
            ("shop", None),
        ] {
            assert_eq!(network(text).map(|network| network.to_string()).as_deref(), expected, "{text}");
        }
    }
}
