//! The rules that a config asks for.
//!
//! A connection is brought to the listener of its direction and family when its first packet comes by, unless an exclusion
//! says that it is left alone. Connections that are open already are never touched. Where a direction has a listener for one
//! family only, connections of the other are refused: they would go around the proxy.
//!
//! What keeps the proxy from calling itself: its own connections carry a mark, or are those of an excluded user; whatever
//! goes to an address of this machine is left alone on its way out; the ports of the proxy are on its way in.

use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{IpAddr, SocketAddr};

use ringmesh_model::config::Config;
use ringmesh_model::intercept::{Account, MARK, Network};
use ringmesh_model::snapshot::{Address, Direction};

use super::TABLE;

/// The first packet of a connection, and no other.
const NO_FIRST_PACKET: &str = "tcp flags & (fin | syn | rst | ack) != syn";

/// No listener takes intercepted connections.
#[derive(Debug, thiserror::Error)]
#[error("no listener takes intercepted connections; give one `intercept = \"outbound\"` or `intercept = \"inbound\"`")]
pub struct NoListener;

/// A script for `nft`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    body: String,
}

impl Rules {
    /// The rules that a config asks for.
    ///
    /// # Errors
    /// If no listener takes intercepted connections.
    pub fn of(config: &Config) -> Result<Self, NoListener> {
        let mut body = String::new();
        let mut any = false;
        for direction in [Direction::Outbound, Direction::Inbound] {
            let listeners = listeners(config, direction);
            if !listeners.is_empty() {
                write(&mut body, config, direction, &listeners).expect("a string takes everything");
                any = true;
            }
        }
        if any { Ok(Self { body }) } else { Err(NoListener) }
    }

    /// What tells these rules from others.
    pub fn digest(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.body.hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    }
}

impl fmt::Display for Rules {
    /// In one transaction, whatever was there before.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "add table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{")?;
        writeln!(f, "\tchain about {{\n\t\tcounter comment \"rules {}\"\n\t}}", self.digest())?;
        writeln!(f, "{}}}", self.body)
    }
}

/// Which connections of a direction are brought where, by family. "[::]:PORT" takes IPv4 along, unless another listener has it.
fn listeners(config: &Config, direction: Direction) -> Vec<(Family, SocketAddr)> {
    let mut listeners = Vec::new();
    let mut of_both = None;
    for listener in &config.listeners {
        let is_it = listener.intercept.as_ref().is_some_and(|intercepted| intercepted.value == direction);
        let Address::Ip(address) = listener.bind.value else { continue };
        if !is_it {
            continue;
        }
        listeners.push((if address.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 }, address));
        if address.is_ipv6() && address.ip().is_unspecified() && !listener.ipv6_only.value {
            of_both = Some(address);
        }
    }
    if let Some(address) = of_both
        && !listeners.iter().any(|(family, _)| *family == Family::Ipv4)
    {
        listeners.push((Family::Ipv4, address));
    }
    listeners
}

/// A version of IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    /// Its name as `nft` has it, in front of addresses, and in words.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Ipv4 => ("ipv4", "ip", "IPv4"),
            Self::Ipv6 => ("ipv6", "ip6", "IPv6"),
        }
    }
}

/// The chains of one direction.
fn write(out: &mut String, config: &Config, direction: Direction, listeners: &[(Family, SocketAddr)]) -> fmt::Result {
    let (name, hook, filter_hook) = match direction {
        Direction::Outbound => ("outbound", "output", "output"),
        Direction::Inbound => ("inbound", "prerouting", "input"),
    };
    writeln!(out, "\tchain {name}_left_alone {{")?;
    match direction {
        Direction::Outbound => outbound_exclusions(out, config)?,
        Direction::Inbound => inbound_exclusions(out, config)?,
    }
    writeln!(out, "\t}}")?;
    writeln!(out, "\tchain {name} {{\n\t\ttype nat hook {hook} priority -100; policy accept;")?;
    writeln!(out, "\t\tmeta l4proto != tcp accept\n\t\t{NO_FIRST_PACKET} accept\n\t\tjump {name}_left_alone")?;
    for (family, listener) in listeners {
        // A listener of both has two rules, each of which is met by itself.
        let whose = if *family == Family::Ipv4 && listener.is_ipv6() { "IPv4 " } else { "" };
        let (family, ip, _) = family.names();
        let to = match listener.ip().is_unspecified() {
            true => format!("redirect to :{}", listener.port()),
            false => format!("dnat {ip} to {listener}"),
        };
        writeln!(
            out,
            "\t\tmeta nfproto {family} meta l4proto tcp counter {to} comment \"{name}: {whose}brought to {listener}\""
        )?;
    }
    writeln!(out, "\t}}")?;
    for family in [Family::Ipv4, Family::Ipv6] {
        if listeners.iter().any(|(taken, _)| *taken == family) {
            continue;
        }
        let (family, _, in_words) = family.names();
        writeln!(out, "\tchain {name}_{family} {{\n\t\ttype filter hook {filter_hook} priority 0; policy accept;")?;
        writeln!(
            out,
            "\t\tmeta nfproto != {family} accept\n\t\tmeta l4proto != tcp accept\n\t\t{NO_FIRST_PACKET} accept"
        )?;
        writeln!(out, "\t\tjump {name}_left_alone")?;
        writeln!(
            out,
            "\t\tcounter reject with tcp reset comment \"{name}: refused, no listener takes {in_words}\"\n\t}}"
        )?;
    }
    Ok(())
}

fn exclude(out: &mut String, what: &str, comment: &str) -> fmt::Result {
    writeln!(out, "\t\t{what} counter accept comment \"{comment}\"")
}

fn outbound_exclusions(out: &mut String, config: &Config) -> fmt::Result {
    exclude(out, &format!("meta mark {MARK:#x}"), "outbound: left alone, the proxy's own")?;
    exclude(out, "fib daddr type local", "outbound: left alone, to this machine itself")?;
    // What a link-local address means depends on the interface, which the original destination does not tell.
    exclude(out, "ip6 daddr fe80::/10", "outbound: left alone, link-local")?;
    for (key, kind, accounts) in
        [("skuid", "user", &config.intercept.users), ("skgid", "group", &config.intercept.groups)]
    {
        for account in accounts {
            let quoted = match account {
                Account::Id(id) => id.to_string(),
                Account::Name(name) => format!("\"{name}\""),
            };
            exclude(out, &format!("meta {key} {quoted}"), &format!("outbound: left alone, {kind} {account}"))?;
        }
    }
    for port in &config.intercept.outbound_ports {
        exclude(out, &format!("tcp dport {port}"), &format!("outbound: left alone, port {port}"))?;
    }
    for network in &config.intercept.outbound_networks {
        exclude(out, &format!("{} daddr {network}", family(network)), &format!("outbound: left alone, to {network}"))?;
    }
    Ok(())
}

fn inbound_exclusions(out: &mut String, config: &Config) -> fmt::Result {
    exclude(out, "iifname \"lo\"", "inbound: left alone, from this machine itself")?;
    exclude(out, "fib daddr type != local", "inbound: left alone, to another machine")?;
    for port in own_ports(config) {
        exclude(out, &format!("tcp dport {port}"), &format!("inbound: left alone, port {port} of the proxy"))?;
    }
    for port in &config.intercept.inbound_ports {
        exclude(out, &format!("tcp dport {port}"), &format!("inbound: left alone, port {port}"))?;
    }
    for network in &config.intercept.inbound_networks {
        exclude(out, &format!("{} saddr {network}", family(network)), &format!("inbound: left alone, from {network}"))?;
    }
    Ok(())
}

fn family(network: &Network) -> &'static str {
    match network.address {
        IpAddr::V4(_) => "ip",
        IpAddr::V6(_) => "ip6",
    }
}

/// The ports of the proxy itself, once each: of all listeners, and of the admin pages.
fn own_ports(config: &Config) -> Vec<u16> {
    let listeners = config.listeners.iter().map(|listener| &listener.bind.value);
    let admin = config.admin.bind.as_ref().map(|bind| &bind.value);
    let mut ports: Vec<u16> = listeners
        .chain(admin)
        .filter_map(|bind| match bind {
            Address::Ip(address) if address.port() != 0 => Some(address.port()),
            _ => None,
        })
        .collect();
    ports.sort_unstable();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use ringmesh_model::config;

    use super::*;

    fn rules(text: &str) -> Result<Rules, NoListener> {
        Rules::of(&config::parse(text, "x.toml").expect("valid"))
    }

    fn listener(name: &str, bind: &str, intercept: &str) -> String {
        format!("[[listener]]\nname = \"{name}\"\nbind = \"{bind}\"\nintercept = \"{intercept}\"\n")
    }

    #[test]
    fn a_config_without_such_listeners_has_no_rules() {
        let text = "[[listener]]\nname = \"front\"\nbind = \"127.0.0.1:8000\"\nservice = \"app\"\n";
        assert!(rules(text).is_err());
    }

    #[test]
    fn a_family_without_a_listener_is_refused_and_not_let_around() {
        let text = rules(&listener("out", "127.0.0.1:15001", "outbound")).expect("rules").to_string();
        assert!(text.contains("chain outbound_ipv6 {") && !text.contains("chain outbound_ipv4 {"), "{text}");
        let both = listener("out", "127.0.0.1:15001", "outbound") + &listener("out6", "[::1]:15001", "outbound");
        let text = rules(&both).expect("rules").to_string();
        assert!(!text.contains("reject"), "{text}");
        assert!(text.contains("dnat ip to 127.0.0.1:15001") && text.contains("dnat ip6 to [::1]:15001"), "{text}");
        assert!(!text.contains("chain inbound"), "no listener takes them: {text}");
    }

    #[test]
    fn a_listener_of_all_addresses_takes_both_families_unless_another_has_ipv4_or_it_is_for_ipv6_alone() {
        let both = listener("in", "[::]:15006", "inbound");
        let brought =
            |family: &str, port: u16| format!("nfproto {family} meta l4proto tcp counter redirect to :{port} ");
        let text = rules(&both).expect("rules").to_string();
        assert!(text.contains(&brought("ipv4", 15006)) && text.contains(&brought("ipv6", 15006)), "{text}");
        assert!(!text.contains("reject"), "{text}");
        let text = rules(&(both.clone() + &listener("in4", "0.0.0.0:15007", "inbound"))).expect("rules").to_string();
        assert!(text.contains(&brought("ipv4", 15007)) && text.contains(&brought("ipv6", 15006)), "{text}");
        assert!(!text.contains(&brought("ipv4", 15006)), "{text}");
        let text = rules(&(both + "ipv6_only = true\n")).expect("rules").to_string();
        assert!(text.contains("chain inbound_ipv4 {") && !text.contains("nfproto ipv4 meta"), "{text}");
    }

    #[test]
    fn the_ports_of_the_proxy_itself_are_left_alone_and_the_rules_change_with_the_config() {
        let text = listener("in", "0.0.0.0:15006", "inbound")
            + "[[listener]]\nname = \"front\"\nbind = \"0.0.0.0:8000\"\n[admin]\nbind = \"0.0.0.0:15021\"\n";
        let before = rules(&text).expect("rules");
        for port in [15006, 8000, 15021] {
            assert!(before.to_string().contains(&format!("tcp dport {port} counter accept")), "{before}");
        }
        let after = rules(&format!("{text}[intercept]\nexclude_inbound_ports = [22]\n")).expect("rules");
        assert_ne!(before.digest(), after.digest());
        assert!(after.to_string().contains("tcp dport 22 counter accept"), "{after}");
    }
}
